//! Methods of the operator's own: how the cluster is created, and how replicas are made (contract: bootstrap and images
//! §3.2, §4). Their sections exist in the document only.

use serde_json::{Map, Value};

use super::Builder;
use crate::{
    config::types::Config,
    model::{BASEBACKUP, BootstrapMethod, ReplicaMethod, read_methods},
};

const METHODS: &str = "postgresql.create_replica_methods";
const METHOD: &str = "bootstrap.method";
const INITDB: &str = "initdb";

impl Builder {
    /// A method that was asked for and cannot be used must not turn into an empty cluster.
    pub(super) fn bootstrap_method(&mut self) -> Option<BootstrapMethod> {
        let name = self.text(METHOD);
        if name == INITDB {
            return None;
        }
        match BootstrapMethod::read(&name, self.section("bootstrap", &name).as_ref()) {
            Ok(method) => Some(method),
            Err(error) => {
                self.inconsistent(&[METHOD], &format!("bootstrap.{name}: {error}"));
                None
            }
        }
    }

    /// The names in order (none if nobody gave them) and the sections they may refer to. The cluster's configuration may
    /// name methods too, which are described here.
    pub(super) fn replica_methods(&mut self) -> (Vec<String>, Map<String, Value>) {
        let mut sections = Map::new();
        for (path, (_, value)) in &self.all.extra {
            if let Some(name) = path.strip_prefix("postgresql.") {
                sections.insert(name.to_owned(), value.clone());
            }
        }
        if !self.all.settings.is_given(METHODS) {
            return (Vec::new(), sections);
        }
        let names = self.all.settings.list(METHODS);
        for name in names.iter().filter(|name| *name != BASEBACKUP) {
            if let Err(error) = ReplicaMethod::read(name, sections.get(name)) {
                self.inconsistent(&[METHODS], &format!("postgresql.{name}: {error}"));
            }
        }
        (names, sections)
    }

    /// Paths of the sections something refers to.
    pub(super) fn used_sections(&self, config: &Config) -> Vec<String> {
        let names_in = |map: Option<&Map<String, Value>>| map.map(read_methods).unwrap_or_default();
        let first = |key: &str| config.bootstrap.dcs.get(key).and_then(Value::as_object);
        let replica = config
            .postgresql
            .create_replica_methods
            .iter()
            .cloned()
            .chain(names_in(first("postgresql")))
            .chain(names_in(first("standby_cluster")))
            .map(|name| format!("postgresql.{name}"));
        replica
            .chain([format!("bootstrap.{}", self.text(METHOD))])
            .collect()
    }

    fn section(&self, parent: &str, name: &str) -> Option<Value> {
        let (_, value) = self.all.extra.get(&format!("{parent}.{name}"))?;
        Some(value.clone())
    }
}
