//! Tags of a member (contract: HA rules §12, environment §3).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{read_bool, read_int};

/// The tags of a member exactly as given, with readers for those that mean something here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tags(pub Map<String, Value>);

impl Tags {
    fn flag(&self, name: &str) -> bool {
        self.0.get(name).and_then(read_bool).unwrap_or(false)
    }

    /// Must never become leader: `nofailover`, or, where that is not given, `failover_priority` of 0 or less.
    #[must_use]
    pub fn nofailover(&self) -> bool {
        match self.0.get("nofailover").and_then(read_bool) {
            Some(flag) => flag,
            None => self.failover_priority() <= 0,
        }
    }

    /// Higher wins between members at the same position; 1 unless given, 0 with `nofailover: true`.
    #[must_use]
    pub fn failover_priority(&self) -> i64 {
        if self.0.get("nofailover").and_then(read_bool) == Some(true) {
            return 0;
        }
        self.0.get("failover_priority").and_then(read_int).unwrap_or(1)
    }

    /// Must never be a synchronous standby: `nosync`, or, where that is not given, `sync_priority` of 0 or less.
    #[must_use]
    pub fn nosync(&self) -> bool {
        match self.0.get("nosync").and_then(read_bool) {
            Some(flag) => flag,
            None => self.sync_priority() <= 0,
        }
    }

    /// Higher is chosen first as a synchronous standby; 1 unless given, 0 with `nosync: true`.
    #[must_use]
    pub fn sync_priority(&self) -> i64 {
        if self.0.get("nosync").and_then(read_bool) == Some(true) {
            return 0;
        }
        self.0.get("sync_priority").and_then(read_int).unwrap_or(1)
    }

    /// Not to be used for read-only traffic.
    #[must_use]
    pub fn noloadbalance(&self) -> bool {
        self.flag("noloadbalance")
    }

    /// A preferred source to clone from.
    #[must_use]
    pub fn clonefrom(&self) -> bool {
        self.flag("clonefrom")
    }

    /// Never streams; lives from the archive alone.
    #[must_use]
    pub fn nostream(&self) -> bool {
        self.flag("nostream")
    }

    /// Member to stream from instead of the leader.
    #[must_use]
    pub fn replicatefrom(&self) -> Option<&str> {
        self.0
            .get("replicatefrom")
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
    }

    /// The tags as published: false-ish values of the boolean tags are left out, unless the priority tag
    /// that could contradict them is there.
    #[must_use]
    pub fn published(&self) -> Map<String, Value> {
        let partner = |name: &str| match name {
            "nofailover" => Some("failover_priority"),
            "nosync" => Some("sync_priority"),
            _ => None,
        };
        self.0
            .iter()
            .filter(|(name, value)| match name.as_str() {
                "clonefrom" | "nofailover" | "noloadbalance" | "nosync" | "nostream" => {
                    read_bool(value).unwrap_or(false)
                        || partner(name).is_some_and(|partner| self.0.contains_key(partner))
                }
                _ => true,
            })
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(value: Value) -> Tags {
        serde_json::from_value(value).expect("an object")
    }

    #[test]
    fn nofailover_wins_over_priority() {
        assert!(!tags(serde_json::json!({})).nofailover());
        assert!(tags(serde_json::json!({"failover_priority": 0})).nofailover());
        assert!(!tags(serde_json::json!({"nofailover": false, "failover_priority": 0})).nofailover());
        assert_eq!(
            tags(serde_json::json!({"nofailover": true, "failover_priority": 5})).failover_priority(),
            0
        );
        assert_eq!(
            tags(serde_json::json!({"failover_priority": "3"})).failover_priority(),
            3
        );
    }

    #[test]
    fn false_flags_are_not_published() {
        let published =
            tags(serde_json::json!({"clonefrom": false, "noloadbalance": true, "x": 1})).published();
        assert_eq!(
            Value::Object(published),
            serde_json::json!({"noloadbalance": true, "x": 1})
        );
    }
}
