//! A paused cluster: nothing happens by itself, what a person asks for happens whole, and what was left alone is put in
//! order after the pause.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    Cluster, SOON, TTL,
    node::{Node, always, code, wait_for},
    outage::{not_fenced, witness},
};

const STARTED: &str = "SELECT pg_postmaster_start_time()::text";

async fn set_pause(cluster: &Cluster, pause: bool) {
    let change = json!({"pause": if pause { Value::Bool(true) } else { Value::Null }});
    let answer = cluster.nodes[0].request("PATCH", "/config", change).await;
    assert_eq!(answer.expect("an answer").0, 200);
    for node in &cluster.nodes {
        wait_for(&format!("{} to notice", node.name), SOON, async || {
            let (_, status) = node.get("/patroni").await?;
            if (status["pause"] == true) == pause {
                Ok(())
            } else {
                Err(status.to_string())
            }
        })
        .await;
    }
}

async fn unlocked(node: &Node) -> Result<(), String> {
    let (_, status) = node.get("/patroni").await?;
    if status["cluster_unlocked"] == true {
        Ok(())
    } else {
        Err(status.to_string())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postmaster_killed_in_a_pause_stays_down_and_nobody_is_promoted() {
    let cluster = Cluster::start(&["pg1", "pg2"]).await;
    let leader = cluster.healthy().await;
    let other = cluster.replicas(leader)[0];
    set_pause(&cluster, true).await;
    let pid = cluster.nodes[leader].postmaster_pid().expect("runs");
    cluster.nodes[leader].signal(pid, "KILL");
    wait_for("the lock to be given back", SOON, async || {
        unlocked(&cluster.nodes[other]).await
    })
    .await;
    always(
        "it stays down, and the other a replica",
        TTL + Duration::from_secs(2),
        async || {
            let roles = (
                cluster.nodes[leader].role().await?,
                cluster.nodes[other].role().await?,
            );
            match (roles.0.as_str(), roles.1.as_str()) {
                ("demoted/crashed" | "demoted/stopped", "replica/running") => Ok(()),
                _ => Err(format!("{roles:?}")),
            }
        },
    )
    .await;
    assert!(
        cluster.nodes[leader]
            .log()
            .contains("PAUSE: postgres is not running")
    );
    let (_, view) = cluster.nodes[other].get("/cluster").await.expect("GET /cluster");
    assert_eq!(view["pause"], true);
    set_pause(&cluster, false).await;
    cluster.healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_primary_goes_on_without_etcd_and_init_lets_it() {
    let mut cluster = Cluster::without_failsafe(&["pg1", "pg2"]).await;
    let leader = cluster.healthy().await;
    let witness = witness(&cluster, leader).await;
    set_pause(&cluster, true).await;
    let from = Instant::now();
    cluster.etcd.freeze();
    let goes_on = async || match witness.last() {
        Some(ack) if witness.sessions() == 1 && ack.at.elapsed() < Duration::from_secs(1) => Ok(()),
        other => Err(format!("{other:?}, {} sessions", witness.sessions())),
    };
    always("it goes on", TTL * 3, goes_on).await;
    cluster.etcd.thaw();
    cluster.nodes[leader].wait_primary(SOON).await;
    always("it goes on with etcd", TTL, goes_on).await;
    set_pause(&cluster, false).await;
    always("it goes on after the pause", TTL, goes_on).await;
    assert!(witness.longest_gap(from, Instant::now()) < Duration::from_secs(1));
    not_fenced(&mut cluster, leader);
    // Fenced and demoted again as ever.
    cluster.etcd.freeze();
    crate::outage::demoted(&cluster, leader, &witness, TTL + Duration::from_secs(2)).await;
    not_fenced(&mut cluster, leader);
    cluster.etcd.thaw();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_starts_without_etcd_knows_of_the_pause() {
    let cluster = Cluster::without_failsafe(&["pg1", "pg2"]).await;
    let leader = cluster.healthy().await;
    let node = &cluster.nodes[leader];
    let witness = witness(&cluster, leader).await;
    set_pause(&cluster, true).await;
    wait_for("the copy of /config", SOON, async || kept(node)).await;
    cluster.etcd.freeze();
    let agent = node.agent_pid().expect("an agent");
    node.signal(agent, "KILL");
    wait_for("another agent", SOON, async || match node.agent_pid() {
        Some(pid) if pid != agent => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let goes_on = async || match witness.last() {
        Some(ack) if witness.sessions() == 1 && ack.at.elapsed() < Duration::from_secs(1) => Ok(()),
        other => Err(format!("{other:?}, {} sessions", witness.sessions())),
    };
    always("the primary goes on", TTL * 3, goes_on).await;
    cluster.etcd.thaw();
    cluster.nodes[leader].wait_primary(SOON).await;
    always("it goes on with etcd", TTL, goes_on).await;
}

fn kept(node: &Node) -> Result<(), String> {
    let path = node.data_dir().join("patroni.dynamic.json");
    let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
    match serde_json::from_str::<Value>(&text) {
        Ok(copy) if copy["pause"] == true => Ok(()),
        _ => Err(text),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_was_wiped_gets_the_configuration_back_from_agents_that_were_restarted() {
    let mut cluster = Cluster::start(&["pg1", "pg2"]).await;
    let change = json!({"maximum_lag_on_failover": 4_711});
    let answer = cluster.nodes[0].request("PATCH", "/config", change).await;
    assert_eq!(answer.expect("an answer").0, 200);
    for node in &cluster.nodes {
        wait_for("the change in all copies", SOON, async || {
            let path = node.data_dir().join("patroni.dynamic.json");
            let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
            let changed = text.contains("4711");
            if changed { Ok(()) } else { Err(text) }
        })
        .await;
    }
    for node in &mut cluster.nodes {
        node.stop(SOON).await;
    }
    cluster.etcd.kill();
    cluster.etcd.wipe();
    cluster.etcd.start_again();
    for node in &mut cluster.nodes {
        node.start();
    }
    let leader = cluster.healthy().await;
    let (_, config) = cluster.nodes[leader].get("/config").await.expect("GET /config");
    assert_eq!(config["maximum_lag_on_failover"], 4_711, "{config}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_person_asks_for_happens_in_a_pause() {
    let cluster = Cluster::start(&["pg1", "pg2", "pg3"]).await;
    let old = cluster.healthy().await;
    set_pause(&cluster, true).await;
    let (new, third) = (cluster.replicas(old)[0], cluster.replicas(old)[1]);
    let name = |index: usize| cluster.nodes[index].name.clone();
    let nobody = json!({"leader": name(old)});
    let answer = cluster.nodes[old].request("POST", "/switchover", nobody).await;
    assert_eq!(answer.expect("an answer").0, 400, "without a candidate");
    let body = json!({"leader": name(old), "candidate": name(new)});
    let answer = cluster.nodes[old].request("POST", "/switchover", body).await;
    assert_eq!(answer.expect("an answer").0, 200);
    assert_eq!(cluster.leader(SOON).await, new);
    for index in [old, third] {
        cluster.nodes[index].wait_streaming(SOON).await;
    }
    // A restart of either kind of member.
    for index in [new, old] {
        let before = cluster.nodes[index].sql(STARTED).await.expect("query");
        let answer = cluster.nodes[index].request("POST", "/restart", json!({})).await;
        assert_eq!(answer, Ok((200, "restarted successfully".into())));
        assert_ne!(cluster.nodes[index].sql(STARTED).await, Ok(before));
    }
    cluster.nodes[new].wait_primary(SOON).await;
    let copies = || cluster.nodes[third].log().matches("done job=\"clone\"").count();
    let before = copies();
    let answer = cluster.nodes[third]
        .request("POST", "/reinitialize", json!({}))
        .await;
    assert_eq!(answer.expect("an answer").0, 200);
    wait_for("the new copy", SOON, async || {
        (copies() > before)
            .then_some(())
            .ok_or_else(|| "not yet".to_owned())
    })
    .await;
    cluster.nodes[third].wait_streaming(SOON).await;
    set_pause(&cluster, false).await;
    assert_eq!(cluster.healthy().await, new);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_stops_in_a_pause_leaves_postgres_running_and_finds_it_again() {
    let mut cluster = Cluster::start(&["pg1", "pg2"]).await;
    let leader = cluster.healthy().await;
    let witness = witness(&cluster, leader).await;
    set_pause(&cluster, true).await;
    let pid = cluster.nodes[leader].postmaster_pid().expect("runs");
    let from = Instant::now();
    let exit = cluster.nodes[leader].stop(SOON).await;
    assert_eq!(code(exit), 0);
    let left = LeftRunning(pid);
    always(
        "postgres goes on, and the other does not lead",
        TTL * 2,
        async || {
            let other = cluster.replicas(leader)[0];
            match (cluster.nodes[other].role().await?.as_str(), witness.last()) {
                ("replica/running", Some(ack)) if ack.at.elapsed() < Duration::from_secs(1) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        },
    )
    .await;
    cluster.nodes[leader].start();
    cluster.nodes[leader].wait_primary(SOON).await;
    assert_eq!(cluster.nodes[leader].postmaster_pid(), Some(pid), "adopted");
    set_pause(&cluster, false).await;
    assert_eq!(cluster.healthy().await, leader);
    assert!(witness.longest_gap(from, Instant::now()) < Duration::from_secs(1));
    assert_eq!(witness.sessions(), 1);
    drop(left);
}

/// Nobody else would end it when the test fails.
struct LeftRunning(i32);

impl Drop for LeftRunning {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _gone = std::process::Command::new("kill")
                .args(["-KILL", &self.0.to_string()])
                .status();
        }
    }
}
