//! The endpoints, and how one question is put to them: one client per endpoint, connected when needed; the endpoint
//! that answered last is asked first; trouble moves on to the next one.
//!
//! Sharing out the budget. With several endpoints the first round gives each `budget / n`, but at most one second
//! (and at least 0.25 s), so that an endpoint that swallows packets costs little; later rounds, when everybody is
//! slow, give `budget / n`, at least one second. A single endpoint is tried up to three times. (Contract: DCS layout
//! §5 has one second as the least; over an open gRPC connection a healthy cluster needs milliseconds, and
//! a short lock budget must still reach all endpoints.)

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{Client, Error, ResponseHeader};
use tokio::time::{Instant, sleep, timeout};

use super::{
    connect::Settings,
    fault::{Failure, Fault, classify, words},
    lock,
};
use crate::{clock::Boottime, dcs::DcsError};

const FIRST_BACKOFF: Duration = Duration::from_millis(20);
const MAX_BACKOFF: Duration = Duration::from_secs(1);
const MAX_REAUTHENTICATIONS: u32 = 2;

/// A client, and a number that no other connection has had.
type Connected = (u64, Client);

struct Slot {
    url: String,
    client: Mutex<Option<Connected>>,
}

/// The endpoints of one etcd cluster.
pub(super) struct Pool {
    settings: Settings,
    slots: Vec<Slot>,
    current: AtomicUsize,
    connections: AtomicU64,
    /// Highest raft term seen, by cluster id.
    terms: Mutex<HashMap<u64, u64>>,
}

/// What a server said, with what the stale-node guard needs to judge it.
pub(super) struct Answer<T> {
    value: T,
    cluster: u64,
    term: u64,
    guarded: bool,
}

impl<T> Answer<T> {
    /// Answer of a read or a keepalive: a node left behind could give it.
    pub(super) fn read(header: Option<&ResponseHeader>, value: T) -> Self {
        Self {
            value,
            cluster: header.map_or(0, ResponseHeader::cluster_id),
            term: header.map_or(0, ResponseHeader::raft_term),
            guarded: true,
        }
    }

    /// Answer of a write: a quorum has agreed to it, there is nothing to doubt.
    pub(super) fn written(header: Option<&ResponseHeader>, value: T) -> Self {
        Self {
            guarded: false,
            ..Self::read(header, value)
        }
    }
}

/// A successful question.
pub(super) struct Asked<T> {
    /// The answer.
    pub(super) value: T,
    /// Error of an earlier try that may have been executed nevertheless.
    pub(super) broken: Option<DcsError>,
}

/// Where one question stands.
struct Progress {
    deadline: Instant,
    budget: Duration,
    tries: usize,
    behind: usize,
    reauthentications: u32,
    backoff: Duration,
    last: Option<DcsError>,
    broken: bool,
}

impl Progress {
    fn until(deadline: Instant) -> Self {
        Self {
            deadline,
            budget: deadline.saturating_duration_since(Instant::now()),
            tries: 0,
            behind: 0,
            reauthentications: 0,
            backoff: FIRST_BACKOFF,
            last: None,
            broken: false,
        }
    }
}

impl Pool {
    pub(super) fn new(urls: Vec<String>, settings: Settings) -> Result<Self, DcsError> {
        if urls.is_empty() {
            return Err(DcsError::Config("etcd: no endpoint given".into()));
        }
        for url in &urls {
            let parsed: Result<http::Uri, _> = url.parse();
            if !parsed.is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty())) {
                return Err(DcsError::Config(format!(
                    "etcd: {url:?} is no endpoint (host:port)"
                )));
            }
        }
        let slot = |url| Slot {
            url,
            client: Mutex::new(None),
        };
        Ok(Self {
            settings,
            slots: urls.into_iter().map(slot).collect(),
            current: AtomicUsize::new(0),
            connections: AtomicU64::new(0),
            terms: Mutex::new(HashMap::new()),
        })
    }

    /// The endpoint to be asked next.
    pub(super) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed) % self.slots.len()
    }

    pub(super) fn url(&self, index: usize) -> &str {
        &self.slots[index % self.slots.len()].url
    }

    /// Moves on, unless somebody else already has.
    pub(super) fn rotate(&self, from: usize) {
        let next = (from + 1) % self.slots.len();
        let _ = self
            .current
            .compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Closes the connection; the next call opens (and authenticates) a new one.
    pub(super) fn forget(&self, index: usize) {
        *lock(&self.slots[index % self.slots.len()].client) = None;
    }

    /// The client of an endpoint, connected now if it was not.
    pub(super) async fn client(&self, index: usize, patience: Duration) -> Result<Connected, Error> {
        let slot = &self.slots[index % self.slots.len()];
        if let Some(client) = lock(&slot.client).clone() {
            return Ok(client);
        }
        let client = self.settings.connect(&slot.url, patience).await?;
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        *lock(&slot.client) = Some((number, client.clone()));
        Ok((number, client))
    }

    /// Puts a question (to the connection of that number) until somebody answers it, the answer is definite, or the deadline is reached.
    pub(super) async fn ask<T, F, R>(&self, deadline: Instant, question: F) -> Result<Asked<T>, Failure>
    where
        F: Fn(u64, Client) -> R,
        R: Future<Output = Result<Answer<T>, Error>>,
    {
        let mut progress = Progress::until(deadline);
        loop {
            let index = self.current();
            let patience = self.patience(&progress);
            if patience.is_zero() {
                return Err(Failure::Dcs(progress.last.unwrap_or_else(|| DcsError::Timeout {
                    endpoint: self.url(index).to_owned(),
                    waited: progress.budget,
                })));
            }
            let attempt = async {
                let (number, client) = self.client(index, patience).await.map_err(|e| (e, false))?;
                question(number, client).await.map_err(|e| (e, true))
            };
            match timeout(patience, attempt).await {
                Ok(Ok(answer)) => {
                    if self.trusted(index, &answer, &mut progress) {
                        return Ok(Asked {
                            value: answer.value,
                            broken: progress.last.filter(|_| progress.broken),
                        });
                    }
                    self.rotate(index);
                }
                Ok(Err((error, asked))) => self.digest(index, &error, asked, &mut progress)?,
                Err(_) => {
                    self.forget(index);
                    self.rotate(index);
                    progress.broken = true;
                    progress.last = Some(DcsError::Timeout {
                        endpoint: self.url(index).to_owned(),
                        waited: patience,
                    });
                }
            }
            self.pause(&mut progress).await;
        }
    }

    /// Time for the next try; zero if there is none left.
    fn patience(&self, progress: &Progress) -> Duration {
        const LEAST: Duration = Duration::from_millis(250);
        const SECOND: Duration = Duration::from_secs(1);
        let left = progress.deadline.saturating_duration_since(Instant::now());
        if left < Duration::from_millis(5) {
            return Duration::ZERO;
        }
        let count = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        let share = progress.budget / count;
        let wanted = if count == 1 {
            (progress.budget / 3).max(SECOND)
        } else if progress.tries < self.slots.len() {
            share.clamp(LEAST, SECOND)
        } else {
            share.max(SECOND)
        };
        wanted.min(left)
    }

    /// After each whole round a little rest, growing, with some chance in it (contract: DCS layout §5).
    async fn pause(&self, progress: &mut Progress) {
        progress.tries += 1;
        if !progress.tries.is_multiple_of(self.slots.len()) {
            return;
        }
        let left = progress.deadline.saturating_duration_since(Instant::now());
        sleep(jittered(progress.backoff).min(left)).await;
        progress.backoff = (progress.backoff * 2).min(MAX_BACKOFF);
    }

    /// The stale-node guard (contract: DCS layout §6): an answer from a smaller raft term than one seen before is
    /// not believed while another endpoint may know better. When a whole round brought nothing better, the store
    /// itself has gone back (wiped or restored from a backup) and is believed.
    fn trusted<T>(&self, index: usize, answer: &Answer<T>, progress: &mut Progress) -> bool {
        let mut terms = lock(&self.terms);
        let highest = terms.entry(answer.cluster).or_insert(answer.term);
        if answer.term >= *highest || !answer.guarded {
            *highest = answer.term.max(*highest);
            return true;
        }
        progress.behind += 1;
        if progress.behind > self.slots.len() {
            tracing::warn!(
                endpoint = self.url(index),
                from = *highest,
                to = answer.term,
                because = "no endpoint knows the newer raft term",
                "etcd went back in time"
            );
            *highest = answer.term;
            return true;
        }
        progress.last = Some(DcsError::Answer {
            endpoint: self.url(index).to_owned(),
            reason: format!("raft term {} is behind {highest}", answer.term),
        });
        false
    }

    fn digest(
        &self,
        index: usize,
        error: &Error,
        asked: bool,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let endpoint = self.url(index).to_owned();
        let reason = words(error);
        match classify(error) {
            Fault::LeaseGone => return Err(Failure::LeaseGone(0)),
            Fault::Definite if !asked => {
                return Err(Failure::Dcs(DcsError::Transport { endpoint, reason }));
            }
            Fault::Definite | Fault::AuthDisabled => {
                return Err(Failure::Dcs(DcsError::Answer { endpoint, reason }));
            }
            Fault::Credentials => {
                self.forget(index);
                return Err(Failure::Dcs(DcsError::Credentials { endpoint, reason }));
            }
            Fault::Token => {
                tracing::debug!(endpoint, because = reason, "authenticating again");
                self.forget(index);
                progress.reauthentications += 1;
                let error = DcsError::Credentials { endpoint, reason };
                if progress.reauthentications > MAX_REAUTHENTICATIONS {
                    return Err(Failure::Dcs(error));
                }
                progress.last = Some(error);
            }
            Fault::NotReady => {
                self.rotate(index);
                progress.last = Some(DcsError::Answer { endpoint, reason });
            }
            Fault::Broken { sent } => {
                self.forget(index);
                self.rotate(index);
                progress.broken |= sent && asked;
                progress.last = Some(DcsError::Transport { endpoint, reason });
            }
        }
        Ok(())
    }
}

/// `base` plus up to half of it, so that members do not knock in step. The low bits of the clock are chance enough.
pub(super) fn jittered(base: Duration) -> Duration {
    let chance = u32::try_from((Boottime::now().0 >> 8) % 128).unwrap_or(0);
    base + base * chance / 256
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(endpoints: usize) -> Pool {
        let settings = Settings::default();
        let urls = (0..endpoints).map(|i| format!("http://h{i}:2379")).collect();
        Pool::new(urls, settings).unwrap_or_else(|error| unreachable!("{error}"))
    }

    fn progress(tries: usize, budget: Duration) -> Progress {
        Progress {
            tries,
            budget,
            ..Progress::until(Instant::now() + budget)
        }
    }

    fn answer(term: u64) -> Answer<()> {
        Answer {
            value: (),
            cluster: 1,
            term,
            guarded: true,
        }
    }

    #[test]
    fn an_answer_from_an_older_term_is_believed_only_after_a_whole_round() {
        let pool = pool(2);
        let mut asked = progress(0, Duration::from_secs(1));
        assert!(pool.trusted(0, &answer(5), &mut asked));
        assert!(!pool.trusted(0, &answer(4), &mut asked));
        assert!(!pool.trusted(1, &answer(4), &mut asked));
        assert!(pool.trusted(0, &answer(4), &mut asked));
        let mut next = progress(0, Duration::from_secs(1));
        assert!(
            pool.trusted(0, &answer(4), &mut next),
            "the store went back for good"
        );
    }

    #[test]
    fn a_silent_endpoint_costs_at_most_a_second_of_the_first_round() {
        let second = Duration::from_secs(1);
        assert_eq!(pool(3).patience(&progress(0, second * 10)), second);
        assert_eq!(pool(3).patience(&progress(3, second * 10)), second * 10 / 3);
        assert_eq!(pool(3).patience(&progress(0, second)), second / 3);
        assert_eq!(pool(1).patience(&progress(0, second * 10)), second * 10 / 3);
        assert!(pool(1).patience(&progress(0, second / 2)) <= second / 2);
    }

    #[test]
    fn nonsense_is_no_endpoint() {
        for url in ["http://", "", "http://a b", "http://:1"] {
            assert!(
                Pool::new(vec![url.into()], Settings::default()).is_err(),
                "{url:?}"
            );
        }
        assert!(Pool::new(vec![], Settings::default()).is_err());
        assert!(Pool::new(vec!["http://[::1]:2379".into()], Settings::default()).is_ok());
    }
}
