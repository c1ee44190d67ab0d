//! Members in containers: one, or three on one etcd or on their own etcds, with HAProxy in front.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    task::JoinHandle,
};

use crate::{
    SOON,
    docker::{Container, Done, HAPROXY, IMAGE, Network, Volume, docker_ok},
    node::{PASSWORD, free_port, http, wait_for},
    witness::{Ack, Witness},
};

/// Of every cluster here that does not ask for another: short, so that the ring is.
pub(crate) const TTL: Duration = Duration::from_secs(5);

/// One container of the image with its ports on loopback.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) container: Container,
    pub(crate) pg_port: u16,
    pub(crate) api_port: u16,
}

impl Member {
    /// `docker run -e POSTGRES_PASSWORD=… howdah` and the options given.
    pub(crate) async fn alone(options: &[&str]) -> Self {
        Self::prepare("pg", options, true).await
    }

    async fn prepare(name: &str, options: &[&str], run: bool) -> Self {
        let (pg_port, api_port) = (free_port(), free_port());
        let password = format!("POSTGRES_PASSWORD={PASSWORD}");
        let (pg, api) = (
            format!("127.0.0.1:{pg_port}:5432"),
            format!("127.0.0.1:{api_port}:8008"),
        );
        let own = ["--env", &password, "--publish", &pg, "--publish", &api];
        let all = [&own[..], options].concat();
        let container = if run {
            Container::run(name, &all, &[IMAGE]).await
        } else {
            Container::create(name, &all, &[IMAGE]).await
        };
        Self {
            name: name.to_owned(),
            container,
            pg_port,
            api_port,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<(u16, Value), String> {
        http(self.api_port, "GET", path, None).await
    }

    pub(crate) async fn request(
        &self,
        method: &str,
        path: &str,
        body: &Value,
    ) -> Result<(u16, Value), String> {
        http(self.api_port, method, path, Some(body.to_string())).await
    }

    /// The same as [`Member::alone`] without a process, so that files can be put into it first.
    pub(crate) async fn alone_not_started(options: &[&str]) -> Self {
        Self::prepare("pg", options, false).await
    }

    pub(crate) async fn wait_primary(&self, limit: Duration) {
        wait_for(
            &format!("{} to be primary", self.name),
            limit,
            async || match self.get("/primary").await? {
                (200, status) if status["state"] == "running" => Ok(()),
                (code, status) => Err(format!("{code} {status}")),
            },
        )
        .await;
    }

    pub(crate) async fn wait_streaming(&self, limit: Duration) {
        wait_for(&format!("{} to stream", self.name), limit, async || {
            match self.get("/replica").await? {
                (200, status) if status["replication_state"] == "streaming" => Ok(()),
                (code, status) => Err(format!("{code} {status}")),
            }
        })
        .await;
    }

    pub(crate) async fn connect(&self) -> Result<tokio_postgres::Client, String> {
        connect(self.pg_port).await
    }

    /// The first column of the first row.
    pub(crate) async fn sql(&self, sql: &str) -> Result<String, String> {
        let client = self.connect().await?;
        let answer = client
            .simple_query(sql)
            .await
            .map_err(|error| format!("{error:?}"))?;
        let first = answer.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        });
        Ok(first.unwrap_or_default())
    }

    /// Until `sql` gives `expected`.
    pub(crate) async fn wait_sql(&self, sql: &str, expected: &str) {
        wait_for(&format!("{}: {sql}", self.name), SOON, async || {
            let value = self.sql(sql).await?;
            if value == expected { Ok(()) } else { Err(value) }
        })
        .await;
    }

    pub(crate) async fn wait_exit(&self, limit: Duration) -> i32 {
        wait_for(&format!("{} to exit", self.name), limit, async || {
            self.container.exit_code().await
        })
        .await
    }

    pub(crate) async fn wait_log(&self, words: &str) {
        wait_for(
            &format!("'{words}' in the log of {}", self.name),
            SOON,
            async || {
                let log = self.container.log().await;
                if log.contains(words) {
                    Ok(())
                } else {
                    Err("not yet".to_owned())
                }
            },
        )
        .await;
    }

    pub(crate) async fn cli(&self, arguments: &[&str]) -> Done {
        self.container.exec(&[&["howdah"], arguments].concat()).await
    }
}

async fn connect(port: u16) -> Result<tokio_postgres::Client, String> {
    let connect = tokio_postgres::Config::new()
        .host("127.0.0.1")
        .port(port)
        .user("postgres")
        .password(PASSWORD)
        .dbname("postgres")
        .connect_timeout(Duration::from_secs(2))
        .connect(tokio_postgres::NoTls)
        .await;
    let (client, connection) = connect.map_err(|error| format!("{error:?}"))?;
    tokio::spawn(connection);
    Ok(client)
}

/// A witness that has written at least once.
pub(crate) async fn witness(port: u16, first: i64) -> Witness {
    let witness = Witness::start(port, first);
    wait_for("the witness to write", SOON, async || {
        witness.last().ok_or_else(|| "nothing yet".to_owned())
    })
    .await;
    witness
}

/// Where a cluster keeps its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    /// One etcd in a container of the same image.
    Etcd,
    /// Each member's own.
    Embedded,
}

/// Three members. Fields drop in order: containers before volumes and network.
pub(crate) struct Cluster {
    pub(crate) members: Vec<Member>,
    /// Port of HAProxy's read-write entrance.
    pub(crate) proxy_port: u16,
    _proxy: Option<Container>,
    _etcd: Option<Container>,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) network: Network,
    store: Store,
    ttl: Duration,
}

impl Cluster {
    /// All running, one leader, two streaming.
    pub(crate) async fn start(store: Store) -> Self {
        Self::start_with(store, TTL).await
    }

    /// The same with another ttl, which is also how long a cold start waits for newer data.
    pub(crate) async fn start_with(store: Store, ttl: Duration) -> Self {
        let cluster = Self::prepare(store, ttl).await;
        for member in &cluster.members {
            member.container.start().await;
        }
        cluster.healthy().await;
        cluster
    }

    /// Containers without processes (the store runs).
    async fn prepare(store: Store, ttl: Duration) -> Self {
        let network = Network::create().await;
        let etcd = match store {
            Store::Etcd => Some(etcd(&network).await),
            Store::Embedded => None,
        };
        let mut cluster = Self {
            members: Vec::new(),
            proxy_port: 0,
            _proxy: None,
            _etcd: etcd,
            volumes: Vec::new(),
            network,
            store,
            ttl,
        };
        for name in ["pg1", "pg2", "pg3"] {
            let volume = Volume::create().await;
            let member = cluster.member(name, &volume, "demo").await;
            cluster.volumes.push(volume);
            cluster.members.push(member);
        }
        cluster
    }

    /// A container for a member on this volume, set up as `compose/` does it. Not started.
    pub(crate) async fn member(&self, name: &str, volume: &Volume, scope: &str) -> Member {
        let store = match self.store {
            Store::Etcd => "HOWDAH_ETCD3_HOSTS=etcd1:2379",
            Store::Embedded => "HOWDAH_EMBEDDED_PEERS=pg1,pg2,pg3",
        };
        let environment = [
            format!("HOWDAH_SCOPE={scope}"),
            format!("HOWDAH_NAME={name}"),
            format!("HOWDAH_POSTGRESQL_CONNECT_ADDRESS={name}:5432"),
            format!("HOWDAH_RESTAPI_CONNECT_ADDRESS={name}:8008"),
            format!("HOWDAH_TTL={}", self.ttl.as_secs()),
            "HOWDAH_LOOP_WAIT=1".to_owned(),
            "HOWDAH_RETRY_TIMEOUT=2".to_owned(),
            store.to_owned(),
        ];
        let mount = format!("{}:/var/lib/postgresql", volume.name);
        let mut options = vec![
            "--network",
            &self.network.name,
            "--network-alias",
            name,
            "--hostname",
            name,
        ];
        options.extend(["--volume", &mount, "--read-only", "--cap-drop", "ALL"]);
        options.extend(["--tmpfs", "/run/postgresql:uid=999,gid=0,mode=0775"]);
        options.extend([
            "--tmpfs",
            "/run/howdah:uid=999,gid=0,mode=0770",
            "--tmpfs",
            "/tmp:mode=1777",
        ]);
        options.extend(environment.iter().flat_map(|pair| ["--env", pair]));
        Member::prepare(name, &options, false).await
    }

    /// HAProxy as `compose/etcd.yml` has it, writable through it when this returns.
    pub(crate) async fn add_proxy(&mut self) {
        self.proxy_port = free_port();
        let publish = format!("127.0.0.1:{}:5000", self.proxy_port);
        let options = ["--network", &self.network.name, "--publish", &publish];
        self._proxy = Some(Container::run("haproxy", &options, &[HAPROXY]).await);
        let port = self.proxy_port;
        wait_for("a way through HAProxy", SOON, async || {
            connect(port).await.map(drop)
        })
        .await;
    }

    /// Index of the leader once the others stream from it.
    pub(crate) async fn healthy(&self) -> usize {
        let leader = self.leader_but(None, SOON).await;
        for (index, member) in self.members.iter().enumerate() {
            if index != leader {
                member.wait_streaming(SOON).await;
            }
        }
        leader
    }

    /// Index of a member that is primary and is not `old`.
    pub(crate) async fn leader_but(&self, old: Option<usize>, limit: Duration) -> usize {
        wait_for("a leader", limit, async || {
            let mut seen = Vec::new();
            for (index, member) in self.members.iter().enumerate() {
                if Some(index) == old {
                    continue;
                }
                match member.get("/primary").await {
                    Ok((200, status)) if status["state"] == "running" => return Ok(index),
                    Ok((code, status)) => {
                        seen.push(format!(
                            "{}: {code} {}/{}",
                            member.name, status["role"], status["state"]
                        ));
                    }
                    Err(error) => seen.push(format!("{}: {error}", member.name)),
                }
            }
            Err(seen.join("; "))
        })
        .await
    }

    pub(crate) fn others(&self, leader: usize) -> Vec<usize> {
        (0..self.members.len()).filter(|index| *index != leader).collect()
    }

    /// Takes the member's network away, whole.
    pub(crate) async fn cut_off(&self, index: usize) {
        docker_ok(&[
            "network",
            "disconnect",
            &self.network.name,
            &self.members[index].container.name,
        ])
        .await;
    }

    pub(crate) async fn reconnect(&self, index: usize) {
        let member = &self.members[index];
        let (network, container) = (&self.network.name, &member.container.name);
        docker_ok(&["network", "connect", "--alias", &member.name, network, container]).await;
    }
}

/// One etcd from the image, found as `etcd1`.
async fn etcd(network: &Network) -> Container {
    let options = [
        "--network",
        &network.name,
        "--network-alias",
        "etcd1",
        "--hostname",
        "etcd1",
    ];
    let command = [
        "--name=etcd1",
        "--data-dir=/var/lib/postgresql/etcd",
        "--listen-client-urls=http://0.0.0.0:2379",
        "--advertise-client-urls=http://etcd1:2379",
        "--log-level=warn",
    ];
    let options = [&options[..], &["--entrypoint", "etcd"]].concat();
    Container::run("etcd1", &options, &[&[IMAGE][..], &command].concat()).await
}

/// A client inside the member's container: it needs no network, so it goes on when the member is cut off.
pub(crate) struct Insider {
    acks: Arc<Mutex<Vec<Ack>>>,
    task: JoinHandle<()>,
}

impl Insider {
    /// One session that commits in a loop until it is thrown out; the table `witness` must exist.
    pub(crate) async fn start(member: &Member, first: i64) -> Self {
        let acks = Arc::new(Mutex::new(Vec::new()));
        let password = format!("PGPASSWORD={PASSWORD}");
        let psql = ["psql", "-h", "127.0.0.1", "-U", "postgres", "-Atq"];
        let mut child = tokio::process::Command::new("docker")
            .args([
                "exec",
                "--interactive",
                "--env",
                &password,
                &member.container.name,
            ])
            .args(psql)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("start docker exec");
        let mut input = child.stdin.take().expect("piped");
        let mut output = BufReader::new(child.stdout.take().expect("piped")).lines();
        let list = acks.clone();
        let task = tokio::spawn(async move {
            let _child = child;
            for id in first.. {
                let line = format!("INSERT INTO witness VALUES ({id}) RETURNING id;\n");
                if input.write_all(line.as_bytes()).await.is_err() {
                    return;
                }
                match output.next_line().await {
                    Ok(Some(answer)) if answer == id.to_string() => {
                        list.lock().expect("not poisoned").push(Ack {
                            id,
                            at: Instant::now(),
                        });
                    }
                    _ => return,
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        let insider = Self { acks, task };
        wait_for("the client inside to write", SOON, async || {
            insider.last().ok_or_else(|| "nothing yet".to_owned())
        })
        .await;
        insider
    }

    pub(crate) fn last(&self) -> Option<Ack> {
        self.acks.lock().expect("not poisoned").last().copied()
    }

    /// Whether its session has ended.
    pub(crate) fn thrown_out(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for Insider {
    fn drop(&mut self) {
        self.task.abort();
    }
}
