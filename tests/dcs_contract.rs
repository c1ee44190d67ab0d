//! What every store must do for the HA loop, checked on the one in memory, on a real etcd, Consul, ZooKeeper and Kubernetes API
//! server;
//! what a client of a server must survive: frozen, stopped, restarted and wiped ones; and what is particular to etcd: silent
//! endpoints, TLS, passwords and expiring tokens.
#![allow(
    clippy::disallowed_methods,
    reason = "tests: waits poll a condition with a deadline, and temporary data is removed"
)]
#![cfg(all(
    feature = "etcd",
    feature = "consul",
    feature = "zookeeper",
    feature = "kubernetes"
))]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

mod common {
    pub(crate) mod certificates;
    #[allow(dead_code, reason = "tests of Consul alone use the rest")]
    pub(crate) mod consul;
    pub(crate) mod etcd;
    pub(crate) mod garbler;
    #[allow(dead_code, reason = "tests of Kubernetes alone use the rest")]
    pub(crate) mod kubernetes;
    #[allow(dead_code, reason = "tests of ZooKeeper alone use the rest")]
    pub(crate) mod zookeeper;
}

#[path = "contract/garbled.rs"]
mod garbled;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{certificates::certificates, etcd::Server};
use howdah::{
    clock::Boottime,
    dcs::{
        Dcs, DcsError, Hold, Key, Lock, When, Written, consul,
        etcd::{Etcd, Options, Protocol},
        kubernetes,
        memory::Store,
        zookeeper,
    },
    model::{Cluster, MemberName, Version},
};
use serde_json::json;
use tokio::time::{sleep, timeout};

const TTL: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(3);

fn options(endpoints: &[String], name: &str) -> Options {
    Options {
        endpoints: endpoints.to_vec(),
        protocol: Protocol::Http,
        username: None,
        password: None,
        cacert: None,
        cert: None,
        key: None,
        namespace: "/service/".into(),
        scope: "demo".into(),
        name: name.into(),
        ttl: TTL,
        retry_timeout: RETRY,
    }
}

fn consul_options(host: String, name: &str) -> consul::Options {
    consul::Options {
        host,
        tls: None,
        token: None,
        dc: None,
        consistency: consul::Consistency::Consistent,
        checks: vec![],
        service: None,
        address: "127.0.0.1".into(),
        namespace: "/service/".into(),
        scope: "demo".into(),
        name: name.into(),
        ttl: TTL,
        retry_timeout: RETRY,
    }
}

fn zookeeper_options(host: String, name: &str) -> zookeeper::Options {
    zookeeper::Options {
        hosts: vec![host],
        chroot: String::new(),
        tls: None,
        auth: vec![],
        acls: vec![],
        namespace: "/service/".into(),
        scope: "demo".into(),
        name: name.into(),
        ttl: TTL,
        retry_timeout: RETRY,
    }
}

/// A store and the hands of a stranger in it.
enum World {
    Memory(Store),
    Etcd(Server),
    Consul(common::consul::Server),
    ZooKeeper(common::zookeeper::Server),
    Kubernetes(Place),
}

/// A namespace of its own in an API server that several worlds share.
struct Place {
    server: Arc<common::kubernetes::Server>,
    namespace: String,
    mode: kubernetes::Mode,
}

impl Place {
    const NAMES: [&str; 10] = ["a", "b", "n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7"];

    async fn new(
        server: &Arc<common::kubernetes::Server>,
        namespace: String,
        mode: kubernetes::Mode,
    ) -> Self {
        server.namespace(&namespace).await;
        let labels = json!({"application": "howdah", "cluster-name": "demo"});
        server.pods(&namespace, &Self::NAMES, &labels).await;
        Self {
            server: Arc::clone(server),
            namespace,
            mode,
        }
    }

    fn member(&self, name: &str) -> Arc<dyn Dcs> {
        kubernetes::Kubernetes::new(self.options(name)).unwrap()
    }

    fn options(&self, name: &str) -> kubernetes::Options {
        kubernetes::Options {
            mode: self.mode,
            namespace: Some(self.namespace.clone()),
            scope: "demo".into(),
            name: name.into(),
            labels: [("application".to_owned(), "howdah".to_owned())].into(),
            scope_label: "cluster-name".into(),
            pod_labels: kubernetes::Labels::default(),
            pod_ip: Some("10.0.0.7".into()),
            ports: vec![],
            cacert: None,
            kubeconfig: Some(self.server.admin_kubeconfig()),
            context: None,
            bypass_api_service: false,
            retriable_http_codes: vec![],
            ttl: TTL,
            retry_timeout: RETRY,
        }
    }

    async fn remove(&self, path: &str) {
        let (core, namespace) = ("/api/v1/namespaces", &self.namespace);
        let nobody = json!({"metadata": {"annotations": {"leader": null}}});
        let (path, patch) = match (path, self.mode) {
            ("leader", kubernetes::Mode::ConfigMaps) => {
                (format!("{core}/{namespace}/configmaps/demo-leader"), nobody)
            }
            ("leader", kubernetes::Mode::Endpoints) => (format!("{core}/{namespace}/endpoints/demo"), nobody),
            ("leader", kubernetes::Mode::Leases) => (
                format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/demo"),
                json!({"spec": {"holderIdentity": null}}),
            ),
            (member, _) => (
                format!(
                    "{core}/{namespace}/pods/{}",
                    member.trim_start_matches("members/")
                ),
                json!({"metadata": {"annotations": {"status": null}}}),
            ),
        };
        self.server.patch(&path, patch).await;
    }
}

impl World {
    fn memory() -> Self {
        Self::Memory(Store::system())
    }

    fn etcd() -> Self {
        Self::Etcd(Server::start())
    }

    fn consul() -> Self {
        Self::Consul(common::consul::Server::start())
    }

    fn zookeeper() -> Self {
        Self::ZooKeeper(common::zookeeper::Server::start())
    }

    fn member(&self, name: &str) -> Arc<dyn Dcs> {
        match self {
            Self::ZooKeeper(server) => {
                Arc::new(zookeeper::ZooKeeper::new(zookeeper_options(server.endpoint(), name)).unwrap())
            }
            Self::Consul(server) => {
                Arc::new(consul::Consul::new(consul_options(server.endpoint(), name)).unwrap())
            }
            Self::Memory(store) => Arc::new(store.member(name, TTL)),
            Self::Etcd(server) => Arc::new(Etcd::new(options(&[server.endpoint()], name)).unwrap()),
            Self::Kubernetes(place) => place.member(name),
        }
    }

    async fn put(&self, path: &str, value: &str) {
        match self {
            Self::Memory(store) => store.put(path, value, 0),
            Self::Etcd(server) => {
                let path = format!("/service/demo/{path}");
                server.client().await.put(path, value, None).await.unwrap();
            }
            Self::ZooKeeper(server) => server.put(&format!("/service/demo/{path}"), value),
            Self::Consul(server) => {
                let path = format!("/kv/service/demo/{path}");
                assert_eq!(server.must("PUT", &path, value).await, true);
            }
            Self::Kubernetes(_) => panic!("needed by nothing that is true of Kubernetes"),
        }
    }

    async fn remove(&self, path: &str) {
        match self {
            Self::Memory(store) => store.remove(path),
            Self::Etcd(server) => {
                let path = format!("/service/demo/{path}");
                server.client().await.delete(path, None).await.unwrap();
            }
            Self::ZooKeeper(server) => server.remove(&format!("/service/demo/{path}")),
            Self::Consul(server) => {
                server
                    .must("DELETE", &format!("/kv/service/demo/{path}"), "")
                    .await;
            }
            Self::Kubernetes(place) => place.remove(path).await,
        }
    }

    async fn revoke(&self, lease: i64) {
        match self {
            Self::Memory(store) => store.revoke(lease),
            Self::Etcd(server) => {
                server.client().await.lease_revoke(lease).await.unwrap();
            }
            Self::ZooKeeper(server) => server.end_session(lease),
            Self::Consul(server) => server.end_session(lease).await,
            Self::Kubernetes(_) => panic!("there are no leases to revoke"),
        }
    }

    /// Does something to the server's process.
    fn server(&mut self, what: Fault) {
        match self {
            Self::Etcd(server) => match what {
                Fault::Freeze => server.freeze(),
                Fault::Thaw => server.thaw(),
                Fault::Kill => server.kill(),
                Fault::Wipe => server.wipe(),
                Fault::StartAgain => server.start_again(),
            },
            Self::Consul(server) => match what {
                Fault::Freeze => server.freeze(),
                Fault::Thaw => server.thaw(),
                Fault::Kill => server.kill(),
                Fault::Wipe => server.wipe(),
                Fault::StartAgain => server.start_again(),
            },
            Self::ZooKeeper(server) => match what {
                Fault::Freeze => server.freeze(),
                Fault::Thaw => server.thaw(),
                Fault::Kill => server.kill(),
                Fault::Wipe => server.wipe(),
                Fault::StartAgain => server.start_again(),
            },
            Self::Memory(_) | Self::Kubernetes(_) => panic!("{what:?}: there is no server"),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Freeze,
    Thaw,
    Kill,
    /// Of a killed one.
    Wipe,
    StartAgain,
}

type Piece = fn(World) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs one piece of the contract against each store.
macro_rules! contract {
    ($($name:ident)*) => {
        mod memory { $(
            #[tokio::test]
            async fn $name() { super::$name(super::World::memory()).await; }
        )* }
        mod etcd { $(
            #[tokio::test]
            async fn $name() { super::$name(super::World::etcd()).await; }
        )* }
        mod consul_store { $(
            #[tokio::test]
            async fn $name() { super::$name(super::World::consul()).await; }
        )* }
        mod zookeeper_store { $(
            #[tokio::test]
            async fn $name() { super::$name(super::World::zookeeper()).await; }
        )* }

        /// The pieces by name, for a store whose server is too dear to be started for each.
        const PIECES: &[(&str, Piece)] = &[$((stringify!($name), |world| Box::pin($name(world)))),*];
    };
}

contract! {
    one_of_eight_contenders_gets_the_lock
    a_dead_holders_lock_ends_after_the_ttl_and_not_before
    renewing_keeps_the_lock_beyond_the_ttl
    a_lock_is_seen_while_it_is_renewed
    conditional_writes_refuse_without_harm
    renewing_takes_a_deleted_lock_again
    renewing_survives_a_revoked_lease
    renewing_tells_who_took_the_lock
    releasing_writes_status_and_wakes_everybody
    only_the_holder_can_release
    a_restarted_member_adopts_its_lock
    a_namesakes_lock_is_not_acquired
    a_namesake_that_takes_the_lock_has_it
    a_predecessors_lock_is_taken_over
    a_member_key_ends_with_its_lease
    a_deleted_member_key_comes_back
    a_changed_ttl_means_a_new_lease_and_keeps_the_lock
    only_what_matters_wakes_the_watchers
}

fn held(lock: Result<Lock, DcsError>) -> Hold {
    match lock {
        Ok(Lock::Held(hold)) => hold,
        other => panic!("expected to hold the lock, got {other:?}"),
    }
}

fn lost(lock: Result<Lock, DcsError>) -> Option<MemberName> {
    match lock {
        Ok(Lock::Lost(to)) => to,
        other => panic!("expected to have lost the lock, got {other:?}"),
    }
}

async fn leader(dcs: &dyn Dcs) -> Option<MemberName> {
    dcs.cluster().await.unwrap().leader.map(|leader| leader.name)
}

async fn until(what: &str, limit: Duration, dcs: &dyn Dcs, condition: impl Fn(&Cluster) -> bool) {
    let started = Instant::now();
    loop {
        let cluster = dcs.cluster().await;
        if cluster.as_ref().is_ok_and(&condition) {
            return;
        }
        assert!(started.elapsed() < limit, "{what} did not happen: {cluster:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn one_of_eight_contenders_gets_the_lock(world: World) {
    let members: Vec<_> = (0..8).map(|i| world.member(&format!("n{i}"))).collect();
    for round in 0..5 {
        let tries = members.iter().map(|member| {
            let member = Arc::clone(member);
            tokio::spawn(async move { member.acquire().await })
        });
        let mut winners = vec![];
        for (i, task) in tries.collect::<Vec<_>>().into_iter().enumerate() {
            if let Lock::Held(_) = task.await.unwrap().unwrap() {
                winners.push(i);
            }
        }
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        let winner = &members[winners[0]];
        assert_eq!(
            leader(&**winner).await,
            Some(MemberName(format!("n{}", winners[0])))
        );
        winner.release(None).await.unwrap();
    }
}

async fn a_dead_holders_lock_ends_after_the_ttl_and_not_before(world: World) {
    let (a, b) = (world.member("a"), world.member("b"));
    held(a.acquire().await);
    sleep(Duration::from_millis(300)).await;
    let hold = held(a.renew().await);
    assert!(hold.ttl >= TTL);
    drop(a);
    loop {
        let taken = b.acquire().await;
        let passed = Boottime::now().since(hold.sent_at);
        match taken {
            Ok(Lock::Held(_)) => {
                assert!(passed >= TTL, "taken over after only {passed:?}");
                println!("{}: lock of {TTL:?} taken over after {passed:?}", b.kind());
                return;
            }
            other => assert_eq!(lost(other), Some("a".into())),
        }
        assert!(
            passed < TTL + Duration::from_millis(1500),
            "still held after {passed:?}"
        );
        sleep(Duration::from_millis(20)).await;
    }
}

async fn renewing_keeps_the_lock_beyond_the_ttl(world: World) {
    let (a, b) = (world.member("a"), world.member("b"));
    let first = held(a.acquire().await);
    let end = Instant::now() + TTL + Duration::from_millis(1500);
    let mut before = first.sent_at;
    let mut slowest = Duration::ZERO;
    while Instant::now() < end {
        sleep(TTL / 4).await;
        let asked = Boottime::now();
        let hold = held(a.renew().await);
        slowest = slowest.max(Boottime::now().since(asked));
        assert!(hold.sent_at >= asked && hold.sent_at > before);
        assert_eq!(hold.lease, first.lease);
        before = hold.sent_at;
        assert_eq!(lost(b.acquire().await), Some("a".into()));
    }
    println!("{}: slowest renewal {slowest:?}", a.kind());
}

async fn a_lock_is_seen_while_it_is_renewed(world: World) {
    let (a, b) = (world.member("a"), world.member("b"));
    let hold = held(a.acquire().await);
    let renewing = {
        let a = Arc::clone(&a);
        tokio::spawn(async move {
            for _ in 0..100 {
                held(a.renew().await);
                // The store in memory never waits by itself.
                tokio::task::yield_now().await;
            }
        })
    };
    let mut looks = 0;
    while !renewing.is_finished() {
        for reader in [&a, &b] {
            let leader = reader.cluster().await.unwrap().leader.expect("somebody leads");
            assert_eq!((leader.name, leader.lease), ("a".into(), hold.lease));
            looks += 1;
        }
        tokio::task::yield_now().await;
    }
    renewing.await.unwrap();
    assert!(looks > 3, "only {looks} looks");
}

async fn conditional_writes_refuse_without_harm(world: World) {
    let a = world.member("a");
    let Written::Yes(first) = a.write(Key::Initialize, "", When::Absent).await.unwrap() else {
        panic!("a free key was refused");
    };
    assert_eq!(
        a.write(Key::Initialize, "x", When::Absent).await.unwrap(),
        Written::Refused
    );
    let wrong = Version(first.0 + 1000);
    assert_eq!(
        a.write(Key::Initialize, "x", When::Version(wrong)).await.unwrap(),
        Written::Refused
    );
    assert_eq!(
        a.delete(Key::Initialize, When::Version(wrong)).await.unwrap(),
        Written::Refused
    );
    assert_eq!(a.cluster().await.unwrap().initialize.as_deref(), Some(""));
    let Written::Yes(second) = a
        .write(Key::Initialize, "123", When::Version(first))
        .await
        .unwrap()
    else {
        panic!("the right version was refused");
    };
    assert_ne!(second, first);
    // Versions of Kubernetes are compared for equality only.
    assert!(second > first || a.kind() == "kubernetes");
    assert_eq!(
        a.delete(Key::Initialize, When::Version(first)).await.unwrap(),
        Written::Refused
    );
    assert!(matches!(
        a.delete(Key::Initialize, When::Version(second)).await.unwrap(),
        Written::Yes(_)
    ));
    assert_eq!(a.cluster().await.unwrap().initialize, None);

    a.write(Key::Config, r#"{"ttl":20}"#, When::Always).await.unwrap();
    let version = a.cluster().await.unwrap().config_version.unwrap();
    let won = a.write(Key::Config, "{}", When::Version(version)).await.unwrap();
    assert_eq!(
        won,
        Written::Yes(a.cluster().await.unwrap().config_version.unwrap())
    );
    let late = a
        .write(Key::Config, r#"{"late":1}"#, When::Version(version))
        .await
        .unwrap();
    assert_eq!(late, Written::Refused);
}

async fn renewing_takes_a_deleted_lock_again(world: World) {
    let a = world.member("a");
    held(a.acquire().await);
    world.remove("leader").await;
    let hold = held(a.renew().await);
    let leader = a.cluster().await.unwrap().leader.unwrap();
    assert_eq!((leader.name, leader.lease), ("a".into(), hold.lease));
}

async fn renewing_survives_a_revoked_lease(world: World) {
    let a = world.member("a");
    let old = held(a.acquire().await);
    held(a.renew().await);
    world.revoke(old.lease).await;
    let new = held(a.renew().await);
    assert_ne!(new.lease, old.lease);
    assert_eq!(a.cluster().await.unwrap().leader.unwrap().lease, new.lease);
    world.revoke(new.lease).await;
    a.touch_member("{}").await.unwrap();
    assert_eq!(a.cluster().await.unwrap().members.len(), 1);
    world.put("leader", "b").await;
    assert_eq!(lost(a.renew().await), Some("b".into()));
}

async fn renewing_tells_who_took_the_lock(world: World) {
    let a = world.member("a");
    held(a.acquire().await);
    world.remove("leader").await;
    let b = world.member("b");
    held(b.acquire().await);
    assert_eq!(lost(a.renew().await), Some("b".into()));
    assert_eq!(leader(&*a).await, Some("b".into()));
}

async fn watching(dcs: &dyn Dcs) -> tokio::sync::watch::Receiver<u64> {
    let mut changes = dcs.changes();
    if dcs.kind() != "memory" {
        timeout(Duration::from_secs(5), changes.wait_for(|n| *n > 0))
            .await
            .unwrap()
            .unwrap();
    }
    changes.mark_unchanged();
    changes
}

async fn releasing_writes_status_and_wakes_everybody(world: World) {
    let (a, b) = (world.member("a"), world.member("b"));
    held(a.acquire().await);
    let mut changes = watching(&*b).await;
    let started = Instant::now();
    a.release(Some(r#"{"optime":77}"#)).await.unwrap();
    timeout(Duration::from_secs(2), changes.changed())
        .await
        .unwrap()
        .unwrap();
    println!(
        "{}: woken {:?} after release() was called",
        b.kind(),
        started.elapsed()
    );
    let cluster = b.cluster().await.unwrap();
    assert_eq!((cluster.leader, cluster.status.optime.0), (None, 77));
    held(b.acquire().await);
}

async fn only_the_holder_can_release(world: World) {
    let (a, b) = (world.member("a"), world.member("b"));
    let namesake = world.member("a");
    held(a.acquire().await);
    for other in [&b, &namesake] {
        other.touch_member("{}").await.unwrap();
        other.release(Some(r#"{"optime":1}"#)).await.unwrap();
    }
    let cluster = a.cluster().await.unwrap();
    assert_eq!(cluster.leader.unwrap().name, "a".into());
    assert_eq!(cluster.status.optime.0, 0);
}

async fn a_restarted_member_adopts_its_lock(world: World) {
    let before = world.member("a");
    let hold = held(before.acquire().await);
    drop(before);
    let after = world.member("a");
    after.adopt(hold.lease).await;
    let kept = held(after.renew().await);
    assert_eq!(kept.ttl, hold.ttl);
    // Who goes on with a session of ZooKeeper's needs its password, so the lock is moved to another one.
    assert!(kept.lease == hold.lease || after.kind() == "zookeeper");
    assert!(kept.sent_at > hold.sent_at);
    held(after.acquire().await);
    after.release(None).await.unwrap();
    assert_eq!(leader(&*after).await, None);
}

async fn a_namesakes_lock_is_not_acquired(world: World) {
    let (a, namesake) = (world.member("a"), world.member("a"));
    held(a.acquire().await);
    assert_eq!(lost(namesake.acquire().await), Some("a".into()));
    held(a.renew().await);
}

async fn a_namesake_that_takes_the_lock_has_it(world: World) {
    let (a, namesake) = (world.member("a"), world.member("a"));
    a.cluster().await.unwrap();
    namesake.cluster().await.unwrap();
    held(a.acquire().await);
    // Both were there before the lock: it is no predecessor's.
    assert_eq!(lost(namesake.renew().await), Some("a".into()));
    a.touch_member("{}").await.unwrap();
    namesake.cluster().await.unwrap();
    assert_eq!(lost(namesake.renew().await), Some("a".into()));
    // The other way round: under a lease of the namesake's.
    world.remove("leader").await;
    held(namesake.acquire().await);
    for _ in 0..2 {
        assert_eq!(lost(a.renew().await), Some("a".into()), "never taken back");
        assert_eq!(lost(a.acquire().await), Some("a".into()));
    }
    held(namesake.renew().await);
}

async fn a_predecessors_lock_is_taken_over(world: World) {
    let before = world.member("a");
    let old = held(before.acquire().await);
    before.touch_member("{}").await.unwrap();
    drop(before);
    let after = world.member("a");
    after.cluster().await.unwrap();
    let new = held(after.renew().await);
    assert_ne!(new.lease, old.lease);
    assert_eq!(after.cluster().await.unwrap().leader.unwrap().lease, new.lease);
}

async fn a_member_key_ends_with_its_lease(world: World) {
    let (a, b) = (world.member("a"), world.member("b"));
    a.touch_member(r#"{"state":"running"}"#).await.unwrap();
    assert_eq!(b.cluster().await.unwrap().members.len(), 1);
    let end = Instant::now() + TTL + TTL / 2;
    while Instant::now() < end {
        sleep(TTL / 5).await;
        a.touch_member(r#"{"state":"running"}"#).await.unwrap();
        assert_eq!(b.cluster().await.unwrap().members.len(), 1, "touching keeps it");
    }
    drop(a);
    let limit = TTL + Duration::from_millis(1500);
    until("the end of the member key", limit, &*b, |c| c.members.is_empty()).await;
}

async fn a_deleted_member_key_comes_back(world: World) {
    let a = world.member("a");
    a.touch_member("{}").await.unwrap();
    world.remove("members/a").await;
    assert!(a.cluster().await.unwrap().members.is_empty());
    a.touch_member("{}").await.unwrap();
    assert_eq!(a.cluster().await.unwrap().members.len(), 1);
    a.remove_member().await.unwrap();
    assert!(a.cluster().await.unwrap().members.is_empty());
    a.touch_member("{}").await.unwrap();
    assert_eq!(a.cluster().await.unwrap().members.len(), 1);
}

async fn a_changed_ttl_means_a_new_lease_and_keeps_the_lock(world: World) {
    let (a, b) = (world.member("a"), world.member("b"));
    let old = held(a.acquire().await);
    a.touch_member("{}").await.unwrap();
    a.set_timing(TTL * 2, RETRY).await;
    let new = held(a.renew().await);
    a.touch_member("{}").await.unwrap();
    assert_ne!(new.lease, old.lease);
    assert_eq!(new.ttl, TTL * 2);
    // The old lease ends; nothing may hang on it any more.
    let end = Instant::now() + TTL + Duration::from_millis(1200);
    while Instant::now() < end {
        sleep(Duration::from_millis(200)).await;
        let cluster = b.cluster().await.unwrap();
        assert!(cluster.leader.is_some() && cluster.members.len() == 1);
    }
    a.release(None).await.unwrap();
    assert_eq!(leader(&*b).await, None);
}

async fn only_what_matters_wakes_the_watchers(world: World) {
    let (a, b) = (world.member("a"), world.member("b"));
    let mut changes = watching(&*b).await;
    let mut worst = Duration::ZERO;
    for key in [Key::Config, Key::Failover, Key::Initialize, Key::Sync] {
        let started = Instant::now();
        a.write(key, "{}", When::Always).await.unwrap();
        timeout(RETRY, changes.changed()).await.unwrap().unwrap();
        worst = worst.max(started.elapsed());
        a.delete(key, When::Always).await.unwrap();
        timeout(RETRY, changes.changed()).await.unwrap().unwrap();
    }
    a.touch_member("{}").await.unwrap();
    timeout(RETRY, changes.changed()).await.unwrap().unwrap();
    held(a.acquire().await);
    timeout(RETRY, changes.changed()).await.unwrap().unwrap();
    println!(
        "{}: slowest wake-up {worst:?} from the start of the write",
        b.kind()
    );

    let quiet = *changes.borrow_and_update();
    for i in 0..3 {
        a.touch_member(&format!(r#"{{"timeline":{i}}}"#)).await.unwrap();
        a.write(Key::Status, &i.to_string(), When::Always).await.unwrap();
        a.write(Key::History, "[]", When::Always).await.unwrap();
        a.write(Key::Failsafe, "{}", When::Always).await.unwrap();
        held(a.renew().await);
    }
    a.remove_member().await.unwrap();
    timeout(RETRY, changes.changed()).await.unwrap().unwrap();
    assert_eq!(
        *changes.borrow_and_update(),
        quiet + 1,
        "only the leaving member counts"
    );
}

/// In Kubernetes a record ends because nobody changes it, and a member with its pod: nothing is bound to a lease.
const NOT_OF_KUBERNETES: [&str; 2] = [
    "renewing_survives_a_revoked_lease",
    "a_member_key_ends_with_its_lease",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_keeps_the_contract_in_all_its_modes() {
    let server = Arc::new(common::kubernetes::Server::start().await);
    let mut failed = vec![];
    for mode in kubernetes::Mode::ALL {
        let pieces = PIECES
            .iter()
            .filter(|(name, _)| !NOT_OF_KUBERNETES.contains(name));
        // A few at once: each spends most of its time waiting.
        for some in pieces.collect::<Vec<_>>().chunks(4) {
            let mut running = vec![];
            for (name, piece) in some {
                let namespace = format!("{}-{}", mode.as_str(), name.replace('_', "-"));
                let namespace = namespace[..namespace.len().min(63)]
                    .trim_end_matches('-')
                    .to_owned();
                let place = Place::new(&server, namespace, mode).await;
                running.push((name, tokio::spawn(piece(World::Kubernetes(place)))));
            }
            for (name, task) in running {
                if let Err(error) = task.await {
                    failed.push(format!("{}: {name}: {error}", mode.as_str()));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Runs what happens to a server against each store that has one.
macro_rules! faults {
    ($($name:ident)*) => {
        mod etcd_server { $(
            #[tokio::test]
            async fn $name() { super::$name(super::World::etcd()).await; }
        )* }
        mod consul_server { $(
            #[tokio::test]
            async fn $name() { super::$name(super::World::consul()).await; }
        )* }
        mod zookeeper_server { $(
            #[tokio::test]
            async fn $name() { super::$name(super::World::zookeeper()).await; }
        )* }
    };
}

faults! {
    a_frozen_server_is_an_error_in_time_and_is_used_again_when_thawed
    a_stopped_server_is_doubt_and_never_proof
    a_restarted_server_is_found_again
    a_wiped_store_is_filled_again_by_the_holder
    a_change_wakes_the_watchers_at_once
}

/// Every call says that it could not ask, and no call says that the lock is lost.
async fn a_stopped_server_is_doubt_and_never_proof(mut world: World) {
    let (a, b) = (world.member("a"), world.member("b"));
    held(a.acquire().await);
    world.server(Fault::Kill);
    let doubt = |what: &str, error: DcsError| {
        assert!(
            matches!(error, DcsError::Timeout { .. } | DcsError::Transport { .. }),
            "{what}: {error}"
        );
    };
    let started = Instant::now();
    doubt("renew", a.renew().await.unwrap_err());
    doubt("acquire", b.acquire().await.unwrap_err());
    doubt("cluster", a.cluster().await.unwrap_err());
    doubt(
        "write",
        a.write(Key::Config, "{}", When::Absent).await.unwrap_err(),
    );
    doubt("touch_member", a.touch_member("{}").await.unwrap_err());
    doubt("release", a.release(None).await.unwrap_err());
    let slack = Duration::from_secs(2);
    assert!(
        started.elapsed() < TTL / 3 * 2 + RETRY * 4 + slack,
        "{:?}",
        started.elapsed()
    );
}

/// How long a watcher needs to hear of a change; what is measured includes the write itself.
async fn a_change_wakes_the_watchers_at_once(world: World) {
    let (a, b) = (world.member("a"), world.member("b"));
    let mut changes = watching(&*b).await;
    let mut took = vec![];
    for i in 0..30 {
        let started = Instant::now();
        a.write(Key::Failover, &format!(r#"{{"n":{i}}}"#), When::Always)
            .await
            .unwrap();
        timeout(RETRY, changes.changed()).await.unwrap().unwrap();
        took.push(started.elapsed());
        // The next one must find the watch waiting again.
        sleep(Duration::from_millis(20)).await;
        changes.mark_unchanged();
    }
    took.sort();
    let median = took[took.len() / 2];
    println!(
        "{}: woken after {median:?} (median), {:?} (worst)",
        b.kind(),
        took[29]
    );
    assert!(median < Duration::from_millis(50), "{median:?}");
}

async fn a_frozen_server_is_an_error_in_time_and_is_used_again_when_thawed(mut world: World) {
    let a = world.member("a");
    held(a.acquire().await);
    a.touch_member("{}").await.unwrap();
    let mut changes = watching(&*a).await;
    world.server(Fault::Freeze);
    let slack = Duration::from_millis(500);
    let started = Instant::now();
    assert!(a.renew().await.is_err());
    assert!(
        started.elapsed() < TTL / 3 + slack,
        "renew took {:?}",
        started.elapsed()
    );
    let started = Instant::now();
    let error = a.cluster().await.unwrap_err();
    assert!(
        started.elapsed() < RETRY + slack,
        "cluster took {:?}",
        started.elapsed()
    );
    assert!(
        matches!(error, DcsError::Timeout { .. } | DcsError::Transport { .. }),
        "{error}"
    );
    world.server(Fault::Thaw);
    let started = Instant::now();
    held(a.renew().await);
    println!("renewed {:?} after the thaw", started.elapsed());
    timeout(Duration::from_secs(5), changes.changed())
        .await
        .unwrap()
        .unwrap();
    println!("watch back {:?} after the thaw", started.elapsed());
}

async fn a_restarted_server_is_found_again(mut world: World) {
    let a = world.member("a");
    let hold = held(a.acquire().await);
    let mut changes = watching(&*a).await;
    world.server(Fault::Kill);
    assert!(a.renew().await.is_err());
    world.server(Fault::StartAgain);
    let started = Instant::now();
    loop {
        match a.renew().await {
            Ok(lock) => {
                assert_eq!(held(Ok(lock)).lease, hold.lease);
                break;
            }
            Err(error) => assert!(started.elapsed() < RETRY, "{error}"),
        }
    }
    println!("renewed {:?} after the restart", started.elapsed());
    timeout(Duration::from_secs(5), changes.changed())
        .await
        .unwrap()
        .unwrap();
}

async fn a_wiped_store_is_filled_again_by_the_holder(mut world: World) {
    let a = world.member("a");
    held(a.acquire().await);
    // Raise the raft term, so that the wiped store's term is smaller.
    for _ in 0..2 {
        world.server(Fault::Kill);
        world.server(Fault::StartAgain);
        until("an answer", RETRY * 2, &*a, |_| true).await;
    }
    world.server(Fault::Kill);
    world.server(Fault::Wipe);
    world.server(Fault::StartAgain);
    until("an answer of the empty store", RETRY * 2, &*a, |c| {
        c.leader.is_none()
    })
    .await;
    held(a.renew().await);
    a.touch_member("{}").await.unwrap();
    let cluster = a.cluster().await.unwrap();
    assert_eq!(
        (cluster.leader.unwrap().name, cluster.members.len()),
        ("a".into(), 1)
    );
}

// From here on: what is particular to etcd.

fn etcd_member(server: &Server, name: &str) -> Etcd {
    Etcd::new(options(&[server.endpoint()], name)).unwrap()
}

/// An endpoint that accepts connections and never says a word.
fn black_hole() -> (std::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[tokio::test]
async fn silent_endpoints_cost_little_and_only_once() {
    let server = Server::start();
    let ((_one, first), (_two, second)) = (black_hole(), black_hole());
    let a = Etcd::new(Options {
        retry_timeout: Duration::from_secs(10),
        ttl: Duration::from_secs(30),
        ..options(&[first, second, server.endpoint()], "a")
    })
    .unwrap();
    let started = Instant::now();
    a.cluster().await.unwrap();
    let cost = started.elapsed();
    println!("first answer behind two silent endpoints after {cost:?}");
    assert!(cost < Duration::from_millis(2500));
    let started = Instant::now();
    held(a.acquire().await);
    held(a.renew().await);
    assert!(
        started.elapsed() < Duration::from_millis(500),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn the_whole_cluster_is_one_revision() {
    use etcd_client::{Txn, TxnOp};
    let server = Server::start();
    let a = etcd_member(&server, "a");
    let mut client = server.client().await;
    let writer = tokio::spawn(async move {
        for i in 0..300 {
            let value = format!(r#"{{"n":{i}}}"#);
            let put = |key: &str| TxnOp::put(format!("/service/demo/{key}"), value.as_str(), None);
            client
                .txn(Txn::new().and_then([put("config"), put("failsafe")]))
                .await
                .unwrap();
        }
    });
    let mut seen = 0;
    while !writer.is_finished() {
        let cluster = a.cluster().await.unwrap();
        assert_eq!(cluster.config, cluster.failsafe);
        seen += usize::from(cluster.config.is_some());
    }
    writer.await.unwrap();
    assert!(seen > 3, "only {seen} reads while writing");
}

#[tokio::test]
async fn garbage_in_the_store_does_no_harm() {
    let server = Server::start();
    let a = etcd_member(&server, "a");
    let mut client = server.client().await;
    for key in [
        "leader",
        "config",
        "members/",
        "members/x",
        "sync",
        "history",
        "status",
        "failover",
        "\u{fffd}",
    ] {
        let key = format!("/service/demo/{key}");
        client.put(key, vec![0xff, 0xfe, 0x00], None).await.unwrap();
    }
    client
        .put(b"/service/demo/members/\xff\xff".to_vec(), "{}", None)
        .await
        .unwrap();
    let cluster = a.cluster().await.unwrap();
    assert!(cluster.leader.is_some());
    assert!(lost(a.acquire().await).is_some());
}

#[tokio::test]
async fn a_server_that_talks_nonsense_is_could_not_ask() {
    let (listener, address) = black_hole();
    std::thread::spawn(move || {
        use std::io::Write as _;
        for connection in listener.incoming() {
            let _ = connection.and_then(|mut c| c.write_all(&[0x5a; 4096]));
        }
    });
    let a = Etcd::new(options(&[address], "a")).unwrap();
    let error = a.renew().await.unwrap_err();
    assert!(
        matches!(error, DcsError::Transport { .. } | DcsError::Timeout { .. }),
        "{error}"
    );
}

async fn with_auth(server: &Server) {
    let mut client = server.client().await;
    for (user, password) in [("root", "rootpw"), ("demo", "secret")] {
        client.user_add(user, password, None).await.unwrap();
        client.role_add(user).await.unwrap();
        client.user_grant_role(user, user).await.unwrap();
    }
    let all = etcd_client::Permission::read_write("/service/demo/").with_prefix();
    client.role_grant_permission("demo", all).await.unwrap();
    client.auth_enable().await.unwrap();
}

fn as_user(server: &Server, password: &str) -> Options {
    Options {
        username: Some("demo".into()),
        password: Some(password.into()),
        ..options(&[server.endpoint()], "a")
    }
}

#[tokio::test]
async fn a_user_without_authentication_switched_on_is_no_obstacle() {
    let server = Server::start();
    let a = Etcd::new(as_user(&server, "whatever")).unwrap();
    held(a.acquire().await);
}

#[tokio::test]
async fn a_wrong_or_missing_password_is_named_as_such() {
    let server = Server::start();
    with_auth(&server).await;
    for options in [as_user(&server, "wrong"), options(&[server.endpoint()], "a")] {
        let a = Etcd::new(options).unwrap();
        let started = Instant::now();
        let error = a.cluster().await.unwrap_err();
        assert!(matches!(error, DcsError::Credentials { .. }), "{error}");
        assert!(!error.to_string().contains("wrong"), "{error}");
        assert!(started.elapsed() < RETRY, "{:?}", started.elapsed());
    }
}

#[tokio::test]
async fn expired_tokens_and_restarts_only_cost_a_new_token() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let mut server = Server::with(&["--auth-token-ttl=1".into()]);
    with_auth(&server).await;
    let a = Etcd::new(Options {
        ttl: Duration::from_secs(20),
        ..as_user(&server, "secret")
    })
    .unwrap();
    held(a.acquire().await);
    a.touch_member("{}").await.unwrap();
    watching(&a).await;
    sleep(Duration::from_millis(2500)).await;
    a.cluster().await.unwrap();
    sleep(Duration::from_millis(2500)).await;
    held(a.renew().await);
    server.kill();
    server.start_again();
    let mut changes = watching(&a).await;
    until("an answer", RETRY * 2, &a, |c| c.leader.is_some()).await;
    held(a.renew().await);
    a.write(Key::Config, "{}", When::Always).await.unwrap();
    timeout(Duration::from_secs(5), changes.changed())
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn tls_works_with_a_client_certificate_and_not_without() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let file = |name: &str| dir.path().join(name);
    let flag = |flag: &str, name: &str| format!("--{flag}={}", file(name).display());
    let server = Server::with(&[
        flag("cert-file", "server.crt"),
        flag("key-file", "server.key"),
        flag("trusted-ca-file", "ca.crt"),
        "--client-cert-auth".into(),
    ]);
    let good = Options {
        retry_timeout: Duration::from_secs(1),
        protocol: Protocol::Https,
        cacert: Some(file("ca.crt")),
        cert: Some(file("client.crt")),
        key: Some(file("client.key")),
        ..options(&[server.endpoint()], "a")
    };
    let a = Etcd::new(good.clone()).unwrap();
    held(a.acquire().await);
    held(a.renew().await);
    watching(&a).await;
    for bad in [
        Options {
            cert: None,
            key: None,
            ..good.clone()
        },
        Options {
            cacert: None,
            ..good.clone()
        },
        Options {
            cacert: Some(file("missing.crt")),
            ..good
        },
    ] {
        let started = Instant::now();
        let error = Etcd::new(bad).unwrap().cluster().await.unwrap_err();
        println!("refused: {error}");
        assert!(
            matches!(error, DcsError::Transport { .. } | DcsError::Credentials { .. }),
            "{error}"
        );
        assert!(started.elapsed() < RETRY, "{:?}", started.elapsed());
    }
}
