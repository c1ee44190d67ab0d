//! Asked to stop.

use super::builder::*;
use crate::{
    exit::Exit,
    ha::{Action, DemoteMode, Job, Local, Shutdown, StartAs},
    model::{DbState, Lsn},
};

const MODES: [(Shutdown, DemoteMode, u64); 3] = [
    (Shutdown::HandOver, DemoteMode::Graceful, 8),
    (Shutdown::Fast, DemoteMode::Fast, 8),
    (Shutdown::Immediate, DemoteMode::Immediate, 2),
];

#[test]
fn a_leader_stops_postgres_and_keeps_the_lock_until_it_is_down() {
    for (how, mode, allowed) in MODES {
        let stop = [demote(mode, NOW + secs(allowed))];
        for build in [
            view().running_primary(100),
            view().silent(true),
            view().starting(true, secs(1)),
            view().stopping(secs(1)),
        ] {
            let build = build.leader("b").hold_for(secs(20)).shutdown(how);
            check(build.clone(), &stop, KEEP, "asked to stop");
            check(build.dcs_down_for(secs(1)), &stop, KEEP, "asked to stop");
        }
        // A replica has nothing to hand over.
        let mode = if how == Shutdown::HandOver {
            DemoteMode::Fast
        } else {
            mode
        };
        let stop = [demote(mode, NOW + secs(allowed))];
        for build in [view().running_replica(1), view().silent(false)] {
            check(build.leader("a").shutdown(how), &stop, DROP, "asked to stop");
        }
    }
}

#[test]
fn a_primary_without_a_lease_is_stopped_before_the_fence() {
    for (how, _, _) in MODES {
        let mode = if how == Shutdown::Immediate {
            DemoteMode::Immediate
        } else {
            DemoteMode::Offline
        };
        let expired = view()
            .leader("b")
            .running_primary(100)
            .hold_expired(secs(1))
            .shutdown(how);
        check(expired, &[demote(mode, NOW + secs(2))], DROP, "asked");
        let none = view().running_primary(100).shutdown(how);
        check(none, &[demote(mode, NOW + secs(3))], DROP, "asked");
    }
}

#[test]
fn once_postgres_is_down_the_lock_is_released_then_the_process_ends() {
    let stopped = |build: Build| build.leader("b").shutdown(Shutdown::HandOver);
    check(
        stopped(view().clean_primary(510)).hold_for(secs(9)),
        &[Action::ReleaseLock(Some(Lsn(510))), Action::Exit(Exit::Ok)],
        DROP,
        "is down",
    );
    check(
        stopped(view().crashed_primary()).hold_for(secs(9)),
        &[Action::ReleaseLock(None), Action::Exit(Exit::Dirty)],
        DROP,
        "is down",
    );
    check(
        stopped(view().stopped_replica()),
        &[Action::Exit(Exit::Ok)],
        DROP,
        "is down",
    );
    check(
        stopped(view().local(Local::Empty)),
        &[Action::Exit(Exit::Ok)],
        DROP,
        "is down",
    );
    check(
        stopped(view().down(DbState::InArchiveRecovery)),
        &[Action::Exit(Exit::Ok)],
        DROP,
        "is down",
    );
}

#[test]
fn the_lock_is_released_also_if_the_dcs_was_not_asked_in_this_turn() {
    check(
        view()
            .clean_primary(510)
            .hold_for(secs(9))
            .dcs_down_for(secs(1))
            .shutdown(Shutdown::HandOver),
        &[Action::ReleaseLock(Some(Lsn(510))), Action::Exit(Exit::Ok)],
        DROP,
        "is down",
    );
}

#[test]
fn running_jobs_end_first_but_a_promotion_may_finish() {
    let running = |job| {
        view()
            .leader("b")
            .running_replica(100)
            .hold_for(secs(4))
            .job(job, secs(1))
    };
    let cancel = [Action::CancelJob];
    for (how, _, _) in MODES {
        for job in [
            clone_of("a"),
            Job::Rewind(at("a")),
            Job::Restart,
            Job::Bootstrap,
            Job::Start(StartAs::Primary),
        ] {
            check(running(job).shutdown(how), &cancel, KEEP, "ending");
        }
    }
    let promoting = running(Job::Promote);
    let patient = promoting.clone().shutdown(Shutdown::HandOver);
    assert_eq!(patient.plan().again_in, Some(secs(4)));
    check(patient.clone(), &[], KEEP, "promotion is finishing");
    check(patient.hold_expired(secs(1)), &cancel, DROP, "promote");
    check(
        promoting.shutdown(Shutdown::Fast),
        &cancel,
        KEEP,
        "ending promote",
    );
}

#[test]
fn a_second_signal_hurries_a_stop_and_a_gentler_one_does_not_slow_it() {
    let stopping = |mode| {
        let deadline = NOW + secs(8);
        view()
            .leader("b")
            .running_primary(100)
            .hold_for(secs(9))
            .job(Job::Demote { mode, deadline }, secs(1))
    };
    for (i, (_, running, _)) in MODES.iter().enumerate() {
        for (k, (asked, _, _)) in MODES.iter().enumerate() {
            let build = stopping(*running).shutdown(*asked);
            if k > i {
                check(build, &[Action::CancelJob], KEEP, "harder");
            } else {
                check(build, &[], KEEP, "stopping postgres");
            }
        }
    }
    // The same when the lease runs out under a gentle stop; and the stop that follows is not cancelled again.
    let late = stopping(DemoteMode::Graceful)
        .hold_expired(secs(0))
        .shutdown(Shutdown::HandOver);
    check(late.clone(), &[Action::CancelJob], DROP, "");
    let Some(Action::Begin(job)) = late.change(|v| v.job = None).plan().actions.pop() else {
        unreachable!("a stop was expected");
    };
    let again = stopping(DemoteMode::Graceful)
        .hold_expired(secs(0))
        .job(job, secs(0))
        .shutdown(Shutdown::HandOver);
    waits(again, "stopping postgres");
}
