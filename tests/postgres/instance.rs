//! The instance as jobs use it, against the installed PostgreSQL. PostgreSQL refuses root, and the instance always runs as
//! its user: started as root, each test runs itself again as user `postgres`.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use howdah::{
    agent::instance::{Instance, PromoteFailed, Settings},
    config::Callbacks,
    ha::{Failure, Source, StartAs, Upstream},
    model::{Dynamic, Timeline, parse_history_file},
    postgres::{
        binaries::Binaries,
        guc::Known,
        login::Login,
        postmaster::{Home, Postmaster, StopLadder, StopMode},
        query::Where,
    },
};
use serde_json::{Map, Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

const S: Duration = Duration::from_secs(1);
const LADDER: StopLadder = StopLadder {
    smart: S,
    fast: Duration::from_secs(20),
    immediate: Duration::from_secs(4),
};

/// Runs the named test as user `postgres` if we are root; true if that has been done.
fn handed_to_postgres(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        return false;
    }
    let user = nix::unistd::User::from_name("postgres")
        .unwrap()
        .expect("user postgres exists");
    // The program may lie where that user cannot go.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let status = Command::new(program)
        .args(["--exact", &format!("instance::{test}"), "--nocapture"])
        .uid(user.uid.as_raw())
        .gid(user.gid.as_raw())
        .current_dir("/")
        .env("HOME", "/nonexistent")
        .env_remove("NEXTEST")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    true
}

fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = u16::try_from(std::process::id() % 1500).unwrap() * 8;
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let candidates = (0..1000).map(|_| 18_000 + (base + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000);
    candidates.into_iter().find(is_free).unwrap()
}

/// A member; its server ends with it.
struct Member {
    instance: Instance,
    settings: Settings,
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(pid) = self.instance.postmaster().state().pid() {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT);
        }
    }
}

fn settings(root: &Path, name: &str) -> Settings {
    let account = |name: &str| howdah::agent::instance::Account {
        login: Login::new(name, format!("{name}'s secret")),
        options: std::collections::BTreeMap::new(),
    };
    let data_dir = root.join(name);
    Settings {
        member: name.into(),
        scope: "demo".into(),
        listen_addresses: "127.0.0.1".into(),
        port: free_port(),
        socket_dir: root.to_owned(),
        further_socket_dirs: vec![],
        config_dir: data_dir.clone(),
        data_dir,
        config_base_name: "postgresql".into(),
        custom_conf: None,
        passfile: root.join(format!("{name}.pgpass")),
        database: "app".into(),
        superuser: account("admin"),
        replication: account("replicator"),
        rewind: account("rewinder"),
        krbsrvname: None,
        parameters: json!({"fsync": "off", "shared_buffers": "16MB"})
            .as_object()
            .unwrap()
            .clone(),
        pg_hba: Vec::new(),
        bootstrap_pg_hba: Vec::new(),
        pg_ident: Vec::new(),
        by_role: std::collections::BTreeMap::new(),
        recovery_conf: Map::new(),
        bootstrap_method: None,
        initdb: Vec::new(),
        create_replica_methods: Vec::new(),
        method_sections: Map::new(),
        basebackup: Vec::new(),
        rewind_args: Vec::new(),
        create_database: "shop".into(),
        scripts_dir: root.join("none"),
        post_bootstrap: None,
        callbacks: Callbacks::default(),
        pre_promote: None,
        before_stop: None,
        bin_names: std::collections::BTreeMap::new(),
        child_env: vec![("PATH".into(), "/usr/bin:/bin".into())],
    }
}

impl Member {
    async fn new(settings: Settings) -> Self {
        let cancel = CancellationToken::new();
        let binaries = Binaries::find(None, &cancel).await.unwrap();
        let known = Known::ask(&binaries, None, &cancel).await.unwrap();
        let postmaster = Postmaster::own(Home {
            data_dir: settings.data_dir.clone(),
            run_as: None,
        })
        .unwrap();
        Self {
            instance: Instance::new(settings.clone(), binaries, known, postmaster),
            settings,
        }
    }

    async fn bootstrapped(settings: Settings) -> Self {
        let member = Self::new(settings).await;
        let (progress, dynamic) = (watch::Sender::new(None), dynamic(json!({})));
        let cancel = CancellationToken::new();
        member
            .instance
            .bootstrap(&dynamic, &progress, &cancel)
            .await
            .unwrap();
        member
    }

    async fn start(&self, start_as: StartAs, dynamic: &Dynamic) -> Result<(), Failure> {
        self.instance
            .start(&start_as, dynamic, 30 * S, &CancellationToken::new())
            .await
    }

    async fn stop(&self) {
        self.instance.stop(StopMode::Fast, LADDER).await.unwrap();
    }

    async fn sql(&self, sql: &str) -> String {
        let answer = self.instance.monitor().execute(sql, 5 * S).await.unwrap();
        answer.unwrap_or_default()
    }

    async fn wait_for(&self, sql: &str, expected: &str) {
        let deadline = Instant::now() + 20 * S;
        loop {
            let found = self.instance.monitor().execute(sql, 5 * S).await;
            if matches!(&found, Ok(Some(found)) if found == expected) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{sql} gave {found:?} instead of {expected}"
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn upstream(&self) -> Upstream {
        Upstream {
            member: self.settings.member.clone(),
            host: "127.0.0.1".into(),
            port: self.settings.port,
            source: Source::Member,
        }
    }

    /// A replica of this member that streams.
    async fn replica(&self, settings: Settings) -> Self {
        let replica = Self::new(settings).await;
        self.instance
            .create_slot(&replica.settings.member.slot())
            .await
            .unwrap();
        let progress = watch::Sender::new(None);
        let (from, dynamic) = (self.upstream(), dynamic(json!({})));
        let cancel = CancellationToken::new();
        let copy = replica
            .instance
            .copy_from(&from, false, &dynamic, &progress, &cancel);
        copy.await.unwrap();
        replica
            .start(StartAs::Replica(Some(from)), &dynamic)
            .await
            .unwrap();
        replica
            .wait_for(
                "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'",
                "1",
            )
            .await;
        replica
    }
}

/// What a signalled server does with its files it does a moment later.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + 20 * S;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited for {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

fn dynamic(document: Value) -> Dynamic {
    Dynamic::from_map(document.as_object().unwrap())
}

fn parameters(parameters: Value) -> Dynamic {
    dynamic(json!({"postgresql": {"parameters": parameters}}))
}

fn placeholders(data_dir: &Path) -> Vec<PathBuf> {
    let list = fs::read_dir(data_dir.join("pg_wal"))
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    list.filter(|path| fs::read_to_string(path).is_ok_and(|text| text.starts_with("# reserved")))
        .collect()
}

#[tokio::test]
async fn values_postgres_refuses_never_keep_it_from_running() {
    if handed_to_postgres("values_postgres_refuses_never_keep_it_from_running") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let member = Member::bootstrapped(settings(root.path(), "pg1")).await;
    member
        .start(StartAs::Primary, &parameters(json!({"work_mem": "8MB"})))
        .await
        .unwrap();
    // Roles, both databases and the rewind role's functions are there.
    assert_eq!(member.sql("SELECT current_database()").await, "app");
    assert_eq!(
        member
            .sql("SELECT count(*) FROM pg_database WHERE datname IN ('app', 'shop')")
            .await,
        "2"
    );
    let granted = "SELECT has_function_privilege('rewinder', 'pg_read_binary_file(text)', 'execute')";
    assert_eq!(member.sql(granted).await, "t");

    let bad = parameters(json!({
        "work_mem": "32Mb", "log_checkpoints": "perhaps", "deadlock_timeout": "5s",
        "unix_socket_directories": "", "recovery_prefetch": "sometimes"
    }));
    member.instance.apply(&bad).await.unwrap();
    member.wait_for("SHOW deadlock_timeout", "5s").await;
    assert_eq!(member.sql("SHOW work_mem").await, "8MB");
    member.stop().await;
    member.start(StartAs::Primary, &bad).await.unwrap();
    assert_eq!(member.sql("SHOW deadlock_timeout").await, "5s");
    assert_ne!(member.sql("SHOW work_mem").await, "32MB");
    member.stop().await;

    // What is wrong in the user's own file cannot be corrected, but it is named, and not as damage.
    let base = member.settings.data_dir.join("postgresql.base.conf");
    let good = fs::read_to_string(&base).unwrap();
    fs::write(&base, format!("{good}\nmaintenance_work_mem = 'lots'\n")).unwrap();
    let error = member.start(StartAs::Primary, &bad).await.unwrap_err();
    assert!(
        matches!(&error, Failure::Configuration(why) if why.contains("maintenance_work_mem")),
        "{error:?}"
    );
    fs::write(&base, good).unwrap();
    // Nor is a port that somebody else has taken meanwhile.
    let stranger = std::net::TcpListener::bind(("127.0.0.1", member.settings.port)).unwrap();
    let error = member.start(StartAs::Primary, &bad).await.unwrap_err();
    assert!(
        matches!(&error, Failure::Configuration(why) if why.contains(&member.settings.port.to_string())),
        "{error:?}"
    );
    drop(stranger);

    // Hosts only: the agent still sees its server. A mode PostgreSQL refuses is put right.
    let hba = json!({"postgresql": {"pg_hba": ["host all all 127.0.0.1/32 scram-sha-256"]}});
    fs::set_permissions(&member.settings.data_dir, fs::Permissions::from_mode(0o770)).unwrap();
    member.start(StartAs::Primary, &dynamic(hba)).await.unwrap();
    assert!(member.instance.monitor().observe(5 * S).await.is_ok());

    // A changed password reaches the monitor.
    member.sql("ALTER ROLE admin PASSWORD 'new'").await;
    let mut changed = member.settings.clone();
    changed.superuser.login = Login::new("admin", "new");
    member
        .instance
        .reload(changed, &dynamic(json!({})))
        .await
        .unwrap();
    assert_eq!(member.sql("SELECT 1").await, "1");
    member.stop().await;
}

#[tokio::test]
async fn a_promotion_skips_timelines_in_use_and_the_crashed_primary_comes_back() {
    if handed_to_postgres("a_promotion_skips_timelines_in_use_and_the_crashed_primary_comes_back") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let cancel = CancellationToken::new();
    let (heard, gate) = (root.path().join("heard"), root.path().join("gate"));
    let first = Member::bootstrapped(settings(root.path(), "pg1")).await;
    first.start(StartAs::Primary, &dynamic(json!({}))).await.unwrap();
    let callback = format!("sh -c 'echo \"$@\" >> {}' callback", heard.display());
    let second = Settings {
        callbacks: Callbacks {
            on_start: Some(callback.clone()),
            on_role_change: Some(callback.clone()),
            on_stop: Some(callback),
            ..Callbacks::default()
        },
        pre_promote: Some(format!("test -e {}", gate.display())),
        ..settings(root.path(), "pg2")
    };
    let second = first.replica(second).await;
    first.sql("CREATE TABLE public.t AS SELECT 1 AS x").await;
    second.wait_for("SELECT x FROM public.t", "1").await;

    let history = parse_history_file("1\t0/100\tr\n2\t0/200\tr\n4\t0/300\tr\n");
    second.instance.reserve_timelines(&Some(history)).unwrap();
    let refused = second.instance.promote(20 * S, &cancel).await.unwrap_err();
    assert!(
        matches!(&refused, PromoteFailed::NotRequested(Failure::Vetoed(why)) if why.contains("pre_promote")),
        "{refused:?}"
    );
    assert!(placeholders(&second.settings.data_dir).is_empty());

    fs::write(&gate, "").unwrap();
    first.instance.postmaster().kill_everything().await.unwrap();
    second.instance.promote(20 * S, &cancel).await.unwrap();
    let view = second.instance.monitor().observe(5 * S).await.unwrap();
    assert!(
        matches!(&view.place, Where::Primary(primary) if primary.timeline == Timeline(6)),
        "{view:?}"
    );
    // They stay: a replica on timeline 1 will ask for each of them.
    assert_eq!(placeholders(&second.settings.data_dir).len(), 4);
    let (rows, _) = second.instance.history(Timeline(6));
    assert_eq!(rows.iter().map(|row| row.timeline.0).collect::<Vec<_>>(), [1]);

    // It was killed and has lost its pid to somebody else; what it wrote last is not in the new history.
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    let pid_file = first.settings.data_dir.join("postmaster.pid");
    fs::write(
        pid_file,
        format!("{}\n{}\n1\n", other.id(), first.settings.data_dir.display()),
    )
    .unwrap();
    let to = second.upstream();
    let rewound = first.instance.rewind(&to, &dynamic(json!({})), &cancel).await;
    other.kill().unwrap();
    other.wait().unwrap();
    rewound.unwrap();
    second.instance.create_slot("pg1").await.unwrap();
    first
        .start(StartAs::Replica(Some(to)), &dynamic(json!({})))
        .await
        .unwrap();
    second.sql("INSERT INTO public.t VALUES (2)").await;
    first.wait_for("SELECT sum(x) FROM public.t", "3").await;

    // A placeholder left by a crash does not keep a replica from starting.
    first.stop().await;
    fs::write(
        first.settings.data_dir.join("pg_wal/00000009.history"),
        "# reserved by howdah\n",
    )
    .unwrap();
    first
        .start(StartAs::Replica(Some(second.upstream())), &dynamic(json!({})))
        .await
        .unwrap();
    first.wait_for("SELECT sum(x) FROM public.t", "3").await;

    second.instance.settle_callbacks(5 * S).await;
    second.stop().await;
    second.instance.settle_callbacks(5 * S).await;
    let heard = fs::read_to_string(heard).unwrap();
    assert_eq!(
        heard,
        "on_start replica demo\non_role_change primary demo\non_stop primary demo\n"
    );
    first.stop().await;
}

#[tokio::test]
async fn a_copy_with_tablespaces_replaces_one_that_has_them() {
    if handed_to_postgres("a_copy_with_tablespaces_replaces_one_that_has_them") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (space, wal) = (root.path().join("space"), root.path().join("wal"));
    fs::create_dir(&space).unwrap();
    let first = Member::bootstrapped(settings(root.path(), "pg1")).await;
    first.start(StartAs::Primary, &dynamic(json!({}))).await.unwrap();
    first
        .sql(&format!("CREATE TABLESPACE s LOCATION '{}'", space.display()))
        .await;
    first
        .sql("CREATE TABLE public.t TABLESPACE s AS SELECT 1 AS x")
        .await;
    // The source uses that place on this very host, so the copies need another one.
    let mine = root.path().join("mine");
    let mapping = format!("tablespace-mapping={}={}", space.display(), mine.display());
    let second = Settings {
        basebackup: vec![mapping, format!("waldir={}", wal.display())],
        ..settings(root.path(), "pg2")
    };
    let second = first.replica(second).await;
    second.wait_for("SELECT x FROM public.t", "1").await;
    for (state, kept) in [("a former replica", false), ("a former primary", true)] {
        if kept {
            second
                .instance
                .promote(20 * S, &CancellationToken::new())
                .await
                .unwrap();
        }
        second.stop().await;
        let (progress, nothing) = (watch::Sender::new(None), dynamic(json!({})));
        let (from, cancel) = (first.upstream(), CancellationToken::new());
        second
            .instance
            .copy_from(&from, kept, &nothing, &progress, &cancel)
            .await
            .unwrap();
        let names: Vec<String> = fs::read_dir(root.path())
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        let with = |begin: &str| names.iter().filter(|name| name.starts_with(begin)).count();
        let expected = if kept { 2 } else { 1 };
        assert_eq!(
            (with("mine"), with("wal")),
            (expected, expected),
            "{state}: {names:?}"
        );
        second
            .start(StartAs::Replica(Some(from)), &nothing)
            .await
            .unwrap();
        second.wait_for("SELECT x FROM public.t", "1").await;
        assert_eq!(
            second
                .sql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 's'")
                .await,
            mine.display().to_string()
        );
    }
    second.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn nothing_is_rewound_to_a_leader_that_is_no_primary() {
    if handed_to_postgres("nothing_is_rewound_to_a_leader_that_is_no_primary") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let first = Member::bootstrapped(settings(root.path(), "pg1")).await;
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let nobody = Upstream {
        member: "pg9".into(),
        host: "127.0.0.1".into(),
        port: free_port(),
        source: Source::Member,
    };
    tokio::spawn(async move {
        sleep(S).await;
        stop.cancel();
    });
    let begun = Instant::now();
    let error = first
        .instance
        .rewind(&nobody, &dynamic(json!({})), &cancel)
        .await
        .unwrap_err();
    assert!(error.proves_nothing(), "{error:?}");
    assert!(begun.elapsed() < 10 * S && !first.instance.standby_signal());
}

fn openssl(dir: &Path, args: &str) -> bool {
    let done = Command::new("openssl")
        .args(args.split(' '))
        .current_dir(dir)
        .output();
    done.is_ok_and(|output| {
        assert!(
            output.status.success(),
            "openssl {args}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        true
    })
}

#[tokio::test]
async fn the_leader_is_reached_over_tls_as_the_options_say() {
    if handed_to_postgres("the_leader_is_reached_over_tls_as_the_options_say") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    fs::write(dir.join("san"), "subjectAltName=DNS:localhost\n").unwrap();
    for args in [
        "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.crt -subj /CN=ca",
        "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=pg",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile san -out server.crt",
        "req -newkey rsa:2048 -nodes -keyout client.key -out client.csr -subj /CN=rewinder",
        "x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile san -out client.crt",
        "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout other.key -out other.crt -subj /CN=other",
    ] {
        assert!(openssl(dir, args), "openssl {args}: is the program installed?");
    }
    fs::set_permissions(dir.join("server.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let file = |name: &str| dir.join(name).display().to_string();
    let ssl = json!({
        "ssl": "on", "ssl_cert_file": file("server.crt"), "ssl_key_file": file("server.key"), "ssl_ca_file": file("ca.crt")
    });
    let with_hba = |line: &str| dynamic(json!({"postgresql": {"parameters": ssl.clone(), "pg_hba": [line]}}));
    let first = Member::bootstrapped(settings(dir, "pg1")).await;
    let hostssl = with_hba("hostssl all all 127.0.0.1/32 scram-sha-256");
    first.start(StartAs::Primary, &hostssl).await.unwrap();

    let probe = async |host: &str, options: &[(&str, String)]| {
        let mut settings = settings(dir, "pg2");
        settings.rewind.options = options
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.clone()))
            .collect();
        let member = Member::new(settings).await;
        let to = Upstream {
            host: host.to_owned(),
            ..first.upstream()
        };
        member
            .instance
            .probe(&to, 5 * S)
            .await
            .map(|probe| probe.timeline)
    };
    let ok = Ok(Timeline(1));
    let mode = |mode: &str| ("sslmode", mode.to_owned());
    let root_file = |name: &str| ("sslrootcert", file(name));
    assert_eq!(probe("127.0.0.1", &[]).await, ok, "prefer");
    assert_eq!(probe("127.0.0.1", &[mode("require")]).await, ok);
    assert!(probe("127.0.0.1", &[mode("disable")]).await.is_err());
    assert_eq!(
        probe("127.0.0.1", &[mode("verify-ca"), root_file("ca.crt")]).await,
        ok
    );
    assert_eq!(
        probe("127.0.0.1", &[mode("verify-ca"), root_file("server.crt")]).await,
        ok,
        "pinned"
    );
    assert!(
        probe("127.0.0.1", &[mode("verify-ca"), root_file("other.crt")])
            .await
            .is_err()
    );
    assert!(
        probe("127.0.0.1", &[mode("verify-full"), root_file("ca.crt")])
            .await
            .is_err(),
        "the name"
    );
    assert_eq!(
        probe("localhost", &[mode("verify-full"), root_file("ca.crt")]).await,
        ok
    );

    // A certificate instead of a password.
    first
        .instance
        .apply(&with_hba("hostssl all all 127.0.0.1/32 cert"))
        .await
        .unwrap();
    let certificate = [
        mode("require"),
        ("sslcert", file("client.crt")),
        ("sslkey", file("client.key")),
    ];
    until("a certificate to be asked for", async || {
        probe("127.0.0.1", &[mode("require")]).await.is_err()
    })
    .await;
    assert_eq!(probe("127.0.0.1", &certificate).await, ok);

    // Only without TLS: prefer falls back, require does not.
    first
        .instance
        .apply(&with_hba("hostnossl all all 127.0.0.1/32 scram-sha-256"))
        .await
        .unwrap();
    until("a connection without TLS to be let in", async || {
        probe("127.0.0.1", &[]).await == ok
    })
    .await;
    assert!(probe("127.0.0.1", &[mode("require")]).await.is_err());
    first.stop().await;
}
