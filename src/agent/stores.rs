//! From the settings of a store to its backend.

use std::sync::Arc;

use crate::{
    config::{Config, Kubernetes},
    dcs::{Dcs, DcsError},
};

/// Who uses the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// A member, for its life.
    Member,
    /// One command.
    CommandLine,
}

#[cfg(not(feature = "kubernetes"))]
pub(super) fn kubernetes(
    _config: &Config,
    _settings: &Kubernetes,
    _user: For,
) -> Result<Arc<dyn Dcs>, DcsError> {
    Err(DcsError::Config(
        "Kubernetes as DCS is not supported in this build".to_owned(),
    ))
}

#[cfg(feature = "kubernetes")]
pub(super) fn kubernetes(
    config: &Config,
    settings: &Kubernetes,
    user: For,
) -> Result<Arc<dyn Dcs>, DcsError> {
    use crate::{
        config::KubernetesMode,
        dcs::kubernetes::{self as backend, Labels, Mode, Options, Port},
    };
    let options = Options {
        mode: match settings.mode {
            KubernetesMode::ConfigMaps => Mode::ConfigMaps,
            KubernetesMode::Endpoints => Mode::Endpoints,
            KubernetesMode::Leases => Mode::Leases,
        },
        namespace: settings.namespace.clone(),
        scope: config.scope.clone(),
        name: config.name.0.clone(),
        labels: settings.labels.clone(),
        scope_label: settings.scope_label.clone(),
        pod_labels: Labels {
            role: settings.role_label.clone(),
            leader_value: settings.leader_label_value.clone(),
            follower_value: settings.follower_label_value.clone(),
            standby_leader_value: settings.standby_leader_label_value.clone(),
            tmp_role: settings.tmp_role_label.clone(),
            bootstrap: settings.bootstrap_labels.clone(),
        },
        pod_ip: settings.pod_ip.clone(),
        ports: settings
            .ports
            .iter()
            .map(|port| Port {
                port: port.port,
                name: port.name.clone(),
                protocol: port.protocol.clone(),
            })
            .collect(),
        cacert: settings.cacert.clone(),
        kubeconfig: settings.kubeconfig.clone(),
        context: settings.context.clone(),
        bypass_api_service: settings.bypass_api_service,
        retriable_http_codes: settings.retriable_http_codes.clone(),
        ttl: config.bootstrap.timing.ttl,
        retry_timeout: config.bootstrap.timing.retry_timeout,
    };
    let dcs = backend::Kubernetes::new(options)?;
    if user == For::Member {
        dcs.prepare();
    }
    Ok(dcs)
}
