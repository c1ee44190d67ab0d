//! The leader's Service. With Endpoints the address is part of the lock's object, and changes hands with it. Here: the
//! EndpointSlice that a Lease needs beside it, and the Service that keeps the control plane from removing Endpoints
//! that no Service seems to need.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Kubernetes, Wrote,
    layout::{Kind, Target},
    lock,
    object::{Object, Patch},
};
use crate::dcs::DcsError;

/// Whoever makes EndpointSlices says so, or the control plane's own controller takes them for its.
const MANAGER: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "howdah");
const SERVICE: &str = "kubernetes.io/service-name";
/// Late is better than never, but a renewal must not pile these up.
const LIMIT: Duration = Duration::from_secs(3);

impl Kubernetes {
    /// After each renewal, beside it: the slice names us. A leader that was frozen may have written its own address
    /// late; so it is looked at each time.
    pub(super) fn keep_service_in_background(&self) {
        let Some(me) = self.me.upgrade() else { return };
        let Ok(turn) = Arc::clone(&self.serving).try_lock_owned() else {
            return;
        };
        tokio::spawn(async move {
            let _turn = turn;
            let deadline = Instant::now() + LIMIT;
            if let Some(target) = me.target(deadline).await
                && lock(&me.state).leading
            {
                me.point_service_at(Some(&target), deadline).await;
            }
        });
    }

    /// Whatever goes wrong is logged once: the lock does not depend on it.
    pub(super) async fn point_service_at(&self, target: Option<&Target>, deadline: Instant) {
        let done = self.write_slice(target, deadline).await;
        let mut state = lock(&self.state);
        match done {
            Ok(()) => state.service_failed = false,
            Err(error) if !state.service_failed => {
                state.service_failed = true;
                tracing::warn!(%error, "cannot point the leader's Service (EndpointSlice) at the leader");
            }
            Err(error) => tracing::debug!(%error, "still cannot write the EndpointSlice"),
        }
    }

    async fn write_slice(&self, target: Option<&Target>, deadline: Instant) -> Result<(), DcsError> {
        let beta = self.old_slices(deadline).await?;
        let kind = Kind::EndpointSlice { beta };
        // Addresses of both families cannot be in one slice, and the family of a slice cannot change.
        let family = match target {
            Some(target) if target.ip.contains(':') => "v6",
            _ => "v4",
        };
        let name = format!("{}-leader-{family}", self.layout.scope);
        let path = self.layout.one(kind, &name);
        let parts = self.layout.slice(beta, target, &self.ports);
        let there = self.pool.get(&path, deadline).await?;
        let wrote = match &there {
            None if target.is_none() => return Ok(()),
            None => {
                let mut create = self.layout.create(kind, &name, Patch::new(), &parts);
                create["metadata"]["labels"] = self.slice_labels();
                self.pool
                    .create(&self.layout.all(kind), &create, deadline)
                    .await?
            }
            Some(slice) if names(slice, target) => return Ok(()),
            Some(slice) if target.is_none() && !self.slice_is_ours(slice) => return Ok(()),
            Some(slice) => {
                let version = slice.metadata.resource_version.as_str();
                let changed = [parts[1].clone(), parts[2].clone()];
                let mut patch = self.layout.patch(Some(version), Patch::new(), &changed);
                patch["metadata"]["labels"] = self.slice_labels();
                self.pool.patch(&path, &patch, deadline).await?
            }
        };
        match wrote {
            Wrote::Done(_) => Ok(()),
            // Somebody else was faster; the next renewal looks again.
            Wrote::Conflict | Wrote::Missing => Ok(()),
        }
    }

    fn slice_labels(&self) -> Value {
        let mut labels = json!(self.layout.labels);
        labels[MANAGER.0] = MANAGER.1.into();
        labels[SERVICE] = self.layout.scope.as_str().into();
        labels
    }

    fn slice_is_ours(&self, slice: &Object) -> bool {
        let target = lock(&self.state).target.clone();
        target.is_some_and(|target| names(slice, Some(&target)))
    }

    /// Whether the server has only the older version of EndpointSlices (before 1.21).
    async fn old_slices(&self, deadline: Instant) -> Result<bool, DcsError> {
        if let Some(beta) = lock(&self.state).old_slices {
            return Ok(beta);
        }
        let there = self.pool.get("/apis/discovery.k8s.io/v1", deadline).await?;
        let beta = there.is_none();
        lock(&self.state).old_slices = Some(beta);
        Ok(beta)
    }

    /// Endpoints without a Service are removed when the control plane starts; so the one with the configuration gets a
    /// Service of its name, as Patroni does, where we may make one.
    pub(super) async fn make_config_service(&self, deadline: Instant) {
        let name = format!("{}-config", self.layout.scope);
        let spec = json!({"clusterIP": "None"});
        let create = self
            .layout
            .create(Kind::Service, &name, Patch::new(), &[("spec", spec)]);
        match self
            .pool
            .create(&self.layout.all(Kind::Service), &create, deadline)
            .await
        {
            Ok(Wrote::Done(_)) => {
                tracing::info!(service = name, "made the Service that keeps the configuration")
            }
            Ok(_) => {}
            Err(error) => tracing::info!(
                %error,
                service = name,
                "cannot make the Service that keeps the configuration's Endpoints from being tidied away; make it, or allow it (create services)"
            ),
        }
    }
}

/// Whether the slice leads to exactly this target.
fn names(slice: &Object, target: Option<&Target>) -> bool {
    let addresses: Vec<&Value> = slice
        .endpoints
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten())
        .collect();
    match (addresses.as_slice(), target) {
        ([], None) => true,
        ([one], Some(target)) => one.as_str() == Some(&target.ip),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_left_alone_only_if_it_leads_to_the_leader_alone() {
        let slice = |endpoints: Value| Object {
            endpoints,
            ..Object::default()
        };
        let target = Target {
            ip: "10.0.0.7".into(),
            hostname: None,
            node: None,
            pod: None,
        };
        let ours = slice(json!([{"addresses": ["10.0.0.7"]}]));
        assert!(names(&ours, Some(&target)) && !names(&ours, None));
        let two = slice(json!([{"addresses": ["10.0.0.7"]}, {"addresses": ["10.0.0.8"]}]));
        assert!(!names(&two, Some(&target)));
        assert!(names(&slice(json!([])), None) && names(&slice(Value::Null), None));
        assert!(!names(&slice(Value::Null), Some(&target)));
    }
}
