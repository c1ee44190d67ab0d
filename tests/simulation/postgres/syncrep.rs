//! Commits that wait for standbys (PostgreSQL: `syncrep.c`). A new setting reaches each process by itself: the sessions,
//! every walsender, and the checkpointer, which tells all others whether commits wait at all.

use std::rc::Rc;

use howdah::ha::sync::{Method, StandbyNames};

use super::Sender;
use crate::{
    exec::{MS, SECOND, race},
    wal::Pos,
    world::World,
};

/// A process reads a new setting within this time, and the checkpointer when it gets to it.
const READS_WITHIN: u64 = 150 * MS;
const CHECKPOINTER_READS_WITHIN: u64 = SECOND;

/// SIGHUP.
pub(crate) fn reload(world: &Rc<World>, node: usize) {
    let pg = &world.nodes[node].pg;
    let Some(server) = pg.server.get().filter(|_| pg.running()) else {
        return;
    };
    let names = world.nodes[node].sync_file.borrow().clone().unwrap_or_default();
    pg.reloads.set(pg.reloads.get() + 1);
    let reload = pg.reloads.get();
    pg.checkpointer_busy.set(true);
    let serials: Vec<u64> = pg.senders.borrow().iter().map(|sender| sender.serial).collect();
    for serial in serials {
        let (world, names) = (Rc::clone(world), names.clone());
        world.sim.clone().spawn(server, async move {
            world.sim.sleep(world.between(0, READS_WITHIN)).await;
            let pg = &world.nodes[node].pg;
            if pg.reloads.get() != reload {
                return;
            }
            for sender in pg
                .senders
                .borrow_mut()
                .iter_mut()
                .filter(|sender| sender.serial == serial)
            {
                sender.names = names.clone();
            }
        });
    }
    {
        let (world, names) = (Rc::clone(world), names.clone());
        world.sim.clone().spawn(server, async move {
            world.sim.sleep(world.between(0, READS_WITHIN)).await;
            if world.nodes[node].pg.reloads.get() == reload {
                *world.nodes[node].pg.sync_in_force.borrow_mut() = names;
            }
        });
    }
    let world = Rc::clone(world);
    world.sim.clone().spawn(server, async move {
        world.sim.sleep(world.between(0, CHECKPOINTER_READS_WITHIN)).await;
        let pg = &world.nodes[node].pg;
        if pg.reloads.get() == reload {
            pg.sync_defined.set(!names.is_none());
            pg.checkpointer_busy.set(false);
            pg.confirmed.ring(&world.sim);
        }
    });
}

/// At the start of a server every process reads the file.
pub(super) fn begin(world: &World, node: usize) {
    let pg = &world.nodes[node].pg;
    let names = world.nodes[node].sync_file.borrow().clone().unwrap_or_default();
    pg.sync_defined.set(!names.is_none());
    pg.sync_released.set(0);
    pg.checkpointer_busy.set(false);
    pg.reloads.set(pg.reloads.get() + 1);
    *pg.sync_in_force.borrow_mut() = names;
}

/// A walsender has read a reply: it releases what the setting it knows allows (`SyncRepReleaseWaiters`).
pub(super) fn release(world: &World, node: usize, serial: u64) {
    let pg = &world.nodes[node].pg;
    let senders = pg.senders.borrow();
    let Some(names) = senders
        .iter()
        .find(|sender| sender.serial == serial)
        .map(|s| &s.names)
    else {
        return;
    };
    let me = senders.iter().find(|sender| sender.serial == serial);
    if !me.is_some_and(|me| names.names.contains(&world.nodes[me.node].name)) {
        return;
    }
    if let Some(lsn) = synced(world, &senders, names) {
        pg.sync_released.set(pg.sync_released.get().max(lsn));
    }
}

/// How far the standbys that count have confirmed.
fn synced(world: &World, senders: &[Sender], names: &StandbyNames) -> Option<u64> {
    if names.count == 0 {
        return None;
    }
    let now = world.sim.now();
    let there = |sender: &&Sender| sender.flushed > 0 && sender.until > now;
    let mut confirmed: Vec<u64> = match names.method {
        Method::First => {
            // In the order of the setting.
            let of = |name: &howdah::model::MemberName| {
                senders
                    .iter()
                    .filter(there)
                    .filter(|sender| world.nodes[sender.node].name == *name)
                    .map(|sender| sender.flushed)
                    .max()
            };
            names.names.iter().filter_map(of).take(names.count).collect()
        }
        Method::Any => senders
            .iter()
            .filter(there)
            .filter(|sender| names.names.contains(&world.nodes[sender.node].name))
            .map(|sender| sender.flushed)
            .collect(),
    };
    if confirmed.len() < names.count {
        return None;
    }
    confirmed.sort_unstable_by(|a, b| b.cmp(a));
    match names.method {
        Method::First => confirmed.last().copied(),
        Method::Any => confirmed.get(names.count - 1).copied(),
    }
}

/// Waits as `synchronous_commit=on` does; true: a standby has confirmed it.
pub(super) async fn wait(world: &Rc<World>, node: usize, pos: Pos) -> bool {
    let pg = &world.nodes[node].pg;
    loop {
        let mut seen = pg.confirmed.count();
        if pg.sync_released.get() >= pos.lsn {
            return true;
        }
        if !pg.sync_defined.get() {
            return false;
        }
        pg.confirmed.rung(&world.sim, &mut seen).await;
    }
}

/// A record that waits for nobody but the disk; `None`: no primary, or no answer.
pub(crate) async fn write_record(world: &Rc<World>, node: usize, bytes: u64) -> Option<Pos> {
    let host = &world.nodes[node];
    let pg = &host.pg;
    while pg.hung.get() || world.sim_frozen(pg.server.get()) {
        race(world.sim.sleep(100 * MS), pg.state.next(&world.sim)).await;
    }
    if !pg.running() || !pg.primary.get() || host.disk_full.get() {
        return None;
    }
    let serial = pg.serial.get();
    let pos = {
        let mut data = pg.data.borrow_mut();
        let data = data.as_mut()?;
        data.written += bytes;
        data.end()
    };
    host.disk(world).await;
    if pg.serial.get() != serial || !pg.running() {
        return None;
    }
    {
        let mut data = pg.data.borrow_mut();
        let data = data.as_mut()?;
        data.flushed = data.flushed.max(pos.lsn);
    }
    pg.written.ring(&world.sim);
    Some(pos)
}
