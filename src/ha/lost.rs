//! The store has lost what it knew, and the lock with it: it was wiped, or an older copy of it was put in its place.
//!
//! A lock that was released, or whose lease ran out, has no primary behind it any more. One that was lost may have: a
//! primary that is cut off from the store, or frozen, goes on until its own deadline, and nobody can ask it. That
//! deadline counts from its last renewal, which lies before the loss, and the loss before our first look at it. So a
//! `ttl` from that look on is enough.
//!
//! What `/sync` promised still holds for what was acknowledged before: whoever saw it remembers it until there is a
//! cluster in the store again.

use std::time::Duration;

use super::Memory;
use crate::{
    clock::Boottime,
    model::{Cluster, Lsn, MemberName, SyncKey},
};

/// What is remembered of the store to tell that it has lost something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lost {
    /// Position the leader had published when there was one. Only leaders change it: with nobody leading it cannot
    /// become smaller.
    pub optime: Lsn,
    /// `/sync` as it was then.
    pub sync: SyncKey,
    /// First turn that saw the loss; nothing once there is a leader again.
    pub since: Option<Boottime>,
}

impl Lost {
    /// Looks at the store.
    pub(super) fn note(&mut self, cluster: &Cluster, now: Boottime) {
        if cluster.leader.is_some() {
            self.since = None;
            // The first leader after a wipe has not written everything yet.
            if cluster.initialize.is_some() {
                self.optime = cluster.status.optime;
                self.sync.clone_from(&cluster.sync);
            }
        } else if cluster.initialize.is_none() || cluster.status.optime < self.optime {
            self.since.get_or_insert(now);
        }
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

/// The cluster with the promise it has lost; `None`: it has lost none.
pub(super) fn with_promise(memory: &Memory, cluster: &Cluster) -> Option<Cluster> {
    let lost = &memory.lost;
    (lost.since.is_some() && lost.sync.leader.is_some() && cluster.sync.leader.is_none()).then(|| Cluster {
        sync: lost.sync.clone(),
        ..cluster.clone()
    })
}
