//! The document of `HOWDAH_CONFIGURATION`: Patroni's YAML tree (contract: environment §3), taken apart into settings.

use serde_json::{Map, Value};

use super::{
    gather::Gathered,
    kind::Kind,
    mistakes::Mistake,
    other_names::{OTHER_STORES, OURS, nearest},
    settings::Origin,
    vars::{self, Effect},
};

/// Older places of settings, and what only looks different.
const MOVED: &[(&str, &str)] = &[
    ("bootstrap.post_init", "bootstrap.post_bootstrap"),
    (
        "bootstrap.dcs.master_start_timeout",
        "bootstrap.dcs.primary_start_timeout",
    ),
    (
        "bootstrap.dcs.master_stop_timeout",
        "bootstrap.dcs.primary_stop_timeout",
    ),
    (
        "postgresql.create_replica_method",
        "postgresql.create_replica_methods",
    ),
    ("postgresql.superuser", "postgresql.authentication.superuser"),
    ("postgresql.replication", "postgresql.authentication.replication"),
    ("postgresql.pg_rewind", "postgresql.authentication.rewind"),
    ("postgresql.name", "name"),
    ("etcd", "etcd3"),
];

/// Top-level keys that mean something elsewhere but nothing in a member's own configuration.
const NOT_LOCAL: &[&str] = &[
    "ttl",
    "loop_wait",
    "retry_timeout",
    "maximum_lag_on_failover",
    "standby_cluster",
    "synchronous_mode",
    "synchronous_mode_strict",
    "failsafe_mode",
    "pause",
    "slots",
    "ignore_slots",
];

/// Reads the whole document.
pub(super) fn read(gathered: &mut Gathered, document: Value, origin: &Origin) {
    let Value::Object(mut document) = document else {
        return;
    };
    document.retain(|_, value| !says_nothing(value));
    document.retain(|key, _| {
        let store = OTHER_STORES
            .iter()
            .find(|(section, _)| section.eq_ignore_ascii_case(key));
        if let Some((_, what)) = store {
            gathered.mistakes.push(Mistake::Unsupported {
                name: at(origin, key).to_string(),
                what: (*what).to_owned(),
            });
        } else if NOT_LOCAL.contains(&key.as_str()) {
            gathered.warnings.push(format!(
                "{}: has no effect here; it belongs below bootstrap.dcs",
                at(origin, key)
            ));
        } else {
            return true;
        }
        false
    });
    if document.contains_key("etcd") {
        gathered.warnings.push(format!(
            "{}: etcd is spoken to with its v3 protocol",
            at(origin, "etcd")
        ));
        if document.contains_key("etcd3") {
            document.remove("etcd");
        }
    }
    let rest = descend(gathered, "", document, origin);
    for (key, value) in rest {
        leftover(gathered, &key, value, origin);
    }
}

/// Takes a mapping at a path apart; `path` is a setting of its own that keeps what is left.
pub(super) fn take(gathered: &mut Gathered, path: &str, value: Value, origin: &Origin) {
    let Value::Object(map) = value else {
        return;
    };
    let rest = descend(gathered, path, map, origin);
    if !rest.is_empty() {
        gathered
            .settings
            .set(path, Value::Object(rest), at_if_document(origin, path));
    }
}

/// Sets all settings below a path; returns what is none.
fn descend(
    gathered: &mut Gathered,
    path: &str,
    map: Map<String, Value>,
    origin: &Origin,
) -> Map<String, Value> {
    let mut rest = Map::new();
    for (key, value) in map {
        let written = join(path, &key);
        let moved = MOVED.iter().find(|(from, _)| *from == written);
        let child = moved.map_or(written.clone(), |(_, to)| (*to).to_owned());
        let section = vars::is_section(&child);
        let known = section || vars::by_path(&child).is_some();
        if value.is_null() || (known && says_nothing(&value)) {
            continue;
        }
        match (vars::by_path(&child), value) {
            // `set` comes back here for the parts of a mapping that is also a section.
            (Some(var), value) => gathered.set(var, &value, at_if_document(origin, &written)),
            (None, Value::Object(map)) if section => {
                let inner = descend(gathered, &child, map, origin);
                if !inner.is_empty() {
                    let key = if path.is_empty() { child } else { key };
                    rest.insert(key, Value::Object(inner));
                }
            }
            // Its value is not shown: `authentication: admin:secret` is the usual way to get here.
            (None, value) if section => gathered.mistakes.push(Mistake::Invalid {
                origin: at(origin, &written),
                shown: None,
                what: format!("a mapping but {}", type_of(&value)),
                allowed: "name: value".into(),
            }),
            (None, value) => {
                rest.insert(key, value);
            }
        }
    }
    rest
}

/// Patroni's documents spell out what is not given, also as an empty text, list or mapping.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

const fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a yes or no",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// Something in the document that is no setting.
fn leftover(gathered: &mut Gathered, path: &str, value: Value, origin: &Origin) {
    let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
    match value {
        value if says_nothing(&value) => {}
        Value::Object(map) if vars::is_section(path) => {
            for (key, value) in map {
                leftover(gathered, &join(path, &key), value, origin);
            }
        }
        // Sections of one's own: whether a method of that name is used is known only later.
        value @ Value::Object(_) if matches!(parent, "postgresql" | "bootstrap") => {
            let origin = at(origin, path);
            gathered.extra.insert(path.to_owned(), (origin, value));
        }
        _ => unknown(gathered, path, origin),
    }
}

fn unknown(gathered: &mut Gathered, path: &str, origin: &Origin) {
    let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
    let mistake = Mistake::Unknown {
        name: at(origin, path).to_string(),
        suggestion: suggestion(path),
    };
    // Below the top, a document written for Patroni may hold keys of another version.
    if parent.is_empty() || is_ours(origin) {
        gathered.mistakes.push(mistake);
    } else {
        gathered.warnings.push(mistake.to_string());
    }
}

/// The setting beside it that was meant.
fn suggestion(path: &str) -> Option<String> {
    let (parent, key) = path
        .rsplit_once('.')
        .map_or(("", path), |(parent, key)| (parent, key));
    let siblings = children(parent);
    nearest(key, siblings.iter().map(String::as_str)).map(|key| join(parent, key))
}

/// Reports the sections of one's own that no method refers to (`used`: paths of those that one does); some are misspelt
/// settings.
pub(super) fn settle(gathered: &mut Gathered, used: &[String]) {
    for (path, (origin, _)) in std::mem::take(&mut gathered.extra) {
        if used.contains(&path) {
            continue;
        }
        if suggestion(&path).is_some() {
            unknown(gathered, &path, &origin);
        } else {
            gathered.warnings.push(format!(
                "{origin}: there is no such setting, and no method of that name is used"
            ));
        }
    }
}

/// The keys directly below a path.
fn children(path: &str) -> Vec<String> {
    let below = vars::all().filter(|var| var.effect != Effect::Nothing && var.kind != Kind::Document);
    let keys = below.filter_map(|var| {
        let rest = if path.is_empty() {
            Some(var.path)
        } else {
            var.path.strip_prefix(path)?.strip_prefix('.')
        };
        rest?.split('.').next().map(str::to_owned)
    });
    let mut keys: Vec<String> = keys.collect();
    keys.dedup();
    keys
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

fn variable_of(origin: &Origin) -> String {
    match origin {
        Origin::Variable(name) => name.clone(),
        Origin::File { variable, .. } | Origin::Document { variable, .. } => variable.clone(),
        Origin::Default => String::new(),
    }
}

fn is_ours(origin: &Origin) -> bool {
    variable_of(origin).starts_with(OURS)
}

fn at(origin: &Origin, path: &str) -> Origin {
    Origin::Document {
        variable: variable_of(origin),
        path: path.to_owned(),
    }
}

/// A variable that holds one mapping names itself; a place in the whole document is named with its path.
fn at_if_document(origin: &Origin, path: &str) -> Origin {
    let variable = variable_of(origin);
    let stem = variable.strip_suffix("_FILE").unwrap_or(&variable);
    if stem.ends_with("CONFIGURATION") {
        at(origin, path)
    } else {
        origin.clone()
    }
}
