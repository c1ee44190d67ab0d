//! The wake-ups: watches on the cluster's objects and pods, and the end of a lock that nobody renews.
//!
//! | task | input | output | ended by |
//! |---|---|---|---|
//! | [`run`], one per kind of object | list and watch | counter of changes worth a look; the lock's record as seen | abort, when [`super::Kubernetes`] is dropped |
//! | [`expiry`] | the lock's record | the same counter, when a record has not changed for its ttl | the same |
//!
//! The counter carries no state: after a watch is lost it counts up once all are back, which sends the reader to
//! a fresh read. A watch that the server ends in time (all are asked to, every few minutes) goes on where it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde::Deserialize;
use tokio::{
    sync::watch as signal,
    time::{Instant, sleep, timeout},
};

use super::{
    layout::{Kind, Layout},
    lock,
    object::{self, Object, Place, Record},
    observed::Observed,
    pool::{self, Pool, Server, jittered},
};
use crate::{clock::Boottime, dcs::DcsError};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(1);
/// The server ends a watch after this long; one that outlives it is dead.
const LIFE: Duration = Duration::from_secs(120);
/// A line longer than this is none of the API server's.
const MAX_LINE: usize = 16 << 20;

/// What all watches of one member share.
pub(super) struct Shared {
    pub(super) pool: Arc<Pool>,
    pub(super) layout: Layout,
    pub(super) changes: signal::Sender<u64>,
    pub(super) observed: signal::Sender<Observed>,
    /// How many watches there are, and how many are up.
    pub(super) all: usize,
    pub(super) up: AtomicUsize,
}

impl Shared {
    fn wake(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn one_more_is_up(&self) {
        if self.up.fetch_add(1, Ordering::SeqCst) + 1 == self.all {
            self.wake();
        }
    }
}

/// A watch on one kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Topic {
    pub(super) kind: Kind,
    /// The lock is among the objects.
    pub(super) lock: bool,
}

/// Counts up when a lock ends because nobody renewed it: no event of the server's tells.
pub(super) async fn expiry(shared: Arc<Shared>) {
    let mut observed = shared.observed.subscribe();
    loop {
        let ends = observed.borrow_and_update().ends();
        let left = ends.map(|end| end.since(Boottime::now()));
        let over = async {
            match left {
                Some(left) => sleep(left).await,
                None => std::future::pending().await,
            }
        };
        // Cancel-safe: both only wait.
        tokio::select! {
            changed = observed.changed() => if changed.is_err() { return },
            () = over => {
                shared.wake();
                if observed.changed().await.is_err() { return }
            }
        }
    }
}

/// Why a watch ended.
enum End {
    /// The server closed it in time; it goes on from there.
    InTime,
    /// What has happened since is unknown.
    Lost(String),
}

/// Watches for ever. `idle`: silence on the lock's watch after which the server is asked for a sign of life.
pub(super) async fn run(shared: Arc<Shared>, topic: Topic, idle: Duration) {
    let mut backoff = FIRST_BACKOFF;
    let mut was_up = None;
    let what = topic.kind.plural();
    loop {
        let mut watch = Watch {
            shared: &shared,
            topic,
            idle,
            version: String::new(),
            leader_version: Mutex::default(),
            known: BTreeMap::new(),
        };
        let mut established = false;
        let reason = loop {
            let end = watch
                .session(&mut || {
                    if !established {
                        established = true;
                        if was_up == Some(false) {
                            tracing::info!(what, "watch of Kubernetes is back");
                        }
                        shared.one_more_is_up();
                    }
                })
                .await;
            match end {
                End::InTime => {}
                End::Lost(reason) => break reason,
            }
        };
        if established {
            shared.up.fetch_sub(1, Ordering::SeqCst);
            backoff = FIRST_BACKOFF;
        }
        if was_up != Some(false) {
            tracing::warn!(what, because = reason, "watch of Kubernetes lost");
        }
        was_up = Some(false);
        sleep(jittered(backoff)).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

struct Watch<'a> {
    shared: &'a Shared,
    topic: Topic,
    idle: Duration,
    /// Up to where everything was seen; empty: nothing yet.
    version: String,
    /// Version of the lock's object as the watch last showed it.
    leader_version: Mutex<String>,
    /// What was seen of each object that matters.
    known: BTreeMap<String, String>,
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: serde_json::Value,
}

impl Watch<'_> {
    /// From the beginning, or from where the last one ended, to the next end.
    async fn session(&mut self, up: &mut (dyn FnMut() + Send)) -> End {
        let server = match self.shared.pool.server().await {
            Ok(server) => server,
            Err(error) => return End::Lost(error.to_string()),
        };
        match self.follow(&server, up).await {
            Ok(()) => End::InTime,
            Err(reason) => {
                self.shared.pool.forget(&server.url);
                End::Lost(reason)
            }
        }
    }

    fn selector(&self) -> String {
        match self.topic.kind {
            // Found by name, whatever its labels.
            Kind::Lease => format!(
                "fieldSelector=metadata.name%3D{}",
                self.shared.layout.name(Place::Leader)
            ),
            _ => self.shared.layout.selector(),
        }
    }

    async fn follow(&mut self, server: &Server, up: &mut (dyn FnMut() + Send)) -> Result<(), String> {
        let path = self.shared.layout.all(self.topic.kind);
        let words = |error: DcsError| error.to_string();
        if self.version.is_empty() {
            let deadline = Instant::now() + PATIENCE;
            let list = self
                .shared
                .pool
                .list(&path, &self.selector(), deadline)
                .await
                .map_err(words)?;
            self.version = list.metadata.resource_version;
            let mut gone: BTreeSet<String> = self.known.keys().cloned().collect();
            for object in &list.items {
                gone.remove(&object.metadata.name);
                self.note(object, true);
            }
            for name in gone {
                self.known.remove(&name);
            }
            let names =
                |object: &Object| self.shared.layout.place(&object.metadata.name) == Some(Place::Leader);
            if self.topic.lock && !list.items.iter().any(names) {
                self.see_lock(None);
            }
        }
        let query = format!(
            "{path}?watch=true&{}&resourceVersion={}&allowWatchBookmarks=true&timeoutSeconds={}",
            self.selector(),
            self.version,
            LIFE.as_secs()
        );
        let body = timeout(PATIENCE, pool::watch(server, &query))
            .await
            .map_err(|_| "no answer".to_owned())?
            .map_err(words)?;
        let Some(body) = body else {
            return Err("the server does not know any more what happened".to_owned());
        };
        up();
        self.listen(body).await
    }

    async fn listen(&mut self, mut body: Body) -> Result<(), String> {
        let over = Instant::now() + LIFE + PATIENCE * 5;
        let mut buffer = BytesMut::new();
        let mut doubtful = false;
        loop {
            let left = over.saturating_duration_since(Instant::now());
            let patience = match self.topic.lock {
                true if doubtful => PATIENCE,
                true => self.idle.min(left),
                false => left,
            };
            match timeout(patience, body.frame()).await {
                Ok(None) => return Ok(()),
                Ok(Some(Err(error))) => return Err(super::access::chain(&error)),
                Ok(Some(Ok(frame))) => {
                    doubtful = false;
                    buffer.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                    while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                        let line = buffer.split_to(end);
                        buffer.advance(1);
                        self.line(&line)?;
                    }
                    if buffer.len() > MAX_LINE {
                        return Err("the server talks without end".to_owned());
                    }
                }
                Err(_) if !self.topic.lock || left.is_zero() => return Err("silent".to_owned()),
                // The lock is renewed all the time: where nothing is heard of it, is there nothing to hear?
                Err(_) => match (self.lock_was_missed().await?, doubtful) {
                    (true, true) => return Err("it does not tell what has happened".to_owned()),
                    (missed, _) => doubtful = missed,
                },
            }
        }
    }

    /// Whether the lock's object is another than the watch has shown.
    async fn lock_was_missed(&self) -> Result<bool, String> {
        let path = self.shared.layout.at(Place::Leader);
        let deadline = Instant::now() + PATIENCE;
        let object = self
            .shared
            .pool
            .get(&path, deadline)
            .await
            .map_err(|error| error.to_string())?;
        let shown = object.filter(|object| self.is_selected(object));
        let version = shown
            .map(|object| object.metadata.resource_version)
            .unwrap_or_default();
        Ok(version != *lock(&self.leader_version))
    }

    /// Whether the watch is about it: an object that somebody else made may not have our labels yet.
    fn is_selected(&self, object: &Object) -> bool {
        let has = |(name, value): (&String, &String)| object.metadata.labels.get(name) == Some(value);
        self.topic.kind == Kind::Lease || self.shared.layout.labels.iter().all(has)
    }

    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let event: Event =
            serde_json::from_slice(line).map_err(|error| format!("not understood: {error}"))?;
        if event.kind == "ERROR" {
            let message = event.object["message"].as_str().unwrap_or("error");
            return Err(message.to_owned());
        }
        let object: Object =
            serde_json::from_value(event.object).map_err(|error| format!("not understood: {error}"))?;
        self.version.clone_from(&object.metadata.resource_version);
        match event.kind.as_str() {
            "ADDED" | "MODIFIED" => self.note(&object, false),
            "DELETED" => {
                let name = &object.metadata.name;
                if self.topic.lock && self.shared.layout.place(name) == Some(Place::Leader) {
                    self.see_lock(None);
                }
                if self.known.remove(name).is_some_and(|was| !was.is_empty()) {
                    self.shared.wake();
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn see_lock(&self, object: Option<&Object>) {
        let version = object
            .map(|object| object.metadata.resource_version.clone())
            .unwrap_or_default();
        *lock(&self.leader_version) = version;
        let record = object.and_then(|object| Record::of(object, self.shared.layout.mode.form()));
        let now = Boottime::now();
        self.shared
            .observed
            .send_if_modified(|observed| observed.note(record.as_ref(), now));
    }

    /// `first`: it was so before we looked.
    fn note(&mut self, object: &Object, first: bool) {
        let name = &object.metadata.name;
        let digest = match (self.topic.kind, self.shared.layout.place(name)) {
            (Kind::Pod, _) => object.member().map_or_else(String::new, |_| "member".to_owned()),
            (kind, Some(place)) if self.shared.layout.mode.kind(place) == kind => {
                if place == Place::Leader {
                    self.see_lock(Some(object));
                }
                object::digest(place, object, self.shared.layout.mode.form())
            }
            _ => return,
        };
        let before = self
            .known
            .insert(name.clone(), digest.clone())
            .unwrap_or_default();
        if before != digest && !first {
            self.shared.wake();
        }
    }
}
