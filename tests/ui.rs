//! The page at `/ui` in a real browser on a real cluster: what it shows, what it does when somebody clicks and confirms,
//! and that it says so when what it shows is old.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests: a panic is a failure, and waits poll a condition with a deadline"
)]

#[path = "ui/browser.rs"]
mod browser;
#[path = "common/etcd.rs"]
#[allow(
    dead_code,
    reason = "shared with the DCS contract ring, which uses more of it"
)]
mod etcd;
#[path = "common/node.rs"]
#[allow(dead_code, reason = "shared with the cluster ring, which uses more of it")]
mod node;

use std::{path::Path, time::Duration};

use browser::Browser;
use node::{Node, descendants, wait_for};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

/// What the table says: name, role, state.
const ROWS: &str =
    "return [...document.querySelectorAll('#members tbody tr')].map(r => [r.dataset.member, r.dataset.role,
    r.cells[2].textContent])";

async fn shows(browser: &Browser, what: &str, wanted: impl Fn(&Value) -> bool, script: &str) -> Value {
    wait_for(what, SOON, async || {
        let found = browser.run(script).await?;
        if wanted(&found) {
            Ok(found)
        } else {
            Err(found.to_string())
        }
    })
    .await
}

/// Clicks, types the word that is asked for, and confirms.
async fn confirm(browser: &Browser, button: &str, word: &str) {
    browser.click(button).await;
    wait_for("the question", SOON, async || {
        match browser.run("return document.getElementById('ask').open").await? {
            Value::Bool(true) => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    let closed = browser
        .run("return document.getElementById('ask-go').disabled")
        .await;
    assert_eq!(
        closed,
        Ok(json!(true)),
        "nothing happens before the word is typed"
    );
    browser.type_into("#ask-word", word).await;
    browser.click("#ask-go").await;
}

fn keep(name: &str, png: &[u8]) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.cache/ui");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(name), png).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_sees_the_cluster_and_changes_its_leader() {
    let base = tempfile::Builder::new().prefix("howdah-").tempdir().unwrap();
    std::fs::set_permissions(base.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let etcd = etcd::Server::start();
    let mut nodes: Vec<Node> = ["pg1", "pg2", "pg3"]
        .iter()
        .map(|name| Node::new(base.path(), name, "demo", &[etcd.endpoint()]))
        .collect();
    // Changes need a password, which the page has to ask for.
    for node in &mut nodes {
        node.set("HOWDAH_RESTAPI_USERNAME", "admin")
            .set("HOWDAH_RESTAPI_PASSWORD", "a \u{e4}:b");
    }
    nodes[0].start();
    nodes[0].wait_primary(SOON).await;
    for node in &mut nodes[1..] {
        node.start();
    }
    for node in &nodes[1..] {
        node.wait_streaming(SOON).await;
    }
    let page = format!("http://127.0.0.1:{}/ui", nodes[1].api_port);
    let browser = Browser::start().await;
    browser.open(&page).await;

    let healthy = |rows: &Value, leader: &str| {
        let wanted = |name: &str| match name == leader {
            true => json!([name, "leader", "running"]),
            false => json!([name, "replica", "streaming"]),
        };
        *rows == json!([wanted("pg1"), wanted("pg2"), wanted("pg3")])
    };
    shows(&browser, "all members", |rows| healthy(rows, "pg1"), ROWS).await;
    let drawn = "return document.querySelectorAll('#topology rect').length + ' ' +
        document.querySelectorAll('#topology path').length";
    shows(
        &browser,
        "who follows whom",
        |found| *found == json!("3 2"),
        drawn,
    )
    .await;
    let why = "return document.querySelector('#members tr[data-member=pg3] .why').textContent";
    shows(
        &browser,
        "why pg3 could lead",
        |text| text.as_str().is_some_and(|t| t.starts_with("could lead")),
        why,
    )
    .await;
    let config = "return document.getElementById('config').textContent";
    shows(
        &browser,
        "the configuration",
        |text| text.as_str().is_some_and(|t| t.contains("loop_wait: 1")),
        config,
    )
    .await;
    let none = "return document.getElementById('history').textContent";
    shows(
        &browser,
        "no history",
        |text| text.as_str().is_some_and(|t| t.contains("has not changed")),
        none,
    )
    .await;
    let asked = "return performance.getEntriesByType('resource').every(e => new URL(e.name).origin === location.origin)";
    assert_eq!(
        browser.run(asked).await,
        Ok(json!(true)),
        "nothing from elsewhere"
    );

    // A switchover: the word, the password, and it happens.
    confirm(&browser, "button[data-act='switch over'][data-member=pg3]", "pg3").await;
    let login = "return !document.getElementById('ask-login').hidden";
    shows(
        &browser,
        "the question for the password",
        |found| *found == json!(true),
        login,
    )
    .await;
    browser.type_into("#ask-user", "admin").await;
    browser.type_into("#ask-password", "a \u{e4}:b").await;
    browser.click("#ask-go").await;
    nodes[2].wait_primary(SOON).await;
    shows(&browser, "the new leader", |rows| healthy(rows, "pg3"), ROWS).await;
    let span = "return document.querySelectorAll('#history .span').length";
    shows(
        &browser,
        "the change on the time axis",
        |found| *found == json!(1),
        span,
    )
    .await;
    let closed = "return !document.getElementById('ask').open";
    shows(
        &browser,
        "the end of the question",
        |found| *found == json!(true),
        closed,
    )
    .await;
    keep("light.png", &browser.screenshot(1180, 1240).await);
    browser.click("#theme").await;
    keep("dark.png", &browser.screenshot(1180, 1240).await);
    keep("phone.png", &browser.screenshot(390, 1500).await);

    // Pause and resume; the password is remembered by the page.
    confirm(&browser, "#pause", "demo").await;
    let button = "return document.getElementById('pause').textContent";
    shows(&browser, "the pause", |text| *text == json!("Resume"), button).await;
    shows(
        &browser,
        "the end of the question",
        |found| *found == json!(true),
        closed,
    )
    .await;
    confirm(&browser, "#pause", "demo").await;
    shows(
        &browser,
        "the end of the pause",
        |text| *text == json!("Pause"),
        button,
    )
    .await;

    // What is old is called old.
    let stale = "return document.getElementById('stale').hidden";
    assert_eq!(browser.run(stale).await, Ok(json!(true)));
    let frozen: Vec<i32> = std::iter::once(nodes[1].init_pid())
        .chain(descendants(nodes[1].init_pid()))
        .collect();
    for pid in &frozen {
        nodes[1].signal(*pid, "STOP");
    }
    shows(&browser, "the warning", |hidden| *hidden == json!(false), stale).await;
    for pid in &frozen {
        let _gone = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(*pid),
            nix::sys::signal::Signal::SIGCONT,
        );
    }
    assert_eq!(browser.errors().await, Vec::<String>::new());
    browser.close().await;
}
