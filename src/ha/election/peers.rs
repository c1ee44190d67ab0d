//! What the others say of themselves, and what follows from it (contract: HA rules §2, peer checks).

use std::time::Duration;

use super::{Candidate, Ruling, votes::counted};
use crate::{
    clock::Boottime,
    ha::{Action, Memory, Peers, View, failsafe, sync::Promise},
    model::{Cluster, MemberName, PeerStatus, Timeline},
};

/// Answers of peers older than this are asked for again.
const PEERS_FRESH: Duration = Duration::from_secs(1);

/// What the others say of themselves (contract: HA rules §2, peer checks).
pub(super) fn against_peers(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    candidate: Candidate,
    now: Boottime,
) -> Ruling {
    let peers = match others(view, cluster, now) {
        Ok(peers) => peers,
        Err(ruling) => return ruling,
    };
    let promise = Promise::active(view, cluster);
    let promise = promise.as_ref();
    for (name, answer) in &peers.answers {
        let Some(peer) = answer.as_ref() else { continue };
        // Whether or not it could lead itself.
        let outlived = outlived(cluster, memory, candidate, peer);
        if !outlived && !peer.can_lead() {
            continue;
        }
        // What those who are not voters have more was never acknowledged because of them.
        let counts = outlived || promise.is_none_or(|promise| promise.voters.contains(name));
        if counts
            && (outlived || heard(view, cluster, memory, name, now))
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

/// Fresh answers, none of them of a primary: whoever says it is one keeps everybody from becoming one, whether or not it
/// could be elected itself.
pub(super) fn others<'a>(view: &'a View, cluster: &Cluster, now: Boottime) -> Result<&'a Peers, Ruling> {
    let peers = fresh_peers(view, cluster, now)?;
    let mut answers = peers.answers.iter();
    let primary = answers.find(|(_, peer)| peer.as_ref().is_some_and(|peer| !peer.in_recovery));
    match primary {
        Some((name, _)) => Err(Ruling::No(format!("'{name}' is still running as primary"))),
        None => Ok(peers),
    }
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

/// We were primary once, and our data is from before what this peer has. Where the store knows nothing about that, there
/// is no time after which it does not matter: a primary would write on where others have led since.
fn outlived(cluster: &Cluster, memory: &Memory, me: Candidate, peer: &PeerStatus) -> bool {
    cluster.initialize.is_none() && me.last_primary && !memory.followed && peer.timeline > me.timeline
}

/// Somebody has just said so.
pub(super) fn surpassed(view: &View, cluster: &Cluster, memory: &Memory, me: Candidate) -> bool {
    let answers = view
        .peers
        .iter()
        .flat_map(|peers| peers.answers.values().flatten());
    view.dynamic.standby.is_none()
        && !view.dynamic.pause
        && answers
            .into_iter()
            .any(|peer| outlived(cluster, memory, me, peer))
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
pub(super) fn fresh_peers<'a>(view: &'a View, cluster: &Cluster, now: Boottime) -> Result<&'a Peers, Ruling> {
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
