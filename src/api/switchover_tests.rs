//! Every rule once, and their order.

use serde_json::json;

use super::*;
use crate::agent::handle::fixtures::{HEALTHY, cluster};

fn ask(action: Action, body: &Value, paused: bool) -> Result<Plan, Refusal> {
    let now = "2026-01-01T00:00:00Z".parse().expect("valid");
    validate(action, body.as_object().expect("an object"), now, paused)
}

fn refused(action: Action, body: &Value, paused: bool) -> (u16, String) {
    let refusal = ask(action, body, paused).expect_err("refused");
    (refusal.code, refusal.text)
}

#[test]
fn the_first_broken_rule_answers() {
    use Action::{Failover, Switchover};
    let future = "2026-02-01T03:00:00+00:00";
    for (action, body, paused, code, text) in [
        (
            Failover,
            json!({"leader": "n1"}),
            false,
            400,
            "Failover could be performed only to a specific candidate",
        ),
        (
            Switchover,
            json!({"candidate": "n2"}),
            false,
            400,
            "Switchover could be performed only from a specific leader",
        ),
        (
            Failover,
            json!({"candidate": "n2", "scheduled_at": future}),
            false,
            400,
            "Failover can't be scheduled",
        ),
        (
            Switchover,
            json!({"leader": "n1", "scheduled_at": future}),
            true,
            400,
            "Can't schedule switchover in the paused state",
        ),
        (
            Switchover,
            json!({"leader": "n1", "scheduled_at": "2026-02-01T03:00"}),
            false,
            400,
            "Timezone information is mandatory for the scheduled switchover",
        ),
        (
            Switchover,
            json!({"leader": "n1", "scheduled_at": "2020-02-01T03:00Z"}),
            false,
            422,
            "Cannot schedule switchover in the past",
        ),
        (
            Switchover,
            json!({"leader": "n1", "scheduled_at": 5}),
            false,
            422,
            "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601",
        ),
        (
            Switchover,
            json!({"leader": "n1"}),
            true,
            400,
            "Switchover is possible only to a specific candidate in a paused state",
        ),
        (
            Switchover,
            json!({"leader": "n1", "candidate": "n1"}),
            false,
            400,
            "Switchover target and source are the same",
        ),
        (
            Failover,
            json!({"leader": "n1", "member": "n1"}),
            false,
            400,
            "Switchover target and source are the same",
        ),
    ] {
        assert_eq!(refused(action, &body, paused), (code, text.to_owned()), "{body}");
    }
}

#[test]
fn a_failover_from_a_named_leader_is_a_switchover() {
    let plan = ask(Action::Failover, &json!({"leader": "n1", "member": "n2"}), false).expect("fine");
    assert_eq!(plan.action, Action::Switchover);
    assert_eq!(plan.key.render(), r#"{"leader":"n1","member":"n2"}"#);
    let plan = ask(Action::Failover, &json!({"candidate": "n2"}), true).expect("fine");
    assert_eq!(plan.action, Action::Failover);
}

#[test]
fn pre_checks_look_at_the_cluster() {
    let check = |action, body: Value, pairs: &[(&str, &str)], sync| {
        let plan = ask(action, &body, false).expect("valid request");
        candidates(&plan, &cluster(pairs), sync).map_err(|refusal| {
            assert_eq!(refusal.code, 412);
            refusal.text
        })
    };
    let alone = &HEALTHY[..5];
    let synced = [HEALTHY, &[("sync", r#"{"leader":"n1","sync_standby":"n2"}"#)]].concat();
    let from = || json!({"leader": "n1"});
    let to = |candidate: &str| json!({"leader": "n1", "candidate": candidate});
    use Action::{Failover, Switchover};
    for (action, body, pairs, sync, expected) in [
        (
            Switchover,
            json!({"leader": "n2"}),
            HEALTHY,
            SyncMode::Off,
            Err("leader name does not match"),
        ),
        (
            Switchover,
            from(),
            &HEALTHY[2..],
            SyncMode::Off,
            Err("leader name does not match"),
        ),
        (
            Switchover,
            to("n2"),
            HEALTHY,
            SyncMode::Priority,
            Err("candidate name does not match with sync_standby"),
        ),
        (Switchover, to("n2"), &synced, SyncMode::Priority, Ok("n2")),
        (
            Switchover,
            to("n9"),
            HEALTHY,
            SyncMode::Off,
            Err("candidate does not exists"),
        ),
        (
            Failover,
            json!({"candidate": "n2"}),
            HEALTHY,
            SyncMode::Priority,
            Ok("n2"),
        ),
        (
            Switchover,
            from(),
            HEALTHY,
            SyncMode::Priority,
            Err("switchover is not possible: can not find sync_standby"),
        ),
        (Switchover, from(), HEALTHY, SyncMode::Quorum, Ok("n2")),
        (
            Switchover,
            from(),
            alone,
            SyncMode::Off,
            Err("switchover is not possible: cluster does not have members except leader"),
        ),
        (Switchover, from(), HEALTHY, SyncMode::Off, Ok("n2")),
    ] {
        let expected = expected
            .map(|name| vec![MemberName::from(name)])
            .map_err(str::to_owned);
        assert_eq!(
            check(action, body.clone(), pairs, sync),
            expected,
            "{body} {sync:?}"
        );
    }
}

#[test]
fn one_good_answer_is_enough() {
    let plan = ask(Action::Switchover, &json!({"leader": "n1"}), false).expect("fine");
    let peer = |tags| PeerStatus::from_json(&json!({"role": "replica", "xlog": {}, "tags": tags}));
    let answers = |list: Vec<(&str, Option<PeerStatus>)>| {
        judge(
            &plan,
            &list.into_iter().map(|(name, peer)| (name.into(), peer)).collect(),
        )
    };
    assert!(answers(vec![("n2", None), ("n3", peer(json!({})))]).is_ok());
    let none = answers(vec![("n2", None), ("n3", peer(json!({"nofailover": true})))]);
    assert_eq!(
        none,
        Err(Refusal::new(
            412,
            "switchover is not possible: no good candidates have been found"
        ))
    );
}

#[test]
fn the_outcome_shows_in_leader_and_failover_key() {
    let plan = |action, candidate: Option<&str>| Plan {
        action,
        key: FailoverKey {
            leader: None,
            candidate: candidate.map(Into::into),
            scheduled_at: None,
        },
    };
    let old = MemberName::from("n1");
    let see = |plan: &Plan, leader: &str, failover: &str| {
        let seen = cluster(&[("leader", leader), ("failover", failover)]);
        outcome(plan, Some(&old), &seen).map(|result| result.map_err(|refusal| (refusal.code, refusal.text)))
    };
    let pending = r#"{"member":"n2"}"#;
    let switchover = plan(Action::Switchover, Some("n2"));
    assert_eq!(see(&switchover, "n1", pending), None);
    assert_eq!(see(&switchover, "", pending), None);
    assert_eq!(
        see(&switchover, "n2", pending),
        Some(Ok("Successfully switched over to \"n2\"".into()))
    );
    assert_eq!(
        see(&switchover, "n3", "{}"),
        Some(Ok("Switched over to \"n3\" instead of \"n2\"".into()))
    );
    assert_eq!(
        see(&switchover, "n1", "{}"),
        Some(Err((503, "Switchover failed".into())))
    );
    let failover = plan(Action::Failover, None);
    assert_eq!(
        see(&failover, "n3", "{}"),
        Some(Ok("Successfully failed over to \"n3\"".into()))
    );
    assert_eq!(
        see(&failover, "", "{}"),
        Some(Err((503, "Failover failed".into())))
    );
}
