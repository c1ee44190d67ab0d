//! The signal mask: init blocks what it reads from a descriptor, its children must not inherit that.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};

/// Faults of the program itself. Blocking one makes the kernel kill the process without a core.
const FAULTS: [Signal; 7] = [
    Signal::SIGABRT,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGSEGV,
    Signal::SIGSYS,
    Signal::SIGTRAP,
];

/// Blocks every signal that can be sent from outside, for this thread and those it starts, and
/// returns the set.
pub(super) fn block() -> Result<SigSet, Errno> {
    let mut set = SigSet::all();
    for fault in FAULTS {
        set.remove(fault);
    }
    set.thread_block()?;
    Ok(set)
}

/// Unblocks every signal for this thread and those it starts later.
///
/// A child of init starts with the signals blocked (`std::process::Command` hands its mask on). The
/// agent calls this before it starts a thread or a process, or they cannot be stopped by a signal.
pub fn reset_signal_mask() -> io::Result<()> {
    SigSet::empty().thread_set_mask().map_err(io::Error::from)
}

/// Becomes `program` with an empty signal mask, keeping the pid. Returns only if that fails.
///
/// This is how init starts a program that does not know about init.
#[must_use]
pub fn exec(program: &OsStr, arguments: &[OsString]) -> io::Error {
    match reset_signal_mask() {
        Ok(()) => Command::new(program).args(arguments).exec(),
        Err(error) => error,
    }
}

/// The name `ps` and `top` show; a binary started as `/proc/self/exe` would be called `exe`.
pub fn call_this_process(name: &std::ffi::CStr) {
    // Without it nothing is lost but a good name.
    let _unnamed = nix::sys::prctl::set_name(name);
}

/// Becomes this same binary with other arguments, keeping pid, signal mask and the name it was called by. Returns only
/// if that fails.
#[must_use]
pub fn become_this_binary(arguments: &[OsString]) -> io::Error {
    let name = std::env::args_os().next().unwrap_or_else(|| "howdah".into());
    Command::new(super::THIS_BINARY).arg0(name).args(arguments).exec()
}
