//! What `howdah check` prints: every setting in force and where it came from. Secrets are not in it.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::{
    DcsConfig, Loaded,
    secret::names_a_secret,
    settings::{Origin, Setting},
    vars::{self, Default, SECTIONS, Var},
};

/// The text in place of a secret.
const HIDDEN: &str = "***";

/// The effective configuration as text: one setting per line, in the sections of the table, then the warnings.
#[must_use]
pub fn render(loaded: &Loaded) -> String {
    let width = vars::all()
        .filter(|var| loaded.origins.get(var.path).is_some())
        .map(|var| var.name().len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for section in SECTIONS {
        let mut lines = String::new();
        for var in section.vars {
            if let Some(setting) = loaded
                .origins
                .get(var.path)
                .filter(|setting| matters(loaded, var, setting))
            {
                // Writing to a String cannot fail.
                let _ = writeln!(
                    lines,
                    "{:width$} = {}  ({})",
                    var.name(),
                    value(var, setting),
                    origin(var, setting)
                );
            }
        }
        if !lines.is_empty() {
            let _ = write!(text, "# {}\n{lines}\n", section.title);
        }
    }
    if loaded.warnings.is_empty() {
        text.push_str("No warnings.\n");
    }
    for warning in &loaded.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

/// Whether a setting has a say: the defaults of the store that was not chosen have none.
fn matters(loaded: &Loaded, var: &Var, setting: &Setting) -> bool {
    let chosen = match loaded.config.dcs {
        DcsConfig::Etcd3(_) => "etcd3.",
        DcsConfig::Embedded(_) => "embedded.",
        DcsConfig::Kubernetes(_) => "kubernetes.",
        DcsConfig::Consul(_) => "consul.",
        DcsConfig::ZooKeeper(_) => "zookeeper.",
    };
    let of_another = ["etcd3.", "embedded.", "kubernetes.", "consul.", "zookeeper."]
        .into_iter()
        .any(|store| store != chosen && var.path.starts_with(store));
    setting.is_given() || !of_another
}

/// A setting's value as text; never a secret.
#[must_use]
pub fn value(var: &Var, setting: &Setting) -> String {
    if var.kind.is_secret() {
        return HIDDEN.to_owned();
    }
    match &setting.value {
        Value::String(text) if text.contains(['\n', '\r']) => Value::from(text.as_str()).to_string(),
        Value::String(text) => text.clone(),
        other => masked(other).to_string(),
    }
}

/// A mapping may hold a password under a name of its own.
fn masked(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let hide = |(key, value): (&String, &Value)| {
                let secret = names_a_secret(key);
                (key.clone(), if secret { HIDDEN.into() } else { masked(value) })
            };
            Value::Object(map.iter().map(hide).collect::<Map<_, _>>())
        }
        Value::Array(items) => items.iter().map(masked).collect(),
        other => other.clone(),
    }
}

fn origin(var: &Var, setting: &Setting) -> String {
    join(setting.origins.iter().map(|origin| match (origin, var.default) {
        (Origin::Default, Default::Computed(how)) => format!("default: {how}"),
        (origin, _) => origin.to_string(),
    }))
}

fn join(origins: impl Iterator<Item = String>) -> String {
    let mut texts: Vec<String> = Vec::new();
    for text in origins {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts.join(" + ")
}
