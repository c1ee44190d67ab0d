//! The settings of PostgreSQL itself.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde_json::{Map, Value, json};

use super::Builder;
use crate::{
    config::{
        address::Address,
        types::{Callbacks, Postgresql, ReplicaMethod},
    },
    model::{merge_patch, read_bool},
};

/// Parameters that must be alike on all members, so that only the cluster's configuration sets them
/// (contract: PostgreSQL configuration §2).
const CLUSTER_WIDE: &[&str] = &[
    "hot_standby",
    "wal_level",
    "max_connections",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "track_commit_timestamp",
    "max_replication_slots",
    "max_worker_processes",
    "wal_log_hints",
    "wal_keep_segments",
    "wal_keep_size",
];

/// Parameters that follow from other settings.
const DERIVED: &[(&str, &str)] = &[
    ("listen_addresses", "HOWDAH_POSTGRESQL_LISTEN"),
    ("port", "HOWDAH_POSTGRESQL_LISTEN"),
    ("cluster_name", "HOWDAH_SCOPE"),
];

/// Programs whose names can be changed.
const PROGRAMS: &[&str] = &[
    "pg_ctl",
    "initdb",
    "pg_controldata",
    "pg_basebackup",
    "postgres",
    "pg_isready",
    "pg_rewind",
];

impl Builder {
    pub(super) fn postgresql(&mut self) -> Postgresql {
        let authentication = self.authentication();
        let data_dir = PathBuf::from(self.text("postgresql.data_dir"));
        if data_dir.parent().is_none() {
            self.inconsistent(
                &["postgresql.data_dir"],
                "the root folder cannot be a data directory",
            );
        }
        self.all
            .settings
            .set_default("postgresql.config_dir", self.text("postgresql.data_dir"));
        let text = |path: &str| self.all.settings.text(path);
        let list = |path: &str| self.all.settings.list(path);
        let callback = |key: &str| text(&format!("postgresql.callbacks.{key}"));
        let timeout = self.all.settings.int("postgresql.pg_ctl_timeout").unwrap_or(60);
        let bin_names: BTreeMap<String, String> = PROGRAMS
            .iter()
            .filter_map(|program| {
                Some((
                    (*program).to_owned(),
                    text(&format!("postgresql.bin_name.{program}"))?,
                ))
            })
            .collect();
        let mut built = Postgresql {
            listen: self.listen("postgresql.listen"),
            connect_address: self.address("postgresql.connect_address", 5432),
            proxy_address: text("postgresql.proxy_address").and_then(|text| Address::parse(&text, 5432)),
            data_dir,
            config_dir: PathBuf::from(self.text("postgresql.config_dir")),
            config_base_name: self.text("postgresql.config_base_name"),
            custom_conf: self.path("postgresql.custom_conf"),
            bin_dir: self.path("postgresql.bin_dir"),
            bin_names,
            database: self.text("postgresql.database"),
            pgpass: self.path("postgresql.pgpass"),
            use_unix_socket: self.flag("postgresql.use_unix_socket"),
            use_unix_socket_repl: self.flag("postgresql.use_unix_socket_repl"),
            krbsrvname: text("postgresql.krbsrvname"),
            parameters: Map::new(),
            pg_hba: list("postgresql.pg_hba"),
            pg_ident: list("postgresql.pg_ident"),
            recovery_conf: self.all.settings.map("postgresql.recovery_conf"),
            authentication,
            create_replica_methods: Vec::new(),
            basebackup: list("postgresql.basebackup"),
            use_pg_rewind: self.all.settings.flag("postgresql.use_pg_rewind"),
            rewind: list("postgresql.rewind"),
            remove_data_directory_on_rewind_failure: self
                .flag("postgresql.remove_data_directory_on_rewind_failure"),
            remove_data_directory_on_diverged_timelines: self
                .flag("postgresql.remove_data_directory_on_diverged_timelines"),
            pg_ctl_timeout: Duration::from_secs(u64::try_from(timeout).unwrap_or(60)),
            callbacks: Callbacks {
                on_start: callback("on_start"),
                on_stop: callback("on_stop"),
                on_restart: callback("on_restart"),
                on_reload: callback("on_reload"),
                on_role_change: callback("on_role_change"),
            },
            pre_promote: text("postgresql.pre_promote"),
            before_stop: text("postgresql.before_stop"),
        };
        built.parameters = self.parameters();
        built.create_replica_methods = self.replica_methods();
        built
    }

    /// The parameters of this member. Those that must be alike everywhere become part of the cluster's first
    /// configuration instead: who starts a cluster with `max_connections` in a variable means the cluster.
    fn parameters(&mut self) -> Map<String, Value> {
        const PATH: &str = "postgresql.parameters";
        let mut local = Map::new();
        let mut cluster = Map::new();
        for (name, value) in self.all.settings.map(PATH) {
            let name = name.to_ascii_lowercase();
            if value.is_object() || value.is_array() {
                self.inconsistent(&[PATH], &format!("{name}: {value} is not a single value"));
            } else if let Some((_, setting)) = DERIVED.iter().find(|(derived, _)| *derived == name) {
                let origin = self.all.settings.origin(PATH);
                self.warn(&format!(
                    "{origin}: {name} is left out; it follows from {setting}"
                ));
            } else if CLUSTER_WIDE.contains(&name.as_str()) {
                cluster.insert(name, value);
            } else {
                local.insert(name, value);
            }
        }
        if !cluster.is_empty() {
            let names: Vec<&str> = cluster.keys().map(String::as_str).collect();
            let origin = self.all.settings.origin(PATH);
            self.warn(&format!(
                "{origin}: {} must be alike on all members: used when the cluster is created, later change the cluster's configuration",
                names.join(", ")
            ));
            self.add_to_first_configuration(cluster);
        }
        if !self.all.settings.map(PATH).is_empty() {
            self.all.settings.amend(PATH, Value::Object(local.clone()));
        }
        local
    }

    fn add_to_first_configuration(&mut self, parameters: Map<String, Value>) {
        let Some(origin) = self
            .all
            .settings
            .get("postgresql.parameters")
            .and_then(|s| s.origins.first().cloned())
        else {
            return;
        };
        let given = self.all.settings.map("bootstrap.dcs");
        let mut merged = Map::new();
        merge_patch(
            &mut merged,
            &Map::from_iter([("postgresql".to_owned(), json!({ "parameters": parameters }))]),
        );
        // What was given for the cluster as such is stronger.
        merge_patch(&mut merged, &given);
        self.all
            .settings
            .set("bootstrap.dcs", Value::Object(merged), origin);
    }

    fn replica_methods(&mut self) -> Vec<ReplicaMethod> {
        const PATH: &str = "postgresql.create_replica_methods";
        let mut methods = Vec::new();
        for name in self.all.settings.list(PATH) {
            let section = self.all.extra.get(&format!("postgresql.{name}"));
            let section = section.and_then(|(value, _)| value.as_object()).cloned();
            match (name.as_str(), section) {
                ("basebackup", _) => methods.push(ReplicaMethod::Basebackup),
                (_, Some(section)) => methods.push(self.custom_method(&name, section)),
                (_, None) => self.inconsistent(
                    &[PATH],
                    &format!("there is no section postgresql.{name} that says how to run this method"),
                ),
            }
        }
        if methods.is_empty() {
            methods.push(ReplicaMethod::Basebackup);
        }
        methods
    }

    fn custom_method(&mut self, name: &str, mut section: Map<String, Value>) -> ReplicaMethod {
        let mut flag = |key: &str| section.remove(key).as_ref().and_then(read_bool).unwrap_or(false);
        let (no_leader, keep_data, no_params) = (flag("no_leader"), flag("keep_data"), flag("no_params"));
        let command = match section.remove("command") {
            Some(Value::String(command)) => command,
            _ => {
                self.inconsistent(
                    &["postgresql.create_replica_methods"],
                    &format!("postgresql.{name} has no command"),
                );
                String::new()
            }
        };
        ReplicaMethod::Custom {
            name: name.to_owned(),
            command,
            no_leader,
            keep_data,
            no_params,
            parameters: section,
        }
    }
}
