//! L1: once everything is healed, writes work again within two leases and a minute and a half (in the strict modes that may
//! take a new copy of a standby, after a minute without WAL), and all members stream in the end, without a hand laid on anything. Two cases need a person by contract:
//!
//! - a wiped store, and only members that have followed nobody since they were started, or that know that others were
//!   promised to have more. None of them knows that its data is all the cluster's, and somebody has to say so;
//! - the only member that may lead with the cluster's newest timeline, or with so much of it that the others lag too far behind, was
//!   removed by a person for good.

use std::rc::Rc;

use super::Property;
use crate::{exec::SECOND, world::World};

/// After the healing, writes work again within this.
pub(crate) fn bound(world: &World) -> u64 {
    let (_, ttl) = world.ttls();
    2 * ttl + 90 * SECOND
}

fn needs_a_person(world: &World) -> bool {
    let cluster = world.store.cluster();
    let strange = |node: &crate::world::Node| {
        let replica = node
            .pg
            .data
            .borrow()
            .as_ref()
            .is_none_or(|data| data.standby_signal);
        let followed = node.agent.borrow().as_ref().is_some_and(|agent| agent.followed());
        let bound = node
            .agent
            .borrow()
            .as_ref()
            .is_some_and(|agent| agent.bound_to_others());
        let older = node
            .pg
            .data
            .borrow()
            .as_ref()
            .is_none_or(|data| data_timeline(world, data) < remembered(world));
        node.absent.get() || (replica && !followed) || bound || older
    };
    let unled = cluster.leader.is_none();
    let wiped = unled && cluster.initialize.is_none() && world.nodes.iter().all(strange);
    let removed = |node: &crate::world::Node| {
        let lag = world.setup.dynamic.maximum_lag_on_failover;
        let newest = |data: &crate::postgres::Data| {
            data_timeline(world, data) >= cluster.timeline().0
                && data.written + lag >= cluster.status.optime.0
        };
        let excluded = node.tags.nofailover();
        node.absent.get() || excluded || !node.pg.data.borrow().as_ref().is_some_and(newest)
    };
    let anybody_removed = world.nodes.iter().any(|node| node.absent.get());
    wiped || (unled && anybody_removed && world.nodes.iter().all(removed))
}

fn data_timeline(world: &World, data: &crate::postgres::Data) -> u32 {
    world.wal.borrow().timeline(data.branch)
}

/// The newest timeline that the store was ever told of.
fn remembered(world: &World) -> u32 {
    world.store.told()
}

pub(super) fn settled(world: &Rc<World>) {
    if needs_a_person(world) {
        return;
    }
    let now = world.sim.now();
    if world.book.last_ack_at.get() + 10 * SECOND < now {
        world.violate(Property::Recovery, || {
            format!(
                "nobody acknowledges commits {} s after everything was healed ({})",
                (now - world.setup.heal_at) / SECOND,
                report(world)
            )
        });
    }
}

pub(super) fn at_end(world: &Rc<World>) {
    if needs_a_person(world) {
        return;
    }
    let Some(leader) = world
        .store
        .cluster()
        .leader
        .as_ref()
        .and_then(|leader| world.index_of(&leader.name))
    else {
        world.violate(Property::Recovery, || {
            format!("nobody leads at the end ({})", report(world))
        });
        return;
    };
    let primary = &world.nodes[leader].pg;
    let Some(end) = primary.position() else {
        world.violate(Property::Recovery, || {
            format!(
                "{} leads at the end without data ({})",
                World::member_name(leader),
                report(world)
            )
        });
        return;
    };
    for (index, node) in world.nodes.iter().enumerate() {
        if node.absent.get() {
            continue;
        }
        let well = if index == leader {
            primary.running() && primary.primary.get()
        } else {
            let own = node.pg.position();
            let fits = own.is_some_and(|own| world.wal.borrow().contains(end, own));
            node.pg.running() && !node.pg.primary.get() && node.pg.streaming.get() && fits
        };
        if !well {
            world.violate(Property::Recovery, || {
                format!(
                    "{} does not take part {} s after everything was healed ({})",
                    World::member_name(index),
                    (world.sim.now() - world.setup.heal_at) / SECOND,
                    report(world)
                )
            });
        }
    }
}

fn report(world: &World) -> String {
    let line = |(index, node): (usize, &crate::world::Node)| {
        let pg = &node.pg;
        format!(
            "{}: {} {:?}{}{}",
            World::member_name(index),
            if node.up.get() { "up" } else { "down" },
            pg.phase.get(),
            if pg.primary.get() { " primary" } else { "" },
            if pg.streaming.get() { " streaming" } else { "" },
        )
    };
    let members: Vec<String> = world.nodes.iter().enumerate().map(line).collect();
    let leader = world
        .store
        .cluster()
        .leader
        .as_ref()
        .map(|leader| leader.name.0.clone());
    format!(
        "lock: {}; {}",
        leader.as_deref().unwrap_or("free"),
        members.join("; ")
    )
}
