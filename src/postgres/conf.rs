//! `postgresql.conf` and the postmaster's command line, as pure text.
//!
//! Two steps: [`effective`] decides every parameter's value (defaults, protected parameters, the adaptation of a
//! replica to its primary), [`render_postgresql_conf`] and [`postmaster_args`] write it down. Putting the text on
//! disk: [`super::confdir`]. Rules: contract "PostgreSQL configuration" §1–§3, §8.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use serde_json::{Map, Value};

use crate::model::ControlData;

use super::{
    confdir::HEADER,
    guc::{self, Fit, Known, is_name, quote, text_of},
    protected::{
        NOT_ON_COMMAND_LINE, PROTECTED, Rule, accepted, cluster_name, is_protected, wal_keep_from_segments,
    },
    recovery::{RECOVERY_PARAMETERS, Recovery},
    version::Major,
};

/// Everything that decides the parameters.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// Version of the server.
    pub major: Major,
    /// Name of the cluster, becomes `cluster_name`.
    pub scope: &'a str,
    /// `listen_addresses`.
    pub listen_addresses: &'a str,
    /// `port`.
    pub port: u16,
    /// Directory of our own connections: `unix_socket_directories` when the user does not set it, one of them if he
    /// does.
    pub socket_dir: Option<&'a str>,
    /// `postgresql.parameters` of the dynamic configuration.
    pub dynamic: &'a Map<String, Value>,
    /// `postgresql.parameters` of this member.
    pub local: &'a Map<String, Value>,
    /// Values the HA logic insists on (`synchronous_standby_names`, `hot_standby_feedback`); they win over all.
    pub forced: &'a [(&'a str, String)],
    /// What the installed server knows; [`Known::default`] when it was not asked.
    pub known: &'a Known,
    /// Default of `max_slot_wal_keep_size`; `None`: PostgreSQL's own.
    pub slot_wal_limit: Option<String>,
    /// The data directory's control file when a replica is about to start: some values must not be lower there.
    pub replica_of: Option<&'a ControlData>,
}

/// A parameter whose configured value is not in force until the next restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingRestart {
    /// Name of the parameter.
    pub name: String,
    /// The value it runs with.
    pub old_value: String,
    /// The value the configuration asks for.
    pub new_value: String,
}

/// A configured value that is not used as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Name of the parameter.
    pub name: String,
    /// The value, as text.
    pub value: String,
    /// What happened to it and why.
    pub reason: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "parameter {} = '{}': {}", self.name, self.value, self.reason)
    }
}

/// Every parameter that goes into the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effective {
    /// Values by lower-case name.
    pub parameters: BTreeMap<String, String>,
    /// What was refused or changed.
    pub warnings: Vec<Warning>,
    /// Values a replica must raise for this start.
    pub pending_restart: Vec<PendingRestart>,
}

/// Parameters of this program that would fight with it.
const NEVER: &[&str] = &["config_file", "data_directory", "external_pid_file"];

/// Our own defaults, weaker than anything configured.
const DEFAULTS: &[(&str, &str)] = &[
    // The container's log is the log; a collector would hide it in files on the data volume.
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("password_encryption", "scram-sha-256"),
    // A replica whose new upstream was not ready at the first attempt must not wait PostgreSQL's five seconds.
    ("wal_retrieve_retry_interval", "500ms"),
];

/// All members must agree on it, so only the cluster's configuration counts.
#[must_use]
pub fn of_all_members(name: &str) -> bool {
    is_protected(name)
}

/// Nobody sets it but we.
#[must_use]
pub fn managed(name: &str) -> bool {
    let fixed = PROTECTED
        .iter()
        .any(|(protected, rule, _)| *protected == name && matches!(rule, Rule::Fixed));
    fixed || RECOVERY_PARAMETERS.contains(&name) || NEVER.contains(&name)
}

/// Our own default, where we have one.
#[must_use]
pub fn default_of(name: &str) -> Option<String> {
    let protected = PROTECTED.iter().map(|(name, _, default)| (*name, *default));
    let mut all = DEFAULTS.iter().copied().chain(protected);
    let (_, default) = all.find(|(known, default)| *known == name && !default.is_empty())?;
    Some(default.to_owned())
}

/// Decides the value of every parameter.
#[must_use]
pub fn effective(input: &Input<'_>) -> Effective {
    let mut result = Effective::default();
    for (name, value) in DEFAULTS {
        result.parameters.insert((*name).to_owned(), (*value).to_owned());
    }
    if let Some(limit) = &input.slot_wal_limit {
        let name = "max_slot_wal_keep_size".to_owned();
        result.parameters.insert(name, limit.clone());
    }
    if let Some(dir) = input.socket_dir {
        result
            .parameters
            .insert("unix_socket_directories".to_owned(), dir.to_owned());
    }
    for (source, map) in [("dynamic", input.dynamic), ("local", input.local)] {
        for (name, value) in map {
            result.take(input, source, name, value);
        }
    }
    if let Some(dir) = input.socket_dir {
        result.keep_socket(dir);
    }
    result.protect(input);
    for (name, value) in input.forced {
        result.parameters.insert((*name).to_owned(), value.clone());
    }
    if let Some(control) = input.replica_of {
        result.adapt_to_primary(control);
    }
    result
}

impl Effective {
    fn warn(&mut self, name: &str, value: impl Into<String>, reason: impl Into<String>) {
        self.warnings.push(Warning {
            name: name.to_owned(),
            value: value.into(),
            reason: reason.into(),
        });
    }

    fn take(&mut self, input: &Input<'_>, source: &str, raw_name: &str, value: &Value) {
        let name = raw_name.trim().to_ascii_lowercase();
        let shown = || guc::text_of(value).unwrap_or_else(|| value.to_string());
        if !is_name(&name) {
            return self.warn(raw_name, shown(), "dropped, this is no parameter name");
        }
        if is_protected(&name) || name == "wal_keep_segments" {
            if source == "local" {
                self.warn(
                    &name,
                    shown(),
                    "ignored, all members must agree on it: set it in the dynamic configuration",
                );
            }
            return;
        }
        if RECOVERY_PARAMETERS.contains(&name.as_str()) || NEVER.contains(&name.as_str()) {
            return self.warn(&name, shown(), "ignored, it is managed by the HA logic");
        }
        let Some(text) = text_of(value) else {
            if value.is_null() {
                // null takes a dynamic or default value back.
                self.parameters.remove(&name);
                return;
            }
            return self.warn(&name, shown(), "dropped, a text, number or boolean is expected");
        };
        if !input.major.has_parameter(&name) {
            return self.warn(
                &name,
                text,
                format!("dropped, PostgreSQL {} does not have it", input.major),
            );
        }
        if !input.known.has(&name) {
            return self.warn(&name, text, "dropped, this server does not know it");
        }
        match input.known.fit(&name, &text) {
            Fit::Good => {
                self.parameters.insert(name, text);
            }
            Fit::Clamped { to, why } => {
                self.warn(&name, text, format!("{why}, which is used instead"));
                self.parameters.insert(name, to);
            }
            Fit::Unusable(why) => self.warn(&name, text, format!("dropped, {why}")),
        }
    }

    /// Without a socket where the agent looks for it the server would run unseen.
    fn keep_socket(&mut self, dir: &str) {
        let list = self
            .parameters
            .entry("unix_socket_directories".to_owned())
            .or_default();
        let there = |list: &str| list.split(',').any(|one| one.trim().trim_matches('"') == dir);
        if !there(list) {
            // A directory with a comma in its name needs quotes here (PostgreSQL: SplitDirectoriesString).
            let dir = if dir.contains([',', '"']) {
                format!("\"{}\"", dir.replace('"', "\"\""))
            } else {
                dir.to_owned()
            };
            *list = if list.trim().is_empty() {
                dir
            } else {
                format!("{list}, {dir}")
            };
        }
    }

    fn protect(&mut self, input: &Input<'_>) {
        for (name, rule, default) in PROTECTED {
            let given = input
                .dynamic
                .iter()
                .find(|(given, _)| given.trim().eq_ignore_ascii_case(name));
            let value = match (*name, rule) {
                ("listen_addresses", _) => input.listen_addresses.to_owned(),
                ("port", _) => input.port.to_string(),
                ("cluster_name", _) => cluster_name(input.scope),
                ("wal_keep_size", Rule::AtLeastBytes(_)) if given.is_none() => {
                    wal_keep_from_segments(input.dynamic).unwrap_or_else(|| (*default).to_owned())
                }
                _ => given
                    .and_then(|(_, value)| accepted(rule, value))
                    .unwrap_or_else(|| (*default).to_owned()),
            };
            if let Some((_, raw)) = given.filter(|(_, raw)| !raw.is_null()) {
                let shown = text_of(raw).unwrap_or_else(|| raw.to_string());
                if matches!(rule, Rule::Fixed) {
                    self.warn(name, shown, "ignored, it cannot be set dynamically");
                } else if accepted(rule, raw).is_none() {
                    self.warn(name, shown, format!("not acceptable, {default} is used instead"));
                }
            }
            self.parameters.insert((*name).to_owned(), value);
        }
    }

    /// A replica refuses to start with less than its primary had (contract: PostgreSQL configuration §3).
    fn adapt_to_primary(&mut self, control: &ControlData) {
        for (name, primary) in &control.settings {
            let Some(configured) = self.parameters.get(name) else {
                continue;
            };
            let (Ok(wanted), Ok(needed)) = (configured.parse::<i64>(), primary.parse::<i64>()) else {
                continue;
            };
            if needed > wanted {
                self.pending_restart.push(PendingRestart {
                    name: name.clone(),
                    old_value: primary.clone(),
                    new_value: configured.clone(),
                });
                self.parameters.insert(name.clone(), primary.clone());
            }
        }
    }
}

/// What is written around the parameters.
#[derive(Debug, Clone, Default)]
pub struct Frame<'a> {
    /// File the user's own settings come from, e.g. `postgresql.base.conf`; ours win over it.
    pub include: &'a str,
    /// Path of `pg_hba.conf`; the user's own `hba_file` parameter wins.
    pub hba_file: &'a str,
    /// Path of `pg_ident.conf`; the user's own `ident_file` parameter wins.
    pub ident_file: &'a str,
    /// Settings of a replica.
    pub recovery: Option<&'a Recovery>,
}

/// The whole `postgresql.conf`.
#[must_use]
pub fn render_postgresql_conf(frame: &Frame<'_>, effective: &Effective) -> String {
    let mut text = String::from(HEADER);
    let mut put = |line: fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _ = text.write_fmt(line);
    };
    put(format_args!("include {}\n\n", quote(frame.include)));
    for (name, value) in &effective.parameters {
        put(format_args!("{name} = {}\n", quote(value)));
    }
    for (name, value) in [("hba_file", frame.hba_file), ("ident_file", frame.ident_file)] {
        if !effective.parameters.contains_key(name) && !value.is_empty() {
            put(format_args!("{name} = {}\n", quote(value)));
        }
    }
    if let Some(recovery) = frame.recovery {
        put(format_args!("\n# recovery\n"));
        for (name, value) in &recovery.settings {
            put(format_args!("{name} = {}\n", quote(value)));
        }
    }
    text
}

/// `--name=value` for the postmaster: protected values win over any file, so that ALTER SYSTEM or an included
/// file on one member cannot break the cluster.
#[must_use]
pub fn postmaster_args(effective: &Effective) -> Vec<String> {
    let names = PROTECTED
        .iter()
        .map(|(name, ..)| *name)
        .filter(|name| !NOT_ON_COMMAND_LINE.contains(name));
    names
        .filter_map(|name| Some(format!("--{name}={}", effective.parameters.get(name)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::recovery::{Follow, recovery_settings};
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    fn with(dynamic: Value, local: Value) -> Effective {
        run(15, &map(dynamic), &map(local), &Known::default(), None)
    }

    fn run(
        major: u16,
        dynamic: &Map<String, Value>,
        local: &Map<String, Value>,
        known: &Known,
        control: Option<&ControlData>,
    ) -> Effective {
        effective(&input(major, dynamic, local, known, control))
    }

    fn input<'a>(
        major: u16,
        dynamic: &'a Map<String, Value>,
        local: &'a Map<String, Value>,
        known: &'a Known,
        control: Option<&'a ControlData>,
    ) -> Input<'a> {
        Input {
            major: Major(major),
            scope: "demo",
            listen_addresses: "*",
            port: 5432,
            socket_dir: Some("/run/howdah"),
            dynamic,
            local,
            forced: &[],
            slot_wal_limit: None,
            known,
            replica_of: control,
        }
    }

    #[track_caller]
    fn value(effective: &Effective, name: &str) -> String {
        effective.parameters.get(name).cloned().unwrap_or_default()
    }

    #[test]
    fn a_primary_without_any_configuration() {
        let effective = with(json!({}), json!({}));
        assert_eq!(effective.warnings, []);
        let frame = Frame {
            include: "postgresql.base.conf",
            hba_file: "/data/pg_hba.conf",
            ident_file: "/data/pg_ident.conf",
            recovery: None,
        };
        insta::assert_snapshot!(render_postgresql_conf(&frame, &effective));
        insta::assert_snapshot!(postmaster_args(&effective).join("\n"));
    }

    #[test]
    fn a_replica_with_configuration() {
        let effective = with(
            json!({"max_connections": 200, "shared_buffers": "1GB", "archive_command": "echo 'it''s' \\ %p"}),
            json!({"shared_buffers": "2GB", "shared_preload_libraries": ["pg_stat_statements", "auto_explain"], "hba_file": "/etc/hba"}),
        );
        assert_eq!(effective.warnings, []);
        let recovery = recovery_settings(
            Major(15),
            &Follow {
                slot: Some("x"),
                ..Follow::default()
            },
        );
        let frame = Frame {
            include: "postgresql.base.conf",
            hba_file: "/data/pg_hba.conf",
            ident_file: "",
            recovery: Some(&recovery),
        };
        insta::assert_snapshot!(render_postgresql_conf(&frame, &effective));
    }

    #[test]
    fn protected_values_out_of_range_fall_back_with_a_warning() {
        let effective = with(
            json!({"max_connections": 24, "max_wal_senders": "lots", "wal_level": "minimal", "hot_standby": "off",
                "wal_keep_size": "15MB", "track_commit_timestamp": "YES", "max_locks_per_transaction": "0x40",
                "port": 1, "max_worker_processes": 99_999_999, "wal_log_hints": "o"}),
            json!({}),
        );
        let names: Vec<&str> = effective
            .warnings
            .iter()
            .map(|warning| warning.name.as_str())
            .collect();
        assert_eq!(
            names,
            [
                "port",
                "wal_level",
                "hot_standby",
                "max_connections",
                "max_wal_senders",
                "max_worker_processes",
                "wal_log_hints",
                "wal_keep_size"
            ]
        );
        for (name, expected) in [
            ("max_connections", "100"),
            ("max_wal_senders", "10"),
            ("wal_level", "replica"),
            ("hot_standby", "on"),
            ("wal_keep_size", "128MB"),
            ("track_commit_timestamp", "on"),
            ("max_locks_per_transaction", "64"),
            ("port", "5432"),
        ] {
            assert_eq!(value(&effective, name), expected, "{name}");
        }
    }

    #[test]
    fn members_cannot_deviate_in_protected_values() {
        let effective = with(
            json!({"MAX_CONNECTIONS": "150"}),
            json!({"max_connections": 500, "Max_Wal_Senders": 50}),
        );
        assert_eq!(value(&effective, "max_connections"), "150");
        assert_eq!(value(&effective, "max_wal_senders"), "10");
        assert_eq!(effective.warnings.len(), 2);
    }

    #[test]
    fn our_socket_is_always_among_the_directories() {
        for (given, expected) in [
            (json!({}), "/run/howdah"),
            (json!({"unix_socket_directories": ""}), "/run/howdah"),
            (json!({"unix_socket_directories": null}), "/run/howdah"),
            (json!({"unix_socket_directories": "/tmp"}), "/tmp, /run/howdah"),
            (
                json!({"unix_socket_directories": "/tmp,/run/howdah"}),
                "/tmp,/run/howdah",
            ),
        ] {
            assert_eq!(
                value(&with(given.clone(), json!({})), "unix_socket_directories"),
                expected
            );
            assert_eq!(
                value(&with(json!({}), given), "unix_socket_directories"),
                expected
            );
        }
    }

    #[test]
    fn wal_keep_segments_is_understood() {
        assert_eq!(
            value(
                &with(json!({"wal_keep_segments": 64}), json!({})),
                "wal_keep_size"
            ),
            "1024MB"
        );
        let both = with(
            json!({"wal_keep_segments": 64, "wal_keep_size": "2GB"}),
            json!({}),
        );
        assert_eq!(value(&both, "wal_keep_size"), "2048MB");
    }

    #[test]
    fn hot_standby_is_the_old_name_of_replica() {
        assert_eq!(
            value(&with(json!({"wal_level": "hot_standby"}), json!({})), "wal_level"),
            "replica"
        );
        assert_eq!(
            value(&with(json!({"wal_level": "logical"}), json!({})), "wal_level"),
            "logical"
        );
    }

    #[test]
    fn nonsense_is_dropped_with_a_reason() {
        let known = Known::parse("work_mem\tuser\tx\tINTEGER\nfsync\tsighup\tx\tBOOLEAN\n");
        let local = map(
            json!({"work_mem": "8MB", "wrok_mem": "8MB", "fsync": "perhaps", "a\nb": 1, "x": {"y": 1},
            "primary_conninfo": "host=evil", "data_directory": "/", "pg_cron.database": "app", "scram_iterations": 1}),
        );
        let effective = run(15, &Map::new(), &local, &known, None);
        let warnings: Vec<String> = effective.warnings.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(warnings.join("\n"));
        assert_eq!(value(&effective, "work_mem"), "8MB");
        assert_eq!(value(&effective, "pg_cron.database"), "app");
        let newer = run(
            16,
            &Map::new(),
            &map(json!({"scram_iterations": 1})),
            &Known::default(),
            None,
        );
        assert_eq!(value(&newer, "scram_iterations"), "1");
    }

    #[test]
    fn what_slots_may_hold_back_is_the_users_to_say() {
        let (known, none) = (Known::default(), Map::new());
        let limit = |dynamic: Value, local: Value| {
            let (dynamic, local) = (map(dynamic), map(local));
            let effective = effective(&Input {
                slot_wal_limit: Some("512MB".into()),
                dynamic: &dynamic,
                local: &local,
                ..input(15, &none, &none, &known, None)
            });
            value(&effective, "max_slot_wal_keep_size")
        };
        assert_eq!(limit(json!({}), json!({})), "512MB");
        assert_eq!(limit(json!({"max_slot_wal_keep_size": "9GB"}), json!({})), "9GB");
        assert_eq!(limit(json!({}), json!({"max_slot_wal_keep_size": -1})), "-1");
        assert_eq!(limit(json!({"max_slot_wal_keep_size": null}), json!({})), "");
    }

    #[test]
    fn null_takes_a_default_back() {
        let effective = with(json!({"log_destination": null}), json!({}));
        assert!(!effective.parameters.contains_key("log_destination"));
    }

    #[test]
    fn a_replica_starts_with_what_its_primary_had() {
        let text = include_str!("fixtures/pg_controldata-15.txt").replace(
            "max_connections setting:              100",
            "max_connections setting:              300",
        );
        let control = crate::postgres::control::parse(&text).expect("valid").control;
        let effective = run(15, &Map::new(), &Map::new(), &Known::default(), Some(&control));
        assert_eq!(value(&effective, "max_connections"), "300");
        let expected = PendingRestart {
            name: "max_connections".into(),
            old_value: "300".into(),
            new_value: "100".into(),
        };
        assert_eq!(effective.pending_restart, [expected]);
    }
}
