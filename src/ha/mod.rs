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
//! [`leader`] (lock ours), [`follow`] (lock another's), [`blind`] (DCS unreachable), [`busy`] (a job runs),
//! [`stopping`] (shutdown asked for). [`lease`] has the times everything is judged by, [`rewind`] the question
//! whether a directory has diverged, [`history`] the rows of `/history`.
//!
//! A turn that needs to know more (positions of the peers, the leader's timeline) asks for it as an action and is
//! called again with the answer in the view, so that a plan never leaves its executor a choice.

mod blind;
mod bootstrap;
mod busy;
mod down;
mod election;
mod follow;
pub mod history;
mod leader;
pub mod lease;
mod plan;
pub mod rewind;
mod stopping;
#[cfg(test)]
mod tests;
mod view;

pub use plan::{Action, DemoteMode, Job, Plan, StartAs, Upstream};
pub use view::{
    DcsView, Down, Finished, LeaderFacts, LeaderProbe, Local, Memory, Peers, Running, RunningJob, Shutdown,
    Standing, View,
};

use crate::{clock::Boottime, exit::Exit, model::Cluster};

/// Decides what this member does next.
#[must_use]
pub fn decide(view: &View, now: Boottime) -> Plan {
    let memory = view.memory.remember(view, now);
    if let Some(shutdown) = view.shutdown {
        return stopping::decide(view, shutdown, now).remembering(memory);
    }
    let plan = match (&view.dcs, &view.job) {
        (_, Some(job)) => busy::decide(view, job, now),
        (DcsView::Down { .. }, None) => blind::decide(view, now),
        (DcsView::Known { cluster, .. }, None) => {
            identity(view, cluster).unwrap_or_else(|| with_view(view, cluster, &memory, now))
        }
    };
    plan.remembering(memory)
}

/// The usual case: the DCS answers and nothing long is running.
fn with_view(view: &View, cluster: &Cluster, memory: &Memory, now: Boottime) -> Plan {
    match &view.local {
        Local::Empty => bootstrap::decide(view, cluster, memory, now),
        Local::Broken { reason } => bootstrap::broken(view, cluster, memory, reason, now),
        Local::Down(state) => down::decide(view, cluster, memory, state, now),
        Local::Starting { since, primary } => down::starting(view, cluster, memory, *since, *primary, now),
        Local::Stopping => Plan::wait("postgres is stopping").keeping(view.valid_hold(now).is_some()),
        Local::Running(_) | Local::Silent { .. } => {
            match cluster.leader.as_ref().map(|leader| &leader.name) {
                None => election::decide(view, cluster, memory, now),
                Some(name) if *name == view.me => leader::decide(view, cluster, memory, now),
                Some(_) => follow::decide(view, cluster, memory, now),
            }
        }
    }
}

/// A data directory of another cluster must not take part (design: invariant 3).
fn identity(view: &View, cluster: &Cluster) -> Option<Plan> {
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
    Some(Plan::exit(Exit::ForeignData, message))
}
