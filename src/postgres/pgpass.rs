//! Password files for libpq (contract: PostgreSQL configuration §5).

use std::path::Path;

use super::{
    files::{self, Error},
    login::Login,
};

/// The server and role a line of a password file is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Host, socket directory, or several hosts separated by commas; empty for any.
    pub host: &'a str,
    /// Port, or several separated by commas; empty for any.
    pub port: &'a str,
    /// Who logs in.
    pub login: &'a Login,
}

/// The content of a password file; entries without a password are left out.
#[must_use]
pub fn render(entries: &[Entry<'_>]) -> String {
    entries.iter().flat_map(lines).map(|line| line + "\n").collect()
}

fn lines(entry: &Entry<'_>) -> Vec<String> {
    let Some(password) = &entry.login.password else {
        return Vec::new();
    };
    let ports: Vec<&str> = entry.port.split(',').map(str::trim).collect();
    let mut targets = Vec::new();
    for (i, host) in entry.host.split(',').map(str::trim).enumerate() {
        // One port for all hosts, or one for each.
        let port = ports
            .get(i)
            .or_else(|| ports.first())
            .copied()
            .unwrap_or_default();
        targets.push((host, port));
        if host.starts_with('/') {
            // libpq looks a socket in its default directory up under this name.
            targets.push(("localhost", port));
        }
    }
    let line = |(host, port)| {
        let user = field(&entry.login.username);
        format!(
            "{}:{}:*:{user}:{}",
            field(host),
            field(port),
            escaped(password.reveal())
        )
    };
    targets.into_iter().map(line).collect()
}

fn field(text: &str) -> String {
    if text.is_empty() {
        "*".to_owned()
    } else {
        escaped(text)
    }
}

/// A line break cannot be expressed in this format; such a password would silently become two wrong lines.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars().filter(|c| !matches!(c, '\n' | '\r')) {
        if matches!(c, ':' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// Writes a password file with mode 0600 (libpq ignores others) if its content differs; returns whether it did.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, entries: &[Entry<'_>]) -> Result<bool, Error> {
    files::write_if_changed(path, render(entries).as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: &str, port: &str, expected: &str) {
        let login = Login::new("re:pl", "p:a\\s s\n'");
        assert_eq!(
            render(&[Entry {
                host,
                port,
                login: &login
            }]),
            expected
        );
    }

    #[test]
    fn lines_are_escaped_and_gaps_are_stars() {
        check("h", "5432", "h:5432:*:re\\:pl:p\\:a\\\\s s'\n");
        check("", "", "*:*:*:re\\:pl:p\\:a\\\\s s'\n");
        check("::1", "1", "\\:\\:1:1:*:re\\:pl:p\\:a\\\\s s'\n");
    }

    #[test]
    fn every_host_of_a_list_gets_a_line() {
        let login = Login::new("u", "p");
        let text = render(&[
            Entry {
                host: "a,b",
                port: "1,2",
                login: &login,
            },
            Entry {
                host: "/run/x",
                port: "3",
                login: &login,
            },
        ]);
        assert_eq!(text, "a:1:*:u:p\nb:2:*:u:p\n/run/x:3:*:u:p\nlocalhost:3:*:u:p\n");
    }

    #[test]
    fn no_password_no_line() {
        let login = Login {
            username: "u".into(),
            password: None,
        };
        assert_eq!(
            render(&[Entry {
                host: "a",
                port: "",
                login: &login
            }]),
            ""
        );
    }

    #[test]
    fn the_file_is_private() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("pgpass");
        let login = Login::new("u", "p");
        let entries = [Entry {
            host: "a",
            port: "1",
            login: &login,
        }];
        assert!(write(&path, &entries).expect("written"));
        assert!(!write(&path, &entries).expect("unchanged"));
        assert_eq!(std::fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
    }
}
