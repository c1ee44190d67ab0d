//! Where `hot_standby_feedback` is not a matter of taste.

use super::wanted::{behind_nostream, in_scope};
use crate::model::{Cluster, Dynamic, MemberName, SlotKind, Tags};

/// A member that keeps logical slots, or through which one streams that does, must tell its leader which catalog rows
/// they need: otherwise these are vacuumed away, and decoding after a failover fails (contract: HA rules §13,
/// PostgreSQL configuration §4).
#[must_use]
pub fn needs_feedback(dynamic: &Dynamic, cluster: &Cluster, me: &MemberName, tags: &Tags) -> bool {
    let logical = dynamic.permanent_slots.values();
    let mut logical = logical.filter(|slot| matches!(slot.kind, SlotKind::Logical { .. }));
    let kept =
        dynamic.use_slots && dynamic.standby.is_none() && logical.any(|slot| in_scope(dynamic, slot.scope));
    kept && keeps(cluster, me, tags, cluster.members.len())
}

/// `depth` bounds a ring of names.
fn keeps(cluster: &Cluster, name: &MemberName, tags: &Tags, depth: usize) -> bool {
    if behind_nostream(cluster, name, tags) {
        return false;
    }
    let below = cluster.members.iter().filter(|member| {
        member.name != *name && member.tags().replicatefrom() == Some(name.as_str()) && depth > 0
    });
    !tags.nofailover()
        || below
            .into_iter()
            .any(|m| keeps(cluster, &m.name, &m.tags(), depth - 1))
}
