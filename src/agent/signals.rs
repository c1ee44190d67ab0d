//! Signals become events with a meaning (init has already translated and escalated them).
//!
//! SIGTERM: hand over, then stop. SIGINT: the same, fast. SIGQUIT: immediate stop. SIGHUP: reload. SIGUSR1: toggle
//! debug logging. SIGUSR2: write the agent's state to the log.

use std::{io, sync::Arc};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

use super::handle::AgentHandle;
use crate::{guard::Guard, ha::Shutdown, telemetry::LevelHandle};

/// What the loop is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Stop, in this way.
    Shutdown(Shutdown),
    /// Init has died: nobody fences any more.
    InitGone,
    /// Read the configuration again.
    Reload,
}

/// Signals that must not end an agent that is still starting; received, they wait for the loop. Those that ask for a
/// stop keep their usual effect until then: there is nothing to stop in order yet.
#[derive(Debug)]
pub struct Early {
    hup: Signal,
    usr1: Signal,
    usr2: Signal,
}

impl Early {
    /// Installs their handlers; to be called first of all.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            hup: signal(SignalKind::hangup())?,
            usr1: signal(SignalKind::user_defined1())?,
            usr2: signal(SignalKind::user_defined2())?,
        })
    }
}

/// The source of events.
#[derive(Debug)]
pub struct Signals {
    term: Signal,
    int: Signal,
    quit: Signal,
    early: Early,
    guard: Arc<Guard>,
    init_gone: bool,
    level: Arc<LevelHandle>,
    handle: AgentHandle,
}

impl Signals {
    /// Installs the handlers of the signals that ask for a stop.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub fn install(
        early: Early,
        guard: Arc<Guard>,
        level: Arc<LevelHandle>,
        handle: AgentHandle,
    ) -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            early,
            guard,
            init_gone: false,
            level,
            handle,
        })
    }

    /// The next event. Cancel-safe: receiving a signal is, and the end of init stays visible.
    pub async fn next(&mut self) -> Event {
        loop {
            tokio::select! {
                biased;
                _ = self.quit.recv() => return Event::Shutdown(Shutdown::Immediate),
                _ = self.int.recv() => return Event::Shutdown(Shutdown::Fast),
                _ = self.term.recv() => return Event::Shutdown(Shutdown::HandOver),
                () = self.guard.init_gone(), if !self.init_gone => {
                    self.init_gone = true;
                    return Event::InitGone;
                }
                _ = self.early.hup.recv() => return Event::Reload,
                _ = self.early.usr1.recv() => {
                    let level = self.level.toggle_debug();
                    info!(level, "log level changed by SIGUSR1");
                }
                _ = self.early.usr2.recv() => info!(state = ?self.handle.current(), "state asked for by SIGUSR2"),
            }
        }
    }
}
