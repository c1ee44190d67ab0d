//! Replication slots as `/config` asks for them (contract: HA rules §13, environment §4).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// What kind of slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotKind {
    /// Physical.
    Physical,
    /// Logical, in this database, decoded by this plugin.
    Logical {
        /// Database.
        database: String,
        /// Output plugin.
        plugin: String,
    },
}

/// In which clusters a permanent slot is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotScope {
    /// In all.
    Any,
    /// In a primary cluster only.
    Primary,
    /// In a standby cluster only.
    Standby,
}

/// A slot that is kept across failovers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermanentSlot {
    /// What kind.
    pub kind: SlotKind,
    /// Where.
    pub scope: SlotScope,
}

/// Slots that are none of our business: every condition that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IgnoreSlot {
    /// Name.
    pub name: Option<String>,
    /// `physical` or `logical`.
    pub slot_type: Option<String>,
    /// Database.
    pub database: Option<String>,
    /// Output plugin.
    pub plugin: Option<String>,
}

impl IgnoreSlot {
    /// Whether this rule means such a slot. A rule without conditions means none.
    #[must_use]
    pub fn matches(&self, name: &str, slot_type: &str, database: Option<&str>, plugin: Option<&str>) -> bool {
        let fits = |wanted: &Option<String>, has: Option<&str>| wanted.is_none() || wanted.as_deref() == has;
        *self != Self::default()
            && fits(&self.name, Some(name))
            && fits(&self.slot_type, Some(slot_type))
            && fits(&self.database, database)
            && fits(&self.plugin, plugin)
    }
}

/// Keys of the permanent slots; the first that is there counts.
pub(super) const SLOT_KEYS: [&str; 3] = ["permanent_replication_slots", "permanent_slots", "slots"];

/// PostgreSQL accepts these as the name of a slot.
fn is_slot_name(name: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
    (1..=63).contains(&name.len()) && name.bytes().all(allowed)
}

/// The permanent slots of a document (`slots`, or one of its older names), by name. What PostgreSQL would not accept is
/// left out.
#[must_use]
pub(super) fn permanent_slots(raw: &Map<String, Value>) -> BTreeMap<String, PermanentSlot> {
    let section = SLOT_KEYS.iter().find_map(|name| raw.get(*name)?.as_object());
    let read = |(name, value): (&String, &Value)| {
        is_slot_name(name).then_some(())?;
        Some((name.clone(), permanent_slot(value)?))
    };
    section.into_iter().flatten().filter_map(read).collect()
}

fn permanent_slot(value: &Value) -> Option<PermanentSlot> {
    let map = match value {
        Value::Object(map) => map,
        // `0`, `null`: the short way to say physical.
        Value::Null | Value::Number(_) | Value::String(_) | Value::Bool(_) => &Map::new(),
        Value::Array(_) => return None,
    };
    let text = |name: &str| map.get(name).and_then(Value::as_str).map(str::trim);
    let filled = |name: &str| text(name).filter(|text| !text.is_empty()).map(str::to_owned);
    let logical = || SlotKind::Logical {
        database: filled("database").unwrap_or_default(),
        plugin: filled("plugin").unwrap_or_default(),
    };
    let kind = match text("type") {
        None if map.contains_key("database") && map.contains_key("plugin") => logical(),
        None => SlotKind::Physical,
        Some(kind) if kind.eq_ignore_ascii_case("physical") => SlotKind::Physical,
        Some(kind) if kind.eq_ignore_ascii_case("logical") => logical(),
        Some(_) => return None,
    };
    if let SlotKind::Logical { database, plugin } = &kind
        && (database.is_empty() || plugin.is_empty())
    {
        return None;
    }
    let scope = match text("cluster_type") {
        Some(kind) if kind.eq_ignore_ascii_case("primary") => SlotScope::Primary,
        Some(kind) if kind.eq_ignore_ascii_case("standby") => SlotScope::Standby,
        _ => SlotScope::Any,
    };
    Some(PermanentSlot { kind, scope })
}

/// The rules of `ignore_slots`.
#[must_use]
pub(super) fn ignore_slots(raw: &Map<String, Value>) -> Vec<IgnoreSlot> {
    let rules = raw.get("ignore_slots").and_then(Value::as_array);
    let read = |rule: &Value| {
        let rule = rule.as_object()?;
        let text = |name: &str| rule.get(name).and_then(Value::as_str).map(str::to_owned);
        Some(IgnoreSlot {
            name: text("name"),
            slot_type: text("type"),
            database: text("database"),
            plugin: text("plugin"),
        })
    };
    rules.into_iter().flatten().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn permanent_slots_have_short_forms_and_must_be_complete() {
        let slots = permanent_slots(&map(json!({"slots": {
            "a": 0, "b": null, "c": {}, "d": {"type": "physical", "cluster_type": "standby"},
            "e": {"type": "logical", "database": "db", "plugin": "pgoutput"},
            "f": {"database": "db", "plugin": "p"},
            "g": {"type": "logical", "database": "db"},
            "H": 0, "i": {"type": "strange"}, "j": []
        }})));
        assert_eq!(slots.keys().collect::<Vec<_>>(), ["a", "b", "c", "d", "e", "f"]);
        assert_eq!(slots["d"].scope, SlotScope::Standby);
        assert!(matches!(&slots["f"].kind, SlotKind::Logical { database, .. } if database == "db"));
    }

    #[test]
    fn an_older_name_wins_over_the_newer() {
        let slots = permanent_slots(&map(json!({"permanent_slots": {"x": 0}, "slots": {"y": 0}})));
        assert_eq!(slots.keys().collect::<Vec<_>>(), ["x"]);
    }

    #[test]
    fn an_ignored_slot_fits_every_condition() {
        let rules = ignore_slots(&map(
            json!({"ignore_slots": [{"name": "s", "type": "logical"}, {}, 5]}),
        ));
        assert_eq!(rules.len(), 2);
        assert!(rules[0].matches("s", "logical", Some("db"), Some("p")));
        assert!(!rules[0].matches("s", "physical", None, None));
        assert!(!rules[1].matches("s", "physical", None, None), "no condition");
    }
}
