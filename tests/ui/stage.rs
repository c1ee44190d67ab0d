//! A cluster with a browser that looks at it, and what a person does there.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    browser::Browser,
    etcd,
    node::{Node, descendants, wait_for},
};

pub const SOON: Duration = Duration::from_secs(60);
pub const PASSWORD: &str = "a \u{e4}:b";
/// A page in the browser's window.
const WIDE: (u32, u32) = (1240, 900);

/// What the table says: name, role, state.
const ROWS: &str =
    "return [...document.querySelectorAll('#members tbody tr')].map(r => [r.dataset.member, r.dataset.role,
    r.cells[2].firstElementChild.textContent])";

/// A cluster with pg1 as its leader, and a browser. Fields drop in order.
pub struct Stage {
    pub browser: Browser,
    pub nodes: Vec<Node>,
    pub etcd: etcd::Server,
    _base: TempDir,
}

impl Stage {
    pub async fn set() -> Self {
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

    pub fn origin(&self, node: usize) -> String {
        format!("http://127.0.0.1:{}", self.nodes[node].api_port)
    }

    pub async fn open(&self, node: usize) {
        self.browser.open(&format!("{}/ui", self.origin(node))).await;
        self.members("pg1").await;
    }

    /// Waits until a script in the page returns what is wanted.
    pub async fn shows(&self, what: &str, script: &str, wanted: impl Fn(&Value) -> bool) -> Value {
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

    pub async fn is(&self, what: &str, script: &str, wanted: Value) {
        self.shows(what, script, |found| *found == wanted).await;
    }

    pub async fn says(&self, what: &str, selector: &str, text: &str) {
        let script = format!("return document.querySelector(\"{selector}\")?.textContent ?? ''");
        let has = |found: &Value| found.as_str().is_some_and(|found| found.contains(text));
        self.shows(what, &script, has).await;
    }

    /// All members in their roles, every replica streaming.
    pub async fn members(&self, leader: &str) {
        let row = |name: &str| match name == leader {
            true => json!([name, "leader", "running"]),
            false => json!([name, "replica", "streaming"]),
        };
        let wanted = json!([row("pg1"), row("pg2"), row("pg3")]);
        self.is("all members and their roles", ROWS, wanted).await;
    }

    pub async fn hidden(&self, id: &str, hidden: bool) {
        let script = format!("return document.getElementById('{id}').hidden");
        self.is(&format!("#{id}, hidden: {hidden}"), &script, json!(hidden))
            .await;
    }

    pub async fn asks(&self, open: bool) {
        let script = "return document.getElementById('ask').open";
        self.is(&format!("the question, open: {open}"), script, json!(open))
            .await;
    }

    /// Presses a button and confirms: with the word that has to be typed, else with the second click.
    pub async fn confirm(&self, button: &str, word: Option<&str>) {
        // Those of a page that is old for a moment cannot be pressed.
        let usable = format!("return document.querySelector(\"{button}\")?.disabled === false");
        self.is(&format!("{button} to be usable"), &usable, json!(true))
            .await;
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

    pub async fn sign_in(&self, password: &str) {
        self.hidden("ask-login", false).await;
        self.browser
            .run("for (const id of ['ask-user', 'ask-password']) document.getElementById(id).value = ''")
            .await
            .unwrap();
        self.browser.type_into("#ask-user", "admin").await;
        self.browser.type_into("#ask-password", password).await;
        self.browser.click("#ask-go").await;
    }

    pub async fn background(&self) -> String {
        let color = "return getComputedStyle(document.body).backgroundColor";
        self.browser.run(color).await.unwrap().to_string()
    }

    pub async fn keep(&self, name: &str) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.cache/ui");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(name), self.browser.screenshot().await).unwrap();
    }

    /// Every process of a member.
    pub fn signal_all(&self, node: usize, signal: nix::sys::signal::Signal) {
        let init = self.nodes[node].init_pid();
        for pid in std::iter::once(init).chain(descendants(init)) {
            // One that has ended meanwhile needs no signal.
            let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
        }
    }
}
