//! S3: the last acknowledgement of an isolated primary comes at most ttl - margin after its last good renewal was sent,
//! by its own clock, and what init needs to kill.

use std::rc::Rc;

use howdah::ha::lease::margin;

use super::{Property, s2_one_writer::in_thaw};
use crate::{
    exec::{MS, SECOND},
    world::World,
};

/// From the deadline to the death of the last session.
const KILL: u64 = 15 * MS;

pub(super) fn acknowledged(world: &Rc<World>, node: usize) {
    let host = &world.nodes[node];
    let now = world.sim.now();
    let Some((sent, ttl)) = host.renewal.get() else {
        world.violate(Property::SelfFence, || {
            format!(
                "{} acknowledged a commit without ever having had the lock",
                World::member_name(node)
            )
        });
        return;
    };
    let allowed = host.clock.lasts(ttl.saturating_sub(margin(ttl))) + KILL;
    if now <= sent + allowed || in_thaw(world, node).is_some() {
        return;
    }
    world.violate(Property::SelfFence, || {
        format!(
            "{} acknowledged a commit {:.1} s after its last good renewal, with a ttl of {} s",
            World::member_name(node),
            (now - sent) as f64 / SECOND as f64,
            ttl.as_secs()
        )
    });
}
