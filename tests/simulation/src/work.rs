//! Work on objects: reconciles that take time, and writes that the fence lets through or refuses.

use std::collections::VecDeque;

use crate::core::hash::{Bucket, ShardCount, ShardId};
use crate::core::ownership::Event;
use crate::world::{Happening, Who, World};

/// Versions of a shard Lease that an API server that lags may still hold.
const REMEMBERED_MAX: usize = 8;

/// One object: only its stamp matters here.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) shard: ShardId,
    pub(crate) epoch: u32,
    /// The life and incarnation that wrote it last.
    pub(crate) writer: Option<(u64, u32)>,
}

impl Object {
    pub(crate) fn new(number: usize, count: ShardCount) -> Self {
        Self {
            shard: count.shard_of(Bucket::of(&format!("object-{number}"))),
            epoch: 0,
            writer: None,
        }
    }
}

/// A write of an object on its way.
#[derive(Clone, Debug)]
pub(crate) struct Stamped {
    object: usize,
    epoch: u32,
    holder: String,
    writer: (u64, u32),
    /// How far the API server that gets it is behind.
    lag_ms: u64,
}

/// What the fence knows of the shard Leases: each version with the time since when it is in force.
#[derive(Clone, Debug, Default)]
pub(crate) struct FenceView {
    versions: Vec<VecDeque<(u64, String, u32)>>,
}

impl FenceView {
    pub(crate) fn saw(&mut self, now_ms: u64, shard: ShardId, holder: &str, epoch: u32) {
        let index = usize::from(shard.0);
        if self.versions.len() <= index {
            self.versions.resize(index + 1, VecDeque::new());
        }
        let versions = &mut self.versions[index];
        versions.push_back((now_ms, holder.to_owned(), epoch));
        if versions.len() > REMEMBERED_MAX {
            versions.pop_front();
        }
    }

    fn lets_through(&self, at_ms: u64, shard: ShardId, stamp: &Stamped) -> bool {
        let versions = self
            .versions
            .get(usize::from(shard.0))
            .into_iter()
            .flatten();
        let present = versions.rev().find(|(since_ms, ..)| *since_ms <= at_ms);
        present.is_some_and(|(_, holder, epoch)| *holder == stamp.holder && *epoch == stamp.epoch)
    }
}

impl World {
    pub(crate) fn highest_stamp(&self, shard: ShardId) -> Option<u32> {
        let in_shard = self.objects.iter().filter(|object| object.shard == shard);
        in_shard
            .map(|object| object.epoch)
            .max()
            .filter(|epoch| *epoch > 0)
    }

    /// Everything in the shard was listed.
    pub(crate) fn warmed(&mut self, who: Who, shard: ShardId) {
        let away = self.is_away();
        let stamp = self.highest_stamp(shard);
        let Some(process) = self.process(who) else {
            return;
        };
        if !process.watching[usize::from(shard.0)] {
            return;
        }
        if away || process.partitioned {
            self.after(200, Happening::Warmed(who, shard));
            return;
        }
        let delay_ms = self.random.between(1, 20);
        self.after(delay_ms, Happening::Event(who, Event::Warm(shard, stamp)));
    }

    pub(crate) fn stamps(&mut self, who: Who) {
        let away = self.is_away();
        let Some(process) = self.process(who) else {
            return;
        };
        let reached = !away && !process.partitioned;
        let shards = self.count.shards();
        let found = shards
            .filter_map(|shard| Some((shard, self.highest_stamp(shard)?)))
            .collect();
        self.deliver(
            who,
            Event::Stamps(if reached { Ok(found) } else { Err(()) }),
        );
    }

    /// A worker looks for something to do.
    pub(crate) fn reconcile(&mut self, who: Who, shard: ShardId, id: u64) {
        let next_ms = self.random.between(100, 900);
        let now_ms = self.now_ms;
        let Some(process) = self.process(who) else {
            return;
        };
        let ready = !process.asleep && process.is_valid(now_ms);
        let hangs = process.hangs;
        let Some(tenure) = process.tenure(shard).filter(|t| t.id == id && t.admitting) else {
            return;
        };
        if ready {
            tenure.running += 1;
        }
        self.after(next_ms, Happening::Reconcile(who, shard, id));
        if ready {
            let takes_ms = if hangs && self.random.per_mille(300) {
                self.random.between(12_000, 20_000)
            } else {
                self.random.between(1, 120)
            };
            self.after(takes_ms, Happening::Write(who, shard, id));
        }
    }

    /// A reconcile comes to its write.
    pub(crate) fn send_object(&mut self, who: Who, shard: ShardId, id: u64) {
        let (now_ms, ignore) = (self.now_ms, self.plan.sabotage.no_validity);
        let Some(process) = self.process(who) else {
            return;
        };
        if process.asleep {
            self.after(3, Happening::Write(who, shard, id));
            return;
        }
        if !process.may_write(shard, id, ignore, now_ms) {
            self.worked(who, shard, id);
            return;
        }
        let (poor, cut) = (process.poor_network, process.partitioned);
        let lag_ms = process.watch.lag_ms;
        let writer = (process.life, process.incarnations);
        let holder = process.identity.clone();
        let Some(epoch) = process.tenure(shard).map(|tenure| tenure.epoch) else {
            return;
        };
        self.check_writing(who, shard, epoch);
        let of_shard = |object: &usize| self.objects[*object].shard == shard;
        let start = self.now_ms as usize % self.objects.len();
        let Some(object) = (start..self.objects.len()).chain(0..start).find(of_shard) else {
            return self.worked(who, shard, id);
        };
        let lost = cut || self.is_lost(poor);
        let there_ms = self.travel_ms(poor);
        let lag_ms = lag_ms + self.random.between(1, 8);
        let answered = !lost && there_ms < 1000;
        if !lost {
            let stamped = Stamped {
                object,
                epoch,
                holder,
                writer,
                lag_ms,
            };
            self.after(
                there_ms,
                Happening::ObjectWrite(who, shard, id, stamped, answered),
            );
        }
        if !answered {
            self.after(1000, Happening::Worked(who, shard, id));
        }
    }

    /// The API server gets a write of an object: the fence decides.
    pub(crate) fn object_arrives(
        &mut self,
        who: Who,
        shard: ShardId,
        id: u64,
        stamped: Stamped,
        answered: bool,
    ) {
        let at_ms = self.now_ms.saturating_sub(stamped.lag_ms);
        let object = &self.objects[stamped.object];
        let present = self.fence.lets_through(at_ms, shard, &stamped);
        let refused = stamped.epoch < object.epoch || !present;
        if self.is_away() || (refused && !self.plan.sabotage.no_fence) {
            self.summary.refused += 1;
        } else {
            self.accept(&stamped, shard);
        }
        if answered {
            let back_ms = self.random.between(1, 20);
            self.after(back_ms, Happening::Worked(who, shard, id));
        }
    }

    fn accept(&mut self, stamped: &Stamped, shard: ShardId) {
        self.summary.accepted += 1;
        let object = &mut self.objects[stamped.object];
        let (rises, known) = (stamped.epoch > object.epoch, object.epoch);
        let other =
            object.epoch == stamped.epoch && object.writer.is_some_and(|w| w != stamped.writer);
        object.epoch = stamped.epoch;
        object.writer = Some(stamped.writer);
        if stamped.epoch < known {
            self.fail(format!(
                "an object of shard {shard} was written in epoch {} after {known}",
                stamped.epoch
            ));
        }
        if other {
            self.fail(format!(
                "an object of shard {shard} was written by two lives in epoch {}, at last by {} {:?}",
                stamped.epoch, stamped.holder, stamped.writer
            ));
        }
        if rises {
            self.stamp_shown(shard, stamped.epoch);
        }
    }

    /// Who watches the shard sees the stamp.
    pub(crate) fn stamp_shown(&mut self, shard: ShardId, epoch: u32) {
        for slot in 0..self.slots.len() {
            let Some(process) = self.slots[slot].as_mut().filter(|p| !p.partitioned) else {
                continue;
            };
            let life = process.life;
            let lower = process
                .tenure(shard)
                .is_some_and(|tenure| tenure.epoch < epoch);
            if lower {
                let delay_ms = self.random.between(1, 60);
                let event = Event::StampMet(shard, epoch);
                self.after(delay_ms, Happening::Event(Who { slot, life }, event));
            }
        }
    }

    /// A reconcile ended.
    pub(crate) fn worked(&mut self, who: Who, shard: ShardId, id: u64) {
        let Some(process) = self.process(who) else {
            return;
        };
        let Some(tenure) = process.tenure(shard).filter(|tenure| tenure.id == id) else {
            return;
        };
        tenure.running = tenure.running.saturating_sub(1);
        if tenure.running == 0 && !tenure.admitting && !tenure.ended {
            self.deliver(who, Event::Drained(shard));
        }
    }

    /// No new work begins; the machine hears when none runs any more.
    pub(crate) fn drain(&mut self, who: Who, shard: ShardId) {
        self.tell(|| format!("r{} drains shard {shard}", who.slot));
        let hasty = self.plan.sabotage.no_drain_wait;
        let Some(tenure) = self.process(who).and_then(|process| process.tenure(shard)) else {
            return;
        };
        tenure.admitting = false;
        if tenure.running == 0 || hasty {
            self.after(1, Happening::Event(who, Event::Drained(shard)));
        }
    }
}
