//! How often a crashed agent is started again. Pure: the moment of the crash is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Boottime;

/// The longest pause before a restart; with the default of five it is never reached.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// The pause before the second restart within a window; it doubles from there.
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// Restarts allowed within a sliding window.
#[derive(Debug)]
pub(super) struct Budget {
    restarts_max: usize,
    window: Duration,
    restarts: VecDeque<Boottime>,
}

impl Budget {
    pub(super) fn new(restarts_max: usize, window: Duration) -> Self {
        Self {
            restarts_max,
            window,
            restarts: VecDeque::new(),
        }
    }

    /// The agent crashed at `now`: how long to wait before the next start, or `None` if it has had
    /// all its starts. The first restart of a window is immediate, because postgres runs without
    /// anybody renewing its lease.
    pub(super) fn crashed(&mut self, now: Boottime) -> Option<Duration> {
        while self
            .restarts
            .front()
            .is_some_and(|at| now.since(*at) >= self.window)
        {
            self.restarts.pop_front();
        }
        if self.restarts.len() >= self.restarts_max {
            return None;
        }
        let pause = match u32::try_from(self.restarts.len()) {
            Ok(0) => Duration::ZERO,
            Ok(n) => PAUSE_FIRST
                .saturating_mul(2_u32.saturating_pow(n - 1))
                .min(PAUSE_MAX),
            Err(_) => PAUSE_MAX,
        };
        self.restarts.push_back(now);
        Some(pause)
    }

    /// Restarts counted in the current window.
    pub(super) fn used(&self) -> usize {
        self.restarts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(n: u64) -> Boottime {
        Boottime(n * 1_000_000_000)
    }

    #[test]
    fn the_first_restart_is_immediate_and_the_sixth_is_refused() {
        let mut budget = Budget::new(5, Duration::from_secs(60));
        let pauses: Vec<_> = (0..6).map(|n| budget.crashed(second(n))).collect();
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(pauses, [ms(0), ms(100), ms(200), ms(400), ms(800), None]);
    }

    #[test]
    fn a_restart_is_forgotten_after_the_window() {
        let mut budget = Budget::new(2, Duration::from_secs(60));
        assert!(budget.crashed(second(0)).is_some());
        assert!(budget.crashed(second(30)).is_some());
        assert_eq!(budget.crashed(second(59)), None);
        assert_eq!(budget.crashed(second(60)), Some(Duration::from_millis(100)));
        assert_eq!(budget.used(), 2);
        assert_eq!(budget.crashed(second(1000)), Some(Duration::ZERO));
    }
}
