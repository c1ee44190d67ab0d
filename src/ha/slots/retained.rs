//! What every slot holds back, and for whom.

use super::{Place, Situation, Slot, changes::ignored, wanted, wanted::Whose};
use crate::model::{Lsn, MemberName, SlotKind};

/// A slot that nobody uses and that holds back more than this is worth a warning. A gigabyte is what a small volume can
/// spare and a large one writes in minutes.
pub const RETAINED_WARN: u64 = 1 << 30;

/// Whose a slot is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A member that is there.
    Member(MemberName),
    /// A member that is away.
    Away,
    /// It is in `/config`.
    Permanent,
    /// `ignore_slots` means it.
    Ignored,
    /// PostgreSQL keeps it on standbys itself.
    Synchronized,
    /// Ours, and about to go.
    Leftover,
    /// Nobody knows: a person made it, or another program did.
    Unknown,
}

impl Owner {
    /// One word for tables.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Member(_) => "member",
            Self::Away => "absent member",
            Self::Permanent => "permanent",
            Self::Ignored => "ignored",
            Self::Synchronized => "failover",
            Self::Leftover => "leftover",
            Self::Unknown => "unknown",
        }
    }
}

/// One slot's share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retained {
    /// The slot.
    pub slot: Slot,
    /// Whose it is.
    pub owner: Owner,
    /// Bytes of WAL between what it needs and the end; `None`: it keeps none.
    pub bytes: Option<u64>,
}

impl Retained {
    /// Nobody uses it, and it holds back a lot.
    #[must_use]
    pub fn is_worth_a_warning(&self) -> bool {
        !self.slot.active && self.bytes.is_some_and(|bytes| bytes > RETAINED_WARN)
    }
}

/// Every slot of the local server with what it holds back; `end` is the end of its WAL.
#[must_use]
pub fn retained(situation: &Situation<'_>, end: Lsn) -> Vec<Retained> {
    let wanted = wanted(situation);
    let owner = |slot: &Slot| {
        if ignored(situation, slot) {
            return Owner::Ignored;
        }
        match wanted.get(&slot.name).filter(|wanted| wanted.kind == slot.kind) {
            Some(wanted) => match &wanted.whose {
                Whose::Member(name) => Owner::Member(name.clone()),
                Whose::Away => Owner::Away,
                Whose::Permanent => Owner::Permanent,
            },
            None if slot.failover && matches!(slot.kind, SlotKind::Logical { .. }) => Owner::Synchronized,
            None if super::changes::whose_leftover(situation, slot).is_some() => Owner::Leftover,
            None => Owner::Unknown,
        }
    };
    let share = |slot: &Slot| Retained {
        slot: slot.clone(),
        owner: owner(slot),
        bytes: slot.restart.map(|restart| end.bytes_ahead_of(restart)),
    };
    situation.slots.iter().map(share).collect()
}

impl Place {
    /// Whether the server is in recovery.
    #[must_use]
    pub const fn in_recovery(self) -> bool {
        !matches!(self, Self::Primary)
    }
}
