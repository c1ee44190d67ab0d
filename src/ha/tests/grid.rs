//! Invariants over every combination of what can be seen.

use super::builder::*;
use crate::{
    ha::{Action, DcsView, Job, Local, Plan, Shutdown, Silence, StartAs, View, lease},
    model::DbState,
};

type Step = Box<dyn Fn(Build) -> Build>;

/// One dimension: named changes, exactly one of which applies.
type Axis = Vec<(&'static str, Step)>;

fn step(change: impl Fn(Build) -> Build + 'static) -> Step {
    Box::new(change)
}

fn locals() -> Axis {
    vec![
        ("empty", step(|b| b.local(Local::Empty))),
        ("leftover", step(|b| b.local(Local::Leftover))),
        ("crashed primary", step(Build::crashed_primary)),
        ("clean primary", step(|b| b.clean_primary(1000))),
        ("stopped replica", step(Build::stopped_replica)),
        ("never started", step(|b| b.down(DbState::StartingUp))),
        ("starting primary", step(|b| b.starting(true, secs(1)))),
        ("stuck primary", step(|b| b.starting(true, secs(900)))),
        ("starting replica", step(|b| b.starting(false, secs(1)))),
        ("stopping", step(|b| b.stopping(secs(1)))),
        ("stuck on its way down", step(|b| b.stopping(secs(60)))),
        ("dead, being cleaned up", step(|b| b.cleaning(secs(1)))),
        ("unknown", step(|b| b.unknown(secs(1)))),
        ("unknown for long", step(|b| b.unknown(secs(900)))),
        ("stuck replica", step(|b| b.starting(false, secs(900)))),
        (
            "hung primary",
            step(|b| b.silent_for(true, secs(900), Silence::NoAnswer)),
        ),
        (
            "refusing primary",
            step(|b| b.silent_for(true, secs(900), Silence::Refused)),
        ),
        (
            "hung replica",
            step(|b| b.silent_for(false, secs(900), Silence::NoAnswer)),
        ),
        (
            "foreign primary",
            step(|b| {
                b.running_primary(1000).change(|view| {
                    if let Local::Running(running) = &mut view.local {
                        running.system_id = Some(crate::model::SystemId("7999999999".into()));
                    }
                })
            }),
        ),
        (
            "forked replica",
            step(|b| b.replica_of("a", 1000, false).mine(2).born(1, 5)),
        ),
        ("primary", step(|b| b.running_primary(1000))),
        ("primary on 2", step(|b| b.running_primary(1000).mine(2))),
        ("replica", step(|b| b.replica_of("a", 1000, true))),
        ("diverged replica", step(|b| b.replica_of("a", 5000, false))),
        ("replica of nobody", step(|b| b.running_replica(1000).mine(2))),
        ("silent primary", step(|b| b.silent(true))),
        ("silent replica", step(|b| b.silent(false))),
    ]
}

fn locks() -> Axis {
    vec![
        ("free", step(|b| b)),
        ("ours", step(|b| b.leader("b"))),
        ("another's", step(|b| b.leader("a"))),
        ("DCS down", step(|b| b.leader("b").dcs_down_for(secs(3)))),
    ]
}

fn holds() -> Axis {
    vec![
        ("no hold", step(|b| b)),
        ("valid hold", step(|b| b.hold_for(secs(9)))),
        ("just expired", step(|b| b.hold_expired(secs(0)))),
        ("long expired", step(|b| b.hold_expired(secs(900)))),
    ]
}

fn jobs() -> Axis {
    let job = |job: Job| step(move |b: Build| b.job(job.clone(), secs(1)));
    let stop = |mode| Job::Demote {
        mode,
        deadline: NOW + secs(5),
    };
    use crate::ha::DemoteMode::*;
    vec![
        ("no job", step(|b| b)),
        ("bootstrap", job(Job::Bootstrap)),
        ("clone", job(clone_of("a"))),
        ("rewind", job(Job::Rewind(at("a")))),
        (
            "copy slots",
            job(Job::CopySlots {
                from: at("a"),
                slots: vec!["x".into()],
            }),
        ),
        ("start primary", job(Job::Start(StartAs::Primary))),
        ("start replica", job(Job::Start(StartAs::Replica(None)))),
        ("restart", job(Job::Restart)),
        ("promote", job(Job::Promote)),
        ("graceful", job(stop(Graceful))),
        ("immediate", job(stop(Immediate))),
        ("offline", job(stop(Offline))),
    ]
}

fn shutdowns() -> Axis {
    let how = |how| step(move |b: Build| b.shutdown(how));
    vec![
        ("no shutdown", step(|b| b)),
        ("hand over", how(Shutdown::HandOver)),
        ("fast", how(Shutdown::Fast)),
        ("immediate", how(Shutdown::Immediate)),
    ]
}

fn requests() -> Axis {
    vec![
        ("no request", step(|b| b)),
        ("to us", step(|b| b.request(None, Some("b")))),
        ("from us", step(|b| b.request(Some("b"), None))),
        ("to c", step(|b| b.request(Some("b"), Some("c")))),
    ]
}

fn knowledge() -> Axis {
    let asked = |b: Build| {
        let c = Some(replica_at(1000));
        b.peers(&[("a", None), ("c", c)]).leader_on("a", 2)
    };
    vec![
        ("not asked", step(|b| b)),
        ("asked", step(asked)),
        ("not ready", step(move |b| asked(b).leader_in_recovery("a"))),
    ]
}

fn clusters() -> Axis {
    vec![
        ("warm", step(|b| b.seen("a"))),
        ("cold", step(|b| b.slots(&["d"]).unlocked_for(secs(1)))),
        ("on 2", step(|b| b.timeline(2))),
        (
            "wiped",
            step(|b| b.initialize(None).cluster(|c| c.history = None)),
        ),
        (
            "failing",
            step(|b| {
                b.memory(|m| {
                    m.start_failures = (3, NOW);
                    m.rewind_failures = 1;
                    m.promote_failures = (1, NOW);
                })
            }),
        ),
        (
            "handed over",
            step(|b| b.memory(|m| m.handed_over_at = Some(NOW))),
        ),
        (
            "tried everything",
            step(|b| {
                b.memory(|m| {
                    m.stop_failures = 2;
                    m.clones = (1, NOW);
                    m.rewinds = 2;
                    m.not_streaming_since = Some(NOW.minus(secs(900)));
                    m.stands_at = Some((crate::model::Lsn(1000), NOW.minus(secs(900))));
                })
            }),
        ),
        ("bootstrapping", step(|b| b.initialize(Some("")))),
    ]
}

/// Calls with every combination; returns how many there were. While a job runs nobody looks at requests and answers,
/// so those are not varied then.
pub(super) fn every(mut each: impl FnMut(&[&str], &Build)) -> usize {
    let axes = [
        clusters(),
        locks(),
        holds(),
        locals(),
        shutdowns(),
        jobs(),
        requests(),
        knowledge(),
    ];
    const JOBS: usize = 5;
    let mut total = 0;
    let mut indexes = [0; 8];
    loop {
        let mut build = view().replica("a").replica("c");
        let mut names = [""; 8];
        for (i, axis) in axes.iter().enumerate() {
            let (name, change) = &axis[indexes[i]];
            names[i] = name;
            build = change(build);
        }
        each(&names, &build);
        total += 1;
        let varied = if indexes[JOBS] == 0 { axes.len() } else { JOBS + 1 };
        let Some(last) = (0..varied).rev().find(|i| indexes[*i] + 1 < axes[*i].len()) else {
            return total;
        };
        indexes[last] += 1;
        indexes[last + 1..].fill(0);
    }
}

fn begins(plan: &Plan) -> impl Iterator<Item = &Job> {
    plan.actions.iter().filter_map(|action| match action {
        Action::Begin(job) => Some(job),
        _ => None,
    })
}

fn leads_to_writes(action: &Action) -> bool {
    matches!(action, Action::Begin(Job::Promote | Job::Start(StartAs::Primary)))
}

fn leader(view: &View) -> Option<&str> {
    match &view.dcs {
        DcsView::Known { cluster } => cluster.leader.as_ref().map(|leader| leader.name.as_str()),
        DcsView::Down { .. } => None,
    }
}

fn invariants(view: &View, plan: &Plan) -> Result<(), &'static str> {
    let must = |holds: bool, text| if holds { Ok(()) } else { Err(text) };
    let valid = view.valid_hold(NOW).is_some();
    let another = leader(view).is_some_and(|name| name != "b");
    let known = matches!(view.dcs, DcsView::Known { .. });
    let has = |wanted: fn(&Action) -> bool| plan.actions.iter().any(wanted);
    let acquire = |action: &Action| matches!(action, Action::AcquireLock);

    // One writer.
    let first = |wanted: fn(&Action) -> bool| plan.actions.iter().position(wanted);
    if let Some(writes) = first(leads_to_writes) {
        let acquires = plan.actions.iter().position(acquire);
        must(
            acquires.is_some_and(|acquires| acquires < writes)
                || (valid && (!known || leader(view) == Some("b"))),
            "leads to writes without the lock",
        )?;
        must(view.shutdown.is_none(), "leads to writes while stopping")?;
    }
    if has(|action| matches!(action, Action::AcquireLock)) {
        must(
            known && leader(view).is_none(),
            "acquires a lock that is not free",
        )?;
    }
    let stops = begins(plan).any(|job| matches!(job, Job::Demote { .. }));
    if view.local.may_write() && !valid && view.job.is_none() {
        let exempt =
            has(|action| matches!(action, Action::AcquireLock | Action::RenewLock | Action::Exit(_)));
        must(stops || exempt, "may write without a lease and goes on")?;
    }
    if view.local.may_write() && another && view.job.is_none() {
        must(stops, "may write although another leads")?;
    }
    if let (Some(hold), true) = (&view.hold, stops && !valid && view.local.may_write()) {
        let fence = lease::deadlines(hold).fence_at;
        let in_time = begins(plan).all(|job| match job {
            Job::Demote { deadline, .. } => *deadline <= fence,
            _ => true,
        });
        must(
            in_time || view.shutdown == Some(Shutdown::Immediate),
            "is stopped after the fence",
        )?;
    }

    // The lease is kept by decision.
    if plan.keep_lock {
        must(
            valid || has(|action| matches!(action, Action::AcquireLock)),
            "keeps an expired lease",
        )?;
    }
    if has(|action| matches!(action, Action::ReleaseLock(_))) {
        must(!plan.keep_lock, "keeps a lock it releases")?;
        must(!view.local.may_write(), "releases the lock while it may write")?;
        must(
            known || view.shutdown.is_some(),
            "releases a lock it cannot reach",
        )?;
    }

    // Data is not touched by a member that leads or writes.
    let destructive = begins(plan).any(|job| matches!(job, Job::Clone { .. } | Job::Rewind(_)));
    if destructive {
        must(another, "replaces data without a leader to take it from")?;
        must(!view.local.may_write(), "replaces data that may be written")?;
    }

    // The job slot.
    let count = begins(plan).count();
    must(count <= 1, "begins two jobs")?;
    must(
        view.job.is_none() || count == 0,
        "begins a job while another runs",
    )?;
    must(
        view.job.is_some() || !has(|action| matches!(action, Action::CancelJob)),
        "cancels no job",
    )?;
    if view.job.is_some() && view.shutdown.is_none() {
        let starting = matches!(view.job.as_ref().map(|running| &running.job), Some(Job::Start(_)));
        let beside = plan.actions.iter().all(|action| match action {
            Action::CancelJob | Action::ProbePeers { .. } | Action::ProbeLeader(_) => true,
            // Neither touches what the job works on: a reload, and a key of the store.
            Action::Follow(_) | Action::ClearFailover => starting,
            _ => false,
        });
        must(beside && plan.actions.len() <= 1, "does something beside a job")?;
    }

    // No endless asking, no endless waiting.
    let asks = has(|action| matches!(action, Action::ProbePeers { .. } | Action::ProbeLeader(_)));
    if asks {
        must(plan.actions.len() == 1, "asks and acts at once")?;
        must(view.peers.is_none(), "asks again with fresh answers")?;
    }
    if plan.actions.is_empty() && view.job.is_none() && known {
        let content = matches!(&view.local, Local::Running(running) if !running.is_primary());
        must(plan.again_in.is_some() || content, "waits without a next look")?;
    }
    must(plan.memory.is_some(), "forgets")?;
    must(!plan.because.is_empty(), "has no reason")
}

#[test]
fn every_plan_keeps_the_invariants() {
    let mut broken = Vec::new();
    let total = every(|names, build| {
        let view = build.build();
        let plan = crate::ha::decide(&view, NOW);
        if let Err(text) = invariants(&view, &plan) {
            broken.push(format!("{names:?}: {text}: {plan:?}"));
        }
    });
    none(&broken, total);
}

#[test]
fn the_invariants_can_be_broken() {
    // A test that cannot fail proves nothing: each of these plans is wrong in this view.
    let view = view().replica("a").leader("a").running_primary(1).build();
    let wrong = [
        Plan::begin("x", Job::Promote),
        Plan::act("x", [Action::AcquireLock]),
        Plan::wait("x"),
        Plan::begin("x", clone_of("a")),
        Plan::act("x", [Action::ReleaseLock(None)]),
    ];
    for plan in wrong {
        assert!(invariants(&view, &plan).is_err(), "{plan:?}");
    }
}

/// The first few of what was found.
#[track_caller]
fn none(broken: &[String], total: usize) {
    assert!(total > 100_000, "the grid has shrunk to {total}");
    assert!(
        broken.is_empty(),
        "{} of {total} combinations, the first:\n{}",
        broken.len(),
        broken[..broken.len().min(5)].join("\n")
    );
}

#[test]
fn a_paused_cluster_is_left_alone_unless_a_person_names_somebody() {
    let mut broken = Vec::new();
    let total = every(|names, build| {
        if names[4] != "no shutdown" {
            return;
        }
        let build = build.clone().dynamic(|dynamic| dynamic.pause = true);
        let view = build.build();
        let plan = crate::ha::decide(&view, NOW);
        let named = matches!(names[6], "to us" | "to c");
        let automatic = view.job.is_none() && !named;
        if automatic && begins(&plan).count() > 0 {
            broken.push(format!("{names:?}: begins something: {plan:?}"));
        }
        if !plan.because.starts_with("PAUSE: ") {
            broken.push(format!("{names:?}: does not say so: {plan:?}"));
        }
        let acquires = plan.actions.contains(&Action::AcquireLock);
        if acquires && names[3].contains("foreign") && names[0] != "wiped" {
            broken.push(format!("{names:?}: leads with foreign data: {plan:?}"));
        }
    });
    none(&broken, total);
}

#[test]
fn neither_who_has_promised_nor_who_is_not_named_takes_the_lock() {
    use crate::{ha::failsafe::Promise, model::Version};
    let mut broken = Vec::new();
    let total = every(|names, build| {
        if names[4] != "no shutdown" || names[5] != "no job" || names[1] != "free" {
            return;
        }
        let build = build.clone().dynamic(|dynamic| dynamic.failsafe_mode = true);
        let promised = build.clone().change(|view| {
            view.failsafe.promise = Some(Promise {
                to: "a".into(),
                until: NOW + ms(1),
            });
        });
        let unnamed = build.cluster(|cluster| {
            let others = ["a", "c"].map(|name| (name.to_owned(), format!("http://{name}").into()));
            cluster.failsafe = Some(others.into_iter().collect());
            cluster.failsafe_version = Some(Version(5));
        });
        for (what, build, exempt) in [
            ("promised", promised, false),
            ("not named", unnamed, names[6] == "to us"),
        ] {
            let view = build.build();
            let plan = crate::ha::decide(&view, NOW);
            // What runs as a primary promises nothing, and is asked itself.
            let primary = matches!(&view.local, Local::Running(running) if running.is_primary());
            if plan.actions.contains(&Action::AcquireLock) && !primary && !exempt {
                broken.push(format!("{names:?}, {what}: {plan:?}"));
            }
        }
    });
    none(&broken, total);
}
