//! The hands of init: it blocks and reads signals, reaps, talks to the agent, keeps the timer, and
//! does what [`State`] says. One thread, one `poll`, nothing in it waits for anything else.
//!
//! | what             | descriptor                       | ended by                             |
//! |------------------|----------------------------------|--------------------------------------|
//! | signals, SIGCHLD | signalfd                         | the process                          |
//! | records          | SOCK_SEQPACKET pair, fd 0 of the agent | the agent; a new pair per start |
//! | deadlines        | timerfd on CLOCK_BOOTTIME        | the process                          |
//!
//! A timerfd and not the timeout of `poll`, because that one stands still while the machine is
//! suspended and would fence too late by the length of the suspend.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use rustix::process::{WaitOptions, wait};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::leftovers::Leftovers;
use super::message::{Deadline, LENGTH, Message};
use super::signals::{Meaning, meaning};
use super::state::{Action, End, Event, State};
use super::{ADOPT, INIT, InitError, Options, descendants, mask};
use crate::clock::Boottime;
use crate::exit::Exit;

/// Children reaped, and signals or records read, per turn: a storm of one of them must not keep the
/// others, least of all the timer, waiting.
const BATCH: usize = 512;
/// How long everything may take to die after SIGKILL; a process in an uninterruptible system call
/// takes longer, and waiting for it would help nobody.
const KILL_BOUND: Duration = Duration::from_secs(5);

struct Agent {
    pid: i32,
    since: Boottime,
    /// `None` once the agent closed its end.
    socket: Option<OwnedFd>,
}

pub(super) struct Supervisor {
    options: Options,
    signals: SignalFd,
    timer: OwnedFd,
    agent: Option<Agent>,
    state: State,
    /// What happened and was not yet dealt with.
    queue: VecDeque<Event>,
    leftovers: Leftovers,
    /// Children reaped since the start, for the state dump.
    reaped: u64,
}

impl Supervisor {
    /// Blocks the signals and starts the agent.
    pub(super) fn start(options: Options) -> Result<Self, InitError> {
        let blocked = mask::block().map_err(|source| InitError::os("block signals", source.into()))?;
        if getpid().as_raw() != 1 {
            nix::sys::prctl::set_child_subreaper(true)
                .map_err(|source| InitError::os("become a child subreaper", source.into()))?;
        }
        let signals = SignalFd::with_flags(&blocked, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(|source| InitError::os("open a signalfd", source.into()))?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)
            .map_err(|source| InitError::os("create a timer", source.into()))?;
        let agent = spawn(&options, None)?;
        tracing::info!(
            agent = agent.pid,
            subreaper = getpid().as_raw() != 1,
            "agent started"
        );
        let state = State::running(options.limits);
        Ok(Self {
            options,
            signals,
            timer,
            agent: Some(agent),
            state,
            queue: VecDeque::new(),
            leftovers: Leftovers::default(),
            reaped: 0,
        })
    }

    /// Runs until everything is over.
    pub(super) fn run(&mut self) -> Result<Exit, InitError> {
        let mut more = false;
        loop {
            self.set_timer()?;
            self.sleep(more)?;
            let reaped = self.reaped;
            more = self.collect()?;
            if self.reaped > reaped
                && let Err(error) = self.leftovers.inherited()
            {
                tracing::error!(%error, "cannot read /proc to stop what is left");
            }
            self.queue.push_back(Event::Tick);
            while let Some(event) = self.queue.pop_front() {
                for action in self.state.on(event, Boottime::now()) {
                    if let Some(exit) = self.perform(action) {
                        return Ok(exit);
                    }
                }
            }
        }
    }

    fn set_timer(&self) -> Result<(), InitError> {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // Zero would disarm it, so a moment at the start of the clock becomes its first nanosecond.
        let it_value = self.state.next_tick().map_or(zero, |at| timespec(at.0.max(1)));
        let value = Itimerspec {
            it_interval: zero,
            it_value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &value)
            .map_err(|source| InitError::os("set the timer", source.into()))?;
        Ok(())
    }

    fn sleep(&self, more: bool) -> Result<(), InitError> {
        let mut descriptors = vec![
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            PollFd::new(&self.timer, PollFlags::IN),
        ];
        if let Some(socket) = self.agent.as_ref().and_then(|agent| agent.socket.as_ref()) {
            descriptors.push(PollFd::new(socket, PollFlags::IN));
        }
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match poll(&mut descriptors, more.then_some(&now)) {
            // Interrupted by SIGSTOP and SIGCONT, which cannot be blocked.
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(source) => Err(InitError::os("poll", source.into())),
        }
    }

    /// Queues everything that happened since the last turn, and says whether there is more of it.
    fn collect(&mut self) -> Result<bool, InitError> {
        self.records();
        for _ in 0..BATCH {
            match self.signals.read_signal() {
                Ok(Some(info)) => self.queue.extend(event(info.ssi_signo, info.ssi_pid)),
                Ok(None) => break,
                Err(nix::errno::Errno::EINTR) => {}
                Err(source) => return Err(InitError::os("read signals", source.into())),
            }
        }
        // Regardless of SIGCHLD: one of them may stand for many children.
        for _ in 0..BATCH {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let end = match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => End::Exited(code),
                        (None, Some(signal)) => End::Signaled(signal),
                        // Stopped or continued, which was not asked for: still alive.
                        (None, None) => continue,
                    };
                    self.reap(pid.as_raw_nonzero().get(), end);
                }
                Ok(None) => return Ok(false),
                Err(rustix::io::Errno::CHILD) => {
                    if let Some(agent) = self.agent.take() {
                        // SIGCHLD was ignored by whoever started us, so the kernel reaped it.
                        tracing::error!(agent = agent.pid, "agent is gone without a status");
                        self.queue.push_back(Event::AgentEnded(End::Lost));
                    }
                    self.queue.push_back(Event::NoChildren);
                    return Ok(false);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(source) => return Err(InitError::os("wait for children", source.into())),
            }
        }
        Ok(true)
    }

    fn reap(&mut self, pid: i32, end: End) {
        self.reaped += 1;
        if self.agent.as_ref().is_none_or(|agent| agent.pid != pid) {
            tracing::debug!(pid, ?end, "reaped");
            return;
        }
        // What it said before it ended comes first.
        self.records();
        self.agent = None;
        tracing::info!(agent = pid, ?end, "agent ended");
        self.queue.push_back(Event::AgentEnded(end));
    }

    /// Queues what the agent sent.
    fn records(&mut self) {
        let Some(agent) = self.agent.as_mut() else {
            return;
        };
        for _ in 0..BATCH {
            let Some(socket) = &agent.socket else { return };
            // One byte more than a record, so that a longer packet is not taken for one.
            let mut packet = [0; LENGTH + 1];
            match recv(socket, &mut packet[..], RecvFlags::DONTWAIT) {
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
                // Closed: nothing more will come, and polling it would spin.
                Ok((0, _)) | Err(_) => agent.socket = None,
                Ok((length, _)) => match Message::decode(&packet[..length]) {
                    Ok(message) => {
                        tracing::trace!(?message, "record");
                        self.queue.push_back(Event::Message(message));
                    }
                    Err(error) => tracing::warn!(%error, "record from the agent ignored"),
                },
            }
        }
    }

    /// Does one thing; `Some` is the end of the process.
    fn perform(&mut self, action: Action) -> Option<Exit> {
        match action {
            Action::Start(adopt) => self.restart(adopt),
            Action::Forward(signal) => self.forward(signal),
            Action::SignalLeftovers(signal) => match self.leftovers.ask(signal) {
                Ok(0) => {}
                Ok(processes) => tracing::info!(%signal, processes, "stopping what the agent left"),
                Err(error) => tracing::error!(%error, "cannot read /proc to stop what is left"),
            },
            Action::ToggleDebug => {
                if let Some(toggle) = self.options.toggle_debug.as_mut() {
                    toggle();
                }
            }
            Action::Dump => self.dump(),
            Action::Finish(exit) => {
                tracing::info!(?exit, code = exit.code(), "everything stopped");
                return Some(exit);
            }
            Action::KillAndFinish(exit, because) => {
                // Nothing before this: even a log line may hang on a full pipe.
                let left = kill_everything();
                let code = exit.code();
                if left {
                    tracing::error!(?exit, code, because, "killed, but some processes remain");
                } else {
                    tracing::error!(?exit, code, because, "killed everything");
                }
                return Some(exit);
            }
        }
        None
    }

    fn restart(&mut self, adopt: Option<Deadline>) {
        let number = self.state.restarts();
        match spawn(&self.options, adopt) {
            Ok(agent) => {
                let adopt = adopt.map(|deadline| deadline.to_string());
                tracing::warn!(agent = agent.pid, number, adopt, "agent started again");
                self.agent = Some(agent);
            }
            Err(error) => {
                tracing::error!(%error, number, "agent could not be started again");
                self.queue.push_back(Event::AgentEnded(End::Lost));
            }
        }
    }

    fn forward(&self, signal: Signal) {
        let Some(agent) = &self.agent else { return };
        tracing::info!(%signal, agent = agent.pid, "forwarded");
        // Not reaped yet, so this pid is the agent's, even if it has just ended.
        if let Err(error) = kill(Pid::from_raw(agent.pid), signal) {
            tracing::error!(%signal, agent = agent.pid, %error, "cannot signal the agent");
        }
    }

    fn dump(&self) {
        let now = Boottime::now();
        tracing::info!(
            pid = getpid().as_raw(),
            agent = self.agent.as_ref().map(|agent| agent.pid),
            agent_age_ms = self.agent.as_ref().map(|agent| millis(now.since(agent.since))),
            phase = ?self.state.phase(),
            asked = ?self.state.asked(),
            fence_in_ms = self.state.armed().map(|armed| millis(armed.until.since(now))),
            token = self.state.armed().map(|armed| armed.token),
            restarts = self.state.restarts(),
            reaped = self.reaped,
            "state of init"
        );
    }
}

/// SIGKILL to everything below, until nothing is left or [`KILL_BOUND`] is over. Says whether
/// something is left. PID 1 does not wait: the kernel does when it exits.
pub(super) fn kill_everything() -> bool {
    let give_up = Boottime::now() + KILL_BOUND;
    loop {
        let killed = descendants::kill_all();
        if getpid().as_raw() == 1 {
            return false;
        }
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) => break,
                Err(_) => return false,
            }
        }
        if Boottime::now() >= give_up {
            return true;
        }
        // What was killed needs a moment to die; what was forked meanwhile is found by the next scan.
        let pause = if matches!(killed, Ok(0)) { 5 } else { 1 };
        #[expect(
            clippy::disallowed_methods,
            reason = "init is synchronous and has nothing else to do"
        )]
        std::thread::sleep(Duration::from_millis(pause));
    }
}

fn event(signal: u32, from: u32) -> Option<Event> {
    let signal = Signal::try_from(i32::try_from(signal).ok()?).ok()?;
    let meaning = meaning(signal);
    match meaning {
        Meaning::Child => {}
        Meaning::Ignored => tracing::debug!(%signal, from, "signal ignored"),
        _ => tracing::info!(%signal, from, ?meaning, "signal"),
    }
    Some(Event::Signal(meaning))
}

fn spawn(options: &Options, adopt: Option<Deadline>) -> Result<Agent, InitError> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|source| InitError::os("create a socket pair", source.into()))?;
    let mut command = Command::new(&options.program);
    command
        .args(&options.arguments)
        .stdin(Stdio::from(theirs))
        // A terminal sends Ctrl-C to its whole foreground group; the agent must get it once, from us.
        .process_group(0)
        .env(INIT, getpid().to_string())
        .env_remove(ADOPT)
        .envs(options.environment.iter().map(|(name, value)| (name, value)));
    if let Some(deadline) = adopt {
        command.env(ADOPT, deadline.to_string());
    }
    let child = command.spawn().map_err(|source| InitError::Spawn {
        program: options.program.clone(),
        source,
    })?;
    let pid = i32::try_from(child.id())
        .map_err(|_| InitError::os("read the pid of the agent", io::ErrorKind::InvalidData.into()))?;
    Ok(Agent {
        pid,
        since: Boottime::now(),
        socket: Some(ours),
    })
}

fn timespec(nanos: u64) -> Timespec {
    // Both fit: u64::MAX nanoseconds are 18 billion seconds.
    Timespec {
        tv_sec: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(nanos % 1_000_000_000).unwrap_or(0),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
