//! The cluster as GET /cluster and the member table of the CLI show it (contract: REST API §6).
//!
//! [`ClusterView`] is made from the DCS or read back from another member's answer, so that `list` looks the same
//! wherever its data comes from.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::agent::handle::SyncMode;
use crate::model::{Cluster, Dynamic, Lsn, Member, MemberName, PgState, StandbyCluster, SyncKey, Timeline};

/// What a member is in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberRole {
    /// Holds the lock.
    Leader,
    /// Holds the lock of a standby cluster.
    StandbyLeader,
    /// In `/sync`, synchronous mode.
    SyncStandby,
    /// In `/sync`, quorum mode.
    QuorumStandby,
    /// Everyone else.
    Replica,
}

impl MemberRole {
    const ALL: [Self; 5] = [
        Self::Leader,
        Self::StandbyLeader,
        Self::SyncStandby,
        Self::QuorumStandby,
        Self::Replica,
    ];

    /// The text on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::StandbyLeader => "standby_leader",
            Self::SyncStandby => "sync_standby",
            Self::QuorumStandby => "quorum_standby",
            Self::Replica => "replica",
        }
    }

    /// Holds the lock.
    #[must_use]
    pub const fn leads(self) -> bool {
        matches!(self, Self::Leader | Self::StandbyLeader)
    }
}

/// A position of a member and how far it is behind the leader; `None` if the member did not publish it.
pub type Position = Option<(Lsn, u64)>;

/// Positions of a member that does not hold the lock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions {
    /// Received.
    pub receive: Position,
    /// Replayed.
    pub replay: Position,
    /// The larger of the two, from `xlog_location`.
    pub last: Position,
}

/// One member.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberView {
    /// Name.
    pub name: MemberName,
    /// Role in the cluster.
    pub role: MemberRole,
    /// Replication state if it has one and does not lead, else the state of its postgres.
    pub state: String,
    /// Its REST API, as published.
    pub api_url: String,
    /// Address of its postgres.
    pub address: Option<(String, u16)>,
    /// Timeline if known.
    pub timeline: Option<Timeline>,
    /// A restart is needed.
    pub pending_restart: bool,
    /// Settings that wait for it.
    pub pending_restart_reason: Map<String, Value>,
    /// A restart that has been scheduled.
    pub scheduled_restart: Option<Value>,
    /// Code of why it neither streams nor is a primary.
    pub reason: Option<String>,
    /// Published tags.
    pub tags: Map<String, Value>,
    /// `None` for whoever holds the lock.
    pub positions: Option<Positions>,
}

impl MemberView {
    /// Base URL of its REST API, without path.
    #[must_use]
    pub fn api_base(&self) -> Option<String> {
        let (scheme, rest) = self.api_url.split_once("://")?;
        let authority = rest.split('/').next().filter(|authority| !authority.is_empty())?;
        Some(format!("{scheme}://{authority}"))
    }

    /// Its `nofailover` tag (or a priority that means the same).
    #[must_use]
    pub fn nofailover(&self) -> bool {
        crate::model::Tags(self.tags.clone()).nofailover()
    }
}

/// A switchover that waits for its time. Times and names as text, as on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduledSwitchover {
    /// ISO 8601.
    pub at: String,
    /// The leader that will hand over.
    pub from: Option<String>,
    /// The member that will take over.
    pub to: Option<String>,
}

/// The whole cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterView {
    /// Its name.
    pub scope: String,
    /// By name.
    pub members: Vec<MemberView>,
    /// Maintenance mode.
    pub pause: bool,
    /// A switchover that waits for its time.
    pub scheduled_switchover: Option<ScheduledSwitchover>,
    /// How old this is; `None` if it was read from the store for this view.
    pub seen_ago: Option<Duration>,
}

/// The synchronous mode a configuration document asks for.
#[must_use]
pub fn configured_sync(config: &Map<String, Value>) -> SyncMode {
    crate::model::SyncMode::from_map(config).kind.into()
}

fn is_standby_cluster(config: &Map<String, Value>) -> bool {
    StandbyCluster::from_map(config).is_some()
}

impl ClusterView {
    /// The view of what is stored.
    #[must_use]
    pub fn of(scope: &str, cluster: &Cluster) -> Self {
        let empty = Map::new();
        let config = cluster.config.as_ref().unwrap_or(&empty);
        let standby_cluster = is_standby_cluster(config);
        let sync = if standby_cluster {
            SyncMode::Off
        } else {
            configured_sync(config)
        };
        let view = |member: &Member| {
            let role = match (cluster.is_leader(&member.name), standby_cluster) {
                (true, true) => MemberRole::StandbyLeader,
                (true, false) => MemberRole::Leader,
                (false, _) => standby_role(sync, &cluster.sync, &member.name),
            };
            member_view(member, role, cluster.status.optime)
        };
        let scheduled = cluster.failover.as_ref().and_then(|key| {
            let at = key.scheduled_at?.display_with_offset(jiff::tz::Offset::UTC);
            Some(ScheduledSwitchover {
                at: at.to_string(),
                from: key.leader.as_ref().map(MemberName::to_string),
                to: key.candidate.as_ref().map(MemberName::to_string),
            })
        });
        Self {
            scope: scope.to_owned(),
            members: cluster.members.iter().map(view).collect(),
            pause: Dynamic::from_map(config).pause,
            scheduled_switchover: scheduled,
            seen_ago: None,
        }
    }

    /// Who holds the lock.
    #[must_use]
    pub fn leader(&self) -> Option<&MemberView> {
        self.members.iter().find(|member| member.role.leads())
    }

    /// The member of that name.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&MemberView> {
        self.members.iter().find(|member| member.name.as_str() == name)
    }

    /// The answer to GET /cluster.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        let members: Vec<Value> = self.members.iter().map(member_json).collect();
        out.insert("members".into(), members.into());
        if self.pause {
            out.insert("pause".into(), true.into());
        }
        if let Some(scheduled) = &self.scheduled_switchover {
            let mut object = Map::new();
            object.insert("at".into(), scheduled.at.clone().into());
            for (key, name) in [("from", &scheduled.from), ("to", &scheduled.to)] {
                if let Some(name) = name {
                    object.insert(key.into(), name.clone().into());
                }
            }
            out.insert("scheduled_switchover".into(), object.into());
        }
        out.insert("scope".into(), self.scope.clone().into());
        if let Some(age) = self.seen_ago {
            out.insert("seen_seconds_ago".into(), age.as_secs().into());
        }
        Value::Object(out)
    }

    /// Reads an answer to GET /cluster; `None` if it is something else.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        let members = value.get("members")?.as_array()?;
        let scheduled = value.get("scheduled_switchover").and_then(|object| {
            Some(ScheduledSwitchover {
                at: text(object, "at")?,
                from: text(object, "from"),
                to: text(object, "to"),
            })
        });
        Some(Self {
            scope: text(value, "scope").unwrap_or_default(),
            members: members.iter().filter_map(read_member).collect(),
            pause: value.get("pause").and_then(Value::as_bool).unwrap_or(false),
            scheduled_switchover: scheduled,
            seen_ago: value
                .get("seen_seconds_ago")
                .and_then(Value::as_u64)
                .map(Duration::from_secs),
        })
    }
}

fn standby_role(mode: SyncMode, sync: &SyncKey, name: &MemberName) -> MemberRole {
    match mode {
        SyncMode::Priority if sync.has_standby(name) => MemberRole::SyncStandby,
        SyncMode::Quorum if sync.has_standby(name) => MemberRole::QuorumStandby,
        _ => MemberRole::Replica,
    }
}

fn member_view(member: &Member, role: MemberRole, optime: Lsn) -> MemberView {
    let data = &member.data;
    let position = |lsn: Option<Lsn>| lsn.map(|lsn| (lsn, optime.bytes_ahead_of(lsn)));
    let state = match (&data.replication_state, role) {
        (Some(state), role) if role != MemberRole::Leader && !state.is_empty() => state.clone(),
        _ => data.state.as_str().to_owned(),
    };
    MemberView {
        name: member.name.clone(),
        role,
        state,
        api_url: data.api_url.clone(),
        address: member.address(),
        timeline: data.timeline,
        pending_restart: data.pending_restart.unwrap_or(false),
        pending_restart_reason: match &data.pending_restart_reason {
            Some(Value::Object(reasons)) => reasons.clone(),
            _ => Map::new(),
        },
        scheduled_restart: data.scheduled_restart.clone(),
        reason: member.reason().map(str::to_owned),
        tags: data.tags.clone(),
        positions: (!role.leads()).then(|| Positions {
            receive: position(data.receive_lsn),
            replay: position(data.replay_lsn),
            last: position(data.xlog_location),
        }),
    }
}

fn member_json(member: &MemberView) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    put("name", json!(member.name));
    put("role", member.role.as_str().into());
    put("state", member.state.clone().into());
    put("api_url", member.api_url.clone().into());
    if let Some((host, port)) = &member.address {
        put("host", host.clone().into());
        put("port", (*port).into());
    }
    if let Some(timeline) = member.timeline {
        put("timeline", timeline.0.into());
    }
    if member.pending_restart {
        put("pending_restart", true.into());
    }
    if !member.pending_restart_reason.is_empty() {
        put(
            "pending_restart_reason",
            member.pending_restart_reason.clone().into(),
        );
    }
    if let Some(restart) = &member.scheduled_restart {
        put("scheduled_restart", restart.clone());
    }
    if let Some(reason) = &member.reason {
        put("reason", reason.clone().into());
    }
    if !member.tags.is_empty() {
        put("tags", member.tags.clone().into());
    }
    if let Some(Positions {
        receive,
        replay,
        last,
    }) = &member.positions
    {
        for (prefix, position) in [("receive_", receive), ("replay_", replay), ("", last)] {
            let unknown = || Value::from("unknown");
            put(
                &format!("{prefix}lag"),
                position.map_or_else(unknown, |(_, lag)| lag.into()),
            );
            put(
                &format!("{prefix}lsn"),
                position.map_or_else(unknown, |(lsn, _)| lsn.to_string().into()),
            );
        }
    }
    Value::Object(out)
}

fn text(object: &Value, key: &str) -> Option<String> {
    object.get(key).and_then(Value::as_str).map(str::to_owned)
}

fn read_member(value: &Value) -> Option<MemberView> {
    let role = text(value, "role").unwrap_or_default();
    let role = MemberRole::ALL
        .into_iter()
        .find(|known| known.as_str() == role)
        .unwrap_or(MemberRole::Replica);
    let object = |key: &str| {
        value
            .get(key)
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default()
    };
    let number = |key: &str| value.get(key).and_then(Value::as_u64);
    let position = |prefix: &str| {
        let lsn = text(value, &format!("{prefix}lsn"))?.parse().ok()?;
        Some((lsn, number(&format!("{prefix}lag")).unwrap_or(0)))
    };
    let port = number("port").and_then(|port| u16::try_from(port).ok());
    Some(MemberView {
        name: MemberName(text(value, "name")?),
        role,
        state: text(value, "state").unwrap_or_else(|| PgState::Unknown.as_str().to_owned()),
        api_url: text(value, "api_url").unwrap_or_default(),
        address: text(value, "host").map(|host| (host, port.unwrap_or(5432))),
        timeline: number("timeline")
            .and_then(|n| u32::try_from(n).ok())
            .map(Timeline),
        pending_restart: value
            .get("pending_restart")
            .and_then(Value::as_bool)
            .unwrap_or(false),
        pending_restart_reason: object("pending_restart_reason"),
        scheduled_restart: value.get("scheduled_restart").cloned(),
        reason: text(value, "reason"),
        tags: object("tags"),
        positions: (!role.leads()).then(|| Positions {
            receive: position("receive_"),
            replay: position("replay_"),
            last: position(""),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent::handle::fixtures::{HEALTHY, cluster},
        api::json,
    };

    fn with(more: &[(&str, &str)]) -> ClusterView {
        ClusterView::of("demo", &cluster(&[HEALTHY, more].concat()))
    }

    #[test]
    fn a_healthy_cluster_as_in_the_contract() {
        let view = with(&[(
            "failover",
            r#"{"leader":"n1","scheduled_at":"2026-02-01T03:00:00+00:00"}"#,
        )]);
        insta::assert_snapshot!(json::text(&view.to_json()), @r#"{"members": [{"name": "n1", "role": "leader", "state": "running", "api_url": "http://10.1.0.1:8008/patroni", "host": "10.1.0.1", "port": 5432, "timeline": 4}, {"name": "n2", "role": "replica", "state": "streaming", "api_url": "http://10.1.0.2:8008/patroni", "host": "10.1.0.2", "port": 5432, "timeline": 4, "receive_lag": 0, "receive_lsn": "0/5000148", "replay_lag": 64, "replay_lsn": "0/5000108", "lag": 0, "lsn": "0/5000148"}], "scheduled_switchover": {"at": "2026-02-01T03:00:00+00:00", "from": "n1"}, "scope": "demo"}"#);
    }

    #[test]
    fn an_answer_reads_back_as_the_view_it_came_from() {
        let view = with(&[
            ("config", r#"{"pause":true}"#),
            (
                "members/n3",
                r#"{"state":"creating replica","tags":{"nofailover":true},"pending_restart":true,"pending_restart_reason":{"a":{"old_value":"1","new_value":"2"}},"scheduled_restart":{"schedule":"x"}}"#,
            ),
            (
                "failover",
                r#"{"leader":"n1","member":"n2","scheduled_at":"2026-02-01T03:00:00+00:00"}"#,
            ),
        ]);
        assert_eq!(
            view.member("n3").expect("listed").positions,
            Some(Positions::default())
        );
        assert_eq!(ClusterView::from_json(&view.to_json()), Some(view));
        assert_eq!(ClusterView::from_json(&json!({"error": 1})), None);
    }

    #[test]
    fn sync_roles_show_only_in_sync_mode() {
        let sync = ("sync", r#"{"leader":"n1","sync_standby":"N2"}"#);
        let role = |config| {
            with(&[sync, ("config", config)])
                .member("n2")
                .expect("listed")
                .role
        };
        assert_eq!(role("{}"), MemberRole::Replica);
        assert_eq!(role(r#"{"synchronous_mode":"on"}"#), MemberRole::SyncStandby);
        assert_eq!(
            role(r#"{"synchronous_mode":"quorum"}"#),
            MemberRole::QuorumStandby
        );
        assert_eq!(
            role(r#"{"synchronous_mode":true,"standby_cluster":{"host":"h"}}"#),
            MemberRole::Replica
        );
    }

    #[test]
    fn a_leader_without_a_member_key_is_not_listed() {
        assert_eq!(with(&[("leader", "gone")]).leader(), None);
    }
}
