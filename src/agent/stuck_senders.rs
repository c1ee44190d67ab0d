//! Walsenders that hold up a shutdown. Before PostgreSQL writes its shutdown checkpoint every walsender has to stand by
//! (`WalSndWaitStopping`), and one that waits inside a send to a host that is gone does so only after
//! `wal_sender_timeout`. Until then nobody can write and the lock cannot be given away. Ended, they hold up nothing, and
//! the shutdown stays a clean one; what their receivers lack they get from the next leader.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    clock::Boottime,
    model::{Lsn, MemberName},
    postgres::query::{LocalView, Where},
};

/// A sender that has not got rid of anything for this long is stuck, where an heir is served by another.
const STUCK: Duration = Duration::from_secs(1);
/// Where none is: the stuck one may be the only one a successor could get the rest from.
const STUCK_ALONE: Duration = Duration::from_secs(3);

/// The walsenders of a server that is to stop.
#[derive(Debug, Default)]
pub(super) struct Senders {
    /// All that was written had been flushed up to here before the stop.
    flushed: Lsn,
    /// By pid.
    seen: BTreeMap<i32, Seen>,
}

#[derive(Debug)]
struct Seen {
    heir: bool,
    sent: Option<Lsn>,
    since: Boottime,
}

impl Senders {
    /// As last looked at before the stop.
    pub(super) fn of(view: &LocalView, heirs: &[(MemberName, String)], now: Boottime) -> Self {
        let Where::Primary(primary) = &view.place else {
            return Self::default();
        };
        let seen = view.senders.iter().filter_map(|sender| {
            let heir = heirs.iter().any(|(name, _)| name.0 == sender.application_name);
            let seen = Seen {
                heir,
                sent: sender.sent_lsn,
                since: now,
            };
            Some((sender.pid?, seen))
        });
        Self {
            flushed: primary.flush_lsn,
            seen: seen.collect(),
        }
    }

    /// Looks again (`sent`: how far one has sent, `None` if nobody can tell); returns those that are stuck. One of
    /// which nothing is known is left alone.
    pub(super) fn stuck(&mut self, sent: impl Fn(i32) -> Option<Lsn>, now: Boottime) -> Vec<i32> {
        for (pid, seen) in &mut self.seen {
            let position = sent(*pid);
            if position != seen.sent {
                (seen.sent, seen.since) = (position, now);
            }
        }
        let done = |seen: &Seen| seen.sent.is_some_and(|sent| sent >= self.flushed);
        let served = self.seen.values().any(|seen| seen.heir && done(seen));
        let patience = if served { STUCK } else { STUCK_ALONE };
        let stuck = self.seen.iter().filter(|(_, seen)| {
            seen.sent.is_some_and(|sent| sent < self.flushed) && now.since(seen.since) >= patience
        });
        stuck.map(|(pid, _)| *pid).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Boottime = Boottime(1_000_000_000_000);

    fn senders(seen: &[(i32, bool, u64)]) -> Senders {
        let seen = seen.iter().map(|(pid, heir, sent)| {
            let seen = Seen {
                heir: *heir,
                sent: Some(Lsn(*sent)),
                since: NOW,
            };
            (*pid, seen)
        });
        Senders {
            flushed: Lsn(100),
            seen: seen.collect(),
        }
    }

    fn later(ms: u64) -> Boottime {
        NOW + Duration::from_millis(ms)
    }

    fn at(positions: &[(i32, u64)]) -> impl Fn(i32) -> Option<Lsn> {
        move |pid| positions.iter().find(|(p, _)| *p == pid).map(|(_, at)| Lsn(*at))
    }

    #[test]
    fn one_that_stands_still_short_of_the_end_is_stuck() {
        let mut both = senders(&[(1, true, 100), (2, true, 50)]);
        let still = at(&[(1, 100), (2, 50)]);
        assert!(both.stuck(&still, later(900)).is_empty(), "not yet");
        assert_eq!(both.stuck(&still, later(1000)), [2]);
        // It moves, however slowly.
        assert!(both.stuck(at(&[(1, 100), (2, 51)]), later(1100)).is_empty());
        assert_eq!(both.stuck(at(&[(1, 100), (2, 51)]), later(2100)), [2]);
    }

    #[test]
    fn the_only_hope_of_the_heirs_gets_more_time() {
        for other in [(1, false, 100), (1, true, 99)] {
            let mut few = senders(&[other, (2, true, 50)]);
            let still = move |pid| Some(Lsn(if pid == 1 { other.2 } else { 50 }));
            assert!(few.stuck(still, later(2900)).is_empty(), "{other:?}");
            assert!(few.stuck(still, later(3000)).contains(&2), "{other:?}");
        }
    }

    #[test]
    fn one_that_cannot_be_told_is_left_alone() {
        let mut gone = senders(&[(1, true, 100), (2, true, 50)]);
        assert!(gone.stuck(|_| None, later(9000)).is_empty());
        assert!(Senders::default().stuck(|_| None, later(9000)).is_empty());
    }
}
