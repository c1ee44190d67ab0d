//! What `/sync` promises, and whether the setting in force keeps it.
//!
//! `/sync` says: among its leader and its standbys (the voters) any `quorum + 1` hold every acknowledged commit between
//! them, so the furthest of these may lead. The setting says: a commit is acknowledged once the primary and `count` of
//! its names have it. The two must have a member in common, whichever are picked.

use super::{NameSet, StandbyNames};
use crate::{
    ha::View,
    model::{Cluster, Dynamic, MemberName, SyncKey, SyncKind},
};

/// The synchronous mode that counts here: none in a standby cluster (contract: HA rules §11).
#[must_use]
pub fn kind(dynamic: &Dynamic) -> SyncKind {
    match dynamic.standby {
        Some(_) => SyncKind::Off,
        None => dynamic.sync.kind,
    }
}

/// An active promise: the mode is on and `/sync` has a leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// Who wrote it. Holds everything it has ever acknowledged.
    pub leader: MemberName,
    /// The leader and the standbys.
    pub voters: NameSet,
    /// Votes a candidate needs besides its own.
    pub quorum: usize,
}

impl Promise {
    /// The promise in force, if there is one.
    #[must_use]
    pub fn active(view: &View, cluster: &Cluster) -> Option<Self> {
        if kind(&view.dynamic) == SyncKind::Off {
            return None;
        }
        Self::of(&cluster.sync)
    }

    fn of(sync: &SyncKey) -> Option<Self> {
        let leader = sync.leader.clone()?;
        let standbys: NameSet = sync.standbys.iter().collect();
        Some(Self {
            voters: standbys.with(&leader),
            quorum: usize::try_from(sync.quorum).unwrap_or(usize::MAX),
            leader,
        })
    }

    /// Is its leader this member?
    #[must_use]
    pub fn led_by(&self, name: &MemberName) -> bool {
        self.leader.0.eq_ignore_ascii_case(&name.0)
    }

    /// May automatically be told to lead without anybody's vote: only where each voter holds everything.
    #[must_use]
    pub fn enough(&self, me: &MemberName, votes: usize) -> bool {
        // A voter's own copy is the first of the `quorum + 1`.
        let own = usize::from(self.voters.contains(me));
        votes + own > self.quorum
    }
}

/// Whether each `quorum + 1` of `voters` (without `me`, the primary) have one in common with each `count` of the names.
/// An exact rule: two such sets are disjoint exactly if there are that many different members.
#[must_use]
pub fn kept(me: &MemberName, voters: &NameSet, quorum: usize, names: &StandbyNames) -> bool {
    let voters = voters.clone().without(me);
    let standbys = names.names.clone().without(me);
    let promotable = voters.len() > quorum;
    let acknowledged = standbys.len() >= names.count && !names.blocks();
    let disjoint = voters.union(&standbys).len() > quorum + names.count;
    !(promotable && acknowledged && disjoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(bits: u32) -> NameSet {
        let all = ["a", "b", "c", "d"];
        let chosen = |(bit, name): (usize, &&'static str)| (bits >> bit & 1 == 1).then_some(*name);
        all.iter().enumerate().filter_map(chosen).collect()
    }

    /// Brute force: every set of voters against every set of names.
    fn disjoint_pair(voters: u32, quorum: usize, standbys: u32, count: usize) -> bool {
        let picks = |of: u32, size: usize| {
            (0..16_u32).filter(move |p| p & !of == 0 && p.count_ones() as usize == size)
        };
        picks(voters, quorum + 1).any(|p| picks(standbys, count).any(|a| p & a == 0))
    }

    #[test]
    fn the_rule_is_the_same_as_trying_all_sets() {
        let me = "m".into();
        for voters in 0..16 {
            for standbys in 0..16 {
                for quorum in 0..4 {
                    for count in 0..=3 {
                        let setting = StandbyNames::any(count, names(standbys));
                        let count = setting.count;
                        let standbys = if count == 0 { 0 } else { standbys };
                        let expected = !disjoint_pair(voters, quorum, standbys, count);
                        let got = kept(&me, &names(voters).with(&me), quorum, &setting);
                        assert_eq!(got, expected, "{voters:b} {quorum} {setting}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_setting_that_blocks_keeps_every_promise() {
        let blocks = StandbyNames::nobody_will_do(super::super::Method::First);
        assert!(kept(&"m".into(), &names(15), 0, &blocks));
    }
}
