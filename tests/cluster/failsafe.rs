//! The store is away and all members see each other: the leader goes on. One of them does not answer: it does not.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    Cluster, SOON, TTL,
    node::{Node, always, wait_for},
    outage::{demoted, not_fenced, witness},
    proxy::Proxy,
};

const STARTED: &str = "SELECT pg_postmaster_start_time()::text";

/// Waits until the leader has written who is to be asked.
async fn named(cluster: &Cluster, leader: usize) {
    let mut names: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
    names.sort_unstable();
    wait_for("/failsafe to name all members", SOON, async || {
        match cluster.nodes[leader].get("/failsafe").await? {
            (200, Value::Object(members)) if members.keys().eq(names.iter()) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn active(node: &Node) -> Result<bool, String> {
    let (_, status) = node.get("/patroni").await?;
    Ok(status["failsafe_mode_is_active"] == true)
}

/// What is promised must be for all members and not for the leader alone.
async fn nobody_else_leads(cluster: &Cluster, leader: usize) -> Result<(), String> {
    for index in cluster.replicas(leader) {
        let (code, status) = cluster.nodes[index].get("/primary").await?;
        if code != 503 || status["role"] != "replica" {
            return Err(format!("{}: {code} {status}", cluster.nodes[index].name));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_ttl_without_etcd_and_nobody_is_demoted() {
    let mut cluster = Cluster::start(&["pg1", "pg2", "pg3"]).await;
    let leader = cluster.healthy().await;
    named(&cluster, leader).await;
    let witness = witness(&cluster, leader).await;
    let started = cluster.nodes[leader].sql(STARTED).await.expect("query");
    let from = Instant::now();
    cluster.etcd.freeze();
    let leads = async || {
        nobody_else_leads(&cluster, leader).await?;
        match cluster.nodes[leader].get("/primary").await? {
            (200, _) if witness.sessions() == 1 => Ok(()),
            (code, _) => Err(format!("{code}, {} sessions", witness.sessions())),
        }
    };
    always("it leads while etcd is away", TTL * 3, leads).await;
    for node in &cluster.nodes {
        assert!(active(node).await.expect("answers"), "{}", node.name);
    }
    cluster.etcd.thaw();
    always("it leads when etcd is back", TTL, leads).await;
    let gap = witness.longest_gap(from, Instant::now());
    println!("longest gap between commits in 4 ttl, 3 of them without etcd: {gap:?}");
    assert!(gap < Duration::from_secs(1), "no commits for {gap:?}");
    assert_eq!(
        cluster.nodes[leader].sql(STARTED).await,
        Ok(started),
        "the same postmaster"
    );
    not_fenced(&mut cluster, leader);
    // What was promised has been given back, or is over: another may lead as soon as it is asked to.
    named(&cluster, leader).await;
    let other = cluster.replicas(leader)[0];
    let body = json!({"leader": cluster.nodes[leader].name, "candidate": cluster.nodes[other].name});
    let asked = Instant::now();
    let answer = cluster.nodes[leader].request("POST", "/switchover", body).await;
    assert_eq!(answer.expect("an answer").0, 200, "switchover");
    cluster.nodes[other].wait_primary(SOON).await;
    println!("a switchover after the outage took {:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_etcd_and_without_one_member_the_leader_is_demoted_in_time() {
    let mut cluster = Cluster::start(&["pg1", "pg2", "pg3"]).await;
    let leader = cluster.healthy().await;
    named(&cluster, leader).await;
    let witness = witness(&cluster, leader).await;
    cluster.etcd.freeze();
    let frozen = Instant::now();
    let dead = cluster.replicas(leader)[0];
    cluster.nodes[dead].kill_node();
    demoted(&cluster, leader, &witness, TTL + Duration::from_secs(2)).await;
    let last = witness.last().expect("wrote").at;
    println!("last commit {:?} after the outage began", last - frozen);
    assert!(last < frozen + TTL, "last commit {:?}", last - frozen);
    not_fenced(&mut cluster, leader);
    assert!(
        cluster.nodes[leader]
            .log()
            .contains(&format!("'{}': cannot talk to", cluster.nodes[dead].name)),
        "the log says who did not accept"
    );
    cluster.etcd.thaw();
    cluster.leader(SOON).await;
}

/// Members whose way to the store goes through a proxy each.
async fn behind_proxies(names: &[&str]) -> (Cluster, Vec<Proxy>) {
    let mut cluster = Cluster::prepare(names);
    let mut proxies = Vec::new();
    for node in &mut cluster.nodes {
        let proxy = Proxy::to(cluster.etcd.client_port).await;
        node.set("HOWDAH_ETCD3_HOSTS", &proxy.endpoint());
        node.start();
        proxies.push(proxy);
    }
    cluster.healthy().await;
    (cluster, proxies)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_from_etcd_alone_goes_on_and_dies_without_a_second_one() {
    let (mut cluster, proxies) = behind_proxies(&["pg1", "pg2", "pg3"]).await;
    let leader = cluster.healthy().await;
    named(&cluster, leader).await;
    let witness = witness(&cluster, leader).await;
    proxies[leader].cut();
    let from = Instant::now();
    always("it leads, and nobody else", TTL * 3, async || {
        nobody_else_leads(&cluster, leader).await?;
        match cluster.nodes[leader].get("/primary").await? {
            (200, _) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let gap = witness.longest_gap(from, Instant::now());
    assert!(gap < Duration::from_secs(1), "no commits for {gap:?}");
    // The lock has been free for long: only what the others promised keeps them from it.
    let (_, view) = cluster.nodes[cluster.replicas(leader)[0]]
        .get("/patroni")
        .await
        .expect("answers");
    assert_eq!(view["cluster_unlocked"], true, "{view}");
    proxies[leader].mend();
    wait_for("it to have the lock again", SOON, async || {
        let (_, status) = cluster.nodes[leader].get("/patroni").await?;
        match (
            status["failsafe_mode_is_active"] == true,
            status["cluster_unlocked"] == true,
        ) {
            (false, false) => Ok(()),
            _ => Err(status.to_string()),
        }
    })
    .await;
    assert_eq!(witness.sessions(), 1, "one session all the time");
    // It has written the key anew since, and read it back.
    wait_for("it to be sure whom to ask", SOON, async || {
        let (_, status) = cluster.nodes[leader].get("/patroni").await?;
        match status["howdah"]["without_dcs"].as_str() {
            Some(outlook) if outlook.contains("would stay") => Ok(()),
            _ => Err(status.to_string()),
        }
    })
    .await;
    // Once more; now it dies while it lives by the consent of the others.
    proxies[leader].cut();
    wait_for("the others to have promised", SOON, async || {
        match active(&cluster.nodes[leader]).await? {
            true => Ok(()),
            false => Err("not yet".to_owned()),
        }
    })
    .await;
    cluster.nodes[leader].kill_node();
    let killed = Instant::now();
    let new = cluster
        .other_leader(leader, TTL * 2 + Duration::from_secs(5))
        .await;
    println!(
        "a new leader {:?} after the death of one without etcd",
        killed.elapsed()
    );
    cluster.nodes[new]
        .sql("INSERT INTO witness VALUES (-1)")
        .await
        .expect("writes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_etcd_is_filled_again_by_the_running_leader() {
    let mut cluster = Cluster::start(&["pg1", "pg2", "pg3"]).await;
    let leader = cluster.healthy().await;
    named(&cluster, leader).await;
    let witness = witness(&cluster, leader).await;
    let (_, before) = cluster.nodes[leader].get("/config").await.expect("GET /config");
    let id = "SELECT system_identifier::text FROM pg_control_system()";
    let identity = cluster.nodes[leader].sql(id).await.expect("query");
    let from = Instant::now();
    cluster.etcd.kill();
    cluster.etcd.wipe();
    always("it leads while etcd is away", TTL * 2, async || {
        match cluster.nodes[leader].get("/primary").await? {
            (200, _) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    cluster.etcd.start_again();
    named(&cluster, leader).await;
    always("it leads in the new store", TTL, async || {
        nobody_else_leads(&cluster, leader).await
    })
    .await;
    let gap = witness.longest_gap(from, Instant::now());
    assert!(gap < Duration::from_secs(1), "no commits for {gap:?}");
    let (_, after) = cluster.nodes[leader].get("/config").await.expect("GET /config");
    assert_eq!(before, after);
    let mut store = cluster.etcd.client().await;
    let stored = store.get("/service/demo/initialize", None).await.expect("read");
    let stored = stored
        .kvs()
        .first()
        .map(|kv| kv.value_str().expect("text").to_owned());
    assert_eq!(stored, Some(identity));
    not_fenced(&mut cluster, leader);
}
