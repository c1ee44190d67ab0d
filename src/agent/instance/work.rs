//! What takes long: making a new cluster, copying another member's data, rewinding, promoting.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Instance, SMALL, Settings, chain, lock};
use crate::{
    ha::{StartAs, Upstream},
    model::{Dynamic, SystemId},
    postgres::{
        clone,
        command::Command,
        datadir::INCOMPLETE,
        files, initdb, initscripts, options, pgpass,
        postmaster::{StopLadder, StopMode},
        promote,
        query::{Address, Monitor, Target},
        rewind, roles,
        staging::{self, OldData, Staging},
    },
};

/// How far long work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// A copy.
    Clone {
        /// Bytes copied.
        done_bytes: u64,
        /// Bytes expected.
        total_bytes: u64,
    },
}

/// A new cluster's postgres has nothing to recover.
const FIRST_START_LIMIT: Duration = Duration::from_secs(60);
/// Rewinding reads the WAL since the histories parted.
const REWIND_LIMIT: Duration = Duration::from_secs(3600);
/// The leader's checkpoint before a rewind.
const LEADER_CHECKPOINT_LIMIT: Duration = Duration::from_secs(60);
/// A copy that stands still for this long is given up.
const CLONE_STALL: Duration = Duration::from_secs(120);

impl Instance {
    /// initdb, roles, database, init scripts. Postgres is stopped again at the end; until then it listens on its
    /// Unix socket only, because this member does not hold the lock yet. A crash on the way leaves a marker, and the
    /// next attempt begins afresh.
    pub async fn bootstrap(
        &self,
        dynamic: &Dynamic,
        _progress: &watch::Sender<Option<Progress>>,
        cancel: &CancellationToken,
    ) -> Result<SystemId, String> {
        let settings = self.settings();
        let staging = Staging::prepare(self.data_dir()).map_err(|error| chain(&error))?;
        let input = initdb::Input {
            dir: staging.dir(),
            superuser: &settings.superuser.login,
            options: &serde_json::Value::Null,
            args: &settings.initdb,
            identity: None,
        };
        info!(dir = %self.data_dir().display(), "creating a new cluster with initdb");
        if let Err(error) = initdb::run(&self.binaries, &input, cancel).await {
            if let Err(error) = staging.discard() {
                warn!(
                    error = chain(&error),
                    "could not remove the unfinished new cluster"
                );
            }
            return Err(chain(&error));
        }
        // The marker goes in before the directory is in place: from then on it looks like a data directory.
        let marker = self.data_dir().join(INCOMPLETE);
        files::write_atomic(&staging.dir().join(INCOMPLETE), b"bootstrap\n", 0o600)
            .map_err(|error| chain(&error))?;
        staging
            .install(OldData::KeepRenamed, &staging::stamp(jiff::Timestamp::now()))
            .map_err(|error| chain(&error))?;
        files::write_atomic(&marker, b"bootstrap\n", 0o600).map_err(|error| chain(&error))?;
        let prepared = self.prepare(&settings, dynamic, cancel).await;
        let ladder = StopLadder {
            smart: Duration::ZERO,
            fast: Duration::from_secs(60),
            immediate: Duration::from_secs(5),
        };
        let stopped = self.stop(StopMode::Fast, ladder).await;
        prepared?;
        stopped?;
        let id = self.control().await?.system_id;
        std::fs::remove_file(&marker).map_err(|error| format!("remove {}: {error}", marker.display()))?;
        Ok(id)
    }

    async fn prepare(
        &self,
        settings: &Settings,
        dynamic: &Dynamic,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let mut args = self.write_files(&StartAs::Primary, dynamic, None)?;
        args.push("--listen_addresses=".to_owned());
        self.launch(args, FIRST_START_LIMIT, cancel).await?;
        self.create_roles(settings).await?;
        self.create_database(settings).await?;
        self.run_scripts(settings, cancel).await
    }

    async fn create_roles(&self, settings: &Settings) -> Result<(), String> {
        let statements = [
            roles::SILENCE.to_owned(),
            roles::superuser(&settings.superuser.login),
            roles::replication(&settings.replication.login),
            roles::rewind(&settings.rewind.login),
            roles::UNSILENCE.to_owned(),
        ];
        for statement in statements {
            // The statement itself is not part of the error: it holds a password.
            let done = self.monitor.execute(&statement, SMALL).await;
            done.map_err(|error| format!("create the roles: {}", chain(&error)))?;
        }
        info!(
            superuser = settings.superuser.login.username,
            replication = settings.replication.login.username,
            rewind = settings.rewind.login.username,
            "created the roles"
        );
        Ok(())
    }

    async fn create_database(&self, settings: &Settings) -> Result<(), String> {
        let name = &settings.create_database;
        let exists = roles::DATABASE_EXISTS.replace("$1", &roles::literal(name));
        let found = self
            .monitor
            .execute(&exists, SMALL)
            .await
            .map_err(|error| chain(&error))?;
        if found.is_some() {
            return Ok(());
        }
        let sql = roles::create_database(name, None);
        let limit = Duration::from_secs(60);
        self.monitor
            .execute_long(&sql, limit)
            .await
            .map_err(|error| format!("create database {name}: {}", chain(&error)))?;
        info!(database = name, "created the database");
        Ok(())
    }

    async fn run_scripts(&self, settings: &Settings, cancel: &CancellationToken) -> Result<(), String> {
        let socket_dir = settings.socket_dir.to_string_lossy().into_owned();
        let port = settings.port.to_string();
        let entry = pgpass::Entry {
            host: &socket_dir,
            port: &port,
            login: &settings.superuser.login,
        };
        pgpass::write(&settings.passfile, &[entry]).map_err(|error| chain(&error))?;
        let context = initscripts::Context {
            socket_dir: &socket_dir,
            port: settings.port,
            user: &settings.superuser.login.username,
            database: &settings.create_database,
            data_dir: self.data_dir(),
            passfile: &settings.passfile,
            identity: None,
        };
        let ran = initscripts::run_all(&self.binaries, &settings.scripts_dir, &context, cancel).await;
        let ran = ran.map_err(|error| chain(&error))?;
        if ran > 0 {
            info!(scripts = ran, dir = %settings.scripts_dir.display(), "ran the init scripts");
        }
        self.post_bootstrap(settings, &socket_dir, cancel).await
    }

    async fn post_bootstrap(
        &self,
        settings: &Settings,
        socket_dir: &str,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let Some(command) = &settings.post_bootstrap else {
            return Ok(());
        };
        let words =
            options::split_words(command).map_err(|error| format!("post_bootstrap: {}", chain(&error)))?;
        let Some((program, arguments)) = words.split_first() else {
            return Ok(());
        };
        let user = &settings.superuser.login.username;
        let dsn = format!(
            "host={socket_dir} port={} user={user} dbname={}",
            settings.port, settings.create_database
        );
        info!(command, "running post_bootstrap");
        let run = Command::new(program)
            .args(arguments)
            .arg(dsn)
            .env("PGPASSFILE", &settings.passfile)
            .env("PGOPTIONS", "-c synchronous_commit=local -c statement_timeout=0")
            .run(cancel);
        run.await
            .map(drop)
            .map_err(|error| format!("post_bootstrap: {}", chain(&error)))
    }

    /// Copies the upstream's data into a side directory and puts it in place. What was there is renamed if it is to be
    /// kept, and removed otherwise; in both cases only once the copy is complete.
    pub async fn copy_from(
        &self,
        from: &Upstream,
        keep: bool,
        dynamic: &Dynamic,
        progress: &watch::Sender<Option<Progress>>,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let settings = self.settings();
        let old = if keep {
            OldData::KeepRenamed
        } else {
            OldData::Remove
        };
        let staging = Staging::prepare(self.data_dir()).map_err(|error| chain(&error))?;
        self.write_passfile(from)?;
        let source = self
            .connection(from, &settings.replication)
            .with_replication_defaults(self.binaries.major());
        let input = clone::Input {
            source: &source,
            passfile: &settings.passfile,
            options: &serde_json::Value::from(settings.basebackup.clone()),
            attempts: 2,
            stall: CLONE_STALL,
            identity: None,
        };
        let copied = watch::Sender::new(clone::Progress::default());
        let relay = relay(copied.subscribe(), progress.clone());
        let made = clone::run(&self.binaries, &staging, &input, &copied, cancel).await;
        relay.abort();
        if let Err(error) = made {
            if let Err(error) = staging.discard() {
                warn!(error = chain(&error), "could not remove the unfinished copy");
            }
            return Err(chain(&error));
        }
        // Whatever happens next, this copy must never be started as a primary.
        files::write_atomic(&staging.dir().join("standby.signal"), b"", 0o600)
            .map_err(|error| chain(&error))?;
        let kept = staging
            .install(old, &staging::stamp(jiff::Timestamp::now()))
            .map_err(|error| chain(&error))?;
        if let Some(kept) = kept {
            info!(dir = %kept.display(), "the old data directory was kept");
        }
        self.write_files(&StartAs::Replica(Some(from.clone())), dynamic, None)?;
        Ok(())
    }

    /// Makes the stopped directory follow the leader's history.
    pub async fn rewind(
        &self,
        to: &Upstream,
        dynamic: &Dynamic,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let settings = self.settings();
        self.write_passfile(to)?;
        self.leader_checkpoint(&settings, to).await;
        let source = self.connection(to, &settings.rewind);
        let input = rewind::Input {
            conf: &self.conf,
            source: &source,
            passfile: &settings.passfile,
            has_restore_command: false,
            options: &serde_json::Value::from(settings.rewind_args.clone()),
            deadline: REWIND_LIMIT,
            identity: None,
        };
        match rewind::run(&self.binaries, &input, cancel)
            .await
            .map_err(|error| chain(&error))?
        {
            rewind::Outcome::Done => info!(leader = %to.member, "rewound"),
            rewind::Outcome::NotNeeded => info!(leader = %to.member, "pg_rewind found nothing to rewind"),
            rewind::Outcome::Failed {
                tail, target_broken, ..
            } => {
                return Err(format!(
                    "pg_rewind failed (directory {}): {tail}",
                    if target_broken { "unusable" } else { "unchanged" }
                ));
            }
        }
        self.write_files(&StartAs::Replica(Some(to.clone())), dynamic, None)?;
        Ok(())
    }

    /// pg_rewind judges by the source's control file, which names the new timeline only after a checkpoint
    /// (documentation of pg_rewind, "Notes").
    async fn leader_checkpoint(&self, settings: &Arc<Settings>, leader: &Upstream) {
        let monitor = Monitor::new(Target {
            address: Address::Tcp(leader.host.clone()),
            port: leader.port,
            user: settings.superuser.login.username.clone(),
            password: settings
                .superuser
                .login
                .password
                .as_ref()
                .map(|p| p.reveal().to_owned()),
            dbname: settings.database.clone(),
            application_name: format!("Howdah {}", settings.member),
        });
        if let Err(error) = monitor.execute_long("CHECKPOINT", LEADER_CHECKPOINT_LIMIT).await {
            warn!(error = chain(&error), leader = %leader.member, "could not checkpoint the leader before the rewind");
        }
    }

    /// Promotes the running replica; returns the phases for the log. The checkpoint afterwards runs on its own.
    pub async fn promote(&self, limit: Duration, cancel: &CancellationToken) -> Result<String, String> {
        if cancel.is_cancelled() {
            return Err("cancelled".to_owned());
        }
        let done = promote::promote(&self.postmaster, &self.monitor, limit)
            .await
            .map_err(|error| chain(&error))?;
        *lock(&self.role) = Some(StartAs::Primary);
        let monitor = self.monitor.clone();
        // Its own task: nobody waits for it, and it ends with its connection's limit.
        tokio::spawn(async move {
            if let Err(error) = monitor
                .execute_long("CHECKPOINT", LEADER_CHECKPOINT_LIMIT * 10)
                .await
            {
                warn!(error = chain(&error), "the checkpoint after the promotion failed");
            }
        });
        let ms = |d: Duration| d.as_millis();
        Ok(format!(
            "ask {} ms, request {} ms, recover {} ms",
            ms(done.prepared),
            ms(done.requested),
            ms(done.recovered)
        ))
    }
}

/// Passes the copy's own progress on; ends with the copy.
fn relay(
    mut copied: watch::Receiver<clone::Progress>,
    progress: watch::Sender<Option<Progress>>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while copied.changed().await.is_ok() {
            let now = *copied.borrow_and_update();
            progress.send_replace(Some(Progress::Clone {
                done_bytes: now.done_bytes,
                total_bytes: now.total_bytes,
            }));
        }
    })
}
