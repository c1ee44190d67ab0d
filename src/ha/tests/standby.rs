//! The cluster follows another one.

use super::{builder::*, grid};
use crate::{
    ha::{Action, DemoteMode, Job, LeaderFacts, Local, StartAs, Upstream},
    model::{Lsn, StandbyCluster, Timeline},
};

fn remote() -> Upstream {
    let host = Some("remote".to_owned());
    Upstream::remote(&StandbyCluster {
        host,
        ..StandbyCluster::default()
    })
}

fn archive() -> Upstream {
    Upstream::remote(&StandbyCluster {
        restore_command: Some("cp".into()),
        ..StandbyCluster::default()
    })
}

/// We hold the lock of a cluster that follows the remote one.
fn leading() -> Build {
    view().leader("b").hold_for(secs(20)).standby_of_remote()
}

fn following(build: Build) -> Build {
    build.memory(|memory| memory.follows_remote = Some(remote()))
}

fn not_streaming(build: Build, time: u64) -> Build {
    build.memory(|memory| {
        memory.not_streaming_since = Some(NOW.minus(secs(time)));
        memory.stands_at = Some((Lsn(1000), NOW.minus(secs(time))));
    })
}

fn remote_on(build: Build, timeline: u32) -> Build {
    build.leader_on("remote:5432", timeline)
}

const STANDBY: &str = "standby leader with the lock";

#[test]
fn the_first_member_copies_the_remote_cluster() {
    check(
        view().local(Local::Empty).initialize(None).standby_of_remote(),
        &[Action::ClaimInitialize, Action::Begin(Job::BootstrapStandby)],
        DROP,
        "new standby leader",
    );
}

#[test]
fn the_leader_follows_the_remote_cluster_and_is_not_promoted() {
    let fresh = leading().replica_of("a", 1000, true);
    check(
        fresh.clone(),
        &[Action::Follow(Some(remote()))],
        KEEP,
        "follows 'remote:5432'",
    );
    let there = fresh.next().replica_of("remote", 1000, true);
    check(there, &[Action::LeaderDuties], KEEP, STANDBY);
    // A new agent cannot know what the archive settings of a running replica are for.
    check(
        leading().replica_of("remote", 1000, true),
        &[Action::Follow(Some(remote()))],
        KEEP,
        "follows",
    );
}

#[test]
fn another_section_is_another_upstream() {
    let moved = following(leading())
        .replica_of("remote", 1000, true)
        .dynamic(|dynamic| {
            if let Some(standby) = &mut dynamic.standby {
                standby.port = Some(6000);
            }
        });
    let plan = moved.plan();
    assert!(
        matches!(&plan.actions[..], [Action::Follow(Some(to))] if to.port == 6000),
        "{plan:?}"
    );
}

#[test]
fn a_source_that_is_only_an_archive_is_followed_too() {
    let leader = leading().running_replica(1000).dynamic(|dynamic| {
        if let Some(standby) = &mut dynamic.standby {
            standby.host = None;
        }
    });
    check(
        leader.clone(),
        &[Action::Follow(Some(archive()))],
        KEEP,
        "follows 'the archive'",
    );
    check(leader.next(), &[Action::LeaderDuties], KEEP, STANDBY);
}

#[test]
fn a_free_lock_is_taken_without_a_promotion() {
    let free = view()
        .replica("a")
        .standby_of_remote()
        .seen("a")
        .peers(&[("a", Some(replica_at(900)))]);
    check(
        free.clone().replica_of("a", 1000, false),
        &[Action::AcquireLock],
        KEEP,
        "no reachable member is ahead",
    );
    // A former primary takes it, and then makes sure that its data fits.
    check(
        free.clone().clean_primary(1000),
        &[Action::AcquireLock],
        KEEP,
        "no reachable member is ahead",
    );
    let ahead = free
        .peers(&[("a", Some(replica_at(2000)))])
        .replica_of("a", 1000, false);
    waits(ahead, "is ahead");
}

#[test]
fn the_old_history_of_a_cluster_that_follows_does_not_count() {
    let demoted = view()
        .replica("a")
        .timeline(7)
        .seen("a")
        .peers(&[("a", Some(replica_at(900)))])
        .standby_of_remote();
    check(
        demoted
            .replica_of("a", 1000, false)
            .dynamic(|d| d.check_timeline = true),
        &[Action::AcquireLock],
        KEEP,
        "nobody leads",
    );
}

#[test]
fn a_primary_stops_when_the_cluster_is_to_follow() {
    check(
        leading().running_primary(1000),
        &[demote(DemoteMode::Cluster, NOW + secs(60))],
        KEEP,
        "to follow another one",
    );
    let without = view().standby_of_remote().seen("b").running_primary(1000);
    let plan = without.plan();
    assert!(
        matches!(
            plan.actions[..],
            [Action::Begin(Job::Demote {
                mode: DemoteMode::Offline,
                ..
            })]
        ),
        "{plan:?}"
    );
    // Maintenance means that nothing is stopped.
    let paused = leading().running_primary(1000).dynamic(|d| d.pause = true);
    check(paused, &[Action::LeaderDuties], KEEP, "the leader with the lock");
}

#[test]
fn a_paused_standby_leader_keeps_the_lock_and_follows_and_repairs_nothing() {
    let paused = |build: Build| build.dynamic(|dynamic| dynamic.pause = true);
    let streams = following(leading()).replica_of("remote", 1000, true);
    check(paused(streams), &[Action::LeaderDuties], KEEP, STANDBY);
    let moved = leading().replica_of("a", 1000, true);
    check(paused(moved), &[Action::Follow(Some(remote()))], KEEP, "follows");
    let parted = not_streaming(following(leading().replica_of("remote", 1500, false)), 5);
    check(
        paused(remote_on(parted, 2)),
        &[Action::LeaderDuties],
        KEEP,
        STANDBY,
    );
}

#[test]
fn a_demoted_leader_compares_itself_with_the_remote_cluster_before_it_starts() {
    let down = leading().clean_primary(1500);
    check(down.clone(), &[Action::ProbeLeader(remote())], KEEP, "comparing");
    // The remote cluster left our history at 1000.
    check(
        remote_on(down.clone(), 2),
        &[Action::Begin(Job::Rewind(remote()))],
        KEEP,
        "rewinding to the remote cluster",
    );
    let start = [Action::Begin(Job::Start(StartAs::Replica(Some(remote()))))];
    check(remote_on(down, 1), &start, KEEP, "following");
    check(
        remote_on(leading().clean_primary(900), 2),
        &start,
        KEEP,
        "following",
    );
    check(leading().stopped_replica(), &start, KEEP, "following");
}

#[test]
fn what_has_diverged_is_never_removed() {
    let down = remote_on(leading().clean_primary(1500), 2)
        .memory(|memory| memory.rewind_failures = 1)
        .dynamic(|dynamic| {
            dynamic.remove_data_directory_on_diverged_timelines = true;
            dynamic.remove_data_directory_on_rewind_failure = true;
        });
    let copy = Job::Clone {
        from: remote(),
        keep: true,
    };
    check(down, &[Action::Begin(copy)], KEEP, "kept aside");
}

#[test]
fn a_leader_that_does_not_stream_looks_whether_it_has_parted() {
    let silent = not_streaming(following(leading().replica_of("remote", 1500, false)), 5);
    check(
        silent.clone(),
        &[Action::ProbeLeader(remote())],
        KEEP,
        "comparing",
    );
    check(
        remote_on(silent.clone(), 2),
        &[Action::Begin(Job::Rewind(remote()))],
        KEEP,
        "rewinding",
    );
    check(
        remote_on(silent.clone(), 1),
        &[Action::LeaderDuties],
        KEEP,
        STANDBY,
    );
    check(
        silent.probed("remote:5432", Err("refused".into())),
        &[Action::LeaderDuties],
        KEEP,
        "cannot be asked",
    );
}

#[test]
fn members_cascade_from_the_standby_leader() {
    let member = view().leader("a").standby_of_remote();
    waits(member.clone().replica_of("a", 1000, true), "a replica of 'a'");
    let lost = not_streaming(member.replica_of("a", 1500, false), 5);
    let standby_leader = |timeline: u32| {
        let facts = LeaderFacts {
            in_recovery: true,
            timeline: Timeline(timeline),
            history: history(timeline),
            flushed: Lsn(1200),
        };
        lost.clone().probed("a", Ok(facts))
    };
    // It was rewound and we were not: pg_rewind reads from the remote cluster's primary.
    check(
        standby_leader(2),
        &[Action::Begin(Job::Rewind(remote()))],
        DROP,
        "remote cluster",
    );
    // Two that follow a third may be ahead of each other.
    waits(standby_leader(1), "not streaming yet");
}

#[test]
fn without_the_section_the_leader_is_promoted_as_after_any_election() {
    let promoted = following(leading())
        .dynamic(|dynamic| dynamic.standby = None)
        .replica_of("remote", 1000, true);
    check(promoted, &[Action::Begin(Job::Promote)], KEEP, "promoting");
}

#[test]
fn a_switchover_finds_the_other_members() {
    let asked = following(leading())
        .replica("c")
        .replica_of("remote", 1000, true)
        .request(Some("b"), Some("c"))
        .peers(&[("c", Some(replica_at(1000)))]);
    let plan = asked.plan();
    assert!(
        matches!(
            plan.actions[..],
            [Action::Begin(Job::Demote {
                mode: DemoteMode::Graceful,
                ..
            })]
        ),
        "{plan:?}"
    );
}

#[test]
fn a_replica_is_made_without_a_leader_where_that_is_possible() {
    let empty = view().local(Local::Empty);
    waits(empty.clone(), "has no leader");
    let able = empty.change(|view| view.can_restore = true);
    check(
        able.clone(),
        &[Action::Begin(Job::Restore)],
        DROP,
        "making a replica without one",
    );
    waits(able.clone().initialize(Some("")), "another member to finish");
    waits(able.finished(Job::Restore, false), "restore failed");
}

#[test]
fn no_plan_makes_a_primary_while_the_cluster_follows_another() {
    let mut broken = Vec::new();
    grid::every(|names, build| {
        // Who stops makes nothing; the other grid looks at that.
        if build.view.shutdown.is_some() {
            return;
        }
        let view = build.clone().standby_of_remote().build();
        let plan = crate::ha::decide(&view, NOW);
        let begun = |wanted: fn(&Job) -> bool| {
            let mut jobs = plan.actions.iter().filter_map(|action| match action {
                Action::Begin(job) => Some(job),
                _ => None,
            });
            jobs.any(wanted)
        };
        let mut must = |holds: bool, what: &str| {
            if !holds {
                broken.push(format!("{names:?}: {what}: {plan:?}"));
            }
        };
        must(
            !begun(|job| job.needs_lock() || *job == Job::Bootstrap),
            "makes a primary",
        );
        if view.local.may_write() && view.job.is_none() && !matches!(view.local, Local::Silent { .. }) {
            let exempt = plan
                .actions
                .iter()
                .any(|action| matches!(action, Action::RenewLock | Action::Exit(_)));
            let starting = matches!(view.local, Local::Starting { .. }) && view.valid_hold(NOW).is_some();
            let dark = matches!(view.dcs, crate::ha::DcsView::Down { .. });
            let waits_for_bootstrap = names.contains(&"bootstrapping");
            must(
                begun(|job| matches!(job, Job::Demote { .. }))
                    || exempt
                    || starting
                    || dark
                    || waits_for_bootstrap,
                "a primary goes on",
            );
        }
        let destructive = begun(|job| matches!(job, Job::Clone { keep: false, .. }));
        must(
            !destructive || matches!(view.local, Local::Empty | Local::Leftover | Local::Running(_)),
            "removes data that is not known to be a copy",
        );
        let content = matches!(&view.local, Local::Running(running) if !running.is_primary());
        let known = matches!(view.dcs, crate::ha::DcsView::Known { .. });
        let still = plan.actions.is_empty() && view.job.is_none() && known;
        must(
            !still || plan.again_in.is_some() || content,
            "waits without a next look",
        );
    });
    assert!(
        broken.is_empty(),
        "{} combinations, the first:\n{}",
        broken.len(),
        broken[..broken.len().min(5)].join("\n")
    );
}
