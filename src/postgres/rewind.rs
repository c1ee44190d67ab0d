//! Bringing a diverged data directory back to the leader's history with `pg_rewind`.
//!
//! Whether it is needed is decided elsewhere; here is whether it is possible, the run itself, and the crash recovery
//! that must come before it.

use std::{path::Path, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::model::{ControlData, DbState};

use super::{
    binaries::Binaries,
    command,
    confdir::ConfDir,
    conninfo::Conninfo,
    files,
    options::Options,
    username::{Temporary, with_user_name},
    version::Major,
};

const FORBIDDEN: &[&str] = &[
    "target-pgdata",
    "source-pgdata",
    "source-server",
    "write-recovery-conf",
    "dry-run",
    "restore-target-wal",
    "config-file",
    "no-ensure-shutdown",
    "version",
    "debug",
];

/// Whether pg_rewind can work on this directory at all; the reason otherwise.
///
/// # Errors
/// A text for the operator.
pub fn can_rewind(control: &ControlData, use_pg_rewind: bool) -> Result<(), &'static str> {
    if !use_pg_rewind {
        return Err("use_pg_rewind is off");
    }
    if !control.checksums && !control.wal_log_hints {
        return Err("neither data checksums nor wal_log_hints are on");
    }
    Ok(())
}

/// Whether the directory needs crash recovery before a rewind: it was not stopped cleanly.
#[must_use]
pub const fn needs_crash_recovery(state: DbState) -> bool {
    !state.is_clean()
}

/// How a rewind ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The directory follows the source's history now.
    Done,
    /// It already did.
    NotNeeded,
    /// It did not work.
    Failed {
        /// The last lines of pg_rewind.
        tail: String,
        /// A segment pg_rewind wanted to read and did not find; fetched from the archive, it may work.
        missing_wal: Option<String>,
        /// Copying had begun: the directory is neither the old nor the new one and must not be started.
        target_broken: bool,
    },
}

/// Why pg_rewind could not even run to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started or was cancelled.
    #[error("run pg_rewind")]
    Run(#[source] command::Error),
    /// Configuration files could not be kept.
    #[error(transparent)]
    File(#[from] files::Error),
}

/// What to rewind to what.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// The directory and its configuration.
    pub conf: &'a ConfDir,
    /// Connection to the leader with rewind rights.
    pub source: &'a Conninfo,
    /// Password file for it.
    pub passfile: &'a Path,
    /// A restore_command is configured, so that pg_rewind may fetch missing WAL with it.
    pub has_restore_command: bool,
    /// `postgresql.pg_rewind`: a list or a map; null for none.
    pub options: &'a serde_json::Value,
    /// Ends it after this time.
    pub deadline: Duration,
    /// User and group to run as, when we are root.
    pub identity: Option<(u32, u32)>,
}

/// Whether pg_rewind can find the `restore_command` itself. Otherwise a segment it misses has to be fetched for it.
#[must_use]
pub fn fetches_wal(major: Major, conf: &ConfDir) -> bool {
    conf.config_dir == conf.data_dir || major.rewind_takes_config_file()
}

/// The arguments of pg_rewind, and options that were refused.
#[must_use]
pub fn arguments(major: Major, input: &Input<'_>) -> (Vec<String>, Vec<String>) {
    let given = Options::read(input.options, FORBIDDEN);
    let source = input
        .source
        .clone()
        .with("target_session_attrs", "read-write")
        .with_defaults(&[("dbname", "postgres"), ("connect_timeout", "5")]);
    let mut args = vec![
        format!("--target-pgdata={}", input.conf.data_dir.display()),
        format!("--source-server={}", source.dsn(major)),
        "--progress".to_owned(),
    ];
    if major.rewind_takes_config_file() {
        args.push(format!("--config-file={}", input.conf.main().display()));
    }
    if input.has_restore_command && fetches_wal(major, input.conf) {
        args.push("--restore-target-wal".to_owned());
    }
    args.extend(given.args);
    (args, given.errors.iter().map(ToString::to_string).collect())
}

/// Runs pg_rewind on a stopped instance. The configuration files of this member survive, although pg_rewind copies
/// the leader's over them.
///
/// # Errors
/// It could not be run, or was cancelled or too slow; the directory must then be looked at again: with
/// [`super::datadir::INCOMPLETE`] in it, copying had begun.
pub async fn run(
    binaries: &Binaries,
    input: &Input<'_>,
    cancel: &CancellationToken,
) -> Result<Outcome, Error> {
    let (args, refused) = arguments(binaries.major(), input);
    for reason in refused {
        tracing::error!(reason, "option of pg_rewind ignored");
    }
    let snapshot = input.conf.snapshot()?;
    let marker = input.conf.data_dir.join(super::datadir::INCOMPLETE);
    let command = binaries
        .command("pg_rewind")
        .args(&args)
        .env("PGPASSFILE", input.passfile);
    let command = command
        .env("PGOPTIONS", "-c statement_timeout=0")
        .identity(input.identity)
        .deadline(input.deadline);
    let mut reading = Reading::default();
    let result = command.run_with(cancel, |_, line| {
        let began = reading.line(line);
        // pg_rewind overwrites files in place: were it killed from here on, the directory must not be started.
        if began && let Err(error) = files::write_atomic(&marker, b"", 0o600) {
            tracing::error!(%error, "cannot mark the directory as incomplete");
        }
    });
    let result = result.await;
    // Also after a failure: with the leader's files this member would come up under the leader's settings.
    input.conf.restore(&snapshot)?;
    match result {
        Ok(_) if reading.not_needed => Ok(Outcome::NotNeeded),
        Ok(_) => {
            files::optional("remove", &marker, std::fs::remove_file(&marker))?;
            Ok(Outcome::Done)
        }
        Err(command::Error::Failed { tail, .. }) => Ok(Outcome::Failed {
            missing_wal: missing_wal(&tail),
            tail,
            target_broken: reading.copying,
        }),
        Err(error) => Err(Error::Run(error)),
    }
}

/// What the lines of pg_rewind tell.
#[derive(Debug, Default, PartialEq, Eq)]
struct Reading {
    not_needed: bool,
    copying: bool,
}

impl Reading {
    /// Takes a line; true when copying begins with it. Everything before "need to copy" only reads the target
    /// (PostgreSQL: `pg_rewind.c`, `perform_rewind` comes after that message).
    fn line(&mut self, line: &str) -> bool {
        self.not_needed |= line.contains("no rewind required");
        let begins = !self.copying && line.contains("need to copy ");
        self.copying |= begins;
        begins
    }
}

/// The WAL segment pg_rewind did not find: `could not open file "…/pg_wal/00000001000000000000000A": No such file …`.
#[must_use]
pub fn missing_wal(output: &str) -> Option<String> {
    let is_segment = |name: &&str| {
        name.len() == 24
            && name
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b))
    };
    let lines = output
        .lines()
        .filter(|line| line.contains("could not open file") || line.contains("No such file"));
    lines
        .flat_map(|line| line.split(['"', '/', ' ', '\'', ':']))
        .find(is_segment)
        .map(str::to_owned)
}

/// A directory to recover.
#[derive(Debug, Clone)]
pub struct Recovery<'a> {
    /// The directory and its configuration.
    pub conf: &'a ConfDir,
    /// The postmaster's arguments (`--config-file=…`, protected values).
    pub args: &'a [String],
    /// A live process that has the pid in the stale `postmaster.pid` and is no postmaster: PostgreSQL would take it
    /// for a rival, except for the process named by `PG_GRANDPARENT_PID` (`CreateLockFile` in `miscinit.c`).
    pub stranger: Option<i32>,
    /// Ends it after this time.
    pub deadline: Duration,
    /// User and group to run as, when we are root.
    pub identity: Option<(u32, u32)>,
}

/// Crash recovery of a stopped directory in single-user mode, as far as its own WAL goes; needed before a rewind
/// because pg_rewind wants a clean shutdown and single-user mode refuses a standby. The caller writes
/// `standby.signal` again.
///
/// # Errors
/// PostgreSQL could not recover, or not in time.
pub async fn crash_recovery(
    binaries: &Binaries,
    recovery: &Recovery<'_>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let (conf, identity) = (recovery.conf, recovery.identity);
    conf.set_standby(false)?;
    let mut command = binaries
        .command("postgres")
        .arg("--single")
        .arg("-D")
        .arg(&conf.data_dir)
        .args(recovery.args);
    if let Some(pid) = recovery.stranger {
        command = command.env("PG_GRANDPARENT_PID", pid.to_string());
    }
    let mut temporary = Temporary::default();
    let command = with_user_name(command, &conf.data_dir, identity, &mut temporary)?;
    // Nothing it writes now may reach the archive: its history may be the wrong one.
    let command = command.args([
        "-c",
        "archive_mode=on",
        "-c",
        "archive_command=false",
        "template1",
    ]);
    let result = command
        .identity(identity)
        .stdin(Vec::new())
        .deadline(recovery.deadline)
        .run(cancel)
        .await;
    result.map(drop).map_err(Error::Run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn control() -> ControlData {
        super::super::control::parse(include_str!("fixtures/pg_controldata-15.txt"))
            .expect("valid")
            .control
    }

    #[test]
    fn a_rewind_needs_checksums_or_hints() {
        let mut control = control();
        assert_eq!(can_rewind(&control, true), Ok(()));
        assert_eq!(can_rewind(&control, false), Err("use_pg_rewind is off"));
        control.checksums = false;
        assert!(can_rewind(&control, true).is_err());
        control.wal_log_hints = true;
        assert_eq!(can_rewind(&control, true), Ok(()));
    }

    #[test]
    fn only_a_clean_stop_needs_no_recovery() {
        assert!(
            !needs_crash_recovery(DbState::ShutDown) && !needs_crash_recovery(DbState::ShutDownInRecovery)
        );
        assert!(
            needs_crash_recovery(DbState::InProduction) && needs_crash_recovery(DbState::InArchiveRecovery)
        );
    }

    #[test]
    fn arguments_depend_on_version_and_archive() {
        let conf = ConfDir::new("/data");
        let source = Conninfo::new()
            .with("host", "pg1")
            .with("user", "rewind")
            .with("password", "secret");
        let options = json!({"no-sync": "x", "dry-run": "1"});
        let mut input = Input {
            conf: &conf,
            source: &source,
            passfile: Path::new("/p"),
            has_restore_command: true,
            options: &options,
            deadline: Duration::from_secs(1),
            identity: None,
        };
        let (args, refused) = arguments(Major(15), &input);
        insta::assert_snapshot!(args.join("\n"), @r"
        --target-pgdata=/data
        --source-server=dbname=postgres user=rewind host=pg1 target_session_attrs=read-write connect_timeout=5
        --progress
        --config-file=/data/postgresql.conf
        --restore-target-wal
        --no-sync=x
        ");
        assert_eq!(refused.len(), 1);
        let outside = ConfDir {
            config_dir: "/etc/pg".into(),
            ..ConfDir::new("/data")
        };
        (input.conf, input.options) = (&outside, &Value::Null);
        assert_eq!(arguments(Major(14), &input).0.len(), 3);
    }

    #[test]
    fn the_output_tells_what_happened() {
        let mut reading = Reading::default();
        assert!(!reading.line("pg_rewind: servers diverged at WAL location 0/3000148 on timeline 1"));
        assert!(!reading.copying);
        assert!(reading.line("pg_rewind: need to copy 53 MB (total source directory size is 76 MB)"));
        assert!(!reading.line("pg_rewind: need to copy 53 MB"));
        assert!(reading.copying && !reading.not_needed);
        let mut reading = Reading::default();
        reading.line("pg_rewind: no rewind required");
        assert!(reading.not_needed);
    }

    #[test]
    fn a_missing_segment_is_named() {
        let text = "pg_rewind: servers diverged\npg_rewind: error: could not open file \"/data/pg_wal/00000001000000000000000A\": No such file or directory\npg_rewind: fatal: could not find previous WAL record at 0/A000028";
        assert_eq!(missing_wal(text).as_deref(), Some("00000001000000000000000A"));
        assert_eq!(
            missing_wal("could not open file \"/data/global/pg_control\": No such file"),
            None
        );
        assert_eq!(missing_wal(""), None);
    }
}
