//! How much of the volume of `pg_wal` replication slots may hold back when nobody has said.
//!
//! PostgreSQL's own default is everything: one forgotten slot fills the volume, and a primary that cannot write WAL is
//! down for everybody. Half the volume is the largest bound that leaves as much again for what is not the slots' doing:
//! checkpoints (`max_wal_size`), an archive that does not answer, and, on the usual single volume, the data itself. A
//! consumer that falls behind further has to begin anew, which is one consumer's trouble and is told in the log.

use std::path::Path;

/// Smaller volumes are toys: half of one is hardly more than WAL needs anyway.
const LEAST_VOLUME: u64 = 1 << 30;
const MB: u64 = 1 << 20;

/// Size in bytes of the volume that `pg_wal` is on; `None` if it cannot be told.
#[must_use]
pub fn size(data_dir: &Path) -> Option<u64> {
    let wal = data_dir.join("pg_wal");
    let stat = rustix::fs::statvfs(&wal)
        .or_else(|_| rustix::fs::statvfs(data_dir))
        .ok()?;
    stat.f_blocks.checked_mul(stat.f_frsize)
}

/// `max_slot_wal_keep_size` for a volume of this size; `None`: PostgreSQL's own default.
#[must_use]
pub fn slot_wal_limit(size: u64) -> Option<String> {
    (size >= LEAST_VOLUME).then(|| format!("{}MB", size / 2 / MB))
}

/// Whether a configuration file sets the parameter, as far as the file itself tells.
#[must_use]
pub fn mentions(text: &str, parameter: &str) -> bool {
    text.lines().any(|line| {
        let line = line.trim_start();
        let name = line.split(|c: char| c == '=' || c.is_whitespace()).next();
        name.is_some_and(|name| name.eq_ignore_ascii_case(parameter))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_get_half_the_volume() {
        assert_eq!(slot_wal_limit(100 << 30).as_deref(), Some("51200MB"));
        assert_eq!(slot_wal_limit(LEAST_VOLUME).as_deref(), Some("512MB"));
        assert_eq!(slot_wal_limit(LEAST_VOLUME - 1), None);
        assert_eq!(slot_wal_limit(0), None);
    }

    #[test]
    fn the_volume_of_a_directory_has_a_size() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(size(dir.path()).is_some_and(|size| size > 0));
        assert_eq!(size(Path::new("/nowhere/at/all")), None);
    }

    #[test]
    fn a_comment_sets_nothing() {
        let sets = |text| mentions(text, "max_slot_wal_keep_size");
        assert!(sets("a = 1\n  Max_Slot_Wal_Keep_Size=5GB # why"));
        assert!(sets("max_slot_wal_keep_size 5GB"));
        assert!(!sets(
            "#max_slot_wal_keep_size = -1\nmax_slot_wal_keep_size_x = 1"
        ));
    }
}
