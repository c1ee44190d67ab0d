//! Embedded mode with real etcd children: quick start, crash, adoption by the next agent, three peers, a lost disk.
#![allow(
    clippy::disallowed_methods,
    reason = "tests: waits poll a condition with a deadline, and temporary data is removed"
)]
#![cfg(feature = "etcd")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use howdah::dcs::{
    Dcs, Key, Lock, When,
    embedded::{Embedded, Options, Peer},
    etcd,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::time::sleep;

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn peers(names: &[&str]) -> Vec<Peer> {
    let list: Vec<String> = names
        .iter()
        .map(|name| format!("{name}=127.0.0.1:{}:{}", free_port(), free_port()))
        .collect();
    Peer::parse_list(&list.join(",")).unwrap()
}

fn options(dir: &Path, peers: &[Peer], name: &str) -> Options {
    Options {
        program: "etcd".into(),
        data_dir: dir.join(name),
        peers: peers.to_vec(),
        name: name.into(),
        listen: "127.0.0.1".into(),
        token: "demo".into(),
    }
}

fn client(endpoints: &[String], name: &str) -> etcd::Etcd {
    patient_client(endpoints, name, Duration::from_secs(5))
}

fn patient_client(endpoints: &[String], name: &str, retry_timeout: Duration) -> etcd::Etcd {
    etcd::Etcd::new(etcd::Options {
        endpoints: endpoints.to_vec(),
        protocol: etcd::Protocol::Http,
        username: None,
        password: None,
        cacert: None,
        cert: None,
        key: None,
        namespace: "service".into(),
        scope: "demo".into(),
        name: name.into(),
        ttl: Duration::from_secs(10),
        retry_timeout,
    })
    .unwrap()
}

fn pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

/// Kills what a failing test leaves: adopted processes are nobody's children.
struct Reaper(Vec<u32>);

impl Drop for Reaper {
    fn drop(&mut self) {
        for id in &self.0 {
            let _ = kill_process(pid(*id), Signal::KILL);
        }
    }
}

async fn writable(dcs: &dyn Dcs, limit: Duration) -> Duration {
    let started = Instant::now();
    loop {
        match dcs.write(Key::Status, "1", When::Always).await {
            Ok(_) => return started.elapsed(),
            Err(error) => assert!(started.elapsed() < limit, "{error}"),
        }
    }
}

async fn until(what: &str, limit: Duration, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < limit, "{what} did not happen");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_cluster_of_one_is_writable_within_a_second_and_stops_by_itself() {
    let mut best = Duration::MAX;
    // The best of three is about etcd and us; a single start may be about what else the machine does.
    for _ in 0..3 {
        best = best.min(start_and_stop_twice().await);
    }
    assert!(best < Duration::from_secs(1), "{best:?}");
}

/// The slower of a new member's first start and its second.
async fn start_and_stop_twice() -> Duration {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path(), &peers(&["pg1"]), "pg1");
    let mut slower = Duration::ZERO;
    for run in ["first", "second"] {
        let started = Instant::now();
        let etcd = Embedded::start(options.clone()).await.unwrap();
        let _reaper = Reaper(vec![etcd.pid().unwrap()]);
        let dcs = client(etcd.endpoints(), "pg1");
        writable(&dcs, Duration::from_secs(5)).await;
        println!("{run} start: writable after {:?}", started.elapsed());
        slower = slower.max(started.elapsed());
        assert!(matches!(dcs.acquire().await.unwrap(), Lock::Held(_)));
        dcs.release(None).await.unwrap();
        let mode = std::fs::metadata(&options.data_dir).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let started = Instant::now();
        assert!(etcd.stop(Duration::from_secs(5)).await);
        println!("{run} stop: {:?}", started.elapsed());
    }
    slower
}

#[tokio::test]
async fn a_killed_etcd_is_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Embedded::start(options(dir.path(), &peers(&["pg1"]), "pg1"))
        .await
        .unwrap();
    let dcs = client(etcd.endpoints(), "pg1");
    writable(&dcs, Duration::from_secs(5)).await;
    let first = etcd.pid().unwrap();
    kill_process(pid(first), Signal::KILL).unwrap();
    until("a new etcd", Duration::from_secs(3), || {
        etcd.pid().is_some_and(|pid| pid != first)
    })
    .await;
    let _reaper = Reaper(vec![etcd.pid().unwrap()]);
    println!(
        "writable {:?} after the new start",
        writable(&dcs, Duration::from_secs(5)).await
    );
    assert_eq!(dcs.cluster().await.unwrap().status.optime.0, 1);
    assert!(etcd.stop(Duration::from_secs(5)).await);
}

/// The agent's sudden death: its runtime and handles vanish without a drop that could tell etcd.
async fn abandon(options: Options) -> u32 {
    let pid = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let etcd = runtime.block_on(Embedded::start(options)).unwrap();
        let pid = etcd.pid().unwrap();
        std::mem::forget(etcd);
        runtime.shutdown_background();
        pid
    });
    tokio::task::spawn_blocking(|| pid.join().unwrap()).await.unwrap()
}

#[tokio::test]
async fn the_next_agent_adopts_the_running_etcd_and_can_stop_it() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path(), &peers(&["pg1"]), "pg1");
    let old = abandon(options.clone()).await;
    let reaper = Reaper(vec![old]);
    let etcd = Embedded::start(options.clone()).await.unwrap();
    assert_eq!((etcd.pid(), etcd.adopted()), (Some(old), true));
    let dcs = client(etcd.endpoints(), "pg1");
    writable(&dcs, Duration::from_secs(5)).await;
    // Its end is noticed although it is not our child.
    kill_process(pid(old), Signal::KILL).unwrap();
    until("a new etcd", Duration::from_secs(3), || {
        etcd.pid().is_some_and(|pid| pid != old)
    })
    .await;
    assert!(!etcd.adopted());
    drop(reaper);
    let new = etcd.pid().unwrap();
    assert!(etcd.stop(Duration::from_secs(5)).await);
    assert!(test_kill_process(pid(new)).is_err());
}

#[tokio::test]
async fn an_etcd_with_other_flags_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), &peers(&["pg1"]), "pg1");
    let old = abandon(options.clone()).await;
    let _reaper = Reaper(vec![old]);
    options.peers[0].client_port = free_port();
    let etcd = Embedded::start(options).await.unwrap();
    assert_ne!(etcd.pid(), Some(old));
    let dcs = client(etcd.endpoints(), "pg1");
    writable(&dcs, Duration::from_secs(5)).await;
    assert!(etcd.stop(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn three_peers_survive_a_loss_and_take_back_a_member_without_its_disk() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let dir = tempfile::tempdir().unwrap();
    let names = ["pg1", "pg2", "pg3"];
    let peers = peers(&names);
    let started = Instant::now();
    let mut members = vec![];
    for name in names {
        members.push(Embedded::start(options(dir.path(), &peers, name)).await.unwrap());
    }
    let _reaper = Reaper(members.iter().filter_map(Embedded::pid).collect());
    let dcs = client(members[0].endpoints(), "pg1");
    writable(&dcs, Duration::from_secs(20)).await;
    println!("three peers: writable after {:?}", started.elapsed());
    assert!(matches!(dcs.acquire().await.unwrap(), Lock::Held(_)));

    // The local etcd is gone: the client goes on with the others.
    let first = members.remove(0);
    assert!(first.stop(Duration::from_secs(5)).await);
    let started = Instant::now();
    while dcs.renew().await.is_err() {
        assert!(started.elapsed() < Duration::from_secs(10), "not renewed");
    }
    println!(
        "three peers: renewed {:?} after the loss of one",
        started.elapsed()
    );

    // It comes back without its disk.
    std::fs::remove_dir_all(dir.path().join("pg1").join("data")).unwrap();
    let first = Embedded::start(options(dir.path(), &peers, "pg1")).await.unwrap();
    let limit = Duration::from_secs(20);
    until("being accepted by the peers", limit, || first.pid().is_some()).await;
    let _second_reaper = Reaper(first.pid().into_iter().collect());
    let own = client(&first.endpoints()[..1], "pg1");
    writable(&own, Duration::from_secs(20)).await;
    assert!(own.cluster().await.unwrap().leader.is_some());

    // And is a full voter again: one of the others may go.
    assert!(members.remove(0).stop(Duration::from_secs(5)).await);
    writable(&own, Duration::from_secs(20)).await;
}

async fn members_of(etcd: &Embedded) -> Vec<String> {
    let mut admin = etcd_client::Client::connect([&etcd.endpoints()[0]], None)
        .await
        .unwrap();
    let listed = admin.member_list().await.unwrap();
    let mut names: Vec<String> = listed
        .members()
        .iter()
        .map(|member| member.name().to_owned())
        .collect();
    names.sort();
    names
}

/// Each by nothing but being started with another list of peers.
#[tokio::test]
async fn a_cluster_of_one_grows_to_three_and_a_lost_member_is_replaced_by_another() {
    let dir = tempfile::tempdir().unwrap();
    let all = peers(&["pg1", "pg2", "pg3", "pg4"]);
    // As by default: whoever is alone is reached by nobody, and so at another address.
    let alone = Peer {
        peer_port: free_port(),
        ..all[0].clone()
    };
    let first = Embedded::start(options(dir.path(), &[alone], "pg1"))
        .await
        .unwrap();
    let dcs = client(first.endpoints(), "pg1");
    writable(&dcs, Duration::from_secs(5)).await;
    assert!(matches!(dcs.acquire().await.unwrap(), Lock::Held(_)));
    assert!(first.stop(Duration::from_secs(5)).await);

    let limit = Duration::from_secs(40);
    let mut running = vec![];
    let mut reapers = vec![];
    for name in ["pg1", "pg2", "pg3"] {
        let etcd = Embedded::start(options(dir.path(), &all[..3], name))
            .await
            .unwrap();
        until("being accepted by the peers", limit, || etcd.pid().is_some()).await;
        reapers.push(Reaper(etcd.pid().into_iter().collect()));
        let own = client(&etcd.endpoints()[..1], name);
        writable(&own, limit).await;
        let leader = own.cluster().await.unwrap().leader.map(|leader| leader.name.0);
        assert_eq!(leader.as_deref(), Some("pg1"), "{name} knows what was before");
        running.push(etcd);
    }
    assert_eq!(members_of(&running[0]).await, ["pg1", "pg2", "pg3"]);

    let lost = running.pop().unwrap();
    assert!(lost.stop(Duration::from_secs(5)).await);
    std::fs::remove_dir_all(dir.path().join("pg3")).unwrap();
    let now = [all[0].clone(), all[1].clone(), all[3].clone()];
    let fourth = Embedded::start(options(dir.path(), &now, "pg4")).await.unwrap();
    until("being accepted by the peers", limit, || fourth.pid().is_some()).await;
    reapers.push(Reaper(fourth.pid().into_iter().collect()));
    let own = client(&fourth.endpoints()[..1], "pg4");
    writable(&own, limit).await;
    assert_eq!(members_of(&fourth).await, ["pg1", "pg2", "pg4"]);

    // It votes: one of the others may go.
    assert!(running.pop().unwrap().stop(Duration::from_secs(5)).await);
    writable(&own, limit).await;
}

#[tokio::test]
async fn a_member_that_was_removed_joins_anew_and_its_data_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["pg1", "pg2", "pg3"];
    let peers = peers(&names);
    let mut members = vec![];
    for name in names {
        members.push(Embedded::start(options(dir.path(), &peers, name)).await.unwrap());
    }
    let _reaper = Reaper(members.iter().filter_map(Embedded::pid).collect());
    let dcs = client(members[0].endpoints(), "pg1");
    writable(&dcs, Duration::from_secs(20)).await;
    let mut admin = etcd_client::Client::connect([&members[0].endpoints()[0]], None)
        .await
        .unwrap();
    let listed = admin.member_list().await.unwrap();
    let removed = listed.members().iter().find(|m| m.name() == "pg3").unwrap().id();
    // etcd wants to have been connected to a majority for 5 s before it lets a member go.
    let started = Instant::now();
    while let Err(error) = admin.member_remove(removed).await {
        assert!(started.elapsed() < Duration::from_secs(20), "{error}");
        sleep(Duration::from_millis(500)).await;
    }
    let aside = || {
        let entries = std::fs::read_dir(dir.path().join("pg3")).unwrap().flatten();
        entries
            .into_iter()
            .any(|e| e.file_name().to_string_lossy().starts_with("data.removed-"))
    };
    until("putting the data aside", Duration::from_secs(30), aside).await;
    let own = patient_client(&members[2].endpoints()[..1], "pg3", Duration::from_secs(2));
    writable(&own, Duration::from_secs(40)).await;
    let listed = admin.member_list().await.unwrap();
    let now: Vec<&str> = listed.members().iter().map(etcd_client::Member::name).collect();
    assert!(now.len() == 3 && now.contains(&"pg3"), "{now:?}");
    let _second_reaper = Reaper(members[2].pid().into_iter().collect());
}

#[tokio::test]
async fn a_member_cut_off_from_its_peers_gives_no_answer_instead_of_an_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["pg1", "pg2", "pg3"];
    let peers = peers(&names);
    let mut members = vec![];
    for name in names {
        members.push(Embedded::start(options(dir.path(), &peers, name)).await.unwrap());
    }
    let pids: Vec<u32> = members.iter().filter_map(Embedded::pid).collect();
    let _reaper = Reaper(pids.clone());
    let clients: Vec<_> = names
        .iter()
        .zip(&members)
        .map(|(name, member)| patient_client(&member.endpoints()[..1], name, Duration::from_millis(1500)))
        .collect();
    for dcs in &clients {
        writable(dcs, Duration::from_secs(20)).await;
    }
    assert!(matches!(clients[0].acquire().await.unwrap(), Lock::Held(_)));
    // Each in turn is the only one awake, so that one of them is the raft leader of old.
    for (alone, dcs) in clients.iter().enumerate() {
        let others: Vec<u32> = (0..3).filter(|i| *i != alone).map(|i| pids[i]).collect();
        for id in &others {
            kill_process(pid(*id), Signal::STOP).unwrap();
        }
        let started = Instant::now();
        assert!(
            dcs.renew().await.is_err(),
            "pg{} renewed without a quorum",
            alone + 1
        );
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "{:?}",
            started.elapsed()
        );
        assert!(
            dcs.cluster().await.is_err(),
            "pg{} read without a quorum",
            alone + 1
        );
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "{:?}",
            started.elapsed()
        );
        for id in &others {
            kill_process(pid(*id), Signal::CONT).unwrap();
        }
        writable(dcs, Duration::from_secs(20)).await;
    }
}
