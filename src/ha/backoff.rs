//! A primary that has lost the lock and not its replicas is left time to come back: `primary_race_backoff` (contract: HA
//! rules §2).

use std::time::Duration;

use super::{Memory, Running, View};
use crate::{clock::Boottime, model::Cluster};

/// How long a replica still leaves the race alone: for `loop_wait` after the lock was seen free, and for the whole
/// backoff as long as it receives something new from whom it streams. The turns of this loop follow events and may be
/// close together, so what counts is whether something new came within `loop_wait`.
pub(super) fn left(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    running: &Running,
    now: Boottime,
) -> Option<Duration> {
    let backoff = view.dynamic.primary_race_backoff;
    let named = cluster
        .failover
        .as_ref()
        .is_some_and(|key| key.candidate.is_some());
    if backoff.is_zero() || view.dynamic.pause || view.dynamic.standby.is_some() || named {
        return None;
    }
    // Without an earlier look nothing can be seen to move.
    let (_, since) = memory.moved?;
    let loop_wait = view.dynamic.timing.loop_wait;
    let waited = memory.unlocked_for(now);
    let moving = running.is_streaming() && now.since(since) < loop_wait;
    let until = if moving { backoff } else { backoff.min(loop_wait) };
    let left = until.saturating_sub(waited);
    (!left.is_zero()).then_some(left)
}
