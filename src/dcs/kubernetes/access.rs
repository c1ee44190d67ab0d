//! How to get to the API server: the pod's service account, or a kubeconfig where there is none (tests, the command
//! line on somebody's machine). Tokens and authorities are files that change: kube reads them again every minute, and
//! the pool loads everything anew once a server refuses the token.

use std::path::{Path, PathBuf};

use kube::config::{AuthInfo, Config, KubeConfigOptions, Kubeconfig};

use crate::dcs::DcsError;

const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// A name that every API server's certificate has.
const INTERNAL_NAME: &str = "kubernetes.default.svc";

/// What is known before the first connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Access {
    pub(super) kubeconfig: Option<PathBuf>,
    pub(super) context: Option<String>,
    pub(super) cacert: Option<PathBuf>,
    /// Whether single API servers are asked, whose addresses their certificate may not name.
    pub(super) bypass: bool,
}

/// Whether the environment and the files of a pod are there.
fn in_cluster() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() && Path::new(SERVICE_ACCOUNT).join("token").exists()
}

/// The namespace of our own pod.
pub(super) fn own_namespace() -> Option<String> {
    if !in_cluster() {
        return None;
    }
    let text = std::fs::read_to_string(Path::new(SERVICE_ACCOUNT).join("namespace")).ok()?;
    Some(text.trim().to_owned()).filter(|name| !name.is_empty())
}

impl Access {
    /// Reads what is there now.
    pub(super) async fn load(&self) -> Result<Config, DcsError> {
        let asked_for =
            self.kubeconfig.is_some() || self.context.is_some() || std::env::var_os("KUBECONFIG").is_some();
        let inside = in_cluster() && !asked_for;
        let mut config = if inside {
            self.service_account()?
        } else {
            self.kubeconfig().await?
        };
        if let Some(cacert) = &self.cacert {
            // The file is what counts; nothing else is trusted beside it.
            config.root_cert = Some(Vec::new());
            config.root_cert_file = Some(cacert.clone());
        }
        if self.bypass && config.tls_server_name.is_none() {
            config.tls_server_name = match inside {
                true => Some(INTERNAL_NAME.to_owned()),
                false => config.cluster_url.host().map(str::to_owned),
            };
        }
        // Retries and limits are ours: see the pool.
        config.default_retry = false;
        config.read_timeout = None;
        Ok(config)
    }

    fn service_account(&self) -> Result<Config, DcsError> {
        let variable = |name: &str| {
            std::env::var(name)
                .map_err(|_| DcsError::Config(format!("kubernetes: {name} is not set in this pod")))
        };
        let (host, port) = (
            variable("KUBERNETES_SERVICE_HOST")?,
            variable("KUBERNETES_SERVICE_PORT")?,
        );
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        let url = format!("https://{host}:{port}");
        let mut config = Config::new(
            url.parse()
                .map_err(|error| DcsError::Config(format!("kubernetes: {url:?} is no address: {error}")))?,
        );
        let ca = Path::new(SERVICE_ACCOUNT).join("ca.crt");
        config.root_cert = Some(Vec::new());
        config.root_cert_file = Some(ca);
        config.auth_info = AuthInfo {
            token_file: Some(format!("{SERVICE_ACCOUNT}/token")),
            ..AuthInfo::default()
        };
        Ok(config)
    }

    async fn kubeconfig(&self) -> Result<Config, DcsError> {
        let wrong = |error: &dyn std::error::Error| {
            DcsError::Config(format!(
                "kubernetes: neither a pod's service account nor a usable kubeconfig: {}",
                chain(error)
            ))
        };
        let file = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let file = file.map_err(|error| wrong(&error))?;
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        Config::from_custom_kubeconfig(file, &options)
            .await
            .map_err(|error| wrong(&error))
    }
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}
