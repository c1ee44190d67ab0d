//! Data, no postmaster, and another member or nobody leads. (Our own lock: see `leader`.)

use super::builder::*;
use crate::{
    ha::{Action, Job, Local, StartAs},
    model::{DbState, Lsn, Timeline},
};

fn start(upstream: Option<&str>) -> Vec<Action> {
    vec![Action::Begin(Job::Start(StartAs::Replica(upstream.map(at))))]
}

fn rewind() -> Vec<Action> {
    vec![Action::Begin(Job::Rewind(at("a")))]
}

fn clone() -> Vec<Action> {
    vec![Action::Begin(Job::Clone(at("a")))]
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
            .finished(Job::Clone(at("a")), false),
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
            [Action::Begin(job)] => {
                tried.push(job.name());
                if matches!(job, Job::Clone(_)) {
                    break;
                }
                // pg_rewind has nothing to do and says so; postgres never starts.
                let ok = matches!(job, Job::Rewind(_));
                build = build.finished(job.clone(), ok);
            }
            other => unreachable!("{other:?}"),
        }
    }
    assert_eq!(tried.last(), Some(&"clone"), "{tried:?}");
    assert!(tried.contains(&"rewind") && tried.len() <= 12, "{tried:?}");
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
    waits(theirs().starting(false, secs(1)), "starting");
    waits(view().starting(false, secs(1)), "starting");
    for build in [view().starting(true, secs(1)), theirs().starting(true, secs(1))] {
        assert_eq!(
            build.plan().actions,
            [demote(crate::ha::DemoteMode::ImmediateNoLock, NOW + secs(3))]
        );
    }
}
