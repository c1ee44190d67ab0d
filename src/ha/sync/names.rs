//! `synchronous_standby_names` as text and as what it promises (PostgreSQL: `syncrep_gram.y`, `syncrep_scanner.l`).

use std::fmt;

use super::NameSet;
use crate::model::MemberName;

/// Named where commits must wait although no standby is there to be waited for. No member may have this name
/// (contract: environment §2).
pub const PLACEHOLDER: &str = "__patroni_strict_sync_replica_placeholder__";

/// How the standbys to wait for are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// `FIRST`, or no word at all: the first ones that are connected.
    #[default]
    First,
    /// `ANY`.
    Any,
}

/// Whom a commit waits for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StandbyNames {
    /// `FIRST` or `ANY`.
    pub method: Method,
    /// How many of them; 0 only where commits wait for nobody.
    pub count: usize,
    /// Who. Empty with a count: commits wait for ever (the placeholder is all there is).
    pub names: NameSet,
}

impl StandbyNames {
    /// Commits wait for nobody.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Commits wait, whoever is there.
    #[must_use]
    pub fn nobody_will_do(method: Method) -> Self {
        Self {
            method,
            count: 1,
            names: NameSet::default(),
        }
    }

    /// Commits wait for every one of these; for nobody if there are none.
    #[must_use]
    pub fn all(names: NameSet) -> Self {
        Self {
            method: Method::First,
            count: names.len(),
            names,
        }
    }

    /// Commits wait for any so many of these; for nobody if that is none.
    #[must_use]
    pub fn any(count: usize, names: NameSet) -> Self {
        if count == 0 || names.is_empty() {
            return Self::none();
        }
        Self {
            method: Method::Any,
            count: count.min(names.len()),
            names,
        }
    }

    /// Commits wait for nobody.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.count == 0
    }

    /// Commits wait for ever.
    #[must_use]
    pub fn blocks(&self) -> bool {
        self.count > 0 && self.names.is_empty()
    }

    /// The value of the parameter.
    #[must_use]
    pub fn render(&self) -> String {
        let any = self.method == Method::Any;
        if self.is_none() {
            return String::new();
        }
        if self.blocks() {
            return if any {
                format!("ANY 1 ({PLACEHOLDER})")
            } else {
                PLACEHOLDER.to_owned()
            };
        }
        let names: Vec<String> = self.names.iter().map(|name| quoted(&name.0)).collect();
        match (self.method, names.as_slice()) {
            (Method::Any, _) => format!("ANY {} ({})", self.count, names.join(",")),
            (Method::First, [one]) => one.clone(),
            (Method::First, _) => format!("{} ({})", self.count, names.join(",")),
        }
    }

    /// Reads the value of the parameter. What cannot be read, and `*`, names nobody in particular: it is no promise of
    /// any member, and counts as none.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        tokens(text).and_then(|tokens| read(&tokens)).unwrap_or_default()
    }
}

impl fmt::Display for StandbyNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render())
    }
}

/// A name as the parameter's own grammar wants it.
fn quoted(name: &str) -> String {
    let mut chars = name.chars();
    let plain = chars.next().is_some_and(|c| c.is_ascii_lowercase() || c == '_')
        && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain && !is_keyword(name) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

fn is_keyword(word: &str) -> bool {
    word.eq_ignore_ascii_case("first") || word.eq_ignore_ascii_case("any")
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Sign(char),
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut found = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_ascii_whitespace() => {}
            '(' | ')' | ',' | '*' => found.push(Token::Sign(c)),
            '"' => {
                let mut name = String::new();
                loop {
                    match (chars.next()?, chars.peek()) {
                        ('"', Some('"')) => {
                            chars.next();
                            name.push('"');
                        }
                        ('"', _) => break,
                        (c, _) => name.push(c),
                    }
                }
                found.push(Token::Quoted(name));
            }
            c if c.is_alphanumeric() || c == '_' || !c.is_ascii() => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || "_$".contains(*c)) {
                    word.push(c);
                }
                found.push(Token::Word(word));
            }
            _ => return None,
        }
    }
    Some(found)
}

fn read(tokens: &[Token]) -> Option<StandbyNames> {
    let (method, rest) = match tokens {
        [Token::Word(word), rest @ ..] if word.eq_ignore_ascii_case("any") => (Method::Any, rest),
        [Token::Word(word), rest @ ..] if word.eq_ignore_ascii_case("first") => (Method::First, rest),
        rest => (Method::First, rest),
    };
    match rest {
        [] => None,
        [Token::Word(count), Token::Sign('('), list @ .., Token::Sign(')')] => {
            of_list(method, count.parse().ok()?, list)
        }
        list => of_list(method, 1, list),
    }
}

fn of_list(method: Method, count: usize, list: &[Token]) -> Option<StandbyNames> {
    let mut names = Vec::new();
    for (index, token) in list.iter().enumerate() {
        match token {
            Token::Word(name) | Token::Quoted(name) if index % 2 == 0 => names.push(MemberName(name.clone())),
            Token::Sign(',') if index % 2 == 1 => {}
            _ => return None,
        }
    }
    let placeholder = names.iter().any(|name| name.0 == PLACEHOLDER);
    names.retain(|name| name.0 != PLACEHOLDER);
    let names: NameSet = names.into_iter().collect();
    if names.is_empty() {
        return placeholder.then(|| StandbyNames::nobody_will_do(method));
    }
    (count > 0).then_some(StandbyNames { method, count, names })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&'static str]) -> NameSet {
        names.iter().copied().collect()
    }

    #[test]
    fn renders_as_the_contract_says() {
        for (names, text) in [
            (StandbyNames::none(), ""),
            (StandbyNames::all(set(&["a"])), "a"),
            (StandbyNames::all(set(&["b", "a"])), "2 (a,b)"),
            (
                StandbyNames::all(set(&["pg-1", "first"])),
                r#"2 ("first","pg-1")"#,
            ),
            (StandbyNames::any(1, set(&["a"])), "ANY 1 (a)"),
            (StandbyNames::any(2, set(&["B", "a", "c"])), r#"ANY 2 (a,"B",c)"#),
            (StandbyNames::any(0, set(&["a"])), ""),
            (StandbyNames::nobody_will_do(Method::First), PLACEHOLDER),
            (
                StandbyNames::nobody_will_do(Method::Any),
                "ANY 1 (__patroni_strict_sync_replica_placeholder__)",
            ),
        ] {
            assert_eq!(names.render(), text);
            assert_eq!(StandbyNames::parse(text), names, "{text}");
        }
    }

    #[test]
    fn reads_what_others_wrote() {
        let all = StandbyNames::all(set(&["a", "b"]));
        for text in ["2 (a,b)", "FIRST 2 ( \"a\" , B )", "first 2(\"B\",a)"] {
            assert_eq!(StandbyNames::parse(text), all, "{text}");
        }
        let first = StandbyNames::parse("a, b");
        assert_eq!((first.count, first.names.len()), (1, 2), "one of two");
        assert_eq!(StandbyNames::parse(r#""x""y""#).names.list(), [r#"x"y"#.into()]);
        for none in [
            "",
            " ",
            "*",
            "2 (*)",
            "ANY 1 (*)",
            "(",
            "a b",
            "\"a",
            "0 (a)",
            "x (a)",
        ] {
            assert_eq!(StandbyNames::parse(none), StandbyNames::none(), "{none}");
        }
    }

    #[test]
    fn a_quoted_name_cannot_be_left() {
        let names = StandbyNames::all(set(&["a\",\"b", "it's"]));
        assert_eq!(StandbyNames::parse(&names.render()), names);
    }
}
