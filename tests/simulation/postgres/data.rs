//! A data directory.

use std::collections::BTreeMap;

use howdah::{
    ha::Down,
    model::{ControlData, DbState, Lsn, SystemId, Timeline},
};

use crate::wal::{BranchId, Pos, Wal};

#[derive(Debug, Clone)]
pub(crate) struct Data {
    /// The branch its WAL is on.
    pub(crate) branch: BranchId,
    /// End of its WAL, page cache included.
    pub(crate) written: u64,
    /// End of its WAL on disk.
    pub(crate) flushed: u64,
    /// Latest checkpoint.
    pub(crate) checkpoint: Pos,
    pub(crate) min_recovery: Option<Pos>,
    pub(crate) state: DbState,
    pub(crate) standby_signal: bool,
    /// Marked as unfinished: counts as empty.
    pub(crate) incomplete: bool,
    /// Neither the old nor the new content, marked or not.
    pub(crate) half: bool,
    /// End of the shutdown checkpoint record.
    pub(crate) shutdown_end: Option<u64>,
    /// Must be replayed before it is consistent.
    pub(crate) consistent_at: Option<Pos>,
    /// Physical slots of members, and from where they keep WAL.
    pub(crate) slots: BTreeMap<usize, u64>,
    /// WAL before this is gone.
    pub(crate) wal_from: u64,
}

impl Data {
    pub(crate) const fn fresh(branch: BranchId, lsn: u64) -> Self {
        Self {
            branch,
            written: lsn,
            flushed: lsn,
            checkpoint: Pos { branch, lsn },
            min_recovery: None,
            state: DbState::ShutDown,
            standby_signal: false,
            incomplete: false,
            half: false,
            shutdown_end: Some(lsn),
            consistent_at: None,
            slots: BTreeMap::new(),
            wal_from: 0,
        }
    }

    pub(crate) const fn end(&self) -> Pos {
        Pos {
            branch: self.branch,
            lsn: self.written,
        }
    }

    /// What a replica has received is on disk and will be replayed by its next start: nothing is lost. Kept as a step of
    /// its own because a crash of the host is another matter ([`super::Postgres::power_lost`]).
    pub(crate) fn forget_unreplayed(&mut self) {
        let end = self.end();
        if self.min_recovery.is_some() || self.standby_signal {
            self.min_recovery = Some(Pos {
                lsn: self.flushed.min(end.lsn),
                ..end
            });
        }
    }

    /// What `pg_control` and the files beside it say.
    pub(crate) fn look(&self, wal: &Wal) -> Down {
        let system = wal.branches[self.branch].system;
        let timeline = |pos: Pos| Timeline(wal.timeline(pos.branch));
        let control = ControlData {
            system_id: system_id(system),
            state: self.state,
            checkpoint: Lsn(self.checkpoint.lsn),
            redo: Lsn(self.checkpoint.lsn),
            timeline: timeline(self.checkpoint),
            min_recovery_end: Lsn(self.min_recovery.map_or(0, |pos| pos.lsn)),
            min_recovery_timeline: self.min_recovery.map_or(Timeline::UNKNOWN, timeline),
            checksums: true,
            wal_log_hints: true,
            settings: Vec::new(),
        };
        let mut down = Down {
            control,
            standby_signal: self.standby_signal,
            checkpoint_end: match self.state {
                DbState::ShutDown => self.shutdown_end.map(Lsn),
                _ => None,
            },
            parent: None,
        };
        let reached = down.timeline();
        let at = [Some(self.end()), self.min_recovery, Some(self.checkpoint)];
        let at = at.into_iter().flatten().find(|pos| timeline(*pos) == reached);
        down.parent = at.and_then(|pos| wal.parent(pos.branch));
        down
    }
}

pub(crate) fn system_id(system: u64) -> SystemId {
    SystemId(format!("{}", 7_400_000_000_000_000_000_u64 + system))
}
