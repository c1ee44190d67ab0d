//! Clusters and replicas that are made by commands of the operator's: a bootstrap from a base backup with recovery from
//! an archive, ways to make a replica in order.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use serde_json::json;

use crate::{
    Cluster, SOON,
    node::{self, Node, code, own, wait_for},
};

const LONG: Duration = Duration::from_secs(60);

/// The folder with the programs of the PostgreSQL that the members run.
pub fn binaries() -> PathBuf {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is installed")
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let bin = entry.path().join("bin");
            bin.join("postgres").exists().then_some((number, bin))
        })
        .collect();
    versions.sort();
    versions.pop().expect("a version").1
}

fn script(dir: &Path, name: &str, text: &str) -> String {
    let file = dir.join(name);
    fs::write(&file, format!("#!/bin/sh\n{text}\n")).expect("write");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("chmod");
    file.display().to_string()
}

fn folder(base: &Path, name: &str) -> PathBuf {
    let folder = base.join(name);
    fs::create_dir(&folder).expect("a folder");
    own(&folder);
    folder
}

/// Password of the role that may copy, in clusters that tests copy from.
pub const COPY: &str = "may copy";

/// Finds `--datadir` and `--connstring` among the arguments.
const ARGUMENTS: &str = "for a in \"$@\"; do case $a in --datadir=*) dir=${a#--datadir=};; \
    --connstring=*) conn=${a#--connstring=};; esac; done";

/// A cluster that archives, a base backup of it, and three rows: 1 in the backup, 2 and 3 only in the archive, the
/// second before the restore point `here`.
async fn archived() -> (Cluster, PathBuf, PathBuf) {
    let mut source = Cluster::prepare(&["pg1"]);
    let archive = folder(source.base.path(), "archive");
    let backup = folder(source.base.path(), "backup");
    let command = format!("test -f {0}/%f || cp %p {0}/%f", archive.display());
    let parameters = json!({"archive_mode": "on", "archive_command": command});
    source.nodes[0]
        .set("HOWDAH_POSTGRESQL_PARAMETERS", &parameters.to_string())
        .set("HOWDAH_REPLICATION_PASSWORD", COPY)
        .start();
    source.healthy().await;
    let primary = &source.nodes[0];
    primary
        .sql("CREATE TABLE t (x int); INSERT INTO t VALUES (1)")
        .await
        .expect("create");
    let mut copy = Command::new(binaries().join("pg_basebackup"));
    copy.args([
        "-h",
        "127.0.0.1",
        "-U",
        "replicator",
        "-X",
        "fetch",
        "-c",
        "fast",
        "-p",
    ])
    .arg(primary.pg_port.to_string())
    .arg("-D")
    .arg(backup.join("data"))
    .env("PGPASSWORD", COPY);
    let done = copy.output().expect("pg_basebackup runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    if nix::unistd::geteuid().is_root() {
        let owned = Command::new("chown")
            .args(["-R", "postgres:postgres"])
            .arg(&backup)
            .status();
        assert!(owned.expect("chown runs").success());
    }
    primary.sql("INSERT INTO t VALUES (2)").await.expect("insert");
    primary
        .sql("SELECT pg_create_restore_point('here')")
        .await
        .expect("a point");
    primary.sql("INSERT INTO t VALUES (3)").await.expect("insert");
    let segment = primary
        .sql("SELECT pg_walfile_name(pg_switch_wal())")
        .await
        .expect("switch");
    wait_for("the archive", LONG, async || {
        if archive.join(&segment).exists() {
            Ok(())
        } else {
            Err(segment.clone())
        }
    })
    .await;
    (source, archive, backup)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_recovered_to_a_point_in_time_and_becomes_a_cluster() {
    let (mut source, archive, backup) = archived().await;
    let id = source.nodes[0]
        .sql("SELECT system_identifier FROM pg_control_system()")
        .await
        .expect("an identity");
    // The original is gone; its backup had another password, and smaller members have to do.
    source.nodes[0].stop(LONG).await;
    let base = source.base.path();
    let seen = base.join("seen");
    own(base);
    let restore = script(
        base,
        "restore.sh",
        &format!(
            "{ARGUMENTS}\necho \"$@\" > {}\nexec cp -a {}/data/. \"$dir\"",
            seen.display(),
            backup.display()
        ),
    );
    let after = script(
        base,
        "after.sh",
        &format!(
            "echo \"$@\" > {0}.after; test -f \"$PGPASSFILE\" && echo \"$PGOPTIONS\" >> {0}.after",
            seen.display()
        ),
    );
    let document = json!({
        "bootstrap": {
            "method": "copy",
            "copy": {
                "command": restore, "from": "the backup",
                "recovery_conf": {
                    "restore_command": format!("cp {}/%f %p", archive.display()),
                    "recovery_target_name": "here",
                },
            },
            "post_bootstrap": after,
            "dcs": {"postgresql": {"parameters": {"max_connections": 30}}},
        },
    });
    let endpoint = source.etcd.endpoint();
    let mut nodes: Vec<Node> = ["new1", "new2"]
        .iter()
        .map(|name| {
            let mut node = Node::new(base, name, "restored", std::slice::from_ref(&endpoint));
            node.set("HOWDAH_CONFIGURATION", &document.to_string())
                .set("HOWDAH_SUPERUSER_PASSWORD", node::PASSWORD)
                .set("HOWDAH_REPLICATION_PASSWORD", "another one");
            node
        })
        .collect();
    nodes[0].start();
    nodes[0].wait_primary(LONG).await;
    let primary = &nodes[0];
    assert_eq!(
        primary
            .sql("SELECT string_agg(x::text, ',' ORDER BY x) FROM t")
            .await
            .as_deref(),
        Ok("1,2"),
        "up to the point and no further"
    );
    assert_eq!(
        primary
            .sql("SELECT system_identifier FROM pg_control_system()")
            .await,
        Ok(id)
    );
    assert_eq!(primary.sql("SHOW hot_standby").await.as_deref(), Ok("on"));
    assert_eq!(primary.sql("SHOW recovery_target_name").await.as_deref(), Ok(""));
    assert_eq!(
        primary
            .sql("SELECT count(*) FROM pg_hba_file_rules WHERE auth_method = 'trust'")
            .await
            .as_deref(),
        Ok("0"),
        "nobody is trusted any more"
    );
    let arguments = fs::read_to_string(&seen).expect("it ran");
    assert!(
        arguments.starts_with("--scope=restored --datadir=/"),
        "{arguments}"
    );
    assert!(arguments.trim().ends_with("--from=the backup"), "{arguments}");
    let after = fs::read_to_string(base.join("seen.after")).expect("post_bootstrap ran");
    assert!(
        after.starts_with("host=") && after.contains("statement_timeout=0"),
        "{after}"
    );
    assert!(!after.contains(node::PASSWORD), "no password among the arguments");
    let log = primary.log();
    assert!(log.contains("running custom bootstrap script"), "{log}");
    assert!(log.contains("starting after custom bootstrap"), "{log}");
    // The roles have the passwords of this configuration, so a member can follow.
    nodes[1].start();
    nodes[1].wait_streaming(LONG).await;
    nodes[0].sql("INSERT INTO t VALUES (9)").await.expect("insert");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_told_nothing_works_in_the_data_directory() {
    let (mut source, archive, backup) = archived().await;
    source.nodes[0].stop(LONG).await;
    let base = source.base.path();
    own(base);
    let mut node = Node::new(base, "new1", "restored", &[source.etcd.endpoint()]);
    // It leaves its own recovery settings, as backup tools do.
    let restore = script(
        base,
        "restore.sh",
        &format!(
            "test $# = 0 || exit 7\ntest -z \"$(ls {0})\" || exit 8\ncp -a {1}/data/. {0} && touch {0}/recovery.signal && \
             echo \"restore_command = 'cp {2}/%f %p'\" >> {0}/postgresql.auto.conf",
            node.data_dir().display(),
            backup.display(),
            archive.display()
        ),
    );
    let document = json!({"bootstrap": {
        "method": "tool",
        "tool": {"command": restore, "no_params": true, "keep_existing_recovery_conf": true},
    }});
    node.set("HOWDAH_CONFIGURATION", &document.to_string()).start();
    node.wait_primary(LONG).await;
    assert_eq!(
        node.sql("SELECT string_agg(x::text, ',' ORDER BY x) FROM t")
            .await
            .as_deref(),
        Ok("1,2,3"),
        "to the end of the archive"
    );
    assert_eq!(
        node.sql("SHOW restore_command").await.as_deref(),
        Ok(""),
        "a primary restores nothing"
    );
    let left: Vec<String> = fs::read_dir(&node.dir)
        .expect("list")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("data"))
        .collect();
    assert_eq!(left, ["data"], "no marker and no side directory is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bootstrap_command_that_fails_ends_the_member_and_gives_the_claim_back() {
    let mut cluster = Cluster::prepare(&[]);
    let base = cluster.base.path().to_owned();
    own(&base);
    let endpoint = cluster.etcd.endpoint();
    let fails = script(&base, "fails.sh", "echo 'no such backup' >&2; exit 3");
    let document = json!({"bootstrap": {"method": "copy", "copy": {"command": fails}}});
    let mut node = Node::new(&base, "bad", "demo", std::slice::from_ref(&endpoint));
    node.set("HOWDAH_CONFIGURATION", &document.to_string());
    for _ in 0..2 {
        node.start();
        let exit = node.wait_exit(LONG).await;
        assert_eq!(code(exit), 73);
        assert!(node.log().contains("no such backup"), "{}", node.log());
        assert!(!node.data_dir().join("PG_VERSION").exists());
    }
    // Nothing of it keeps another member from making the cluster.
    let mut good = Node::new(&base, "good", "demo", std::slice::from_ref(&endpoint));
    good.start();
    good.wait_primary(LONG).await;
    cluster.nodes.push(good);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ways_to_make_a_replica_are_tried_in_order() {
    let cluster = Cluster::start(&["pg1"]).await;
    let base = cluster.base.path();
    own(base);
    let seen = base.join("seen");
    let fails = script(
        base,
        "fails.sh",
        &format!("echo \"first $@\" >> {}; exit 1", seen.display()),
    );
    let works = script(
        base,
        "works.sh",
        &format!(
            "{ARGUMENTS}\necho \"second $@\" >> {}\nexec {}/pg_basebackup -d \"$conn\" -X stream -c fast -D \"$dir\"",
            seen.display(),
            binaries().display()
        ),
    );
    let never = script(
        base,
        "never.sh",
        &format!("echo third >> {}; exit 1", seen.display()),
    );
    let document = json!({"postgresql": {
        "create_replica_methods": ["one", "two", "three"],
        "one": {"command": fails},
        "two": {"command": works, "speed": "high"},
        "three": {"command": never},
    }});
    let mut node = Node::new(base, "pg2", "demo", &[cluster.etcd.endpoint()]);
    node.set("HOWDAH_CONFIGURATION", &document.to_string()).start();
    node.wait_streaming(LONG).await;
    let ran = fs::read_to_string(&seen).expect("they ran");
    let lines: Vec<&str> = ran.lines().collect();
    assert_eq!(lines.len(), 2, "{ran}");
    assert!(
        lines[0].starts_with("first --scope=demo --role=replica --datadir=/"),
        "{ran}"
    );
    assert!(
        lines[1].starts_with("second --speed=high --scope=demo --role=replica --datadir=/"),
        "{ran}"
    );
    assert!(
        !lines[1].contains(&format!("--datadir={} ", node.data_dir().display())),
        "a side directory: {ran}"
    );
    assert!(!ran.contains("password="), "{ran}");

    // From the leader means by pg_basebackup, whatever is configured.
    let (status, text) = node
        .request("POST", "/reinitialize", json!({"from_leader": true}))
        .await
        .expect("POST");
    assert_eq!(status, 200, "{text}");
    wait_for("a new copy", LONG, async || {
        let log = node.log();
        if log.matches("done job=\"clone\"").count() == 2 {
            Ok(())
        } else {
            Err(format!("{} copies", log.matches("done job=\"clone\"").count()))
        }
    })
    .await;
    node.wait_streaming(LONG).await;
    assert_eq!(
        fs::read_to_string(&seen).expect("there"),
        ran,
        "no command ran again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_another_cluster_is_never_put_in_place() {
    let mut cluster = Cluster::start(&["pg1"]).await;
    let base = cluster.base.path().to_owned();
    own(&base);
    let endpoint = cluster.etcd.endpoint();
    let mut foreign = Node::new(&base, "other", "foreign", std::slice::from_ref(&endpoint));
    foreign.set("HOWDAH_REPLICATION_PASSWORD", COPY).start();
    foreign.wait_primary(LONG).await;
    let wrong = script(
        &base,
        "wrong.sh",
        &format!(
            "{ARGUMENTS}\nexport PGPASSWORD='{}'\nexec {}/pg_basebackup -h 127.0.0.1 -p {} -U replicator -X stream -c fast -D \
             \"$dir\"",
            COPY,
            binaries().display(),
            foreign.pg_port
        ),
    );
    let document = json!({"postgresql": {
        "create_replica_methods": ["wrong", "basebackup"], "wrong": {"command": wrong},
    }});
    let mut node = Node::new(&base, "pg2", "demo", std::slice::from_ref(&endpoint));
    node.set("HOWDAH_CONFIGURATION", &document.to_string()).start();
    node.wait_streaming(LONG).await;
    assert!(node.log().contains("data of another cluster"), "{}", node.log());
    cluster.nodes.push(node);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_made_without_a_leader_from_a_backup() {
    let (mut source, _archive, backup) = archived().await;
    let exit = source.nodes[0].stop(LONG).await;
    assert_eq!(code(exit), 0);
    let base = source.base.path();
    own(base);
    let fetch = script(
        base,
        "fetch.sh",
        &format!("{ARGUMENTS}\nexec cp -a {}/data/. \"$dir\"", backup.display()),
    );
    let document = json!({"postgresql": {
        "create_replica_methods": ["fetch", "basebackup"], "fetch": {"command": fetch, "no_leader": true},
    }});
    let mut node = Node::new(base, "pg2", "demo", &[source.etcd.endpoint()]);
    node.set("HOWDAH_CONFIGURATION", &document.to_string())
        .set("HOWDAH_REPLICATION_PASSWORD", COPY)
        .start();
    wait_for("a replica from the backup", LONG, async || {
        match node.role().await?.as_str() {
            "replica/running" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    // With the leader's return it follows.
    source.nodes[0].start();
    source.nodes[0].wait_primary(LONG).await;
    node.wait_streaming(LONG).await;
    wait_for("the rows after the backup", LONG, async || {
        let rows = node.sql("SELECT max(x) FROM t").await?;
        if rows == "3" { Ok(()) } else { Err(rows) }
    })
    .await;
    assert_eq!(node.log().matches("begins job=\"restore\"").count(), 1);
}

/// Killed containers leave it behind, and where pids are few another program has the pid soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lock_file_of_a_socket_whose_server_is_gone_does_not_keep_a_new_one_from_starting() {
    let mut cluster = Cluster::prepare(&["pg1"]);
    let (sockets, further) = (cluster.base.path().join("s1"), cluster.base.path().join("s2"));
    let node = &mut cluster.nodes[0];
    // Of the same user as postgres: of another one PostgreSQL knows that it is no server.
    let mut stranger = as_postgres("sleep", "600");
    let lock = |dir: &Path| dir.join(format!(".s.PGSQL.{}.lock", node.pg_port));
    for dir in [&sockets, &further] {
        fs::create_dir(dir).expect("a folder");
        fs::write(
            lock(dir),
            format!("{}\n/gone\n1767600001\n{}\n", stranger.id(), node.pg_port),
        )
        .expect("a lock");
        own(dir);
    }
    let dirs = format!("{}, {}", sockets.display(), further.display());
    let parameters = format!("{{unix_socket_directories: '{dirs}'}}");
    node.set("HOWDAH_POSTGRESQL_PARAMETERS", &parameters).start();
    node.wait_primary(SOON).await;
    let spared = stranger.try_wait().expect("wait").is_none();
    stranger.kill().expect("kill");
    stranger.wait().expect("wait");
    assert!(spared, "the stranger must not be touched");
}

fn as_postgres(program: &str, argument: &str) -> Child {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new(program);
    command.arg(argument);
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres")
            .expect("users")
            .expect("user postgres");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.spawn().expect("a process")
}
