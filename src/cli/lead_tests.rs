//! The dialogues, answer by answer.

use serde_json::json;

use super::*;
use crate::{
    agent::handle::fixtures::{HEALTHY, cluster},
    cli::ui::script::Script,
};

const N3: (&str, &str) = ("members/n3", r#"{"tags":{"nofailover":true}}"#);

fn view(more: &[(&str, &str)]) -> ClusterView {
    ClusterView::of("demo", &cluster(&[HEALTHY, &[N3], more].concat()))
}

fn now() -> Timestamp {
    "2026-01-05T08:10:00Z".parse().expect("valid")
}

fn switch(view: &ClusterView, answers: &[&str], args: SwitchoverArgs) -> (Result<String, String>, String) {
    let mut ui = Script::typing(answers);
    let wish = ask_switchover(view, &mut ui, args, now());
    (
        wish.map(|wish| wish.body().to_string())
            .map_err(|error| error.to_string()),
        ui.text(),
    )
}

#[test]
fn a_switchover_is_agreed_on_question_by_question() {
    let (wish, shown) = switch(&view(&[]), &["", "n2", "now", "y"], SwitchoverArgs::default());
    assert_eq!(wish, Ok(r#"{"leader":"n1","candidate":"n2"}"#.to_owned()));
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[0], "Primary [n1]: ");
    assert_eq!(lines[1], "Candidate ['n2'] []: n2");
    assert!(
        lines[2].starts_with("When should the switchover take place (e.g. 2026-01-05T"),
        "{shown}"
    );
    assert!(lines[2].ends_with(" )  [now]: now"), "{shown}");
    assert_eq!(
        lines[3],
        "Are you sure you want to switchover cluster demo, demoting current leader n1? [y/N]: y"
    );
}

#[test]
fn force_asks_nothing() {
    let args = SwitchoverArgs {
        force: true,
        scheduled: Some("2999-01-01T00:00Z".into()),
        ..Default::default()
    };
    let (wish, shown) = switch(&view(&[]), &[], args);
    let expected = r#"{"leader":"n1","scheduled_at":"2999-01-01T00:00:00+00:00"}"#;
    assert_eq!((wish, shown.as_str()), (Ok(expected.to_owned()), ""));
}

#[test]
fn wrong_answers_end_it() {
    let with = |leader: Option<&str>, candidate: Option<&str>| SwitchoverArgs {
        leader: leader.map(str::to_owned),
        candidate: candidate.map(str::to_owned),
        ..Default::default()
    };
    let all = view(&[]);
    for (view, answers, args, text) in [
        (
            &all,
            &["", "n2", "", "n"][..],
            with(None, None),
            "Aborting switchover",
        ),
        (&all, &[], with(None, None), "Aborted!"),
        (
            &all,
            &[],
            with(Some("n2"), None),
            "Member n2 is not the leader of cluster demo",
        ),
        (
            &all,
            &[],
            with(Some("n1"), Some("n3")),
            "Member n3 does not exist in cluster demo or is tagged as nofailover",
        ),
        (
            &all,
            &[],
            with(Some("n1"), Some("n1")),
            "Switchover target and source are the same.",
        ),
        (
            &all,
            &["soon"],
            with(Some("n1"), Some("n2")),
            "Unable to parse scheduled timestamp (soon). It should be in an unambiguous format (e.g. ISO 8601)",
        ),
        (
            &view(&[("leader", "")]),
            &[],
            with(None, None),
            "This cluster has no leader",
        ),
        (
            &view(&[
                ("leader", "n2"),
                ("members/n1", r#"{"tags":{"nofailover":true}}"#),
            ]),
            &[""],
            with(None, None),
            "No candidates found to switchover to",
        ),
        (
            &view(&[("config", r#"{"pause":true}"#)]),
            &["05:00"],
            with(Some("n1"), Some("n2")),
            "Can't schedule switchover in the paused state",
        ),
    ] {
        assert_eq!(switch(view, answers, args).0, Err(text.to_owned()));
    }
}

#[test]
fn a_failover_needs_a_candidate_and_names_what_it_demotes() {
    let fail = |view: &ClusterView, answers: &[&str], candidate: Option<&str>, force, sync| {
        let mut ui = Script::typing(answers);
        let args = FailoverArgs {
            candidate: candidate.map(str::to_owned),
            force,
            cluster: None,
        };
        let wish = ask_failover(view, &mut ui, args, sync);
        (
            wish.map(|wish| wish.body().to_string())
                .map_err(|error| error.to_string()),
            ui.text(),
        )
    };
    let all = view(&[]);
    let (wish, shown) = fail(&all, &["y"], Some("n2"), false, SyncMode::Off);
    assert_eq!(wish, Ok(r#"{"candidate":"n2"}"#.to_owned()));
    assert_eq!(
        shown,
        "Are you sure you want to failover cluster demo, demoting current leader n1? [y/N]: y"
    );
    let (wish, shown) = fail(&view(&[("leader", "")]), &["y"], Some("n2"), false, SyncMode::Off);
    assert!(wish.is_ok() && shown.starts_with("Are you sure you want to failover cluster demo? "));
    let specific = Err("Failover could be performed only to a specific candidate".to_owned());
    assert_eq!(fail(&all, &[], None, true, SyncMode::Off).0, specific);
    let leads = Err("Member n1 is already the leader of cluster demo".to_owned());
    assert_eq!(fail(&all, &[], Some("n1"), true, SyncMode::Off).0, leads);
    let (wish, shown) = fail(&all, &["n"], Some("n2"), false, SyncMode::Priority);
    assert_eq!(wish, Err("Aborting failover".to_owned()));
    assert!(
        shown.starts_with("Are you sure you want to failover to the asynchronous node n2?"),
        "{shown}"
    );
}

#[test]
fn phases_of_this_hand_over_are_shown_and_none_of_another() {
    let at = |text: &str| text.parse::<Timestamp>().expect("a time");
    let begun = at("2026-01-05T08:00:01Z");
    let handover = |time: &str, side: &str| json!({"side": side, "at": time, "milliseconds": {"shut_down": 110.5, "released": 3.0}});
    let soon = handover("2026-01-05T08:00:01.250Z", "gave");
    assert_eq!(
        phases(&soon, Side::Gave, begun),
        ["shut down 110.5 ms", "released 3.0 ms"]
    );
    assert_eq!(phases(&soon, Side::Took, begun), [""; 0], "the other side");
    let before = handover("2026-01-05T07:00:00Z", "gave");
    assert_eq!(phases(&before, Side::Gave, begun), [""; 0], "the last time");
    assert_eq!(phases(&Value::Null, Side::Gave, begun), [""; 0], "other software");
}
