//! The queue in single situations; random histories are in the model beside this file.
#![allow(clippy::unwrap_used)]

use super::model::{key, queue};
use super::*;

fn open_queue(shards: u16) -> Queue {
    let mut queue = queue(1000, "1000000/1s", Scope::Object);
    (0..shards).for_each(|shard| queue.open(ShardId(shard)));
    queue
}

#[test]
fn a_burst_in_one_shard_does_not_starve_another() {
    let mut queue = open_queue(2);
    for n in 0..100 {
        queue.add(ShardId(0), &key(n), 0).unwrap();
    }
    queue.add(ShardId(1), &key(100), 5).unwrap();
    assert_eq!(queue.pop(5).unwrap().key, key(0));
    let next: Vec<ObjectKey> = (0..2).map(|_| queue.pop(5).unwrap().key).collect();
    assert!(next.contains(&key(100)), "{next:?}");
}

#[test]
fn a_full_queue_refuses_new_keys_and_keeps_serving_those_it_has() {
    let mut queue = queue(2, "100/60s", Scope::Object);
    queue.open(ShardId(0));
    queue.add(ShardId(0), &key(0), 50).unwrap();
    queue.add(ShardId(0), &key(1), 60).unwrap();
    let refused = queue.add(ShardId(0), &key(2), 60);
    assert_eq!(refused, Err(AddError::Full { capacity: 2 }));
    assert_eq!(queue.add(ShardId(0), &key(1), 10), Ok(Added::Queued));
    assert_eq!(queue.add(ShardId(0), &key(1), 20), Ok(Added::Known));
    assert_eq!(queue.pop(100).unwrap().key, key(1));
    assert_eq!(queue.pop(100).unwrap().key, key(0));
    assert_eq!(
        queue.add(ShardId(0), &key(2), 0),
        Err(AddError::Full { capacity: 2 })
    );
    queue.done(&key(0), Verdict::Gone);
    assert_eq!(queue.add(ShardId(0), &key(2), 0), Ok(Added::Queued));
}

#[test]
fn change_replaces_the_latest_due_entry_and_both_are_kept() {
    let mut queue = queue(2, "100/60s", Scope::Object);
    (0..2).for_each(|shard| queue.open(ShardId(shard)));
    queue.add(ShardId(0), &key(0), 300).unwrap();
    queue.add(ShardId(0), &key(1), 60).unwrap();
    assert!(queue.take_missing().is_empty() && !queue.has_room());
    assert_eq!(queue.add(ShardId(1), &key(2), 5), Ok(Added::Queued));
    assert_eq!(queue.attempts(0), None, "it was due last");
    assert_eq!(queue.take_missing(), BTreeSet::from([ShardId(0)]));
    // Everything else is due no later.
    let refused = queue.add(ShardId(1), &key(3), 60);
    assert_eq!(refused, Err(AddError::Full { capacity: 2 }));
    assert_eq!(queue.take_missing(), BTreeSet::from([ShardId(1)]));
    assert_eq!(queue.take_missing(), BTreeSet::new());
    // Offering an existing key again does not change it.
    assert_eq!(queue.add_missing(ShardId(0), &key(1), 0), Ok(Added::Known));
    assert_eq!(queue.pop(5).unwrap().key, key(2));
    queue.done(&key(2), Verdict::Settled { due_ms: 300 });
    assert_eq!(queue.add_missing(ShardId(0), &key(0), 6), Ok(Added::Queued));
    assert_eq!(queue.attempts(2), None);
    queue.purge(ShardId(1));
    assert!(!queue.has_missing(), "a shard that is closed lacks nothing");
}

#[test]
fn a_change_does_not_cut_the_pause_of_a_throttled_object_short() {
    let mut queue = open_queue(1);
    queue.add(ShardId(0), &key(0), 0).unwrap();
    queue.pop(0).unwrap();
    queue.add(ShardId(0), &key(0), 1).unwrap();
    queue.done(&key(0), Verdict::Throttled { until_ms: 5000 });
    queue.add(ShardId(0), &key(0), 2).unwrap();
    assert_eq!(queue.pop(4999), None);
    assert_eq!(queue.next_due(), Some(5000));
    assert_eq!(queue.pop(5000).unwrap().key, key(0));
}

#[test]
fn nothing_starts_while_the_queue_is_held() {
    let mut queue = open_queue(1);
    queue.add(ShardId(0), &key(0), 0).unwrap();
    queue.hold_until(700);
    queue.hold_until(300);
    assert_eq!(queue.pop(699), None);
    assert_eq!(queue.next_due(), Some(700));
    assert!(queue.pop(700).is_some());
}

/// Runs one object repeatedly, as fast as allowed, and returns when the runs started.
fn starts_ms(queue: &mut Queue, until_ms: u64) -> Vec<u64> {
    let mut starts_ms = Vec::new();
    for now_ms in 0..until_ms {
        queue.add(ShardId(0), &key(0), now_ms).unwrap();
        if let Some(run) = queue.pop(now_ms) {
            starts_ms.push(now_ms);
            let due_ms = now_ms + 1_000_000;
            queue.done(&run.key, Verdict::Settled { due_ms });
        }
    }
    starts_ms
}

#[test]
fn frequently_changing_object_is_deferred_once_its_bucket_is_empty() {
    let mut queue = queue(10, "5/1s", Scope::Object);
    queue.open(ShardId(0));
    assert_eq!(starts_ms(&mut queue, 700), [0, 1, 2, 3, 4, 200, 400, 600]);
    assert_eq!(queue.deferred_total(), 4);
    queue.add(ShardId(0), &key(1), 700).unwrap();
    assert_eq!(
        queue.pop(700).unwrap().key,
        key(1),
        "another object has a bucket of its own"
    );
}

#[test]
fn in_scope_replica_all_objects_share_one_bucket() {
    let mut queue = queue(10, "5/1s", Scope::Replica);
    queue.open(ShardId(0));
    assert_eq!(starts_ms(&mut queue, 700), [0, 1, 2, 3, 4, 200, 400, 600]);
    assert_eq!(queue.deferred_total(), 4);
    queue.add(ShardId(0), &key(1), 700).unwrap();
    assert_eq!(queue.pop(700), None);
    assert_eq!(queue.next_due(), Some(800));
}

#[test]
fn the_bucket_of_an_object_goes_with_the_object() {
    let mut queue = queue(10, "1/1s", Scope::Object);
    queue.open(ShardId(0));
    assert_eq!(starts_ms(&mut queue, 10), [0]);
    queue.forget(&key(0));
    assert!(queue.entries.is_empty());
    queue.add(ShardId(0), &key(0), 10).unwrap();
    assert!(queue.pop(10).is_some());
}
