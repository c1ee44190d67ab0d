//! TLS of the REST API, and towards it (contract: environment §1, REST API §1 and §2).

use std::path::PathBuf;

use super::Builder;
use crate::tls::{
    ciphers,
    files::Identity,
    server::{Settings, VerifyClient},
};

const CERTFILE: &str = "restapi.certfile";
const CAFILE: &str = "restapi.cafile";
const CIPHERS: &str = "restapi.ciphers";
const VERIFY_CLIENT: &str = "restapi.verify_client";

impl Builder {
    pub(super) fn file(&self, path: &str) -> Option<PathBuf> {
        self.path(path).filter(|file| !file.as_os_str().is_empty())
    }

    fn given_text(&self, path: &str) -> Option<String> {
        self.all.settings.text(path).filter(|text| !text.is_empty())
    }

    /// A certificate and its key, by the paths of the settings that name them. As with Patroni the key may live in the
    /// certificate's file.
    pub(super) fn identity(&mut self, cert: &str, key: &str, password: &str) -> Option<Identity> {
        let password = self.given_text(password);
        match (self.file(cert), self.file(key)) {
            (Some(cert), key) => Some(Identity {
                key: key.unwrap_or_else(|| cert.clone()),
                cert,
                password,
            }),
            (None, None) => None,
            (None, Some(_)) => {
                self.missing(cert, "its key is given");
                None
            }
        }
    }

    pub(super) fn restapi_tls(&mut self) -> Option<Settings> {
        let identity = self.identity(CERTFILE, "restapi.keyfile", "restapi.keyfile_password");
        let verify_client = match &*self.text(VERIFY_CLIENT) {
            "optional" => VerifyClient::Optional,
            "required" => VerifyClient::Required,
            _ => VerifyClient::No,
        };
        let ciphers = self.given_text(CIPHERS);
        if let Some(Err(error)) = ciphers.as_deref().map(ciphers::chosen) {
            self.inconsistent(&[CIPHERS], &error);
        }
        let Some(identity) = identity else {
            if verify_client != VerifyClient::No {
                self.missing(CERTFILE, "clients are to show a certificate");
            } else if ciphers.is_some() {
                self.missing(CERTFILE, "ciphers are given");
            }
            return None;
        };
        let cafile = self.file(CAFILE);
        if cafile.is_none() && verify_client != VerifyClient::No {
            self.missing(
                CAFILE,
                "clients are to show a certificate, and nobody is named who may sign it",
            );
        }
        Some(Settings {
            identity,
            cafile,
            ciphers,
            verify_client,
        })
    }
}
