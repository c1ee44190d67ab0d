//! What the service account is allowed to do, asked of the API server itself at start: whoever is on call should read
//! "patch endpoints is missing" and not work it out from a 403 in the middle of a failover.

use std::fmt;

use serde_json::json;
use tokio::time::Instant;

use super::{
    Kubernetes, Wrote,
    layout::{Kind, Mode},
    object::Place,
};
use crate::dcs::DcsError;

/// One right: a verb on a kind of object in the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Right {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot = if self.group.is_empty() { "" } else { "." };
        write!(f, "{} {}{dot}{}", self.verb, self.resource, self.group)
    }
}

/// The least a member needs.
fn needed(mode: Mode) -> Vec<Right> {
    let mut rights = Vec::new();
    let mut allow = |kind: Kind, verbs: &[&'static str]| {
        rights.extend(verbs.iter().map(|verb| Right {
            verb,
            group: kind.group(),
            resource: kind.plural(),
        }));
    };
    allow(Kind::Pod, &["get", "list", "watch", "patch"]);
    allow(
        mode.kind(Place::Config),
        &["get", "list", "watch", "create", "patch"],
    );
    if mode == Mode::Leases {
        allow(Kind::Lease, &["get", "list", "watch", "create", "patch"]);
        allow(Kind::EndpointSlice { beta: false }, &["get", "create", "patch"]);
    }
    rights
}

impl Kubernetes {
    /// The rights this member lacks.
    ///
    /// # Errors
    /// The API server does not answer, or does not tell.
    pub async fn missing_rights(&self) -> Result<Vec<Right>, DcsError> {
        let deadline = self.deadline();
        let mut missing = Vec::new();
        for right in needed(self.layout.mode) {
            if !self.may(right, deadline).await? {
                missing.push(right);
            }
        }
        Ok(missing)
    }

    async fn may(&self, right: Right, deadline: Instant) -> Result<bool, DcsError> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {
                "namespace": self.layout.namespace,
                "verb": right.verb,
                "group": right.group,
                "resource": right.resource,
            }},
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        match self.pool.create(path, &review, deadline).await? {
            Wrote::Done(review) => Ok(review.status["allowed"].as_bool().unwrap_or(false)),
            // Whoever does not know about rights does not refuse any.
            Wrote::Missing | Wrote::Conflict => Ok(true),
        }
    }

    /// Says which mode is used and what is missing for it; until it is known.
    pub(super) async fn tell_rights(&self) {
        let (mode, namespace) = (self.layout.mode.as_str(), self.layout.namespace.as_str());
        match self.missing_rights().await {
            Ok(missing) if missing.is_empty() => {
                tracing::info!(
                    mode,
                    namespace,
                    scope = self.layout.scope,
                    "the DCS is Kubernetes, all rights it needs are there"
                );
            }
            Ok(missing) => {
                let missing: Vec<String> = missing.iter().map(Right::to_string).collect();
                tracing::error!(
                    mode,
                    namespace,
                    missing = missing.join(", "),
                    "the service account lacks rights in this namespace: add them to its Role"
                );
            }
            Err(error) => {
                tracing::warn!(mode, namespace, %error, "the DCS is Kubernetes; it does not tell our rights")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rights_are_named_as_in_a_role() {
        let names = |mode| {
            needed(mode)
                .iter()
                .map(Right::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        };
        assert_eq!(
            names(Mode::Endpoints),
            "get pods, list pods, watch pods, patch pods, get endpoints, list endpoints, watch endpoints, \
             create endpoints, patch endpoints"
        );
        assert!(names(Mode::Leases).contains("patch leases.coordination.k8s.io"));
        assert!(names(Mode::Leases).contains("create endpointslices.discovery.k8s.io"));
        assert!(!names(Mode::ConfigMaps).contains("delete"));
    }
}
