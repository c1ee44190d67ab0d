//! The configuration files on disk: who owns which, how the original is kept, and what happens to them when a
//! data directory is copied from another member (contract: PostgreSQL configuration §1).

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    dynamic_copy,
    files::{self, Error, at, file_mode, neighbour, optional, write_if_changed},
    recovery::strip_settings,
};

/// First line of every file written here.
pub const HEADER: &str =
    "# Written by Howdah. Changes made here are lost; change the configuration instead.\n";

const STANDBY_SIGNAL: &str = "standby.signal";
const RECOVERY_SIGNAL: &str = "recovery.signal";

/// Where the configuration of one instance lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfDir {
    /// The data directory.
    pub data_dir: PathBuf,
    /// Usually the data directory.
    pub config_dir: PathBuf,
    /// Usually `postgresql`.
    pub base_name: String,
    /// The user's own file, included instead of the base file.
    pub custom_conf: Option<PathBuf>,
}

/// The content of the configuration files at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    files: Vec<(PathBuf, Vec<u8>)>,
    /// The copy of the cluster's configuration; whoever is copied from may be of another cluster, so that one which was
    /// not there must not be there afterwards.
    dynamic: Option<Vec<u8>>,
}

impl ConfDir {
    /// The usual layout: everything in the data directory.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let data_dir = data_dir.into();
        Self {
            config_dir: data_dir.clone(),
            data_dir,
            base_name: "postgresql".to_owned(),
            custom_conf: None,
        }
    }

    /// `postgresql.conf`.
    #[must_use]
    pub fn main(&self) -> PathBuf {
        self.config_dir.join(format!("{}.conf", self.base_name))
    }

    /// `postgresql.base.conf`, the file initdb made.
    #[must_use]
    pub fn base(&self) -> PathBuf {
        self.config_dir.join(format!("{}.base.conf", self.base_name))
    }

    /// `pg_hba.conf`.
    #[must_use]
    pub fn hba(&self) -> PathBuf {
        self.config_dir.join("pg_hba.conf")
    }

    /// `pg_ident.conf`.
    #[must_use]
    pub fn ident(&self) -> PathBuf {
        self.config_dir.join("pg_ident.conf")
    }

    /// What `include` in the main file names.
    #[must_use]
    pub fn include(&self) -> String {
        match &self.custom_conf {
            Some(custom) => custom.to_string_lossy().into_owned(),
            None => format!("{}.base.conf", self.base_name),
        }
    }

    fn mode(&self, path: &Path) -> u32 {
        if path.starts_with(&self.data_dir) {
            file_mode(&self.data_dir)
        } else {
            0o644
        }
    }

    /// Keeps the original `postgresql.conf` as the base file, once. A file that carries our header is not an
    /// original. When there is none (a copy of a directory whose configuration lies elsewhere), an empty base file
    /// is made, because PostgreSQL does not start without the included file.
    ///
    /// # Errors
    /// A file cannot be renamed or written.
    pub fn adopt_base(&self) -> Result<(), Error> {
        if self.custom_conf.is_some() {
            return Ok(());
        }
        let (main, base) = (self.main(), self.base());
        if optional("look at", &base, fs::metadata(&base))?.is_some() {
            return Ok(());
        }
        let original = optional("read", &main, fs::read(&main))?;
        match original {
            Some(content) if !content.starts_with(HEADER.as_bytes()) => {
                at("rename", &main, fs::rename(&main, &base))?;
                files::sync_dir(&self.config_dir)
            }
            _ => files::write_atomic(&base, b"", self.mode(&base)),
        }
    }

    /// Writes one of the files if it differs; returns whether it did.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path, content: &str) -> Result<bool, Error> {
        write_if_changed(path, content.as_bytes(), self.mode(path))
    }

    /// Takes recovery settings out of `postgresql.auto.conf`; returns whether there were any.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn strip_auto_conf(&self, also: &[&str]) -> Result<bool, Error> {
        let path = self.data_dir.join("postgresql.auto.conf");
        let text = optional("read", &path, fs::read_to_string(&path))?.unwrap_or_default();
        match strip_settings(&text, also) {
            Some(stripped) => self.write(&path, &stripped),
            None => Ok(false),
        }
    }

    /// Makes the next start one of a replica, or of a primary. `recovery.signal` goes in both cases: with both
    /// files a server would stop being a replica at a recovery target.
    ///
    /// # Errors
    /// A file cannot be made or removed.
    pub fn set_standby(&self, standby: bool) -> Result<(), Error> {
        let recovery = self.data_dir.join(RECOVERY_SIGNAL);
        optional("remove", &recovery, fs::remove_file(&recovery))?;
        let signal = self.data_dir.join(STANDBY_SIGNAL);
        if standby {
            self.write(&signal, "").map(drop)
        } else {
            optional("remove", &signal, fs::remove_file(&signal))?;
            files::sync_dir(&self.data_dir)
        }
    }

    /// Whether `standby.signal` is there.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        self.data_dir.join(STANDBY_SIGNAL).exists()
    }

    fn kept_files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.main(), self.hba(), self.ident()];
        if self.custom_conf.is_none() {
            files.push(self.base());
        }
        files
    }

    /// Where the copy of a file lies: in the data directory, so that it travels with the data.
    fn backup_of(&self, file: &Path) -> PathBuf {
        neighbour(
            &self.data_dir.join(file.file_name().unwrap_or_default()),
            ".backup",
        )
    }

    /// Copies the files after a successful start.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn backup(&self) -> Result<(), Error> {
        for file in self.kept_files() {
            if let Some(content) = optional("read", &file, fs::read(&file))? {
                let copy = self.backup_of(&file);
                write_if_changed(&copy, &content, self.mode(&copy))?;
            }
        }
        Ok(())
    }

    /// Puts back files that a clone or a bootstrap did not bring, from their copies. A missing `pg_ident.conf`
    /// without a copy becomes an empty file.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn restore_missing(&self) -> Result<(), Error> {
        for file in self.kept_files() {
            if optional("look at", &file, fs::metadata(&file))?.is_some() {
                continue;
            }
            let copy = self.backup_of(&file);
            let content = optional("read", &copy, fs::read(&copy))?;
            if let Some(content) = content.or_else(|| (file == self.ident()).then(Vec::new)) {
                files::write_atomic(&file, &content, self.mode(&file))?;
            }
        }
        Ok(())
    }

    /// Reads the files into memory. pg_rewind overwrites them, and their copies, with those of the leader.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let copy = self.data_dir.join(dynamic_copy::FILE);
        let mut snapshot = Snapshot {
            files: Vec::new(),
            dynamic: optional("read", &copy, fs::read(&copy))?,
        };
        let auto = self.data_dir.join("postgresql.auto.conf");
        for file in self.kept_files().into_iter().chain([auto]) {
            for path in [self.backup_of(&file), file] {
                if let Some(content) = optional("read", &path, fs::read(&path))? {
                    snapshot.files.push((path, content));
                }
            }
        }
        Ok(snapshot)
    }

    /// Writes the files of a snapshot back.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn restore(&self, snapshot: &Snapshot) -> Result<(), Error> {
        for (path, content) in &snapshot.files {
            write_if_changed(path, content, self.mode(path))?;
        }
        let copy = self.data_dir.join(dynamic_copy::FILE);
        match &snapshot.dynamic {
            Some(content) => write_if_changed(&copy, content, self.mode(&copy)).map(drop),
            None => files::remove_if_there(&copy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf_dir() -> (tempfile::TempDir, ConfDir) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let conf = ConfDir::new(dir.path());
        (dir, conf)
    }

    fn text(path: &Path) -> String {
        fs::read_to_string(path).expect("readable")
    }

    #[test]
    fn the_original_is_kept_once() {
        let (_dir, conf) = conf_dir();
        fs::write(conf.main(), "original").expect("file");
        conf.adopt_base().expect("renamed");
        conf.write(&conf.main(), HEADER).expect("written");
        conf.adopt_base().expect("nothing to do");
        assert_eq!(
            (text(&conf.base()), text(&conf.main())),
            ("original".into(), HEADER.into())
        );
    }

    #[test]
    fn our_own_file_never_becomes_the_base() {
        let (_dir, conf) = conf_dir();
        fs::write(conf.main(), format!("{HEADER}include 'postgresql.base.conf'\n")).expect("file");
        conf.adopt_base().expect("made");
        assert_eq!(text(&conf.base()), "");
    }

    #[test]
    fn a_custom_file_is_included_and_nothing_renamed() {
        let (_dir, mut conf) = conf_dir();
        conf.custom_conf = Some("/etc/own.conf".into());
        fs::write(conf.main(), "original").expect("file");
        conf.adopt_base().expect("nothing to do");
        assert!(!conf.base().exists());
        assert_eq!(conf.include(), "/etc/own.conf");
    }

    #[test]
    fn missing_files_come_back_from_their_copies() {
        let (_dir, conf) = conf_dir();
        for (file, content) in [(conf.main(), "m"), (conf.base(), "b"), (conf.hba(), "h")] {
            fs::write(file, content).expect("file");
        }
        conf.backup().expect("copied");
        fs::remove_file(conf.hba()).expect("removed");
        fs::write(conf.main(), "newer").expect("file");
        conf.restore_missing().expect("restored");
        assert_eq!(
            (text(&conf.hba()), text(&conf.main()), text(&conf.ident())),
            ("h".into(), "newer".into(), String::new())
        );
    }

    #[test]
    fn a_snapshot_undoes_what_a_rewind_overwrote() {
        let (_dir, conf) = conf_dir();
        fs::write(conf.main(), "ours").expect("file");
        conf.backup().expect("copied");
        let snapshot = conf.snapshot().expect("taken");
        fs::write(conf.main(), "leader's").expect("file");
        fs::write(conf.backup_of(&conf.main()), "leader's").expect("file");
        conf.restore(&snapshot).expect("restored");
        assert_eq!(
            (text(&conf.main()), text(&conf.backup_of(&conf.main()))),
            ("ours".into(), "ours".into())
        );
        let copy = conf.data_dir.join(dynamic_copy::FILE);
        fs::write(&copy, "leader's").expect("file");
        conf.restore(&snapshot).expect("restored");
        assert!(!copy.exists(), "there was none");
        fs::write(&copy, "ours").expect("file");
        let snapshot = conf.snapshot().expect("taken");
        fs::write(&copy, "leader's").expect("file");
        conf.restore(&snapshot).expect("restored");
        assert_eq!(text(&copy), "ours");
    }

    #[test]
    fn signals_follow_the_role() {
        let (dir, conf) = conf_dir();
        fs::write(dir.path().join(RECOVERY_SIGNAL), "").expect("file");
        conf.set_standby(true).expect("set");
        assert!(conf.is_standby() && !dir.path().join(RECOVERY_SIGNAL).exists());
        conf.set_standby(false).expect("removed");
        conf.set_standby(false).expect("already removed");
        assert!(!conf.is_standby());
    }

    #[test]
    fn alter_system_is_cleaned() {
        let (dir, conf) = conf_dir();
        assert!(!conf.strip_auto_conf(&[]).expect("absent is fine"));
        fs::write(
            dir.path().join("postgresql.auto.conf"),
            "primary_conninfo = 'x'\nwork_mem = '1MB'\n",
        )
        .expect("file");
        let left = || text(&dir.path().join("postgresql.auto.conf"));
        assert!(conf.strip_auto_conf(&[]).expect("cleaned"));
        assert_eq!(left(), "work_mem = '1MB'\n");
        assert!(conf.strip_auto_conf(&["work_mem"]).expect("cleaned"));
        assert_eq!(left(), "");
    }
}
