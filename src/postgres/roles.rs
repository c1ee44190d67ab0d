//! SQL that creates or alters the roles this program needs, and the first database
//! (contract: bootstrap and images §3.2). Text only; who sends it keeps it out of its own logs.

use super::login::Login;

/// Sent first in the session that will mention passwords: nothing of it may reach the server's log or statistics.
/// Terse errors have no CONTEXT line, which would quote the failed statement of a DO block.
pub const SILENCE: &str = "SET log_statement TO none; \
    SET log_duration TO off; \
    SET log_min_duration_statement TO -1; \
    SET log_min_duration_sample TO -1; \
    SET log_transaction_sample_rate TO 0; \
    SET log_min_error_statement TO panic; \
    SET log_error_verbosity TO terse; \
    SET pg_stat_statements.track_utility TO off; \
    SET auto_explain.log_min_duration TO -1; \
    SET pgaudit.log TO none";

/// Sent last in that session.
pub const UNSILENCE: &str = "RESET log_statement; RESET log_duration; RESET log_min_duration_statement; \
    RESET log_min_duration_sample; RESET log_transaction_sample_rate; RESET log_min_error_statement; \
    RESET log_error_verbosity; \
    RESET pg_stat_statements.track_utility; RESET auto_explain.log_min_duration; RESET pgaudit.log";

/// Functions a rewind role needs (documentation of pg_rewind, "Notes").
const REWIND_FUNCTIONS: &[&str] = &[
    "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "pg_catalog.pg_stat_file(text, boolean)",
    "pg_catalog.pg_read_binary_file(text)",
    "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
];

/// An identifier, always quoted.
#[must_use]
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", without_nul(name).replace('"', "\"\""))
}

/// A literal that means the same whatever `standard_conforming_strings` says.
#[must_use]
pub fn literal(text: &str) -> String {
    let text = without_nul(text);
    let quoted = text.replace('\'', "''");
    if text.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

fn without_nul(text: &str) -> String {
    text.replace('\0', "")
}

/// Creates or alters the superuser.
#[must_use]
pub fn superuser(login: &Login) -> String {
    role(login, "SUPERUSER")
}

/// Creates or alters the replication role.
#[must_use]
pub fn replication(login: &Login) -> String {
    role(login, "REPLICATION")
}

/// Creates or alters the rewind role and lets it read the files of the server, nothing else.
#[must_use]
pub fn rewind(login: &Login) -> String {
    role(login, "") + &rewind_grants(&login.username)
}

/// What the rewind role may do. Functions belong to a database, so this goes to each one the agents connect to.
#[must_use]
pub fn rewind_grants(user: &str) -> String {
    let user = identifier(user);
    REWIND_FUNCTIONS
        .iter()
        .map(|function| format!("\nGRANT EXECUTE ON FUNCTION {function} TO {user};"))
        .collect()
}

/// An ordinary role that may log in, e.g. `POSTGRES_USER` when it is not the superuser.
#[must_use]
pub fn ordinary(login: &Login) -> String {
    role(login, "")
}

fn role(login: &Login, options: &str) -> String {
    let name = identifier(&login.username);
    let password = login
        .password
        .as_ref()
        .map(|password| format!(" PASSWORD {}", literal(password.reveal())));
    let space = if options.is_empty() { "" } else { " " };
    let options = format!("{options}{space}LOGIN{}", password.unwrap_or_default());
    let exists = literal(&login.username);
    let body = format!(
        "\nBEGIN\n  SET LOCAL synchronous_commit = 'local';\n  \
         IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {exists}) THEN\n    \
         ALTER ROLE {name} WITH {options};\n  ELSE\n    CREATE ROLE {name} WITH {options};\n  END IF;\nEND\n"
    );
    let tag = free_tag(&body);
    format!("DO ${tag}${body}${tag}$;")
}

/// A dollar-quote tag that does not occur in the text: a password may contain anything.
fn free_tag(body: &str) -> String {
    let mut tag = "howdah".to_owned();
    while body.contains(&tag) {
        tag.push('_');
        if tag.len() > 60 {
            tag = format!("h{}", tag.len() + body.len());
        }
    }
    tag
}

/// Creates a database; the sender first looks whether it exists with [`DATABASE_EXISTS`]. CREATE DATABASE cannot
/// run inside a DO block.
#[must_use]
pub fn create_database(name: &str, owner: Option<&str>) -> String {
    let owner = owner
        .map(|owner| format!(" OWNER {}", identifier(owner)))
        .unwrap_or_default();
    format!("CREATE DATABASE {}{owner}", identifier(name))
}

/// Returns a row if the database `$1` exists.
pub const DATABASE_EXISTS: &str = "SELECT 1 FROM pg_catalog.pg_database WHERE datname = $1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_created_or_altered() {
        insta::assert_snapshot!(superuser(&Login::new("postgres", "s3cret")));
        insta::assert_snapshot!(rewind(&Login::new("rewind user", "x")));
        let certificate = Login {
            username: "r".into(),
            password: None,
        };
        assert!(replication(&certificate).contains("CREATE ROLE \"r\" WITH REPLICATION LOGIN;"));
    }

    #[test]
    fn nothing_escapes_its_quotes() {
        assert_eq!(identifier("a\"b;--\0"), "\"a\"\"b;--\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'; DROP"), " E'a\\\\''; DROP'");
        let sql = ordinary(&Login::new("x", "$howdah$ $howdah_$; DROP TABLE t"));
        assert!(
            sql.starts_with("DO $howdah__$") && sql.ends_with("$howdah__$;"),
            "{sql}"
        );
        assert_eq!(
            create_database("a\"b", Some("o")),
            "CREATE DATABASE \"a\"\"b\" OWNER \"o\""
        );
    }

    #[test]
    fn every_silenced_setting_is_reset() {
        let set: Vec<&str> = SILENCE
            .split(';')
            .filter_map(|part| part.trim().strip_prefix("SET ")?.split(' ').next())
            .collect();
        let reset: Vec<&str> = UNSILENCE
            .split(';')
            .filter_map(|part| part.trim().strip_prefix("RESET "))
            .collect();
        assert_eq!(set, reset);
        assert_eq!(set.len(), 10);
    }
}
