//! What has to be in `/sync` and in postgres before a server accepts writes (contract: HA rules §11.4).
//!
//! Stricter than the contract in quorum mode: `/sync` changes hands before the promotion there too. Else a former primary
//! that comes back alone would count as its leader, and could lead without the commits its successor has acknowledged.

use super::{NameSet, StandbyNames, names::Method, promise};
use crate::{
    ha::{Action, View},
    model::{Cluster, MemberName, SyncKey, SyncKind},
};

/// Before the replica is promoted.
pub(in crate::ha) fn before_promotion(view: &View, cluster: &Cluster) -> Vec<Action> {
    let kind = promise::kind(&view.dynamic);
    if kind == SyncKind::Off {
        // What is left of it would bind everybody to its leader when the mode is on again.
        let left = cluster.sync.version.filter(|_| cluster.sync.leader.is_some());
        return left.map(Action::DeleteSync).into_iter().collect();
    }
    let (quorum, voters) = match &cluster.sync.leader {
        Some(leader) if kind == SyncKind::Quorum || view.dynamic.sync.strict => {
            let voters: NameSet = cluster.sync.standbys.iter().collect();
            (cluster.sync.quorum, voters.with(leader).without(&view.me))
        }
        // Whoever streams will be asked to confirm; until then nobody else can lead.
        Some(_) | None => (0, NameSet::default()),
    };
    let names = names(kind, view.dynamic.sync.strict, quorum, &voters);
    vec![write(&view.me, voters, quorum, cluster), set(names)]
}

/// Before postgres is started as a primary.
pub(in crate::ha) fn before_start(view: &View, cluster: &Cluster) -> Vec<Action> {
    let kind = promise::kind(&view.dynamic);
    let own = |leader: &MemberName| leader.0.eq_ignore_ascii_case(&view.me.0);
    if kind == SyncKind::Off || !cluster.sync.leader.as_ref().is_some_and(own) {
        return before_promotion(view, cluster);
    }
    let voters: NameSet = cluster.sync.standbys.iter().collect();
    let names = names(kind, view.dynamic.sync.strict, cluster.sync.quorum, &voters);
    vec![set(names)]
}

pub(super) fn names(kind: SyncKind, strict: bool, quorum: u32, voters: &NameSet) -> StandbyNames {
    let quorum = usize::try_from(quorum).unwrap_or(usize::MAX);
    let method = match kind {
        SyncKind::Quorum => Method::Any,
        SyncKind::On | SyncKind::Off => Method::First,
    };
    let count = voters.len().saturating_sub(quorum).max(usize::from(strict));
    if strict && voters.is_empty() {
        return StandbyNames::nobody_will_do(method);
    }
    match method {
        Method::First if count == voters.len() => StandbyNames::all(voters.clone()),
        _ => StandbyNames::any(count, voters.clone()),
    }
}

fn set(names: StandbyNames) -> Action {
    Action::SetSyncNames(Some(names))
}

fn write(me: &MemberName, voters: NameSet, quorum: u32, cluster: &Cluster) -> Action {
    Action::WriteSync(SyncKey {
        leader: Some(me.clone()),
        quorum,
        standbys: voters.list(),
        version: cluster.sync.version,
    })
}
