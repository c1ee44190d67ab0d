//! The leader key: taking, keeping and giving up the lock.
//!
//! A hold is proven by two things: our session was extended (see `hand`), and *after* that, on the same connection and
//! behind a transaction, the leader key carried our name and hung on our session.
//!
//! The name alone is no proof: another process may use it. A key with our name under a session that is neither ours nor
//! was there before our first word (then a predecessor left it) is a namesake's, and is never taken from it. One that
//! is ours under an older session is moved in one transaction, which the fence refuses if the lock has changed hands.

use tokio::time::Instant;

use super::{Failure, Inherited, ZooKeeper, code, hand::Hand, jute::Change, lock, stat_of, wire::Ask};
use crate::{
    dcs::{DcsError, Key, Lock},
    model::Entry,
};

const LEADER: &str = "leader";
/// Rounds a lock call makes before it says that it could not find out. Each round needs another change by somebody
/// else (taken, deleted) at just the wrong moment.
const ROUNDS: usize = 8;

impl ZooKeeper {
    pub(super) async fn take_lock(&self, hand: &mut Hand, deadline: Instant) -> Result<Lock, Failure> {
        let wire = self.extend(hand, deadline).await?;
        let changes = [self.leader(), self.raise(None)];
        match self.change(wire, &changes).await {
            Ok(_) => return Ok(self.held(hand)),
            Err(Failure::Refused(code::NO_NODE)) => self.make_folders(wire).await?,
            Err(Failure::Refused(code::NODE_EXISTS)) => {}
            Err(error) => return Err(error),
        }
        for _ in 0..ROUNDS {
            let Some(wire) = hand.wire() else { break };
            match self.read_fenced(wire, &self.path(LEADER)).await?.1 {
                None => match self.change(wire, &changes).await {
                    Ok(_) => return Ok(self.held(hand)),
                    Err(Failure::Refused(code::NODE_EXISTS)) => {}
                    Err(error) => return Err(error),
                },
                Some(seen) if seen.value == self.name && self.knows(seen.stat.owner) => {
                    return self.keep_lock(hand, deadline).await;
                }
                Some(seen) => return Ok(Self::lost_to(&seen.value)),
            }
        }
        Err(self.unsettled())
    }

    pub(super) async fn keep_lock(&self, hand: &mut Hand, deadline: Instant) -> Result<Lock, Failure> {
        self.extend(hand, deadline).await?;
        let id = hand.id();
        for _ in 0..ROUNDS {
            let Some(wire) = hand.wire() else { break };
            let (fence, seen) = self.read_fenced(wire, &self.path(LEADER)).await?;
            let changes = match seen {
                None => vec![self.raise(None), self.leader()],
                Some(seen) if seen.value != self.name => return Ok(Self::lost_to(&seen.value)),
                Some(seen) if seen.stat.owner == id => return Ok(self.held(hand)),
                Some(seen) if self.knows(seen.stat.owner) || self.inherits(seen.stat.owner) => vec![
                    self.raise(fence),
                    Change::Delete {
                        path: self.path(LEADER),
                    },
                    self.leader(),
                ],
                Some(seen) => return Ok(Self::lost_to(&seen.value)),
            };
            match self.change(wire, &changes).await {
                Ok(_) => return Ok(self.held(hand)),
                Err(Failure::Refused(code::BAD_VERSION | code::NODE_EXISTS)) => {}
                Err(Failure::Refused(code::NO_NODE)) => self.make_folders(wire).await?,
                Err(error) => return Err(error),
            }
        }
        Err(self.unsettled())
    }

    /// Removes the leader key if it hangs on a session of ours (a namesake's lock is not ours to drop).
    pub(super) async fn drop_lock(
        &self,
        hand: &mut Hand,
        status: Option<&str>,
        deadline: Instant,
    ) -> Result<(), Failure> {
        if lock(&self.ours).is_empty() {
            return Ok(());
        }
        self.extend(hand, deadline).await?;
        let status_path = self.path(Key::Status.path());
        for _ in 0..ROUNDS {
            let Some(wire) = hand.wire() else { break };
            let (fence, seen) = self.read_fenced(wire, &self.path(LEADER)).await?;
            let Some(seen) = seen else { return Ok(()) };
            if seen.value != self.name || !self.knows(seen.stat.owner) {
                return Ok(());
            }
            let mut changes = vec![
                self.raise(fence),
                Change::Delete {
                    path: self.path(LEADER),
                },
            ];
            if let Some(status) = status {
                let there = stat_of(wire.ask(&[Ask::Stat(&status_path)]).await?.into_iter().next())?;
                let (path, value) = (status_path.clone(), status.to_owned());
                changes.push(match there {
                    Some(_) => Change::Set {
                        path,
                        value,
                        version: None,
                    },
                    None => Change::Create {
                        path,
                        value,
                        ephemeral: false,
                    },
                });
            }
            match self.change(wire, &changes).await {
                Ok(_) => {
                    *lock(&self.held) = None;
                    return Ok(());
                }
                Err(Failure::Refused(code::BAD_VERSION | code::NODE_EXISTS | code::NO_NODE)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(self.unsettled())
    }

    fn leader(&self) -> Change {
        Change::Create {
            path: self.path(LEADER),
            value: self.name.clone(),
            ephemeral: true,
        }
    }

    /// Whether that session was a predecessor's.
    fn inherits(&self, session: i64) -> bool {
        session != 0 && *lock(&self.inherited) == Inherited::Lease(session)
    }

    fn held(&self, hand: &Hand) -> Lock {
        *lock(&self.held) = Some(hand.id());
        Lock::Held(hand.hold())
    }

    /// Only what was there before our first word can be a predecessor's. Its lock and its member key hang on one
    /// session; a lock alone is a process of our name that has just begun.
    pub(super) fn note_inheritance(&self, entries: &[Entry]) {
        let mut inherited = lock(&self.inherited);
        if *inherited != Inherited::Unknown {
            return;
        }
        let member = format!("members/{}", self.name);
        let leader = entries
            .iter()
            .find(|entry| entry.path == LEADER && entry.value == self.name);
        let left = leader.filter(|leader| {
            self.knows(leader.lease)
                || entries
                    .iter()
                    .any(|entry| entry.path == member && entry.lease == leader.lease)
        });
        *inherited = left.map_or(Inherited::Nothing, |leader| Inherited::Lease(leader.lease));
    }

    /// A read that shows our member key missing or changed makes the next touch write it again.
    pub(super) fn check_member(&self, entries: &[Entry]) {
        let path = format!("members/{}", self.name);
        let mut last = lock(&self.member);
        let intact = last.as_ref().is_some_and(|(value, session)| {
            entries
                .iter()
                .any(|entry| entry.path == path && entry.value == *value && entry.lease == *session)
        });
        if !intact {
            *last = None;
        }
    }

    fn unsettled(&self) -> Failure {
        Failure::Dcs(DcsError::Answer {
            endpoint: self.ensemble.endpoint(),
            reason: "the leader key kept changing".into(),
        })
    }
}
