//! The shard table in the world: created once, followed by work, never misleading, replaced, refused,
//! converted.

use super::*;
use crate::table::Entry;
use crate::token::{EPOCH_MAX, EPOCH_STEP_MAX};

/// One replica with four shards at work.
fn alone() -> World {
    let mut world = World::new();
    world.join("a", 4);
    world.until("all to run", 3000, |w| w.all_run(4));
    world
}

fn entries(world: &World) -> BTreeMap<ShardId, Entry> {
    world.server.table.as_ref().unwrap().entries.clone()
}

fn set_entry(world: &mut World, shard: ShardId, entry: Entry) {
    let known = world.server.table.as_ref().unwrap().version.clone();
    let version = world.server.next(Some(&known));
    let table = world.server.table.as_mut().unwrap();
    table.version = version;
    table.entries.insert(shard, entry);
}

#[test]
fn the_first_replica_creates_the_table_and_every_entry_follows_its_lease() {
    let world = World::balanced_three();
    let entries = entries(&world);
    assert_eq!(entries.len(), 32);
    for (id, lease) in &world.server.shards {
        let entry = Entry {
            epoch: lease.epoch,
            holder: lease.holder.clone(),
            incarnation: lease.incarnation.clone(),
        };
        assert_eq!(entries[id], entry);
    }
}

#[test]
fn a_new_fleet_begins_with_the_lowest_epochs() {
    let world = World::balanced_three();
    assert!(world.server.shards.values().all(|lease| lease.epoch <= 3));
}

#[test]
fn table_entry_ahead_of_its_lease_stops_work_until_the_lease_is_raised() {
    let mut world = alone();
    let foreign = Entry {
        epoch: 500,
        holder: "x".into(),
        incarnation: "x-1".into(),
    };
    set_entry(&mut world, ShardId(1), foreign);
    world.until("the epoch to rise", 1000, |w| {
        w.nodes["a"].running.get(&ShardId(1)) == Some(&501)
    });
    assert_eq!(world.nodes["a"].halted, [(ShardId(1), Reason::Raised)]);
    assert_eq!(entries(&world)[&ShardId(1)].holder, "a");
}

#[test]
fn an_entry_far_behind_its_lease_is_reached_in_steps() {
    let mut world = alone();
    let known = world.server.shards[&ShardId(1)].version.clone();
    let version = world.server.next(Some(&known));
    let lease = world.server.shards.get_mut(&ShardId(1)).unwrap();
    (lease.epoch, lease.version) = (3 * EPOCH_STEP_MAX, version);
    world.until("work to go on", 2000, |w| {
        let epoch = w.nodes["a"].running.get(&ShardId(1));
        epoch.is_some_and(|epoch| *epoch >= 3 * EPOCH_STEP_MAX)
    });
}

#[test]
fn a_lease_with_an_impossible_epoch_stops_its_shard_and_comes_back_above_the_table_when_deleted() {
    let mut world = alone();
    let known = world.server.shards[&ShardId(1)].version.clone();
    let version = world.server.next(Some(&known));
    let lease = world.server.shards.get_mut(&ShardId(1)).unwrap();
    (lease.epoch, lease.version) = (EPOCH_MAX + 1, version);
    world.run(3000);
    assert_eq!(world.held("a"), 3, "the others go on");
    world.server.shards.remove(&ShardId(1));
    world.until("it to run again", 9000, |w| w.all_run(4));
    assert!(world.nodes["a"].running[&ShardId(1)] < 10);
}

#[test]
fn deleted_table_stops_all_replicas_until_it_is_recreated() {
    let mut world = World::balanced_three();
    world.server.table = None;
    world.step();
    world.step();
    let stopped = |node: &super::world::Node| {
        let lost = node
            .halted
            .iter()
            .filter(|(_, reason)| *reason == Reason::TableLost);
        lost.count()
    };
    let all: usize = world.nodes.values().map(stopped).sum();
    assert_eq!(all, 32);
    world.until("all to run under a new table", 3000, |w| w.all_run(32));
}

#[test]
fn replaced_table_stops_all_replicas_even_if_its_deletion_was_not_observed() {
    let mut world = World::balanced_three();
    let mut other = world.server.table.clone().unwrap();
    other.version = world.server.next(None);
    for entry in other.entries.values_mut() {
        *entry = Entry::vacant(0);
    }
    world.server.table = Some(other);
    world.step();
    for node in world.nodes.values() {
        let lost = node
            .halted
            .iter()
            .filter(|(_, reason)| *reason == Reason::TableLost);
        assert!(lost.count() >= 10, "{:?}", node.halted);
    }
    world.until("all to run under it", 3000, |w| w.all_run(32));
}

#[test]
fn replica_without_write_access_to_the_table_hands_over_its_shards() {
    let mut world = World::balanced_three();
    world.server.refuses_table_of = Some("b".into());
    world.node("c").frozen = true;
    world.until("the other survivor to hold what c held", 15_000, |w| {
        w.all_run(32)
    });
    assert!(world.held("a") > 11, "{}", world.held("a"));
    assert!(world.server.members["b"].barred);
    world.run(5000);
    assert!(world.all_run(32), "it receives nothing meanwhile");
    world.server.refuses_table_of = None;
    world.until("it to be eligible again", 5000, |w| {
        !w.server.members["b"].barred
    });
}

#[test]
fn refused_table_entry_does_not_block_others() {
    let mut world = World::new();
    world.join("a", 4);
    // Someone else edits the table before the first write of an entry.
    world.until("a table", 3000, |w| w.server.table.is_some());
    let foreign = Entry {
        epoch: 1,
        holder: "x".into(),
        incarnation: "x-1".into(),
    };
    set_entry(&mut world, ShardId(2), foreign);
    world.until("all to run", 9000, |w| w.all_run(4));
    assert_eq!(world.nodes["a"].running[&ShardId(2)], 2);
}

#[test]
fn another_number_of_shards_converts_the_table_before_any_lease() {
    let mut world = World::balanced_three();
    let before = world.server.table.as_ref().unwrap().highest_epoch();
    for name in ["a", "b", "c"] {
        world.node(name).frozen = true;
    }
    world.join("x", 64);
    world.join("y", 64);
    world.until("all to run", 15_000, |w| w.held("x") + w.held("y") == 64);
    let table = world.server.table.as_ref().unwrap();
    assert_eq!((table.shards, table.entries.len()), (64, 64));
    assert!(table.entries.values().all(|entry| entry.epoch > before));
}

#[test]
fn lost_replies_of_the_table_are_settled() {
    for lost in 1..40 {
        let mut world = World::new();
        world.join("a", 4);
        world.until("a table", 3000, |w| w.server.table.is_some());
        world.node("a").lose_replies = lost;
        world.until("all to run", 20_000, |w| w.all_run(4));
    }
}
