//! The owner's task: requests and events in, signals and states out.

use std::{io, sync::Arc, time::Duration};

use rustix::process::Signal;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::{
    Home,
    process::Process,
    senders,
    state::{
        ExitInfo, ExitStatus, SignalError, StartError, StartPhase, StartSpec, Started, State, StopError,
        StopLadder, StopMode, StopOutcome,
    },
    status::StatusWatch,
};
use crate::{
    clock::Boottime,
    postgres::{
        orphans::{self, Orphan},
        pidfile::{self, Holder, PmStatus},
        promote,
    },
};

/// Time an orphan has to leave by itself after SIGQUIT.
const ORPHAN_GRACE: Duration = Duration::from_millis(100);
/// One round of ending orphans; rounds repeat until none is left.
const SWEEP_ROUND: Duration = Duration::from_secs(2);
/// How long a process may survive SIGKILL before the stop is reported as failed.
const KILL_BOUND: Duration = Duration::from_secs(5);

/// For a stop that an earlier agent began and nobody waits for any more: it has an end all the same.
const INHERITED: StopLadder = StopLadder {
    smart: Duration::from_secs(60),
    fast: Duration::from_secs(30),
    immediate: Duration::from_secs(5),
};

type StopReply = oneshot::Sender<Result<StopOutcome, StopError>>;

/// What handles ask for.
#[derive(Debug)]
pub(super) enum Request {
    Start {
        spec: StartSpec,
        reply: oneshot::Sender<Result<Started, StartError>>,
    },
    Stop {
        mode: StopMode,
        ladder: StopLadder,
        reply: StopReply,
    },
    EndSender {
        pid: i32,
        reply: oneshot::Sender<Result<(), SignalError>>,
    },
    EndReceiver {
        reply: oneshot::Sender<Result<(), SignalError>>,
    },
    Nudge {
        signal: Signal,
        reply: oneshot::Sender<Result<(), SignalError>>,
    },
}

/// A start waiting until what an earlier postmaster left is gone.
#[derive(Debug)]
struct PendingStart {
    spec: StartSpec,
    reply: oneshot::Sender<Result<Started, StartError>>,
    deadline: Instant,
}

/// A stop under way.
#[derive(Debug)]
struct Stop {
    mode: StopMode,
    ladder: StopLadder,
    /// When the present rung has lasted long enough.
    deadline: Option<Instant>,
    waiters: Vec<(Instant, StopReply)>,
}

/// The owner.
#[derive(Debug)]
pub(super) struct Actor {
    home: Arc<Home>,
    state: watch::Sender<State>,
    process: Option<Process>,
    status: Option<StatusWatch>,
    stop: Option<Stop>,
    pending: Option<PendingStart>,
    sweep: Option<JoinHandle<Vec<Orphan>>>,
}

impl Actor {
    /// An owner that has looked at the directory once.
    pub(super) fn new(home: Arc<Home>) -> io::Result<(Self, watch::Receiver<State>)> {
        let (state, watcher) = watch::channel(State::Stopped { last: None });
        let mut actor = Self {
            home,
            state,
            process: None,
            status: None,
            stop: None,
            pending: None,
            sweep: None,
        };
        actor.adopt()?;
        Ok((actor, watcher))
    }

    /// One turn per event. The end of the process comes first, so that nothing is decided about a dead one.
    pub(super) async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Request>) {
        loop {
            let deadline = self.stop.as_ref().and_then(|stop| stop.deadline);
            tokio::select! {
                biased;
                // Cancel-safe: see `Process::ended`.
                status = ended(&mut self.process) => self.on_end(status),
                // Cancel-safe: `recv` takes nothing before it returns.
                request = inbox.recv() => match request {
                    Some(request) => self.on_request(request),
                    None => return,
                },
                // Cancel-safe: a join handle by reference.
                left = swept(&mut self.sweep) => self.on_swept(&left),
                // Cancel-safe: see `StatusWatch::next`.
                status = changed(&mut self.status) => self.on_status(status),
                // Cancel-safe: computed anew each turn from an absolute time.
                () = at(deadline) => self.on_deadline(),
            }
        }
    }

    fn on_request(&mut self, request: Request) {
        match request {
            Request::Start { spec, reply } => self.on_start(spec, reply),
            Request::Stop { mode, ladder, reply } => self.on_stop(mode, ladder, reply),
            Request::EndSender { pid, reply } => {
                drop(reply.send(self.end_child(|postmaster| senders::end(pid, postmaster))));
            }
            Request::EndReceiver { reply } => drop(reply.send(self.end_child(senders::end_receiver))),
            Request::Nudge { signal, reply } => drop(reply.send(self.nudge(signal))),
        }
    }

    // ---- start ----

    fn on_start(&mut self, spec: StartSpec, reply: oneshot::Sender<Result<Started, StartError>>) {
        let stopping = self.stop.is_some() || matches!(*self.state.borrow(), State::Stopping { .. });
        let answer = match (&self.process, stopping) {
            (_, true) => Err(StartError::Stopping),
            (Some(process), false) => Ok(Started::AlreadyRunning { pid: process.pid() }),
            (None, false) => match self.adopt() {
                Ok(true) => match &self.process {
                    Some(process) => {
                        let adopted = Started::Adopted { pid: process.pid() };
                        if let Some(waiting) = self.pending.take() {
                            drop(waiting.reply.send(Ok(adopted)));
                        }
                        Ok(adopted)
                    }
                    None => Err(StartError::Stopping),
                },
                Ok(false) => {
                    let deadline = Instant::now() + spec.timeout;
                    let pending = PendingStart {
                        spec,
                        reply,
                        deadline,
                    };
                    if let Some(older) = self.pending.replace(pending) {
                        drop(older.reply.send(Err(StartError::Cancelled)));
                    }
                    if self.sweep.is_none() {
                        self.begin_sweep(ORPHAN_GRACE);
                    }
                    return;
                }
                Err(source) => Err(StartError::PidFile {
                    path: self.home.data_dir.join("postmaster.pid"),
                    source,
                }),
            },
        };
        drop(reply.send(answer));
    }

    /// Takes over a live postmaster of the directory, if there is one.
    fn adopt(&mut self) -> io::Result<bool> {
        let Holder::Postmaster(file) = pidfile::holder(&self.home.data_dir)? else {
            return Ok(false);
        };
        let Some(process) = Process::adopt(file.pid) else {
            return Ok(false);
        };
        // The pid is pinned only now; look again, or a stranger might have slipped in between.
        let Holder::Postmaster(file) = pidfile::holder(&self.home.data_dir)? else {
            return Ok(false);
        };
        let pid = process.pid();
        if file.pid != pid {
            return Ok(false);
        }
        let since = Boottime::now();
        let state = match file.status {
            Some(PmStatus::Ready | PmStatus::Standby) => State::Running {
                pid,
                since,
                accepting: file.status == Some(PmStatus::Ready),
                adopted: true,
            },
            Some(PmStatus::Stopping) => State::Stopping {
                pid,
                since,
                mode: StopMode::Smart,
            },
            Some(PmStatus::Starting) | None => State::Starting {
                pid,
                since,
                phase: StartPhase::Recovering,
                adopted: true,
            },
        };
        if file.status == Some(PmStatus::Stopping) {
            self.stop = Some(Stop {
                mode: StopMode::Smart,
                ladder: INHERITED,
                deadline: Some(Instant::now() + INHERITED.smart),
                waiters: Vec::new(),
            });
        } else if file.status != Some(PmStatus::Ready) {
            self.status = Some(StatusWatch::begin(self.home.data_dir.clone(), pid, None));
        }
        self.process = Some(process);
        if let Some(sweep) = self.sweep.take() {
            // Its children are no orphans.
            sweep.abort();
        }
        self.publish(state, "a live postmaster owns the data directory");
        Ok(true)
    }

    fn spawn(&mut self, spec: &StartSpec) -> Result<Started, StartError> {
        let data_dir = &self.home.data_dir;
        let unreadable = |source| StartError::PidFile {
            path: data_dir.join("postmaster.pid"),
            source,
        };
        let stale = pidfile::read_text(data_dir).map_err(unreadable)?;
        let stranger = match pidfile::holder(data_dir).map_err(unreadable)? {
            Holder::Nobody => None,
            Holder::Stranger { pid } => {
                tracing::info!(pid, "postmaster.pid is stale, its pid was used again");
                Some(pid)
            }
            // It came up while the orphans were being ended.
            Holder::Postmaster(file) => {
                return match self.adopt() {
                    Ok(true) => Ok(Started::Adopted { pid: file.pid }),
                    Ok(false) => Err(StartError::Cancelled),
                    Err(source) => Err(StartError::PidFile {
                        path: self.home.data_dir.join("postmaster.pid"),
                        source,
                    }),
                };
            }
        };
        promote::remove_stale_request(data_dir);
        let process = Process::spawn(&self.home, spec, stranger)?;
        let pid = process.pid();
        self.process = Some(process);
        self.status = Some(StatusWatch::begin(self.home.data_dir.clone(), pid, stale));
        let state = State::Starting {
            pid,
            since: Boottime::now(),
            phase: StartPhase::Launching,
            adopted: false,
        };
        self.publish(state, "start requested");
        Ok(Started::Spawned { pid })
    }

    fn on_status(&mut self, status: PmStatus) {
        let now = Boottime::now();
        let next = match (&*self.state.borrow(), status) {
            (
                State::Starting { pid, adopted, .. }
                | State::Running {
                    pid,
                    adopted,
                    accepting: false,
                    ..
                },
                PmStatus::Ready | PmStatus::Standby,
            ) => Some(State::Running {
                pid: *pid,
                since: now,
                accepting: status == PmStatus::Ready,
                adopted: *adopted,
            }),
            (
                State::Starting {
                    pid,
                    since,
                    phase: StartPhase::Launching,
                    adopted,
                },
                PmStatus::Starting,
            ) => Some(State::Starting {
                pid: *pid,
                since: *since,
                phase: StartPhase::Recovering,
                adopted: *adopted,
            }),
            _ => None,
        };
        if let Some(next) = next {
            self.publish(next, "postmaster.pid says so");
        }
        if status == PmStatus::Ready {
            self.status = None;
        }
    }

    // ---- stop ----

    fn on_stop(&mut self, mode: StopMode, ladder: StopLadder, reply: StopReply) {
        let now = Instant::now();
        if let Some(pending) = self.pending.take() {
            drop(pending.reply.send(Err(StartError::Cancelled)));
        }
        if self.process.is_none()
            && let Err(error) = self.adopt()
        {
            tracing::warn!(%error, "cannot read postmaster.pid");
        }
        let cleaning = matches!(*self.state.borrow(), State::Cleaning { .. });
        if self.process.is_none() && !cleaning && mode < StopMode::Kill {
            drop(reply.send(Ok(StopOutcome {
                ended_by: None,
                exit: None,
                took: Duration::ZERO,
            })));
            return;
        }
        let before = self.stop.as_ref().map(|stop| stop.mode);
        let stop = self.stop.get_or_insert_with(|| Stop {
            mode,
            ladder,
            deadline: None,
            waiters: Vec::new(),
        });
        stop.waiters.push((now, reply));
        if self.process.is_none() {
            stop.deadline = Some(now + KILL_BOUND);
            if self.sweep.is_none() {
                self.begin_sweep(Duration::ZERO);
            }
        } else if before.is_none_or(|before| mode > before) {
            stop.ladder = ladder;
            self.enter_rung(mode);
        } else if stop.deadline.is_none() {
            self.enter_rung(StopMode::Kill);
        } else if let (Some(limit), Some(deadline)) = (ladder.rung(stop.mode), stop.deadline) {
            stop.ladder = ladder;
            stop.deadline = Some(deadline.min(now + limit));
        }
    }

    /// Sends the signal of `mode` and sets when the next rung is due.
    fn enter_rung(&mut self, mode: StopMode) {
        let (Some(stop), Some(process)) = (&mut self.stop, &self.process) else {
            return;
        };
        let limit = stop.ladder.rung(mode).unwrap_or(KILL_BOUND);
        stop.mode = mode;
        stop.deadline = Some(Instant::now() + limit);
        let signal = match mode {
            StopMode::Smart => Signal::TERM,
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
            StopMode::Kill => Signal::KILL,
        };
        let pid = process.pid();
        if let Err(error) = process.signal(signal) {
            tracing::error!(pid, ?mode, %error, "cannot signal the postmaster");
        }
        let since = match *self.state.borrow() {
            State::Stopping { since, .. } => since,
            _ => Boottime::now(),
        };
        self.status = None;
        self.publish(State::Stopping { pid, since, mode }, "stop requested");
    }

    fn on_deadline(&mut self) {
        let Some(stop) = &mut self.stop else { return };
        if let (Some(_), true) = (&self.process, stop.mode < StopMode::Kill) {
            let (from, to) = (stop.mode, stop.mode.harder());
            tracing::warn!(?from, ?to, "stopping took too long");
            self.enter_rung(to);
            return;
        }
        // SIGKILL was not enough. The owner goes on watching; whoever asked must know now.
        stop.deadline = None;
        let pids: Vec<i32> = self.process.iter().map(Process::pid).collect();
        for (_, waiter) in stop.waiters.drain(..) {
            let pids = pids.clone();
            drop(waiter.send(Err(StopError::Unkillable { pids })));
        }
    }

    fn nudge(&self, signal: Signal) -> Result<(), SignalError> {
        match (&self.process, &self.stop) {
            (Some(process), None) => process.signal(signal).map_err(|source| SignalError::Refused {
                pid: process.pid(),
                source,
            }),
            _ => Err(SignalError::NotRunning {
                state: self.state.borrow().name(),
            }),
        }
    }

    /// Ends one process of the server's, however far the server itself is.
    fn end_child(&self, end: impl FnOnce(i32) -> io::Result<()>) -> Result<(), SignalError> {
        match &self.process {
            Some(process) => {
                let pid = process.pid();
                end(pid).map_err(|source| SignalError::Refused { pid, source })
            }
            None => Err(SignalError::NotRunning {
                state: self.state.borrow().name(),
            }),
        }
    }

    // ---- end ----

    fn on_end(&mut self, status: ExitStatus) {
        self.process = None;
        self.status = None;
        let exit = ExitInfo {
            status,
            requested: self.stop.is_some(),
            at: Boottime::now(),
        };
        // A complete shutdown waits for every server process; any other end may leave some behind.
        if exit.clean() == Some(true) {
            self.finish(exit);
            return;
        }
        let last = exit;
        let because = format!("the postmaster ended: {status}");
        self.publish(State::Cleaning { last, since: exit.at }, &because);
        let mut killing = false;
        if let Some(stop) = &mut self.stop {
            stop.deadline = Some(Instant::now() + KILL_BOUND);
            killing = stop.mode == StopMode::Kill;
        }
        self.begin_sweep(if killing { Duration::ZERO } else { ORPHAN_GRACE });
    }

    fn begin_sweep(&mut self, grace: Duration) {
        let data_dir = self.home.data_dir.clone();
        self.sweep = Some(tokio::spawn(orphans::end_all(data_dir, grace, SWEEP_ROUND)));
    }

    fn on_swept(&mut self, left: &[Orphan]) {
        self.sweep = None;
        let cleaning = match *self.state.borrow() {
            State::Cleaning { last, .. } => Some(last),
            _ => None,
        };
        if left.is_empty() {
            match cleaning {
                Some(exit) => self.finish(exit),
                None => self.answer_stop(None),
            }
            if let Some(pending) = self.pending.take() {
                let answer = self.spawn(&pending.spec);
                drop(pending.reply.send(answer));
            }
            return;
        }
        let pids: Vec<i32> = left.iter().map(|orphan| orphan.pid).collect();
        tracing::error!(?pids, "orphaned server processes survive SIGKILL");
        let now = Instant::now();
        if let Some(pending) = self.pending.take_if(|pending| pending.deadline <= now) {
            drop(pending.reply.send(Err(StartError::Orphans { pids })));
        }
        if cleaning.is_some() || self.pending.is_some() || self.stop.is_some() {
            self.begin_sweep(Duration::ZERO);
        }
    }

    /// Nothing lives any more.
    fn finish(&mut self, exit: ExitInfo) {
        let because = format!("the postmaster ended: {}", exit.status);
        self.publish(State::Stopped { last: Some(exit) }, &because);
        self.answer_stop(Some(exit));
    }

    fn answer_stop(&mut self, exit: Option<ExitInfo>) {
        let Some(stop) = self.stop.take() else { return };
        for (since, waiter) in stop.waiters {
            drop(waiter.send(Ok(StopOutcome {
                ended_by: exit.map(|_| stop.mode),
                exit,
                took: since.elapsed(),
            })));
        }
    }

    fn publish(&self, next: State, because: &str) {
        let from = self.state.borrow().name();
        let (to, pid) = (next.name(), next.pid());
        if from == to {
            tracing::debug!(state = ?next, because, "postmaster");
        } else {
            tracing::info!(from, to, because, pid, "postmaster");
        }
        self.state.send_replace(next);
    }
}

async fn ended(process: &mut Option<Process>) -> ExitStatus {
    match process {
        Some(process) => process.ended().await,
        None => std::future::pending().await,
    }
}

async fn swept(sweep: &mut Option<JoinHandle<Vec<Orphan>>>) -> Vec<Orphan> {
    match sweep {
        Some(sweep) => sweep.await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}

async fn changed(status: &mut Option<StatusWatch>) -> PmStatus {
    match status {
        Some(status) => status.next().await,
        None => std::future::pending().await,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
