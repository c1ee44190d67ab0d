//! Kubernetes as the store. Spilo's bare names (`KUBERNETES_LABELS` …) are set by its operator whatever the store is:
//! they say how, and only `DCS_ENABLE_KUBERNETES_API` says that.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Builder, stores::is_explicit};
use crate::config::{
    Origin,
    types::{Kubernetes, KubernetesMode, KubernetesPort},
};

const ENABLED: &str = "kubernetes.enabled";
const MODE: &str = "kubernetes.mode";
const USE_ENDPOINTS: &str = "kubernetes.use_endpoints";
const USE_CONFIGMAPS: &str = "kubernetes.use_configmaps";

impl Builder {
    /// What asks for Kubernetes as the store, if anything does.
    pub(super) fn kubernetes_asked_for(&self) -> Option<&'static str> {
        match self.all.settings.flag(ENABLED) {
            Some(true) => return Some(ENABLED),
            Some(false) => return None,
            None => {}
        }
        self.explicit("kubernetes.")
    }

    pub(super) fn kubernetes(&mut self) -> Kubernetes {
        let spilo = self.all.settings.get(ENABLED).is_some_and(|setting| {
            setting
                .origins
                .iter()
                .any(|origin| !is_explicit(origin) && *origin != Origin::Default)
        });
        self.kubernetes_defaults(spilo);
        let mode = self.kubernetes_mode(spilo);
        let labels = self.labels("kubernetes.labels");
        let ports = self.kubernetes_ports(spilo);
        let retriable = self.codes();
        let optional = |path: &str| self.all.settings.text(path).filter(|text| !text.is_empty());
        Kubernetes {
            mode,
            namespace: optional("kubernetes.namespace"),
            labels,
            scope_label: self.text("kubernetes.scope_label"),
            role_label: self.text("kubernetes.role_label"),
            leader_label_value: self.text("kubernetes.leader_label_value"),
            follower_label_value: self.text("kubernetes.follower_label_value"),
            standby_leader_label_value: self.text("kubernetes.standby_leader_label_value"),
            tmp_role_label: optional("kubernetes.tmp_role_label"),
            pod_ip: optional("kubernetes.pod_ip"),
            cacert: self.path("kubernetes.cacert"),
            kubeconfig: self.path("kubernetes.kubeconfig"),
            context: optional("kubernetes.context"),
            bypass_api_service: self.flag("kubernetes.bypass_api_service"),
            bootstrap_labels: self.labels("kubernetes.bootstrap_labels"),
            ports,
            retriable_http_codes: retriable,
        }
    }

    /// Patroni's, or Spilo's where its own name chose the store (contract: Spilo image §4.3).
    fn kubernetes_defaults(&mut self, spilo: bool) {
        let pick = |patroni: &'static str, of_spilo: &'static str| if spilo { of_spilo } else { patroni };
        for (path, value) in [
            ("kubernetes.scope_label", pick("cluster-name", "version")),
            ("kubernetes.role_label", pick("role", "spilo-role")),
            ("kubernetes.leader_label_value", pick("primary", "master")),
            ("kubernetes.follower_label_value", "replica"),
            ("kubernetes.standby_leader_label_value", pick("primary", "master")),
        ] {
            self.all.settings.set_default(path, value);
        }
        self.all
            .settings
            .set_default("kubernetes.bypass_api_service", spilo);
        if spilo {
            self.all
                .settings
                .set_default("kubernetes.labels", json!({"application": "spilo"}));
        }
    }

    fn kubernetes_mode(&mut self, spilo: bool) -> KubernetesMode {
        let settings = &self.all.settings;
        let (endpoints, configmaps) = (settings.flag(USE_ENDPOINTS), settings.flag(USE_CONFIGMAPS));
        let given = settings.text(MODE);
        if given.as_deref().is_some_and(|mode| mode != "endpoints") && endpoints == Some(true) {
            self.inconsistent(
                &[MODE, USE_ENDPOINTS],
                "the one says this and the other says that",
            );
        }
        if given.as_deref().is_some_and(|mode| mode != "configmaps") && configmaps == Some(true) {
            self.inconsistent(
                &[MODE, USE_CONFIGMAPS],
                "the one says this and the other says that",
            );
        }
        if endpoints == Some(true) && configmaps == Some(true) {
            self.inconsistent(
                &[USE_ENDPOINTS, USE_CONFIGMAPS],
                "a cluster is kept in one kind of objects",
            );
        }
        let mode = match (given.as_deref(), endpoints, configmaps) {
            (Some("leases"), ..) => KubernetesMode::Leases,
            (Some("endpoints"), ..) | (None, Some(true), _) => KubernetesMode::Endpoints,
            (None, None, None | Some(false)) if spilo => KubernetesMode::Endpoints,
            _ => KubernetesMode::ConfigMaps,
        };
        self.all.settings.set_default(MODE, mode.as_str());
        mode
    }

    fn labels(&mut self, path: &str) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        for (name, value) in self.all.settings.map(path) {
            let text = match &value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                Value::Bool(flag) => flag.to_string(),
                _ => "{".to_owned(),
            };
            if is_label(&name, &text) {
                labels.insert(name, text);
            } else {
                self.inconsistent(
                    &[path],
                    &format!("{name}: {value} is no label (allowed: letters, digits, -, _ and ., up to 63)"),
                );
            }
        }
        labels
    }

    fn kubernetes_ports(&mut self, spilo: bool) -> Vec<KubernetesPort> {
        const PORTS: &str = "kubernetes.ports";
        let default = if spilo {
            json!([{"port": 5432, "name": "postgresql"}])
        } else {
            json!([{"port": 5432}])
        };
        self.all.settings.set_default(PORTS, default);
        let items = self.all.settings.value(PORTS).and_then(Value::as_array).cloned();
        let mut ports = Vec::new();
        for item in items.unwrap_or_default() {
            let number = match &item["port"] {
                Value::Null => Some(5432),
                Value::String(text) => text.parse().ok(),
                other => other.as_u64().and_then(|port| u16::try_from(port).ok()),
            };
            let text = |field: &str| {
                item[field]
                    .as_str()
                    .filter(|text| !text.is_empty())
                    .map(str::to_owned)
            };
            match number.filter(|port| *port > 0) {
                Some(port) => ports.push(KubernetesPort {
                    port,
                    name: text("name"),
                    protocol: text("protocol").unwrap_or_else(|| "TCP".to_owned()),
                }),
                None => self.inconsistent(
                    &[PORTS],
                    &format!("{item} is no port (allowed: {{port: 5432, name: postgresql, protocol: TCP}})"),
                ),
            }
        }
        if ports.len() > 1 && ports.iter().any(|port| port.name.is_none()) {
            self.inconsistent(&[PORTS], "where there are several ports, each needs a name");
        }
        ports
    }

    fn codes(&mut self) -> Vec<u16> {
        const CODES: &str = "kubernetes.retriable_http_codes";
        let mut codes = Vec::new();
        for text in self.all.settings.list(CODES) {
            match text.parse().ok().filter(|code| (300..600).contains(code)) {
                Some(code) => codes.push(code),
                None => self.inconsistent(
                    &[CODES],
                    &format!("{text:?} is no HTTP status that says no (allowed: 300 to 599)"),
                ),
            }
        }
        codes
    }
}

/// As the API server has it: an optional domain, and a short name; a value that is short, too.
fn is_label(name: &str, value: &str) -> bool {
    let plain = |text: &str| {
        text.len() <= 63
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let short = name.split_once('/').map_or(name, |(_, short)| short);
    plain(short) && (value.is_empty() || plain(value))
}
