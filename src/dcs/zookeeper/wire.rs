//! One connection to one server: the first words, requests and their answers in order.
//!
//! A connection belongs to a session and ends with it, but a session outlives its connections: whoever knows its number and
//! its password may go on with it on another one. Whoever breaks off in the middle of an exchange drops the connection.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep, timeout},
};

use super::{
    Failure,
    jute::{self, Change, Reader, code, op, xid},
};
use crate::{
    clock::Boottime,
    dcs::{
        DcsError,
        dial::{Place, Stream, dial},
    },
    tls::client::Tls,
};

/// The server's own limit (`jute.maxbuffer`) is a megabyte; a list of children may be somewhat longer.
const MAX_FRAME: usize = 16 << 20;
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// Shorter tries would give up on a server that is merely busy.
const MIN_TRY: Duration = Duration::from_millis(300);

/// Who may do what with a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    /// Bits: read 1, write 2, create 4, delete 8, admin 16.
    pub permissions: u32,
    /// How somebody is recognised.
    pub scheme: String,
    /// Who.
    pub id: String,
}

/// The servers, and what is said to each first.
pub(super) struct Ensemble {
    places: Vec<Place>,
    tls: Option<Tls>,
    auth: Vec<(String, String)>,
    pub(super) acls: Vec<Acl>,
    /// The one that answered last.
    current: AtomicUsize,
}

/// A session that can be gone on with.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) id: i64,
    password: Vec<u8>,
    /// What was asked for when it was made.
    pub(super) asked: Duration,
    /// What the servers count with.
    pub(super) ttl: Duration,
}

/// A connection.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    ensemble: Arc<Ensemble>,
    endpoint: String,
    next: i32,
}

/// An answer: the newest transaction the server knows, and the record or an error.
pub(super) struct Reply {
    pub(super) zxid: i64,
    pub(super) result: Result<Vec<u8>, i32>,
}

/// One request.
pub(super) enum Ask<'a> {
    Data(&'a str),
    Stat(&'a str),
    Children(&'a str),
    Change(&'a Change),
    All(&'a [Change]),
    Watch(&'a str),
}

impl Ensemble {
    pub(super) fn new(
        places: Vec<Place>,
        tls: Option<Tls>,
        auth: Vec<(String, String)>,
        acls: Vec<Acl>,
    ) -> Self {
        Self {
            places,
            tls,
            auth,
            acls,
            current: AtomicUsize::new(0),
        }
    }

    fn place(&self) -> (usize, &Place) {
        let index = self.current.load(Ordering::Relaxed) % self.places.len();
        (index, &self.places[index])
    }

    /// The server that is asked now, for people.
    pub(super) fn endpoint(&self) -> String {
        self.place().1.to_string()
    }

    /// That server was of no use.
    fn leave(&self, index: usize) {
        let next = (index + 1) % self.places.len();
        let _moved = self
            .current
            .compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Connects until it succeeds or the time is up: to go on with a session, or for a new one of `ttl`. `None`: that
    /// session is over. With it the time when the servers were asked, from which the session counts.
    pub(super) async fn connect(
        self: &Arc<Self>,
        session: Option<&Session>,
        ttl: Duration,
        deadline: Instant,
    ) -> Result<Option<(Wire, Session, Boottime)>, DcsError> {
        let mut backoff = FIRST_BACKOFF;
        let mut tried = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let others = u32::try_from(self.places.len()).unwrap_or(1).clamp(2, 4);
            let within = (left / others).max(MIN_TRY).min(left);
            let (index, place) = self.place();
            let error = match timeout(within, self.connect_to(place, session, ttl)).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(error)) if matches!(error, DcsError::Credentials { .. }) => return Err(error),
                Ok(Err(error)) => error,
                Err(_) => DcsError::Timeout {
                    endpoint: place.to_string(),
                    waited: within,
                },
            };
            self.leave(index);
            tried += 1;
            let pause = if tried % self.places.len() == 0 {
                backoff
            } else {
                Duration::ZERO
            };
            if deadline.saturating_duration_since(Instant::now()) <= pause {
                return Err(error);
            }
            if !pause.is_zero() {
                sleep(pause).await;
                backoff = (backoff * 2).min(MAX_BACKOFF);
            }
        }
    }

    async fn connect_to(
        self: &Arc<Self>,
        place: &Place,
        session: Option<&Session>,
        ttl: Duration,
    ) -> Result<Option<(Wire, Session, Boottime)>, DcsError> {
        let endpoint = place.to_string();
        let trouble = |error: io::Error| transport(&endpoint, &error.to_string());
        let stream = dial(place, self.tls.as_ref()).await.map_err(trouble)?;
        let mut wire = Wire {
            stream,
            ensemble: Arc::clone(self),
            endpoint: endpoint.clone(),
            next: 1,
        };
        let asked = session.map_or(ttl, |session| session.asked);
        let (id, password) = session.map_or((0, &[0; 16][..]), |known| (known.id, &known.password[..]));
        let sent_at = Boottime::now();
        let millis = i32::try_from(asked.as_millis()).unwrap_or(i32::MAX);
        let hello = jute::connect(millis, id, password).bytes();
        wire.send(&hello).await.map_err(trouble)?;
        let answer = wire.receive().await.map_err(trouble)?;
        let greeting = jute::greeting(&answer).ok_or_else(|| transport(&endpoint, "it is no ZooKeeper"))?;
        if greeting.timeout_ms <= 0 || greeting.session == 0 {
            return match session {
                Some(_) => Ok(None),
                None => Err(transport(&endpoint, "it gave no session")),
            };
        }
        wire.introduce().await?;
        let session = Session {
            id: greeting.session,
            password: greeting.password,
            asked,
            ttl: Duration::from_millis(u64::try_from(greeting.timeout_ms).unwrap_or(0)),
        };
        Ok(Some((wire, session, sent_at)))
    }
}

fn transport(endpoint: &str, reason: &str) -> DcsError {
    DcsError::Transport {
        endpoint: endpoint.to_owned(),
        reason: reason.to_owned(),
    }
}

impl Wire {
    async fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        let length = i32::try_from(frame.len()).map_err(io::Error::other)?;
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(frame);
        self.stream.write_all(&bytes).await?;
        self.stream.flush().await
    }

    async fn receive(&mut self) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.stream.read_i32().await?).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(io::Error::other("it is no ZooKeeper, or its answer is too long"));
        }
        let mut frame = vec![0; length];
        self.stream.read_exact(&mut frame).await?;
        Ok(frame)
    }

    /// Shows all credentials.
    async fn introduce(&mut self) -> Result<(), DcsError> {
        let ensemble = Arc::clone(&self.ensemble);
        for (scheme, credential) in &ensemble.auth {
            let body = jute::auth(scheme, credential);
            let frame = jute::request(xid::AUTH, op::AUTH, body);
            // It closes the connection after a refusal.
            let answer = match self.send(&frame).await {
                Ok(()) => self.receive().await,
                Err(error) => Err(error),
            };
            let answer = answer.map_err(|error| transport(&self.endpoint, &error.to_string()))?;
            let mut reader = Reader(&answer);
            match (reader.int(), reader.long(), reader.int()) {
                (Some(_), Some(_), Some(0)) => {}
                (Some(_), Some(_), Some(error)) => {
                    return Err(DcsError::Credentials {
                        endpoint: self.endpoint.clone(),
                        reason: format!("{scheme}: {}", jute::name(error)),
                    });
                }
                _ => return Err(transport(&self.endpoint, "it is no ZooKeeper")),
            }
        }
        Ok(())
    }

    /// Sends all requests and reads all answers, in their order. An error of the connection leaves open what was done.
    pub(super) async fn ask(&mut self, asks: &[Ask<'_>]) -> Result<Vec<Reply>, Failure> {
        let exchanged = self.exchange(asks).await;
        exchanged.map_err(|error| Failure::Broken(transport(&self.endpoint, &error.to_string())))
    }

    async fn exchange(&mut self, asks: &[Ask<'_>]) -> io::Result<Vec<Reply>> {
        let mut numbers = Vec::with_capacity(asks.len());
        for ask in asks {
            let acls = &self.ensemble.acls;
            let (op, body) = match ask {
                Ask::Data(path) => (op::GET_DATA, jute::path(path)),
                Ask::Stat(path) => (op::EXISTS, jute::path(path)),
                Ask::Children(path) => (op::GET_CHILDREN, jute::path(path)),
                Ask::Change(change) => (change.op(), change.record(acls)),
                Ask::All(changes) => (op::MULTI, jute::multi(changes, acls)),
                Ask::Watch(path) => (op::ADD_WATCH, jute::add_watch(path)),
            };
            let number = self.next;
            self.next = self.next.checked_add(1).unwrap_or(1);
            self.send(&jute::request(number, op, body)).await?;
            numbers.push(number);
        }
        let mut replies = Vec::with_capacity(asks.len());
        for number in numbers {
            replies.push(self.reply(number).await?);
        }
        Ok(replies)
    }

    async fn reply(&mut self, number: i32) -> io::Result<Reply> {
        loop {
            let frame = self.receive().await?;
            let mut reader = Reader(&frame);
            let header = (reader.int(), reader.long(), reader.int());
            let (Some(xid), Some(zxid), Some(error)) = header else {
                return Err(io::Error::other("an answer that is none"));
            };
            match xid {
                xid::EVENT | xid::PING => {}
                xid if xid == number => {
                    if matches!(error, code::SESSION_EXPIRED | code::SESSION_MOVED) {
                        return Err(io::Error::other(jute::name(error)));
                    }
                    let result = match error {
                        0 => Ok(reader.0.to_vec()),
                        error => Err(error),
                    };
                    return Ok(Reply { zxid, result });
                }
                _ => return Err(io::Error::other("an answer to something else")),
            }
        }
    }

    /// Asks for a sign of life, which [`Wire::next_event`] reads over.
    pub(super) async fn ping(&mut self) -> io::Result<()> {
        let frame = jute::request(xid::PING, op::PING, jute::Record::default());
        self.send(&frame).await
    }

    /// The next thing the server says: an event, or (`None`) that it lives. Not cancel-safe.
    pub(super) async fn next_event(&mut self) -> io::Result<Option<(jute::Happened, String)>> {
        let frame = self.receive().await?;
        let mut reader = Reader(&frame);
        let header = (reader.int(), reader.long(), reader.int());
        match header {
            (Some(xid::EVENT), Some(_), Some(_)) => {
                let event = jute::event(reader.0).ok_or_else(|| io::Error::other("an event that is none"))?;
                Ok(Some(event))
            }
            (Some(_), Some(_), Some(_)) => Ok(None),
            _ => Err(io::Error::other("an answer that is none")),
        }
    }
}
