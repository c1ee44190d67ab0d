//! Real Patroni daemons, as PyPI has them: a configuration file each, killed with all of their processes when dropped.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    node::{PASSWORD, descendants, free_port, own, wait_for},
    seat::Seat,
};

/// Roles and passwords that are neither program's defaults.
pub const REPLICATION: (&str, &str) = ("standby", "a password of replication's own");
pub const REWIND: (&str, &str) = ("rewinding", "a password of pg_rewind's own");

/// A program of the Patroni that `tests/run` installs.
pub fn program(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/.cache/patroni/bin")
        .join(name);
    assert!(
        path.exists(),
        "{} is missing: `tests/run --only interop` installs it",
        path.display()
    );
    path
}

/// Folder of the newest PostgreSQL of this host; both kinds of members use it.
pub fn bin_dir() -> String {
    let found = (14..=18)
        .rev()
        .map(|major| format!("/usr/lib/postgresql/{major}/bin"))
        .find(|dir| Path::new(dir).join("postgres").exists());
    found.expect("PostgreSQL 14 or newer below /usr/lib/postgresql")
}

/// One Patroni member: its file and its data stay, its process comes and goes.
pub struct Patroni {
    pub seat: Seat,
    pub dir: PathBuf,
    child: Option<Child>,
}

impl Patroni {
    /// `dcs` is the cluster's first configuration, which counts if this member makes the cluster.
    pub fn new(base: &Path, name: &str, etcd: &str, dcs: &Value) -> Self {
        let dir = base.join(name);
        fs::create_dir_all(&dir).expect("create the member's directory");
        own(&dir);
        let seat = Seat {
            name: name.to_owned(),
            pg_port: free_port(),
            api_port: free_port(),
        };
        let patroni = Self {
            seat,
            dir,
            child: None,
        };
        let settings = patroni.settings(etcd, dcs);
        // Every JSON document is a YAML document.
        fs::write(patroni.file(), settings.to_string()).expect("write patroni.yml");
        patroni
    }

    fn settings(&self, etcd: &str, dcs: &Value) -> Value {
        let api = format!("127.0.0.1:{}", self.seat.api_port);
        let pg = format!("127.0.0.1:{}", self.seat.pg_port);
        let login = |(name, password): (&str, &str)| json!({"username": name, "password": password});
        json!({
            "scope": "demo",
            "name": self.seat.name,
            "restapi": {"listen": api, "connect_address": api},
            "etcd3": {"hosts": [etcd]},
            "bootstrap": {"dcs": dcs, "initdb": [{"encoding": "UTF8"}, "data-checksums"]},
            "postgresql": {
                "listen": pg,
                "connect_address": pg,
                "data_dir": self.data_dir(),
                "bin_dir": bin_dir(),
                "pgpass": self.dir.join("pgpass"),
                "pg_hba": [
                    format!("host replication {} 127.0.0.1/32 scram-sha-256", REPLICATION.0),
                    "host all all 127.0.0.1/32 scram-sha-256",
                ],
                "authentication": {
                    "superuser": login(("postgres", PASSWORD)),
                    "replication": login(REPLICATION),
                    "rewind": login(REWIND),
                },
                "parameters": {"unix_socket_directories": self.dir},
            },
        })
    }

    /// Takes `pg_hba` out of its file: what initdb and people have put into pg_hba.conf stays then.
    pub fn without_hba(self) -> Self {
        let text = fs::read_to_string(self.file()).expect("read patroni.yml");
        let mut settings: Value = serde_json::from_str(&text).expect("JSON");
        let postgresql = settings["postgresql"].as_object_mut().expect("a section");
        postgresql.remove("pg_hba");
        fs::write(self.file(), settings.to_string()).expect("write patroni.yml");
        self
    }

    pub fn file(&self) -> PathBuf {
        self.dir.join("patroni.yml")
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.seat.name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .expect("open the log");
        // As user postgres, like every other server here: PostgreSQL does not run as root.
        let mut command = if nix::unistd::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
            command.arg(program("patroni"));
            command
        } else {
            Command::new(program("patroni"))
        };
        command
            .arg(self.file())
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .env("HOME", &self.dir)
            .env("LANG", "C.UTF-8")
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("clone the log"))
            .stderr(log);
        self.child = Some(command.spawn().expect("start patroni"));
    }

    pub fn postmaster_pid(&self) -> Option<i32> {
        let text = fs::read_to_string(self.data_dir().join("postmaster.pid")).ok()?;
        let pid = text.lines().next()?.trim().parse().ok()?;
        Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
    }

    /// Everything of this member dies at once. Its postmaster is a daemon and no child of Patroni's.
    pub fn kill_node(&mut self) {
        let daemon = self
            .child
            .as_ref()
            .map(|child| i32::try_from(child.id()).expect("a pid"));
        let roots: Vec<i32> = daemon.into_iter().chain(self.postmaster_pid()).collect();
        let mut all = roots.clone();
        for signal in ["STOP", "KILL"] {
            // Once more before the end: nothing new is started by what has been stopped.
            all.extend(roots.iter().flat_map(|root| descendants(*root)));
            for pid in &all {
                let _gone = Command::new("kill")
                    .args([&format!("-{signal}"), &pid.to_string()])
                    .stderr(Stdio::null())
                    .status();
            }
        }
        if let Some(mut child) = self.child.take() {
            let _status = child.wait();
        }
    }

    /// The daemon itself.
    pub fn daemon_pid(&self) -> Option<i32> {
        i32::try_from(self.child.as_ref()?.id()).ok()
    }

    /// Kills the daemon alone and starts another at once.
    #[allow(dead_code, reason = "the benchmark does")]
    pub fn restart_daemon(&mut self) {
        let mut child = self.child.take().expect("running");
        child.kill().expect("kill patroni");
        child.wait().expect("wait for patroni");
        self.start();
    }

    /// SIGTERM and wait for the end, of PostgreSQL too.
    pub async fn stop(&mut self, limit: Duration) {
        let pid = self.daemon_pid().expect("running").to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.expect("run kill").success());
        self.wait_end(limit).await;
    }

    /// Waits for the end of what has been told to end.
    pub async fn wait_end(&mut self, limit: Duration) {
        let mut child = self.child.take().expect("running");
        wait_for(
            &format!("{} to exit", self.seat.name),
            limit,
            async || match child.try_wait().expect("wait for patroni") {
                Some(status) if status.success() => Ok(()),
                Some(status) => panic!("{} ended with {status}", self.seat.name),
                None => Err(tail(&self.log())),
            },
        )
        .await;
        assert_eq!(self.postmaster_pid(), None, "PostgreSQL has ended, too");
    }
}

impl Drop for Patroni {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of {} ----\n{}", self.seat.name, tail(&self.log()));
        }
        self.kill_node();
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(80)..].join("\n")
}
