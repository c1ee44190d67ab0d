//! What a member is given and cannot use: each time a message that names the thing and the fix, an exit status that
//! says which kind it is, and nothing deleted.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::unistd::geteuid;

use crate::{
    Cluster, Etcd, SOON, TTL,
    node::{self, Node, always, code, own, wait_for},
};

fn base() -> tempfile::TempDir {
    let base = tempfile::Builder::new()
        .prefix("howdah-")
        .tempdir()
        .expect("a directory");
    mode(base.path(), 0o755);
    base
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// Starts it and waits for its end: exit status and what it has logged since.
async fn refused(node: &mut Node) -> (i32, String) {
    let _old = fs::remove_file(node.log_path());
    node.start();
    let exit = node.wait_exit(SOON).await;
    (code(exit), node.log())
}

fn check_names(what: &str, log: &str, words: &[&str]) {
    for word in words {
        assert!(log.contains(word), "{what}: '{word}' is not named in: {log}");
    }
}

/// Every path below, with the size of files.
fn tree(dir: &Path) -> BTreeSet<(PathBuf, u64)> {
    let mut found = BTreeSet::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let meta = entry.metadata().expect("look");
            found.insert((entry.path(), if meta.is_dir() { 0 } else { meta.len() }));
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    found
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("list").flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_cannot_work_are_named_with_what_is_allowed() {
    let cluster = Cluster::start(&["pg1"]).await;
    let busy = format!("127.0.0.1:{}", cluster.nodes[0].api_port);
    let taken = format!("127.0.0.1:{}", cluster.nodes[0].pg_port);
    let endpoint = cluster.etcd.endpoint();
    let cases: [(&str, &[(&str, &str)], i32, &[&str]); 6] = [
        (
            "unknown variable",
            &[("HOWDAH_TLL", "30")],
            64,
            &["HOWDAH_TLL", "HOWDAH_TTL"],
        ),
        (
            "bad number",
            &[("HOWDAH_TTL", "soon")],
            64,
            &["HOWDAH_TTL", "soon"],
        ),
        (
            "times that do not fit",
            &[
                ("HOWDAH_TTL", "20"),
                ("HOWDAH_LOOP_WAIT", "10"),
                ("HOWDAH_RETRY_TIMEOUT", "10"),
            ],
            64,
            &["loop_wait", "retry_timeout", "ttl"],
        ),
        (
            "no password",
            &[("HOWDAH_SUPERUSER_PASSWORD", "")],
            64,
            &["POSTGRES_PASSWORD"],
        ),
        (
            "PostgreSQL's port in use",
            &[("HOWDAH_POSTGRESQL_LISTEN", &taken)],
            77,
            &[&taken, "already", "HOWDAH_POSTGRESQL_LISTEN"],
        ),
        (
            "the API's port in use",
            &[("HOWDAH_RESTAPI_LISTEN", &busy)],
            77,
            &[&busy, "already", "HOWDAH_RESTAPI_LISTEN"],
        ),
    ];
    for (what, settings, expected, words) in cases {
        let mut node = Node::new(
            cluster.base.path(),
            "bad",
            "other",
            std::slice::from_ref(&endpoint),
        );
        for (key, value) in settings {
            node.set(key, value);
        }
        let (exit, log) = refused(&mut node).await;
        assert_eq!(exit, expected, "{what}: {log}");
        check_names(what, &log, words);
        assert!(
            !node.data_dir().join("PG_VERSION").exists(),
            "{what}: nothing was created"
        );
    }
    assert!(cluster.nodes[0].sql("SELECT 1").await.is_ok(), "the others go on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_that_cannot_be_used_is_named_and_left_as_it_is() {
    let cluster = Cluster::prepare(&[]);
    let endpoint = cluster.etcd.endpoint();
    let cases: [(&str, u32, bool, Option<u32>, &[&str]); 4] = [
        ("wrong mode", 0o777, true, None, &["0700", "0777"]),
        ("no data directory", 0o700, false, None, &["notes.txt"]),
        ("unreadable", 0o000, true, None, &[]),
        ("wrong owner", 0o700, true, Some(12_345), &["12345", "chown"]),
    ];
    for (what, bits, database, owner, words) in cases {
        if owner.is_some() && !geteuid().is_root() {
            eprintln!("{what}: only root can prepare that");
            continue;
        }
        let mut node = Node::new(
            cluster.base.path(),
            "bad",
            "other",
            std::slice::from_ref(&endpoint),
        );
        let data = node.data_dir();
        let _old = fs::remove_dir_all(&data);
        fs::create_dir(&data).expect("create");
        fs::write(data.join("notes.txt"), "mine").expect("write");
        if database {
            fs::write(data.join("PG_VERSION"), "15\n").expect("write");
            fs::create_dir(data.join("global")).expect("create");
            fs::write(data.join("global/pg_control"), "x").expect("write");
        }
        own(&data);
        if let Some(owner) = owner {
            std::os::unix::fs::chown(&data, Some(owner), None).expect("chown");
        }
        mode(&data, bits);
        let before = tree(&data);
        let (exit, log) = refused(&mut node).await;
        assert_eq!(exit, 77, "{what}: {log}");
        check_names(what, &log, words);
        check_names(what, &log, &[&data.display().to_string()]);
        if geteuid().is_root() || bits != 0 {
            assert_eq!(tree(&data), before, "{what}: changed");
        }
        mode(&data, 0o700);
        assert!(data.join("notes.txt").exists(), "{what}: deleted");
        assert_eq!(
            names(&node.dir).iter().filter(|name| *name != "log").count(),
            1,
            "{what}: leftovers"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_of_another_cluster_is_refused_and_left_alone() {
    let mut cluster = Cluster::start(&["pg1"]).await;
    let other_etcd = Etcd::start();
    let mut stranger = Node::new(cluster.base.path(), "stranger", "demo", &[other_etcd.endpoint()]);
    stranger.start();
    stranger.wait_primary(SOON).await;
    stranger
        .sql("CREATE TABLE precious AS SELECT 1 AS x")
        .await
        .expect("create");
    let theirs = stranger
        .sql("SELECT system_identifier FROM pg_control_system()")
        .await
        .expect("query");
    let mine = cluster.nodes[0]
        .sql("SELECT system_identifier FROM pg_control_system()")
        .await
        .expect("query");
    assert_eq!(code(stranger.stop(SOON).await), 0);
    let before = tree(&stranger.data_dir().join("base"));
    stranger.set("HOWDAH_ETCD3_HOSTS", &cluster.etcd.endpoint());
    let (exit, log) = refused(&mut stranger).await;
    assert_eq!(exit, 65, "{log}");
    let data = stranger.data_dir().display().to_string();
    check_names("foreign data", &log, &[&theirs, &mine, &data]);
    assert_eq!(
        tree(&stranger.data_dir().join("base")),
        before,
        "the tables are as they were"
    );
    assert!(
        cluster.nodes[0].sql("SELECT 1").await.is_ok(),
        "the cluster goes on"
    );
    assert_eq!(code(cluster.nodes[0].stop(SOON).await), 0);
    // At home it is as good as before.
    stranger.set("HOWDAH_ETCD3_HOSTS", &other_etcd.endpoint()).start();
    stranger.wait_primary(SOON).await;
    assert_eq!(stranger.sql("SELECT x FROM precious").await.as_deref(), Ok("1"));
}

/// Nobody may make a new, empty cluster under the name of one whose data may only be mislaid.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_data_is_gone_but_etcd_knows_the_cluster_nobody_starts_anew() {
    let mut cluster = Cluster::start(&["pg1", "pg2"]).await;
    let leader = cluster.healthy().await;
    let id = cluster.nodes[leader]
        .sql("SELECT system_identifier FROM pg_control_system()")
        .await
        .expect("query");
    for node in &mut cluster.nodes {
        assert_eq!(code(node.stop(SOON).await), 0);
        fs::remove_dir_all(node.data_dir()).expect("remove");
        let _old = fs::remove_file(node.log_path());
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    for node in &cluster.nodes {
        wait_for("a clear line", SOON, async || {
            let log = node.log();
            let line = log
                .lines()
                .find(|line| line.contains(&id) && line.contains("waiting for a member with its data"));
            line.map(drop).ok_or(log.clone())
        })
        .await;
    }
    always("nobody leads", TTL + Duration::from_secs(2), async || {
        for node in &cluster.nodes {
            if node.data_dir().join("PG_VERSION").exists() {
                return Err(format!("{} made a new cluster", node.name));
            }
        }
        match cluster.leader_now(None).await {
            Ok(leader) => Err(format!("{} leads", cluster.nodes[leader].name)),
            Err(_) => Ok(()),
        }
    })
    .await;
    for node in &mut cluster.nodes {
        assert_eq!(
            node.get("/liveness").await.map(|(code, _)| code),
            Ok(200),
            "alive while it waits"
        );
        assert_eq!(code(node.stop(SOON).await), 0, "can be stopped while it waits");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_etcd_is_waited_for_and_said() {
    let base = base();
    let port = node::free_port();
    let mut node = Node::new(base.path(), "pg1", "demo", &[format!("127.0.0.1:{port}")]);
    node.start();
    wait_for("a clear line", SOON, async || {
        let log = node.log();
        if log.contains(&port.to_string()) && log.contains("DCS") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    assert_eq!(
        node.get("/liveness").await.map(|(code, _)| code),
        Ok(200),
        "alive while it waits"
    );
    let exit = node.stop(SOON).await;
    assert_eq!(code(exit), 0, "can be stopped while it waits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_etcd_does_not_accept_is_named() {
    let base = base();
    let etcd = Etcd::start();
    let mut client = etcd.client().await;
    client.user_add("root", "right", None).await.expect("add");
    client.role_add("root").await.expect("add");
    client.user_grant_role("root", "root").await.expect("grant");
    client.auth_enable().await.expect("enable");
    let mut node = Node::new(base.path(), "pg1", "demo", &[etcd.endpoint()]);
    node.set("HOWDAH_ETCD3_USERNAME", "root");
    for (what, password) in [("wrong", "not-that-one"), ("right", "right")] {
        node.set("HOWDAH_ETCD3_PASSWORD", password);
        if what == "right" {
            node.start();
            node.wait_primary(SOON).await;
            continue;
        }
        let (exit, log) = refused(&mut node).await;
        assert_eq!(exit, 69, "{log}");
        check_names(what, &log, &["HOWDAH_ETCD3_PASSWORD", &etcd.endpoint()]);
        assert!(!log.contains(password), "a secret in the log");
        assert!(
            !node.data_dir().join("PG_VERSION").exists(),
            "nothing was created"
        );
    }
}

/// A member with other passwords than the cluster's cannot copy, and says which setting is to be looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_the_leader_does_not_accept_is_named() {
    let mut cluster = Cluster::start(&["pg1"]).await;
    let endpoint = cluster.etcd.endpoint();
    let mut node = Node::new(cluster.base.path(), "pg2", "demo", &[endpoint]);
    node.set("HOWDAH_REPLICATION_PASSWORD", "not that one").start();
    wait_for("a clear line", SOON, async || {
        let log = node.log();
        let line = log
            .lines()
            .find(|line| line.contains("HOWDAH_REPLICATION_PASSWORD") && line.contains("replicator"));
        line.map(drop).ok_or(log.clone())
    })
    .await;
    assert!(!node.log().contains("not that one"), "a secret in the log");
    assert_eq!(
        node.get("/liveness").await.map(|(code, _)| code),
        Ok(200),
        "alive while it waits"
    );
    assert_eq!(code(node.stop(SOON).await), 0, "can be stopped while it waits");
    assert!(
        cluster.nodes[0].sql("SELECT 1").await.is_ok(),
        "the leader goes on"
    );
    // With the cluster's own, which is derived from the superuser's, it joins.
    node.env.remove("HOWDAH_REPLICATION_PASSWORD");
    node.start();
    node.wait_streaming(SOON).await;
    cluster.nodes.push(node);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_init_script_that_fails_is_named_and_leaves_no_pile_behind() {
    let base = base();
    let etcd = Etcd::start();
    let mut node = Node::new(base.path(), "pg1", "demo", &[etcd.endpoint()]);
    let scripts = node.dir.join("initdb.d");
    fs::create_dir(&scripts).expect("create");
    fs::write(scripts.join("10-good.sql"), "CREATE TABLE good (x int);").expect("write");
    fs::write(scripts.join("20-bad.sql"), "SELECT * FROM nowhere;").expect("write");
    let mut after_first = BTreeSet::new();
    for attempt in 1..=3 {
        let (exit, log) = refused(&mut node).await;
        assert_eq!(exit, 73, "attempt {attempt}: {log}");
        check_names("the script", &log, &["20-bad.sql", "nowhere"]);
        let left = names(&node.dir);
        if attempt == 1 {
            after_first = left;
        } else {
            assert!(
                left.len() <= after_first.len(),
                "attempt {attempt}: {left:?} after {after_first:?}"
            );
        }
        assert!(
            scripts.join("10-good.sql").exists(),
            "attempt {attempt}: the scripts are theirs"
        );
    }
    // With the script mended the next start makes the cluster, whole.
    fs::write(scripts.join("20-bad.sql"), "INSERT INTO good VALUES (1);").expect("write");
    node.start();
    node.wait_primary(SOON).await;
    assert_eq!(node.sql("SELECT count(*) FROM good").await.as_deref(), Ok("1"));
}

/// A small file system of its own; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, megabytes: u32) -> Self {
        fs::create_dir_all(&at).expect("create");
        let size = format!("size={megabytes}m,mode=0755");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(&at)
            .status();
        assert!(status.is_ok_and(|status| status.success()), "mount");
        own(&at);
        Self(at)
    }

    fn grow(&self, megabytes: u32) {
        let size = format!("remount,size={megabytes}m");
        let status = Command::new("mount").args(["-o", &size]).arg(&self.0).status();
        assert!(status.is_ok_and(|status| status.success()), "remount");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _gone = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_at_initdb_is_named_and_nothing_else_is_deleted() {
    if !geteuid().is_root() {
        eprintln!("only root can mount a small disk; the image ring has one, too");
        return;
    }
    let base = base();
    let etcd = Etcd::start();
    let small = Small::mount(base.path().join("small"), 8);
    let mut node = Node::new(base.path(), "pg1", "demo", &[etcd.endpoint()]);
    // Beside the data directory, as a mount point often has it.
    fs::write(small.0.join("theirs.txt"), "not ours").expect("write");
    node.set("PGDATA", &small.0.join("data").display().to_string());
    for attempt in 1..=2 {
        let (exit, log) = refused(&mut node).await;
        assert_eq!(exit, 73, "attempt {attempt}: {log}");
        check_names(
            "full disk",
            &log,
            &["disk is full", "initdb", &small.0.display().to_string()],
        );
        let left = names(&small.0);
        assert!(left.contains("theirs.txt"), "attempt {attempt}: {left:?}");
        assert!(
            left.len() <= 2,
            "attempt {attempt}: at most one leftover: {left:?}"
        );
    }
    // With room enough the next start succeeds.
    small.grow(256);
    node.start();
    node.wait_primary(SOON).await;
    assert!(small.0.join("theirs.txt").exists());
    drop(node);
}
