//! Who could lead if the lock came free now. The words are the election's own.

use super::builder::*;
use crate::{
    ha::why::{Candidacy, candidacy, promise},
    model::{Dynamic, Lsn, Member, Timeline},
};

fn ask(build: &Build) -> Candidacy {
    candidacy(&build.build(), NOW)
}

fn cannot(build: &Build, expected: &str) {
    match ask(build) {
        Candidacy::Cannot(why) => assert!(why.contains(expected), "{why}"),
        other => panic!("{other:?} instead of: cannot, {expected}"),
    }
}

fn published(name: &str, position: u64) -> Member {
    let mut member = member(name);
    member.data.xlog_location = Some(Lsn(position));
    member.data.timeline = Some(Timeline(1));
    member
}

/// `b` streams from `a`, and `c` does as well.
fn at_rest() -> Build {
    view()
        .leader("a")
        .with(published("c", 100))
        .replica_of("a", 100, true)
        .optime(100)
        .memory(|memory| memory.followed = true)
        .seen("a")
}

#[test]
fn the_leader_leads_and_a_healthy_replica_could() {
    assert_eq!(ask(&at_rest().me("a")), Candidacy::Leads);
    assert!(
        matches!(ask(&at_rest()), Candidacy::Could(_)),
        "{:?}",
        ask(&at_rest())
    );
}

#[test]
fn the_rule_that_says_no_is_named() {
    let tagged = at_rest().change(|view| {
        view.tags.0.insert("nofailover".into(), true.into());
    });
    cannot(&tagged, "nofailover");
    cannot(&at_rest().with(published("c", 101)), "'c' is ahead");
    cannot(&at_rest().optime(5 << 20), "maximum_lag_on_failover");
    cannot(&at_rest().dynamic(|d| d.pause = true), "paused");
    cannot(&at_rest().local(crate::ha::Local::Empty), "no data");
    cannot(&at_rest().dcs_down_for(secs(1)), "DCS");
}

#[test]
fn a_request_or_the_leader_itself_does_not_stand_in_the_way() {
    let asked = at_rest().request(Some("a"), Some("c"));
    assert!(matches!(ask(&asked), Candidacy::Could(_)));
    // Its key says that it is a primary, as of course it is; the question is what comes after it.
    let ahead = at_rest().cluster(|cluster| {
        for member in &mut cluster.members {
            if member.name.0 == "a" {
                member.data.xlog_location = Some(Lsn(5000));
            }
        }
    });
    assert!(matches!(ask(&ahead), Candidacy::Could(_)));
}

#[test]
fn the_promise_is_that_of_the_mode() {
    let mut dynamic = Dynamic::default();
    let mut cluster = at_rest().cluster;
    assert!(promise(&cluster, &dynamic).starts_with("asynchronous"));
    dynamic.sync.kind = crate::model::SyncKind::On;
    assert!(promise(&cluster, &dynamic).contains("no standby is"));
    dynamic.sync.strict = true;
    assert!(promise(&cluster, &dynamic).starts_with("strict"));
    cluster.sync.leader = Some("a".into());
    cluster.sync.standbys = vec!["b".into()];
    assert!(promise(&cluster, &dynamic).contains("no acknowledged commit is lost"));
    dynamic.sync.kind = crate::model::SyncKind::Quorum;
    assert!(promise(&cluster, &dynamic).starts_with("quorum"));
}
