//! Slots of the configuration go with the leader, from either kind to the other.

use serde_json::json;

use crate::{
    SOON,
    mixed::{Mixed, agree},
    node::wait_for,
    seat::Seat,
};

/// Rows of the table that a consumer of the slot has not had yet; it has had them afterwards.
async fn consumed(leader: &Seat) -> Result<String, String> {
    let sql = "SELECT coalesce(string_agg(substring(data FROM '''(.*)'''), ',' ORDER BY lsn), '') \
               FROM pg_logical_slot_get_changes('events', NULL, NULL) WHERE data LIKE 'table public.news:%'";
    leader.sql(sql).await
}

/// Waits until the replica has the slot. Only what is young enough for its WAL can be copied: the consumer goes on.
async fn copied(leader: &Seat, replica: &Seat) {
    wait_for(&format!("the slot on {}", replica.name), SOON, async || {
        leader.sql("CHECKPOINT").await?;
        consumed(leader).await?;
        let sql = "SELECT string_agg(slot_name || ' ' || slot_type, ',' ORDER BY slot_name) \
                   FROM pg_replication_slots WHERE slot_name IN ('events', 'backup')";
        let slots = replica.sql(sql).await?;
        if slots == "backup physical,events logical" {
            Ok(())
        } else {
            Err(slots)
        }
    })
    .await;
}

/// Writes what nobody consumes before the change, and finds it after the change.
async fn handed_over(old: &Seat, new: &Seat, row: &str) {
    consumed(old).await.expect("a consumer");
    old.sql(&format!("INSERT INTO news VALUES ('{row}')"))
        .await
        .expect("insert");
    old.switchover(old, new).await;
    let found = consumed(new).await.expect("a consumer");
    assert!(found.ends_with(row), "nothing is missing: {found}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logical_slot_goes_from_patroni_to_howdah_and_back() {
    let mixed = Mixed::new();
    let slots = json!({
        "postgresql": {"use_pg_rewind": true, "parameters": {"wal_level": "logical"}},
        "slots": {
            "events": {"type": "logical", "database": "postgres", "plugin": "test_decoding"},
            "backup": {"type": "physical"},
        },
    });
    let mut patroni = mixed.patroni("pat-1", slots.clone());
    patroni.start();
    let p = Seat::from(&patroni);
    p.wait_primary(SOON).await;
    let mut howdah = mixed.howdah("how-1", slots);
    howdah.start();
    let h = Seat::from(&howdah);
    h.wait_streaming(SOON).await;
    p.sql("CREATE TABLE news (x text)").await.expect("create");

    copied(&p, &h).await;
    handed_over(&p, &h, "to Howdah").await;
    copied(&h, &p).await;
    handed_over(&h, &p, "to Patroni").await;
    agree(&[&h, &p], &p).await;
}
