//! The DCS cannot be asked. An error is never proof of anything: a primary goes on until its own deadline, and
//! everybody else stays as they are (contract: HA rules §9). In failsafe mode the other members can move that deadline.

use super::{
    Action, DcsView, DemoteMode, Down, Job, Local, Memory, Plan, StartAs, View, failsafe, lease, standby,
};
use crate::clock::Boottime;

pub(super) fn decide(view: &View, memory: &Memory, now: Boottime) -> Plan {
    let DcsView::Down { since } = view.dcs else {
        return Plan::wait("the DCS answers");
    };
    let down_for = now.since(since).as_secs_f32();
    if let Local::Down(down) = &view.local
        && let Some(plan) = start(view, memory, down, now)
    {
        return plan;
    }
    if !view.local.may_write() {
        return Plan::wait(format!(
            "the DCS has not answered for {down_for:.1} s; not primary, waiting for it"
        ))
        .keeping(view.valid_hold(now).is_some());
    }
    match view.valid_hold(now) {
        Some(hold) => {
            let left = lease::deadlines(hold).demote_at.since(now);
            let (ask, how) = match failsafe::ask(view, memory, now) {
                Ok(Some(ask)) => {
                    let how = failsafe::standing(view, &ask, now);
                    (Some(ask), how)
                }
                Ok(None) => (None, "the other members are asked before that".to_owned()),
                Err(why) => (None, format!("then it is stopped, for {why}")),
            };
            let because = format!(
                "the DCS has not answered for {down_for:.1} s; still primary for {:.1} s: {how}",
                left.as_secs_f32()
            );
            let actions: Vec<_> = ask.into_iter().map(Action::AskConsent).collect();
            Plan::act(because, actions).keeping(true).again_in(left)
        }
        None => view.demote(
            DemoteMode::Offline,
            now,
            "the DCS does not answer and the lease has run out, another may lead",
        ),
    }
}

/// Postgres is down. An agent that has never seen the cluster does not even know whether this data belongs to it.
fn start(view: &View, memory: &Memory, down: &Down, now: Boottime) -> Option<Plan> {
    let held = view.valid_hold(now).is_some();
    let last_leader = memory.last_leader.as_ref()?;
    if Memory::backoff(memory.start_failures, now).is_some() {
        return None;
    }
    if held && down.was_primary() && *last_leader == view.me && view.dynamic.standby.is_none() {
        // It crashed while it led, and its lease still counts: nobody else can have led since.
        return Some(
            Plan::begin(
                "the DCS does not answer, but the lease still counts: starting as primary again",
                Job::Start(StartAs::Primary),
            )
            .keeping(true),
        );
    }
    // Demoted for want of the DCS: reads can go on meanwhile (contract: HA rules §10, mode offline). What a standby
    // cluster follows is no member of it and may well be there.
    let remote = standby::remote(view).filter(|_| memory.follows_remote.is_some());
    Some(
        Plan::begin(
            "the DCS does not answer, starting read-only with no member to follow",
            Job::Start(StartAs::Replica(remote)),
        )
        .keeping(held),
    )
}
