//! Another member holds the lock (contract: HA rules §5).

use std::time::Duration;

use super::{
    Action, DemoteMode, Job, Local, Memory, Plan, Running, Standing, Upstream, View, election,
    rewind::{self, Reach, Verdict},
    view::upstream,
};
use crate::{
    clock::Boottime,
    model::{Cluster, MemberName, Timeline},
};

/// A replica that has not streamed for this long is compared with its leader (again).
const NOT_STREAMING: Duration = Duration::from_secs(3);
/// Answers of the leader's postgres older than this are asked for again.
pub(super) const PROBE_FRESH: Duration = Duration::from_secs(1);

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
    let Local::Running(running) = &view.local else {
        return Plan::wait("the local postgres does not answer").again_in(Duration::from_secs(1));
    };
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
    let at = |upstream: &Upstream| (upstream.host.clone(), upstream.port);
    if *upstream != wanted.as_ref().map(at) {
        let because = match &wanted {
            Some(wanted) => format!("following '{}'", wanted.member),
            None => "tagged nostream, living from the archive".to_owned(),
        };
        return Plan::act(because, [Action::Follow(wanted)]).again_in(Duration::from_millis(500));
    }
    compare(view, cluster, memory, running, leader, *streaming, now)
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
    let published = cluster
        .member(leader)
        .and_then(|m| m.data.timeline)
        .unwrap_or(Timeline::UNKNOWN);
    let compared = memory.compared_with.as_ref() == Some(&(leader.clone(), published));
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
    let probe = view
        .leader_probe
        .as_ref()
        .filter(|probe| probe.leader == *leader && now.since(probe.at) <= PROBE_FRESH);
    let Some(probe) = probe else {
        return Plan::act(
            format!("comparing our data with leader '{leader}'"),
            [Action::ProbeLeader(leader_at)],
        );
    };
    let facts = match &probe.facts {
        Ok(facts) => facts,
        Err(error) => {
            return Plan::wait(format!(
                "not streaming, and leader '{leader}' cannot be asked: {error}"
            ))
            .again_in(Duration::from_secs(1));
        }
    };
    match rewind::verdict(Reach::of_running(running), facts) {
        Verdict::Follow => {
            let mut plan = Plan::wait(format!("a replica of '{leader}', not streaming yet"))
                .again_in(Duration::from_secs(1));
            let mut memory = memory.clone();
            memory.compared_with = Some((leader.clone(), published));
            plan.memory = Some(memory);
            plan
        }
        Verdict::LeaderNotReady => Plan::wait(format!("leader '{leader}' is still being promoted"))
            .again_in(Duration::from_millis(250)),
        Verdict::Diverged => repair(view, memory, leader_at, now),
    }
}

/// Both jobs stop postgres first. Whether the directory has what pg_rewind needs is only known once it is down, so it
/// is tried; a failure leads to a clone.
fn repair(view: &View, memory: &Memory, leader: Upstream, now: Boottime) -> Plan {
    if view.dynamic.use_pg_rewind && memory.may_rewind() {
        return Plan::begin(
            format!(
                "our timeline has diverged: rewinding to leader '{}'",
                leader.member
            ),
            Job::Rewind(leader),
        );
    }
    if let Some(left) = Memory::backoff(memory.clone_failures, now) {
        return Plan::wait("the last clone failed, waiting before the next attempt").again_in(left);
    }
    Plan::begin(
        format!(
            "our timeline has diverged: cloning from '{}', the old data is kept aside",
            leader.member
        ),
        Job::Clone(leader),
    )
}
