//! What must be true of every run, one file each, and the book it is checked with.

mod l1_recovery;
mod s1_nothing_lost;
mod s2_one_writer;
mod s3_self_fence;
mod s4_bounded_loss;
mod s5_no_stale_promotion;
mod s6_no_needless_demotion;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt,
    rc::Rc,
};

use howdah::{
    ha::{Job, Peers, View, sync::StandbyNames},
    model::{SyncKind, SyncMode},
};

use crate::{
    exec::{MS, Nanos, SECOND},
    wal::{BranchId, Pos},
    world::World,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Property {
    NothingLost,
    OneWriter,
    SelfFence,
    BoundedLoss,
    NoStalePromotion,
    NoNeedlessDemotion,
    Recovery,
}

pub(crate) const PROPERTIES: [Property; 7] = [
    Property::NothingLost,
    Property::OneWriter,
    Property::SelfFence,
    Property::BoundedLoss,
    Property::NoStalePromotion,
    Property::NoNeedlessDemotion,
    Property::Recovery,
];

impl Property {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::NothingLost => "s1_nothing_acknowledged_is_lost",
            Self::OneWriter => "s2_generations_do_not_overlap",
            Self::SelfFence => "s3_an_isolated_primary_fences_itself",
            Self::BoundedLoss => "s4_asynchronous_loss_is_bounded",
            Self::NoStalePromotion => "s5_no_stale_promotion",
            Self::NoNeedlessDemotion => "s6_no_needless_demotion",
            Self::Recovery => "l1_recovers_within_its_bound",
        }
    }
}

/// One broken property.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) property: Property,
    pub(crate) at: Nanos,
    pub(crate) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property.name(), self.what)
    }
}

/// What one generation has acknowledged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acknowledged {
    pub(crate) branch: BranchId,
    pub(crate) node: usize,
    pub(crate) last: u64,
    pub(crate) last_at: Nanos,
    /// Every acknowledgement so far was given after a standby had confirmed it.
    pub(crate) last_sync: Option<u64>,
    /// A person forced the failover upon a member that lacked some of it. What a leader that was frozen then acknowledges
    /// in the moment of its thaw is part of what that person gave up.
    pub(crate) overruled: bool,
}

/// Where the members were a moment ago.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) at: Nanos,
    pub(crate) positions: Vec<Option<Pos>>,
    /// Could be asked and could have led.
    pub(crate) electable: Vec<bool>,
}

pub(crate) struct Book {
    pub(crate) violation: RefCell<Option<Violation>>,
    /// Generations by their first acknowledgement.
    pub(crate) generations: RefCell<Vec<Acknowledged>>,
    pub(crate) acknowledged: Cell<u64>,
    /// Acknowledged in the instant of a thaw, while another generation had begun.
    pub(crate) at_thaw: Cell<u64>,
    pub(crate) at_thaw_latest: Cell<Nanos>,
    pub(crate) primary_since: Vec<Cell<Nanos>>,
    pub(crate) acquired: Vec<Cell<Option<Nanos>>>,
    pub(crate) systems: Cell<u64>,
    /// When a person last asked for a switchover or failover.
    pub(crate) request_at: Cell<Option<Nanos>>,
    /// When a person last forced a member to lead.
    pub(crate) failover_at: Cell<Option<Nanos>>,
    pub(crate) samples: RefCell<VecDeque<Sample>>,
    pub(crate) unlocked_since: Cell<Option<Nanos>>,
    pub(crate) last_ack_at: Cell<Nanos>,
    /// When maintenance mode last began or ended.
    pub(crate) paused_at: Cell<Nanos>,
    /// Mutants only: a primary is changing the synchronous standbys.
    pub(crate) sync_changing: Cell<bool>,
    /// Mutants only: what each member once heard of its peers.
    pub(crate) beliefs: RefCell<Vec<Option<Peers>>>,
    /// For a mutant: names that commits are to wait for once `/sync` is written.
    pub(crate) held_names: RefCell<Vec<Option<StandbyNames>>>,
}

impl Book {
    pub(crate) fn new(members: usize) -> Self {
        Self {
            violation: RefCell::default(),
            generations: RefCell::default(),
            acknowledged: Cell::default(),
            at_thaw: Cell::default(),
            at_thaw_latest: Cell::default(),
            primary_since: (0..members).map(|_| Cell::default()).collect(),
            acquired: (0..members).map(|_| Cell::default()).collect(),
            systems: Cell::default(),
            request_at: Cell::default(),
            failover_at: Cell::default(),
            samples: RefCell::default(),
            unlocked_since: Cell::default(),
            last_ack_at: Cell::default(),
            paused_at: Cell::default(),
            sync_changing: Cell::default(),
            beliefs: RefCell::new(vec![None; members]),
            held_names: RefCell::new(vec![None; members]),
        }
    }

    pub(crate) fn violated(&self) -> bool {
        self.violation.borrow().is_some()
    }
}

impl World {
    /// Only the first counts: what comes after it may be its consequence.
    pub(crate) fn violate(&self, property: Property, what: impl FnOnce() -> String) {
        let mut violation = self.book.violation.borrow_mut();
        if violation.is_none() {
            let what = what();
            self.tell(|| format!("VIOLATED {}: {what}", property.name()));
            *violation = Some(Violation {
                property,
                at: self.sim.now(),
                what,
            });
        }
    }

    pub(crate) fn member_name(node: usize) -> String {
        format!("n{}", node + 1)
    }

    /// A person forced a member to lead not long ago.
    pub(crate) fn failover_lately(&self) -> bool {
        let within = 120 * SECOND;
        self.book
            .failover_at
            .get()
            .is_some_and(|at| self.sim.now() < at + within)
    }

    /// Maintenance mode, or shortly after it: whoever was a primary without the lock has to notice first.
    pub(crate) fn paused_lately(&self) -> bool {
        let changed = self.book.paused_at.get();
        let paused = self
            .store
            .cluster()
            .config
            .as_ref()
            .and_then(|config| config.get("pause")?.as_bool());
        changed > 0 && (paused == Some(true) || self.sim.now() < changed + 90 * SECOND)
    }

    /// Whether the configuration asks for asynchronous replication.
    pub(crate) fn asynchronous(&self) -> bool {
        match &self.store.cluster().config {
            Some(config) => SyncMode::from_map(config).kind == SyncKind::Off,
            None => self.setup.dynamic.sync.kind == SyncKind::Off,
        }
    }

    /// A person asked for a change of leader not long ago.
    pub(crate) fn requested_lately(&self) -> bool {
        let within = 120 * SECOND;
        self.book
            .request_at
            .get()
            .is_some_and(|at| self.sim.now() < at + within)
            || self.store.cluster().failover.is_some()
    }
}

pub(crate) fn acknowledged(world: &Rc<World>, node: usize, pos: Pos, waited: bool) {
    let book = &world.book;
    book.acknowledged.set(book.acknowledged.get() + 1);
    let now = world.sim.now();
    // In maintenance mode nobody sees to it that there is one primary, and none has to stop: that is what it is for.
    let agent = world.nodes[node].agent.borrow().clone();
    if agent.is_some_and(|agent| agent.paused()) || world.paused_lately() {
        book.last_ack_at.set(now);
        return;
    }
    if !s2_one_writer::acknowledged(world, node, pos) {
        return;
    }
    s3_self_fence::acknowledged(world, node);
    book.last_ack_at.set(now);
    let mut generations = book.generations.borrow_mut();
    let known = generations.iter_mut().rev().find(|g| g.branch == pos.branch);
    let generation = match known {
        Some(generation) => generation,
        None => {
            generations.push(Acknowledged {
                branch: pos.branch,
                node,
                last: 0,
                last_at: now,
                last_sync: None,
                overruled: false,
            });
            let Some(last) = generations.last_mut() else {
                return;
            };
            last
        }
    };
    if pos.lsn > generation.last {
        generation.last = pos.lsn;
        generation.last_at = now;
    }
    let given_up = generation.overruled && s2_one_writer::in_thaw(world, node).is_some();
    if waited && !given_up {
        generation.last_sync = Some(generation.last_sync.unwrap_or(0).max(pos.lsn));
    }
}

pub(crate) fn new_generation(
    world: &Rc<World>,
    node: usize,
    branch: BranchId,
    from: Option<Pos>,
    half: bool,
) {
    s5_no_stale_promotion::new_generation(world, node, half);
    if let Some(from) = from {
        s1_nothing_lost::new_generation(world, node, from);
        s4_bounded_loss::new_generation(world, node, branch, from);
    }
}

pub(crate) fn promotion_asked(world: &Rc<World>, node: usize) {
    s5_no_stale_promotion::promotion_asked(world, node);
}

pub(crate) fn start(world: &Rc<World>, node: usize) {
    s5_no_stale_promotion::start(world, node);
}

/// The member writes the identity of the cluster.
pub(crate) fn registers(world: &Rc<World>, node: usize) {
    s5_no_stale_promotion::registers(world, node);
}

pub(crate) fn job_begins(world: &Rc<World>, node: usize, job: &Job, view: &View) {
    s6_no_needless_demotion::job_begins(world, node, job, view);
}

pub(crate) fn released(world: &Rc<World>, node: usize) {
    s2_one_writer::released(world, node);
}

/// Looks at the members twice a second.
pub(crate) async fn watch(world: Rc<World>) {
    loop {
        world.sim.sleep(500 * MS).await;
        let now = world.sim.now();
        let cluster = world.store.cluster();
        let book = &world.book;
        if cluster.leader.is_some() {
            book.unlocked_since.set(None);
        } else if book.unlocked_since.get().is_none() {
            book.unlocked_since.set(Some(now));
        }
        let sample = Sample {
            at: now,
            positions: world.nodes.iter().map(|node| node.pg.position()).collect(),
            electable: (0..world.nodes.len())
                .map(|node| s5_no_stale_promotion::electable(&world, node, now.saturating_sub(6 * SECOND)))
                .collect(),
        };
        let mut samples = book.samples.borrow_mut();
        samples.push_back(sample);
        if samples.len() > 16 {
            samples.pop_front();
        }
    }
}

/// At the end of the run.
pub(crate) fn at_end(world: &Rc<World>) {
    s1_nothing_lost::at_end(world);
    l1_recovery::at_end(world);
}

/// Some time after the healing.
pub(crate) fn settled(world: &Rc<World>) {
    l1_recovery::settled(world);
}

/// Within this time after the healing writes work again.
pub(crate) fn recovery_bound(world: &World) -> Nanos {
    l1_recovery::bound(world)
}
