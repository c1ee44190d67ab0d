//! Real etcd servers for tests: free loopback ports, a directory of their own, killed when dropped.
//!
//! The server also dies with the thread that started it (`setpriv --pdeathsig`), so a killed test run leaks nothing.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// One etcd server, a cluster of its own.
pub(crate) struct Server {
    child: Child,
    dir: TempDir,
    host: String,
    pub(crate) client_port: u16,
    peer_port: u16,
    extra: Vec<String>,
    tls: bool,
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// `extra`: further flags. A certificate among them switches the client port to TLS.
    pub(crate) fn with(extra: &[String]) -> Self {
        Self::at("127.0.0.1", extra)
    }

    /// One that listens elsewhere than on loopback.
    pub(crate) fn at(host: &str, extra: &[String]) -> Self {
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let (client_port, peer_port) = (free_port(), free_port());
            let tls = extra.iter().any(|flag| flag.starts_with("--cert-file"));
            let child = spawn(dir.path(), host, client_port, peer_port, extra, tls);
            let mut server = Self {
                child,
                dir,
                host: host.to_owned(),
                client_port,
                peer_port,
                extra: extra.to_vec(),
                tls,
            };
            if server.listens() {
                return server;
            }
        }
        panic!("etcd does not start");
    }

    fn listens(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && self.child.try_wait().unwrap().is_none() {
            if TcpStream::connect((self.host.as_str(), self.client_port)).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("{}:{}", self.host, self.client_port)
    }

    pub(crate) async fn client(&self) -> etcd_client::Client {
        etcd_client::Client::connect([self.endpoint()], None)
            .await
            .unwrap()
    }

    fn signal(&self, signal: Signal) {
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

    /// Starts it again after [`Server::kill`], on the same ports with the same data.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(
            self.dir.path(),
            &self.host,
            self.client_port,
            self.peer_port,
            &self.extra,
            self.tls,
        );
        assert!(self.listens(), "etcd does not start again");
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

fn spawn(dir: &Path, host: &str, client_port: u16, peer_port: u16, extra: &[String], tls: bool) -> Child {
    let client = format!("{}://{host}:{client_port}", if tls { "https" } else { "http" });
    let peer = format!("http://{host}:{peer_port}");
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "etcd", "--name", "t", "--logger", "zap"])
        .arg("--data-dir")
        .arg(dir.join("data"))
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("t={peer}")])
        .args(["--heartbeat-interval", "20", "--election-timeout", "100"])
        .args(extra)
        .stdout(Stdio::from(log.try_clone().unwrap()))
        .stderr(Stdio::from(log))
        .spawn()
        .unwrap()
}
