//! Whether a replica copies the leader's logical slots now: it is restarted for that.

use std::time::Duration;

use super::super::{Job, Local, Memory, Plan, Standing, View, view::upstream};
use crate::{clock::Boottime, model::Cluster};

/// Pause after an attempt, doubled with each further one: every attempt may cost a restart.
const AGAIN: Duration = Duration::from_secs(10);
const AGAIN_MOST: Duration = Duration::from_secs(600);
/// Replicas take turns: all of them away at once would leave a leader without a synchronous standby.
const TURN: Duration = Duration::from_secs(5);

/// A plan to copy what is missing, for a replica that streams and has nothing else to do. Never in maintenance mode.
#[must_use]
pub fn due(view: &View, cluster: &Cluster, memory: &Memory, now: Boottime) -> Option<Plan> {
    let Local::Running(running) = &view.local else {
        return None;
    };
    let streams = matches!(running.standing, Standing::Replica { streaming: true, .. });
    if view.missing_slots.is_empty() || view.dynamic.pause || !streams {
        return None;
    }
    let (attempts, last) = memory.slot_copies;
    if attempts > 0 && now.since(last) < pause(attempts) {
        return None;
    }
    let leader = cluster.leader.as_ref()?;
    let before_us = cluster
        .members
        .iter()
        .filter(|member| member.name < view.me && member.name != leader.name && !member.tags().nofailover());
    let turns = u32::try_from(before_us.count()).unwrap_or(u32::MAX);
    let waited = memory.slots_missing_since.map(|since| now.since(since));
    if waited.unwrap_or_default() < TURN.saturating_mul(turns) {
        return None;
    }
    let from = upstream(cluster, &leader.name)?;
    let because = format!("logical slots {} are not here yet", view.missing_slots.join(", "));
    let slots = view.missing_slots.clone();
    Some(Plan::begin(because, Job::CopySlots { from, slots }))
}

fn pause(attempts: u32) -> Duration {
    let doubled = AGAIN.saturating_mul(1 << (attempts - 1).min(6));
    doubled.min(AGAIN_MOST)
}
