//! A job runs.

use super::builder::*;
use crate::ha::{Action, DemoteMode, Job, Plan, StartAs};

const CANCEL: &[Action] = &[Action::CancelJob];

fn writers() -> [(Job, Build); 3] {
    [
        (Job::Promote, view().running_replica(100)),
        (Job::Start(StartAs::Primary), view().starting(true, secs(1))),
        (Job::Restart, view().running_primary(100)),
    ]
}

#[test]
fn a_job_that_leads_to_writes_ends_with_the_lease() {
    for (job, build) in writers() {
        let running = build.leader("b").job(job, secs(1));
        check(running.clone().hold_for(secs(5)), &[], KEEP, "is running");
        assert_eq!(running.clone().hold_for(secs(5)).plan().again_in, Some(secs(5)));
        check(running.clone(), CANCEL, DROP, "lock is lost");
        check(
            running.clone().hold_expired(secs(0)),
            CANCEL,
            DROP,
            "lock is lost",
        );
        // Proof that another leads outweighs our own clock.
        check(
            running.clone().hold_for(secs(5)).leader("a"),
            CANCEL,
            DROP,
            "lock is lost",
        );
        check(
            running.dcs_down_for(secs(9)).hold_for(secs(5)),
            &[],
            KEEP,
            "is running",
        );
    }
}

#[test]
fn other_jobs_go_on_without_the_lock() {
    for job in [
        Job::Clone(at("a")),
        Job::Rewind(at("a")),
        Job::Start(StartAs::Replica(None)),
        Job::Bootstrap,
    ] {
        waits(
            view().stopped_replica().leader("a").job(job, secs(1)),
            "is running",
        );
    }
    waits(
        view().running_replica(1).leader("a").job(Job::Restart, secs(1)),
        "is running",
    );
}

#[test]
fn a_demotion_keeps_the_lock_only_if_it_is_to_release_it() {
    let demoting = |mode| {
        let deadline = NOW + secs(8);
        view()
            .leader("b")
            .running_primary(100)
            .hold_for(secs(9))
            .job(Job::Demote { mode, deadline }, secs(1))
    };
    for mode in [DemoteMode::Graceful, DemoteMode::Fast, DemoteMode::Immediate] {
        check(demoting(mode), &[], KEEP, "is running");
    }
    for mode in [DemoteMode::ImmediateNoLock, DemoteMode::Offline] {
        waits(demoting(mode), "is running");
    }
    // A gentle stop that outlives the lease is replaced by a hard one.
    let late = |mode| demoting(mode).hold_expired(secs(0));
    check(late(DemoteMode::Graceful), CANCEL, DROP, "gentle");
    check(late(DemoteMode::Fast), CANCEL, DROP, "gentle");
    waits(late(DemoteMode::ImmediateNoLock), "is running");
    let next = late(DemoteMode::Graceful).change(|view| view.job = None);
    assert_eq!(
        next.plan().actions,
        [demote(DemoteMode::ImmediateNoLock, NOW + secs(3))]
    );
}

#[test]
fn a_start_as_primary_may_not_keep_the_lock_for_ever_while_others_could_lead() {
    let starting = |since| {
        view()
            .leader("b")
            .starting(true, since)
            .hold_for(secs(9))
            .job(Job::Start(StartAs::Primary), since)
    };
    check(starting(secs(299)).replica("c"), &[], KEEP, "is running");
    check(starting(secs(300)).replica("c"), CANCEL, KEEP, "within 300 s");
    check(starting(secs(3000)), &[], KEEP, "is running");
    let zero = starting(secs(1))
        .replica("c")
        .dynamic(|d| d.primary_start_timeout = secs(0));
    check(zero, &[], KEEP, "is running");
}

#[test]
fn a_plan_is_remembered_whatever_it_decides() {
    let plans: [Plan; 2] = [
        view()
            .leader("a")
            .running_replica(1)
            .job(Job::Restart, secs(1))
            .plan(),
        view().leader("a").local(crate::ha::Local::Empty).plan(),
    ];
    for plan in plans {
        assert_eq!(
            plan.memory.and_then(|memory| memory.last_leader),
            Some("a".into())
        );
    }
}
