//! A stand-in for the agent: the test binary itself, started again by init with one ignored test.
//! It follows a script, one verb a line, and writes what happens to it into a record.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;
use std::thread::sleep;
use std::time::Duration;

use howdah::clock::Boottime;
use howdah::guard::Guard;
use howdah::init::privileges::{Directory, Part, prepare};
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{getegid, geteuid, getgroups, getppid};

use crate::processes;

/// Directory of the scripts and the record; everything started below inherits the variable.
pub const DIRECTORY: &str = "HOWDAH_TEST_STAND_IN";

/// Set once the stand-in has started itself again with all signals blocked.
const BLOCKED: &str = "HOWDAH_TEST_BLOCKED";

pub fn run() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        return;
    };
    let signals = SigSet::all();
    signals.thread_block().expect("block signals");
    if std::env::var_os(BLOCKED).is_none() {
        // The harness has threads of its own that would take the signals; started like this, they
        // have them blocked too.
        let this = std::env::current_exe().expect("this binary");
        let error = Command::new(this)
            .args(std::env::args_os().skip(1))
            .env(BLOCKED, "1")
            .exec();
        panic!("{error}");
    }
    let record = OpenOptions::new()
        .append(true)
        .create(true)
        .open(directory.join("record"));
    let mut agent = StandIn {
        guard: Guard::from_stdin().expect("take over the socket"),
        signals,
        record: record.expect("a record"),
        directory,
    };
    let number = agent
        .records()
        .iter()
        .filter(|line| line.starts_with("start"))
        .count()
        + 1;
    let adopted = agent
        .guard
        .adopted()
        .map_or("none".into(), |lease| lease.to_string());
    agent.note(&format!(
        "start {number} init {} adopted {adopted}",
        agent.guard.has_init()
    ));
    let own = agent.directory.join(format!("script.{number}"));
    let script = fs::read_to_string(own)
        .or_else(|_| fs::read_to_string(agent.directory.join("script")))
        .expect("a script");
    for line in script.lines() {
        let (verb, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        agent.perform(verb, rest);
    }
    std::process::exit(0);
}

struct StandIn {
    guard: Guard,
    signals: SigSet,
    /// Opened once: it is still writable when root is dropped.
    record: File,
    directory: PathBuf,
}

impl StandIn {
    fn records(&self) -> Vec<String> {
        let text = fs::read_to_string(self.directory.join("record")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn note(&self, text: &str) {
        (&self.record)
            .write_all(format!("{text}\n").as_bytes())
            .expect("record");
    }

    fn perform(&mut self, verb: &str, rest: &str) {
        match verb {
            "" => {}
            "note" => self.note(rest),
            "arm" => self.arm(number(rest)),
            "disarm" => self.guard.disarm().expect("disarm"),
            "stopping" => self.guard.stopping().expect("stopping"),
            "renew" => {
                for _ in 0..number(rest) {
                    self.arm(300);
                    sleep(Duration::from_millis(100));
                }
            }
            "sleep" => sleep(Duration::from_millis(number(rest))),
            "exit" => std::process::exit(i32::from_str(rest).expect("an exit status")),
            "raise" => {
                SigSet::empty().thread_set_mask().expect("unblock");
                raise(Signal::from_str(rest).expect("a signal")).expect("raise");
            }
            "until" => self.until(rest),
            "spawn" => self.spawn(rest),
            "orphans" => self.orphans(number(rest)),
            "ask" => kill(getppid(), Signal::from_str(rest).expect("a signal")).expect("ask init"),
            "gone" => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(self.guard.init_gone());
                self.note("gone");
            }
            "drop" => self.drop_root(rest),
            other => panic!("no verb {other:?}"),
        }
    }

    fn arm(&self, ahead_ms: u64) {
        let until = Boottime::now() + Duration::from_millis(ahead_ms);
        self.guard.arm(until, 7).expect("arm");
        self.note(&format!("armed {}", until.0));
    }

    /// Records every signal until this one came.
    fn until(&self, last: &str) {
        let signals = SignalFd::new(&self.signals).expect("signalfd");
        self.note("listening");
        loop {
            let info = signals.read_signal().expect("read a signal").expect("a signal");
            let signal = i32::try_from(info.ssi_signo)
                .ok()
                .and_then(|n| Signal::try_from(n).ok());
            let name = signal.map_or("other", Signal::as_str);
            if name != "SIGCHLD" {
                self.note(&format!("signal {name}"));
            }
            if name == last {
                return;
            }
        }
    }

    /// Starts a shell command in the background, with no signal blocked.
    #[expect(
        clippy::zombie_processes,
        reason = "init reaps it once this process has ended"
    )]
    fn spawn(&self, command: &str) {
        SigSet::empty().thread_set_mask().expect("unblock");
        let mut shell = Command::new("sh");
        shell
            .args(["-c", command])
            .process_group(0)
            .current_dir(&self.directory);
        shell.spawn().expect("a shell");
        self.signals.thread_block().expect("block signals");
    }

    /// Makes that many orphans in four shells and waits until none of them is a zombie.
    fn orphans(&self, count: u64) {
        let each = count / 4;
        let script = format!("i=0; while [ $i -lt {each} ]; do (: &); i=$((i+1)); done");
        let shells: Vec<_> = (0..4)
            .map(|_| Command::new("sh").args(["-c", &script]).spawn().expect("sh"))
            .collect();
        for mut shell in shells {
            assert!(shell.wait().expect("wait").success());
        }
        let init = getppid().as_raw();
        // Also none that still lives, to become one.
        let own = i32::try_from(std::process::id()).expect("a process id");
        processes::eventually("no zombie", Duration::from_secs(20), || {
            let mut adopted = processes::table().into_iter();
            !adopted.any(|process| process.parent == init && process.pid != own)
        });
        self.note("no zombie");
    }

    /// Drops root, then records whose the directories are and who this is.
    fn drop_root(&self, user: &str) {
        let paths = ["volume", "volume/data"].map(|name| self.directory.join(name));
        fs::create_dir(&paths[0]).expect("a volume of root");
        let directories = paths.clone().map(|path| Directory {
            path,
            mode: 0o700,
            part: Part::Own,
        });
        // The directory of the test itself must be passable for the user.
        fs::set_permissions(&self.directory, Permissions::from_mode(0o711)).expect("chmod");
        prepare(user, &directories).expect("drop root");
        for path in paths {
            let metadata = fs::metadata(path).expect("a directory");
            self.note(&format!(
                "directory {} {:o}",
                metadata.uid(),
                metadata.mode() & 0o777
            ));
        }
        let groups: Vec<_> = getgroups()
            .expect("groups")
            .iter()
            .map(|gid| gid.as_raw())
            .collect();
        self.note(&format!("ids {} {} {groups:?}", geteuid(), getegid()));
    }
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}
