//! The lock carries our name (contract: HA rules §3, §4, §6.1).

use std::time::Duration;

use super::{
    Action, DemoteMode, Job, Local, Memory, Peers, Plan, Running, View, lease,
    view::{give_up, others_may_lead},
};
use crate::{
    clock::Boottime,
    model::{Cluster, FailoverKey, Member, MemberName, PeerStatus},
};

/// Answers of candidates older than this are asked for again.
const PEERS_FRESH: Duration = Duration::from_secs(2);
/// Next look after the lock was asked for.
const AGAIN: Duration = Duration::from_millis(200);

pub(super) fn decide(view: &View, cluster: &Cluster, memory: &Memory, now: Boottime) -> Plan {
    let Some(hold) = view.valid_hold(now) else {
        return without_hold(view, now);
    };
    let until_demotion = lease::deadlines(hold).demote_at.since(now);
    let plan = match &view.local {
        Local::Running(running) if running.is_primary() => primary(view, cluster, running, now),
        Local::Running(running) => replica(view, cluster, memory, running, now),
        _ => Plan::wait("the local postgres does not answer; the lock is ours until that is certain"),
    };
    let soon = plan
        .again_in
        .map_or(until_demotion, |wait| wait.min(until_demotion));
    let gives_up = matches!(plan.actions.as_slice(), [Action::ReleaseLock(_)]);
    plan.keeping(!gives_up)
        .again_in(soon.min(view.dynamic.timing.loop_wait))
}

/// The lock carries our name, but we cannot prove that it still does: the agent was restarted, or its renewals failed
/// for too long.
pub(super) fn without_hold(view: &View, now: Boottime) -> Plan {
    let expired = view.hold.is_some();
    if expired && view.local.may_write() {
        return view.demote(
            DemoteMode::ImmediateNoLock,
            now,
            "the lease was not renewed in time",
        );
    }
    Plan::act(
        "the lock carries our name, making sure of it",
        [Action::RenewLock],
    )
    .again_in(AGAIN)
}

fn replica(view: &View, cluster: &Cluster, memory: &Memory, running: &Running, now: Boottime) -> Plan {
    let behind = running.timeline < cluster.timeline();
    if behind && memory.last_leader.is_none() {
        return give_up(memory, now, "our timeline is older than the cluster's");
    }
    if memory.promote_failures.0 > 0 && others_may_lead(view, cluster) {
        return give_up(memory, now, "the promotion failed, leaving the lock to others");
    }
    if let Some(left) = Memory::backoff(memory.promote_failures, now) {
        return Plan::wait("the promotion failed, waiting before the next attempt").again_in(left);
    }
    let mut actions = vec![Action::Begin(Job::Promote)];
    if cluster.failover.is_some() {
        actions.push(Action::ClearFailover);
    }
    Plan::act("holding the lock, promoting", actions)
}

fn primary(view: &View, cluster: &Cluster, running: &Running, now: Boottime) -> Plan {
    if let Some(plan) = requested(view, cluster, running, now) {
        return plan;
    }
    if running.timeline < cluster.timeline() {
        // The lock came back after others had led: what this primary has written since is another history.
        return view.demote(
            DemoteMode::ImmediateNoLock,
            now,
            "the cluster has moved on to a later timeline",
        );
    }
    let mut actions = Vec::new();
    if let (None, Some(mine)) = (cluster.system_id(), &running.system_id) {
        actions.push(Action::WriteInitialize(mine.clone(), cluster.initialize_version));
    }
    if cluster.config.is_none() {
        actions.push(Action::WriteConfig);
    }
    actions.push(Action::LeaderDuties);
    Plan::act("the leader with the lock", actions)
}

/// A switchover or failover request, while we lead.
fn requested(view: &View, cluster: &Cluster, running: &Running, now: Boottime) -> Option<Plan> {
    let request = cluster.failover.as_ref()?;
    let clear = |why: String| Some(Plan::act(why, [Action::ClearFailover]).again_in(Duration::ZERO));
    if let Some(at) = request.scheduled_at {
        let late = view.wall.duration_since(at);
        if late.is_negative() {
            let left = late.unsigned_abs();
            return (left <= view.dynamic.timing.loop_wait).then(|| {
                Plan::act("a scheduled switchover is due soon", [Action::LeaderDuties]).again_in(left)
            });
        }
        if late.unsigned_abs() > view.dynamic.timing.loop_wait * 3 / 2 {
            return clear(format!(
                "the switchover scheduled at {at} was missed, dropping it"
            ));
        }
    }
    if request.leader.as_ref().is_some_and(|leader| *leader != view.me) {
        return clear("a switchover names another leader, dropping it".to_owned());
    }
    if request.candidate.as_ref() == Some(&view.me) {
        return clear("a failover names the leader itself, dropping it".to_owned());
    }
    if view.dynamic.pause && request.candidate.is_none() {
        return clear("paused: a switchover needs a candidate, dropping it".to_owned());
    }
    let candidates = candidates(view, cluster, request);
    if candidates.is_empty() {
        return clear("a switchover has no member to switch to, dropping it".to_owned());
    }
    match view
        .peers
        .as_ref()
        .filter(|peers| now.since(peers.at) <= PEERS_FRESH)
        .filter(|peers| peers.cover(candidates.iter().map(|member| &member.name)))
    {
        None => {
            let present = candidates
                .iter()
                .map(|m| (m.name.clone(), m.data.api_url.clone()))
                .collect();
            let ask = Action::ProbePeers {
                present,
                vanished: Vec::new(),
            };
            Some(Plan::act(
                "a switchover is asked for, asking the candidates",
                [ask],
            ))
        }
        Some(peers) => match usable(view, cluster, running, &candidates, peers) {
            Ok(name) => {
                let because = match &request.candidate {
                    Some(_) => format!("switchover to '{name}'"),
                    None => format!("switchover, '{name}' can take over"),
                };
                let deadline = now + view.stop_timeout();
                Some(Plan::begin(
                    because,
                    Job::Demote {
                        mode: DemoteMode::Graceful,
                        deadline,
                    },
                ))
            }
            Err(why) => clear(format!("a switchover is not possible, dropping it: {why}")),
        },
    }
}

fn candidates<'a>(view: &View, cluster: &'a Cluster, request: &FailoverKey) -> Vec<&'a Member> {
    let wanted = |m: &&Member| {
        m.name != view.me
            && !m.data.api_url.is_empty()
            && !m.tags().nofailover()
            && request.candidate.as_ref().is_none_or(|name| *name == m.name)
    };
    cluster.members.iter().filter(wanted).collect()
}

/// The first candidate that can take over, or why none can.
fn usable(
    view: &View,
    cluster: &Cluster,
    running: &Running,
    candidates: &[&Member],
    peers: &Peers,
) -> Result<MemberName, String> {
    let mut reasons = Vec::new();
    for member in candidates {
        match peers.answers.get(&member.name).and_then(Option::as_ref) {
            None => reasons.push(format!("'{}' does not answer", member.name)),
            Some(peer) => match unfit(view, cluster, running, peer) {
                None => return Ok(member.name.clone()),
                Some(why) => reasons.push(format!("'{}' {why}", member.name)),
            },
        }
    }
    Err(reasons.join(", "))
}

fn unfit(view: &View, cluster: &Cluster, running: &Running, peer: &PeerStatus) -> Option<String> {
    if !peer.can_lead() {
        return Some("is excluded by tag or watchdog".to_owned());
    }
    let lag = running.position().bytes_ahead_of(peer.position);
    if lag > view.dynamic.maximum_lag_on_failover {
        return Some(format!("lags {lag} bytes behind"));
    }
    (view.dynamic.check_timeline && peer.timeline < cluster.timeline()).then(|| {
        format!(
            "is on timeline {}, the cluster on {}",
            peer.timeline,
            cluster.timeline()
        )
    })
}
