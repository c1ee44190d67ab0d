//! The server over real sockets, with an agent and a store made of plain memory.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use http::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{Limits, Options, bind, serve};
use crate::{
    agent::handle::{
        AgentHandle, ReinitRefused, Request, RestartOutcome, Snapshot,
        fixtures::{HEALTHY, leader, live},
    },
    client::{Answer, Client, Credentials},
    dcs::{Dcs, DcsError, Hold, Key, Lock, When, Written},
    model::{Cluster, Entry, Version},
};

/// A store without leases: a list of objects, and a counter that goes up with every write.
#[derive(Debug)]
pub(crate) struct Store {
    entries: Mutex<Vec<Entry>>,
    changes: watch::Sender<u64>,
}

impl Store {
    pub(crate) fn new(pairs: &[(&str, &str)]) -> Arc<Self> {
        let store = Self {
            entries: Mutex::new(Vec::new()),
            changes: watch::Sender::new(0),
        };
        for (path, value) in pairs {
            store.put(path, value);
        }
        Arc::new(store)
    }

    pub(crate) fn put(&self, path: &str, value: &str) -> Version {
        let mut version = Version(0);
        self.changes.send_modify(|count| {
            *count += 1;
            version = Version(*count);
        });
        let mut entries = self.entries.lock().expect("no panic while locked");
        entries.retain(|entry| entry.path != path);
        entries.push(Entry {
            path: path.into(),
            value: value.into(),
            version,
            lease: 0,
        });
        version
    }

    pub(crate) fn get(&self, path: &str) -> Option<String> {
        let entries = self.entries.lock().expect("no panic while locked");
        entries
            .iter()
            .find(|entry| entry.path == path)
            .map(|entry| entry.value.clone())
    }
}

#[async_trait]
impl Dcs for Store {
    async fn cluster(&self) -> Result<Cluster, DcsError> {
        let entries = self.entries.lock().expect("no panic while locked").clone();
        if entries.is_empty() {
            return Err(DcsError::Timeout {
                endpoint: "store".into(),
                waited: Duration::from_secs(1),
            });
        }
        Ok(Cluster::from_entries(&entries))
    }
    async fn acquire(&self) -> Result<Lock, DcsError> {
        Ok(Lock::Lost(None))
    }
    async fn renew(&self) -> Result<Lock, DcsError> {
        Ok(Lock::Held(Hold {
            sent_at: crate::clock::Boottime::now(),
            ttl: Duration::ZERO,
            lease: 0,
        }))
    }
    async fn release(&self, _: Option<&str>) -> Result<(), DcsError> {
        Ok(())
    }
    async fn touch_member(&self, _: &str) -> Result<(), DcsError> {
        Ok(())
    }
    async fn remove_member(&self) -> Result<(), DcsError> {
        Ok(())
    }
    async fn write(&self, key: Key, value: &str, when: When) -> Result<Written, DcsError> {
        let found = {
            let entries = self.entries.lock().expect("no panic while locked");
            entries
                .iter()
                .find(|entry| entry.path == key.path())
                .map(|entry| entry.version)
        };
        let holds = match when {
            When::Always => true,
            When::Absent => found.is_none(),
            When::Version(version) => found == Some(version),
        };
        Ok(if holds {
            Written::Yes(self.put(key.path(), value))
        } else {
            Written::Refused
        })
    }
    async fn delete(&self, _: Key, _: When) -> Result<Written, DcsError> {
        Ok(Written::Refused)
    }
    async fn adopt(&self, _: i64) {}
    async fn set_timing(&self, _: Duration, _: Duration) {}
    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
    fn kind(&self) -> &'static str {
        "test"
    }
}

pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) client: Client,
    pub(crate) store: Arc<Store>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    requests: Option<mpsc::Receiver<Request>>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

fn limits() -> Limits {
    Limits {
        connections_max: 4,
        head_within: Duration::from_millis(300),
        body_within: Duration::from_millis(300),
        body_bytes_max: 1000,
        drain_within: Duration::from_millis(300),
    }
}

pub(crate) async fn server(pairs: &[(&str, &str)]) -> Server {
    server_with(pairs, None, limits()).await
}

async fn server_with(
    pairs: &[(&str, &str)],
    credentials: Option<Credentials>,
    limits: Limits,
) -> Server {
    let listener = bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let store = Store::new(pairs);
    let (snapshot, receiver) = watch::channel(Arc::new(live(leader())));
    let (sender, requests) = mpsc::channel(16);
    let handle = AgentHandle::new(receiver, sender, store.clone());
    let shutdown = CancellationToken::new();
    let client = Client::new(credentials.as_ref());
    let options = Options {
        credentials,
        client: client.clone(),
        limits,
    };
    let task = tokio::spawn(serve(listener, handle, options, shutdown.clone()));
    Server {
        address,
        client,
        store,
        snapshot,
        requests: Some(requests),
        shutdown,
        task,
    }
}

impl Server {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let url = self.url(path);
        let answer = self
            .client
            .send(method, &url, body.as_ref(), Duration::from_secs(30));
        answer.await.expect("an answer")
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, None).await
    }

    async fn says(&self, method: Method, path: &str, body: Option<Value>) -> (u16, String) {
        let answer = self.ask(method, path, body).await;
        (answer.status, answer.text())
    }

    /// Sends bytes and reads until the server closes the connection.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.address).await.expect("listening");
        stream.write_all(bytes).await.expect("room in the buffer");
        rest_of(&mut stream).await
    }

    /// Answers every request of the API as an agent would.
    pub(crate) fn agent(&mut self) -> JoinHandle<()> {
        let mut requests = self.requests.take().expect("only one agent");
        let snapshot = self.snapshot.clone();
        tokio::spawn(async move {
            while let Some(request) = requests.recv().await {
                match request {
                    Request::Refresh(reply) => {
                        let fresh = Arc::new(live(leader()));
                        snapshot.send_replace(fresh.clone());
                        drop(reply.send(fresh));
                    }
                    Request::Restart { filters, reply } => {
                        let outcome = match filters.role {
                            None => RestartOutcome::Done,
                            Some(_) => RestartOutcome::Busy("reinitialize".into()),
                        };
                        drop(reply.send(outcome));
                    }
                    Request::ScheduleRestart { restart, reply } => {
                        let accepted = restart.filters.role.is_none();
                        reply.send(accepted).expect("the API waits");
                    }
                    Request::CancelRestart(reply) => reply.send(false).expect("the API waits"),
                    Request::Reinitialize { force, reply, .. } => {
                        drop(reply.send(if force {
                            Ok(())
                        } else {
                            Err(ReinitRefused::Leader)
                        }));
                    }
                    Request::Reload | Request::WakeUp => {}
                }
            }
        })
    }
}

async fn rest_of(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    // A reset is an end too.
    let _ended = tokio::time::timeout(Duration::from_secs(5), read)
        .await
        .expect("the server closes");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn health_checks_answer_code_and_status() {
    let server = server(HEALTHY).await;
    let answer = server.get("/primary").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json().expect("JSON")["role"], "primary");
    for (path, code) in [
        ("/", 200),
        ("/replica", 503),
        ("/read-only?lag=0", 200),
        ("/metrics", 503),
        ("/x/y", 503),
        ("/liveness", 200),
        ("/readiness", 200),
        ("/patroni/anything", 200),
        ("/failsafe", 502),
    ] {
        assert_eq!(server.get(path).await.status, code, "{path}");
    }
    assert!(server.get("/liveness").await.body.is_empty());
    assert!(
        server
            .get("/nonsense")
            .await
            .text()
            .starts_with("{\"state\": \"running\", ")
    );
}

#[tokio::test]
async fn head_and_options_are_health_checks_on_every_path() {
    let server = server(HEALTHY).await;
    for method in [Method::HEAD, Method::OPTIONS] {
        for (path, code) in [
            ("/primary", 200),
            ("/replica", 503),
            ("/patroni", 503),
            ("/config", 503),
        ] {
            assert_eq!(
                server.says(method.clone(), path, None).await,
                (code, String::new()),
                "{method} {path}"
            );
        }
    }
}

#[tokio::test]
async fn other_methods_are_not_supported() {
    let server = server(HEALTHY).await;
    for (method, path) in [
        (Method::POST, "/patroni"),
        (Method::DELETE, "/failover"),
        (Method::PUT, "/x"),
    ] {
        let (code, text) = server.says(method, path, Some(json!({"a": 1}))).await;
        assert_eq!(code, 501);
        assert!(
            text.contains("Server does not support this operation"),
            "{text}"
        );
    }
    let odd = server
        .raw(b"BREW /pot HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        .await;
    assert!(odd.starts_with("HTTP/1.1 501 "), "{odd}");
}

#[tokio::test]
async fn connections_stay_open_and_old_clients_are_served() {
    let server = server(HEALTHY).await;
    let mut stream = TcpStream::connect(&server.address)
        .await
        .expect("listening");
    for _ in 0..3 {
        stream
            .write_all(b"HEAD /primary HTTP/1.1\r\nHost: h\r\n\r\n")
            .await
            .expect("open");
        let mut head = [0; 15];
        stream.read_exact(&mut head).await.expect("an answer");
        assert_eq!(&head, b"HTTP/1.1 200 OK");
        let mut tail = Vec::new();
        while !tail.ends_with(b"\r\n\r\n") {
            tail.push(stream.read_u8().await.expect("the rest of the head"));
        }
    }
    let old = server.raw(b"GET /liveness HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 OK\r\n"), "{old}");
    let kept =
        b"GET /liveness HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /replica HTTP/1.0\r\n\r\n";
    let kept = server.raw(kept).await;
    assert!(
        kept.contains("200 OK") && kept.contains("503 Service"),
        "{kept}"
    );
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_junk_ends_the_connection() {
    let server = server(HEALTHY).await;
    let answers = server
        .raw(b"GET /liveness HTTP/1.1\r\nHost: h\r\n\r\nGET /replica HTTP/1.1\r\nHost: h\r\n\r\n\x00\x01junk\r\n\r\n")
        .await;
    let codes: Vec<&str> = answers
        .matches("HTTP/1.1 ")
        .zip(answers.split("HTTP/1.1 ").skip(1))
        .map(|(_, rest)| &rest[..3])
        .collect();
    assert_eq!(codes, ["200", "503", "400"]);
    assert!(
        server
            .raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
            .await
            .len()
            < 200
    );
    let long = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(100_000));
    assert!(!server.raw(long.as_bytes()).await.contains(" 200 "));
    assert_eq!(server.get("/primary").await.status, 200);
}

#[tokio::test]
async fn slow_clients_are_dropped_and_delay_nobody() {
    let server = server(HEALTHY).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(&server.address)
            .await
            .expect("listening");
        stream.write_all(b"GET /primary HT").await.expect("open");
        slow.push(stream);
        assert_eq!(
            server
                .raw(b"GET /primary HTTP/1.0\r\n\r\n")
                .await
                .get(9..12),
            Some("200")
        );
    }
    for mut stream in slow {
        assert!(!rest_of(&mut stream).await.contains(" 200 "));
    }
}

#[tokio::test]
async fn idle_connections_are_closed() {
    let server = server(HEALTHY).await;
    let answer = server
        .raw(b"GET /liveness HTTP/1.1\r\nHost: h\r\n\r\n")
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 200"),
        "closed by the server, or raw() would not return"
    );
}

#[tokio::test]
async fn bodies_are_bounded_in_size_and_time() {
    let server = server(HEALTHY).await;
    let big = json!({"x": "y".repeat(2000)});
    assert_eq!(
        server.says(Method::PATCH, "/config", Some(big)).await.0,
        413
    );
    let slow = b"PATCH /config HTTP/1.1\r\nHost: h\r\nContent-Length: 50\r\n\r\n{";
    assert!(server.raw(slow).await.starts_with("HTTP/1.1 408"));
    let without = server
        .raw(b"PATCH /config HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        .await;
    assert!(without.starts_with("HTTP/1.1 411"), "{without}");
    for (body, reason) in [
        (json!([]), "not a JSON object"),
        (json!({}), "empty object"),
        (json!("x"), "not a JSON"),
    ] {
        let (code, text) = server.says(Method::PATCH, "/config", Some(body)).await;
        assert_eq!(code, 400);
        assert!(text.contains(reason), "{text}");
    }
    let junk =
        b"PUT /config HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 3\r\n\r\n{,}";
    assert!(server.raw(junk).await.contains("is not JSON"));
    let chunked = b"PATCH /config HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{\"ttl\":9}\r\n0\r\n\r\n";
    assert!(server.raw(chunked).await.ends_with("{\"ttl\": 9}"));
}

#[tokio::test]
async fn changes_need_the_credentials_and_reading_does_not() {
    let credentials = Credentials {
        username: "u".into(),
        password: "p".into(),
    };
    let mut server = server_with(HEALTHY, Some(credentials), limits()).await;
    let agent = server.agent();
    assert_eq!(
        server.says(Method::POST, "/reload", None).await,
        (202, "reload scheduled".into())
    );
    let without = server
        .raw(b"POST /reload HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        .await;
    assert!(without.starts_with("HTTP/1.1 401"), "{without}");
    assert!(
        without.contains("www-authenticate: Basic realm=\"Patroni\""),
        "{without}"
    );
    assert!(without.ends_with("no auth header received"), "{without}");
    let wrong = server
        .raw(b"POST /reload HTTP/1.0\r\nAuthorization: Basic eDp5\r\n\r\n")
        .await;
    assert!(wrong.ends_with("not authenticated"), "{wrong}");
    assert!(
        server
            .raw(b"GET /config HTTP/1.0\r\n\r\n")
            .await
            .contains(" 200 ")
    );
    agent.abort();
}

#[tokio::test]
async fn patroni_asks_the_agent_only_when_the_snapshot_is_old() {
    let mut server = server(HEALTHY).await;
    let agent = server.agent();
    let mut old = live(leader());
    old.observed_at = old.observed_at.minus(Duration::from_secs(5));
    old.member = "old".into();
    server.snapshot.send_replace(Arc::new(old));
    assert_eq!(
        server.get("/primary").await.json().expect("JSON")["patroni"]["name"],
        "old"
    );
    assert_eq!(
        server.get("/patroni").await.json().expect("JSON")["patroni"]["name"],
        "n1"
    );
    agent.abort();
}

#[tokio::test]
async fn patroni_answers_with_the_old_snapshot_if_the_agent_is_gone() {
    let mut server = server(HEALTHY).await;
    server.requests = None;
    let mut old = live(leader());
    old.observed_at = old.observed_at.minus(Duration::from_secs(5));
    server.snapshot.send_replace(Arc::new(old));
    assert_eq!(server.get("/patroni").await.status, 200);
    assert_eq!(
        server.says(Method::POST, "/reload", None).await,
        (503, "the agent is shutting down".into())
    );
}

#[tokio::test]
async fn config_is_merged_replaced_and_read() {
    let server = server(HEALTHY).await;
    let patch = json!({"pause": true, "postgresql": {"parameters": {"work_mem": "8MB"}}});
    let (code, text) = server.says(Method::PATCH, "/config", Some(patch)).await;
    let expected =
        r#"{"ttl": 30, "pause": true, "postgresql": {"parameters": {"work_mem": "8MB"}}}"#;
    assert_eq!((code, text.as_str()), (200, expected));
    let stored = r#"{"ttl":30,"pause":true,"postgresql":{"parameters":{"work_mem":"8MB"}}}"#;
    assert_eq!(server.store.get("config").as_deref(), Some(stored));
    assert_eq!(server.get("/config").await.text(), expected);
    let put = server
        .says(Method::PUT, "/config", Some(json!({"ttl": 20})))
        .await;
    assert_eq!(put, (200, r#"{"ttl": 20}"#.into()));
    server.store.put("config", "broken");
    assert_eq!(server.get("/config").await.status, 502);
    assert_eq!(
        server
            .says(Method::PATCH, "/config", Some(json!({"a": 1})))
            .await
            .0,
        503
    );
}

#[tokio::test]
async fn cluster_and_history_come_from_the_store_and_outlive_it_for_a_while() {
    let server = server(&[]).await;
    let cluster = server.get("/cluster").await.json().expect("JSON");
    assert_eq!(cluster["members"][1]["state"], "streaming");
    assert_eq!(cluster["members"][0]["role"], "leader");
    assert_eq!(
        server.get("/history").await.json().expect("JSON")[0][4],
        "n2"
    );
    let mut blind = live(leader());
    blind.dcs = None;
    server.snapshot.send_replace(Arc::new(blind));
    let (code, text) = server.says(Method::GET, "/cluster", None).await;
    assert_eq!(code, 503);
    assert!(text.starts_with("cannot reach the DCS: "), "{text}");
}

/// The stored cluster with n2's REST API at `address`.
pub(crate) fn n2_at(address: &str) -> String {
    format!(r#"{{"api_url":"http://{address}/patroni","state":"running","role":"replica"}}"#)
}

#[tokio::test]
async fn a_switchover_is_checked_written_and_followed() {
    let server = server(HEALTHY).await;
    let body = || Some(json!({"leader": "n1", "candidate": "n2"}));
    server.store.put("members/n2", &n2_at("127.0.0.1:1"));
    assert_eq!(
        server.says(Method::POST, "/switchover", body()).await,
        (
            412,
            "switchover is not possible: no good candidates have been found".into()
        )
    );
    assert_eq!(server.store.get("failover"), None);
    server.store.put("members/n2", &n2_at(&server.address));
    let store = server.store.clone();
    let cluster = tokio::spawn(async move {
        let mut changes = store.changes();
        while store.get("failover").is_none() {
            changes.changed().await.expect("the store lives");
        }
        store.put("leader", "n2");
        store.put("failover", "{}");
    });
    assert_eq!(
        server.says(Method::POST, "/switchover", body()).await,
        (200, "Successfully switched over to \"n2\"".into())
    );
    cluster.await.expect("no panic");
    assert_eq!(
        server.says(Method::POST, "/switchover", body()).await,
        (412, "leader name does not match".into())
    );
    let (code, text) = server
        .says(Method::POST, "/failover", Some(json!({"leader": "n1"})))
        .await;
    assert_eq!(
        (code, text.as_str()),
        (
            400,
            "Failover could be performed only to a specific candidate"
        )
    );
}

#[tokio::test]
async fn a_switchover_can_be_scheduled_and_forgotten() {
    let mut server = server(HEALTHY).await;
    let gone = (404, "no switchover is scheduled".to_owned());
    assert_eq!(server.says(Method::DELETE, "/switchover", None).await, gone);
    let body = json!({"leader": "n1", "scheduled_at": "2999-01-01T00:00:00+00:00"});
    let answer = server.says(Method::POST, "/switchover", Some(body)).await;
    assert_eq!(answer, (202, "Switchover scheduled".into()));
    let woken = server
        .requests
        .as_mut()
        .expect("no agent took it")
        .recv()
        .await;
    assert!(matches!(woken, Some(Request::WakeUp)));
    assert_eq!(
        server.get("/cluster").await.json().expect("JSON")["scheduled_switchover"],
        json!({"at": "2999-01-01T00:00:00+00:00", "from": "n1"})
    );
    let deleted = (200, "scheduled switchover deleted".to_owned());
    assert_eq!(
        server.says(Method::DELETE, "/switchover", None).await,
        deleted
    );
    assert_eq!(server.store.get("failover").as_deref(), Some("{}"));
    assert_eq!(server.says(Method::DELETE, "/switchover", None).await, gone);
}

#[tokio::test]
async fn requests_for_this_member_go_to_the_agent() {
    let mut server = server(HEALTHY).await;
    let agent = server.agent();
    let later = "2999-01-01T00:00:00Z";
    for (method, path, body, code, text) in [
        (
            Method::POST,
            "/restart",
            None,
            200,
            "restarted successfully",
        ),
        (
            Method::POST,
            "/restart",
            Some(json!({"role": "primary"})),
            503,
            "reinitialize already in progress",
        ),
        (
            Method::POST,
            "/restart",
            Some(json!({"x": 1})),
            400,
            "Unknown filter for the scheduled restart: x",
        ),
        (
            Method::POST,
            "/restart",
            Some(json!({"schedule": later})),
            202,
            "Restart scheduled",
        ),
        (
            Method::POST,
            "/restart",
            Some(json!({"schedule": later, "role": "replica"})),
            409,
            "Another restart is already scheduled",
        ),
        (
            Method::DELETE,
            "/restart",
            None,
            404,
            "no restarts are scheduled",
        ),
        (
            Method::POST,
            "/reinitialize",
            None,
            503,
            "I am the leader, can not reinitialize",
        ),
        (
            Method::POST,
            "/reinitialize",
            Some(json!({"force": true})),
            200,
            "reinitialize started",
        ),
        (Method::POST, "/reload", None, 202, "reload scheduled"),
    ] {
        let label = format!("{method} {path} {body:?}");
        assert_eq!(
            server.says(method, path, body).await,
            (code, text.to_owned()),
            "{label}"
        );
    }
    let bad = server
        .raw(b"POST /reinitialize HTTP/1.0\r\nContent-Length: 1\r\n\r\n{")
        .await;
    assert!(
        bad.contains(" 400 "),
        "a malformed body starts nothing: {bad}"
    );
    agent.abort();
}

#[tokio::test]
async fn shutdown_ends_idle_connections_and_abandons_the_rest() {
    let server = server(HEALTHY).await;
    let mut idle = TcpStream::connect(&server.address)
        .await
        .expect("listening");
    let mut waiting = TcpStream::connect(&server.address)
        .await
        .expect("listening");
    waiting
        .write_all(b"POST /restart HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .expect("open");
    assert_eq!(server.get("/liveness").await.status, 200);
    server.shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(5), server.task).await;
    ended.expect("serve returns").expect("no panic");
    assert_eq!(rest_of(&mut idle).await, "");
    assert_eq!(rest_of(&mut waiting).await, "");
    assert!(TcpStream::connect(&server.address).await.is_err());
}
