//! TLS to another member's server as libpq does it: `sslmode`, `sslrootcert`, `sslcert`, `sslkey`, `sslcrl`.
//!
//! | sslmode | encrypted | chain checked | name checked | else |
//! |---|---|---|---|---|
//! | disable | no | | | |
//! | allow, prefer | if it can be | no | no | without TLS |
//! | require | yes | if there is a root certificate | no | fails |
//! | verify-ca | yes | yes | no | fails |
//! | verify-full | yes | yes | yes | fails |
//!
//! Stricter than libpq in one point: for `verify-full` the name must be a subject alternative name, a common name
//! alone does not count. Files are read for each connection, so that renewed certificates need no reload.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        CertificateError, ClientConfig, DigitallySignedStruct, Error as RustlsError, RootCertStore,
        SignatureScheme,
        client::{
            WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
            verify_server_name,
        },
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{
            CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
            pem::PemObject as _,
        },
        server::ParsedCertificate,
    },
};

/// What libpq calls the system's authorities.
const SYSTEM: &str = "system";
/// Where Linux distributions keep them.
const SYSTEM_FILES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Why no TLS connection can even be tried.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot use {keyword} {}", path.display())]
    File {
        /// The libpq keyword that names it.
        keyword: &'static str,
        /// The file.
        path: PathBuf,
        /// Reason.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("cannot use {keyword} {}: {reason}", path.display())]
    Content {
        /// The libpq keyword that names it.
        keyword: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Verification is asked for and there is nothing to verify with.
    #[error("sslmode {mode} needs sslrootcert (a file, or 'system')")]
    NoRoot {
        /// The mode.
        mode: &'static str,
    },
    /// A mode nobody knows.
    #[error("sslmode '{0}' is unknown (disable, allow, prefer, require, verify-ca, verify-full)")]
    Mode(String),
    /// The certificates do not go together.
    #[error("cannot set TLS up")]
    Setup(#[source] RustlsError),
}

/// How much is asked of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// The TLS part of an account's libpq options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// libpq's `sslmode`; `prefer` unless given.
    pub sslmode: Option<String>,
    /// Authorities.
    pub sslrootcert: Option<String>,
    /// Our certificate.
    pub sslcert: Option<String>,
    /// Its key.
    pub sslkey: Option<String>,
    /// Revoked certificates.
    pub sslcrl: Option<String>,
}

impl TlsOptions {
    /// Picks them out of libpq options by keyword.
    #[must_use]
    pub fn from_options(options: &BTreeMap<String, String>) -> Self {
        let get = |keyword: &str| options.get(keyword).filter(|text| !text.is_empty()).cloned();
        Self {
            sslmode: get("sslmode"),
            sslrootcert: get("sslrootcert"),
            sslcert: get("sslcert"),
            sslkey: get("sslkey"),
            sslcrl: get("sslcrl"),
        }
    }

    fn mode(&self) -> Result<Mode, TlsError> {
        match self.sslmode.as_deref().map(str::trim) {
            None | Some("allow" | "prefer") => Ok(Mode::Prefer),
            Some("disable") => Ok(Mode::Disable),
            Some("require") => Ok(Mode::Require),
            Some("verify-ca") => Ok(Mode::VerifyCa),
            Some("verify-full") => Ok(Mode::VerifyFull),
            Some(other) => Err(TlsError::Mode(other.to_owned())),
        }
    }

    /// What to try, in order.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub(super) fn attempts(&self) -> Result<Vec<Attempt>, TlsError> {
        let mode = self.mode()?;
        Ok(match mode {
            Mode::Disable => vec![Attempt::Plain],
            // An unusable certificate of ours is no reason not to try without.
            Mode::Prefer => match self.connector(mode) {
                Ok(tls) => vec![
                    Attempt::Tls(tls, tokio_postgres::config::SslMode::Prefer),
                    Attempt::Plain,
                ],
                Err(error) => {
                    tracing::debug!(%error, "not trying TLS");
                    vec![Attempt::Plain]
                }
            },
            _ => vec![Attempt::Tls(
                self.connector(mode)?,
                tokio_postgres::config::SslMode::Require,
            )],
        })
    }

    fn connector(&self, mode: Mode) -> Result<MakeTls, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = self.verifier(mode, &provider)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let cert = own_file(self.sslcert.as_deref(), "postgresql.crt");
        let key = own_file(self.sslkey.as_deref(), "postgresql.key");
        let mut config = match (cert, key) {
            (Some(cert), Some(key)) => builder
                .with_client_auth_cert(certificates("sslcert", &cert)?, private_key(&key)?)
                .map_err(TlsError::Setup)?,
            _ => builder.with_no_client_auth(),
        };
        // PostgreSQL 17 and newer insist on it for direct negotiation and ignore it otherwise.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(MakeTls(Arc::new(config)))
    }

    fn verifier(&self, mode: Mode, provider: &Arc<CryptoProvider>) -> Result<Verifier, TlsError> {
        let root = own_file(self.sslrootcert.as_deref(), "root.crt");
        let provider = Arc::clone(provider);
        let (root, name) = match (mode, root) {
            (Mode::Disable | Mode::Prefer, _) | (Mode::Require, None) => {
                return Ok(Verifier {
                    provider,
                    chain: None,
                    name: false,
                });
            }
            (Mode::VerifyCa, None) => return Err(TlsError::NoRoot { mode: "verify-ca" }),
            (Mode::VerifyFull, None) => return Err(TlsError::NoRoot { mode: "verify-full" }),
            // As libpq: a root certificate turns `require` into `verify-ca`; the system's authorities sign for
            // anybody, so with them only the name says who it is.
            (_, Some(root)) if root == Path::new(SYSTEM) => (system_file()?, true),
            (mode, Some(root)) => (root, mode == Mode::VerifyFull),
        };
        let pinned = certificates("sslrootcert", &root)?;
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(pinned.iter().cloned());
        if added == 0 {
            return Err(content("sslrootcert", &root, "it holds no usable certificate"));
        }
        let mut builder = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider));
        if let Some(crl) = &self.sslcrl {
            builder = builder
                .with_crls(revocations(Path::new(crl))?)
                .allow_unknown_revocation_status();
        }
        let inner = builder
            .build()
            .map_err(|error| content("sslrootcert", &root, &error.to_string()))?;
        Ok(Verifier {
            provider,
            chain: Some((inner, pinned)),
            name,
        })
    }
}

/// One way to connect.
pub(super) enum Attempt {
    /// Without TLS.
    Plain,
    /// With TLS, or (in mode prefer) without if the server does not speak it.
    Tls(MakeTls, tokio_postgres::config::SslMode),
}

fn home_file(name: &str) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(Path::new(&home).join(".postgresql").join(name))
}

/// The configured file, or libpq's default one if it is there.
fn own_file(given: Option<&str>, default: &str) -> Option<PathBuf> {
    given
        .map(PathBuf::from)
        .or_else(|| home_file(default).filter(|file| file.exists()))
}

fn system_file() -> Result<PathBuf, TlsError> {
    SYSTEM_FILES
        .iter()
        .map(PathBuf::from)
        .find(|file| file.exists())
        .ok_or_else(|| {
            content(
                "sslrootcert",
                Path::new(SYSTEM),
                "this system has no file of authorities",
            )
        })
}

fn content(keyword: &'static str, path: &Path, reason: &str) -> TlsError {
    TlsError::Content {
        keyword,
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

fn read(keyword: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::File {
        keyword,
        path: path.to_owned(),
        source,
    })
}

fn certificates(keyword: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(keyword, path)?;
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match list {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(content(keyword, path, "it holds no certificate in PEM form")),
        Err(error) => Err(content(keyword, path, &error.to_string())),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read("sslkey", path)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
        let encrypted = bytes.windows(9).any(|word| word == b"ENCRYPTED");
        let reason = if encrypted {
            "it is encrypted; the agent can only use a key without a password".to_owned()
        } else {
            error.to_string()
        };
        content("sslkey", path, &reason)
    })
}

fn revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let bytes = read("sslcrl", path)?;
    let list: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    list.map_err(|error| content("sslcrl", path, &error.to_string()))
}

/// Checks what the mode asks for: nothing, the chain, or the chain and the name.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    chain: Option<(Arc<WebPkiServerVerifier>, Vec<CertificateDer<'static>>)>,
    name: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        let Some((chain, pinned)) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        // A self-signed certificate that is its own root is what most people start with.
        if pinned.iter().any(|root| root == end_entity) {
            if self.name {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        let checked = chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match checked {
            // The name is looked at last, so everything else was in order.
            Err(RustlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Makes TLS connections for the driver.
#[derive(Clone)]
pub(super) struct MakeTls(Arc<ClientConfig>);

impl fmt::Debug for MakeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MakeTls")
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for MakeTls {
    type Stream = Encrypted<S>;
    type TlsConnect = Connect;
    type Error = io::Error;

    fn make_tls_connect(&mut self, domain: &str) -> io::Result<Connect> {
        // What is no host name to TLS (an odd name inside a container network) is never valid for `verify-full`,
        // and without that the name does not matter; an address is not sent to the server.
        let name = ServerName::try_from(domain.to_owned())
            .unwrap_or_else(|_| ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()));
        Ok(Connect {
            config: Arc::clone(&self.0),
            name,
        })
    }
}

/// One handshake to come.
pub(super) struct Connect {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for Connect {
    type Stream = Encrypted<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let connector = TlsConnector::from(self.config);
            connector
                .connect(self.name, stream)
                .await
                .map(|stream| Encrypted(Box::new(stream)))
        })
    }
}

/// An encrypted connection.
pub(super) struct Encrypted<S>(Box<tokio_rustls::client::TlsStream<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Encrypted<S> {
    fn channel_binding(&self) -> ChannelBinding {
        let (_, session) = self.0.get_ref();
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        certificate
            .and_then(|certificate| end_point(certificate))
            .map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

/// `tls-server-end-point` (RFC 5929): the certificate's digest by the hash of its own signature, SHA-256 in place of
/// the broken ones. `None` for signatures that do not name a hash.
fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    const RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01];
    const ECDSA: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03];
    let (outer, _) = element(certificate)?;
    let (_, rest) = element(outer)?;
    let (algorithm, _) = element(rest)?;
    let (oid, _) = element(algorithm)?;
    let (family, kind) = oid.split_at_checked(oid.len().checked_sub(1)?)?;
    match (family, kind.first()?) {
        (RSA, 4 | 5 | 11) | (ECDSA, 2) => Some(Sha256::digest(certificate).to_vec()),
        (RSA, 12) | (ECDSA, 3) => Some(Sha384::digest(certificate).to_vec()),
        (RSA, 13) | (ECDSA, 4) => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

/// Splits the first DER element off: its content and what follows it.
fn element(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = der.get(1..)?.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
        if bytes.len() > 4 {
            return None;
        }
        let length = bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        (length, rest)
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[(&str, &str)]) -> TlsOptions {
        let map = list
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        TlsOptions::from_options(&map)
    }

    #[test]
    fn prefer_is_the_default_and_falls_back() {
        for list in [
            &[][..],
            &[("sslmode", "prefer")],
            &[("sslmode", "allow"), ("sslcert", "/nonexistent")],
        ] {
            let attempts = options(list).attempts().expect("usable");
            assert!(matches!(attempts.last(), Some(Attempt::Plain)), "{list:?}");
        }
        assert_eq!(options(&[]).attempts().expect("usable").len(), 2);
    }

    #[test]
    fn a_required_mode_never_falls_back() {
        let attempts = options(&[("sslmode", "require")]).attempts().expect("usable");
        assert!(matches!(
            attempts[..],
            [Attempt::Tls(_, tokio_postgres::config::SslMode::Require)]
        ));
        let attempts = options(&[("sslmode", "disable")]).attempts().expect("usable");
        assert!(matches!(attempts[..], [Attempt::Plain]));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = |list: &[(&str, &str)]| options(list).attempts().err().expect("refused").to_string();
        assert_eq!(error(&[("sslmode", "on")]).split(' ').nth(1), Some("'on'"));
        assert!(
            error(&[("sslmode", "verify-full"), ("sslrootcert", "/nonexistent")]).contains("/nonexistent")
        );
    }

    #[test]
    fn der_is_split_with_bounds() {
        assert_eq!(element(&[0x30, 2, 1, 2, 9]), Some((&[1, 2][..], &[9][..])));
        assert_eq!(element(&[0x30, 0x82, 0, 1, 7]), Some((&[7][..], &[][..])));
        for broken in [
            &[][..],
            &[0x30],
            &[0x30, 5, 1],
            &[0x30, 0x89, 1],
            &[0x30, 0x82, 1],
        ] {
            assert_eq!(element(broken), None, "{broken:?}");
        }
        assert_eq!(end_point(&[0x30, 0]), None);
    }
}
