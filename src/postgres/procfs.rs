//! What `/proc` says about a process, as far as telling postmasters from strangers needs it. No signals here.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The part of `/proc/<pid>/stat` that everybody may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stat {
    /// Name of the executable, cut at 15 bytes.
    pub(super) comm: String,
    /// State letter; `Z` and `X` are dead.
    pub(super) state: char,
    /// Its parent.
    pub(super) parent: i32,
    /// Session id: the pid of the process that called `setsid`.
    pub(super) session: i32,
    /// Start of the process in clock ticks since boot. With the pid it names a process for good.
    pub(super) start_ticks: u64,
}

impl Stat {
    /// Reads the entry of `pid`; `None` if there is no such process.
    pub(super) fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name may hold blanks and parentheses, so fields are counted from the last `)`.
    fn parse(text: &str) -> Option<Self> {
        let (head, tail) = text.rsplit_once(')')?;
        let comm = head.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
        Some(Self {
            comm,
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }

    /// A zombie has no memory, locks or sockets any more.
    pub(super) fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    /// Start in seconds since the epoch. Clock ticks are 1/100 s in every Linux user interface (`USER_HZ`).
    pub(super) fn started_at(&self) -> Option<u64> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let boot = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
        Some(boot.trim().parse::<u64>().ok()? + self.start_ticks / 100)
    }
}

/// A directory by identity, so that symbolic links, bind mounts and renames do not matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DirId {
    inode: Option<(u64, u64)>,
    path: PathBuf,
}

impl DirId {
    /// Of a path that may not exist.
    pub(super) fn of(path: &Path) -> Self {
        Self {
            inode: inode(path).ok(),
            path: fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()),
        }
    }

    /// Whether `pid` works in this directory; `None` if we may not know. A process whose directory was removed
    /// (and perhaps made again under the same name) counts too: it still holds the port and the memory.
    pub(super) fn is_cwd_of(&self, pid: i32) -> Option<bool> {
        let link = PathBuf::from(format!("/proc/{pid}/cwd"));
        let target = fs::read_link(&link).ok()?;
        if let Some(text) = target.to_str()
            && let Some(gone) = text.strip_suffix(" (deleted)")
        {
            return Some(Path::new(gone) == self.path);
        }
        match (inode(&link), self.inode) {
            (Ok(cwd), Some(own)) => Some(cwd == own),
            _ => Some(target == self.path),
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Base name of the running program, also when a package upgrade replaced it; the cut name from `stat` if the link
/// may not be read.
pub(super) fn program(pid: i32, stat: &Stat) -> String {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok();
    let name = exe
        .as_deref()
        .and_then(Path::file_name)
        .and_then(|name| name.to_str())
        .map(|name| name.trim_end_matches(" (deleted)").to_owned());
    name.unwrap_or_else(|| stat.comm.clone())
}

/// Whether that program is PostgreSQL's server.
pub(super) fn is_postgres(program: &str) -> bool {
    matches!(program, "postgres" | "postmaster")
}

/// All process ids there are.
pub(super) fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        let stat = Stat::parse(text).expect("valid line");
        assert_eq!((stat.comm.as_str(), stat.state), ("a) b (c", 'S'));
        assert_eq!((stat.session, stat.start_ticks), (3, 4711));
        for junk in ["", ")", "1 (x) S", "1 (x) S a b c"] {
            assert_eq!(Stat::parse(junk), None, "{junk}");
        }
    }

    #[test]
    fn this_process_is_found_in_its_own_directory() {
        let pid = i32::try_from(std::process::id()).expect("pids are small");
        let stat = Stat::read(pid).expect("we exist");
        assert!(!stat.is_dead());
        assert!(stat.started_at().is_some_and(|at| at > 1_600_000_000));
        let here = std::env::current_dir().expect("has a directory");
        assert_eq!(DirId::of(&here).is_cwd_of(pid), Some(true));
        assert_eq!(DirId::of(Path::new("/proc")).is_cwd_of(pid), Some(false));
        assert_eq!(DirId::of(Path::new("/no/such")).is_cwd_of(pid), Some(false));
        assert!(!is_postgres(&program(pid, &stat)));
    }
}
