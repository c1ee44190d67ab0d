//! The one local postgres as jobs and the loop use it: the adapters of `postgres/` put together for this member.
//!
//! Here: starting, stopping, following, small questions. [`config_files`] writes the configuration files, [`timelines`] knows where the data ends, [`work`] does what
//! takes long (bootstrap, clone, rewind, promote). What should be done is decided in `ha`.

mod config_files;
mod settings;
mod timelines;
mod work;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    agent::jobs,
    ha::{Shutdown, StartAs, Upstream},
    model::{ControlData, Dynamic, Lsn, Timeline},
    postgres::{
        binaries::Binaries,
        confdir::ConfDir,
        conninfo::Conninfo,
        control,
        datadir::{self, DataDir},
        guc::Known,
        postmaster::{NotReady, Postmaster, StartSpec, StopLadder, StopMode},
        query::{Address, LeaderProbe, Monitor, Target, leader_probe},
    },
};
pub use settings::Settings;
pub use work::Progress;

/// Small statements on the local server.
const SMALL: Duration = Duration::from_secs(2);
/// Ending what an earlier postmaster left behind.
const CLEANUP_LIMIT: Duration = Duration::from_secs(15);

/// The local postgres.
#[derive(Debug)]
pub struct Instance {
    settings: RwLock<Arc<Settings>>,
    binaries: Binaries,
    known: Known,
    conf: ConfDir,
    postmaster: Postmaster,
    monitor: Monitor,
    /// As what it was last started or reconfigured; `None` for an adopted one.
    role: Mutex<Option<StartAs>>,
    /// Parameters last written.
    written: Mutex<BTreeMap<String, String>>,
    /// Position and end of the last checkpoint record looked up.
    checkpoint_end: Mutex<Option<(Lsn, Option<Lsn>)>>,
    /// Start of the postmaster and the timeline it replayed while it received nothing.
    identified: Mutex<Option<(String, Timeline)>>,
}

impl Instance {
    /// Puts the instance together; does not start anything.
    #[must_use]
    pub fn new(settings: Settings, binaries: Binaries, known: Known, postmaster: Postmaster) -> Self {
        let conf = ConfDir {
            data_dir: settings.data_dir.clone(),
            config_dir: settings.config_dir.clone(),
            base_name: settings.config_base_name.clone(),
            custom_conf: settings.custom_conf.clone(),
        };
        let monitor = Monitor::new(Target {
            address: Address::Socket(settings.socket_dir.clone()),
            port: settings.port,
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
        Self {
            settings: RwLock::new(Arc::new(settings)),
            binaries,
            known,
            conf,
            postmaster,
            monitor,
            role: Mutex::new(None),
            written: Mutex::new(BTreeMap::new()),
            checkpoint_end: Mutex::new(None),
            identified: Mutex::new(None),
        }
    }

    /// The owner of the process.
    #[must_use]
    pub const fn postmaster(&self) -> &Postmaster {
        &self.postmaster
    }

    /// Questions to the running server.
    #[must_use]
    pub const fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn data_dir(&self) -> &Path {
        &self.conf.data_dir
    }

    /// What the data directory is.
    #[must_use]
    pub fn classify(&self) -> DataDir {
        datadir::classify(self.data_dir(), None)
    }

    /// `standby.signal` is there.
    #[must_use]
    pub fn standby_signal(&self) -> bool {
        self.conf.is_standby()
    }

    /// Reads `pg_control`.
    pub async fn control(&self) -> Result<ControlData, String> {
        self.read_control().await.map_err(|error| chain(&error))
    }

    /// The same; the error tells damage from a failed attempt.
    pub async fn read_control(&self) -> Result<ControlData, control::Error> {
        let read = control::read(&self.binaries, self.data_dir(), None, &CancellationToken::new()).await;
        read.map(|file| file.control)
    }

    /// Starts postgres and waits until it accepts connections.
    pub async fn start(
        &self,
        start_as: &StartAs,
        dynamic: &Dynamic,
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let control = self.control().await.ok();
        let args = self.write_files(start_as, dynamic, control.as_ref())?;
        self.launch(args, limit, cancel).await?;
        *lock(&self.role) = Some(start_as.clone());
        if let Err(error) = self.conf.backup() {
            warn!(
                error = chain(&error),
                "could not keep copies of the configuration files"
            );
        }
        Ok(())
    }

    async fn launch(
        &self,
        args: Vec<String>,
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        self.monitor.disconnect().await;
        let spec = StartSpec {
            bin_dir: self.binaries.dir.clone(),
            args,
            env: self.settings().child_env.clone(),
            timeout: CLEANUP_LIMIT,
        };
        self.postmaster.start(spec).await.map_err(|error| chain(&error))?;
        // Cancel-safe: waiting changes nothing; a cancelled start leaves a starting postmaster, which the loop sees.
        let ready = tokio::select! {
            ready = self.postmaster.wait_ready(limit) => ready,
            () = cancel.cancelled() => return Err("cancelled".to_owned()),
        };
        match ready {
            Ok(ready) => {
                info!(
                    pid = ready.pid,
                    took_ms = ready.took.as_millis(),
                    "postgres is up"
                );
                Ok(())
            }
            Err(error @ NotReady::Ended { .. }) => {
                Err(format!("{error}; the reason is in postgres's own lines above"))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Stops postgres; returns what ended it, for the log.
    pub async fn stop(&self, mode: StopMode, ladder: StopLadder) -> Result<String, String> {
        let outcome = self
            .postmaster
            .stop(mode, ladder)
            .await
            .map_err(|error| chain(&error))?;
        self.monitor.disconnect().await;
        Ok(outcome.ended_by.map_or_else(
            || "was not running".to_owned(),
            |rung| format!("{rung:?}").to_lowercase(),
        ))
    }

    /// A stop under way is to go faster.
    pub fn hurry(&self, mode: Shutdown) {
        let (mode, immediate) = match mode {
            Shutdown::HandOver => return,
            Shutdown::Fast => (StopMode::Fast, Duration::from_secs(5)),
            Shutdown::Immediate => (StopMode::Immediate, Duration::from_secs(2)),
        };
        let ladder = StopLadder {
            smart: Duration::ZERO,
            fast: Duration::from_secs(5),
            immediate,
        };
        // Whoever began the stop waits for it; this only escalates.
        drop(self.postmaster.begin_stop(mode, ladder));
    }

    /// As what postgres runs now, to start it again as the same.
    pub async fn present_role(&self) -> StartAs {
        if !self.standby_signal() {
            return StartAs::Primary;
        }
        let known = lock(&self.role).clone();
        match known {
            Some(role @ StartAs::Replica(_)) => role,
            _ => StartAs::Replica(self.present_upstream().await),
        }
    }

    /// Whom a running replica follows, from its own settings.
    async fn present_upstream(&self) -> Option<Upstream> {
        let view = self.monitor.observe(SMALL).await.ok()?;
        let conninfo = Conninfo::parse(&view.primary_conninfo).ok()?;
        Some(Upstream {
            member: "present upstream".into(),
            host: conninfo.get("host")?.to_owned(),
            port: conninfo.get("port").unwrap_or("5432").parse().ok()?,
        })
    }

    /// Points the running replica at another upstream.
    pub async fn follow(&self, upstream: Option<&Upstream>, dynamic: &Dynamic) -> Result<(), String> {
        let role = StartAs::Replica(upstream.cloned());
        let control = self.control().await.ok();
        self.write_files(&role, dynamic, control.as_ref())?;
        *lock(&self.role) = Some(role);
        self.postmaster.reload().await.map_err(|error| chain(&error))
    }

    /// Writes the files for the present role again and reloads. Does nothing without a running server: the next
    /// start writes them anyway.
    pub async fn apply(&self, dynamic: &Dynamic) -> Result<(), String> {
        if self.postmaster.state().pid().is_none() {
            return Ok(());
        }
        let role = self.present_role().await;
        let control = self.control().await.ok();
        self.write_files(&role, dynamic, control.as_ref())?;
        self.postmaster.reload().await.map_err(|error| chain(&error))
    }

    /// New settings of this member, then as [`Instance::apply`].
    pub async fn reload(&self, settings: Settings, dynamic: &Dynamic) -> Result<(), String> {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
        self.apply(dynamic).await
    }

    /// The value of a parameter as last written.
    #[must_use]
    pub fn wanted(&self, name: &str) -> Option<String> {
        lock(&self.written).get(name).cloned()
    }

    /// CHECKPOINT, without failing if it takes too long.
    pub async fn checkpoint(&self, limit: Duration) {
        let checkpoint = self.monitor.execute_long("CHECKPOINT", limit);
        if let Some(Err(error)) = jobs::bounded("CHECKPOINT", limit, checkpoint).await {
            warn!(error = chain(&error), "CHECKPOINT failed");
        }
    }

    /// Asks the leader's postgres for its timeline history.
    pub async fn probe(&self, leader: &Upstream, limit: Duration) -> Result<LeaderProbe, String> {
        let settings = self.settings();
        let target = Target {
            address: Address::Tcp(leader.host.clone()),
            port: leader.port,
            user: settings.rewind.login.username.clone(),
            password: settings
                .rewind
                .login
                .password
                .as_ref()
                .map(|p| p.reveal().to_owned()),
            dbname: settings.database.clone(),
            application_name: format!("Howdah {}", settings.member),
        };
        leader_probe(&target, limit).await.map_err(|error| chain(&error))
    }

    /// A physical slot that keeps WAL from now on.
    pub async fn create_slot(&self, name: &str) -> Result<(), String> {
        self.monitor
            .create_physical_slot(name, SMALL)
            .await
            .map(drop)
            .map_err(|error| chain(&error))
    }

    /// Drops a slot nobody uses.
    pub async fn drop_slot(&self, name: &str) -> Result<(), String> {
        self.monitor
            .drop_slot(name, SMALL)
            .await
            .map(drop)
            .map_err(|error| chain(&error))
    }
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// A poisoned lock only means that another task panicked between two plain assignments.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
