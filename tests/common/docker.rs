//! Containers for tests: uniquely named, published on free ports of loopback, removed when dropped.
//!
//! Everything carries a label with the pid of the test process, so that what a killed run has left is found and
//! removed by the next one, and nothing else ever is.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

/// The image under test; `docker/build` makes it.
pub(crate) const IMAGE: &str = "howdah:latest";
/// The entrance of `compose/etcd.yml`.
pub(crate) const HAPROXY: &str = "howdah-haproxy:latest";

const LABEL: &str = "howdah.test";
/// No docker command here takes longer, except the one that stops a large database, and there is none.
const LIMIT: Duration = Duration::from_secs(90);

/// What a command left.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs a docker command to its end.
pub(crate) async fn docker(arguments: &[&str]) -> Done {
    run("docker", arguments, LIMIT).await
}

/// Runs a docker command that must succeed; its output without the line end.
pub(crate) async fn docker_ok(arguments: &[&str]) -> String {
    let done = docker(arguments).await;
    assert_eq!(
        done.code,
        0,
        "docker {}: {}{}",
        arguments.join(" "),
        done.out,
        done.err
    );
    done.out.trim_end().to_owned()
}

/// Runs a program with a time limit.
pub(crate) async fn run(program: &str, arguments: &[&str], limit: Duration) -> Done {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(limit, command.output())
        .await
        .unwrap_or_else(|_| panic!("{program} {} takes longer than {limit:?}", arguments.join(" ")))
        .expect("start the program");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Done {
        code: output.status.code().unwrap_or(-1),
        out: text(&output.stdout),
        err: text(&output.stderr),
    }
}

/// A name nobody else has.
fn unique(what: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    static SWEEP: Once = Once::new();
    SWEEP.call_once(sweep);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("howdah-test-{}-{number}-{what}", std::process::id())
}

fn label() -> String {
    format!("--label={LABEL}={}", std::process::id())
}

/// For destructors, which cannot wait for a future.
fn quietly(arguments: &[&str]) -> String {
    let output = Command::new("docker")
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

/// Removes what test processes have left that do not live any more.
fn sweep() {
    let filter = format!("label={LABEL}");
    for (list, remove) in [
        (&["ps", "--all"][..], &["rm", "--force", "--volumes"][..]),
        (&["volume", "ls"], &["volume", "rm", "--force"]),
        (&["network", "ls"], &["network", "rm"]),
    ] {
        let format = if list[0] == "ps" {
            "{{.Names}}"
        } else {
            "{{.Name}}"
        };
        let names = quietly(&[list, &["--filter", &filter, "--format", format]].concat());
        for name in names.lines() {
            let owner = name
                .strip_prefix("howdah-test-")
                .and_then(|rest| rest.split('-').next());
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                quietly(&[remove, &[name]].concat());
            }
        }
    }
}

/// A network of its own, in which containers find each other by name.
pub(crate) struct Network {
    pub(crate) name: String,
}

impl Network {
    pub(crate) async fn create() -> Self {
        let name = unique("net");
        docker_ok(&["network", "create", &label(), &name]).await;
        Self { name }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        quietly(&["network", "rm", &self.name]);
    }
}

/// A named volume.
pub(crate) struct Volume {
    pub(crate) name: String,
}

impl Volume {
    pub(crate) async fn create() -> Self {
        let volume = Self { name: unique("data") };
        volume.create_again().await;
        volume
    }

    /// Deletes its content with it; no container may use it.
    pub(crate) async fn recreate(&self) {
        docker_ok(&["volume", "rm", &self.name]).await;
        self.create_again().await;
    }

    async fn create_again(&self) {
        docker_ok(&["volume", "create", &label(), &self.name]).await;
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        quietly(&["volume", "rm", "--force", &self.name]);
    }
}

/// One container. It outlives its process: stop and start as often as you like.
pub(crate) struct Container {
    pub(crate) name: String,
}

impl Container {
    /// Creates and starts it: `options` of `docker run`, then image and command.
    pub(crate) async fn run(what: &str, options: &[&str], image: &[&str]) -> Self {
        let container = Self { name: unique(what) };
        let head = ["run", "--detach", "--name", &container.name, &label()].map(str::to_owned);
        let all: Vec<&str> = head
            .iter()
            .map(String::as_str)
            .chain(options.iter().copied())
            .chain(image.iter().copied())
            .collect();
        docker_ok(&all).await;
        container
    }

    /// Creates it without a process.
    pub(crate) async fn create(what: &str, options: &[&str], image: &[&str]) -> Self {
        let container = Self { name: unique(what) };
        let head = ["create", "--name", &container.name, &label()].map(str::to_owned);
        let all: Vec<&str> = head
            .iter()
            .map(String::as_str)
            .chain(options.iter().copied())
            .chain(image.iter().copied())
            .collect();
        docker_ok(&all).await;
        container
    }

    pub(crate) async fn start(&self) {
        docker_ok(&["start", &self.name]).await;
    }

    /// `docker stop`, with a grace period no test should need.
    pub(crate) async fn stop(&self) {
        docker_ok(&["stop", "--time", "60", &self.name]).await;
    }

    /// A signal to PID 1; KILL when none is named.
    pub(crate) async fn kill(&self, signal: &str) {
        docker_ok(&["kill", "--signal", signal, &self.name]).await;
    }

    pub(crate) async fn inspect(&self, format: &str) -> String {
        docker_ok(&["inspect", "--format", format, &self.name]).await
    }

    pub(crate) async fn running(&self) -> bool {
        self.inspect("{{.State.Running}}").await == "true"
    }

    /// Exit status of PID 1 once it has ended.
    pub(crate) async fn exit_code(&self) -> Result<i32, String> {
        if self.running().await {
            return Err(format!("{} still runs", self.name));
        }
        let code = self.inspect("{{.State.ExitCode}}").await;
        code.parse().map_err(|_| code)
    }

    /// Everything it has written so far.
    pub(crate) async fn log(&self) -> String {
        let done = docker(&["logs", &self.name]).await;
        done.out + &done.err
    }

    pub(crate) async fn exec(&self, command: &[&str]) -> Done {
        docker(&[&["exec", &self.name], command].concat()).await
    }

    /// The output of a command inside that must succeed.
    pub(crate) async fn exec_ok(&self, command: &[&str]) -> String {
        docker_ok(&[&["exec", &self.name], command].concat()).await
    }

    /// Pid inside the container of the first process whose command line contains `words`.
    pub(crate) async fn pid_of(&self, words: &str) -> Result<String, String> {
        let listed = self.exec(&["ps", "-eo", "pid=,args="]).await.out;
        let line = listed
            .lines()
            .find(|line| line.contains(words) && !line.contains("ps -eo"));
        line.and_then(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .ok_or_else(|| format!("no process with '{words}' in:\n{listed}"))
    }

    /// A signal to a process inside, sent by the container's own user.
    pub(crate) async fn signal(&self, pid: &str, signal: &str) {
        self.exec_ok(&["kill", &format!("-{signal}"), pid]).await;
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let output = Command::new("docker")
                .args(["logs", "--tail", "80", &self.name])
                .output();
            if let Ok(output) = output {
                eprintln!(
                    "---- log of {} ----\n{}{}",
                    self.name,
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                );
            }
        }
        quietly(&["rm", "--force", "--volumes", &self.name]);
    }
}
