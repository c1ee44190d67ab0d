//! Init: PID 1 of a container, or a child subreaper among other processes. Small, synchronous, no
//! async runtime.
//!
//! Lives here: starting the agent and starting it again, reaping, what signals mean, the fence of
//! last resort, dropping root. Does not live here: anything about postgres, the DCS or HTTP; the
//! agent's end of the socket is [`crate::guard`].
//!
//! * The agent is a child with one end of a packet socket as its standard input. It sends the moment
//!   up to which this node may be primary ([`message`]); when that passes without a further word,
//!   init kills everything, whatever state the agent is in.
//! * An agent that crashes is started again with the last record in `HOWDAH_ADOPT`, so that it can
//!   adopt the lease and the running postmaster. Its deadline is the old one.
//! * Signals mean what the table in [`signals`] says, and go to the agent's pid only.
//!
//! In a PID namespace the kernel kills everything when init exits. Outside of one, init kills every
//! descendant itself; there nothing helps against somebody who kills init, except that the agent sees
//! it at once as the end of its standard input.

mod budget;
mod descendants;
mod leftovers;
pub mod log;
mod mask;
pub mod message;
pub mod privileges;
pub mod signals;
mod state;
mod supervisor;

use std::ffi::OsString;
use std::io;

pub use mask::{become_this_binary, call_this_process, exec, reset_signal_mask};
pub use state::Limits;

use crate::exit::Exit;

/// Set for the agent: the pid of init. An agent whose parent has this pid has its socket on fd 0.
pub const INIT: &str = "HOWDAH_INIT";
/// Set for an agent that replaces a crashed one while the fence is armed:
/// `<boottime nanoseconds>:<token>`, see [`message::Deadline`].
pub const ADOPT: &str = "HOWDAH_ADOPT";

/// Names the binary that runs, even when its file was replaced.
const THIS_BINARY: &str = "/proc/self/exe";

/// What init is to run.
pub struct Options {
    /// The agent; looked up in `PATH` unless it has a slash.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Variables for it.
    pub environment: Vec<(&'static str, String)>,
    /// How long init waits for what.
    pub limits: Limits,
    /// Called on SIGUSR1: switches init's own debug log.
    pub toggle_debug: Option<Box<dyn FnMut()>>,
}

impl Options {
    /// This same binary with other arguments, and the usual limits. The binary is named by
    /// `/proc/self/exe`, so it stays the same one even if the file is replaced.
    #[must_use]
    pub fn this_binary(arguments: Vec<OsString>) -> Self {
        Self {
            program: THIS_BINARY.into(),
            arguments,
            environment: Vec::new(),
            limits: Limits::default(),
            toggle_debug: None,
        }
    }
}

/// Why init could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The agent could not be started.
    #[error("cannot start {program:?}")]
    Spawn {
        /// What was to be started.
        program: OsString,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The operating system refused something basic.
    #[error("cannot {what}")]
    Os {
        /// A verb phrase.
        what: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

impl InitError {
    fn os(what: &'static str, source: io::Error) -> Self {
        Self::Os { what, source }
    }
}

/// Starts the agent and stays until everything below this process has ended.
///
/// Must be called while the process has no other thread that can receive signals (threads made by
/// [`log::LogWriter`] are fine). Logs through `tracing`; what it returns is for the caller to exit with.
pub fn run(options: Options) -> Exit {
    let outcome = supervisor::Supervisor::start(options).and_then(|mut init| init.run());
    outcome.unwrap_or_else(|error| {
        // Without its loop init is no fence any more, so nothing may go on.
        let left = supervisor::kill_everything();
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::error!(%error, cause, left, "init cannot go on, killed everything");
        Exit::Os
    })
}
