//! The store: linearizable, with leases, versions and watches, and everything that can go wrong on the way to it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use howdah::{
    clock::Boottime,
    dcs::{Hold, Key, Lock, When},
    model::{Cluster, Leader, Member, MemberData, MemberName, StatusKey, SyncKey, Version},
};

use crate::{
    exec::{Bell, First, MS, Nanos, race},
    rng::Rng,
    world::World,
};

/// Why there is no usable answer. Never proof of anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    Timeout,
    Answer,
    /// The lease is gone (an answer, handled by the client).
    LeaseGone,
}

/// How the store misbehaves, in percent of the requests.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mood {
    pub(crate) down: u32,
    pub(crate) slow: Nanos,
    pub(crate) refuses: u64,
    /// Never reaches it.
    pub(crate) loses_request: u64,
    /// Takes effect, and the answer never comes.
    pub(crate) loses_answer: u64,
}

#[derive(Debug, Clone, Copy)]
struct Grant {
    ttl: Nanos,
    until: Nanos,
}

#[derive(Default)]
struct Inner {
    cluster: Arc<Cluster>,
    versions: [Option<u64>; 7],
    leases: BTreeMap<i64, Grant>,
    leader_lease: i64,
    member_lease: BTreeMap<MemberName, i64>,
    revision: u64,
    next_lease: i64,
    /// The latest timeline `/history` was ever told of, also by what a wipe took.
    told: u32,
}

const fn slot(key: Key) -> usize {
    match key {
        Key::Initialize => 0,
        Key::Config => 1,
        Key::Status => 2,
        Key::Failover => 3,
        Key::Sync => 4,
        Key::History => 5,
        Key::Failsafe => 6,
    }
}

pub(crate) struct Store {
    inner: RefCell<Inner>,
    pub(crate) mood: Cell<Mood>,
    /// Its clock's rate; see [`crate::clock`].
    rate: u64,
    rng: RefCell<Rng>,
    back: Bell,
    granted: Bell,
    /// Wakes the agents.
    pub(crate) changes: Vec<Bell>,
    pub(crate) watch_lost: Vec<Cell<u32>>,
    pub(crate) wiped_at: Cell<Option<Nanos>>,
    /// When the store last did not do its work: for judging whether a fault could be seen at all.
    pub(crate) bad_at: Cell<Nanos>,
}

impl Store {
    pub(crate) fn new(members: usize, rate: u64, rng: Rng) -> Self {
        Self {
            inner: RefCell::default(),
            mood: Cell::default(),
            rate,
            rng: RefCell::new(rng),
            back: Bell::default(),
            granted: Bell::default(),
            changes: (0..members).map(|_| Bell::default()).collect(),
            watch_lost: (0..members).map(|_| Cell::new(0)).collect(),
            wiped_at: Cell::new(None),
            bad_at: Cell::new(0),
        }
    }

    /// The latest timeline `/history` was ever told of.
    pub(crate) fn told(&self) -> u32 {
        self.inner.borrow().told
    }

    pub(crate) fn cluster(&self) -> Arc<Cluster> {
        Arc::clone(&self.inner.borrow().cluster)
    }

    /// It does its work at this moment.
    pub(crate) fn well(&self) -> bool {
        let mood = self.mood.get();
        mood.down == 0 && mood.slow + mood.refuses + mood.loses_request + mood.loses_answer == 0
    }

    fn lasts(&self, ttl: Duration) -> Nanos {
        let exact = ttl.as_nanos() * 1_000_000 / u128::from(self.rate);
        u64::try_from(exact).unwrap_or(u64::MAX / 4)
    }

    fn change<R>(&self, world: &Rc<World>, act: impl FnOnce(&mut Inner, &mut bool) -> R) -> R {
        let mut woken = false;
        let value = {
            let mut inner = self.inner.borrow_mut();
            let now = world.sim.now();
            if self.mood.get().down == 0 {
                inner.expire(now, &mut woken);
            }
            act(&mut inner, &mut woken)
        };
        if woken {
            self.notify(world);
        }
        value
    }

    fn notify(&self, world: &Rc<World>) {
        for (node, lost) in self.watch_lost.iter().enumerate() {
            if lost.get() == 0 {
                let to = Rc::clone(world);
                world.sim.spawn(world.proc, async move {
                    to.net.transit(&to.sim, to.net.store(), node).await;
                    to.store.changes[node].ring(&to.sim);
                });
            }
        }
    }

    /// Ends leases when their time is over.
    pub(crate) async fn keep_time(world: Rc<World>) {
        let store = &world.store;
        loop {
            let mut seen = store.granted.count();
            store.change(&world, |_, _| ());
            let next = store
                .inner
                .borrow()
                .leases
                .values()
                .map(|grant| grant.until)
                .min();
            let next = next.filter(|_| store.mood.get().down == 0);
            match next {
                Some(at) => {
                    race(
                        world.sim.until(at.max(world.sim.now() + MS)),
                        store.granted.rung(&world.sim, &mut seen),
                    )
                    .await;
                }
                None => store.granted.rung(&world.sim, &mut seen).await,
            }
        }
    }

    pub(crate) fn set_down(&self, world: &Rc<World>, down: bool) {
        let mut mood = self.mood.get();
        mood.down = if down {
            mood.down + 1
        } else {
            mood.down.saturating_sub(1)
        };
        self.mood.set(mood);
        self.bad_at.set(world.sim.now());
        if mood.down == 0 {
            self.new_leader(world);
            self.back.ring(&world.sim);
            // Watches are lost with the servers, and count up when they are back.
            self.notify(world);
        }
    }

    /// Another server of the store leads: it extends every lease by its whole ttl.
    pub(crate) fn new_leader(&self, world: &Rc<World>) {
        let now = world.sim.now();
        for grant in self.inner.borrow_mut().leases.values_mut() {
            grant.until = now + grant.ttl;
        }
        self.granted.ring(&world.sim);
    }

    pub(crate) fn wipe(&self, world: &Rc<World>) {
        self.change(world, |inner, woken| {
            let revision = inner.revision + 1;
            let (next_lease, told) = (inner.next_lease, inner.told);
            *inner = Inner {
                revision,
                next_lease,
                told,
                ..Inner::default()
            };
            *woken = true;
        });
        self.wiped_at.set(Some(world.sim.now()));
        self.bad_at.set(world.sim.now());
    }

    /// Writes as a person's tool would, at once.
    pub(crate) fn put(
        &self,
        world: &Rc<World>,
        key: Key,
        when: When,
        write: impl FnOnce(&mut Cluster, Version),
    ) -> Option<Version> {
        self.change(world, |inner, woken| inner.put(key, when, write, woken))
    }
}

impl Inner {
    fn expire(&mut self, now: Nanos, woken: &mut bool) {
        let over = |(id, grant): (&i64, &Grant)| (grant.until <= now).then_some(*id);
        let over: Vec<i64> = self.leases.iter().filter_map(over).collect();
        for lease in over {
            self.revoke(lease, woken);
        }
    }

    fn revoke(&mut self, lease: i64, woken: &mut bool) {
        self.leases.remove(&lease);
        let cluster = Arc::make_mut(&mut self.cluster);
        if self.leader_lease == lease && cluster.leader.is_some() {
            cluster.leader = None;
            *woken = true;
        }
        let gone: Vec<MemberName> = self
            .member_lease
            .iter()
            .filter(|(_, bound)| **bound == lease)
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.member_lease.remove(&name);
            cluster.members.retain(|member| member.name != name);
            *woken = true;
        }
        self.revision += 1;
    }

    fn put(
        &mut self,
        key: Key,
        when: When,
        write: impl FnOnce(&mut Cluster, Version),
        woken: &mut bool,
    ) -> Option<Version> {
        let version = self.versions[slot(key)];
        let holds = match when {
            When::Always => true,
            When::Absent => version.is_none(),
            When::Version(Version(wanted)) => version == Some(wanted),
        };
        if !holds {
            return None;
        }
        self.revision += 1;
        self.versions[slot(key)] = Some(self.revision);
        write(Arc::make_mut(&mut self.cluster), Version(self.revision));
        self.told = self.told.max(self.cluster.timeline().0);
        *woken |= !matches!(key, Key::Status | Key::History | Key::Failsafe);
        Some(Version(self.revision))
    }

    fn delete(&mut self, key: Key, version: Version, woken: &mut bool) -> bool {
        if self.versions[slot(key)] != Some(version.0) {
            return false;
        }
        self.revision += 1;
        self.versions[slot(key)] = None;
        let cluster = Arc::make_mut(&mut self.cluster);
        match key {
            Key::Initialize => (cluster.initialize, cluster.initialize_version) = (None, None),
            Key::Sync => cluster.sync = SyncKey::default(),
            // Nobody deletes the others.
            Key::Config | Key::Status | Key::Failover | Key::History | Key::Failsafe => {}
        }
        *woken = true;
        true
    }

    fn set_leader(&mut self, name: &MemberName, lease: i64, woken: &mut bool) {
        self.revision += 1;
        self.leader_lease = lease;
        Arc::make_mut(&mut self.cluster).leader = Some(Leader {
            name: name.clone(),
            version: Version(self.revision),
            lease,
        });
        *woken = true;
    }
}

/// A lease as of its last proof of life.
#[derive(Debug, Clone, Copy)]
struct Alive {
    id: i64,
    sent_at: Boottime,
    ttl: Duration,
    /// The true time of `sent_at`, for the properties only.
    true_sent: Nanos,
    /// What was asked for; zero: a predecessor did.
    asked: Duration,
}

/// One agent's connection.
pub(crate) struct Client {
    world: Rc<World>,
    node: usize,
    timing: Cell<(Duration, Duration)>,
    lease: Cell<Option<Alive>>,
    ours: RefCell<Vec<i64>>,
    held: Cell<Option<i64>>,
    /// The lease of a lock that carried our name at the first read; `None`: nothing was read yet.
    inherited: Cell<Option<Option<i64>>>,
    member: RefCell<Option<(MemberData, i64)>>,
}

impl Client {
    pub(crate) fn new(world: &Rc<World>, node: usize, ttl: Duration, retry: Duration) -> Self {
        Self {
            world: Rc::clone(world),
            node,
            timing: Cell::new((ttl, retry)),
            lease: Cell::new(None),
            ours: RefCell::default(),
            held: Cell::new(None),
            inherited: Cell::new(None),
            member: RefCell::new(None),
        }
    }

    fn me(&self) -> &MemberName {
        &self.world.nodes[self.node].name
    }

    fn clock(&self) -> Boottime {
        self.world.nodes[self.node].local(&self.world)
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        match race(work, self.world.local_sleep(self.node, limit)).await {
            First::One(done) => done,
            First::Two(()) => Err(Trouble::Timeout),
        }
    }

    /// One request and its answer, through whatever is between.
    async fn ask<R>(&self, act: impl FnOnce(&mut Inner, &mut bool, Nanos) -> R) -> Result<R, Trouble> {
        let world = &self.world;
        let (sim, store) = (&world.sim, &world.store);
        world.net.transit(sim, self.node, world.net.store()).await;
        while store.mood.get().down > 0 {
            // Some clients see a refused connection, others none at all.
            let refused = store.rng.borrow_mut().chance(50);
            if refused {
                sim.sleep(20 * MS).await;
                return Err(Trouble::Answer);
            }
            store.back.next(sim).await;
        }
        let mood = store.mood.get();
        let (refuses, loses, unheard) = {
            let mut rng = store.rng.borrow_mut();
            (
                rng.chance(mood.refuses),
                rng.chance(mood.loses_request),
                rng.chance(mood.loses_answer),
            )
        };
        sim.sleep(MS / 2 + mood.slow).await;
        if refuses {
            return Err(Trouble::Answer);
        }
        if loses || store.mood.get().down > 0 {
            return std::future::pending().await;
        }
        let now = sim.now();
        let answer = store.change(world, |inner, woken| act(inner, woken, now));
        if unheard {
            return std::future::pending().await;
        }
        world.net.transit(sim, world.net.store(), self.node).await;
        Ok(answer)
    }

    pub(crate) async fn cluster(&self) -> Result<Arc<Cluster>, Trouble> {
        let (_, retry) = self.timing.get();
        let (cluster, leader_lease, member_lease) = self
            .within(
                retry,
                self.ask(|inner, _, _| {
                    let lease = inner.member_lease.get(self.me()).copied();
                    (Arc::clone(&inner.cluster), inner.leader_lease, lease)
                }),
            )
            .await?;
        if self.inherited.get().is_none() {
            let adopted = self.lease.get().is_some();
            let named = cluster.is_leader(self.me());
            let left = named && (adopted || member_lease == Some(leader_lease));
            self.inherited.set(Some(left.then_some(leader_lease)));
        }
        let intact = self
            .member
            .borrow()
            .as_ref()
            .is_some_and(|(_, lease)| member_lease == Some(*lease));
        if !intact {
            *self.member.borrow_mut() = None;
        }
        Ok(cluster)
    }

    async fn obtain(&self) -> Result<(Alive, bool), Trouble> {
        if let Some(alive) = self.lease.get() {
            return Ok((alive, false));
        }
        let (ttl, _) = self.timing.get();
        let (sent_at, true_sent) = (self.clock(), self.world.sim.now());
        let lasts = self.world.store.lasts(ttl);
        let id = self
            .ask(move |inner, _, now| {
                inner.next_lease += 1;
                let until = now + lasts;
                inner.leases.insert(inner.next_lease, Grant { ttl: lasts, until });
                inner.next_lease
            })
            .await?;
        self.world.store.granted.ring(&self.world.sim);
        let alive = Alive {
            id,
            sent_at,
            ttl,
            true_sent,
            asked: ttl,
        };
        self.ours.borrow_mut().push(id);
        self.lease.set(Some(alive));
        Ok((alive, true))
    }

    async fn keep(&self, lease: Alive) -> Result<Alive, Trouble> {
        let (sent_at, true_sent) = (self.clock(), self.world.sim.now());
        let (wanted, _) = self.timing.get();
        let id = lease.id;
        let ttl = self
            .ask(move |inner, _, now| {
                inner.leases.get_mut(&id).map(|grant| {
                    grant.until = now + grant.ttl;
                    grant.ttl
                })
            })
            .await?;
        let gone = |client: &Self| {
            if client.lease.get().is_some_and(|alive| alive.id == id) {
                client.lease.set(None);
            }
        };
        let Some(ttl) = ttl else {
            gone(self);
            return Err(Trouble::LeaseGone);
        };
        // An adopted lease of another ttl is replaced.
        if lease.asked.is_zero() && ttl != self.world.store.lasts(wanted) {
            gone(self);
            return Err(Trouble::LeaseGone);
        }
        let alive = Alive {
            sent_at,
            true_sent,
            ttl: if lease.asked.is_zero() {
                wanted
            } else {
                lease.asked
            },
            asked: if lease.asked.is_zero() {
                wanted
            } else {
                lease.asked
            },
            id,
        };
        if self.lease.get().is_some_and(|known| known.id == id) {
            self.lease.set(Some(alive));
        }
        Ok(alive)
    }

    fn lock_limit(&self) -> Duration {
        let (ttl, retry) = self.timing.get();
        retry.min((ttl / 3).max(Duration::from_millis(300)))
    }

    fn hold(&self, alive: Alive) -> Lock {
        self.held.set(Some(alive.id));
        self.world.nodes[self.node].good_renewal(alive.true_sent, alive.ttl);
        Lock::Held(Hold {
            sent_at: alive.sent_at,
            ttl: alive.ttl,
            lease: alive.id,
        })
    }

    pub(crate) async fn acquire(&self) -> Result<Lock, Trouble> {
        self.within(self.lock_limit(), self.take_lock()).await
    }

    pub(crate) async fn renew(&self) -> Result<Lock, Trouble> {
        self.within(self.lock_limit(), self.keep_lock()).await
    }

    async fn put_leader(&self, lease: i64, condition: Option<i64>) -> Result<bool, Trouble> {
        let me = self.me().clone();
        let put = self
            .ask(move |inner, woken, _| {
                if !inner.leases.contains_key(&lease) {
                    return None;
                }
                let present = inner.cluster.leader.is_some();
                let holds = match condition {
                    None => !present,
                    Some(old) => inner.cluster.is_leader(&me) && inner.leader_lease == old,
                };
                if holds {
                    inner.set_leader(&me, lease, woken);
                }
                Some(holds)
            })
            .await?;
        if put.is_none() && self.lease.get().is_some_and(|alive| alive.id == lease) {
            self.lease.set(None);
        }
        Ok(put.unwrap_or(false))
    }

    async fn read_leader(&self) -> Result<Option<(MemberName, i64)>, Trouble> {
        self.ask(|inner, _, _| {
            let lease = inner.leader_lease;
            inner
                .cluster
                .leader
                .as_ref()
                .map(|leader| (leader.name.clone(), lease))
        })
        .await
    }

    async fn take_lock(&self) -> Result<Lock, Trouble> {
        for _ in 0..8 {
            let (lease, fresh) = self.obtain().await?;
            if self.put_leader(lease.id, None).await? {
                if fresh {
                    return Ok(self.hold(lease));
                }
                return self.keep_lock().await;
            }
            match self.read_leader().await? {
                None => {}
                Some((name, bound)) if name == *self.me() && self.ours.borrow().contains(&bound) => {
                    return self.keep_lock().await;
                }
                Some((name, _)) => return Ok(Lock::Lost(Some(name))),
            }
        }
        Err(Trouble::Answer)
    }

    async fn keep_lock(&self) -> Result<Lock, Trouble> {
        for _ in 0..8 {
            let kept = match self.lease.get() {
                None => self.obtain().await.map(|(alive, _)| alive),
                Some(alive) => self.keep(alive).await,
            };
            let lease = match kept {
                Err(Trouble::LeaseGone) => continue,
                kept => kept?,
            };
            let condition = match self.read_leader().await? {
                None => None,
                Some((name, _)) if name != *self.me() => return Ok(Lock::Lost(Some(name))),
                Some((_, bound)) if bound == lease.id => return Ok(self.hold(lease)),
                Some((_, bound))
                    if self.ours.borrow().contains(&bound) || self.inherited.get() == Some(Some(bound)) =>
                {
                    Some(bound)
                }
                Some((name, _)) => return Ok(Lock::Lost(Some(name))),
            };
            if self.put_leader(lease.id, condition).await? {
                return Ok(self.hold(lease));
            }
        }
        Err(Trouble::Answer)
    }

    pub(crate) async fn release(&self, status: Option<StatusKey>) -> Result<(), Trouble> {
        let Some(lease) = self.held.get().or_else(|| self.lease.get().map(|alive| alive.id)) else {
            return Ok(());
        };
        let me = self.me().clone();
        let (_, retry) = self.timing.get();
        let release = self.ask(move |inner, woken, _| {
            if inner.cluster.is_leader(&me) && inner.leader_lease == lease {
                Arc::make_mut(&mut inner.cluster).leader = None;
                inner.revision += 1;
                *woken = true;
                if let Some(status) = status {
                    inner.put(
                        Key::Status,
                        When::Always,
                        |cluster, _| cluster.status = status,
                        woken,
                    );
                }
            }
        });
        self.within(retry, release).await?;
        self.held.set(None);
        Ok(())
    }

    pub(crate) async fn touch(&self, data: MemberData) -> Result<(), Trouble> {
        let (_, retry) = self.timing.get();
        self.within(retry, async {
            match self.put_member(&data).await {
                Err(Trouble::LeaseGone) => self.put_member(&data).await,
                done => done,
            }
        })
        .await
    }

    async fn put_member(&self, data: &MemberData) -> Result<(), Trouble> {
        let (lease, fresh) = self.obtain().await?;
        let unchanged = self
            .member
            .borrow()
            .as_ref()
            .is_some_and(|(old, bound)| old == data && *bound == lease.id);
        let (ttl, _) = self.timing.get();
        if !fresh && self.clock().since(lease.sent_at) >= ttl / 3 {
            self.keep(lease).await?;
        }
        if unchanged {
            return Ok(());
        }
        let (name, value, id) = (self.me().clone(), data.clone(), lease.id);
        let put = self
            .ask(move |inner, woken, _| {
                if !inner.leases.contains_key(&id) {
                    return false;
                }
                inner.revision += 1;
                *woken |= inner.member_lease.insert(name.clone(), id).is_none();
                let members = &mut Arc::make_mut(&mut inner.cluster).members;
                match members.binary_search_by(|member| member.name.cmp(&name)) {
                    Ok(at) => members[at].data = value,
                    Err(at) => members.insert(at, Member { name, data: value }),
                }
                true
            })
            .await?;
        if !put {
            if self.lease.get().is_some_and(|alive| alive.id == id) {
                self.lease.set(None);
            }
            return Err(Trouble::LeaseGone);
        }
        *self.member.borrow_mut() = Some((data.clone(), id));
        Ok(())
    }

    pub(crate) async fn remove_member(&self) -> Result<(), Trouble> {
        *self.member.borrow_mut() = None;
        let me = self.me().clone();
        self.ask(move |inner, woken, _| {
            inner.member_lease.remove(&me);
            let members = &mut Arc::make_mut(&mut inner.cluster).members;
            let before = members.len();
            members.retain(|member| member.name != me);
            *woken |= members.len() != before;
        })
        .await
    }

    /// A conditional write; `None`: refused.
    pub(crate) async fn write(
        &self,
        key: Key,
        when: When,
        write: impl FnOnce(&mut Cluster, Version),
    ) -> Result<Option<Version>, Trouble> {
        let (_, retry) = self.timing.get();
        let put = self.ask(move |inner, woken, _| inner.put(key, when, write, woken));
        self.within(retry, put).await
    }

    pub(crate) async fn delete(&self, key: Key, version: Version) -> Result<bool, Trouble> {
        let (_, retry) = self.timing.get();
        let delete = self.ask(move |inner, woken, _| inner.delete(key, version, woken));
        self.within(retry, delete).await
    }

    pub(crate) fn adopt(&self, lease: i64) {
        if lease == 0 {
            return;
        }
        self.ours.borrow_mut().push(lease);
        self.lease.set(Some(Alive {
            id: lease,
            sent_at: Boottime(0),
            ttl: Duration::ZERO,
            true_sent: 0,
            asked: Duration::ZERO,
        }));
    }

    pub(crate) fn set_timing(&self, ttl: Duration, retry: Duration) {
        let (old, _) = self.timing.replace((ttl, retry));
        if old != ttl {
            self.lease.set(None);
        }
    }
}
