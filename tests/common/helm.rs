//! The real Helm and kubectl, with a kubeconfig.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What a command left.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) ok: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

fn cached(path: &str) -> PathBuf {
    let program = root().join("tests/.cache").join(path);
    assert!(
        program.exists(),
        "{} is missing: see tests/run",
        program.display()
    );
    program
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn helm_program() -> PathBuf {
    cached("helm/bin/helm")
}

pub(crate) fn kubectl_program() -> PathBuf {
    cached("kubernetes-1.20.2/kubectl")
}

/// The chart.
pub(crate) fn chart() -> PathBuf {
    root().join("helm/howdah")
}

/// Variations of its values, by the name of the file without its end.
pub(crate) fn variations() -> Vec<(String, PathBuf)> {
    let folder = std::fs::read_dir(chart().join("ci")).unwrap();
    let mut found: Vec<(String, PathBuf)> = folder
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| {
            let name = path
                .file_name()?
                .to_str()?
                .strip_suffix("-values.yaml")?
                .to_owned();
            Some((name, path))
        })
        .collect();
    found.sort();
    assert!(found.len() > 10, "{found:?}");
    found
}

/// Runs a command to its end, with this on its standard input.
pub(crate) fn run(mut command: Command, input: &str) -> Done {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // Beside the reading: neither side waits for the other.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    // Who does not read to the end says why by its status.
    let _closed = writer.join().unwrap();
    Done {
        ok: output.status.success(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Done {
    pub(crate) fn expect(self, what: &str) -> String {
        assert!(self.ok, "{what}: {}{}", self.out, self.err);
        self.out
    }
}

/// `helm` without a cluster.
pub(crate) fn helm(args: &[&str]) -> Done {
    let mut command = Command::new(helm_program());
    command.args(args).env("KUBECONFIG", "/dev/null");
    run(command, "")
}

/// Renders the chart as the release `pg`.
pub(crate) fn template(args: &[&str]) -> Done {
    let chart = chart();
    helm(&[&["template", "pg", chart.to_str().unwrap()], args].concat())
}
