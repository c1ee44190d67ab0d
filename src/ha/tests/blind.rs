//! The DCS cannot be asked.

use super::builder::*;
use crate::ha::{Action, DemoteMode, Job, Local, StartAs};

fn blind() -> Build {
    view().dcs_down_for(secs(5))
}

#[test]
fn a_primary_goes_on_until_its_own_deadline_and_not_longer() {
    let before = blind().running_primary(100).hold_for(ms(1));
    assert_eq!(before.plan().again_in, Some(ms(1)));
    check(
        before,
        &[],
        KEEP,
        "still primary for 0.0 s: then it is stopped, for failsafe_mode is off",
    );
    for ago in [secs(0), secs(2)] {
        check(
            blind().running_primary(100).hold_expired(ago),
            &[demote(DemoteMode::Offline, NOW.minus(ago) + secs(3))],
            DROP,
            "lease has run out",
        );
    }
}

#[test]
fn whatever_may_write_without_a_lease_is_stopped() {
    for build in [
        blind().running_primary(100),
        blind().silent(true),
        blind().starting(true, secs(1)),
    ] {
        check(
            build,
            &[demote(DemoteMode::Offline, NOW + secs(3))],
            DROP,
            "another may lead",
        );
    }
}

#[test]
fn a_leader_that_crashes_under_a_lease_that_counts_stays_the_leader() {
    let start = |start_as| [Action::Begin(Job::Start(start_as))];
    let crashed = || blind().crashed_primary().hold_for(secs(9));
    check(
        crashed().seen("b"),
        &start(StartAs::Primary),
        KEEP,
        "primary again",
    );
    // Without the lease, or if another led last, only reads can go on.
    let replica = start(StartAs::Replica(None));
    let expired = blind().crashed_primary().hold_expired(secs(1)).seen("b");
    check(expired, &replica, DROP, "read-only");
    check(crashed().seen("a"), &replica, KEEP, "read-only");
    check(
        blind().stopped_replica().hold_for(secs(9)).seen("b"),
        &replica,
        KEEP,
        "read-only",
    );
}

#[test]
fn everybody_else_stays_as_it_is_and_keeps_a_lease_that_counts() {
    let locals = || {
        [
            blind().running_replica(100),
            blind().silent(false),
            blind().starting(false, secs(1)),
            blind().crashed_primary(),
            blind().clean_primary(510),
            blind().stopped_replica(),
            blind().local(Local::Empty),
            blind().stopping(secs(1)),
        ]
    };
    for build in locals() {
        waits(build.clone(), "waiting for it");
        check(build.clone().hold_for(secs(9)), &[], KEEP, "waiting for it");
        waits(build.hold_expired(secs(1)), "waiting for it");
    }
}
