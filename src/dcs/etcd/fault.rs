//! What an error of etcd or of the transport means for the call. Unknown errors count as trouble to be retried
//! elsewhere, never as an answer: only what is enumerated here is definite.

use std::error::Error as _;

use etcd_client::Error;

use crate::dcs::DcsError;

/// Meaning of one failed try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// The connection is of no use; another endpoint may help. `sent`: the request may have been executed.
    Broken {
        /// Whether the request may have reached the server.
        sent: bool,
    },
    /// The server is there but cannot serve now (no leader, overloaded …).
    NotReady,
    /// The token is missing, expired or revoked: authenticate again.
    Token,
    /// User or password are wrong, or the rights do not suffice.
    Credentials,
    /// etcd's authentication is switched off.
    AuthDisabled,
    /// The lease does not exist.
    LeaseGone,
    /// A definite answer that no repetition changes.
    Definite,
}

/// How a call of the pool ends without a value.
#[derive(Debug)]
pub(super) enum Failure {
    /// This lease does not exist any more.
    LeaseGone(i64),
    /// A condition did not hold after an earlier try had broken off with this error: perhaps our own success.
    Unsure(DcsError),
    /// Could not ask.
    Dcs(DcsError),
}

impl From<Failure> for DcsError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Dcs(error) | Failure::Unsure(error) => error,
            Failure::LeaseGone(lease) => Self::Answer {
                endpoint: "etcd".into(),
                reason: format!("lease {lease:x} vanished again at once"),
            },
        }
    }
}

/// The error in the library's words, with its causes, which tonic keeps out of its message.
pub(super) fn words(error: &Error) -> String {
    let Error::GRpcStatus(status) = error else {
        return error.to_string();
    };
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Classifies by gRPC status code (numbers: gRPC core "Status codes") and etcd's message.
pub(super) fn classify(error: &Error) -> Fault {
    match error {
        Error::GRpcStatus(status) => by_status(status.code() as i32, &words(error)),
        Error::InvalidArgs(_) | Error::InvalidUri(_) => Fault::Definite,
        Error::LeaseKeepAliveError(text) if text.contains("lease not found") => Fault::LeaseGone,
        _ => Fault::Broken { sent: true },
    }
}

fn by_status(code: i32, text: &str) -> Fault {
    const INVALID_ARGUMENT: i32 = 3;
    const NOT_FOUND: i32 = 5;
    const ALREADY_EXISTS: i32 = 6;
    const PERMISSION_DENIED: i32 = 7;
    const RESOURCE_EXHAUSTED: i32 = 8;
    const FAILED_PRECONDITION: i32 = 9;
    const OUT_OF_RANGE: i32 = 11;
    const UNIMPLEMENTED: i32 = 12;
    const UNAUTHENTICATED: i32 = 16;

    // Texts first: etcd changed codes between versions, and inner errors arrive as Unknown.
    let has = |needle: &str| text.contains(needle);
    if has("invalid auth token")
        || has("revision in header is old")
        || has("auth store is old")
        || has("user name is empty")
    {
        return Fault::Token;
    }
    if has("authentication is not enabled") {
        return Fault::AuthDisabled;
    }
    if has("authentication failed") || has("invalid user ID or password") {
        return Fault::Credentials;
    }
    if has("requested lease not found") {
        return Fault::LeaseGone;
    }
    if has("tcp connect error") || has("dns error") || has("invalid peer certificate") {
        return Fault::Broken { sent: false };
    }
    match code {
        UNAUTHENTICATED | PERMISSION_DENIED => Fault::Token,
        RESOURCE_EXHAUSTED if has("too many requests") => Fault::NotReady,
        INVALID_ARGUMENT | NOT_FOUND | ALREADY_EXISTS | RESOURCE_EXHAUSTED | FAILED_PRECONDITION
        | OUT_OF_RANGE | UNIMPLEMENTED => Fault::Definite,
        _ if has("no leader") || has("not leader") => Fault::NotReady,
        _ => Fault::Broken { sent: true },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_enumerated_errors_are_definite() {
        assert_eq!(by_status(3, "etcdserver: key is not provided"), Fault::Definite);
        assert_eq!(by_status(2, "something new"), Fault::Broken { sent: true });
        assert_eq!(by_status(99, ""), Fault::Broken { sent: true });
        assert_eq!(by_status(14, "etcdserver: no leader"), Fault::NotReady);
        assert_eq!(
            by_status(14, "etcdserver: request timed out"),
            Fault::Broken { sent: true }
        );
    }

    #[test]
    fn credentials_and_tokens_are_told_apart() {
        let wrong = "etcdserver: authentication failed, invalid user ID or password";
        assert_eq!(by_status(3, wrong), Fault::Credentials);
        assert_eq!(by_status(16, "etcdserver: invalid auth token"), Fault::Token);
        assert_eq!(by_status(3, "etcdserver: user name is empty"), Fault::Token);
        assert_eq!(by_status(7, "etcdserver: permission denied"), Fault::Token);
    }

    #[test]
    fn a_missing_lease_is_an_answer_about_the_lease() {
        assert_eq!(
            by_status(5, "etcdserver: requested lease not found"),
            Fault::LeaseGone
        );
        let error = Error::LeaseKeepAliveError("lease not found".into());
        assert_eq!(classify(&error), Fault::LeaseGone);
    }
}
