//! A job runs: the lock is renewed, and only what makes the job wrong is looked at (contract: HA rules §8).

use super::{Action, DemoteMode, Job, Plan, RunningJob, View, lease};
use crate::clock::Boottime;

pub(super) fn decide(view: &View, running: &RunningJob, now: Boottime) -> Plan {
    let name = running.job.name();
    let writes = running.job.needs_lock() || (matches!(running.job, Job::Restart) && view.local.may_write());
    if writes && view.valid_hold(now).is_none() {
        // Cancelling leaves postgres as it is; the next turn sees a primary without a lock and stops it.
        return Plan::act(
            format!("{name} needs the lock and the lock is lost"),
            [Action::CancelJob],
        );
    }
    let keep = view.hold.is_some()
        && !matches!(
            running.job,
            Job::Demote {
                mode: DemoteMode::ImmediateNoLock | DemoteMode::Offline,
                ..
            }
        );
    let plan = Plan::wait(format!("{name} is running")).keeping(keep);
    match &view.hold {
        Some(hold) if writes => plan.again_in(lease::deadlines(hold).demote_at.since(now)),
        _ => plan,
    }
}
