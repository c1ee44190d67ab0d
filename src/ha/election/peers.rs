//! What the others say of themselves, and what follows from it (contract: HA rules §2, peer checks).

use std::time::Duration;

use super::{Candidate, Ruling};
use crate::{
    clock::Boottime,
    ha::{
        Action, Memory, Peers, View, failsafe,
        sync::{self, Promise},
    },
    model::{Cluster, Lsn, MemberName, PeerStatus, SyncKind, Timeline},
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
    let peers = match fresh_peers(view, cluster, now) {
        Ok(peers) => peers,
        Err(ask) => return ask,
    };
    if let Some(no) = beside_a_primary(peers) {
        return no;
    }
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

/// Whether those who have nothing more than we make up the quorum (contract: HA rules §2, "Quorum verdict"). The leader
/// of `/sync` has everything it ever acknowledged. Who may still receive from the last leader has no vote: what it
/// confirms next, and what that leader, frozen until now, acknowledges then, would not be counted.
pub(super) fn counted(view: &View, promise: &Promise, me: Candidate, peers: &Peers) -> Ruling {
    let voter = |name: &MemberName| *name != view.me && promise.voters.contains(name);
    let answers = peers.answers.iter().filter(|(name, _)| voter(name));
    let (mut votes, mut ahead) = (0, false);
    for (_, peer) in answers.filter_map(|(name, answer)| Some((name, answer.as_ref()?))) {
        let behind = peer.timeline <= me.timeline && (peer.position <= me.position || !me.exact);
        if behind && peer.in_recovery && !peer.replaying && !peer.receiving && peer.position > Lsn::INVALID {
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
        "{votes} votes, but a quorum of {}: a member that does not answer, or is not done with its own WAL or the last leader's, may have more",
        promise.quorum
    ))
}

/// Whether one who is no voter has everything that some voter has, and so every acknowledged commit. The voters have had
/// the time to lead themselves; they may be unable to for reasons of their own.
pub(super) fn complete(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    promise: &Promise,
    me: Candidate,
    now: Boottime,
) -> Result<bool, Ruling> {
    let patience = view.dynamic.timing.ttl;
    if !me.exact || promise.quorum > 0 || memory.unlocked_for(now) < patience {
        return Ok(false);
    }
    let peers = fresh_peers(view, cluster, now)?;
    let mut answers = peers.answers.iter();
    // A position on another timeline says nothing about ours, whichever is the greater number.
    Ok(answers.any(|(name, answer)| {
        promise.voters.contains(name)
            && answer.as_ref().is_some_and(|peer| {
                peer.in_recovery
                    && !peer.replaying
                    && !peer.receiving
                    && peer.timeline == me.timeline
                    && peer.timeline != Timeline::UNKNOWN
                    && peer.position > Lsn::INVALID
                    && peer.position <= me.position
            })
    }))
}

/// The store was lost while we did not see it, and with it who led last and whom commits waited for. The members we know
/// have to say that they have nothing more, each of them.
pub(super) fn unanimous(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    me: Candidate,
    now: Boottime,
) -> Ruling {
    let peers = match fresh_peers(view, cluster, now) {
        Ok(peers) => peers,
        Err(ask) => return ask,
    };
    if let Some(no) = beside_a_primary(peers) {
        return no;
    }
    let promised = sync::kind(&view.dynamic) != SyncKind::Off;
    let keys = cluster.members.iter().map(|member| &member.name);
    let known = memory.last_members.iter().map(|(name, _)| name).chain(keys);
    for name in known.filter(|name| **name != view.me) {
        let answer = peers.answers.get(name).and_then(Option::as_ref);
        if answer.is_some_and(|peer| peer.receiving && promised) {
            return Ruling::No(format!("'{name}' may still receive WAL from the last leader"));
        }
        let all_told = |peer: &&PeerStatus| !peer.replaying && peer.position > Lsn::INVALID;
        let Some(peer) = answer.filter(all_told) else {
            return Ruling::No(format!(
                "the DCS lost what it knew while this member did not see it, and '{name}', which may have led since, has \
                 not said how far it is"
            ));
        };
        let behind = peer.timeline < me.timeline
            || (peer.timeline == me.timeline && (peer.position <= me.position || !me.exact));
        if !behind {
            return Ruling::No(format!(
                "'{name}' is ahead ({} on timeline {} against our {} on {})",
                peer.position, peer.timeline, me.position, me.timeline
            ));
        }
    }
    Ruling::Yes("the DCS lost what it knew, and all members say that they have nothing more".to_owned())
}

/// Whoever says it is a primary keeps everybody from becoming one, whether or not it could be elected itself.
pub(super) fn beside_a_primary(peers: &Peers) -> Option<Ruling> {
    let mut answers = peers.answers.iter();
    let why = answers.find_map(|(name, peer)| still_primary(name, peer.as_ref()?));
    why.map(Ruling::No)
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
