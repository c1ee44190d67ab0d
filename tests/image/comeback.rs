//! Members return: all of them in any order, one with a new volume, one with a stranger's data.

use std::time::Duration;

use crate::{
    SOON,
    docker::Volume,
    members::{Cluster, Store},
    node::wait_for,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_full_stop_the_newest_data_leads_whatever_the_order() {
    for store in [Store::Etcd, Store::Embedded] {
        // A cold start waits this long for newer data: longer than three containers take to start on a busy machine.
        let cluster = Cluster::start_with(store, Duration::from_secs(20)).await;
        let leader = cluster.healthy().await;
        let (first, second) = (cluster.others(leader)[0], cluster.others(leader)[1]);
        let member = |index: usize| &cluster.members[index];
        member(leader)
            .sql("CREATE TABLE t (x int)")
            .await
            .expect("create");
        member(first).wait_sql("SELECT count(*) FROM t", "0").await;
        // Each stops with less than the next one has.
        member(first).container.stop().await;
        member(leader)
            .sql("INSERT INTO t VALUES (1)")
            .await
            .expect("write");
        member(second).wait_sql("SELECT count(*) FROM t", "1").await;
        // A leader with an etcd of its own can write only as long as two of three are there.
        if store == Store::Etcd {
            member(second).container.stop().await;
            member(leader)
                .sql("INSERT INTO t VALUES (2)")
                .await
                .expect("write");
            member(leader).container.stop().await;
        } else {
            member(leader).container.stop().await;
            member(second).container.stop().await;
        }
        let rows = if store == Store::Etcd { "2" } else { "1" };
        for index in 0..3 {
            let code = member(index).container.exit_code().await.expect("it has ended");
            // Whoever is last of three etcds has nobody to give the lock back to, and says so if it had taken it.
            let last = store == Store::Embedded && index == second;
            assert!(code == 0 || (last && code == 81), "{store:?}: {code}");
        }
        for index in [first, second, leader] {
            member(index).container.start().await;
        }
        cluster.healthy().await;
        for index in 0..3 {
            member(index).wait_sql("SELECT count(*) FROM t", rows).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_killed_at_once_comes_back_with_its_data() {
    let cluster = Cluster::start(Store::Embedded).await;
    let leader = cluster.healthy().await;
    cluster.members[leader]
        .sql("CREATE TABLE t AS SELECT 7 AS x")
        .await
        .expect("create");
    for index in cluster.others(leader) {
        cluster.members[index].wait_sql("SELECT x FROM t", "7").await;
    }
    for member in &cluster.members {
        member.container.kill("KILL").await;
    }
    for member in cluster.members.iter().rev() {
        member.container.start().await;
    }
    cluster.healthy().await;
    for member in &cluster.members {
        member.wait_sql("SELECT x FROM t", "7").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_volume_was_recreated_is_copied_anew() {
    for store in [Store::Etcd, Store::Embedded] {
        let mut cluster = Cluster::start(store).await;
        let leader = cluster.healthy().await;
        cluster.members[leader]
            .sql("CREATE TABLE t AS SELECT 7 AS x")
            .await
            .expect("create");
        let lost = cluster.others(leader)[0];
        let name = cluster.members[lost].name.clone();
        drop(cluster.members.remove(lost));
        cluster.volumes[lost].recreate().await;
        let member = cluster.member(&name, &cluster.volumes[lost], "demo").await;
        cluster.members.insert(lost, member);
        cluster.members[lost].container.start().await;
        assert_eq!(cluster.healthy().await, leader, "{store:?}");
        cluster.members[lost].wait_sql("SELECT x FROM t", "7").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_of_another_cluster_is_refused_with_both_identifiers_and_left_as_it_is() {
    let mut cluster = Cluster::start(Store::Etcd).await;
    let leader = cluster.healthy().await;
    let other = Volume::create().await;
    let stranger = cluster.member("stranger", &other, "another").await;
    stranger.container.start().await;
    stranger.wait_primary(SOON).await;
    stranger
        .sql("CREATE TABLE precious AS SELECT 1 AS x")
        .await
        .expect("create");
    let theirs = stranger
        .sql("SELECT system_identifier FROM pg_control_system()")
        .await
        .expect("an id");
    let ours = cluster.members[leader]
        .sql("SELECT system_identifier FROM pg_control_system()")
        .await
        .expect("an id");
    stranger.container.stop().await;
    drop(stranger);

    let replica = cluster.others(leader)[0];
    let name = cluster.members[replica].name.clone();
    drop(cluster.members.remove(replica));
    let wrong = cluster.member(&name, &other, "demo").await;
    wrong.container.start().await;
    let code = wrong.wait_exit(SOON).await;
    let log = wrong.container.log().await;
    assert_eq!(code, 65, "{log}");
    for word in [&*theirs, &*ours, "/var/lib/postgresql/data"] {
        assert!(log.contains(word), "'{word}' is not named in: {log}");
    }
    drop(wrong);
    assert_ne!(theirs, ours);

    // The cluster goes on, and so does the other one with all it had.
    cluster.members.insert(
        replica,
        cluster.member(&name, &cluster.volumes[replica], "demo").await,
    );
    cluster.members[replica].container.start().await;
    assert_eq!(cluster.healthy().await, leader);
    let stranger = cluster.member("stranger", &other, "another").await;
    stranger.container.start().await;
    stranger.wait_sql("SELECT x FROM precious", "1").await;
    wait_for("the stranger to lead its own cluster", SOON, async || {
        stranger.sql("INSERT INTO precious VALUES (2)").await
    })
    .await;
    drop(stranger);
}
