//! Clusters that follow another cluster: two clusters on one etcd, real postgres on both sides.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::{Value, json};

use crate::{
    Cluster, SOON,
    node::{Node, own, wait_for},
};

/// Copying, rewinding and electing on a busy host.
const LONG: Duration = Duration::from_secs(60);

/// Two clusters on the etcd of the first.
struct Pair {
    standby: Vec<Node>,
    source: Cluster,
}

impl Pair {
    /// The source runs; members of the standby cluster are prepared with this section and not started.
    async fn prepare(source: &[&str], standby: &[&str], section: impl Fn(&Cluster) -> Value) -> Self {
        let source = Cluster::start(source).await;
        let dcs = json!({"standby_cluster": section(&source)}).to_string();
        let standby = standby
            .iter()
            .map(|name| {
                let etcd = source.etcd.endpoint();
                let mut node = Node::new(source.base.path(), name, "other", &[etcd]);
                node.set("HOWDAH_BOOTSTRAP_DCS", &dcs);
                node
            })
            .collect();
        Self { standby, source }
    }

    async fn standby_leader(&self, but: Option<usize>, limit: Duration) -> usize {
        wait_for("a standby leader", limit, async || {
            let mut seen = Vec::new();
            for (index, node) in self.standby.iter().enumerate().filter(|(i, _)| Some(*i) != but) {
                match node.get("/standby-leader").await {
                    Ok((200, status))
                        if status["role"] == "standby_leader" && status["state"] == "running" =>
                    {
                        return Ok(index);
                    }
                    other => seen.push(format!("{}: {other:?}", node.name)),
                }
            }
            Err(seen.join("; "))
        })
        .await
    }
}

async fn shows(node: &Node, sql: &str, expected: &str) {
    wait_for(&format!("{}: {sql}", node.name), LONG, async || {
        let value = node.sql(sql).await?;
        if value == expected { Ok(()) } else { Err(value) }
    })
    .await;
}

/// Where a replica streams from.
const UPSTREAM: &str = "SELECT sender_port FROM pg_stat_wal_receiver WHERE status = 'streaming'";

async fn streams_from(node: &Node, port: u16) {
    shows(node, UPSTREAM, &port.to_string()).await;
}

fn hosts(cluster: &Cluster, index: usize) -> Value {
    json!({"host": "127.0.0.1", "port": cluster.nodes[index].pg_port})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_cluster_follows_fails_over_and_is_promoted_and_demoted() {
    let mut pair = Pair::prepare(&["pg1"], &["dr1", "dr2"], |source| {
        let mut section = hosts(source, 0);
        section["primary_slot_name"] = json!("dr");
        section
    })
    .await;
    let roles = pair.source.base.path().join("roles");
    fs::create_dir(&roles).expect("a folder");
    own(&roles);
    let (first, port) = (0, pair.source.nodes[0].pg_port);
    let primary = &pair.source.nodes[first];
    primary
        .sql("SELECT pg_create_physical_replication_slot('dr')")
        .await
        .expect("a slot");
    primary.sql("CREATE TABLE t (x int)").await.expect("create");
    for node in &mut pair.standby {
        let command = format!("sh -c 'echo $1 $2 >> {}' note", roles.join(&node.name).display());
        node.set("HOWDAH_POSTGRESQL_CALLBACKS_ON_ROLE_CHANGE", &command);
        node.set("HOWDAH_POSTGRESQL_CALLBACKS_ON_START", &command);
        node.start();
    }

    // Data flows: to the leader from the other cluster, from there to its member.
    let leader = pair.standby_leader(None, LONG).await;
    let member = 1 - leader;
    pair.standby[member].wait_streaming(LONG).await;
    primary.sql("INSERT INTO t VALUES (1)").await.expect("insert");
    for node in &pair.standby {
        shows(node, "SELECT max(x) FROM t", "1").await;
    }
    streams_from(&pair.standby[leader], port).await;
    streams_from(&pair.standby[member], pair.standby[leader].pg_port).await;
    let used = "SELECT active FROM pg_replication_slots WHERE slot_name = 'dr'";
    shows(primary, used, "t").await;

    // What others see of it.
    let (code, _) = pair.standby[leader].get("/primary").await.expect("GET");
    assert_eq!(code, 503, "nobody may write here");
    let (code, _) = pair.standby[leader].get("/leader").await.expect("GET");
    assert_eq!(code, 200);
    let (code, _) = pair.standby[member].get("/standby_leader").await.expect("GET");
    assert_eq!(code, 503);
    let (_, view) = pair.standby[member].get("/cluster").await.expect("GET");
    let shown: Vec<&Value> = view["members"]
        .as_array()
        .expect("members")
        .iter()
        .map(|m| &m["role"])
        .collect();
    assert!(
        shown.contains(&&json!("standby_leader")) && shown.contains(&&json!("replica")),
        "{view}"
    );
    let (code, text) = pair.standby[leader]
        .request("POST", "/reinitialize", json!({}))
        .await
        .expect("POST");
    assert_eq!(code, 503, "{text}");

    // The leader dies: the other one takes over and follows the other cluster.
    pair.standby[leader].kill_node();
    assert_eq!(pair.standby_leader(Some(leader), LONG).await, member);
    streams_from(&pair.standby[member], port).await;
    pair.source.nodes[first]
        .sql("INSERT INTO t VALUES (2)")
        .await
        .expect("insert");
    shows(&pair.standby[member], "SELECT max(x) FROM t", "2").await;
    let noted = fs::read_to_string(roles.join(&pair.standby[member].name)).unwrap_or_default();
    assert!(noted.contains("on_role_change standby_leader"), "{noted}");
    pair.standby[leader].start();
    pair.standby[leader].wait_streaming(LONG).await;
    streams_from(&pair.standby[leader], pair.standby[member].pg_port).await;

    // It stands on its own.
    let (exit, out, err) = pair.standby[member].cli(&["promote-cluster", "--force"]).await;
    assert_eq!(exit, 0, "{out}{err}");
    assert!(out.contains("cluster is successfully promoted"), "{out}");
    pair.standby[member].wait_primary(SOON).await;
    pair.standby[member]
        .sql("INSERT INTO t VALUES (100)")
        .await
        .expect("writable");
    shows(&pair.standby[leader], "SELECT max(x) FROM t", "100").await;
    let (exit, out, _) = pair.standby[member].cli(&["promote-cluster", "--force"]).await;
    assert_eq!(exit, 1, "{out}");

    // And follows again, although both clusters have written since: what only it has is given up.
    pair.source.nodes[first]
        .sql("INSERT INTO t VALUES (3)")
        .await
        .expect("insert");
    let port_text = port.to_string();
    let demote = [
        "demote-cluster",
        "--force",
        "--host",
        "127.0.0.1",
        "--port",
        &port_text,
    ];
    let (exit, out, err) = pair.standby[member].cli(&demote).await;
    assert_eq!(exit, 0, "{out}{err}");
    assert!(out.contains("cluster is successfully demoted"), "{out}");
    for node in &pair.standby {
        wait_for("the history of the other cluster", LONG, async || {
            let rows = node
                .sql("SELECT string_agg(x::text, ',' ORDER BY x) FROM t")
                .await?;
            if rows == "1,2,3" { Ok(()) } else { Err(rows) }
        })
        .await;
    }
    pair.source.nodes[first]
        .sql("INSERT INTO t VALUES (4)")
        .await
        .expect("insert");
    for node in &pair.standby {
        shows(node, "SELECT max(x) FROM t", "4").await;
        assert_eq!(node.sql("SELECT pg_is_in_recovery()").await.as_deref(), Ok("t"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_with_an_archive_keeps_the_lock_and_archives_its_end_when_it_is_demoted() {
    let mut cluster = Cluster::prepare(&["pg1"]);
    let archive = folder(&cluster, "archive");
    let parameters = json!({"archive_mode": "on", "archive_command": format!("test -f {0}/%f || cp %p {0}/%f", archive.display())});
    cluster.nodes[0]
        .set("HOWDAH_POSTGRESQL_PARAMETERS", &parameters.to_string())
        .start();
    cluster.healthy().await;
    let node = &cluster.nodes[0];
    let restore = format!("cp {}/%f %p", archive.display());
    let section = json!({"standby_cluster": {"restore_command": restore}});
    let (code, text) = node.request("PATCH", "/config", section).await.expect("PATCH");
    assert_eq!(code, 200, "{text}");
    wait_for("a standby leader", LONG, async || {
        match node.get("/standby-leader").await? {
            (200, status) if status["role"] == "standby_leader" && status["state"] == "running" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let log = node.log();
    assert!(log.contains("it keeps the lock"), "{log}");
    assert!(
        !log.contains("handed the lock over"),
        "the lock was never given up"
    );
    assert_eq!(node.sql("SELECT pg_is_in_recovery()").await.as_deref(), Ok("t"));
    assert_eq!(node.sql("SHOW restore_command").await, Ok(restore));
    // The shutdown checkpoint lies in the last segment, which is not full.
    let archived = fs::read_dir(&archive).expect("list").count();
    assert!(archived >= 2, "{archived} segments in the archive");
    // And back.
    let (code, _) = node
        .request("PATCH", "/config", json!({"standby_cluster": null}))
        .await
        .expect("PATCH");
    assert_eq!(code, 200);
    node.wait_primary(LONG).await;
}

fn folder(cluster: &Cluster, name: &str) -> PathBuf {
    let folder = cluster.base.path().join(name);
    fs::create_dir(&folder).expect("a folder");
    own(&folder);
    folder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_can_follow_an_archive_alone() {
    let mut source = Cluster::prepare(&["pg1"]);
    let archive = folder(&source, "archive");
    let parameters = json!({"archive_mode": "on", "archive_command": format!("test -f {0}/%f || cp %p {0}/%f", archive.display())});
    source.nodes[0]
        .set("HOWDAH_POSTGRESQL_PARAMETERS", &parameters.to_string())
        .set("HOWDAH_REPLICATION_PASSWORD", crate::bootstrap::COPY)
        .start();
    source.healthy().await;
    let primary = &source.nodes[0];
    primary.sql("CREATE TABLE t (x int)").await.expect("create");
    // The first data comes by a command of the operator's, because there is no server to copy from.
    let script = source.base.path().join("restore.sh");
    let text = format!(
        "#!/bin/sh\nfor a in \"$@\"; do case $a in --datadir=*) dir=${{a#--datadir=}};; esac; done\n\
         exec env PGPASSWORD='{}' pg_basebackup -h 127.0.0.1 -p {} -U replicator -X none -c fast -D \"$dir\"\n",
        crate::bootstrap::COPY,
        primary.pg_port
    );
    fs::write(&script, text).expect("write");
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let restore = format!("cp {}/%f %p", archive.display());
    let document = json!({
        "bootstrap": {"dcs": {"standby_cluster": {
            "restore_command": restore, "create_replica_methods": ["fetch"],
        }}},
        "postgresql": {"fetch": {"command": path_with_binaries(&script), "no_leader": true}},
    });
    let mut node = Node::new(source.base.path(), "dr1", "other", &[source.etcd.endpoint()]);
    node.set("HOWDAH_CONFIGURATION", &document.to_string())
        .set("HOWDAH_REPLICATION_PASSWORD", crate::bootstrap::COPY)
        .start();
    wait_for("a standby leader", LONG, async || {
        match node.get("/standby-leader").await? {
            (200, status) if status["role"] == "standby_leader" && status["state"] == "running" => Ok(()),
            other => Err(format!("{other:?}\n{}", node.log())),
        }
    })
    .await;
    primary.sql("INSERT INTO t VALUES (7)").await.expect("insert");
    primary.sql("SELECT pg_switch_wal()").await.expect("switch");
    shows(&node, "SELECT max(x) FROM t", "7").await;
    assert_eq!(
        node.sql("SELECT count(*) FROM pg_stat_wal_receiver")
            .await
            .as_deref(),
        Ok("0")
    );
    let (_, status) = node.get("/patroni").await.expect("GET");
    assert_eq!(status["replication_state"], "in archive recovery", "{status}");
    let (exit, out, err) = node.cli(&["promote-cluster", "--force"]).await;
    assert_eq!(exit, 0, "{out}{err}");
    node.wait_primary(LONG).await;
    node.sql("INSERT INTO t VALUES (8)").await.expect("writable");
}

/// The command with the programs of the newest PostgreSQL on its path.
fn path_with_binaries(script: &std::path::Path) -> String {
    format!(
        "env PATH={}:/usr/bin:/bin sh {}",
        crate::bootstrap::binaries().display(),
        script.display()
    )
}
