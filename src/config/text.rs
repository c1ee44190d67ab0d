//! Lists, mappings and options as people write them into a variable (contract: environment §2.3).

use serde_json::{Map, Value};

/// Reads YAML (and with it JSON). The error names only the place: the text may hold secrets.
pub(super) fn yaml(text: &str) -> Result<Value, String> {
    serde_yaml_ng::from_str::<Value>(text).map_err(|error| {
        error.location().map_or_else(
            || "not readable as YAML or JSON".to_owned(),
            |at| {
                format!(
                    "not readable as YAML or JSON in line {} column {}",
                    at.line(),
                    at.column()
                )
            },
        )
    })
}

/// A list: `a, b`, `'a:1','b:2'`, `[a, b]`, or YAML dashes.
pub(super) fn list(text: &str) -> Option<Vec<Value>> {
    let text = text.trim();
    if text.starts_with("- ") || (text.starts_with('[') && text.ends_with(']') && !is_host(text)) {
        return match yaml(text).ok()? {
            Value::Array(items) => Some(items),
            _ => None,
        };
    }
    // Not wrapped in brackets and read as YAML: `[::1]:2379,b` is a list of two addresses, not a list in a list.
    split_commas(text)
}

/// Whether the first bracket is that of an IPv6 address.
fn is_host(text: &str) -> bool {
    let inner = text.strip_prefix('[').and_then(|rest| rest.split(']').next());
    inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
}

/// Splits at commas outside quotes and braces; removes the quotes.
fn split_commas(text: &str) -> Option<Vec<Value>> {
    let mut items = vec![String::new()];
    let (mut quote, mut depth) = (None, 0_usize);
    for c in text.chars() {
        let item = items.last_mut()?;
        match (quote, c) {
            (Some(open), c) if c == open => {
                quote = None;
                item.push(c);
            }
            (None, '\'' | '"') if item.trim().is_empty() || depth > 0 => {
                quote = Some(c);
                item.push(c);
            }
            (None, ',') if depth == 0 => items.push(String::new()),
            (None, '{') => {
                depth += 1;
                item.push(c);
            }
            (None, '}') => {
                depth = depth.saturating_sub(1);
                item.push(c);
            }
            _ => item.push(c),
        }
    }
    if quote.is_some() || depth > 0 {
        return None;
    }
    let items = items.iter().map(|item| item.trim());
    items
        .filter(|item| !item.is_empty())
        .map(|item| match item.chars().next() {
            Some('\'' | '"' | '{') => yaml(item).ok(),
            _ => Some(Value::String(item.to_owned())),
        })
        .collect()
}

/// Lines: `[a, b]`, YAML dashes, or one item per line. Items may contain commas.
pub(super) fn lines(text: &str) -> Option<Vec<Value>> {
    let text = text.trim();
    if text.starts_with('[') || text.starts_with("- ") {
        return list(text);
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Some(lines.map(|line| Value::String(line.to_owned())).collect())
}

/// A mapping: `{k: v}`, `k: v, k: v`, or one `k: v` per line. A name without a value (`k`, `k=v`) is a misspelling,
/// not a mapping: taken as one it would look given and mean nothing.
pub(super) fn map(text: &str) -> Option<Map<String, Value>> {
    let text = text.trim();
    let wrapped = if text.starts_with('{') || text.contains('\n') {
        yaml(text)
    } else {
        // `k: v, k: v` first: without braces YAML would take everything after the first colon as one text.
        yaml(&format!("{{{text}}}")).or_else(|_| yaml(text))
    };
    match wrapped.ok()? {
        Value::Object(map) if map.values().all(|value| !value.is_null()) => Some(map),
        _ => None,
    }
}

/// Splits a command line as a shell does, without expanding anything; `None` for an open quote.
pub(super) fn words(text: &str) -> Option<Vec<String>> {
    let mut words: Vec<String> = Vec::new();
    let (mut quote, mut open) = (None, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => {
                open = false;
                continue;
            }
            _ if !open => {
                words.push(String::new());
                open = true;
            }
            _ => {}
        }
        let word = words.last_mut()?;
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(end), c) if c == end => quote = None,
            (None | Some('"'), '\\') => word.push(chars.next()?),
            (_, c) => word.push(c),
        }
    }
    quote.is_none().then_some(words)
}

/// Options of a program as its command-line arguments: `name`, `{name: value}` or a mapping become
/// `--name[=value]`; a text that starts with an option is split into words and kept.
pub(super) fn options(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) if text.trim_start().starts_with('-') && !text.trim().starts_with("- ") => {
            words(text)
        }
        Value::String(text) => {
            let items = if text.trim_start().starts_with('{') {
                None
            } else {
                list(text)
            };
            match items {
                Some(items) => options(&Value::Array(items)),
                None => options(&Value::Object(map(text)?)),
            }
        }
        Value::Array(items) => {
            let arguments = items.iter().map(|item| match item {
                Value::String(name) if name.starts_with('-') => words(name),
                Value::String(name) => option(name, &Value::Null).map(Vec::from_iter),
                Value::Object(map) => options(&Value::Object(map.clone())),
                _ => None,
            });
            Some(arguments.collect::<Option<Vec<_>>>()?.concat())
        }
        Value::Object(map) => {
            let arguments = map.iter().map(|(name, value)| option(name, value));
            Some(
                arguments
                    .collect::<Option<Vec<_>>>()?
                    .into_iter()
                    .flatten()
                    .collect(),
            )
        }
        _ => None,
    }
}

/// `None`: not an option; `Some(None)`: switched off.
#[allow(clippy::option_option)]
fn option(name: &str, value: &Value) -> Option<Option<String>> {
    let (name, inline) = name.split_once('=').map_or((name, None), |(n, v)| (n, Some(v)));
    let valid = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if !valid {
        return None;
    }
    let name = name.replace('_', "-");
    match value {
        Value::Null => Some(Some(
            inline.map_or_else(|| format!("--{name}"), |v| format!("--{name}={v}")),
        )),
        Value::Bool(true) => Some(Some(format!("--{name}"))),
        Value::Bool(false) => Some(None),
        Value::String(text) => Some(Some(format!("--{name}={text}"))),
        Value::Number(number) => Some(Some(format!("--{name}={number}"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_are_read_in_every_spelling() {
        for (text, expected) in [
            ("a,b", json!(["a", "b"])),
            ("a", json!(["a"])),
            ("'a:1','b:2'", json!(["a:1", "b:2"])),
            ("\"a:1\", b:2,", json!(["a:1", "b:2"])),
            ("[a, b]", json!(["a", "b"])),
            ("[\"a\", 'b:1']", json!(["a", "b:1"])),
            ("- a\n- b:1", json!(["a", "b:1"])),
            ("[::1]:2379,[::2]:2379", json!(["[::1]:2379", "[::2]:2379"])),
            ("[::1]", json!(["[::1]"])),
            ("[::1]:1,[::2]", json!(["[::1]:1", "[::2]"])),
            ("['::1', '::2']", json!(["::1", "::2"])),
            ("'a,b',c", json!(["a,b", "c"])),
            ("x, {a: 1, b: 2}", json!(["x", {"a": 1, "b": 2}])),
        ] {
            assert_eq!(list(text).map(Value::Array), Some(expected), "{text}");
        }
        for text in ["'a", "{a: 1", "- a\nb"] {
            assert_eq!(list(text), None, "{text}");
        }
    }

    #[test]
    fn lines_keep_their_commas() {
        let expected = json!(["host a,b all all trust", "local all all peer"]);
        for text in [
            "host a,b all all trust\n  local all all peer\n",
            "- host a,b all all trust\n- local all all peer",
            "['host a,b all all trust', local all all peer]",
        ] {
            assert_eq!(lines(text).map(Value::Array), Some(expected.clone()), "{text}");
        }
    }

    #[test]
    fn mappings_are_read_in_every_spelling() {
        let expected = json!({"a": 1, "b": "x y"});
        for text in [
            "{a: 1, b: x y}",
            "a: 1, b: x y",
            "a: 1\nb: x y",
            "{\"a\": 1, \"b\": \"x y\"}",
        ] {
            assert_eq!(map(text).map(Value::Object), Some(expected.clone()), "{text}");
        }
        assert_eq!(map("a: x, y: z: w"), None);
        for text in [
            "just text",
            "nofailover",
            "nofailover=true",
            "a: 1, b",
            "{a}",
            "{a: null}",
            "a:",
        ] {
            assert_eq!(map(text), None, "{text}");
        }
        assert_eq!(map("- a"), None);
    }

    #[test]
    fn options_become_arguments() {
        for (value, expected) in [
            (
                json!(["data-checksums", {"encoding": "UTF8"}]),
                vec!["--data-checksums", "--encoding=UTF8"],
            ),
            (
                json!("[data-checksums, {encoding: UTF8}]"),
                vec!["--data-checksums", "--encoding=UTF8"],
            ),
            (
                json!("data-checksums, {encoding: UTF8}"),
                vec!["--data-checksums", "--encoding=UTF8"],
            ),
            (
                json!("- data-checksums\n- encoding: UTF8"),
                vec!["--data-checksums", "--encoding=UTF8"],
            ),
            (
                json!("--locale=C -E 'UTF 8' -k"),
                vec!["--locale=C", "-E", "UTF 8", "-k"],
            ),
            (
                json!({"max-rate": "100M", "progress": true, "verbose": false}),
                vec!["--max-rate=100M", "--progress"],
            ),
            (json!("{max_rate: 100M}"), vec!["--max-rate=100M"]),
            (json!("locale=C"), vec!["--locale=C"]),
        ] {
            let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(options(&value), Some(expected), "{value}");
        }
        for value in [json!("--a 'b"), json!(["a b"]), json!([["a"]]), json!(7)] {
            assert_eq!(options(&value), None, "{value}");
        }
    }
}
