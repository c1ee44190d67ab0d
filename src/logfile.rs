//! A log file of a bounded size, and the last few before it (contract: environment §1.2, `LOG_DIR`): `patroni.log`,
//! `patroni.log.1` …, as Patroni writes them, so that whoever collects them goes on.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

const NAME: &str = "patroni.log";

/// Where and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Its folder, which must exist.
    pub dir: PathBuf,
    /// Mode of the file; `None`: what the umask leaves.
    pub mode: Option<u32>,
    /// A file that would grow beyond this is put aside; 0: never.
    pub bytes_max: u64,
    /// How many are kept that were put aside; 0: the file grows for ever.
    pub keep: u32,
}

/// The file, open.
#[derive(Debug)]
pub struct LogFile {
    settings: Settings,
    path: PathBuf,
    file: File,
    size: u64,
}

impl LogFile {
    /// Opens it, or makes it.
    ///
    /// # Errors
    /// The folder is not there or not ours to write to.
    pub fn open(settings: Settings) -> io::Result<Self> {
        let path = settings.dir.join(NAME);
        let (file, size) = open(&path, settings.mode)?;
        Ok(Self {
            settings,
            path,
            file,
            size,
        })
    }

    fn aside(&self, number: u32) -> PathBuf {
        self.settings.dir.join(format!("{NAME}.{number}"))
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.settings.keep).rev() {
            match fs::rename(self.aside(number), self.aside(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, self.aside(1))?;
        (self.file, self.size) = open(&self.path, self.settings.mode)?;
        Ok(())
    }

    fn is_full(&self, line: &[u8]) -> bool {
        let Settings { bytes_max, keep, .. } = self.settings;
        let more = u64::try_from(line.len()).unwrap_or(u64::MAX);
        bytes_max > 0 && keep > 0 && self.size > 0 && self.size.saturating_add(more) > bytes_max
    }
}

fn open(path: &Path, mode: Option<u32>) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let found = file.metadata()?;
    if let Some(mode) = mode
        && found.permissions().mode() & 0o7777 != mode
    {
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    Ok((file, found.len()))
}

impl Write for LogFile {
    /// A line. What the file does not take, on a full disk for example, goes to standard error.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.is_full(line) {
            // Where it cannot be put aside it goes on growing, rather than losing what is said now.
            let _kept: io::Result<()> = self.rotate();
        }
        match self.file.write_all(line) {
            Ok(()) => {
                self.size = self
                    .size
                    .saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX))
            }
            Err(_) => io::stderr().write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(dir: &Path) -> Settings {
        Settings {
            dir: dir.to_owned(),
            mode: Some(0o640),
            bytes_max: 10,
            keep: 2,
        }
    }

    fn text(dir: &Path, name: &str) -> Option<String> {
        fs::read_to_string(dir.join(name)).ok()
    }

    #[test]
    fn a_full_file_is_put_aside_and_the_last_few_are_kept() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let mut log = LogFile::open(settings(dir.path()))?;
        for line in [
            "one 6\n",
            "two 6\n",
            "three\n",
            "a line beyond any limit\n",
            "end\n",
        ] {
            log.write_all(line.as_bytes())?;
        }
        assert_eq!(text(dir.path(), NAME).as_deref(), Some("end\n"));
        assert_eq!(
            text(dir.path(), "patroni.log.1").as_deref(),
            Some("a line beyond any limit\n")
        );
        assert_eq!(text(dir.path(), "patroni.log.2").as_deref(), Some("three\n"));
        assert_eq!(text(dir.path(), "patroni.log.3"), None);
        let mode = fs::metadata(dir.path().join(NAME))?.permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        Ok(())
    }

    #[test]
    fn one_that_is_there_is_gone_on_with() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join(NAME), "before\n")?;
        let mut log = LogFile::open(settings(dir.path()))?;
        log.write_all(b"now\n")?;
        log.write_all(b"then\n")?;
        assert_eq!(text(dir.path(), "patroni.log.1").as_deref(), Some("before\n"));
        assert_eq!(text(dir.path(), NAME).as_deref(), Some("now\nthen\n"));
        Ok(())
    }

    #[test]
    fn without_a_limit_it_grows() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        for unlimited in [
            Settings {
                bytes_max: 0,
                ..settings(dir.path())
            },
            Settings {
                keep: 0,
                ..settings(dir.path())
            },
        ] {
            LogFile::open(unlimited)?.write_all(b"more than ten bytes\n")?;
        }
        assert_eq!(text(dir.path(), NAME).map(|text| text.lines().count()), Some(2));
        assert_eq!(text(dir.path(), "patroni.log.1"), None);
        Ok(())
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        assert!(LogFile::open(settings(Path::new("/no/such/folder"))).is_err());
    }
}
