//! Reading CLOCK_BOOTTIME, the one clock on which deadlines cross a process boundary.
//!
//! Boot time goes on while the machine is suspended and is the same for every process of a time
//! namespace, so "this node may be primary until then" survives a suspended host, and a deadline
//! written by the agent means the same to init. What does not live here: decisions. Pure code takes
//! a [`Boottime`] as an argument.

use std::ops::Add;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment on CLOCK_BOOTTIME, in nanoseconds since the machine started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Boottime(u64);

impl Boottime {
    /// The moment `nanos` nanoseconds after the machine started.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the machine started.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it is still to come.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This moment moved back by `by`, at most to the start of the machine.
    #[must_use]
    pub fn saturating_sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(by)))
    }
}

impl Add<Duration> for Boottime {
    type Output = Self;

    /// Saturates: a deadline that no clock can show never passes.
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(nanos(by)))
    }
}

/// What CLOCK_BOOTTIME shows now.
#[must_use]
pub fn boottime() -> Boottime {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    Boottime(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_stops_at_both_ends_of_the_clock() {
        let start = Boottime::from_nanos(5);
        assert_eq!(start + Duration::from_nanos(7), Boottime::from_nanos(12));
        assert_eq!((start + Duration::MAX).as_nanos(), u64::MAX);
        assert_eq!(start.saturating_sub(Duration::from_secs(1)).as_nanos(), 0);
        assert_eq!(
            start.saturating_since(Boottime::from_nanos(9)),
            Duration::ZERO
        );
        assert_eq!(
            Boottime::from_nanos(9).saturating_since(start),
            Duration::from_nanos(4)
        );
    }

    #[test]
    fn the_clock_agrees_with_the_uptime_of_the_kernel() {
        let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
        let uptime: f64 = text
            .split(' ')
            .next()
            .and_then(|s| s.parse().ok())
            .unwrap_or(0.0);
        let shown = Duration::from_nanos(boottime().as_nanos()).as_secs_f64();
        assert!(
            (shown - uptime).abs() < 5.0,
            "clock {shown} s, /proc/uptime {uptime} s"
        );
    }
}
