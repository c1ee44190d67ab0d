//! Another member holds the lock (contract: HA rules §5).

use std::time::Duration;

use super::{
    Action, DemoteMode, Job, LeaderFacts, Local, Memory, Plan, Running, Silence, Standing, Upstream, View,
    election, hung,
    repair::{self, Fault},
    rewind::{self, Reach, Verdict},
    standby,
    view::upstream,
};
use crate::{
    clock::Boottime,
    model::{Cluster, MemberName, Timeline, switch_point},
};

/// A replica that has not streamed for this long is compared with its leader (again).
pub(super) const NOT_STREAMING: Duration = Duration::from_secs(3);
/// Answers of the leader's postgres older than this are asked for again.
const PROBE_FRESH: Duration = Duration::from_secs(1);
/// Least time after which a replica that stands still, or does not answer, is not expected to get over it by itself.
const STUCK: Duration = Duration::from_secs(60);
/// How long a replica that may have parted from its leader waits for it to answer before it tries to stream unasked.
const WAIT_FOR_ANSWER: Duration = Duration::from_secs(10);
/// Longest pause between attempts to copy for a replica that can at least be read from; the first is a tenth of it, and
/// each further one twice as long.
const COPY_AGAIN: Duration = Duration::from_secs(200);
/// Least time a replica may take to become consistent while its leader answers.
const CONSISTENT_WITHIN: Duration = Duration::from_secs(600);

pub(super) fn decide(view: &View, cluster: &Cluster, memory: &Memory, now: Boottime) -> Plan {
    let Some(leader) = cluster.leader.as_ref().map(|leader| &leader.name) else {
        return Plan::wait("nobody leads");
    };
    if view.local.may_write() {
        return view.demote(
            DemoteMode::ImmediateNoLock,
            now,
            format!("primary, but '{leader}' holds the lock"),
        );
    }
    let running = match &view.local {
        Local::Running(running) => running,
        Local::Silent { since, why, .. } => return silent(view, memory, *since, *why, now),
        _ => return Plan::wait("the local postgres is not there").again_in(Duration::from_secs(1)),
    };
    if let Some(plan) = stopped_replaying(running, memory, now) {
        return plan;
    }
    let wanted = election::upstream_for(view, cluster);
    let nostream = view.tags.nostream();
    if wanted.is_none() && !nostream {
        return Plan::wait(format!("leader '{leader}' has not published its address yet"))
            .again_in(Duration::from_millis(500));
    }
    let Standing::Replica {
        streaming, upstream, ..
    } = &running.standing
    else {
        return Plan::wait("not a replica");
    };
    if *upstream != wanted.as_ref().and_then(Upstream::address) {
        if may_have_parted(running, cluster, memory)
            && !compared(cluster, memory, leader)
            && patient(memory, now)
        {
            return compare(view, cluster, memory, running, leader, false, now);
        }
        let because = match &wanted {
            Some(wanted) => format!("following '{}'", wanted.member),
            None => "tagged nostream, living from the archive".to_owned(),
        };
        return Plan::act(because, [Action::Follow(wanted)]).again_in(Duration::from_millis(500));
    }
    compare(view, cluster, memory, running, leader, *streaming, now)
}

/// A replica that goes on streaming from another upstream has nothing of its own. One that was started with nobody to
/// follow may have been a primary until then; and where `/history` says that our timeline ended before our position, we
/// have parted for certain. Such a one must not be told to stream before it was compared: it would be seen, and read
/// from, as a replica of a history it does not have.
fn may_have_parted(running: &Running, cluster: &Cluster, memory: &Memory) -> bool {
    let Standing::Replica {
        replayed, upstream, ..
    } = &running.standing
    else {
        return false;
    };
    let rows = cluster.history.as_deref().unwrap_or_default();
    let beyond = switch_point(rows, running.timeline).is_some_and(|end| *replayed > end);
    (upstream.is_none() && !memory.cut_off) || beyond
}

/// Whom a running replica is to be pointed at, if that is another than now and a reload is all it takes.
pub(super) fn elsewhere(view: &View, cluster: &Cluster, running: &Running) -> Option<Option<Upstream>> {
    let Standing::Replica { upstream, .. } = &running.standing else {
        return None;
    };
    let wanted = election::upstream_for(view, cluster);
    if wanted.is_none() && !view.tags.nostream() {
        return None;
    }
    let there = wanted.as_ref().map(|wanted| (wanted.host.clone(), wanted.port));
    (*upstream != there && !may_have_parted(running, cluster, &view.memory)).then_some(wanted)
}

/// Whether the present timeline of this leader was already compared with ours.
fn compared(cluster: &Cluster, memory: &Memory, leader: &MemberName) -> bool {
    memory.compared_with.as_ref() == Some(&(leader.clone(), published_timeline(cluster, leader)))
}

fn published_timeline(cluster: &Cluster, leader: &MemberName) -> Timeline {
    let member = cluster.member(leader);
    member.and_then(|m| m.data.timeline).unwrap_or(Timeline::UNKNOWN)
}

/// A leader that can be streamed from but not asked must not keep a replica away for ever.
pub(super) fn patient(memory: &Memory, now: Boottime) -> bool {
    let since = memory.not_streaming_since;
    since.is_none_or(|since| now.since(since) < WAIT_FOR_ANSWER)
}

/// Has the leader a history we do not fit into?
fn compare(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    running: &Running,
    leader: &MemberName,
    streaming: bool,
    now: Boottime,
) -> Plan {
    let published = published_timeline(cluster, leader);
    let compared = compared(cluster, memory, leader);
    // Who never streams is compared once with each timeline of each leader.
    let stuck = !view.tags.nostream()
        && memory
            .not_streaming_since
            .is_some_and(|since| now.since(since) >= NOT_STREAMING);
    if streaming || (compared && !stuck) {
        let plan = Plan::wait(format!("a replica of '{leader}'"));
        return if streaming {
            plan
        } else {
            plan.again_in(Duration::from_millis(500))
        };
    }
    let Some(leader_at) = upstream(cluster, leader) else {
        return Plan::wait("the leader has no address").again_in(Duration::from_millis(500));
    };
    let probe = probe(view, leader, now);
    let Some(facts) = probe else {
        return Plan::act(
            format!("comparing our data with leader '{leader}'"),
            [Action::ProbeLeader(leader_at)],
        );
    };
    let facts = match facts {
        Ok(facts) => facts,
        Err(error) => {
            let mut plan = Plan::wait(format!(
                "not streaming, and leader '{leader}' cannot be asked: {error}"
            ));
            // It has its time once there is a leader to stream from.
            let mut memory = memory.clone();
            memory.stands_at = None;
            plan.memory = Some(memory);
            return plan.again_in(Duration::from_secs(1));
        }
    };
    let fault = match rewind::verdict(Reach::of_running(running), &standby::settled(view, facts)) {
        Verdict::LeaderNotReady => {
            return Plan::wait(format!("leader '{leader}' is still being promoted"))
                .again_in(Duration::from_millis(250));
        }
        Verdict::Diverged { rewindable } => Some(Fault::Diverged { rewindable }),
        // Our look at ourselves and the one at the leader are a moment apart; what lasts is no accident.
        // Two that follow a third may be ahead of each other.
        Verdict::Ahead if stuck && view.dynamic.standby.is_none() => {
            Some(Fault::Diverged { rewindable: false })
        }
        Verdict::Follow if running.position() < facts.flushed && stands_still(view, memory, now) => {
            Some(Fault::WalGone)
        }
        Verdict::Follow | Verdict::Ahead => None,
    };
    let repaired = fault.and_then(|fault| repair::repair(view, memory, leader_at, fault, now));
    repaired.unwrap_or_else(|| {
        let because = match fault {
            None => format!("a replica of '{leader}', not streaming yet"),
            Some(_) => {
                format!("a replica of '{leader}', not streaming, and nothing that was tried has helped")
            }
        };
        let mut plan = Plan::wait(because).again_in(Duration::from_secs(1));
        let mut memory = memory.clone();
        memory.compared_with = Some((leader.clone(), published));
        plan.memory = Some(memory);
        plan
    })
}

/// The answer of this leader's postgres, if it is fresh.
pub(super) fn probe<'a>(
    view: &'a View,
    leader: &MemberName,
    now: Boottime,
) -> Option<&'a Result<LeaderFacts, String>> {
    view.leader_probe
        .as_ref()
        .filter(|probe| probe.leader == *leader && now.since(probe.at) <= PROBE_FRESH)
        .map(|probe| &probe.facts)
}

fn patience(view: &View) -> Duration {
    STUCK.max(view.dynamic.timing.ttl * 2)
}

/// It fits, the leader answers, and still nothing arrives, neither from the leader nor from an archive: what it needs is
/// not there any more.
pub(super) fn stands_still(view: &View, memory: &Memory, now: Boottime) -> bool {
    let long = |since: Boottime| now.since(since) >= patience(view);
    // Every attempt stops the replica, and whatever keeps it from streaming may keep it from copying too.
    let (failures, last) = memory.clone_failures;
    let pause = (COPY_AGAIN / 10 * (1 << failures.saturating_sub(1).min(4))).min(COPY_AGAIN);
    let again = failures == 0 || now.since(last) >= pause;
    again
        && !view.tags.nostream()
        && memory.not_streaming_since.is_some_and(long)
        && memory.stands_at.is_some_and(|(_, since)| long(since))
}

/// A replica that hangs serves nobody and follows nobody.
pub(super) fn silent(view: &View, memory: &Memory, since: Boottime, why: Silence, now: Boottime) -> Plan {
    let hangs = hung::why(memory, why, since, view.dynamic.timing.ttl, now).is_some();
    if hangs && now.since(since) >= patience(view) && Memory::backoff(memory.start_failures, now).is_none() {
        let seconds = now.since(since).as_secs();
        return Plan::begin(
            format!("the local postgres does not answer for {seconds} s, restarting it"),
            Job::Restart,
        );
    }
    Plan::wait("the local postgres does not answer").again_in(Duration::from_secs(1))
}

/// PostgreSQL pauses the replay of a replica with smaller settings than its primary has now; only a start with larger
/// ones helps (contract: HA rules §5).
pub(super) fn stopped_replaying(running: &Running, memory: &Memory, now: Boottime) -> Option<Plan> {
    if !running.is_paused() {
        return None;
    }
    Some(match Memory::backoff(memory.start_failures, now) {
        Some(left) => Plan::wait("the last start failed, waiting before the next attempt").again_in(left),
        None => Plan::begin(
            "replay is paused because the primary has larger settings, restarting with those",
            Job::Restart,
        ),
    })
}

/// What is to be done about a replica that has not come up yet, and so cannot be asked where it stands.
#[expect(
    clippy::large_enum_variant,
    reason = "one is made per decision and none is stored"
)]
pub(super) enum Astray {
    /// This.
    Act(Plan),
    /// Its leader answers, and for long it has not become consistent.
    Stuck(Upstream),
}

/// Another leads and a replica is starting, pointed at `pointed`. It reads its upstream again on a reload, so a new
/// leader can be the one that has the WAL it lacks.
pub(super) fn astray(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    pointed: Option<&Upstream>,
    since: Boottime,
    now: Boottime,
) -> Option<Astray> {
    let leader = &cluster.leader.as_ref()?.name;
    if let Some(wanted) = election::upstream_for(view, cluster)
        && pointed != Some(&wanted)
        && memory.pointed_at.as_ref() != Some(&wanted)
    {
        let because = format!("the starting replica is to follow '{}'", wanted.member);
        let mut plan = Plan::act(because, [Action::Follow(Some(wanted.clone()))]);
        plan.memory = Some(Memory {
            pointed_at: Some(wanted),
            ..memory.clone()
        });
        return Some(Astray::Act(plan.again_in(Duration::from_secs(1))));
    }
    let limit = CONSISTENT_WITHIN.max(view.dynamic.primary_start_timeout);
    let waiting = Memory::backoff(memory.clone_failures, now).is_some() || !memory.may_clone(now);
    if now.since(since) < limit || waiting {
        return None;
    }
    let leader_at = upstream(cluster, leader)?;
    match probe(view, leader, now) {
        None => Some(Astray::Act(Plan::act(
            format!("the replica does not become consistent, asking leader '{leader}'"),
            [Action::ProbeLeader(leader_at)],
        ))),
        Some(Ok(facts)) if !standby::settled(view, facts).in_recovery => Some(Astray::Stuck(leader_at)),
        Some(_) => None,
    }
}
