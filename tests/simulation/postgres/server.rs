//! The server: start and recovery, client sessions, checkpoints, promotion, and its ends.

use std::rc::Rc;

use howdah::model::DbState;

use super::{Data, Phase, Stop, stream, syncrep};
use crate::{
    exec::{MS, Nanos, SECOND, race},
    wal::{Branch, Pos},
    world::World,
};

/// Starts a postmaster. The caller has looked that none runs.
pub(crate) fn launch(world: &Rc<World>, node: usize, primary: bool, upstream: Option<usize>) {
    let host = &world.nodes[node];
    let pg = &host.pg;
    let (server, backends) = (world.sim.process(), world.sim.process());
    pg.server.set(Some(server));
    pg.backends.set(Some(backends));
    pg.serial.set(pg.serial.get() + 1);
    pg.primary.set(false);
    pg.streaming.set(false);
    pg.hung.set(false);
    pg.promotion.set(None);
    pg.stopping.set(None);
    pg.upstream.set(upstream);
    syncrep::begin(world, node);
    if let Some(data) = pg.data.borrow_mut().as_mut() {
        data.standby_signal = !primary;
    }
    pg.set_phase(
        &world.sim,
        Phase::Starting {
            since: host.local(world),
        },
    );
    world.sim.spawn(server, run(Rc::clone(world), node, primary));
    if host.frozen.get() || host.pg_frozen.get() {
        world.sim.freeze(server);
        world.sim.freeze(backends);
    }
}

async fn run(world: Rc<World>, node: usize, primary: bool) {
    let host = &world.nodes[node];
    let pg = &host.pg;
    world
        .sim
        .sleep(world.between(40 * MS, 300 * MS) + host.slow_start.get())
        .await;
    host.disk(&world).await;
    if host.disk_full.get() || host.start_fails.get() {
        pg.gone(&world.sim, false);
        return;
    }
    let up = if primary {
        recover(&world, node).await
    } else {
        replay(&world, node).await
    };
    if !up {
        pg.gone(&world.sim, false);
        return;
    }
    pg.set_phase(&world.sim, Phase::Running);
    if let Some(backends) = pg.backends.get() {
        for session in 0..world.setup.sessions {
            world.sim.spawn(
                backends,
                crate::clients::session(Rc::clone(&world), node, session),
            );
        }
    }
    let server = pg.server.get();
    if let Some(server) = server {
        world.sim.spawn(server, checkpoints(Rc::clone(&world), node));
    }
    if primary {
        return;
    }
    loop {
        let mut seen = pg.asked.count();
        if pg.promotion.get().is_some() {
            break;
        }
        pg.asked.rung(&world.sim, &mut seen).await;
    }
    finish_recovery(&world, node).await;
}

/// Crash recovery of a primary, and writing from there on.
async fn recover(world: &Rc<World>, node: usize) -> bool {
    let host = &world.nodes[node];
    let pg = &host.pg;
    let crashed = pg
        .data
        .borrow()
        .as_ref()
        .is_some_and(|data| data.state != DbState::ShutDown);
    if crashed {
        if let Some(data) = pg.data.borrow_mut().as_mut() {
            data.state = DbState::InCrashRecovery;
        }
        world.sim.sleep(world.between(50 * MS, 800 * MS)).await;
        host.disk(world).await;
    }
    let mut data = pg.data.borrow_mut();
    let Some(data) = data.as_mut() else { return false };
    data.flushed = data.written;
    let mut wal = world.wal.borrow_mut();
    if wal.branches[data.branch].owner != node {
        // A copy that writes where another wrote: the same timeline, another history.
        let branch = Branch {
            parent: Some(data.end()),
            timeline: wal.timeline(data.branch),
            owner: node,
            system: wal.branches[data.branch].system,
        };
        let from = data.end();
        data.branch = wal.branch(branch);
        drop(wal);
        world.note_new_generation(node, data, Some(from));
    }
    data.state = DbState::InProduction;
    data.written += 1;
    data.flushed = data.written;
    data.checkpoint = data.end();
    data.min_recovery = None;
    data.shutdown_end = None;
    data.consistent_at = None;
    pg.replayed.set(data.written);
    pg.primary.set(true);
    world.note_primary(node);
    true
}

/// A replica replays what it has, and streams what it lacks, until it is consistent.
async fn replay(world: &Rc<World>, node: usize) -> bool {
    let host = &world.nodes[node];
    let pg = &host.pg;
    {
        let mut data = pg.data.borrow_mut();
        let Some(data) = data.as_mut() else { return false };
        if matches!(data.state, DbState::ShutDown | DbState::ShutDownInRecovery) {
            data.min_recovery = data.min_recovery.or(Some(data.end()));
        }
        data.state = DbState::InArchiveRecovery;
        data.shutdown_end = None;
        pg.replayed.set(data.checkpoint.lsn.min(data.written));
    }
    if let Some(server) = pg.server.get() {
        world.sim.spawn(server, stream::receive(Rc::clone(world), node));
    }
    world.sim.sleep(world.between(20 * MS, 400 * MS)).await;
    loop {
        let mut seen = pg.written.count();
        {
            let mut data = pg.data.borrow_mut();
            let Some(data) = data.as_mut() else { return false };
            pg.replayed.set(data.written.max(pg.replayed.get()));
            let consistent = data
                .consistent_at
                .is_none_or(|at| world.wal.borrow().contains(data.end(), at));
            if consistent {
                data.consistent_at = None;
                return true;
            }
        }
        pg.written.rung(&world.sim, &mut seen).await;
    }
}

/// Everything received is replayed, then a new timeline begins.
async fn finish_recovery(world: &Rc<World>, node: usize) {
    let host = &world.nodes[node];
    let pg = &host.pg;
    pg.asked.ring(&world.sim);
    world
        .sim
        .sleep(world.between(5 * MS, 150 * MS) + host.replay_lag.get() + host.slow_promotion.get())
        .await;
    host.disk(world).await;
    if host.disk_full.get() {
        pg.gone(&world.sim, false);
        return;
    }
    let reserved = pg.promotion.get().unwrap_or(0);
    {
        let mut data = pg.data.borrow_mut();
        let Some(data) = data.as_mut() else { return };
        data.flushed = data.written;
        let from = data.end();
        let mut wal = world.wal.borrow_mut();
        let branch = Branch {
            parent: Some(from),
            timeline: wal.timeline(data.branch).max(reserved) + 1,
            owner: node,
            system: wal.branches[data.branch].system,
        };
        data.branch = wal.branch(branch);
        data.written += 1;
        data.flushed = data.written;
        drop(wal);
        // The checkpoint still names the old timeline; only this one names the new.
        data.min_recovery = Some(data.end());
        data.state = DbState::InProduction;
        data.standby_signal = false;
        pg.replayed.set(data.written);
        world.note_new_generation(node, data, Some(from));
    }
    pg.primary.set(true);
    pg.streaming.set(false);
    pg.promotion.set(None);
    world.note_primary(node);
    pg.state.ring(&world.sim);
    pg.written.ring(&world.sim);
    if let Some(server) = pg.server.get() {
        let world = Rc::clone(world);
        world.sim.clone().spawn(server, async move {
            world.sim.sleep(world.between(10 * MS, SECOND)).await;
            checkpoint(&world, node).await;
        });
    }
}

/// A checkpoint (restartpoint on a replica): after it older WAL that no slot keeps is gone.
pub(crate) async fn checkpoint(world: &Rc<World>, node: usize) {
    let host = &world.nodes[node];
    let pg = &host.pg;
    world.sim.sleep(world.between(10 * MS, 200 * MS)).await;
    host.disk(world).await;
    let mut data = pg.data.borrow_mut();
    let Some(data) = data.as_mut() else { return };
    let end = Pos {
        lsn: data.flushed,
        branch: data.branch,
    };
    if pg.primary.get() {
        data.checkpoint = end;
        data.min_recovery = None;
    } else {
        data.checkpoint = Pos {
            lsn: data.flushed.min(pg.replayed.get()),
            ..end
        };
        data.min_recovery = Some(end);
    }
    let kept = data.slots.values().copied().min().unwrap_or(u64::MAX);
    let floor = data.checkpoint.lsn.saturating_sub(world.setup.wal_keep);
    data.wal_from = data.wal_from.max(floor.min(kept));
}

async fn checkpoints(world: Rc<World>, node: usize) {
    loop {
        world.sim.sleep(world.between(20 * SECOND, 60 * SECOND)).await;
        checkpoint(&world, node).await;
    }
}

/// The request to promote: it stands until the server ends.
pub(crate) fn promote(world: &World, node: usize, reserved: u32) {
    let pg = &world.nodes[node].pg;
    pg.promotion.set(Some(reserved));
    pg.asked.ring(&world.sim);
}

/// A signal to the postmaster. SIGKILL works on a frozen process, too; everything else waits for its thaw.
pub(crate) fn stop_request(world: &Rc<World>, node: usize, stop: Stop) {
    let host = &world.nodes[node];
    let pg = &host.pg;
    if !pg.live() || pg.stopping.get().is_some_and(|asked| asked >= stop) {
        return;
    }
    pg.stopping.set(Some(stop));
    if !matches!(pg.phase.get(), Phase::Stopping { .. }) {
        pg.set_phase(
            &world.sim,
            Phase::Stopping {
                since: host.local(world),
            },
        );
    }
    let Some(server) = pg.server.get() else { return };
    let work = Rc::clone(world);
    match stop {
        Stop::Fast => world.sim.spawn(server, fast(work, node)),
        Stop::Immediate => world.sim.spawn(server, async move {
            work.sim.sleep(work.between(5 * MS, 120 * MS)).await;
            work.nodes[node].pg.gone(&work.sim, true);
        }),
        Stop::Kill => pg.gone(&world.sim, true),
    }
}

/// Sessions end, the last checkpoint is written, and whoever streams gets everything.
async fn fast(world: Rc<World>, node: usize) {
    let host = &world.nodes[node];
    let pg = &host.pg;
    world.sim.sleep(world.between(2 * MS, 60 * MS)).await;
    if pg.hung.get() {
        std::future::pending::<()>().await;
    }
    if let Some(backends) = pg.backends.take() {
        world.sim.kill(backends);
    }
    host.disk(&world).await;
    world
        .sim
        .sleep(world.between(5 * MS, 200 * MS) + host.slow_stop.get())
        .await;
    if host.disk_full.get() {
        pg.gone(&world.sim, false);
        return;
    }
    let mut end = None;
    if let Some(data) = pg.data.borrow_mut().as_mut() {
        if pg.primary.get() {
            data.state = DbState::ShuttingDown;
            data.written += 1;
            data.flushed = data.written;
            end = Some(data.written);
        } else if data.state == DbState::InArchiveRecovery && data.consistent_at.is_none() {
            data.min_recovery = Some(data.end());
        }
    }
    host.disk(&world).await;
    // pg_control says so before the receivers have acknowledged it; nothing can be written any more.
    if let (Some(end), Some(data)) = (end, pg.data.borrow_mut().as_mut()) {
        data.state = DbState::ShutDown;
        data.shutdown_end = Some(end);
        data.checkpoint = data.end();
        data.min_recovery = None;
    }
    pg.written.ring(&world.sim);
    if let Some(end) = end {
        loop {
            let mut seen = pg.confirmed.count();
            let now = world.sim.now();
            let missing = pg
                .senders
                .borrow()
                .iter()
                .filter(|sender| sender.flushed < end && sender.until > now)
                .map(|sender| sender.until)
                .min();
            let Some(until) = missing else { break };
            race(pg.confirmed.rung(&world.sim, &mut seen), world.sim.until(until)).await;
        }
    } else if let Some(data) = pg.data.borrow_mut().as_mut()
        && data.state == DbState::InArchiveRecovery
        && data.consistent_at.is_none()
    {
        data.state = DbState::ShutDownInRecovery;
    }
    pg.gone(&world.sim, true);
}

/// `kill -9` of the postmaster: its children notice within a moment, and until then a session may still acknowledge.
pub(crate) fn kill_postmaster(world: &Rc<World>, node: usize, orphans: Nanos) {
    let host = &world.nodes[node];
    let pg = &host.pg;
    if !pg.live() {
        return;
    }
    if let Some(server) = pg.server.take() {
        world.sim.kill(server);
    }
    pg.promotion.set(None);
    pg.set_phase(
        &world.sim,
        Phase::Cleaning {
            since: host.local(world),
            requested: false,
        },
    );
    let serial = pg.serial.get();
    let world = Rc::clone(world);
    world.sim.clone().spawn(world.proc, async move {
        world.sim.sleep(orphans).await;
        let pg = &world.nodes[node].pg;
        if pg.serial.get() == serial && matches!(pg.phase.get(), Phase::Cleaning { .. }) {
            pg.gone(&world.sim, false);
        }
    });
}

/// One commit, until it is acknowledged, and whether a standby had to confirm it. `None`: the server refuses writes.
pub(crate) async fn commit(world: &Rc<World>, node: usize, bytes: u64) -> Option<(Pos, bool)> {
    let host = &world.nodes[node];
    let pg = &host.pg;
    if !pg.running() && !matches!(pg.phase.get(), Phase::Cleaning { .. }) || !pg.primary.get() {
        return None;
    }
    if host.disk_full.get() {
        // A server that cannot write its WAL ends.
        kill_postmaster(world, node, 5 * MS);
        return None;
    }
    let pos = {
        let mut data = pg.data.borrow_mut();
        let data = data.as_mut()?;
        data.written += bytes;
        data.end()
    };
    host.disk(world).await;
    {
        let mut data = pg.data.borrow_mut();
        let data = data.as_mut()?;
        data.flushed = data.flushed.max(pos.lsn);
    }
    pg.written.ring(&world.sim);
    let confirmed = syncrep::wait(world, node, pos).await;
    Some((pos, confirmed))
}

impl Data {
    /// A copy of a running server, complete and not yet started.
    pub(crate) fn copy_of(source: &Self, wal_at: Pos) -> Self {
        Self {
            branch: wal_at.branch,
            written: wal_at.lsn,
            flushed: wal_at.lsn,
            checkpoint: source.checkpoint,
            min_recovery: Some(wal_at),
            state: DbState::InArchiveRecovery,
            standby_signal: true,
            incomplete: false,
            half: false,
            shutdown_end: None,
            consistent_at: Some(wal_at),
            slots: std::collections::BTreeMap::new(),
            wal_from: source.checkpoint.lsn,
        }
    }
}
