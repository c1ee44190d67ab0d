//! PostgreSQL versions, and every difference between them that this program cares about.

use std::fmt;

use serde::Serialize;

/// A major version, e.g. 17.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Major(pub u16);

/// A full version, e.g. 17.2. Development and beta versions have minor 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Version {
    /// Decides about the data directory's format.
    pub major: Major,
    /// Bug fixes.
    pub minor: u16,
}

/// The text says nothing about a PostgreSQL version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a PostgreSQL version (expected a text such as 'postgres (PostgreSQL) 17.2' or '17')")]
pub struct ParseVersionError(pub String);

impl Version {
    /// Reads the output of `postgres --version`, e.g. `postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)`.
    ///
    /// # Errors
    /// The text has another shape.
    pub fn parse(text: &str) -> Result<Self, ParseVersionError> {
        let parse = || {
            let number = text.split_once("(PostgreSQL)")?.1.split_whitespace().next()?;
            let digits = number.bytes().take_while(u8::is_ascii_digit).count();
            let (major, rest) = number.split_at(digits);
            let minor = rest.strip_prefix('.').and_then(|minor| minor.parse().ok());
            Some(Self {
                major: Major(major.parse().ok()?),
                minor: minor.unwrap_or(0),
            })
        };
        parse().ok_or_else(|| ParseVersionError(text.trim().chars().take(80).collect()))
    }

    /// As `server_version_num` writes it, e.g. 150020.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.major.0 as u32 * 10_000 + self.minor as u32
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Major {
    /// The oldest version this program is made for.
    pub const OLDEST: Self = Self(14);
    /// The newest version this program was tried with.
    pub const NEWEST: Self = Self(18);

    /// Reads the content of a `PG_VERSION` file. Versions before 10 ("9.6") are read as their first number.
    ///
    /// # Errors
    /// The text is not a number.
    pub fn parse_pg_version(text: &str) -> Result<Self, ParseVersionError> {
        let first = text.trim().split('.').next().unwrap_or_default();
        let refused = || ParseVersionError(text.trim().chars().take(80).collect());
        first.parse().map(Self).map_err(|_| refused())
    }

    /// Old enough to be known. Newer ones than [`Self::NEWEST`] are allowed: refusing them would stop a
    /// working cluster for a number.
    #[must_use]
    pub const fn is_supported(self) -> bool {
        self.0 >= Self::OLDEST.0
    }

    /// `pg_basebackup --compress=server-…` exists.
    #[must_use]
    pub const fn compresses_basebackup_on_server(self) -> bool {
        self.0 >= 15
    }

    /// `pg_rewind --config-file` exists.
    #[must_use]
    pub const fn rewind_takes_config_file(self) -> bool {
        self.0 >= 15
    }

    /// `initdb` turns data checksums on by itself (and has `--no-data-checksums`).
    #[must_use]
    pub const fn initdb_defaults_to_checksums(self) -> bool {
        self.0 >= 18
    }

    /// `initdb --no-instructions` exists (PostgreSQL 14).
    #[must_use]
    pub const fn initdb_has_no_instructions(self) -> bool {
        self.0 >= 14
    }

    /// libpq knows `sslnegotiation`; the walreceiver reports and slot sync uses `dbname`.
    #[must_use]
    pub const fn conninfo_has_sslnegotiation(self) -> bool {
        self.0 >= 17
    }

    /// Whether a parameter exists in this version, as far as the table below knows; `true` when it is
    /// not in the table.
    #[must_use]
    pub fn has_parameter(self, name: &str) -> bool {
        let known = |table: &[(u16, &[&str])]| {
            table
                .iter()
                .find_map(|(version, names)| names.contains(&name).then_some(*version))
        };
        known(ADDED).is_none_or(|since| self.0 >= since) && known(REMOVED).is_none_or(|gone| self.0 < gone)
    }
}

/// Parameters by the version that brought them.
const ADDED: &[(u16, &[&str])] = &[
    (
        15,
        &[
            "allow_in_place_tablespaces",
            "archive_library",
            "log_startup_progress_interval",
            "recovery_prefetch",
            "recursive_worktable_factor",
            "stats_fetch_consistency",
            "wal_decode_buffer_size",
        ],
    ),
    (
        16,
        &[
            "createrole_self_grant",
            "debug_io_direct",
            "debug_logical_replication_streaming",
            "debug_parallel_query",
            "enable_presorted_aggregate",
            "gss_accept_delegation",
            "icu_validation_level",
            "max_parallel_apply_workers_per_subscription",
            "reserved_connections",
            "scram_iterations",
            "send_abort_for_crash",
            "send_abort_for_kill",
            "vacuum_buffer_usage_limit",
        ],
    ),
    (
        17,
        &[
            "allow_alter_system",
            "commit_timestamp_buffers",
            "enable_group_by_reordering",
            "event_triggers",
            "io_combine_limit",
            "max_notify_queue_pages",
            "multixact_member_buffers",
            "multixact_offset_buffers",
            "notify_buffers",
            "restrict_nonsystem_relation_kind",
            "serializable_buffers",
            "subtransaction_buffers",
            "summarize_wal",
            "sync_replication_slots",
            "synchronized_standby_slots",
            "trace_connection_negotiation",
            "transaction_buffers",
            "transaction_timeout",
            "wal_summary_keep_time",
        ],
    ),
    (
        18,
        &[
            "autovacuum_vacuum_max_threshold",
            "autovacuum_worker_slots",
            "enable_distinct_reordering",
            "enable_self_join_elimination",
            "extension_control_path",
            "file_copy_method",
            "idle_replication_slot_timeout",
            "io_max_combine_limit",
            "io_max_concurrency",
            "io_method",
            "io_workers",
            "log_lock_failures",
            "max_active_replication_origins",
            "md5_password_warnings",
            "oauth_validator_libraries",
            "ssl_groups",
            "ssl_tls13_ciphers",
            "track_cost_delay_timing",
            "vacuum_max_eager_freeze_failure_rate",
            "vacuum_truncate",
        ],
    ),
];

/// Parameters by the version that no longer has them.
const REMOVED: &[(u16, &[&str])] = &[
    (13, &["wal_keep_segments"]),
    (
        14,
        &["operator_precedence_warning", "vacuum_cleanup_index_scale_factor"],
    ),
    (15, &["exclusive_backup", "stats_temp_directory"]),
    (
        16,
        &[
            "force_parallel_mode",
            "promote_trigger_file",
            "vacuum_defer_cleanup_age",
        ],
    ),
    (
        17,
        &[
            "db_user_namespace",
            "old_snapshot_threshold",
            "trace_recovery_messages",
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_postgres_prints() {
        let version = |text| Version::parse(text).map(|version| version.to_string());
        assert_eq!(
            version("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)\n"),
            Ok("15.20".into())
        );
        assert_eq!(version("initdb (PostgreSQL) 18.0"), Ok("18.0".into()));
        assert_eq!(version("postgres (PostgreSQL) 18beta1"), Ok("18.0".into()));
        assert_eq!(version("postgres (PostgreSQL) 19devel"), Ok("19.0".into()));
        assert_eq!(
            Version::parse("postgres (PostgreSQL) 15.20").map(Version::number),
            Ok(150_020)
        );
    }

    #[test]
    fn refuses_nonsense() {
        for text in [
            "",
            "(PostgreSQL)",
            "postgres (PostgreSQL) x",
            "postgres 15",
            "postgres (PostgreSQL) 99999999.1",
        ] {
            assert!(Version::parse(text).is_err(), "{text}");
        }
        for text in ["", "x", "-1", "1x"] {
            assert!(Major::parse_pg_version(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_the_version_file() {
        assert_eq!(Major::parse_pg_version("15\n"), Ok(Major(15)));
        let old = Major::parse_pg_version("9.6\n").expect("a number");
        assert!(!old.is_supported());
        assert!(Major(14).is_supported() && Major(19).is_supported());
    }

    #[test]
    fn parameters_come_and_go() {
        assert!(!Major(15).has_parameter("scram_iterations"));
        assert!(Major(16).has_parameter("scram_iterations"));
        assert!(Major(15).has_parameter("promote_trigger_file"));
        assert!(!Major(16).has_parameter("promote_trigger_file"));
        assert!(Major(14).has_parameter("work_mem"));
        assert!(!Major(14).has_parameter("wal_keep_segments"));
    }
}
