//! Synchronous replication as `/config` asks for it (contract: HA rules §11, environment §4).

use serde_json::{Map, Value};

use super::read::{read_bool, read_int};

/// Which standbys a commit waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncKind {
    /// None: asynchronous.
    #[default]
    Off,
    /// The chosen ones (`FIRST`).
    On,
    /// Any so many of them (`ANY`).
    Quorum,
}

/// `synchronous_mode` and what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncMode {
    /// Whether, and how.
    pub kind: SyncKind,
    /// Without a standby, commits wait rather than go on alone.
    pub strict: bool,
    /// Standbys a commit waits for; at least 1.
    pub node_count: usize,
    /// Standbys further behind than this many bytes are replaced; `None`: none is.
    pub maximum_lag: Option<u64>,
}

impl Default for SyncMode {
    fn default() -> Self {
        Self {
            kind: SyncKind::Off,
            strict: false,
            node_count: 1,
            maximum_lag: None,
        }
    }
}

impl SyncMode {
    /// Reads a `/config` document. A `synchronous_mode` that cannot be read counts as off, as everything unreadable does.
    #[must_use]
    pub fn from_map(raw: &Map<String, Value>) -> Self {
        let kind = match raw.get("synchronous_mode") {
            Some(Value::String(text)) if text.trim().eq_ignore_ascii_case("quorum") => SyncKind::Quorum,
            Some(value) if read_bool(value) == Some(true) => SyncKind::On,
            _ => SyncKind::Off,
        };
        let count = raw.get("synchronous_node_count").and_then(read_int).unwrap_or(1);
        let lag = raw
            .get("maximum_lag_on_syncnode")
            .and_then(read_int)
            .unwrap_or(-1);
        Self {
            kind,
            strict: raw
                .get("synchronous_mode_strict")
                .and_then(read_bool)
                .unwrap_or(false),
            node_count: usize::try_from(count.max(1)).unwrap_or(1),
            maximum_lag: u64::try_from(lag).ok().filter(|lag| *lag > 0),
        }
    }

    /// The fewest standbys a commit waits for whatever happens: one in strict mode, else none.
    #[must_use]
    pub const fn least(&self) -> usize {
        if self.strict { 1 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> SyncMode {
        SyncMode::from_map(value.as_object().expect("an object"))
    }

    #[test]
    fn reads_every_spelling() {
        assert_eq!(read(json!({})), SyncMode::default());
        assert_eq!(read(json!({"synchronous_mode": "Quorum"})).kind, SyncKind::Quorum);
        assert_eq!(read(json!({"synchronous_mode": "on"})).kind, SyncKind::On);
        assert_eq!(read(json!({"synchronous_mode": "perhaps"})).kind, SyncKind::Off);
        let all = read(json!({"synchronous_mode": true, "synchronous_mode_strict": "yes",
            "synchronous_node_count": "2", "maximum_lag_on_syncnode": 1024}));
        assert_eq!((all.least(), all.node_count, all.maximum_lag), (1, 2, Some(1024)));
        let off = read(json!({"synchronous_node_count": 0, "maximum_lag_on_syncnode": -1}));
        assert_eq!((off.node_count, off.maximum_lag), (1, None));
    }
}
