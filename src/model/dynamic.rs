//! The dynamic configuration (`/config`): typed reading with defaults, and the merge rules of PATCH.

use std::time::Duration;

use serde_json::{Map, Value};

/// Reads a boolean as Patroni does: `on/true/yes/1` and `off/false/no/0`, in any case.
#[must_use]
pub fn read_bool(value: &Value) -> Option<bool> {
    let text = match value {
        Value::Bool(flag) => return Some(*flag),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.trim().to_ascii_lowercase(),
        _ => return None,
    };
    match text.as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// Reads an integer as Patroni does: numbers, decimal, C-style hexadecimal and octal text, floats rounded.
#[must_use]
pub fn read_int(value: &Value) -> Option<i64> {
    #[allow(clippy::cast_possible_truncation)]
    let rounded = |float: f64| (float.is_finite() && float.abs() < 9e15).then(|| float.round() as i64);
    match value {
        Value::Number(number) => number.as_i64().or_else(|| rounded(number.as_f64()?)),
        Value::String(text) => {
            let text = text.trim();
            let (negative, digits) = match text.strip_prefix('-') {
                Some(rest) => (true, rest),
                None => (false, text.strip_prefix('+').unwrap_or(text)),
            };
            // The parsers below would take a sign of their own: "--5", "0x-5".
            if !digits.starts_with(|c: char| c.is_ascii_digit()) {
                return None;
            }
            match read_magnitude(digits) {
                Some(n) => i64::try_from(if negative { -i128::from(n) } else { n.into() }).ok(),
                None => rounded(text.parse().ok()?),
            }
        }
        _ => None,
    }
}

/// Decimal, C-style hexadecimal or octal digits.
fn read_magnitude(digits: &str) -> Option<u64> {
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        return hex
            .bytes()
            .all(|b| b.is_ascii_hexdigit())
            .then(|| u64::from_str_radix(hex, 16).ok())?;
    }
    let octal = digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
    if octal {
        u64::from_str_radix(digits, 8).ok()
    } else {
        digits.parse().ok()
    }
}

/// The three times everything else is derived from, after the timeout rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Lease of the leader lock.
    pub ttl: Duration,
    /// Heartbeat of the HA loop when nothing happens.
    pub loop_wait: Duration,
    /// Budget for retrying the DCS and postgres.
    pub retry_timeout: Duration,
}

impl Timing {
    /// Applies minimums and the rule `loop_wait + 2*retry_timeout <= ttl` to this member's own copy
    /// (contract: environment §4). The least ttl is 3 s; Patroni members clamp it to 20 s themselves.
    #[must_use]
    pub fn adjusted(ttl_s: i64, loop_wait_s: i64, retry_timeout_s: i64) -> Self {
        let ttl = ttl_s.clamp(3, 86_400);
        let mut loop_wait = loop_wait_s.clamp(1, 86_400);
        let mut retry = retry_timeout_s.clamp(1, 86_400);
        if loop_wait + 2 * retry > ttl {
            loop_wait = ttl - 2 * retry;
            if loop_wait < 1 {
                loop_wait = 1;
                retry = (ttl - 1) / 2;
            }
        }
        let seconds = |n: i64| Duration::from_secs(n.unsigned_abs());
        Self {
            ttl: seconds(ttl),
            loop_wait: seconds(loop_wait),
            retry_timeout: seconds(retry),
        }
    }
}

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

    /// Promises in the document that this build does not keep; see [`unkept_promises`].
    #[must_use]
    pub fn unkept_promises(&self) -> Vec<&'static str> {
        unkept_promises(&self.raw)
    }

    /// The `postgresql` part of the document.
    #[must_use]
    pub fn postgresql(&self) -> Option<&Map<String, Value>> {
        self.raw.get("postgresql").and_then(Value::as_object)
    }
}

/// Promises of a `/config` document about durability and about whose data this is that the core does not keep yet. They
/// must never look kept: a member's own configuration that asks for one is refused, a stored one is complained about.
#[must_use]
pub fn unkept_promises(document: &Map<String, Value>) -> Vec<&'static str> {
    let synchronous = document
        .get("synchronous_mode")
        .is_some_and(|value| !value.is_null() && read_bool(value) != Some(false));
    let standby = document
        .get("standby_cluster")
        .and_then(Value::as_object)
        .is_some_and(|section| !section.is_empty());
    [(synchronous, "synchronous_mode"), (standby, "standby_cluster")]
        .into_iter()
        .filter_map(|(asked, name)| asked.then_some(name))
        .collect()
}

/// Merges a PATCH into a document: `null` removes, objects merge into objects, anything else replaces when
/// its text differs (contract: REST API §8). Returns whether anything changed.
pub fn merge_patch(target: &mut Map<String, Value>, patch: &Map<String, Value>) -> bool {
    let mut changed = false;
    for (key, value) in patch {
        match (target.get_mut(key), value) {
            (None, Value::Null) => {}
            (Some(_), Value::Null) => {
                target.remove(key);
                changed = true;
            }
            (Some(Value::Object(inner)), Value::Object(patch)) => changed |= merge_patch(inner, patch),
            (Some(old), new) if text_of(old) == text_of(new) => {}
            (_, Value::Object(patch)) => {
                let mut fresh = Map::new();
                merge_patch(&mut fresh, patch);
                target.insert(key.clone(), Value::Object(fresh));
                changed = true;
            }
            (_, new) => {
                target.insert(key.clone(), new.clone());
                changed = true;
            }
        }
    }
    changed
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn the_timeout_rule_bends_loop_wait_first() {
        let secs = |t: Timing| (t.ttl.as_secs(), t.loop_wait.as_secs(), t.retry_timeout.as_secs());
        assert_eq!(secs(Timing::adjusted(30, 10, 10)), (30, 10, 10));
        assert_eq!(secs(Timing::adjusted(25, 10, 10)), (25, 5, 10));
        assert_eq!(secs(Timing::adjusted(20, 10, 10)), (20, 1, 9));
        assert_eq!(secs(Timing::adjusted(5, 1, 2)), (5, 1, 2));
        assert_eq!(secs(Timing::adjusted(-4, 0, 0)), (3, 1, 1));
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
    fn numbers_in_text_have_one_sign_and_may_not_fit() {
        for (text, expected) in [
            ("5", Some(5)),
            ("-5", Some(-5)),
            ("+5", Some(5)),
            (" 0x1e ", Some(30)),
            ("-0x1E", Some(-30)),
            ("010", Some(8)),
            ("0", Some(0)),
            ("1.6", Some(2)),
            ("-1.6", Some(-2)),
            ("1e3", Some(1000)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("-9223372036854775809", None),
            ("9223372036854775808", None),
            ("99999999999999999999", None),
            ("-0xffffffffffffffff", None),
            ("--9223372036854775808", None),
            ("--5", None),
            ("-+5", None),
            ("+-5", None),
            ("0x-5", None),
            ("0x", None),
            ("-", None),
            ("", None),
            ("nan", None),
            ("inf", None),
        ] {
            assert_eq!(read_int(&json!(text)), expected, "{text}");
        }
    }

    #[test]
    fn promises_that_are_not_kept_are_named() {
        for (document, expected) in [
            (json!({}), &[][..]),
            (json!({"synchronous_mode": false, "standby_cluster": null}), &[]),
            (json!({"synchronous_mode": "off", "standby_cluster": {}}), &[]),
            (json!({"synchronous_mode": true}), &["synchronous_mode"]),
            (json!({"synchronous_mode": "quorum"}), &["synchronous_mode"]),
            (
                json!({"synchronous_mode": "on", "standby_cluster": {"host": "h"}}),
                &["synchronous_mode", "standby_cluster"],
            ),
        ] {
            let dynamic = Dynamic::from_map(&map(document.clone()));
            assert_eq!(dynamic.unkept_promises(), expected, "{document}");
        }
    }

    #[test]
    fn patch_merges_removes_and_replaces() {
        let mut target = map(json!({"ttl": 30, "postgresql": {"parameters": {"a": 1, "b": 2}}}));
        assert!(merge_patch(
            &mut target,
            &map(json!({"postgresql": {"parameters": {"a": null, "c": 3}}, "x": {"y": null}}))
        ));
        assert_eq!(
            Value::Object(target.clone()),
            json!({"ttl": 30, "postgresql": {"parameters": {"b": 2, "c": 3}}, "x": {}})
        );
        assert!(!merge_patch(
            &mut target,
            &map(json!({"ttl": "30", "gone": null}))
        ));
        assert!(merge_patch(&mut target, &map(json!({"ttl": {"deep": 1}}))));
        assert_eq!(target["ttl"], json!({"deep": 1}));
    }
}
