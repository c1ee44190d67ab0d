//! From options to a connected client of one endpoint: TLS files, credentials, keepalives.
//!
//! Certificates are read again for every new connection, so that rotated files are used without a restart.

use std::{path::PathBuf, time::Duration};

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};

use super::{
    Options,
    fault::{Fault, classify},
};
use crate::tls::files::SYSTEM_AUTHORITIES;

/// The part of the options a connection needs.
#[derive(Clone, Default)]
pub(super) struct Settings {
    user: Option<(String, String)>,
    cacert: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
}

impl From<&Options> for Settings {
    fn from(options: &Options) -> Self {
        let user = options.username.clone().filter(|user| !user.is_empty());
        // As Patroni does: the key may live in the certificate's file.
        let identity = options.cert.clone().map(|cert| {
            let key = options.key.clone().unwrap_or_else(|| cert.clone());
            (cert, key)
        });
        Self {
            user: user.map(|user| (user, options.password.clone().unwrap_or_default())),
            cacert: options.cacert.clone(),
            identity,
        }
    }
}

impl Settings {
    fn tls(&self) -> Result<TlsOptions, Error> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| {
                Error::IoError(std::io::Error::new(
                    error.kind(),
                    format!("read {}: {error}", path.display()),
                ))
            })
        };
        let authorities = match &self.cacert {
            Some(path) => read(path)?,
            None => SYSTEM_AUTHORITIES
                .iter()
                .find_map(|path| std::fs::read(path).ok())
                .unwrap_or_default(),
        };
        let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(authorities));
        if let Some((cert, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        Ok(tls)
    }

    /// Connects, and authenticates if there is a user. `patience`: for the TCP connection alone.
    pub(super) async fn connect(&self, url: &str, patience: Duration) -> Result<Client, Error> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(patience)
            .with_tcp_keepalive(Duration::from_secs(10))
            // etcd answers pings oftener than every 5 s, or on idle connections, with "too many pings".
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
            .with_keep_alive_while_idle(false)
            // A member cut off from its peers says so at once instead of waiting for an election.
            .with_require_leader(true);
        if url.starts_with("https:") {
            options = options.with_tls(self.tls()?);
        }
        let Some((user, password)) = &self.user else {
            return Client::connect([url], Some(options)).await;
        };
        let named = options.clone().with_user(user, password);
        match Client::connect([url], Some(named)).await {
            Err(error) if classify(&error) == Fault::AuthDisabled => {
                tracing::debug!(
                    endpoint = url,
                    "etcd authentication is off, going on without a user"
                );
                Client::connect([url], Some(options)).await
            }
            result => result,
        }
    }
}
