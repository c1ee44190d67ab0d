//! The cluster follows another one (`standby_cluster` in `/config`; contract: HA rules §3–§5, §10 "demote-cluster").
//!
//! Its leader holds the lock like any other, but its postgres stays a replica: it streams from the remote cluster (or
//! lives from an archive), and the other members cascade from it. No plan makes a primary while the section is there.
//! When it is taken out, the leader is promoted as after any election; when it is put in, a primary stops first.

use std::time::Duration;

use super::{
    Action, DemoteMode, Job, LeaderFacts, Memory, Plan, Running, Standing, Upstream, View,
    follow::{self, NOT_STREAMING, stopped_replaying},
    leader,
    repair::{self, Fault},
    rewind::{self, Reach, Verdict},
    sync,
};
use crate::{clock::Boottime, model::Cluster};

/// What this cluster follows, if it follows another.
pub(super) fn remote(view: &View) -> Option<Upstream> {
    view.dynamic.standby.as_ref().map(Upstream::remote)
}

/// In a standby cluster nobody waits for the end of a recovery: a source is what it has replayed.
pub(super) fn settled(view: &View, facts: &LeaderFacts) -> LeaderFacts {
    LeaderFacts {
        in_recovery: facts.in_recovery && view.dynamic.standby.is_none(),
        ..facts.clone()
    }
}

/// A primary in a cluster that is to follow another: two clusters would accept writes to the same data.
pub(super) fn stop_primary(view: &View, now: Boottime) -> Plan {
    let because = "the cluster is to follow another one: stopping the primary";
    if view.valid_hold(now).is_none() {
        return view.demote(DemoteMode::Offline, now, because);
    }
    let (mode, deadline) = (DemoteMode::Cluster, now + view.hand_over_timeout());
    Plan::begin(because, Job::Demote { mode, deadline }).keeping(true)
}

/// The lock is ours and postgres runs as a replica.
pub(super) fn leader(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    running: &Running,
    remote: Upstream,
    now: Boottime,
) -> Plan {
    // In a paused cluster nothing is restarted or repaired.
    let paused = view.dynamic.pause;
    if !paused && let Some(plan) = stopped_replaying(running, memory, now) {
        return plan;
    }
    if let Some(plan) = leader::asked(view, cluster, running, now) {
        return plan;
    }
    let Standing::Replica {
        streaming, upstream, ..
    } = &running.standing
    else {
        return Plan::wait("not a replica");
    };
    let there = *upstream == remote.address() && memory.follows_remote.as_ref() == Some(&remote);
    if !there {
        // One that was started with nobody to follow may have been a primary until then.
        let unknown = !paused && upstream.is_none() && follow::patient(memory, now);
        if remote.streams()
            && unknown
            && let Some(plan) = compare(view, memory, running, &remote, now)
        {
            return plan;
        }
        let because = format!("the standby leader follows '{}'", remote.member);
        let mut plan = Plan::act(because, [Action::Follow(Some(remote.clone()))]);
        plan.memory = Some(Memory {
            follows_remote: Some(remote),
            ..memory.clone()
        });
        return plan.again_in(Duration::from_millis(500));
    }
    let long = |since: Boottime| now.since(since) >= NOT_STREAMING;
    let stuck = !paused && remote.streams() && !*streaming && memory.not_streaming_since.is_some_and(long);
    if stuck && let Some(plan) = compare(view, memory, running, &remote, now) {
        return plan;
    }
    let because = format!("the standby leader with the lock, following '{}'", remote.member);
    let mut plan = leader::duties(view, cluster, memory, running, &because, now);
    // What is left of a time as a primary cluster would bind everybody to its leader after the next promotion.
    plan.actions.splice(0..0, sync::before_promotion(view, cluster));
    if *streaming || !remote.streams() {
        plan
    } else {
        plan.again_in(Duration::from_secs(1))
    }
}

/// Has the remote cluster a history we do not fit into? `None`: no.
fn compare(
    view: &View,
    memory: &Memory,
    running: &Running,
    remote: &Upstream,
    now: Boottime,
) -> Option<Plan> {
    let name = &remote.member;
    let facts = match follow::probe(view, name, now) {
        None => {
            return Some(Plan::act(
                format!("comparing our data with the remote cluster '{name}'"),
                [Action::ProbeLeader(remote.clone())],
            ));
        }
        Some(Err(error)) => {
            let because = format!("not streaming, and the remote cluster '{name}' cannot be asked: {error}");
            // What is due of a leader is not put off for it.
            return Some(Plan::act(because, [Action::LeaderDuties]).again_in(Duration::from_secs(1)));
        }
        Some(Ok(facts)) => facts,
    };
    let fault = match rewind::verdict(Reach::of_running(running), &settled(view, facts)) {
        Verdict::Diverged { rewindable } => Fault::Diverged { rewindable },
        Verdict::Follow if running.position() < facts.flushed && follow::stands_still(view, memory, now) => {
            Fault::WalGone
        }
        Verdict::Follow | Verdict::Ahead | Verdict::LeaderNotReady => return None,
    };
    let repaired = repair::repair(view, memory, remote.clone(), fault, now);
    Some(repaired.unwrap_or_else(|| {
        Plan::act(
            format!(
                "our data does not fit that of the remote cluster '{name}', and nothing that was tried has helped"
            ),
            [Action::LeaderDuties],
        )
        .again_in(Duration::from_secs(10))
    }))
}
