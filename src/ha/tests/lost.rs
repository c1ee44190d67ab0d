//! The store has lost what it knew: who may lead then, and who has to wait.

use super::{
    builder::*,
    election::{LEAD, RESTART, race},
};
use crate::{
    ha::{Action, Job, StartAs},
    model::{DbState, MemberName, SyncKey, SyncKind},
};

#[test]
fn after_a_wipe_the_primary_registers_the_cluster_and_a_replica_never_does() {
    let wiped = || view().initialize(None).cluster(|c| c.history = None);
    check(
        wiped().running_primary(100).hold_for(secs(20)),
        &[Action::AcquireLock],
        KEEP,
        "taking it back",
    );
    check(
        wiped().crashed_primary().peers(&[]).unlocked_for(TTL),
        RESTART,
        KEEP,
        "nobody leads",
    );
    check(
        wiped().down(DbState::ShutDown).peers(&[]).unlocked_for(TTL),
        RESTART,
        KEEP,
        "nobody leads",
    );
    // Having seen a leader's name says nothing about our data.
    for seen in [None, Some(MemberName::from("a"))] {
        let replica = wiped().running_replica(100).memory(|m| m.last_leader = seen);
        waits(replica.clone().later(secs(1000)), "must not register one");
        check(
            replica.peers(&[]).request(None, Some("b")),
            &[LEAD[0].clone(), LEAD[1].clone(), Action::ClearFailover],
            KEEP,
            "named",
        );
    }
}

#[test]
fn after_a_wipe_a_replica_that_followed_the_lost_leader_takes_over() {
    let warm = race(None)
        .initialize(None)
        .cluster(|c| c.history = None)
        .optime(0)
        .memory(|m| m.lost.since = Some(NOW.minus(TTL)));
    check(warm.clone(), LEAD, KEEP, "nobody leads");
    waits(
        warm.clone().peers(&[("c", Some(primary_at(1)))]),
        "still running as primary",
    );
    let promoted = warm.leader("b").running_primary(100).hold_for(secs(9));
    let writes = promoted.plan().actions;
    assert!(
        matches!(writes.first(), Some(Action::WriteInitialize(_, None))),
        "{writes:?}"
    );
}

/// The turn that saw `a` lead, then one that finds this store without a leader; `c` answers, `a` does not.
fn lost(change: impl FnOnce(Build) -> Build) -> Build {
    let mut before = race(None)
        .leader("a")
        .optime(100)
        .replica_of("a", 100, true)
        .next();
    before.cluster.leader = None;
    before.cluster.members.retain(|member| member.name.0 != "a");
    change(before)
        .later(ms(10))
        .peers(&[("c", Some(replica_at(100)))])
}

/// The same some time after the first look at it.
fn lost_for(time: std::time::Duration, change: fn(Build) -> Build) -> Build {
    let looked = lost(change).next();
    looked.later(time).peers(&[("c", Some(replica_at(100)))])
}

#[test]
fn a_lock_that_was_lost_is_left_alone_until_its_holder_cannot_be_primary_any_more() {
    // Released, or run out: there is nothing to wait for.
    check(lost(|b| b), LEAD, KEEP, "nobody leads");
    let wiped: fn(Build) -> Build = |b| b.initialize(None).optime(0).cluster(|c| c.history = None);
    let older_copy: fn(Build) -> Build = |b| b.optime(99);
    for change in [wiped, older_copy] {
        waits(
            lost(change),
            "'a' may not know yet that it lost the lock: waiting 31 s",
        );
        waits(lost_for(secs(30) - ms(1), change), "may not know yet");
        check(lost_for(secs(30), change), LEAD, KEEP, "nobody leads");
        // A crashed primary from before that leader knows no more than a replica does.
        waits(lost(change).crashed_primary(), "may not know yet");
        // A person's will.
        let forced = lost(change).request(None, Some("b"));
        check(
            forced,
            &[LEAD[0].clone(), LEAD[1].clone(), Action::ClearFailover],
            KEEP,
            "named",
        );
        // Nobody but ourselves held it.
        let ours = lost(change).memory(|m| m.holder = Some("b".into()));
        check(ours.clone().crashed_primary(), RESTART, KEEP, "nobody leads");
        let running = ours.running_primary(100).hold_for(secs(20));
        check(running, &[Action::AcquireLock], KEEP, "taking it back");
        // A leader since then: that loss is over.
        let again = lost(change).next().leader("c").next();
        assert_eq!(again.view.memory.lost.since, None);
    }
}

#[test]
fn a_timeline_the_store_has_forgotten_was_led_on_all_the_same() {
    let wiped: fn(Build) -> Build = |b| b.initialize(None).optime(0).cluster(|c| c.history = None);
    let older_copy: fn(Build) -> Build = |b| b.timeline(1);
    for change in [wiped, older_copy] {
        // Seen without a leader, by a former primary that has just come up.
        let seen = view().timeline(2).crashed_primary().unlocked_for(TTL).next();
        let build = change(seen).later(TTL * 9).peers(&[]);
        waits(
            build.clone().next().later(TTL * 9).peers(&[]),
            "older than the cluster's 2",
        );
        let led = build
            .next()
            .initialize(Some(SYSTEM))
            .leader("a")
            .timeline(1)
            .next();
        assert_eq!(
            led.view.memory.lost.newest, None,
            "what has a leader is the cluster"
        );
    }
}

#[test]
fn who_was_away_when_the_store_was_lost_asks_everybody() {
    let wiped: fn(Build) -> Build = |b| b.initialize(None).optime(0).cluster(|c| c.history = None);
    let back = |away, answers: &[(&str, Option<crate::model::PeerStatus>)]| {
        let followed = view()
            .replica("a")
            .replica("c")
            .leader("a")
            .replica_of("a", 100, true)
            .next();
        let mut back = wiped(followed.later(away));
        back.cluster.leader = None;
        back.cluster.members.clear();
        back.peers(answers).next().later(TTL).peers(answers)
    };
    let all = |a, c| [("a", Some(replica_at(a))), ("c", Some(replica_at(c)))];
    let leads = |build: Build| build.plan().actions.first() == Some(&Action::AcquireLock);
    assert!(leads(back(TTL, &all(100, 99))));
    waits(back(TTL, &all(101, 99)), "'a' is ahead");
    let c_only = [("a", None), ("c", Some(replica_at(99)))];
    waits(
        back(TTL, &c_only),
        "'a', which may have led since, has not said how far it is",
    );
    let replaying = [
        ("a", Some(still_replaying(replica_at(1)))),
        ("c", Some(replica_at(1))),
    ];
    waits(
        back(TTL, &replaying),
        "'a' still replays the WAL it was started with",
    );
    let on_2 = [
        ("a", Some(on_timeline(2, replica_at(1)))),
        ("c", Some(replica_at(1))),
    ];
    waits(
        back(TTL, &on_2)
            .unlocked_for(TTL * 9)
            .memory(|m| m.lost.away = true),
        "'a' is ahead",
    );
    // It saw the end.
    assert!(leads(back(TTL - ms(1), &c_only)));
}

#[test]
fn after_a_wipe_a_former_primary_never_passes_by_a_later_timeline() {
    let former = view()
        .initialize(None)
        .cluster(|c| c.history = None)
        .crashed_primary();
    let c = |timeline| Some(on_timeline(timeline, replica_at(1)));
    let late = |answer| {
        former
            .clone()
            .replica("c")
            .unlocked_for(TTL * 9)
            .peers(&[("c", answer)])
    };
    let take_part = [Action::Begin(Job::Start(StartAs::Replica(None)))];
    check(
        late(c(2)),
        &take_part,
        DROP,
        "'c' is on timeline 2, we are on 1: starting as a replica",
    );
    let excluded = c(2).map(|peer| tagged("nofailover", true.into(), peer));
    check(late(excluded), &take_part, DROP, "'c' is on timeline 2");
    check(late(c(1)), RESTART, KEEP, "nobody leads");
    check(late(None), RESTART, KEEP, "nobody leads");
    // The store knows how far the cluster has come: whoever does not lead has reasons of its own.
    let known = view().crashed_primary().replica("c").unlocked_for(TTL * 9);
    check(known.peers(&[("c", c(2))]), RESTART, KEEP, "nobody leads");
}

#[test]
fn what_a_wiped_store_had_promised_still_holds() {
    let wiped: fn(Build) -> Build = |b| b.initialize(None).optime(0).cluster(|c| c.history = None);
    let after = |standby: &str| {
        let sync = SyncKey {
            leader: Some("a".into()),
            standbys: vec![standby.into()],
            ..SyncKey::default()
        };
        let before = race(None)
            .dynamic(|dynamic| dynamic.sync.kind = SyncKind::On)
            .leader("a")
            .cluster(|c| c.sync = sync)
            .replica_of("a", 100, true)
            .next();
        let mut gone = wiped(before);
        gone.cluster.leader = None;
        gone.cluster.members.retain(|member| member.name.0 != "a");
        gone.cluster.sync = SyncKey::default();
        gone.peers(&[("c", Some(replica_at(100)))]).next().later(TTL)
    };
    let ahead = after("c")
        .running_replica(100)
        .peers(&[("c", Some(replica_at(101)))]);
    waits(ahead, "not a synchronous standby: only 'a', 'c'");
    let plan = after("b")
        .running_replica(100)
        .peers(&[("c", Some(replica_at(100)))])
        .plan();
    assert_eq!(
        plan.actions.first(),
        Some(&Action::AcquireLock),
        "{}",
        plan.because
    );
}

#[test]
fn a_former_primary_waits_for_whoever_held_the_lock_since() {
    let former = || {
        race(None)
            .crashed_primary()
            .memory(|m| m.holder = Some("a".into()))
    };
    waits(
        former(),
        "'a' has held the lock since this member was primary, waiting 31 s",
    );
    check(former().unlocked_for(TTL), RESTART, KEEP, "nobody leads");
    check(
        former().memory(|m| m.holder = Some("b".into())),
        RESTART,
        KEEP,
        "nobody leads",
    );
}

#[test]
fn after_a_wipe_the_first_former_primary_to_boot_is_not_alone_in_the_world() {
    let wiped = || {
        let former = view()
            .initialize(None)
            .cluster(|c| c.history = None)
            .crashed_primary();
        former.replica("c").peers(&[("c", None)])
    };
    waits(wiped(), "another member may have newer data");
    // Their keys went with the rest.
    let mut alone = wiped();
    alone.cluster.members.clear();
    waits(alone, "another member may have newer data");
    waits(
        wiped().unlocked_for(secs(29)),
        "another member may have newer data",
    );
    check(wiped().unlocked_for(secs(30)), RESTART, KEEP, "nobody leads");
    let newer = |b: Build| b.peers(&[("c", Some(on_timeline(2, replica_at(1))))]);
    assert!(
        newer(wiped().unlocked_for(secs(30)))
            .plan()
            .because
            .contains("on timeline 2")
    );
    // What we have just made ourselves is the newest there is.
    check(
        wiped().finished(Job::Bootstrap, true),
        RESTART,
        KEEP,
        "nobody leads",
    );
}
