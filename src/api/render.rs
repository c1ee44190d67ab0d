//! The status JSON of GET /patroni and of every health check (contract: REST API §5).

use serde_json::{Map, Value, json};

use super::health::sync_standby;
use crate::{
    agent::handle::{Answer, Copies, ReplicationState, Snapshot, SyncMode, Trouble, WIRE_VERSION, Xlog},
    clock::Boottime,
    ha::why::Candidacy,
    model::Timeline,
};

/// The status object; its keys are in the contract's order.
#[must_use]
pub fn patroni(snapshot: &Snapshot, now: Boottime) -> Map<String, Value> {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    let answer = snapshot.local.answer.as_ref();
    put("state", snapshot.state().as_str().into());
    if let Some(answer) = answer {
        put(
            "postmaster_start_time",
            answer.postmaster_start_time.clone().into(),
        );
    }
    put("role", snapshot.role().as_str().into());
    if let Some(answer) = answer {
        put("server_version", answer.server_version.into());
        put("xlog", xlog(&answer.xlog));
        match sync_standby(snapshot, now) {
            Some(SyncMode::Priority) => put("sync_standby", true.into()),
            Some(SyncMode::Quorum) => put("quorum_standby", true.into()),
            Some(SyncMode::Off) | None => {}
        }
        put("timeline", timeline(answer));
        if let Some(state) = snapshot.replication_state() {
            put("replication_state", ReplicationState::as_str(state).into());
        }
        if !answer.walsenders.is_empty() {
            put("replication", json!(answer.walsenders));
        }
    }
    let flags = [
        ("pause", snapshot.paused()),
        (
            "cluster_unlocked",
            snapshot
                .cluster(now)
                .is_none_or(|cluster| cluster.leader.is_none()),
        ),
        ("failsafe_mode_is_active", snapshot.failsafe_active(now)),
        ("watchdog_failed", snapshot.local.watchdog_failed),
    ];
    for (key, _) in flags.into_iter().filter(|(_, set)| *set) {
        put(key, true.into());
    }
    put("dcs_last_seen", snapshot.dcs_last_seen_epoch_s.into());
    let tags = snapshot.tags.published();
    if !tags.is_empty() {
        put("tags", tags.into());
    }
    if let Some(id) = &snapshot.local.system_id {
        put("database_system_identifier", id.0.clone().into());
    }
    if !snapshot.local.pending_restart.is_empty() {
        put("pending_restart", true.into());
        put(
            "pending_restart_reason",
            snapshot.local.pending_restart.clone().into(),
        );
    }
    put(
        "patroni",
        json!({"version": WIRE_VERSION, "scope": snapshot.scope, "name": snapshot.member}),
    );
    if let Some(restart) = &snapshot.local.scheduled_restart {
        put("scheduled_restart", restart.to_json().into());
    }
    if snapshot.local.copies != Copies::default() {
        put("copies", json!(snapshot.local.copies));
    }
    put("howdah", howdah(snapshot));
    out
}

/// Our own part; clients written for Patroni do not look at it: could it lead, what is promised, why it neither streams nor
/// is a primary, and what of the cluster's configuration is not used as it was written.
fn howdah(snapshot: &Snapshot) -> Value {
    let outlook = &snapshot.outlook;
    let (candidacy, because) = match &outlook.candidacy {
        Candidacy::Leads => ("leads", "it holds the lock"),
        Candidacy::Could(why) => ("could lead", why.as_str()),
        Candidacy::Cannot(why) => ("could not lead", why.as_str()),
    };
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    put("candidacy", candidacy.into());
    put("because", because.into());
    put("promise", json!(outlook.promise));
    put("without_dcs", json!(outlook.without_dcs));
    if let Some(Xlog::Replica {
        replaying, receiving, ..
    }) = snapshot.xlog()
    {
        for (key, _) in [("replaying", replaying), ("receiving", receiving)]
            .iter()
            .filter(|(_, set)| **set)
        {
            put(key, true.into());
        }
    }
    let local = &snapshot.local;
    for (key, value) in local.trouble.iter().flat_map(Trouble::to_json) {
        put(&key, value);
    }
    if let Some(handover) = &local.handover {
        put("handover", handover.to_json());
    }
    if let Some(copying) = local.copying {
        put("copying", json!(copying));
    }
    if !local.remarks.is_empty() {
        put("config", local.remarks.clone().into());
    }
    Value::Object(out)
}

fn timeline(answer: &Answer) -> Value {
    match answer.timeline {
        Timeline::UNKNOWN => Value::Null,
        Timeline(number) => number.into(),
    }
}

fn xlog(xlog: &Xlog) -> Value {
    match xlog {
        Xlog::Primary { location } => json!({"location": location}),
        Xlog::Replica {
            received,
            replayed,
            replayed_timestamp,
            paused,
            ..
        } => json!({
            "received_location": received,
            "replayed_location": replayed,
            "replayed_timestamp": replayed_timestamp,
            "paused": paused,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent::handle::fixtures::{NOW, leader, replica, with_sync, with_tags},
        api::json,
        model::{PeerStatus, PgState, Role},
    };

    #[test]
    fn a_sync_replica_as_in_the_contract() {
        let snapshot = with_tags(
            with_sync(replica(), SyncMode::Priority),
            json!({"clonefrom": true}),
        );
        insta::assert_snapshot!(json::text(&patroni(&snapshot, NOW)), @r#"{"state": "running", "postmaster_start_time": "2026-01-05 08:00:01.120000+00:00", "role": "replica", "server_version": 170004, "xlog": {"received_location": 83886408, "replayed_location": 83886344, "replayed_timestamp": null, "paused": false}, "sync_standby": true, "timeline": 4, "replication_state": "streaming", "dcs_last_seen": 1767600100, "tags": {"clonefrom": true}, "database_system_identifier": "7400000000000000001", "patroni": {"version": "4.1.4", "scope": "demo", "name": "n2"}, "howdah": {"candidacy": "could not lead", "because": "it has not seen the DCS yet", "promise": "unknown", "without_dcs": "unknown", "receiving": true}}"#);
    }

    #[test]
    fn a_leader_lists_its_walsenders() {
        insta::assert_snapshot!(json::text(&patroni(&leader(), NOW)), @r#"{"state": "running", "postmaster_start_time": "2026-01-05 08:00:01.120000+00:00", "role": "primary", "server_version": 170004, "xlog": {"location": 83886408}, "timeline": 4, "replication": [{"usename": "replicator", "application_name": "n2", "client_addr": "10.1.0.2", "state": "streaming", "sync_state": "async", "sync_priority": 0}], "dcs_last_seen": 1767600100, "database_system_identifier": "7400000000000000001", "patroni": {"version": "4.1.4", "scope": "demo", "name": "n1"}, "howdah": {"candidacy": "could not lead", "because": "it has not seen the DCS yet", "promise": "unknown", "without_dcs": "unknown"}}"#);
    }

    #[test]
    fn a_stopped_node_tells_only_what_it_knows() {
        let mut snapshot = replica();
        snapshot.local.state = PgState::CreatingReplica;
        snapshot.local.role = Role::Uninitialized;
        snapshot.local.answer = None;
        snapshot.local.system_id = None;
        snapshot.dcs = None;
        snapshot.dynamic.pause = true;
        insta::assert_snapshot!(json::text(&patroni(&snapshot, NOW)), @r#"{"state": "creating replica", "role": "uninitialized", "pause": true, "cluster_unlocked": true, "dcs_last_seen": 1767600100, "patroni": {"version": "4.1.4", "scope": "demo", "name": "n2"}, "howdah": {"candidacy": "could not lead", "because": "it has not seen the DCS yet", "promise": "unknown", "without_dcs": "unknown"}}"#);
    }

    #[test]
    fn other_members_can_read_it() {
        let peer = PeerStatus::from_json(&Value::Object(patroni(&replica(), NOW))).expect("complete");
        assert!(peer.in_recovery && peer.can_lead());
        assert_eq!(peer.timeline, Timeline(4));
    }
}
