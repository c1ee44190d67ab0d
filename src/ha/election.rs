//! Nobody holds the lock (contract: HA rules §2, §6.3, appendix B).
//!
//! Safer than the contract in two places. A member never leads by itself with a timeline older than the
//! cluster's, whatever `check_timeline` says, unless it has followed a leader since it was started. And after a cold
//! start (nobody led since this agent started) it first waits for the other members the last leader knew, so that the
//! newest data leads and not the fastest starter. In quorum mode the candidate of a switchover needs the votes as any
//! other does: the request may have outlived a leader that had no time to hand over.

use std::time::Duration;

use super::{
    Action, DemoteMode, Down, Job, Local, Memory, Peers, Plan, Running, Silence, StartAs, Upstream, View,
    backoff, bootstrap,
    down::giving_way,
    failsafe,
    follow::{silent, stopped_replaying},
    hung, leader, lost, standby,
    sync::{self, Promise},
    view::upstream,
};
use crate::{
    clock::Boottime,
    model::{Cluster, FailoverKey, Lsn, MemberName, PeerStatus, SyncKind, Timeline, slot_name},
};

/// Answers of peers older than this are asked for again.
const PEERS_FRESH: Duration = Duration::from_secs(1);
/// Next look while nobody leads.
const AGAIN: Duration = Duration::from_millis(500);

/// Why a member that `/failsafe` does not name leaves the lock alone.
pub(super) const NOT_IN_FAILSAFE: &str =
    "not named in /failsafe: a primary without the DCS would not ask this member before it goes on";

/// What a candidate has.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    timeline: Timeline,
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
            position: running.position(),
            exact: true,
            last_primary: false,
        }
    }

    fn of_down(down: &Down) -> Self {
        Self {
            timeline: down.timeline(),
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
        Ruling::No(because) => Plan::wait(because).again_in(AGAIN),
    }
}

fn rule(view: &View, cluster: &Cluster, memory: &Memory, candidate: Candidate, now: Boottime) -> Ruling {
    let no = |text: &str| Ruling::No(text.to_owned());
    let promised = lost::with_promise(memory, cluster);
    let cluster = promised.as_ref().unwrap_or(cluster);
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
    let promise = Promise::active(view, cluster);
    if let Some(objection) = promise
        .as_ref()
        .and_then(|promise| not_promised(view, promise))
        .filter(|_| !wanted)
    {
        return Ruling::No(objection);
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
        Local::Empty => return Err("it has no data yet".to_owned()),
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
/// switchover asked of a leader that is not there to answer changes nothing about that. A failover to this very member is
/// a person's will; still nobody leads beside a primary that says it is one.
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
        return match fresh_peers(view, cluster, now) {
            Err(ask) => Some(ask),
            Ok(peers) => peers
                .answers
                .iter()
                .find_map(|(name, answer)| still_primary(name, answer.as_ref()?))
                .map(Ruling::No),
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

/// A person wants exactly this member to lead, and names no leader that would have to hand over.
pub(super) fn forced(view: &View, cluster: &Cluster) -> bool {
    named(view, cluster) && cluster.failover.as_ref().is_some_and(|key| !key.is_switchover())
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

/// Not scheduled for later.
fn due(view: &View, request: &FailoverKey) -> bool {
    request.scheduled_at.is_none_or(|at| at <= view.wall)
}

/// Scheduled for a time so long gone that its leader never came to it (it had a hand-over and a lease's time for it).
fn missed(view: &View, request: &FailoverKey) -> bool {
    let timing = view.dynamic.timing;
    let allowed = timing.loop_wait * 3 / 2 + view.hand_over_timeout() + timing.ttl * 2;
    request.scheduled_at.is_some_and(|at| {
        let late = view.wall.duration_since(at);
        !late.is_negative() && late.unsigned_abs() > allowed
    })
}

/// A request names us as the candidate.
fn named(view: &View, cluster: &Cluster) -> bool {
    cluster
        .failover
        .as_ref()
        .is_some_and(|key| key.candidate.as_ref() == Some(&view.me))
}

/// A switchover or failover request is open (contract: HA rules §6.3). `None`: decide as without one.
fn manual(view: &View, cluster: &Cluster, memory: &Memory, me: Candidate, now: Boottime) -> Option<Ruling> {
    let request = cluster.failover.as_ref()?;
    if !due(view, request) || missed(view, request) {
        return None;
    }
    let candidate = request.candidate.as_ref();
    if candidate == Some(&view.me) {
        // A switchover that was asked of a leader which then died, found by a member that has just come up: nobody
        // wanted older data to lead. A failover (no leader named) is a person's will.
        if request.is_switchover()
            && !memory.followed
            && let Some(refused) = own(view, cluster, memory, me, now)
        {
            return Some(refused);
        }
        if let Some(promise) = Promise::active(view, cluster).filter(|_| request.is_switchover()) {
            if !promise.voters.contains(&view.me) {
                let because = "named as the candidate of a switchover, but no synchronous standby".to_owned();
                return Some(Ruling::No(because));
            }
            if !promise.enough(&view.me, 0) {
                return Some(match fresh_peers(view, cluster, now) {
                    Ok(peers) => counted(view, &promise, me, peers),
                    Err(ask) => ask,
                });
            }
        }
        // A person's will moves much, but makes no second primary beside one that says it is one.
        if forced(view, cluster) {
            match fresh_peers(view, cluster, now) {
                Err(ask) => return Some(ask),
                Ok(peers) => {
                    let mut answers = peers.answers.iter();
                    if let Some(why) = answers.find_map(|(name, peer)| still_primary(name, peer.as_ref()?)) {
                        return Some(Ruling::No(why));
                    }
                }
            }
        }
        return Some(Ruling::Yes(
            "named as the candidate of a manual request".to_owned(),
        ));
    }
    let was_leader = request.leader.as_ref() == Some(&view.me);
    if candidate.is_none() && !was_leader {
        return None;
    }
    // Another is to take over: wait for it while it can, but not for ever. It may answer us and still not reach the
    // DCS, or have reasons of its own.
    if memory.unlocked_for(now) >= view.dynamic.timing.ttl {
        return None;
    }
    let usable = |answer: Option<&PeerStatus>| answer.is_some_and(|peer| peer.can_lead() && peer.in_recovery);
    let peers = match fresh_peers(view, cluster, now) {
        Ok(peers) => peers,
        Err(ask) => return Some(ask),
    };
    let able = match candidate {
        Some(name) => usable(peers.answers.get(name).and_then(Option::as_ref)),
        None => {
            let promise = Promise::active(view, cluster);
            let listed = |name| {
                promise
                    .as_ref()
                    .is_none_or(|promise| promise.voters.contains(name))
            };
            let mut answers = peers.answers.iter();
            answers.any(|(name, answer)| listed(name) && usable(answer.as_ref()))
        }
    };
    able.then(|| Ruling::No("a manual request names another member, waiting for it".to_owned()))
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
    let grace = view.dynamic.timing.ttl.saturating_sub(memory.unlocked_for(now));
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
    let lag = cluster.status.optime.bytes_ahead_of(candidate.position);
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

/// What the others say of themselves (contract: HA rules §2, peer checks).
fn against_peers(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    candidate: Candidate,
    now: Boottime,
) -> Ruling {
    let peers = match fresh_peers(view, cluster, now) {
        Ok(peers) => peers,
        Err(ask) => return ask,
    };
    let promise = Promise::active(view, cluster);
    let promise = promise.as_ref();
    for (name, answer) in &peers.answers {
        let Some(peer) = answer.as_ref().filter(|peer| peer.can_lead()) else {
            continue;
        };
        if let Some(objection) = still_primary(name, peer) {
            return Ruling::No(objection);
        }
        // What those who are not voters have more was never acknowledged because of them.
        let counts = promise.is_none_or(|promise| promise.voters.contains(name));
        if counts
            && heard(view, cluster, memory, name, now)
            && let Some(objection) = objection(view, memory, promise, candidate, name, peer)
        {
            return Ruling::No(objection);
        }
    }
    match promise {
        Some(promise) => counted(view, promise, candidate, peers),
        None => Ruling::Yes("nobody leads and no reachable member is ahead".to_owned()),
    }
}

/// Whether those who have nothing more than we make up the quorum (contract: HA rules §2, "Quorum verdict"). The leader
/// of `/sync` has everything it ever acknowledged.
fn counted(view: &View, promise: &Promise, me: Candidate, peers: &Peers) -> Ruling {
    let voter = |name: &MemberName| *name != view.me && promise.voters.contains(name);
    let answers = peers.answers.iter().filter(|(name, _)| voter(name));
    let (mut votes, mut ahead) = (0, false);
    for (_, peer) in answers.filter_map(|(name, answer)| Some((name, answer.as_ref()?))) {
        let behind = peer.timeline <= me.timeline && (peer.position <= me.position || !me.exact);
        if behind && peer.in_recovery && peer.position > Lsn::INVALID {
            votes += 1;
        } else {
            ahead |= !behind;
        }
    }
    if promise.enough(&view.me, votes) {
        return Ruling::Yes(match promise.quorum {
            0 => "nobody leads and this synchronous standby has every acknowledged commit".to_owned(),
            quorum => format!("nobody leads, {votes} votes, quorum {quorum}"),
        });
    }
    if promise.led_by(&view.me) && !ahead {
        return Ruling::Yes("nobody leads and this was the last primary".to_owned());
    }
    Ruling::No(format!(
        "{votes} votes, but a quorum of {}: a member that does not answer may have more",
        promise.quorum
    ))
}

fn still_primary(name: &MemberName, peer: &PeerStatus) -> Option<String> {
    (!peer.in_recovery).then(|| format!("'{name}' is still running as primary"))
}

/// Whoever has a reason against us has had the time to lead itself. If it does not (it may answer us and not reach the
/// DCS, or have reasons of its own) it must not keep the cluster from service for ever.
fn heard(view: &View, cluster: &Cluster, memory: &Memory, name: &MemberName, now: Boottime) -> bool {
    let ttl = view.dynamic.timing.ttl;
    let patience = if cluster.member(name).is_some() {
        ttl * 2
    } else {
        ttl
    };
    memory.unlocked_for(now) < patience
}

fn objection(
    view: &View,
    memory: &Memory,
    promise: Option<&Promise>,
    me: Candidate,
    name: &MemberName,
    peer: &PeerStatus,
) -> Option<String> {
    if peer.timeline > me.timeline {
        return Some(format!(
            "'{name}' is on timeline {}, we are on {}",
            peer.timeline, me.timeline
        ));
    }
    if !me.exact {
        return None;
    }
    if peer.timeline == me.timeline || peer.timeline == Timeline::UNKNOWN {
        // What the last primary has more nobody was told of.
        let unacknowledged = promise.is_some_and(|promise| promise.led_by(name));
        if peer.position > me.position && !unacknowledged {
            return Some(format!(
                "'{name}' is ahead ({} against our {})",
                peer.position, me.position
            ));
        }
        let preferred = peer.tags.failover_priority() > view.tags.failover_priority();
        let former = me.last_primary || memory.last_leader.as_ref() == Some(name) || unacknowledged;
        if peer.position == me.position && preferred && !former {
            return Some(format!(
                "'{name}' has the same position and a higher failover_priority"
            ));
        }
    }
    None
}

/// The answers, or the wish to have them. Members whose key vanished with the lock are asked too: one of them may
/// be alive and cut off from the DCS only.
fn fresh_peers<'a>(view: &'a View, cluster: &Cluster, now: Boottime) -> Result<&'a Peers, Ruling> {
    let api = |m: &&crate::model::Member| m.name != view.me && !m.data.api_url.is_empty();
    let present: Vec<_> = cluster
        .members
        .iter()
        .filter(api)
        .map(|m| (m.name.clone(), m.data.api_url.clone()))
        .collect();
    match &view.peers {
        Some(peers)
            if now.since(peers.at) <= PEERS_FRESH && peers.cover(present.iter().map(|(name, _)| name)) =>
        {
            Ok(peers)
        }
        _ => {
            let gone = |(name, _): &&(MemberName, String)| {
                *name != view.me && present.iter().all(|(other, _)| other != name)
            };
            let mut vanished: Vec<_> = view.memory.last_members.iter().filter(gone).cloned().collect();
            // One of them may be primary by the consent of the others.
            let failsafe = failsafe::listed(view, cluster);
            let others: Vec<_> = failsafe
                .into_iter()
                .filter(|pair| gone(&pair) && vanished.iter().all(|(name, _)| *name != pair.0))
                .collect();
            vanished.extend(others);
            Err(Ruling::Ask(Action::ProbePeers { present, vanished }))
        }
    }
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
