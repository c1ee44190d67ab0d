//! `-s` and `-p` of `edit-config`: one dotted path and its value (contract: ctl §5). Pure.

use serde_json::{Map, Value};

use crate::cli::CliError;

/// Below this the rest of a path is one name: `postgresql.parameters.plpgsql.extra_errors`.
const NAMES: [&str; 2] = ["postgresql", "parameters"];

/// Sets `prefix` + KEY to the value, read as YAML; `null` removes it, and what is empty then.
pub(super) fn set(document: &mut Map<String, Value>, pair: &str, prefix: &str) -> Result<(), CliError> {
    let (key, value) = pair
        .split_once('=')
        .ok_or_else(|| CliError::refused(format!("Invalid parameter setting {pair}")))?;
    let value: Value = serde_yaml_ng::from_str(value)
        .map_err(|error| CliError::refused(format!("{key}: the value is not YAML: {error}")))?;
    let path = format!("{prefix}{}", key.trim());
    put(document, &steps(&path), value).map_err(|step| {
        CliError::refused(format!(
            "{path}: {step} is not a mapping, so nothing can be set below it"
        ))
    })
}

fn steps(path: &str) -> Vec<&str> {
    let below = format!("{}.", NAMES.join("."));
    match path.strip_prefix(below.as_str()) {
        Some(name) => NAMES.into_iter().chain([name]).collect(),
        None => path.split('.').collect(),
    }
}

/// The error is the step at which something else than a mapping stands.
fn put(map: &mut Map<String, Value>, steps: &[&str], value: Value) -> Result<(), String> {
    let Some((first, rest)) = steps.split_first() else {
        return Ok(());
    };
    if rest.is_empty() {
        if value.is_null() {
            map.remove(*first);
        } else {
            map.insert((*first).to_owned(), value);
        }
        return Ok(());
    }
    if value.is_null() && !map.contains_key(*first) {
        return Ok(());
    }
    let inner = map
        .entry((*first).to_owned())
        .or_insert_with(|| Value::Object(Map::new()));
    if inner.is_null() {
        *inner = Value::Object(Map::new());
    }
    let Value::Object(inner) = inner else {
        return Err((*first).to_owned());
    };
    put(inner, rest, value)?;
    if inner.is_empty() {
        map.remove(*first);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn after(pairs: &[(&str, &str)]) -> Value {
        let mut document = json!({"ttl": 30, "postgresql": {"parameters": {"work_mem": "4MB"}}});
        let map = document.as_object_mut().expect("an object");
        for (pair, prefix) in pairs {
            set(map, pair, prefix).expect("a pair");
        }
        document
    }

    #[test]
    fn values_are_yaml_and_paths_have_dots() {
        assert_eq!(after(&[("ttl=20", "")])["ttl"], 20);
        assert_eq!(
            after(&[("synchronous_mode=quorum", "")])["synchronous_mode"],
            "quorum"
        );
        let slots = after(&[("slots.a.type=physical", ""), ("slots.b={type: physical}", "")]);
        assert_eq!(
            slots["slots"],
            json!({"a": {"type": "physical"}, "b": {"type": "physical"}})
        );
        let parameters = after(&[("plpgsql.extra_errors=all", "postgresql.parameters.")]);
        assert_eq!(
            parameters["postgresql"]["parameters"]["plpgsql.extra_errors"],
            "all"
        );
    }

    #[test]
    fn null_removes_and_takes_empty_parents_along() {
        assert_eq!(after(&[("ttl=null", "")]).get("ttl"), None);
        assert_eq!(
            after(&[("work_mem=null", "postgresql.parameters.")]).get("postgresql"),
            None
        );
        assert_eq!(after(&[("no.such.thing=null", "")]).get("no"), None);
    }

    #[test]
    fn nonsense_is_named() {
        let mut map = Map::new();
        let said = |error: CliError| error.to_string();
        assert_eq!(
            set(&mut map, "ttl", "").map_err(said),
            Err("Invalid parameter setting ttl".into())
        );
        set(&mut map, "ttl=1", "").expect("a pair");
        let below = set(&mut map, "ttl.x=1", "").map_err(said).expect_err("a number");
        assert!(below.contains("ttl is not a mapping"), "{below}");
    }
}
