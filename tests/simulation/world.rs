//! The world of one run: members with clocks and disks, the network, the store, and the book the properties are
//! checked with. Everything that happens follows from the seed.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use howdah::{
    clock::Boottime,
    exit::Exit,
    ha::{Job, Plan, View, sync::StandbyNames},
    model::{Dynamic, MemberName, Tags},
};

use crate::{
    clock::{Clock, DRIFT_PPM_MAX},
    coverage::Coverage,
    dcs::Store,
    exec::{MS, Nanos, Proc, SECOND, Sim},
    mutants::Mutant,
    net::Net,
    postgres::{Data, Phase, Postgres, Stop, stop_request},
    properties::Book,
    rng::Rng,
    shell::{self, Agent, init::Init},
    story::Story,
    wal::{Pos, Refused, Wal},
};

/// What differs from seed to seed besides the faults.
pub(crate) struct Setup {
    pub(crate) members: usize,
    pub(crate) dynamic: Arc<Dynamic>,
    pub(crate) tags: Vec<Tags>,
    /// Client sessions per member.
    pub(crate) sessions: usize,
    pub(crate) commit_bytes: u64,
    /// Time between two commits of a session.
    pub(crate) commit_every: (Nanos, Nanos),
    pub(crate) use_slots: bool,
    /// WAL kept beyond the last checkpoint.
    pub(crate) wal_keep: u64,
    /// From here on nothing is broken any more.
    pub(crate) heal_at: Nanos,
    pub(crate) end: Nanos,
}

/// One member's host and container.
pub(crate) struct Node {
    pub(crate) name: MemberName,
    pub(crate) host: String,
    pub(crate) conn_url: String,
    pub(crate) api_url: String,
    pub(crate) tags: Tags,
    pub(crate) clock: Clock,
    /// The container runs.
    pub(crate) up: Cell<bool>,
    /// The kernel told the other ends of its connections when it went.
    pub(crate) ended_politely: Cell<bool>,
    pub(crate) frozen: Counter,
    pub(crate) agent_frozen: Counter,
    pub(crate) pg_frozen: Counter,
    pub(crate) frozen_since: Cell<Nanos>,
    pub(crate) thawed_at: Cell<Option<Nanos>>,
    /// When anything was last wrong with this host.
    pub(crate) bad_at: Cell<Nanos>,
    pub(crate) init: Init,
    pub(crate) agent: RefCell<Option<Rc<Agent>>>,
    pub(crate) agent_proc: Cell<Option<Proc>>,
    pub(crate) pg: Postgres,
    pub(crate) disk_full: Counter,
    pub(crate) disk_stalled: Counter,
    disk_latency: Nanos,
    pub(crate) replay_lag: Cell<Nanos>,
    /// What a slow link adds before WAL arrives.
    pub(crate) receive_lag: Nanos,
    pub(crate) slow_start: Cell<Nanos>,
    pub(crate) slow_stop: Cell<Nanos>,
    pub(crate) slow_promotion: Cell<Nanos>,
    pub(crate) start_fails: Counter,
    /// `synchronous_standby_names` in the file; in force after a reload or start.
    pub(crate) sync_file: RefCell<Option<StandbyNames>>,
    /// Asked to stop, and not to come back by itself.
    pub(crate) stopping: Cell<bool>,
    /// Kept down by a fault.
    pub(crate) held_down: Counter,
    /// Not a member (any more, or yet).
    pub(crate) absent: Cell<bool>,
    /// By a person, for good.
    pub(crate) removed: Cell<bool>,
    /// True time at which the last good renewal was sent, and how long it counts by this host's clock.
    pub(crate) renewal: Cell<Option<(Nanos, Duration)>>,
    pub(crate) events: Cell<u64>,
}

/// Faults of one kind may overlap.
#[derive(Default)]
pub(crate) struct Counter(Cell<u32>);

impl Counter {
    pub(crate) fn get(&self) -> bool {
        self.0.get() > 0
    }

    pub(crate) fn add(&self, on: bool) {
        let old = self.0.get();
        self.0.set(if on { old + 1 } else { old.saturating_sub(1) });
    }
}

impl Node {
    fn new(index: usize, tags: Tags, rng: &mut Rng) -> Self {
        let name = format!("n{}", index + 1);
        Self {
            host: format!("h{}", index + 1),
            conn_url: format!("postgres://h{}:5432/postgres", index + 1),
            api_url: format!("http://h{}:8008/patroni", index + 1),
            name: name.as_str().into(),
            tags,
            clock: Clock::new(
                rng.range(10_000, 20_000) * SECOND,
                1_000_000 - DRIFT_PPM_MAX + rng.range(0, 2 * DRIFT_PPM_MAX + 1),
            ),
            up: Cell::new(false),
            ended_politely: Cell::new(true),
            frozen: Counter::default(),
            agent_frozen: Counter::default(),
            pg_frozen: Counter::default(),
            frozen_since: Cell::default(),
            thawed_at: Cell::default(),
            bad_at: Cell::default(),
            init: Init::default(),
            agent: RefCell::default(),
            agent_proc: Cell::default(),
            pg: Postgres::new(),
            disk_full: Counter::default(),
            disk_stalled: Counter::default(),
            disk_latency: rng.range(MS / 5, 4 * MS),
            // Some members are always behind, with what they have or with what they replay.
            receive_lag: if rng.chance(15) {
                rng.range(100 * MS, 6 * SECOND)
            } else {
                0
            },
            replay_lag: Cell::new(if rng.chance(20) {
                rng.range(100 * MS, 6 * SECOND)
            } else {
                0
            }),
            slow_start: Cell::default(),
            slow_stop: Cell::default(),
            slow_promotion: Cell::default(),
            start_fails: Counter::default(),
            sync_file: RefCell::default(),
            stopping: Cell::default(),
            held_down: Counter::default(),
            absent: Cell::default(),
            removed: Cell::default(),
            renewal: Cell::default(),
            events: Cell::default(),
        }
    }

    pub(crate) fn local(&self, world: &World) -> Boottime {
        self.clock.read(world.sim.now())
    }

    /// One write to the disk, or one read of it.
    pub(crate) async fn disk(&self, world: &World) {
        while self.disk_stalled.get() {
            world.sim.sleep(200 * MS).await;
        }
        world.sim.sleep(self.disk_latency).await;
    }

    /// Nothing is wrong with it at this moment.
    pub(crate) fn well(&self) -> bool {
        let frozen = self.frozen.get() || self.agent_frozen.get() || self.pg_frozen.get();
        !(frozen || self.disk_full.get() || self.disk_stalled.get() || self.pg.hung.get())
    }

    pub(crate) fn good_renewal(&self, sent: Nanos, ttl: Duration) {
        // While a lease is replaced by one of another ttl both are renewed for a moment.
        let end = |sent: Nanos, ttl: Duration| sent + u64::try_from(ttl.as_nanos()).unwrap_or(0);
        let newer = self
            .renewal
            .get()
            .is_none_or(|(old, lasted)| end(old, lasted) < end(sent, ttl));
        if newer {
            self.renewal.set(Some((sent, ttl)));
        }
    }

    /// Every process of the host that can be frozen.
    fn processes(&self) -> [Option<Proc>; 4] {
        [
            self.init.proc.get(),
            self.agent_proc.get(),
            self.pg.server.get(),
            self.pg.backends.get(),
        ]
    }
}

pub(crate) struct World {
    pub(crate) sim: Sim,
    /// Faults, people, and everything that is no process of a member.
    pub(crate) proc: Proc,
    pub(crate) setup: Setup,
    pub(crate) nodes: Vec<Node>,
    pub(crate) net: Net,
    pub(crate) store: Store,
    pub(crate) wal: RefCell<Wal>,
    pub(crate) mutant: Option<Mutant>,
    pub(crate) book: Book,
    pub(crate) coverage: RefCell<Coverage>,
    pub(crate) story: Option<Story>,
    rng: RefCell<Rng>,
}

impl World {
    pub(crate) fn new(seed: u64, setup: Setup, mutant: Option<Mutant>, telling: bool) -> Rc<Self> {
        let sim = Sim::new();
        let proc = sim.process();
        let mut rng = Rng::new(seed, 1);
        let nodes: Vec<Node> = (0..setup.members)
            .map(|index| Node::new(index, setup.tags[index].clone(), &mut rng))
            .collect();
        let rate = 1_000_000 - DRIFT_PPM_MAX + rng.range(0, 2 * DRIFT_PPM_MAX + 1);
        for node in &nodes {
            node.clock.follows_wall.set(mutant == Some(Mutant::WallClock));
        }
        Rc::new(Self {
            proc,
            net: Net::new(setup.members, Rng::new(seed, 2)),
            store: Store::new(setup.members, rate, Rng::new(seed, 3)),
            wal: RefCell::default(),
            mutant,
            book: Book::new(setup.members),
            coverage: RefCell::default(),
            story: telling.then(Story::default),
            rng: RefCell::new(Rng::new(seed, 4)),
            sim,
            setup,
            nodes,
        })
    }

    pub(crate) fn between(&self, low: Nanos, high: Nanos) -> Nanos {
        self.rng.borrow_mut().range(low, high)
    }

    pub(crate) fn chance(&self, percent: u64) -> bool {
        self.rng.borrow_mut().chance(percent)
    }

    pub(crate) fn index_of(&self, name: &MemberName) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == *name)
    }

    /// A sleep by the clock of that host.
    pub(crate) fn local_sleep(&self, node: usize, time: Duration) -> crate::exec::Sleep {
        self.sim.sleep(self.nodes[node].clock.lasts(time))
    }

    pub(crate) fn wall(&self, node: usize) -> jiff::Timestamp {
        let seconds = 1_767_225_600 + i64::try_from(self.sim.now() / SECOND).unwrap_or(0);
        let seconds = seconds + self.nodes[node].clock.wall_offset.get();
        jiff::Timestamp::from_second(seconds).unwrap_or_default()
    }

    pub(crate) fn sim_frozen(&self, proc: Option<Proc>) -> bool {
        proc.is_some_and(|proc| self.sim.frozen(proc))
    }

    pub(crate) fn telling(&self) -> bool {
        self.story.is_some()
    }

    pub(crate) fn say(&self, node: usize, text: impl FnOnce() -> String) {
        if let Some(story) = &self.story {
            story.line(self.sim.now(), Some(node), text());
        }
    }

    pub(crate) fn tell(&self, text: impl FnOnce() -> String) {
        if let Some(story) = &self.story {
            story.line(self.sim.now(), None, text());
        }
    }

    /// Something happened to this member: the next decision is one made after it.
    pub(crate) fn cover(&self, node: usize, event: &'static str) {
        let events = &self.nodes[node].events;
        events.set(events.get() | Coverage::event(event));
    }

    pub(crate) fn visit(&self, node: usize, view: &View, plan: &Plan) {
        let events = self.nodes[node].events.replace(0);
        self.coverage.borrow_mut().visit(view, plan, events);
    }

    // ------------------------------------------------------------------------------------------- containers

    pub(crate) fn container_starts(self: &Rc<Self>, node: usize) {
        let host = &self.nodes[node];
        if host.up.replace(true) {
            return;
        }
        self.say(node, || "container starts".to_owned());
        host.stopping.set(false);
        host.init.reset();
        let proc = self.sim.process();
        host.init.proc.set(Some(proc));
        self.sim.spawn(proc, shell::init::guard(Rc::clone(self), node));
        shell::start_agent(self, node);
        if host.frozen.get() {
            self.sim.freeze(proc);
        }
    }

    /// Everything in the container is gone at this moment.
    pub(crate) fn container_ends(self: &Rc<Self>, node: usize, restart: Option<Nanos>) {
        let host = &self.nodes[node];
        if !host.up.replace(false) {
            return;
        }
        host.bad_at.set(self.sim.now());
        host.ended_politely.set(true);
        self.kill_agent_process(node);
        host.pg.gone(&self.sim, false);
        let init = host.init.proc.get();
        host.init.reset();
        if let Some(after) = restart {
            let world = Rc::clone(self);
            self.sim.spawn(self.proc, async move {
                world.sim.sleep(after).await;
                world.starts_again(node);
            });
        }
        if let Some(init) = init {
            self.sim.kill(init);
        }
    }

    /// The shortest and the longest ttl that anybody may go by: people change it.
    pub(crate) fn ttls(&self) -> (Nanos, Nanos) {
        let nanos = |seconds: u64| seconds * SECOND;
        let first = u64::try_from(self.setup.dynamic.timing.ttl.as_nanos()).unwrap_or(0);
        let cluster = self.store.cluster();
        let stored = cluster
            .config
            .as_ref()
            .and_then(|config| config.get("ttl")?.as_u64());
        let now = stored.map_or(first, nanos);
        (first.min(now), first.max(now))
    }

    /// If nothing keeps it down.
    pub(crate) fn starts_again(self: &Rc<Self>, node: usize) {
        let host = &self.nodes[node];
        if !host.held_down.get() && !host.absent.get() && !host.stopping.get() {
            self.container_starts(node);
        }
    }

    fn kill_agent_process(&self, node: usize) {
        let host = &self.nodes[node];
        let agent = host.agent.borrow_mut().take();
        if let Some(proc) = host.agent_proc.take() {
            self.sim.kill(proc);
        }
        drop(agent);
    }

    /// `kill -9` of the agent alone.
    pub(crate) fn agent_killed(self: &Rc<Self>, node: usize) {
        if self.nodes[node].agent_proc.get().is_some() {
            self.kill_agent_process(node);
            shell::init::agent_crashed(self, node);
        }
    }

    /// The agent ended by its own decision: init ends what it left behind, and then itself.
    pub(crate) fn agent_exits(self: &Rc<Self>, node: usize, exit: Exit) {
        let host = &self.nodes[node];
        let restart = (!host.stopping.get()).then(|| self.between(2 * SECOND, 6 * SECOND));
        let orderly = exit != Exit::Internal;
        let Some(init) = host.init.proc.get() else { return };
        let world = Rc::clone(self);
        self.sim.spawn(init, async move {
            let host = &world.nodes[node];
            if orderly && host.pg.live() {
                stop_request(&world, node, Stop::Fast);
                let until = world.sim.now() + 8 * SECOND;
                while !matches!(host.pg.phase.get(), Phase::Stopped { .. }) && world.sim.now() < until {
                    world.sim.sleep(100 * MS).await;
                }
            }
            world.container_ends(node, restart);
        });
    }

    pub(crate) fn power_loss(self: &Rc<Self>, node: usize) {
        let host = &self.nodes[node];
        self.container_ends(node, None);
        host.ended_politely.set(false);
        host.pg.power_lost();
        host.clock.reboot(self.sim.now());
    }

    pub(crate) fn freeze_all(&self, node: usize, on: bool) {
        let host = &self.nodes[node];
        host.frozen.add(on);
        if on {
            host.frozen_since.set(self.sim.now());
        } else if self.mutant == Some(Mutant::StoppedClock) {
            let missed = self.sim.now() - host.frozen_since.get();
            host.clock.missed.set(host.clock.missed.get() + missed);
        }
        if !on && !host.frozen.get() {
            host.thawed_at.set(Some(self.sim.now()));
        }
        self.apply_freezes(node);
    }

    /// Brings the processes of a host in line with what freezes them.
    pub(crate) fn apply_freezes(&self, node: usize) {
        let host = &self.nodes[node];
        host.bad_at.set(self.sim.now());
        let [init, agent, server, backends] = host.processes();
        let whole = host.frozen.get();
        let wanted = [
            (init, whole),
            (agent, whole || host.agent_frozen.get()),
            (server, whole || host.pg_frozen.get()),
            (backends, whole || host.pg_frozen.get()),
        ];
        for (proc, freeze) in wanted {
            let Some(proc) = proc else { continue };
            let frozen = self.sim.frozen(proc);
            if freeze && !frozen {
                self.sim.freeze(proc);
            } else if !freeze && frozen {
                self.sim.thaw(proc, self.between(0, 5 * MS));
            }
        }
    }

    // --------------------------------------------------------------------------------------------- for the book

    pub(crate) fn note_stream(&self, node: usize, from: usize) {
        self.say(node, || format!("streams from n{}", from + 1));
    }

    pub(crate) fn note_refused(&self, node: usize, from: usize, refused: Refused) {
        if refused == Refused::Content {
            self.cover(node, "event:hidden-fork");
            self.say(node, || {
                format!(
                    "cannot stream from n{}: the records there are of another history",
                    from + 1
                )
            });
        }
    }

    pub(crate) fn note_new_generation(self: &Rc<Self>, node: usize, data: &Data, from: Option<Pos>) {
        let timeline = self.wal.borrow().timeline(data.branch);
        let (branch, half) = (data.branch, data.half);
        self.say(node, || {
            format!("begins to write timeline {timeline} at {:?}", from.map(|p| p.lsn))
        });
        crate::properties::new_generation(self, node, branch, from, half);
    }

    pub(crate) fn note_primary(&self, node: usize) {
        self.book.primary_since[node].set(self.sim.now());
    }

    pub(crate) fn note_initdb(&self, node: usize) -> u64 {
        let system = self.book.systems.get() + 1;
        self.book.systems.set(system);
        self.say(node, || format!("initdb made system {system}"));
        system
    }

    pub(crate) fn note_job(self: &Rc<Self>, node: usize, job: &Job, view: &View) {
        crate::properties::job_begins(self, node, job, view);
    }

    pub(crate) fn note_acquired(&self, node: usize) {
        self.say(node, || "takes the lock".to_owned());
        self.book.acquired[node].set(Some(self.sim.now()));
    }

    pub(crate) fn note_promotion_asked(self: &Rc<Self>, node: usize) {
        crate::properties::promotion_asked(self, node);
    }

    pub(crate) fn note_start(self: &Rc<Self>, node: usize) {
        crate::properties::start(self, node);
    }

    pub(crate) fn note_release(self: &Rc<Self>, node: usize) {
        crate::properties::released(self, node);
    }
}
