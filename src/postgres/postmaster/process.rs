//! One postmaster process, ours by birth or by adoption: spawning, signalling, noticing its end.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::{Child, Command},
    time::sleep,
};

use super::{
    Home,
    state::{ExitStatus, StartError, StartSpec},
};
use crate::{postgres::procfs::Stat, priorities};

/// Where the kernel has no pidfd (before 5.3), an adopted process is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A live postmaster.
#[derive(Debug)]
pub(super) enum Process {
    /// Spawned by us. Until it was waited for, its pid cannot be reused.
    Child { pid: i32, child: Child },
    /// Found running.
    Adopted {
        pid: i32,
        start_ticks: u64,
        pidfd: Option<AsyncFd<OwnedFd>>,
    },
}

impl Process {
    /// Spawns `postgres -D <data_dir> <args>`.
    ///
    /// The output is inherited, never a pipe: were the agent killed, the next log line of any backend would meet a
    /// broken pipe. Its own process group keeps a terminal's Ctrl-C away, which would be a fast shutdown behind our
    /// back. No parent-death signal: postgres outlives a crash of the agent.
    pub(super) fn spawn(home: &Home, spec: &StartSpec, stranger: Option<i32>) -> Result<Self, StartError> {
        let program = spec.bin_dir.join("postgres");
        let mut command = Command::new(&program);
        command
            .arg("-D")
            .arg(&home.data_dir)
            .args(&spec.args)
            .env_clear()
            .envs(priorities::postmaster_environment())
            .envs(spec.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(false);
        if let Some(pid) = stranger {
            // PostgreSQL takes a live process with the pid in its lock file for a rival, except for its parent and
            // the one named here (miscinit.c, CreateLockFile).
            command.env("PG_GRANDPARENT_PID", pid.to_string());
        }
        if let Some((uid, gid)) = home.run_as {
            command.uid(uid).gid(gid);
        }
        let spawned = |program: PathBuf, source| StartError::Spawn { program, source };
        let child = command.spawn().map_err(|e| spawned(program.clone(), e))?;
        match child.id().and_then(|pid| i32::try_from(pid).ok()) {
            Some(pid) => {
                // Before it has children of its own.
                priorities::make_nice(pid);
                Ok(Self::Child { pid, child })
            }
            None => Err(spawned(program, io::Error::other("it ended at once"))),
        }
    }

    /// Takes over a process that is not our child; `None` if it is gone. The caller must check the identity again
    /// afterwards, because only from now on the pid is pinned.
    pub(super) fn adopt(pid: i32) -> Option<Self> {
        let start_ticks = Stat::read(pid).filter(|stat| !stat.is_dead())?.start_ticks;
        let pidfd = match pidfd_open(Pid::from_raw(pid)?, PidfdFlags::NONBLOCK) {
            Ok(fd) => readable_fd(fd),
            Err(rustix::io::Errno::SRCH) => return None,
            Err(_) => None,
        };
        Some(Self::Adopted {
            pid,
            start_ticks,
            pidfd,
        })
    }

    pub(super) const fn pid(&self) -> i32 {
        match self {
            Self::Child { pid, .. } | Self::Adopted { pid, .. } => *pid,
        }
    }

    /// Sends a signal. A process that has just ended is no error: its end will be noticed.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        let by_pid = |pid: i32| match Pid::from_raw(pid) {
            Some(pid) => kill_process(pid, signal),
            None => Ok(()),
        };
        let sent = match self {
            Self::Child { pid, .. } => by_pid(*pid),
            Self::Adopted { pidfd: Some(fd), .. } => pidfd_send_signal(fd.get_ref(), signal),
            Self::Adopted { pid, start_ticks, .. } => match Stat::read(*pid) {
                Some(stat) if stat.start_ticks == *start_ticks => by_pid(*pid),
                _ => Ok(()),
            },
        };
        match sent {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => other.map_err(io::Error::from),
        }
    }

    /// Returns once the process has ended. Cancel-safe: nothing is consumed before it returns, and a child's status
    /// is kept by `Child`.
    pub(super) async fn ended(&mut self) -> ExitStatus {
        match self {
            Self::Child { child, .. } => match child.wait().await {
                Ok(status) => match (status.code(), status.signal()) {
                    (Some(code), _) => ExitStatus::Code(code),
                    (None, Some(signal)) => ExitStatus::Signal(signal),
                    (None, None) => ExitStatus::Unknown,
                },
                Err(_) => ExitStatus::Unknown,
            },
            Self::Adopted { pidfd: Some(fd), .. } if fd.readable().await.is_ok() => reap(fd.get_ref()),
            Self::Adopted { pid, start_ticks, .. } => {
                let same = |stat: Stat| !stat.is_dead() && stat.start_ticks == *start_ticks;
                while Stat::read(*pid).is_some_and(same) {
                    sleep(LOOK_EVERY).await;
                }
                ExitStatus::Unknown
            }
        }
    }
}

/// The safe constructor is deprecated because a type of one's own could lie about its descriptor. `OwnedFd` cannot.
#[allow(deprecated)]
fn readable_fd(fd: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE).ok()
}

/// An adopted process may still be our child (the agent replaced itself by exec); then this is its one wait.
fn reap(fd: &OwnedFd) -> ExitStatus {
    use std::os::fd::AsFd;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    match waitid(WaitId::PidFd(fd.as_fd()), options) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitStatus::Code(code),
            (None, Some(signal)) => ExitStatus::Signal(signal),
            (None, None) => ExitStatus::Unknown,
        },
        _ => ExitStatus::Unknown,
    }
}
