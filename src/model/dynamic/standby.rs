//! `standby_cluster`: this cluster follows another one (contract: environment §4, HA rules §5, §10).

use std::time::Duration;

use serde_json::{Map, Value};

use super::read::{read_duration, read_int, read_methods};

/// Where a standby cluster gets its data from. At least one of host, port and `restore_command` is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StandbyCluster {
    /// Host, or several separated by commas.
    pub host: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// Slot on the remote side.
    pub primary_slot_name: Option<String>,
    /// How the first member is created; empty: by `pg_basebackup`.
    pub create_replica_methods: Vec<String>,
    /// Command that fetches WAL from an archive.
    pub restore_command: Option<String>,
    /// Command that cleans the archive up.
    pub archive_cleanup_command: Option<String>,
    /// How long replay is held back.
    pub recovery_min_apply_delay: Option<Duration>,
}

impl StandbyCluster {
    /// Reads the section of a `/config` document; `None` where it is not there or says nothing of a source.
    #[must_use]
    pub fn from_map(raw: &Map<String, Value>) -> Option<Self> {
        let section = raw.get("standby_cluster")?.as_object()?;
        let text = |name: &str| {
            let value = section.get(name)?.as_str()?.trim();
            (!value.is_empty()).then(|| value.to_owned())
        };
        let standby = Self {
            host: text("host"),
            port: section
                .get("port")
                .and_then(read_int)
                .and_then(|port| u16::try_from(port).ok())
                .filter(|port| *port > 0),
            primary_slot_name: text("primary_slot_name"),
            create_replica_methods: read_methods(section),
            restore_command: text("restore_command"),
            archive_cleanup_command: text("archive_cleanup_command"),
            recovery_min_apply_delay: section.get("recovery_min_apply_delay").and_then(read_duration),
        };
        let has_source =
            standby.host.is_some() || standby.port.is_some() || standby.restore_command.is_some();
        has_source.then_some(standby)
    }

    /// Host (or several, separated by commas) and port of the server to stream from; `None`: there is only an archive.
    #[must_use]
    pub fn address(&self) -> Option<(String, u16)> {
        let host = match (&self.host, self.port) {
            (Some(host), _) => host.clone(),
            (None, Some(_)) => "localhost".to_owned(),
            (None, None) => return None,
        };
        Some((host, self.port.unwrap_or(5432)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(section: Value) -> Option<StandbyCluster> {
        StandbyCluster::from_map(
            json!({"standby_cluster": section})
                .as_object()
                .expect("an object"),
        )
    }

    #[test]
    fn an_archive_has_no_address() {
        let address = |section| read(section).and_then(|standby| standby.address());
        assert_eq!(address(json!({"restore_command": "cp"})), None);
        assert_eq!(address(json!({"host": "a,b"})), Some(("a,b".into(), 5432)));
        assert_eq!(address(json!({"port": 1})), Some(("localhost".into(), 1)));
    }

    #[test]
    fn a_section_without_a_source_is_none() {
        assert_eq!(read(json!(null)), None);
        assert_eq!(read(json!({})), None);
        assert_eq!(read(json!({"primary_slot_name": "x"})), None);
        assert!(read(json!({"restore_command": "cp /a/%f %p"})).is_some());
        let full = read(
            json!({"host": "h", "port": "5433", "create_replica_methods": ["m", "basebackup"],
            "recovery_min_apply_delay": "5min"}),
        );
        let full = full.expect("a source");
        assert_eq!((full.host.as_deref(), full.port), (Some("h"), Some(5433)));
        assert_eq!(full.create_replica_methods, ["m", "basebackup"]);
        assert_eq!(full.recovery_min_apply_delay, Some(Duration::from_secs(300)));
    }
}
