//! Lock files beside PostgreSQL's Unix sockets (`.s.PGSQL.<port>.lock`, PostgreSQL `miscinit.c`, `CreateLockFile`).
//!
//! They outlive a killed server, and a directory like `/run` outlives a stopped container. PostgreSQL takes any live process
//! with the pid in the file for a rival and does not start; in a container, where pids are few, another program soon has that
//! pid. A data directory that was copied anew knows nothing of the server before, so its own lock file cannot tell.

use std::{fs, io, path::Path};

use super::procfs::{Stat, is_postgres, program};

/// Removes the lock file of `port` in `dir` if the process it names is none of PostgreSQL's or a zombie; returns that process's
/// id. The lock of a pid that is not in use is left to PostgreSQL, a live server's is not ours to touch.
///
/// # Errors
/// The file cannot be read or removed.
pub fn remove_stale(dir: &Path, port: u16) -> io::Result<Option<i32>> {
    let path = dir.join(format!(".s.PGSQL.{port}.lock"));
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let pid = text
        .lines()
        .next()
        .and_then(|line| line.trim().parse::<i32>().ok());
    let Some(pid) = pid.and_then(i32::checked_abs) else {
        return Ok(None);
    };
    match Stat::read(pid) {
        // PostgreSQL asks `kill(pid, 0)`, which a zombie answers, too: where nobody reaps soon, as long as it likes.
        Some(stat) if stat.is_dead() || !is_postgres(&program(pid, &stat)) => {}
        _ => return Ok(None),
    }
    fs::remove_file(&path)?;
    Ok(Some(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(dir: &Path, text: &str) -> std::path::PathBuf {
        let path = dir.join(".s.PGSQL.5432.lock");
        fs::write(&path, text).expect("writable");
        path
    }

    #[test]
    fn only_a_live_stranger_makes_it_stale() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(remove_stale(dir.path(), 5432).expect("none there"), None);
        let own = i32::try_from(std::process::id()).expect("a pid");
        let path = lock(dir.path(), &format!("{own}\n/data\n1767600001\n5432\n"));
        assert_eq!(remove_stale(dir.path(), 5433).expect("another port"), None);
        assert!(path.exists());
        assert_eq!(remove_stale(dir.path(), 5432).expect("removable"), Some(own));
        assert!(!path.exists());
    }

    #[test]
    fn a_zombie_is_no_server() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut child = std::process::Command::new("true").spawn().expect("a process");
        let pid = i32::try_from(child.id()).expect("a pid");
        let begun = std::time::Instant::now();
        while !Stat::read(pid).expect("nobody has waited for it").is_dead() {
            assert!(
                begun.elapsed() < std::time::Duration::from_secs(10),
                "it does not end"
            );
            std::thread::yield_now();
        }
        let path = lock(dir.path(), &format!("{pid}\n/data\n1767600001\n5432\n"));
        assert_eq!(remove_stale(dir.path(), 5432).expect("removable"), Some(pid));
        assert!(!path.exists());
        child.wait().expect("it has ended");
    }

    #[test]
    fn what_postgresql_can_judge_is_left_to_it() {
        let dir = tempfile::tempdir().expect("a directory");
        // Beyond any pid there can be; half a file; none of PostgreSQL's.
        for text in ["4194305\n/data\n", "", "x\n"] {
            let path = lock(dir.path(), text);
            assert_eq!(
                remove_stale(dir.path(), 5432).expect("readable"),
                None,
                "{text:?}"
            );
            assert!(path.exists(), "{text:?}");
        }
    }
}
