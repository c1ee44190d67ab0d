//! A cluster that is well: what people do with it from inside a container and over HTTP, and how little it takes.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    SOON,
    docker::Done,
    members::{Cluster, Member, Store},
    node::{PASSWORD, wait_for},
};

/// Init and agent together, on a member that has nothing to do. Seven eighths of it are pages of the program's own file.
const SMALL_KB: u64 = 16 * 1024;
const PAGE: u64 = 4096;

/// Frames of memory the process has resident, as the kernel numbers them (proc_pid_pagemap(5)); needs root.
fn frames(pid: &str) -> std::io::Result<BTreeSet<u64>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let pagemap = fs::File::open(format!("/proc/{pid}/pagemap"))?;
    let mut frames = BTreeSet::new();
    for line in maps.lines().filter(|line| !line.contains("[vsyscall]")) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let (begin, end) = range.expect("a range of addresses");
        let page = |text| u64::from_str_radix(text, 16).expect("an address") / PAGE;
        let (begin, end) = (page(begin), page(end));
        let mut entries = vec![0; usize::try_from((end - begin) * 8).expect("fits")];
        pagemap.read_exact_at(&mut entries, begin * 8)?;
        let entries = entries
            .chunks_exact(8)
            .map(|e| u64::from_le_bytes(e.try_into().expect("eight")));
        let present = entries.filter(|entry| entry >> 63 == 1);
        frames.extend(present.map(|entry| entry & ((1 << 55) - 1)));
    }
    Ok(frames)
}

/// Resident memory in KiB: of init, of the agent, and of both. They run the same binary, so most of what either has of
/// it is the same memory, which is there once.
async fn resident_kb(member: &Member) -> [u64; 3] {
    let init = member.container.inspect("{{.State.Pid}}").await;
    let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).expect("children");
    let is_agent =
        |pid: &&str| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"\0agent\0"));
    let agent = children.split_whitespace().find(is_agent).expect("an agent");
    let (init, agent) = (frames(&init).expect("root"), frames(agent).expect("root"));
    assert!(
        init.len() > 100 && agent.len() > 100,
        "only root is told the numbers"
    );
    let both = init.union(&agent).count();
    [init.len(), agent.len(), both].map(|count| count as u64 * PAGE / 1024)
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
            let [init, agent, both] = resident_kb(&cluster.members[index]).await;
            if both > largest {
                println!("{role}: init {init} KiB, agent {agent} KiB, together {both} KiB");
                largest = both;
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

/// Copies the member has made of its leader's data; every replica begins with one.
async fn copies_of(member: &Member) -> usize {
    let log = member.container.log().await;
    log.matches("done job=\"clone\"").count()
}

async fn await_copy(member: &Member, before: usize) {
    wait_for("another copy", SOON, async || match copies_of(member).await {
        now if now > before => Ok(()),
        now => Err(format!("{now} copies")),
    })
    .await;
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

    let copies = copies_of(second).await;
    check(&first.cli(&["reinit", &second.name, "--force"]).await, &[]);
    await_copy(second, copies).await;
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
    let copies = copies_of(second).await;
    post(second, "/reinitialize", json!({})).await;
    await_copy(second, copies).await;
    assert_eq!(cluster.healthy().await, leader);
    let (_, history) = second.get("/history").await.expect("an answer");
    assert_eq!(history.as_array().map(Vec::len), Some(2), "{history}");
}
