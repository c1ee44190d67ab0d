//! The etcd v3 backend (contract: DCS layout §6), over gRPC.
//!
//! Here: options, the [`Dcs`] face and the plain keys. Beside it: `pool` (endpoints, timeouts, the stale-node guard),
//! `connect` (TLS, credentials), `fault` (what an error means), `lease` (one lease per member), `lock` (leader key),
//! `watch` (the wake-ups).
//!
//! Time budgets. A plain call has `retry_timeout` in all. A call that takes or keeps the lock has
//! `min(retry_timeout, ttl / 3)`: whoever renews every `ttl / 3` can then lose a whole call and still has time for a
//! second one before the lease ends. How a budget is shared out among endpoints is told in `pool`.
//!
//! Nothing in here keeps the lease alive by itself: leader key and member key hang on the same lease, so a hidden
//! keepalive would hold the lock of an agent whose loop is dead. Only [`Dcs::renew`], [`Dcs::acquire`] and
//! [`Dcs::touch_member`] extend it; who wants to lose the lock calls [`Dcs::release`].

mod connect;
mod fault;
mod lease;
mod lock;
mod pool;
mod watch;

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp};
use tokio::{sync::watch as signal, task::JoinHandle, time::Instant};

use self::{
    fault::Failure,
    lease::Lease,
    pool::{Answer, Pool},
};
use super::{Dcs, DcsError, Key, Lock, When, Written};
use crate::model::{Cluster, Entry, Version};

/// How to speak to the endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Plain text.
    #[default]
    Http,
    /// TLS.
    Https,
}

/// Everything the backend needs to know. `Debug` hides the password.
#[derive(Clone)]
pub struct Options {
    /// `host:port` each; a whole URL is accepted too and then decides about TLS itself.
    pub endpoints: Vec<String>,
    /// Protocol of endpoints without one.
    pub protocol: Protocol,
    /// User for etcd's own authentication.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<String>,
    /// PEM file with the authorities that may sign the servers' certificates. Default: those of the system.
    pub cacert: Option<PathBuf>,
    /// PEM file with our certificate.
    pub cert: Option<PathBuf>,
    /// PEM file with its key.
    pub key: Option<PathBuf>,
    /// First part of the base path (default elsewhere: `service`).
    pub namespace: String,
    /// Name of the cluster, second part of the base path.
    pub scope: String,
    /// Our name.
    pub name: String,
    /// Life time of the lease; etcd counts in whole seconds, so it is rounded up.
    pub ttl: Duration,
    /// Longest time a call may take.
    pub retry_timeout: Duration,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("endpoints", &self.endpoints)
            .field("protocol", &self.protocol)
            .field("username", &self.username)
            .field("base", &self.base())
            .field("name", &self.name)
            .field("ttl", &self.ttl)
            .field("retry_timeout", &self.retry_timeout)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// Base path `/<namespace>/<scope>/`, duplicate slashes collapsed (contract: DCS layout §1).
    #[must_use]
    pub fn base(&self) -> String {
        super::base_path(&self.namespace, &self.scope)
    }

    fn urls(&self) -> Vec<String> {
        let scheme = match self.protocol {
            Protocol::Http => "http",
            Protocol::Https => "https",
        };
        let url = |endpoint: &String| match endpoint.contains("://") {
            true => endpoint.trim_end_matches('/').to_owned(),
            false => format!("{scheme}://{endpoint}"),
        };
        self.endpoints.iter().map(url).collect()
    }
}

/// Whether a predecessor of ours (a process of this name that has ended) left the lock behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inherited {
    /// The store has not been read yet.
    Unknown,
    /// It did, under this lease.
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

/// One member's connection to etcd. Dropping it ends the watch; the lease is left to expire.
pub struct Etcd {
    base: String,
    name: String,
    pool: Arc<Pool>,
    timing: Mutex<Timing>,
    lease: Lease,
    /// Value and lease of the last successful put of our member key, as long as no read contradicted it.
    member: Mutex<Option<(String, i64)>>,
    /// Lease the leader key was last proven to be bound to, while it is ours.
    held: Mutex<Option<i64>>,
    inherited: Mutex<Inherited>,
    /// See [`Etcd::beside_postgres`].
    beside_postgres: bool,
    changes: signal::Sender<u64>,
    watcher: JoinHandle<()>,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd")
            .field("base", &self.base)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// A poisoned lock only means that another task panicked between two assignments of plain data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Etcd {
    /// Checks the options and starts watching. Connects when first needed; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`DcsError::Config`] if the options can never work.
    pub fn new(options: Options) -> Result<Self, DcsError> {
        if options.name.is_empty() || options.scope.is_empty() {
            return Err(DcsError::Config("etcd: scope and name must not be empty".into()));
        }
        let base = options.base();
        let name = options.name.clone();
        let timing = Timing {
            ttl: options.ttl,
            retry_timeout: options.retry_timeout,
        };
        let pool = Arc::new(Pool::new(options.urls(), connect::Settings::from(&options))?);
        let (changes, _) = signal::channel(0);
        let watcher = tokio::spawn(watch::run(
            Arc::clone(&pool),
            base.clone(),
            changes.clone(),
            (timing.ttl / 10).clamp(Duration::from_millis(500), Duration::from_secs(2)),
        ));
        Ok(Self {
            base,
            name,
            pool,
            timing: Mutex::new(timing),
            lease: Lease::default(),
            member: Mutex::new(None),
            held: Mutex::new(None),
            inherited: Mutex::new(Inherited::Unknown),
            beside_postgres: false,
            changes,
            watcher,
        })
    }

    /// etcd's own leader may run beside our postgres and die with it. The next one extends all leases by their whole
    /// ttl, counted from its election, and on a busy host a second election may follow seconds after the first; a lease
    /// that is shorter by that time lets the lock go as early as it would on a store of its own.
    #[must_use]
    pub fn beside_postgres(mut self) -> Self {
        self.beside_postgres = true;
        let timing = self.timing.get_mut().unwrap_or_else(PoisonError::into_inner);
        timing.ttl = shortened(timing.ttl);
        self
    }

    /// The ttl that the store is asked for where this one is configured.
    #[must_use]
    pub fn lease_ttl(&self, configured: Duration) -> Duration {
        match self.beside_postgres {
            true => shortened(configured),
            false => configured,
        }
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

    fn path(&self, relative: &str) -> String {
        format!("{}{relative}", self.base)
    }

    fn member_path(&self) -> String {
        format!("{}members/{}", self.base, self.name)
    }

    /// Runs a transaction of writes; whether its condition held, and the revision.
    ///
    /// If an earlier try broke off after it may have been executed, "refused" proves nothing (the refusal may be
    /// our own success), and the answer is that earlier error.
    async fn write_txn(&self, deadline: Instant, txn: Txn) -> Result<(bool, u64), Failure> {
        let asked = self
            .pool
            .ask(deadline, move |_, mut client| {
                let txn = txn.clone();
                async move {
                    let response = client.txn(txn).await?;
                    let revision = response.header().map_or(0, |h| h.revision());
                    let value = (response.succeeded(), u64::try_from(revision).unwrap_or(0));
                    Ok(Answer::written(response.header(), value))
                }
            })
            .await?;
        match asked {
            pool::Asked {
                value: (false, _),
                broken: Some(error),
            } => Err(Failure::Unsure(error)),
            asked => Ok(asked.value),
        }
    }

    async fn put_member(&self, value: &str, deadline: Instant) -> Result<(), Failure> {
        let timing = self.timing();
        let lease = self.lease.obtain(&self.pool, timing.ttl, deadline).await?.id;
        let unchanged = lock(&self.member)
            .as_ref()
            .is_some_and(|(old, bound)| old == value && *bound == lease);
        if self.lease.due(timing.ttl) {
            self.lease.keep(&self.pool, lease, timing.ttl, deadline).await?;
        }
        if unchanged {
            return Ok(());
        }
        let put = TxnOp::put(
            self.member_path(),
            value,
            Some(etcd_client::PutOptions::new().with_lease(lease)),
        );
        match self.write_txn(deadline, Txn::new().and_then([put])).await {
            Err(Failure::LeaseGone(_)) => return Err(Failure::LeaseGone(lease)),
            done => done?,
        };
        *lock(&self.member) = Some((value.to_owned(), lease));
        Ok(())
    }

    /// Only what was there before our first word can be a predecessor's. Its lock and its member key hang on one lease;
    /// a lock alone is a process of our name that has just begun.
    fn note_inheritance(&self, entries: &[Entry]) {
        let mut inherited = lock(&self.inherited);
        if *inherited != Inherited::Unknown {
            return;
        }
        let member = format!("members/{}", self.name);
        let leader = entries
            .iter()
            .find(|e| e.path == "leader" && e.value == self.name);
        // Who goes on with a predecessor's lease is the only one of its name: init started it in the other's place.
        let adopted = self.lease.current().is_some();
        let left = leader.filter(|leader| {
            adopted
                || entries
                    .iter()
                    .any(|e| e.path == member && e.lease == leader.lease)
        });
        *inherited = left.map_or(Inherited::Nothing, |leader| Inherited::Lease(leader.lease));
    }

    /// A read that shows our member key missing or changed makes the next touch write it again.
    fn check_member(&self, entries: &[Entry]) {
        let path = format!("members/{}", self.name);
        let mut last = lock(&self.member);
        let intact = last.as_ref().is_some_and(|(value, lease)| {
            let same = |e: &&Entry| e.path == path && e.value == *value && e.lease == *lease;
            entries.iter().any(|e| same(&e))
        });
        if !intact {
            *last = None;
        }
    }
}

fn shortened(ttl: Duration) -> Duration {
    ttl - (ttl / 5).min(Duration::from_secs(4))
}

fn conditions(path: &str, when: When) -> Vec<Compare> {
    match when {
        When::Always => vec![],
        When::Absent => vec![Compare::create_revision(path, CompareOp::Equal, 0)],
        When::Version(Version(version)) => vec![Compare::mod_revision(
            path,
            CompareOp::Equal,
            // No revision is that large: the condition then fails, as it should.
            i64::try_from(version).unwrap_or(i64::MAX),
        )],
    }
}

#[async_trait]
impl Dcs for Etcd {
    async fn cluster(&self) -> Result<Cluster, DcsError> {
        let prefix = self.base.clone();
        let asked = self
            .pool
            .ask(self.deadline(), move |_, client| {
                let prefix = prefix.clone();
                async move {
                    let mut kv = client.kv_client().max_decoding_message_size(64 << 20);
                    let options = GetOptions::new().with_prefix();
                    let response = kv.get(prefix.clone(), Some(options)).await?;
                    let entry = |kv: &etcd_client::KeyValue| {
                        let key = String::from_utf8_lossy(kv.key());
                        Some(Entry {
                            path: key.strip_prefix(&prefix)?.to_owned(),
                            value: String::from_utf8_lossy(kv.value()).into_owned(),
                            version: Version(u64::try_from(kv.mod_revision()).unwrap_or(0)),
                            lease: kv.lease(),
                        })
                    };
                    let entries: Vec<Entry> = response.kvs().iter().filter_map(entry).collect();
                    Ok(Answer::read(response.header(), entries))
                }
            })
            .await?;
        self.check_member(&asked.value);
        self.note_inheritance(&asked.value);
        Ok(super::view(&asked.value))
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
            Err(Failure::LeaseGone(lease)) => {
                self.lease.forget(lease);
                Ok(self.put_member(value, deadline).await?)
            }
            done => Ok(done?),
        }
    }

    async fn remove_member(&self) -> Result<(), DcsError> {
        *lock(&self.member) = None;
        let delete = Txn::new().and_then([TxnOp::delete(self.member_path(), None)]);
        self.write_txn(self.deadline(), delete).await?;
        Ok(())
    }

    async fn write(&self, key: Key, value: &str, when: When) -> Result<Written, DcsError> {
        let path = self.path(key.path());
        let txn = Txn::new()
            .when(conditions(&path, when))
            .and_then([TxnOp::put(path, value, None)]);
        Ok(match self.write_txn(self.deadline(), txn).await? {
            (true, revision) => Written::Yes(Version(revision)),
            (false, _) => Written::Refused,
        })
    }

    async fn delete(&self, key: Key, when: When) -> Result<Written, DcsError> {
        let path = self.path(key.path());
        let txn = Txn::new()
            .when(conditions(&path, when))
            .and_then([TxnOp::delete(path, None)]);
        Ok(match self.write_txn(self.deadline(), txn).await? {
            (true, revision) => Written::Yes(Version(revision)),
            (false, _) => Written::Refused,
        })
    }

    async fn adopt(&self, lease: i64) {
        self.lease.adopt(lease);
    }

    async fn set_timing(&self, ttl: Duration, retry_timeout: Duration) {
        let ttl = self.lease_ttl(ttl);
        let old = std::mem::replace(&mut *lock(&self.timing), Timing { ttl, retry_timeout });
        if old.ttl != ttl {
            // The old lease is left to expire: revoking it would take the leader key with it.
            self.lease.abandon();
        }
    }

    fn changes(&self) -> signal::Receiver<u64> {
        self.changes.subscribe()
    }

    fn kind(&self) -> &'static str {
        "etcd3"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(namespace: &str, scope: &str) -> Options {
        Options {
            endpoints: vec!["h:2379".into(), "https://i:1/".into()],
            protocol: Protocol::Http,
            username: None,
            password: Some("hidden".into()),
            cacert: None,
            cert: None,
            key: None,
            namespace: namespace.into(),
            scope: scope.into(),
            name: "n1".into(),
            ttl: Duration::from_secs(30),
            retry_timeout: Duration::from_secs(10),
        }
    }

    #[test]
    fn the_base_path_has_no_double_slashes() {
        assert_eq!(options("service", "main").base(), "/service/main/");
        assert_eq!(options("/service//x/", "/main").base(), "/service/x/main/");
        assert_eq!(options("", "main").base(), "/main/");
    }

    #[test]
    fn endpoints_get_the_protocol_they_lack() {
        assert_eq!(options("s", "m").urls(), ["http://h:2379", "https://i:1"]);
    }

    #[test]
    fn beside_postgres_a_lease_is_shorter_by_an_election() {
        let seconds = |s: u64| shortened(Duration::from_secs(s));
        assert_eq!(seconds(30), Duration::from_secs(26));
        assert_eq!(seconds(5), Duration::from_secs(4));
        assert_eq!(seconds(2), Duration::from_millis(1600));
    }

    #[test]
    fn debug_output_hides_the_password() {
        assert!(!format!("{:?}", options("s", "m")).contains("hidden"));
    }
}
