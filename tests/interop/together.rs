//! Patroni and Howdah members in one synchronous cluster: each leads, each is killed, and nothing acknowledged is lost.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    SOON,
    mixed::{Mixed, TTL, agree, cut_off, nothing_lost, slots},
    node::wait_for,
    seat::Seat,
    witness::Witness,
};

/// From the end of the lease on.
const TAKEOVER: Duration = Duration::from_secs(20);

async fn acknowledges(witness: &Witness) {
    let since = Instant::now();
    wait_for("an acknowledged commit", SOON, async || match witness.last() {
        Some(ack) if ack.at > since => Ok(()),
        last => Err(format!("{last:?}")),
    })
    .await;
}

/// Writes on a leader that has been cut off what nobody else will ever get, and nobody was promised.
async fn diverge(leader: &Seat) {
    let sql = "SET synchronous_commit = local; INSERT INTO mine SELECT generate_series(1, 1000)";
    leader.sql(sql).await.expect("a local commit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_of_both_kinds_are_moved_and_killed_and_no_commit_is_lost() {
    let mixed = Mixed::new();
    let sync = json!({"synchronous_mode": true});
    let mut howdah = mixed.howdah("how-1", sync.clone());
    howdah.start();
    let h = Seat::from(&howdah);
    h.wait_primary(SOON).await;
    let mut patroni = mixed.patroni("pat-1", sync);
    patroni.start();
    let p = Seat::from(&patroni);

    // It clones from Howdah and streams.
    p.wait_streaming(SOON).await;
    mixed.wait_sync(&h, &p).await;
    slots(&mixed, &h, &[&p]).await;
    agree(&[&h, &p], &h).await;
    h.sql("CREATE TABLE mine (x int)").await.expect("create");
    let witnesses = [
        Witness::start(h.pg_port, 1_000_000),
        Witness::start(p.pg_port, 2_000_000),
    ];
    acknowledges(&witnesses[0]).await;

    // Each kind is asked while the other leads.
    p.switchover(&h, &p).await;
    mixed.wait_sync(&p, &h).await;
    slots(&mixed, &p, &[&h]).await;
    agree(&[&h, &p], &p).await;
    acknowledges(&witnesses[1]).await;
    h.switchover(&p, &h).await;
    mixed.wait_sync(&h, &p).await;
    agree(&[&h, &p], &h).await;
    acknowledges(&witnesses[0]).await;

    // Howdah's leader dies with WAL that nobody else has: Patroni takes over, Howdah comes back by rewind.
    cut_off(howdah.postmaster_pid().expect("a postmaster"));
    diverge(&h).await;
    howdah.kill_node();
    p.wait_primary(TTL + TAKEOVER).await;
    nothing_lost(&p, &witnesses).await;
    howdah.start();
    h.wait_streaming(SOON).await;
    assert!(
        howdah.log().contains("begins job=\"rewind\""),
        "it came back by rewind"
    );
    mixed.wait_sync(&p, &h).await;
    h.wait_sql("SELECT count(*) FROM mine", "0").await;
    acknowledges(&witnesses[1]).await;

    // And the other way round.
    cut_off(patroni.postmaster_pid().expect("a postmaster"));
    diverge(&p).await;
    patroni.kill_node();
    h.wait_primary(TTL + TAKEOVER).await;
    nothing_lost(&h, &witnesses).await;
    patroni.start();
    p.wait_streaming(SOON).await;
    assert!(
        patroni.log().contains("running pg_rewind"),
        "it came back by rewind"
    );
    mixed.wait_sync(&h, &p).await;
    p.wait_sql("SELECT count(*) FROM mine", "0").await;
    acknowledges(&witnesses[0]).await;
    agree(&[&h, &p], &h).await;
    nothing_lost(&h, &witnesses).await;
    nothing_lost(&p, &witnesses).await;
    // Five leaders, five timelines: /history has a row for each that ended, whoever wrote it.
    let history = h.json("/history").await;
    let of = |index: usize| (history[index][0].clone(), history[index][4].clone());
    let rows: Vec<_> = (0..4).map(of).collect();
    let expected = ["pat-1", "how-1", "pat-1", "how-1"]
        .iter()
        .zip(1..)
        .map(|(name, tl)| (json!(tl), json!(name)));
    assert_eq!(rows, expected.collect::<Vec<_>>(), "{history}");
}

/// Waits until `/sync` says that one of these two has whatever is acknowledged, and both receive it.
async fn wait_quorum(mixed: &Mixed, leader: &Seat, voters: [&Seat; 2]) {
    let mut names = voters.map(|seat| seat.name.as_str());
    names.sort_unstable();
    wait_for("a quorum of one of two", SOON, async || {
        let sync: Value =
            serde_json::from_str(&mixed.key("sync").await.unwrap_or_default()).unwrap_or_default();
        let mut found: Vec<&str> = sync["sync_standby"]
            .as_str()
            .unwrap_or_default()
            .split(',')
            .collect();
        found.sort_unstable();
        if sync["leader"] == leader.name.as_str() && sync["quorum"] == 1 && found == names {
            Ok(())
        } else {
            Err(sync.to_string())
        }
    })
    .await;
    let sql = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum' AND state = 'streaming'";
    leader.wait_sql(sql, "2").await;
}

/// Leaves this replica behind: from now on the other one alone confirms what is acknowledged.
async fn leave_behind(leader: &Seat, replica: &Seat, witness: &Witness) {
    let name = &replica.name;
    let sender = format!("SELECT pid FROM pg_stat_replication WHERE application_name = '{name}'");
    let pid = leader.sql(&sender).await.expect("a walsender");
    let sent = std::process::Command::new("kill").args(["-STOP", &pid]).status();
    assert!(sent.expect("run kill").success(), "kill -STOP {pid}");
    // What was on its way arrives first.
    wait_for(&format!("{name} to get nothing more"), SOON, async || {
        let received = async || replica.json("/patroni").await["xlog"]["received_location"].clone();
        let before = received().await;
        acknowledges(witness).await;
        let now = received().await;
        if before == now {
            Ok(())
        } else {
            Err(format!("{before}, then {now}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_quorum_each_kind_leads_by_the_vote_of_the_other() {
    let mixed = Mixed::new();
    let quorum = json!({"synchronous_mode": "quorum"});
    let mut first = mixed.howdah("how-1", quorum.clone());
    first.start();
    let h1 = Seat::from(&first);
    h1.wait_primary(SOON).await;
    let mut second = mixed.howdah("how-2", quorum.clone());
    second.start();
    let mut third = mixed.patroni("pat-3", quorum);
    third.start();
    let (h2, p3) = (Seat::from(&second), Seat::from(&third));
    h2.wait_streaming(SOON).await;
    p3.wait_streaming(SOON).await;
    wait_quorum(&mixed, &h1, [&h2, &p3]).await;
    let witnesses = [
        Witness::start(h1.pg_port, 1_000_000),
        Witness::start(h2.pg_port, 2_000_000),
        Witness::start(p3.pg_port, 3_000_000),
    ];
    acknowledges(&witnesses[0]).await;

    // Howdah has everything, and needs the vote of a Patroni that has less.
    leave_behind(&h1, &p3, &witnesses[0]).await;
    first.kill_node();
    h2.wait_primary(TTL + TAKEOVER).await;
    nothing_lost(&h2, &witnesses).await;
    first.start();
    h1.wait_streaming(SOON).await;
    p3.wait_streaming(SOON).await;
    wait_quorum(&mixed, &h2, [&h1, &p3]).await;
    acknowledges(&witnesses[1]).await;

    // And the other way round.
    leave_behind(&h2, &h1, &witnesses[1]).await;
    second.kill_node();
    p3.wait_primary(TTL + TAKEOVER).await;
    nothing_lost(&p3, &witnesses).await;
    second.start();
    h2.wait_streaming(SOON).await;
    wait_quorum(&mixed, &p3, [&h1, &h2]).await;
    acknowledges(&witnesses[2]).await;
    agree(&[&h1, &h2, &p3], &p3).await;
    for seat in [&h1, &h2, &p3] {
        nothing_lost(seat, &witnesses).await;
    }
}
