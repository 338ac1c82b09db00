//! The queue of objects to reconcile: deduplicated, timed, fair between shards, bounded.
//!
//! Every key in it is in one of three places: waiting for its time (`timers`), due (in its shard's
//! `ready`), or running. A change that arrives during a run is kept beside the run and queued when
//! that run ends, so one object never runs twice at once. All operations are O(log n), but
//! [`Queue::purge`], which is that for each key of the shard.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::backoff::{Attempts, Verdict};
use crate::object::ObjectKey;
use crate::rate_limit::{Allowance, Scope};
use shard_ownership::hash::ShardId;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
mod types;

pub(crate) use types::{AddError, Added, Limits, Run};

/// Due time, then order of arrival.
type At = (u64, u64);

#[derive(Debug)]
enum Place {
    Waiting(At),
    Ready(At),
    Running {
        shard: ShardId,
        again_ms: Option<u64>,
    },
}

#[derive(Debug)]
struct Entry {
    /// `None` only while it runs: it was forgotten or purged and is removed when the run ends.
    home: Option<ShardId>,
    place: Place,
    attempts: Attempts,
    not_before_ms: u64,
    allowance: Allowance,
}

#[derive(Debug)]
struct Lane {
    keys: HashSet<ObjectKey>,
    ready: BTreeMap<At, ObjectKey>,
    admits: bool,
    turn: Option<u64>,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Queue {
    limits: Limits,
    entries: HashMap<ObjectKey, Entry>,
    lanes: HashMap<ShardId, Lane>,
    timers: BTreeMap<At, ObjectKey>,
    /// Shards with due work that may start, in the order of their turns.
    turns: BTreeMap<u64, ShardId>,
    in_flight: HashMap<ShardId, usize>,
    /// Shards with objects that found no room in the queue, or were dropped for others.
    missing: BTreeSet<ShardId>,
    sequence: u64,
    depth: usize,
    held_until_ms: u64,
    allowance: Allowance,
    deferred_total: u64,
}

impl Queue {
    /// An empty queue without open shards.
    #[must_use]
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            lanes: HashMap::new(),
            timers: BTreeMap::new(),
            turns: BTreeMap::new(),
            in_flight: HashMap::new(),
            missing: BTreeSet::new(),
            sequence: 0,
            depth: 0,
            held_until_ms: 0,
            allowance: Allowance::default(),
            deferred_total: 0,
        }
    }

    /// Opens a shard, or lets a draining one start runs again; its keys stay.
    pub(crate) fn open(&mut self, shard: ShardId) {
        let lane = self.lanes.entry(shard).or_insert_with(|| Lane {
            keys: HashSet::new(),
            ready: BTreeMap::new(),
            admits: true,
            turn: None,
        });
        lane.admits = true;
        self.line_up(shard);
    }

    /// Starts no more runs of a shard. Its keys and adds are kept for [`Queue::open`] or
    /// [`Queue::purge`]. Does nothing if the shard is not open.
    pub(crate) fn drain(&mut self, shard: ShardId) {
        if let Some(lane) = self.lanes.get_mut(&shard) {
            lane.admits = false;
            if let Some(turn) = lane.turn.take() {
                self.turns.remove(&turn);
            }
        }
    }

    /// Closes a shard and drops its keys; running ones are removed when their run ends.
    pub(crate) fn purge(&mut self, shard: ShardId) {
        self.drain(shard);
        let keys = self
            .lanes
            .get_mut(&shard)
            .map(|lane| std::mem::take(&mut lane.keys));
        for key in keys.into_iter().flatten() {
            self.forget(&key);
        }
        self.lanes.remove(&shard);
        self.missing.remove(&shard);
    }

    /// Drops a key; a running one is removed when its run ends.
    pub(crate) fn forget(&mut self, key: &ObjectKey) {
        self.unschedule(key);
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let home = entry.home.take();
        entry.attempts = Attempts::default();
        match &mut entry.place {
            Place::Running { again_ms, .. } => *again_ms = None,
            Place::Waiting(_) | Place::Ready(_) => {
                self.entries.remove(key);
            }
        }
        if let Some(lane) = home.and_then(|home| self.lanes.get_mut(&home)) {
            lane.keys.remove(key);
        }
    }

    /// Schedules a run of an object at a time, or sooner if one is scheduled sooner.
    ///
    /// A full queue makes room for a new key: the one whose time is furthest away, and later than that
    /// of the new one, is dropped. What is dropped or refused is not lost: see [`Queue::take_missing`].
    ///
    /// # Errors
    /// When the key is new and the queue is full of what is due no later, or the shard is not open.
    /// What the queue holds stays as it was.
    pub(crate) fn add(
        &mut self,
        shard: ShardId,
        key: &ObjectKey,
        due_ms: u64,
    ) -> Result<Added, AddError> {
        if !self.lanes.contains_key(&shard) {
            return Err(AddError::NotOpen { shard });
        }
        let Some(entry) = self.entries.get(key) else {
            let capacity = self.limits.capacity;
            if self.entries.len() >= capacity && !self.make_room(due_ms) {
                self.missing.insert(shard);
                return Err(AddError::Full { capacity });
            }
            self.admit(shard, key, due_ms);
            return Ok(Added::Queued);
        };
        if entry.home == Some(shard) {
            return Ok(self.bring_forward(key, due_ms));
        }
        self.move_to(shard, key, due_ms);
        Ok(Added::Queued)
    }

    /// Drops the key that waits longest, if that is for later than this time.
    fn make_room(&mut self, due_ms: u64) -> bool {
        let Some(((last_ms, _), key)) = self.timers.last_key_value() else {
            return false;
        };
        if *last_ms <= due_ms {
            return false;
        }
        let key = key.clone();
        let home = self.entries.get(&key).and_then(|entry| entry.home);
        self.missing.extend(home);
        self.forget(&key);
        true
    }

    /// As [`Queue::add`], for a key that the queue does not hold; one that it holds stays as it is.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn add_missing(
        &mut self,
        shard: ShardId,
        key: &ObjectKey,
        due_ms: u64,
    ) -> Result<Added, AddError> {
        match self.entries.contains_key(key) {
            true => Ok(Added::Known),
            false => self.add(shard, key, due_ms),
        }
    }

    /// Open shards with objects that found no room, or were dropped for others, since the last call:
    /// all objects in them have to be offered again.
    pub(crate) fn take_missing(&mut self) -> BTreeSet<ShardId> {
        std::mem::take(&mut self.missing)
    }

    /// Not all objects in these shards could be offered: [`Queue::take_missing`] returns those that are
    /// still open once more.
    pub(crate) fn mark_missing(&mut self, shards: &BTreeSet<ShardId>) {
        let open = shards.iter().filter(|shard| self.lanes.contains_key(shard));
        self.missing.extend(open);
    }

    /// Whether [`Queue::take_missing`] has anything to return.
    #[must_use]
    pub(crate) fn has_missing(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Whether a new key finds room without another being dropped.
    #[must_use]
    pub(crate) fn has_room(&self) -> bool {
        self.entries.len() < self.limits.capacity
    }

    fn admit(&mut self, shard: ShardId, key: &ObjectKey, due_ms: u64) {
        let entry = Entry {
            home: Some(shard),
            place: Place::Waiting((due_ms, 0)),
            attempts: Attempts::default(),
            not_before_ms: 0,
            allowance: Allowance::default(),
        };
        self.entries.insert(key.clone(), entry);
        if let Some(lane) = self.lanes.get_mut(&shard) {
            lane.keys.insert(key.clone());
        }
        self.schedule(key, due_ms);
    }

    fn bring_forward(&mut self, key: &ObjectKey, due_ms: u64) -> Added {
        let Some(entry) = self.entries.get_mut(key) else {
            return Added::Known;
        };
        let due_ms = due_ms.max(entry.not_before_ms);
        match &mut entry.place {
            Place::Running { again_ms, .. } => {
                if again_ms.is_some_and(|planned_ms| planned_ms <= due_ms) {
                    return Added::Known;
                }
                *again_ms = Some(due_ms);
            }
            Place::Waiting((planned_ms, _)) | Place::Ready((planned_ms, _)) => {
                if *planned_ms <= due_ms {
                    return Added::Known;
                }
                self.unschedule(key);
                self.schedule(key, due_ms);
            }
        }
        Added::Queued
    }

    /// An object of that name was deleted and re-created in another shard: nothing that is known of
    /// the old one applies to the new one, except that it must not run while the old one runs.
    fn move_to(&mut self, shard: ShardId, key: &ObjectKey, due_ms: u64) {
        let planned_ms = match self.entries.get(key).map(|entry| &entry.place) {
            Some(Place::Waiting((planned_ms, _)) | Place::Ready((planned_ms, _))) => *planned_ms,
            Some(Place::Running { again_ms, .. }) => again_ms.unwrap_or(due_ms),
            None => due_ms,
        };
        let due_ms = due_ms.min(planned_ms);
        self.forget(key);
        let Some(entry) = self.entries.get_mut(key) else {
            return self.admit(shard, key, due_ms);
        };
        entry.home = Some(shard);
        entry.not_before_ms = 0;
        if let Place::Running { again_ms, .. } = &mut entry.place {
            *again_ms = Some(due_ms);
        }
        if let Some(lane) = self.lanes.get_mut(&shard) {
            lane.keys.insert(key.clone());
        }
    }

    /// The next run to start now, if any; end it with [`Queue::done`].
    pub(crate) fn pop(&mut self, now_ms: u64) -> Option<Run> {
        self.promote(now_ms);
        if now_ms < self.held_until_ms || self.turns.is_empty() {
            return None;
        }
        if self.limits.scope == Scope::Replica
            && let Err(allowed_ms) = self.limits.rate_limit.take(&mut self.allowance, now_ms)
        {
            self.deferred_total += 1;
            self.held_until_ms = allowed_ms;
            return None;
        }
        loop {
            let (&turn, &shard) = self.turns.first_key_value()?;
            let lane = self.lanes.get_mut(&shard)?;
            let (at, key) = lane.ready.pop_first()?;
            self.depth -= 1;
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            let allowed = match self.limits.scope {
                Scope::Object => self.limits.rate_limit.take(&mut entry.allowance, now_ms),
                Scope::Replica => Ok(()),
            };
            if allowed.is_ok() || lane.ready.is_empty() {
                lane.turn = None;
                self.turns.remove(&turn);
                self.line_up(shard);
            }
            match allowed {
                Ok(()) => return Some(self.start(key, shard, at.0)),
                Err(allowed_ms) => self.defer(&key, allowed_ms),
            }
        }
    }

    fn start(&mut self, key: ObjectKey, shard: ShardId, due_ms: u64) -> Run {
        *self.in_flight.entry(shard).or_insert(0) += 1;
        let mut attempts = Attempts::default();
        if let Some(entry) = self.entries.get_mut(&key) {
            attempts = entry.attempts;
            entry.place = Place::Running {
                shard,
                again_ms: None,
            };
        }
        Run {
            key,
            shard,
            due_ms,
            attempts,
        }
    }

    /// Defers a run; it is not counted again until its bucket has a run for it.
    fn defer(&mut self, key: &ObjectKey, allowed_ms: u64) {
        self.deferred_total += 1;
        if let Some(entry) = self.entries.get_mut(key) {
            entry.not_before_ms = entry.not_before_ms.max(allowed_ms);
        }
        self.schedule(key, allowed_ms);
    }

    /// Ends the run of a key. A verdict on an object that was moved, forgotten or purged during its
    /// run is discarded.
    pub(crate) fn done(&mut self, key: &ObjectKey, verdict: Verdict) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let Place::Running { shard, again_ms } = entry.place else {
            return;
        };
        if let Some(count) = self.in_flight.get_mut(&shard) {
            *count -= 1;
            if *count == 0 {
                self.in_flight.remove(&shard);
            }
        }
        let due_ms = if entry.home == Some(shard) {
            apply_verdict(entry, again_ms, verdict)
        } else {
            again_ms
        };
        match due_ms {
            Some(due_ms) => self.schedule(key, due_ms),
            None => {
                // It no longer runs, so this forgets it for good.
                entry.place = Place::Waiting((0, 0));
                self.forget(key);
            }
        }
    }

    /// Starts nothing before this time.
    pub(crate) fn hold_until(&mut self, until_ms: u64) {
        self.held_until_ms = self.held_until_ms.max(until_ms);
    }

    /// When to call [`Queue::pop`] again after it returned nothing, if no change comes before.
    #[must_use]
    pub(crate) fn next_due(&self) -> Option<u64> {
        let next_ms = if self.turns.is_empty() {
            self.timers.first_key_value()?.0.0
        } else {
            0
        };
        Some(next_ms.max(self.held_until_ms))
    }

    /// Runs of a shard that have not ended, even when it was purged meanwhile.
    #[must_use]
    pub(crate) fn in_flight(&self, shard: ShardId) -> usize {
        self.in_flight.get(&shard).copied().unwrap_or(0)
    }

    /// Whether a shard is open and starts runs.
    #[must_use]
    pub(crate) fn admits(&self, shard: ShardId) -> bool {
        self.lanes.get(&shard).is_some_and(|lane| lane.admits)
    }

    /// Number of keys that are due and wait.
    pub(crate) fn depth(&mut self, now_ms: u64) -> usize {
        self.promote(now_ms);
        self.depth
    }

    /// Number of keys that wait for their time.
    pub(crate) fn delayed(&mut self, now_ms: u64) -> usize {
        self.promote(now_ms);
        self.timers.len()
    }

    /// How long the key that is due longest has waited; 0 when none is due.
    pub(crate) fn head_age_ms(&mut self, now_ms: u64) -> u64 {
        self.promote(now_ms);
        let heads = self
            .lanes
            .values()
            .filter_map(|lane| lane.ready.keys().next());
        heads
            .min()
            .map_or(0, |(due_ms, _)| now_ms.saturating_sub(*due_ms))
    }

    /// How often the rate limiter deferred a run.
    #[must_use]
    pub(crate) const fn deferred_total(&self) -> u64 {
        self.deferred_total
    }

    fn promote(&mut self, now_ms: u64) {
        while let Some(first) = self.timers.first_entry()
            && first.key().0 <= now_ms
        {
            let (at, key) = first.remove_entry();
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            entry.place = Place::Ready(at);
            let home = entry.home;
            if let Some((shard, lane)) = home.and_then(|s| Some((s, self.lanes.get_mut(&s)?))) {
                lane.ready.insert(at, key);
                self.depth += 1;
                self.line_up(shard);
            }
        }
    }

    /// Queues a shard for a turn, behind all others, if it has due work and may start it.
    fn line_up(&mut self, shard: ShardId) {
        if let Some(lane) = self.lanes.get_mut(&shard)
            && lane.turn.is_none()
            && lane.admits
            && !lane.ready.is_empty()
        {
            self.sequence += 1;
            lane.turn = Some(self.sequence);
            self.turns.insert(self.sequence, shard);
        }
    }

    fn schedule(&mut self, key: &ObjectKey, due_ms: u64) {
        if let Some(entry) = self.entries.get_mut(key) {
            self.sequence += 1;
            let at = (due_ms.max(entry.not_before_ms), self.sequence);
            entry.place = Place::Waiting(at);
            self.timers.insert(at, key.clone());
        }
    }

    fn unschedule(&mut self, key: &ObjectKey) {
        let Some(entry) = self.entries.get(key) else {
            return;
        };
        match entry.place {
            Place::Running { .. } => {}
            Place::Waiting(at) => {
                self.timers.remove(&at);
            }
            Place::Ready(at) => {
                let Some((shard, lane)) =
                    entry.home.and_then(|s| Some((s, self.lanes.get_mut(&s)?)))
                else {
                    return;
                };
                self.depth -= usize::from(lane.ready.remove(&at).is_some());
                if lane.ready.is_empty()
                    && let Some(turn) = lane.turn.take()
                {
                    debug_assert_eq!(self.turns.get(&turn), Some(&shard));
                    self.turns.remove(&turn);
                }
            }
        }
    }
}

/// Applies a verdict and returns when the object is due again.
fn apply_verdict(entry: &mut Entry, again_ms: Option<u64>, verdict: Verdict) -> Option<u64> {
    entry.attempts = entry.attempts.after(verdict);
    let due_ms = match verdict {
        Verdict::Gone => return again_ms,
        Verdict::Throttled { until_ms } => {
            entry.not_before_ms = until_ms;
            until_ms
        }
        Verdict::Settled { due_ms }
        | Verdict::Failed { due_ms }
        | Verdict::Retry { due_ms }
        | Verdict::Again { due_ms } => due_ms,
    };
    Some(again_ms.map_or(due_ms, |again_ms| again_ms.min(due_ms)))
}
