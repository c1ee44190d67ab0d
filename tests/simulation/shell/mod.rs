//! The shell around the decision, as in `src/agent`: one loop that observes, asks the shipped `ha::decide`, and has the
//! answer carried out. Written after the original step by step; where this one is wrong, the runs are worth nothing.

mod canvass;
mod execute;
pub(crate) mod init;
mod jobs;
pub(crate) mod lease;
mod observe;
mod publish;
mod sync;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use howdah::{
    clock::Boottime,
    dcs::Hold,
    exit::Exit,
    ha::{
        self, Action, DcsView, Finished, Job, Local, Memory, Plan, RunningJob, Shutdown, View,
        lease::hold_of_record,
    },
    model::{Cluster, Dynamic, MemberData, PeerStatus, Version},
};

use crate::{
    dcs::Client,
    exec::{Bell, First, MS, Proc, Reply, race},
    mutants,
    world::World,
};
use lease::Lease;

const ROUNDS: usize = 4;
const DCS_RETRY: Duration = Duration::from_millis(500);

/// A token that asks work to end.
#[derive(Default)]
pub(crate) struct Cancel {
    asked: Cell<bool>,
    bell: Bell,
}

impl Cancel {
    pub(crate) fn cancel(&self, world: &World) {
        self.asked.set(true);
        self.bell.ring(&world.sim);
    }

    pub(crate) const fn is(&self) -> bool {
        self.asked.get()
    }

    pub(crate) async fn cancelled(&self, world: &World) {
        while !self.is() {
            self.bell.next(&world.sim).await;
        }
    }
}

struct Slot {
    running: RunningJob,
    cancel: Rc<Cancel>,
}

/// What the agent last published; what peers get to hear.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) at: Boottime,
    pub(crate) status: Option<PeerStatus>,
    /// Runs as a primary, as far as it knows.
    pub(crate) primary: bool,
}

enum Step {
    DecideAgain,
    LookAgain,
    Wait,
    Exit(Exit),
}

/// One incarnation of the agent.
pub(crate) struct Agent {
    pub(crate) world: Rc<World>,
    pub(crate) node: usize,
    pub(crate) proc: Proc,
    pub(crate) lease: Rc<Lease>,
    dcs: Rc<Client>,
    /// Anything that should lead to a turn.
    pub(crate) wake: Bell,
    signalled: Bell,
    inbox: RefCell<VecDeque<Rc<Reply<Snapshot>>>>,
    asked: Bell,
    slot: RefCell<Option<Slot>>,
    /// How the running job ended, until the loop takes notice between two turns.
    ended: RefCell<Option<Finished>>,
    finished: RefCell<Option<Finished>>,
    dynamic: RefCell<Arc<Dynamic>>,
    config_version: Cell<Option<Version>>,
    memory: RefCell<Memory>,
    sight: RefCell<Local>,
    sight_at: Cell<Boottime>,
    /// The last good read of the store, and when it was asked for.
    last_cluster: RefCell<Option<(Arc<Cluster>, Boottime)>>,
    round: RefCell<Option<Rc<canvass::Round>>>,
    names: RefCell<sync::Names>,
    mark: RefCell<Option<ha::sync::Mark>>,
    /// A write of `/sync`, perhaps our predecessor's, may still take place.
    sync_unsure: Cell<bool>,
    /// Postgres has not been given the present settings yet.
    unapplied: Cell<bool>,
    dcs_down_since: Cell<Option<Boottime>>,
    shutdown: Cell<Option<Shutdown>>,
    hurried: Cancel,
    verdict: Cell<Option<Exit>>,
    claim: Cell<Option<Version>>,
    snapshot: RefCell<Snapshot>,
    touched: RefCell<Option<(MemberData, Boottime)>>,
    said: RefCell<String>,
    pub(crate) started_at: u64,
}

/// Starts the agent of a node whose container runs.
pub(crate) fn start_agent(world: &Rc<World>, node: usize) {
    let host = &world.nodes[node];
    if !host.up.get() {
        return;
    }
    let proc = world.sim.process();
    host.agent_proc.set(Some(proc));
    if host.frozen.get() || host.agent_frozen.get() {
        world.sim.freeze(proc);
    }
    let adopt = host.init.fence();
    let task = Rc::clone(world);
    world.sim.spawn(proc, async move {
        // Reading the configuration, asking postgres for its parameters, looking for a namesake.
        task.sim.sleep(task.between(50 * MS, 400 * MS)).await;
        let timing = task.setup.dynamic.timing;
        let dcs = Rc::new(Client::new(&task, node, timing.ttl, timing.retry_timeout));
        let hold = adopt.map(|(until, lease)| hold_of_record(until, lease, timing.ttl));
        if let Some(hold) = hold {
            dcs.adopt(hold.lease);
        }
        let agent = Agent::new(&task, node, proc, dcs, hold);
        *task.nodes[node].agent.borrow_mut() = Some(Rc::clone(&agent));
        task.sim.spawn(proc, Rc::clone(&agent.lease).keep());
        task.sim.spawn(proc, watch(Rc::clone(&agent)));
        let exit = Rc::clone(&agent).run().await;
        task.say(node, || format!("agent ends: {exit:?}"));
        task.agent_exits(node, exit);
    });
}

/// Wakes the loop for what happens outside of it.
async fn watch(agent: Rc<Agent>) {
    let world = &agent.world;
    let pg = &world.nodes[agent.node].pg;
    let changes = &world.store.changes[agent.node];
    let (mut seen_pg, mut seen_store) = (pg.state.count(), changes.count());
    loop {
        race(
            pg.state.rung(&world.sim, &mut seen_pg),
            changes.rung(&world.sim, &mut seen_store),
        )
        .await;
        agent.wake.ring(&world.sim);
    }
}

impl Agent {
    fn new(world: &Rc<World>, node: usize, proc: Proc, dcs: Rc<Client>, adopted: Option<Hold>) -> Rc<Self> {
        let lease = Lease::new(world, node, proc, Rc::clone(&dcs), adopted);
        Rc::new(Self {
            world: Rc::clone(world),
            node,
            proc,
            lease,
            dcs,
            wake: Bell::default(),
            signalled: Bell::default(),
            inbox: RefCell::default(),
            asked: Bell::default(),
            slot: RefCell::default(),
            ended: RefCell::default(),
            finished: RefCell::default(),
            dynamic: RefCell::new(Arc::clone(&world.setup.dynamic)),
            config_version: Cell::default(),
            memory: RefCell::default(),
            sight: RefCell::new(Local::Stopping {
                since: Boottime(0),
                crashed: false,
            }),
            sight_at: Cell::new(Boottime(0)),
            last_cluster: RefCell::default(),
            round: RefCell::default(),
            names: RefCell::default(),
            mark: RefCell::default(),
            sync_unsure: Cell::new(true),
            unapplied: Cell::new(false),
            dcs_down_since: Cell::default(),
            shutdown: Cell::new(world.nodes[node].stopping.get().then_some(Shutdown::HandOver)),
            hurried: Cancel::default(),
            verdict: Cell::default(),
            claim: Cell::default(),
            snapshot: RefCell::new(Snapshot {
                at: Boottime(0),
                status: None,
                primary: false,
            }),
            touched: RefCell::default(),
            said: RefCell::default(),
            started_at: world.sim.now(),
        })
    }

    pub(crate) fn now(&self) -> Boottime {
        self.lease.now()
    }

    pub(crate) fn job(&self) -> Option<Job> {
        self.slot.borrow().as_ref().map(|slot| slot.running.job.clone())
    }

    async fn local_sleep(&self, time: Duration) {
        self.world.local_sleep(self.node, time).await;
    }

    /// A signal from outside.
    pub(crate) fn stop(&self, mode: Shutdown) {
        self.ask_to_stop(mode);
        self.signalled.ring(&self.world.sim);
        self.wake.ring(&self.world.sim);
    }

    fn ask_to_stop(&self, mode: Shutdown) {
        if self.shutdown.get().is_none_or(|old| mode > old) {
            self.shutdown.set(Some(mode));
            if mode >= Shutdown::Fast {
                self.hurried.cancel(&self.world);
            }
        }
    }

    /// A question of a peer: answered with a look that is not older than 250 ms, or after 1.5 s with what there is.
    pub(crate) async fn answer(self: Rc<Self>) -> Snapshot {
        let young = self.snapshot.borrow().clone();
        if self.now().since(young.at) <= Duration::from_millis(250) {
            return young;
        }
        let reply = Reply::new();
        self.inbox.borrow_mut().push_back(Rc::clone(&reply));
        self.asked.ring(&self.world.sim);
        let waited = race(
            reply.wait(&self.world.sim),
            self.local_sleep(Duration::from_millis(1500)),
        );
        match waited.await {
            First::One(snapshot) => snapshot,
            First::Two(()) => self.snapshot.borrow().clone(),
        }
    }

    async fn run(self: Rc<Self>) -> Exit {
        let (mut seen, mut signals) = (self.wake.count(), self.signalled.count());
        let (lease, sim) = (&self.lease, &self.world.sim);
        loop {
            lease.beat();
            let turn = race(
                self.signalled.rung(sim, &mut signals),
                lease.while_it_lasts(self.turn()),
            );
            let wait = match turn.await {
                First::One(()) | First::Two(None) => continue,
                First::Two(Some(Ok(wait))) => wait,
                First::Two(Some(Err(exit))) => return exit,
            };
            let counts = lease.counts();
            let timer = self.world.local_sleep(self.node, wait);
            let mut timer = std::pin::pin!(timer);
            loop {
                lease.beat();
                let expired = async {
                    if counts {
                        lease.expired().await;
                    } else {
                        std::future::pending::<()>().await;
                    }
                };
                let woken = race(self.wake.rung(sim, &mut seen), race(expired, timer.as_mut()));
                match race(woken, self.question()).await {
                    First::One(_) => {
                        self.note_end();
                        break;
                    }
                    First::Two(reply) => {
                        let look = async {
                            self.look().await;
                            self.publish();
                            reply.send(sim, self.snapshot.borrow().clone());
                        };
                        if lease.while_it_lasts(look).await.is_none() {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// A job counts as running until here: what was looked at while it ran is judged as that.
    fn note_end(&self) {
        if let Some(finished) = self.ended.borrow_mut().take() {
            *self.slot.borrow_mut() = None;
            *self.finished.borrow_mut() = Some(finished);
        }
    }

    async fn question(&self) -> Rc<Reply<Snapshot>> {
        loop {
            let mut seen = self.asked.count();
            if let Some(reply) = self.inbox.borrow_mut().pop_front() {
                return reply;
            }
            self.asked.rung(&self.world.sim, &mut seen).await;
        }
    }

    async fn turn(&self) -> Result<Duration, Exit> {
        if self.verdict.get().is_none()
            && self.lease.lost_to().as_ref() == Some(&self.world.nodes[self.node].name)
        {
            self.verdict.set(Some(Exit::DuplicateName));
            self.ask_to_stop(Shutdown::Fast);
        }
        let mut view = self.observe().await;
        if let Some(exit) = self.verdict.get().filter(|_| self.shutdown.get().is_none()) {
            return Err(exit);
        }
        let mut last = None;
        for _ in 0..ROUNDS {
            mutants::before(&self.world, self.node, &mut view);
            let now = self.now();
            let mut plan = ha::decide(&view, now);
            mutants::after(&self.world, self.node, &view, &mut plan);
            self.note_plan(&plan, &mut view);
            let step = self.execute(&plan, &mut view).await;
            last = Some((plan, matches!(step, Step::LookAgain)));
            match step {
                Step::DecideAgain => {}
                Step::LookAgain | Step::Wait => break,
                Step::Exit(exit) => {
                    self.leave(exit).await;
                    return Err(self.final_status(exit));
                }
            }
        }
        let (plan, again) = last.unwrap_or_else(|| (Plan::idle(), true));
        let wait = self.wait_after(&plan, again);
        self.after(&view).await;
        Ok(wait)
    }

    /// It knows that its data is the cluster's.
    pub(crate) fn followed(&self) -> bool {
        self.memory.borrow().followed
    }

    /// It was told of maintenance mode, and of no end of it.
    pub(crate) fn paused(&self) -> bool {
        self.dynamic.borrow().pause
    }

    /// It remembers that others were promised to have every commit, and is none of them; or it knows that others may
    /// have led since it last saw the store whole.
    pub(crate) fn bound_to_others(&self) -> bool {
        let memory = self.memory.borrow();
        let sync = &memory.lost.sync;
        let me = &self.world.nodes[self.node].name;
        let voter = sync.leader.as_ref() == Some(me) || sync.has_standby(me);
        memory.lost.away || (memory.lost.since.is_some() && sync.leader.is_some() && !voter)
    }

    fn final_status(&self, exit: Exit) -> Exit {
        match (exit, self.verdict.get()) {
            (Exit::Ok, Some(verdict)) => verdict,
            (exit, _) => exit,
        }
    }

    async fn leave(&self, exit: Exit) {
        if exit == Exit::DuplicateName || self.lease.outlives_us() {
            return;
        }
        race(self.dcs.remove_member(), self.local_sleep(Duration::from_secs(1))).await;
    }

    fn note_plan(&self, plan: &Plan, view: &mut View) {
        if let Some(memory) = &plan.memory {
            self.memory.borrow_mut().clone_from(memory);
            view.memory = memory.clone();
        }
        view.finished = None;
        *self.finished.borrow_mut() = None;
        if self.lease.hold().is_some() {
            self.lease.set_keep(plan.keep_lock);
        }
        self.world.visit(self.node, view, plan);
        if self.world.telling() {
            let quiet = |action: &Action| {
                matches!(
                    action,
                    Action::LeaderDuties
                        | Action::ProbePeers { .. }
                        | Action::ProbeLeader(_)
                        | Action::MarkSync(_)
                )
            };
            let shape: String = plan.because.chars().filter(|c| !c.is_ascii_digit()).collect();
            let acts = plan.actions.iter().any(|action| !quiet(action));
            if acts || *self.said.borrow() != shape {
                *self.said.borrow_mut() = shape;
                self.world.say(self.node, || {
                    let actions: Vec<String> = plan.actions.iter().filter(|a| !quiet(a)).map(short).collect();
                    match actions.is_empty() {
                        true => plan.because.clone(),
                        false => format!("{} -> {}", plan.because, actions.join(", ")),
                    }
                });
            }
        }
    }

    fn wait_after(&self, plan: &Plan, again: bool) -> Duration {
        let loop_wait = self.dynamic.borrow().timing.loop_wait;
        let mut wait = plan.again_in.unwrap_or(loop_wait).min(loop_wait);
        if self.dcs_down_since.get().is_some() {
            wait = wait.min(DCS_RETRY);
        }
        if again {
            wait = Duration::from_millis(100);
        }
        wait.max(Duration::from_millis(5))
    }

    async fn after(&self, view: &View) {
        self.apply_dynamic();
        self.publish();
        self.disarm_when_harmless();
        if self.shutdown.get().is_none() && self.dcs_down_since.get().is_none() {
            self.touch_member().await;
            if let DcsView::Known { cluster } = &view.dcs
                && cluster
                    .leader
                    .as_ref()
                    .is_some_and(|leader| leader.name != self.world.nodes[self.node].name)
            {
                self.replica_slots(cluster);
            }
        }
    }

    fn disarm_when_harmless(&self) {
        let job = self.slot.borrow().is_some();
        let expired = self
            .lease
            .hold()
            .is_none_or(|hold| self.now() >= ha::lease::deadlines(&hold).demote_at);
        let sight = self.sight.borrow();
        let certain = matches!(
            *sight,
            Local::Empty | Local::Leftover | Local::Down(_) | Local::Running(_)
        );
        if certain && !sight.may_write() && !job && expired {
            self.lease.forget();
        }
    }

    pub(crate) fn present(&self) -> Option<ha::RunningJob> {
        self.slot.borrow().as_ref().map(|slot| slot.running.clone())
    }
}

fn short(action: &Action) -> String {
    match action {
        Action::Begin(Job::Demote { mode, .. }) => format!("demote {mode:?}"),
        Action::Begin(Job::Start(how)) => format!(
            "start {}",
            match how {
                ha::StartAs::Primary => "as primary".to_owned(),
                ha::StartAs::Replica(None) => "as replica".to_owned(),
                ha::StartAs::Replica(Some(up)) => format!("as replica of {}", up.member),
            }
        ),
        Action::Begin(job) => job.name().to_owned(),
        Action::Follow(Some(up)) => format!("follow {}", up.member),
        other => {
            let text = format!("{other:?}");
            text.split(['(', ' ']).next().unwrap_or_default().to_owned()
        }
    }
}
