//! Values of `/config` read the way Patroni reads them.

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

/// Reads a time as PostgreSQL and Patroni do: a number of seconds, or a number with a unit (`us ms s min h d`).
#[must_use]
pub fn read_duration(value: &Value) -> Option<Duration> {
    if let Some(seconds) = read_int(value) {
        return u64::try_from(seconds).ok().map(Duration::from_secs);
    }
    let text = value.as_str()?.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().ok()?;
    let seconds = match unit.trim() {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    let total = number * seconds;
    (total.is_finite() && total < 1e10).then(|| Duration::from_secs_f64(total))
}

/// Names of replica creation methods under their newer or their older key: a list, or one text with commas.
#[must_use]
pub fn read_methods(section: &Map<String, Value>) -> Vec<String> {
    let given = section
        .get("create_replica_methods")
        .or_else(|| section.get("create_replica_method"));
    match given {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(Value::String(text)) => {
            let names = text.split(',').map(str::trim);
            names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn methods_are_a_list_or_one_text() {
        let read = |document: Value| read_methods(document.as_object().expect("an object"));
        assert_eq!(read(json!({"create_replica_methods": ["a", "b"]})), ["a", "b"]);
        assert_eq!(read(json!({"create_replica_method": " a, b,"})), ["a", "b"]);
        assert_eq!(read(json!({"create_replica_methods": null})), [""; 0]);
    }

    #[test]
    fn times_have_units() {
        let secs = |value: Value| read_duration(&value).map(|d| d.as_secs_f64());
        assert_eq!(secs(json!(1800)), Some(1800.0));
        assert_eq!(secs(json!("30min")), Some(1800.0));
        assert_eq!(secs(json!("1.5 h")), Some(5400.0));
        assert_eq!(secs(json!("250ms")), Some(0.25));
        for wrong in [json!(-1), json!("-1s"), json!("5 parsecs"), json!("s"), json!([])] {
            assert_eq!(secs(wrong.clone()), None, "{wrong}");
        }
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
}
