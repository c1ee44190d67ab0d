//! The cluster ring: three real members, real postgres, real etcd, no container.
//!
//! Every member is a `howdah` process that is its own init, exactly as README's example without containers starts it.
//! Here: the leader of a cluster is killed, stopped, frozen, asked to hand over. Elsewhere:
//!
//! | module      | what is broken there                                                       |
//! |-------------|----------------------------------------------------------------------------|
//! | `bootstrap` | nothing: commands of the operator's make clusters and replicas             |
//! | `cli`       | nothing: what people type                                                  |
//! | `comeback`  | all members stop and return, in any order                                   |
//! | `config`    | settings: for one role, that wait for a restart, that nobody can use        |
//! | `failsafe`  | etcd, while the members see each other                                      |
//! | `footprint` | nothing: a member does not grow                                             |
//! | `hung`      | a postmaster is stopped, an answer is slow; watchdog; the shortest lease    |
//! | `manual`    | nothing: people ask for things, now and later                               |
//! | `metrics`   | nothing: what a change of leader leaves in the metrics                       |
//! | `outage`    | etcd                                                                        |
//! | `pause`     | what runs, while nobody is to do anything about it                          |
//! | `readme`    | nothing: README's example runs as it is written                             |
//! | `refusals`  | what a member is given: settings, ports, passwords, disks, data             |
//! | `secrets`   | nothing: passwords are looked for everywhere                                |
//! | `standby`   | the leader of a cluster that follows another                                |
//! | `sync`      | standbys and leaders of clusters in a synchronous mode                      |
//! | `stop`      | what PostgreSQL's own shutdown waits for: receivers, the archive            |
//! | `slots`     | who needs WAL: members that are away, leaders that consumers read from      |
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

#[path = "cluster/bootstrap.rs"]
mod bootstrap;
#[path = "common/certificates.rs"]
mod certificates;
#[path = "cluster/cli.rs"]
mod cli;
#[path = "cluster/comeback.rs"]
mod comeback;
#[path = "cluster/config.rs"]
mod config;
#[path = "common/etcd.rs"]
#[allow(
    dead_code,
    reason = "shared with the DCS contract ring, which uses more of it"
)]
mod etcd;
#[path = "cluster/failsafe.rs"]
mod failsafe;
#[path = "cluster/footprint.rs"]
mod footprint;
#[path = "cluster/hung.rs"]
mod hung;
#[path = "cluster/manual.rs"]
mod manual;
#[path = "cluster/metrics.rs"]
mod metrics;
#[path = "common/node.rs"]
mod node;
#[path = "cluster/outage.rs"]
mod outage;
#[path = "cluster/pause.rs"]
mod pause;
#[path = "common/proxy.rs"]
mod proxy;
#[path = "cluster/readme.rs"]
mod readme;
#[path = "cluster/refusals.rs"]
mod refusals;
#[path = "cluster/rest_tls.rs"]
mod rest_tls;
#[path = "cluster/secrets.rs"]
mod secrets;
#[path = "cluster/slots.rs"]
mod slots;
#[path = "cluster/standby.rs"]
mod standby;
#[path = "cluster/stop.rs"]
mod stop;
#[path = "cluster/sync.rs"]
mod sync;
#[path = "cluster/voter.rs"]
mod voter;
#[path = "common/witness.rs"]
mod witness;

use std::{
    fs,
    time::{Duration, Instant},
};

use etcd::Server as Etcd;
use node::{Node, code, descendants, wait_for};
use serde_json::json;
use tempfile::TempDir;
use witness::Witness;

const SOON: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(5);

/// Three members on one etcd. Fields drop in order: members before the store, the directory last.
struct Cluster {
    nodes: Vec<Node>,
    etcd: Etcd,
    base: TempDir,
}

impl Cluster {
    fn prepare(names: &[&str]) -> Self {
        let base = tempfile::Builder::new()
            .prefix("howdah-")
            .tempdir()
            .expect("a directory");
        fs::set_permissions(base.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
        let etcd = Etcd::start();
        let nodes = names
            .iter()
            .map(|name| Node::new(base.path(), name, "demo", &[etcd.endpoint()]))
            .collect();
        Self { nodes, etcd, base }
    }

    /// All running, one leader, the others streaming.
    async fn start(names: &[&str]) -> Self {
        let mut cluster = Self::prepare(names);
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster.healthy().await;
        cluster
    }

    /// The same, in which a leader that loses the store is demoted even if all members see each other.
    async fn without_failsafe(names: &[&str]) -> Self {
        let mut cluster = Self::prepare(names);
        for node in &mut cluster.nodes {
            node.set("HOWDAH_BOOTSTRAP_DCS", "{failsafe_mode: false}").start();
        }
        cluster.healthy().await;
        cluster
    }

    /// Waits until one leads and all others stream; returns the leader's index.
    async fn healthy(&self) -> usize {
        let leader = self.leader(SOON).await;
        for (index, node) in self.nodes.iter().enumerate() {
            if index != leader {
                node.wait_streaming(SOON).await;
            }
        }
        leader
    }

    async fn leader(&self, limit: Duration) -> usize {
        wait_for("a leader", limit, async || self.leader_now(None).await).await
    }

    async fn other_leader(&self, old: usize, limit: Duration) -> usize {
        wait_for("another leader", limit, async || self.leader_now(Some(old)).await).await
    }

    async fn leader_now(&self, but: Option<usize>) -> Result<usize, String> {
        let mut seen = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if Some(index) == but {
                continue;
            }
            match node.get("/primary").await {
                Ok((200, status)) if status["role"] == "primary" && status["state"] == "running" => {
                    return Ok(index);
                }
                Ok((code, status)) => seen.push(format!(
                    "{}: {code} {}/{}",
                    node.name, status["role"], status["state"]
                )),
                Err(error) => seen.push(format!("{}: {error}", node.name)),
            }
        }
        Err(seen.join("; "))
    }

    fn replicas(&self, leader: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|index| *index != leader).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_become_a_leader_and_two_streaming_replicas() {
    let mut cluster = Cluster::prepare(&["pg1", "pg2", "pg3"]);
    let scripts = cluster.nodes[0].dir.join("initdb.d");
    for node in &mut cluster.nodes {
        fs::create_dir_all(&scripts).expect("create the scripts directory");
        fs::write(
            scripts.join("10-table.sql"),
            "CREATE TABLE from_script (x int);\nINSERT INTO from_script VALUES (1);",
        )
        .expect("write");
        fs::write(
            scripts.join("20-more.sh"),
            "#!/bin/sh\npsql -v ON_ERROR_STOP=1 -c 'INSERT INTO from_script VALUES (2)'\n",
        )
        .expect("write");
        node.set("HOWDAH_INITDB_SCRIPTS_DIR", &scripts.display().to_string())
            .set("POSTGRES_DB", "app")
            .start();
    }
    let leader = cluster.healthy().await;
    let primary = &cluster.nodes[leader];
    assert_eq!(primary.sql("SHOW data_checksums").await.as_deref(), Ok("on"));
    assert_eq!(
        primary
            .sql("SELECT count(*) FROM pg_database WHERE datname = 'app'")
            .await
            .as_deref(),
        Ok("1")
    );
    let login = tokio_postgres::Config::new()
        .host("127.0.0.1")
        .port(primary.pg_port)
        .user("postgres")
        .password(node::PASSWORD)
        .dbname("app")
        .connect(tokio_postgres::NoTls)
        .await;
    let (client, connection) = login.expect("connect to POSTGRES_DB");
    tokio::spawn(connection);
    let count: i64 = client
        .query_one("SELECT sum(x) FROM from_script", &[])
        .await
        .expect("scripts ran once")
        .get(0);
    assert_eq!(count, 3, "each init script ran exactly once");

    let (status, view) = primary.get("/cluster").await.expect("GET /cluster");
    assert_eq!(status, 200);
    let members = view["members"].as_array().expect("members");
    let mut roles: Vec<_> = members
        .iter()
        .map(|m| (m["role"].as_str(), m["state"].as_str()))
        .collect();
    roles.sort_unstable();
    assert_eq!(
        roles,
        [
            (Some("leader"), Some("running")),
            (Some("replica"), Some("streaming")),
            (Some("replica"), Some("streaming"))
        ]
    );
    let (exit, table, _) = cluster.nodes[2].cli(&["list"]).await;
    assert_eq!(exit, 0);
    assert!(
        table.contains("Leader") && table.matches("streaming").count() == 2,
        "{table}"
    );
    for node in &cluster.nodes {
        let wrong = Node::connect(node).await.expect("the right password works");
        drop(wrong);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_and_comes_back_by_rewind_although_it_diverged() {
    let mut cluster = Cluster::start(&["pg1", "pg2", "pg3"]).await;
    let old = cluster.healthy().await;
    cluster.nodes[old]
        .sql("CREATE TABLE t (x int)")
        .await
        .expect("create");
    let replicas = cluster.replicas(old);
    for index in &replicas {
        wait_for("the table on the replica", SOON, async || {
            cluster.nodes[*index].sql("SELECT count(*) FROM t").await
        })
        .await;
    }
    // Cut replication by freezing the WAL senders, so that the leader writes what nobody else ever gets.
    let senders = walsenders(&cluster.nodes[old]);
    assert_eq!(senders.len(), 2, "two WAL senders to freeze");
    for pid in &senders {
        cluster.nodes[old].signal(*pid, "STOP");
    }
    cluster.nodes[old]
        .sql("INSERT INTO t SELECT generate_series(1, 1000)")
        .await
        .expect("write on the cut-off leader");
    cluster.nodes[old].kill_node();
    let killed = Instant::now();
    let new = cluster.other_leader(old, TTL + Duration::from_secs(5)).await;
    let took = killed.elapsed();
    assert!(took < TTL + Duration::from_secs(2), "a new leader took {took:?}");
    cluster.nodes[new]
        .sql("INSERT INTO t VALUES (-1)")
        .await
        .expect("the new leader accepts writes");
    cluster.nodes[old].start();
    cluster.nodes[old].wait_streaming(SOON).await;
    let log = cluster.nodes[old].log();
    assert!(log.contains("begins job=\"rewind\""), "it came back by rewind");
    wait_for("the same content everywhere", SOON, async || {
        let count = cluster.nodes[old]
            .sql("SELECT count(*) || ':' || min(x) FROM t")
            .await?;
        if count == "1:-1" { Ok(()) } else { Err(count) }
    })
    .await;
    // A timeline was begun and named after the new leader.
    let (_, history) = cluster.nodes[new].get("/history").await.expect("GET /history");
    assert_eq!(history[0][4], cluster.nodes[new].name.as_str());
}

fn walsenders(node: &Node) -> Vec<i32> {
    let of_node = descendants(node.init_pid()).into_iter();
    of_node
        .filter(|pid| node::cmdline(*pid).contains("walsender"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_hands_over_without_waiting_for_ttl() {
    let mut cluster = Cluster::start(&["pg1", "pg2", "pg3"]).await;
    let old = cluster.healthy().await;
    let witnesses: Vec<Witness> = cluster
        .nodes
        .iter()
        .zip(1..)
        .map(|(node, n)| Witness::start(node.pg_port, n * 1_000_000))
        .collect();
    wait_for("the witness to write", SOON, async || {
        witnesses[old].last().ok_or_else(|| "nothing yet".to_owned())
    })
    .await;
    let asked = Instant::now();
    let exit = cluster.nodes[old].stop(Duration::from_secs(10)).await;
    assert_eq!(code(exit), 0, "a clean stop");
    let new = cluster.other_leader(old, SOON).await;
    let first = wait_for("a commit on the new leader", SOON, async || {
        witnesses[new]
            .acks()
            .first()
            .copied()
            .ok_or_else(|| "none".to_owned())
    })
    .await;
    let gap = first.at - witnesses[old].last().expect("wrote before").at;
    println!(
        "write gap of a SIGTERM: {gap:?}, process gone after {:?}",
        asked.elapsed()
    );
    assert!(gap < Duration::from_millis(2500), "write gap {gap:?}");
    // Nothing acknowledged was lost: the old leader's last commit is on the new one.
    let lost = missing(&cluster.nodes[new], &witnesses[old]).await;
    assert_eq!(lost, 0, "acknowledged commits lost in a planned stop");
    cluster.nodes[old].start();
    cluster.nodes[old].wait_streaming(SOON).await;
    assert!(
        !cluster.nodes[old].log().contains("begins job=\"rewind\""),
        "a clean hand-over needs no rewind"
    );
}

/// Acknowledged ids that the node does not have.
async fn missing(node: &Node, witness: &Witness) -> usize {
    let client = node.connect().await.expect("connect");
    let rows = client.query("SELECT id FROM witness", &[]).await.expect("read");
    let there: std::collections::BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    witness
        .acks()
        .iter()
        .filter(|ack| !there.contains(&ack.id))
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_postmaster_is_back_within_two_seconds() {
    let cluster = Cluster::start(&["pg1", "pg2"]).await;
    let leader = cluster.healthy().await;
    let witness = Witness::start(cluster.nodes[leader].pg_port, 1);
    wait_for("the witness to write", SOON, async || {
        witness.last().ok_or_else(|| "nothing yet".to_owned())
    })
    .await;
    for round in 0..3 {
        let node = &cluster.nodes[leader];
        let sessions = witness.sessions();
        let killed = Instant::now();
        node.signal(node.postmaster_pid().expect("running"), "KILL");
        wait_for("the witness to write again", SOON, async || {
            match witness.last() {
                Some(ack) if ack.at > killed && witness.sessions() > sessions => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        let gap = witness.longest_gap(killed - Duration::from_millis(100), Instant::now());
        println!("round {round}: write gap after kill -9 of the postmaster {gap:?}");
        assert!(gap < Duration::from_secs(2), "write gap {gap:?}");
    }
    cluster.healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_do_not_notice_a_killed_agent() {
    let cluster = Cluster::start(&["pg1", "pg2"]).await;
    let leader = cluster.healthy().await;
    let node = &cluster.nodes[leader];
    let witness = Witness::start(node.pg_port, 1);
    wait_for("the witness to write", SOON, async || {
        witness.last().ok_or_else(|| "nothing yet".to_owned())
    })
    .await;
    let postmaster = node.postmaster_pid();
    for _ in 0..3 {
        let from = Instant::now();
        let agent = node.agent_pid().expect("an agent");
        node.signal(agent, "KILL");
        wait_for("a new agent that leads", SOON, async || {
            match (node.agent_pid(), node.get("/primary").await) {
                (Some(pid), Ok((200, status))) if pid != agent && status["state"] == "running" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert_eq!(witness.sessions(), 1, "the session stayed open");
        let gap = witness.longest_gap(from, Instant::now());
        assert!(gap < Duration::from_millis(500), "write gap {gap:?}");
    }
    // Past the deadline the first agent had armed: the new one has taken the lease over, or init would have fenced.
    let until = Instant::now() + TTL + Duration::from_secs(1);
    wait_for("the old lease to be over", SOON, async || {
        if Instant::now() > until {
            Ok(())
        } else {
            Err("wait".into())
        }
    })
    .await;
    assert_eq!(
        node.postmaster_pid(),
        postmaster,
        "the postmaster was never restarted"
    );
    assert_eq!(witness.sessions(), 1, "the session stayed open");
    assert!(
        witness
            .last()
            .is_some_and(|ack| ack.at.elapsed() < Duration::from_millis(500)),
        "it still writes"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_agent_is_fenced_before_another_may_lead() {
    let mut cluster = Cluster::start(&["pg1", "pg2", "pg3"]).await;
    let old = cluster.healthy().await;
    let witnesses: Vec<Witness> = cluster
        .nodes
        .iter()
        .zip(1..)
        .map(|(node, n)| Witness::start(node.pg_port, n * 1_000_000))
        .collect();
    wait_for("the witness to write", SOON, async || {
        witnesses[old].last().ok_or_else(|| "nothing yet".to_owned())
    })
    .await;
    let agent = cluster.nodes[old].agent_pid().expect("an agent");
    cluster.nodes[old].signal(agent, "STOP");
    let frozen = Instant::now();
    let exit = cluster.nodes[old].wait_exit(TTL + Duration::from_secs(2)).await;
    assert_eq!(code(exit), 80, "init fenced");
    let new = cluster.other_leader(old, TTL + Duration::from_secs(5)).await;
    let first = wait_for("a commit on the new leader", SOON, async || {
        witnesses[new]
            .acks()
            .first()
            .copied()
            .ok_or_else(|| "none".to_owned())
    })
    .await;
    let last = witnesses[old].last().expect("wrote before");
    assert!(
        last.at < frozen + TTL,
        "a commit was acknowledged {:?} after the freeze",
        last.at - frozen
    );
    assert!(
        last.at < first.at,
        "two members acknowledged commits at the same time"
    );
    assert!(
        last.at > frozen,
        "the witness wrote while the agent was frozen, or this test shows nothing"
    );
    cluster.nodes[old].start();
    cluster.nodes[old].wait_streaming(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switchover_restart_reinit_and_configuration_through_the_api() {
    let cluster = Cluster::start(&["pg1", "pg2", "pg3"]).await;
    let old = cluster.healthy().await;
    let target = cluster.replicas(old)[0];
    let (leader, candidate) = (
        cluster.nodes[old].name.clone(),
        cluster.nodes[target].name.clone(),
    );
    let witnesses: Vec<Witness> = cluster
        .nodes
        .iter()
        .zip(1..)
        .map(|(node, n)| Witness::start(node.pg_port, n * 1_000_000))
        .collect();
    wait_for("the witness to write", SOON, async || {
        witnesses[old].last().ok_or_else(|| "nothing yet".to_owned())
    })
    .await;
    let (exit, out, err) = cluster.nodes[old]
        .cli(&[
            "switchover",
            "--leader",
            &leader,
            "--candidate",
            &candidate,
            "--force",
        ])
        .await;
    assert_eq!(exit, 0, "{out}{err}");
    assert!(
        out.contains(&format!("Successfully switched over to \"{candidate}\"")),
        "{out}"
    );
    assert_eq!(cluster.healthy().await, target);
    let first = wait_for("a commit on the new leader", SOON, async || {
        witnesses[target]
            .acks()
            .first()
            .copied()
            .ok_or_else(|| "none".to_owned())
    })
    .await;
    println!(
        "write gap of a switchover: {:?}",
        first.at - witnesses[old].last().expect("wrote").at
    );
    assert_eq!(
        missing(&cluster.nodes[target], &witnesses[old]).await,
        0,
        "nothing acknowledged is lost"
    );
    drop(witnesses);

    let (status, text) = cluster.nodes[old]
        .request("POST", "/switchover", json!({"leader": leader}))
        .await
        .expect("POST");
    assert_eq!((status, text), (412, json!("leader name does not match")));
    let (status, text) = cluster.nodes[old]
        .request("POST", "/failover", json!({}))
        .await
        .expect("POST");
    assert_eq!(status, 400, "{text}");

    let started = cluster.nodes[target]
        .sql("SELECT pg_postmaster_start_time()::text")
        .await;
    let (status, text) = cluster.nodes[target]
        .request("POST", "/restart", json!({}))
        .await
        .expect("POST");
    assert_eq!((status, text), (200, json!("restarted successfully")));
    assert_ne!(
        cluster.nodes[target]
            .sql("SELECT pg_postmaster_start_time()::text")
            .await,
        started
    );
    assert_eq!(cluster.healthy().await, target, "a restart keeps the lock");

    let (status, _) = cluster.nodes[old]
        .request("POST", "/reinitialize", json!({}))
        .await
        .expect("POST");
    assert_eq!(status, 200);
    wait_for("the old leader to be copied anew", SOON, async || {
        if cluster.nodes[old].log().contains("done job=\"clone\"") {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;
    cluster.nodes[old].wait_streaming(SOON).await;
    let (status, text) = cluster.nodes[target]
        .request("POST", "/reinitialize", json!({}))
        .await
        .expect("POST");
    assert_eq!(
        (status, text),
        (503, json!("I am the leader, can not reinitialize"))
    );

    let patch = json!({"postgresql": {"parameters": {"work_mem": "7MB", "max_connections": 120}}, "loop_wait": 2, "ttl": 6});
    let (status, merged) = cluster.nodes[old]
        .request("PATCH", "/config", patch)
        .await
        .expect("PATCH");
    assert_eq!((status, &merged["loop_wait"]), (200, &json!(2)));
    for node in &cluster.nodes {
        wait_for("the new parameter", SOON, async || {
            let value = node.sql("SHOW work_mem").await?;
            if value == "7MB" { Ok(()) } else { Err(value) }
        })
        .await;
        wait_for("a pending restart", SOON, async || {
            let (_, status) = node.get("/patroni").await?;
            if status["pending_restart"] == true {
                Ok(())
            } else {
                Err(status.to_string())
            }
        })
        .await;
    }
    let (exit, out, _) = cluster.nodes[0].cli(&["history", "-f", "json"]).await;
    assert_eq!(exit, 0);
    assert!(out.contains(&candidate), "{out}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_init_stops_postgres_at_once() {
    let mut cluster = Cluster::start(&["pg1"]).await;
    let node = &mut cluster.nodes[0];
    let postmaster = node.postmaster_pid().expect("running");
    let agent = node.agent_pid().expect("an agent");
    node.signal(node.init_pid(), "KILL");
    wait_for(
        "postgres and the agent to be gone",
        Duration::from_secs(10),
        async || {
            let left: Vec<i32> = [postmaster, agent]
                .into_iter()
                .filter(|pid| std::path::Path::new(&format!("/proc/{pid}/exe")).exists())
                .collect();
            if left.is_empty() {
                Ok(())
            } else {
                Err(format!("{left:?} live"))
            }
        },
    )
    .await;
    node.exited();
}
