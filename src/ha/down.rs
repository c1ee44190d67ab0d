//! Data, but no postmaster (contract: HA rules §7).

use std::time::Duration;

use super::{
    Action, DemoteMode, Down, Job, Memory, Plan, StartAs, Upstream, View, election,
    follow::{self, Astray},
    handover, leader,
    repair::{self, Fault},
    rewind::{self, Reach, Verdict},
    standby, successor, sync,
    view::{give_up, upstream},
};
use crate::{
    clock::Boottime,
    model::{Cluster, MemberName},
};

/// How long a former leader leaves the lock to others after giving it up on purpose.
const GIVE_WAY: Duration = Duration::from_secs(5);
/// How long a former primary waits for the leader's postgres before it starts as a replica unasked.
const WAIT_FOR_LEADER: Duration = Duration::from_secs(10);
/// How long a leader at least looks again at a data directory that cannot be looked at.
const LOOK_AGAIN_FOR: Duration = Duration::from_secs(10);
/// Starts that may fail before the directory is repaired or the lock is left to others.
const START_ATTEMPTS: u32 = 3;

pub(super) fn decide(view: &View, cluster: &Cluster, memory: &Memory, down: &Down, now: Boottime) -> Plan {
    match &cluster.leader {
        Some(leader) if leader.name == view.me => ours(view, cluster, memory, down, now),
        Some(leader) => theirs(view, cluster, memory, down, &leader.name, now),
        None => free(view, cluster, memory, down, now),
    }
}

/// The lock carries our name.
fn ours(view: &View, cluster: &Cluster, memory: &Memory, down: &Down, now: Boottime) -> Plan {
    if view.valid_hold(now).is_none() {
        return leader::without_hold(view, now);
    }
    if let Some(plan) = handover::without_postgres(view, cluster, now, |why| give_up(memory, now, why)) {
        return plan;
    }
    let following = standby::remote(view);
    if following.is_none() && down.was_primary() && down.timeline() < cluster.timeline() {
        return give_up(
            memory,
            now,
            format!(
                "our data is on timeline {}, the cluster has reached {}: not leading with older data",
                down.timeline(),
                cluster.timeline()
            ),
        );
    }
    if view.watchdog_failed {
        return give_up(memory, now, leader::NO_WATCHDOG);
    }
    if let Some(why) = hopeless(view, memory, now) {
        match successor::find(view, cluster, now) {
            Err(ask) => {
                return Plan::act(format!("{why}, asking the other members"), [ask]).keeping(true);
            }
            Ok(Some(name)) => {
                return give_up(memory, now, format!("{why}, leaving the lock to '{name}'"));
            }
            // Alone, a long crash recovery is better than one that is begun again and again.
            Ok(None) => {}
        }
    }
    if let Some(remote) = following {
        let as_leader = StartAs::Replica(Some(remote.clone()));
        return compared(view, memory, down, remote, as_leader, now).keeping(true);
    }
    let (start_as, because) = if down.was_primary() {
        (
            StartAs::Primary,
            "the lock is ours, starting postgres as primary again",
        )
    } else {
        (
            StartAs::Replica(None),
            "the lock is ours, starting before promotion",
        )
    };
    let mut plan = start(memory, start_as, because, now).keeping(true);
    if plan.actions == [Action::Begin(Job::Start(StartAs::Primary))] {
        plan.actions.splice(0..0, sync::before_start(view, cluster));
    }
    plan
}

/// Why another should lead rather than this postgres being started once more.
fn hopeless(view: &View, memory: &Memory, now: Boottime) -> Option<String> {
    let down_for = memory
        .primary_down_since
        .map_or(Duration::ZERO, |since| now.since(since));
    if memory.start_failures.0 >= START_ATTEMPTS {
        return Some("postgres does not start".to_owned());
    }
    if memory.promote_failures.0 > 0 {
        return Some("the promotion failed".to_owned());
    }
    (down_for >= view.dynamic.primary_start_timeout)
        .then(|| format!("postgres has not come back within {} s", down_for.as_secs()))
}

fn start(memory: &Memory, start_as: StartAs, because: &str, now: Boottime) -> Plan {
    match Memory::backoff(memory.start_failures, now) {
        Some(left) => Plan::wait("the last start failed, waiting before the next attempt").again_in(left),
        None => Plan::begin(because, Job::Start(start_as)),
    }
}

/// Another member leads.
fn theirs(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    down: &Down,
    leader: &MemberName,
    now: Boottime,
) -> Plan {
    let Some(leader_at) = upstream(cluster, leader) else {
        return Plan::wait(format!("leader '{leader}' has not published its address yet"))
            .again_in(Duration::from_millis(500));
    };
    let as_replica = StartAs::Replica(election::upstream_for(view, cluster));
    compared(view, memory, down, leader_at, as_replica, now)
}

/// Starts as a replica once the data is known to fit that of `leader_at`.
fn compared(
    view: &View,
    memory: &Memory,
    down: &Down,
    leader_at: Upstream,
    as_replica: StartAs,
    now: Boottime,
) -> Plan {
    let leader = &leader_at.member.clone();
    let following = |why: &str| start(memory, as_replica.clone(), why, now);
    // A mistake in the configuration is no reason to touch data.
    // Nor is a full disk: a copy would need more of it.
    let failing =
        memory.start_failures.0 >= START_ATTEMPTS && !memory.misconfigured && !memory.disk_is_full();
    // An archive cannot be asked.
    if Memory::backoff(memory.start_failures, now).is_some()
        || !(down.was_primary() || failing)
        || !leader_at.streams()
    {
        // A replica is compared with the leader once it runs: what it replays on start only then counts.
        return following(&format!("following leader '{leader}'"));
    }
    let waited = memory
        .waiting_for_leader_since
        .map_or(Duration::ZERO, |since| now.since(since));
    let wait = |why: String| {
        let mut memory = memory.clone();
        memory.waiting_for_leader_since.get_or_insert(now);
        let mut plan = Plan::wait(why).again_in(Duration::from_millis(250));
        plan.memory = Some(memory);
        plan
    };
    let facts = match follow::probe(view, leader, now) {
        None => {
            return Plan::act(
                format!("comparing our data with leader '{leader}'"),
                [Action::ProbeLeader(leader_at)],
            );
        }
        Some(Err(error)) if waited < WAIT_FOR_LEADER => {
            return wait(format!("leader '{leader}' cannot be asked: {error}"));
        }
        Some(Err(_)) => return following("the leader cannot be asked, starting"),
        Some(Ok(facts)) => facts,
    };
    match rewind::verdict(Reach::of_down(down), &standby::settled(view, facts)) {
        Verdict::LeaderNotReady => wait(format!("leader '{leader}' is still being promoted")),
        Verdict::Diverged { rewindable } => {
            let rewindable = rewindable && (down.control.checksums || down.control.wal_log_hints);
            let fault = Fault::Diverged { rewindable };
            repair::repair(view, memory, leader_at, fault, now).unwrap_or_else(|| {
                wait("our timeline has diverged, and neither a rewind nor a copy helped".to_owned())
                    .again_in(Duration::from_secs(10))
            })
        }
        // What lies beyond the leader's end is judged once it runs and the leader has had time to go on.
        Verdict::Follow | Verdict::Ahead if failing => {
            repair::repair(view, memory, leader_at, Fault::DoesNotStart, now)
                .unwrap_or_else(|| following("a new copy did not help either, starting again"))
        }
        Verdict::Follow | Verdict::Ahead => following(&format!("following leader '{leader}'")),
    }
}

/// Nobody leads.
fn free(view: &View, cluster: &Cluster, memory: &Memory, down: &Down, now: Boottime) -> Plan {
    if let Some(left) = giving_way(memory, now) {
        return Plan::wait("handed the lock over, leaving it to others")
            .again_in(left.min(Duration::from_millis(500)));
    }
    if down.was_primary() {
        // Whoever was the last primary of the cluster's timeline has everything there is on it, so it may lead
        // and start as what it was; a restart of the last node then needs no promotion.
        return election::former_primary(view, cluster, memory, down, now);
    }
    start(
        memory,
        StartAs::Replica(None),
        "nobody leads, starting to take part in the election",
        now,
    )
}

pub(super) fn giving_way(memory: &Memory, now: Boottime) -> Option<Duration> {
    let left = GIVE_WAY.saturating_sub(now.since(memory.handed_over_at?));
    (!left.is_zero()).then_some(left)
}

/// A postmaster found starting, with no job waiting for it (the agent was restarted meanwhile).
pub(super) fn starting(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    since: Boottime,
    primary: bool,
    now: Boottime,
) -> Plan {
    let ours = cluster.is_leader(&view.me);
    if primary && !ours && (cluster.leader.is_some() || view.valid_hold(now).is_none()) {
        return view.demote(
            DemoteMode::ImmediateNoLock,
            now,
            "starting as primary without the lock",
        );
    }
    if ours && view.valid_hold(now).is_none() {
        return leader::without_hold(view, now);
    }
    let plan = if ours {
        leader_starting(view, cluster, memory, since, now).map(|plan| plan.keeping(true))
    } else {
        replica_starting(view, cluster, memory, since, now)
    };
    plan.unwrap_or_else(|| {
        Plan::wait("postgres is starting")
            .keeping(ours)
            .again_in(Duration::from_millis(200))
    })
}

/// What we hold the lock for takes its time, as a primary or as the replica that is to be promoted.
fn leader_starting(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    since: Boottime,
    now: Boottime,
) -> Option<Plan> {
    let let_go = |because| View::step_down(now, because);
    if let Some(plan) = handover::without_postgres(view, cluster, now, let_go) {
        return Some(plan);
    }
    let down_since = memory.primary_down_since.unwrap_or(since).min(since);
    if now.since(down_since) < view.dynamic.primary_start_timeout {
        return None;
    }
    // Alone, a long crash recovery is better than one that is begun again and again.
    match successor::find(view, cluster, now) {
        Err(ask) => Some(Plan::act(
            "postgres takes too long to start, asking the other members",
            [ask],
        )),
        Ok(Some(name)) => Some(let_go(format!(
            "postgres takes too long to start, and '{name}' can lead"
        ))),
        Ok(None) => None,
    }
}

fn replica_starting(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    since: Boottime,
    now: Boottime,
) -> Option<Plan> {
    let pointed = memory.pointed_at.as_ref();
    match follow::astray(view, cluster, memory, pointed, since, now)? {
        Astray::Act(plan) => Some(plan),
        Astray::Stuck(leader_at) => repair::repair(view, memory, leader_at, Fault::NeverConsistent, now),
    }
}

/// No postmaster, and nobody knows what the data is: no reason to do anything with it, and none to lead for long.
pub(super) fn unknown(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    reason: &str,
    since: Boottime,
    now: Boottime,
) -> Plan {
    let ours = cluster.is_leader(&view.me);
    if ours && view.valid_hold(now).is_none() {
        return leader::without_hold(view, now);
    }
    if ours && now.since(since) >= view.dynamic.primary_start_timeout.max(LOOK_AGAIN_FOR) {
        return give_up(
            memory,
            now,
            format!("the data directory cannot be looked at: {reason}; leaving the lock to others"),
        );
    }
    Plan::wait(format!("the data directory cannot be looked at: {reason}"))
        .keeping(ours)
        .again_in(Duration::from_secs(1))
}
