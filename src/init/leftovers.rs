//! Asking what the agent left behind to stop, in order: only the top of each tree is asked, because
//! a postmaster must be the one that stops its backends; but when a top ends and leaves children of
//! its own, those are tops now and are asked the same.

use std::collections::HashSet;
use std::io;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::descendants;

/// Who was asked, and by which signals so far.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    signals: Vec<Signal>,
    asked: HashSet<i32>,
}

impl Leftovers {
    /// Sends `signal` to every direct child, now and to those that become one later. Says to how many.
    pub(super) fn ask(&mut self, signal: Signal) -> io::Result<usize> {
        let children = descendants::children()?;
        // One that is asked here for the first time has missed the signals before this one.
        self.catch_up(&children);
        self.signals.push(signal);
        Ok(children.into_iter().filter(|child| send(*child, signal)).count())
    }

    /// A child was reaped: whom it leaves to us is asked too. `Ok(0)` while nobody is asked to stop.
    pub(super) fn inherited(&mut self) -> io::Result<usize> {
        if self.signals.is_empty() {
            return Ok(0);
        }
        let children = descendants::children()?;
        Ok(self.catch_up(&children))
    }

    fn catch_up(&mut self, children: &[i32]) -> usize {
        // The pid of one that is gone may be given to another.
        self.asked.retain(|pid| children.contains(pid));
        let new: Vec<_> = children.iter().filter(|pid| self.asked.insert(**pid)).collect();
        for child in &new {
            for signal in &self.signals {
                send(**child, *signal);
            }
        }
        new.len()
    }
}

/// Only init reaps its children, so none of their pids can have been given to another process yet.
fn send(child: i32, signal: Signal) -> bool {
    kill(Pid::from_raw(child), signal).is_ok()
}
