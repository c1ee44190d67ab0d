//! What takes long: making a new cluster, copying another member's data, rewinding, promoting.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Instance, SMALL, Settings,
    callbacks::{self, Event},
    chain, lock,
};
use crate::{
    ha::{Failure, StartAs, Upstream},
    model::{Dynamic, SystemId, Timeline},
    postgres::{
        clone,
        command::Command,
        datadir::{self, INCOMPLETE, NEW_CLUSTER},
        dynamic_copy, files, initdb, initscripts, options, pgpass,
        postmaster::{State, StopLadder, StopMode},
        promote::{self, Promotion},
        query::{Address, Monitor},
        roles,
        staging::{self, OldData, Staging},
        tablespaces,
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
    /// A command makes the data of a new cluster.
    CustomBootstrap,
    /// What it has made is being recovered.
    Recovering,
}

/// The database initdb makes for connections like ours.
pub(super) const MAINTENANCE: &str = "postgres";
/// A new cluster's postgres has nothing to recover.
const FIRST_START_LIMIT: Duration = Duration::from_secs(60);
/// The checkpoint after a promotion may write a lot.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(600);
/// A hook may ask a person's script a lot, but the cluster has no primary meanwhile.
const PRE_PROMOTE_LIMIT: Duration = Duration::from_secs(60);
/// One question to the source of a copy.
const SOURCE_LIMIT: Duration = Duration::from_secs(5);
/// A copy that stands still for this long is given up.
const CLONE_STALL: Duration = Duration::from_secs(120);

impl Instance {
    /// initdb (or the configured command), roles, database, init scripts. Postgres is stopped again at the end; until
    /// then it listens on its Unix socket only, because this member does not hold the lock yet. A crash on the way leaves
    /// a marker, and the next attempt begins afresh.
    pub async fn bootstrap(
        &self,
        dynamic: &Dynamic,
        progress: &watch::Sender<Option<Progress>>,
        cancel: &CancellationToken,
    ) -> Result<SystemId, String> {
        let settings = self.settings();
        self.finish_exchange()?;
        let marker = self.data_dir().join(INCOMPLETE);
        match &settings.bootstrap_method {
            None => self.initdb(&settings, cancel).await?,
            Some(method) => {
                progress.send_replace(Some(Progress::CustomBootstrap));
                self.bring(method, &settings, cancel).await?;
            }
        }
        let prepared = match &settings.bootstrap_method {
            None => self.prepare(&settings, dynamic, cancel).await,
            Some(method) => {
                progress.send_replace(Some(Progress::Recovering));
                self.prepare_restored(method, &settings, dynamic, cancel).await
            }
        };
        let ladder = StopLadder {
            smart: Duration::ZERO,
            // What a command has brought may be large, and its first checkpoint with it.
            fast: Duration::from_secs(600),
            immediate: Duration::from_secs(5),
        };
        let stopped = self.halt(StopMode::Fast, ladder).await;
        self.monitor
            .retarget(settings.local_target(&settings.database))
            .await;
        prepared?;
        stopped?;
        let id = self.control().await?.system_id;
        dynamic_copy::forget(self.data_dir()).map_err(|error| chain(&error))?;
        std::fs::remove_file(&marker).map_err(|error| format!("remove {}: {error}", marker.display()))?;
        datadir::unmark_beside(self.data_dir()).map_err(|error| chain(&error))?;
        // A marker that came back after a power failure would make served data count as unfinished.
        files::sync_dir(self.data_dir()).map_err(|error| chain(&error))?;
        Ok(id)
    }

    async fn initdb(&self, settings: &Settings, cancel: &CancellationToken) -> Result<(), String> {
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
            discard(&staging);
            return Err(chain(&error));
        }
        self.install_unfinished(&staging)
    }

    /// Puts the data of a cluster that is not ready yet in its place.
    pub(super) fn install_unfinished(&self, staging: &Staging) -> Result<(), String> {
        // The marker goes in before the directory is in place: from then on it looks like a data directory.
        let marker = self.data_dir().join(INCOMPLETE);
        files::write_atomic(&staging.dir().join(INCOMPLETE), NEW_CLUSTER, 0o600)
            .map_err(|error| chain(&error))?;
        // What an attempt before this one has left was never served to anybody: a container that is started again and
        // again must not fill its volume with it.
        let old = match std::fs::read(&marker) {
            Ok(text) if text == NEW_CLUSTER => OldData::Remove,
            _ => OldData::KeepRenamed,
        };
        staging
            .install(old, &staging::stamp(jiff::Timestamp::now()))
            .map_err(|error| chain(&error))?;
        files::write_atomic(&marker, NEW_CLUSTER, 0o600).map_err(|error| chain(&error))
    }

    /// An exchange of directories that failed half-way in this process is finished before anything else is done: what it
    /// was to keep must not be taken for what it was to remove.
    pub(super) fn finish_exchange(&self) -> Result<(), String> {
        match staging::finish_interrupted(self.data_dir()) {
            Ok(false) => Ok(()),
            Ok(true) => Err("an earlier exchange of the data directory had to be finished first".to_owned()),
            Err(error) => Err(chain(&error)),
        }
    }

    async fn prepare(
        &self,
        settings: &Settings,
        dynamic: &Dynamic,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let mut args = self.write_files(&StartAs::Primary, dynamic, None).await?;
        args.push("--listen_addresses=".to_owned());
        self.launch(args, FIRST_START_LIMIT, cancel)
            .await
            .map_err(|failure| failure.to_string())?;
        // Any other database has yet to be created.
        self.monitor.retarget(settings.local_target(MAINTENANCE)).await;
        self.create_roles(settings).await?;
        self.create_database(&settings.create_database).await?;
        self.create_database(&settings.database).await?;
        self.grant_where_agents_connect(settings).await?;
        self.run_scripts(settings, cancel).await
    }

    pub(super) async fn create_roles(&self, settings: &Settings) -> Result<(), String> {
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

    /// The agents connect to one database, and what the rewind role may do counts per database.
    pub(super) async fn grant_where_agents_connect(&self, settings: &Settings) -> Result<(), String> {
        if settings.database == MAINTENANCE {
            return Ok(());
        }
        self.monitor
            .retarget(settings.local_target(&settings.database))
            .await;
        let grants = roles::rewind_grants(&settings.rewind.login.username);
        let done = self.monitor.execute(&grants, SMALL).await;
        done.map(drop)
            .map_err(|error| format!("grant the rewind role its functions: {}", chain(&error)))
    }

    pub(super) async fn create_database(&self, name: &str) -> Result<(), String> {
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
        write_own_passfile(settings)?;
        let socket_dir = settings.socket_dir.to_string_lossy().into_owned();
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
        self.post_bootstrap(settings, cancel).await
    }

    /// Runs the operator's command in the new cluster.
    pub(super) async fn post_bootstrap(
        &self,
        settings: &Settings,
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
        write_own_passfile(settings)?;
        let socket_dir = settings.socket_dir.display();
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

    /// Copies the upstream's data into a side directory with pg_basebackup.
    pub(super) async fn basebackup(
        &self,
        from: &Upstream,
        staging: &Staging,
        progress: &watch::Sender<Option<Progress>>,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let settings = self.settings();
        let spaces = self.tablespaces_of(&settings, from).await;
        self.write_passfile(from)?;
        let source = self
            .connection(from, &settings.replication)
            .with_replication_defaults(self.binaries.major());
        let input = clone::Input {
            source: &source,
            passfile: &settings.passfile,
            options: &self.hooks().basebackup,
            tablespaces: &spaces,
            attempts: 2,
            stall: CLONE_STALL,
            identity: None,
        };
        let copied = watch::Sender::new(clone::Progress::default());
        let relay = relay(copied.subscribe(), progress.clone());
        let made = clone::run(&self.binaries, staging, &input, &copied, cancel).await;
        relay.abort();
        made.map_err(|error| with_advice(&chain(&error)))
    }

    /// Where the source keeps its tablespaces: the copy will want the same places here. Streaming rights are enough for
    /// a copy without any, so not being allowed to ask is no reason to fail; pg_basebackup overwrites nothing.
    async fn tablespaces_of(&self, settings: &Settings, from: &Upstream) -> Vec<PathBuf> {
        const SQL: &str = "SELECT pg_catalog.jsonb_agg(l) FROM (SELECT pg_catalog.pg_tablespace_location(oid) AS l \
            FROM pg_catalog.pg_tablespace) AS t WHERE l LIKE '/%'";
        let host = from.host.split(',').next().unwrap_or_default().trim();
        let address = Address::Tcp(host.to_owned());
        let target = settings.target(&settings.rewind, address, from.port, &settings.database);
        let answer = Monitor::new(target).execute(SQL, SOURCE_LIMIT).await;
        let list = match &answer {
            Ok(None) => return Vec::new(),
            Ok(Some(text)) => serde_json::from_str(text).map_err(|error| error.to_string()),
            Err(error) => Err(chain(error)),
        };
        list.unwrap_or_else(|error| {
            warn!(error, source = %from.member, "could not ask for tablespaces, copying as if there were none");
            Vec::new()
        })
    }

    /// Gives the outside directories of a copy their final names. Nothing depends on it but the next copy.
    pub(super) fn settle_tablespaces(&self, old: OldData, kept: Option<&Path>) -> Result<(), String> {
        let stamp = staging::stamp(jiff::Timestamp::now());
        tablespaces::settle(self.data_dir(), old, &stamp, kept).map_err(|error| chain(&error))
    }

    /// Data kept inside the directory would be lost by `work`.
    pub(super) fn refuse_attic(&self, work: &str) -> Result<(), String> {
        match staging::attics_inside(self.data_dir()).first() {
            Some(kept) => Err(format!(
                "{work} would lose data kept in {}: move it off the volume or remove it, then this goes on by itself",
                kept.display()
            )),
            None => Ok(()),
        }
    }

    /// Kept data must not be forgotten where it is in the way.
    pub(super) fn warn_of_attic(&self) {
        for kept in staging::attics_inside(self.data_dir()) {
            warn!(
                kept = %kept.display(),
                "data replaced earlier is kept inside the data directory: every base backup copies it, and no rewind is \
                 possible until it is moved or removed"
            );
        }
    }

    /// Promotes the running replica; returns the phases. The checkpoint afterwards runs on its own.
    ///
    /// `pre_promote` is asked first. After [`PromoteFailed::Requested`] the server may become a primary at any later
    /// moment: it must be stopped before the lock is given back.
    pub async fn promote(
        &self,
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<Promotion, PromoteFailed> {
        let hooks = self.hooks();
        let cancelled = || PromoteFailed::NotRequested(Failure::Cancelled("cancelled".to_owned()));
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        let asked = callbacks::ask(
            "pre_promote",
            hooks.pre_promote.as_deref(),
            PRE_PROMOTE_LIMIT,
            cancel,
        );
        if let Err(error) = asked.await {
            // An agent that was killed may have made the request already, and what a postmaster was asked by it nobody
            // can tell: only a stop takes it back.
            return Err(match self.postmaster.state() {
                State::Running { adopted: true, .. } => PromoteFailed::Requested(error),
                _ => PromoteFailed::NotRequested(Failure::Vetoed(error)),
            });
        }
        // It may have taken a while; the lock may be gone.
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        self.occupy_timelines()
            .map_err(|error| PromoteFailed::NotRequested(error.into()))?;
        let done = match promote::promote(&self.postmaster, &self.monitor, limit, cancel).await {
            Ok(done) => done,
            Err(error) if error.requested() => {
                // The files stay: it may yet choose its timeline. The next start removes them.
                return Err(PromoteFailed::Requested(chain(&error)));
            }
            Err(error) => {
                self.release_timelines(Timeline::UNKNOWN);
                return Err(PromoteFailed::NotRequested(chain(&error).into()));
            }
        };
        if let Ok(control) = self.control().await {
            self.fill_timelines(control.timeline.max(control.min_recovery_timeline));
        }
        *lock(&self.role) = Some(StartAs::Primary);
        self.fire(Event::RoleChange, "primary");
        let monitor = self.monitor.clone();
        // Its own task: nobody waits for it, and it ends with its connection's limit.
        tokio::spawn(async move {
            if let Err(error) = monitor.execute_long("CHECKPOINT", CHECKPOINT_LIMIT).await {
                warn!(error = chain(&error), "the checkpoint after the promotion failed");
            }
        });
        Ok(done)
    }
}

/// Why there is no new primary, and whether there may still be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromoteFailed {
    /// Nothing was asked of postgres: it is the replica it was.
    #[error("{0}")]
    NotRequested(Failure),
    /// Postgres was asked and may become a primary at any later moment.
    #[error("{0}")]
    Requested(String),
}

impl PromoteFailed {
    /// Postgres may yet become a primary: it has to be stopped.
    #[must_use]
    pub const fn requested(&self) -> bool {
        matches!(self, Self::Requested(_))
    }
}

/// Removes a side directory that is of no use.
pub(super) fn discard(staging: &Staging) {
    if let Err(error) = staging.discard() {
        warn!(
            error = chain(&error),
            "could not remove an unfinished data directory"
        );
    }
}

/// The superuser on our own socket, for commands of the operator's.
fn write_own_passfile(settings: &Settings) -> Result<(), String> {
    let entry = pgpass::Entry {
        host: &settings.socket_dir.to_string_lossy(),
        port: &settings.port.to_string(),
        login: &settings.superuser.login,
    };
    pgpass::write(&settings.passfile, &[entry])
        .map(drop)
        .map_err(|error| chain(&error))
}

/// The server's refusal names a role; what a person sets is a variable.
fn with_advice(error: &str) -> String {
    // One line of the log, whatever the program prints.
    let error = error.trim().replace('\n', "; ");
    if error.contains("password authentication failed") {
        return format!(
            "{error}; every member needs the same HOWDAH_REPLICATION_PASSWORD (without one it is derived from \
             HOWDAH_SUPERUSER_PASSWORD)"
        );
    }
    error
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
