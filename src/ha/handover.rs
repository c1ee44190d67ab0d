//! A person asked the leader to hand over: a switchover or failover request while the lock carries our name (contract:
//! HA rules §6.1, §7.2).

use std::time::Duration;

use super::{Action, Plan, View, successor, sync::Promise};
use crate::{
    clock::Boottime,
    model::{Cluster, Lsn},
};

/// What becomes of a request.
pub(super) enum Request {
    /// Its time comes within `loop_wait`.
    DueIn(Duration),
    /// It cannot be met, for this reason.
    Drop(String),
    /// Nobody has asked the candidates yet.
    Ask(Action),
    /// It can be met; the text says to whom.
    HandOver(String),
}

/// Looks at the request, if there is one for now. `position`: what a candidate is measured by.
pub(super) fn requested(view: &View, cluster: &Cluster, position: Lsn, now: Boottime) -> Option<Request> {
    let request = cluster.failover.as_ref()?;
    let drop = |why: String| Some(Request::Drop(why));
    if let Some(at) = request.scheduled_at {
        if view.dynamic.pause {
            // What is scheduled waits for the end of the pause, and is missed by then.
            return None;
        }
        let late = view.wall.duration_since(at);
        if late.is_negative() {
            let left = late.unsigned_abs();
            return (left <= view.dynamic.timing.loop_wait).then_some(Request::DueIn(left));
        }
        if late.unsigned_abs() > view.dynamic.timing.loop_wait * 3 / 2 {
            return drop(format!(
                "the switchover scheduled at {at} was missed, dropping it"
            ));
        }
    }
    if request.leader.as_ref().is_some_and(|leader| *leader != view.me) {
        return drop("a switchover names another leader, dropping it".to_owned());
    }
    if request.candidate.as_ref() == Some(&view.me) {
        return drop("a failover names the leader itself, dropping it".to_owned());
    }
    if view.dynamic.pause && request.candidate.is_none() {
        return drop("paused: a switchover needs a candidate, dropping it".to_owned());
    }
    let named = request.candidate.as_ref();
    let promised = request.is_switchover() || named.is_none();
    let candidates = successor::candidates(view, cluster, named, promised);
    if candidates.is_empty() {
        return drop(match Promise::active(view, cluster) {
            Some(_) => "a switchover has no synchronous standby to switch to, dropping it".to_owned(),
            None => "a switchover has no member to switch to, dropping it".to_owned(),
        });
    }
    let peers = match successor::answers(view, &candidates, now) {
        Ok(peers) => peers,
        Err(ask) => return Some(Request::Ask(ask)),
    };
    match successor::usable(view, cluster, position, named, &candidates, peers) {
        Ok(name) => Some(Request::HandOver(match &request.candidate {
            Some(_) => format!("switchover to '{name}'"),
            None => format!("switchover, '{name}' can take over"),
        })),
        Err(why) => drop(format!("a switchover is not possible, dropping it: {why}")),
    }
}

/// The same for a leader whose postgres is not there to hand over in order: down, starting or silent. Its position is
/// what it last published.
pub(super) fn without_postgres(
    view: &View,
    cluster: &Cluster,
    now: Boottime,
    let_go: impl FnOnce(String) -> Plan,
) -> Option<Plan> {
    if view.dynamic.pause {
        return None;
    }
    match requested(view, cluster, cluster.status.optime, now)? {
        Request::DueIn(_) => None,
        Request::Drop(why) => Some(dropped(why).keeping(true)),
        Request::Ask(ask) => Some(asking(ask).keeping(true)),
        Request::HandOver(because) => Some(let_go(because)),
    }
}

pub(super) fn dropped(why: String) -> Plan {
    Plan::act(why, [Action::ClearFailover]).again_in(Duration::ZERO)
}

pub(super) fn asking(ask: Action) -> Plan {
    Plan::act("a switchover is asked for, asking the candidates", [ask])
}
