//! Plans → the world (`src/agent/execute.rs`). Steps run in order; a refused or failed one ends the turn.

use std::{collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};

use howdah::{
    dcs::{Key, When},
    ha::{
        Action, DcsView, Finished, Job, LeaderFacts, LeaderProbe, Peers, Plan, RunningJob, Shutdown,
        Upstream, View, heirs::Heirs,
    },
    model::{Lsn, MemberName, PeerStatus, StatusKey, Timeline},
};

use super::{Agent, Cancel, Slot, Step, jobs};
use crate::{
    dcs::Trouble,
    exec::{First, MS, Reply, both, race},
};

const PEER_LIMIT: Duration = Duration::from_secs(1);
const VANISHED_LIMIT: Duration = Duration::from_millis(300);
const WRITE_LIMIT: Duration = Duration::from_secs(2);
const LEADER_LIMIT: Duration = Duration::from_secs(2);

impl Agent {
    pub(super) async fn execute(&self, plan: &Plan, view: &mut View) -> Step {
        for (index, action) in plan.actions.iter().enumerate() {
            let done = match action {
                Action::ProbePeers { present, vanished } => {
                    let limit = PEER_LIMIT.min(self.dynamic.borrow().timing.retry_timeout);
                    let asked = both(
                        self.probe(present, limit),
                        self.probe(vanished, VANISHED_LIMIT.min(limit)),
                    );
                    let (mut answers, gone) = self.while_answering(asked).await;
                    answers.extend(gone);
                    view.peers = Some(Peers {
                        at: self.now(),
                        answers,
                    });
                    return Step::DecideAgain;
                }
                Action::ProbeLeader(upstream) => {
                    let facts = self.while_answering(self.probe_leader(upstream)).await;
                    view.leader_probe = Some(LeaderProbe {
                        leader: upstream.member.clone(),
                        at: self.now(),
                        facts,
                    });
                    return Step::DecideAgain;
                }
                Action::Exit(exit) => return Step::Exit(*exit),
                Action::Begin(job) => {
                    self.begin(job.clone(), view);
                    true
                }
                Action::CancelJob => {
                    self.cancel_job();
                    true
                }
                Action::AskConsent(of) => {
                    self.ask_consent(of);
                    true
                }
                Action::WriteSync(key) => self.write_sync(key).await,
                Action::DeleteSync(version) => self.delete_sync(*version).await,
                Action::SetSyncNames(names) => self.set_sync_names(names.as_ref()),
                Action::MarkSync(names) => self.mark_sync(names).await,
                Action::Follow(upstream) => self.follow(upstream.as_ref()),
                Action::LeaderDuties => {
                    self.duty(action, view).await;
                    true
                }
                other => self.store(other, view).await,
            };
            if !done {
                for duty in plan.despite_refused(index) {
                    self.duty(duty, view).await;
                }
                return Step::LookAgain;
            }
        }
        Step::Wait
    }

    /// Refused or not: the turn ends.
    async fn duty(&self, duty: &Action, view: &View) {
        match (duty, &view.dcs) {
            (Action::LeaderDuties, DcsView::Known { cluster }) => self.leader_duties(cluster).await,
            (Action::LeaderDuties, DcsView::Down { .. }) => {}
            (other, _) => {
                self.store(other, view).await;
            }
        }
    }

    async fn store(&self, action: &Action, view: &View) -> bool {
        match action {
            Action::AcquireLock => {
                let taken = matches!(self.lease.acquire().await, Ok(true));
                if taken {
                    self.world.note_acquired(self.node);
                }
                taken && !self.view_is_old()
            }
            Action::RenewLock => matches!(self.lease.renew().await, Ok(true)),
            Action::ReleaseLock(end) => {
                let status = end.map(|end| StatusKey {
                    optime: end,
                    ..self.last_status(view)
                });
                self.lease.release(status).await;
                true
            }
            Action::ClaimInitialize => {
                let write = self.dcs.write(Key::Initialize, When::Absent, |cluster, version| {
                    cluster.initialize = Some(String::new());
                    cluster.initialize_version = Some(version);
                });
                let claim = self.in_time(write).await;
                self.claim.set(claim.ok().flatten());
                matches!(claim, Ok(Some(_)))
            }
            Action::WriteInitialize(id, version) => {
                crate::properties::registers(&self.world, self.node);
                let text = id.0.clone();
                let when = version.map_or(When::Absent, When::Version);
                let write = self.dcs.write(Key::Initialize, when, move |cluster, version| {
                    cluster.initialize = Some(text);
                    cluster.initialize_version = Some(version);
                });
                matches!(self.in_time(write).await, Ok(Some(_)))
            }
            Action::WriteFailsafe { members, under } => {
                let when = under.map_or(When::Absent, When::Version);
                let value = members
                    .iter()
                    .map(|(name, url)| (name.0.clone(), url.clone().into()))
                    .collect();
                let write = self.dcs.write(Key::Failsafe, when, move |cluster, version| {
                    cluster.failsafe = Some(value);
                    cluster.failsafe_version = Some(version);
                });
                matches!(self.in_time(write).await, Ok(Some(_)))
            }
            Action::AbandonInitialize(version) => {
                matches!(
                    self.in_time(self.dcs.delete(Key::Initialize, *version)).await,
                    Ok(true)
                )
            }
            Action::WriteConfig => {
                let raw = self.dynamic.borrow().raw.clone();
                let when = match &view.dcs {
                    DcsView::Known { cluster } => cluster.config_version.map_or(When::Absent, When::Version),
                    DcsView::Down { .. } => When::Absent,
                };
                let write = self.dcs.write(Key::Config, when, move |cluster, version| {
                    cluster.config = Some(raw);
                    cluster.config_version = Some(version);
                });
                matches!(self.in_time(write).await, Ok(Some(_)))
            }
            Action::ClearFailover => {
                let version = match &view.dcs {
                    DcsView::Known { cluster } => cluster.failover_version,
                    DcsView::Down { .. } => None,
                };
                let when = version.map_or(When::Always, When::Version);
                let write = self.dcs.write(Key::Failover, when, |cluster, version| {
                    cluster.failover = None;
                    cluster.failover_version = Some(version);
                });
                matches!(self.in_time(write).await, Ok(Some(_)))
            }
            _ => false,
        }
    }

    pub(super) fn last_status(&self, view: &View) -> StatusKey {
        match &view.dcs {
            DcsView::Known { cluster } => cluster.status.clone(),
            DcsView::Down { .. } => self
                .last_cluster
                .borrow()
                .as_ref()
                .map(|(cluster, _)| cluster.status.clone())
                .unwrap_or_default(),
        }
    }

    /// A lock taken on a view from long ago proves too little.
    fn view_is_old(&self) -> bool {
        let ttl = self.dynamic.borrow().timing.ttl;
        let asked_at = self.last_cluster.borrow().as_ref().map(|(_, at)| *at);
        asked_at.is_none_or(|at| self.now().since(at) >= ttl / 2)
    }

    pub(super) async fn in_time<T>(
        &self,
        write: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        match race(write, self.local_sleep(WRITE_LIMIT)).await {
            First::One(done) => done,
            First::Two(()) => Err(Trouble::Timeout),
        }
    }

    fn follow(&self, upstream: Option<&Upstream>) -> bool {
        let pg = &self.world.nodes[self.node].pg;
        if self.world.nodes[self.node].disk_full.get() {
            return false;
        }
        self.prepare_sync_names(pg.primary.get());
        pg.upstream
            .set(upstream.and_then(|up| self.world.index_of(&up.member)));
        pg.asked.ring(&self.world.sim);
        true
    }

    fn begin(&self, job: Job, view: &View) {
        if self.slot.borrow().is_some() {
            return;
        }
        let cancel = Rc::new(Cancel::default());
        *self.slot.borrow_mut() = Some(Slot {
            running: RunningJob {
                job: job.clone(),
                since: self.now(),
            },
            cancel: Rc::clone(&cancel),
        });
        self.world.note_job(self.node, &job, view);
        let agent = self.world.nodes[self.node].agent.borrow().clone();
        let Some(agent) = agent else { return };
        let status = self.last_status(view);
        let seen = match &view.dcs {
            DcsView::Known { cluster } => Some(Arc::clone(cluster)),
            DcsView::Down { .. } => self
                .last_cluster
                .borrow()
                .as_ref()
                .map(|(cluster, _)| Arc::clone(cluster)),
        };
        let heirs = seen.map_or_else(Heirs::default, |cluster| Heirs::of(view, &cluster));
        let cluster = self
            .last_cluster
            .borrow()
            .as_ref()
            .map(|(cluster, _)| Arc::clone(cluster));
        self.world.sim.spawn(self.proc, async move {
            let context = jobs::Context {
                agent: Rc::clone(&agent),
                status,
                cluster,
                heirs,
                cancel,
            };
            let outcome = context.run(&job).await;
            agent.world.say(agent.node, || match &outcome {
                Ok(()) => format!("{} done", job.name()),
                Err(why) => format!("{} failed: {why}", job.name()),
            });
            if job == Job::Bootstrap {
                agent.claim.set(None);
            }
            *agent.ended.borrow_mut() = Some(Finished { job, outcome });
            agent.wake.ring(&agent.world.sim);
        });
    }

    /// A stop under way cannot go back; it is broken off only where there is no time for less.
    fn cancel_job(&self) {
        let slot = self.slot.borrow();
        let Some(slot) = slot.as_ref() else { return };
        let stopping = matches!(slot.running.job, Job::Demote { .. });
        let no_time = self.shutdown.get() == Some(Shutdown::Immediate)
            || (self.sight.borrow().may_write() && !self.lease.counts());
        if !stopping || no_time {
            slot.cancel.cancel(&self.world);
        }
    }

    /// Waits for the answers of others, and answers them meanwhile.
    async fn while_answering<T>(&self, asked: impl Future<Output = T>) -> T {
        self.publish();
        let mut asked = std::pin::pin!(asked);
        loop {
            match race(asked.as_mut(), self.question()).await {
                First::One(answers) => return answers,
                First::Two(reply) => reply.send(&self.world.sim, self.snapshot.borrow().clone()),
            }
        }
    }

    /// Asks members for their positions, all at once.
    async fn probe(
        &self,
        members: &[(MemberName, String)],
        limit: Duration,
    ) -> BTreeMap<MemberName, Option<PeerStatus>> {
        let mut replies = Vec::with_capacity(members.len());
        for (name, _) in members {
            let reply = Reply::new();
            if let Some(to) = self.world.index_of(name) {
                let (world, from, answer) = (Rc::clone(&self.world), self.node, Rc::clone(&reply));
                self.world.sim.spawn(self.proc, async move {
                    let status = ask_peer(&world, from, to).await;
                    answer.send(&world.sim, status);
                });
            }
            replies.push((name.clone(), reply));
        }
        let deadline = self.local_sleep(limit);
        let mut deadline = std::pin::pin!(deadline);
        let mut over = false;
        let mut answers = BTreeMap::new();
        for (name, reply) in replies {
            let status = if over {
                let now = reply.wait(&self.world.sim);
                match race(now, std::future::ready(())).await {
                    First::One(status) => status,
                    First::Two(()) => None,
                }
            } else {
                match race(reply.wait(&self.world.sim), deadline.as_mut()).await {
                    First::One(status) => status,
                    First::Two(()) => {
                        over = true;
                        None
                    }
                }
            };
            answers.insert(name, status);
        }
        answers
    }

    async fn probe_leader(&self, leader: &Upstream) -> Result<LeaderFacts, String> {
        let Some(to) = self.world.index_of(&leader.member) else {
            return Err("unknown host".to_owned());
        };
        match race(
            ask_postgres(&self.world, self.node, to),
            self.local_sleep(LEADER_LIMIT),
        )
        .await
        {
            First::One(facts) => facts.map(|probe| probe.0),
            First::Two(()) => Err("no answer".to_owned()),
        }
    }
}

/// `GET /patroni` of another member.
pub(super) async fn ask_peer(world: &Rc<crate::world::World>, from: usize, to: usize) -> Option<PeerStatus> {
    world.net.transit(&world.sim, from, to).await;
    let agent = world.nodes[to].agent.borrow().clone()?;
    let reply = Reply::new();
    let (answer, sim) = (Rc::clone(&reply), world.sim.clone());
    world.sim.spawn(agent.proc, async move {
        let snapshot = Rc::clone(&agent).answer().await;
        answer.send(&sim, snapshot);
    });
    let snapshot = reply.wait(&world.sim).await;
    world.net.transit(&world.sim, to, from).await;
    snapshot.status
}

/// Asks a member's postgres what it is; with the timeline its control file names.
pub(super) async fn ask_postgres(
    world: &Rc<crate::world::World>,
    from: usize,
    to: usize,
) -> Result<(LeaderFacts, u32), String> {
    world.net.transit(&world.sim, from, to).await;
    let pg = &world.nodes[to].pg;
    while pg.hung.get() || world.sim_frozen(pg.server.get()) {
        world.sim.sleep(100 * MS).await;
    }
    let facts = {
        let data = pg.data.borrow();
        let data = data
            .as_ref()
            .filter(|_| pg.running())
            .ok_or("connection refused")?;
        let wal = world.wal.borrow();
        let in_recovery = !pg.primary.get();
        let facts = LeaderFacts {
            in_recovery,
            timeline: Timeline(wal.timeline(data.branch)),
            history: wal.history(data.branch),
            flushed: Lsn(if in_recovery {
                pg.replayed.get()
            } else {
                data.flushed
            }),
        };
        (facts, wal.timeline(data.checkpoint.branch))
    };
    world.net.transit(&world.sim, to, from).await;
    Ok(facts)
}
