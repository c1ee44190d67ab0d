//! Members that are away: a leader keeps their slots for `member_slots_ttl`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    clock::Boottime,
    model::{Cluster, MemberName},
};

/// When the leader last saw a member, by slot name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    seen: BTreeMap<String, Boottime>,
    leading: bool,
}

impl Retention {
    /// This turn as leader. Whoever has just won the lock knows the absent from `/status` only, and gives them the whole
    /// time again: how long they have been away by then nobody can tell.
    pub fn note(&mut self, cluster: &Cluster, me: &MemberName, ttl: Duration, now: Boottime) {
        if !std::mem::replace(&mut self.leading, true) {
            self.seen.clear();
        }
        let published: BTreeSet<&String> = cluster.status.retain_slots.iter().flatten().collect();
        for name in &published {
            // An expired name stays here until it is out of `/status`: it must not come back from there.
            self.seen.entry((*name).clone()).or_insert(now);
        }
        let present = cluster.members.iter().filter(|member| !member.tags().nostream());
        let present: BTreeSet<String> = present
            .map(|member| member.name.slot())
            .chain([me.slot()])
            .collect();
        for name in &present {
            self.seen.insert(name.clone(), now);
        }
        let expired = |seen: Boottime| now.since(seen) >= ttl;
        self.seen
            .retain(|name, seen| !expired(*seen) || published.contains(name) || present.contains(name));
    }

    /// Somebody else leads.
    pub fn rest(&mut self) {
        self.leading = false;
    }

    /// The slots to keep now.
    #[must_use]
    pub fn names(&self, ttl: Duration, now: Boottime) -> BTreeSet<String> {
        let kept = self.seen.iter().filter(|(_, seen)| now.since(**seen) < ttl);
        kept.map(|(name, _)| name.clone()).collect()
    }
}
