//! The ZooKeeper backend (contract: DCS layout §8), in ZooKeeper's own protocol.
//!
//! Here: options, the [`Dcs`] face and the plain keys. Beside it: `jute` (the wire format), `wire` (one connection),
//! `hand` (the session that lock and member key hang on), `lock` (leader key), `look` (all keys as of one moment),
//! `watch` (the wake-ups).
//!
//! Three sessions. The *hand* has the ephemeral nodes; it lives from what `acquire`, `renew` and `touch_member` do and from
//! nothing else: a client that pings by itself would keep the lock of an agent whose loop is dead. Looks and writes of
//! plain keys have a second one, the watch a third; neither holds anything, so losing them means nothing.
//!
//! Versions. ZooKeeper's condition is a node's count of changes, which begins again at 0 when the node is made anew. So a key's
//! version is here the transaction that changed it last, and the count is looked up at the moment of writing. That
//! nothing was removed and made anew in between is told by the *fence*: the count of the cluster's base node, which every
//! change of the lock and every removal raises in the same transaction (Patroni does not).
//!
//! The crate zookeeper-client was not taken: it keeps sessions alive by itself, does not tell when what was asked, and
//! brings a second implementation of TLS and a second runtime with it.

mod hand;
mod jute;
mod lock;
mod look;
mod watch;
mod wire;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::watch as signal,
    task::JoinHandle,
    time::{Instant, error::Elapsed, timeout_at},
};

pub use self::wire::Acl;
use self::{
    hand::{Hand, Work},
    jute::{Change, Reader, Stat, code},
    wire::{Ask, Ensemble, Reply, Wire},
};
use super::{Dcs, DcsError, Key, Lock, When, Written, dial::Place};
use crate::{
    model::{Cluster, MemberName, Version},
    tls::client::Tls,
};

const PORT: u16 = 2181;

/// Everything the backend needs to know. `Debug` hides the credentials.
#[derive(Clone)]
pub struct Options {
    /// The servers, `host:port`; port 2181 unless given.
    pub hosts: Vec<String>,
    /// What stands in front of all paths: empty, or with a slash in front.
    pub chroot: String,
    /// Whether they speak TLS, and how.
    pub tls: Option<Tls>,
    /// Credentials by scheme.
    pub auth: Vec<(String, String)>,
    /// Of every node that is made; empty: everybody may do everything.
    pub acls: Vec<Acl>,
    /// First part of the base path (default elsewhere: `service`).
    pub namespace: String,
    /// Name of the cluster, second part of the base path.
    pub scope: String,
    /// Our name.
    pub name: String,
    /// Timeout of the session.
    pub ttl: Duration,
    /// Longest time a call may take.
    pub retry_timeout: Duration,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("hosts", &self.hosts)
            .field("tls", &self.tls)
            .field("acls", &self.acls)
            .field("base", &self.base())
            .field("name", &self.name)
            .field("ttl", &self.ttl)
            .field("retry_timeout", &self.retry_timeout)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// Base path `[<chroot>]/<namespace>/<scope>`.
    #[must_use]
    pub fn base(&self) -> String {
        let namespace = format!("{}/{}", self.chroot, self.namespace);
        let base = super::base_path(&namespace, &self.scope);
        base.trim_end_matches('/').to_owned()
    }
}

/// How an exchange ends without what was wanted.
#[derive(Debug)]
enum Failure {
    /// The connection is of no use any more; what was asked may have been done.
    Broken(DcsError),
    /// The server says no.
    Refused(i32),
    /// Could not ask.
    Dcs(DcsError),
}

impl From<DcsError> for Failure {
    fn from(error: DcsError) -> Self {
        Self::Dcs(error)
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

/// One member's connections to ZooKeeper. Dropping it ends the watch; the session is left to expire.
pub struct ZooKeeper {
    base: String,
    name: String,
    ensemble: Arc<Ensemble>,
    timing: Mutex<Timing>,
    hand: tokio::sync::Mutex<Hand>,
    /// For looks and plain keys.
    eye: tokio::sync::Mutex<Option<Wire>>,
    /// Value and session of the last successful write of our member key, as long as no read contradicted it.
    member: Mutex<Option<(String, i64)>>,
    /// Session the leader key was last proven to be bound to, while it is ours.
    held: Mutex<Option<i64>>,
    inherited: Mutex<Inherited>,
    /// All sessions that were ours.
    ours: Mutex<Vec<i64>>,
    changes: signal::Sender<u64>,
    watcher: JoinHandle<()>,
}

impl fmt::Debug for ZooKeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZooKeeper")
            .field("base", &self.base)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Drop for ZooKeeper {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// A poisoned lock only means that another task panicked between two assignments of plain data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node as read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    value: String,
    stat: Stat,
}

impl ZooKeeper {
    /// Checks the options and starts watching. Connects when first needed; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`DcsError::Config`] if the options can never work.
    pub fn new(options: Options) -> Result<Self, DcsError> {
        if options.name.is_empty() || options.scope.is_empty() {
            return Err(DcsError::Config(
                "zookeeper: scope and name must not be empty".into(),
            ));
        }
        let base = options.base();
        let place = |text: &String| {
            Place::parse(text, PORT)
                .ok_or_else(|| DcsError::Config(format!("zookeeper: {text:?} is no host:port")))
        };
        let places: Vec<Place> = options.hosts.iter().map(place).collect::<Result<_, _>>()?;
        if places.is_empty() {
            return Err(DcsError::Config("zookeeper: there is no server to ask".into()));
        }
        let acls = match options.acls.is_empty() {
            false => options.acls,
            true => vec![Acl {
                permissions: 31,
                scheme: "world".into(),
                id: "anyone".into(),
            }],
        };
        let ensemble = Arc::new(Ensemble::new(places, options.tls, options.auth, acls));
        let (changes, _) = signal::channel(0);
        let watcher = tokio::spawn(watch::run(
            Arc::clone(&ensemble),
            base.clone(),
            changes.clone(),
            options.ttl,
        ));
        Ok(Self {
            base,
            name: options.name,
            ensemble,
            timing: Mutex::new(Timing {
                ttl: options.ttl,
                retry_timeout: options.retry_timeout,
            }),
            hand: tokio::sync::Mutex::default(),
            eye: tokio::sync::Mutex::default(),
            member: Mutex::new(None),
            held: Mutex::new(None),
            inherited: Mutex::new(Inherited::Unknown),
            ours: Mutex::default(),
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

    fn path(&self, relative: &str) -> String {
        format!("{}/{relative}", self.base)
    }

    fn member_path(&self) -> String {
        format!("{}/members/{}", self.base, self.name)
    }

    fn error(&self, failure: Failure) -> DcsError {
        let endpoint = self.ensemble.endpoint();
        match failure {
            Failure::Dcs(error) | Failure::Broken(error) => error,
            Failure::Refused(code @ (code::NO_AUTH | code::AUTH_FAILED | code::INVALID_ACL)) => {
                DcsError::Credentials {
                    endpoint,
                    reason: jute::name(code),
                }
            }
            Failure::Refused(code) => DcsError::Answer {
                endpoint,
                reason: jute::name(code),
            },
        }
    }

    fn timeout(&self, waited: Duration) -> DcsError {
        DcsError::Timeout {
            endpoint: self.ensemble.endpoint(),
            waited,
        }
    }

    /// The connection for plain keys, a new one if there is none; and whether it has been idle.
    async fn open_eye(&self, eye: &mut Option<Wire>, deadline: Instant) -> Result<(Wire, bool), DcsError> {
        if let Some(wire) = eye.take() {
            return Ok((wire, true));
        }
        loop {
            let connected = self.ensemble.connect(None, self.timing().ttl, deadline).await?;
            // Only a session that is gone on with can be over.
            if let Some((wire, _, _)) = connected {
                return Ok((wire, false));
            }
        }
    }

    /// What came of work on that connection, which is kept if it is whole; `None`: it had been closed while nobody
    /// looked, and the work has to be done again.
    fn close_eye<T>(
        &self,
        eye: &mut Option<Wire>,
        (wire, idle): (Wire, bool),
        outcome: Result<Result<T, Failure>, Elapsed>,
        begun: Instant,
    ) -> Option<Result<T, DcsError>> {
        Some(match outcome {
            Ok(Ok(value)) => {
                *eye = Some(wire);
                Ok(value)
            }
            Ok(Err(Failure::Broken(_))) if idle => return None,
            Ok(Err(Failure::Broken(error))) => Err(error),
            Ok(Err(other)) => {
                *eye = Some(wire);
                Err(self.error(other))
            }
            Err(_) => Err(self.timeout(begun.elapsed())),
        })
    }

    async fn eye(
        &self,
        deadline: Instant,
    ) -> Result<(tokio::sync::MutexGuard<'_, Option<Wire>>, Instant), DcsError> {
        let begun = Instant::now();
        let eye = timeout_at(deadline, self.eye.lock()).await;
        Ok((eye.map_err(|_| self.timeout(begun.elapsed()))?, begun))
    }

    /// The fence and a node, in this order and so that no change that was reported before can be missed.
    async fn read_fenced(&self, wire: &mut Wire, path: &str) -> Result<(Option<i32>, Option<Node>), Failure> {
        let barrier = [Change::Check {
            path: self.base.clone(),
            version: None,
        }];
        let asks = [Ask::All(&barrier), Ask::Stat(&self.base), Ask::Data(path)];
        let mut replies = wire.ask(&asks).await?.into_iter().skip(1);
        let fence = stat_of(replies.next())?;
        let node = node_of(replies.next())?;
        Ok((fence.map(|stat| stat.version), node))
    }

    /// A removal of our own or of the lock, which raises the fence if it still stands where it was seen.
    fn raise(&self, fence: Option<i32>) -> Change {
        Change::Set {
            path: self.base.clone(),
            value: String::new(),
            version: fence,
        }
    }

    /// All of these or none; the version that every node changed has now. (A server answers a transaction with its
    /// number: it carries out one after the other.)
    async fn change(&self, wire: &mut Wire, changes: &[Change]) -> Result<Version, Failure> {
        let replies = wire.ask(&[Ask::All(changes)]).await?;
        let Some(reply) = replies.into_iter().next() else {
            return Err(nonsense(self.ensemble.endpoint()));
        };
        let bytes = reply.result.map_err(Failure::Refused)?;
        let outcome = jute::outcome(&bytes).ok_or_else(|| nonsense(self.ensemble.endpoint()))?;
        outcome.map_err(Failure::Refused)?;
        Ok(version_of(reply.zxid))
    }

    /// Makes the base and the folder of members, with all that is above them.
    async fn make_folders(&self, wire: &mut Wire) -> Result<(), Failure> {
        let members = self.path("members");
        let ends = members.match_indices('/').skip(1).map(|(at, _)| at);
        let paths: Vec<&str> = ends.map(|at| &members[..at]).chain([members.as_str()]).collect();
        for path in paths {
            let asked = wire.ask(&[Ask::Stat(path)]).await?;
            if stat_of(asked.into_iter().next())?.is_some() {
                continue;
            }
            let create = Change::Create {
                path: path.to_owned(),
                value: String::new(),
                ephemeral: false,
            };
            let replies = wire.ask(&[Ask::Change(&create)]).await?;
            match replies.into_iter().next().map(|reply| reply.result) {
                Some(Ok(_) | Err(code::NODE_EXISTS)) => {}
                Some(Err(code)) => return Err(Failure::Refused(code)),
                None => return Err(nonsense(self.ensemble.endpoint())),
            }
        }
        Ok(())
    }

    /// Writes or (without a value) removes a key.
    async fn put(&self, key: Key, value: Option<&str>, when: When) -> Result<Written, DcsError> {
        let path = self.path(key.path());
        let deadline = self.deadline();
        let (mut eye, begun) = self.eye(deadline).await?;
        loop {
            let (mut wire, idle) = self.open_eye(&mut eye, deadline).await?;
            let outcome = timeout_at(deadline, self.put_on(&mut wire, &path, value, when)).await;
            if let Some(done) = self.close_eye(&mut eye, (wire, idle), outcome, begun) {
                return done;
            }
        }
    }

    async fn put_on(
        &self,
        wire: &mut Wire,
        path: &str,
        value: Option<&str>,
        when: When,
    ) -> Result<Written, Failure> {
        loop {
            let (fence, node) = self.read_fenced(wire, path).await?;
            let version = node.as_ref().map(|node| version_of(node.stat.mzxid));
            let fits = match when {
                When::Always => true,
                When::Absent => version.is_none(),
                When::Version(wanted) => version == Some(wanted),
            };
            if !fits {
                return Ok(Written::Refused);
            }
            let seen = node.map(|node| node.stat.version);
            let Some(changes) = self.changes_of(path, value, seen, fence) else {
                return Ok(Written::Yes(Version(0)));
            };
            match self.change(wire, &changes).await {
                Ok(version) => return Ok(Written::Yes(version)),
                // Somebody changed it between the look and the write: look again.
                Err(Failure::Refused(code::BAD_VERSION | code::NODE_EXISTS)) => {}
                Err(Failure::Refused(code::NO_NODE)) => self.make_folders(wire).await?,
                Err(error) => return Err(final_if_sent(error)),
            }
        }
    }

    /// What to do to a node seen with this version, or not there; `None`: nothing.
    fn changes_of(
        &self,
        path: &str,
        value: Option<&str>,
        seen: Option<i32>,
        fence: Option<i32>,
    ) -> Option<Vec<Change>> {
        let path = path.to_owned();
        Some(match (value, seen) {
            (Some(value), Some(version)) => vec![
                Change::Check {
                    path: self.base.clone(),
                    version: fence,
                },
                Change::Set {
                    path,
                    value: value.to_owned(),
                    version: Some(version),
                },
            ],
            (Some(value), None) => vec![Change::Create {
                path,
                value: value.to_owned(),
                ephemeral: false,
            }],
            (None, Some(_)) => vec![self.raise(fence), Change::Delete { path }],
            (None, None) => return None,
        })
    }
}

/// The version of what a transaction left: no two have the same number.
fn version_of(zxid: i64) -> Version {
    Version(u64::try_from(zxid).unwrap_or(0))
}

fn nonsense(endpoint: String) -> Failure {
    Failure::Dcs(DcsError::Answer {
        endpoint,
        reason: "not what ZooKeeper says".into(),
    })
}

/// A change that broke off may have been made: nobody may make it again as if it had not.
fn final_if_sent(failure: Failure) -> Failure {
    match failure {
        Failure::Broken(error) => Failure::Dcs(error),
        other => other,
    }
}

/// Of `exists`: `None` if it does not.
fn stat_of(reply: Option<Reply>) -> Result<Option<Stat>, Failure> {
    let newest = reply.as_ref().map_or(0, |reply| reply.zxid);
    match reply.map(|reply| reply.result) {
        Some(Ok(bytes)) => {
            let stat = jute::stat(&bytes, newest, None);
            stat.map(Some).ok_or_else(|| nonsense("zookeeper".into()))
        }
        Some(Err(code::NO_NODE)) => Ok(None),
        Some(Err(code)) => Err(Failure::Refused(code)),
        None => Err(nonsense("zookeeper".into())),
    }
}

/// Of `getData`: `None` if it does not exist.
fn node_of(reply: Option<Reply>) -> Result<Option<Node>, Failure> {
    let newest = reply.as_ref().map_or(0, |reply| reply.zxid);
    match reply.map(|reply| reply.result) {
        Some(Ok(bytes)) => {
            let mut reader = Reader(&bytes);
            let value = reader.buffer().map(<[u8]>::to_vec);
            let stat = jute::stat(reader.0, newest, value.as_ref().map(Vec::len));
            let (value, stat) = value.zip(stat).ok_or_else(|| nonsense("zookeeper".into()))?;
            let value = String::from_utf8_lossy(&value).into_owned();
            Ok(Some(Node { value, stat }))
        }
        Some(Err(code::NO_NODE)) => Ok(None),
        Some(Err(code)) => Err(Failure::Refused(code)),
        None => Err(nonsense("zookeeper".into())),
    }
}

#[async_trait]
impl Dcs for ZooKeeper {
    async fn cluster(&self) -> Result<Cluster, DcsError> {
        let entries = self.look(self.deadline()).await?;
        self.check_member(&entries);
        self.note_inheritance(&entries);
        Ok(super::view(&entries))
    }

    async fn acquire(&self) -> Result<Lock, DcsError> {
        self.lock_work(Work::Take, self.lock_deadline()).await
    }

    async fn renew(&self) -> Result<Lock, DcsError> {
        self.lock_work(Work::Keep, self.lock_deadline()).await
    }

    async fn release(&self, status: Option<&str>) -> Result<(), DcsError> {
        self.with_hand(Work::Drop(status), self.deadline()).await?;
        Ok(())
    }

    async fn touch_member(&self, value: &str) -> Result<(), DcsError> {
        // Longer, and a renewal of the lock would wait for it.
        self.with_hand(Work::Member(value), self.lock_deadline()).await?;
        Ok(())
    }

    async fn remove_member(&self) -> Result<(), DcsError> {
        *lock(&self.member) = None;
        let delete = [Change::Delete {
            path: self.member_path(),
        }];
        let deadline = self.deadline();
        let (mut eye, begun) = self.eye(deadline).await?;
        loop {
            let (mut wire, idle) = self.open_eye(&mut eye, deadline).await?;
            let outcome = timeout_at(deadline, self.change(&mut wire, &delete)).await;
            let outcome = outcome.map(|done| match done {
                Ok(_) | Err(Failure::Refused(code::NO_NODE)) => Ok(()),
                Err(error) => Err(error),
            });
            if let Some(done) = self.close_eye(&mut eye, (wire, idle), outcome, begun) {
                return done;
            }
        }
    }

    async fn write(&self, key: Key, value: &str, when: When) -> Result<Written, DcsError> {
        self.put(key, Some(value), when).await
    }

    async fn delete(&self, key: Key, when: When) -> Result<Written, DcsError> {
        self.put(key, None, when).await
    }

    async fn adopt(&self, lease: i64) {
        // Its password is gone with the one who had it: what hangs on it is moved to a session of our own.
        if lease != 0 {
            lock(&self.ours).push(lease);
        }
    }

    async fn set_timing(&self, ttl: Duration, retry_timeout: Duration) {
        // With the next request the hand takes a new session if the ttl is another one.
        *lock(&self.timing) = Timing { ttl, retry_timeout };
    }

    fn changes(&self) -> signal::Receiver<u64> {
        self.changes.subscribe()
    }

    fn kind(&self) -> &'static str {
        "zookeeper"
    }
}

impl ZooKeeper {
    fn knows(&self, session: i64) -> bool {
        session != 0 && lock(&self.ours).contains(&session)
    }

    fn lost_to(name: &str) -> Lock {
        Lock::Lost(Some(MemberName(name.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(chroot: &str, namespace: &str) -> Options {
        Options {
            hosts: vec!["z1".into()],
            chroot: chroot.into(),
            tls: None,
            auth: vec![("digest".into(), "u:hidden".into())],
            acls: vec![],
            namespace: namespace.into(),
            scope: "main".into(),
            name: "n1".into(),
            ttl: Duration::from_secs(30),
            retry_timeout: Duration::from_secs(10),
        }
    }

    #[test]
    fn the_base_path_has_no_slash_too_many() {
        assert_eq!(options("", "/service/").base(), "/service/main");
        assert_eq!(options("/a/b", "service").base(), "/a/b/service/main");
    }

    #[test]
    fn debug_output_hides_the_credentials() {
        assert!(!format!("{:?}", options("", "s")).contains("hidden"));
    }
}
