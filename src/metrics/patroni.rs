//! The metrics that Patroni serves, by their names (contract: REST API §13). Pure.

use jiff::Timestamp;

use super::text::{
    Kind::{Counter, Gauge},
    Page,
};
use crate::{
    agent::handle::{ReplicationState, Snapshot, SyncMode, WIRE_VERSION, Xlog},
    api::health::sync_standby,
    clock::Boottime,
    model::{Lsn, PgState, Role},
};

/// States by their index (contract: REST API §5).
const STATES: [PgState; 15] = [
    PgState::Initializing,
    PgState::InitdbFailed,
    PgState::CustomBootstrap,
    PgState::CustomBootstrapFailed,
    PgState::CreatingReplica,
    PgState::Running,
    PgState::Starting,
    PgState::StartingAfterCustomBootstrap,
    PgState::StartFailed,
    PgState::Restarting,
    PgState::RestartFailed,
    PgState::Stopping,
    PgState::Stopped,
    PgState::StopFailed,
    PgState::Crashed,
];

/// Writes them all.
pub fn render(page: &mut Page, snapshot: &Snapshot, now: Boottime) {
    page.put(
        "patroni_version",
        Gauge,
        "Patroni version whose protocols are spoken.",
        version(),
    );
    postgres(page, snapshot);
    roles(page, snapshot, now);
    positions(page, snapshot);
    cluster(page, snapshot, now);
    state(page, snapshot);
    let priority = snapshot.tags.failover_priority();
    let priority = if snapshot.tags.nofailover() { 0 } else { priority };
    page.put(
        "patroni_failover_priority",
        Gauge,
        "Failover priority, 0 with nofailover.",
        priority,
    );
}

/// `4.1.4` as `040104`.
fn version() -> String {
    WIRE_VERSION
        .split('.')
        .map(|part| format!("{part:0>2}"))
        .collect()
}

fn postgres(page: &mut Page, snapshot: &Snapshot) {
    let answer = snapshot.local.answer.as_ref();
    page.flag(
        "patroni_postgres_running",
        "1 if PostgreSQL is running.",
        snapshot.state() == PgState::Running,
    );
    let started = answer.and_then(|answer| epoch(&answer.postmaster_start_time));
    page.put(
        "patroni_postmaster_start_time",
        Gauge,
        "Start of PostgreSQL in seconds since the epoch.",
        started.unwrap_or(0.0),
    );
    page.put(
        "patroni_postgres_server_version",
        Gauge,
        "Version of PostgreSQL, 0 if unknown.",
        answer.map_or(0, |answer| answer.server_version),
    );
    page.put(
        "patroni_postgres_timeline",
        Gauge,
        "Timeline, 0 if unknown.",
        answer.map_or(0, |answer| answer.timeline.0),
    );
    if answer.is_some() {
        let how = snapshot.replication_state();
        page.flag(
            "patroni_postgres_streaming",
            "1 if PostgreSQL streams.",
            how == Some(ReplicationState::Streaming),
        );
        page.flag(
            "patroni_postgres_in_archive_recovery",
            "1 if PostgreSQL replays from an archive.",
            how == Some(ReplicationState::ArchiveRecovery),
        );
    }
}

fn roles(page: &mut Page, snapshot: &Snapshot, now: Boottime) {
    let role = snapshot.role();
    page.flag(
        "patroni_primary",
        "1 if this member is the primary.",
        role == Role::Primary,
    );
    page.flag(
        "patroni_standby_leader",
        "1 if this member leads a standby cluster.",
        role == Role::StandbyLeader,
    );
    page.flag(
        "patroni_replica",
        "1 if this member is a replica.",
        role == Role::Replica,
    );
    let sync = sync_standby(snapshot, now);
    page.flag(
        "patroni_sync_standby",
        "1 if this member is a synchronous standby.",
        sync == Some(SyncMode::Priority),
    );
    page.flag(
        "patroni_quorum_standby",
        "1 if this member is a standby of the quorum.",
        sync == Some(SyncMode::Quorum),
    );
}

fn positions(page: &mut Page, snapshot: &Snapshot) {
    let (mut location, mut received, mut replayed, mut at, mut held) =
        (Lsn::INVALID, Lsn::INVALID, Lsn::INVALID, 0.0, false);
    match snapshot.xlog() {
        Some(Xlog::Primary { location: flushed }) => location = *flushed,
        Some(Xlog::Replica {
            received: has,
            replayed: shows,
            replayed_timestamp,
            paused,
            ..
        }) => {
            (received, replayed, held) = (*has, *shows, *paused);
            at = replayed_timestamp.as_deref().and_then(epoch).unwrap_or(0.0);
        }
        None => {}
    }
    page.put(
        "patroni_xlog_location",
        Counter,
        "Flushed WAL of the primary in bytes, 0 elsewhere.",
        location.0,
    );
    page.put(
        "patroni_xlog_received_location",
        Counter,
        "Received WAL of a replica in bytes, 0 elsewhere.",
        received.0,
    );
    page.put(
        "patroni_xlog_replayed_location",
        Counter,
        "Replayed WAL of a replica in bytes, 0 elsewhere.",
        replayed.0,
    );
    page.put(
        "patroni_xlog_replayed_timestamp",
        Gauge,
        "Commit of the last replayed transaction in seconds since the epoch, 0 elsewhere.",
        at,
    );
    page.flag("patroni_xlog_paused", "1 if replay is paused.", held);
}

fn cluster(page: &mut Page, snapshot: &Snapshot, now: Boottime) {
    let cluster = snapshot.cluster(now);
    page.flag(
        "patroni_cluster_unlocked",
        "1 if nobody is seen to hold the lock.",
        cluster.is_none_or(|cluster| cluster.leader.is_none()),
    );
    page.flag(
        "patroni_failsafe_mode_is_active",
        "1 if failsafe mode keeps a leader without the DCS.",
        snapshot.failsafe_active(now),
    );
    page.flag(
        "patroni_failsafe_mode_enabled",
        "1 if failsafe mode is on.",
        snapshot.dynamic.failsafe_mode,
    );
    let named = snapshot.dcs.as_ref().is_some_and(|view| {
        let known = view.cluster.failsafe.as_ref();
        known.is_some_and(|members| members.contains_key(snapshot.member.as_str()))
    });
    page.flag(
        "patroni_failsafe_member",
        "1 if /failsafe names this member.",
        named,
    );
    page.put(
        "patroni_dcs_last_seen",
        Gauge,
        "Last good read of the DCS in seconds since the epoch.",
        snapshot.dcs_last_seen_epoch_s,
    );
    page.flag(
        "patroni_pending_restart",
        "1 if settings wait for a restart.",
        !snapshot.local.pending_restart.is_empty(),
    );
    page.flag(
        "patroni_is_paused",
        "1 if the cluster is paused.",
        snapshot.paused(),
    );
}

fn state(page: &mut Page, snapshot: &Snapshot) {
    let state = snapshot.state();
    let index = STATES.iter().position(|known| *known == state);
    let pairs: Vec<String> = STATES
        .iter()
        .enumerate()
        .map(|(index, state)| format!("{index}={state}"))
        .collect();
    let name = "patroni_postgres_state";
    page.head(
        name,
        Gauge,
        "State of PostgreSQL as a number, -1 if unknown.",
        Some(&pairs.join(", ")),
    );
    match index {
        Some(index) => page.line(name, "", index),
        None => page.line(name, "", -1),
    }
}

/// `YYYY-MM-DD HH:MM:SS.ffffff+00:00` as seconds.
fn epoch(text: &str) -> Option<f64> {
    let at: Timestamp = text.parse().ok()?;
    let micros = at.as_microsecond();
    #[expect(clippy::cast_precision_loss, reason = "microseconds of this millennium fit")]
    Some(micros as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::agent::handle::fixtures::{NOW, leader, replica, with_sync, with_tags};

    fn page(snapshot: &Snapshot) -> Vec<String> {
        let mut page = Page::new(&snapshot.scope, &snapshot.member);
        render(&mut page, snapshot, NOW);
        let text = String::from_utf8(page.into_bytes()).expect("text");
        text.lines().map(str::to_owned).collect()
    }

    fn value(snapshot: &Snapshot, name: &str) -> String {
        let start = format!("{name}{{");
        let lines: Vec<String> = page(snapshot)
            .into_iter()
            .filter(|l| l.starts_with(&start))
            .collect();
        assert_eq!(lines.len(), 1, "{name}: {lines:?}");
        lines[0].rsplit(' ').next().expect("a value").to_owned()
    }

    #[test]
    fn a_primary_shows_its_own_position_only() {
        let leader = leader();
        insta::assert_snapshot!(page(&leader).join("\n"));
    }

    #[test]
    fn a_replica_shows_what_it_received_and_replayed() {
        let snapshot = with_tags(
            with_sync(replica(), SyncMode::Quorum),
            json!({"nofailover": true}),
        );
        for (name, expected) in [
            ("patroni_primary", "0"),
            ("patroni_replica", "1"),
            ("patroni_sync_standby", "0"),
            ("patroni_quorum_standby", "1"),
            ("patroni_xlog_location", "0"),
            ("patroni_xlog_received_location", "83886408"),
            ("patroni_xlog_replayed_location", "83886344"),
            ("patroni_xlog_replayed_timestamp", "0"),
            ("patroni_postgres_streaming", "1"),
            ("patroni_failover_priority", "0"),
            ("patroni_postgres_state", "5"),
        ] {
            assert_eq!(value(&snapshot, name), expected, "{name}");
        }
    }

    #[test]
    fn a_member_that_is_down_shows_zeros() {
        let mut snapshot = replica();
        snapshot.local.answer = None;
        snapshot.local.state = PgState::Running;
        snapshot.dcs = None;
        assert_eq!(
            value(&snapshot, "patroni_postgres_state"),
            "-1",
            "it does not answer"
        );
        snapshot.local.state = PgState::Crashed;
        for (name, expected) in [
            ("patroni_postgres_state", "14"),
            ("patroni_postgres_running", "0"),
            ("patroni_postmaster_start_time", "0"),
            ("patroni_postgres_server_version", "0"),
            ("patroni_cluster_unlocked", "1"),
            ("patroni_failsafe_member", "0"),
        ] {
            assert_eq!(value(&snapshot, name), expected, "{name}");
        }
        assert!(
            !page(&snapshot)
                .iter()
                .any(|line| line.starts_with("patroni_postgres_streaming"))
        );
    }

    #[test]
    fn versions_and_times_are_numbers() {
        assert_eq!(version(), "040104");
        assert_eq!(epoch("2026-01-05 08:00:01.120000+00:00"), Some(1_767_600_001.12));
        assert_eq!(epoch("soon"), None);
    }
}
