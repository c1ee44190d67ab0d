//! What each signal sent to init means. A table and nothing else: blocking, reading and forwarding
//! signals is the business of `supervisor.rs`.
//!
//! | signal            | meaning                                                                  |
//! |-------------------|--------------------------------------------------------------------------|
//! | SIGTERM           | hand the leader lock over, then stop                                      |
//! | SIGINT            | the same, fast: do not wait for a successor                               |
//! | SIGQUIT           | stop at once (postgres: immediate shutdown); what is left later is killed |
//! | SIGTERM, SIGINT again | hurry: each one goes a step further, SIGTERM → SIGINT → SIGQUIT       |
//! | SIGHUP            | reload the configuration                                                  |
//! | SIGUSR1           | debug log on, or off again                                                |
//! | SIGUSR2           | write the state to the log                                                |
//! | SIGCHLD           | a child ended                                                             |
//! | every other       | ignored; this includes SIGTSTP, because a stopped init would be no fence  |

use nix::sys::signal::Signal;

/// How urgently a stop was asked for, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Hand over to a replica, then stop cleanly.
    HandOver,
    /// Stop cleanly without waiting for a successor.
    Fast,
    /// Stop without a clean shutdown of postgres.
    Immediate,
}

impl Stop {
    /// The signal that asks the agent for it.
    #[must_use]
    pub const fn signal(self) -> Signal {
        match self {
            Self::HandOver => Signal::SIGTERM,
            Self::Fast => Signal::SIGINT,
            Self::Immediate => Signal::SIGQUIT,
        }
    }

    /// What a further request makes of a stop that is already under way: at least what it says and
    /// at least one step more than before. `None`: nothing more urgent is left.
    #[must_use]
    pub fn escalate(asked: Option<Self>, wanted: Self) -> Option<Self> {
        let hurried = match asked {
            None => wanted,
            Some(Self::HandOver) => Self::Fast,
            Some(Self::Fast) => Self::Immediate,
            Some(Self::Immediate) => return None,
        };
        Some(hurried.max(wanted))
    }
}

/// What init does about a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Stop, with this urgency.
    Stop(Stop),
    /// Passed on: the agent reloads.
    Reload,
    /// Passed on, and init changes its own log level too.
    ToggleDebug,
    /// Passed on, and init logs its own state too.
    Dump,
    /// Some child changed state.
    Child,
    /// Nothing.
    Ignored,
}

/// The table above.
#[must_use]
pub const fn meaning(signal: Signal) -> Meaning {
    match signal {
        Signal::SIGTERM => Meaning::Stop(Stop::HandOver),
        Signal::SIGINT => Meaning::Stop(Stop::Fast),
        Signal::SIGQUIT => Meaning::Stop(Stop::Immediate),
        Signal::SIGHUP => Meaning::Reload,
        Signal::SIGUSR1 => Meaning::ToggleDebug,
        Signal::SIGUSR2 => Meaning::Dump,
        Signal::SIGCHLD => Meaning::Child,
        _ => Meaning::Ignored,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_has_exactly_the_documented_meaning() {
        for signal in Signal::iterator() {
            let expected = match signal.as_str() {
                "SIGTERM" => Meaning::Stop(Stop::HandOver),
                "SIGINT" => Meaning::Stop(Stop::Fast),
                "SIGQUIT" => Meaning::Stop(Stop::Immediate),
                "SIGHUP" => Meaning::Reload,
                "SIGUSR1" => Meaning::ToggleDebug,
                "SIGUSR2" => Meaning::Dump,
                "SIGCHLD" => Meaning::Child,
                _ => Meaning::Ignored,
            };
            assert_eq!(meaning(signal), expected, "{signal}");
        }
    }

    #[test]
    fn a_further_request_hurries_and_never_slows_down() {
        use Stop::{Fast, HandOver, Immediate};
        for (asked, wanted, expected) in [
            (None, HandOver, Some(HandOver)),
            (None, Fast, Some(Fast)),
            (None, Immediate, Some(Immediate)),
            (Some(HandOver), HandOver, Some(Fast)),
            (Some(HandOver), Fast, Some(Fast)),
            (Some(HandOver), Immediate, Some(Immediate)),
            (Some(Fast), HandOver, Some(Immediate)),
            (Some(Fast), Fast, Some(Immediate)),
            (Some(Fast), Immediate, Some(Immediate)),
            (Some(Immediate), HandOver, None),
            (Some(Immediate), Fast, None),
            (Some(Immediate), Immediate, None),
        ] {
            assert_eq!(
                Stop::escalate(asked, wanted),
                expected,
                "{asked:?} then {wanted:?}"
            );
        }
    }

    #[test]
    fn a_stop_is_forwarded_as_the_signal_that_asks_for_it() {
        for stop in [Stop::HandOver, Stop::Fast, Stop::Immediate] {
            assert_eq!(meaning(stop.signal()), Meaning::Stop(stop));
        }
    }
}
