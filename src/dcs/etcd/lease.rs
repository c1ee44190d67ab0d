//! One lease per member (contract: DCS layout §6): granted when first needed, kept alive over one open stream.
//!
//! A keepalive counts from the moment it was *sent*. An answer that comes after its question was given up must never
//! be taken for the answer to the next one, so the stream is dropped with every question that was not answered.

use std::{collections::VecDeque, sync::Mutex, time::Duration};

use etcd_client::{Client, Error, LeaseKeepAliveStream, LeaseKeeper};
use tokio::time::Instant;

use super::{
    fault::Failure,
    lock,
    pool::{Answer, Pool},
};
use crate::{clock::Boottime, dcs::Hold};

/// A lease as of its last proof of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alive {
    pub(super) id: i64,
    /// When the grant or keepalive was sent; zero for an adopted lease not yet heard of.
    pub(super) sent_at: Boottime,
    /// What the store counts with; `None` for an adopted lease not yet heard of.
    pub(super) ttl: Option<Duration>,
    /// Raft term of the server before it handled the keepalive; `None` for a grant, which a quorum agreed to.
    pub(super) term: Option<u64>,
    /// Seconds that were asked for; `None` if a predecessor did.
    asked: Option<i64>,
}

impl Alive {
    pub(super) fn hold(&self) -> Hold {
        Hold {
            sent_at: self.sent_at,
            ttl: self.ttl.unwrap_or_default(),
            lease: self.id,
        }
    }
}

struct Stream {
    lease: i64,
    connection: u64,
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

/// The member's lease.
#[derive(Default)]
pub(super) struct Lease {
    now: Mutex<Option<Alive>>,
    /// The last ones that were ours, this one included: a key bound to one of them is ours.
    ours: Mutex<VecDeque<i64>>,
    stream: Mutex<Option<Stream>>,
    /// Only one task at a time asks for a new lease.
    gate: tokio::sync::Mutex<()>,
}

/// A lease is replaced when its ttl changes or it was lost; a key that hangs on an older one is long gone.
const OURS_MAX: usize = 16;

/// etcd counts in whole seconds, and at least one.
fn seconds(ttl: Duration) -> i64 {
    let whole = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX - 1);
    (whole + i64::from(ttl.subsec_nanos() > 0)).max(1)
}

fn duration(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

impl Lease {
    pub(super) fn current(&self) -> Option<Alive> {
        *lock(&self.now)
    }

    /// Whether this lease is or was ours.
    pub(super) fn knows(&self, id: i64) -> bool {
        lock(&self.ours).contains(&id)
    }

    fn remember(&self, id: i64) {
        let mut ours = lock(&self.ours);
        if ours.len() >= OURS_MAX {
            ours.pop_front();
        }
        ours.push_back(id);
    }

    pub(super) fn adopt(&self, id: i64) {
        if id == 0 {
            return;
        }
        self.remember(id);
        *lock(&self.now) = Some(Alive {
            id,
            sent_at: Boottime::default(),
            ttl: None,
            term: None,
            asked: None,
        });
    }

    /// The lease is known to be gone.
    pub(super) fn forget(&self, id: i64) {
        let mut now = lock(&self.now);
        if now.is_some_and(|alive| alive.id == id) {
            *now = None;
        }
    }

    /// Another lease is wanted.
    pub(super) fn abandon(&self) {
        *lock(&self.now) = None;
    }

    /// Whether the last proof of life is older than a third of the ttl.
    pub(super) fn due(&self, ttl: Duration) -> bool {
        self.current()
            .is_none_or(|alive| Boottime::now().since(alive.sent_at) >= ttl / 3)
    }

    /// The lease, or a new one.
    pub(super) async fn obtain(
        &self,
        pool: &Pool,
        ttl: Duration,
        deadline: Instant,
    ) -> Result<Alive, Failure> {
        let _alone = self.gate.lock().await;
        if let Some(alive) = self.current() {
            return Ok(alive);
        }
        let asked = seconds(ttl);
        let granted = pool
            .ask(deadline, |_, mut client| async move {
                let sent_at = Boottime::now();
                let response = client.lease_grant(asked, None).await?;
                let value = (response.id(), response.ttl(), sent_at);
                Ok(Answer::written(response.header(), value))
            })
            .await?;
        let (id, ttl, sent_at) = granted.value;
        let alive = Alive {
            id,
            sent_at,
            ttl: Some(duration(ttl)),
            term: None,
            asked: Some(asked),
        };
        self.remember(id);
        *lock(&self.now) = Some(alive);
        tracing::debug!(lease = format_args!("{id:x}"), ttl, "granted a new lease");
        Ok(alive)
    }

    /// Extends the lease by its whole ttl. A lease of a predecessor that counts with another ttl than `wanted` is
    /// reported as gone, so that a new one is made.
    pub(super) async fn keep(
        &self,
        pool: &Pool,
        id: i64,
        wanted: Duration,
        deadline: Instant,
    ) -> Result<Alive, Failure> {
        let kept = pool
            .ask(deadline, |connection, client| {
                self.roundtrip(connection, client, id)
            })
            .await;
        let (sent_at, ttl, term) = match kept {
            Ok(asked) => asked.value,
            Err(Failure::LeaseGone(_)) => return Err(Failure::LeaseGone(id)),
            Err(error) => return Err(error),
        };
        let mut now = lock(&self.now);
        let asked = now.filter(|alive| alive.id == id).and_then(|alive| alive.asked);
        if asked.is_none() && ttl != seconds(wanted) {
            return Err(Failure::LeaseGone(id));
        }
        let alive = Alive {
            id,
            sent_at,
            ttl: Some(duration(ttl)),
            term: Some(term),
            asked: Some(asked.unwrap_or(ttl)),
        };
        if now.is_some_and(|known| known.id == id) {
            *now = Some(alive);
        }
        Ok(alive)
    }

    async fn roundtrip(
        &self,
        connection: u64,
        mut client: Client,
        id: i64,
    ) -> Result<Answer<(Boottime, i64, u64)>, Error> {
        let open = lock(&self.stream)
            .take()
            .filter(|stream| stream.lease == id && stream.connection == connection);
        let mut stream = match open {
            Some(stream) => stream,
            None => {
                // The library keeps the first answer to itself; the one asked for below is ours.
                let (keeper, answers) = client.lease_keep_alive(id).await?;
                Stream {
                    lease: id,
                    connection,
                    keeper,
                    answers,
                }
            }
        };
        let sent_at = Boottime::now();
        stream.keeper.keep_alive().await?;
        let Some(response) = stream.answers.message().await? else {
            return Err(Error::LeaseKeepAliveError("the stream was closed".into()));
        };
        if response.ttl() <= 0 {
            return Err(Error::LeaseKeepAliveError("lease not found".into()));
        }
        let term = response.header().map_or(0, |header| header.raft_term());
        let answer = Answer::read(response.header(), (sent_at, response.ttl(), term));
        *lock(&self.stream) = Some(stream);
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_rounded_up_to_whole_seconds() {
        assert_eq!(seconds(Duration::from_secs(30)), 30);
        assert_eq!(seconds(Duration::from_millis(2001)), 3);
        assert_eq!(seconds(Duration::ZERO), 1);
    }

    #[test]
    fn forgetting_spares_a_newer_lease() {
        let lease = Lease::default();
        lease.adopt(7);
        lease.forget(6);
        assert_eq!(lease.current().map(|alive| alive.id), Some(7));
        lease.forget(7);
        assert_eq!(lease.current(), None);
        assert!(
            lease.knows(7) && !lease.knows(6),
            "a key may still be bound to it"
        );
    }
}
