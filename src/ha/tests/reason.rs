use super::builder::*;
use crate::{
    ha::{Failure, Job, Memory, Reason, Silence, StartAs, reason},
    model::{DbState, Lsn},
};

fn of(build: &Build) -> Option<Reason> {
    let mut view = build.build();
    let memory = build.plan().memory.expect("every plan remembers");
    view.finished = None;
    view.memory = memory.clone();
    reason(&view, &memory, NOW)
}

fn failed(build: Build, job: Job, failure: Failure) -> Build {
    build.memory(|memory| memory.last_failure = Some((job, failure)))
}

fn theirs() -> Build {
    view().leader("a").seen("a")
}

#[test]
fn whoever_streams_or_is_a_primary_needs_no_reason() {
    assert_eq!(
        of(&view().leader("b").hold_for(secs(20)).running_primary(100)),
        None
    );
    assert_eq!(of(&theirs().replica_of("a", 100, true)), None);
    // A job beside it changes nothing.
    assert_eq!(
        of(&theirs().replica_of("a", 100, true).job(clone_of("a"), secs(1))),
        None
    );
}

#[test]
fn every_other_state_has_its_code() {
    let gone = |memory: &mut Memory| memory.stands_at = Some((Lsn(100), NOW.minus(secs(20))));
    let not_streaming = || theirs().replica_of("a", 100, false);
    let disk = || Failure::from("write: No space left on device".to_owned());
    let start = || Job::Start(StartAs::Replica(None));
    let diverged = || theirs().down(DbState::InProduction).leader_on("a", 2);
    let cases = [
        (view().running_replica(100), "waiting_for_leader"),
        (
            theirs().dcs_down_for(secs(9)).running_replica(100),
            "dcs_unreachable",
        ),
        (not_streaming(), "connecting"),
        (
            not_streaming().probed("a", Err("refused".into())),
            "leader_unreachable",
        ),
        (not_streaming().leader_on("a", 1), "connecting"),
        (not_streaming().leader_on("a", 1).memory(gone), "missing_wal"),
        (
            theirs().replica_of("a", 100, false).mine(3).leader_on("a", 2),
            "timeline_diverged",
        ),
        (not_streaming().tag("nostream", true), "nostream"),
        (not_streaming().change(pause_replay), "replay_paused"),
        (
            not_streaming().cluster(|c| c.members.iter_mut().for_each(|m| m.data.conn_url.clear())),
            "no_upstream",
        ),
        (diverged(), "timeline_diverged"),
        (
            diverged().dynamic(|d| d.use_pg_rewind = false),
            "rewind_impossible:switched_off",
        ),
        (theirs().silent_for(false, secs(9), Silence::NoAnswer), "hung"),
        (
            theirs().silent_for(false, secs(9), Silence::Slow),
            "not_answering",
        ),
        (theirs().unknown(secs(9)), "data_unreadable"),
        (theirs().starting(false, secs(9)), "starting"),
        (theirs().stopping(secs(9)), "stopping"),
        (
            theirs()
                .down(DbState::ShutDownInRecovery)
                .job(clone_of("a"), secs(1)),
            "cloning",
        ),
        (
            failed(theirs().stopped_replica(), clone_of("a"), disk()),
            "disk_full",
        ),
        (
            failed(
                theirs().stopped_replica(),
                clone_of("a"),
                Failure::Failed("x".into()),
            ),
            "clone_failed",
        ),
        (
            failed(
                theirs().stopped_replica(),
                Job::Rewind(at("a")),
                Failure::Failed("x".into()),
            ),
            "rewind_failed",
        ),
        (
            failed(theirs().stopped_replica(), start(), Failure::Failed("x".into())),
            "start_failed",
        ),
        (
            failed(
                theirs().stopped_replica(),
                start(),
                Failure::Configuration("x".into()),
            ),
            "configuration_refused",
        ),
        (
            view().running_replica(100).change(|v| v.watchdog_failed = true),
            "watchdog_failed",
        ),
        (
            view().running_replica(100).memory(|m| m.vetoed_at = Some(NOW)),
            "pre_promote_refused",
        ),
        (
            view()
                .leader("b")
                .hold_for(secs(20))
                .running_replica(100)
                .memory(|m| m.promote_failures = (1, NOW)),
            "promotion_failed",
        ),
    ];
    for (build, code) in cases {
        assert_eq!(of(&build).map(Reason::code), Some(code));
    }
}

#[test]
fn rewinding_needs_checksums_or_hints() {
    let diverged = theirs()
        .down(DbState::InProduction)
        .leader_on("a", 2)
        .change(|view| {
            if let crate::ha::Local::Down(down) = &mut view.local {
                (down.control.checksums, down.control.wal_log_hints) = (false, false);
            }
        });
    assert_eq!(of(&diverged), Some(Reason::ChecksumsOff));
}

#[test]
fn a_full_disk_is_not_filled_by_copies_and_costs_no_data() {
    let full = || Failure::DiskFull("No space left on device".into());
    // Three starts that failed lead to a copy, but not where there is no space for it.
    let starts = |failure| {
        let build = theirs().stopped_replica().leader_on("a", 1);
        failed(build, Job::Start(StartAs::Replica(None)), failure)
            .memory(|m| m.start_failures = (3, NOW.minus(secs(60))))
    };
    assert_eq!(
        starts(Failure::Failed("x".into())).plan().actions,
        [copy("a", true)]
    );
    assert!(matches!(
        starts(full()).plan().actions.as_slice(),
        [crate::ha::Action::Begin(Job::Start(_))]
    ));
    // A copy that found none is tried again after a minute.
    let copies = |ago| {
        let build = theirs()
            .replica_of("a", 100, false)
            .mine(3)
            .leader_on("a", 2)
            .dynamic(|d| d.use_pg_rewind = false);
        failed(build, clone_of("a"), full()).memory(|m| m.clone_failures = (1, NOW.minus(ago)))
    };
    waits(copies(secs(59)), "no space");
    assert_eq!(copies(secs(60)).plan().actions, [copy("a", true)]);
}
