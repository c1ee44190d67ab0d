//! A job runs: the lock is renewed, and only what makes the job wrong is looked at (contract: HA rules §7.2, §8).

use std::time::Duration;

use super::{
    Action, DcsView, DemoteMode, Job, Local, Memory, Plan, RunningJob, StartAs, View, failsafe,
    follow::{self, Astray},
    handover, lease, successor,
};
use crate::{clock::Boottime, model::Cluster};

/// A promotion may take this long where a leader's postgres is given no time to start at all.
const PROMOTE_LIMIT: Duration = Duration::from_secs(60);

pub(super) fn decide(view: &View, memory: &Memory, running: &RunningJob, now: Boottime) -> Plan {
    let name = running.job.name();
    let held = view.valid_hold(now).is_some();
    let lost = lost_to_another(view);
    let writes = running.job.needs_lock() || (matches!(running.job, Job::Restart) && view.local.may_write());
    // A paused primary runs without the lock, and is restarted without it if a person asks for that.
    let free = view.dynamic.pause && matches!(running.job, Job::Restart);
    if writes && (lost || !held) && !free {
        // Cancelling leaves postgres as it is; the next turn sees a primary without a lock and stops it.
        return Plan::act(
            format!("{name} needs the lock and the lock is lost"),
            [Action::CancelJob],
        );
    }
    if too_gentle(view, &running.job, now) && !view.dynamic.pause {
        return Plan::act(
            "the lease has run out before postgres was down: a gentle stop takes too long",
            [Action::CancelJob],
        );
    }
    if let DcsView::Known { cluster } = &view.dcs
        && !view.dynamic.pause
    {
        let plan = match (held, lost) {
            (true, false) => late(view, cluster, running, now).or_else(|| asked(view, cluster, running, now)),
            (_, true) => astray(view, cluster, memory, running, now),
            _ => None,
        };
        if let Some(plan) = plan {
            return plan.keeping(held && !lost);
        }
    }
    let releases = !matches!(
        running.job,
        Job::Demote {
            mode: DemoteMode::ImmediateNoLock | DemoteMode::Offline,
            ..
        }
    );
    let mut plan = Plan::wait(format!("{name} is running")).keeping(held && !lost && releases);
    if matches!(view.dcs, DcsView::Down { .. })
        && writes
        && let Ok(Some(of)) = failsafe::ask(view, memory, now)
    {
        plan.actions.push(Action::AskConsent(of));
    }
    let left = |hold| lease::deadlines(hold).demote_at.since(now);
    match view.valid_hold(now) {
        Some(hold) if writes || matches!(running.job, Job::Demote { .. }) => plan.again_in(left(hold)),
        _ => plan,
    }
}

/// Proof, not suspicion: the lock was read in this turn and names another.
fn lost_to_another(view: &View) -> bool {
    match &view.dcs {
        DcsView::Known { cluster } => cluster
            .leader
            .as_ref()
            .is_some_and(|leader| leader.name != view.me),
        DcsView::Down { .. } => false,
    }
}

/// A stop that takes its time was begun under a lease that has run out since. The next turn stops by force, before
/// init has to.
pub(super) fn too_gentle(view: &View, job: &Job, now: Boottime) -> bool {
    let gentle = matches!(
        job,
        Job::Demote {
            mode: DemoteMode::Graceful | DemoteMode::Fast | DemoteMode::Cluster,
            ..
        }
    );
    gentle && view.local.may_write() && view.hold.is_some() && view.valid_hold(now).is_none()
}

/// We hold the lock and our postgres takes too long to become a primary, while another member could be one.
fn late(view: &View, cluster: &Cluster, running: &RunningJob, now: Boottime) -> Option<Plan> {
    let limit = limit(view, cluster, &running.job)?;
    if now.since(running.since) < limit {
        return None;
    }
    let seconds = limit.as_secs();
    match successor::find(view, cluster, now) {
        Err(ask) => Some(Plan::act(
            format!("not a primary within {seconds} s, asking the other members"),
            [ask],
        )),
        Ok(Some(name)) => Some(Plan::act(
            format!("not a primary within {seconds} s, and '{name}' can lead"),
            [Action::CancelJob],
        )),
        Ok(None) => None,
    }
}

/// How long the leader's postgres may take for this; `None` where the lock is not kept for it.
fn limit(view: &View, cluster: &Cluster, job: &Job) -> Option<Duration> {
    let limit = view.dynamic.primary_start_timeout;
    match job {
        // Zero means that a crashed primary is not started at all; a start that was begun all the same goes on.
        Job::Start(_) if limit.is_zero() => None,
        Job::Start(StartAs::Primary) => Some(limit),
        Job::Start(StartAs::Replica(_)) => cluster.is_leader(&view.me).then_some(limit),
        Job::Promote if limit.is_zero() => Some(PROMOTE_LIMIT),
        Job::Promote => Some(limit),
        _ => None,
    }
}

/// Somebody asks a leader to hand over that is still starting: it has nothing to lose by that.
fn asked(view: &View, cluster: &Cluster, running: &RunningJob, now: Boottime) -> Option<Plan> {
    if !cluster.is_leader(&view.me) || !matches!(running.job, Job::Start(_)) {
        return None;
    }
    // The next turn sees a starting postgres and the same request.
    handover::without_postgres(view, cluster, now, |because| {
        Plan::act(because, [Action::CancelJob])
    })
}

/// A replica is being started, and another leads.
fn astray(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    running: &RunningJob,
    now: Boottime,
) -> Option<Plan> {
    let Job::Start(StartAs::Replica(up)) = &running.job else {
        return None;
    };
    // Before its postmaster is there the job still writes the files itself.
    let Local::Starting {
        since,
        primary: false,
    } = view.local
    else {
        return None;
    };
    match follow::astray(view, cluster, memory, up.as_ref(), since, now)? {
        Astray::Act(plan) => Some(plan),
        Astray::Stuck(_) => Some(Plan::act(
            "the replica does not become consistent although its leader answers",
            [Action::CancelJob],
        )),
    }
}
