//! From the environment to settings: which variable gives which setting, and what is wrong with the names.
//! What the settings mean together is decided in `build`.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Map, Value};

use super::{
    document,
    env::Env,
    kind::Kind,
    mistakes::Mistake,
    other_names::{self, Known, OtherName, Via},
    secret,
    settings::{Origin, Settings},
    vars::{self, Effect, Var},
};

/// Longer values are not repeated in a message.
const SHOWN_CHARS_MAX: usize = 80;

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) settings: Settings,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<String>,
    /// Sections of the document under a name of the user's choice (`postgresql.<method>`), by path.
    pub(super) extra: BTreeMap<String, (Origin, Value)>,
}

impl Gathered {
    /// Normalises a value and sets it, or says what is wrong with it.
    pub(super) fn set(&mut self, var: &Var, value: &Value, origin: Origin) {
        if let Some(value) = self.read(var, value, &origin) {
            self.apply(var, value, origin);
        }
    }

    fn apply(&mut self, var: &Var, value: Value, origin: Origin) {
        match var.effect {
            Effect::Unsupported(what) if !is_off(&value) => {
                self.mistakes.push(Mistake::Unsupported {
                    name: origin.to_string(),
                    what: what.to_owned(),
                });
            }
            Effect::Nothing if !is_off(&value) => {
                self.warnings
                    .push(format!("{origin}: accepted, but has no effect"));
            }
            _ => {}
        }
        if vars::is_section(var.path) {
            document::take(self, var.path, value, &origin);
        } else {
            self.settings.set(var.path, value, origin);
        }
    }

    fn read(&mut self, var: &Var, value: &Value, origin: &Origin) -> Option<Value> {
        match var.kind.normalise(value) {
            Ok(value) => Some(value),
            Err(refused) => {
                self.mistakes.push(Mistake::Invalid {
                    origin: origin.clone(),
                    shown: shown(var, value),
                    what: refused.what,
                    allowed: refused.allowed,
                });
                None
            }
        }
    }
}

/// Whether a value says no more than the default would.
fn is_off(value: &Value) -> bool {
    matches!(value, Value::Bool(false))
        || value.as_object().is_some_and(serde_json::Map::is_empty)
        || matches!(value.as_str(), Some("none" | "off" | "false"))
}

fn shown(var: &Var, value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let hidden = var.kind.is_secret()
        || var.kind == Kind::Document
        || var.path.contains(".authentication.")
        || text.chars().count() > SHOWN_CHARS_MAX
        || may_hold_a_secret(&text);
    (!hidden).then_some(text)
}

/// `user:password@host`, or a text that names what it holds.
fn may_hold_a_secret(text: &str) -> bool {
    text.contains('@') || secret::names_a_secret(text)
}

/// One place that gives a setting.
struct Given {
    value: Value,
    origin: Origin,
    weak: bool,
}

/// Reads everything: the document first, then what overrides it.
pub(super) fn gather(env: &dyn Env) -> Gathered {
    let vars: BTreeMap<String, String> = env
        .vars()
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .collect();
    let mut gathered = Gathered::default();
    let (sections, single): (Vec<&Var>, Vec<&Var>) = vars::all().partition(|var| is_broad(var));
    // A mapping of many settings (the document, HOWDAH_BOOTSTRAP_DCS) yields to the variable of one of them.
    take_all(env, &vars, sections, &mut gathered);
    take_leaves(&vars, &mut gathered);
    take_all(env, &vars, single, &mut gathered);
    check_names(&vars, &mut gathered);
    gathered
}

fn take_all(env: &dyn Env, vars: &BTreeMap<String, String>, of: Vec<&Var>, gathered: &mut Gathered) {
    for var in of {
        if let Some(given) = resolve(env, vars, var, gathered) {
            if given.weak && gathered.settings.is_given(var.path) {
                // What an image sets for its own sake does not override a document either.
                continue;
            }
            if var.kind == Kind::Document {
                document::read(gathered, given.value, &given.origin);
            } else {
                gathered.apply(var, given.value, given.origin);
            }
        }
    }
}

/// `HOWDAH__POSTGRESQL__PARAMETERS__WORK_MEM=64MB`: any leaf of the document, by its path in capitals with two
/// underscores between levels. The value is YAML. Over the document, below the variables with names of their own.
fn take_leaves(vars: &BTreeMap<String, String>, gathered: &mut Gathered) {
    for (name, text) in vars {
        let Some(path) = name.strip_prefix(other_names::LEAF) else {
            continue;
        };
        // What is not YAML is a text: `*`, or a password that begins with `{`.
        let value = serde_yaml_ng::from_str(text).unwrap_or_else(|_| Value::from(text.as_str()));
        let mut steps = path.rsplit("__").map(str::to_ascii_lowercase);
        let leaf = steps.next().map(|key| Map::from_iter([(key, value)]));
        let whole = steps.fold(leaf.unwrap_or_default(), |inner, key| {
            Map::from_iter([(key, Value::Object(inner))])
        });
        document::read(gathered, Value::Object(whole), &Origin::Variable(name.clone()));
    }
}

fn is_broad(var: &Var) -> bool {
    var.path.is_empty() || vars::is_section(var.path)
}

/// The value of a setting among all its names; a mistake if they do not agree.
fn resolve(
    env: &dyn Env,
    vars: &BTreeMap<String, String>,
    var: &Var,
    gathered: &mut Gathered,
) -> Option<Given> {
    let mut chosen: Option<Given> = None;
    for other in other_names::names(var) {
        for (text, origin) in texts(env, vars, &other, gathered) {
            let Some(text) = via(var, &other, text, &origin, gathered) else {
                continue;
            };
            let Some(value) = gathered.read(var, &Value::String(text), &origin) else {
                continue;
            };
            let weak = other.weak;
            match &chosen {
                None => chosen = Some(Given { value, origin, weak }),
                Some(first) if first.value == value => {}
                // An image that sets the default itself (`PGDATA`) says nothing against what somebody chose.
                Some(first) if weak && first.weak && is_default(var, &first.value) => {
                    chosen = Some(Given { value, origin, weak });
                }
                Some(_) if weak => {}
                Some(first) => gathered.mistakes.push(Mistake::Conflict {
                    first: first.origin.clone(),
                    second: origin,
                }),
            }
        }
    }
    chosen
}

fn is_default(var: &Var, value: &Value) -> bool {
    match var.default {
        vars::Default::Fixed(text) => var.kind.normalise(&Value::from(text)).ok().as_ref() == Some(value),
        _ => false,
    }
}

/// The text as the setting's own name would have given it; `None` after a mistake.
fn via(
    var: &Var,
    other: &OtherName,
    text: String,
    origin: &Origin,
    gathered: &mut Gathered,
) -> Option<String> {
    match (other.via, var.default) {
        (Via::Port, vars::Default::Fixed(listen)) => {
            let port = Var {
                kind: Kind::Int(1, 65_535),
                ..*var
            };
            let port = gathered.read(&port, &Value::String(text), origin)?;
            let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host);
            Some(format!("{host}:{port}"))
        }
        (Via::Below(folder), _) => Some(format!("{}/{folder}", text.trim_end_matches('/'))),
        _ => Some(text),
    }
}

/// What a name gives, directly and through a file.
fn texts(
    env: &dyn Env,
    vars: &BTreeMap<String, String>,
    other: &OtherName,
    gathered: &mut Gathered,
) -> Vec<(String, Origin)> {
    let mut texts = Vec::new();
    if let Some(text) = vars.get(&other.name) {
        texts.push((text.clone(), Origin::Variable(other.name.clone())));
    }
    let variable = format!("{}_FILE", other.name);
    let Some(path) = vars.get(&variable) else {
        return texts;
    };
    match env.read_file(Path::new(path)) {
        Ok(text) => {
            // Editors and `echo` end a file with a line break that is not part of the value.
            let text = text.strip_suffix('\n').unwrap_or(&text);
            let text = text.strip_suffix('\r').unwrap_or(text);
            if text.is_empty() {
                gathered
                    .warnings
                    .push(format!("{variable}: {path} is empty and counts as not given"));
            } else {
                let path = path.clone();
                texts.push((text.to_owned(), Origin::File { variable, path }));
            }
        }
        Err(error) => gathered.mistakes.push(Mistake::Unreadable {
            variable,
            path: path.clone(),
            reason: error.to_string(),
        }),
    }
    texts
}

/// Variables nobody reads: ours are mistakes (there is no other reader), Patroni's may be meant for Patroni.
fn check_names(vars: &BTreeMap<String, String>, gathered: &mut Gathered) {
    for (name, value) in vars {
        let store = other_names::OTHER_STORE_VARS.iter().find(|(var, _)| var == name);
        let known = match store {
            Some((_, what)) => Known::Unsupported(what),
            // What is wrong with its path has been said.
            None if name.starts_with(other_names::LEAF) => Known::Yes,
            None => other_names::classify(name, value),
        };
        match known {
            Known::Yes => {}
            Known::Unsupported(what) => gathered.mistakes.push(Mistake::Unsupported {
                name: name.clone(),
                what: what.to_owned(),
            }),
            Known::No => {
                let mistake = Mistake::Unknown {
                    name: name.clone(),
                    suggestion: other_names::meant(name),
                };
                if name.starts_with(other_names::OURS) {
                    gathered.mistakes.push(mistake);
                } else {
                    gathered.warnings.push(mistake.to_string());
                }
            }
        }
    }
    for (name, what) in other_names::WITHOUT_EFFECT {
        if vars.contains_key(*name) {
            gathered.warnings.push(format!("{name}: {what}"));
        }
    }
    for name in vars.keys().filter(|name| other_names::is_of_spilo(name)) {
        gathered.warnings.push(format!(
            "{name}: without effect; Spilo has it, this build does not"
        ));
    }
    let sources = vars
        .iter()
        .filter(|(name, value)| other_names::chooses_a_source(name) && *value != "false");
    for (name, _) in sources {
        gathered.mistakes.push(Mistake::Unsupported {
            name: name.clone(),
            what: "making the cluster from another one is".to_owned(),
        });
    }
    if vars
        .keys()
        .any(|name| name.contains("ETCD_") && is_old_etcd(name))
    {
        gathered.warnings.push("ETCD_*: etcd is spoken to with its v3 protocol; data of Patroni's `etcd` (v2) section is not visible there".to_owned());
    }
}

fn is_old_etcd(name: &str) -> bool {
    let short = name
        .strip_prefix(other_names::OURS)
        .or_else(|| name.strip_prefix(other_names::PATRONI));
    short.unwrap_or(name).strip_prefix("ETCD_").is_some_and(|rest| {
        let rest = rest.strip_suffix("_FILE").unwrap_or(rest);
        vars::by_suffix(&format!("ETCD3_{rest}")).is_some()
    })
}
