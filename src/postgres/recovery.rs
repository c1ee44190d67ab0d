//! The settings of a replica: which are wanted, and whether a running server has them already
//! (contract: PostgreSQL configuration §5, §6).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{conninfo::Conninfo, guc, version::Major};

/// Settings that belong to recovery. They are never written as ordinary parameters and are removed from
/// `postgresql.auto.conf`.
pub const RECOVERY_PARAMETERS: &[&str] = &[
    "archive_cleanup_command",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
    "standby_mode",
    "trigger_file",
];

/// Targets are emptied, so that one in an included file cannot stop a replica short.
const TARGETS: &[&str] = &[
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

/// The recovery block of the configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// `standby.signal` is to be there.
    pub standby: bool,
    /// Settings by name.
    pub settings: BTreeMap<String, String>,
}

/// What a replica is to follow.
#[derive(Debug, Clone, Default)]
pub struct Follow<'a> {
    /// Connection to the followed server, with a passfile instead of a password; `None` when there is nothing to
    /// follow now.
    pub primary: Option<&'a Conninfo>,
    /// Slot to stream from.
    pub slot: Option<&'a str>,
    /// The user's `recovery_conf`.
    pub user: Option<&'a Map<String, Value>>,
    /// Settings of a standby cluster: restore_command, archive_cleanup_command, recovery_min_apply_delay.
    pub standby_cluster: Vec<(&'a str, String)>,
}

/// The settings of a primary: what a replica has and reads at start only. They mean nothing here, but without them a
/// promoted server would report with every reload that they wait for a restart.
#[must_use]
pub fn primary_settings() -> Recovery {
    let targets = TARGETS.iter().map(|name| ((*name).to_owned(), String::new()));
    let timeline = ("recovery_target_timeline".to_owned(), "latest".to_owned());
    Recovery {
        standby: false,
        settings: targets.chain([timeline]).collect(),
    }
}

/// The settings of a replica.
#[must_use]
pub fn recovery_settings(major: Major, follow: &Follow<'_>) -> Recovery {
    let mut settings = BTreeMap::new();
    for (name, value) in follow.user.into_iter().flatten() {
        let name = name.to_ascii_lowercase();
        let ours =
            name.starts_with("recovery_target") || name.starts_with("primary_") || name == "standby_mode";
        let exists = RECOVERY_PARAMETERS.contains(&name.as_str())
            && name != "trigger_file"
            && major.has_parameter(&name);
        if let Some(value) = guc::text_of(value).filter(|_| exists && !ours) {
            settings.insert(name, value);
        }
    }
    for (name, value) in &follow.standby_cluster {
        settings.insert((*name).to_owned(), value.clone());
    }
    settings.extend(primary_settings().settings);
    if let Some(primary) = follow.primary {
        settings.insert("primary_conninfo".to_owned(), primary.primary_conninfo(major));
        if let Some(slot) = follow.slot {
            settings.insert("primary_slot_name".to_owned(), slot.to_owned());
        }
    }
    Recovery {
        standby: true,
        settings,
    }
}

/// The settings of a recovery that ends: those of the operator, and a promotion where its target is reached (the default
/// would be to wait there for a person).
#[must_use]
pub fn target_settings(major: Major, given: &Map<String, Value>) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    for (name, value) in given {
        let name = name.to_ascii_lowercase();
        let exists = RECOVERY_PARAMETERS.contains(&name.as_str())
            && !matches!(
                name.as_str(),
                "standby_mode" | "trigger_file" | "promote_trigger_file"
            )
            && major.has_parameter(&name);
        if let Some(value) = guc::text_of(value).filter(|_| exists) {
            settings.insert(name, value);
        }
    }
    settings.insert("recovery_target_action".to_owned(), "promote".to_owned());
    settings
}

/// What it takes to make a running server use the wanted settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// It has them.
    No,
    /// Rewrite and reload.
    Reload,
    /// Rewrite and restart.
    Restart,
}

/// Compares the wanted settings with those in force (`pg_settings`: name, setting) and the presence of
/// `standby.signal`. For PostgreSQL 14 and newer.
#[must_use]
pub fn recovery_differs(
    wanted: &Recovery,
    current: &BTreeMap<String, String>,
    standby_signal: bool,
) -> Difference {
    if wanted.standby && !standby_signal {
        return Difference::Restart;
    }
    let names = RECOVERY_PARAMETERS
        .iter()
        .filter(|name| !matches!(**name, "standby_mode" | "trigger_file"));
    names
        .map(|name| one_differs(name, wanted, current))
        .max()
        .unwrap_or(Difference::No)
}

fn one_differs(name: &str, wanted: &Recovery, current: &BTreeMap<String, String>) -> Difference {
    let current = current.get(name).map_or("", String::as_str);
    let Some(value) = wanted.settings.get(name) else {
        // Anything else may come from a file of the user's own and is left alone.
        let ours = matches!(name, "primary_conninfo" | "primary_slot_name") && !current.is_empty();
        // Without a connection the slot name does nothing.
        let idle_slot = name == "primary_slot_name" && !wanted.settings.contains_key("primary_conninfo");
        return if ours && !idle_slot {
            Difference::Reload
        } else {
            Difference::No
        };
    };
    let same = match name {
        "primary_conninfo" => same_conninfo(value, current),
        "recovery_min_apply_delay" => milliseconds(value) == milliseconds(current),
        _ => value == current,
    };
    match (same, name.starts_with("recovery_target")) {
        (true, _) => Difference::No,
        (false, true) => Difference::Restart,
        (false, false) => Difference::Reload,
    }
}

/// The order of keywords and the way of quoting mean nothing.
fn same_conninfo(one: &str, other: &str) -> bool {
    match (Conninfo::parse(one), Conninfo::parse(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

fn milliseconds(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    if text.is_empty() {
        return Some(0);
    }
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// `postgresql.auto.conf` without recovery settings and these others; `None` when there is nothing to remove. ALTER
/// SYSTEM must not decide whom a replica follows.
#[must_use]
pub fn strip_settings(auto_conf: &str, also: &[&str]) -> Option<String> {
    let is_ours = |line: &&str| {
        let name = line
            .trim_start()
            .split(|c: char| c == '=' || c.is_whitespace())
            .next()
            .unwrap_or_default();
        let name = name.to_ascii_lowercase();
        RECOVERY_PARAMETERS.contains(&name.as_str()) || also.contains(&name.as_str())
    };
    let kept: Vec<&str> = auto_conf.lines().filter(|line| !is_ours(line)).collect();
    (kept.len() != auto_conf.lines().count()).then(|| kept.iter().map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wanted(slot: Option<&str>) -> Recovery {
        let primary = Conninfo::new().with("host", "a").with("user", "r");
        let user = json!({"restore_command": "cp 'x' %p", "recovery_target_time": "now", "standby_mode": "on",
            "primary_conninfo": "evil", "recovery_min_apply_delay": "1h", "nonsense": 1, "trigger_file": "x"});
        let follow = Follow {
            primary: Some(&primary),
            slot,
            user: user.as_object(),
            standby_cluster: Vec::new(),
        };
        recovery_settings(Major(15), &follow)
    }

    fn current(wanted: &Recovery) -> BTreeMap<String, String> {
        wanted.settings.clone()
    }

    #[test]
    fn a_promotion_leaves_nothing_that_waits_for_a_restart() {
        let replica = recovery_settings(Major(15), &Follow::default());
        assert_eq!(primary_settings().settings, replica.settings);
        assert!(replica.standby && !primary_settings().standby);
    }

    #[test]
    fn a_replica_gets_exactly_its_settings() {
        insta::assert_debug_snapshot!(wanted(Some("pg_1")));
    }

    #[test]
    fn a_recovery_ends_at_its_target() {
        let given = json!({"Restore_Command": "cp /a/%f %p", "recovery_target_time": "2026-01-01", "nonsense": 1,
            "standby_mode": "on", "recovery_target_inclusive": false});
        let settings = target_settings(Major(15), given.as_object().expect("a map"));
        let names: Vec<&str> = settings.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "recovery_target_action",
                "recovery_target_inclusive",
                "recovery_target_time",
                "restore_command"
            ]
        );
        assert_eq!(settings["recovery_target_action"], "promote");
        assert_eq!(settings["recovery_target_inclusive"], "off");
    }

    #[test]
    fn nothing_to_follow_leaves_no_connection() {
        let recovery = recovery_settings(
            Major(18),
            &Follow {
                slot: Some("s"),
                ..Follow::default()
            },
        );
        assert!(recovery.standby);
        assert!(!recovery.settings.keys().any(|name| name.starts_with("primary")));
    }

    #[test]
    fn equal_settings_need_nothing() {
        let wanted = wanted(Some("pg_1"));
        let mut current = current(&wanted);
        assert_eq!(recovery_differs(&wanted, &current, true), Difference::No);
        current.insert("primary_conninfo".into(), "user='r'  host=a".into());
        current.insert("recovery_min_apply_delay".into(), "3600000".into());
        current.insert("recovery_end_command".into(), "the user's own".into());
        assert_eq!(recovery_differs(&wanted, &current, true), Difference::No);
    }

    #[test]
    fn a_new_leader_is_a_reload_and_a_target_a_restart() {
        let wanted = wanted(Some("pg_1"));
        let with = |name: &str, value: &str| {
            let mut current = current(&wanted);
            current.insert(name.to_owned(), value.to_owned());
            recovery_differs(&wanted, &current, true)
        };
        assert_eq!(with("primary_conninfo", "host=b user=r"), Difference::Reload);
        assert_eq!(with("primary_slot_name", ""), Difference::Reload);
        assert_eq!(with("restore_command", "false"), Difference::Reload);
        assert_eq!(with("recovery_target_time", "2020-01-01"), Difference::Restart);
        assert_eq!(
            recovery_differs(&wanted, &current(&wanted), false),
            Difference::Restart
        );
    }

    #[test]
    fn a_connection_that_is_no_longer_wanted_goes() {
        let wanted = recovery_settings(Major(15), &Follow::default());
        let mut current = current(&wanted);
        current.insert("primary_slot_name".into(), "x".into());
        assert_eq!(recovery_differs(&wanted, &current, true), Difference::No);
        current.insert("primary_conninfo".into(), "host=a".into());
        assert_eq!(recovery_differs(&wanted, &current, true), Difference::Reload);
    }

    #[test]
    fn alter_system_cannot_steer_a_replica() {
        let text = "# Do not edit\nwork_mem = '1MB'\nPRIMARY_CONNINFO = 'host=evil'\n  restore_command='x'\n";
        assert_eq!(
            strip_settings(text, &[]).as_deref(),
            Some("# Do not edit\nwork_mem = '1MB'\n")
        );
        assert_eq!(strip_settings("work_mem = '1MB'\n", &[]), None);
        assert_eq!(strip_settings("", &[]), None);
    }
}
