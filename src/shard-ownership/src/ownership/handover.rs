//! Handover of a shard to its successor: when, to which replica, and how many at once.

use super::record::{Intent, Stage};
use super::shard::Shard;
use super::table_view::Grant;
use super::{Action, Ownership, Reason};
use crate::lease::Successor;
use crate::planner::move_budget;

/// For how long a shard whose work is to end counts among those that are being given away.
const HANDOVER_MS: u64 = 125;

/// When we leave, shards whose successors have listed everything wait for the others until then.
const WARM_WAIT_MS_MAX: u64 = 2000;

impl Ownership {
    /// The planned next holder, as long as it can have the shard.
    fn successor(&self, shard: &Shard) -> Option<Successor> {
        let ours = self.settings.shards.get();
        shard
            .successor()
            .filter(|successor| successor.identity != self.settings.identity)
            .filter(|successor| self.membership.members().can_succeed(successor, ours))
            .cloned()
    }

    /// The planned next holder, if it can have the shard without a gap.
    fn warm_successor(&self, shard: &Shard) -> Option<Successor> {
        self.successor(shard)
            .filter(|successor| self.membership.members().is_warm(successor, shard.id()))
    }

    /// Whether everybody can know that nothing is to be given back to us.
    fn has_announced_leaving(&self, now_ms: u64) -> bool {
        let me = self.membership.members().get(&self.settings.identity);
        let us = self.us(now_ms);
        me.is_some_and(|lease| us.is_announced_to_receive_nothing(lease))
    }

    /// Whether a shard is planned for us whose holder may not know yet that we leave, and may have
    /// given it to us.
    pub(super) fn may_receive_shard(&self, now_ms: u64) -> bool {
        self.departure.is_fresh(now_ms)
            && self
                .shards
                .values()
                .any(|shard| self.is_planned_for_us(shard))
    }

    pub(super) fn is_planned_for_us(&self, shard: &Shard) -> bool {
        shard.successor().is_some_and(|next| {
            next.identity == self.settings.identity
                && next.incarnation == self.heartbeat.incarnation()
        })
    }

    /// Whether running shards may be handed over because we leave.
    fn is_seen_to_leave(&self, now_ms: u64) -> bool {
        // Not before we have observed all members of that time: an update asks us to leave as soon
        // as a newer replica is ready.
        self.has_announced_leaving(now_ms) && self.departure.is_shown(now_ms)
    }

    /// A running shard: begins to drain once its successor has listed everything. When we leave, we
    /// choose the successor ourselves, and do not wait for it for ever.
    pub(super) fn prepare_handover(
        &mut self,
        now_ms: u64,
        shard: &mut Shard,
        target: Option<&str>,
    ) {
        let leaving = self.departure.has_begun();
        if leaving && !self.is_seen_to_leave(now_ms) {
            return;
        }
        let left_ms = self.departure.lasted_ms(now_ms);
        let patience_is_over = leaving && left_ms >= self.settings.drain_timeout_ms;
        let ready = match self.successor(shard) {
            Some(successor) => {
                let warm = self.membership.members().is_warm(&successor, shard.id());
                let is_stable =
                    !leaving || left_ms >= WARM_WAIT_MS_MAX || self.all_successors_are_warm();
                (warm && is_stable) || patience_is_over
            }
            None if !leaving => false,
            None => match self.chosen(target) {
                Some(successor) if !patience_is_over => {
                    let epoch = shard.epoch_known(self.table.epoch(shard.id()));
                    self.write(shard, Intent::Name(successor), epoch);
                    return;
                }
                _ => true,
            },
        };
        if ready && self.may_hand_over_another(now_ms) {
            shard.stage = Stage::Draining(now_ms);
            self.out.push(Action::Drain(shard.id()));
        }
    }

    /// Whether no successor of another shard is still listing: the API server would have that to do
    /// while a shard that is given away stands still.
    fn all_successors_are_warm(&self) -> bool {
        let mut running = self.shards.values().filter(|s| s.stage == Stage::Running);
        running.all(|shard| self.warm_successor(shard).is_some())
    }

    /// Half as many as a fleet leader would move at once: more writes only wait for each other while
    /// their shards stand still. One whose work takes longer, or whose write is retried, holds up none.
    fn may_hand_over_another(&self, now_ms: u64) -> bool {
        let under_way = |shard: &&Shard| match shard.stage {
            Stage::Draining(since_ms) => now_ms.saturating_sub(since_ms) < HANDOVER_MS,
            Stage::Drained | Stage::Halted => {
                shard.pending.as_ref().is_some_and(|p| p.id.is_some())
            }
            Stage::Idle | Stage::Listing | Stage::Running => false,
        };
        let most = (move_budget(self.settings.shards) / 2).max(1);
        self.shards.values().filter(under_way).count() < most
    }

    /// The successor that we choose ourselves when we leave.
    fn chosen(&self, target: Option<&str>) -> Option<Successor> {
        let chosen = self.membership.members().get(target?)?;
        Some(Successor {
            identity: chosen.identity.clone(),
            incarnation: chosen.incarnation.clone(),
        })
        .filter(|successor| successor.identity != self.settings.identity)
    }

    pub(super) fn wait_for_work(
        &mut self,
        now_ms: u64,
        shard: &mut Shard,
        since_ms: u64,
        target: Option<&str>,
    ) {
        if !self.departure.has_begun() && self.warm_successor(shard).is_none() {
            self.resume(now_ms, shard);
        } else if now_ms.saturating_sub(since_ms) >= self.settings.drain_timeout_ms {
            self.out.push(Action::Halt(shard.id(), self.halt_reason()));
            shard.stage = Stage::Halted;
            self.hand_over(now_ms, shard, target);
        }
    }

    /// The shard is not handed over after all, or not to the successor for which it was drained: by
    /// now the plan may name another, which has not listed it.
    fn resume(&mut self, now_ms: u64, shard: &mut Shard) {
        if self.table_uid() == shard.table() && self.grant(now_ms, shard) == Grant::Granted {
            shard.stage = Stage::Running;
            self.out.push(Action::Resume(shard.id()));
        } else {
            shard.pause(Reason::Raised, &mut self.out);
        }
    }

    /// No work runs: one compare-and-swap makes the shard its successor's. Without one we choose one
    /// when we leave, and go on when we stay; with nobody left it is vacated.
    pub(super) fn hand_over(&mut self, now_ms: u64, shard: &mut Shard, target: Option<&str>) {
        let Some(epoch) = shard.next_epoch(self.table.epoch(shard.id())) else {
            return;
        };
        let stays = !self.is_handing_back();
        if stays && shard.stage == Stage::Drained && self.warm_successor(shard).is_none() {
            self.resume(now_ms, shard);
        } else if let Some(successor) = self.successor(shard) {
            self.write(shard, Intent::HandOver(successor), epoch);
        } else if stays {
            shard.halt(Reason::Named, &mut self.out);
        } else if self.has_announced_leaving(now_ms) {
            // Until then our own placement may name us still.
            let intent = self.chosen(target).map_or(Intent::Vacate, Intent::HandOver);
            self.write(shard, intent, epoch);
        }
    }

    pub(super) fn halt_reason(&self) -> Reason {
        if !self.departure.has_begun() {
            Reason::HandedOver
        } else {
            Reason::Leaving
        }
    }
}
