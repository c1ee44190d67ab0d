//! The first dynamic configuration and the timeout rule `loop_wait + 2*retry_timeout <= ttl`
//! (contract: environment §4).

use serde_json::{Map, Value, json};

use super::Builder;
use crate::{
    config::other_names::nearest,
    model::{StandbyCluster, Timing, merge_patch},
};

const TTL: &str = "bootstrap.dcs.ttl";
const LOOP_WAIT: &str = "bootstrap.dcs.loop_wait";
const RETRY_TIMEOUT: &str = "bootstrap.dcs.retry_timeout";

/// Keys of the dynamic configuration (contract: environment §4).
#[rustfmt::skip]
const KNOWN: &[&str] = &[
    "ttl", "loop_wait", "retry_timeout", "maximum_lag_on_failover", "maximum_lag_on_syncnode", "max_timelines_history",
    "check_timeline", "primary_start_timeout", "master_start_timeout", "primary_stop_timeout", "master_stop_timeout",
    "primary_race_backoff", "synchronous_mode", "synchronous_mode_strict", "synchronous_node_count", "failsafe_mode",
    "pause", "member_slots_ttl", "slots", "permanent_slots", "permanent_replication_slots", "ignore_slots",
    "standby_cluster", "postgresql",
];

/// Keys of its `postgresql` part.
#[rustfmt::skip]
const KNOWN_POSTGRESQL: &[&str] = &[
    "use_pg_rewind", "use_slots", "parameters", "pg_hba", "pg_ident", "recovery_conf", "create_replica_methods",
    "basebackup", "rewind", "callbacks", "remove_data_directory_on_rewind_failure",
    "remove_data_directory_on_diverged_timelines", "pg_ctl_timeout", "use_unix_socket", "use_unix_socket_repl",
    "custom_conf", "pre_promote", "before_stop", "krbsrvname", "bin_dir", "bin_name", "database",
    "parameters_primary", "parameters_replica", "parameters_standby_leader", "pg_hba_primary", "pg_hba_replica",
    "pg_hba_standby_leader", "pg_ident_primary", "pg_ident_replica", "pg_ident_standby_leader",
];

impl Builder {
    /// The timing, with what was not given bent to fit what was; what was given is never bent here.
    pub(super) fn timing(&mut self) -> Timing {
        let seconds = |path: &str| self.all.settings.int(path).unwrap_or(0);
        let given = |path: &str| self.all.settings.is_given(path);
        let (ttl, mut loop_wait, mut retry) = (seconds(TTL), seconds(LOOP_WAIT), seconds(RETRY_TIMEOUT));
        match (given(LOOP_WAIT), given(RETRY_TIMEOUT)) {
            (true, false) => retry = retry.min(((ttl - loop_wait) / 2).max(1)),
            (false, true) => loop_wait = loop_wait.min((ttl - 2 * retry).max(1)),
            (false, false) => {
                let fitted = Timing::adjusted(ttl, loop_wait, retry);
                loop_wait = i64::try_from(fitted.loop_wait.as_secs()).unwrap_or(loop_wait);
                retry = i64::try_from(fitted.retry_timeout.as_secs()).unwrap_or(retry);
            }
            (true, true) => {}
        }
        if loop_wait + 2 * retry > ttl {
            self.inconsistent(
                &[TTL, LOOP_WAIT, RETRY_TIMEOUT],
                &format!(
                    "loop_wait + 2*retry_timeout must not be more than ttl, but {loop_wait} + 2*{retry} = {} > {ttl}",
                    loop_wait + 2 * retry
                ),
            );
        }
        for (path, value) in [(LOOP_WAIT, loop_wait), (RETRY_TIMEOUT, retry)] {
            if !self.all.settings.is_given(path) {
                self.all
                    .settings
                    .set(path, Value::from(value), crate::config::Origin::Default);
            }
        }
        Timing::adjusted(ttl, loop_wait, retry)
    }

    /// The first dynamic configuration: what was given as a whole, then the single settings below it.
    pub(super) fn dynamic(&mut self) -> Map<String, Value> {
        let mut document = Map::new();
        for (path, setting) in self.all.settings.iter() {
            if let Some(key) = path.strip_prefix("bootstrap.dcs.") {
                document.insert(key.to_owned(), setting.value.clone());
            }
        }
        merge_patch(&mut document, &self.all.settings.map("bootstrap.dcs"));
        let given = self.of_this_member();
        let postgresql = document.entry("postgresql").or_insert_with(|| json!({}));
        match postgresql {
            Value::Object(postgresql) => {
                for (key, value) in given {
                    postgresql.entry(key).or_insert(value);
                }
            }
            _ => self.inconsistent(&["bootstrap.dcs"], "postgresql is not a mapping"),
        }
        self.refuse_a_standby_without_source(&document);
        self.look_for_misspellings(&document);
        document
    }

    /// What a member says about rewinding and old data: who starts a cluster with it means the cluster.
    fn of_this_member(&mut self) -> Map<String, Value> {
        const KEYS: &[(&str, bool)] = &[
            ("use_pg_rewind", true),
            ("remove_data_directory_on_rewind_failure", false),
            ("remove_data_directory_on_diverged_timelines", false),
        ];
        let mut given = Map::new();
        for (key, default) in KEYS {
            let path = format!("postgresql.{key}");
            let Some(flag) = self.all.settings.flag(&path) else {
                continue;
            };
            given.insert((*key).to_owned(), json!(flag));
            if flag != *default {
                let origin = self.all.settings.origin(&path);
                self.warn(&format!(
                    "{origin}: holds for the cluster: used when it is created, later change the cluster's configuration"
                ));
            }
        }
        // Written down, because Patroni's tools take its absence for no.
        given
            .entry("use_pg_rewind".to_owned())
            .or_insert_with(|| json!(true));
        given
    }

    /// A cluster that is to follow another and does not say which would stand on its own.
    fn refuse_a_standby_without_source(&mut self, document: &Map<String, Value>) {
        let section = document.get("standby_cluster").and_then(Value::as_object);
        if section.is_some_and(|section| !section.is_empty()) && StandbyCluster::from_map(document).is_none()
        {
            self.inconsistent(
                &["bootstrap.dcs"],
                "standby_cluster has no source (host, port or restore_command)",
            );
        }
    }
}

impl Builder {
    /// The cluster's configuration may hold anything, so a misspelling can only be pointed out.
    fn look_for_misspellings(&mut self, document: &Map<String, Value>) {
        let origin = self.all.settings.origin("bootstrap.dcs");
        let unknown = |map: &Map<String, Value>, known: &[&str]| -> Vec<(String, String)> {
            let names = map.keys().filter(|name| !known.contains(&name.as_str()));
            names
                .filter_map(|name| Some((name.clone(), nearest(name, known.iter().copied())?.to_owned())))
                .collect()
        };
        for (name, meant) in unknown(document, KNOWN) {
            self.warn(&format!(
                "{origin}: {name} is nothing the cluster's configuration knows; did you mean {meant}?"
            ));
        }
        let Some(postgresql) = document.get("postgresql").and_then(Value::as_object) else {
            return;
        };
        for (name, meant) in unknown(postgresql, KNOWN_POSTGRESQL) {
            self.warn(&format!("{origin}: postgresql.{name} is nothing the cluster's configuration knows; did you mean postgresql.{meant}?"));
        }
    }
}
