//! The DCS cannot be asked. An error is never proof of anything: a primary goes on until its own deadline, and
//! everybody else stays as they are (contract: HA rules §9; failsafe mode is decided elsewhere).

use super::{DcsView, DemoteMode, Job, Local, Memory, Plan, StartAs, View, lease};
use crate::clock::Boottime;

pub(super) fn decide(view: &View, now: Boottime) -> Plan {
    let DcsView::Down { since } = view.dcs else {
        return Plan::wait("the DCS answers");
    };
    let down_for = now.since(since).as_secs_f32();
    if let Local::Down(_) = &view.local
        && view.memory.last_leader.is_some()
        && Memory::backoff(view.memory.start_failures, now).is_none()
    {
        // Demoted for want of the DCS: reads can go on meanwhile (contract: HA rules §10, mode offline). An agent that
        // has never seen the cluster does not even know whether this data belongs to it.
        return Plan::begin(
            "the DCS does not answer, starting read-only with nobody to follow",
            Job::Start(StartAs::Replica(None)),
        );
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
            Plan::wait(format!(
                "the DCS has not answered for {down_for:.1} s; still primary by the lease for {:.1} s",
                left.as_secs_f32()
            ))
            .keeping(true)
            .again_in(left)
        }
        None => view.demote(
            DemoteMode::Offline,
            now,
            "the DCS does not answer and the lease has run out, another may lead",
        ),
    }
}
