//! The cluster's configuration outlives this process and the store in the data directory
//! ([`crate::postgres::dynamic_copy`]).

use std::path::Path;

use tracing::{info, warn};

use super::{Agent, instance::chain};
use crate::{
    model::{Dynamic, of_new_cluster},
    postgres::dynamic_copy,
};

/// Whether the copy may differ from what is in force.
#[derive(Debug)]
pub(super) struct Copy {
    /// It is to be written.
    pub due: bool,
    /// Why it could not be, as far as it was told.
    told: Option<String>,
}

impl Copy {
    pub(super) const fn unknown() -> Self {
        Self {
            due: true,
            told: None,
        }
    }
}

/// The configuration until the store's is read, and whether it is the copy of that: otherwise it is what a new cluster
/// is given.
pub(super) fn at_start(
    data_dir: &Path,
    of_bootstrap: &serde_json::Map<String, serde_json::Value>,
) -> (Dynamic, bool) {
    let copy = dynamic_copy::read(data_dir).unwrap_or_else(|error| {
        warn!(
            error,
            "the copy of the cluster's configuration cannot be used, bootstrap.dcs is until the DCS is read"
        );
        None
    });
    match copy {
        Some(document) => (Dynamic::from_map(&document), true),
        None => (Dynamic::from_map(&of_new_cluster(of_bootstrap)), false),
    }
}

impl Agent {
    /// What this agent was given as the initial configuration has been the cluster's: it is in force at once, whether the
    /// DCS answers or not.
    pub(super) fn believe_copy(&mut self) {
        info!(
            paused = self.dynamic.pause,
            "going on with the cluster's configuration as this member last knew it, until the DCS is read"
        );
        self.lease.set_fenced(!self.dynamic.pause);
        self.took_dynamic();
    }

    /// Writes what the store says to the data directory. Not beside a job, which may replace that; afterwards it is looked
    /// at again.
    pub(super) fn keep_dynamic(&mut self) {
        if !self.dynamic_copy.due || self.config_version.is_none() || self.jobs.view().is_some() {
            return;
        }
        match dynamic_copy::write(self.instance.data_dir(), &self.dynamic.raw) {
            Ok(written) => {
                self.dynamic_copy = Copy {
                    due: !written,
                    told: None,
                }
            }
            Err(error) => {
                let error = chain(&error);
                if self.dynamic_copy.told.as_ref() != Some(&error) {
                    warn!(error, "could not keep a copy of the cluster's configuration yet");
                    self.dynamic_copy.told = Some(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use serde_json::json;

    use super::*;

    #[test]
    fn the_copy_comes_before_the_bootstrap_document_and_is_taken_as_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let given = json!({"ttl": 20, "synchronous_mode": "on"});
        let given = given.as_object().expect("an object");
        let (new, known) = at_start(dir.path(), given);
        assert!(!known && new.failsafe_mode && !new.pause);
        assert_eq!(new.timing.ttl.as_secs(), 20);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("mode");
        fs::create_dir(dir.path().join("global")).expect("made");
        fs::write(dir.path().join("global/pg_control"), "x").expect("written");
        fs::write(dir.path().join("PG_VERSION"), "17\n").expect("written");
        let file = dir.path().join(dynamic_copy::FILE);
        fs::write(&file, r#"{"pause": true, "ttl": 40}"#).expect("written");
        let (copy, known) = at_start(dir.path(), given);
        assert!(known && copy.pause && !copy.failsafe_mode);
        assert_eq!(copy.timing.ttl.as_secs(), 40);
        assert!(!copy.raw.contains_key("synchronous_mode"));
        fs::write(&file, "half").expect("written");
        assert!(!at_start(dir.path(), given).1);
    }
}
