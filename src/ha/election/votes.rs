//! Who has every acknowledged commit, by what the others say of themselves (contract: HA rules §2), and when what they say
//! can be counted on.

use std::time::Duration;

use super::{
    Candidate, Ruling, by_failsafe,
    peers::{fresh_peers, others},
};
use crate::{
    clock::Boottime,
    ha::{
        Action, Memory, Peers, Plan, Running, Standing, View, lost,
        sync::{self, Promise},
    },
    model::{Cluster, Lsn, MemberName, PeerStatus, SyncKind, Timeline},
};

/// A WAL receiver that is not wanted any more ends within milliseconds.
const RECEIVER_ENDS: Duration = Duration::from_millis(20);

/// In quorum mode a vote is a promise to confirm nothing more to the last leader: it may be frozen, and would go on in the
/// moment of its thaw with what it was about to acknowledge. Not as long as that leader may be in its right.
pub(in crate::ha) fn cut_off(
    view: &View,
    cluster: &Cluster,
    memory: &Memory,
    running: &Running,
    now: Boottime,
) -> Option<Plan> {
    let restored = lost::restored(memory, cluster);
    let cluster = restored.as_ref().unwrap_or(cluster);
    let kind = sync::kind(&view.dynamic);
    // The key may be one of the mode before. And where each voter has everything, and none has led in the time it had,
    // others are measured by what a voter has; after a loss of the store, by what everybody has.
    let late = memory.unlocked_for(now) >= view.dynamic.timing.ttl;
    let counted = Promise::active(view, cluster)
        .is_some_and(|promise| promise.quorum > 0 || kind == SyncKind::Quorum || late);
    let asked = counted || (memory.lost.away && kind != SyncKind::Off);
    if !asked || !running.is_receiving() {
        return None;
    }
    let promised = view
        .failsafe
        .promise
        .as_ref()
        .is_some_and(|promise| now < promise.until);
    let consent = by_failsafe(view, cluster, memory, Candidate::of_running(running), now).is_some();
    let lost = lost::holder(memory, &view.me, view.dynamic.timing.ttl, now).is_some();
    if promised || consent || lost {
        return None;
    }
    let pointed = matches!(
        &running.standing,
        Standing::Replica {
            upstream: Some(_),
            ..
        }
    ) || !memory.cut_off;
    let mut memory = memory.clone();
    memory.cut_off = true;
    let mut plan = if pointed {
        Plan::act(
            "nobody leads: taking no more WAL from the last leader before votes are counted",
            [Action::Follow(None)],
        )
    } else {
        Plan::wait("nobody leads: waiting for the end of the WAL receiver")
    };
    plan.memory = Some(memory);
    Some(plan.again_in(RECEIVER_ENDS))
}

/// Whether those who have nothing more than we make up the quorum (contract: HA rules §2, "Quorum verdict"). The leader
/// of `/sync` has everything it ever acknowledged. Who may still receive from the last leader has no vote: what it
/// confirms next, and what that leader, frozen until now, acknowledges then, would not be counted.
pub(super) fn counted(view: &View, promise: &Promise, me: Candidate, peers: &Peers) -> Ruling {
    let voter = |name: &MemberName| *name != view.me && promise.voters.contains(name);
    let (mut votes, mut ahead, mut without) = (0, false, Vec::new());
    for (name, answer) in peers.answers.iter().filter(|(name, _)| voter(name)) {
        match no_vote(me, answer.as_ref()) {
            None => votes += 1,
            Some(why) => {
                ahead |= why == AHEAD;
                without.push(format!("'{name}' {why}"));
            }
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
    let quorum = promise.quorum;
    Ruling::No(match without.is_empty() {
        true => format!("{votes} votes, but a quorum of {quorum}"),
        false => format!("{votes} votes, but a quorum of {quorum}: {}", without.join(", ")),
    })
}

const AHEAD: &str = "is ahead";

/// Why this voter's answer is no vote for us.
fn no_vote(me: Candidate, answer: Option<&PeerStatus>) -> Option<&'static str> {
    let Some(peer) = answer else {
        return Some("does not answer");
    };
    if peer.timeline > me.timeline || (peer.position > me.position && me.exact) {
        return Some(AHEAD);
    }
    not_all(peer)
}

/// Why what this member says it has may not be all it will have.
fn not_all(peer: &PeerStatus) -> Option<&'static str> {
    if !peer.in_recovery {
        return Some("is a primary");
    }
    if peer.position == Lsn::INVALID {
        return Some("does not know how far it is");
    }
    if peer.replaying {
        return Some("still replays the WAL it was started with");
    }
    peer.receiving
        .then_some("may still receive WAL from the last leader")
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
                not_all(peer).is_none()
                    && peer.timeline == me.timeline
                    && peer.timeline != Timeline::UNKNOWN
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
    let peers = match others(view, cluster, now) {
        Ok(peers) => peers,
        Err(ruling) => return ruling,
    };
    let promised = sync::kind(&view.dynamic) != SyncKind::Off;
    let keys = cluster.members.iter().map(|member| &member.name);
    let known = memory.last_members.iter().map(|(name, _)| name).chain(keys);
    for name in known.filter(|name| **name != view.me) {
        let answer = peers.answers.get(name).and_then(Option::as_ref);
        let Some(peer) = answer else {
            return Ruling::No(format!(
                "the DCS lost what it knew while this member did not see it, and '{name}', which may have led since, has \
                 not said how far it is"
            ));
        };
        // What was not waited for may be lost with whoever has it.
        let more = not_all(peer).filter(|_| promised || peer.replaying || peer.position == Lsn::INVALID);
        if let Some(why) = more {
            return Ruling::No(format!(
                "the DCS lost what it knew while this member did not see it, and '{name}' {why}"
            ));
        }
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
