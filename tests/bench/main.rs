//! The benchmark: `tests/bench/run`. Both programs do the same work in the same run, trial by trial in turn.
//!
//! | module   | thought                                                                          |
//! |----------|----------------------------------------------------------------------------------|
//! | `asked`  | the command line                                                                 |
//! | `team`   | three members of either kind, with one etcd: start, who leads, what is done to them |
//! | `writer` | a session on each member that commits wherever it may; the longest silence         |
//! | `faults` | what interrupts writes, and for how long                                          |
//! | `idle`   | memory, processor and store while nothing happens                                 |
//! | `load`   | the REST API under load, and while postgres has all processors                    |
//! | `report` | pure: statistics, table, JSON                                                    |
#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a program for the console: a panic ends it, and waits poll a condition with a deadline"
)]

mod asked;
#[path = "../common/etcd.rs"]
mod etcd;
mod faults;
mod idle;
mod load;
#[path = "../common/node.rs"]
mod node;
#[path = "../interop/patroni.rs"]
mod patroni;
mod report;
#[path = "../interop/seat.rs"]
mod seat;
mod team;
mod writer;

use std::{process::ExitCode, time::Duration};

use asked::Asked;
use report::{Kind, Report};
use team::{Team, Timing};

/// Nothing here takes longer, or it is broken.
const SOON: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let asked = match Asked::parse(std::env::args().skip(1)) {
        Ok(Some(asked)) => asked,
        Ok(None) => return ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::from(64);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut report = Report::default();
    runtime.block_on(async {
        for trial in 1..=asked.trials {
            for kind in [Kind::Howdah, Kind::Patroni] {
                eprintln!("trial {trial} of {}: {}", asked.trials, kind.name());
                whole_trial(&asked, kind, trial, &mut report).await;
            }
            if asked.wants("leader-killed-ttl-5") {
                let mut team = Team::start(Kind::Howdah, Timing::SHORT, &mut Report::default()).await;
                faults::leader_killed(&mut team, "leader-killed-ttl-5", &mut report).await;
            }
        }
    });
    print!("{}", report.table());
    let json = report.json();
    if let Err(error) = std::fs::write(&asked.json, format!("{json:#}\n")) {
        eprintln!("error: {}: {error}", asked.json.display());
        return ExitCode::FAILURE;
    }
    println!("all figures: {}", asked.json.display());
    ExitCode::SUCCESS
}

/// Everything there is, done to one cluster of this kind.
async fn whole_trial(asked: &Asked, kind: Kind, trial: usize, report: &mut Report) {
    let mut started = Report::default();
    let mut team = Team::start(kind, Timing::USUAL, &mut started).await;
    report.take(started, |measure| asked.wants(measure));
    // A figure of one long look says as much as that of ten.
    if trial == 1 {
        if asked.wants("idle") {
            idle::look(&team, asked.look, report).await;
        }
        if asked.wants("rest") {
            load::rest(&team, asked.short_look, report).await;
        }
        if asked.wants("health-under-load") {
            load::health_under_load(&team, asked.short_look * 3, report).await;
        }
    }
    for fault in faults::ALL {
        if asked.wants(fault.measure) {
            eprintln!("  {}", fault.measure);
            fault.trial(&mut team, report).await;
        }
    }
}
