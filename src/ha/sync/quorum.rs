//! The resolver of quorum mode (contract: HA rules §11.2, appendix A): from `/sync` and the setting in force to the
//! next changes of either, such that every state on the way keeps the promise, also if nothing comes after it.
//!
//! One deviation, towards safety. The contract raises the quorum by the number of names that are not confirmed yet, and
//! guesses that number where nothing is known of it. Here the quorum never goes below what is known for certain
//! (`Resolver::floor`); until then the members that cannot be sure to have everything cannot lead.

use super::NameSet;
use crate::model::MemberName;

/// A change that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Write `/sync`, with us as its leader.
    Sync {
        /// Votes a candidate needs besides its own.
        quorum: usize,
        /// Its standbys.
        voters: NameSet,
    },
    /// Set `synchronous_standby_names`: any `count` of these.
    Names {
        /// How many.
        count: usize,
        /// Of whom.
        names: NameSet,
    },
    /// Nothing can be promised before a standby has confirmed: look again.
    Again,
}

/// A state that the rules do not know how to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken;

/// Where things stand, and how they change while the rules are gone through.
#[derive(Debug, Clone)]
pub struct Resolver {
    /// This primary.
    pub me: MemberName,
    /// Leader in `/sync`.
    pub leader: MemberName,
    /// Votes in `/sync`.
    pub quorum: usize,
    /// Standbys in `/sync`.
    pub voters: NameSet,
    /// How many standbys a commit waits for.
    pub count: usize,
    /// Of whom.
    pub names: NameSet,
    /// Those of the names that are known to have all that was acknowledged before the names came in force.
    pub confirmed: NameSet,
    /// Standbys that are there to be waited for.
    pub active: NameSet,
    /// How many a commit should wait for.
    pub wanted: usize,
}

impl Resolver {
    /// The changes, in order; of several of one kind in a row only the last.
    ///
    /// # Errors
    /// `/sync` and the setting contradict each other in a way no rule covers.
    pub fn resolve(self) -> Result<Vec<Change>, Broken> {
        let mut work = Work {
            count: self.count.min(self.names.len()),
            state: self,
            changes: Vec::new(),
        };
        match work.run() {
            Ok(()) | Err(Stop::Here) => Ok(collapse(work.changes)),
            Err(Stop::Broken) => Err(Broken),
        }
    }
}

/// Why the rules are left early.
enum Stop {
    Here,
    Broken,
}

struct Work {
    state: Resolver,
    count: usize,
    changes: Vec<Change>,
}

impl Work {
    fn run(&mut self) -> Result<(), Stop> {
        self.leader_changed()?;
        self.interrupted()?;
        self.gone()?;
        self.joined()?;
        self.factor()
    }

    /// The least quorum with which `voters` may be written: either as before, one more for each new voter, or such that
    /// at least one of each `quorum + 1` is known to have everything from before the names came in force.
    fn floor(&self, voters: &NameSet) -> usize {
        let as_before = self.state.quorum + voters.minus(&self.state.voters).len();
        let known = voters.and(&self.state.confirmed).and(&self.state.names);
        as_before.min(voters.len() - known.len())
    }

    fn holds(&self) -> Result<(), Stop> {
        let state = &self.state;
        let voting = state.voters.clone().with(&state.leader);
        let waited = state.names.clone().with(&state.me);
        let all = voting.union(&waited).len();
        let kept = state.voters.is_empty() || all <= state.quorum + self.count + 1;
        let nested = voting.within(&waited) || waited.within(&voting);
        (kept && nested).then_some(()).ok_or(Stop::Broken)
    }

    /// WQ of the contract.
    fn sync(&mut self, quorum: isize, voters: NameSet, leader: bool) -> Result<(), Stop> {
        let quorum = usize::try_from(quorum).map_err(|_| Stop::Broken)?;
        if quorum != 0 && quorum >= voters.len() {
            return Err(Stop::Broken);
        }
        let (mut quorum, mut voters) = (quorum, voters);
        if leader {
            // The same members as before, under another name: what they hold has not changed.
            self.state.leader = self.state.me.clone();
        } else if self.state.confirmed.and(&self.state.names).is_empty() && self.state.voters.is_empty() {
            (quorum, voters) = (0, NameSet::default());
        } else {
            quorum = quorum.max(self.floor(&voters));
        }
        if !leader && quorum == self.state.quorum && voters == self.state.voters {
            if voters.is_empty() {
                self.changes.push(Change::Again);
                return Err(Stop::Here);
            }
            return Ok(());
        }
        (self.state.quorum, self.state.voters) = (quorum, voters.clone());
        self.holds()?;
        self.changes.push(Change::Sync { quorum, voters });
        Ok(())
    }

    /// WS of the contract.
    fn set(&mut self, count: isize, names: NameSet) -> Result<(), Stop> {
        let count = usize::try_from(count).map_err(|_| Stop::Broken)?;
        if count > names.len() {
            return Err(Stop::Broken);
        }
        self.count = count;
        // Nobody has confirmed names that are not in force yet.
        self.state.confirmed = NameSet::default();
        self.state.names = names.clone();
        self.holds()?;
        self.changes.push(Change::Names { count, names });
        Ok(())
    }

    fn leader_changed(&mut self) -> Result<(), Stop> {
        let me = self.state.me.clone();
        let same = self.state.leader.0.eq_ignore_ascii_case(&me.0);
        let tried = if same {
            self.holds()
        } else {
            let voters = self.state.voters.clone().without(&me).with(&self.state.leader);
            self.take_over(voters)
        };
        if tried.is_err() {
            // What `/sync` says is not kept: it must say what is.
            let names = self.state.names.clone();
            self.sync(signed(names.len()) - signed(self.count), names, !same)?;
        }
        if !same && self.state.names.and(&self.state.active).is_empty() {
            return Err(Stop::Here);
        }
        Ok(())
    }

    fn take_over(&mut self, voters: NameSet) -> Result<(), Stop> {
        let quorum = signed(self.state.quorum);
        if self.state.names.is_empty() {
            self.set(signed(voters.len()) - quorum, voters.clone())?;
        }
        self.sync(quorum, voters, true)
    }

    /// An earlier run was broken off.
    fn interrupted(&mut self) -> Result<(), Stop> {
        let (names, voters) = (self.state.names.clone(), self.state.voters.clone());
        if names.within(&voters) && names != voters {
            let removed = voters.minus(&names.union(&self.state.active));
            if !removed.is_empty() {
                let quorum = signed(voters.len()) - signed(removed.len()) - signed(self.count);
                self.sync(quorum, voters.minus(&removed), false)?;
            }
            let added = self.state.voters.and(&self.state.active).minus(&self.state.names);
            if !added.is_empty() {
                self.set(signed(self.count), self.state.names.union(&added))?;
            }
        } else if voters.within(&names) && names != voters {
            let removed = names.minus(&self.state.active);
            let left = names.minus(&removed);
            let overlap = voters.is_empty() || !left.and(&voters).is_empty();
            if !removed.is_empty() && !left.is_empty() && overlap {
                let count = self.count.min(left.len());
                self.set(signed(count), left)?;
            }
            let added = self.state.names.minus(&self.state.voters).and(&self.state.active);
            if !added.is_empty() {
                let voters = self.state.voters.union(&added);
                self.sync(signed(voters.len()) - signed(self.count), voters, false)?;
            }
            let removed = self.state.names.minus(&self.state.voters);
            if !removed.is_empty() {
                let left = self.state.names.minus(&removed);
                let count = self.count.min(left.len());
                self.set(signed(count), left)?;
            }
        }
        self.settle()
    }

    /// Both sets are the same by now, but for what is not there; the numbers may not fit yet.
    fn settle(&mut self) -> Result<(), Stop> {
        let (size, quorum) = (signed(self.state.voters.len()), signed(self.state.quorum));
        let confirmed = self.state.confirmed.and(&self.state.names).len();
        let surplus = quorum + signed(self.count.min(confirmed)) - size;
        let lowered = signed(self.state.names.len()) - signed(self.count);
        if surplus > 0 {
            if self.count > self.state.wanted {
                let count = signed(self.state.wanted).max(size - quorum);
                self.set(count, self.state.names.clone())?;
            } else {
                self.sync(lowered, self.state.voters.clone(), false)?;
            }
        } else if self.count == self.state.wanted
            && quorum + signed(self.count) > size
            && self.count > confirmed
        {
            self.sync(lowered, self.state.voters.clone(), false)?;
        }
        Ok(())
    }

    /// Standbys that are not there any more.
    fn gone(&mut self) -> Result<(), Stop> {
        let mut gone = self.state.names.minus(&self.state.active);
        if gone.is_empty() {
            return Ok(());
        }
        if gone == self.state.names {
            if !self.state.voters.is_empty() || self.state.quorum != 0 {
                self.sync(0, NameSet::default(), false)?;
            }
            return self.set(0, NameSet::default());
        }
        if self.state.quorum > 0 {
            let names = gone.list();
            let removed: NameSet = names.iter().rev().take(self.state.quorum).collect();
            let left = self.state.names.minus(&removed);
            let count = self.state.wanted.max(self.count).min(left.len());
            self.set(signed(count), left)?;
            let voters = self.state.voters.minus(&removed);
            gone = gone.and(&self.state.names);
            self.sync(signed(voters.len()) - signed(self.count), voters, false)?;
        }
        if gone.is_empty() {
            return Ok(());
        }
        // All of them were waited for, so `/sync` may only promise what is left.
        let (names, voters) = (self.state.names.minus(&gone), self.state.voters.minus(&gone));
        let count = signed(self.count) - signed(gone.len());
        let more = count - signed(self.state.wanted.min(names.len()));
        let quorum = if more == 0 {
            0
        } else {
            more.min(signed(voters.len()) - 1)
        };
        self.sync(quorum, voters, false)?;
        self.set(count, names)
    }

    /// Standbys that have come.
    fn joined(&mut self) -> Result<(), Stop> {
        let mut new = self.state.active.minus(&self.state.names);
        if new.is_empty() {
            return Ok(());
        }
        let wanted = self.state.wanted.min(self.state.names.union(&new).len());
        let more = wanted.saturating_sub(self.count);
        if more > 0 {
            let first = self.state.names.is_empty();
            let added: NameSet = match first {
                true => new.clone(),
                false => new.iter().take(more).collect(),
            };
            let more = if first { more } else { added.len() };
            let count = self.count + more;
            self.set(signed(count), self.state.names.union(&added))?;
            let voters = self.state.voters.union(&added);
            self.sync(signed(voters.len()) - signed(wanted), voters, false)?;
            new = new.minus(&self.state.names);
        }
        if !new.is_empty() {
            let voters = self.state.voters.union(&new);
            self.sync(signed(voters.len()) - signed(wanted), voters, false)?;
            self.set(signed(wanted), self.state.names.union(&new))?;
        }
        Ok(())
    }

    /// Another number of standbys is to be waited for.
    fn factor(&mut self) -> Result<(), Stop> {
        let (count, size) = (signed(self.count), signed(self.state.voters.len()));
        let more = signed(self.state.wanted.min(self.state.names.len())) - count;
        if more > 0 {
            self.set(count + more, self.state.names.clone())?;
            self.sync(size - signed(self.count), self.state.voters.clone(), false)?;
        } else if more < 0 {
            if signed(self.state.quorum) - more < size {
                self.sync(size - count - more, self.state.voters.clone(), false)?;
            }
            self.set(count + more, self.state.names.clone())?;
        }
        Ok(())
    }
}

/// Numbers of members; there are never so many that this matters.
fn signed(count: usize) -> isize {
    isize::try_from(count).unwrap_or(isize::MAX)
}

fn collapse(changes: Vec<Change>) -> Vec<Change> {
    let mut kept: Vec<Change> = Vec::new();
    for change in changes {
        if let Some(last) = kept.last_mut()
            && std::mem::discriminant(last) == std::mem::discriminant(&change)
        {
            *last = change;
        } else {
            kept.push(change);
        }
    }
    kept
}

#[cfg(test)]
#[path = "quorum_tests.rs"]
mod tests;
