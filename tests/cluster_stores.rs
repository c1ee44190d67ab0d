//! Whole clusters on a real Consul and a real ZooKeeper: what a store has a say in. What does not depend on the store is in cluster.rs.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::type_complexity,
    reason = "tests: a panic is a failure, and waits poll a condition with a deadline"
)]
#![cfg(all(feature = "consul", feature = "zookeeper"))]

#[allow(dead_code, reason = "shared with other rings, which use more of it")]
mod common {
    pub(crate) mod consul;
    pub(crate) mod etcd;
    pub mod node;
    pub mod store;
    pub mod witness;
    pub(crate) mod zookeeper;
}

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use common::{
    node::{Node, always, code, descendants, wait_for},
    store::{Kind, Store},
    witness::Witness,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(40);
const TTL: Duration = Duration::from_secs(5);
const NAMES: [&str; 3] = ["pg1", "pg2", "pg3"];

/// Three members on one store. Fields drop in order: members before the store, the directory last.
struct Cluster {
    nodes: Vec<Node>,
    store: Store,
    _base: TempDir,
}

impl Cluster {
    async fn start(kind: Kind, bootstrap: &str) -> Self {
        let base = tempfile::Builder::new()
            .prefix("howdah-")
            .tempdir()
            .expect("a directory");
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let store = Store::start(kind);
        let mut nodes = Vec::new();
        for name in NAMES {
            let mut node = Node::new(base.path(), name, "demo", &[]);
            store.configure(&mut node);
            node.set("HOWDAH_BOOTSTRAP_DCS", bootstrap).start();
            nodes.push(node);
        }
        let cluster = Self {
            nodes,
            store,
            _base: base,
        };
        cluster.healthy().await;
        cluster
    }

    /// Waits until one leads and all others stream; returns the leader's index.
    async fn healthy(&self) -> usize {
        let leader = self.leader(None, SOON).await;
        for (index, node) in self.nodes.iter().enumerate() {
            if index != leader {
                node.wait_streaming(SOON).await;
            }
        }
        leader
    }

    async fn leader(&self, but: Option<usize>, limit: Duration) -> usize {
        wait_for("a leader", limit, async || {
            let mut seen = Vec::new();
            for (index, node) in self.nodes.iter().enumerate() {
                if Some(index) == but {
                    continue;
                }
                match node.get("/primary").await {
                    Ok((200, status)) if status["role"] == "primary" && status["state"] == "running" => {
                        return Ok(index);
                    }
                    other => seen.push(format!("{}: {other:?}", node.name)),
                }
            }
            Err(seen.join("; "))
        })
        .await
    }

    async fn witness(&self, leader: usize) -> Witness {
        let witness = Witness::start(
            self.nodes[leader].pg_port,
            1 + i64::try_from(leader).unwrap() * 1_000_000,
        );
        wait_for("the witness to write", SOON, async || {
            witness.last().ok_or_else(|| "nothing yet".to_owned())
        })
        .await;
        witness
    }

    /// Fails as soon as the member does not lead, or the witness has lost its session.
    async fn keeps_leading(&self, leader: usize, witness: &Witness, what: &str, duration: Duration) {
        always(what, duration, async || {
            match self.nodes[leader].get("/primary").await? {
                (200, _) if witness.sessions() == 1 => Ok(()),
                (code, _) => Err(format!("{code}, {} sessions", witness.sessions())),
            }
        })
        .await;
    }

    async fn failsafe_names_all(&self, leader: usize) {
        wait_for("/failsafe to name all members", SOON, async || {
            match self.nodes[leader].get("/failsafe").await? {
                (200, Value::Object(members)) if members.len() == NAMES.len() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
}

/// Runs the core set on each store.
macro_rules! on_each_store {
    ($($name:ident)*) => {
        mod consul { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Kind::Consul).await; }
        )* }
        mod zookeeper { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Kind::ZooKeeper).await; }
        )* }
    };
}

on_each_store! {
    three_members_become_a_cluster_that_survives_its_agents
    a_killed_leader_is_replaced_when_its_lock_ends_and_comes_back
    people_look_and_switch_over_and_a_clean_stop_hands_over
    a_frozen_leader_is_fenced_before_another_leads
    without_failsafe_mode_an_outage_of_the_store_demotes_in_time_and_heals
    three_ttl_without_the_store_and_nobody_is_demoted
}

async fn three_members_become_a_cluster_that_survives_its_agents(kind: Kind) {
    let cluster = Cluster::start(kind, "{}").await;
    let leader = cluster.healthy().await;
    let node = &cluster.nodes[leader];
    let witness = cluster.witness(leader).await;
    let postmaster = node.postmaster_pid();
    let from = Instant::now();
    for _ in 0..2 {
        let agent = node.agent_pid().expect("an agent");
        node.signal(agent, "KILL");
        wait_for("a new agent that leads", SOON, async || {
            match (node.agent_pid(), node.get("/primary").await) {
                (Some(pid), Ok((200, status))) if pid != agent && status["state"] == "running" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    // Past the deadline that the first agent had set: the new one has taken the lock over, or init would have fenced.
    cluster
        .keeps_leading(
            leader,
            &witness,
            "it leads with another agent",
            TTL + Duration::from_secs(2),
        )
        .await;
    assert_eq!(node.postmaster_pid(), postmaster, "the postmaster is the same");
    let gap = witness.longest_gap(from, Instant::now());
    println!("longest gap between commits around two lost agents: {gap:?}");
    assert!(gap < Duration::from_millis(500), "no commits for {gap:?}");
    assert_eq!(cluster.healthy().await, leader);
}

async fn a_killed_leader_is_replaced_when_its_lock_ends_and_comes_back(kind: Kind) {
    let mut cluster = Cluster::start(kind, "{}").await;
    let old = cluster.healthy().await;
    cluster.nodes[old]
        .sql("CREATE TABLE t AS SELECT 1 AS x")
        .await
        .expect("create");
    cluster.nodes[old].kill_node();
    let killed = Instant::now();
    let new = cluster.leader(Some(old), TTL + Duration::from_secs(6)).await;
    let took = killed.elapsed();
    println!("failover took {took:?} with a ttl of {TTL:?}");
    assert!(took > TTL / 2, "the lock had to end first");
    assert!(took < TTL + Duration::from_secs(3), "{took:?}");
    cluster.nodes[new]
        .sql("INSERT INTO t VALUES (2)")
        .await
        .expect("the new leader accepts writes");
    cluster.nodes[old].start();
    assert_eq!(cluster.healthy().await, new);
    wait_for("the same content everywhere", SOON, async || {
        match cluster.nodes[old].sql("SELECT sum(x) FROM t").await?.as_str() {
            "3" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
}

async fn people_look_and_switch_over_and_a_clean_stop_hands_over(kind: Kind) {
    let mut cluster = Cluster::start(kind, "{}").await;
    let old = cluster.healthy().await;
    let target = (old + 1) % NAMES.len();
    let (exit, out, err) = cluster.nodes[old]
        .cli(&[
            "switchover",
            "--leader",
            NAMES[old],
            "--candidate",
            NAMES[target],
            "--force",
        ])
        .await;
    assert_eq!(exit, 0, "{out}{err}");
    assert_eq!(cluster.healthy().await, target);
    let (exit, table, err) = cluster.nodes[old].cli(&["list"]).await;
    assert_eq!(exit, 0, "{err}");
    assert!(
        table.contains("Leader")
            && table.matches("streaming").count() == 2
            && !err.contains("cannot be asked"),
        "the command line reads the store itself: {table}{err}"
    );
    let patch = json!({"postgresql": {"parameters": {"work_mem": "7MB"}}});
    let (status, answer) = cluster.nodes[old]
        .request("PATCH", "/config", patch)
        .await
        .expect("PATCH");
    assert_eq!(status, 200, "{answer}");
    for node in &cluster.nodes {
        wait_for("the new parameter", SOON, async || {
            match node.sql("SHOW work_mem").await?.as_str() {
                "7MB" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
    }
    let stopped = Instant::now();
    let exit = cluster.nodes[target].stop(SOON).await;
    assert_eq!(code(exit), 0);
    cluster.leader(Some(target), TTL).await;
    println!("handed over {:?} after the signal", stopped.elapsed());
}

async fn a_frozen_leader_is_fenced_before_another_leads(kind: Kind) {
    let mut cluster = Cluster::start(kind, "{}").await;
    let old = cluster.healthy().await;
    let witness = cluster.witness(old).await;
    // Everything of the leader's, init too, until another has led for a while. Then init is the first to go on.
    let init = cluster.nodes[old].init_pid();
    let tree: Vec<i32> = std::iter::once(init).chain(descendants(init)).collect();
    for pid in &tree {
        cluster.nodes[old].signal(*pid, "STOP");
    }
    let frozen = Instant::now();
    let new = cluster.leader(Some(old), TTL + Duration::from_secs(6)).await;
    let other = cluster.witness(new).await;
    cluster.nodes[old].signal(init, "CONT");
    let exit = cluster.nodes[old].wait_exit(SOON).await;
    assert_eq!(code(exit), 80, "init fenced it at once");
    let last = witness.last().expect("wrote before");
    let begun = other.acks().first().copied().expect("wrote");
    assert!(
        last.at < frozen + TTL && last.at < begun.at,
        "two members acknowledged commits at once"
    );
    cluster.nodes[old].start();
    assert_eq!(cluster.healthy().await, new);
}

async fn without_failsafe_mode_an_outage_of_the_store_demotes_in_time_and_heals(kind: Kind) {
    let cluster = Cluster::start(kind, "{failsafe_mode: false}").await;
    let leader = cluster.healthy().await;
    let witness = cluster.witness(leader).await;
    cluster.store.freeze();
    let frozen = Instant::now();
    wait_for(
        "the demotion",
        TTL + Duration::from_secs(3),
        async || match cluster.nodes[leader].get("/primary").await? {
            (503, status) if status["role"] != "primary" => Ok(()),
            (code, status) => Err(format!("{code} {status}")),
        },
    )
    .await;
    let last = witness.last().expect("wrote before");
    assert!(
        last.at < frozen + TTL,
        "a commit was acknowledged {:?} after the freeze",
        last.at - frozen
    );
    cluster.store.thaw();
    let thawed = Instant::now();
    cluster.healthy().await;
    println!("one leads and all stream {:?} after the thaw", thawed.elapsed());
}

async fn three_ttl_without_the_store_and_nobody_is_demoted(kind: Kind) {
    let mut cluster = Cluster::start(kind, "{}").await;
    let leader = cluster.healthy().await;
    cluster.failsafe_names_all(leader).await;
    let witness = cluster.witness(leader).await;
    let from = Instant::now();
    cluster.store.kill();
    cluster
        .keeps_leading(leader, &witness, "it leads while the store is away", TTL * 3)
        .await;
    cluster.store.start_again();
    cluster
        .keeps_leading(leader, &witness, "it leads when the store is back", TTL)
        .await;
    // And when it comes back empty.
    cluster.failsafe_names_all(leader).await;
    cluster.store.kill();
    cluster.store.wipe();
    cluster.store.start_again();
    cluster
        .keeps_leading(leader, &witness, "it leads with an empty store", TTL * 2)
        .await;
    let gap = witness.longest_gap(from, Instant::now());
    println!("longest gap between commits: {gap:?}");
    assert!(gap < Duration::from_millis(1500), "no commits for {gap:?}");
    assert_eq!(cluster.healthy().await, leader);
}
