//! Synchronous replication on real servers: whom commits wait for, who leads because of it, and that nothing that was
//! acknowledged is lost.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    Cluster, SOON, TTL,
    node::{Node, always, descendants, wait_for},
    witness::Witness,
};

const NAMES: &[&str] = &["pg1", "pg2", "pg3"];

async fn configure(node: &Node, patch: Value) {
    let (code, answer) = node
        .request("PATCH", "/config", patch)
        .await
        .expect("PATCH /config");
    assert_eq!(code, 200, "{answer}");
}

/// Starts three members with this configuration.
async fn start(config: Value) -> Cluster {
    let cluster = Cluster::start(NAMES).await;
    configure(&cluster.nodes[0], config).await;
    cluster
}

/// Roles in `/cluster` by member, as the given member sees them.
async fn roles(node: &Node) -> Result<Vec<(String, String)>, String> {
    let (_, view) = node.get("/cluster").await?;
    let members = view["members"].as_array().ok_or_else(|| view.to_string())?;
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    Ok(members
        .iter()
        .map(|m| (text(&m["name"]), text(&m["role"])))
        .collect())
}

/// Indexes of the members with this role.
async fn with_role(cluster: &Cluster, at: usize, role: &str) -> Result<Vec<usize>, String> {
    let roles = roles(&cluster.nodes[at]).await?;
    let found = cluster.nodes.iter().enumerate().filter_map(|(index, node)| {
        let listed = roles.iter().any(|(name, has)| *name == node.name && has == role);
        listed.then_some(index)
    });
    Ok(found.collect())
}

/// Waits until exactly so many members have the role; returns them.
async fn wait_role(cluster: &Cluster, at: usize, role: &str, count: usize) -> Vec<usize> {
    wait_for(&format!("{count} members as {role}"), SOON, async || {
        let found = with_role(cluster, at, role).await?;
        let names = cluster.nodes[at].sql("SHOW synchronous_standby_names").await?;
        if found.len() == count {
            Ok(found)
        } else {
            Err(format!("{:?}; names {names}", roles(&cluster.nodes[at]).await))
        }
    })
    .await
}

async fn wait_names(node: &Node, expected: &str) {
    wait_for(&format!("names {expected}"), SOON, async || {
        let names = node.sql("SHOW synchronous_standby_names").await?;
        if names == expected { Ok(()) } else { Err(names) }
    })
    .await;
}

/// Every acknowledged commit of these witnesses is on this member.
async fn nothing_lost(node: &Node, witnesses: &[Witness]) {
    let mut total = 0;
    for witness in witnesses {
        let ids: Vec<String> = witness.acks().iter().map(|ack| ack.id.to_string()).collect();
        total += ids.len();
        if ids.is_empty() {
            continue;
        }
        let list = ids.join(",");
        let sql = format!(
            "SELECT count(*) FROM unnest(ARRAY[{list}]::bigint[]) AS a(id) \
             WHERE NOT EXISTS (SELECT 1 FROM witness w WHERE w.id = a.id)"
        );
        assert_eq!(
            node.sql(&sql).await.as_deref(),
            Ok("0"),
            "acknowledged commits are missing"
        );
    }
    assert!(total > 0, "nothing was written at all");
}

fn witnesses(cluster: &Cluster) -> Vec<Witness> {
    let nodes = cluster.nodes.iter().zip(1..);
    nodes
        .map(|(node, n)| Witness::start(node.pg_port, n * 1_000_000))
        .collect()
}

async fn acknowledges(witnesses: &[Witness], since: Instant) {
    wait_for("an acknowledged commit", SOON, async || {
        let news = witnesses
            .iter()
            .filter_map(Witness::last)
            .any(|ack| ack.at > since);
        if news { Ok(()) } else { Err("none".to_owned()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_synchronous_standby_is_replaced_and_a_lost_leader_is_followed_by_it() {
    let mut cluster = start(json!({"synchronous_mode": true})).await;
    let leader = cluster.leader(SOON).await;
    let first = wait_role(&cluster, leader, "sync_standby", 1).await[0];
    let other = 3 - leader - first;
    let probe = async |index: usize, path: &str| cluster.nodes[index].get(path).await.map(|(code, _)| code);
    wait_for("the probes", SOON, async || {
        let codes = (
            probe(first, "/sync").await?,
            probe(first, "/async").await?,
            probe(other, "/sync").await?,
            probe(other, "/async").await?,
            probe(leader, "/read-only-sync").await?,
        );
        if codes == (200, 503, 503, 200, 200) {
            Ok(())
        } else {
            Err(format!("{codes:?}"))
        }
    })
    .await;
    let (exit, table, _) = cluster.nodes[leader].cli(&["list"]).await;
    assert!(exit == 0 && table.contains("Sync Standby"), "{table}");

    let written = witnesses(&cluster);
    acknowledges(&written, Instant::now()).await;
    let killed = Instant::now();
    cluster.nodes[first].kill_node();
    wait_for(
        "the other as the synchronous standby",
        SOON,
        async || match with_role(&cluster, leader, "sync_standby").await?.as_slice() {
            [one] if *one == other => Ok(()),
            found => Err(format!("{found:?}")),
        },
    )
    .await;
    acknowledges(&written, Instant::now()).await;
    let gap = written[leader].longest_gap(killed, Instant::now());
    assert!(
        gap < Duration::from_secs(3),
        "commits waited {gap:?} for a dead standby"
    );

    cluster.nodes[first].start();
    cluster.nodes[first].wait_streaming(SOON).await;
    let standby = wait_role(&cluster, leader, "sync_standby", 1).await[0];
    cluster.nodes[leader].kill_node();
    let new = cluster.other_leader(leader, TTL * 4).await;
    assert_eq!(new, standby, "only the synchronous standby may lead");
    acknowledges(&written, Instant::now()).await;
    nothing_lost(&cluster.nodes[new], &written).await;
    cluster.nodes[leader].start();
    cluster.nodes[leader].wait_streaming(SOON).await;
    wait_role(&cluster, new, "sync_standby", 1).await;
    nothing_lost(&cluster.nodes[new], &written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_mode_acknowledges_nothing_without_a_standby_and_goes_on_with_one() {
    // From the first moment of the cluster on.
    let mut cluster = Cluster::prepare(NAMES);
    for node in &mut cluster.nodes {
        let config = "{synchronous_mode: true, synchronous_mode_strict: true}";
        node.set("HOWDAH_BOOTSTRAP_DCS", config).start();
    }
    cluster.healthy().await;
    let leader = cluster.leader(SOON).await;
    let standby = wait_role(&cluster, leader, "sync_standby", 1).await[0];
    let other = 3 - leader - standby;
    let written = [Witness::start(cluster.nodes[leader].pg_port, 1_000_000)];
    acknowledges(&written, Instant::now()).await;
    for index in [standby, other] {
        cluster.nodes[index].kill_node();
    }
    // What was under way when they died may still be acknowledged; then nothing is.
    wait_for("commits to wait", SOON, async || {
        let last = written[0].last().ok_or("none yet")?;
        if last.at.elapsed() > Duration::from_secs(2) {
            Ok(())
        } else {
            Err("still acknowledged".to_owned())
        }
    })
    .await;
    let stopped = written[0].acks().len();
    always("no commit is acknowledged", Duration::from_secs(3), async || {
        let now = written[0].acks().len();
        if now == stopped {
            Ok(())
        } else {
            Err(format!("{} more", now - stopped))
        }
    })
    .await;
    let (_, status) = cluster.nodes[leader]
        .get("/patroni")
        .await
        .expect("the leader answers");
    assert_eq!(status["role"], "primary", "it goes on leading");
    cluster.nodes[other].start();
    acknowledges(&written, Instant::now()).await;
    wait_role(&cluster, leader, "sync_standby", 1).await;
    nothing_lost(&cluster.nodes[leader], &written).await;

    // The leader dies: its standby acknowledges nothing by itself either.
    cluster.nodes[leader].kill_node();
    let new = cluster.other_leader(leader, TTL * 4).await;
    assert_eq!(new, other);
    nothing_lost(&cluster.nodes[new], &written).await;
    let alone = Witness::start(cluster.nodes[new].pg_port, 9_000_000);
    always(
        "no commit is acknowledged alone",
        Duration::from_secs(3),
        async || match alone.last() {
            None => Ok(()),
            Some(_) => Err("acknowledged".to_owned()),
        },
    )
    .await;
    cluster.nodes[standby].start();
    acknowledges(&[alone], Instant::now()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_quorum_mode_the_votes_decide_and_the_number_of_standbys_can_be_changed() {
    let mut cluster = start(json!({"synchronous_mode": "quorum"})).await;
    let leader = cluster.leader(SOON).await;
    wait_role(&cluster, leader, "quorum_standby", 2).await;
    let replicas = cluster.replicas(leader);
    let list = replicas
        .iter()
        .map(|index| cluster.nodes[*index].name.clone())
        .collect::<Vec<_>>()
        .join(",");
    wait_names(&cluster.nodes[leader], &format!("ANY 1 ({list})")).await;
    let (code, _) = cluster.nodes[replicas[0]].get("/quorum").await.expect("a probe");
    assert_eq!(code, 200);
    configure(&cluster.nodes[leader], json!({"synchronous_node_count": 2})).await;
    wait_names(&cluster.nodes[leader], &format!("ANY 2 ({list})")).await;
    configure(&cluster.nodes[leader], json!({"synchronous_node_count": 1})).await;
    wait_names(&cluster.nodes[leader], &format!("ANY 1 ({list})")).await;

    let written = witnesses(&cluster);
    acknowledges(&written, Instant::now()).await;
    cluster.nodes[leader].kill_node();
    let new = cluster.other_leader(leader, TTL * 4).await;
    acknowledges(&written, Instant::now()).await;
    nothing_lost(&cluster.nodes[new], &written).await;
    cluster.nodes[leader].start();
    cluster.nodes[leader].wait_streaming(SOON).await;
    wait_role(&cluster, new, "quorum_standby", 2).await;
    // Its files have been read again since its promotion.
    let (_, status) = cluster.nodes[new].get("/patroni").await.expect("an answer");
    assert_eq!(status.get("pending_restart_reason"), None, "{status}");
    assert!(
        !cluster.nodes[new]
            .log()
            .contains("cannot be changed without restarting")
    );

    // Two of three die together, one of them the leader: the third cannot know what it lacks.
    let third = 3 - leader - new;
    cluster.nodes[new].kill_node();
    cluster.nodes[third].kill_node();
    always("nobody leads", TTL * 3, async || {
        match cluster.nodes[leader].get("/primary").await {
            Ok((200, status)) => Err(status.to_string()),
            _ => Ok(()),
        }
    })
    .await;
    let log = cluster.nodes[leader].log();
    let why = log.contains("but a quorum of 1") && log.contains("does not answer");
    assert!(why, "it says why, and who: {log}");
    cluster.nodes[third].start();
    let last = cluster.other_leader(new, SOON).await;
    acknowledges(&written, Instant::now()).await;
    nothing_lost(&cluster.nodes[last], &written).await;
}

/// Nobody ends the WAL receiver of a replica whose replay is paused but the agent; as long as it runs there is no vote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_quorum_mode_a_standby_with_paused_replay_votes_about_a_frozen_leader() {
    let cluster = start(json!({"synchronous_mode": "quorum"})).await;
    let leader = cluster.leader(SOON).await;
    wait_role(&cluster, leader, "quorum_standby", 2).await;
    let written = witnesses(&cluster);
    acknowledges(&written, Instant::now()).await;
    let paused = cluster.replicas(leader)[0];
    cluster.nodes[paused]
        .sql("SELECT pg_wal_replay_pause()")
        .await
        .expect("a replica");
    wait_for("replay to stand still", SOON, async || {
        let state = cluster.nodes[paused]
            .sql("SELECT pg_get_wal_replay_pause_state()")
            .await?;
        if state == "paused" { Ok(()) } else { Err(state) }
    })
    .await;
    acknowledges(&written, Instant::now()).await;

    let old = &cluster.nodes[leader];
    let frozen: Vec<i32> = std::iter::once(old.init_pid())
        .chain(descendants(old.init_pid()))
        .collect();
    for pid in &frozen {
        old.signal(*pid, "STOP");
    }
    let new = cluster.other_leader(leader, TTL * 4).await;
    assert!(
        cluster.nodes[paused].log().contains("ending it"),
        "its WAL receiver does not end by itself"
    );
    acknowledges(&written, Instant::now()).await;
    // The first to wake ends the others.
    for pid in &frozen {
        let _gone = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(*pid),
            nix::sys::signal::Signal::SIGCONT,
        );
    }
    acknowledges(&written, Instant::now()).await;
    nothing_lost(&cluster.nodes[new], &written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mode_can_be_switched_and_a_switchover_lands_on_a_synchronous_standby() {
    let cluster = start(json!({"synchronous_mode": true})).await;
    let leader = cluster.leader(SOON).await;
    let standby = wait_role(&cluster, leader, "sync_standby", 1).await[0];
    let other = 3 - leader - standby;
    let written = witnesses(&cluster);
    acknowledges(&written, Instant::now()).await;
    let (old, named) = (
        cluster.nodes[leader].name.clone(),
        cluster.nodes[other].name.clone(),
    );
    let body = json!({"leader": old, "candidate": named});
    let (code, text) = cluster.nodes[leader]
        .request("POST", "/switchover", body)
        .await
        .expect("an answer");
    assert_eq!(
        (code, text),
        (412, "candidate name does not match with sync_standby".into())
    );
    let body = json!({"leader": old});
    let (code, text) = cluster.nodes[leader]
        .request("POST", "/switchover", body)
        .await
        .expect("an answer");
    assert_eq!(code, 200, "{text}");
    let new = cluster.leader(SOON).await;
    assert_eq!(new, standby);
    wait_role(&cluster, new, "sync_standby", 1).await;
    acknowledges(&written, Instant::now()).await;

    configure(&cluster.nodes[new], json!({"synchronous_mode": "quorum"})).await;
    wait_role(&cluster, new, "quorum_standby", 2).await;
    configure(&cluster.nodes[new], json!({"synchronous_mode": true})).await;
    wait_role(&cluster, new, "sync_standby", 1).await;
    let user =
        json!({"synchronous_mode": false, "postgresql": {"parameters": {"synchronous_standby_names": "*"}}});
    configure(&cluster.nodes[new], user).await;
    wait_names(&cluster.nodes[new], "*").await;
    wait_role(&cluster, new, "replica", 2).await;
    configure(&cluster.nodes[new], json!({"synchronous_mode": true})).await;
    wait_role(&cluster, new, "sync_standby", 1).await;
    acknowledges(&written, Instant::now()).await;
    nothing_lost(&cluster.nodes[new], &written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_leaves_what_commits_wait_for_as_it_is() {
    let cluster = start(json!({"synchronous_mode": true, "synchronous_mode_strict": true})).await;
    let leader = cluster.leader(SOON).await;
    let standby = wait_role(&cluster, leader, "sync_standby", 1).await[0];
    let node = &cluster.nodes[leader];
    let names = node
        .sql("SHOW synchronous_standby_names")
        .await
        .expect("an answer");
    assert_eq!(names, cluster.nodes[standby].name);
    let agent = node.agent_pid().expect("an agent");
    node.signal(agent, "KILL");
    wait_for("another agent", SOON, async || match node.agent_pid() {
        Some(pid) if pid != agent => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await;
    always(
        "commits wait for the same standby",
        Duration::from_secs(4),
        async || {
            let now = node.sql("SHOW synchronous_standby_names").await?;
            if now == names { Ok(()) } else { Err(now) }
        },
    )
    .await;
    node.wait_primary(SOON).await;
    // And postgres alone: from the first commit on they wait again.
    let written = [Witness::start(node.pg_port, 1)];
    acknowledges(&written, Instant::now()).await;
    node.signal(node.postmaster_pid().expect("a postmaster"), "KILL");
    wait_for("a leader", SOON, async || cluster.leader_now(None).await).await;
    let leader = cluster.healthy().await;
    wait_role(&cluster, leader, "sync_standby", 1).await;
    nothing_lost(&cluster.nodes[leader], &written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_standby_that_is_stopped_in_order_is_replaced_first() {
    let mut cluster = start(json!({"synchronous_mode": true, "synchronous_mode_strict": true})).await;
    let leader = cluster.leader(SOON).await;
    let standby = wait_role(&cluster, leader, "sync_standby", 1).await[0];
    let other = 3 - leader - standby;
    cluster.nodes[standby].stop(SOON).await;
    let log = cluster.nodes[standby].log();
    assert!(
        !log.contains("stopping as a synchronous standby"),
        "the leader has chosen another before it stopped"
    );
    let found = with_role(&cluster, leader, "sync_standby")
        .await
        .expect("GET /cluster");
    assert!(!found.contains(&standby), "{found:?}");
    wait_role(&cluster, leader, "sync_standby", 1).await;
    // It is back as what it was before: nothing of its leaving stays.
    cluster.nodes[standby].start();
    cluster.nodes[standby].wait_streaming(SOON).await;
    cluster.nodes[other].stop(SOON).await;
    wait_for("the first one again", SOON, async || {
        match with_role(&cluster, leader, "sync_standby").await?.as_slice() {
            [one] if *one == standby => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;
}
