//! What the REST API shows and asks for (contract: REST API §1, §2).

use std::{path::PathBuf, sync::Arc, time::Duration};

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_rustls::rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio_util::sync::CancellationToken;

use super::{
    ciphers,
    files::{self, Identity},
};

/// How often the files are looked at; a reload looks at once.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Whether clients must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyClient {
    /// None is asked for.
    No,
    /// Who shows one has to show one that is good; who changes something has to show one.
    Optional,
    /// Without a good one there is no connection.
    Required,
}

/// TLS of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Certificate and key.
    pub identity: Identity,
    /// Authorities of clients' certificates.
    pub cafile: Option<PathBuf>,
    /// OpenSSL's cipher string.
    pub ciphers: Option<String>,
    /// Whether clients must show a certificate.
    pub verify_client: VerifyClient,
}

/// What is in force.
#[derive(Debug, Clone)]
pub struct InForce {
    /// For the next connection.
    pub config: Arc<ServerConfig>,
    /// When the certificate ends, seconds since 1970.
    pub expires: Option<u64>,
    /// Whether who changes something must have shown a certificate.
    pub wants_certificate: bool,
    /// Tells whether anything changed.
    seen: Seen,
}

/// The settings, and a digest of all files.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen(Settings, [u8; 32]);

impl Settings {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(&self) -> Result<InForce, String> {
        let seen = self.look();
        let mut provider = ring::default_provider();
        if let Some(string) = &self.ciphers {
            provider.cipher_suites = ciphers::chosen(string)?;
        }
        let provider = Arc::new(provider);
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match self.verify_client {
            VerifyClient::No => builder.with_no_client_auth(),
            wanted => builder.with_client_cert_verifier(self.verifier(wanted, provider)?),
        };
        let (chain, key) = self.identity.read()?;
        let expires = chain.first().and_then(files::expires);
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| format!("{}: {error}", self.identity.cert.display()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Nothing is resumed: sessions in memory would cost more than the handshakes of health checks.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(InForce {
            config: Arc::new(config),
            expires,
            wants_certificate: self.verify_client != VerifyClient::No,
            seen,
        })
    }

    fn verifier(
        &self,
        wanted: VerifyClient,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn tokio_rustls::rustls::server::danger::ClientCertVerifier>, String> {
        let roots = files::authorities(self.cafile.as_deref())?;
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let builder = match wanted {
            VerifyClient::Optional => builder.allow_unauthenticated(),
            VerifyClient::Required | VerifyClient::No => builder,
        };
        builder.build().map_err(|error| error.to_string())
    }

    fn look(&self) -> Seen {
        let files = [
            Some(&self.identity.cert),
            Some(&self.identity.key),
            self.cafile.as_ref(),
        ];
        let mut digest = Sha256::new();
        for file in files.into_iter().flatten() {
            // What cannot be read now is no content; the loading says why.
            let content = std::fs::read(file).unwrap_or_default();
            digest.update(content.len().to_le_bytes());
            digest.update(content);
        }
        Seen(self.clone(), digest.finalize().into())
    }
}

/// Follows the files and the settings until `shutdown`: who takes a connection next takes it with what is in force then, and
/// those that are open stay as they are. What cannot be used is said once and changes nothing.
pub async fn keep(
    mut settings: watch::Receiver<Option<Settings>>,
    in_force: watch::Sender<Option<InForce>>,
    shutdown: CancellationToken,
) {
    let mut refused = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = settings.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let Some(now) = settings.borrow_and_update().clone() else {
            continue;
        };
        let before = in_force.borrow().as_ref().map(|before| before.seen.clone());
        let last_refused = refused.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let seen = now.look();
            if Some(&seen) == before.as_ref() || Some(&seen) == last_refused.as_ref() {
                return None;
            }
            Some((now.load(), seen))
        });
        match looked.await {
            Ok(Some((Ok(loaded), _))) => {
                tracing::info!(
                    expires = loaded.expires,
                    "REST API: certificate and settings of TLS replaced"
                );
                refused = None;
                in_force.send_replace(Some(loaded));
            }
            Ok(Some((Err(error), seen))) => {
                tracing::error!(
                    error,
                    "REST API: the new certificate cannot be used, the one before stays"
                );
                refused = Some(seen);
            }
            Ok(None) | Err(_) => {}
        }
    }
}
