//! Fetching a segment that `pg_rewind` wants to read from the archive, where it cannot be told to do that itself: before
//! PostgreSQL 15 it finds the `restore_command` only in a configuration that lies in the data directory.

use std::{fs, path::Path, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    archive::expand,
    command::{self, Command},
    files::{self, at},
};

/// Time one segment may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// Why a segment was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command failed.
    #[error("fetch {0} with restore_command")]
    Run(String, #[source] command::Error),
    /// The command says it has worked.
    #[error("restore_command brought {bytes} bytes for {segment}, which is no WAL segment")]
    Content {
        /// Name of the segment.
        segment: String,
        /// Size of what came, 0 if nothing.
        bytes: u64,
    },
    /// It was there already: fetching it again would change nothing.
    #[error("{0} is there already")]
    There(String),
    /// What came cannot be put in place.
    #[error(transparent)]
    File(#[from] files::Error),
}

/// Fetches one segment into `pg_wal` of a stopped instance. What is there already is left as it is.
///
/// # Errors
/// It did not come; nothing is left behind then.
pub async fn fetch(
    data_dir: &Path,
    restore_command: &str,
    segment: &str,
    identity: Option<(u32, u32)>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let path = data_dir.join("pg_wal").join(segment);
    if path.symlink_metadata().is_ok() {
        return Err(Error::There(segment.to_owned()));
    }
    let command = Command::new("sh")
        .arg("-c")
        .arg(expand(restore_command, segment))
        .cwd(data_dir)
        .identity(identity)
        .deadline(DEADLINE);
    let result = match command.run(cancel).await {
        Ok(_) => whole(&path, segment),
        Err(error) => Err(Error::Run(segment.to_owned(), error)),
    };
    if result.is_err() {
        // The first error is the one that matters; half a segment would only be found to be broken.
        let _ = fs::remove_file(&path);
    }
    result
}

/// `wal_segment_size` is a power of two from 1 MiB to 1 GiB.
fn whole(path: &Path, segment: &str) -> Result<(), Error> {
    let bytes = match fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return at("look at", path, Err(error)).map_err(Error::File),
    };
    if bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes) {
        return Ok(());
    }
    Err(Error::Content {
        segment: segment.to_owned(),
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: &str = "00000001000000000000000A";

    #[tokio::test]
    async fn a_segment_comes_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("pg_wal")).expect("made");
        let (path, cancel) = (dir.path().join("pg_wal").join(SEGMENT), CancellationToken::new());
        let fetch = async |command: &str| fetch(dir.path(), command, SEGMENT, None, &cancel).await;
        assert!(matches!(fetch("echo %f > %p; false").await, Err(Error::Run(..))));
        assert!(matches!(
            fetch("true").await,
            Err(Error::Content { bytes: 0, .. })
        ));
        assert!(matches!(
            fetch("printf half > %p").await,
            Err(Error::Content { bytes: 4, .. })
        ));
        assert!(!path.exists(), "nothing is left behind");
        fs::write(dir.path().join(SEGMENT), vec![0; 1 << 20]).expect("written");
        fetch("cp %f %p").await.expect("fetched");
        assert_eq!(fs::metadata(&path).expect("there").len(), 1 << 20);
        assert!(matches!(fetch("echo > %p").await, Err(Error::There(_))));
        assert_eq!(fs::metadata(&path).expect("untouched").len(), 1 << 20);
    }
}
