//! Who may lead after a leader that stops, and whether they have all it ever wrote. Fixed when the stop begins, because
//! while it goes on nothing but the answers of these members is asked for (contract: HA rules §10, common steps).

use std::collections::BTreeMap;

use super::{View, successor};
use crate::{
    clock::Boottime,
    model::{Cluster, Lsn, MemberName, PeerStatus, Timeline},
};

/// The members to ask: name and `api_url`. Empty: nobody may lead after us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heirs(pub Vec<(MemberName, String)>);

/// The end of everything a shut-down primary has written: its timeline, and where the record of its shutdown
/// checkpoint ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The timeline of that record.
    pub timeline: Timeline,
    /// The first byte after it.
    pub lsn: Lsn,
}

impl Heirs {
    /// Those that could be asked for a switchover now. A named candidate is the only one: while it lives, the others
    /// leave the lock to it (contract: HA rules §6.2, §6.3). What else limits who may lead, such as membership in
    /// `/sync`, is decided in [`successor::candidates`] for all who ask.
    #[must_use]
    pub fn of(view: &View, cluster: &Cluster) -> Self {
        let due = |at: jiff::Timestamp| at <= view.wall;
        let request = cluster.failover.as_ref();
        let request = request.filter(|request| request.scheduled_at.is_none_or(due));
        let named = request.and_then(|request| request.candidate.as_ref());
        // A person's failover may go to a member that is not sure to have everything.
        let promised = request.is_none_or(|request| request.is_switchover() || named.is_none());
        let candidates = successor::candidates(view, cluster, named, promised);
        let asked = candidates
            .iter()
            .map(|m| (m.name.clone(), m.data.api_url.clone()));
        Self(asked.collect())
    }
}

/// Why a member that answered cannot take over without a loss; `None`: it has everything, and may lead.
#[must_use]
pub fn lacks(end: End, peer: &PeerStatus) -> Option<String> {
    if !peer.can_lead() {
        return Some("is excluded by tag or watchdog".to_owned());
    }
    if !peer.in_recovery {
        return Some("is no replica".to_owned());
    }
    // A position on another timeline says nothing about ours, nor does one whose timeline is not known.
    if peer.timeline != end.timeline {
        return Some(format!("is on timeline {}, not {}", peer.timeline, end.timeline));
    }
    let missing = end.lsn.bytes_ahead_of(peer.position);
    (missing > 0).then(|| format!("lacks {missing} bytes"))
}

/// What the heirs said so far, and since when none of them has come any nearer.
#[derive(Debug, Clone)]
pub struct Progress {
    end: End,
    said: BTreeMap<MemberName, (Lsn, String)>,
    since: Boottime,
}

impl Progress {
    /// Nobody has said anything yet.
    #[must_use]
    pub const fn new(end: End, now: Boottime) -> Self {
        Self {
            end,
            said: BTreeMap::new(),
            since: now,
        }
    }

    /// Takes an answer in (`None`: there was none). True: this member has everything.
    pub fn hear(&mut self, name: &MemberName, peer: Option<&PeerStatus>, now: Boottime) -> bool {
        let before = self.said.get(name).map_or(Lsn::INVALID, |(at, _)| *at);
        let (position, why) = match peer {
            None => (before, "does not answer".to_owned()),
            Some(peer) => match lacks(self.end, peer) {
                None => return true,
                Some(why) => (peer.position, why),
            },
        };
        // The first answer only tells where it is.
        if self.said.contains_key(name) && position > before {
            self.since = now;
        }
        self.said.insert(name.clone(), (position, why));
        false
    }

    /// Since when nobody has received anything more.
    #[must_use]
    pub const fn stalled_since(&self) -> Boottime {
        self.since
    }

    /// Why nobody can take over yet, by member.
    #[must_use]
    pub fn because(&self) -> String {
        if self.said.is_empty() {
            return "nobody has answered".to_owned();
        }
        let each = self.said.iter().map(|(name, (_, why))| format!("'{name}' {why}"));
        each.collect::<Vec<_>>().join(", ")
    }
}
