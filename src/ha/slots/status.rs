//! `/status` as the leader writes it (contract: DCS layout §2).

use std::collections::{BTreeMap, BTreeSet};

use super::{Situation, Wanted};
use crate::model::{Lsn, StatusKey};

/// The leader's position, its slots with theirs, and the names of the members' slots it keeps. Only our slots: whoever
/// follows moves and keeps the same ones, and must not take a person's slot for ours.
#[must_use]
pub fn status(situation: &Situation<'_>, wanted: &BTreeMap<String, Wanted>, flushed: Lsn) -> StatusKey {
    let ttl = situation.dynamic.member_slots_ttl;
    let permanent = |name: &str| situation.dynamic.permanent_slots.contains_key(name);
    let published = |name: &str| {
        let ours = wanted.contains_key(name) || situation.ours.contains(name);
        ours && (permanent(name) || !ttl.is_zero())
    };
    let mut slots: BTreeMap<String, Lsn> = situation
        .slots
        .iter()
        .filter(|slot| !slot.temporary && !slot.lost && published(&slot.name))
        .filter(|slot| {
            wanted
                .get(&slot.name)
                .is_none_or(|wanted| wanted.kind == slot.kind)
        })
        .filter_map(|slot| Some((slot.name.clone(), slot.position()?)))
        .collect();
    slots.insert(situation.me.slot(), flushed);
    let retained: BTreeSet<&String> = situation
        .retained
        .iter()
        .filter(|name| !permanent(name))
        .collect();
    StatusKey {
        optime: flushed,
        slots: Some(slots),
        retain_slots: (!retained.is_empty()).then(|| retained.into_iter().cloned().collect()),
    }
}
