//! Making a replica in the ways that are configured, one after the other until one works (contract: bootstrap and
//! images §4).
//!
//! A command works in a side directory like pg_basebackup, which it is told as `--datadir` and in `PGDATA`; what is there
//! is replaced once the new copy is complete. One that is not told (`no_params`) or that is to work on what is there
//! (`keep_data`) works in the data directory itself, and is passed over while that may hold what exists nowhere else.

use std::{path::Path, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Instance, Progress, chain, work::discard};
use crate::{
    ha::{StartAs, Upstream},
    model::{BASEBACKUP, Dynamic, ReplicaCommand, ReplicaMethod, SystemId, read_methods},
    postgres::{
        command::Command,
        control,
        datadir::{self, DataDir},
        files,
        inplace::InPlace,
        options,
        staging::{self, OldData, Staging},
        version::Major,
    },
};

/// Fetching a backup may take days; nobody waits for a command for ever.
const COMMAND_LIMIT: Duration = Duration::from_secs(7 * 86_400);

/// What is to be put in the place of the data directory.
#[derive(Debug, Clone, Copy)]
pub struct Replacement<'a> {
    /// Whom to copy from; `None`: only methods that need nobody.
    pub from: Option<&'a Upstream>,
    /// What is replaced is renamed, not removed.
    pub keep: bool,
    /// By `pg_basebackup`, whatever is configured.
    pub basebackup_only: bool,
    /// Identity of the cluster, if it is known. A copy of another one is not put in place.
    pub expected: Option<&'a SystemId>,
}

impl Instance {
    /// A way is configured that needs nobody to copy from.
    #[must_use]
    pub fn can_restore(&self, dynamic: &Dynamic) -> bool {
        let names = method_names(&self.settings().create_replica_methods, dynamic, None);
        let methods = names.iter().filter_map(|name| self.method(name, dynamic).ok());
        methods.into_iter().any(|method| method.needs_no_leader())
    }

    /// Copies the upstream's data into a side directory and puts it in place, by `pg_basebackup` unless something else is
    /// configured. See [`Instance::make_replica`].
    pub async fn copy_from(
        &self,
        from: &Upstream,
        keep: bool,
        dynamic: &Dynamic,
        progress: &watch::Sender<Option<Progress>>,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let replacement = Replacement {
            from: Some(from),
            keep,
            basebackup_only: false,
            expected: None,
        };
        self.make_replica(&replacement, dynamic, progress, cancel).await
    }

    /// Makes a replica and puts it in place. What was there is renamed if it is to be kept, and removed otherwise; in both
    /// cases only once the copy is complete.
    pub async fn make_replica(
        &self,
        replacement: &Replacement<'_>,
        dynamic: &Dynamic,
        progress: &watch::Sender<Option<Progress>>,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        self.finish_exchange()?;
        if replacement.keep {
            self.refuse_attic("keeping another copy")?;
        }
        self.settle_tablespaces(OldData::KeepRenamed, None)?;
        let mut errors = Vec::new();
        for name in self.names(replacement, dynamic) {
            if cancel.is_cancelled() {
                return Err("cancelled".to_owned());
            }
            let made = match self.method(&name, dynamic) {
                Ok(method) => self.by(&method, replacement, progress, cancel).await,
                Err(error) => Err(error),
            };
            match made {
                Ok(()) => {
                    self.forget_sync_names();
                    let role = StartAs::Replica(replacement.from.cloned());
                    self.write_files(&role, dynamic, None).await?;
                    return Ok(());
                }
                Err(error) => {
                    warn!(method = name, error, "could not make a replica this way");
                    errors.push(format!("{name}: {error}"));
                }
            }
        }
        Err(match errors.is_empty() {
            true => "no way to make a replica without a source is configured".to_owned(),
            false => errors.join("; "),
        })
    }

    fn names(&self, replacement: &Replacement<'_>, dynamic: &Dynamic) -> Vec<String> {
        if replacement.basebackup_only {
            return vec![BASEBACKUP.to_owned()];
        }
        let names = method_names(&self.settings().create_replica_methods, dynamic, replacement.from);
        let usable = |name: &String| {
            // What is wrong with a method is said when it is tried.
            replacement.from.is_some_and(Upstream::streams)
                || self
                    .method(name, dynamic)
                    .is_ok_and(|method| method.needs_no_leader())
        };
        names.into_iter().filter(usable).collect()
    }

    /// A method by its name; this member's own section comes before the cluster's.
    fn method(&self, name: &str, dynamic: &Dynamic) -> Result<ReplicaMethod, String> {
        let settings = self.settings();
        let shared = dynamic.postgresql().and_then(|pg| pg.get(name));
        let section = settings.method_sections.get(name).or(shared);
        ReplicaMethod::read(name, section).map_err(|error| format!("postgresql.{name}: {error}"))
    }

    async fn by(
        &self,
        method: &ReplicaMethod,
        replacement: &Replacement<'_>,
        progress: &watch::Sender<Option<Progress>>,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let connstring = match replacement.from {
            Some(from) if from.streams() => self.connstring(from)?,
            _ => String::new(),
        };
        if let ReplicaMethod::Command(command) = method
            && command.in_place()
        {
            return self.in_place(command, &connstring, replacement, cancel).await;
        }
        let staging = Staging::prepare(self.data_dir()).map_err(|error| chain(&error))?;
        let dir = staging.dir();
        let made = match (method, replacement.from) {
            (ReplicaMethod::Command(command), _) => {
                let scope = &self.settings().scope;
                let arguments = command.arguments(scope, &dir.to_string_lossy(), &connstring);
                self.run_command(&command.command, &arguments, dir, cancel).await
            }
            (ReplicaMethod::Basebackup, Some(from)) => {
                self.basebackup(from, &staging, progress, cancel).await
            }
            (ReplicaMethod::Basebackup, None) => Err("there is nobody to copy from".to_owned()),
        };
        let made = match made {
            Ok(()) => self.judge(dir, replacement.expected, cancel).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = made {
            discard(&staging);
            return Err(error);
        }
        self.install(&staging, replacement.keep)
    }

    /// Puts a complete copy in the place of what is there.
    fn install(&self, staging: &Staging, keep: bool) -> Result<(), String> {
        let old = if keep {
            OldData::KeepRenamed
        } else {
            OldData::Remove
        };
        // Whatever happens next, this copy must never be started as a primary.
        write_standby_signal(staging.dir())?;
        let kept = staging
            .install(old, &staging::stamp(jiff::Timestamp::now()))
            .map_err(|error| chain(&error))?;
        datadir::unmark_beside(self.data_dir()).map_err(|error| chain(&error))?;
        self.settle_tablespaces(old, kept.as_deref())?;
        if let Some(kept) = kept {
            info!(dir = %kept.display(), "the old data directory was kept");
        }
        Ok(())
    }

    async fn in_place(
        &self,
        command: &ReplicaCommand,
        connstring: &str,
        replacement: &Replacement<'_>,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let dir = self.data_dir();
        let nothing = matches!(self.classify(), DataDir::Empty | DataDir::Incomplete(_));
        if replacement.keep && !nothing {
            return Err(format!(
                "it works in {} itself, and what is there must be kept",
                dir.display()
            ));
        }
        let place = InPlace::begin(dir, command.keep_data).map_err(|error| chain(&error))?;
        let scope = &self.settings().scope;
        let arguments = command.arguments(scope, &dir.to_string_lossy(), connstring);
        let ran = self.run_command(&command.command, &arguments, dir, cancel).await;
        let made = match ran {
            Ok(()) => self.judge(dir, replacement.expected, cancel).await.map(drop),
            Err(error) => Err(error),
        };
        let done = match made {
            Ok(()) => write_standby_signal(dir).and_then(|()| place.finish().map_err(|error| chain(&error))),
            Err(error) => {
                if let Err(left) = place.give_up() {
                    warn!(error = chain(&left), "could not undo what the command did");
                }
                Err(error)
            }
        };
        done?;
        if let Err(error) = datadir::repair_mode(dir) {
            warn!(
                error = chain(&error),
                "the mode of the data directory cannot be put right"
            );
        }
        Ok(())
    }

    fn connstring(&self, from: &Upstream) -> Result<String, String> {
        self.write_passfile(from)?;
        let settings = self.settings();
        let major = self.binaries.major();
        let source = self.connection(from, &settings.replication);
        Ok(source.with_replication_defaults(major).dsn(major))
    }

    /// Runs a command of the operator's that fills `dir`, and writes to disk what it did not.
    pub(super) async fn run_command(
        &self,
        line: &str,
        arguments: &[String],
        dir: &Path,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let words = options::split_words(line).map_err(|error| chain(&error))?;
        let (program, first) = words.split_first().ok_or("the command is empty")?;
        info!(command = line, dir = %dir.display(), "running");
        let command = Command::new(program)
            .args(first)
            .args(arguments)
            .env("PGDATA", dir)
            .env("PGPASSFILE", &self.settings().passfile)
            .deadline(COMMAND_LIMIT);
        command.run(cancel).await.map_err(|error| chain(&error))?;
        let dir = dir.to_owned();
        let synced = tokio::task::spawn_blocking(move || files::sync_file_system(&dir));
        // Cancel-safe: nobody needs data that is not put in place.
        tokio::select! {
            () = cancel.cancelled() => Err("cancelled".to_owned()),
            synced = synced => synced
                .map_err(|failure| failure.to_string())?
                .map_err(|error| chain(&error)),
        }
    }

    /// Whether `dir` is what was wanted: data of this major version, and of this cluster.
    pub(super) async fn judge(
        &self,
        dir: &Path,
        expected: Option<&SystemId>,
        cancel: &CancellationToken,
    ) -> Result<SystemId, String> {
        let file = dir.join("PG_VERSION");
        let text = std::fs::read_to_string(&file)
            .map_err(|error| format!("it left no usable data: {}: {error}", file.display()))?;
        let major = Major::parse_pg_version(&text).map_err(|error| chain(&error))?;
        let ours = self.binaries.major();
        if major != ours {
            return Err(format!(
                "it left data of PostgreSQL {major}, this is PostgreSQL {ours}"
            ));
        }
        let read = Box::pin(control::read(&self.binaries, dir, None, cancel)).await;
        let found = read.map_err(|error| chain(&error))?.control.system_id;
        match expected {
            Some(expected) if *expected != found => Err(format!(
                "it left data of another cluster (system identifier {found}, ours is {expected})"
            )),
            _ => Ok(found),
        }
    }
}

/// The ways to make a replica, in order: of a remote cluster those of its section, else this member's own, else the
/// cluster's.
fn method_names(own: &[String], dynamic: &Dynamic, from: Option<&Upstream>) -> Vec<String> {
    let remote = dynamic.standby.as_ref();
    let given = match remote.filter(|_| from.is_some_and(Upstream::is_remote)) {
        Some(remote) => remote.create_replica_methods.clone(),
        None if own.is_empty() => dynamic.postgresql().map(read_methods).unwrap_or_default(),
        None => own.to_vec(),
    };
    match given.is_empty() {
        true => vec![BASEBACKUP.to_owned()],
        false => given,
    }
}

fn write_standby_signal(dir: &Path) -> Result<(), String> {
    files::write_atomic(&dir.join("standby.signal"), b"", 0o600).map_err(|error| chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_members_own_ways_come_before_the_clusters() {
        let document = json!({"postgresql": {"create_replica_methods": ["shared", "basebackup"]},
            "standby_cluster": {"host": "h", "create_replica_methods": ["far"]}});
        let dynamic = Dynamic::from_map(document.as_object().expect("a map"));
        let own = ["own".to_owned()];
        let remote = dynamic.standby.as_ref().map(Upstream::remote);
        assert_eq!(method_names(&own, &dynamic, None), ["own"]);
        assert_eq!(method_names(&[], &dynamic, None), ["shared", "basebackup"]);
        assert_eq!(method_names(&own, &dynamic, remote.as_ref()), ["far"]);
        let plain = Dynamic::default();
        assert_eq!(method_names(&[], &plain, None), [BASEBACKUP]);
        assert_eq!(method_names(&own, &plain, remote.as_ref()), ["own"]);
    }
}
