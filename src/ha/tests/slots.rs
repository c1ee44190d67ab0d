//! When a replica copies the leader's logical slots.

use super::builder::*;
use crate::ha::{Action, Job, Memory, Plan, Standing, View};

fn with(change: impl FnOnce(&mut View)) -> Plan {
    view()
        .leader("a")
        .seen("a")
        .replica_of("a", 1000, true)
        .change(|view| view.missing_slots = vec!["l".into()])
        .change(change)
        .plan()
}

fn copies(plan: &Plan) -> bool {
    let copy = Job::CopySlots {
        from: at("a"),
        slots: vec!["l".into()],
    };
    plan.actions == [Action::Begin(copy)]
}

#[test]
fn a_replica_copies_what_is_missing_when_it_has_nothing_else_to_do() {
    assert!(copies(&with(|_| {})));
    assert!(!copies(&with(|view| view.missing_slots.clear())));
    assert!(!copies(&with(|view| view.dynamic.pause = true)));
    let stands = |view: &mut View| {
        if let crate::ha::Local::Running(running) = &mut view.local
            && let Standing::Replica { streaming, .. } = &mut running.standing
        {
            *streaming = false;
        }
    };
    assert!(!copies(&with(stands)), "what does not stream has other worries");
}

#[test]
fn every_further_copy_waits_longer_because_it_costs_a_restart() {
    for (attempts, waits) in [(1, 10), (2, 20), (3, 40), (7, 600), (50, 600)] {
        let ago =
            |seconds| move |view: &mut View| view.memory.slot_copies = (attempts, NOW.minus(secs(seconds)));
        assert!(!copies(&with(ago(waits - 1))), "{attempts}");
        assert!(copies(&with(ago(waits))), "{attempts}");
    }
}

#[test]
fn replicas_take_turns() {
    // We are b; a leads, so nobody is before us; beside another leader a is.
    let build = |leader: &str| {
        view()
            .replica("a")
            .leader(leader)
            .seen(leader)
            .replica_of(leader, 1000, true)
            .change(|view| view.missing_slots = vec!["l".into()])
    };
    let first = |build: Build| {
        matches!(
            build.plan().actions.first(),
            Some(Action::Begin(Job::CopySlots { .. }))
        )
    };
    assert!(first(build("a")));
    let since =
        |seconds| move |memory: &mut Memory| memory.slots_missing_since = Some(NOW.minus(secs(seconds)));
    assert!(!first(build("c")));
    assert!(!first(build("c").memory(since(4))));
    assert!(first(build("c").memory(since(5))));
    assert!(
        first(build("c").replica("d").memory(since(5))),
        "those behind us wait for us"
    );
}

#[test]
fn attempts_are_counted_until_the_slots_have_stayed() {
    let job = Job::CopySlots {
        from: at("a"),
        slots: vec!["l".into()],
    };
    let build = || view().leader("a").seen("a").replica_of("a", 1000, true);
    let after = build().finished(job, true).plan().memory.expect("remembered");
    assert_eq!(after.slot_copies, (1, NOW));
    let later = |seconds| {
        let build = build().memory(|memory| memory.slot_copies = (1, NOW.minus(secs(seconds))));
        build.plan().memory.expect("remembered").slot_copies.0
    };
    assert_eq!(later(599), 1);
    assert_eq!(later(600), 0);
}
