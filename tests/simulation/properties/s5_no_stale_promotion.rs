//! S5: who is promoted has everything that members had who could be asked and could have led themselves; it never
//! leads with half-copied data; and only a primary tells a store that knows no cluster whose data this is.

use std::rc::Rc;

use howdah::clock::Boottime;

use super::Property;
use crate::{
    exec::{Nanos, SECOND},
    world::World,
};

/// A running replica with an agent that answers, reachable for everybody since then.
pub(super) fn electable(world: &World, node: usize, since: Nanos) -> bool {
    let host = &world.nodes[node];
    let agent_up = host.agent.borrow().as_ref().is_some_and(|agent| {
        agent.started_at <= since && !matches!(agent.present(), Some(job) if job.since > Boottime(0))
    });
    agent_up
        && host.bad_at.get() <= since
        && host.well()
        && world.store.well()
        && world.store.bad_at.get() <= since
        && host.pg.running()
        && !host.pg.primary.get()
        && !host.tags.nofailover()
        && !host.stopping.get()
        && world.net.good_since(since, node, world.net.store())
}

pub(super) fn promotion_asked(world: &Rc<World>, node: usize) {
    // In the synchronous modes others count only by what they were waited for: see S1.
    if world.requested_lately() || !world.asynchronous() {
        return;
    }
    let now = world.sim.now();
    let Some(taken) = world.book.acquired[node].get() else {
        return;
    };
    // Whoever had a reason against it had the time to lead itself.
    let (ttl, _) = world.ttls();
    let long_free = world
        .book
        .unlocked_since
        .get()
        .is_some_and(|since| now >= since + ttl);
    if long_free || taken + 2 * SECOND < now {
        return;
    }
    let Some(mine) = world.nodes[node].pg.position() else {
        return;
    };
    let samples = world.book.samples.borrow();
    let Some(then) = samples
        .iter()
        .rev()
        .find(|sample| sample.at + 3 * SECOND <= taken)
    else {
        return;
    };
    let Some(lately) = samples.iter().rev().find(|sample| sample.at <= taken) else {
        return;
    };
    for other in 0..world.nodes.len() {
        let able = then.electable[other] && lately.electable[other] && electable(world, other, then.at);
        if other == node || !able || !world.net.good_since(then.at, node, other) {
            continue;
        }
        let Some(theirs) = then.positions[other] else {
            continue;
        };
        let wal = world.wal.borrow();
        let ahead = wal.contains(theirs, mine) && theirs != mine && theirs.lsn > mine.lsn;
        drop(wal);
        if ahead {
            world.violate(Property::NoStalePromotion, || {
                format!(
                    "{} is promoted at {} although {}, which could be asked and could lead, had reached {}",
                    World::member_name(node),
                    mine.lsn,
                    World::member_name(other),
                    theirs.lsn
                )
            });
        }
    }
}

pub(super) fn start(world: &Rc<World>, node: usize) {
    let half = world.nodes[node]
        .pg
        .data
        .borrow()
        .as_ref()
        .is_some_and(|data| data.half);
    if half {
        half_copied(world, node);
    }
}

pub(super) fn new_generation(world: &Rc<World>, node: usize, half: bool) {
    if half {
        half_copied(world, node);
    }
}

pub(super) fn registers(world: &Rc<World>, node: usize) {
    if !world.nodes[node].pg.primary.get() {
        world.violate(Property::NoStalePromotion, || {
            format!(
                "{} is no primary and restores the key /initialize",
                World::member_name(node)
            )
        });
    }
}

fn half_copied(world: &Rc<World>, node: usize) {
    world.violate(Property::NoStalePromotion, || {
        format!(
            "{} starts postgres on a data directory that was only half copied",
            World::member_name(node)
        )
    });
}
