//! Who can be a synchronous standby of this primary (contract: HA rules §11, "Candidates").

use std::{cmp::Reverse, collections::BTreeMap};

use super::{NameSet, Sender, Sight};
use crate::{
    ha::View,
    model::{Cluster, Lsn, Member, MemberName, PgState, SyncKind},
};

/// The walsenders that count, as the decision sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Candidates {
    /// Whom commits should wait for: in mode on the best few, in quorum mode all.
    pub(super) active: NameSet,
    /// Could be waited for.
    pub(super) able: NameSet,
}

struct Candidate<'a> {
    member: &'a Member,
    position: Lsn,
    sync_state: &'a str,
}

pub(super) fn find(view: &View, cluster: &Cluster, sight: &Sight, kind: SyncKind) -> Candidates {
    let connected = positions(sight);
    let mut found: Vec<Candidate<'_>> = cluster
        .members
        .iter()
        .filter(|member| is_fit(view, cluster, member, &connected))
        .filter_map(|member| {
            Some(Candidate {
                member,
                position: *connected.get(&member.name.0.to_ascii_lowercase())?,
                sync_state: sync_state(sight, &member.name),
            })
        })
        .collect();
    found.sort_by_key(|c| {
        let priority = c.member.tags().sync_priority();
        (Reverse(priority), Reverse(c.sync_state), Reverse(c.position))
    });
    if let Some(limit) = view.dynamic.sync.maximum_lag {
        let best = match found.as_slice() {
            [_] => sight.flushed,
            all => all.iter().map(|c| c.position).max().unwrap_or_default(),
        };
        found.retain(|c| best.bytes_ahead_of(c.position) <= limit);
    }
    found.sort_by_key(|c| c.member.tags().nofailover());
    let count = view.dynamic.sync.node_count;
    let promotable = found.iter().filter(|c| !c.member.tags().nofailover()).count();
    let take = match kind {
        SyncKind::Quorum => promotable.max(count),
        SyncKind::On | SyncKind::Off => count,
    };
    let names = |some: &[Candidate<'_>]| some.iter().map(|c| c.member.name.clone()).collect();
    Candidates {
        active: names(&found[..take.min(found.len())]),
        able: names(&found),
    }
}

/// How far each standby that streams has come, by lower-case name. One that has just connected again may be listed twice.
pub(super) fn positions(sight: &Sight) -> BTreeMap<String, Lsn> {
    let mut positions = BTreeMap::new();
    for sender in sight.senders.iter().filter(|sender| sender.streaming) {
        if let Some(position) = sender.position {
            let known: &mut Lsn = positions.entry(sender.name.to_ascii_lowercase()).or_default();
            *known = position.max(*known);
        }
    }
    positions
}

fn sync_state<'a>(sight: &'a Sight, name: &MemberName) -> &'a str {
    let same = |sender: &&Sender| sender.streaming && sender.name.eq_ignore_ascii_case(&name.0);
    let states = sight.senders.iter().filter(same);
    states
        .map(|sender| sender.sync_state.as_str())
        .max()
        .unwrap_or("")
}

fn is_fit(view: &View, cluster: &Cluster, member: &Member, connected: &BTreeMap<String, Lsn>) -> bool {
    let tags = member.tags();
    let is_connected = |name: &str| connected.contains_key(&name.to_ascii_lowercase());
    // It streams from here for the moment only.
    let cascades = tags
        .replicatefrom()
        .is_some_and(|from| from != view.me.0 && from != member.name.0 && is_connected(from));
    // PostgreSQL could not tell the two apart.
    let ambiguous = cluster
        .members
        .iter()
        .any(|other| other.name != member.name && other.name.0.eq_ignore_ascii_case(&member.name.0));
    member.name != view.me
        && member.data.state == PgState::Running
        && !tags.nosync()
        && !cascades
        && !ambiguous
        && !view.me.0.eq_ignore_ascii_case(&member.name.0)
}
