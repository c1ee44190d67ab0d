//! What a client of TLS believes and shows.

use std::{path::PathBuf, sync::Arc};

use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as RustlsError, SignatureScheme,
    client::{
        ResolvesClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::CertifiedKey,
};

use super::files::{self, Identity};

/// How TLS is spoken to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the authorities that may sign the servers' certificates; `None`: those of the system.
    pub cacert: Option<PathBuf>,
    /// Our certificate and its key.
    pub identity: Option<Identity>,
    /// What of the servers' certificates is checked.
    pub check: Check,
}

/// What of a server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Who signed it, and the name in it.
    Whole,
    /// Who signed it.
    Authority,
    /// That the server has its key.
    Nothing,
}

impl Tls {
    /// For one connection or for many: what we show is read again for each, so that rotated files are used without a
    /// restart.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn config(&self) -> Result<ClientConfig, String> {
        let provider = Arc::new(ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = if self.check == Check::Nothing {
            Arc::new(Anybody(Arc::clone(&provider)))
        } else {
            let roots = files::authorities(self.cacert.as_deref())?;
            let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|error| error.to_string())?;
            let named = self.cacert.as_deref().map(files::certificates).transpose()?;
            Arc::new(NamedToo {
                named: named.unwrap_or_default(),
                usual,
                names: self.check == Check::Whole,
            })
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let Some(identity) = &self.identity else {
            return Ok(builder.with_no_client_auth());
        };
        let shown = Shown {
            identity: identity.clone(),
            provider,
        };
        shown.read()?;
        Ok(builder.with_client_cert_resolver(Arc::new(shown)))
    }
}

/// Our certificate, as the files are at the time of each handshake.
struct Shown {
    identity: Identity,
    provider: Arc<CryptoProvider>,
}

impl Shown {
    fn read(&self) -> Result<Arc<CertifiedKey>, String> {
        let (chain, key) = self.identity.read()?;
        let key = CertifiedKey::from_der(chain, key, &self.provider);
        key.map(Arc::new)
            .map_err(|error| format!("{}: {error}", self.identity.cert.display()))
    }
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.identity.fmt(f)
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let read = self.read();
        if let Err(error) = &read {
            tracing::warn!(error, "no client certificate to show");
        }
        read.ok()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// As usual, and a server's certificate that the file of authorities holds itself: a self-signed one is also its own
/// authority, which the rules for chains refuse. Whoever puts it there means this server, by whatever name.
#[derive(Debug)]
struct NamedToo {
    named: Vec<CertificateDer<'static>>,
    usual: Arc<WebPkiServerVerifier>,
    names: bool,
}

impl ServerCertVerifier for NamedToo {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        if self.named.iter().any(|named| named == end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        let verified =
            self.usual
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The name is looked at last: everything else is right.
            Err(RustlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.names => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// Checks nothing but that the other side has the key of the certificate it shows.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
