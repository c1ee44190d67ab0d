//! Settings between reading and building: one value per path of Patroni's tree, and where it came from.

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value};

use crate::model::merge_patch;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave it.
    Default,
    /// A variable.
    Variable(String),
    /// A file a variable points to.
    File {
        /// The `_FILE` variable.
        variable: String,
        /// The file.
        path: String,
    },
    /// A place in the document of `HOWDAH_CONFIGURATION`.
    Document {
        /// The variable that held or pointed to the document.
        variable: String,
        /// Path in the document, with dots.
        path: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Variable(name) => f.write_str(name),
            Self::File { variable, path } => write!(f, "{variable} ({path})"),
            Self::Document { variable, path } if path.is_empty() => f.write_str(variable),
            Self::Document { variable, path } => write!(f, "{variable}: {path}"),
        }
    }
}

/// One setting.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Its value, in the normal form of its kind.
    pub value: Value,
    /// Where it came from; several places only for mappings, which are merged. Never empty.
    pub origins: Vec<Origin>,
}

impl Setting {
    /// Whether anybody gave it.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.origins.iter().any(|origin| *origin != Origin::Default)
    }
}

/// All settings by path (`restapi.listen`). Values may be secret: this type is not for logs; see `check`.
#[derive(Clone, PartialEq, Default)]
pub struct Settings(BTreeMap<String, Setting>);

impl Settings {
    /// Sets a value from a stronger origin: mappings are merged into, anything else is replaced.
    pub(super) fn set(&mut self, path: &str, value: Value, origin: Origin) {
        match (self.0.get_mut(path), value) {
            (Some(old), Value::Object(new)) if old.value.is_object() => {
                if let Value::Object(map) = &mut old.value {
                    merge_patch(map, &new);
                }
                old.origins.push(origin);
            }
            (_, value) => {
                let origins = vec![origin];
                self.0.insert(path.to_owned(), Setting { value, origins });
            }
        }
    }

    /// Sets a value nobody gave.
    pub(super) fn set_default(&mut self, path: &str, value: impl Into<Value>) {
        self.0.entry(path.to_owned()).or_insert_with(|| Setting {
            value: value.into(),
            origins: vec![Origin::Default],
        });
    }

    /// Replaces a value by what became of it; the origins stay.
    pub(super) fn amend(&mut self, path: &str, value: Value) {
        if let Some(setting) = self.0.get_mut(path) {
            setting.value = value;
        }
    }

    /// The setting at a path.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Setting> {
        self.0.get(path)
    }

    /// Whether somebody gave the setting at a path.
    #[must_use]
    pub fn is_given(&self, path: &str) -> bool {
        self.get(path).is_some_and(Setting::is_given)
    }

    /// All settings in the order of their paths.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Setting)> {
        self.0.iter().map(|(path, setting)| (path.as_str(), setting))
    }

    pub(super) fn value(&self, path: &str) -> Option<&Value> {
        self.get(path).map(|setting| &setting.value)
    }

    pub(super) fn text(&self, path: &str) -> Option<String> {
        self.value(path)?.as_str().map(str::to_owned)
    }

    pub(super) fn int(&self, path: &str) -> Option<i64> {
        self.value(path)?.as_i64()
    }

    pub(super) fn flag(&self, path: &str) -> Option<bool> {
        self.value(path)?.as_bool()
    }

    pub(super) fn list(&self, path: &str) -> Vec<String> {
        let items = self.value(path).and_then(Value::as_array);
        let texts = items.into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    }

    pub(super) fn map(&self, path: &str) -> Map<String, Value> {
        let map = self.value(path).and_then(Value::as_object);
        map.cloned().unwrap_or_default()
    }

    /// Names the origins of a setting, for a message.
    pub(super) fn origin(&self, path: &str) -> String {
        let origins = self.get(path).map(|setting| setting.origins.as_slice());
        let texts: Vec<String> = origins
            .unwrap_or_default()
            .iter()
            .map(Origin::to_string)
            .collect();
        texts.join(", ")
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origins = self.0.iter().map(|(path, setting)| (path, &setting.origins));
        f.debug_map().entries(origins).finish()
    }
}
