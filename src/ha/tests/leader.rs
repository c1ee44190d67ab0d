//! The lock carries our name.

use super::builder::*;
use crate::{
    ha::{Action, DemoteMode, Job, Local, StartAs},
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

#[test]
fn a_failed_promotion_leaves_the_lock_to_others_else_it_is_tried_again() {
    let failed = ours().running_replica(100).finished(Job::Promote, false);
    check(failed.clone().replica("c"), RELEASE, DROP, "promotion failed");
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
    assert_eq!(build.plan().again_in, Some(secs(3)));
    check(build, &[], KEEP, "does not answer");
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
        check(others.clone(), RELEASE, DROP, "leaving the lock to others");
        // Whoever releases is the first to see it free.
        let mut free = others.next().cluster(|c| c.leader = None).peers(&[("c", None)]);
        free.view.memory.start_failures = (0, NOW);
        waits(free.clone(), "handed the lock over");
        let later = free.later(secs(5)).peers(&[("c", None)]);
        assert_eq!(later.plan().actions.first(), Some(&Action::AcquireLock));
    }
    check(
        three(ours().stopped_replica().replica("c")),
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
    check(slow(299).replica("c"), &[], KEEP, "is starting");
    let give_up = [demote(DemoteMode::Immediate, NOW + secs(8))];
    check(slow(300).replica("c"), &give_up, KEEP, "too long");
    check(slow(3000), &[], KEEP, "is starting");
    // Counted from when it went down, not from when this agent (or the end of a job) began to look.
    let earlier = slow(1)
        .replica("c")
        .memory(|m| m.primary_down_since = Some(NOW.minus(secs(300))));
    check(earlier, &give_up, KEEP, "too long");
    check(
        ours().starting(false, secs(3000)).replica("c"),
        &[],
        KEEP,
        "is starting",
    );
}

#[test]
fn a_stopping_postgres_keeps_only_a_valid_hold() {
    check(ours().local(Local::Stopping), &[], KEEP, "stopping");
    check(
        view().leader("b").hold_expired(secs(1)).local(Local::Stopping),
        &[],
        DROP,
        "stopping",
    );
}
