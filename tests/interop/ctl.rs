//! Running `patronictl`, and the three Howdah members it is pointed at.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;

use crate::{
    SOON,
    etcd::Server as Etcd,
    node::{Node, PASSWORD, wait_for},
    patroni::program,
    seat::Seat,
};

/// What a command left.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// `patronictl` with a configuration file as its users write it.
pub struct Ctl {
    file: PathBuf,
}

impl Ctl {
    pub fn new(base: &TempDir, etcd: &str) -> Self {
        let file = base.path().join("patronictl.yml");
        let settings = json!({"scope": "demo", "etcd3": {"hosts": [etcd]}});
        fs::write(&file, settings.to_string()).expect("write patronictl.yml");
        Self { file }
    }

    /// Runs it with `answers` on its standard input.
    pub async fn answering(&self, arguments: &[&str], answers: &str) -> Done {
        let mut child = tokio::process::Command::new(program("patronictl"))
            .arg("-c")
            .arg(&self.file)
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .env("HOME", self.file.parent().expect("a folder"))
            .env("LANG", "C.UTF-8")
            .env("PGPASSWORD", PASSWORD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("start patronictl");
        let mut stdin = child.stdin.take().expect("piped");
        // Who asks nothing has closed it.
        let _closed = stdin.write_all(answers.as_bytes()).await;
        drop(stdin);
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output())
            .await
            .unwrap_or_else(|_| panic!("patronictl {arguments:?} takes longer than a minute"))
            .expect("wait for patronictl");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Done {
            code: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    pub async fn run(&self, arguments: &[&str]) -> Done {
        self.answering(arguments, "").await
    }

    /// Output of a command that succeeds and warns of nothing.
    pub async fn ok(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments).await;
        assert_eq!(
            (done.code, done.err.as_str()),
            (0, ""),
            "patronictl {arguments:?}: {}",
            done.out
        );
        done.out
    }

    /// The message of a command that says `Error: …` and exits with 1.
    pub async fn error(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments).await;
        let message = done.err.trim_end().strip_prefix("Error: ").map(str::to_owned);
        assert_eq!(done.code, 1, "patronictl {arguments:?}: {done:?}");
        message.unwrap_or_else(|| panic!("patronictl {arguments:?}: {done:?}"))
    }

    /// Output as JSON.
    pub async fn json(&self, arguments: &[&str]) -> Value {
        let out = self.ok(arguments).await;
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    /// The rows of `list`.
    pub async fn list(&self) -> Vec<Value> {
        match self.json(&["list", "demo", "-f", "json"]).await {
            Value::Array(rows) => rows,
            other => panic!("{other}"),
        }
    }
}

/// Three Howdah members. Fields drop in order: members before the store, the directory last.
pub struct Three {
    pub nodes: Vec<Node>,
    _etcd: Etcd,
    pub ctl: Ctl,
    base: TempDir,
}

impl Three {
    /// All running, one leads, the others stream.
    pub async fn start() -> Self {
        let base = tempfile::Builder::new()
            .prefix("howdah-")
            .tempdir()
            .expect("a directory");
        fs::set_permissions(base.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
        let etcd = Etcd::start();
        let mut nodes: Vec<Node> = ["pg1", "pg2", "pg3"]
            .iter()
            .map(|name| Node::new(base.path(), name, "demo", &[etcd.endpoint()]))
            .collect();
        for node in &mut nodes {
            node.start();
        }
        let three = Self {
            nodes,
            ctl: Ctl::new(&base, &etcd.endpoint()),
            _etcd: etcd,
            base,
        };
        three.healthy().await;
        three
    }

    /// For files of the test's own.
    pub fn folder(&self) -> &Path {
        self.base.path()
    }

    /// Which of the members this is.
    pub fn index(&self, seat: &Seat) -> usize {
        let found = self.nodes.iter().position(|node| node.name == seat.name);
        found.expect("one of the three")
    }

    pub fn seats(&self) -> Vec<Seat> {
        self.nodes.iter().map(Seat::from).collect()
    }

    /// Waits until one leads and the others stream; the leader first.
    pub async fn healthy(&self) -> Vec<Seat> {
        let seats = self.seats();
        wait_for("a leader and two streaming replicas", SOON, async || {
            let (_, view) = seats[0].get("/cluster").await?;
            let has = |name: &str, key: &str, value: &str| {
                view["members"]
                    .as_array()
                    .is_some_and(|all| all.iter().any(|m| m["name"] == name && m[key] == value))
            };
            let leads =
                |seat: &&Seat| has(&seat.name, "role", "leader") && has(&seat.name, "state", "running");
            let streams = |seat: &&Seat| has(&seat.name, "state", "streaming");
            let leader = seats.iter().find(leads);
            let mut found: Vec<Seat> = leader.into_iter().cloned().collect();
            found.extend(seats.iter().filter(streams).cloned());
            if leader.is_some() && found.len() == 3 {
                Ok(found)
            } else {
                Err(view.to_string())
            }
        })
        .await
    }
}
