//! The REST API under load, and while postgres has all processors.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use crate::{
    report::{Report, rank},
    team::Team,
};

/// Sixteen connections that ask as fast as they are answered.
pub async fn rest(team: &Team, window: Duration, report: &mut Report) {
    let leader = team.is_well().await;
    let port = team.seat(leader).api_port;
    for (path, rate, tail) in [
        ("/primary", "rest-primary", Some("rest-primary-p99")),
        ("/cluster", "rest-cluster", None),
        ("/patroni", "rest-patroni", None),
        ("/metrics", "rest-metrics", None),
    ] {
        eprintln!("  {path} for {window:?}");
        let output = tokio::process::Command::new("wrk")
            .args(["-t1", "-c16", "--latency", "-d"])
            .arg(format!("{}s", window.as_secs()))
            .arg(format!("http://127.0.0.1:{port}{path}"))
            .output()
            .await
            .expect("wrk");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && !text.contains("Non-2xx"), "{text}");
        let field = |name: &str| {
            let line = text.lines().map(str::trim).find(|line| line.starts_with(name));
            line.and_then(|line| line[name.len()..].split_whitespace().next())
                .unwrap_or_else(|| panic!("{name} is not in {text}"))
        };
        report.add(rate, team.kind, field("Requests/sec:").parse().unwrap());
        if let Some(tail) = tail {
            report.add(tail, team.kind, milliseconds(field("99%")));
        }
    }
}

/// `12.30ms`, `850.00us`, `1.20s`.
fn milliseconds(text: &str) -> f64 {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[number.len()..] {
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1000.0,
        other => panic!("{other} is no unit of time"),
    };
    number.parse::<f64>().unwrap() * factor
}

/// As a load balancer asks, a connection each time, while more clients than processors keep postgres busy.
pub async fn health_under_load(team: &Team, window: Duration, report: &mut Report) {
    eprintln!("  health checks under load for {window:?}");
    let leader = team.is_well().await;
    let prepared = team
        .postgres_program("pgbench", leader)
        .args(["-i", "-q", "-s", "10", "postgres"])
        .output()
        .await;
    assert!(prepared.expect("pgbench").status.success(), "pgbench -i");
    let mut load = team
        .postgres_program("pgbench", leader)
        .args(["-S", "-c", "8", "-j", "2", "-T"])
        .arg(window.as_secs().to_string())
        .arg("postgres")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("pgbench");
    let seat = team.seat(leader);
    let mut took = Vec::new();
    while load.try_wait().unwrap().is_none() {
        let asked = Instant::now();
        let answer = seat.get("/primary").await;
        took.push(asked.elapsed().as_secs_f64() * 1000.0);
        assert!(matches!(answer, Ok((200, _))), "{answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    took.sort_by(f64::total_cmp);
    report.add(
        "health-under-load",
        team.kind,
        rank(&took, 0.99).expect("answers"),
    );
}
