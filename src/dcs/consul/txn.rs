//! Transactions (`PUT /v1/txn`): all of their steps are carried out, or none. They are raft writes, so whatever one
//! says was so when a quorum agreed.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The key must not exist.
    Absent(String),
    /// The key must have this `ModifyIndex`.
    Unchanged(String, u64),
    /// The key must be locked by this session.
    LockedBy(String, String),
    /// Writes the key.
    Set(String, String),
    /// Writes the key if it has this `ModifyIndex`; 0: if it does not exist.
    Swap(String, String, u64),
    /// Writes the key and binds it to this session. Refused if it is bound to another one.
    Lock(String, String, String),
    /// Removes the key if it is there.
    Delete(String),
}

impl Step {
    fn to_json(&self) -> Value {
        let kv = match self {
            Self::Absent(key) => json!({"Verb": "check-not-exists", "Key": key}),
            Self::Unchanged(key, index) => json!({"Verb": "check-index", "Key": key, "Index": index}),
            Self::LockedBy(key, session) => json!({"Verb": "check-session", "Key": key, "Session": session}),
            Self::Set(key, value) => json!({"Verb": "set", "Key": key, "Value": STANDARD.encode(value)}),
            Self::Swap(key, value, index) => {
                json!({"Verb": "cas", "Key": key, "Value": STANDARD.encode(value), "Index": index})
            }
            Self::Lock(key, value, session) => {
                json!({"Verb": "lock", "Key": key, "Value": STANDARD.encode(value), "Session": session})
            }
            Self::Delete(key) => json!({"Verb": "delete", "Key": key}),
        };
        json!({"KV": kv})
    }

    /// The key that it writes.
    fn written(&self) -> Option<&str> {
        match self {
            Self::Set(key, _) | Self::Swap(key, _, _) | Self::Lock(key, _, _) => Some(key),
            Self::Absent(_) | Self::Unchanged(..) | Self::LockedBy(..) | Self::Delete(_) => None,
        }
    }
}

/// The body of a transaction.
pub(super) fn body(steps: &[Step]) -> String {
    steps.iter().map(Step::to_json).collect::<Value>().to_string()
}

/// Outcome of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Done; the raft index of it, 0 if no step tells.
    Done(u64),
    /// A condition did not hold.
    Refused,
    /// The session it names does not exist.
    SessionGone,
}

/// Reads the answer to a transaction that was carried out (200) or not (409). `None`: it is the answer to something else,
/// which must not be taken for success.
pub(super) fn outcome(done: bool, steps: &[Step], body: &Value) -> Option<Outcome> {
    if !["Results", "Errors"].iter().all(|name| body.get(name).is_some()) {
        return None;
    }
    if done {
        let results: Vec<&Value> = body["Results"].as_array().into_iter().flatten().collect();
        let answers = |key: &str| results.iter().any(|result| result["KV"]["Key"] == *key);
        let mut written = steps.iter().filter_map(Step::written);
        if !body["Errors"].is_null() || !written.all(answers) {
            return None;
        }
        let indexes = results
            .iter()
            .filter_map(|result| result["KV"]["ModifyIndex"].as_u64());
        return Some(Outcome::Done(indexes.max().unwrap_or(0)));
    }
    let mut errors = body["Errors"].as_array()?.iter();
    let gone = errors.any(|error| {
        error["What"]
            .as_str()
            .is_some_and(|what| what.contains("invalid session"))
    });
    Some(if gone {
        Outcome::SessionGone
    } else {
        Outcome::Refused
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_what_consul_reads() {
        let steps = [
            Step::Absent("s/leader".into()),
            Step::Lock("s/leader".into(), "a".into(), "id".into()),
            Step::Swap("s/config".into(), "{}".into(), 7),
        ];
        assert_eq!(
            body(&steps),
            concat!(
                r#"[{"KV":{"Verb":"check-not-exists","Key":"s/leader"}},"#,
                r#"{"KV":{"Verb":"lock","Key":"s/leader","Value":"YQ==","Session":"id"}},"#,
                r#"{"KV":{"Verb":"cas","Key":"s/config","Value":"e30=","Index":7}}]"#
            )
        );
    }

    #[test]
    fn an_answer_tells_the_index_or_why_not() {
        let steps = [
            Step::Delete("s/failover".into()),
            Step::Lock("s/leader".into(), "a".into(), "id".into()),
            Step::Set("s/status".into(), "1".into()),
        ];
        let result = |key: &str, index: u64| json!({"KV": {"Key": key, "ModifyIndex": index}});
        let both = [result("s/leader", 7), result("s/status", 9)];
        let done = json!({"Results": both, "Errors": null});
        assert_eq!(outcome(true, &steps, &done), Some(Outcome::Done(9)));
        let other = json!({"Results": both[1..], "Errors": null});
        for nonsense in [json!({}), json!([]), json!("ok"), other] {
            assert_eq!(outcome(true, &steps, &nonsense), None, "{nonsense}");
            assert_ne!(
                outcome(false, &steps, &nonsense),
                Some(Outcome::SessionGone),
                "{nonsense}"
            );
        }
        let refused = json!({"Results": null, "Errors": [{"OpIndex": 0, "What": "key \"s/leader\" exists"}]});
        assert_eq!(outcome(false, &steps, &refused), Some(Outcome::Refused));
        let gone = json!({"Results": null, "Errors": [{"OpIndex": 1, "What": "invalid session \"x\""}]});
        assert_eq!(outcome(false, &steps, &gone), Some(Outcome::SessionGone));
    }
}
