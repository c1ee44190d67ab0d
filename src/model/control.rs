//! What `pg_control` says about a data directory (read by `postgres::control`).

use serde::Serialize;

use super::{Lsn, SystemId, Timeline};

/// `Database cluster state` of `pg_controldata`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum DbState {
    /// Never started.
    StartingUp,
    /// Cleanly shut down as a primary.
    ShutDown,
    /// Cleanly shut down as a replica.
    ShutDownInRecovery,
    /// A shutdown did not finish.
    ShuttingDown,
    /// Crash recovery did not finish.
    InCrashRecovery,
    /// Running as a replica, or died while it was.
    InArchiveRecovery,
    /// Running as a primary, or died while it was.
    InProduction,
}

impl DbState {
    /// Stopped with everything on disk.
    #[must_use]
    pub const fn is_clean(self) -> bool {
        matches!(self, Self::ShutDown | Self::ShutDownInRecovery)
    }

    /// The last process on this directory was a primary (or died on the way to being one).
    #[must_use]
    pub const fn was_primary(self) -> bool {
        matches!(
            self,
            Self::ShutDown | Self::ShuttingDown | Self::InCrashRecovery | Self::InProduction
        )
    }
}

/// The fields of `pg_controldata` that decisions need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ControlData {
    /// The cluster's identity.
    pub system_id: SystemId,
    /// How it was left.
    pub state: DbState,
    /// `Latest checkpoint location`.
    pub checkpoint: Lsn,
    /// `Latest checkpoint's REDO location`.
    pub redo: Lsn,
    /// `Latest checkpoint's TimeLineID`.
    pub timeline: Timeline,
    /// `Minimum recovery ending location`; zero unless it is a replica.
    pub min_recovery_end: Lsn,
    /// `Min recovery ending loc's timeline`.
    pub min_recovery_timeline: Timeline,
    /// `Data page checksum version` is not zero.
    pub checksums: bool,
    /// `wal_log_hints setting`.
    pub wal_log_hints: bool,
    /// `max_connections setting` and the four others a replica must not undercut, by name.
    pub settings: Vec<(String, String)>,
}

impl ControlData {
    /// How far this directory certainly reaches when it was stopped cleanly, and the timeline of that point.
    #[must_use]
    pub const fn end(&self) -> (Timeline, Lsn) {
        match self.state {
            DbState::InArchiveRecovery | DbState::ShutDownInRecovery if self.min_recovery_end.0 > 0 => {
                (self.min_recovery_timeline, self.min_recovery_end)
            }
            _ => (self.timeline, self.checkpoint),
        }
    }
}
