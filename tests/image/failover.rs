//! The leader of a cluster dies, stops, freezes or is cut off: who leads when, and what was acknowledged.

use std::time::{Duration, Instant};

use crate::{
    SOON,
    members::{Cluster, Insider, Store, TTL, witness},
    node::wait_for,
    witness::{Ack, Witness},
};

/// On top of ttl, for the election.
const ELECTION: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_through_haproxy_when_the_leader_is_killed_and_it_comes_back_as_a_replica() {
    let mut cluster = Cluster::start(Store::Etcd).await;
    cluster.add_proxy().await;
    let old = cluster.healthy().await;
    let witness = witness(cluster.proxy_port, 1).await;
    let killed = Instant::now();
    cluster.members[old].container.kill("KILL").await;
    let new = cluster.leader_but(Some(old), TTL + ELECTION + SOON).await;
    let took = killed.elapsed();
    wait_for("a commit through HAProxy", SOON, async || match witness.last() {
        Some(ack) if ack.at > killed + Duration::from_secs(1) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let gap = witness.longest_gap(killed - Duration::from_millis(50), Instant::now());
    println!("docker kill: a new leader after {took:?}, no commits through HAProxy for {gap:?}");
    assert!(took < TTL + ELECTION, "a new leader took {took:?}");
    // HAProxy asks once a second.
    assert!(
        gap < TTL + ELECTION + Duration::from_secs(2),
        "no commits for {gap:?}"
    );

    let started = Instant::now();
    cluster.members[old].container.start().await;
    cluster.members[old].wait_streaming(SOON).await;
    println!("docker start: streaming again after {:?}", started.elapsed());
    assert_eq!(cluster.healthy().await, new, "the new leader stays");
    let rows = cluster.members[new].sql("SELECT count(*) > 0 FROM witness").await;
    assert_eq!(rows.as_deref(), Ok("t"));
    cluster.members[old]
        .wait_sql("SELECT count(*) > 0 FROM witness", "t")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_hands_over_in_about_a_second_and_loses_nothing() {
    for store in [Store::Etcd, Store::Embedded] {
        let cluster = Cluster::start(store).await;
        let old = cluster.healthy().await;
        let witnesses = on_each(&cluster).await;
        await_commit(&witnesses[old], Instant::now()).await;
        let asked = Instant::now();
        cluster.members[old].container.stop().await;
        let stopped = asked.elapsed();
        assert_eq!(
            cluster.members[old].container.exit_code().await,
            Ok(0),
            "{store:?}"
        );
        let new = cluster.leader_but(Some(old), SOON).await;
        let first = await_commit(&witnesses[new], asked).await;
        let gap = first.at - witnesses[old].last().expect("wrote before").at;
        println!("docker stop of the leader ({store:?}): returned after {stopped:?}, no commits for {gap:?}");
        assert!(
            gap < Duration::from_millis(2500),
            "{store:?}: no commits for {gap:?}"
        );
        assert!(
            stopped < Duration::from_secs(5),
            "{store:?}: docker stop took {stopped:?}"
        );
        assert_eq!(
            lost(&cluster, new, &witnesses[old]).await,
            Vec::<i64>::new(),
            "{store:?}"
        );
        cluster.members[old].container.start().await;
        assert_eq!(cluster.healthy().await, new, "{store:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_stops_committing_in_time_and_rejoins_although_it_diverged() {
    for store in [Store::Etcd, Store::Embedded] {
        let cluster = Cluster::start(store).await;
        let old = cluster.healthy().await;
        let member = &cluster.members[old];
        member
            .sql("CREATE TABLE witness (id bigint)")
            .await
            .expect("create");
        for index in cluster.others(old) {
            cluster.members[index]
                .wait_sql("SELECT count(*) FROM witness", "0")
                .await;
        }
        let insider = Insider::start(member, 1).await;
        let cut = Instant::now();
        cluster.cut_off(old).await;
        let new = cluster.leader_but(Some(old), TTL + ELECTION + SOON).await;
        let took = cut.elapsed();
        wait_for("the client inside to be thrown out", SOON, async || {
            if insider.thrown_out() {
                Ok(())
            } else {
                Err(format!("{:?}", insider.last()))
            }
        })
        .await;
        let last = insider.last().expect("wrote").at - cut;
        println!("cut off ({store:?}): last commit after {last:?}, a new leader after {took:?}");
        assert!(
            last < TTL,
            "{store:?}: a commit {last:?} after the network was gone"
        );
        assert!(
            last < took,
            "{store:?}: two leaders committed: {last:?}, {took:?}"
        );
        assert!(took < TTL + ELECTION, "{store:?}: a new leader took {took:?}");
        // Both sides have written on since they parted.
        assert!(
            last > Duration::from_millis(200),
            "{store:?}: nothing was written while cut off"
        );
        cluster.members[new]
            .sql("INSERT INTO witness VALUES (-1)")
            .await
            .expect("write");
        let jobs = |log: &str, job: &str| log.matches(&format!("begins job=\"{job}\"")).count();
        let before = member.container.log().await;
        cluster.reconnect(old).await;
        // However it ended, fenced or demoted: a person or a restart policy starts what has exited.
        if !member.container.running().await {
            member.container.start().await;
        }
        // Through the container's own CLI: published ports follow a network only from the next start on.
        wait_for("the old leader to stream again", SOON, async || {
            let listed = cluster.members[new].cli(&["list", "-f", "json"]).await.out;
            let members: serde_json::Value =
                serde_json::from_str(&listed).map_err(|error| error.to_string())?;
            let of = |member: &&serde_json::Value| member["Member"] == cluster.members[old].name.as_str();
            match members.as_array().and_then(|members| members.iter().find(of)) {
                Some(row) if row["State"] == "streaming" => Ok(()),
                _ => Err(listed),
            }
        })
        .await;
        let query = [
            "psql",
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-Atc",
            "SELECT min(id) FROM witness",
        ];
        let password = format!("PGPASSWORD={}", crate::node::PASSWORD);
        wait_for("the new history on the old leader", SOON, async || {
            let done = member
                .container
                .exec(&[&["env", &password], &query[..]].concat())
                .await;
            if done.out.trim() == "-1" {
                Ok(())
            } else {
                Err(done.out + &done.err)
            }
        })
        .await;
        let log = member.container.log().await;
        assert!(
            jobs(&log, "rewind") > jobs(&before, "rewind"),
            "{store:?}: it had diverged and came back by rewind"
        );
        assert_eq!(
            jobs(&log, "clone"),
            jobs(&before, "clone"),
            "{store:?}: it was not copied anew"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_agent_is_fenced_before_another_leads_and_rejoins_when_started() {
    let cluster = Cluster::start(Store::Etcd).await;
    let old = cluster.healthy().await;
    let member = &cluster.members[old];
    let witness = witness(member.pg_port, 1).await;
    let agent = member.container.pid_of("agent").await.expect("an agent");
    let frozen = Instant::now();
    member.container.signal(&agent, "STOP").await;
    let new = cluster.leader_but(Some(old), TTL + ELECTION + SOON).await;
    let took = frozen.elapsed();
    assert_eq!(member.wait_exit(SOON).await, 80, "the exit status says: fenced");
    let last = witness.last().expect("wrote").at - frozen;
    println!("SIGSTOP of the agent: last commit after {last:?}, a new leader after {took:?}");
    assert!(last < TTL, "a commit {last:?} after the agent froze");
    assert!(last < took, "two leaders committed: {last:?}, {took:?}");
    assert!(
        last > Duration::from_secs(1),
        "the fence fell before it had to: {last:?}"
    );
    drop(witness);
    member.container.start().await;
    member.wait_streaming(SOON).await;
    assert_eq!(cluster.healthy().await, new);
}

/// A container that is paused cannot fence itself: what its backends had begun may still be answered in the moment
/// it goes on, before init has looked at the clock. That moment is measured and kept small.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_paused_does_not_lead_beside_the_new_one() {
    const LATE: Duration = Duration::from_millis(250);
    let cluster = Cluster::start(Store::Etcd).await;
    let old = cluster.healthy().await;
    let member = &cluster.members[old];
    let witness = witness(member.pg_port, 1).await;
    let paused = Instant::now();
    crate::docker::docker_ok(&["pause", &member.container.name]).await;
    let new = cluster.leader_but(Some(old), TTL + ELECTION + SOON).await;
    let took = paused.elapsed();
    assert!(took < TTL + ELECTION, "a new leader took {took:?}");
    wait_for("twice the ttl to pass", SOON, async || {
        if paused.elapsed() > 2 * TTL {
            Ok(())
        } else {
            Err(format!("{:?}", paused.elapsed()))
        }
    })
    .await;
    let before = witness.acks().len();
    crate::docker::docker_ok(&["unpause", &member.container.name]).await;
    assert_eq!(member.wait_exit(SOON).await, 80, "fenced by its own init");
    let acks = witness.acks();
    let late: Vec<&Ack> = acks[before..].iter().collect();
    // From the first of them: when docker comes round to thaw the container is no matter of ours.
    let lasted = late
        .first()
        .zip(late.last())
        .map(|(first, last)| last.at - first.at);
    println!("unpaused: {} late answers within {lasted:?}", late.len());
    assert!(
        lasted.is_none_or(|lasted| lasted < LATE),
        "answers for {lasted:?} after the pause"
    );
    assert!(
        late.len() <= 3,
        "{} commits were answered after the pause",
        late.len()
    );
    drop(witness);
    member.container.start().await;
    member.wait_streaming(SOON).await;
    assert_eq!(cluster.healthy().await, new);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_with_their_own_etcd_survive_the_kill_of_the_leader_and_switch_over_on_request() {
    let cluster = Cluster::start(Store::Embedded).await;
    let old = cluster.healthy().await;
    cluster.members[old]
        .sql("CREATE TABLE t (x int)")
        .await
        .expect("create");
    let killed = Instant::now();
    cluster.members[old].container.kill("KILL").await;
    let new = cluster.leader_but(Some(old), TTL + ELECTION + SOON).await;
    let took = killed.elapsed();
    println!("docker kill with embedded etcds: a new leader after {took:?}");
    assert!(took < TTL + ELECTION, "a new leader took {took:?}");
    cluster.members[new]
        .sql("INSERT INTO t VALUES (1)")
        .await
        .expect("write");
    cluster.members[old].container.start().await;
    cluster.members[old].wait_streaming(SOON).await;

    let candidate = cluster.members[old].name.clone();
    let done = cluster.members[new]
        .cli(&["switchover", "--candidate", &candidate, "--force"])
        .await;
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    assert_eq!(cluster.healthy().await, old, "it leads again");
    cluster.members[old].wait_sql("SELECT x FROM t", "1").await;
}

/// One witness per member; the ids of each are a range of its own.
async fn on_each(cluster: &Cluster) -> Vec<Witness> {
    let members = cluster.members.iter().zip(1..);
    members
        .map(|(member, n)| Witness::start(member.pg_port, n * 1_000_000))
        .collect()
}

async fn await_commit(witness: &Witness, after: Instant) -> Ack {
    wait_for("a commit", SOON, async || {
        let acks = witness.acks();
        acks.into_iter()
            .find(|ack| ack.at > after)
            .ok_or_else(|| format!("{:?}", witness.last()))
    })
    .await
}

/// Acknowledged ids that the member does not have.
async fn lost(cluster: &Cluster, member: usize, witness: &Witness) -> Vec<i64> {
    let client = cluster.members[member].connect().await.expect("connect");
    let rows = client.query("SELECT id FROM witness", &[]).await.expect("read");
    let there: std::collections::BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    let acks = witness.acks().into_iter();
    acks.map(|ack| ack.id).filter(|id| !there.contains(id)).collect()
}
