//! A whole Kubernetes in network, mount and process namespaces of its own: nothing of it is seen outside, and nothing is
//! left when they end, however they end.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::helm::{Done, helm_program, kubectl_program, root, run};

/// Set for the process that is inside.
const INSIDE: &str = "HOWDAH_HELM_INSIDE";

/// The image whose release this is.
pub(crate) fn image() -> String {
    std::env::var("HOWDAH_IMAGE").unwrap_or_else(|_| "howdah:latest".to_owned())
}

/// True: go on, we are inside. Else the test of this name was run there, and has succeeded.
pub(crate) fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let status = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "see above (are you root?): {status}");
    false
}

pub(crate) struct Cluster {
    folder: TempDir,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        // Sockets are in it: their paths must be short.
        let folder = tempfile::Builder::new().prefix("hk").tempdir_in("/tmp").unwrap();
        let mut script = Command::new(root().join("tests/kubernetes/cluster"));
        script.arg(folder.path()).arg(image());
        // Its children hold its output; so it is not waited for by its end.
        let status = script.stdin(Stdio::null()).status().unwrap();
        assert!(status.success(), "the cluster does not start, see above");
        Self { folder }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    pub(crate) fn kubectl(&self, words: &[&str]) -> Done {
        let mut command = Command::new(kubectl_program());
        command.env("KUBECONFIG", self.kubeconfig()).args(words);
        run(command, "")
    }

    /// Output of a kubectl that must succeed; its words, split at spaces.
    pub(crate) fn ask(&self, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        self.kubectl(&words).expect(line).trim().to_owned()
    }

    pub(crate) fn get(&self, what: &str) -> Value {
        serde_json::from_str(&self.ask(&format!("get {what} --output json"))).unwrap()
    }

    pub(crate) fn helm(&self, args: &[&str]) -> Done {
        let mut command = Command::new(helm_program());
        command.env("KUBECONFIG", self.kubeconfig()).args(args);
        run(command, "")
    }

    /// Kills everything in a pod at once, behind the back of Kubernetes.
    pub(crate) fn kill_container(&self, pod: &Value) {
        let node = pod["spec"]["nodeName"].as_str().unwrap();
        let id = pod["status"]["containerStatuses"][0]["containerID"]
            .as_str()
            .unwrap();
        let socket = self.folder.path().join(node).join("docker.sock");
        let mut command = Command::new("docker");
        command
            .arg("--host")
            .arg(format!("unix://{}", socket.display()))
            .args(["kill", "--signal", "KILL", id.trim_start_matches("docker://")]);
        run(command, "").expect("docker kill");
    }
}
