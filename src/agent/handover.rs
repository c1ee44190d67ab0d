//! The last hand-over that this member took part in, by its phases: where the time between two commits went.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// Which side of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It led before, and handed over in order.
    Gave,
    /// It leads since.
    Took,
}

impl Side {
    /// As it is published.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gave => "gave",
            Self::Took => "took",
        }
    }
}

/// Name of a phase, and how long it took. The names are labels of a metric: see README.
pub type Phase = (&'static str, Duration);

/// A checkpoint beforehand, so that the one of the shutdown is short; commits go on meanwhile.
pub const CHECKPOINT: &str = "checkpoint";
/// From SIGTERM of the postmaster until it is shut down: backends end, the checkpoint is written.
pub const SHUT_DOWN: &str = "shut_down";
/// Until a successor was known to have everything.
pub const RECEIVED: &str = "received";
/// Until the lock was free in the store.
pub const RELEASED: &str = "released";
/// From seeing the lock free until the promotion could begin: taking it, and what has to be done before.
pub const TAKEN: &str = "taken";
/// Asking PostgreSQL whether there is anything to promote.
pub const ASKED: &str = "asked";
/// Writing the request.
pub const REQUESTED: &str = "requested";
/// Until PostgreSQL accepts writes.
pub const PROMOTED: &str = "promoted";

/// A hand-over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// Which side this member was.
    pub side: Side,
    /// When it was over, by the clock of this host.
    pub at: Timestamp,
    /// In their order.
    pub phases: Vec<Phase>,
}

impl Handover {
    /// One that is over now.
    #[must_use]
    pub fn now(side: Side, phases: Vec<Phase>) -> Self {
        Self {
            side,
            at: Timestamp::now(),
            phases,
        }
    }

    /// As it is published.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let millis = |(name, took): &Phase| ((*name).to_owned(), json!(tenths(*took)));
        let phases: Map<String, Value> = self.phases.iter().map(millis).collect();
        json!({
            "side": self.side.as_str(),
            "at": self.at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
            "milliseconds": phases,
        })
    }
}

/// Milliseconds with one decimal.
fn tenths(took: Duration) -> f64 {
    (took.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_keep_their_order() {
        let handover = Handover {
            side: Side::Gave,
            at: Timestamp::from_millisecond(1_767_600_001_250).expect("a time"),
            phases: vec![
                (SHUT_DOWN, Duration::from_micros(110_460)),
                (RECEIVED, Duration::from_micros(40)),
                (RELEASED, Duration::from_millis(3)),
            ],
        };
        assert_eq!(
            handover.to_json().to_string(),
            r#"{"side":"gave","at":"2026-01-05T08:00:01.250Z","milliseconds":{"shut_down":110.5,"received":0.0,"released":3.0}}"#
        );
    }
}
