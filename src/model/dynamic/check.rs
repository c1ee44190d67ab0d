//! What is wrong with a `/config` document, said in words (contract: environment §4).
//!
//! What is stored is never refused: every member goes on with what it can read. But a value that is not used as it was
//! written must not look as if it were, and who writes one through the REST API or `edit-config` has to insist.

use std::fmt;

use serde_json::{Map, Value};

use super::{
    IgnoreSlot, StandbyCluster, Timing,
    read::{read_bool, read_duration, read_int},
    slots::{SLOT_KEYS, ignore_slots, permanent_slots},
};

/// Something in the document that is not used as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// Where, with dots: `postgresql.use_slots`.
    pub key: String,
    /// What stands there, as JSON; cut short.
    pub value: String,
    /// What is the matter with it.
    pub trouble: Trouble,
}

/// Why something is not used as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It cannot be read as what the key means; this is expected there.
    Unreadable(String),
    /// It is bent, or has no effect; the words say how.
    Bent(String),
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, trouble } = self;
        match trouble {
            Trouble::Unreadable(expected) => {
                write!(
                    f,
                    "{key} = {value}: {expected} is expected, the default holds instead"
                )
            }
            Trouble::Bent(how) => write!(f, "{key} = {value}: {how}"),
        }
    }
}

/// What the value of a key may be.
enum Kind {
    /// A whole number from this to that.
    Int(i64, i64),
    /// Yes or no.
    Bool,
    /// Yes, no or this word.
    BoolOr(&'static str),
    /// A number of seconds or a number with a unit.
    Time,
    /// `name: value` pairs.
    Map,
    /// Lines.
    List,
    /// A list, or one text with commas.
    ListOrText,
    /// A list of options, or `name: value` pairs.
    Options,
    /// One text.
    Text,
}

const MANY: i64 = i64::MAX;
/// Timeouts the whole cluster depends on.
const DAY: i64 = 86_400;

/// Keys of the document.
const TOP: &[(&str, Kind)] = &[
    ("ttl", Kind::Int(3, DAY)),
    ("loop_wait", Kind::Int(1, DAY)),
    ("retry_timeout", Kind::Int(1, DAY)),
    ("maximum_lag_on_failover", Kind::Int(0, MANY)),
    ("maximum_lag_on_syncnode", Kind::Int(-1, MANY)),
    ("max_timelines_history", Kind::Int(0, MANY)),
    ("check_timeline", Kind::Bool),
    ("primary_start_timeout", Kind::Int(0, MANY)),
    ("master_start_timeout", Kind::Int(0, MANY)),
    ("primary_stop_timeout", Kind::Int(0, MANY)),
    ("master_stop_timeout", Kind::Int(0, MANY)),
    ("primary_race_backoff", Kind::Int(0, MANY)),
    ("synchronous_mode", Kind::BoolOr("quorum")),
    ("synchronous_mode_strict", Kind::Bool),
    ("synchronous_node_count", Kind::Int(1, MANY)),
    ("failsafe_mode", Kind::Bool),
    ("pause", Kind::Bool),
    ("member_slots_ttl", Kind::Time),
    ("slots", Kind::Map),
    ("permanent_slots", Kind::Map),
    ("permanent_replication_slots", Kind::Map),
    ("ignore_slots", Kind::List),
    ("standby_cluster", Kind::Map),
    ("postgresql", Kind::Map),
    // Other software's part of the document.
    ("citus", Kind::Map),
];

/// Keys of its `postgresql` part that have a meaning here.
const POSTGRESQL: &[(&str, Kind)] = &[
    ("use_pg_rewind", Kind::Bool),
    ("use_slots", Kind::Bool),
    ("remove_data_directory_on_rewind_failure", Kind::Bool),
    ("remove_data_directory_on_diverged_timelines", Kind::Bool),
    ("parameters", Kind::Map),
    ("parameters_primary", Kind::Map),
    ("parameters_replica", Kind::Map),
    ("parameters_standby_leader", Kind::Map),
    ("pg_hba", Kind::List),
    ("pg_hba_primary", Kind::List),
    ("pg_hba_replica", Kind::List),
    ("pg_hba_standby_leader", Kind::List),
    ("pg_ident", Kind::List),
    ("pg_ident_primary", Kind::List),
    ("pg_ident_replica", Kind::List),
    ("pg_ident_standby_leader", Kind::List),
    ("recovery_conf", Kind::Map),
    ("callbacks", Kind::Map),
    ("pre_promote", Kind::Text),
    ("before_stop", Kind::Text),
    ("rewind", Kind::Options),
    ("basebackup", Kind::Options),
    ("create_replica_methods", Kind::ListOrText),
    ("create_replica_method", Kind::ListOrText),
];

/// Keys of the `postgresql` part that only a member itself can set (contract: environment §1).
const OF_A_MEMBER: &[&str] = &[
    "connect_address",
    "proxy_address",
    "listen",
    "config_dir",
    "data_dir",
    "pgpass",
    "authentication",
];

/// Everything in the document that is not used as it was written.
#[must_use]
pub fn remarks(document: &Map<String, Value>) -> Vec<Remark> {
    let mut found = Vec::new();
    for (key, value) in document {
        match TOP.iter().find(|(name, _)| name == key) {
            Some((_, kind)) => {
                found.extend(objection(kind, value).map(|trouble| remark(key, value, trouble)))
            }
            None if value.is_null() => {}
            None => found.push(remark(key, value, Trouble::Bent(unknown(key, TOP)))),
        }
    }
    let section = document.get("postgresql").and_then(Value::as_object);
    for (key, value) in section.into_iter().flatten() {
        let path = format!("postgresql.{key}");
        if let Some((_, kind)) = POSTGRESQL.iter().find(|(name, _)| name == key) {
            found.extend(objection(kind, value).map(|trouble| remark(&path, value, trouble)));
        } else if OF_A_MEMBER.contains(&key.as_str()) && !value.is_null() {
            found.push(remark(
                &path,
                value,
                Trouble::Bent("has no effect: only a member itself sets it".to_owned()),
            ));
        } else if !value.is_null() && !value.is_object() && near(key, POSTGRESQL).is_some() {
            // Sections of one's own have any name; what looks like a slip of the pen is worth a word.
            found.push(remark(&path, value, Trouble::Bent(unknown(key, POSTGRESQL))));
        }
    }
    found.extend(timing(document));
    found.extend(slots(document));
    found.extend(standby(document));
    found
}

/// What is wrong with a document and was not wrong with the one before: who changes one thing answers for that alone.
#[must_use]
pub fn new_remarks(before: &Map<String, Value>, after: &Map<String, Value>) -> Vec<Remark> {
    let known = remarks(before);
    let mut found = remarks(after);
    found.retain(|remark| !known.contains(remark));
    found
}

/// Keys of the document that mean something, with dots.
pub fn dynamic_names() -> impl Iterator<Item = String> {
    let top = TOP.iter().map(|(name, _)| (*name).to_owned());
    top.chain(POSTGRESQL.iter().map(|(name, _)| format!("postgresql.{name}")))
}

/// Slots that are left out, and rules that mean none.
fn slots(document: &Map<String, Value>) -> Vec<Remark> {
    const HOW: &str = "is left out: a name is 1 to 63 of a-z, 0-9 and _, a type is physical or logical, and a logical slot \
                       needs database and plugin";
    let read = permanent_slots(document);
    let sections = SLOT_KEYS
        .iter()
        .find_map(|key| Some((*key, document.get(*key)?.as_object()?)));
    let mut found = Vec::new();
    if let Some((key, section)) = sections {
        for (name, value) in section.iter().filter(|(name, _)| !read.contains_key(*name)) {
            found.push(remark(
                &format!("{key}.{name}"),
                value,
                Trouble::Bent(HOW.to_owned()),
            ));
        }
    }
    if ignore_slots(document).contains(&IgnoreSlot::default()) {
        let how = "a rule without name, type, database and plugin means no slot".to_owned();
        found.push(remark(
            "ignore_slots",
            &document["ignore_slots"],
            Trouble::Bent(how),
        ));
    }
    found
}

fn standby(document: &Map<String, Value>) -> Option<Remark> {
    let section = document.get("standby_cluster")?;
    let meant = section.as_object().is_some_and(|section| !section.is_empty());
    let how = "has no effect: it names no source (host, port or restore_command)".to_owned();
    (meant && StandbyCluster::from_map(document).is_none())
        .then(|| remark("standby_cluster", section, Trouble::Bent(how)))
}

fn remark(key: &str, value: &Value, trouble: Trouble) -> Remark {
    const SHOWN: usize = 60;
    let text = value.to_string();
    let shown = match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    };
    Remark {
        key: key.to_owned(),
        value: shown,
        trouble,
    }
}

/// Why a value is not used as it stands. `null` means "not given" everywhere.
fn objection(kind: &Kind, value: &Value) -> Option<Trouble> {
    let wrong = |what: &str| Some(Trouble::Unreadable(what.to_owned()));
    let bent = |how: String| Some(Trouble::Bent(how));
    if value.is_null() {
        return None;
    }
    match kind {
        Kind::Int(least, most) => match read_int(value) {
            None => wrong("a whole number"),
            Some(number) if number < *least => bent(format!("the least is {least}, which holds instead")),
            Some(number) if number > *most => bent(format!("the most is {most}, which holds instead")),
            Some(_) => None,
        },
        Kind::Bool => read_bool(value).is_none().then(|| wrong("true or false"))?,
        Kind::BoolOr(word) => {
            let is_word = value
                .as_str()
                .is_some_and(|text| text.trim().eq_ignore_ascii_case(word));
            (!is_word && read_bool(value).is_none())
                .then(|| Trouble::Unreadable(format!("true, false or {word}")))
        }
        Kind::Time => read_duration(value)
            .is_none()
            .then(|| wrong("a time (1800, 30min)"))?,
        Kind::Map => (!value.is_object()).then(|| wrong("a mapping (name: value)"))?,
        Kind::List => {
            let lines = value.as_array();
            lines.is_none().then(|| wrong("a list"))?
        }
        Kind::ListOrText => (!value.is_array() && !value.is_string()).then(|| wrong("a list"))?,
        Kind::Options => (!value.is_array() && !value.is_object()).then(|| wrong("a list of options"))?,
        Kind::Text => (!value.is_string()).then(|| wrong("a text"))?,
    }
}

fn unknown(key: &str, known: &[(&str, Kind)]) -> String {
    match near(key, known) {
        Some(meant) => format!("has no effect: there is no such key; did you mean {meant}?"),
        None => "has no effect: there is no such key".to_owned(),
    }
}

fn near<'a>(key: &str, known: &[(&'a str, Kind)]) -> Option<&'a str> {
    known
        .iter()
        .map(|(name, _)| (*name, strsim::damerau_levenshtein(name, key)))
        .filter(|(name, distance)| *distance <= 1 + name.len() / 8)
        .min_by_key(|(_, distance)| *distance)
        .map(|(name, _)| name)
}

/// The rule that ties the three times together is kept by every member for itself, in silence unless it is said here.
fn timing(document: &Map<String, Value>) -> Option<Remark> {
    let given = |key: &str, default: i64| match document.get(key) {
        None | Some(Value::Null) => default,
        Some(value) => read_int(value).unwrap_or(default),
    };
    let (ttl, loop_wait, retry) = (
        given("ttl", 30),
        given("loop_wait", 10),
        given("retry_timeout", 10),
    );
    // Out of range: said already.
    let fits = loop_wait.saturating_add(retry.saturating_mul(2)) <= ttl;
    if fits || ttl < 3 || loop_wait < 1 || retry < 1 {
        return None;
    }
    let used = Timing::adjusted(ttl, loop_wait, retry);
    let how = format!(
        "loop_wait + 2 * retry_timeout must not exceed ttl; used are loop_wait {} and retry_timeout {}",
        used.loop_wait.as_secs(),
        used.retry_timeout.as_secs()
    );
    let shown = format!("{ttl}, loop_wait = {loop_wait}, retry_timeout = {retry}");
    Some(Remark {
        key: "ttl".to_owned(),
        value: shown,
        trouble: Trouble::Bent(how),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(document: Value) -> Vec<String> {
        let document = document.as_object().expect("an object");
        remarks(document).iter().map(Remark::to_string).collect()
    }

    #[test]
    fn a_document_as_people_write_it_is_in_order() {
        let document = json!({
            "ttl": 30, "loop_wait": "10", "retry_timeout": 10, "maximum_lag_on_failover": 1e6,
            "synchronous_mode": "quorum", "pause": null, "member_slots_ttl": "30min", "slots": {"a": null},
            "postgresql": {
                "use_slots": "on", "parameters": {"work_mem": "8MB"}, "parameters_primary": {"jit": false},
                "pg_hba": ["local all all trust"], "my_method": {"command": "x"}, "callbacks": {"on_start": "x"},
                "basebackup": [{"max-rate": "100M"}], "custom_conf": "/x"
            }
        });
        assert_eq!(said(document), [""; 0]);
    }

    #[test]
    fn what_is_not_used_as_it_stands_is_said_with_what_is_allowed() {
        for (document, expected) in [
            (
                json!({"ttl": "soon"}),
                "ttl = \"soon\": a whole number is expected, the default holds instead",
            ),
            (
                json!({"ttl": 2, "loop_wait": 1, "retry_timeout": 1}),
                "ttl = 2: the least is 3, which holds instead",
            ),
            (
                json!({"pause": "perhaps"}),
                "pause = \"perhaps\": true or false is expected, the default holds instead",
            ),
            (
                json!({"synchronous_mode": "any"}),
                "synchronous_mode = \"any\": true, false or quorum is expected, the default holds instead",
            ),
            (
                json!({"slots": {"Mine": {}, "theirs": {}}}),
                "slots.Mine = {}: is left out: a name is 1 to 63 of a-z, 0-9 and _, a type is physical or logical, and a \
                 logical slot needs database and plugin",
            ),
            (
                json!({"ignore_slots": [{"nmae": "mine"}]}),
                "ignore_slots = [{\"nmae\":\"mine\"}]: a rule without name, type, database and plugin means no slot",
            ),
            (
                json!({"standby_cluster": {"hst": "h"}}),
                "standby_cluster = {\"hst\":\"h\"}: has no effect: it names no source (host, port or restore_command)",
            ),
            (
                json!({"member_slots_ttl": "1 week"}),
                "member_slots_ttl = \"1 week\": a time (1800, 30min) is expected, the default holds instead",
            ),
            (
                json!({"loopwait": 5}),
                "loopwait = 5: has no effect: there is no such key; did you mean loop_wait?",
            ),
            (
                json!({"colour": "blue"}),
                "colour = \"blue\": has no effect: there is no such key",
            ),
            (
                json!({"postgresql": {"use_pgrewind": true}}),
                "postgresql.use_pgrewind = true: has no effect: there is no such key; did you mean use_pg_rewind?",
            ),
            (
                json!({"postgresql": {"parameters": []}}),
                "postgresql.parameters = []: a mapping (name: value) is expected, the default holds instead",
            ),
            (
                json!({"postgresql": {"data_dir": "/x"}}),
                "postgresql.data_dir = \"/x\": has no effect: only a member itself sets it",
            ),
            (
                json!({"ttl": 20}),
                "ttl = 20, loop_wait = 10, retry_timeout = 10: loop_wait + 2 * retry_timeout must not exceed ttl; used are loop_wait 1 and retry_timeout 9",
            ),
        ] {
            assert_eq!(said(document.clone()), [expected], "{document}");
        }
        let long = said(json!({"postgresql": {"pg_hba": "é".repeat(100)}}));
        assert!(long[0].len() < 200 && long[0].contains('…'), "{long:?}");
    }
}
