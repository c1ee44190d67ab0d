//! Finding PostgreSQL's programs.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{
    command::{self, Command},
    version::{Major, ParseVersionError, Version},
};

/// Programs without which nothing works.
pub const REQUIRED: &[&str] = &[
    "postgres",
    "initdb",
    "pg_controldata",
    "pg_basebackup",
    "pg_rewind",
    "pg_waldump",
    "psql",
];

/// Where distributions put one folder per major version (`<here>/17/bin`).
pub const INSTALL_ROOTS: &[&str] = &["/usr/lib/postgresql", "/usr/pgsql", "/opt/postgresql"];

/// Why PostgreSQL's programs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No `postgres` anywhere.
    #[error("no PostgreSQL programs found (looked in PATH and {})", looked.join(", "))]
    NotFound {
        /// Folders that were looked at.
        looked: Vec<String>,
    },
    /// The folder is there but not complete.
    #[error("{} lacks {}", dir.display(), missing.join(", "))]
    Missing {
        /// The folder.
        dir: PathBuf,
        /// Programs it should have.
        missing: Vec<&'static str>,
    },
    /// `postgres --version` did not run.
    #[error("ask postgres for its version")]
    Run(#[source] command::Error),
    /// `postgres --version` printed something else.
    #[error(transparent)]
    Version(#[from] ParseVersionError),
    /// The version is too old.
    #[error(
        "PostgreSQL {found} is not supported, the oldest supported version is {}",
        Major::OLDEST
    )]
    TooOld {
        /// The installed version.
        found: Version,
    },
}

/// A folder with all required programs, and their version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// The folder.
    pub dir: PathBuf,
    /// What `postgres --version` says.
    pub version: Version,
    /// Other names of programs (`postgresql.bin_name`); a path counts from the folder.
    pub names: BTreeMap<String, String>,
}

impl Binaries {
    /// The same with other names for programs.
    #[must_use]
    pub fn named(mut self, names: &BTreeMap<String, String>) -> Self {
        self.names.clone_from(names);
        self
    }

    /// Finds the folder, checks that it is complete and asks for the version.
    ///
    /// # Errors
    /// Nothing usable is installed; the message names what is missing.
    pub async fn find(configured: Option<&Path>, cancel: &CancellationToken) -> Result<Self, Error> {
        let roots: Vec<&Path> = INSTALL_ROOTS.iter().map(Path::new).collect();
        let dir = find_dir(configured, std::env::var_os("PATH").as_deref(), &roots)?;
        let missing = missing_in(&dir);
        if !missing.is_empty() {
            return Err(Error::Missing { dir, missing });
        }
        let ask = Command::new(dir.join("postgres")).arg("--version").capture();
        let output = ask
            .deadline(Duration::from_secs(30))
            .run(cancel)
            .await
            .map_err(Error::Run)?;
        let version = Version::parse(&output.stdout)?;
        if !version.major.is_supported() {
            return Err(Error::TooOld { found: version });
        }
        Ok(Self {
            dir,
            version,
            names: BTreeMap::new(),
        })
    }

    /// The major version.
    #[must_use]
    pub const fn major(&self) -> Major {
        self.version.major
    }

    /// The path of a program.
    #[must_use]
    pub fn path(&self, program: &str) -> PathBuf {
        self.dir
            .join(self.names.get(program).map_or(program, String::as_str))
    }

    /// A call of a program, with messages in English because they are read by this program too.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        Command::new(self.path(program)).env("LC_ALL", "C.UTF-8")
    }
}

/// The configured folder if there is one, else that of the `postgres` in PATH, else the newest below an
/// install root.
fn find_dir(configured: Option<&Path>, path: Option<&OsStr>, roots: &[&Path]) -> Result<PathBuf, Error> {
    if let Some(dir) = configured {
        return Ok(dir.to_owned());
    }
    // A link in PATH may stand alone, its target lies among the other programs.
    let in_path = path.into_iter().flat_map(std::env::split_paths).find_map(|dir| {
        let target = dir.join("postgres").canonicalize().ok()?;
        target.parent().map(Path::to_owned)
    });
    in_path
        .or_else(|| newest_install(roots))
        .ok_or_else(|| Error::NotFound {
            looked: roots
                .iter()
                .map(|root| format!("{}/*/bin", root.display()))
                .collect(),
        })
}

fn newest_install(roots: &[&Path]) -> Option<PathBuf> {
    let entries = roots
        .iter()
        .filter_map(|root| root.read_dir().ok())
        .flatten()
        .flatten();
    let installed = entries.filter_map(|entry| {
        let major: u16 = entry.file_name().to_str()?.parse().ok()?;
        let dir = entry.path().join("bin");
        dir.join("postgres").exists().then_some((major, dir))
    });
    installed.max_by_key(|(major, _)| *major).map(|(_, dir)| dir)
}

fn missing_in(dir: &Path) -> Vec<&'static str> {
    REQUIRED
        .iter()
        .copied()
        .filter(|program| !dir.join(program).exists())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    fn install(root: &Path, major: &str, programs: &[&str]) -> PathBuf {
        let bin = root.join(major).join("bin");
        fs::create_dir_all(&bin).expect("folder");
        for program in programs {
            fs::write(bin.join(program), "").expect("file");
        }
        bin
    }

    #[test]
    fn the_newest_installed_version_wins() {
        let root = tempfile::tempdir().expect("temporary directory");
        install(root.path(), "9", REQUIRED);
        let newest = install(root.path(), "17", REQUIRED);
        install(root.path(), "18", &["psql"]);
        install(root.path(), "junk", REQUIRED);
        assert_eq!(find_dir(None, None, &[root.path()]).expect("found"), newest);
    }

    #[test]
    fn path_comes_first_and_links_are_followed() {
        let root = tempfile::tempdir().expect("temporary directory");
        let old = install(root.path(), "15", REQUIRED)
            .canonicalize()
            .expect("real path");
        install(root.path(), "17", REQUIRED);
        let links = root.path().join("links");
        fs::create_dir(&links).expect("folder");
        symlink(old.join("postgres"), links.join("postgres")).expect("link");
        assert_eq!(
            find_dir(None, Some(links.as_os_str()), &[root.path()]).expect("found"),
            old
        );
        let configured = Path::new("/opt/pg");
        assert_eq!(
            find_dir(Some(configured), Some(links.as_os_str()), &[]).expect("found"),
            configured
        );
    }

    #[test]
    fn a_program_may_have_another_name() {
        let binaries = Binaries {
            dir: "/pg/bin".into(),
            version: Version::parse("x (PostgreSQL) 15.1").expect("valid"),
            names: BTreeMap::new(),
        };
        let names = [("pg_rewind".to_owned(), "my_rewind".to_owned())].into();
        let named = binaries.named(&names);
        assert_eq!(named.path("pg_rewind"), Path::new("/pg/bin/my_rewind"));
        assert_eq!(named.path("psql"), Path::new("/pg/bin/psql"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let root = tempfile::tempdir().expect("temporary directory");
        let bin = install(
            root.path(),
            "17",
            &["postgres", "psql", "initdb", "pg_waldump", "pg_basebackup"],
        );
        assert_eq!(missing_in(&bin), ["pg_controldata", "pg_rewind"]);
        let error = find_dir(None, None, &[Path::new("/nonexistent")]).expect_err("nothing there");
        assert!(error.to_string().contains("/nonexistent/*/bin"), "{error}");
    }
}
