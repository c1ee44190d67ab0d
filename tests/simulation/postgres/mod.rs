//! PostgreSQL, as far as high availability depends on it: WAL positions, timelines, control file, recovery, streaming,
//! commits that wait, promotion, and every way to die.

mod data;
mod server;
mod stream;
mod syncrep;

use std::cell::{Cell, RefCell};

use howdah::{clock::Boottime, ha::sync::StandbyNames, model::DbState};

pub(crate) use data::Data;
pub(crate) use data::system_id;
pub(crate) use server::{checkpoint, commit, kill_postmaster, launch, promote, stop_request};
pub(crate) use syncrep::{reload, write_record};

use crate::{
    exec::{Bell, Nanos, Proc, Sim},
    wal::{Pos, Wal},
};

/// The postmaster as its owner sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// `requested`: by a stop.
    Stopped {
        requested: bool,
    },
    Starting {
        since: Boottime,
    },
    Running,
    Stopping {
        since: Boottime,
    },
    /// The postmaster is gone, its children are being ended.
    Cleaning {
        since: Boottime,
        requested: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    Fast,
    Immediate,
    Kill,
}

/// A replica that streams from here.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    pub(crate) node: usize,
    pub(crate) serial: u64,
    /// What it has confirmed as flushed.
    pub(crate) flushed: u64,
    /// When it is given up if it says nothing.
    pub(crate) until: Nanos,
    /// The setting as this process has read it last.
    pub(crate) names: StandbyNames,
}

/// One data directory with what runs on it.
pub(crate) struct Postgres {
    pub(crate) data: RefCell<Option<Data>>,
    pub(crate) phase: Cell<Phase>,
    /// Postmaster, startup process, walreceiver, walsenders.
    pub(crate) server: Cell<Option<Proc>>,
    /// Client sessions.
    pub(crate) backends: Cell<Option<Proc>>,
    /// Counts starts.
    pub(crate) serial: Cell<u64>,
    pub(crate) primary: Cell<bool>,
    pub(crate) replayed: Cell<u64>,
    /// Whom it is configured to stream from.
    pub(crate) upstream: Cell<Option<usize>>,
    pub(crate) streaming: Cell<bool>,
    pub(crate) senders: RefCell<Vec<Sender>>,
    next_sender: Cell<u64>,
    /// Lives, and answers nobody who connects.
    pub(crate) hung: Cell<bool>,
    /// Asked to promote; with the timelines that must not be used again.
    pub(crate) promotion: Cell<Option<u32>>,
    pub(crate) stopping: Cell<Option<Stop>>,
    /// `synchronous_standby_names` as the session of the monitor sees it.
    pub(crate) sync_in_force: RefCell<StandbyNames>,
    /// Commits wait at all: the checkpointer tells everybody.
    pub(crate) sync_defined: Cell<bool>,
    /// Waiting commits up to here have been released.
    pub(crate) sync_released: Cell<u64>,
    /// The checkpointer has not yet looked at the last reload, or writes a checkpoint.
    pub(crate) checkpointer_busy: Cell<bool>,
    reloads: Cell<u64>,
    /// Phase, standing.
    pub(crate) state: Bell,
    /// Position.
    pub(crate) written: Bell,
    /// Replies of standbys, reloads.
    pub(crate) confirmed: Bell,
    /// Upstream changed, or a promotion asked for.
    pub(crate) asked: Bell,
}

impl Postgres {
    pub(crate) fn new() -> Self {
        Self {
            data: RefCell::default(),
            phase: Cell::new(Phase::Stopped { requested: false }),
            server: Cell::default(),
            backends: Cell::default(),
            serial: Cell::default(),
            primary: Cell::default(),
            replayed: Cell::default(),
            upstream: Cell::default(),
            streaming: Cell::default(),
            senders: RefCell::default(),
            next_sender: Cell::default(),
            hung: Cell::default(),
            promotion: Cell::default(),
            stopping: Cell::default(),
            sync_in_force: RefCell::default(),
            sync_defined: Cell::default(),
            sync_released: Cell::default(),
            checkpointer_busy: Cell::default(),
            reloads: Cell::default(),
            state: Bell::default(),
            written: Bell::default(),
            confirmed: Bell::default(),
            asked: Bell::default(),
        }
    }

    pub(crate) fn running(&self) -> bool {
        self.phase.get() == Phase::Running
    }

    pub(crate) fn live(&self) -> bool {
        matches!(
            self.phase.get(),
            Phase::Running | Phase::Starting { .. } | Phase::Stopping { .. }
        )
    }

    pub(crate) fn set_phase(&self, sim: &Sim, phase: Phase) {
        self.phase.set(phase);
        self.state.ring(sim);
        self.written.ring(sim);
    }

    /// What is on disk for certain.
    pub(crate) fn flushed(&self) -> Option<Pos> {
        self.data.borrow().as_ref().map(|data| Pos {
            branch: data.branch,
            lsn: data.flushed,
        })
    }

    /// Everything this node has (received or written).
    pub(crate) fn position(&self) -> Option<Pos> {
        self.data.borrow().as_ref().map(|data| Pos {
            branch: data.branch,
            lsn: data.written,
        })
    }

    pub(crate) fn timeline(&self, wal: &Wal) -> u32 {
        self.data
            .borrow()
            .as_ref()
            .map_or(0, |data| wal.timeline(data.branch))
    }

    /// Everything that ran here is gone at this moment; what it leaves in `pg_control` stays.
    pub(crate) fn gone(&self, sim: &Sim, requested: bool) {
        for proc in [self.backends.take(), self.server.take()].into_iter().flatten() {
            sim.kill(proc);
        }
        self.primary.set(false);
        self.streaming.set(false);
        self.senders.borrow_mut().clear();
        self.hung.set(false);
        self.promotion.set(None);
        self.stopping.set(None);
        if let Some(data) = self.data.borrow_mut().as_mut()
            && data.state == DbState::InArchiveRecovery
        {
            data.forget_unreplayed();
        }
        self.set_phase(sim, Phase::Stopped { requested });
    }

    /// The page cache is lost.
    pub(crate) fn power_lost(&self) {
        if let Some(data) = self.data.borrow_mut().as_mut() {
            data.written = data.flushed;
        }
    }
}
