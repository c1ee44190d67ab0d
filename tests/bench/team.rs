//! Three members of either kind on loopback, with an etcd of their own.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    SOON, etcd,
    node::{Node, PASSWORD, http, wait_for},
    patroni::Patroni,
    report::{Kind, Report},
    seat::{Seat, query},
};

const NAMES: [&str; 3] = ["pg1", "pg2", "pg3"];

/// Seconds.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    pub ttl: u64,
    loop_wait: u64,
    retry_timeout: u64,
}

impl Timing {
    /// What both have unless told otherwise.
    pub const USUAL: Self = Self {
        ttl: 30,
        loop_wait: 10,
        retry_timeout: 10,
    };
    /// Patroni does not let a ttl be shorter than twenty seconds.
    pub const SHORT: Self = Self {
        ttl: 5,
        loop_wait: 1,
        retry_timeout: 2,
    };

    fn dcs(self) -> Value {
        json!({
            "ttl": self.ttl,
            "loop_wait": self.loop_wait,
            "retry_timeout": self.retry_timeout,
            "maximum_lag_on_failover": 1_048_576,
            "postgresql": {"use_pg_rewind": true},
        })
    }
}

enum Member {
    Howdah(Box<Node>),
    Patroni(Box<Patroni>),
}

impl Member {
    fn seat(&self) -> Seat {
        match self {
            Self::Howdah(node) => Seat::from(&**node),
            Self::Patroni(patroni) => Seat::from(&**patroni),
        }
    }

    fn start(&mut self) {
        match self {
            Self::Howdah(node) => node.start(),
            Self::Patroni(patroni) => patroni.start(),
        }
    }
}

/// A cluster. Fields drop in order: members before the store, the directory last.
pub struct Team {
    pub kind: Kind,
    pub timing: Timing,
    members: Vec<Member>,
    etcd: etcd::Server,
    _base: TempDir,
}

impl Team {
    /// All running and streaming; how long that took is reported.
    pub async fn start(kind: Kind, timing: Timing, report: &mut Report) -> Self {
        let base = tempfile::Builder::new().prefix("bench-").tempdir().unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let etcd = etcd::Server::start();
        let members = NAMES.map(|name| match kind {
            Kind::Howdah => {
                let mut node = Node::new(base.path(), name, "demo", &[etcd.endpoint()]);
                node.set("HOWDAH_TTL", &timing.ttl.to_string())
                    .set("HOWDAH_LOOP_WAIT", &timing.loop_wait.to_string())
                    .set("HOWDAH_RETRY_TIMEOUT", &timing.retry_timeout.to_string())
                    .set("HOWDAH_BOOTSTRAP_DCS", &timing.dcs().to_string())
                    .set("HOWDAH_LOG_LEVEL", "INFO");
                Member::Howdah(Box::new(node))
            }
            Kind::Patroni => Member::Patroni(Box::new(Patroni::new(
                base.path(),
                name,
                &etcd.endpoint(),
                &timing.dcs(),
            ))),
        });
        let mut team = Self {
            kind,
            timing,
            members: members.into(),
            etcd,
            _base: base,
        };
        let begun = Instant::now();
        for member in &mut team.members {
            member.start();
        }
        let first = team.becomes_writable().await;
        report.add("first-writable", kind, begun.elapsed().as_secs_f64());
        team.has_replicas(first, 2).await;
        report.add("two-replicas", kind, begun.elapsed().as_secs_f64());
        team.is_well().await;
        team
    }

    pub fn seat(&self, index: usize) -> Seat {
        self.members[index].seat()
    }

    pub fn pg_ports(&self) -> Vec<u16> {
        self.members.iter().map(|member| member.seat().pg_port).collect()
    }

    pub fn members(&self) -> std::ops::Range<usize> {
        0..self.members.len()
    }

    /// Which member takes writes first; the table for them is there then.
    async fn becomes_writable(&self) -> usize {
        wait_for("a member that takes writes", SOON, async || {
            let mut last = String::new();
            for index in self.members() {
                let made = query(
                    self.seat(index).pg_port,
                    "CREATE TABLE IF NOT EXISTS bench (id int)",
                )
                .await;
                match made {
                    Ok(_) => return Ok(index),
                    Err(error) => last = error,
                }
            }
            Err(last)
        })
        .await
    }

    async fn has_replicas(&self, leader: usize, count: usize) {
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        let wanted = count.to_string();
        wait_for("the replicas to stream", SOON, async || {
            let found = query(self.seat(leader).pg_port, sql).await?;
            if found == wanted { Ok(()) } else { Err(found) }
        })
        .await;
    }

    /// Until one leads and the others stream from it; which one.
    pub async fn is_well(&self) -> usize {
        let leader = self.leader_but(None).await;
        self.has_replicas(leader, self.members.len() - 1).await;
        // So that nothing is still being caught up with.
        for index in self.members().filter(|index| *index != leader) {
            self.seat(index).wait_streaming(SOON).await;
        }
        leader
    }

    /// A member that leads, and is not this one.
    pub async fn leader_but(&self, but: Option<usize>) -> usize {
        wait_for("a leader", SOON, async || {
            for index in self.members().filter(|index| Some(*index) != but) {
                if let Ok((200, _)) = self.seat(index).get("/primary").await {
                    return Ok(index);
                }
            }
            Err("nobody leads".to_owned())
        })
        .await
    }

    /// Init and agent, or the daemon; not PostgreSQL.
    pub fn processes(&self, index: usize) -> Vec<i32> {
        match &self.members[index] {
            Member::Howdah(node) => std::iter::once(node.init_pid()).chain(node.agent_pid()).collect(),
            Member::Patroni(patroni) => patroni.daemon_pid().into_iter().collect(),
        }
    }

    pub fn kill_postmaster(&self, index: usize) {
        let pid = match &self.members[index] {
            Member::Howdah(node) => node.postmaster_pid(),
            Member::Patroni(patroni) => patroni.postmaster_pid(),
        };
        kill("KILL", pid.expect("a postmaster"));
    }

    /// Somebody starts it again at once: init, or the bench in the place of systemd.
    pub fn kill_agent(&mut self, index: usize) {
        match &mut self.members[index] {
            Member::Howdah(node) => kill("KILL", node.agent_pid().expect("an agent")),
            Member::Patroni(patroni) => patroni.restart_daemon(),
        }
    }

    pub fn kill_member(&mut self, index: usize) {
        match &mut self.members[index] {
            Member::Howdah(node) => node.kill_node(),
            Member::Patroni(patroni) => patroni.kill_node(),
        }
    }

    pub fn ask_to_stop(&self, index: usize) {
        let daemon = self.processes(index)[0];
        kill("TERM", daemon);
    }

    /// After [`Team::ask_to_stop`].
    pub async fn has_stopped(&mut self, index: usize) {
        match &mut self.members[index] {
            Member::Howdah(node) => drop(node.wait_exit(SOON).await),
            Member::Patroni(patroni) => patroni.wait_end(SOON).await,
        }
    }

    pub fn start_member(&mut self, index: usize) {
        self.members[index].start();
    }

    /// Asks a member, which answers when it is done.
    pub fn ask_for_switchover(
        &self,
        from: usize,
        to: usize,
    ) -> tokio::task::JoinHandle<Result<(u16, Value), String>> {
        let (from, to) = (self.seat(from), self.seat(to));
        let body = json!({"leader": from.name, "candidate": to.name}).to_string();
        tokio::spawn(async move { http(from.api_port, "POST", "/switchover", Some(body)).await })
    }

    /// How many changes etcd has seen.
    pub async fn store_revision(&self) -> i64 {
        let got = self.etcd.client().await.get("none", None).await.unwrap();
        got.header().expect("a header").revision()
    }

    /// When the lease of the leader ends, if it says.
    pub async fn lease_ends(&self, leader: usize) -> Option<Instant> {
        let (_, page) = self.seat(leader).get("/metrics").await.ok()?;
        let now = Instant::now();
        let page = page.as_str()?.to_owned();
        let line = page
            .lines()
            .find(|line| line.starts_with("howdah_last_renewal_seconds{"))?;
        let age: f64 = line.rsplit_once(' ')?.1.parse().ok()?;
        let ttl = Duration::from_secs(self.timing.ttl);
        Some(now - Duration::from_secs_f64(age) + ttl)
    }

    /// A program of PostgreSQL's, asking this member.
    pub fn postgres_program(&self, name: &str, index: usize) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(PathBuf::from(crate::patroni::bin_dir()).join(name));
        command
            .args(["-h", "127.0.0.1", "-U", "postgres", "-p"])
            .arg(self.seat(index).pg_port.to_string())
            .env("PGPASSWORD", PASSWORD)
            .kill_on_drop(true);
        command
    }
}

fn kill(signal: &str, pid: i32) {
    let sent = Command::new("kill")
        .args([&format!("-{signal}"), &pid.to_string()])
        .status();
    assert!(sent.unwrap().success(), "kill -{signal} {pid}");
}
