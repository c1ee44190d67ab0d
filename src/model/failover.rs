//! The `/failover` key: a request for a switchover or a manual failover.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::MemberName;

/// With `leader` a switchover, without one a manual failover; `candidate` is stored as `member`
/// (contract: DCS layout §2, HA rules §6).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FailoverKey {
    /// The leader that is to hand over.
    pub leader: Option<MemberName>,
    /// The member that is to take over.
    pub candidate: Option<MemberName>,
    /// When; at once if absent.
    pub scheduled_at: Option<Timestamp>,
}

impl FailoverKey {
    /// Reads the object or the legacy text `leader:member`. `None` when it names nobody (a cleared key).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let name = |value: Option<&str>| value.filter(|n| !n.is_empty()).map(MemberName::from);
        let key = match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(object)) => {
                let text = |field: &str| object.get(field).and_then(Value::as_str);
                Self {
                    leader: name(text("leader")),
                    candidate: name(text("member").or_else(|| text("candidate"))),
                    scheduled_at: text("scheduled_at").and_then(|at| at.parse().ok()),
                }
            }
            _ => {
                let (leader, member) = text.split_once(':')?;
                Self {
                    leader: name(Some(leader.trim())),
                    candidate: name(Some(member.trim())),
                    scheduled_at: None,
                }
            }
        };
        (key.leader.is_some() || key.candidate.is_some()).then_some(key)
    }

    /// The text to store.
    #[must_use]
    pub fn render(&self) -> String {
        let mut object = Map::new();
        if let Some(leader) = &self.leader {
            object.insert("leader".into(), leader.0.clone().into());
        }
        if let Some(candidate) = &self.candidate {
            object.insert("member".into(), candidate.0.clone().into());
        }
        if let Some(at) = self.scheduled_at {
            let text = at.display_with_offset(jiff::tz::Offset::UTC).to_string();
            object.insert("scheduled_at".into(), text.into());
        }
        Value::Object(object).to_string()
    }

    /// A planned hand-over from a named leader.
    #[must_use]
    pub const fn is_switchover(&self) -> bool {
        self.leader.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cleared_key_is_no_request() {
        assert_eq!(FailoverKey::parse("{}"), None);
        assert_eq!(FailoverKey::parse(""), None);
        assert_eq!(FailoverKey::parse(":"), None);
    }

    #[test]
    fn reads_both_forms_and_writes_one() {
        let key =
            FailoverKey::parse(r#"{"leader":"n1","member":"n2","scheduled_at":"2026-02-01T03:00:00+00:00"}"#)
                .expect("valid");
        assert!(key.is_switchover());
        assert_eq!(
            key.render(),
            r#"{"leader":"n1","member":"n2","scheduled_at":"2026-02-01T03:00:00+00:00"}"#
        );
        let legacy = FailoverKey::parse("n1:n2").expect("valid");
        assert_eq!(legacy.candidate, Some("n2".into()));
    }
}
