//! Server processes that outlived their postmaster: found by working directory, ended, and waited for.
//!
//! A backend notices the death of its postmaster only when it waits for something; one in a long computation goes
//! on, can still commit, and holds the shared memory that keeps the next postmaster from starting. Must only be
//! called when no postmaster of the directory lives (its children look just like orphans), and not while a job of our
//! own runs `postgres --single` there.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, sleep};

use super::procfs::{DirId, Stat, is_postgres, pids, program};

/// How often leaving orphans are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// An orphan, named so that a reused pid is not mistaken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Orphan {
    /// Process id.
    pub pid: i32,
    start_ticks: u64,
}

/// Server processes working in `data_dir`, and what they had started in their session (a `restore_command` that
/// still copies into `pg_wal`, for example). A shell somebody left open in the directory is none of ours.
#[must_use]
pub fn find(data_dir: &Path) -> Vec<Orphan> {
    let dir = DirId::of(data_dir);
    let own = std::process::id();
    let inside: Vec<(i32, Stat)> = pids()
        .into_iter()
        .filter(|pid| u32::try_from(*pid) != Ok(own))
        .filter_map(|pid| Some((pid, Stat::read(pid)?)))
        .filter(|(pid, stat)| !stat.is_dead() && dir.is_cwd_of(*pid) == Some(true))
        .collect();
    let servers: HashSet<i32> = inside
        .iter()
        .filter(|(pid, stat)| is_postgres(&program(*pid, stat)))
        .map(|(pid, _)| *pid)
        .collect();
    inside
        .into_iter()
        .filter(|(pid, stat)| servers.contains(pid) || servers.contains(&stat.session))
        .map(|(pid, stat)| Orphan {
            pid,
            start_ticks: stat.start_ticks,
        })
        .collect()
}

/// Ends all orphans of `data_dir`: SIGQUIT, after `grace` SIGKILL, and returns those still there after `limit`
/// (only processes stuck in the kernel survive that).
pub async fn end_all(data_dir: PathBuf, grace: Duration, limit: Duration) -> Vec<Orphan> {
    let begun = Instant::now();
    let mut asked = HashSet::new();
    let mut killed = HashSet::new();
    loop {
        let dir = data_dir.clone();
        // A scan reads a few files per process of the host; keep that off the async threads.
        let Ok(orphans) = tokio::task::spawn_blocking(move || find(&dir)).await else {
            return Vec::new();
        };
        let waited = begun.elapsed();
        if orphans.is_empty() || waited >= limit {
            return orphans;
        }
        for orphan in orphans {
            if waited >= grace {
                if killed.insert(orphan) {
                    tracing::warn!(pid = orphan.pid, "killing an orphaned server process");
                }
                signal(orphan, Signal::KILL);
            } else if asked.insert(orphan) {
                tracing::warn!(pid = orphan.pid, "ending an orphaned server process");
                signal(orphan, Signal::QUIT);
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The pidfd pins the process, then its identity is checked again, so a reused pid is never hit.
/// Kernels without pidfd (before 5.3) get a plain kill. That a process is already gone is what we want.
fn signal(orphan: Orphan, signal: Signal) {
    let Some(pid) = Pid::from_raw(orphan.pid) else {
        return;
    };
    let pinned = pidfd_open(pid, PidfdFlags::empty());
    let same = Stat::read(orphan.pid).is_some_and(|stat| stat.start_ticks == orphan.start_ticks);
    if !same {
        return;
    }
    let sent = match pinned {
        Ok(fd) => pidfd_send_signal(fd, signal),
        Err(_) => kill_process(pid, signal),
    };
    if let Err(error) = sent
        && error != rustix::io::Errno::SRCH
    {
        tracing::warn!(pid = orphan.pid, %error, "cannot signal an orphaned server process");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_programs_in_the_directory_are_left_alone() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut sleeper = std::process::Command::new("sleep")
            .arg("60")
            .current_dir(dir.path())
            .spawn()
            .expect("sleep exists");
        let found = find(dir.path());
        sleeper.kill().expect("still ours");
        sleeper.wait().expect("our child");
        assert_eq!(found, []);
    }
}
