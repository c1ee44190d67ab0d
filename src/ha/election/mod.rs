//! Nobody holds the lock (contract: HA rules §2, §6.3, appendix B).
//!
//! Safer than the contract in two places. A member never leads by itself with a timeline older than the
//! cluster's, whatever `check_timeline` says, unless it has followed a leader since it was started. And after a cold
//! start (nobody led since this agent started) it first waits for the other members the last leader knew, so that the
//! newest data leads and not the fastest starter. In quorum mode the candidate of a switchover needs the votes as any
//! other does: the request may have outlived a leader that had no time to hand over.

mod manual;
mod peers;
mod votes;

use std::time::Duration;

use manual::{due, manual, named};
pub(super) use manual::{forced, named_any};
use peers::{against_peers, fresh_peers, others, surpassed};
pub(super) use votes::cut_off;
use votes::{complete, counted, unanimous};

use super::{
    Action, DemoteMode, Down, Job, Local, Memory, Parent, Peers, Plan, Running, Silence, StartAs, Upstream,
    View, backoff, bootstrap,
    down::giving_way,
    failsafe,
    follow::{silent, stopped_replaying},
    history, hung, leader, lost, standby,
    sync::{self, Promise},
    view::upstream,
};
use crate::{
    clock::Boottime,
    model::{Cluster, Lsn, MemberName, SyncKind, Timeline, slot_name},
};

/// Next look while nobody leads.
const AGAIN: Duration = Duration::from_millis(500);

/// Why a member that `/failsafe` does not name leaves the lock alone.
pub(super) const NOT_IN_FAILSAFE: &str =
    "not named in /failsafe: a primary without the DCS would not ask this member before it goes on";

/// What a candidate has.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    timeline: Timeline,
    /// Where its timeline began.
    parent: Option<Parent>,
    /// For a crashed former primary the least it can have; nobody on its timeline can have more.
    position: Lsn,
    /// It is what it is: not the lower bound of a crashed primary.
    exact: bool,
    last_primary: bool,
}

impl Candidate {
    fn of_running(running: &Running) -> Self {
        Self {
            timeline: running.timeline,
            parent: running.parent,
            position: running.position(),
            exact: true,
            last_primary: false,
        }
    }

    fn of_down(down: &Down) -> Self {
        Self {
            timeline: down.timeline(),
            parent: down.parent,
            position: down.checkpoint_end.unwrap_or(down.control.checkpoint),
            exact: down.checkpoint_end.is_some(),
            last_primary: true,
        }
    }
}

/// May we take the lock?
enum Ruling {
    Yes(String),
    No(String),
    Ask(Action),
}

pub(super) fn decide(view: &View, cluster: &Cluster, memory: &Memory, now: Boottime) -> Plan {
    let running = match &view.local {
        Local::Running(running) => running,
        _ => return without_answer(view, cluster, memory, now),
    };
    if running.is_primary() {
        return running_primary(view, cluster, memory, running, now);
    }
    if let Some(plan) = stopped_replaying(running, memory, now) {
        return plan;
    }
    // An `/initialize` nobody finishes must not keep existing data from being served.
    if let Some(plan) = bootstrap::abandoned(view, cluster, memory, now) {
        return plan;
    }
    if let Some(left) = backoff::left(view, cluster, memory, running, now) {
        let because = "nobody leads, and WAL still arrives: leaving the race alone (primary_race_backoff)";
        return Plan::wait(because).again_in(left.min(AGAIN));
    }
    let candidate = Candidate::of_running(running);
    if (!view.dynamic.pause || named_any(cluster))
        && let Some(plan) = cut_off(view, cluster, memory, running, now)
    {
        return plan;
    }
    match rule(view, cluster, memory, candidate, now) {
        Ruling::Yes(because) => {
            let mut actions = vec![Action::AcquireLock];
            // The leader of a cluster that follows another stays a replica.
            if view.dynamic.standby.is_none() {
                actions.extend(sync::before_promotion(view, cluster));
                actions.push(Action::Begin(Job::Promote));
            }
            if cluster.failover.is_some() {
                actions.push(Action::ClearFailover);
            }
            Plan::act(because, actions).keeping(true).again_in(AGAIN)
        }
        Ruling::Ask(action) => Plan::act("nobody leads, asking the other members", [action]),
        Ruling::No(because) => Plan::wait(because).again_in(AGAIN),
    }
}

fn without_answer(view: &View, cluster: &Cluster, memory: &Memory, now: Boottime) -> Plan {
    if view.local.may_write() && view.valid_hold(now).is_none() {
        return view.demote(
            DemoteMode::ImmediateNoLock,
            now,
            "primary without the lock, and it does not answer",
        );
    }
    match view.local {
        Local::Silent {
            since,
            primary: false,
            why,
        } => silent(view, memory, since, why, now),
        // It was the leader, and its time is not over: whatever took the lock away, it is slow and not gone.
        Local::Silent {
            since,
            primary: true,
            why,
        } if slow_only(view, cluster, memory, (why, since), now) => Plan::act(
            "the lock is gone, and the local postgres does not answer at the moment: taking it back",
            [Action::AcquireLock],
        )
        .keeping(true)
        .again_in(AGAIN),
        _ => Plan::wait("nobody leads and the local postgres does not answer").again_in(AGAIN),
    }
}

/// A postgres that is silent may lead by what is known of it, and no promise of ours stands against it.
fn slow_only(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    (why, since): (Silence, Boottime),
    now: Boottime,
) -> bool {
    let bound = |promise: &failsafe::Promise| now < promise.until;
    hung::why(memory, why, since, view.dynamic.timing.ttl, now).is_none()
        && !view.failsafe.promise.as_ref().is_some_and(bound)
        && !failsafe::excluded(view, cluster)
}

/// The lock vanished under a running primary, or its agent was restarted: its data is the newest there is as long
/// as nobody has begun a later timeline.
fn running_primary(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    running: &Running,
    now: Boottime,
) -> Plan {
    if let Some(plan) = bootstrap::abandoned(view, cluster, memory, now) {
        return plan;
    }
    if cluster.initialize.as_deref() == Some("") {
        // Most likely what our own bootstrap left running when its agent died: half of a cluster, not to be led.
        let because = "primary without the lock, and a bootstrap has not finished";
        return match view.valid_hold(now) {
            Some(_) => Plan::wait(because).again_in(AGAIN),
            None => view.demote(DemoteMode::ImmediateNoLock, now, because),
        };
    }
    if view.watchdog_failed {
        return view.demote(DemoteMode::ImmediateNoLock, now, leader::NO_WATCHDOG);
    }
    if view.dynamic.standby.is_some() && !view.dynamic.pause {
        return standby::stop_primary(view, now);
    }
    if running.timeline < cluster.timeline() {
        return view.demote(
            DemoteMode::ImmediateNoLock,
            now,
            "the cluster has moved on to a later timeline",
        );
    }
    if let Some(promise) = Promise::active(view, cluster)
        && !promise.led_by(&view.me)
    {
        let because = format!("'{}' has taken synchronous replication over", promise.leader);
        return view.demote(DemoteMode::ImmediateNoLock, now, because);
    }
    Plan::act(
        "primary without the lock, and nobody holds it: taking it back",
        [Action::AcquireLock],
    )
    .keeping(true)
    .again_in(AGAIN)
}

/// A stopped primary and nobody leads.
pub(super) fn former_primary(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    down: &Down,
    now: Boottime,
) -> Plan {
    let candidate = Candidate::of_down(down);
    if let Some(left) = Memory::backoff(memory.start_failures, now) {
        return Plan::wait("the last start failed, waiting before the next attempt").again_in(left);
    }
    // An `/initialize` nobody finishes must not keep existing data from being served.
    if let Some(plan) = bootstrap::abandoned(view, cluster, memory, now) {
        return plan;
    }
    match rule(view, cluster, memory, candidate, now) {
        // Started as what it was it would write on where the cluster has long been. Promoted, it begins a timeline of
        // its own.
        Ruling::Yes(because) if down.timeline() < cluster.timeline() && view.dynamic.standby.is_none() => {
            Plan::begin(
                format!("{because}; its data is of an older timeline: starting as a replica, to be promoted"),
                Job::Start(StartAs::Replica(None)),
            )
        }
        Ruling::Yes(because) => {
            let mut actions = vec![Action::AcquireLock];
            if view.dynamic.standby.is_none() {
                actions.extend(sync::before_start(view, cluster));
                actions.push(Action::Begin(Job::Start(StartAs::Primary)));
            }
            // Else the request that made us stop would make us stop again, for ever if its candidate cannot lead.
            if cluster.failover.as_ref().is_some_and(|key| due(view, key)) {
                actions.push(Action::ClearFailover);
            }
            Plan::act(because, actions).keeping(true).again_in(AGAIN)
        }
        Ruling::Ask(action) => Plan::act("nobody leads, asking the other members", [action]),
        // It has nothing that others have not outlived; running it can at least say what it has.
        Ruling::No(because) if surpassed(view, cluster, memory, candidate) => Plan::begin(
            format!("{because}: starting as a replica, to take part"),
            Job::Start(StartAs::Replica(None)),
        ),
        Ruling::No(because) => Plan::wait(because).again_in(AGAIN),
    }
}

fn rule(view: &View, cluster: &Cluster, memory: &Memory, candidate: Candidate, now: Boottime) -> Ruling {
    let no = |text: &str| Ruling::No(text.to_owned());
    let restored = lost::restored(memory, cluster);
    let cluster = restored.as_ref().unwrap_or(cluster);
    // Whoever handed over in a paused cluster, and was not relieved, may go on as what it was.
    if view.dynamic.pause && !named(view, cluster) && !(memory.owed && candidate.last_primary) {
        return no("paused: nobody is promoted");
    }
    if let Some(promise) = view
        .failsafe
        .promise
        .as_ref()
        .filter(|promise| now < promise.until)
    {
        let left = promise.until.since(now).as_secs() + 1;
        return Ruling::No(format!(
            "'{}' goes on as primary without the DCS and was promised that this member does not lead for {left} s",
            promise.to
        ));
    }
    if view.tags.nofailover() {
        return no("tagged nofailover");
    }
    // Contract: HA rules §2, row 9; earlier here, because no request of a person makes a watchdog.
    if view.watchdog_failed {
        return no(leader::NO_WATCHDOG);
    }
    if cluster.initialize.as_deref() == Some("") {
        return no("another member is bootstrapping the cluster");
    }
    // A failover names no leader: somebody wants exactly this member.
    let wanted = forced(view, cluster);
    // A standby cluster has no data but the remote cluster's, and nobody in it is promoted.
    let own_data = view.dynamic.standby.is_none();
    if cluster.initialize.is_none() && !candidate.last_primary && !memory.followed && !wanted && own_data {
        return no(
            "the DCS knows no cluster: a replica that has followed nobody since it was started must not register one",
        );
    }
    let ttl = view.dynamic.timing.ttl;
    if let Some((holder, left)) = lost::holder(memory, &view.me, ttl, now).filter(|_| !wanted && own_data) {
        return Ruling::No(format!(
            "the DCS has lost what it knew, and '{holder}' may not know yet that it lost the lock: waiting {} s",
            left.as_secs() + 1
        ));
    }
    if giving_way(memory, now).is_some() && !named(view, cluster) {
        return no("handed the lock over, leaving it to others");
    }
    // Contract: HA rules §2, row 1; it comes before every request.
    if memory.vetoed(ttl, now).is_some() {
        return no("pre_promote refused the promotion, leaving the lock to others");
    }
    if let Some(ruling) = by_failsafe(view, cluster, memory, candidate, now) {
        return ruling;
    }
    if memory.lost.away && !wanted && own_data {
        return match own(view, cluster, memory, candidate, now) {
            Some(no) => no,
            None => unanimous(view, cluster, memory, candidate, now),
        };
    }
    let promise = Promise::active(view, cluster).filter(|_| !wanted);
    if let Some(promise) = promise.as_ref()
        && let Some(objection) = not_promised(view, promise)
    {
        match complete(view, cluster, memory, promise, candidate, now) {
            Ok(true) => {}
            Ok(false) => return Ruling::No(objection),
            Err(ask) => return ask,
        }
    }
    match manual(view, cluster, memory, candidate, now) {
        Some(ruling) => ruling,
        None => own(view, cluster, memory, candidate, now)
            .unwrap_or_else(|| against_peers(view, cluster, memory, candidate, now)),
    }
}

/// What [`decide`] would do with a free lock: take it, for this reason, or leave it, for that one.
pub(super) fn candidacy(view: &View, cluster: &Cluster, now: Boottime) -> Result<String, String> {
    let candidate = match &view.local {
        Local::Running(running) => Candidate::of_running(running),
        Local::Down(down) if down.was_primary() => Candidate::of_down(down),
        Local::Empty | Local::Leftover => return Err("it has no data yet".to_owned()),
        Local::Broken { reason } => return Err(format!("its data directory is broken: {reason}")),
        Local::Unknown { reason, .. } => {
            return Err(format!("its data directory cannot be looked at: {reason}"));
        }
        Local::Down(_) | Local::Starting { .. } | Local::Stopping { .. } => {
            return Err("its postgres does not run".to_owned());
        }
        Local::Silent { .. } => return Err("its postgres does not answer".to_owned()),
    };
    match rule(view, cluster, &view.memory, candidate, now) {
        Ruling::Yes(because) => Ok(because),
        Ruling::No(because) => Err(because),
        Ruling::Ask(_) => Err("the other members have not been asked".to_owned()),
    }
}

/// Whether some member may be primary without the DCS, for all this one can know (contract: HA rules §2, row 10). A
/// switchover asked of a leader that is not there to answer changes nothing about that. Nor does a failover to this very
/// member, a person's will, unless everybody in the key that is out of the DCS's sight says it is no primary: the person
/// cannot know either. (The contract lets it lead; that makes two primaries.)
fn by_failsafe(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    candidate: Candidate,
    now: Boottime,
) -> Option<Ruling> {
    if failsafe::excluded(view, cluster) {
        if !forced(view, cluster) {
            return Some(Ruling::No(NOT_IN_FAILSAFE.to_owned()));
        }
        return match others(view, cluster, now) {
            Err(ruling) => Some(ruling),
            Ok(peers) => unheard(view, cluster, peers),
        };
    }
    if candidate.last_primary && candidate.timeline >= cluster.timeline() {
        // The last primary of the cluster has promised nothing to a later one: there was none.
        return None;
    }
    let (name, left) = failsafe::young(view, cluster, memory, now)?;
    Some(Ruling::No(format!(
        "'{name}' may be primary without the DCS, with a promise this member gave before it was restarted: waiting {} s",
        left.as_secs() + 1
    )))
}

/// A name of the key that neither the DCS nor the member itself says anything about.
fn unheard(view: &View, cluster: &Cluster, peers: &Peers) -> Option<Ruling> {
    let silent = |name: &&MemberName| {
        **name != view.me
            && cluster.member(name).is_none()
            && !peers.answers.get(*name).is_some_and(Option::is_some)
    };
    let listed = failsafe::listed(view, cluster);
    let name = listed.keys().find(silent)?;
    Some(Ruling::No(format!(
        "'{name}' may be primary without the DCS and does not answer; if it is certain to be stopped, switch \
         failsafe_mode off until this member leads"
    )))
}

/// Why a member must not lead by itself although nobody is ahead of it (contract: HA rules §2, rows 8 and 11): it may
/// lack what others have acknowledged. In quorum mode the votes tell.
fn not_promised(view: &View, promise: &Promise) -> Option<String> {
    let counted = sync::kind(&view.dynamic) == SyncKind::Quorum;
    (!counted && !promise.voters.contains(&view.me)).then(|| {
        let who = promise.voters.shown();
        format!("not a synchronous standby: only {who} can be sure to have every acknowledged commit")
    })
}

/// What we know of ourselves (contract: HA rules §2, own checks).
fn own(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    candidate: Candidate,
    now: Boottime,
) -> Option<Ruling> {
    let cold = !memory.followed;
    // The history of a cluster that follows another is what it was when it led itself.
    let behind = candidate.timeline < cluster.timeline() && view.dynamic.standby.is_none();
    if behind && (cold || view.dynamic.check_timeline || candidate.last_primary) {
        return Some(Ruling::No(format!(
            "our timeline {} is older than the cluster's {}",
            candidate.timeline,
            cluster.timeline()
        )));
    }
    // The others, and an embedded store with them, may come later than we: patience begins once nobody is seen to lead.
    let grace = view
        .dynamic
        .timing
        .ttl
        .saturating_sub(lost::unlocked_for(memory, now));
    let patient = cold && !grace.is_zero();
    let wait = |why: String| Some(Ruling::No(format!("{why}, waiting {} s", grace.as_secs() + 1)));
    // Also without company: the keys of the others went with the rest, and one of them may be primary still.
    if candidate.last_primary && cluster.initialize.is_none() && patient {
        return wait("the DCS knows no cluster, another member may have newer data".to_owned());
    }
    // It may have begun a timeline that the store was not told of.
    if candidate.last_primary
        && !grace.is_zero()
        && let Some(holder) = memory.holder.as_ref().filter(|holder| **holder != view.me)
    {
        return wait(format!(
            "'{holder}' has held the lock since this member was primary"
        ));
    }
    // The position of a crashed primary is a lower bound; on its timeline nobody can be ahead of it.
    if candidate.last_primary && !candidate.exact && candidate.timeline >= cluster.timeline() {
        return None;
    }
    // A standby cluster's timelines are those of the remote one.
    let rows = cluster
        .history
        .as_deref()
        .filter(|_| view.dynamic.standby.is_none());
    let reached = history::reach(rows, candidate.timeline, candidate.parent, candidate.position);
    let lag = cluster.status.optime.bytes_ahead_of(reached);
    if lag > view.dynamic.maximum_lag_on_failover {
        return Some(Ruling::No(format!(
            "{lag} bytes behind the last known leader position, more than maximum_lag_on_failover ({})",
            view.dynamic.maximum_lag_on_failover
        )));
    }
    if patient && lag > 0 {
        return wait(format!(
            "{lag} bytes behind the last known leader position after a cold start"
        ));
    }
    if patient
        && !candidate.last_primary
        && let Some(missing) = missing(view, cluster)
    {
        return wait(format!("cold start, '{missing}' may have newer data"));
    }
    None
}

/// A member the last leader kept a slot for, or that leader itself, which has not come up yet. Other slots are people's.
fn missing(view: &View, cluster: &Cluster) -> Option<String> {
    let present = |slot: &str| {
        slot == view.me.slot()
            || cluster
                .members
                .iter()
                .any(|member| slot_name(&member.name.0) == slot)
    };
    let newest = cluster.history.as_deref().and_then(<[_]>::last);
    let leader = newest.and_then(|row| row.new_leader.as_deref()).map(slot_name);
    cluster
        .status
        .member_slots(leader.as_deref())
        .find(|slot| !present(slot))
        .map(str::to_owned)
}

/// Whom to stream from while another member leads: the member of the tag `replicatefrom` if it is there, else the
/// leader. Nobody for a member tagged `nostream`.
pub(super) fn upstream_for(view: &View, cluster: &Cluster) -> Option<Upstream> {
    if view.tags.nostream() {
        return None;
    }
    let leader = &cluster.leader.as_ref()?.name;
    let wish = view
        .tags
        .replicatefrom()
        .map(MemberName::from)
        .filter(|name| *name != view.me);
    wish.and_then(|name| upstream(cluster, &name))
        .or_else(|| upstream(cluster, leader))
}
