//! One etcd process: found among the running ones by its command line, or started; signalled through a pidfd, which
//! cannot hit a stranger that got the same pid later.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::{
    io::unix::AsyncFd,
    process::{Child, Command},
};

use super::Plan;

/// What the operating system refused.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct ProcessError {
    /// A verb phrase.
    pub what: String,
    /// The reason.
    #[source]
    pub source: io::Error,
}

pub(super) fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> ProcessError {
    let what = what.into();
    move |source| ProcessError { what, source }
}

/// etcd's own data.
pub(super) fn etcd_dir(dir: &Path) -> PathBuf {
    dir.join("data")
}

pub(super) fn fifo(dir: &Path) -> PathBuf {
    dir.join("log")
}

/// Makes the directory (0700) and the FIFO in it.
pub(super) fn prepare(dir: &Path) -> Result<(), ProcessError> {
    let what = |verb: &str| format!("{verb} {}", dir.display());
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed(what("create")))?;
    let mode = fs::metadata(dir)
        .map_err(failed(what("examine")))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
            .map_err(failed(what("change the mode of")))?;
    }
    has_room(dir)?;
    let path = fifo(dir);
    let what = format!("make the FIFO {}", path.display());
    match mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        Err(rustix::io::Errno::EXIST) => {
            let found = fs::symlink_metadata(&path).map_err(failed(what.clone()))?;
            match found.file_type().is_fifo() {
                true => Ok(()),
                false => Err(failed(what)(io::ErrorKind::AlreadyExists.into())),
            }
        }
        made => made.map_err(|error| failed(what)(error.into())),
    }
}

/// etcd takes the space of its first log at once and ends in a panic where there is none.
const ROOM_BYTES: u64 = 72 << 20;

fn has_room(dir: &Path) -> Result<(), ProcessError> {
    let space = match rustix::fs::statvfs(dir) {
        Ok(space) if !etcd_dir(dir).join("member").exists() => space,
        // It has its log already, or nobody can say.
        _ => return Ok(()),
    };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free >= ROOM_BYTES {
        return Ok(());
    }
    let what = format!(
        "the disk is full: etcd begins with {} MiB in {}, {} MiB are free",
        ROOM_BYTES >> 20,
        dir.display(),
        free >> 20
    );
    Err(failed(what)(io::ErrorKind::StorageFull.into()))
}

/// A handle on a process that stays valid (and harmless) after its end.
#[derive(Debug, Clone)]
pub(super) struct Handle(Arc<OwnedFd>);

impl Handle {
    fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self(Arc::new(pidfd_open(pid, PidfdFlags::empty())?)))
    }

    pub(super) fn terminate(&self) {
        self.send(Signal::TERM);
    }

    pub(super) fn kill(&self) {
        self.send(Signal::KILL);
    }

    fn send(&self, signal: Signal) {
        // The only failure left is that it has ended already.
        let _ = pidfd_send_signal(self.0.as_fd(), signal);
    }
}

/// A running etcd.
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) handle: Handle,
    /// Ours to reap; `None` for an adopted one, which init reaps.
    child: Option<Child>,
}

impl Process {
    /// Starts etcd with these further flags.
    pub(super) fn start(plan: &Plan, more: &[String]) -> Result<Self, ProcessError> {
        let path = fifo(&plan.dir);
        // Read and write: etcd is then itself the reader that keeps it from SIGPIPE when the agent is gone.
        let log = File::options().read(true).write(true).open(&path);
        let log = log.map_err(failed(format!("open {}", path.display())))?;
        let copy = log.try_clone().map_err(failed("duplicate the log"))?;
        let mut command = Command::new(&plan.program);
        // No ETCD_* variable may add to the flags, and no secret is etcd's business.
        command.env_clear();
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        let child = command
            .args(&plan.flags)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::from(copy))
            .stderr(Stdio::from(log))
            // A Ctrl-C in the terminal is for init; etcd is stopped last.
            .process_group(0)
            .spawn()
            .map_err(failed(format!("start {}", plan.program.display())))?;
        let pid = child.id().unwrap_or_default();
        Ok(Self {
            pid,
            handle: Handle::open(pid).map_err(failed("open a handle on etcd"))?,
            child: Some(child),
        })
    }

    /// The etcd a predecessor left running on this data directory; whether its flags are the wanted ones.
    pub(super) fn find(plan: &Plan) -> Option<(Self, bool)> {
        let wanted = format!("--data-dir={}", etcd_dir(&plan.dir).display());
        let pids = fs::read_dir("/proc").ok()?.flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for pid in pids {
            if !arguments(pid).contains(&wanted) {
                continue;
            }
            let Ok(handle) = Handle::open(pid) else {
                continue;
            };
            // Again, now that the handle pins the process: the pid may have been reused in between.
            let arguments = arguments(pid);
            if arguments.contains(&wanted) {
                let same = plan.flags.iter().all(|flag| arguments.contains(flag));
                let child = None;
                return Some((Self { pid, handle, child }, same));
            }
        }
        None
    }

    /// Waits for its end; how it ended, in words. Cancel-safe: `Child::wait` and readiness both are.
    pub(super) async fn ended(&mut self) -> String {
        if let Some(child) = &mut self.child {
            return match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => format!("cannot wait for it: {error}"),
            };
        }
        match readable(&self.handle.0).await {
            Ok(()) => "ended".into(),
            Err(error) => format!("cannot wait for it: {error}"),
        }
    }
}

/// A pidfd becomes readable when its process ends.
async fn readable(pidfd: &OwnedFd) -> io::Result<()> {
    // Deprecated for types that hand out descriptors they do not own; an `OwnedFd` does. The replacement is unsafe.
    #[allow(deprecated)]
    let fd = AsyncFd::new(pidfd.try_clone()?)?;
    fd.readable().await.map(|_| ())
}

fn arguments(pid: u32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.split(|byte| *byte == 0);
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}
