//! The wake-ups: one watch on the cluster's prefix, reduced to a counter.
//!
//! | task | input | output | ended by |
//! |---|---|---|---|
//! | [`run`] | etcd watch | counter of changes worth a look | abort, when [`super::Etcd`] is dropped |
//!
//! The watch carries no state: after every (re)start it begins with "now" and counts up once, which sends the reader
//! to a fresh linearizable read. So neither compaction, nor a cancelled watch, nor a wiped store can leave
//! a stale picture behind (Patroni 4.0.7 fixed the cancelled watch).

use std::{sync::Arc, time::Duration};

use etcd_client::{KeyValue, WatchOptions, WatchResponse};
use tokio::{sync::watch as signal, time::timeout};

use super::{
    fault::words,
    pool::{Pool, jittered},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(1);

/// Watches for ever. `idle`: silence after which the server is asked for a sign of life; as long again without one
/// and the watch is lost.
pub(super) async fn run(pool: Arc<Pool>, base: String, changes: signal::Sender<u64>, idle: Duration) {
    let mut backoff = FIRST_BACKOFF;
    let mut up = None;
    loop {
        let index = pool.current();
        let mut established = false;
        let reason = session(&pool, index, &base, idle, || {
            established = true;
            if up == Some(false) {
                tracing::info!(endpoint = pool.url(index), "etcd watch is back");
            }
            up = Some(true);
            changes.send_modify(|count| *count = count.wrapping_add(1));
        })
        .await;
        if up != Some(false) {
            tracing::warn!(endpoint = pool.url(index), because = %reason, "etcd watch lost");
        }
        up = Some(false);
        if established {
            backoff = FIRST_BACKOFF;
        }
        // A new connection also brings a new token.
        pool.forget(index);
        pool.rotate(index);
        tokio::time::sleep(jittered(backoff)).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// One watch from its creation to its end; returns why it ended.
async fn session(pool: &Pool, index: usize, base: &str, idle: Duration, mut changed: impl FnMut()) -> String {
    let open = async {
        let (_, mut client) = pool.client(index, PATIENCE).await?;
        let options = WatchOptions::new().with_prefix();
        client.watch(base, Some(options)).await
    };
    let mut stream = match timeout(PATIENCE, open).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return words(&error),
        Err(_) => return "no answer".into(),
    };
    let mut asked = true;
    let mut patience = PATIENCE;
    loop {
        match timeout(patience, stream.message()).await {
            Ok(Ok(Some(response))) => {
                if response.canceled() || response.compact_revision() > 0 {
                    return format!("cancelled by the server: {}", response.cancel_reason());
                }
                if response.created() || concerns(&response, base) {
                    changed();
                }
                asked = false;
            }
            Ok(Ok(None)) => return "closed by the server".into(),
            Ok(Err(error)) => return words(&error),
            Err(_) if asked => return "silent".into(),
            Err(_) => {
                if let Err(error) = stream.request_progress().await {
                    return words(&error);
                }
                asked = true;
            }
        }
        patience = idle;
    }
}

fn concerns(response: &WatchResponse, base: &str) -> bool {
    response.events().iter().filter_map(|event| event.kv()).any(|kv| {
        let key = String::from_utf8_lossy(kv.key());
        key.strip_prefix(base)
            .is_some_and(|path| matters(path, Change::of(kv)))
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Created,
    Updated,
    Deleted,
}

impl Change {
    /// etcd counts a key's version from 1 at creation; a deletion resets it to 0.
    fn of(kv: &KeyValue) -> Self {
        match kv.version() {
            0 => Self::Deleted,
            1 => Self::Created,
            _ => Self::Updated,
        }
    }
}

/// Whether the HA loop should look at a change (rule: [`crate::dcs::Dcs::changes`]).
fn matters(path: &str, change: Change) -> bool {
    match path {
        "leader" | "failover" | "config" | "initialize" | "sync" => true,
        _ => path.starts_with("members/") && change != Change::Updated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mere_updates_of_members_and_status_wake_nobody() {
        for path in ["leader", "failover", "config", "initialize", "sync"] {
            assert!(
                matters(path, Change::Updated) && matters(path, Change::Deleted),
                "{path}"
            );
        }
        assert!(matters("members/a", Change::Created));
        assert!(matters("members/a", Change::Deleted));
        assert!(!matters("members/a", Change::Updated));
        for path in ["status", "history", "failsafe", "optime/leader", "other"] {
            assert!(!matters(path, Change::Created), "{path}");
        }
    }
}
