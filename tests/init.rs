//! Init among real processes: as a child subreaper, and as PID 1 of a namespace where that is
//! permitted. The agent is a stand-in, this test binary itself.
#![allow(
    clippy::disallowed_methods,
    reason = "tests: waits poll a condition with a deadline, and temporary data is removed"
)]
#![allow(missing_docs, unreachable_pub, clippy::panic, clippy::print_stderr)]

#[path = "init/processes.rs"]
mod processes;
#[path = "init/stand_in.rs"]
mod stand_in;

use std::io::{PipeWriter, Write, pipe};
use std::time::{Duration, Instant};

use howdah::clock::Boottime;
use howdah::exit::Exit;
use nix::sys::signal::Signal;
use processes::{PATIENCE, eventually, init};

#[test]
#[ignore = "the stand-in agent, started by the other tests"]
fn stand_in_agent() {
    stand_in::run();
}

/// A detached process that writes down, every few milliseconds, how far boot time has come.
const WITNESS: &str = "spawn setsid sh -c 'echo $$ > witness.pid; while read up _ < /proc/uptime; \
                       do echo $up > witness; done' & exec sleep 1000";

/// Reads what [`WITNESS`] wrote last, in nanoseconds of boot time.
fn last_seen(init: &processes::Init) -> u64 {
    let text = std::fs::read_to_string(init.path("witness")).expect("the witness");
    // It may have been killed between emptying and writing its file; then it was alive just now.
    let seconds = text.trim().parse().unwrap_or(f64::MAX);
    (seconds * 1e9) as u64
}

#[test]
fn every_deliberate_exit_status_of_the_agent_is_that_of_init() {
    for code in (0..=255).filter(|code| Exit::deliberate(*code).is_some()) {
        let mut init = init(&format!("exit {code}")).start();
        assert_eq!(init.wait(), code, "{}", init.log());
        assert_eq!(init.records().len(), 1, "started once");
    }
}

#[test]
fn a_program_that_does_not_exist_is_an_error_of_the_system() {
    let mut init = init("").program(&["/does/not/exist"]).start();
    assert_eq!(init.wait(), i32::from(Exit::Os.code()));
    assert!(init.log().contains("/does/not/exist"), "{}", init.log());
}

#[test]
fn every_signal_with_a_meaning_reaches_the_agent_and_no_other_does() {
    let mut init = init("until SIGTERM\nexit 0").start();
    init.await_record("listening");
    let passed = [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];
    let ignored = [
        Signal::SIGALRM,
        Signal::SIGPIPE,
        Signal::SIGTSTP,
        Signal::SIGWINCH,
    ];
    for signal in passed.into_iter().chain(ignored) {
        init.signal(signal);
        if passed.contains(&signal) {
            init.await_record(&format!("signal {signal}"));
        }
    }
    init.signal(Signal::SIGTERM);
    assert_eq!(init.wait(), 0, "{}", init.log());
    assert_eq!(init.signals(), ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTERM"]);
    assert!(init.log().contains("state of init"), "{}", init.log());
}

#[test]
fn a_signal_from_the_terminal_reaches_the_agent_once() {
    let mut init = init("until SIGQUIT\nexit 0").start();
    init.await_record("listening");
    // Ctrl-C goes to every process of the foreground group.
    let group = nix::unistd::Pid::from_raw(init.pid());
    // Two signals of a kind may merge on their way, so the groups are compared as well.
    for pid in init.survivors() {
        let of_agent = nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid)));
        assert_ne!(of_agent, Ok(group), "the agent has a group of its own");
    }
    nix::sys::signal::killpg(group, Signal::SIGINT).expect("signal the group");
    init.await_record("signal SIGINT");
    init.signal(Signal::SIGQUIT);
    assert_eq!(init.wait(), 0, "{}", init.log());
    assert_eq!(init.signals(), ["SIGINT", "SIGQUIT"]);
}

#[test]
fn each_sigterm_is_more_urgent_than_the_one_before() {
    let mut init = init("until SIGQUIT\nexit 0").start();
    init.await_record("listening");
    for forwarded in ["SIGTERM", "SIGINT", "SIGQUIT"] {
        init.signal(Signal::SIGTERM);
        init.await_record(&format!("signal {forwarded}"));
    }
    assert_eq!(init.wait(), 0, "{}", init.log());
    assert_eq!(init.signals(), ["SIGTERM", "SIGINT", "SIGQUIT"]);
}

#[test]
fn an_agent_deaf_to_sigquit_is_killed_with_all_it_started() {
    let mut init = init(&format!("{WITNESS}\nuntil SIGQUIT\nsleep 100000")).start();
    init.await_record("listening");
    let start = Instant::now();
    init.signal(Signal::SIGQUIT);
    assert_eq!(init.wait(), i32::from(Exit::Dirty.code()), "{}", init.log());
    assert!(start.elapsed() >= Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(init.survivors(), [0; 0]);
}

#[test]
fn a_program_that_knows_nothing_of_init_stops_cleanly_by_sigterm() {
    let mut init = init("").program(&["sleep", "1000"]).start();
    eventually("sleep runs", PATIENCE, || !init.survivors().is_empty());
    init.await_log("agent started");
    // The signal mask is empty only once the program itself runs.
    let name = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    eventually("sleep runs", PATIENCE, || {
        init.survivors().iter().any(|pid| name(pid).trim() == "sleep")
    });
    init.signal(Signal::SIGTERM);
    assert_eq!(init.wait(), 0, "{}", init.log());
}

#[test]
fn a_crashed_agent_is_started_again_with_its_lease_and_the_same_deadline() {
    let mut init = init("raise SIGKILL")
        .at_start(1, "arm 60000\nraise SIGKILL")
        .at_start(2, "sleep 20\nexit 101")
        .at_start(3, "disarm\nexit 101")
        .at_start(4, "exit 0")
        .start();
    assert_eq!(init.wait(), 0, "{}", init.log());
    let lease = format!("{}:7", init.armed());
    let starts: Vec<_> = init
        .records()
        .into_iter()
        .filter(|line| line.starts_with("start"))
        .collect();
    assert_eq!(
        starts,
        [
            "start 1 init true adopted none".to_owned(),
            format!("start 2 init true adopted {lease}"),
            format!("start 3 init true adopted {lease}"),
            "start 4 init true adopted none".to_owned(),
        ]
    );
}

#[test]
fn what_the_agent_started_survives_its_crash() {
    let mut init = init(&format!("{WITNESS}\nuntil SIGHUP\nraise SIGKILL"))
        .at_start(2, "until SIGTERM\nexit 0")
        .start();
    init.await_record("listening");
    eventually("a witness", PATIENCE, || init.path("witness").exists());
    init.signal(Signal::SIGHUP);
    init.await_record("start 2 init true adopted none");
    let seen = Boottime::now().0;
    eventually("the witness goes on", PATIENCE, || {
        (seen + 50_000_000..u64::MAX / 2).contains(&last_seen(&init))
    });
    init.signal(Signal::SIGTERM);
    assert_eq!(init.wait(), 0, "{}", init.log());
    assert_eq!(init.survivors(), [0; 0], "what is left is stopped with the agent");
}

#[test]
fn an_agent_that_always_crashes_ends_everything_when_its_budget_is_spent() {
    let mut init = init("raise SIGKILL")
        .at_start(1, &format!("{WITNESS}\nraise SIGKILL"))
        .start();
    assert_eq!(init.wait(), i32::from(Exit::Internal.code()), "{}", init.log());
    let starts = init
        .records()
        .iter()
        .filter(|line| line.starts_with("start"))
        .count();
    assert_eq!(starts, 6, "the first start and five restarts");
    assert_eq!(init.survivors(), [0; 0]);
}

#[test]
fn an_agent_that_crashes_during_a_stop_is_not_started_again() {
    let mut init = init(&format!("{WITNESS}\nuntil SIGTERM\nraise SIGKILL")).start();
    init.await_record("listening");
    eventually("a witness", PATIENCE, || init.path("witness").exists());
    let start = Instant::now();
    init.signal(Signal::SIGTERM);
    assert_eq!(init.wait(), i32::from(Exit::Dirty.code()), "{}", init.log());
    // The witness is not a child of init: its parent, the shell, is asked and leaves it behind.
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "asked to stop, not killed"
    );
    assert_eq!(
        init.records()
            .iter()
            .filter(|line| line.starts_with("start"))
            .count(),
        1
    );
    assert_eq!(init.survivors(), [0; 0]);
}

#[test]
fn a_chain_of_processes_left_behind_is_asked_link_by_link() {
    // Each link is init's own child only when the one above has ended.
    let chain = "spawn sh -c \"sh -c 'sleep 1003 & exec sleep 1002' & exec sleep 1001\" & \
                 exec sleep 1000";
    let mut init = init(&format!("{chain}\nuntil SIGTERM\nexit 0")).start();
    init.await_record("listening");
    let is_last = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line == b"sleep\x001003\0"
    };
    eventually("the chain", PATIENCE, || init.survivors().iter().any(is_last));
    init.signal(Signal::SIGTERM);
    assert_eq!(init.wait(), 0, "{}", init.log());
    assert!(!init.log().contains("killed everything"), "{}", init.log());
}

#[test]
fn processes_left_behind_that_refuse_to_stop_are_killed_and_the_status_stays() {
    let stubborn = "spawn trap '' TERM INT; touch stubborn; while :; do sleep 0.1; done";
    let mut init = init(&format!("{stubborn}\nuntil SIGTERM\nexit 77")).start();
    eventually("a stubborn process", PATIENCE, || init.path("stubborn").exists());
    init.await_record("listening");
    let start = Instant::now();
    init.signal(Signal::SIGTERM);
    assert_eq!(init.wait(), 77, "{}", init.log());
    let took = start.elapsed();
    assert!(
        took > Duration::from_secs(7) && took < Duration::from_secs(10),
        "{took:?}"
    );
    assert_eq!(init.survivors(), [0; 0]);
}

#[test]
fn a_stopped_agent_is_fenced_with_every_descendant_at_its_deadline() {
    let frozen = "spawn sleep 1001 & kill -STOP $!; wait";
    promptly(|| {
        let mut init = init(&format!("{WITNESS}\n{frozen}\n{STOPPED_WHILE_ARMED}")).start();
        let late = fenced(&mut init);
        // It was alive until then, as far as it got a processor; /proc/uptime counts in hundredths.
        let silent = init.armed().saturating_sub(last_seen(&init));
        late.max(Duration::from_nanos(silent))
    });
}

/// The agent arms the fence and stops dead before it passes.
const STOPPED_WHILE_ARMED: &str = "sleep 200\narm 500\nraise SIGSTOP\nsleep 100000";

/// Waits for the fence; returns by how much it was late.
fn fenced(init: &mut processes::Init) -> Duration {
    assert_eq!(init.wait(), i32::from(Exit::Fenced.code()), "{}", init.log());
    let ended = Boottime::now().0;
    assert_eq!(init.survivors(), [0; 0]);
    assert!(ended > init.armed(), "not before the deadline");
    Duration::from_nanos(ended - init.armed())
}

/// The fence must be prompt, but other tests may hold both processors for a while: the best of three.
fn promptly(attempt: impl Fn() -> Duration) {
    let late: Vec<_> = (0..3).map(|_| attempt()).collect();
    assert!(
        late.iter().any(|late| *late < Duration::from_millis(200)),
        "late by {late:?}"
    );
}

#[test]
fn renewals_move_the_deadline_and_disarming_ends_it() {
    let mut init = init("renew 10\ndisarm\nnote disarmed\nsleep 600\nexit 0").start();
    init.await_record("disarmed");
    assert_eq!(init.wait(), 0, "{}", init.log());
    let first = init
        .records()
        .into_iter()
        .find_map(|line| line.strip_prefix("armed ")?.parse().ok());
    assert!(
        init.armed() > first.unwrap_or(u64::MAX) + 800_000_000,
        "renewed for most of a second"
    );
}

#[test]
fn a_deadline_passes_also_while_the_agent_crashes_again_and_again() {
    let setup = || init("raise SIGKILL").at_start(1, "arm 500\nraise SIGKILL");
    promptly(|| fenced(&mut setup().start()));
}

#[test]
fn an_agent_that_ends_while_armed_leaves_no_writer_past_the_deadline() {
    let stubborn = "spawn trap '' TERM INT; while :; do sleep 0.1; done";
    let mut init = init(&format!("{stubborn}\nsleep 100\narm 400\nexit 0")).start();
    assert_eq!(init.wait(), i32::from(Exit::Fenced.code()), "{}", init.log());
    assert_eq!(init.survivors(), [0; 0]);
}

#[test]
fn a_log_that_nobody_reads_does_not_delay_the_fence() {
    let (reader, writer) = pipe().expect("a pipe");
    fill(&writer);
    let mut init = init("arm 500\nraise SIGSTOP\nsleep 100000")
        .stderr(writer)
        .start();
    assert_eq!(init.wait(), i32::from(Exit::Fenced.code()));
    let late = Boottime::now().0.saturating_sub(init.armed());
    // A fifth of a second is what the process waits for its log before it exits.
    assert!(late < 2_000_000_000, "{late} ns late");
    assert_eq!(init.survivors(), [0; 0]);
    drop(reader);
}

/// Writes until the pipe is full, and leaves it blocking.
fn fill(mut writer: &PipeWriter) {
    rustix::io::ioctl_fionbio(writer, true).expect("non-blocking");
    while writer.write(&[b'.'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(writer, false).expect("blocking");
}

#[test]
fn packets_that_are_no_records_are_reported_and_ignored() {
    let script = "printf hello >&0; printf '%024d' 0 >&0; printf '%0200d' 0 >&0; exit 64";
    let mut init = init("").program(&["sh", "-c", script]).start();
    assert_eq!(init.wait(), 64, "{}", init.log());
    assert_eq!(
        init.log().matches("record from the agent ignored").count(),
        3,
        "{}",
        init.log()
    );
}

#[test]
fn an_agent_that_closes_its_end_costs_no_processor_time() {
    let script = "exec 0<&-; sleep 1; exit 64";
    let mut init = init("").program(&["sh", "-c", script]).start();
    init.await_log("agent started");
    let mut ticks = 0;
    while init.running() {
        ticks = processes::ticks(init.pid()).unwrap_or(ticks);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(init.wait(), 64, "{}", init.log());
    assert!(ticks < 20, "{ticks} hundredths of a second in one second");
}

#[test]
fn the_agent_sees_at_once_that_init_was_killed() {
    let init = init("note watching\ngone").start();
    init.await_record("watching");
    init.signal(Signal::SIGKILL);
    let start = Instant::now();
    init.await_record("gone");
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn ten_thousand_orphans_leave_no_zombie() {
    reaps(init("orphans 10000\nask SIGUSR2\nuntil SIGUSR2\nexit 0"));
}

#[test]
fn as_pid_1_it_reaps_ten_thousand_orphans() {
    let Some(setup) = init("orphans 10000\nask SIGUSR2\nuntil SIGUSR2\nexit 0").in_namespace() else {
        return not_permitted();
    };
    reaps(setup);
}

fn reaps(setup: processes::Setup) {
    let mut init = setup.start();
    // `wait` is patient for less than this takes on a small machine.
    eventually("no zombie", Duration::from_secs(120), || {
        init.records().iter().any(|line| line == "no zombie") || !init.running()
    });
    assert_eq!(init.wait(), 0, "{}", init.log());
    let log = init.log();
    assert!(reaped(&log) >= 10_000, "{log}");
}

/// The number of reaped children in the last state dump.
fn reaped(log: &str) -> u64 {
    let number = log.rsplit("reaped=").next();
    let number = number.and_then(|rest| rest.split([' ', '\n']).next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[test]
fn as_pid_1_its_exit_takes_the_namespace_along() {
    let setup = || init(&format!("{WITNESS}\n{STOPPED_WHILE_ARMED}")).in_namespace();
    if setup().is_none() {
        return not_permitted();
    }
    promptly(|| setup().map_or(Duration::ZERO, |setup| fenced(&mut setup.start())));
}

fn not_permitted() {
    eprintln!("skipped: no permission to make a PID namespace");
}

#[test]
fn a_storm_of_signals_and_dying_children_is_survived() {
    let children = "spawn while :; do (: &) ; done";
    let mut init = init(&format!("{children}\n{children}\nuntil SIGTERM\nexit 0")).start();
    init.await_record("listening");
    let kinds = [
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGCHLD,
        Signal::SIGWINCH,
    ];
    let mut storm = kinds.into_iter().cycle();
    // Signals of one kind merge while they wait, so the storm goes on until enough came through.
    eventually("a thousand signals and children", PATIENCE, || {
        storm.by_ref().take(50).for_each(|signal| init.signal(signal));
        init.signals().len() >= 1000 && reaped(&init.log()) >= 1000
    });
    let before = init.signals().len();
    init.signal(Signal::SIGHUP);
    eventually("the agent hears init", PATIENCE, || init.signals().len() > before);
    init.signal(Signal::SIGTERM);
    assert_eq!(init.wait(), 0, "{}", init.log());
    assert_eq!(init.survivors(), [0; 0]);
}

#[test]
fn without_init_the_guard_does_nothing_and_the_agent_runs() {
    let records = init("arm 1\nsleep 50\nnote alive").run_without_init();
    assert_eq!(records[0], "start 1 init false adopted none");
    assert_eq!(records.last().map(String::as_str), Some("alive"));
}

#[test]
fn root_is_dropped_for_good_and_the_directories_are_the_users() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: not root");
        return;
    }
    let records = init("drop nobody").run_without_init();
    let user = nix::unistd::User::from_name("nobody")
        .expect("users")
        .expect("nobody");
    let (uid, gid) = (user.uid, user.gid);
    let expected = [
        format!("directory {uid} 755"),
        format!("directory {uid} 700"),
        format!("ids {uid} {gid} [{gid}]"),
    ];
    assert_eq!(records[1..], expected);
}
