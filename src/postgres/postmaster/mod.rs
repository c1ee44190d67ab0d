//! The one owner of the postmaster. Nobody else holds its pid or signals it; others ask here and await the answer.
//!
//! Task: `actor` · input: requests, the end of the process, its status line, deadlines · output: a published
//! [`State`] · ends: when the last [`Postmaster`] handle is dropped, leaving postgres running.
//! Not here: deciding when to start or stop, reading pg_control, SQL.

mod actor;
mod process;
mod senders;
mod state;
mod status;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};

pub use senders::{receives, sent_by};
pub use state::{
    ExitInfo, ExitStatus, NotReady, Ready, SignalError, StartError, StartPhase, StartSpec, Started, State,
    StopError, StopLadder, StopMode, StopOutcome,
};

use actor::{Actor, Request};

/// What the owner owns.
#[derive(Debug, Clone)]
pub struct Home {
    /// The data directory.
    pub data_dir: PathBuf,
    /// User and group to run postgres as, when the agent itself is root (which PostgreSQL refuses).
    pub run_as: Option<(u32, u32)>,
}

/// A handle to the owner; cheap to clone.
#[derive(Debug, Clone)]
pub struct Postmaster {
    home: Arc<Home>,
    requests: mpsc::UnboundedSender<Request>,
    state: watch::Receiver<State>,
}

/// A stop that was asked for. It goes on whether or not this is awaited. While it is pending the caller may look at
/// pg_control: "shut down" there, with the postmaster still alive, means the shutdown checkpoint is on disk and only
/// replicas are still being served.
#[derive(Debug)]
pub struct StopTicket(oneshot::Receiver<Result<StopOutcome, StopError>>);

impl StopTicket {
    /// Waits for the end.
    ///
    /// # Errors
    /// See [`StopError`].
    pub async fn wait(self) -> Result<StopOutcome, StopError> {
        self.0.await.unwrap_or(Err(StopError::Gone))
    }
}

impl Postmaster {
    /// Begins to own the directory. A postmaster already running there is adopted before this returns.
    ///
    /// # Errors
    /// The pid file exists but cannot be read.
    pub fn own(home: Home) -> io::Result<Self> {
        let home = Arc::new(home);
        let (requests, inbox) = mpsc::unbounded_channel();
        let (actor, state) = Actor::new(Arc::clone(&home))?;
        tokio::spawn(actor.run(inbox));
        Ok(Self {
            home,
            requests,
            state,
        })
    }

    /// What is owned.
    #[must_use]
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// The present state.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// The state as it changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Starts postgres and returns as soon as its process exists ([`State::Starting`]). A live postmaster of the
    /// directory is adopted, never doubled; what a dead one left behind is ended first.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(&self, spec: StartSpec) -> Result<Started, StartError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Start { spec, reply });
        answer.await.unwrap_or(Err(StartError::Gone))
    }

    /// Waits at most `limit` for a started postmaster to be ready.
    ///
    /// # Errors
    /// See [`NotReady`]; a deadline leaves it starting.
    pub async fn wait_ready(&self, limit: Duration) -> Result<Ready, NotReady> {
        let begun = Instant::now();
        let mut state = self.state.clone();
        let mut spawned = None;
        loop {
            let phase = match *state.borrow_and_update() {
                State::Starting { since, phase, .. } => {
                    spawned = Some(since);
                    phase
                }
                State::Running {
                    pid,
                    since,
                    accepting,
                    ..
                } => {
                    let took = spawned.map_or(Duration::ZERO, |spawned| since.since(spawned));
                    return Ok(Ready { pid, accepting, took });
                }
                State::Stopping { .. } => return Err(NotReady::Stopping),
                State::Stopped { last: exit } => return Err(NotReady::Ended { exit }),
                State::Cleaning { last, .. } => return Err(NotReady::Ended { exit: Some(last) }),
            };
            let waited = begun.elapsed();
            match timeout(limit.saturating_sub(waited), state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(NotReady::Gone),
                Err(_) => return Err(NotReady::Deadline { phase, waited }),
            }
        }
    }

    /// Waits at most `limit` until no postmaster (and nothing of it) lives; returns how the last one ended.
    ///
    /// # Errors
    /// The state when the time was up.
    pub async fn wait_stopped(&self, limit: Duration) -> Result<Option<ExitInfo>, State> {
        let mut state = self.state.clone();
        let stopped = state.wait_for(|state| matches!(state, State::Stopped { .. }));
        match timeout(limit, stopped).await {
            Ok(Ok(state)) => match *state {
                State::Stopped { last } => Ok(last),
                _ => Ok(None),
            },
            _ => Err(self.state()),
        }
    }

    /// Asks for a stop at once, without waiting. A harder mode than the one under way escalates immediately; a
    /// softer one only joins (and may tighten the deadline).
    #[must_use]
    pub fn begin_stop(&self, mode: StopMode, ladder: StopLadder) -> StopTicket {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Stop { mode, ladder, reply });
        StopTicket(answer)
    }

    /// Stops postgres; bounded by `ladder` plus a few seconds for SIGKILL.
    ///
    /// # Errors
    /// See [`StopError`].
    pub async fn stop(&self, mode: StopMode, ladder: StopLadder) -> Result<StopOutcome, StopError> {
        self.begin_stop(mode, ladder).wait().await
    }

    /// SIGKILL to the postmaster and everything of it. Last resort.
    ///
    /// # Errors
    /// See [`StopError`].
    pub async fn kill_everything(&self) -> Result<StopOutcome, StopError> {
        let now = StopLadder {
            smart: Duration::ZERO,
            fast: Duration::ZERO,
            immediate: Duration::ZERO,
        };
        self.stop(StopMode::Kill, now).await
    }

    /// Makes postgres read its configuration files again (SIGHUP).
    ///
    /// # Errors
    /// See [`SignalError`].
    pub async fn reload(&self) -> Result<(), SignalError> {
        self.nudge(rustix::process::Signal::HUP).await
    }

    /// Makes the postmaster look for a `promote` file (SIGUSR1); see [`super::promote`].
    ///
    /// # Errors
    /// See [`SignalError`].
    pub(super) async fn signal_promote(&self) -> Result<(), SignalError> {
        self.nudge(rustix::process::Signal::USR1).await
    }

    /// Asks a walsender to end (SIGTERM), for a shutdown under way, in which SQL cannot. Nothing happens to a process
    /// that is no walsender of this postmaster.
    ///
    /// # Errors
    /// See [`SignalError`].
    pub async fn end_sender(&self, pid: i32) -> Result<(), SignalError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::EndSender { pid, reply });
        answer.await.unwrap_or(Err(SignalError::Gone))
    }

    /// Asks the WAL receiver to end (SIGTERM), if one runs. `primary_conninfo` has to be empty in the files the postmaster
    /// has read, or the startup process starts another.
    ///
    /// # Errors
    /// See [`SignalError`].
    pub async fn end_receiver(&self) -> Result<(), SignalError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::EndReceiver { reply });
        answer.await.unwrap_or(Err(SignalError::Gone))
    }

    async fn nudge(&self, signal: rustix::process::Signal) -> Result<(), SignalError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Nudge { signal, reply });
        answer.await.unwrap_or(Err(SignalError::Gone))
    }

    /// A closed inbox drops the request and with it the reply, which the waiter reads as "gone".
    fn send(&self, request: Request) {
        drop(self.requests.send(request));
    }
}
