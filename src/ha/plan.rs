//! What `decide` returns.

use std::time::Duration;

use super::{Memory, failsafe, sync::StandbyNames};
use crate::{
    clock::Boottime,
    exit::Exit,
    model::{Lsn, MemberName, StandbyCluster, SyncKey, SystemId, Version},
};

/// Whose server a replica gets its data from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A member of this cluster.
    Member,
    /// The cluster that this one follows (`standby_cluster`).
    Remote,
}

/// Where a replica streams from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// The member; of a remote cluster: what people call it by.
    pub member: MemberName,
    /// Host of its postgres. Of a remote cluster perhaps several, separated by commas, or none: then there is only an
    /// archive.
    pub host: String,
    /// Port of its postgres.
    pub port: u16,
    /// Whose server it is.
    pub source: Source,
}

impl Upstream {
    /// The cluster that this one follows.
    #[must_use]
    pub fn remote(standby: &StandbyCluster) -> Self {
        let (member, host, port) = match standby.address() {
            Some((host, port)) => (format!("{host}:{port}"), host, port),
            None => ("the archive".to_owned(), String::new(), 0),
        };
        Self {
            member: MemberName(member),
            host,
            port,
            source: Source::Remote,
        }
    }

    /// The cluster that this one follows, or a part of it.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.source == Source::Remote
    }

    /// There is a server to stream from.
    #[must_use]
    pub const fn streams(&self) -> bool {
        !self.host.is_empty()
    }

    /// As it shows in the settings of a server that streams from it.
    #[must_use]
    pub fn address(&self) -> Option<(String, u16)> {
        self.streams().then(|| (self.host.clone(), self.port))
    }
}

/// How a start is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartAs {
    /// Without `standby.signal`: crash recovery, then writes. Only ever with the lock.
    Primary,
    /// With `standby.signal`, streaming from the upstream if there is one.
    Replica(Option<Upstream>),
}

/// How a primary (or any postgres) is stopped (contract: HA rules §10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DemoteMode {
    /// CHECKPOINT first, then as [`DemoteMode::Fast`].
    Graceful,
    /// Fast stop. The lock is released with the last position once postgres is down, or as soon as it cannot write any
    /// more and a member that may lead has everything.
    Fast,
    /// Immediate stop, lock released once postgres is down.
    Immediate,
    /// Immediate stop; the lock is lost or another's and is not touched.
    ImmediateNoLock,
    /// The DCS is unreachable: fast stop, by force before the fence deadline; the lock is not touched.
    Offline,
    /// The cluster is to follow another: fast stop. Where WAL is archived the end of it is too, and the lock is kept,
    /// because this member has it all; elsewhere the lock is released.
    Cluster,
}

/// Long work: runs in the single job slot while the loop goes on and the lock is renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// initdb, roles, init scripts; then the lock is taken.
    Bootstrap,
    /// Copy the remote cluster: this one is to follow it.
    BootstrapStandby,
    /// Make a replica with nobody to copy from.
    Restore,
    /// Copy the upstream's data directory, and put the copy in the place of what is there now.
    Clone {
        /// Whose data.
        from: Upstream,
        /// What is replaced is renamed, not removed: it may hold what exists nowhere else.
        keep: bool,
    },
    /// pg_rewind against the upstream.
    Rewind(Upstream),
    /// Copy logical slots of the leader into the stopped replica; the next turn starts it again.
    CopySlots {
        /// The leader.
        from: Upstream,
        /// Their names.
        slots: Vec<String>,
    },
    /// Start postgres.
    Start(StartAs),
    /// Stop and start in the same role.
    Restart,
    /// Make the running replica primary.
    Promote,
    /// Stop postgres, and with some modes release the lock afterwards.
    Demote {
        /// How.
        mode: DemoteMode,
        /// By when postgres must be down, by force if it must be.
        deadline: Boottime,
    },
}

impl Job {
    /// Name for logs and status.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::BootstrapStandby => "bootstrap of a standby cluster",
            Self::Restore => "restore",
            Self::Clone { .. } => "clone",
            Self::Rewind(_) => "rewind",
            Self::CopySlots { .. } => "copy slots",
            Self::Start(_) => "start",
            Self::Restart => "restart",
            Self::Promote => "promote",
            Self::Demote { .. } => "demote",
        }
    }

    /// Whether postgres may accept writes while this runs, so that the lock is needed.
    #[must_use]
    pub const fn needs_lock(&self) -> bool {
        matches!(self, Self::Promote | Self::Start(StartAs::Primary))
    }
}

/// One step. Steps run in order; a refused or failed one ends the turn, and the next turn decides afresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Take the free lock.
    AcquireLock,
    /// Make sure of a lock that carries our name (agent restarted, or the key vanished under us).
    RenewLock,
    /// Give the lock up; with the last position if it is certain.
    ReleaseLock(Option<Lsn>),
    /// Create `/initialize` empty: we are the one to bootstrap.
    ClaimInitialize,
    /// Write our system identifier to `/initialize`; `None`: only if the key is absent.
    WriteInitialize(SystemId, Option<Version>),
    /// Remove an `/initialize` whose bootstrap was abandoned.
    AbandonInitialize(Version),
    /// Write the dynamic configuration we know to a `/config` that is missing.
    WriteConfig,
    /// Empty `/failover`.
    ClearFailover,
    /// Write what only the leader writes, where it differs: `/status`, `/history`, slots of the members.
    LeaderDuties,
    /// Write `/failsafe`, if it still has this version (`None`: is not there).
    WriteFailsafe {
        /// Its new content.
        members: failsafe::Members,
        /// As last read.
        under: Option<Version>,
    },
    /// Ask these members to accept this primary while the DCS does not answer, and go on asking until it does, or the
    /// right to lead ends. The right is extended as soon as all have accepted ([`failsafe::consent`]).
    AskConsent(failsafe::Members),
    /// Write `/sync` if it still has the version given in the key.
    WriteSync(SyncKey),
    /// Remove `/sync` if it still has this version.
    DeleteSync(Version),
    /// Write `synchronous_standby_names` (`None`: the user's own) and reload a postgres that runs.
    SetSyncNames(Option<StandbyNames>),
    /// Write a record that standbys can be seen to have, while these names are in force.
    MarkSync(StandbyNames),
    /// Point the running replica at another upstream (rewrite and reload).
    Follow(Option<Upstream>),
    /// Ask these members for their positions, then decide again. Vanished ones get less time.
    ProbePeers {
        /// Members with a key.
        present: Vec<(MemberName, String)>,
        /// Members seen in the last view whose key is gone.
        vanished: Vec<(MemberName, String)>,
    },
    /// Ask the leader's postgres for its timeline history, then decide again.
    ProbeLeader(Upstream),
    /// Begin a job.
    Begin(Job),
    /// Cancel the running job.
    CancelJob,
    /// End the agent.
    Exit(Exit),
}

impl Action {
    /// Belongs to synchronous replication.
    const fn is_sync(&self) -> bool {
        matches!(
            self,
            Self::WriteSync(_) | Self::DeleteSync(_) | Self::SetSyncNames(_) | Self::MarkSync(_)
        )
    }

    /// Only makes known what is so, whatever becomes of the rest of the plan.
    const fn is_duty(&self) -> bool {
        matches!(self, Self::LeaderDuties | Self::WriteFailsafe { .. })
    }
}

/// What to do, why, and what to remember.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// In order.
    pub actions: Vec<Action>,
    /// Whether the lease may go on being renewed. Renewing stops by decision, never by accident.
    pub keep_lock: bool,
    /// One sentence for the log.
    pub because: String,
    /// Look again at the latest after this time (otherwise `loop_wait`).
    pub again_in: Option<Duration>,
    /// For the next turn.
    pub memory: Option<Memory>,
}

impl Plan {
    /// Do nothing.
    pub(super) fn wait(because: impl Into<String>) -> Self {
        Self {
            actions: Vec::new(),
            keep_lock: false,
            because: because.into(),
            again_in: None,
            memory: None,
        }
    }

    /// Nothing was decided; look again.
    #[must_use]
    pub fn idle() -> Self {
        Self::wait("more questions than one turn may ask")
    }

    /// Do these things.
    pub(super) fn act(because: impl Into<String>, actions: impl Into<Vec<Action>>) -> Self {
        Self {
            actions: actions.into(),
            ..Self::wait(because)
        }
    }

    /// Begin one job.
    pub(super) fn begin(because: impl Into<String>, job: Job) -> Self {
        Self::act(because, [Action::Begin(job)])
    }

    /// End the agent.
    pub(super) fn exit(exit: Exit, because: impl Into<String>) -> Self {
        Self::act(because, [Action::Exit(exit)])
    }

    /// What is left to do once the step at this index was refused: nothing, but for the duties of a leader whose
    /// synchronous replication cannot be changed (its disk may be full for hours). Where a job would begin they wait: its
    /// safety rests on the steps before it.
    pub fn despite_refused(&self, index: usize) -> impl Iterator<Item = &Action> {
        let refused = self.actions.get(index);
        let begins = self
            .actions
            .iter()
            .any(|action| matches!(action, Action::Begin(_)));
        let goes_on = !begins && refused.is_some_and(Action::is_sync);
        let rest = self.actions.iter().skip(index.saturating_add(1));
        rest.filter(move |action| goes_on && action.is_duty())
    }

    pub(super) const fn keeping(mut self, keep_lock: bool) -> Self {
        self.keep_lock = keep_lock;
        self
    }

    pub(super) const fn again_in(mut self, wait: Duration) -> Self {
        self.again_in = Some(wait);
        self
    }

    pub(super) fn remembering(mut self, memory: Memory) -> Self {
        // A situation that changed the memory itself wins over what every turn remembers.
        self.memory.get_or_insert(memory);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn failsafe() -> Action {
        Action::WriteFailsafe {
            members: BTreeMap::new(),
            under: None,
        }
    }

    fn despite(actions: &[Action], index: usize) -> Vec<Action> {
        let plan = Plan::act("", actions);
        plan.despite_refused(index).cloned().collect()
    }

    #[test]
    fn what_synchronous_replication_is_refused_does_not_keep_the_leader_from_its_duties() {
        let sync = [
            Action::WriteSync(SyncKey::default()),
            Action::DeleteSync(Version(1)),
            Action::SetSyncNames(None),
            Action::MarkSync(StandbyNames::parse("a")),
        ];
        for refused in sync {
            let actions = [
                refused.clone(),
                Action::SetSyncNames(None),
                Action::WriteConfig,
                Action::LeaderDuties,
                failsafe(),
            ];
            assert_eq!(
                despite(&actions, 0),
                [Action::LeaderDuties, failsafe()],
                "{refused:?}"
            );
        }
    }

    #[test]
    fn every_other_refusal_ends_the_turn() {
        let duties = [Action::WriteConfig, Action::LeaderDuties, failsafe()];
        assert_eq!(despite(&duties, 0), []);
        assert_eq!(despite(&duties, 2), []);
        assert_eq!(despite(&duties, 3), []);
        let promotion = [
            Action::SetSyncNames(None),
            Action::LeaderDuties,
            Action::Begin(Job::Promote),
        ];
        assert_eq!(despite(&promotion, 0), []);
    }
}
