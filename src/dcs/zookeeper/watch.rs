//! The wake-ups: one recursive watch on the cluster's nodes, reduced to a counter.
//!
//! | task | input | output | ended by |
//! |---|---|---|---|
//! | [`run`] | watch events | counter of changes worth a look | abort, when [`super::ZooKeeper`] is dropped |
//!
//! The watch carries no state: it has a session of its own, which is given up with the connection, and every time it is
//! set anew the counter goes up, which sends the reader to a fresh look.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch as signal,
    time::{Instant, sleep, timeout},
};

use super::{
    Failure,
    jute::{self, Happened},
    wire::{Ask, Ensemble},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(1);

/// Watches for ever.
pub(super) async fn run(ensemble: Arc<Ensemble>, base: String, changes: signal::Sender<u64>, ttl: Duration) {
    let mut backoff = FIRST_BACKOFF;
    let mut up = None;
    loop {
        let mut established = false;
        let reason = session(&ensemble, &base, ttl, || {
            if !established && up == Some(false) {
                tracing::info!(endpoint = ensemble.endpoint(), "zookeeper watch is back");
            }
            (established, up) = (true, Some(true));
            changes.send_modify(|count| *count = count.wrapping_add(1));
        })
        .await;
        if up != Some(false) {
            tracing::warn!(
                endpoint = ensemble.endpoint(),
                because = reason,
                "zookeeper watch lost"
            );
        }
        up = Some(false);
        if established {
            backoff = FIRST_BACKOFF;
        }
        sleep(backoff).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// One watch from its creation to its end; returns why it ended.
async fn session(ensemble: &Arc<Ensemble>, base: &str, ttl: Duration, mut changed: impl FnMut()) -> String {
    let connected = ensemble.connect(None, ttl, Instant::now() + PATIENCE * 2).await;
    let (mut wire, granted) = match connected {
        Ok(Some((wire, session, _))) => (wire, session.ttl),
        Ok(None) => return "no session".into(),
        Err(error) => return error.to_string(),
    };
    match timeout(PATIENCE, wire.ask(&[Ask::Watch(base)])).await {
        Ok(Ok(replies)) => {
            if let Some(Err(code)) = replies.into_iter().next().map(|reply| reply.result) {
                return jute::name(code);
            }
        }
        Ok(Err(Failure::Broken(error) | Failure::Dcs(error))) => return error.to_string(),
        Ok(Err(Failure::Refused(code))) => return jute::name(code),
        Err(_) => return "no answer".into(),
    }
    changed();
    let idle = (granted / 3).clamp(Duration::from_millis(300), Duration::from_secs(2));
    let mut asked = false;
    loop {
        match timeout(if asked { PATIENCE } else { idle }, wire.next_event()).await {
            Ok(Ok(event)) => {
                asked = false;
                if event.is_some_and(|(happened, path)| concerns(base, happened, &path)) {
                    changed();
                }
            }
            Ok(Err(error)) => return error.to_string(),
            // What was read so far of a frame is lost, but a whole one comes at once or not at all for long.
            Err(_) if asked => return "silent".into(),
            Err(_) => {
                if let Err(error) = wire.ping().await {
                    return error.to_string();
                }
                asked = true;
            }
        }
    }
}

/// Whether the HA loop should look at a change (rule: [`crate::dcs::Dcs::changes`]).
fn concerns(base: &str, happened: Happened, path: &str) -> bool {
    let relative = path.strip_prefix(base).and_then(|rest| rest.strip_prefix('/'));
    match relative {
        Some("leader" | "failover" | "config" | "initialize" | "sync") => happened != Happened::Other,
        Some(path) if path.starts_with("members/") => {
            matches!(happened, Happened::Created | Happened::Deleted)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mere_updates_of_members_and_status_wake_nobody() {
        let wakes = |happened, path: &str| concerns("/service/demo", happened, &format!("/service/{path}"));
        for key in ["leader", "failover", "config", "initialize", "sync"] {
            assert!(wakes(Happened::Changed, &format!("demo/{key}")), "{key}");
            assert!(wakes(Happened::Deleted, &format!("demo/{key}")), "{key}");
        }
        assert!(wakes(Happened::Created, "demo/members/a"));
        assert!(!wakes(Happened::Changed, "demo/members/a"));
        for path in [
            "demo/status",
            "demo",
            "demo/members",
            "demo2/leader",
            "demo/history",
        ] {
            assert!(!wakes(Happened::Changed, path), "{path}");
        }
    }
}
