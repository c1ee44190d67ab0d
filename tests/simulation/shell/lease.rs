//! The lock keeper, as in `src/agent/lease.rs`: the same rules in the same order, with the times of `ha::lease`.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use howdah::{
    clock::Boottime,
    dcs::{Hold, Lock},
    ha::{
        failsafe::{Promise, Promises, Question},
        lease::{Right, attempt_limit, deadlines, interval},
    },
    model::{MemberName, StatusKey},
};

use crate::{
    dcs::{Client, Trouble},
    exec::{Bell, First, Proc, Reply, Sim, race},
    mutants::Mutant,
    world::World,
};

const RELEASE_LIMIT: Duration = Duration::from_secs(2);

/// Excludes acquire, renew and release from each other; given back also by a task that is dropped.
#[derive(Default)]
struct Turn {
    taken: Cell<bool>,
    free: Bell,
}

struct Taken {
    lease: Rc<Lease>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.lease.turn.taken.set(false);
        self.lease.turn.free.ring(&self.lease.world.sim);
    }
}

pub(crate) struct Lease {
    world: Rc<World>,
    node: usize,
    proc: Proc,
    pub(crate) dcs: Rc<Client>,
    turn: Turn,
    right: Cell<Option<Right>>,
    keep: Cell<bool>,
    /// Hold or keep has changed.
    pub(super) changed: Bell,
    pub(crate) losses: Cell<u64>,
    given_up: Cell<u64>,
    fence_at: Cell<Option<Boottime>>,
    lost_to: RefCell<Option<MemberName>>,
    beat: Cell<Boottime>,
    pub(crate) left_to_expire: Cell<bool>,
    unsure: Cell<bool>,
    forgotten: Cell<bool>,
    /// Requests for the lock that are on their way.
    asking: Cell<usize>,
    promises: RefCell<Promises>,
    unfenced: Cell<bool>,
}

/// A request for the lock is on its way while this lives.
struct Asking<'a>(&'a Lease);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.asking.set(self.0.asking.get() - 1);
    }
}

impl Lease {
    pub(crate) fn new(
        world: &Rc<World>,
        node: usize,
        proc: Proc,
        dcs: Rc<Client>,
        adopted: Option<Hold>,
    ) -> Rc<Self> {
        Rc::new(Self {
            world: Rc::clone(world),
            node,
            proc,
            dcs,
            turn: Turn::default(),
            right: Cell::new(adopted.map(Right::Lease)),
            keep: Cell::new(adopted.is_some()),
            changed: Bell::default(),
            losses: Cell::new(0),
            given_up: Cell::new(0),
            fence_at: Cell::new(adopted.map(|hold| deadlines(&hold).fence_at)),
            lost_to: RefCell::new(None),
            beat: Cell::new(world.nodes[node].local(world)),
            left_to_expire: Cell::new(false),
            unsure: Cell::new(false),
            forgotten: Cell::new(false),
            asking: Cell::new(0),
            promises: RefCell::default(),
            unfenced: Cell::new(false),
        })
    }

    fn sim(&self) -> &Sim {
        &self.world.sim
    }

    pub(crate) fn now(&self) -> Boottime {
        self.world.nodes[self.node].local(&self.world)
    }

    pub(crate) fn hold(&self) -> Option<Hold> {
        self.right().map(|right| right.hold())
    }

    pub(crate) fn right(&self) -> Option<Right> {
        self.right.get()
    }

    /// All other members have accepted this primary, by questions sent at `asked_at` and later.
    pub(super) fn extend(&self, asked_at: Boottime) -> bool {
        let Some(hold) = self.hold() else { return false };
        let still = self.now().since(self.beat.get());
        if !self.keep.get() || still > hold.ttl || asked_at <= hold.sent_at {
            return false;
        }
        let right = Right::Consent {
            asked_at,
            ttl: hold.ttl,
            lease: hold.lease,
        };
        self.fence_until(&right.hold());
        let host = &self.world.nodes[self.node];
        let ago = host.clock.lasts(self.now().since(asked_at));
        host.good_renewal(self.sim().now().saturating_sub(ago), hold.ttl);
        self.right.set(Some(right));
        self.changed.ring(self.sim());
        true
    }

    /// Promises that this member takes no lock for `ttl` from now. Refused while it has the lock or asks for it.
    pub(super) fn promise(&self, to: MemberName, question: Question, ttl: Duration) -> bool {
        if self.asking.get() > 0 || self.counts() {
            return false;
        }
        self.promises.borrow_mut().give(to, question, ttl, self.now());
        true
    }

    pub(super) fn take_promise_back(&self, to: &MemberName, question: Question) {
        self.promises.borrow_mut().take_back(to, question);
    }

    pub(super) fn promised(&self) -> Option<Promise> {
        self.promises.borrow().binding(self.now())
    }

    /// Whether init fences this node; not while the cluster is paused.
    pub(super) fn set_fenced(&self, fenced: bool) {
        if self.unfenced.get() != fenced {
            return;
        }
        self.unfenced.set(!fenced);
        match self.hold().filter(|hold| self.counting(hold)) {
            Some(hold) if fenced => self.fence_until(&hold),
            _ if fenced => {}
            _ => {
                self.fence_at.set(None);
                self.world.nodes[self.node].init.set_fence(self.sim(), None);
            }
        }
    }

    fn fence_until(&self, hold: &Hold) {
        if self.unfenced.get() {
            return;
        }
        let fence_at = deadlines(hold).fence_at;
        let record = (self.world.mutant != Some(Mutant::NoDeadline)).then_some((fence_at, hold.lease));
        self.world.nodes[self.node].init.set_fence(self.sim(), record);
        self.fence_at.set(Some(fence_at));
    }

    fn begin_asking(&self) -> Option<Asking<'_>> {
        if self.promised().is_some() {
            return None;
        }
        self.asking.set(self.asking.get() + 1);
        Some(Asking(self))
    }

    fn counting(&self, hold: &Hold) -> bool {
        self.world.mutant == Some(Mutant::NoDeadline) || self.now() < deadlines(hold).demote_at
    }

    fn left(&self, hold: &Hold) -> Duration {
        match self.world.mutant {
            Some(Mutant::NoDeadline) => Duration::from_secs(3600),
            _ => deadlines(hold).demote_at.since(self.now()),
        }
    }

    pub(crate) fn counts(&self) -> bool {
        self.hold().as_ref().is_some_and(|hold| self.counting(hold))
    }

    pub(crate) fn lost_to(&self) -> Option<MemberName> {
        self.lost_to.borrow().clone()
    }

    pub(crate) fn fence_left(&self) -> Option<Duration> {
        self.fence_at.get().map(|at| at.since(self.now()))
    }

    pub(crate) fn may_be_ours(&self) -> bool {
        self.hold().is_some() || self.unsure.get()
    }

    pub(crate) fn outlives_us(&self) -> bool {
        self.left_to_expire.get() || self.forgotten.get() || self.may_be_ours()
    }

    pub(crate) fn seen_elsewhere(&self) {
        self.forgotten.set(false);
        if !self.turn.taken.get() {
            self.unsure.set(false);
        }
    }

    pub(crate) fn beat(&self) {
        self.beat.set(self.now());
    }

    /// Resolves when there is no hold that counts.
    pub(crate) async fn expired(&self) {
        loop {
            let mut seen = self.changed.count();
            let Some(current) = self.hold().filter(|hold| self.counting(hold)) else {
                return;
            };
            let left = self.left(&current);
            race(
                self.changed.rung(self.sim(), &mut seen),
                self.world.local_sleep(self.node, left),
            )
            .await;
        }
    }

    pub(crate) fn set_keep(&self, keep: bool) {
        if self.keep.replace(keep) != keep {
            self.changed.ring(self.sim());
        }
    }

    async fn take_turn(self: &Rc<Self>) -> Taken {
        while self.turn.taken.get() {
            self.turn.free.next(self.sim()).await;
        }
        self.turn.taken.set(true);
        Taken {
            lease: Rc::clone(self),
        }
    }

    pub(crate) async fn acquire(self: &Rc<Self>) -> Result<bool, Trouble> {
        self.ask(true).await
    }

    pub(crate) async fn renew(self: &Rc<Self>) -> Result<bool, Trouble> {
        self.ask(false).await
    }

    /// Runs the request to its end whatever becomes of the caller.
    async fn ask(self: &Rc<Self>, free: bool) -> Result<bool, Trouble> {
        let reply = Reply::new();
        let (me, to) = (Rc::clone(self), Rc::clone(&reply));
        self.sim().spawn(self.proc, async move {
            let answer = async {
                let _turn = me.take_turn().await;
                let given_up = me.given_up.get();
                let Some(_asking) = me.begin_asking() else {
                    return Err(Trouble::Answer);
                };
                me.unsure.set(true);
                let answer = if free {
                    me.dcs.acquire().await
                } else {
                    me.dcs.renew().await
                };
                answer.map(|answer| me.wanted(answer, given_up))
            };
            let answer = answer.await;
            to.send(me.sim(), answer);
        });
        reply.wait(self.sim()).await
    }

    fn wanted(&self, answer: Lock, given_up: u64) -> bool {
        let held = self.note(answer, given_up);
        if held {
            self.set_keep(true);
        }
        held
    }

    pub(crate) async fn release(self: &Rc<Self>, status: Option<StatusKey>) -> bool {
        self.set_keep(false);
        self.left_to_expire.set(true);
        self.give_up();
        self.world.note_release(self.node);
        let released = async {
            let _turn = self.take_turn().await;
            self.dcs.release(status).await.is_ok()
        };
        let done = race(released, self.world.local_sleep(self.node, RELEASE_LIMIT)).await;
        let released = matches!(done, First::One(true));
        if released {
            self.left_to_expire.set(false);
            self.unsure.set(false);
            self.forgotten.set(false);
        }
        released
    }

    pub(crate) fn forget(&self) {
        if self.hold().is_some() {
            self.forgotten.set(true);
        }
        self.set_keep(false);
        self.give_up();
    }

    fn give_up(&self) {
        self.given_up.set(self.given_up.get() + 1);
        self.fence_at.set(None);
        self.right.set(None);
        self.changed.ring(self.sim());
        self.world.nodes[self.node].init.set_fence(self.sim(), None);
    }

    /// Runs `work`, but not past the moment until which the present hold counts, nor past the proof that it was lost.
    pub(crate) async fn while_it_lasts<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let losses = self.losses.get();
        let over = async {
            let mut limited = false;
            loop {
                let mut seen = self.changed.count();
                let left = match self.hold() {
                    Some(hold) if self.counting(&hold) => {
                        limited = true;
                        Some(self.left(&hold))
                    }
                    Some(_) if limited => return,
                    None if limited && self.losses.get() != losses => return,
                    _ => None,
                };
                let changed = self.changed.rung(self.sim(), &mut seen);
                match left {
                    Some(left) => {
                        race(changed, self.world.local_sleep(self.node, left)).await;
                    }
                    None => changed.await,
                }
            }
        };
        match race(work, over).await {
            First::One(done) => Some(done),
            First::Two(()) => None,
        }
    }

    fn note(&self, answer: Lock, given_up: u64) -> bool {
        let discarded = matches!(answer, Lock::Held(_)) && self.given_up.get() != given_up;
        self.unsure.set(discarded);
        match answer {
            Lock::Held(_) if discarded => false,
            Lock::Held(hold) => {
                self.fence_until(&hold);
                *self.promises.borrow_mut() = Promises::default();
                *self.lost_to.borrow_mut() = None;
                self.left_to_expire.set(false);
                self.forgotten.set(false);
                self.right.set(Some(Right::Lease(hold)));
                self.changed.ring(self.sim());
                true
            }
            Lock::Lost(holder) => {
                *self.lost_to.borrow_mut() = holder;
                if self.hold().is_some() {
                    self.losses.set(self.losses.get() + 1);
                    self.right.set(None);
                    self.changed.ring(self.sim());
                    if let Some(agent) = self.world.nodes[self.node].agent.borrow().as_ref() {
                        agent.wake.ring(self.sim());
                    }
                }
                false
            }
        }
    }

    /// Renews while told to keep. Runs for the life of the agent.
    pub(crate) async fn keep(self: Rc<Self>) {
        let mut failing = false;
        let mut stuck = false;
        loop {
            let mut seen = self.changed.count();
            let current = self.hold().filter(|hold| self.counting(hold));
            let (Some(current), true) = (current, self.keep.get()) else {
                self.changed.rung(self.sim(), &mut seen).await;
                continue;
            };
            let every = interval(current.ttl);
            let pause = if failing || stuck {
                (every / 4).clamp(Duration::from_millis(100), Duration::from_secs(1))
            } else {
                (current.sent_at + every).since(self.now()).min(every)
            };
            let kept = self.keep.get();
            let same = || {
                let hold = self.hold();
                hold.is_some_and(|hold| hold.ttl == current.ttl && hold.lease == current.lease)
            };
            let interrupted = async {
                while self.keep.get() == kept && same() {
                    self.changed.next(self.sim()).await;
                }
            };
            if let First::Two(()) = race(self.world.local_sleep(self.node, pause), interrupted).await {
                continue;
            }
            stuck = self.now().since(self.beat.get()) > current.ttl;
            if stuck {
                continue;
            }
            self.attempt(&current, &mut failing).await;
        }
    }

    async fn attempt(self: &Rc<Self>, current: &Hold, failing: &mut bool) {
        let _turn = self.take_turn().await;
        let given_up = self.given_up.get();
        if !self.keep.get() || self.hold().is_none() {
            return;
        }
        let Some(_asking) = self.begin_asking() else {
            return;
        };
        let limit = attempt_limit(current.ttl);
        let answer = race(self.dcs.renew(), self.world.local_sleep(self.node, limit)).await;
        match answer {
            First::One(Ok(lock)) => {
                *failing = false;
                if self.keep.get() || matches!(lock, Lock::Lost(_)) {
                    self.note(lock, given_up);
                }
            }
            First::One(Err(_)) | First::Two(()) => *failing = true,
        }
    }
}
