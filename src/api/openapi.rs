//! GET /openapi.json: this API as a document. It is written by hand, as YAML; tests hold it against the router here and
//! against a running member in tests/openapi.rs.

use serde_json::Value;

const TEXT: &str = include_str!("openapi.yaml");

/// The document; `None` if it is broken, which a test excludes. Made for every request: they are few.
pub(super) fn document() -> Option<Value> {
    let mut document: serde_yaml_ng::Value = serde_yaml_ng::from_str(TEXT).ok()?;
    document.apply_merge().ok()?;
    let mut document = serde_json::to_value(document).ok()?;
    *document.pointer_mut("/info/version")? = env!("CARGO_PKG_VERSION").into();
    Some(document)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::routes;

    /// Paths of the contract's table of health checks.
    const HEALTH: [&str; 18] = [
        "/",
        "/primary",
        "/read-write",
        "/master",
        "/leader",
        "/standby-leader",
        "/standby_leader",
        "/replica",
        "/read-only",
        "/sync",
        "/synchronous",
        "/quorum",
        "/async",
        "/asynchronous",
        "/read-only-sync",
        "/read-only-synchronous",
        "/read-only-quorum",
        "/health",
    ];

    /// All (method, path) of the document.
    fn documented() -> BTreeSet<(String, String)> {
        let document = document().expect("readable");
        let paths = document["paths"].as_object().expect("paths");
        let operations = paths.iter().flat_map(|(path, item)| {
            let methods = item.as_object().expect("an item").keys();
            methods
                .filter(|key| *key != "summary")
                .map(|method| (method.to_uppercase(), path.clone()))
        });
        operations.collect()
    }

    #[test]
    fn every_route_is_in_it_and_nothing_else() {
        let mut routes: BTreeSet<(String, String)> = routes::all()
            .map(|(method, segment)| (method.to_owned(), format!("/{segment}")))
            .collect();
        for path in HEALTH {
            routes.extend(["GET", "HEAD", "OPTIONS"].map(|method| (method.to_owned(), path.to_owned())));
        }
        assert_eq!(documented(), routes);
    }

    #[test]
    fn every_reference_points_at_something() {
        fn walk<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str));
                    map.values().for_each(|value| walk(value, found));
                }
                Value::Array(list) => list.iter().for_each(|value| walk(value, found)),
                _ => {}
            }
        }
        let document = document().expect("readable");
        let mut found = Vec::new();
        walk(&document, &mut found);
        assert!(found.len() > 20);
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("local");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }
}
