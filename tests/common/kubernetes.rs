//! Real API servers for tests: kube-apiserver and an etcd of its own, TLS, tokens and RBAC, no nodes. Pods are objects
//! that the tests make. Killed when dropped, and with the thread that started it.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use http::{Method, Request};
use http_body_util::BodyExt as _;
use kube::{
    Client,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::etcd;

/// May do everything.
pub(crate) const ADMIN: &str = "admin-token";
/// User `member`, who may do what a test allows.
pub(crate) const MEMBER: &str = "member-token";

pub(crate) struct Server {
    child: Child,
    etcd: etcd::Server,
    dir: TempDir,
    port: u16,
    admin: Client,
}

fn program() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.cache/kubernetes-1.20.2");
    let program = folder.join("kube-apiserver");
    assert!(
        program.exists(),
        "{} is missing: run tests/kubernetes/build",
        program.display()
    );
    program
}

/// An address of this host that is not its loopback: Endpoints must not have that.
pub(crate) fn host_address() -> String {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    match socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr()) {
        Ok(address) => address.ip().to_string(),
        Err(_) => "127.0.0.1".to_owned(),
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn openssl(dir: &Path, args: &str) {
    let output = Command::new("openssl")
        .args(args.split(' '))
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "openssl {args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn files(dir: &Path) {
    let names = format!(
        "subjectAltName=IP:127.0.0.1,IP:{},DNS:localhost,DNS:kubernetes.default.svc\nbasicConstraints=CA:FALSE\n",
        host_address()
    );
    std::fs::write(dir.join("ext"), names).unwrap();
    openssl(
        dir,
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca",
    );
    openssl(
        dir,
        "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=server",
    );
    openssl(
        dir,
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile ext",
    );
    openssl(dir, "genrsa -out sa.key 2048");
    let tokens = format!("{ADMIN},admin,1,\"system:masters\"\n{MEMBER},member,2\n");
    std::fs::write(dir.join("tokens.csv"), tokens).unwrap();
}

impl Server {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        files(dir.path());
        // Members of a cluster run as another user and read the kubeconfig.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let etcd = etcd::Server::start();
        let port = free_port();
        let child = spawn(dir.path(), &etcd.endpoint(), port);
        let kubeconfig = write_kubeconfig(dir.path(), "admin", port, &format!("token: {ADMIN}"));
        let admin = client(&kubeconfig).await;
        let mut server = Self {
            child,
            etcd,
            dir,
            port,
            admin,
        };
        server.until_ready().await;
        server
    }

    async fn until_ready(&mut self) {
        let started = Instant::now();
        loop {
            // The namespace is made by a controller of the server's after it says it is ready.
            let ready = async {
                let path = "/api/v1/namespaces/default";
                let (ready, _) = try_request(&self.admin, Method::GET, "/readyz", None).await?;
                let (there, _) = try_request(&self.admin, Method::GET, path, None).await?;
                Some(ready == 200 && there == 200)
            };
            if tokio::time::timeout(Duration::from_secs(5), ready)
                .await
                .ok()
                .flatten()
                == Some(true)
            {
                return;
            }
            assert!(
                self.child.try_wait().unwrap().is_none(),
                "kube-apiserver ended: {}",
                self.log()
            );
            assert!(
                started.elapsed() < Duration::from_secs(90),
                "kube-apiserver does not start: {}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The last lines of its log.
    pub(crate) fn log(&self) -> String {
        let text = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// A kubeconfig with this user's credentials, as YAML (`token: x`, `tokenFile: /x`).
    pub(crate) fn kubeconfig(&self, name: &str, user: &str) -> PathBuf {
        write_kubeconfig(self.dir.path(), name, self.port, user)
    }

    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        self.dir.path().join("admin.yaml")
    }

    /// Status and answer.
    pub(crate) async fn request(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        try_request(&self.admin, method, path, body)
            .await
            .expect("the API server answers")
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, object) = self.request(Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {object}");
        object
    }

    pub(crate) async fn create(&self, path: &str, object: Value) {
        let (status, answer) = self.request(Method::POST, path, Some(object)).await;
        assert!(status < 300 || status == 409, "{path}: {answer}");
    }

    pub(crate) async fn patch(&self, path: &str, patch: Value) -> Value {
        let (status, answer) = self.request(Method::PATCH, path, Some(patch)).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    pub(crate) async fn namespace(&self, name: &str) {
        self.create("/api/v1/namespaces", json!({"metadata": {"name": name}}))
            .await;
    }

    /// Pods that nobody runs, with the labels of the cluster.
    pub(crate) async fn pods(&self, namespace: &str, names: &[&str], labels: &Value) {
        for name in names {
            let pod = json!({
                "metadata": {"name": name, "labels": labels},
                "spec": {"containers": [{"name": "howdah", "image": "howdah"}]},
            });
            self.create(&format!("/api/v1/namespaces/{namespace}/pods"), pod)
                .await;
        }
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

    /// Starts it again after [`Server::kill`], with the same data.
    pub(crate) async fn start_again(&mut self) {
        self.child = spawn(self.dir.path(), &self.etcd.endpoint(), self.port);
        self.until_ready().await;
    }

    /// Removes all data of the killed server.
    pub(crate) fn wipe(&mut self) {
        self.etcd.kill();
        self.etcd.wipe();
        self.etcd.start_again();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path, etcd: &str, port: u16) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    let file = |flag: &str, name: &str| format!("--{flag}={}", dir.join(name).display());
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(program())
        .arg(format!("--etcd-servers=http://{etcd}"))
        .arg(format!("--secure-port={port}"))
        .arg("--bind-address=0.0.0.0")
        .arg(format!("--advertise-address={}", host_address()))
        .args([
            file("tls-cert-file", "server.crt"),
            file("tls-private-key-file", "server.key"),
            file("service-account-key-file", "sa.key"),
            file("service-account-signing-key-file", "sa.key"),
            file("token-auth-file", "tokens.csv"),
            file("cert-dir", "certs"),
        ])
        .args([
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
            "--profiling=false",
        ])
        .stdout(Stdio::from(log.try_clone().unwrap()))
        .stderr(Stdio::from(log))
        .spawn()
        .unwrap()
}

fn write_kubeconfig(dir: &Path, name: &str, port: u16, user: &str) -> PathBuf {
    let path = dir.join(format!("{name}.yaml"));
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters:\n- name: test\n  cluster:\n    server: https://127.0.0.1:{port}\n    certificate-authority: {}\n\
         users:\n- name: test\n  user:\n    {user}\n\
         contexts:\n- name: test\n  context:\n    cluster: test\n    user: test\n",
        dir.join("ca.crt").display()
    );
    std::fs::write(&path, text).unwrap();
    path
}

async fn client(kubeconfig: &Path) -> Client {
    let file = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

async fn try_request(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Option<(u16, Value)> {
    let kind = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    let body = body.map_or_else(Vec::new, |body| body.to_string().into_bytes());
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind)
        .body(Body::from(body))
        .unwrap();
    let response = client.send(request).await.ok()?;
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.ok()?.to_bytes();
    Some((status, serde_json::from_slice(&bytes).unwrap_or_default()))
}
