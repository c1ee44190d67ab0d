//! Asked to stop: postgres down first, then the lock, then the process (contract: HA rules §10, daemon shutdown).

use std::time::Duration;

use super::{Action, DemoteMode, Job, Local, Plan, Shutdown, View};
use crate::{clock::Boottime, exit::Exit};

pub(super) fn decide(view: &View, shutdown: Shutdown, now: Boottime) -> Plan {
    let (mode, allowed) = match shutdown {
        Shutdown::HandOver => (DemoteMode::Graceful, view.stop_timeout()),
        Shutdown::Fast => (DemoteMode::Fast, view.stop_timeout()),
        Shutdown::Immediate => (DemoteMode::Immediate, Duration::from_secs(2)),
    };
    if let Some(running) = &view.job {
        let keep = view.hold.is_some();
        return match &running.job {
            Job::Demote { .. } => Plan::wait("stopping postgres").keeping(keep),
            // Promotion takes a moment; a half-promoted postgres cannot be handed over in order.
            Job::Promote if shutdown == Shutdown::HandOver && view.valid_hold(now).is_some() => {
                Plan::wait("a promotion is finishing before the stop").keeping(keep)
            }
            other => Plan::act(
                format!("asked to stop, ending {}", other.name()),
                [Action::CancelJob],
            )
            .keeping(keep),
        };
    }
    let deadline = match view.valid_hold(now) {
        Some(_) => now + allowed,
        None if view.local.may_write() => view.stop_by(now),
        None => now + allowed,
    };
    match &view.local {
        Local::Empty | Local::Broken { .. } | Local::Down(_) => ended(view),
        Local::Starting { .. } | Local::Stopping | Local::Running(_) | Local::Silent { .. } => {
            Plan::begin("asked to stop", Job::Demote { mode, deadline }).keeping(view.hold.is_some())
        }
    }
}

fn ended(view: &View) -> Plan {
    let clean = match &view.local {
        Local::Down(down) => down.control.state.is_clean() || down.standby_signal,
        _ => true,
    };
    let exit = if clean { Exit::Ok } else { Exit::Dirty };
    let mut actions = Vec::new();
    if view.hold.is_some() {
        // Postgres is down, so nobody can be hurt by giving the lock away.
        let end = match &view.local {
            Local::Down(down) if clean => down.checkpoint_end,
            _ => None,
        };
        actions.push(Action::ReleaseLock(end));
    }
    actions.push(Action::Exit(exit));
    Plan::act("postgres is down", actions)
}
