//! Headless Chromium, driven by WebDriver: JSON over HTTP to chromedriver.

use std::{
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::node::{free_port, wait_for};

const SOON: Duration = Duration::from_secs(30);
/// The key of an element in WebDriver's JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// One request; chromedriver keeps the connection open whatever it is asked for.
async fn exchange(port: u16, method: &str, path: &str, body: &str) -> std::io::Result<(u16, Value)> {
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
    let mut stream = BufReader::new(tokio::net::TcpStream::connect(("127.0.0.1", port)).await?);
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let (mut code, mut length) = (0, 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
            code = rest
                .split(' ')
                .next()
                .and_then(|code| code.parse().ok())
                .unwrap_or(0);
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await?;
    Ok((code, serde_json::from_slice(&answer).unwrap_or(Value::Null)))
}

pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: TempDir,
}

impl Browser {
    pub async fn start() -> Self {
        let port = free_port();
        let profile = tempfile::tempdir().unwrap();
        let driver = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "chromedriver", &format!("--port={port}")])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("chromedriver: {error}; tests/run installs it"));
        let mut browser = Self {
            driver,
            port,
            session: String::new(),
            _profile: profile,
        };
        wait_for("chromedriver", SOON, async || {
            exchange(port, "GET", "/status", "")
                .await
                .map(|_| ())
                .map_err(|error| error.to_string())
        })
        .await;
        let mut arguments = vec![
            "--headless".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-quic".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
        ];
        arguments.push(format!("--user-data-dir={}", browser._profile.path().display()));
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let answer = browser
            .call("POST", "/session", wanted)
            .await
            .unwrap_or_else(|why| panic!("{why}"));
        browser.session = answer["sessionId"].as_str().unwrap().to_owned();
        // Its first page is the browser's own, which loads and says what it likes.
        browser.open("about:blank").await;
        browser.requests().await;
        browser.complaints().await;
        browser
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> Result<Value, String> {
        let body = body.to_string();
        let exchange = exchange(self.port, method, path, &body);
        let (code, answer) = tokio::time::timeout(SOON, exchange)
            .await
            .map_err(|_| format!("{path}: no answer"))?
            .map_err(|error| error.to_string())?;
        match code {
            200 => Ok(answer["value"].clone()),
            _ => Err(format!("{path}: {code} {}", answer["value"]["message"])),
        }
    }

    async fn of_session(&self, method: &str, path: &str, body: Value) -> Result<Value, String> {
        self.call(method, &format!("/session/{}{path}", self.session), body)
            .await
    }

    pub async fn open(&self, url: &str) {
        self.of_session("POST", "/url", json!({"url": url}))
            .await
            .unwrap();
    }

    /// The driver closes the browser and answers once that is done.
    fn end_session(&self) -> std::io::Result<()> {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let (session, port) = (&self.session, self.port);
        write!(
            stream,
            "DELETE /session/{session} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
        )?;
        stream.read(&mut [0; 64]).map(|_| ())
    }

    /// Runs a script in the page and returns what it returns.
    pub async fn run(&self, script: &str) -> Result<Value, String> {
        let body = json!({"script": script, "args": []});
        self.of_session("POST", "/execute/sync", body).await
    }

    /// Elements come and go with every look of the page: what is gone is looked for again.
    async fn act(&self, selector: &str, action: &str, body: &Value) {
        wait_for(&format!("{selector} to take a {action}"), SOON, async || {
            let find = json!({"using": "css selector", "value": selector});
            let found = self.of_session("POST", "/element", find).await?;
            let id = found[ELEMENT].as_str().ok_or("no element")?;
            self.of_session("POST", &format!("/element/{id}/{action}"), body.clone())
                .await
                .map(|_| ())
        })
        .await;
    }

    pub async fn click(&self, selector: &str) {
        self.act(selector, "click", &json!({})).await;
    }

    pub async fn type_into(&self, selector: &str, text: &str) {
        self.act(selector, "value", &json!({"text": text})).await;
    }

    /// A command of the browser's own protocol.
    async fn cdp(&self, command: &str, params: Value) -> Value {
        let body = json!({"cmd": command, "params": params});
        self.of_session("POST", "/goog/cdp/execute", body).await.unwrap()
    }

    /// What the system prefers: `dark` or `light`.
    pub async fn prefers(&self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.cdp("Emulation.setEmulatedMedia", json!({"features": features}))
            .await;
    }

    /// The size of the window; a narrow one is a phone's.
    pub async fn resize(&self, width: u32, height: u32) {
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.cdp("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// A PNG of the whole page.
    pub async fn screenshot(&self) -> Vec<u8> {
        use base64::Engine as _;
        let params = json!({"format": "png", "captureBeyondViewport": true});
        let png = self.cdp("Page.captureScreenshot", params).await;
        base64::engine::general_purpose::STANDARD
            .decode(png["data"].as_str().unwrap())
            .unwrap()
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        let body = json!({"type": kind});
        let log = self.of_session("POST", "/se/log", body).await.unwrap();
        log.as_array().unwrap().clone()
    }

    /// What the console has said since the last time, from warnings on.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.log("browser").await.into_iter();
        let loud = entries.filter(|entry| matches!(entry["level"].as_str(), Some("SEVERE" | "WARNING")));
        loud.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// The addresses of all requests since the last time, whoever made them.
    pub async fn requests(&self) -> Vec<String> {
        let entries = self.log("performance").await.into_iter();
        let sent = entries.filter_map(|entry| {
            let event: Value = serde_json::from_str(entry["message"].as_str()?).ok()?;
            let message = &event["message"];
            let url = message["params"]["request"]["url"].as_str()?;
            (message["method"] == "Network.requestWillBeSent").then(|| url.to_owned())
        });
        sent.collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // In order where the driver still answers: it knows of processes that are nobody's children.
        let _ended = self.end_session();
        // The driver and all the processes of its browser are one group.
        if let Ok(group) = i32::try_from(self.driver.id()) {
            let _ = nix::sys::signal::killpg(
                nix::unistd::Pid::from_raw(group),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        let _ = self.driver.wait();
    }
}
