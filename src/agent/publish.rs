//! What the agent tells about itself: the snapshot for the REST API, and its member key.

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value, json};
use tokio::time::timeout;
use tracing::{debug, info};

use super::{
    Agent, Progress,
    handle::{
        Answer, Copying, DcsView, Local as LocalStatus, Outlook, ReplicationState, Snapshot, Trouble,
        WIRE_VERSION, Walsender, Xlog,
    },
};
use crate::{
    clock::Boottime,
    ha::{self, Job, Local, Reason, View, why},
    model::{Lsn, MemberData, PgState, Role, Timeline},
    postgres::{
        postmaster::State,
        query::{LocalView, WalSender, Where},
    },
};

/// The member key is not worth more delay than this.
const TOUCH_LIMIT: Duration = Duration::from_secs(2);
/// Characters of what a failure says that are published.
const BECAUSE_MAX: usize = 200;
/// What passes sooner needs no reason.
const LASTING: Duration = Duration::from_secs(3);

impl Agent {
    /// Publishes the snapshot; logs a change of role or state once.
    pub(super) fn publish(&mut self, because: &str, next: Duration) -> Arc<Snapshot> {
        let snapshot = Arc::new(self.snapshot(next));
        let now = (snapshot.local.role, snapshot.local.state);
        let before = std::mem::replace(&mut self.announced, now);
        if before != now {
            let (from, to) = (
                format!("{}/{}", before.0, before.1),
                format!("{}/{}", now.0, now.1),
            );
            info!(from, to, because, "state changed");
        }
        if before.0 != now.0 {
            self.metrics.role_changed(before.0, now.0);
        }
        self.published.send_replace(Arc::clone(&snapshot));
        snapshot
    }

    fn snapshot(&self, next: Duration) -> Snapshot {
        let job = self.jobs.view().map(|running| running.job);
        let (role, state) = role_and_state(
            job.as_ref(),
            &self.sight.local,
            &self.sight.postmaster,
            self.memory.start_failures.0 > 0,
        );
        let state = match *self.progress.borrow() {
            Some(Progress::CustomBootstrap) if state == PgState::Initializing => PgState::CustomBootstrap,
            Some(Progress::Recovering) if state == PgState::Initializing => {
                PgState::StartingAfterCustomBootstrap
            }
            _ => state,
        };
        let standby_cluster = self.dynamic.standby.is_some();
        let role = match role {
            Role::Replica if standby_cluster && self.lease.hold().is_some() => Role::StandbyLeader,
            role => role,
        };
        let now = Boottime::now();
        Snapshot {
            observed_at: self.sight.at,
            member: self.identity.member.clone(),
            scope: self.identity.scope.clone(),
            tags: self.identity.tags.clone(),
            local: LocalStatus {
                role,
                state,
                postmaster_alive: self.sight.postmaster.pid().is_some(),
                answer: self.sight.answer.as_ref().map(answer),
                system_id: self.system_id.clone(),
                pending_restart: self.pending_restart.clone(),
                scheduled_restart: self.scheduled_restart.clone(),
                copies: self.copies,
                copying: self.copying(),
                handover: self.instance.last_handover(),
                trouble: self.trouble(now),
                remarks: self.remarks.clone(),
                watchdog_failed: self.no_watchdog.is_some(),
                split_brain_suspected: self.second_primary.suspected(),
                slots: self.retained_slots(),
            },
            dcs: self.last_cluster.as_ref().map(|seen| DcsView {
                cluster: Arc::clone(&seen.cluster),
                seen_at: seen.at,
            }),
            dcs_last_seen_epoch_s: self.last_cluster.as_ref().map_or(0, |seen| seen.epoch_s),
            leader_until: self.lease.hold().map(|hold| hold.sent_at + hold.ttl),
            failsafe_until: self.failsafe_until(),
            next_run: now + next,
            dynamic: self.dynamic.clone(),
            sync_mode: ha::sync::kind(&self.dynamic).into(),
            standby_cluster,
            outlook: self.outlook.clone(),
        }
    }

    fn copying(&self) -> Option<Copying> {
        match *self.progress.borrow() {
            Some(Progress::Clone {
                done_bytes,
                total_bytes,
            }) => Some(Copying {
                done_bytes,
                total_bytes,
            }),
            _ => None,
        }
    }

    /// Why this member neither streams nor is a primary; told when it changes and has lasted.
    pub(super) fn note_reason(&mut self, view: &View) {
        let now = Boottime::now();
        let before = self.trouble(now).map(|trouble| trouble.reason);
        self.idle = ha::reason(view, &self.memory, now)
            .map(|reason| (self.idle.map_or(now, |(since, _)| since), reason));
        let trouble = self.trouble(now);
        let after = trouble.as_ref().map(|trouble| trouble.reason);
        if before != after {
            let text = |reason: Option<Reason>| reason.map_or("none", Reason::code);
            let because = trouble.and_then(|trouble| trouble.because);
            let (from, to) = (text(before), text(after));
            // What a job does is told by the job.
            if after.or(before).is_some_and(Reason::is_work) {
                debug!(from, to, because, "reason for neither streaming nor leading");
            } else {
                info!(from, to, because, "reason for neither streaming nor leading");
            }
        }
    }

    fn trouble(&self, now: Boottime) -> Option<Trouble> {
        let (since, reason) = self.idle?;
        // Everybody may read it: the first words are enough, the rest is in the log.
        let short = |failure: &ha::Failure| failure.to_string().chars().take(BECAUSE_MAX).collect();
        let because = self
            .memory
            .last_failure
            .as_ref()
            .map(|(_, failure)| short(failure));
        (now.since(since) >= LASTING).then_some(Trouble { reason, because })
    }

    /// Writes the member key. A changed position alone is not worth a write before `loop_wait` is over; the call is
    /// made anyway because it also keeps the lease of a member that is not the leader.
    pub(super) async fn touch_member(&mut self) {
        let data = self.member_data();
        let now = Boottime::now();
        let text = match &self.touched {
            Some((old, at, text))
                if same_but_positions(old, &data) && now.since(*at) < self.dynamic.timing.loop_wait =>
            {
                text.clone()
            }
            _ => match serde_json::to_string(&data) {
                Ok(text) => text,
                Err(error) => {
                    debug!(%error, "could not render the member key");
                    return;
                }
            },
        };
        let limit = TOUCH_LIMIT.min(ha::lease::interval(self.dynamic.timing.ttl));
        match timeout(limit, self.dcs.touch_member(&text)).await {
            Ok(Ok(())) => {
                if self.touched.as_ref().is_none_or(|(_, _, old)| *old != text) {
                    self.touched = Some((data, now, text));
                }
            }
            Ok(Err(error)) => debug!(%error, "could not write the member key"),
            Err(_) => debug!("could not write the member key in time"),
        }
    }

    fn member_data(&self) -> MemberData {
        let snapshot = self.published.borrow().clone();
        let mut data = MemberData {
            conn_url: self.identity.conn_url.clone(),
            api_url: self.identity.api_url.clone(),
            proxy_url: self.identity.proxy_url.clone(),
            state: snapshot.local.state,
            role: snapshot.local.role,
            version: WIRE_VERSION.to_owned(),
            tags: self.published_tags(),
            pause: self.dynamic.pause.then_some(true),
            ..MemberData::default()
        };
        if !snapshot.local.pending_restart.is_empty() {
            data.pending_restart = Some(true);
            data.pending_restart_reason = Some(Value::Object(snapshot.local.pending_restart.clone()));
        }
        data.scheduled_restart = snapshot
            .local
            .scheduled_restart
            .as_ref()
            .map(|s| Value::Object(s.to_member_json()));
        data.howdah = snapshot
            .local
            .trouble
            .as_ref()
            .map(|trouble| Value::Object(trouble.to_json()));
        if let Some(answer) = &snapshot.local.answer {
            data.timeline = (answer.timeline != Timeline::UNKNOWN).then_some(answer.timeline);
            match &answer.xlog {
                Xlog::Primary { location } => {
                    data.xlog_location = Some(*location);
                    data.checkpoint_after_promote = self.checkpoint_pending().then_some(false);
                }
                Xlog::Replica {
                    received,
                    replayed,
                    replication,
                    ..
                } => {
                    data.xlog_location = Some((*received).max(*replayed));
                    data.receive_lsn = Some(*received);
                    data.replay_lsn = Some(*replayed);
                    data.replication_state = replication.map(|state| state.as_str().to_owned());
                }
            }
        }
        data
    }

    /// After a promotion pg_control names the old timeline until a checkpoint is complete; a rewind must wait for it.
    pub(super) fn checkpoint_pending(&self) -> bool {
        self.sight
            .answer
            .as_ref()
            .is_some_and(|answer| match &answer.place {
                Where::Primary(primary) => answer.checkpoint_timeline != primary.timeline,
                Where::Standby(_) => false,
            })
    }
}

/// What people want to know before something happens.
pub(super) fn outlook(view: &View, now: Boottime) -> Outlook {
    use ha::failsafe::Outlook::{Paused, Stays};
    let promise = match &view.dcs {
        ha::DcsView::Known { cluster } => why::promise(cluster, &view.dynamic),
        ha::DcsView::Down { .. } => "unknown while the DCS does not answer".to_owned(),
    };
    let without_dcs = ha::failsafe::outlook(view);
    Outlook {
        candidacy: why::candidacy(view, now),
        promise,
        without_dcs: without_dcs.to_string(),
        stays_without_dcs: matches!(without_dcs, Stays(_) | Paused),
    }
}

fn same_but_positions(old: &MemberData, new: &MemberData) -> bool {
    let blank = |data: &MemberData| MemberData {
        xlog_location: None,
        replay_lsn: None,
        receive_lsn: None,
        ..data.clone()
    };
    blank(old) == blank(new)
}

/// Role and state in the words of the contract.
fn role_and_state(
    job: Option<&Job>,
    local: &Local,
    postmaster: &State,
    start_failed: bool,
) -> (Role, PgState) {
    let role = match local {
        Local::Empty | Local::Leftover => Role::Uninitialized,
        Local::Running(running) if running.is_primary() => Role::Primary,
        Local::Starting { primary: true, .. } | Local::Silent { primary: true, .. } => Role::Primary,
        Local::Down(down) if down.was_primary() => Role::Demoted,
        _ => Role::Replica,
    };
    let state = match (job, local) {
        (Some(Job::Bootstrap), _) => return (Role::Uninitialized, PgState::Initializing),
        (Some(Job::Clone { .. } | Job::Restore | Job::BootstrapStandby), _) => {
            return (Role::Uninitialized, PgState::CreatingReplica);
        }
        (Some(Job::Rewind(_)), _) => PgState::Stopped,
        (Some(Job::Restart), _) => PgState::Restarting,
        (Some(Job::CopySlots { .. }), Local::Down(_) | Local::Stopping { .. }) => PgState::Restarting,
        (Some(Job::Demote { .. }), Local::Running(_) | Local::Stopping { .. } | Local::Silent { .. }) => {
            PgState::Stopping
        }
        (Some(Job::Start(_)), Local::Down(_) | Local::Starting { .. } | Local::Stopping { .. }) => {
            PgState::Starting
        }
        (_, Local::Running(_)) => PgState::Running,
        // Running as far as is known; the snapshot shows it as unknown because there is no answer.
        (_, Local::Silent { .. }) => PgState::Running,
        (_, Local::Starting { .. }) => PgState::Starting,
        (_, Local::Stopping { .. }) => PgState::Stopping,
        (_, Local::Down(_)) if start_failed => PgState::StartFailed,
        (_, Local::Down(_)) if matches!(postmaster, State::Stopped { last: Some(exit) } if !exit.requested) => {
            PgState::Crashed
        }
        (
            _,
            Local::Empty | Local::Leftover | Local::Broken { .. } | Local::Unknown { .. } | Local::Down(_),
        ) => PgState::Stopped,
    };
    (role, state)
}

fn answer(view: &LocalView) -> Answer {
    let xlog = match &view.place {
        Where::Primary(primary) => Xlog::Primary {
            location: primary.flush_lsn,
        },
        Where::Standby(standby) => Xlog::Replica {
            received: standby.received().unwrap_or(Lsn::INVALID),
            replayed: standby.replay_lsn.unwrap_or(Lsn::INVALID),
            replayed_timestamp: standby.replayed.clone(),
            paused: standby.paused,
            replication: if standby.is_streaming() {
                Some(ReplicationState::Streaming)
            } else {
                (!view.restore_command.is_empty()).then_some(ReplicationState::ArchiveRecovery)
            },
            latest_end: standby
                .receiver
                .as_ref()
                .and_then(|receiver| receiver.latest_end_lsn),
            replaying: standby.replaying,
            receiving: standby.receiving,
        },
    };
    Answer {
        server_version: view.version,
        postmaster_start_time: view.started.clone(),
        xlog,
        timeline: view.timeline(),
        walsenders: view.senders.iter().map(walsender).collect(),
    }
}

fn walsender(sender: &WalSender) -> Walsender {
    Walsender {
        usename: sender.usename.clone(),
        application_name: Some(sender.application_name.clone()),
        client_addr: sender.client_addr.clone(),
        state: sender.state.clone(),
        sync_state: sender.sync_state.clone(),
        sync_priority: sender.sync_priority,
    }
}

/// Settings that wait for a restart, as published: `{"guc": {"old_value", "new_value"}}`.
pub(super) fn pending(entries: impl IntoIterator<Item = (String, String, String)>) -> Map<String, Value> {
    entries
        .into_iter()
        .map(|(name, old, new)| (name, json!({"old_value": old, "new_value": new})))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ha::{Running, Standing, StartAs};

    fn stopped(requested: bool) -> State {
        use crate::postgres::postmaster::{ExitInfo, ExitStatus};
        State::Stopped {
            last: Some(ExitInfo {
                status: ExitStatus::Code(1),
                requested,
                at: Boottime(0),
            }),
        }
    }

    #[test]
    fn jobs_and_crashes_have_their_texts() {
        let primary = Local::Running(Running {
            standing: Standing::Primary { flushed: Lsn(1) },
            timeline: Timeline(1),
            parent: None,
            system_id: None,
        });
        let check = |job: Option<Job>, local: &Local, expected| {
            assert_eq!(
                role_and_state(job.as_ref(), local, &stopped(true), false),
                expected
            );
        };
        check(
            Some(Job::Bootstrap),
            &Local::Empty,
            (Role::Uninitialized, PgState::Initializing),
        );
        check(None, &Local::Empty, (Role::Uninitialized, PgState::Stopped));
        check(None, &primary, (Role::Primary, PgState::Running));
        check(Some(Job::Restart), &primary, (Role::Primary, PgState::Restarting));
        check(Some(Job::Promote), &primary, (Role::Primary, PgState::Running));
        check(
            Some(Job::Start(StartAs::Primary)),
            &Local::Stopping {
                since: Boottime(0),
                crashed: false,
            },
            (Role::Replica, PgState::Starting),
        );
    }

    #[test]
    fn positions_alone_are_no_news() {
        let old = MemberData {
            xlog_location: Some(Lsn(1)),
            ..MemberData::default()
        };
        let moved = MemberData {
            xlog_location: Some(Lsn(2)),
            ..MemberData::default()
        };
        let started = MemberData {
            state: PgState::Running,
            ..MemberData::default()
        };
        assert!(same_but_positions(&old, &moved));
        assert!(!same_but_positions(&old, &started));
    }
}
