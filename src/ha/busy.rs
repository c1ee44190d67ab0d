//! A job runs: the lock is renewed, and only what makes the job wrong is looked at (contract: HA rules §7.2, §8).

use std::time::Duration;

use super::{
    Action, DcsView, DemoteMode, Job, Plan, RunningJob, StartAs, View, lease, view::others_may_lead,
};
use crate::clock::Boottime;

pub(super) fn decide(view: &View, running: &RunningJob, now: Boottime) -> Plan {
    let name = running.job.name();
    let held = view.valid_hold(now).is_some();
    let lost = lost_to_another(view);
    let writes = running.job.needs_lock() || (matches!(running.job, Job::Restart) && view.local.may_write());
    if writes && (lost || !held) {
        // Cancelling leaves postgres as it is; the next turn sees a primary without a lock and stops it.
        return Plan::act(
            format!("{name} needs the lock and the lock is lost"),
            [Action::CancelJob],
        );
    }
    if too_gentle(view, &running.job, now) {
        return Plan::act(
            "the lease has run out before postgres was down: a gentle stop takes too long",
            [Action::CancelJob],
        );
    }
    if let Some(limit) = start_limit(view, &running.job)
        && now.since(running.since) >= limit
    {
        return Plan::act(
            format!("postgres has not started within {} s", limit.as_secs()),
            [Action::CancelJob],
        )
        .keeping(held);
    }
    let releases = !matches!(
        running.job,
        Job::Demote {
            mode: DemoteMode::ImmediateNoLock | DemoteMode::Offline,
            ..
        }
    );
    let plan = Plan::wait(format!("{name} is running")).keeping(held && !lost && releases);
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
            mode: DemoteMode::Graceful | DemoteMode::Fast,
            ..
        }
    );
    gentle && view.local.may_write() && view.hold.is_some() && view.valid_hold(now).is_none()
}

/// How long the leader's postgres may take to start before another may lead; `None` if nobody else could, or where
/// the lock is not kept for it.
fn start_limit(view: &View, job: &Job) -> Option<Duration> {
    let DcsView::Known { cluster } = &view.dcs else {
        return None;
    };
    let limit = view.dynamic.primary_start_timeout;
    let primary = matches!(job, Job::Start(StartAs::Primary));
    // Zero means that a crashed primary is not started at all; a start that was begun all the same goes on.
    (primary && !limit.is_zero() && others_may_lead(view, cluster)).then_some(limit)
}
