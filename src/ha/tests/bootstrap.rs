//! No data directory.

use super::builder::*;
use crate::{
    exit::Exit,
    ha::{Action, Job, Local},
    model::{PgState, Role, Version},
};

fn empty() -> Build {
    view().local(Local::Empty)
}

fn unfinished(waited: u64) -> Build {
    let since = NOW.minus(secs(waited));
    empty()
        .initialize(Some(""))
        .memory(|memory| memory.unlocked_since = Some(since))
}

#[test]
fn claims_a_cluster_that_nobody_initialized() {
    check(
        empty().initialize(None),
        &[Action::ClaimInitialize, Action::Begin(Job::Bootstrap)],
        DROP,
        "trying to bootstrap",
    );
}

#[test]
fn no_new_cluster_begins_beside_a_member_with_data() {
    let beside = |role| {
        let mut build = empty().initialize(None).replica("a");
        build.cluster.members[0].data.role = role;
        build
    };
    for role in [Role::Replica, Role::Demoted, Role::Primary] {
        waits(beside(role), "the DCS knows no cluster, but 'a' has data");
    }
    let claim = [Action::ClaimInitialize, Action::Begin(Job::Bootstrap)];
    check(beside(Role::Uninitialized), &claim, DROP, "trying to bootstrap");
}

#[test]
fn whoever_had_a_part_in_a_cluster_begins_no_new_one() {
    let left = || view().local(Local::Leftover);
    let why = "a copy of a cluster's data did not finish here, and the DCS knows no cluster";
    waits(left().initialize(None), why);
    waits(left().initialize(Some("")), why);
    // Else it is as good as empty.
    check(left().leader("a"), &[copy("a", false)], DROP, "cloning from 'a'");
    waits(left(), "waiting for a member with its data");
    check(
        left().leader("b").hold_for(secs(20)),
        &[Action::ReleaseLock(None)],
        DROP,
        "a leader without data must not lead",
    );
}

#[test]
fn a_bootstrap_in_the_place_of_our_cluster_is_called_off() {
    let claimed = |warm| {
        let build = view().running_replica(100).initialize(Some("")).memory(|memory| {
            memory.followed = warm;
            memory.lost.since = Some(NOW);
        });
        build.cluster(|cluster| cluster.initialize_version = Some(Version(7)))
    };
    let off = [Action::AbandonInitialize(Version(7))];
    check(claimed(true), &off, DROP, "calling it off");
    waits(claimed(false), "another member is bootstrapping");
    waits(
        claimed(true).memory(|memory| memory.lost.since = None),
        "another member is bootstrapping",
    );
}

#[test]
fn a_bootstrap_that_failed_ends_the_member_with_the_reason() {
    let exit = [Action::Exit(Exit::Bootstrap)];
    for build in [
        empty().initialize(None),
        empty().initialize(Some("")),
        empty().leader("a"),
    ] {
        let failed = build.finished(Job::Bootstrap, false);
        check(failed.clone(), &exit, DROP, "failed: it did");
        check(failed, &exit, DROP, "start this member again");
    }
}

#[test]
fn a_nofailover_member_never_bootstraps() {
    waits(empty().initialize(None).tag("nofailover", true), "nofailover");
}

#[test]
fn waits_for_a_bootstrap_in_progress_and_for_the_data_of_an_existing_cluster() {
    waits(unfinished(5), "another member to finish");
    waits(empty(), SYSTEM);
    assert!(empty().plan().again_in.is_some());
}

#[test]
fn calls_an_abandoned_bootstrap_off_after_ttl_but_not_one_somebody_works_on() {
    waits(unfinished(30), "another member to finish");
    check(
        unfinished(31),
        &[Action::AbandonInitialize(Version(1))],
        DROP,
        "starting over",
    );
    for state in [PgState::Initializing, PgState::CustomBootstrap] {
        let mut other = member("a");
        other.data.state = state;
        waits(unfinished(31).with(other), "another member to finish");
    }
    // A member that runs or starts has data already: it waits for the same end.
    for state in [PgState::InitdbFailed, PgState::Starting, PgState::Running] {
        let mut other = member("a");
        other.data.state = state;
        check(
            unfinished(31).with(other),
            &[Action::AbandonInitialize(Version(1))],
            DROP,
            "starting over",
        );
    }
}

#[test]
fn a_leader_without_data_gives_the_lock_away() {
    check(
        empty().leader("b").hold_for(secs(20)),
        &[Action::ReleaseLock(None)],
        DROP,
        "without data",
    );
}

#[test]
fn clones_from_a_tagged_member_else_from_the_leader() {
    let source = |name: &str| {
        let mut source = member(name);
        source.data.tags = tags(&[("clonefrom", true.into())]);
        source
    };
    let cases = [
        (empty().leader("a"), "a"),
        (empty().leader("a").replica("c"), "a"),
        (empty().leader("a").with(source("c")), "c"),
        // Members begin the search behind their own name, so that not all load the same source.
        (empty().leader("z").with(source("a")).with(source("c")), "c"),
        (
            empty().me("d").leader("z").with(source("a")).with(source("c")),
            "a",
        ),
        // A source that did not work is not tried for ever.
        (
            empty()
                .leader("a")
                .with(source("c"))
                .memory(|m| m.clone_failures = (1, NOW.minus(secs(60)))),
            "a",
        ),
    ];
    for (build, from) in cases {
        check(build, &[copy(from, false)], DROP, "cloning from");
    }
    let mut stopped = source("c");
    stopped.data.state = PgState::Stopped;
    check(
        empty().leader("a").with(stopped),
        &[copy("a", false)],
        DROP,
        "cloning from 'a'",
    );
}

#[test]
fn waits_for_a_leader_that_does_not_run_yet_and_after_a_failed_clone() {
    let mut starting = member("a");
    starting.data.state = PgState::Starting;
    let build = empty().leader("a").with(starting);
    assert!(build.plan().again_in.is_some());
    waits(build, "to run");

    let failed = empty().leader("a").finished(clone_of("a"), false);
    assert_eq!(failed.plan().again_in, Some(secs(1)));
    waits(failed.clone(), "clone failed");
    check(failed.next().later(secs(1)), &[copy("a", false)], DROP, "cloning");
}
