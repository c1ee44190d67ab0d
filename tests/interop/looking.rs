//! `patronictl` reads a Howdah cluster: every view of it, in every format.

use serde_json::{Value, json};

use crate::{
    SOON,
    ctl::Three,
    node::{self, wait_for},
};

/// Column `key` of the rows, in their order.
fn column<'a>(rows: &'a [Value], key: &str) -> Vec<&'a str> {
    rows.iter()
        .map(|row| row[key].as_str().unwrap_or_default())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patronictl_shows_members_in_every_format() {
    let three = Three::start().await;
    let seats = three.healthy().await;
    let (leader, replica) = (&seats[0], &seats[1]);
    let sysid = leader
        .sql("SELECT system_identifier FROM pg_control_system()")
        .await
        .expect("a system identifier");

    // The same rows in all formats.
    let rows = wait_for("positions of both replicas", SOON, async || {
        let rows = three.ctl.list().await;
        let known = rows
            .iter()
            .filter(|row| row["Replay Lag"] == 0 && row["Receive Lag"] == 0);
        if known.count() == 2 {
            Ok(rows)
        } else {
            Err(format!("{rows:?}"))
        }
    })
    .await;
    assert_eq!(column(&rows, "Member"), ["pg1", "pg2", "pg3"]);
    for row in &rows {
        let leads = row["Member"] == leader.name.as_str();
        let seat = seats
            .iter()
            .find(|seat| row["Member"] == seat.name.as_str())
            .expect("a seat");
        assert_eq!(row["Host"], format!("127.0.0.1:{}", seat.pg_port));
        assert_eq!(row["Role"], if leads { "Leader" } else { "Replica" });
        assert_eq!(row["State"], if leads { "running" } else { "streaming" });
        assert_eq!(row["TL"], 1);
        assert_eq!(row.get("Replay LSN").is_none(), leads, "{row}");
    }
    for format in ["yaml", "yml"] {
        let out = three.ctl.ok(&["list", "-f", format]).await;
        let parsed: Vec<Value> = serde_yaml_ng::from_str(&out).expect("YAML");
        assert_eq!(column(&parsed, "Member"), column(&rows, "Member"));
        assert_eq!(column(&parsed, "State"), column(&rows, "State"));
    }
    let out = three.ctl.ok(&["list", "-f", "tsv"]).await;
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split('\t').collect()).collect();
    let head = [
        "Cluster",
        "Member",
        "Host",
        "Role",
        "State",
        "TL",
        "Receive LSN",
        "Receive Lag",
        "Replay LSN",
        "Replay Lag",
    ];
    assert_eq!(lines[0], head);
    assert_eq!(lines.len(), 4, "{out}");
    let out = three.ctl.ok(&["list", "-e", "-t"]).await;
    assert!(out.contains(&format!("+ Cluster: demo ({sysid}) -")), "{out}");
    assert!(
        out.contains("| Pending restart | Pending restart reason | Scheduled restart | Tags |"),
        "{out}"
    );
    assert!(!out.contains("unknown"), "{out}");

    let out = three.ctl.ok(&["topology"]).await;
    let of = |needle: &str| {
        out.lines()
            .position(|line| line.contains(needle))
            .expect("a line")
    };
    assert!(
        of(&format!("| {} ", leader.name)) < of(&format!("| + {} ", replica.name)),
        "{out}"
    );
    assert_eq!(out.matches("| + pg").count(), 2, "{out}");

    // Howdah's own commands say the same.
    for arguments in [
        &["list"][..],
        &["list", "-f", "json"],
        &["list", "-f", "tsv"],
        &["topology"],
    ] {
        let (code, own, _) = three.nodes[0].cli(arguments).await;
        assert_eq!((code, own), (0, three.ctl.ok(arguments).await), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patronictl_finds_and_asks_members() {
    let three = Three::start().await;
    let seats = three.healthy().await;
    let (leader, replica) = (&seats[0], &seats[1]);

    let out = three.ctl.ok(&["version", "demo"]).await;
    for seat in &seats {
        let status = seat.json("/patroni").await;
        let patroni = status["patroni"]["version"].as_str().expect("a version");
        let server = status["server_version"].as_u64().expect("a number");
        let line = format!(
            "{}: Patroni {patroni} PostgreSQL {}.{}",
            seat.name,
            server / 10_000,
            server % 10_000
        );
        assert!(out.lines().any(|has| has == line), "'{line}' in {out}");
    }

    let dsn = |port: u16| format!("host=127.0.0.1 port={port}\n");
    assert_eq!(three.ctl.ok(&["dsn"]).await, dsn(leader.pg_port));
    assert_eq!(
        three.ctl.ok(&["dsn", "-m", &replica.name]).await,
        dsn(replica.pg_port)
    );
    let out = three.ctl.ok(&["dsn", "-r", "replica"]).await;
    assert!(seats[1..].iter().any(|seat| out == dsn(seat.pg_port)), "{out}");
    assert_eq!(
        three.ctl.error(&["dsn", "-m", "pg9"]).await,
        "Can not find a suitable member"
    );
    assert_eq!(
        three.ctl.error(&["dsn", "-r", "replica", "-m", "pg1"]).await,
        "--role and --member are mutually exclusive options"
    );

    let query = ["query", "-U", "postgres", "-d", "postgres", "-c"];
    let ask = |more: &[&'static str]| [&query[..], more].concat();
    let out = three.ctl.ok(&ask(&["SELECT 1 AS a, 'x' AS b"])).await;
    assert_eq!(out, "a\tb\n1\tx\n");
    let here = "SELECT inet_server_port() AS port, pg_is_in_recovery() AS replica";
    for (role, replica) in [
        ("leader", false),
        ("primary", false),
        ("replica", true),
        ("standby", true),
    ] {
        let rows = three
            .ctl
            .json(&ask(&[here, "--format", "json", "-r", role]))
            .await;
        assert_eq!(rows[0]["replica"], replica, "{role}: {rows}");
        assert_eq!(rows[0]["port"] == leader.pg_port, !replica, "{role}: {rows}");
    }
    let rows = three
        .ctl
        .json(&[&ask(&[here, "--format", "json", "-m"])[..], &[&replica.name]].concat())
        .await;
    assert_eq!(rows, json!([{"port": replica.pg_port, "replica": true}]));

    // What is asked of no file of ours: the environment's names, and the store by its URL.
    let config = three.ctl.ok(&["show-config"]).await;
    let config: Value = serde_yaml_ng::from_str(&config).expect("YAML");
    assert_eq!(config, leader.json("/config").await);
    assert_eq!((&config["ttl"], &config["loop_wait"]), (&json!(5), &json!(1)));

    // No timeline has ended yet.
    assert_eq!(three.ctl.json(&["history", "-f", "json"]).await, json!([]));
    let body = json!({"leader": leader.name, "candidate": replica.name}).to_string();
    let answer = node::http(leader.api_port, "POST", "/switchover", Some(body)).await;
    assert_eq!(answer.expect("an answer").0, 200);
    three.healthy().await;
    let history = wait_for("a row of history", SOON, async || {
        let history = three.ctl.json(&["history", "-f", "json"]).await;
        if history[0].is_object() {
            Ok(history)
        } else {
            Err(history.to_string())
        }
    })
    .await;
    let row = &history[0];
    assert_eq!(
        (&row["TL"], &row["New Leader"]),
        (&json!(1), &json!(replica.name))
    );
    assert_eq!(row["Reason"], "no recovery target specified");
    assert!(row["LSN"].as_u64() > Some(0x100_0000), "{row}");
    assert!(
        row["Timestamp"].as_str().is_some_and(|at| at.starts_with("20")),
        "{row}"
    );
    let out = three.ctl.ok(&["history"]).await;
    assert!(
        out.contains("| TL |") && out.contains(&format!("| {} ", replica.name)),
        "{out}"
    );
}
