//! One run: a seed, its setup and schedule, and what came of it.

use std::{rc::Rc, sync::Arc};

use howdah::model::{Dynamic, Tags};
use serde_json::{Map, Value, json};

use crate::{
    coverage::Coverage,
    dcs::Store,
    exec::{MS, SECOND},
    faults::{self, Fault},
    mutants::Mutant,
    properties::{self, Violation},
    rng::Rng,
    story::Story,
    world::{Setup, World},
};

/// How a run is to be made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) mutant: Option<Mutant>,
    /// Instead of the seed's own.
    pub(crate) schedule: Option<Vec<Fault>>,
    /// Record what happens, for people.
    pub(crate) telling: bool,
}

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) violation: Option<Violation>,
    pub(crate) coverage: Coverage,
    pub(crate) acknowledged: u64,
    pub(crate) at_thaw: u64,
    pub(crate) at_thaw_latest: u64,
    pub(crate) generations: u64,
    pub(crate) polls: u64,
    pub(crate) story: Option<Story>,
    pub(crate) members: usize,
    pub(crate) summary: String,
}

pub(crate) fn setup(seed: u64) -> Setup {
    let mut rng = Rng::new(seed, 5);
    let members = 3 + rng.index(3);
    let (ttl, loop_wait, retry) = rng.pick(&[(5, 1, 2), (10, 2, 3), (20, 5, 7), (30, 10, 10), (30, 10, 10)]);
    let mut raw = Map::new();
    let mut set = |name: &str, value: Value| raw.insert(name.to_owned(), value);
    set("ttl", json!(ttl));
    set("loop_wait", json!(loop_wait));
    set("retry_timeout", json!(retry));
    set(
        "maximum_lag_on_failover",
        json!(rng.pick(&[1_048_576, 100_000, 10_000_000])),
    );
    if rng.chance(20) {
        set("primary_start_timeout", json!(rng.pick(&[0, 5, 30])));
    }
    if rng.chance(20) {
        set("check_timeline", json!(true));
    }
    set("failsafe_mode", json!(rng.chance(70)));
    match rng.range(0, 5) {
        0 => set("synchronous_mode", json!(true)),
        1 => set("synchronous_mode", json!("quorum")),
        2 if rng.chance(50) => {
            set("synchronous_mode", json!(true));
            set("synchronous_mode_strict", json!(true))
        }
        2 => {
            set("synchronous_mode", json!("quorum"));
            set("synchronous_mode_strict", json!(true))
        }
        _ => None,
    };
    if rng.chance(30) {
        set("synchronous_node_count", json!(2));
    }
    let use_slots = rng.chance(80);
    if !use_slots {
        set("postgresql", json!({"use_slots": false}));
    }
    let tags = (0..members)
        .map(|index| {
            let mut tags = Map::new();
            if index > 1 && rng.chance(10) {
                tags.insert("nofailover".to_owned(), json!(true));
            }
            // Of an earlier one, so that there is no circle.
            if index > 1 && rng.chance(10) {
                tags.insert(
                    "replicatefrom".to_owned(),
                    json!(format!("n{}", 1 + rng.index(index))),
                );
            }
            if rng.chance(15) {
                tags.insert("failover_priority".to_owned(), json!(rng.range(1, 4)));
            }
            if rng.chance(10) {
                tags.insert("clonefrom".to_owned(), json!(true));
            }
            Tags(tags)
        })
        .collect();
    let low = rng.range(80 * MS, 600 * MS);
    Setup {
        members,
        dynamic: Arc::new(Dynamic::from_map(&raw)),
        tags,
        sessions: 1 + rng.index(2),
        commit_bytes: rng.pick(&[200, 2_000, 20_000, 200_000]),
        commit_every: (low, low * 2),
        use_slots,
        wal_keep: rng.pick(&[500_000, 50_000_000]),
        heal_at: rng.range(180, 400) * SECOND,
        end: 600 * SECOND,
    }
}

pub(crate) fn run(seed: u64, options: &Options) -> Outcome {
    let setup = setup(seed);
    let schedule = options
        .schedule
        .clone()
        .unwrap_or_else(|| faults::schedule(&setup, seed));
    let world = World::new(seed, setup, options.mutant, options.telling);
    world.sim.spawn(world.proc, Store::keep_time(Rc::clone(&world)));
    world.sim.spawn(world.proc, properties::watch(Rc::clone(&world)));
    for node in 0..world.nodes.len() {
        let task = Rc::clone(&world);
        world.sim.spawn(world.proc, async move {
            task.sim.sleep(task.between(0, 3 * SECOND)).await;
            task.starts_again(node);
        });
    }
    faults::play(&world, &schedule);
    let stop = || world.book.violated();
    let settled = world.setup.heal_at + properties::recovery_bound(&world);
    world.sim.run(settled.min(world.setup.end), &stop);
    if !world.book.violated() {
        properties::settled(&world);
    }
    if !world.book.violated() {
        world.sim.run(world.setup.end, &stop);
    }
    if !world.book.violated() {
        properties::at_end(&world);
    }
    finish(&world)
}

fn finish(world: &Rc<World>) -> Outcome {
    let book = &world.book;
    let members = world.nodes.len();
    let violation = book.violation.borrow_mut().take();
    let story = world.story.as_ref().map(Story::take);
    let timing = world.setup.dynamic.timing;
    let outcome = Outcome {
        violation,
        coverage: std::mem::take(&mut *world.coverage.borrow_mut()),
        acknowledged: book.acknowledged.get(),
        at_thaw: book.at_thaw.get(),
        at_thaw_latest: book.at_thaw_latest.get(),
        generations: book.generations.borrow().len() as u64,
        polls: world.sim.polls(),
        story,
        members,
        summary: format!(
            "{members} members, ttl {} s, loop_wait {} s, retry_timeout {} s, maximum_lag_on_failover {}, {} bytes per \
             commit, slots {}, {:?}{}, failsafe {}, tags {}",
            timing.ttl.as_secs(),
            timing.loop_wait.as_secs(),
            timing.retry_timeout.as_secs(),
            world.setup.dynamic.maximum_lag_on_failover,
            world.setup.commit_bytes,
            if world.setup.use_slots { "on" } else { "off" },
            world.setup.dynamic.sync.kind,
            if world.setup.dynamic.sync.strict {
                " strict"
            } else {
                ""
            },
            if world.setup.dynamic.failsafe_mode {
                "on"
            } else {
                "off"
            },
            world
                .setup
                .tags
                .iter()
                .map(|tags| serde_json::to_string(tags).unwrap_or_default())
                .collect::<Vec<_>>()
                .join(" "),
        ),
    };
    // Tasks hold the world and the world holds them.
    world.sim.end();
    for node in &world.nodes {
        let agent = node.agent.borrow_mut().take();
        drop(agent);
    }
    outcome
}
