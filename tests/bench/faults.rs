//! What interrupts writes, and for how long: the longest time between two acknowledged commits around it.

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use crate::{SOON, node::wait_for, report::Report, team::Team, writer::Writers};

/// Commits after which a member counts as the one that takes writes.
const ENOUGH: usize = 100;
/// How long is looked for a gap where there should be none.
const LOOK: Duration = Duration::from_secs(12);

type Running<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// One of them.
pub struct Fault {
    pub measure: &'static str,
    run: for<'a> fn(&'a mut Team, &'static str, &'a mut Report) -> Running<'a>,
}

impl Fault {
    pub async fn trial(&self, team: &mut Team, report: &mut Report) {
        (self.run)(team, self.measure, report).await;
    }
}

pub const ALL: &[Fault] = &[
    Fault {
        measure: "switchover",
        run: |team, name, report| Box::pin(switchover(team, name, report)),
    },
    Fault {
        measure: "leader-stopped",
        run: |team, name, report| Box::pin(leader_stopped(team, name, report)),
    },
    Fault {
        measure: "postmaster-killed",
        run: |team, name, report| Box::pin(postmaster_killed(team, name, report)),
    },
    Fault {
        measure: "agent-killed",
        run: |team, name, report| Box::pin(agent_killed(team, name, report)),
    },
    Fault {
        measure: "leader-killed",
        run: |team, name, report| Box::pin(leader_killed(team, name, report)),
    },
];

/// Writers on all members, and commits that are acknowledged already.
async fn writing(team: &Team, leader: usize) -> Writers {
    let writers = Writers::on(&team.pg_ports());
    let since = Instant::now();
    until("commits", async || writers.count(leader, since) >= ENOUGH).await;
    writers
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    wait_for(what, SOON, async || match condition().await {
        true => Ok(()),
        false => Err("not yet".to_owned()),
    })
    .await;
}

/// Another member than `old` takes writes; which one.
async fn another_takes_writes(team: &Team, writers: &Writers, old: usize, since: Instant) -> usize {
    wait_for("another member to take writes", SOON, async || {
        let mut others = team.members().filter(|member| *member != old);
        let new = others.find(|member| writers.count(*member, since) >= ENOUGH);
        new.ok_or_else(|| "none does".to_owned())
    })
    .await
}

fn report_gap(team: &Team, writers: &Writers, since: Instant, name: &'static str, report: &mut Report) {
    let gap = writers.longest_gap(since);
    eprintln!("    {gap:?}");
    report.add(name, team.kind, gap.as_secs_f64());
}

async fn switchover(team: &mut Team, name: &'static str, report: &mut Report) {
    let leader = team.is_well().await;
    let candidate = (leader + 1) % team.members().len();
    let writers = writing(team, leader).await;
    let asked = Instant::now();
    let answer = team.ask_for_switchover(leader, candidate);
    another_takes_writes(team, &writers, leader, asked).await;
    let answer = answer.await.unwrap().unwrap();
    assert_eq!(answer.0, 200, "{answer:?}");
    report_gap(team, &writers, asked, name, report);
    drop(writers);
    team.is_well().await;
}

async fn leader_stopped(team: &mut Team, name: &'static str, report: &mut Report) {
    let leader = team.is_well().await;
    let writers = writing(team, leader).await;
    let asked = Instant::now();
    team.ask_to_stop(leader);
    another_takes_writes(team, &writers, leader, asked).await;
    report_gap(team, &writers, asked, name, report);
    drop(writers);
    team.has_stopped(leader).await;
    team.start_member(leader);
    team.is_well().await;
}

/// Whoever takes writes then: the same member or another.
async fn postmaster_killed(team: &mut Team, name: &'static str, report: &mut Report) {
    let leader = team.is_well().await;
    let writers = writing(team, leader).await;
    let killed = Instant::now();
    team.kill_postmaster(leader);
    // Sessions outlive it by a moment.
    until("sessions to end", async || {
        killed.elapsed() > Duration::from_millis(100)
            && writers.count_all(Instant::now() - Duration::from_millis(50)) == 0
            || killed.elapsed() > LOOK
    })
    .await;
    let since = Instant::now();
    until("commits to go on", async || writers.count_all(since) >= ENOUGH).await;
    report_gap(team, &writers, killed, name, report);
    drop(writers);
    team.is_well().await;
}

async fn agent_killed(team: &mut Team, name: &'static str, report: &mut Report) {
    let leader = team.is_well().await;
    let writers = writing(team, leader).await;
    let killed = Instant::now();
    team.kill_agent(leader);
    until("the look to be over", async || killed.elapsed() > LOOK).await;
    until("commits to go on", async || {
        writers.count_all(Instant::now() - Duration::from_millis(200)) > 0
    })
    .await;
    report_gap(team, &writers, killed, name, report);
    drop(writers);
    team.is_well().await;
}

/// Agent and PostgreSQL at once: nobody hands anything over.
pub async fn leader_killed(team: &mut Team, name: &'static str, report: &mut Report) {
    let leader = team.is_well().await;
    let writers = writing(team, leader).await;
    let ends = team.lease_ends(leader).await;
    let killed = Instant::now();
    team.kill_member(leader);
    let new = another_takes_writes(team, &writers, leader, killed).await;
    report_gap(team, &writers, killed, name, report);
    if let Some((ends, first)) = ends.zip(writers.first(new, killed)) {
        let beyond = match name {
            "leader-killed" => "leader-killed-beyond",
            _ => "leader-killed-ttl-5-beyond",
        };
        report.add(
            beyond,
            team.kind,
            first.saturating_duration_since(ends).as_secs_f64(),
        );
    }
    drop(writers);
    team.start_member(leader);
    team.is_well().await;
}
