//! What a member takes while nothing happens.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::{report::Report, team::Team};

/// Memory and processor time of each member's processes without PostgreSQL, and the writes of all to etcd.
pub async fn look(team: &Team, window: Duration, report: &mut Report) {
    eprintln!("  idle for {window:?}");
    team.is_well().await;
    let cpu = |index: usize| -> f64 { team.processes(index).into_iter().map(cpu_seconds).sum() };
    let before: Vec<f64> = team.members().map(cpu).collect();
    let revision = team.store_revision().await;
    let begun = Instant::now();
    tokio::time::sleep(window).await;
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    let writes = team.store_revision().await - revision;
    report.add("store-writes", team.kind, writes as f64 / minutes);
    for index in team.members() {
        report.add("cpu", team.kind, (cpu(index) - before[index]) / minutes);
        report.add("memory", team.kind, resident_mib(&team.processes(index)));
    }
}

/// Pages of the program itself, which processes of it share, count once.
fn resident_mib(pids: &[i32]) -> f64 {
    let own: u64 = pids
        .iter()
        .map(|pid| kib(*pid, "RssAnon:") + kib(*pid, "RssShmem:"))
        .sum();
    let shared = pids
        .iter()
        .map(|pid| kib(*pid, "RssFile:"))
        .max()
        .unwrap_or_default();
    (own + shared) as f64 / 1024.0
}

fn kib(pid: i32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(field));
    let value = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    value.unwrap_or_default()
}

/// User and system, of the process itself.
fn cpu_seconds(pid: i32) -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
}
