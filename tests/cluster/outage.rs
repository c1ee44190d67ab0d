//! etcd stops answering where failsafe mode is off: for a moment, for longer than the lease, and for long with a moment of life in between.

use std::time::{Duration, Instant};

use crate::{
    Cluster, SOON, TTL,
    node::{always, wait_for},
    witness::Witness,
};

/// Of the clusters here.
const RETRY_TIMEOUT: Duration = Duration::from_secs(2);

/// A client that writes on the leader.
pub(crate) async fn witness(cluster: &Cluster, leader: usize) -> Witness {
    let witness = Witness::start(cluster.nodes[leader].pg_port, 1);
    wait_for("the witness to write", SOON, async || {
        witness.last().ok_or_else(|| "nothing yet".to_owned())
    })
    .await;
    witness
}

/// Until the member says it is no leader and no commit was acknowledged for a while.
pub(crate) async fn demoted(cluster: &Cluster, leader: usize, witness: &Witness, limit: Duration) {
    wait_for("the leader to demote", limit, async || {
        let role = cluster.nodes[leader].get("/primary").await?;
        let silent = witness
            .last()
            .is_some_and(|ack| ack.at.elapsed() > Duration::from_millis(500));
        if role.0 == 503 && silent {
            Ok(())
        } else {
            Err(format!("{role:?}"))
        }
    })
    .await;
}

/// It did so by itself: init had no reason to end everything.
pub(crate) fn not_fenced(cluster: &mut Cluster, leader: usize) {
    let node = &mut cluster.nodes[leader];
    assert_eq!(node.exited(), None, "{} was ended:\n{}", node.name, node.log());
}

const STARTED: &str = "SELECT pg_postmaster_start_time()::text";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_outage_of_etcd_changes_nothing_and_a_long_one_demotes_in_time() {
    let mut cluster = Cluster::without_failsafe(&["pg1", "pg2"]).await;
    let leader = cluster.healthy().await;
    let witness = witness(&cluster, leader).await;
    let started = cluster.nodes[leader].sql(STARTED).await.expect("query");
    let node = &cluster.nodes[leader];
    let leads = async || match node.get("/primary").await? {
        (200, _) if witness.sessions() == 1 => Ok(()),
        (code, _) => Err(format!("{code}, {} sessions", witness.sessions())),
    };
    let from = Instant::now();
    cluster.etcd.freeze();
    always(
        "it leads while etcd is away",
        RETRY_TIMEOUT - Duration::from_millis(500),
        leads,
    )
    .await;
    cluster.etcd.thaw();
    // What the outage set off may come with delay: a lease that was not renewed, a demotion that was begun.
    always(
        "it leads after a short outage",
        TTL + Duration::from_secs(2),
        leads,
    )
    .await;
    let gap = witness.longest_gap(from, Instant::now());
    println!("longest gap between commits around a short outage: {gap:?}");
    assert!(gap < Duration::from_secs(1), "no commits for {gap:?}");
    assert_eq!(node.sql(STARTED).await, Ok(started), "the same postmaster");

    cluster.etcd.freeze();
    let frozen = Instant::now();
    demoted(&cluster, leader, &witness, TTL + Duration::from_secs(2)).await;
    let last = witness.last().expect("wrote").at;
    println!("last commit {:?} after the outage began", last - frozen);
    assert!(
        last < frozen + TTL,
        "last commit {:?} after the outage began",
        last - frozen
    );
    assert!(
        last > frozen + RETRY_TIMEOUT / 2,
        "it gave up at once: {:?}",
        last - frozen
    );
    always(
        "nothing is acknowledged while etcd is away",
        TTL,
        async || match witness.last() {
            Some(ack) if ack.at == last => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await;
    not_fenced(&mut cluster, leader);
    cluster.etcd.thaw();
    let leader = cluster.healthy().await;
    assert!(cluster.nodes[leader].sql("SELECT 1").await.is_ok());
}

/// A store that lives for a moment only may accept a renewal and never say so, or answer and be gone at the next
/// question. Neither may confuse the leader about how long it may lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moment_of_etcd_within_a_long_outage_does_not_keep_the_leader_from_demoting_in_time() {
    let mut cluster = Cluster::without_failsafe(&["pg1", "pg2"]).await;
    for moment in [Duration::from_millis(1200), Duration::from_millis(2600)] {
        let leader = cluster.healthy().await;
        let witness = witness(&cluster, leader).await;
        cluster.etcd.freeze();
        let from = Instant::now();
        while from.elapsed() < moment {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cluster.etcd.thaw();
        tokio::time::sleep(Duration::from_millis(5)).await;
        cluster.etcd.freeze();
        let frozen = Instant::now();
        demoted(&cluster, leader, &witness, TTL + Duration::from_secs(2)).await;
        let last = witness.last().expect("wrote").at;
        println!(
            "a moment of etcd after {moment:?}: last commit {:?} after the second freeze",
            last - frozen
        );
        assert!(
            last < frozen + TTL,
            "last commit {:?} after the second freeze",
            last - frozen
        );
        not_fenced(&mut cluster, leader);
        cluster.etcd.thaw();
        cluster.healthy().await;
        not_fenced(&mut cluster, leader);
    }
}
