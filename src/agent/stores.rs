//! From the settings of a store to its backend.

use std::sync::Arc;

use crate::{
    config::{self, Config, DcsConfig, Kubernetes},
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

/// The store of these settings, if it is none of etcd's.
pub(super) fn open(config: &Config, user: For) -> Result<Arc<dyn Dcs>, DcsError> {
    match &config.dcs {
        DcsConfig::Kubernetes(settings) => kubernetes(config, settings, user),
        DcsConfig::Consul(settings) => consul(config, settings, user),
        DcsConfig::ZooKeeper(settings) => zookeeper(config, settings, user),
        DcsConfig::Etcd3(_) | DcsConfig::Embedded(_) => {
            Err(DcsError::Config("etcd is opened elsewhere".to_owned()))
        }
    }
}

#[cfg(not(feature = "consul"))]
fn consul(_config: &Config, _settings: &config::Consul, _user: For) -> Result<Arc<dyn Dcs>, DcsError> {
    Err(DcsError::Config(
        "Consul as DCS is not supported in this build".to_owned(),
    ))
}

#[cfg(feature = "consul")]
fn consul(config: &Config, settings: &config::Consul, user: For) -> Result<Arc<dyn Dcs>, DcsError> {
    use crate::dcs::consul::{Consistency, Consul, Options, Service};
    let service = settings.service.as_ref().filter(|_| user == For::Member);
    let consul = Consul::new(Options {
        host: settings.host.clone(),
        tls: settings.tls.clone(),
        token: settings.token.as_ref().map(|token| token.reveal().to_owned()),
        dc: settings.dc.clone(),
        consistency: match settings.consistent {
            true => Consistency::Consistent,
            false => Consistency::Default,
        },
        checks: settings.checks.clone(),
        service: service.map(|service| Service {
            tags: service.tags.clone(),
            check_interval: service.check_interval.clone(),
            check_tls_server_name: service.check_tls_server_name.clone(),
        }),
        address: config.postgresql.connect_address.host.clone(),
        namespace: config.namespace.clone(),
        scope: config.scope.clone(),
        name: config.name.0.clone(),
        ttl: config.bootstrap.timing.ttl,
        retry_timeout: config.bootstrap.timing.retry_timeout,
    })?;
    if user == For::Member {
        tracing::info!(agent = settings.host, "the DCS is Consul");
    }
    Ok(Arc::new(consul))
}

#[cfg(feature = "zookeeper")]
fn zookeeper(config: &Config, settings: &config::ZooKeeper, user: For) -> Result<Arc<dyn Dcs>, DcsError> {
    use crate::dcs::zookeeper::{Acl, Options, ZooKeeper};
    let auth = settings.auth.iter();
    let acl = |(scheme, id, permissions): &(String, String, u32)| Acl {
        permissions: *permissions,
        scheme: scheme.clone(),
        id: id.clone(),
    };
    let zookeeper = ZooKeeper::new(Options {
        hosts: settings.hosts.clone(),
        chroot: settings.chroot.clone(),
        tls: settings.tls.clone(),
        auth: auth
            .map(|(scheme, credential)| (scheme.clone(), credential.reveal().to_owned()))
            .collect(),
        acls: settings.acls.iter().map(acl).collect(),
        namespace: config.namespace.clone(),
        scope: config.scope.clone(),
        name: config.name.0.clone(),
        ttl: config.bootstrap.timing.ttl,
        retry_timeout: config.bootstrap.timing.retry_timeout,
    })?;
    if user == For::Member {
        tracing::info!(servers = ?settings.hosts, "the DCS is ZooKeeper");
    }
    Ok(Arc::new(zookeeper))
}

#[cfg(not(feature = "zookeeper"))]
fn zookeeper(_config: &Config, _settings: &config::ZooKeeper, _user: For) -> Result<Arc<dyn Dcs>, DcsError> {
    Err(DcsError::Config(
        "ZooKeeper as DCS is not supported in this build".to_owned(),
    ))
}

#[cfg(not(feature = "kubernetes"))]
fn kubernetes(_config: &Config, _settings: &Kubernetes, _user: For) -> Result<Arc<dyn Dcs>, DcsError> {
    Err(DcsError::Config(
        "Kubernetes as DCS is not supported in this build".to_owned(),
    ))
}

#[cfg(feature = "kubernetes")]
fn kubernetes(config: &Config, settings: &Kubernetes, user: For) -> Result<Arc<dyn Dcs>, DcsError> {
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
