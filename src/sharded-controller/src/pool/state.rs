//! What the pool keeps behind its one lock: the queue, the permits of the shards, what runs, what failed.

use std::collections::{BTreeSet, HashMap};

use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::backoff::Verdict;
use crate::failures::FailureLog;
use crate::object::ObjectKey;
use crate::permit::ShardPermit;
use crate::queue::{Queue, Run};
use shard_ownership::hash::ShardId;

/// Maximum interval at which a full queue is offered its missing objects, in milliseconds.
const MISSING_EVERY_MS: u64 = 60_000;

/// The right under which a shard's objects run.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) permit: ShardPermit,
    pub(super) stop: CancellationToken,
    /// Distinguishes one start of a shard from the next.
    generation: u64,
}

impl Slot {
    /// Whether the permit was ended by its owner, without a word to the pool.
    fn ended(&self) -> bool {
        self.permit.ended().now_or_never().is_some()
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) queue: Queue,
    pub(super) failures: FailureLog,
    slots: HashMap<ShardId, Slot>,
    generation: u64,
    /// Start of each run.
    running: HashMap<ObjectKey, u64>,
    deferred_reported: u64,
    /// When the queue was last offered what it lacks.
    offered_ms: u64,
}

/// Statistics that change with time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct PoolStats {
    pub(super) depth: usize,
    pub(super) delayed: usize,
    pub(super) head_age_ms: u64,
    pub(super) unfinished_ms: u64,
    pub(super) longest_ms: u64,
}

impl State {
    pub(super) fn new(queue: Queue) -> Self {
        Self {
            queue,
            failures: FailureLog::default(),
            slots: HashMap::new(),
            generation: 0,
            running: HashMap::new(),
            deferred_reported: 0,
            offered_ms: 0,
        }
    }

    pub(super) fn start_shard(&mut self, permit: ShardPermit, stop: CancellationToken) {
        let shard = permit.shard();
        self.generation += 1;
        let slot = Slot {
            permit,
            stop,
            generation: self.generation,
        };
        if let Some(before) = self.slots.insert(shard, slot) {
            before.stop.cancel();
        }
        self.queue.open(shard);
    }

    pub(super) fn resume_shard(&mut self, shard: ShardId) {
        // The queue alone would open a shard that was stopped meanwhile.
        if self.slots.contains_key(&shard) {
            self.queue.open(shard);
        }
    }

    pub(super) fn stop_shard(&mut self, shard: ShardId) {
        if let Some(slot) = self.slots.remove(&shard) {
            slot.stop.cancel();
        }
        self.queue.purge(shard);
    }

    pub(super) fn stop_all(&mut self) {
        let shards: Vec<ShardId> = self.slots.keys().copied().collect();
        shards.into_iter().for_each(|shard| self.stop_shard(shard));
    }

    /// The next run that may start, under a permit that has not ended.
    pub(super) fn pop(&mut self, now_ms: u64) -> Option<(Run, Slot)> {
        while let Some(run) = self.queue.pop(now_ms) {
            match self.slots.get(&run.shard) {
                Some(slot) if !slot.ended() => {
                    self.running.insert(run.key.clone(), now_ms);
                    let slot = slot.clone();
                    return Some((run, slot));
                }
                _ => {
                    self.stop_shard(run.shard);
                    self.queue.done(&run.key, Verdict::Again { due_ms: now_ms });
                }
            }
        }
        None
    }

    /// Whether a run of this slot still counts.
    pub(super) fn is_current(&self, slot: &Slot) -> bool {
        let current = self.slots.get(&slot.permit.shard());
        current.is_some_and(|current| current.generation == slot.generation) && !slot.ended()
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    pub(super) fn finish(&mut self, key: &ObjectKey, verdict: Verdict) {
        self.running.remove(key);
        self.queue.done(key, verdict);
    }

    /// The shards whose objects have to be offered to the queue again, if that is due.
    pub(super) fn take_missing(&mut self, now_ms: u64) -> BTreeSet<ShardId> {
        let waited_ms = now_ms.saturating_sub(self.offered_ms);
        let is_due = self.queue.has_room() || waited_ms >= MISSING_EVERY_MS;
        if !self.queue.has_missing() || !is_due {
            return BTreeSet::new();
        }
        self.offered_ms = now_ms;
        self.queue.take_missing()
    }

    /// Runs deferred by the rate limiter since the last call.
    pub(super) fn newly_deferred(&mut self) -> u64 {
        let total = self.queue.deferred_total();
        let reported = std::mem::replace(&mut self.deferred_reported, total);
        total - reported
    }

    pub(super) fn stats(&mut self, now_ms: u64) -> PoolStats {
        let ages = || {
            self.running
                .values()
                .map(|from_ms| now_ms.saturating_sub(*from_ms))
        };
        PoolStats {
            unfinished_ms: ages().sum(),
            longest_ms: ages().max().unwrap_or(0),
            depth: self.queue.depth(now_ms),
            delayed: self.queue.delayed(now_ms),
            head_age_ms: self.queue.head_age_ms(now_ms),
        }
    }
}
