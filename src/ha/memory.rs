//! What one turn tells the next.

use std::time::Duration;

use super::{
    DcsView, DemoteMode, Failure, Finished, Job, Local, Silence, Standing, StartAs, Upstream, View, failsafe,
    lost, sync,
};
use crate::{
    clock::Boottime,
    model::{Cluster, Lsn, MemberName, PgState, Timeline},
};

/// Rewinds in a row, none of which led to streaming, before the directory is cloned anew.
const REWINDS: u32 = 2;
/// Looks closer together than this count as one.
const LOOKS_APART: Duration = Duration::from_millis(200);
/// Copies in a row that may have come too late for the WAL they need. What slowed one down may be over at the next.
const LATE_COPIES: u32 = 3;
/// A copy that did not lead to streaming is not made again for this long: what is wrong is not the data.
const CLONE_AGAIN: Duration = Duration::from_secs(3600);

/// Logical slots that have stayed for this long were copied for good; until then each further copy waits longer.
const COPIED_FOR_GOOD: Duration = Duration::from_secs(600);

/// What one turn tells the next.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    /// First turn that saw the lock free.
    pub unlocked_since: Option<Boottime>,
    /// Last leader seen by this agent. Our own name in the lock proves nothing about our data until we have been seen
    /// running as primary.
    pub last_leader: Option<MemberName>,
    /// Since this agent started we have streamed from a leader or been one, so our data is known to be the cluster's.
    /// Without it we are cold: whatever is in the directory may be from long ago.
    pub followed: bool,
    /// Whether the store still knows what it knew when somebody led.
    pub lost: lost::Lost,
    /// Whose name the lock carried last.
    pub holder: Option<MemberName>,
    /// Members (name, api_url) of the last view with a leader.
    pub last_members: Vec<(MemberName, String)>,
    /// We gave the lock up on purpose and leave it to others for a while.
    pub handed_over_at: Option<Boottime>,
    /// Leader whose history was compared with ours, and its published timeline then.
    pub compared_with: Option<(MemberName, Timeline)>,
    /// Starts that failed in a row, and when the last did.
    pub start_failures: (u32, Boottime),
    /// The last start failed for a reason that lies in the configuration.
    pub misconfigured: bool,
    /// Rewinds that failed in a row.
    pub rewind_failures: u32,
    /// Rewinds that succeeded since this member last streamed. If it still does not stream, rewinding is not the cure.
    pub rewinds: u32,
    /// Promotions that failed in a row, and when the last did.
    pub promote_failures: (u32, Boottime),
    /// When `pre_promote` last said no to a promotion.
    pub vetoed_at: Option<Boottime>,
    /// Clones that failed in a row, and when the last did.
    pub clone_failures: (u32, Boottime),
    /// Clones that succeeded since this member last streamed, and when the last did.
    pub clones: (u32, Boottime),
    /// The last job that failed, and why, until postgres streams or is a primary again.
    pub last_failure: Option<(Job, Failure)>,
    /// Stops that failed in a row.
    pub stop_failures: u32,
    /// First turn that missed a logical slot.
    pub slots_missing_since: Option<Boottime>,
    /// Attempts to copy logical slots since none was missing, and when the last ended.
    pub slot_copies: (u32, Boottime),
    /// First turn that saw the postgres of the lock holder (us) not running.
    pub primary_down_since: Option<Boottime>,
    /// First turn that saw our replica not streaming although there is a leader.
    pub not_streaming_since: Option<Boottime>,
    /// Where our replica stands while it does not stream, and since when it has not moved from there.
    pub stands_at: Option<(Lsn, Boottime)>,
    /// Looks in a row at a postmaster that lives and says nothing, and when the last was.
    pub silent_looks: (u32, Boottime),
    /// First turn that wanted to follow a leader whose postgres could not be asked.
    pub waiting_for_leader_since: Option<Boottime>,
    /// Where a replica that has not come up yet was pointed at meanwhile.
    pub pointed_at: Option<Upstream>,
    /// The remote cluster that the replica of the standby leader (us) was pointed at.
    pub follows_remote: Option<Upstream>,
    /// We stopped our own WAL receiver, so that what we have can be counted on; nothing of ours has parted by that.
    pub cut_off: bool,
    /// Our position, and since when it has not moved from there.
    pub moved: Option<(Lsn, Boottime)>,
    /// Postgres is down in the midst of what a person asked for, and is to be started again also in a paused cluster.
    pub owed: bool,
    /// The cluster was paused in the last turn.
    pub paused: bool,
    /// What is known of `/failsafe`.
    pub failsafe: failsafe::Known,
    /// Synchronous replication.
    pub sync: sync::Seen,
}

impl Memory {
    /// What every turn remembers, whatever it decides.
    pub(super) fn remember(&self, view: &View, now: Boottime) -> Self {
        let mut memory = self.clone();
        if let Some(finished) = &view.finished {
            memory.note_job(view, finished, now);
        }
        if std::mem::replace(&mut memory.paused, view.dynamic.pause) && !view.dynamic.pause {
            // A person may have changed anything: nothing that was found out before counts.
            memory.forget_attempts();
            memory.compared_with = None;
            memory.unlocked_since = None;
        }
        match &view.dcs {
            DcsView::Known { cluster } => memory.note_cluster(view, cluster, now),
            // Others may have led meanwhile: what was seen before says nothing about how long nobody has.
            DcsView::Down { since } if now.since(*since) >= view.dynamic.timing.ttl => {
                memory.unlocked_since = None;
            }
            DcsView::Down { .. } => {}
        }
        memory.note_local(view, now);
        memory.failsafe.note(view, now);
        memory.sync.note(view, now);
        memory
    }

    fn note_cluster(&mut self, view: &View, cluster: &Cluster, now: Boottime) {
        if !cluster.is_leader(&view.me) {
            self.primary_down_since = None;
            self.follows_remote = None;
        }
        self.lost.note(cluster, view.dynamic.timing.ttl, now);
        let Some(leader) = &cluster.leader else {
            // There is nobody to stream from: that replication stands still says nothing about what is missing.
            (self.not_streaming_since, self.stands_at) = (None, None);
            // While a primary goes on without the DCS nobody could have led, so nobody has let his time pass.
            let promised = view.failsafe.promise.as_ref();
            if promised.is_some_and(|promise| now < promise.until) {
                self.unlocked_since = None;
            } else {
                self.unlocked_since.get_or_insert(now);
            }
            return;
        };
        self.unlocked_since = None;
        if self.holder.as_ref() != Some(&leader.name) {
            // What failed with another leader, or in another role, says nothing about what comes now.
            if self.holder.replace(leader.name.clone()).is_some() {
                self.forget_attempts();
                self.slot_copies = (0, Boottime(0));
            }
        }
        let another = leader.name != view.me;
        if another {
            self.handed_over_at = None;
            self.promote_failures = (0, Boottime(0));
        }
        if another && self.last_leader.as_ref() != Some(&leader.name) {
            self.waiting_for_leader_since = None;
        }
        let (primary, streaming) = match &view.local {
            Local::Running(running) => (running.is_primary(), running.is_streaming()),
            _ => (false, false),
        };
        if another || primary {
            self.last_leader = Some(leader.name.clone());
        }
        // The leader of a standby cluster has the cluster's data if it streams it.
        let leads = primary || (view.dynamic.standby.is_some() && streaming);
        self.followed |= if another { streaming } else { leads };
        let others = cluster
            .members
            .iter()
            .filter(|m| m.name != view.me && !m.data.api_url.is_empty());
        self.last_members = others.map(|m| (m.name.clone(), m.data.api_url.clone())).collect();
    }

    fn forget_attempts(&mut self) {
        self.start_failures = (0, Boottime(0));
        self.misconfigured = false;
        (self.rewind_failures, self.rewinds) = (0, 0);
        self.clones = (0, Boottime(0));
    }

    fn note_local(&mut self, view: &View, now: Boottime) {
        if view.missing_slots.is_empty() {
            self.slots_missing_since = None;
        } else {
            self.slots_missing_since.get_or_insert(now);
        }
        match &view.local {
            Local::Silent { why, .. } if !matches!(why, Silence::Slow | Silence::Refused) => {
                let (looks, last) = self.silent_looks;
                if looks == 0 || now.since(last) >= LOOKS_APART {
                    self.silent_looks = (looks.saturating_add(1), now);
                }
            }
            _ => self.silent_looks = (0, Boottime(0)),
        }
        if matches!(&view.local, Local::Down(down) if down.was_primary()) {
            self.cut_off = false;
        }
        match &view.local {
            Local::Running(running) => {
                self.owed = false;
                let position = running.position();
                if self.moved.is_none_or(|(at, _)| at != position) {
                    self.moved = Some((position, now));
                }
                self.start_failures = (0, Boottime(0));
                self.misconfigured = false;
                self.stop_failures = 0;
                self.primary_down_since = None;
                self.waiting_for_leader_since = None;
                self.pointed_at = None;
                if running.is_primary() {
                    self.promote_failures = (0, Boottime(0));
                }
                if view.missing_slots.is_empty() && now.since(self.slot_copies.1) >= COPIED_FOR_GOOD {
                    self.slot_copies = (0, Boottime(0));
                }
                if matches!(
                    &running.standing,
                    Standing::Replica {
                        upstream: Some(_),
                        ..
                    } | Standing::Primary { .. }
                ) {
                    self.cut_off = false;
                }
                match running.standing {
                    Standing::Replica { streaming: false, .. } => {
                        self.not_streaming_since.get_or_insert(now);
                        let position = running.position();
                        if self.stands_at.is_none_or(|(at, _)| at != position) {
                            self.stands_at = Some((position, now));
                        }
                    }
                    _ => (self.not_streaming_since, self.stands_at) = (None, None),
                }
                if running.is_primary() || running.is_streaming() {
                    self.last_failure = None;
                }
                if running.is_streaming() {
                    self.forget_attempts();
                    self.clone_failures = (0, Boottime(0));
                }
            }
            Local::Down(_) => {
                self.stop_failures = 0;
                self.pointed_at = None;
                if matches!(&view.dcs, DcsView::Known { cluster } if cluster.is_leader(&view.me)) {
                    self.primary_down_since.get_or_insert(now);
                }
            }
            _ => {}
        }
    }

    fn note_job(&mut self, view: &View, finished: &Finished, now: Boottime) {
        let ok = finished.outcome.is_ok();
        // What was called off, or came too early, did not fail.
        let failure = finished.outcome.as_ref().err().filter(|f| !f.proves_nothing());
        if let Some(failure) = failure {
            self.last_failure = Some((finished.job.clone(), failure.clone()));
        }
        self.owed |= match &finished.job {
            Job::Demote { mode, .. } => ok && matches!(mode, DemoteMode::Graceful | DemoteMode::Cluster),
            Job::Clone { .. } | Job::Restore | Job::Rewind(_) | Job::CopySlots { .. } => true,
            _ => false,
        };
        match &finished.job {
            Job::Bootstrap | Job::BootstrapStandby => self.followed |= ok,
            Job::Demote { mode, .. } => {
                self.compared_with = None;
                self.stop_failures = if ok { 0 } else { self.stop_failures + 1 };
                if matches!(
                    mode,
                    DemoteMode::Graceful | DemoteMode::Fast | DemoteMode::Immediate | DemoteMode::Cluster
                ) {
                    self.handed_over_at = Some(now);
                }
            }
            Job::Promote => {
                self.compared_with = None;
                if let Some(Failure::Vetoed(_)) = failure {
                    self.vetoed_at = Some(now);
                    return;
                }
                self.promote_failures = if ok {
                    (0, Boottime(0))
                } else {
                    (self.promote_failures.0 + 1, now)
                };
            }
            Job::Start(StartAs::Replica(_)) if ok => self.start_failures = (0, Boottime(0)),
            Job::Start(_) | Job::Restart => {
                if let Some(failure) = failure {
                    self.start_failures = (self.start_failures.0 + 1, now);
                    self.misconfigured = matches!(failure, Failure::Configuration(_));
                }
            }
            Job::CopySlots { .. } => {
                self.start_failures = (0, Boottime(0));
                // What did not stop postgres can be tried again soon.
                let not_yet = finished.outcome.as_ref().is_err_and(Failure::proves_nothing);
                let attempts = self.slot_copies.0.saturating_add(1);
                self.slot_copies = (if not_yet { attempts.min(2) } else { attempts }, now);
            }
            Job::Rewind(to) => {
                self.compared_with = None;
                self.start_failures = (0, Boottime(0));
                if ok {
                    self.rewind_failures = 0;
                    self.rewinds += 1;
                } else if failure.is_some() && (to.is_remote() || still_leads(view, &to.member)) {
                    self.rewind_failures += 1;
                }
            }
            Job::Clone { .. } | Job::Restore => {
                self.compared_with = None;
                self.start_failures = (0, Boottime(0));
                (self.not_streaming_since, self.stands_at) = (None, None);
                if ok {
                    // New data: what was tried on the old says nothing about it.
                    self.clone_failures = (0, Boottime(0));
                    (self.rewind_failures, self.rewinds) = (0, 0);
                    self.clones = (self.clones.0 + 1, now);
                } else if failure.is_some() {
                    self.clone_failures = (self.clone_failures.0 + 1, now);
                }
            }
        }
    }

    /// How long this member still leaves the lock to others because `pre_promote` said no (contract: HA rules §2, first
    /// row).
    #[must_use]
    pub(super) fn vetoed(&self, ttl: Duration, now: Boottime) -> Option<Duration> {
        let left = ttl.saturating_sub(now.since(self.vetoed_at?));
        (!left.is_zero()).then_some(left)
    }

    /// A rewind is still worth trying.
    #[must_use]
    pub(super) const fn may_rewind(&self) -> bool {
        self.rewind_failures == 0 && self.rewinds < REWINDS
    }

    /// What was tried last found no space: until there is some, nothing that needs more of it is worth trying often.
    #[must_use]
    pub(super) const fn disk_is_full(&self) -> bool {
        matches!(self.last_failure, Some((_, Failure::DiskFull(_))))
    }

    /// A new copy is still worth trying.
    #[must_use]
    pub(super) fn may_clone(&self, now: Boottime) -> bool {
        self.clones.0 == 0 || now.since(self.clones.1) >= CLONE_AGAIN
    }

    /// The same for a copy that was good, but by the time it could stream the WAL from its end on was gone.
    #[must_use]
    pub(super) fn may_clone_late(&self, now: Boottime) -> bool {
        self.clones.0 < LATE_COPIES || self.may_clone(now)
    }

    /// How long to wait after `failures` in a row: 1, 2, 4, 8, then 10 s.
    #[must_use]
    pub(super) fn backoff((failures, last): (u32, Boottime), now: Boottime) -> Option<Duration> {
        let wait = match failures {
            0 => return None,
            n => Duration::from_secs(1 << (n - 1).min(4)).min(Duration::from_secs(10)),
        };
        let left = wait.saturating_sub(now.since(last));
        (!left.is_zero()).then_some(left)
    }

    /// How long nobody has led.
    #[must_use]
    pub(super) fn unlocked_for(&self, now: Boottime) -> Duration {
        self.unlocked_since
            .map_or(Duration::ZERO, |since| now.since(since))
    }
}

/// A rewind that fails because its source went away says nothing about our data.
fn still_leads(view: &View, name: &MemberName) -> bool {
    match &view.dcs {
        DcsView::Known { cluster } => {
            let running = |m: &crate::model::Member| m.data.state == PgState::Running;
            cluster.is_leader(name) && cluster.member(name).is_some_and(running)
        }
        DcsView::Down { .. } => false,
    }
}
