//! Our own pod: the member key in its annotation, and the labels that Services and operators select by (contract: DCS
//! layout §9, pod labels). A pod is a member as long as it exists and has not ended: nothing here runs out with time.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{
    Kubernetes, Wrote,
    layout::Kind,
    lock,
    object::{Object, STATUS},
};
use crate::{
    dcs::DcsError,
    model::{MemberData, PgState, Role},
};

/// Names and values of the labels of pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Label with the role.
    pub role: String,
    /// Its value at the leader.
    pub leader_value: String,
    /// Its value at a replica.
    pub follower_value: String,
    /// Its value at the leader of a standby cluster.
    pub standby_leader_value: String,
    /// A second label with the role in Patroni's words.
    pub tmp_role: Option<String>,
    /// Set while the member is being made.
    pub bootstrap: BTreeMap<String, String>,
}

impl Default for Labels {
    fn default() -> Self {
        Self {
            role: "role".into(),
            leader_value: "primary".into(),
            follower_value: "replica".into(),
            standby_leader_value: "primary".into(),
            tmp_role: None,
            bootstrap: BTreeMap::new(),
        }
    }
}

/// The labels of a pod as a patch; `null`: not there.
fn labels(settings: &Labels, leading: bool, role: Role, state: PgState) -> Map<String, Value> {
    let (value, plain) = if leading {
        let value = match role {
            Role::StandbyLeader => &settings.standby_leader_value,
            _ => &settings.leader_value,
        };
        (Some(value.as_str()), Some(Role::Primary.as_str()))
    } else if state == PgState::Running && role != Role::Primary {
        let value = match role {
            Role::Replica => settings.follower_value.as_str(),
            other => other.as_str(),
        };
        (Some(value), Some(role.as_str()))
    } else {
        (None, None)
    };
    let mut labels = Map::new();
    labels.insert(settings.role.clone(), value.map_or(Value::Null, Value::from));
    if let Some(name) = &settings.tmp_role {
        labels.insert(name.clone(), plain.map_or(Value::Null, Value::from));
    }
    let made = matches!(
        state,
        PgState::Initializing
            | PgState::CustomBootstrap
            | PgState::StartingAfterCustomBootstrap
            | PgState::CreatingReplica
    );
    for (name, value) in &settings.bootstrap {
        let value = if made {
            Value::from(value.as_str())
        } else {
            Value::Null
        };
        labels.insert(name.clone(), value);
    }
    labels
}

/// What our pod last said of us.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Published {
    status: String,
    labels: Map<String, Value>,
}

impl Published {
    fn is_on(&self, pod: &Object) -> bool {
        let label = |(name, value): (&String, &Value)| {
            pod.metadata.labels.get(name).map(String::as_str) == value.as_str()
        };
        pod.annotation(STATUS) == Some(&self.status) && self.labels.iter().all(label)
    }
}

impl Kubernetes {
    pub(super) async fn publish(&self, value: &str, deadline: Instant) -> Result<(), DcsError> {
        let data: MemberData = serde_json::from_str(value).unwrap_or_default();
        let leading = lock(&self.state).leading;
        let now = Published {
            status: value.to_owned(),
            labels: labels(&self.pod_labels, leading, data.role, data.state),
        };
        if lock(&self.state).published.as_ref() == Some(&now) {
            return Ok(());
        }
        let patch = json!({"metadata": {"labels": now.labels, "annotations": {STATUS: value}}});
        self.patch_pod(&patch, deadline).await?;
        lock(&self.state).published = Some(now);
        Ok(())
    }

    /// Takes the member key away, and with it the labels by which we would be found.
    pub(super) async fn unpublish(&self, deadline: Instant) -> Result<(), DcsError> {
        lock(&self.state).published = None;
        let labels = labels(&self.pod_labels, false, Role::Uninitialized, PgState::Stopped);
        let patch = json!({"metadata": {"labels": labels, "annotations": {STATUS: null}}});
        self.patch_pod(&patch, deadline).await
    }

    async fn patch_pod(&self, patch: &Value, deadline: Instant) -> Result<(), DcsError> {
        let path = self.layout.one(Kind::Pod, &self.name);
        match self.pool.patch(&path, patch, deadline).await? {
            Wrote::Done(_) => Ok(()),
            Wrote::Conflict | Wrote::Missing => Err(DcsError::Answer {
                endpoint: path,
                reason: format!(
                    "there is no such pod: the name of a member (HOWDAH_NAME, {}) is that of its pod, in the namespace \
                     HOWDAH_KUBERNETES_NAMESPACE",
                    self.name
                ),
            }),
        }
    }

    /// A read that shows our pod without what we said makes the next touch say it again.
    pub(super) fn check_pod(&self, pods: &[Object]) {
        let mut state = lock(&self.state);
        let intact = state.published.as_ref().is_some_and(|published| {
            let own = pods.iter().find(|pod| pod.metadata.name == self.name);
            own.is_some_and(|pod| published.is_on(pod))
        });
        if !intact {
            state.published = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_tell_the_role_as_patroni_does() {
        let settings = Labels {
            role: "spilo-role".into(),
            leader_value: "master".into(),
            standby_leader_value: "standby".into(),
            tmp_role: Some("tmp".into()),
            bootstrap: BTreeMap::from([("init".into(), "yes".into())]),
            ..Labels::default()
        };
        let told = |leading, role, state| {
            let labels = labels(&settings, leading, role, state);
            ["spilo-role", "tmp", "init"].map(|name| labels[name].as_str().unwrap_or("-").to_owned())
        };
        assert_eq!(
            told(true, Role::Primary, PgState::Running),
            ["master", "primary", "-"]
        );
        assert_eq!(
            told(true, Role::StandbyLeader, PgState::Running),
            ["standby", "primary", "-"]
        );
        // The lock counts, not what postgres is at the moment.
        assert_eq!(
            told(true, Role::Replica, PgState::Running),
            ["master", "primary", "-"]
        );
        assert_eq!(
            told(false, Role::Replica, PgState::Running),
            ["replica", "replica", "-"]
        );
        assert_eq!(told(false, Role::Primary, PgState::Running), ["-", "-", "-"]);
        assert_eq!(told(false, Role::Replica, PgState::Starting), ["-", "-", "-"]);
        assert_eq!(
            told(false, Role::Replica, PgState::CreatingReplica),
            ["-", "-", "yes"]
        );
        assert_eq!(
            told(true, Role::Uninitialized, PgState::Initializing),
            ["master", "primary", "yes"]
        );
    }

    #[test]
    fn a_pod_that_somebody_changed_is_written_again() {
        let published = Published {
            status: "{}".into(),
            labels: Map::from_iter([
                ("role".to_owned(), "primary".into()),
                ("init".to_owned(), Value::Null),
            ]),
        };
        let mut pod = Object::default();
        pod.metadata.annotations.insert("status".into(), "{}".into());
        pod.metadata.labels.insert("role".into(), "primary".into());
        assert!(published.is_on(&pod));
        pod.metadata.labels.insert("init".into(), "yes".into());
        assert!(!published.is_on(&pod));
        pod.metadata.labels.remove("init");
        pod.metadata.labels.insert("role".into(), "replica".into());
        assert!(!published.is_on(&pod));
    }
}
