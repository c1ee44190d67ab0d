//! `pg_hba.conf` and `pg_ident.conf`: the user's lines, or defaults that ask everybody for a password.

use super::confdir::HEADER;

/// The file made of the user's lines; `None` when there are none (then the file is not ours to write).
#[must_use]
pub fn render(lines: &[String]) -> Option<String> {
    let lines: Vec<&str> = lines
        .iter()
        .map(|line| line.trim_end())
        .filter(|line| !line.is_empty())
        .collect();
    (!lines.is_empty()).then(|| format!("{HEADER}{}\n", lines.join("\n")))
}

/// Lines used when the user gives none. Nobody is trusted, not even on the socket: in a container any process may
/// reach it, and peer authentication cannot work for arbitrary user ids.
///
/// `require_tls` admits the network only encrypted.
#[must_use]
pub fn default_lines(replication_user: &str, require_tls: bool) -> Vec<String> {
    let host = if require_tls { "hostssl" } else { "host" };
    let user = quoted(replication_user);
    vec![
        "local all all scram-sha-256".to_owned(),
        format!("local replication {user} scram-sha-256"),
        format!("{host} replication {user} all scram-sha-256"),
        format!("{host} all all all scram-sha-256"),
    ]
}

/// Lines that make a freshly restored copy reachable for its own agent only, because the passwords in it are not
/// known (contract: PostgreSQL configuration §1).
#[must_use]
pub fn custom_bootstrap_lines(superuser: &str) -> Vec<String> {
    vec![
        format!("local all {} trust", quoted(superuser)),
        "local all all reject".to_owned(),
    ]
}

/// A name as one token: quoted unless it is plain, so that `all`, `+x` or `/x` are mere names.
fn quoted(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let keyword = matches!(
        name,
        "all" | "replication" | "sameuser" | "samerole" | "samegroup"
    );
    if !name.is_empty() && name.bytes().all(plain) && !keyword {
        return name.to_owned();
    }
    let clean: String = name
        .chars()
        .filter(|c| !matches!(c, '\n' | '\r' | '\0'))
        .collect();
    format!("\"{}\"", clean.replace('"', "\"\""))
}

/// Lines that let somebody in without a password, or with one that is weakly protected. They are the user's
/// decision; the caller says so in the log.
#[must_use]
pub fn weak_lines(lines: &[String]) -> Vec<&str> {
    const WEAK: &[&str] = &["trust", "password", "md5"];
    let weak = |line: &&str| {
        let text = line.split('#').next().unwrap_or_default();
        let is_rule = text.trim_start().starts_with("local") || text.trim_start().starts_with("host");
        is_rule && text.split_whitespace().skip(3).any(|word| WEAK.contains(&word))
    };
    lines.iter().map(String::as_str).filter(weak).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_trusted_by_default() {
        let lines = default_lines("replicator", false);
        assert_eq!(weak_lines(&lines), Vec::<&str>::new());
        insta::assert_snapshot!(render(&lines).expect("lines"), @r"
        # Written by Howdah. Changes made here are lost; change the configuration instead.
        local all all scram-sha-256
        local replication replicator scram-sha-256
        host replication replicator all scram-sha-256
        host all all all scram-sha-256
        ");
    }

    #[test]
    fn tls_can_be_required() {
        assert!(
            default_lines("r", true)
                .iter()
                .all(|line| !line.starts_with("host "))
        );
    }

    #[test]
    fn odd_names_stay_names() {
        for (name, expected) in [
            ("Repl User", "\"Repl User\""),
            ("all", "\"all\""),
            ("+admins", "\"+admins\""),
            ("a\"b", "\"a\"\"b\""),
            ("a\nb", "\"ab\""),
        ] {
            assert_eq!(quoted(name), expected);
        }
    }

    #[test]
    fn users_lines_are_kept_and_weak_ones_found() {
        let lines = [
            "host all all 10.0.0.0/8 md5",
            "# host all all all trust",
            "",
            "local all all trust  ",
        ]
        .map(str::to_owned);
        assert!(
            render(&lines)
                .expect("lines")
                .ends_with("md5\n# host all all all trust\nlocal all all trust\n")
        );
        assert_eq!(
            weak_lines(&lines),
            ["host all all 10.0.0.0/8 md5", "local all all trust  "]
        );
        assert_eq!(render(&[String::new()]), None);
    }
}
