//! One fault after the other, and the verdict on each.

use std::time::{Duration, Instant};

use crate::{
    cluster::{Cluster, Mode},
    fault::Fault,
    oracle,
    plan::Plan,
    report::{Report, Row},
    witness::Ack,
};

/// Time for the clients to write before a fault.
const BEFORE: usize = 100;

pub async fn all(plan: &Plan) -> Report {
    let mut report = Report::default();
    let mut cluster = None;
    for mode in plan.modes.iter().copied() {
        for (fault, times) in plan.of(mode) {
            for _ in 0..times {
                let row = one(&mut cluster, mode, fault).await;
                println!("{}", row.line());
                if row.is_broken() {
                    if let Some((cluster, _)) = &cluster {
                        keep_logs(cluster, report.failed());
                    }
                    // What is broken stays broken: a new cluster for what comes.
                    cluster = None;
                }
                report.add(row);
            }
        }
    }
    report
}

/// How long the moment of a thaw may last on a busy machine.
const THAW: Duration = Duration::from_millis(500);

async fn one(cluster: &mut Option<(Cluster, Mode)>, mode: Mode, fault: Fault) -> Row {
    let done = async {
        let (cluster, was) = match cluster {
            Some(cluster) => cluster,
            None => cluster.insert((Cluster::start().await?, Mode::Async)),
        };
        if *was != mode {
            cluster.turn_to(mode).await?;
            *was = mode;
        }
        trial(cluster, mode, fault).await
    };
    match done.await {
        Ok(row) => row,
        Err(why) => Row::broken(fault.name(), mode.name(), why),
    }
}

async fn trial(cluster: &mut Cluster, mode: Mode, fault: Fault) -> Result<Row, String> {
    let leader = cluster.whole(mode).await?;
    let first = cluster.book.next_id();
    let from = Instant::now();
    while cluster.book.since(from).len() < BEFORE {
        if from.elapsed() > Duration::from_secs(20) {
            return Err("no commits although all is well".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let postmaster = cluster.started(leader).await?;
    let begun = Instant::now();
    cluster.thawed = None;
    fault.inflict(cluster, leader).await?;
    // A member that saw its time run out may end a moment after the fault is over.
    let healed = heal(cluster, mode, leader).await?;
    cluster.writes_again().await?;
    let to = Instant::now();
    let acks = cluster.book.since(from);
    let there = cluster.ids(healed, first).await?;
    // Not those of the last moment, which came after the look.
    let settled: Vec<_> = acks
        .iter()
        .filter(|ack| ack.id >= first && ack.at <= to)
        .copied()
        .collect();
    let demands = fault.demands(mode);
    let stayed = healed == leader && cluster.started(leader).await? == postmaster;
    let gap = oracle::longest_gap(&settled, begun, to);
    let mut row = Row::new(fault.name(), mode.name(), gap, to - begun);
    row.lost = oracle::lost(&settled, &there).len();
    row.overlaps = oracle::overlaps(&settled);
    if row.lost > 0 && (mode != Mode::Async || demands.lossless) {
        row.violate(format!("{} acknowledged commits are lost", row.lost));
    }
    // What was under way when everything stood still may be answered in the instant of the thaw: counted, not excluded.
    let in_thaw = |ack: &Ack| {
        let since = cluster.thawed.and_then(|at| ack.at.checked_duration_since(at));
        ack.node == leader && since.is_some_and(|since| since < THAW)
    };
    let rest: Vec<_> = settled.iter().filter(|ack| !in_thaw(ack)).copied().collect();
    let beside = oracle::overlaps(&rest);
    if !beside.is_empty() {
        row.violate(format!("two acknowledge side by side: {beside:?}"));
    }
    if demands.no_demotion && !stayed {
        row.violate("the leader was demoted without need".to_owned());
    }
    if gap > demands.gap {
        row.violate(format!(
            "no commits for {gap:.1?}, allowed are {:.1?}",
            demands.gap
        ));
    }
    Ok(row)
}

async fn heal(cluster: &mut Cluster, mode: Mode, faulted: usize) -> Result<usize, String> {
    let start = Instant::now();
    loop {
        cluster.revive(faulted);
        match tokio::time::timeout(Duration::from_secs(5), cluster.whole(mode)).await {
            Ok(Ok(leader)) => return Ok(leader),
            Ok(Err(why)) if start.elapsed() > Duration::from_secs(60) => return Err(why),
            Err(_) if start.elapsed() > Duration::from_secs(60) => {
                return cluster.whole(mode).await;
            }
            _ => {}
        }
    }
}

/// For whoever looks into it.
fn keep_logs(cluster: &Cluster, number: usize) {
    let to = std::path::PathBuf::from(format!("target/chaos/{number}"));
    if std::fs::create_dir_all(&to).is_err() {
        return;
    }
    for node in &cluster.nodes {
        let copy = to.join(format!("{}.log", node.name));
        if std::fs::copy(node.log_path(), &copy).is_ok() {
            println!("             log of {}: {}", node.name, copy.display());
        }
    }
}
