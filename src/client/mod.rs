//! A small HTTP client: members asking members, the CLI asking a member.
//!
//! Connections are pooled and every call has a deadline. What an answer means is the caller's business.

mod credentials;
mod probe;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde_json::Value;

use crate::tls::client::{Check, Tls};

pub use credentials::Credentials;
pub use probe::probe_peers;

/// No answer of a member is larger.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// After this nobody waits for a connection any more.
const CONNECT_MAX: Duration = Duration::from_secs(60);
/// Shorter than a server keeps an idle connection, so that we rarely pick one it has just closed.
const IDLE_MAX: Duration = Duration::from_secs(20);

/// An answer, whatever its status.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text; invalid UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON, if it is.
    #[must_use]
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not a URL we can call.
    #[error("'{url}' is neither an http:// nor an https:// URL")]
    Url {
        /// As given.
        url: String,
    },
    /// What TLS needs is not there.
    #[error("cannot talk to {url}: {reason}")]
    Tls {
        /// Who was to be asked.
        url: String,
        /// Which file, and what is wrong with it.
        reason: String,
    },
    /// Nothing, or not everything, within the time allowed.
    #[error("no answer from {url} within {waited:?}")]
    Timeout {
        /// Who was asked.
        url: String,
        /// How long.
        waited: Duration,
    },
    /// Connection refused, reset, unknown host …
    #[error("cannot talk to {url}: {reason}")]
    Transport {
        /// Who was asked.
        url: String,
        /// The chain of causes.
        reason: String,
    },
}

type Body = Full<Bytes>;

/// Pools of connections.
#[derive(Debug, Clone)]
struct Connections {
    plain: legacy::Client<HttpConnector, Body>,
    /// How TLS is spoken, or why not.
    tls: Result<legacy::Client<HttpsConnector<HttpConnector>, Body>, String>,
    like: Tls,
}

/// What a client that was told nothing checks: the question is encrypted, whoever answers it.
const UNCHECKED: Tls = Tls {
    cacert: None,
    identity: None,
    check: Check::Nothing,
};

/// The client. Cheap to clone; clones share connections and credentials.
#[derive(Debug, Clone)]
pub struct Client {
    connections: Arc<RwLock<Connections>>,
    authorization: Arc<RwLock<Option<HeaderValue>>>,
}

impl Client {
    /// A client that sends these credentials with every request, and checks no server's certificate.
    #[must_use]
    pub fn new(credentials: Option<&Credentials>) -> Self {
        Self {
            connections: Arc::new(RwLock::new(Connections::new(UNCHECKED))),
            authorization: Arc::new(RwLock::new(credentials.and_then(Credentials::header))),
        }
    }

    /// TLS like this from the next request on, for all clones.
    pub fn set_tls(&self, tls: Tls) {
        if self.connections().like != tls {
            let others = Connections::new(tls);
            *self.connections.write().unwrap_or_else(PoisonError::into_inner) = others;
        }
    }

    /// Other credentials from now on, for all clones.
    pub fn set_credentials(&self, credentials: Option<&Credentials>) {
        let mut present = self.authorization.write().unwrap_or_else(PoisonError::into_inner);
        *present = credentials.and_then(Credentials::header);
    }

    /// Sends a request, with a JSON body if there is one, and reads the whole answer within `timeout`.
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        body: Option<&Value>,
        timeout: Duration,
    ) -> Result<Answer, ClientError> {
        let bad_url = || ClientError::Url { url: url.to_owned() };
        let connections = self.connections();

        let mut builder = Request::builder().method(method).uri(url);
        let authorization = self
            .authorization
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(value) = authorization {
            builder = builder.header(header::AUTHORIZATION, value);
        }
        if body.is_some() {
            builder = builder.header(header::CONTENT_TYPE, "application/json");
        }
        let bytes = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = builder.body(Full::new(bytes)).map_err(|_| bad_url())?;
        let transport = |error: &(dyn std::error::Error + 'static)| ClientError::Transport {
            url: url.to_owned(),
            reason: chain(error),
        };
        let exchange = async {
            let answer = match (request.uri().scheme_str(), &connections.tls) {
                (Some("http"), _) => connections.plain.request(request),
                (Some("https"), Ok(tls)) => tls.request(request),
                (Some("https"), Err(reason)) => {
                    let (url, reason) = (url.to_owned(), reason.clone());
                    return Err(ClientError::Tls { url, reason });
                }
                _ => return Err(bad_url()),
            };
            let answer = answer.await.map_err(|error| transport(&error))?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| transport(&*error))?.to_bytes();
            Ok(Answer { status, body })
        };
        tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| {
            Err(ClientError::Timeout {
                url: url.to_owned(),
                waited: timeout,
            })
        })
    }

    fn connections(&self) -> Connections {
        let present = self.connections.read();
        present.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// GET.
    pub async fn get(&self, url: &str, timeout: Duration) -> Result<Answer, ClientError> {
        self.send(Method::GET, url, None, timeout).await
    }
}

impl Connections {
    fn new(like: Tls) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        // Every call has its own deadline; on a slow way the first packet alone may take seconds.
        tcp.set_connect_timeout(Some(CONNECT_MAX));
        let mut pools = legacy::Client::builder(TokioExecutor::new());
        pools
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(2);
        let plain = pools.build(tcp.clone());
        // The connector around it knows what https means.
        tcp.enforce_http(false);
        let tls = like.config().map(|config| {
            let connector = HttpsConnectorBuilder::new()
                .with_tls_config(config)
                .https_only()
                .enable_http1();
            pools.build(connector.wrap_connector(tcp))
        });
        Self { plain, tls, like }
    }
}

/// The outermost message of these libraries ("client error (Connect)") says nothing; the inner ones do.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn errors_name_the_url_and_the_cause() {
        let client = Client::new(None);
        let second = Duration::from_secs(5);
        let error = client
            .get("ftp://h/", second)
            .await
            .expect_err("another protocol");
        assert_eq!(
            error.to_string(),
            "'ftp://h/' is neither an http:// nor an https:// URL"
        );
        client.set_tls(Tls {
            cacert: Some("/nowhere".into()),
            check: Check::Whole,
            ..UNCHECKED
        });
        let error = client.get("https://127.0.0.1:1/", second).await;
        let error = error.expect_err("no authorities").to_string();
        assert!(error.contains("https://127.0.0.1:1/: read /nowhere"), "{error}");
        let error = client.get("http://a b/", second).await.expect_err("no URL");
        assert!(matches!(error, ClientError::Url { .. }));
        let error = client
            .get("http://127.0.0.1:1/", second)
            .await
            .expect_err("nobody there");
        assert!(error.to_string().contains("refused"), "{error}");
    }

    #[tokio::test]
    async fn a_silent_server_costs_no_more_than_the_deadline() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("bound"));
        let error = Client::new(None).get(&url, Duration::from_millis(50)).await;
        assert!(matches!(error, Err(ClientError::Timeout { .. })));
    }
}
