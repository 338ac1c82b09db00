//! The rules of ownership, shard by shard: what the Leases in their current state require.

use std::collections::BTreeMap;

use super::record::{Intent, Pending, Stage};
use super::shard::Shard;
use super::table_view::Grant;
use super::{Action, Ownership, Reason};
use crate::hash::ShardId;
use crate::lease::ShardWrite;
use crate::members::Life;

/// What a shard Lease (or its absence) means for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It names this incarnation.
    Ours,
    /// It may be taken, in order of rank.
    Free(Reason),
    /// It may be taken, and only by us: it names a former incarnation of ours.
    FormerSelf,
    /// It belongs to another replica, or cannot be decided yet.
    Others,
}

impl Ownership {
    pub(super) fn evaluate_shards(&mut self, now_ms: u64) {
        let plan = if self.is_handing_back() || self.any_is_free() {
            self.plan()
        } else {
            BTreeMap::new()
        };
        let ids: Vec<ShardId> = self.shards.keys().copied().collect();
        for id in ids {
            let Some(mut shard) = self.shards.remove(&id) else {
                continue;
            };
            self.read_and_retry(now_ms, &mut shard);
            self.stop_if_lost(now_ms, &mut shard);
            if self.synced && shard.pending.is_none() && !shard.must_read() {
                let target = plan.get(&id).map(String::as_str);
                self.advance(now_ms, &mut shard, target);
            }
            self.shards.insert(id, shard);
        }
    }

    /// Whether a shard has no live holder: only then a new holder has to be chosen.
    fn any_is_free(&self) -> bool {
        self.shards.values().any(|shard| {
            let Some(lease) = &shard.lease else {
                return true;
            };
            let member = self.membership.members().get(&lease.holder);
            member.is_none_or(|m| m.is_vacated() || m.incarnation != lease.incarnation)
        })
    }

    /// The intended holder of each shard, given the current holders.
    fn plan(&self) -> BTreeMap<ShardId, String> {
        let held: BTreeMap<ShardId, &str> = self
            .shards
            .values()
            .filter_map(|shard| shard.lease.as_ref().map(|lease| (shard.id(), lease)))
            .filter(|(_, lease)| !lease.holder.is_empty())
            .map(|(id, lease)| (id, lease.holder.as_str()))
            .collect();
        self.membership.plan(self.settings.shards, &held)
    }

    fn read_and_retry(&mut self, now_ms: u64, shard: &mut Shard) {
        if shard.begin_read(now_ms) {
            self.out.push(Action::ReadShard(shard.id()));
        }
        let due = |pending: &Pending| pending.id.is_none() && now_ms >= pending.again_ms;
        if let Some(pending) = shard.pending.clone().filter(due) {
            self.send(shard, pending);
        }
    }

    fn stop_if_lost(&mut self, now_ms: u64, shard: &mut Shard) {
        if shard.stage == Stage::Idle {
            return;
        }
        let settling = shard.pending.is_some() || shard.must_read();
        let is_stopped = matches!(shard.stage, Stage::Drained | Stage::Halted);
        let ours = shard.is_still_ours(&self.settings.identity, self.heartbeat.incarnation());
        let ended = if !self.heartbeat.is_valid(now_ms) {
            Some(Reason::Lapsed)
        } else if ours || (is_stopped && settling) {
            None
        } else if is_stopped {
            Some(self.halt_reason())
        } else {
            Some(Reason::Lost)
        };
        if let Some(reason) = ended {
            shard.halt(reason, &mut self.out);
        } else if matches!(shard.stage, Stage::Running | Stage::Draining(_)) {
            self.stop_if_not_granted(now_ms, shard);
        }
    }

    /// Stops a shard when the table under which its work started no longer names us.
    fn stop_if_not_granted(&mut self, now_ms: u64, shard: &mut Shard) {
        if self.table_uid() != shard.table() {
            shard.halt(Reason::TableLost, &mut self.out);
        } else if self.grant(now_ms, shard) != Grant::Granted {
            shard.pause(Reason::Raised, &mut self.out);
        }
    }

    pub(super) fn grant(&self, now_ms: u64, shard: &Shard) -> Grant {
        self.table
            .grant(self.us(now_ms), shard.id(), shard.held_epoch())
    }

    fn advance(&mut self, now_ms: u64, shard: &mut Shard, target: Option<&str>) {
        if !self.heartbeat.is_valid(now_ms) || now_ms < shard.not_before_ms {
            return;
        }
        if shard.stage == Stage::Idle {
            self.consider(now_ms, shard, target);
        }
        match shard.stage {
            Stage::Idle => {}
            Stage::Listing => self.begin(now_ms, shard, target),
            Stage::Running => self.prepare_handover(now_ms, shard, target),
            Stage::Draining(since_ms) => self.wait_for_work(now_ms, shard, since_ms, target),
            Stage::Drained | Stage::Halted => self.hand_over(now_ms, shard, target),
        }
    }

    /// A shard whose Lease is ours: starts once the table grants it and all objects are listed.
    fn begin(&mut self, now_ms: u64, shard: &mut Shard, target: Option<&str>) {
        if self.is_handing_back() || self.table.is_entry_refused(now_ms, shard.id()) {
            shard.stage = Stage::Halted;
            self.hand_over(now_ms, shard, target);
            return;
        }
        match self.grant(now_ms, shard) {
            // The entry is written together with those of other shards.
            Grant::NoTable | Grant::Behind => {}
            Grant::Granted => {
                let table = self.table_uid().map(str::to_owned);
                if let (true, Some(table)) = (shard.is_warm(), table) {
                    shard.admit(table, &mut self.out);
                }
            }
            Grant::Ahead => {
                if shard.has_read_ahead(self.table.epoch(shard.id()))
                    && let Some(epoch) = shard.next_epoch(self.table.epoch(shard.id()))
                {
                    self.write(shard, Intent::Raise, epoch);
                }
            }
        }
    }

    /// Whether everything is to be given to others: we leave, or may not write the table.
    pub(super) fn is_handing_back(&self) -> bool {
        self.departure.has_begun() || self.table.is_refused()
    }

    fn consider(&mut self, now_ms: u64, shard: &mut Shard, target: Option<&str>) {
        let standing = self.standing(shard);
        shard.is_free = matches!(standing, Standing::Free(_));
        if !shard.is_free {
            shard.free_ms = 0;
        }
        let is_handing_back = self.is_handing_back();
        match standing {
            Standing::Ours if is_handing_back => shard.stage = Stage::Halted,
            Standing::Ours => {
                if self.all_leases_carry_our_count() && self.table_uid().is_some() {
                    shard.start(&mut self.out);
                }
            }
            Standing::Others => self.warm_up_if_planned(shard),
            Standing::Free(_) | Standing::FormerSelf
                if is_handing_back || self.table_uid().is_none() => {}
            Standing::FormerSelf => {
                if let Some(epoch) = shard.next_epoch(self.table.epoch(shard.id())) {
                    self.write(shard, Intent::Take(Reason::Resumed), epoch);
                }
            }
            Standing::Free(reason) => {
                let patience_ms = self.patience_ms(shard.id(), target);
                let is_stable =
                    reason == Reason::Takeover || self.settled_ms(now_ms) >= Some(patience_ms);
                if is_stable
                    && shard.free_ms >= patience_ms
                    && self.may_begin(shard)
                    && let Some(epoch) = shard.next_epoch(self.table.epoch(shard.id()))
                {
                    self.write(shard, Intent::Take(reason), epoch);
                }
            }
        }
    }

    /// Whether a free shard may be taken. A shard without a Lease whose deletion was not observed
    /// waits a lifetime for a holder that may re-create it.
    fn may_begin(&self, shard: &Shard) -> bool {
        shard.lease.is_some()
            || shard.epoch_known(self.table.epoch(shard.id())) == 0
            || self.may_trust_memory(shard)
    }

    /// Watches the objects of a shard that is planned for us, so that its holder can hand it over
    /// without a gap.
    fn warm_up_if_planned(&mut self, shard: &mut Shard) {
        if self.is_planned_for_us(shard) && !self.is_handing_back() {
            shard.warm_up(&mut self.out);
        } else {
            shard.cool_down(&mut self.out);
        }
    }

    /// No shard is started until all Leases carry our number of shards.
    fn all_leases_carry_our_count(&self) -> bool {
        let ours = self.settings.shards.get();
        self.shards
            .values()
            .filter_map(|shard| shard.lease.as_ref())
            // A Lease that is not readable is damaged, and must not stop the others.
            .all(|lease| lease.shards == ours || lease.shards == 0)
    }

    fn standing(&mut self, shard: &mut Shard) -> Standing {
        let ours = self.settings.shards.get();
        if shard.is_damaged() {
            return Standing::Others;
        }
        let (holder, incarnation, version, reason) = match (&shard.lease, &shard.memory) {
            (Some(lease), _) => {
                if lease.shards != ours && self.membership.members().another_count_is_alive(ours) {
                    return Standing::Others;
                }
                (
                    &lease.holder,
                    &lease.incarnation,
                    &lease.version,
                    Reason::Vacant,
                )
            }
            (None, Some(memory)) => (
                &memory.holder,
                &memory.incarnation,
                &memory.version,
                Reason::Created,
            ),
            (None, None) if self.is_standby() => return Standing::Others,
            (None, None) => return Standing::Free(Reason::Created),
        };
        if *holder == self.settings.identity {
            return match (*incarnation == self.heartbeat.incarnation(), &shard.lease) {
                // Its epoch is compared with the table.
                (true, Some(lease)) if lease.shards == ours => Standing::Ours,
                (_, Some(_)) => Standing::FormerSelf,
                // As long as we live, nobody takes from us what we did not give away.
                (true, None) if shard.memory.as_ref().is_some_and(|m| !m.handed_over) => {
                    Standing::FormerSelf
                }
                (_, None) if self.may_trust_memory(shard) => Standing::FormerSelf,
                (_, None) => Standing::Others,
            };
        }
        if shard.lease.is_none() && !self.may_trust_memory(shard) {
            return Standing::Others;
        }
        if holder.is_empty() {
            return Standing::Free(reason);
        }
        let life =
            self.membership
                .members()
                .life(holder, incarnation, self.settings.lease_ms, version);
        match life {
            Life::Dead => Standing::Free(Reason::Takeover),
            Life::Doubtful if shard.found_dead() => Standing::Free(Reason::Takeover),
            Life::Doubtful => {
                let (holder, version) = (holder.clone(), version.clone());
                if shard.should_confirm_holder(&holder, &version) {
                    self.membership.confirm(&holder, &mut self.out);
                }
                Standing::Others
            }
            // We may not have seen the last of it. A holder that lives and knows that it is one would
            // have come back with it by now; one that does not know it waits as we do.
            Life::Alive if shard.is_missing_unconfirmed() => Standing::Free(Reason::Created),
            Life::Alive | Life::Unknown => Standing::Others,
        }
    }

    /// Whether our record of a deleted Lease is complete. If not, a holder may have existed that we
    /// never observed: it gets a whole lifetime to re-create the Lease.
    fn may_trust_memory(&self, shard: &Shard) -> bool {
        shard.memory.as_ref().is_some_and(|m| m.is_complete)
            || shard.missing_ms >= self.settings.lease_ms
    }

    /// How long we wait before we take a free shard: not at all if it is planned for us, one more
    /// step for each replica before us in the ranking.
    fn patience_ms(&self, shard: ShardId, target: Option<&str>) -> u64 {
        let me = self.settings.identity.as_str();
        if target == Some(me) {
            return 0;
        }
        match self.membership.rank(shard, me, target) {
            Some(position) => (position as u64 + 1) * self.settings.step_ms,
            // We are not eligible ourselves (leaving, or not observed yet).
            None => u64::MAX,
        }
    }

    /// For how long the membership has been unchanged, less one step: if a shard has no holder, all replicas
    /// may be just starting. The first one would list everything, and its shards would move on at once.
    fn settled_ms(&self, now_ms: u64) -> Option<u64> {
        let same_ms = self.membership.unchanged_ms(now_ms);
        same_ms.checked_sub(self.settings.step_ms)
    }

    pub(super) fn write(&mut self, shard: &mut Shard, intent: Intent, epoch: u32) {
        let pending = Pending {
            intent,
            epoch,
            base: shard.lease.as_ref().map(|lease| lease.version.clone()),
            id: None,
            again_ms: 0,
            indeterminate: false,
        };
        self.send(shard, pending);
    }

    fn send(&mut self, shard: &mut Shard, mut pending: Pending) {
        let id = self.out.next_id();
        let us = || {
            let incarnation = self.heartbeat.incarnation().to_owned();
            (self.settings.identity.clone(), incarnation)
        };
        let (holder, incarnation) = match &pending.intent {
            Intent::Take(_) | Intent::Raise | Intent::Name(_) => us(),
            Intent::HandOver(successor) => {
                (successor.identity.clone(), successor.incarnation.clone())
            }
            Intent::Vacate => (String::new(), String::new()),
        };
        let successor = match &pending.intent {
            Intent::Name(successor) => Some(successor.clone()),
            Intent::Raise => shard.successor().cloned(),
            Intent::Take(_) | Intent::HandOver(_) | Intent::Vacate => None,
        };
        self.out.push(Action::WriteShard(
            id,
            ShardWrite {
                shard: shard.id(),
                base: pending.base.clone(),
                holder,
                incarnation,
                epoch: pending.epoch,
                successor,
            },
        ));
        pending.id = Some(id);
        shard.pending = Some(pending);
    }
}
