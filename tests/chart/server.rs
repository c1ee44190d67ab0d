//! What a real API server makes of the chart: every object of every variation, passwords that stay, rights that suffice.

use std::{path::PathBuf, process::Command, sync::Arc, time::Duration};

use howdah::dcs::{
    Dcs as _, Key, Lock, When,
    kubernetes::{Kubernetes, Labels, Mode, Options, Port},
};
use http::Method;
use serde_json::{Value, json};

use crate::{
    helm::{Done, chart, helm_program, kubectl_program, run, template, variations},
    kubernetes::{ADMIN, Server},
};

/// The version of the server, for what depends on it.
const VERSION: &str = "1.20.2";
const NAME: &str = "pg-howdah";

fn kubectl(server: &Server, input: &str, args: &[&str]) -> Done {
    let mut command = Command::new(kubectl_program());
    command.env("KUBECONFIG", server.admin_kubeconfig()).args(args);
    let mut done = run(command, input);
    if !done.ok && done.err.contains("connection refused") {
        done.err.push_str(&server.log());
    }
    done
}

fn release(server: &Server, namespace: &str, args: &[&str]) -> Done {
    let mut command = Command::new(helm_program());
    command
        .env("KUBECONFIG", server.admin_kubeconfig())
        .args(["--namespace", namespace])
        .args(args);
    run(command, "")
}

fn install(server: &Server, namespace: &str, more: &[&str]) -> String {
    let chart = chart();
    let args = [&["install", "pg", chart.to_str().unwrap()], more].concat();
    release(server, namespace, &args).expect("helm install")
}

/// Without custom resources: no server here knows the Prometheus operator's, and this version of it, compiled by a newer Go,
/// may crash over one that it was told of.
fn of_kubernetes(manifests: &str) -> String {
    let documents = manifests.split("\n---\n");
    let kept: Vec<&str> = documents
        .filter(|text| {
            !text.contains("\napiVersion: monitoring.coreos.com/")
                && !text.starts_with("apiVersion: monitoring")
        })
        .collect();
    kept.join("\n---\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_object_of_every_variation_is_accepted() {
    let server = Server::start().await;
    server.namespace("charts").await;
    for (name, file) in variations() {
        let args = ["--values", file.to_str().unwrap(), "--kube-version", VERSION];
        let text = of_kubernetes(&template(&[&args[..], &["--namespace", "charts"]].concat()).expect(&name));
        let args = ["apply", "--namespace=charts", "--dry-run=server", "--filename=-"];
        let said = kubectl(&server, &text, &args).expect(&name);
        let kinds = text.matches("\nkind: ").count();
        assert_eq!(said.lines().count(), kinds, "{name}: {said}");
    }
    // The check can fail.
    let wrong = template(&["--kube-version", VERSION])
        .expect("default")
        .replace("podManagementPolicy", "podManagement");
    let args = ["apply", "--namespace=charts", "--dry-run=server", "--filename=-"];
    let refused = kubectl(&server, &wrong, &args);
    assert!(
        !refused.ok && refused.err.contains("podManagement"),
        "{}",
        refused.err
    );
}

async fn passwords(server: &Server, namespace: &str) -> Value {
    let path = format!("/api/v1/namespaces/{namespace}/secrets/{NAME}-credentials");
    server.get(&path).await["data"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_stay_through_upgrades_and_after_the_end_of_a_release() {
    let server = Server::start().await;
    for namespace in ["one", "two", "three"] {
        server.namespace(namespace).await;
    }
    let notes = install(&server, "one", &[]);
    for words in [
        "exec pg-howdah-0 -- howdah list",
        "helm --namespace one test pg",
        "pg-howdah-replicas.one:5432",
    ] {
        assert!(notes.contains(words), "{notes}");
    }
    let first = passwords(&server, "one").await;
    let chart = chart();
    // Nobody runs a Job here.
    let upgrade = [
        "upgrade",
        "pg",
        chart.to_str().unwrap(),
        "--no-hooks",
        "--set",
        "replicaCount=5",
    ];
    release(&server, "one", &upgrade).expect("helm upgrade");
    assert_eq!(passwords(&server, "one").await, first);
    release(&server, "one", &["uninstall", "pg"]).expect("helm uninstall");
    let gone = format!("/apis/apps/v1/namespaces/one/statefulsets/{NAME}");
    assert_eq!(server.request(Method::GET, &gone, None).await.0, 404);
    install(&server, "one", &[]);
    assert_eq!(
        passwords(&server, "one").await,
        first,
        "the volumes are still there, too"
    );

    install(&server, "two", &[]);
    let second = passwords(&server, "two").await;
    for (key, value) in first.as_object().unwrap() {
        assert_ne!(second[key], *value, "{key}");
    }

    let mine = ["--set", "auth.existingSecret=mine"];
    install(&server, "three", &mine);
    let path = "/api/v1/namespaces/three/secrets";
    let secrets = server.get(path).await;
    let names: Vec<&str> = secrets["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|secret| secret["metadata"]["name"].as_str().unwrap())
        .filter(|name| name.contains(NAME))
        .collect();
    assert_eq!(names, Vec::<&str>::new(), "no second one beside mine");
}

/// A kubeconfig with which the admin acts as a service account.
fn acting_as(server: &Server, namespace: &str, account: &str) -> PathBuf {
    let user = format!("token: {ADMIN}\n    as: system:serviceaccount:{namespace}:{account}");
    server.kubeconfig(&format!("{namespace}-{account}"), &user)
}

fn member(kubeconfig: PathBuf, namespace: &str, mode: Mode) -> Arc<Kubernetes> {
    let labels = [
        ("app.kubernetes.io/name", "howdah"),
        ("app.kubernetes.io/instance", "pg"),
    ];
    Kubernetes::new(Options {
        mode,
        namespace: Some(namespace.into()),
        scope: NAME.into(),
        name: format!("{NAME}-0"),
        labels: labels
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        scope_label: "cluster-name".into(),
        pod_labels: Labels::default(),
        pod_ip: Some("10.0.0.7".into()),
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
        ttl: Duration::from_secs(10),
        retry_timeout: Duration::from_secs(5),
    })
    .unwrap()
}

/// Whether the account may do that, as the server sees it.
fn may(server: &Server, namespace: &str, account: &str, what: &str) -> bool {
    let account = format!("--as=system:serviceaccount:{namespace}:{account}");
    let namespace = format!("--namespace={namespace}");
    let mut args = vec!["auth", "can-i", &account, &namespace];
    args.extend(what.split(' '));
    kubectl(server, "", &args).out.trim() == "yes"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_of_each_mode_suffice_and_are_no_more() {
    let server = Server::start().await;
    for mode in Mode::ALL {
        let namespace = mode.as_str();
        server.namespace(namespace).await;
        install(
            &server,
            namespace,
            &["--set", &format!("dcs.kubernetes.mode={namespace}")],
        );
        let labels = json!({
            "app.kubernetes.io/name": "howdah", "app.kubernetes.io/instance": "pg", "cluster-name": NAME,
        });
        server.pods(namespace, &["pg-howdah-0"], &labels).await;
        let member = member(acting_as(&server, namespace, NAME), namespace, mode);
        assert_eq!(member.missing_rights().await.unwrap(), [], "{namespace}");
        let lock = member.acquire().await.unwrap();
        assert!(matches!(lock, Lock::Held(_)), "{namespace}: {lock:?}");
        member.touch_member("{}").await.unwrap();
        for key in [
            Key::Config,
            Key::Sync,
            Key::Failover,
            Key::Status,
            Key::Initialize,
        ] {
            member.write(key, "{}", When::Always).await.unwrap();
        }
        member.release(None).await.unwrap();
        for allowed in [
            "get endpoints/pg-howdah",
            "get configmaps/pg-howdah-leader",
            "get leases/pg-howdah",
        ] {
            assert!(may(&server, namespace, NAME, allowed), "{namespace}: {allowed}");
        }
        for refused in [
            "delete pods",
            "create pods",
            "get secrets",
            "create services",
            "delete configmaps",
            "get statefulsets",
            "get nodes",
        ] {
            assert!(!may(&server, namespace, NAME, refused), "{namespace}: {refused}");
        }
        let other = match mode {
            Mode::Endpoints => "list configmaps",
            Mode::ConfigMaps | Mode::Leases => "list endpoints",
        };
        assert!(!may(&server, namespace, NAME, other), "{namespace}: {other}");
    }

    // The Job after an upgrade: of the hooks, what gives it rights.
    let text =
        template(&["--namespace", "leases", "--show-only", "templates/rollout.yaml"]).expect("rollout");
    kubectl(&server, &text, &["apply", "--namespace=leases", "--filename=-"]).expect("apply");
    let rollout = format!("{NAME}-rollout");
    for allowed in [
        "get statefulsets/pg-howdah",
        "list pods",
        "delete pods/pg-howdah-2",
    ] {
        assert!(may(&server, "leases", &rollout, allowed), "{allowed}");
    }
    for refused in [
        "delete pods/pg-howdah-3",
        "patch pods",
        "get secrets",
        "get statefulsets/other",
        "get leases",
    ] {
        assert!(!may(&server, "leases", &rollout, refused), "{refused}");
    }
}
