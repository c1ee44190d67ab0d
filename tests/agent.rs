//! The agent's own promises, with a real member, real postgres and a real etcd: one process per name, nothing half made
//! is ever a member, and a stop that does not depend on the store.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::type_complexity,
    reason = "tests: a panic is a failure, waits poll a condition with a deadline, and helpers are shared"
)]

#[path = "common/etcd.rs"]
mod etcd;
#[path = "common/node.rs"]
mod node;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use etcd::Server as Etcd;
use node::{Node, code, own, wait_for};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);

fn place() -> TempDir {
    let base = tempfile::Builder::new().prefix("howdah-").tempdir().unwrap();
    fs::set_permissions(base.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    base
}

fn member(base: &Path, folder: &str, name: &str, etcd: &Etcd) -> Node {
    let mut node = Node::new(base, folder, "demo", &[etcd.endpoint()]);
    node.set("HOWDAH_NAME", name);
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_of_one_name_is_refused_and_the_first_goes_on() {
    let (base, etcd) = (place(), Etcd::start());
    let mut first = member(base.path(), "first", "pg1", &etcd);
    first.start();
    first.wait_primary(SOON).await;
    let mut second = member(base.path(), "second", "pg1", &etcd);
    second.start();
    assert_eq!(code(second.wait_exit(SOON).await), 78);
    let log = second.log();
    let address = format!("127.0.0.1:{}", first.api_port);
    assert!(
        log.contains("pg1") && log.contains(&address) && log.contains("HOWDAH_NAME"),
        "{log}"
    );
    assert!(!second.data_dir().join("PG_VERSION").exists(), "it did nothing");
    assert_eq!(first.role().await.unwrap(), "primary/running");
    // Killed and started again it is no namesake of itself, although its key is still there.
    first.kill_node();
    first.start();
    first.wait_primary(SOON).await;
    assert_eq!(code(first.stop(SOON).await), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_stops_in_time_also_without_a_store() {
    let (base, etcd) = (place(), Etcd::start());
    let mut node = member(base.path(), "pg1", "pg1", &etcd);
    node.set("HOWDAH_TTL", "30").set("HOWDAH_RETRY_TIMEOUT", "10");
    node.start();
    node.wait_primary(SOON).await;
    drop(etcd);
    let begun = Instant::now();
    let exit = node.stop(SOON).await;
    let took = begun.elapsed();
    assert_eq!(code(exit), 81, "the lock is left to expire, and that is said");
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_made_cluster_is_made_again_when_its_agent_was_killed() {
    let (base, etcd) = (place(), Etcd::start());
    let mut node = member(base.path(), "pg1", "pg1", &etcd);
    let scripts = node.dir.join("initdb.d");
    fs::create_dir_all(&scripts).unwrap();
    // The first time it hangs; the second time it leaves a witness.
    let flag = node.dir.join("begun");
    let script = format!(
        "if [ ! -e {flag} ]; then touch {flag}; sleep 60; fi\npsql -qc 'CREATE TABLE witness()'\n",
        flag = flag.display()
    );
    fs::write(scripts.join("slow.sh"), script).unwrap();
    own(&scripts);
    node.start();
    wait_for("the init script", SOON, async || {
        flag.exists().then_some(()).ok_or("not yet".to_owned())
    })
    .await;
    let agent = node.agent_pid().unwrap();
    node.signal(agent, "KILL");
    node.wait_primary(Duration::from_secs(60)).await;
    assert!(node.sql("SELECT * FROM witness").await.is_ok());
    assert!(node.log().contains("half made"), "it was found and stopped");
    assert_eq!(code(node.stop(SOON).await), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_for_a_running_agent_do_not_end_one_that_starts() {
    let (base, etcd) = (place(), Etcd::start());
    let mut node = member(base.path(), "pg1", "pg1", &etcd);
    node.start();
    let agent = wait_for("the agent", SOON, async || {
        node.agent_pid().ok_or("not yet".to_owned())
    })
    .await;
    wait_for("its first line", SOON, async || {
        node.log()
            .contains("howdah starts")
            .then_some(())
            .ok_or("not yet".to_owned())
    })
    .await;
    for signal in ["HUP", "USR1", "USR2", "USR1"] {
        node.signal(agent, signal);
    }
    node.wait_primary(SOON).await;
    assert_eq!(node.agent_pid(), Some(agent));
    assert_eq!(code(node.stop(SOON).await), 0);
}
