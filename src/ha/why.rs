//! Could this member lead if the lock came free now, and if not, which rule says no? The rules are those of the election
//! itself, asked about a cluster whose leader has just gone.

use std::{collections::BTreeMap, sync::Arc};

use super::{DcsView, Local, Peers, View, election, sync};
use crate::{
    clock::Boottime,
    model::{Cluster, Dynamic, Member, MemberName, PeerStatus, PgState, Role, SyncKind, Timeline},
};

/// What a member can say of its chances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Candidacy {
    /// It holds the lock.
    Leads,
    /// It would take the lock; the text says what speaks for it.
    Could(String),
    /// It would not; the text is the rule.
    Cannot(String),
}

/// The candidacy of this member as of now. What the others have published stands for what they would answer.
#[must_use]
pub fn candidacy(view: &View, now: Boottime) -> Candidacy {
    let DcsView::Known { cluster } = &view.dcs else {
        return Candidacy::Cannot("the DCS does not answer".to_owned());
    };
    if cluster.is_leader(&view.me) {
        return Candidacy::Leads;
    }
    if view.job.is_some() && !matches!(view.local, Local::Running(_)) {
        return Candidacy::Cannot("its data directory is being worked on".to_owned());
    }
    let gone = without_leader(cluster);
    let mut view = view.clone();
    view.peers = Some(published(&gone, &view.me, now));
    view.dcs = DcsView::Known {
        cluster: Arc::new(gone.clone()),
    };
    view.hold = None;
    view.memory.unlocked_since = Some(now);
    view.memory.handed_over_at = None;
    match election::candidacy(&view, &gone, now) {
        Ok(why) => Candidacy::Could(why),
        Err(why) => Candidacy::Cannot(why),
    }
}

/// The moment after the lock was lost: the leader is not there, and nobody has asked for anything.
fn without_leader(cluster: &Cluster) -> Cluster {
    let leader = cluster.leader.as_ref().map(|leader| leader.name.clone());
    let mut gone = cluster.clone();
    gone.leader = None;
    gone.failover = None;
    gone.members
        .retain(|member| Some(&member.name) != leader.as_ref());
    gone
}

fn published(cluster: &Cluster, me: &MemberName, now: Boottime) -> Peers {
    let others = cluster.members.iter().filter(|member| member.name != *me);
    let answers: BTreeMap<_, _> = others
        .map(|member| (member.name.clone(), answer(member)))
        .collect();
    Peers { at: now, answers }
}

fn answer(member: &Member) -> Option<PeerStatus> {
    let running = member.data.state == PgState::Running;
    let position = member.data.xlog_location.filter(|_| running)?;
    Some(PeerStatus {
        role: member.data.role,
        in_recovery: member.data.role != Role::Primary,
        position,
        timeline: member.data.timeline.unwrap_or(Timeline::UNKNOWN),
        tags: member.tags(),
        watchdog_failed: false,
        replaying: false,
        receiving: false,
    })
}

/// What the replication mode in force promises about acknowledged commits, in words.
#[must_use]
pub fn promise(cluster: &Cluster, dynamic: &Dynamic) -> String {
    let names = || {
        let names: Vec<_> = cluster.sync.standbys.iter().map(|name| name.0.as_str()).collect();
        names.join(", ")
    };
    let some = cluster.sync.leader.is_some() && !cluster.sync.standbys.is_empty();
    match sync::kind(dynamic) {
        SyncKind::Off => format!(
            "asynchronous: a failover may lose acknowledged commits, up to maximum_lag_on_failover ({} bytes) and what \
             was written since the leader last published its position",
            dynamic.maximum_lag_on_failover
        ),
        SyncKind::On if some => format!(
            "synchronous: no acknowledged commit is lost with the leader; {} has all of them and only it may take over",
            names()
        ),
        SyncKind::Quorum if some => format!(
            "quorum: no acknowledged commit is lost with the leader; a member of {} that sees {} others of them may \
             take over",
            names(),
            cluster.sync.quorum
        ),
        SyncKind::On | SyncKind::Quorum if dynamic.sync.strict => {
            "strict: no standby is synchronous, so no commit is acknowledged until one is".to_owned()
        }
        SyncKind::On | SyncKind::Quorum => {
            "synchronous, but no standby is: commits are acknowledged by the leader alone and may be lost with it"
                .to_owned()
        }
    }
}
