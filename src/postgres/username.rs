//! A name for a user that has none. initdb and single-user mode ask the system for the name of their user; an
//! arbitrary uid (`--user 4711`, OpenShift) has none, so a wrapper library answers instead, for that one program.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt, chown},
    path::{Path, PathBuf},
};

use super::{
    command::Command,
    files::{Error, at, optional},
};

/// Gives the program a user name if its user has none and the library is installed. The files it needs are made in
/// `dir`.
pub(super) fn with_user_name(
    command: Command,
    dir: &Path,
    identity: Option<(u32, u32)>,
    temporary: &mut Temporary,
) -> Result<Command, Error> {
    let own = || {
        (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        )
    };
    let (uid, gid) = identity.unwrap_or_else(own);
    if matches!(nix::unistd::User::from_uid(uid.into()), Ok(Some(_))) {
        return Ok(command);
    }
    let Some(library) = nss_wrapper(Path::new("/usr/lib")) else {
        tracing::warn!(
            uid,
            "this user has no name and libnss_wrapper.so is not installed, PostgreSQL will refuse"
        );
        return Ok(command);
    };
    let passwd = format!("postgres:x:{uid}:{gid}:PostgreSQL:/tmp:/bin/false\n");
    let passwd = temporary.write(&dir.join(".howdah-passwd"), &passwd, 0o644, identity)?;
    let group = format!("postgres:x:{gid}:\n");
    let group = temporary.write(&dir.join(".howdah-group"), &group, 0o644, identity)?;
    Ok(command
        .env("LD_PRELOAD", library)
        .env("NSS_WRAPPER_PASSWD", passwd)
        .env("NSS_WRAPPER_GROUP", group))
}

/// `libnss_wrapper.so` below the library folder or one of its architecture folders.
fn nss_wrapper(lib: &Path) -> Option<PathBuf> {
    let folders = lib
        .read_dir()
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .chain([lib.to_owned()]);
    folders
        .map(|folder| folder.join("libnss_wrapper.so"))
        .find(|file| file.exists())
}

/// Files that exist only while a program runs; removed on drop.
#[derive(Default)]
pub(super) struct Temporary(Vec<PathBuf>);

impl Temporary {
    /// Makes a file the program can read, and nobody else if `mode` says so.
    pub(super) fn write(
        &mut self,
        path: &Path,
        content: &str,
        mode: u32,
        identity: Option<(u32, u32)>,
    ) -> Result<PathBuf, Error> {
        optional("remove", path, fs::remove_file(path))?;
        let mut options = fs::OpenOptions::new();
        let mut file = at(
            "create",
            path,
            options.write(true).create_new(true).mode(mode).open(path),
        )?;
        self.0.push(path.to_owned());
        at("write", path, file.write_all(content.as_bytes()))?;
        if let Some((uid, gid)) = identity {
            at("change the owner of", path, chown(path, Some(uid), Some(gid)))?;
        }
        Ok(path.to_owned())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        for file in &self.0 {
            if let Err(error) = fs::remove_file(file) {
                tracing::warn!(file = %file.display(), %error, "cannot remove a temporary file");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wrapper_library_is_found_in_its_architecture_folder() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(nss_wrapper(dir.path()), None);
        let folder = dir.path().join("x86_64-linux-gnu");
        fs::create_dir(&folder).expect("folder");
        fs::write(folder.join("libnss_wrapper.so"), "").expect("file");
        assert_eq!(nss_wrapper(dir.path()), Some(folder.join("libnss_wrapper.so")));
        assert_eq!(nss_wrapper(Path::new("/nonexistent")), None);
    }

    #[test]
    fn temporary_files_go_away_and_are_private() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("pw");
        let mut temporary = Temporary::default();
        temporary.write(&path, "secret", 0o600, None).expect("written");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        drop(temporary);
        assert!(!path.exists());
    }
}
