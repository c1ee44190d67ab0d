//! Asked to stop: postgres down first, then the lock, then the process (contract: HA rules §10, daemon shutdown).

use super::{
    Action, DemoteMode, Job, Local, Plan, RunningJob, Shutdown, View, busy, lease, view::IMMEDIATE_STOP,
};
use crate::{clock::Boottime, exit::Exit};

pub(super) fn decide(view: &View, shutdown: Shutdown, now: Boottime) -> Plan {
    let held = view.valid_hold(now).is_some();
    let orderly = shutdown == Shutdown::HandOver;
    if view.dynamic.pause && orderly && !view.contained && view.job.is_none() {
        // Contract: HA rules §10 and appendix C: postgres goes on, the lock is left to expire.
        return Plan::exit(Exit::Ok, "asked to stop, postgres is left as it is");
    }
    let (mode, allowed) = match shutdown {
        // Without the lock there is nothing to hand over, and no time: another may lead any moment.
        Shutdown::HandOver | Shutdown::Fast if !held && view.local.may_write() => {
            (DemoteMode::Offline, view.stop_timeout())
        }
        // Nobody would take over in a paused cluster: the lock is left to expire, or to who comes back in time.
        Shutdown::HandOver if view.dynamic.pause => (DemoteMode::Offline, view.stop_timeout()),
        // A replica has nothing to hand over, and needs no checkpoint either.
        Shutdown::HandOver if is_replica(&view.local) => (DemoteMode::Fast, view.stop_timeout()),
        Shutdown::HandOver => (DemoteMode::Graceful, view.stop_timeout()),
        Shutdown::Fast => (DemoteMode::Fast, view.stop_timeout()),
        Shutdown::Immediate => (DemoteMode::Immediate, IMMEDIATE_STOP),
    };
    if let Some(running) = &view.job {
        return with_job(view, running, shutdown, mode, now).keeping(held);
    }
    let deadline = if !held && view.local.may_write() {
        view.stop_by(now)
    } else {
        now + allowed
    };
    match &view.local {
        Local::Empty | Local::Leftover | Local::Broken { .. } | Local::Unknown { .. } | Local::Down(_) => {
            ended(view)
        }
        Local::Starting { .. } | Local::Stopping { .. } | Local::Running(_) | Local::Silent { .. } => {
            Plan::begin("asked to stop", Job::Demote { mode, deadline }).keeping(held)
        }
    }
}

fn is_replica(local: &Local) -> bool {
    match local {
        Local::Running(running) => !running.is_primary(),
        Local::Silent { primary, .. } | Local::Starting { primary, .. } => !primary,
        _ => false,
    }
}

fn with_job(view: &View, running: &RunningJob, shutdown: Shutdown, asked: DemoteMode, now: Boottime) -> Plan {
    let end = |why: String| Plan::act(why, [Action::CancelJob]);
    let hold = view.valid_hold(now);
    match (&running.job, hold) {
        (Job::Demote { mode, .. }, _) if force(*mode) < force(asked) => {
            end("asked to stop harder".to_owned())
        }
        (job @ Job::Demote { .. }, _) if busy::too_gentle(view, job, now) => {
            end("the lease has run out before postgres was down".to_owned())
        }
        (Job::Demote { .. }, _) => Plan::wait("stopping postgres"),
        // Promotion takes a moment; a half-promoted postgres cannot be handed over in order.
        (Job::Promote, Some(hold)) if shutdown == Shutdown::HandOver => {
            Plan::wait("a promotion is finishing before the stop")
                .again_in(lease::deadlines(hold).demote_at.since(now))
        }
        (other, _) => end(format!("asked to stop, ending {}", other.name())),
    }
}

/// How hard a mode stops postgres.
const fn force(mode: DemoteMode) -> u8 {
    match mode {
        DemoteMode::Graceful => 0,
        DemoteMode::Fast | DemoteMode::Offline | DemoteMode::Cluster => 1,
        DemoteMode::Immediate | DemoteMode::ImmediateNoLock => 2,
    }
}

fn ended(view: &View) -> Plan {
    let clean = match &view.local {
        Local::Down(down) => down.control.state.is_clean() || down.standby_signal,
        _ => true,
    };
    let exit = if clean { Exit::Ok } else { Exit::Dirty };
    if view.hold.is_none() {
        return Plan::act("postgres is down", [Action::Exit(exit)]);
    }
    // Postgres is down, so nobody can be hurt by giving the lock away. Tried also if the DCS was not asked in this turn,
    // or did not answer: the executor bounds it, and goes on to the exit if it fails.
    let end = match &view.local {
        Local::Down(down) if clean => down.checkpoint_end,
        _ => None,
    };
    Plan::act("postgres is down", [Action::ReleaseLock(end), Action::Exit(exit)])
}
