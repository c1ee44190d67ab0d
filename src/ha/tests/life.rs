//! Decisions of several members, fed back turn by turn.

use super::{
    builder::*,
    world::{Pg, World},
};
use crate::ha::Shutdown;

fn healthy() -> World {
    let mut world = World::new(&["a", "b", "c"]);
    world.until("a first leader", secs(30), World::healthy);
    world.run(secs(12));
    world
}

fn leader(world: &World) -> String {
    world
        .cluster
        .leader
        .as_ref()
        .map_or_else(String::new, |leader| leader.name.0.clone())
}

fn another(world: &World, than: &str) -> String {
    let mut names = world.nodes.keys().filter(|name| *name != than);
    names.next().expect("three members").clone()
}

#[test]
fn three_empty_members_become_a_cluster_with_one_bootstrap() {
    let mut world = World::new(&["a", "b", "c"]);
    let took = world.until("a first leader", secs(30), World::healthy);
    assert!(took < secs(10), "{took:?}");
    let began = |log: &[String]| log.iter().any(|line| line.contains("Begin(Bootstrap)"));
    assert_eq!(world.nodes.values().filter(|n| began(&n.log)).count(), 1);
}

#[test]
fn a_bootstrap_whose_member_dies_is_begun_again_by_another() {
    let mut world = World::new(&["a", "b"]);
    world.tick();
    world.tick();
    assert_eq!(world.cluster.initialize.as_deref(), Some(""));
    world.kill("a");
    let took = world.until("a leader", secs(120), World::healthy);
    assert!(took > TTL && took < TTL * 3, "{took:?}");
    // The one that came back empty joins.
    world.boot("a");
    world.until("both", secs(30), World::healthy);
}

#[test]
fn a_planned_switchover_takes_moments_and_loses_nothing() {
    for named in [true, false] {
        let mut world = healthy();
        let old = leader(&world);
        let candidate = another(&world, &old);
        world.request(Some(&old), named.then_some(candidate.as_str()));
        let took = world.until("a new leader", secs(5), |w| {
            w.cluster.failover.is_none() && w.nodes.get(&leader(w)).is_some_and(|n| n.pg == Pg::Primary)
        });
        assert!(took <= secs(2), "{took:?}\n{}", world.report());
        let new = leader(&world);
        assert_ne!(new, old);
        assert!(!named || new == candidate);
        let took = world.until("the old one follows", secs(20), World::healthy);
        assert!(took <= secs(3), "{took:?}");
        // Stopped cleanly at the switch point: no rewind, no clone.
        let repaired = |line: &String| line.contains("Rewind") || line.contains("Clone(");
        let log = &world.nodes[&old].log;
        let after = log.iter().skip_while(|line| !line.contains("Graceful"));
        assert!(!after.clone().any(repaired), "{log:?}");
    }
}

#[test]
fn a_crashed_postgres_is_back_on_the_same_member_in_a_second() {
    let mut world = healthy();
    let old = leader(&world);
    world.crash(&old);
    world.tick();
    let took = world.until("service", secs(5), World::healthy);
    assert!(took <= secs(1), "{took:?}");
    assert_eq!(leader(&world), old);
}

#[test]
fn a_killed_leader_is_replaced_within_ttl_and_comes_back_by_rewind() {
    let mut world = healthy();
    let old = leader(&world);
    world.kill(&old);
    let took = world.until("a new leader", secs(60), World::healthy);
    assert!(took <= TTL + secs(2), "{took:?}");
    world.boot(&old);
    let took = world.until("the old one follows", secs(30), World::healthy);
    assert!(took <= secs(3), "{took:?}");
    assert!(
        world.nodes[&old]
            .log
            .iter()
            .any(|line| line.contains("Begin(Rewind"))
    );
}

#[test]
fn a_stopped_leader_hands_over_in_a_moment() {
    let mut world = healthy();
    let old = leader(&world);
    world.node(&old).shutdown = Some(Shutdown::HandOver);
    let took = world.until("a new leader", secs(15), |w| {
        w.healthy() && w.nodes.values().filter(|n| n.alive).count() == 2
    });
    assert!(took <= secs(12), "{took:?}"); // up to loop_wait until the world's node looks at its signal
    assert_ne!(leader(&world), old);
    assert!(world.nodes[&old].log.iter().any(|line| line == "exit Ok"));
}

#[test]
fn a_leader_that_hands_over_to_nobody_takes_the_lock_back() {
    let mut world = healthy();
    let old = leader(&world);
    let others: Vec<_> = world.nodes.keys().filter(|n| **n != old).cloned().collect();
    world.request(Some(&old), None);
    let began = |world: &World| {
        let mut logs = world.nodes.values().flat_map(|node| &node.log);
        logs.any(|line| line.contains("Begin(Demote"))
    };
    world.until("the hand-over begins", secs(5), began);
    for name in &others {
        world.kill(name);
    }
    world.run(secs(1));
    assert_eq!(world.cluster.leader, None);
    let took = world.until("service", secs(60), World::healthy);
    assert!(took <= secs(8), "{took:?}");
    assert_eq!(leader(&world), old);
    assert_eq!(world.cluster.failover, None, "it would hand over again");
}

#[test]
fn a_candidate_cut_off_from_the_dcs_does_not_leave_the_cluster_without_leader() {
    let mut world = healthy();
    let old = leader(&world);
    let candidate = another(&world, &old);
    world.node(&candidate).cut_off = true;
    world.request(Some(&old), Some(&candidate));
    world.run(TTL * 3);
    assert!(
        world
            .nodes
            .get(&leader(&world))
            .is_some_and(|n| n.pg == Pg::Primary),
        "{}",
        world.report()
    );
    world.node(&candidate).cut_off = false;
    world.until("all", secs(30), World::healthy);
}

#[test]
fn the_older_primary_alone_never_leads_and_the_newer_one_ends_the_wait() {
    let mut world = healthy();
    let first = leader(&world);
    world.kill(&first);
    world.until("a second leader", secs(60), World::healthy);
    world.run(secs(20));
    let names: Vec<_> = world.nodes.keys().cloned().collect();
    for name in &names {
        world.kill(name);
    }
    world.run(secs(60));
    world.boot(&first);
    world.run(secs(300));
    assert_eq!(world.cluster.leader, None, "{}", world.report());
    for name in &names {
        if *name != first {
            world.boot(name);
        }
    }
    world.until("the newest data leads", secs(30), World::healthy);
    assert_ne!(leader(&world), first);
}

#[test]
fn all_members_stopped_come_back_in_any_order_with_the_newest_data() {
    for order in ["abc", "acb", "bac", "bca", "cab", "cba"] {
        for gap in [0, 5, 40] {
            let mut world = healthy();
            let last = leader(&world);
            for name in ["a", "b", "c"] {
                world.kill(name);
            }
            let newest = world.nodes[&last].data.clone().expect("data").position;
            world.run(secs(60));
            for name in order.chars() {
                world.boot(&name.to_string());
                world.run(secs(gap));
            }
            let took = world.until("a leader", secs(60), World::healthy);
            let now = world.nodes[&leader(&world)].data.clone().expect("data");
            // After ttl alone a replica whose lag is within the limit may lead; before that only the newest.
            if gap < 30 {
                assert_eq!(leader(&world), last, "{order} {gap} {took:?}");
                assert!(now.position >= newest);
            }
        }
    }
}

#[test]
fn a_wiped_dcs_is_filled_again_by_the_primary() {
    let mut world = healthy();
    let old = leader(&world);
    world.cluster = crate::model::Cluster::default();
    world.run(secs(15));
    world.until("registered", secs(10), World::healthy);
    assert_eq!(leader(&world), old);
    assert_eq!(world.cluster.initialize.as_deref(), Some(SYSTEM));
    assert!(world.cluster.config.is_some());
}

#[test]
fn a_frozen_leader_is_replaced_and_joins_again_after_it_thaws() {
    let mut world = healthy();
    let old = leader(&world);
    world.node(&old).frozen = true;
    world.run(TTL * 2);
    assert_ne!(leader(&world), old);
    world.node(&old).frozen = false;
    world.run(secs(1));
    if !world.nodes[&old].alive {
        world.boot(&old); // init's fence was faster; the container is started again
    }
    world.until("all", secs(30), World::healthy);
    assert_ne!(leader(&world), old);
}

#[test]
fn a_failed_promotion_never_leaves_the_lock_to_others_while_the_request_stands() {
    let mut world = healthy();
    let old = leader(&world);
    let slow = another(&world, &old);
    world.node(&slow).promotion_stalls = true;
    world.kill(&old);
    // The world itself sees to it that nobody releases a lock under a postgres that may still be promoted.
    let took = world.until("the other leads", secs(90), World::healthy);
    assert!(took < TTL + secs(20), "{took:?}");
    assert!(
        world.nodes[&slow]
            .log
            .iter()
            .any(|line| line.contains("promotion failed"))
    );
}

#[test]
fn a_leader_whose_postgres_hangs_is_replaced() {
    let mut world = healthy();
    let old = leader(&world);
    world.node(&old).hung = true;
    let took = world.until("a new leader", TTL * 2 + secs(30), World::healthy);
    assert!(took < TTL, "{took:?}");
    assert_ne!(leader(&world), old);
}

#[test]
fn a_replica_that_hangs_is_restarted() {
    let mut world = healthy();
    let replica = another(&world, &leader(&world));
    world.node(&replica).hung = true;
    world.until("all", TTL * 2 + secs(30), World::healthy);
}

#[test]
fn a_member_with_another_timeline_of_the_same_number_is_copied_anew() {
    let mut world = healthy();
    let first = leader(&world);
    world.kill(&first);
    world.until("a second timeline", secs(60), World::healthy);
    world.boot(&first);
    world.until("all", secs(30), World::healthy);
    let replica = another(&world, &leader(&world));
    world.kill(&replica);
    world.fork(&replica);
    world.boot(&replica);
    world.until("all", secs(30), World::healthy);
    let log = &world.nodes[&replica].log;
    assert!(log.iter().any(|line| line.contains("Begin(Clone")), "{log:?}");
}

#[test]
fn a_replica_whose_wal_is_gone_is_copied_anew() {
    let mut world = healthy();
    let replica = another(&world, &leader(&world));
    world.node(&replica).wal_is_gone = true;
    world.run(secs(1));
    let took = world.until("all", secs(90), World::healthy);
    assert!(took > secs(55), "{took:?}");
}

#[test]
fn a_leader_that_is_lost_together_with_the_store_is_replaced_by_a_replica() {
    let mut world = healthy();
    let old = leader(&world);
    world.kill(&old);
    world.cluster = crate::model::Cluster::default();
    // Nobody can tell that the old one is dead, and not only cut off.
    let took = world.until("a new leader", secs(60), World::healthy);
    assert!(took >= TTL && took < TTL + secs(20), "{took:?}");
    assert_eq!(world.cluster.initialize.as_deref(), Some(SYSTEM));
}

#[test]
fn a_member_that_is_ahead_and_cut_off_does_not_keep_the_others_from_leading() {
    let mut world = healthy();
    let old = leader(&world);
    let ahead = another(&world, &old);
    world.node(&ahead).cut_off = true;
    world.kill(&old);
    for (name, node) in &mut world.nodes {
        if *name != ahead {
            node.data.as_mut().expect("data").position -= 5;
        }
    }
    let leads = |world: &World| {
        world
            .nodes
            .get(&leader(world))
            .is_some_and(|n| n.pg == Pg::Primary && n.alive)
    };
    world.until("a leader", TTL * 4, leads);
    assert_ne!(leader(&world), ahead);
    world.node(&ahead).cut_off = false;
    world.until("all", secs(30), World::healthy);
}

#[test]
fn after_a_wipe_and_a_cold_start_the_older_primary_does_not_lead() {
    let mut world = healthy();
    let first = leader(&world);
    world.kill(&first);
    world.until("a second leader", secs(60), World::healthy);
    world.run(secs(20));
    let second = leader(&world);
    for name in ["a", "b", "c"] {
        world.kill(name);
    }
    world.cluster = crate::model::Cluster::default();
    world.run(secs(60));
    for name in ["a", "b", "c"] {
        world.boot(name);
    }
    world.until("the newest data leads", TTL + secs(30), World::healthy);
    assert_eq!(leader(&world), second);
}

/// Chance without a crate: a linear congruential generator (Knuth's MMIX constants).
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[test]
fn any_sequence_of_faults_heals_in_bounded_time() {
    for seed in 0..60 {
        let mut chance = Chance(seed * 7919 + 1);
        let mut world = healthy();
        let mut story = Vec::new();
        for _ in 0..8 {
            let name = ["a", "b", "c"][usize::try_from(chance.below(3)).expect("small")];
            let fault = chance.below(10);
            story.push((name, fault));
            match fault {
                0 => world.crash(name),
                1 => world.kill(name),
                2 => world.node(name).cut_off = true,
                3 => world.node(name).frozen = true,
                4 => world.node(name).shutdown = Some(Shutdown::HandOver),
                5 => {
                    let old = leader(&world);
                    world.request(
                        Some(&old).filter(|o| !o.is_empty()).map(String::as_str),
                        Some(name),
                    );
                }
                6 => world.node(name).hung = world.node(name).pg != Pg::Down,
                7 => world.node(name).promotion_stalls = true,
                8 => world.node(name).wal_is_gone = true,
                _ => {
                    world.kill(name);
                    world.boot(name); // at once: the lock may still carry its name
                }
            }
            world.run(ms(100 * chance.below(450)));
            if chance.below(2) == 0 {
                heal(&mut world);
            }
        }
        heal(&mut world);
        story.push(("all", 99));
        let start = world.now;
        while !world.healthy() {
            heal(&mut world); // whoever was fenced is started again, as a container would be
            world.run(secs(1));
            assert!(
                world.now.since(start) < TTL * 4,
                "seed {seed} {story:?}\nlock {:?} request {:?}\n{}",
                world.cluster.leader,
                world.cluster.failover,
                world.report()
            );
        }
    }
}

fn heal(world: &mut World) {
    for name in ["a", "b", "c"] {
        world.node(name).cut_off = false;
        world.node(name).frozen = false;
        world.node(name).promotion_stalls = false;
        if !world.node(name).alive {
            world.boot(name);
        }
    }
}
