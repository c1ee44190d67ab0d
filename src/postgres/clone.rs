//! Copying another server's data directory with `pg_basebackup`, into a side directory.
//!
//! A copy may take hours, so there is no deadline, but a copy that stands still is given up, and it can be
//! cancelled. Progress is published on a watch channel and logged every few seconds.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    binaries::Binaries,
    command::{self, Command},
    conninfo::Conninfo,
    files,
    options::Options,
    staging::Staging,
    tablespaces,
    version::Major,
};

/// Options this program sets itself (contract: bootstrap and images §5).
const FORBIDDEN: &[&str] = &[
    "pgdata",
    "format",
    "wal-method",
    "xlog-method",
    "gzip",
    "version",
    "dbname",
    "host",
    "port",
    "username",
    "password",
];
/// Time between two lines of progress in the log.
const LOG_EVERY: Duration = Duration::from_secs(5);
/// Time between two attempts.
const PAUSE: Duration = Duration::from_secs(5);

/// How far a copy is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes copied.
    pub done_bytes: u64,
    /// Bytes expected; an estimate, it grows with the source.
    pub total_bytes: u64,
}

/// Why there is no copy. The old data was not touched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// pg_basebackup failed or was cancelled.
    #[error("copy the data of another server")]
    Run(#[source] command::Error),
    /// Nothing arrived for too long.
    #[error("the copy stood still for {}s at {} of {} bytes", after.as_secs(), at.done_bytes, at.total_bytes)]
    Stalled {
        /// The limit that was reached.
        after: Duration,
        /// How far it had come.
        at: Progress,
    },
    /// The side directory cannot be emptied.
    #[error(transparent)]
    File(#[from] files::Error),
}

impl Error {
    /// The disk is full: another attempt is senseless before there is space.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Run(error) => error.is_disk_full(),
            Self::File(error) => error.is_disk_full(),
            Self::Stalled { .. } => false,
        }
    }
}

/// What to copy from where.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// Connection to the source with replication rights.
    pub source: &'a Conninfo,
    /// Password file for it.
    pub passfile: &'a Path,
    /// `postgresql.basebackup`: a list or a map; null for none.
    pub options: &'a Value,
    /// Where the source's tablespaces are.
    pub tablespaces: &'a [PathBuf],
    /// How often to try, at least once.
    pub attempts: u32,
    /// Longest time without a new byte before the copy is given up. The clock starts with the first byte: before that
    /// the source makes a checkpoint, which may take minutes.
    pub stall: Duration,
    /// User and group to run as, when we are root.
    pub identity: Option<(u32, u32)>,
}

/// The arguments of pg_basebackup without the directory, and options that were refused (to be logged; the copy goes
/// on without them).
#[must_use]
pub fn arguments(major: Major, source: &Conninfo, options: &Value) -> (Vec<String>, Vec<String>) {
    let mut given = Options::read(options, FORBIDDEN);
    let mut refused: Vec<String> = given.errors.iter().map(ToString::to_string).collect();
    given.args.retain(|arg| {
        let Some(method) = arg.strip_prefix("--compress") else {
            return true;
        };
        // Compressed on this side the result would be archives, not a data directory.
        let usable = major.compresses_basebackup_on_server() && method.starts_with("=server");
        if !usable {
            refused.push(format!(
                "'{arg}' cannot be used, only compression on the server (PostgreSQL 15 and newer)"
            ));
        }
        usable
    });
    let mut args = vec![
        "--wal-method=stream".to_owned(),
        format!("--dbname={}", source.dsn(major)),
    ];
    if !given.has(&["checkpoint"]) {
        args.push("--checkpoint=fast".to_owned());
    }
    args.extend(["--progress", "--no-password"].map(str::to_owned));
    args.extend(given.args);
    (args, refused)
}

/// Whether a line of progress says that every tablespace has arrived: `…, 2/2 tablespaces`. What follows then (the
/// last WAL, writing everything to disk) shows no progress, and the byte counts need not meet, because the total is
/// an estimate.
#[must_use]
pub fn is_complete(line: &str) -> bool {
    let counts = line
        .split_once("%), ")
        .and_then(|(_, rest)| rest.split_once(" tablespace"));
    let pair = counts.and_then(|(counts, _)| counts.split_once('/'));
    pair.is_some_and(|(done, total)| {
        done.trim()
            .parse::<u32>()
            .is_ok_and(|done| done > 0 && total.trim().parse() == Ok(done))
    })
}

/// Reads a line of progress: `  23456/34567 kB (67%), 0/1 tablespace (…)`.
#[must_use]
pub fn parse_progress(line: &str) -> Option<Progress> {
    let (counts, _) = line.trim_start().split_once(" kB (")?;
    let (done, total) = counts.split_once('/')?;
    let bytes = |kib: &str| kib.trim().parse::<u64>().ok()?.checked_mul(1024);
    Some(Progress {
        done_bytes: bytes(done)?,
        total_bytes: bytes(total)?,
    })
}

/// Fills the side directory with a copy of the source. On success it is complete and on disk, and waits for
/// [`Staging::install`].
///
/// # Errors
/// The last attempt's error. The side directory is then empty.
pub async fn run(
    binaries: &Binaries,
    staging: &Staging,
    input: &Input<'_>,
    progress: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let (args, refused) = arguments(binaries.major(), input.source, input.options);
    for reason in refused {
        tracing::error!(reason, "option of pg_basebackup ignored");
    }
    let relocated = tablespaces::relocate(args, input.tablespaces, tablespaces::is_occupied);
    tablespaces::make_room(&relocated.beside)?;
    let mut attempt = 1;
    loop {
        let command = binaries
            .command("pg_basebackup")
            .args(&relocated.args)
            .arg("--pgdata")
            .arg(staging.dir());
        let command = command
            .env("PGPASSFILE", input.passfile)
            .identity(input.identity)
            .quiet();
        let result = one_attempt(command, input.stall, progress, cancel).await;
        let Err(error) = result else { return Ok(()) };
        staging.clear()?;
        tablespaces::clear(&relocated.beside)?;
        let hopeless = error.is_disk_full()
            || matches!(
                error,
                Error::Run(command::Error::Cancelled { .. } | command::Error::NotFound { .. })
            );
        if attempt >= input.attempts || hopeless {
            return Err(error);
        }
        attempt += 1;
        tracing::warn!(error = %chain(&error), attempt, "copying failed, trying again");
        tokio::select! {
            () = cancel.cancelled() => return Err(error),
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// What the reader of the output and the watch for a standstill share.
struct Meter {
    at: Progress,
    moved: Instant,
    logged: Instant,
    logged_bytes: u64,
    complete: bool,
}

impl Meter {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            at: Progress::default(),
            moved: now,
            logged: now,
            logged_bytes: 0,
            complete: false,
        }
    }

    fn line(&mut self, line: &str, progress: &watch::Sender<Progress>) {
        let Some(at) = parse_progress(line) else {
            return;
        };
        let now = Instant::now();
        if at.done_bytes != self.at.done_bytes {
            self.moved = now;
        }
        self.complete |= is_complete(line);
        self.at = at;
        progress.send_replace(at);
        let since = now.duration_since(self.logged);
        if since >= LOG_EVERY || (at.done_bytes >= at.total_bytes && self.logged_bytes != at.done_bytes) {
            let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).max(1);
            let bytes_per_second = at
                .done_bytes
                .saturating_sub(self.logged_bytes)
                .saturating_mul(1000)
                / millis;
            tracing::info!(
                done_bytes = at.done_bytes,
                total_bytes = at.total_bytes,
                bytes_per_second,
                "copying data"
            );
            (self.logged, self.logged_bytes) = (now, at.done_bytes);
        }
    }

    /// Bytes are coming and more are expected.
    const fn is_watched(&self) -> bool {
        self.at.done_bytes > 0 && !self.complete
    }
}

async fn one_attempt(
    command: Command,
    stall: Duration,
    progress: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let meter = Arc::new(Mutex::new(Meter::new()));
    progress.send_replace(Progress::default());
    let stop = cancel.child_token();
    let reader = Arc::clone(&meter);
    let run = command.run_with(&stop, move |_, line| {
        reader
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .line(line, progress);
    });
    tokio::pin!(run);
    let mut stalled = None;
    let result = loop {
        let until = meter.lock().unwrap_or_else(PoisonError::into_inner).moved + stall;
        // Cancel-safe: `run` is pinned outside the loop, the timer is made anew.
        tokio::select! {
            result = &mut run => break result,
            () = tokio::time::sleep_until(until.max(Instant::now() + Duration::from_millis(50))), if stalled.is_none() => {
                let meter = meter.lock().unwrap_or_else(PoisonError::into_inner);
                if meter.moved.elapsed() >= stall && meter.is_watched() {
                    stalled = Some(meter.at);
                    stop.cancel();
                }
            }
        }
    };
    match (result, stalled) {
        (Ok(_), _) => Ok(()),
        (Err(_), Some(at)) => Err(Error::Stalled { after: stall, at }),
        (Err(error), None) => Err(Error::Run(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sh(script: &str) -> Command {
        Command::new("sh").arg("-c").arg(script).quiet()
    }

    #[test]
    fn arguments_are_ours_first() {
        let source = Conninfo::new()
            .with("host", "pg1")
            .with("user", "r")
            .with("password", "secret")
            .with("dbname", "postgres");
        let (args, refused) = arguments(
            Major(15),
            &source,
            &json!([{"max-rate": "100M"}, {"compress": "server-zstd"}, {"format": "t"}]),
        );
        insta::assert_snapshot!(args.join("\n"), @r"
        --wal-method=stream
        --dbname=dbname=postgres user=r host=pg1
        --checkpoint=fast
        --progress
        --no-password
        --max-rate=100M
        --compress=server-zstd
        ");
        assert_eq!(refused.len(), 1);
        let (args, refused) = arguments(
            Major(14),
            &source,
            &json!({"compress": "server-zstd", "checkpoint": "spread"}),
        );
        assert_eq!(refused.len(), 1);
        assert!(
            !args
                .iter()
                .any(|arg| arg.contains("compress") || arg.contains("fast"))
        );
        assert_eq!(
            arguments(Major(15), &source, &json!({"compress": "9"})).1.len(),
            1
        );
    }

    #[test]
    fn progress_lines_are_read() {
        let expected = Some(Progress {
            done_bytes: 23_456 * 1024,
            total_bytes: 34_567 * 1024,
        });
        assert_eq!(
            parse_progress("23456/34567 kB (67%), 0/1 tablespace (...ata/base/1/2345)"),
            expected
        );
        assert_eq!(
            parse_progress("    23456/34567 kB (67%), 0/1 tablespace"),
            expected
        );
        for line in [
            "",
            "waiting for checkpoint",
            "x/y kB (1%)",
            "1/2",
            "99999999999999999999/1 kB (0%)",
        ] {
            assert_eq!(parse_progress(line), None, "{line}");
        }
    }

    #[test]
    fn the_number_of_tablespaces_tells_the_end() {
        for (line, complete) in [
            ("  10/20 kB (50%), 0/1 tablespace (...ata/base/1)", false),
            ("  10/20 kB (50%), 1/2 tablespaces", false),
            ("  19/20 kB (99%), 1/1 tablespace", true),
            ("  19/20 kB (99%), 2/2 tablespaces", true),
            ("waiting for checkpoint", false),
            ("  0/0 kB (100%), 0/0 tablespaces", false),
        ] {
            assert_eq!(is_complete(line), complete, "{line}");
        }
    }

    #[tokio::test]
    async fn progress_is_published() {
        let (sender, receiver) = watch::channel(Progress::default());
        let script =
            sh("echo '  10/20 kB (50%), 0/1 tablespace' >&2; echo '  20/20 kB (100%), 1/1 tablespace' >&2");
        one_attempt(script, Duration::from_secs(9), &sender, &CancellationToken::new())
            .await
            .expect("success");
        assert_eq!(
            *receiver.borrow(),
            Progress {
                done_bytes: 20_480,
                total_bytes: 20_480
            }
        );
    }

    #[tokio::test]
    async fn a_copy_that_stands_still_is_given_up() {
        let (sender, _receiver) = watch::channel(Progress::default());
        let script = sh(
            "for i in 1 2 3 4; do echo '  10/20 kB (50%), 0/1 tablespace'; sleep 0.1; done; exec sleep 60",
        );
        let error = one_attempt(
            script,
            Duration::from_millis(300),
            &sender,
            &CancellationToken::new(),
        )
        .await;
        assert!(
            matches!(error, Err(Error::Stalled { at, .. }) if at.done_bytes == 10_240),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn neither_the_checkpoint_before_nor_the_disk_after_is_a_standstill() {
        let (sender, _receiver) = watch::channel(Progress::default());
        let script = sh(
            "echo '  0/20 kB (0%), 0/2 tablespaces (x)'; sleep 0.5; echo '  19/20 kB (99%), 2/2 tablespaces'; sleep 0.6",
        );
        one_attempt(
            script,
            Duration::from_millis(200),
            &sender,
            &CancellationToken::new(),
        )
        .await
        .expect("success");
    }

    #[tokio::test]
    async fn a_failed_copy_leaves_an_empty_side_directory_and_the_old_data() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let data = dir.path().join("data");
        std::fs::create_dir(&data).expect("folder");
        std::fs::write(data.join("precious"), "").expect("file");
        let program = dir.path().join("pg_basebackup");
        std::fs::write(&program, "#!/bin/sh\nfor a; do last=$a; done; touch $last/half; echo 'No space left on device' >&2; exit 1\n").expect("file");
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("chmod");
        let version = super::super::version::Version::parse("x (PostgreSQL) 15.1").expect("valid");
        let binaries = Binaries {
            dir: dir.path().into(),
            version,
            names: std::collections::BTreeMap::new(),
        };
        let staging = Staging::prepare(&data).expect("prepared");
        let (sender, _receiver) = watch::channel(Progress::default());
        let input = Input {
            source: &Conninfo::new(),
            passfile: dir.path(),
            options: &Value::Null,
            tablespaces: &[],
            attempts: 2,
            stall: Duration::from_secs(9),
            identity: None,
        };
        let error = run(&binaries, &staging, &input, &sender, &CancellationToken::new())
            .await
            .expect_err("disk full");
        assert!(error.is_disk_full(), "{error:?}");
        assert_eq!(std::fs::read_dir(staging.dir()).expect("listable").count(), 0);
        assert!(data.join("precious").exists());
    }
}
