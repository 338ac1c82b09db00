//! Leaving: what is handed over when, and what is waited for.

use super::*;

/// "a" holds 32 shards, and "b" none; there is no fleet leader.
fn one_that_has_all() -> World {
    let mut world = World::new();
    world.leader = false;
    world.join("a", 32);
    world.until("all to run", 3000, |w| w.all_run(32));
    world.join("b", 32);
    world.run(3000);
    world
}

#[test]
fn leaving_replica_hands_over_one_of_32_at_a_time_without_waiting_for_slow_shards() {
    let mut world = one_that_has_all();
    // Requests take long from now on.
    world.node("a").drains = false;
    world.node("a").queue.push(Event::Shutdown);
    let handing_over = |w: &World| {
        w.nodes["a"]
            .machine
            .shards
            .values()
            .filter(|shard| matches!(shard.stage(), Stage::Draining(_)))
            .count()
    };
    world.until("the first to be handed over", 3000, |w| handing_over(w) > 0);
    assert_eq!(handing_over(&world), 1);
    world.run(150);
    assert_eq!(handing_over(&world), 2);
    world.until("all to be under way", 5000, |w| handing_over(w) == 32);
}

/// "a" leaves and "b" has listed everything.
fn about_to_hand_over() -> World {
    let mut world = one_that_has_all();
    world.node("a").queue.push(Event::Shutdown);
    world.until("all to be listed", 3000, |w| {
        w.server.members["b"].warm.len() == 32
    });
    world
}

#[test]
fn next_shard_is_handed_over_once_the_successor_works_on_the_last_one() {
    let mut world = about_to_hand_over();
    // In one step of this world, "b" writes its entry after "a" has handed over.
    let mut most = 0;
    for _ in 0..100 {
        let before = moved(&world);
        world.step();
        most = most.max(moved(&world) - before);
    }
    assert_eq!((moved(&world), most), (32, 1));
}

#[test]
fn slow_successor_holds_up_the_next_shard_for_an_eighth_of_a_second_only() {
    let mut world = about_to_hand_over();
    world.node("b").frozen = true;
    world.until("the first to move", 500, |w| moved(w) == 1);
    world.run(100);
    assert_eq!(moved(&world), 1);
    world.until("the second to move", 200, |w| moved(w) == 2);
}

fn moved(world: &World) -> usize {
    let leases = world.server.shards.values();
    leases.filter(|lease| lease.holder == "b").count()
}

/// "a" leaves, and "b" has listed every shard but one.
fn all_listed_but_one() -> World {
    let mut world = one_that_has_all();
    world.node("b").still_lists.insert(ShardId(5));
    world.node("a").queue.push(Event::Shutdown);
    world.until("all to be listed but one", 1500, |w| {
        w.server.members["b"].warm.len() == 31
    });
    world
}

#[test]
fn leaving_replica_hands_over_nothing_while_a_successor_still_lists() {
    let mut world = all_listed_but_one();
    world.run(500);
    assert_eq!(moved(&world), 0);
    world.node("b").queue.push(Event::Warm(ShardId(5)));
    world.until("all to move", 1500, |w| moved(w) == 32);
}

#[test]
fn slow_listing_successor_delays_only_its_own_shard() {
    let mut world = all_listed_but_one();
    world.until("the others to move", 3500, |w| moved(w) == 31);
    world.run(3000);
    assert_eq!(moved(&world), 31);
    world.until("the last one to move regardless", 10_000, |w| {
        moved(w) == 32
    });
}

#[test]
fn receiving_several_shards_needs_no_renewal_for_each() {
    let mut world = all_listed_but_one();
    let renewals = |w: &World| w.server.members["b"].renewal;
    world.node("b").queue.push(Event::Warm(ShardId(5)));
    world.until("all to be listed", 500, |w| {
        w.server.members["b"].warm.len() == 32
    });
    let before = renewals(&world);
    world.until("half of them to move", 500, |w| moved(w) >= 16);
    // The next renewal would have been due much later.
    assert_eq!(renewals(&world), before);
}
