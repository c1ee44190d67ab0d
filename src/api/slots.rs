//! GET /slots: the replication slots of one member. Pure.

use serde_json::{Value, json};

use crate::{
    ha::slots::{Owner, Retained},
    model::SlotKind,
};

/// One object per slot, in the order of the names.
#[must_use]
pub fn to_json(shares: &[Retained]) -> Value {
    let mut shares: Vec<&Retained> = shares.iter().collect();
    shares.sort_by(|one, other| one.slot.name.cmp(&other.slot.name));
    shares.into_iter().map(one).collect()
}

fn one(share: &Retained) -> Value {
    let slot = &share.slot;
    let (kind, database, plugin) = match &slot.kind {
        SlotKind::Physical => ("physical", None, None),
        SlotKind::Logical { database, plugin } => ("logical", Some(database), Some(plugin)),
    };
    let member = match &share.owner {
        Owner::Member(name) => Some(name.as_str()),
        _ => None,
    };
    let lsn = |lsn: Option<crate::model::Lsn>| lsn.map(|lsn| lsn.to_string());
    json!({
        "name": slot.name,
        "type": kind,
        "database": database,
        "plugin": plugin,
        "owner": share.owner.as_str(),
        "member": member,
        "active": slot.active,
        "wal_status": slot.wal_status,
        "restart_lsn": lsn(slot.restart),
        "confirmed_flush_lsn": lsn(slot.confirmed),
        "retained_bytes": share.bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::json, ha::slots::Slot, model::Lsn};

    #[test]
    fn every_slot_says_whose_it_is_and_what_it_costs() {
        let share = |name: &str, kind: SlotKind, owner: Owner| Retained {
            slot: Slot {
                name: name.into(),
                confirmed: (kind != SlotKind::Physical).then_some(Lsn(7)),
                kind,
                temporary: false,
                active: true,
                restart: Some(Lsn(5)),
                xmin: false,
                lost: false,
                wal_status: Some("reserved".into()),
                failover: false,
                synced: false,
            },
            owner,
            bytes: Some(95),
        };
        let logical = SlotKind::Logical {
            database: "d".into(),
            plugin: "p".into(),
        };
        let shares = [
            share("n2", SlotKind::Physical, Owner::Member("n2".into())),
            share("l", logical, Owner::Unknown),
        ];
        insta::assert_snapshot!(json::text(&to_json(&shares)), @r#"[{"name": "l", "type": "logical", "database": "d", "plugin": "p", "owner": "unknown", "member": null, "active": true, "wal_status": "reserved", "restart_lsn": "0/5", "confirmed_flush_lsn": "0/7", "retained_bytes": 95}, {"name": "n2", "type": "physical", "database": null, "plugin": null, "owner": "member", "member": "n2", "active": true, "wal_status": "reserved", "restart_lsn": "0/5", "confirmed_flush_lsn": null, "retained_bytes": 95}]"#);
    }
}
