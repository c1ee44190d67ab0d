//! The DCS cannot be asked.

use super::builder::*;
use crate::ha::{DemoteMode, Local};

fn blind() -> Build {
    view().dcs_down_for(secs(5))
}

#[test]
fn a_primary_goes_on_until_its_own_deadline_and_not_longer() {
    let before = blind().running_primary(100).hold_for(ms(1));
    assert_eq!(before.plan().again_in, Some(ms(1)));
    check(before, &[], KEEP, "still primary by the lease");
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
            blind().local(Local::Stopping),
        ]
    };
    for build in locals() {
        waits(build.clone(), "waiting for it");
        check(build.clone().hold_for(secs(9)), &[], KEEP, "waiting for it");
        waits(build.hold_expired(secs(1)), "waiting for it");
    }
}
