//! README's example without containers, run as it is printed there by a user without rights.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, User, geteuid},
};

use crate::{
    SOON,
    node::{descendants, free_port, http, own, wait_for},
};

/// The shell of the person who tries it; ends with everything that was started in it.
struct Shell(Child);

impl Drop for Shell {
    fn drop(&mut self) {
        let shell = i32::try_from(self.0.id()).expect("a pid");
        let tree = descendants(shell);
        let _gone = killpg(Pid::from_raw(shell), Signal::SIGKILL);
        for pid in tree {
            let _gone = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _status = self.0.wait();
    }
}

/// The first and the last commands of README's section.
fn blocks() -> [String; 2] {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("README.md");
    let (_, section) = readme
        .split_once("## Without any container")
        .expect("the section");
    let mut blocks = section
        .split("```sh\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap_or_default().to_owned());
    [(); 2].map(|()| blocks.next().expect("two blocks"))
}

/// The example with what a test must change: ports that are free, and the binary that is under test.
fn example(block: &str, binary: &Path) -> (String, u16) {
    let api = three_ports();
    let changes = [
        ("cargo build --release\n", String::new()),
        (
            "${HOWDAH:-$PWD/target/release/howdah}",
            binary.display().to_string(),
        ),
        ("127.0.0.1:2379", format!("127.0.0.1:{}", free_port())),
        ("127.0.0.1:2380", format!("127.0.0.1:{}", free_port())),
        // More servers than one on this machine: etcd's list of itself defaults to 2380.
        (
            "etcd --data-dir",
            "etcd --initial-cluster default=$PEER --initial-advertise-peer-urls $PEER --data-dir".to_owned(),
        ),
        ("544$1", format!("$(({} + $1))", three_ports())),
        ("800$1", format!("$(({api} + $1))")),
    ];
    let mut text = block.to_owned();
    for (old, new) in &changes {
        assert!(text.contains(old), "README's example has no '{old}':\n{block}");
        text = text.replace(old, new);
    }
    let peer = text
        .split("--listen-peer-urls ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .expect("its url");
    (format!("PEER={peer}\n{text}"), api)
}

/// The number before three free ones, none of which anybody else in this process is given.
fn three_ports() -> u16 {
    loop {
        let base = free_port();
        let next = [free_port(), free_port(), free_port()];
        if next == [base + 1, base + 2, base + 3] {
            return base;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_without_containers_works_as_it_is_printed() {
    let home = tempfile::Builder::new()
        .prefix("howdah-")
        .tempdir()
        .expect("a directory");
    // Where the build is may be closed to the user that this runs as.
    let binary = home.path().join("howdah");
    fs::copy(env!("CARGO_BIN_EXE_howdah"), &binary).expect("copy the binary");
    own(home.path());
    let [begin, end] = blocks();
    let (example, api) = example(&begin, &binary);
    let [members, store] = ["members", "store"].map(|what| home.path().join(format!("end-of-{what}")));
    let mut end = end.lines();
    let mut at_the_word = |file: &Path| {
        let command = end.next().expect("a line for the members, one for the store");
        format!("until [ -e {} ]; do sleep 0.1; done\n{command}\n", file.display())
    };
    let end = at_the_word(&members) + &at_the_word(&store);
    let file = home.path().join("example.sh");
    let words = format!("{example}\nmember 1 check >/dev/null\nbash -c 'member 2 version'\n{end}");
    fs::write(&file, words).expect("write");
    // In a terminal, for there a shell numbers its jobs and a signal to one reaches all of it.
    let mut command = Command::new("script");
    command
        .args(["-qec", &format!("bash -emu {}", file.display()), "/dev/null"])
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap_or_default())
        .env("HOME", home.path())
        .current_dir(home.path())
        .stdin(Stdio::null())
        .process_group(0);
    if geteuid().is_root() {
        let user = User::from_name("postgres")
            .ok()
            .flatten()
            .expect("user postgres exists");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let mut shell = Shell(command.spawn().expect("start bash"));
    let log =
        |n: u16| fs::read_to_string(home.path().join(format!("howdah-demo/pg{n}.log"))).unwrap_or_default();
    wait_for("a leader and two streaming replicas", SOON, async || {
        let (_, view) = http(api + 1, "GET", "/cluster", None)
            .await
            .map_err(|error| format!("{error}\n{}", log(1)))?;
        let members = view["members"].as_array().cloned().unwrap_or_default();
        let count = |field: &str, value: &str| members.iter().filter(|member| member[field] == value).count();
        if count("role", "leader") == 1 && count("state", "streaming") == 2 {
            Ok(())
        } else {
            Err(format!("{view}\n{}{}{}", log(1), log(2), log(3)))
        }
    })
    .await;
    fs::write(members, "").expect("write");
    for n in 1..=3 {
        wait_for("a clean end", SOON, async || {
            let log = log(n);
            let ended = log.lines().rfind(|line| line.contains("everything stopped"));
            ended
                .filter(|line| line.contains("code=0"))
                .map(drop)
                .ok_or(log.clone())
        })
        .await;
    }
    fs::write(store, "").expect("write");
    let status = wait_for("the end of the shell", SOON, async || {
        shell
            .0
            .try_wait()
            .expect("wait")
            .ok_or_else(|| "it runs".to_owned())
    })
    .await;
    assert!(status.success(), "{status}");
}
