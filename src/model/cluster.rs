//! The whole cluster as one consistent read of the DCS shows it. Parsing is the same for every backend.

use serde_json::{Map, Value};

use super::{FailoverKey, HistoryRow, Lsn, Member, MemberName, StatusKey, SystemId, Timeline};

/// Version of one stored object, for compare-and-set: etcd's `mod_revision`, Consul's `ModifyIndex` …
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// One stored object, its path relative to the cluster's base (`leader`, `members/n1` …).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative path.
    pub path: String,
    /// Stored text; invalid UTF-8 is replaced.
    pub value: String,
    /// For compare-and-set.
    pub version: Version,
    /// Lease or session it is bound to; 0 for none.
    pub lease: i64,
}

/// The `/leader` key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// Who holds the lock. May have no member key.
    pub name: MemberName,
    /// Its version.
    pub version: Version,
    /// Lease it is bound to.
    pub lease: i64,
}

/// The `/sync` key, compared without regard to case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncKey {
    /// Leader that wrote it; `None` if the key is absent or empty.
    pub leader: Option<MemberName>,
    /// Votes a non-leader needs in quorum mode.
    pub quorum: u32,
    /// Names of synchronous standbys.
    pub standbys: Vec<MemberName>,
    /// For compare-and-set.
    pub version: Option<Version>,
}

impl SyncKey {
    fn parse(text: &str, version: Version) -> Self {
        let Ok(Value::Object(object)) = serde_json::from_str::<Value>(text) else {
            return Self {
                version: Some(version),
                ..Self::default()
            };
        };
        let name = |field: &str| {
            object
                .get(field)
                .and_then(Value::as_str)
                .filter(|n| !n.is_empty())
        };
        let Some(leader) = name("leader") else {
            return Self {
                version: Some(version),
                ..Self::default()
            };
        };
        let standbys = name("sync_standby")
            .unwrap_or_default()
            .split(',')
            .map(str::trim)
            .filter(|n| !n.is_empty());
        Self {
            leader: Some(leader.into()),
            quorum: object
                .get("quorum")
                .and_then(Value::as_u64)
                .and_then(|q| u32::try_from(q).ok())
                .unwrap_or(0),
            standbys: standbys.map(MemberName::from).collect(),
            version: Some(version),
        }
    }

    /// As stored: names sorted, `null` for none (contract: DCS layout §2).
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut names: Vec<&str> = self.standbys.iter().map(MemberName::as_str).collect();
        names.sort_unstable();
        let standbys = (!names.is_empty()).then(|| names.join(","));
        let leader = self.leader.as_ref().map(MemberName::as_str);
        serde_json::json!({"leader": leader, "quorum": self.quorum, "sync_standby": standbys}).to_string()
    }

    /// Whether `name` is among the standbys.
    #[must_use]
    pub fn has_standby(&self, name: &MemberName) -> bool {
        self.standbys
            .iter()
            .any(|standby| standby.0.eq_ignore_ascii_case(&name.0))
    }
}

/// Everything stored for one cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// `/initialize`: absent, empty while a first member bootstraps, or the system identifier.
    pub initialize: Option<String>,
    /// Version of `/initialize`.
    pub initialize_version: Option<Version>,
    /// `/config` when it is a JSON object.
    pub config: Option<Map<String, Value>>,
    /// Version of `/config`, also when its content was no object.
    pub config_version: Option<Version>,
    /// `/leader`.
    pub leader: Option<Leader>,
    /// `/members/*` by name.
    pub members: Vec<Member>,
    /// `/status`, or the legacy `/optime/leader`.
    pub status: StatusKey,
    /// `/failover` when it names somebody.
    pub failover: Option<FailoverKey>,
    /// Version of `/failover`.
    pub failover_version: Option<Version>,
    /// `/sync`.
    pub sync: SyncKey,
    /// `/history`; `None` if the key is absent or unreadable.
    pub history: Option<Vec<HistoryRow>>,
    /// `/failsafe`: member to api_url.
    pub failsafe: Option<Map<String, Value>>,
    /// Version of `/failsafe`, also when its content was no object.
    pub failsafe_version: Option<Version>,
}

impl Cluster {
    /// Builds the view from the stored objects, tolerating everything that older and foreign software wrote
    /// (contract: DCS layout §2, "parsing tolerance").
    #[must_use]
    pub fn from_entries(entries: &[Entry]) -> Self {
        let mut cluster = Self::default();
        let mut legacy_optime = None;
        let mut has_status = false;
        for entry in entries {
            let text = entry.value.as_str();
            match entry.path.as_str() {
                "initialize" => {
                    cluster.initialize_version = Some(entry.version);
                    cluster.initialize = Some(text.to_owned());
                }
                "config" => {
                    cluster.config_version = Some(entry.version);
                    cluster.config = serde_json::from_str(text).ok();
                }
                "leader" if !text.is_empty() => {
                    cluster.leader = Some(Leader {
                        name: text.into(),
                        version: entry.version,
                        lease: entry.lease,
                    });
                }
                "status" => {
                    has_status = true;
                    cluster.status = StatusKey::parse(text);
                }
                "optime/leader" => legacy_optime = text.trim().parse().ok().map(Lsn),
                "failover" => {
                    cluster.failover_version = Some(entry.version);
                    cluster.failover = FailoverKey::parse(text);
                }
                "sync" => cluster.sync = SyncKey::parse(text, entry.version),
                "history" => cluster.history = parse_history(text),
                "failsafe" => {
                    cluster.failsafe_version = Some(entry.version);
                    cluster.failsafe = serde_json::from_str(text).ok();
                }
                path => {
                    if let Some(name) = path.strip_prefix("members/").filter(|name| !name.is_empty()) {
                        cluster.members.push(Member::parse(name, text));
                    }
                }
            }
        }
        if let (false, Some(optime)) = (has_status, legacy_optime) {
            cluster.status.optime = optime;
        }
        cluster.members.sort_by(|a, b| a.name.cmp(&b.name));
        cluster
    }

    /// The member of that name.
    #[must_use]
    pub fn member(&self, name: &MemberName) -> Option<&Member> {
        self.members.iter().find(|member| member.name == *name)
    }

    /// The leader's member key, if it has one.
    #[must_use]
    pub fn leader_member(&self) -> Option<&Member> {
        self.member(&self.leader.as_ref()?.name)
    }

    /// Whether `name` holds the lock.
    #[must_use]
    pub fn is_leader(&self, name: &MemberName) -> bool {
        self.leader.as_ref().is_some_and(|leader| leader.name == *name)
    }

    /// The system identifier, when `/initialize` holds a valid one.
    #[must_use]
    pub fn system_id(&self) -> Option<SystemId> {
        self.initialize
            .as_deref()
            .filter(|text| SystemId::is_valid(text))
            .map(|text| SystemId(text.to_owned()))
    }

    /// Last timeline in `/history` + 1; 1 if the history is empty; unknown if there is none
    /// (contract: HA rules, vocabulary).
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        match self.history.as_deref() {
            None => Timeline::UNKNOWN,
            Some([]) => Timeline(1),
            Some([.., last]) => Timeline(last.timeline.0.saturating_add(1)),
        }
    }
}

fn parse_history(text: &str) -> Option<Vec<HistoryRow>> {
    let rows: Vec<Value> = serde_json::from_str(text).ok()?;
    rows.iter().map(HistoryRow::from_json).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(pairs: &[(&str, &str)]) -> Vec<Entry> {
        let entry = |(i, (path, value)): (usize, &(&str, &str))| Entry {
            path: (*path).into(),
            value: (*value).into(),
            version: Version(i as u64 + 1),
            lease: 0,
        };
        pairs.iter().enumerate().map(entry).collect()
    }

    #[test]
    fn reads_a_whole_cluster() {
        let cluster = Cluster::from_entries(&entries(&[
            ("initialize", "7400000000000000001"),
            ("leader", "n1"),
            ("members/n2", "{}"),
            ("members/n1", r#"{"conn_url":"postgres://h:5432/postgres"}"#),
            ("config", r#"{"ttl":30}"#),
            ("status", r#"{"optime":7}"#),
            ("history", r#"[[1,5,"r"],[2,6,"r","t","n1"]]"#),
            ("sync", r#"{"leader":"n1","quorum":0,"sync_standby":"N2,n3"}"#),
            ("failover", "{}"),
        ]));
        assert!(cluster.is_leader(&"n1".into()));
        assert_eq!(cluster.members.len(), 2);
        assert_eq!(cluster.members[0].name, "n1".into());
        assert_eq!(cluster.timeline(), Timeline(3));
        assert!(cluster.sync.has_standby(&"n2".into()));
        assert_eq!(cluster.failover, None);
        assert_eq!(cluster.failover_version, Some(Version(9)));
        assert_eq!(cluster.status.optime, Lsn(7));
    }

    #[test]
    fn the_sync_key_is_written_as_it_is_read() {
        for (names, text) in [
            (
                &["b", "a"][..],
                r#"{"leader":"n1","quorum":1,"sync_standby":"a,b"}"#,
            ),
            (&[], r#"{"leader":"n1","quorum":1,"sync_standby":null}"#),
        ] {
            let key = SyncKey {
                leader: Some("n1".into()),
                quorum: 1,
                standbys: names.iter().map(|name| MemberName::from(*name)).collect(),
                version: None,
            };
            assert_eq!(key.to_json(), text);
            let read = Cluster::from_entries(&entries(&[("sync", text)])).sync;
            assert_eq!((read.to_json().as_str(), read.leader), (text, key.leader));
        }
    }

    #[test]
    fn tolerates_what_old_software_left() {
        let cluster = Cluster::from_entries(&entries(&[
            ("config", "[]"),
            ("optime/leader", "42"),
            ("sync", "{}"),
            ("history", "junk"),
            ("leader", ""),
            ("unknown", "x"),
        ]));
        assert_eq!(cluster.config, None);
        assert_eq!(cluster.config_version, Some(Version(1)));
        assert_eq!(cluster.status.optime, Lsn(42));
        assert_eq!(cluster.sync.leader, None);
        assert_eq!(cluster.leader, None);
        assert_eq!(cluster.timeline(), Timeline::UNKNOWN);
        assert_eq!(
            Cluster::from_entries(&entries(&[("history", "[]")])).timeline(),
            Timeline(1)
        );
    }
}
