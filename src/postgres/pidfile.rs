//! `postmaster.pid`: what it says, and whether the process it names really is the postmaster of this directory
//! (rule: PostgreSQL configuration contract §11; format: PostgreSQL `src/include/utils/pidfile.h`).
//! Reads only; who may be signalled is [`super::postmaster`]'s business.

use std::{fs, io, path::Path};

use super::procfs::{DirId, Stat, is_postgres, program};

/// Clocks may disagree this much about the start of a process, in seconds (contract §11).
const START_TOLERANCE_S: u64 = 3;

/// What the last line of the file says about the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PmStatus {
    /// Starting up or recovering; no connections yet.
    Starting,
    /// Shutting down.
    Stopping,
    /// Accepts connections: a primary, or a hot standby.
    Ready,
    /// Up as a standby that accepts no connections (`hot_standby = off`).
    Standby,
}

/// Content of `postmaster.pid`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PidFile {
    /// Process id; a single-user server writes it negative.
    pub pid: i32,
    /// Written by `postgres --single`.
    pub single_user: bool,
    /// Start in seconds since the epoch.
    pub started_at: Option<u64>,
    /// Port, once it is known.
    pub port: Option<u16>,
    /// First socket directory, if any.
    pub socket_dir: Option<String>,
    /// Status, once it was written.
    pub status: Option<PmStatus>,
}

impl PidFile {
    /// Reads text that may be half written: only the pid is required.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let line = |i: usize| lines.get(i).copied().filter(|line| !line.is_empty());
        let pid: i32 = line(0)?.parse().ok()?;
        Some(Self {
            pid: pid.checked_abs().filter(|pid| *pid > 0)?,
            single_user: pid < 0,
            started_at: line(2).and_then(|text| text.parse().ok()),
            port: line(3).and_then(|text| text.parse().ok()),
            socket_dir: line(4).map(str::to_owned),
            status: line(7).and_then(|text| match text {
                "starting" => Some(PmStatus::Starting),
                "stopping" => Some(PmStatus::Stopping),
                "ready" => Some(PmStatus::Ready),
                "standby" => Some(PmStatus::Standby),
                _ => None,
            }),
        })
    }
}

/// Text of the file of `data_dir`; `None` if there is none.
///
/// # Errors
/// The file exists but cannot be read.
pub fn read_text(data_dir: &Path) -> io::Result<Option<String>> {
    match fs::read(data_dir.join("postmaster.pid")) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Who owns the process id in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// No file, or its process is gone.
    Nobody,
    /// A live process that is not a postmaster of this directory: the pid was used again.
    Stranger {
        /// The process id in question.
        pid: i32,
    },
    /// The live postmaster of this directory.
    Postmaster(PidFile),
}

/// Looks at the file and at the process it names.
///
/// # Errors
/// The file exists but cannot be read.
pub fn holder(data_dir: &Path) -> io::Result<Holder> {
    let Some(file) = read_text(data_dir)?.as_deref().and_then(PidFile::parse) else {
        return Ok(Holder::Nobody);
    };
    let Some(stat) = Stat::read(file.pid) else {
        return Ok(Holder::Nobody);
    };
    if !file.single_user && is_postmaster(data_dir, &file, &stat) {
        return Ok(Holder::Postmaster(file));
    }
    Ok(Holder::Stranger { pid: file.pid })
}

/// Stricter than the contract in one point: equal start times do not make a `sleep` a postmaster. The working
/// directory settles the matter where it can be read, because a postmaster enters its data directory before it
/// writes the file.
fn is_postmaster(data_dir: &Path, file: &PidFile, stat: &Stat) -> bool {
    if stat.is_dead() || !is_postgres(&program(file.pid, stat)) {
        return false;
    }
    DirId::of(data_dir)
        .is_cwd_of(file.pid)
        .unwrap_or_else(|| match (file.started_at, stat.started_at()) {
            (Some(file), Some(process)) => file.abs_diff(process) <= START_TOLERANCE_S,
            _ => true,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = "4711\n/data\n1767600001\n5433\n/tmp\nlocalhost\n 5432001    32768\nready   \n";

    #[test]
    fn reads_a_complete_file() {
        let file = PidFile::parse(FULL).expect("valid");
        assert_eq!((file.pid, file.single_user), (4711, false));
        assert_eq!(file.started_at, Some(1_767_600_001));
        assert_eq!(
            (file.port, file.socket_dir.as_deref()),
            (Some(5433), Some("/tmp"))
        );
        assert_eq!(file.status, Some(PmStatus::Ready));
    }

    #[test]
    fn every_prefix_of_a_file_is_harmless() {
        for end in 0..FULL.len() {
            let status = PidFile::parse(&FULL[..end]).and_then(|file| file.status);
            assert!(end >= FULL.len() - 4 || status.is_none(), "{end}");
        }
    }

    #[test]
    fn refuses_nonsense_and_knows_single_user_mode() {
        for text in ["", "\n", "x", "0\n", "99999999999\n", "-2147483648\n"] {
            assert_eq!(PidFile::parse(text), None, "{text:?}");
        }
        let single = PidFile::parse("-17\n/data\n1\n").expect("valid");
        assert_eq!((single.pid, single.single_user), (17, true));
    }

    #[test]
    fn a_live_stranger_is_not_taken_for_a_postmaster() {
        let dir = tempfile::tempdir().expect("temp dir");
        assert_eq!(holder(dir.path()).expect("readable"), Holder::Nobody);
        let me = i32::try_from(std::process::id()).expect("pids are small");
        let started = Stat::read(me)
            .and_then(|stat| stat.started_at())
            .expect("we exist");
        fs::write(
            dir.path().join("postmaster.pid"),
            format!("{me}\n/data\n{started}\n5432\n"),
        )
        .expect("writable");
        assert_eq!(
            holder(dir.path()).expect("readable"),
            Holder::Stranger { pid: me }
        );
    }
}
