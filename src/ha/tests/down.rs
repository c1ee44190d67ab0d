//! Data, no postmaster, and another member or nobody leads. (Our own lock: see `leader`.)

use super::builder::*;
use crate::{
    ha::{Action, Failure, Job, Local, StartAs},
    model::{DbState, Lsn, Timeline},
};

fn start(upstream: Option<&str>) -> Vec<Action> {
    vec![Action::Begin(Job::Start(StartAs::Replica(upstream.map(at))))]
}

fn rewind() -> Vec<Action> {
    vec![Action::Begin(Job::Rewind(at("a")))]
}

fn clone() -> Vec<Action> {
    vec![copy("a", true)]
}

fn theirs() -> Build {
    view().leader("a")
}

#[test]
fn a_stopped_replica_starts_following() {
    check(theirs().stopped_replica(), &start(Some("a")), DROP, "'a'");
    let cascaded = theirs().replica("c").tag("replicatefrom", "c");
    check(cascaded.stopped_replica(), &start(Some("c")), DROP, "");
    let alone = theirs().tag("nostream", true).stopped_replica();
    check(alone, &start(None), DROP, "");
    check(view().stopped_replica(), &start(None), DROP, "election");
}

#[test]
fn a_former_primary_compares_itself_before_it_starts() {
    check(
        theirs().crashed_primary(),
        &[Action::ProbeLeader(at("a"))],
        DROP,
        "comparing",
    );
    let old = theirs().crashed_primary().leader_on("a", 2).later(ms(1001));
    check(old, &[Action::ProbeLeader(at("a"))], DROP, "comparing");
}

#[test]
fn a_clean_former_primary_is_followed_up_to_the_switch_point() {
    let clean = |end| theirs().clean_primary(end).leader_on("a", 2);
    check(clean(1000), &start(Some("a")), DROP, "following");
    check(clean(1001), &rewind(), DROP, "diverged: rewinding");
    check(
        theirs().down(DbState::ShutDown).leader_on("a", 2),
        &rewind(),
        DROP,
        "diverged",
    );
}

#[test]
fn a_crashed_former_primary_is_rewound_once_the_timeline_is_another() {
    check(
        theirs().crashed_primary().leader_on("a", 2),
        &rewind(),
        DROP,
        "diverged",
    );
    check(
        theirs().crashed_primary().leader_on("a", 1),
        &start(Some("a")),
        DROP,
        "following",
    );
    // It died right after its own promotion to that timeline.
    let promoted = theirs().crashed_primary().leader_on("a", 2).change(|view| {
        if let Local::Down(down) = &mut view.local {
            down.control.min_recovery_end = Lsn(1);
            down.control.min_recovery_timeline = Timeline(2);
        }
    });
    check(promoted, &start(Some("a")), DROP, "following");
}

#[test]
fn what_cannot_be_rewound_is_cloned() {
    let diverged = || theirs().crashed_primary().leader_on("a", 2);
    let without = |checksums: bool, hints: bool| {
        diverged().change(|view| {
            if let Local::Down(down) = &mut view.local {
                (down.control.checksums, down.control.wal_log_hints) = (checksums, hints);
            }
        })
    };
    check(without(false, true), &rewind(), DROP, "rewinding");
    check(without(false, false), &clone(), DROP, "cannot be used");
    check(
        diverged().dynamic(|d| d.use_pg_rewind = false),
        &clone(),
        DROP,
        "cannot be used",
    );
    let failed = diverged().finished(Job::Rewind(at("a")), false);
    check(failed, &clone(), DROP, "did not help");
    waits(
        diverged()
            .memory(|m| m.rewind_failures = 1)
            .finished(clone_of("a"), false),
        "clone failed",
    );
}

#[test]
fn a_directory_that_does_not_start_climbs_the_ladder_to_a_clone() {
    let mut build = theirs().stopped_replica();
    let mut tried = Vec::new();
    for _ in 0..60 {
        let plan = build.plan();
        build = build.next();
        match plan.actions.as_slice() {
            [] => build = build.later(plan.again_in.expect("a wait has an end")),
            [Action::ProbeLeader(_)] => build = build.leader_on("a", 1),
            [Action::Begin(job)] => {
                tried.push(job.name());
                if matches!(job, Job::Clone { .. }) {
                    break;
                }
                build = build.finished(job.clone(), false);
            }
            other => unreachable!("{other:?}"),
        }
    }
    // Its history is the leader's, so pg_rewind would find nothing to do.
    assert_eq!(tried, ["start", "start", "start", "clone"]);
}

fn failing() -> Build {
    theirs()
        .stopped_replica()
        .memory(|m| m.start_failures = (3, NOW.minus(secs(60))))
}

#[test]
fn a_directory_that_does_not_start_is_compared_with_the_leader_before_anything_is_done_to_it() {
    check(failing(), &[Action::ProbeLeader(at("a"))], DROP, "comparing");
    waits(failing().probed("a", Err("refused".into())), "cannot be asked");
    waits(failing().leader_in_recovery("a"), "still being promoted");
    check(
        failing().leader_on("a", 1),
        &[copy("a", true)],
        DROP,
        "kept aside",
    );
    let diverged = failing().leader_on("a", 2).change(|view| {
        if let Local::Down(down) = &mut view.local {
            (down.control.min_recovery_end, down.control.min_recovery_timeline) = (Lsn(1001), Timeline(1));
        }
    });
    check(diverged, &rewind(), DROP, "rewinding");
}

#[test]
fn a_mistake_in_the_configuration_costs_no_data() {
    let start_failed = |failure: Failure| {
        let job = Job::Start(StartAs::Replica(Some(at("a"))));
        let outcome = Err(failure);
        failing()
            .memory(|m| m.start_failures = (5, NOW))
            .change(|view| view.finished = Some(crate::ha::Finished { job, outcome }))
            .next()
            .later(secs(10))
            .leader_on("a", 1)
    };
    check(
        start_failed(Failure::Failed("postgres ended".into())),
        &clone(),
        DROP,
        "does not start",
    );
    let mistaken = start_failed(Failure::Configuration("unrecognized parameter \"x\"".into()));
    check(mistaken, &start(Some("a")), DROP, "following");
    // What was called off did not fail.
    let cancelled = theirs()
        .stopped_replica()
        .change(|view| {
            view.finished = Some(crate::ha::Finished {
                job: Job::Start(StartAs::Replica(None)),
                outcome: Err(Failure::Cancelled("by the plan".into())),
            });
        })
        .plan();
    assert_eq!(cancelled.actions, start(Some("a")));
}

#[test]
fn a_copy_that_did_not_help_is_not_made_again_and_again() {
    let copied = failing().memory(|m| m.clones = (1, NOW)).leader_on("a", 1);
    check(copied.clone(), &start(Some("a")), DROP, "did not help");
    let diverged = theirs().crashed_primary().leader_on("a", 2).memory(|m| {
        m.clones = (1, NOW);
        m.rewind_failures = 1;
    });
    waits(diverged.clone(), "neither a rewind nor a copy helped");
    // Another leader is another chance, and so is another hour.
    let again = |build: Build| build.leader("c").leader_on("c", 2);
    let known = diverged.clone().memory(|m| m.holder = Some("a".into()));
    check(
        again(known),
        &[Action::Begin(Job::Rewind(at("c")))],
        DROP,
        "rewinding",
    );
    let later = diverged.later(secs(3600)).leader_on("a", 2);
    check(later, &clone(), DROP, "did not help");
    // Streaming is what it was all for.
    let streaming = theirs().replica_of("a", 1, true).memory(|m| m.clones = (1, NOW));
    assert_eq!(streaming.plan().memory.map(|m| m.clones.0), Some(0));
}

#[test]
fn a_rewind_counts_as_failed_only_if_its_source_was_there() {
    let diverged = || theirs().crashed_primary().leader_on("a", 2);
    let ended = |build: Build, failure: Failure| {
        let (job, outcome) = (Job::Rewind(at("a")), Err(failure));
        build.change(|view| view.finished = Some(crate::ha::Finished { job, outcome }))
    };
    check(
        ended(diverged(), Failure::Failed("pg_rewind failed".into())),
        &clone(),
        DROP,
        "did not help",
    );
    for failure in [
        Failure::Cancelled("by the plan".into()),
        Failure::NotYet("the leader has not made its checkpoint".into()),
    ] {
        check(ended(diverged(), failure), &rewind(), DROP, "rewinding");
    }
    let mut stopped = member("a");
    stopped.data.state = crate::model::PgState::Stopped;
    check(
        ended(
            diverged().with(stopped),
            Failure::Failed("connection closed".into()),
        ),
        &rewind(),
        DROP,
        "rewinding",
    );
}

#[test]
fn two_timelines_of_one_number_are_told_apart_by_where_they_begin() {
    // Everybody's timeline 2 begins at 1000 (see `history`), ours does not.
    let same = theirs().crashed_primary().mine(2).leader_on("a", 2);
    check(same.clone().born(1, 1000), &start(Some("a")), DROP, "following");
    check(same.clone(), &start(Some("a")), DROP, "following");
    // pg_rewind goes by the number and would find nothing to do.
    check(same.born(1, 900), &clone(), DROP, "cannot be used");
    let older = theirs().clean_primary(1500).mine(2).leader_on("a", 3);
    check(older.clone().born(1, 1000), &start(Some("a")), DROP, "following");
    check(older.born(1, 900), &rewind(), DROP, "rewinding");
}

#[test]
fn what_has_diverged_is_kept_unless_somebody_does_not_want_it() {
    let failed = || {
        theirs()
            .crashed_primary()
            .leader_on("a", 2)
            .memory(|m| m.rewind_failures = 1)
    };
    let impossible = || {
        let diverged = theirs().crashed_primary().leader_on("a", 2);
        diverged.dynamic(|d| d.use_pg_rewind = false)
    };
    let on_failure = |b: Build| b.dynamic(|d| d.remove_data_directory_on_rewind_failure = true);
    let on_divergence = |b: Build| b.dynamic(|d| d.remove_data_directory_on_diverged_timelines = true);
    check(failed(), &[copy("a", true)], DROP, "kept aside");
    check(impossible(), &[copy("a", true)], DROP, "kept aside");
    check(on_failure(failed()), &[copy("a", false)], DROP, "removed");
    check(on_failure(impossible()), &[copy("a", true)], DROP, "kept aside");
    check(on_divergence(failed()), &[copy("a", false)], DROP, "removed");
    check(on_divergence(impossible()), &[copy("a", false)], DROP, "removed");
    let broken = theirs().local(Local::Broken { reason: "x".into() });
    check(on_divergence(broken), &[copy("a", true)], DROP, "broken");
}

#[test]
fn data_that_cannot_be_looked_at_is_left_alone() {
    waits(theirs().unknown(secs(9000)), "cannot be looked at: fork");
    waits(view().unknown(secs(9000)), "cannot be looked at");
    let ours = |time| view().leader("b").hold_for(secs(9)).unknown(time);
    check(ours(secs(299)), &[], KEEP, "cannot be looked at");
    check(
        ours(secs(300)),
        &[Action::ReleaseLock(None)],
        DROP,
        "leaving the lock",
    );
    check(
        view().leader("b").unknown(secs(1)),
        &[Action::RenewLock],
        DROP,
        "making sure",
    );
}

#[test]
fn a_leader_that_cannot_be_asked_is_waited_for_but_not_for_ever() {
    let refused = |build: Build| build.probed("a", Err("refused".into()));
    let first = refused(theirs().crashed_primary());
    assert_eq!(first.plan().again_in, Some(ms(250)));
    waits(first.clone(), "cannot be asked");
    let waiting = first.next();
    waits(refused(waiting.clone().later(secs(9))), "cannot be asked");
    check(
        refused(waiting.clone().later(secs(10))),
        &start(Some("a")),
        DROP,
        "starting",
    );
    // The patience is for one leader; the next one gets its own.
    let another = waiting
        .later(secs(60))
        .leader("c")
        .probed("c", Err("refused".into()));
    waits(another, "cannot be asked");
    waits(
        theirs().crashed_primary().leader_in_recovery("a"),
        "still being promoted",
    );
}

#[test]
fn a_leader_without_address_is_waited_for() {
    let mut unknown = member("a");
    unknown.data.conn_url.clear();
    let build = theirs().with(unknown).crashed_primary();
    assert!(build.plan().again_in.is_some());
    waits(build, "not published");
}

#[test]
fn a_postmaster_found_starting_is_waited_for_unless_it_would_write_without_the_lock() {
    let found = theirs().starting(false, secs(1));
    check(
        found.clone(),
        &[Action::Follow(Some(at("a")))],
        DROP,
        "to follow 'a'",
    );
    waits(found.next(), "starting");
    waits(view().starting(false, secs(1)), "starting");
    for build in [view().starting(true, secs(1)), theirs().starting(true, secs(1))] {
        assert_eq!(
            build.plan().actions,
            [demote(crate::ha::DemoteMode::ImmediateNoLock, NOW + secs(3))]
        );
    }
}
