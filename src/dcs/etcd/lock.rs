//! The leader key: taking, keeping and giving up the lock.
//!
//! A hold is proven by two things: our lease was extended, and *after* that the leader key carried our name and our
//! lease. A keepalive alone proves neither: the key may have been deleted or taken meanwhile, and a raft leader that
//! was cut off answers keepalives from its own memory. The linearizable read that follows is answered only with
//! a quorum, and it must come from the raft term in which the lease was kept; else both are done again.
//!
//! The name alone is no proof: another process may use it. A key with our name under a lease that is neither ours nor
//! was there before our first word (then a predecessor left it) is a namesake's, and is never taken from it.

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use tokio::time::Instant;

use super::{Etcd, Inherited, fault::Failure, lease::Alive, lock, pool::Answer};
use crate::dcs::{DcsError, Key, Lock};

const LEADER: &str = "leader";

/// Rounds a lock call makes before it says that it could not find out. Each round needs another change by somebody
/// else (election, taken, deleted) at just the wrong moment.
const ROUNDS: usize = 8;

/// The leader key as read.
struct Seen {
    name: String,
    lease: i64,
}

impl Etcd {
    pub(super) async fn take_lock(&self, deadline: Instant) -> Result<Lock, Failure> {
        for _ in 0..ROUNDS {
            let known = self.lease.current();
            let lease = self.lease.obtain(&self.pool, self.timing().ttl, deadline).await?;
            let taken = match self.put_leader(self.leader_absent(), lease, deadline).await {
                Err(Failure::LeaseGone(_)) => {
                    self.lease.forget(lease.id);
                    continue;
                }
                taken => taken?,
            };
            if taken {
                // A lease granted just now is as good as new; an older one must be extended to be worth a ttl.
                return match known {
                    None => Ok(self.held(lease)),
                    Some(_) => self.keep_lock(deadline).await,
                };
            }
            match self.read_leader(deadline).await? {
                (None, _) => {}
                (Some(seen), _) if seen.name == self.name && self.lease.knows(seen.lease) => {
                    return self.keep_lock(deadline).await;
                }
                (Some(seen), _) => return Ok(Lock::Lost(Some(seen.name.as_str().into()))),
            }
        }
        Err(self.unsettled())
    }

    pub(super) async fn keep_lock(&self, deadline: Instant) -> Result<Lock, Failure> {
        for _ in 0..ROUNDS {
            let Some(lease) = self.extend(deadline).await? else {
                continue;
            };
            let (seen, term) = self.read_leader(deadline).await?;
            if lease.term.is_some_and(|kept| kept != term) {
                continue;
            }
            let condition = match seen {
                None => self.leader_absent(),
                Some(seen) if seen.name != self.name => {
                    return Ok(Lock::Lost(Some(seen.name.as_str().into())));
                }
                Some(seen) if seen.lease == lease.id => return Ok(self.held(lease)),
                Some(seen) if self.lease.knows(seen.lease) || self.inherits(seen.lease) => {
                    self.leader_ours(seen.lease)
                }
                Some(seen) => return Ok(Lock::Lost(Some(seen.name.as_str().into()))),
            };
            match self.put_leader(condition, lease, deadline).await {
                Ok(true) => return Ok(self.held(lease)),
                Ok(false) => {}
                Err(Failure::LeaseGone(_)) => self.lease.forget(lease.id),
                Err(error) => return Err(error),
            }
        }
        Err(self.unsettled())
    }

    /// Deletes the leader key if it is bound to the lease we held it with (a namesake's lock is not ours to drop).
    pub(super) async fn drop_lock(&self, status: Option<&str>, deadline: Instant) -> Result<(), Failure> {
        let held = *lock(&self.held);
        let Some(lease) = held.or_else(|| self.lease.current().map(|alive| alive.id)) else {
            return Ok(());
        };
        let mut steps = vec![TxnOp::delete(self.path(LEADER), None)];
        steps.extend(status.map(|text| TxnOp::put(self.path(Key::Status.path()), text, None)));
        let release = Txn::new().when(self.leader_ours(lease)).and_then(steps);
        // A try that broke off may have done it; the second one then finds nothing to do.
        match self.write_txn(deadline, release.clone()).await {
            Err(Failure::Unsure(_)) => self.write_txn(deadline, release).await?,
            done => done?,
        };
        *lock(&self.held) = None;
        Ok(())
    }

    fn leader_absent(&self) -> Vec<Compare> {
        vec![Compare::create_revision(self.path(LEADER), CompareOp::Equal, 0)]
    }

    fn leader_ours(&self, lease: i64) -> Vec<Compare> {
        vec![
            Compare::value(self.path(LEADER), CompareOp::Equal, self.name.as_str()),
            Compare::lease(self.path(LEADER), CompareOp::Equal, lease),
        ]
    }

    /// Whether that lease was a predecessor's.
    fn inherits(&self, lease: i64) -> bool {
        *lock(&self.inherited) == Inherited::Lease(lease)
    }

    fn held(&self, lease: Alive) -> Lock {
        *lock(&self.held) = Some(lease.id);
        Lock::Held(lease.hold())
    }

    async fn put_leader(
        &self,
        condition: Vec<Compare>,
        lease: Alive,
        deadline: Instant,
    ) -> Result<bool, Failure> {
        let options = PutOptions::new().with_lease(lease.id);
        let put = TxnOp::put(self.path(LEADER), self.name.as_str(), Some(options));
        let put = Txn::new().when(condition).and_then([put]);
        match self.write_txn(deadline, put).await {
            // The next read tells whose it is, ours included.
            Err(Failure::Unsure(_)) => Ok(false),
            done => Ok(done?.0),
        }
    }

    /// The leader key in a linearizable read, and the raft term after it.
    async fn read_leader(&self, deadline: Instant) -> Result<(Option<Seen>, u64), Failure> {
        let path = self.path(LEADER);
        let asked = self
            .pool
            .ask(deadline, move |_, mut client| {
                let path = path.clone();
                async move {
                    let response = client.get(path, None).await?;
                    let seen = response.kvs().first().map(|kv| Seen {
                        name: String::from_utf8_lossy(kv.value()).into_owned(),
                        lease: kv.lease(),
                    });
                    let term = response.header().map_or(0, |header| header.raft_term());
                    Ok(Answer::read(response.header(), (seen, term)))
                }
            })
            .await?;
        Ok(asked.value)
    }

    /// Our lease, extended or new; `None` if it turned out to be gone.
    async fn extend(&self, deadline: Instant) -> Result<Option<Alive>, Failure> {
        let ttl = self.timing().ttl;
        let Some(lease) = self.lease.current() else {
            return Ok(Some(self.lease.obtain(&self.pool, ttl, deadline).await?));
        };
        match self.lease.keep(&self.pool, lease.id, ttl, deadline).await {
            Err(Failure::LeaseGone(id)) => {
                self.lease.forget(id);
                Ok(None)
            }
            kept => Ok(Some(kept?)),
        }
    }

    fn unsettled(&self) -> Failure {
        Failure::Dcs(DcsError::Answer {
            endpoint: self.pool.url(self.pool.current()).to_owned(),
            reason: "the leader key or the raft term kept changing".into(),
        })
    }
}
