//! The server over real sockets: protocol, limits, every endpoint once.

use std::{sync::Arc, time::Duration};

use http::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    Access,
    test_server::{limits, n2_at, rest_of, server, server_with},
};
use crate::{
    agent::handle::{
        Request, Snapshot,
        fixtures::{HEALTHY, cluster, leader, live, replica},
    },
    client::Credentials,
    config::{Config, FixedHost, MapEnv},
    dcs::Dcs,
};

#[tokio::test]
async fn health_checks_answer_code_and_status() {
    let server = server(HEALTHY).await;
    let answer = server.get("/primary").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json().expect("JSON")["role"], "primary");
    for (path, code) in [
        ("/", 200),
        ("/replica", 503),
        ("/read-only?lag=0", 200),
        ("/metrics", 200),
        ("/x/y", 503),
        ("/liveness", 200),
        ("/readiness", 200),
        ("/patroni/anything", 200),
        ("/failsafe", 502),
    ] {
        assert_eq!(server.get(path).await.status, code, "{path}");
    }
    assert!(server.get("/liveness").await.body.is_empty());
    assert!(
        server
            .get("/nonsense")
            .await
            .text()
            .starts_with("{\"state\": \"running\", ")
    );
}

#[tokio::test]
async fn head_and_options_are_health_checks_on_every_path() {
    let server = server(HEALTHY).await;
    for method in [Method::HEAD, Method::OPTIONS] {
        for (path, code) in [
            ("/primary", 200),
            ("/replica", 503),
            ("/patroni", 503),
            ("/config", 503),
        ] {
            assert_eq!(
                server.says(method.clone(), path, None).await,
                (code, String::new()),
                "{method} {path}"
            );
        }
    }
}

#[tokio::test]
async fn other_methods_are_not_supported() {
    let server = server(HEALTHY).await;
    for (method, path) in [
        (Method::POST, "/patroni"),
        (Method::DELETE, "/failover"),
        (Method::PUT, "/x"),
    ] {
        let (code, text) = server.says(method, path, Some(json!({"a": 1}))).await;
        assert_eq!(code, 501);
        assert!(text.contains("Server does not support this operation"), "{text}");
    }
    let odd = server
        .raw(b"BREW /pot HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        .await;
    assert!(odd.starts_with("HTTP/1.1 501 "), "{odd}");
}

#[tokio::test]
async fn connections_stay_open_and_old_clients_are_served() {
    let server = server(HEALTHY).await;
    let mut stream = TcpStream::connect(&server.address).await.expect("listening");
    for _ in 0..3 {
        stream
            .write_all(b"HEAD /primary HTTP/1.1\r\nHost: h\r\n\r\n")
            .await
            .expect("open");
        let mut head = [0; 15];
        stream.read_exact(&mut head).await.expect("an answer");
        assert_eq!(&head, b"HTTP/1.1 200 OK");
        let mut tail = Vec::new();
        while !tail.ends_with(b"\r\n\r\n") {
            tail.push(stream.read_u8().await.expect("the rest of the head"));
        }
    }
    let old = server.raw(b"GET /liveness HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 OK\r\n"), "{old}");
    let kept = b"GET /liveness HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /replica HTTP/1.0\r\n\r\n";
    let kept = server.raw(kept).await;
    assert!(kept.contains("200 OK") && kept.contains("503 Service"), "{kept}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_junk_ends_the_connection() {
    let server = server(HEALTHY).await;
    let answers = server
        .raw(b"GET /liveness HTTP/1.1\r\nHost: h\r\n\r\nGET /replica HTTP/1.1\r\nHost: h\r\n\r\n\x00\x01junk\r\n\r\n")
        .await;
    let codes: Vec<&str> = answers
        .matches("HTTP/1.1 ")
        .zip(answers.split("HTTP/1.1 ").skip(1))
        .map(|(_, rest)| &rest[..3])
        .collect();
    assert_eq!(codes, ["200", "503", "400"]);
    assert!(
        server
            .raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
            .await
            .len()
            < 200
    );
    let long = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(100_000));
    assert!(!server.raw(long.as_bytes()).await.contains(" 200 "));
    assert_eq!(server.get("/primary").await.status, 200);
}

#[tokio::test]
async fn slow_clients_are_dropped_and_delay_nobody() {
    let server = server(HEALTHY).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(&server.address).await.expect("listening");
        stream.write_all(b"GET /primary HT").await.expect("open");
        slow.push(stream);
        assert_eq!(
            server.raw(b"GET /primary HTTP/1.0\r\n\r\n").await.get(9..12),
            Some("200")
        );
    }
    for mut stream in slow {
        assert!(!rest_of(&mut stream).await.contains(" 200 "));
    }
}

#[tokio::test]
async fn idle_connections_are_closed() {
    let server = server(HEALTHY).await;
    let answer = server.raw(b"GET /liveness HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 200"),
        "closed by the server, or raw() would not return"
    );
}

#[tokio::test]
async fn bodies_are_bounded_in_size_and_time() {
    let server = server(HEALTHY).await;
    let big = json!({"x": "y".repeat(2000)});
    assert_eq!(server.says(Method::PATCH, "/config", Some(big)).await.0, 413);
    let slow = b"PATCH /config HTTP/1.1\r\nHost: h\r\nContent-Length: 50\r\n\r\n{";
    assert!(server.raw(slow).await.starts_with("HTTP/1.1 408"));
    let without = server
        .raw(b"PATCH /config HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        .await;
    assert!(without.starts_with("HTTP/1.1 411"), "{without}");
    for (body, reason) in [
        (json!([]), "not a JSON object"),
        (json!({}), "empty object"),
        (json!("x"), "not a JSON"),
    ] {
        let (code, text) = server.says(Method::PATCH, "/config", Some(body)).await;
        assert_eq!(code, 400);
        assert!(text.contains(reason), "{text}");
    }
    let junk = b"PUT /config HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 3\r\n\r\n{,}";
    assert!(server.raw(junk).await.contains("is not JSON"));
    let chunked = b"PATCH /config HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\na\r\n{\"ttl\":90}\r\n0\r\n\r\n";
    assert!(server.raw(chunked).await.ends_with("{\"ttl\": 90}"));
}

#[tokio::test]
async fn changes_need_the_credentials_and_reading_does_not() {
    let credentials = Credentials {
        username: "u".into(),
        password: "p".into(),
    };
    let mut server = server_with(HEALTHY, Some(credentials), limits()).await;
    let agent = server.agent();
    assert_eq!(
        server.says(Method::POST, "/reload", None).await,
        (202, "reload scheduled".into())
    );
    let without = server
        .raw(b"POST /reload HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        .await;
    assert!(without.starts_with("HTTP/1.1 401"), "{without}");
    assert!(
        without.contains("www-authenticate: Basic realm=\"Patroni\""),
        "{without}"
    );
    assert!(without.ends_with("no auth header received"), "{without}");
    let wrong = server
        .raw(b"POST /reload HTTP/1.0\r\nAuthorization: Basic eDp5\r\n\r\n")
        .await;
    assert!(wrong.ends_with("not authenticated"), "{wrong}");
    assert!(
        server
            .raw(b"GET /config HTTP/1.0\r\n\r\n")
            .await
            .contains(" 200 ")
    );
    agent.abort();
}

#[tokio::test]
async fn changes_come_only_from_the_allowlist_and_reading_from_everywhere() {
    let rest = |vars: &[(&str, &str)]| {
        let env = vars
            .iter()
            .fold(MapEnv::new(&[("POSTGRES_PASSWORD", "s")]), |env, (n, v)| {
                env.var(n, v)
            });
        Config::load(
            &env,
            &FixedHost {
                hostname: Some("pg1".into()),
                address: None,
            },
        )
        .expect("valid")
        .config
        .restapi
    };
    let mut server = server(HEALTHY).await;
    let agent = server.agent();
    let denied = (403, "Access is denied".to_owned());
    let elsewhere = rest(&[
        ("HOWDAH_RESTAPI_ALLOWLIST", "192.0.2.0/24"),
        ("HOWDAH_RESTAPI_USERNAME", "u"),
        ("HOWDAH_RESTAPI_PASSWORD", "p"),
        ("HOWDAH_RESTAPI_HTTP_EXTRA_HEADERS", "X-Frame-Options: DENY"),
    ]);
    server.access.send_replace(Access::load(&elsewhere).await);
    for (method, path) in [
        (Method::POST, "/reload"),
        (Method::PATCH, "/config"),
        (Method::DELETE, "/restart"),
        (Method::POST, "/failsafe"),
    ] {
        assert_eq!(server.says(method, path, None).await, denied, "{path}");
    }
    let read = server.raw(b"GET /config HTTP/1.0\r\n\r\n").await;
    assert!(read.contains(" 200 "), "{read}");
    assert!(read.contains("\r\nx-frame-options: DENY\r\n"), "{read}");
    let bare = server.raw(b"GET /liveness HTTP/1.0\r\n\r\n").await;
    assert!(!bare.contains("x-frame-options"), "{bare}");
    let by_name = rest(&[("HOWDAH_RESTAPI_ALLOWLIST", "192.0.2.0/24, localhost")]);
    server.access.send_replace(Access::load(&by_name).await);
    assert_eq!(server.says(Method::POST, "/reload", None).await.0, 202);
    let members = rest(&[("HOWDAH_RESTAPI_ALLOWLIST_INCLUDE_MEMBERS", "on")]);
    server.access.send_replace(Access::load(&members).await);
    assert_eq!(server.says(Method::POST, "/reload", None).await, denied);
    assert_eq!(server.says(Method::POST, "/failsafe", None).await.0, 502);
    agent.abort();
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_not_waited_for() {
    let server = server(HEALTHY).await;
    server.store.fall_silent();
    let begun = std::time::Instant::now();
    let cluster = server.get("/cluster").await;
    assert_eq!(cluster.status, 200);
    let cluster = cluster.json().expect("JSON");
    assert_eq!(
        (&cluster["scope"], &cluster["seen_seconds_ago"]),
        (&json!("demo"), &json!(1))
    );
    assert_eq!(server.get("/history").await.status, 200);
    let (code, text) = server.says(Method::PATCH, "/config", Some(json!({"a": 1}))).await;
    assert_eq!(code, 503);
    assert!(text.starts_with("cannot reach the DCS: no answer"), "{text}");
    let (code, _) = server.says(Method::PUT, "/config", Some(json!({"a": 1}))).await;
    assert_eq!(code, 502);
    assert!(begun.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn an_old_view_is_shown_to_people_and_not_to_be_acted_on() {
    let server = server(&[]).await;
    let mut old = live(leader());
    if let Some(view) = &mut old.dcs {
        view.seen_at = view.seen_at.minus(Duration::from_secs(45));
    }
    server.snapshot.send_replace(Arc::new(old));
    let answer = server.get("/cluster").await;
    assert_eq!(answer.status, 503);
    let cluster = answer.json().expect("JSON");
    assert_eq!(cluster["members"][0]["name"], "n1");
    assert_eq!(cluster["seen_seconds_ago"], 45);
    assert_eq!(server.get("/config").await.status, 503);
}

#[tokio::test]
async fn patroni_asks_the_agent_only_when_the_snapshot_is_old() {
    let mut server = server(HEALTHY).await;
    let agent = server.agent();
    let mut old = live(leader());
    old.observed_at = old.observed_at.minus(Duration::from_secs(5));
    old.member = "old".into();
    server.snapshot.send_replace(Arc::new(old));
    assert_eq!(
        server.get("/primary").await.json().expect("JSON")["patroni"]["name"],
        "old"
    );
    assert_eq!(
        server.get("/patroni").await.json().expect("JSON")["patroni"]["name"],
        "n1"
    );
    agent.abort();
}

#[tokio::test]
async fn patroni_answers_with_the_old_snapshot_if_the_agent_is_gone() {
    let mut server = server(HEALTHY).await;
    server.requests = None;
    let mut old = live(leader());
    old.observed_at = old.observed_at.minus(Duration::from_secs(5));
    server.snapshot.send_replace(Arc::new(old));
    assert_eq!(server.get("/patroni").await.status, 200);
    assert_eq!(
        server.says(Method::POST, "/reload", None).await,
        (503, "the agent is shutting down".into())
    );
}

#[tokio::test]
async fn config_is_merged_replaced_and_read() {
    let server = server(HEALTHY).await;
    let patch = json!({"pause": true, "postgresql": {"parameters": {"work_mem": "8MB"}}});
    let (code, text) = server.says(Method::PATCH, "/config", Some(patch)).await;
    let expected = r#"{"ttl": 30, "pause": true, "postgresql": {"parameters": {"work_mem": "8MB"}}}"#;
    assert_eq!((code, text.as_str()), (200, expected));
    let stored = r#"{"ttl":30,"pause":true,"postgresql":{"parameters":{"work_mem":"8MB"}}}"#;
    assert_eq!(server.store.get("config").as_deref(), Some(stored));
    assert_eq!(server.get("/config").await.text(), expected);
    let put = server
        .says(Method::PUT, "/config", Some(json!({"ttl": 40})))
        .await;
    assert_eq!(put, (200, r#"{"ttl": 40}"#.into()));
    // What is new in it and not used as it is written.
    for body in [json!({"tll": 40}), json!({"ttl": "soon"}), json!({"ttl": 20})] {
        let (code, text) = server.says(Method::PATCH, "/config", Some(body.clone())).await;
        assert!(
            code == 422 && text.starts_with("not stored (?force=true"),
            "{body}: {text}"
        );
    }
    let (code, _) = server
        .says(Method::PUT, "/config", Some(json!({"tll": 40})))
        .await;
    assert_eq!(code, 422);
    assert_eq!(server.store.get("config").as_deref(), Some(r#"{"ttl":40}"#));
    let insisted = Some(json!({"tll": 40}));
    assert_eq!(
        server.says(Method::PATCH, "/config?force=true", insisted).await.0,
        200
    );
    // It is there now, and no obstacle to another change.
    let (code, text) = server
        .says(Method::PATCH, "/config", Some(json!({"pause": true})))
        .await;
    assert_eq!(code, 200, "{text}");
    server.store.put("config", "broken");
    assert_eq!(server.get("/config").await.status, 502);
    assert_eq!(
        server
            .says(Method::PATCH, "/config", Some(json!({"a": 1})))
            .await
            .0,
        503
    );
}

#[tokio::test]
async fn how_much_is_logged_can_be_changed_and_goes_back() {
    let server = server(HEALTHY).await;
    assert_eq!(server.get("/log").await.text(), r#"{"directives": "info"}"#);
    let debug = Some(json!({"loggers": {"dcs": "debug"}}));
    let changed = r#"{"directives": "info,howdah::dcs=debug"}"#;
    assert_eq!(
        server.says(Method::PATCH, "/log", debug).await,
        (200, changed.into())
    );
    assert_eq!(server.get("/log").await.text(), changed);
    let (code, text) = server
        .says(Method::PATCH, "/log", Some(json!({"level": "loud"})))
        .await;
    assert!(code == 422 && text.contains("off, error"), "{text}");
    let back = (200, r#"{"directives": "info"}"#.to_owned());
    assert_eq!(server.says(Method::PATCH, "/log", Some(json!({}))).await, back);
}

#[tokio::test]
async fn cluster_and_history_come_from_the_store_and_outlive_it_for_a_while() {
    let server = server(&[]).await;
    let cluster = server.get("/cluster").await.json().expect("JSON");
    assert_eq!(cluster["members"][1]["state"], "streaming");
    assert_eq!(cluster["members"][0]["role"], "leader");
    assert_eq!(server.get("/history").await.json().expect("JSON")[0][4], "n2");
    let mut blind = live(leader());
    blind.dcs = None;
    server.snapshot.send_replace(Arc::new(blind));
    let (code, text) = server.says(Method::GET, "/cluster", None).await;
    assert_eq!(code, 503);
    assert!(text.starts_with("cannot reach the DCS: "), "{text}");
}

#[tokio::test]
async fn a_switchover_is_checked_written_and_followed() {
    let server = server(HEALTHY).await;
    let body = || Some(json!({"leader": "n1", "candidate": "n2"}));
    server.store.put("members/n2", &n2_at("127.0.0.1:1"));
    assert_eq!(
        server.says(Method::POST, "/switchover", body()).await,
        (
            412,
            "switchover is not possible: no good candidates have been found".into()
        )
    );
    assert_eq!(server.store.get("failover"), None);
    server.store.put("members/n2", &n2_at(&server.address));
    let store = server.store.clone();
    let cluster = tokio::spawn(async move {
        let mut changes = store.changes();
        while store.get("failover").is_none() {
            changes.changed().await.expect("the store lives");
        }
        store.put("leader", "n2");
        store.put("failover", "{}");
    });
    assert_eq!(
        server.says(Method::POST, "/switchover", body()).await,
        (200, "Successfully switched over to \"n2\"".into())
    );
    cluster.await.expect("no panic");
    assert_eq!(
        server.says(Method::POST, "/switchover", body()).await,
        (412, "leader name does not match".into())
    );
    let (code, text) = server
        .says(Method::POST, "/failover", Some(json!({"leader": "n1"})))
        .await;
    assert_eq!(
        (code, text.as_str()),
        (400, "Failover could be performed only to a specific candidate")
    );
}

#[tokio::test]
async fn a_switchover_can_be_scheduled_and_forgotten() {
    let mut server = server(HEALTHY).await;
    let gone = (404, "no switchover is scheduled".to_owned());
    assert_eq!(server.says(Method::DELETE, "/switchover", None).await, gone);
    let body = json!({"leader": "n1", "scheduled_at": "2999-01-01T00:00:00+00:00"});
    let answer = server.says(Method::POST, "/switchover", Some(body)).await;
    assert_eq!(answer, (202, "Switchover scheduled".into()));
    let woken = server.requests.as_mut().expect("no agent took it").recv().await;
    assert!(matches!(woken, Some(Request::WakeUp)));
    assert_eq!(
        server.get("/cluster").await.json().expect("JSON")["scheduled_switchover"],
        json!({"at": "2999-01-01T00:00:00+00:00", "from": "n1"})
    );
    let deleted = (200, "scheduled switchover deleted".to_owned());
    assert_eq!(server.says(Method::DELETE, "/switchover", None).await, deleted);
    assert_eq!(server.store.get("failover").as_deref(), Some("{}"));
    assert_eq!(server.says(Method::DELETE, "/switchover", None).await, gone);
}

#[tokio::test]
async fn requests_for_this_member_go_to_the_agent() {
    let mut server = server(HEALTHY).await;
    let agent = server.agent();
    let later = "2999-01-01T00:00:00Z";
    for (method, path, body, code, text) in [
        (Method::POST, "/restart", None, 200, "restarted successfully"),
        (
            Method::POST,
            "/restart",
            Some(json!({"role": "primary"})),
            503,
            "reinitialize already in progress",
        ),
        (
            Method::POST,
            "/restart",
            Some(json!({"x": 1})),
            400,
            "Unknown filter for the scheduled restart: x",
        ),
        (
            Method::POST,
            "/restart",
            Some(json!({"schedule": later})),
            202,
            "Restart scheduled",
        ),
        (
            Method::POST,
            "/restart",
            Some(json!({"schedule": later, "role": "replica"})),
            409,
            "Another restart is already scheduled",
        ),
        (Method::DELETE, "/restart", None, 404, "no restarts are scheduled"),
        (
            Method::POST,
            "/reinitialize",
            None,
            503,
            "I am the leader, can not reinitialize",
        ),
        (
            Method::POST,
            "/reinitialize",
            Some(json!({"force": true})),
            200,
            "reinitialize started",
        ),
        (Method::POST, "/reload", None, 202, "reload scheduled"),
    ] {
        let label = format!("{method} {path} {body:?}");
        assert_eq!(
            server.says(method, path, body).await,
            (code, text.to_owned()),
            "{label}"
        );
    }
    let bad = server
        .raw(b"POST /reinitialize HTTP/1.0\r\nContent-Length: 1\r\n\r\n{")
        .await;
    assert!(bad.contains(" 400 "), "a malformed body starts nothing: {bad}");
    agent.abort();
}

#[tokio::test]
async fn shutdown_ends_idle_connections_and_abandons_the_rest() {
    let server = server(HEALTHY).await;
    let mut idle = TcpStream::connect(&server.address).await.expect("listening");
    let mut waiting = TcpStream::connect(&server.address).await.expect("listening");
    waiting
        .write_all(b"POST /restart HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .expect("open");
    assert_eq!(server.get("/liveness").await.status, 200);
    server.shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(5), server.task).await;
    ended.expect("serve returns").expect("no panic");
    assert_eq!(rest_of(&mut idle).await, "");
    assert_eq!(rest_of(&mut waiting).await, "");
    assert!(TcpStream::connect(&server.address).await.is_err());
}

fn failsafe_mode(server: &super::test_server::Server, snapshot: Snapshot) {
    let mut snapshot = live(snapshot);
    snapshot.dynamic.failsafe_mode = true;
    let mut pairs = HEALTHY.to_vec();
    pairs.push(("failsafe", r#"{"n1":"http://10.1.0.1:8008/patroni"}"#));
    if let Some(view) = &mut snapshot.dcs {
        view.cluster = Arc::new(cluster(&pairs));
    }
    server.snapshot.send_replace(Arc::new(snapshot));
}

#[tokio::test]
async fn a_replica_promises_a_primary_without_the_dcs_not_to_lead() {
    let server = server(HEALTHY).await;
    let question = json!({"name": "n1", "conn_url": "postgres://x", "api_url": "http://x/patroni", "ttl": 40,
        "round": 7, "number": 2});
    let ask = async |body| server.says(Method::POST, "/failsafe", body).await;
    assert_eq!(ask(Some(question.clone())).await.0, 502, "failsafe mode is off");
    failsafe_mode(&server, replica());
    let known = server.get("/failsafe").await;
    assert_eq!(
        (known.status, known.text()),
        (200, r#"{"n1": "http://10.1.0.1:8008/patroni"}"#.to_owned())
    );
    assert_eq!(ask(None).await.0, 400);
    assert_eq!(ask(Some(question.clone())).await, (200, "Accepted".to_owned()));
    let promise = server.lease.promised().expect("promised");
    let left = promise.until.since(crate::clock::Boottime::now());
    assert_eq!(
        (promise.to.as_str(), left.as_secs()),
        ("n1", 39),
        "for the asker's ttl"
    );
    assert!(
        server.lease.acquire().await.is_err(),
        "it does not ask for the lock"
    );
    let raw = server
        .raw(b"POST /failsafe HTTP/1.0\r\nContent-Length: 13\r\n\r\n{\"name\":\"n1\"}")
        .await;
    assert!(raw.contains("\r\nlsn: 83886408\r\n"), "{raw}");
    let forget = server.says(
        Method::DELETE,
        "/failsafe",
        Some(json!({"name": "n1", "round": 0, "number": 0})),
    );
    assert_eq!(forget.await.0, 200);
    assert_eq!(server.lease.promised(), None);
}

/// A question of Patroni's names no ttl; it counts with 20 s at least, also where the configuration says less.
#[tokio::test]
async fn what_patroni_asks_for_is_promised_for_as_long_as_patroni_counts_on_it() {
    let server = server(HEALTHY).await;
    for (configured, promised) in [(5, 19), (20, 19), (30, 29)] {
        let mut snapshot = replica();
        snapshot.dynamic.timing = crate::model::Timing::adjusted(configured, 1, 2);
        failsafe_mode(&server, snapshot);
        let question = json!({"name": "p1", "conn_url": "postgres://x", "api_url": "http://x/patroni", "slots": {"n2": 1}});
        let answer = server.says(Method::POST, "/failsafe", Some(question)).await;
        assert_eq!(answer, (200, "Accepted".to_owned()));
        let promise = server.lease.promised().expect("promised");
        let left = promise.until.since(crate::clock::Boottime::now());
        assert_eq!(left.as_secs(), promised, "ttl {configured}");
    }
}

#[tokio::test]
async fn who_leads_or_asks_for_the_lock_accepts_no_other() {
    let refused = (500, "Running as a leader".to_owned());
    let server = server(HEALTHY).await;
    failsafe_mode(&server, leader());
    let ask = async || {
        server
            .says(Method::POST, "/failsafe", Some(json!({"name": "n2"})))
            .await
    };
    assert_eq!(ask().await, refused);
    assert_eq!(server.lease.promised(), None);
}
