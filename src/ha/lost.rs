//! The store has lost what it knew, and the lock with it: it was wiped, or an older copy of it was put in its place.
//!
//! A lock that was released, or whose lease ran out, has no primary behind it any more. One that was lost may have: a
//! primary that is cut off from the store, or frozen, goes on until its own deadline, and nobody can ask it. That
//! deadline counts from its last renewal, which lies before the loss, and the loss before our first look at it. So a
//! `ttl` from that look on is enough.
//!
//! What `/sync` promised still holds for what was acknowledged before, and a timeline that `/history` named was led on:
//! whoever saw them remembers both until there is a leader again. But who did not see the store for a `ttl` before its
//! loss remembers what may have been long over: others may have led since, and only they know ([`Lost::away`]).
//!
//! | who | in a store that knows no cluster | where |
//! |---|---|---|
//! | a primary that runs | takes the lock back and registers the cluster | `election::running_primary` |
//! | a replica that saw the loss | waits for the last holder ([`holder`]), then leads by what is remembered ([`restored`]) | `election::rule` |
//! | a replica that was away | leads once all members it knew have said that they have nothing more | `votes::unanimous` |
//! | a former primary, just started | waits a ttl ([`unlocked_for`]), and never passes by a later timeline | `election::own`, `peers::outlived` |
//! | a replica, just started | never registers it, unless a person names it | `election::rule` |
//! | no data, or the rest of a copy | begins no new cluster beside a member with data, or at all | `bootstrap` |
//! | anybody who knew the cluster | calls off the bootstrap of a new one | `bootstrap::abandoned` |

use std::time::Duration;

use super::Memory;
use crate::{
    clock::Boottime,
    model::{Cluster, HistoryRow, Lsn, MemberName, SyncKey},
};

/// What is remembered of the store to tell that it has lost something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lost {
    /// Position the leader had published when there was one. Only leaders change it: with nobody leading it cannot
    /// become smaller.
    pub optime: Lsn,
    /// `/sync` as it was then.
    pub sync: SyncKey,
    /// Newest row of `/history`.
    pub newest: Option<HistoryRow>,
    /// When the store was last read.
    pub read_at: Option<Boottime>,
    /// It was not read for a `ttl` or longer when the loss was seen: what is remembered says little about the end.
    pub away: bool,
    /// First turn that saw the loss; nothing once there is a leader again.
    pub since: Option<Boottime>,
}

impl Lost {
    /// Looks at the store.
    pub(super) fn note(&mut self, cluster: &Cluster, ttl: Duration, now: Boottime) {
        let away = self.read_at.is_some_and(|at| now.since(at) >= ttl);
        self.read_at = Some(now);
        let newest = cluster.history.as_deref().and_then(<[_]>::last);
        if cluster.leader.is_some() {
            (self.since, self.away) = (None, false);
            // The first leader after a wipe has not written everything yet.
            if cluster.initialize.is_some() {
                self.optime = cluster.status.optime;
                self.sync.clone_from(&cluster.sync);
                self.newest = newest.cloned();
            }
        } else if cluster.initialize.is_none() || cluster.status.optime < self.optime || self.older(cluster) {
            if self.since.is_none() {
                (self.since, self.away) = (Some(now), away);
            }
        } else if self.since.is_none() {
            self.newest = newest.cloned();
        }
    }

    fn older(&self, cluster: &Cluster) -> bool {
        let known = self.newest.as_ref().map(|row| row.timeline);
        known
            > cluster
                .history
                .as_deref()
                .and_then(<[_]>::last)
                .map(|row| row.timeline)
    }
}

/// The member that may be primary still, and for how long. The lock that this member held itself keeps nobody waiting.
pub(super) fn holder(
    memory: &Memory,
    me: &MemberName,
    ttl: Duration,
    now: Boottime,
) -> Option<(MemberName, Duration)> {
    let holder = memory.holder.as_ref().or(memory.last_leader.as_ref())?;
    let left = ttl.saturating_sub(now.since(memory.lost.since?));
    (holder != me && !left.is_zero()).then(|| (holder.clone(), left))
}

/// The cluster with the promise and the newest timeline that the store has lost; `None`: it has lost neither.
pub(super) fn restored(memory: &Memory, cluster: &Cluster) -> Option<Cluster> {
    let lost = &memory.lost;
    lost.since?;
    let promise = lost.sync.leader.is_some() && cluster.sync.leader.is_none();
    let timeline = lost.older(cluster);
    (promise || timeline).then(|| {
        let mut restored = cluster.clone();
        if promise {
            restored.sync = lost.sync.clone();
        }
        if timeline {
            restored.history = lost.newest.clone().map(|row| vec![row]);
        }
        restored
    })
}

/// For how long nobody has led in the store as it is now: what was before its loss gave nobody time to come up.
pub(super) fn unlocked_for(memory: &Memory, now: Boottime) -> Duration {
    let unlocked = memory.unlocked_for(now);
    memory
        .lost
        .since
        .map_or(unlocked, |since| unlocked.min(now.since(since)))
}
