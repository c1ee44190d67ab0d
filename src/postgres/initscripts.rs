//! Scripts of `/docker-entrypoint-initdb.d`, run once on a new cluster as the official image does.
//!
//! | file | how |
//! |---|---|
//! | `*.sh`, executable | as it is |
//! | `*.sh`, not executable | by the interpreter its first line names, else bash, else sh. It is not sourced: there is no shell to source it into |
//! | `*.sql`, `*.sql.gz` | psql, stopping at the first error |
//!
//! Scripts get the connection by the usual variables (PGHOST is the socket directory) and the password by
//! PGPASSFILE only.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tokio_util::sync::CancellationToken;

use super::{
    binaries::Binaries,
    command::{self, Command},
    files::{self, at, optional},
};

/// The folder of the official image.
pub const DIRECTORY: &str = "/docker-entrypoint-initdb.d";

/// Why initialisation stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder or a script cannot be read.
    #[error(transparent)]
    File(#[from] files::Error),
    /// A script failed.
    #[error("init script {} failed", script.display())]
    Script {
        /// The script.
        script: PathBuf,
        /// How.
        #[source]
        source: command::Error,
    },
}

/// How a script is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A program or shell script.
    Shell,
    /// SQL.
    Sql,
    /// SQL, compressed with gzip.
    SqlGz,
    /// Something else: named in the log and left alone.
    Ignored,
}

/// The connection and names scripts are given.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// Directory of the Unix socket.
    pub socket_dir: &'a str,
    /// Port, part of the socket's name.
    pub port: u16,
    /// The superuser (`POSTGRES_USER`).
    pub user: &'a str,
    /// The database scripts work in (`POSTGRES_DB`).
    pub database: &'a str,
    /// `PGDATA`.
    pub data_dir: &'a Path,
    /// Password file for the superuser.
    pub passfile: &'a Path,
    /// User and group to run as, when we are root.
    pub identity: Option<(u32, u32)>,
}

/// The scripts of a folder in the order they run: by name, byte by byte. No folder, no scripts.
///
/// # Errors
/// The folder is there but cannot be listed.
pub fn list(dir: &Path) -> Result<Vec<(PathBuf, Kind)>, files::Error> {
    let mut scripts = Vec::new();
    for entry in optional("list", dir, fs::read_dir(dir))?.into_iter().flatten() {
        let path = at("list", dir, entry)?.path();
        if !path.is_dir() {
            let kind = kind_of(&path);
            scripts.push((path, kind));
        }
    }
    scripts.sort();
    Ok(scripts)
}

fn kind_of(path: &Path) -> Kind {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    match name.as_str() {
        name if name.ends_with(".sh") => Kind::Shell,
        name if name.ends_with(".sql") => Kind::Sql,
        name if name.ends_with(".sql.gz") => Kind::SqlGz,
        _ => Kind::Ignored,
    }
}

impl PartialOrd for Kind {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kind {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (*self as u8).cmp(&(*other as u8))
    }
}

/// Runs the scripts of a folder one after the other; returns how many.
///
/// # Errors
/// The first script that fails ends it; the error names it.
pub async fn run_all(
    binaries: &Binaries,
    dir: &Path,
    context: &Context<'_>,
    cancel: &CancellationToken,
) -> Result<usize, Error> {
    let mut done = 0;
    for (script, kind) in list(dir)? {
        if kind == Kind::Ignored {
            tracing::warn!(script = %script.display(), "not an init script (.sh, .sql, .sql.gz), ignored");
            continue;
        }
        tracing::info!(script = %script.display(), "running init script");
        let command = command_for(binaries, &script, kind, context)?;
        command
            .run(cancel)
            .await
            .map_err(|source| Error::Script { script, source })?;
        done += 1;
    }
    Ok(done)
}

fn command_for(
    binaries: &Binaries,
    script: &Path,
    kind: Kind,
    context: &Context<'_>,
) -> Result<Command, Error> {
    let command = match kind {
        Kind::Shell => {
            let (program, args) = shell_call(script)?;
            Command::new(program).args(args)
        }
        Kind::Sql => psql(binaries).arg("-f").arg(script),
        _ => {
            let file = at("open", script, File::open(script))?;
            psql(binaries).stdin_from(flate2::read::MultiGzDecoder::new(BufReader::new(file)))
        }
    };
    let path = std::env::var("PATH").unwrap_or_default();
    Ok(command
        .env("PATH", format!("{}:{path}", binaries.dir.display()))
        .env("PGHOST", context.socket_dir)
        .env("PGPORT", context.port.to_string())
        .env("PGUSER", context.user)
        .env("PGDATABASE", context.database)
        .env("PGPASSFILE", context.passfile)
        .env("PGDATA", context.data_dir)
        .env("POSTGRES_USER", context.user)
        .env("POSTGRES_DB", context.database)
        .identity(context.identity))
}

fn psql(binaries: &Binaries) -> Command {
    binaries
        .command("psql")
        .args(["-v", "ON_ERROR_STOP=1", "--no-psqlrc", "--no-password", "--quiet"])
}

/// Program and arguments that run a shell script.
fn shell_call(script: &Path) -> Result<(PathBuf, Vec<PathBuf>), Error> {
    let meta = at("look at", script, fs::metadata(script))?;
    if meta.permissions().mode() & 0o111 != 0 {
        return Ok((script.to_owned(), Vec::new()));
    }
    let mut first = String::new();
    let file = at("open", script, File::open(script))?;
    // A script need not be text in any known encoding; then it has no first line for us.
    let _ = BufReader::new(file.take(256)).read_line(&mut first);
    let mut words = first
        .strip_prefix("#!")
        .unwrap_or_default()
        .split_whitespace()
        .map(PathBuf::from);
    let (program, mut args) = match words.next() {
        Some(program) => (program, words.collect()),
        None if Path::new("/bin/bash").exists() => ("/bin/bash".into(), Vec::new()),
        None => ("sh".into(), Vec::new()),
    };
    args.push(script.to_owned());
    Ok((program, args))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(dir: &Path, name: &str, content: &str, mode: u32) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, content).expect("file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        path
    }

    fn binaries() -> Binaries {
        let version = super::super::version::Version::parse("x (PostgreSQL) 15.1").expect("valid");
        Binaries {
            dir: "/nonexistent/bin".into(),
            version,
            names: std::collections::BTreeMap::new(),
        }
    }

    fn context(dir: &Path) -> Context<'_> {
        Context {
            socket_dir: "/run/x",
            port: 5432,
            user: "admin",
            database: "app",
            data_dir: dir,
            passfile: dir,
            identity: None,
        }
    }

    #[test]
    fn scripts_come_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for name in ["20-b.sql", "10-a.sh", "30.sql.gz", "README", "B.sql"] {
            script(dir.path(), name, "", 0o644);
        }
        fs::create_dir(dir.path().join("sub.sh")).expect("folder");
        let listed = list(dir.path()).expect("listable");
        let names: Vec<_> = listed
            .iter()
            .map(|(path, kind)| {
                (
                    path.file_name().expect("named").to_string_lossy().into_owned(),
                    *kind,
                )
            })
            .collect();
        let expected = [
            ("10-a.sh", Kind::Shell),
            ("20-b.sql", Kind::Sql),
            ("30.sql.gz", Kind::SqlGz),
            ("B.sql", Kind::Sql),
            ("README", Kind::Ignored),
        ];
        assert_eq!(names, expected.map(|(name, kind)| (name.to_owned(), kind)));
        assert!(
            list(Path::new("/nonexistent"))
                .expect("no folder is fine")
                .is_empty()
        );
    }

    #[test]
    fn a_script_that_is_not_executable_gets_its_interpreter() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let executable = script(dir.path(), "a.sh", "#!/bin/sh\n", 0o755);
        assert_eq!(shell_call(&executable).expect("readable"), (executable, vec![]));
        let named = script(dir.path(), "b.sh", "#!/usr/bin/env bash\n", 0o644);
        assert_eq!(
            shell_call(&named).expect("readable"),
            ("/usr/bin/env".into(), vec!["bash".into(), named])
        );
        let plain = script(dir.path(), "c.sh", "echo\n", 0o644);
        assert_eq!(shell_call(&plain).expect("readable").1, [plain]);
    }

    #[tokio::test]
    async fn scripts_see_the_connection_and_a_failure_is_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let out = dir.path().join("out.txt");
        script(
            dir.path(),
            "1.sh",
            &format!(
                "echo $POSTGRES_USER $POSTGRES_DB $PGHOST $PGPORT > {}",
                out.display()
            ),
            0o644,
        );
        script(dir.path(), "2.sh", "echo broken >&2; exit 7", 0o644);
        script(
            dir.path(),
            "3.sh",
            &format!("echo never > {}", out.display()),
            0o644,
        );
        let error = run_all(
            &binaries(),
            dir.path(),
            &context(dir.path()),
            &CancellationToken::new(),
        )
        .await
        .expect_err("2.sh fails");
        assert!(error.to_string().contains("2.sh"), "{error}");
        assert_eq!(
            fs::read_to_string(out).expect("written by 1.sh"),
            "admin app /run/x 5432\n"
        );
    }
}
