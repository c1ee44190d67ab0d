//! The first dynamic configuration and the timeout rule `loop_wait + 2*retry_timeout <= ttl`
//! (contract: environment §4).

use serde_json::{Map, Value, json};

use super::Builder;
use crate::model::{StandbyCluster, Timing, Trouble, merge_patch, remarks};

const TTL: &str = "bootstrap.dcs.ttl";
const LOOP_WAIT: &str = "bootstrap.dcs.loop_wait";
const RETRY_TIMEOUT: &str = "bootstrap.dcs.retry_timeout";

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
        self.judge(&document);
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

    /// A value that cannot be read would be replaced by its default, and promise what nobody keeps. The rest is pointed
    /// out: the cluster's configuration may hold what other software reads.
    fn judge(&mut self, document: &Map<String, Value>) {
        let origin = self.all.settings.origin("bootstrap.dcs");
        for remark in remarks(document) {
            match &remark.trouble {
                Trouble::Unreadable(expected) => {
                    let why = format!(
                        "{}: {} is not usable (allowed: {expected})",
                        remark.key, remark.value
                    );
                    self.inconsistent(&["bootstrap.dcs"], &why);
                }
                Trouble::Bent(_) => self.warn(&format!("{origin}: {remark}")),
            }
        }
    }
}
