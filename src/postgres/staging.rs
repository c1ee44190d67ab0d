//! Making a new data directory beside the old one and putting it in its place.
//!
//! The new copy is made in a side directory. Only when it is complete does the old directory go away, in one
//! atomic exchange where the file system can do that. Where the data directory cannot be renamed (it is a mount
//! point, or its parent is not writable) the side directory is a hidden folder inside it, and entries are moved
//! one by one under the protection of a marker file:
//!
//! | a crash here | leaves | next time |
//! |---|---|---|
//! | while the copy is made | old data as it was, a side directory | [`Staging::prepare`] clears it |
//! | while the copy is put in place | a complete side directory, marked `.howdah-installing` | [`finish_interrupted`] goes on |

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, chown},
    path::{Path, PathBuf},
};

use rustix::fs::{Access, CWD, RenameFlags};

use super::{
    datadir::INCOMPLETE,
    dynamic_copy,
    files::{self, Error, at, neighbour, optional},
};

/// Marker inside a side directory: the copy is complete and is being put in place.
const INSTALLING: &str = ".howdah-installing";
/// Name of the side directory inside a data directory that cannot be renamed.
const INSIDE: &str = ".howdah-new";
/// Begin of the name of kept data inside a data directory that cannot be renamed.
const ATTIC: &str = ".replaced-";
/// Ending of the side directory next to the data directory.
const BESIDE: &str = ".howdah-new";

/// What becomes of data that is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldData {
    /// It is known to be a mere copy: removed once the new copy is in place.
    Remove,
    /// It may hold something that exists nowhere else: kept under another name.
    KeepRenamed,
}

/// A side directory in which a new copy is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staging {
    data_dir: PathBuf,
    side: PathBuf,
    inside: bool,
}

impl Staging {
    /// Clears what earlier attempts left and makes an empty side directory with mode 0700. The old data is not
    /// touched.
    ///
    /// # Errors
    /// Neither the parent nor the data directory can be written.
    pub fn prepare(data_dir: &Path) -> Result<Self, Error> {
        let staging = Self::at(data_dir)?;
        if staging.inside {
            let exists = optional("look at", data_dir, fs::metadata(data_dir))?.is_some();
            if !exists {
                make_dir(data_dir)?;
            }
        }
        remove_all(&neighbour(data_dir, BESIDE))?;
        remove_all(&data_dir.join(INSIDE))?;
        make_dir(&staging.side)?;
        Ok(staging)
    }

    fn at(data_dir: &Path) -> Result<Self, Error> {
        let parent = data_dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let there = optional("look at", data_dir, fs::symlink_metadata(data_dir))?;
        if there.is_none() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(parent);
            at("create", parent, made)?;
        }
        let writable = rustix::fs::access(parent, Access::WRITE_OK | Access::EXEC_OK).is_ok();
        let fixed = there.is_some_and(|meta| meta.is_symlink()) || is_mount_point(data_dir);
        let inside = fixed || !writable;
        let side = if inside {
            data_dir.join(INSIDE)
        } else {
            neighbour(data_dir, BESIDE)
        };
        Ok(Self {
            data_dir: data_dir.to_owned(),
            side,
            inside,
        })
    }

    /// The empty directory to fill.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.side
    }

    /// Removes the side directory after a failed attempt, so that it does not fill the disk.
    ///
    /// # Errors
    /// The first entry that could not be removed.
    pub fn discard(&self) -> Result<(), Error> {
        remove_all(&self.side)
    }

    /// Empties the side directory for another attempt.
    ///
    /// # Errors
    /// It cannot be removed or made again.
    pub fn clear(&self) -> Result<(), Error> {
        self.discard()?;
        make_dir(&self.side)
    }

    /// Puts the complete side directory in the place of the data directory. `stamp` (UTC, e.g.
    /// `20260105T081000Z`) becomes part of the name of data that is kept. Returns where that is.
    ///
    /// # Errors
    /// The step that failed. [`finish_interrupted`] can go on from there once the cause is gone.
    pub fn install(&self, old: OldData, stamp: &str) -> Result<Option<PathBuf>, Error> {
        let kept = neighbour(&self.data_dir, &format!(".replaced-{stamp}"));
        let plan = if old == OldData::KeepRenamed { stamp } else { "" };
        dynamic_copy::forget(&self.side)?;
        files::write_atomic(&self.side.join(INSTALLING), plan.as_bytes(), 0o600)?;
        let kept = if self.inside {
            self.move_in(old, stamp)?
        } else {
            self.exchange(old, kept)?
        };
        if let Some(kept) = &kept {
            tracing::warn!(kept = %kept.display(), "the replaced data was renamed, remove it when it is not needed");
        }
        Ok(kept)
    }

    fn exchange(&self, old: OldData, kept: PathBuf) -> Result<Option<PathBuf>, Error> {
        let replaced = neighbour(&self.data_dir, ".howdah-old");
        let there = optional("look at", &self.data_dir, fs::symlink_metadata(&self.data_dir))?;
        let had_data = there.is_some() && !is_free(&self.data_dir);
        if there.is_none() {
            at("rename", &self.side, fs::rename(&self.side, &self.data_dir))?;
        } else {
            remove_all(&replaced)?;
            let exchanged =
                rustix::fs::renameat_with(CWD, &self.side, CWD, &self.data_dir, RenameFlags::EXCHANGE);
            match exchanged {
                Ok(()) => at("rename", &self.side, fs::rename(&self.side, &replaced))?,
                // Not every file system can exchange. A crash between these two leaves no data directory but a
                // marked side directory, which finish_interrupted puts in place.
                Err(_) => {
                    at("rename", &self.data_dir, fs::rename(&self.data_dir, &replaced))?;
                    at("rename", &self.side, fs::rename(&self.side, &self.data_dir))?;
                }
            }
        }
        let kept = if had_data && old == OldData::KeepRenamed {
            at("rename", &replaced, fs::rename(&replaced, &kept))?;
            Some(kept)
        } else {
            None
        };
        self.settle()?;
        remove_all(&replaced)?;
        Ok(kept)
    }

    fn move_in(&self, old: OldData, stamp: &str) -> Result<Option<PathBuf>, Error> {
        let marker = self.side.join(INCOMPLETE);
        let says = optional("read", &marker, fs::read(&marker))?.unwrap_or_default();
        files::write_atomic(&self.data_dir.join(INCOMPLETE), &says, 0o600)?;
        let attic = self.data_dir.join(format!("{ATTIC}{stamp}"));
        let mut kept = None;
        // Once an entry of the new copy has arrived, what is visible is no longer (only) the old data. The
        // version file arrives first, so its absence here means: everything old is already out of the way.
        if fs::symlink_metadata(self.side.join("PG_VERSION")).is_ok() {
            for entry in entries(&self.data_dir)? {
                let name = entry
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned())
                    .unwrap_or_default();
                if name.starts_with('.') || name == "lost+found" {
                    continue;
                }
                if old == OldData::KeepRenamed {
                    if optional("look at", &attic, fs::metadata(&attic))?.is_none() {
                        make_dir(&attic)?;
                    }
                    at("move", &entry, fs::rename(&entry, attic.join(&name)))?;
                    kept = Some(attic.clone());
                } else {
                    remove_all(&entry)?;
                }
            }
            files::sync_dir(&self.data_dir)?;
            let (from, to) = (self.side.join("PG_VERSION"), self.data_dir.join("PG_VERSION"));
            at("move", &from, fs::rename(&from, to))?;
            files::sync_dir(&self.data_dir)?;
        }
        for entry in entries(&self.side)? {
            let name = entry.file_name().unwrap_or_default();
            if name != INSTALLING {
                at("move", &entry, fs::rename(&entry, self.data_dir.join(name)))?;
            }
        }
        // A volume's root is often open to the group; PostgreSQL would refuse it. Not being the owner is told by
        // the classification that follows.
        let mode = at("look at", &self.side, fs::metadata(&self.side))?.permissions();
        let _ = fs::set_permissions(&self.data_dir, mode);
        files::sync_dir(&self.data_dir)?;
        let marker = self.data_dir.join(INCOMPLETE);
        optional("remove", &marker, fs::remove_file(&marker))?;
        remove_all(&self.side)?;
        files::sync_dir(&self.data_dir)?;
        Ok(kept)
    }

    fn settle(&self) -> Result<(), Error> {
        let marker = self.data_dir.join(INSTALLING);
        optional("remove", &marker, fs::remove_file(&marker))?;
        files::sync_dir(&self.data_dir)?;
        self.data_dir.parent().map_or(Ok(()), files::sync_dir)
    }
}

/// Finishes an [`Staging::install`] that a crash interrupted. To be called before the data directory is
/// classified. Returns whether there was anything to finish.
///
/// # Errors
/// As [`Staging::install`].
pub fn finish_interrupted(data_dir: &Path) -> Result<bool, Error> {
    // The exchange was done, only the tidying was not: the old data waits under the side name (or the next one).
    let arrived = data_dir.join(INSTALLING);
    if let Some(plan) = optional("read", &arrived, fs::read_to_string(&arrived))? {
        for left in [neighbour(data_dir, BESIDE), neighbour(data_dir, ".howdah-old")] {
            if !plan.is_empty() && !is_free(&left) {
                let kept = neighbour(data_dir, &format!(".replaced-{plan}"));
                at("rename", &left, fs::rename(&left, kept))?;
            }
            remove_all(&left)?;
        }
        optional("remove", &arrived, fs::remove_file(&arrived))?;
        return Ok(true);
    }
    for (side, inside) in [
        (neighbour(data_dir, BESIDE), false),
        (data_dir.join(INSIDE), true),
    ] {
        let marker = side.join(INSTALLING);
        let Some(plan) = optional("read", &marker, fs::read_to_string(&marker))? else {
            continue;
        };
        let old = if plan.is_empty() {
            OldData::Remove
        } else {
            OldData::KeepRenamed
        };
        let staging = Staging {
            data_dir: data_dir.to_owned(),
            side,
            inside,
        };
        let parked = neighbour(data_dir, ".howdah-old");
        let moved_away = !inside && !data_dir.exists() && parked.exists();
        if moved_away && old == OldData::KeepRenamed {
            let kept = neighbour(data_dir, &format!(".replaced-{plan}"));
            at("rename", &parked, fs::rename(&parked, kept))?;
        }
        staging.install(old, &plan)?;
        if moved_away {
            remove_all(&parked)?;
        }
        return Ok(true);
    }
    Ok(false)
}

/// Kept data inside the data directory, where a volume is mounted exactly there. Every base backup carries it along and
/// pg_rewind destroys it.
#[must_use]
pub fn attics_inside(data_dir: &Path) -> Vec<PathBuf> {
    let kept = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(ATTIC))
    };
    entries(data_dir)
        .unwrap_or_default()
        .into_iter()
        .filter(kept)
        .collect()
}

/// The time as it is put into the names of kept data.
#[must_use]
pub fn stamp(now: jiff::Timestamp) -> String {
    now.strftime("%Y%m%dT%H%M%SZ").to_string()
}

fn make_dir(dir: &Path) -> Result<(), Error> {
    at("create", dir, fs::DirBuilder::new().mode(0o700).create(dir))?;
    if rustix::process::geteuid().is_root() {
        let parent = dir.parent().unwrap_or(Path::new("/"));
        let owner = at("look at", parent, fs::metadata(parent))?;
        at(
            "change the owner of",
            dir,
            chown(dir, Some(owner.uid()), Some(owner.gid())),
        )?;
    }
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = at("list", dir, fs::read_dir(dir))?;
    list.map(|entry| at("list", dir, entry.map(|entry| entry.path())))
        .collect()
}

/// Nothing of value: absent, or nothing but hidden files.
fn is_free(dir: &Path) -> bool {
    let visible = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| !name.to_string_lossy().starts_with('.') && name != "lost+found")
    };
    match entries(dir) {
        Ok(list) => !list.iter().any(visible),
        Err(error) => error.source.kind() == io::ErrorKind::NotFound,
    }
}

/// Makes the directory if it is not there, as [`Staging::prepare`] makes its own.
pub(super) fn make_place(dir: &Path) -> Result<(), Error> {
    match optional("look at", dir, fs::symlink_metadata(dir))? {
        Some(_) => Ok(()),
        None => make_dir(dir),
    }
}

/// Removes what is in a directory that counts as empty: nothing in it was ever served. Its marker stays.
pub(super) fn empty_out(dir: &Path) -> Result<(), Error> {
    if optional("look at", dir, fs::symlink_metadata(dir))?.is_none() {
        return Ok(());
    }
    for entry in entries(dir)? {
        let name = entry.file_name().unwrap_or_default();
        // What was kept aside inside a volume is somebody's data.
        if name != "lost+found" && name != INCOMPLETE && !name.to_string_lossy().starts_with(ATTIC) {
            remove_all(&entry)?;
        }
    }
    Ok(())
}

/// Removes a file or a tree; links are removed, not followed. Absent is fine.
pub(super) fn remove_all(path: &Path) -> Result<(), Error> {
    let Some(meta) = optional("look at", path, fs::symlink_metadata(path))? else {
        return Ok(());
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that removes data, behind OldData::Remove"
    )]
    let removed = if meta.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    optional("remove", path, removed).map(drop)
}

/// Whether something is mounted exactly here (then it cannot be renamed).
pub(crate) fn is_mount_point(dir: &Path) -> bool {
    let Ok(real) = dir.canonicalize() else {
        return false;
    };
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else {
        return false;
    };
    mount_points(&mounts).any(|point| Path::new(&point) == real)
}

/// Fifth field of each line, with `\040` and its like decoded (proc(5)).
fn mount_points(mountinfo: &str) -> impl Iterator<Item = String> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| {
            let mut point = field.to_owned();
            for (code, text) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
                point = point.replace(code, text);
            }
            point
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::datadir::{DataDir, Unfinished, classify};

    struct Place {
        _root: tempfile::TempDir,
        data: PathBuf,
    }

    fn place(old: &[&str]) -> Place {
        let root = tempfile::tempdir().expect("temporary directory");
        let data = root.path().join("data");
        if !old.is_empty() {
            make_dir(&data).expect("folder");
        }
        for name in old {
            fs::write(data.join(name), "old").expect("file");
        }
        Place { _root: root, data }
    }

    fn fill(dir: &Path) {
        fs::create_dir(dir.join("global")).expect("folder");
        fs::write(dir.join("global/pg_control"), "new").expect("file");
        fs::write(dir.join("PG_VERSION"), "15\n").expect("file");
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = entries(dir)
            .expect("listable")
            .iter()
            .map(|path| path.file_name().expect("named").to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn is_new(place: &Place) -> bool {
        matches!(classify(&place.data, None), DataDir::Valid(_))
            && names(&place.data) == ["PG_VERSION", "global"]
    }

    /// A staging as it would be if the data directory were a mount point.
    fn inside(place: &Place) -> Staging {
        let side = place.data.join(INSIDE);
        make_dir(&side).expect("side directory");
        Staging {
            data_dir: place.data.clone(),
            side,
            inside: true,
        }
    }

    #[test]
    fn a_new_copy_takes_an_empty_place() {
        let place = place(&[]);
        let staging = Staging::prepare(&place.data).expect("prepared");
        fill(staging.dir());
        assert_eq!(
            staging.install(OldData::KeepRenamed, "T").expect("installed"),
            None
        );
        assert!(is_new(&place));
        assert_eq!(names(place.data.parent().expect("root")), ["data"]);
    }

    #[test]
    fn old_data_is_there_until_the_new_copy_is_complete() {
        let place = place(&["precious"]);
        let staging = Staging::prepare(&place.data).expect("prepared");
        fill(staging.dir());
        assert!(place.data.join("precious").exists());
        staging.discard().expect("discarded");
        assert_eq!(names(place.data.parent().expect("root")), ["data"]);
        assert!(place.data.join("precious").exists());
    }

    #[test]
    fn old_data_is_kept_or_removed_as_told() {
        for (old, left) in [
            (OldData::KeepRenamed, vec!["data", "data.replaced-T"]),
            (OldData::Remove, vec!["data"]),
        ] {
            let place = place(&["precious"]);
            let staging = Staging::prepare(&place.data).expect("prepared");
            fill(staging.dir());
            let kept = staging.install(old, "T").expect("installed");
            assert!(is_new(&place));
            assert_eq!(names(place.data.parent().expect("root")), left);
            assert_eq!(
                kept.is_some_and(|dir| dir.join("precious").exists()),
                old == OldData::KeepRenamed
            );
        }
    }

    #[test]
    fn left_overs_of_earlier_attempts_are_cleared() {
        let place = place(&["precious"]);
        let first = Staging::prepare(&place.data).expect("prepared");
        fill(first.dir());
        let second = Staging::prepare(&place.data).expect("prepared again");
        assert!(names(second.dir()).is_empty());
    }

    #[test]
    fn a_directory_that_cannot_be_renamed_is_filled_from_inside() {
        for old in [OldData::KeepRenamed, OldData::Remove] {
            let place = place(&["precious", ".hidden"]);
            let staging = inside(&place);
            fill(staging.dir());
            let kept = staging.install(old, "T").expect("installed");
            assert!(matches!(classify(&place.data, None), DataDir::Valid(_)));
            assert_eq!(
                kept.is_some_and(|dir| dir.join("precious").exists()),
                old == OldData::KeepRenamed
            );
            assert!(place.data.join(".hidden").exists() && !place.data.join("precious").exists());
        }
    }

    #[test]
    fn data_kept_inside_is_found() {
        let place = place(&["precious"]);
        assert!(attics_inside(&place.data).is_empty());
        let staging = inside(&place);
        fill(staging.dir());
        let kept = staging.install(OldData::KeepRenamed, "T").expect("installed");
        assert_eq!(attics_inside(&place.data), [kept.expect("kept")]);
    }

    #[test]
    fn an_interrupted_exchange_is_finished() {
        for plan in ["", "T"] {
            // Crash between the two renames: no data directory, a complete copy and the parked old data.
            let place = place(&[]);
            let staging = Staging::prepare(&place.data).expect("prepared");
            fill(staging.dir());
            fs::write(staging.dir().join(INSTALLING), plan).expect("marker");
            let parked = neighbour(&place.data, ".howdah-old");
            fs::create_dir(&parked).expect("folder");
            fs::write(parked.join("precious"), "old").expect("file");
            assert!(finish_interrupted(&place.data).expect("finished"));
            assert!(is_new(&place));
            let kept = neighbour(&place.data, ".replaced-T").join("precious");
            assert_eq!(kept.exists(), plan == "T");
            assert!(!parked.exists());
            assert!(!finish_interrupted(&place.data).expect("nothing left"));
        }
    }

    #[test]
    fn an_exchange_that_was_not_tidied_is_tidied() {
        for plan in ["", "T"] {
            let place = place(&["x"]);
            fs::remove_file(place.data.join("x")).expect("removed");
            fill(&place.data);
            fs::write(place.data.join(INSTALLING), plan).expect("marker");
            let side = neighbour(&place.data, BESIDE);
            fs::create_dir(&side).expect("folder");
            fs::write(side.join("precious"), "old").expect("file");
            assert!(finish_interrupted(&place.data).expect("finished"));
            assert!(is_new(&place) && !side.exists());
            assert_eq!(
                neighbour(&place.data, ".replaced-T").join("precious").exists(),
                plan == "T"
            );
        }
    }

    #[test]
    fn an_interrupted_move_is_finished_and_not_startable_before() {
        let place = place(&["precious"]);
        let staging = inside(&place);
        fill(staging.dir());
        fs::write(staging.dir().join(INSTALLING), "T").expect("marker");
        fs::write(place.data.join(INCOMPLETE), "").expect("marker");
        // The old data is out and PG_VERSION has arrived; then the crash.
        fs::remove_file(place.data.join("precious")).expect("removed");
        fs::rename(staging.dir().join("PG_VERSION"), place.data.join("PG_VERSION")).expect("moved");
        assert_eq!(classify(&place.data, None), DataDir::Incomplete(Unfinished::Copy));
        assert!(finish_interrupted(&place.data).expect("finished"));
        assert!(is_new(&place));
    }

    #[test]
    fn a_side_directory_without_the_marker_is_no_reason_to_act() {
        let place = place(&["precious"]);
        let staging = Staging::prepare(&place.data).expect("prepared");
        fill(staging.dir());
        assert!(!finish_interrupted(&place.data).expect("nothing to finish"));
        assert!(place.data.join("precious").exists());
    }

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let text = "36 35 98:0 / /var/lib/my\\040data rw - ext4 /dev/sda rw\nnonsense\n";
        assert_eq!(mount_points(text).collect::<Vec<_>>(), ["/var/lib/my data"]);
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(Path::new("/nonexistent")));
    }

    #[test]
    fn stamps_are_utc_and_sortable() {
        let time = jiff::Timestamp::from_second(1_767_600_600).expect("in range");
        assert_eq!(stamp(time), "20260105T081000Z");
    }
}
