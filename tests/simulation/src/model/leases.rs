//! The model's Lease requests, and what must hold at every moment and in the end.

use std::collections::{BTreeMap, BTreeSet};

use super::fleet::{Fleet, RECOVERY_STEPS};
use super::replica::{Replica, Up};
use super::{OwnershipModel, Step};
use crate::fence;
use shard_ownership::hash::ShardId;
use shard_ownership::lease::{MemberLease, MemberWrite, ShardLease, ShardWrite};
use shard_ownership::ownership::{Event, WriteResult};

impl Fleet {
    pub(super) fn serve_member(
        &mut self,
        n: usize,
        write: &MemberWrite,
    ) -> WriteResult<Option<MemberLease>> {
        let meta = self.replicas[n].meta.clone();
        let before = self.server.members.get(&write.identity).cloned();
        let result = self.server.write_member(write, &meta);
        let after = self.server.members.get(&write.identity).cloned();
        let alive = |lease: &Option<MemberLease>| {
            lease
                .as_ref()
                .filter(|l| !l.is_vacated())
                .map(|l| l.incarnation.clone())
        };
        if let Some(now) = alive(&after)
            && self.dead.contains(&now)
        {
            self.violation = Some(format!("the dead incarnation {now} returned"));
        }
        if alive(&before) != alive(&after) {
            self.dead.extend(alive(&before));
        }
        match (&result, before) {
            (WriteResult::Done(Some(lease)), _) => {
                self.publish(&Event::MemberObserved(lease.clone()));
            }
            (WriteResult::Done(None), Some(before)) => self.publish(&Event::MemberDeleted {
                identity: write.identity.clone(),
                uid: before.version.uid,
            }),
            (WriteResult::Done(None), None)
            | (WriteResult::Conflict | WriteResult::Rejected | WriteResult::Unknown, _) => {}
        }
        result
    }

    pub(super) fn serve_shard(&mut self, n: usize, write: &ShardWrite) -> WriteResult<ShardLease> {
        let before = self.server.shards.get(&write.shard).cloned();
        let shards = self.replicas[n].meta.shards;
        let result = self.server.write_shard(write, shards);
        if let WriteResult::Done(lease) = &result {
            if let Some(before) = before {
                let same = before.holder == lease.holder && before.incarnation == lease.incarnation;
                if lease.epoch < before.epoch || (lease.epoch == before.epoch && !same) {
                    self.violation = Some(format!("an epoch did not rise: {before:?} {lease:?}"));
                }
                self.check_handover(n, &before, lease);
            }
            self.publish(&Event::ShardObserved(lease.clone()));
        }
        result
    }

    /// A holder hands over no shard while work continues in it; nor one that it works on to a replica that has
    /// not listed it, unless it leaves and has waited long enough, or the request was sent when the other
    /// still had listed it and arrives later; and it vacates a shard only where no other replica is left.
    fn check_handover(&mut self, n: usize, before: &ShardLease, after: &ShardLease) {
        let (shard, holder) = (before.shard, &self.replicas[n]);
        let owns = before.holder == holder.identity && before.incarnation == holder.incarnation;
        if after.holder == before.holder {
            return;
        }
        let excused = self.excused.remove(&shard);
        let holder = &self.replicas[n];
        let works = holder.permits.get(&shard).is_some_and(|work| work.busy);
        if owns && works {
            self.violation = Some(format!("shard {shard} was handed over during work"));
            return;
        }
        if self.tampered || !owns || !self.ran(before) {
            return;
        }
        let sees_all = |n: usize| !self.replicas[n].cut && self.replicas[n].held_back.is_none();
        let is_left = |(k, replica): (usize, &Replica)| {
            let valid = self.now_ms < replica.valid_until_ms;
            let same_count = replica.meta.shards == holder.meta.shards;
            let says = self.server.members.get(&replica.identity);
            let may_begin = says.is_some_and(|lease| !lease.barred);
            let can_work = same_count && may_begin && !replica.leaving && valid;
            k != n && replica.up == Up::Running && sees_all(k) && can_work
        };
        let is_successor = |replica: &&Replica| replica.incarnation == after.incarnation;
        let successor = self.replicas.iter().find(is_successor);
        if after.holder.is_empty() {
            if sees_all(n) && self.replicas.iter().enumerate().any(is_left) {
                self.violation = Some(format!("shard {shard} was vacated though others live"));
            }
        } else if !holder.leaving
            && !excused
            && successor.is_some_and(|successor| {
                !successor.watching.contains(&shard) && !self.seems_warm(successor, shard)
            })
        {
            let successor = &after.holder;
            self.violation = Some(format!(
                "{successor} got shard {shard} and had not listed it"
            ));
        }
    }

    /// Whether a leaving replica, which has forgotten a shard, could not report so yet: what it reported before may
    /// have arrived late.
    fn seems_warm(&self, successor: &Replica, shard: ShardId) -> bool {
        let lease = self.server.members.get(&successor.identity);
        let says_so = lease.is_some_and(|lease| {
            lease.incarnation == successor.incarnation
                && !lease.draining
                && lease.warm.contains(&shard)
        });
        successor.leaving && says_so
    }

    /// Every watch shows the change at once, except frozen ones.
    pub(super) fn publish(&mut self, event: &Event) {
        if let Some(second) = self.second.as_mut() {
            second.misses(event);
        }
        for (n, replica) in self.replicas.iter_mut().enumerate() {
            if replica.cut || !replica.is_there() {
                continue;
            }
            let is_of_table = matches!(event, Event::TableObserved(_) | Event::TableDeleted(_));
            let of_table = replica.table_held_back.as_mut().filter(|_| is_of_table);
            match of_table.or(replica.held_back.as_mut()) {
                Some(held) => held.push(event.clone()),
                None => self.queue.push_back((n, event.clone())),
            }
        }
    }

    /// No two replicas can write in one shard at once; deletions by hand can break this for a
    /// moment, but never in one epoch.
    pub(super) fn check(&mut self, model: &OwnershipModel) {
        self.check_rights(model);
        let ignore = model.sabotage.no_validity;
        for shard in model.highest_count().shards() {
            let acting = self.replicas.iter().filter_map(|replica| {
                let token = replica.acts(shard, self.now_ms, ignore)?;
                Some((&token.table, token.epoch))
            });
            let rights: Vec<_> = acting.collect();
            let (first, rest) = (rights.first(), rights.get(1..).unwrap_or_default());
            let clash = rest
                .iter()
                .any(|right| !self.tampered || Some(right) == first);
            if clash {
                self.violation = Some(format!("shard {shard} is worked on twice: {rights:?}"));
            }
        }
        let counts: BTreeSet<u16> = self
            .replicas
            .iter()
            .filter(|replica| {
                let mut shards = replica.permits.keys();
                shards.any(|shard| replica.acts(*shard, self.now_ms, ignore).is_some())
            })
            .map(|replica| replica.meta.shards)
            .collect();
        if counts.len() > 1 && !self.tampered {
            self.violation = Some(format!("work continues with {counts:?} shards at once"));
        }
    }

    /// Whether everything recovers after the last fault.
    ///
    /// Where replicas have several numbers of shards: with any one of these, once all have that.
    pub(super) fn recovers(self, model: &OwnershipModel) -> Result<(), String> {
        let counts = (0..model.replicas).map(|n| (model.count(n).get(), model.count(n)));
        for count in counts.collect::<BTreeMap<_, _>>().into_values() {
            let mut fleet = self.clone();
            let all = OwnershipModel {
                shards: count,
                counts: Vec::new(),
                ..model.clone()
            };
            for n in 0..fleet.replicas.len() {
                if fleet.replicas[n].meta.shards != count.get() {
                    fleet.replicas[n].up = Up::Crashed;
                }
            }
            fleet.recovers_with_one_count(&all)?;
        }
        Ok(())
    }

    fn recovers_with_one_count(mut self, model: &OwnershipModel) -> Result<(), String> {
        for n in 0..self.replicas.len() {
            self.take(model, Step::AcceptTable(n));
            match self.replicas[n].up {
                Up::Crashed | Up::Left => self.take(model, Step::Restart(n)),
                Up::Paused => self.take(model, Step::Resume(n)),
                Up::Running => {}
            }
            if self.replicas[n].cut {
                self.take(model, Step::Mend(n));
            }
            self.take(model, Step::CatchUp(n));
            self.take(model, Step::CatchUpTable(n));
        }
        for _ in 0..RECOVERY_STEPS {
            self.take(model, Step::Tick);
            if self.violation.is_some() {
                return Err(format!("while recovering: {:?}", self.violation));
            }
            if model.shards.shards().all(|shard| self.runs(shard)) {
                return Ok(());
            }
        }
        Err(format!(
            "not every shard runs again: {:?}",
            self.server.shards
        ))
    }

    fn runs(&self, shard: ShardId) -> bool {
        let (Some(lease), Some(table)) = (self.server.shards.get(&shard), &self.server.table)
        else {
            return false;
        };
        self.replicas.iter().any(|replica| {
            let acts = replica.acts(shard, self.now_ms, false);
            replica.identity == lease.holder
                && acts
                    .is_some_and(|token| token.epoch == lease.epoch && fence::names(table, token))
        })
    }
}
