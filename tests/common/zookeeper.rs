//! Real ZooKeeper servers for tests: each alone, a free loopback port, a directory of its own, killed when dropped, and with
//! the thread that started it. And the hands of a stranger: a client of a few lines, which shares no code with ours.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::etcd::free_port;

const CREATE: i32 = 1;
const DELETE: i32 = 2;
const SET_DATA: i32 = 5;
const CLOSE: i32 = -11;

/// One ZooKeeper server.
pub(crate) struct Server {
    child: Child,
    dir: TempDir,
    pub(crate) port: u16,
    /// Speaks TLS on this port.
    pub(crate) tls_port: u16,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with("")
    }

    /// `more`: further lines of its configuration. One about a key store switches TLS on, on a second port.
    pub(crate) fn with(more: &str) -> Self {
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let (port, tls_port) = (free_port(), free_port());
            let mut config = format!(
                "tickTime=500\ndataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n\
                 maxSessionTimeout=60000\nmaxClientCnxns=0\n{more}\n",
                dir.path().join("data").display()
            );
            if more.contains("ssl.keyStore") {
                config.push_str(&format!(
                    "secureClientPort={tls_port}\nsecureClientPortAddress=127.0.0.1\n\
                     serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n"
                ));
            }
            let mut server = Self::launch(dir, port, tls_port, &config);
            if server.answers() {
                return server;
            }
        }
        panic!("zookeeper does not start");
    }

    fn launch(dir: TempDir, port: u16, tls_port: u16, config: &str) -> Self {
        std::fs::write(dir.path().join("zoo.cfg"), config).unwrap();
        Self {
            child: spawn(dir.path()),
            dir,
            port,
            tls_port,
        }
    }

    fn answers(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline && self.child.try_wait().unwrap().is_none() {
            if Stranger::connect_within(self.port, 0, Duration::from_millis(500)).is_some() {
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

    /// Makes a node, or replaces its value. Bound to nothing, open to everybody.
    pub(crate) fn put(&self, path: &str, value: &str) {
        let mut stranger = Stranger::connect(self.port, 0).unwrap();
        let mut parents = path.match_indices('/').skip(1).map(|(at, _)| &path[..at]);
        let mut create = |path: &str, value: &str| {
            let acl = [int(1), int(31), text("world"), text("anyone")].concat();
            stranger.ask(CREATE, &[text(path), text(value), acl, int(0)].concat())
        };
        let exists = -110;
        assert!(parents.all(|parent| [0, exists].contains(&create(parent, ""))));
        match create(path, value) {
            0 => {}
            error if error == exists => {
                assert_eq!(
                    stranger.ask(SET_DATA, &[text(path), text(value), int(-1)].concat()),
                    0
                );
            }
            error => panic!("create {path}: {error}"),
        }
    }

    pub(crate) fn remove(&self, path: &str) {
        let mut stranger = Stranger::connect(self.port, 0).unwrap();
        assert_eq!(
            stranger.ask(DELETE, &[text(path), int(-1)].concat()),
            0,
            "delete {path}"
        );
    }

    /// Ends somebody's session, whose password can be told from its number.
    pub(crate) fn end_session(&self, session: i64) {
        let mut stranger = Stranger::connect(self.port, session).expect("the session lives");
        assert_eq!(stranger.ask(CLOSE, &[]), 0, "close {session:x}");
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

    /// Starts it again after [`Server::kill`], on the same port with the same data.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(self.dir.path());
        assert!(self.answers(), "zookeeper does not start again: {}", self.log());
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

fn spawn(dir: &Path) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    let jars = ["zookeeper", "netty-codec", "netty-resolver"].map(|jar| format!("/usr/share/java/{jar}.jar"));
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "java", "-Xmx96m"])
        .args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
        // Debian's forgets two that it needs for TLS.
        .args(["-cp", &jars.join(":")])
        // Alone, or one of several, as the configuration says.
        .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
        .arg(dir.join("zoo.cfg"))
        .stdout(Stdio::from(log.try_clone().unwrap()))
        .stderr(Stdio::from(log))
        .spawn()
        .unwrap()
}

/// Three servers of one ensemble.
pub(crate) struct Ensemble {
    pub(crate) servers: Vec<Server>,
}

impl Ensemble {
    pub(crate) fn start() -> Self {
        let ports: Vec<[u16; 3]> = (0..3).map(|_| std::array::from_fn(|_| free_port())).collect();
        let mut common = String::from(
            "tickTime=500\ninitLimit=10\nsyncLimit=5\nadmin.enableServer=false\nmaxSessionTimeout=60000\n\
             maxClientCnxns=0\n",
        );
        for (id, [_, peers, election]) in (1..).zip(&ports) {
            common.push_str(&format!("server.{id}=127.0.0.1:{peers}:{election}\n"));
        }
        let launch = |(id, [port, ..]): (i32, &[u16; 3])| {
            let dir = tempfile::tempdir().unwrap();
            let data = dir.path().join("data");
            std::fs::create_dir(&data).unwrap();
            std::fs::write(data.join("myid"), id.to_string()).unwrap();
            let config = format!(
                "{common}dataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\n",
                data.display()
            );
            Server::launch(dir, *port, 0, &config)
        };
        let mut this = Self {
            servers: (1..).zip(&ports).map(launch).collect(),
        };
        this.wait_until_all_serve();
        this
    }

    pub(crate) fn hosts(&self) -> Vec<String> {
        self.servers.iter().map(Server::endpoint).collect()
    }

    pub(crate) fn wait_until_all_serve(&mut self) {
        for server in &mut self.servers {
            assert!(server.answers(), "a server does not serve");
        }
    }
}

/// A connection, of a session of its own or of somebody's.
struct Stranger {
    stream: TcpStream,
    next: i32,
}

fn int(value: i32) -> Vec<u8> {
    value.to_be_bytes().to_vec()
}

fn buffer(bytes: &[u8]) -> Vec<u8> {
    [int(i32::try_from(bytes.len()).unwrap()), bytes.to_vec()].concat()
}

fn text(text: &str) -> Vec<u8> {
    buffer(text.as_bytes())
}

impl Stranger {
    /// `None` if nobody answers, or the session is over.
    fn connect(port: u16, session: i64) -> Option<Self> {
        Self::connect_within(port, session, Duration::from_secs(5))
    }

    fn connect_within(port: u16, session: i64, limit: Duration) -> Option<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(limit)).ok()?;
        let mut this = Self { stream, next: 1 };
        let id = session.to_be_bytes().to_vec();
        let password = if session == 0 {
            [0; 16]
        } else {
            password_of(session)
        };
        let hello = [int(0), vec![0; 8], int(5000), id, buffer(&password), vec![0]].concat();
        this.stream.write_all(&buffer(&hello)).ok()?;
        let answer = this.frame()?;
        let timeout = i32::from_be_bytes(answer.get(4..8)?.try_into().ok()?);
        (timeout > 0).then_some(this)
    }

    fn frame(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).ok()?;
        let mut frame = vec![0; usize::try_from(i32::from_be_bytes(length)).ok()?];
        self.stream.read_exact(&mut frame).ok()?;
        Some(frame)
    }

    /// The server's error, 0 for none.
    fn ask(&mut self, op: i32, body: &[u8]) -> i32 {
        self.next += 1;
        let request = [int(self.next), int(op), body.to_vec()].concat();
        self.stream.write_all(&buffer(&request)).unwrap();
        let answer = self.frame().expect("an answer");
        i32::from_be_bytes(answer[12..16].try_into().unwrap())
    }
}

/// `ZooKeeperServer.generatePasswd`: the first bytes of Java's random numbers from this seed.
fn password_of(session: i64) -> [u8; 16] {
    const MASK: u64 = (1 << 48) - 1;
    const STEP: u64 = 0x5_DEEC_E66D;
    let mut seed = (session ^ 0xB341_5C00).cast_unsigned() ^ STEP;
    let mut password = [0; 16];
    for word in password.chunks_mut(4) {
        seed = (seed & MASK).wrapping_mul(STEP).wrapping_add(0xB) & MASK;
        let number = u32::try_from(seed >> 16).unwrap();
        word.copy_from_slice(&number.to_le_bytes());
    }
    password
}
