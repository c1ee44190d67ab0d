//! When is a postmaster that lives hung? (contract: HA rules §7; stricter, because a leader that renews the lock for a
//! postgres nobody can reach keeps everybody from a primary.)
//!
//! A slow answer to our own question is never a reason: the question may wait for a lock, a disk, or a statistics file.
//! What counts are probes that do not depend on it, several in a row, for a time that depends on how certain they are:
//!
//! | what is seen | at least so often | for at least |
//! |---|---|---|
//! | its process is stopped | 2 | ttl/4, between 1 and 5 s |
//! | no new connection, or no word on one | 3 | ttl/2, between 2 and 15 s |
//! | connections, but no session | 3 | ttl |
//! | a session answers, or refuses | never | never |

use std::time::Duration;

use super::{Memory, Silence};
use crate::clock::Boottime;

/// Why this postmaster counts as hung; `None`: it does not, or not yet.
pub(super) fn why(
    memory: &Memory,
    silence: Silence,
    since: Boottime,
    ttl: Duration,
    now: Boottime,
) -> Option<String> {
    let (looks, least, what) = match silence {
        Silence::Stopped => (2, (ttl / 4).clamp(secs(1), secs(5)), "its process is stopped"),
        Silence::NoAnswer => (
            3,
            (ttl / 2).clamp(secs(2), secs(15)),
            "it answers no new connection",
        ),
        Silence::NoSession => (3, ttl, "no new session gets an answer"),
        Silence::Slow | Silence::Refused => return None,
    };
    let lasted = now.since(since);
    (memory.silent_looks.0 >= looks && lasted >= least)
        .then(|| format!("postgres hangs: {what}, for {:.1} s", lasted.as_secs_f32()))
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
