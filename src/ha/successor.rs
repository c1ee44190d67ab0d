//! Could another member take over? Asked of the members themselves before the lock is given up by choice: letting go of
//! it helps nobody while nobody can take it (contract: HA rules §6.2).

use std::time::Duration;

use super::{
    Action, Peers, View, failsafe, history,
    sync::{self, Promise},
};
use crate::{
    clock::Boottime,
    model::{Cluster, Lsn, Member, MemberName, PeerStatus, SyncKind},
};

/// Answers of candidates older than this are asked for again.
const PEERS_FRESH: Duration = Duration::from_secs(2);

/// A member that could take over from where the cluster is known to be; `Err`: ask this first.
pub(super) fn find(view: &View, cluster: &Cluster, now: Boottime) -> Result<Option<MemberName>, Action> {
    let candidates = candidates(view, cluster, None, true);
    if candidates.is_empty() {
        return Ok(None);
    }
    let peers = answers(view, &candidates, now)?;
    let position = cluster.status.optime;
    Ok(usable(view, cluster, position, None, &candidates, peers).ok())
}

/// Members that may lead by what they publish; only the named one if one is named. In a synchronous mode those who are
/// sure to have everything, unless a person wants another (`promised` is false).
pub(super) fn candidates<'a>(
    view: &View,
    cluster: &'a Cluster,
    named: Option<&MemberName>,
    promised: bool,
) -> Vec<&'a Member> {
    let promise = Promise::active(view, cluster).filter(|_| promised);
    let wanted = |m: &&Member| {
        m.name != view.me
            && !m.data.api_url.is_empty()
            && !m.tags().nofailover()
            && named.is_none_or(|name| *name == m.name)
            && promise
                .as_ref()
                .is_none_or(|promise| promise.voters.contains(&m.name))
            && !(promised && failsafe::leaves_out(view, cluster, &m.name))
    };
    cluster.members.iter().filter(wanted).collect()
}

/// What they say of themselves, or the wish to know.
pub(super) fn answers<'a>(
    view: &'a View,
    candidates: &[&Member],
    now: Boottime,
) -> Result<&'a Peers, Action> {
    view.peers
        .as_ref()
        .filter(|peers| now.since(peers.at) <= PEERS_FRESH)
        .filter(|peers| peers.cover(candidates.iter().map(|member| &member.name)))
        .ok_or_else(|| Action::ProbePeers {
            present: candidates
                .iter()
                .map(|m| (m.name.clone(), m.data.api_url.clone()))
                .collect(),
            vanished: Vec::new(),
        })
}

/// The first candidate that can take over at `position`, or why none can. In quorum mode so many of them must be able to
/// that one of them gets the votes, unless one is named.
pub(super) fn usable(
    view: &View,
    cluster: &Cluster,
    position: Lsn,
    named: Option<&MemberName>,
    candidates: &[&Member],
    peers: &Peers,
) -> Result<MemberName, String> {
    let mut reasons = Vec::new();
    let mut able: Vec<&Member> = Vec::new();
    for member in candidates {
        match peers.answers.get(&member.name).and_then(Option::as_ref) {
            None => reasons.push(format!("'{}' does not answer", member.name)),
            Some(peer) => match unfit(view, cluster, position, peer) {
                None => able.push(member),
                Some(why) => reasons.push(format!("'{}' {why}", member.name)),
            },
        }
    }
    let Some(first) = able.first() else {
        return Err(reasons.join(", "));
    };
    let quorum = Promise::active(view, cluster).map_or(0, |promise| promise.quorum);
    let counted = named.is_none() && sync::kind(&view.dynamic) == SyncKind::Quorum;
    if counted && able.len() <= quorum {
        reasons.push(format!(
            "{} can take over, and a quorum of {quorum} is needed besides one",
            able.len()
        ));
        return Err(reasons.join(", "));
    }
    Ok(first.name.clone())
}

fn unfit(view: &View, cluster: &Cluster, position: Lsn, peer: &PeerStatus) -> Option<String> {
    if !peer.can_lead() {
        return Some("is excluded by tag or watchdog".to_owned());
    }
    if !peer.in_recovery {
        return Some("is no replica".to_owned());
    }
    let rows = cluster
        .history
        .as_deref()
        .filter(|_| view.dynamic.standby.is_none());
    let lag = position.bytes_ahead_of(history::reach(rows, peer.timeline, None, peer.position));
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
