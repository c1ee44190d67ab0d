//! Which handler answers, what a request must bring, and the handlers that change nothing.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Map, Value};

use super::{
    access::{Access, Denied, Peer},
    actions,
    cluster::ClusterView,
    failsafe, health, levels,
    query::Query,
    refusal::Refusal,
    render,
    reply::{self, Reply},
    server::{Activity, Api},
    slots,
    switchover::Action,
    ui, why,
};
use crate::{clock::Boottime, model::Cluster, model::HistoryRow};

/// GET /patroni answers with an observation no older than this.
const FRESH: Duration = Duration::from_millis(250);
/// Peers give up after 2 s; an older observation in time is worth more to them than a fresh one too late.
const FRESH_WITHIN: Duration = Duration::from_millis(1500);

/// A store that is there answers within milliseconds; after this the last view is shown instead.
const STORE_WITHIN: Duration = Duration::from_secs(1);

/// A handler that changes something.
#[derive(Debug, Clone, Copy)]
enum Change {
    PatchConfig,
    PutConfig,
    Lead(Action),
    Unschedule,
    Restart,
    CancelRestart,
    Reload,
    Reinitialize,
    Failsafe,
    EndFailsafe,
    Log,
}

/// First segments of the paths that GET answers with more than a health check; as in [`get`].
#[cfg(test)]
const LOOKS: [&str; 13] = [
    "cluster",
    "config",
    "failsafe",
    "history",
    "liveness",
    "log",
    "metrics",
    "openapi.json",
    "patroni",
    "readiness",
    "slots",
    "ui",
    "why",
];

/// What changes something, by method and first segment.
const CHANGES: [(&str, &str, Change); 12] = [
    ("PATCH", "log", Change::Log),
    ("PATCH", "config", Change::PatchConfig),
    ("PUT", "config", Change::PutConfig),
    ("POST", "switchover", Change::Lead(Action::Switchover)),
    ("POST", "failover", Change::Lead(Action::Failover)),
    ("DELETE", "switchover", Change::Unschedule),
    ("POST", "restart", Change::Restart),
    ("DELETE", "restart", Change::CancelRestart),
    ("POST", "reload", Change::Reload),
    ("POST", "reinitialize", Change::Reinitialize),
    ("POST", "failsafe", Change::Failsafe),
    ("DELETE", "failsafe", Change::EndFailsafe),
];

/// All of them by method and segment, without the health checks.
#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    let looks = LOOKS.iter().map(|segment| ("GET", *segment));
    looks.chain(CHANGES.iter().map(|(method, segment, _)| (*method, *segment)))
}

impl Change {
    fn of(method: &Method, segment: &str) -> Option<Self> {
        let mut rows = CHANGES.iter();
        let row = rows.find(|row| row.0 == method.as_str() && row.1 == segment)?;
        Some(row.2)
    }
}

/// Whether a request must, may or need not bring a JSON object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    Required,
    Optional,
    Ignored,
}

/// Answers one request.
pub(super) async fn answer(api: &Api, request: Request<Incoming>, peer: Peer, activity: &Activity) -> Reply {
    // One load of the configuration for the whole request.
    let access = api.options.access.borrow().clone();
    let kind = kind_of(request.method(), request.uri().path());
    let reply = route(api, request, peer, &access, activity).await;
    api.handle.metrics().answered(kind, reply.status().as_u16());
    reply::with_headers(reply, access.headers())
}

/// What kind of request it is, for counting: paths are the client's to choose, so they are no label.
fn kind_of(method: &Method, path: &str) -> &'static str {
    let segment = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    match *method {
        Method::HEAD | Method::OPTIONS => "health",
        Method::GET => match segment {
            "metrics" => "metrics",
            "patroni" | "cluster" | "history" | "config" | "slots" | "failsafe" | "openapi.json" | "ui"
            | "why" | "log" => "look",
            _ => "health",
        },
        _ => "change",
    }
}

async fn route(
    api: &Api,
    request: Request<Incoming>,
    peer: Peer,
    access: &Access,
    activity: &Activity,
) -> Reply {
    let path = request.uri().path();
    let segment = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    if *request.method() == Method::GET {
        if segment == "ui" {
            return ui::page(request.headers());
        }
        let _busy = activity.begin();
        return get(api, path, segment, request.uri().query().unwrap_or_default()).await;
    }
    if matches!(*request.method(), Method::HEAD | Method::OPTIONS) {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let code = health::code(&api.handle.current(), Boottime::now(), path, &query);
        return reply::bare(code);
    }
    let Some(change) = Change::of(request.method(), segment) else {
        let method = request.method();
        return reply::text(
            501,
            format!("Unsupported method ('{method}' on {path}). Server does not support this operation"),
        );
    };
    if ui::foreign(request.headers()) {
        tracing::warn!(%peer, ?change, "request denied: another site's page sent it");
        return reply::text(403, "requests of other sites' pages are denied");
    }
    let snapshot = api.handle.current();
    let ask_members = !matches!(change, Change::Failsafe | Change::EndFailsafe);
    // Who is a member is not forgotten with age: during an outage of the DCS members still need to reach each other.
    let cluster = snapshot.dcs.as_ref().map(|view| &*view.cluster);
    match access.check(peer, request.headers(), cluster, ask_members).await {
        Ok(()) => {}
        Err(Denied::Address) => {
            tracing::warn!(%peer, ?change, "request denied: the address is not on the allowlist");
            return reply::denied();
        }
        Err(Denied::Certificate) => {
            tracing::warn!(%peer, ?change, "request denied: no client certificate was shown");
            return reply::text(403, "client certificate required");
        }
        Err(Denied::Credentials(reason)) => return reply::unauthorized(reason),
    }
    let rule = match change {
        Change::PatchConfig | Change::PutConfig | Change::Lead(_) => Body::Required,
        // What the mode says comes before what the body lacks.
        Change::Restart | Change::Reinitialize | Change::Failsafe | Change::EndFailsafe | Change::Log => {
            Body::Optional
        }
        Change::Unschedule | Change::CancelRestart | Change::Reload => Body::Ignored,
    };
    let force = Query::parse(request.uri().query().unwrap_or_default()).get("force") == Some("true");
    match object(api, request, rule).await {
        Ok(body) => {
            let _busy = activity.begin();
            dispatch(api, change, &body, force)
                .await
                .unwrap_or_else(Reply::from)
        }
        Err(refusal) => refusal.into(),
    }
}

async fn dispatch(
    api: &Api,
    change: Change,
    body: &Map<String, Value>,
    force: bool,
) -> Result<Reply, Refusal> {
    match change {
        Change::PatchConfig => actions::patch_config(api, body, force).await,
        Change::PutConfig => actions::put_config(api, body, force).await,
        Change::Lead(action) => Box::pin(actions::change_leader(api, action, body)).await,
        Change::Unschedule => actions::unschedule_switchover(api).await,
        Change::Restart => actions::restart(api, body).await,
        Change::CancelRestart => actions::cancel_restart(api).await,
        Change::Reload => actions::reload(api).await,
        Change::Reinitialize => actions::reinitialize(api, body).await,
        Change::Log => levels::change(api, body),
        Change::Failsafe => failsafe::accept(api, body),
        Change::EndFailsafe => failsafe::take_back(api, body),
    }
}

async fn get(api: &Api, path: &str, segment: &str, query: &str) -> Reply {
    let now = Boottime::now();
    match segment {
        "liveness" => reply::bare(health::liveness(&api.handle.current(), now)),
        "readiness" => reply::bare(health::readiness(
            &api.handle.current(),
            now,
            &Query::parse(query),
        )),
        "patroni" => {
            let snapshot = api.handle.fresh(FRESH, FRESH_WITHIN).await;
            reply::object(200, &render::patroni(&snapshot, Boottime::now()))
        }
        "slots" => {
            let snapshot = api.handle.fresh(FRESH, FRESH_WITHIN).await;
            reply::object(200, &slots::to_json(&snapshot.local.slots))
        }
        "cluster" | "history" | "config" => show(api, segment).await,
        "log" => levels::show(api),
        "metrics" => metrics(api),
        "why" => why(api).await,
        "openapi.json" => openapi(),
        "failsafe" => failsafe::topology(&api.handle.current()).unwrap_or_else(Reply::from),
        _ => {
            let snapshot = api.handle.current();
            let code = health::code(&snapshot, now, path, &Query::parse(query));
            reply::object(code, &render::patroni(&snapshot, now))
        }
    }
}

/// Of the members last seen: whether the DCS answers now makes no difference to who can be asked.
async fn why(api: &Api) -> Reply {
    let ask = async {
        let snapshot = api.handle.fresh(FRESH, FRESH_WITHIN).await;
        let members = snapshot.dcs.iter().flat_map(|view| &view.cluster.members);
        // This one knows without a network what it would answer.
        let others: Vec<_> = members
            .filter(|member| member.name != snapshot.member)
            .map(|member| (member.name.clone(), member.data.api_url.clone()))
            .collect();
        let mut words = why::all(&api.options.client, &others).await;
        let status = Value::Object(render::patroni(&snapshot, Boottime::now()));
        words.push(why::word(&snapshot.member, Ok(&status)));
        words.sort_by(|one, other| one.member.cmp(&other.member));
        words
    };
    reply::object(200, &api.why.or_ask(ask).await)
}

fn metrics(api: &Api) -> Reply {
    let snapshot = api.handle.current();
    let hold = api.handle.lease().hold();
    if let Some(ends) = api.options.tls.borrow().as_ref().and_then(|tls| tls.expires) {
        api.handle.metrics().restapi_certificate_ends(ends);
    }
    reply::metrics(
        api.handle
            .metrics()
            .render(&snapshot, hold.as_ref(), Boottime::now()),
    )
}

fn openapi() -> Reply {
    match super::openapi::document() {
        Some(document) => reply::object(200, &document),
        None => reply::text(500, "the document cannot be read"),
    }
}

/// What is remembered counts for `ttl` (contract: REST API §3, D). After that a client must not act on it, so the
/// status is an error; a person who looks at `/cluster` is still told what was last seen, and when.
async fn show(api: &Api, segment: &str) -> Reply {
    let snapshot = api.handle.current();
    match read_cluster(api).await {
        Shown::Stored(cluster) => shared(api, segment, &cluster),
        Shown::Remembered(cluster, age, refusal) => {
            let old = age > snapshot.dynamic.timing.ttl;
            match (segment, old) {
                ("cluster", _) => {
                    let mut view = ClusterView::of(&snapshot.scope, &cluster);
                    view.seen_ago = Some(age);
                    reply::object(if old { 503 } else { 200 }, &view.to_json())
                }
                (_, false) => shared(api, segment, &cluster),
                (_, true) => refusal.into(),
            }
        }
        Shown::Unknown(refusal) => refusal.into(),
    }
}

fn shared(api: &Api, segment: &str, cluster: &Cluster) -> Reply {
    match segment {
        "cluster" => reply::object(
            200,
            &ClusterView::of(&api.handle.current().scope, cluster).to_json(),
        ),
        "history" => {
            let rows = cluster.history.as_deref().unwrap_or_default();
            reply::object(200, &rows.iter().map(HistoryRow::to_json).collect::<Vec<_>>())
        }
        _ => match &cluster.config {
            Some(config) => reply::object(200, config),
            None => reply::text(502, "there is no valid configuration in the DCS"),
        },
    }
}

/// The cluster as it can be shown.
enum Shown {
    /// As stored now.
    Stored(Box<Cluster>),
    /// The store cannot be asked: as this member last saw it, this long ago.
    Remembered(Arc<Cluster>, Duration, Refusal),
    /// It cannot be asked and never could.
    Unknown(Refusal),
}

async fn read_cluster(api: &Api) -> Shown {
    let refusal = match tokio::time::timeout(STORE_WITHIN, api.handle.dcs().cluster()).await {
        Ok(Ok(cluster)) => return Shown::Stored(Box::new(cluster)),
        Ok(Err(error)) => error.into(),
        Err(_) => Refusal::unavailable(format!("cannot reach the DCS: no answer within {STORE_WITHIN:?}")),
    };
    match &api.handle.current().dcs {
        Some(view) => {
            let age = Boottime::now().since(view.seen_at);
            Shown::Remembered(view.cluster.clone(), age, refusal)
        }
        None => Shown::Unknown(refusal),
    }
}

/// Reads the JSON object of a request (contract: REST API §1, "Body reading"; chunked bodies are fine too).
async fn object(api: &Api, request: Request<Incoming>, rule: Body) -> Result<Map<String, Value>, Refusal> {
    if rule == Body::Ignored {
        return Ok(Map::new());
    }
    let headers = request.headers();
    let announced =
        headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING);
    if !announced && rule == Body::Required {
        return Err(Refusal::new(
            411,
            "a request body with Content-Length is required",
        ));
    }
    let bytes = read(api, request).await?;
    if bytes.is_empty() && rule == Body::Optional {
        return Ok(Map::new());
    }
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(Value::Object(object)) if object.is_empty() && rule == Body::Required => {
            Err(Refusal::bad_request("the request body is an empty object"))
        }
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Refusal::bad_request("the request body is not a JSON object")),
        Err(error) => Err(Refusal::bad_request(format!(
            "the request body is not JSON: {error}"
        ))),
    }
}

async fn read(api: &Api, request: Request<Incoming>) -> Result<Bytes, Refusal> {
    let limits = api.options.limits;
    let body = Limited::new(request.into_body(), limits.body_bytes_max);
    match tokio::time::timeout(limits.body_within, body.collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::new(
            413,
            format!("the request body is larger than {} bytes", limits.body_bytes_max),
        )),
        Ok(Err(error)) => Err(Refusal::bad_request(format!(
            "the request body cannot be read: {error}"
        ))),
        Err(_) => Err(Refusal::new(
            408,
            format!("the request body did not arrive within {:?}", limits.body_within),
        )),
    }
}
