//! Parameters all members of a cluster must agree on, and what each accepts from the dynamic configuration
//! (contract: PostgreSQL configuration §2).

use serde_json::{Map, Value};

use crate::model::{read_bool, read_int};

use super::guc::{self, text_of};

/// What a protected parameter accepts from the dynamic configuration.
pub(super) enum Rule {
    /// This program sets it.
    Fixed,
    /// A boolean.
    Bool,
    /// Only true: without it a replica answers nobody.
    True,
    /// An integer of at least this.
    AtLeast(i64),
    /// A size of at least this many bytes, bare numbers in MB.
    AtLeastBytes(u64),
    /// One of these words.
    Word(&'static [&'static str]),
}

/// Protected parameters in the order of the command line: all members must agree on them
/// (contract: PostgreSQL configuration §2).
pub(super) const PROTECTED: &[(&str, Rule, &str)] = &[
    ("listen_addresses", Rule::Fixed, ""),
    ("port", Rule::Fixed, ""),
    ("cluster_name", Rule::Fixed, ""),
    (
        "wal_level",
        Rule::Word(&["replica", "logical", "hot_standby"]),
        "replica",
    ),
    ("hot_standby", Rule::True, "on"),
    ("max_connections", Rule::AtLeast(25), "100"),
    ("max_wal_senders", Rule::AtLeast(3), "10"),
    ("max_prepared_transactions", Rule::AtLeast(0), "0"),
    ("max_locks_per_transaction", Rule::AtLeast(32), "64"),
    ("track_commit_timestamp", Rule::Bool, "off"),
    ("max_replication_slots", Rule::AtLeast(4), "10"),
    ("max_worker_processes", Rule::AtLeast(2), "8"),
    ("wal_log_hints", Rule::Bool, "on"),
    ("wal_keep_size", Rule::AtLeastBytes(16 << 20), "128MB"),
];

/// Written to the file, but not repeated on the command line: it can be reloaded.
pub(super) const NOT_ON_COMMAND_LINE: &[&str] = &["wal_keep_size"];

pub(super) fn is_protected(name: &str) -> bool {
    PROTECTED.iter().any(|(protected, ..)| *protected == name)
}

/// PostgreSQL accepts printable ASCII and cuts at NAMEDATALEN.
pub(super) fn cluster_name(scope: &str) -> String {
    scope
        .chars()
        .map(|c| if matches!(c, ' '..='~') { c } else { '?' })
        .take(63)
        .collect()
}

/// The value to write, or `None` if the rule refuses it.
pub(super) fn accepted(rule: &Rule, value: &Value) -> Option<String> {
    let flag = |flag: bool| if flag { "on" } else { "off" }.to_owned();
    let read_flag = || read_bool(value).or_else(|| guc::parse_bool(value.as_str()?));
    match rule {
        Rule::Fixed => None,
        Rule::Bool => read_flag().map(flag),
        Rule::True => read_flag().filter(|on| *on).map(flag),
        Rule::AtLeast(least) => {
            let number = read_int(value)?;
            // The upper bound of all of them in PostgreSQL, give or take: beyond it the server would not start.
            (*least..=262_143).contains(&number).then(|| number.to_string())
        }
        Rule::AtLeastBytes(least) => {
            let text = text_of(value)?;
            let bytes = guc::parse_bytes(&text, 1 << 20)?;
            (bytes >= *least).then(|| {
                if bytes % (1 << 20) == 0 {
                    format!("{}MB", bytes >> 20)
                } else {
                    text
                }
            })
        }
        Rule::Word(words) => {
            let text = value.as_str()?.trim().to_ascii_lowercase();
            let text = if text == "hot_standby" {
                "replica".to_owned()
            } else {
                text
            };
            words.contains(&text.as_str()).then_some(text)
        }
    }
}

/// The old name of the parameter, in segments of 16 MB.
pub(super) fn wal_keep_from_segments(dynamic: &Map<String, Value>) -> Option<String> {
    let segments = read_int(dynamic.get("wal_keep_segments")?)?;
    (1..=1_000_000)
        .contains(&segments)
        .then(|| format!("{}MB", segments * 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_of_any_script_make_a_cluster_name() {
        assert_eq!(cluster_name("prod-é\n"), "prod-??");
        assert_eq!(cluster_name(&"x".repeat(100)).len(), 63);
    }
}
