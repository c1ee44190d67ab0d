//! The wake-ups: one blocking query after the other on the cluster's keys, reduced to a counter.
//!
//! | task | input | output | ended by |
//! |---|---|---|---|
//! | [`run`] | blocking queries | counter of changes worth a look | abort, when [`super::Consul`] is dropped |
//!
//! A query answers with all keys as soon as one of them changes; what is worth a look is the difference to the answer
//! before. After every interruption the counter goes up, which sends the reader to a fresh read of its own.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ::http::Method;
use bytes::Bytes;
use tokio::{sync::watch as signal, time::sleep};

use super::{
    Stored,
    http::{Agent, Ask},
    stored,
};
use crate::dcs::DcsError;

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(1);

/// What is watched, and how it was last: for a member only that it is there, since when.
type Marks = BTreeMap<String, u64>;

/// Watches for ever. `query`: the path that reads all keys.
pub(super) async fn run(
    agent: Arc<Agent>,
    query: String,
    base: String,
    changes: signal::Sender<u64>,
    ttl: Duration,
) {
    let wait = (ttl / 3).clamp(Duration::from_secs(1), Duration::from_secs(10));
    // Consul adds up to a sixteenth of the time to wait, so that not all come at once.
    let patience = wait + wait / 16 + PATIENCE;
    let mut backoff = FIRST_BACKOFF;
    let (mut known, mut index): (Option<Marks>, u64) = (None, 0);
    let mut up = None;
    loop {
        let ask = Ask {
            method: Method::GET,
            path: match index {
                0 => query.clone(),
                _ => format!("{query}&index={index}&wait={}ms", wait.as_millis()),
            },
            body: Bytes::new(),
        };
        let within = if index == 0 { PATIENCE } else { patience };
        let answer = match agent.ask_once(&ask, within).await {
            Ok(reply) => stored(&reply, &base)
                .map(|found| (reply.index, marks(&found)))
                .ok_or_else(|| DcsError::Answer {
                    endpoint: agent.endpoint(),
                    reason: "not what Consul says".into(),
                }),
            Err(error) => Err(error),
        };
        match answer {
            Ok((next, found)) => {
                if up == Some(false) {
                    tracing::info!(endpoint = agent.endpoint(), "consul watch is back");
                }
                up = Some(true);
                backoff = FIRST_BACKOFF;
                if known.as_ref() != Some(&found) {
                    changes.send_modify(|count| *count = count.wrapping_add(1));
                }
                known = Some(found);
                // One that goes backwards is of a store that was restored or wiped (Consul's own advice).
                index = if next < index { 0 } else { next.max(1) };
            }
            Err(error) => {
                if up != Some(false) {
                    tracing::warn!(because = %error, "consul watch lost");
                }
                up = Some(false);
                (known, index) = (None, 0);
                sleep(backoff).await;
                backoff = (backoff * 2).min(MAX_BACKOFF);
            }
        }
    }
}

/// Rule: [`crate::dcs::Dcs::changes`].
fn marks(found: &[Stored]) -> Marks {
    let mark = |stored: &Stored| match stored.path.as_str() {
        path @ ("leader" | "failover" | "config" | "initialize" | "sync") => {
            Some((path.to_owned(), stored.modified))
        }
        path if path.starts_with("members/") => Some((path.to_owned(), stored.created)),
        _ => None,
    };
    found.iter().filter_map(mark).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mere_updates_of_members_and_status_change_nothing() {
        let key = |path: &str, created, modified| Stored {
            path: path.to_owned(),
            value: String::new(),
            created,
            modified,
            session: None,
        };
        let before = marks(&[key("members/a", 1, 1), key("status", 1, 1), key("leader", 2, 2)]);
        let same = marks(&[key("members/a", 1, 5), key("status", 1, 6), key("leader", 2, 2)]);
        assert_eq!(before, same);
        for other in [
            [key("members/a", 7, 7), key("leader", 2, 2)],
            [key("members/a", 1, 1), key("leader", 2, 3)],
            [key("members/b", 1, 1), key("leader", 2, 2)],
        ] {
            assert_ne!(before, marks(&other));
        }
    }
}
