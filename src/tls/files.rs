//! Certificates, keys and authorities in PEM files.

use std::path::{Path, PathBuf};

use pkcs8::{EncryptedPrivateKeyInfoRef, der::Decode as _};
use tokio_rustls::rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem, pem::PemObject as _},
};
use x509_cert::Certificate;

/// Where distributions keep the authorities of the system.
pub const SYSTEM_AUTHORITIES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// A certificate and its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// PEM file with the certificate and those between it and its authority.
    pub cert: PathBuf,
    /// PEM file with the key; it may be the same file.
    pub key: PathBuf,
    /// What the key is encrypted with.
    pub password: Option<String>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("cert", &self.cert)
            .field("key", &self.key)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .finish()
    }
}

/// Chain of certificates, key.
pub type Read = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Identity {
    /// Reads both files.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn read(&self) -> Result<Read, String> {
        let chain = certificates(&self.cert)?;
        Ok((chain, private_key(&self.key, self.password.as_deref())?))
    }
}

/// The certificates of a PEM file, at least one.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(path)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{}: {error}", path.display()))?;
    if found.is_empty() {
        return Err(format!("{} holds no certificate", path.display()));
    }
    Ok(found)
}

/// The authorities in a PEM file; without one, those of the system.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn authorities(path: Option<&Path>) -> Result<RootCertStore, String> {
    let system = || {
        let known = SYSTEM_AUTHORITIES.iter().map(Path::new);
        known.into_iter().find(|path| path.exists())
    };
    let file = path.or_else(system);
    let file = file.ok_or("this system has no file of authorities, and none is given")?;
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(certificates(file)?);
    if added == 0 {
        return Err(format!("{} holds no usable certificate", file.display()));
    }
    Ok(store)
}

/// The first key of a PEM file, in one of PKCS#8 (encrypted or not), PKCS#1 and SEC1.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn private_key(path: &Path, password: Option<&str>) -> Result<PrivateKeyDer<'static>, String> {
    let bytes = read(path)?;
    let text = String::from_utf8_lossy(&bytes);
    let wrong = |why: &str| format!("{}: {why}", path.display());
    if text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(wrong(
            "the key is encrypted in OpenSSL's old way; `openssl pkcs8 -topk8` rewrites it",
        ));
    }
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") {
        let password = password.ok_or_else(|| wrong("the key is encrypted, and no password is given"))?;
        return decrypted(&bytes, password).map_err(|why| wrong(&why));
    }
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
        pem::Error::NoItemsFound => wrong("it holds no private key"),
        error => wrong(&error.to_string()),
    })
}

fn decrypted(pem: &[u8], password: &str) -> Result<PrivateKeyDer<'static>, String> {
    let der = pem_section(pem, "ENCRYPTED PRIVATE KEY")?;
    let encrypted = EncryptedPrivateKeyInfoRef::from_der(&der)
        .map_err(|error| format!("the encrypted key cannot be read: {error}"))?;
    let key = encrypted.decrypt(password).map_err(|_| {
        "the key does not open with its password, or is encrypted in an unusual way".to_owned()
    })?;
    Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into())
}

/// Content of the first section of this name.
fn pem_section(pem: &[u8], name: &str) -> Result<Vec<u8>, String> {
    use base64::Engine as _;
    let text = String::from_utf8_lossy(pem);
    let (begin, end) = (format!("-----BEGIN {name}-----"), format!("-----END {name}-----"));
    let content = text
        .split_once(&begin)
        .and_then(|(_, rest)| rest.split_once(&end));
    let (content, _) = content.ok_or_else(|| format!("the section {name} has no end"))?;
    let content: String = content.split_whitespace().collect();
    let decoded = base64::engine::general_purpose::STANDARD.decode(content);
    decoded.map_err(|error| format!("the section {name} is not base64: {error}"))
}

/// When a certificate ends, seconds since 1970; `None` if it cannot be read.
#[must_use]
pub fn expires(certificate: &CertificateDer<'_>) -> Option<u64> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let end = parsed.tbs_certificate().validity().not_after;
    Some(end.to_unix_duration().as_secs())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("read {}: {error}", path.display()))
}
