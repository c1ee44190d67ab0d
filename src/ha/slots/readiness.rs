//! When a logical slot on a replica can be used after a failover.

use std::collections::BTreeMap;

/// What the leader says of its slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaderSlots {
    /// `catalog_xmin` of the physical slot we stream from.
    pub ours: Option<u32>,
    /// `catalog_xmin` of its logical slots, by name.
    pub logical: BTreeMap<String, u32>,
}

/// Logical slots of this replica that cannot be trusted yet. Until our feedback has reached the leader, it may remove
/// catalog rows that they need; whatever it removed before is missing here too. So a slot is safe once our physical
/// slot there protects as much as the logical one did when ours began to protect anything (contract: HA rules §13).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// By name; the `catalog_xmin` that our physical slot has to reach, once it is known.
    unready: BTreeMap<String, Option<u32>>,
}

impl Readiness {
    /// These slots were copied, or were kept by a primary that became a replica.
    pub fn begin(&mut self, names: impl IntoIterator<Item = String>) {
        self.unready.extend(names.into_iter().map(|name| (name, None)));
    }

    /// Only these are there.
    pub fn keep(&mut self, exists: impl Fn(&str) -> bool) {
        self.unready.retain(|name, _| exists(name));
    }

    /// A look at the leader. Returns the slots that have become safe.
    pub fn note(&mut self, leader: &LeaderSlots) -> Vec<String> {
        let Some(ours) = leader.ours else {
            return Vec::new();
        };
        for (name, needed) in &mut self.unready {
            if needed.is_none() {
                *needed = leader.logical.get(name).copied();
            }
        }
        let safe = |needed: &Option<u32>| needed.is_some_and(|needed| !precedes(ours, needed));
        let ready: Vec<String> = self
            .unready
            .iter()
            .filter(|(_, needed)| safe(needed))
            .map(|(name, _)| name.clone())
            .collect();
        self.unready.retain(|_, needed| !safe(needed));
        ready
    }

    /// Slots not to be relied on.
    pub fn unready(&self) -> impl Iterator<Item = &str> {
        self.unready.keys().map(String::as_str)
    }

    /// Nothing to ask the leader for.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.unready.is_empty()
    }
}

/// Transaction numbers go round (PostgreSQL: `TransactionIdPrecedes`).
const fn precedes(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() < 0
}
