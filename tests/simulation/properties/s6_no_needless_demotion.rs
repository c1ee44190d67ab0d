//! S6: a primary whose host, postgres and way to the store have been well for longer than a lease is not stopped,
//! unless a person asked for it. And whatever the store answers or does not answer, nothing is stopped for want of it as
//! long as there is time left on the lease.

use std::rc::Rc;

use howdah::ha::{DcsView, Job, Local, View};

use super::Property;
use crate::{
    exec::{Nanos, SECOND},
    world::World,
};

pub(super) fn job_begins(world: &Rc<World>, node: usize, job: &Job, view: &View) {
    let how = match job {
        Job::Demote { mode, .. } => format!("{mode:?}"),
        Job::Restart => "restart".to_owned(),
        _ => return,
    };
    let primary = matches!(&view.local, Local::Running(running) if running.is_primary());
    if !primary || view.shutdown.is_some() || world.requested_lately() || world.paused_lately() {
        return;
    }
    let host = &world.nodes[node];
    let blind = matches!(view.dcs, DcsView::Down { .. });
    if blind && view.valid_hold(host.local(world)).is_some() {
        world.violate(Property::NoNeedlessDemotion, || {
            format!(
                "{} stops its primary ({how}) because the store does not answer, with time left on its lease",
                World::member_name(node)
            )
        });
        return;
    }
    let now = world.sim.now();
    let (_, ttl) = world.ttls();
    let since: Nanos = now.saturating_sub(ttl * 3 / 2 + 5 * SECOND);
    let well = since > 0
        && world.store.well()
        && host.well()
        && host.bad_at.get() <= since
        && world.store.bad_at.get() <= since
        && world.book.primary_since[node].get() <= since
        && world.net.good_since(since, node, world.net.store());
    if well {
        world.violate(Property::NoNeedlessDemotion, || {
            format!(
                "{} stops its primary ({how}) although it, its postgres and its way to the store were well",
                World::member_name(node)
            )
        });
    }
}
