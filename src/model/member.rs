//! The `members/<name>` key (contract: DCS layout §4).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Lsn, MemberName, PgState, Role, Tags, Timeline};

/// The value of a member key; fields are written in this order. Unknown fields of other software are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberData {
    /// `postgres://host:port/database`, without credentials.
    pub conn_url: String,
    /// `http(s)://host:port/patroni`.
    pub api_url: String,
    /// What its postgres is doing.
    #[serde(deserialize_with = "lenient_state")]
    pub state: PgState,
    /// What it is.
    #[serde(deserialize_with = "lenient_role")]
    pub role: Role,
    /// Version of the wire protocol spoken, as Patroni numbers it.
    pub version: String,
    /// Address of a connection pooler in front of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_url: Option<String>,
    /// `false` only while a new primary has not yet checkpointed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_after_promote: Option<bool>,
    /// Effective tags.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub tags: Map<String, Value>,
    /// A restart is needed for settings to take effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending_restart: Option<bool>,
    /// Which settings, with old and new value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending_restart_reason: Option<Value>,
    /// Primary: flushed; replica: the larger of received and replayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xlog_location: Option<Lsn>,
    /// Replayed position of a replica.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay_lsn: Option<Lsn>,
    /// Received position of a replica.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive_lsn: Option<Lsn>,
    /// `streaming` or `in archive recovery`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_state: Option<String>,
    /// Timeline if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
    /// A restart that has been scheduled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduled_restart: Option<Value>,
    /// This member has noticed maintenance mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause: Option<bool>,
    /// What only this software says of itself; others ignore it. `{"reason": code, "failure": text}`: why this member
    /// neither streams nor is a primary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub howdah: Option<Value>,
}

impl Default for MemberData {
    fn default() -> Self {
        Self {
            conn_url: String::new(),
            api_url: String::new(),
            state: PgState::Unknown,
            role: Role::Uninitialized,
            version: String::new(),
            proxy_url: None,
            checkpoint_after_promote: None,
            tags: Map::new(),
            pending_restart: None,
            pending_restart_reason: None,
            xlog_location: None,
            replay_lsn: None,
            receive_lsn: None,
            replication_state: None,
            timeline: None,
            scheduled_restart: None,
            pause: None,
            howdah: None,
        }
    }
}

/// A text that newer software may have invented must not hide the whole member.
fn lenient_state<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<PgState, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or(PgState::Unknown))
}

fn lenient_role<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Role, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or(Role::Uninitialized))
}

/// A member as seen in the DCS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: MemberName,
    /// What it published.
    pub data: MemberData,
}

impl Member {
    /// Why it neither streams nor is a primary, if it says so.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.data.howdah.as_ref()?.get("reason")?.as_str()
    }

    /// Reads a member key: the object, or the legacy URL `postgres://host:port/db?application_name=<api_url>`.
    #[must_use]
    pub fn parse(name: &str, text: &str) -> Self {
        let data = serde_json::from_str(text).unwrap_or_else(|_| {
            let (conn_url, api_url) = text.split_once("?application_name=").unwrap_or((text, ""));
            MemberData {
                conn_url: conn_url.to_owned(),
                api_url: api_url.to_owned(),
                ..MemberData::default()
            }
        });
        Self {
            name: name.into(),
            data,
        }
    }

    /// Its tags with their meaning.
    #[must_use]
    pub fn tags(&self) -> Tags {
        Tags(self.data.tags.clone())
    }

    /// Host and port of its postgres, from `conn_url`. IPv6 hosts come without brackets.
    #[must_use]
    pub fn address(&self) -> Option<(String, u16)> {
        let rest = self.data.conn_url.split_once("://")?.1;
        let authority = rest.split(['/', '?']).next()?;
        let authority = authority.rsplit('@').next()?;
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => {
                let (host, tail) = v6.split_once(']')?;
                (host, tail.strip_prefix(':'))
            }
            None => match authority.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = port.map_or(Some(5432), |port| port.parse().ok())?;
        (!host.is_empty()).then(|| (host.to_owned(), port))
    }

    /// `host:port` of its REST API and whether it speaks TLS, from `api_url`.
    #[must_use]
    pub fn api_base(&self) -> Option<String> {
        let (scheme, rest) = self.data.api_url.split_once("://")?;
        let authority = rest.split('/').next().filter(|a| !a.is_empty())?;
        Some(format!("{scheme}://{authority}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_fields_in_the_contracts_order() {
        let data = MemberData {
            conn_url: "postgres://10.1.0.2:5432/postgres".into(),
            api_url: "http://10.1.0.2:8008/patroni".into(),
            state: PgState::Running,
            role: Role::Replica,
            version: "4.1.4".into(),
            xlog_location: Some(Lsn(83_886_408)),
            replay_lsn: Some(Lsn(83_886_408)),
            receive_lsn: Some(Lsn(83_886_408)),
            replication_state: Some("streaming".into()),
            timeline: Some(Timeline(4)),
            ..MemberData::default()
        };
        insta::assert_snapshot!(serde_json::to_string(&data).expect("plain data"), @r#"{"conn_url":"postgres://10.1.0.2:5432/postgres","api_url":"http://10.1.0.2:8008/patroni","state":"running","role":"replica","version":"4.1.4","xlog_location":83886408,"replay_lsn":83886408,"receive_lsn":83886408,"replication_state":"streaming","timeline":4}"#);
    }

    #[test]
    fn reads_foreign_and_legacy_values() {
        let member = Member::parse(
            "n1",
            r#"{"conn_url":"postgres://[::1]:5433/x","state":"dancing","role":"master","new":1}"#,
        );
        assert_eq!(member.address(), Some(("::1".into(), 5433)));
        assert_eq!(member.data.role, Role::Primary);
        assert_eq!(member.data.state, PgState::Unknown);
        let legacy = Member::parse("n1", "postgres://h:1/db?application_name=http://h:8008/patroni");
        assert_eq!(legacy.address(), Some(("h".into(), 1)));
        assert_eq!(legacy.api_base().as_deref(), Some("http://h:8008"));
        assert_eq!(Member::parse("n1", "").address(), None);
    }
}
