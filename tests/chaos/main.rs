//! The chaos ring: real members in networks of their own, faults one after the other, and a client on every member that
//! never lets go of its session.
//!
//! Checked after every fault: nothing acknowledged is lost (in the synchronous modes, and wherever the fault is an
//! orderly one), never do two generations acknowledge side by side, no needless demotion, everything heals by itself.
//! Without synchronous replication an acknowledgement in the very moment of a thaw cannot be excluded; those are
//! counted, with how late the latest was.
#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests: a panic is a failure, output is what a person reads, and waits poll a condition with a deadline"
)]

mod cluster;
#[path = "../common/etcd.rs"]
mod etcd;
mod fault;
mod net;
#[path = "../common/node.rs"]
mod node;
mod oracle;
mod plan;
mod report;
mod run;
mod witness;

use std::{process::ExitCode, time::Instant};

fn main() -> ExitCode {
    let plan = match plan::Plan::from_args(std::env::args().skip(1)) {
        Ok(Some(plan)) => plan,
        Ok(None) => return ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}\n{}", plan::USAGE);
            return ExitCode::from(64);
        }
    };
    if let Err(why) = oracle::self_check().and_then(|()| net::enter()) {
        eprintln!("error: {why}");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let begun = Instant::now();
    let report = runtime.block_on(run::all(&plan));
    print!("{}", report.render(begun.elapsed()));
    if report.failed() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
