//! The long work itself (`src/agent/jobs.rs`, `instance/`).

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use howdah::{
    clock::Boottime,
    dcs::{Key, When},
    ha::{
        DemoteMode, Failure, Job, Source, StartAs, Upstream,
        heirs::{End, Heirs, Progress},
    },
    model::{Cluster, DbState, Lsn, StatusKey, Timeline},
};

use super::{
    Agent, Cancel,
    execute::{ask_peer, ask_postgres},
};
use crate::{
    exec::{Bell, First, MS, SECOND, both, race},
    mutants::Mutant,
    postgres::{Data, Phase, Stop, launch, promote, stop_request},
    wal::{Branch, Pos},
};

const REPLICA_START_LIMIT: Duration = Duration::from_secs(3600);
const RECEIVER_WAIT: Duration = Duration::from_secs(2);
const CLEAR_LIMIT: Duration = Duration::from_secs(1);
const FORCED_STOP: Duration = Duration::from_secs(3);

pub(super) struct Context {
    pub(super) agent: Rc<Agent>,
    pub(super) status: StatusKey,
    pub(super) cluster: Option<Arc<Cluster>>,
    /// Who may lead after a leader that stops.
    pub(super) heirs: Heirs,
    pub(super) cancel: Rc<Cancel>,
}

type Outcome = Result<(), Failure>;

/// What becomes of the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lock {
    GivenAway,
    Kept,
    Untouched,
}

/// How long each rung of a stop lasts; SIGKILL comes after them.
#[derive(Debug, Clone, Copy)]
struct Ladder {
    fast: Duration,
    immediate: Duration,
}

impl Context {
    pub(super) async fn run(&self, job: &Job) -> Outcome {
        let done = match job {
            Job::Bootstrap => self.bootstrap().await,
            Job::Clone { from, keep: _ } => self.clone_from(from).await,
            Job::Rewind(to) => self.rewind(to).await,
            Job::Start(start_as) => self.start(start_as, false).await,
            Job::Restart => self.restart().await,
            Job::Promote => self.promote().await,
            Job::Demote { mode, deadline } => self.demote(*mode, *deadline).await,
            // There are no logical slots in this world, no other cluster to follow, and no commands of an operator.
            Job::CopySlots { .. } => Ok(()),
            Job::BootstrapStandby | Job::Restore => Self::failed("nothing of the kind is here"),
        };
        done.map_err(|failure| {
            if self.cancel.is() {
                Failure::Cancelled(failure.to_string())
            } else {
                failure
            }
        })
    }

    fn failed<T>(why: &str) -> Result<T, Failure> {
        Err(Failure::Failed(why.to_owned()))
    }

    async fn bootstrap(&self) -> Outcome {
        let (agent, world) = (&self.agent, &self.agent.world);
        let host = &world.nodes[agent.node];
        let Some(claim) = agent.claim.get() else {
            return Self::failed("bootstrapping was not claimed in the DCS");
        };
        let work = world.sim.sleep(world.between(SECOND, 3 * SECOND));
        let cancelled = matches!(race(work, self.cancel.cancelled(world)).await, First::Two(()));
        if cancelled || host.disk_full.get() {
            // Only our own claim, and the outcome is looked at by others.
            let _tried = agent.dcs.delete(Key::Initialize, claim).await;
            return Self::failed("initdb failed");
        }
        let system = world.note_initdb(agent.node);
        {
            let branch = Branch {
                parent: None,
                timeline: 1,
                owner: agent.node,
                system,
            };
            let branch = world.wal.borrow_mut().branch(branch);
            let mut data = Data::fresh(branch, 1000);
            data.incomplete = false;
            *host.pg.data.borrow_mut() = Some(data);
        }
        let id = crate::postgres::system_id(system).0;
        let write = agent
            .dcs
            .write(Key::Initialize, When::Version(claim), move |cluster, version| {
                cluster.initialize = Some(id);
                cluster.initialize_version = Some(version);
            });
        if matches!(write.await, Ok(None)) {
            if let Some(data) = host.pg.data.borrow_mut().as_mut() {
                data.incomplete = true;
            }
            return Self::failed("another member has initialized the cluster meanwhile");
        }
        let raw = agent.dynamic.borrow().raw.clone();
        let write = agent
            .dcs
            .write(Key::Config, When::Absent, move |cluster, version| {
                cluster.config = Some(raw);
                cluster.config_version = Some(version);
            });
        // The leader writes what is missing as one of its duties.
        let _later = write.await;
        Ok(())
    }

    async fn stop_for_repair(&self) -> Outcome {
        let ladder = Ladder {
            fast: Duration::from_secs(10),
            immediate: Duration::from_secs(5),
        };
        self.agent.stop_postgres(Stop::Fast, ladder).await;
        Ok(())
    }

    /// A copy in a side directory, put in place once it is complete.
    async fn clone_from(&self, from: &Upstream) -> Outcome {
        self.stop_for_repair().await?;
        let (agent, world) = (&self.agent, &self.agent.world);
        let host = &world.nodes[agent.node];
        let Some(source) = world.index_of(&from.member) else {
            return Self::failed("unknown host");
        };
        if let Err(error) = ask_postgres(world, agent.node, source).await {
            world.sim.sleep(5 * SECOND).await;
            return Self::failed(&error);
        }
        let serial = world.nodes[source].pg.serial.get();
        let start = world.nodes[source].pg.flushed();
        if world.mutant == Some(Mutant::CloneInPlace) {
            let mut data = world.nodes[source].pg.data.borrow().clone();
            if let (Some(data), Some(start)) = (data.as_mut(), start) {
                *data = Data::copy_of(data, start);
                data.consistent_at = None;
                data.half = true;
            }
            *host.pg.data.borrow_mut() = data;
        }
        let work = async {
            let mut left = world.between(SECOND, 12 * SECOND);
            while left > 0 {
                let step = left.min(SECOND);
                world.sim.sleep(step).await;
                world.net.transit(&world.sim, source, agent.node).await;
                left -= step;
                let server = &world.nodes[source].pg;
                if server.serial.get() != serial || !server.running() || host.disk_full.get() {
                    return false;
                }
            }
            true
        };
        let copied = race(
            race(work, self.cancel.cancelled(world)),
            agent.local_sleep(Duration::from_secs(60)),
        );
        let copied = matches!(copied.await, First::One(First::One(true)));
        let copy = {
            let server = world.nodes[source].pg.data.borrow();
            server.as_ref().zip(start).map(|(data, start)| {
                let mut copy = Data::copy_of(
                    data,
                    Pos {
                        branch: data.branch,
                        lsn: data.flushed,
                    },
                );
                copy.wal_from = start.lsn.min(copy.wal_from);
                copy
            })
        };
        match copy {
            Some(copy) if copied => {
                world.cover(agent.node, "event:cloned");
                *host.pg.data.borrow_mut() = Some(copy);
                Ok(())
            }
            _ => Self::failed("the copy broke off"),
        }
    }

    async fn rewind(&self, to: &Upstream) -> Outcome {
        self.stop_for_repair().await?;
        let (agent, world) = (&self.agent, &self.agent.world);
        let host = &world.nodes[agent.node];
        let Some(source) = world.index_of(&to.member) else {
            return Self::failed("unknown host");
        };
        let until = agent.now() + Duration::from_secs(60);
        loop {
            let seen = race(
                ask_postgres(world, agent.node, source),
                agent.local_sleep(Duration::from_secs(5)),
            );
            if let First::One(Ok((facts, control))) = seen.await
                && !facts.in_recovery
            {
                if facts.timeline.0 == control {
                    break;
                }
                let world = Rc::clone(world);
                if let Some(server) = world.nodes[source].pg.server.get() {
                    let task = Rc::clone(&world);
                    world.sim.spawn(server, async move {
                        crate::postgres::checkpoint(&task, source).await;
                    });
                }
            }
            if self.cancel.is() {
                return Err(Failure::Cancelled("cancelled before the rewind".to_owned()));
            }
            if agent.now() >= until {
                return Err(Failure::NotYet("the leader cannot be rewound to yet".to_owned()));
            }
            race(
                agent.local_sleep(Duration::from_millis(250)),
                self.cancel.cancelled(world),
            )
            .await;
        }
        world.sim.sleep(world.between(100 * MS, 2 * SECOND)).await;
        let (ours, mine, theirs) = {
            let data = host.pg.data.borrow();
            let Some(data) = data.as_ref() else {
                return Self::failed("no data");
            };
            let wal = world.wal.borrow();
            let server = world.nodes[source].pg.data.borrow();
            let Some(server) = server.as_ref() else {
                return Self::failed("no data there");
            };
            (data.end(), wal.timeline(data.branch), wal.timeline(server.branch))
        };
        if mine == theirs {
            return Self::failed("pg_rewind found nothing to rewind although the histories have parted");
        }
        // From here on files are overwritten in place; the marker is there.
        if let Some(data) = host.pg.data.borrow_mut().as_mut() {
            data.incomplete = true;
            data.half = true;
        }
        let serial = world.nodes[source].pg.serial.get();
        let work = world.sim.sleep(world.between(200 * MS, 4 * SECOND));
        let cancelled = matches!(race(work, self.cancel.cancelled(world)).await, First::Two(()));
        let server = &world.nodes[source].pg;
        let reachable = world.net.up(agent.node, source) && world.net.up(source, agent.node);
        if cancelled
            || !server.running()
            || server.serial.get() != serial
            || !reachable
            || host.disk_full.get()
        {
            return Self::failed("pg_rewind failed (directory unusable)");
        }
        let rewound = {
            let data = server.data.borrow();
            let Some(data) = data.as_ref() else {
                return Self::failed("no data there");
            };
            let end = Pos {
                branch: data.branch,
                lsn: data.flushed,
            };
            let Some(common) = world.wal.borrow().common(ours, end) else {
                return Self::failed("source and target are of different systems");
            };
            // All of the source's pg_wal is copied, so nothing has to be streamed before it is consistent.
            let mut rewound = Data::copy_of(data, end);
            rewound.checkpoint = if common.lsn < data.checkpoint.lsn {
                common
            } else {
                data.checkpoint
            };
            rewound
        };
        world.cover(agent.node, "event:rewound");
        *host.pg.data.borrow_mut() = Some(rewound);
        Ok(())
    }

    fn may_lead(&self) -> Outcome {
        if self.cancel.is() {
            return Self::failed("cancelled");
        }
        match self.agent.lease.hold() {
            None => Self::failed("the lock is not held"),
            Some(_) if self.agent.lease.counts() => Ok(()),
            Some(_) => Self::failed("the lease is about to run out"),
        }
    }

    async fn start(&self, start_as: &StartAs, free: bool) -> Outcome {
        let (agent, world) = (&self.agent, &self.agent.world);
        let pg = &world.nodes[agent.node].pg;
        let limit = match start_as {
            StartAs::Primary => {
                if !free {
                    self.may_lead()?;
                }
                agent
                    .dynamic
                    .borrow()
                    .primary_start_timeout
                    .max(Duration::from_secs(1))
            }
            StartAs::Replica(_) => REPLICA_START_LIMIT,
        };
        // `postgres -C`, files.
        world.sim.sleep(world.between(20 * MS, 120 * MS)).await;
        if world.nodes[agent.node].disk_full.get() {
            return Self::failed("No space left on device");
        }
        if self.cancel.is() {
            return Self::failed("cancelled");
        }
        if !matches!(pg.phase.get(), Phase::Stopped { .. }) {
            return Self::failed("postgres runs already");
        }
        let upstream = match start_as {
            StartAs::Replica(Some(up)) => world.index_of(&up.member),
            _ => None,
        };
        agent.prepare_sync_names(*start_as == StartAs::Primary);
        world.note_start(agent.node);
        launch(world, agent.node, *start_as == StartAs::Primary, upstream);
        let serial = pg.serial.get();
        let up = async {
            loop {
                let mut seen = pg.state.count();
                if pg.serial.get() != serial {
                    return false;
                }
                match pg.phase.get() {
                    Phase::Running => return true,
                    Phase::Stopped { .. } => return false,
                    _ => pg.state.rung(&world.sim, &mut seen).await,
                }
            }
        };
        let started = race(up, race(self.cancel.cancelled(world), agent.local_sleep(limit))).await;
        match started {
            First::One(true) => Ok(()),
            First::One(false) => Self::failed("postgres ended while it was starting"),
            First::Two(_) => {
                let force = Ladder {
                    fast: Duration::ZERO,
                    immediate: Duration::from_secs(2),
                };
                agent.stop_postgres(Stop::Immediate, force).await;
                Self::failed("not started in time")
            }
        }
    }

    async fn restart(&self) -> Outcome {
        let agent = &self.agent;
        let pg = &agent.world.nodes[agent.node].pg;
        let primary = pg.primary.get();
        let upstream = pg.upstream.get();
        let ladder = Ladder {
            fast: agent
                .dynamic
                .borrow()
                .primary_stop_timeout
                .max(Duration::from_secs(30)),
            immediate: Duration::from_secs(5),
        };
        let counted = primary && agent.lease.counts();
        self.orderly(ladder, counted, false, Lock::Kept).await;
        if self.cancel.is() {
            if primary {
                self.release().await;
            }
            return Err(Failure::Cancelled("cancelled; postgres is stopped".to_owned()));
        }
        let start_as = if primary {
            StartAs::Primary
        } else {
            StartAs::Replica(upstream.map(|up| Upstream {
                member: agent.world.nodes[up].name.clone(),
                host: agent.world.nodes[up].host.clone(),
                port: 5432,
                source: Source::Member,
            }))
        };
        // A person asks for it, and a paused primary needs no lock.
        let free = agent.dynamic.borrow().pause;
        self.start(&start_as, free).await
    }

    /// Resolves when there is no time left.
    async fn over(&self, counted: bool) {
        let expired = async {
            if counted {
                self.agent.lease.expired().await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        race(self.cancel.cancelled(&self.agent.world), expired).await;
    }

    async fn stop_by_force(&self) {
        let left = self
            .agent
            .lease
            .fence_left()
            .unwrap_or(FORCED_STOP)
            .min(FORCED_STOP);
        let forced = Ladder {
            fast: Duration::ZERO,
            immediate: left * 6 / 10,
        };
        self.agent.stop_postgres(Stop::Immediate, forced).await;
    }

    async fn promote(&self) -> Outcome {
        self.may_lead()?;
        let (agent, world) = (&self.agent, &self.agent.world);
        let host = &world.nodes[agent.node];
        let pg = &host.pg;
        if let Some(cluster) = &self.cluster {
            let wanted = agent.wanted_slots(cluster);
            if let Some(data) = pg.data.borrow_mut().as_mut() {
                for node in wanted {
                    data.slots
                        .entry(node)
                        .or_insert(data.wal_from.max(data.checkpoint.lsn));
                }
            }
        }
        world.sim.sleep(world.between(MS, 20 * MS)).await;
        self.may_lead()?;
        let start_limit = agent.dynamic.borrow().primary_start_timeout;
        let limit = start_limit.clamp(Duration::from_secs(60), Duration::from_secs(3600));
        let rows = self.cluster.as_ref().and_then(|cluster| cluster.history.clone());
        let reserved = rows
            .as_deref()
            .and_then(<[_]>::last)
            .map_or(0, |row| row.timeline.0 + 1);
        let answers = async {
            while pg.hung.get() || world.sim_frozen(pg.server.get()) {
                world.sim.sleep(50 * MS).await;
            }
            world.sim.sleep(MS).await;
        };
        let counted = agent.lease.counts();
        let asked = race(self.over(counted), race(answers, agent.local_sleep(limit))).await;
        if !matches!(asked, First::Two(First::One(()))) || !pg.running() {
            return Self::failed("the server cannot be asked whether it is a standby");
        }
        let serial = pg.serial.get();
        if !pg.primary.get() {
            world.note_promotion_asked(agent.node);
            promote(world, agent.node, reserved);
        }
        let promoted = async {
            loop {
                let mut seen = pg.state.count();
                if pg.serial.get() != serial || !pg.running() {
                    return false;
                }
                if pg.primary.get() {
                    return true;
                }
                pg.state.rung(&world.sim, &mut seen).await;
            }
        };
        let done = race(self.over(counted), race(promoted, agent.local_sleep(limit))).await;
        let promoted = matches!(done, First::Two(First::One(true)));
        if !promoted || !agent.lease.counts() {
            self.stop_by_force().await;
            return Self::failed("the promotion failed");
        }
        let branch = pg.data.borrow().as_ref().map(|data| data.branch);
        let timeline = Timeline(pg.timeline(&world.wal.borrow()));
        let local = agent.local_history(branch);
        if let Some(rows) = agent.history_update(rows.as_deref(), &local, timeline) {
            agent.write_history(rows).await;
        }
        Ok(())
    }

    /// Right after a change of leader there may be nobody who streams for a moment.
    async fn await_receiver(&self, limit: Duration, counted: bool) {
        let agent = &self.agent;
        let world = &agent.world;
        let me = &world.nodes[agent.node].name;
        let Some(cluster) = &self.cluster else { return };
        let successors: Vec<usize> = cluster
            .members
            .iter()
            .filter(|member| member.name != *me && !member.tags().nofailover())
            .filter_map(|member| world.index_of(&member.name))
            .collect();
        if successors.is_empty() {
            return;
        }
        let there = async {
            loop {
                let pg = &world.nodes[agent.node].pg;
                if !pg.primary.get() || pg.senders.borrow().iter().any(|s| successors.contains(&s.node)) {
                    return;
                }
                world.sim.sleep(50 * MS).await;
            }
        };
        race(
            race(there, agent.local_sleep(limit)),
            race(self.over(counted), agent.hurried.cancelled(world)),
        )
        .await;
    }

    async fn demote(&self, mode: DemoteMode, deadline: Boottime) -> Outcome {
        let agent = &self.agent;
        let world = &agent.world;
        let begun = agent.now();
        let counted = agent.lease.counts();
        if world.mutant == Some(Mutant::ReleaseFirst)
            && matches!(
                mode,
                DemoteMode::Graceful | DemoteMode::Fast | DemoteMode::Immediate
            )
        {
            self.release().await;
        }
        if mode == DemoteMode::Graceful {
            self.await_receiver(RECEIVER_WAIT.min(deadline.since(begun) / 4), counted)
                .await;
            let checkpoint = async {
                let pg = &world.nodes[agent.node].pg;
                while pg.hung.get() || world.sim_frozen(pg.server.get()) {
                    world.sim.sleep(50 * MS).await;
                }
                crate::postgres::checkpoint(world, agent.node).await;
            };
            race(
                race(checkpoint, agent.local_sleep(deadline.since(begun) / 2)),
                race(self.over(counted), agent.hurried.cancelled(world)),
            )
            .await;
        }
        let left = deadline.since(agent.now());
        let ladder = Ladder {
            fast: left * 6 / 10,
            immediate: left * 3 / 10,
        };
        let released = match mode {
            DemoteMode::Graceful | DemoteMode::Fast => {
                self.orderly(ladder, counted, true, Lock::GivenAway).await
            }
            // Nobody follows another cluster here.
            DemoteMode::Offline | DemoteMode::Cluster => {
                self.orderly(ladder, counted, true, Lock::Untouched).await
            }
            DemoteMode::Immediate | DemoteMode::ImmediateNoLock => {
                agent.stop_postgres(Stop::Immediate, ladder).await;
                false
            }
        };
        match mode {
            DemoteMode::Graceful | DemoteMode::Fast if released => {}
            DemoteMode::Graceful | DemoteMode::Fast | DemoteMode::Immediate => self.release().await,
            DemoteMode::ImmediateNoLock | DemoteMode::Offline | DemoteMode::Cluster => agent.lease.forget(),
        }
        Ok(())
    }

    /// A fast stop that waits for nobody but a successor, and gives the lock away as soon as that is safe
    /// (`src/agent/orderly_stop.rs`); true: it did.
    async fn orderly(&self, ladder: Ladder, counted: bool, cancellable: bool, lock: Lock) -> bool {
        let (agent, world) = (&self.agent, &self.agent.world);
        let pg = &world.nodes[agent.node].pg;
        let state = || pg.data.borrow().as_ref().map(|data| data.state);
        let before = state();
        let stopping = agent.stop_postgres(Stop::Fast, ladder);
        let mut stopping = std::pin::pin!(stopping);
        let shut_down = async {
            if before.is_none_or(DbState::is_clean) {
                std::future::pending::<()>().await;
            }
            while !state().is_some_and(DbState::is_clean) {
                world.sim.sleep(20 * MS).await;
            }
        };
        match race(
            race(stopping.as_mut(), self.too_late(counted, cancellable)),
            shut_down,
        )
        .await
        {
            First::One(First::One(())) => return false,
            First::One(First::Two(())) => {
                self.stop_by_force().await;
                return false;
            }
            First::Two(()) => {}
        }
        let gives =
            lock == Lock::GivenAway && state() == Some(DbState::ShutDown) && agent.lease.may_be_ours();
        let (mut released, mut wait) = (false, Duration::from_secs(1));
        if gives && !self.heirs.0.is_empty() {
            let found = race(
                race(stopping.as_mut(), self.too_late(counted, cancellable)),
                self.heir(),
            );
            match found.await {
                First::One(First::One(())) => return false,
                First::One(First::Two(())) => {
                    self.stop_by_force().await;
                    return false;
                }
                First::Two(true) => {
                    self.release().await;
                    released = true;
                }
                First::Two(false) => wait = Duration::ZERO,
            }
        }
        let rest = race(
            race(stopping.as_mut(), self.too_late(false, cancellable)),
            agent.local_sleep(wait),
        );
        if !matches!(rest.await, First::One(First::One(()))) {
            stop_request(world, agent.node, Stop::Immediate);
            stopping.await;
        }
        released
    }

    async fn too_late(&self, counted: bool, cancellable: bool) {
        if cancellable {
            self.over(counted).await;
        } else if counted {
            self.agent.lease.expired().await;
        } else {
            std::future::pending::<()>().await;
        }
    }

    /// Whether a member that may lead has everything.
    async fn heir(&self) -> bool {
        let (agent, world) = (&self.agent, &self.agent.world);
        let end = {
            let data = world.nodes[agent.node].pg.data.borrow();
            let Some(data) = data.as_ref() else { return false };
            let Some(lsn) = data.shutdown_end else {
                return false;
            };
            End {
                timeline: Timeline(world.wal.borrow().timeline(data.branch)),
                lsn: Lsn(lsn),
            }
        };
        agent.local_sleep(Duration::from_millis(100)).await;
        let answers = Rc::new((RefCell::new(Vec::new()), Bell::default()));
        for (name, _) in &self.heirs.0 {
            let Some(to) = world.index_of(name) else { continue };
            let (world, from, answers, name) =
                (Rc::clone(world), agent.node, Rc::clone(&answers), name.clone());
            let gone = Rc::downgrade(&answers);
            drop(answers);
            world.sim.clone().spawn(agent.proc, async move {
                while let Some(answers) = gone.upgrade() {
                    let asked = race(
                        ask_peer(&world, from, to),
                        world.local_sleep(from, Duration::from_millis(500)),
                    );
                    let answer = match asked.await {
                        First::One(answer) => answer,
                        First::Two(()) => None,
                    };
                    answers.0.borrow_mut().push((name.clone(), answer));
                    answers.1.ring(&world.sim);
                    drop(answers);
                    world.local_sleep(from, Duration::from_millis(50)).await;
                }
            });
        }
        let mut progress = Progress::new(end, agent.now());
        loop {
            let mut seen = answers.1.count();
            let heard: Vec<_> = answers.0.borrow_mut().drain(..).collect();
            for (name, answer) in heard {
                if progress.hear(&name, answer.as_ref(), agent.now()) {
                    return true;
                }
            }
            let left = (progress.stalled_since() + Duration::from_secs(2)).since(agent.now());
            let more = race(answers.1.rung(&world.sim, &mut seen), agent.local_sleep(left));
            if let First::Two(()) = more.await {
                return false;
            }
        }
    }

    async fn release(&self) {
        let agent = &self.agent;
        let host = &agent.world.nodes[agent.node];
        let end = host.pg.data.borrow().as_ref().and_then(|data| match data.state {
            DbState::ShutDown => data.shutdown_end,
            DbState::ShutDownInRecovery => data.min_recovery.map(|pos| pos.lsn),
            _ => None,
        });
        if !agent.lease.may_be_ours() {
            agent.lease.forget();
            return;
        }
        let status = end.map(|end| {
            let mut status = StatusKey {
                optime: Lsn(end),
                ..self.status.clone()
            };
            if let Some(slots) = &mut status.slots {
                slots.insert(host.name.slot(), Lsn(end));
            }
            status
        });
        both(agent.lease.release(status), self.clear_failsafe()).await;
    }

    async fn clear_failsafe(&self) {
        let seen = self.cluster.as_ref();
        let named = seen.filter(|cluster| cluster.failsafe.as_ref().is_some_and(|names| !names.is_empty()));
        let Some(version) = named.and_then(|cluster| cluster.failsafe_version) else {
            return;
        };
        let write = self
            .agent
            .dcs
            .write(Key::Failsafe, When::Version(version), |cluster, version| {
                cluster.failsafe = Some(serde_json::Map::new());
                cluster.failsafe_version = Some(version);
            });
        race(write, self.agent.local_sleep(CLEAR_LIMIT)).await;
    }
}

impl Agent {
    /// Signals one rung after the other until postgres is down; SIGKILL ends it for certain.
    async fn stop_postgres(&self, mode: Stop, ladder: Ladder) {
        let world = &self.world;
        let pg = &world.nodes[self.node].pg;
        let rungs = [
            (Stop::Fast, ladder.fast),
            (Stop::Immediate, ladder.immediate),
            (Stop::Kill, Duration::from_secs(1)),
        ];
        for (rung, limit) in rungs {
            if rung < mode {
                continue;
            }
            stop_request(world, self.node, rung);
            let down = async {
                loop {
                    let mut seen = pg.state.count();
                    if matches!(pg.phase.get(), Phase::Stopped { .. }) {
                        return;
                    }
                    pg.state.rung(&world.sim, &mut seen).await;
                }
            };
            if let First::One(()) = race(down, self.local_sleep(limit)).await {
                return;
            }
        }
    }
}
