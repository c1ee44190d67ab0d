//! The schedule: what is broken when and for how long, and what people ask for.

use std::{fmt, rc::Rc};

use howdah::{
    dcs::{Key, When},
    ha::Shutdown,
    model::FailoverKey,
};
use serde_json::{Map, Value, json};

use crate::{
    dcs::Mood,
    exec::{MS, Nanos, SECOND},
    postgres::kill_postmaster,
    rng::Rng,
    world::{Setup, World},
};

/// Which directions of a connection are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ways {
    Both,
    Out,
    In,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    KillContainer(usize),
    PowerLoss(usize),
    /// Every host at once; each comes back after its own time.
    PowerLossOfAll(Vec<Nanos>),
    KillAgent(usize),
    KillPostmaster(usize),
    FreezeHost(usize),
    FreezeAgent(usize),
    FreezePostgres(usize),
    HangPostmaster(usize),
    CutStore(usize, Ways),
    CutMember(usize, usize, Ways),
    /// From everything.
    Isolate(usize),
    /// Members in the mask from the others; the store is with the others.
    Partition(u32),
    Loss(usize, u64),
    SlowNetwork(Nanos),
    StoreDown,
    StoreFlaky(Mood2),
    StoreLeaderChange,
    StoreWiped,
    WatchLost(usize),
    DiskStall(usize),
    DiskFull(usize),
    WallJump(usize, i64),
    SlowStart(usize, Nanos),
    StartFails(usize),
    SlowStop(usize, Nanos),
    SlowPromotion(usize, Nanos),
    ReplayLag(usize, Nanos),
    Switchover(Option<usize>),
    Failover(usize),
    GracefulStop(usize),
    Settings(Map<String, Value>),
    MemberRemoved(usize),
    /// It is not there before.
    MemberAdded(usize),
    /// Maintenance mode, and back.
    Pause,
}

/// How a flaky store misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mood2 {
    pub(crate) refuses: u64,
    pub(crate) loses_request: u64,
    pub(crate) loses_answer: u64,
    pub(crate) slow: Nanos,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fault {
    pub(crate) at: Nanos,
    pub(crate) lasts: Nanos,
    pub(crate) kind: Kind,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at as f64 / SECOND as f64;
        let lasts = self.lasts as f64 / SECOND as f64;
        write!(f, "{at:8.3} s  for {lasts:7.3} s  {:?}", self.kind)
    }
}

const GROUPS: u64 = 9;

/// A schedule for this seed. Each seed has a taste of its own: only some groups of faults, or they would drown each other.
pub(crate) fn schedule(setup: &Setup, seed: u64) -> Vec<Fault> {
    let mut rng = Rng::new(seed, 7);
    let ttl = u64::try_from(setup.dynamic.timing.ttl.as_nanos()).unwrap_or(SECOND);
    let groups: Vec<u64> = (0..rng.range(1, 5)).map(|_| rng.range(0, GROUPS)).collect();
    let count = rng.range(3, 22);
    let begin = 35 * SECOND;
    let mut faults: Vec<Fault> = (0..count)
        .map(|_| {
            let group = rng.pick(&groups);
            let at = rng.range(begin, setup.heal_at.saturating_sub(5 * SECOND));
            // Short ones, ones around a lease, and long ones.
            let lasts = match rng.range(0, 4) {
                0 => rng.range(100 * MS, ttl / 3),
                1 => rng.range(ttl / 3, ttl + ttl / 2),
                2 => rng.range(ttl, 3 * ttl),
                _ => rng.range(SECOND, 60 * SECOND),
            };
            let kind = kind(setup, group, &mut rng);
            Fault { at, lasts, kind }
        })
        .collect();
    // Storms: what comes right after another fault finds what a calm schedule never does.
    if rng.chance(40) {
        let mut from = 0;
        for fault in &mut faults {
            if from > 0 && rng.chance(50) {
                fault.at = (from + rng.range(0, ttl)).min(setup.heal_at.saturating_sub(5 * SECOND));
            }
            from = fault.at;
        }
    }
    faults.sort_by_key(|fault| fault.at);
    faults
}

fn kind(setup: &Setup, group: u64, rng: &mut Rng) -> Kind {
    let node = rng.index(setup.members);
    let ways = rng.pick(&[Ways::Both, Ways::Both, Ways::Out, Ways::In]);
    match group {
        0 => match rng.range(0, 4) {
            0 => Kind::KillContainer(node),
            1 => Kind::PowerLoss(node),
            2 => Kind::KillAgent(node),
            _ => Kind::KillPostmaster(node),
        },
        1 => match rng.range(0, 4) {
            0 | 1 => Kind::FreezeHost(node),
            2 => Kind::FreezeAgent(node),
            _ => Kind::FreezePostgres(node),
        },
        2 => match rng.range(0, 5) {
            0 | 1 => Kind::CutStore(node, ways),
            2 => Kind::Isolate(node),
            3 => Kind::Partition(u32::try_from(rng.range(1, (1 << setup.members) - 1)).unwrap_or(1)),
            _ => Kind::CutMember(node, rng.index(setup.members), ways),
        },
        3 => match rng.range(0, 7) {
            0 | 1 => Kind::StoreDown,
            2 | 3 => Kind::StoreFlaky(Mood2 {
                refuses: rng.pick(&[0, 20, 60]),
                loses_request: rng.pick(&[0, 20, 60]),
                loses_answer: rng.pick(&[0, 20, 60]),
                slow: rng.pick(&[0, 100 * MS, SECOND, 4 * SECOND]),
            }),
            4 => Kind::StoreLeaderChange,
            5 => Kind::WatchLost(node),
            _ if rng.chance(30) => Kind::StoreWiped,
            _ => Kind::StoreLeaderChange,
        },
        4 => match rng.range(0, 8) {
            0 => Kind::DiskStall(node),
            1 => Kind::DiskFull(node),
            2 => Kind::SlowStart(node, rng.range(SECOND, 40 * SECOND)),
            3 => Kind::StartFails(node),
            4 => Kind::SlowStop(node, rng.range(SECOND, 30 * SECOND)),
            5 => Kind::SlowPromotion(node, rng.range(100 * MS, 20 * SECOND)),
            6 => Kind::ReplayLag(node, rng.range(10 * MS, 20 * SECOND)),
            _ => Kind::HangPostmaster(node),
        },
        5 => match rng.range(0, 5) {
            0 | 1 => Kind::Switchover(rng.chance(60).then_some(node)),
            2 => Kind::Failover(node),
            _ => Kind::GracefulStop(node),
        },
        6 => match rng.range(0, 3) {
            0 => Kind::Loss(node, rng.range(2, 40)),
            1 => Kind::SlowNetwork(rng.range(5 * MS, 700 * MS)),
            _ => Kind::CutMember(node, rng.index(setup.members), ways),
        },
        7 => match rng.range(0, 8) {
            0 => Kind::WallJump(node, i64::try_from(rng.range(0, 7200)).unwrap_or(0) - 3600),
            1 => {
                let ttl = rng.pick(&[5, 10, 20, 30]);
                settings(json!({"ttl": ttl, "loop_wait": ttl / 3, "retry_timeout": ttl / 3}))
            }
            2 => settings(json!({"primary_start_timeout": rng.pick(&[0, 5, 300])})),
            3 => settings(match rng.range(0, 5) {
                0 => json!({"synchronous_mode": false}),
                1 => json!({"synchronous_mode": true}),
                2 => json!({"synchronous_mode": "quorum"}),
                3 => json!({"synchronous_mode_strict": rng.chance(50)}),
                _ => json!({"synchronous_node_count": rng.range(1, 3)}),
            }),
            4 if setup.members > 3 => match rng.range(0, 3) {
                0 => Kind::MemberAdded(setup.members - 1),
                _ => Kind::MemberRemoved(node),
            },
            5 => Kind::Pause,
            _ => Kind::KillAgent(node),
        },
        _ => match rng.range(0, 4) {
            0 => Kind::PowerLossOfAll(
                (0..setup.members)
                    .map(|_| rng.range(SECOND, 60 * SECOND))
                    .collect(),
            ),
            1 => Kind::PowerLoss(node),
            2 => Kind::Isolate(node),
            _ => Kind::KillContainer(node),
        },
    }
}

fn settings(value: Value) -> Kind {
    Kind::Settings(value.as_object().cloned().unwrap_or_default())
}

/// Plays the schedule.
pub(crate) fn play(world: &Rc<World>, schedule: &[Fault]) {
    for fault in schedule {
        if let Kind::MemberAdded(node) = fault.kind {
            world.nodes[node].absent.set(true);
        }
    }
    for fault in schedule {
        let (world, fault) = (Rc::clone(world), fault.clone());
        world.sim.clone().spawn(world.proc, async move {
            world.sim.until(fault.at).await;
            world.tell(|| format!("{:?} for {:.1} s", fault.kind, fault.lasts as f64 / SECOND as f64));
            begin(&world, &fault);
            let end = (fault.at + fault.lasts).min(world.setup.heal_at);
            world.sim.until(end).await;
            finish(&world, &fault).await;
        });
    }
    let world = Rc::clone(world);
    world.sim.clone().spawn(world.proc, async move {
        world.sim.until(world.setup.heal_at).await;
        world.tell(|| "everything is healed".to_owned());
        // The store may have lost that the cluster was resumed.
        if world.book.paused_at.get() > 0 {
            pause(&world, false);
        }
        for node in 0..world.nodes.len() {
            world.cover(node, "heal");
        }
        // The store may go on answering requests to change the leader; nobody asks any more.
    });
}

fn touch(world: &World, node: usize, name: &'static str) {
    world.nodes[node].bad_at.set(world.sim.now());
    world.cover(node, name);
}

fn touch_all(world: &World, name: &'static str) {
    for node in 0..world.nodes.len() {
        world.cover(node, name);
    }
}

/// Cuts or heals between two endpoints.
fn connect(world: &World, a: usize, b: usize, ways: Ways, cut: bool) {
    if a == b {
        return;
    }
    let one = |from: usize, to: usize| {
        if cut {
            world.net.cut(&world.sim, from, to);
        } else {
            world.net.heal(&world.sim, from, to);
        }
    };
    if matches!(ways, Ways::Both | Ways::Out) {
        one(a, b);
    }
    if matches!(ways, Ways::Both | Ways::In) {
        one(b, a);
    }
}

fn separate(world: &World, mask: u32, cut: bool) {
    let store = world.net.store();
    let inside = |node: usize| node < store && mask & (1 << node) != 0;
    for a in 0..=store {
        for b in 0..=store {
            if a < b && inside(a) != inside(b) {
                connect(world, a, b, Ways::Both, cut);
            }
        }
    }
}

fn begin(world: &Rc<World>, fault: &Fault) {
    let sim = &world.sim;
    match &fault.kind {
        Kind::KillContainer(node) => {
            touch(world, *node, "kill container");
            world.nodes[*node].held_down.add(true);
            world.container_ends(*node, None);
        }
        Kind::PowerLoss(node) => {
            touch(world, *node, "power loss");
            world.nodes[*node].held_down.add(true);
            world.power_loss(*node);
        }
        Kind::PowerLossOfAll(back) => {
            for (node, after) in back.iter().enumerate() {
                touch(world, node, "power loss");
                world.nodes[node].held_down.add(true);
                world.power_loss(node);
                let (world, after) = (Rc::clone(world), *after);
                sim.spawn(world.proc, async move {
                    let at = (world.sim.now() + after).min(world.setup.heal_at);
                    world.sim.until(at).await;
                    world.nodes[node].held_down.add(false);
                    world.starts_again(node);
                });
            }
        }
        Kind::KillAgent(node) => {
            touch(world, *node, "kill agent");
            world.agent_killed(*node);
        }
        Kind::KillPostmaster(node) => {
            touch(world, *node, "kill postmaster");
            kill_postmaster(world, *node, world.between(MS, 100 * MS));
        }
        Kind::FreezeHost(node) => {
            world.cover(*node, "freeze host");
            world.freeze_all(*node, true);
        }
        Kind::FreezeAgent(node) => {
            world.cover(*node, "freeze agent");
            world.nodes[*node].agent_frozen.add(true);
            world.apply_freezes(*node);
        }
        Kind::FreezePostgres(node) => {
            world.cover(*node, "freeze postgres");
            world.nodes[*node].pg_frozen.add(true);
            world.apply_freezes(*node);
        }
        Kind::HangPostmaster(node) => {
            touch(world, *node, "hang postmaster");
            if world.nodes[*node].pg.running() {
                world.nodes[*node].pg.hung.set(true);
            }
        }
        Kind::CutStore(node, ways) => {
            world.cover(*node, "cut from store");
            connect(world, *node, world.net.store(), *ways, true);
        }
        Kind::CutMember(a, b, ways) => {
            world.cover(*a, "cut from member");
            world.cover(*b, "cut from member");
            connect(world, *a, *b, *ways, true);
        }
        Kind::Isolate(node) => {
            world.cover(*node, "isolate");
            separate(world, 1 << node, true);
        }
        Kind::Partition(mask) => {
            touch_all(world, "partition");
            separate(world, *mask, true);
        }
        Kind::Loss(node, percent) => {
            world.cover(*node, "packet loss");
            loss(world, *node, *percent);
        }
        Kind::SlowNetwork(extra) => {
            touch_all(world, "slow network");
            world.net.set_extra(*extra);
            world.store.bad_at.set(sim.now());
        }
        Kind::StoreDown => {
            touch_all(world, "store down");
            world.store.set_down(world, true);
        }
        Kind::StoreFlaky(flaky) => {
            touch_all(world, "store flaky");
            set_mood(world, *flaky);
        }
        Kind::StoreLeaderChange => {
            touch_all(world, "store leader change");
            world.store.new_leader(world);
        }
        Kind::StoreWiped => {
            touch_all(world, "store wiped");
            world.store.wipe(world);
        }
        Kind::WatchLost(node) => {
            world.cover(*node, "watch lost");
            let lost = &world.store.watch_lost[*node];
            lost.set(lost.get() + 1);
        }
        Kind::DiskStall(node) => {
            touch(world, *node, "disk stall");
            world.nodes[*node].disk_stalled.add(true);
        }
        Kind::DiskFull(node) => {
            touch(world, *node, "disk full");
            world.nodes[*node].disk_full.add(true);
        }
        Kind::WallJump(node, seconds) => {
            world.cover(*node, "wall clock jump");
            let offset = &world.nodes[*node].clock.wall_offset;
            offset.set(offset.get() + seconds);
        }
        Kind::SlowStart(node, time) => {
            touch(world, *node, "slow start");
            world.nodes[*node].slow_start.set(*time);
        }
        Kind::StartFails(node) => {
            touch(world, *node, "start fails");
            world.nodes[*node].start_fails.add(true);
        }
        Kind::SlowStop(node, time) => {
            touch(world, *node, "slow stop");
            world.nodes[*node].slow_stop.set(*time);
        }
        Kind::SlowPromotion(node, time) => {
            touch(world, *node, "slow promotion");
            world.nodes[*node].slow_promotion.set(*time);
        }
        Kind::ReplayLag(node, time) => {
            touch(world, *node, "replay lag");
            world.nodes[*node].replay_lag.set(*time);
        }
        Kind::Switchover(candidate) => switchover(world, *candidate),
        Kind::Failover(candidate) => {
            touch_all(world, "failover");
            world.book.failover_at.set(Some(world.sim.now()));
            request(
                world,
                FailoverKey {
                    leader: None,
                    candidate: Some(world.nodes[*candidate].name.clone()),
                    scheduled_at: None,
                },
            );
        }
        Kind::GracefulStop(node) => graceful_stop(world, *node, "graceful stop"),
        Kind::Settings(settings) => {
            touch_all(world, "settings");
            change_settings(world, settings);
        }
        Kind::MemberRemoved(node) => {
            if !world.nodes[*node].absent.get() && can_do_without(world, *node) {
                world.nodes[*node].absent.set(true);
                world.nodes[*node].removed.set(true);
                graceful_stop(world, *node, "member removed");
            }
        }
        Kind::MemberAdded(node) => {
            touch(world, *node, "member added");
            // Not one that was removed; and to a cluster that works.
            let host = &world.nodes[*node];
            let works = world.store.cluster().leader.is_some() && world.store.well();
            if works && !host.removed.get() && host.absent.replace(false) && !host.up.get() {
                world.starts_again(*node);
            }
        }
        Kind::Pause => pause(world, true),
    }
}

fn pause(world: &Rc<World>, on: bool) {
    touch_all(world, if on { "pause" } else { "resume" });
    world.book.paused_at.set(world.sim.now());
    let settings = json!({ "pause": on });
    change_settings(world, settings.as_object().unwrap_or(&Map::new()));
}

/// A person removes a member only from a cluster that lives on without it: three others stay, nobody waits for one that
/// is gone already, somebody leads, and if that is the one to be removed, others are ready to lead instead.
fn can_do_without(world: &World, node: usize) -> bool {
    let cluster = world.store.cluster();
    let absent = |index: usize| world.nodes[index].absent.get();
    let left: Vec<usize> = (0..world.nodes.len())
        .filter(|other| *other != node && !absent(*other))
        .collect();
    let leader = cluster
        .leader
        .as_ref()
        .and_then(|leader| world.index_of(&leader.name));
    let gone = |name| world.index_of(name).is_none_or(absent);
    let (Some(leader), true) = (leader, left.len() >= 3 && world.store.well()) else {
        return false;
    };
    let well = |index: usize| {
        let host = &world.nodes[index];
        let role = if index == leader {
            host.pg.primary.get()
        } else {
            host.pg.streaming.get()
        };
        host.up.get() && !host.stopping.get() && host.well() && host.pg.running() && role
    };
    let sync = &cluster.sync;
    if !well(leader) || (sync.leader.is_some() && sync.standbys.iter().any(gone)) {
        return false;
    }
    let heirs = left.iter().filter(|index| {
        let host = &world.nodes[**index];
        let listed = sync.leader.is_none() || sync.standbys.contains(&host.name);
        well(**index) && listed && !host.tags.nofailover()
    });
    leader != node || heirs.count() > usize::try_from(sync.quorum).unwrap_or(usize::MAX)
}

fn loss(world: &World, node: usize, percent: u64) {
    for other in 0..=world.net.store() {
        if other != node {
            world.net.set_loss(&world.sim, node, other, percent);
            world.net.set_loss(&world.sim, other, node, percent);
        }
    }
}

fn set_mood(world: &World, flaky: Mood2) {
    let down = world.store.mood.get().down;
    world.store.bad_at.set(world.sim.now());
    world.store.mood.set(Mood {
        down,
        slow: flaky.slow,
        refuses: flaky.refuses,
        loses_request: flaky.loses_request,
        loses_answer: flaky.loses_answer,
    });
}

fn request(world: &Rc<World>, key: FailoverKey) {
    world.book.request_at.set(Some(world.sim.now()));
    world
        .store
        .put(world, Key::Failover, When::Always, |cluster, version| {
            cluster.failover = Some(key);
            cluster.failover_version = Some(version);
        });
}

fn switchover(world: &Rc<World>, candidate: Option<usize>) {
    touch_all(world, "switchover");
    let leader = world
        .store
        .cluster()
        .leader
        .as_ref()
        .map(|leader| leader.name.clone());
    let candidate = candidate.map(|node| world.nodes[node].name.clone());
    if leader.is_none() || candidate == leader {
        return;
    }
    request(
        world,
        FailoverKey {
            leader,
            candidate,
            scheduled_at: None,
        },
    );
}

/// `docker stop`: SIGTERM, and SIGKILL to everything ten seconds later.
fn graceful_stop(world: &Rc<World>, node: usize, name: &'static str) {
    touch(world, node, name);
    let host = &world.nodes[node];
    host.held_down.add(true);
    if !host.up.get() {
        return;
    }
    host.stopping.set(true);
    let agent = host.agent.borrow().clone();
    if let Some(agent) = agent {
        agent.stop(Shutdown::HandOver);
    }
    let world = Rc::clone(world);
    world.sim.clone().spawn(world.proc, async move {
        world.sim.sleep(10 * SECOND).await;
        if world.nodes[node].stopping.get() {
            world.container_ends(node, None);
        }
    });
}

fn change_settings(world: &Rc<World>, settings: &Map<String, Value>) {
    let mut config = match &world.store.cluster().config {
        Some(config) => config.clone(),
        // Whoever resumes a cluster whose configuration is gone writes it anew.
        None if settings.contains_key("pause") => world.setup.dynamic.raw.clone(),
        None => return,
    };
    for (name, value) in settings {
        config.insert(name.clone(), value.clone());
    }
    world
        .store
        .put(world, Key::Config, When::Always, |cluster, version| {
            cluster.config = Some(config);
            cluster.config_version = Some(version);
        });
}

async fn finish(world: &Rc<World>, fault: &Fault) {
    let sim = &world.sim;
    match &fault.kind {
        Kind::KillContainer(node) | Kind::PowerLoss(node) => {
            world.nodes[*node].held_down.add(false);
            world.starts_again(*node);
        }
        Kind::FreezeHost(node) => world.freeze_all(*node, false),
        Kind::FreezeAgent(node) => {
            world.nodes[*node].agent_frozen.add(false);
            world.apply_freezes(*node);
        }
        Kind::FreezePostgres(node) => {
            world.nodes[*node].pg_frozen.add(false);
            world.apply_freezes(*node);
        }
        Kind::HangPostmaster(node) => {
            touch(world, *node, "hang postmaster");
            world.nodes[*node].pg.hung.set(false);
            world.nodes[*node].pg.written.ring(sim);
        }
        Kind::CutStore(node, ways) => connect(world, *node, world.net.store(), *ways, false),
        Kind::CutMember(a, b, ways) => connect(world, *a, *b, *ways, false),
        Kind::Isolate(node) => separate(world, 1 << node, false),
        Kind::Partition(mask) => separate(world, *mask, false),
        Kind::Loss(node, _) => loss(world, *node, 0),
        Kind::SlowNetwork(_) => {
            world.net.set_extra(0);
            world.store.bad_at.set(sim.now());
        }
        Kind::StoreDown => world.store.set_down(world, false),
        Kind::StoreFlaky(_) => set_mood(
            world,
            Mood2 {
                refuses: 0,
                loses_request: 0,
                loses_answer: 0,
                slow: 0,
            },
        ),
        Kind::WatchLost(node) => {
            let lost = &world.store.watch_lost[*node];
            lost.set(lost.get().saturating_sub(1));
            if lost.get() == 0 {
                world.store.changes[*node].ring(sim);
            }
        }
        Kind::DiskStall(node) => {
            touch(world, *node, "disk stall");
            world.nodes[*node].disk_stalled.add(false);
        }
        Kind::DiskFull(node) => {
            touch(world, *node, "disk full");
            world.nodes[*node].disk_full.add(false);
        }
        Kind::SlowStart(node, _) => world.nodes[*node].slow_start.set(0),
        Kind::StartFails(node) => {
            touch(world, *node, "start fails");
            world.nodes[*node].start_fails.add(false);
        }
        Kind::SlowStop(node, _) => world.nodes[*node].slow_stop.set(0),
        Kind::SlowPromotion(node, _) => world.nodes[*node].slow_promotion.set(0),
        Kind::ReplayLag(node, _) => world.nodes[*node].replay_lag.set(0),
        Kind::Pause => pause(world, false),
        Kind::GracefulStop(node) => {
            let after = sim.now() + 12 * SECOND;
            sim.until(after.min(world.setup.heal_at.max(sim.now() + 11 * SECOND)))
                .await;
            world.nodes[*node].held_down.add(false);
            world.nodes[*node].stopping.set(false);
            world.starts_again(*node);
        }
        Kind::PowerLossOfAll(_)
        | Kind::KillAgent(_)
        | Kind::KillPostmaster(_)
        | Kind::StoreLeaderChange
        | Kind::StoreWiped
        | Kind::WallJump(..)
        | Kind::Switchover(_)
        | Kind::Failover(_)
        | Kind::Settings(_)
        | Kind::MemberRemoved(_)
        | Kind::MemberAdded(_) => {}
    }
}
