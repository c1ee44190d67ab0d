//! The REST API against its own document: a fuzzer (schemathesis) reads `/openapi.json` of a real member and asks it
//! everything the document allows and much that it does not. Every status, type and shape has to be one the document
//! names, every answer has to come in time, nothing may panic, and after all that a person can still set the cluster right.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests: a panic is a failure, and waits poll a condition with a deadline"
)]

#[path = "common/etcd.rs"]
#[allow(
    dead_code,
    reason = "shared with the DCS contract ring, which uses more of it"
)]
mod etcd;
#[path = "common/node.rs"]
#[allow(dead_code, reason = "shared with the cluster ring, which uses more of it")]
mod node;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use node::{Node, wait_for};
use serde_json::{Value, json};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);
/// Whatever was asked before, among it restarts and copies of a replica.
const HEALED: Duration = Duration::from_secs(120);

/// Which requests, and how many of each at most.
struct Round<'a> {
    name: &'a str,
    options: &'a [&'a str],
    examples: &'a str,
    /// An answer that takes longer is a hang.
    within: &'a str,
}

/// Where tests/run has put it.
fn program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.cache/schemathesis/bin/schemathesis")
}

async fn fuzz(node: &Node, base: &TempDir, round: &Round<'_>) {
    let url = format!("http://127.0.0.1:{}", node.api_port);
    let mut command = tokio::process::Command::new(program());
    command
        .args(["run", &format!("{url}/openapi.json"), "--url", &url])
        .args([
            "--checks",
            "status_code_conformance,content_type_conformance,response_schema_conformance",
        ])
        .args([
            "--phases",
            "examples,coverage,fuzzing",
            "--max-examples",
            round.examples,
        ])
        .args([
            "--request-timeout",
            round.within,
            "--continue-on-failure",
            "--no-shrink",
        ])
        .args([
            "--generation-database",
            "none",
            "--seed",
            "1",
            "--warnings",
            "off",
        ])
        .args(["--suppress-health-check", "all"])
        .args(round.options)
        .current_dir(base.path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let limit = Duration::from_secs(600);
    let ran = tokio::time::timeout(limit, command.output())
        .await
        .expect("it ends");
    let ran = ran.unwrap_or_else(|error| panic!("{}: {error}; tests/run installs it", program().display()));
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success(),
        "{}: {said}{}",
        round.name,
        String::from_utf8_lossy(&ran.stderr)
    );
    // A fuzzer that found no operation, or got no answer, has shown nothing.
    assert!(
        said.contains("passed") || said.contains("No issues found"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_answers_as_its_document_says() {
    let base = tempfile::Builder::new().prefix("howdah-").tempdir().unwrap();
    std::fs::set_permissions(base.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let etcd = etcd::Server::start();
    let mut nodes: Vec<Node> = ["pg1", "pg2"]
        .iter()
        .map(|name| Node::new(base.path(), name, "demo", &[etcd.endpoint()]))
        .collect();
    nodes[0].start();
    nodes[0].wait_primary(SOON).await;
    nodes[1].start();
    nodes[1].wait_streaming(SOON).await;
    let (_, before) = nodes[0].get("/config").await.unwrap();

    let looks = Round {
        name: "what changes nothing, asked of the replica",
        options: &[
            "--include-method",
            "GET",
            "--include-method",
            "HEAD",
            "--include-method",
            "OPTIONS",
        ],
        examples: "20",
        within: "5",
    };
    fuzz(&nodes[1], &base, &looks).await;
    // A switchover may be waited for as long as it says itself; a restart as long as PostgreSQL needs.
    let change = [
        "--include-method",
        "POST",
        "--include-method",
        "PUT",
        "--include-method",
        "PATCH",
        "--include-method",
        "DELETE",
    ];
    let changes = Round {
        name: "what changes something, asked of the leader",
        options: &change,
        examples: "25",
        within: "60",
    };
    fuzz(&nodes[0], &base, &changes).await;

    // Anything may be in the configuration now.
    for node in &nodes {
        wait_for("the agent to answer", SOON, async || {
            match node.get("/liveness").await? {
                (200, _) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        let log = node.log();
        assert!(!log.contains("panicked"), "{} panicked: {log}", node.name);
        assert_eq!(log.matches("starting the agent").count(), 0, "{log}");
    }
    let (code, answer) = nodes[0].request("PUT", "/config", before).await.unwrap();
    assert_eq!(code, 200, "{answer}");
    let (_, _) = nodes[0]
        .request("DELETE", "/switchover", json!({}))
        .await
        .unwrap();
    wait_for("one leader, and the other streams", HEALED, async || {
        let (_, view) = nodes[0].get("/cluster").await?;
        let members = view["members"].as_array().ok_or_else(|| view.to_string())?;
        let has = |role: &str, state: &str| {
            let is = |member: &&Value| member["role"] == role && member["state"] == state;
            members.iter().filter(is).count()
        };
        match (has("leader", "running"), has("replica", "streaming")) {
            (1, 1) => Ok(()),
            _ => Err(view.to_string()),
        }
    })
    .await;
}
