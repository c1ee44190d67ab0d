//! What is particular to ZooKeeper: sessions and their timeouts, credentials and ACLs, TLS, a path in front of all others, an
//! ensemble of several servers, and servers that say nothing or nonsense. What it has in common with all stores is in
//! dcs_contract.rs.
#![allow(
    clippy::disallowed_methods,
    reason = "tests: waits poll a condition with a deadline, and temporary data is removed"
)]
#![cfg(feature = "zookeeper")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

mod common {
    pub(crate) mod certificates;
    #[allow(dead_code, reason = "others use the rest")]
    pub(crate) mod etcd;
    #[allow(dead_code, reason = "the contract uses the rest")]
    pub(crate) mod zookeeper;
}

use std::time::{Duration, Instant};

use common::zookeeper::{Ensemble, Server};
use howdah::{
    clock::Boottime,
    dcs::{
        Dcs, DcsError, Hold, Key, Lock, When, Written,
        zookeeper::{Acl, Options, ZooKeeper},
    },
    tls::{
        client::{Check, Tls},
        files::Identity,
    },
};
use tokio::time::sleep;

const TTL: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(3);

fn options(hosts: Vec<String>, name: &str) -> Options {
    Options {
        hosts,
        chroot: String::new(),
        tls: None,
        auth: vec![],
        acls: vec![],
        namespace: "service".into(),
        scope: "demo".into(),
        name: name.into(),
        ttl: TTL,
        retry_timeout: RETRY,
    }
}

fn member(server: &Server, name: &str) -> ZooKeeper {
    ZooKeeper::new(options(vec![server.endpoint()], name)).unwrap()
}

fn held(lock: Result<Lock, DcsError>) -> Hold {
    match lock {
        Ok(Lock::Held(hold)) => hold,
        other => panic!("expected to hold the lock, got {other:?}"),
    }
}

#[tokio::test]
async fn what_the_servers_count_with_is_what_counts() {
    let server = Server::with("minSessionTimeout=3000");
    let hold = held(member(&server, "a").acquire().await);
    assert_eq!(hold.ttl, Duration::from_secs(3));
}

#[tokio::test]
async fn a_key_that_was_removed_and_made_anew_is_another_one() {
    let server = Server::start();
    let (a, b) = (member(&server, "a"), member(&server, "b"));
    let yes = |written: Written| match written {
        Written::Yes(version) => version,
        Written::Refused => panic!("refused"),
    };
    let old = yes(a.write(Key::Sync, "{}", When::Absent).await.unwrap());
    b.delete(Key::Sync, When::Version(old)).await.unwrap();
    let new = yes(b
        .write(Key::Sync, r#"{"leader":"b"}"#, When::Absent)
        .await
        .unwrap());
    // ZooKeeper's own count of changes is 0 for both.
    for refused in [
        a.write(Key::Sync, "{}", When::Version(old)).await.unwrap(),
        a.delete(Key::Sync, When::Version(old)).await.unwrap(),
    ] {
        assert_eq!(refused, Written::Refused);
    }
    yes(a.write(Key::Sync, "{}", When::Version(new)).await.unwrap());
}

#[tokio::test]
async fn all_that_write_at_once_win_once() {
    let server = Server::start();
    let members: Vec<ZooKeeper> = (0..4).map(|i| member(&server, &format!("n{i}"))).collect();
    let Written::Yes(mut version) = members[0].write(Key::Sync, "{}", When::Absent).await.unwrap() else {
        panic!("a free key was refused");
    };
    for round in 0..10 {
        let value = format!(r#"{{"round":{round}}}"#);
        let tries = members
            .iter()
            .map(|member| member.write(Key::Sync, &value, When::Version(version)));
        let written = futures::future::join_all(tries).await;
        let won: Vec<_> = written
            .into_iter()
            .filter_map(|written| match written.unwrap() {
                Written::Yes(version) => Some(version),
                Written::Refused => None,
            })
            .collect();
        assert_eq!(won.len(), 1, "round {round}");
        version = won[0];
    }
}

#[tokio::test]
async fn a_path_in_front_keeps_two_clusters_of_one_name_apart() {
    let server = Server::start();
    let below = |chroot: &str| {
        ZooKeeper::new(Options {
            chroot: chroot.into(),
            ..options(vec![server.endpoint()], "a")
        })
        .unwrap()
    };
    let (one, two) = (below("/one/root"), below("/two"));
    held(one.acquire().await);
    held(two.acquire().await);
    one.write(Key::Config, r#"{"ttl":20}"#, When::Absent)
        .await
        .unwrap();
    assert!(two.cluster().await.unwrap().config.is_none());
}

fn with_digest(server: &Server, password: &str, name: &str) -> ZooKeeper {
    ZooKeeper::new(Options {
        auth: vec![("digest".into(), format!("pg:{password}"))],
        // `DigestAuthenticationProvider.generateDigest("pg:secret")`
        acls: vec![Acl {
            permissions: 31,
            scheme: "digest".into(),
            id: "pg:2f00uH2yW6Zwytrp2wQyJV2V/GA=".into(),
        }],
        ..options(vec![server.endpoint()], name)
    })
    .unwrap()
}

#[tokio::test]
async fn nodes_are_for_those_with_the_password() {
    let server = Server::start();
    let a = with_digest(&server, "secret", "a");
    held(a.acquire().await);
    held(a.renew().await);
    a.touch_member("{}").await.unwrap();
    a.write(Key::Config, "{}", When::Absent).await.unwrap();
    assert_eq!(a.cluster().await.unwrap().members.len(), 1);
    for stranger in [with_digest(&server, "wrong", "b"), member(&server, "b")] {
        for error in [
            stranger.cluster().await.unwrap_err(),
            stranger.acquire().await.unwrap_err(),
            stranger.touch_member("{}").await.unwrap_err(),
            stranger.write(Key::Sync, "{}", When::Always).await.unwrap_err(),
        ] {
            assert!(matches!(error, DcsError::Credentials { .. }), "{error}");
            assert!(!error.to_string().contains("wrong"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_scheme_that_no_server_knows_is_named() {
    let server = Server::start();
    let a = ZooKeeper::new(Options {
        auth: vec![("magic".into(), "pg:secret".into())],
        ..options(vec![server.endpoint()], "a")
    })
    .unwrap();
    let error = a.cluster().await.unwrap_err();
    assert!(matches!(error, DcsError::Credentials { .. }), "{error}");
    assert!(
        error.to_string().contains("magic") && !error.to_string().contains("secret"),
        "{error}"
    );
}

#[tokio::test]
async fn tls_works_with_a_client_certificate_and_not_without() {
    let dir = tempfile::tempdir().unwrap();
    common::certificates::certificates(dir.path());
    let file = |name: &str| dir.path().join(name);
    std::fs::copy(file("ca.crt"), file("ca.pem")).unwrap();
    let server = Server::with(&format!(
        "ssl.keyStore.location={}\nssl.keyStore.type=PEM\nssl.trustStore.location={}\nssl.trustStore.type=PEM\n\
         ssl.clientAuth=need\nssl.hostnameVerification=false",
        file("server.pem").display(),
        file("ca.pem").display()
    ));
    let good = Tls {
        cacert: Some(file("ca.crt")),
        identity: Some(Identity {
            cert: file("client.crt"),
            key: file("client.key"),
            password: None,
        }),
        check: Check::Whole,
    };
    let with = |tls: Tls| {
        ZooKeeper::new(Options {
            tls: Some(tls),
            ..options(vec![format!("127.0.0.1:{}", server.tls_port)], "a")
        })
        .unwrap()
    };
    let a = with(good.clone());
    held(a.acquire().await);
    held(a.renew().await);
    a.cluster().await.unwrap();
    with(Tls {
        cacert: None,
        check: Check::Nothing,
        ..good.clone()
    })
    .cluster()
    .await
    .expect("who does not check needs no authority");
    for bad in [
        Tls {
            identity: None,
            ..good.clone()
        },
        Tls { cacert: None, ..good },
    ] {
        let error = with(bad).cluster().await.unwrap_err();
        println!("refused: {error}");
        assert!(
            matches!(error, DcsError::Transport { .. } | DcsError::Timeout { .. }),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lock_survives_the_loss_of_any_server_and_ends_in_time_without_its_holder() {
    let mut ensemble = Ensemble::start();
    let hosts = ensemble.hosts();
    let a = ZooKeeper::new(options(hosts.clone(), "a")).unwrap();
    let started = Instant::now();
    let first = loop {
        match a.acquire().await {
            Ok(lock) => break held(Ok(lock)),
            Err(error) => assert!(started.elapsed() < Duration::from_secs(20), "{error}"),
        }
    };
    let b = ZooKeeper::new(options(hosts.into_iter().rev().collect(), "b")).unwrap();
    assert!(matches!(b.acquire().await, Ok(Lock::Lost(Some(name))) if name == "a".into()));
    for index in 0..3 {
        ensemble.servers[index].kill();
        let lost = Instant::now();
        let hold = loop {
            match a.renew().await {
                Ok(lock) => break held(Ok(lock)),
                Err(error) => assert!(lost.elapsed() < Duration::from_secs(10), "{error}"),
            }
        };
        println!("renewed {:?} after the loss of server {index}", lost.elapsed());
        assert_eq!(hold.lease, first.lease, "the session survives");
        ensemble.servers[index].start_again();
        // Before the next one goes, this one must belong again: a majority is all there is.
        ensemble.wait_until_all_serve();
    }
    let hold = held(a.renew().await);
    drop(a);
    loop {
        let taken = b.acquire().await;
        let passed = Boottime::now().since(hold.sent_at);
        if let Ok(Lock::Held(_)) = taken {
            assert!(passed >= TTL, "taken over after only {passed:?}");
            println!("lock of {TTL:?} taken over after {passed:?}");
            break;
        }
        assert!(
            passed < TTL + Duration::from_secs(1),
            "still held after {passed:?}"
        );
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn garbage_in_the_store_does_no_harm() {
    let server = Server::start();
    for key in [
        "leader",
        "config",
        "members/x",
        "sync",
        "history",
        "status",
        "failover",
        "other",
    ] {
        server.put(&format!("/service/demo/{key}"), "\u{fffd}\0{");
    }
    server.put("/service/demo/optime/leader", "x");
    let a = member(&server, "a");
    assert!(a.cluster().await.unwrap().leader.is_some());
    assert!(matches!(a.acquire().await, Ok(Lock::Lost(Some(_)))));
}

#[tokio::test]
async fn a_server_that_says_nothing_or_nonsense_is_could_not_ask() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let silent = ZooKeeper::new(options(vec![address.clone()], "a")).unwrap();
    let started = Instant::now();
    let error = silent.renew().await.unwrap_err();
    assert!(matches!(error, DcsError::Timeout { .. }), "{error}");
    assert!(started.elapsed() < TTL / 3 + Duration::from_millis(500));
    drop(silent);
    // One silent server beside a good one costs a part of the time, once.
    let server = Server::start();
    let a = ZooKeeper::new(Options {
        ttl: Duration::from_secs(10),
        ..options(vec![address.clone(), server.endpoint()], "a")
    })
    .unwrap();
    held(a.acquire().await);
    let started = Instant::now();
    held(a.renew().await);
    assert!(
        started.elapsed() < Duration::from_millis(500),
        "{:?}",
        started.elapsed()
    );
    std::thread::spawn(move || {
        use std::io::Write as _;
        for connection in listener.incoming() {
            let _ = connection.and_then(|mut c| c.write_all(&[0x5a; 4096]));
        }
    });
    let a = ZooKeeper::new(options(vec![address], "a")).unwrap();
    for error in [a.renew().await.unwrap_err(), a.cluster().await.unwrap_err()] {
        assert!(
            matches!(error, DcsError::Transport { .. } | DcsError::Timeout { .. }),
            "{error}"
        );
    }
}
