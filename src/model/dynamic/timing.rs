//! ttl, loop_wait and retry_timeout, and the rule that ties them together.

use std::time::Duration;

/// The three times everything else is derived from, after the timeout rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Lease of the leader lock.
    pub ttl: Duration,
    /// Heartbeat of the HA loop when nothing happens.
    pub loop_wait: Duration,
    /// Budget for retrying the DCS and postgres.
    pub retry_timeout: Duration,
}

impl Timing {
    /// Applies minimums and the rule `loop_wait + 2*retry_timeout <= ttl` to this member's own copy
    /// (contract: environment §4). The least ttl is 3 s; Patroni members clamp it to 20 s themselves.
    #[must_use]
    pub fn adjusted(ttl_s: i64, loop_wait_s: i64, retry_timeout_s: i64) -> Self {
        let ttl = ttl_s.clamp(3, 86_400);
        let mut loop_wait = loop_wait_s.clamp(1, 86_400);
        let mut retry = retry_timeout_s.clamp(1, 86_400);
        if loop_wait + 2 * retry > ttl {
            loop_wait = ttl - 2 * retry;
            if loop_wait < 1 {
                loop_wait = 1;
                retry = (ttl - 1) / 2;
            }
        }
        let seconds = |n: i64| Duration::from_secs(n.unsigned_abs());
        Self {
            ttl: seconds(ttl),
            loop_wait: seconds(loop_wait),
            retry_timeout: seconds(retry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_rule_bends_loop_wait_first() {
        let secs = |t: Timing| (t.ttl.as_secs(), t.loop_wait.as_secs(), t.retry_timeout.as_secs());
        assert_eq!(secs(Timing::adjusted(30, 10, 10)), (30, 10, 10));
        assert_eq!(secs(Timing::adjusted(25, 10, 10)), (25, 5, 10));
        assert_eq!(secs(Timing::adjusted(20, 10, 10)), (20, 1, 9));
        assert_eq!(secs(Timing::adjusted(5, 1, 2)), (5, 1, 2));
        assert_eq!(secs(Timing::adjusted(-4, 0, 0)), (3, 1, 1));
    }
}
