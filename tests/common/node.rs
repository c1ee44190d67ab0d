//! Real members as real processes: `howdah` as its own init (a child subreaper), postgres from the host's packages.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::TcpListener,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

/// Password of the superuser in tests.
pub const PASSWORD: &str = "correct horse battery";

/// A free TCP port on loopback.
///
/// Below the range from which the kernel gives ports to outgoing connections: one of those could take the port before
/// its server is started, or while it is stopped. Test processes that run at once have places of their own, each as long as
/// it lives: a port that is free may belong to a server that another test starts in a moment.
pub fn free_port() -> u16 {
    const FIRST: u16 = 15_000;
    const PLACES: u16 = 160;
    const EACH: u16 = 100;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static PLACE: LazyLock<(u16, fs::File)> = LazyLock::new(|| {
        let dir = std::env::temp_dir().join("howdah-test-ports");
        fs::create_dir_all(&dir).expect("a directory for locks");
        let begin = u16::try_from(std::process::id() % u32::from(PLACES)).expect("small");
        let mut places = (0..PLACES).map(|step| (begin + step) % PLACES);
        let free = places.find_map(|place| {
            let file = fs::File::create(dir.join(place.to_string())).expect("a lock");
            file.try_lock().is_ok().then_some((place, file))
        });
        free.expect("a place for the ports of this process")
    });
    let place = PLACE.0;
    loop {
        let port = FIRST + place * EACH + NEXT.fetch_add(1, Ordering::Relaxed) % EACH;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Waits until `condition` gives a value; panics with `what` and the last state after `limit`.
pub async fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let start = Instant::now();
    loop {
        match condition().await {
            Ok(value) => return value,
            Err(state) if start.elapsed() > limit => {
                panic!(
                    "waited {:.1} s for {what}; last: {state}",
                    start.elapsed().as_secs_f32()
                )
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Looks for as long as `duration` that `condition` holds; panics with `what` and the state as soon as it does not.
pub async fn always(what: &str, duration: Duration, mut condition: impl AsyncFnMut() -> Result<(), String>) {
    let start = Instant::now();
    while start.elapsed() < duration {
        if let Err(state) = condition().await {
            panic!(
                "not any more after {:.1} s: {what}; {state}",
                start.elapsed().as_secs_f32()
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One member: its settings stay, its process comes and goes.
pub struct Node {
    pub name: String,
    pub dir: PathBuf,
    /// Address of its servers.
    pub host: String,
    /// What its commands are run by: a way into a network of its own. Replaces itself with them.
    pub wrapper: Vec<String>,
    pub pg_port: u16,
    pub api_port: u16,
    pub env: BTreeMap<String, String>,
    child: Option<Child>,
}

impl Node {
    pub fn new(base: &Path, name: &str, scope: &str, etcd: &[String]) -> Self {
        Self::at("127.0.0.1", base, name, scope, etcd)
    }

    /// One whose servers listen elsewhere than on loopback.
    pub fn at(host: &str, base: &Path, name: &str, scope: &str, etcd: &[String]) -> Self {
        let dir = base.join(name);
        fs::create_dir_all(&dir).expect("create the member's directory");
        own(&dir);
        let (pg_port, api_port) = (free_port(), free_port());
        let mut env = BTreeMap::new();
        let mut set = |key: &str, value: String| env.insert(key.to_owned(), value);
        set("HOWDAH_NAME", name.to_owned());
        set("HOWDAH_SCOPE", scope.to_owned());
        set("PGDATA", dir.join("data").display().to_string());
        set("HOWDAH_POSTGRESQL_LISTEN", format!("{host}:{pg_port}"));
        set("HOWDAH_POSTGRESQL_CONNECT_ADDRESS", format!("{host}:{pg_port}"));
        set(
            "HOWDAH_POSTGRESQL_PGPASS",
            dir.join("pgpass").display().to_string(),
        );
        set("HOWDAH_RESTAPI_LISTEN", format!("{host}:{api_port}"));
        set("HOWDAH_RESTAPI_CONNECT_ADDRESS", format!("{host}:{api_port}"));
        set("HOWDAH_SUPERUSER_PASSWORD", PASSWORD.to_owned());
        set("HOWDAH_ETCD3_HOSTS", etcd.join(","));
        set("HOWDAH_TTL", "5".to_owned());
        set("HOWDAH_LOOP_WAIT", "1".to_owned());
        set("HOWDAH_RETRY_TIMEOUT", "2".to_owned());
        set("HOWDAH_LOG_LEVEL", "DEBUG".to_owned());
        set(
            "HOWDAH_INITDB_SCRIPTS_DIR",
            dir.join("initdb.d").display().to_string(),
        );
        Self {
            name: name.to_owned(),
            dir,
            host: host.to_owned(),
            wrapper: Vec::new(),
            pg_port,
            api_port,
            env,
            child: None,
        }
    }

    pub fn set(&mut self, key: &str, value: &str) -> &mut Self {
        self.env.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn command(&self, args: &[&str]) -> Command {
        // The benchmark measures the one that is released.
        let howdah = std::env::var("HOWDAH_TEST_PROGRAM");
        let howdah = howdah.unwrap_or_else(|_| env!("CARGO_BIN_EXE_howdah").to_owned());
        let mut command = match self.wrapper.split_first() {
            None => Command::new(&howdah),
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(&howdah);
                command
            }
        };
        command.args(args).env_clear().envs(&self.env);
        command.env("PATH", std::env::var("PATH").unwrap_or_default());
        command
    }

    /// Starts the process; its log is appended to `log` in its directory.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("open the log");
        let stdout = log.try_clone().expect("clone the log");
        let child = self
            .command(&[])
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(log)
            .spawn()
            .expect("start howdah");
        self.child = Some(child);
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.env["PGDATA"].clone().into()
    }

    pub fn init_pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().expect("running").id()).expect("a pid")
    }

    /// The agent: init's child whose command line says so.
    pub fn agent_pid(&self) -> Option<i32> {
        children(self.init_pid())
            .into_iter()
            .find(|pid| cmdline(*pid).contains("agent"))
    }

    pub fn postmaster_pid(&self) -> Option<i32> {
        let text = fs::read_to_string(self.data_dir().join("postmaster.pid")).ok()?;
        let pid = text.lines().next()?.trim().parse().ok()?;
        Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
    }

    pub fn signal(&self, pid: i32, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &pid.to_string()])
            .status()
            .expect("run kill");
        assert!(status.success(), "kill -{name} {pid}");
    }

    /// Everything of this member dies at once, as if the host had lost power.
    pub fn kill_node(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let init = i32::try_from(child.id()).expect("a pid");
        // Init first and stopped, so that it cannot restart anything; then the tree beneath it.
        let tree = descendants(init);
        for pid in std::iter::once(init).chain(tree.iter().copied()) {
            let _gone = Command::new("kill")
                .args(["-STOP", &pid.to_string()])
                .stderr(Stdio::null())
                .status();
        }
        for pid in descendants(init).into_iter().chain(tree).chain([init]) {
            let _gone = Command::new("kill")
                .args(["-KILL", &pid.to_string()])
                .stderr(Stdio::null())
                .status();
        }
        let _status = child.wait();
    }

    /// SIGTERM and wait for the end.
    pub async fn stop(&mut self, limit: Duration) -> ExitStatus {
        self.signal(self.init_pid(), "TERM");
        self.wait_exit(limit).await
    }

    pub async fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("running");
        wait_for(&format!("{} to exit", self.name), limit, async || {
            child
                .try_wait()
                .expect("wait for howdah")
                .ok_or_else(|| tail(&self.log()))
        })
        .await
    }

    pub fn exited(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().expect("wait for howdah")?;
        self.child = None;
        Some(status)
    }

    /// GET on the REST API: status code and body.
    pub async fn get(&self, path: &str) -> Result<(u16, Value), String> {
        let answer = http_at(&self.host, self.api_port, "GET", path, None).await;
        answer.map_err(|error| {
            if self.has_ended() {
                format!("{error}, howdah has ended")
            } else {
                error
            }
        })
    }

    /// Whether its first process is gone and nobody has asked for its status yet.
    fn has_ended(&self) -> bool {
        let stat = |child: &Child| fs::read_to_string(format!("/proc/{}/stat", child.id()));
        let state = |stat: String| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"));
        self.child
            .as_ref()
            .is_some_and(|child| stat(child).is_ok_and(state))
    }

    pub async fn request(&self, method: &str, path: &str, body: Value) -> Result<(u16, Value), String> {
        http_at(&self.host, self.api_port, method, path, Some(body.to_string())).await
    }

    pub async fn role(&self) -> Result<String, String> {
        let (_, status) = self.get("/patroni").await?;
        Ok(format!(
            "{}/{}",
            status["role"].as_str().unwrap_or("?"),
            status["state"].as_str().unwrap_or("?")
        ))
    }

    pub async fn wait_primary(&self, limit: Duration) {
        wait_for(&format!("{} to be primary", self.name), limit, async || {
            let (code, status) = self.get("/primary").await?;
            let writable = status["role"] == "primary" && status["state"] == "running";
            if code == 200 && writable {
                Ok(())
            } else {
                Err(format!("{code} {status}"))
            }
        })
        .await;
    }

    pub async fn wait_streaming(&self, limit: Duration) {
        wait_for(&format!("{} to stream", self.name), limit, async || {
            let (code, status) = self.get("/replica").await?;
            let streams = status["replication_state"] == "streaming";
            if code == 200 && streams {
                Ok(())
            } else {
                Err(format!("{code} {status}\n{}", tail(&self.log())))
            }
        })
        .await;
    }

    pub async fn connect(&self) -> Result<tokio_postgres::Client, String> {
        let connect = tokio_postgres::Config::new()
            .host(&self.host)
            .port(self.pg_port)
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

    pub async fn sql(&self, sql: &str) -> Result<String, String> {
        let client = self.connect().await?;
        let rows = client
            .simple_query(sql)
            .await
            .map_err(|error| format!("{error:?}"))?;
        let first = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        });
        Ok(first.unwrap_or_default())
    }

    /// Runs a CLI command with this member's environment: exit code, standard output and error.
    pub async fn cli(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = self.command(args);
        command.stdin(Stdio::null());
        let output = tokio::process::Command::from(command)
            .output()
            .await
            .expect("run howdah");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (
            output.status.code().unwrap_or(-1),
            text(output.stdout),
            text(output.stderr),
        )
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- end of the log of {} ----\n{}", self.name, tail(&self.log()));
        }
        self.kill_node();
    }
}

/// The exit code, or 128 + signal as a shell shows it.
pub fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| Some(128 + status.signal()?))
        .unwrap_or(-1)
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(80)..].join("\n")
}

/// Gives a directory to user postgres when the tests run as root (postgres refuses to run as root).
pub fn own(dir: &Path) {
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres")
            .ok()
            .flatten()
            .expect("user postgres exists");
        std::os::unix::fs::chown(dir, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .expect("chown to postgres");
    }
}

pub fn children(parent: i32) -> Vec<i32> {
    let text = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    let pids = fs::read_dir("/proc")
        .expect("read /proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let stat = text(format!("/proc/{pid}/stat").into());
        let fields = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().collect::<Vec<_>>());
        fields.and_then(|fields| fields.get(1)?.parse().ok()) == Some(parent)
    })
    .collect()
}

pub fn descendants(root: i32) -> Vec<i32> {
    let mut found = children(root);
    let mut next = 0;
    while next < found.len() {
        let more = children(found[next]);
        found.extend(more);
        next += 1;
    }
    found
}

pub fn cmdline(pid: i32) -> String {
    fs::read(format!("/proc/{pid}/cmdline"))
        .map(|raw| String::from_utf8_lossy(&raw).replace('\0', " "))
        .unwrap_or_default()
}

/// An exchange with a server on loopback.
pub async fn http(port: u16, method: &str, path: &str, body: Option<String>) -> Result<(u16, Value), String> {
    http_at("127.0.0.1", port, method, path, body).await
}

/// A minimal HTTP/1.1 exchange, so that the tests do not depend on the client they test.
pub async fn http_at(
    host: &str,
    port: u16,
    method: &str,
    path: &str,
    body: Option<String>,
) -> Result<(u16, Value), String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect((host, port)).await?;
        let body = body.unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(60), exchange)
        .await
        .map_err(|_| "no answer in 60 s".to_owned())?
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or_else(|| format!("no HTTP answer: {text}"))?;
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or("no status")?;
    Ok((
        status,
        serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned())),
    ))
}
