//! The merge rules of PATCH /config.

use serde_json::{Map, Value};

/// Merges a PATCH into a document: `null` removes, objects merge into objects, anything else replaces when
/// its text differs (contract: REST API §8). Returns whether anything changed.
pub fn merge_patch(target: &mut Map<String, Value>, patch: &Map<String, Value>) -> bool {
    let mut changed = false;
    for (key, value) in patch {
        match (target.get_mut(key), value) {
            (None, Value::Null) => {}
            (Some(_), Value::Null) => {
                target.remove(key);
                changed = true;
            }
            (Some(Value::Object(inner)), Value::Object(patch)) => changed |= merge_patch(inner, patch),
            (Some(old), new) if text_of(old) == text_of(new) => {}
            (_, Value::Object(patch)) => {
                let mut fresh = Map::new();
                merge_patch(&mut fresh, patch);
                target.insert(key.clone(), Value::Object(fresh));
                changed = true;
            }
            (_, new) => {
                target.insert(key.clone(), new.clone());
                changed = true;
            }
        }
    }
    changed
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn patch_merges_removes_and_replaces() {
        let mut target = map(json!({"ttl": 30, "postgresql": {"parameters": {"a": 1, "b": 2}}}));
        assert!(merge_patch(
            &mut target,
            &map(json!({"postgresql": {"parameters": {"a": null, "c": 3}}, "x": {"y": null}}))
        ));
        assert_eq!(
            Value::Object(target.clone()),
            json!({"ttl": 30, "postgresql": {"parameters": {"b": 2, "c": 3}}, "x": {}})
        );
        assert!(!merge_patch(
            &mut target,
            &map(json!({"ttl": "30", "gone": null}))
        ));
        assert!(merge_patch(&mut target, &map(json!({"ttl": {"deep": 1}}))));
        assert_eq!(target["ttl"], json!({"deep": 1}));
    }
}
