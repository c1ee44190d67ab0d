//! Three members, each in a network of its own, and their store.

use std::{
    collections::HashSet,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    etcd::Server,
    net::{HUB, Place},
    node::Node,
    witness::{Book, Witness},
};

pub const TTL: Duration = Duration::from_secs(5);
/// After the last fault everything is as before within this.
const HEALED: Duration = Duration::from_secs(60);

/// How commits are replicated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Async,
    Sync,
    Strict,
    Quorum,
}

pub const MODES: [Mode; 4] = [Mode::Async, Mode::Sync, Mode::Strict, Mode::Quorum];

impl Mode {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Async => "async",
            Self::Sync => "sync",
            Self::Strict => "strict",
            Self::Quorum => "quorum",
        }
    }

    fn document(self) -> Value {
        let (mode, strict) = match self {
            Self::Async => (json!(false), false),
            Self::Sync => (json!(true), false),
            Self::Strict => (json!(true), true),
            Self::Quorum => (json!("quorum"), false),
        };
        json!({"synchronous_mode": mode, "synchronous_mode_strict": strict, "failsafe_mode": true})
    }
}

/// Fields drop in order: clients and members before the store, the directory last.
pub struct Cluster {
    pub book: Arc<Book>,
    _witnesses: Vec<Witness>,
    pub nodes: Vec<Node>,
    pub places: Vec<Place>,
    /// When a frozen member went on.
    pub thawed: Option<Instant>,
    pub etcd: Server,
    pub base: TempDir,
}

impl Cluster {
    pub async fn start() -> Result<Self, String> {
        let base = tempfile::Builder::new().prefix("howdah-chaos-").tempdir();
        let base = base.map_err(|error| error.to_string())?;
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(base.path(), open).map_err(|error| error.to_string())?;
        let etcd = Server::at(HUB, &[]);
        let (mut nodes, mut places, mut witnesses) = (Vec::new(), Vec::new(), Vec::new());
        let book = Arc::new(Book::default());
        for number in 1..=3 {
            let place = Place::new(number)?;
            let name = format!("pg{number}");
            let mut node = Node::at(&place.address, base.path(), &name, "chaos", &[etcd.endpoint()]);
            let sockets = node.dir.join("sockets");
            fs::create_dir_all(&sockets).map_err(|error| error.to_string())?;
            crate::node::own(&sockets);
            let sockets = sockets.display().to_string();
            node.set(
                "HOWDAH_POSTGRESQL_PARAMETERS",
                &format!("{{unix_socket_directories: {sockets}}}"),
            );
            node.wrapper = place.wrapper();
            node.start();
            witnesses.push(Witness::start(&node, number - 1, &sockets, Arc::clone(&book)));
            nodes.push(node);
            places.push(place);
        }
        let cluster = Self {
            book,
            _witnesses: witnesses,
            nodes,
            places,
            thawed: None,
            etcd,
            base,
        };
        let leader = cluster.healthy().await?;
        // Failsafe is on by default; here it is said, so that nothing else is measured.
        let document = Mode::Async.document();
        let (code, answer) = cluster.nodes[leader]
            .request("PATCH", "/config", document)
            .await?;
        if code != 200 {
            return Err(format!("PATCH /config: {code} {answer}"));
        }
        cluster.nodes[leader]
            .sql("CREATE TABLE witness (id bigint)")
            .await?;
        Ok(cluster)
    }

    /// Changes the mode, and waits until a commit is promised what the mode promises.
    pub async fn turn_to(&self, mode: Mode) -> Result<(), String> {
        let leader = self.healthy().await?;
        let node = &self.nodes[leader];
        let (code, answer) = node.request("PATCH", "/config", mode.document()).await?;
        if code != 200 {
            return Err(format!("PATCH /config: {code} {answer}"));
        }
        self.promised(mode).await
    }

    /// Standbys are in force as the mode asks.
    async fn promised(&self, mode: Mode) -> Result<(), String> {
        within(HEALED, async || {
            let leader = self.leader_now(None).await?;
            let node = &self.nodes[leader];
            let names = node.sql("SHOW synchronous_standby_names").await?;
            let states = "SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')";
            let standbys: usize = node.sql(states).await?.parse().unwrap_or_default();
            let (_, view) = node.get("/cluster").await?;
            let roles = view["members"].as_array().into_iter().flatten();
            let chosen = roles
                .filter(|m| matches!(m["role"].as_str(), Some("sync_standby" | "quorum_standby")))
                .count();
            let ok = match mode {
                Mode::Async => names.is_empty() && chosen == 0,
                Mode::Sync | Mode::Strict => standbys == 1 && chosen == 1,
                Mode::Quorum => standbys == 2 && chosen == 2,
            };
            ok.then_some(()).ok_or_else(|| {
                format!("synchronous_standby_names '{names}', {standbys} in force, {chosen} in /sync")
            })
        })
        .await
        .map_err(|state| format!("the cluster does not get to mode {}: {state}", mode.name()))
    }

    /// One leads, all others stream, the store knows it, and the mode's promise is in force. The leader's index.
    pub async fn whole(&self, mode: Mode) -> Result<usize, String> {
        self.healthy().await?;
        self.promised(mode).await?;
        self.healthy().await
    }

    pub async fn healthy(&self) -> Result<usize, String> {
        within(HEALED, async || {
            let leader = self.leader_now(None).await?;
            for (index, node) in self.nodes.iter().enumerate().filter(|(i, _)| *i != leader) {
                let (code, status) = node.get("/replica").await?;
                if code != 200 || status["replication_state"] != "streaming" {
                    return Err(format!("{}: {code} {status}", self.nodes[index].name));
                }
            }
            Ok(leader)
        })
        .await
        .map_err(|state| format!("the cluster does not heal: {state}"))
    }

    pub async fn other_leader(&self, old: usize) -> Result<usize, String> {
        within(HEALED, async || self.leader_now(Some(old)).await)
            .await
            .map_err(|state| format!("nobody takes over: {state}"))
    }

    /// Anybody acknowledges a commit that was begun after now.
    pub async fn writes_again(&self) -> Result<(), String> {
        let before = self.book.len();
        within(HEALED, async || {
            let now = self.book.len();
            // Each client may have had one commit under way.
            (now > before + self.nodes.len())
                .then_some(())
                .ok_or_else(|| "no commits".to_owned())
        })
        .await
    }

    /// Starts a member that has ended meanwhile; it may still be about to.
    pub fn revive(&mut self, index: usize) {
        if self.nodes[index].exited().is_some() {
            self.nodes[index].start();
        }
    }

    async fn leader_now(&self, but: Option<usize>) -> Result<usize, String> {
        let mut seen = Vec::new();
        for (index, node) in self.nodes.iter().enumerate().filter(|(i, _)| Some(*i) != but) {
            match node.get("/primary").await {
                Ok((200, status)) if status["role"] == "primary" && status["state"] == "running" => {
                    return Ok(index);
                }
                Ok((code, status)) => seen.push(format!("{}: {code} {status}", node.name)),
                Err(error) => seen.push(format!("{}: {error}", node.name)),
            }
        }
        Err(seen.join("; "))
    }

    /// Ids from `first` on that the primary has.
    pub async fn ids(&self, leader: usize, first: i64) -> Result<HashSet<i64>, String> {
        let client = self.nodes[leader].connect().await?;
        let rows = client
            .query("SELECT id FROM witness WHERE id >= $1", &[&first])
            .await
            .map_err(|error| error.to_string())?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    pub async fn started(&self, index: usize) -> Result<String, String> {
        self.nodes[index]
            .sql("SELECT pg_postmaster_start_time()::text || ' ' || pg_is_in_recovery()")
            .await
    }
}

async fn within<T>(
    limit: Duration,
    mut condition: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, String> {
    let start = Instant::now();
    loop {
        match condition().await {
            Ok(value) => return Ok(value),
            Err(state) if start.elapsed() > limit => return Err(state),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
