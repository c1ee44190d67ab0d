//! Synchronous replication (contract: HA rules §11): whom a commit waits for, and who may lead because of it.
//!
//! Two records say it, and neither can be changed together with the other: `synchronous_standby_names` in postgres, and
//! `/sync` in the DCS. At every instant, also between two writes and after the death of their writer, each set of members
//! that `/sync` lets lead must have one in common with each set that suffices for an acknowledgement ([`promise`]).
//!
//! ```text
//!  walsenders ─ candidates ─┐
//!  names in force ──────────┼─ on | quorum (strict) ─► steps ─► WriteSync (compare-and-set)
//!  /sync ───────────────────┤                                   SetSyncNames (file, reload)
//!  confirmed up to a mark ──┘                                   MarkSync (a record that must arrive)
//! ```
//!
//! **Confirmed.** A reload reaches each process by itself, and what was acknowledged before need not be on a standby
//! that has just been named. So once the setting is seen in force, and has been for a moment ([`SETTLE`]), a record is
//! written: a standby that has it has everything from before, and whatever comes after waits by the new rule, because a
//! walsender reads the setting before it reads an answer to what it sent later (PostgreSQL: `WalSndLoop`). Where commits
//! waited for nobody until now the checkpointer must have seen the change too: it tells all others that commits wait at
//! all (`SyncRepUpdateSyncStandbysDefined`).

mod candidates;
mod names;
mod on;
mod promise;
mod promotion;
pub mod quorum;
mod set;
mod strict;

use std::time::Duration;

pub use names::{Method, PLACEHOLDER, StandbyNames};
pub use promise::{Promise, kept, kind};
pub(super) use promotion::{before_promotion, before_start};
pub use set::NameSet;

use super::{Action, View};
use crate::{
    clock::Boottime,
    model::{Cluster, Lsn, MemberName, SyncKey, SyncKind},
};
use quorum::{Change, Resolver};

/// How long a setting has been seen in force before what it does is relied upon.
pub const SETTLE: Duration = Duration::from_millis(250);
/// Next look at a change that is under way.
const SOON: Duration = Duration::from_millis(50);
/// Commits that wait for a standby that is gone wait until somebody looks.
const WATCH: Duration = Duration::from_secs(1);
/// A setting that has not come in force by then is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// A walsender of the local primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// `application_name`: the member's name.
    pub name: String,
    /// It streams (and is not catching up, or making a copy).
    pub streaming: bool,
    /// `async`, `potential`, `quorum` or `sync`.
    pub sync_state: String,
    /// How far it is, by what `synchronous_commit` waits for: written, flushed or replayed.
    pub position: Option<Lsn>,
}

/// A record that was written while these names were in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The names.
    pub names: StandbyNames,
    /// Its end.
    pub lsn: Lsn,
}

/// What the local primary says of synchronous replication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// Flushed position.
    pub flushed: Lsn,
    /// The setting in force.
    pub in_force: StandbyNames,
    /// The setting last written by us; `None`: the user's own, or not known yet.
    pub asked: Option<StandbyNames>,
    /// The user's own setting is what is written.
    pub users_own: bool,
    /// Who streams from here.
    pub senders: Vec<Sender>,
    /// The checkpointer has nothing to do and has seen every reload up to a moment ago.
    pub checkpointer_waits: bool,
    /// The last record written to be confirmed.
    pub mark: Option<Mark>,
    /// A write of `/sync` got no answer: it may still take place.
    pub unsure: bool,
}

/// What one turn tells the next.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// The setting in force, and since when it was seen.
    in_force: Option<(StandbyNames, Boottime)>,
    /// Since when commits wait for anybody at all, and whether everybody knows it.
    waits: Option<(Boottime, bool)>,
    /// The mark, since when, and who has had it.
    confirmed: Option<(Mark, Boottime, NameSet)>,
    /// When the setting was last asked for.
    asked_at: Option<(Option<StandbyNames>, Boottime)>,
}

impl Seen {
    /// To be called in every turn.
    pub(super) fn note(&mut self, view: &View, now: Boottime) {
        let Some(sight) = &view.sync else {
            // Nobody looked, or it is no primary: nothing is certain any more.
            *self = Self::default();
            return;
        };
        if self
            .in_force
            .as_ref()
            .is_none_or(|(names, _)| *names != sight.in_force)
        {
            self.in_force = Some((sight.in_force.clone(), now));
        }
        if sight.in_force.is_none() {
            self.waits = None;
        } else {
            let (since, known) = self.waits.get_or_insert((now, false));
            *known |= sight.checkpointer_waits && now.since(*since) >= SETTLE;
        }
        let Some(mark) = sight.mark.as_ref().filter(|mark| mark.names == sight.in_force) else {
            self.confirmed = None;
            return;
        };
        if self.confirmed.as_ref().is_none_or(|(known, ..)| known != mark) {
            self.confirmed = Some((mark.clone(), now, NameSet::default()));
        }
        if let Some((mark, _, reached)) = &mut self.confirmed {
            let positions = candidates::positions(sight);
            let there = |name: &&MemberName| {
                let position = positions.get(&name.0.to_ascii_lowercase());
                position.is_some_and(|position| *position >= mark.lsn)
            };
            let arrived: NameSet = mark.names.names.iter().filter(there).collect();
            *reached = reached.union(&arrived);
        }
    }

    fn settled(&self, now: Boottime) -> Result<(), Duration> {
        let (Some((_, since)), Some((_, known))) = (&self.in_force, &self.waits) else {
            return Err(SOON);
        };
        let left = SETTLE.saturating_sub(now.since(*since));
        match (left.is_zero(), known) {
            (true, true) => Ok(()),
            (true, false) => Err(SOON),
            (false, _) => Err(left),
        }
    }
}

/// One step of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Write(SyncKey),
    /// `None`: the user's own.
    Set(Option<StandbyNames>),
    /// Nothing can be done before (more) standbys have confirmed.
    Confirm,
}

/// What the steps are decided by.
struct State<'a> {
    me: &'a MemberName,
    kind: SyncKind,
    sync: &'a SyncKey,
    sight: &'a Sight,
    active: NameSet,
    able: NameSet,
    confirmed: NameSet,
    least: usize,
    count: usize,
}

impl State<'_> {
    /// Nothing but what is in force has been asked for.
    fn at_rest(&self) -> bool {
        self.sight.asked.as_ref() == Some(&self.sight.in_force)
    }

    fn leads(&self) -> bool {
        let leader = self.sync.leader.as_ref();
        leader.is_some_and(|leader| leader.0.eq_ignore_ascii_case(&self.me.0))
    }

    fn voters(&self) -> NameSet {
        self.sync.standbys.iter().collect()
    }

    fn quorum(&self) -> usize {
        usize::try_from(self.sync.quorum).unwrap_or(usize::MAX)
    }

    fn write(&self, voters: NameSet, quorum: usize) -> Step {
        Step::Write(SyncKey {
            leader: Some(self.me.clone()),
            quorum: u32::try_from(quorum).unwrap_or(u32::MAX),
            standbys: voters.list(),
            version: self.sync.version,
        })
    }
}

/// What the leader does about synchronous replication in this turn.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Turn {
    /// In order.
    pub(super) actions: Vec<Action>,
    /// What for, if anything is done.
    pub(super) because: Option<String>,
    /// Next look.
    pub(super) again_in: Duration,
    /// For the next turn.
    pub(super) seen: Seen,
}

/// The leader's turn; `None` where there is nothing to look after.
pub(super) fn turn(view: &View, cluster: &Cluster, seen: &Seen, now: Boottime) -> Option<Turn> {
    let sight = view.sync.as_ref()?;
    let kind = kind(&view.dynamic);
    if kind == SyncKind::Off {
        return off(cluster, sight, seen);
    }
    let found = candidates::find(view, cluster, sight, kind);
    let confirmed = seen.confirmed.as_ref().map(|(_, _, names)| names.clone());
    let state = State {
        me: &view.me,
        kind,
        sync: &cluster.sync,
        sight,
        active: found.active,
        able: found.able,
        confirmed: confirmed.unwrap_or_default(),
        least: view.dynamic.sync.least(),
        count: view.dynamic.sync.node_count.max(1),
    };
    let steps = if sight.unsure && state.leads() {
        // A late one must find another version: only then is what was read what is there.
        vec![state.write(state.voters(), state.quorum())]
    } else if kind == SyncKind::On {
        on::steps(&state)
    } else {
        in_quorum_mode(&state)
    };
    Some(carry_out(&state, steps, seen, now))
}

/// The mode is off: first nobody may rely on `/sync` any more, then commits need not wait.
fn off(cluster: &Cluster, sight: &Sight, seen: &Seen) -> Option<Turn> {
    let mut actions = Vec::new();
    if let (Some(_), Some(version)) = (&cluster.sync.leader, cluster.sync.version) {
        actions.push(Action::DeleteSync(version));
    }
    if !sight.users_own {
        actions.push(Action::SetSyncNames(None));
    }
    (!actions.is_empty()).then(|| Turn {
        actions,
        because: Some("synchronous replication is off".to_owned()),
        again_in: WATCH,
        seen: seen.clone(),
    })
}

fn in_quorum_mode(state: &State<'_>) -> Vec<Step> {
    let Some(leader) = &state.sync.leader else {
        return vec![state.write(NameSet::default(), 0)];
    };
    if state.active.len() < state.least {
        return strict::wait(state);
    }
    let in_force = &state.sight.in_force;
    if !state.at_rest() {
        // What is on its way counts as much as what is in force; an agent that has just begun does not know what that is.
        let asked = state.sight.asked.clone();
        return vec![Step::Set(Some(asked.unwrap_or_else(|| in_force.clone())))];
    }
    let resolver = Resolver {
        me: state.me.clone(),
        leader: leader.clone(),
        quorum: state.quorum(),
        voters: state.voters(),
        count: in_force.count,
        names: in_force.names.clone(),
        confirmed: state.confirmed.clone(),
        active: state.active.clone(),
        wanted: state.count,
    };
    let Ok(changes) = resolver.resolve() else {
        // Nobody but us: that is kept by every setting.
        return vec![state.write(NameSet::default(), 0)];
    };
    match changes.into_iter().next() {
        Some(Change::Sync { quorum, voters }) => vec![state.write(voters, quorum)],
        Some(Change::Names { count, names }) => vec![Step::Set(Some(StandbyNames::any(count, names)))],
        Some(Change::Again) => vec![Step::Confirm],
        None if in_force.method != Method::Any && !in_force.is_none() => {
            let (count, names) = (in_force.count, in_force.names.clone());
            vec![Step::Set(Some(StandbyNames::any(count, names)))]
        }
        None if !in_force.is_none() && !in_force.names.within(&state.confirmed) => vec![Step::Confirm],
        None => Vec::new(),
    }
}

/// The steps as actions; one that was done already is waited for.
fn carry_out(state: &State<'_>, steps: Vec<Step>, seen: &Seen, now: Boottime) -> Turn {
    let mut turn = Turn {
        actions: Vec::new(),
        because: None,
        again_in: WATCH,
        seen: seen.clone(),
    };
    let mut said = Vec::new();
    for step in steps {
        match step {
            Step::Write(key) => {
                let standbys: NameSet = key.standbys.iter().collect();
                said.push(match key.quorum {
                    0 => format!("/sync becomes {}", standbys.shown()),
                    quorum => format!("/sync becomes {} with quorum {quorum}", standbys.shown()),
                });
                turn.actions.push(Action::WriteSync(key));
                turn.again_in = Duration::ZERO;
            }
            Step::Set(names) => {
                if !asks(state, &names, seen, now) {
                    turn.again_in = turn.again_in.min(SOON);
                    continue;
                }
                said.push(match &names {
                    Some(names) if names.blocks() => "commits wait for a standby to come".to_owned(),
                    Some(names) if names.is_none() => "commits wait for no standby".to_owned(),
                    Some(names) => format!("commits wait for {names}"),
                    None => "commits wait as configured".to_owned(),
                });
                turn.seen.asked_at = Some((names.clone(), now));
                turn.actions.push(Action::SetSyncNames(names));
                turn.again_in = turn.again_in.min(SOON);
            }
            Step::Confirm => match confirm(state, seen, now) {
                Ok(mark) => {
                    turn.actions.push(mark);
                    turn.again_in = turn.again_in.min(SOON);
                }
                Err(wait) => turn.again_in = turn.again_in.min(wait),
            },
        }
    }
    if state.active.len() < state.least {
        said.push("strict: too few standbys stream, commits wait".to_owned());
    }
    turn.because = (!said.is_empty()).then(|| format!("synchronous replication: {}", said.join("; ")));
    turn
}

/// Whether the setting has to be asked for (again).
fn asks(state: &State<'_>, names: &Option<StandbyNames>, seen: &Seen, now: Boottime) -> bool {
    let same = names.is_some() && state.sight.asked == *names;
    let lately =
        |(asked, at): &(Option<StandbyNames>, Boottime)| asked == names && now.since(*at) < ASK_AGAIN;
    !same || !(state.at_rest() || seen.asked_at.as_ref().is_some_and(lately))
}

/// Writes the record that standbys have to reach, or says how long to wait.
fn confirm(state: &State<'_>, seen: &Seen, now: Boottime) -> Result<Action, Duration> {
    if !state.at_rest() {
        return Err(SOON);
    }
    match &seen.confirmed {
        // A standby that is far behind is not asked about all the time.
        Some((_, since, _)) if now.since(*since) < ASK_AGAIN => Err(SOON),
        Some(_) => Err(WATCH),
        None => {
            seen.settled(now)?;
            Ok(Action::MarkSync(state.sight.in_force.clone()))
        }
    }
}
