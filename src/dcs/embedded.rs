//! Embedded mode: the agent runs etcd as its own child, alone or as one of a fixed set of peers. Everything else goes
//! through the ordinary client ([`super::etcd`]); nothing here knows about locks.
//!
//! Here: options, the peer list, etcd's flags. Beside it: `process` (finding, starting, signalling), `supervise`
//! (keeping it running), `log` (its lines become ours).
//!
//! | task | input | output | ended by |
//! |---|---|---|---|
//! | supervisor | exit of etcd, stop request | a running etcd | [`Embedded::stop`] or drop |
//! | log reader | FIFO `log` | tracing events, target `etcd` | end of the supervisor |
//!
//! An agent that dies (kill -9) leaves etcd running, and the next agent goes on with it: both are found by the exact
//! command line, which names the data directory, so no pid file can be stale. For the same reason etcd's log goes
//! through a FIFO that etcd itself holds open: a pipe to a dead agent would kill it with SIGPIPE.

mod log;
mod process;
mod rejoin;
mod supervise;

use std::{
    net::{IpAddr, TcpListener, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

use tokio::{sync::watch, task::JoinHandle};

pub use self::process::ProcessError;

/// Default port for clients.
pub const CLIENT_PORT: u16 = 2379;
/// Default port for other etcd members.
pub const PEER_PORT: u16 = 2380;

/// One member of the embedded cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its etcd name.
    pub name: String,
    /// Host or address, IPv6 without brackets.
    pub host: String,
    /// Port for other members.
    pub peer_port: u16,
    /// Port for clients.
    pub client_port: u16,
}

/// Why embedded mode cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// The list of peers is malformed.
    #[error("peer {text:?} is not name, name=host, name=host:peerport or name=host:peerport:clientport")]
    Peer {
        /// The item.
        text: String,
    },
    /// The list of peers has a name twice.
    #[error("peer {name:?} is listed twice")]
    Twice {
        /// The name.
        name: String,
    },
    /// We are not in the list.
    #[error("the member {name:?} is not among the peers {peers:?}")]
    Absent {
        /// Our name.
        name: String,
        /// The names given.
        peers: Vec<String>,
    },
    /// The directory or the process.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

impl EmbeddedError {
    /// There is no room for its data.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Process(error) if error.source.kind() == std::io::ErrorKind::StorageFull)
    }
}

impl Peer {
    /// A member with the default ports.
    #[must_use]
    pub fn new(name: &str, host: &str) -> Self {
        Self {
            name: name.to_owned(),
            host: host.to_owned(),
            peer_port: PEER_PORT,
            client_port: CLIENT_PORT,
        }
    }

    /// Parses `pg1,pg2,pg3` or `a=host:2380:2379,b=[::1]`.
    ///
    /// # Errors
    /// The first item that is malformed or there twice.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, EmbeddedError> {
        let mut peers: Vec<Self> = Vec::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let peer = Self::parse(item).ok_or_else(|| EmbeddedError::Peer { text: item.into() })?;
            if peers.iter().any(|other| other.name == peer.name) {
                return Err(EmbeddedError::Twice { name: peer.name });
            }
            peers.push(peer);
        }
        Ok(peers)
    }

    fn parse(item: &str) -> Option<Self> {
        let (name, address) = match item.split_once('=') {
            Some((name, address)) => (name, address),
            None => (item.split(':').next()?, item),
        };
        let (host, ports) = match address.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => address.split_at(address.find(':').unwrap_or(address.len())),
        };
        let plain = |text: &str| {
            !text.is_empty()
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-._:%".contains(c))
        };
        if !plain(name) || !plain(host) || name.contains(':') {
            return None;
        }
        let mut peer = Self::new(name, host);
        let mut ports = ports.split(':');
        if !ports.next()?.is_empty() {
            return None;
        }
        let port = |text: &str| text.parse().ok().filter(|port: &u16| *port > 0);
        if let Some(text) = ports.next() {
            peer.peer_port = port(text)?;
        }
        if let Some(text) = ports.next() {
            peer.client_port = port(text)?;
        }
        ports.next().is_none().then_some(peer)
    }

    fn bracketed(&self) -> String {
        bracketed(&self.host)
    }

    fn peer_url(&self) -> String {
        format!("http://{}:{}", self.bracketed(), self.peer_port)
    }

    fn client_endpoint(&self) -> String {
        format!("{}:{}", self.bracketed(), self.client_port)
    }
}

fn bracketed(host: &str) -> String {
    match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    }
}

/// How to run etcd.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program, looked up in `PATH` if it has no slash.
    pub program: PathBuf,
    /// Our directory on the data volume: etcd's data and the FIFO of its log. Made with mode 0700.
    pub data_dir: PathBuf,
    /// We and our peers, in any order; only ourselves for a cluster of one.
    pub peers: Vec<Peer>,
    /// Our name among the peers.
    pub name: String,
    /// Host or address to listen on; `0.0.0.0` and `::` mean every one, of both families where there are two.
    pub listen: String,
    /// Name of the etcd cluster, so that two clusters never mix; the scope.
    pub token: String,
}

/// What etcd is started with.
#[derive(Debug, Clone)]
struct Plan {
    program: PathBuf,
    dir: PathBuf,
    flags: Vec<String>,
    me: Peer,
    others: Vec<Peer>,
}

impl Options {
    fn plan(&self) -> Result<Plan, EmbeddedError> {
        let absent = || EmbeddedError::Absent {
            name: self.name.clone(),
            peers: self.peers.iter().map(|peer| peer.name.clone()).collect(),
        };
        let me = self.peers.iter().find(|peer| peer.name == self.name);
        let me = me.ok_or_else(absent)?.clone();
        let others = self.peers.iter().filter(|peer| peer.name != me.name);
        let others: Vec<Peer> = others.cloned().collect();
        Ok(Plan {
            program: self.program.clone(),
            dir: self.data_dir.clone(),
            flags: self.flags(&me, others.is_empty()),
            me,
            others,
        })
    }

    /// The flags, but for the list of members. All exist in etcd 3.4, 3.5 and 3.6.
    fn flags(&self, me: &Peer, alone: bool) -> Vec<String> {
        // Alone, an election has nobody to wait for: the timeout is mere delay at every start. Among peers half a
        // second is five heartbeats, and a lost leader is replaced within one: when it dies together with the
        // postgres beside it, this is part of the time nobody leads.
        let (heartbeat, election) = if alone { (20, 100) } else { (100, 500) };
        let (clients, peers) = self.listen_hosts(me);
        let urls = |hosts: &[String], port: u16| {
            let urls: Vec<String> = hosts.iter().map(|host| format!("http://{host}:{port}")).collect();
            urls.join(",")
        };
        let flag = |name: &str, value: &str| format!("--{name}={value}");
        vec![
            flag("name", &me.name),
            flag(
                "data-dir",
                &process::etcd_dir(&self.data_dir).display().to_string(),
            ),
            flag("listen-client-urls", &urls(&clients, me.client_port)),
            flag(
                "advertise-client-urls",
                &format!("http://{}", me.client_endpoint()),
            ),
            flag("listen-peer-urls", &urls(&peers, me.peer_port)),
            flag("initial-advertise-peer-urls", &me.peer_url()),
            flag("initial-cluster-token", &self.token),
            flag("heartbeat-interval", &heartbeat.to_string()),
            flag("election-timeout", &election.to_string()),
            // A member that was away does not disturb a working leader when it returns.
            "--pre-vote".to_owned(),
            // Our keys are few, but status changes every few seconds.
            flag("auto-compaction-mode", "periodic"),
            flag("auto-compaction-retention", "10m"),
            flag("quota-backend-bytes", &(256_u64 << 20).to_string()),
            flag("snapshot-count", "10000"),
            flag("max-snapshots", "2"),
            flag("max-wals", "2"),
            flag("logger", "zap"),
            flag("log-outputs", "stderr"),
            flag("log-level", "info"),
        ]
    }

    /// The hosts to listen on for clients and for peers. A member whose own address is a loopback one (several on one
    /// host) stays there; everybody else also listens on the loopback address, where our own client asks.
    fn listen_hosts(&self, me: &Peer) -> (Vec<String>, Vec<String>) {
        let anywhere = self.listen.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified());
        let (host, local) = match (anywhere, is_loopback(&me.host)) {
            (true, true) => return (vec![me.bracketed()], vec![me.bracketed()]),
            (true, false) => return (vec![everywhere()], vec![everywhere()]),
            (false, true) => (resolved(&self.listen), me.bracketed()),
            (false, false) => (resolved(&self.listen), LOCAL.to_owned()),
        };
        let mut clients = vec![host.clone()];
        if host != local {
            clients.push(local);
        }
        (clients, vec![host])
    }

    /// Where the client should look: our own etcd first, then the peers'.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        let (mine, others): (Vec<_>, Vec<_>) = self.peers.iter().partition(|peer| peer.name == self.name);
        let local = mine.into_iter().map(|me| match is_loopback(&me.host) {
            true => me.client_endpoint(),
            false => format!("{LOCAL}:{}", me.client_port),
        });
        local
            .chain(others.into_iter().map(Peer::client_endpoint))
            .collect()
    }
}

fn is_loopback(host: &str) -> bool {
    host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Our own host for our own client.
const LOCAL: &str = "127.0.0.1";

/// All interfaces, in both families where IPv6 exists.
fn everywhere() -> String {
    let both = TcpListener::bind("[::]:0").is_ok();
    if both { "[::]" } else { "0.0.0.0" }.to_owned()
}

/// etcd binds to addresses only. A name that cannot be resolved stays, for etcd's own message.
fn resolved(host: &str) -> String {
    if host.parse::<IpAddr>().is_ok() {
        return bracketed(host);
    }
    let found = (host, 0)
        .to_socket_addrs()
        .ok()
        .and_then(|mut found| found.next());
    found.map_or_else(|| host.to_owned(), |found| bracketed(&found.ip().to_string()))
}

/// A supervised etcd. Dropping it sends SIGTERM and waits for nothing.
#[derive(Debug)]
pub struct Embedded {
    endpoints: Vec<String>,
    stop: watch::Sender<Option<Duration>>,
    state: watch::Receiver<supervise::State>,
    task: JoinHandle<()>,
}

impl Embedded {
    /// Prepares the directory, adopts the etcd a predecessor left running or starts one, and keeps it running.
    /// Returns as soon as the process exists; the client's own patience covers the rest.
    ///
    /// # Errors
    /// When the options contradict themselves, the directory cannot be used, or the first start fails at once.
    pub async fn start(options: Options) -> Result<Self, EmbeddedError> {
        let plan = options.plan()?;
        let (stop, stopped) = watch::channel(None);
        let (state, task) = supervise::start(plan, stopped).await?;
        Ok(Self {
            endpoints: options.endpoints(),
            stop,
            state,
            task,
        })
    }

    /// Where the client should look: our own etcd first, then the peers'.
    #[must_use]
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Pid of etcd; `None` while it is down.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.state.borrow().pid
    }

    /// Whether the running etcd was started by an earlier agent.
    #[must_use]
    pub fn adopted(&self) -> bool {
        self.state.borrow().adopted
    }

    /// Leaves etcd running, for the next agent to go on with.
    pub fn leave(self) {
        self.task.abort();
        // Its drop would end etcd.
        std::mem::forget(self);
    }

    /// Ends etcd: SIGTERM, and SIGKILL once `patience` is over. Whether it ended by itself.
    pub async fn stop(mut self, patience: Duration) -> bool {
        self.stop.send_replace(Some(patience));
        let _ = (&mut self.task).await;
        let state = self.state.borrow();
        !state.killed
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if !self.task.is_finished() {
            self.task.abort();
            if let Some(handle) = &self.state.borrow().handle {
                handle.terminate();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &str, name: &str) -> Options {
        Options {
            program: "etcd".into(),
            data_dir: "/data/etcd".into(),
            peers: Peer::parse_list(list).unwrap_or_default(),
            name: name.into(),
            listen: "127.0.0.1".into(),
            token: "demo".into(),
        }
    }

    #[test]
    fn peers_are_hosts_or_names_with_addresses() {
        let peers = Peer::parse_list("pg1, pg2:3380,a=h.x:1:2,b=[fe80::1%eth0]:5").unwrap_or_default();
        let expected = [
            Peer::new("pg1", "pg1"),
            Peer {
                peer_port: 3380,
                ..Peer::new("pg2", "pg2")
            },
            Peer {
                peer_port: 1,
                client_port: 2,
                ..Peer::new("a", "h.x")
            },
            Peer {
                peer_port: 5,
                ..Peer::new("b", "fe80::1%eth0")
            },
        ];
        assert_eq!(peers, expected);
    }

    #[test]
    fn malformed_peers_are_named() {
        for text in [
            "a=",
            "=h",
            "a=h:0",
            "a=h:x",
            "a=h:1:2:3",
            "a=[::1",
            "a=h,a=i",
            "a b",
            "a=h/x",
        ] {
            assert!(Peer::parse_list(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_client_asks_the_local_etcd_first() {
        let endpoints = options("pg1,pg2,pg3", "pg2").endpoints();
        assert_eq!(endpoints, ["127.0.0.1:2379", "pg1:2379", "pg3:2379"]);
    }

    #[test]
    fn a_cluster_of_one_is_not_open_to_the_network() {
        let plan = options("pg1", "pg1").plan();
        let flags = plan.map(|plan| plan.flags).unwrap_or_default();
        assert!(
            flags.contains(&"--listen-client-urls=http://127.0.0.1:2379".to_owned()),
            "{flags:?}"
        );
        assert!(flags.contains(&"--election-timeout=100".to_owned()), "{flags:?}");
    }

    #[test]
    fn peers_listen_where_they_are_told_and_for_themselves() {
        let hosts = |list: &str, listen: &str| {
            let options = Options {
                listen: listen.into(),
                ..options(list, "pg1")
            };
            options.listen_hosts(&options.peers[0])
        };
        let owned = |hosts: &[&str]| hosts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let expected = (owned(&["10.0.0.1", "127.0.0.1"]), owned(&["10.0.0.1"]));
        assert_eq!(hosts("pg1,pg2", "10.0.0.1"), expected);
        let expected = (owned(&["[fd00::1]", "127.0.0.1"]), owned(&["[fd00::1]"]));
        assert_eq!(hosts("pg1,pg2", "fd00::1"), expected);
        let expected = (owned(&["127.0.0.2"]), owned(&["127.0.0.2"]));
        assert_eq!(hosts("pg1=127.0.0.2,pg2", "0.0.0.0"), expected);
        assert_eq!(hosts("pg1,pg2", "0.0.0.0").0, [everywhere()]);
    }

    #[test]
    fn whoever_is_not_listed_cannot_start() {
        assert!(matches!(
            options("pg1,pg2", "pg9").plan(),
            Err(EmbeddedError::Absent { .. })
        ));
    }
}
