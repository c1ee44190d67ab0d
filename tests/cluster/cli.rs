//! The command line on a real cluster: the commands that read, change and forget, as a person types them.

use std::process::{Command, Stdio};

use super::{
    Cluster, SOON,
    node::{Node, wait_for},
};

async fn done(node: &Node, args: &[&str]) -> String {
    let (code, out, err) = node.cli(args).await;
    assert_eq!(code, 0, "{args:?}: {out}{err}");
    out.trim_end().to_owned()
}

async fn refused(node: &Node, args: &[&str]) -> String {
    let (code, out, err) = node.cli(args).await;
    assert_eq!(code, 1, "{args:?}: {out}{err}");
    format!("{out}{err}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_does_its_work() {
    let mut cluster = Cluster::start(&["pg1", "pg2"]).await;
    let leader = cluster.leader(SOON).await;
    let replica = 1 - leader;
    let node = &cluster.nodes[replica];
    let port = |index: usize| cluster.nodes[index].pg_port;

    // Where, and SQL there.
    assert_eq!(
        done(node, &["dsn"]).await,
        format!("host=127.0.0.1 port={}", port(leader))
    );
    assert_eq!(
        done(node, &["dsn", "-r", "replica"]).await,
        format!("host=127.0.0.1 port={}", port(replica))
    );
    assert!(
        refused(node, &["dsn", "-m", "nobody"])
            .await
            .contains("Can not find a suitable member")
    );
    assert!(
        refused(node, &["dsn", "-m", "pg1", "-r", "any"])
            .await
            .contains("mutually exclusive")
    );
    let rows = done(
        node,
        &[
            "query",
            "-r",
            "primary",
            "-c",
            "CREATE TABLE t (a int); INSERT INTO t VALUES (7); SELECT a, 'x' AS b FROM t",
        ],
    )
    .await;
    assert_eq!(rows, "a\tb\n7\tx");
    let rows = done(
        node,
        &[
            "query",
            "-r",
            "replica",
            "--format",
            "json",
            "-c",
            "SELECT pg_is_in_recovery() AS r",
        ],
    )
    .await;
    assert_eq!(rows, r#"[{"r": "t"}]"#);
    assert!(
        refused(node, &["query", "-c", "SELECT 1/0"])
            .await
            .contains("SQLSTATE: 22012")
    );
    assert!(
        refused(node, &["query", "-r", "standby-leader", "-c", "SELECT 1"])
            .await
            .contains("No connection to role standby-leader is available")
    );
    assert!(
        refused(node, &["query"])
            .await
            .contains("either --command or --file")
    );

    // The configuration.
    let shown = done(
        node,
        &[
            "edit-config",
            "-s",
            "loop_wait=2",
            "-p",
            "work_mem=8MB",
            "--force",
        ],
    )
    .await;
    assert!(
        shown.contains("+loop_wait: 2") && shown.ends_with("Configuration changed"),
        "{shown}"
    );
    assert!(done(node, &["show-config"]).await.contains("work_mem: 8MB"));
    wait_for("postgres to use it", SOON, async || {
        match node.sql("SHOW work_mem").await? {
            value if value == "8MB" => Ok(()),
            value => Err(value),
        }
    })
    .await;
    assert_eq!(
        done(node, &["edit-config", "-s", "loop_wait=2", "--force"]).await,
        "Not changed"
    );
    let explained = done(node, &["config", "explain", "work_mem"]).await;
    let holds = explained
        .lines()
        .find(|line| line.contains("| holds"))
        .unwrap_or_default();
    assert!(
        holds.contains("the cluster: /config postgresql.parameters") && holds.contains("8MB"),
        "{explained}"
    );
    assert!(
        explained.contains("In force on this member (replica): 8MB"),
        "{explained}"
    );
    let explained = done(node, &["config", "explain", "max_connections", "-f", "json"]).await;
    assert!(
        explained.contains(r#""Origin": "Howdah's default", "Value": "100", "Holds": "holds""#),
        "{explained}"
    );
    assert!(
        refused(node, &["config", "explain", "restapi.lissten"])
            .await
            .contains("did you mean restapi.listen?")
    );
    let (_, out, err) = node.cli(&["edit-config", "-s", "ttl=soon"]).await;
    assert!(err.contains("ttl = \"soon\""), "{out}{err}");
    assert!(
        done(node, &["show-config"]).await.contains("ttl: 5"),
        "nobody agreed"
    );
    assert!(
        refused(node, &["edit-config", "-s", "ttl"])
            .await
            .contains("Invalid parameter setting ttl")
    );
    // The REST API is as strict, and can be told to be less so.
    let patch =
        |path: &'static str| node.request("PATCH", path, serde_json::json!({"tll": 20, "loop_wait": 2}));
    let (code, text) = patch("/config").await.expect("an answer");
    assert!(code == 422 && text.to_string().contains("tll"), "{code} {text}");
    let (code, text) = patch("/config?force=true").await.expect("an answer");
    assert_eq!(code, 200, "{text}");
    // What is there already does not stand in the way of another change.
    done(node, &["edit-config", "-s", "loop_wait=1", "--force"]).await;

    // Maintenance, known to all when the command returns.
    assert!(
        done(node, &["pause", "--wait"])
            .await
            .ends_with("Success: cluster management is paused")
    );
    for other in &cluster.nodes {
        let (_, status) = other.get("/patroni").await.expect("an answer");
        assert_eq!(status["pause"], true, "{status}");
    }
    assert!(
        refused(node, &["pause"])
            .await
            .contains("Cluster is already paused")
    );
    done(node, &["resume", "--wait"]).await;

    // What is scheduled, and called off.
    assert_eq!(
        done(node, &["flush", "demo", "switchover"]).await,
        "No pending scheduled switchover"
    );
    let name = cluster.nodes[leader].name.clone();
    let later = [
        "switchover",
        "--leader",
        &name,
        "--scheduled",
        "2099-01-01T00:00:00Z",
        "--force",
    ];
    assert!(done(node, &later).await.contains("Switchover scheduled"));
    assert!(
        done(node, &["flush", "switchover"])
            .await
            .ends_with("Success: scheduled switchover deleted")
    );
    let later = [
        "restart",
        "demo",
        &name,
        "--scheduled",
        "2099-01-01T00:00:00Z",
        "--force",
    ];
    assert!(done(node, &later).await.contains("restart scheduled on member"));
    wait_for("the schedule to be published", SOON, async || {
        let shown = done(node, &["list", "-f", "tsv", "-e"]).await;
        if shown.contains("2099-01-01") {
            Ok(())
        } else {
            Err(shown)
        }
    })
    .await;
    let flushed = done(node, &["flush", "demo", "restart", "--force"]).await;
    assert!(
        flushed.contains(&format!("Success: flush scheduled restart for member {name}")),
        "{flushed}"
    );
    assert!(
        flushed.contains(&format!("No scheduled restart for member {}", node.name)),
        "{flushed}"
    );
    assert!(
        refused(node, &["flush", "demo"])
            .await
            .contains("restart or switchover")
    );

    let restarted = done(node, &["restart", "--force", "--wait"]).await;
    assert!(
        restarted.contains(" leads after ") && restarted.contains(" streams after "),
        "{restarted}"
    );

    let switched = done(node, &["switchover", "--force"]).await;
    let phases = switched
        .lines()
        .find(|line| line.starts_with("Phases of the hand-over: "));
    let phases = phases.unwrap_or_else(|| panic!("no phases in {switched}"));
    for phase in [
        "shut down",
        "checkpoint",
        "released",
        "taken",
        "asked",
        "requested",
        "promoted",
    ] {
        assert!(phases.contains(&format!("{phase} ")), "{phase}: {phases}");
    }

    // From elsewhere: nothing but the address of the store.
    let mut bare = Command::new(env!("CARGO_BIN_EXE_howdah"));
    bare.env_clear().env("HOWDAH_SCOPE", "demo").args([
        "-d",
        &format!(
            "etcd3://{}",
            cluster.etcd.endpoint().trim_start_matches("http://")
        ),
        "list",
        "-f",
        "tsv",
    ]);
    let listed = bare.stdin(Stdio::null()).output().expect("howdah");
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(
        text.contains("pg1") && text.contains("pg2"),
        "{text}{}",
        String::from_utf8_lossy(&listed.stderr)
    );

    // The shell knows the members.
    let script = "eval \"$(\"$HOWDAH\" completions bash)\"; PATH=$(dirname \"$HOWDAH\"):$PATH
        COMP_WORDS=(howdah switchover --candidate p); COMP_CWORD=3; COMP_TYPE=9
        _clap_complete_howdah howdah p --candidate; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let shell = node.command(&[]);
    let howdah = shell.get_program().to_owned();
    let mut bash = Command::new("bash");
    bash.args(["-c", script])
        .env("HOWDAH", howdah)
        .stdin(Stdio::null());
    for (name, value) in shell.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        bash.env(name, value);
    }
    let completed = bash.output().expect("bash");
    let words = String::from_utf8_lossy(&completed.stdout).into_owned();
    let words: Vec<&str> = words.split_whitespace().collect();
    assert!(
        words.contains(&"pg1") && words.contains(&"pg2"),
        "{words:?} {}",
        String::from_utf8_lossy(&completed.stderr)
    );
    let manual = done(node, &["man"]).await;
    assert!(
        manual.contains(".SH HOWDAH SWITCHOVER") && manual.contains("candidate"),
        "{manual}"
    );

    // A healthy cluster is not forgotten without its leader's name, and a stopped one is.
    let node = &cluster.nodes[replica];
    let (code, out, err) = typing(node, &["remove", "demo"], "demo\nYes I am aware\nnobody\n").await;
    assert!(
        code == 1 && err.contains("did not specify the current leader"),
        "{out}{err}"
    );
    for node in &mut cluster.nodes {
        node.stop(SOON).await;
    }
    let (code, out, err) = typing(
        &cluster.nodes[replica],
        &["remove", "demo"],
        "demo\nYes I am aware\n",
    )
    .await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(
        done(&cluster.nodes[replica], &["list"])
            .await
            .contains("(uninitialized)")
    );
}

async fn typing(node: &Node, args: &[&str], input: &str) -> (i32, String, String) {
    use tokio::io::AsyncWriteExt as _;
    let mut command = tokio::process::Command::from(node.command(args));
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().expect("howdah");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).await.expect("it reads");
    drop(stdin);
    let ended = tokio::time::timeout(SOON, child.wait_with_output())
        .await
        .expect("it ends")
        .expect("output");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        ended.status.code().unwrap_or(-1),
        text(&ended.stdout),
        text(&ended.stderr),
    )
}

/// Slow enough that there is something to see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_shows_how_far_it_is() {
    let mut cluster = Cluster::prepare(&["pg1", "pg2"]);
    for node in &mut cluster.nodes {
        node.set("HOWDAH_POSTGRESQL_BASEBACKUP", "[{max-rate: 6M}]")
            .start();
    }
    let leader = cluster.healthy().await;
    let replica = &cluster.nodes[1 - leader].name;
    let shown = done(&cluster.nodes[leader], &["reinit", replica, "--force", "--wait"]).await;
    let start = format!("{replica}: ");
    let line = shown.lines().find(|line| line.starts_with(&start));
    let line = line.unwrap_or_else(|| panic!("no progress in {shown}"));
    assert!(line.contains("MiB of ") && line.contains(" %)"), "{line}");
    assert!(
        shown.contains(&format!("Reinitialize is completed on: {replica}")),
        "{shown}"
    );
}
