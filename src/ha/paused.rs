//! The cluster is paused: a person works on it. Nobody is promoted, started, stopped or repaired by itself; what runs
//! goes on, with or without the lock (contract: HA rules §19, with the rows on pause of §1, §2, §4, §5, §6, §9).
//!
//! What a person asks for by name still happens, whole: who was asked to hand over, or to be made anew, is started
//! again afterwards ([`Memory::owed`]).
//!
//! A paused primary is not fenced: it goes on without the DCS, for as long as it is away. Should the cluster be resumed
//! meanwhile, this member does not hear of it: the others see it as a running primary when they ask it before an
//! election, but one that can be reached by nobody is not seen. Who pauses a cluster looks after it.

use std::time::Duration;

use super::{
    Action, DcsView, Down, Local, Memory, Plan, Running, View, down, election, follow, leader, sync::Promise,
};
use crate::{
    clock::Boottime,
    model::{Cluster, MemberName},
};

/// Next look after the lock was asked for.
const AGAIN: Duration = Duration::from_millis(500);

pub(super) fn decide(view: &View, cluster: &Cluster, memory: &Memory, now: Boottime) -> Plan {
    let ours = cluster.is_leader(&view.me);
    if let (Some(mine), Some(theirs)) = (view.local.system_id(), cluster.system_id())
        && *mine != theirs
    {
        let because = format!(
            "system identifier mismatch: the data directory has {mine}, the cluster in the DCS has {theirs} (key \
             initialize)"
        );
        return give_back(ours, because);
    }
    match &view.local {
        Local::Empty | Local::Leftover => give_back(
            ours,
            "the data directory is empty, nothing is bootstrapped or copied",
        ),
        Local::Broken { reason } => give_back(ours, format!("the data directory is broken: {reason}")),
        Local::Unknown { reason, .. } => {
            give_back(ours, format!("the data directory cannot be looked at: {reason}"))
        }
        Local::Down(state) if memory.owed => down::decide(view, cluster, memory, state, now),
        Local::Down(state) => stays_down(ours, state),
        Local::Starting { .. } => Plan::wait("postgres is starting").keeping(ours).again_in(AGAIN),
        Local::Stopping { .. } => Plan::wait("postgres is stopping").keeping(ours).again_in(AGAIN),
        Local::Silent { .. } => Plan::wait("the local postgres does not answer")
            .keeping(ours)
            .again_in(AGAIN),
        Local::Running(running) if running.is_primary() => primary(view, cluster, memory, now),
        Local::Running(running) => replica(view, cluster, memory, running, now),
    }
}

/// The lock is for who can lead.
fn give_back(ours: bool, because: impl Into<String>) -> Plan {
    let because = because.into();
    if ours {
        return Plan::act(
            format!("{because}: giving the lock back"),
            [Action::ReleaseLock(None)],
        );
    }
    Plan::wait(because)
}

/// A person may have stopped it.
fn stays_down(ours: bool, state: &Down) -> Plan {
    if !ours {
        return Plan::wait("postgres is not running and is left so");
    }
    let end = state.checkpoint_end.filter(|_| state.control.state.is_clean());
    Plan::act(
        "postgres is not running, giving the lock back",
        [Action::ReleaseLock(end)],
    )
}

fn primary(view: &View, cluster: &Cluster, memory: &Memory, now: Boottime) -> Plan {
    match &cluster.leader {
        Some(leader) if leader.name == view.me => {
            if view.valid_hold(now).is_none() {
                return Plan::act(
                    "the lock carries our name, making sure of it",
                    [Action::RenewLock],
                )
                .keeping(true)
                .again_in(AGAIN);
            }
            leader::decide(view, cluster, memory, now)
        }
        Some(leader) => Plan::wait(format!(
            "going on as primary without the lock, which '{}' holds",
            leader.name
        )),
        // Contract: HA rules §2, row 4; identifiers that differ were sorted out before.
        None if cluster.initialize.as_deref() == Some("") => {
            Plan::wait("primary without the lock, and a bootstrap has not finished")
        }
        None if Promise::active(view, cluster).is_some_and(|promise| !promise.led_by(&view.me)) => {
            Plan::wait("primary without the lock, and another has taken synchronous replication over")
        }
        None => Plan::act(
            "primary, and nobody holds the lock: taking it",
            [Action::AcquireLock],
        )
        .keeping(true)
        .again_in(AGAIN),
    }
}

fn replica(view: &View, cluster: &Cluster, memory: &Memory, running: &Running, now: Boottime) -> Plan {
    match &cluster.leader {
        // The leader of a cluster that follows another is a replica, and stays what it is.
        Some(leader)
            if leader.name == view.me && (candidate(view, cluster) || view.dynamic.standby.is_some()) =>
        {
            leader::decide(view, cluster, memory, now)
        }
        Some(leader) if leader.name == view.me => give_back(true, "a replica, and nobody is promoted"),
        Some(leader) => follows(view, cluster, running, &leader.name),
        None if candidate(view, cluster) => election::decide(view, cluster, memory, now),
        // Its candidate needs votes.
        None if election::named_any(cluster) => election::cut_off(view, cluster, memory, running, now)
            .unwrap_or_else(|| Plan::wait("nobody leads, and another is to be promoted").again_in(AGAIN)),
        None => Plan::wait("nobody leads, and nobody is promoted").again_in(AGAIN),
    }
}

/// A request for now names us.
fn candidate(view: &View, cluster: &Cluster) -> bool {
    cluster
        .failover
        .as_ref()
        .is_some_and(|key| key.candidate.as_ref() == Some(&view.me) && key.scheduled_at.is_none())
}

/// Whom it streams from changes with a reload; more than that waits for the end of the pause.
fn follows(view: &View, cluster: &Cluster, running: &Running, leader: &MemberName) -> Plan {
    match follow::elsewhere(view, cluster, running) {
        Some(wanted) => {
            let because = match &wanted {
                Some(wanted) => format!("following '{}'", wanted.member),
                None => "tagged nostream, living from the archive".to_owned(),
            };
            Plan::act(because, [Action::Follow(wanted)]).again_in(AGAIN)
        }
        None => Plan::wait(format!("a replica of '{leader}'")),
    }
}

/// The DCS does not answer (contract: HA rules §9, first sentence).
pub(super) fn blind(view: &View, now: Boottime) -> Plan {
    let DcsView::Down { since } = view.dcs else {
        return Plan::wait("the DCS answers");
    };
    let down_for = now.since(since).as_secs_f32();
    let what = if view.local.may_write() {
        "going on as primary"
    } else {
        "nothing is done"
    };
    Plan::wait(format!("the DCS has not answered for {down_for:.1} s; {what}"))
        .keeping(view.valid_hold(now).is_some())
}
