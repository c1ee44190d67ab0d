//! What another member answers to GET /patroni, as far as an election cares (contract: REST API §5).

use serde_json::Value;

use super::{Lsn, Role, Tags, Timeline};

/// A member's own word about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its role.
    pub role: Role,
    /// In recovery: everything but a primary.
    pub in_recovery: bool,
    /// Primary: flushed; replica: the larger of received and replayed.
    pub position: Lsn,
    /// It may have more than that: it still replays the WAL it was started with.
    pub replaying: bool,
    /// WAL of the last leader may still come in.
    pub receiving: bool,
    /// Its timeline if it knows it.
    pub timeline: Timeline,
    /// Its tags.
    pub tags: Tags,
    /// It needs a watchdog and has none.
    pub watchdog_failed: bool,
}

impl PeerStatus {
    /// Reads the answer. A missing `xlog` object makes the member count as unreachable: `None`.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        let xlog = value.get("xlog").or_else(|| value.get("wal"))?.as_object()?;
        let lsn = |field: &str| Lsn(xlog.get(field).and_then(Value::as_u64).unwrap_or(0));
        let role: Role = serde_json::from_value(value.get("role")?.clone()).ok()?;
        let in_recovery = !xlog.contains_key("location");
        Some(Self {
            role,
            in_recovery,
            position: lsn("location")
                .max(lsn("received_location"))
                .max(lsn("replayed_location")),
            replaying: value
                .pointer("/howdah/replaying")
                .and_then(Value::as_bool)
                .unwrap_or(false),
            receiving: value
                .pointer("/howdah/receiving")
                .and_then(Value::as_bool)
                .unwrap_or(false),
            timeline: value
                .get("timeline")
                .and_then(Value::as_u64)
                .and_then(|tl| u32::try_from(tl).ok())
                .map_or(Timeline::UNKNOWN, Timeline),
            tags: value
                .get("tags")
                .and_then(|t| serde_json::from_value(t.clone()).ok())
                .unwrap_or_default(),
            watchdog_failed: value
                .get("watchdog_failed")
                .and_then(Value::as_bool)
                .unwrap_or(false),
        })
    }

    /// Could be promoted: not excluded by tag or watchdog.
    #[must_use]
    pub fn can_lead(&self) -> bool {
        !self.tags.nofailover() && !self.watchdog_failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_replica_and_primary() {
        let replica = serde_json::json!({"state": "running", "role": "replica", "timeline": 4,
            "xlog": {"received_location": 10, "replayed_location": 12, "replayed_timestamp": null, "paused": false}});
        let peer = PeerStatus::from_json(&replica).expect("complete");
        assert!(peer.in_recovery);
        assert_eq!((peer.position, peer.timeline), (Lsn(12), Timeline(4)));
        assert!(!peer.replaying);
        let mut starting = replica.clone();
        starting["howdah"] = serde_json::json!({"replaying": true});
        assert!(PeerStatus::from_json(&starting).expect("complete").replaying);
        let primary = serde_json::json!({"role": "master", "xlog": {"location": 99}});
        assert!(!PeerStatus::from_json(&primary).expect("complete").in_recovery);
    }

    #[test]
    fn without_positions_it_counts_as_unreachable() {
        assert_eq!(
            PeerStatus::from_json(&serde_json::json!({"state": "stopped", "role": "demoted"})),
            None
        );
        assert_eq!(PeerStatus::from_json(&Value::Null), None);
    }
}
