//! The files and programs of one instance, tried with the installed PostgreSQL: initdb, configuration, a copy that
//! streams, a rewind. Started as root the programs run as user `postgres`, because PostgreSQL refuses root.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, missing_docs)]

#[path = "postgres/instance.rs"]
mod instance;

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use howdah::model::DbState;
use howdah::postgres::{
    binaries::Binaries,
    clone, command,
    conf::{Frame, Input, effective, postmaster_args, render_postgresql_conf},
    confdir::ConfDir,
    conninfo::Conninfo,
    control,
    datadir::{DataDir, classify},
    guc::Known,
    hba, initdb, initscripts,
    login::Login,
    pgpass,
    recovery::{Follow, recovery_settings},
    rewind, roles,
    staging::{OldData, Staging},
    waldump,
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

struct Bench {
    root: tempfile::TempDir,
    binaries: Binaries,
    known: Known,
    identity: Option<(u32, u32)>,
    cancel: CancellationToken,
}

/// One running server; ends with the value.
struct Server<'a> {
    bench: &'a Bench,
    conf: ConfDir,
    port: u16,
    child: Option<tokio::process::Child>,
}

const PASSWORD: &str = "it's \\ a:secret";

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Bench {
    async fn new() -> Self {
        let identity = nix::unistd::geteuid().is_root().then(|| {
            let user = nix::unistd::User::from_name("postgres")
                .unwrap()
                .expect("user postgres exists");
            (user.uid.as_raw(), user.gid.as_raw())
        });
        let root = tempfile::tempdir().unwrap();
        if let Some((uid, gid)) = identity {
            chown(root.path(), Some(uid), Some(gid)).unwrap();
        }
        let cancel = CancellationToken::new();
        let binaries = Binaries::find(None, &cancel).await.unwrap();
        let known = Known::ask(&binaries, identity, &cancel).await.unwrap();
        Self {
            root,
            binaries,
            known,
            identity,
            cancel,
        }
    }

    fn user(&self) -> Option<u32> {
        self.identity.map(|(uid, _)| uid)
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn login(&self) -> Login {
        Login::new("admin user", PASSWORD)
    }

    /// A password file for a server.
    fn passfile(&self, name: &str, host: &str, port: u16) -> PathBuf {
        let path = self.dir(name);
        let port = port.to_string();
        let login = self.login();
        pgpass::write(
            &path,
            &[pgpass::Entry {
                host,
                port: &port,
                login: &login,
            }],
        )
        .unwrap();
        path
    }

    async fn initdb(&self, name: &str) -> PathBuf {
        let data = self.dir(name);
        assert_eq!(classify(&data, self.user()), DataDir::Empty);
        let staging = Staging::prepare(&data).unwrap();
        let superuser = self.login();
        let input = initdb::Input {
            dir: staging.dir(),
            superuser: &superuser,
            options: &Value::Null,
            args: &[],
            identity: self.identity,
        };
        let started = Instant::now();
        initdb::run(&self.binaries, &input, &self.cancel).await.unwrap();
        staging.install(OldData::KeepRenamed, "T").unwrap();
        eprintln!("initdb, sync and swap: {:?}", started.elapsed());
        assert_eq!(
            classify(&data, self.user()),
            DataDir::Valid(self.binaries.major())
        );
        data
    }

    /// Writes the configuration and starts a server.
    async fn start(&self, data: &Path, follow: Option<&Follow<'_>>) -> Server<'_> {
        let conf = ConfDir::new(data);
        let port = free_port();
        let control = control::read(&self.binaries, data, self.identity, &self.cancel)
            .await
            .unwrap()
            .control;
        let dynamic = json!({"max_connections": 50, "wal_keep_size": "64MB"});
        let local = json!({"shared_buffers": "32MB", "log_line_prefix": "it's %m \\|", "nonsense": 1, "fsync": "off"});
        let effective = effective(&Input {
            major: self.binaries.major(),
            scope: "demo",
            listen_addresses: "127.0.0.1",
            port,
            socket_dir: self.root.path().to_str(),
            dynamic: dynamic.as_object().unwrap(),
            local: local.as_object().unwrap(),
            forced: &[],
            slot_wal_limit: None,
            known: &self.known,
            replica_of: follow.is_some().then_some(&control),
        });
        assert_eq!(effective.warnings.len(), 1, "{:?}", effective.warnings);
        let recovery = follow.map(|follow| recovery_settings(self.binaries.major(), follow));
        conf.adopt_base().unwrap();
        conf.restore_missing().unwrap();
        let (hba_file, ident_file) = (conf.hba(), conf.ident());
        let frame = Frame {
            include: &conf.include(),
            hba_file: hba_file.to_str().unwrap(),
            ident_file: ident_file.to_str().unwrap(),
            recovery: recovery.as_ref(),
        };
        conf.write(&conf.main(), &render_postgresql_conf(&frame, &effective))
            .unwrap();
        conf.write(
            &hba_file,
            &hba::render(&hba::default_lines("admin user", false, &[])).unwrap(),
        )
        .unwrap();
        conf.strip_auto_conf(&[]).unwrap();
        conf.set_standby(follow.is_some()).unwrap();
        let mut command = tokio::process::Command::new(self.binaries.path("postgres"));
        command
            .arg("-D")
            .arg(data)
            .arg(format!("--config-file={}", conf.main().display()))
            .args(postmaster_args(&effective));
        if let Some((uid, gid)) = self.identity {
            command.uid(uid).gid(gid);
        }
        let log = fs::File::create(self.dir(&format!("log-{port}"))).unwrap();
        let child = command
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let server = Server {
            bench: self,
            conf,
            port,
            child: Some(child),
        };
        server.wait_for("SELECT 1", "1").await;
        server.conf.backup().unwrap();
        server
    }
}

impl Server<'_> {
    async fn sql(&self, sql: &str) -> Result<String, command::Error> {
        let bench = self.bench;
        let socket = bench.root.path().to_str().unwrap();
        let passfile = bench.passfile(&format!("pgpass-{}", self.port), socket, self.port);
        let dsn = Conninfo::new()
            .with("host", socket)
            .with("port", self.port.to_string())
            .with("user", "admin user")
            .with("dbname", "postgres");
        let command = bench
            .binaries
            .command("psql")
            .arg(dsn.dsn(bench.binaries.major()))
            .args(["-XAtqw", "-v", "ON_ERROR_STOP=1"]);
        let command = command
            .env("PGPASSFILE", passfile)
            .identity(bench.identity)
            .stdin(sql)
            .capture()
            .deadline(Duration::from_secs(20));
        Ok(command.run(&bench.cancel).await?.stdout.trim().to_owned())
    }

    async fn wait_for(&self, sql: &str, expected: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let found = self.sql(sql).await;
            if found.as_deref().is_ok_and(|found| found == expected) {
                return;
            }
            let log =
                || fs::read_to_string(self.bench.dir(&format!("log-{}", self.port))).unwrap_or_default();
            assert!(Instant::now() < deadline, "{sql} gave {found:?}\n{}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn stop(mut self, signal: nix::sys::signal::Signal) -> ConfDir {
        let mut child = self.child.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().unwrap().cast_signed());
        nix::sys::signal::kill(pid, signal).unwrap();
        tokio::time::timeout(Duration::from_secs(30), child.wait())
            .await
            .expect("stops in time")
            .unwrap();
        self.conf.clone()
    }

    fn conninfo(&self) -> Conninfo {
        let passfile = self
            .bench
            .passfile(&format!("pgpass-tcp-{}", self.port), "127.0.0.1", self.port);
        if let Some((uid, gid)) = self.bench.identity {
            chown(&passfile, Some(uid), Some(gid)).unwrap();
        }
        Conninfo::new()
            .with("host", "127.0.0.1")
            .with("port", self.port.to_string())
            .with("user", "admin user")
            .with("passfile", passfile.to_str().unwrap())
            .with("application_name", "pg-2")
    }

    /// A replica of this server in the named directory, over whatever is there.
    async fn clone_to(&self, name: &str) -> PathBuf {
        let bench = self.bench;
        let data = bench.dir(name);
        let staging = Staging::prepare(&data).unwrap();
        let (sender, receiver) = watch::channel(clone::Progress::default());
        let source = self.conninfo();
        let passfile = PathBuf::from(source.get("passfile").unwrap());
        let input = clone::Input {
            source: &source,
            passfile: &passfile,
            options: &Value::Null,
            tablespaces: &[],
            attempts: 1,
            stall: Duration::from_secs(60),
            identity: bench.identity,
        };
        clone::run(&bench.binaries, &staging, &input, &sender, &bench.cancel)
            .await
            .unwrap();
        assert!(receiver.borrow().done_bytes > 1 << 20, "{:?}", receiver.borrow());
        staging.install(OldData::KeepRenamed, "T").unwrap();
        data
    }
}

#[tokio::test]
async fn a_new_cluster_a_streaming_copy_and_a_rewind() {
    let bench = Bench::new().await;
    let data = bench.initdb("one").await;
    let primary = bench.start(&data, None).await;
    for (name, expected) in [
        ("max_connections", "50"),
        ("wal_keep_size", "64MB"),
        ("data_checksums", "on"),
        ("wal_level", "replica"),
        ("log_line_prefix", "it's %m \\|"),
        ("cluster_name", "demo"),
        ("password_encryption", "scram-sha-256"),
    ] {
        assert_eq!(
            primary.sql(&format!("SHOW {name}")).await.unwrap(),
            expected,
            "{name}"
        );
    }

    // Roles: created, then altered; the log never sees the passwords.
    for _ in 0..2 {
        let rewinder = Login::new("rewind'er", "top \\ 's3cret $howdah$");
        let sql = [
            roles::SILENCE,
            &roles::superuser(&bench.login()),
            &roles::replication(&Login::new("repl", "x")),
            &roles::rewind(&rewinder),
            roles::UNSILENCE,
        ]
        .join(";\n");
        primary.sql(&sql).await.unwrap();
    }
    assert_eq!(
        primary
            .sql("SELECT count(*) FROM pg_authid WHERE rolpassword LIKE 'SCRAM%'")
            .await
            .unwrap(),
        "3"
    );
    primary
        .sql(&roles::create_database("app db", Some("admin user")))
        .await
        .unwrap();
    assert!(
        !fs::read_to_string(bench.dir(&format!("log-{}", primary.port)))
            .unwrap()
            .contains("s3cret")
    );

    // A replica that streams.
    let replica_dir = primary.clone_to("two").await;
    primary
        .sql("SELECT pg_create_physical_replication_slot('pg_2')")
        .await
        .unwrap();
    let source = primary
        .conninfo()
        .with_replication_defaults(bench.binaries.major());
    let follow = Follow {
        primary: Some(&source),
        slot: Some("pg_2"),
        ..Follow::default()
    };
    let replica = bench.start(&replica_dir, Some(&follow)).await;
    primary
        .wait_for(
            "SELECT application_name || ' ' || state FROM pg_stat_replication",
            "pg-2 streaming",
        )
        .await;
    primary.sql("CREATE TABLE t AS SELECT 1 AS x").await.unwrap();
    replica.wait_for("SELECT x FROM t", "1").await;

    // Promote it; the old primary writes on for a while, so it diverges, and stops cleanly.
    replica.sql("SELECT pg_promote()").await.unwrap();
    replica
        .sql("CREATE TABLE u AS SELECT 2 AS x; CHECKPOINT")
        .await
        .unwrap();
    primary.sql("INSERT INTO t VALUES (3)").await.unwrap();
    let conf = primary.stop(nix::sys::signal::Signal::SIGINT).await;
    let file = control::read(&bench.binaries, &data, bench.identity, &bench.cancel)
        .await
        .unwrap();
    assert_eq!(file.control.state, DbState::ShutDown);
    let record = waldump::record_at(
        &bench.binaries,
        &data,
        file.control.timeline,
        file.control.checkpoint,
        bench.identity,
        &bench.cancel,
    )
    .await
    .unwrap();
    assert!(
        record.description.starts_with("CHECKPOINT_SHUTDOWN"),
        "{record:?}"
    );
    let end = waldump::record_end(record.lsn, record.total_bytes, file.wal_segment_bytes).unwrap();
    assert_eq!(
        end.0 - record.lsn.0,
        120,
        "a checkpoint record that did not cross a page"
    );

    // Rewind it; its own configuration survives.
    assert_eq!(rewind::can_rewind(&file.control, true), Ok(()));
    let before = fs::read_to_string(conf.main()).unwrap();
    let source = replica.conninfo();
    let passfile = PathBuf::from(source.get("passfile").unwrap());
    let input = rewind::Input {
        conf: &conf,
        source: &source,
        passfile: &passfile,
        has_restore_command: false,
        options: &Value::Null,
        deadline: Duration::from_secs(60),
        identity: bench.identity,
    };
    let outcome = rewind::run(&bench.binaries, &input, &bench.cancel).await.unwrap();
    assert_eq!(outcome, rewind::Outcome::Done);
    assert_eq!(fs::read_to_string(conf.main()).unwrap(), before);
    let source = source
        .with("application_name", "pg-1")
        .with_replication_defaults(bench.binaries.major());
    let follow = Follow {
        primary: Some(&source),
        ..Follow::default()
    };
    let rewound = bench.start(&data, Some(&follow)).await;
    rewound.wait_for("SELECT x FROM u", "2").await;
    assert_eq!(rewound.sql("SELECT count(*) FROM t").await.unwrap(), "1");

    // Killed hard it needs crash recovery first, and then there is nothing to rewind.
    let conf = rewound.stop(nix::sys::signal::Signal::SIGQUIT).await;
    let state = control::read(&bench.binaries, &data, bench.identity, &bench.cancel)
        .await
        .unwrap()
        .control
        .state;
    assert!(rewind::needs_crash_recovery(state), "{state:?}");
    replica.stop(nix::sys::signal::Signal::SIGINT).await;

    // A damaged control file is told as such.
    fs::write(conf.data_dir.join("global/pg_control"), vec![7; 8192]).unwrap();
    let error = control::read(&bench.binaries, &data, bench.identity, &bench.cancel)
        .await
        .unwrap_err();
    assert!(error.is_damage(), "{error:?}");
}

#[tokio::test]
async fn a_crashed_primary_recovers_in_single_user_mode() {
    let bench = Bench::new().await;
    let data = bench.initdb("one").await;
    let primary = bench.start(&data, None).await;
    primary.sql("CREATE TABLE t AS SELECT 1 AS x").await.unwrap();
    let conf = primary.stop(nix::sys::signal::Signal::SIGQUIT).await;
    conf.set_standby(true).unwrap();
    let args = [format!("--config-file={}", conf.main().display())];
    // The pid of the crashed postmaster belongs to somebody else now.
    let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let pid = i32::try_from(other.id()).unwrap();
    fs::write(
        data.join("postmaster.pid"),
        format!("{pid}\n{}\n1\n", data.display()),
    )
    .unwrap();
    if let Some((uid, gid)) = bench.identity {
        chown(data.join("postmaster.pid"), Some(uid), Some(gid)).unwrap();
    }
    let mut recovery = rewind::Recovery {
        conf: &conf,
        args: &args,
        stranger: None,
        deadline: Duration::from_secs(60),
        identity: bench.identity,
    };
    if bench.identity.is_none() {
        // Root's sleep is not visible to the user postgres as a rival.
        let refused = rewind::crash_recovery(&bench.binaries, &recovery, &bench.cancel).await;
        assert!(refused.is_err(), "{refused:?}");
    }
    recovery.stranger = Some(pid);
    let recovered = rewind::crash_recovery(&bench.binaries, &recovery, &bench.cancel).await;
    other.kill().unwrap();
    other.wait().unwrap();
    recovered.unwrap();
    let control = control::read(&bench.binaries, &data, bench.identity, &bench.cancel)
        .await
        .unwrap()
        .control;
    assert_eq!(control.state, DbState::ShutDown);
}

#[tokio::test]
async fn init_scripts_run_against_the_new_cluster() {
    let bench = Bench::new().await;
    let data = bench.initdb("one").await;
    let primary = bench.start(&data, None).await;
    let scripts = bench.dir("scripts");
    fs::create_dir(&scripts).unwrap();
    fs::write(scripts.join("1.sql"), "CREATE TABLE t (x int);").unwrap();
    let mut gz = flate2::write::GzEncoder::new(
        fs::File::create(scripts.join("2.sql.gz")).unwrap(),
        flate2::Compression::fast(),
    );
    std::io::Write::write_all(&mut gz, b"INSERT INTO t VALUES (2);").unwrap();
    gz.finish().unwrap();
    fs::write(scripts.join("3.sh"), "psql -v ON_ERROR_STOP=1 --username \"$POSTGRES_USER\" --dbname \"$POSTGRES_DB\" <<-EOSQL\nINSERT INTO t VALUES (3);\nEOSQL\n").unwrap();
    let socket = bench.root.path().to_str().unwrap();
    let passfile = bench.passfile("pgpass-scripts", socket, primary.port);
    let context = initscripts::Context {
        socket_dir: socket,
        port: primary.port,
        user: "admin user",
        database: "postgres",
        data_dir: &data,
        passfile: &passfile,
        identity: bench.identity,
    };
    assert_eq!(
        initscripts::run_all(&bench.binaries, &scripts, &context, &bench.cancel)
            .await
            .unwrap(),
        3
    );
    assert_eq!(primary.sql("SELECT sum(x) FROM t").await.unwrap(), "5");
    fs::write(scripts.join("4.sql"), "SELECT 1/0;").unwrap();
    let error = initscripts::run_all(&bench.binaries, &scripts, &context, &bench.cancel)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("1.sql"),
        "the table exists already: {error}"
    );
}

#[tokio::test]
async fn a_user_without_a_name_is_told_so_by_initdb() {
    let bench = Bench::new().await;
    if bench.identity.is_none() {
        return;
    }
    let data = bench.dir("one");
    let staging = Staging::prepare(&data).unwrap();
    chown(staging.dir(), Some(47_110), Some(47_110)).unwrap();
    fs::set_permissions(
        bench.root.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let superuser = bench.login();
    let input = initdb::Input {
        dir: staging.dir(),
        superuser: &superuser,
        options: &Value::Null,
        args: &[],
        identity: Some((47_110, 47_110)),
    };
    match initdb::run(&bench.binaries, &input, &bench.cancel).await {
        Ok(()) => assert!(
            staging.dir().join("PG_VERSION").exists(),
            "the wrapper library did its work"
        ),
        Err(error) => {
            let initdb::Error::Run { source, .. } = &error else {
                panic!("{error:?}")
            };
            assert!(
                source.tail().contains("could not look up effective user ID"),
                "{error:?}"
            );
        }
    }
    let left: Vec<_> = fs::read_dir(bench.root.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["one.howdah-new"], "no password file stays");
}
