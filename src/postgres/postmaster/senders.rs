//! Server processes that are ended one by one. Walsenders while the server shuts down: SQL is over by then, what is left of
//! them to see is the process title. The WAL receiver of a replica whose replay is held: only the startup process ends it,
//! and does not come to it before it wants the next WAL record.

use std::{fs, io};

use rustix::process::Signal;

use super::process::Process;
use crate::{
    model::Lsn,
    postgres::procfs::{self, Stat},
};

const WALSENDER: &str = ": walsender ";
/// `postgres: demo: walreceiver streaming 0/3000148`; without `update_process_title` nothing follows.
const WALRECEIVER: &str = ": walreceiver";

/// How far the walsender with this pid has sent; `None`: there is no such walsender, or its title does not tell
/// (`update_process_title = off`, or it does not stream).
#[must_use]
pub fn sent_by(pid: i32) -> Option<Lsn> {
    sent_in(&title(pid)?)
}

fn title(pid: i32) -> Option<String> {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&raw).replace('\0', " "))
}

/// `postgres: demo: walsender replicator 10.0.0.3(41234) streaming 0/3000148`.
fn sent_in(title: &str) -> Option<Lsn> {
    let (_, activity) = title.split_once(WALSENDER)?;
    let (_, position) = activity.split_once(" streaming ")?;
    position.trim().parse().ok()
}

/// Asks a walsender of `postmaster` to end. Its pid may be another's by now, so it is pinned before it is looked at.
pub(super) fn end(pid: i32, postmaster: i32) -> io::Result<()> {
    terminate(pid, postmaster, WALSENDER)
}

/// Whether a WAL receiver of `postmaster` runs.
#[must_use]
pub fn receives(postmaster: i32) -> bool {
    receiver(postmaster).is_some()
}

fn receiver(postmaster: i32) -> Option<i32> {
    let mut pids = procfs::pids().into_iter();
    pids.find(|pid| is(*pid, postmaster, WALRECEIVER))
}

/// Asks the WAL receiver of `postmaster` to end. PostgreSQL starts none anew while `primary_conninfo` is empty.
pub(super) fn end_receiver(postmaster: i32) -> io::Result<()> {
    match receiver(postmaster) {
        Some(pid) => terminate(pid, postmaster, WALRECEIVER),
        None => Ok(()),
    }
}

fn terminate(pid: i32, postmaster: i32, kind: &str) -> io::Result<()> {
    let Some(process) = Process::adopt(pid) else {
        return Ok(());
    };
    if is(pid, postmaster, kind) {
        return process.signal(Signal::TERM);
    }
    Ok(())
}

fn is(pid: i32, postmaster: i32, kind: &str) -> bool {
    let ours = Stat::read(pid).is_some_and(|stat| stat.parent == postmaster);
    ours && title(pid).is_some_and(|title| title.contains(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_tells_how_far_it_has_sent() {
        for title in [
            "postgres: demo: walsender replicator 10.0.0.3(41234) streaming 1/3000148 ",
            "postgres: walsender streaming [local] streaming 1/3000148",
        ] {
            assert_eq!(sent_in(title), Some(Lsn(0x1_0300_0148)), "{title}");
        }
        for title in [
            "postgres: demo: walsender replicator 10.0.0.3(41234) idle",
            "postgres: demo: app app 10.0.0.3(41234) streaming 1/3000148",
            "postgres: demo: walsender replicator 10.0.0.3(41234) streaming soon",
            "",
        ] {
            assert_eq!(sent_in(title), None, "{title}");
        }
    }

    #[tokio::test]
    async fn only_a_walsender_of_this_postmaster_is_signalled() {
        let me = i32::try_from(std::process::id()).expect("a pid");
        // A child of ours that is no walsender, and a walsender of nobody.
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep");
        let pid = i32::try_from(child.id()).expect("a pid");
        for postmaster in [me, 1] {
            end(pid, postmaster).expect("nothing to signal");
            end_receiver(postmaster).expect("nothing to signal");
        }
        assert!(child.try_wait().expect("ours").is_none(), "it lives");
        child.kill().expect("ours");
        child.wait().expect("ours");
        assert_eq!(sent_by(pid), None);
    }
}
