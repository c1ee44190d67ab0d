//! The lock carries our name (contract: HA rules §3, §4, §6.1).

use std::time::Duration;

use super::{
    Action, DemoteMode, Job, Local, Memory, Plan, Running, Silence, View, election, failsafe,
    handover::{self, Request},
    hung, lease, standby, successor,
    sync::{self, Promise},
    view::give_up,
};
use crate::{
    clock::Boottime,
    model::{Cluster, SyncKind},
};

/// Why nobody is a primary here (contract: HA rules §3, §17).
pub(super) const NO_WATCHDOG: &str = "a watchdog device is required and cannot be used";
/// Next look after the lock was asked for.
const AGAIN: Duration = Duration::from_millis(200);
/// Next look at a postgres that does not answer.
const LOOK: Duration = Duration::from_millis(500);
/// A postmaster that hangs where nobody else can lead is started anew after this long, or two ttl.
const ALONE: Duration = Duration::from_secs(60);

pub(super) fn decide(view: &View, cluster: &Cluster, memory: &Memory, now: Boottime) -> Plan {
    let Some(hold) = view.valid_hold(now) else {
        return without_hold(view, now);
    };
    let until_demotion = lease::deadlines(hold).demote_at.since(now);
    let following = standby::remote(view);
    let plan = match &view.local {
        Local::Running(running) if running.is_primary() && following.is_some() && !view.dynamic.pause => {
            standby::stop_primary(view, now)
        }
        Local::Running(running) if running.is_primary() => primary(view, cluster, memory, running, now),
        Local::Running(running) => match following {
            Some(remote) => standby::leader(view, cluster, memory, running, remote, now),
            None => replica(view, cluster, memory, running, now),
        },
        Local::Silent { since, why, .. } => silent(view, cluster, memory, *since, *why, now),
        _ => Plan::wait("the local postgres is not there"),
    };
    let soon = plan
        .again_in
        .map_or(until_demotion, |wait| wait.min(until_demotion));
    let gives_up = matches!(plan.actions.as_slice(), [Action::ReleaseLock(_)]);
    plan.keeping(!gives_up)
        .again_in(soon.min(view.dynamic.timing.loop_wait))
}

/// The lock carries our name, but we cannot prove that it still does: the agent was restarted, or its renewals failed
/// for too long.
pub(super) fn without_hold(view: &View, now: Boottime) -> Plan {
    let expired = view.hold.is_some();
    if expired && view.local.may_write() {
        return view.demote(
            DemoteMode::ImmediateNoLock,
            now,
            "the lease was not renewed in time",
        );
    }
    Plan::act(
        "the lock carries our name, making sure of it",
        [Action::RenewLock],
    )
    .again_in(AGAIN)
}

/// A postmaster that lives and says nothing. An error is an answer: whoever refuses us may serve everybody else. One that
/// hangs is no primary for anybody.
fn silent(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    since: Boottime,
    why: Silence,
    now: Boottime,
) -> Plan {
    let let_go = |because| View::step_down(now, because);
    if let Some(plan) = handover::without_postgres(view, cluster, now, let_go) {
        return plan;
    }
    let ttl = view.dynamic.timing.ttl;
    if let Some(hung) = hung::why(memory, why, since, ttl, now) {
        match successor::find(view, cluster, now) {
            Err(ask) => return Plan::act(format!("{hung}; asking the other members"), [ask]),
            Ok(Some(name)) => return View::step_down(now, format!("{hung}, and '{name}' can lead")),
            // Alone, nothing is lost by a new start but what hangs.
            Ok(None) if now.since(since) >= ALONE.max(ttl * 2) => {
                if Memory::backoff(memory.start_failures, now).is_none() {
                    return Plan::begin(
                        format!("{hung}, and nobody else can lead: restarting it"),
                        Job::Restart,
                    );
                }
            }
            Ok(None) => {}
        }
    }
    Plan::wait("the local postgres does not answer; the lock is ours until it is certain that it hangs")
        .again_in(LOOK)
}

fn replica(view: &View, cluster: &Cluster, memory: &Memory, running: &Running, now: Boottime) -> Plan {
    let behind = running.timeline < cluster.timeline();
    if behind && (!memory.followed || view.dynamic.check_timeline) && !election::forced(view, cluster) {
        return give_up(memory, now, "our timeline is older than the cluster's");
    }
    if view.watchdog_failed {
        return give_up(memory, now, NO_WATCHDOG);
    }
    if failsafe::excluded(view, cluster) && !election::forced(view, cluster) {
        return give_up(memory, now, election::NOT_IN_FAILSAFE);
    }
    // In quorum mode the votes have told, and nobody can have led since.
    if let Some(promise) = Promise::active(view, cluster)
        && sync::kind(&view.dynamic) != SyncKind::Quorum
        && !promise.voters.contains(&view.me)
        && !election::forced(view, cluster)
    {
        let because = format!("no synchronous standby, only {} can lead", promise.voters.shown());
        return give_up(memory, now, because);
    }
    if memory.vetoed(view.dynamic.timing.ttl, now).is_some() {
        // Nothing was asked of postgres: it stays the replica it is.
        return give_up(memory, now, "pre_promote refused the promotion");
    }
    if memory.promote_failures.0 > 0 {
        // The request to promote still stands: postgres may obey it any moment, so it must be down before the lock is
        // another's.
        match successor::find(view, cluster, now) {
            Err(ask) => return Plan::act("the promotion failed, asking the other members", [ask]),
            Ok(Some(name)) => {
                let because = format!("the promotion failed, '{name}' can lead: stopping first");
                return View::step_down(now, because);
            }
            Ok(None) => {}
        }
    }
    if let Some(left) = Memory::backoff(memory.promote_failures, now) {
        return Plan::wait("the promotion failed, waiting before the next attempt").again_in(left);
    }
    let mut actions = sync::before_promotion(view, cluster);
    actions.push(Action::Begin(Job::Promote));
    if cluster.failover.is_some() {
        actions.push(Action::ClearFailover);
    }
    Plan::act("holding the lock, promoting", actions)
}

fn primary(view: &View, cluster: &Cluster, memory: &Memory, running: &Running, now: Boottime) -> Plan {
    if view.watchdog_failed {
        return View::step_down(now, NO_WATCHDOG);
    }
    if running.timeline < cluster.timeline() && !view.dynamic.pause {
        // The lock came back after others had led: what this primary has written since is another history.
        return view.demote(
            DemoteMode::ImmediateNoLock,
            now,
            "the cluster has moved on to a later timeline",
        );
    }
    if let Some(plan) = asked(view, cluster, running, now) {
        return plan;
    }
    let due = handover::requested(view, cluster, running.position(), now);
    let because = match due {
        Some(Request::DueIn(_)) => "a scheduled switchover is due soon",
        _ => "the leader with the lock",
    };
    let mut plan = duties(view, cluster, memory, running, because, now);
    if let Some(Request::DueIn(left)) = due {
        plan.again_in = Some(left);
    }
    let mut memory = plan.memory.take().unwrap_or_else(|| memory.clone());
    if let Some(turn) = sync::turn(view, cluster, &memory.sync, now) {
        with_sync(&mut plan, &mut memory, turn);
    }
    plan.memory = Some(memory);
    plan
}

/// What only the leader writes, where it is missing or differs.
pub(super) fn duties(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    running: &Running,
    because: &str,
    now: Boottime,
) -> Plan {
    let mut actions = Vec::new();
    if let (None, Some(mine)) = (cluster.system_id(), &running.system_id) {
        actions.push(Action::WriteInitialize(mine.clone(), cluster.initialize_version));
    }
    if cluster.config.is_none() {
        actions.push(Action::WriteConfig);
    }
    actions.push(Action::LeaderDuties);
    match failsafe::duty(view, cluster, memory, now) {
        None => Plan::act(because, actions),
        Some((write, memory)) => {
            actions.push(write);
            let because = format!("{because}, writing who may lead into /failsafe");
            let mut plan = Plan::act(because, actions);
            plan.memory = Some(memory);
            plan
        }
    }
}

/// Clients may be waiting for what synchronous replication does next, so it comes first.
fn with_sync(plan: &mut Plan, memory: &mut Memory, turn: sync::Turn) {
    plan.actions.splice(0..0, turn.actions);
    plan.again_in = Some(
        plan.again_in
            .map_or(turn.again_in, |wait| wait.min(turn.again_in)),
    );
    if let Some(because) = turn.because {
        plan.because = because;
    }
    memory.sync = turn.seen;
}

/// What people ask of a leader whose postgres answers, if something is to be done about it now.
pub(super) fn asked(view: &View, cluster: &Cluster, running: &Running, now: Boottime) -> Option<Plan> {
    match handover::requested(view, cluster, running.position(), now)? {
        Request::Drop(why) => Some(handover::dropped(why)),
        Request::Ask(ask) => Some(handover::asking(ask)),
        Request::DueIn(_) => None,
        Request::HandOver(because) => {
            let (mode, deadline) = (DemoteMode::Graceful, now + view.hand_over_timeout());
            Some(Plan::begin(because, Job::Demote { mode, deadline }))
        }
    }
}
