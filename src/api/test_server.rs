//! For tests: the server on a real socket, with an agent and a store made of plain memory.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::Method;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{Access, Limits, Options, bind, serve};
use crate::{
    agent::{
        handle::{
            AgentHandle, ReinitRefused, Request, RestartOutcome, Snapshot,
            fixtures::{leader, live},
        },
        lease::{Fence, Lease},
    },
    client::{Answer, Client, Credentials},
    dcs::{Dcs, DcsError, Hold, Key, Lock, When, Written},
    model::{Cluster, Entry, Version},
};

/// Nothing is fenced here.
#[derive(Debug)]
struct NoFence;

impl Fence for NoFence {
    fn arm(&self, _: crate::clock::Boottime, _: i64) {}
    fn disarm(&self) {}
}

/// A store without leases: a list of objects, and a counter that goes up with every write.
#[derive(Debug)]
pub(crate) struct Store {
    entries: Mutex<Vec<Entry>>,
    silent: AtomicBool,
    changes: watch::Sender<u64>,
}

impl Store {
    pub(crate) fn new(pairs: &[(&str, &str)]) -> Arc<Self> {
        let store = Self {
            entries: Mutex::new(Vec::new()),
            silent: AtomicBool::new(false),
            changes: watch::Sender::new(0),
        };
        for (path, value) in pairs {
            store.put(path, value);
        }
        Arc::new(store)
    }

    /// From now on no question is answered, as behind a network that drops everything.
    pub(crate) fn fall_silent(&self) {
        self.silent.store(true, Ordering::Relaxed);
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
        if self.silent.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
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
    pub(super) access: watch::Sender<Access>,
    pub(crate) snapshot: watch::Sender<Arc<Snapshot>>,
    pub(crate) lease: Arc<Lease>,
    pub(super) requests: Option<mpsc::Receiver<Request>>,
    pub(super) shutdown: CancellationToken,
    pub(super) task: JoinHandle<()>,
}

pub(super) fn limits() -> Limits {
    Limits {
        handshake_within: Duration::from_millis(300),
        connections_max: 4,
        // Longer than any test thinks: a pooled connection must not be closed just as it is used.
        head_within: Duration::from_secs(1),
        body_within: Duration::from_millis(300),
        body_bytes_max: 1000,
        drain_within: Duration::from_millis(300),
    }
}

pub(crate) async fn server(pairs: &[(&str, &str)]) -> Server {
    server_with(pairs, None, limits()).await
}

pub(super) async fn server_with(
    pairs: &[(&str, &str)],
    credentials: Option<Credentials>,
    limits: Limits,
) -> Server {
    let listener = bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let store = Store::new(pairs);
    let (snapshot, receiver) = watch::channel(Arc::new(live(leader())));
    let (sender, requests) = mpsc::channel(16);
    let lease = Lease::new(store.clone(), Arc::new(NoFence), None);
    let handle = AgentHandle::new(
        receiver,
        sender,
        store.clone(),
        Arc::clone(&lease),
        crate::metrics::Metrics::new("demo", &"n1".into()).expect("names differ"),
    );
    let shutdown = CancellationToken::new();
    let client = Client::new(credentials.as_ref());
    let (access, current) = watch::channel(Access::with_credentials(credentials));
    let options = Options {
        access: current,
        tls: watch::channel(None).1,
        client: client.clone(),
        levels: Arc::new(crate::telemetry::LevelHandle::detached("info")),
        limits,
    };
    let task = tokio::spawn(serve(vec![listener], handle, options, shutdown.clone()));
    Server {
        address,
        client,
        store,
        access,
        snapshot,
        lease,
        requests: Some(requests),
        shutdown,
        task,
    }
}

impl Server {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(super) async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let url = self.url(path);
        let answer = self
            .client
            .send(method, &url, body.as_ref(), Duration::from_secs(30));
        answer.await.expect("an answer")
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, None).await
    }

    pub(super) async fn says(&self, method: Method, path: &str, body: Option<Value>) -> (u16, String) {
        let answer = self.ask(method, path, body).await;
        (answer.status, answer.text())
    }

    /// Sends bytes and reads until the server closes the connection.
    pub(super) async fn raw(&self, bytes: &[u8]) -> String {
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
                        drop(reply.send(if force { Ok(()) } else { Err(ReinitRefused::Leader) }));
                    }
                    Request::Reload | Request::WakeUp => {}
                }
            }
        })
    }
}

pub(super) async fn rest_of(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    // A reset is an end too.
    let _ended = tokio::time::timeout(Duration::from_secs(5), read)
        .await
        .expect("the server closes");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The stored cluster with n2's REST API at `address`.
pub(crate) fn n2_at(address: &str) -> String {
    format!(r#"{{"api_url":"http://{address}/patroni","state":"running","role":"replica"}}"#)
}
