//! S6: a primary whose host, postgres and way to the store have been well for longer than a lease is not stopped,
//! unless a person asked for it.

use std::rc::Rc;

use howdah::ha::{Job, Local, View};

use super::Property;
use crate::{
    exec::{Nanos, SECOND},
    world::World,
};

pub(super) fn job_begins(world: &Rc<World>, node: usize, job: &Job, view: &View) {
    let Job::Demote { mode, .. } = job else { return };
    let primary = matches!(&view.local, Local::Running(running) if running.is_primary());
    if !primary || view.shutdown.is_some() || world.requested_lately() {
        return;
    }
    let now = world.sim.now();
    let ttl = u64::try_from(world.setup.dynamic.timing.ttl.as_nanos()).unwrap_or(0);
    let since: Nanos = now.saturating_sub(ttl * 3 / 2 + 5 * SECOND);
    let host = &world.nodes[node];
    let well = since > 0
        && host.bad_at.get() <= since
        && world.store.bad_at.get() <= since
        && world.book.settings_changed_at.get() <= since
        && world.book.primary_since[node].get() <= since
        && world.net.good_since(since, node, world.net.store());
    if well {
        world.violate(Property::NoNeedlessDemotion, || {
            format!(
                "{} stops its primary ({mode:?}) although it, its postgres and its way to the store were well",
                World::member_name(node)
            )
        });
    }
}
