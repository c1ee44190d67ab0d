//! Failsafe mode (HA rules §9, §2 row 10): who is asked, what is promised, what that allows.

use serde_json::{Map, Value};

use super::builder::*;
use crate::{
    clock::Boottime,
    dcs::Hold,
    ha::{
        Action, DemoteMode, Job, Plan, StartAs,
        failsafe::{self, Answers, Members, Outlook, Promise, Promises, Question, Said, usable},
    },
    model::Version,
};

fn url(name: &str) -> String {
    format!("http://{name}:8008/patroni")
}

fn members(names: &[&str]) -> Members {
    names.iter().map(|name| ((*name).into(), url(name))).collect()
}

fn stored(names: &[&str]) -> Option<Map<String, Value>> {
    Some(
        names
            .iter()
            .map(|name| ((*name).to_owned(), url(name).into()))
            .collect(),
    )
}

/// The key has this content, under this version.
fn key(build: Build, names: &[&str], version: u64) -> Build {
    build.cluster(|cluster| {
        cluster.failsafe = stored(names);
        cluster.failsafe_version = Some(Version(version));
    })
}

fn on(build: Build) -> Build {
    build.dynamic(|dynamic| dynamic.failsafe_mode = true)
}

/// A leader that has just got the lock; the key is its predecessor's.
fn new_leader() -> Build {
    let build = on(view().leader("b").replica("a").replica("c").running_primary(100));
    key(build.hold_for(secs(20)), &["a", "b", "c"], 5)
}

/// A leader that has written the key and read it back.
fn leader() -> Build {
    key(new_leader().next(), &["a", "b", "c"], 6).next()
}

fn write(names: &[&str], under: u64) -> Action {
    Action::WriteFailsafe {
        members: members(names),
        under: Some(Version(under)),
    }
}

fn writes(plan: &Plan) -> Option<&Action> {
    plan.actions
        .iter()
        .find(|action| matches!(action, Action::WriteFailsafe { .. }))
}

// --- the key

#[test]
fn a_new_leader_writes_the_key_once_also_if_nothing_differs() {
    check(
        new_leader(),
        &[Action::LeaderDuties, write(&["a", "b", "c"], 5)],
        KEEP,
        "/failsafe",
    );
    assert_eq!(writes(&leader().plan()), None);
    // Unconfirmed, it is written again.
    assert_eq!(
        writes(&new_leader().next().plan()),
        Some(&write(&["a", "b", "c"], 5))
    );
    let off = new_leader().dynamic(|d| d.failsafe_mode = false);
    assert_eq!(writes(&off.plan()), None);
}

#[test]
fn a_member_that_comes_or_goes_changes_the_key_at_once() {
    let joined = leader().replica("d");
    assert_eq!(writes(&joined.plan()), Some(&write(&["a", "b", "c", "d"], 6)));
    let left = leader().cluster(|c| c.members.retain(|m| m.name != "c".into()));
    assert_eq!(writes(&left.plan()), Some(&write(&["a", "b"], 6)));
    let foreign = key(leader(), &["b"], 9);
    assert_eq!(writes(&foreign.plan()), Some(&write(&["a", "b", "c"], 9)));
}

#[test]
fn after_an_outage_nobody_is_left_out_for_coming_back_later() {
    let outage = leader().dcs_down_for(secs(40)).next();
    let back = |after| {
        let mut build = outage.clone().later(secs(after)).hold_for(secs(20));
        build = build.dcs_is_back();
        build.cluster(|c| c.members.retain(|m| m.name != "c".into()))
    };
    assert_eq!(writes(&back(29).plan()), None);
    assert_eq!(writes(&back(30).plan()), Some(&write(&["a", "b"], 6)));
}

// --- whom a primary asks

/// The primary without the DCS, its lease renewed that long ago.
fn blind(build: Build, renewed: u64) -> Build {
    let hold = Hold {
        sent_at: NOW.minus(secs(renewed)),
        ttl: TTL,
        lease: 7,
    };
    build.change(|view| view.hold = Some(hold)).dcs_down_for(secs(3))
}

fn ask(names: &[&str]) -> Action {
    Action::AskConsent(members(names))
}

#[test]
fn a_primary_asks_all_others_in_time_for_another_attempt() {
    check(blind(leader(), 8), &[], KEEP, "asked before that");
    check(
        blind(leader(), 9),
        &[ask(&["a", "c"])],
        KEEP,
        "'a' has not answered yet",
    );
    let due = usable(TTL) / 3;
    assert!(usable(TTL) - due > due, "time for another attempt");
    // The lease ends, and the answers did not come.
    check(
        blind(leader(), 26),
        &[demote(DemoteMode::Offline, NOW + ms(2500))],
        DROP,
        "another may lead",
    );
}

#[test]
fn nobody_is_asked_in_vain() {
    for (build, why) in [
        (
            leader().dynamic(|d| d.failsafe_mode = false),
            "failsafe_mode is off",
        ),
        (new_leader().next(), "not written /failsafe"),
        (key(leader(), &["b"], 9).next(), "not written /failsafe"),
    ] {
        check(blind(build, 20), &[], KEEP, why);
    }
}

#[test]
fn who_may_have_found_itself_in_the_key_is_asked() {
    // The write that adds d was sent; nothing is known of it.
    let sent = leader().replica("d").next();
    check(blind(sent.clone(), 20), &[ask(&["a", "c", "d"])], KEEP, "asking");
    // It has not come through yet, and d is gone again: it may still come through.
    let gone = sent
        .clone()
        .cluster(|c| c.members.retain(|m| m.name != "d".into()));
    let gone = key(gone, &["a", "b", "c"], 6);
    assert_eq!(writes(&gone.plan()), None, "the key is as it should be");
    check(blind(gone.next(), 20), &[ask(&["a", "c", "d"])], KEEP, "asking");
    // It has come through.
    let done = key(sent, &["a", "b", "c", "d"], 7).next();
    check(blind(done, 20), &[ask(&["a", "c", "d"])], KEEP, "asking");
}

#[test]
fn what_was_known_as_a_leader_does_not_survive_the_role() {
    let replica = leader().leader("a").replica_of("a", 100, true).next();
    let again = key(replica, &["a", "b", "c"], 6).leader("b").running_primary(100);
    check(blind(again, 20), &[], KEEP, "not written /failsafe");
}

#[test]
fn a_restart_and_a_crash_of_postgres_are_no_reason_to_stop_asking() {
    for job in [Job::Restart, Job::Start(StartAs::Primary)] {
        let build = blind(leader(), 20).job(job, secs(1));
        check(build, &[ask(&["a", "c"])], KEEP, "is running");
    }
    let stop = Job::Demote {
        mode: DemoteMode::Fast,
        deadline: NOW + secs(5),
    };
    check(blind(leader(), 20).job(stop, secs(1)), &[], KEEP, "is running");
}

#[test]
fn a_store_that_can_be_read_and_does_not_renew_is_as_good_as_none() {
    let renewed = |ago| {
        let hold = Hold {
            sent_at: NOW.minus(secs(ago)),
            ttl: TTL,
            lease: 7,
        };
        leader().change(|view| view.hold = Some(hold))
    };
    check(renewed(16), &[Action::LeaderDuties], KEEP, "the leader");
    check(
        renewed(18),
        &[ask(&["a", "c"]), Action::LeaderDuties],
        KEEP,
        "the leader",
    );
    // The lock has run out in the store meanwhile, and cannot be taken either.
    let expired = renewed(18).cluster(|cluster| cluster.leader = None);
    check(
        expired.next(),
        &[ask(&["a", "c"]), Action::AcquireLock],
        KEEP,
        "taking it back",
    );
}

// --- what their answers are worth

#[test]
fn consent_is_unanimous_and_as_old_as_the_oldest_question() {
    let of = members(&["a", "c"]);
    let yes = |at| Said::Yes(Boottime(at));
    let no = || Said::No("500 Running as a leader".to_owned());
    let given = |answers: &[(&str, Said)]| {
        let answers: Answers = answers.iter().map(|(n, s)| ((*n).into(), s.clone())).collect();
        failsafe::consent(&of, &answers, Boottime(99))
    };
    assert_eq!(given(&[("a", yes(7)), ("c", yes(5))]), Some(Boottime(5)));
    assert_eq!(given(&[("a", yes(7))]), None);
    assert_eq!(given(&[("a", yes(7)), ("c", no())]), None);
    assert_eq!(given(&[("a", yes(7)), ("x", yes(5))]), None);
    assert_eq!(
        failsafe::consent(&Members::new(), &Answers::new(), Boottime(99)),
        Some(Boottime(99))
    );
}

#[test]
fn a_promise_lasts_ttl_from_the_answer_and_longer_only_by_a_later_one() {
    let at = |s| Boottime(0) + secs(s);
    let question = |round, number| Question { round, number };
    let mut promises = Promises::default();
    assert_eq!(promises.binding(at(0)), None);
    promises.give("a".into(), question(1, 2), TTL, at(10));
    let until = |promises: &Promises, now| promises.binding(at(now)).map(|p| p.until);
    assert_eq!(until(&promises, 39), Some(at(40)));
    assert_eq!(until(&promises, 40), None);
    promises.give("a".into(), question(1, 1), secs(5), at(20));
    assert_eq!(until(&promises, 30), Some(at(40)), "never shorter");
    // Given back: not by an older question, nor by another's, nor by one of another round.
    promises.take_back(&"a".into(), question(1, 1));
    promises.take_back(&"a".into(), question(2, 9));
    promises.take_back(&"c".into(), question(1, 9));
    assert!(promises.binding(at(30)).is_some());
    promises.take_back(&"a".into(), question(1, 2));
    assert_eq!(promises.binding(at(30)), None);
    // Another's promise is not touched by that.
    promises.give("a".into(), question(1, 3), TTL, at(30));
    promises.give("c".into(), question(7, 1), TTL, at(35));
    promises.take_back(&"c".into(), question(7, 1));
    assert_eq!(promises.binding(at(50)).map(|p| p.to), Some("a".into()));
}

// --- who must not lead

fn candidate() -> Build {
    on(view()
        .replica("a")
        .replica("c")
        .replica_of("a", 100, false)
        .seen("a")
        .optime(100))
    .peers(&[("a", None), ("c", Some(replica_at(100)))])
}

const LEAD: &[Action] = &[Action::AcquireLock, Action::Begin(Job::Promote)];

#[test]
fn who_has_promised_does_not_lead_not_even_if_asked_to() {
    let promised = |build: Build, left| {
        build.change(|view| {
            view.failsafe.promise = Some(Promise {
                to: "a".into(),
                until: NOW + left,
            });
        })
    };
    check(candidate(), LEAD, KEEP, "nobody leads");
    waits(
        promised(candidate(), ms(1)),
        "'a' goes on as primary without the DCS",
    );
    waits(
        promised(candidate().request(None, Some("b")), ms(1)),
        "'a' goes on",
    );
    let down = on(view().crashed_primary().replica("a").peers(&[("a", None)]));
    waits(promised(down, ms(1)), "'a' goes on");
    check(promised(candidate(), ms(0)), LEAD, KEEP, "nobody leads");
}

#[test]
fn who_is_not_named_in_the_key_does_not_lead() {
    let named = |names: &[&str]| key(candidate(), names, 5);
    check(
        named(&["a", "b", "c"]).peers(&[("a", None), ("c", None)]),
        LEAD,
        KEEP,
        "nobody leads",
    );
    check(named(&[]), LEAD, KEEP, "nobody leads");
    waits(named(&["a", "c"]), "not named in /failsafe");
    check(
        named(&["a", "c"]).dynamic(|d| d.failsafe_mode = false),
        LEAD,
        KEEP,
        "nobody leads",
    );
    // A switchover was asked of a leader; a failover is a person's will, but not against a living primary.
    waits(
        named(&["a", "c"]).request(Some("a"), Some("b")),
        "not named in /failsafe",
    );
    let forced = named(&["a", "c"]).request(None, Some("b"));
    check(
        forced.clone(),
        &[
            Action::AcquireLock,
            Action::Begin(Job::Promote),
            Action::ClearFailover,
        ],
        KEEP,
        "named as the candidate",
    );
    waits(
        forced.peers(&[("a", Some(primary_at(100))), ("c", None)]),
        "'a' is still running as primary",
    );
    // Nobody can know: it is out of the DCS's sight, and does not say what it is.
    let gone = key(candidate(), &["x"], 5).request(None, Some("b"));
    waits(
        gone.clone().peers(&[("a", None), ("c", None), ("x", None)]),
        "'x' may be primary without the DCS and does not answer; if it is certain to be stopped, switch failsafe_mode",
    );
    let answers = gone.peers(&[("a", None), ("c", None), ("x", Some(replica_at(1)))]);
    assert_eq!(answers.plan().actions.first(), Some(&Action::AcquireLock));
    // The lock came to it all the same.
    let holds = key(candidate().leader("b").hold_for(secs(20)), &["a", "c"], 5);
    check(
        holds,
        &[Action::ReleaseLock(None)],
        DROP,
        "not named in /failsafe",
    );
}

#[test]
fn names_in_the_key_are_asked_though_their_members_have_vanished() {
    let build = key(
        on(view().replica("c").running_replica(100).seen("a")),
        &["a", "b", "c"],
        5,
    );
    let build = build
        .later(secs(60))
        .memory(|m| m.failsafe = failsafe::Known::default());
    let build = build.next().later(secs(31));
    check(build, &[probe_also(&["c"], &["a"])], DROP, "asking");
}

#[test]
fn a_young_agent_may_be_bound_by_what_it_does_not_know() {
    let young = key(
        on(view().replica("c").running_replica(100).seen("a")),
        &["a", "b", "c"],
        5,
    );
    let young = young.next();
    waits(
        young.clone().later(secs(29)),
        "promise this member gave before it was restarted",
    );
    let answers: &[_] = &[("a", None), ("c", Some(replica_at(100)))];
    check(
        young.clone().later(secs(30)).peers(answers),
        LEAD,
        KEEP,
        "nobody leads",
    );
    // The last primary has promised nothing.
    let last = key(on(view().replica("c").crashed_primary()), &["a", "b", "c"], 5);
    let start = [Action::AcquireLock, Action::Begin(Job::Start(StartAs::Primary))];
    check(last.peers(answers), &start, KEEP, "nobody leads");
    // Everybody in sight reaches the DCS and needs no consent.
    check(young.replica("a").peers(answers), LEAD, KEEP, "nobody leads");
}

// --- what would be

#[test]
fn the_outlook_says_what_would_become_of_the_primary() {
    let seen = |build: Build| failsafe::outlook(&build.build());
    let stays = seen(leader());
    assert_eq!(stays, Outlook::Stays(["a".into(), "c".into()].into()));
    assert!(
        stays.to_string().ends_with("stay as long as it reaches a, c"),
        "{stays}"
    );
    let answers = leader().peers(&[("a", Some(replica_at(1))), ("c", None)]);
    assert!(
        seen(answers)
            .to_string()
            .contains("'c' is named in /failsafe and does not answer")
    );
    let off = seen(leader().dynamic(|d| d.failsafe_mode = false));
    assert!(
        off.to_string()
            .contains("be stopped when its lease runs out: failsafe_mode is off")
    );
    assert_eq!(seen(leader().dynamic(|d| d.pause = true)), Outlook::Paused);
    assert_eq!(seen(candidate()), Outlook::NotPrimary);
}
