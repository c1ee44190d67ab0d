//! The Consul backend (contract: DCS layout §7), over its HTTP API.
//!
//! Here: options, the [`Dcs`] face and the plain keys. Beside it: `http` (one question to the agent, and what its answer
//! means), `txn` (all or nothing), `session` (one per member), `lock` (leader key), `service` (the registration in
//! Consul's catalog), `watch` (the wake-ups).
//!
//! Whatever decides is a transaction or a read with `consistent`, which a quorum answers; `consul.consistency` is about
//! the look at the cluster alone. Time budgets are those of etcd: a plain call has `retry_timeout` in all, one that takes
//! or keeps the lock `min(retry_timeout, ttl / 3)`. Nothing in here renews the session by itself.
//!
//! The requests are our own: the one crate there is (consulrs) brings a second generation of HTTP and TLS with it.

mod http;
mod lock;
mod service;
mod session;
mod txn;
mod watch;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ::http::{Method, StatusCode};
use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::Value;
use tokio::{sync::watch as signal, task::JoinHandle, time::Instant};

pub use self::service::Service;
use self::{
    http::{Agent, Ask, Reply},
    service::Registrar,
    session::Session,
    txn::{Outcome, Step},
};
use super::{Dcs, DcsError, Key, Lock, When, Written, dial::Place};
use crate::{
    model::{Cluster, Entry, Version},
    tls::client::Tls,
};

const PORT: u16 = 8500;

/// How fresh a look at the cluster is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Consistency {
    /// A quorum agrees that who answers leads.
    #[default]
    Consistent,
    /// Who answers believes that it leads.
    Default,
}

/// Everything the backend needs to know. `Debug` hides the token.
#[derive(Clone)]
pub struct Options {
    /// The agent, `host:port`; port 8500 unless given.
    pub host: String,
    /// Whether it speaks TLS, and how.
    pub tls: Option<Tls>,
    /// ACL token.
    pub token: Option<String>,
    /// Datacenter; `None`: the agent's own.
    pub dc: Option<String>,
    /// Of a look at the cluster.
    pub consistency: Consistency,
    /// Health checks of the agent's node that end the session when they fail.
    pub checks: Vec<String>,
    /// Whether, and how, this member is registered as a service.
    pub service: Option<Service>,
    /// Host under which others reach this member; for people who look at Consul's catalog.
    pub address: String,
    /// First part of the base path (default elsewhere: `service`).
    pub namespace: String,
    /// Name of the cluster, second part of the base path.
    pub scope: String,
    /// Our name.
    pub name: String,
    /// After this time without a renewal the lock is over.
    pub ttl: Duration,
    /// Longest time a call may take.
    pub retry_timeout: Duration,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("host", &self.host)
            .field("tls", &self.tls)
            .field("dc", &self.dc)
            .field("consistency", &self.consistency)
            .field("base", &self.base())
            .field("name", &self.name)
            .field("ttl", &self.ttl)
            .field("retry_timeout", &self.retry_timeout)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// Base path `<namespace>/<scope>/`, without a slash in front.
    #[must_use]
    pub fn base(&self) -> String {
        super::base_path(&self.namespace, &self.scope)[1..].to_owned()
    }
}

/// How a call ends without a value.
#[derive(Debug)]
enum Failure {
    /// This session does not exist any more.
    SessionGone(String),
    /// A condition did not hold after an earlier try had broken off with this error: perhaps our own success.
    Unsure(DcsError),
    /// Could not ask.
    Dcs(DcsError),
}

impl From<DcsError> for Failure {
    fn from(error: DcsError) -> Self {
        Self::Dcs(error)
    }
}

impl From<Failure> for DcsError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Dcs(error) | Failure::Unsure(error) => error,
            Failure::SessionGone(session) => Self::Answer {
                endpoint: "consul".into(),
                reason: format!("session {session} vanished again at once"),
            },
        }
    }
}

/// Whether a predecessor of ours (a process of this name that has ended) left the lock behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inherited {
    /// The store has not been read yet.
    Unknown,
    /// It did, under this session.
    Lease(i64),
    /// It did not.
    Nothing,
}

/// What changes at run time.
#[derive(Debug, Clone, Copy)]
struct Timing {
    ttl: Duration,
    retry_timeout: Duration,
}

/// A key as Consul has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stored {
    /// Relative to the cluster's base.
    path: String,
    value: String,
    created: u64,
    modified: u64,
    session: Option<String>,
}

impl Stored {
    fn lease(&self) -> i64 {
        self.session.as_deref().map_or(0, session::lease)
    }
}

/// The same on the wire.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pair {
    key: String,
    value: Option<String>,
    create_index: u64,
    modify_index: u64,
    session: Option<String>,
}

/// One member's connection to Consul. Dropping it ends the watch; the session is left to expire.
pub struct Consul {
    base: String,
    scope: String,
    name: String,
    /// The node our session belongs to.
    node: String,
    address: String,
    dc: Option<String>,
    consistency: Consistency,
    checks: Vec<String>,
    agent: Arc<Agent>,
    timing: Mutex<Timing>,
    session: Session,
    /// Value and session of the last successful write of our member key, as long as no read contradicted it.
    member: Mutex<Option<(String, String)>>,
    /// Session the leader key was last proven to be bound to, while it is ours.
    held: Mutex<Option<String>>,
    inherited: Mutex<Inherited>,
    registrar: Option<Registrar>,
    changes: signal::Sender<u64>,
    watcher: JoinHandle<()>,
}

impl fmt::Debug for Consul {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consul")
            .field("base", &self.base)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Drop for Consul {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// A poisoned lock only means that another task panicked between two assignments of plain data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Consul {
    /// Checks the options and starts watching. Connects when first needed; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`DcsError::Config`] if the options can never work.
    pub fn new(options: Options) -> Result<Self, DcsError> {
        if options.name.is_empty() || options.scope.is_empty() {
            return Err(DcsError::Config(
                "consul: scope and name must not be empty".into(),
            ));
        }
        let base = options.base();
        let place = Place::parse(&options.host, PORT)
            .ok_or_else(|| DcsError::Config(format!("consul: {:?} is no host:port", options.host)))?;
        let agent = Arc::new(Agent::new(place, options.tls, options.token.as_deref())?);
        let (changes, _) = signal::channel(0);
        let watched = path_of(
            "/v1/kv/",
            &base,
            &[("recurse", None), ("dc", options.dc.as_deref())],
        );
        let watcher = tokio::spawn(watch::run(
            Arc::clone(&agent),
            watched,
            base.clone(),
            changes.clone(),
            options.ttl,
        ));
        let registrar = options
            .service
            .map(|service| Registrar::new(service, &options.scope, &options.name));
        Ok(Self {
            base,
            node: format!("howdah-{}-{}", options.scope, options.name),
            scope: options.scope,
            name: options.name,
            address: options.address,
            dc: options.dc,
            consistency: options.consistency,
            checks: options.checks,
            agent,
            timing: Mutex::new(Timing {
                ttl: options.ttl,
                retry_timeout: options.retry_timeout,
            }),
            session: Session::default(),
            member: Mutex::new(None),
            held: Mutex::new(None),
            inherited: Mutex::new(Inherited::Unknown),
            registrar,
            changes,
            watcher,
        })
    }

    fn timing(&self) -> Timing {
        *lock(&self.timing)
    }

    /// Deadline of a plain call.
    fn deadline(&self) -> Instant {
        Instant::now() + self.timing().retry_timeout
    }

    /// Deadline of a call that takes or keeps the lock.
    fn lock_deadline(&self) -> Instant {
        let timing = self.timing();
        let third = (timing.ttl / 3).max(Duration::from_millis(300));
        Instant::now() + timing.retry_timeout.min(third)
    }

    fn key(&self, relative: &str) -> String {
        format!("{}{relative}", self.base)
    }

    fn member_key(&self) -> String {
        format!("{}members/{}", self.base, self.name)
    }

    /// A path with the datacenter and these parameters.
    fn query(&self, path: &str, more: &[(&str, Option<&str>)]) -> String {
        let mut parameters = more.to_vec();
        parameters.push(("dc", self.dc.as_deref()));
        path_of(path, "", &parameters)
    }

    async fn put(&self, path: String, body: String, deadline: Instant) -> Result<Reply, DcsError> {
        let ask = Ask {
            method: Method::PUT,
            path,
            body: body.into(),
        };
        self.agent.ask(&ask, deadline).await
    }

    /// Carries out all steps or none; `None` if a condition did not hold, else the raft index.
    ///
    /// If an earlier try broke off after it may have been executed, "refused" proves nothing (the refusal may be
    /// our own success), and the answer is that earlier error.
    async fn transact(&self, steps: &[Step], deadline: Instant) -> Result<Option<u64>, Failure> {
        let path = self.query("/v1/txn", &[]);
        let reply = self.put(path, txn::body(steps), deadline).await?;
        let body: Value = serde_json::from_slice(&reply.body).map_err(|_| self.nonsense(&reply))?;
        let outcome = txn::outcome(reply.status == StatusCode::OK, steps, &body);
        match (outcome.ok_or_else(|| self.nonsense(&reply))?, reply.broken) {
            (Outcome::Done(index), _) => Ok(Some(index)),
            (Outcome::Refused, Some(error)) => Err(Failure::Unsure(error)),
            (Outcome::Refused, None) => Ok(None),
            (Outcome::SessionGone, _) => {
                let session = steps.iter().find_map(|step| match step {
                    Step::Lock(_, _, session) => Some(session.clone()),
                    _ => None,
                });
                Err(Failure::SessionGone(session.unwrap_or_default()))
            }
        }
    }

    fn nonsense(&self, reply: &Reply) -> DcsError {
        DcsError::Answer {
            endpoint: self.agent.endpoint(),
            reason: format!("not what Consul says: {:.200}", reply.text()),
        }
    }

    /// A read that only a leader with a quorum answers.
    async fn read(&self, key: &str, recurse: bool, deadline: Instant) -> Result<Vec<Stored>, DcsError> {
        let reply = self
            .agent
            .ask(&self.look(key, recurse, Consistency::Consistent), deadline)
            .await?;
        self.stored(&reply)
    }

    async fn read_all(&self, deadline: Instant) -> Result<Vec<Stored>, DcsError> {
        self.read("", true, deadline).await
    }

    fn look(&self, key: &str, recurse: bool, consistency: Consistency) -> Ask {
        let mut parameters = vec![("dc", self.dc.as_deref())];
        if recurse {
            parameters.push(("recurse", None));
        }
        if consistency == Consistency::Consistent {
            parameters.push(("consistent", None));
        }
        Ask {
            method: Method::GET,
            path: path_of("/v1/kv/", &self.key(key), &parameters),
            body: bytes::Bytes::new(),
        }
    }

    fn stored(&self, reply: &Reply) -> Result<Vec<Stored>, DcsError> {
        stored(reply, &self.base).ok_or_else(|| self.nonsense(reply))
    }

    async fn put_member(&self, value: &str, deadline: Instant) -> Result<(), Failure> {
        let session = self.obtain(deadline).await?.id;
        let unchanged = lock(&self.member)
            .as_ref()
            .is_some_and(|(old, bound)| old == value && *bound == session);
        if self.session.due(self.timing().ttl) {
            self.renew_session(&session, deadline).await?;
        }
        if unchanged {
            return Ok(());
        }
        let put = Step::Lock(self.member_key(), value.to_owned(), session.clone());
        let done = match self.transact(std::slice::from_ref(&put), deadline).await {
            Err(Failure::Unsure(_)) => None,
            done => done?,
        };
        if done.is_none() {
            // Bound to a session that is not ours any more.
            let again = [Step::Delete(self.member_key()), put];
            self.transact(&again, deadline).await?;
        }
        *lock(&self.member) = Some((value.to_owned(), session));
        Ok(())
    }

    /// Only what was there before our first word can be a predecessor's. Its lock and its member key hang on one
    /// session; a lock alone is a process of our name that has just begun.
    fn note_inheritance(&self, entries: &[Stored]) {
        let mut inherited = lock(&self.inherited);
        if *inherited != Inherited::Unknown {
            return;
        }
        let member = format!("members/{}", self.name);
        let leader = entries
            .iter()
            .find(|entry| entry.path == "leader" && entry.value == self.name);
        // Who goes on with a predecessor's session is the only one of its name: init started it in the other's place.
        let left = leader.filter(|leader| {
            self.session.is_adopted()
                || entries
                    .iter()
                    .any(|entry| entry.path == member && entry.session == leader.session)
        });
        *inherited = left.map_or(Inherited::Nothing, |leader| Inherited::Lease(leader.lease()));
    }

    /// A read that shows our member key missing or changed makes the next touch write it again.
    fn check_member(&self, entries: &[Stored]) {
        let path = format!("members/{}", self.name);
        let mut last = lock(&self.member);
        let intact = last.as_ref().is_some_and(|(value, session)| {
            entries.iter().any(|entry| {
                entry.path == path && entry.value == *value && entry.session.as_ref() == Some(session)
            })
        });
        if !intact {
            *last = None;
        }
    }
}

/// `None` if it is not what Consul says.
fn stored(reply: &Reply, base: &str) -> Option<Vec<Stored>> {
    // Consul's own 404 has no text and an index. Somebody else's is no proof that there is nothing.
    if reply.status == StatusCode::NOT_FOUND {
        return (reply.index > 0 && reply.body.is_empty()).then(Vec::new);
    }
    let pairs: Vec<Pair> = serde_json::from_slice(&reply.body).ok()?;
    let stored = |pair: Pair| {
        let value = STANDARD.decode(pair.value.unwrap_or_default()).ok()?;
        Some(Stored {
            path: pair.key.strip_prefix(base)?.to_owned(),
            value: String::from_utf8_lossy(&value).into_owned(),
            created: pair.create_index,
            modified: pair.modify_index,
            session: pair.session.filter(|session| !session.is_empty()),
        })
    };
    // All of it or nothing: what was not asked for is the answer to something else.
    pairs.into_iter().map(stored).collect()
}

/// A path whose key and parameters are encoded; parameters with a name of two values are left out if they have none.
fn path_of(prefix: &str, key: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let mut path = format!("{prefix}{}", encoded(key));
    let mut separator = '?';
    for (name, value) in parameters {
        let text = match value {
            Some(value) => format!("{name}={}", encoded(value)),
            None if *name == "dc" => continue,
            None => (*name).to_owned(),
        };
        path.push(separator);
        path.push_str(&text);
        separator = '&';
    }
    path
}

fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _fits = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[async_trait]
impl Dcs for Consul {
    async fn cluster(&self) -> Result<Cluster, DcsError> {
        let ask = self.look("", true, self.consistency);
        let reply = self.agent.ask(&ask, self.deadline()).await?;
        let stored = self.stored(&reply)?;
        self.check_member(&stored);
        self.note_inheritance(&stored);
        let entry = |stored: Stored| Entry {
            lease: stored.lease(),
            path: stored.path,
            value: stored.value,
            version: Version(stored.modified),
        };
        let entries: Vec<Entry> = stored.into_iter().map(entry).collect();
        Ok(super::view(&entries))
    }

    async fn acquire(&self) -> Result<Lock, DcsError> {
        Ok(self.take_lock(self.lock_deadline()).await?)
    }

    async fn renew(&self) -> Result<Lock, DcsError> {
        Ok(self.keep_lock(self.lock_deadline()).await?)
    }

    async fn release(&self, status: Option<&str>) -> Result<(), DcsError> {
        Ok(self.drop_lock(status, self.deadline()).await?)
    }

    async fn touch_member(&self, value: &str) -> Result<(), DcsError> {
        let deadline = self.deadline();
        match self.put_member(value, deadline).await {
            Err(Failure::SessionGone(session)) => {
                self.session.forget(&session);
                self.put_member(value, deadline).await?;
            }
            done => done?,
        }
        if let Some(registrar) = &self.registrar {
            registrar.follow(&self.agent, value, self.timing().ttl).await;
        }
        Ok(())
    }

    async fn remove_member(&self) -> Result<(), DcsError> {
        *lock(&self.member) = None;
        self.transact(&[Step::Delete(self.member_key())], self.deadline())
            .await?;
        Ok(())
    }

    async fn write(&self, key: Key, value: &str, when: When) -> Result<Written, DcsError> {
        let (key, value) = (self.key(key.path()), value.to_owned());
        let step = match when {
            When::Always => Step::Set(key, value),
            When::Absent => Step::Swap(key, value, 0),
            // 0 would mean that there is none; no key has that version.
            When::Version(Version(0)) => return Ok(Written::Refused),
            When::Version(Version(version)) => Step::Swap(key, value, version),
        };
        let done = self.transact(&[step], self.deadline()).await?;
        Ok(done.map_or(Written::Refused, |index| Written::Yes(Version(index))))
    }

    async fn delete(&self, key: Key, when: When) -> Result<Written, DcsError> {
        let key = self.key(key.path());
        let condition = match when {
            When::Always => None,
            When::Absent => Some(Step::Absent(key.clone())),
            When::Version(Version(version)) => Some(Step::Unchanged(key.clone(), version)),
        };
        let steps: Vec<Step> = condition.into_iter().chain([Step::Delete(key)]).collect();
        let done = self.transact(&steps, self.deadline()).await?;
        Ok(done.map_or(Written::Refused, |index| Written::Yes(Version(index))))
    }

    async fn adopt(&self, lease: i64) {
        self.session.adopt(lease);
    }

    async fn set_timing(&self, ttl: Duration, retry_timeout: Duration) {
        let old = std::mem::replace(&mut *lock(&self.timing), Timing { ttl, retry_timeout });
        if old.ttl != ttl {
            // The old session is left to expire: ending it would take the leader key with it.
            self.session.abandon();
        }
    }

    fn changes(&self) -> signal::Receiver<u64> {
        self.changes.subscribe()
    }

    fn kind(&self) -> &'static str {
        "consul"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_parameters_are_encoded() {
        assert_eq!(
            path_of(
                "/v1/kv/",
                "service/a b/",
                &[("recurse", None), ("dc", Some("x&y"))]
            ),
            "/v1/kv/service/a%20b/?recurse&dc=x%26y"
        );
        assert_eq!(path_of("/v1/txn", "", &[("dc", None)]), "/v1/txn");
    }

    #[test]
    fn what_consul_stores_is_read_relative_to_the_cluster() {
        let body = r#"[{"Key":"service/demo/leader","Value":"YQ==","CreateIndex":7,"ModifyIndex":9,"Session":"x"},
            {"Key":"service/demo/","Value":null,"CreateIndex":1,"ModifyIndex":1}]"#;
        let reply = |status, body: &'static str| Reply {
            status,
            index: if body.contains('<') { 0 } else { 9 },
            body: body.into(),
            broken: None,
        };
        let found = stored(&reply(StatusCode::OK, body), "service/demo/").unwrap_or_default();
        let paths: Vec<&str> = found.iter().map(|stored| stored.path.as_str()).collect();
        assert_eq!(paths, ["leader", ""]);
        assert_eq!(
            (
                found[0].value.as_str(),
                found[0].modified,
                found[0].session.as_deref()
            ),
            ("a", 9, Some("x"))
        );
        assert_eq!(stored(&reply(StatusCode::NOT_FOUND, ""), "s/"), Some(Vec::new()));
        for (status, nonsense) in [
            (StatusCode::OK, "<html>"),
            (StatusCode::NOT_FOUND, "<html>not here</html>"),
            (StatusCode::OK, "{}"),
            (
                StatusCode::OK,
                r#"[{"Key":"service/other","Value":"","CreateIndex":1,"ModifyIndex":1}]"#,
            ),
            (
                StatusCode::OK,
                r#"[{"Key":"s/leader","Value":"=","CreateIndex":1,"ModifyIndex":1}]"#,
            ),
        ] {
            assert_eq!(stored(&reply(status, nonsense), "s/"), None, "{nonsense}");
        }
    }
}
