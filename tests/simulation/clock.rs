//! The clock of one host: CLOCK_BOOTTIME with drift.
//!
//! What `ha::lease::margin` promises: a tenth of ttl, at most 1.5 s, so between two clocks (this host's and the store's)
//! 10 % up to a ttl of 15 s, and 5 % at 30 s. Each clock here drifts by at most 2 %, so two of them by at most 4.1 %,
//! which leaves the rest of the margin to what init needs to kill.

use std::{cell::Cell, time::Duration};

use howdah::clock::Boottime;

use crate::exec::Nanos;

/// Most a clock gains or loses, in millionths.
pub(crate) const DRIFT_PPM_MAX: u64 = 20_000;

#[derive(Debug)]
pub(crate) struct Clock {
    booted: Cell<Nanos>,
    /// Reading at boot.
    base: Cell<u64>,
    /// Its second lasts `1_000_000 / rate` true microseconds.
    rate: Cell<u64>,
    /// How far the wall clock was set wrong, in seconds.
    pub(crate) wall_offset: Cell<i64>,
    /// Mutants only: it follows the wall clock.
    pub(crate) follows_wall: Cell<bool>,
    /// Mutants only: time it has stood still.
    pub(crate) missed: Cell<Nanos>,
}

impl Clock {
    pub(crate) const fn new(base: u64, rate: u64) -> Self {
        Self {
            booted: Cell::new(0),
            base: Cell::new(base),
            rate: Cell::new(rate),
            wall_offset: Cell::new(0),
            follows_wall: Cell::new(false),
            missed: Cell::new(0),
        }
    }

    pub(crate) fn reboot(&self, now: Nanos) {
        self.booted.set(now);
        self.base.set(2_000_000_000);
        self.missed.set(0);
    }

    pub(crate) fn read(&self, now: Nanos) -> Boottime {
        let passed = u128::from(now - self.booted.get() - self.missed.get()) * u128::from(self.rate.get());
        let reading = self.base.get() + u64::try_from(passed / 1_000_000).unwrap_or(0);
        match self.follows_wall.get() {
            false => Boottime(reading),
            true => Boottime(reading.saturating_add_signed(self.wall_offset.get() * 1_000_000_000)),
        }
    }

    /// True time that passes while this clock counts `time`.
    pub(crate) fn lasts(&self, time: Duration) -> Nanos {
        let exact = time.as_nanos() * 1_000_000 / u128::from(self.rate.get());
        u64::try_from(exact)
            .unwrap_or(u64::MAX / 4)
            .saturating_add(1)
            .min(u64::MAX / 4)
    }
}
