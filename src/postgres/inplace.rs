//! A data directory that is filled where it is, by a command that knows no other place.
//!
//! The usual way is a side directory ([`super::staging`]). Where that is not possible the directory is marked as incomplete
//! for as long as the command works, and what was there is moved aside before and put back if the command fails:
//!
//! | a crash here | leaves | next time |
//! |---|---|---|
//! | before the command begins | the old data aside, an empty directory | made again, the data aside goes |
//! | while the command works | a marked directory | it counts as empty where there is a cluster, and is made again |
//!
//! Only for data of which another server has everything: the caller sees to that.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    datadir::{self, DataDir, classify},
    dynamic_copy,
    files::{self, Error, at, neighbour, optional},
    staging::{self, is_mount_point},
};

/// Ending of the name of what was moved aside.
const ASIDE: &str = ".howdah-aside";

/// A directory a command works in.
#[derive(Debug)]
pub struct InPlace {
    data_dir: PathBuf,
    aside: Option<PathBuf>,
    keep_data: bool,
}

impl InPlace {
    /// Makes the directory ready: with what is in it (`keep_data`), or empty.
    ///
    /// # Errors
    /// It cannot be written, or holds data and cannot be moved aside.
    pub fn begin(data_dir: &Path, keep_data: bool) -> Result<Self, Error> {
        let found = classify(data_dir, None);
        let aside = match found {
            DataDir::Empty => None,
            DataDir::Incomplete(_) if keep_data => None,
            DataDir::Incomplete(_) => {
                datadir::mark_beside(data_dir)?;
                staging::empty_out(data_dir)?;
                datadir::unmark_inside(data_dir)?;
                None
            }
            _ if keep_data => None,
            _ => Some(move_aside(data_dir)?),
        };
        staging::make_place(data_dir)?;
        datadir::mark_beside(data_dir)?;
        Ok(Self {
            data_dir: data_dir.to_owned(),
            aside,
            keep_data,
        })
    }

    /// The command has done its work.
    ///
    /// # Errors
    /// The marker or the old data cannot be removed.
    pub fn finish(self) -> Result<(), Error> {
        dynamic_copy::forget(&self.data_dir)?;
        datadir::unmark_beside(&self.data_dir)?;
        // Also what an attempt that was cut short has left there.
        staging::remove_all(&neighbour(&self.data_dir, ASIDE))
    }

    /// The command failed: everything as it was, as far as that is possible. What was worked on stays marked.
    ///
    /// # Errors
    /// What the command left cannot be removed, or the old data not put back.
    pub fn give_up(self) -> Result<(), Error> {
        if self.keep_data {
            return Ok(());
        }
        staging::empty_out(&self.data_dir)?;
        if let Some(aside) = &self.aside {
            staging::remove_all(&self.data_dir)?;
            at("rename", aside, fs::rename(aside, &self.data_dir))?;
        }
        datadir::unmark_beside(&self.data_dir)
    }
}

fn move_aside(data_dir: &Path) -> Result<PathBuf, Error> {
    let aside = neighbour(data_dir, ASIDE);
    staging::remove_all(&aside)?;
    at("move aside", data_dir, fs::rename(data_dir, &aside))?;
    if let Some(parent) = data_dir.parent() {
        files::sync_dir(parent)?;
    }
    Ok(aside)
}

/// Whether a marker beside the directory is as durable as the directory.
pub(super) fn has_neighbours(dir: &Path) -> bool {
    let link = optional("look at", dir, fs::symlink_metadata(dir));
    !is_mount_point(dir) && !link.is_ok_and(|meta| meta.is_some_and(|meta| meta.is_symlink()))
}

#[cfg(test)]
mod tests {
    use super::{super::datadir::Unfinished, *};

    fn data(root: &Path, content: &str) -> PathBuf {
        let dir = root.join("data");
        fs::create_dir_all(dir.join("global")).expect("folder");
        for (name, text) in [("PG_VERSION", "15\n"), ("global/pg_control", content)] {
            fs::write(dir.join(name), text).expect("file");
        }
        fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("mode");
        dir
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .expect("listable")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn old_data_comes_back_when_the_command_fails() {
        let root = tempfile::tempdir().expect("temporary directory");
        let dir = data(root.path(), "old");
        let place = InPlace::begin(&dir, false).expect("begun");
        assert!(names(&dir).is_empty(), "the command finds an empty directory");
        assert_eq!(classify(&dir, None), DataDir::Incomplete(Unfinished::Copy));
        fs::write(dir.join("half"), "new").expect("file");
        place.give_up().expect("given up");
        assert!(matches!(classify(&dir, None), DataDir::Valid(_)));
        assert_eq!(
            fs::read_to_string(dir.join("global/pg_control")).expect("there"),
            "old"
        );
        assert_eq!(names(root.path()), ["data"]);
    }

    #[test]
    fn old_data_goes_when_the_command_succeeds() {
        let root = tempfile::tempdir().expect("temporary directory");
        let dir = data(root.path(), "old");
        let place = InPlace::begin(&dir, false).expect("begun");
        data(root.path(), "new");
        assert_eq!(
            classify(&dir, None),
            DataDir::Incomplete(Unfinished::Copy),
            "not before the end"
        );
        place.finish().expect("finished");
        assert!(matches!(classify(&dir, None), DataDir::Valid(_)));
        assert_eq!(
            fs::read_to_string(dir.join("global/pg_control")).expect("there"),
            "new"
        );
        assert_eq!(names(root.path()), ["data"]);
    }

    #[test]
    fn data_that_is_worked_on_stays_marked_after_a_failure() {
        let root = tempfile::tempdir().expect("temporary directory");
        let dir = data(root.path(), "old");
        let place = InPlace::begin(&dir, true).expect("begun");
        assert_eq!(
            fs::read_to_string(dir.join("global/pg_control")).expect("there"),
            "old"
        );
        place.give_up().expect("given up");
        assert_eq!(classify(&dir, None), DataDir::Incomplete(Unfinished::Copy));
        // What an attempt has left is no data.
        let place = InPlace::begin(&dir, false).expect("begun again");
        assert!(names(&dir).is_empty());
        place.give_up().expect("given up");
        assert_eq!(classify(&dir, None), DataDir::Empty);
        assert_eq!(names(root.path()), ["data"]);
    }
}
