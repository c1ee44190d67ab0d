//! Real Consul servers for tests: one server that leads by itself, free loopback ports, a directory of its own, killed
//! when dropped, and with the thread that started it.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::etcd::free_port;

/// Token of the management, where ACLs are on.
pub(crate) const MASTER: &str = "4d2c6b0e-0000-4000-8000-000000000001";

/// One agent of Consul, a server or a client.
pub(crate) struct Server {
    child: Child,
    dir: TempDir,
    pub(crate) port: u16,
    serf_port: u16,
    /// Speaks TLS, so that the helpers here cannot talk to it.
    tls: bool,
}

fn program() -> PathBuf {
    let cached = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.cache/consul/consul");
    if cached.exists() { cached } else { "consul".into() }
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with(json!({}))
    }

    /// A server with further settings of Consul's configuration. A certificate among them switches its port to TLS.
    pub(crate) fn with(more: Value) -> Self {
        let mut settings = json!({
            "server": true, "bootstrap": true, "session_ttl_min": "500ms",
            "performance": {"raft_multiplier": 1},
        });
        merge(&mut settings, &more);
        Self::launch(&settings)
    }

    /// An agent without data that asks this server.
    pub(crate) fn client_agent(&self) -> Self {
        let join = format!("127.0.0.1:{}", self.serf_port);
        Self::launch(
            &json!({"server": false, "retry_join": [join], "retry_interval": "200ms",
            "performance": {"leave_drain_time": "1ms"}}),
        )
    }

    fn launch(settings: &Value) -> Self {
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let [port, rpc, serf_port, wan] = std::array::from_fn(|_| free_port());
            let tls = settings.get("cert_file").is_some();
            let (http, https) = if tls {
                (-1, i32::from(port))
            } else {
                (i32::from(port), -1)
            };
            let mut all = json!({
                "node_name": format!("node-{port}"), "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1",
                "disable_update_check": true, "disable_host_node_id": true, "log_level": "info",
                "connect": {"enabled": false}, "leave_on_terminate": true,
                "ports": {"http": http, "https": https, "dns": -1, "grpc": -1, "server": rpc, "serf_lan": serf_port,
                    "serf_wan": wan},
            });
            merge(&mut all, settings);
            std::fs::write(dir.path().join("config.json"), all.to_string()).unwrap();
            let mut server = Self {
                child: spawn(dir.path()),
                dir,
                port,
                serf_port,
                tls,
            };
            if server.leads() {
                return server;
            }
        }
        panic!("consul does not start");
    }

    /// Whether it answers and knows who leads. The servers' own leader has been found then, and accepts writes.
    fn leads(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline && self.child.try_wait().unwrap().is_none() {
            let up = if self.tls {
                TcpStream::connect(("127.0.0.1", self.port)).is_ok()
            } else {
                plain(self.port, "GET /v1/status/leader").is_some_and(|text| text.contains(":"))
            };
            if up {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// One exchange: status and body. With the management's token, which means nothing where ACLs are off.
    pub(crate) async fn call(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port))
            .await
            .unwrap();
        let request = format!(
            "{method} /v1{path} HTTP/1.0\r\nX-Consul-Token: {MASTER}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let text = String::from_utf8_lossy(&answer);
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let value = serde_json::from_str(body).unwrap_or_else(|_| Value::from(body));
        (status, value)
    }

    /// The same, which has to succeed.
    pub(crate) async fn must(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, value) = self.call(method, path, body).await;
        assert_eq!(status, 200, "{method} {path}: {value}");
        value
    }

    /// Ends the session whose UUID begins with this number.
    pub(crate) async fn end_session(&self, lease: i64) {
        let all = self.must("GET", "/session/list", "").await;
        let mut ids = all
            .as_array()
            .unwrap()
            .iter()
            .map(|session| session["ID"].as_str().unwrap());
        let id = ids
            .find(|id| id.replace('-', "").starts_with(&format!("{lease:016x}")))
            .unwrap_or_else(|| panic!("no session {lease:x} in {all}"));
        self.must("PUT", &format!("/session/destroy/{id}"), "").await;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn wait(&mut self) {
        self.child.wait().unwrap();
    }

    /// Starts it again after [`Server::kill`], on the same ports with the same data.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(self.dir.path());
        assert!(self.leads(), "consul does not start again: {}", self.log());
    }

    /// Removes all data of the killed server.
    pub(crate) fn wipe(&self) {
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().unwrap() {
        into[key] = value.clone();
    }
}

/// A blocking exchange, for the time before there is anything to await.
fn plain(port: u16, request: &str) -> Option<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    write!(stream, "{request} HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| body.to_owned())
}

fn spawn(dir: &Path) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(program())
        .args(["agent", "-config-file"])
        .arg(dir.join("config.json"))
        .arg("-data-dir")
        .arg(dir.join("data"))
        .stdout(Stdio::from(log.try_clone().unwrap()))
        .stderr(Stdio::from(log))
        .spawn()
        .unwrap()
}
