//! S1: nothing that a commit acknowledged after a synchronous standby had confirmed it is missing in the end.

use std::rc::Rc;

use super::Property;
use crate::{wal::Pos, world::World};

pub(super) fn at_end(world: &Rc<World>) {
    let Some(primary) = world.nodes.iter().position(|node| node.pg.running() && node.pg.primary.get()) else {
        return;
    };
    let Some(end) = world.nodes[primary].pg.position() else { return };
    for generation in world.book.generations.borrow().iter() {
        let Some(lsn) = generation.last_sync else { continue };
        let last = Pos {
            branch: generation.branch,
            lsn,
        };
        if !world.wal.borrow().contains(end, last) {
            world.violate(Property::NothingLost, || {
                format!(
                    "{} acknowledged a commit at {lsn} in a synchronous mode, and the primary {} does not have it",
                    World::member_name(generation.node),
                    World::member_name(primary)
                )
            });
        }
    }
}
