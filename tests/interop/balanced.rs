//! HAProxy in front of a Howdah cluster, with the checks that Patroni's template has.

use std::{
    collections::BTreeSet,
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    SOON,
    ctl::Three,
    node::{free_port, wait_for},
    seat::{Seat, query},
};

/// Patroni's template, with its own times; only `*` became loopback.
const HEAD: &str = "
global
    maxconn 100

defaults
    log global
    mode tcp
    retries 2
    timeout client 30m
    timeout connect 4s
    timeout server 30m
    timeout check 5s
";

/// A section with a check of its own for all members.
fn listen(name: &str, port: u16, check: &str, seats: &[Seat]) -> String {
    let servers = seats.iter().map(|seat| {
        let (name, pg, api) = (&seat.name, seat.pg_port, seat.api_port);
        format!("    server {name} 127.0.0.1:{pg} maxconn 100 check port {api}\n")
    });
    format!(
        "
listen {name}
    bind 127.0.0.1:{port}
    option httpchk{check}
    http-check expect status 200
    default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions
{}",
        servers.collect::<String>()
    )
}

struct Haproxy {
    child: Child,
    /// Checks `/` by OPTIONS, as `option httpchk` alone does.
    plain: u16,
    /// Checks `/primary` by OPTIONS.
    write: u16,
    /// Checks `/replica` by HEAD.
    read: u16,
}

impl Haproxy {
    fn start(seats: &[Seat], folder: &std::path::Path) -> Self {
        let [plain, write, read] = [(); 3].map(|()| free_port());
        let config = [
            HEAD.to_owned(),
            listen("batman", plain, "", seats),
            listen("primary", write, " OPTIONS /primary", seats),
            listen("replicas", read, " HEAD /replica", seats),
        ];
        let file = folder.join("haproxy.cfg");
        fs::write(&file, config.concat()).expect("write haproxy.cfg");
        let log = fs::File::create(folder.join("haproxy.log")).expect("create a log");
        // Debian keeps it where only root looks.
        let path = format!(
            "{}:/usr/sbin:/usr/local/sbin",
            std::env::var("PATH").unwrap_or_default()
        );
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "haproxy", "-db", "-f"])
            .arg(file)
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("clone the log"))
            .stderr(log)
            .spawn()
            .expect("start haproxy");
        Self {
            child,
            plain,
            write,
            read,
        }
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes through this port until it reaches `leader`, and nobody else.
async fn writes_reach(port: u16, leader: &Seat) {
    let insert = "INSERT INTO t VALUES (1) RETURNING inet_server_port()::text";
    wait_for(&format!("a write to reach {}", leader.name), SOON, async || {
        let reached = query(port, insert).await?;
        if reached == leader.pg_port.to_string() {
            Ok(())
        } else {
            Err(reached)
        }
    })
    .await;
}

/// Sessions through this port reach all of these in turn, and nobody else.
async fn reads_reach(port: u16, replicas: &[Seat]) {
    let expected: BTreeSet<String> = replicas
        .iter()
        .map(|seat| format!("{} t", seat.pg_port))
        .collect();
    wait_for("sessions to be spread over the replicas", SOON, async || {
        let mut reached = BTreeSet::new();
        for _ in 0..6 {
            let place = "SELECT inet_server_port() || ' ' || left(pg_is_in_recovery()::text, 1)";
            reached.insert(query(port, place).await?);
        }
        if reached == expected {
            Ok(())
        } else {
            Err(format!("{reached:?}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_sends_writes_to_the_primary_and_reads_to_the_replicas_through_changes() {
    let mut three = Three::start().await;
    let seats = three.healthy().await;
    seats[0].sql("CREATE TABLE t (x int)").await.expect("create");
    let haproxy = Haproxy::start(&three.seats(), three.folder());
    let ports = [haproxy.plain, haproxy.write];
    for port in ports {
        writes_reach(port, &seats[0]).await;
    }
    reads_reach(haproxy.read, &seats[1..]).await;

    // A planned change.
    seats[1].switchover(&seats[0], &seats[1]).await;
    let seats = three.healthy().await;
    for port in ports {
        writes_reach(port, &seats[0]).await;
    }
    reads_reach(haproxy.read, &seats[1..]).await;

    // A dead leader.
    let (old, index) = (seats[0].clone(), three.index(&seats[0]));
    three.nodes[index].kill_node();
    let new = wait_for("another leader", Duration::from_secs(20), async || {
        for seat in &seats[1..] {
            if let (200, _) = seat.get("/primary").await? {
                return Ok(seat.clone());
            }
        }
        Err("none".to_owned())
    })
    .await;
    for port in ports {
        writes_reach(port, &new).await;
    }
    let rest: Vec<Seat> = seats[1..]
        .iter()
        .filter(|seat| seat.name != new.name)
        .cloned()
        .collect();
    reads_reach(haproxy.read, &rest).await;
    three.nodes[index].start();
    old.wait_streaming(SOON).await;
    reads_reach(haproxy.read, &[rest[0].clone(), old]).await;
    writes_reach(haproxy.write, &new).await;
}
