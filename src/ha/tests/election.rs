//! Nobody holds the lock, and nobody asked for anything.

use super::builder::*;
use crate::{
    ha::{Action, DemoteMode, Job, Local, Silence, StartAs, failsafe::Promise},
    model::{DbState, Lsn, SystemId, Timeline, Version},
};

pub(super) const LEAD: &[Action] = &[Action::AcquireLock, Action::Begin(Job::Promote)];
pub(super) const RESTART: &[Action] = &[Action::AcquireLock, Action::Begin(Job::Start(StartAs::Primary))];
const MB: u64 = 1 << 20;

/// `b` and `c` are replicas of `a`, which is gone; `c` answered.
pub(super) fn race(answer: Option<crate::model::PeerStatus>) -> Build {
    view()
        .replica("c")
        .running_replica(100)
        .optime(100)
        .seen("a")
        .peers(&[("c", answer)])
}

#[test]
fn asks_the_others_before_it_decides_also_those_whose_key_vanished() {
    let build = race(None)
        .change(|view| view.peers = None)
        .memory(|m| m.last_members = vec![("a".into(), "http://a:8008/patroni".into())]);
    check(build, &[probe_also(&["c"], &["a"])], DROP, "asking");
}

#[test]
fn answers_that_are_old_or_incomplete_are_asked_for_again() {
    let old = race(None).later(ms(1001));
    check(old, &[probe(&["c"])], DROP, "asking");
    let incomplete = race(None).replica("d");
    check(incomplete, &[probe(&["c", "d"])], DROP, "asking");
}

#[test]
fn the_healthiest_replica_leads() {
    for answer in [None, Some(replica_at(99)), Some(replica_at(100))] {
        check(race(answer), LEAD, KEEP, "nobody leads");
    }
    check(
        race(Some(on_timeline(0, replica_at(100)))),
        LEAD,
        KEEP,
        "nobody leads",
    );
}

#[test]
fn a_member_behind_another_waits() {
    waits(race(Some(replica_at(101))), "'c' is ahead");
    waits(race(Some(on_timeline(2, replica_at(1)))), "'c' is on timeline 2");
    waits(race(Some(primary_at(50))), "still running as primary");
    assert!(race(Some(replica_at(101))).plan().again_in.is_some());
}

#[test]
fn members_that_cannot_lead_do_not_hold_up_the_election() {
    let behind = replica_at(200);
    let watchdog = crate::model::PeerStatus {
        watchdog_failed: true,
        ..behind.clone()
    };
    for answer in [
        tagged("nofailover", true.into(), behind.clone()),
        tagged("failover_priority", 0.into(), behind.clone()),
        watchdog,
        // More bytes on an older timeline are not more.
        on_timeline(1, behind),
    ] {
        let build = race(Some(answer)).timeline(2).mine(2);
        check(build, LEAD, KEEP, "nobody leads");
    }
}

#[test]
fn priority_decides_between_equals_unless_the_other_led_last() {
    let preferred = |position| tagged("failover_priority", 2.into(), replica_at(position));
    waits(race(Some(preferred(100))), "higher failover_priority");
    check(race(Some(preferred(99))), LEAD, KEEP, "nobody leads");
    check(race(Some(preferred(100))).seen("c"), LEAD, KEEP, "nobody leads");
    check(
        race(Some(preferred(100))).tag("failover_priority", 3),
        LEAD,
        KEEP,
        "nobody leads",
    );
}

#[test]
fn never_two_members_wait_for_each_other() {
    // For every pair of healthy replicas at least one may lead.
    let positions = [90, 100];
    let priorities = [1, 2];
    for (mine, theirs) in positions.iter().flat_map(|p| positions.map(|q| (*p, q))) {
        for (prio, their_prio) in priorities.iter().flat_map(|p| priorities.map(|q| (*p, q))) {
            for (tl, their_tl) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
                let side = |me, pos, prio: i32, tl, other, opos, oprio: i32, otl| {
                    let answer = tagged(
                        "failover_priority",
                        oprio.into(),
                        on_timeline(otl, replica_at(opos)),
                    );
                    view()
                        .me(me)
                        .replica(other)
                        .running_replica(pos)
                        .mine(tl)
                        .timeline(tl.min(otl))
                        .optime(100)
                        .seen("a")
                        .tag("failover_priority", prio)
                        .peers(&[(other, Some(answer))])
                        .plan()
                };
                let b = side("b", mine, prio, tl, "c", theirs, their_prio, their_tl);
                let c = side("c", theirs, their_prio, their_tl, "b", mine, prio, tl);
                assert!(
                    b.actions == LEAD || c.actions == LEAD,
                    "b: {} c: {}",
                    b.because,
                    c.because
                );
            }
        }
    }
}

#[test]
fn a_member_far_behind_the_last_leader_does_not_lead() {
    check(race(None).optime(100 + MB), LEAD, KEEP, "nobody leads");
    waits(race(None).optime(101 + MB), "more than maximum_lag_on_failover");
    // Timeline 1 ended at 1000: what we have beyond that is nothing the cluster ever had.
    let beyond = race(None).running_replica(5000).timeline(2).optime(1001 + MB);
    waits(
        beyond.clone(),
        "1048577 bytes behind the last known leader position",
    );
    check(beyond.optime(1000 + MB), LEAD, KEEP, "nobody leads");
}

#[test]
fn an_older_timeline_leads_only_if_it_followed_a_leader_and_check_timeline_is_off() {
    let behind = race(None).timeline(2);
    check(behind.clone(), LEAD, KEEP, "nobody leads");
    waits(
        behind.clone().dynamic(|d| d.check_timeline = true),
        "older than the cluster's",
    );
    waits(behind.memory(|m| m.followed = false), "older than the cluster's");
}

#[test]
fn pause_and_tags_keep_a_replica_from_leading() {
    waits(race(None).dynamic(|d| d.pause = true), "nobody is promoted");
    waits(race(None).tag("nofailover", true), "nofailover");
    waits(race(None).initialize(Some("")), "bootstrapping");
}

#[test]
fn after_handing_over_the_lock_is_left_to_others_for_a_while_but_not_for_ever() {
    let gave = race(None).memory(|m| m.handed_over_at = Some(NOW.minus(ms(4900))));
    waits(gave.clone(), "leaving it to others");
    check(
        gave.later(ms(200)).peers(&[("c", None)]),
        LEAD,
        KEEP,
        "nobody leads",
    );
}

// --- cold start: nobody has led since our agent started

fn cold(since: u64) -> Build {
    race(None)
        .memory(|m| m.followed = false)
        .unlocked_for(secs(since))
}

#[test]
fn a_cold_start_waits_for_missing_members_and_newer_data_within_ttl() {
    check(cold(1).slots(&["b", "c"]), LEAD, KEEP, "nobody leads");
    waits(
        cold(1).slots(&["b", "c", "d"]),
        "'d' may have newer data, waiting 30 s",
    );
    waits(cold(1).optime(101), "1 bytes behind");
    check(
        cold(30).slots(&["b", "c", "d"]).optime(101),
        LEAD,
        KEEP,
        "nobody leads",
    );
    waits(cold(31).optime(101 + MB), "maximum_lag_on_failover");
}

#[test]
fn slot_names_of_odd_member_names_are_recognized() {
    let build = cold(1).replica("Pg-1").slots(&["pg_1"]);
    check(
        build.peers(&[("Pg-1", None), ("c", None)]),
        LEAD,
        KEEP,
        "nobody leads",
    );
}

#[test]
fn a_former_primary_of_the_clusters_timeline_leads_at_once() {
    let base = || {
        view()
            .replica("c")
            .slots(&["d"])
            .unlocked_for(secs(1))
            .peers(&[("c", Some(replica_at(400)))])
    };
    for build in [
        base().crashed_primary().optime(9 * MB),
        base().clean_primary(510).optime(505),
        base().down(DbState::ShutDown).optime(505),
        base().down(DbState::ShuttingDown),
        base().down(DbState::InCrashRecovery),
    ] {
        check(build, RESTART, KEEP, "nobody leads");
    }
}

#[test]
fn a_former_primary_of_an_older_timeline_never_leads() {
    for check_timeline in [false, true] {
        for build in [view().crashed_primary(), view().clean_primary(510)] {
            let stale = build
                .timeline(2)
                .seen("a")
                .dynamic(|d| d.check_timeline = check_timeline);
            for wait in [0, 60, 100_000] {
                waits(stale.clone().later(secs(wait)), "older than the cluster's 2");
            }
        }
    }
}

#[test]
fn a_primary_that_died_right_after_its_promotion_is_on_the_new_timeline() {
    let build = view().crashed_primary().timeline(2).change(|view| {
        if let Local::Down(down) = &mut view.local {
            down.control.min_recovery_end = Lsn(600);
            down.control.min_recovery_timeline = Timeline(2);
        }
    });
    check(build.clone().peers(&[]), RESTART, KEEP, "nobody leads");
    check(
        build.leader("b").hold_for(secs(20)),
        &[Action::Begin(Job::Start(StartAs::Primary))],
        KEEP,
        "as primary again",
    );
}

#[test]
fn a_former_primary_gives_way_to_a_running_primary_and_to_a_later_timeline() {
    let base = || view().replica("c").crashed_primary();
    waits(
        base().peers(&[("c", Some(primary_at(1)))]),
        "still running as primary",
    );
    waits(
        base().peers(&[("c", Some(on_timeline(2, replica_at(1))))]),
        "on timeline 2",
    );
    waits(base().tag("nofailover", true), "nofailover");
    waits(
        base().memory(|m| m.start_failures = (2, NOW)),
        "last start failed",
    );
}

#[test]
fn a_cleanly_stopped_primary_knows_where_it_ends_and_is_measured_by_it() {
    let clean = |end| view().replica("c").clean_primary(end).seen("b");
    let c_at = |position| [("c", Some(replica_at(position)))];
    check(
        clean(510).optime(510).peers(&c_at(510)),
        RESTART,
        KEEP,
        "nobody leads",
    );
    waits(
        clean(510).optime(511 + MB).peers(&c_at(1)),
        "maximum_lag_on_failover",
    );
    waits(clean(510).optime(510).peers(&c_at(511)), "'c' is ahead");
    let cold = clean(510)
        .memory(|m| m.followed = false)
        .optime(511)
        .peers(&c_at(1));
    waits(cold, "1 bytes behind");
}

#[test]
fn a_member_that_objects_and_does_not_lead_is_not_waited_for_for_ever() {
    let cold = on_timeline(2, replica_at(50));
    let preferred = tagged("failover_priority", 2.into(), replica_at(100));
    for answer in [replica_at(101), cold, preferred] {
        let blocked = |time| race(Some(answer.clone())).unlocked_for(time);
        assert_eq!(blocked(secs(59)).plan().actions, []);
        check(blocked(secs(60)), LEAD, KEEP, "nobody leads");
        // Its key has gone too: it does not reach the DCS.
        let gone = |time| blocked(time).cluster(|c| c.members.retain(|m| m.name != "c".into()));
        assert_eq!(gone(secs(29)).plan().actions, []);
        check(gone(secs(30)), LEAD, KEEP, "nobody leads");
    }
    // A primary is another matter.
    waits(
        race(Some(primary_at(50))).unlocked_for(secs(9000)),
        "still running as primary",
    );
}

#[test]
fn seeing_a_leader_is_not_following_it() {
    let seen = view().leader("a").replica_of("a", 100, false).next();
    assert_eq!(seen.view.memory.last_leader, Some("a".into()));
    assert!(!seen.view.memory.followed);
    assert!(
        view()
            .leader("a")
            .replica_of("a", 100, true)
            .next()
            .view
            .memory
            .followed
    );
    assert!(
        view()
            .leader("b")
            .running_primary(100)
            .hold_for(secs(9))
            .next()
            .view
            .memory
            .followed
    );
    let alone = seen.cluster(|c| c.leader = None).timeline(2).running_replica(100);
    waits(alone, "older than the cluster's");
}

#[test]
fn people_make_slots_too_and_nobody_waits_for_those() {
    let with = |optime, name: Option<&str>| {
        cold(1).slots(&["b", "c"]).optime(100).cluster(|c| {
            let slots = [("d".to_owned(), Lsn(optime)), ("logical".to_owned(), Lsn(7))];
            c.status.slots = Some(slots.into());
            c.history = Some(name.map_or_else(Vec::new, |name| {
                let row = history(2).remove(0);
                vec![crate::model::HistoryRow {
                    new_leader: Some(name.into()),
                    ..row
                }]
            }));
        })
    };
    check(with(7, None), LEAD, KEEP, "nobody leads");
    // The last leader has a slot of its own name.
    waits(with(100, None), "'d' may have newer data");
    waits(with(7, Some("d")).mine(2), "'d' may have newer data");
    check(with(100, Some("c")).mine(2), LEAD, KEEP, "nobody leads");
}

#[test]
fn patience_after_a_cold_start_begins_when_the_lock_is_seen_free() {
    let first = cold(0).memory(|m| m.unlocked_since = None).slots(&["d"]);
    let waited = first.next().later(secs(29)).peers(&[("c", None)]);
    waits(waited.clone(), "waiting 2 s");
    check(
        waited.later(secs(1)).peers(&[("c", None)]),
        LEAD,
        KEEP,
        "nobody leads",
    );
}

#[test]
fn existing_data_outlives_a_bootstrap_that_nobody_finishes() {
    let stuck = |waited: u64| {
        view()
            .crashed_primary()
            .initialize(Some(""))
            .memory(|m| m.unlocked_since = Some(NOW.minus(secs(waited))))
    };
    waits(stuck(30), "bootstrapping");
    for build in [
        stuck(31),
        stuck(31).running_replica(100),
        stuck(31).running_replica(100).replica("c"),
        stuck(31).running_primary(100),
    ] {
        let abandon = [Action::AbandonInitialize(Version(1))];
        check(build, &abandon, DROP, "starting over");
    }
}

#[test]
fn what_a_dead_bootstrap_left_running_does_not_lead() {
    let half = view().running_primary(100).initialize(Some(""));
    let stop = [demote(DemoteMode::ImmediateNoLock, NOW + secs(3))];
    check(half.clone(), &stop, DROP, "has not finished");
    waits(half.hold_for(secs(5)), "has not finished");
}

#[test]
fn a_replica_that_hangs_or_has_too_small_settings_is_restarted_to_take_part() {
    let hangs = view().silent_for(false, secs(60), crate::ha::Silence::NoAnswer);
    check(hangs, &[Action::Begin(Job::Restart)], DROP, "restarting");
    let paused = race(None).change(pause_replay);
    check(paused, &[Action::Begin(Job::Restart)], DROP, "larger settings");
}

// --- a running primary without the lock

#[test]
fn a_primary_whose_lock_vanished_takes_it_back() {
    for build in [
        view().running_primary(100).hold_for(secs(10)),
        view().running_primary(100),
        view().running_primary(100).hold_expired(secs(5)),
        view().running_primary(100).mine(3).timeline(2),
    ] {
        assert!(build.plan().again_in.is_some());
        check(build, &[Action::AcquireLock], KEEP, "taking it back");
    }
}

#[test]
fn a_primary_the_cluster_has_left_behind_stops() {
    check(
        view().running_primary(100).timeline(2),
        &[demote(DemoteMode::ImmediateNoLock, NOW + secs(3))],
        DROP,
        "later timeline",
    );
}

fn promised_to(name: &str, build: Build) -> Build {
    build.change(|view| {
        view.failsafe.promise = Some(Promise {
            to: name.into(),
            until: NOW + secs(9),
        });
    })
}

/// Answers and positions count however long the lock was free while nobody could have taken it.
#[test]
fn time_in_which_nobody_could_lead_makes_no_member_unheard() {
    let behind = || race(Some(replica_at(101)));
    let long = behind().unlocked_for(secs(900));
    check(long.clone(), LEAD, KEEP, "nobody leads");
    // Bound by a promise all that time, then free.
    let bound = promised_to("a", long.clone());
    let freed = bound.next().change(|view| view.failsafe.promise = None);
    waits(freed, "'c' is ahead");
    // Paused all that time.
    let resumed = long.clone().memory(|memory| memory.paused = true);
    waits(resumed, "'c' is ahead");
    // Blind all that time.
    let seen_again = long.dcs_down_for(secs(900)).next().dcs_is_back();
    waits(seen_again, "'c' is ahead");
}

#[test]
fn a_forced_failover_makes_no_second_primary() {
    let forced = |answer| race(answer).request(None, Some("b"));
    waits(forced(Some(primary_at(1))), "still running as primary");
    check(
        forced(Some(replica_at(999))),
        &[
            Action::AcquireLock,
            Action::Begin(Job::Promote),
            Action::ClearFailover,
        ],
        KEEP,
        "named",
    );
}

#[test]
fn a_silent_postgres_is_stopped_when_it_may_write_without_a_lease() {
    check(
        view().silent(true),
        &[demote(DemoteMode::ImmediateNoLock, NOW + secs(3))],
        DROP,
        "does not answer",
    );
    waits(view().silent(false), "does not answer");
    // Within its time it is slow, not gone; for ever silent it is gone.
    let held = |why, time| view().silent_for(true, time, why).hold_for(secs(5));
    let slow = held(Silence::Slow, secs(9000));
    check(slow.clone(), &[Action::AcquireLock], KEEP, "taking it back");
    waits(promised_to("c", slow), "does not answer");
    waits(held(Silence::NoAnswer, secs(9000)), "does not answer");
}

// --- identity

#[test]
fn foreign_data_stops_the_member_and_names_both_identifiers() {
    let foreign = |build: Build| {
        build.change(|view| match &mut view.local {
            Local::Running(running) => running.system_id = Some(SystemId("7999999999".into())),
            Local::Down(down) => down.control.system_id = SystemId("7999999999".into()),
            _ => {}
        })
    };
    for build in [view().running_primary(1), view().running_replica(1)] {
        // Not left to the end of the process: it may be writing.
        let stop = [demote(DemoteMode::ImmediateNoLock, NOW + secs(3))];
        check(foreign(build), &stop, DROP, SYSTEM);
    }
    for build in [view().crashed_primary(), view().stopped_replica().leader("a")] {
        let exit = [Action::Exit(crate::exit::Exit::ForeignData)];
        check(foreign(build.clone()), &exit, DROP, "7999999999");
        check(foreign(build), &exit, DROP, SYSTEM);
    }
    // An identifier that is none proves nothing.
    assert_ne!(
        foreign(view().crashed_primary())
            .initialize(Some("junk"))
            .plan()
            .actions,
        [Action::Exit(crate::exit::Exit::ForeignData)]
    );
}
