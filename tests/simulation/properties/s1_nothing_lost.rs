//! S1: nothing that a commit acknowledged after a synchronous standby had confirmed it is missing, neither where another
//! member is promoted nor in the end. A failover that a person forces upon a member is that person's will, and so is one
//! after the synchronous mode was turned off: S4 says what may be lost then.

use std::rc::Rc;

use super::Property;
use crate::{wal::Pos, world::World};

fn check(world: &Rc<World>, node: usize, end: Pos) {
    let forced = world.failover_lately() || world.asynchronous();
    for generation in world.book.generations.borrow_mut().iter_mut() {
        let lsn = generation.last_sync.unwrap_or(generation.last);
        let last = Pos {
            branch: generation.branch,
            lsn,
        };
        if world.wal.borrow().contains(end, last) {
            continue;
        }
        if forced {
            (generation.last_sync, generation.overruled) = (None, true);
        }
        if generation.last_sync.is_none() {
            continue;
        }
        world.violate(Property::NothingLost, || {
            format!(
                "{} acknowledged a commit at {lsn} that a synchronous standby had confirmed, and the primary {} does not \
                 have it",
                World::member_name(generation.node),
                World::member_name(node)
            )
        });
    }
}

pub(super) fn new_generation(world: &Rc<World>, node: usize, from: Pos) {
    // A promotion that was frozen ends in the moment of the thaw, before init kills it. S2 sees to it that it
    // acknowledges nothing.
    let holds = world.store.cluster().is_leader(&world.nodes[node].name);
    if !holds && super::s2_one_writer::in_thaw(world, node).is_some() {
        return;
    }
    check(world, node, from);
}

pub(super) fn at_end(world: &Rc<World>) {
    let primary = |node: &crate::world::Node| node.pg.running() && node.pg.primary.get();
    let Some(primary) = world.nodes.iter().position(primary) else {
        return;
    };
    if let Some(end) = world.nodes[primary].pg.position() {
        check(world, primary, end);
    }
}
