//! User-given options of initdb, pg_basebackup and pg_rewind (contract: bootstrap and images §6).

use serde_json::Value;

/// Why an option list cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Neither a map nor a list.
    #[error("options must be a map or a list, not '{0}'")]
    Shape(String),
    /// An item of a list has another shape.
    #[error("'{0}' is no option (expected a name, or one 'name: text')")]
    Item(String),
    /// This program sets the option itself.
    #[error("option '{0}' is set by this program and cannot be given")]
    Forbidden(String),
    /// A quote in a command line is not closed.
    #[error("a quote is not closed in '{0}'")]
    Quote(String),
}

/// The usable options as arguments, and what was wrong with the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// `--name` or `--name=value`, in the given order.
    pub args: Vec<String>,
    /// Each refused option. initdb treats them as fatal, the other tools go on without.
    pub errors: Vec<Error>,
}

impl Options {
    /// Reads a map or a list of options; `forbidden` names are refused.
    #[must_use]
    pub fn read(value: &Value, forbidden: &[&str]) -> Self {
        let mut options = Self::default();
        match value {
            Value::Null => {}
            Value::Object(map) => {
                for (name, value) in map {
                    let text = scalar(value).unwrap_or_default();
                    if !text.is_empty() {
                        options.add(name, Some(&text), forbidden);
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| options.add_item(item, forbidden)),
            other => options.errors.push(Error::Shape(other.to_string())),
        }
        options
    }

    fn add_item(&mut self, item: &Value, forbidden: &[&str]) {
        if let Value::String(text) = item {
            // "name=value" in one text is common and means what it says.
            return match text.trim_start_matches('-').split_once('=') {
                Some((name, value)) => self.add(name, Some(value), forbidden),
                None => self.add(text, None, forbidden),
            };
        }
        let single = item
            .as_object()
            .filter(|map| map.len() == 1)
            .and_then(|map| map.iter().next());
        match single {
            Some((name, Value::String(text))) => self.add(name, Some(text), forbidden),
            _ => self.errors.push(Error::Item(item.to_string())),
        }
    }

    fn add(&mut self, name: &str, value: Option<&str>, forbidden: &[&str]) {
        let name = name.trim_start_matches('-');
        let valid = !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !valid {
            self.errors.push(Error::Item(name.to_owned()));
        } else if forbidden.contains(&name) {
            self.errors.push(Error::Forbidden(name.to_owned()));
        } else {
            self.args.push(match value {
                Some(value) => format!("--{name}={}", unquoted(value)),
                None => format!("--{name}"),
            });
        }
    }

    /// Whether one of the options is given.
    #[must_use]
    pub fn has(&self, names: &[&str]) -> bool {
        let name_of = |arg: &String| {
            let arg = arg.trim_start_matches("--");
            arg.split_once('=').map_or(arg, |(name, _)| name).to_owned()
        };
        self.args
            .iter()
            .map(name_of)
            .any(|name| names.contains(&name.as_str()))
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

fn unquoted(text: &str) -> &str {
    let strip = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
    strip('\'').or_else(|| strip('"')).unwrap_or(text)
}

/// Splits a command line into words as a shell would, without expanding anything: for
/// `POSTGRES_INITDB_ARGS` and configured commands.
///
/// # Errors
/// [`Error::Quote`].
pub fn split_words(line: &str) -> Result<Vec<String>, Error> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (Some(_), '\\') => {
                let next = chars.next().ok_or_else(|| Error::Quote(line.to_owned()))?;
                let word = word.get_or_insert_default();
                if !matches!(next, '"' | '\\' | '$' | '`') {
                    word.push('\\');
                }
                word.push(next);
            }
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '\\') => {
                let next = chars.next().ok_or_else(|| Error::Quote(line.to_owned()))?;
                word.get_or_insert_default().push(next);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(Error::Quote(line.to_owned()));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn maps_and_lists_become_arguments() {
        let map = Options::read(
            &json!({"encoding": "UTF8", "locale": "'de_DE.UTF-8'", "wal-segsize": 64, "x": ""}),
            &[],
        );
        assert_eq!(
            map.args,
            ["--encoding=UTF8", "--locale=de_DE.UTF-8", "--wal-segsize=64"]
        );
        let list = Options::read(
            &json!(["data-checksums", {"encoding": "\"UTF8\""}, "--locale=C"]),
            &[],
        );
        assert_eq!(list.args, ["--data-checksums", "--encoding=UTF8", "--locale=C"]);
        assert!(map.errors.is_empty() && list.errors.is_empty());
        assert!(list.has(&["no-locale", "locale"]) && !list.has(&["enc"]));
    }

    #[test]
    fn forbidden_and_senseless_options_are_reported() {
        let list = Options::read(
            &json!(["pwfile", {"pgdata": "/x"}, {"a": 1}, {"a": "1", "b": "2"}, 7, "", "a b"]),
            &["pwfile", "pgdata"],
        );
        assert!(list.args.is_empty());
        assert_eq!(list.errors.len(), 7, "{:?}", list.errors);
        assert_eq!(list.errors[0], Error::Forbidden("pwfile".into()));
        assert!(matches!(
            Options::read(&json!("text"), &[]).errors[..],
            [Error::Shape(_)]
        ));
        assert_eq!(Options::read(&Value::Null, &[]), Options::default());
    }

    #[test]
    fn words_are_split_as_a_shell_would() {
        let words = |line| split_words(line).expect("well-formed");
        assert_eq!(
            words(r#"--locale=C  --x='a b' "c\"d" e\ f"#),
            ["--locale=C", "--x=a b", "c\"d", "e f"]
        );
        assert_eq!(words(" '' "), [""]);
        assert!(words("  ").is_empty());
        for line in ["'", "a \"b", "\\"] {
            assert!(split_words(line).is_err(), "{line}");
        }
    }
}
