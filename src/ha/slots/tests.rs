//! The rules of the slots, one test each.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};

use super::*;
use crate::{
    clock::Boottime,
    model::{Leader, Member, StatusKey, Version},
};

/// A world to ask questions of. We are `b`; `a` leads; `c` is there; everybody on the newest software.
struct World {
    me: MemberName,
    dynamic: Value,
    cluster: Cluster,
    place: Place,
    major: u16,
    slots: Vec<Slot>,
    retained: BTreeSet<String>,
    ours: BTreeSet<String>,
}

const REPLICA: Place = Place::Replica { replayed: Lsn(1000) };

fn world(place: Place) -> World {
    let cluster = Cluster {
        members: ["a", "b", "c"].map(|name| member(name, json!({}))).into(),
        ..Cluster::default()
    };
    let world = World {
        me: "b".into(),
        dynamic: json!({}),
        cluster,
        place,
        major: 15,
        slots: Vec::new(),
        retained: BTreeSet::new(),
        ours: BTreeSet::new(),
    };
    world.leader(if place.leads() { "b" } else { "a" })
}

fn member(name: &str, tags: Value) -> Member {
    let text =
        json!({"tags": tags, "version": "4.1.4", "conn_url": format!("postgres://{name}:5432/postgres")});
    Member::parse(name, &text.to_string())
}

fn physical(name: &str, restart: u64) -> Slot {
    Slot {
        name: name.into(),
        kind: SlotKind::Physical,
        temporary: false,
        active: false,
        restart: Some(Lsn(restart)),
        confirmed: None,
        xmin: false,
        lost: false,
        wal_status: Some("reserved".into()),
        failover: false,
        synced: false,
    }
}

fn logical(name: &str, confirmed: u64) -> Slot {
    Slot {
        kind: kind("db", "p"),
        confirmed: Some(Lsn(confirmed)),
        ..physical(name, 1)
    }
}

fn kind(database: &str, plugin: &str) -> SlotKind {
    SlotKind::Logical {
        database: database.into(),
        plugin: plugin.into(),
    }
}

fn active(slot: Slot) -> Slot {
    Slot { active: true, ..slot }
}

impl World {
    fn leader(mut self, name: &str) -> Self {
        self.cluster.leader = Some(Leader {
            name: name.into(),
            version: Version(1),
            lease: 0,
        });
        self
    }

    fn with(mut self, name: &str, tags: Value) -> Self {
        self.cluster.members.retain(|member| member.name != name.into());
        self.cluster.members.push(member(name, tags));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.cluster.members.retain(|member| member.name != name.into());
        self
    }

    fn at(mut self, name: &str, position: u64) -> Self {
        for member in self.cluster.members.iter_mut().filter(|m| m.name == name.into()) {
            member.data.xlog_location = Some(Lsn(position));
        }
        self
    }

    fn config(mut self, dynamic: Value) -> Self {
        self.dynamic = dynamic;
        self
    }

    fn status(mut self, slots: &[(&str, u64)], retain: &[&str]) -> Self {
        let slots = slots.iter().map(|(name, at)| ((*name).to_owned(), Lsn(*at)));
        self.cluster.status = StatusKey {
            optime: Lsn(1000),
            slots: Some(slots.collect()),
            retain_slots: Some(retain.iter().map(|name| (*name).to_owned()).collect()),
        };
        self
    }

    fn has(mut self, slots: impl IntoIterator<Item = Slot>) -> Self {
        self.slots.extend(slots);
        self
    }

    fn ours(mut self, names: &[&str]) -> Self {
        self.ours = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    fn retained(mut self, names: &[&str]) -> Self {
        self.retained = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    fn ask<T>(&self, question: impl FnOnce(&Situation<'_>) -> T) -> T {
        let dynamic = Dynamic::from_map(self.dynamic.as_object().expect("an object"));
        let tags = self
            .cluster
            .member(&self.me)
            .map(Member::tags)
            .unwrap_or_default();
        question(&Situation {
            me: &self.me,
            tags: &tags,
            dynamic: &dynamic,
            cluster: &self.cluster,
            place: self.place,
            major: self.major,
            slots: &self.slots,
            retained: &self.retained,
            ours: &self.ours,
        })
    }

    /// The changes in short: `+a` physical, `+a(db/p)` logical, `-a`, `a>5`, `copy a`.
    #[track_caller]
    fn does(&self, expected: &str) {
        let short = |change: &Change| match &change.op {
            Op::Create(SlotKind::Physical) => format!("+{}", change.slot),
            Op::Create(SlotKind::Logical { database, plugin }) => {
                format!("+{}({database}/{plugin})", change.slot)
            }
            Op::Drop => format!("-{}", change.slot),
            Op::Advance { to, .. } => format!("{}>{}", change.slot, to.0),
            Op::Copy { .. } => format!("copy {}", change.slot),
        };
        let done: Vec<String> = self.ask(|s| changes(s).iter().map(short).collect());
        assert_eq!(done.join(" "), expected);
    }
}

const LOGICAL: &str = r#"{"slots": {"l": {"type": "logical", "database": "db", "plugin": "p"}}}"#;

fn with_logical() -> Value {
    serde_json::from_str(LOGICAL).expect("valid")
}

// ---- members ----

#[test]
fn the_leader_has_a_slot_for_everybody_else() {
    world(Place::Primary).does("+a +c");
    world(Place::StandbyLeader).does("+a +c");
    world(Place::Primary)
        .config(json!({"member_slots_ttl": 0}))
        .does("+a +c");
}

#[test]
fn whoever_may_lead_has_them_too() {
    world(REPLICA).does("+a +c");
}

#[test]
fn without_a_ttl_only_those_who_stream_from_here_count() {
    let none = json!({"member_slots_ttl": 0});
    world(REPLICA).config(none.clone()).does("");
    world(REPLICA)
        .config(none.clone())
        .with("c", json!({"replicatefrom": "b"}))
        .does("+c");
    // The leader streams from nobody, whatever its tag says.
    world(REPLICA)
        .config(none.clone())
        .with("a", json!({"replicatefrom": "b"}))
        .does("");
    world(Place::Primary)
        .config(none)
        .with("c", json!({"replicatefrom": "a"}))
        .does("+a");
}

#[test]
fn a_member_that_never_leads_keeps_only_its_own_followers() {
    world(REPLICA)
        .with("b", json!({"nofailover": true}))
        .with("d", json!({"replicatefrom": "b"}))
        .status(&[("x", 5)], &["x"])
        .does("+d");
}

#[test]
fn a_member_that_does_not_stream_has_no_slot() {
    world(Place::Primary)
        .with("c", json!({"nostream": true}))
        .does("+a");
}

#[test]
fn nobody_has_a_slot_for_himself() {
    world(Place::Primary)
        .config(json!({"slots": {"b": 0}}))
        .retained(&["b"])
        .does("+a +c");
}

#[test]
fn a_tag_that_names_nobody_means_the_leader() {
    world(Place::Primary)
        .config(json!({"member_slots_ttl": 0}))
        .with("c", json!({"replicatefrom": "gone"}))
        .does("+a +c");
}

#[test]
fn two_members_with_one_slot_name_are_one_slot_and_the_one_who_uses_it_counts() {
    let build = world(Place::Primary)
        .with("x-1", json!({"replicatefrom": "a"}))
        .with("x.1", json!({}));
    let slot = build.ask(|s| wanted(s)["x_1"].clone());
    assert!(slot.expected_active);
}

#[test]
fn without_slots_there_are_none() {
    world(REPLICA)
        .config(json!({"postgresql": {"use_slots": false}, "slots": {"p": 0}}))
        .does("");
}

// ---- members that are away ----

#[test]
fn the_slot_of_a_member_that_is_away_is_kept_while_the_leader_says_so() {
    let there = || [physical("a", 900), physical("c", 900)];
    let leader = world(Place::Primary).without("c").has(there()).ours(&["a", "c"]);
    leader.does("-c");
    world(Place::Primary)
        .without("c")
        .has(there())
        .ours(&["a", "c"])
        .retained(&["c"])
        .does("");
    let replica = || world(REPLICA).without("c").has(there()).ours(&["a", "c"]);
    replica().does("-c");
    replica().status(&[("c", 950)], &["c"]).does("c>950");
}

#[test]
fn a_member_is_away_for_member_slots_ttl_and_not_a_moment_longer() {
    const TTL: Duration = Duration::from_secs(1800);
    let at = |seconds: u64| Boottime(0) + Duration::from_secs(seconds);
    let here = world(Place::Primary).cluster;
    let away = world(Place::Primary)
        .without("c")
        .status(&[], &["a", "b", "c"])
        .cluster;
    let mut retention = Retention::default();
    retention.note(&here, &"b".into(), TTL, at(0));
    retention.note(&away, &"b".into(), TTL, at(1799));
    assert!(
        retention.names(TTL, at(1799)).contains("c"),
        "a lease is shorter than this"
    );
    retention.note(&away, &"b".into(), TTL, at(1800));
    assert!(!retention.names(TTL, at(1800)).contains("c"));
    // It does not come back from `/status`, which has it until the next write.
    retention.note(&away, &"b".into(), TTL, at(1801));
    assert!(!retention.names(TTL, at(1801)).contains("c"));
    let written = world(Place::Primary)
        .without("c")
        .status(&[], &["a", "b"])
        .cluster;
    retention.note(&written, &"b".into(), TTL, at(1802));
    // One that returns is there again.
    retention.note(&here, &"b".into(), TTL, at(1803));
    assert!(retention.names(TTL, at(1803)).contains("c"));
    assert_eq!(
        retention.names(Duration::ZERO, at(1803)),
        BTreeSet::new(),
        "a ttl of 0 keeps nobody"
    );
}

#[test]
fn whoever_wins_the_lock_gives_the_absent_the_whole_time_again() {
    const TTL: Duration = Duration::from_secs(1800);
    let at = |seconds: u64| Boottime(0) + Duration::from_secs(seconds);
    let away = world(Place::Primary).without("c").status(&[], &["c"]).cluster;
    let mut retention = Retention::default();
    retention.note(&away, &"b".into(), TTL, at(0));
    retention.rest();
    retention.note(&away, &"b".into(), TTL, at(1790));
    assert!(retention.names(TTL, at(3000)).contains("c"));
}

// ---- positions ----

#[test]
fn a_slot_that_nobody_uses_here_follows_the_leaders() {
    let build = |published: u64| {
        world(REPLICA)
            .status(&[("a", 700), ("c", published)], &[])
            .has([physical("a", 700), physical("c", 600)])
    };
    build(650).does("c>650");
    build(600).does("");
    build(500).does(""); // never back
    build(2000).does("c>1000"); // and not past what is replayed here
}

#[test]
fn a_slot_in_use_is_moved_by_its_user() {
    world(REPLICA)
        .status(&[("c", 650)], &[])
        .has([physical("a", 700), active(physical("c", 600))])
        .does("");
    world(REPLICA)
        .with("c", json!({"replicatefrom": "b"}))
        .status(&[("c", 650)], &[])
        .has([physical("a", 700), physical("c", 600)])
        .does("");
}

#[test]
fn cascading_members_and_old_leaders_tell_their_position_themselves() {
    let there = || [physical("a", 700), physical("c", 600), physical("d", 600)];
    world(REPLICA)
        .with("d", json!({"replicatefrom": "c"}))
        .at("a", 800)
        .at("c", 990)
        .at("d", 900)
        .status(&[("a", 750), ("c", 650), ("d", 640)], &[])
        .has(there())
        .does("a>800 c>650 d>900");
    world(Place::Primary)
        .with("d", json!({"replicatefrom": "c"}))
        .at("d", 900)
        .status(&[("d", 640)], &[])
        .has(there())
        .does("d>900");
}

#[test]
fn a_leader_of_an_older_software_publishes_nothing_of_members() {
    let mut build = world(REPLICA)
        .at("c", 900)
        .has([physical("a", 700), physical("c", 600)]);
    build.does("");
    build.cluster.members[0].data.version = "3.3.2".into();
    build.does("c>900");
}

// ---- permanent slots ----

#[test]
fn permanent_physical_slots_are_on_whoever_may_lead() {
    let config = json!({"member_slots_ttl": 0, "slots": {"p": {"type": "physical"}}});
    world(Place::Primary).config(config.clone()).does("+a +c +p");
    world(REPLICA).config(config.clone()).does("+p");
    world(REPLICA)
        .config(config.clone())
        .status(&[("p", 800)], &[])
        .has([physical("p", 600)])
        .does("p>800");
    world(REPLICA)
        .config(config)
        .with("b", json!({"nofailover": true}))
        .does("");
}

#[test]
fn permanent_logical_slots_are_made_by_the_leader_and_copied_by_the_others() {
    let there = || [physical("a", 1000), physical("c", 1000)];
    world(Place::Primary)
        .config(with_logical())
        .has(there())
        .does("+l(db/p)");
    world(REPLICA).config(with_logical()).has(there()).does("");
    world(REPLICA)
        .config(with_logical())
        .has(there())
        .status(&[("l", 800)], &[])
        .does("copy l");
}

#[test]
fn a_logical_slot_follows_its_consumer_and_never_what_is_replayed() {
    let build = |published: u64, slot: Slot| {
        world(REPLICA)
            .config(with_logical())
            .status(&[("l", published)], &[])
            .has([physical("a", 1000), physical("c", 1000), slot])
    };
    build(800, logical("l", 700)).does("l>800");
    build(2000, logical("l", 700)).does("l>1000");
    build(600, logical("l", 700)).does("");
    build(800, active(logical("l", 700))).does("");
}

#[test]
fn a_permanent_slot_of_the_other_kind_of_cluster_is_not_kept() {
    let slots = json!({"x": {"cluster_type": "primary"}, "y": {"cluster_type": "standby"}, "z": 0,
        "l": {"type": "logical", "database": "db", "plugin": "p"}});
    let config = json!({"member_slots_ttl": 0, "slots": slots});
    world(REPLICA)
        .config(config.clone())
        .status(&[("l", 5)], &[])
        .does("copy l +x +z");
    let mut standby = config;
    standby["standby_cluster"] = json!({"host": "h"});
    // No logical slots there.
    world(REPLICA)
        .config(standby.clone())
        .status(&[("l", 5)], &[])
        .does("+y +z");
    world(Place::StandbyLeader).config(standby).does("+a +c +y +z");
}

#[test]
fn behind_a_member_that_does_not_stream_there_are_no_logical_slots() {
    let config = || {
        let mut config = with_logical();
        config["member_slots_ttl"] = json!(0);
        config
    };
    let build = || world(REPLICA).config(config()).status(&[("l", 5)], &[]);
    build().does("copy l");
    build().with("b", json!({"nostream": true})).does("");
    build()
        .with("b", json!({"replicatefrom": "c"}))
        .with("c", json!({"nostream": true}))
        .does("");
    build()
        .with("b", json!({"replicatefrom": "c"}))
        .with("c", json!({"replicatefrom": "b"}))
        .does("+c copy l");
}

#[test]
fn a_member_that_is_also_permanent_is_kept_when_it_is_long_gone() {
    world(Place::Primary)
        .config(json!({"slots": {"c": 0}}))
        .without("c")
        .has([physical("a", 5), physical("c", 5)])
        .ours(&["a", "c"])
        .does("");
}

// ---- dropping ----

#[test]
fn what_was_taken_out_of_the_configuration_goes_if_it_was_ours() {
    let there = || {
        [
            physical("a", 5),
            physical("c", 5),
            physical("p", 5),
            logical("l", 5),
        ]
    };
    world(Place::Primary).has(there()).ours(&["p", "l"]).does("-l -p");
    world(Place::Primary).has(there()).does("");
}

#[test]
fn what_a_person_made_stays() {
    world(Place::Primary)
        .has([physical("a", 5), physical("c", 5), physical("mine", 5)])
        .does("");
}

#[test]
fn a_slot_in_use_a_temporary_one_and_all_in_maintenance_mode_stay() {
    let all = |slot: Slot| {
        world(Place::Primary)
            .has([physical("a", 5), physical("c", 5), slot])
            .ours(&["p"])
    };
    all(physical("p", 5)).does("-p");
    all(active(physical("p", 5))).does("");
    all(Slot {
        temporary: true,
        ..physical("p", 5)
    })
    .does("");
    all(physical("p", 5)).config(json!({"pause": true})).does("");
}

#[test]
fn ignored_slots_are_nobodys_business() {
    let rules = json!({"ignore_slots": [{"name": "p", "type": "physical"}, {"plugin": "p"}]});
    let there = [
        physical("a", 5),
        physical("c", 5),
        physical("p", 5),
        logical("l", 5),
    ];
    world(Place::Primary)
        .config(rules)
        .has(there)
        .ours(&["p", "l"])
        .does("");
}

#[test]
fn slots_of_members_that_are_not_wanted_here_go() {
    world(REPLICA)
        .config(json!({"member_slots_ttl": 0}))
        .has([physical("a", 5), physical("c", 5)])
        .does("-a -c");
    // A logical slot with the name of a member is no member's.
    world(REPLICA)
        .config(json!({"member_slots_ttl": 0}))
        .has([logical("c", 5)])
        .does("");
}

#[test]
fn a_slot_whose_wal_is_gone_is_made_anew() {
    let lost = |slot: Slot| Slot { lost: true, ..slot };
    world(REPLICA)
        .config(with_logical())
        .has([physical("a", 5), lost(physical("c", 5)), lost(logical("l", 5))])
        .does("-c -l");
    // A person's own lost slot is his.
    world(REPLICA)
        .has([physical("a", 5), physical("c", 5), lost(physical("x", 5))])
        .does("");
}

#[test]
fn a_permanent_slot_with_other_attributes_is_made_anew() {
    let slots = |slot: Slot| world(Place::Primary).has([physical("a", 5), physical("c", 5), slot]);
    let other = Slot {
        kind: kind("db", "q"),
        ..logical("l", 5)
    };
    slots(other.clone()).config(with_logical()).does("-l");
    slots(active(other)).config(with_logical()).does("");
    slots(physical("l", 5)).config(with_logical()).does("-l");
    // A member's name on somebody's logical slot proves nothing.
    world(Place::Primary)
        .has([physical("a", 5), logical("c", 5)])
        .does("");
}

#[test]
fn a_physical_slot_that_keeps_no_wal_is_made_anew() {
    let empty = Slot {
        restart: None,
        ..physical("c", 5)
    };
    world(REPLICA).has([physical("a", 5), empty]).does("-c");
}

#[test]
fn a_physical_slot_that_nobody_uses_must_not_hold_old_rows() {
    let rows = |slot: Slot| Slot { xmin: true, ..slot };
    world(REPLICA)
        .has([physical("a", 5), rows(physical("c", 5))])
        .does("-c");
    world(REPLICA)
        .has([physical("a", 5), rows(active(physical("c", 5)))])
        .does("");
    // On the leader it is the member's own, back in a moment; and all that an absent one has.
    world(Place::Primary)
        .has([physical("a", 5), rows(physical("c", 5))])
        .does("");
    world(Place::Primary)
        .without("c")
        .retained(&["c"])
        .has([physical("a", 5), rows(physical("c", 5))])
        .does("");
}

#[test]
fn slots_that_postgres_synchronizes_are_left_to_it() {
    let failover = |synced: bool| Slot {
        failover: true,
        synced,
        ..logical("l", 5)
    };
    let at = |place: Place, slot: Slot| {
        let mut build = world(place)
            .status(&[("l", 800)], &[])
            .has([physical("a", 1000), physical("c", 1000), slot])
            .ours(&["l"]);
        build.major = 17;
        build
    };
    for config in [json!({}), with_logical()] {
        at(Place::Primary, failover(false))
            .config(config.clone())
            .does("");
        at(REPLICA, failover(true)).config(config.clone()).does("");
        // Left from a time as primary: in the way of the synchronization.
        at(REPLICA, failover(false)).config(config).does("-l");
    }
    let ignored = json!({"ignore_slots": [{"name": "l"}]});
    at(REPLICA, failover(false)).config(ignored).does("");
}

#[test]
fn switching_slots_off_does_not_cost_a_consumer_its_place() {
    let mut config = with_logical();
    config["postgresql"] = json!({"use_slots": false});
    world(Place::Primary)
        .config(config)
        .has([physical("a", 5), logical("l", 5)])
        .ours(&["a", "l"])
        .does("-a");
}

// ---- the record ----

#[test]
fn ours_is_what_is_wanted_or_was_and_is_still_there() {
    let build = world(Place::Primary)
        .config(json!({"slots": {"p": 0}}))
        .has([
            physical("a", 5),
            physical("old", 5),
            physical("mine", 5),
            logical("c", 5),
        ])
        .ours(&["old", "gone"]);
    let ours = build.ask(|s| record(s, &wanted(s)));
    assert_eq!(ours.into_iter().collect::<Vec<_>>(), ["a", "old", "p"]);
}

// ---- /status ----

fn status_of(build: &World) -> String {
    let status = build.ask(|s| status(s, &wanted(s), Lsn(1000)));
    serde_json::to_string(&status).expect("plain data")
}

#[test]
fn status_has_our_slots_our_own_name_and_the_members_to_keep() {
    let build = world(Place::Primary)
        .config(json!({"slots": {"p": 0, "l": {"type": "logical", "database": "db", "plugin": "p"}}}))
        .has([
            physical("a", 5),
            physical("p", 6),
            logical("l", 7),
            physical("mine", 8),
        ])
        .retained(&["a", "b", "c", "p"]);
    assert_eq!(
        status_of(&build),
        r#"{"optime":1000,"slots":{"a":5,"b":1000,"l":7,"p":6},"retain_slots":["a","b","c"]}"#
    );
    let none = world(Place::Primary)
        .config(json!({"member_slots_ttl": 0, "slots": {"p": 0}}))
        .has([physical("a", 5), physical("p", 6)]);
    assert_eq!(status_of(&none), r#"{"optime":1000,"slots":{"b":1000,"p":6}}"#);
}

// ---- feedback, readiness, copying ----

#[test]
fn feedback_is_insisted_on_where_logical_slots_live_or_below() {
    let needs = |build: &World| {
        let dynamic = Dynamic::from_map(build.dynamic.as_object().expect("an object"));
        let tags = build
            .cluster
            .member(&build.me)
            .map(Member::tags)
            .unwrap_or_default();
        needs_feedback(&dynamic, &build.cluster, &build.me, &tags)
    };
    let build = || world(REPLICA).config(with_logical());
    assert!(needs(&build()));
    assert!(!needs(&world(REPLICA)));
    assert!(!needs(&world(REPLICA).config(json!({"slots": {"p": 0}}))));
    assert!(!needs(&build().with("b", json!({"nostream": true}))));
    assert!(!needs(&build().with("b", json!({"nofailover": true}))));
    let cascade = build()
        .with("b", json!({"nofailover": true}))
        .with("c", json!({"replicatefrom": "b"}));
    assert!(needs(&cascade));
    let mut standby = with_logical();
    standby["standby_cluster"] = json!({"host": "h"});
    assert!(!needs(&world(REPLICA).config(standby)));
}

#[test]
fn a_copied_slot_is_safe_once_the_leader_protects_what_it_needs() {
    let leader = |ours: Option<u32>, logical: u32| LeaderSlots {
        ours,
        logical: BTreeMap::from([("l".to_owned(), logical)]),
    };
    let mut readiness = Readiness::default();
    readiness.begin(["l".to_owned()]);
    assert!(readiness.note(&leader(None, 700)).is_empty(), "no feedback yet");
    assert!(readiness.note(&leader(Some(690), 710)).is_empty());
    // What counts is what the leader's slot needed then, not what it needs now.
    assert!(readiness.note(&leader(Some(709), 800)).is_empty());
    assert_eq!(readiness.unready().collect::<Vec<_>>(), ["l"]);
    assert_eq!(readiness.note(&leader(Some(710), 900)), ["l"]);
    assert!(readiness.is_complete());
    // Transaction numbers go round.
    readiness.begin(["l".to_owned()]);
    assert!(readiness.note(&leader(Some(u32::MAX - 5), 3)).is_empty());
    assert_eq!(readiness.note(&leader(Some(4), 9)), ["l"]);
    readiness.begin(["l".to_owned()]);
    readiness.keep(|_| false);
    assert!(readiness.is_complete());
}

// ---- attribution ----

#[test]
fn every_retained_byte_has_an_owner() {
    let build = world(Place::Primary)
        .config(json!({"slots": {"p": 0}, "ignore_slots": [{"name": "i"}]}))
        .retained(&["away"])
        .has([
            physical("a", 900),
            physical("away", 100),
            physical("p", 200),
            physical("i", 300),
            physical("old", 400),
            physical("mine", 500),
            Slot {
                failover: true,
                ..logical("f", 5)
            },
            Slot {
                restart: None,
                ..physical("c", 0)
            },
        ])
        .ours(&["old"]);
    let shares = build.ask(|s| retained(s, Lsn(1000)));
    let shown: Vec<(&str, &str, Option<u64>)> = shares
        .iter()
        .map(|share| (share.slot.name.as_str(), share.owner.as_str(), share.bytes))
        .collect();
    assert_eq!(
        shown,
        [
            ("a", "member", Some(100)),
            ("away", "absent member", Some(900)),
            ("p", "permanent", Some(800)),
            ("i", "ignored", Some(700)),
            ("old", "leftover", Some(600)),
            ("mine", "unknown", Some(500)),
            ("f", "failover", Some(999)),
            ("c", "member", None),
        ]
    );
}

#[test]
fn an_idle_slot_that_holds_a_lot_back_is_worth_a_warning() {
    let share = |slot: Slot, end: u64| {
        let build = world(Place::Primary).has([slot]);
        let mut shares = build.ask(|s| retained(s, Lsn(end)));
        shares.remove(0).is_worth_a_warning()
    };
    assert!(share(physical("x", 0), RETAINED_WARN + 1));
    assert!(!share(physical("x", 0), RETAINED_WARN));
    assert!(!share(active(physical("x", 0)), RETAINED_WARN + 1));
}

#[test]
fn nothing_is_done_where_all_is_as_it_should_be() {
    let build = world(REPLICA)
        .config(with_logical())
        .status(&[("a", 1000), ("c", 900), ("l", 800)], &["a", "b", "c"])
        .has([physical("a", 1000), physical("c", 900), logical("l", 800)]);
    build.does("");
}
