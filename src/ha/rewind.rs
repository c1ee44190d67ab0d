//! Has a data directory diverged from the leader? (contract: HA rules §12b)

use super::{Down, LeaderFacts, Running, Standing};
use crate::model::{DbState, Lsn, Timeline, switch_point};

/// How far a directory goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Everything up to and including this position, nothing after it.
    Exactly(Timeline, Lsn),
    /// At least a crashed primary's last checkpoint; how much came after it is unknown.
    Beyond(Timeline),
}

impl Reach {
    /// Of a running replica: what it has replayed counts, what it has only received can still be thrown away.
    #[must_use]
    pub const fn of_running(running: &Running) -> Self {
        match running.standing {
            Standing::Primary { flushed } => Self::Exactly(running.timeline, flushed),
            Standing::Replica { replayed, .. } => Self::Exactly(running.timeline, replayed),
        }
    }

    /// Of a stopped directory. A cleanly stopped primary ends where its shutdown checkpoint record ends: if the
    /// next timeline begins exactly there, nothing was lost.
    #[must_use]
    pub fn of_down(down: &Down) -> Self {
        let control = &down.control;
        match (control.state, down.checkpoint_end) {
            (DbState::ShutDown, Some(end)) => Self::Exactly(control.timeline, end),
            (state, _) if state.was_primary() => Self::Beyond(down.timeline()),
            _ => {
                let (timeline, lsn) = control.end();
                Self::Exactly(timeline, lsn)
            }
        }
    }
}

/// Answer of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The leader's history contains ours: it can be followed as it is.
    Follow,
    /// We have something the leader's history does not contain.
    Diverged,
    /// The leader is still in recovery; ask again.
    LeaderNotReady,
}

/// Compares our reach with the leader's timeline history.
#[must_use]
pub fn verdict(reach: Reach, leader: &LeaderFacts) -> Verdict {
    let (Reach::Exactly(timeline, _) | Reach::Beyond(timeline)) = reach;
    if leader.in_recovery {
        return Verdict::LeaderNotReady;
    }
    if timeline > leader.timeline {
        return Verdict::Diverged;
    }
    if timeline == leader.timeline {
        return Verdict::Follow;
    }
    match (reach, switch_point(&leader.history, timeline)) {
        (Reach::Exactly(_, lsn), Some(end)) if lsn <= end => Verdict::Follow,
        _ => Verdict::Diverged,
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
        }
    }

    #[test]
    fn compares_with_the_switch_point() {
        let history = "1\t0/100\tr\n2\t0/200\tr\n";
        let cases = [
            (Reach::Exactly(Timeline(3), Lsn(0x999)), Verdict::Follow),
            (Reach::Exactly(Timeline(1), Lsn(0xFF)), Verdict::Follow),
            (Reach::Exactly(Timeline(1), Lsn(0x100)), Verdict::Follow),
            (Reach::Exactly(Timeline(1), Lsn(0x101)), Verdict::Diverged),
            (Reach::Exactly(Timeline(2), Lsn(0x200)), Verdict::Follow),
            (Reach::Exactly(Timeline(4), Lsn(0)), Verdict::Diverged),
            (Reach::Beyond(Timeline(3)), Verdict::Follow),
            (Reach::Beyond(Timeline(2)), Verdict::Diverged),
        ];
        for (reach, expected) in cases {
            assert_eq!(verdict(reach, &leader(3, history)), expected, "{reach:?}");
        }
    }

    #[test]
    fn a_timeline_the_leader_never_had_is_divergence() {
        assert_eq!(
            verdict(Reach::Exactly(Timeline(2), Lsn(1)), &leader(3, "1\t0/100\tr\n")),
            Verdict::Diverged
        );
    }

    #[test]
    fn a_leader_in_recovery_proves_nothing() {
        let facts = LeaderFacts {
            in_recovery: true,
            ..leader(1, "")
        };
        assert_eq!(
            verdict(Reach::Exactly(Timeline(9), Lsn(1)), &facts),
            Verdict::LeaderNotReady
        );
    }
}
