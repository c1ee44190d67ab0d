//! Parameter values: quoting them for `postgresql.conf`, reading them as PostgreSQL does, and the list of
//! parameters the installed server knows.

use std::{collections::HashMap, time::Duration};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{binaries::Binaries, command};

/// Quotes a value for `postgresql.conf`. A line break inside quotes would be a syntax error there, so control
/// characters are written as escapes (PostgreSQL: `GUC_scanstr` in `guc-file.l`).
#[must_use]
pub fn quote(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 2);
    text.push('\'');
    for c in value.chars() {
        match c {
            '\'' => text.push_str("''"),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            // Not even an escape can carry it.
            '\0' => {}
            c => text.push(c),
        }
    }
    text.push('\'');
    text
}

/// The value of a parameter in a file written with [`quote`]; the last one counts.
#[must_use]
pub fn value_in(text: &str, name: &str) -> Option<String> {
    let value = |line: &str| {
        let (given, value) = line.split_once('=')?;
        let quoted = value.trim().strip_prefix('\'')?.strip_suffix('\'')?;
        given.trim().eq_ignore_ascii_case(name).then(|| unquote(quoted))
    };
    text.lines().rev().find_map(value)
}

fn unquote(quoted: &str) -> String {
    let mut text = String::with_capacity(quoted.len());
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            // The second of a pair.
            '\'' => text.extend(chars.next()),
            '\\' => match chars.next() {
                Some('n') => text.push('\n'),
                Some('r') => text.push('\r'),
                other => text.extend(other),
            },
            c => text.push(c),
        }
    }
    text
}

/// A parameter name: identifiers joined by dots, as the configuration file's grammar wants them.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let identifier = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$')
    };
    !name.is_empty() && name.split('.').all(identifier)
}

/// A configured value as text; `None` for null and for maps. Lists become comma-separated.
#[must_use]
pub fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::Null | Value::Object(_) => None,
        Value::Bool(flag) => Some(if *flag { "on" } else { "off" }.to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Array(items) => items
            .iter()
            .map(text_of)
            .collect::<Option<Vec<_>>>()
            .map(|list| list.join(",")),
    }
}

/// Reads a boolean as PostgreSQL does: also `t`, `ye`, `of` and so on.
#[must_use]
pub fn parse_bool(text: &str) -> Option<bool> {
    let text = text.trim().to_ascii_lowercase();
    let prefix = |word: &str, least: usize| text.len() >= least && word.starts_with(&text);
    match () {
        () if text == "1" || prefix("true", 1) || prefix("yes", 1) || text == "on" => Some(true),
        () if text == "0" || prefix("false", 1) || prefix("no", 1) || prefix("off", 2) => Some(false),
        () => None,
    }
}

/// Reads a size in bytes; a bare number is in units of `bare_bytes`.
#[must_use]
pub fn parse_bytes(text: &str, bare_bytes: u64) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .bytes()
        .take_while(|b| b.is_ascii_digit() || *b == b'.')
        .count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" => bare_bytes,
        "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let number: f64 = number.parse().ok().filter(|n: &f64| n.is_finite() && *n < 1e15)?;
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    Some((number * factor as f64).round() as u64)
}

/// What kind of value a parameter takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// on or off.
    Bool,
    /// A whole number, maybe with a unit.
    Integer,
    /// A number, maybe with a unit.
    Real,
    /// One of some words (the server does not list them here).
    Enum,
    /// Any text.
    Text,
}

/// The parameters the installed server knows, by lower-case name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known(HashMap<String, Kind>);

/// Parameters the server knows but does not describe, because they are not meant for a sample file
/// (`GUC_NOT_IN_SAMPLE`). A user who sets one still means it.
const UNDESCRIBED: &[&str] = &[
    "allow_in_place_tablespaces",
    "allow_system_table_mods",
    "backtrace_functions",
    "debug_discard_caches",
    "debug_io_direct",
    "debug_logical_replication_streaming",
    "debug_parallel_query",
    "force_parallel_mode",
    "ignore_checksum_failure",
    "ignore_invalid_pages",
    "ignore_system_indexes",
    "jit_debugging_support",
    "jit_dump_bitcode",
    "jit_expressions",
    "jit_profiling_support",
    "jit_tuple_deforming",
    "logical_decoding_mode",
    "post_auth_delay",
    "pre_auth_delay",
    "remove_temp_files_after_crash",
    "send_abort_for_crash",
    "send_abort_for_kill",
    "synchronize_seqscans",
    "trace_connection_negotiation",
    "trace_notify",
    "trace_recovery_messages",
    "trace_sort",
    "wal_consistency_checking",
    "zero_damaged_pages",
    "log_parser_stats",
    "optimize_bounded_sort",
    "trace_locks",
    "trace_lwlocks",
    "wal_debug",
];

impl Known {
    /// Asks the server.
    ///
    /// # Errors
    /// `postgres --describe-config` did not work.
    pub async fn ask(
        binaries: &Binaries,
        identity: Option<(u32, u32)>,
        cancel: &CancellationToken,
    ) -> Result<Self, command::Error> {
        let command = binaries
            .command("postgres")
            .arg("--describe-config")
            .identity(identity);
        let output = command
            .capture()
            .quiet()
            .deadline(Duration::from_secs(30))
            .run(cancel)
            .await?;
        Ok(Self::parse(&output.stdout))
    }

    /// Reads the output of `postgres --describe-config`: name, context, group, type … separated by tabs.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let mut fields = line.split('\t');
            let name = fields.next().filter(|name| is_name(name))?.to_ascii_lowercase();
            let kind = match fields.nth(2)? {
                "BOOLEAN" => Kind::Bool,
                "INTEGER" => Kind::Integer,
                "REAL" => Kind::Real,
                "ENUM" => Kind::Enum,
                _ => Kind::Text,
            };
            Some((name, kind))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// Whether the server knows the parameter. Names with a dot belong to extensions and are always accepted;
    /// a server that described nothing is taken to know all.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.is_empty() || name.contains('.') || self.0.contains_key(name) || UNDESCRIBED.contains(&name)
    }

    /// Why the server would refuse the value, as far as that can be told without it. A refused value in the
    /// file keeps PostgreSQL from starting at all.
    #[must_use]
    pub fn objection(&self, name: &str, value: &str) -> Option<&'static str> {
        let starts_like_a_number = || {
            let digits = value.trim().trim_start_matches(['-', '+']);
            digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        };
        match self.0.get(name)? {
            Kind::Bool if parse_bool(value).is_none() => Some("a boolean is expected"),
            Kind::Integer | Kind::Real if !starts_like_a_number() => Some("a number is expected"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_back_as_it_was_written() {
        for value in ["", "a", "2 (a,\"B\")", "it's \\ two\nlines\r"] {
            let text = format!("x = 'y'\nn = 'old'\n#n = 'no'\nn = {}\nm = 1\n", quote(value));
            assert_eq!(value_in(&text, "N").as_deref(), Some(value));
        }
        assert_eq!(value_in("n = on\n", "n"), None);
        assert_eq!(value_in("nn = 'x'\n", "n"), None);
    }
    use serde_json::json;

    #[test]
    fn quoting_survives_anything() {
        assert_eq!(quote("it's C:\\x\n"), r"'it''s C:\\x\n'");
        assert_eq!(quote("a\0b\r"), r"'ab\r'");
        assert_eq!(quote(""), "''");
    }

    #[test]
    fn names_cannot_smuggle_lines() {
        for name in ["work_mem", "pg_stat_statements.track", "a$1"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "a b", "a\nb", "a=", "1a", ".a", "a.", "a..b", "é"] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn values_become_text() {
        assert_eq!(text_of(&json!(true)).as_deref(), Some("on"));
        assert_eq!(text_of(&json!(0.5)).as_deref(), Some("0.5"));
        assert_eq!(text_of(&json!(["a", "b"])).as_deref(), Some("a,b"));
        assert_eq!(text_of(&json!(null)), None);
        assert_eq!(text_of(&json!({"a": 1})), None);
        assert_eq!(text_of(&json!([{"a": 1}])), None);
    }

    #[test]
    fn booleans_and_sizes_are_read_as_postgres_does() {
        for (text, expected) in [
            ("ON", Some(true)),
            ("y", Some(true)),
            ("tr", Some(true)),
            ("off", Some(false)),
            ("of", Some(false)),
            ("o", None),
            ("", None),
            ("2", None),
        ] {
            assert_eq!(parse_bool(text), expected, "{text}");
        }
        for (text, expected) in [
            ("128MB", Some(134_217_728)),
            ("16", Some(16 << 20)),
            ("1.5 kB", Some(1536)),
            ("x", None),
            ("1mb", None),
            ("", None),
            ("99999999999999999999TB", None),
        ] {
            assert_eq!(parse_bytes(text, 1 << 20), expected, "{text}");
        }
    }

    #[test]
    fn the_servers_description_decides_what_is_known() {
        let known = Known::parse(
            "work_mem\tuser\tResource Usage / Memory\tINTEGER\t4096\t64\t2147483647\tSets.\t\nfsync\tsighup\tx\tBOOLEAN\tFALSE\t\t\nDateStyle\tuser\tx\tSTRING\t\t\nrubbish\n",
        );
        assert!(
            known.has("work_mem")
                && known.has("datestyle")
                && known.has("ext.any")
                && known.has("zero_damaged_pages")
        );
        assert!(!known.has("wrok_mem"));
        assert_eq!(known.objection("fsync", "maybe"), Some("a boolean is expected"));
        assert_eq!(known.objection("work_mem", "lots"), Some("a number is expected"));
        assert_eq!(known.objection("work_mem", "64MB"), None);
        assert_eq!(known.objection("datestyle", "x"), None);
        assert!(Known::default().has("anything"));
    }
}
