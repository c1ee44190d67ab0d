//! The few shapes an answer has.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;

use super::{json, refusal::Refusal};

/// Every answer is small and complete.
pub(super) type Reply = Response<Full<Bytes>>;

fn reply(code: u16, kind: Option<&'static str>, body: String) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(kind) = kind {
        reply
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    reply
}

/// A status and nothing else.
pub(super) fn bare(code: u16) -> Reply {
    reply(code, None, String::new())
}

/// The same answer with the operator's headers (contract: REST API §1, "Extra headers": not on a bare status).
pub(super) fn with_headers(mut reply: Reply, headers: &HeaderMap) -> Reply {
    if reply.headers().contains_key(header::CONTENT_TYPE) {
        for (name, value) in headers {
            reply.headers_mut().insert(name, value.clone());
        }
    }
    reply
}

/// Plain text, without a newline: clients compare it.
pub(super) fn text(code: u16, text: impl Into<String>) -> Reply {
    reply(code, Some("text/plain; charset=utf-8"), text.into())
}

/// A page for people.
pub(super) fn html(text: String) -> Reply {
    reply(200, Some("text/html; charset=utf-8"), text)
}

/// Prometheus' text format.
pub(super) fn metrics(text: String) -> Reply {
    reply(200, Some("text/plain; version=0.0.4; charset=utf-8"), text)
}

/// JSON as Python writes it.
pub(super) fn object(code: u16, value: &impl Serialize) -> Reply {
    reply(code, Some("application/json"), json::text(value))
}

/// 403.
pub(super) fn denied() -> Reply {
    text(403, "Access is denied")
}

/// 401. The realm is the contract's.
pub(super) fn unauthorized(reason: &'static str) -> Reply {
    let mut reply = text(401, reason);
    reply.headers_mut().insert(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Basic realm=\"Patroni\""),
    );
    reply
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        text(refusal.code, refusal.text)
    }
}
