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
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);
const PASSWORD: &str = "a \u{e4}:b";
/// A page in the browser's window.
const WIDE: (u32, u32) = (1240, 900);

/// What the table says: name, role, state.
const ROWS: &str =
    "return [...document.querySelectorAll('#members tbody tr')].map(r => [r.dataset.member, r.dataset.role,
    r.cells[2].firstElementChild.textContent])";

/// A cluster with pg1 as its leader, and a browser. Fields drop in order.
struct Stage {
    browser: Browser,
    nodes: Vec<Node>,
    etcd: etcd::Server,
    _base: TempDir,
}

impl Stage {
    async fn set() -> Self {
        let base = tempfile::Builder::new().prefix("howdah-").tempdir().unwrap();
        std::fs::set_permissions(base.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let etcd = etcd::Server::start();
        let mut nodes: Vec<Node> = ["pg1", "pg2", "pg3"]
            .iter()
            .map(|name| Node::new(base.path(), name, "demo", &[etcd.endpoint()]))
            .collect();
        let dcs = "{postgresql: {parameters: {
            archive_command: 'push --token=hush1 --PASSWORD=\"hush2 more\" --secret hush4 %p scp://u:hush3@h/wal',
            log_line_prefix: '%m <img src=x onerror=alert(1)> '}}}";
        // Changes need a password, which the page has to ask for.
        for node in &mut nodes {
            node.set("HOWDAH_RESTAPI_USERNAME", "admin")
                .set("HOWDAH_RESTAPI_PASSWORD", PASSWORD)
                .set("HOWDAH_BOOTSTRAP_DCS", dcs);
        }
        nodes[0].start();
        nodes[0].wait_primary(SOON).await;
        for node in &mut nodes[1..] {
            node.start();
        }
        for node in &nodes[1..] {
            node.wait_streaming(SOON).await;
        }
        let browser = Browser::start().await;
        browser.resize(WIDE.0, WIDE.1).await;
        Self {
            browser,
            nodes,
            etcd,
            _base: base,
        }
    }

    fn origin(&self, node: usize) -> String {
        format!("http://127.0.0.1:{}", self.nodes[node].api_port)
    }

    async fn open(&self, node: usize) {
        self.browser.open(&format!("{}/ui", self.origin(node))).await;
        self.members("pg1").await;
    }

    /// Waits until a script in the page returns what is wanted.
    async fn shows(&self, what: &str, script: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, SOON, async || {
            let found = self.browser.run(script).await?;
            if wanted(&found) {
                Ok(found)
            } else {
                Err(found.to_string())
            }
        })
        .await
    }

    async fn is(&self, what: &str, script: &str, wanted: Value) {
        self.shows(what, script, |found| *found == wanted).await;
    }

    async fn says(&self, what: &str, selector: &str, text: &str) {
        let script = format!("return document.querySelector(\"{selector}\")?.textContent ?? ''");
        let has = |found: &Value| found.as_str().is_some_and(|found| found.contains(text));
        self.shows(what, &script, has).await;
    }

    /// All members in their roles, every replica streaming.
    async fn members(&self, leader: &str) {
        let row = |name: &str| match name == leader {
            true => json!([name, "leader", "running"]),
            false => json!([name, "replica", "streaming"]),
        };
        let wanted = json!([row("pg1"), row("pg2"), row("pg3")]);
        self.is("all members and their roles", ROWS, wanted).await;
    }

    async fn hidden(&self, id: &str, hidden: bool) {
        let script = format!("return document.getElementById('{id}').hidden");
        self.is(&format!("#{id}, hidden: {hidden}"), &script, json!(hidden))
            .await;
    }

    async fn asks(&self, open: bool) {
        let script = "return document.getElementById('ask').open";
        self.is(&format!("the question, open: {open}"), script, json!(open))
            .await;
    }

    /// Presses a button and confirms: with the word that has to be typed, else with the second click.
    async fn confirm(&self, button: &str, word: Option<&str>) {
        self.browser.click(button).await;
        self.asks(true).await;
        let disabled = self
            .browser
            .run("return document.getElementById('ask-go').disabled")
            .await;
        assert_eq!(disabled, Ok(json!(word.is_some())), "a word is to be typed first");
        if let Some(word) = word {
            self.browser.type_into("#ask-word", word).await;
        }
        self.browser.click("#ask-go").await;
    }

    async fn sign_in(&self, password: &str) {
        self.hidden("ask-login", false).await;
        self.browser
            .run("for (const id of ['ask-user', 'ask-password']) document.getElementById(id).value = ''")
            .await
            .unwrap();
        self.browser.type_into("#ask-user", "admin").await;
        self.browser.type_into("#ask-password", password).await;
        self.browser.click("#ask-go").await;
    }

    async fn background(&self) -> String {
        let color = "return getComputedStyle(document.body).backgroundColor";
        self.browser.run(color).await.unwrap().to_string()
    }

    async fn keep(&self, name: &str) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.cache/ui");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(name), self.browser.screenshot().await).unwrap();
    }

    /// Every process of a member.
    fn signal_all(&self, node: usize, signal: nix::sys::signal::Signal) {
        let init = self.nodes[node].init_pid();
        for pid in std::iter::once(init).chain(descendants(init)) {
            // One that has ended meanwhile needs no signal.
            let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_sees_the_cluster_and_changes_its_leader() {
    let stage = Stage::set().await;
    let browser = &stage.browser;
    stage.open(1).await;
    let drawn = "return [document.querySelectorAll('#topology .card').length,
        [...document.querySelectorAll('#topology .edge.flows')].map(e => e.dataset.from + '>' + e.dataset.to).sort()]";
    stage
        .is("who reads from whom", drawn, json!([3, ["pg1>pg2", "pg1>pg3"]]))
        .await;
    stage
        .says(
            "why pg3 could lead",
            "#members tr[data-member=pg3] .why",
            "could lead",
        )
        .await;
    stage
        .says(
            "why pg1 leads",
            "#members tr[data-member=pg1] .why",
            "it holds the lock",
        )
        .await;
    stage.says("what is promised", "#promise", "asynchronous").await;
    stage.says("no history", "#history", "has not changed").await;
    stage.says("the configuration", "#config", "loop_wait: 1").await;
    let config = browser
        .run("return document.getElementById('config').textContent")
        .await
        .unwrap();
    let config = config.as_str().unwrap();
    assert!(
        config.contains("--token=•••") && config.contains("u:•••@h/wal"),
        "{config}"
    );
    assert!(!config.contains("hush"), "{config}");
    assert!(
        config.contains("<img src=x onerror=alert(1)>"),
        "text stays text: {config}"
    );
    assert_eq!(
        browser
            .run("return document.querySelectorAll('img').length")
            .await,
        Ok(json!(0))
    );
    let others = "return [...document.querySelectorAll('#members a')].map(a => a.href)";
    let wanted = json!([
        format!("{}/ui", stage.origin(0)),
        format!("{}/ui", stage.origin(2))
    ]);
    stage.is("links to the pages of the others", others, wanted).await;

    // Nothing came from elsewhere, and nothing was complained of.
    let ours = format!("{}/", stage.origin(1));
    let asked = browser.requests().await;
    assert!(asked.contains(&format!("{ours}cluster")), "{asked:?}");
    let foreign: Vec<_> = asked
        .iter()
        .filter(|url| !url.starts_with(&ours) && !url.starts_with("data:"))
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    assert_eq!(browser.complaints().await, Vec::<String>::new());

    // A switchover: the word, the password, and it happens.
    stage
        .confirm("button[data-act=switchover][data-member=pg3]", Some("pg3"))
        .await;
    stage.sign_in("wrong").await;
    stage
        .says("that the password is wrong", "#ask-said", "not accepted")
        .await;
    stage.sign_in(PASSWORD).await;
    stage.nodes[2].wait_primary(SOON).await;
    stage.members("pg3").await;
    stage
        .says(
            "what became of it",
            "#note",
            "Successfully switched over to \"pg3\"",
        )
        .await;
    stage.asks(false).await;
    let bars = "return document.querySelectorAll('#history svg .span').length";
    stage.is("the change on the time axis", bars, json!(1)).await;
    stage
        .is(
            "the lines from the new leader",
            drawn,
            json!([3, ["pg3>pg1", "pg3>pg2"]]),
        )
        .await;

    // A restart of the member whose page it is; the password is remembered by the page.
    let started = async || {
        let (_, status) = stage.nodes[1].get("/patroni").await?;
        Ok::<_, String>(status["postmaster_start_time"].clone())
    };
    let before = started().await.unwrap();
    stage.confirm("button[data-act=restart]", Some("pg2")).await;
    stage
        .says("what became of it", "#note", "restarted successfully")
        .await;
    assert_ne!(started().await.unwrap(), before);
    stage.members("pg3").await;

    // Its data, copied anew.
    let copied = async || {
        let (_, status) = stage.nodes[1].get("/patroni").await?;
        Ok::<_, String>(status["copies"]["made"].as_u64().unwrap_or(0))
    };
    let before = copied().await.unwrap();
    stage.confirm("button[data-act=reinitialize]", Some("pg2")).await;
    stage
        .says("what became of it", "#note", "reinitialize started")
        .await;
    wait_for("the copy", SOON, async || match copied().await? {
        made if made > before => Ok(()),
        made => Err(made.to_string()),
    })
    .await;
    stage.members("pg3").await;

    // Pause and resume.
    stage.confirm("#pause[data-act=pause]", None).await;
    stage.hidden("paused", false).await;
    stage.asks(false).await;
    stage.confirm("#pause[data-act=resume]", None).await;
    stage.hidden("paused", true).await;

    // Forgotten is forgotten.
    stage.browser.click("#forget").await;
    stage.confirm("#pause[data-act=pause]", None).await;
    stage.hidden("ask-login", false).await;
    stage.browser.click("#ask-no").await;
    stage.asks(false).await;

    // What the browser itself says of the refusals above is all there is.
    let complaints = browser.complaints().await;
    let unexpected: Vec<_> = complaints.iter().filter(|text| !text.contains(" 401 ")).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_old_is_called_old_and_nobody_acts_on_it() {
    let stage = Stage::set().await;
    stage.open(1).await;
    stage.hidden("stale", true).await;
    let usable = "return [...document.querySelectorAll('#members button')].map(b => !b.disabled)";
    let all = |wanted: bool| {
        move |found: &Value| {
            found
                .as_array()
                .is_some_and(|all| all.len() > 3 && all.iter().all(|one| *one == wanted))
        }
    };
    stage
        .shows("buttons that can be pressed", usable, all(true))
        .await;

    stage.signal_all(1, nix::sys::signal::Signal::SIGSTOP);
    stage
        .says(
            "that pg2 is silent",
            "#stale:not([hidden])",
            "pg2 does not answer.",
        )
        .await;
    stage.says("how old it is", "#stale:not([hidden])", "s old").await;
    stage
        .shows("buttons that cannot be pressed", usable, all(false))
        .await;
    stage.signal_all(1, nix::sys::signal::Signal::SIGCONT);
    stage.hidden("stale", true).await;
    stage.members("pg1").await;

    // The member answers, the store does not: an older view, and the page says so.
    stage.etcd.freeze();
    stage
        .says(
            "that the store is away",
            "#stale:not([hidden])",
            "pg2 does not reach the DCS.",
        )
        .await;
    stage
        .shows("buttons that can be pressed", usable, all(true))
        .await;
    stage.etcd.thaw();
    stage.hidden("stale", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_fits_dark_light_and_small_screens_and_other_pages_change_nothing() {
    let stage = Stage::set().await;
    let browser = &stage.browser;
    browser.prefers("light").await;
    stage.open(1).await;
    stage.confirm("button[data-act='hand over']", Some("pg1")).await;
    stage.sign_in(PASSWORD).await;
    stage
        .says("what became of it", "#note", "Successfully switched over")
        .await;
    stage.hidden("stale", true).await;
    stage.says("who could lead", "#members", "could lead").await;
    let leader = "return document.querySelector('#members tr[data-role=leader]')?.dataset.member";
    let leader = stage
        .shows("another leader", leader, |name| {
            *name != "pg1" && name.is_string()
        })
        .await;
    stage.members(leader.as_str().unwrap()).await;
    stage
        .is(
            "the change",
            "return document.querySelectorAll('#history svg .span').length",
            json!(1),
        )
        .await;
    let light = stage.background().await;
    stage.keep("light.png").await;
    browser.prefers("dark").await;
    let dark = stage.background().await;
    assert_ne!(light, dark, "as the system prefers it");
    stage.keep("dark.png").await;
    browser.click("#theme").await;
    assert_eq!(stage.background().await, light, "as the person prefers it");
    browser.open(&format!("{}/ui", stage.origin(1))).await;
    assert_eq!(stage.background().await, light, "and it is remembered");
    browser.click("#theme").await;

    browser.resize(390, 844).await;
    stage.members(leader.as_str().unwrap()).await;
    let over = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
    stage.is("nothing beyond the edge", over, json!(0)).await;
    stage.keep("phone.png").await;

    // Another site in the same browser: that it may not read the answer is not enough.
    let target = stage.origin(1);
    browser.open(&format!("{}/liveness", stage.origin(0))).await;
    let attack = format!(
        "return fetch('{target}/reload', {{method: 'POST', mode: 'no-cors', credentials: 'include'}}).then(a => a.type)"
    );
    assert_eq!(browser.run(&attack).await, Ok(json!("opaque")), "it was sent");
    assert!(stage.nodes[1].log().contains("another site's page sent it"));
    let frame = format!(
        "const f = document.createElement('iframe'); f.src = '{target}/ui'; document.documentElement.append(f);
         return new Promise(done => f.onload = () => done(f.contentDocument === null))"
    );
    assert_eq!(browser.run(&frame).await, Ok(json!(true)));
    let refused = browser.complaints().await;
    assert!(
        refused.iter().any(|text| text.contains("frame-ancestors")),
        "{refused:?}"
    );
}
