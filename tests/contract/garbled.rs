//! Answers that no server gave: never a panic, never taken for the loss of a lock that its holder has.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use howdah::dcs::{Dcs, Lock};
use tokio::time::timeout;

use super::{
    Etcd, Place, common, common::garbler::Garbler, consul, consul_options, held, kubernetes, options,
    zookeeper, zookeeper_options,
};

/// How many answers are spoilt.
const ENOUGH: usize = 10_000;
/// So many holders, each of a lock of its own, because each needs a moment after a spoilt answer.
const HOLDERS: usize = 96;
const TTL: Duration = Duration::from_secs(12);
const RETRY: Duration = Duration::from_secs(2);
/// Three times as long for renewals among spoilt answers and for the one after them, there is lease time left.
const ROUND: Duration = Duration::from_secs(3);

async fn nobody_loses_his_lock(way: &Garbler, holders: Vec<Arc<dyn Dcs>>) {
    for holder in &holders {
        holder.set_timing(TTL, RETRY).await;
        held(holder.acquire().await);
        holder.touch_member("{}").await.unwrap();
    }
    let begun = Instant::now();
    let mut believed = 0;
    while way.spoilt() < ENOUGH {
        way.spoil();
        let until = Instant::now() + ROUND;
        let under_fire = holders.iter().map(|holder| {
            let holder = Arc::clone(holder);
            tokio::spawn(async move { uses_it(&*holder, until).await })
        });
        for task in under_fire.collect::<Vec<_>>() {
            believed += task.await.unwrap();
        }
        way.spare();
        let again = holders.iter().map(|holder| {
            let holder = Arc::clone(holder);
            tokio::spawn(async move { is_well_again(&*holder).await })
        });
        for task in again.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    }
    println!(
        "{} answers spoilt within {:?}, {believed} calls succeeded among them",
        way.spoilt(),
        begun.elapsed()
    );
    assert!(believed > 0, "nothing came through: the way was shut, not spoilt");
}

/// Does what a leader's agent does; how much of it succeeded.
async fn uses_it(holder: &dyn Dcs, until: Instant) -> usize {
    let mut succeeded = 0;
    while Instant::now() < until {
        match holder.renew().await {
            Ok(Lock::Lost(to)) => panic!("a spoilt answer was taken for the loss of the lock, to {to:?}"),
            Ok(Lock::Held(_)) => succeeded += 1,
            Err(_) => {}
        }
        if let Ok(cluster) = holder.cluster().await {
            let leader = cluster.leader.map(|leader| leader.name.0);
            assert_eq!(
                leader.as_deref(),
                Some("a"),
                "a spoilt answer was taken for a view"
            );
            succeeded += 1;
        }
        succeeded += usize::from(holder.touch_member("{}").await.is_ok());
    }
    succeeded
}

/// Connections may still be out of step; the lease outlives that.
async fn is_well_again(holder: &dyn Dcs) {
    let renewed = timeout(TTL - ROUND - RETRY, async {
        loop {
            match holder.renew().await {
                Ok(Lock::Held(_)) => return,
                Ok(Lock::Lost(to)) => panic!("the lock was lost, to {to:?}"),
                Err(_) => {}
            }
        }
    });
    renewed.await.expect("no renewal over an honest way");
}

fn scope(i: usize) -> String {
    format!("demo{i}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_that_is_garbled_costs_no_lock() {
    let server = common::etcd::Server::start();
    let way = Garbler::to(port(&server.endpoint())).await;
    let holder = |i| {
        let mut options = options(&[way.endpoint()], "a");
        options.scope = scope(i);
        Arc::new(Etcd::new(options).unwrap()) as Arc<dyn Dcs>
    };
    nobody_loses_his_lock(&way, (0..HOLDERS).map(holder).collect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consul_that_is_garbled_costs_no_lock() {
    let server = common::consul::Server::start();
    let way = Garbler::to(port(&server.endpoint())).await;
    let holder = |i| {
        let mut options = consul_options(way.endpoint(), "a");
        options.scope = scope(i);
        Arc::new(consul::Consul::new(options).unwrap()) as Arc<dyn Dcs>
    };
    nobody_loses_his_lock(&way, (0..HOLDERS).map(holder).collect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zookeeper_that_is_garbled_costs_no_lock() {
    let server = common::zookeeper::Server::start();
    let way = Garbler::to(port(&server.endpoint())).await;
    let holder = |i| {
        let mut options = zookeeper_options(way.endpoint(), "a");
        options.scope = scope(i);
        Arc::new(zookeeper::ZooKeeper::new(options).unwrap()) as Arc<dyn Dcs>
    };
    nobody_loses_his_lock(&way, (0..HOLDERS).map(holder).collect()).await;
}

/// TLS sees through all of it, but connections break in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbled_kubernetes_keeps_its_lock() {
    let server = Arc::new(common::kubernetes::Server::start().await);
    let way = Garbler::to(server.port()).await;
    let kubeconfig = std::fs::read_to_string(server.admin_kubeconfig()).unwrap();
    let (real, spoilt) = (format!(":{}", server.port()), format!(":{}", way.port));
    assert!(kubeconfig.contains(&real), "{kubeconfig}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    std::fs::write(&file, kubeconfig.replace(&real, &spoilt)).unwrap();
    let mut holders = vec![];
    for i in 0..HOLDERS {
        let place = Place::new(&server, scope(i), kubernetes::Mode::ALL[i % 3]).await;
        let mut options = place.options("a");
        options.kubeconfig = Some(file.clone());
        holders.push(kubernetes::Kubernetes::new(options).unwrap() as Arc<dyn Dcs>);
    }
    nobody_loses_his_lock(&way, holders).await;
}

fn port(endpoint: &str) -> u16 {
    endpoint.rsplit(':').next().unwrap().parse().unwrap()
}
