//! What `decide` is given.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{Action, DemoteMode, Failure, Job, Memory, Plan, Source, Upstream, failsafe, lease, sync};
use crate::{
    clock::Boottime,
    dcs::Hold,
    model::{
        Cluster, ControlData, Dynamic, HistoryRow, Lsn, MemberName, PeerStatus, SystemId, Tags, Timeline,
    },
};

/// The DCS as last asked in this turn.
#[derive(Debug, Clone)]
pub enum DcsView {
    /// Read in this turn.
    Known {
        /// The whole cluster.
        cluster: Arc<Cluster>,
    },
    /// Could not be asked.
    Down {
        /// Since the first failed turn.
        since: Boottime,
    },
}

/// The timeline another one branched off, and where: numbers alone do not tell two histories apart. None for the first
/// timeline, and where the history file is not there.
pub type Parent = (Timeline, Lsn);

/// What a running postgres is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Not in recovery.
    Primary {
        /// Flushed position.
        flushed: Lsn,
    },
    /// In recovery.
    Replica {
        /// Written by the WAL receiver (or last received).
        received: Lsn,
        /// Replayed.
        replayed: Lsn,
        /// The WAL receiver streams.
        streaming: bool,
        /// WAL may still come from elsewhere: there is a WAL receiver, or one could start at any moment.
        receiving: bool,
        /// Host and port it is configured to stream from.
        upstream: Option<(String, u16)>,
        /// Replay stands still until a restart with larger settings: the primary raised one that a replica must not
        /// undercut.
        paused_for_parameters: bool,
    },
}

/// A postgres that answered in this turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Primary or replica.
    pub standing: Standing,
    /// Its timeline.
    pub timeline: Timeline,
    /// Where that timeline begins, by its own history file.
    pub parent: Option<Parent>,
    /// Its identity.
    pub system_id: Option<SystemId>,
}

impl Running {
    /// Primary: flushed; replica: the larger of received and replayed.
    #[must_use]
    pub fn position(&self) -> Lsn {
        match self.standing {
            Standing::Primary { flushed } => flushed,
            Standing::Replica {
                received, replayed, ..
            } => received.max(replayed),
        }
    }

    /// Not in recovery.
    #[must_use]
    pub const fn is_primary(&self) -> bool {
        matches!(self.standing, Standing::Primary { .. })
    }

    /// What it has now may not be all it will have.
    #[must_use]
    pub const fn is_receiving(&self) -> bool {
        matches!(self.standing, Standing::Replica { receiving: true, .. })
    }

    /// A replica whose replay stands still until a restart with larger settings.
    #[must_use]
    pub const fn is_paused(&self) -> bool {
        matches!(
            self.standing,
            Standing::Replica {
                paused_for_parameters: true,
                ..
            }
        )
    }

    /// A replica that receives WAL.
    #[must_use]
    pub const fn is_streaming(&self) -> bool {
        matches!(self.standing, Standing::Replica { streaming: true, .. })
    }
}

/// A data directory without a postmaster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Down {
    /// What `pg_control` says.
    pub control: ControlData,
    /// `standby.signal` or `recovery.signal` is there.
    pub standby_signal: bool,
    /// End of the shutdown checkpoint record of a cleanly stopped primary.
    pub checkpoint_end: Option<Lsn>,
    /// Where its timeline begins, by its own history file.
    pub parent: Option<Parent>,
}

impl Down {
    /// The directory was last written by a primary.
    #[must_use]
    pub const fn was_primary(&self) -> bool {
        self.control.state.was_primary() && !self.standby_signal
    }

    /// The timeline its WAL has reached. A primary that dies between its promotion and its first checkpoint leaves the
    /// old timeline in the checkpoint and the new one only in the minimum recovery point (PostgreSQL:
    /// `CreateEndOfRecoveryRecord` in `xlog.c`; a checkpoint resets it to zero).
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.control.timeline.max(self.control.min_recovery_timeline)
    }
}

/// Why there is no observation of a living postmaster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// Its process is stopped.
    Stopped,
    /// No new connection, or no word on one: it may hang.
    NoAnswer,
    /// It takes connections, but no new session gets an answer: it, or its disk, may hang.
    NoSession,
    /// Our question got no answer in time, but a new session does: it is busy.
    Slow,
    /// It answered, with an error (a wrong password, too many connections, ...): it is alive, and only we cannot look.
    Refused,
}

/// The local postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// No data directory, or an empty one, or what an unfinished bootstrap has left.
    Empty,
    /// What a copy or a rewind has left that did not finish: worth nothing, but there was a cluster.
    Leftover,
    /// Data that is damaged, or of another major version: never started, never deleted.
    Broken {
        /// What is wrong with it.
        reason: String,
    },
    /// No postmaster, and the data could not be looked at. That says nothing about the data.
    Unknown {
        /// Why not.
        reason: String,
        /// Since the first turn in which it could not.
        since: Boottime,
    },
    /// Data, no postmaster.
    Down(Down),
    /// A postmaster that does not accept connections yet, and no job waits for it.
    Starting {
        /// Since when.
        since: Boottime,
        /// Without `standby.signal`.
        primary: bool,
    },
    /// A postmaster on its way down.
    Stopping {
        /// Since when.
        since: Boottime,
        /// Nobody asked it to: the postmaster is gone, what it left behind is being ended.
        crashed: bool,
    },
    /// Answers queries.
    Running(Running),
    /// The postmaster lives but did not answer in this turn.
    Silent {
        /// Since the first turn with this kind of silence.
        since: Boottime,
        /// What it last was.
        primary: bool,
        /// Which kind.
        why: Silence,
    },
}

impl Local {
    /// Identity of the data, when it is known.
    #[must_use]
    pub const fn system_id(&self) -> Option<&SystemId> {
        match self {
            Self::Down(down) => Some(&down.control.system_id),
            Self::Running(running) => running.system_id.as_ref(),
            _ => None,
        }
    }

    /// May accept writes now or in a moment. In doubt: yes.
    #[must_use]
    pub const fn may_write(&self) -> bool {
        match self {
            Self::Empty
            | Self::Leftover
            | Self::Broken { .. }
            | Self::Unknown { .. }
            | Self::Down(_)
            | Self::Stopping { .. } => false,
            Self::Starting { primary, .. } | Self::Silent { primary, .. } => *primary,
            Self::Running(running) => running.is_primary(),
        }
    }
}

/// Answers of the other members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peers {
    /// When the last of them came in.
    pub at: Boottime,
    /// By member; `None`: did not answer.
    pub answers: BTreeMap<MemberName, Option<PeerStatus>>,
}

impl Peers {
    /// All of them were asked: a member that was not must not pass for one that does not answer.
    pub(super) fn cover<'a>(&self, mut names: impl Iterator<Item = &'a MemberName>) -> bool {
        names.all(|name| self.answers.contains_key(name))
    }
}

/// What the leader's postgres says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderFacts {
    /// Still in recovery.
    pub in_recovery: bool,
    /// Its timeline.
    pub timeline: Timeline,
    /// Its history.
    pub history: Vec<HistoryRow>,
    /// How far it has written and flushed (in recovery: replayed).
    pub flushed: Lsn,
}

/// Answer of the leader's postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderProbe {
    /// Who was asked.
    pub leader: MemberName,
    /// When the answer came.
    pub at: Boottime,
    /// What it said, or why it could not be asked.
    pub facts: Result<LeaderFacts, String>,
}

/// The job slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningJob {
    /// What runs.
    pub job: Job,
    /// Since when.
    pub since: Boottime,
}

/// How this member was asked to stop, hardest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shutdown {
    /// SIGTERM: checkpoint, fast stop, lock released.
    HandOver,
    /// SIGINT: the same without the checkpoint.
    Fast,
    /// SIGQUIT: immediate stop.
    Immediate,
}

/// A job that ended since the last turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// What ran.
    pub job: Job,
    /// `Err` with the reason.
    pub outcome: Result<(), Failure>,
}

/// Everything a decision may rest on.
#[derive(Debug, Clone)]
pub struct View {
    /// Our name.
    pub me: MemberName,
    /// Our tags.
    pub tags: Tags,
    /// Dynamic configuration in force.
    pub dynamic: Dynamic,
    /// Wall clock, only for what people scheduled.
    pub wall: Timestamp,
    /// The DCS.
    pub dcs: DcsView,
    /// Until when we may be primary, in the form of a hold on the lock. Without the DCS it may rest on the consent of
    /// the other members ([`super::lease::Right`]).
    pub hold: Option<Hold>,
    /// The local postgres.
    pub local: Local,
    /// The job slot.
    pub job: Option<RunningJob>,
    /// The last job, in the first turn after its end.
    pub finished: Option<Finished>,
    /// Answers of peers, if asked for.
    pub peers: Option<Peers>,
    /// Answer of the leader's postgres, if asked for.
    pub leader_probe: Option<LeaderProbe>,
    /// A replica can be made here with nobody to copy from (a method with `no_leader`).
    pub can_restore: bool,
    /// What failsafe mode adds to what can be seen.
    pub failsafe: failsafe::Sight,
    /// Synchronous replication, as a running primary sees it.
    pub sync: Option<sync::Sight>,
    /// Permanent logical slots of the leader that this replica does not have.
    pub missing_slots: Vec<String>,
    /// Asked to stop.
    pub shutdown: Option<Shutdown>,
    /// A watchdog device is required here and there is none that works: nobody may be a primary on this member.
    pub watchdog_failed: bool,
    /// Nothing outlives this process: it is a container's.
    pub contained: bool,
    /// From the last turn.
    pub memory: Memory,
}

impl View {
    /// Our hold, if its time to be primary has not run out.
    #[must_use]
    pub fn valid_hold(&self, now: Boottime) -> Option<&Hold> {
        self.hold
            .as_ref()
            .filter(|hold| now < lease::deadlines(hold).demote_at)
    }

    /// By when a primary without a usable hold must be down: the fence deadline of what hold there is, or a short
    /// time from now when there is none.
    #[must_use]
    pub fn stop_by(&self, now: Boottime) -> Boottime {
        let soon = now + lease::stop_budget(self.dynamic.timing.ttl);
        self.hold
            .as_ref()
            .map_or(soon, |hold| lease::deadlines(hold).fence_at.min(soon))
    }

    /// Plan to stop a primary that has no right to be one.
    pub(super) fn demote(&self, mode: DemoteMode, now: Boottime, because: impl Into<String>) -> Plan {
        Plan::begin(
            because,
            Job::Demote {
                mode,
                deadline: self.stop_by(now),
            },
        )
    }

    /// Plan to stop a postgres that must give the lock away: it is down before the lock is released.
    pub(super) fn step_down(now: Boottime, because: impl Into<String>) -> Plan {
        let (mode, deadline) = (DemoteMode::Immediate, now + IMMEDIATE_STOP);
        Plan::begin(because, Job::Demote { mode, deadline }).keeping(true)
    }

    /// Upper bound for a planned hand-over. A person asked for it and the lock is kept: there is no hurry that would be
    /// worth a crash recovery. It bounds what comes before the shutdown checkpoint; what PostgreSQL waits for after it
    /// (receivers, the archiver) has its own, far shorter bounds and no say in when the lock goes.
    #[must_use]
    pub(super) fn hand_over_timeout(&self) -> Duration {
        self.dynamic.primary_stop_timeout.max(HAND_OVER_TIMEOUT)
    }

    /// Upper bound for an orderly stop: fast for six tenths of it, then immediate, then SIGKILL. Stricter than the
    /// contract (HA rules §10), where a stop has a bound only in synchronous mode and with `primary_stop_timeout` above
    /// zero: here every stop has one, and the setting replaces the default in every mode. Whoever sets more than eight
    /// seconds gives the container more than Docker's ten.
    #[must_use]
    pub const fn stop_timeout(&self) -> Duration {
        if self.dynamic.primary_stop_timeout.is_zero() {
            DEFAULT_STOP_TIMEOUT
        } else {
            self.dynamic.primary_stop_timeout
        }
    }
}

/// Default bound of an orderly stop: leaves Docker's ten seconds of grace unused.
pub(super) const DEFAULT_STOP_TIMEOUT: Duration = Duration::from_secs(8);
/// Upper bound of an immediate stop.
pub(super) const IMMEDIATE_STOP: Duration = Duration::from_secs(2);
/// Least bound of a planned hand-over.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(60);

/// Gives the lock up on purpose, and leaves it to others for a while: whoever releases is the first to see it free.
pub(super) fn give_up(memory: &Memory, now: Boottime, because: impl Into<String>) -> Plan {
    let mut plan = Plan::act(because, [Action::ReleaseLock(None)]);
    plan.memory = Some(Memory {
        handed_over_at: Some(now),
        ..memory.clone()
    });
    plan
}

/// The upstream a member stands for, if its address is known.
pub(super) fn upstream(cluster: &Cluster, name: &MemberName) -> Option<Upstream> {
    let (host, port) = cluster.member(name)?.address()?;
    Some(Upstream {
        member: name.clone(),
        host,
        port,
        source: Source::Member,
    })
}
