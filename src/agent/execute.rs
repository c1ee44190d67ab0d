//! [`Plan`] → adapters. Steps run in order; a refused or failed one ends the turn, the next turn decides afresh. Only a
//! leader's duties are done all the same where synchronous replication is refused something.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tracing::{debug, info, warn};

use super::{Agent, Step, handle::Request, instance::Instance, jobs};
use crate::{
    client::{Client, probe_peers},
    clock::Boottime,
    dcs::{DcsError, Key, When, Written},
    ha::{
        Action, DcsView, Job, LeaderFacts, LeaderProbe, Peers, Plan, Shutdown, Upstream, View, heirs::Heirs,
        lease,
    },
    model::{MemberName, SystemId, Version},
};

/// Patience with members that have a key, at most; and with those whose key has vanished. Each is paid in full for
/// a dead one, by every election.
const PEER_LIMIT: Duration = Duration::from_secs(1);
const VANISHED_LIMIT: Duration = Duration::from_millis(300);
/// How long one write may keep the loop.
const WRITE_LIMIT: Duration = Duration::from_secs(2);
/// Patience with the leader's postgres.
const LEADER_LIMIT: Duration = Duration::from_secs(2);

/// What became of one action.
pub(super) enum Done {
    /// Go on with the next.
    Yes,
    /// Somebody else was faster, or the store refused: end the turn.
    Refused(String),
}

impl Agent {
    /// Carries a plan out; answers to questions go into `view`.
    pub(super) async fn execute(&mut self, plan: &Plan, view: &mut View) -> Step {
        for (index, action) in plan.actions.iter().enumerate() {
            let done = match action {
                Action::ProbePeers { present, vanished } => {
                    let limit = PEER_LIMIT.min(self.dynamic.timing.retry_timeout);
                    let asked = probe_all(self.http.clone(), present, vanished, limit);
                    view.peers = Some(self.while_answering(asked).await);
                    return Step::DecideAgain;
                }
                Action::ProbeLeader(upstream) => {
                    let asked = probe_leader(Arc::clone(&self.instance), upstream, self.system_id.clone());
                    view.leader_probe = Some(self.while_answering(asked).await);
                    return Step::DecideAgain;
                }
                Action::Exit(exit) => return Step::Exit(*exit),
                Action::Begin(job) => {
                    self.begin(job.clone(), view);
                    Done::Yes
                }
                Action::CancelJob => {
                    self.cancel_job();
                    Done::Yes
                }
                Action::WriteSync(key) => self.write_sync(key, view).await,
                Action::DeleteSync(version) => self.delete_sync(*version).await,
                Action::SetSyncNames(names) => self.set_sync_names(names.as_ref()).await,
                Action::MarkSync(names) => self.mark_sync(names).await,
                Action::Follow(upstream) => self.follow(upstream.as_ref()).await,
                Action::AskConsent(of) => {
                    self.ask_consent(of, view);
                    Done::Yes
                }
                Action::LeaderDuties => {
                    self.leader_duties(view).await;
                    Done::Yes
                }
                other => self.store(other, view).await,
            };
            if let Done::Refused(why) = done {
                if self.refused {
                    debug!(action = ?action, why, "again not done");
                } else {
                    info!(action = ?action, why, "not done, looking again");
                }
                for duty in plan.despite_refused(index) {
                    self.duty(duty, view).await;
                }
                return Step::LookAgain;
            }
        }
        Step::Wait
    }

    async fn duty(&mut self, duty: &Action, view: &View) {
        match duty {
            Action::LeaderDuties => self.leader_duties(view).await,
            other => {
                if let Done::Refused(why) = self.store(other, view).await {
                    info!(action = ?other, why, "not done either");
                }
            }
        }
    }

    /// Actions on the store.
    async fn store(&mut self, action: &Action, view: &View) -> Done {
        match action {
            Action::AcquireLock => match lock(self.lease.acquire().await, "another member was faster") {
                Done::Yes if self.view_is_old() => {
                    // With it the next turn would promote, and ask nobody.
                    if !self.sight.local.may_write()
                        && let Err(error) = self.lease.release(None).await
                    {
                        warn!(%error, "could not release the lock, it will expire by itself");
                    }
                    Done::Refused("the view it was taken on is too old to be acted upon".to_owned())
                }
                done => {
                    self.note_taken(&done, view);
                    done
                }
            },
            Action::RenewLock => lock(self.lease.renew().await, "the lock is not ours any more"),
            Action::ReleaseLock(end) => {
                let status = end.and_then(|end| self.status_text(view, end));
                if let Err(error) = self.lease.release(status.as_deref()).await {
                    warn!(%error, "could not release the lock, it will expire by itself");
                }
                Done::Yes
            }
            Action::ClaimInitialize => {
                let written = self
                    .in_time(self.dcs.write(Key::Initialize, "", When::Absent))
                    .await;
                self.claim = match &written {
                    Ok(Written::Yes(version)) => Some(*version),
                    Ok(Written::Refused) | Err(_) => None,
                };
                answer(written)
            }
            Action::WriteInitialize(id, version) => self.write_initialize(id, *version).await,
            Action::AbandonInitialize(version) => answer(
                self.in_time(self.dcs.delete(Key::Initialize, When::Version(*version)))
                    .await,
            ),
            Action::WriteConfig => {
                let text = serde_json::Value::Object(self.dynamic.raw.clone()).to_string();
                let when = match &view.dcs {
                    DcsView::Known { cluster } => cluster.config_version.map_or(When::Absent, When::Version),
                    DcsView::Down { .. } => When::Absent,
                };
                self.write(Key::Config, &text, when).await
            }
            Action::WriteFailsafe { members, under } => {
                let text = serde_json::to_string(members).unwrap_or_default();
                let when = under.map_or(When::Absent, When::Version);
                self.write(Key::Failsafe, &text, when).await
            }
            Action::ClearFailover => {
                let version = match &view.dcs {
                    DcsView::Known { cluster } => cluster.failover_version,
                    DcsView::Down { .. } => None,
                };
                self.write(Key::Failover, "{}", version.map_or(When::Always, When::Version))
                    .await
            }
            other => Done::Refused(format!("not an action on the store: {other:?}")),
        }
    }

    async fn write_initialize(&self, id: &SystemId, version: Option<Version>) -> Done {
        self.write(
            Key::Initialize,
            &id.0,
            version.map_or(When::Absent, When::Version),
        )
        .await
    }

    async fn write(&self, key: Key, value: &str, when: When) -> Done {
        answer(self.in_time(self.dcs.write(key, value, when)).await)
    }

    async fn follow(&mut self, upstream: Option<&Upstream>) -> Done {
        let to = upstream.map_or_else(|| "nobody".to_owned(), |up| up.member.to_string());
        match self.instance.follow(upstream, &self.dynamic).await {
            Ok(()) => {
                info!(to, "following");
                Done::Yes
            }
            Err(error) => Done::Refused(error),
        }
    }

    fn begin(&mut self, job: Job, view: &View) {
        let mut context = self.job_context(self.last_status(view), None);
        let last = self.last_cluster.as_ref().map(|seen| &seen.cluster);
        let cluster = match &view.dcs {
            DcsView::Known { cluster } => Some(cluster),
            DcsView::Down { .. } => last,
        };
        context.heirs = cluster.map_or_else(Heirs::default, |cluster| Heirs::of(view, cluster));
        self.progress.send_replace(None);
        self.slots.pause();
        let what = job.clone();
        if !self
            .jobs
            .begin(job, Boottime::now(), |cancel| jobs::run(what, context, cancel))
        {
            debug!("the job slot is taken");
        }
    }

    /// A stop under way cannot go back. That this process is to stop faster it has been told already (see
    /// [`Agent::ask_to_stop`]); it is broken off, which means by force, only where there is no time for less.
    fn cancel_job(&self) {
        let stopping = matches!(self.jobs.view(), Some(running) if matches!(running.job, Job::Demote { .. }));
        let no_time = self.shutdown == Some(Shutdown::Immediate)
            || (self.sight.local.may_write() && !self.lease.counts());
        if !stopping || no_time {
            self.jobs.cancel();
        }
    }

    /// Waits for the answers of others, and answers them meanwhile: at the end of a leader all ask all others at the
    /// same moment, and whoever only asks makes everybody wait for the limit of the REST API. What was seen at the
    /// begin of this turn is new enough. Other requests have to wait for the end of the turn.
    async fn while_answering<T>(&mut self, asked: impl Future<Output = T>) -> T {
        let snapshot = self.publish("asking others", self.dynamic.timing.loop_wait);
        let mut asked = std::pin::pin!(asked);
        loop {
            // Cancel-safe: the questions go on in the next round, a request not received stays in its channel.
            tokio::select! {
                biased;
                answers = &mut asked => return answers,
                Some(request) = self.inbox.channel.recv() => match request {
                    Request::Refresh(reply) => {
                        // An asker that has gone away does not want to know.
                        let _gone = reply.send(Arc::clone(&snapshot));
                    }
                    other => self.inbox.waiting.push_back(other),
                },
            }
        }
    }
}

async fn probe_leader(instance: Arc<Instance>, leader: &Upstream, ours: Option<SystemId>) -> LeaderProbe {
    let facts = match instance.probe(leader, LEADER_LIMIT).await {
        // Following it, rewinding to it and copying it would all end in foreign data.
        Ok(probe) if leader.is_remote() && ours.is_some_and(|id| id != probe.system_id) => Err(format!(
            "it has the system identifier {}, which is another cluster's: see standby_cluster in /config",
            probe.system_id
        )),
        Ok(probe) => Ok(LeaderFacts {
            in_recovery: probe.in_recovery,
            timeline: probe.timeline,
            history: probe.history(),
            flushed: probe.flushed,
        }),
        Err(error) => Err(error),
    };
    debug!(leader = %leader.member, ?facts, "the leader's postgres says");
    LeaderProbe {
        leader: leader.member.clone(),
        at: Boottime::now(),
        facts,
    }
}

/// Both groups are asked at once; those whose key has vanished are most likely dead and get less time.
async fn probe_all(
    http: Client,
    present: &[(MemberName, String)],
    vanished: &[(MemberName, String)],
    limit: Duration,
) -> Peers {
    let (mut answers, gone) = tokio::join!(
        probe_peers(&http, present, limit),
        probe_peers(&http, vanished, VANISHED_LIMIT.min(limit))
    );
    answers.extend(gone);
    debug!(?answers, "the other members say");
    Peers {
        at: Boottime::now(),
        answers,
    }
}

fn lock(answer: Result<bool, DcsError>, lost: &str) -> Done {
    match answer {
        Ok(true) => Done::Yes,
        Ok(false) => Done::Refused(lost.to_owned()),
        Err(error) => Done::Refused(error.to_string()),
    }
}

/// How long a write of the loop may take. The store would go on trying for `retry_timeout`; the loop has more to look after
/// meanwhile: a primary whose store falls silent has to notice it, and to ask the other members, before its time is up, and
/// with a short ttl that is soon.
pub(super) fn write_limit(ttl: Duration) -> Duration {
    WRITE_LIMIT.min(lease::interval(ttl))
}

impl Agent {
    /// A write of the loop. What was not written is written by a later turn, and once one got no answer this turn writes no
    /// more.
    pub(super) async fn in_time<T>(
        &self,
        write: impl Future<Output = Result<T, DcsError>>,
    ) -> Result<T, DcsError> {
        let waited = write_limit(self.dynamic.timing.ttl);
        let silent = || DcsError::Timeout {
            endpoint: "the DCS".to_owned(),
            waited,
        };
        if self.is_store_silent() {
            return Err(silent());
        }
        let written = tokio::time::timeout(waited, write).await;
        let written = written.unwrap_or_else(|_| Err(silent()));
        if matches!(
            written,
            Err(DcsError::Timeout { .. } | DcsError::Transport { .. })
        ) {
            self.store_silent.store(true, Ordering::Relaxed);
        }
        written
    }

    /// Whether a write of this turn got no answer.
    pub(super) fn is_store_silent(&self) -> bool {
        self.store_silent.load(Ordering::Relaxed)
    }
}

pub(super) fn answer(written: Result<Written, DcsError>) -> Done {
    match written {
        Ok(Written::Yes(_)) => Done::Yes,
        Ok(Written::Refused) => Done::Refused("it was changed meanwhile".to_owned()),
        Err(error) => Done::Refused(error.to_string()),
    }
}
