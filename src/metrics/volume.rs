//! The volume of the data directory: how much is free, how long an fsync takes, what waits for the archive.
//!
//! A disk that does not answer blocks whoever asks it, so a thread of its own asks and nobody waits for it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use nix::sys::statvfs::statvfs;

use super::Metrics;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(10);
/// Written and synced; hidden, and beside PostgreSQL's own files: `pg_basebackup` leaves it out by being gone by then.
const PROBE: &str = ".howdah.fsync";
/// More files than this are not looked at one by one.
const READY_MAX: usize = 100_000;

/// What one look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Free for us.
    pub free_bytes: u64,
    /// In all.
    pub size_bytes: u64,
    /// Of a block in a new file; `None` without a data directory.
    pub fsync: Option<Duration>,
    /// WAL files that wait for `archive_command`.
    pub archive_ready: usize,
    /// How long the oldest of them has been waiting.
    pub archive_lag: Duration,
}

/// Looks for as long as `metrics` is used by anybody else.
pub fn watch(metrics: &Arc<Metrics>, data_dir: PathBuf) -> io::Result<()> {
    let metrics = Arc::downgrade(metrics);
    let looks = move || {
        while let Some(metrics) = metrics.upgrade() {
            match look(&data_dir) {
                Ok(look) => metrics.looked_at_volume(look),
                Err(error) => {
                    tracing::debug!(%error, data_dir = %data_dir.display(), "cannot look at the data volume");
                }
            }
            drop(metrics);
            #[expect(
                clippy::disallowed_methods,
                reason = "a thread of its own, which has nothing else to wait for"
            )]
            std::thread::sleep(EVERY);
        }
    };
    std::thread::Builder::new()
        .name("volume".to_owned())
        .stack_size(64 << 10)
        .spawn(looks)?;
    Ok(())
}

fn look(data_dir: &Path) -> io::Result<Look> {
    // Before the first clone there is only the volume it will be on.
    let there = data_dir
        .ancestors()
        .find(|dir| dir.is_dir())
        .unwrap_or(Path::new("/"));
    let volume = statvfs(there)?;
    let block = volume.fragment_size();
    let (archive_ready, archive_lag) = waiting(&data_dir.join("pg_wal/archive_status"), SystemTime::now());
    Ok(Look {
        free_bytes: volume.blocks_available().saturating_mul(block),
        size_bytes: volume.blocks().saturating_mul(block),
        // Only in a directory that is whole: nothing appears in the midst of a bootstrap.
        fsync: match data_dir.join("PG_VERSION").is_file() {
            true => Some(synced(data_dir)?),
            false => None,
        },
        archive_ready,
        archive_lag,
    })
}

fn synced(dir: &Path) -> io::Result<Duration> {
    let path = dir.join(PROBE);
    let mut file = File::create(&path)?;
    let begun = Instant::now();
    let synced = file.write_all(&[0; 4096]).and_then(|()| file.sync_data());
    let took = begun.elapsed();
    let removed = fs::remove_file(&path);
    synced.and(removed)?;
    Ok(took)
}

/// How many `.ready` files there are, and the age of the oldest.
fn waiting(dir: &Path, now: SystemTime) -> (usize, Duration) {
    let Ok(entries) = fs::read_dir(dir) else {
        return (0, Duration::ZERO);
    };
    let ready = entries
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "ready"))
        .take(READY_MAX);
    ready.fold((0, Duration::ZERO), |(count, oldest), entry| {
        let written = entry.metadata().and_then(|meta| meta.modified());
        let age = written.map_or(Duration::ZERO, |at| now.duration_since(at).unwrap_or_default());
        (count + 1, oldest.max(age))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_is_measured_and_left_as_it_was() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data");
        let before = look(&data).expect("its volume is there");
        assert!(before.size_bytes > 0 && before.fsync.is_none());
        fs::create_dir_all(data.join("pg_wal/archive_status")).expect("a directory");
        fs::write(data.join("PG_VERSION"), "17").expect("a file");
        for name in ["1.ready", "2.ready", "3.done"] {
            fs::write(data.join("pg_wal/archive_status").join(name), "").expect("a file");
        }
        let after = look(&data).expect("readable");
        assert!(after.fsync.is_some());
        assert_eq!(after.archive_ready, 2);
        let names: Vec<_> = fs::read_dir(&data)
            .expect("there")
            .flatten()
            .map(|e| e.file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn the_oldest_file_counts() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("1.ready"), "").expect("a file");
        let later = SystemTime::now() + Duration::from_secs(60);
        let (count, lag) = waiting(dir.path(), later);
        assert!(count == 1 && lag >= Duration::from_secs(59), "{lag:?}");
        assert_eq!(waiting(&dir.path().join("none"), later), (0, Duration::ZERO));
    }
}
