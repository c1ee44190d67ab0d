//! Init as a real process, and looking at the processes around it.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::stand_in::DIRECTORY;

/// The name of the ignored test that is the stand-in agent.
const STAND_IN: [&str; 5] = [
    "stand_in_agent",
    "--exact",
    "--ignored",
    "--nocapture",
    "--test-threads=1",
];

/// Long enough for a loaded machine; only a failing test waits that long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` holds.
#[track_caller]
pub fn eventually(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        sleep(Duration::from_millis(2));
    }
}

/// One line of the process table.
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub state: char,
}

pub fn table() -> Vec<Process> {
    let numbers = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    numbers
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read(entry.path().join("stat")).ok()?;
            let stat = String::from_utf8_lossy(&stat).into_owned();
            let mut fields = stat.rsplit_once(") ")?.1.split(' ');
            let state = fields.next()?.chars().next()?;
            Some(Process {
                pid,
                parent: fields.next()?.parse().ok()?,
                state,
            })
        })
        .collect()
}

/// Processor time a process has used, in hundredths of a second; `None` once it has ended.
pub fn ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    // A zombie has no more to tell, but its last number is right.
    Some(user + system)
}

/// Builds the command line of an init under test.
pub struct Setup {
    directory: TempDir,
    program: Vec<String>,
    prefix: Vec<String>,
    stderr: Option<Stdio>,
}

/// Init with the stand-in agent, which follows `script`.
pub fn init(script: &str) -> Setup {
    let directory = TempDir::new().expect("a directory");
    fs::write(directory.path().join("script"), script).expect("the script");
    let this = std::env::current_exe()
        .expect("this binary")
        .display()
        .to_string();
    let program = [this].into_iter().chain(STAND_IN.map(Into::into)).collect();
    Setup {
        directory,
        program,
        prefix: Vec::new(),
        stderr: None,
    }
}

impl Setup {
    /// What the agent does at its start number `number` instead.
    pub fn at_start(self, number: u32, script: &str) -> Self {
        let path = self.directory.path().join(format!("script.{number}"));
        fs::write(path, script).expect("the script");
        self
    }

    /// Another program than the stand-in.
    pub fn program(mut self, program: &[&str]) -> Self {
        self.program = program.iter().map(|&word| word.into()).collect();
        self
    }

    /// Init as PID 1 of a namespace of its own; `None` where that is not permitted.
    pub fn in_namespace(mut self) -> Option<Self> {
        let unshare = ["unshare", "--pid", "--fork", "--mount-proc"];
        let permitted = Command::new(unshare[0])
            .args(&unshare[1..])
            .arg("true")
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        self.prefix = unshare.map(Into::into).into();
        permitted.then_some(self)
    }

    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stderr = Some(stderr.into());
        self
    }

    /// The stand-in alone, without init, until it ends.
    pub fn run_without_init(self) -> Vec<String> {
        let status = Command::new(&self.program[0])
            .args(&self.program[1..])
            .env(DIRECTORY, self.directory.path())
            .stdout(Stdio::null())
            .status()
            .expect("the stand-in");
        let text = fs::read_to_string(self.directory.path().join("record")).unwrap_or_default();
        assert!(status.success(), "{status}: {text}");
        text.lines().map(str::to_owned).collect()
    }

    pub fn start(self) -> Init {
        let howdah = env!("CARGO_BIN_EXE_howdah").to_owned();
        let line: Vec<_> = self
            .prefix
            .into_iter()
            .chain([howdah, "init".into(), "--".into()])
            .collect();
        let log = File::create(self.directory.path().join("log")).expect("a log");
        let child = Command::new(&line[0])
            .args(&line[1..])
            .args(&self.program)
            .env(DIRECTORY, self.directory.path())
            .process_group(0)
            .stdout(Stdio::null())
            .stderr(self.stderr.unwrap_or_else(|| log.into()))
            .spawn()
            .expect("howdah");
        Init {
            child,
            directory: self.directory,
        }
    }
}

/// A running init. Whatever is left of it dies with this value.
pub struct Init {
    child: Child,
    directory: TempDir,
}

impl Init {
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).unwrap_or_default()).into_owned()
    }

    pub fn log(&self) -> String {
        self.text("log")
    }

    /// What the stand-in recorded so far.
    pub fn records(&self) -> Vec<String> {
        self.text("record").lines().map(str::to_owned).collect()
    }

    /// The signals the stand-in received so far.
    pub fn signals(&self) -> Vec<String> {
        let records = self.records().into_iter();
        records
            .filter_map(|line| line.strip_prefix("signal ").map(str::to_owned))
            .collect()
    }

    /// The deadline the stand-in armed last, in nanoseconds of boot time.
    pub fn armed(&self) -> u64 {
        let records = self.records();
        let last = records.iter().rev().find_map(|line| line.strip_prefix("armed "));
        last.and_then(|nanos| nanos.parse().ok())
            .expect("an armed deadline")
    }

    #[track_caller]
    pub fn await_record(&self, line: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.records().iter().any(|record| record == line) {
            assert!(
                Instant::now() < deadline,
                "no record {line:?} in {:#?}\n{}",
                self.records(),
                self.log()
            );
            sleep(Duration::from_millis(2));
        }
    }

    #[track_caller]
    pub fn await_log(&self, words: &str) {
        eventually(words, PATIENCE, || self.log().contains(words));
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("signal init");
    }

    pub fn running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Exit status; a death by signal is 128 + its number.
    #[track_caller]
    pub fn wait(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status
                    .code()
                    .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            }
            assert!(
                Instant::now() < deadline,
                "init does not end: {:#?}\n{}",
                self.records(),
                self.log()
            );
            sleep(Duration::from_millis(1));
        }
    }

    /// Everything that was ever started below this init and still lives, wherever it was moved to.
    pub fn survivors(&self) -> Vec<i32> {
        let mark = format!("{DIRECTORY}={}", self.directory.path().display());
        let processes = table().into_iter().filter(|process| process.state != 'Z');
        processes
            .filter(|process| process.pid != self.pid())
            .filter(|process| {
                let environment = fs::read(format!("/proc/{}/environ", process.pid));
                environment.is_ok_and(|bytes| {
                    bytes
                        .split(|byte| *byte == 0)
                        .any(|entry| entry == mark.as_bytes())
                })
            })
            .map(|process| process.pid)
            .collect()
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        // Init first, or it would start what is killed next again.
        let _: Result<(), std::io::Error> = self.child.kill();
        let _: Result<_, std::io::Error> = self.child.wait();
        for pid in self.survivors() {
            let _: Result<(), nix::Error> = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
