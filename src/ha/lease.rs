//! The times a hold on the lock is judged by. All on CLOCK_BOOTTIME of this host.
//!
//! The store counts `ttl` from when it *processed* our request, so never earlier than from when we sent it. The
//! margin covers drift between two clocks, and a store whose own leader changed between answering and counting.
//!
//! ```text
//! sent_at ────────────────────────────► demote_at ──────► fence_at ──margin──► sent_at + ttl
//!          renewals every interval()     we stop postgres   init kills all      another may hold the lock
//! ```

use std::time::Duration;

use crate::{clock::Boottime, dcs::Hold};

/// Until when a hold counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// From here on postgres is being stopped if no renewal has come.
    pub demote_at: Boottime,
    /// By here postgres is down, or init ends everything.
    pub fence_at: Boottime,
}

/// What the right to be primary rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// The lease of the leader lock.
    Lease(Hold),
    /// The DCS does not answer, and all other members have promised not to lead ([`super::failsafe`]).
    Consent {
        /// When the oldest of the questions they said yes to was sent.
        asked_at: Boottime,
        /// How long their promises last, at least.
        ttl: Duration,
        /// Lease of the lock as it was last held.
        lease: i64,
    },
}

impl Right {
    /// In the form all deadlines are computed from: a consent counts like a renewal sent when it was asked for.
    #[must_use]
    pub const fn hold(&self) -> Hold {
        match *self {
            Self::Lease(hold) => hold,
            Self::Consent { asked_at, ttl, lease } => Hold {
                sent_at: asked_at,
                ttl,
                lease,
            },
        }
    }
}

/// Safety margin before the end of the lease: a tenth of ttl, between 0.3 and 1.5 s.
#[must_use]
pub fn margin(ttl: Duration) -> Duration {
    (ttl / 10).clamp(Duration::from_millis(300), Duration::from_millis(1500))
}

/// Time reserved for stopping postgres before the fence: a fifth of ttl, between 0.5 and 3 s.
#[must_use]
pub fn stop_budget(ttl: Duration) -> Duration {
    (ttl / 5).clamp(Duration::from_millis(500), Duration::from_secs(3))
}

/// How often the lease is renewed: a sixth of ttl, and no slower than every 5 s. A renewal is one keepalive and one
/// read; asked for this often, several may fail before the time of a primary is up, however short the lease.
#[must_use]
pub fn interval(ttl: Duration) -> Duration {
    (ttl / 6).clamp(Duration::from_millis(300), Duration::from_secs(5))
}

/// How long one renewal may take: so that a second attempt fits in before the deadline when the first gets no answer.
#[must_use]
pub fn attempt_limit(ttl: Duration) -> Duration {
    (ttl / 4).max(Duration::from_millis(300))
}

/// The deadlines of a hold.
#[must_use]
pub fn deadlines(hold: &Hold) -> Deadlines {
    let fence_at = (hold.sent_at + hold.ttl).minus(margin(hold.ttl));
    Deadlines {
        demote_at: fence_at.minus(stop_budget(hold.ttl)),
        fence_at,
    }
}

/// The hold that a record of init's (`fence_at`, lease) stands for after a restart of the agent.
#[must_use]
pub fn hold_of_record(fence_at: Boottime, lease: i64, ttl: Duration) -> Hold {
    Hold {
        sent_at: (fence_at + margin(ttl)).minus(ttl),
        ttl,
        lease,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn postgres_is_down_well_before_another_may_lead() {
        for seconds in 3..=120 {
            let hold = Hold {
                sent_at: Boottime(0) + S,
                ttl: S * seconds,
                lease: 1,
            };
            let Deadlines { demote_at, fence_at } = deadlines(&hold);
            let end = hold.sent_at + hold.ttl;
            assert!(
                hold.sent_at < demote_at && demote_at < fence_at && fence_at < end,
                "ttl {seconds}"
            );
            assert!(end.since(fence_at) >= Duration::from_millis(300));
            let second_attempt = interval(hold.ttl) + attempt_limit(hold.ttl);
            assert!(
                demote_at.since(hold.sent_at) > second_attempt,
                "ttl {seconds}: one lost renewal must not demote"
            );
        }
    }

    #[test]
    fn a_record_gives_the_same_deadline_back() {
        let hold = Hold {
            sent_at: Boottime(0) + S * 100,
            ttl: S * 30,
            lease: 7,
        };
        assert_eq!(hold_of_record(deadlines(&hold).fence_at, 7, S * 30), hold);
    }
}
