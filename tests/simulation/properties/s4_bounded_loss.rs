//! S4: an automatic failover in asynchronous mode loses at most `maximum_lag_on_failover` and what was written since
//! the leader last published its position.

use std::rc::Rc;

use super::Property;
use crate::{
    exec::SECOND,
    wal::{BranchId, Pos},
    world::World,
};

pub(super) fn new_generation(world: &Rc<World>, node: usize, branch: BranchId, from: Pos) {
    let generations = world.book.generations.borrow();
    let Some(before) = generations.last().copied().filter(|last| last.branch != branch) else {
        return;
    };
    // Somebody named a member, or the record the bound is measured by is gone.
    let wiped = world
        .store
        .wiped_at
        .get()
        .is_some_and(|at| world.sim.now() < at + 300 * SECOND);
    // Nobody keeps count of what was acknowledged in maintenance mode.
    let paused = world.book.paused_at.get() > 0;
    if world.requested_lately() || wiped || paused || !world.asynchronous() {
        return;
    }
    let wal = world.wal.borrow();
    let last = Pos {
        branch: before.branch,
        lsn: before.last,
    };
    let kept = wal.common(from, last).map_or(0, |pos| pos.lsn);
    let lost = before.last.saturating_sub(kept);
    let published = world.store.cluster().status.optime.0;
    let unpublished = before.last.saturating_sub(published);
    let allowed = world.setup.dynamic.maximum_lag_on_failover + unpublished;
    if lost > allowed {
        drop(wal);
        world.violate(Property::BoundedLoss, || {
            format!(
                "{} was promoted without {lost} acknowledged bytes of {}; maximum_lag_on_failover and {unpublished} \
                 unpublished bytes allow {allowed}",
                World::member_name(node),
                World::member_name(before.node)
            )
        });
    }
}
