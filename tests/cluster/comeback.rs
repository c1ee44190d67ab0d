//! All members stop and return: in any order, killed at once, with older data first.

use std::time::{Duration, Instant};

use crate::{
    Cluster, SOON,
    node::{Node, always, code, wait_for},
};

async fn shows(node: &Node, sql: &str, expected: &str) {
    wait_for(&format!("{}: {sql}", node.name), SOON, async || {
        let value = node.sql(sql).await?;
        if value == expected { Ok(()) } else { Err(value) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_data_does_not_lead_while_the_newest_is_expected() {
    let mut cluster = Cluster::prepare(&["pg1", "pg2", "pg3"]);
    for node in &mut cluster.nodes {
        // How long a cold start waits for newer data; longer than the starts and what is looked at below.
        node.set("HOWDAH_TTL", "12").start();
    }
    let first = cluster.healthy().await;
    cluster.nodes[first]
        .sql("CREATE TABLE t (x int)")
        .await
        .expect("create");
    // Stop the replicas first, write what only the leader has, stop the leader: its data is the newest.
    let replicas = cluster.replicas(first);
    for index in &replicas {
        assert_eq!(code(cluster.nodes[*index].stop(SOON).await), 0);
    }
    cluster.nodes[first]
        .sql("INSERT INTO t VALUES (42)")
        .await
        .expect("write");
    assert_eq!(code(cluster.nodes[first].stop(SOON).await), 0);
    for index in &replicas {
        cluster.nodes[*index].start();
    }
    for index in &replicas {
        wait_for("the replicas to be up", SOON, async || {
            let role = cluster.nodes[*index].role().await?;
            if role == "replica/running" {
                Ok(())
            } else {
                Err(role)
            }
        })
        .await;
    }
    always(
        "older data waits",
        Duration::from_secs(3),
        async || match cluster.leader_now(None).await {
            Ok(leader) => Err(format!("{} leads", cluster.nodes[leader].name)),
            Err(_) => Ok(()),
        },
    )
    .await;
    let begun = Instant::now();
    cluster.nodes[first].start();
    cluster.healthy().await;
    println!("newest data leads again after {:?}", begun.elapsed());
    for node in &cluster.nodes {
        shows(node, "SELECT max(x) FROM t", "42").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_order_of_stops_and_starts_the_last_row_is_there() {
    let mut cluster = Cluster::start(&["pg1", "pg2", "pg3"]).await;
    let leader = cluster.healthy().await;
    cluster.nodes[leader]
        .sql("CREATE TABLE t (x int)")
        .await
        .expect("create");
    let mut last = 0;
    // Places: 0 is the leader of the moment, 1 and 2 its replicas.
    for (stops, starts) in [
        ([0, 1, 2], [0, 1, 2]),
        ([1, 0, 2], [1, 2, 0]),
        ([2, 1, 0], [2, 0, 1]),
        ([0, 2, 1], [1, 0, 2]),
    ] {
        let leader = cluster.healthy().await;
        let mut places = vec![leader];
        places.extend(cluster.replicas(leader));
        for place in stops {
            // A leader with whoever is left, after each hand-over another one.
            last += 1;
            let now = cluster.leader(SOON).await;
            cluster.nodes[now]
                .sql(&format!("INSERT INTO t VALUES ({last})"))
                .await
                .expect("write");
            let exit = cluster.nodes[places[place]].stop(SOON).await;
            assert_eq!(code(exit), 0, "{stops:?}");
        }
        for place in starts {
            cluster.nodes[places[place]].start();
        }
        let begun = Instant::now();
        cluster.healthy().await;
        println!(
            "stopped {stops:?}, started {starts:?}: healthy after {:?}",
            begun.elapsed()
        );
        for node in &cluster.nodes {
            shows(
                node,
                "SELECT count(*) || ':' || max(x) FROM t",
                &format!("{last}:{last}"),
            )
            .await;
        }
    }
    // And all at once, without warning.
    for node in &mut cluster.nodes {
        node.kill_node();
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.healthy().await;
    for node in &cluster.nodes {
        shows(node, "SELECT max(x) FROM t", &last.to_string()).await;
    }
}
