//! Synchronous replication, decision by decision; what all of it together is worth is seen in `walk`.

use serde_json::json;

use super::builder::*;
use crate::{
    ha::{
        Action, DemoteMode, Job, Local, Standing, StartAs,
        sync::{Mark, Method, NameSet, SETTLE, Sender, Sight, StandbyNames},
    },
    model::{Dynamic, Lsn, SyncKey, Version},
};

const VERSION: Version = Version(20);

fn set(names: &[&'static str]) -> NameSet {
    names.iter().copied().collect()
}

fn all(names: &[&'static str]) -> StandbyNames {
    StandbyNames::all(set(names))
}

fn key(leader: &str, quorum: u32, standbys: &[&str]) -> SyncKey {
    SyncKey {
        leader: Some(leader.into()),
        quorum,
        standbys: standbys.iter().map(|name| (*name).into()).collect(),
        version: Some(VERSION),
    }
}

fn write(leader: &str, quorum: u32, standbys: &[&str]) -> Action {
    Action::WriteSync(key(leader, quorum, standbys))
}

fn set_names(names: StandbyNames) -> Action {
    Action::SetSyncNames(Some(names))
}

fn streams(name: &str, position: u64) -> Sender {
    Sender {
        name: name.into(),
        streaming: true,
        sync_state: "async".into(),
        position: Some(Lsn(position)),
    }
}

impl Build {
    fn mode(self, config: serde_json::Value) -> Self {
        self.dynamic(|dynamic| *dynamic = Dynamic::from_map(config.as_object().expect("a map")))
    }

    fn on(self) -> Self {
        self.mode(json!({"synchronous_mode": true}))
    }

    fn strict(self) -> Self {
        self.mode(json!({"synchronous_mode": true, "synchronous_mode_strict": true}))
    }

    fn quorum(self) -> Self {
        self.mode(json!({"synchronous_mode": "quorum"}))
    }

    fn sync(self, leader: &str, quorum: u32, standbys: &[&str]) -> Self {
        let key = key(leader, quorum, standbys);
        self.cluster(|cluster| cluster.sync = key)
    }

    /// The primary `b` with the lock, these names in force and asked for, and a, c and d streaming.
    fn waits_for(self, names: StandbyNames) -> Self {
        let sight = Sight {
            flushed: Lsn(1000),
            asked: Some(names.clone()),
            in_force: names,
            users_own: false,
            senders: vec![streams("a", 900), streams("c", 950), streams("d", 800)],
            checkpointer_waits: true,
            mark: None,
            unsure: false,
        };
        let build = self.leader("b").replica("a").replica("c").replica("d");
        build
            .running_primary(1000)
            .hold_for(secs(9))
            .change(|view| view.sync = Some(sight))
    }

    fn sight(self, change: impl FnOnce(&mut Sight)) -> Self {
        self.change(|view| change(view.sync.as_mut().expect("a primary")))
    }

    /// A record that all have whose position is at least that.
    fn marked(self, lsn: u64) -> Self {
        self.sight(|sight| {
            sight.mark = Some(Mark {
                names: sight.in_force.clone(),
                lsn: Lsn(lsn),
            });
        })
    }

    fn without(self, name: &str) -> Self {
        self.sight(|sight| sight.senders.retain(|sender| sender.name != name))
    }

    fn tagged(self, name: &str, tag: &str, value: impl Into<serde_json::Value>) -> Self {
        let mut tagged = member(name);
        tagged.data.tags.insert(tag.into(), value.into());
        self.with(tagged)
    }
}

/// What the leader does, its usual duties left out.
#[track_caller]
fn does(build: &Build, actions: &[Action]) {
    let plan = build.plan();
    let (last, sync) = plan.actions.split_last().expect("duties");
    assert_eq!(*last, Action::LeaderDuties);
    assert_eq!(sync, actions, "{}", plan.because);
    assert!(plan.keep_lock);
    assert!(
        plan.again_in.is_some_and(|wait| wait <= secs(1)),
        "commits may be waiting"
    );
}

#[test]
fn mode_on_begins_with_itself_and_adds_in_postgres_first() {
    let b = view().on().waits_for(StandbyNames::none());
    does(
        &b,
        &[Action::WriteSync(SyncKey {
            version: None,
            ..key("b", 0, &[])
        })],
    );
    let b = b.sync("b", 0, &[]);
    does(&b, &[set_names(all(&["c"]))]);
    // In force, but not for long enough; then a record is written, and waited for.
    let b = view().on().sync("b", 0, &[]).waits_for(all(&["c"]));
    does(&b, &[]);
    let b = b.next().later(SETTLE);
    does(&b, &[Action::MarkSync(all(&["c"]))]);
    does(&b.clone().marked(951), &[]);
    does(&b.clone().marked(950), &[write("b", 0, &["c"])]);
    let b = view()
        .on()
        .sync("b", 0, &["c"])
        .waits_for(all(&["c"]))
        .marked(950);
    does(&b, &[]);
}

#[test]
fn where_commits_have_not_waited_before_the_checkpointer_must_know() {
    let b = view().on().sync("b", 0, &[]).waits_for(all(&["c"]));
    let b = b
        .sight(|sight| sight.checkpointer_waits = false)
        .next()
        .later(SETTLE);
    does(&b, &[]);
    let b = b.sight(|sight| sight.checkpointer_waits = true);
    does(&b, &[Action::MarkSync(all(&["c"]))]);
}

#[test]
fn a_record_written_under_other_names_confirms_nothing() {
    let b = view().on().sync("b", 0, &[]).waits_for(all(&["c"])).marked(1);
    let b = b.sight(|sight| sight.mark.as_mut().expect("marked").names = all(&["a", "c"]));
    does(&b, &[]);
    // Nor does one for names that are not all that has been asked for.
    let b = view().on().sync("b", 0, &[]).waits_for(all(&["c"])).marked(1);
    let b = b.sight(|sight| sight.asked = Some(all(&["a"])));
    does(&b, &[set_names(all(&["c"]))]);
}

#[test]
fn mode_on_removes_from_the_sync_key_first() {
    let b = view().on().sync("b", 0, &["c"]).waits_for(all(&["c"]));
    does(
        &b.clone().without("c"),
        &[write("b", 0, &[]), set_names(all(&["a"]))],
    );
    // One that has tagged itself goes as well; one that is only to be replaced stays until the other is there.
    does(
        &b.clone().tagged("c", "nosync", true),
        &[write("b", 0, &[]), set_names(all(&["a"]))],
    );
    let preferred = b.tagged("a", "sync_priority", 2);
    does(&preferred, &[set_names(all(&["a", "c"]))]);
    let both = view().on().sync("b", 0, &["c"]).tagged("a", "sync_priority", 2);
    let both = both
        .waits_for(all(&["a", "c"]))
        .tagged("a", "sync_priority", 2)
        .marked(900);
    does(&both, &[write("b", 0, &["a", "c"])]);
    does(
        &both.sync("b", 0, &["a", "c"]),
        &[write("b", 0, &["a"]), set_names(all(&["a"]))],
    );
}

#[test]
fn a_promise_the_setting_does_not_keep_is_taken_back() {
    for names in [
        StandbyNames::none(),
        all(&["a"]),
        StandbyNames::any(1, set(&["a", "c"])),
    ] {
        let b = view().on().sync("b", 0, &["c"]).waits_for(names);
        does(&b, &[write("b", 0, &[])]);
    }
    // After a write without an answer what was read may change yet.
    let b = view()
        .on()
        .sync("b", 0, &["c"])
        .waits_for(all(&["c"]))
        .without("c");
    does(&b.sight(|sight| sight.unsure = true), &[write("b", 0, &["c"])]);
}

#[test]
fn without_standbys_commits_go_on_unless_the_mode_is_strict() {
    let alone = |b: Build| b.without("a").without("c").without("d");
    let b = alone(view().on().sync("b", 0, &["c"]).waits_for(all(&["c"])));
    does(&b, &[write("b", 0, &[]), set_names(StandbyNames::none())]);
    let b = alone(view().strict().sync("b", 0, &["c"]).waits_for(all(&["c"])));
    does(&b, &[]);
    let b = alone(view().strict().sync("b", 0, &[]).waits_for(all(&["c"])));
    does(&b, &[set_names(StandbyNames::nobody_will_do(Method::First))]);
    // Another one comes: it takes the place of the one that is gone.
    let b = view()
        .strict()
        .sync("b", 0, &["c"])
        .waits_for(all(&["c"]))
        .without("c");
    does(&b, &[write("b", 0, &[]), set_names(all(&["a"]))]);
}

#[test]
fn candidates_are_ordered_and_filtered() {
    let chosen = |b: Build| match b.plan().actions.first() {
        Some(Action::SetSyncNames(Some(names))) => names.to_string(),
        other => format!("{other:?}"),
    };
    let b = || view().on().sync("b", 0, &[]).waits_for(StandbyNames::none());
    assert_eq!(chosen(b()), "c", "the furthest");
    assert_eq!(chosen(b().tagged("d", "sync_priority", 2)), "d");
    assert_eq!(chosen(b().tagged("c", "nofailover", true)), "a");
    assert_eq!(chosen(b().tagged("c", "nosync", true)), "a");
    assert_eq!(
        chosen(b().tagged("c", "replicatefrom", "a")),
        "a",
        "it will stream from a"
    );
    assert_eq!(chosen(b().tagged("c", "replicatefrom", "gone")), "c");
    assert_eq!(
        chosen(b().sight(|s| s.senders[0].sync_state = "sync".into())),
        "a",
        "as it was"
    );
    assert_eq!(
        chosen(b().sight(|s| s.senders[1].streaming = false)),
        "a",
        "only catching up"
    );
    assert_eq!(
        chosen(b().with(member("C"))),
        "a",
        "postgres cannot tell c and C apart"
    );
    let two = json!({"synchronous_mode": true, "synchronous_node_count": 2});
    assert_eq!(chosen(b().mode(two)), "2 (a,c)");
    let lag = json!({"synchronous_mode": true, "maximum_lag_on_syncnode": 60, "synchronous_node_count": 3});
    assert_eq!(chosen(b().mode(lag)), "2 (a,c)");
}

#[test]
fn off_takes_the_promise_back_before_commits_go_on_alone() {
    let b = view().sync("b", 0, &["c"]).waits_for(all(&["c"]));
    let plan = b.plan();
    assert_eq!(
        plan.actions,
        [
            Action::DeleteSync(VERSION),
            Action::SetSyncNames(None),
            Action::LeaderDuties
        ]
    );
    let done = view()
        .waits_for(StandbyNames::none())
        .sight(|sight| sight.users_own = true);
    assert_eq!(done.plan().actions, [Action::LeaderDuties]);
    // A replica that is promoted in a cluster without the mode leaves nothing behind that would bind others later.
    let b = view()
        .replica("a")
        .running_replica(100)
        .seen("a")
        .sync("a", 0, &["c"]);
    let b = b.peers(&[("a", None)]);
    let promotion = [
        Action::AcquireLock,
        Action::DeleteSync(VERSION),
        Action::Begin(Job::Promote),
    ];
    assert_eq!(b.plan().actions, promotion);
}

// --- who leads

/// A replica `b` that has streamed from `a` until now, asked everybody.
fn candidate() -> Build {
    let b = view()
        .replica("a")
        .replica("c")
        .replica("d")
        .running_replica(1000)
        .seen("a");
    b.peers(&[
        ("a", None),
        ("c", Some(replica_at(1000))),
        ("d", Some(replica_at(2000))),
    ])
}

#[test]
fn in_mode_on_only_a_synchronous_standby_leads() {
    let b = candidate().on();
    waits(
        b.clone().sync("a", 0, &["c"]),
        "not a synchronous standby: only 'a', 'c'",
    );
    let names = set_names(StandbyNames::none());
    let leads = [
        Action::AcquireLock,
        write("b", 0, &[]),
        names,
        Action::Begin(Job::Promote),
    ];
    // An asynchronous member may be ahead: nobody was told of what it has more.
    check(
        b.clone().sync("a", 0, &["b"]),
        &leads,
        KEEP,
        "has every acknowledged commit",
    );
    waits(b.clone().sync("a", 0, &["b", "d"]), "'d' is ahead");
    // Nobody has promised anything yet.
    waits(b.clone(), "'d' is ahead");
    // The last primary is back as a replica, with what it never acknowledged.
    let back = b
        .sync("a", 0, &["b"])
        .peers(&[("a", Some(replica_at(3000))), ("c", None), ("d", None)]);
    check(back, &leads, KEEP, "has every acknowledged commit");
}

#[test]
fn who_has_all_that_a_voter_has_may_lead_when_no_voter_does() {
    let b = |peer| {
        let answers = [("a", None), ("c", Some(peer)), ("d", None)];
        let build = candidate().on().sync("a", 0, &["c"]).peers(&answers);
        build.unlocked_for(TTL)
    };
    let leads = |build: Build| build.plan().actions.first() == Some(&Action::AcquireLock);
    let no = "not a synchronous standby: only 'a', 'c'";
    let mine = 1000;
    assert!(leads(b(replica_at(mine))));
    waits(b(replica_at(mine + 1)), no);
    waits(b(on_timeline(2, replica_at(mine))), no);
    waits(b(on_timeline(0, replica_at(mine))), no);
    waits(b(replica_at(0)), no);
    waits(b(primary_at(mine)), no);
    waits(b(still_replaying(replica_at(mine))), no);
    let receives = crate::model::PeerStatus {
        receiving: true,
        ..replica_at(mine)
    };
    waits(b(receives), no);
    // The voters first.
    waits(b(replica_at(mine)).unlocked_for(TTL - ms(1)), no);
    // In quorum mode one voter alone has not everything.
    let quorum = b(replica_at(mine)).quorum().sync("a", 1, &["c", "d"]);
    waits(quorum, "a quorum of 1");
    // Nobody but the member itself has said how far it is.
    waits(
        b(replica_at(mine)).peers(&[("a", None), ("c", None), ("d", None)]),
        no,
    );
}

#[test]
fn in_strict_mode_the_new_primary_waits_for_the_others_from_the_first_commit_on() {
    let b = candidate().strict().sync("a", 0, &["b"]);
    let leads = [
        Action::AcquireLock,
        write("b", 0, &["a"]),
        set_names(all(&["a"])),
        Action::Begin(Job::Promote),
    ];
    check(b, &leads, KEEP, "");
    let first = view().strict().clean_primary(600).peers(&[]);
    let blocks = set_names(StandbyNames::nobody_will_do(Method::First));
    let leads = [
        Action::AcquireLock,
        Action::WriteSync(SyncKey {
            version: None,
            ..key("b", 0, &[])
        }),
        blocks,
        Action::Begin(Job::Start(StartAs::Primary)),
    ];
    check(first, &leads, KEEP, "");
}

#[test]
fn a_person_may_want_another_but_a_switchover_does_not() {
    let b = candidate().on().sync("a", 0, &["c"]);
    waits(
        b.clone().request(Some("a"), Some("b")),
        "not a synchronous standby",
    );
    let plan = b.request(None, Some("b")).plan();
    assert_eq!(plan.actions[0], Action::AcquireLock, "{}", plan.because);
    let b = candidate()
        .quorum()
        .sync("a", 0, &["c"])
        .request(Some("a"), Some("b"));
    waits(b, "no synchronous standby");
    let b = candidate()
        .quorum()
        .sync("a", 2, &["b", "c", "d"])
        .request(Some("a"), Some("b"));
    waits(b, "1 votes, but a quorum of 2");
}

#[test]
fn in_quorum_mode_the_votes_decide() {
    let b = |quorum, standbys: &[&str]| {
        let b = candidate().quorum().sync("a", quorum, standbys);
        b.peers(&[
            ("a", None),
            ("c", Some(replica_at(900))),
            ("d", Some(replica_at(1000))),
        ])
    };
    let leads = |b: Build| {
        let plan = b.plan();
        assert_eq!(
            plan.actions.first(),
            Some(&Action::AcquireLock),
            "{}",
            plan.because
        );
        plan.actions
    };
    let actions = leads(b(2, &["b", "c", "d"]));
    assert_eq!(actions[1], write("b", 2, &["a", "c", "d"]));
    assert_eq!(actions[2], set_names(StandbyNames::any(1, set(&["a", "c", "d"]))));
    waits(b(3, &["b", "c", "d"]), "2 votes, but a quorum of 3");
    // Not a voter: one vote more.
    leads(b(1, &["c", "d"]));
    waits(b(2, &["c", "d"]), "2 votes, but a quorum of 2");
    // No vote of one that has more, that is a primary, or that has nothing.
    let one = |peer| b(1, &["b", "c"]).peers(&[("a", None), ("c", Some(peer)), ("d", None)]);
    leads(one(tagged("nofailover", json!(true), replica_at(1000))));
    waits(
        one(tagged("nofailover", json!(true), replica_at(1001))),
        "0 votes",
    );
    waits(one(replica_at(0)), "0 votes");
    // Nor of one that may yet get more, and confirm it.
    let receives = |peer| crate::model::PeerStatus {
        receiving: true,
        ..peer
    };
    waits(one(receives(replica_at(1000))), "0 votes");
    waits(one(still_replaying(replica_at(1000))), "0 votes");
    // And it does not help that the one that is ahead has had the time to lead.
    let late = one(replica_at(5000)).unlocked_for(TTL * 5);
    waits(late, "0 votes, but a quorum of 1");
}

#[test]
fn in_quorum_mode_nobody_confirms_anything_to_a_leader_that_is_gone() {
    let streams = || {
        let b = candidate().quorum().sync("a", 1, &["b", "c"]);
        b.replica_of("a", 1000, true)
    };
    let cut = [Action::Follow(None)];
    check(streams(), &cut, DROP, "taking no more WAL from the last leader");
    check(
        streams().tag("nofailover", true),
        &cut,
        DROP,
        "taking no more WAL",
    );
    let after = streams().next();
    assert!(after.view.memory.cut_off);
    // The receiver takes its moment to end.
    let mut ending = after.clone();
    ending.view.local = streams().running_replica(1000).view.local;
    if let Local::Running(running) = &mut ending.view.local
        && let Standing::Replica { receiving, .. } = &mut running.standing
    {
        *receiving = true;
    }
    waits(ending, "waiting for the end of the WAL receiver");
    let leads =
        after
            .clone()
            .running_replica(1000)
            .peers(&[("a", None), ("c", Some(replica_at(1000))), ("d", None)]);
    assert_eq!(leads.plan().actions.first(), Some(&Action::AcquireLock));
    // Nothing of ours has parted: whoever leads then is followed at once.
    let follow = [Action::Follow(Some(at("c")))];
    check(
        after.running_replica(1000).leader("c"),
        &follow,
        DROP,
        "following 'c'",
    );
    // The mode is another by now, and the key is not.
    let switched = candidate()
        .on()
        .sync("a", 1, &["b", "c"])
        .replica_of("a", 1000, true);
    check(switched, &cut, DROP, "taking no more WAL");
    // Where every voter has everything, others are measured by what one has; once it has had its time to lead.
    let voter = candidate().on().sync("a", 0, &["c"]).replica_of("a", 1000, true);
    check(voter.clone().unlocked_for(TTL), &cut, DROP, "taking no more WAL");
    waits(voter, "not a synchronous standby");
    // Where every voter has everything, what a candidate has is all there is.
    let on = candidate().on().sync("a", 0, &["b"]).replica_of("a", 1000, true);
    assert_eq!(on.plan().actions.first(), Some(&Action::AcquireLock));
    let paused = streams().dynamic(|d| d.pause = true);
    waits(paused.clone(), "nobody is promoted");
    // Somebody is to be promoted after all, and needs this vote.
    check(
        paused.clone().request(Some("a"), Some("c")),
        &cut,
        DROP,
        "taking no more WAL",
    );
    check(
        paused.request(Some("a"), Some("b")),
        &cut,
        DROP,
        "taking no more WAL",
    );
    // That leader may be in its right.
    let promised = streams().change(|view| {
        view.failsafe.promise = Some(crate::ha::failsafe::Promise {
            to: "a".into(),
            until: NOW + secs(1),
        });
    });
    waits(promised, "'a' goes on as primary");
}

#[test]
fn the_last_primary_has_everything_it_ever_acknowledged() {
    let b = view()
        .replica("a")
        .replica("c")
        .quorum()
        .sync("b", 1, &["a", "c"]);
    let b = b.crashed_primary().peers(&[("a", None), ("c", None)]);
    let names = set_names(StandbyNames::any(1, set(&["a", "c"])));
    let starts = [
        Action::AcquireLock,
        names,
        Action::Begin(Job::Start(StartAs::Primary)),
    ];
    check(b.clone(), &starts, KEEP, "this was the last primary");
    // Another has taken over since.
    waits(b.sync("a", 1, &["b", "c"]), "0 votes");
    let b = view().on().crashed_primary().sync("a", 0, &[]);
    waits(b, "not a synchronous standby");
    let running = view().on().running_primary(1000).sync("a", 0, &["b"]);
    let deadline = running.build().stop_by(NOW);
    let stops = [demote(DemoteMode::ImmediateNoLock, deadline)];
    check(
        running,
        &stops,
        DROP,
        "'a' has taken synchronous replication over",
    );
}

#[test]
fn the_holder_of_the_lock_is_not_promoted_without_the_promise() {
    let b = view()
        .on()
        .leader("b")
        .hold_for(secs(9))
        .running_replica(100)
        .seen("a");
    let plan = b.clone().sync("a", 0, &["c"]).plan();
    assert_eq!(plan.actions, [Action::ReleaseLock(None)], "{}", plan.because);
    let promotes = [
        write("b", 0, &[]),
        set_names(StandbyNames::none()),
        Action::Begin(Job::Promote),
    ];
    check(b.sync("a", 0, &["b"]), &promotes, KEEP, "promoting");
}

#[test]
fn a_crashed_primary_waits_for_its_standbys_from_the_first_commit_on() {
    let b = view()
        .on()
        .leader("b")
        .hold_for(secs(9))
        .crashed_primary()
        .sync("b", 0, &["c"]);
    let starts = [
        set_names(all(&["c"])),
        Action::Begin(Job::Start(StartAs::Primary)),
    ];
    check(b, &starts, KEEP, "starting postgres as primary again");
}

#[test]
fn a_hand_over_finds_only_those_who_have_everything() {
    let b = |standbys: &[&str]| {
        let b = view().on().sync("b", 0, standbys).waits_for(all(&["c"]));
        b.request(Some("b"), None).peers(&[
            ("a", Some(replica_at(1000))),
            ("c", Some(replica_at(1000))),
            ("d", Some(replica_at(1000))),
        ])
    };
    assert!(b(&["c"]).plan().because.contains("'c' can take over"));
    assert!(b(&[]).plan().because.contains("no synchronous standby"));
    let quorum = |quorum| b(&["a", "c", "d"]).quorum().sync("b", quorum, &["a", "c", "d"]);
    assert!(quorum(2).plan().because.contains("can take over"));
    assert!(
        quorum(3)
            .plan()
            .because
            .contains("a quorum of 3 is needed besides one")
    );
    // A person's failover may go to any member.
    let any = b(&["c"]).request(None, Some("a")).plan();
    assert!(any.because.contains("switchover to 'a'"), "{}", any.because);
}
