//! What init does next: a pure state machine, events in, actions out. No clock, no process, no
//! socket; `supervisor.rs` owns those and does what is said here.
//!
//! ```text
//!            crash, budget left            pause over
//!  Running ---------------------> Waiting ------------> Running
//!     |  agent ended on purpose,     | stop requested
//!     |  or crashed while stopping   v
//!     +--------------------------> Ending: SIGTERM, SIGINT, SIGKILL to what is left --> exit
//!
//!  any state -- deadline passed, budget spent, SIGQUIT not obeyed --> kill everything, exit
//! ```
//!
//! The fence deadline outlives the agent that set it: a crash neither extends nor disarms it.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::budget::Budget;
use super::message::{Deadline, Message};
use super::signals::{Meaning, Stop};
use crate::clock::Boottime;
use crate::exit::Exit;

/// How long init waits for what.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Restarts of a crashed agent within [`Limits::restart_window`].
    pub restarts_max: usize,
    /// The sliding window in which restarts are counted.
    pub restart_window: Duration,
    /// From SIGQUIT until everything is killed.
    pub quit_grace: Duration,
    /// From SIGTERM to SIGINT for processes the agent left behind. A postmaster waits for its
    /// clients on SIGTERM (smart shutdown) and disconnects them on SIGINT (fast).
    pub leftover_fast_after: Duration,
    /// From SIGTERM to SIGKILL for processes the agent left behind; below the ten seconds that
    /// `docker stop` allows by default.
    pub leftover_kill_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            restarts_max: 5,
            restart_window: Duration::from_secs(60),
            quit_grace: Duration::from_secs(5),
            leftover_fast_after: Duration::from_millis(500),
            leftover_kill_after: Duration::from_secs(8),
        }
    }
}

/// How the agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Exited(i32),
    /// By the signal with this number.
    Signaled(i32),
    /// It could not be started again, or its status was taken from us.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Signal(Meaning),
    Message(Message),
    AgentEnded(End),
    /// No process is left below init.
    NoChildren,
    /// Time passed; sent once per turn, after everything else.
    Tick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Start the agent; with the lease it may adopt.
    Start(Option<Deadline>),
    /// Send this to the agent's pid and to nobody else.
    Forward(Signal),
    /// Send this to the direct children, which are what the agent left behind.
    SignalLeftovers(Signal),
    ToggleDebug,
    Dump,
    /// Everything is over: exit.
    Finish(Exit),
    /// Kill everything first, say why afterwards, then exit.
    KillAndFinish(Exit, &'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    /// The agent crashed; it is started again then.
    Waiting {
        until: Boottime,
    },
    /// The agent is gone and will not come back.
    Ending {
        exit: Exit,
        fast_at: Option<Boottime>,
        kill_at: Boottime,
    },
}

#[derive(Debug)]
pub(super) struct State {
    limits: Limits,
    budget: Budget,
    phase: Phase,
    armed: Option<Deadline>,
    asked: Option<Stop>,
    /// The agent said that it is stopping by itself.
    stopping: bool,
    /// It also said that postgres is to outlive us.
    leaving: bool,
    quit_by: Option<Boottime>,
}

impl State {
    /// The agent has just been started for the first time.
    pub(super) fn running(limits: Limits) -> Self {
        Self {
            limits,
            budget: Budget::new(limits.restarts_max, limits.restart_window),
            phase: Phase::Running,
            armed: None,
            asked: None,
            stopping: false,
            leaving: false,
            quit_by: None,
        }
    }

    pub(super) fn armed(&self) -> Option<Deadline> {
        self.armed
    }

    pub(super) fn asked(&self) -> Option<Stop> {
        self.asked
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn restarts(&self) -> usize {
        self.budget.used()
    }

    /// When [`Event::Tick`] is due at the latest; `None`: nothing is pending.
    pub(super) fn next_tick(&self) -> Option<Boottime> {
        let phase = match self.phase {
            Phase::Running => None,
            Phase::Waiting { until } => Some(until),
            Phase::Ending { fast_at, kill_at, .. } => Some(fast_at.unwrap_or(kill_at).min(kill_at)),
        };
        let fence = self.armed.map(|deadline| deadline.until);
        [phase, fence, self.quit_by].into_iter().flatten().min()
    }

    /// Takes in what happened at `now` and says what to do about it.
    pub(super) fn on(&mut self, event: Event, now: Boottime) -> Vec<Action> {
        match event {
            Event::Signal(meaning) => self.signal(meaning, now),
            Event::Message(message) => {
                self.message(message);
                Vec::new()
            }
            Event::AgentEnded(end) => self.ended(end, now),
            Event::NoChildren => match self.phase {
                // Seen before an agent that has been started since.
                Phase::Running | Phase::Waiting { .. } => Vec::new(),
                Phase::Ending { exit, .. } => vec![Action::Finish(exit)],
            },
            Event::Tick => self.tick(now),
        }
    }

    fn signal(&mut self, meaning: Meaning, now: Boottime) -> Vec<Action> {
        let own = match meaning {
            Meaning::Stop(wanted) => return self.stop(wanted, now),
            Meaning::Reload => (Signal::SIGHUP, None),
            Meaning::ToggleDebug => (Signal::SIGUSR1, Some(Action::ToggleDebug)),
            Meaning::Dump => (Signal::SIGUSR2, Some(Action::Dump)),
            Meaning::Child | Meaning::Ignored => return Vec::new(),
        };
        let (signal, own) = own;
        let forward = (self.phase == Phase::Running).then_some(Action::Forward(signal));
        own.into_iter().chain(forward).collect()
    }

    fn stop(&mut self, wanted: Stop, now: Boottime) -> Vec<Action> {
        let Some(stop) = Stop::escalate(self.asked, wanted) else {
            return Vec::new();
        };
        self.asked = Some(stop);
        if stop == Stop::Immediate {
            self.quit_by = Some(now + self.limits.quit_grace);
        }
        match &mut self.phase {
            Phase::Running => vec![Action::Forward(stop.signal())],
            // A start now would be an agent that only reads its configuration to stop again.
            Phase::Waiting { .. } => self.end(Exit::Dirty, now),
            Phase::Ending { fast_at, .. } => {
                *fast_at = None;
                // They had their SIGTERM when the agent ended.
                vec![Action::SignalLeftovers(stop.max(Stop::Fast).signal())]
            }
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Deadline(deadline) => self.armed = Some(deadline),
            Message::Disarm => self.armed = None,
            Message::Stopping => self.stopping = true,
            Message::Leaving => (self.stopping, self.leaving) = (true, true),
        }
    }

    fn ended(&mut self, end: End, now: Boottime) -> Vec<Action> {
        if let End::Exited(code) = end
            && let Some(exit) = Exit::deliberate(code)
        {
            if self.leaving && self.armed.is_none() {
                return vec![Action::Finish(exit)];
            }
            return self.end(exit, now);
        }
        if self.asked.is_some() || self.stopping {
            // Killed by the very signal that asked for it: a program without a handler, or an agent
            // that had not come as far as installing one. Nothing was armed, so nothing was lost.
            let asked = self.asked.map(|stop| End::Signaled(stop.signal() as i32));
            let clean = self.armed.is_none() && asked == Some(end);
            return self.end(if clean { Exit::Ok } else { Exit::Dirty }, now);
        }
        match self.budget.crashed(now) {
            Some(Duration::ZERO) => {
                self.phase = Phase::Running;
                vec![Action::Start(self.armed)]
            }
            Some(pause) => {
                self.phase = Phase::Waiting { until: now + pause };
                Vec::new()
            }
            None => vec![Action::KillAndFinish(
                Exit::Internal,
                "restart budget of the agent spent",
            )],
        }
    }

    fn end(&mut self, exit: Exit, now: Boottime) -> Vec<Action> {
        // SIGTERM in any case: a shell's background jobs ignore SIGINT and SIGQUIT.
        let term = Action::SignalLeftovers(Signal::SIGTERM);
        let (fast_at, actions) = match self.asked {
            None | Some(Stop::HandOver) => (Some(now + self.limits.leftover_fast_after), vec![term]),
            Some(hurried) => (None, vec![term, Action::SignalLeftovers(hurried.signal())]),
        };
        let kill_at = now + self.limits.leftover_kill_after;
        self.phase = Phase::Ending {
            exit,
            fast_at,
            kill_at,
        };
        actions
    }

    fn tick(&mut self, now: Boottime) -> Vec<Action> {
        if self.armed.is_some_and(|deadline| deadline.until <= now) {
            return vec![Action::KillAndFinish(Exit::Fenced, "fence deadline passed")];
        }
        if self.quit_by.is_some_and(|at| at <= now) {
            // An agent that said why it stopped keeps its word even if it left something behind.
            let exit = match self.phase {
                Phase::Ending { exit, .. } => exit,
                Phase::Running | Phase::Waiting { .. } => Exit::Dirty,
            };
            return vec![Action::KillAndFinish(exit, "not stopped in time after SIGQUIT")];
        }
        match &mut self.phase {
            Phase::Waiting { until } if *until <= now => {
                self.phase = Phase::Running;
                vec![Action::Start(self.armed)]
            }
            Phase::Ending { exit, kill_at, .. } if *kill_at <= now => {
                let exit = *exit;
                vec![Action::KillAndFinish(
                    exit,
                    "processes left behind did not stop in time",
                )]
            }
            Phase::Ending { fast_at, .. } if fast_at.is_some_and(|at| at <= now) => {
                *fast_at = None;
                vec![Action::SignalLeftovers(Signal::SIGINT)]
            }
            Phase::Running | Phase::Waiting { .. } | Phase::Ending { .. } => Vec::new(),
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
