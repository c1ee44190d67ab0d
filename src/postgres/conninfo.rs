//! Connection strings of libpq: `primary_conninfo` and the DSNs given to PostgreSQL's own programs.

use std::{collections::BTreeMap, fmt};

use super::version::Major;

/// Keywords in the order in which `primary_conninfo` is written, each with the first major version whose libpq
/// knows it (contract: PostgreSQL configuration §5).
const KEYWORDS: &[(&str, u16)] = &[
    ("dbname", 0),
    ("user", 0),
    ("passfile", 10),
    ("password", 0),
    ("host", 0),
    ("port", 0),
    ("sslmode", 0),
    ("sslcompression", 0),
    ("sslcert", 0),
    ("sslkey", 0),
    ("sslpassword", 13),
    ("sslrootcert", 0),
    ("sslcrl", 0),
    ("sslcrldir", 14),
    ("application_name", 0),
    ("krbsrvname", 0),
    ("gssencmode", 12),
    ("channel_binding", 13),
    ("target_session_attrs", 10),
    ("sslnegotiation", 17),
];

/// Keywords that are allowed but not part of the table above (order: after it, by name).
const OTHERS: &[&str] = &[
    "connect_timeout",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "options",
    "ssl_min_protocol_version",
];

/// Connection parameters by keyword. `Debug` hides passwords.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Conninfo(BTreeMap<String, String>);

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(name, value): (&String, &String)| {
            let secret = name == "password" || name == "sslpassword";
            (
                name.clone(),
                if secret {
                    "[hidden]".to_owned()
                } else {
                    value.clone()
                },
            )
        };
        f.debug_map().entries(self.0.iter().map(shown)).finish()
    }
}

/// The text is no connection string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a connection string: {0}")]
pub struct ParseError(&'static str);

impl Conninfo {
    /// No parameter yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a parameter; an empty value removes it.
    #[must_use]
    pub fn with(mut self, keyword: &str, value: impl Into<String>) -> Self {
        let value = value.into();
        if value.is_empty() {
            self.0.remove(keyword);
        } else {
            self.0.insert(keyword.to_owned(), value);
        }
        self
    }

    /// Sets parameters that are not set yet.
    #[must_use]
    pub fn with_defaults(mut self, defaults: &[(&str, &str)]) -> Self {
        for (keyword, value) in defaults {
            self.0
                .entry((*keyword).to_owned())
                .or_insert_with(|| (*value).to_owned());
        }
        self
    }

    /// A parameter's value.
    #[must_use]
    pub fn get(&self, keyword: &str) -> Option<&str> {
        self.0.get(keyword).map(String::as_str)
    }

    /// What a replica's connection gets when nothing else is configured.
    #[must_use]
    pub fn with_replication_defaults(self, major: Major) -> Self {
        let conninfo = self.with_defaults(&[
            ("sslmode", "prefer"),
            ("gssencmode", "prefer"),
            ("channel_binding", "prefer"),
            ("dbname", "postgres"),
        ]);
        if major.conninfo_has_sslnegotiation() {
            conninfo.with_defaults(&[("sslnegotiation", "postgres")])
        } else {
            conninfo
        }
    }

    /// As the value of `primary_conninfo`: known keywords in their order, without what this version's libpq does
    /// not know; special characters escaped by a backslash.
    #[must_use]
    pub fn primary_conninfo(&self, major: Major) -> String {
        self.render(major, escaped)
    }

    /// As a DSN for libpq programs: values quoted where needed. The password is left out, it belongs in a
    /// passfile: a program's arguments are visible to all.
    #[must_use]
    pub fn dsn(&self, major: Major) -> String {
        let mut public = self.clone();
        public.0.remove("password");
        public.0.remove("sslpassword");
        public.render(major, quoted)
    }

    fn render(&self, major: Major, value_text: fn(&str) -> String) -> String {
        let known = KEYWORDS
            .iter()
            .filter(|(_, since)| major.0 >= *since)
            .map(|(name, _)| *name);
        let words = known.chain(OTHERS.iter().copied());
        let pairs = words.filter_map(|name| Some(format!("{name}={}", value_text(self.get(name)?))));
        pairs.collect::<Vec<_>>().join(" ")
    }

    /// Reads a `keyword=value` connection string, quoted or escaped (not a URI).
    ///
    /// # Errors
    /// Where libpq would refuse it too.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut found = BTreeMap::new();
        let mut chars = text.chars().peekable();
        loop {
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
            if chars.peek().is_none() {
                return Ok(Self(found));
            }
            let mut name = String::new();
            while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_whitespace()) {
                name.push(c);
            }
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
            if name.is_empty() || chars.next() != Some('=') {
                return Err(ParseError("a '=' is missing"));
            }
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
            let quote = chars.next_if_eq(&'\'').is_some();
            let mut value = String::new();
            loop {
                match chars.next() {
                    Some('\\') => value.extend(chars.next()),
                    Some('\'') if quote => break,
                    Some(c) if !quote && c.is_whitespace() => break,
                    Some(c) => value.push(c),
                    None if quote => return Err(ParseError("a quote is not closed")),
                    None => break,
                }
            }
            found.insert(name, value);
        }
    }
}

fn escaped(value: &str) -> String {
    if value.is_empty() {
        return "''".to_owned();
    }
    let mut text = String::with_capacity(value.len());
    for c in value.chars() {
        if matches!(c, '\'' | '\\') || c.is_whitespace() {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.,/:@%+*[]".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Conninfo {
        Conninfo::new()
            .with("port", "5432")
            .with("host", "10.0.0.1")
            .with("user", "repl icator")
            .with("password", "it's \\secret")
            .with("application_name", "pg-1")
            .with("connect_timeout", "5")
            .with("unknown", "x")
    }

    #[test]
    fn primary_conninfo_follows_the_order_and_the_version() {
        let conninfo = full().with("passfile", "/run/pgpass").with("password", "");
        insta::assert_snapshot!(
            conninfo.clone().with_replication_defaults(Major(15)).primary_conninfo(Major(15)),
            @r"dbname=postgres user=repl\ icator passfile=/run/pgpass host=10.0.0.1 port=5432 sslmode=prefer application_name=pg-1 gssencmode=prefer channel_binding=prefer connect_timeout=5"
        );
        let newer = conninfo.with_replication_defaults(Major(17));
        assert!(
            newer
                .primary_conninfo(Major(17))
                .contains(" sslnegotiation=postgres")
        );
        assert!(!newer.primary_conninfo(Major(16)).contains("sslnegotiation"));
    }

    #[test]
    fn a_dsn_has_no_password_and_quotes_what_is_odd() {
        insta::assert_snapshot!(
            full().dsn(Major(15)),
            @"user='repl icator' host=10.0.0.1 port=5432 application_name=pg-1 connect_timeout=5"
        );
        assert!(!format!("{:?}", full()).contains("secret"));
    }

    #[test]
    fn what_is_written_can_be_read() {
        let odd = Conninfo::new()
            .with("user", "a'b\\c d\te")
            .with("host", "/run/a b")
            .with("port", "1");
        assert_eq!(Conninfo::parse(&odd.primary_conninfo(Major(15))), Ok(odd.clone()));
        assert_eq!(Conninfo::parse(&odd.dsn(Major(15))), Ok(odd));
        let spaced = Conninfo::parse(" host = 'x y'  port=5 ").expect("valid");
        assert_eq!((spaced.get("host"), spaced.get("port")), (Some("x y"), Some("5")));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["host", "=x", "host='x", "a b=c"] {
            assert!(Conninfo::parse(text).is_err(), "{text}");
        }
        assert_eq!(Conninfo::parse("  "), Ok(Conninfo::new()));
    }
}
