//! Data, but no postmaster (contract: HA rules §7).

use std::time::Duration;

use super::{
    Action, DemoteMode, Down, Job, Memory, Plan, StartAs, Upstream, View, election,
    follow::PROBE_FRESH,
    leader,
    rewind::{self, Reach, Verdict},
    view::{give_up, others_may_lead, upstream},
};
use crate::{
    clock::Boottime,
    model::{Cluster, MemberName},
};

/// How long a former leader leaves the lock to others after giving it up on purpose.
const GIVE_WAY: Duration = Duration::from_secs(5);
/// How long a former primary waits for the leader's postgres before it starts as a replica unasked.
const WAIT_FOR_LEADER: Duration = Duration::from_secs(10);
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
    let others = others_may_lead(view, cluster);
    let timeout = view.dynamic.primary_start_timeout;
    let down_for = memory
        .primary_down_since
        .map_or(Duration::ZERO, |since| now.since(since));
    if !down.was_primary() {
        if memory.start_failures.0 >= START_ATTEMPTS && others {
            return give_up(memory, now, "postgres does not start, leaving the lock to others");
        }
        return start(
            memory,
            StartAs::Replica(None),
            "the lock is ours, starting before promotion",
            now,
        )
        .keeping(true);
    }
    if down.timeline() < cluster.timeline() {
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
    let given_up = memory.start_failures.0 >= START_ATTEMPTS || down_for >= timeout;
    if others && given_up {
        return give_up(
            memory,
            now,
            format!(
                "postgres has not come back within {} s, leaving the lock to others",
                down_for.as_secs()
            ),
        );
    }
    start(
        memory,
        StartAs::Primary,
        "the lock is ours, starting postgres as primary again",
        now,
    )
    .keeping(true)
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
    let follow = election::upstream_for(view, cluster);
    if memory.start_failures.0 >= START_ATTEMPTS {
        return repair(
            view,
            memory,
            down,
            leader_at,
            "postgres does not start on this data directory",
            now,
        );
    }
    if !down.was_primary() {
        // A replica is compared with the leader once it runs: what it replays on start only then counts.
        return start(
            memory,
            StartAs::Replica(follow),
            &format!("following leader '{leader}'"),
            now,
        );
    }
    let waited = memory
        .waiting_for_leader_since
        .map_or(Duration::ZERO, |since| now.since(since));
    let probe = view
        .leader_probe
        .as_ref()
        .filter(|probe| probe.leader == *leader && now.since(probe.at) <= PROBE_FRESH);
    let wait = |why: String| {
        let mut memory = memory.clone();
        memory.waiting_for_leader_since.get_or_insert(now);
        let mut plan = Plan::wait(why).again_in(Duration::from_millis(250));
        plan.memory = Some(memory);
        plan
    };
    match probe.map(|probe| &probe.facts) {
        None => Plan::act(
            format!("comparing our data with leader '{leader}'"),
            [Action::ProbeLeader(leader_at)],
        ),
        Some(Err(error)) if waited < WAIT_FOR_LEADER => {
            wait(format!("leader '{leader}' cannot be asked: {error}"))
        }
        Some(Err(_)) => start(
            memory,
            StartAs::Replica(follow),
            "the leader cannot be asked, starting",
            now,
        ),
        Some(Ok(facts)) => match rewind::verdict(Reach::of_down(down), facts) {
            Verdict::Follow => start(
                memory,
                StartAs::Replica(follow),
                &format!("following leader '{leader}'"),
                now,
            ),
            Verdict::LeaderNotReady => wait(format!("leader '{leader}' is still being promoted")),
            Verdict::Diverged => repair(view, memory, down, leader_at, "our timeline has diverged", now),
        },
    }
}

/// Rewind where that can work, else copy anew.
pub(super) fn repair(
    view: &View,
    memory: &Memory,
    down: &Down,
    from: Upstream,
    why: &str,
    now: Boottime,
) -> Plan {
    let rewindable = view.dynamic.use_pg_rewind && (down.control.checksums || down.control.wal_log_hints);
    if rewindable && memory.may_rewind() {
        return Plan::begin(
            format!("{why}: rewinding to leader '{}'", from.member),
            Job::Rewind(from),
        );
    }
    if let Some(left) = Memory::backoff(memory.clone_failures, now) {
        return Plan::wait("the last clone failed, waiting before the next attempt").again_in(left);
    }
    let reason = if rewindable {
        "pg_rewind did not help"
    } else {
        "pg_rewind cannot be used"
    };
    Plan::begin(
        format!(
            "{why} and {reason}: cloning from '{}', the old data is kept aside",
            from.member
        ),
        Job::Clone(from),
    )
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
    if primary && !ours {
        return view.demote(
            DemoteMode::ImmediateNoLock,
            now,
            "starting as primary without the lock",
        );
    }
    if ours && view.valid_hold(now).is_none() {
        return leader::without_hold(view, now);
    }
    // Alone, a long crash recovery is better than one that is begun again and again.
    let down_since = memory.primary_down_since.unwrap_or(since).min(since);
    let late = now.since(down_since) >= view.dynamic.primary_start_timeout;
    if primary && late && others_may_lead(view, cluster) {
        let deadline = now + view.stop_timeout();
        return Plan::begin(
            "postgres takes too long to start",
            Job::Demote {
                mode: DemoteMode::Immediate,
                deadline,
            },
        )
        .keeping(true);
    }
    Plan::wait("postgres is starting")
        .keeping(ours)
        .again_in(Duration::from_millis(200))
}
