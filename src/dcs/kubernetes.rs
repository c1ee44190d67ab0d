//! The Kubernetes backend (contract: DCS layout §9): the API server as the store.
//!
//! Here: options and the [`Dcs`] face. Beside it: `access` and `pool` (credentials, API servers, what an answer means),
//! `layout` and `object` (which objects, and the keys in them), `observed` (until when a lock counts), `lock`, `keys`,
//! `member` (our pod), `service` (where the leader's Service leads), `watch` (the wake-ups), `rights`, `servers`; and
//! `workload` (the StatefulSet of the pods, for the command line).
//!
//! There are no leases in the API server that end by themselves: a lock ends when everybody has seen it unchanged for
//! its ttl. So each member watches it all the time, and a member that has just started waits for a whole ttl before it
//! takes a lock that somebody left behind. A member key is an annotation of its pod and lives as long as the pod.
//!
//! Time budgets are those of etcd: a plain call has `retry_timeout` in all, one that takes or keeps the lock
//! `min(retry_timeout, ttl / 3)`.

mod access;
mod keys;
mod layout;
mod lock;
mod member;
mod object;
mod observed;
mod pool;
mod rights;
mod servers;
mod service;
mod watch;
mod workload;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{BuildHasher as _, RandomState},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::AtomicUsize},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::watch as signal, task::JoinHandle, time::Instant};

use self::{
    layout::{Kind, Layout, Target},
    object::{Object, Place, Record},
    observed::Observed,
    pool::{Pool, Wrote},
    watch::{Shared, Topic},
};
pub use self::{
    layout::{Mode, Port},
    member::Labels,
    rights::Right,
    workload::{Pod, StatefulSet, Workloads},
};
use super::{Dcs, DcsError, Key, Lock, When, Written};
use crate::{
    clock::Boottime,
    model::{Cluster, Entry, Version},
};

/// Everything the backend needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// In which objects the cluster is kept.
    pub mode: Mode,
    /// Namespace of the pods and of all objects; `None`: that of our own pod, else `default`.
    pub namespace: Option<String>,
    /// Name of the cluster, first part of the objects' names.
    pub scope: String,
    /// Our name, which is that of our pod.
    pub name: String,
    /// Labels of all objects and pods of the cluster, beside the scope's.
    pub labels: BTreeMap<String, String>,
    /// Label with the scope.
    pub scope_label: String,
    /// Labels of our pod.
    pub pod_labels: Labels,
    /// Our address; `None`: as our pod has it.
    pub pod_ip: Option<String>,
    /// Ports of the leader's Service.
    pub ports: Vec<Port>,
    /// Authorities of the API server's certificate; `None`: those of the service account or kubeconfig.
    pub cacert: Option<PathBuf>,
    /// The kubeconfig to use; `None`: the service account of our pod, else `$KUBECONFIG` or `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig to use; `None`: its current one.
    pub context: Option<String>,
    /// Ask the API servers themselves instead of their Service.
    pub bypass_api_service: bool,
    /// Further statuses after which a request is repeated.
    pub retriable_http_codes: Vec<u16>,
    /// How long a lock counts that nobody renews; recorded in whole seconds, rounded up.
    pub ttl: Duration,
    /// Longest time a call may take.
    pub retry_timeout: Duration,
}

/// Whether a predecessor of ours (a process of this name that has ended) left the lock behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Inherited {
    /// The store has not been read yet.
    #[default]
    Unknown,
    /// It did, in this tenure.
    Tenure(i64),
    /// It did not.
    Nothing,
}

#[derive(Debug, Clone, Copy, Default)]
struct Timing {
    ttl: Duration,
    retry_timeout: Duration,
}

/// What changes at run time.
#[derive(Debug, Default)]
struct State {
    timing: Timing,
    /// All tenures that were ours, and the one new renewals are written with.
    tenures: BTreeSet<i64>,
    tenure: Option<i64>,
    /// The tenure the lock was last proven to be ours in, while it is ours.
    held: Option<i64>,
    /// The lock is ours as far as we know.
    leading: bool,
    inherited: Inherited,
    /// The leader's object as we last wrote it.
    leader: Option<Object>,
    /// Microseconds of the last renewal.
    moment: i64,
    /// Locks of the same cluster in other modes.
    others: BTreeMap<Mode, Observed>,
    /// When we were last refused a look at them.
    unreadable: BTreeMap<Mode, Boottime>,
    target: Option<Target>,
    published: Option<member::Published>,
    service_failed: bool,
    old_slices: Option<bool>,
}

/// One member's connection to the API server. Dropping it ends the watches; the lock is left to expire.
pub struct Kubernetes {
    me: Weak<Self>,
    name: String,
    layout: Layout,
    /// The two modes that are not ours.
    others: [Mode; 2],
    pool: Arc<Pool>,
    pod_labels: Labels,
    pod_ip: Option<String>,
    ports: Vec<Port>,
    random: RandomState,
    state: Mutex<State>,
    /// One at a time points the leader's Service at us.
    serving: Arc<tokio::sync::Mutex<()>>,
    observed: signal::Sender<Observed>,
    changes: signal::Sender<u64>,
    tasks: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubernetes")
            .field("layout", &self.layout)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A poisoned lock only means that another task panicked between two assignments of plain data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kubernetes {
    /// Checks the options and starts watching. Connects when first needed; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`DcsError::Config`] if the options can never work.
    pub fn new(options: Options) -> Result<Arc<Self>, DcsError> {
        for (what, name) in [("scope", &options.scope), ("name", &options.name)] {
            if !is_object_name(name) {
                return Err(DcsError::Config(format!(
                    "kubernetes: the {what} {name:?} cannot be the name of an object (allowed: lower-case letters, \
                     digits, - and . between them, up to 63 characters)"
                )));
            }
        }
        let mut labels = options.labels.clone();
        labels.insert(options.scope_label.clone(), options.scope.clone());
        let layout = Layout {
            mode: options.mode,
            namespace: options
                .namespace
                .clone()
                .or_else(access::own_namespace)
                .unwrap_or_else(|| "default".to_owned()),
            scope: options.scope.clone(),
            labels,
        };
        let access = access::Access {
            kubeconfig: options.kubeconfig.clone(),
            context: options.context.clone(),
            cacert: options.cacert.clone(),
            bypass: options.bypass_api_service,
        };
        let pool = Arc::new(Pool::new(access, options.retriable_http_codes.clone()));
        let timing = Timing {
            ttl: options.ttl,
            retry_timeout: options.retry_timeout,
        };
        let observed = signal::Sender::new(Observed::new(lock::whole_seconds(timing.ttl)));
        let changes = signal::Sender::new(0);
        let tasks = start_tasks(&options, &layout, &pool, &observed, &changes);
        Ok(Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            name: options.name,
            others: layout.mode.others(),
            layout,
            pool,
            pod_labels: options.pod_labels,
            pod_ip: options.pod_ip,
            ports: options.ports,
            random: RandomState::new(),
            state: Mutex::new(State {
                timing,
                ..State::default()
            }),
            serving: Arc::default(),
            observed,
            changes,
            tasks,
        }))
    }

    /// What only a member does, not the command line: says which rights are missing, and makes the Service that keeps
    /// the configuration's Endpoints. Returns at once.
    pub fn prepare(self: &Arc<Self>) {
        let me = Arc::downgrade(self);
        tokio::spawn(async move {
            let Some(me) = me.upgrade() else { return };
            me.tell_rights().await;
            if me.layout.mode == Mode::Endpoints {
                me.make_config_service(me.deadline()).await;
            }
        });
    }

    /// Addresses of the API servers that are asked; none before the first question.
    #[must_use]
    pub fn servers(&self) -> Vec<String> {
        self.pool.servers()
    }

    fn timing(&self) -> Timing {
        lock(&self.state).timing
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

    /// A number nobody else comes upon.
    fn chance(&self) -> u32 {
        let digest = self.random.hash_one(Boottime::now().0);
        u32::try_from(digest & u64::from(u32::MAX)).unwrap_or(0)
    }

    /// All objects of the cluster but for pods, and the lock's.
    async fn objects(&self, deadline: Instant) -> Result<(Vec<Object>, Option<Object>), DcsError> {
        let kind = self.layout.mode.kind(Place::Config);
        let path = self.layout.all(kind);
        let selector = self.layout.selector();
        let list = self.pool.list(&path, &selector, deadline);
        if self.layout.mode == Mode::Leases {
            let lease = self.read_leader(deadline);
            let (list, lease) = tokio::try_join!(list, lease)?;
            return Ok((list.items, lease));
        }
        let items = list.await?.items;
        let name = self.layout.name(Place::Leader);
        let leader = items.iter().find(|object| object.metadata.name == name).cloned();
        self.see_leader(leader.as_ref());
        Ok((items, leader))
    }

    fn entries(&self, objects: &[Object], leader: Option<&Object>, pods: &[Object]) -> Vec<Entry> {
        let mut entries = Vec::new();
        for object in objects {
            if let Some(place) = self
                .layout
                .place(&object.metadata.name)
                .filter(|place| *place != Place::Leader)
            {
                entries.extend(object::entries(place, object));
            }
        }
        if let Some(object) = leader {
            entries.extend(object::entries(Place::Leader, object));
            let record = Record::of(object, self.layout.mode.form());
            if let Some(record) = record.filter(|record| !self.is_over(record)) {
                entries.push(Entry {
                    path: "leader".to_owned(),
                    lease: record.lease(),
                    value: record.leader,
                    version: Version(
                        u64::try_from(micros_of(&object.metadata.resource_version)).unwrap_or(0),
                    ),
                });
            }
        }
        let member = |pod: &Object| {
            Some(Entry {
                path: format!("members/{}", pod.metadata.name),
                value: pod.member()?.to_owned(),
                version: Version(0),
                lease: 0,
            })
        };
        entries.extend(pods.iter().filter_map(member));
        entries
    }

    /// Only what was there before our first word can be a predecessor's, and it was a member too: a lock alone is
    /// a process of our name that has just begun.
    fn note_inheritance(&self, leader: Option<&Object>, pods: &[Object]) {
        let record = leader.and_then(|object| Record::of(object, self.layout.mode.form()));
        let mut state = lock(&self.state);
        state.leading = record
            .as_ref()
            .is_some_and(|record| record.leader == self.name && state.tenures.contains(&record.lease()));
        if state.inherited != Inherited::Unknown {
            return;
        }
        // Who goes on with a predecessor's tenure is the only one of its name: init started it in the other's place.
        let adopted = state.tenure.is_some();
        let published = pods
            .iter()
            .any(|pod| pod.metadata.name == self.name && pod.member().is_some());
        let left = record.filter(|record| record.leader == self.name && (adopted || published));
        state.inherited = left.map_or(Inherited::Nothing, |record| Inherited::Tenure(record.lease()));
    }
}

/// Versions of objects are numbers wherever they were seen; nothing here depends on it.
fn micros_of(version: &str) -> i64 {
    version.parse().unwrap_or(0)
}

/// Names of objects that are values of labels too.
fn is_object_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 63
        && name.starts_with(plain)
        && name.ends_with(plain)
        && name.chars().all(|c| plain(c) || matches!(c, '-' | '.'))
}

fn start_tasks(
    options: &Options,
    layout: &Layout,
    pool: &Arc<Pool>,
    observed: &signal::Sender<Observed>,
    changes: &signal::Sender<u64>,
) -> Vec<JoinHandle<()>> {
    let objects = options.mode.kind(Place::Config);
    let mut topics = vec![
        Topic {
            kind: objects,
            lock: options.mode.kind(Place::Leader) == objects,
        },
        Topic {
            kind: Kind::Pod,
            lock: false,
        },
    ];
    if options.mode == Mode::Leases {
        topics.push(Topic {
            kind: Kind::Lease,
            lock: true,
        });
    }
    let shared = Arc::new(Shared {
        pool: Arc::clone(pool),
        layout: layout.clone(),
        changes: changes.clone(),
        observed: observed.clone(),
        all: topics.len(),
        up: AtomicUsize::new(0),
    });
    // A lock is renewed every sixth of its ttl: longer silence is worth a question.
    let idle = (options.ttl / 4).clamp(Duration::from_millis(500), Duration::from_secs(6));
    let mut tasks: Vec<JoinHandle<()>> = topics
        .into_iter()
        .map(|topic| tokio::spawn(watch::run(Arc::clone(&shared), topic, idle)))
        .collect();
    tasks.push(tokio::spawn(watch::expiry(shared)));
    if options.bypass_api_service {
        tasks.push(tokio::spawn(servers::run(Arc::clone(pool))));
    }
    tasks
}

#[async_trait]
impl Dcs for Kubernetes {
    async fn cluster(&self) -> Result<Cluster, DcsError> {
        let deadline = self.deadline();
        let (pods_path, selector) = (self.layout.all(Kind::Pod), self.layout.selector());
        let pods = self.pool.list(&pods_path, &selector, deadline);
        let ((objects, leader), pods) = tokio::try_join!(self.objects(deadline), pods)?;
        self.check_pod(&pods.items);
        self.note_inheritance(leader.as_ref(), &pods.items);
        let entries = self.entries(&objects, leader.as_ref(), &pods.items);
        let cluster = super::view(&entries);
        if cluster.leader.is_none() {
            // An empty store, or one that is looked at in the wrong mode?
            self.refuse_other_modes(deadline).await?;
        }
        Ok(cluster)
    }

    async fn acquire(&self) -> Result<Lock, DcsError> {
        let lock = self.take_lock(self.lock_deadline()).await?;
        self.note_lost(&lock);
        Ok(lock)
    }

    async fn renew(&self) -> Result<Lock, DcsError> {
        let lock = self.keep_lock(self.lock_deadline()).await?;
        self.note_lost(&lock);
        Ok(lock)
    }

    async fn release(&self, status: Option<&str>) -> Result<(), DcsError> {
        self.drop_lock(status, self.deadline()).await
    }

    async fn touch_member(&self, value: &str) -> Result<(), DcsError> {
        self.publish(value, self.deadline()).await
    }

    async fn remove_member(&self) -> Result<(), DcsError> {
        self.unpublish(self.deadline()).await
    }

    async fn write(&self, key: Key, value: &str, when: When) -> Result<Written, DcsError> {
        self.put(key, Some(value), when, self.deadline()).await
    }

    async fn delete(&self, key: Key, when: When) -> Result<Written, DcsError> {
        self.put(key, None, when, self.deadline()).await
    }

    async fn adopt(&self, lease: i64) {
        let mut state = lock(&self.state);
        state.tenures.insert(lease);
        state.tenure = Some(lease);
    }

    async fn set_timing(&self, ttl: Duration, retry_timeout: Duration) {
        {
            let mut state = lock(&self.state);
            if state.timing.ttl != ttl {
                state.tenure = None;
            }
            state.timing = Timing { ttl, retry_timeout };
        }
        self.observed
            .send_modify(|observed| observed.ttl = lock::whole_seconds(ttl));
    }

    fn changes(&self) -> signal::Receiver<u64> {
        self.changes.subscribe()
    }

    fn kind(&self) -> &'static str {
        "kubernetes"
    }
}

impl Kubernetes {
    fn note_lost(&self, answer: &Lock) {
        if matches!(answer, Lock::Lost(_)) {
            let mut state = lock(&self.state);
            (state.held, state.leading) = (None, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_the_server_refuses_them() {
        for name in ["demo", "pg-0", "a.b", "0"] {
            assert!(is_object_name(name), "{name}");
        }
        for name in ["", "Demo", "a_b", "-a", "a-", "a/b", &"a".repeat(64)] {
            assert!(!is_object_name(name), "{name:?}");
        }
    }
}
