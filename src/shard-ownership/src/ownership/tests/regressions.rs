//! Regressions: cases that the simulation and the model found, and outages.

use std::collections::BTreeSet;

use super::*;

#[test]
fn replica_that_missed_updates_of_a_deleted_lease_leaves_it_to_its_holder() {
    let mut world = World::balanced_three();
    let is_of_c = |lease: &&crate::lease::ShardLease| lease.holder == "c";
    let id = world.server.shards.values().find(is_of_c).unwrap().shard;
    world.node("c").frozen = true;
    world.until("the survivors to hold all", 9000, |w| w.all_run(32));
    let taken = world.server.shards[&id].clone();
    // Its holder stalls for a moment; the replica that comes back remembers it as its own.
    world.node(&taken.holder).frozen = true;
    world.server.shards.remove(&id);
    world.node("c").frozen = false;
    world.run(2000);
    assert!(
        world
            .server
            .shards
            .get(&id)
            .is_none_or(|lease| lease.epoch > taken.epoch),
        "an epoch in which another replica works was handed over: {:?}",
        world.server.shards[&id]
    );
    world.node(&taken.holder).frozen = false;
    world.until("its holder to go on", 1000, |w| {
        w.nodes[&taken.holder]
            .running
            .get(&id)
            .is_some_and(|epoch| *epoch > taken.epoch)
    });
}

/// Replicas with a complete record leave it to the holder, which does not know that it is the
/// holder; the holder remembers the former one, which knows that it is not.
#[test]
fn lease_deleted_before_its_new_holder_observed_it_is_recreated() {
    let mut world = World::new();
    world.leader = false;
    for name in ["a", "b"] {
        world.join(name, 4);
    }
    world.until("all to run", 3000, |w| w.all_run(4));
    // All replicas have observed all Leases.
    world.run(100);
    world.tampered = true;
    let mut lease = world.server.shards[&ShardId(0)].clone();
    let (from, to) = if lease.holder == "a" {
        ("a", "b")
    } else {
        ("b", "a")
    };
    world.node(to).frozen = true;
    lease.epoch += 1;
    (lease.holder, lease.incarnation) = (to.to_owned(), format!("{to}-1"));
    lease.version = world.server.next(Some(&lease.version));
    world.server.shards.insert(lease.shard, lease.clone());
    world.run(100);
    world.server.shards.remove(&lease.shard);
    let (shard, uid) = (lease.shard, lease.version.uid.clone());
    world
        .node(from)
        .queue
        .push(Event::ShardDeleted { shard, uid });
    world.run(100);
    world.node(to).frozen = false;
    world.until("all to run again", 9000, |w| w.all_run(4));
    let back = &world.server.shards[&shard];
    // No replica had started under the epoch of the deleted Lease: the table would show it.
    assert!(back.epoch >= lease.epoch, "{lease:?} became {back:?}");
}

#[test]
fn new_replica_facing_deleted_leases_does_not_reuse_epochs() {
    let mut world = World::new();
    world.join("a", 4);
    world.until("all to run", 3000, |w| w.all_run(4));
    world.node("a").frozen = true;
    world.tampered = true;
    world.server.shards.clear();
    world.join("b", 4);
    world.run(2000);
    assert!(
        world
            .server
            .shards
            .values()
            .all(|lease| lease.epoch > world.nodes["a"].running[&lease.shard])
    );
}

#[test]
fn replica_leaving_right_after_a_lapse_hands_over_instead_of_vacating() {
    let mut world = World::balanced_three();
    world.server.away = true;
    world.run(6000);
    world.node("a").queue.push(Event::Shutdown);
    world.server.away = false;
    world.until("it to exit", 12_000, |w| {
        let vacant = w
            .server
            .shards
            .values()
            .filter(|lease| lease.holder.is_empty());
        assert_eq!(vacant.count(), 0, "shards were vacated though others live");
        w.nodes["a"].exited
    });
    world.until("all to run", 3000, |w| w.all_run(32));
}

#[test]
fn leaving_without_an_api_server_respects_the_retry_interval() {
    let mut world = World::new();
    world.leader = false;
    world.join("a", 4);
    world.until("all to run", 3000, |w| w.all_run(4));
    world.join("b", 4);
    world.run(1000);
    assert_eq!(world.held("b"), 0);
    world.server.away = true;
    world.node("b").queue.push(Event::Shutdown);
    let before = world.server.requests;
    world.run(2000);
    let asked = world.server.requests - before;
    assert!((2..=30).contains(&asked), "{asked} requests in 2 s");
    world.server.away = false;
    world.until("it to exit", 2000, |w| w.nodes["b"].exited);
}

#[test]
fn an_epoch_lowered_by_hand_is_raised_above_the_table() {
    let mut world = World::balanced_three();
    let id = ShardId(3);
    let version = world
        .server
        .next(Some(&world.server.shards[&id].version.clone()));
    let lease = world.server.shards.get_mut(&id).unwrap();
    let (holder, epoch) = (lease.holder.clone(), lease.epoch);
    (lease.epoch, lease.version) = (0, version);
    world.until("the holder to go on above it", 1000, |w| {
        w.nodes[&holder]
            .running
            .get(&id)
            .is_some_and(|now| *now > epoch)
    });
}

#[test]
fn lease_edited_to_a_former_incarnation_of_its_holder_is_taken_back() {
    let mut world = World::balanced_three();
    let id = ShardId(5);
    let version = world
        .server
        .next(Some(&world.server.shards[&id].version.clone()));
    let lease = world.server.shards.get_mut(&id).unwrap();
    let (holder, epoch) = (lease.holder.clone(), lease.epoch);
    (lease.incarnation, lease.version) = ("another life".into(), version);
    world.until("the holder to go on above", 1000, |w| {
        w.nodes[&holder]
            .running
            .get(&id)
            .is_some_and(|now| *now > epoch)
    });
}

#[test]
fn a_successor_that_is_the_holder_itself_changes_nothing() {
    let mut world = World::balanced_three();
    world.leader = false;
    let id = ShardId(5);
    let version = world
        .server
        .next(Some(&world.server.shards[&id].version.clone()));
    let lease = world.server.shards.get_mut(&id).unwrap();
    lease.successor = Some(crate::lease::Successor {
        identity: lease.holder.clone(),
        incarnation: lease.incarnation.clone(),
    });
    lease.version = version;
    let before = lease.clone();
    world.run(2000);
    assert_eq!(world.server.shards[&id], before);
    assert!(world.all_run(32));
}

#[test]
fn running_fleet_recovers_from_leases_restored_from_backup() {
    let mut world = World::balanced_three();
    let backup = (
        world.server.members.clone(),
        world.server.shards.clone(),
        world.server.revision,
    );
    world.join("d", 32);
    world.until("the fourth to hold eight", 10_000, |w| {
        w.all_run(32) && w.held("d") == 8
    });
    let epochs: BTreeMap<ShardId, u32> = world
        .server
        .shards
        .iter()
        .map(|(id, lease)| (*id, lease.epoch))
        .collect();
    (
        world.server.members,
        world.server.shards,
        world.server.revision,
    ) = backup;
    world.tampered = true;
    world.run(2000);
    world.until("everything to run", 12_000, |w| {
        w.all_run(32) && w.held("d") == 8
    });
    for (id, lease) in &world.server.shards {
        assert!(
            lease.epoch >= epochs[id],
            "shard {id} fell back to epoch {}",
            lease.epoch
        );
    }
    world.node("a").queue.push(Event::Shutdown);
    world.until("a to leave as ever", 5000, |w| {
        w.nodes["a"].exited && w.all_run(32)
    });
}

#[test]
fn a_dead_incarnation_starts_nothing_while_the_next_one_is_awaited() {
    let mut world = World::new();
    world.join("a", 4);
    world.until("all to run", 3000, |w| w.all_run(4));
    let machine = &mut world.node("a").machine;
    let now_ms = machine.last_renewal_ms().unwrap() + 100;
    let died = machine.handle(now_ms, Event::MemberRead("a".into(), Ok(None)));
    assert!(died.contains(&Action::NeedIncarnation), "{died:?}");
    let after = machine.handle(now_ms + 1, Event::Tick);
    let starts = |action: &Action| matches!(action, Action::Admit { .. } | Action::Watch(_));
    assert!(!died.iter().chain(&after).any(starts), "{died:?} {after:?}");
}

#[test]
fn rejection_after_a_lost_reply_does_not_settle_the_write() {
    use crate::hash::ShardCount;
    use crate::lease::{ShardLease, Version};
    let settings = Settings::new("a", ShardCount::new(1).unwrap());
    let (heartbeat, departure) = (Heartbeat::new("a-1".into(), 0), Departure::new());
    let us = |now_ms| Us {
        now_ms,
        settings: &settings,
        heartbeat: &heartbeat,
        departure: &departure,
    };
    let mut out = Outbox::default();
    let mut shard = Shard::new(ShardId(0));
    shard.observe(ShardLease {
        shard: ShardId(0),
        version: Version {
            uid: "u".into(),
            resource_version: "1".into(),
        },
        holder: "a".into(),
        incarnation: "a-1".into(),
        epoch: 1,
        shards: 1,
        successor: None,
    });
    shard.write(us(0), lease_write::Intent::Vacate, 2, &mut out);
    assert!(shard.awaits(1));
    shard.written(0, WriteResult::Unknown, 200);
    shard.read_and_retry(us(300), &mut out);
    assert!(shard.awaits(2));
    shard.written(300, WriteResult::Rejected, 200);
    assert!(shard.keeps_us(), "the first request may still arrive");
}

/// What happens to a replica whose watch shows nothing meanwhile.
fn unseen(world: &mut World, name: &str, event: Event) {
    let mut node = world.nodes.remove(name).unwrap();
    node.queue.push(event);
    while let Some(event) = (!node.queue.is_empty()).then(|| node.queue.remove(0)) {
        for action in node.machine.handle(world.now_ms, event) {
            world.act(name, &mut node, action);
        }
    }
    world.nodes.insert(name.to_owned(), node);
}

/// Whom the shards of a replica are to go to.
fn successors(world: &World, of: &str) -> BTreeSet<String> {
    let shards = world.server.shards.values();
    let own = shards.filter(|lease| lease.holder == of);
    own.filter_map(|lease| Some(lease.successor.clone()?.identity))
        .collect()
}

/// An update asks an older one to leave as soon as a newer one is ready.
fn leaving_before_observing_newcomers() -> World {
    let mut world = World::balanced_three();
    world.join("x", 32);
    world.node("x").revision = "2".into();
    world.step();
    assert!(world.server.members.contains_key("x"));
    unseen(&mut world, "a", Event::Shutdown);
    assert!(world.server.members["a"].draining);
    assert_eq!(successors(&world, "a"), BTreeSet::new());
    world
}

#[test]
fn leaving_replica_reads_members_before_handing_over() {
    let mut world = leaving_before_observing_newcomers();
    world.step();
    assert_eq!(successors(&world, "a"), BTreeSet::from(["x".to_owned()]));
}

#[test]
fn leaving_replica_without_watch_events_does_not_wait_long() {
    let mut world = leaving_before_observing_newcomers();
    world.now_ms += 900;
    unseen(&mut world, "a", Event::Tick);
    assert_eq!(successors(&world, "a"), BTreeSet::new());
    world.now_ms += 100;
    unseen(&mut world, "a", Event::Tick);
    assert_ne!(successors(&world, "a"), BTreeSet::new());
}

/// The replica learns of the new holder, whose member Lease its watch never showed, by a read.
#[test]
fn replica_unaware_of_a_newcomer_takes_nothing_from_it() {
    let mut world = World::new();
    world.leader = false;
    world.join("a", 4);
    world.until("all to run", 3000, |w| w.all_run(4));
    world.tampered = true;
    world.node("a").frozen = true;
    world.server.shards.remove(&ShardId(0));
    world.join("b", 4);
    let hears_nothing = |world: &mut World| {
        for _ in 0..400 {
            world.step();
            unseen(world, "a", Event::Tick);
        }
    };
    hears_nothing(&mut world);
    let taken = world.server.shards[&ShardId(0)].clone();
    assert_eq!(taken.holder, "b");
    unseen(
        &mut world,
        "a",
        Event::ShardRead(ShardId(0), Ok(Some(taken.clone()))),
    );
    hears_nothing(&mut world);
    let now = &world.server.shards[&ShardId(0)];
    assert_eq!((&now.holder, now.epoch), (&taken.holder, taken.epoch));
    assert!(!world.server.members["b"].is_vacated());
    assert_eq!(
        world.nodes["b"].running.get(&ShardId(0)),
        Some(&taken.epoch)
    );
}
