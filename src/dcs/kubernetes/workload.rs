//! The StatefulSet whose pods the members are: what `howdah rollout` looks at, and the one thing it does there.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    access::{self, Access},
    layout::selector,
    object::{Object, STATUS},
    pool::Pool,
};
use crate::dcs::DcsError;

/// Patience with one question.
const WITHIN: Duration = Duration::from_secs(10);

/// A StatefulSet as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatefulSet {
    /// How many pods it is to have.
    pub replicas: usize,
    /// The revision its pods are to have; `None` while the control plane has not seen the last change.
    pub revision: Option<String>,
    /// By number. Those beyond `replicas`, which are about to go, are left out.
    pub pods: Vec<Pod>,
}

/// One of its pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// Name, which is that of the member.
    pub name: String,
    /// Tells it from another pod of the name.
    pub uid: String,
    /// The revision it was made from.
    pub revision: String,
    /// Its readiness probe succeeds.
    pub ready: bool,
    /// It has been asked to end.
    pub ending: bool,
    /// Base URL of its REST API, once it has an address.
    pub api: Option<String>,
}

/// Access to the StatefulSets of one namespace.
pub struct Workloads {
    pool: Arc<Pool>,
    namespace: String,
}

impl Workloads {
    /// As the pod's service account, or as `$KUBECONFIG` says. `namespace`: ours unless given, else `default`.
    #[must_use]
    pub fn new(namespace: Option<String>) -> Self {
        Self {
            pool: Arc::new(Pool::new(Access::default(), Vec::new())),
            namespace: namespace
                .or_else(access::own_namespace)
                .unwrap_or_else(|| "default".to_owned()),
        }
    }

    /// Looks at a StatefulSet and its pods.
    ///
    /// # Errors
    /// The API server does not answer, refuses, or knows no such StatefulSet.
    pub async fn look(&self, name: &str) -> Result<StatefulSet, DcsError> {
        let deadline = Instant::now() + WITHIN;
        let path = format!("/apis/apps/v1/namespaces/{}/statefulsets/{name}", self.namespace);
        let set = self.pool.get(&path, deadline).await?;
        let Some(set) = set else {
            return Err(DcsError::Config(format!(
                "there is no StatefulSet {name} in the namespace {}",
                self.namespace
            )));
        };
        let labels = set.spec["selector"]["matchLabels"].as_object();
        let labels = labels.into_iter().flatten();
        let query = selector(labels.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))));
        let path = format!("/api/v1/namespaces/{}/pods", self.namespace);
        let pods = self.pool.list(&path, &query, deadline).await?;
        Ok(read(name, &set, &pods.items))
    }

    /// Deletes a pod, if it is still this one: the StatefulSet makes another in its place.
    ///
    /// # Errors
    /// The API server does not answer, or refuses.
    pub async fn delete(&self, pod: &Pod) -> Result<(), DcsError> {
        let path = format!("/api/v1/namespaces/{}/pods/{}", self.namespace, pod.name);
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": pod.uid}});
        let deadline = Instant::now() + WITHIN;
        self.pool.delete(&path, &options, deadline).await.map(drop)
    }
}

fn read(name: &str, set: &Object, pods: &[Object]) -> StatefulSet {
    let number = |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok());
    let replicas = number(&set.spec["replicas"]).unwrap_or(1);
    let seen = set.status["observedGeneration"].as_i64() >= Some(set.metadata.generation);
    let ordinal = |pod: &Object| -> Option<usize> {
        let number = pod.metadata.name.strip_prefix(name)?.strip_prefix('-')?;
        number.parse().ok().filter(|number| *number < replicas)
    };
    let mut pods: Vec<(usize, Pod)> = pods
        .iter()
        .filter_map(|pod| Some((ordinal(pod)?, read_pod(pod))))
        .collect();
    pods.sort_by_key(|(number, _)| *number);
    StatefulSet {
        replicas,
        revision: set.status["updateRevision"]
            .as_str()
            .filter(|_| seen)
            .map(str::to_owned),
        pods: pods.into_iter().map(|(_, pod)| pod).collect(),
    }
}

fn read_pod(pod: &Object) -> Pod {
    let conditions = pod.status["conditions"].as_array();
    let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    // What the member says itself, where it says it here.
    let published = pod
        .annotation(STATUS)
        .and_then(|text| serde_json::from_str::<Value>(text).ok())
        .and_then(|data| Some(data["api_url"].as_str()?.trim_end_matches("/patroni").to_owned()));
    let address = pod.status["podIP"].as_str().map(|ip| match ip.contains(':') {
        true => format!("http://[{ip}]:8008"),
        false => format!("http://{ip}:8008"),
    });
    Pod {
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        revision: pod
            .metadata
            .labels
            .get("controller-revision-hash")
            .cloned()
            .unwrap_or_default(),
        ready: conditions.into_iter().flatten().any(ready),
        ending: pod.metadata.deletion_timestamp.is_some(),
        api: published.or(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        serde_json::from_value(value).expect("an object")
    }

    fn set(generation: i64) -> Object {
        object(json!({
            "metadata": {"name": "pg", "generation": generation},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"cluster-name": "pg"}}},
            "status": {"observedGeneration": 3, "updateRevision": "pg-b"},
        }))
    }

    #[test]
    fn a_statefulset_is_read_with_the_pods_it_is_to_keep() {
        let pod = |name: &str| {
            object(json!({
                "metadata": {"name": name, "uid": "u", "labels": {"controller-revision-hash": "pg-a"}},
                "status": {"podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": "True"}]},
            }))
        };
        let mut ending = pod("pg-0");
        ending.metadata.deletion_timestamp = Some("2026-01-05T08:00:00Z".into());
        ending.status["conditions"] = Value::Null;
        let status = r#"{"api_url": "https://pg-0.members:8008/patroni"}"#;
        ending.metadata.annotations.insert(STATUS.into(), status.into());
        let read = read("pg", &set(3), &[pod("pg-2"), pod("pg-1"), ending, pod("pg-x-0")]);
        let expected = |name: &str, ready, ending, api: &str| Pod {
            name: name.into(),
            uid: "u".into(),
            revision: "pg-a".into(),
            ready,
            ending,
            api: Some(api.into()),
        };
        assert_eq!(
            read,
            StatefulSet {
                replicas: 2,
                revision: Some("pg-b".into()),
                pods: vec![
                    expected("pg-0", false, true, "https://pg-0.members:8008"),
                    expected("pg-1", true, false, "http://10.0.0.7:8008"),
                ],
            }
        );
    }

    #[test]
    fn a_change_that_the_control_plane_has_not_seen_has_no_revision_yet() {
        assert_eq!(read("pg", &set(4), &[]).revision, None);
    }
}
