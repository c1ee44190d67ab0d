//! The store is away for longer than ttl: the primary goes on, because the members of the other kind accept it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    SOON,
    mixed::{Mixed, TTL, agree},
    node::{always, wait_for},
    seat::Seat,
};

/// Longer than any lease or promise lasts.
const OUTAGE: Duration = Duration::from_secs(TTL.as_secs() + 4);

/// Waits until `/failsafe` in the store names these, and the member has read it.
async fn named(mixed: &Mixed, seats: &[&Seat]) {
    wait_for("/failsafe to name all members", SOON, async || {
        let urls = seats.iter().map(|seat| {
            (
                seat.name.clone(),
                json!(format!("http://127.0.0.1:{}/patroni", seat.api_port)),
            )
        });
        let expected = json!(urls.collect::<serde_json::Map<_, _>>());
        let stored = mixed.key("failsafe").await.unwrap_or_default();
        if serde_json::from_str::<serde_json::Value>(&stored).ok() != Some(expected.clone()) {
            return Err(stored);
        }
        for seat in seats {
            let (code, body) = seat.get("/failsafe").await?;
            if code != 200 || body != expected {
                return Err(format!("{}: {code} {body}", seat.name));
            }
        }
        Ok(())
    })
    .await;
}

/// One primary, which accepts writes; all members know that failsafe mode is active before the end.
async fn stays(leader: &Seat, others: &[&Seat], started: &str) {
    let sql = "SELECT pg_postmaster_start_time()::text";
    let from = Instant::now();
    always(
        &format!("{} leads without the store", leader.name),
        OUTAGE,
        async || {
            let (code, status) = leader.get("/primary").await?;
            if code != 200 || status["role"] != "primary" {
                return Err(format!("{code} {status}"));
            }
            for other in others {
                let (code, status) = other.get("/primary").await?;
                if code != 503 || status["role"] != "replica" {
                    return Err(format!("{}: {code} {status}", other.name));
                }
            }
            leader.sql("INSERT INTO kept VALUES (1)").await?;
            Ok(())
        },
    )
    .await;
    for seat in others.iter().chain([&leader]) {
        let status = seat.json("/patroni").await;
        assert_eq!(
            status["failsafe_mode_is_active"],
            true,
            "{} after {:?}: {status}",
            seat.name,
            from.elapsed()
        );
    }
    assert_eq!(
        leader.sql(sql).await.as_deref(),
        Ok(started),
        "the same postmaster"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_of_either_kind_goes_on_because_the_other_kind_accepts_it() {
    let mut mixed = Mixed::new();
    let failsafe = json!({"failsafe_mode": true});
    let mut howdah = mixed.howdah("how-1", failsafe.clone());
    howdah.start();
    let h = Seat::from(&howdah);
    h.wait_primary(SOON).await;
    let mut patroni = mixed.patroni("pat-1", failsafe);
    patroni.start();
    let p = Seat::from(&patroni);
    p.wait_streaming(SOON).await;
    h.sql("CREATE TABLE kept (x int)").await.expect("create");
    let started = "SELECT pg_postmaster_start_time()::text";

    // Howdah asks Patroni. A store that hangs answers nobody in time.
    named(&mixed, &[&h, &p]).await;
    let since = h.sql(started).await.expect("a time");
    mixed.etcd.freeze();
    stays(&h, &[&p], &since).await;
    mixed.etcd.thaw();
    always(
        "it leads when the store is back",
        Duration::from_secs(5),
        async || match h.get("/primary").await? {
            (200, _) => Ok(()),
            (code, status) => Err(format!("{code} {status}")),
        },
    )
    .await;
    agree(&[&h, &p], &h).await;

    // Patroni asks Howdah. A store that is gone refuses.
    h.switchover(&h, &p).await;
    named(&mixed, &[&h, &p]).await;
    agree(&[&h, &p], &p).await;
    let since = p.sql(started).await.expect("a time");
    mixed.etcd.kill();
    stays(&p, &[&h], &since).await;
    mixed.etcd.start_again();
    always(
        "it leads when the store is back",
        Duration::from_secs(5),
        async || match p.get("/primary").await? {
            (200, _) => Ok(()),
            (code, status) => Err(format!("{code} {status}")),
        },
    )
    .await;
    agree(&[&h, &p], &p).await;
    assert_eq!(p.sql(started).await, Ok(since), "the same postmaster");
    // What was promised is over: the other may lead again.
    p.switchover(&p, &h).await;
}
