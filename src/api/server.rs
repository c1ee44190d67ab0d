//! Sockets: accept, limit, time out, drain. What is answered is the business of `routes`.
//!
//! | task | input | output | ended by |
//! |---|---|---|---|
//! | [`serve`] | connections of all listeners | one task each | the shutdown token, then `drain_within` |
//! | connection | requests | answers | the client, a timeout, being evicted, shutdown |

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Options, access::Peer, routes, why};
use crate::agent::handle::AgentHandle;

/// What handlers share.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) handle: AgentHandle,
    pub(super) options: Options,
    pub(super) why: why::Latest,
}

/// How busy a connection is: requests whose handler runs. An idle one may be evicted.
#[derive(Debug, Clone, Default)]
pub(super) struct Activity(Arc<AtomicUsize>);

/// Marks a connection as busy while it lives.
pub(super) struct Busy(Activity);

impl Activity {
    pub(super) fn begin(&self) -> Busy {
        self.0.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    fn is_idle(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Open connections, oldest first.
#[derive(Debug, Default)]
struct Connections {
    next: u64,
    open: BTreeMap<u64, (Activity, CancellationToken)>,
}

impl Connections {
    /// A place for a new connection; the oldest idle one makes room if there is none. `None`: all are busy.
    fn admit(&mut self, limit: usize) -> Option<(u64, Activity, CancellationToken)> {
        if self.open.len() >= limit {
            let idle = self.open.iter().find(|(_, (activity, _))| activity.is_idle());
            let id = idle.map(|(id, _)| *id)?;
            if let Some((_, evict)) = self.open.remove(&id) {
                evict.cancel();
            }
        }
        self.next += 1;
        let place = (Activity::default(), CancellationToken::new());
        self.open.insert(self.next, place.clone());
        Some((self.next, place.0, place.1))
    }
}

/// What the tasks of all listeners share.
#[derive(Clone)]
struct Shared {
    api: Arc<Api>,
    connections: Arc<Mutex<Connections>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    abandon: CancellationToken,
}

/// Answers requests until `shutdown`, then gives those in flight `drain_within` and returns.
pub async fn serve(
    listeners: Vec<TcpListener>,
    handle: AgentHandle,
    options: Options,
    shutdown: CancellationToken,
) {
    let limits = options.limits;
    let shared = Shared {
        api: Arc::new(Api {
            handle,
            options,
            why: why::Latest::default(),
        }),
        connections: Arc::default(),
        tasks: TaskTracker::new(),
        shutdown,
        abandon: CancellationToken::new(),
    };
    let accepting = listeners.into_iter().map(|listener| accept(listener, &shared));
    futures::future::join_all(accepting).await;
    let Shared { tasks, abandon, .. } = shared;
    tasks.close();
    if tokio::time::timeout(limits.drain_within, tasks.wait())
        .await
        .is_err()
    {
        tracing::info!(open = tasks.len(), "REST API abandons requests in flight");
        abandon.cancel();
        tasks.wait().await;
    }
}

/// Takes connections of one listener until shutdown.
async fn accept(listener: TcpListener, shared: &Shared) {
    let limits = shared.api.options.limits;
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => return,
            // cancel-safe: a connection not returned stays in the backlog
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, peer.ip()),
            Err(error) => {
                // Either the client is gone already or we are out of descriptors; the latter needs a breath.
                tracing::warn!(%error, "REST API cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some((id, activity, evict)) = lock(&shared.connections).admit(limits.connections_max) else {
            tracing::warn!(
                limit = limits.connections_max,
                "REST API has no room for another connection"
            );
            continue;
        };
        let own = shared.clone();
        shared.tasks.spawn(async move {
            tokio::select! {
                () = connection(stream, peer, own.api, activity, own.shutdown) => {}
                () = evict.cancelled() => {}
                () = own.abandon.cancelled() => {}
            }
            lock(&own.connections).open.remove(&id);
        });
    }
}

fn lock(connections: &Mutex<Connections>) -> std::sync::MutexGuard<'_, Connections> {
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn connection(
    stream: TcpStream,
    peer: IpAddr,
    api: Arc<Api>,
    activity: Activity,
    shutdown: CancellationToken,
) {
    if let Err(error) = tune(&stream) {
        tracing::debug!(%error, "socket options");
    }
    let tls = api.options.tls.borrow().clone();
    let Some(tls) = tls else {
        return requests(stream, peer.into(), api, activity, shutdown).await;
    };
    // It costs nobody else anything: this is the task of this connection, and one that is idle may be evicted.
    let handshake = TlsAcceptor::from(tls.config).accept(stream);
    match tokio::time::timeout(api.options.limits.handshake_within, handshake).await {
        Ok(Ok(stream)) => {
            let shown = stream
                .get_ref()
                .1
                .peer_certificates()
                .is_some_and(|chain| !chain.is_empty());
            let peer = Peer {
                address: peer,
                lacks_certificate: tls.wants_certificate && !shown,
            };
            Box::pin(requests(stream, peer, api, activity, shutdown)).await;
        }
        Ok(Err(error)) => tracing::debug!(%peer, %error, "REST API: no TLS with this client"),
        Err(_) => tracing::debug!(%peer, "REST API: a client does not finish its TLS handshake"),
    }
}

/// Answers what comes on a connection.
async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    peer: Peer,
    api: Arc<Api>,
    activity: Activity,
    shutdown: CancellationToken,
) {
    let limits = api.options.limits;
    let service = service_fn(move |request| {
        let (api, activity) = (api.clone(), activity.clone());
        async move { Ok::<_, Infallible>(routes::answer(&api, request, peer, &activity).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_within)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "REST API connection ended");
    }
}

/// Notices clients that are gone or do not take their answer (contract: REST API §1, "Listen").
fn tune(stream: &TcpStream) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_tcp_nodelay(stream, true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(3))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(3))?;
    sockopt::set_tcp_user_timeout(stream, 10_000)
}
