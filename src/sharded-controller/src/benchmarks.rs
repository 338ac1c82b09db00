//! What benchmarks drive of the internals. No part of the interface: it may change at any time.

use shard_ownership::hash::ShardId;

use crate::backoff::Verdict;
use crate::object::ObjectKey;
use crate::queue::{Limits, Queue};
use crate::rate_limit::{RateLimit, Scope};

/// The queue of a replica, with all shards open.
#[derive(Debug)]
pub struct ReplicaQueue(Queue);

impl ReplicaQueue {
    /// A queue with these shards, and a limiter that is never reached.
    #[must_use]
    pub fn new(capacity: usize, rate_limit: RateLimit, shards: u16) -> Self {
        let mut queue = Queue::new(Limits {
            capacity,
            rate_limit,
            scope: Scope::Object,
        });
        for shard in 0..shards {
            queue.open(ShardId(shard));
        }
        Self(queue)
    }

    /// Adds an object, or brings it forward; whether there was room.
    pub fn add(&mut self, shard: ShardId, key: &ObjectKey, due_ms: u64) -> bool {
        self.0.add(shard, key, due_ms).is_ok()
    }

    /// Starts the next object and ends it, to be due again then; whether one was due.
    pub fn cycle(&mut self, now_ms: u64, again_ms: u64) -> bool {
        let Some(run) = self.0.pop(now_ms) else {
            return false;
        };
        self.0.done(&run.key, Verdict::Settled { due_ms: again_ms });
        true
    }
}
