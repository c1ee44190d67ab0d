//! The dynamic configuration (`/config`): typed reading with defaults, and the merge rules of PATCH.

mod check;
mod merge;
mod read;
mod slots;
mod standby;
mod sync;
mod timing;

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Map, Value};

pub use check::{Remark, Trouble, dynamic_names, new_remarks, remarks};
pub use merge::merge_patch;
pub use read::{read_bool, read_duration, read_int, read_methods};
pub use slots::{IgnoreSlot, PermanentSlot, SlotKind, SlotScope};
pub use standby::StandbyCluster;
pub use sync::{SyncKind, SyncMode};
pub use timing::Timing;

/// Slots of members that are away are kept this long unless `member_slots_ttl` says otherwise.
const MEMBER_SLOTS_TTL: Duration = Duration::from_secs(1800);

/// The dynamic configuration in force, with defaults filled in. The raw document stays available.
#[derive(Debug, Clone, PartialEq)]
pub struct Dynamic {
    /// Timing after adjustment.
    pub timing: Timing,
    /// Maintenance mode.
    pub pause: bool,
    /// A replica more than this many bytes behind the last known leader position is no candidate.
    pub maximum_lag_on_failover: u64,
    /// Refuse candidates behind the cluster's timeline.
    pub check_timeline: bool,
    /// Time a leader's postgres may take to start before it gives up the lock; zero: fail over at once.
    pub primary_start_timeout: Duration,
    /// Upper bound for stopping a primary; zero: the default bound.
    pub primary_stop_timeout: Duration,
    /// Rows kept in `/history`; 0 keeps all.
    pub max_timelines_history: usize,
    /// How long the race for the lock is left alone while WAL still arrives; zero: not at all.
    pub primary_race_backoff: Duration,
    /// Synchronous replication.
    pub sync: SyncMode,
    /// A primary that cannot reach the DCS goes on while every member in `/failsafe` accepts it.
    pub failsafe_mode: bool,
    /// This cluster follows another.
    pub standby: Option<StandbyCluster>,
    /// How long slots of members that are away are kept; zero: they go at once.
    pub member_slots_ttl: Duration,
    /// Slots that are kept across failovers, by name.
    pub permanent_slots: BTreeMap<String, PermanentSlot>,
    /// Slots that are none of our business.
    pub ignore_slots: Vec<IgnoreSlot>,
    /// `postgresql.use_pg_rewind`.
    pub use_pg_rewind: bool,
    /// `postgresql.remove_data_directory_on_rewind_failure`: what pg_rewind could not mend is not kept.
    pub remove_data_directory_on_rewind_failure: bool,
    /// `postgresql.remove_data_directory_on_diverged_timelines`: what has diverged is not kept.
    pub remove_data_directory_on_diverged_timelines: bool,
    /// `postgresql.use_slots`.
    pub use_slots: bool,
    /// The document as stored.
    pub raw: Map<String, Value>,
}

impl Default for Dynamic {
    fn default() -> Self {
        Self::from_map(&Map::new())
    }
}

impl Dynamic {
    /// Reads a `/config` document; what cannot be read counts as not given.
    #[must_use]
    pub fn from_map(raw: &Map<String, Value>) -> Self {
        let int = |names: &[&str], default: i64| {
            names
                .iter()
                .find_map(|name| raw.get(*name))
                .and_then(read_int)
                .unwrap_or(default)
        };
        let flag = |map: Option<&Map<String, Value>>, name: &str, default: bool| {
            map.and_then(|map| map.get(name))
                .and_then(read_bool)
                .unwrap_or(default)
        };
        let postgresql = raw.get("postgresql").and_then(Value::as_object);
        // A year is as good as for ever, and no sum of it with a clock overflows.
        let seconds = |n: i64| Duration::from_secs(n.clamp(0, 366 * 86_400).unsigned_abs());
        Self {
            timing: Timing::adjusted(
                int(&["ttl"], 30),
                int(&["loop_wait"], 10),
                int(&["retry_timeout"], 10),
            ),
            pause: flag(Some(raw), "pause", false),
            maximum_lag_on_failover: u64::try_from(int(&["maximum_lag_on_failover"], 1_048_576)).unwrap_or(0),
            check_timeline: flag(Some(raw), "check_timeline", false),
            primary_start_timeout: seconds(int(&["primary_start_timeout", "master_start_timeout"], 300)),
            primary_stop_timeout: seconds(int(&["primary_stop_timeout", "master_stop_timeout"], 0)),
            max_timelines_history: usize::try_from(int(&["max_timelines_history"], 0)).unwrap_or(0),
            primary_race_backoff: seconds(int(&["primary_race_backoff"], 0)),
            sync: SyncMode::from_map(raw),
            failsafe_mode: flag(Some(raw), "failsafe_mode", false),
            standby: StandbyCluster::from_map(raw),
            member_slots_ttl: raw
                .get("member_slots_ttl")
                .and_then(read_duration)
                .unwrap_or(MEMBER_SLOTS_TTL),
            permanent_slots: slots::permanent_slots(raw),
            ignore_slots: slots::ignore_slots(raw),
            use_pg_rewind: flag(postgresql, "use_pg_rewind", true),
            remove_data_directory_on_rewind_failure: flag(
                postgresql,
                "remove_data_directory_on_rewind_failure",
                false,
            ),
            remove_data_directory_on_diverged_timelines: flag(
                postgresql,
                "remove_data_directory_on_diverged_timelines",
                false,
            ),
            use_slots: flag(postgresql, "use_slots", true),
            raw: raw.clone(),
        }
    }

    /// The `postgresql` part of the document.
    #[must_use]
    pub fn postgresql(&self) -> Option<&Map<String, Value>> {
        self.raw.get("postgresql").and_then(Value::as_object)
    }
}

/// The first `/config` of a new cluster: what was given, and failsafe mode unless that says otherwise. A cluster that
/// exists keeps what its `/config` says.
#[must_use]
pub fn of_new_cluster(given: &Map<String, Value>) -> Map<String, Value> {
    let mut document = given.clone();
    document.entry("failsafe_mode").or_insert(Value::Bool(true));
    document
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn reads_numbers_and_flags_as_text() {
        let dynamic = Dynamic::from_map(&map(
            json!({"ttl": "0x1e", "pause": "YES", "maximum_lag_on_failover": 1e6,
            "master_start_timeout": 7, "postgresql": {"use_pg_rewind": "off"}}),
        ));
        assert_eq!(dynamic.timing.ttl.as_secs(), 30);
        assert!(dynamic.pause);
        assert_eq!(dynamic.maximum_lag_on_failover, 1_000_000);
        assert_eq!(dynamic.primary_start_timeout.as_secs(), 7);
        assert!(!dynamic.use_pg_rewind);
        let nonsense = Dynamic::from_map(&map(json!({"ttl": "soon", "pause": [], "loop_wait": null})));
        assert_eq!(
            (nonsense.timing, nonsense.pause),
            (Dynamic::default().timing, false)
        );
    }

    #[test]
    fn failsafe_mode_is_on_in_a_new_cluster_and_off_where_a_stored_document_does_not_name_it() {
        let new = |document| Dynamic::from_map(&of_new_cluster(&map(document))).failsafe_mode;
        assert!(new(json!({"ttl": 20})));
        assert!(!new(json!({"failsafe_mode": "off"})));
        assert!(!Dynamic::from_map(&map(json!({"ttl": 20}))).failsafe_mode);
    }
}
