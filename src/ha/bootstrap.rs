//! No data yet (contract: HA rules §15).

use std::time::Duration;

use super::{Action, Finished, Job, Memory, Plan, View, view::upstream};
use crate::{
    clock::Boottime,
    exit::Exit,
    model::{Cluster, Member, MemberName, PgState, Role},
};

pub(super) fn decide(view: &View, cluster: &Cluster, memory: &Memory, now: Boottime) -> Plan {
    match &cluster.leader {
        Some(leader) if leader.name == view.me => Plan::act(
            "the data directory is empty, a leader without data must not lead",
            [Action::ReleaseLock(None)],
        ),
        Some(leader) => clone(view, cluster, memory, &leader.name, false, now),
        None => without_leader(view, cluster, memory, now),
    }
}

/// As without data, but no new cluster is begun: this member had a part in one, whatever has become of the DCS.
pub(super) fn leftover(view: &View, cluster: &Cluster, memory: &Memory, now: Boottime) -> Plan {
    let known = cluster.initialize.as_deref().is_some_and(|id| !id.is_empty());
    // What a standby cluster is made of is the remote one's, however often it is copied.
    if cluster.leader.is_some() || known || view.dynamic.standby.is_some() {
        return decide(view, cluster, memory, now);
    }
    Plan::wait(
        "a copy of a cluster's data did not finish here, and the DCS knows no cluster: waiting for a member that has the \
         data (if there is none, and a new cluster is to begin here, empty the data directory)",
    )
    .again_in(Duration::from_secs(1))
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
            let mut plan = clone(view, cluster, memory, &leader.name, true, now);
            plan.because = format!("the data directory is broken ({reason}): {}", plan.because);
            plan
        }
        None => Plan::wait(format!(
            "the data directory is broken: {reason}; waiting for a leader to copy from"
        ))
        .again_in(Duration::from_secs(1)),
    }
}

fn clone(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    leader: &MemberName,
    keep: bool,
    now: Boottime,
) -> Plan {
    if let Some(left) = Memory::backoff(memory.clone_failures, now) {
        return Plan::wait("the last clone failed, waiting before the next attempt").again_in(left);
    }
    // A preferred source that does not work must not keep us from the one that does.
    let use_tagged = memory.clone_failures.0 == 0;
    match source(cluster, &view.me, leader, use_tagged) {
        Some(from) => Plan::begin(
            format!("cloning from '{}'", from.member),
            Job::Clone { from, keep },
        ),
        None => {
            Plan::wait(format!("waiting for leader '{leader}' to run")).again_in(Duration::from_millis(500))
        }
    }
}

/// A running member tagged `clonefrom`, else the leader once its postgres runs. Taking the first by name spreads
/// nothing, so members start at their own place in the order.
#[must_use]
pub fn source(
    cluster: &Cluster,
    me: &MemberName,
    leader: &MemberName,
    use_tagged: bool,
) -> Option<super::Upstream> {
    let running = |m: &&Member| m.data.state == PgState::Running && m.address().is_some();
    let others = || {
        cluster
            .members
            .iter()
            .filter(|m| m.name != *me && m.name != *leader)
    };
    // Whoever may lead because it has every acknowledged commit must not get less than the leader has.
    let use_tagged = use_tagged && !cluster.sync.has_standby(me);
    let tagged = |m: &&Member| use_tagged && m.tags().clonefrom();
    let preferred = others().filter(running).filter(tagged);
    let after_me = preferred.clone().find(|m| m.name > *me);
    let chosen = after_me.or_else(|| preferred.min_by(|a, b| a.name.cmp(&b.name)));
    let chosen = chosen.or_else(|| cluster.member(leader).filter(running))?;
    upstream(cluster, &chosen.name)
}

fn without_leader(view: &View, cluster: &Cluster, memory: &Memory, now: Boottime) -> Plan {
    if let Some(plan) = abandoned(view, cluster, memory, now) {
        return plan;
    }
    // After a wipe of the store: a new cluster would lock them out for good.
    if cluster.initialize.is_none()
        && let Some(name) = with_data(view, cluster)
    {
        return Plan::wait(format!(
            "the DCS knows no cluster, but '{name}' has data: waiting for it to lead (if a new cluster is to begin, stop \
             that member)"
        ))
        .again_in(Duration::from_secs(1));
    }
    match cluster.initialize.as_deref() {
        None if view.tags.nofailover() => {
            Plan::wait("tagged nofailover, waiting for a leader to bootstrap")
        }
        None => match &view.dynamic.standby {
            None => claim("no cluster is initialized, trying to bootstrap a new one", Job::Bootstrap),
            Some(_) => claim(
                "no cluster is initialized, trying to bootstrap a new standby leader",
                Job::BootstrapStandby,
            ),
        },
        Some("") => Plan::wait("waiting for another member to finish the bootstrap")
            .again_in(Duration::from_secs(1)),
        Some(id) if view.can_restore => match Memory::backoff(memory.clone_failures, now) {
            Some(left) => Plan::wait("the last restore failed, waiting before the next attempt").again_in(left),
            None => Plan::begin(
                format!("the cluster exists (system identifier {id}) and has no leader: making a replica without one"),
                Job::Restore,
            ),
        },
        Some(id) => Plan::wait(format!(
            "the cluster exists (system identifier {id}) and has no leader: waiting for a member with its data"
        ))
        .again_in(Duration::from_secs(1)),
    }
}

fn with_data<'a>(view: &View, cluster: &'a Cluster) -> Option<&'a MemberName> {
    let has = |m: &&Member| m.name != view.me && m.data.role != Role::Uninitialized;
    cluster.members.iter().find(has).map(|member| &member.name)
}

fn claim(because: &str, job: Job) -> Plan {
    Plan::act(because, [Action::ClaimInitialize, Action::Begin(job)]).again_in(Duration::from_secs(1))
}

/// Our own bootstrap failed. Trying again would fail again, and nobody would read why; the job has given the claim back,
/// so another member may try meanwhile.
pub(super) fn failed(view: &View) -> Option<Plan> {
    match &view.finished {
        Some(Finished {
            job: Job::Bootstrap | Job::BootstrapStandby,
            outcome: Err(error),
        }) => Some(Plan::exit(
            Exit::Bootstrap,
            format!(
                "bootstrapping the new cluster failed: {error}. No data of a finished cluster was touched, and what \
                 is unfinished is made afresh: correct the cause named above (disk space, permissions, initdb options, \
                 an init script, the source) and start this member again."
            ),
        )),
        _ => None,
    }
}

/// A bootstrap that was begun and that nobody has worked on for longer than ttl is called off, and one in the place of a
/// cluster that this member has a part in.
pub(super) fn abandoned(view: &View, cluster: &Cluster, memory: &Memory, now: Boottime) -> Option<Plan> {
    let version = cluster.initialize_version?;
    if cluster.initialize.as_deref() != Some("") {
        return None;
    }
    let working = |m: &Member| {
        let at_work = matches!(
            m.data.state,
            PgState::Initializing
                | PgState::CustomBootstrap
                | PgState::StartingAfterCustomBootstrap
                | PgState::CreatingReplica
        );
        m.name != view.me && at_work
    };
    // It cannot know that there is a cluster, and would lock all its members out.
    if memory.followed && memory.lost.since.is_some() {
        return Some(
            Plan::act(
                "a new cluster is being bootstrapped where the DCS has only lost ours: calling it off",
                [Action::AbandonInitialize(version)],
            )
            .again_in(Duration::from_millis(200)),
        );
    }
    let waited = memory.unlocked_for(now);
    if waited <= view.dynamic.timing.ttl || cluster.members.iter().any(working) {
        return None;
    }
    Some(
        Plan::act(
            format!(
                "a bootstrap was begun, nobody has worked on it for {} s: starting over",
                waited.as_secs()
            ),
            [Action::AbandonInitialize(version)],
        )
        .again_in(Duration::from_millis(200)),
    )
}
