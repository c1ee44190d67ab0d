//! A cluster that is well: what people do with it from inside a container and over HTTP, and how little it takes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    SOON,
    docker::Done,
    members::{Cluster, Member, Store},
    node::{PASSWORD, wait_for},
};

/// Init and agent together, on a member that has nothing to do.
const SMALL_KB: u64 = 12 * 1024;

/// Resident memory in KiB of init and agent: of each what is its own, then what it maps of files.
async fn resident_kb(member: &Member) -> Vec<u64> {
    let agent = member.container.pid_of("agent").await.expect("an agent");
    let status = format!("/proc/{agent}/status");
    let lines = member
        .container
        .exec_ok(&["grep", "-hE", "^Rss(Anon|File):", "/proc/1/status", &status])
        .await;
    let numbers = lines
        .lines()
        .map(|line| line.split_whitespace().nth(1).and_then(|n| n.parse().ok()));
    let numbers: Vec<u64> = numbers.map(|n| n.expect("a number")).collect();
    assert_eq!(numbers.len(), 4, "two lines of two processes:\n{lines}");
    numbers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_and_agent_of_an_idle_member_are_small() {
    let cluster = Cluster::start(Store::Etcd).await;
    let leader = cluster.healthy().await;
    let mut most = Vec::new();
    for (role, index) in [("leader", leader), ("replica", cluster.others(leader)[0])] {
        let begun = Instant::now();
        let mut largest = 0;
        while begun.elapsed() < Duration::from_secs(5) {
            let kb = resident_kb(&cluster.members[index]).await;
            let sum = kb.iter().sum();
            if sum > largest {
                println!(
                    "{role}: init {} + {} of files, agent {} + {} of files: {sum} KiB",
                    kb[0], kb[1], kb[2], kb[3]
                );
                largest = sum;
            }
        }
        most.push(largest);
    }
    assert!(
        most.iter().all(|kb| *kb < SMALL_KB),
        "leader and replica: {most:?} KiB"
    );
}

fn check(done: &Done, words: &[&str]) {
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    for word in words {
        assert!(
            done.out.contains(word),
            "'{word}' is not in:\n{}{}",
            done.out,
            done.err
        );
    }
}

/// When the member's postmaster was started.
async fn started(member: &Member) -> Result<String, String> {
    member.sql("SELECT pg_postmaster_start_time()::text").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_works_inside_a_container_without_further_arguments() {
    let cluster = Cluster::start(Store::Etcd).await;
    let leader = cluster.healthy().await;
    let replica = cluster.others(leader)[0];
    let (first, second) = (&cluster.members[leader], &cluster.members[replica]);

    check(
        &second.cli(&["list"]).await,
        &["pg1", "pg2", "pg3", "Leader", "streaming"],
    );
    check(&second.cli(&["version"]).await, &["0."]);
    check(&second.cli(&["health"]).await, &[]);
    let effective = second.cli(&["check"]).await;
    check(&effective, &["HOWDAH_SCOPE", "demo"]);
    assert!(
        !(effective.out + &effective.err).contains(PASSWORD),
        "check shows a secret"
    );

    let before = started(second).await.expect("running");
    check(&first.cli(&["restart", &second.name, "--force"]).await, &[]);
    wait_for("another postmaster", SOON, async || {
        match started(second).await? {
            now if now != before => Ok(()),
            now => Err(now),
        }
    })
    .await;
    assert_eq!(cluster.healthy().await, leader);

    check(&first.cli(&["reinit", &second.name, "--force"]).await, &[]);
    wait_for("the copy", SOON, async || {
        let log = second.container.log().await;
        if log.contains("done job=\"clone\"") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    assert_eq!(cluster.healthy().await, leader);

    check(
        &first
            .cli(&["switchover", "--candidate", &second.name, "--force"])
            .await,
        &[],
    );
    assert_eq!(cluster.healthy().await, replica);
    check(
        &first
            .cli(&["failover", "--candidate", &first.name, "--force"])
            .await,
        &[],
    );
    assert_eq!(cluster.healthy().await, leader);
    check(&second.cli(&["history"]).await, &[&first.name, &second.name]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_from_outside_operate_the_cluster() {
    let cluster = Cluster::start(Store::Etcd).await;
    let leader = cluster.healthy().await;
    let replica = cluster.others(leader)[0];
    let (first, second) = (&cluster.members[leader], &cluster.members[replica]);
    let post = async |member: &Member, path: &str, body: Value| {
        let (code, answer) = member.request("POST", path, &body).await.expect("an answer");
        assert!((200..300).contains(&code), "POST {path}: {code} {answer}");
    };

    let before = started(first).await.expect("running");
    post(first, "/restart", json!({})).await;
    assert_ne!(
        started(first).await.expect("running"),
        before,
        "the same postmaster"
    );
    assert_eq!(cluster.healthy().await, leader, "a restart keeps the lock");

    let settings = json!({"postgresql": {"parameters": {"work_mem": "7MB"}}});
    let (code, _) = second
        .request("PATCH", "/config", &settings)
        .await
        .expect("an answer");
    assert_eq!(code, 200);
    for member in &cluster.members {
        member.wait_sql("SHOW work_mem", "7MB").await;
    }
    post(second, "/reload", json!({})).await;

    post(
        second,
        "/switchover",
        json!({"leader": first.name, "candidate": second.name}),
    )
    .await;
    assert_eq!(cluster.healthy().await, replica);
    post(first, "/failover", json!({"candidate": first.name})).await;
    assert_eq!(cluster.healthy().await, leader);
    post(second, "/reinitialize", json!({})).await;
    wait_for("the copy", SOON, async || {
        let log = second.container.log().await;
        if log.contains("done job=\"clone\"") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    assert_eq!(cluster.healthy().await, leader);
    let (_, history) = second.get("/history").await.expect("an answer");
    assert_eq!(history.as_array().map(Vec::len), Some(2), "{history}");
}
