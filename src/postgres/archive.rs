//! Archiving the segments a stopped former primary had ready, before a rewind removes them: they may be the only
//! copy of the end of its timeline (contract: HA rules §12b).

use std::{fs, path::Path, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    command::{self, Command},
    files::{self, at, optional},
};
use crate::model::{Lsn, Timeline};

/// Time one segment may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// Why archiving stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive status folder cannot be used.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The archive command failed.
    #[error("archive {segment}")]
    Run {
        /// Name of the WAL file.
        segment: String,
        /// How.
        #[source]
        source: command::Error,
    },
}

/// `archive_command` for one file: `%p` is its path from the data directory, `%f` its name, `%%` a percent sign.
#[must_use]
pub fn expand(archive_command: &str, segment: &str) -> String {
    let mut text = String::with_capacity(archive_command.len() + 64);
    let mut chars = archive_command.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some('p') => text.push_str(&format!("pg_wal/{segment}")),
            Some('f') => text.push_str(segment),
            Some('%') => text.push('%'),
            other => {
                text.push('%');
                text.extend(other);
            }
        }
    }
    text
}

/// Names of the files marked `.ready`, oldest first: what the archiver has not archived yet.
///
/// # Errors
/// The folder exists and cannot be read.
pub fn ready(data_dir: &Path) -> Result<Vec<String>, Error> {
    let status = data_dir.join("pg_wal/archive_status");
    let mut segments = Vec::new();
    for entry in optional("list", &status, fs::read_dir(&status))?
        .into_iter()
        .flatten()
    {
        let name = at("list", &status, entry)?.file_name();
        // Names come from PostgreSQL; anything else could mean something to the shell.
        let segment = name.to_str().and_then(|name| name.strip_suffix(".ready"));
        let plain = |name: &&str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
        segments.extend(segment.filter(plain).map(str::to_owned));
    }
    segments.sort();
    Ok(segments)
}

/// Runs the archive command of a stopped instance for every file marked `.ready`, oldest first, and marks it
/// `.done`; returns how many.
///
/// # Errors
/// The first file that fails ends it.
pub async fn archive_ready(
    data_dir: &Path,
    archive_command: &str,
    identity: Option<(u32, u32)>,
    cancel: &CancellationToken,
) -> Result<usize, Error> {
    let status = data_dir.join("pg_wal/archive_status");
    let segments = ready(data_dir)?;
    for segment in &segments {
        let command = Command::new("sh").arg("-c").arg(expand(archive_command, segment));
        let command = command.cwd(data_dir).identity(identity).deadline(DEADLINE);
        let result = command.run(cancel).await;
        result.map_err(|source| Error::Run {
            segment: segment.clone(),
            source,
        })?;
        let ready = status.join(format!("{segment}.ready"));
        at(
            "rename",
            &ready,
            fs::rename(&ready, status.join(format!("{segment}.done"))),
        )?;
    }
    Ok(segments.len())
}

/// Marks the segment of a stopped instance that holds `lsn` as ready to be archived, although it is not full; nothing
/// happens where it is archived already or there is no such file.
///
/// # Errors
/// The WAL folder cannot be used.
pub fn mark_ready(data_dir: &Path, timeline: Timeline, lsn: Lsn) -> Result<(), Error> {
    let wal = data_dir.join("pg_wal");
    let is_segment = |name: &str| name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let mut size = 0;
    for entry in at("list", &wal, fs::read_dir(&wal))? {
        let entry = at("list", &wal, entry)?;
        if entry.file_name().to_str().is_some_and(is_segment) {
            // All have the size that initdb chose.
            size = at("look at", &entry.path(), entry.metadata())?.len();
            break;
        }
    }
    let Some(segment) = segment_name(timeline, lsn, size).filter(|name| wal.join(name).exists()) else {
        return Ok(());
    };
    let status = wal.join("archive_status");
    if status.join(format!("{segment}.done")).exists() {
        return Ok(());
    }
    Ok(files::write_atomic(
        &status.join(format!("{segment}.ready")),
        b"",
        0o600,
    )?)
}

/// Name of the WAL file of `size` bytes that holds a position.
fn segment_name(timeline: Timeline, lsn: Lsn, size: u64) -> Option<String> {
    let number = lsn.0.checked_div(size)?;
    let per_file_id = 0x1_0000_0000_u64.checked_div(size).filter(|n| *n > 0)?;
    Some(format!(
        "{:08X}{:08X}{:08X}",
        timeline.0,
        number / per_file_id,
        number % per_file_id
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_in_its_segment() {
        const MB: u64 = 1 << 20;
        let name = |lsn, size| segment_name(Timeline(2), Lsn(lsn), size);
        assert_eq!(
            name(0x2_0300_0028, 16 * MB).as_deref(),
            Some("000000020000000200000003")
        );
        assert_eq!(
            name(0x2_0300_0028, MB).as_deref(),
            Some("000000020000000200000030")
        );
        assert_eq!(name(1, 0), None);
    }

    #[test]
    fn the_last_segment_is_marked_once() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let status = dir.path().join("pg_wal/archive_status");
        fs::create_dir_all(&status).expect("folder");
        let segment = "000000010000000000000002";
        fs::write(dir.path().join("pg_wal").join(segment), vec![0; 1 << 20]).expect("file");
        mark_ready(dir.path(), Timeline(1), Lsn((2 << 20) + 40)).expect("marked");
        let (ready, done) = (
            status.join(format!("{segment}.ready")),
            status.join(format!("{segment}.done")),
        );
        assert!(ready.exists());
        fs::rename(&ready, &done).expect("archived");
        mark_ready(dir.path(), Timeline(1), Lsn((2 << 20) + 40)).expect("marked");
        assert!(!ready.exists());
        // No such file: nothing to archive.
        mark_ready(dir.path(), Timeline(1), Lsn(9 << 20)).expect("nothing");
        assert_eq!(fs::read_dir(&status).expect("list").count(), 1);
    }

    #[test]
    fn placeholders_are_filled() {
        assert_eq!(
            expand("cp %p /a/%f 100%% %x %", "0001"),
            "cp pg_wal/0001 /a/0001 100% %x %"
        );
    }

    #[tokio::test]
    async fn ready_files_are_archived_in_order_and_a_failure_stops() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let status = dir.path().join("pg_wal/archive_status");
        fs::create_dir_all(&status).expect("folder");
        for name in ["B.ready", "A.ready", "C.ready", "X.done", "a b.ready"] {
            fs::write(status.join(name), "").expect("file");
        }
        let cancel = CancellationToken::new();
        let command = "test %f != C && echo %p >> archived";
        let error = archive_ready(dir.path(), command, None, &cancel)
            .await
            .expect_err("C fails");
        assert_eq!(error.to_string(), "archive C");
        let archived = fs::read_to_string(dir.path().join("archived")).expect("written");
        assert_eq!(archived, "pg_wal/A\npg_wal/B\n");
        assert!(status.join("A.done").exists() && status.join("C.ready").exists());
        assert_eq!(
            archive_ready(dir.path(), "true", None, &cancel)
                .await
                .expect("only C"),
            1
        );
        assert_eq!(
            archive_ready(Path::new("/nonexistent"), "true", None, &cancel)
                .await
                .expect("none"),
            0
        );
    }
}
