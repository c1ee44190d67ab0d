//! What is rendered, and what is refused before.

use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::helm::{self, template, variations};

/// Every object of a rendered chart.
pub(super) fn objects(text: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|object| !object.is_null())
        .collect()
}

/// Every object of a variation, by its name.
fn rendered(name: &str, more: &[&str]) -> Vec<Value> {
    let file = helm::chart().join(format!("ci/{name}-values.yaml"));
    let done = template(&[&["--values", file.to_str().unwrap()], more].concat());
    objects(&done.expect(name))
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

#[test]
fn every_variation_passes_the_strict_linter() {
    let chart = helm::chart();
    for (name, file) in variations() {
        helm::helm(&[
            "lint",
            "--strict",
            "--quiet",
            chart.to_str().unwrap(),
            "--values",
            file.to_str().unwrap(),
        ])
        .expect(&name);
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_its_name() {
    for (set, word) in [
        ("replicaCount=0", "replicaCount"),
        ("replicas=3", "replicas"),
        ("service.primary.ports=1", "ports"),
        ("dcs.type=raft", "dcs.type"),
        ("dcs.type=etcd3", "hosts"),
        ("dcs.type=consul", "host"),
        ("dcs.kubernetes.mode=pods", "mode"),
        ("persistence.size=much", "persistence.size"),
        ("updateStrategy.type=Recreate", "updateStrategy"),
        ("fullnameOverride=Upper", "fullnameOverride"),
        (
            "fullnameOverride=a2345678901234567890123456789012345678901",
            "fullnameOverride",
        ),
    ] {
        let done = template(&["--set", set]);
        assert!(
            !done.ok && done.err.contains(word),
            "{set}: {}{}",
            done.out,
            done.err
        );
    }
}

/// What the level "restricted" of Kubernetes' Pod Security Standards forbids, and a root file system that can be written.
fn violations(pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut must = |holds: bool, what: String| {
        if !holds {
            found.push(what);
        }
    };
    let whole = &pod["securityContext"];
    for flag in ["hostNetwork", "hostPID", "hostIPC"] {
        must(pod[flag] != true, flag.to_owned());
    }
    let kinds = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        let fields = volume.as_object().unwrap();
        let allowed = fields
            .keys()
            .all(|key| key == "name" || kinds.contains(&key.as_str()));
        must(allowed, format!("volume {volume}"));
    }
    let containers = ["initContainers", "containers"];
    let containers = containers
        .iter()
        .flat_map(|list| pod[*list].as_array().into_iter().flatten());
    for container in containers {
        let name = container["name"].as_str().unwrap();
        let own = &container["securityContext"];
        let either = |key: &str| match own.get(key) {
            Some(value) => value.clone(),
            None => whole[key].clone(),
        };
        must(either("runAsNonRoot") == true, format!("{name}: runAsNonRoot"));
        must(either("runAsUser") != 0, format!("{name}: runAsUser"));
        let seccomp = &either("seccompProfile")["type"];
        must(
            seccomp == "RuntimeDefault" || seccomp == "Localhost",
            format!("{name}: seccompProfile"),
        );
        must(
            own["allowPrivilegeEscalation"] == false,
            format!("{name}: allowPrivilegeEscalation"),
        );
        must(own["privileged"] != true, format!("{name}: privileged"));
        must(
            own["capabilities"] == json!({"drop": ["ALL"]}),
            format!("{name}: capabilities"),
        );
        let ours = !matches!(name, "exporter" | "wait");
        must(
            !ours || own["readOnlyRootFilesystem"] == true,
            format!("{name}: readOnlyRootFilesystem"),
        );
        for port in container["ports"].as_array().into_iter().flatten() {
            must(port.get("hostPort").is_none(), format!("{name}: hostPort"));
        }
    }
    found
}

#[test]
fn every_pod_of_every_variation_is_restricted() {
    for (name, _) in variations() {
        let objects = rendered(&name, &[]);
        let templates = objects
            .iter()
            .filter(|object| matches!(object["kind"].as_str(), Some("StatefulSet" | "Job")));
        let pods: Vec<&Value> = templates
            .map(|object| &object["spec"]["template"]["spec"])
            .chain(of_kind(&objects, "Pod").into_iter().map(|pod| &pod["spec"]))
            .collect();
        assert!(!pods.is_empty(), "{name}");
        for pod in pods {
            assert_eq!(violations(pod), Vec::<String>::new(), "{name}");
        }
    }
}

#[test]
fn the_rules_for_pods_find_what_they_are_there_for() {
    let pod = json!({
        "hostPID": true,
        "volumes": [{"name": "x", "hostPath": {"path": "/"}}],
        "containers": [{"name": "c", "ports": [{"hostPort": 1}], "securityContext": {"privileged": true, "runAsUser": 0}}],
    });
    assert_eq!(violations(&pod).len(), 10, "{:?}", violations(&pod));
}

#[test]
fn a_budget_has_the_version_that_the_server_knows() {
    for (version, api) in [
        ("1.20.2", "policy/v1beta1"),
        ("1.21.0", "policy/v1"),
        ("1.33.1", "policy/v1"),
    ] {
        let objects = rendered("default", &["--kube-version", version]);
        let budgets = of_kind(&objects, "PodDisruptionBudget");
        assert_eq!(budgets[0]["apiVersion"], api, "{version}");
    }
}

#[test]
fn members_of_another_store_have_no_rights_and_no_token() {
    for name in ["etcd3", "consul", "zookeeper"] {
        let objects = rendered(name, &[]);
        let set = of_kind(&objects, "StatefulSet")[0];
        assert_eq!(
            set["spec"]["template"]["spec"]["automountServiceAccountToken"],
            false
        );
        let roles: Vec<&Value> = of_kind(&objects, "Role");
        let names: Vec<&Value> = roles.iter().map(|role| &role["metadata"]["name"]).collect();
        assert_eq!(names, ["pg-howdah-rollout"], "{name}");
        // Nothing would keep their labels up to date.
        let services = of_kind(&objects, "Service");
        assert!(
            services
                .iter()
                .all(|service| service["spec"]["selector"]["role"].is_null()),
            "{name}"
        );
    }
}

#[test]
fn no_password_is_in_the_pods_or_in_any_object_but_the_secret() {
    let objects = rendered("default", &[]);
    let secret = of_kind(&objects, "Secret")[0];
    let passwords: Vec<&str> = secret["data"]
        .as_object()
        .unwrap()
        .values()
        .map(|value| value.as_str().unwrap())
        .collect();
    assert_eq!(passwords.len(), 4);
    for object in objects.iter().filter(|object| object["kind"] != "Secret") {
        let text = object.to_string();
        assert!(
            passwords.iter().all(|password| !text.contains(password)),
            "{text}"
        );
    }
    let env = &of_kind(&objects, "StatefulSet")[0]["spec"]["template"]["spec"]["containers"][0]["env"];
    let names: Vec<&str> = env
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| variable["name"].as_str().unwrap())
        .filter(|name| name.contains("PASSWORD"))
        .collect();
    assert!(
        !names.is_empty() && names.iter().all(|name| name.ends_with("_FILE")),
        "{names:?}"
    );
}

/// Every variable the chart sets is one that Howdah knows, with a value it accepts.
#[test]
fn every_variation_is_a_configuration_without_mistakes() {
    let files = tempfile::tempdir().unwrap();
    let password = files.path().join("password");
    std::fs::write(&password, "secret").unwrap();
    for (name, _) in variations() {
        let objects = rendered(&name, &[]);
        let env = &of_kind(&objects, "StatefulSet")[0]["spec"]["template"]["spec"]["containers"][0]["env"];
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_howdah"));
        command.arg("check").env_clear();
        for variable in env.as_array().unwrap() {
            let key = variable["name"].as_str().unwrap();
            let value = match (&variable["value"], key) {
                // What only a pod has.
                (Value::Null, "HOWDAH_NAME") => "pg-howdah-0",
                (Value::Null, _) => "default",
                (_, key) if key.ends_with("PASSWORD_FILE") => password.to_str().unwrap(),
                // A file of the variation's own.
                (_, "HOWDAH_ETCD3_CACERT") => continue,
                (value, _) => value.as_str().unwrap(),
            };
            command.env(key, value);
        }
        let checked = helm::run(command, "").expect(&name);
        assert!(
            checked.contains("pg-howdah") || checked.contains("pg-db"),
            "{checked}"
        );
        assert!(!checked.contains("unknown"), "{name}: {checked}");
    }
}

/// The Prometheus operator finds the Service by its labels and the port by its name.
#[test]
fn what_prometheus_is_told_of_is_there() {
    let objects = rendered("monitored", &[]);
    let monitors = of_kind(&objects, "ServiceMonitor");
    assert_eq!(monitors.len(), 1);
    let spec = &monitors[0]["spec"];
    let wanted = spec["selector"]["matchLabels"].as_object().expect("labels");
    let services = of_kind(&objects, "Service").into_iter().filter(|service| {
        let labels = &service["metadata"]["labels"];
        wanted.iter().all(|(name, value)| labels[name] == *value)
    });
    let services: Vec<&Value> = services.collect();
    assert_eq!(services.len(), 1, "{wanted:?}");
    let port = &spec["endpoints"][0]["port"];
    let ports = services[0]["spec"]["ports"].as_array().expect("ports");
    assert!(
        ports.iter().any(|named| named["name"] == *port),
        "{port} of {ports:?}"
    );
}
