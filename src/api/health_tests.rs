//! The contract's table, cell by cell, and the parameters.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::agent::handle::fixtures::{NOW, leader, replica, standby_cluster, with_sync, with_tags};

fn check(snapshot: &Snapshot, target: &str) -> u16 {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    code(snapshot, NOW, path, &Query::parse(query))
}

#[test]
fn every_cell_of_the_role_table() {
    let mut stopped = replica();
    stopped.local.state = PgState::Stopped;
    stopped.local.answer = None;
    let columns = [
        leader(),
        with_sync(replica(), SyncMode::Priority),
        with_sync(replica(), SyncMode::Quorum),
        replica(),
        with_tags(replica(), json!({"noloadbalance": true})),
        stopped,
        standby_cluster(true),
        standby_cluster(false),
    ];
    // leader, sync, quorum, async, noloadbalance, stopped, standby leader, its replica; `+` is 200
    for (paths, row) in [
        (&["/", "/primary", "/read-write", "/master"][..], "+-------"),
        (&["/leader"], "+-----+-"),
        (&["/standby-leader", "/standby_leader"], "------+-"),
        (&["/replica"], "-+++---+"),
        (&["/read-only"], "++++--++"),
        (&["/sync", "/synchronous"], "-+------"),
        (&["/quorum"], "--+-----"),
        (&["/async", "/asynchronous"], "---+---+"),
        (&["/read-only-sync", "/read-only-synchronous"], "++----+-"),
        (&["/read-only-quorum"], "+-+---+-"),
        (&["/health"], "+++++-++"),
        (&["/nonsense", "/liveness", "/patroni"], "--------"),
    ] {
        for path in paths {
            let got: String = columns
                .iter()
                .map(|snapshot| if check(snapshot, path) == 200 { '+' } else { '-' })
                .collect();
            assert_eq!(got, row, "{path}");
        }
    }
}

#[test]
fn the_holder_of_the_lock_gets_writes_only_while_it_can_take_them() {
    let with = |state, role, answers: bool| {
        let mut snapshot = leader();
        (snapshot.local.state, snapshot.local.role) = (state, role);
        if !answers {
            snapshot.local.answer = None;
        }
        snapshot
    };
    let mut promoting = leader();
    promoting.local.role = Role::Replica;
    promoting.local.answer = replica().local.answer;
    for (what, snapshot, expected) in [
        ("running", leader(), 200),
        ("silent", with(PgState::Running, Role::Primary, false), 200),
        (
            "silent in recovery",
            with(PgState::Running, Role::Replica, false),
            503,
        ),
        ("in recovery", promoting, 503),
        ("starting", with(PgState::Starting, Role::Primary, false), 503),
        ("restarting", with(PgState::Restarting, Role::Primary, true), 503),
        ("stopping", with(PgState::Stopping, Role::Primary, true), 503),
        ("stopped", with(PgState::Stopped, Role::Demoted, false), 503),
        (
            "start failed",
            with(PgState::StartFailed, Role::Demoted, false),
            503,
        ),
        ("crashed", with(PgState::Crashed, Role::Demoted, false), 503),
    ] {
        for path in ["/", "/primary", "/read-write", "/master"] {
            assert_eq!(check(&snapshot, path), expected, "{what}: {path}");
        }
        assert_eq!(check(&snapshot, "/leader"), 200, "{what}: the lock alone");
    }
}

#[test]
fn a_member_being_promoted_still_serves_reads() {
    let mut promoting = leader();
    promoting.local.role = Role::Replica;
    promoting.local.answer = replica().local.answer;
    assert_eq!(check(&promoting, "/read-only"), 200);
}

#[test]
fn a_lapsed_lock_is_no_lock() {
    let snapshot = leader();
    let later = NOW + Duration::from_secs(30);
    assert_eq!(code(&snapshot, later, "/primary", &Query::default()), 503);
}

#[test]
fn without_a_dcs_only_a_paused_cluster_has_a_primary() {
    let mut snapshot = leader();
    snapshot.leader_until = None;
    snapshot.dcs = None;
    assert_eq!(check(&snapshot, "/primary"), 503);
    snapshot.dynamic.pause = true;
    assert_eq!(check(&snapshot, "/primary"), 200);
    assert_eq!(check(&snapshot, "/leader"), 200);
    assert_eq!(check(&snapshot, "/standby-leader"), 503);
    snapshot.local.state = PgState::Stopping;
    assert_eq!(check(&snapshot, "/primary"), 503);
}

#[test]
fn without_a_dcs_replicas_still_serve_reads() {
    let mut snapshot = replica();
    snapshot.dcs = None;
    assert_eq!(check(&snapshot, "/replica"), 200);
    assert_eq!(check(&snapshot, "/async"), 503);
}

#[test]
fn lag_is_a_limit_on_replay() {
    let snapshot = replica();
    for (query, expected) in [
        ("lag=64", 200),
        ("lag=63", 503),
        ("lag=1kB", 200),
        ("lag=0", 503),
        ("lag=typo", 200),
        ("lag=", 200),
    ] {
        for path in ["/replica", "/read-only", "/async"] {
            assert_eq!(
                check(&snapshot, &format!("{path}?{query}")),
                expected,
                "{path}?{query}"
            );
        }
    }
    assert_eq!(check(&leader(), "/read-only?lag=0"), 200);
}

#[test]
fn an_unknown_leader_position_limits_nothing() {
    let mut snapshot = replica();
    snapshot.dcs = None;
    if let Some(Xlog::Replica { latest_end, .. }) =
        snapshot.local.answer.as_mut().map(|answer| &mut answer.xlog)
    {
        *latest_end = None;
    }
    assert_eq!(check(&snapshot, "/replica?lag=0"), 200);
}

#[test]
fn replication_state_must_be_equal() {
    assert_eq!(check(&replica(), "/replica?replication_state=streaming"), 200);
    assert_eq!(
        check(&replica(), "/replica?replication_state=in%20archive%20recovery"),
        503
    );
}

#[test]
fn tags_filter_all_but_the_role_checks() {
    let tags = json!({"zone": "a", "fast": true, "weight": 1.4});
    let snapshot = with_tags(replica(), tags.clone());
    for (query, expected) in [
        ("tag_zone=a", 200),
        ("tag_zone=b", 503),
        ("tag_fast=true", 200),
        ("tag_fast=True", 503),
        ("tag_weight=1.4&tag_zone=a", 200),
        ("tag_none=x", 503),
    ] {
        assert_eq!(
            check(&snapshot, &format!("/replica?{query}")),
            expected,
            "{query}"
        );
        assert_eq!(check(&snapshot, &format!("/health?{query}")), expected, "{query}");
    }
    assert_eq!(check(&with_tags(leader(), tags), "/primary?tag_zone=b"), 200);
}

#[test]
fn the_loop_may_be_late_by_one_or_two_ttl() {
    let mut snapshot = leader();
    let due = snapshot.next_run;
    let late = |seconds| due + Duration::from_secs(seconds);
    assert_eq!(liveness(&snapshot, late(29)), 200);
    assert_eq!(liveness(&snapshot, late(30)), 503);
    assert_eq!(liveness(&replica(), late(59)), 200);
    assert_eq!(liveness(&replica(), late(60)), 503);
    snapshot.dynamic.pause = true;
    assert_eq!(liveness(&snapshot, late(1000)), 200);
}

#[test]
fn ready_is_the_leader_or_a_close_streaming_replica() {
    let ready = |snapshot: &Snapshot, query| readiness(snapshot, NOW, &Query::parse(query));
    assert_eq!(ready(&leader(), ""), 200);
    assert_eq!(ready(&replica(), ""), 200);
    assert_eq!(ready(&replica(), "lag=10"), 503);
    assert_eq!(ready(&replica(), "lag=10&mode=write"), 200);
    assert_eq!(ready(&replica(), "lag=oops"), 200);
    let mut archive = replica();
    if let Some(Xlog::Replica {
        replication,
        latest_end,
        ..
    }) = archive.local.answer.as_mut().map(|answer| &mut answer.xlog)
    {
        *replication = Some(ReplicationState::ArchiveRecovery);
        *latest_end = None;
    }
    assert_eq!(ready(&archive, ""), 503);
    let mut alone = replica();
    alone.dcs = None;
    assert_eq!(ready(&alone, ""), 200, "the sender's own word is enough");
    if let Some(Xlog::Replica { latest_end, .. }) = alone.local.answer.as_mut().map(|answer| &mut answer.xlog)
    {
        *latest_end = None;
    }
    assert_eq!(ready(&alone, ""), 503);
    alone.failsafe_until = Some(NOW + Duration::from_secs(1));
    assert_eq!(ready(&alone, ""), 200);
}
