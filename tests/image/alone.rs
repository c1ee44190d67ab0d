//! One container by itself: `docker run -e POSTGRES_PASSWORD=… howdah` and what can be done to it.

use std::time::{Duration, Instant};

use crate::{
    SOON,
    docker::{Container, IMAGE, Volume, docker_ok},
    members::{Member, witness},
    node::{PASSWORD, wait_for},
    witness::Witness,
};

/// From `docker run` to a committed row, and from `docker stop` to its return.
const WRITABLE: Duration = Duration::from_secs(3);
const STOPPED: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alone_it_is_writable_in_three_seconds_and_keeps_its_data_through_stop_and_start() {
    // The best of three is about us; a single start may be about what else the machine does.
    let (mut member, mut best) = writable().await;
    for _ in 0..2 {
        let (another, took) = writable().await;
        (member, best) = (another, best.min(took));
    }
    assert!(best < WRITABLE, "writable after {best:?}");

    let list = member.cli(&["list"]).await;
    assert_eq!(list.code, 0, "{}", list.err);
    assert!(
        list.out.contains("Leader") && list.out.contains("running"),
        "{}",
        list.out
    );
    wait_for("the health check to pass", SOON, async || {
        match member.container.inspect("{{.State.Health.Status}}").await {
            status if status == "healthy" => Ok(()),
            status => Err(status),
        }
    })
    .await;

    let _session = member.connect().await.expect("a client that stays");
    let asked = Instant::now();
    member.container.stop().await;
    let took = asked.elapsed();
    println!("docker stop took {took:?}");
    assert!(took < STOPPED, "docker stop took {took:?}");
    assert_eq!(member.container.exit_code().await, Ok(0));

    member.container.start().await;
    member.wait_sql("SELECT x FROM t", "42").await;
    member.container.kill("KILL").await;
    assert_eq!(member.container.exit_code().await, Ok(137));
    let begun = Instant::now();
    member.container.start().await;
    wait_for("a committed row", SOON, async || {
        member.sql("INSERT INTO t VALUES (43)").await
    })
    .await;
    println!(
        "writable {:?} after docker kill and docker start",
        begun.elapsed()
    );
}

/// A new container and how long it took from `docker run` to a committed row.
async fn writable() -> (Member, Duration) {
    let begun = Instant::now();
    let member = Member::alone(&[]).await;
    wait_for("a committed row", SOON, async || {
        member
            .sql("CREATE TABLE t (x int); INSERT INTO t VALUES (42)")
            .await
    })
    .await;
    let took = begun.elapsed();
    println!("writable after {took:?}");
    (member, took)
}

/// Everything on a volume, as its path there.
async fn content(volume: &Volume) -> String {
    let mount = format!("{}:/volume", volume.name);
    let find = ["--entrypoint", "find", IMAGE, "/volume", "-mindepth", "1"];
    docker_ok(&[&["run", "--rm", "--user", "0", "--volume", &mount], &find[..]].concat()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_password_it_says_what_is_missing_and_starts_nothing() {
    let volume = Volume::create().await;
    let mount = format!("{}:/var/lib/postgresql", volume.name);
    let container = Container::run("none", &["--volume", &mount], &[IMAGE]).await;
    let code = wait_for("the end", SOON, async || container.exit_code().await).await;
    let log = container.log().await;
    assert_eq!(code, 64, "{log}");
    assert!(
        log.contains("POSTGRES_PASSWORD") && log.contains("HOWDAH_SUPERUSER_PASSWORD"),
        "{log}"
    );
    let files = docker_ok(&["diff", &container.name]).await;
    assert!(files.is_empty(), "changed in the container: {files}");
    let files = content(&volume).await;
    assert!(files.is_empty(), "made on the volume: {files}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_too_small_for_a_database_is_named_as_full() {
    let small = "/var/lib/postgresql:size=8m,uid=999,gid=0,mode=0770";
    let member = Member::alone(&["--tmpfs", small]).await;
    let code = member.wait_exit(SOON).await;
    let log = member.container.log().await;
    assert_eq!(code, 74, "{log}");
    assert!(
        log.contains("disk is full") && log.contains("/var/lib/postgresql"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_scripts_in_the_usual_folder_run_once_and_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("write");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    };
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, b"INSERT INTO story VALUES ('packed');").expect("compress");
    write("1.sql", b"CREATE TABLE story (line text, n serial);");
    write("2.sql.gz", &packed.finish().expect("compress"));
    write(
        "3.sh",
        b"#!/bin/bash\npsql -v ON_ERROR_STOP=1 -c \"INSERT INTO story VALUES ('script')\"\n",
    );
    write("4.txt", b"not for us");
    let member = Member::alone_not_started(&[]).await;
    let from = format!("{}/.", folder.path().display());
    let to = format!("{}:/docker-entrypoint-initdb.d", member.container.name);
    docker_ok(&["cp", &from, &to]).await;
    member.container.start().await;
    member.wait_primary(SOON).await;
    let story = "SELECT string_agg(line, ' ' ORDER BY n) FROM story";
    member.wait_sql(story, "packed script").await;
    member.container.stop().await;
    member.container.start().await;
    member.wait_primary(SOON).await;
    member.wait_sql(story, "packed script").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_runs_as_any_user_without_rights_and_on_a_read_only_root() {
    let everything = [
        "--user",
        "12345:0",
        "--read-only",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges:true",
    ];
    for (options, uid) in [
        (&["--read-only"][..], "999"),
        (&["--cap-drop", "ALL"], "999"),
        (&["--user", "12345:0"], "12345"),
        (&everything, "12345"),
        // Drops to postgres for good.
        (&["--user", "0"], "999"),
    ] {
        let member = Member::alone(options).await;
        wait_for(&format!("a committed row with {options:?}"), SOON, async || {
            member.sql("CREATE TABLE t (x int)").await
        })
        .await;
        let ids = member
            .container
            .exec_ok(&["grep", "^Uid:", "/proc/1/status"])
            .await;
        let ids: Vec<&str> = ids.split_whitespace().skip(1).collect();
        assert_eq!(ids, [uid; 4], "{options:?}");
        let owner = member
            .container
            .exec_ok(&["ps", "-o", "uid=", "-C", "postgres"])
            .await;
        assert!(
            owner.lines().all(|line| line.trim() == uid),
            "{options:?}: {owner}"
        );
        // Also as another user than the container's, as `docker exec -u` gives it.
        let list = member.cli(&["list"]).await;
        assert_eq!(list.code, 0, "{options:?}: {}", list.err);
        member.container.stop().await;
        assert_eq!(member.container.exit_code().await, Ok(0), "{options:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_cannot_use_the_volume_is_told_so() {
    for (options, words) in [
        (
            &["--user", "12345:12345"][..],
            &["12345", "/var/lib/postgresql", "group 0"][..],
        ),
        (
            &["--user", "0", "--cap-drop", "ALL"],
            &["/var/lib/postgresql", "CHOWN", "--user"],
        ),
    ] {
        let member = Member::alone(options).await;
        let code = member.wait_exit(SOON).await;
        let log = member.container.log().await;
        assert_eq!(code, 77, "{options:?}: {log}");
        for word in words {
            assert!(log.contains(word), "{options:?}: '{word}' is not named in: {log}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_signal_has_its_meaning_and_every_end_its_status() {
    let member = Member::alone(&[]).await;
    member.wait_primary(SOON).await;
    let agent = member.container.pid_of("agent").await.expect("an agent");
    for (signal, words) in [
        ("HUP", "reload"),
        ("USR2", "state of init"),
        ("USR1", "log level"),
    ] {
        member.container.kill(signal).await;
        member.wait_log(words).await;
    }
    // Neither a stop nor a stopped init: it would be no fence.
    for signal in ["TSTP", "CHLD", "WINCH", "ALRM", "PIPE"] {
        member.container.kill(signal).await;
    }
    member.sql("SELECT 1").await.expect("still runs");
    assert_eq!(
        member.container.pid_of("agent").await,
        Ok(agent),
        "the same agent"
    );
    for (signals, code) in [
        (&["TERM"][..], 0),
        (&["INT"], 0),
        (&["TERM", "TERM"], 0),
        // An immediate shutdown of postgres leaves no clean end; 81 says so.
        (&["QUIT"], 81),
        (&["KILL"], 137),
    ] {
        let asked = Instant::now();
        for signal in signals {
            // The first one may already have been enough.
            crate::docker::docker(&["kill", "--signal", signal, &member.container.name]).await;
        }
        assert_eq!(member.wait_exit(SOON).await, code, "{signals:?}");
        assert!(
            asked.elapsed() < STOPPED,
            "{signals:?} took {:?}",
            asked.elapsed()
        );
        member.container.start().await;
        member.wait_primary(SOON).await;
    }
}

/// Double forks, so that each grandchild loses its parent; alive for a moment, dead in any order.
const ORPHANS: &str = "for (1..10000) { my $p = fork; if (!$p) { if (!fork) { select undef, undef, undef, rand(0.1) } \
                       exit } waitpid $p, 0 }";
/// Prints how many processes there are and how many of them are zombies.
const ZOMBIES: &str = "for (glob '/proc/[0-9]*/stat') { open my $f, '<', $_ or next; $_ = <$f> // next; $n++; \
                       $z++ if /\\) Z /; $l++ if /\\(perl\\)/ } printf '%d %d %d', $n, $z // 0, ($l // 0) - 1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_orphans_leave_no_zombie_and_do_not_disturb_the_agent() {
    let member = Member::alone(&[]).await;
    member.wait_primary(SOON).await;
    let witness = witness(member.pg_port, 1).await;
    let agent = member.container.pid_of("agent").await.expect("an agent");
    let begun = Instant::now();
    member.container.exec_ok(&["perl", "-e", ORPHANS]).await;
    println!("10 000 orphans in {:?}", begun.elapsed());
    wait_for("no zombie and no orphan", Duration::from_secs(5), async || {
        let counts = member.container.exec_ok(&["perl", "-e", ZOMBIES]).await;
        match counts.split_whitespace().collect::<Vec<_>>()[..] {
            // The counting program itself is not counted.
            [all, "0", "0"] if all != "0" => Ok(()),
            _ => Err(counts),
        }
    })
    .await;
    assert_eq!(
        member.container.pid_of("agent").await,
        Ok(agent),
        "the same agent"
    );
    fresh_commit(&witness).await;
    assert_eq!(witness.sessions(), 1, "the client's session stayed open");
    let gap = witness.longest_gap(begun, Instant::now());
    println!("longest gap between commits meanwhile: {gap:?}");
    assert!(gap < Duration::from_secs(2), "commits paused for {gap:?}");
    member.container.kill("USR2").await;
    let reaped = wait_for("init's own count", SOON, async || {
        let log = member.container.log().await;
        let line = log.lines().rfind(|line| line.contains("state of init"));
        let number = line.and_then(|line| {
            line.split("reaped=")
                .nth(1)?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        });
        number.ok_or_else(|| format!("{line:?}"))
    })
    .await;
    assert!(
        (10_000..20_000_u32).contains(&reaped),
        "init has counted {reaped}"
    );
}

/// A commit that was acknowledged after this was called.
async fn fresh_commit(witness: &Witness) {
    let asked = Instant::now();
    wait_for("a fresh commit", SOON, async || match witness.last() {
        Some(ack) if ack.at > asked => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_postmaster_is_back_in_two_seconds_and_a_killed_agent_goes_unnoticed() {
    let member = Member::alone(&[]).await;
    member.wait_primary(SOON).await;
    let witness = witness(member.pg_port, 1).await;

    let agent = member.container.pid_of("agent").await.expect("an agent");
    let begun = Instant::now();
    member.container.signal(&agent, "KILL").await;
    wait_for("another agent", SOON, async || {
        match member.container.pid_of("agent").await {
            Ok(pid) if pid != agent && member.get("/primary").await?.0 == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    fresh_commit(&witness).await;
    assert_eq!(witness.sessions(), 1, "the client's session stayed open");
    let gap = witness.longest_gap(begun, Instant::now());
    println!("no commits for {gap:?} after kill -9 of the agent");
    assert!(gap < Duration::from_millis(500), "no commits for {gap:?}");
    assert!(member.container.running().await);

    let killed = Instant::now();
    let postmaster = member
        .container
        .exec_ok(&["head", "-n", "1", "/var/lib/postgresql/data/postmaster.pid"])
        .await;
    member.container.signal(&postmaster, "KILL").await;
    wait_for("a commit in a new session", SOON, async || match witness.last() {
        Some(ack) if ack.at > killed && witness.sessions() > 1 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let gap = witness.longest_gap(killed, Instant::now());
    println!("no commits for {gap:?} after kill -9 of the postmaster");
    assert!(gap < Duration::from_secs(2), "no commits for {gap:?}");
}

/// Prints the name of every process whose environment can be read, and whether the password is in it.
const ENVIRONMENTS: &str = "for (glob '/proc/[0-9]*') { open my $f, '<', \"$_/environ\" or next; local $/; my $e = <$f> // ''; \
                            open my $c, '<', \"$_/comm\" or next; my $n = <$c>; $n =~ s/[^a-z]+$//; \
                            printf \"%s %s\\n\", $n, index($e, $ARGV[0]) >= 0 ? 'yes' : 'no' }";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_process_of_postgres_or_etcd_carries_a_password_in_its_environment() {
    let member = Member::alone(&[]).await;
    member.wait_primary(SOON).await;
    let _session = member.connect().await.expect("a backend");
    let listed = member
        .container
        .exec_ok(&["perl", "-e", ENVIRONMENTS, PASSWORD])
        .await;
    let of = |name: &str| {
        listed
            .lines()
            .filter(|line| line.starts_with(name))
            .collect::<Vec<_>>()
    };
    assert!(of("postgres").len() > 5, "{listed}");
    assert_eq!(of("etcd"), ["etcd no"], "{listed}");
    assert!(
        of("postgres").iter().all(|line| *line == "postgres no"),
        "{listed}"
    );
    // The search itself works: PID 1 was given it.
    assert!(listed.contains("howdah yes"), "{listed}");
    assert!(!member.container.log().await.contains(PASSWORD));
}
