//! A store in memory: for tests, and as the reference for what the trait means. No network, but injectable outages.
//!
//! Time comes from a [`Clock`]: a [`ManualClock`] moves only when told to, the system's lets leases run out by
//! themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Dcs, DcsError, Hold, Key, Lock, When, Written};
use crate::{
    clock::Boottime,
    model::{Cluster, Entry, MemberName, Version},
};

/// Where the store reads the time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Now.
    fn now(&self) -> Boottime;
}

/// The host's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Boottime {
        Boottime::now()
    }
}

/// A clock that stands still until it is advanced. Starts one hour after boot.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<AtomicU64>);

impl Default for ManualClock {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(3_600_000_000_000)))
    }
}

impl ManualClock {
    /// Moves the time forward. Leases run out at the next look at the store (see [`Store::expire`]).
    pub fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Boottime {
        Boottime(self.0.load(Ordering::SeqCst))
    }
}

/// A fault to be injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// Every call fails and is not executed.
    Unreachable,
    /// Every call is executed, and then its answer is lost.
    AnswersLost,
    /// The credentials are refused.
    Credentials,
}

#[derive(Debug, Clone)]
struct Item {
    value: String,
    version: u64,
    lease: i64,
}

#[derive(Debug)]
struct Grant {
    ttl: Duration,
    until: Boottime,
}

#[derive(Debug, Default)]
struct State {
    items: BTreeMap<String, Item>,
    leases: BTreeMap<i64, Grant>,
    revision: u64,
    next_lease: i64,
    outage: Option<Outage>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    watchers: Mutex<Vec<Weak<Watcher>>>,
}

#[derive(Debug)]
struct Watcher {
    changes: watch::Sender<u64>,
    lost: AtomicBool,
}

impl Watcher {
    fn wake(&self) {
        if !self.lost.load(Ordering::SeqCst) {
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The store all members of a test share.
#[derive(Debug, Clone)]
pub struct Store(Arc<Shared>);

impl Store {
    /// A store whose time is `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            clock,
            watchers: Mutex::default(),
        }))
    }

    /// A store that lives by the host's clock; inside a tokio runtime, leases end (and wake) within 20 ms.
    #[must_use]
    pub fn system() -> Self {
        let store = Self::new(Arc::new(SystemClock));
        let shared = Arc::downgrade(&store.0);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                while let Some(shared) = shared.upgrade() {
                    Self(shared).expire();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        }
        store
    }

    /// A member's connection.
    #[must_use]
    pub fn member(&self, name: &str, ttl: Duration) -> Memory {
        let watcher = Arc::new(Watcher {
            changes: watch::channel(0).0,
            lost: AtomicBool::new(false),
        });
        guard(&self.0.watchers).push(Arc::downgrade(&watcher));
        Memory {
            store: self.clone(),
            name: name.to_owned(),
            ttl: Mutex::new(ttl),
            lease: Mutex::new(None),
            held: Mutex::new(None),
            ours: Mutex::new(BTreeSet::new()),
            inherited: Mutex::new(None),
            outage: Mutex::new(None),
            watcher,
        }
    }

    /// Ends the leases whose time is over, with their keys. Every call does this first.
    pub fn expire(&self) {
        self.change(|_, _| ());
    }

    /// Lets all calls of all members fail, or not any more.
    pub fn set_outage(&self, outage: Option<Outage>) {
        guard(&self.0.state).outage = outage;
    }

    /// All that is stored.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.change(|state, _| {
            let entry = |(path, item): (&String, &Item)| Entry {
                path: path.clone(),
                value: item.value.clone(),
                version: Version(item.version),
                lease: item.lease,
            };
            state.items.iter().map(entry).collect()
        })
    }

    /// Writes like a stranger would.
    pub fn put(&self, path: &str, value: &str, lease: i64) {
        self.change(|state, woken| state.put(path, value, lease, woken));
    }

    /// Deletes like a stranger would.
    pub fn remove(&self, path: &str) {
        self.change(|state, woken| state.remove(path, woken));
    }

    /// Ends a lease and its keys.
    pub fn revoke(&self, lease: i64) {
        self.change(|state, woken| state.revoke(lease, woken));
    }

    /// Forgets everything, leases included.
    pub fn wipe(&self) {
        self.change(|state, woken| {
            state.items.clear();
            state.leases.clear();
            *woken = true;
        });
    }

    fn change<T>(&self, act: impl FnOnce(&mut State, &mut bool) -> T) -> T {
        let now = self.0.clock.now();
        let mut woken = false;
        let value = {
            let mut state = guard(&self.0.state);
            let ended = |(id, grant): (&i64, &Grant)| (grant.until <= now).then_some(*id);
            let over: Vec<i64> = state.leases.iter().filter_map(ended).collect();
            for lease in over {
                state.revoke(lease, &mut woken);
            }
            act(&mut state, &mut woken)
        };
        if woken {
            guard(&self.0.watchers).retain(|watcher| match watcher.upgrade() {
                Some(watcher) => {
                    watcher.wake();
                    true
                }
                None => false,
            });
        }
        value
    }
}

impl State {
    fn put(&mut self, path: &str, value: &str, lease: i64, woken: &mut bool) {
        self.revision += 1;
        let item = Item {
            value: value.to_owned(),
            version: self.revision,
            lease,
        };
        let created = self.items.insert(path.to_owned(), item).is_none();
        *woken |= matters(path, created);
    }

    fn remove(&mut self, path: &str, woken: &mut bool) {
        self.revision += 1;
        if self.items.remove(path).is_some() {
            *woken |= matters(path, true);
        }
    }

    fn revoke(&mut self, lease: i64, woken: &mut bool) {
        self.leases.remove(&lease);
        let bound = |(path, item): (&String, &Item)| (item.lease == lease).then(|| path.clone());
        let paths: Vec<String> = self.items.iter().filter_map(bound).collect();
        for path in paths {
            self.remove(&path, woken);
        }
    }

    fn grant(&mut self, ttl: Duration, now: Boottime) -> i64 {
        self.next_lease += 1;
        let until = now + ttl;
        self.leases.insert(self.next_lease, Grant { ttl, until });
        self.next_lease
    }

    fn holds(&self, path: &str, when: When) -> bool {
        let version = self.items.get(path).map(|item| item.version);
        match when {
            When::Always => true,
            When::Absent => version.is_none(),
            When::Version(Version(wanted)) => version == Some(wanted),
        }
    }
}

/// Rule: [`Dcs::changes`]. `edge`: created or deleted rather than updated.
fn matters(path: &str, edge: bool) -> bool {
    match path {
        "leader" | "failover" | "config" | "initialize" | "sync" => true,
        _ => edge && path.starts_with("members/"),
    }
}

/// One member's connection to a [`Store`].
#[derive(Debug)]
pub struct Memory {
    store: Store,
    name: String,
    ttl: Mutex<Duration>,
    lease: Mutex<Option<i64>>,
    held: Mutex<Option<i64>>,
    /// All leases that were ours.
    ours: Mutex<BTreeSet<i64>>,
    /// The lease of a lock that carried our name at the first read; `None`: nothing was read yet.
    inherited: Mutex<Option<Option<i64>>>,
    outage: Mutex<Option<Outage>>,
    watcher: Arc<Watcher>,
}

impl Memory {
    /// Lets this member's calls fail, or not any more.
    pub fn set_outage(&self, outage: Option<Outage>) {
        *guard(&self.outage) = outage;
    }

    /// Loses the watch (`true`), or gets it back, which counts up.
    pub fn set_watch_lost(&self, lost: bool) {
        self.watcher.lost.store(lost, Ordering::SeqCst);
        self.watcher.wake();
    }

    /// Runs one call against the store, through the injected faults.
    fn call<T>(&self, act: impl FnOnce(&mut State, Boottime, &mut bool) -> T) -> Result<T, DcsError> {
        let outage = (*guard(&self.outage)).or(guard(&self.store.0.state).outage);
        let endpoint = || "memory".to_owned();
        match outage {
            Some(Outage::Unreachable) => {
                return Err(DcsError::Transport {
                    endpoint: endpoint(),
                    reason: "injected outage".into(),
                });
            }
            Some(Outage::Credentials) => {
                return Err(DcsError::Credentials {
                    endpoint: endpoint(),
                    reason: "injected refusal".into(),
                });
            }
            Some(Outage::AnswersLost) | None => {}
        }
        let now = self.store.0.clock.now();
        let value = self.store.change(|state, woken| act(state, now, woken));
        match outage {
            None => Ok(value),
            Some(_) => Err(DcsError::Timeout {
                endpoint: endpoint(),
                waited: Duration::ZERO,
            }),
        }
    }

    /// Our lease, extended or new.
    fn extend(&self, state: &mut State, now: Boottime) -> Hold {
        let wanted = *guard(&self.ttl);
        let mut lease = guard(&self.lease);
        let alive = lease.and_then(|id| Some((id, state.leases.get_mut(&id)?)));
        match alive {
            Some((id, grant)) if grant.ttl == wanted => {
                grant.until = now + wanted;
                Hold {
                    sent_at: now,
                    ttl: wanted,
                    lease: id,
                }
            }
            _ => {
                let id = state.grant(wanted, now);
                *lease = Some(id);
                guard(&self.ours).insert(id);
                Hold {
                    sent_at: now,
                    ttl: wanted,
                    lease: id,
                }
            }
        }
    }

    /// Ours, or a predecessor's; anything else with our name is a namesake's.
    fn may_take(&self, lease: i64) -> bool {
        guard(&self.ours).contains(&lease) || *guard(&self.inherited) == Some(Some(lease))
    }

    /// Only what was there before our first word can be a predecessor's, whose member key hangs on the same lease.
    fn note_inheritance(&self, state: &State) {
        let leader = state.items.get(LEADER).filter(|item| item.value == self.name);
        let member = state.items.get(&self.member_path());
        let left = leader
            .map(|item| item.lease)
            .filter(|lease| member.is_some_and(|item| item.lease == *lease));
        guard(&self.inherited).get_or_insert(left);
    }

    fn held(&self, hold: Hold) -> Lock {
        *guard(&self.held) = Some(hold.lease);
        Lock::Held(hold)
    }

    fn member_path(&self) -> String {
        format!("members/{}", self.name)
    }
}

const LEADER: &str = "leader";

#[async_trait]
impl Dcs for Memory {
    async fn cluster(&self) -> Result<Cluster, DcsError> {
        self.call(|state, _, _| self.note_inheritance(state))?;
        Ok(super::view(&self.store.entries()))
    }

    async fn acquire(&self) -> Result<Lock, DcsError> {
        self.call(|state, now, woken| {
            let hold = self.extend(state, now);
            match state.items.get(LEADER) {
                None => state.put(LEADER, &self.name, hold.lease, woken),
                Some(item) if item.value == self.name && item.lease == hold.lease => {}
                Some(item) if item.value == self.name && guard(&self.ours).contains(&item.lease) => {
                    state.put(LEADER, &self.name, hold.lease, woken);
                }
                Some(item) => return Lock::Lost(Some(MemberName(item.value.clone()))),
            }
            self.held(hold)
        })
    }

    async fn renew(&self) -> Result<Lock, DcsError> {
        self.call(|state, now, woken| {
            let hold = self.extend(state, now);
            match state.items.get(LEADER) {
                Some(item) if item.value != self.name => {
                    return Lock::Lost(Some(MemberName(item.value.clone())));
                }
                Some(item) if item.lease == hold.lease => {}
                Some(item) if !self.may_take(item.lease) => {
                    return Lock::Lost(Some(MemberName(item.value.clone())));
                }
                _ => state.put(LEADER, &self.name, hold.lease, woken),
            }
            self.held(hold)
        })
    }

    async fn release(&self, status: Option<&str>) -> Result<(), DcsError> {
        self.call(|state, _, woken| {
            let lease = guard(&self.held).take().or(*guard(&self.lease));
            let ours = |item: &Item| item.value == self.name && Some(item.lease) == lease;
            if state.items.get(LEADER).is_some_and(ours) {
                state.remove(LEADER, woken);
                if let Some(status) = status {
                    state.put(Key::Status.path(), status, 0, woken);
                }
            }
        })
    }

    async fn touch_member(&self, value: &str) -> Result<(), DcsError> {
        self.call(|state, now, woken| {
            let hold = self.extend(state, now);
            let path = self.member_path();
            let same = |item: &Item| item.value == value && item.lease == hold.lease;
            if !state.items.get(&path).is_some_and(same) {
                state.put(&path, value, hold.lease, woken);
            }
        })
    }

    async fn remove_member(&self) -> Result<(), DcsError> {
        self.call(|state, _, woken| state.remove(&self.member_path(), woken))
    }

    async fn write(&self, key: Key, value: &str, when: When) -> Result<Written, DcsError> {
        self.call(|state, _, woken| {
            if !state.holds(key.path(), when) {
                return Written::Refused;
            }
            state.put(key.path(), value, 0, woken);
            Written::Yes(Version(state.revision))
        })
    }

    async fn delete(&self, key: Key, when: When) -> Result<Written, DcsError> {
        self.call(|state, _, woken| {
            if !state.holds(key.path(), when) {
                return Written::Refused;
            }
            state.remove(key.path(), woken);
            Written::Yes(Version(state.revision))
        })
    }

    async fn adopt(&self, lease: i64) {
        *guard(&self.lease) = Some(lease);
        guard(&self.ours).insert(lease);
    }

    async fn set_timing(&self, ttl: Duration, _retry_timeout: Duration) {
        *guard(&self.ttl) = ttl;
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.watcher.changes.subscribe()
    }

    fn kind(&self) -> &'static str {
        "memory"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(30);

    fn is_held(lock: Result<Lock, DcsError>) -> bool {
        matches!(lock, Ok(Lock::Held(_)))
    }

    #[tokio::test]
    async fn a_lock_ends_exactly_with_its_ttl() {
        let clock = ManualClock::default();
        let store = Store::new(Arc::new(clock.clone()));
        let (a, b) = (store.member("a", TTL), store.member("b", TTL));
        assert!(is_held(a.acquire().await));
        clock.advance(TTL - Duration::from_nanos(1));
        assert!(!is_held(b.acquire().await));
        clock.advance(Duration::from_nanos(1));
        assert!(is_held(b.acquire().await));
    }

    #[tokio::test]
    async fn an_outage_is_an_error_and_a_lost_answer_still_happened() {
        let store = Store::new(Arc::new(ManualClock::default()));
        let a = store.member("a", TTL);
        a.set_outage(Some(Outage::Unreachable));
        assert!(a.acquire().await.is_err());
        assert!(store.entries().is_empty());
        a.set_outage(Some(Outage::AnswersLost));
        assert!(a.acquire().await.is_err());
        assert_eq!(store.entries().len(), 1);
        a.set_outage(None);
        assert!(is_held(a.acquire().await));
    }

    #[tokio::test]
    async fn a_lost_watch_is_silent_and_counts_up_when_it_is_back() {
        let store = Store::new(Arc::new(ManualClock::default()));
        let a = store.member("a", TTL);
        let changes = a.changes();
        a.set_watch_lost(true);
        store.put("config", "{}", 0);
        assert!(!changes.has_changed().unwrap_or(true));
        a.set_watch_lost(false);
        assert!(changes.has_changed().unwrap_or(false));
    }
}
