//! `patronictl` changes a Howdah cluster.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    SOON,
    ctl::{Ctl, Three},
    node::wait_for,
    seat::Seat,
};

/// An hour from now, as people write it.
fn in_an_hour() -> String {
    later(Duration::from_secs(3600))
}

fn later(wait: Duration) -> String {
    let then = jiff::Timestamp::now() + wait;
    then.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The text of a key in every row that has it.
async fn rows_with(ctl: &Ctl, key: &str) -> Vec<Value> {
    let rows = ctl.list().await;
    rows.into_iter().filter(|row| row.get(key).is_some()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patronictl_moves_the_leader() {
    let three = Three::start().await;
    let (ctl, seats) = (&three.ctl, three.healthy().await);
    let (leader, candidate) = (&seats[0], &seats[1]);

    // By hand, as it asks: leader, candidate, time, consent.
    let answers = format!("{}\n{}\nnow\ny\n", leader.name, candidate.name);
    let done = ctl.answering(&["switchover", "demo"], &answers).await;
    assert_eq!(done.code, 0, "{done:?}");
    let said = format!("Successfully switched over to \"{}\"", candidate.name);
    assert!(done.out.contains(&said), "{}", done.out);
    let seats = three.healthy().await;
    assert_eq!(seats[0].name, candidate.name);

    let candidate = &seats[2];
    let out = ctl
        .ok(&["switchover", "--candidate", &candidate.name, "--force"])
        .await;
    let said = format!("Successfully switched over to \"{}\"", candidate.name);
    assert!(out.contains(&said), "{out}");
    let seats = three.healthy().await;
    assert_eq!(seats[0].name, candidate.name);
    // Refused by the tool from what it reads.
    let wrong = ["switchover", "--leader", &seats[1].name, "--force"];
    assert_eq!(
        ctl.error(&wrong).await,
        format!("Member {} is not the leader of cluster demo", seats[1].name)
    );

    // Later, and then not.
    let at = in_an_hour();
    let out = ctl.ok(&["switchover", "--scheduled", &at, "--force"]).await;
    assert!(out.contains("Switchover scheduled\n"), "{out}");
    let out = ctl.ok(&["list"]).await;
    let said = format!(" Switchover scheduled at: {}", at.replace('Z', "+00:00"));
    assert!(
        out.contains(&said) && out.contains(&format!("from: {}", seats[0].name)),
        "{out}"
    );
    let flush = ["flush", "demo", "switchover", "--force"];
    assert_eq!(ctl.ok(&flush).await, "Success: scheduled switchover deleted\n");
    assert_eq!(ctl.ok(&flush).await, "No pending scheduled switchover\n");
    assert!(!ctl.ok(&["list"]).await.contains("scheduled at"));
    // In a moment: patronictl itself needs one.
    let at = later(Duration::from_secs(5));
    ctl.ok(&[
        "switchover",
        "--candidate",
        &seats[1].name,
        "--scheduled",
        &at,
        "--force",
    ])
    .await;
    seats[1].wait_primary(SOON).await;
    let seats = three.healthy().await;

    let candidate = &seats[1];
    let out = ctl
        .ok(&["failover", "--candidate", &candidate.name, "--force"])
        .await;
    let said = format!("Successfully failed over to \"{}\"", candidate.name);
    assert!(out.contains(&said), "{out}");
    assert_eq!(three.healthy().await[0].name, candidate.name);
    assert_eq!(
        ctl.error(&["failover", "--force"]).await,
        "Failover could be performed only to a specific candidate"
    );
    assert_eq!(
        ctl.error(&["failover", "--candidate", "pg9", "--force"]).await,
        "Member pg9 does not exist in cluster demo or is tagged as nofailover"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patronictl_pauses_and_configures() {
    let three = Three::start().await;
    let (ctl, seats) = (&three.ctl, three.healthy().await);
    let leader = &seats[0];

    let out = ctl.ok(&["pause", "--wait"]).await;
    assert!(out.ends_with("Success: cluster management is paused\n"), "{out}");
    for seat in &seats {
        assert_eq!(seat.json("/patroni").await["pause"], true, "{}", seat.name);
    }
    assert_eq!(ctl.error(&["pause"]).await, "Cluster is already paused");
    assert!(ctl.ok(&["list"]).await.ends_with(" Maintenance mode: on\n"));
    // The member's own words.
    let out = ctl.ok(&["switchover", "--force"]).await;
    let said = "Switchover failed, details: 400, Switchover is possible only to a specific candidate in a paused state";
    assert!(out.contains(said), "{out}");
    let out = ctl.ok(&["resume", "--wait"]).await;
    assert!(out.ends_with("Success: cluster management is resumed\n"), "{out}");
    assert_eq!(ctl.error(&["resume"]).await, "Cluster is not paused");
    assert_eq!(leader.json("/patroni").await.get("pause"), None);

    let edit = [
        "edit-config",
        "-s",
        "maximum_lag_on_failover=2097152",
        "-p",
        "work_mem=9MB",
    ];
    let out = ctl
        .ok(&[&edit[..], &["-p", "max_connections=130", "--force"]].concat())
        .await;
    assert!(out.ends_with("Configuration changed\n"), "{out}");
    assert!(out.contains("+    work_mem: 9MB\n"), "{out}");
    assert_eq!(ctl.ok(&[&edit[..], &["--force"]].concat()).await, "Not changed\n");
    let config = leader.json("/config").await;
    assert_eq!(config["maximum_lag_on_failover"], 2_097_152);
    for seat in &seats {
        seat.wait_sql("SHOW work_mem", "9MB").await;
    }

    pending_restarts(ctl, &seats).await;

    let out = ctl
        .ok(&[
            "edit-config",
            "-s",
            "postgresql.parameters.work_mem=null",
            "--force",
        ])
        .await;
    assert!(out.contains("-    work_mem: 9MB\n"), "{out}");
    leader.wait_sql("SHOW work_mem", "4MB").await;
    let shown: Value = serde_yaml_ng::from_str(&ctl.ok(&["show-config"]).await).expect("YAML");
    assert_eq!(shown["postgresql"]["parameters"], json!({"max_connections": 130}));
}

/// `max_connections` waits for a restart everywhere.
async fn pending_restarts(ctl: &Ctl, seats: &[Seat]) {
    wait_for("three pending restarts", SOON, async || {
        let rows = rows_with(ctl, "Pending restart reason").await;
        let waits = |row: &&Value| row["Pending restart reason"] == "max_connections: 100->130";
        let why = rows.iter().filter(waits);
        if why.count() == 3 && rows.iter().all(|row| row["Pending restart"] == "*") {
            Ok(())
        } else {
            Err(format!("{rows:?}"))
        }
    })
    .await;
    // More connections: standbys first, then the primary.
    let out = ctl
        .ok(&["restart", "demo", "-r", "replica", "--pending", "--force"])
        .await;
    for seat in &seats[1..] {
        assert!(
            out.contains(&format!("Success: restart on member {}\n", seat.name)),
            "{out}"
        );
    }
    let out = ctl
        .ok(&["restart", "demo", &seats[0].name, "--pending", "--force"])
        .await;
    assert!(
        out.contains(&format!("Success: restart on member {}\n", seats[0].name)),
        "{out}"
    );
    for seat in seats {
        seat.wait_sql("SHOW max_connections", "130").await;
    }
    wait_for("nothing that waits for a restart", SOON, async || {
        let rows = rows_with(ctl, "Pending restart").await;
        if rows.is_empty() {
            Ok(())
        } else {
            Err(format!("{rows:?}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patronictl_restarts_reloads_and_copies_anew() {
    let three = Three::start().await;
    let (ctl, seats) = (&three.ctl, three.healthy().await);
    let (leader, replica) = (&seats[0], &seats[1]);
    let started = "SELECT pg_postmaster_start_time()::text";

    let before = replica.sql(started).await.expect("a time");
    let out = ctl.ok(&["restart", "demo", &replica.name, "--force"]).await;
    assert!(
        out.ends_with(&format!("Success: restart on member {}\n", replica.name)),
        "{out}"
    );
    assert_ne!(replica.sql(started).await.expect("a time"), before);
    let before = leader.sql(started).await.expect("a time");
    let out = ctl
        .ok(&[
            "restart",
            "demo",
            &leader.name,
            "--pg-version",
            "9.0.1",
            "--force",
        ])
        .await;
    assert!(
        out.contains("status code=503, (restart conditions are not satisfied)"),
        "{out}"
    );
    assert_eq!(leader.sql(started).await.expect("a time"), before);

    // Later, once more with another time, and then not.
    let (at, flush) = (
        in_an_hour(),
        ["flush", "demo", &leader.name, "restart", "--force"],
    );
    let schedule = ["restart", "demo", &leader.name, "--scheduled", &at, "--force"];
    for more in [&["--pg-version", "99.0"][..], &[]] {
        let out = ctl.ok(&[&schedule[..], more].concat()).await;
        let said = format!("Success: restart scheduled on member {}\n", leader.name);
        assert!(out.ends_with(&said), "{out}");
        let scheduled = at.replace('Z', "+00:00") + if more.is_empty() { "" } else { " if version < 99.0" };
        wait_for("the schedule in the list", SOON, async || {
            let rows = rows_with(ctl, "Scheduled restart").await;
            match rows.as_slice() {
                [row] if row["Scheduled restart"] == scheduled.as_str() => Ok(()),
                _ => Err(format!("{rows:?}, not {scheduled}")),
            }
        })
        .await;
    }
    let out = ctl.ok(&flush).await;
    let said = format!("Success: flush scheduled restart for member {}\n", leader.name);
    assert!(out.ends_with(&said), "{out}");
    wait_for("no schedule in the list", SOON, async || {
        let rows = rows_with(ctl, "Scheduled restart").await;
        if rows.is_empty() {
            Ok(())
        } else {
            Err(format!("{rows:?}"))
        }
    })
    .await;
    let out = ctl.ok(&flush).await;
    assert!(
        out.ends_with(&format!("No scheduled restart for member {}\n", leader.name)),
        "{out}"
    );

    let out = ctl.ok(&["reload", "demo", "--force"]).await;
    for seat in &seats {
        let said = format!(
            "Reload request received for member {} and will be processed within 1 seconds\n",
            seat.name
        );
        assert!(out.contains(&said), "{out}");
    }

    // The answer comes at once; --wait watches the state in the member key.
    let copies = || {
        let node = three
            .nodes
            .iter()
            .find(|node| node.name == replica.name)
            .expect("a node");
        node.log().matches("done job=\"clone\"").count()
    };
    let before = copies();
    let out = ctl
        .ok(&["reinit", "demo", &replica.name, "--force", "--wait"])
        .await;
    let said = [
        format!("Success: reinitialize for member {}\n", replica.name),
        format!("Reinitialize is completed on: {}\n", replica.name),
    ];
    assert!(said.iter().all(|said| out.contains(said)), "{out}");
    replica.wait_streaming(SOON).await;
    assert_eq!(copies(), before + 1);
    let out = ctl
        .ok(&["reinit", "demo", &replica.name, "--from-leader", "--force"])
        .await;
    assert!(out.contains(&said[0]), "{out}");
    wait_for("another copy", SOON, async || {
        if copies() == before + 2 {
            Ok(())
        } else {
            Err(copies().to_string())
        }
    })
    .await;
    replica.wait_streaming(SOON).await;
    assert_eq!(
        ctl.error(&["reinit", "demo", &leader.name, "--force"]).await,
        "No replica among provided members"
    );

    // Whoever does not confirm removes nothing.
    let done = ctl.answering(&["remove", "demo"], "another\n").await;
    assert_eq!(done.code, 1, "{done:?}");
    assert_eq!(three.healthy().await[0].name, leader.name);
}
