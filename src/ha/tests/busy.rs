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
        clone_of("a"),
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
    let late = starting(secs(300)).replica("c");
    check(late.clone(), &[probe(&["c"])], KEEP, "asking");
    let able = late.clone().peers(&[("c", Some(replica_at(100)))]);
    check(able, CANCEL, KEEP, "within 300 s");
    // A member that has a key but cannot lead is no reason to begin a long crash recovery again.
    let unable = [
        None,
        Some(primary_at(100)),
        Some(tagged("nofailover", true.into(), replica_at(100))),
    ];
    for answer in unable {
        check(late.clone().peers(&[("c", answer)]), &[], KEEP, "is running");
    }
    let behind = late
        .optime(101 + (1 << 20))
        .peers(&[("c", Some(replica_at(100)))]);
    check(behind, &[], KEEP, "is running");
    check(starting(secs(3000)), &[], KEEP, "is running");
    let zero = starting(secs(1))
        .replica("c")
        .dynamic(|d| d.primary_start_timeout = secs(0));
    check(zero, &[], KEEP, "is running");
}

#[test]
fn the_same_holds_for_a_promotion_and_for_a_lock_holders_replica() {
    let late = |job: Job, since| {
        view()
            .leader("b")
            .replica("c")
            .starting(false, since)
            .hold_for(secs(9))
            .job(job, since)
            .peers(&[("c", Some(replica_at(100)))])
    };
    for job in [Job::Promote, Job::Start(StartAs::Replica(None))] {
        check(late(job.clone(), secs(299)), &[], KEEP, "is running");
        check(late(job.clone(), secs(300)), CANCEL, KEEP, "'c' can lead");
        check(
            late(job, secs(300)).peers(&[("c", None)]),
            &[],
            KEEP,
            "is running",
        );
    }
    let zero = |since| late(Job::Promote, since).dynamic(|d| d.primary_start_timeout = secs(0));
    check(zero(secs(59)), &[], KEEP, "is running");
    check(zero(secs(60)), CANCEL, KEEP, "'c' can lead");
}

#[test]
fn a_leader_that_is_starting_can_be_asked_to_hand_over() {
    let starting = |answer| {
        view()
            .leader("b")
            .replica("c")
            .starting(true, secs(5))
            .hold_for(secs(9))
            .job(Job::Start(StartAs::Primary), secs(5))
            .request(None, Some("c"))
            .optime(100)
            .peers(&[("c", answer)])
    };
    let able = starting(Some(replica_at(100)));
    check(able.clone(), CANCEL, KEEP, "switchover to 'c'");
    check(
        able.clone().change(|v| v.peers = None),
        &[probe(&["c"])],
        KEEP,
        "asking",
    );
    check(starting(None), &[Action::ClearFailover], KEEP, "does not answer");
    // The turn after the job lets go, with postgres down first.
    let next = able.change(|v| v.job = None);
    let stop = [demote(DemoteMode::Immediate, NOW + secs(2))];
    check(next, &stop, KEEP, "switchover to 'c'");
}

#[test]
fn a_replica_that_comes_up_slowly_is_pointed_at_a_new_leader_once() {
    let starting = |from: Option<&str>, since| {
        view()
            .leader("a")
            .starting(false, since)
            .job(Job::Start(StartAs::Replica(from.map(at))), since)
    };
    waits(starting(Some("a"), secs(5)), "is running");
    let follow = [Action::Follow(Some(at("a")))];
    for from in [None, Some("z")] {
        let lost = starting(from, secs(5));
        check(lost.clone(), &follow, DROP, "to follow 'a'");
        waits(lost.clone().next(), "is running");
        // And at the next one.
        let another = lost.next().leader("c");
        check(another, &[Action::Follow(Some(at("c")))], DROP, "to follow 'c'");
    }
    // Until its postmaster is there the job writes the files itself.
    waits(starting(None, secs(5)).stopped_replica(), "is running");
    waits(starting(None, secs(5)).tag("nostream", true), "is running");
}

#[test]
fn a_replica_that_does_not_become_consistent_beside_a_healthy_leader_is_copied_anew() {
    let starting = |since| {
        view()
            .leader("a")
            .starting(false, since)
            .job(Job::Start(StartAs::Replica(Some(at("a")))), since)
    };
    waits(starting(secs(599)), "is running");
    let late = starting(secs(600));
    check(
        late.clone(),
        &[Action::ProbeLeader(at("a"))],
        DROP,
        "asking leader",
    );
    waits(late.clone().leader_in_recovery("a"), "is running");
    waits(late.clone().probed("a", Err("refused".into())), "is running");
    let healthy = late.leader_on("a", 1);
    check(healthy.clone(), CANCEL, DROP, "does not become consistent");
    let next = healthy
        .change(|v| v.job = None)
        .memory(|m| m.pointed_at = Some(at("a")));
    check(
        next.clone(),
        &[copy("a", true)],
        DROP,
        "does not become consistent",
    );
    waits(next.memory(|m| m.clones = (1, NOW)), "is starting");
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
