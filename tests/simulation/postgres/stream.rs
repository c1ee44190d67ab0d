//! Streaming replication: the walreceiver of a replica, and its entry among the walsenders of its server.

use std::rc::Rc;

use super::{Sender, syncrep};
use crate::{
    exec::{First, MS, SECOND, race},
    wal::Pos,
    world::World,
};

/// `wal_retrieve_retry_interval`, as this project sets it.
const RETRY: u64 = 500 * MS;
/// `wal_receiver_timeout` and `wal_sender_timeout`.
const SILENCE: u64 = 60 * SECOND;

/// The walreceiver for as long as the server runs.
pub(super) async fn receive(world: Rc<World>, node: usize) {
    let pg = &world.nodes[node].pg;
    loop {
        let mut seen = pg.asked.count();
        if pg.promotion.get().is_some() {
            return;
        }
        let Some(from) = pg.upstream.get().filter(|from| *from != node) else {
            pg.asked.rung(&world.sim, &mut seen).await;
            continue;
        };
        let work = race(session(&world, node, from), pg.asked.rung(&world.sim, &mut seen)).await;
        pg.streaming.set(false);
        if matches!(work, First::One(())) {
            race(world.sim.sleep(RETRY), pg.asked.rung(&world.sim, &mut seen)).await;
        }
    }
}

/// Takes the entry among the walsenders away with the connection.
struct Entry {
    world: Rc<World>,
    node: usize,
    at: usize,
    serial: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let world = Rc::clone(&self.world);
        let (node, at, serial) = (self.node, self.at, self.serial);
        world.sim.clone().spawn(world.proc, async move {
            // A connection that ends is noticed at the other end if the network is there, else after long silence.
            race(world.net.transit(&world.sim, node, at), world.sim.sleep(SILENCE)).await;
            let pg = &world.nodes[at].pg;
            pg.senders.borrow_mut().retain(|sender| sender.serial != serial);
            pg.confirmed.ring(&world.sim);
        });
    }
}

/// One connection, from its begin to its end.
async fn session(world: &Rc<World>, node: usize, from: usize) {
    let connected = race(connect(world, node, from), world.sim.sleep(10 * SECOND)).await;
    let First::One(Some(entry)) = connected else {
        return;
    };
    let pg = &world.nodes[node].pg;
    pg.streaming.set(true);
    world.note_stream(node, from);
    let serial = world.nodes[from].pg.serial.get();
    loop {
        let server = &world.nodes[from].pg;
        let mut seen = server.written.count();
        let alive = server.serial.get() == serial && server.server.get().is_some();
        if !alive {
            // The end is told if the network is there; a host that is gone tells nobody.
            let told = world.nodes[from].up.get() || world.nodes[from].ended_politely.get();
            let news = async {
                if !told {
                    std::future::pending::<()>().await;
                }
                world.net.transit(&world.sim, from, node).await;
            };
            race(news, world.sim.sleep(SILENCE)).await;
            return;
        }
        let (Some(theirs), Some(ours)) = (server.flushed(), pg.position()) else {
            return;
        };
        if !world.wal.borrow().contains(theirs, ours) {
            return;
        }
        let usable = !server.hung.get() || theirs == ours;
        if theirs == ours || !usable {
            confirm(world, node, from, entry.serial);
            race(
                server.written.rung(&world.sim, &mut seen),
                world.sim.sleep(10 * SECOND),
            )
            .await;
            if !world.net.up(from, node) {
                // Nothing arrives; after a minute without a word the connection is given up.
                let healed = world.net.transit(&world.sim, from, node);
                if let First::Two(()) = race(healed, world.sim.sleep(SILENCE)).await {
                    return;
                }
            }
            continue;
        }
        while world.sim_frozen(server.server.get()) {
            if let First::Two(()) = race(server.written.next(&world.sim), world.sim.sleep(SILENCE)).await {
                return;
            }
        }
        let arrived = world.net.transit(&world.sim, from, node);
        if let First::Two(()) = race(arrived, world.sim.sleep(SILENCE)).await {
            return;
        }
        world.sim.sleep(world.nodes[node].receive_lag).await;
        if pg.promotion.get().is_some() {
            return;
        }
        if !store(world, node, theirs).await {
            return;
        }
        confirm(world, node, from, entry.serial);
    }
}

/// Writes, flushes and replays what has arrived.
async fn store(world: &Rc<World>, node: usize, theirs: Pos) -> bool {
    let host = &world.nodes[node];
    let pg = &host.pg;
    if host.disk_full.get() {
        return false;
    }
    {
        let mut data = pg.data.borrow_mut();
        let Some(data) = data.as_mut() else { return false };
        if !world.wal.borrow().contains(theirs, data.end()) {
            return false;
        }
        data.branch = theirs.branch;
        data.written = theirs.lsn;
    }
    host.disk(world).await;
    if pg.promotion.get().is_some() {
        return false;
    }
    {
        let mut data = pg.data.borrow_mut();
        let Some(data) = data.as_mut() else { return false };
        data.flushed = data.flushed.max(theirs.lsn.min(data.written));
        if world.chance(30) {
            data.min_recovery = Some(theirs);
        }
    }
    pg.written.ring(&world.sim);
    replay(world, node, theirs.lsn);
    true
}

/// Replay goes its own pace; what has arrived is confirmed before that.
fn replay(world: &Rc<World>, node: usize, to: u64) {
    let host = &world.nodes[node];
    let serial = host.pg.serial.get();
    let replayed = move |world: &World| {
        let pg = &world.nodes[node].pg;
        if pg.serial.get() == serial && !pg.primary.get() {
            pg.replayed.set(pg.replayed.get().max(to));
            pg.written.ring(&world.sim);
        }
    };
    match (host.replay_lag.get(), host.pg.server.get()) {
        (0, _) | (_, None) => replayed(world),
        (lag, Some(server)) => {
            let world = Rc::clone(world);
            world.sim.clone().spawn(server, async move {
                world.sim.sleep(lag).await;
                replayed(&world);
            });
        }
    }
}

/// The reply of a standby, on its way back.
fn confirm(world: &Rc<World>, node: usize, from: usize, serial: u64) {
    let Some(flushed) = world.nodes[node].pg.flushed() else {
        return;
    };
    let world = Rc::clone(world);
    world.sim.clone().spawn(world.proc, async move {
        world.net.transit(&world.sim, node, from).await;
        let pg = &world.nodes[from].pg;
        for sender in pg.senders.borrow_mut().iter_mut() {
            if sender.serial == serial {
                sender.flushed = sender.flushed.max(flushed.lsn);
                sender.until = world.sim.now() + SILENCE;
            }
        }
        if let Some(data) = pg.data.borrow_mut().as_mut()
            && let Some(slot) = data.slots.get_mut(&node)
        {
            *slot = (*slot).max(flushed.lsn);
        }
        syncrep::release(&world, from, serial);
        pg.confirmed.ring(&world.sim);
    });
}

/// Connects and agrees on where to begin.
async fn connect(world: &Rc<World>, node: usize, from: usize) -> Option<Entry> {
    world.net.transit(&world.sim, node, from).await;
    let server = &world.nodes[from].pg;
    while world.sim_frozen(server.server.get()) || (server.hung.get() && server.running()) {
        world.sim.sleep(SECOND).await;
    }
    if !server.running() {
        return None;
    }
    let (theirs, ours) = (server.flushed()?, world.nodes[node].pg.position()?);
    let wal = world.wal.borrow().handshake(ours, theirs);
    if let Err(refused) = wal {
        world.note_refused(node, from, refused);
        return None;
    }
    {
        let data = server.data.borrow();
        let data = data.as_ref()?;
        if world.setup.use_slots && !data.slots.contains_key(&node) {
            world.say(node, || format!("cannot stream from n{}: no slot", from + 1));
            return None;
        }
        if ours.lsn < data.wal_from {
            world.say(node, || {
                format!("cannot stream from n{}: the WAL is gone", from + 1)
            });
            return None;
        }
    }
    let serial = server.next_sender.get() + 1;
    server.next_sender.set(serial);
    let serial = serial * 16 + from as u64;
    server.senders.borrow_mut().push(Sender {
        node,
        serial,
        flushed: 0,
        until: world.sim.now() + SILENCE,
        names: world.nodes[from].sync_file.borrow().clone().unwrap_or_default(),
    });
    let entry = Entry {
        world: Rc::clone(world),
        node,
        at: from,
        serial,
    };
    world.net.transit(&world.sim, from, node).await;
    Some(entry)
}
