//! Could another member take over? Asked of the members themselves before the lock is given up by choice: letting go of
//! it helps nobody while nobody can take it (contract: HA rules §6.2).

use std::time::Duration;

use super::{Action, Peers, View};
use crate::{
    clock::Boottime,
    model::{Cluster, Lsn, Member, MemberName, PeerStatus},
};

/// Answers of candidates older than this are asked for again.
const PEERS_FRESH: Duration = Duration::from_secs(2);

/// A member that could take over from where the cluster is known to be; `Err`: ask this first.
pub(super) fn find(view: &View, cluster: &Cluster, now: Boottime) -> Result<Option<MemberName>, Action> {
    let candidates = candidates(view, cluster, None);
    if candidates.is_empty() {
        return Ok(None);
    }
    let peers = answers(view, &candidates, now)?;
    Ok(usable(view, cluster, cluster.status.optime, &candidates, peers).ok())
}

/// Members that may lead by what they publish; only the named one if one is named.
pub(super) fn candidates<'a>(
    view: &View,
    cluster: &'a Cluster,
    named: Option<&MemberName>,
) -> Vec<&'a Member> {
    let wanted = |m: &&Member| {
        m.name != view.me
            && !m.data.api_url.is_empty()
            && !m.tags().nofailover()
            && named.is_none_or(|name| *name == m.name)
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

/// The first candidate that can take over at `position`, or why none can.
pub(super) fn usable(
    view: &View,
    cluster: &Cluster,
    position: Lsn,
    candidates: &[&Member],
    peers: &Peers,
) -> Result<MemberName, String> {
    let mut reasons = Vec::new();
    for member in candidates {
        match peers.answers.get(&member.name).and_then(Option::as_ref) {
            None => reasons.push(format!("'{}' does not answer", member.name)),
            Some(peer) => match unfit(view, cluster, position, peer) {
                None => return Ok(member.name.clone()),
                Some(why) => reasons.push(format!("'{}' {why}", member.name)),
            },
        }
    }
    Err(reasons.join(", "))
}

fn unfit(view: &View, cluster: &Cluster, position: Lsn, peer: &PeerStatus) -> Option<String> {
    if !peer.can_lead() {
        return Some("is excluded by tag or watchdog".to_owned());
    }
    if !peer.in_recovery {
        return Some("is no replica".to_owned());
    }
    let lag = position.bytes_ahead_of(peer.position);
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
