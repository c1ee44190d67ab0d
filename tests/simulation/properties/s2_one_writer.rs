//! S2: no acknowledgement of a generation (system, timeline, node) after the first one of a later generation. And the
//! lock is given away only by a postgres that cannot write any more.
//!
//! A host that was frozen as a whole goes on in the middle of whatever it did; a session may answer before init has
//! killed it. That instant is counted apart: nothing on the host itself can exclude it.

use std::rc::Rc;

use howdah::model::DbState;

use super::{Acknowledged, Property};
use crate::{exec::MS, wal::Pos, world::World};

/// How long the instant of a thaw lasts.
pub(super) const THAW: u64 = 50 * MS;

pub(super) fn in_thaw(world: &World, node: usize) -> Option<u64> {
    let since = world.sim.now() - world.nodes[node].thawed_at.get()?;
    (since <= THAW).then_some(since)
}

/// False: it does not count.
pub(super) fn acknowledged(world: &Rc<World>, node: usize, pos: Pos) -> bool {
    let generations = world.book.generations.borrow();
    let known = generations
        .iter()
        .position(|generation| generation.branch == pos.branch);
    let overtaken = known.is_some_and(|at| at + 1 < generations.len());
    let born_late = known.is_none()
        && generations
            .last()
            .is_some_and(|last| last.branch > pos.branch && last.branch != pos.branch);
    if !overtaken && !born_late {
        return true;
    }
    let Some(newest) = generations.last().copied() else {
        return true;
    };
    let thawed = in_thaw(world, node).filter(|_| !world.store.cluster().is_leader(&world.nodes[node].name));
    if let Some(at) =
        known.filter(|at| thawed.is_none() && all_gone_unheard_of(world, &generations[at + 1..]))
    {
        drop(generations);
        // A new term of it, in which it must not be overtaken either.
        {
            let mut generations = world.book.generations.borrow_mut();
            let resumed = generations.remove(at);
            generations.push(resumed);
        }
        super::s1_nothing_lost::new_generation(world, node, pos);
        return true;
    }
    if let Some(since) = in_thaw(world, node) {
        let book = &world.book;
        book.at_thaw.set(book.at_thaw.get() + 1);
        book.at_thaw_latest.set(book.at_thaw_latest.get().max(since));
        return false;
    }
    world.violate(Property::OneWriter, || {
        let wal = world.wal.borrow();
        format!(
            "{} acknowledged a commit on timeline {} after {} had acknowledged one as a later primary (timeline {})",
            World::member_name(node),
            wal.timeline(pos.branch),
            World::member_name(newest.node),
            wal.timeline(newest.branch)
        )
    });
    true
}

/// Primaries that were gone again before `/history` was told of their timelines: nobody else can know that there was
/// one, and who was the last primary by all that is known goes on in its place. What they had acknowledged is lost, which
/// the properties about losses judge; at no time did two write.
fn all_gone_unheard_of(world: &Rc<World>, later: &[Acknowledged]) -> bool {
    let wal = world.wal.borrow();
    // Nor can anybody where the store was wiped and no agent is left that had seen it before.
    let forgotten = world.store.wiped_at.get().is_some_and(|wiped| {
        let mut agents = world.nodes.iter().filter_map(|node| node.agent.borrow().clone());
        agents.all(|agent| agent.started_at > wiped)
    });
    later.iter().all(|generation| {
        let pg = &world.nodes[generation.node].pg;
        let untold = wal.timeline(generation.branch) > world.store.told();
        (untold || forgotten) && !(pg.live() && pg.primary.get())
    })
}

pub(super) fn released(world: &Rc<World>, node: usize) {
    let pg = &world.nodes[node].pg;
    // Shut down, and only serving receivers.
    let ended = pg
        .data
        .borrow()
        .as_ref()
        .is_some_and(|data| data.state == DbState::ShutDown);
    if pg.live() && !ended && (pg.primary.get() || pg.promotion.get().is_some()) {
        world.violate(Property::OneWriter, || {
            format!(
                "{} gave the lock away while its postgres could still write",
                World::member_name(node)
            )
        });
    }
}
