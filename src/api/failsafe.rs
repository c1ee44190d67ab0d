//! `/failsafe`: whom a primary without the DCS would ask, and the answer to its question (contract: REST API §9).
//!
//! The answer is a promise about the lock, and given where the lock is taken ([`crate::agent::lease::Lease::promise`]).
//! Beyond the contract: a question carries the asker's ttl, so that the promise lasts as long as it counts on, and a
//! `DELETE` gives back what is not needed any more.

use std::time::Duration;

use http::HeaderValue;
use serde_json::{Map, Value};

use super::{
    refusal::Refusal,
    reply::{self, Reply},
    server::Api,
};
use crate::{
    agent::{
        canvass::question_of,
        handle::{Snapshot, Xlog},
    },
    model::{PgState, Role},
};

/// No promise is longer.
const PROMISE_MAX: Duration = Duration::from_secs(3600);
/// Patroni does not say for how long it will count on the answer: for its ttl, which is never shorter, whatever the
/// cluster's configuration says (contract: environment §4).
const PATRONI_TTL_MIN: Duration = Duration::from_secs(20);

fn not_enabled() -> Refusal {
    Refusal::new(502, "failsafe mode is not enabled")
}

/// GET: the names and addresses last read from the DCS, however long ago.
pub(super) fn topology(snapshot: &Snapshot) -> Result<Reply, Refusal> {
    let stored = snapshot
        .dcs
        .as_ref()
        .and_then(|view| view.cluster.failsafe.as_ref());
    match stored.filter(|_| snapshot.dynamic.failsafe_mode) {
        Some(members) => Ok(reply::object(200, members)),
        None => Err(not_enabled()),
    }
}

/// POST: a primary that does not reach the DCS asks to be accepted.
pub(super) fn accept(api: &Api, body: &Map<String, Value>) -> Result<Reply, Refusal> {
    let snapshot = api.handle.current();
    if !snapshot.dynamic.failsafe_mode {
        return Err(not_enabled());
    }
    let Some(name) = body
        .get("name")
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty())
    else {
        return Err(Refusal::bad_request("the question does not say who asks it"));
    };
    if snapshot.state() == PgState::Running && snapshot.role() == Role::Primary {
        return Err(Refusal::new(500, "Running as a leader"));
    }
    let theirs = body.get("ttl").and_then(Value::as_u64);
    let ttl = theirs.map_or(PATRONI_TTL_MIN, Duration::from_secs).clamp(
        snapshot.dynamic.timing.ttl,
        PROMISE_MAX.max(snapshot.dynamic.timing.ttl),
    );
    let promised = api.handle.lease().promised();
    let again = promised.is_some_and(|promise| promise.to.as_str() == name);
    if let Err(because) = api.handle.lease().promise(name.into(), question_of(body), ttl) {
        tracing::info!(primary = name, %because, "not accepting another primary");
        return Err(Refusal::new(500, "Running as a leader"));
    }
    if again {
        tracing::debug!(primary = name, ?ttl, "promised it once more");
    } else {
        tracing::info!(
            primary = name,
            ?ttl,
            "promised a primary without the DCS not to lead"
        );
    }
    let mut reply = reply::text(200, "Accepted");
    let position = match snapshot.xlog() {
        Some(Xlog::Replica {
            received, replayed, ..
        }) => Some((*received).max(*replayed)),
        Some(Xlog::Primary { .. }) | None => None,
    };
    if let Some(position) = position {
        reply.headers_mut().insert("lsn", HeaderValue::from(position.0));
    }
    Ok(reply)
}

/// DELETE: it needs the promise no more.
pub(super) fn take_back(api: &Api, body: &Map<String, Value>) -> Result<Reply, Refusal> {
    let Some(name) = body.get("name").and_then(Value::as_str) else {
        return Err(Refusal::bad_request("the request does not say who sends it"));
    };
    api.handle
        .lease()
        .take_promise_back(&name.into(), question_of(body));
    Ok(reply::text(200, "Forgotten"))
}
