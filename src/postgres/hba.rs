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

/// First line of a `pg_hba.conf` that Patroni has left; our own line follows, then the file as it was.
const KEPT: &str = "# Kept as Patroni left it, but for the next line, until pg_hba is configured.\n";

/// What Patroni has left, behind the line that our own connection needs.
#[must_use]
pub fn keep(superuser: &str, original: &str) -> String {
    format!("{KEPT}{}\n{original}", own_access(superuser))
}

/// The file as Patroni left it, of one that [`keep`] made.
#[must_use]
pub fn original(text: &str) -> Option<&str> {
    let (_own, original) = text.strip_prefix(KEPT)?.split_once('\n')?;
    Some(original)
}

/// `md5` stands for whichever way the password is stored: SCRAM is used wherever that is SCRAM. Clusters that are older
/// than it, or were told so, have the other one until somebody sets the password anew.
fn own_access(superuser: &str) -> String {
    format!("local all {} md5", always_quoted(superuser))
}

/// Puts the line our own connection needs before a list that may have none for the Unix socket: without it the agent
/// could not see its own server. First, because the first line that fits decides.
#[must_use]
pub fn with_own_access(superuser: &str, lines: Vec<String>) -> Vec<String> {
    let own = own_access(superuser);
    let others = lines.into_iter().filter(|line| *line != own).collect::<Vec<_>>();
    std::iter::once(own).chain(others).collect()
}

/// Lines used when the user gives none. Nobody is trusted, not even on the socket: in a container any process may
/// reach it, and peer authentication cannot work for arbitrary user ids.
///
/// `require_tls` admits the network only encrypted. `added` are the lines of `bootstrap.pg_hba`: who gives some says
/// who may come over the network, so they stand in place of the line that lets everybody try.
#[must_use]
pub fn default_lines(replication_user: &str, require_tls: bool, added: &[String]) -> Vec<String> {
    let host = if require_tls { "hostssl" } else { "host" };
    let user = quoted(replication_user);
    let mut lines = vec![
        "local all all scram-sha-256".to_owned(),
        format!("local replication {user} scram-sha-256"),
        format!("{host} replication {user} all scram-sha-256"),
    ];
    if added.is_empty() {
        lines.push(format!("{host} all all all scram-sha-256"));
    }
    lines.extend(added.iter().cloned());
    lines
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
    always_quoted(name)
}

fn always_quoted(name: &str) -> String {
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
        let lines = default_lines("replicator", false, &[]);
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
    fn what_patroni_left_stays_behind_our_own_line_however_often_it_is_written() {
        let left = "# from initdb\nlocal all all peer\nhost all guest all trust\n";
        let once = keep("postgres", left);
        assert_eq!(
            once,
            "# Kept as Patroni left it, but for the next line, until pg_hba is configured.\n\
             local all \"postgres\" md5\n\
             # from initdb\nlocal all all peer\nhost all guest all trust\n"
        );
        assert_eq!(keep("postgres", original(&once).expect("kept")), once);
        assert_eq!(original(left), None);
        assert_eq!(original(&render(&[left.to_owned()]).expect("lines")), None);
    }

    #[test]
    fn tls_can_be_required() {
        assert!(
            default_lines("r", true, &[])
                .iter()
                .all(|line| !line.starts_with("host "))
        );
    }

    #[test]
    fn lines_for_the_bootstrap_replace_the_one_for_everybody() {
        let added = ["hostssl all all 10.0.0.0/8 scram-sha-256".to_owned()];
        insta::assert_snapshot!(default_lines("r", false, &added).join("\n"), @r"
        local all all scram-sha-256
        local replication r scram-sha-256
        host replication r all scram-sha-256
        hostssl all all 10.0.0.0/8 scram-sha-256
        ");
    }

    #[test]
    fn our_own_access_comes_first_and_once() {
        let given = vec!["local all all reject".to_owned()];
        let lines = with_own_access("all", given);
        assert_eq!(lines, ["local all \"all\" md5", "local all all reject"]);
        assert_eq!(with_own_access("all", lines.clone()), lines);
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
