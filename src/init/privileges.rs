//! Started as root: prepare the directories of postgres, then become its user for good.
//!
//! What is done is planned first, from what was found, and only then done. A directory is changed
//! only if it is missing or belongs to root, which is what a fresh volume looks like; nothing is ever
//! changed recursively, because that would take hours on a big data directory, break hard links of
//! others and hide a volume that belongs to somebody else.
//!
//! Started as anybody else, nothing happens here: the platform has chosen the uid.

use std::ffi::CString;
use std::fs::{DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::postgres::staging;
use nix::unistd::{Gid, Uid, User, geteuid, initgroups, setresgid, setresuid};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, chownat, fstat, openat};

/// Bit of a directory everybody may write to, such as `/tmp`: usable as it is.
const WRITABLE_BY_ALL: u32 = 0o002;

/// Parts of the names that directories made for a database have.
const OUR_NAMES: [&str; 5] = ["postgres", "pgsql", "pgdata", "pgroot", "howdah"];

/// A directory the postgres user needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Absolute. Missing parents are made too, and stay root's.
    pub path: PathBuf,
    /// Permission bits if it has to be made; those of an existing one stay.
    pub mode: u32,
    /// What it is to postgres.
    pub part: Part,
}

/// How much a directory is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Named in the configuration: ours.
    Own,
    /// The one around the data. Often it is the volume, and then the agent works beside the data in it; but it may as
    /// well be `/` or `/var/lib`, which are not to be given away.
    Around,
}

/// What [`prepare`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Not started as root: nothing.
    Unprivileged,
    /// This process is that user now and cannot go back.
    Dropped {
        /// Its uid.
        uid: u32,
        /// Its primary group.
        gid: u32,
        /// Its home directory, for the `HOME` of child processes.
        home: PathBuf,
    },
}

/// Why this cannot be done; nothing runs as root instead.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// No such user.
    #[error(
        "started as root, but there is no user {user:?} to become; \
         create it or start as the user who owns the data directory (docker run --user)"
    )]
    NoUser {
        /// The name that was looked up.
        user: String,
    },
    /// The user database could not be read, or the name is impossible.
    #[error("cannot look up user {user:?}")]
    Lookup {
        /// The name that was looked up.
        user: String,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The user to become is root itself.
    #[error("user {user:?} has uid 0; postgres does not run as root")]
    UserIsRoot {
        /// The name that was looked up.
        user: String,
    },
    /// A path that must not be given away.
    #[error("{path}: not an absolute path below /")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// Something else is in its place.
    #[error("{path}: exists, but is not a directory")]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// Neither root's nor the user's: perhaps another cluster's volume.
    #[error(
        "{path}: belongs to uid {owner}, not to {user:?} (uid {uid}); chown it if it is meant for this cluster"
    )]
    Owner {
        /// The path.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who should.
        user: String,
        /// The uid who should.
        uid: u32,
    },
    /// One step was refused.
    #[error(
        "{path}: cannot {what}: {source}; this needs the capability CHOWN and DAC_OVERRIDE, \
         without them start as that user (docker run --user)"
    )]
    Step {
        /// The path.
        path: PathBuf,
        /// A verb phrase.
        what: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The process may not change its user.
    #[error(
        "cannot become user {user:?}; this needs the capabilities SETUID and SETGID, \
         without them start as that user (docker run --user)"
    )]
    Drop {
        /// The user.
        user: String,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// Root could be regained, so the drop was none.
    #[error("became user {user:?}, but root could be regained")]
    NotForGood {
        /// The user.
        user: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Missing,
    Directory { owner: u32, mode: u32, place: Place },
    Other,
}

/// What tells a volume made for us from a directory of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A volume was put there.
    Mounted,
    /// Nothing is in it, and its name is ours.
    EmptyAndNamed,
    /// Anything else.
    Shared,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Create { path: PathBuf, mode: u32 },
    Give { path: PathBuf },
}

/// Makes `directories` usable for `user` and becomes that user, if started as root. Parents come
/// before children in the list.
///
/// To be called before any thread exists. The list should name the mount point of the data volume as
/// well as the data directory, since the agent renames and makes directories beside it.
pub fn prepare(user: &str, directories: &[Directory]) -> Result<Outcome, PrivilegeError> {
    if !geteuid().is_root() {
        return Ok(Outcome::Unprivileged);
    }
    let account = lookup(user)?;
    let found = directories
        .iter()
        .map(|directory| Ok((directory, look(&directory.path)?)))
        .collect::<Result<Vec<_>, PrivilegeError>>()?;
    for step in plan(user, account.uid.as_raw(), &found)? {
        tracing::info!(?step, user, "preparing a directory");
        carry_out(&step, &account)?;
    }
    become_user(&account)?;
    tracing::info!(
        user,
        uid = account.uid.as_raw(),
        gid = account.gid.as_raw(),
        "dropped root"
    );
    Ok(Outcome::Dropped {
        uid: account.uid.as_raw(),
        gid: account.gid.as_raw(),
        home: account.dir,
    })
}

fn lookup(user: &str) -> Result<User, PrivilegeError> {
    let found = User::from_name(user).map_err(|error| PrivilegeError::Lookup {
        user: user.into(),
        source: error.into(),
    })?;
    let account = found.ok_or_else(|| PrivilegeError::NoUser { user: user.into() })?;
    if account.uid.is_root() {
        return Err(PrivilegeError::UserIsRoot { user: user.into() });
    }
    Ok(account)
}

/// A link counts as what it points to: data directories are often moved that way.
fn look(path: &Path) -> Result<Found, PrivilegeError> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(classify(path, &metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Missing),
        Err(source) => Err(PrivilegeError::Step {
            path: path.into(),
            what: "look at it",
            source,
        }),
    }
}

fn classify(path: &Path, metadata: &Metadata) -> Found {
    if metadata.is_dir() {
        Found::Directory {
            owner: metadata.uid(),
            mode: metadata.mode() & 0o7777,
            place: place(path),
        }
    } else {
        Found::Other
    }
}

fn place(path: &Path) -> Place {
    if staging::is_mount_point(path) {
        return Place::Mounted;
    }
    // A volume's own directory does not count.
    let empty = std::fs::read_dir(path).is_ok_and(|mut entries| {
        entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == "lost+found"))
    });
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    let named = OUR_NAMES.iter().any(|ours| name.contains(ours));
    if empty && named {
        Place::EmptyAndNamed
    } else {
        Place::Shared
    }
}

fn plan(user: &str, uid: u32, directories: &[(&Directory, Found)]) -> Result<Vec<Step>, PrivilegeError> {
    let mut steps = Vec::new();
    for (directory, found) in directories {
        let path = directory.path.clone();
        if directory.part == Part::Around && stays_as_it_is(&path, *found) {
            continue;
        }
        let inside = path
            .components()
            .all(|part| !matches!(part, std::path::Component::ParentDir));
        if !path.is_absolute() || path.parent().is_none() || !inside {
            return Err(PrivilegeError::Path { path });
        }
        match *found {
            Found::Missing => {
                steps.push(Step::Create {
                    path: path.clone(),
                    mode: directory.mode,
                });
                steps.push(Step::Give { path });
            }
            Found::Directory { owner, .. } if owner == uid => {}
            Found::Directory { mode, .. } if mode & WRITABLE_BY_ALL != 0 => {}
            Found::Directory { owner: 0, .. } => steps.push(Step::Give { path }),
            Found::Directory { owner, .. } => {
                return Err(PrivilegeError::Owner {
                    path,
                    owner,
                    user: user.into(),
                    uid,
                });
            }
            Found::Other => return Err(PrivilegeError::NotADirectory { path }),
        }
    }
    Ok(steps)
}

/// Whether a directory around the data is somebody else's, so that the data has to do without it.
fn stays_as_it_is(path: &Path, found: Found) -> bool {
    path.parent().is_none()
        || matches!(
            found,
            Found::Directory {
                place: Place::Shared,
                ..
            }
        )
}

fn carry_out(step: &Step, account: &User) -> Result<(), PrivilegeError> {
    let (path, what, done) = match step {
        Step::Create { path, mode } => (path, "create it", create(path, *mode)),
        Step::Give { path } => (path, "give it to the user", give(path, account)),
    };
    done.map_err(|source| PrivilegeError::Step {
        path: path.clone(),
        what,
        source,
    })
}

fn create(path: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    DirBuilder::new().mode(mode).create(path)
}

/// Checks and changes the same inode, whatever happens to the path meanwhile.
fn give(path: &Path, account: &User) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, path, flags, Mode::empty())?;
    if fstat(&directory)?.st_uid != 0 {
        return Err(io::Error::other("its owner changed meanwhile"));
    }
    let owner = rustix::fs::Uid::from_raw(account.uid.as_raw());
    let group = rustix::fs::Gid::from_raw(account.gid.as_raw());
    chownat(&directory, "", Some(owner), Some(group), AtFlags::EMPTY_PATH)?;
    Ok(())
}

fn become_user(account: &User) -> Result<(), PrivilegeError> {
    let (uid, gid): (Uid, Gid) = (account.uid, account.gid);
    let name = CString::new(account.name.as_str()).map_err(|error| PrivilegeError::Lookup {
        user: account.name.clone(),
        source: error.into(),
    })?;
    // Groups first: afterwards there is no right left to change them. All three ids, so that none
    // is kept to come back to.
    initgroups(&name, gid)
        .and_then(|()| setresgid(gid, gid, gid))
        .and_then(|()| setresuid(uid, uid, uid))
        .map_err(|error| PrivilegeError::Drop {
            user: account.name.clone(),
            source: error.into(),
        })?;
    if setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
        return Err(PrivilegeError::NotForGood {
            user: account.name.clone(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POSTGRES: u32 = 101;

    fn planned(path: &str, found: Found) -> Result<Vec<Step>, String> {
        planned_as(Part::Own, path, found)
    }

    fn planned_as(part: Part, path: &str, found: Found) -> Result<Vec<Step>, String> {
        let directory = Directory {
            path: path.into(),
            mode: 0o700,
            part,
        };
        plan("postgres", POSTGRES, &[(&directory, found)]).map_err(|error| error.to_string())
    }

    fn found(owner: u32, mode: u32) -> Found {
        Found::Directory {
            owner,
            mode,
            place: Place::Shared,
        }
    }

    #[test]
    fn around_the_data_only_what_was_made_for_it_is_given_away() {
        let around = |path: &str, place| {
            let found = Found::Directory {
                owner: 0,
                mode: 0o755,
                place,
            };
            planned_as(Part::Around, path, found)
        };
        let give = |path: &str| Ok(vec![Step::Give { path: path.into() }]);
        assert_eq!(around("/", Place::Mounted), Ok(vec![]));
        assert_eq!(around("/var/lib", Place::Shared), Ok(vec![]));
        assert_eq!(around("/volume", Place::Mounted), give("/volume"));
        assert_eq!(around("/postgresql", Place::EmptyAndNamed), give("/postgresql"));
        assert_eq!(place(Path::new("/proc")), Place::Mounted);
        assert_eq!(place(Path::new("/usr/lib")), Place::Shared);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ours = dir.path().join("pgdata");
        std::fs::create_dir(&ours).expect("writable");
        assert_eq!(place(&ours), Place::EmptyAndNamed);
        std::fs::write(ours.join("x"), "").expect("writable");
        assert_eq!(place(&ours), Place::Shared);
    }

    #[test]
    fn only_a_missing_directory_or_one_of_root_is_changed() {
        let path = PathBuf::from("/data");
        let create = Step::Create {
            path: path.clone(),
            mode: 0o700,
        };
        let give = Step::Give { path };
        assert_eq!(planned("/data", Found::Missing), Ok(vec![create, give.clone()]));
        assert_eq!(planned("/data", found(0, 0o755)), Ok(vec![give]));
        assert_eq!(planned("/data", found(POSTGRES, 0o700)), Ok(vec![]));
        assert_eq!(planned("/tmp", found(0, 0o1777)), Ok(vec![]));
    }

    #[test]
    fn a_refusal_names_the_directory_and_its_owner() {
        let error = planned("/data", found(1000, 0o755)).expect_err("a stranger's");
        assert!(
            error.contains("/data") && error.contains("1000") && error.contains("101"),
            "{error}"
        );
        let error = planned("/data", Found::Other).expect_err("a file");
        assert!(
            error.contains("/data") && error.contains("not a directory"),
            "{error}"
        );
    }

    #[test]
    fn the_root_directory_is_never_given_away() {
        for path in ["/", "data", "", "/data/.."] {
            assert!(planned(path, found(0, 0o755)).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_user_that_does_not_exist_is_named_together_with_the_way_out() {
        let error = lookup("nobody-of-that-name")
            .expect_err("no such user")
            .to_string();
        assert!(
            error.contains("nobody-of-that-name") && error.contains("--user"),
            "{error}"
        );
        assert!(matches!(lookup("root"), Err(PrivilegeError::UserIsRoot { .. })));
    }
}
