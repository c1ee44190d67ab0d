//! Who may change something (contract: REST API §2; allowlist and client certificates are not offered yet).

use http::{HeaderMap, header};

use crate::client::Credentials;

/// The text of a 401, or nothing if the request may go on.
pub(super) fn check(credentials: Option<&Credentials>, headers: &HeaderMap) -> Result<(), &'static str> {
    match (credentials, headers.get(header::AUTHORIZATION)) {
        (None, _) => Ok(()),
        (Some(_), None) => Err("no auth header received"),
        (Some(wanted), Some(given)) if wanted.accept(given.as_bytes()) => Ok(()),
        (Some(_), Some(_)) => Err("not authenticated"),
    }
}
