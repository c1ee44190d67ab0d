//! A connection to a server of a store: TCP, and TLS if it is asked for.
//!
//! Certificates are read again for every connection, so that rotated files are used without a restart.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, DigitallySignedStruct, Error as RustlsError, RootCertStore, SignatureScheme,
        client::{
            WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    },
};

/// Where distributions keep the authorities of the system.
const SYSTEM_AUTHORITIES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// A way to a server and back.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// How TLS is spoken to a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the authorities that may sign the servers' certificates; `None`: those of the system.
    pub cacert: Option<PathBuf>,
    /// PEM files with our certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Whether the servers' certificates, and the names in them, are checked.
    pub verify: bool,
}

/// A server's address. `Display` is `host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Name or address, without brackets.
    pub(super) host: String,
    /// Port.
    pub(super) port: u16,
}

impl Place {
    /// Reads `host`, `host:port` or `[::1]:port`.
    pub(super) fn parse(text: &str, default_port: u16) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                match rest.strip_prefix(':') {
                    Some(port) => (host, port.parse().ok()?),
                    None if rest.is_empty() => (host, default_port),
                    None => return None,
                }
            }
            None => match text.rsplit_once(':') {
                Some((host, port)) => (host, port.parse().ok()?),
                None => (text, default_port),
            },
        };
        (!host.is_empty() && port > 0).then(|| Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Connects. Has no deadline of its own.
pub(super) async fn dial(place: &Place, tls: Option<&Tls>) -> io::Result<Box<dyn Stream>> {
    let tcp = TcpStream::connect((place.host.as_str(), place.port)).await?;
    tcp.set_nodelay(true)?;
    let Some(tls) = tls else {
        return Ok(Box::new(tcp));
    };
    let config = tls.config().map_err(io::Error::other)?;
    let name = ServerName::try_from(place.host.clone()).map_err(io::Error::other)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    Ok(Box::new(stream))
}

impl Tls {
    fn config(&self) -> Result<ClientConfig, String> {
        let provider = Arc::new(ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = if self.verify {
            WebPkiServerVerifier::builder_with_provider(Arc::new(self.roots()?), Arc::clone(&provider))
                .build()
                .map_err(|error| error.to_string())?
        } else {
            Arc::new(Anybody(Arc::clone(&provider)))
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let Some((cert, key)) = &self.identity else {
            return Ok(builder.with_no_client_auth());
        };
        builder
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(|error| format!("{}: {error}", cert.display()))
    }

    fn roots(&self) -> Result<RootCertStore, String> {
        let system = || {
            SYSTEM_AUTHORITIES
                .iter()
                .map(Path::new)
                .find(|path| path.exists())
        };
        let file = self.cacert.as_deref().or_else(system);
        let file = file.ok_or("this system has no file of authorities, and none is given")?;
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(certificates(file)?);
        if added == 0 {
            return Err(format!("{} holds no usable certificate", file.display()));
        }
        Ok(store)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("read {}: {error}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(path)?;
    CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{}: {error}", path.display()))
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| format!("{}: {error}", path.display()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_with_and_without_ports_and_brackets() {
        let read = |text: &str| Place::parse(text, 7).map(|place| place.to_string());
        assert_eq!(read("h").as_deref(), Some("h:7"));
        assert_eq!(read("h:9").as_deref(), Some("h:9"));
        assert_eq!(read("[::1]:9").as_deref(), Some("[::1]:9"));
        assert_eq!(read("[::1]").as_deref(), Some("[::1]:7"));
        for wrong in ["", ":9", "h:x", "h:0", "[::1]9", "h:99999"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
