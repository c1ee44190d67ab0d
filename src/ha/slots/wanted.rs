//! The slots this member should have.

use std::collections::BTreeMap;

use super::{Place, Situation};
use crate::model::{Cluster, Dynamic, Lsn, Member, MemberName, SlotKind, SlotScope, Tags};

/// For whom a slot is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// A member that is there.
    Member(MemberName),
    /// A member that is away, for a while.
    Away,
    /// It is in `/config`.
    Permanent,
}

/// A slot that should be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What kind.
    pub kind: SlotKind,
    /// For whom.
    pub whose: Whose,
    /// Somebody should be streaming from it here. One that nobody uses here is moved by us.
    pub expected_active: bool,
    /// How far to move one that nobody uses here; `None`: nobody has said.
    pub target: Option<Lsn>,
}

/// Members since this version publish the positions of all slots in `/status` (contract: DCS layout §4).
const PUBLISHES_ALL_SLOTS: (u32, u32) = (4, 0);

/// The slots this member should have, by name.
#[must_use]
pub fn wanted(situation: &Situation<'_>) -> BTreeMap<String, Wanted> {
    if !situation.dynamic.use_slots {
        return BTreeMap::new();
    }
    let mut wanted = members(situation);
    away(situation, &mut wanted);
    permanent(situation, &mut wanted);
    // Nobody streams from himself.
    wanted.remove(&situation.me.slot());
    wanted
}

fn members(situation: &Situation<'_>) -> BTreeMap<String, Wanted> {
    let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
    let others = situation.cluster.members.iter();
    for member in others.filter(|member| member.name != *situation.me && !member.tags().nostream()) {
        let expected = streams_from_here(situation, member);
        if !expected && !keeps_all(situation) {
            continue;
        }
        let slot = Wanted {
            kind: SlotKind::Physical,
            whose: Whose::Member(member.name.clone()),
            expected_active: expected,
            target: target(situation, member),
        };
        // Two members whose names give the same slot: whoever uses it here decides.
        let known = wanted.entry(member.name.slot()).or_insert_with(|| slot.clone());
        if expected && !known.expected_active {
            *known = slot;
        }
    }
    wanted
}

/// Whoever may lead keeps the slots of everybody else, so that none of them has to be copied anew after a failover.
fn keeps_all(situation: &Situation<'_>) -> bool {
    !situation.dynamic.member_slots_ttl.is_zero() && !situation.tags.nofailover()
}

/// Whether that member should be streaming from us.
fn streams_from_here(situation: &Situation<'_>, member: &Member) -> bool {
    let tags = member.tags();
    let from = tags.replicatefrom();
    let from_us = from == Some(situation.me.as_str());
    if situation.place.leads() {
        return from_us || from.is_none_or(|name| situation.cluster.member(&name.into()).is_none());
    }
    from_us && !situation.cluster.is_leader(&member.name)
}

/// How far the slot of a member that streams from another may be moved here.
fn target(situation: &Situation<'_>, member: &Member) -> Option<Lsn> {
    let cluster = situation.cluster;
    let published = published(cluster, &member.name.slot()).filter(|_| !situation.place.leads());
    let position = member.data.xlog_location;
    let cascades = member
        .tags()
        .replicatefrom()
        .is_some_and(|from| cluster.member(&from.into()).is_some() && !cluster.is_leader(&from.into()));
    // What the leader knows of these is old or nothing; they tell themselves where they are. A leader of an older
    // software publishes nothing of members.
    if cascades || cluster.is_leader(&member.name) || !publishes_all(cluster) {
        return published.max(position);
    }
    published
}

fn published(cluster: &Cluster, slot: &str) -> Option<Lsn> {
    cluster.status.slots.as_ref()?.get(slot).copied()
}

fn publishes_all(cluster: &Cluster) -> bool {
    let Some(leader) = cluster.leader_member() else {
        return false;
    };
    let mut numbers = leader
        .data
        .version
        .split('.')
        .map(|part| part.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= PUBLISHES_ALL_SLOTS
}

/// Members whose key is gone: a restart of the host takes longer than a lease.
fn away(situation: &Situation<'_>, wanted: &mut BTreeMap<String, Wanted>) {
    let may_keep = situation.place.leads() || !situation.tags.nofailover();
    if situation.dynamic.member_slots_ttl.is_zero() || !may_keep {
        return;
    }
    let names: Vec<&String> = if situation.place.leads() {
        situation.retained.iter().collect()
    } else {
        situation.cluster.status.retain_slots.iter().flatten().collect()
    };
    // A member that is there and not wanted (it does not stream) is not away.
    let there = |name: &str| situation.cluster.members.iter().any(|m| m.name.slot() == name);
    for name in names {
        if there(name) {
            continue;
        }
        wanted.entry(name.clone()).or_insert_with(|| Wanted {
            kind: SlotKind::Physical,
            whose: Whose::Away,
            expected_active: false,
            target: published(situation.cluster, name).filter(|_| !situation.place.leads()),
        });
    }
}

fn permanent(situation: &Situation<'_>, wanted: &mut BTreeMap<String, Wanted>) {
    let leads = situation.place.leads();
    if !leads && situation.tags.nofailover() {
        return;
    }
    for (name, slot) in &situation.dynamic.permanent_slots {
        if !in_scope(situation.dynamic, slot.scope) {
            continue;
        }
        let logical = matches!(slot.kind, SlotKind::Logical { .. });
        if logical && !decodes(situation) {
            continue;
        }
        if let Some(member) = wanted.get_mut(name) {
            // The slot of a member that is to be kept for ever. A logical one of that name cannot be had.
            if !logical && member.whose == Whose::Away {
                member.whose = Whose::Permanent;
                member.expected_active = leads;
            }
            continue;
        }
        let published = published(situation.cluster, name);
        let target = match situation.place {
            Place::Replica { replayed } if logical => published.map(|lsn| lsn.min(replayed)),
            Place::Replica { .. } => published,
            Place::Primary | Place::StandbyLeader => None,
        };
        wanted.insert(
            name.clone(),
            Wanted {
                kind: slot.kind.clone(),
                whose: Whose::Permanent,
                expected_active: leads,
                target,
            },
        );
    }
}

/// Whether a permanent slot belongs into this kind of cluster.
pub(super) const fn in_scope(dynamic: &Dynamic, scope: SlotScope) -> bool {
    match scope {
        SlotScope::Any => true,
        SlotScope::Primary => dynamic.standby.is_none(),
        SlotScope::Standby => dynamic.standby.is_some(),
    }
}

/// Logical slots live in a primary cluster, and only where WAL arrives by streaming: a member that lives from an archive
/// cannot tell its leader what rows it still needs.
fn decodes(situation: &Situation<'_>) -> bool {
    situation.dynamic.standby.is_none()
        && situation.place != Place::StandbyLeader
        && (situation.place.leads() || !behind_nostream(situation.cluster, situation.me, situation.tags))
}

/// Whether the member, or one of those it streams through, does not stream.
pub(super) fn behind_nostream(cluster: &Cluster, me: &MemberName, tags: &Tags) -> bool {
    let mut tags = tags.clone();
    // A chain is no longer than the cluster; a ring of names ends here too.
    for _ in 0..=cluster.members.len() {
        if tags.nostream() {
            return true;
        }
        let from = tags.replicatefrom().map(MemberName::from);
        let Some(upstream) = from
            .filter(|name| name != me)
            .and_then(|name| cluster.member(&name))
        else {
            return false;
        };
        if cluster.is_leader(&upstream.name) {
            return false;
        }
        tags = upstream.tags();
    }
    false
}
