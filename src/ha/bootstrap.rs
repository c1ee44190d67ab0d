//! No data yet (contract: HA rules §15).

use std::time::Duration;

use super::{Action, Job, Memory, Plan, View, view::upstream};
use crate::{
    clock::Boottime,
    model::{Cluster, MemberName, PgState},
};

pub(super) fn decide(view: &View, cluster: &Cluster, memory: &Memory, now: Boottime) -> Plan {
    match &cluster.leader {
        Some(leader) if leader.name == view.me => Plan::act(
            "the data directory is empty, a leader without data must not lead",
            [Action::ReleaseLock(None)],
        ),
        Some(leader) => clone(view, cluster, memory, &leader.name, now),
        None => without_leader(view, cluster, memory, now),
    }
}

/// Data that cannot be used: the lock is left to others, and with a leader to copy from the directory is replaced
/// (renamed, not removed). Without one nothing is touched.
pub(super) fn broken(view: &View, cluster: &Cluster, memory: &Memory, reason: &str, now: Boottime) -> Plan {
    match &cluster.leader {
        Some(leader) if leader.name == view.me => Plan::act(
            format!("the data directory is broken: {reason}"),
            [Action::ReleaseLock(None)],
        ),
        Some(leader) => {
            let mut plan = clone(view, cluster, memory, &leader.name, now);
            plan.because = format!("the data directory is broken ({reason}): {}", plan.because);
            plan
        }
        None => Plan::wait(format!(
            "the data directory is broken: {reason}; waiting for a leader to copy from"
        ))
        .again_in(Duration::from_secs(1)),
    }
}

fn clone(view: &View, cluster: &Cluster, memory: &Memory, leader: &MemberName, now: Boottime) -> Plan {
    if let Some(left) = Memory::backoff(memory.clone_failures, now) {
        return Plan::wait("the last clone failed, waiting before the next attempt").again_in(left);
    }
    match source(view, cluster, leader) {
        Some(source) => Plan::begin(format!("cloning from '{}'", source.member), Job::Clone(source)),
        None => {
            Plan::wait(format!("waiting for leader '{leader}' to run")).again_in(Duration::from_millis(500))
        }
    }
}

/// A running member tagged `clonefrom`, else the leader once its postgres runs. Taking the first by name spreads
/// nothing, so members start at their own place in the order.
fn source(view: &View, cluster: &Cluster, leader: &MemberName) -> Option<super::Upstream> {
    let running = |m: &&crate::model::Member| m.data.state == PgState::Running && m.address().is_some();
    let others = || {
        cluster
            .members
            .iter()
            .filter(|m| m.name != view.me && m.name != *leader)
    };
    let tagged = |m: &&crate::model::Member| m.tags().clonefrom();
    let preferred = others().filter(running).filter(tagged);
    let after_me = preferred.clone().find(|m| m.name > view.me);
    let chosen = after_me.or_else(|| preferred.min_by(|a, b| a.name.cmp(&b.name)));
    let chosen = chosen.or_else(|| cluster.member(leader).filter(running))?;
    upstream(cluster, &chosen.name)
}

fn without_leader(view: &View, cluster: &Cluster, memory: &Memory, now: Boottime) -> Plan {
    let ttl = view.dynamic.timing.ttl;
    match (cluster.initialize.as_deref(), cluster.initialize_version) {
        (None, _) if view.tags.nofailover() => {
            Plan::wait("tagged nofailover, waiting for a leader to bootstrap")
        }
        (None, _) => Plan::act(
            "no cluster is initialized, trying to bootstrap a new one",
            [Action::ClaimInitialize, Action::Begin(Job::Bootstrap)],
        ),
        (Some(""), Some(version)) => {
            let working = |m: &crate::model::Member| {
                m.name != view.me
                    && matches!(
                        m.data.state,
                        PgState::Initializing
                            | PgState::CustomBootstrap
                            | PgState::Starting
                            | PgState::Running
                    )
            };
            let waited = memory
                .unlocked_since
                .map_or(Duration::ZERO, |since| now.since(since));
            if waited > ttl && !cluster.members.iter().any(working) {
                return Plan::act(
                    format!(
                        "a bootstrap was begun, nobody has worked on it for {} s: starting over",
                        waited.as_secs()
                    ),
                    [Action::AbandonInitialize(version)],
                );
            }
            Plan::wait("waiting for another member to finish the bootstrap").again_in(Duration::from_secs(1))
        }
        _ => Plan::wait(format!(
            "the cluster exists (system identifier {}) and has no leader: waiting for a member with its data",
            cluster.initialize.as_deref().unwrap_or_default()
        ))
        .again_in(Duration::from_secs(1)),
    }
}
