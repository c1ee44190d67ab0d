//! The leader key: taking, keeping and giving up the lock.
//!
//! A hold is proven by two things: our session was renewed, and *after* that the leader key carried our name and our
//! session. A renewal alone proves neither: the key may have been deleted or taken meanwhile, and a server that has
//! lost its leadership without knowing renews sessions from its own memory. The read that follows is answered only
//! by a leader that a quorum confirms; if it has to be asked twice, the session is renewed again before, so that an
//! election in between cannot leave us with the renewal of the old leader and the read of the new one. (A new leader
//! gives all sessions their whole ttl anew.)
//!
//! The name alone is no proof: another process may use it. A key with our name under a session that is neither ours nor
//! was there before our first word (then a predecessor left it) is a namesake's, and is never taken from it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Consistency, Consul, Failure, Inherited, Step, lock, session::Alive, session::lease};
use crate::dcs::{DcsError, Key, Lock};

const LEADER: &str = "leader";
/// Rounds a lock call makes before it says that it could not find out. Each round needs another change by somebody
/// else (taken, deleted, session ended) at just the wrong moment.
const ROUNDS: usize = 8;
/// Between a read that failed and the next renewal.
const PAUSE: Duration = Duration::from_millis(50);

/// The leader key as read.
struct Seen {
    name: String,
    session: String,
}

impl Consul {
    pub(super) async fn take_lock(&self, deadline: Instant) -> Result<Lock, Failure> {
        for _ in 0..ROUNDS {
            let known = self.session.current().is_some();
            let session = self.obtain(deadline).await?;
            let taken = match self.put_leader(self.leader_absent(), &session, deadline).await {
                Err(Failure::SessionGone(_)) => {
                    self.session.forget(&session.id);
                    continue;
                }
                taken => taken?,
            };
            if taken {
                // A session made just now is as good as new; an older one must be renewed to be worth a ttl.
                return if known {
                    self.keep_lock(deadline).await
                } else {
                    Ok(self.held(&session))
                };
            }
            match self.read_leader(deadline).await? {
                None => {}
                Some(seen) if seen.name == self.name && self.session.knows(lease(&seen.session)) => {
                    return self.keep_lock(deadline).await;
                }
                Some(seen) => return Ok(Lock::Lost(Some(seen.name.as_str().into()))),
            }
        }
        Err(self.unsettled())
    }

    pub(super) async fn keep_lock(&self, deadline: Instant) -> Result<Lock, Failure> {
        let mut rounds = 0;
        while rounds < ROUNDS {
            let Some(session) = self.extend(deadline).await? else {
                rounds += 1;
                continue;
            };
            let seen = match self.read_leader_once(deadline).await {
                Ok(seen) => seen,
                Err(error @ DcsError::Credentials { .. }) => return Err(error.into()),
                Err(error) if Instant::now() + PAUSE >= deadline => return Err(error.into()),
                Err(_) => {
                    sleep(PAUSE).await;
                    continue;
                }
            };
            rounds += 1;
            let condition = match seen {
                None => self.leader_absent(),
                Some(seen) if seen.name != self.name => {
                    return Ok(Lock::Lost(Some(seen.name.as_str().into())));
                }
                Some(seen) if seen.session == session.id => return Ok(self.held(&session)),
                Some(seen)
                    if self.session.knows(lease(&seen.session)) || self.inherits(lease(&seen.session)) =>
                {
                    // A key that is bound to one session cannot be bound to another without an end in between.
                    vec![
                        Step::LockedBy(self.key(LEADER), seen.session),
                        Step::Delete(self.key(LEADER)),
                    ]
                }
                Some(seen) => return Ok(Lock::Lost(Some(seen.name.as_str().into()))),
            };
            match self.put_leader(condition, &session, deadline).await {
                Ok(true) => return Ok(self.held(&session)),
                Ok(false) => {}
                Err(Failure::SessionGone(_)) => self.session.forget(&session.id),
                Err(error) => return Err(error),
            }
        }
        Err(self.unsettled())
    }

    /// Deletes the leader key if it is bound to the session we held it with (a namesake's lock is not ours to drop).
    pub(super) async fn drop_lock(&self, status: Option<&str>, deadline: Instant) -> Result<(), Failure> {
        let held = lock(&self.held).clone();
        let session = match held {
            Some(session) => session,
            None if self.session.is_adopted() => self.obtain(deadline).await?.id,
            None => return Ok(()),
        };
        let mut steps = vec![
            Step::LockedBy(self.key(LEADER), session),
            Step::Delete(self.key(LEADER)),
        ];
        steps.extend(status.map(|text| Step::Set(self.key(Key::Status.path()), text.to_owned())));
        // A try that broke off may have done it; the second one then finds nothing to do.
        match self.transact(&steps, deadline).await {
            Err(Failure::Unsure(_)) => self.transact(&steps, deadline).await?,
            done => done?,
        };
        *lock(&self.held) = None;
        Ok(())
    }

    fn leader_absent(&self) -> Vec<Step> {
        vec![Step::Absent(self.key(LEADER))]
    }

    /// Whether that session was a predecessor's.
    fn inherits(&self, lease: i64) -> bool {
        lease != 0 && *lock(&self.inherited) == Inherited::Lease(lease)
    }

    fn held(&self, session: &Alive) -> Lock {
        *lock(&self.held) = Some(session.id.clone());
        Lock::Held(session.hold())
    }

    async fn put_leader(
        &self,
        mut steps: Vec<Step>,
        session: &Alive,
        deadline: Instant,
    ) -> Result<bool, Failure> {
        steps.push(Step::Lock(
            self.key(LEADER),
            self.name.clone(),
            session.id.clone(),
        ));
        match self.transact(&steps, deadline).await {
            // The next read tells whose it is, ours included.
            Err(Failure::Unsure(_)) => Ok(false),
            done => Ok(done?.is_some()),
        }
    }

    async fn read_leader(&self, deadline: Instant) -> Result<Option<Seen>, DcsError> {
        let found = self.read(LEADER, false, deadline).await?;
        Ok(seen(found))
    }

    /// The same without a second try.
    async fn read_leader_once(&self, deadline: Instant) -> Result<Option<Seen>, DcsError> {
        let ask = self.look(LEADER, false, Consistency::Consistent);
        let within = deadline.saturating_duration_since(Instant::now());
        let reply = self.agent.ask_once(&ask, within).await?;
        Ok(seen(self.stored(&reply)?))
    }

    /// Our session, renewed or new; `None` if it turned out to be gone.
    async fn extend(&self, deadline: Instant) -> Result<Option<Alive>, Failure> {
        let Some(session) = self.session.current() else {
            return Ok(Some(self.obtain(deadline).await?));
        };
        match self.renew_session(&session.id, deadline).await {
            Err(Failure::SessionGone(id)) => {
                self.session.forget(&id);
                Ok(None)
            }
            renewed => Ok(Some(renewed?)),
        }
    }

    fn unsettled(&self) -> Failure {
        Failure::Dcs(DcsError::Answer {
            endpoint: self.agent.endpoint(),
            reason: "the leader key kept changing".into(),
        })
    }
}

fn seen(found: Vec<super::Stored>) -> Option<Seen> {
    let leader = found.into_iter().find(|stored| stored.path == LEADER)?;
    Some(Seen {
        name: leader.value,
        session: leader.session.unwrap_or_default(),
    })
}
