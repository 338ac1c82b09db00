//! The rules of ownership, shard by shard: what the Leases in their current state require, from taking
//! a shard to handing it over.

use std::collections::BTreeMap;

use super::Reason;
use super::lease_write::Intent;
use super::membership::Membership;
use super::others::{Contribution, HANDOVER_MS, OtherShards};
use super::outbox::Outbox;
use super::shard::Shard;
use super::table_view::{Grant, TableView};
use super::us::Us;
use super::work::Stage;
use crate::hash::ShardId;
use crate::lease::Successor;
use crate::liveness::is_live_holder;
use crate::members::Life;

/// When we leave, shards whose successors have listed everything wait for the others until then.
const WARM_WAIT_MS_MAX: u64 = 2000;

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

/// One pass over all shards. It changes one shard after the other; what it needs of the others is
/// summed up in `others`.
pub(super) struct Evaluation<'a> {
    us: Us<'a>,
    membership: &'a mut Membership,
    table: &'a mut TableView,
    out: &'a mut Outbox,
    others: OtherShards,
}

impl<'a> Evaluation<'a> {
    pub(super) fn new(
        us: Us<'a>,
        membership: &'a mut Membership,
        table: &'a mut TableView,
        out: &'a mut Outbox,
    ) -> Self {
        Self {
            us,
            membership,
            table,
            out,
            others: OtherShards::default(),
        }
    }

    /// `synced`: whether the Leases were listed. Until then, running shards are only stopped.
    pub(super) fn run(mut self, synced: bool, shards: &mut BTreeMap<ShardId, Shard>) {
        let plan = if self.is_handing_back() || self.any_is_free(shards) {
            self.plan(shards)
        } else {
            BTreeMap::new()
        };
        let handed_over = shards.values_mut().filter(|shard| shard.is_handed_over());
        for shard in handed_over {
            let entry = self.table.epoch(shard.id());
            shard.observe_entry(entry, self.us.now_ms, HANDOVER_MS);
        }
        let before: Vec<Contribution> = shards.values().map(|s| self.contribution(s)).collect();
        for contribution in &before {
            self.others.add(*contribution);
        }
        for (shard, contribution) in shards.values_mut().zip(before) {
            self.others.remove(contribution);
            shard.read_and_retry(self.us, self.out);
            self.stop_if_lost(shard);
            if synced && !shard.is_unsettled() {
                let target = plan.get(&shard.id()).map(String::as_str);
                self.advance(shard, target);
            }
            self.others.add(self.contribution(shard));
        }
    }

    fn contribution(&self, shard: &Shard) -> Contribution {
        Contribution::of(shard, self.us, self.membership)
    }

    /// Whether a shard has no live holder: only then a new holder has to be chosen.
    fn any_is_free(&self, shards: &BTreeMap<ShardId, Shard>) -> bool {
        shards.values().any(|shard| {
            let Some(lease) = shard.lease() else {
                return true;
            };
            let member = self.membership.members().get(&lease.holder);
            member.is_none_or(|m| !is_live_holder(lease.as_holder(), m.as_holder()))
        })
    }

    /// The intended holder of each shard, given the current holders.
    fn plan(&self, shards: &BTreeMap<ShardId, Shard>) -> BTreeMap<ShardId, String> {
        let held: BTreeMap<ShardId, &str> = shards
            .values()
            .filter_map(|shard| shard.lease().map(|lease| (shard.id(), lease)))
            .filter(|(_, lease)| !lease.holder.is_empty())
            .map(|(id, lease)| (id, lease.holder.as_str()))
            .collect();
        self.membership.plan(self.us.settings.shards, &held)
    }

    /// Whether everything is to be given to others: we leave, or may not write the table.
    fn is_handing_back(&self) -> bool {
        self.us.is_leaving() || self.table.is_refused()
    }

    fn halt_reason(&self) -> Reason {
        if self.us.is_leaving() {
            Reason::Leaving
        } else {
            Reason::HandedOver
        }
    }

    fn grant(&self, shard: &Shard) -> Grant {
        self.table
            .grant(self.us, shard.id(), shard.work.held_epoch())
    }

    /// The epoch of the next change of hands, if epochs are left.
    fn next_epoch(&self, shard: &Shard) -> Option<u32> {
        shard.record().next_epoch(self.table.epoch(shard.id()))
    }

    fn write(&mut self, shard: &mut Shard, intent: Intent, epoch: u32) {
        shard.write(self.us, intent, epoch, self.out);
    }

    fn stop_if_lost(&mut self, shard: &mut Shard) {
        let is_stopped = match shard.stage() {
            Stage::Idle => return,
            Stage::Drained | Stage::Halted => true,
            Stage::Listing | Stage::Running | Stage::Draining(_) => false,
        };
        let ended = if !self.us.is_valid() {
            Some(Reason::Lapsed)
        } else if shard.work.is_still_ours(self.us, shard.lease())
            || (is_stopped && shard.is_unsettled())
        {
            None
        } else if is_stopped {
            Some(self.halt_reason())
        } else {
            Some(Reason::Lost)
        };
        if let Some(reason) = ended {
            shard.work.halt(reason, self.out);
        } else if matches!(shard.stage(), Stage::Running | Stage::Draining(_)) {
            self.stop_if_not_granted(shard);
        }
    }

    /// Stops a shard when the table under which its work started no longer names us.
    fn stop_if_not_granted(&mut self, shard: &mut Shard) {
        if self.table.uid() != shard.work.table() {
            shard.work.halt(Reason::TableLost, self.out);
        } else if self.grant(shard) != Grant::Granted {
            shard.work.pause(Reason::Raised, self.out);
        }
    }

    fn advance(&mut self, shard: &mut Shard, target: Option<&str>) {
        if !self.us.is_valid() || !shard.may_write(self.us.now_ms) {
            return;
        }
        if shard.stage() == Stage::Idle {
            self.consider(shard, target);
        }
        match shard.stage() {
            Stage::Idle => {}
            Stage::Listing => self.begin(shard, target),
            Stage::Running => self.prepare_handover(shard, target),
            Stage::Draining(since_ms) => self.wait_for_work(shard, since_ms, target),
            Stage::Drained | Stage::Halted => self.hand_over(shard, target),
        }
    }

    /// A shard that we do not work on: whether to take it, start it or watch it.
    fn consider(&mut self, shard: &mut Shard, target: Option<&str>) {
        let standing = self.standing(shard);
        let free_ms = shard.count_free(matches!(standing, Standing::Free(_)));
        let is_handing_back = self.is_handing_back();
        let has_table = self.table.uid().is_some();
        match standing {
            Standing::Ours if is_handing_back => shard.work.never_start(),
            Standing::Ours => {
                if self.others.have_our_count() && has_table {
                    shard.start(self.out);
                }
            }
            Standing::Others => self.warm_up_if_planned(shard),
            Standing::Free(_) | Standing::FormerSelf if is_handing_back || !has_table => {}
            Standing::FormerSelf => {
                if let Some(epoch) = self.next_epoch(shard) {
                    self.write(shard, Intent::Take(Reason::Resumed), epoch);
                }
            }
            Standing::Free(reason) => {
                let patience_ms = self.patience_ms(shard.id(), target);
                let is_stable = reason == Reason::Takeover || self.is_stable_for(patience_ms);
                if is_stable
                    && free_ms >= patience_ms
                    && self.may_take(shard)
                    && let Some(epoch) = self.next_epoch(shard)
                {
                    self.write(shard, Intent::Take(reason), epoch);
                }
            }
        }
    }

    fn standing(&mut self, shard: &mut Shard) -> Standing {
        let (us, record) = (self.us, shard.record());
        let members = self.membership.members();
        if record.is_damaged() {
            return Standing::Others;
        }
        let other_count_is_alive = || members.another_count_is_alive(us.count());
        let lease = record.lease();
        if lease.is_some_and(|lease| lease.shards != us.count()) && other_count_is_alive() {
            return Standing::Others;
        }
        let Some(holder) = record.holder() else {
            return if other_count_is_alive() {
                Standing::Others
            } else {
                Standing::Free(Reason::Created)
            };
        };
        let lease_ms = us.settings.lease_ms;
        if holder.identity == us.identity() {
            return match (holder.incarnation == us.incarnation(), lease) {
                // Its epoch is compared with the table.
                (true, Some(lease)) if lease.shards == us.count() => Standing::Ours,
                (_, Some(_)) => Standing::FormerSelf,
                // As long as we live, nobody takes from us what we did not hand over.
                (true, None) if record.was_kept() => Standing::FormerSelf,
                (_, None) if record.is_memory_trusted(lease_ms) => Standing::FormerSelf,
                (_, None) => Standing::Others,
            };
        }
        if lease.is_none() && !record.is_memory_trusted(lease_ms) {
            return Standing::Others;
        }
        if holder.identity.is_empty() {
            return Standing::Free(match lease {
                Some(_) => Reason::Vacant,
                None => Reason::Created,
            });
        }
        match members.life(holder.identity, holder.incarnation, lease_ms, holder.at) {
            Life::Dead => Standing::Free(Reason::Takeover),
            Life::Doubtful if record.is_holder_dead() => Standing::Free(Reason::Takeover),
            Life::Doubtful => {
                if let Some(holder) = shard.holder_to_confirm() {
                    self.membership.confirm(&holder, self.out);
                }
                Standing::Others
            }
            // We may not have seen the last of it. A holder that lives and knows that it is one would
            // have come back with it by now; one that does not know it waits as we do.
            Life::Alive if record.is_missing_unconfirmed() => Standing::Free(Reason::Created),
            Life::Alive | Life::Unknown => Standing::Others,
        }
    }

    /// Whether a free shard may be taken. A shard without a Lease whose deletion was not observed
    /// waits a lifetime for a holder that may re-create it.
    fn may_take(&self, shard: &Shard) -> bool {
        let record = shard.record();
        record.lease().is_some()
            || record.epoch_known(self.table.epoch(shard.id())) == 0
            || record.is_memory_trusted(self.us.settings.lease_ms)
    }

    /// Watches the objects of a shard that is planned for us, so that its holder can hand it over
    /// without a gap.
    fn warm_up_if_planned(&mut self, shard: &mut Shard) {
        let is_planned = shard.successor().is_some_and(|s| self.us.is_successor(s));
        if is_planned && !self.is_handing_back() {
            shard.work.warm_up(self.out);
        } else {
            shard.work.cool_down(self.out);
        }
    }

    /// How long we wait before we take a free shard: not at all if it is planned for us, one more
    /// step for each replica before us in the ranking.
    fn patience_ms(&self, shard: ShardId, target: Option<&str>) -> u64 {
        let me = self.us.identity();
        if target == Some(me) {
            return 0;
        }
        match self.membership.rank(shard, me, target) {
            Some(position) => (position as u64 + 1) * self.us.settings.step_ms,
            // We are not eligible ourselves (leaving, or not observed yet).
            None => u64::MAX,
        }
    }

    /// Whether the membership has been unchanged for this long and one step more: if a shard has no
    /// holder, all replicas may be just starting. The first one would list everything, and its shards
    /// would move on at once.
    fn is_stable_for(&self, patience_ms: u64) -> bool {
        let same_ms = self.membership.unchanged_ms(self.us.now_ms);
        same_ms.checked_sub(self.us.settings.step_ms) >= Some(patience_ms)
    }

    /// A shard whose Lease is ours: starts once the table grants it and all objects are listed.
    fn begin(&mut self, shard: &mut Shard, target: Option<&str>) {
        if self.is_handing_back() || self.table.is_entry_refused(self.us.now_ms, shard.id()) {
            shard.work.never_start();
            self.hand_over(shard, target);
            return;
        }
        match self.grant(shard) {
            // The entry is written together with those of other shards.
            Grant::NoTable | Grant::Behind => {}
            Grant::Granted => {
                if let (true, Some(table)) = (shard.work.is_warm(), self.table.uid()) {
                    shard.work.admit(table.to_owned(), self.out);
                }
            }
            Grant::Ahead => {
                if shard.has_read_ahead(self.table.epoch(shard.id()))
                    && let Some(epoch) = self.next_epoch(shard)
                {
                    self.write(shard, Intent::Raise, epoch);
                }
            }
        }
    }

    /// The planned next holder, as long as it can have the shard.
    fn successor<'s>(&self, shard: &'s Shard) -> Option<&'s Successor> {
        let planned = shard.successor();
        planned.filter(|successor| self.membership.may_receive(self.us, successor))
    }

    /// Whether there is a next holder that can have the shard without a gap.
    fn has_warm_successor(&self, shard: &Shard) -> bool {
        self.successor(shard)
            .is_some_and(|successor| self.membership.members().is_warm(successor, shard.id()))
    }

    /// The successor that we choose ourselves when we leave.
    fn chosen(&self, target: Option<&str>) -> Option<Successor> {
        let chosen = self.membership.members().get(target?)?;
        Some(Successor {
            identity: chosen.identity.clone(),
            incarnation: chosen.incarnation.clone(),
        })
        .filter(|successor| successor.identity != self.us.identity())
    }

    /// Whether everybody can know that nothing is to be given back to us.
    fn has_announced_leaving(&self) -> bool {
        let me = self.membership.members().get(self.us.identity());
        me.is_some_and(|lease| self.us.is_announced_to_receive_nothing(lease))
    }

    /// Whether running shards may be handed over because we leave.
    fn is_seen_to_leave(&self) -> bool {
        // Not before we have observed all members of that time: an update asks us to leave as soon
        // as a newer replica is ready.
        self.has_announced_leaving() && self.us.departure.is_shown(self.us.now_ms)
    }

    /// A running shard: begins to drain once its successor has listed everything. When we leave, we
    /// choose the successor ourselves, and do not wait for it for ever.
    fn prepare_handover(&mut self, shard: &mut Shard, target: Option<&str>) {
        let us = self.us;
        let leaving = us.is_leaving();
        if leaving && !self.is_seen_to_leave() {
            return;
        }
        let left_ms = us.departure.lasted_ms(us.now_ms);
        let patience_is_over = leaving && left_ms >= us.settings.drain_timeout_ms;
        let ready = match self.successor(shard) {
            Some(successor) => {
                let warm = self.membership.members().is_warm(successor, shard.id());
                let is_stable =
                    !leaving || left_ms >= WARM_WAIT_MS_MAX || self.others.have_warm_successors();
                (warm && is_stable) || patience_is_over
            }
            None if !leaving => false,
            None => match self.chosen(target) {
                Some(successor) if !patience_is_over => {
                    let of_table = self.table.epoch(shard.id());
                    let epoch = shard.record().epoch_known(of_table);
                    self.write(shard, Intent::Name(successor), epoch);
                    return;
                }
                Some(_) | None => true,
            },
        };
        if ready && self.others.allow_handover(us.settings.shards) {
            shard.work.drain(us.now_ms, self.out);
        }
    }

    /// A draining shard: its work ends, or takes too long, or need not end after all.
    fn wait_for_work(&mut self, shard: &mut Shard, since_ms: u64, target: Option<&str>) {
        let drained_ms = self.us.now_ms.saturating_sub(since_ms);
        if !self.us.is_leaving() && !self.has_warm_successor(shard) {
            self.resume(shard);
        } else if drained_ms >= self.us.settings.drain_timeout_ms {
            shard.work.cut_short(self.halt_reason(), self.out);
            self.hand_over(shard, target);
        }
    }

    /// The shard is not handed over after all, or not to the successor for which it was drained: by
    /// now the plan may name another, which has not listed it.
    fn resume(&mut self, shard: &mut Shard) {
        if self.table.uid() == shard.work.table() && self.grant(shard) == Grant::Granted {
            shard.work.resume(self.out);
        } else {
            shard.work.pause(Reason::Raised, self.out);
        }
    }

    /// No work runs: one compare-and-swap makes the shard its successor's. Without one we choose one
    /// when we leave, and go on when we stay; with nobody left it is vacated.
    fn hand_over(&mut self, shard: &mut Shard, target: Option<&str>) {
        let Some(epoch) = self.next_epoch(shard) else {
            return;
        };
        let stays = !self.is_handing_back();
        if stays && shard.stage() == Stage::Drained && !self.has_warm_successor(shard) {
            self.resume(shard);
        } else if let Some(successor) = self.successor(shard).cloned() {
            self.write(shard, Intent::HandOver(successor), epoch);
        } else if stays {
            shard.work.halt(Reason::Named, self.out);
        } else if self.has_announced_leaving() {
            // Until then our own placement may name us still.
            let intent = self.chosen(target).map_or(Intent::Vacate, Intent::HandOver);
            self.write(shard, intent, epoch);
        }
    }
}
