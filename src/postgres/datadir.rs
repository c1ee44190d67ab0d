//! What a data directory is, before anybody starts or replaces it.
//!
//! The marker [`INCOMPLETE`] inside a directory says that a clone, an initdb or a swap did not finish there;
//! such a directory is never started. Making and swapping directories: [`super::staging`].

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::Access;

use super::{
    files::{self, at, neighbour},
    inplace::has_neighbours,
    staging::is_mount_point,
    version::Major,
};

/// Name of the marker file of an unfinished directory.
pub const INCOMPLETE: &str = ".howdah-incomplete";

/// Ending of the name of the same marker beside a directory.
const BESIDE: &str = ".howdah-incomplete";

/// What the marker says while a new cluster is made. Anything else: a copy of a cluster's data is made here, or its own
/// data is worked on.
pub const NEW_CLUSTER: &[u8] = b"bootstrap\n";

/// What did not finish in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfinished {
    /// The bootstrap of a cluster that nobody has used yet.
    NewCluster,
    /// A copy, a rewind, or an exchange of directories: there was a cluster.
    Copy,
}

/// What was found at the place of the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataDir {
    /// Nothing, or nothing but dot files and `lost+found`: free to be filled.
    Empty,
    /// A copy or an initdb did not finish here; it is to be made again.
    Incomplete(Unfinished),
    /// Something that must not be touched or cannot be used.
    Unusable(Reason),
    /// A data directory of this major version. Whether its content is sound only pg_control can tell.
    Valid(Major),
}

/// Why a directory can neither be started nor filled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It is a file or something stranger.
    #[error("it is not a directory")]
    NotADirectory,
    /// It cannot be looked at.
    #[error("it cannot be read ({0})")]
    Unreadable(String),
    /// PostgreSQL insists on being the owner.
    #[error(
        "it belongs to user {owner}, but this process runs as user {user} and PostgreSQL must own its data \
             (change the owner, or put the data into a subdirectory)"
    )]
    Owner {
        /// User id of the owner.
        owner: u32,
        /// Our own user id.
        user: u32,
    },
    /// PostgreSQL refuses directories others can use. [`repair_mode`] can mend it.
    #[error("its mode is {mode:04o}, PostgreSQL accepts only 0700 and 0750")]
    Mode {
        /// Permission bits.
        mode: u32,
    },
    /// Files of something else.
    #[error("it holds files, but no PostgreSQL data (for example '{example}')")]
    Foreign {
        /// One of the files.
        example: String,
    },
    /// `PG_VERSION` is not a version.
    #[error("its PG_VERSION file is damaged ({0})")]
    Version(String),
    /// `PG_VERSION` is there, `global/pg_control` is not, or the other way round.
    #[error("it looks like PostgreSQL data, but {0} is missing")]
    Damaged(&'static str),
}

/// Looks at a data directory as the given user (our effective user when `None`).
#[must_use]
pub fn classify(dir: &Path, user: Option<u32>) -> DataDir {
    let user = user.unwrap_or_else(|| rustix::process::geteuid().as_raw());
    match look(dir, user) {
        Ok(found) => found,
        Err(error) => DataDir::Unusable(Reason::Unreadable(error.to_string())),
    }
}

fn look(dir: &Path, user: u32) -> io::Result<DataDir> {
    let meta = match fs::metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(DataDir::Empty),
        other => other?,
    };
    if !meta.is_dir() {
        return Ok(DataDir::Unusable(Reason::NotADirectory));
    }
    let mut unfinished = None;
    for marker in markers(dir) {
        match fs::read(&marker) {
            Ok(text) if text == NEW_CLUSTER => unfinished = Some(Unfinished::NewCluster),
            Ok(_) => {
                unfinished.get_or_insert(Unfinished::Copy);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if let Some(what) = unfinished {
        return Ok(DataDir::Incomplete(what));
    }
    let has_control = dir.join("global/pg_control").try_exists()?;
    let Some(example) = visible_entry(dir)? else {
        // Hidden files do not matter: volumes are born with some.
        return Ok(empty_place(dir, &meta, user));
    };
    let version = match fs::read_to_string(dir.join("PG_VERSION")) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok(match (version, has_control) {
        (None, false) => DataDir::Unusable(Reason::Foreign { example }),
        (None, true) => DataDir::Unusable(Reason::Damaged("PG_VERSION")),
        (Some(_), false) => DataDir::Unusable(Reason::Damaged("global/pg_control")),
        (Some(text), true) => match Major::parse_pg_version(&text) {
            Err(error) => DataDir::Unusable(Reason::Version(error.to_string())),
            Ok(major) => access(&meta, user).map_or(DataDir::Valid(major), DataDir::Unusable),
        },
    })
}

/// An empty directory of somebody else's can be replaced by one of our own, unless it is a mount point or its
/// parent is closed to us. Better told now than after an hour of copying. Root can change owners.
fn empty_place(dir: &Path, meta: &Metadata, user: u32) -> DataDir {
    if meta.uid() == user || rustix::process::geteuid().is_root() {
        return DataDir::Empty;
    }
    let parent = dir.parent().unwrap_or(Path::new("/"));
    let replaceable = !is_mount_point(dir) && rustix::fs::access(parent, Access::WRITE_OK).is_ok();
    if replaceable {
        DataDir::Empty
    } else {
        DataDir::Unusable(Reason::Owner {
            owner: meta.uid(),
            user,
        })
    }
}

/// Owner and mode as the postmaster checks them (PostgreSQL: `checkDataDir` in `miscinit.c`).
fn access(meta: &Metadata, user: u32) -> Option<Reason> {
    if meta.uid() != user {
        return Some(Reason::Owner {
            owner: meta.uid(),
            user,
        });
    }
    let mode = meta.mode() & 0o7777;
    (mode & 0o027 != 0).then_some(Reason::Mode { mode })
}

fn visible_entry(dir: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') && name != "lost+found" {
            return Ok(Some(name.into_owned()));
        }
    }
    Ok(None)
}

/// Marks a directory as incomplete before a command fills it that wants it empty: the marker lies beside it, or, where
/// the folder around it is not ours, in it.
///
/// # Errors
/// Neither can be written.
pub fn mark_beside(dir: &Path) -> Result<(), files::Error> {
    let inside = || files::write_atomic(&dir.join(INCOMPLETE), b"", 0o600);
    if !has_neighbours(dir) {
        return inside();
    }
    files::write_atomic(&neighbour(dir, BESIDE), b"", 0o600).or_else(|_| inside())
}

/// Every place where the marker may lie.
fn markers(dir: &Path) -> [PathBuf; 2] {
    [dir.join(INCOMPLETE), neighbour(dir, BESIDE)]
}

/// The marker of [`mark_beside`] says from now on that a new cluster is made here.
///
/// # Errors
/// It cannot be written.
pub fn mark_new_cluster(dir: &Path) -> Result<(), files::Error> {
    for marker in markers(dir).iter().filter(|marker| marker.exists()) {
        files::write_atomic(marker, NEW_CLUSTER, 0o600)?;
    }
    Ok(())
}

/// Removes the marker in a directory that has one beside it too.
pub(super) fn unmark_inside(dir: &Path) -> Result<(), files::Error> {
    match neighbour(dir, BESIDE).exists() {
        true => files::remove_if_there(&dir.join(INCOMPLETE)),
        false => Ok(()),
    }
}

/// Takes the marker of [`mark_beside`] back, wherever it is.
///
/// # Errors
/// It cannot be removed.
pub fn unmark_beside(dir: &Path) -> Result<(), files::Error> {
    for marker in markers(dir) {
        files::optional("remove", &marker, fs::remove_file(&marker))?;
    }
    // A marker that came back after a power failure would make served data count as unfinished.
    for folder in [Some(dir), dir.parent()].into_iter().flatten() {
        files::sync_dir(folder)?;
    }
    Ok(())
}

/// Takes away the rights PostgreSQL refuses, e.g. from a volume that is group-writable. The group keeps
/// reading if it could.
///
/// # Errors
/// Only the owner may do that.
pub fn repair_mode(dir: &Path) -> Result<(), files::Error> {
    let meta = at("look at", dir, fs::metadata(dir))?;
    let mode = if meta.mode() & 0o050 == 0o050 {
        0o750
    } else {
        0o700
    };
    at(
        "change the mode of",
        dir,
        fs::set_permissions(dir, fs::Permissions::from_mode(mode)),
    )
}

/// Directories of this data directory that lie outside it: the target of a linked `pg_wal` and those of the
/// tablespaces.
///
/// # Errors
/// The directory cannot be listed.
pub fn outside_targets(dir: &Path) -> Result<Vec<PathBuf>, files::Error> {
    let mut links = vec![dir.join("pg_wal")];
    let tablespaces = dir.join("pg_tblspc");
    for entry in files::optional("list", &tablespaces, fs::read_dir(&tablespaces))?
        .into_iter()
        .flatten()
    {
        links.push(at("list", &tablespaces, entry)?.path());
    }
    Ok(links
        .into_iter()
        .filter_map(|link| fs::read_link(link).ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary directory");
        for (name, content) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("has a parent")).expect("folder");
            fs::write(path, content).expect("file");
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("chmod");
        dir
    }

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: DataDir) {
        assert_eq!(classify(dir_with(files).path(), None), expected, "{files:?}");
    }

    #[test]
    fn absent_hidden_and_lost_and_found_are_empty() {
        assert_eq!(classify(Path::new("/nonexistent/data"), None), DataDir::Empty);
        check(&[], DataDir::Empty);
        check(&[(".snapshot/x", ""), ("lost+found/x", "")], DataDir::Empty);
    }

    #[test]
    fn a_data_directory_tells_its_version() {
        check(
            &[("PG_VERSION", "15\n"), ("global/pg_control", "x")],
            DataDir::Valid(Major(15)),
        );
    }

    #[test]
    fn an_unfinished_copy_is_never_valid() {
        check(
            &[
                ("PG_VERSION", "15\n"),
                ("global/pg_control", "x"),
                (INCOMPLETE, ""),
            ],
            DataDir::Incomplete(Unfinished::Copy),
        );
        let bootstrap = [("PG_VERSION", "15\n"), (INCOMPLETE, "bootstrap\n")];
        check(&bootstrap, DataDir::Incomplete(Unfinished::NewCluster));
    }

    #[test]
    fn the_marker_beside_a_directory_says_what_was_begun() {
        let root = dir_with(&[]);
        let dir = root.path().join("data");
        fs::create_dir(&dir).expect("folder");
        mark_beside(&dir).expect("marked");
        assert_eq!(classify(&dir, None), DataDir::Incomplete(Unfinished::Copy));
        mark_new_cluster(&dir).expect("said");
        assert_eq!(classify(&dir, None), DataDir::Incomplete(Unfinished::NewCluster));
        unmark_beside(&dir).expect("taken back");
        assert_eq!(classify(&dir, None), DataDir::Empty);
        // Nothing was begun.
        mark_new_cluster(&dir).expect("nothing to do");
        assert_eq!(classify(&dir, None), DataDir::Empty);
    }

    #[test]
    fn other_peoples_files_are_left_alone() {
        check(
            &[("photo.jpg", "")],
            DataDir::Unusable(Reason::Foreign {
                example: "photo.jpg".into(),
            }),
        );
        let file = dir_with(&[("f", "")]);
        let found = classify(&file.path().join("f"), None);
        assert_eq!(found, DataDir::Unusable(Reason::NotADirectory));
    }

    #[test]
    fn damage_is_named() {
        check(
            &[("PG_VERSION", "15\n")],
            DataDir::Unusable(Reason::Damaged("global/pg_control")),
        );
        check(
            &[("global/pg_control", "x")],
            DataDir::Unusable(Reason::Damaged("PG_VERSION")),
        );
        let dir = dir_with(&[("PG_VERSION", "rubbish"), ("global/pg_control", "x")]);
        assert!(matches!(
            classify(dir.path(), None),
            DataDir::Unusable(Reason::Version(_))
        ));
    }

    #[test]
    fn wrong_owner_and_mode_are_told_and_the_mode_can_be_mended() {
        let dir = dir_with(&[("PG_VERSION", "15\n"), ("global/pg_control", "x")]);
        let other = classify(dir.path(), Some(4711));
        assert!(
            matches!(other, DataDir::Unusable(Reason::Owner { user: 4711, .. })),
            "{other:?}"
        );
        let set = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode));
        set(0o2770).expect("chmod");
        assert_eq!(
            classify(dir.path(), None),
            DataDir::Unusable(Reason::Mode { mode: 0o2770 })
        );
        repair_mode(dir.path()).expect("ours");
        assert_eq!(classify(dir.path(), None), DataDir::Valid(Major(15)));
    }

    #[test]
    fn directories_outside_are_found() {
        let dir = dir_with(&[("pg_tblspc/x", "")]);
        std::os::unix::fs::symlink("/wal", dir.path().join("pg_wal")).expect("link");
        std::os::unix::fs::symlink("/space", dir.path().join("pg_tblspc/16384")).expect("link");
        let targets = outside_targets(dir.path()).expect("listable");
        assert_eq!(targets, [Path::new("/wal"), Path::new("/space")]);
    }
}
