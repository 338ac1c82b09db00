//! Whole fleets of the machine against Leases in memory, under a virtual clock.
#![allow(clippy::unwrap_used, clippy::panic)]

mod leaving;
mod order;
mod regressions;
mod table;
mod wakeup;
mod world;

use std::collections::BTreeMap;

use self::world::World;
use super::*;

#[test]
fn three_replicas_share_32_shards_and_a_fourth_gets_eight() {
    let mut world = World::balanced_three();
    let before: BTreeMap<ShardId, String> = holders(&world);
    world.join("d", 32);
    world.until("the fourth to hold eight", 10_000, |w| {
        w.all_run(32) && w.held("d") == 8
    });
    world.run(5000);
    for name in ["a", "b", "c", "d"] {
        assert_eq!(world.held(name), 8);
    }
    assert!(
        world.most_under_way <= 4,
        "more than an eighth moved at once"
    );
    let moved = holders(&world)
        .iter()
        .filter(|(s, h)| before[*s] != **h)
        .count();
    assert_eq!(moved, 8, "a join moves no more than the newcomer's share");
}

fn holders(world: &World) -> BTreeMap<ShardId, String> {
    let shards = world.server.shards.iter();
    shards
        .map(|(id, lease)| (*id, lease.holder.clone()))
        .collect()
}

#[test]
fn a_crash_is_taken_over_within_the_lifetime_and_a_second() {
    for phase_ms in (0..2000).step_by(250) {
        let mut world = World::balanced_three();
        world.run(phase_ms);
        world.node("b").frozen = true;
        let took_ms = world.until("the survivors to hold all", 7_000, |w| w.all_run(32));
        assert!(
            took_ms >= 4000,
            "a replica that may still act was taken for dead"
        );
    }
}

#[test]
fn a_second_death_during_a_takeover_orphans_nothing() {
    let mut world = World::balanced_three();
    world.node("b").frozen = true;
    world.run(3000);
    world.node("c").frozen = true;
    world.until("the last one to hold all", 12_000, |w| w.held("a") == 32);
}

#[test]
fn unavailable_api_server_does_not_make_members_dead() {
    let mut world = World::balanced_three();
    let before = holders(&world);
    world.server.away = true;
    world.run(9000);
    assert_eq!(world.held("a"), 0, "validity must have lapsed");
    world.server.away = false;
    world.until("all to resume", 3000, |w| w.all_run(32));
    world.run(5000);
    assert_eq!(
        holders(&world),
        before,
        "shards moved although no replica died"
    );
    assert!(world.nodes.values().all(|node| node.lives == 1));
}

#[test]
fn frozen_replica_detects_its_death_and_starts_a_new_incarnation() {
    let mut world = World::balanced_three();
    world.node("b").frozen = true;
    world.until("the survivors to hold all", 8000, |w| w.all_run(32));
    world.node("b").frozen = false;
    world.until("balance to return", 10_000, |w| {
        w.all_run(32) && w.held("b") == 10
    });
    assert_eq!(world.nodes["b"].lives, 2);
    assert!(
        world.nodes["b"]
            .halted
            .iter()
            .any(|(_, reason)| *reason == Reason::Lapsed)
    );
}

/// A user annotates the member Lease, which the replica replaces with every renewal.
fn request_drain(world: &mut World, name: &str) {
    let mut lease = world.server.members[name].clone();
    lease.version = world.server.next(Some(&lease.version));
    lease.drain_requested = true;
    world.server.members.insert(name.to_owned(), lease);
}

#[test]
fn drained_replica_gives_up_all_shards_and_its_request_outlives_renewals_and_restarts() {
    let mut world = World::balanced_three();
    request_drain(&mut world, "b");
    world.until("b to hold nothing", 10_000, |w| {
        w.all_run(32) && w.held("b") == 0
    });
    assert!(world.nodes["b"].halted.is_empty(), "work was cut short");
    world.run(30_000);
    assert!(world.server.members["b"].drain_requested);
    assert_eq!(world.held("b"), 0);
    // A new incarnation of the same replica continues from the Lease of the former one.
    world.node("b").frozen = true;
    world.until("b to be dead", 10_000, |w| {
        w.server.members["b"].is_vacated()
    });
    world.node("b").frozen = false;
    world.until("b to begin again", 10_000, |w| w.nodes["b"].lives == 2);
    world.run(10_000);
    assert!(world.server.members["b"].drain_requested);
    assert_eq!(world.held("b"), 0);
}

#[test]
fn drained_replica_takes_over_when_nobody_else_is_left() {
    let mut world = World::balanced_three();
    request_drain(&mut world, "b");
    world.until("b to hold nothing", 10_000, |w| {
        w.all_run(32) && w.held("b") == 0
    });
    world.node("a").frozen = true;
    world.node("c").frozen = true;
    world.until("the last one to hold all", 12_000, |w| w.held("b") == 32);
}

#[test]
fn leaving_hands_everything_back_and_leaves_no_lease() {
    let mut world = World::balanced_three();
    world.node("b").queue.push(Event::Shutdown);
    let took_ms = world.until("the others to hold all", 2000, |w| {
        w.nodes["b"].exited && w.held("a") + w.held("c") == 32
    });
    assert!(took_ms <= 1000, "took {took_ms} ms");
    assert!(!world.server.members.contains_key("b"));
    assert!(world.nodes["b"].halted.is_empty(), "work was cut short");
}

#[test]
fn hanging_work_is_cancelled_after_the_drain_timeout_and_the_shard_still_moves() {
    let mut world = World::balanced_three();
    world.node("b").drains = false;
    world.node("b").queue.push(Event::Shutdown);
    world.run(9000);
    assert_eq!(
        world.held("a") + world.held("c"),
        22 - usize::from(world.held("b") == 11)
    );
    world.until("the others to hold all", 3000, |w| {
        w.held("a") + w.held("c") == 32
    });
    assert!(
        world.nodes["b"]
            .halted
            .iter()
            .all(|(_, reason)| *reason == Reason::Leaving)
    );
}

#[test]
fn writes_with_lost_replies_are_settled() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.join(name, 32);
        world.node(name).lose_replies = 40;
    }
    world.until("all shards to run", 20_000, |w| w.all_run(32));
}

#[test]
fn a_deleted_shard_lease_comes_back_under_a_higher_epoch() {
    let mut world = World::balanced_three();
    let (id, epoch, holder) = {
        let lease = &world.server.shards[&ShardId(3)];
        (lease.shard, lease.epoch, lease.holder.clone())
    };
    world.server.shards.remove(&id);
    world.until("the holder to go on", 1000, |w| {
        w.nodes[&holder]
            .running
            .get(&id)
            .is_some_and(|now| *now > epoch)
    });
}

#[test]
fn all_leases_deleted_at_once_come_back_above_every_epoch() {
    let mut world = World::balanced_three();
    let before: BTreeMap<ShardId, u32> = world
        .server
        .shards
        .iter()
        .map(|(id, lease)| (*id, lease.epoch))
        .collect();
    world.server.shards.clear();
    world.until("all to run above", 5000, |w| {
        w.all_run(32) && w.server.shards.iter().all(|(id, l)| l.epoch > before[id])
    });
}

#[test]
fn a_restart_in_the_same_pod_takes_its_shards_back_at_once() {
    let mut world = World::balanced_three();
    let before = world.held("b");
    world.join("b", 32);
    world.node("b").lives = 7;
    let fresh = Ownership::new(
        world.nodes["b"].machine.settings.clone(),
        "b-7".into(),
        world.now_ms,
    );
    world.node("b").machine = fresh;
    let took_ms = world.until("b to go on", 2000, |w| w.all_run(32));
    assert!(took_ms <= 500, "took {took_ms} ms");
    assert_eq!(world.held("b"), before);
}

#[test]
fn another_number_of_shards_waits_until_the_old_number_has_gone() {
    let mut world = World::balanced_three();
    world.join("x", 16);
    world.run(9000);
    assert_eq!(world.held("x"), 0);
    assert!(world.nodes["x"].machine.is_standby());
    assert!(world.all_run(32));
    for name in ["a", "b", "c"] {
        world.node(name).frozen = true;
    }
    world.until("the standby to take all", 15_000, |w| w.held("x") == 16);
}

/// Longest time for which a shard was not worked on while `act` happened, in steps of 25 ms.
fn longest_gap(world: &mut World, act: impl FnOnce(&mut World)) -> u64 {
    world.unowned_ms.clear();
    act(world);
    world.unowned_ms.values().max().copied().unwrap_or(0)
}

#[test]
fn a_planned_handover_leaves_no_gap_when_a_replica_joins_or_leaves() {
    let mut world = World::balanced_three();
    let gap_ms = longest_gap(&mut world, |world| {
        world.join("d", 32);
        world.until("the fourth to hold eight", 10_000, |w| {
            w.all_run(32) && w.held("d") == 8
        });
    });
    assert!(
        gap_ms <= 50,
        "a shard stood still for {gap_ms} ms when one joined"
    );
    let gap_ms = longest_gap(&mut world, |world| {
        world.node("a").queue.push(Event::Shutdown);
        world.until("the others to hold all", 5000, |w| {
            w.nodes["a"].exited && w.all_run(32)
        });
    });
    assert!(
        gap_ms <= 50,
        "a shard stood still for {gap_ms} ms when one left"
    );
    assert!(world.nodes.values().all(|node| node.halted.is_empty()));
}

#[test]
fn last_replica_to_leave_vacates_its_shards() {
    let mut world = World::new();
    world.join("a", 4);
    world.until("all to run", 3000, |w| w.all_run(4));
    world.node("a").queue.push(Event::Shutdown);
    world.until("it to exit", 2000, |w| w.nodes["a"].exited);
    assert!(
        world
            .server
            .shards
            .values()
            .all(|lease| lease.holder.is_empty())
    );
    assert!(world.server.members.is_empty());
}

#[test]
fn new_fleet_distributes_shards_without_moving_any() {
    let mut world = World::balanced_three();
    for name in ["a", "b", "c"] {
        world.node(name).queue.push(Event::Shutdown);
    }
    world.until("all to exit", 3000, |w| {
        w.nodes.values().all(|node| node.exited)
    });
    let epochs = |world: &World| -> Vec<u32> {
        let leases = world.server.shards.values();
        leases.map(|lease| lease.epoch).collect()
    };
    let before = epochs(&world);
    for name in ["d", "e", "f"] {
        world.join(name, 32);
        world.run(100);
    }
    world.until("all to run", 1500, |w| w.all_run(32));
    world.run(5000);
    assert!(world.held("d") <= 11, "the first replica took all");
    let once: Vec<u32> = before.iter().map(|epoch| epoch + 1).collect();
    assert_eq!(epochs(&world), once, "a shard moved again");
}

#[test]
fn without_a_leader_balance_waits_and_nothing_else() {
    let mut world = World::balanced_three();
    world.leader = false;
    world.join("d", 32);
    world.run(3000);
    assert_eq!(world.held("d"), 0);
    world.node("b").frozen = true;
    world.until("all to run", 8000, |w| w.all_run(32));
    world.node("c").queue.push(Event::Shutdown);
    world.until("all to run", 3000, |w| w.nodes["c"].exited && w.all_run(32));
}

#[test]
fn shard_whose_successor_dies_before_the_move_stays() {
    let mut world = World::balanced_three();
    world.node("a").drains = false;
    world.node("b").drains = false;
    world.node("c").drains = false;
    world.join("d", 32);
    world.until("moves to be under way", 5000, |w| w.most_under_way > 0);
    world.run(500);
    world.node("d").frozen = true;
    for name in ["a", "b", "c"] {
        world.node(name).drains = true;
    }
    world.until("the fleet to be as before", 15_000, |w| {
        let planned = w.server.shards.values().filter(|l| l.successor.is_some());
        planned.count() == 0 && w.all_run(32)
    });
}

#[test]
fn in_a_rolling_update_no_older_replica_is_given_a_shard() {
    let mut world = World::balanced_three();
    let epochs = |world: &World| -> Vec<u32> {
        let shards = world.server.shards.values();
        shards.map(|lease| lease.epoch).collect()
    };
    let before_all = epochs(&world);
    for (old, new) in [("a", "x"), ("b", "y"), ("c", "z")] {
        let before: BTreeMap<&str, usize> =
            ["a", "b", "c"].map(|name| (name, world.held(name))).into();
        world.join(new, 32);
        world.node(new).revision = "2".into();
        world.run(2000);
        world.node(old).queue.push(Event::Shutdown);
        world.until("the old one to exit", 5000, |w| {
            w.nodes[old].exited && w.all_run(32)
        });
        for name in ["a", "b", "c"] {
            assert!(world.held(name) <= before[name], "{name} received a shard");
        }
    }
    world.until("balance", 9000, |w| {
        ["x", "y", "z"].iter().all(|n| w.held(n) >= 10)
    });
    let once: Vec<u32> = before_all.iter().map(|epoch| epoch + 1).collect();
    assert_eq!(epochs(&world), once, "each shard moves once");
}
