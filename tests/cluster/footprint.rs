//! A member that is asked and asked does not grow. How small it is, the image ring measures: on the released binary.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::{Cluster, node::Node};

/// How long to look; the promise is about ten minutes: `HOWDAH_TEST_GROWTH_SECONDS=600`.
fn duration() -> Duration {
    let given = std::env::var("HOWDAH_TEST_GROWTH_SECONDS");
    let seconds = given.map_or(20, |seconds| seconds.parse().expect("HOWDAH_TEST_GROWTH_SECONDS"));
    Duration::from_secs(seconds)
}

/// Init and agent together.
#[derive(Debug, Clone, Copy)]
struct Size {
    memory_kb: u64,
    threads: u64,
    descriptors: usize,
}

fn measure(node: &Node) -> Size {
    let pids = [node.init_pid(), node.agent_pid().expect("an agent")];
    let sum = |field: &str| pids.iter().map(|pid| number(*pid, field)).sum();
    let descriptors = pids
        .iter()
        .map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count));
    Size {
        memory_kb: sum("RssAnon:"),
        threads: sum("Threads:"),
        descriptors: descriptors.sum(),
    }
}

fn number(pid: i32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("read /proc");
    let line = text
        .lines()
        .find(|line| line.starts_with(field))
        .expect("the field");
    line.split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_member_that_is_asked_and_asked_does_not_grow() {
    let duration = duration();
    let cluster = Cluster::start(&["pg1", "pg2"]).await;
    cluster.healthy().await;
    let ask = async || {
        for node in &cluster.nodes {
            for path in [
                "/primary",
                "/replica",
                "/patroni",
                "/cluster",
                "/history",
                "/liveness",
            ] {
                node.get(path).await.expect("an answer");
            }
        }
    };
    let from = Instant::now();
    while from.elapsed() < duration / 5 {
        ask().await;
    }
    let before: Vec<Size> = cluster.nodes.iter().map(measure).collect();
    while from.elapsed() < duration {
        ask().await;
    }
    for (node, before) in cluster.nodes.iter().zip(before) {
        let after = measure(node);
        println!("{}: {before:?}, and after {duration:?} {after:?}", node.name);
        assert!(
            after.threads <= before.threads + 1,
            "threads: {before:?}, {after:?}"
        );
        // Connections that are closed and opened anew overlap for a moment.
        assert!(
            after.descriptors <= before.descriptors + 3,
            "descriptors: {before:?}, {after:?}"
        );
        assert!(
            after.memory_kb <= before.memory_kb + 2048,
            "memory: {before:?}, {after:?}"
        );
    }
}
