//! The scripts of `docker/` and `compose/`, without an engine: what they refuse, say and leave behind.
//!
//! They run from a copy in a temporary folder. Where a test goes past the refusals, `docker` is a stand-in that notes
//! how it was called and answers as it is told; the real thing is the matter of the image ring.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests: a panic is a failure, and temporary data is written plainly"
)]

// What the benchmark prints; it is a program and cannot run tests of its own.
#[path = "bench/report.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    clippy::cast_precision_loss,
    reason = "the benchmark uses the rest"
)]
mod report;

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

const NOBODY: u32 = 65_534;
const EVERYWHERE: &[&str] = &["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// Notes its arguments; answers for an engine with every image, no container and no volume, unless told otherwise.
const STAND_IN: &str = r#"#!/usr/bin/env bash
printf '%s\n' "$*" >>"$STAND_IN/calls"
case "$*" in
    *Architecture*) uname -m ;;
    'volume ls'*-etcd) cat "$STAND_IN/volumes-of-etcd" 2>/dev/null ;;
    run\ *) exit "$(cat "$STAND_IN/run-status" 2>/dev/null || echo 0)" ;;
    *'exec -T pg1 howdah list -f json')
        echo '[{"Member": "pg1", "Role": "Leader", "State": "running"},'
        echo ' {"Member": "pg2", "Role": "Replica", "State": "streaming"},'
        echo ' {"Member": "pg3", "Role": "Replica", "State": "streaming"}]' ;;
esac
exit 0
"#;
/// An apt that only notes that somebody wanted to install something.
const NO_APT: &str = "#!/bin/sh\nprintf '%s\\n' \"apt-get $*\" >>\"$STAND_IN/calls\"\nexit 1\n";

/// A copy of what the scripts need, in a folder that everybody may enter.
struct Copy {
    dir: TempDir,
}

#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Copy {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("howdah-scripts-")
            .tempdir()
            .unwrap();
        let copy = Self { dir };
        for folder in ["repository", "bin", "tmp"] {
            fs::create_dir(copy.path(folder)).unwrap();
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for name in ["compose", "docker"] {
            copy_scripts(&root.join(name), &copy.path("repository").join(name));
        }
        for name in ["Cargo.toml", "Cargo.lock"] {
            fs::copy(root.join(name), copy.path("repository").join(name)).unwrap();
        }
        fs::create_dir(copy.path("repository/src")).unwrap();
        fs::write(copy.path("repository/src/main.rs"), "fn main() {}\n").unwrap();
        copy.program("docker", STAND_IN);
        for folder in ["", "bin", "tmp", "repository", "repository/compose"] {
            fs::set_permissions(copy.path(folder), fs::Permissions::from_mode(0o777)).unwrap();
        }
        copy
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.path("bin").join(name);
        let _old = fs::remove_file(&path);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A search path with everything that this machine has, except these.
    fn without(&self, names: &[&str]) -> String {
        for folder in EVERYWHERE {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let left_out = names.iter().any(|left_out| name == *left_out);
                if !left_out && !self.path("bin").join(&name).exists() {
                    let _twice = symlink(entry.path(), self.path("bin").join(&name));
                }
            }
        }
        for name in names {
            let _none = fs::remove_file(self.path("bin").join(name));
        }
        self.path("bin").display().to_string()
    }

    /// The stand-in before everything else.
    fn with_stand_in(&self) -> String {
        format!("{}:{}", self.path("bin").display(), EVERYWHERE.join(":"))
    }

    fn command(&self, search: &str, words: &[&str]) -> Command {
        let mut command = Command::new("bash");
        command
            .args(words)
            .current_dir(self.path("repository"))
            .env_clear()
            .env("PATH", search)
            .env("HOME", self.path("tmp"))
            .env("TMPDIR", self.path("tmp"))
            .env("STAND_IN", self.dir.path())
            .stdin(Stdio::null());
        command
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }

    /// Every file of the copy with its content.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.path("repository"), self.path("tmp")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    found.insert(entry.path(), Vec::new());
                    folders.push(entry.path());
                } else {
                    found.insert(entry.path(), fs::read(entry.path()).unwrap());
                }
            }
        }
        found
    }
}

fn copy_scripts(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        if entry.file_name() == "secrets" {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            copy_scripts(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn run(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran {
        code: output.status.code(),
        out: text(&output.stdout),
        err: text(&output.stderr),
    }
}

/// One clear message, and nothing half-done.
fn check_refusal(what: &str, copy: &Copy, command: &mut Command, words: &str) {
    let before = copy.files();
    let ran = run(command);
    assert_eq!(ran.code, Some(1), "{what}: {ran:?}");
    let errors = ran.err.lines().filter(|line| line.starts_with("error:"));
    assert_eq!(errors.count(), 1, "{what}: one message:\n{}", ran.err);
    assert!(
        ran.err.contains(words),
        "{what}: '{words}' is not in:\n{}",
        ran.err
    );
    assert!(ran.out.is_empty(), "{what}: {}", ran.out);
    assert_eq!(copy.files(), before, "{what}: files were changed");
    let calls = copy.calls();
    assert!(!calls.contains("apt-get"), "{what}: tried to install:\n{calls}");
}

const SCRIPTS: [&str; 4] = ["compose/up", "compose/down", "docker/build", "docker/engine"];

#[test]
fn where_docker_host_does_not_answer_nothing_is_done() {
    let copy = Copy::new();
    copy.program("apt-get", NO_APT);
    // With a client and without: an engine installed here would not be the one asked for.
    for left_out in [&[][..], &["docker", "dockerd"]] {
        if left_out.is_empty() {
            copy.program("docker", "#!/bin/sh\nexit 1\n");
        }
        let search = copy.without(left_out);
        for script in SCRIPTS {
            let mut command = copy.command(&search, &[script]);
            command.env("DOCKER_HOST", "tcp://127.0.0.1:1");
            let words = if script == "compose/down" {
                "no Docker engine answers"
            } else {
                "DOCKER_HOST=tcp://127.0.0.1:1"
            };
            check_refusal(
                &format!("{script} without {left_out:?}"),
                &copy,
                &mut command,
                words,
            );
        }
    }
}

#[test]
fn a_user_without_an_engine_and_without_rights_is_told_what_to_do() {
    let copy = Copy::new();
    copy.program("apt-get", NO_APT);
    let search = copy.without(&["docker", "dockerd"]);
    let root = nix::unistd::geteuid().is_root();
    for script in SCRIPTS {
        let mut command = copy.command(&search, &[script]);
        if root {
            command.uid(NOBODY).gid(NOBODY);
        }
        let words = if script == "compose/down" {
            "no Docker engine answers"
        } else {
            "only root can install or start one. To go on: install Docker Engine"
        };
        check_refusal(script, &copy, &mut command, words);
    }
}

#[test]
fn where_not_even_root_can_install_an_engine_that_is_said() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: the other test has shown it");
        return;
    }
    let copy = Copy::new();
    let search = copy.without(&["docker", "dockerd", "apt-get"]);
    for script in ["compose/up", "docker/build", "docker/engine"] {
        let mut command = copy.command(&search, &[script]);
        check_refusal(script, &copy, &mut command, "only on Debian");
    }
}

#[test]
fn a_port_in_use_is_named_with_the_variable_that_helps() {
    let copy = Copy::new();
    let search = copy.with_stand_in();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, other) = (
        taken.local_addr().unwrap().port(),
        free.local_addr().unwrap().port(),
    );
    drop(free);
    let ports = |command: &mut Command| {
        for name in ["PG1", "PG2", "PG3", "API1", "API2", "API3"] {
            // Nobody listens on port 1.
            command.env(format!("HOWDAH_{name}_PORT"), "1");
        }
        command.env("HOWDAH_IMAGE", "howdah:latest");
    };
    for (variable, mode) in [
        ("HOWDAH_PG2_PORT", "embedded"),
        ("HOWDAH_API3_PORT", "embedded"),
        ("HOWDAH_READ_ONLY_PORT", "etcd"),
    ] {
        let mut command = copy.command(&search, &["compose/up", mode]);
        ports(&mut command);
        for name in ["READ_WRITE", "READ_ONLY", "STATISTICS"] {
            command.env(format!("HOWDAH_{name}_PORT"), "1");
        }
        command.env(variable, port.to_string());
        let advice = format!("{variable}={} ./compose/up {mode}", port + 1000);
        check_refusal(variable, &copy, &mut command, &advice);
        assert!(!copy.calls().contains("up --detach"), "{}", copy.calls());
    }
    // And the advice helps: what is printed then are the ports in use.
    let mut command = copy.command(&search, &["compose/up"]);
    ports(&mut command);
    command.env("HOWDAH_PG2_PORT", other.to_string());
    let ran = run(&mut command);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(copy.calls().contains("up --detach"), "{}", copy.calls());
    assert!(ran.out.contains(&format!("127.0.0.1:{other},")), "{}", ran.out);
    drop(taken);
}

/// Every port of the two files has a variable, and the script knows the same ones.
#[test]
fn every_published_port_has_a_variable_that_compose_up_knows() {
    let copy = Copy::new();
    let help = run(&mut copy.command(&copy.with_stand_in(), &["compose/up", "--help"])).out;
    for name in ["embedded", "etcd"] {
        let text = fs::read_to_string(copy.path(&format!("repository/compose/{name}.yml"))).unwrap();
        let published: Vec<&str> = text
            .split('"')
            .filter(|word| word.starts_with("127.0.0.1:"))
            .collect();
        assert!(published.len() >= 6, "{name}: {published:?}");
        for port in published {
            let variable = port
                .strip_prefix("127.0.0.1:${")
                .and_then(|rest| rest.split_once('}'))
                .and_then(|(variable, _)| variable.split_once(":-"))
                .unwrap_or_else(|| panic!("{name}: {port} has no variable"));
            let line = format!("{}={}\n", variable.0, variable.1);
            assert!(help.contains(&line), "{name}: {line} is not in:\n{help}");
        }
    }
}

#[test]
fn lost_passwords_are_noticed_whichever_variant_left_its_volumes() {
    let copy = Copy::new();
    fs::write(copy.path("volumes-of-etcd"), "howdah-etcd_pg1\n").unwrap();
    for mode in ["embedded", "etcd"] {
        let mut command = copy.command(&copy.with_stand_in(), &["compose/up", mode]);
        command.env("HOWDAH_IMAGE", "howdah:latest");
        for name in [
            "PG1",
            "PG2",
            "PG3",
            "API1",
            "API2",
            "API3",
            "READ_WRITE",
            "READ_ONLY",
            "STATISTICS",
        ] {
            command.env(format!("HOWDAH_{name}_PORT"), "1");
        }
        let ran = run(&mut command);
        assert_eq!(ran.code, Some(1), "{mode}: {ran:?}");
        assert!(
            ran.err.contains("superuser_password.txt is not") && ran.err.contains("compose/etcd.yml"),
            "{mode}: {}",
            ran.err
        );
        assert!(
            !copy
                .path("repository/compose/secrets/superuser_password.txt")
                .exists(),
            "{mode}"
        );
        assert!(!copy.calls().contains("up --detach"), "{mode}: {}", copy.calls());
    }
}

fn build(copy: &Copy) -> Ran {
    let mut command = copy.command(&copy.with_stand_in(), &["docker/build", "howdah"]);
    command
        .env("HOWDAH_BINARY_FROM", "source")
        .env("HOWDAH_IMAGE", "mine:1");
    run(&mut command)
}

#[test]
fn an_image_gets_its_name_only_when_it_runs_and_no_rest_stays() {
    let copy = Copy::new();
    for (status, code) in [("1", 1), ("0", 0)] {
        let _old = fs::remove_file(copy.path("calls"));
        fs::write(copy.path("run-status"), status).unwrap();
        let ran = build(&copy);
        assert_eq!(ran.code, Some(code), "{ran:?}");
        let calls = copy.calls();
        let built = calls.lines().find(|line| line.starts_with("build ")).unwrap();
        let candidate = built.split_whitespace().nth(2).unwrap();
        assert!(candidate.starts_with("howdah-candidate:"), "{built}");
        let named = calls.contains(&format!("image tag {candidate} mine:1"));
        assert_eq!(named, code == 0, "{calls}");
        assert!(calls.contains(&format!("image rm {candidate}")), "{calls}");
        assert_eq!(
            fs::read_dir(copy.path("tmp")).unwrap().count(),
            0,
            "temporary files stayed"
        );
    }
}

#[test]
fn the_revision_of_an_image_is_that_of_its_ingredients() {
    let copy = Copy::new();
    let git = |words: &[&str]| {
        let status = Command::new("git")
            .args([
                "-c",
                "user.name=t",
                "-c",
                "user.email=t@t",
                "-c",
                "commit.gpgsign=false",
                "-C",
            ])
            .arg(copy.path("repository"))
            .args(words)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "git {words:?}");
    };
    let revision = || {
        let _old = fs::remove_file(copy.path("calls"));
        let ran = build(&copy);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let calls = copy.calls();
        let words = calls.split_whitespace();
        let mut found = words.filter_map(|word| word.strip_prefix("REVISION="));
        found.next().unwrap().to_owned()
    };
    let write = |name: &str, text: &str| fs::write(copy.path("repository").join(name), text).unwrap();
    assert_eq!(revision(), "unknown", "outside of git");
    git(&["init", "--quiet"]);
    git(&["add", "."]);
    git(&["commit", "--quiet", "-m", "first"]);
    let first = revision();
    assert_eq!(first.len(), 40, "{first}");
    write("README.md", "words\n");
    assert_eq!(revision(), first, "an edit of something else");
    git(&["add", "."]);
    git(&["commit", "--quiet", "-m", "words"]);
    assert_eq!(revision(), first, "a commit of something else");
    write("src/new.rs", "\n");
    assert_eq!(revision(), format!("{first}-dirty"), "a new source file");
    git(&["add", "."]);
    git(&["commit", "--quiet", "-m", "code"]);
    let second = revision();
    assert!(second.len() == 40 && second != first, "{second}");
}

#[test]
fn packages_come_from_the_mirror_that_this_machine_uses() {
    if !Path::new("/usr/bin/apt-get").exists() {
        eprintln!("no apt here");
        return;
    }
    let copy = Copy::new();
    let site = |search: &str, kind: &str| {
        let mut command = copy.command(search, &["-c", &format!(". docker/lib.sh; debian_site {kind}")]);
        command.env("APT_CONFIG", copy.path("apt.conf"));
        let ran = run(&mut command);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.out.trim_end().to_owned()
    };
    let list = copy.path("sources.list");
    fs::write(
        copy.path("apt.conf"),
        format!(
            "Dir::Etc::SourceList \"{}\";\nDir::Etc::SourceParts \"/dev/null\";\n",
            list.display()
        ),
    )
    .unwrap();
    fs::write(
        &list,
        "deb http://elsewhere.example/other stable main\n\
         deb http://mirror.example/debian bookworm main\n\
         deb http://mirror.example/debian-security bookworm-security main\n",
    )
    .unwrap();
    let search = copy.with_stand_in();
    assert_eq!(site(&search, "packages"), "http://mirror.example/debian");
    assert_eq!(site(&search, "security"), "http://mirror.example/debian-security");
    fs::write(&list, "").unwrap();
    assert_eq!(site(&search, "packages"), "http://deb.debian.org/debian");
    assert_eq!(
        site(&copy.without(&["apt-get"]), "security"),
        "http://deb.debian.org/debian-security"
    );
}
