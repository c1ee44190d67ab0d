//! Has a data directory diverged from the leader? (contract: HA rules §12b)

use super::{Down, LeaderFacts, Parent, Running, Standing};
use crate::model::{DbState, Lsn, Timeline, switch_point};

/// How far a directory goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// The timeline it is on.
    pub timeline: Timeline,
    /// Where that timeline begins, if it is known.
    pub parent: Option<Parent>,
    /// It has everything up to this position, and nothing after it. `None`: a crashed primary's, which has at least its
    /// last checkpoint; how much came after it is unknown.
    pub end: Option<Lsn>,
}

impl Reach {
    /// Of a running replica: what it has replayed counts, what it has only received can still be thrown away.
    #[must_use]
    pub const fn of_running(running: &Running) -> Self {
        let end = match running.standing {
            Standing::Primary { flushed } => flushed,
            Standing::Replica { replayed, .. } => replayed,
        };
        Self {
            timeline: running.timeline,
            parent: running.parent,
            end: Some(end),
        }
    }

    /// Of a stopped directory. A cleanly stopped primary ends where its shutdown checkpoint record ends: if the
    /// next timeline begins exactly there, nothing was lost.
    #[must_use]
    pub fn of_down(down: &Down) -> Self {
        let control = &down.control;
        let (timeline, end) = match (control.state, down.checkpoint_end) {
            (DbState::ShutDown, Some(end)) => (control.timeline, Some(end)),
            (state, _) if state.was_primary() => (down.timeline(), None),
            _ => {
                let (timeline, lsn) = control.end();
                (timeline, Some(lsn))
            }
        };
        Self {
            timeline,
            parent: down.parent.filter(|_| timeline == down.timeline()),
            end,
        }
    }
}

/// Answer of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The leader's history contains ours: it can be followed as it is.
    Follow,
    /// We are on the leader's timeline and have more than the leader. If that lasts, it is another history under the same
    /// number.
    Ahead,
    /// We have something the leader's history does not contain.
    Diverged {
        /// pg_rewind can see it. It takes an equal timeline number for an equal history (PostgreSQL:
        /// `pg_rewind.c`, "source and target cluster are on the same timeline").
        rewindable: bool,
    },
    /// The leader is still in recovery; ask again.
    LeaderNotReady,
}

/// Compares our reach with the leader's timeline history.
#[must_use]
pub fn verdict(reach: Reach, leader: &LeaderFacts) -> Verdict {
    let timeline = reach.timeline;
    if leader.in_recovery {
        return Verdict::LeaderNotReady;
    }
    if timeline > leader.timeline || begins_elsewhere(reach, leader) {
        let rewindable = timeline != leader.timeline;
        return Verdict::Diverged { rewindable };
    }
    if timeline == leader.timeline {
        return match reach.end {
            Some(end) if end > leader.flushed => Verdict::Ahead,
            _ => Verdict::Follow,
        };
    }
    match (reach.end, switch_point(&leader.history, timeline)) {
        (Some(lsn), Some(end)) if lsn <= end => Verdict::Follow,
        _ => Verdict::Diverged { rewindable: true },
    }
}

/// Two members that promote while they do not know of each other give their timelines the same number.
fn begins_elsewhere(reach: Reach, leader: &LeaderFacts) -> bool {
    let rows = &leader.history;
    let index = if reach.timeline == leader.timeline {
        Some(rows.len())
    } else {
        rows.iter().position(|row| row.timeline == reach.timeline)
    };
    // A history file that is not there, or does not name the timeline, proves nothing here.
    let before = index.and_then(|index| rows.get(index.checked_sub(1)?));
    match (reach.parent, before) {
        (Some(ours), Some(row)) => ours != (row.timeline, row.lsn),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::parse_history_file;

    fn leader(timeline: u32, history: &str) -> LeaderFacts {
        LeaderFacts {
            in_recovery: false,
            timeline: Timeline(timeline),
            history: parse_history_file(history),
            flushed: Lsn(0x900),
        }
    }

    const fn exactly(timeline: u32, end: u64) -> Reach {
        Reach {
            timeline: Timeline(timeline),
            parent: None,
            end: Some(Lsn(end)),
        }
    }

    const fn beyond(timeline: u32) -> Reach {
        Reach {
            end: None,
            ..exactly(timeline, 0)
        }
    }

    const fn from(parent: u32, at: u64, reach: Reach) -> Reach {
        Reach {
            parent: Some((Timeline(parent), Lsn(at))),
            ..reach
        }
    }

    const HISTORY: &str = "1\t0/100\tr\n2\t0/200\tr\n";
    const DIVERGED: Verdict = Verdict::Diverged { rewindable: true };
    const FORKED: Verdict = Verdict::Diverged { rewindable: false };

    #[test]
    fn compares_with_the_switch_point() {
        let cases = [
            (exactly(3, 0x900), Verdict::Follow),
            (exactly(1, 0xFF), Verdict::Follow),
            (exactly(1, 0x100), Verdict::Follow),
            (exactly(1, 0x101), DIVERGED),
            (exactly(2, 0x200), Verdict::Follow),
            (exactly(4, 0), DIVERGED),
            (beyond(3), Verdict::Follow),
            (beyond(2), DIVERGED),
        ];
        for (reach, expected) in cases {
            assert_eq!(verdict(reach, &leader(3, HISTORY)), expected, "{reach:?}");
        }
    }

    #[test]
    fn an_equal_number_is_no_equal_history() {
        let cases = [
            (from(2, 0x200, exactly(3, 0x300)), Verdict::Follow),
            (from(2, 0x180, exactly(3, 0x300)), FORKED),
            (from(1, 0x200, exactly(3, 0x300)), FORKED),
            (from(2, 0x180, beyond(3)), FORKED),
            // An older number that begins elsewhere: pg_rewind compares the histories then.
            (from(1, 0x100, exactly(2, 0x150)), Verdict::Follow),
            (from(1, 0x80, exactly(2, 0x150)), DIVERGED),
            // More than the leader has written cannot come from it.
            (exactly(3, 0x901), Verdict::Ahead),
        ];
        for (reach, expected) in cases {
            assert_eq!(verdict(reach, &leader(3, HISTORY)), expected, "{reach:?}");
        }
        // Without the leader's history file there is nothing to compare with.
        assert_eq!(
            verdict(from(2, 1, exactly(3, 0x300)), &leader(3, "")),
            Verdict::Follow
        );
    }

    #[test]
    fn a_timeline_the_leader_never_had_is_divergence() {
        assert_eq!(verdict(exactly(2, 1), &leader(3, "1\t0/100\tr\n")), DIVERGED);
    }

    #[test]
    fn a_leader_in_recovery_proves_nothing() {
        let facts = LeaderFacts {
            in_recovery: true,
            ..leader(1, "")
        };
        assert_eq!(verdict(exactly(9, 1), &facts), Verdict::LeaderNotReady);
    }
}
