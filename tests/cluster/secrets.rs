//! The secrets of a cluster, looked for everywhere while it lives through a failover, a new copy and a person's mistakes:
//! in logs, in the processes below the agent, in files, in what commands and the REST API say.

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::json;

use super::{
    Cluster, SOON,
    node::{Node, PASSWORD, descendants, http},
};

const REPLICATION: &str = "only-the-replicas-know-4711";
const REWIND: &str = "only-pg_rewind-knows-4712";
const REST: &str = "only-operators-know-4713";
const SECRETS: [&str; 4] = [PASSWORD, REPLICATION, REWIND, REST];

/// Basic credentials are the secret, too.
fn all() -> Vec<String> {
    use base64::Engine as _;
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("operator:{REST}"));
    SECRETS
        .iter()
        .map(|secret| (*secret).to_owned())
        .chain([basic])
        .collect()
}

fn holds_one(bytes: &[u8]) -> Option<String> {
    let found = |secret: &String| {
        bytes
            .windows(secret.len())
            .any(|window| window == secret.as_bytes())
    };
    all().into_iter().find(found)
}

/// What processes show of themselves to everybody of their user, looked at again and again.
struct Watched {
    over: Arc<AtomicBool>,
    found: Arc<Mutex<BTreeSet<String>>>,
    thread: std::thread::JoinHandle<usize>,
}

fn watch(inits: Vec<i32>) -> Watched {
    let (over, found) = (
        Arc::<AtomicBool>::default(),
        Arc::<Mutex<BTreeSet<String>>>::default(),
    );
    let (ended, seen) = (Arc::clone(&over), Arc::clone(&found));
    let thread = std::thread::spawn(move || {
        let mut programs = BTreeSet::new();
        while !ended.load(Ordering::Relaxed) {
            for pid in inits.iter().flat_map(|init| descendants(*init)) {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                // The agent has been given them; what it has just forked is still the agent.
                let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
                let ours = program.file_name().is_none_or(|file| file == "howdah");
                let files: &[&str] = if ours {
                    &["cmdline"]
                } else {
                    &["cmdline", "environ"]
                };
                for file in files {
                    let shown = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                    if let Some(secret) = holds_one(&shown) {
                        seen.lock()
                            .unwrap()
                            .insert(format!("{} in {file} of {}", secret, name.trim()));
                    }
                }
                programs.insert(name.trim().to_owned());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        programs.len()
    });
    Watched { over, found, thread }
}

impl Watched {
    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        let programs = self.thread.join().expect("it watches");
        assert!(programs >= 3, "it saw {programs} programs only");
        let found = self.found.lock().unwrap();
        assert!(found.is_empty(), "{found:?}");
    }
}

/// Files below a directory that hold one.
fn files(dir: &std::path::Path, found: &mut Vec<String>) -> usize {
    let mut looked = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            looked += files(&path, found);
        } else if let Ok(bytes) = fs::read(&path) {
            looked += 1;
            if let Some(secret) = holds_one(&bytes) {
                found.push(format!("{secret} in {}", path.display()));
            }
        }
    }
    looked
}

async fn says(node: &Node, args: &[&str]) {
    let (_, out, err) = node.cli(args).await;
    let said = format!("{out}{err}");
    assert_eq!(holds_one(said.as_bytes()), None, "{args:?}: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_of_a_cluster_is_shown_anywhere() {
    let mut cluster = Cluster::prepare(&["pg1", "pg2"]);
    for node in &mut cluster.nodes {
        node.set("HOWDAH_REPLICATION_PASSWORD", REPLICATION)
            .set("HOWDAH_REWIND_PASSWORD", REWIND)
            .set("HOWDAH_RESTAPI_USERNAME", "operator")
            .set("HOWDAH_RESTAPI_PASSWORD", REST)
            .set("HOWDAH_LOG_LEVEL", "TRACE")
            .start();
    }
    let watched = watch(cluster.nodes.iter().map(Node::init_pid).collect());
    let leader = cluster.healthy().await;
    let replica = 1 - leader;
    let (from, to) = (
        cluster.nodes[leader].name.clone(),
        cluster.nodes[replica].name.clone(),
    );

    // Life: a planned change of the leader, a restart, a new copy, a crash with a rewind or none.
    let node = &cluster.nodes[leader];
    for args in [
        vec!["check"],
        vec!["list", "-e"],
        vec!["show-config"],
        vec!["config", "explain", "HOWDAH_SUPERUSER_PASSWORD"],
        vec!["config", "explain", "HOWDAH_RESTAPI_PASSWORD"],
        vec!["query", "-c", "SELECT 1/0"],
        vec!["query", "-c", "SELECT * FROM pg_stat_activity"],
        vec!["switchover", "--leader", &from, "--candidate", &to, "--force"],
    ] {
        says(node, &args).await;
    }
    cluster.nodes[replica].wait_primary(SOON).await;
    cluster.nodes[leader].wait_streaming(SOON).await;
    says(node, &["restart", "demo", &from, "--force"]).await;
    says(node, &["reinit", "demo", &from, "--force", "--wait"]).await;
    says(node, &["reload", "demo", "--force"]).await;
    cluster.nodes[leader].wait_streaming(SOON).await;
    let pid = cluster.nodes[replica].postmaster_pid().expect("a postmaster");
    cluster.nodes[replica].signal(pid, "KILL");
    cluster.healthy().await;

    // What the REST API says, to those without a password as well.
    for node in &cluster.nodes {
        for path in [
            "/patroni",
            "/cluster",
            "/config",
            "/history",
            "/slots",
            "/metrics",
            "/why",
            "/ui",
            "/failsafe",
            "/log",
        ] {
            let (_, answer) = http(node.api_port, "GET", path, None).await.expect("an answer");
            assert_eq!(holds_one(answer.to_string().as_bytes()), None, "{path}");
        }
        let (code, _) = node
            .request("PATCH", "/config", json!({"pause": true}))
            .await
            .expect("an answer");
        assert_eq!(code, 401);
    }

    // A mistake in the configuration is told without the value.
    let wrong = cluster.nodes[leader]
        .command(&["check"])
        .env("HOWDAH_RESTAPI_LISTEN", format!("postgres://x:{REST}@nowhere"))
        .env("HOWDAH_TTL", REWIND)
        .stdin(std::process::Stdio::null())
        .output()
        .expect("howdah");
    assert_eq!(wrong.status.code(), Some(64));
    assert!(!String::from_utf8_lossy(&wrong.stderr).contains(REST));

    watched.end();
    for node in &cluster.nodes {
        assert_eq!(holds_one(node.log().as_bytes()), None, "the log of {}", node.name);
        let mut found = Vec::new();
        let looked = files(&node.dir, &mut found);
        // Password files are what they are for, and for their owner only.
        let kept = ["pgpass", "pgpass.local"].map(|name| node.dir.join(name));
        found.retain(|place| {
            !kept
                .iter()
                .any(|path| place.ends_with(&format!(" in {}", path.display())))
        });
        assert!(looked > 500, "{looked} files");
        assert_eq!(found, Vec::<String>::new());
        for path in kept.iter().filter(|path| path.exists()) {
            let permissions = fs::metadata(path).expect("a file").permissions();
            let mode = std::os::unix::fs::PermissionsExt::mode(&permissions);
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        }
    }
}
