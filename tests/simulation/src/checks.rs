//! What must always hold, and what must hold in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::delivery::LATE_MS_MAX;
use crate::fence;
use crate::update::Update;
use crate::world::{Ending, Happening, Who, World};
use shard_ownership::hash::ShardId;
use shard_ownership::lease::{MemberLease, ShardLease};
use shard_ownership::table::{Entry, ShardTable};
use shard_ownership::token::FencingToken;

/// Longest time that a shard may have no work while its holder leaves as planned.
const HANDOVER_GAP_MS_MAX: u64 = 400;
const LOOK_MS: u64 = 20;
/// No shard changes hands more often in one run. Users forge far higher epochs.
const EPOCH_LIKELY_MAX: u32 = 1000;

/// Which part of a run we are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Recovering,
    /// One replica leaves as planned.
    Leaving(u64),
    /// All replicas are replaced, or a newer one joins.
    Updating,
    Done,
}

/// Uid of a table, shard and epoch.
type Right = (Arc<str>, ShardId, u32);

fn right(token: &FencingToken) -> Right {
    (Arc::clone(&token.table), token.shard, token.epoch)
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    phase: Phase,
    update: Update,
    /// Who worked in each epoch of each shard, by the table that granted it: life and incarnation.
    workers: BTreeMap<Right, (u64, u32)>,
    /// Who was granted each epoch of each shard, by the table that did: holder and incarnation.
    granted: BTreeMap<Right, (String, String)>,
    /// Every state of each shard Lease: shard, epoch, incarnation.
    leased: BTreeSet<(ShardId, u32, String)>,
    /// Whose each shard Lease was at last.
    holders: BTreeMap<ShardId, String>,
    /// Replicas whose writes of the table the API server ever rejected.
    refused: BTreeSet<String>,
    /// When each member Lease was last deleted by hand.
    deleted_ms: BTreeMap<String, u64>,
    /// Incarnations that ever were allowed to act.
    in_force: BTreeSet<String>,
    /// Of these, those whose member Lease was vacated, replaced or deleted: they never return.
    dead: BTreeSet<String>,
    /// Since when a shard has no work.
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
    fn other_actor(&self, who: Who, shard: ShardId) -> Option<(usize, FencingToken)> {
        let others = self.slots.iter().flatten().enumerate();
        others
            .filter(|(_, process)| process.life != who.life)
            .find_map(|(slot, process)| {
                process.acts(shard, self.now_ms)?;
                Some((slot, process.right(shard)?.clone()))
            })
    }

    pub(crate) fn check_admitted(&mut self, who: Who, shard: ShardId) {
        self.summary.moves += 1;
        let Some(process) = self.process(who) else {
            return;
        };
        let me = (process.life, process.incarnations);
        let named = (process.identity.clone(), process.named.clone());
        let Some(token) = process.right(shard).cloned() else {
            return;
        };
        let first = *self.checks.workers.entry(right(&token)).or_insert(me);
        if first != me {
            self.fail(format!("{token} is worked under by {first:?} and {me:?}"));
        }
        if self.checks.granted.get(&right(&token)) != Some(&named) {
            self.fail(format!("work began under {token} without its entry"));
        }
        let leased = (shard, token.epoch, named.1);
        if !self.checks.leased.contains(&leased) {
            self.fail(format!("work began under {token} without its Lease"));
        }
        self.check_writing(who, &token);
    }

    /// A replica is about to write in the shard: no other may be able to, and Lease and entry name the writer.
    /// Users that delete or edit Leases and the table by hand can break this for a moment; then what an epoch means
    /// and the fence still hold.
    pub(crate) fn check_writing(&mut self, who: Who, token: &FencingToken) {
        let shard = token.shard;
        if let Some((slot, other)) = self.other_actor(who, shard)
            && (!self.tampers || right(&other) == right(token))
        {
            self.fail(format!(
                "shard {shard} is worked on by r{} under {token} and by r{slot} under {other}",
                who.slot
            ));
        }
        let Some(process) = self.process(who) else {
            return;
        };
        let (named, observed) = (process.named.clone(), process.machine.table_uid());
        if observed != Some(&*token.table) {
            let observed = observed.map(str::to_owned);
            self.fail(format!(
                "work continues under {token} though the table is {observed:?}"
            ));
        }
        if self.tampers {
            return;
        }
        let lease = self.server.shards.get(&shard);
        let is_held = lease.is_some_and(|lease| {
            lease.epoch == token.epoch
                && *lease.holder == *token.holder
                && lease.incarnation == named
        });
        let table = self.server.table.as_ref();
        if !is_held || !table.is_some_and(|table| fence::names(table, token)) {
            self.fail(format!(
                "work continues under {token} without Lease or entry"
            ));
        }
    }

    /// A replica's writes of the table are refused from here on.
    pub(crate) fn note_refused(&mut self, identity: String) {
        self.checks.refused.insert(identity);
    }

    /// A replica reports that it may not write the table.
    pub(crate) fn check_barred(&mut self, identity: &str) {
        if !self.tampers && !self.checks.refused.contains(identity) {
            self.fail(format!(
                "{identity} bars itself though nothing was refused to it"
            ));
        }
    }

    /// The table was written: every entry rises, belongs to one, and follows its Lease.
    pub(crate) fn check_table(
        &mut self,
        writer: &str,
        before: Option<&ShardTable>,
        after: &ShardTable,
    ) {
        let before = before.filter(|before| before.version.uid == after.version.uid);
        let uid: Arc<str> = after.version.uid.as_str().into();
        for (shard, entry) in &after.entries {
            let old = before.and_then(|before| before.entries.get(shard));
            if old == Some(entry) {
                continue;
            }
            let known = (Arc::clone(&uid), *shard, entry.epoch);
            let named = (entry.holder.clone(), entry.incarnation.clone());
            let granted = self
                .checks
                .granted
                .entry(known)
                .or_insert_with(|| named.clone());
            if *granted != named || old.is_some_and(|old| old.epoch >= entry.epoch) {
                self.fail(format!("an entry did not rise: {old:?} {entry:?}"));
            }
            self.check_entry(writer, *shard, entry);
        }
    }

    fn check_entry(&mut self, writer: &str, shard: ShardId, entry: &Entry) {
        let leased = (shard, entry.epoch, entry.incarnation.clone());
        let is_vacant = entry.holder.is_empty();
        if !is_vacant && (entry.holder != writer || !self.checks.leased.contains(&leased)) {
            self.fail(format!(
                "{writer} wrote the entry of shard {shard} before its Lease was won: {entry:?}"
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

    /// A shard Lease was written. One that was deleted by hand may come back under a lower epoch: then its entry in
    /// the table is ahead, and no replica works before the epoch is raised.
    pub(crate) fn check_lease(&mut self, before: Option<&ShardLease>, lease: &ShardLease) {
        let shard = lease.shard;
        let leased = (shard, lease.epoch, lease.incarnation.clone());
        self.checks.leased.insert(leased);
        let last = self.checks.holders.insert(shard, lease.incarnation.clone());
        if last.as_ref() != Some(&lease.incarnation) {
            *self.checks.moved.entry(shard).or_default() += 1;
        }
        let has_fallen = before.is_some_and(|before| {
            let same = before.incarnation == lease.incarnation;
            lease.epoch < before.epoch || (lease.epoch == before.epoch && !same)
        });
        if has_fallen {
            self.fail(format!(
                "the epoch of shard {shard} did not rise: {before:?} {lease:?}"
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
        self.trace(|| format!("r{slot} is to leave"));
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
        let Some(table) = &self.server.table else {
            return Some("there is no table".into());
        };
        for shard in self.count.shards() {
            let Some(lease) = self.server.shards.get(&shard) else {
                return Some(format!("shard {shard} has no Lease"));
            };
            let working = self.slots.iter().flatten().any(|process| {
                let right = process.right(shard);
                process.identity == lease.holder
                    && process.acts(shard, self.now_ms) == Some(lease.epoch)
                    && right.is_some_and(|token| fence::names(table, token))
            });
            if !working {
                return Some(format!("shard {shard} is not worked on: {lease:?}"));
            }
            if lease.epoch > EPOCH_LIKELY_MAX {
                return Some(format!(
                    "something raised the epoch of shard {shard}: {lease:?}"
                ));
            }
        }
        None
    }
}
