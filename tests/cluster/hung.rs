//! What lives and does not answer, and what is only slow; the second fences; the shortest lease.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    Cluster, SOON, descendants,
    node::{Node, always},
    wait_for,
};

/// The postmaster is stopped, its backends go on: open sessions see nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_postmaster_gives_way_before_its_lease_would_run_out() {
    let mut cluster = Cluster::prepare(&["pg1", "pg2"]);
    for node in &mut cluster.nodes {
        node.set("HOWDAH_TTL", "30")
            .set("HOWDAH_LOOP_WAIT", "3")
            .set("HOWDAH_RETRY_TIMEOUT", "10")
            .start();
    }
    let old = cluster.healthy().await;
    let postmaster = cluster.nodes[old].postmaster_pid().expect("running");
    cluster.nodes[old].signal(postmaster, "STOP");
    let stopped = Instant::now();
    // loop_wait to see it, ttl/4 (at most 5 s) to be certain, 2 s to end it, and the election.
    let new = cluster.other_leader(old, Duration::from_secs(15)).await;
    println!("a new leader {:?} after the SIGSTOP", stopped.elapsed());
    assert_ne!(old, new);
    cluster.nodes[old].wait_streaming(SOON).await;
    assert_ne!(cluster.nodes[old].postmaster_pid(), Some(postmaster));
}

/// The monitoring query gets no answer for longer than a lease, everybody else does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_answer_to_the_agent_alone_changes_nothing() {
    let cluster = Cluster::start(&["pg1", "pg2"]).await;
    let leader = cluster.healthy().await;
    let node = &cluster.nodes[leader];
    // Every backend that serves an agent's session of now is frozen, again and again.
    let frozen = async || -> Result<usize, String> {
        let pids = node
            .sql("SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE application_name LIKE 'Howdah%' AND query LIKE '%r.standby%'")
            .await?;
        let pids: Vec<i32> = pids
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect();
        pids.iter().for_each(|pid| node.signal(*pid, "STOP"));
        Ok(pids.len())
    };
    let until = Instant::now() + crate::TTL * 3;
    let mut all = 0;
    while Instant::now() < until {
        all += frozen().await.expect("the server serves others");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (code, status) = node.get("/primary").await.expect("an answer");
        assert_eq!(code, 200, "{status}");
    }
    assert!(all >= 2, "the agent's sessions were frozen: {all}");
    assert!(
        node.log().contains("to=Slow"),
        "its silence was seen as what it is"
    );
    for pid in descendants(node.init_pid()) {
        let _gone = std::process::Command::new("kill")
            .args(["-CONT", &pid.to_string()])
            .status();
    }
    assert_eq!(cluster.leader(SOON).await, leader);
}

/// The shortest lease there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_three_seconds_fails_over_in_time() {
    let mut cluster = Cluster::prepare(&["pg1", "pg2", "pg3"]);
    for node in &mut cluster.nodes {
        node.set("HOWDAH_TTL", "3")
            .set("HOWDAH_LOOP_WAIT", "1")
            .set("HOWDAH_RETRY_TIMEOUT", "1")
            .start();
    }
    let old = cluster.healthy().await;
    // A lease this short is kept in peace.
    let held = cluster.nodes[old].name.clone();
    always("the first leader leads", Duration::from_secs(6), async || {
        let (code, status) = cluster.nodes[old].get("/primary").await?;
        if code == 200 {
            Ok(())
        } else {
            Err(format!("{held}: {status}"))
        }
    })
    .await;
    cluster.nodes[old].kill_node();
    let killed = Instant::now();
    let new = cluster.other_leader(old, Duration::from_secs(10)).await;
    let took = killed.elapsed();
    println!("ttl 3: a new leader {took:?} after the kill");
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_ne!(new, old);
    cluster.nodes[old].start();
    cluster.nodes[old].wait_streaming(SOON).await;
}

fn watchdog(node: &mut Node, mode: &str) -> std::path::PathBuf {
    let device = node.dir.join("watchdog");
    fs::write(&device, "").expect("writable");
    crate::node::own(&device);
    node.set("HOWDAH_WATCHDOG_MODE", mode)
        .set("HOWDAH_WATCHDOG_DRIVER", "testing")
        .set("HOWDAH_WATCHDOG_DEVICE", &device.display().to_string());
    device
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watchdog_is_fed_while_the_lock_is_held_and_switched_off_at_the_end() {
    let mut cluster = Cluster::prepare(&["pg1"]);
    let device = watchdog(&mut cluster.nodes[0], "required");
    cluster.nodes[0].start();
    cluster.healthy().await;
    let written = || fs::read_to_string(&device).expect("readable");
    let before = written().len();
    wait_for("more words", SOON, async || {
        if written().len() > before + 3 {
            Ok(())
        } else {
            Err(written())
        }
    })
    .await;
    assert!(!written().contains('V'), "never switched off meanwhile");
    // An agent that dies leaves the timer running, and the next one goes on with it.
    let agent = cluster.nodes[0].agent_pid().expect("an agent");
    cluster.nodes[0].signal(agent, "KILL");
    wait_for("another agent", SOON, async || {
        match cluster.nodes[0].agent_pid() {
            Some(pid) if pid != agent => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    cluster.nodes[0].wait_primary(SOON).await;
    let status = cluster.nodes[0].stop(SOON).await;
    assert_eq!(crate::code(status), 0);
    assert!(written().contains('V'), "{}", written());
    let log = cluster.nodes[0].log();
    let (down, off) = (
        log.rfind("postgres stopped"),
        log.rfind("postgres is no primary here"),
    );
    assert!(down.is_some() && off.is_some(), "both are told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_promoted_without_the_watchdog_it_requires() {
    let mut cluster = Cluster::prepare(&["pg1", "pg2"]);
    let devices: Vec<_> = cluster
        .nodes
        .iter_mut()
        .map(|node| watchdog(node, "required"))
        .collect();
    for node in &mut cluster.nodes {
        node.start();
    }
    let old = cluster.healthy().await;
    let new = 1 - old;
    fs::remove_file(&devices[new]).expect("removable");
    wait_for("the failure to show", SOON, async || {
        let (_, status) = cluster.nodes[new].get("/patroni").await?;
        if status["watchdog_failed"] == true {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
    let body = json!({"leader": cluster.nodes[old].name, "candidate": cluster.nodes[new].name});
    let (code, text) = cluster.nodes[old]
        .request("POST", "/switchover", body)
        .await
        .expect("POST");
    assert_eq!(code, 412, "{text}");
    cluster.nodes[old].kill_node();
    wait_for("a reason", SOON, async || {
        let (_, status) = cluster.nodes[new].get("/patroni").await?;
        if status["howdah"]["reason"] == "watchdog_failed" {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
    fs::write(&devices[new], "").expect("writable");
    crate::node::own(&devices[new]);
    cluster.nodes[new].wait_primary(SOON).await;
}

/// Init and agent are spared, postgres and what it starts are ordinary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_and_agent_come_before_postgres_where_that_is_permitted() {
    let cluster = Cluster::start(&["pg1"]).await;
    let node = &cluster.nodes[0];
    let log = node.log();
    let told = log
        .lines()
        .find(|line| line.contains("priorities granted"))
        .expect("told once");
    let stat = |pid: i32, field: usize| -> i64 {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("alive");
        let (_, rest) = text.rsplit_once(')').expect("a name");
        rest.split_whitespace()
            .nth(field - 3)
            .and_then(|n| n.parse().ok())
            .expect("a number")
    };
    let nice = |pid| stat(pid, 19);
    let spared = |pid: i32| -> i64 {
        fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))
            .expect("alive")
            .trim()
            .parse()
            .expect("a number")
    };
    let agent = node.agent_pid().expect("an agent");
    let postmaster = node.postmaster_pid().expect("running");
    let own = i32::try_from(std::process::id()).expect("a pid");
    let backends = crate::node::children(postmaster);
    for pid in backends.iter().chain([&postmaster]) {
        assert_eq!(nice(*pid), nice(own), "postgres is ordinary");
    }
    for pid in &backends {
        assert_eq!(spared(*pid), spared(own), "backends are ordinary");
    }
    let granted = told.split("not granted").next().unwrap_or_default();
    if granted.contains("niceness") {
        assert!(
            nice(agent) < nice(own) && nice(node.init_pid()) < nice(own),
            "{told}"
        );
    }
    if granted.contains("oom_score_adj") {
        assert!(
            spared(agent) < spared(own) && spared(postmaster) < spared(own),
            "{told}"
        );
    }
    if granted.contains("memory locked") {
        let status = fs::read_to_string(format!("/proc/{agent}/status")).expect("alive");
        let locked = status
            .lines()
            .find(|line| line.starts_with("VmLck:"))
            .expect("a line");
        assert!(!locked.contains(" 0 kB"), "{locked}");
    }
    println!("{told}");
}
