//! The shard table in the world: created once, followed by work, never misleading, replaced, refused,
//! converted.

use super::us::Us;
use super::*;
use crate::hash::ShardCount;
use crate::lease::Version;
use crate::table::{Entry, ShardTable, TableChange, TableWrite};
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

/// The shard table as one replica with four shards sees it, and a test that answers its writes.
struct SingleView {
    settings: Settings,
    heartbeat: super::heartbeat::Heartbeat,
    departure: super::departure::Departure,
    view: TableView,
    out: super::outbox::Outbox,
    stored: ShardTable,
}

impl SingleView {
    fn new() -> Self {
        let count = ShardCount::new(4).unwrap();
        let stored = ShardTable {
            version: Version {
                uid: "table".into(),
                resource_version: "1".into(),
            },
            shards: 4,
            entries: count.shards().map(|id| (id, Entry::vacant(0))).collect(),
        };
        let mut view = Self {
            settings: Settings::new("me", count),
            heartbeat: super::heartbeat::Heartbeat::new("me-1".into(), 0),
            departure: super::departure::Departure::new(),
            view: TableView::new(count),
            out: super::outbox::Outbox::default(),
            stored,
        };
        view.reads(0);
        view
    }

    /// Reads what is stored, if a read is due.
    fn reads(&mut self, now_ms: u64) -> bool {
        self.view.refresh(now_ms, &mut self.out);
        let is_due = self.out.take().contains(&Action::ReadTable);
        if is_due {
            let stored = self.stored.clone();
            self.view.read(now_ms, Ok(Some(stored)), 100);
        }
        is_due
    }

    /// The write that is sent when these Leases are ours, all in epoch 1.
    fn writes(&mut self, held: &[u16]) -> Option<(WriteId, TableWrite)> {
        let us = Us {
            now_ms: 0,
            settings: &self.settings,
            heartbeat: &self.heartbeat,
            departure: &self.departure,
        };
        let claims = held.iter().map(|shard| Claim {
            shard: ShardId(*shard),
            epoch: 1,
        });
        self.view.write(us, false, claims, &mut self.out);
        let mut actions = self.out.take().into_iter();
        match (actions.next(), actions.next()) {
            (Some(Action::WriteTable(id, write)), None) => Some((id, write)),
            (None, None) => None,
            other => panic!("{other:?}"),
        }
    }

    /// The shards of the write that is sent, and its number.
    fn sends(&mut self, held: &[u16]) -> (WriteId, Vec<u16>) {
        let (id, write) = self.writes(held).unwrap();
        let TableChange::Entries { entries, .. } = write.change else {
            panic!("{write:?}");
        };
        (id, entries.keys().map(|shard| shard.0).collect())
    }

    fn stores(&mut self, id: WriteId, shards: &[u16]) {
        let revision: u64 = self.stored.version.resource_version.parse().unwrap();
        self.stored.version.resource_version = (revision + 1).to_string();
        for shard in shards {
            let entry = Entry {
                epoch: 1,
                holder: "me".into(),
                incarnation: "me-1".into(),
            };
            self.stored.entries.insert(ShardId(*shard), entry);
        }
        let done = WriteResult::Done(self.stored.clone());
        self.view.written(0, id, done, 100);
    }
}

#[test]
fn an_entry_does_not_wait_for_the_write_of_another_and_a_third_write_waits() {
    let mut me = SingleView::new();
    let (first, sent) = me.sends(&[0]);
    assert_eq!(sent, [0]);
    let (second, sent) = me.sends(&[0, 1]);
    assert_eq!(sent, [1], "an entry is in one write only");
    assert_eq!(me.writes(&[0, 1, 2, 3]), None, "two writes are in flight");
    me.stores(second, &[1]);
    let (third, sent) = me.sends(&[0, 1, 2, 3]);
    assert_eq!(sent, [2, 3]);
    me.stores(first, &[0]);
    me.stores(third, &[2, 3]);
    assert_eq!(me.writes(&[0, 1, 2, 3]), None);
    assert!(me.view.is_at_rest());
}

#[test]
fn nothing_is_sent_before_a_read_after_a_write_that_failed_beside_another() {
    let mut me = SingleView::new();
    let (first, _) = me.sends(&[0]);
    let (second, _) = me.sends(&[0, 1]);
    me.view.written(0, first, WriteResult::Unknown, 100);
    assert_eq!(me.writes(&[0, 1, 2]), None);
    assert!(me.reads(0));
    let (third, sent) = me.sends(&[0, 1, 2]);
    assert_eq!(sent, [0, 2], "the second write still awaits its answer");
    me.stores(second, &[1]);
    me.stores(third, &[0, 2]);
    assert!(me.view.is_at_rest());
}

#[test]
fn a_read_in_flight_does_not_settle_what_fails_after_it_was_sent() {
    let mut me = SingleView::new();
    let (first, _) = me.sends(&[0]);
    let (second, _) = me.sends(&[0, 1]);
    me.view.written(0, first, WriteResult::Conflict, 100);
    me.view.refresh(0, &mut me.out);
    assert_eq!(me.out.take(), [Action::ReadTable]);
    me.view.written(0, second, WriteResult::Unknown, 100);
    let before = me.stored.clone();
    me.view.read(0, Ok(Some(before)), 100);
    assert_eq!(me.writes(&[0, 1]), None, "the answer may be older");
    assert!(!me.reads(99), "a second failure is followed by a pause");
    assert!(me.reads(100));
    assert_eq!(me.sends(&[0, 1]).1, [0, 1]);
}

#[test]
fn refused_entries_are_sent_apart_two_at_a_time() {
    let mut me = SingleView::new();
    let (first, sent) = me.sends(&[0, 1, 2]);
    assert_eq!(sent, [0, 1, 2]);
    me.view.written(0, first, WriteResult::Rejected, 100);
    assert!(me.reads(0));
    assert_eq!(me.sends(&[0, 1, 2]).1, [0]);
    assert_eq!(me.sends(&[0, 1, 2]).1, [1]);
    assert_eq!(me.writes(&[0, 1, 2]), None);
}

#[test]
fn table_is_converted_only_when_no_write_is_in_flight() {
    let mut me = SingleView::new();
    let (first, _) = me.sends(&[0]);
    me.stored.shards = 8;
    me.stored.version.resource_version = "5".into();
    let stored = me.stored.clone();
    me.view.observe(stored);
    assert_eq!(me.writes(&[0]), None);
    me.view.written(0, first, WriteResult::Rejected, 100);
    assert!(me.reads(0));
    let (_, write) = me.writes(&[0]).unwrap();
    assert!(matches!(write.change, TableChange::Convert { .. }));
}
