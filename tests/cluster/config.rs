//! The cluster's configuration on its way to every postgres: settings for one role, commands, what waits for a restart,
//! values nobody can use.

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};

use crate::{Cluster, SOON, node::Node, wait_for};

/// Also what cannot be used: the store may have it from elsewhere.
async fn configure(node: &Node, patch: Value) {
    let (status, text) = node
        .request("PATCH", "/config?force=true", patch)
        .await
        .expect("PATCH");
    assert_eq!(status, 200, "{text}");
}

async fn shows(node: &Node, parameter: &str, expected: &str) {
    wait_for(
        &format!("{parameter} = {expected} on {}", node.name),
        SOON,
        async || {
            let value = node.sql(&format!("SHOW {parameter}")).await?;
            if value == expected { Ok(()) } else { Err(value) }
        },
    )
    .await;
}

/// What `/patroni` says waits for a restart.
async fn pending(node: &Node, limit: Duration, expected: &Value) {
    wait_for(
        &format!("{expected} to wait for a restart on {}", node.name),
        limit,
        async || {
            let (_, status) = node.get("/patroni").await?;
            let reason = &status["pending_restart_reason"];
            if reason == expected {
                Ok(())
            } else {
                Err(reason.to_string())
            }
        },
    )
    .await;
}

async fn restart(node: &Node) {
    let (status, text) = node.request("POST", "/restart", json!({})).await.expect("POST");
    assert_eq!(status, 200, "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_for_one_role_follow_it() {
    let cluster = Cluster::start(&["pg1", "pg2"]).await;
    let old = cluster.healthy().await;
    let new = 1 - old;
    configure(
        &cluster.nodes[old],
        json!({"postgresql": {
            "parameters": {"work_mem": "5MB"},
            "parameters_primary": {"work_mem": "6MB"},
            "parameters_replica": {"work_mem": "7MB"},
            "pg_hba_primary": ["local all all trust", "host all all all scram-sha-256", "host replication all all scram-sha-256",
                "host all only_on_the_primary all reject"]
        }}),
    )
    .await;
    let rejects = async |node: &Node| {
        node.sql("SELECT count(*) FROM pg_hba_file_rules WHERE 'only_on_the_primary' = ANY(user_name)")
            .await
    };
    shows(&cluster.nodes[old], "work_mem", "6MB").await;
    shows(&cluster.nodes[new], "work_mem", "7MB").await;
    assert_eq!(rejects(&cluster.nodes[old]).await.as_deref(), Ok("1"));
    assert_eq!(rejects(&cluster.nodes[new]).await.as_deref(), Ok("0"));
    let body = json!({"leader": cluster.nodes[old].name, "candidate": cluster.nodes[new].name});
    cluster.nodes[old]
        .request("POST", "/switchover", body)
        .await
        .expect("POST");
    cluster.nodes[new].wait_primary(SOON).await;
    cluster.nodes[old].wait_streaming(SOON).await;
    shows(&cluster.nodes[new], "work_mem", "6MB").await;
    shows(&cluster.nodes[old], "work_mem", "7MB").await;
    wait_for("the lines of the roles", SOON, async || {
        match (
            rejects(&cluster.nodes[old]).await?.as_str(),
            rejects(&cluster.nodes[new]).await?.as_str(),
        ) {
            ("0", "1") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_restart_shows_at_once_with_units_and_goes_with_it() {
    let mut cluster = Cluster::prepare(&["pg1"]);
    // Nothing else wakes the loop in time.
    cluster.nodes[0]
        .set("HOWDAH_TTL", "60")
        .set("HOWDAH_LOOP_WAIT", "20")
        .set("HOWDAH_RETRY_TIMEOUT", "10")
        .start();
    cluster.healthy().await;
    let node = &cluster.nodes[0];
    let moments = Duration::from_secs(6);
    configure(
        node,
        json!({"postgresql": {"parameters": {"shared_buffers": 32768, "max_connections": 150}}}),
    )
    .await;
    let expected = json!({
        "max_connections": {"old_value": "100", "new_value": "150"},
        "shared_buffers": {"old_value": "128MB", "new_value": "256MB"}
    });
    pending(node, moments, &expected).await;
    wait_for("the same in the member key", moments, async || {
        let (_, status) = node.get("/cluster").await?;
        let reason = &status["members"][0]["pending_restart_reason"];
        if *reason == expected {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
    restart(node).await;
    pending(node, moments, &Value::Null).await;
    shows(node, "shared_buffers", "256MB").await;
    // A parameter that is taken out goes back to what the server would have without it.
    configure(
        node,
        json!({"postgresql": {"parameters": {"shared_buffers": null, "max_connections": null}}}),
    )
    .await;
    let expected = json!({
        "max_connections": {"old_value": "150", "new_value": "100"},
        "shared_buffers": {"old_value": "256MB", "new_value": "128MB"}
    });
    pending(node, moments, &expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn max_connections_changes_in_either_order_without_hands() {
    let cluster = Cluster::start(&["pg1", "pg2"]).await;
    let leader = cluster.healthy().await;
    let (primary, replica) = (&cluster.nodes[leader], &cluster.nodes[1 - leader]);
    configure(
        primary,
        json!({"postgresql": {"parameters": {"max_connections": 150}}}),
    )
    .await;
    let reason = |old: &str, new: &str| json!({"max_connections": {"old_value": old, "new_value": new}});
    pending(primary, SOON, &reason("100", "150")).await;
    pending(replica, SOON, &reason("100", "150")).await;
    // The wrong order: the replica pauses its replay, and is started again with what the primary has.
    restart(primary).await;
    shows(primary, "max_connections", "150").await;
    shows(replica, "max_connections", "150").await;
    replica.wait_streaming(SOON).await;
    pending(replica, SOON, &Value::Null).await;
    // Down again, replica first: it must not go below its primary, and says what it still waits for.
    configure(
        primary,
        json!({"postgresql": {"parameters": {"max_connections": 120}}}),
    )
    .await;
    pending(replica, SOON, &reason("150", "120")).await;
    restart(replica).await;
    shows(replica, "max_connections", "150").await;
    pending(replica, SOON, &reason("150", "120")).await;
    restart(primary).await;
    let written = primary.sql("SELECT pg_current_wal_lsn()").await.expect("query");
    wait_for("the replica to know what its primary has now", SOON, async || {
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        match replica.sql(&replayed).await?.as_str() {
            "t" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    restart(replica).await;
    shows(replica, "max_connections", "120").await;
    pending(replica, SOON, &Value::Null).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_nobody_can_use_are_said_and_harm_nothing() {
    let cluster = Cluster::start(&["pg1"]).await;
    let node = &cluster.nodes[0];
    configure(
        node,
        json!({"loop_wait": "soon", "tttl": 5, "postgresql": {"parameters": {"work_mem": "1kB", "jit": "perhaps",
            "no_such_parameter": 1, "maintenance_work_mem": "70MB"}}}),
    )
    .await;
    shows(node, "maintenance_work_mem", "70MB").await;
    shows(node, "work_mem", "64kB").await;
    let (_, status) = node.get("/patroni").await.expect("GET");
    let said = status["howdah"]["config"].to_string();
    assert!(
        said.contains("loop_wait") && said.contains("did you mean ttl?"),
        "{status}"
    );
    let log = node.log();
    for expected in [
        "the least is 64kB",
        "a boolean is expected",
        "this server does not know it",
        "/config: loop_wait",
    ] {
        assert!(log.contains(expected), "{expected}");
    }
    node.wait_primary(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_the_clusters_configuration_are_run() {
    let cluster = Cluster::start(&["pg1", "pg2"]).await;
    let old = cluster.healthy().await;
    let new = 1 - old;
    let (heard, gate) = (
        cluster.base.path().join("heard"),
        cluster.base.path().join("gate"),
    );
    let callback = format!(
        "sh -c 'echo \"$HOSTNAME$@\" >> {}.$$.$1' callback",
        heard.display()
    );
    let commands = json!({"postgresql": {
        "callbacks": {"on_role_change": callback, "on_reload": callback, "on_restart": callback},
        "pre_promote": format!("test -e {}", gate.display())
    }});
    std::os::unix::fs::chown(cluster.base.path(), Some(postgres_uid()), None).expect("chown");
    configure(&cluster.nodes[old], commands).await;
    let calls = |what: &str| calls(cluster.base.path(), what);
    wait_for("both to reload", SOON, async || {
        let heard = calls("on_reload");
        if heard.len() == 2 {
            Ok(())
        } else {
            Err(format!("{heard:?}"))
        }
    })
    .await;
    restart(&cluster.nodes[new]).await;
    cluster.nodes[new].wait_streaming(SOON).await;
    wait_for("the restart to be told", SOON, async || {
        let heard = calls("on_restart");
        if heard.iter().any(|line| line.contains("on_restart replica demo")) {
            Ok(())
        } else {
            Err(format!("{heard:?}"))
        }
    })
    .await;
    // Nobody is promoted while pre_promote says no.
    let body = json!({"leader": cluster.nodes[old].name, "candidate": cluster.nodes[new].name});
    let asked = cluster.nodes[old]
        .request("POST", "/switchover", body.clone())
        .await
        .expect("POST");
    wait_for("a refusal", SOON, async || {
        let log = cluster.nodes[new].log();
        if log.contains("pre_promote refused") {
            Ok(())
        } else {
            Err(format!("{asked:?}"))
        }
    })
    .await;
    fs::write(&gate, "").expect("open the gate");
    // The old leader may have taken the lock back, and the other leaves it alone for a whole ttl after the refusal.
    wait_for("the candidate to lead", SOON, async || {
        let (code, status) = cluster.nodes[new].get("/primary").await?;
        if code == 200 {
            return Ok(());
        }
        let again = cluster.nodes[old]
            .request("POST", "/switchover", body.clone())
            .await;
        Err(format!("{status}, asked again: {again:?}"))
    })
    .await;
    wait_for("a role change to be told", SOON, async || {
        let heard = calls("on_role_change");
        if heard
            .iter()
            .any(|line| line.contains("on_role_change primary demo"))
        {
            Ok(())
        } else {
            Err(format!("{heard:?}"))
        }
    })
    .await;
}

/// Lines the callback wrote for an action.
fn calls(dir: &Path, action: &str) -> Vec<String> {
    let files = fs::read_dir(dir)
        .expect("readable")
        .flatten()
        .map(|entry| entry.path());
    let of = files.filter(|path| path.extension().is_some_and(|end| end == action));
    of.map(|path| fs::read_to_string(path).unwrap_or_default())
        .collect()
}

fn postgres_uid() -> u32 {
    let user = nix::unistd::User::from_name("postgres").ok().flatten();
    user.map_or_else(|| nix::unistd::geteuid().as_raw(), |user| user.uid.as_raw())
}
