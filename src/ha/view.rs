//! What `decide` is given.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{Action, DemoteMode, Job, Plan, StartAs, Upstream, lease};
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
        /// Host and port it is configured to stream from.
        upstream: Option<(String, u16)>,
    },
}

/// A postgres that answered in this turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Primary or replica.
    pub standing: Standing,
    /// Its timeline.
    pub timeline: Timeline,
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

/// The local postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// No data directory, or an empty one.
    Empty,
    /// Data whose `pg_control` cannot be read: never started, never deleted.
    Broken {
        /// What is wrong with it.
        reason: String,
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
    /// A postmaster on its way down, and no job waits for it.
    Stopping,
    /// Answers queries.
    Running(Running),
    /// The postmaster lives but did not answer in this turn.
    Silent {
        /// Since the first turn without an answer.
        since: Boottime,
        /// What it last was.
        primary: bool,
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
            Self::Empty | Self::Broken { .. } | Self::Down(_) | Self::Stopping => false,
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
    pub outcome: Result<(), String>,
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
    /// Our hold on the lock.
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
    /// Asked to stop.
    pub shutdown: Option<Shutdown>,
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

    /// Upper bound for an orderly stop.
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

/// Rewinds in a row, none of which led to streaming, before the directory is cloned anew.
const REWINDS: u32 = 2;

/// What one turn tells the next.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    /// When this agent started.
    pub started_at: Boottime,
    /// First turn that saw the lock free.
    pub unlocked_since: Option<Boottime>,
    /// Last leader seen by this agent. `None`: a cold start, nothing was seen yet. Our own name in the lock proves
    /// nothing about our data until we have been seen running as primary.
    pub last_leader: Option<MemberName>,
    /// Members (name, api_url) of the last view with a leader.
    pub last_members: Vec<(MemberName, String)>,
    /// We gave the lock up on purpose and leave it to others for a while.
    pub handed_over_at: Option<Boottime>,
    /// Leader whose history was compared with ours, and its published timeline then.
    pub compared_with: Option<(MemberName, Timeline)>,
    /// Starts that failed in a row, and when the last did.
    pub start_failures: (u32, Boottime),
    /// Rewinds that failed in a row.
    pub rewind_failures: u32,
    /// Rewinds that succeeded since this member last streamed. If it still does not stream, rewinding is not the cure.
    pub rewinds: u32,
    /// Promotions that failed in a row, and when the last did.
    pub promote_failures: (u32, Boottime),
    /// Clones that failed in a row, and when the last did.
    pub clone_failures: (u32, Boottime),
    /// First turn that saw a postgres that should be primary not running.
    pub primary_down_since: Option<Boottime>,
    /// First turn that saw our replica not streaming although there is a leader.
    pub not_streaming_since: Option<Boottime>,
    /// First turn that wanted to follow a leader whose postgres could not be asked.
    pub waiting_for_leader_since: Option<Boottime>,
}

impl Memory {
    /// What every turn remembers, whatever it decides.
    pub(super) fn remember(&self, view: &View, now: Boottime) -> Self {
        let mut memory = self.clone();
        memory.note_cluster(view, now);
        memory.note_local(view, now);
        if let Some(finished) = &view.finished {
            memory.note_job(finished, now);
        }
        memory
    }

    fn note_cluster(&mut self, view: &View, now: Boottime) {
        let DcsView::Known { cluster } = &view.dcs else {
            return;
        };
        match &cluster.leader {
            Some(leader) => {
                self.unlocked_since = None;
                let another = leader.name != view.me;
                if another {
                    self.handed_over_at = None;
                    self.promote_failures = (0, Boottime(0));
                }
                if another && self.last_leader.as_ref() != Some(&leader.name) {
                    self.waiting_for_leader_since = None;
                }
                let primary = matches!(&view.local, Local::Running(running) if running.is_primary());
                if another || primary {
                    self.last_leader = Some(leader.name.clone());
                }
                let others = cluster
                    .members
                    .iter()
                    .filter(|m| m.name != view.me && !m.data.api_url.is_empty());
                self.last_members = others.map(|m| (m.name.clone(), m.data.api_url.clone())).collect();
            }
            None => {
                self.unlocked_since.get_or_insert(now);
            }
        }
    }

    fn note_local(&mut self, view: &View, now: Boottime) {
        match &view.local {
            Local::Running(running) => {
                self.start_failures = (0, Boottime(0));
                self.primary_down_since = None;
                self.waiting_for_leader_since = None;
                if running.is_primary() {
                    self.promote_failures = (0, Boottime(0));
                }
                match running.standing {
                    Standing::Replica { streaming: false, .. } => {
                        self.not_streaming_since.get_or_insert(now);
                    }
                    _ => self.not_streaming_since = None,
                }
                if matches!(running.standing, Standing::Replica { streaming: true, .. }) {
                    (self.rewind_failures, self.rewinds) = (0, 0);
                    self.clone_failures = (0, Boottime(0));
                }
            }
            Local::Down(down) if down.was_primary() => {
                self.primary_down_since.get_or_insert(now);
            }
            _ => {}
        }
    }

    fn note_job(&mut self, finished: &Finished, now: Boottime) {
        match (&finished.job, finished.outcome.is_ok()) {
            (
                Job::Demote {
                    mode: DemoteMode::Graceful | DemoteMode::Fast | DemoteMode::Immediate,
                    ..
                },
                _,
            ) => {
                self.handed_over_at = Some(now);
                self.compared_with = None;
            }
            (Job::Promote, ok) => {
                self.compared_with = None;
                self.promote_failures = if ok {
                    (0, Boottime(0))
                } else {
                    (self.promote_failures.0 + 1, now)
                };
            }
            (Job::Demote { .. }, _) => self.compared_with = None,
            (Job::Start(_) | Job::Restart, false) => self.start_failures = (self.start_failures.0 + 1, now),
            (Job::Start(StartAs::Replica(_)), true) => self.start_failures = (0, Boottime(0)),
            (Job::Rewind(_), ok) => {
                if ok {
                    self.rewind_failures = 0;
                    self.rewinds += 1;
                } else {
                    self.rewind_failures += 1;
                }
                self.compared_with = None;
                self.start_failures = (0, Boottime(0));
            }
            (Job::Clone(_), ok) => {
                if ok {
                    // New data: what was tried on the old says nothing about it.
                    self.clone_failures = (0, Boottime(0));
                    (self.rewind_failures, self.rewinds) = (0, 0);
                } else {
                    self.clone_failures = (self.clone_failures.0 + 1, now);
                }
                self.compared_with = None;
                self.start_failures = (0, Boottime(0));
            }
            _ => {}
        }
    }

    /// A rewind is still worth trying.
    #[must_use]
    pub(super) const fn may_rewind(&self) -> bool {
        self.rewind_failures == 0 && self.rewinds < REWINDS
    }

    /// How long to wait after `failures` in a row: 1, 2, 4, 8, then 10 s.
    #[must_use]
    pub(super) fn backoff((failures, last): (u32, Boottime), now: Boottime) -> Option<Duration> {
        let wait = match failures {
            0 => return None,
            n => Duration::from_secs(1 << (n - 1).min(4)).min(Duration::from_secs(10)),
        };
        let left = wait.saturating_sub(now.since(last));
        (!left.is_zero()).then_some(left)
    }
}

/// Another member is there that could take over. Whether it really can is asked of it only before a planned
/// hand-over; a postgres that does not come up has nothing to lose by letting others try.
pub(super) fn others_may_lead(view: &View, cluster: &Cluster) -> bool {
    cluster
        .members
        .iter()
        .any(|m| m.name != view.me && !m.tags().nofailover())
}

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
    })
}
