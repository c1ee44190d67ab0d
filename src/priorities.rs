//! What a starved host takes from a process last: its processor time, its memory, its life. Init and agent ask for all
//! three, so that load alone never costs the lease; postgres and everything else we start stay ordinary.
//!
//! | | init, agent (and the embedded etcd) | postmaster | backends | other programs |
//! |---|---|---|---|---|
//! | niceness | -10 | ordinary | ordinary | ordinary |
//! | `oom_score_adj` | -900 | -900 | ordinary, by `PG_OOM_ADJUST_FILE` | ordinary |
//! | memory | locked as it is touched | – | – | – |
//!
//! Asked for before root is dropped; whatever is refused is not needed for anything else. The kernel hands niceness and
//! score on to children, so what was ordinary before travels with them, see [`ORDINARY`].

use std::{env, fmt, fs, io, str::FromStr, sync::OnceLock};

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{Pid, Resource, Rlimit, getpriority_process, getrlimit, setpriority_process, setrlimit},
};

/// Set for the agent: what is ordinary here, as `<niceness>/<oom_score_adj>`.
pub const ORDINARY: &str = "HOWDAH_ORDINARY";

/// By so much nicer than ordinary.
const NICE: i32 = -10;
/// Ended last, but before what the system itself cannot do without.
const OOM_SCORE_ADJ: i32 = -900;

/// Niceness and score of whoever started us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ordinary {
    nice: i32,
    oom_score_adj: i32,
}

static HERE: OnceLock<Ordinary> = OnceLock::new();

impl fmt::Display for Ordinary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.nice, self.oom_score_adj)
    }
}

impl FromStr for Ordinary {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (nice, score) = text.split_once('/').unwrap_or((text, ""));
        Ok(Self {
            nice: nice.parse()?,
            oom_score_adj: score.parse()?,
        })
    }
}

impl Ordinary {
    fn now() -> Self {
        Self {
            nice: getpriority_process(None).unwrap_or(0),
            oom_score_adj: score("self").unwrap_or(0),
        }
    }
}

fn score(pid: &str) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?;
    text.trim().parse().ok()
}

fn set_score(pid: &str, score: i32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
}

/// Asks for all of it, with the rights this process still has. Returns what was before. Refusals are found by
/// [`granted`].
#[must_use]
pub fn raise() -> Ordinary {
    let ordinary = Ordinary::now();
    let _refused = setpriority_process(None, (ordinary.nice + NICE).max(-20));
    let _refused = set_score("self", OOM_SCORE_ADJ.min(ordinary.oom_score_adj));
    // Locking itself is done by each process, later and without root.
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    let _refused = setrlimit(Resource::Memlock, unlimited);
    ordinary
}

/// Locks the memory of this process, page by page as it is touched.
///
/// # Errors
/// The limit or the rights do not allow it.
pub fn lock_memory() -> io::Result<()> {
    let mut flags = MlockAllFlags::CURRENT | MlockAllFlags::ONFAULT;
    if getrlimit(Resource::Memlock).current.is_none() {
        // Under a limit a later allocation would fail instead of being unlocked.
        flags |= MlockAllFlags::FUTURE;
    }
    mlockall(flags).map_err(io::Error::from)
}

/// Notes what is ordinary, from the environment that init gives its agent.
pub fn remember() {
    if let Some(ordinary) = env::var(ORDINARY).ok().and_then(|text| text.parse().ok()) {
        // Set once; whoever comes second has read the same.
        let _same = HERE.set(ordinary);
    }
}

/// What is in force for this process, in words: what was granted, and what was not.
#[must_use]
pub fn granted(ordinary: Option<Ordinary>, locked: &io::Result<()>) -> String {
    let now = Ordinary::now();
    let (mut granted, mut refused) = (Vec::new(), Vec::new());
    let mut tell = |given: bool, text: String| {
        if given {
            granted.push(text)
        } else {
            refused.push(text)
        }
    };
    if let Some(before) = ordinary {
        tell(now.nice < before.nice, format!("niceness {}", now.nice));
        let spared = now.oom_score_adj < before.oom_score_adj || now.oom_score_adj <= OOM_SCORE_ADJ;
        tell(spared, format!("oom_score_adj {}", now.oom_score_adj));
    }
    match locked {
        Ok(()) => tell(true, "memory locked".to_owned()),
        Err(error) => tell(false, format!("memory not locked ({error})")),
    }
    let list = |items: &[String]| match items {
        [] => "nothing".to_owned(),
        items => items.join(", "),
    };
    format!("granted: {}; not granted: {}", list(&granted), list(&refused))
}

/// What this process has is granted, in one line; call [`remember`] first.
#[must_use]
pub fn describe(locked: &io::Result<()>) -> String {
    granted(HERE.get().copied(), locked)
}

/// Makes a child that was just started ordinary again. Best effort: a process that has ended needs nothing, and nobody is
/// refused to become less.
pub fn make_ordinary(pid: i32) {
    let Some(ordinary) = HERE.get() else { return };
    let _gone = set_score(&pid.to_string(), ordinary.oom_score_adj);
    make_nice(pid);
}

/// The same for a postmaster, which stays spared: with it everything goes.
pub fn make_nice(pid: i32) {
    if let (Some(ordinary), Some(pid)) = (HERE.get(), Pid::from_raw(pid)) {
        let _gone = setpriority_process(Some(pid), ordinary.nice);
    }
}

/// Variables that make a postmaster's children ordinary (PostgreSQL documentation, "Linux Memory Overcommit").
#[must_use]
pub fn postmaster_environment() -> Vec<(&'static str, String)> {
    let Some(ordinary) = HERE.get() else {
        return Vec::new();
    };
    vec![
        ("PG_OOM_ADJUST_FILE", "/proc/self/oom_score_adj".to_owned()),
        ("PG_OOM_ADJUST_VALUE", ordinary.oom_score_adj.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ordinary_travels_as_text() {
        let ordinary = Ordinary {
            nice: -3,
            oom_score_adj: 200,
        };
        assert_eq!("-3/200".parse(), Ok(ordinary));
        assert_eq!(ordinary.to_string(), "-3/200");
        assert!("".parse::<Ordinary>().is_err() && "5".parse::<Ordinary>().is_err());
    }

    #[test]
    fn what_was_not_granted_is_said() {
        let now = Ordinary::now();
        let refused = Err(io::Error::from(io::ErrorKind::PermissionDenied));
        let text = granted(Some(now), &refused);
        assert!(
            text.contains(&format!("not granted: niceness {}", now.nice)),
            "{text}"
        );
        assert!(text.contains("memory not locked"), "{text}");
        let worse = Ordinary {
            nice: now.nice + 1,
            oom_score_adj: now.oom_score_adj + 1,
        };
        let text = granted(Some(worse), &Ok(()));
        assert!(text.ends_with("memory locked; not granted: nothing"), "{text}");
    }
}
