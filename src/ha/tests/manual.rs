//! Switchover and failover on request, seen by the leader (HA rules §6.1, §6.2) and without one (§6.3).

use super::builder::*;
use crate::{
    ha::{Action, DemoteMode, Job, StartAs},
    model::PeerStatus,
};

const LEAD: &[Action] = &[
    Action::AcquireLock,
    Action::Begin(Job::Promote),
    Action::ClearFailover,
];

// --- without a leader

fn orphan(answer: Option<PeerStatus>) -> Build {
    view()
        .replica("c")
        .running_replica(100)
        .optime(100)
        .seen("a")
        .peers(&[("c", answer)])
}

#[test]
fn the_named_candidate_leads_without_further_checks() {
    for leader in [None, Some("a")] {
        let build = orphan(Some(replica_at(500)))
            .request(leader, Some("b"))
            .optime(1 << 40)
            .timeline(2);
        check(build.clone(), LEAD, KEEP, "named as the candidate");
        check(build.clone().dynamic(|d| d.pause = true), LEAD, KEEP, "named");
        let gave = build.memory(|m| m.handed_over_at = Some(NOW));
        check(gave, LEAD, KEEP, "named");
    }
    waits(
        orphan(None).request(None, Some("b")).tag("nofailover", true),
        "nofailover",
    );
}

#[test]
fn a_candidate_that_has_just_come_up_does_not_lead_with_old_data_by_a_forgotten_switchover() {
    let cold = |leader| {
        orphan(None)
            .request(leader, Some("b"))
            .memory(|m| m.followed = false)
            .timeline(2)
    };
    waits(cold(Some("a")), "older than the cluster's");
    // A failover names no leader: somebody wants exactly this member.
    check(cold(None), LEAD, KEEP, "named");
    // The last leader may still come up with more.
    waits(cold(Some("a")).mine(2), "'x' may have newer data");
    check(
        cold(Some("a")).mine(2).unlocked_for(secs(30)),
        LEAD,
        KEEP,
        "named",
    );
}

#[test]
fn a_failover_to_a_former_primary_with_older_data_begins_a_timeline_of_its_own() {
    let former = |leader| {
        orphan(None)
            .clean_primary(510)
            .timeline(2)
            .peers(&[("c", None)])
            .request(leader, Some("b"))
    };
    // Started as a primary it would write on where the cluster has long been, and be stopped for it at once.
    check(
        former(None),
        &[Action::Begin(Job::Start(StartAs::Replica(None)))],
        DROP,
        "starting as a replica, to be promoted",
    );
    waits(former(Some("a")), "older than the cluster's");
    let running = orphan(None).timeline(2).request(None, Some("b"));
    check(running.clone(), LEAD, KEEP, "named");
    let holds = running
        .leader("b")
        .hold_for(secs(20))
        .memory(|m| m.followed = false);
    check(holds, &LEAD[1..], KEEP, "promoting");
}

#[test]
fn others_wait_for_the_named_candidate_while_it_can_lead_but_not_for_ever() {
    let named = |answer| orphan(answer).request(Some("a"), Some("c"));
    waits(named(Some(replica_at(100))), "waiting for it");
    for answer in [
        None,
        Some(primary_at(50)).filter(|_| false),
        Some(tagged("nofailover", true.into(), replica_at(100))),
    ] {
        check(named(answer), LEAD, KEEP, "nobody leads");
    }
    let since = |ago| named(Some(replica_at(100))).memory(|m| m.unlocked_since = Some(NOW.minus(ago)));
    waits(since(secs(29)), "waiting for it");
    check(since(secs(30)), LEAD, KEEP, "nobody leads");
}

#[test]
fn the_leader_that_handed_over_waits_for_any_other_but_not_for_ever() {
    let former = |ago: u64| {
        view()
            .replica("c")
            .clean_primary(510)
            .request(Some("b"), None)
            .peers(&[("c", Some(replica_at(500)))])
            .memory(|m| m.unlocked_since = Some(NOW.minus(secs(ago))))
    };
    waits(former(10), "waiting for it");
    check(
        former(30),
        &[
            Action::AcquireLock,
            Action::Begin(Job::Start(StartAs::Primary)),
            Action::ClearFailover,
        ],
        KEEP,
        "nobody leads",
    );
    check(
        former(0).peers(&[("c", None)]),
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
fn anybody_else_races_when_no_candidate_is_named() {
    check(
        orphan(Some(replica_at(100))).request(Some("a"), None),
        LEAD,
        KEEP,
        "nobody leads",
    );
    waits(orphan(Some(replica_at(101))).request(Some("a"), None), "ahead");
}

#[test]
fn a_request_for_later_or_long_missed_does_not_count_in_a_race() {
    let named = || orphan(Some(replica_at(101))).request(Some("a"), Some("b"));
    waits(named().scheduled(60), "ahead");
    check(named().scheduled(-5), LEAD, KEEP, "named");
    waits(named().scheduled(-3600), "ahead");
}

#[test]
fn a_restarted_leader_keeps_a_switchover_scheduled_for_later() {
    let build = view()
        .crashed_primary()
        .request(Some("b"), Some("c"))
        .scheduled(600)
        .peers(&[]);
    check(
        build,
        &[Action::AcquireLock, Action::Begin(Job::Start(StartAs::Primary))],
        KEEP,
        "nobody leads",
    );
}

// --- seen by the leader

fn leading(answer: Option<PeerStatus>) -> Build {
    view()
        .leader("b")
        .replica("c")
        .running_primary(100)
        .hold_for(secs(20))
        .peers(&[("c", answer)])
}

fn graceful() -> Action {
    demote(DemoteMode::Graceful, NOW + secs(60))
}

#[test]
fn the_leader_asks_the_candidates_then_hands_over() {
    for (leader, candidate) in [(Some("b"), None), (Some("b"), Some("c")), (None, Some("c"))] {
        let build = leading(Some(replica_at(100))).request(leader, candidate);
        check(build.clone(), &[graceful()], KEEP, "switchover");
        let unasked = build.change(|view| view.peers = None);
        check(unasked, &[probe(&["c"])], KEEP, "asking the candidates");
    }
    // Answers of others than the candidates do not make it unreachable.
    let partly = leading(Some(replica_at(100)))
        .request(Some("b"), None)
        .replica("d");
    check(partly, &[probe(&["c", "d"])], KEEP, "asking");
}

#[test]
fn requests_that_cannot_be_met_are_dropped_with_a_reason() {
    let ok = || leading(Some(replica_at(100)));
    let mut excluded = member("c");
    excluded.data.tags = tags(&[("nofailover", true.into())]);
    let cases = [
        (ok().request(Some("a"), Some("c")), "another leader"),
        (ok().request(Some("b"), Some("b")), "leader itself"),
        (ok().request(None, Some("b")), "leader itself"),
        (ok().request(None, Some("x")), "no member to switch to"),
        (
            ok().request(Some("b"), None).with(excluded),
            "no member to switch to",
        ),
        (
            ok().request(Some("b"), None).dynamic(|d| d.pause = true),
            "needs a candidate",
        ),
        (leading(None).request(Some("b"), Some("c")), "'c' does not answer"),
        (
            leading(Some(tagged("nofailover", true.into(), replica_at(100)))).request(None, Some("c")),
            "excluded",
        ),
        (
            leading(Some(replica_at(100)))
                .running_primary(101 + (1 << 20))
                .request(None, Some("c")),
            "lags 1048577 bytes",
        ),
        (
            ok().timeline(2)
                .mine(2)
                .dynamic(|d| d.check_timeline = true)
                .request(None, Some("c")),
            "is on timeline 1",
        ),
    ];
    for (build, because) in cases {
        assert_eq!(build.plan().again_in, Some(secs(0)), "{because}");
        check(build, &[Action::ClearFailover], KEEP, because);
    }
    // The limits themselves are fine.
    let limit = ok().running_primary(100 + (1 << 20)).request(None, Some("c"));
    check(limit, &[graceful()], KEEP, "switchover to 'c'");
}

#[test]
fn a_planned_hand_over_is_not_hurried() {
    let build = |timeout| {
        let asked = leading(Some(replica_at(100))).request(Some("b"), None);
        asked.dynamic(|d| d.primary_stop_timeout = timeout)
    };
    for (timeout, allowed) in [(0, 60), (5, 60), (300, 300)] {
        let stop = [demote(DemoteMode::Graceful, NOW + secs(allowed))];
        check(build(secs(timeout)), &stop, KEEP, "switchover");
    }
}

#[test]
fn one_usable_candidate_of_several_is_enough() {
    let build = leading(None)
        .replica("d")
        .request(Some("b"), None)
        .peers(&[("c", None), ("d", Some(replica_at(100)))]);
    check(build, &[graceful()], KEEP, "'d' can take over");
}

#[test]
fn a_scheduled_switchover_happens_in_its_time_or_not_at_all() {
    let at = |offset| {
        leading(Some(replica_at(100)))
            .request(Some("b"), Some("c"))
            .scheduled(offset)
    };
    check(at(60), &[Action::LeaderDuties], KEEP, "the leader");
    let soon = at(4);
    assert_eq!(soon.plan().again_in, Some(secs(4)));
    check(soon, &[Action::LeaderDuties], KEEP, "due soon");
    for due in [0, -1, -15] {
        check(at(due), &[graceful()], KEEP, "switchover");
    }
    check(at(-16), &[Action::ClearFailover], KEEP, "missed");
}
