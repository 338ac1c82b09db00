//! What must always hold, and what must hold in the end.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::hash::ShardId;
use crate::core::lease::{MemberLease, ShardLease};
use crate::delivery::LATE_MS_MAX;
use crate::update::Update;
use crate::world::{Ending, Happening, Who, World};

/// Longest that a shard may stand still while its holder leaves as planned.
const HANDOVER_GAP_MS_MAX: u64 = 400;
const LOOK_MS: u64 = 20;

/// Which part of a run we are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Recovering,
    /// One replica leaves as planned.
    Leaving(u64),
    /// All replicas are replaced, or one comes that is newer.
    Updating,
    Done,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    phase: Phase,
    update: Update,
    /// Who worked in each epoch of each shard: life and incarnation.
    workers: BTreeMap<(ShardId, u32), (u64, u32)>,
    /// The last epoch of each shard Lease, and whose it was.
    highest: BTreeMap<ShardId, (u32, String)>,
    /// When each Lease was last deleted by hand, by the shard's number or the member's name.
    deleted_ms: BTreeMap<String, u64>,
    /// Incarnations that ever were allowed to act.
    in_force: BTreeSet<String>,
    /// Of these, those whose member Lease was vacated, replaced or deleted: they never return.
    dead: BTreeSet<String>,
    /// Since when a shard stands still.
    still_since_ms: BTreeMap<ShardId, u64>,
    /// Since when everything is as it should be.
    well_since_ms: Option<u64>,
    /// How often each shard has changed hands, since the update began.
    pub(crate) moved: BTreeMap<ShardId, u32>,
}

impl Checks {
    pub(crate) fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }
}

impl World {
    /// Another process that acts on the shard.
    fn other_actor(&self, who: Who, shard: ShardId) -> Option<(usize, u32)> {
        let others = self.slots.iter().flatten().enumerate();
        others
            .filter(|(_, process)| process.life != who.life)
            .find_map(|(slot, process)| Some((slot, process.acts(shard, self.now_ms)?)))
    }

    pub(crate) fn check_admitted(&mut self, who: Who, shard: ShardId, epoch: u32) {
        self.summary.moves += 1;
        let Some(process) = self.process(who) else {
            return;
        };
        let me = (process.life, process.incarnations);
        let first = *self.checks.workers.entry((shard, epoch)).or_insert(me);
        if first != me {
            self.fail(format!(
                "shard {shard} epoch {epoch} is worked on by {first:?} and {me:?}"
            ));
        }
        self.check_writing(who, shard, epoch);
    }

    /// Somebody is about to write in the shard: nobody else may be able to. People who delete or edit
    /// Leases by hand can break this for a moment; then epochs and the fence still stand.
    pub(crate) fn check_writing(&mut self, who: Who, shard: ShardId, epoch: u32) {
        if let Some((slot, other)) = self.other_actor(who, shard)
            && (!self.tampers || other == epoch)
        {
            self.fail(format!(
                "shard {shard} is worked on by r{} in epoch {epoch} and by r{slot} in epoch {other}",
                who.slot
            ));
        }
    }

    /// A replica may act: from here on its incarnation has an end that is for good.
    pub(crate) fn note_in_force(&mut self, incarnation: String) {
        self.checks.in_force.insert(incarnation);
    }

    /// A member Lease was or was not written, by a request that was sent at this time.
    pub(crate) fn check_member(
        &mut self,
        sent_ms: u64,
        before: Option<&MemberLease>,
        after: Option<&MemberLease>,
    ) {
        let alive = |lease: &&MemberLease| !lease.is_vacated();
        let (was, is) = (before.filter(alive), after.filter(alive));
        if let Some(lease) = is
            && self.checks.dead.contains(&lease.incarnation)
        {
            if before.is_none() && self.was_deleted_since(sent_ms, &lease.identity) {
                self.checks.dead.remove(&lease.incarnation);
            } else {
                self.fail(format!("a dead incarnation returned: {lease:?}"));
            }
        }
        let ended = |was: &&MemberLease| is.is_none_or(|is| is.incarnation != was.incarnation);
        if let Some(lease) = was.filter(ended)
            && self.checks.in_force.contains(&lease.incarnation)
        {
            self.checks.dead.insert(lease.incarnation.clone());
        }
    }

    /// A Lease was deleted by hand.
    pub(crate) fn note_deleted(&mut self, whose: String) {
        self.checks.deleted_ms.insert(whose, self.now_ms);
    }

    /// Whether a Lease was deleted by hand after a request was sent. One that creates names no
    /// version: if it was sent before, it finds nothing in its way.
    fn was_deleted_since(&self, sent_ms: u64, whose: &str) -> bool {
        let deleted_ms = self.checks.deleted_ms.get(whose);
        deleted_ms.is_some_and(|deleted_ms| sent_ms < *deleted_ms)
    }

    /// A shard Lease was written, or created by a request that was sent at this time.
    pub(crate) fn check_lease(&mut self, created_by_ms: Option<u64>, lease: &ShardLease) {
        let shard = lease.shard;
        self.fence
            .saw(self.now_ms, shard, &lease.holder, lease.epoch);
        let now = (lease.epoch, lease.incarnation.clone());
        let known = self.checks.highest.get(&shard).cloned();
        let (known, by) = known.unwrap_or_default();
        let same = by == lease.incarnation;
        if !same {
            *self.checks.moved.entry(shard).or_default() += 1;
        }
        let outdated =
            created_by_ms.is_some_and(|ms| self.was_deleted_since(ms, &shard.to_string()));
        // Nobody can know the epoch of a Lease that is gone whose objects were never written.
        let unknowable = created_by_ms.is_some() && self.highest_stamp(shard).is_none();
        if outdated && lease.epoch <= known {
            // Whatever follows has to rise above what was used before, all the same.
            return;
        }
        self.checks.highest.insert(shard, now);
        if !unknowable && (lease.epoch < known || (lease.epoch == known && !same)) {
            self.fail(format!(
                "the epoch of shard {shard} did not rise above {known}: {lease:?}"
            ));
        }
        if matches!(self.checks.phase, Phase::Leaving(_)) && lease.holder.is_empty() {
            self.fail(format!("shard {shard} was vacated though others live"));
        }
    }

    /// Looks from time to time, once the faults have ended.
    pub(crate) fn check(&mut self) {
        let trouble = self.not_well();
        let since_ms = *self.checks.well_since_ms.get_or_insert(self.now_ms);
        if trouble.is_some() {
            self.checks.well_since_ms = None;
        }
        match self.checks.phase {
            Phase::Recovering => {
                if let Some(trouble) = trouble {
                    let waited_ms = self.now_ms - self.plan.fault_ms;
                    if waited_ms > self.plan.bound_ms {
                        self.fail(format!("{waited_ms} ms after the last fault {trouble}"));
                    }
                } else if self.now_ms - since_ms >= 500
                    && self.now_ms >= self.plan.fault_ms + LATE_MS_MAX
                {
                    self.summary.recovery_ms = since_ms - self.plan.fault_ms;
                    self.end();
                }
            }
            Phase::Updating => {
                self.look_for_gaps();
                let mut update = std::mem::take(&mut self.checks.update);
                let done = self.go_on_with(&mut update, trouble);
                self.checks.update = update;
                if done {
                    self.checks.phase = Phase::Done;
                }
            }
            Phase::Leaving(began_ms) => {
                self.look_for_gaps();
                if trouble.is_none() && self.now_ms - began_ms > 1000 {
                    self.checks.phase = Phase::Done;
                } else if self.now_ms - began_ms > self.plan.bound_ms {
                    self.fail(format!("a planned stop does not end: {trouble:?}"));
                }
            }
            Phase::Done => {}
        }
        let pause_ms = if self.checks.phase == Phase::Recovering {
            100
        } else {
            LOOK_MS
        };
        self.after(pause_ms, Happening::Check);
    }

    pub(crate) fn is_updating(&self) -> bool {
        self.checks.phase == Phase::Updating
    }

    /// The end of the run begins.
    fn end(&mut self) {
        if self.ending == Ending::Leave {
            return self.leave_as_planned();
        }
        // A move that was planned before is none of the update's.
        let under_way = self
            .server
            .shards
            .values()
            .any(|lease| lease.successor.is_some());
        if self.is_balanced() && !under_way {
            self.checks.phase = Phase::Updating;
            self.checks.moved.clear();
            self.checks.update = Update::default();
        }
    }

    fn leave_as_planned(&mut self) {
        let slot = self.random.index(self.plan.replicas);
        self.checks.phase = Phase::Leaving(self.now_ms);
        self.tell(|| format!("r{slot} is to leave"));
        if let Some(life) = self.slots[slot].as_ref().map(|process| process.life) {
            self.shut_down(Who { slot, life });
        }
    }

    fn look_for_gaps(&mut self) {
        for shard in self.count.shards() {
            let acted_on = self
                .slots
                .iter()
                .flatten()
                .any(|p| p.acts(shard, self.now_ms).is_some());
            if acted_on {
                self.checks.still_since_ms.remove(&shard);
                continue;
            }
            let since_ms = *self
                .checks
                .still_since_ms
                .entry(shard)
                .or_insert(self.now_ms);
            let gap_ms = self.now_ms - since_ms + LOOK_MS;
            self.summary.handover_gap_ms = self.summary.handover_gap_ms.max(gap_ms);
            if gap_ms > HANDOVER_GAP_MS_MAX {
                self.fail(format!(
                    "shard {shard} stands still for {gap_ms} ms in a planned stop"
                ));
            }
        }
    }

    /// What is not as it should be: every replica there, every shard held and worked on by its holder.
    fn not_well(&self) -> Option<String> {
        let there = self
            .slots
            .iter()
            .flatten()
            .filter(|process| !process.leaving);
        if there.count() < self.plan.replicas {
            return Some("a replica is not back".into());
        }
        for shard in self.count.shards() {
            let Some(lease) = self.server.shards.get(&shard) else {
                return Some(format!("shard {shard} has no Lease"));
            };
            let working = self.slots.iter().flatten().any(|process| {
                process.identity == lease.holder
                    && process.acts(shard, self.now_ms) == Some(lease.epoch)
            });
            if !working {
                return Some(format!("shard {shard} is not worked on: {lease:?}"));
            }
        }
        None
    }
}
