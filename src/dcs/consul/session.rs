//! One session per member (contract: DCS layout §7): made when first needed, renewed by who keeps the lock or publishes
//! the member.
//!
//! Consul ends a session when it has not been renewed for *twice* its TTL, so half of ours is asked for. What the store
//! counts with is twice what it says.
//!
//! A session belongs to a node of Consul's catalog and ends when that node leaves, whatever its TTL: a client agent that
//! is restarted leaves by default, and the lock of the host's primary would be free at once. So each member registers a
//! node of its own, without an agent, which nothing but an operator removes. Where the token does not allow that, or
//! health checks of the agent's node are to end the session, the agent's node has to do.

use std::{collections::VecDeque, sync::Mutex, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Consul, Failure, lock};
use crate::{
    clock::Boottime,
    dcs::{DcsError, Hold},
};

/// Consul's own rule: a session ends after so many of its TTLs.
const MULTIPLIER: u32 = 2;
/// What Consul has unless `session_ttl_min` says otherwise.
const USUAL_MINIMUM: Duration = Duration::from_secs(10);
/// A session is replaced when its ttl changes or it was lost; a key that hangs on an older one is long gone.
const OURS_MAX: usize = 16;

/// A session as of its last proof of life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alive {
    /// Consul's name for it, a UUID.
    pub(super) id: String,
    /// When the request was sent that made or renewed it.
    pub(super) sent_at: Boottime,
    /// What the store counts with.
    pub(super) ttl: Duration,
}

impl Alive {
    pub(super) fn hold(&self) -> Hold {
        Hold {
            sent_at: self.sent_at,
            ttl: self.ttl,
            lease: lease(&self.id),
        }
    }
}

/// The member's session.
#[derive(Default)]
pub(super) struct Session {
    now: Mutex<Option<Alive>>,
    /// The last ones that were ours, this one included: a key bound to one of them is ours.
    ours: Mutex<VecDeque<i64>>,
    /// A predecessor's, to be found by the keys bound to it.
    adopted: Mutex<Option<i64>>,
    /// What the store was last found to ask for at least.
    minimum: Mutex<Duration>,
    /// Only one task at a time makes a session.
    gate: tokio::sync::Mutex<()>,
    told: Mutex<Told>,
}

/// What was said once and need not be said again.
#[derive(Default)]
struct Told {
    node: bool,
    minimum: bool,
}

/// The number that stands for a session: the first half of its UUID. 0 for what is none.
pub(super) fn lease(id: &str) -> i64 {
    let digits: String = id.chars().filter(|c| *c != '-').take(16).collect();
    u64::from_str_radix(&digits, 16).map_or(0, u64::cast_signed)
}

impl Session {
    pub(super) fn current(&self) -> Option<Alive> {
        lock(&self.now).clone()
    }

    /// Whether this session is or was ours, by its number.
    pub(super) fn knows(&self, lease: i64) -> bool {
        lease != 0 && lock(&self.ours).contains(&lease)
    }

    /// Whether a predecessor's session goes on.
    pub(super) fn is_adopted(&self) -> bool {
        lock(&self.adopted).is_some() || self.current().is_some()
    }

    fn remember(&self, lease: i64) {
        let mut ours = lock(&self.ours);
        if ours.len() >= OURS_MAX {
            ours.pop_front();
        }
        ours.push_back(lease);
    }

    pub(super) fn adopt(&self, lease: i64) {
        if lease != 0 {
            self.remember(lease);
            *lock(&self.adopted) = Some(lease);
        }
    }

    /// The session is known to be gone.
    pub(super) fn forget(&self, id: &str) {
        let mut now = lock(&self.now);
        if now.as_ref().is_some_and(|alive| alive.id == id) {
            *now = None;
        }
    }

    /// Another session is wanted.
    pub(super) fn abandon(&self) {
        *lock(&self.now) = None;
        *lock(&self.adopted) = None;
    }

    /// Whether the last proof of life is older than a third of the ttl.
    pub(super) fn due(&self, ttl: Duration) -> bool {
        self.current()
            .is_none_or(|alive| Boottime::now().since(alive.sent_at) >= ttl / 3)
    }
}

impl Consul {
    /// The session, or a new one.
    pub(super) async fn obtain(&self, deadline: Instant) -> Result<Alive, Failure> {
        let _alone = self.session.gate.lock().await;
        if let Some(alive) = self.session.current() {
            return Ok(alive);
        }
        let adopted = *lock(&self.session.adopted);
        if let Some(adopted) = adopted {
            let found = self.find_adopted(adopted, deadline).await?;
            *lock(&self.session.adopted) = None;
            if let Some(alive) = found {
                *lock(&self.session.now) = Some(alive.clone());
                return Ok(alive);
            }
        }
        let alive = self.make_session(deadline).await?;
        self.session.remember(lease(&alive.id));
        *lock(&self.session.now) = Some(alive.clone());
        tracing::debug!(session = alive.id, ttl = ?alive.ttl, "made a new session");
        Ok(alive)
    }

    /// A predecessor's session, by its number: whichever key of ours hangs on it tells its name. One with another ttl is
    /// left to expire.
    async fn find_adopted(&self, adopted: i64, deadline: Instant) -> Result<Option<Alive>, Failure> {
        let entries = self.read_all(deadline).await?;
        let member = format!("members/{}", self.name);
        let keys = entries
            .iter()
            .filter(|entry| entry.path == "leader" || entry.path == member);
        let mut sessions = keys.filter_map(|entry| entry.session.as_deref());
        let Some(id) = sessions.find(|id| lease(id) == adopted) else {
            return Ok(None);
        };
        match self.renew_session(id, deadline).await {
            Ok(alive) if alive.ttl == counted(self.timing().ttl) => Ok(Some(alive)),
            Ok(_) | Err(Failure::SessionGone(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn make_session(&self, deadline: Instant) -> Result<Alive, Failure> {
        let mut own_node = self.checks.is_empty() && self.register_node(deadline).await?;
        loop {
            let ttl = asked(self.timing().ttl).max(*lock(&self.session.minimum));
            let mut wanted = json!({
                "Name": format!("{}-{}", self.scope, self.name),
                "TTL": format!("{}ms", ttl.as_millis()),
                "Behavior": "delete",
                // A lock that nobody renewed is over when it is over.
                "LockDelay": "0s",
                "Checks": self.checks,
                "NodeChecks": self.checks,
            });
            if own_node {
                wanted["Node"] = self.node.clone().into();
            }
            let sent_at = Boottime::now();
            let path = self.query("/v1/session/create", &[]);
            let answer = match self.put(path, wanted.to_string(), deadline).await {
                Err(DcsError::Credentials { .. }) if own_node => {
                    self.tell_about_the_node();
                    own_node = false;
                    continue;
                }
                answer => answer?,
            };
            let text = answer.text();
            let id = serde_json::from_str::<Value>(&text)
                .ok()
                .and_then(|body| body["ID"].as_str().map(str::to_owned));
            match id {
                Some(id) if lease(&id) != 0 => {
                    return Ok(Alive {
                        id,
                        sent_at,
                        ttl: ttl * MULTIPLIER,
                    });
                }
                _ if text.contains("Invalid Session TTL") && ttl < minimum_of(&text) => {
                    self.raise_minimum(minimum_of(&text));
                }
                _ => {
                    return Err(Failure::Dcs(DcsError::Answer {
                        endpoint: self.agent.endpoint(),
                        reason: format!("no session: {text}"),
                    }));
                }
            }
        }
    }

    fn raise_minimum(&self, minimum: Duration) {
        *lock(&self.session.minimum) = minimum;
        if !std::mem::replace(&mut lock(&self.session.told).minimum, true) {
            tracing::warn!(
                ttl = ?self.timing().ttl,
                "consul keeps a lock for {:?} at least (session_ttl_min): failovers take that long",
                minimum * MULTIPLIER
            );
        }
    }

    /// Registers the node our session belongs to; whether it is there.
    async fn register_node(&self, deadline: Instant) -> Result<bool, Failure> {
        let node = json!({
            "Node": self.node,
            "Address": self.address,
            "NodeMeta": {"external-node": "true", "external-probe": "false", "howdah-scope": self.scope},
        });
        let path = self.query("/v1/catalog/register", &[]);
        match self.put(path, node.to_string(), deadline).await {
            Ok(_) => Ok(true),
            Err(DcsError::Credentials { .. }) => {
                self.tell_about_the_node();
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn tell_about_the_node(&self) {
        if !std::mem::replace(&mut lock(&self.session.told).node, true) {
            tracing::warn!(
                node = self.node,
                "the token may not register a node (node:write and session:write for it): the lock ends at once when \
                 the Consul agent of this host leaves"
            );
        }
    }

    /// Extends the session by its whole ttl.
    pub(super) async fn renew_session(&self, id: &str, deadline: Instant) -> Result<Alive, Failure> {
        let path = self.query(&format!("/v1/session/renew/{id}"), &[]);
        let sent_at = Boottime::now();
        let reply = self.put(path, String::new(), deadline).await?;
        // A try that broke off may have been the one that was carried out: nothing later than the first counts.
        // Others answer with 404, too; Consul says which session there is none of.
        if reply.status == http::StatusCode::NOT_FOUND && reply.text().contains(id) {
            return Err(Failure::SessionGone(id.to_owned()));
        }
        let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let ours = body[0]["ID"] == *id;
        let ttl = body[0]["TTL"].as_str().and_then(go_duration);
        let Some(ttl) = ttl.filter(|_| ours) else {
            return Err(Failure::Dcs(DcsError::Answer {
                endpoint: self.agent.endpoint(),
                reason: format!("not the session that was renewed: {}", reply.text()),
            }));
        };
        let alive = Alive {
            id: id.to_owned(),
            sent_at,
            ttl: ttl * MULTIPLIER,
        };
        let mut now = lock(&self.session.now);
        if now.as_ref().is_some_and(|known| known.id == id) {
            *now = Some(alive.clone());
        }
        Ok(alive)
    }
}

/// The TTL to ask for, in whole milliseconds.
fn asked(ttl: Duration) -> Duration {
    let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(millis.div_ceil(u64::from(MULTIPLIER)).max(1))
}

/// What the store counts with where this ttl is asked for and not too short.
fn counted(ttl: Duration) -> Duration {
    asked(ttl) * MULTIPLIER
}

/// The least TTL in `Invalid Session TTL '100000000', must be between [10s=24h0m0s]`.
fn minimum_of(text: &str) -> Duration {
    let between = text.split_once('[').and_then(|(_, rest)| rest.split_once('='));
    between
        .and_then(|(minimum, _)| go_duration(minimum))
        .unwrap_or(USUAL_MINIMUM)
}

/// A duration as Go writes it: `7.5s`, `1000ms`, `24h0m0s`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        rest = after;
    }
    (!total.is_zero()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let millis = |text: &str| go_duration(text).map(|duration| duration.as_millis());
        assert_eq!(millis("1000ms"), Some(1000));
        assert_eq!(millis("7.5s"), Some(7500));
        assert_eq!(millis("24h0m0s"), Some(86_400_000));
        assert_eq!(millis("1m30s"), Some(90_000));
        for wrong in ["", "5", "s", "1y", "0s", "1..2s"] {
            assert_eq!(millis(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn half_of_the_ttl_is_asked_for_and_never_less() {
        assert_eq!(asked(Duration::from_secs(30)), Duration::from_secs(15));
        assert_eq!(asked(Duration::from_millis(2001)), Duration::from_millis(1001));
        assert_eq!(counted(Duration::from_millis(2001)), Duration::from_millis(2002));
    }

    #[test]
    fn the_least_ttl_is_read_from_the_refusal() {
        let text = "500: Invalid Session TTL '100000000', must be between [5s=24h0m0s]";
        assert_eq!(minimum_of(text), Duration::from_secs(5));
        assert_eq!(minimum_of("Invalid Session TTL"), USUAL_MINIMUM);
    }

    #[test]
    fn a_session_has_a_number() {
        assert_eq!(
            lease("e42466c1-113f-6cb7-c77c-9de001dcfb1c"),
            0xe424_66c1_113f_6cb7_u64.cast_signed()
        );
        assert_eq!(lease(""), 0);
        assert_eq!(lease("no uuid"), 0);
    }
}
