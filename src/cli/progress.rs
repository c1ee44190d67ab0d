//! How far a copy of a member's data is, in a line for people. Pure.

use std::time::Duration;

use serde_json::Value;

/// What a member says of the copy that it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copied {
    done: u64,
    total: u64,
}

impl Copied {
    /// From the member's status; `None` while it copies nothing, or nothing yet.
    pub(super) fn of(status: &Value) -> Option<Self> {
        let copying = &status["howdah"]["copying"];
        let number = |key: &str| copying[key].as_u64();
        let (done, total) = (number("done_bytes")?, number("total_bytes")?);
        (done > 0).then_some(Self { done, total })
    }

    /// `1.2 GiB of 3.4 GiB (35 %), 110 MiB/s, 20 s left`; `before`: an earlier look, and how long ago that was.
    pub(super) fn line(self, before: Option<(Self, Duration)>) -> String {
        let mut line = format!("{} of {}", bytes(self.done), bytes(self.total.max(self.done)));
        if let Some(share) = (self.done.saturating_mul(100)).checked_div(self.total) {
            line.push_str(&format!(" ({} %)", share.min(100)));
        }
        let Some((before, passed)) = before else {
            return line;
        };
        let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = self.done.saturating_sub(before.done).saturating_mul(1000) / millis;
        line.push_str(&format!(", {}/s", bytes(rate)));
        if let Some(left) = self.total.saturating_sub(self.done).checked_div(rate) {
            line.push_str(&format!(", {} left", duration(left)));
        }
        line
    }
}

/// Three digits at most, and a unit.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut whole = count;
    let mut tenths = 0;
    while whole >= 1024 && unit + 1 < UNITS.len() {
        tenths = whole % 1024 * 10 / 1024;
        whole /= 1024;
        unit += 1;
    }
    if unit > 0 && whole < 10 {
        format!("{whole}.{tenths} {}", UNITS[unit])
    } else {
        format!("{whole} {}", UNITS[unit])
    }
}

/// Whole seconds, minutes or hours.
fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_copy_is_told_with_its_rate_and_what_is_left() {
        let at = |done: u64, total: u64| {
            Copied::of(&json!({"howdah": {"copying": {"done_bytes": done, "total_bytes": total}}}))
        };
        let (first, now) = (
            at(100 << 20, 3 << 30).expect("some"),
            at(1300 << 20, 3 << 30).expect("some"),
        );
        assert_eq!(now.line(None), "1.2 GiB of 3.0 GiB (42 %)");
        assert_eq!(
            now.line(Some((first, Duration::from_secs(10)))),
            "1.2 GiB of 3.0 GiB (42 %), 120 MiB/s, 14 s left"
        );
        assert_eq!(
            now.line(Some((now, Duration::from_secs(10)))),
            "1.2 GiB of 3.0 GiB (42 %), 0 B/s",
            "nobody knows what is left of a copy that stands still"
        );
        // The total is an estimate.
        let beyond = at(11 << 20, 10 << 20).expect("some");
        assert_eq!(beyond.line(None), "11 MiB of 11 MiB (100 %)");
        assert_eq!(at(0, 10), None, "a checkpoint comes first");
        assert_eq!(Copied::of(&json!({"state": "running"})), None, "other software");
    }

    #[test]
    fn sizes_and_times_are_short() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (10 << 10, "10 KiB"),
            (5 << 40, "5.0 TiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (seconds, text) in [(0, "0 s"), (119, "119 s"), (150, "2 min"), (9000, "2 h")] {
            assert_eq!(duration(seconds), text);
        }
    }
}
