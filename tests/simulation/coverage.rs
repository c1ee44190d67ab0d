//! Which decisions were made after which events: pairs of a situation (local postgres, lock, job) and what happened to
//! the member since its last decision.

use std::collections::BTreeMap;

use howdah::ha::{DcsView, DemoteMode, Job, Local, Plan, Silence, StartAs, View};

/// Everything that can happen to a member, in the words of the report.
const EVENTS: &[&str] = &[
    "nothing",
    "event:fenced",
    "event:hidden-fork",
    "event:cloned",
    "event:rewound",
    "kill container",
    "power loss",
    "kill agent",
    "kill postmaster",
    "freeze host",
    "freeze agent",
    "freeze postgres",
    "hang postmaster",
    "cut from store",
    "cut from member",
    "isolate",
    "partition",
    "packet loss",
    "slow network",
    "store down",
    "store flaky",
    "store leader change",
    "store wiped",
    "watch lost",
    "disk stall",
    "disk full",
    "wall clock jump",
    "slow start",
    "start fails",
    "slow stop",
    "slow promotion",
    "replay lag",
    "switchover",
    "failover",
    "graceful stop",
    "settings",
    "member removed",
    "member added",
    "pause",
    "resume",
    "heal",
];

const LOCALS: [&str; 13] = [
    "empty",
    "broken",
    "unknown",
    "down clean",
    "down crashed primary",
    "down replica",
    "starting primary",
    "starting replica",
    "stopping",
    "primary",
    "streaming replica",
    "idle replica",
    "silent",
];
const LOCKS: [&str; 6] = [
    "free",
    "ours",
    "ours expired",
    "ours unheld",
    "another's",
    "store down",
];
const JOBS: [&str; 10] = [
    "-",
    "bootstrap",
    "clone",
    "rewind",
    "start primary",
    "start replica",
    "restart",
    "promote",
    "hand over",
    "demote",
];

#[derive(Debug, Clone, Default)]
pub(crate) struct Coverage {
    pairs: BTreeMap<(u16, u8), u64>,
}

impl Coverage {
    /// The bit of an event. An event nobody has named here would be a mistake in this table.
    pub(crate) fn event(name: &str) -> u64 {
        EVENTS
            .iter()
            .position(|event| *event == name)
            .map_or(1, |at| 1 << at)
    }

    pub(crate) fn visit(&mut self, view: &View, plan: &Plan, events: u64) {
        let _by_situation_only = plan;
        let situation = situation(view);
        let mut left = if events == 0 { 1 } else { events };
        while left != 0 {
            let at = left.trailing_zeros();
            left &= left - 1;
            *self
                .pairs
                .entry((situation, u8::try_from(at).unwrap_or(0)))
                .or_insert(0) += 1;
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (pair, count) in &other.pairs {
            *self.pairs.entry(*pair).or_insert(0) += count;
        }
    }

    /// One number per line, for the state file.
    pub(crate) fn store(&self) -> String {
        let line =
            |((situation, event), count): (&(u16, u8), &u64)| format!("pair {situation} {event} {count}\n");
        self.pairs.iter().map(line).collect()
    }

    pub(crate) fn restore(&mut self, line: &str) {
        let numbers: Vec<u64> = line.split(' ').skip(1).filter_map(|n| n.parse().ok()).collect();
        if let [situation, event, count] = numbers[..] {
            let pair = (
                u16::try_from(situation).unwrap_or(0),
                u8::try_from(event).unwrap_or(0),
            );
            *self.pairs.entry(pair).or_insert(0) += count;
        }
    }

    /// The summary, and the pairs of known situations and events that were never seen together.
    pub(crate) fn report(&self, list: bool) -> String {
        let mut situations: Vec<u16> = self.pairs.keys().map(|(situation, _)| *situation).collect();
        situations.dedup();
        let possible = situations.len() * EVENTS.len();
        let seen = self.pairs.len();
        let share = (seen * 100).checked_div(possible).unwrap_or(0);
        let mut text = format!(
            "coverage: {} situations, {} events, {seen} of {possible} pairs ({share} %)\n",
            situations.len(),
            EVENTS.len()
        );
        if list {
            for situation in situations {
                let missing: Vec<&str> = EVENTS
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| {
                        let event = u8::try_from(*at).unwrap_or(0);
                        !self.pairs.contains_key(&(situation, event))
                    })
                    .map(|(_, event)| *event)
                    .collect();
                if !missing.is_empty() {
                    text += &format!("  never in [{}]: {}\n", describe(situation), missing.join(", "));
                }
            }
        }
        text
    }
}

fn describe(situation: u16) -> String {
    let at = usize::from(situation);
    let (local, lock, job) = (at / 100, at / 10 % 10, at % 10);
    format!(
        "{}; lock {}; job {}",
        LOCALS.get(local).unwrap_or(&"?"),
        LOCKS.get(lock).unwrap_or(&"?"),
        JOBS.get(job).unwrap_or(&"?")
    )
}

fn situation(view: &View) -> u16 {
    let local = match &view.local {
        Local::Empty | Local::Leftover => 0,
        Local::Broken { .. } => 1,
        Local::Unknown { .. } => 2,
        Local::Down(down) if down.control.state.is_clean() => 3,
        Local::Down(down) if down.was_primary() => 4,
        Local::Down(_) => 5,
        Local::Starting { primary: true, .. } => 6,
        Local::Starting { .. } => 7,
        Local::Stopping { .. } => 8,
        Local::Running(running) if running.is_primary() => 9,
        Local::Running(running) if running.is_streaming() => 10,
        Local::Running(_) => 11,
        Local::Silent {
            why: Silence::Stopped | Silence::NoAnswer | Silence::NoSession | Silence::Slow | Silence::Refused,
            ..
        } => 12,
    };
    let lock = match &view.dcs {
        DcsView::Down { .. } => 5,
        DcsView::Known { cluster } => match &cluster.leader {
            None => 0,
            Some(leader) if leader.name == view.me => match view.hold {
                None => 3,
                Some(_) => 1,
            },
            Some(_) => 4,
        },
    };
    let job = match view.job.as_ref().map(|running| &running.job) {
        None => 0,
        Some(Job::Bootstrap | Job::BootstrapStandby) => 1,
        Some(Job::Clone { .. } | Job::CopySlots { .. } | Job::Restore) => 2,
        Some(Job::Rewind(_)) => 3,
        Some(Job::Start(StartAs::Primary)) => 4,
        Some(Job::Start(_)) => 5,
        Some(Job::Restart) => 6,
        Some(Job::Promote) => 7,
        Some(Job::Demote {
            mode: DemoteMode::Graceful,
            ..
        }) => 8,
        Some(Job::Demote { .. }) => 9,
    };
    local * 100 + lock * 10 + job
}
