//! The owner of the postmaster, promotion and queries against a real PostgreSQL. Skipped where there is none.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests"
)]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use howdah::{
    model::Timeline,
    postgres::{
        orphans, pidfile,
        postmaster::{
            ExitStatus, Home, NotReady, Postmaster, StartError, StartSpec, Started, State, StopLadder,
            StopMode,
        },
        promote::promote,
        query::{Address, Monitor, QueryError, Target, TlsOptions, Where, leader_probe},
    },
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const S: Duration = Duration::from_secs(1);
const LADDER: StopLadder = StopLadder {
    smart: Duration::from_secs(2),
    fast: Duration::from_secs(20),
    immediate: Duration::from_secs(4),
};

fn bin_dir() -> Option<PathBuf> {
    let dirs = ["HOWDAH_TEST_PG_BIN"].iter().filter_map(std::env::var_os);
    let known = [15, 17, 18, 16, 14].map(|v| format!("/usr/lib/postgresql/{v}/bin").into());
    dirs.chain(known)
        .map(PathBuf::from)
        .find(|dir| dir.join("initdb").exists())
}

/// A port below the range the kernel gives to outgoing connections. Each test may be its own process, so the process
/// id takes part in the choice; somebody else on the machine may still have the port.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = u16::try_from(std::process::id() % 1500).unwrap() * 8;
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let candidates = (0..1000).map(|_| 20_000 + (base + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000);
    candidates.into_iter().find(is_free).unwrap()
}

/// Root runs postgres as the user `postgres`.
fn run_as() -> Option<(u32, u32)> {
    let root = rustix::process::getuid().is_root();
    let user = nix::unistd::User::from_name("postgres").unwrap();
    user.filter(|_| root)
        .map(|user| (user.uid.as_raw(), user.gid.as_raw()))
}

/// A data directory on its own port; everything of it is killed at the end.
struct Node {
    bin: PathBuf,
    dir: PathBuf,
    port: u16,
    _temp: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        for _ in 0..200 {
            let left = orphans::find(&self.data());
            if left.is_empty() {
                return;
            }
            for orphan in left {
                kill("KILL", orphan.pid);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Node {
    fn empty() -> Option<Self> {
        let Some(bin) = bin_dir() else {
            eprintln!("skipped: no PostgreSQL here");
            return None;
        };
        let port = free_port();
        let temp = tempfile::tempdir_in("/tmp").unwrap();
        let dir = temp.path().to_owned();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        if let Some((uid, gid)) = run_as() {
            chown(&dir, Some(uid), Some(gid)).unwrap();
        }
        let node = Self {
            bin,
            dir,
            port,
            _temp: temp,
        };
        Some(node)
    }

    fn new() -> Option<Self> {
        let node = Self::empty()?;
        let data = node.data();
        let data = data.to_str().unwrap();
        node.tool(
            "initdb",
            &["-D", data, "-U", "postgres", "-A", "trust", "--no-sync"],
        );
        node.configure("wal_level = replica\nmax_wal_senders = 5\nhot_standby = on\n");
        Some(node)
    }

    /// A standby of `leader`, made by pg_basebackup.
    fn standby_of(leader: &Self) -> Option<Self> {
        let node = Self::empty()?;
        let data = node.data();
        let port = leader.port.to_string();
        let host = leader.dir.to_str().unwrap();
        let data = data.to_str().unwrap();
        let args = [
            "-D", data, "-h", host, "-p", &port, "-U", "postgres", "-R", "-c", "fast",
        ];
        node.tool("pg_basebackup", &args);
        node.configure("");
        Some(node)
    }

    fn configure(&self, extra: &str) {
        let path = self.data().join("postgresql.conf");
        let text = fs::read_to_string(&path).unwrap();
        let (port, dir) = (self.port, self.dir.display());
        let own = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{dir}'\nfsync = off\n"
        );
        fs::write(path, format!("{text}\n{own}{extra}")).unwrap();
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn tool(&self, name: &str, args: &[&str]) {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(self.bin.join(name));
        command.args(args).current_dir("/").stdout(Stdio::null());
        if let Some((uid, gid)) = run_as() {
            command.uid(uid).gid(gid);
        }
        assert!(command.status().unwrap().success(), "{name}");
    }

    fn own(&self) -> Postmaster {
        let home = Home {
            data_dir: self.data(),
            run_as: run_as(),
        };
        Postmaster::own(home).unwrap()
    }

    fn spec(&self) -> StartSpec {
        StartSpec {
            bin_dir: self.bin.clone(),
            args: vec!["-c".into(), "cluster_name=test".into()],
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            timeout: 10 * S,
        }
    }

    /// Owned and ready.
    async fn started(&self) -> Postmaster {
        let postmaster = self.own();
        let started = postmaster.start(self.spec()).await.unwrap();
        assert!(matches!(started, Started::Spawned { .. }), "{started:?}");
        let ready = postmaster.wait_ready(30 * S).await.unwrap();
        assert!(ready.accepting);
        eprintln!("start to ready: {:?}", ready.took);
        postmaster
    }

    fn target(&self) -> Target {
        Target {
            address: Address::Socket(self.dir.clone()),
            port: self.port,
            user: "postgres".into(),
            password: None,
            dbname: "postgres".into(),
            application_name: "Howdah test".into(),
            tls: TlsOptions::default(),
        }
    }

    fn monitor(&self) -> Monitor {
        Monitor::new(self.target())
    }

    /// A session that runs `sql` in the background; returns it with its backend's pid.
    async fn busy(&self, sql: &'static str) -> (tokio::task::JoinHandle<bool>, i32) {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.dir).port(self.port).user("postgres");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let row = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap();
        let pid: i32 = row.get(0);
        let job = tokio::spawn(async move { client.batch_execute(sql).await.is_err() });
        let active = format!(
            "SELECT state = 'active' AND query LIKE '%{}%' FROM pg_stat_activity WHERE pid = {pid}",
            &sql[..5]
        );
        let monitor = self.monitor();
        until("the session is busy", 5 * S, async || {
            let answer = monitor.execute(&active, 5 * S).await.unwrap();
            answer.as_deref() == Some("t")
        })
        .await;
        (job, pid)
    }
}

fn kill(signal: &str, pid: i32) {
    let (signal, pid) = (format!("-{signal}"), pid.to_string());
    let mut command = Command::new("kill");
    command.args([signal, pid]).stderr(Stdio::null());
    command.status().unwrap();
}

fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, tail)| !tail.starts_with(['Z', 'X']))
}

async fn until(what: &str, limit: Duration, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < limit, "waited {limit:?} until {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn pid_of(postmaster: &Postmaster) -> i32 {
    postmaster.state().pid().unwrap()
}

/// A session that computes without ever looking whether its postmaster lives.
const BUSY_LOOP: &str = "DO $$ BEGIN LOOP PERFORM 1; END LOOP; END $$";

#[tokio::test]
async fn starts_and_ends_the_clients_on_a_fast_stop() {
    let Some(node) = Node::new() else { return };
    let postmaster = node.started().await;
    let again = postmaster.start(node.spec()).await.unwrap();
    assert_eq!(
        again,
        Started::AlreadyRunning {
            pid: pid_of(&postmaster)
        }
    );
    let (job, backend) = node.busy("BEGIN; CREATE TABLE t (); SELECT pg_sleep(600)").await;
    let stopped = postmaster.stop(StopMode::Fast, LADDER).await.unwrap();
    eprintln!("fast stop with a client in a transaction: {:?}", stopped.took);
    assert_eq!(stopped.ended_by, Some(StopMode::Fast));
    let exit = stopped.exit.unwrap();
    assert_eq!((exit.status, exit.requested), (ExitStatus::Code(0), true));
    assert!(job.await.unwrap() && !alive(backend));
    assert_eq!(postmaster.state(), State::Stopped { last: Some(exit) });

    postmaster.start(node.spec()).await.unwrap();
    let ready = postmaster.wait_ready(30 * S).await.unwrap();
    eprintln!("start to ready after a clean stop: {:?}", ready.took);
    let stopped = postmaster.stop(StopMode::Fast, LADDER).await.unwrap();
    eprintln!("fast stop, idle: {:?}", stopped.took);
    assert_eq!(stopped.ended_by, Some(StopMode::Fast));
}

#[tokio::test]
async fn a_stop_is_bounded_whatever_the_backends_do() {
    let Some(node) = Node::new() else { return };
    let postmaster = node.started().await;
    let (_job, backend) = node.busy("SELECT pg_sleep(600)").await;
    kill("STOP", backend);
    let ladder = StopLadder {
        smart: S,
        fast: Duration::from_millis(500),
        immediate: Duration::from_millis(500),
    };
    let stopped = postmaster.stop(StopMode::Fast, ladder).await.unwrap();
    eprintln!("fast 0.5 s, immediate 0.5 s, kill: {:?}", stopped.took);
    assert_eq!(stopped.ended_by, Some(StopMode::Kill));
    assert!(stopped.took >= S && stopped.took < 2 * S, "{stopped:?}");
    assert_eq!(stopped.exit.unwrap().status, ExitStatus::Signal(9));
    assert!(!alive(backend));
    assert!(orphans::find(&node.data()).is_empty());
}

#[tokio::test]
async fn a_standby_that_hangs_cannot_hold_up_a_stop() {
    let Some(node) = Node::new() else { return };
    let leader = node.started().await;
    let Some(standby) = Node::standby_of(&node) else {
        return;
    };
    let _follower = standby.started().await;
    let monitor = node.monitor();
    until("the standby streams", 10 * S, async || {
        let view = monitor.observe(5 * S).await.unwrap();
        view.senders
            .iter()
            .any(|s| s.state.as_deref() == Some("streaming"))
    })
    .await;
    let frozen = orphans::find(&standby.data());
    frozen.iter().for_each(|process| kill("STOP", process.pid));
    let ladder = StopLadder { fast: S, ..LADDER };
    let stopped = leader.stop(StopMode::Fast, ladder).await.unwrap();
    eprintln!("fast 1 s with a frozen standby: {:?}", stopped.took);
    assert_eq!(stopped.ended_by, Some(StopMode::Immediate));
    assert!(stopped.took < 2 * S);
}

#[tokio::test]
async fn a_harder_request_escalates_at_once() {
    let Some(node) = Node::new() else { return };
    let postmaster = node.started().await;
    let (_job, _) = node.busy("SELECT pg_sleep(600)").await;
    let patient = StopLadder {
        smart: 600 * S,
        ..LADDER
    };
    let smart = postmaster.begin_stop(StopMode::Smart, patient);
    let stopping = |state: &State| matches!(state, State::Stopping { .. });
    postmaster.watch().wait_for(stopping).await.unwrap();
    let refused = postmaster.start(node.spec()).await;
    assert!(matches!(refused, Err(StartError::Stopping)));
    let fast = postmaster.stop(StopMode::Fast, LADDER).await.unwrap();
    assert_eq!(fast.ended_by, Some(StopMode::Fast));
    assert_eq!(smart.wait().await.unwrap().ended_by, Some(StopMode::Fast));

    postmaster.start(node.spec()).await.unwrap();
    postmaster.wait_ready(30 * S).await.unwrap();
    let (job, _) = node.busy("SELECT pg_sleep(600)").await;
    let immediate = postmaster.stop(StopMode::Immediate, LADDER).await.unwrap();
    eprintln!("immediate stop: {:?}", immediate.took);
    assert_eq!(immediate.ended_by, Some(StopMode::Immediate));
    assert!(immediate.took < 2 * S && job.await.unwrap());

    postmaster.start(node.spec()).await.unwrap();
    let killed = postmaster.kill_everything().await.unwrap();
    eprintln!("kill everything: {:?}", killed.took);
    assert_eq!(killed.ended_by, Some(StopMode::Kill));
    let nothing = postmaster.stop(StopMode::Fast, LADDER).await.unwrap();
    assert_eq!((nothing.ended_by, nothing.exit), (None, None));
}

#[tokio::test]
async fn a_killed_postmaster_is_noticed_at_once_and_its_orphans_are_ended() {
    let Some(node) = Node::new() else { return };
    let postmaster = node.started().await;
    let (_sleeper, sleeper) = node.busy("SELECT pg_sleep(600)").await;
    let (_looper, looper) = node.busy(BUSY_LOOP).await;
    let mut watch = postmaster.watch();
    watch.mark_unchanged();
    kill("KILL", pid_of(&postmaster));
    let begun = Instant::now();
    watch.changed().await.unwrap();
    let noticed = begun.elapsed();
    assert!(matches!(*watch.borrow(), State::Cleaning { .. }));
    assert!(noticed < Duration::from_millis(50), "{noticed:?}");
    let exit = postmaster.wait_stopped(5 * S).await.unwrap().unwrap();
    eprintln!(
        "kill -9 noticed after {noticed:?}, orphans gone after {:?}",
        begun.elapsed()
    );
    assert_eq!((exit.status, exit.requested), (ExitStatus::Signal(9), false));
    assert!(!alive(sleeper) && !alive(looper));

    postmaster.start(node.spec()).await.unwrap();
    let ready = postmaster.wait_ready(30 * S).await.unwrap();
    eprintln!("start to ready with crash recovery: {:?}", ready.took);
}

#[tokio::test]
async fn orphans_of_a_postmaster_nobody_owned_do_not_block_a_start() {
    let Some(node) = Node::new() else { return };
    let first = node.started().await;
    let pid = pid_of(&first);
    let (_looper, looper) = node.busy(BUSY_LOOP).await;
    drop(first);
    kill("KILL", pid);
    until("the postmaster is gone", 5 * S, async || !alive(pid)).await;
    assert!(
        alive(looper),
        "the orphan must be there for this test to mean anything"
    );
    let second = node.own();
    assert_eq!(second.state(), State::Stopped { last: None });
    let begun = Instant::now();
    second.start(node.spec()).await.unwrap();
    second.wait_ready(30 * S).await.unwrap();
    eprintln!("start over an orphan: {:?}", begun.elapsed());
    assert!(!alive(looper));
}

#[tokio::test]
async fn a_stale_pid_file_with_a_reused_pid_does_not_block_a_start() {
    let Some(node) = Node::new() else { return };
    let postmaster = node.started().await;
    kill("KILL", pid_of(&postmaster));
    postmaster.wait_stopped(5 * S).await.unwrap();
    // Same user as postgres: for another one PostgreSQL itself would know that it is a stranger.
    let mut stranger = stranger(&node.data());
    let path = node.data().join("postmaster.pid");
    let text = fs::read_to_string(&path).unwrap();
    let rest = text.split_once('\n').unwrap().1;
    fs::write(&path, format!("{}\n{rest}", stranger.id())).unwrap();
    postmaster.start(node.spec()).await.unwrap();
    let ready = postmaster.wait_ready(30 * S).await;
    let spared = stranger.try_wait().unwrap().is_none();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    ready.unwrap();
    assert!(spared, "the stranger must not be touched");
}

/// A `sleep` that even works in the data directory.
fn stranger(data: &Path) -> Child {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("sleep");
    command.arg("600").current_dir(data);
    if let Some((uid, gid)) = run_as() {
        command.uid(uid).gid(gid);
    }
    command.spawn().unwrap()
}

#[tokio::test]
async fn a_running_postmaster_outlives_its_owner_and_is_adopted_not_doubled() {
    let Some(node) = Node::new() else { return };
    let first = node.started().await;
    let pid = pid_of(&first);
    let late = node.own();
    drop(first);
    let second = node.own();
    assert!(
        matches!(second.state(), State::Running { pid: p, adopted: true, accepting: true, .. } if p == pid),
        "{:?}",
        second.state()
    );
    let again = second.start(node.spec()).await.unwrap();
    assert_eq!(again, Started::AlreadyRunning { pid });
    node.monitor().observe(5 * S).await.unwrap();
    second.reload().await.unwrap();
    let stopped = second.stop(StopMode::Fast, LADDER).await.unwrap();
    assert_eq!(stopped.ended_by, Some(StopMode::Fast));
    assert!(!alive(pid));
    late.wait_stopped(5 * S).await.unwrap();

    // An owner from before the start finds out when it is asked to start.
    second.start(node.spec()).await.unwrap();
    second.wait_ready(30 * S).await.unwrap();
    let pid = pid_of(&second);
    let adopted = late.start(node.spec()).await.unwrap();
    assert_eq!(adopted, Started::Adopted { pid });
    kill("KILL", pid);
    let exit = late.wait_stopped(5 * S).await.unwrap().unwrap();
    assert!(!exit.requested);
}

/// Not a test by itself: the agent that the next test kills.
#[tokio::test]
#[ignore = "started by the test below, in a process of its own"]
async fn agent_to_be_killed() {
    let dir = PathBuf::from(std::env::var_os("HOWDAH_TEST_DIR").unwrap());
    let bin = bin_dir().unwrap();
    let home = Home {
        data_dir: dir,
        run_as: run_as(),
    };
    let postmaster = Postmaster::own(home).unwrap();
    let spec = StartSpec {
        bin_dir: bin,
        args: Vec::new(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        timeout: 10 * S,
    };
    postmaster.start(spec).await.unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn clients_do_not_notice_that_the_agent_is_killed() {
    let Some(node) = Node::new() else { return };
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "agent_to_be_killed", "--ignored", "--nocapture"])
        .env("HOWDAH_TEST_DIR", node.data())
        .spawn()
        .unwrap();
    let monitor = node.monitor();
    until("the agent's postgres is up", 30 * S, async || {
        monitor.observe(5 * S).await.is_ok()
    })
    .await;
    let before = monitor.observe(5 * S).await.unwrap();
    let (job, backend) = node.busy("SELECT pg_sleep(600)").await;
    agent.kill().unwrap();
    agent.wait().unwrap();
    // Makes the server write to its log as well, where a broken pipe would show.
    let nonsense = monitor.execute("SELEKT 1", 5 * S).await.unwrap_err();
    assert_eq!(nonsense.code(), Some("42601"));
    let after = monitor.observe(5 * S).await.unwrap();
    assert_eq!(before.started, after.started);
    assert!(alive(backend) && !job.is_finished());

    let heir = node.own();
    assert!(matches!(heir.state(), State::Running { adopted: true, .. }));
    let stopped = heir.stop(StopMode::Fast, LADDER).await.unwrap();
    assert_eq!(stopped.exit.unwrap().status, ExitStatus::Unknown);
    assert!(!alive(backend));
    assert_eq!(pidfile::holder(&node.data()).unwrap(), pidfile::Holder::Nobody);
}

#[tokio::test]
async fn a_postmaster_that_cannot_start_says_so() {
    let Some(node) = Node::new() else { return };
    let postmaster = node.own();
    let mut spec = node.spec();
    spec.args = vec!["--no-such-option".into()];
    postmaster.start(spec).await.unwrap();
    match postmaster.wait_ready(10 * S).await {
        Err(NotReady::Ended { exit: Some(exit) }) => {
            assert_eq!(exit.status, ExitStatus::Code(1));
            assert!(!exit.requested);
        }
        other => panic!("{other:?}"),
    }
    postmaster.wait_stopped(5 * S).await.unwrap();
    let mut spec = node.spec();
    spec.bin_dir = "/no/such".into();
    let error = postmaster.start(spec).await;
    assert!(matches!(error, Err(StartError::Spawn { .. })), "{error:?}");
    fs::write(node.data().join("postmaster.pid"), "nonsense\n\n").unwrap();
    assert_eq!(pidfile::holder(&node.data()).unwrap(), pidfile::Holder::Nobody);
    assert!(postmaster.reload().await.is_err());
}

#[tokio::test]
async fn a_standby_is_promoted_and_everybody_can_see_it() {
    let Some(node) = Node::new() else { return };
    let leader = node.started().await;
    let leader_monitor = node.monitor();
    assert!(leader_monitor.create_physical_slot("s1", 5 * S).await.unwrap());
    assert!(!leader_monitor.create_physical_slot("s1", 5 * S).await.unwrap());
    let Some(standby) = Node::standby_of(&node) else {
        return;
    };
    let auto = standby.data().join("postgresql.auto.conf");
    let text = fs::read_to_string(&auto).unwrap();
    fs::write(&auto, format!("{text}\nprimary_slot_name = 's1'\n")).unwrap();
    // A forgotten request must not promote it.
    fs::write(standby.data().join("promote"), "").unwrap();
    let follower = standby.started().await;
    let monitor = standby.monitor();
    leader_monitor
        .execute("CREATE ROLE somebody", 5 * S)
        .await
        .unwrap();
    let Where::Primary(leader_place) = leader_monitor.observe(5 * S).await.unwrap().place else {
        panic!("not a primary")
    };
    until("the standby has it all", 10 * S, async || {
        match monitor.observe(5 * S).await.unwrap().place {
            Where::Standby(standby) => {
                let written = standby.receiver.as_ref().and_then(|r| r.written_lsn);
                standby.is_streaming()
                    && standby.received() >= Some(leader_place.flush_lsn)
                    && standby.replay_lsn >= Some(leader_place.flush_lsn)
                    && written.is_some()
            }
            Where::Primary(_) => panic!("promoted by a stale file"),
        }
    })
    .await;

    let view = monitor.observe(5 * S).await.unwrap();
    let begun = Instant::now();
    let primary = leader_monitor.observe(5 * S).await.unwrap();
    eprintln!("observation: {:?}", begun.elapsed());
    assert_eq!(view.system_id, primary.system_id);
    assert!(view.in_recovery() && !primary.in_recovery());
    assert_eq!((view.timeline(), primary.timeline()), (Timeline(1), Timeline(1)));
    assert!(view.primary_conninfo.contains("host="), "from -R");
    assert!(!format!("{view:?}").contains("conninfo"));
    let Where::Standby(place) = &view.place else {
        panic!("{view:?}")
    };
    let receiver = place.receiver.as_ref().unwrap();
    assert_eq!(receiver.slot_name.as_deref(), Some("s1"));
    assert_eq!(receiver.received_tli, Some(Timeline(1)));
    assert!(receiver.written_lsn.is_some() && receiver.conninfo.is_some());
    assert_eq!(primary.senders.len(), 1);
    assert_eq!(primary.senders[0].state.as_deref(), Some("streaming"));
    assert_eq!(primary.senders[0].sync_state.as_deref(), Some("async"));
    assert_eq!(primary.senders[0].application_name, "test");
    assert_eq!(
        (primary.slots[0].slot_name.as_str(), primary.slots[0].active),
        ("s1", true)
    );
    assert!(primary.slots[0].restart_lsn.is_some());
    assert!(!leader_monitor.drop_slot("s1", 5 * S).await.unwrap(), "in use");

    // Stopping the leader first, as a switchover does, then the promotion.
    leader.stop(StopMode::Fast, LADDER).await.unwrap();
    let promotion = promote(&follower, &monitor, 30 * S, &CancellationToken::new())
        .await
        .unwrap();
    eprintln!("promotion: {promotion:?}");
    assert!(!promotion.already);
    let view = monitor.observe(5 * S).await.unwrap();
    assert!(!view.in_recovery());
    assert_eq!(view.timeline(), Timeline(2));
    let again = promote(&follower, &monitor, 5 * S, &CancellationToken::new())
        .await
        .unwrap();
    assert!(again.already);

    let mut target = standby.target();
    target.address = Address::Tcp("127.0.0.1".into());
    let probe = leader_probe(&target, 5 * S).await.unwrap();
    assert_eq!((probe.in_recovery, probe.timeline), (false, Timeline(2)));
    assert_eq!(probe.system_id, view.system_id);
    assert_eq!(probe.history().len(), 1);
    target.port = 1;
    let nobody = leader_probe(&target, S).await;
    assert!(matches!(nobody, Err(QueryError::ConnectFailed { .. })));
}

#[tokio::test]
async fn the_rewind_role_may_probe_the_leader() {
    let Some(node) = Node::new() else { return };
    let _postmaster = node.started().await;
    let sql = "CREATE ROLE rewind LOGIN; GRANT EXECUTE ON FUNCTION \
               pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) TO rewind";
    node.monitor().execute(sql, 5 * S).await.unwrap();
    let mut target = node.target();
    target.address = Address::Tcp("127.0.0.1".into());
    target.user = "rewind".into();
    let probe = leader_probe(&target, 5 * S).await.unwrap();
    assert_eq!((probe.timeline, probe.history_text), (Timeline(1), None));
    target.user = "nobody_such".into();
    let refused = leader_probe(&target, 5 * S).await;
    assert!(matches!(refused, Err(QueryError::Auth { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_query_never_takes_longer_than_its_limit() {
    let Some(node) = Node::new() else { return };
    let postmaster = node.started().await;
    let monitor = node.monitor();
    let view = monitor.observe(5 * S).await.unwrap();
    assert!(view.version >= 140_000 && view.pending_restart.is_empty());
    assert!(
        view.started.ends_with("+00:00") && view.started.len() == 32,
        "{}",
        view.started
    );
    assert_eq!(view.timeline(), Timeline(1));
    assert_eq!(view.synchronous_commit, "on");
    monitor
        .execute("ALTER SYSTEM SET max_connections = 77", 5 * S)
        .await
        .unwrap();
    postmaster.reload().await.unwrap();
    until("the setting waits for a restart", 5 * S, async || {
        let view = monitor.observe(5 * S).await.unwrap();
        view.pending_restart
            .iter()
            .any(|s| s.name == "max_connections" && s.setting == "100")
    })
    .await;
    monitor.execute_long("CHECKPOINT", 10 * S).await.unwrap();
    let nonsense = monitor.execute("SELEKT 1", 5 * S).await.unwrap_err();
    assert_eq!(nonsense.code(), Some("42601"));
    let sleepy = monitor
        .execute_long("SELECT pg_sleep(60)", Duration::from_millis(300))
        .await;
    assert!(matches!(sleepy, Err(QueryError::Timeout { .. })), "{sleepy:?}");

    // All of it frozen: the open connection, a new one, and one waiting for its turn.
    let everything = orphans::find(&node.data());
    assert!(everything.len() > 3);
    everything.iter().for_each(|process| kill("STOP", process.pid));
    let limit = Duration::from_millis(300);
    for _ in 0..2 {
        let begun = Instant::now();
        let (a, b) = tokio::join!(monitor.observe(limit), monitor.observe(limit));
        for frozen in [a, b] {
            assert!(matches!(frozen, Err(QueryError::Timeout { .. })), "{frozen:?}");
        }
        assert!(begun.elapsed() < 2 * limit, "{:?}", begun.elapsed());
    }
    let killed = postmaster.kill_everything().await.unwrap();
    assert!(killed.took < 2 * S);
    let nobody = monitor.observe(S).await;
    assert!(
        matches!(nobody, Err(QueryError::ConnectFailed { .. })),
        "{nobody:?}"
    );
}

#[tokio::test]
async fn a_server_in_recovery_is_starting_not_broken() {
    let Some(node) = Node::new() else { return };
    // Waits for a file that never comes, so it stays inconsistent.
    fs::write(node.data().join("recovery.signal"), "").unwrap();
    node.configure("restore_command = 'sleep 1; false'\n");
    let postmaster = node.own();
    postmaster.start(node.spec()).await.unwrap();
    let early = postmaster.wait_ready(Duration::from_millis(400)).await;
    assert!(matches!(early, Err(NotReady::Deadline { .. })), "{early:?}");
    let answer = node.monitor().observe(S).await;
    assert!(
        matches!(answer, Err(QueryError::NotAccepting { .. })),
        "{answer:?}"
    );
    let stopped = postmaster.stop(StopMode::Fast, LADDER).await.unwrap();
    eprintln!("fast stop while recovering: {:?}", stopped.took);
    assert!(stopped.exit.unwrap().requested);
}
