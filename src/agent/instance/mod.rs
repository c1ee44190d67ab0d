//! The one local postgres as jobs and the loop use it: the adapters of `postgres/` put together for this member.
//!
//! Here: starting, stopping, small questions. [`config_files`] writes the configuration files, [`following`] points a
//! replica at its upstream,
//! [`timelines`] knows where the data ends, [`work`] does what takes long (bootstrap, clone, promote), [`methods`] makes
//! replicas in the ways that are configured, [`restored`] makes a cluster of what a command brings, [`rewinding`] rewinds,
//! [`slots`] makes, moves and copies replication slots, [`callbacks`] runs the operator's commands. What should be done is
//! decided in `ha`.
//!
//! Failures are texts for people; where a decision depends on the kind, they are a [`Failure`].

mod callbacks;
mod config_files;
mod following;
mod layers;
mod methods;
mod next_start;
mod restored;
mod rewinding;
mod settings;
mod slots;
mod sync_names;
mod timelines;
mod work;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    agent::{handover::Handover, jobs},
    clock::Boottime,
    ha::{Failure, Shutdown, Source, StartAs, Upstream},
    model::{ControlData, Dynamic, Lsn, RoleScope, Timeline},
    postgres::{
        binaries::Binaries,
        conf::PendingRestart,
        confdir::ConfDir,
        control,
        datadir::{self, DataDir, Reason},
        guc::Known,
        postmaster::{NotReady, Postmaster, StartSpec, StopLadder, StopMode},
        query::{Address, LeaderProbe, Monitor, Target, leader_probe},
        socketlock,
        staging::OldData,
    },
};
use callbacks::{Callbacks, Event};
use layers::{Hooks, Layers};
pub use methods::Replacement;
use next_start::NextStart;
pub use settings::{Account, Settings};
pub use work::{Progress, PromoteFailed};

/// Small statements on the local server.
const SMALL: Duration = Duration::from_secs(2);
/// Ending what an earlier postmaster left behind.
const CLEANUP_LIMIT: Duration = Duration::from_secs(15);

/// The local postgres.
#[derive(Debug)]
pub struct Instance {
    settings: RwLock<Arc<Settings>>,
    binaries: Binaries,
    known: RwLock<Arc<Known>>,
    data_dir: PathBuf,
    conf: RwLock<Arc<ConfDir>>,
    callbacks: Callbacks,
    postmaster: Postmaster,
    monitor: Monitor,
    /// As what it was last started or reconfigured; `None` for an adopted one.
    role: Mutex<Option<StartAs>>,
    /// The next stop and start belong together.
    restarting: AtomicBool,
    /// The role the files were last written for.
    written_for: Mutex<Option<RoleScope>>,
    /// It leads a standby cluster.
    standby_leader: AtomicBool,
    /// Counts how often the files were written.
    generation: AtomicU64,
    /// The postmaster's arguments that belong to the files as written.
    arguments_written: Mutex<Vec<String>>,
    /// Values at the next start.
    next_start: tokio::sync::Mutex<NextStart>,
    /// The operator's commands in force.
    hooks: RwLock<Arc<Hooks>>,
    /// The cluster's configuration last told of.
    dynamic: RwLock<Arc<Dynamic>>,
    /// Parameters last written.
    written: Mutex<BTreeMap<String, String>>,
    /// Values a replica runs with because its primary had more; what is configured waits for a restart.
    raised: Mutex<Vec<PendingRestart>>,
    /// `synchronous_standby_names`.
    sync_names: Mutex<sync_names::SyncNames>,
    /// Fingerprints of configurations PostgreSQL has accepted, so that it need not be asked again.
    accepted: Mutex<Vec<u64>>,
    /// Logical slots kept here need `hot_standby_feedback`.
    feedback: AtomicBool,
    /// Timelines in use elsewhere, to be kept free by the next promotion.
    reserved: Mutex<Vec<Timeline>>,
    /// Position and end of the last checkpoint record looked up.
    checkpoint_end: Mutex<Option<(Lsn, Option<Lsn>)>>,
    /// The last hand-over this member took part in.
    handover: Mutex<Option<Handover>>,
    /// Start of the postmaster and the timeline it replayed while it received nothing.
    identified: Mutex<Option<(String, Timeline)>>,
}

impl Instance {
    /// Remembers a hand-over.
    pub fn note_handover(&self, handover: Handover) {
        *lock(&self.handover) = Some(handover);
    }

    /// The last one.
    #[must_use]
    pub fn last_handover(&self) -> Option<Handover> {
        lock(&self.handover).clone()
    }

    /// Puts the instance together; does not start anything.
    #[must_use]
    pub fn new(settings: Settings, binaries: Binaries, known: Known, postmaster: Postmaster) -> Self {
        let monitor = Monitor::new(settings.local_target(&settings.database));
        let conf = Arc::new(conf_dir(&settings));
        let hooks = Layers::new(&Dynamic::default(), &settings).hooks();
        Self {
            data_dir: settings.data_dir.clone(),
            binaries: binaries.named(&settings.bin_names),
            settings: RwLock::new(Arc::new(settings)),
            known: RwLock::new(Arc::new(known)),
            conf: RwLock::new(conf),
            callbacks: Callbacks::default(),
            postmaster,
            monitor,
            role: Mutex::new(None),
            written_for: Mutex::new(None),
            standby_leader: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            arguments_written: Mutex::default(),
            next_start: tokio::sync::Mutex::default(),
            hooks: RwLock::new(Arc::new(hooks)),
            dynamic: RwLock::default(),
            restarting: AtomicBool::new(false),
            written: Mutex::new(BTreeMap::new()),
            raised: Mutex::new(Vec::new()),
            sync_names: Mutex::default(),
            accepted: Mutex::new(Vec::new()),
            feedback: AtomicBool::new(false),
            reserved: Mutex::new(Vec::new()),
            checkpoint_end: Mutex::new(None),
            handover: Mutex::new(None),
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

    fn conf(&self) -> Arc<ConfDir> {
        Arc::clone(&self.conf.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn hooks(&self) -> Arc<Hooks> {
        Arc::clone(&self.hooks.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn known(&self) -> Arc<Known> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The cluster's configuration, as far as commands are concerned: they are run by whoever has a reason to, also
    /// where postgres has not been given that configuration yet.
    pub fn note_dynamic(&self, dynamic: &Dynamic) {
        *self.dynamic.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(dynamic.clone());
        self.merge_hooks();
    }

    fn merge_hooks(&self) {
        let dynamic = Arc::clone(&self.dynamic.read().unwrap_or_else(PoisonError::into_inner));
        let hooks = Layers::new(&dynamic, &self.settings()).hooks();
        *self.hooks.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(hooks);
    }

    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// What the data directory is. A mode PostgreSQL refuses (a volume mounted with group rights) is put right on the
    /// way, because that harms nobody; everything else is told.
    #[must_use]
    pub fn classify(&self) -> DataDir {
        let found = datadir::classify(self.data_dir(), None);
        let DataDir::Unusable(Reason::Mode { mode }) = found else {
            return found;
        };
        match datadir::repair_mode(self.data_dir()) {
            Ok(()) => {
                info!(
                    dir = %self.data_dir().display(),
                    from = format!("{mode:o}"),
                    "took away rights on the data directory that PostgreSQL refuses"
                );
                datadir::classify(self.data_dir(), None)
            }
            Err(error) => {
                warn!(
                    error = chain(&error),
                    "the mode of the data directory cannot be put right"
                );
                DataDir::Unusable(Reason::Mode { mode })
            }
        }
    }

    /// `standby.signal` is there.
    #[must_use]
    pub fn standby_signal(&self) -> bool {
        self.conf().is_standby()
    }

    /// Reads `pg_control`.
    pub async fn control(&self) -> Result<ControlData, String> {
        self.read_control().await.map_err(|error| chain(&error))
    }

    /// The same; the error tells damage from a failed attempt.
    pub async fn read_control(&self) -> Result<ControlData, control::Error> {
        let cancel = CancellationToken::new();
        // On the heap: this is part of the future of every turn of the loop.
        let read = Box::pin(control::read(&self.binaries, self.data_dir(), None, &cancel)).await;
        read.map(|file| file.control)
    }

    /// Starts postgres and waits until it accepts connections.
    pub async fn start(
        &self,
        start_as: &StartAs,
        dynamic: &Dynamic,
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        self.warn_of_attic();
        if let Err(error) = self.settle_tablespaces(OldData::KeepRenamed, None) {
            // The links lead to the right places all the same.
            warn!(
                error,
                "could not give the tablespaces of a copy their final places"
            );
        }
        if let DataDir::Unusable(reason) = self.classify() {
            let shown = self.data_dir().display();
            return Err(Failure::Failed(format!("data directory {shown}: {reason}")));
        }
        let control = self.control().await.ok();
        let timeline = control.as_ref().map_or(Timeline::UNKNOWN, |control| {
            control.timeline.max(control.min_recovery_timeline)
        });
        match start_as {
            StartAs::Primary => self.fill_timelines(timeline),
            // Those below its own timeline are no choice for it, and a replica of this replica may ask for them.
            StartAs::Replica(_) => {
                self.release_timelines(timeline);
                self.forget_sync_names();
            }
        }
        let args = self.write_files(start_as, dynamic, control.as_ref()).await?;
        self.launch(args, limit, cancel).await?;
        self.announce_start(start_as);
        if let Err(error) = self.conf().backup() {
            warn!(
                error = chain(&error),
                "could not keep copies of the configuration files"
            );
        }
        Ok(())
    }

    /// Tells the operator's commands: another role is news of its own, and hides the start it came with.
    fn announce_start(&self, start_as: &StartAs) {
        let before = lock(&self.role).replace(start_as.clone());
        let restart = self.restarting.swap(false, Ordering::Relaxed);
        let event = match before {
            Some(before) if role_name(&before) != role_name(start_as) => Event::RoleChange,
            _ if restart => Event::Restart,
            _ => Event::Start,
        };
        self.fire(event, role_name(start_as));
    }

    fn fire(&self, event: Event, role: &'static str) {
        let settings = self.settings();
        self.callbacks
            .fire(&self.hooks().callbacks, event, role, &settings.scope);
    }

    /// Waits for callbacks that still run, at most this long each; for the very end of the agent.
    pub async fn settle_callbacks(&self, limit: Duration) {
        self.callbacks.settle(limit).await;
    }

    /// Starts the process and waits.
    async fn launch(
        &self,
        args: Vec<String>,
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        self.monitor.disconnect().await;
        // Files and arguments are those of the present settings, and so is where the server will listen.
        let settings = self.settings();
        self.monitor
            .retarget(settings.local_target(&settings.database))
            .await;
        let spec = StartSpec {
            bin_dir: self.binaries.dir.clone(),
            args: args.clone(),
            env: settings.child_env.clone(),
            timeout: CLEANUP_LIMIT,
        };
        // What came before may have taken a while; a start nobody wants any more must not begin now.
        if cancel.is_cancelled() {
            return Err(Failure::Cancelled("cancelled before the start".to_owned()));
        }
        remove_stale_socket_locks(&settings);
        self.postmaster.start(spec).await.map_err(|error| chain(&error))?;
        // Cancel-safe: waiting changes nothing; a cancelled start leaves a starting postmaster, which the loop sees.
        let ready = tokio::select! {
            ready = self.postmaster.wait_ready(limit) => ready,
            () = cancel.cancelled() => return Err(Failure::Cancelled("cancelled while starting".to_owned())),
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
            Err(error @ NotReady::Ended { .. }) => match self.fault_of_settings(&args).await {
                Some(reason) => Err(Failure::Configuration(reason)),
                None if self.disk_is_full() => Err(Failure::DiskFull(format!(
                    "{error}, and there is no space left on the volume of {}",
                    self.data_dir().display()
                ))),
                None => Err(Failure::Failed(format!(
                    "{error}; the reason is in postgres's own lines above"
                ))),
            },
            Err(error) => Err(Failure::Failed(error.to_string())),
        }
    }

    /// Less than one WAL segment is left, for the data or for the WAL.
    fn disk_is_full(&self) -> bool {
        const SEGMENT: u64 = 16 << 20;
        let left = |dir: &Path| {
            let volume = rustix::fs::statvfs(dir).ok()?;
            Some(volume.f_bavail.saturating_mul(volume.f_frsize))
        };
        let dirs = [self.data_dir().to_owned(), self.data_dir().join("pg_wal")];
        dirs.iter()
            .filter_map(|dir| left(dir))
            .any(|bytes| bytes < SEGMENT)
    }

    /// Stops postgres; returns what ended it, for the log. `before_stop` is asked first, within the time of the ladder.
    pub async fn stop(&self, mode: StopMode, ladder: StopLadder) -> Result<String, String> {
        let role = self.running_role();
        let ladder = self.before_stop(mode, ladder).await;
        let halted = self.halt(mode, ladder).await;
        if halted.is_err() {
            self.restarting.store(false, Ordering::Relaxed);
        }
        let ended_by = halted?;
        if ended_by.is_some() && !self.restarting.load(Ordering::Relaxed) {
            self.fire(Event::Stop, role);
        }
        Ok(ended_by.map_or_else(
            || "was not running".to_owned(),
            |rung| format!("{rung:?}").to_lowercase(),
        ))
    }

    /// Stops postgres without telling anybody.
    async fn halt(&self, mode: StopMode, ladder: StopLadder) -> Result<Option<StopMode>, String> {
        let outcome = self
            .postmaster
            .stop(mode, ladder)
            .await
            .map_err(|error| chain(&error))?;
        self.monitor.disconnect().await;
        Ok(outcome.ended_by)
    }

    /// Asks the operator's command for at most half of the first rung; what it took is missing there. An immediate stop
    /// is about milliseconds and asks nobody.
    async fn before_stop(&self, mode: StopMode, mut ladder: StopLadder) -> StopLadder {
        let Some(command) = self.hooks().before_stop.clone() else {
            return ladder;
        };
        let rung = match mode {
            StopMode::Smart => &mut ladder.smart,
            StopMode::Fast => &mut ladder.fast,
            StopMode::Immediate | StopMode::Kill => return ladder,
        };
        if self.postmaster.state().pid().is_none() {
            return ladder;
        }
        let begun = Boottime::now();
        let (limit, cancel) = (*rung / 2, CancellationToken::new());
        let ask = callbacks::ask("before_stop", Some(&command), limit, &cancel);
        // The command gets a grace after its limit; the stop does not wait for that.
        match timeout(limit, ask).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(error, "stopping all the same"),
            Err(_) => warn!(?limit, "before_stop took too long, stopping all the same"),
        }
        *rung = rung.saturating_sub(Boottime::now().since(begun));
        ladder
    }

    /// The role in the words of the callbacks.
    fn running_role(&self) -> &'static str {
        match &*lock(&self.role) {
            Some(role) => role_name(role),
            None if self.standby_signal() => "replica",
            None => "primary",
        }
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

    /// As what postgres is to be started again. The stop and the start that follow are one restart to the callbacks.
    pub async fn begin_restart(&self, dynamic: &Dynamic) -> StartAs {
        self.restarting.store(true, Ordering::Relaxed);
        self.present_role(dynamic).await
    }

    /// What was stopped for a restart is not started again: it is told as the stop it is.
    pub fn end_restart(&self) {
        if self.restarting.swap(false, Ordering::Relaxed) {
            self.fire(Event::Stop, self.running_role());
        }
    }

    /// As what postgres runs now.
    pub async fn present_role(&self, dynamic: &Dynamic) -> StartAs {
        if !self.standby_signal() {
            return StartAs::Primary;
        }
        let known = lock(&self.role).clone();
        match known {
            Some(role @ StartAs::Replica(_)) => role,
            _ => StartAs::Replica(self.present_upstream(dynamic).await),
        }
    }

    /// Writes the files for the present role again and reloads. Does nothing without a running server: the next
    /// start writes them anyway.
    pub async fn apply(&self, dynamic: &Dynamic) -> Result<(), String> {
        if self.postmaster.state().pid().is_none() {
            return Ok(());
        }
        let role = self.present_role(dynamic).await;
        let control = self.control().await.ok();
        Box::pin(self.write_files(&role, dynamic, control.as_ref())).await?;
        self.postmaster.reload().await.map_err(|error| chain(&error))
    }

    /// New settings of this member, then as [`Instance::apply`].
    pub async fn reload(&self, settings: Settings, dynamic: &Dynamic) -> Result<(), String> {
        let target = self.take_settings(settings);
        self.monitor.retarget(target).await;
        // On the heap: this is part of the future of every turn of the loop.
        Box::pin(self.apply(dynamic)).await?;
        self.announce_reload();
        Ok(())
    }

    /// Puts settings into force; returns where the monitor is to connect now.
    fn take_settings(&self, settings: Settings) -> Target {
        let wanted = settings.local_target(&settings.database);
        let conf = Arc::new(conf_dir(&settings));
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
        *self.conf.write().unwrap_or_else(PoisonError::into_inner) = conf;
        self.merge_hooks();
        // An included file may have changed without our noticing.
        lock(&self.accepted).clear();
        // Address and port follow with the next start: until then the server listens where it did.
        let present = self.monitor.target();
        Target {
            address: present.address.clone(),
            port: present.port,
            ..wanted
        }
    }

    /// Tells the operator's command that the configuration was read again.
    pub fn announce_reload(&self) {
        if self.postmaster.state().pid().is_some() {
            self.fire(Event::Reload, self.running_role());
        }
    }

    /// The value of a parameter as last written.
    #[must_use]
    pub fn wanted(&self, name: &str) -> Option<String> {
        lock(&self.written).get(name).cloned()
    }

    /// Parameters a replica had to raise for its last start, with the configured value that waits for a restart.
    #[must_use]
    pub fn raised(&self) -> Vec<PendingRestart> {
        lock(&self.raised).clone()
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
        let mut errors = Vec::new();
        // A remote cluster may have several; its primary is the one to ask, if it is among them.
        let mut standby = None;
        for host in leader.host.split(',').map(str::trim) {
            let address = Address::Tcp(host.to_owned());
            let target = settings.target(&settings.rewind, address, leader.port, &settings.database);
            match leader_probe(&target, limit).await {
                Ok(seen) if seen.in_recovery => standby = standby.or(Some(seen)),
                Ok(seen) => return Ok(seen),
                Err(error) => errors.push(chain(&error)),
            }
        }
        standby.ok_or_else(|| errors.join("; "))
    }
}

/// Best effort: where it does not work PostgreSQL's own words name the file.
fn remove_stale_socket_locks(settings: &Settings) {
    for dir in std::iter::once(&settings.socket_dir).chain(&settings.further_socket_dirs) {
        match socketlock::remove_stale(dir, settings.port) {
            Ok(None) => {}
            Ok(Some(pid)) => info!(
                pid,
                dir = %dir.display(),
                "removed the lock file of a socket: the server that left it is gone and its pid was used again"
            ),
            Err(error) => warn!(%error, dir = %dir.display(), "cannot check the lock file of the socket"),
        }
    }
}

/// Where the files are. What cannot change without a restart of the agent is taken from the first settings anyway.
fn conf_dir(settings: &Settings) -> ConfDir {
    ConfDir {
        data_dir: settings.data_dir.clone(),
        config_dir: settings.config_dir.clone(),
        base_name: settings.config_base_name.clone(),
        custom_conf: settings.custom_conf.clone(),
    }
}

/// A role in the words of the callbacks.
const fn role_name(role: &StartAs) -> &'static str {
    match role {
        StartAs::Primary => "primary",
        StartAs::Replica(Some(Upstream {
            source: Source::Remote,
            ..
        })) => "standby_leader",
        StartAs::Replica(_) => "replica",
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
