//! Which objects a cluster has, by the mode chosen (contract: DCS layout §9), and how patches of them look. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::object::{Form, Patch, Place};

/// In which objects the cluster is kept. One cluster, one mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// ConfigMaps, as Patroni does unless told otherwise.
    #[default]
    ConfigMaps,
    /// Endpoints, as Patroni does with `use_endpoints`: the lock and the address of the leader's Service are one
    /// object.
    Endpoints,
    /// A Lease for the lock, an EndpointSlice for the leader's Service, ConfigMaps for the rest. Patroni knows no such
    /// thing.
    Leases,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ConfigMaps, Self::Endpoints, Self::Leases];

    pub(super) const fn others(self) -> [Self; 2] {
        match self {
            Self::ConfigMaps => [Self::Endpoints, Self::Leases],
            Self::Endpoints => [Self::ConfigMaps, Self::Leases],
            Self::Leases => [Self::ConfigMaps, Self::Endpoints],
        }
    }

    /// As settings name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMaps => "configmaps",
            Self::Endpoints => "endpoints",
            Self::Leases => "leases",
        }
    }

    pub(super) const fn form(self) -> Form {
        match self {
            Self::ConfigMaps | Self::Endpoints => Form::Annotations,
            Self::Leases => Form::Lease,
        }
    }

    pub(super) const fn kind(self, place: Place) -> Kind {
        match (self, place) {
            (Self::Leases, Place::Leader) => Kind::Lease,
            (Self::Endpoints, _) => Kind::Endpoints,
            (Self::ConfigMaps | Self::Leases, _) => Kind::ConfigMap,
        }
    }
}

/// Kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    ConfigMap,
    Endpoints,
    Lease,
    Pod,
    Service,
    /// `v1`, and what servers before 1.21 have.
    EndpointSlice {
        beta: bool,
    },
}

impl Kind {
    pub(super) const fn version(self) -> &'static str {
        match self {
            Self::ConfigMap | Self::Endpoints | Self::Pod | Self::Service => "v1",
            Self::Lease => "coordination.k8s.io/v1",
            Self::EndpointSlice { beta: false } => "discovery.k8s.io/v1",
            Self::EndpointSlice { beta: true } => "discovery.k8s.io/v1beta1",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Endpoints => "Endpoints",
            Self::Lease => "Lease",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice { .. } => "EndpointSlice",
        }
    }

    /// As in paths and in rights.
    pub(super) const fn plural(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmaps",
            Self::Endpoints => "endpoints",
            Self::Lease => "leases",
            Self::Pod => "pods",
            Self::Service => "services",
            Self::EndpointSlice { .. } => "endpointslices",
        }
    }

    /// The group in rights; empty for the oldest kinds.
    pub(super) fn group(self) -> &'static str {
        self.version().split_once('/').map_or("", |(group, _)| group)
    }
}

/// Namespace, scope and labels of one cluster.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) mode: Mode,
    pub(super) namespace: String,
    pub(super) scope: String,
    /// Those of every object, the scope's included.
    pub(super) labels: BTreeMap<String, String>,
}

impl Layout {
    pub(super) fn name(&self, place: Place) -> String {
        Self::name_in(self.mode, &self.scope, place)
    }

    fn name_in(mode: Mode, scope: &str, place: Place) -> String {
        match (mode, place) {
            (Mode::ConfigMaps, Place::Leader) => format!("{scope}-leader"),
            (_, Place::Leader) => scope.to_owned(),
            (_, Place::Config) => format!("{scope}-config"),
            (_, Place::Failover) => format!("{scope}-failover"),
            (_, Place::Sync) => format!("{scope}-sync"),
        }
    }

    /// Which of the cluster's objects has this name.
    pub(super) fn place(&self, name: &str) -> Option<Place> {
        Place::ALL.into_iter().find(|place| self.name(*place) == name)
    }

    /// Path of all objects of a kind.
    pub(super) fn all(&self, kind: Kind) -> String {
        let version = kind.version();
        let root = if version == "v1" { "api" } else { "apis" };
        format!(
            "/{root}/{version}/namespaces/{}/{}",
            self.namespace,
            kind.plural()
        )
    }

    /// Path of one object.
    pub(super) fn one(&self, kind: Kind, name: &str) -> String {
        format!("{}/{name}", self.all(kind))
    }

    pub(super) fn at(&self, place: Place) -> String {
        self.one(self.mode.kind(place), &self.name(place))
    }

    /// Where the lock of the same cluster would be in another mode.
    pub(super) fn lock_in(&self, mode: Mode) -> String {
        self.one(
            mode.kind(Place::Leader),
            &Self::name_in(mode, &self.scope, Place::Leader),
        )
    }

    /// The query that selects the cluster's own objects.
    pub(super) fn selector(&self) -> String {
        selector(
            self.labels
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        )
    }

    /// Changes an object. `version`: only if it is still that one.
    pub(super) fn patch(&self, version: Option<&str>, annotations: Patch, rest: &[(&str, Value)]) -> Value {
        let mut metadata = json!({"labels": self.labels});
        if !annotations.is_empty() {
            metadata["annotations"] = Value::Object(annotations);
        }
        if let Some(version) = version {
            metadata["resourceVersion"] = version.into();
        }
        let mut patch = json!({"metadata": metadata});
        for (name, value) in rest.iter().filter(|(_, value)| !value.is_null()) {
            patch[*name] = value.clone();
        }
        patch
    }

    /// A new object.
    pub(super) fn create(
        &self,
        kind: Kind,
        name: &str,
        mut annotations: Patch,
        rest: &[(&str, Value)],
    ) -> Value {
        annotations.retain(|_, value| !value.is_null());
        let mut object = self.patch(None, annotations, rest);
        object["metadata"]["name"] = name.into();
        object["apiVersion"] = kind.version().into();
        object["kind"] = kind.name().into();
        object
    }
}

/// The query that selects objects with these labels.
pub(super) fn selector<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let terms: Vec<String> = labels.map(|(name, value)| format!("{name}={value}")).collect();
    format!("labelSelector={}", encoded(&terms.join(",")))
}

/// For a query: what is not plain is percent-encoded.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Where the leader's Service leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) ip: String,
    pub(super) hostname: Option<String>,
    pub(super) node: Option<String>,
    /// Name and uid of the pod.
    pub(super) pod: Option<(String, String)>,
}

/// A port of the leader's Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Number.
    pub port: u16,
    /// Name, needed where there are several.
    pub name: Option<String>,
    /// `TCP` unless given.
    pub protocol: String,
}

impl Layout {
    fn reference(&self, pod: &(String, String)) -> Value {
        json!({"kind": "Pod", "namespace": self.namespace, "name": pod.0, "uid": pod.1})
    }

    /// The subsets of Endpoints with exactly one address.
    pub(super) fn subsets(&self, target: &Target, ports: &[Port]) -> Value {
        let mut address = Map::from_iter([("ip".to_owned(), Value::from(target.ip.as_str()))]);
        let texts = [("hostname", &target.hostname), ("nodeName", &target.node)];
        for (name, text) in texts
            .into_iter()
            .filter_map(|(name, text)| Some((name, text.as_ref()?)))
        {
            address.insert(name.into(), text.as_str().into());
        }
        if let Some(pod) = &target.pod {
            address.insert("targetRef".into(), self.reference(pod));
        }
        json!([{"addresses": [address], "ports": ports_json(ports)}])
    }

    /// The EndpointSlice of the leader's Service; `None`: nobody leads.
    pub(super) fn slice(
        &self,
        beta: bool,
        target: Option<&Target>,
        ports: &[Port],
    ) -> [(&'static str, Value); 3] {
        let endpoint = |target: &Target| {
            let mut endpoint = json!({"addresses": [target.ip], "conditions": {"ready": true}});
            if let Some(hostname) = &target.hostname {
                endpoint["hostname"] = hostname.as_str().into();
            }
            // The older version keeps it elsewhere, and does without.
            if let (Some(node), false) = (&target.node, beta) {
                endpoint["nodeName"] = node.as_str().into();
            }
            if let Some(pod) = &target.pod {
                endpoint["targetRef"] = self.reference(pod);
            }
            endpoint
        };
        let family = match target {
            Some(target) if target.ip.contains(':') => "IPv6",
            _ => "IPv4",
        };
        [
            ("addressType", family.into()),
            (
                "endpoints",
                target.iter().map(|target| endpoint(target)).collect(),
            ),
            ("ports", ports_json(ports)),
        ]
    }
}

fn ports_json(ports: &[Port]) -> Value {
    let port = |port: &Port| {
        let mut json = json!({"port": port.port, "protocol": port.protocol});
        if let Some(name) = &port.name {
            json["name"] = name.as_str().into();
        }
        json
    };
    ports.iter().map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(mode: Mode) -> Layout {
        Layout {
            mode,
            namespace: "prod".into(),
            scope: "demo".into(),
            labels: BTreeMap::from([
                ("application".into(), "howdah".into()),
                ("cluster-name".into(), "demo".into()),
            ]),
        }
    }

    #[test]
    fn the_names_are_those_of_patroni() {
        let paths = |mode| Place::ALL.map(|place| layout(mode).at(place));
        assert_eq!(
            paths(Mode::ConfigMaps),
            [
                "/api/v1/namespaces/prod/configmaps/demo-leader",
                "/api/v1/namespaces/prod/configmaps/demo-config",
                "/api/v1/namespaces/prod/configmaps/demo-failover",
                "/api/v1/namespaces/prod/configmaps/demo-sync",
            ]
        );
        assert_eq!(
            paths(Mode::Endpoints),
            [
                "/api/v1/namespaces/prod/endpoints/demo",
                "/api/v1/namespaces/prod/endpoints/demo-config",
                "/api/v1/namespaces/prod/endpoints/demo-failover",
                "/api/v1/namespaces/prod/endpoints/demo-sync",
            ]
        );
        assert_eq!(
            paths(Mode::Leases)[0],
            "/apis/coordination.k8s.io/v1/namespaces/prod/leases/demo"
        );
        assert_eq!(
            layout(Mode::Leases).lock_in(Mode::ConfigMaps),
            "/api/v1/namespaces/prod/configmaps/demo-leader"
        );
        assert_eq!(
            layout(Mode::ConfigMaps).selector(),
            "labelSelector=application%3Dhowdah%2Ccluster-name%3Ddemo"
        );
    }

    #[test]
    fn the_address_of_the_leader_is_what_patroni_writes() {
        let target = Target {
            ip: "10.0.0.7".into(),
            hostname: Some("n1".into()),
            node: Some("worker".into()),
            pod: Some(("n1".into(), "u-1".into())),
        };
        let ports = [Port {
            port: 5432,
            name: Some("postgresql".into()),
            protocol: "TCP".into(),
        }];
        assert_eq!(
            layout(Mode::Endpoints).subsets(&target, &ports),
            json!([{
                "addresses": [{
                    "ip": "10.0.0.7", "hostname": "n1", "nodeName": "worker",
                    "targetRef": {"kind": "Pod", "namespace": "prod", "name": "n1", "uid": "u-1"},
                }],
                "ports": [{"port": 5432, "name": "postgresql", "protocol": "TCP"}],
            }])
        );
        let [family, endpoints, _] = layout(Mode::Leases).slice(true, Some(&target), &ports);
        assert_eq!(family.1, "IPv4");
        assert!(endpoints.1[0]["nodeName"].is_null(), "not in v1beta1");
        assert_eq!(layout(Mode::Leases).slice(false, None, &ports)[1].1, json!([]));
    }

    #[test]
    fn a_patch_names_the_version_it_is_for() {
        let patch = layout(Mode::ConfigMaps).patch(Some("12"), Patch::new(), &[("subsets", Value::Null)]);
        assert_eq!(
            patch,
            json!({"metadata": {"labels": {"application": "howdah", "cluster-name": "demo"}, "resourceVersion": "12"}})
        );
    }
}
