//! What is particular to Consul: agents that leave, tokens, TLS, session limits, services, and servers that say nothing or
//! nonsense. What it has in common with all stores is in dcs_contract.rs.
#![allow(
    clippy::disallowed_methods,
    reason = "tests: waits poll a condition with a deadline, and temporary data is removed"
)]
#![cfg(feature = "consul")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

mod common {
    pub(crate) mod certificates;
    #[allow(dead_code, reason = "the contract uses the rest")]
    pub(crate) mod consul;
    #[allow(dead_code, reason = "others use the rest")]
    pub(crate) mod etcd;
}

use std::time::{Duration, Instant};

use common::consul::{MASTER, Server};
use howdah::{
    clock::Boottime,
    dcs::{
        Dcs, DcsError, Hold, Key, Lock, When, Written,
        consul::{Consistency, Consul, Options, Service},
    },
    tls::{
        client::{Check, Tls},
        files::Identity,
    },
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::sleep;

const TTL: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(3);

fn options(host: String, name: &str) -> Options {
    Options {
        host,
        tls: None,
        token: None,
        dc: None,
        consistency: Consistency::Consistent,
        checks: vec![],
        service: None,
        address: "127.0.0.1".into(),
        namespace: "service".into(),
        scope: "demo".into(),
        name: name.into(),
        ttl: TTL,
        retry_timeout: RETRY,
    }
}

fn held(lock: Result<Lock, DcsError>) -> Hold {
    match lock {
        Ok(Lock::Held(hold)) => hold,
        other => panic!("expected to hold the lock, got {other:?}"),
    }
}

#[tokio::test]
async fn the_lock_outlives_the_agent_of_the_host_when_that_leaves() {
    const LONG: Duration = Duration::from_secs(10);
    let server = Server::start();
    let mut agent = server.client_agent();
    let at_agent = |scope: &str, checks: Vec<String>| {
        Consul::new(Options {
            scope: scope.into(),
            checks,
            ttl: LONG,
            ..options(agent.endpoint(), "a")
        })
        .unwrap()
    };
    let a = at_agent("demo", vec![]);
    // Asked to follow the agent's health, as Consul would have it; the difference is what this is about.
    let bound = at_agent("bound", vec!["serfHealth".into()]);
    let b = Consul::new(options(server.endpoint(), "b")).unwrap();
    let beside = Consul::new(Options {
        scope: "bound".into(),
        ..options(server.endpoint(), "b")
    })
    .unwrap();
    let hold = held(a.acquire().await);
    held(bound.acquire().await);
    // As an upgrade of the agent does: it leaves, and is taken out of the catalog with all that belongs to it.
    agent.signal(Signal::TERM);
    agent.wait();
    let started = Instant::now();
    while beside.cluster().await.unwrap().leader.is_some() {
        assert!(started.elapsed() < LONG, "the agent has not left");
        sleep(Duration::from_millis(20)).await;
    }
    let early = Boottime::now().since(hold.sent_at);
    println!("the agent was gone after {early:?}");
    assert!(early < LONG, "it left too slowly for this test to show anything");
    loop {
        let taken = b.acquire().await.unwrap();
        let passed = Boottime::now().since(hold.sent_at);
        match taken {
            Lock::Held(_) => {
                assert!(passed >= LONG, "taken over after only {passed:?}");
                break;
            }
            Lock::Lost(to) => assert_eq!(to, Some("a".into())),
        }
        assert!(
            passed < LONG + Duration::from_secs(1),
            "still held after {passed:?}"
        );
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_least_ttl_of_the_servers_is_kept_to_and_said() {
    let server = Server::with(json!({"session_ttl_min": "5s"}));
    let a = Consul::new(options(server.endpoint(), "a")).unwrap();
    let hold = held(a.acquire().await);
    assert_eq!(hold.ttl, Duration::from_secs(10));
    assert_eq!(held(a.renew().await).ttl, Duration::from_secs(10));
}

fn with_acls() -> Server {
    Server::with(json!({"acl": {"enabled": true, "default_policy": "deny", "tokens": {"master": MASTER}}}))
}

/// A token with these rules, once the server is ready to make one.
async fn token(server: &Server, rules: &str) -> String {
    let name = format!("p{}", rules.len());
    let policy = json!({"Name": name, "Rules": rules}).to_string();
    let started = Instant::now();
    loop {
        let (status, answer) = server.call("PUT", "/acl/policy", &policy).await;
        if status == 200 {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{answer}");
        sleep(Duration::from_millis(50)).await;
    }
    let token = json!({"Policies": [{"Name": name}]}).to_string();
    let made = server.must("PUT", "/acl/token", &token).await;
    made["SecretID"].as_str().unwrap().to_owned()
}

const KEYS: &str =
    r#"key_prefix "service/demo/" { policy = "write" } session_prefix "" { policy = "write" }"#;

#[tokio::test]
async fn a_token_needs_its_rights_and_is_not_shown() {
    let server = with_acls();
    let whole = token(
        &server,
        &format!(r#"{KEYS} node_prefix "howdah-" {{ policy = "write" }}"#),
    )
    .await;
    let with = |token: Option<&str>, name: &str| {
        Consul::new(Options {
            token: token.map(str::to_owned),
            ..options(server.endpoint(), name)
        })
        .unwrap()
    };
    let a = with(Some(&whole), "a");
    held(a.acquire().await);
    held(a.renew().await);
    a.touch_member("{}").await.unwrap();
    assert_eq!(a.cluster().await.unwrap().members.len(), 1);
    let sessions = server.must("GET", "/session/list", "").await;
    assert_eq!(sessions[0]["Node"], "howdah-demo-a", "{sessions}");
    a.release(None).await.unwrap();

    // Patroni's usual policy knows nothing of nodes.
    let b = with(Some(&token(&server, KEYS).await), "b");
    held(b.acquire().await);
    let leader = b.cluster().await.unwrap().leader.unwrap();
    assert_eq!(leader.name, "b".into());

    let wrong = "00000000-0000-4000-8000-00000000dead";
    let stranger = with(Some(wrong), "c");
    let started = Instant::now();
    for error in [
        stranger.acquire().await.unwrap_err(),
        stranger.renew().await.unwrap_err(),
        stranger.write(Key::Config, "{}", When::Always).await.unwrap_err(),
    ] {
        assert!(matches!(error, DcsError::Credentials { .. }), "{error}");
        assert!(!error.to_string().contains(wrong), "{error}");
    }
    assert!(started.elapsed() < RETRY, "{:?}", started.elapsed());
    assert!(!format!("{:?}", options(server.endpoint(), "a")).contains("token"));
}

#[tokio::test]
async fn tls_works_with_a_client_certificate_and_not_without() {
    let dir = tempfile::tempdir().unwrap();
    common::certificates::certificates(dir.path());
    let file = |name: &str| dir.path().join(name);
    let server = Server::with(json!({
        "ca_file": file("ca.crt"), "cert_file": file("server.crt"), "key_file": file("server.key"),
        "verify_incoming_https": true,
    }));
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
        Consul::new(Options {
            tls: Some(tls),
            retry_timeout: Duration::from_secs(1),
            ..options(server.endpoint(), "a")
        })
        .unwrap()
    };
    let a = with(good.clone());
    let started = Instant::now();
    while let Err(error) = a.cluster().await {
        assert!(started.elapsed() < Duration::from_secs(10), "{error}");
    }
    held(a.acquire().await);
    held(a.renew().await);
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
        Tls {
            cacert: None,
            ..good.clone()
        },
        Tls {
            cacert: Some(file("missing.crt")),
            ..good
        },
    ] {
        let error = with(bad).cluster().await.unwrap_err();
        println!("refused: {error}");
        assert!(matches!(error, DcsError::Transport { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_member_is_a_service_with_its_role_until_it_stops() {
    let server = Server::start();
    let service = Service {
        tags: vec!["eu".into()],
        check_interval: "1s".into(),
        check_tls_server_name: None,
    };
    let a = Consul::new(Options {
        service: Some(service),
        ..options(server.endpoint(), "a")
    })
    .unwrap();
    let member = |state: &str, role: &str| {
        json!({"state": state, "role": role, "conn_url": "postgres://127.0.0.1:5433/postgres",
            "api_url": "http://127.0.0.1:1/patroni"})
        .to_string()
    };
    for (role, tags) in [
        ("replica", json!(["eu", "replica"])),
        ("primary", json!(["eu", "primary", "master"])),
    ] {
        a.touch_member(&member("running", role)).await.unwrap();
        let services = server.must("GET", "/agent/services", "").await;
        let found = &services["demo/a"];
        assert_eq!(
            (&found["Service"], &found["Port"], &found["Tags"]),
            (&json!("demo"), &json!(5433), &tags)
        );
        let checks = server.must("GET", "/agent/checks", "").await;
        assert_eq!(checks["service:demo/a"]["ServiceName"], "demo", "{checks}");
    }
    a.touch_member(&member("stopped", "primary")).await.unwrap();
    assert_eq!(server.must("GET", "/agent/services", "").await, json!({}));
}

#[tokio::test]
async fn the_other_modes_of_reading_see_the_same_cluster() {
    let server = Server::start();
    let a = Consul::new(options(server.endpoint(), "a")).unwrap();
    held(a.acquire().await);
    let b = Consul::new(Options {
        consistency: Consistency::Default,
        dc: Some("dc1".into()),
        ..options(server.endpoint(), "b")
    })
    .unwrap();
    let leader = b.cluster().await.unwrap().leader.unwrap();
    assert_eq!(leader.name, "a".into());
    let elsewhere = Consul::new(Options {
        dc: Some("dc9".into()),
        retry_timeout: Duration::from_secs(1),
        ..options(server.endpoint(), "b")
    })
    .unwrap();
    let error = elsewhere.cluster().await.unwrap_err();
    assert!(matches!(error, DcsError::Answer { .. }), "{error}");
}

#[tokio::test]
async fn no_look_shows_half_of_a_transaction() {
    let server = Server::start();
    let a = Consul::new(options(server.endpoint(), "a")).unwrap();
    let writing = async {
        for i in 0..100 {
            let value = base64_of(&format!(r#"{{"n":{i}}}"#));
            let set = |key: &str| json!({"KV": {"Verb": "set", "Key": format!("service/demo/{key}"), "Value": value}});
            server
                .must(
                    "PUT",
                    "/txn",
                    &json!([set("config"), set("failsafe")]).to_string(),
                )
                .await;
        }
    };
    let looking = async {
        loop {
            let cluster = a.cluster().await.unwrap();
            assert_eq!(cluster.config, cluster.failsafe);
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = writing => {}
        never = looking => never,
    }
}

fn base64_of(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test]
async fn garbage_in_the_store_does_no_harm() {
    let server = Server::start();
    for key in [
        "leader",
        "config",
        "members/",
        "members/x",
        "sync",
        "history",
        "status",
        "failover",
        "%EF%BF%BD",
    ] {
        server
            .must("PUT", &format!("/kv/service/demo/{key}"), "\u{fffd}\0{")
            .await;
    }
    let a = Consul::new(options(server.endpoint(), "a")).unwrap();
    assert!(a.cluster().await.unwrap().leader.is_some());
    assert!(matches!(a.acquire().await, Ok(Lock::Lost(Some(_)))));
}

#[tokio::test]
async fn a_server_that_says_nothing_or_nonsense_is_could_not_ask() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let silent = Consul::new(options(address.clone(), "a")).unwrap();
    let started = Instant::now();
    let error = silent.renew().await.unwrap_err();
    assert!(matches!(error, DcsError::Timeout { .. }), "{error}");
    assert!(started.elapsed() < TTL / 3 + Duration::from_millis(500));
    drop(silent);
    std::thread::spawn(move || {
        use std::io::Write as _;
        for connection in listener.incoming() {
            let _ = connection.and_then(|mut c| c.write_all(&[0x5a; 4096]));
        }
    });
    let a = Consul::new(options(address, "a")).unwrap();
    for error in [a.renew().await.unwrap_err(), a.cluster().await.unwrap_err()] {
        assert!(
            matches!(error, DcsError::Transport { .. } | DcsError::Timeout { .. }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn other_tools_find_patronis_keys() {
    let server = Server::start();
    let a = Consul::new(options(server.endpoint(), "a")).unwrap();
    let hold = held(a.acquire().await);
    let Written::Yes(version) = a.write(Key::Config, "{}", When::Absent).await.unwrap() else {
        panic!("a free key was refused");
    };
    let stored = server.must("GET", "/kv/service/demo/?recurse", "").await;
    let key = |name: &str| -> &Value {
        let all = stored.as_array().unwrap();
        all.iter()
            .find(|pair| pair["Key"] == format!("service/demo/{name}"))
            .unwrap()
    };
    assert_eq!(key("config")["ModifyIndex"], version.0);
    assert_eq!(key("leader")["Value"], base64_of("a"));
    let session = server
        .must(
            "GET",
            &format!("/session/info/{}", key("leader")["Session"].as_str().unwrap()),
            "",
        )
        .await;
    assert_eq!(
        (&session[0]["Name"], &session[0]["Behavior"], &session[0]["TTL"]),
        (&json!("demo-a"), &json!("delete"), &json!("1000ms"))
    );
    assert_eq!(hold.ttl, TTL);
}
