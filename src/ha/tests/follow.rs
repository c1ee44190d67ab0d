//! Another member holds the lock; postgres runs.

use super::builder::*;
use crate::{
    ha::{Action, DemoteMode, Job, Silence},
    model::{Lsn, Timeline},
};

fn theirs() -> Build {
    view().leader("a")
}

#[test]
fn a_primary_without_the_lock_stops_at_once_whatever_it_believes() {
    for build in [
        theirs().running_primary(100),
        theirs().running_primary(100).hold_for(secs(20)),
        theirs().silent(true),
        theirs().starting(true, secs(1)),
    ] {
        check(
            build,
            &[demote(DemoteMode::ImmediateNoLock, NOW + secs(3))],
            DROP,
            "",
        );
    }
    // A hold that is about to end leaves less time.
    check(
        theirs().running_primary(100).hold_expired(secs(2)),
        &[demote(DemoteMode::ImmediateNoLock, NOW + secs(1))],
        DROP,
        "'a' holds the lock",
    );
}

#[test]
fn a_streaming_replica_of_the_leader_is_left_alone() {
    waits(theirs().replica_of("a", 100, true), "a replica of 'a'");
}

#[test]
fn a_replica_is_pointed_at_the_leader_or_the_member_it_is_to_replicate_from() {
    let follow = |name| [Action::Follow(Some(at(name)))];
    let of = |name| theirs().replica("c").replica_of(name, 100, true);
    check(of("z"), &follow("a"), DROP, "following 'a'");
    check(of("a").tag("replicatefrom", "c"), &follow("c"), DROP, "'c'");
    waits(of("c").tag("replicatefrom", "c"), "a replica of");
    check(of("c").tag("replicatefrom", "gone"), &follow("a"), DROP, "'a'");
    check(of("c").tag("replicatefrom", "b"), &follow("a"), DROP, "'a'");
}

#[test]
fn a_nostream_member_streams_from_nobody() {
    let build = theirs().tag("nostream", true);
    check(
        build.clone().replica_of("a", 100, true),
        &[Action::Follow(None)],
        DROP,
        "archive",
    );
    let compared = build
        .running_replica(100)
        .leader_on("a", 1)
        .next()
        .later(secs(60));
    waits(compared, "a replica of 'a'");
}

#[test]
fn waits_for_a_leader_that_has_no_address_and_for_a_silent_postgres() {
    let mut unknown = member("a");
    unknown.data.conn_url.clear();
    let build = theirs().with(unknown).replica_of("a", 100, false);
    assert!(build.plan().again_in.is_some());
    waits(build, "not published its address");
    waits(theirs().silent(false), "does not answer");
}

// --- has our data diverged?

fn apart(position: u64) -> Build {
    theirs().replica_of("a", position, false)
}

#[test]
fn a_replica_that_does_not_stream_compares_itself_with_the_leader() {
    check(apart(100), &[Action::ProbeLeader(at("a"))], DROP, "comparing");
    let asked = [Action::ProbeLeader(at("a"))];
    let stale = apart(100).leader_on("a", 1).later(ms(1001));
    check(stale, &asked, DROP, "comparing");
    check(apart(100).leader_on("z", 1), &asked, DROP, "comparing");
}

/// Who was demoted for want of the DCS runs with nobody to follow, and may have been alone with its last commits.
#[test]
fn a_replica_that_may_have_parted_is_compared_before_it_is_told_to_stream() {
    let asked = [Action::ProbeLeader(at("a"))];
    let alone = theirs().running_replica(1001);
    check(alone.clone(), &asked, DROP, "comparing");
    check(
        alone.clone().leader_on("a", 2),
        &[Action::Begin(Job::Rewind(at("a")))],
        DROP,
        "rewinding",
    );
    // It fits: now it may stream.
    let fits = theirs().running_replica(1000).leader_on("a", 2);
    check(
        fits.next(),
        &[Action::Follow(Some(at("a")))],
        DROP,
        "following 'a'",
    );
    // What the cluster's history says counts for one that streamed from another member too.
    let of_another = |position| {
        theirs()
            .timeline(2)
            .mine(1)
            .replica("c")
            .replica_of("c", position, false)
    };
    check(
        of_another(1000),
        &[Action::Follow(Some(at("a")))],
        DROP,
        "following 'a'",
    );
    check(of_another(1001), &asked, DROP, "comparing");
    // A leader that can be streamed from but not asked does not keep it away for ever.
    let unasked = alone.memory(|m| m.not_streaming_since = Some(NOW.minus(secs(10))));
    check(unasked, &[Action::Follow(Some(at("a")))], DROP, "following 'a'");
}

#[test]
fn data_within_the_leaders_history_is_followed_and_not_compared_again() {
    let same = apart(1000).leader_on("a", 2);
    assert!(same.plan().again_in.is_some());
    waits(same.clone(), "not streaming yet");
    let after = same.next().later(ms(1500)).change(|v| v.leader_probe = None);
    waits(after.clone(), "a replica of 'a'");
    // Stuck: it is compared again.
    let asked = [Action::ProbeLeader(at("a"))];
    check(after.clone().later(secs(2)), &asked, DROP, "comparing");
    // The same leader on a new timeline is another matter.
    let promoted = after.cluster(|c| {
        for m in &mut c.members {
            m.data.timeline = Some(crate::model::Timeline(3));
        }
    });
    check(promoted, &asked, DROP, "comparing");
}

#[test]
fn data_beyond_the_switch_point_is_rewound_else_cloned() {
    let diverged = apart(1001).leader_on("a", 2);
    check(
        diverged.clone(),
        &[Action::Begin(Job::Rewind(at("a")))],
        DROP,
        "rewinding",
    );
    let clone = [copy("a", true)];
    check(
        diverged.clone().dynamic(|d| d.use_pg_rewind = false),
        &clone,
        DROP,
        "kept aside",
    );
    // The failure counts in the very turn that hears of it.
    let failed = diverged.clone().finished(Job::Rewind(at("a")), false);
    check(failed.clone(), &clone, DROP, "cloning");
    waits(failed.next().finished(clone_of("a"), false), "clone failed");
    // A rewind that keeps succeeding without ever leading to streaming is no cure.
    let twice = diverged.memory(|m| m.rewinds = 2);
    check(twice, &clone, DROP, "cloning");
}

#[test]
fn more_than_the_leader_has_is_another_history_if_it_lasts() {
    let ahead = |since: u64| {
        let facts = crate::ha::LeaderFacts {
            in_recovery: false,
            timeline: Timeline(1),
            history: Vec::new(),
            flushed: Lsn(100),
        };
        apart(101)
            .probed("a", Ok(facts))
            .memory(|m| m.not_streaming_since = Some(NOW.minus(secs(since))))
    };
    waits(ahead(2), "not streaming yet");
    // pg_rewind goes by the number of the timeline.
    check(ahead(3), &[copy("a", true)], DROP, "cannot be used");
}

#[test]
fn a_timeline_that_begins_elsewhere_is_cloned() {
    let forked = apart(1500).mine(2).born(1, 900).leader_on("a", 2);
    check(forked, &[copy("a", true)], DROP, "diverged");
}

fn stands_still(since: u64) -> Build {
    let ago = NOW.minus(secs(since));
    apart(100).leader_on("a", 1).memory(|m| {
        m.not_streaming_since = Some(ago);
        m.stands_at = Some((Lsn(100), ago));
    })
}

#[test]
fn a_replica_whose_wal_is_gone_is_copied_anew() {
    waits(stands_still(59), "not streaming yet");
    let gone = stands_still(60);
    check(
        gone.clone(),
        &[copy("a", false)],
        DROP,
        "WAL this replica needs is gone",
    );
    // Replay that moves lives from an archive.
    waits(
        gone.clone().memory(|m| m.stands_at = Some((Lsn(99), NOW))),
        "not streaming yet",
    );
    waits(
        gone.clone().tag("nostream", true).running_replica(100),
        "not streaming yet",
    );
    waits(
        gone.clone().memory(|m| m.clones = (3, NOW)),
        "nothing that was tried has helped",
    );
    // What slowed one copy down may be over at the next.
    let late = gone.clone().memory(|m| m.clones = (2, NOW));
    check(late, &[copy("a", false)], DROP, "WAL this replica needs is gone");
    for (failures, pause) in [(1, 20), (2, 40), (3, 80), (4, 160), (5, 200), (99, 200)] {
        let failed = |ago| {
            gone.clone()
                .memory(|m| m.clone_failures = (failures, NOW.minus(secs(ago))))
        };
        waits(failed(pause - 1), "not streaming yet");
        check(failed(pause), &[copy("a", false)], DROP, "is gone");
    }
    waits(gone.clone().probed("a", Err("refused".into())), "refused");
    // With nothing missing there is nothing to copy.
    let mut facts = gone
        .view
        .leader_probe
        .clone()
        .expect("probed")
        .facts
        .expect("an answer");
    facts.flushed = Lsn(100);
    waits(gone.clone().probed("a", Ok(facts)), "not streaming yet");
    // A copy gives it its time again.
    let failed = gone.finished(clone_of("a"), false).next();
    assert_eq!(failed.view.memory.not_streaming_since, Some(NOW));
}

#[test]
fn a_replica_that_hangs_is_restarted_with_pauses() {
    let hung = |time, why| theirs().silent_for(false, time, why);
    waits(hung(secs(59), Silence::NoAnswer), "does not answer");
    let restart = [Action::Begin(Job::Restart)];
    check(hung(secs(60), Silence::NoAnswer), &restart, DROP, "restarting");
    waits(hung(secs(9000), Silence::Refused), "does not answer");
    waits(
        hung(secs(60), Silence::NoAnswer).finished(Job::Restart, false),
        "does not answer",
    );
}

#[test]
fn replay_that_is_paused_for_too_small_settings_goes_on_after_a_restart() {
    for streaming in [true, false] {
        let paused = theirs().replica_of("a", 100, streaming).change(pause_replay);
        check(paused, &[Action::Begin(Job::Restart)], DROP, "larger settings");
    }
}

#[test]
fn streaming_forgets_what_was_tried() {
    let plan = theirs()
        .replica_of("a", 100, true)
        .memory(|m| {
            (m.rewinds, m.rewind_failures) = (2, 1);
            m.clone_failures = (3, NOW);
            m.start_failures = (3, NOW);
            m.waiting_for_leader_since = Some(NOW);
        })
        .plan();
    let memory = plan.memory.expect("remembered");
    assert_eq!((memory.rewinds, memory.rewind_failures), (0, 0));
    assert_eq!((memory.clone_failures.0, memory.start_failures.0), (0, 0));
    assert_eq!(memory.waiting_for_leader_since, None);
}

#[test]
fn a_leader_that_is_not_ready_or_cannot_be_asked_is_asked_again_soon() {
    let not_ready = apart(1001).leader_in_recovery("a");
    assert_eq!(not_ready.plan().again_in, Some(ms(250)));
    waits(not_ready, "still being promoted");
    let refused = apart(1001).probed("a", Err("connection refused".into()));
    assert_eq!(refused.plan().again_in, Some(secs(1)));
    waits(refused, "connection refused");
}
