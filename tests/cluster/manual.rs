//! What people schedule and ask for by name: switchovers, restarts, new copies.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    Cluster, SOON,
    node::{Node, wait_for},
};

const STARTED: &str = "SELECT pg_postmaster_start_time()::text";

fn in_seconds(seconds: i64) -> String {
    (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds)).to_string()
}

/// What a member has published about itself.
async fn member_key(cluster: &Cluster, node: &Node) -> Value {
    let mut store = cluster.etcd.client().await;
    let key = format!("/service/demo/members/{}", node.name);
    let stored = store.get(key, None).await.expect("read");
    let text = stored
        .kvs()
        .first()
        .map_or("{}", |kv| kv.value_str().expect("text"));
    serde_json::from_str(text).expect("JSON")
}

async fn schedule(node: &Node, body: Value) {
    let answer = node.request("POST", "/restart", body).await;
    assert_eq!(answer, Ok((202, "Restart scheduled".into())));
    wait_for("the schedule to be published", SOON, async || {
        let (_, status) = node.get("/patroni").await?;
        status
            .get("scheduled_restart")
            .map(|_| ())
            .ok_or_else(|| status.to_string())
    })
    .await;
}

async fn no_schedule(node: &Node, limit: Duration) {
    wait_for("nothing to be scheduled", limit, async || {
        let (_, status) = node.get("/patroni").await?;
        match status.get("scheduled_restart") {
            None => Ok(()),
            Some(left) => Err(left.to_string()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduled_switchover_takes_place_in_its_time() {
    let cluster = Cluster::start(&["pg1", "pg2"]).await;
    let old = cluster.healthy().await;
    let new = cluster.replicas(old)[0];
    let (from, to) = (cluster.nodes[old].name.clone(), cluster.nodes[new].name.clone());
    let body = json!({"leader": from, "candidate": to, "scheduled_at": in_seconds(3)});
    let answer = cluster.nodes[old].request("POST", "/switchover", body).await;
    assert_eq!(answer, Ok((202, "Switchover scheduled".into())));
    let (_, view) = cluster.nodes[old].get("/cluster").await.expect("GET /cluster");
    assert_eq!(view["scheduled_switchover"]["to"], to.as_str(), "{view}");
    cluster.nodes[new].wait_primary(SOON).await;
    cluster.nodes[old].wait_streaming(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduled_restart_takes_place_under_its_conditions_and_once() {
    let cluster = Cluster::start(&["pg1", "pg2"]).await;
    let leader = cluster.healthy().await;
    let node = &cluster.nodes[cluster.replicas(leader)[0]];
    let started = node.sql(STARTED).await.expect("query");

    // Published with the postmaster it is meant for.
    schedule(node, json!({"schedule": in_seconds(600), "role": "replica"})).await;
    wait_for("the member key to say so", SOON, async || {
        let key = member_key(&cluster, node).await;
        let scheduled = &key["scheduled_restart"];
        if scheduled["role"] == "replica" && scheduled["postmaster_start_time"].is_string() {
            Ok(())
        } else {
            Err(key.to_string())
        }
    })
    .await;
    let (_, status) = node.get("/patroni").await.expect("answers");
    assert_eq!(
        status["scheduled_restart"].get("postmaster_start_time"),
        None,
        "{status}"
    );
    let again = node
        .request("POST", "/restart", json!({"schedule": in_seconds(9)}))
        .await;
    assert_eq!(again, Ok((409, "Another restart is already scheduled".into())));
    // A restart in between makes it pointless.
    let answer = node.request("POST", "/restart", json!({})).await;
    assert_eq!(answer, Ok((200, "restarted successfully".into())));
    no_schedule(node, SOON).await;
    assert!(node.log().contains("postgres has been restarted since"));
    let restarted = node.sql(STARTED).await.expect("query");
    assert_ne!(restarted, started);

    // Conditions that do not hold.
    for condition in [
        json!({"role": "primary"}),
        json!({"restart_pending": true}),
        json!({"postgres_version": "10.1"}),
    ] {
        let mut body = condition;
        body["schedule"] = in_seconds(2).into();
        schedule(node, body).await;
        no_schedule(node, SOON).await;
        assert_eq!(node.sql(STARTED).await.as_ref(), Ok(&restarted));
    }
    assert_eq!(
        node.log()
            .matches("does not take place outcome=ConditionsNotMet")
            .count(),
        3
    );

    // And one whose conditions hold.
    schedule(
        node,
        json!({"schedule": in_seconds(2), "role": "replica", "timeout": "30"}),
    )
    .await;
    no_schedule(node, SOON).await;
    node.wait_streaming(SOON).await;
    assert_ne!(node.sql(STARTED).await, Ok(restarted));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_copy_comes_from_a_tagged_member_or_from_the_leader_if_that_is_asked_for() {
    let mut cluster = Cluster::prepare(&["pg1", "pg2", "pg3"]);
    for node in &mut cluster.nodes {
        node.set("HOWDAH_TAGS", "{clonefrom: true}").start();
    }
    let leader = cluster.healthy().await;
    let replicas = cluster.replicas(leader);
    let (node, tagged) = (&cluster.nodes[replicas[0]], &cluster.nodes[replicas[1]]);
    let made = async |copies: u64| {
        wait_for("the new copy", SOON, async || {
            let log = node.log();
            let done = log.matches("done job=\"clone\"").count() as u64;
            if done >= copies {
                Ok(())
            } else {
                Err(format!("{done} copies"))
            }
        })
        .await;
        node.wait_streaming(SOON).await;
    };
    // A source counts once its own key says that it runs.
    wait_for("the tagged member to be seen running", SOON, async || {
        let (_, view) = node.get("/cluster").await?;
        let members = view["members"].as_array().into_iter().flatten();
        let seen = members.into_iter().find(|member| member["name"] == tagged.name);
        match seen.is_some_and(|member| member["state"] == "streaming") {
            true => Ok(()),
            false => Err(view.to_string()),
        }
    })
    .await;
    // And for this member once it has looked since: a change makes it look.
    let looks = || {
        node.log()
            .matches("the dynamic configuration is in force")
            .count()
    };
    let looked = looks();
    let change = json!({"maximum_lag_on_failover": 4711});
    let changed = node.request("PATCH", "/config", change).await.expect("PATCH");
    assert_eq!(changed.0, 200, "{}", changed.1);
    wait_for("a look since then", SOON, async || match looks() > looked {
        true => Ok(()),
        false => Err(node.log()),
    })
    .await;
    let before = node.log().matches("done job=\"clone\"").count() as u64;
    for (count, body, from) in [
        (1, json!({}), &tagged.name),
        (
            2,
            json!({"from_leader": true, "force": true}),
            &cluster.nodes[leader].name,
        ),
    ] {
        let answer = node.request("POST", "/reinitialize", body).await;
        assert_eq!(answer, Ok((200, "reinitialize started".into())));
        made(before + count).await;
        let log = node.log();
        let asked = log.rfind("a new copy was asked for").expect("logged");
        let line = log[..asked].rfind('\n').map_or(0, |at| at + 1);
        assert!(
            log[line..]
                .lines()
                .next()
                .is_some_and(|line| line.contains(from.as_str())),
            "from {from}"
        );
    }
    let refused = cluster.nodes[leader]
        .request("POST", "/reinitialize", json!({"force": true}))
        .await;
    assert_eq!(refused, Ok((503, "I am the leader, can not reinitialize".into())));
    assert_eq!(cluster.leader(SOON).await, leader, "the lock was not touched");
}
