//! What is particular to Kubernetes as the store: what Patroni would find there, servers that stop, hang, come back
//! empty, credentials and rights, and modes that must not be mixed. The contract itself: dcs_contract.rs.
#![allow(
    clippy::disallowed_methods,
    reason = "tests: waits poll a condition with a deadline, and temporary data is removed"
)]
#![cfg(feature = "kubernetes")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

mod common {
    #[allow(dead_code, reason = "other tests use the rest")]
    pub(crate) mod etcd;
    pub(crate) mod kubernetes;
}

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use common::kubernetes::{ADMIN, MEMBER, Server, host_address};
use howdah::{
    clock::Boottime,
    dcs::{
        Dcs, DcsError, Hold, Key, Lock, When, Written,
        kubernetes::{Kubernetes, Labels, Mode, Options, Port},
    },
};
use http::Method;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

const TTL: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_secs(2);

fn options(kubeconfig: PathBuf, namespace: &str, mode: Mode, name: &str) -> Options {
    Options {
        mode,
        namespace: Some(namespace.into()),
        scope: "demo".into(),
        name: name.into(),
        labels: [("application".to_owned(), "patroni".to_owned())].into(),
        scope_label: "cluster-name".into(),
        pod_labels: Labels::default(),
        pod_ip: Some(format!(
            "10.0.0.{}",
            name.bytes().map(u32::from).sum::<u32>() % 250 + 1
        )),
        ports: vec![Port {
            port: 5432,
            name: Some("postgresql".into()),
            protocol: "TCP".into(),
        }],
        cacert: None,
        kubeconfig: Some(kubeconfig),
        context: None,
        bypass_api_service: false,
        retriable_http_codes: vec![],
        ttl: TTL,
        retry_timeout: RETRY,
    }
}

async fn place(server: &Server, namespace: &str) {
    server.namespace(namespace).await;
    let labels = json!({"application": "patroni", "cluster-name": "demo"});
    server.pods(namespace, &["a", "b", "c"], &labels).await;
}

fn member(server: &Server, namespace: &str, mode: Mode, name: &str) -> Arc<Kubernetes> {
    Kubernetes::new(options(server.admin_kubeconfig(), namespace, mode, name)).unwrap()
}

fn held(lock: Result<Lock, DcsError>) -> Hold {
    match lock {
        Ok(Lock::Held(hold)) => hold,
        other => panic!("expected to hold the lock, got {other:?}"),
    }
}

async fn until<T>(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(
            started.elapsed() < limit,
            "{what} did not happen within {limit:?}"
        );
        sleep(Duration::from_millis(20)).await;
    }
}

async fn watching(dcs: &Kubernetes) -> tokio::sync::watch::Receiver<u64> {
    let mut changes = dcs.changes();
    timeout(Duration::from_secs(10), changes.wait_for(|n| *n > 0))
        .await
        .unwrap()
        .unwrap();
    changes.mark_unchanged();
    changes
}

fn objects(namespace: &str, kind: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/{kind}/{name}")
}

#[tokio::test]
async fn the_objects_are_those_of_patroni() {
    let server = Server::start().await;
    place(&server, "layout").await;
    let at = |kind: &str, name: &str| objects("layout", kind, name);
    let a = member(&server, "layout", Mode::Endpoints, "a");
    let hold = held(a.acquire().await);
    let leader = server.get(&at("endpoints", "demo")).await;
    let annotations = &leader["metadata"]["annotations"];
    let texts = ["leader", "ttl", "transitions"].map(|name| annotations[name].as_str().unwrap().to_owned());
    assert_eq!(texts, ["a", "3", "0"]);
    for time in ["acquireTime", "renewTime"] {
        let text = annotations[time].as_str().unwrap();
        // As Python's isoformat() writes it.
        assert!(text.len() == 32 && text.ends_with("+00:00"), "{time}: {text}");
    }
    assert_eq!(
        leader["metadata"]["labels"],
        json!({"application": "patroni", "cluster-name": "demo"})
    );
    let pod = server.get(&at("pods", "a")).await;
    let address = json!({
        "ip": "10.0.0.98",
        "targetRef": {"kind": "Pod", "namespace": "layout", "name": "a", "uid": pod["metadata"]["uid"]},
    });
    let ports = json!([{"name": "postgresql", "port": 5432, "protocol": "TCP"}]);
    assert_eq!(
        leader["subsets"],
        json!([{"addresses": [address], "ports": ports}])
    );

    let status = r#"{"optime":83886408,"slots":{"a":83886408},"retain_slots":["b"]}"#;
    a.write(Key::Status, status, When::Always).await.unwrap();
    a.write(Key::Failsafe, r#"{"a":"http://a:8008/patroni"}"#, When::Absent)
        .await
        .unwrap();
    a.write(Key::Initialize, "7320", When::Absent).await.unwrap();
    a.write(Key::Config, r#"{"ttl":3}"#, When::Always).await.unwrap();
    a.write(Key::History, "[]", When::Always).await.unwrap();
    let sync = r#"{"leader":"a","quorum":1,"sync_standby":"b,c"}"#;
    a.write(Key::Sync, sync, When::Absent).await.unwrap();
    a.write(Key::Failover, r#"{"leader":"a","member":"b"}"#, When::Always)
        .await
        .unwrap();
    let running = r#"{"state":"running","role":"primary","api_url":"http://a:8008/patroni"}"#;
    a.touch_member(running).await.unwrap();
    for (name, expected) in [
        (
            "demo",
            json!({"optime": "83886408", "slots": r#"{"a":83886408}"#, "retain_slots": r#"["b"]"#, "failsafe": r#"{"a":"http://a:8008/patroni"}"#}),
        ),
        (
            "demo-config",
            json!({"initialize": "7320", "config": r#"{"ttl":3}"#, "history": "[]"}),
        ),
        (
            "demo-sync",
            json!({"leader": "a", "quorum": "1", "sync_standby": "b,c"}),
        ),
        ("demo-failover", json!({"leader": "a", "member": "b"})),
    ] {
        let object = server.get(&at("endpoints", name)).await;
        for (annotation, value) in expected.as_object().unwrap() {
            assert_eq!(
                &object["metadata"]["annotations"][annotation], value,
                "{name}: {annotation}"
            );
        }
    }
    let pod = server.get(&at("pods", "a")).await;
    assert_eq!(pod["metadata"]["annotations"]["status"], running);
    assert_eq!(pod["metadata"]["labels"]["role"], "primary");

    // A renewal is one patch that keeps the rest; giving up takes the address away and counts the change on.
    assert_eq!(held(a.renew().await).lease, hold.lease);
    let renewed = server.get(&at("endpoints", "demo")).await;
    assert_eq!(
        renewed["metadata"]["annotations"]["acquireTime"],
        annotations["acquireTime"]
    );
    assert_ne!(
        renewed["metadata"]["annotations"]["renewTime"],
        annotations["renewTime"]
    );
    assert_eq!(renewed["metadata"]["annotations"]["optime"], "83886408");
    a.release(Some(r#"{"optime":83886500}"#)).await.unwrap();
    let released = server.get(&at("endpoints", "demo")).await;
    assert_eq!(released["metadata"]["annotations"]["leader"], Value::Null);
    assert_eq!(released["metadata"]["annotations"]["optime"], "83886500");
    assert_eq!(released["subsets"], Value::Null);
    let b = member(&server, "layout", Mode::Endpoints, "b");
    held(b.acquire().await);
    let taken = server.get(&at("endpoints", "demo")).await;
    assert_eq!(taken["metadata"]["annotations"]["transitions"], "1");
    assert_eq!(taken["subsets"][0]["addresses"][0]["ip"], "10.0.0.99");
    b.release(None).await.unwrap();

    // A lock that Patroni holds is respected while it is renewed, and passed over ttl after it was last seen changing.
    let patroni = |renewed: u32| {
        json!({"metadata": {"annotations": {
            "leader": "c", "ttl": "3", "transitions": "7",
            "acquireTime": "2026-01-01T00:00:00.000001+00:00",
            "renewTime": format!("2026-01-01T00:00:0{renewed}+00:00"),
        }}})
    };
    for renewed in 0..4 {
        server.patch(&at("endpoints", "demo"), patroni(renewed)).await;
        assert_eq!(b.acquire().await.unwrap(), Lock::Lost(Some("c".into())));
        sleep(Duration::from_secs(1)).await;
    }
    let last = Boottime::now();
    let mut changes = watching(&b).await;
    timeout(TTL, changes.changed())
        .await
        .expect("woken when the lock is over")
        .unwrap();
    let passed = Boottime::now().since(last);
    assert!(
        passed < TTL,
        "counted from when it was seen, {passed:?} ago and a second more"
    );
    assert_eq!(b.cluster().await.unwrap().leader, None);
    held(b.acquire().await);
    let taken = server.get(&at("endpoints", "demo")).await;
    assert_eq!(taken["metadata"]["annotations"]["transitions"], "8");
}

#[tokio::test]
async fn a_server_that_stops_hangs_or_comes_back_empty_costs_no_lock() {
    let mut server = Server::start().await;
    place(&server, "outage").await;
    for mode in Mode::ALL {
        let a = member(&server, "outage", mode, "a");
        let mut changes = watching(&a).await;
        let hold = until("the end of the other mode's lock", TTL * 3, async || {
            match a.acquire().await {
                Ok(Lock::Held(hold)) => Some(hold),
                _ => None,
            }
        })
        .await;
        a.touch_member("{}").await.unwrap();
        let slack = Duration::from_millis(700);
        // Hanging: an error in time, and used again as soon as it goes on.
        server.freeze();
        let started = Instant::now();
        let error = a.renew().await.unwrap_err();
        assert!(
            started.elapsed() < TTL / 3 + slack,
            "renew took {:?}",
            started.elapsed()
        );
        assert!(
            matches!(error, DcsError::Timeout { .. } | DcsError::Transport { .. }),
            "{error}"
        );
        let started = Instant::now();
        assert!(a.cluster().await.is_err());
        assert!(
            started.elapsed() < RETRY + slack,
            "cluster took {:?}",
            started.elapsed()
        );
        server.thaw();
        let started = Instant::now();
        let again = until("a renewal after the thaw", RETRY * 2, async || {
            a.renew().await.ok()
        })
        .await;
        println!(
            "{}: renewed {:?} after the thaw",
            mode.as_str(),
            started.elapsed()
        );
        assert_eq!(held(Ok(again)).lease, hold.lease);

        // Stopped and started.
        server.kill();
        assert!(a.renew().await.is_err());
        changes.mark_unchanged();
        server.start_again().await;
        let started = Instant::now();
        let again = until("a renewal after the restart", RETRY * 3, async || {
            a.renew().await.ok()
        })
        .await;
        println!(
            "{}: renewed {:?} after the restart",
            mode.as_str(),
            started.elapsed()
        );
        assert_eq!(held(Ok(again)).lease, hold.lease);
        timeout(Duration::from_secs(10), changes.changed())
            .await
            .expect("the watch is back")
            .unwrap();
        a.release(None).await.unwrap();
    }
    // Wiped: the holder fills it again, as far as that is its.
    let a = member(&server, "outage", Mode::Endpoints, "a");
    held(a.acquire().await);
    server.kill();
    server.wipe();
    server.start_again().await;
    place(&server, "outage").await;
    let cluster = until("an answer of the empty store", RETRY * 3, async || {
        a.cluster().await.ok()
    })
    .await;
    assert!(cluster.leader.is_none() && cluster.members.is_empty());
    held(a.renew().await);
    a.touch_member("{}").await.unwrap();
    let cluster = a.cluster().await.unwrap();
    assert_eq!(
        (cluster.leader.unwrap().name, cluster.members.len()),
        ("a".into(), 1)
    );
}

/// What a member needs, as a Role has it.
fn role(rules: &Value) -> Value {
    json!({"metadata": {"name": "howdah"}, "rules": rules})
}

fn binding() -> Value {
    json!({
        "metadata": {"name": "howdah"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "howdah"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "member"}],
    })
}

const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/rights";

#[tokio::test]
async fn rights_and_credentials_are_named_and_a_refusal_loses_no_lock() {
    let server = Server::start().await;
    place(&server, "rights").await;
    // The example in the README, as it is.
    let readme = include_str!("../README.md");
    let (_, manifest) = readme.split_once("kind: Role\n").expect("README has a Role");
    let (manifest, _) = manifest.split_once("\n---").expect("and something after it");
    let manifest: Value = serde_yaml_ng::from_str(manifest).unwrap();
    let rules = &manifest["rules"];
    server.create(&format!("{ROLES}/roles"), role(rules)).await;
    server.create(&format!("{ROLES}/rolebindings"), binding()).await;

    let kubeconfig = server.kubeconfig("member", &format!("token: {MEMBER}"));
    let a = Kubernetes::new(options(kubeconfig.clone(), "rights", Mode::Endpoints, "a")).unwrap();
    assert!(
        until("the Role", RETRY * 3, async || a
            .missing_rights()
            .await
            .ok()
            .filter(Vec::is_empty))
        .await
        .is_empty()
    );
    held(a.acquire().await);
    a.touch_member("{}").await.unwrap();
    let written = a.write(Key::Sync, "{}", When::Absent).await.unwrap();
    assert_ne!(written, Written::Refused);
    watching(&a).await;
    let leases = Kubernetes::new(options(kubeconfig.clone(), "rights", Mode::Leases, "b")).unwrap();
    let missing: Vec<String> = leases
        .missing_rights()
        .await
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    println!("missing for leases: {}", missing.join(", "));
    assert!(
        missing.contains(&"patch leases.coordination.k8s.io".to_owned()),
        "{missing:?}"
    );
    assert!(!missing.contains(&"patch pods".to_owned()), "{missing:?}");

    // Somebody takes the right away, and gives it back.
    let (status, _) = server
        .request(Method::DELETE, &format!("{ROLES}/rolebindings/howdah"), None)
        .await;
    assert_eq!(status, 200);
    let error = until("a refusal", RETRY * 3, async || a.renew().await.err()).await;
    assert!(matches!(error, DcsError::Credentials { .. }), "{error}");
    assert!(error.to_string().contains("endpoints"), "{error}");
    server.create(&format!("{ROLES}/rolebindings"), binding()).await;
    let again = until("the right to renew", RETRY * 3, async || a.renew().await.ok()).await;
    held(Ok(again));

    // A token that is replaced in its file.
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "expired").unwrap();
    let rotating = server.kubeconfig("rotating", &format!("tokenFile: {}", token.display()));
    let b = Kubernetes::new(options(rotating, "rights", Mode::Endpoints, "b")).unwrap();
    let started = Instant::now();
    let error = b.cluster().await.unwrap_err();
    assert!(matches!(error, DcsError::Credentials { .. }), "{error}");
    assert!(
        started.elapsed() < RETRY && !error.to_string().contains("expired"),
        "{error}"
    );
    std::fs::write(&token, ADMIN).unwrap();
    b.cluster().await.expect("the new token is read at once");
}

#[tokio::test]
async fn modes_of_one_cluster_exclude_each_other() {
    let server = Server::start().await;
    place(&server, "modes").await;
    let [maps, ends, lease] =
        Mode::ALL.map(|mode| member(&server, "modes", mode, ["a", "b", "c"][mode as usize]));
    held(maps.acquire().await);
    for other in [&ends, &lease] {
        let error = other.acquire().await.unwrap_err();
        assert!(matches!(error, DcsError::Config(_)), "{error}");
        for word in [
            "'a' holds the lock",
            "configmaps",
            "HOWDAH_KUBERNETES_MODE=configmaps",
        ] {
            assert!(error.to_string().contains(word), "{error}");
        }
        assert!(
            other.cluster().await.is_err(),
            "nobody takes it for an empty store either"
        );
    }
    // Nobody renews it any more.
    let (taken, after) = {
        let last = held(maps.renew().await).sent_at;
        drop(maps);
        let taken = until("the end of the old lock", TTL * 2, async || {
            match ends.acquire().await {
                Ok(Lock::Held(hold)) => Some(hold),
                _ => None,
            }
        })
        .await;
        (taken, Boottime::now().since(last))
    };
    assert!(after >= TTL, "taken over after only {after:?}");
    assert!(lease.acquire().await.is_err());
    assert!(taken.ttl == TTL);
    ends.release(None).await.unwrap();

    // In the same moment, again and again: never two.
    for round in 0..10 {
        let (one, two) = (Arc::clone(&ends), Arc::clone(&lease));
        let (one, two) = tokio::join!(
            tokio::spawn(async move { one.acquire().await }),
            tokio::spawn(async move { two.acquire().await })
        );
        let has = |lock: &Result<Lock, DcsError>| matches!(lock, Ok(Lock::Held(_)));
        let (one, two) = (one.unwrap(), two.unwrap());
        assert!(!(has(&one) && has(&two)), "round {round}: {one:?} and {two:?}");
        ends.release(None).await.unwrap();
        lease.release(None).await.unwrap();
    }
}

#[tokio::test]
async fn the_leaders_service_follows_a_lease() {
    let server = Server::start().await;
    place(&server, "slices").await;
    let path = "/apis/discovery.k8s.io/v1beta1/namespaces/slices/endpointslices/demo-leader-v4";
    let leads_to = async |wanted: &[&str]| {
        let wanted = json!(wanted);
        let limit = Duration::from_secs(5);
        until("the slice to change", limit, async || {
            let (status, slice) = server.request(Method::GET, path, None).await;
            let addresses: Vec<&Value> = slice["endpoints"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|e| &e["addresses"][0])
                .collect();
            (status == 200 && json!(addresses) == wanted).then(|| slice.clone())
        })
        .await
    };
    let (a, b) = (
        member(&server, "slices", Mode::Leases, "a"),
        member(&server, "slices", Mode::Leases, "b"),
    );
    held(a.acquire().await);
    let slice = leads_to(&["10.0.0.98"]).await;
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "demo");
    assert_eq!(
        slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"],
        "howdah"
    );
    let lease = server
        .get("/apis/coordination.k8s.io/v1/namespaces/slices/leases/demo")
        .await;
    assert_eq!(
        (
            &lease["spec"]["holderIdentity"],
            &lease["spec"]["leaseDurationSeconds"]
        ),
        (&json!("a"), &json!(3))
    );
    a.release(None).await.unwrap();
    leads_to(&[]).await;
    held(b.acquire().await);
    leads_to(&["10.0.0.99"]).await;
    // A former leader writes late.
    let stale = json!({"endpoints": [{"addresses": ["10.0.0.98"]}]});
    server.patch(path, stale).await;
    held(b.renew().await);
    leads_to(&["10.0.0.99"]).await;
}

#[tokio::test]
async fn the_api_servers_themselves_are_asked_when_their_service_is_bypassed() {
    let server = Server::start().await;
    place(&server, "bypass").await;
    let port = server.port();
    // The second one does not exist.
    let endpoints = json!({
        "metadata": {"name": "kubernetes"},
        "subsets": [{"addresses": [{"ip": host_address()}, {"ip": "198.51.100.1"}], "ports": [{"name": "https", "port": port}]}],
    });
    server
        .create("/api/v1/namespaces/default/endpoints", endpoints.clone())
        .await;
    server
        .patch("/api/v1/namespaces/default/endpoints/kubernetes", endpoints)
        .await;
    let a = Kubernetes::new(Options {
        bypass_api_service: true,
        ..options(server.admin_kubeconfig(), "bypass", Mode::ConfigMaps, "a")
    })
    .unwrap();
    let asked = until("the servers to be known", RETRY * 3, async || {
        let servers = a.servers();
        (servers.len() == 2).then_some(servers)
    })
    .await;
    assert!(
        asked.contains(&format!("https://{}:{port}", host_address())),
        "{asked:?}"
    );
    for _ in 0..3 {
        let started = Instant::now();
        held(a.acquire().await);
        held(a.renew().await);
        assert!(started.elapsed() < RETRY, "{:?}", started.elapsed());
    }
}
