//! The `/status` key: how far the leader had written when it last looked.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::Lsn;

/// `{"optime":int,"slots":{name:int},"retain_slots":[name]}` (contract: DCS layout §2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct StatusKey {
    /// Last known WAL position of the leader.
    pub optime: Lsn,
    /// Positions of the leader's replication slots, its own name included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<BTreeMap<String, Lsn>>,
    /// Slots kept for members that are away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retain_slots: Option<Vec<String>>,
}

impl StatusKey {
    /// Reads what any version ever wrote: the object, a bare integer, JSON text inside JSON.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(object)) => Self {
                optime: object.get("optime").and_then(lsn).unwrap_or_default(),
                slots: object.get("slots").and_then(unwrap_text).as_ref().and_then(slots),
                retain_slots: object
                    .get("retain_slots")
                    .and_then(unwrap_text)
                    .as_ref()
                    .and_then(names),
            },
            Ok(value) => Self {
                optime: lsn(&value).unwrap_or_default(),
                ..Self::default()
            },
            Err(_) => Self::default(),
        }
    }

    /// Slot names of the members the last leader knew of, its own included. What else has a slot there is no member.
    /// Where nobody knows the leader's name, its slot is told by its position: that is the leader's own.
    pub fn member_slots<'a>(&'a self, leader: Option<&'a str>) -> impl Iterator<Item = &'a str> {
        let (unknown, optime) = (leader.is_none(), self.optime);
        let at_the_end = move |(_, at): &(&String, &Lsn)| unknown && **at == optime;
        let unnamed = self.slots.iter().flatten().filter(at_the_end);
        let retained = self.retain_slots.iter().flatten().map(String::as_str);
        leader
            .into_iter()
            .chain(unnamed.map(|(name, _)| name.as_str()))
            .chain(retained)
    }
}

fn lsn(value: &Value) -> Option<Lsn> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).map(Lsn)
}

fn unwrap_text(value: &Value) -> Option<Value> {
    match value {
        Value::String(text) => serde_json::from_str(text).ok(),
        other => Some(other.clone()),
    }
}

fn slots(value: &Value) -> Option<BTreeMap<String, Lsn>> {
    Some(
        value
            .as_object()?
            .iter()
            .filter_map(|(name, at)| Some((name.clone(), lsn(at)?)))
            .collect(),
    )
}

fn names(value: &Value) -> Option<Vec<String>> {
    Some(
        value
            .as_array()?
            .iter()
            .filter_map(|name| Some(name.as_str()?.to_owned()))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form_ever_written() {
        let full = StatusKey::parse(r#"{"optime":83886408,"slots":{"n2":1},"retain_slots":["n1"]}"#);
        assert_eq!(full.optime, Lsn(83_886_408));
        assert_eq!(full.member_slots(None).collect::<Vec<_>>(), ["n1"]);
        assert_eq!(full.member_slots(Some("n3")).collect::<Vec<_>>(), ["n3", "n1"]);
        let own = StatusKey::parse(r#"{"optime":9,"slots":{"n2":9,"logical":3}}"#);
        assert_eq!(own.member_slots(None).collect::<Vec<_>>(), ["n2"]);
        assert_eq!(StatusKey::parse("42").optime, Lsn(42));
        assert_eq!(
            StatusKey::parse(r#"{"optime":"7","slots":"{\"a\":9}"}"#).slots,
            Some([("a".into(), Lsn(9))].into())
        );
        for junk in ["", "nonsense", "[]", "null", "{\"optime\":-1}"] {
            assert_eq!(StatusKey::parse(junk).optime, Lsn(0), "{junk}");
        }
    }

    #[test]
    fn writes_compact_json_without_empty_fields() {
        let status = StatusKey {
            optime: Lsn(5),
            ..StatusKey::default()
        };
        assert_eq!(
            serde_json::to_string(&status).expect("plain data"),
            r#"{"optime":5}"#
        );
    }
}
