//! Who may lead after us, and whether they have everything.

use super::builder::*;
use crate::{
    ha::heirs::{End, Heirs, Progress, lacks},
    model::{Lsn, Timeline},
};

const END: End = End {
    timeline: Timeline(1),
    lsn: Lsn(500),
};

fn names(build: &Build) -> Vec<String> {
    let Heirs(asked) = Heirs::of(&build.view, &build.cluster);
    asked.into_iter().map(|(name, _)| name.0).collect()
}

#[test]
fn only_the_whole_shutdown_checkpoint_on_our_timeline_is_enough() {
    assert_eq!(lacks(END, &replica_at(500)), None);
    assert_eq!(
        lacks(END, &replica_at(900)),
        None,
        "what follows it was never written"
    );
    for (peer, why) in [
        (replica_at(499), "lacks 1 bytes"),
        (replica_at(0), "lacks 500 bytes"),
        (primary_at(500), "no replica"),
        (on_timeline(2, replica_at(900)), "timeline 2"),
        (on_timeline(0, replica_at(900)), "timeline 0"),
        (tagged("nofailover", true.into(), replica_at(500)), "excluded"),
    ] {
        let said = lacks(END, &peer).expect("it cannot take over");
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn those_who_may_lead_are_asked_and_a_named_candidate_alone() {
    let all = view().leader("b").replica("a").replica("c");
    assert_eq!(names(&all), ["a", "c"]);
    let named = all.clone().request(Some("b"), Some("c"));
    assert_eq!(names(&named), ["c"]);
    assert_eq!(names(&named.clone().scheduled(0)), ["c"]);
    assert_eq!(names(&named.scheduled(60)), ["a", "c"], "its time has not come");
    assert_eq!(names(&all.request(Some("b"), None)), ["a", "c"]);
    assert!(names(&view().leader("b")).is_empty());
}

#[test]
fn patience_lasts_as_long_as_somebody_comes_nearer() {
    let (a, c) = ("a".into(), "c".into());
    let mut progress = Progress::new(END, NOW);
    assert_eq!(progress.because(), "nobody has answered");
    assert!(!progress.hear(&a, Some(&replica_at(100)), NOW + secs(1)));
    assert_eq!(
        progress.stalled_since(),
        NOW,
        "where it is says nothing about how fast it is"
    );
    assert!(!progress.hear(&c, None, NOW + secs(1)));
    assert!(!progress.hear(&a, Some(&replica_at(200)), NOW + secs(2)));
    assert_eq!(progress.stalled_since(), NOW + secs(2));
    assert!(!progress.hear(&a, Some(&replica_at(200)), NOW + secs(3)));
    assert!(!progress.hear(&a, None, NOW + secs(4)));
    assert_eq!(progress.stalled_since(), NOW + secs(2));
    assert_eq!(progress.because(), "'a' does not answer, 'c' does not answer");
    assert!(progress.hear(&c, Some(&replica_at(500)), NOW + secs(5)));
}
