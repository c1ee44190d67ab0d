//! A cluster of Patroni's becomes Howdah's, member by member, and goes back: README, "Coming from Patroni".

use serde_json::{Value, json};

use crate::{
    SOON,
    mixed::{Mixed, agree, nothing_lost, slots},
    node::{code, wait_for},
    seat::Seat,
    witness::Witness,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_patronis_is_taken_over_member_by_member_and_given_back() {
    let mixed = Mixed::new();
    // Patroni's default: without failsafe mode. Howdah would switch it on in a cluster of its own.
    // An old one: passwords are stored as md5, and pg_hba.conf is what initdb made, which trusts everybody here.
    let old = json!({"postgresql": {"use_pg_rewind": true, "parameters": {"password_encryption": "md5"}}});
    let mut first = mixed.patroni("pat-1", old.clone()).without_hba();
    let mut second = mixed.patroni("pat-2", old).without_hba();
    first.start();
    let p1 = Seat::from(&first);
    p1.wait_primary(SOON).await;
    second.start();
    let p2 = Seat::from(&second);
    p2.wait_streaming(SOON).await;
    p1.sql("CREATE ROLE guest LOGIN").await.expect("a role");
    let stored =
        "SELECT bool_and(rolpassword LIKE 'md5%')::text FROM pg_authid WHERE rolpassword IS NOT NULL";
    p1.wait_sql(stored, "true").await;
    let (sysid, config) = (mixed.key("initialize").await, mixed.key_json("config").await);
    let witnesses = [
        Witness::start(p1.pg_port, 1_000_000),
        Witness::start(p2.pg_port, 2_000_000),
    ];

    // A new member of the other kind: clones, streams.
    let mut added = mixed.howdah("how-3", json!({"failsafe_mode": true}));
    added.start();
    let h3 = Seat::from(&added);
    h3.wait_streaming(SOON).await;
    h3.admits("guest").await.expect("as on its leader");
    slots(&mixed, &p1, &[&p2, &h3]).await;
    agree(&[&p1, &p2, &h3], &p1).await;
    // Howdah's command line reads what Patroni wrote.
    let (exit, list, _) = added.cli(&["list", "-f", "json"]).await;
    let rows: Value = serde_json::from_str(&list).expect("JSON");
    let leads = |row: &&Value| row["Role"] == "Leader" && row["Member"] == "pat-1";
    assert_eq!(
        (exit, rows.as_array().expect("rows").iter().filter(leads).count()),
        (0, 1),
        "{list}"
    );

    // One in the place of another: Patroni ends, Howdah goes on with its file and its data.
    second.stop(SOON).await;
    let mut placed = mixed.in_place_of(&second);
    placed.start();
    p2.wait_streaming(SOON).await;
    assert!(
        !placed.log().contains("begins job=\"clone\""),
        "the data was there"
    );
    slots(&mixed, &p1, &[&p2, &h3]).await;
    agree(&[&p1, &p2, &h3], &p1).await;

    // It leads; the last Patroni follows, and goes.
    p1.switchover(&p1, &p2).await;
    nothing_lost(&p2, &witnesses).await;
    slots(&mixed, &p2, &[&p1, &h3]).await;
    agree(&[&p1, &p2, &h3], &p2).await;
    first.stop(SOON).await;
    wait_for("two members", SOON, async || {
        let view = p2.json("/cluster").await;
        if view["members"].as_array().is_some_and(|all| all.len() == 2) {
            Ok(())
        } else {
            Err(view.to_string())
        }
    })
    .await;
    // It is the same cluster, configured as before, and opens to the same people.
    for seat in [&p2, &h3] {
        seat.admits("guest").await.expect("as before");
    }
    assert_eq!(mixed.key("initialize").await, sysid);
    assert_eq!(mixed.key_json("config").await, config);
    let (code_of_failsafe, body) = h3.get("/failsafe").await.expect("an answer");
    assert_eq!(code_of_failsafe, 502, "{body}");
    assert_eq!(mixed.key("failsafe").await, None);

    // The way back: Patroni on the data it left, then on the data that Howdah leaves.
    first.start();
    p1.wait_streaming(SOON).await;
    agree(&[&p1, &p2, &h3], &p2).await;
    p2.switchover(&p2, &p1).await;
    nothing_lost(&p1, &witnesses).await;
    slots(&mixed, &p1, &[&p2, &h3]).await;
    assert_eq!(code(placed.stop(SOON).await), 0);
    second.start();
    p2.wait_streaming(SOON).await;
    assert_eq!(code(added.stop(SOON).await), 0);
    agree(&[&p1, &p2], &p1).await;
    assert_eq!(mixed.key("initialize").await, sysid);
    assert_eq!(mixed.key_json("config").await, config);
    // Whatever Howdah wrote, Patroni has read without an exception.
    for patroni in [&first, &second] {
        assert!(
            !patroni.log().contains("Traceback"),
            "an exception in Patroni's log:\n{}",
            patroni.log()
        );
    }
}
