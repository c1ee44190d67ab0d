//! A switchover or failover request, and nobody leads (contract: HA rules §6.3).

use super::{Candidate, Ruling, counted, fresh_peers, others, own};
use crate::{
    clock::Boottime,
    ha::{Memory, View, sync::Promise},
    model::{Cluster, FailoverKey, PeerStatus},
};

/// A person wants exactly this member to lead, and names no leader that would have to hand over.
pub(in crate::ha) fn forced(view: &View, cluster: &Cluster) -> bool {
    named(view, cluster) && cluster.failover.as_ref().is_some_and(|key| !key.is_switchover())
}

/// Not scheduled for later.
pub(super) fn due(view: &View, request: &FailoverKey) -> bool {
    request.scheduled_at.is_none_or(|at| at <= view.wall)
}

/// Scheduled for a time so long gone that its leader never came to it (it had a hand-over and a lease's time for it).
pub(super) fn missed(view: &View, request: &FailoverKey) -> bool {
    let timing = view.dynamic.timing;
    let allowed = timing.loop_wait * 3 / 2 + view.hand_over_timeout() + timing.ttl * 2;
    request.scheduled_at.is_some_and(|at| {
        let late = view.wall.duration_since(at);
        !late.is_negative() && late.unsigned_abs() > allowed
    })
}

/// A request names us as the candidate.
pub(super) fn named(view: &View, cluster: &Cluster) -> bool {
    cluster
        .failover
        .as_ref()
        .is_some_and(|key| key.candidate.as_ref() == Some(&view.me))
}

/// A request for now names a candidate, whoever that is. (What was scheduled does not take place in a paused cluster.)
pub(in crate::ha) fn named_any(cluster: &Cluster) -> bool {
    let request = cluster.failover.as_ref();
    request.is_some_and(|request| request.candidate.is_some() && request.scheduled_at.is_none())
}

/// A switchover or failover request is open (contract: HA rules §6.3). `None`: decide as without one.
pub(super) fn manual(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    me: Candidate,
    now: Boottime,
) -> Option<Ruling> {
    let request = cluster.failover.as_ref()?;
    if !due(view, request) || missed(view, request) {
        return None;
    }
    let candidate = request.candidate.as_ref();
    if candidate == Some(&view.me) {
        // A switchover that was asked of a leader which then died, found by a member that has just come up: nobody
        // wanted older data to lead. A failover (no leader named) is a person's will.
        if request.is_switchover()
            && (!memory.followed || me.last_primary)
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
        if forced(view, cluster)
            && let Err(ruling) = others(view, cluster, now)
        {
            return Some(ruling);
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
