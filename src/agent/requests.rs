//! What the REST API asks of the loop.

use std::{sync::Arc, time::Duration};

use tracing::{info, warn};

use super::{
    Agent,
    handle::{ReinitRefused, Request, RestartFilters, RestartOutcome, ScheduledRestart},
    jobs,
};
use crate::{
    clock::Boottime,
    ha::{Job, Local, Source, Upstream, clone_source, heirs::Heirs},
    model::{MemberName, StatusKey},
};

impl Agent {
    /// Returns whether a turn should follow.
    pub(super) async fn request(&mut self, request: Request) -> bool {
        match request {
            Request::Refresh(reply) => {
                self.sight = self.look().await;
                let snapshot = self.publish("asked to look", self.dynamic.timing.loop_wait);
                // An asker that has gone away does not want to know.
                let _gone = reply.send(snapshot);
                false
            }
            Request::WakeUp => true,
            Request::Reload => {
                self.reload().await;
                true
            }
            Request::Restart { filters, reply } => {
                match self.refusal(&filters) {
                    Some(outcome) => {
                        let _gone = reply.send(outcome);
                    }
                    None => {
                        self.restart_replies.push(reply);
                        self.begin_request(Job::Restart, "a restart was asked for", filters.timeout);
                    }
                }
                true
            }
            Request::ScheduleRestart { restart, reply } => {
                let free = self.scheduled_restart.is_none();
                if free {
                    info!(at = %restart.at, "a restart is scheduled");
                    self.scheduled_restart = Some(ScheduledRestart {
                        postmaster_start_time: self.postmaster_start_time(),
                        ..restart
                    });
                }
                let _gone = reply.send(free);
                true
            }
            Request::CancelRestart(reply) => {
                let _gone = reply.send(self.scheduled_restart.take().is_some());
                true
            }
            Request::Reinitialize {
                force,
                from_leader,
                reply,
            } => {
                let answer = self.reinitialize(force, from_leader);
                let _gone = reply.send(answer);
                true
            }
        }
    }

    fn refusal(&self, filters: &RestartFilters) -> Option<RestartOutcome> {
        let snapshot = self.published.borrow().clone();
        if let Some(running) = self.jobs.view() {
            return Some(RestartOutcome::Busy(running.job.name().to_owned()));
        }
        if !filters.hold(&snapshot) {
            return Some(RestartOutcome::ConditionsNotMet);
        }
        match self.sight.local {
            Local::Starting { .. } => Some(RestartOutcome::StillStarting),
            Local::Running(_) | Local::Silent { .. } => None,
            _ => Some(RestartOutcome::Failed),
        }
    }

    /// A scheduled restart whose time has come begins, unless its conditions no longer hold. One that could not begin
    /// for long (another job, a suspended host) is no longer what was asked for.
    pub(super) fn due_restart(&mut self) {
        self.drop_restart_that_has_happened();
        // Contract: HA rules §14; by the end of the pause it is most likely missed.
        if self.dynamic.pause {
            return;
        }
        let now = jiff::Timestamp::now();
        let Some(late) = self
            .scheduled_restart
            .as_ref()
            .and_then(|restart| Duration::try_from(now.duration_since(restart.at)).ok())
        else {
            return;
        };
        if late > self.dynamic.timing.loop_wait * 3 / 2 {
            warn!(
                late_s = late.as_secs(),
                "the scheduled restart was missed, dropping it"
            );
            self.scheduled_restart = None;
            return;
        }
        if self.jobs.view().is_some() || self.shutdown.is_some() {
            return;
        }
        let Some(restart) = self.scheduled_restart.take() else {
            return;
        };
        match self.refusal(&restart.filters) {
            Some(outcome) => info!(?outcome, "the scheduled restart does not take place"),
            None => self.begin_request(
                Job::Restart,
                "a scheduled restart is due",
                restart.filters.timeout,
            ),
        }
    }

    fn postmaster_start_time(&self) -> Option<String> {
        self.sight.answer.as_ref().map(|answer| answer.started.clone())
    }

    /// Whoever asked for it wanted what runs now to be restarted, and no other.
    fn drop_restart_that_has_happened(&mut self) {
        let now = self.postmaster_start_time();
        let happened = |restart: &ScheduledRestart| match (&restart.postmaster_start_time, &now) {
            (Some(then), Some(now)) => then != now,
            _ => false,
        };
        if self
            .scheduled_restart
            .take_if(|restart| happened(restart))
            .is_some()
        {
            info!(
                started = now,
                "postgres has been restarted since: dropping the scheduled restart"
            );
        }
    }

    /// A new copy that had to wait for the end of a job.
    pub(super) fn due_reinitialize(&mut self) {
        if self.jobs.view().is_some() {
            return;
        }
        let Some(from_leader) = self.reinit_wanted.take() else {
            return;
        };
        if self.shutdown.is_some() {
            return;
        }
        // Whoever asks for a new copy does not want the old one.
        match self.clone_source(from_leader) {
            Ok(from) => {
                self.basebackup_only = from_leader;
                self.begin_request(Job::Clone { from, keep: false }, "a new copy was asked for", None)
            }
            Err(refused) => warn!(%refused, "the new copy that was asked for is not made"),
        }
    }

    fn reinitialize(&mut self, force: bool, from_leader: bool) -> Result<(), ReinitRefused> {
        let from = self.clone_source(from_leader)?;
        let Some(running) = self.jobs.view() else {
            self.basebackup_only = from_leader;
            self.begin_request(Job::Clone { from, keep: false }, "a new copy was asked for", None);
            return Ok(());
        };
        // These end soon, and broken off they leave something worse behind.
        let let_it_end = matches!(
            running.job,
            Job::Promote | Job::Demote { .. } | Job::Bootstrap | Job::BootstrapStandby
        );
        if !force || let_it_end {
            return Err(ReinitRefused::Busy(running.job.name().to_owned()));
        }
        info!(job = running.job.name(), "broken off for a new copy");
        self.jobs.cancel();
        self.reinit_wanted = Some(from_leader);
        Ok(())
    }

    /// Whom to copy from: a member tagged `clonefrom` unless the leader is asked for by name, and the leader where there
    /// is none. Never while we lead.
    fn clone_source(&self, from_leader: bool) -> Result<Upstream, ReinitRefused> {
        let seen = self.last_cluster.as_ref().ok_or(ReinitRefused::NoLeader)?;
        let leader = seen.cluster.leader.as_ref().ok_or(ReinitRefused::NoLeader)?;
        if leader.name == self.identity.member || self.lease.hold().is_some() {
            return Err(ReinitRefused::Leader);
        }
        let tagged = match from_leader {
            true => None,
            false => clone_source(&seen.cluster, &self.identity.member, &leader.name, true),
        };
        // A leader that does not run yet is waited for by the copy itself.
        let leader_at = || {
            let (host, port) = seen.cluster.member(&leader.name)?.address()?;
            Some(Upstream {
                member: leader.name.clone(),
                host,
                port,
                source: Source::Member,
            })
        };
        tagged.or_else(leader_at).ok_or(ReinitRefused::NoLeader)
    }

    fn begin_request(&mut self, job: Job, because: &str, start_limit: Option<Duration>) {
        let from = match &job {
            Job::Clone { from, .. } => Some(from.member.as_str()),
            _ => None,
        };
        info!(job = job.name(), from, because, "asked for");
        let status = self
            .last_cluster
            .as_ref()
            .map_or_else(StatusKey::default, |seen| seen.cluster.status.clone());
        let context = self.job_context(status, start_limit);
        self.slots.pause();
        let what = job.clone();
        let begun = self
            .jobs
            .begin(job, Boottime::now(), |cancel| jobs::run(what, context, cancel));
        debug_assert!(begun, "the slot was looked at before");
    }

    fn successors(&self) -> Vec<MemberName> {
        let members = self.last_cluster.iter().flat_map(|seen| &seen.cluster.members);
        members
            .filter(|member| member.name != self.identity.member && !member.tags().nofailover())
            .map(|member| member.name.clone())
            .collect()
    }

    /// What a job that begins now works with.
    pub(super) fn job_context(&mut self, status: StatusKey, start_limit: Option<Duration>) -> jobs::Context {
        jobs::Context {
            instance: Arc::clone(&self.instance),
            lease: Arc::clone(&self.lease),
            dcs: Arc::clone(&self.dcs),
            dynamic: self.dynamic.clone(),
            status,
            history: self
                .last_cluster
                .as_ref()
                .and_then(|seen| seen.cluster.history.clone()),
            failsafe: self.last_cluster.as_ref().and_then(|seen| {
                let names = seen.cluster.failsafe.as_ref()?;
                seen.cluster.failsafe_version.filter(|_| !names.is_empty())
            }),
            slots: self.slots_to_serve(),
            final_advance: self.final_advance(),
            me: self.identity.member.clone(),
            successors: self.successors(),
            heirs: Heirs::default(),
            http: self.http.clone(),
            progress: self.progress.clone(),
            claim: self.claim,
            expected: self
                .last_cluster
                .as_ref()
                .and_then(|seen| seen.cluster.system_id()),
            basebackup_only: std::mem::take(&mut self.basebackup_only),
            start_limit,
            leaves_sync: self.is_sync_standby(),
            hurried: self.hurried.clone(),
            watchdog: Arc::clone(&self.watchdog),
        }
    }
}
