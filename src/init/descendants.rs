//! Finding and killing the processes below init, by way of `/proc`.
//!
//! In a PID namespace the kernel does this when PID 1 ends; here is what a bare init, which is only a
//! child subreaper, has to do itself. Reaping does not live here.

use std::collections::HashSet;
use std::fs;
use std::io;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

/// One line of the process table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    /// Clock ticks after boot at which it started; with the pid it names a process for good.
    started: u64,
    zombie: bool,
}

/// The pids of the direct children of this process that are alive.
pub(super) fn children() -> io::Result<Vec<i32>> {
    let me = getpid().as_raw();
    let children = table()?
        .into_iter()
        .filter(|process| process.parent == me && !process.zombie);
    Ok(children.map(|child| child.pid).collect())
}

/// Sends SIGKILL to everything below this process that is alive now and says to how many processes. A process
/// that forks meanwhile may leave a child behind, so the caller repeats this until nothing is left.
pub(super) fn kill_all() -> io::Result<usize> {
    let me = getpid();
    if me.as_raw() == 1 {
        // All of the namespace in one step, without reading anything.
        return Ok(usize::from(kill(Pid::from_raw(-1), Signal::SIGKILL).is_ok()));
    }
    let below = below(me.as_raw(), &table()?);
    Ok(below
        .into_iter()
        .filter(|process| !process.zombie && kill_exactly(*process))
        .count())
}

/// Kills `process` and never one that got its pid later: grandchildren are reaped by others.
fn kill_exactly(process: Process) -> bool {
    let Some(pid) = rustix::process::Pid::from_raw(process.pid) else {
        return false;
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => {
            read(process.pid).is_some_and(|now| now.started == process.started)
                && pidfd_send_signal(pidfd, rustix::process::Signal::KILL).is_ok()
        }
        // Before Linux 5.3, or forbidden by a seccomp profile: the fence goes before the small risk.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
            kill(Pid::from_raw(process.pid), Signal::SIGKILL).is_ok()
        }
        Err(_) => false,
    }
}

fn table() -> io::Result<Vec<Process>> {
    let numbers = fs::read_dir("/proc")?
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    Ok(numbers.filter_map(read).collect())
}

/// `None`: it has ended since, or its line is unreadable.
fn read(pid: i32) -> Option<Process> {
    parse(
        pid,
        &String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?),
    )
}

/// Reads a line of `/proc/<pid>/stat` (proc_pid_stat(5)). The name in parentheses may itself contain
/// spaces and parentheses, so the fields are counted from the last one.
fn parse(pid: i32, stat: &str) -> Option<Process> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    Some(Process {
        pid,
        parent,
        started,
        zombie: state == "Z" || state == "X",
    })
}

fn below(root: i32, table: &[Process]) -> Vec<Process> {
    let mut known = HashSet::from([root]);
    let mut found = Vec::new();
    loop {
        let before = found.len();
        for process in table {
            if known.contains(&process.parent) && known.insert(process.pid) {
                found.push(*process);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32) -> Process {
        Process {
            pid,
            parent,
            started: 0,
            zombie: false,
        }
    }

    #[test]
    fn finds_every_generation_and_nobody_else() {
        let table = [
            process(9, 7),
            process(2, 1),
            process(7, 5),
            process(5, 1),
            process(6, 2),
            process(1, 0),
        ];
        let pids = |root| {
            let mut pids: Vec<_> = below(root, &table).into_iter().map(|p| p.pid).collect();
            pids.sort_unstable();
            pids
        };
        assert_eq!(pids(5), [7, 9]);
        assert_eq!(pids(1), [2, 5, 6, 7, 9]);
        assert_eq!(pids(9), [0; 0]);
    }

    #[test]
    fn a_table_with_a_cycle_ends() {
        assert_eq!(below(1, &[process(1, 2), process(2, 1)]).len(), 1);
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "42 (a) S 1 (b)) Z 17 42 42 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 9876 0 0";
        let expected = Process {
            pid: 42,
            parent: 17,
            started: 9876,
            zombie: true,
        };
        assert_eq!(parse(42, stat), Some(expected));
        assert_eq!(parse(42, ""), None);
        assert_eq!(parse(42, "42 (x) S 1"), None);
    }

    #[test]
    fn the_process_table_has_this_process_in_it() {
        let me = getpid().as_raw();
        let found = table()
            .unwrap_or_default()
            .into_iter()
            .find(|process| process.pid == me);
        assert_eq!(
            found.map(|process| process.parent),
            Some(nix::unistd::getppid().as_raw())
        );
    }
}
