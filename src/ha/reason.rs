//! Why a member neither streams nor is a primary, as a code that programs can count and a person can look up. Derived from
//! what the decision knows and nothing else.
//!
//! | code | meaning | what happens next, within |
//! |---|---|---|
//! | `starting` | postgres is on its way up | `primary_start_timeout` where the lock is held, else an hour |
//! | `stopping`, `restarting`, `promoting` | on its way | the bound of that job |
//! | `start_failed` | it does not start on its data | three attempts (1 to 8 s apart), then a new copy |
//! | `configuration_refused` | postgres refuses its settings | tried again every 10 s; data is left alone |
//! | `hung` | the postmaster answers nobody | see `hung`; a replica is restarted after a minute or two ttl |
//! | `not_answering` | it refuses us, or is slow | nothing: it may serve everybody else |
//! | `waiting_for_leader` | nobody leads | the election |
//! | `leader_unreachable` | the leader's postgres cannot be asked | 10 s, then it is followed unasked |
//! | `no_upstream` | the leader has published no address | its next member key |
//! | `timeline_diverged` | the data has parted from the leader's | at most two rewinds, then a new copy |
//! | `rewind_impossible:…` | and `pg_rewind` cannot be used: `checksums_off`, `switched_off` | a new copy |
//! | `missing_wal` | the WAL it needs is gone | a new copy after a minute or two ttl |
//! | `connecting` | it fits, and has not begun to stream | `missing_wal` if it lasts |
//! | `rewinding`, `cloning`, `bootstrapping` | being repaired or made | an hour, or two minutes without progress |
//! | `rewind_failed`, `clone_failed` | that did not help | 1 to 10 s |
//! | `disk_full` | no space for what was tried | tried again every minute |
//! | `replay_paused` | the primary has larger settings | a restart |
//! | `nostream` | tagged so | – |
//! | `damaged_data`, `data_unreadable`, `stopped` | the directory | a person, another look, the next turn |
//! | `watchdog_failed`, `pre_promote_refused`, `promotion_failed` | holds or could have the lock and may not lead | others lead |
//! | `dcs_unreachable` | nobody knows whom to follow | the store |

use std::{fmt, time::Duration};

use super::{
    DcsView, Down, Failure, Job, Local, Memory, Running, Silence, View, follow,
    rewind::{self, Reach, Verdict},
    standby,
};
use crate::{
    clock::Boottime,
    model::{Cluster, MemberName},
};

/// A replica that has not moved for this long while its leader has more.
const MISSING_WAL: Duration = Duration::from_secs(10);

/// See the table above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table above says what each means")]
pub enum Reason {
    Starting,
    Stopping,
    Restarting,
    Promoting,
    StartFailed,
    ConfigurationRefused,
    Hung,
    NotAnswering,
    WaitingForLeader,
    LeaderUnreachable,
    NoUpstream,
    TimelineDiverged,
    ChecksumsOff,
    RewindSwitchedOff,
    MissingWal,
    Connecting,
    Rewinding,
    Cloning,
    Bootstrapping,
    RewindFailed,
    CloneFailed,
    DiskFull,
    ReplayPaused,
    NoStream,
    DamagedData,
    DataUnreadable,
    Stopped,
    WatchdogFailed,
    PrePromoteRefused,
    PromotionFailed,
    DcsUnreachable,
}

impl Reason {
    /// The code.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Stopping => "stopping",
            Self::Restarting => "restarting",
            Self::Promoting => "promoting",
            Self::StartFailed => "start_failed",
            Self::ConfigurationRefused => "configuration_refused",
            Self::Hung => "hung",
            Self::NotAnswering => "not_answering",
            Self::WaitingForLeader => "waiting_for_leader",
            Self::LeaderUnreachable => "leader_unreachable",
            Self::NoUpstream => "no_upstream",
            Self::TimelineDiverged => "timeline_diverged",
            Self::ChecksumsOff => "rewind_impossible:checksums_off",
            Self::RewindSwitchedOff => "rewind_impossible:switched_off",
            Self::MissingWal => "missing_wal",
            Self::Connecting => "connecting",
            Self::Rewinding => "rewinding",
            Self::Cloning => "cloning",
            Self::Bootstrapping => "bootstrapping",
            Self::RewindFailed => "rewind_failed",
            Self::CloneFailed => "clone_failed",
            Self::DiskFull => "disk_full",
            Self::ReplayPaused => "replay_paused",
            Self::NoStream => "nostream",
            Self::DamagedData => "damaged_data",
            Self::DataUnreadable => "data_unreadable",
            Self::Stopped => "stopped",
            Self::WatchdogFailed => "watchdog_failed",
            Self::PrePromoteRefused => "pre_promote_refused",
            Self::PromotionFailed => "promotion_failed",
            Self::DcsUnreachable => "dcs_unreachable",
        }
    }
}

impl Reason {
    /// Something is being done about it that says so itself.
    #[must_use]
    pub const fn is_work(self) -> bool {
        matches!(
            self,
            Self::Starting
                | Self::Stopping
                | Self::Restarting
                | Self::Promoting
                | Self::Rewinding
                | Self::Cloning
                | Self::Bootstrapping
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// Why this member is neither a primary nor streaming now; `None`: it is one of them.
#[must_use]
pub fn reason(view: &View, memory: &Memory, now: Boottime) -> Option<Reason> {
    if let Local::Running(running) = &view.local
        && (running.is_primary() || (running.is_streaming() && !running.is_paused()))
    {
        return None;
    }
    if let Some(running) = &view.job {
        return Some(of_job(&running.job));
    }
    Some(match &view.local {
        Local::Silent { why, .. } => match why {
            Silence::Stopped | Silence::NoAnswer | Silence::NoSession => Reason::Hung,
            Silence::Slow | Silence::Refused => Reason::NotAnswering,
        },
        Local::Broken { .. } => Reason::DamagedData,
        Local::Unknown { .. } => Reason::DataUnreadable,
        Local::Starting { .. } => Reason::Starting,
        Local::Stopping { .. } => Reason::Stopping,
        Local::Running(running) if running.is_paused() => Reason::ReplayPaused,
        Local::Empty | Local::Leftover | Local::Down(_) | Local::Running(_) => match &view.dcs {
            DcsView::Down { .. } => Reason::DcsUnreachable,
            DcsView::Known { cluster } => with_view(view, cluster, memory, now),
        },
    })
}

const fn of_job(job: &Job) -> Reason {
    match job {
        Job::Bootstrap | Job::BootstrapStandby => Reason::Bootstrapping,
        Job::Clone { .. } | Job::Restore => Reason::Cloning,
        Job::Rewind(_) => Reason::Rewinding,
        Job::Start(_) => Reason::Starting,
        // Slots are put in place while postgres is down.
        Job::Restart | Job::CopySlots { .. } => Reason::Restarting,
        Job::Promote => Reason::Promoting,
        Job::Demote { .. } => Reason::Stopping,
    }
}

fn with_view(view: &View, cluster: &Cluster, memory: &Memory, now: Boottime) -> Reason {
    if let Some(failed) = failed(memory) {
        return failed;
    }
    let Some(leader) = cluster.leader.as_ref().map(|leader| &leader.name) else {
        return may_not_lead(view, memory, now).unwrap_or(Reason::WaitingForLeader);
    };
    if *leader == view.me {
        // The leader of a cluster that follows another one is a replica, and may live from an archive alone.
        return match (&view.dynamic.standby, &view.local) {
            (Some(standby), Local::Running(_)) if standby.host.is_none() => Reason::NoStream,
            (Some(_), Local::Running(_)) => Reason::Connecting,
            _ => may_not_lead(view, memory, now).unwrap_or(Reason::Starting),
        };
    }
    match &view.local {
        Local::Running(_) if view.tags.nostream() => Reason::NoStream,
        _ if cluster
            .member(leader)
            .and_then(crate::model::Member::address)
            .is_none() =>
        {
            Reason::NoUpstream
        }
        Local::Running(running) => of_replica(view, leader, memory, running, now),
        Local::Down(down) => of_directory(view, leader, memory, down, now),
        _ => Reason::WaitingForLeader,
    }
}

/// What was tried last and did not help.
fn failed(memory: &Memory) -> Option<Reason> {
    let (job, failure) = memory.last_failure.as_ref()?;
    Some(match (job, failure) {
        (_, Failure::DiskFull(_)) => Reason::DiskFull,
        (Job::Start(_) | Job::Restart, Failure::Configuration(_)) => Reason::ConfigurationRefused,
        (Job::Start(_) | Job::Restart, _) => Reason::StartFailed,
        (Job::Clone { .. } | Job::Restore | Job::Bootstrap | Job::BootstrapStandby, _) => Reason::CloneFailed,
        (Job::Rewind(_), _) => Reason::RewindFailed,
        // What a leader does is told by its memory.
        (Job::Promote | Job::Demote { .. } | Job::CopySlots { .. }, _) => return None,
    })
}

fn may_not_lead(view: &View, memory: &Memory, now: Boottime) -> Option<Reason> {
    if view.watchdog_failed {
        return Some(Reason::WatchdogFailed);
    }
    if memory.vetoed(view.dynamic.timing.ttl, now).is_some() {
        return Some(Reason::PrePromoteRefused);
    }
    (memory.promote_failures.0 > 0).then_some(Reason::PromotionFailed)
}

fn of_replica(view: &View, leader: &MemberName, memory: &Memory, running: &Running, now: Boottime) -> Reason {
    let facts = match follow::probe(view, leader, now) {
        None => return Reason::Connecting,
        Some(Err(_)) => return Reason::LeaderUnreachable,
        Some(Ok(facts)) => facts,
    };
    let still = memory
        .stands_at
        .is_some_and(|(_, since)| now.since(since) >= MISSING_WAL);
    match rewind::verdict(Reach::of_running(running), &standby::settled(view, facts)) {
        Verdict::LeaderNotReady => Reason::WaitingForLeader,
        Verdict::Diverged { .. } => diverged(view, None),
        Verdict::Follow if still && running.position() < facts.flushed => Reason::MissingWal,
        Verdict::Follow | Verdict::Ahead => Reason::Connecting,
    }
}

fn of_directory(view: &View, leader: &MemberName, memory: &Memory, down: &Down, now: Boottime) -> Reason {
    match follow::probe(view, leader, now) {
        Some(Ok(facts)) => match rewind::verdict(Reach::of_down(down), &standby::settled(view, facts)) {
            Verdict::Diverged { .. } => diverged(view, Some(down)),
            Verdict::LeaderNotReady => Reason::WaitingForLeader,
            Verdict::Follow | Verdict::Ahead => Reason::Stopped,
        },
        Some(Err(_)) => Reason::LeaderUnreachable,
        None if memory.waiting_for_leader_since.is_some() => Reason::LeaderUnreachable,
        None => Reason::Stopped,
    }
}

fn diverged(view: &View, down: Option<&Down>) -> Reason {
    if !view.dynamic.use_pg_rewind {
        return Reason::RewindSwitchedOff;
    }
    match down {
        Some(down) if !down.control.checksums && !down.control.wal_log_hints => Reason::ChecksumsOff,
        _ => Reason::TimelineDiverged,
    }
}
