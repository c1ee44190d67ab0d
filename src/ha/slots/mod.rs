//! Which replication slots this member should have, and what has to be done to get there (contract: HA rules §13).
//! Pure: what is given is what was observed, what comes out is a list of changes with a reason each.
//!
//! [`wanted`] says what should be there, [`changes`] compares it with what is, [`retention`] remembers members that are
//! away, [`status`] writes `/status`, [`retained`] says what every slot holds back and for whom.
//!
//! ```text
//! /config slots ─┐                         ┌─ create, drop, advance   (agent, in the background)
//! members, tags ─┼─► wanted ──► changes ──►┤
//! /status       ─┘              ▲          └─ copy from the leader    (a job: postgres restarts)
//!                          local slots
//! ```
//!
//! Two things never happen here. A slot never moves back. And what nobody can prove to be ours stays: Patroni drops
//! every slot that it does not want, which also hits what a person made by hand.

mod changes;
mod copy;
mod feedback;
mod readiness;
mod retained;
mod retention;
mod status;
#[cfg(test)]
mod tests;
mod wanted;

use std::collections::BTreeSet;

pub use changes::{changes, record};
pub use copy::due;
pub use feedback::needs_feedback;
pub use readiness::{LeaderSlots, Readiness};
pub use retained::{Owner, RETAINED_WARN, Retained, retained};
pub use retention::Retention;
pub use status::status;
pub use wanted::{Wanted, Whose, wanted};

use crate::model::{Cluster, Dynamic, Lsn, MemberName, SlotKind, Tags};

/// First major version that copies logical slots to standbys by itself (`failover`, `synced`).
const SLOT_SYNC: u16 = 17;

/// A slot of the local server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Name.
    pub name: String,
    /// Physical, or logical with database and plugin.
    pub kind: SlotKind,
    /// Ends with its session.
    pub temporary: bool,
    /// In use.
    pub active: bool,
    /// Oldest WAL it keeps.
    pub restart: Option<Lsn>,
    /// Confirmed by the consumer (logical slots).
    pub confirmed: Option<Lsn>,
    /// It keeps old rows.
    pub xmin: bool,
    /// The WAL it needs is gone, or it was invalidated: nobody can use it any more.
    pub lost: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// PostgreSQL keeps it on standbys itself (17 and newer).
    pub failover: bool,
    /// PostgreSQL has copied it here (17 and newer).
    pub synced: bool,
}

impl Slot {
    /// What `/status` says of it: confirmed by the consumer, else the oldest WAL it keeps.
    #[must_use]
    pub fn position(&self) -> Option<Lsn> {
        self.confirmed.or(self.restart)
    }
}

/// What this member is while its slots are looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Holds the lock and accepts writes.
    Primary,
    /// Holds the lock of a cluster that follows another one.
    StandbyLeader,
    /// Follows another member.
    Replica {
        /// Replayed up to here.
        replayed: Lsn,
    },
}

impl Place {
    /// Holds the lock.
    #[must_use]
    pub const fn leads(self) -> bool {
        matches!(self, Self::Primary | Self::StandbyLeader)
    }
}

/// Everything that decides about slots.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// Our name.
    pub me: &'a MemberName,
    /// Our tags.
    pub tags: &'a Tags,
    /// Dynamic configuration in force.
    pub dynamic: &'a Dynamic,
    /// The cluster as read in this turn.
    pub cluster: &'a Cluster,
    /// What we are.
    pub place: Place,
    /// Major version of the local server.
    pub major: u16,
    /// What is there.
    pub slots: &'a [Slot],
    /// Slots of members that were seen within `member_slots_ttl` (a leader's own knowledge).
    pub retained: &'a BTreeSet<String>,
    /// Slots of this server that we made or looked after before.
    pub ours: &'a BTreeSet<String>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Make it; a physical one keeps WAL from now on.
    Create(SlotKind),
    /// Drop it.
    Drop,
    /// Move it forward. A logical one is moved from within its database.
    Advance {
        /// Database of a logical slot.
        database: Option<String>,
        /// To here.
        to: Lsn,
    },
    /// Copy the leader's logical slot; costs a restart of this replica.
    Copy {
        /// Database.
        database: String,
        /// Output plugin.
        plugin: String,
    },
}

/// A thing to do with a slot, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Name of the slot.
    pub slot: String,
    /// What.
    pub op: Op,
    /// For the log.
    pub because: String,
}
