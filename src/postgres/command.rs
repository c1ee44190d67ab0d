//! Running an external program as one cancellable child with a deadline.
//!
//! Every program of this folder except the postmaster itself is run through here. The exit status comes from
//! the `Child` only; nothing here waits for processes it did not start. Environment: variables that carry this
//! program's own settings (and so its secrets) are never handed on.
//!
//! | input | what happens | ends with |
//! |---|---|---|
//! | the program exits with 0 | remaining output is read for a moment | `Ok(Output)` |
//! | it exits otherwise | the same | `Failed` with the last lines |
//! | the deadline passes, or the token is cancelled | TERM to its process group, 10 s later KILL | `Timeout`, `Cancelled` |
//! | the future is dropped | KILL to its process group | – |

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io::{self, Read},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::lines::{Lines, Sink};
use crate::priorities;

/// Time between TERM and KILL.
const GRACE: Duration = Duration::from_secs(10);
/// How long output is awaited after the program's end: a daemon it left behind may hold the pipe open.
const DRAIN: Duration = Duration::from_millis(500);

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such program.
    #[error("program {} was not found", program.display())]
    NotFound {
        /// The program as it was called.
        program: PathBuf,
    },
    /// The operating system could not start it.
    #[error("start {}", program.display())]
    Spawn {
        /// The program as it was called.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It did not end in time and was ended.
    #[error("{program} did not finish within {after:?}{}", shown(tail))]
    Timeout {
        /// Name of the program.
        program: String,
        /// The deadline it had.
        after: Duration,
        /// Its last lines.
        tail: String,
    },
    /// It was ended because nobody wants its result any more.
    #[error("{program} was cancelled")]
    Cancelled {
        /// Name of the program.
        program: String,
    },
    /// It ended with an error.
    #[error("{program} ended with {status}{}", shown(tail))]
    Failed {
        /// Name of the program.
        program: String,
        /// Exit status or signal.
        status: ExitStatus,
        /// Its last lines.
        tail: String,
    },
}

fn shown(tail: &str) -> String {
    if tail.is_empty() {
        String::new()
    } else {
        format!(": {tail}")
    }
}

impl Error {
    /// The last lines the program printed; empty when there were none.
    #[must_use]
    pub fn tail(&self) -> &str {
        match self {
            Self::Timeout { tail, .. } | Self::Failed { tail, .. } => tail,
            _ => "",
        }
    }

    /// The program said that the disk (or the quota) is full. PostgreSQL's programs run in a C locale, so the
    /// words are those of the C library.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        ["No space left on device", "Disk quota exceeded"]
            .iter()
            .any(|text| self.tail().contains(text))
    }
}

/// What a program left behind when it succeeded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// Standard output; empty unless [`Command::capture`] was asked for.
    pub stdout: String,
    /// The last lines of both streams.
    pub tail: String,
}

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

enum Input {
    None,
    Bytes(Vec<u8>),
    Reader(Box<dyn Read + Send + Sync>),
}

/// A program with its arguments, environment, input and limits.
pub struct Command {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    input: Input,
    identity: Option<(u32, u32)>,
    cwd: Option<PathBuf>,
    deadline: Option<Duration>,
    capture: bool,
    quiet: bool,
}

impl Command {
    /// A program by path or by name (then PATH decides).
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            input: Input::None,
            identity: None,
            cwd: None,
            deadline: None,
            capture: false,
            quiet: false,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable of the program.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Bytes for its standard input, which is closed behind them. Without this it reads /dev/null.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// A source for its standard input that is too large for memory; read on a blocking thread.
    #[must_use]
    pub fn stdin_from(mut self, reader: impl Read + Send + Sync + 'static) -> Self {
        self.input = Input::Reader(Box::new(reader));
        self
    }

    /// Runs it as this user and group without supplementary groups; only root can.
    #[must_use]
    pub fn identity(mut self, identity: Option<(u32, u32)>) -> Self {
        self.identity = identity;
        self
    }

    /// Its working directory.
    #[must_use]
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cwd = Some(dir.into());
        self
    }

    /// Ends it after this time. Without it the program may run for ever (but can be cancelled).
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Keeps standard output (at most 4 MiB) as the result instead of logging it.
    #[must_use]
    pub fn capture(mut self) -> Self {
        self.capture = true;
        self
    }

    /// Logs its lines at DEBUG instead of INFO.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// The program and its arguments, for tests and logs. Nothing secret may be an argument: everybody on the
    /// host can read it.
    #[must_use]
    pub fn argv(&self) -> Vec<String> {
        let program = self.program.to_string_lossy().into_owned();
        let args = self.args.iter().map(|arg| arg.to_string_lossy().into_owned());
        std::iter::once(program).chain(args).collect()
    }

    fn name(&self) -> String {
        let name = self.program.file_name().unwrap_or(self.program.as_os_str());
        name.to_string_lossy().into_owned()
    }

    /// Runs the program to its end.
    ///
    /// # Errors
    /// See [`Error`]. Whatever the error, no process of its group is left when this returns.
    pub async fn run(self, cancel: &CancellationToken) -> Result<Output, Error> {
        self.run_with(cancel, |_, _| {}).await
    }

    /// Runs the program to its end and shows every line to `on_line` as it comes.
    ///
    /// # Errors
    /// As [`Command::run`].
    pub async fn run_with(
        mut self,
        cancel: &CancellationToken,
        mut on_line: impl FnMut(Stream, &str) + Send,
    ) -> Result<Output, Error> {
        let name = self.name();
        let mut child = self.spawn()?;
        // With process_group(0) the group has the child's pid. No pid means it has been reaped: impossible here.
        let group = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let mut guard = GroupGuard(group);
        if let Some(group) = group {
            priorities::make_ordinary(group.as_raw_nonzero().get());
        }
        let feed = feed(
            child.stdin.take(),
            std::mem::replace(&mut self.input, Input::None),
        );
        let mut sink = Sink {
            name: &name,
            log: !self.quiet,
            capture: self.capture,
            stdout: String::new(),
            tail: VecDeque::new(),
            on_line: &mut on_line,
        };
        let end = self.until_end(&mut child, &mut sink, feed, cancel).await;
        let (stdout, tail) = (sink.stdout, Vec::from(sink.tail).join("\n"));
        let result = match end {
            End::Exited(Ok(status)) if status.success() => Ok(Output { stdout, tail }),
            End::Exited(Ok(status)) => Err(Error::Failed {
                program: name,
                status,
                tail,
            }),
            End::Exited(Err(source)) => Err(Error::Spawn {
                program: self.program.clone(),
                source,
            }),
            End::Deadline(after) => Err(Error::Timeout {
                program: name,
                after,
                tail,
            }),
            End::Cancelled => Err(Error::Cancelled { program: name }),
        };
        if matches!(result, Err(Error::Timeout { .. } | Error::Cancelled { .. })) {
            stop(&mut child, group).await;
        } else {
            // It ended by itself. What it left running on purpose is not ours to end.
            guard.0 = None;
        }
        result
    }

    fn spawn(&self) -> Result<Child, Error> {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(&self.args).process_group(0).kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            if is_private(&name) {
                command.env_remove(name);
            }
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let piped = !matches!(self.input, Input::None);
        command.stdin(if piped { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some((uid, gid)) = self.identity {
            command.uid(uid).gid(gid);
        }
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        command.spawn().map_err(|source| {
            let program = self.program.clone();
            if source.kind() == io::ErrorKind::NotFound && self.cwd.as_ref().is_none_or(|dir| dir.is_dir()) {
                Error::NotFound { program }
            } else {
                Error::Spawn { program, source }
            }
        })
    }

    async fn until_end<F: FnMut(Stream, &str) + Send>(
        &self,
        child: &mut Child,
        sink: &mut Sink<'_, F>,
        feed: impl Future<Output = ()>,
        cancel: &CancellationToken,
    ) -> End {
        let mut out = Lines::new(child.stdout.take());
        let mut err = Lines::new(child.stderr.take());
        let deadline = self.deadline.map(|after| (Instant::now() + after, after));
        let expired = async {
            match deadline {
                Some((at, after)) => {
                    sleep_until(at).await;
                    after
                }
                None => std::future::pending().await,
            }
        };
        tokio::pin!(feed, expired);
        let mut fed = false;
        let end = loop {
            // Every arm is cancel-safe: Lines keeps its buffer, wait() and the timers can be polled again.
            tokio::select! {
                biased;
                () = cancel.cancelled() => return End::Cancelled,
                after = &mut expired => return End::Deadline(after),
                line = out.next(), if !out.ended => sink.line(Stream::Stdout, line),
                line = err.next(), if !err.ended => sink.line(Stream::Stderr, line),
                () = &mut feed, if !fed => fed = true,
                status = child.wait() => break status,
            }
        };
        let drain = async {
            while !out.ended || !err.ended {
                tokio::select! {
                    line = out.next(), if !out.ended => sink.line(Stream::Stdout, line),
                    line = err.next(), if !err.ended => sink.line(Stream::Stderr, line),
                }
            }
        };
        // Timing out here only loses the words of something that outlived the program.
        let _ = timeout(DRAIN, drain).await;
        End::Exited(end)
    }
}

enum End {
    Exited(io::Result<ExitStatus>),
    Deadline(Duration),
    Cancelled,
}

/// What runs below PostgreSQL (archive commands, extensions, init scripts) has no business with our settings and
/// secrets. The list is that of the configuration, so that a new secret cannot be forgotten here.
fn is_private(name: &OsStr) -> bool {
    crate::config::is_private(&name.to_string_lossy())
}

async fn stop(child: &mut Child, group: Option<Pid>) {
    signal(group, Signal::TERM);
    if timeout(GRACE, child.wait()).await.is_err() {
        tracing::warn!(pid = child.id(), "program ignored TERM, killing it");
    }
    // Also when it ended: its own children may not have. The number stays reserved while the group has members.
    signal(group, Signal::KILL);
    let _ = timeout(GRACE, child.wait()).await;
}

fn signal(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        // The only expected error is "no such group", which is what we want.
        let _ = kill_process_group(group, signal);
    }
}

/// Kills the group when the future that runs the program is dropped.
struct GroupGuard(Option<Pid>);

impl Drop for GroupGuard {
    fn drop(&mut self) {
        signal(self.0, Signal::KILL);
    }
}

async fn feed(stdin: Option<ChildStdin>, input: Input) {
    let Some(mut stdin) = stdin else { return };
    // A program that closes its input early says so by its exit status; EPIPE here is no news.
    match input {
        Input::None => {}
        Input::Bytes(bytes) => {
            let _ = stdin.write_all(&bytes).await;
        }
        Input::Reader(mut reader) => {
            let (sender, mut chunks) = tokio::sync::mpsc::channel::<Vec<u8>>(4);
            let read = tokio::task::spawn_blocking(move || {
                let mut chunk = vec![0; 64 * 1024];
                loop {
                    let length = reader.read(&mut chunk)?;
                    if length == 0 || sender.blocking_send(chunk[..length].to_vec()).is_err() {
                        return io::Result::Ok(());
                    }
                }
            });
            while let Some(chunk) = chunks.recv().await {
                if stdin.write_all(&chunk).await.is_err() {
                    return;
                }
            }
            if let Ok(Err(error)) = read.await {
                tracing::error!(%error, "cannot read the input of a program");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::lines::LINE_BYTES;

    fn sh(script: &str) -> Command {
        Command::new("sh").arg("-c").arg(script).quiet()
    }

    async fn alive(pid_file: &std::path::Path) -> bool {
        let pid = std::fs::read_to_string(pid_file).expect("pid written");
        std::path::Path::new("/proc")
            .join(pid.trim())
            .join("exe")
            .exists()
    }

    #[tokio::test]
    async fn captures_output_and_feeds_input() {
        let cancel = CancellationToken::new();
        let command = sh("cat; echo oops >&2").stdin("a\nb").capture();
        let output = command.run(&cancel).await.expect("success");
        assert_eq!((output.stdout.as_str(), output.tail.as_str()), ("a\nb\n", "oops"));
        let command = sh("wc -c").stdin_from(io::repeat(b'x').take(1_000_000)).capture();
        assert_eq!(
            command.run(&cancel).await.expect("success").stdout.trim(),
            "1000000"
        );
    }

    #[tokio::test]
    async fn a_failure_carries_the_last_lines() {
        let error = sh("for i in $(seq 50); do echo line $i; done; exit 3")
            .run(&CancellationToken::new())
            .await
            .expect_err("exit 3");
        assert!(matches!(&error, Error::Failed { status, .. } if status.code() == Some(3)));
        assert!(error.to_string().ends_with("line 50"), "{error}");
        assert!(!error.tail().contains("line 30\n"));
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = Command::new("/nonexistent/initdb")
            .run(&CancellationToken::new())
            .await;
        assert_eq!(
            error.expect_err("missing").to_string(),
            "program /nonexistent/initdb was not found"
        );
    }

    #[tokio::test]
    async fn lines_end_at_carriage_returns_too() {
        let mut lines = Vec::new();
        sh("printf '1%%\\r2%%\\nend'")
            .run_with(&CancellationToken::new(), |_, line| lines.push(line.to_owned()))
            .await
            .expect("success");
        assert_eq!(lines, ["1%", "2%", "end"]);
    }

    #[tokio::test]
    async fn the_deadline_ends_the_whole_group() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let pid = dir.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", pid.display());
        let started = Instant::now();
        let error = sh(&script)
            .deadline(Duration::from_secs(1))
            .run(&CancellationToken::new())
            .await;
        assert!(matches!(error, Err(Error::Timeout { .. })), "{error:?}");
        assert!(started.elapsed() < Duration::from_secs(6));
        // The signal was sent to the whole group; when each of it is gone is up to the scheduler.
        while alive(&pid).await {
            assert!(started.elapsed() < Duration::from_secs(6), "its child lives on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn cancelling_ends_it() {
        let cancel = CancellationToken::new();
        let trigger = cancel.clone();
        let error = sh("echo up; exec sleep 60")
            .run_with(&cancel, move |_, _| trigger.cancel())
            .await;
        assert!(matches!(error, Err(Error::Cancelled { .. })), "{error:?}");
    }

    #[tokio::test]
    async fn a_daemon_left_behind_does_not_block_the_result() {
        let started = Instant::now();
        sh("sleep 5 & echo ok")
            .run(&CancellationToken::new())
            .await
            .expect("success");
        assert!(started.elapsed() < Duration::from_secs(3));
    }

    #[tokio::test]
    async fn endless_lines_are_cut() {
        let output = sh("head -c 100000 /dev/zero | tr '\\0' x")
            .run(&CancellationToken::new())
            .await;
        assert_eq!(output.expect("success").tail.len(), LINE_BYTES);
    }

    #[test]
    fn own_settings_are_not_handed_on() {
        for name in [
            "HOWDAH_ETCD3_PASSWORD",
            "PATRONI_X",
            "POSTGRES_PASSWORD",
            "POSTGRES_PASSWORD_FILE",
            "ETCD3_PASSWORD",
            "ETCD_PASSWORD",
            "PGPASSWORD_SUPERUSER",
        ] {
            assert!(is_private(OsStr::new(name)), "{name}");
        }
        for name in ["PATH", "APP_DB_PASSWORD", "POSTGRES_USER", "PGDATA"] {
            assert!(!is_private(OsStr::new(name)), "{name}");
        }
    }
}
