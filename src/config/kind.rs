//! The kinds of values: how each is read, what is allowed, and the normal form the rest of the code sees.

use serde_json::{Map, Value};

use super::{
    address::{Address, Listen},
    text,
};
use crate::model::{read_bool, read_int};

/// What a setting's value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A text nobody may see.
    Secret,
    /// The name of a member, scope or role: no slash, no white space.
    Name,
    /// An absolute path.
    Path,
    /// Yes or no.
    Bool,
    /// A whole number, both ends allowed.
    Int(i64, i64),
    /// A whole number of seconds, both ends allowed; `30`, `30s`, `5min`, `1h`.
    Seconds(i64, i64),
    /// A number of bytes; `1048576`, `1MB`.
    Bytes,
    /// A list of texts.
    List,
    /// A list of lines.
    Lines,
    /// Options of a program, kept as its arguments.
    Options,
    /// A mapping.
    Map,
    /// A mapping whose values are secrets.
    Secrets,
    /// A list of mappings.
    Maps,
    /// A whole configuration document.
    Document,
    /// `host:port`, with this port if none is given.
    Address(u16),
    /// `host[,host]:port`, with this port if none is given.
    Listen(u16),
    /// One of these, in any case.
    Choice(&'static [&'static str]),
}

/// Why a value was refused: "is not `what` (allowed: `allowed`)".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) what: String,
    pub(super) allowed: String,
}

fn refused(what: impl Into<String>, allowed: impl Into<String>) -> Refused {
    Refused {
        what: what.into(),
        allowed: allowed.into(),
    }
}

impl Kind {
    /// Whether the value must not be shown, not even in an error.
    #[must_use]
    pub const fn is_secret(self) -> bool {
        matches!(self, Self::Secret | Self::Secrets)
    }

    /// In a word or two, for the table in the documentation.
    #[must_use]
    pub fn describe(self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Secret => "secret".into(),
            Self::Name => "name".into(),
            Self::Path => "path".into(),
            Self::Bool => "yes/no".into(),
            Self::Int(min, i64::MAX) => format!("number ≥ {min}"),
            Self::Int(min, max) => format!("number {min}–{max}"),
            Self::Seconds(min, SECONDS_MAX) => format!("seconds ≥ {min}"),
            Self::Seconds(min, max) => format!("seconds {min}–{max}"),
            Self::Bytes => "bytes".into(),
            Self::List => "list".into(),
            Self::Lines => "lines".into(),
            Self::Options => "options".into(),
            Self::Map | Self::Secrets => "mapping".into(),
            Self::Maps => "list of mappings".into(),
            Self::Document => "YAML/JSON".into(),
            Self::Address(_) => "host:port".into(),
            Self::Listen(_) => "host[,host]:port".into(),
            Self::Choice(words) => words.join(", "),
        }
    }

    /// Brings a value, a text from a variable or anything from a document, into its normal form.
    pub(super) fn normalise(self, value: &Value) -> Result<Value, Refused> {
        if !is_utf8(value) && !self.is_secret() {
            return Err(refused("text in UTF-8", "text in UTF-8"));
        }
        match self {
            Self::Text => read_text(value, &['\0'], "a text", "one line or more, no NUL character"),
            Self::Secret => read_secret(value),
            Self::Name => read_name(value),
            Self::Path => read_path(value),
            Self::Bool => read_bool(value)
                .map(Value::Bool)
                .ok_or_else(|| refused("a yes or no", "true, false, on, off, yes, no, 1, 0")),
            Self::Int(min, max) => read_int(value)
                .filter(|n| (min..=max).contains(n))
                .map(Value::from)
                .ok_or_else(|| refused("a whole number in range", range(min, max))),
            Self::Seconds(min, max) => read_seconds(value)
                .filter(|n| (min..=max).contains(n))
                .map(Value::from)
                .ok_or_else(|| {
                    let max = if max == SECONDS_MAX { i64::MAX } else { max };
                    refused("a number of seconds", range(min, max))
                }),
            Self::Bytes => read_bytes(value)
                .map(Value::from)
                .ok_or_else(|| refused("a number of bytes", "0 or more, also with kB, MB, GB, TB")),
            Self::List => read_list(value, text::list),
            Self::Lines => read_list(value, text::lines),
            Self::Options => text::options(value).map(Value::from).ok_or_else(|| {
                refused(
                    "a list of options",
                    "[name, {name: value}] or command-line arguments",
                )
            }),
            Self::Map | Self::Secrets => read_map(value),
            Self::Maps => read_maps(value),
            Self::Document => match value {
                Value::String(text) => text::yaml(text)
                    .ok()
                    .filter(Value::is_object)
                    .ok_or_else(|| document_refused(text)),
                value if value.is_object() => Ok(value.clone()),
                _ => Err(document_refused("")),
            },
            Self::Address(port) => read_address(value, port),
            Self::Listen(port) => scalar(value)
                .and_then(|text| Listen::parse(&text, port))
                .map(|listen| Value::String(listen.to_string()))
                .ok_or_else(|| {
                    refused(
                        "an address to listen on",
                        format!("host:port, host,host:port, [IPv6]:port, *:{port}"),
                    )
                }),
            Self::Choice(words) => scalar(value)
                .and_then(|text| words.iter().find(|word| word.eq_ignore_ascii_case(text.trim())))
                .map(|word| Value::from(*word))
                .ok_or_else(|| refused("one of the values known here", words.join(", "))),
        }
    }
}

/// Longer than a year is a mistake, and keeps all later arithmetic far from overflow.
pub(super) const SECONDS_MAX: i64 = 366 * 86_400;

fn document_refused(text: &str) -> Refused {
    let what = text::yaml(text).err().unwrap_or_else(|| "a mapping".into());
    let what = what.strip_prefix("not ").map_or(what.clone(), str::to_owned);
    refused(what, "a mapping in Patroni's shape")
}

fn range(min: i64, max: i64) -> String {
    if max == i64::MAX {
        format!("{min} or more")
    } else {
        format!("{min} to {max}")
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// U+FFFD stands for bytes that were not UTF-8; taking it as it is would be another text than was meant.
fn is_utf8(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.contains('\u{fffd}'),
        Value::Array(items) => items.iter().all(is_utf8),
        Value::Object(map) => map
            .iter()
            .all(|(key, value)| !key.contains('\u{fffd}') && is_utf8(value)),
        _ => true,
    }
}

/// YAML reads `1e5` as a number and forgets how it was written; as a text it would come out as `100000.0`.
fn keeps_its_spelling(value: &Value) -> Result<(), Refused> {
    match value {
        Value::Number(number) if number.is_f64() => Err(refused(
            "a text but a number, whose spelling is lost",
            "the same in quotes",
        )),
        _ => Ok(()),
    }
}

fn read_text(value: &Value, without: &[char], what: &str, allowed: &str) -> Result<Value, Refused> {
    keeps_its_spelling(value)?;
    scalar(value)
        .filter(|text| !text.contains(without) && is_utf8(value))
        .map(Value::String)
        .ok_or_else(|| refused(what, allowed))
}

fn read_secret(value: &Value) -> Result<Value, Refused> {
    if value.is_boolean() {
        // `True` and `true` are the same to YAML, and not as passwords.
        return Err(refused(
            "a text but a yes or no, whose spelling is lost",
            "the same in quotes",
        ));
    }
    read_text(
        value,
        &['\0', '\n', '\r'],
        "usable as a password",
        "one line of text",
    )
}

fn read_name(value: &Value) -> Result<Value, Refused> {
    keeps_its_spelling(value)?;
    let unusable = |c: char| c == '/' || c.is_whitespace() || c.is_control();
    scalar(value)
        .filter(|text| !text.is_empty() && text.len() <= 255 && !text.contains(unusable))
        .map(Value::String)
        .ok_or_else(|| refused("usable as a name", "up to 255 bytes without slash or white space"))
}

fn read_path(value: &Value) -> Result<Value, Refused> {
    let text = scalar(value).filter(|t| t.starts_with('/') && !t.contains(['\0', '\n']));
    let text = text.ok_or_else(|| refused("an absolute path", "a path that starts with /"))?;
    let trimmed = text.trim_end_matches('/');
    Ok(Value::from(if trimmed.is_empty() { "/" } else { trimmed }))
}

fn read_address(value: &Value, port: u16) -> Result<Value, Refused> {
    scalar(value)
        .and_then(|text| Address::parse(&text, port))
        .filter(|address| !address.is_wildcard())
        .map(|address| Value::String(address.to_string()))
        .ok_or_else(|| {
            refused(
                "an address others can connect to",
                "host:port, [IPv6]:port; not 0.0.0.0, :: or *",
            )
        })
}

/// A number and its unit, apart.
fn with_unit(value: &Value) -> Option<(i64, String)> {
    if let Some(number) = read_int(value) {
        return Some((number, String::new()));
    }
    let text = value.as_str()?.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    Some((text[..digits].parse().ok()?, text[digits..].trim().to_owned()))
}

fn read_seconds(value: &Value) -> Option<i64> {
    let (number, unit) = with_unit(value)?;
    let factor = match unit.as_str() {
        "" | "s" => 1,
        "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.checked_mul(factor)
}

fn read_bytes(value: &Value) -> Option<i64> {
    let (number, unit) = with_unit(value)?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "kb" => 10,
        "mb" => 20,
        "gb" => 30,
        "tb" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift).filter(|n| *n >= 0)
}

fn read_list(value: &Value, split: fn(&str) -> Option<Vec<Value>>) -> Result<Value, Refused> {
    let items = match value {
        Value::String(text) => split(text),
        Value::Array(items) => Some(items.clone()),
        _ => None,
    };
    items
        .and_then(|items| items.iter().map(scalar).collect::<Option<Vec<String>>>())
        .map(Value::from)
        .ok_or_else(|| refused("a list", "a,b or [a, b] or one \"- a\" per line"))
}

fn read_map(value: &Value) -> Result<Value, Refused> {
    let map: Option<Map<String, Value>> = match value {
        Value::String(text) => text::map(text),
        // Patroni's documents write what is not given as null.
        Value::Object(map) => Some(map.clone()).map(|mut map| {
            map.retain(|_, value| !value.is_null());
            map
        }),
        _ => None,
    };
    map.map(Value::Object)
        .ok_or_else(|| refused("a mapping", "{name: value} or name: value, name: value"))
}

fn read_maps(value: &Value) -> Result<Value, Refused> {
    let read = match value {
        Value::String(text) => text::yaml(text).ok(),
        other => Some(other.clone()),
    };
    let items = match read {
        Some(map @ Value::Object(_)) => vec![map],
        Some(Value::Array(items)) => items,
        _ => vec![Value::Null],
    };
    if items.iter().all(Value::is_object) {
        Ok(Value::Array(items))
    } else {
        Err(refused("a list of mappings", "[{name: value}, {name: value}]"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(kind: Kind, given: &Value, expected: Option<Value>) {
        assert_eq!(kind.normalise(given).ok(), expected, "{kind:?} {given}");
    }

    #[test]
    fn numbers_have_units_and_bounds() {
        check(Kind::Seconds(3, SECONDS_MAX), &json!("soon"), None);
        check(Kind::Seconds(3, SECONDS_MAX), &json!("2"), None);
        check(Kind::Seconds(3, SECONDS_MAX), &json!("-5"), None);
        check(Kind::Seconds(3, SECONDS_MAX), &json!("3"), Some(json!(3)));
        check(Kind::Seconds(3, SECONDS_MAX), &json!("5min"), Some(json!(300)));
        check(Kind::Seconds(3, SECONDS_MAX), &json!("1 h"), Some(json!(3600)));
        check(Kind::Seconds(0, SECONDS_MAX), &json!("9999999999999999999"), None);
        check(
            Kind::Seconds(0, SECONDS_MAX),
            &json!("9223372036854775807d"),
            None,
        );
        check(Kind::Seconds(3, 86_400), &json!("1d"), Some(json!(86_400)));
        check(Kind::Seconds(3, 86_400), &json!("86401"), None);
        check(
            Kind::Seconds(3, SECONDS_MAX),
            &json!("--9223372036854775808"),
            None,
        );
        check(Kind::Bytes, &json!("16MB"), Some(json!(16_777_216)));
        check(Kind::Bytes, &json!(1_048_576), Some(json!(1_048_576)));
        check(Kind::Bytes, &json!("-1"), None);
        check(Kind::Bytes, &json!("1 parsec"), None);
        check(Kind::Int(1, 65535), &json!("65536"), None);
        check(Kind::Int(1, 65535), &json!("0x10"), Some(json!(16)));
        check(Kind::Bool, &json!("YES"), Some(json!(true)));
        check(Kind::Bool, &json!("maybe"), None);
    }

    #[test]
    fn texts_keep_out_what_would_break_later() {
        check(Kind::Secret, &json!("two\nlines"), None);
        check(Kind::Secret, &json!("not\u{fffd}utf8"), None);
        check(Kind::Secret, &json!(12345), Some(json!("12345")));
        check(Kind::Secret, &json!(1e5), None);
        check(Kind::Secret, &json!("1e5"), Some(json!("1e5")));
        check(Kind::Secret, &json!(true), None);
        check(Kind::Text, &json!(1.50), None);
        check(Kind::Name, &json!(1e5), None);
        check(Kind::List, &json!("a,\u{fffd}"), None);
        check(Kind::Lines, &json!(["a", "\u{fffd}"]), None);
        check(Kind::Map, &json!({"a": {"b": ["\u{fffd}"]}}), None);
        check(Kind::Map, &json!({"\u{fffd}": 1}), None);
        check(Kind::Map, &json!({"a": null, "b": 1}), Some(json!({"b": 1})));
        check(Kind::Map, &json!("a"), None);
        check(
            Kind::Maps,
            &json!("[{port: 1}, {port: 2}]"),
            Some(json!([{"port": 1}, {"port": 2}])),
        );
        check(Kind::Maps, &json!("port: 1"), Some(json!([{"port": 1}])));
        check(Kind::Maps, &json!("5432"), None);
        check(Kind::Maps, &json!(["a"]), None);
        check(Kind::Name, &json!("a/b"), None);
        check(Kind::Name, &json!("a b"), None);
        check(Kind::Name, &json!("pg-1.example"), Some(json!("pg-1.example")));
        check(Kind::Path, &json!("data"), None);
        check(Kind::Path, &json!("/data//"), Some(json!("/data")));
        check(Kind::Path, &json!("/"), Some(json!("/")));
        check(Kind::Address(1), &json!("0.0.0.0:5432"), None);
        check(Kind::Address(1), &json!("pg1"), Some(json!("pg1:1")));
        check(
            Kind::Choice(&["off", "Required"]),
            &json!("REQUIRED"),
            Some(json!("Required")),
        );
        check(Kind::Choice(&["off"]), &json!("on"), None);
    }

    #[test]
    fn a_broken_document_is_refused_by_place_not_by_content() {
        let refused = Kind::Document
            .normalise(&json!("a: {b: secret"))
            .expect_err("broken");
        assert!(refused.what.contains("line 2"), "{refused:?}");
        assert!(!refused.what.contains("secret"), "{refused:?}");
        let refused = Kind::Document.normalise(&json!("- a")).expect_err("a list");
        assert_eq!(refused.what, "a mapping");
    }
}
