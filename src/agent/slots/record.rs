//! The slots that are ours, on disk beside the data they belong to. PostgreSQL does not say who made a slot, and a slot
//! taken out of the configuration while this member was down must still go. A base backup copies the file and not the
//! slots; names without a slot are forgotten by the next turn.

use std::{collections::BTreeSet, path::Path};

use tracing::warn;

use super::super::instance::chain;
use crate::postgres::files;

const FILE: &str = "howdah.slots.json";

/// Empty if there is none, or none that can be read: then nothing is dropped that has to be known from here.
pub(super) fn load(data_dir: &Path) -> BTreeSet<String> {
    let text = std::fs::read(data_dir.join(FILE)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

pub(super) fn store(data_dir: &Path, names: &BTreeSet<String>) {
    let Ok(text) = serde_json::to_vec(names) else {
        return;
    };
    let path = data_dir.join(FILE);
    if let Err(error) = files::write_if_changed(&path, &text, files::file_mode(data_dir)) {
        warn!(
            error = chain(&error),
            "could not note which slots are ours; one that is wanted no more may stay after a restart"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_loaded_and_junk_is_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(load(dir.path()), BTreeSet::new());
        let names = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        store(dir.path(), &names);
        assert_eq!(load(dir.path()), names);
        std::fs::write(dir.path().join(FILE), "junk").expect("write");
        assert_eq!(load(dir.path()), BTreeSet::new());
    }
}
