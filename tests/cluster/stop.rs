//! A leader stops and something that PostgreSQL's own shutdown waits for does not come: a receiver that is frozen, an
//! archive that hangs.
//!
//! The bounds are twice what a quiet machine needs, and less than what it takes where PostgreSQL is waited for: from five
//! seconds (SIGTERM) to half a minute (switchover).

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    Cluster, SOON, missing,
    node::{Node, cmdline, code, descendants, wait_for},
    witness::Witness,
};

/// Docker waits this long after SIGTERM.
const DOCKER: Duration = Duration::from_secs(10);

/// The process of the node whose title has this word.
fn process(node: &Node, word: &str) -> i32 {
    let of_node = descendants(node.init_pid()).into_iter();
    let mut found = of_node.filter(|pid| cmdline(*pid).contains(word));
    found
        .next()
        .unwrap_or_else(|| panic!("{} has no {word}", node.name))
}

/// Everything of the node, as `docker pause` does it.
fn signal_all(node: &Node, signal: &str) {
    for pid in std::iter::once(node.init_pid()).chain(descendants(node.init_pid())) {
        node.signal(pid, signal);
    }
}

/// One that writes on each member as soon as it can.
async fn witnesses(cluster: &Cluster, leader: usize) -> Vec<Witness> {
    let all = cluster.nodes.iter().zip(1..);
    let all: Vec<_> = all
        .map(|(node, n)| Witness::start(node.pg_port, n * 1_000_000))
        .collect();
    written(&all[leader], 50).await;
    all
}

async fn written(witness: &Witness, least: usize) {
    wait_for("commits", SOON, async || match witness.acks().len() {
        enough if enough >= least => Ok(()),
        fewer => Err(format!("{fewer} commits")),
    })
    .await;
}

async fn switchover(cluster: &Cluster, from: usize, to: usize) {
    let (old, new) = (&cluster.nodes[from], &cluster.nodes[to]);
    let args = [
        "switchover",
        "--leader",
        &old.name,
        "--candidate",
        &new.name,
        "--force",
    ];
    let (exit, out, err) = old.cli(&args).await;
    assert_eq!(exit, 0, "{out}{err}");
}

/// How long nobody could write: from the last commit of the old leader to the first of the new one.
async fn gap(witnesses: &[Witness], old: usize, new: usize) -> Duration {
    written(&witnesses[new], 1).await;
    witnesses[new].acks()[0].at - witnesses[old].last().expect("it wrote").at
}

/// What the old leader says about its stop.
fn phases(node: &Node) {
    for line in node.log().lines() {
        if line.contains("released the leader lock before") || line.contains("postgres stopped") {
            println!("{line}");
        }
    }
}

/// The old leader follows, and did so without a rewind.
async fn follows(node: &Node) {
    phases(node);
    node.wait_streaming(SOON).await;
    assert!(
        !node.log().contains("begins job=\"rewind\""),
        "what a shut-down primary wrote is all there"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_receiver_does_not_hold_up_a_switchover() {
    let cluster = Cluster::start(&["pg1", "pg2", "pg3"]).await;
    let old = cluster.healthy().await;
    let [new, frozen] = cluster.replicas(old)[..] else {
        panic!("two replicas");
    };
    let witnesses = witnesses(&cluster, old).await;
    let receiver = process(&cluster.nodes[frozen], "walreceiver");
    cluster.nodes[frozen].signal(receiver, "STOP");
    written(&witnesses[old], witnesses[old].acks().len() + 50).await;
    switchover(&cluster, old, new).await;
    let gap = gap(&witnesses, old, new).await;
    println!("write gap of a switchover beside a frozen receiver: {gap:?}");
    assert!(gap < Duration::from_secs(3), "write gap {gap:?}");
    assert_eq!(missing(&cluster.nodes[new], &witnesses[old]).await, 0, "lost");
    let log = cluster.nodes[old].log();
    assert!(log.contains("released the leader lock before the end"), "{log}");
    follows(&cluster.nodes[old]).await;
    cluster.nodes[frozen].signal(receiver, "CONT");
    cluster.nodes[frozen].wait_streaming(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_cannot_get_rid_of_its_data_does_not_hold_up_a_switchover() {
    let cluster = Cluster::start(&["pg1", "pg2", "pg3"]).await;
    let old = cluster.healthy().await;
    let [new, frozen] = cluster.replicas(old)[..] else {
        panic!("two replicas");
    };
    let witnesses = witnesses(&cluster, old).await;
    let receiver = process(&cluster.nodes[frozen], "walreceiver");
    cluster.nodes[frozen].signal(receiver, "STOP");
    // More than the sockets take: the sender waits inside its send, and cannot be told that the server stops.
    let fill = "CREATE TABLE fill AS SELECT repeat(md5(g::text), 30) FROM generate_series(1, 60000) g";
    cluster.nodes[old].sql(fill).await.expect("write a lot");
    wait_for("the candidate to have it", SOON, async || {
        cluster.nodes[new].sql("SELECT count(*) FROM fill").await
    })
    .await;
    let asked = Instant::now();
    switchover(&cluster, old, new).await;
    println!("switchover took {:?}", asked.elapsed());
    let gap = gap(&witnesses, old, new).await;
    println!("write gap of a switchover beside a blocked sender: {gap:?}");
    assert!(gap < Duration::from_secs(5), "write gap {gap:?}");
    assert_eq!(missing(&cluster.nodes[new], &witnesses[old]).await, 0, "lost");
    follows(&cluster.nodes[old]).await;
    cluster.nodes[frozen].signal(receiver, "CONT");
    cluster.nodes[frozen].wait_streaming(SOON).await;
}

/// Three members whose archive hangs from now on. Not before: making a cluster archives too.
async fn with_a_hanging_archive() -> Cluster {
    let mut cluster = Cluster::prepare(&["pg1", "pg2", "pg3"]);
    let hang = cluster.base.path().join("hang");
    let command = format!("test ! -e {} || sleep 600", hang.display());
    let parameters = json!({"archive_mode": "on", "archive_command": command});
    let configuration = json!({"bootstrap": {"dcs": {"postgresql": {"parameters": parameters}}}});
    for node in &mut cluster.nodes {
        node.set("HOWDAH_CONFIGURATION", &configuration.to_string())
            .start();
    }
    cluster.healthy().await;
    std::fs::write(&hang, "").expect("write");
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_archive_does_not_hold_up_a_switchover() {
    let cluster = with_a_hanging_archive().await;
    let old = cluster.healthy().await;
    let new = cluster.replicas(old)[0];
    let witnesses = witnesses(&cluster, old).await;
    switchover(&cluster, old, new).await;
    let gap = gap(&witnesses, old, new).await;
    println!("write gap of a switchover with a hanging archive: {gap:?}");
    assert!(gap < Duration::from_secs(3), "write gap {gap:?}");
    assert_eq!(missing(&cluster.nodes[new], &witnesses[old]).await, 0, "lost");
    follows(&cluster.nodes[old]).await;
    assert!(
        cluster.nodes[old]
            .log()
            .contains("WAL was not archived before the end")
    );
}

/// The agent dies after it has given the lock away and before its postgres has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_dies_after_the_early_release_leaves_nothing_behind_that_writes() {
    let cluster = with_a_hanging_archive().await;
    let old = cluster.healthy().await;
    let new = cluster.replicas(old)[0];
    let witnesses = witnesses(&cluster, old).await;
    switchover(&cluster, old, new).await;
    let node = &cluster.nodes[old];
    wait_for("the early release", SOON, async || match node.log() {
        log if log.contains("released the leader lock before the end") => Ok(()),
        log => Err(log),
    })
    .await;
    let postmaster = node.postmaster_pid().expect("the archiver still holds it up");
    let last = witnesses[old].last().expect("it wrote").id;
    let asked = Instant::now();
    node.signal(node.agent_pid().expect("an agent"), "KILL");
    wait_for("the old postmaster to end", SOON, async || {
        match node.postmaster_pid() {
            Some(pid) if pid == postmaster => Err("it lives".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    println!("the adopted postmaster was gone after {:?}", asked.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
    assert_eq!(
        witnesses[old].last().expect("it wrote").id,
        last,
        "it wrote again"
    );
    written(&witnesses[new], 50).await;
    assert_eq!(missing(&cluster.nodes[new], &witnesses[old]).await, 0, "lost");
    follows(node).await;
    assert_eq!(cluster.leader(SOON).await, new, "nobody else led meanwhile");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_archive_does_not_hold_up_the_end_of_a_leader() {
    let mut cluster = with_a_hanging_archive().await;
    let old = cluster.healthy().await;
    let witnesses = witnesses(&cluster, old).await;
    let asked = Instant::now();
    cluster.nodes[old].signal(cluster.nodes[old].init_pid(), "TERM");
    let new = cluster.other_leader(old, SOON).await;
    let gap = gap(&witnesses, old, new).await;
    println!("write gap of a SIGTERM with a hanging archive: {gap:?}");
    assert!(gap < Duration::from_secs(4), "write gap {gap:?}");
    let exit = cluster.nodes[old].wait_exit(DOCKER).await;
    println!("the process was gone after {:?}", asked.elapsed());
    assert!(asked.elapsed() < DOCKER, "gone after {:?}", asked.elapsed());
    assert_eq!(code(exit), 0, "postgres was shut down, so this is a clean end");
    assert_eq!(missing(&cluster.nodes[new], &witnesses[old]).await, 0, "lost");
    cluster.nodes[old].start();
    follows(&cluster.nodes[old]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_replicas_are_all_frozen_ends_in_time_and_leaves_the_lock_free() {
    let mut cluster = Cluster::start(&["pg1", "pg2", "pg3"]).await;
    let old = cluster.healthy().await;
    let replicas = cluster.replicas(old);
    for index in &replicas {
        signal_all(&cluster.nodes[*index], "STOP");
    }
    let asked = Instant::now();
    let exit = cluster.nodes[old].stop(DOCKER).await;
    println!("the process was gone after {:?}", asked.elapsed());
    assert!(
        asked.elapsed() < Duration::from_millis(4500),
        "gone after {:?}",
        asked.elapsed()
    );
    assert_eq!(code(exit), 0);
    let log = cluster.nodes[old].log();
    assert!(
        log.contains("nobody has everything that was written here"),
        "{log}"
    );
    let mut client = cluster.etcd.client().await;
    let key = client.get("/service/demo/leader", None).await.expect("ask etcd");
    assert_eq!(
        key.count(),
        0,
        "the lock was released, nobody has to wait for ttl"
    );
    for index in &replicas {
        signal_all(&cluster.nodes[*index], "CONT");
    }
    let new = cluster.leader(SOON).await;
    assert_ne!(new, old);
    cluster.nodes[old].start();
    cluster.healthy().await;
}
