//! Replication slots: those of members on every member, permanent ones across changes of the leader, and which ones go.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};

use crate::{
    Cluster, SOON,
    node::{Node, always, code, wait_for},
};

async fn start(names: &[&str], dcs: Value) -> Cluster {
    let mut cluster = Cluster::prepare(names);
    for node in &mut cluster.nodes {
        node.set("HOWDAH_BOOTSTRAP_DCS", &dcs.to_string()).start();
    }
    cluster.healthy().await;
    cluster
}

async fn shows(node: &Node, sql: &str, expected: &str) {
    wait_for(
        &format!("{}: {sql} to be {expected}", node.name),
        SOON,
        async || {
            let value = node.sql(sql).await?;
            if value == expected { Ok(()) } else { Err(value) }
        },
    )
    .await;
}

async fn names(node: &Node) -> Result<String, String> {
    node.sql("SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots")
        .await
}

async fn has_slots(node: &Node, expected: &str) {
    wait_for(
        &format!("{} to have slots {expected}", node.name),
        SOON,
        async || {
            let found = names(node).await?;
            if found == expected { Ok(()) } else { Err(found) }
        },
    )
    .await;
}

async fn patch(node: &Node, change: Value) {
    let (status, answer) = node.request("PATCH", "/config", change).await.expect("PATCH");
    assert_eq!(status, 200, "{answer}");
}

/// WAL up to the end of a segment, so that positions move visibly.
async fn write(node: &Node) {
    node.sql("CREATE TABLE IF NOT EXISTS t (x int)")
        .await
        .expect("create");
    node.sql("INSERT INTO t SELECT generate_series(1, 100)")
        .await
        .expect("write");
    node.sql("SELECT pg_switch_wal()").await.expect("switch");
}

async fn position(node: &Node, slot: &str) -> Result<u64, String> {
    let sql = format!(
        "SELECT (coalesce(confirmed_flush_lsn, restart_lsn) - '0/0')::bigint FROM pg_replication_slots \
          WHERE slot_name = '{slot}'"
    );
    node.sql(&sql)
        .await?
        .parse()
        .map_err(|_| format!("{slot} is not there"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_slots_are_everywhere_move_along_and_outlast_an_absence() {
    let mut cluster = start(
        &["pg1", "pg2", "pg3"],
        json!({"member_slots_ttl": "15s", "slots": {"keep": 0}}),
    )
    .await;
    let leader = cluster.healthy().await;
    for node in &cluster.nodes {
        let others = cluster.nodes.iter().map(|other| other.name.as_str());
        let mut wanted: Vec<&str> = others.filter(|name| *name != node.name).chain(["keep"]).collect();
        wanted.sort_unstable();
        has_slots(node, &wanted.join(" ")).await;
    }
    // The slots on replicas move with the leader's, so that a failover leaves WAL for everybody.
    let replicas = cluster.replicas(leader);
    let (one, other) = (replicas[0], replicas[1]);
    let before = position(&cluster.nodes[one], &cluster.nodes[other].name)
        .await
        .expect("there");
    for _ in 0..3 {
        write(&cluster.nodes[leader]).await;
    }
    cluster.nodes[leader].sql("CHECKPOINT").await.expect("checkpoint");
    wait_for("the slot on the other replica to move", SOON, async || {
        let now = position(&cluster.nodes[one], &cluster.nodes[other].name).await?;
        if now >= before + (32 << 20) {
            Ok(())
        } else {
            Err(format!("{before} -> {now}"))
        }
    })
    .await;
    // Nobody has said how much that may be.
    let limit = cluster.nodes[leader]
        .sql("SHOW max_slot_wal_keep_size")
        .await
        .expect("a setting");
    assert_ne!(limit, "-1", "slots must not fill the volume");
    // What holds how much back, and for whom.
    let (status, shown) = cluster.nodes[leader].get("/slots").await.expect("GET /slots");
    assert_eq!(status, 200);
    let owner = |name: &str| {
        let slots = shown.as_array().into_iter().flatten();
        slots
            .clone()
            .find(|slot| slot["name"] == name)
            .map(|slot| slot["owner"].clone())
    };
    assert_eq!(owner("keep"), Some(json!("permanent")), "{shown}");
    assert_eq!(owner(&cluster.nodes[one].name), Some(json!("member")), "{shown}");
    let (exit, table, _) = cluster.nodes[one].cli(&["slots"]).await;
    assert_eq!(exit, 0, "{table}");
    assert!(table.contains("keep") && table.contains("permanent"), "{table}");

    // Away for less than the ttl: the slot stays although the member key is gone.
    let name = cluster.nodes[other].name.clone();
    let copies = |node: &Node| node.log().matches("begins job=\"clone\"").count();
    let copied = copies(&cluster.nodes[other]);
    assert_eq!(code(cluster.nodes[other].stop(SOON).await), 0);
    wait_for("the member key to be gone", SOON, async || {
        let (_, view) = cluster.nodes[leader].get("/cluster").await?;
        let members = view["members"].as_array().map_or(0, Vec::len);
        if members == 2 {
            Ok(())
        } else {
            Err(view.to_string())
        }
    })
    .await;
    always(
        "the slot of the absent member stays",
        Duration::from_secs(8),
        async || {
            for node in [leader, one] {
                position(&cluster.nodes[node], &name).await?;
            }
            Ok(())
        },
    )
    .await;
    for _ in 0..3 {
        write(&cluster.nodes[leader]).await;
    }
    cluster.nodes[other].start();
    cluster.nodes[other].wait_streaming(SOON).await;
    assert_eq!(copies(&cluster.nodes[other]), copied, "what it needed was there");
    // Away for longer: it goes, everywhere.
    assert_eq!(code(cluster.nodes[other].stop(SOON).await), 0);
    for node in [leader, one] {
        wait_for("the slot of the member to go", SOON, async || {
            match position(&cluster.nodes[node], &name).await {
                Ok(at) => Err(format!("still at {at}")),
                Err(_) => Ok(()),
            }
        })
        .await;
        position(&cluster.nodes[node], "keep")
            .await
            .expect("permanent slots stay");
    }
    cluster.nodes[other].start();
    cluster.nodes[other].wait_streaming(SOON).await;
    position(&cluster.nodes[leader], &name).await.expect("made again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_configured_goes_with_the_configuration_and_what_a_person_made_stays() {
    let slots = json!({"slots": {"keep": 0, "go": 0, "ignored": 0}});
    let mut cluster = start(&["pg1", "pg2"], slots).await;
    let leader = cluster.healthy().await;
    let replica = cluster.replicas(leader)[0];
    let (first, second) = (
        cluster.nodes[leader].name.clone(),
        cluster.nodes[replica].name.clone(),
    );
    for (node, member) in [(leader, &second), (replica, &first)] {
        has_slots(&cluster.nodes[node], &format!("go ignored keep {member}")).await;
        cluster.nodes[node]
            .sql("SELECT pg_create_physical_replication_slot('mine', true)")
            .await
            .expect("a person's slot");
    }
    // The replica is down while the configuration changes, and its agent has forgotten everything.
    assert_eq!(code(cluster.nodes[replica].stop(SOON).await), 0);
    let change = json!({"slots": {"go": null, "ignored": null}, "ignore_slots": [{"name": "ignored"}]});
    patch(&cluster.nodes[leader], change).await;
    has_slots(&cluster.nodes[leader], &format!("ignored keep mine {second}")).await;
    cluster.nodes[replica].start();
    cluster.nodes[replica].wait_streaming(SOON).await;
    has_slots(&cluster.nodes[replica], &format!("ignored keep mine {first}")).await;
    // In maintenance mode nothing goes.
    patch(&cluster.nodes[leader], json!({"pause": true})).await;
    patch(&cluster.nodes[leader], json!({"slots": {"keep": null}})).await;
    always(
        "nothing is dropped in maintenance mode",
        Duration::from_secs(4),
        async || position(&cluster.nodes[leader], "keep").await.map(drop),
    )
    .await;
    patch(&cluster.nodes[leader], json!({"pause": null})).await;
    has_slots(&cluster.nodes[leader], &format!("ignored mine {second}")).await;
}

/// Reads what the consumer has not confirmed yet, and confirms it.
async fn consume(node: &Node) -> Vec<u32> {
    let client = node.connect().await.expect("connect");
    let rows = client
        .query(
            "SELECT data FROM pg_logical_slot_get_changes('events', NULL, NULL)",
            &[],
        )
        .await
        .expect("the slot can be read");
    let inserted = rows.iter().filter_map(|row| {
        let text: String = row.get(0);
        text.rsplit_once("INSERT: id[integer]:")?.1.parse().ok()
    });
    inserted.collect()
}

async fn produce(node: &Node, ids: std::ops::Range<u32>) {
    let values: Vec<String> = ids.map(|id| format!("({id})")).collect();
    node.sql(&format!("INSERT INTO events VALUES {}", values.join(",")))
        .await
        .expect("write");
}

/// All replicas have the slot, at least up to `confirmed`, and the last row.
async fn replicas_ready(cluster: &Cluster, leader: usize, confirmed: u64, last: u32) {
    for index in cluster.replicas(leader) {
        let node = &cluster.nodes[index];
        wait_for(
            &format!("{} to have the slot up to {confirmed}", node.name),
            SOON * 2,
            async || {
                let at = position(node, "events").await?;
                let row = node.sql("SELECT max(id) FROM events").await?;
                if at >= confirmed && row == last.to_string() {
                    Ok(())
                } else {
                    Err(format!("slot at {at}, last row {row}"))
                }
            },
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_misses_nothing_across_five_changes_of_the_leader() {
    let dcs = json!({
        "postgresql": {"parameters": {"wal_level": "logical"}},
        "slots": {"events": {"type": "logical", "database": "postgres", "plugin": "test_decoding"}},
    });
    let mut cluster = start(&["pg1", "pg2", "pg3"], dcs).await;
    let mut leader = cluster.healthy().await;
    cluster.nodes[leader]
        .sql("CREATE TABLE events (id int PRIMARY KEY)")
        .await
        .expect("create");
    wait_for("the slot on the leader", SOON, async || {
        position(&cluster.nodes[leader], "events").await
    })
    .await;
    let (mut next, mut seen, mut highest) = (1_u32, BTreeSet::new(), 0);
    // A slot cannot be copied to where the WAL it needs never was: replicas get it as its consumer moves on.
    for index in cluster.replicas(leader) {
        wait_for("the replica to get the slot", SOON * 3, async || {
            produce(&cluster.nodes[leader], next..next + 1).await;
            next += 1;
            cluster.nodes[leader].sql("CHECKPOINT").await?;
            seen.extend(consume(&cluster.nodes[leader]).await);
            position(&cluster.nodes[index], "events").await
        })
        .await;
    }
    for round in 0..5 {
        produce(&cluster.nodes[leader], next..next + 10).await;
        next += 10;
        seen.extend(consume(&cluster.nodes[leader]).await);
        assert_eq!(seen.len(), next as usize - 1, "round {round}");
        let confirmed = position(&cluster.nodes[leader], "events").await.expect("there");
        assert!(
            confirmed >= highest,
            "round {round}: the confirmed position went back"
        );
        highest = confirmed;
        replicas_ready(&cluster, leader, confirmed, next - 1).await;
        // Written and not consumed yet: the next leader has to deliver these.
        produce(&cluster.nodes[leader], next..next + 10).await;
        next += 10;
        replicas_ready(&cluster, leader, confirmed, next - 1).await;
        let planned = round % 2 == 0;
        let old = leader;
        if planned {
            // Confirmed at the last moment: `/status` had no turn to hear of it.
            seen.extend(consume(&cluster.nodes[leader]).await);
            let name = cluster.nodes[old].name.clone();
            let (exit, out, err) = cluster.nodes[old]
                .cli(&["switchover", "--leader", &name, "--force"])
                .await;
            assert_eq!(exit, 0, "{out}{err}");
        } else {
            cluster.nodes[old].kill_node();
        }
        leader = cluster.other_leader(old, SOON).await;
        let read = consume(&cluster.nodes[leader]).await;
        if planned {
            assert_eq!(
                read,
                Vec::<u32>::new(),
                "round {round}: what was confirmed comes again"
            );
        }
        seen.extend(read);
        let missing: Vec<u32> = (1..next).filter(|id| !seen.contains(id)).collect();
        assert_eq!(
            missing,
            Vec::<u32>::new(),
            "round {round}: the consumer misses rows"
        );
        if !planned {
            cluster.nodes[old].start();
        }
        assert_eq!(cluster.healthy().await, leader);
    }
    for node in &cluster.nodes {
        shows(node, "SHOW hot_standby_feedback", "on").await;
        assert!(
            !node.log().contains("its consumer misses"),
            "a slot had to be made anew on {}",
            node.name
        );
    }
    wait_for("a slot to be safe to use", SOON, async || {
        let safe = |node: &Node| node.log().contains("a logical slot can be used after a failover");
        if cluster.nodes.iter().any(safe) {
            Ok(())
        } else {
            Err("none".to_owned())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_postgres_synchronizes_is_not_in_its_way_on_an_old_leader() {
    let dcs = json!({"postgresql": {"parameters": {
        "wal_level": "logical", "hot_standby_feedback": "on", "sync_replication_slots": "on",
    }}});
    let cluster = start(&["pg1", "pg2"], dcs).await;
    let old = cluster.healthy().await;
    let version = cluster.nodes[old]
        .sql("SHOW server_version_num")
        .await
        .expect("a version");
    if version.parse::<u32>().expect("a number") < 170_000 {
        println!("PostgreSQL {version} does not synchronize slots itself: not tested");
        return;
    }
    let new = cluster.replicas(old)[0];
    cluster.nodes[old]
        .sql("SELECT pg_create_logical_replication_slot('theirs', 'test_decoding', false, false, true)")
        .await
        .expect("create");
    // A slot whose consumer stands still is behind what a new standby can have.
    let synced = async |node: &Node, leader: &Node| {
        wait_for(&format!("{} to synchronize", node.name), SOON * 3, async || {
            let sql = "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = 'theirs'";
            leader.sql("CREATE TABLE IF NOT EXISTS t (x int)").await?;
            leader.sql("INSERT INTO t VALUES (1)").await?;
            let consume = "SELECT count(*) FROM pg_logical_slot_get_changes('theirs', NULL, NULL)";
            leader.sql(consume).await?;
            let value = node.sql(sql).await?;
            if value == "t" { Ok(()) } else { Err(value) }
        })
        .await;
    };
    synced(&cluster.nodes[new], &cluster.nodes[old]).await;
    let name = cluster.nodes[old].name.clone();
    let (exit, out, err) = cluster.nodes[old]
        .cli(&["switchover", "--leader", &name, "--force"])
        .await;
    assert_eq!(exit, 0, "{out}{err}");
    assert_eq!(cluster.healthy().await, new);
    synced(&cluster.nodes[old], &cluster.nodes[new]).await;
    let log = cluster.nodes[old].log();
    assert!(
        log.contains("PostgreSQL copies the leader's by itself"),
        "it was in the way"
    );
    shows(
        &cluster.nodes[new],
        "SELECT failover FROM pg_replication_slots WHERE slot_name = 'theirs'",
        "t",
    )
    .await;
}
