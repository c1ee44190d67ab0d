//! The API servers, and how one question is put to them: one client per server, made when needed; the server that
//! answered last is asked first; trouble moves on to the next one. The requests are our own: a handful of paths whose
//! objects we read a few fields of.
//!
//! What an answer means. "There is none" (404), "somebody else was faster" (409) and "too old" (410) are answers for
//! the caller. A server that cannot serve now (429, 5xx, whatever asks to be asked again, and what the settings name)
//! is asked again until the deadline. A refusal (401, 403) is asked again once, after a 401 with credentials read anew; it
//! proves nothing about the lock.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body, config::Config};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::{
    access::{Access, chain},
    object::{List, Object},
};
use crate::{clock::Boottime, dcs::DcsError};

const FIRST_BACKOFF: Duration = Duration::from_millis(20);
const MAX_BACKOFF: Duration = Duration::from_secs(1);
const MAX_REFUSALS: u32 = 2;
/// Longer answers are nobody's cluster.
const MAX_ANSWER: usize = 64 << 20;

/// The API servers of one Kubernetes.
pub(super) struct Pool {
    access: Access,
    retriable: Vec<u16>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    config: Option<Config>,
    /// Each with its client once it was needed.
    servers: Vec<(http::Uri, Option<Client>)>,
    current: usize,
}

/// A client, with the address to name in errors.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) url: String,
    pub(super) client: Client,
}

/// How a patch or a creation went.
#[derive(Debug)]
pub(super) enum Wrote {
    /// Done; the object as it is now.
    Done(Box<Object>),
    /// The object is another than was thought (or is there already).
    Conflict,
    /// There is no such object.
    Missing,
}

/// One answer with a status that has a meaning for callers.
struct Reply {
    status: StatusCode,
    body: Bytes,
    url: String,
}

impl Reply {
    fn read<T: DeserializeOwned>(&self) -> Result<T, DcsError> {
        serde_json::from_slice(&self.body).map_err(|error| DcsError::Answer {
            endpoint: self.url.clone(),
            reason: format!("not understood: {error}"),
        })
    }
}

/// What a try came to, if it was no answer.
enum Fault {
    /// Another server, or the same one later, may do better. `broken`: the connection is of no use.
    Again { error: DcsError, broken: bool },
    /// The credentials (`stale`: perhaps only not the present ones), or the rights, do not suffice.
    Refused { error: DcsError, stale: bool },
    /// Repeating does not help.
    Definite(DcsError),
}

impl Pool {
    pub(super) fn new(access: Access, retriable: Vec<u16>) -> Self {
        Self {
            access,
            retriable,
            state: Mutex::default(),
        }
    }

    /// A poisoned lock only means that another task panicked between two assignments of plain data.
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration as loaded, now if it was not.
    pub(super) async fn config(&self) -> Result<Config, DcsError> {
        if let Some(config) = self.state().config.clone() {
            return Ok(config);
        }
        let config = self.access.load().await?;
        let mut state = self.state();
        if state.servers.is_empty() {
            state.servers = vec![(config.cluster_url.clone(), None)];
        }
        state.config = Some(config.clone());
        Ok(config)
    }

    /// Addresses of the servers that are asked.
    pub(super) fn servers(&self) -> Vec<String> {
        self.state().servers.iter().map(|(url, _)| shown(url)).collect()
    }

    /// The server to be asked now.
    pub(super) async fn server(&self) -> Result<Server, DcsError> {
        let config = self.config().await?;
        let mut state = self.state();
        let count = state.servers.len().max(1);
        let index = state.current % count;
        let Some((url, client)) = state.servers.get_mut(index) else {
            return Err(DcsError::Config("kubernetes: no API server is known".into()));
        };
        let shown = shown(url);
        if let Some(client) = client {
            return Ok(Server {
                url: shown,
                client: client.clone(),
            });
        }
        let mut config = config;
        config.cluster_url = url.clone();
        config.connect_timeout = Some(Duration::from_secs(3));
        let made = Client::try_from(config)
            .map_err(|error| DcsError::Config(format!("kubernetes: {}", chain(&error))))?;
        *client = Some(made.clone());
        Ok(Server {
            url: shown,
            client: made,
        })
    }

    /// Closes the connections to a server and moves on, unless somebody else already has.
    pub(super) fn forget(&self, url: &str) {
        self.leave(url, true);
    }

    fn leave(&self, url: &str, broken: bool) {
        let mut state = self.state();
        let Some(index) = state.servers.iter().position(|(uri, _)| shown(uri) == url) else {
            return;
        };
        if broken {
            state.servers[index].1 = None;
        }
        if state.current % state.servers.len() == index {
            state.current = (index + 1) % state.servers.len();
        }
    }

    /// Reads files and credentials again with the next request.
    fn forget_all(&self) {
        let mut state = self.state();
        state.config = None;
        if !self.access.bypass {
            // Where to ask is read anew, too.
            state.servers.clear();
        }
        for (_, client) in &mut state.servers {
            *client = None;
        }
    }

    /// Asks what stands in front of the API servers again.
    pub(super) fn forget_servers(&self) {
        let mut state = self.state();
        let front = state.config.as_ref().map(|config| config.cluster_url.clone());
        state.servers = front.into_iter().map(|url| (url, None)).collect();
        state.current = 0;
    }

    /// Single API servers, to be asked instead of what stands in front of them. Whether that is new.
    pub(super) fn set_servers(&self, urls: Vec<http::Uri>) -> bool {
        let mut state = self.state();
        if urls.is_empty() || state.servers.iter().map(|(url, _)| url).eq(&urls) {
            return false;
        }
        let mut servers = Vec::with_capacity(urls.len());
        for url in urls {
            let known = state.servers.iter_mut().find(|(old, _)| *old == url);
            let client = known.and_then(|(_, client)| client.take());
            servers.push((url, client));
        }
        state.servers = servers;
        state.current = 0;
        true
    }

    pub(super) async fn get(&self, path: &str, deadline: Instant) -> Result<Option<Object>, DcsError> {
        let reply = self.ask(Method::GET, path, None, deadline).await?;
        match reply.status {
            StatusCode::NOT_FOUND => Ok(None),
            _ => Ok(Some(reply.read()?)),
        }
    }

    pub(super) async fn list(&self, path: &str, query: &str, deadline: Instant) -> Result<List, DcsError> {
        let reply = self
            .ask(Method::GET, &format!("{path}?{query}"), None, deadline)
            .await?;
        if reply.status == StatusCode::NOT_FOUND {
            return Err(DcsError::Answer {
                endpoint: reply.url,
                reason: format!("it does not know {path}"),
            });
        }
        reply.read()
    }

    pub(super) async fn patch(&self, path: &str, body: &Value, deadline: Instant) -> Result<Wrote, DcsError> {
        Self::wrote(&self.ask(Method::PATCH, path, Some(body), deadline).await?)
    }

    pub(super) async fn create(
        &self,
        path: &str,
        body: &Value,
        deadline: Instant,
    ) -> Result<Wrote, DcsError> {
        Self::wrote(&self.ask(Method::POST, path, Some(body), deadline).await?)
    }

    pub(super) async fn delete(
        &self,
        path: &str,
        body: &Value,
        deadline: Instant,
    ) -> Result<Wrote, DcsError> {
        Self::wrote(&self.ask(Method::DELETE, path, Some(body), deadline).await?)
    }

    fn wrote(reply: &Reply) -> Result<Wrote, DcsError> {
        Ok(match reply.status {
            StatusCode::NOT_FOUND => Wrote::Missing,
            StatusCode::CONFLICT => Wrote::Conflict,
            _ => Wrote::Done(Box::new(reply.read()?)),
        })
    }

    /// Asks until somebody answers or the deadline is reached.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        deadline: Instant,
    ) -> Result<Reply, DcsError> {
        let body = body.map_or_else(Vec::new, |body| body.to_string().into_bytes());
        let budget = deadline.saturating_duration_since(Instant::now());
        let (mut last, mut tries, mut refusals, mut backoff) = (None, 0, 0, FIRST_BACKOFF);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let servers = self.state().servers.len().max(1);
            let patience = patience(budget, left, servers, tries);
            if patience.is_zero() {
                return Err(last.unwrap_or_else(|| DcsError::Timeout {
                    endpoint: "the API server".to_owned(),
                    waited: budget,
                }));
            }
            let server = self.server().await?;
            let attempt = self.attempt(&server, &method, path, &body);
            match timeout(patience, attempt).await {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(Fault::Definite(error))) => return Err(error),
                Ok(Err(Fault::Again { error, broken })) => {
                    self.leave(&server.url, broken);
                    last = Some(error);
                }
                Ok(Err(Fault::Refused { error, stale })) => {
                    if stale {
                        self.forget_all();
                    }
                    refusals += 1;
                    if refusals >= MAX_REFUSALS {
                        return Err(error);
                    }
                    last = Some(error);
                }
                Err(_) => {
                    self.forget(&server.url);
                    last = Some(DcsError::Timeout {
                        endpoint: server.url,
                        waited: patience,
                    });
                }
            }
            tries += 1;
            if tries % servers == 0 {
                let left = deadline.saturating_duration_since(Instant::now());
                sleep(jittered(backoff).min(left)).await;
                backoff = (backoff * 2).min(MAX_BACKOFF);
            }
        }
    }

    async fn attempt(
        &self,
        server: &Server,
        method: &Method,
        path: &str,
        body: &[u8],
    ) -> Result<Reply, Fault> {
        let transport = |reason: String| Fault::Again {
            error: DcsError::Transport {
                endpoint: server.url.clone(),
                reason,
            },
            broken: true,
        };
        let request = request(method, path, body)
            .map_err(|reason| Fault::Definite(DcsError::Config(format!("kubernetes: {path}: {reason}"))))?;
        let response = server
            .client
            .send(request)
            .await
            .map_err(|error| transport(chain(&error)))?;
        let (head, body) = response.into_parts();
        let asks_again = head.headers.contains_key(header::RETRY_AFTER);
        let body = http_body_util::Limited::new(body, MAX_ANSWER);
        let body = body
            .collect()
            .await
            .map_err(|error| transport(error.to_string()))?
            .to_bytes();
        let reply = Reply {
            status: head.status,
            body,
            url: server.url.clone(),
        };
        match verdict(head.status, asks_again, &self.retriable) {
            Verdict::Answer => Ok(reply),
            Verdict::Again => Err(Fault::Again {
                error: said(&reply),
                broken: false,
            }),
            Verdict::Refused => Err(Fault::Refused {
                stale: reply.status == StatusCode::UNAUTHORIZED,
                error: DcsError::Credentials {
                    endpoint: reply.url.clone(),
                    reason: words(&reply),
                },
            }),
            Verdict::Definite => Err(Fault::Definite(said(&reply))),
        }
    }
}

fn request(method: &Method, path: &str, body: &[u8]) -> Result<Request<Body>, String> {
    let kind = match *method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, kind)
        .header(header::USER_AGENT, concat!("howdah/", env!("CARGO_PKG_VERSION")))
        .body(Body::from(body.to_vec()))
        .map_err(|error| error.to_string())
}

/// A watch that has begun: its body goes on. `None`: the version asked for is too old.
pub(super) async fn watch(server: &Server, path: &str) -> Result<Option<Body>, DcsError> {
    let request = request(&Method::GET, path, &[]).map_err(DcsError::Config)?;
    let response = server
        .client
        .send(request)
        .await
        .map_err(|error| DcsError::Transport {
            endpoint: server.url.clone(),
            reason: chain(&error),
        })?;
    match response.status() {
        StatusCode::OK => Ok(Some(response.into_body())),
        StatusCode::GONE => Ok(None),
        status => Err(DcsError::Answer {
            endpoint: server.url.clone(),
            reason: status.to_string(),
        }),
    }
}

fn shown(url: &http::Uri) -> String {
    url.to_string().trim_end_matches('/').to_owned()
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Answer,
    Again,
    Refused,
    Definite,
}

fn verdict(status: StatusCode, asks_again: bool, retriable: &[u16]) -> Verdict {
    match status.as_u16() {
        code if retriable.contains(&code) => Verdict::Again,
        200..=299 | 404 | 409 | 410 => Verdict::Answer,
        401 | 403 => Verdict::Refused,
        429 | 500..=599 => Verdict::Again,
        _ if asks_again => Verdict::Again,
        _ => Verdict::Definite,
    }
}

fn said(reply: &Reply) -> DcsError {
    DcsError::Answer {
        endpoint: reply.url.clone(),
        reason: words(reply),
    }
}

/// What the server says, else its status.
fn words(reply: &Reply) -> String {
    let status: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    match status["message"].as_str() {
        Some(message) => format!("{} ({})", message, reply.status.as_u16()),
        None => reply.status.to_string(),
    }
}

/// Time for the next try; zero if there is none left. As with etcd: a server that swallows packets costs little in the
/// first round; later, when everybody is slow, each has its share.
fn patience(budget: Duration, left: Duration, servers: usize, tries: usize) -> Duration {
    const LEAST: Duration = Duration::from_millis(250);
    const SECOND: Duration = Duration::from_secs(1);
    if left < Duration::from_millis(5) {
        return Duration::ZERO;
    }
    let share = budget / u32::try_from(servers).unwrap_or(u32::MAX);
    let wanted = if servers == 1 {
        (budget / 3).max(SECOND)
    } else if tries < servers {
        share.clamp(LEAST, SECOND)
    } else {
        share.max(SECOND)
    };
    wanted.min(left)
}

/// `base` plus up to half of it, so that members do not knock in step.
pub(super) fn jittered(base: Duration) -> Duration {
    let chance = u32::try_from((Boottime::now().0 >> 8) % 128).unwrap_or(0);
    base + base * chance / 256
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_status_of_a_server_in_trouble_is_an_answer() {
        let status = |code: u16| StatusCode::from_u16(code).unwrap_or_default();
        for code in [429, 500, 502, 503, 504] {
            assert_eq!(verdict(status(code), false, &[]), Verdict::Again, "{code}");
        }
        for code in [401, 403] {
            assert_eq!(verdict(status(code), false, &[]), Verdict::Refused, "{code}");
        }
        for code in [200, 201, 404, 409, 410] {
            assert_eq!(verdict(status(code), false, &[]), Verdict::Answer, "{code}");
        }
        assert_eq!(verdict(status(422), false, &[]), Verdict::Definite);
        assert_eq!(verdict(status(422), true, &[]), Verdict::Again, "Retry-After");
        assert_eq!(
            verdict(status(403), false, &[403]),
            Verdict::Again,
            "as the settings say"
        );
        assert_eq!(
            verdict(status(404), false, &[404]),
            Verdict::Again,
            "as the settings say"
        );
    }

    #[test]
    fn a_silent_server_costs_at_most_a_second_of_the_first_round() {
        let second = Duration::from_secs(1);
        assert_eq!(patience(second * 10, second * 10, 3, 0), second);
        assert_eq!(patience(second * 10, second * 10, 3, 3), second * 10 / 3);
        assert_eq!(patience(second / 2, second / 2, 1, 0), second / 2);
        assert_eq!(patience(second, Duration::ZERO, 1, 0), Duration::ZERO);
    }
}
