//! The settings of PostgreSQL itself.

use std::{collections::BTreeMap, path::PathBuf};

use serde_json::{Map, Value, json};

use super::Builder;
use crate::{
    config::{
        address::Address,
        types::{Callbacks, Postgresql, RoleSettings},
    },
    model::{RoleScope, merge_patch},
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
            krbsrvname: text("postgresql.krbsrvname"),
            parameters: Map::new(),
            pg_hba: list("postgresql.pg_hba"),
            pg_ident: list("postgresql.pg_ident"),
            by_role: self.by_role(),
            recovery_conf: self.all.settings.map("postgresql.recovery_conf"),
            authentication,
            create_replica_methods: Vec::new(),
            method_sections: Map::new(),
            basebackup: list("postgresql.basebackup"),
            rewind: list("postgresql.rewind"),
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
        (built.create_replica_methods, built.method_sections) = self.replica_methods();
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
                self.inconsistent(
                    &[PATH],
                    &format!("{name}: a list or mapping is not a single value"),
                );
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

    /// What holds in one role only. Cluster-wide parameters among it are left out when postgresql.conf is written.
    fn by_role(&self) -> BTreeMap<RoleScope, RoleSettings> {
        let of = |role: RoleScope| {
            let path = |what: &str| format!("postgresql.{what}_{}", role.as_str());
            RoleSettings {
                parameters: self.all.settings.map(&path("parameters")),
                pg_hba: self.all.settings.list(&path("pg_hba")),
                pg_ident: self.all.settings.list(&path("pg_ident")),
            }
        };
        let all = RoleScope::ALL.into_iter().map(|role| (role, of(role)));
        all.filter(|(_, settings)| !settings.is_empty()).collect()
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
}
