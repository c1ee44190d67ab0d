//! Health checks and probes as pure functions of the snapshot (contract: REST API §3, §4).
//!
//! Load balancers ask several times a second and decide by status code alone, so nothing here waits or asks.

use serde_json::Value;

use super::query::{Query, parse_size};
use crate::{
    agent::handle::{ReplicationState, Snapshot, SyncMode, Xlog},
    clock::Boottime,
    model::{Lsn, PgState, Role},
};

const UP: u16 = 200;
const DOWN: u16 = 503;

const fn when(condition: bool) -> u16 {
    if condition { UP } else { DOWN }
}

/// The answer of each kind of node check, before the path picks one.
struct Checks {
    replica: bool,
    leader: bool,
    primary: bool,
    standby_leader: bool,
}

impl Checks {
    fn of(snapshot: &Snapshot, now: Boottime, query: &Query) -> Self {
        let role = snapshot.role();
        let replica = !snapshot.tags.noloadbalance()
            && role == Role::Replica
            && snapshot.state() == PgState::Running
            && !lags(snapshot, now, query)
            && query.get("replication_state").is_none_or(|wanted| {
                snapshot.replication_state().map(ReplicationState::as_str) == Some(wanted)
            });
        if snapshot.cluster(now).is_none() && snapshot.paused() {
            // Nobody moves a paused cluster, so what the node is stays true without a DCS.
            let primary = role == Role::Primary;
            let standby_leader = role == Role::StandbyLeader;
            return Self {
                replica,
                leader: primary || standby_leader,
                primary: primary && takes_writes(snapshot),
                standby_leader,
            };
        }
        match (snapshot.is_leader(now), snapshot.standby_cluster) {
            (true, false) => Self {
                replica,
                leader: true,
                primary: takes_writes(snapshot),
                standby_leader: false,
            },
            (true, true) => Self {
                replica: false,
                leader: true,
                primary: false,
                standby_leader: matches!(role, Role::Replica | Role::StandbyLeader),
            },
            (false, _) => Self {
                replica,
                leader: false,
                primary: false,
                standby_leader: false,
            },
        }
    }

    const fn read_only(&self, replica: bool) -> bool {
        self.primary || self.standby_leader || replica
    }
}

/// Whether writes sent here can succeed, as far as is known. The contract looks at the lock alone; then a load balancer
/// sends writes to a server that is still in recovery or down, and does not even retry elsewhere. A running primary
/// that merely did not answer the last monitor query keeps its traffic: silence is load far more often than an end.
fn takes_writes(snapshot: &Snapshot) -> bool {
    snapshot.local.state == PgState::Running && snapshot.role() == Role::Primary
}

/// How far the leader is known to be: what the DCS says or what our own sender said, whichever is more.
fn leader_position(snapshot: &Snapshot, now: Boottime) -> Lsn {
    let optime = snapshot
        .cluster(now)
        .map_or(Lsn::INVALID, |cluster| cluster.status.optime);
    optime.max(snapshot.latest_end().unwrap_or_default())
}

fn lags(snapshot: &Snapshot, now: Boottime, query: &Query) -> bool {
    let Some(limit) = query.lag() else {
        return false;
    };
    let replayed = match snapshot.xlog() {
        Some(Xlog::Replica { replayed, .. }) => *replayed,
        _ => Lsn::INVALID,
    };
    let leader = leader_position(snapshot, now);
    leader != Lsn::INVALID && i128::from(leader.0) > i128::from(replayed.0) + i128::from(limit)
}

/// Which kind of synchronous standby this node is, if any.
#[must_use]
pub fn sync_standby(snapshot: &Snapshot, now: Boottime) -> Option<SyncMode> {
    let listed = snapshot
        .cluster(now)
        .is_some_and(|cluster| cluster.sync.has_standby(&snapshot.member));
    (listed && snapshot.sync_mode != SyncMode::Off && snapshot.role() != Role::Primary)
        .then_some(snapshot.sync_mode)
}

fn tags_match(snapshot: &Snapshot, query: &Query) -> bool {
    query.tags().all(|(name, wanted)| {
        snapshot.tags.0.get(name).is_some_and(|value| match value {
            Value::String(text) => text == wanted,
            other => other.to_string().to_lowercase() == wanted,
        })
    })
}

/// The status code of a health check on `path`. Unknown paths are checks that fail.
#[must_use]
pub fn code(snapshot: &Snapshot, now: Boottime, path: &str, query: &Query) -> u16 {
    let path = if path == "/" { "/primary" } else { path };
    let has = |word: &str| path.contains(word);
    let checks = Checks::of(snapshot, now, query);
    // Checks of the role alone; the order matters because these are tests for substrings.
    if has("standby_leader") || has("standby-leader") {
        return when(checks.standby_leader);
    }
    if has("leader") {
        return when(checks.leader);
    }
    if has("master") || has("primary") || has("read-write") {
        return when(checks.primary);
    }
    let sync = sync_standby(snapshot, now);
    let good = if has("replica") {
        checks.replica
    } else if has("read-only") && !has("sync") && !has("quorum") {
        checks.read_only(checks.replica)
    } else if has("health") {
        snapshot.state() == PgState::Running
    } else if snapshot.cluster(now).is_none() {
        return DOWN;
    } else {
        let priority = sync == Some(SyncMode::Priority);
        let quorum = sync == Some(SyncMode::Quorum);
        match path {
            "/sync" | "/synchronous" => priority && checks.replica,
            "/quorum" => quorum && checks.replica,
            "/async" | "/asynchronous" => sync.is_none() && checks.replica,
            "/read-only-quorum" => checks.read_only(quorum && checks.replica),
            "/read-only-sync" | "/read-only-synchronous" => checks.read_only(priority && checks.replica),
            _ => false,
        }
    };
    when(good && tags_match(snapshot, query))
}

/// GET /liveness: the loop turns, or is not late enough to worry.
#[must_use]
pub fn liveness(snapshot: &Snapshot, now: Boottime) -> u16 {
    let primary = snapshot.local.role == Role::Primary && snapshot.local.postmaster_alive;
    let ttl = snapshot.dynamic.timing.ttl;
    let threshold = if primary { ttl } else { ttl * 2 };
    when(snapshot.paused() || now < snapshot.next_run + threshold)
}

/// GET /readiness: the leader, or a streaming replica close enough to it.
#[must_use]
pub fn readiness(snapshot: &Snapshot, now: Boottime, query: &Query) -> u16 {
    if snapshot.is_leader(now) {
        return UP;
    }
    if snapshot.local.state != PgState::Running
        || snapshot.replication_state() != Some(ReplicationState::Streaming)
    {
        return DOWN;
    }
    if snapshot.cluster(now).is_none() && snapshot.latest_end().is_none() {
        return when(snapshot.failsafe_active(now));
    }
    let position = match snapshot.xlog() {
        Some(Xlog::Replica { received, .. }) if query.get("mode") == Some("write") => *received,
        Some(Xlog::Replica { replayed, .. }) => *replayed,
        _ => Lsn::INVALID,
    };
    let limit = query.get("lag").and_then(parse_size).map_or_else(
        || i128::from(snapshot.dynamic.maximum_lag_on_failover),
        i128::from,
    );
    let behind = i128::from(leader_position(snapshot, now).0) - i128::from(position.0);
    when(behind <= limit)
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
