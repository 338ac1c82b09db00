//! Work on objects: reconciles that take time, writes that the fence admits or rejects, and edits by users.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use crate::delivery::LATE_MS_MAX;
use crate::fence::{self, FenceRule};
use crate::world::{Happening, Who, World};
use shard_ownership::hash::{Bucket, ShardCount, ShardId};
use shard_ownership::ownership::Event;
use shard_ownership::table::ShardTable;
use shard_ownership::token::{EPOCH_MAX, FencingToken, ObservedToken};

/// A write that takes this long to arrive is late.
const LATE_MS: u64 = 200;
/// How many writes of objects in a thousand are late, beside those of a poor network.
const LATE_PER_MILLE: u64 = 100;
/// Versions of the table that a cache may still hold.
const REMEMBERED_MAX: usize = 64;

/// One place on an object for a token: the annotation, or the status.
#[derive(Clone, Debug, Default)]
pub(crate) struct Register {
    text: Option<String>,
    /// The operator's last write since the last edit by a user: right, process and incarnation.
    written: Option<(FencingToken, (u64, u32))>,
}

/// One object: only its tokens and its label matter here.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) shard: ShardId,
    /// Uid of the cluster that it is part of.
    cluster: Arc<str>,
    /// The shard of the bucket in its label.
    label: ShardId,
    registers: [Register; 2],
    /// The forged token that was reported last.
    reported: Option<String>,
}

impl Object {
    pub(crate) fn new(number: usize, count: ShardCount) -> Self {
        let shard = count.shard_of(Bucket::of(&format!("object-{number}")));
        Self {
            shard,
            cluster: format!("cluster-{number}").into(),
            label: shard,
            registers: Default::default(),
            reported: None,
        }
    }
}

/// A write of an object on its way.
#[derive(Clone, Debug)]
pub(crate) struct FencedWrite {
    object: usize,
    register: usize,
    token: FencingToken,
    writer: (u64, u32),
    cache: Cache,
}

/// What the API server that gets a write has in its cache.
#[derive(Clone, Copy, Debug)]
enum Cache {
    /// The table as it was at this age, in milliseconds.
    Behind(u64),
    /// One of the last versions of the table, however old.
    Old(usize),
    /// It does not find a table.
    Absent,
}

/// The table as it was: each version with the time since when it is in force.
#[derive(Clone, Debug, Default)]
pub(crate) struct TableHistory {
    versions: VecDeque<(u64, Option<Rc<ShardTable>>)>,
}

impl TableHistory {
    fn shown(&self, now_ms: u64, cache: Cache) -> Option<&ShardTable> {
        let at_ms = match cache {
            Cache::Absent => return None,
            Cache::Old(index) => {
                let index = index % self.versions.len().max(1);
                return self.versions.get(index)?.1.as_deref();
            }
            Cache::Behind(lag_ms) => now_ms.saturating_sub(lag_ms),
        };
        let mut versions = self.versions.iter().rev();
        let present = versions.find(|(since_ms, _)| *since_ms <= at_ms)?;
        present.1.as_deref()
    }
}

impl World {
    /// The table is another from now on.
    pub(crate) fn table_changed(&mut self) {
        let table = self.server.table.clone().map(Rc::new);
        let versions = &mut self.tables.versions;
        versions.push_back((self.now_ms, table));
        if versions.len() > REMEMBERED_MAX {
            versions.pop_front();
        }
    }

    /// Everything in the shard was listed.
    pub(crate) fn warmed(&mut self, who: Who, shard: ShardId) {
        let away = self.is_away();
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
        self.after(delay_ms, Happening::Event(who, Event::Warm(shard)));
    }

    /// A worker takes the next object.
    pub(crate) fn reconcile(&mut self, who: Who, shard: ShardId, id: u64) {
        let next_ms = self.random.between(100, 900);
        let now_ms = self.now_ms;
        let Some(process) = self.process(who) else {
            return;
        };
        let ready = !process.asleep && process.is_valid(now_ms);
        let hangs = process.hangs;
        let Some(permit) = process.permit(shard).filter(|t| t.id == id && t.admitting) else {
            return;
        };
        if ready {
            permit.running += 1;
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

    /// A reconcile sends its write.
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
        let Some(token) = process.right(shard).cloned() else {
            return;
        };
        self.check_writing(who, &token);
        let of_shard = |object: &usize| self.objects[*object].shard == shard;
        let start = self.now_ms as usize % self.objects.len();
        let Some(object) = (start..self.objects.len()).chain(0..start).find(of_shard) else {
            return self.worked(who, shard, id);
        };
        let lost = cut || self.is_lost(poor);
        let late = self.has_faults() && self.random.per_mille(LATE_PER_MILLE);
        let there_ms = if late {
            self.random.between(LATE_MS, LATE_MS_MAX)
        } else {
            self.travel_ms(poor)
        };
        let cache = self.cache(lag_ms, there_ms);
        let answered = !lost && there_ms < 1000;
        if !lost {
            let write = FencedWrite {
                object,
                register: self.random.index(2),
                token,
                writer,
                cache,
            };
            self.after(
                there_ms,
                Happening::ObjectWrite(who, shard, id, write, answered),
            );
        }
        if !answered {
            self.after(1000, Happening::Worked(who, shard, id));
        }
    }

    /// What the API server behind this replica's connection has in its cache: where writes come late, or now and then,
    /// any version that there was, or nothing.
    fn cache(&mut self, lag_ms: u64, there_ms: u64) -> Cache {
        let chance = if there_ms >= LATE_MS { 400 } else { 50 };
        if self.has_faults() && self.random.per_mille(chance) {
            Cache::Old(self.random.index(REMEMBERED_MAX))
        } else if self.has_faults() && self.random.per_mille(chance) {
            Cache::Absent
        } else {
            Cache::Behind(lag_ms + self.random.between(1, 8))
        }
    }

    /// The API server gets a write of an object: the fence decides.
    pub(crate) fn object_arrives(
        &mut self,
        who: Who,
        shard: ShardId,
        id: u64,
        write: FencedWrite,
        answered: bool,
    ) {
        let object = &self.objects[write.object];
        let register = object.registers[write.register].text.as_deref();
        let cached = self.tables.shown(self.now_ms, write.cache);
        let sabotage = &self.plan.sabotage;
        let decided = fence::admit(sabotage, cached, register, &write.token, &object.cluster);
        match decided {
            _ if self.is_away() => {}
            Ok(()) => self.accept(&write),
            Err(rule) => {
                self.summary.refused += 1;
                if answered && rule == FenceRule::Order {
                    self.refused(&write);
                }
            }
        }
        if answered {
            let back_ms = self.random.between(1, 20);
            self.after(back_ms, Happening::Worked(who, shard, id));
        }
    }

    fn accept(&mut self, write: &FencedWrite) {
        self.summary.accepted += 1;
        let (token, writer) = (&write.token, write.writer);
        let object = &mut self.objects[write.object];
        let text = token.for_cluster(&object.cluster);
        object.label = token.shard;
        let register = &mut object.registers[write.register];
        let last = register.written.replace((token.clone(), writer));
        register.text = Some(text);
        let Some((last, by)) = last.filter(|(last, _)| last.table == token.table) else {
            return;
        };
        if token.epoch < last.epoch {
            self.fail(format!("an object was written under {token} after {last}"));
        }
        if token.epoch == last.epoch && by != writer {
            self.fail(format!(
                "an object was written by two lives under {token}, {by:?} and {writer:?}"
            ));
        }
    }

    /// The order rule rejected a write, and the response arrives. If fresh reads still name the writer, the token there
    /// is forged, which is reported once.
    fn refused(&mut self, write: &FencedWrite) {
        let is_holder = |table: &ShardTable| fence::names(table, &write.token);
        if !self.server.table.as_ref().is_some_and(is_holder) {
            return;
        }
        let object = &mut self.objects[write.object];
        let register = &object.registers[write.register];
        let forged = register.text.clone();
        let by = register.written.clone();
        let counts = forged.as_deref().and_then(ObservedToken::parse);
        let counts = counts.is_some_and(|old| old.is_ahead_of(&write.token, &object.cluster));
        if object.reported != forged {
            object.reported.clone_from(&forged);
            self.summary.reports += 1;
        }
        if !counts {
            self.fail(format!(
                "{forged:?} stops work on an object where it means nothing"
            ));
        }
        if let Some((by, _)) = by {
            self.fail(format!(
                "{by} is ahead of {} though the table names that, and no token was forged",
                write.token
            ));
        }
        // The user follows the report.
        let object = &mut self.objects[write.object];
        object.registers[write.register].text = None;
    }

    /// Users edit, copy, restore and remove tokens and labels.
    pub(crate) fn users_edit(&mut self) {
        for _ in 0..self.random.between(1, 30) {
            self.user_edits();
        }
    }

    fn user_edits(&mut self) {
        self.summary.edits += 1;
        let (from, to) = (
            self.random.index(self.objects.len()),
            self.random.index(self.objects.len()),
        );
        let register = self.random.index(2);
        let kind = self.random.index(7);
        let forged_epoch = match self.random.index(3) {
            0 => EPOCH_MAX,
            1 => EPOCH_MAX + 1,
            _ => 300 + self.random.between(0, 1000) as u32,
        };
        let count = self.count.get();
        let uid = self
            .server
            .table
            .as_ref()
            .map(|table| table.version.uid.as_str());
        let copied = self.objects[from].registers[register].text.clone();
        let object = &mut self.objects[to];
        let own = object.registers[register].text.clone();
        let text = match kind {
            0 => None,
            1 => copied,
            2 => uid.map(|uid| {
                let cluster = &object.cluster;
                format!(
                    "{uid}/{:03}/{forged_epoch}/somebody/{cluster}",
                    object.shard.0
                )
            }),
            3 => own.as_deref().and_then(ObservedToken::parse).map(|token| {
                let (table, holder, cluster) = (token.table, token.holder, token.cluster);
                let epoch = (token.epoch / 2).max(1);
                format!("{table}/{:03}/{epoch}/{holder}/{cluster}", object.shard.0)
            }),
            // A copy of a whole object, out of a backup or from another namespace.
            4 => uid.map(|uid| format!("{uid}/000/{forged_epoch}/somebody/cluster-{from}")),
            5 => Some("x".repeat(500)),
            _ => {
                object.label = ShardId((object.shard.0 + 1) % count);
                return;
            }
        };
        object.registers[register] = Register {
            text,
            written: None,
        };
    }

    /// A reconcile ended.
    pub(crate) fn worked(&mut self, who: Who, shard: ShardId, id: u64) {
        let Some(process) = self.process(who) else {
            return;
        };
        let Some(permit) = process.permit(shard).filter(|permit| permit.id == id) else {
            return;
        };
        permit.running = permit.running.saturating_sub(1);
        if permit.running == 0 && !permit.admitting && !permit.ended {
            self.deliver(who, Event::Drained(shard));
        }
    }

    /// No new work begins; the machine is notified when none runs any more.
    pub(crate) fn drain(&mut self, who: Who, shard: ShardId) {
        self.trace(|| format!("r{} drains shard {shard}", who.slot));
        let hasty = self.plan.sabotage.no_drain_wait;
        let Some(permit) = self.process(who).and_then(|process| process.permit(shard)) else {
            return;
        };
        permit.admitting = false;
        if permit.running == 0 || hasty {
            self.after(1, Happening::Event(who, Event::Drained(shard)));
        }
    }
}
