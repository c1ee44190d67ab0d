//! The lock carries our name.

use super::builder::*;
use crate::{
    ha::{Action, DemoteMode, Failure, Job, Silence, StartAs},
    model::{SystemId, Version},
};

fn ours() -> Build {
    view().leader("b").hold_for(secs(20))
}

const START: &[Action] = &[Action::Begin(Job::Start(StartAs::Primary))];
const RELEASE: &[Action] = &[Action::ReleaseLock(None)];

#[test]
fn a_primary_does_its_duties() {
    check(
        ours().running_primary(100),
        &[Action::LeaderDuties],
        KEEP,
        "leader with the lock",
    );
}

#[test]
fn a_primary_restores_what_the_dcs_lost() {
    let mine = || SystemId(SYSTEM.into());
    let lost = ours()
        .running_primary(100)
        .initialize(None)
        .cluster(|c| c.config = None);
    check(
        lost.clone(),
        &[
            Action::WriteInitialize(mine(), None),
            Action::WriteConfig,
            Action::LeaderDuties,
        ],
        KEEP,
        "leader",
    );
    check(
        lost.initialize(Some("")),
        &[
            Action::WriteInitialize(mine(), Some(Version(1))),
            Action::WriteConfig,
            Action::LeaderDuties,
        ],
        KEEP,
        "leader",
    );
}

#[test]
fn a_replica_is_promoted_and_the_request_behind_it_cleared() {
    check(
        ours().running_replica(100),
        &[Action::Begin(Job::Promote)],
        KEEP,
        "promoting",
    );
    check(
        ours().running_replica(100).request(Some("a"), Some("b")),
        &[Action::Begin(Job::Promote), Action::ClearFailover],
        KEEP,
        "promoting",
    );
}

#[test]
fn an_older_timeline_gives_the_lock_up_unless_we_followed_a_leader() {
    let behind = ours().running_replica(100).timeline(2);
    check(behind.clone(), RELEASE, DROP, "older than the cluster's");
    check(
        behind.clone().seen("a"),
        &[Action::Begin(Job::Promote)],
        KEEP,
        "promoting",
    );
    // Having seen our own name in the lock (say, in the turn that renewed it) proves nothing.
    let renewed = behind.clone().change(|view| view.hold = None).next();
    check(
        renewed.hold_for(secs(20)),
        RELEASE,
        DROP,
        "older than the cluster's",
    );
    // And having given it up, it is not taken again.
    let free = behind.next().cluster(|c| c.leader = None).later(secs(60));
    waits(free, "older than the cluster's");
}

/// Contract: HA rules §2, first row, and §3. Nothing was asked of postgres, so it is not stopped either.
#[test]
fn a_promotion_that_pre_promote_refuses_leaves_the_lock_to_others_for_ttl() {
    let finished = crate::ha::Finished {
        job: Job::Promote,
        outcome: Err(Failure::Vetoed("pre_promote: exit status 1".into())),
    };
    let vetoed = ours()
        .running_replica(100)
        .change(|view| view.finished = Some(finished));
    check(vetoed.clone(), RELEASE, DROP, "pre_promote refused");
    let free = |after| {
        let build = vetoed.clone().next().cluster(|c| c.leader = None).later(after);
        build.optime(100).seen("a").peers(&[])
    };
    waits(free(secs(29)), "pre_promote refused");
    let lead = [Action::AcquireLock, Action::Begin(Job::Promote)];
    check(free(secs(30)), &lead, KEEP, "no reachable member is ahead");
}

#[test]
fn a_failed_promotion_leaves_the_lock_to_others_else_it_is_tried_again() {
    let failed = ours().running_replica(100).finished(Job::Promote, false);
    let others = failed.clone().replica("c");
    check(others.clone(), &[probe(&["c"])], KEEP, "promotion failed");
    // The request to promote stands: the lock is released by the job, once postgres is down.
    let able = others.clone().peers(&[("c", Some(replica_at(100)))]);
    let stop = [demote(DemoteMode::Immediate, NOW + secs(2))];
    check(able.clone(), &stop, KEEP, "promotion failed");
    check(others.peers(&[("c", None)]), &[], KEEP, "before the next attempt");
    // The job has stopped it already.
    let down = able.stopped_replica();
    check(down, RELEASE, DROP, "promotion failed, leaving the lock to 'c'");
    check(failed.clone(), &[], KEEP, "before the next attempt");
    check(
        failed.next().later(secs(1)).hold_for(secs(20)),
        &[Action::Begin(Job::Promote)],
        KEEP,
        "promoting",
    );
}

#[test]
fn without_a_hold_the_lock_is_made_sure_of() {
    for build in [
        view().leader("b").running_primary(100),
        view().leader("b").running_replica(100),
        view().leader("b").running_replica(100).hold_expired(secs(1)),
        view().leader("b").silent(true),
        view().leader("b").crashed_primary(),
        view().leader("b").crashed_primary().hold_expired(secs(100)),
        view().leader("b").starting(true, secs(1)),
        view().leader("b").starting(false, secs(1)),
    ] {
        assert!(build.plan().again_in.is_some_and(|wait| wait <= secs(1)));
        check(build, &[Action::RenewLock], DROP, "making sure");
    }
}

#[test]
fn a_thawed_primary_stops_before_anything_else() {
    for ago in [secs(0), secs(1), secs(4), secs(3600)] {
        let hold_gone = |build: Build| build.leader("b").hold_expired(ago);
        for build in [
            hold_gone(view()).running_primary(100),
            hold_gone(view()).silent(true),
            hold_gone(view()).starting(true, secs(1)),
        ] {
            let deadline = NOW.minus(ago) + secs(3);
            check(
                build,
                &[demote(DemoteMode::ImmediateNoLock, deadline)],
                DROP,
                "not renewed in time",
            );
        }
    }
}

#[test]
fn a_silent_postgres_keeps_the_lock_and_is_looked_at_before_the_lease_ends() {
    let build = view().leader("b").hold_for(secs(3)).silent(true);
    assert_eq!(build.plan().again_in, Some(secs(1)));
    check(build, &[], KEEP, "does not answer");
    let soon = view().leader("b").hold_for(ms(300)).silent(true);
    assert_eq!(soon.plan().again_in, Some(ms(300)));
}

#[test]
fn a_postgres_that_hangs_for_a_lease_gives_way_to_one_that_does_not() {
    let hung = |time, why| ours().replica("c").optime(100).silent_for(true, time, why);
    let able = |b: Build| b.peers(&[("c", Some(replica_at(100)))]);
    check(hung(ms(29_900), Silence::NoAnswer), &[], KEEP, "does not answer");
    check(hung(secs(30), Silence::NoAnswer), &[probe(&["c"])], KEEP, "hangs");
    let stop = [demote(DemoteMode::Immediate, NOW + secs(2))];
    check(
        able(hung(secs(30), Silence::NoAnswer)),
        &stop,
        KEEP,
        "'c' can lead",
    );
    check(
        hung(secs(30), Silence::NoAnswer).peers(&[("c", None)]),
        &[],
        KEEP,
        "does not answer",
    );
    // An error is an answer: clients may be served well.
    check(
        able(hung(secs(9000), Silence::Refused)),
        &[],
        KEEP,
        "does not answer",
    );
}

#[test]
fn a_leader_without_a_running_postgres_can_be_asked_to_hand_over() {
    let stop = vec![demote(DemoteMode::Immediate, NOW + secs(2))];
    let cases = [
        (ours().crashed_primary(), RELEASE.to_vec(), DROP),
        (ours().starting(true, secs(1)), stop.clone(), KEEP),
        (ours().silent_for(true, secs(1), Silence::Refused), stop, KEEP),
    ];
    for (build, actions, keep) in cases {
        let asked = build.replica("c").optime(100).request(Some("b"), Some("c"));
        check(asked.clone(), &[probe(&["c"])], KEEP, "asking the candidates");
        let able = asked.clone().peers(&[("c", Some(replica_at(100)))]);
        check(able.clone(), &actions, keep, "switchover to 'c'");
        let paused = able.dynamic(|d| d.pause = true).plan();
        assert!(!paused.because.contains("switchover"), "{paused:?}");
        // Measured by what the leader last published.
        let behind = asked
            .optime(101 + (1 << 20))
            .peers(&[("c", Some(replica_at(100)))]);
        check(behind, &[Action::ClearFailover], KEEP, "lags");
    }
}

#[test]
fn the_next_look_is_never_later_than_the_demotion() {
    let soon = view().leader("b").hold_for(ms(1500)).running_primary(1);
    assert_eq!(soon.plan().again_in, Some(ms(1500)));
    assert_eq!(ours().running_primary(1).plan().again_in, Some(secs(10)));
}

// --- postgres is down

#[test]
fn a_crashed_postgres_is_started_as_primary_under_the_lock() {
    check(ours().crashed_primary(), START, KEEP, "as primary again");
    check(ours().clean_primary(510), START, KEEP, "as primary again");
    check(
        ours().stopped_replica(),
        &[Action::Begin(Job::Start(StartAs::Replica(None)))],
        KEEP,
        "before promotion",
    );
}

#[test]
fn failing_starts_are_spaced_out() {
    let failed = ours()
        .crashed_primary()
        .finished(Job::Start(StartAs::Primary), false);
    assert_eq!(failed.plan().again_in, Some(secs(1)));
    check(failed.clone(), &[], KEEP, "before the next attempt");
    check(
        failed.next().later(secs(1)).hold_for(secs(20)),
        START,
        KEEP,
        "again",
    );
}

#[test]
fn a_postgres_that_does_not_start_leaves_the_lock_to_others_and_for_a_while() {
    let three = |build: Build| build.memory(|m| m.start_failures = (3, NOW.minus(secs(60))));
    let late = |build: Build| build.memory(|m| m.primary_down_since = Some(NOW.minus(secs(300))));
    for build in [
        three(ours().crashed_primary()),
        late(ours().crashed_primary()),
        ours()
            .crashed_primary()
            .dynamic(|d| d.primary_start_timeout = secs(0)),
    ] {
        check(build.clone(), START, KEEP, "again");
        let others = build.replica("c");
        check(others.clone(), &[probe(&["c"])], KEEP, "asking");
        check(others.clone().peers(&[("c", None)]), START, KEEP, "again");
        let others = others.peers(&[("c", Some(replica_at(1)))]);
        check(others.clone(), RELEASE, DROP, "leaving the lock to 'c'");
        // Whoever releases is the first to see it free.
        let mut free = others.next().cluster(|c| c.leader = None).peers(&[("c", None)]);
        free.view.memory.start_failures = (0, NOW);
        waits(free.clone(), "handed the lock over");
        let later = free.later(secs(5)).peers(&[("c", None)]);
        assert_eq!(later.plan().actions.first(), Some(&Action::AcquireLock));
    }
    let replica = three(ours().stopped_replica().replica("c"));
    check(
        replica.peers(&[("c", Some(replica_at(1)))]),
        RELEASE,
        DROP,
        "does not start",
    );
    let mut never = member("c");
    never.data.tags = tags(&[("nofailover", true.into())]);
    check(three(ours().crashed_primary().with(never)), START, KEEP, "again");
}

#[test]
fn data_on_an_older_timeline_releases_the_lock_even_when_alone() {
    check(
        ours().crashed_primary().timeline(2),
        RELEASE,
        DROP,
        "not leading with older data",
    );
}

// --- postgres is starting, and no job waits for it

#[test]
fn a_start_that_takes_too_long_is_given_up_only_if_others_could_lead() {
    let slow = |since: u64| ours().starting(true, secs(since));
    let able = |b: Build| b.replica("c").peers(&[("c", Some(replica_at(100)))]);
    check(slow(299).replica("c"), &[], KEEP, "is starting");
    let give_up = [demote(DemoteMode::Immediate, NOW + secs(2))];
    check(slow(300).replica("c"), &[probe(&["c"])], KEEP, "too long");
    check(able(slow(300)), &give_up, KEEP, "too long");
    check(
        slow(300).replica("c").peers(&[("c", None)]),
        &[],
        KEEP,
        "is starting",
    );
    check(slow(3000), &[], KEEP, "is starting");
    // Counted from when it went down, not from when this agent (or the end of a job) began to look.
    let earlier = able(slow(1)).memory(|m| m.primary_down_since = Some(NOW.minus(secs(300))));
    check(earlier, &give_up, KEEP, "too long");
    // A lock holder whose replica does not come up leads nobody either.
    check(able(ours().starting(false, secs(299))), &[], KEEP, "is starting");
    check(
        able(ours().starting(false, secs(300))),
        &give_up,
        KEEP,
        "too long",
    );
}

#[test]
fn the_time_without_postgres_is_counted_from_when_the_lock_is_ours() {
    let waiting = view()
        .crashed_primary()
        .initialize(Some(""))
        .next()
        .later(secs(900));
    assert_eq!(waiting.view.memory.primary_down_since, None);
    let taken = waiting
        .initialize(Some(SYSTEM))
        .leader("b")
        .replica("c")
        .hold_for(secs(20));
    check(taken.clone(), START, KEEP, "again");
    assert_eq!(
        taken.clone().next().view.memory.primary_down_since,
        Some(NOW + secs(900))
    );
    let lost = taken.next().leader("a").next();
    assert_eq!(lost.view.memory.primary_down_since, None);
}

#[test]
fn a_stop_nobody_waits_for_is_taken_over_by_a_job_that_gives_the_lock_away() {
    let stop = |mode, after| [demote(mode, NOW + after)];
    let ours = |time| ours().stopping(time);
    check(ours(secs(1)), &stop(DemoteMode::Fast, secs(8)), KEEP, "stopping");
    check(
        ours(secs(8)),
        &stop(DemoteMode::Immediate, secs(2)),
        KEEP,
        "stopping",
    );
    // Each failure makes it harder, and in the end nothing but the end of everything helps.
    let mode = DemoteMode::Fast;
    let deadline = NOW;
    let failed = ours(secs(1)).finished(Job::Demote { mode, deadline }, false);
    check(
        failed.clone(),
        &stop(DemoteMode::Immediate, secs(2)),
        KEEP,
        "stopping",
    );
    let mode = DemoteMode::Immediate;
    let again = failed.next().finished(Job::Demote { mode, deadline }, false);
    let exit = [Action::Exit(crate::exit::Exit::Dirty)];
    check(again, &exit, DROP, "not even by force");
    let expired = view().leader("b").hold_expired(secs(1)).stopping(secs(1));
    check(expired, &stop(DemoteMode::Fast, secs(2)), DROP, "stopping");
}

#[test]
fn what_a_crash_leaves_behind_does_not_cost_the_lock() {
    check(ours().cleaning(secs(1)), &[], KEEP, "being ended");
    assert!(ours().cleaning(secs(1)).plan().again_in.is_some());
    let stuck = [demote(DemoteMode::Immediate, NOW + secs(2))];
    check(ours().cleaning(secs(8)), &stuck, KEEP, "stopping");
}
