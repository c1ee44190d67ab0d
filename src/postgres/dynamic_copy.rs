//! The copy of the cluster's configuration in the data directory (contract: environment §4): it is in force from the
//! start until `/config` is read, and it is what a wiped store is given back.
//!
//! It belongs to this member and to this cluster. What is copied from elsewhere (a backup, another member's data, perhaps
//! another cluster's) may bring one along, which must never be read: it is removed before the data is put in place.

use std::{fs, path::Path};

use serde_json::{Map, Value};

use super::{
    datadir::{DataDir, classify},
    files::{self, Error, file_mode, remove_if_there, write_if_changed},
};

/// Its name in the data directory, as in Patroni.
pub const FILE: &str = "patroni.dynamic.json";

/// The copy in a data directory that can be used; `None` if there is none.
///
/// # Errors
/// It is there and is not a JSON object, or cannot be read; for a person.
pub fn read(data_dir: &Path) -> Result<Option<Map<String, Value>>, String> {
    if !matches!(classify(data_dir, None), DataDir::Valid(_)) {
        return Ok(None);
    }
    let path = data_dir.join(FILE);
    let shown = path.display();
    let Some(text) = files::optional("read", &path, fs::read_to_string(&path))
        .map_err(|error| format!("{error}: {}", error.source))?
    else {
        return Ok(None);
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(document)) => Ok(Some(document)),
        Ok(_) => Err(format!("{shown} is not a JSON object")),
        Err(error) => Err(format!("{shown} is not JSON: {error}")),
    }
}

/// Writes the copy, if the directory is a data directory that can be used and has another one; an empty directory stays
/// empty. Returns whether the copy is there now.
///
/// # Errors
/// It cannot be written.
pub fn write(data_dir: &Path, document: &Map<String, Value>) -> Result<bool, Error> {
    if !matches!(classify(data_dir, None), DataDir::Valid(_)) {
        return Ok(false);
    }
    let text = Value::Object(document.clone()).to_string();
    write_if_changed(&data_dir.join(FILE), text.as_bytes(), file_mode(data_dir))?;
    Ok(true)
}

/// Removes the copy that came with data from elsewhere.
///
/// # Errors
/// It cannot be removed.
pub fn forget(dir: &Path) -> Result<(), Error> {
    remove_if_there(&dir.join(FILE))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::postgres::datadir::INCOMPLETE;

    fn document(pause: bool) -> Map<String, Value> {
        let mut document = Map::new();
        document.insert("pause".to_owned(), pause.into());
        document
    }

    fn data_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("mode");
        fs::create_dir(dir.path().join("global")).expect("made");
        fs::write(dir.path().join("global/pg_control"), "x").expect("written");
        fs::write(dir.path().join("PG_VERSION"), "17\n").expect("written");
        dir
    }

    #[test]
    fn what_was_written_is_read_and_the_last_one_counts() {
        let dir = data_dir();
        assert_eq!(read(dir.path()), Ok(None));
        for pause in [true, false] {
            assert!(write(dir.path(), &document(pause)).expect("written"));
            assert_eq!(read(dir.path()), Ok(Some(document(pause))));
        }
        let mode = fs::metadata(dir.path().join(FILE)).expect("there");
        assert_eq!(mode.permissions().mode() & 0o7777, 0o600);
        forget(dir.path()).expect("removed");
        forget(dir.path()).expect("nothing to remove");
        assert_eq!(read(dir.path()), Ok(None));
    }

    #[test]
    fn an_empty_directory_stays_empty_and_an_unfinished_one_is_not_believed() {
        let empty = tempfile::tempdir().expect("a directory");
        assert!(!write(empty.path(), &document(true)).expect("not tried"));
        assert_eq!(fs::read_dir(empty.path()).expect("readable").count(), 0);
        assert!(!write(&empty.path().join("missing"), &document(true)).expect("not tried"));
        let dir = data_dir();
        assert!(write(dir.path(), &document(true)).expect("written"));
        fs::write(dir.path().join(INCOMPLETE), "").expect("written");
        assert_eq!(read(dir.path()), Ok(None));
        assert!(!write(dir.path(), &document(false)).expect("not tried"));
    }

    #[test]
    fn one_that_cannot_be_understood_is_said_to_be() {
        let dir = data_dir();
        for text in ["[]", "{\"pause\":", ""] {
            fs::write(dir.path().join(FILE), text).expect("written");
            let error = read(dir.path()).expect_err(text);
            assert!(error.contains(FILE) && error.contains("JSON"), "{error}");
        }
    }
}
