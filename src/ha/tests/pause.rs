//! A paused cluster (HA rules §19 and the rows on pause elsewhere).

use super::builder::*;
use crate::{
    ha::{Action, DemoteMode, Job, Local, Shutdown, StartAs},
    model::SystemId,
};

fn paused(build: Build) -> Build {
    build.dynamic(|dynamic| dynamic.pause = true)
}

fn stranger(build: Build) -> Build {
    build.change(|view| {
        if let Local::Running(running) = &mut view.local {
            running.system_id = Some(SystemId("7999999999999999999".into()));
        }
    })
}

#[test]
fn a_primary_goes_on_whoever_has_the_lock_and_takes_a_free_one() {
    let primary = || paused(view().replica("c").running_primary(100));
    check(
        primary().leader("b").hold_for(secs(9)),
        &[Action::LeaderDuties],
        KEEP,
        "PAUSE: the leader",
    );
    check(
        primary().leader("b").hold_expired(secs(60)),
        &[Action::RenewLock],
        KEEP,
        "making sure",
    );
    check(primary().leader("b"), &[Action::RenewLock], KEEP, "making sure");
    waits(
        primary().leader("a"),
        "PAUSE: going on as primary without the lock, which 'a' holds",
    );
    check(primary(), &[Action::AcquireLock], KEEP, "taking it");
    check(
        primary().initialize(None),
        &[Action::AcquireLock],
        KEEP,
        "taking it",
    );
    waits(primary().initialize(Some("")), "bootstrap has not finished");
    // On an older timeline too: a person sorts it out.
    check(
        primary().timeline(3).leader("b").hold_for(secs(9)),
        &[Action::LeaderDuties],
        KEEP,
        "the leader",
    );
}

#[test]
fn data_of_another_cluster_leaves_the_lock_alone_and_runs_on() {
    let primary = || paused(stranger(view().running_primary(100)));
    waits(primary(), "system identifier mismatch");
    waits(primary().leader("a"), "system identifier mismatch");
    check(
        primary().leader("b").hold_for(secs(9)),
        &[Action::ReleaseLock(None)],
        DROP,
        "system identifier mismatch",
    );
}

#[test]
fn without_the_dcs_nothing_is_stopped_or_started() {
    for build in [
        view().running_primary(100).hold_expired(secs(600)),
        view().running_primary(100),
        view().silent(true),
        view().crashed_primary().seen("b"),
        view().running_replica(100),
    ] {
        waits(
            paused(build.dcs_down_for(secs(60))),
            "PAUSE: the DCS has not answered",
        );
    }
    let held = paused(
        view()
            .running_primary(100)
            .hold_for(secs(9))
            .dcs_down_for(secs(3)),
    );
    check(held, &[], KEEP, "going on as primary");
}

#[test]
fn what_is_down_stays_down_and_leaves_the_lock() {
    for build in [
        view().crashed_primary(),
        view().stopped_replica(),
        view().clean_primary(510),
    ] {
        waits(paused(build.clone()), "left so");
        waits(paused(build.clone().leader("a")), "left so");
        let ours = paused(build.clone().leader("b").hold_for(secs(9)));
        assert!(matches!(ours.plan().actions.as_slice(), [Action::ReleaseLock(_)]));
    }
    let clean = paused(view().clean_primary(510).leader("b").hold_for(secs(9)));
    check(
        clean,
        &[Action::ReleaseLock(Some(crate::model::Lsn(510)))],
        DROP,
        "giving the lock back",
    );
    waits(
        paused(view().local(Local::Empty).leader("a")),
        "nothing is bootstrapped or copied",
    );
    waits(
        paused(view().local(Local::Empty).initialize(None)),
        "nothing is bootstrapped",
    );
    waits(paused(view().starting(true, secs(900))), "postgres is starting");
}

#[test]
fn a_replica_is_promoted_for_nobody_but_a_person() {
    let replica = || paused(view().replica("c").replica_of("a", 100, false).seen("a"));
    waits(replica(), "nobody is promoted");
    waits(
        replica().request(Some("a"), Some("c")),
        "another is to be promoted",
    );
    waits(replica().request(Some("a"), None), "nobody is promoted");
    waits(
        replica().request(None, Some("b")).scheduled(-1),
        "nobody is promoted",
    );
    let lead = [
        Action::AcquireLock,
        Action::Begin(Job::Promote),
        Action::ClearFailover,
    ];
    let named = replica().request(None, Some("b"));
    check(named.clone(), &[probe(&["c"])], DROP, "asking");
    let answered = named.peers(&[("c", Some(replica_at(100)))]);
    check(answered.clone(), &lead, KEEP, "named");
    waits(
        answered.peers(&[("c", Some(primary_at(1)))]),
        "still running as primary",
    );
    let holds = || replica().leader("b").hold_for(secs(9));
    check(holds(), &[Action::ReleaseLock(None)], DROP, "nobody is promoted");
    check(
        holds().request(None, Some("b")),
        &[Action::Begin(Job::Promote), Action::ClearFailover],
        KEEP,
        "promoting",
    );
}

#[test]
fn a_replica_follows_a_new_leader_as_far_as_a_reload_goes() {
    let replica = |of| {
        paused(
            view()
                .leader("c")
                .replica("a")
                .replica_of(of, 100, false)
                .seen("a"),
        )
    };
    check(
        replica("a"),
        &[Action::Follow(Some(at("c")))],
        DROP,
        "following 'c'",
    );
    waits(replica("c").leader_on("c", 1), "a replica of 'c'");
    // It has parted: a rewind waits for the end of the pause.
    waits(
        replica("a").timeline(2).mine(1).replica_of("a", 5000, false),
        "a replica of 'c'",
    );
    waits(replica("c").change(pause_replay), "a replica of 'c'");
}

#[test]
fn a_named_hand_over_is_carried_out_to_its_end() {
    let leader = || {
        paused(
            view()
                .leader("b")
                .replica("c")
                .running_primary(100)
                .hold_for(secs(9)),
        )
        .peers(&[("c", Some(replica_at(100)))])
    };
    let stop = [demote(DemoteMode::Graceful, NOW + secs(60))];
    check(
        leader().request(Some("b"), Some("c")),
        &stop,
        KEEP,
        "switchover to 'c'",
    );
    check(
        leader().request(Some("b"), None),
        &[Action::ClearFailover],
        KEEP,
        "needs a candidate",
    );
    check(
        leader().request(Some("b"), Some("c")).scheduled(-1),
        &[Action::LeaderDuties],
        KEEP,
        "the leader",
    );
    let graceful = Job::Demote {
        mode: DemoteMode::Graceful,
        deadline: NOW,
    };
    let stopped = paused(view().leader("c").clean_primary(510))
        .finished(graceful, true)
        .next();
    check(
        stopped.clone().leader_on("c", 1),
        &[Action::Begin(Job::Start(StartAs::Replica(Some(at("c")))))],
        DROP,
        "following leader 'c'",
    );
    // It was started, and stopped by a person later.
    let later = stopped
        .clone()
        .replica_of("c", 100, true)
        .next()
        .clean_primary(510);
    waits(later, "left so");
}

#[test]
fn who_handed_over_to_nobody_goes_on() {
    let graceful = Job::Demote {
        mode: DemoteMode::Graceful,
        deadline: NOW,
    };
    let left = paused(view().replica("c").clean_primary(510).seen("b"))
        .request(Some("b"), Some("c"))
        .finished(graceful, true)
        .next()
        .later(secs(6));
    check(
        left.peers(&[("c", None)]),
        &[
            Action::AcquireLock,
            Action::Begin(Job::Start(StartAs::Primary)),
            Action::ClearFailover,
        ],
        KEEP,
        "nobody leads",
    );
}

#[test]
fn a_restart_somebody_asked_for_needs_no_lock() {
    let restart = |build: Build| paused(build.running_primary(100).job(Job::Restart, secs(900)));
    check(restart(view().leader("a")), &[], DROP, "restart is running");
    check(
        restart(view().leader("b").hold_for(secs(9))),
        &[],
        KEEP,
        "restart is running",
    );
    let promotion = paused(view().leader("a").running_replica(100).job(Job::Promote, secs(1)));
    check(promotion, &[Action::CancelJob], DROP, "needs the lock");
}

#[test]
fn an_orderly_stop_leaves_postgres_running_where_it_can() {
    let asked = |how| paused(view().leader("b").running_primary(100).hold_for(secs(9))).shutdown(how);
    let free = asked(Shutdown::HandOver).change(|view| view.contained = false);
    check(
        free,
        &[Action::Exit(crate::exit::Exit::Ok)],
        DROP,
        "left as it is",
    );
    check(
        asked(Shutdown::HandOver),
        &[demote(DemoteMode::Offline, NOW + secs(8))],
        KEEP,
        "asked to stop",
    );
    check(
        asked(Shutdown::Fast).change(|view| view.contained = false),
        &[demote(DemoteMode::Fast, NOW + secs(8))],
        KEEP,
        "asked to stop",
    );
}

#[test]
fn resuming_looks_at_identity_and_timeline_before_anything_else() {
    let resumed = |build: Build| paused(build).next().dynamic(|d| d.pause = false);
    let stop = [demote(DemoteMode::ImmediateNoLock, NOW + secs(3))];
    check(
        resumed(stranger(view().leader("a").running_primary(100))),
        &stop,
        DROP,
        "system identifier mismatch",
    );
    let older = view()
        .leader("b")
        .timeline(3)
        .running_primary(100)
        .hold_for(secs(9));
    let older = resumed(older.request(Some("b"), Some("c")));
    assert!(
        matches!(
            older.plan().actions.as_slice(),
            [Action::Begin(Job::Demote { .. })]
        ),
        "{:?}",
        older.plan()
    );
    assert!(older.plan().because.contains("later timeline"));
    // What was tried and given up during or before the pause is tried again.
    let tried = view().leader("a").replica_of("a", 100, false).memory(|m| {
        m.clones = (1, NOW);
        m.rewinds = 2;
        m.compared_with = Some(("a".into(), crate::model::Timeline(1)));
    });
    let memory = resumed(tried).plan().memory.expect("remembers");
    assert_eq!(
        (memory.clones.0, memory.rewinds, memory.compared_with),
        (0, 0, None)
    );
}
