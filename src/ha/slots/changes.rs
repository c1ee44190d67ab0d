//! What is there against what should be there.

use std::collections::{BTreeMap, BTreeSet};

use super::{Change, Op, Place, SLOT_SYNC, Situation, Slot, Wanted, Whose, wanted};
use crate::model::{Lsn, SlotKind};

/// Everything to do now, in the order of the names. A slot that has to be made anew is dropped now and made by the next
/// turn.
#[must_use]
pub fn changes(situation: &Situation<'_>) -> Vec<Change> {
    let wanted = wanted(situation);
    let mut changes = Vec::new();
    for (name, slot) in &wanted {
        let there = situation.slots.iter().find(|there| there.name == *name);
        let change = match there {
            None => missing(situation, name, slot),
            Some(there) => present(situation, slot, there),
        };
        changes.extend(change);
    }
    let others = situation
        .slots
        .iter()
        .filter(|slot| !wanted.contains_key(&slot.name));
    changes.extend(others.filter_map(|slot| unwanted(situation, slot)));
    changes.sort_by(|one, other| one.slot.cmp(&other.slot));
    changes
}

/// The slots that count as ours from now on: what is wanted here, and what was ours and is still there. Kept on disk, so
/// that a slot taken out of the configuration can go although this process was restarted meanwhile.
#[must_use]
pub fn record(situation: &Situation<'_>, wanted: &BTreeMap<String, Wanted>) -> BTreeSet<String> {
    let taken = |slot: &&Slot| match wanted.get(&slot.name) {
        // Somebody else's slot has the name.
        Some(wanted) => wanted.kind == slot.kind || situation.ours.contains(&slot.name),
        None => situation.ours.contains(&slot.name),
    };
    let there = situation.slots.iter().filter(taken).map(|slot| &slot.name);
    let known = |name: &&String| situation.slots.iter().any(|slot| slot.name == **name);
    let to_come = wanted.keys().filter(|name| !known(name));
    there.chain(to_come).cloned().collect()
}

fn change(slot: &str, op: Op, because: impl Into<String>) -> Option<Change> {
    Some(Change {
        slot: slot.to_owned(),
        op,
        because: because.into(),
    })
}

fn missing(situation: &Situation<'_>, name: &str, wanted: &Wanted) -> Option<Change> {
    match (&wanted.kind, situation.place) {
        (SlotKind::Physical, _) => change(name, Op::Create(SlotKind::Physical), for_whom(wanted)),
        (kind, Place::Primary | Place::StandbyLeader) => {
            change(name, Op::Create(kind.clone()), for_whom(wanted))
        }
        // Only what the leader has published is there to be copied.
        (SlotKind::Logical { database, plugin }, Place::Replica { .. }) if wanted.target.is_some() => {
            let op = Op::Copy {
                database: database.clone(),
                plugin: plugin.clone(),
            };
            change(name, op, "permanent, and the leader has it")
        }
        _ => None,
    }
}

fn for_whom(wanted: &Wanted) -> String {
    match &wanted.whose {
        Whose::Member(name) if wanted.expected_active => format!("member '{name}' streams from here"),
        Whose::Member(name) => format!("member '{name}' may stream from here one day"),
        Whose::Away => "a member that is away may come back".to_owned(),
        Whose::Permanent => "permanent".to_owned(),
    }
}

fn present(situation: &Situation<'_>, wanted: &Wanted, there: &Slot) -> Option<Change> {
    let name = there.name.as_str();
    if there.temporary {
        return None;
    }
    let standby = matches!(situation.place, Place::Replica { .. });
    if left_to_postgres(situation, there) {
        return in_the_way(situation, there).filter(|_| standby);
    }
    let may_drop = !situation.dynamic.pause && !there.active && !ignored(situation, there);
    if there.kind != wanted.kind {
        // Permanent slots are managed by name. That a name is also a member's proves nothing about a logical slot.
        let managed = wanted.whose == Whose::Permanent || situation.ours.contains(name);
        return change(name, Op::Drop, "its kind, database or plugin is another one now")
            .filter(|_| may_drop && managed);
    }
    if there.lost {
        return change(name, Op::Drop, "the WAL it needs is gone, it is of no use").filter(|_| may_drop);
    }
    match &there.kind {
        SlotKind::Physical => physical(situation, wanted, there, may_drop),
        SlotKind::Logical { database, .. } => {
            let to = wanted.target.filter(|_| standby && !there.active)?;
            let op = Op::Advance {
                database: Some(database.clone()),
                to,
            };
            change(name, op, "its consumer has confirmed it on the leader")
                .filter(|_| there.confirmed.is_none_or(|confirmed| confirmed < to))
        }
    }
}

fn physical(situation: &Situation<'_>, wanted: &Wanted, there: &Slot, may_drop: bool) -> Option<Change> {
    let name = there.name.as_str();
    let Some(restart) = there.restart else {
        let unreserved = change(
            name,
            Op::Drop,
            "it keeps no WAL and cannot be moved, it is made anew",
        );
        return unreserved.filter(|_| may_drop);
    };
    if wanted.expected_active || there.active {
        return None;
    }
    // Nobody sends feedback through it here, so it would hold old rows for ever. That of a member which is away is all
    // that keeps its WAL on the leader; its time is limited anyway.
    let held_for_absent = wanted.whose == Whose::Away && situation.place.leads();
    if there.xmin && may_drop && !held_for_absent && situation.cluster.leader.is_some() {
        return change(
            name,
            Op::Drop,
            "it keeps old rows and nobody uses it here, it is made anew",
        );
    }
    let reach = |to: Lsn| match situation.place {
        Place::Replica { replayed } => to.min(replayed),
        Place::Primary | Place::StandbyLeader => to,
    };
    let to = wanted.target.map(reach).filter(|to| *to > restart)?;
    let op = Op::Advance { database: None, to };
    change(name, op, "whoever uses it elsewhere is past it")
}

/// PostgreSQL 17 and newer keep these on standbys themselves.
const fn left_to_postgres(situation: &Situation<'_>, there: &Slot) -> bool {
    situation.major >= SLOT_SYNC && matches!(there.kind, SlotKind::Logical { .. }) && there.failover
}

/// Left from a time as primary: PostgreSQL cannot synchronize the leader's slot of that name as long as it is there.
fn in_the_way(situation: &Situation<'_>, there: &Slot) -> Option<Change> {
    let because = "left from a time as primary, PostgreSQL copies the leader's by itself";
    let may_drop = !there.synced && !there.active && !situation.dynamic.pause && !ignored(situation, there);
    change(&there.name, Op::Drop, because).filter(|_| may_drop)
}

fn unwanted(situation: &Situation<'_>, there: &Slot) -> Option<Change> {
    if there.temporary || there.active || situation.dynamic.pause || ignored(situation, there) {
        return None;
    }
    if left_to_postgres(situation, there) {
        return in_the_way(situation, there).filter(|_| matches!(situation.place, Place::Replica { .. }));
    }
    let permanent = situation.dynamic.permanent_slots.contains_key(&there.name);
    if permanent && !situation.dynamic.use_slots {
        // Switching slots off is about members; nobody said that a consumer is to lose its place.
        return None;
    }
    if permanent && there.kind != SlotKind::Physical {
        // In the configuration, and not kept here only because of what this member is now.
        let ours = situation.ours.contains(&there.name);
        return change(&there.name, Op::Drop, "permanent, but not kept on this member").filter(|_| ours);
    }
    let because = match whose_leftover(situation, there)? {
        Leftover::Member => "no member needs it here",
        Leftover::Ours => {
            "it is wanted no more: its member is gone for good, or it was taken out of the configuration"
        }
    };
    change(&there.name, Op::Drop, because)
}

/// Why a slot that is not wanted is known to be ours.
pub(super) enum Leftover {
    /// It has the name of a member.
    Member,
    /// We made it or looked after it.
    Ours,
}

/// `None`: it cannot be told from one that a person made.
pub(super) fn whose_leftover(situation: &Situation<'_>, there: &Slot) -> Option<Leftover> {
    let members = situation.cluster.members.iter().map(|member| member.name.slot());
    let retained = situation.cluster.status.retain_slots.iter().flatten().cloned();
    let mut names = members.chain(retained);
    if there.kind == SlotKind::Physical && names.any(|name| name == there.name) {
        return Some(Leftover::Member);
    }
    situation.ours.contains(&there.name).then_some(Leftover::Ours)
}

/// `ignore_slots` means it.
pub(super) fn ignored(situation: &Situation<'_>, there: &Slot) -> bool {
    let (kind, database, plugin) = match &there.kind {
        SlotKind::Physical => ("physical", None, None),
        SlotKind::Logical { database, plugin } => ("logical", Some(database.as_str()), Some(plugin.as_str())),
    };
    let mut rules = situation.dynamic.ignore_slots.iter();
    rules.any(|rule| rule.matches(&there.name, kind, database, plugin))
}
