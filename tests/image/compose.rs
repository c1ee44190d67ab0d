//! `compose/up` and `compose/down` as a newcomer runs them, in projects of the test's own.
//!
//! Container names and ports are those of the real thing, so a cluster that is up already makes these tests fail;
//! its data is not touched.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    SOON,
    docker::{Done, docker_ok, run},
    node::wait_for,
};

/// Above the scripts' own limits, so that it is they who say what is wrong.
const UP: Duration = Duration::from_secs(200);
const WARM: Duration = Duration::from_secs(30);
/// A prefix of its own, so that nobody's data is touched.
const PROJECT: &str = "HOWDAH_PROJECT=howdah-test";
/// Takes the image as it is; without it `up` builds first, as it does for everybody.
const BUILT: &str = "HOWDAH_IMAGE=howdah:latest";
/// What an operator does about a killed leader is waited for with the ttl of the defaults, 30 s.
const TTL: Duration = Duration::from_secs(30);

/// As a newcomer calls it, but for the project.
async fn script(name: &str, arguments: &[&str]) -> Done {
    call(name, &["--unset=HOWDAH_IMAGE"], arguments).await
}

async fn call(name: &str, settings: &[&str], arguments: &[&str]) -> Done {
    let path = format!("{}/compose/{name}", env!("CARGO_MANIFEST_DIR"));
    let unset = of_the_test_runner();
    let unset: Vec<&str> = unset.iter().map(String::as_str).collect();
    run(
        "env",
        &[&unset, settings, &[PROJECT, &*path], arguments].concat(),
        UP,
    )
    .await
}

/// What cargo and nextest set for a test and a newcomer's shell does not have. Build scripts of our dependencies
/// look at some of it, so that a cargo below us would compile half of them again.
fn of_the_test_runner() -> Vec<String> {
    let theirs = |name: &str| {
        let kept = ["CARGO_HOME", "CARGO_TARGET_DIR"].contains(&name);
        !kept
            && ["CARGO", "NEXTEST", "__CARGO", "LD_LIBRARY_PATH"]
                .iter()
                .any(|start| name.starts_with(start))
    };
    let names = std::env::vars().map(|(name, _)| name);
    names
        .filter(|name| theirs(name))
        .map(|name| format!("--unset={name}"))
        .collect()
}

/// The same again when everything is there: a few seconds.
async fn up_warm(arguments: &[&str]) -> Done {
    let begun = Instant::now();
    let done = script("up", arguments).await;
    let took = begun.elapsed();
    println!("compose/up {arguments:?}, warm: {took:?}");
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    assert!(took < WARM, "the warm run took {took:?}");
    done
}

/// Ends the cluster and deletes its data: what a killed run has left at the beginning, our own at the end.
struct Down;

impl Down {
    fn first() -> Self {
        assert!(Self::down(), "compose/down failed");
        Self
    }

    fn down() -> bool {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/compose/down");
        let done = Command::new("env").args([PROJECT, path, "--volumes"]).output();
        done.is_ok_and(|done| done.status.success())
    }
}

impl Drop for Down {
    fn drop(&mut self) {
        assert!(Self::down() || std::thread::panicking(), "compose/down failed");
    }
}

/// Ids of this project's containers; whatever else runs here is none of our business.
async fn containers(mode: &str) -> String {
    let filter = format!("label=com.docker.compose.project=howdah-test-{mode}");
    docker_ok(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter]).await
}

/// The first value that `sql` gives on a port of loopback, with the password that compose/up made.
async fn sql(port: u16, sql: &str) -> Result<String, String> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/compose/secrets/superuser_password.txt"
    );
    let password = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let connect = tokio_postgres::Config::new()
        .host("127.0.0.1")
        .port(port)
        .user("postgres")
        .password(password.trim())
        .dbname("postgres")
        .connect_timeout(Duration::from_secs(2))
        .connect(tokio_postgres::NoTls)
        .await;
    let (client, connection) = connect.map_err(|error| format!("{error:?}"))?;
    tokio::spawn(connection);
    let answer = client
        .simple_query(sql)
        .await
        .map_err(|error| format!("{error:?}"))?;
    let first = answer.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    });
    Ok(first.unwrap_or_default())
}

async fn wait_sql(port: u16, query: &str, expected: &str) {
    wait_for(
        &format!("{query} on port {port}"),
        SOON + TTL,
        async || match sql(port, query).await? {
            value if value == expected => Ok(()),
            value => Err(value),
        },
    )
    .await;
}

/// Name of the leader in the table that compose/up prints.
fn leader(table: &str) -> String {
    let row = table.lines().find(|line| line.contains("| Leader "));
    let name = row.and_then(|row| row.split('|').nth(1)).map(str::trim);
    name.unwrap_or_else(|| panic!("no leader in:\n{table}"))
        .to_owned()
}

/// Up, up again, and what the output promises.
async fn up_twice(mode: &str) -> String {
    let begun = Instant::now();
    let first = call("up", &[BUILT], &[mode]).await;
    println!("compose/up {mode}: {:?}", begun.elapsed());
    assert_eq!(first.code, 0, "{}{}", first.out, first.err);
    assert_eq!(first.out.matches("| streaming ").count(), 2, "{}", first.out);
    for words in ["docker kill", "PGPASSWORD", "/cluster", "compose/down"] {
        assert!(
            first.out.contains(words),
            "'{words}' is missing in:\n{}",
            first.out
        );
    }
    let ids = containers(mode).await;
    assert!(ids.lines().count() >= 3, "{ids}");
    let second = up_warm(&[mode]).await;
    assert_eq!(leader(&second.out), leader(&first.out), "nothing changed");
    assert_eq!(containers(mode).await, ids, "the same containers");
    leader(&second.out)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compose_up_brings_three_members_that_survive_what_it_suggests_to_try() {
    let _down = Down::first();
    let old = up_twice("embedded").await;
    let port = |name: &str| match name {
        "pg1" => 5432,
        "pg2" => 5433,
        _ => 5434,
    };
    sql(port(&old), "CREATE TABLE t AS SELECT 7 AS x")
        .await
        .expect("write on the leader");
    let other = if old == "pg1" { "pg2" } else { "pg1" };
    wait_sql(port(other), "SELECT x FROM t", "7").await;

    docker_ok(&["kill", &old]).await;
    let killed = Instant::now();
    let new = wait_for("another leader", TTL + SOON, async || {
        for name in ["pg1", "pg2", "pg3"].into_iter().filter(|name| *name != old) {
            if sql(port(name), "SELECT pg_is_in_recovery()").await.as_deref() == Ok("f") {
                return Ok(name);
            }
        }
        Err("none".to_owned())
    })
    .await;
    let took = killed.elapsed();
    println!("docker kill with the default ttl of 30 s: a new leader after {took:?}");
    assert!(took < TTL + Duration::from_secs(2), "a new leader took {took:?}");
    docker_ok(&["start", &old]).await;
    wait_sql(port(&old), "SELECT pg_is_in_recovery() AND x = 7 FROM t", "t").await;
    let again = up_warm(&[]).await;
    assert_eq!(leader(&again.out), new);

    // How the containers are run is no secret to those inside, the passwords are.
    let environment = docker_ok(&["inspect", "--format", "{{json .Config.Env}}", new]).await;
    let password = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/compose/secrets/superuser_password.txt"
    );
    let password = std::fs::read_to_string(password).expect("the password");
    assert!(
        !environment.contains(password.trim()),
        "a password in the environment"
    );

    // The other variant has the same names and ports.
    let refused = script("up", &["etcd"]).await;
    assert_ne!(refused.code, 0);
    assert!(refused.err.contains("./compose/down"), "{}", refused.err);

    let down = script("down", &[]).await;
    assert_eq!(down.code, 0, "{}", down.err);
    let back = up_warm(&[]).await;
    assert_eq!(
        sql(port(&leader(&back.out)), "SELECT x FROM t").await.as_deref(),
        Ok("7"),
        "the data stayed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compose_up_etcd_reads_and_writes_through_haproxy() {
    let _down = Down::first();
    up_twice("etcd").await;
    wait_sql(5000, "SELECT pg_is_in_recovery()", "f").await;
    sql(5000, "CREATE TABLE t AS SELECT 7 AS x")
        .await
        .expect("write through HAProxy");
    wait_sql(5001, "SELECT pg_is_in_recovery() AND x = 7 FROM t", "t").await;
    // All replicas are used.
    let mut seen = std::collections::BTreeSet::new();
    wait_for("both replicas to be used", SOON, async || {
        seen.insert(sql(5001, "SELECT host(inet_server_addr())").await?);
        if seen.len() == 2 {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await;
    let primary = sql(5000, "SELECT host(inet_server_addr())")
        .await
        .expect("an address");
    assert!(!seen.contains(&primary), "the leader serves no reads on 5001");
}
