//! Whole clusters whose store is a real Kubernetes API server: real members as plain processes, real postgres, pods that
//! are objects only. What does not depend on the store is in cluster.rs.
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
#![cfg(feature = "kubernetes")]

#[allow(dead_code, reason = "shared with other rings, which use more of it")]
mod common {
    pub(crate) mod etcd;
    pub(crate) mod kubernetes;
    pub mod node;
    pub mod witness;
}

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use common::{
    kubernetes::Server,
    node::{Node, always, code, descendants, wait_for},
    witness::Witness,
};
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(40);
const TTL: Duration = Duration::from_secs(5);
const NAMES: [&str; 3] = ["pg1", "pg2", "pg3"];

/// Three members and their API server. Fields drop in order: members before the store, the directory last.
struct Cluster {
    nodes: Vec<Node>,
    server: Server,
    base: TempDir,
}

impl Cluster {
    async fn start(mode: &str, bootstrap: &str) -> Self {
        let base = tempfile::Builder::new()
            .prefix("howdah-")
            .tempdir()
            .expect("a directory");
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let server = Server::start().await;
        server.namespace("db").await;
        server
            .pods(
                "db",
                &NAMES,
                &json!({"application": "howdah", "cluster-name": "demo"}),
            )
            .await;
        let kubeconfig = server.admin_kubeconfig().display().to_string();
        let mut nodes = Vec::new();
        for (name, number) in NAMES.iter().zip(1..) {
            let mut node = Node::new(base.path(), name, "demo", &[]);
            node.env.remove("HOWDAH_ETCD3_HOSTS");
            node.set("HOWDAH_KUBERNETES_MODE", mode)
                .set("HOWDAH_KUBERNETES_NAMESPACE", "db")
                .set("HOWDAH_KUBERNETES_LABELS", "{application: howdah}")
                .set("HOWDAH_KUBERNETES_KUBECONFIG", &kubeconfig)
                .set("HOWDAH_KUBERNETES_POD_IP", &format!("10.0.0.{number}"))
                .set("HOWDAH_BOOTSTRAP_DCS", bootstrap)
                .start();
            nodes.push(node);
        }
        let cluster = Self { nodes, server, base };
        cluster.healthy().await;
        cluster
    }

    /// Waits until one leads and all others stream; returns the leader's index.
    async fn healthy(&self) -> usize {
        let leader = self.leader(None, SOON).await;
        for index in self.others(leader) {
            self.nodes[index].wait_streaming(SOON).await;
        }
        leader
    }

    async fn leader(&self, but: Option<usize>, limit: Duration) -> usize {
        wait_for("a leader", limit, async || {
            let mut seen = Vec::new();
            for (index, node) in self
                .nodes
                .iter()
                .enumerate()
                .filter(|(index, _)| Some(*index) != but)
            {
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

    fn others(&self, leader: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|index| *index != leader).collect()
    }

    /// The labels of the pods, and where the leader's Service leads, as they are for a cluster that is well.
    async fn published(&self, leader: usize) {
        wait_for("the API to show who leads", SOON, async || {
            let mut roles = Vec::new();
            for name in NAMES {
                let pod = self
                    .server
                    .get(&format!("/api/v1/namespaces/db/pods/{name}"))
                    .await;
                roles.push(
                    pod["metadata"]["labels"]["role"]
                        .as_str()
                        .unwrap_or("-")
                        .to_owned(),
                );
            }
            let wanted = (0..3).map(|index| if index == leader { "primary" } else { "replica" });
            let endpoints = self.server.get("/api/v1/namespaces/db/endpoints/demo").await;
            let address = &endpoints["subsets"][0]["addresses"];
            let leads_there =
                address[0]["ip"] == format!("10.0.0.{}", leader + 1) && address[1] == Value::Null;
            match roles.iter().map(String::as_str).eq(wanted) && leads_there {
                true => Ok(()),
                false => Err(format!("{roles:?} {endpoints}")),
            }
        })
        .await;
    }

    async fn witness(&self, leader: usize) -> Witness {
        let witness = Witness::start(self.nodes[leader].pg_port, 1_000_000);
        wait_for("the witness to write", SOON, async || {
            witness.last().ok_or_else(|| "nothing yet".to_owned())
        })
        .await;
        witness
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_in_endpoints_lives_through_switchover_crash_and_freeze() {
    let mut cluster = Cluster::start("endpoints", "{}").await;
    let first = cluster.healthy().await;
    cluster.published(first).await;

    // The command line works over the same store.
    let (exit, out, err) = cluster.nodes[first].cli(&["list"]).await;
    assert_eq!(exit, 0, "{out}{err}");
    assert!(NAMES.iter().all(|name| out.contains(name)), "{out}");
    let second = cluster.others(first)[0];
    let (leader, candidate) = (
        cluster.nodes[first].name.clone(),
        cluster.nodes[second].name.clone(),
    );
    let asked = Instant::now();
    let arguments = [
        "switchover",
        "--leader",
        &leader,
        "--candidate",
        &candidate,
        "--force",
    ];
    let (exit, out, err) = cluster.nodes[first].cli(&arguments).await;
    assert_eq!(exit, 0, "{out}{err}");
    cluster.nodes[second].wait_primary(SOON).await;
    println!("switchover took {:?}", asked.elapsed());
    assert_eq!(cluster.healthy().await, second);
    cluster.published(second).await;
    let patch = json!({"maximum_lag_on_failover": 2_000_000});
    let (status, answer) = cluster.nodes[first]
        .request("PATCH", "/config", patch)
        .await
        .expect("answers");
    assert_eq!(
        (status, &answer["maximum_lag_on_failover"]),
        (200, &json!(2_000_000)),
        "{answer}"
    );

    // The leader's host loses power.
    let killed = Instant::now();
    cluster.nodes[second].kill_node();
    let third = cluster.leader(Some(second), TTL + Duration::from_secs(6)).await;
    let took = killed.elapsed();
    println!("failover took {took:?} with a ttl of {TTL:?}");
    assert!(took > TTL / 2, "the lock had to end first");
    cluster.nodes[second].start();
    assert_eq!(cluster.healthy().await, third);
    cluster.published(third).await;

    // Everything of the leader's is frozen, init too, until another has led for a while. Then init is the first to go on.
    let witness = cluster.witness(third).await;
    let init = cluster.nodes[third].init_pid();
    let tree: Vec<i32> = std::iter::once(init).chain(descendants(init)).collect();
    for pid in &tree {
        cluster.nodes[third].signal(*pid, "STOP");
    }
    let frozen = Instant::now();
    let fourth = cluster.leader(Some(third), TTL + Duration::from_secs(6)).await;
    let other = cluster.witness(fourth).await;
    cluster.nodes[third].signal(init, "CONT");
    let exit = cluster.nodes[third].wait_exit(SOON).await;
    assert_eq!(code(exit), 80, "init fenced it at once");
    let last = witness.last().expect("wrote before");
    let begun = other.acks().first().copied().expect("wrote");
    assert!(
        last.at < frozen + TTL && last.at < begun.at,
        "two members acknowledged commits at once"
    );
    cluster.nodes[third].start();
    assert_eq!(cluster.healthy().await, fourth);
    cluster.published(fourth).await;

    // A clean stop hands over without waiting for the ttl.
    let stopped = Instant::now();
    let exit = cluster.nodes[fourth].stop(SOON).await;
    assert_eq!(code(exit), 0);
    cluster.leader(Some(fourth), TTL).await;
    println!("handed over {:?} after the signal", stopped.elapsed());
    let pod = cluster
        .server
        .get(&format!(
            "/api/v1/namespaces/db/pods/{}",
            cluster.nodes[fourth].name
        ))
        .await;
    assert_eq!(
        pod["metadata"]["labels"]["role"],
        Value::Null,
        "nobody is led to a stopped member"
    );
    drop(cluster.base);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_ttl_without_the_api_server_and_nobody_is_demoted() {
    let mut cluster = Cluster::start("leases", "{}").await;
    let leader = cluster.healthy().await;
    wait_for("/failsafe to name all members", SOON, async || {
        match cluster.nodes[leader].get("/failsafe").await? {
            (200, Value::Object(members)) if members.len() == NAMES.len() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let witness = cluster.witness(leader).await;
    let from = Instant::now();
    cluster.server.kill();
    let leads = async || match cluster.nodes[leader].get("/primary").await? {
        (200, _) if witness.sessions() == 1 => Ok(()),
        (code, _) => Err(format!("{code}, {} sessions", witness.sessions())),
    };
    always("it leads while the API server is away", TTL * 3, leads).await;
    cluster.server.start_again().await;
    let leads = async || match cluster.nodes[leader].get("/primary").await? {
        (200, _) if witness.sessions() == 1 => Ok(()),
        (code, _) => Err(format!("{code}, {} sessions", witness.sessions())),
    };
    always("it leads when the API server is back", TTL, leads).await;
    let gap = witness.longest_gap(from, Instant::now());
    println!("longest gap between commits: {gap:?}");
    assert!(gap < Duration::from_millis(1500), "no commits for {gap:?}");
    let path = "/apis/coordination.k8s.io/v1/namespaces/db/leases/demo";
    let (status, lease) = cluster.server.request(Method::GET, path, None).await;
    assert_eq!(
        (status, &lease["spec"]["holderIdentity"]),
        (200, &json!(cluster.nodes[leader].name))
    );
    assert_eq!(cluster.healthy().await, leader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_failsafe_mode_a_frozen_api_server_demotes_in_time_and_heals() {
    let cluster = Cluster::start("configmaps", "{failsafe_mode: false}").await;
    let leader = cluster.healthy().await;
    let witness = cluster.witness(leader).await;
    cluster.server.freeze();
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
    cluster.server.thaw();
    let thawed = Instant::now();
    cluster.healthy().await;
    println!("one leads and all stream {:?} after the thaw", thawed.elapsed());
}
