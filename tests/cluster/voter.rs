//! Two members with data and a small third that only votes, on the image's etcd.

use std::time::Duration;

use crate::{
    Cluster, SOON,
    node::{free_port, wait_for},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_and_a_voter_survive_the_loss_of_either_member() {
    let mut cluster = Cluster::prepare(&["pg1", "pg2", "small"]);
    let peers: Vec<String> = cluster
        .nodes
        .iter()
        .map(|node| format!("{}=127.0.0.1:{}/{}", node.name, free_port(), free_port()))
        .collect();
    for node in &mut cluster.nodes {
        node.env.remove("HOWDAH_ETCD3_HOSTS");
        node.set("HOWDAH_EMBEDDED_PEERS", &peers.join(","));
        if node.name == "small" {
            // All that it is given.
            node.set("HOWDAH_ROLE", "voter")
                .env
                .remove("HOWDAH_SUPERUSER_PASSWORD");
        }
        node.start();
    }
    let leader = wait_for("a leader", SOON, async || {
        for index in [0, 1] {
            if let Ok((200, _)) = cluster.nodes[index].get("/primary").await {
                return Ok(index);
            }
        }
        Err("none".to_owned())
    })
    .await;
    let other = 1 - leader;
    cluster.nodes[other].wait_streaming(SOON).await;

    let voter = &cluster.nodes[2];
    assert!(!voter.data_dir().join("PG_VERSION").exists(), "it has no data");
    assert_eq!(voter.get("/liveness").await.map(|answer| answer.0), Ok(200));
    for path in ["/primary", "/replica", "/readiness"] {
        assert_eq!(voter.get(path).await.map(|answer| answer.0), Ok(503), "{path}");
    }
    let (_, view) = voter.get("/cluster").await.expect("a view");
    let names: Vec<&str> = view["members"]
        .as_array()
        .expect("members")
        .iter()
        .filter_map(|member| member["name"].as_str())
        .collect();
    assert_eq!(names, ["pg1", "pg2"], "a voter is no member");
    let (code, out, err) = voter.cli(&["list"]).await;
    assert!(code == 0 && out.contains("pg2"), "{out}{err}");

    cluster.nodes[leader].kill_node();
    cluster.nodes[other].wait_primary(SOON).await;
    // The two are a quorum, but not the voter alone.
    cluster.nodes[leader].start();
    cluster.nodes[leader].wait_streaming(SOON).await;
    let ended = cluster.nodes[2].stop(Duration::from_secs(10)).await;
    assert!(ended.success(), "{ended}");
    cluster.nodes[other].wait_primary(SOON).await;
}
