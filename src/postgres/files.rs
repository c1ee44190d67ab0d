//! Writing small files so that a reader sees the old or the new content, never half of it.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

/// What could not be done with which file.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub struct Error {
    /// The verb, e.g. `write`.
    pub action: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// Why the operating system refused.
    #[source]
    pub source: io::Error,
}

impl Error {
    /// The disk (or the quota) is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// Gives an I/O result the words "verb path".
pub(crate) fn at<T>(action: &'static str, path: &Path, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error {
        action,
        path: path.to_owned(),
        source,
    })
}

/// Like [`at`], with "is not there" as a `None`.
pub(crate) fn optional<T>(
    action: &'static str,
    path: &Path,
    result: io::Result<T>,
) -> Result<Option<T>, Error> {
    match result {
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        other => at(action, path, other.map(Some)),
    }
}

/// Writes a file completely or not at all: a temporary neighbour is written, synced and renamed over it.
///
/// `mode` is set exactly, whatever the umask says. When root writes, the file gets the owner of its directory,
/// because PostgreSQL (which never runs as root) must be able to read it.
///
/// # Errors
/// The step that failed; the old file is then still there, unchanged.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new("."));
    let temporary = neighbour(path, &format!(".{}.tmp", std::process::id()));
    // A temporary left by a crash under the same pid would make create_new fail for ever.
    optional("remove", &temporary, fs::remove_file(&temporary))?;
    let written = write_new(&temporary, dir, content, mode)
        .and_then(|()| at("replace", path, fs::rename(&temporary, path)));
    if written.is_err() {
        // The error that matters is already known; a left-over temporary is only untidy.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    sync_dir(dir)
}

fn write_new(path: &Path, dir: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = at("create", path, options.open(path))?;
    at("write", path, file.write_all(content))?;
    if rustix::process::geteuid().is_root() {
        let owner = at("look at", dir, fs::metadata(dir))?;
        let owned = chown(path, Some(owner.uid()), Some(owner.gid()));
        at("change the owner of", path, owned)?;
    }
    let permissions = fs::Permissions::from_mode(mode);
    at("change the mode of", path, file.set_permissions(permissions))?;
    at("sync", path, file.sync_all())
}

/// Removes a file; absent is fine.
///
/// # Errors
/// It cannot be removed.
pub fn remove_if_there(path: &Path) -> Result<(), Error> {
    optional("remove", path, fs::remove_file(path)).map(drop)
}

/// Writes only when the content or the mode differs; returns whether it did.
///
/// # Errors
/// As [`write_atomic`]; a file that cannot be read counts as different.
pub fn write_if_changed(path: &Path, content: &[u8], mode: u32) -> Result<bool, Error> {
    let same_mode = fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o7777 == mode);
    if same_mode && fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    write_atomic(path, content, mode).map(|()| true)
}

/// The mode of a file that belongs to the data directory: group-readable if the directory is
/// (contract: PostgreSQL configuration §1).
#[must_use]
pub fn file_mode(data_dir: &Path) -> u32 {
    match fs::metadata(data_dir) {
        Ok(meta) if meta.mode() & 0o040 != 0 => 0o640,
        _ => 0o600,
    }
}

/// Makes renames and creations in a directory durable.
///
/// # Errors
/// The directory cannot be opened or synced.
pub fn sync_dir(dir: &Path) -> Result<(), Error> {
    let handle = at("open", dir, File::open(dir))?;
    at("sync", dir, handle.sync_all())
}

/// Writes everything of the file system that holds `dir` to disk, in one go. For a directory of a thousand
/// fresh small files this is far quicker than syncing each.
///
/// # Errors
/// The directory cannot be opened, or data could not be written.
pub fn sync_file_system(dir: &Path) -> Result<(), Error> {
    let handle = at("open", dir, File::open(dir))?;
    at(
        "sync the file system of",
        dir,
        rustix::fs::syncfs(&handle).map_err(Into::into),
    )
}

/// `path` with `suffix` put behind its file name.
#[must_use]
pub fn neighbour(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().map(OsString::from).unwrap_or_default();
    name.push(suffix);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_content_and_sets_the_mode() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("f");
        write_atomic(&path, b"one", 0o600).expect("first write");
        write_atomic(&path, b"two", 0o640).expect("second write");
        assert_eq!(fs::read(&path).expect("readable"), b"two");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).expect("listable").count(), 1);
    }

    #[test]
    fn leaves_an_equal_file_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("f");
        assert!(write_if_changed(&path, b"x", 0o600).expect("write"));
        assert!(!write_if_changed(&path, b"x", 0o600).expect("no write"));
        assert!(write_if_changed(&path, b"x", 0o640).expect("mode change"));
    }

    #[test]
    fn an_error_names_the_file() {
        let error = write_atomic(Path::new("/nonexistent/f"), b"", 0o600).expect_err("no directory");
        assert!(error.to_string().contains("/nonexistent/f"), "{error}");
    }

    #[test]
    fn files_follow_the_group_bit_of_the_data_directory() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let set = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode));
        set(0o700).expect("chmod");
        assert_eq!(file_mode(dir.path()), 0o600);
        set(0o750).expect("chmod");
        assert_eq!(file_mode(dir.path()), 0o640);
    }
}
