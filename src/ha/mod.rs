//! The decision: `decide(&View, now) -> Plan`. Pure, synchronous, no I/O, no clock, no chance.
//!
//! ```text
//!             View (what the agent observed)                      Plan (what it is to do)
//!  DCS view ─┐                                              ┌─ actions, in order; a refused one ends the turn
//!  our hold ─┤   shutdown? ── job running? ── DCS down?     ├─ keep_lock: may the lease go on being renewed
//!  postgres ─┼─► foreign data? ── empty? ── down? ── up? ──►├─ because: one sentence for the log
//!  job      ─┤        lock free │ ours │ another's          ├─ again_in: look again at the latest then
//!  peers    ─┘                                              └─ memory: what the next turn must still know
//! ```
//!
//! One file per situation: [`bootstrap`] (no data), [`down`] (data, no postgres), [`election`] (lock free),
//! [`leader`] (lock ours), [`follow`] (lock another's), [`blind`] (DCS unreachable), [`failsafe`] (a primary without it),
//! [`busy`] (a job runs), [`paused`] (a person works on it), [`stopping`] (shutdown asked for), [`standby`] (the cluster
//! follows another). [`lease`] has the times everything is judged by, [`rewind`] the question
//! whether a directory has diverged, [`repair`] what is done about it, [`hung`] whether a postmaster is,
//! [`reason`] why a member neither streams nor leads, [`history`] the rows of `/history`, [`successor`]
//! the question whether another could lead, [`sync`] whom commits wait for, [`handover`] what people ask of a leader,
//! [`slots`] the replication slots to keep,
//! [`heirs`] whether another has all that a stopped leader wrote, [`memory`] what turns remember, [`why`] what a person
//! may want to know.
//!
//! A turn that needs to know more (positions of the peers, the leader's timeline) asks for it as an action and is
//! called again with the answer in the view, so that a plan never leaves its executor a choice.

mod backoff;
mod blind;
mod bootstrap;
mod busy;
mod down;
mod election;
pub mod failsafe;
mod failure;
mod follow;
mod handover;
pub mod heirs;
pub mod history;
mod hung;
mod leader;
pub mod lease;
pub mod lost;
mod memory;
mod paused;
mod plan;
mod reason;
mod repair;
pub mod rewind;
pub mod slots;
mod standby;
mod stopping;
mod successor;
pub mod sync;
#[cfg(test)]
mod tests;
mod view;
pub mod why;

use std::time::Duration;

pub use bootstrap::source as clone_source;
pub use failure::Failure;
pub use memory::Memory;
pub use plan::{Action, DemoteMode, Job, Plan, Source, StartAs, Upstream};
pub use reason::{Reason, reason};
pub use view::{
    DcsView, Down, Finished, LeaderFacts, LeaderProbe, Local, Parent, Peers, Running, RunningJob, Shutdown,
    Silence, Standing, View,
};

use crate::{clock::Boottime, exit::Exit, model::Cluster};

/// Decides what this member does next.
#[must_use]
pub fn decide(view: &View, now: Boottime) -> Plan {
    let mut plan = decide_now(view, now);
    if view.dynamic.pause {
        plan.because = format!("PAUSE: {}", plan.because);
    }
    plan
}

fn decide_now(view: &View, now: Boottime) -> Plan {
    let memory = view.memory.remember(view, now);
    if let Some(shutdown) = view.shutdown {
        return stopping::decide(view, shutdown, now).remembering(memory);
    }
    if let Some(plan) = bootstrap::failed(view) {
        return plan.remembering(memory);
    }
    let plan = match (&view.dcs, &view.job) {
        (_, Some(job)) => busy::decide(view, &memory, job, now),
        (DcsView::Down { .. }, None) if view.dynamic.pause => paused::blind(view, now),
        (DcsView::Down { .. }, None) => blind::decide(view, &memory, now),
        (DcsView::Known { cluster }, None) if view.dynamic.pause => {
            paused::decide(view, cluster, &memory, now)
        }
        (DcsView::Known { cluster, .. }, None) => {
            let plan = identity(view, cluster, now).unwrap_or_else(|| with_view(view, cluster, &memory, now));
            failsafe::beside(view, &memory, plan, now)
        }
    };
    plan.remembering(memory)
}

/// The usual case: the DCS answers and nothing long is running.
fn with_view(view: &View, cluster: &Cluster, memory: &Memory, now: Boottime) -> Plan {
    match &view.local {
        Local::Empty => bootstrap::decide(view, cluster, memory, now),
        Local::Leftover => bootstrap::leftover(view, cluster, memory, now),
        Local::Broken { reason } => bootstrap::broken(view, cluster, memory, reason, now),
        Local::Down(state) => down::decide(view, cluster, memory, state, now),
        Local::Starting { since, primary } => down::starting(view, cluster, memory, *since, *primary, now),
        Local::Stopping { since, crashed } => ending(view, memory, *since, *crashed, now),
        Local::Unknown { reason, since } => down::unknown(view, cluster, memory, reason, *since, now),
        Local::Running(_) | Local::Silent { .. } => {
            match cluster.leader.as_ref().map(|leader| &leader.name) {
                None => election::decide(view, cluster, memory, now),
                Some(name) if *name == view.me => leader::decide(view, cluster, memory, now),
                Some(_) => {
                    let plan = follow::decide(view, cluster, memory, now);
                    let idle = plan.actions.is_empty();
                    let copy = idle.then(|| slots::due(view, cluster, memory, now)).flatten();
                    copy.unwrap_or(plan)
                }
            }
        }
    }
}

/// Postgres is on its way down and no job waits for it: the agent was restarted meanwhile, or the postmaster died. A
/// stop without a bound would keep the lock for ever, so a job takes it over; it releases the lock once postgres is down.
fn ending(view: &View, memory: &Memory, since: Boottime, crashed: bool, now: Boottime) -> Plan {
    let held = view.valid_hold(now).is_some();
    let late = now.since(since) >= view.stop_timeout();
    if crashed && !late && memory.stop_failures == 0 {
        // The owner of the postmaster ends what is left; then postgres is started again.
        return Plan::wait("what a dead postmaster left behind is being ended")
            .keeping(held)
            .again_in(Duration::from_millis(200));
    }
    let (mode, allowed) = match memory.stop_failures {
        0 if !late => (DemoteMode::Fast, view.stop_timeout()),
        0 | 1 => (DemoteMode::Immediate, view::IMMEDIATE_STOP),
        _ => {
            return Plan::exit(
                Exit::Dirty,
                "postgres could not be stopped, not even by force; the lock is left to expire",
            );
        }
    };
    let deadline = if held {
        now + allowed
    } else {
        view.stop_by(now).min(now + allowed)
    };
    Plan::begin(
        "postgres is stopping, waiting for its end",
        Job::Demote { mode, deadline },
    )
    .keeping(held)
}

/// A data directory of another cluster must not take part (design: invariant 3).
fn identity(view: &View, cluster: &Cluster, now: Boottime) -> Option<Plan> {
    let mine = view.local.system_id()?;
    let theirs = cluster.system_id()?;
    if *mine == theirs {
        return None;
    }
    let message = format!(
        "system identifier mismatch: the data directory has {mine} (pg_controldata), the cluster in the DCS has \
         {theirs} (key initialize). Nothing was changed. If this volume belongs to another cluster, mount the right \
         one; if this member is to join, start it with an empty data directory; if the DCS holds a cluster that no \
         longer exists, choose another scope or remove its keys."
    );
    if matches!(view.local, Local::Running(_)) {
        // Leaving it to the end of this process would be a hard stop, and a primary has no right to go on until then.
        return Some(view.demote(DemoteMode::ImmediateNoLock, now, message));
    }
    Some(Plan::exit(Exit::ForeignData, message))
}
