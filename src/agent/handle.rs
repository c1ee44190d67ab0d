//! What the rest of the process may know of the agent, and what it may ask of it.
//!
//! The agent publishes a [`Snapshot`] after every turn of its loop and after every change of state; readers (REST API,
//! metrics) answer from it and never ask postgres. Everything that must happen *in* the agent is a [`Request`].
//! Nothing here decides or waits for postgres; the agent's loop lives beside this file.
//!
//! | task | input | output | ended by |
//! |---|---|---|---|
//! | agent loop | `Request` | `Snapshot`, one reply per request | its shutdown token |
//! | REST API | `Snapshot`, replies | `Request` | its shutdown token |

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use super::lease::Lease;
use crate::{
    agent::handover::Handover,
    clock::Boottime,
    dcs::Dcs,
    ha::{Reason, slots::Retained, why::Candidacy},
    metrics::Metrics,
    model::{Cluster, Dynamic, Lsn, MemberName, PgState, Role, SyncKind, SystemId, Tags, Timeline},
};

/// The version of Patroni whose protocols we speak; what `version` means in REST answers and member keys.
pub const WIRE_VERSION: &str = "4.1.4";

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How a replica gets its WAL (contract: REST API §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicationState {
    /// The WAL receiver streams.
    Streaming,
    /// No stream, but there is a `restore_command`.
    ArchiveRecovery,
}

impl ReplicationState {
    /// The text on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Streaming => "streaming",
            Self::ArchiveRecovery => "in archive recovery",
        }
    }
}

/// WAL positions of a running postgres; which ones exist depends on whether it is in recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Xlog {
    /// Not in recovery.
    Primary {
        /// Flushed up to here.
        location: Lsn,
    },
    /// In recovery.
    Replica {
        /// Written by the WAL receiver, else last received, else replayed.
        received: Lsn,
        /// Replayed up to here.
        replayed: Lsn,
        /// Commit time of the last replayed transaction, as `YYYY-MM-DD HH:MM:SS.ffffff+00:00`.
        replayed_timestamp: Option<String>,
        /// Replay is paused.
        paused: bool,
        /// How it gets its WAL; `None` if neither stream nor archive.
        replication: Option<ReplicationState>,
        /// `latest_end_lsn` of the WAL receiver: where the sender said it was.
        latest_end: Option<Lsn>,
        /// It may have more than it says: it still replays the WAL it was started with.
        replaying: bool,
        /// WAL may still come from elsewhere.
        receiving: bool,
    },
}

/// A row of `pg_stat_replication`; fields in the contract's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Walsender {
    /// Role it is logged in as.
    pub usename: Option<String>,
    /// Usually the member's name.
    pub application_name: Option<String>,
    /// Where it comes from; `None` for a Unix socket.
    pub client_addr: Option<String>,
    /// `streaming`, `catchup`, `backup` …
    pub state: Option<String>,
    /// `async`, `sync`, `quorum`, `potential`.
    pub sync_state: Option<String>,
    /// 0 when asynchronous.
    pub sync_priority: Option<i32>,
}

/// What a running postgres answered to the agent's last question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// e.g. 170004.
    pub server_version: u32,
    /// `YYYY-MM-DD HH:MM:SS.ffffff+00:00`.
    pub postmaster_start_time: String,
    /// Positions.
    pub xlog: Xlog,
    /// Current timeline; [`Timeline::UNKNOWN`] if it could not be learnt.
    pub timeline: Timeline,
    /// Connected walsenders.
    pub walsenders: Vec<Walsender>,
}

/// The local postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// The role the agent works towards ("in-memory role" of the contract).
    pub role: Role,
    /// What it is doing as far as the agent knows.
    pub state: PgState,
    /// A postmaster process exists.
    pub postmaster_alive: bool,
    /// `None` when it was not asked (it is down) or did not answer.
    pub answer: Option<Answer>,
    /// From `pg_control`.
    pub system_id: Option<SystemId>,
    /// Settings that wait for a restart: name to `{"old_value", "new_value"}`. Empty: none.
    pub pending_restart: Map<String, Value>,
    /// A restart that will happen later.
    pub scheduled_restart: Option<ScheduledRestart>,
    /// Copies of another member's data since the agent began.
    pub copies: Copies,
    /// The copy that is being made now, if any.
    pub copying: Option<Copying>,
    /// The last hand-over it took part in.
    pub handover: Option<Handover>,
    /// Why it neither streams nor is a primary, once that has lasted for some seconds.
    pub trouble: Option<Trouble>,
    /// What in the cluster's configuration is not used as it was written.
    pub remarks: Vec<String>,
    /// A watchdog is required here and cannot be used.
    pub watchdog_failed: bool,
    /// Another member has called itself a running primary beside the leader for longer than `loop_wait`.
    pub split_brain_suspected: bool,
    /// Replication slots of the last look, whose they are and what they hold back.
    pub slots: Vec<Retained>,
}

/// Why a member neither streams nor is a primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// The code.
    pub reason: Reason,
    /// What the last attempt to change that said.
    pub because: Option<String>,
}

impl Trouble {
    /// `{"reason", "failure"}`.
    #[must_use]
    pub fn to_json(&self) -> Map<String, Value> {
        let mut out = Map::new();
        out.insert("reason".to_owned(), self.reason.code().into());
        if let Some(because) = &self.because {
            out.insert("failure".to_owned(), because.clone().into());
        }
        out
    }
}

/// How many copies of another member's data ended, and how. Who asked for one sees by this how it went: a member whose
/// copy failed goes on with its old data as if nothing had happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Copies {
    /// Complete.
    pub made: u32,
    /// Given up.
    pub failed: u32,
}

/// How far a copy of another member's data is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Copying {
    /// Bytes copied.
    pub done_bytes: u64,
    /// Bytes expected; an estimate.
    pub total_bytes: u64,
}

/// The last good read of the DCS.
#[derive(Debug, Clone)]
pub struct DcsView {
    /// What it showed.
    pub cluster: Arc<Cluster>,
    /// When the answer came.
    pub seen_at: Boottime,
}

/// Kind of synchronous replication in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SyncMode {
    /// Asynchronous.
    #[default]
    Off,
    /// Named standbys (`synchronous_mode: on`).
    Priority,
    /// `synchronous_mode: quorum`.
    Quorum,
}

impl From<SyncKind> for SyncMode {
    fn from(kind: SyncKind) -> Self {
        match kind {
            SyncKind::Off => Self::Off,
            SyncKind::On => Self::Priority,
            SyncKind::Quorum => Self::Quorum,
        }
    }
}

/// Everything the agent tells about itself, as of one moment. Immutable; a new one replaces it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// When the local postgres was looked at.
    pub observed_at: Boottime,
    /// Own name.
    pub member: MemberName,
    /// Name of the cluster.
    pub scope: String,
    /// Own tags.
    pub tags: Tags,
    /// The local postgres.
    pub local: Local,
    /// The DCS as last seen; readers go through [`Snapshot::cluster`], which knows when it is too old.
    pub dcs: Option<DcsView>,
    /// Wall-clock second of the last good read of the DCS since the epoch; 0 for never.
    pub dcs_last_seen_epoch_s: u64,
    /// We hold the lock up to this moment (`sent_at + ttl` of the last renewal); `None`: we do not.
    pub leader_until: Option<Boottime>,
    /// Failsafe information counts up to this moment.
    pub failsafe_until: Option<Boottime>,
    /// When the loop will turn at the latest.
    pub next_run: Boottime,
    /// The dynamic configuration in force (the last known one without a DCS).
    pub dynamic: Dynamic,
    /// Synchronous mode in force.
    pub sync_mode: SyncMode,
    /// The cluster follows another cluster.
    pub standby_cluster: bool,
    /// What this member could do next, and what is promised meanwhile.
    pub outlook: Outlook,
}

/// What people want to know before something happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// Could this member lead now?
    pub candidacy: Candidacy,
    /// What the replication mode in force promises about acknowledged commits, in words.
    pub promise: String,
    /// What would become of this primary if the DCS vanished now, in words.
    pub without_dcs: String,
    /// It is a primary, and would stay one.
    pub stays_without_dcs: bool,
}

impl Outlook {
    /// Before the first look at the DCS.
    #[must_use]
    pub fn unknown() -> Self {
        Self {
            candidacy: Candidacy::Cannot("it has not seen the DCS yet".to_owned()),
            promise: "unknown".to_owned(),
            without_dcs: "unknown".to_owned(),
            stays_without_dcs: false,
        }
    }
}

impl Snapshot {
    /// **L** of the contract: the lock is ours.
    #[must_use]
    pub fn is_leader(&self, now: Boottime) -> bool {
        self.leader_until.is_some_and(|until| now < until)
    }

    /// **D** of the contract: the DCS view, unless it is older than `ttl`.
    #[must_use]
    pub fn cluster(&self, now: Boottime) -> Option<&Cluster> {
        let view = self.dcs.as_ref()?;
        (now.since(view.seen_at) <= self.dynamic.timing.ttl).then_some(&view.cluster)
    }

    /// **R** of the contract: what postgres says it is, else what the agent takes it for.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.local.answer.as_ref().map(|answer| &answer.xlog) {
            Some(Xlog::Primary { .. }) => Role::Primary,
            Some(Xlog::Replica { .. }) if !self.standby_cluster => Role::Replica,
            _ => self.local.role,
        }
    }

    /// **S** of the contract: running without an answer is `unknown`.
    #[must_use]
    pub fn state(&self) -> PgState {
        match (self.local.state, &self.local.answer) {
            (PgState::Running, None) => PgState::Unknown,
            (state, _) => state,
        }
    }

    /// Positions, if postgres answered.
    #[must_use]
    pub fn xlog(&self) -> Option<&Xlog> {
        self.local.answer.as_ref().map(|answer| &answer.xlog)
    }

    /// How this replica gets its WAL.
    #[must_use]
    pub fn replication_state(&self) -> Option<ReplicationState> {
        match self.xlog()? {
            Xlog::Replica { replication, .. } => *replication,
            Xlog::Primary { .. } => None,
        }
    }

    /// `latest_end_lsn` of the WAL receiver.
    #[must_use]
    pub fn latest_end(&self) -> Option<Lsn> {
        match self.xlog()? {
            Xlog::Replica { latest_end, .. } => *latest_end,
            Xlog::Primary { .. } => None,
        }
    }

    /// Maintenance mode.
    #[must_use]
    pub const fn paused(&self) -> bool {
        self.dynamic.pause
    }

    /// Failsafe mode is keeping a leader alive without a DCS.
    #[must_use]
    pub fn failsafe_active(&self, now: Boottime) -> bool {
        self.failsafe_until.is_some_and(|until| now < until)
    }
}

/// Conditions of a restart (contract: REST API §11). Those not given hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestartFilters {
    /// Only if this is the role.
    pub role: Option<Role>,
    /// Only if the server is older than this `server_version` number.
    pub older_than: Option<PgVersion>,
    /// Only if settings wait for a restart.
    pub pending_only: bool,
    /// Time postgres may take to start, instead of `primary_start_timeout`.
    pub timeout: Option<Duration>,
}

/// A PostgreSQL version as text and as `server_version` number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgVersion {
    /// As given.
    pub text: String,
    /// e.g. 170004.
    pub number: u32,
}

impl RestartFilters {
    /// Whether the local postgres, as it is now, meets the conditions.
    #[must_use]
    pub fn hold(&self, snapshot: &Snapshot) -> bool {
        let server_version = snapshot.local.answer.as_ref().map(|answer| answer.server_version);
        self.role.is_none_or(|role| role == snapshot.role())
            && self
                .older_than
                .as_ref()
                .is_none_or(|limit| server_version.is_some_and(|version| version < limit.number))
            && (!self.pending_only || !snapshot.local.pending_restart.is_empty())
    }
}

/// A restart that is to happen at a given time; kept in the agent's memory only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduledRestart {
    /// When.
    pub at: Timestamp,
    /// Under which conditions.
    pub filters: RestartFilters,
    /// When the postmaster that is to be restarted began; filled in by the agent. Any other needs no restart any more.
    pub postmaster_start_time: Option<String>,
}

impl ScheduledRestart {
    /// As published in the member key (contract: DCS layout §4).
    #[must_use]
    pub fn to_member_json(&self) -> Map<String, Value> {
        let mut object = self.to_json();
        if let Some(started) = &self.postmaster_start_time {
            object.insert("postmaster_start_time".into(), started.clone().into());
        }
        object
    }

    /// As published in `/patroni`: the schedule and the filters as they were given.
    #[must_use]
    pub fn to_json(&self) -> Map<String, Value> {
        let mut object = Map::new();
        let at = self.at.display_with_offset(jiff::tz::Offset::UTC);
        object.insert("schedule".into(), at.to_string().into());
        if let Some(role) = self.filters.role {
            object.insert("role".into(), role.as_str().into());
        }
        if let Some(version) = &self.filters.older_than {
            object.insert("postgres_version".into(), version.text.clone().into());
        }
        if let Some(timeout) = self.filters.timeout {
            object.insert("timeout".into(), timeout.as_secs().into());
        }
        if self.filters.pending_only {
            object.insert("restart_pending".into(), true.into());
        }
        object
    }
}

/// How a restart ended, or why it did not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestartOutcome {
    /// Postgres is back.
    Done,
    /// [`RestartFilters::hold`] said no.
    ConditionsNotMet,
    /// Another long operation runs, named in words (`restart`, `reinitialize` …).
    Busy(String),
    /// Postgres has not finished starting from before.
    StillStarting,
    /// It was tried and did not work.
    Failed,
}

/// Why a member does not reinitialize.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReinitRefused {
    /// Nobody to clone from.
    #[error("Cluster has no leader, can not reinitialize")]
    NoLeader,
    /// A leader does not throw its data away.
    #[error("I am the leader, can not reinitialize")]
    Leader,
    /// Another long operation runs, named in words.
    #[error("{0} already in progress")]
    Busy(String),
}

/// What may be asked of the agent. A dropped reply means "the agent is going away".
#[derive(Debug)]
pub enum Request {
    /// Look at the local postgres now and publish; replies with what was published.
    Refresh(oneshot::Sender<Arc<Snapshot>>),
    /// Restart postgres now; the reply comes when it is over. It goes on if the asker goes away.
    Restart {
        /// Checked by the agent when it begins.
        filters: RestartFilters,
        /// How it went.
        reply: oneshot::Sender<RestartOutcome>,
    },
    /// Restart postgres later; `false`: another one is already scheduled.
    ScheduleRestart {
        /// When and under which conditions.
        restart: ScheduledRestart,
        /// Whether it was accepted.
        reply: oneshot::Sender<bool>,
    },
    /// Forget the scheduled restart; `false`: there was none.
    CancelRestart(oneshot::Sender<bool>),
    /// Read the configuration again (as SIGHUP does).
    Reload,
    /// Throw the data away and clone; the reply comes when it has begun.
    Reinitialize {
        /// Cancel a running long operation first.
        force: bool,
        /// Clone from the leader only.
        from_leader: bool,
        /// Begun or refused.
        reply: oneshot::Sender<Result<(), ReinitRefused>>,
    },
    /// The DCS changed because of us: turn the loop now.
    WakeUp,
}

/// The agent took no request, or gave no reply, in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Its loop has ended.
    #[error("the agent is shutting down")]
    Gone,
    /// Its loop does not take requests.
    #[error("the agent does not answer")]
    Busy,
}

/// How long the agent may take to accept a request.
const ACCEPT_WITHIN: Duration = Duration::from_secs(2);

/// The way to the agent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AgentHandle {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    requests: mpsc::Sender<Request>,
    dcs: Arc<dyn Dcs>,
    lease: Arc<Lease>,
    metrics: Arc<Metrics>,
    refreshing: Arc<Mutex<()>>,
}

impl AgentHandle {
    /// Made once by whoever starts the agent.
    #[must_use]
    pub fn new(
        snapshot: watch::Receiver<Arc<Snapshot>>,
        requests: mpsc::Sender<Request>,
        dcs: Arc<dyn Dcs>,
        lease: Arc<Lease>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            snapshot,
            requests,
            dcs,
            lease,
            metrics,
            refreshing: Arc::new(Mutex::new(())),
        }
    }

    /// What the agent last published.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// The store of the cluster.
    #[must_use]
    pub fn dcs(&self) -> &Arc<dyn Dcs> {
        &self.dcs
    }

    /// The lock, for what this member may promise about it. Asked of it directly: the loop may be waiting for a store that
    /// does not answer just when others want to know.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// What is counted.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// A snapshot not older than `max_age`, if the agent can give one within `wait`; else the last one.
    /// Any number of simultaneous callers cost the agent one look.
    pub async fn fresh(&self, max_age: Duration, wait: Duration) -> Arc<Snapshot> {
        let young = |snapshot: &Snapshot| Boottime::now().since(snapshot.observed_at) <= max_age;
        let refresh = async {
            if young(&self.current()) {
                return None;
            }
            let _one_at_a_time = self.refreshing.lock().await;
            if young(&self.current()) {
                return None;
            }
            self.ask(Request::Refresh).await.ok()
        };
        match tokio::time::timeout(wait, refresh).await {
            Ok(Some(snapshot)) => snapshot,
            Ok(None) | Err(_) => self.current(),
        }
    }

    /// Sends a request that has a reply and waits for it; the caller sets the deadline of the reply.
    pub async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, AskError> {
        let (sender, reply) = oneshot::channel();
        self.tell(request(sender)).await?;
        reply.await.map_err(|_| AskError::Gone)
    }

    /// Sends a request without waiting for what comes of it.
    pub async fn tell(&self, request: Request) -> Result<(), AskError> {
        match self.requests.send_timeout(request, ACCEPT_WITHIN).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(AskError::Gone),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => Err(AskError::Busy),
        }
    }
}

#[cfg(test)]
#[path = "handle_fixtures.rs"]
pub(crate) mod fixtures;

#[cfg(test)]
mod tests {
    use super::{fixtures::replica, *};

    #[test]
    fn an_old_view_of_the_dcs_is_no_view() {
        let snapshot = replica();
        let seen = snapshot.dcs.as_ref().expect("fixture has a view").seen_at;
        assert!(snapshot.cluster(seen + Duration::from_secs(30)).is_some());
        assert!(snapshot.cluster(seen + Duration::from_secs(31)).is_none());
    }

    #[test]
    fn running_without_an_answer_is_unknown() {
        let mut snapshot = replica();
        assert_eq!(snapshot.state(), PgState::Running);
        snapshot.local.answer = None;
        assert_eq!(snapshot.state(), PgState::Unknown);
        snapshot.local.state = PgState::Stopped;
        assert_eq!(snapshot.state(), PgState::Stopped);
    }

    #[test]
    fn restart_conditions_are_all_needed() {
        let mut snapshot = replica();
        let mut filters = RestartFilters {
            role: Some(Role::Replica),
            older_than: Some(PgVersion {
                text: "17.5".into(),
                number: 170_005,
            }),
            ..RestartFilters::default()
        };
        assert!(filters.hold(&snapshot));
        filters.pending_only = true;
        assert!(!filters.hold(&snapshot));
        snapshot
            .local
            .pending_restart
            .insert("shared_buffers".into(), Value::Null);
        assert!(filters.hold(&snapshot));
        filters.role = Some(Role::Primary);
        assert!(!filters.hold(&snapshot));
    }
}
