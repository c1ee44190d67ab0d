//! Snapshots to start a test from: a leader, a replica, and the cluster around them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Map, Value};

use super::{Answer, Copies, DcsView, Local, ReplicationState, Snapshot, SyncMode, Walsender, Xlog};
use crate::{
    clock::Boottime,
    model::{Cluster, Dynamic, Entry, Lsn, PgState, Role, SystemId, Tags, Timeline, Version},
};

/// The moment every fixture was observed.
pub(crate) const NOW: Boottime = Boottime(1_000_000_000_000);

/// A cluster from `(path, value)` pairs; of several with the same path the last one counts.
pub(crate) fn cluster(pairs: &[(&str, &str)]) -> Cluster {
    let last: BTreeMap<&str, &str> = pairs.iter().copied().collect();
    let entries: Vec<Entry> = last
        .into_iter()
        .zip(1..)
        .map(|((path, value), version)| Entry {
            path: path.into(),
            value: value.into(),
            version: Version(version),
            lease: 0,
        })
        .collect();
    Cluster::from_entries(&entries)
}

/// The stored objects of a healthy cluster: leader n1, streaming replica n2.
pub(crate) const HEALTHY: &[(&str, &str)] = &[
    ("initialize", "7400000000000000001"),
    ("leader", "n1"),
    ("config", r#"{"ttl":30}"#),
    ("status", r#"{"optime":83886408}"#),
    (
        "members/n1",
        r#"{"conn_url":"postgres://10.1.0.1:5432/postgres","api_url":"http://10.1.0.1:8008/patroni","state":"running","role":"primary","version":"4.1.4","xlog_location":83886408,"timeline":4}"#,
    ),
    (
        "members/n2",
        r#"{"conn_url":"postgres://10.1.0.2:5432/postgres","api_url":"http://10.1.0.2:8008/patroni","state":"running","role":"replica","version":"4.1.4","xlog_location":83886408,"replay_lsn":83886344,"receive_lsn":83886408,"replication_state":"streaming","timeline":4}"#,
    ),
    (
        "history",
        r#"[[1,25165976,"no recovery target specified","2026-01-05T08:10:00.100000+00:00","n2"]]"#,
    ),
];

fn member(name: &str, role: Role, xlog: Xlog) -> Snapshot {
    Snapshot {
        observed_at: NOW,
        member: name.into(),
        scope: "demo".into(),
        tags: Tags::default(),
        local: Local {
            role,
            state: PgState::Running,
            postmaster_alive: true,
            answer: Some(Answer {
                server_version: 170_004,
                postmaster_start_time: "2026-01-05 08:00:01.120000+00:00".into(),
                xlog,
                timeline: Timeline(4),
                walsenders: Vec::new(),
            }),
            system_id: Some(SystemId("7400000000000000001".into())),
            pending_restart: Map::new(),
            scheduled_restart: None,
            copies: Copies::default(),
            copying: None,
            handover: None,
            trouble: None,
            remarks: Vec::new(),
            watchdog_failed: false,
            split_brain_suspected: false,
            slots: Vec::new(),
        },
        dcs: Some(DcsView {
            cluster: Arc::new(cluster(HEALTHY)),
            seen_at: NOW,
        }),
        dcs_last_seen_epoch_s: 1_767_600_100,
        leader_until: None,
        failsafe_until: None,
        next_run: NOW + Duration::from_secs(10),
        dynamic: Dynamic::default(),
        sync_mode: SyncMode::Off,
        standby_cluster: false,
        outlook: super::Outlook::unknown(),
    }
}

/// n2, streaming, 64 bytes behind in replay.
pub(crate) fn replica() -> Snapshot {
    let xlog = Xlog::Replica {
        received: Lsn(83_886_408),
        replayed: Lsn(83_886_344),
        replayed_timestamp: None,
        paused: false,
        replication: Some(ReplicationState::Streaming),
        latest_end: Some(Lsn(83_886_408)),
        replaying: false,
        receiving: true,
    };
    member("n2", Role::Replica, xlog)
}

/// n1, holding the lock.
pub(crate) fn leader() -> Snapshot {
    let xlog = Xlog::Primary {
        location: Lsn(83_886_408),
    };
    let mut snapshot = member("n1", Role::Primary, xlog);
    snapshot.leader_until = Some(NOW + Duration::from_secs(30));
    if let Some(answer) = &mut snapshot.local.answer {
        answer.walsenders.push(Walsender {
            usename: Some("replicator".into()),
            application_name: Some("n2".into()),
            client_addr: Some("10.1.0.2".into()),
            state: Some("streaming".into()),
            sync_state: Some("async".into()),
            sync_priority: Some(0),
        });
    }
    snapshot
}

/// A node of a standby cluster in recovery.
pub(crate) fn standby_cluster(leads: bool) -> Snapshot {
    let mut snapshot = replica();
    snapshot.standby_cluster = true;
    if leads {
        snapshot.local.role = Role::StandbyLeader;
        snapshot.leader_until = Some(NOW + Duration::from_secs(30));
    }
    snapshot
}

/// With n2 among the synchronous standbys.
pub(crate) fn with_sync(mut snapshot: Snapshot, mode: SyncMode) -> Snapshot {
    snapshot.sync_mode = mode;
    let mut pairs = HEALTHY.to_vec();
    pairs.push(("sync", r#"{"leader":"n1","quorum":0,"sync_standby":"N2"}"#));
    snapshot.dcs = Some(DcsView {
        cluster: Arc::new(cluster(&pairs)),
        seen_at: NOW,
    });
    snapshot
}

/// With these tags.
pub(crate) fn with_tags(mut snapshot: Snapshot, tags: Value) -> Snapshot {
    snapshot.tags = serde_json::from_value(tags).expect("tags are an object");
    snapshot
}

/// The same, observed now on this host's clock.
pub(crate) fn live(mut snapshot: Snapshot) -> Snapshot {
    let now = Boottime::now();
    snapshot.observed_at = now;
    snapshot.next_run = now + Duration::from_secs(10);
    snapshot.leader_until = snapshot.leader_until.map(|_| now + Duration::from_secs(30));
    if let Some(view) = &mut snapshot.dcs {
        view.seen_at = now;
    }
    snapshot
}
