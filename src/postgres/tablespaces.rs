//! Directories of a data directory that lie outside it (tablespaces, a linked `pg_wal`) when it is copied anew.
//!
//! pg_basebackup wants them at the source's paths and empty, but here the old ones are in the way, and must stay until
//! the copy is complete. So a copy's directory is made beside an occupied one ([`relocate`]) and takes its name once
//! the new data directory is in place ([`settle`]). In between everything is usable as it is, because links lead there:
//!
//! | a crash | leaves | then |
//! |---|---|---|
//! | before the new data directory is in place | old data as it was | the next copy removes what is beside it |
//! | after it | links that name `<dir>.howdah-new` | [`settle`] before the next start goes on |

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use rustix::fs::Access;

use super::{
    files::{self, Error, at, neighbour, optional},
    staging::{OldData, is_mount_point, remove_all},
};

/// Ending of a directory made beside an occupied one.
const BESIDE: &str = ".howdah-new";

/// Arguments of pg_basebackup that keep away from what is there, and the directories it will make instead.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relocated {
    /// All arguments.
    pub args: Vec<String>,
    /// Directories to be made, none of them there yet.
    pub beside: Vec<PathBuf>,
}

/// Leads every outside directory that is `occupied` to a place beside it: the source's tablespaces (where the user
/// does not lead them elsewhere by `tablespace-mapping`, else that place) and `waldir`.
#[must_use]
pub fn relocate(args: Vec<String>, tablespaces: &[PathBuf], occupied: impl Fn(&Path) -> bool) -> Relocated {
    let mut result = Relocated::default();
    let mut mapped: Vec<(PathBuf, PathBuf)> = Vec::new();
    for arg in args {
        if let Some((from, to)) = arg.strip_prefix("--tablespace-mapping=").and_then(split_mapping) {
            mapped.push((from, to));
        } else if let Some(dir) = arg
            .strip_prefix("--waldir=")
            .map(Path::new)
            .filter(|dir| occupied(dir))
        {
            let beside = neighbour(dir, BESIDE);
            result.args.push(format!("--waldir={}", beside.display()));
            result.beside.push(beside);
        } else {
            result.args.push(arg);
        }
    }
    for source in tablespaces {
        if !mapped.iter().any(|(from, _)| from == source) {
            mapped.push((source.clone(), source.clone()));
        }
    }
    for (from, to) in mapped {
        let target = if occupied(&to) {
            let beside = neighbour(&to, BESIDE);
            result.beside.push(beside.clone());
            beside
        } else {
            to
        };
        if target != from {
            let mapping = format!("{}={}", escaped(&from), escaped(&target));
            result.args.push(format!("--tablespace-mapping={mapping}"));
        }
    }
    result
}

/// `old=new` with `\=` for an equals sign (documentation of pg_basebackup).
fn split_mapping(text: &str) -> Option<(PathBuf, PathBuf)> {
    let at = text
        .char_indices()
        .find(|(i, c)| *c == '=' && !text[..*i].ends_with('\\'))
        .map(|(i, _)| i)?;
    let path = |text: &str| PathBuf::from(text.replace("\\=", "="));
    Some((path(&text[..at]), path(&text[at + 1..])))
}

fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace('=', "\\=")
}

/// There is something in it, so that pg_basebackup would refuse it.
#[must_use]
pub fn is_occupied(dir: &Path) -> bool {
    match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Whether the directories can be made and later take their final names; removes what earlier attempts left there.
///
/// # Errors
/// The first that cannot; nothing of value was touched.
pub fn make_room(beside: &[PathBuf]) -> Result<(), Error> {
    for dir in beside {
        let refused = |reason: &str| Error {
            action: "copy beside",
            path: final_name(dir).unwrap_or_else(|| dir.clone()),
            source: io::Error::other(reason.to_owned()),
        };
        let parent = dir.parent().unwrap_or(Path::new("/"));
        if final_name(dir).is_some_and(|dir| is_mount_point(&dir)) {
            return Err(refused(
                "it is a mount point and not empty: empty it, then the copy goes on by itself",
            ));
        }
        if rustix::fs::access(parent, Access::WRITE_OK | Access::EXEC_OK).is_err() {
            return Err(refused(
                "it is not empty and its parent cannot be written: empty it or change the parent",
            ));
        }
    }
    clear(beside)
}

/// Removes unfinished directories.
///
/// # Errors
/// The first that cannot be removed.
pub fn clear(beside: &[PathBuf]) -> Result<(), Error> {
    beside.iter().try_for_each(|dir| remove_all(dir))
}

fn final_name(beside: &Path) -> Option<PathBuf> {
    let name = beside.file_name()?.to_str()?.strip_suffix(BESIDE)?;
    Some(beside.with_file_name(name))
}

/// Gives every outside directory of a new copy its final name. What has that name is kept under another one, or removed
/// if it is known to be a mere copy's; links of `kept`, the old data directory, follow it. Does nothing the second time.
///
/// # Errors
/// The step that failed; the data directory is usable all the same, and the next call goes on.
pub fn settle(data_dir: &Path, old: OldData, stamp: &str, kept: Option<&Path>) -> Result<(), Error> {
    for link in links(data_dir)? {
        let Ok(target) = fs::read_link(&link) else {
            continue;
        };
        let Some(wanted) = final_name(&target) else {
            continue;
        };
        // Not there: an earlier call came as far as renaming it.
        if optional("look at", &target, fs::symlink_metadata(&target))?.is_some() {
            if optional("look at", &wanted, fs::symlink_metadata(&wanted))?.is_some() {
                if old == OldData::Remove {
                    remove_all(&wanted)?;
                } else {
                    let away = neighbour(&wanted, &format!(".replaced-{stamp}"));
                    at("rename", &wanted, fs::rename(&wanted, &away))?;
                    tracing::warn!(kept = %away.display(), "a replaced tablespace was renamed, remove it when it is not needed");
                    if let Some(kept) = kept {
                        follow(kept, &wanted, &away)?;
                    }
                }
            }
            at("rename", &target, fs::rename(&target, &wanted))?;
        }
        point(&link, &wanted)?;
    }
    Ok(())
}

fn follow(data_dir: &Path, from: &Path, to: &Path) -> Result<(), Error> {
    for link in links(data_dir)? {
        if fs::read_link(&link).is_ok_and(|target| target == from) {
            point(&link, to)?;
        }
    }
    Ok(())
}

/// Replaces a link in one step.
fn point(link: &Path, target: &Path) -> Result<(), Error> {
    let temporary = neighbour(link, ".howdah-link");
    remove_all(&temporary)?;
    at("create", &temporary, symlink(target, &temporary))?;
    at("replace", link, fs::rename(&temporary, link))?;
    files::sync_dir(link.parent().unwrap_or(Path::new("/")))
}

fn links(data_dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let folder = data_dir.join("pg_tblspc");
    let mut links = vec![data_dir.join("pg_wal")];
    for entry in optional("list", &folder, fs::read_dir(&folder))?
        .into_iter()
        .flatten()
    {
        links.push(at("list", &folder, entry)?.path());
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(list: &[&str]) -> Vec<String> {
        list.iter().map(|arg| (*arg).to_owned()).collect()
    }

    #[test]
    fn only_what_is_occupied_is_led_beside() {
        let spaces = ["/a".into(), "/b".into(), "/c=d".into(), "/e".into()];
        let given = args(&["--progress", "--waldir=/wal", "--tablespace-mapping=/e=/f"]);
        let occupied = |dir: &Path| ["/wal", "/a", "/c=d", "/f"].map(Path::new).contains(&dir);
        let relocated = relocate(given, &spaces, occupied);
        insta::assert_snapshot!(relocated.args.join("\n"), @r"
        --progress
        --waldir=/wal.howdah-new
        --tablespace-mapping=/e=/f.howdah-new
        --tablespace-mapping=/a=/a.howdah-new
        --tablespace-mapping=/c\=d=/c\=d.howdah-new
        ");
        assert_eq!(relocated.beside.len(), 4);
        let given = args(&["--waldir=/wal", "--tablespace-mapping=/e=/f"]);
        let free = relocate(given.clone(), &spaces, |_| false);
        assert_eq!((free.args, free.beside.len()), (given, 0));
    }

    /// A data directory whose tablespace was copied beside the old one.
    fn copied(root: &Path) -> (PathBuf, PathBuf, PathBuf) {
        let (data, kept, space) = (root.join("data"), root.join("data.replaced"), root.join("space"));
        for (data, target) in [(&data, neighbour(&space, BESIDE)), (&kept, space.clone())] {
            fs::create_dir_all(data.join("pg_tblspc")).expect("folder");
            fs::create_dir(data.join("pg_wal")).expect("folder");
            fs::create_dir(&target).expect("folder");
            fs::write(
                target.join("file"),
                data.file_name().expect("named").as_encoded_bytes(),
            )
            .expect("file");
            symlink(&target, data.join("pg_tblspc/17")).expect("link");
        }
        (data, kept, space)
    }

    fn content(data: &Path) -> String {
        fs::read_to_string(data.join("pg_tblspc/17/file")).expect("readable")
    }

    #[test]
    fn a_new_tablespace_takes_the_old_ones_name() {
        for old in [OldData::KeepRenamed, OldData::Remove] {
            let root = tempfile::tempdir().expect("temp dir");
            let (data, kept, space) = copied(root.path());
            for _ in 0..2 {
                settle(&data, old, "T", Some(&kept)).expect("settled");
                assert_eq!(fs::read_link(data.join("pg_tblspc/17")).expect("a link"), space);
                assert_eq!(content(&data), "data");
                let away = neighbour(&space, ".replaced-T");
                assert_eq!(away.exists(), old == OldData::KeepRenamed);
                if old == OldData::KeepRenamed {
                    assert_eq!(content(&kept), "data.replaced");
                }
            }
        }
    }

    #[test]
    fn an_interrupted_settlement_is_finished() {
        let root = tempfile::tempdir().expect("temp dir");
        let (data, _, space) = copied(root.path());
        fs::rename(&space, neighbour(&space, ".replaced-T")).expect("renamed");
        fs::rename(neighbour(&space, BESIDE), &space).expect("renamed");
        settle(&data, OldData::KeepRenamed, "U", None).expect("settled");
        assert_eq!(content(&data), "data");
        assert!(!neighbour(&space, ".replaced-U").exists());
    }

    #[test]
    fn room_is_made_or_the_reason_told() {
        let root = tempfile::tempdir().expect("temp dir");
        let beside = root.path().join(format!("space{BESIDE}"));
        fs::create_dir(&beside).expect("folder");
        make_room(std::slice::from_ref(&beside)).expect("room");
        assert!(!beside.exists());
        let error = make_room(&[PathBuf::from(format!("/proc{BESIDE}"))]).expect_err("a mount point");
        assert!(error.to_string().contains("/proc"), "{error}");
        assert!(is_occupied(Path::new("/proc")) && !is_occupied(&beside));
    }
}
