//! How one question is put to a Consul agent, and what its answer means.
//!
//! "There is none" (404) and "the condition did not hold" (409) are answers for the caller. An agent that cannot serve
//! now (429, 5xx: no leader, no way to the servers) is asked again until the deadline. A refusal (401, 403) proves
//! nothing about the lock and is no better the second time.

use std::{sync::Mutex, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header::HOST};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, sleep, timeout};

use super::lock;
use crate::{
    dcs::{
        DcsError,
        dial::{Place, dial},
    },
    tls::client::Tls,
};

/// Longer answers are nobody's cluster.
const MAX_ANSWER: usize = 64 << 20;
const MAX_IDLE: usize = 4;
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// Shorter tries would give up on a server that is merely busy.
const MIN_TRY: Duration = Duration::from_millis(300);

/// The agent, and connections to it.
pub(super) struct Agent {
    place: Place,
    tls: Option<Tls>,
    token: Option<HeaderValue>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// One question.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    /// Path and query.
    pub(super) path: String,
    pub(super) body: Bytes,
}

/// An answer that says something.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    /// `X-Consul-Index`; 0 if there is none.
    pub(super) index: u64,
    pub(super) body: Bytes,
    /// Why an earlier try broke off that may have been executed.
    pub(super) broken: Option<DcsError>,
}

impl Reply {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }
}

/// How one try ended without an answer.
enum Trouble {
    /// Nothing reached the agent.
    Unsent(DcsError),
    /// It may have been executed.
    Sent(DcsError),
    /// Asking again is of no use.
    Final(DcsError),
}

impl Agent {
    pub(super) fn new(place: Place, tls: Option<Tls>, token: Option<&str>) -> Result<Self, DcsError> {
        let token = token.filter(|token| !token.is_empty()).map(|token| {
            let mut value = HeaderValue::from_str(token)
                .map_err(|_| DcsError::Config("consul: the token holds what no header can".into()))?;
            value.set_sensitive(true);
            Ok::<_, DcsError>(value)
        });
        Ok(Self {
            place,
            tls,
            token: token.transpose()?,
            idle: Mutex::default(),
        })
    }

    /// The agent's address, for people.
    pub(super) fn endpoint(&self) -> String {
        self.place.to_string()
    }

    /// Asks until there is an answer or the time is up.
    pub(super) async fn ask(&self, ask: &Ask, deadline: Instant) -> Result<Reply, DcsError> {
        let mut broken = None;
        let mut backoff = FIRST_BACKOFF;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match self.once(ask, (left / 2).max(MIN_TRY).min(left)).await {
                Ok(reply) => return Ok(Reply { broken, ..reply }),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Unsent(error)) => error,
                Err(Trouble::Sent(error)) => {
                    broken = Some(error);
                    DcsError::Timeout {
                        endpoint: self.endpoint(),
                        waited: left,
                    }
                }
            };
            if deadline.saturating_duration_since(Instant::now()) <= backoff {
                return Err(broken.unwrap_or(error));
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Asks one time only.
    pub(super) async fn ask_once(&self, ask: &Ask, within: Duration) -> Result<Reply, DcsError> {
        self.once(ask, within).await.map_err(|trouble| match trouble {
            Trouble::Unsent(error) | Trouble::Sent(error) | Trouble::Final(error) => error,
        })
    }

    async fn once(&self, ask: &Ask, within: Duration) -> Result<Reply, Trouble> {
        // Whether time was up before or after the request left cannot be told: it may have been executed.
        let reply = timeout(within, self.exchange(ask)).await.unwrap_or_else(|_| {
            Err(Trouble::Sent(DcsError::Timeout {
                endpoint: self.endpoint(),
                waited: within,
            }))
        })?;
        self.judge(reply)
    }

    fn judge(&self, reply: Reply) -> Result<Reply, Trouble> {
        let endpoint = self.endpoint();
        let reason = format!("{}: {}", reply.status.as_u16(), reply.text());
        match reply.status.as_u16() {
            200 | 404 | 409 => Ok(reply),
            401 | 403 => Err(Trouble::Final(DcsError::Credentials { endpoint, reason })),
            400 | 500 if about_the_session(&reason) => Ok(reply),
            429 | 500.. => Err(Trouble::Sent(DcsError::Answer { endpoint, reason })),
            _ => Err(Trouble::Final(DcsError::Answer { endpoint, reason })),
        }
    }

    async fn exchange(&self, ask: &Ask) -> Result<Reply, Trouble> {
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(ask.path.as_str())
            .header(HOST, self.endpoint());
        if let Some(token) = &self.token {
            request = request.header("X-Consul-Token", token);
        }
        let mut request = request
            .body(Full::new(ask.body.clone()))
            .map_err(|error| Trouble::Final(DcsError::Config(format!("consul: {}: {error}", ask.path))))?;
        loop {
            let (mut connection, fresh) = match self.idle() {
                Some(idle) => (idle, false),
                None => (self.connect().await.map_err(Trouble::Unsent)?, true),
            };
            let response = match connection.try_send_request(request).await {
                Ok(response) => response,
                Err(mut error) => match error.take_message() {
                    // A connection that the agent has closed meanwhile: nothing was sent.
                    Some(unsent) if !fresh => {
                        request = unsent;
                        continue;
                    }
                    Some(_) => return Err(Trouble::Unsent(self.transport(error.error()))),
                    None => return Err(Trouble::Sent(self.transport(error.error()))),
                },
            };
            let status = response.status();
            let index = response.headers().get("X-Consul-Index");
            let index = index.and_then(|value| value.to_str().ok()?.parse().ok());
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body
                .map_err(|error| Trouble::Sent(self.transport(&*error)))?
                .to_bytes();
            let mut pool = lock(&self.idle);
            if pool.len() < MAX_IDLE {
                pool.push(connection);
            }
            return Ok(Reply {
                status,
                index: index.unwrap_or(0),
                body,
                broken: None,
            });
        }
    }

    fn idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = lock(&self.idle);
        idle.retain(|connection| !connection.is_closed());
        // One whose last answer was cut short is not ready, and never will be.
        while let Some(connection) = idle.pop() {
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, DcsError> {
        let stream = dial(&self.place, self.tls.as_ref())
            .await
            .map_err(|error| self.transport(&error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.transport(&error))?;
        // Ends with the sender, or when the agent closes it.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to consul ended");
            }
        });
        Ok(sender)
    }

    fn transport(&self, error: &(dyn std::error::Error + 'static)) -> DcsError {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            reason = format!("{reason}: {inner}");
            source = inner.source();
        }
        DcsError::Transport {
            endpoint: self.endpoint(),
            reason,
        }
    }
}

/// Consul up to 1.9 answers what is wrong with a request to make a session as an error of its own.
fn about_the_session(text: &str) -> bool {
    text.contains("Invalid Session TTL") || text.contains("Missing node registration")
}
