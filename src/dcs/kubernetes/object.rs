//! The objects of a cluster, reduced to what matters here, and how the keys live in their annotations (contract: DCS
//! layout §9). Pure: nothing here talks to anybody.
//!
//! Several keys share one object, so its `resourceVersion` says nothing about one key. A key's version is a digest of
//! its annotations and of a mark that every conditional write of ours leaves there. The mark also makes a write of the
//! same value a change: the API server drops a patch that changes nothing, and a late write would then still find the
//! `resourceVersion` it was sent for.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    dcs::Key,
    model::{Entry, Version},
};

/// Annotations of an object, or what a patch makes of them (`null` removes one).
pub(super) type Patch = Map<String, Value>;

/// What all objects have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Meta {
    pub(super) name: String,
    pub(super) resource_version: String,
    pub(super) uid: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    /// Raised by each change of the spec.
    pub(super) generation: i64,
    pub(super) deletion_timestamp: Option<String>,
}

/// Any object; what its kind does not have is null.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Object {
    pub(super) metadata: Meta,
    pub(super) spec: Value,
    pub(super) status: Value,
    /// Of Endpoints.
    pub(super) subsets: Value,
    /// Of an EndpointSlice.
    pub(super) endpoints: Value,
}

/// A list of them.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct List {
    pub(super) metadata: Meta,
    pub(super) items: Vec<Object>,
}

impl Object {
    pub(super) fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.get(name).map(String::as_str)
    }

    /// A pod that has published itself and has not ended for good.
    pub(super) fn member(&self) -> Option<&str> {
        let over = matches!(self.status["phase"].as_str(), Some("Succeeded" | "Failed"));
        self.annotation(STATUS).filter(|_| !over)
    }
}

/// Annotation of a pod that holds its member key.
pub(super) const STATUS: &str = "status";

/// Where a key lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// With the lock.
    Leader,
    Config,
    Failover,
    Sync,
}

impl Place {
    pub(super) const ALL: [Self; 4] = [Self::Leader, Self::Config, Self::Failover, Self::Sync];

    pub(super) const fn of(key: Key) -> Self {
        match key {
            Key::Status | Key::Failsafe => Self::Leader,
            Key::Initialize | Key::Config | Key::History => Self::Config,
            Key::Failover => Self::Failover,
            Key::Sync => Self::Sync,
        }
    }

    const fn keys(self) -> &'static [Key] {
        match self {
            Self::Leader => &[Key::Status, Key::Failsafe],
            Self::Config => &[Key::Initialize, Key::Config, Key::History],
            Self::Failover => &[Key::Failover],
            Self::Sync => &[Key::Sync],
        }
    }
}

const fn fields(key: Key) -> &'static [&'static str] {
    match key {
        Key::Initialize => &["initialize"],
        Key::Config => &["config"],
        Key::History => &["history"],
        Key::Failsafe => &["failsafe"],
        Key::Status => &["optime", "slots", "retain_slots"],
        Key::Failover => &["leader", "member", "scheduled_at"],
        Key::Sync => &["leader", "sync_standby", "quorum"],
    }
}

/// The annotation with the mark of the last write; other software leaves it alone. Nobody compares and sets the rest.
const fn mark(key: Key) -> Option<&'static str> {
    match key {
        Key::Initialize => Some("howdah.write.initialize"),
        Key::Config => Some("howdah.write.config"),
        Key::Failsafe => Some("howdah.write.failsafe"),
        Key::Failover => Some("howdah.write.failover"),
        Key::Sync => Some("howdah.write.sync"),
        Key::Status | Key::History => None,
    }
}

fn parts(key: Key) -> impl Iterator<Item = &'static str> {
    fields(key).iter().copied().chain(mark(key))
}

/// The version of a key; `None` if the key is not there.
pub(super) fn version(key: Key, object: &Object) -> Option<Version> {
    let mut digest = DefaultHasher::new();
    let mut there = false;
    for name in parts(key) {
        let value = object.annotation(name);
        there |= value.is_some();
        value.hash(&mut digest);
    }
    there.then(|| Version(digest.finish() >> 1))
}

/// Whether the object bears the mark of this write.
pub(super) fn bears(key: Key, object: &Object, write: &str) -> bool {
    mark(key).is_some_and(|name| object.annotation(name) == Some(write))
}

/// The annotations that make `key` read as `value` (`None`: go away). `write` is the mark.
pub(super) fn patch(key: Key, value: Option<&str>, write: &str) -> Patch {
    let parsed = value.and_then(|text| serde_json::from_str::<Value>(text).ok());
    let part = |name: &str| match (key, &parsed) {
        (Key::Initialize | Key::Config | Key::History | Key::Failsafe, _) => {
            value.map_or(Value::Null, Value::from)
        }
        (_, Some(Value::Object(object))) => object.get(name).map_or(Value::Null, text),
        (Key::Status, Some(position @ Value::Number(_))) if name == "optime" => text(position),
        _ => Value::Null,
    };
    let mut patch: Patch = fields(key)
        .iter()
        .map(|name| ((*name).to_owned(), part(name)))
        .collect();
    if let Some(name) = mark(key) {
        patch.insert(name.to_owned(), value.map_or(Value::Null, |_| Value::from(write)));
    }
    patch
}

/// Annotations are texts: lists and mappings are JSON in them.
fn text(value: &Value) -> Value {
    match value {
        Value::Null => Value::Null,
        Value::String(text) => Value::from(text.as_str()),
        other => Value::from(other.to_string()),
    }
}

/// The keys in an object as the other stores hold them.
pub(super) fn entries(place: Place, object: &Object) -> Vec<Entry> {
    let entry = |key: &Key| {
        Some(Entry {
            path: key.path().to_owned(),
            version: version(*key, object)?,
            value: value(*key, object),
            lease: 0,
        })
    };
    place.keys().iter().filter_map(entry).collect()
}

fn value(key: Key, object: &Object) -> String {
    let field = |name: &str| object.annotation(name);
    let read = |name: &str| -> Option<Value> {
        let text = field(name)?;
        Some(match (key, name) {
            (Key::Failover, _) | (Key::Sync, "leader" | "sync_standby") => Value::from(text),
            _ => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        })
    };
    match key {
        Key::Status | Key::Failover | Key::Sync => {
            let there = fields(key)
                .iter()
                .filter_map(|name| Some(((*name).to_owned(), read(name)?)));
            Value::Object(there.collect()).to_string()
        }
        _ => fields(key)
            .first()
            .and_then(|name| field(name))
            .unwrap_or_default()
            .to_owned(),
    }
}

/// The lock as it is recorded. Two records that are equal mean that nobody has renewed between two looks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Never empty.
    pub(super) leader: String,
    pub(super) acquired: String,
    pub(super) renewed: String,
    /// Seconds.
    pub(super) ttl: String,
    pub(super) transitions: String,
}

impl Record {
    /// What stands in annotations, as Patroni writes it.
    fn of_annotations(object: &Object) -> Option<Self> {
        let field = |name: &str| object.annotation(name).unwrap_or_default().to_owned();
        let leader = field("leader");
        (!leader.is_empty()).then(|| Self {
            leader,
            acquired: field("acquireTime"),
            renewed: field("renewTime"),
            ttl: field("ttl"),
            transitions: field("transitions"),
        })
    }

    /// What stands in a `coordination.k8s.io` Lease.
    fn of_lease(object: &Object) -> Option<Self> {
        let field = |name: &str| match &object.spec[name] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let leader = field("holderIdentity");
        (!leader.is_empty()).then(|| Self {
            leader,
            acquired: field("acquireTime"),
            renewed: field("renewTime"),
            ttl: field("leaseDurationSeconds"),
            transitions: field("leaseTransitions"),
        })
    }

    pub(super) fn of(object: &Object, form: Form) -> Option<Self> {
        match form {
            Form::Annotations => Self::of_annotations(object),
            Form::Lease => Self::of_lease(object),
        }
    }

    /// Names the tenure: when the lock was taken, in microseconds since 1970. 0 if nobody wrote that down.
    pub(super) fn lease(&self) -> i64 {
        micros(&self.acquired)
    }

    /// Whether this is what `other` was written as; servers write times in their own way.
    pub(super) fn is_same_write(&self, other: &Self) -> bool {
        self.leader == other.leader
            && self.lease() == other.lease()
            && micros(&self.renewed) == micros(&other.renewed)
    }

    /// What a patch makes of the object, beside its metadata, and of its annotations.
    pub(super) fn patch(&self, form: Form) -> (Patch, Value) {
        match form {
            Form::Annotations => {
                let texts = [
                    ("leader", &self.leader),
                    ("acquireTime", &self.acquired),
                    ("renewTime", &self.renewed),
                    ("ttl", &self.ttl),
                    ("transitions", &self.transitions),
                ];
                let patch = texts.map(|(name, text)| (name.to_owned(), Value::from(text.as_str())));
                (patch.into_iter().collect(), Value::Null)
            }
            Form::Lease => {
                let number = |text: &str| text.parse::<i32>().unwrap_or(1);
                let spec = json!({
                    "holderIdentity": self.leader,
                    "acquireTime": self.acquired,
                    "renewTime": self.renewed,
                    "leaseDurationSeconds": number(&self.ttl),
                    "leaseTransitions": number(&self.transitions),
                });
                (Patch::new(), spec)
            }
        }
    }

    /// The patch of a released lock; the rest of the record stays, as Patroni leaves it.
    pub(super) fn released(form: Form) -> (Patch, Value) {
        match form {
            Form::Annotations => (
                Patch::from_iter([("leader".to_owned(), Value::Null)]),
                Value::Null,
            ),
            Form::Lease => (Patch::new(), json!({"holderIdentity": null})),
        }
    }
}

/// How often the lock has changed hands, also while nobody holds it.
pub(super) fn transitions(object: &Object, form: Form) -> u32 {
    let there = match form {
        Form::Annotations => object
            .annotation("transitions")
            .and_then(|text| text.parse().ok()),
        Form::Lease => object.spec["leaseTransitions"]
            .as_u64()
            .and_then(|n| u32::try_from(n).ok()),
    };
    there.unwrap_or(0)
}

/// How the lock is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Annotations,
    Lease,
}

fn micros(time: &str) -> i64 {
    time.parse::<jiff::Timestamp>()
        .map_or(0, jiff::Timestamp::as_microsecond)
}

/// A time as Patroni writes it; also what a Lease takes.
pub(super) fn time(micros: i64) -> String {
    jiff::Timestamp::from_microsecond(micros)
        .unwrap_or_default()
        .strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00")
        .to_string()
}

/// What the HA loop must look at when it changes, of one object.
pub(super) fn digest(place: Place, object: &Object, form: Form) -> String {
    let keys = |keys: &[Key]| {
        let versions = keys
            .iter()
            .map(|key| version(*key, object).map_or(0, |v| v.0).to_string());
        versions.collect::<Vec<_>>().join(",")
    };
    match place {
        Place::Leader => Record::of(object, form).map_or_else(String::new, |record| {
            format!("{}@{}", record.leader, record.lease())
        }),
        Place::Config => keys(&[Key::Initialize, Key::Config]),
        Place::Failover => keys(&[Key::Failover]),
        Place::Sync => keys(&[Key::Sync]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(annotations: &[(&str, &str)]) -> Object {
        let mut object = Object::default();
        for (name, value) in annotations {
            object
                .metadata
                .annotations
                .insert((*name).into(), (*value).into());
        }
        object
    }

    /// As the API server merges a patch.
    fn patched(object: &Object, patch: Patch) -> Object {
        let mut object = object.clone();
        for (name, value) in patch {
            match value {
                Value::Null => drop(object.metadata.annotations.remove(&name)),
                Value::String(text) => drop(object.metadata.annotations.insert(name, text)),
                other => unreachable!("an annotation is a text: {other}"),
            }
        }
        object
    }

    #[test]
    fn what_is_written_is_read_again() {
        for (key, text) in [
            (Key::Initialize, ""),
            (Key::Initialize, "7320"),
            (Key::Config, r#"{"ttl":30}"#),
            (Key::History, r#"[[1,5,"x"]]"#),
            (Key::Failsafe, r#"{"a":"http://a/patroni"}"#),
            (
                Key::Status,
                r#"{"optime":7,"slots":{"a":7},"retain_slots":["b"]}"#,
            ),
            (
                Key::Failover,
                r#"{"leader":"a","member":"2","scheduled_at":"2026-02-01T03:00:00+00:00"}"#,
            ),
            (Key::Failover, "{}"),
            (Key::Sync, r#"{"leader":"a","sync_standby":"b,c","quorum":1}"#),
            (Key::Sync, "{}"),
        ] {
            let there = patched(&Object::default(), patch(key, Some(text), "m1"));
            let found = entries(Place::of(key), &there);
            assert_eq!(found.len(), 1, "{key:?}");
            assert_eq!(
                (found[0].path.as_str(), found[0].value.as_str()),
                (key.path(), text)
            );
            let gone = patched(&there, patch(key, None, "m2"));
            assert_eq!(gone, Object::default(), "{key:?} leaves something behind");
        }
    }

    #[test]
    fn the_annotations_are_those_of_patroni() {
        let leader = object(&[
            ("optime", "83886408"),
            ("slots", r#"{"n1": 83886408}"#),
            ("retain_slots", r#"["n1"]"#),
        ]);
        let found = entries(Place::Leader, &leader);
        assert_eq!(
            found[0].value,
            r#"{"optime":83886408,"slots":{"n1":83886408},"retain_slots":["n1"]}"#
        );
        let sync = object(&[("leader", "n1"), ("quorum", "0"), ("sync_standby", "n2")]);
        assert_eq!(
            entries(Place::Sync, &sync)[0].value,
            r#"{"leader":"n1","sync_standby":"n2","quorum":0}"#
        );
        assert_eq!(entries(Place::Failover, &Object::default()), []);
        let bare = patched(&Object::default(), patch(Key::Status, Some("55"), ""));
        assert_eq!(bare.annotation("optime"), Some("55"));
    }

    #[test]
    fn a_key_has_its_own_version_and_every_write_a_new_one() {
        let first = patched(&Object::default(), patch(Key::Config, Some("{}"), "m1"));
        let same = patched(&first, patch(Key::History, Some("[]"), "m2"));
        assert_eq!(version(Key::Config, &first), version(Key::Config, &same));
        assert_eq!(
            digest(Place::Config, &first, Form::Annotations),
            digest(Place::Config, &same, Form::Annotations)
        );
        let again = patched(&same, patch(Key::Config, Some("{}"), "m3"));
        assert_ne!(version(Key::Config, &first), version(Key::Config, &again));
        assert!(bears(Key::Config, &again, "m3") && !bears(Key::Config, &again, "m1"));
        // Patroni changes the value and leaves the mark.
        let foreign = patched(
            &again,
            Patch::from_iter([("config".into(), r#"{"ttl":9}"#.into())]),
        );
        assert_ne!(version(Key::Config, &foreign), version(Key::Config, &again));
        assert_eq!(version(Key::Sync, &Object::default()), None);
    }

    #[test]
    fn times_are_written_as_patroni_writes_them() {
        assert_eq!(time(1_767_600_000_100_000), "2026-01-05T08:00:00.100000+00:00");
        assert_eq!(micros("2026-01-05T08:00:00.100000+00:00"), 1_767_600_000_100_000);
        assert_eq!(micros("2026-01-05T08:00:00.100000Z"), 1_767_600_000_100_000);
        assert_eq!(micros("2026-01-05T08:00:00+00:00"), 1_767_600_000_000_000);
        assert_eq!(micros("yesterday"), 0);
    }

    #[test]
    fn a_record_is_the_same_in_both_forms() {
        let record = Record {
            leader: "n1".into(),
            acquired: time(1_767_600_000_000_000),
            renewed: time(1_767_600_005_000_000),
            ttl: "30".into(),
            transitions: "4".into(),
        };
        let (annotations, _) = record.patch(Form::Annotations);
        let there = patched(&Object::default(), annotations);
        assert_eq!(Record::of(&there, Form::Annotations).as_ref(), Some(&record));
        assert_eq!(transitions(&there, Form::Annotations), 4);
        let free = patched(&there, Record::released(Form::Annotations).0);
        assert_eq!(Record::of(&free, Form::Annotations), None);
        assert_eq!(transitions(&free, Form::Annotations), 4, "counted on from there");
        let lease = Object {
            spec: record.patch(Form::Lease).1,
            ..Object::default()
        };
        assert_eq!(Record::of(&lease, Form::Lease).as_ref(), Some(&record));
        assert_eq!(transitions(&lease, Form::Lease), 4);
    }

    #[test]
    fn a_pod_that_has_ended_is_no_member() {
        let mut pod = object(&[("status", "{}")]);
        assert_eq!(pod.member(), Some("{}"));
        pod.status = json!({"phase": "Failed"});
        assert_eq!(pod.member(), None);
        assert_eq!(object(&[]).member(), None);
    }
}
