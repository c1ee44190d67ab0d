//! What is said about the postmaster: states, requests' answers, errors. Data only.

use std::{fmt, io, path::PathBuf, time::Duration};

use crate::clock::Boottime;

/// The life of the postmaster. Every variant carries what is known in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing of this instance lives.
    Stopped {
        /// How the last one ended, if this owner saw it.
        last: Option<ExitInfo>,
    },
    /// The process exists, connections are not accepted yet.
    Starting {
        /// Process id, for logs; only the owner signals.
        pid: i32,
        /// When it was spawned or adopted.
        since: Boottime,
        /// How far it got.
        phase: StartPhase,
        /// Taken over from an earlier agent.
        adopted: bool,
    },
    /// Up.
    Running {
        /// Process id.
        pid: i32,
        /// When it became ready (or was adopted).
        since: Boottime,
        /// Accepts connections; false for a standby with `hot_standby = off`.
        accepting: bool,
        /// Taken over from an earlier agent.
        adopted: bool,
    },
    /// A stop was requested (or was under way when it was adopted).
    Stopping {
        /// Process id.
        pid: i32,
        /// When the first request came.
        since: Boottime,
        /// Hardest mode so far.
        mode: StopMode,
    },
    /// The postmaster is gone, server processes it left behind are being ended. Not yet safe to call stopped: an
    /// orphaned backend can still acknowledge a commit.
    Cleaning {
        /// How it ended.
        last: ExitInfo,
        /// Since when.
        since: Boottime,
    },
}

impl State {
    /// Process id of a live postmaster.
    #[must_use]
    pub const fn pid(&self) -> Option<i32> {
        match self {
            Self::Starting { pid, .. } | Self::Running { pid, .. } | Self::Stopping { pid, .. } => Some(*pid),
            Self::Stopped { .. } | Self::Cleaning { .. } => None,
        }
    }

    /// One word for logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stopped { .. } => "stopped",
            Self::Starting { .. } => "starting",
            Self::Running { .. } => "running",
            Self::Stopping { .. } => "stopping",
            Self::Cleaning { .. } => "cleaning",
        }
    }
}

/// Steps of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartPhase {
    /// Spawned; has not written its pid file.
    Launching,
    /// Reads its WAL; ends when it is consistent enough for connections.
    Recovering,
}

/// How a postmaster ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitInfo {
    /// Exit status.
    pub status: ExitStatus,
    /// Whether this owner had asked it to stop.
    pub requested: bool,
    /// When it was noticed.
    pub at: Boottime,
}

impl ExitInfo {
    /// A complete shutdown; `None` if the status is unknown (pg_control knows).
    #[must_use]
    pub fn clean(&self) -> Option<bool> {
        match self.status {
            ExitStatus::Code(code) => Some(code == 0),
            ExitStatus::Signal(_) => Some(false),
            ExitStatus::Unknown => None,
        }
    }
}

/// Exit status as far as it can be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// `exit(code)`.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
    /// It was not our child.
    Unknown,
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("unknown exit status"),
        }
    }
}

/// Ways to stop, from soft to hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopMode {
    /// SIGTERM: waits until the last client is gone.
    Smart,
    /// SIGINT: ends the clients, writes the shutdown checkpoint, lets replicas catch up.
    Fast,
    /// SIGQUIT: no checkpoint; crash recovery on the next start.
    Immediate,
    /// SIGKILL, then every process it leaves behind.
    Kill,
}

impl StopMode {
    /// The next harder mode.
    #[must_use]
    pub const fn harder(self) -> Self {
        match self {
            Self::Smart => Self::Fast,
            Self::Fast => Self::Immediate,
            Self::Immediate | Self::Kill => Self::Kill,
        }
    }
}

/// How long each rung of a stop may last before the next harder one. These bound a stop whatever walsenders, the
/// archiver or clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopLadder {
    /// For [`StopMode::Smart`].
    pub smart: Duration,
    /// For [`StopMode::Fast`].
    pub fast: Duration,
    /// For [`StopMode::Immediate`]. PostgreSQL itself kills stubborn children after 5 s.
    pub immediate: Duration,
}

impl StopLadder {
    /// How long `mode` may last; `None` for the last rung.
    #[must_use]
    pub const fn rung(&self, mode: StopMode) -> Option<Duration> {
        match mode {
            StopMode::Smart => Some(self.smart),
            StopMode::Fast => Some(self.fast),
            StopMode::Immediate => Some(self.immediate),
            StopMode::Kill => None,
        }
    }
}

/// A finished stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopOutcome {
    /// The rung that ended it; `None` if nothing was running.
    pub ended_by: Option<StopMode>,
    /// How it ended; `None` if nothing was running.
    pub exit: Option<ExitInfo>,
    /// From the request to the end of the last process.
    pub took: Duration,
}

/// What to start. The data directory and the user belong to the owner.
#[derive(Debug, Clone)]
pub struct StartSpec {
    /// Directory of the `postgres` program.
    pub bin_dir: PathBuf,
    /// Arguments after `-D <data_dir>`.
    pub args: Vec<String>,
    /// The complete environment. Nothing is inherited, so that no secret of the agent gets into it; the caller must
    /// include `PATH` for archive and restore commands.
    pub env: Vec<(String, String)>,
    /// Bound for what comes before the spawn: ending what an earlier postmaster left behind. A long recovery after
    /// the spawn is the caller's to judge (see `wait_ready`).
    pub timeout: Duration,
}

/// Answer to a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// A new postmaster was spawned.
    Spawned {
        /// Its process id.
        pid: i32,
    },
    /// One was running already and is owned now.
    Adopted {
        /// Its process id.
        pid: i32,
    },
    /// Ours was running already.
    AlreadyRunning {
        /// Its process id.
        pid: i32,
    },
}

/// Why there is no new postmaster.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A stop is under way; start again when it is done.
    #[error("a stop is under way")]
    Stopping,
    /// A stop request came before the spawn.
    #[error("cancelled by a stop request")]
    Cancelled,
    /// Processes of an earlier postmaster cannot be killed.
    #[error("server processes of an earlier postmaster do not end: {pids:?}")]
    Orphans {
        /// Their process ids.
        pids: Vec<i32>,
    },
    /// The pid file cannot be read.
    #[error("cannot read {}", path.display())]
    PidFile {
        /// Its path.
        path: PathBuf,
        /// Reason.
        source: io::Error,
    },
    /// The program cannot be started.
    #[error("cannot start {}", program.display())]
    Spawn {
        /// Its path.
        program: PathBuf,
        /// Reason.
        source: io::Error,
    },
    /// The owner's task has ended (the runtime is shutting down).
    #[error("the owner of the postmaster is gone")]
    Gone,
}

/// A successful wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// Process id.
    pub pid: i32,
    /// Accepts connections.
    pub accepting: bool,
    /// From the spawn (or the adoption) to ready; zero for one that ran already.
    pub took: Duration,
}

/// Why the wait ended without a ready postmaster.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// It is not running: it ended during the start, or was never started.
    #[error("postgres is not running{}", exit.map(|e| format!(": {}", e.status)).unwrap_or_default())]
    Ended {
        /// How it ended.
        exit: Option<ExitInfo>,
    },
    /// Somebody stops it.
    #[error("a stop is under way")]
    Stopping,
    /// Still starting when the time was up.
    #[error("postgres is still starting ({phase:?}) after {waited:?}")]
    Deadline {
        /// How far it got.
        phase: StartPhase,
        /// How long was waited.
        waited: Duration,
    },
    /// The owner's task has ended.
    #[error("the owner of the postmaster is gone")]
    Gone,
}

/// Why a stop did not end.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// SIGKILL did not help within its bound: processes stuck in the kernel. The owner goes on watching.
    #[error("processes survive SIGKILL (stuck in the kernel?): {pids:?}")]
    Unkillable {
        /// Their process ids.
        pids: Vec<i32>,
    },
    /// The owner's task has ended.
    #[error("the owner of the postmaster is gone")]
    Gone,
}

/// Why a signal was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// There is no postmaster, or it is being stopped.
    #[error("postgres is {state}, not running")]
    NotRunning {
        /// Name of the state.
        state: &'static str,
    },
    /// The system refused.
    #[error("cannot signal process {pid}")]
    Refused {
        /// Its process id.
        pid: i32,
        /// Reason.
        source: io::Error,
    },
    /// The owner's task has ended.
    #[error("the owner of the postmaster is gone")]
    Gone,
}
