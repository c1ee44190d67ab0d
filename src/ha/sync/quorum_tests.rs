//! Every rule of the resolver by example, and its invariants from every state of four members.

use super::*;
use crate::ha::sync::{StandbyNames, kept};

fn set(names: &str) -> NameSet {
    names.chars().map(|name| MemberName(name.to_string())).collect()
}

/// `/sync` as quorum and voters, the setting as count and names, who has confirmed it, who is there, how many are wanted.
fn at(sync: (usize, &str), setting: (usize, &str), confirmed: &str, active: &str, wanted: usize) -> Resolver {
    Resolver {
        me: "m".into(),
        leader: "m".into(),
        quorum: sync.0,
        voters: set(sync.1),
        count: setting.0,
        names: set(setting.1),
        confirmed: set(confirmed),
        active: set(active),
        wanted,
    }
}

fn shown(resolver: Resolver) -> String {
    let names = |names: &NameSet| names.iter().map(MemberName::as_str).collect::<String>();
    let one = |change: &Change| match change {
        Change::Sync { quorum, voters } => format!("sync {quorum} {}", names(voters)),
        Change::Names { count, names: n } => format!("any {count} {}", names(n)),
        Change::Again => "again".to_owned(),
    };
    match resolver.resolve() {
        Ok(changes) => changes.iter().map(one).collect::<Vec<_>>().join(", "),
        Err(Broken) => "broken".to_owned(),
    }
}

#[test]
fn one_example_for_each_rule() {
    for (what, state, changes) in [
        ("at rest", at((1, "ab"), (1, "ab"), "ab", "ab", 1), ""),
        (
            "at rest, not known yet",
            at((1, "ab"), (1, "ab"), "", "ab", 1),
            "",
        ),
        // First standbys: in postgres at once, in `/sync` when they have confirmed.
        ("first ones", at((0, ""), (0, ""), "", "ab", 1), "any 1 ab, again"),
        ("not confirmed", at((0, ""), (1, "ab"), "", "ab", 1), "again"),
        (
            "confirmed by one",
            at((0, ""), (1, "ab"), "a", "ab", 1),
            "sync 1 ab",
        ),
        (
            "confirmed by both",
            at((0, ""), (2, "ab"), "ab", "ab", 2),
            "sync 0 ab",
        ),
        (
            "confirmed by one of two",
            at((0, ""), (2, "ab"), "b", "ab", 2),
            "sync 1 ab",
        ),
        // One more: more are waited for first, else the promise is made smaller first.
        (
            "another to wait for",
            at((0, "a"), (1, "a"), "a", "ab", 2),
            "any 2 ab, sync 1 ab",
        ),
        (
            "then it has confirmed",
            at((1, "ab"), (2, "ab"), "ab", "ab", 2),
            "sync 0 ab",
        ),
        (
            "another to choose from",
            at((0, "a"), (1, "a"), "a", "ab", 1),
            "sync 1 ab, any 1 ab",
        ),
        (
            "broken off between",
            at((1, "ab"), (1, "a"), "a", "ab", 1),
            "any 1 ab",
        ),
        // One less.
        (
            "one of two gone",
            at((1, "ab"), (1, "ab"), "ab", "a", 1),
            "any 1 a, sync 1 a",
        ),
        ("then confirmed", at((1, "a"), (1, "a"), "a", "a", 1), "sync 0 a"),
        (
            "all gone",
            at((1, "ab"), (1, "ab"), "ab", "", 1),
            "sync 0 , any 0 ",
        ),
        (
            "one of both gone",
            at((0, "ab"), (2, "ab"), "ab", "a", 2),
            "sync 0 a, any 1 a",
        ),
        (
            "left behind in postgres",
            at((0, "a"), (2, "ab"), "ab", "a", 1),
            "any 1 a",
        ),
        (
            "left behind in /sync",
            at((1, "ab"), (1, "a"), "a", "a", 1),
            "sync 0 a",
        ),
        // Another number.
        (
            "wait for more",
            at((2, "abc"), (1, "abc"), "abc", "abc", 2),
            "any 2 abc, sync 2 abc",
        ),
        (
            "then it is known",
            at((2, "abc"), (2, "abc"), "abc", "abc", 2),
            "sync 1 abc",
        ),
        (
            "wait for fewer",
            at((1, "abc"), (2, "abc"), "abc", "abc", 1),
            "sync 2 abc, any 1 abc",
        ),
        // A promise that is not kept.
        (
            "changed by hand",
            at((0, "ab"), (1, "ab"), "ab", "ab", 1),
            "sync 1 ab",
        ),
    ] {
        // What the resolver would do after a step that needs a confirmation is seen again by then.
        let got = shown(state);
        let first = |text: &str| text.split(", sync").next().unwrap_or_default().to_owned();
        if changes.contains("any") && changes.contains(", sync") {
            assert_eq!(first(&got), first(changes), "{what}: {got}");
        } else {
            assert_eq!(got, changes, "{what}");
        }
    }
}

#[test]
fn what_one_standby_alone_has_is_not_promised_away_with_it() {
    // a acknowledged what b has not got yet, and is gone: b alone must not be able to lead before it has.
    let state = at((1, "ab"), (1, "ab"), "a", "b", 1);
    assert_eq!(shown(state), "any 1 b, sync 1 b");
    assert_eq!(shown(at((1, "ab"), (1, "b"), "", "b", 1)), "sync 1 b");
    assert_eq!(shown(at((1, "b"), (1, "b"), "", "b", 1)), "");
    assert_eq!(shown(at((1, "b"), (1, "b"), "b", "b", 1)), "sync 0 b");
}

#[test]
fn another_leader_in_the_sync_key_is_replaced() {
    let state = Resolver {
        leader: "l".into(),
        ..at((1, "ma"), (1, "al"), "", "al", 1)
    };
    assert_eq!(shown(state.clone()), "sync 1 al");
    let nothing_set = Resolver {
        count: 0,
        names: NameSet::default(),
        ..state
    };
    assert_eq!(shown(nothing_set), "any 1 al, sync 1 al");
}

/// From every state in which the promise is kept: each change keeps it, and one after the other they come to rest where
/// they should.
#[test]
fn every_way_keeps_the_promise_and_ends_at_rest() {
    let sets = ["", "a", "b", "ab", "abc", "ac", "bc", "c", "abcd", "abd", "d"];
    let me = MemberName::from("m");
    let mut states = 0;
    for voters in sets {
        for names in sets {
            for active in sets {
                for quorum in 0..=set(voters).len() {
                    for count in 0..=set(names).len() {
                        for wanted in 1..=3 {
                            let state = at((quorum, voters), (count, names), "", active, wanted);
                            let setting = StandbyNames::any(count, set(names));
                            if (count == 0) != names.is_empty() || !kept(&me, &set(voters), quorum, &setting)
                            {
                                continue;
                            }
                            states += 1;
                            comes_to_rest(state);
                        }
                    }
                }
            }
        }
    }
    assert!(states > 1000, "{states} states");
}

#[track_caller]
fn comes_to_rest(begin: Resolver) {
    let mut state = begin.clone();
    for _ in 0..40 {
        let changes = state.clone().resolve();
        match changes.map(|changes| changes.into_iter().next()) {
            Ok(Some(Change::Sync { quorum, voters })) => (state.quorum, state.voters) = (quorum, voters),
            Ok(Some(Change::Names { count, names })) => {
                (state.count, state.names, state.confirmed) = (count, names, NameSet::default());
            }
            Ok(Some(Change::Again)) => state.confirmed = state.names.and(&state.active),
            Ok(None) if state.confirmed != state.names.and(&state.active) => {
                state.confirmed = state.names.and(&state.active);
            }
            Ok(None) => break,
            // The way out: nobody but us.
            Err(Broken) => (state.quorum, state.voters) = (0, NameSet::default()),
        }
        let setting = StandbyNames::any(state.count, state.names.clone());
        assert!(
            kept(&state.me, &state.voters, state.quorum, &setting),
            "{begin:?}\n{state:?}"
        );
    }
    let count = state.wanted.min(state.active.len());
    let found = (&state.voters, &state.names, state.count, state.quorum);
    let expected = (&state.active, &state.active, count, state.active.len() - count);
    assert_eq!(found, expected, "from {begin:?}");
}
