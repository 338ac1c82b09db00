//! Events to the machines and their actions: the network between replicas and the API server.

use crate::process::{Permit, Process};
use crate::world::{Happening, Request, Sent, Who, World};
use shard_ownership::hash::ShardId;
use shard_ownership::lease::{MemberChange, MemberWrite, ShardLease, ShardWrite};
use shard_ownership::ownership::WriteId;
use shard_ownership::ownership::{Action, Event, Ownership, ReadFailed, Reason, WriteResult};
use shard_ownership::table::{ShardTable, TableChange, TableWrite};
use shard_ownership::token::FencingToken;

/// How long a caller waits for an answer.
const CALL_TIMEOUT_MS: u64 = 1000;
/// How often a timer that fires in a frozen process is tried again.
const FROZEN_MS: u64 = 100;
/// Every so many events, the machine is compared with one that was ticked too early.
const EARLY_TICKS: u64 = 8;
/// The key of the table among what is watched.
const TABLE: &str = "table";
/// Latest that a message that is not lost arrives.
pub(crate) const LATE_MS_MAX: u64 = 4000;

impl World {
    /// How long a message takes.
    pub(crate) fn travel_ms(&mut self, poor: bool) -> u64 {
        let late = if !self.has_faults() {
            0
        } else if poor {
            80
        } else {
            5
        };
        if self.random.per_mille(late) {
            self.random.between(50, LATE_MS_MAX)
        } else if poor {
            self.random.between(1, 150)
        } else {
            self.random.between(1, 20)
        }
    }

    pub(crate) fn is_lost(&mut self, poor: bool) -> bool {
        let chance = if !self.has_faults() {
            0
        } else if poor {
            120
        } else {
            5
        };
        self.random.per_mille(chance)
    }

    pub(crate) fn tick(&mut self, who: Who) {
        let now_ms = self.now_ms;
        let Some(process) = self.process(who) else {
            return;
        };
        if process.timer_ms.take_if(|at_ms| *at_ms == now_ms).is_none() {
            // Another one was set since, for an earlier time.
            return;
        }
        if process.paused {
            self.set_timer(who, now_ms + FROZEN_MS);
        } else if process.clock.shows(now_ms) < process.machine.next_wakeup_ms() {
            self.wake_in_time(who);
        } else {
            self.handle(who, Event::Tick);
        }
    }

    /// Sets the timer to the time that the machine needs.
    fn wake_in_time(&mut self, who: Who) {
        let late_ms = if self.has_faults() {
            self.random.between(0, 20)
        } else {
            0
        };
        let now_ms = self.now_ms;
        if let Some(process) = self.process(who) {
            let due_ms = process.clock.world_ms(process.machine.next_wakeup_ms());
            self.set_timer(who, due_ms.max(now_ms + 1) + late_ms);
        }
    }

    pub(crate) fn set_timer(&mut self, who: Who, at_ms: u64) {
        let Some(process) = self.process(who) else {
            return;
        };
        if process.timer_ms.is_none_or(|set_ms| at_ms < set_ms) {
            process.timer_ms = Some(at_ms);
            self.at(at_ms, Happening::Tick(who));
        }
    }

    pub(crate) fn deliver(&mut self, who: Who, event: Event) {
        let Some(process) = self.process(who) else {
            return;
        };
        if process.paused {
            process.inbox.push(event);
        } else {
            self.handle(who, event);
        }
    }

    pub(crate) fn handle(&mut self, who: Who, event: Event) {
        let now_ms = self.now_ms;
        self.summary.events += 1;
        let is_compared = self.summary.events.is_multiple_of(EARLY_TICKS);
        let sabotage = self.plan.sabotage;
        let Some(process) = self.process(who) else {
            return;
        };
        process.view(&event);
        let event = sabotage.shown(event, &process.identity, &process.named.clone());
        process.note_refusal(&event);
        let local_ms = process.clock.shows(now_ms);
        let early = is_compared.then(|| early_tick(process, local_ms)).flatten();
        let compared = early.map(|(early_actions, mut early)| {
            let same = early_actions.is_empty();
            (same, early.handle(local_ms, event.clone()), early)
        });
        let actions = process.machine.handle(local_ms, event);
        process.handled_ms = local_ms;
        let differs = compared.is_some_and(|(is_idle, early_actions, early)| {
            !is_idle || early_actions != actions || early != process.machine
        });
        if differs {
            self.fail(format!(
                "r{}: a tick before the time that its machine asked for made a difference",
                who.slot
            ));
        }
        for action in actions {
            self.act(who, action);
        }
        self.wake_in_time(who);
    }

    fn act(&mut self, who: Who, action: Action) {
        match action {
            Action::WriteMember(id, write) => self.send(who, Request::Member(id, write)),
            Action::WriteShard(id, write) => {
                self.hurry_entry(who, &write);
                self.send(who, Request::Shard(id, write));
            }
            Action::WriteTable(id, write) => self.send_table(who, id, write),
            Action::ReadTable => self.send(who, Request::ReadTable),
            Action::ProbeTable => self.send(who, Request::ProbeTable),
            Action::ReadMember(identity) => self.send(who, Request::ReadMember(identity)),
            Action::ReadShard(shard) => self.send(who, Request::ReadShard(shard)),
            Action::ValidUntil(until_ms) => {
                let named = self.process(who).map(|process| {
                    process.valid_until_ms = until_ms;
                    process.incarnation()
                });
                if let Some(incarnation) = named.filter(|_| until_ms > 0) {
                    self.note_in_force(incarnation);
                }
            }
            Action::Watch(shard) => {
                if let Some(process) = self.process(who) {
                    process.watching[usize::from(shard.0)] = true;
                }
                let delay_ms = self.random.between(5, 200);
                self.after(delay_ms, Happening::Warmed(who, shard));
            }
            Action::Unwatch(shard) => {
                let goes_on = self.plan.sabotage.no_stop_on_new_table;
                if let Some(process) = self.process(who) {
                    process.watching[usize::from(shard.0)] = false;
                    if !goes_on {
                        process.permits[usize::from(shard.0)] = None;
                    }
                }
            }
            Action::Admit {
                shard,
                table,
                epoch,
                ..
            } => self.admit(who, shard, table, epoch),
            Action::Resume(shard) => self.resume_work(who, shard),
            Action::Drain(shard) => self.drain(who, shard),
            Action::Halt(shard, reason) => {
                if self.plan.sabotage.no_stop_on_new_table && reason == Reason::TableLost {
                    return;
                }
                self.trace(|| format!("r{} halts shard {shard}: {}", who.slot, reason.label()));
                if let Some(permit) = self.process(who).and_then(|p| p.permit(shard)) {
                    permit.ended = true;
                    permit.admitting = false;
                }
            }
            Action::NeedIncarnation => self.reincarnate(who),
            Action::IdentityTaken | Action::Exit => {
                self.trace(|| format!("r{} exits: {action:?}", who.slot));
                self.ended(who, matches!(action, Action::Exit));
            }
        }
    }

    fn reincarnate(&mut self, who: Who) {
        let same = self.plan.sabotage.no_incarnation;
        let Some(process) = self.process(who) else {
            return;
        };
        process.incarnations += 1;
        let fresh = if same {
            process.identity.clone()
        } else {
            process.incarnation()
        };
        process.named.clone_from(&fresh);
        self.trace(|| format!("r{} is {fresh}", who.slot));
        self.after(1, Happening::Event(who, Event::Reincarnate(fresh)));
    }

    /// A replica without part of its protection writes its entry first.
    fn hurry_entry(&mut self, who: Who, write: &ShardWrite) {
        let (sabotage, count) = (self.plan.sabotage, self.count.get());
        let hasty = self.process(who).and_then(|process| {
            let table = process.machine.table_uid();
            sabotage.hasty_entry(write, &process.identity, table, count)
        });
        if let Some(hasty) = hasty {
            // Nobody waits for the answer.
            self.send(who, Request::Table(0, hasty));
        }
    }

    fn send_table(&mut self, who: Who, id: WriteId, mut write: TableWrite) {
        let sabotage = self.plan.sabotage;
        let table = self.server.table.clone();
        let Some(process) = self.process(who) else {
            return;
        };
        if let Some(batch) = process.refused_batch.clone()
            && sabotage.batch_resent_unchanged
            && matches!(write.change, TableChange::Entries { .. })
        {
            write = batch;
        }
        process.sent_table = Some(write.clone());
        if let (true, Some(table)) = (sabotage.work_before_entry, table)
            && let TableChange::Entries { entries, .. } = &write.change
        {
            let mut imagined = table;
            imagined.entries.extend(entries.clone());
            let done = Event::TableWritten(id, WriteResult::Done(imagined));
            self.after(1, Happening::Event(who, done));
            self.send(who, Request::Table(0, write));
            return;
        }
        self.send(who, Request::Table(id, write));
    }

    fn admit(&mut self, who: Who, shard: ShardId, table: String, epoch: u32) {
        self.permits += 1;
        let id = self.permits;
        self.trace(|| format!("r{} works on shard {shard} in epoch {epoch}", who.slot));
        if let Some(process) = self.process(who) {
            process.permits[usize::from(shard.0)] = Some(Permit {
                id,
                token: FencingToken {
                    table: table.into(),
                    shard,
                    epoch,
                    holder: process.identity.as_str().into(),
                },
                ended: false,
                admitting: true,
                running: 0,
            });
        }
        self.check_admitted(who, shard);
        let delay_ms = self.random.between(1, 400);
        self.after(delay_ms, Happening::Reconcile(who, shard, id));
    }

    fn resume_work(&mut self, who: Who, shard: ShardId) {
        self.trace(|| format!("r{} resumes shard {shard}", who.slot));
        let Some(permit) = self.process(who).and_then(|p| p.permit(shard)) else {
            return;
        };
        permit.admitting = true;
        let id = permit.id;
        self.after(1, Happening::Reconcile(who, shard, id));
    }

    /// Sends a request. It is executed even when its sender no longer waits.
    fn send(&mut self, who: Who, request: Request) {
        let Some(process) = self.process(who) else {
            return;
        };
        let (poor, cut) = (process.poor_network, process.partitioned);
        let there_ms = self.travel_ms(poor);
        let back_ms = self.travel_ms(poor);
        let lost = cut || self.is_lost(poor);
        let answered = !lost && !self.is_lost(poor) && there_ms + back_ms < CALL_TIMEOUT_MS;
        if !answered {
            self.after(
                CALL_TIMEOUT_MS,
                Happening::Answer(who, request.clone(), None),
            );
        }
        if !lost {
            let sent = Sent {
                at_ms: self.now_ms,
                answer_ms: answered.then_some(self.now_ms + there_ms + back_ms),
            };
            self.after(there_ms, Happening::AtServer(who, request, sent));
        }
    }

    /// The API server carries a request out.
    pub(crate) fn serve(&mut self, who: Who, request: Request, sent: Sent) {
        let answer = if self.is_away() {
            None
        } else {
            Some(match &request {
                Request::Member(id, write) => {
                    Event::MemberWritten(*id, self.serve_member(who, write, sent.at_ms))
                }
                Request::Shard(id, write) => Event::ShardWritten(*id, self.serve_shard(who, write)),
                Request::ReadMember(identity) => Event::MemberRead(
                    identity.clone(),
                    Ok(self.server.members.get(identity).cloned()),
                ),
                Request::ReadShard(shard) => {
                    Event::ShardRead(*shard, Ok(self.server.shards.get(shard).cloned()))
                }
                Request::Table(id, write) => Event::TableWritten(*id, self.serve_table(who, write)),
                Request::ReadTable => Event::TableRead(Ok(self.server.table.clone())),
                Request::ProbeTable => Event::TableProbed(self.may_write_table(who)),
            })
        };
        if let Some(answer_ms) = sent.answer_ms {
            self.at(answer_ms, Happening::Answer(who, request, answer));
        }
    }

    fn serve_member(
        &mut self,
        who: Who,
        write: &MemberWrite,
        sent_ms: u64,
    ) -> WriteResult<Option<shard_ownership::lease::MemberLease>> {
        let Some(meta) = self.meta(who) else {
            return WriteResult::Unknown;
        };
        let before = self.server.members.get(&write.identity).cloned();
        if matches!(write.change, MemberChange::Renew { barred: true, .. }) {
            self.check_barred(&write.identity);
        }
        let result = self.server.write_member(write, &meta);
        self.trace(|| format!("r{} {:?} -> {}", who.slot, write, kind(&result)));
        let after = self.server.members.get(&write.identity).cloned();
        self.check_member(sent_ms, before.as_ref(), after.as_ref());
        match (&result, before) {
            (WriteResult::Done(Some(lease)), _) => {
                self.publish(Event::MemberObserved(lease.clone()));
            }
            (WriteResult::Done(None), Some(before)) => {
                let (identity, uid) = (write.identity.clone(), before.version.uid);
                self.publish(Event::MemberDeleted { identity, uid });
            }
            (WriteResult::Done(None), None)
            | (WriteResult::Conflict | WriteResult::Rejected | WriteResult::Unknown, _) => {}
        }
        result
    }

    fn serve_shard(&mut self, who: Who, write: &ShardWrite) -> WriteResult<ShardLease> {
        let before = self.server.shards.get(&write.shard).cloned();
        let result = self.server.write_shard(write, self.count.get());
        self.trace(|| format!("r{} {write:?} -> {}", who.slot, kind(&result)));
        if let WriteResult::Done(lease) = &result {
            self.check_lease(before.as_ref(), lease);
            self.publish(Event::ShardObserved(lease.clone()));
        }
        result
    }

    fn may_write_table(&self, who: Who) -> bool {
        let identity = self.identities.get(&who.life);
        identity.is_some_and(|identity| self.server.may_write_table(identity))
    }

    fn serve_table(&mut self, who: Who, write: &TableWrite) -> WriteResult<ShardTable> {
        let Some(identity) = self.identities.get(&who.life).cloned() else {
            return WriteResult::Unknown;
        };
        let before = self.server.table.clone();
        let result = self.server.write_table(&identity, write);
        self.trace(|| format!("r{} {write:?} -> {}", who.slot, kind(&result)));
        if let WriteResult::Done(table) = &result
            && before.as_ref() != Some(table)
        {
            self.check_table(&identity, before.as_ref(), table);
            self.table_changed();
            self.publish(Event::TableObserved(table.clone()));
        }
        result
    }

    /// An answer arrives, or the caller has waited for too long.
    pub(crate) fn answer(&mut self, who: Who, request: Request, answer: Option<Event>) {
        let Some(process) = self.process(who) else {
            return;
        };
        let answer = answer.filter(|_| !process.partitioned);
        let event = answer.unwrap_or_else(|| self.no_answer(request));
        self.deliver(who, event);
    }

    fn no_answer(&self, request: Request) -> Event {
        match request {
            Request::Member(id, _) => Event::MemberWritten(id, WriteResult::Unknown),
            Request::Shard(id, write) => {
                Event::ShardWritten(id, self.server.unanswered(write, self.count.get()))
            }
            Request::Table(id, _) => Event::TableWritten(id, WriteResult::Unknown),
            Request::ReadMember(identity) => Event::MemberRead(identity, Err(ReadFailed)),
            Request::ReadShard(shard) => Event::ShardRead(shard, Err(ReadFailed)),
            Request::ReadTable => Event::TableRead(Err(ReadFailed)),
            Request::ProbeTable => Event::TableProbed(false),
        }
    }

    /// A Lease changed: every watch shows it, in its time. One watch shows all Leases in the order in
    /// which they were written; while faults happen, each Lease has its own time, which is worse.
    pub(crate) fn publish(&mut self, event: Event) {
        let key = match &event {
            Event::MemberObserved(lease) => lease.identity.clone(),
            Event::MemberDeleted { identity, .. } => identity.clone(),
            Event::ShardObserved(lease) => lease.shard.to_string(),
            Event::ShardDeleted { shard, .. } => shard.to_string(),
            Event::TableObserved(_) | Event::TableDeleted(_) => TABLE.to_owned(),
            _ => return,
        };
        let in_order = self.is_updating();
        for slot in 0..self.slots.len() {
            let Some(process) = self.slots[slot].as_ref() else {
                continue;
            };
            let watch = process.watch_of(&event);
            if !watch.connected {
                continue;
            }
            let (poor, life, lag_ms) = (process.poor_network, process.life, watch.lag_ms);
            let arrives_ms = self.now_ms + lag_ms + self.travel_ms(poor);
            let Some(process) = self.slots[slot].as_mut() else {
                continue;
            };
            let watch = process.watch_of_mut(&event);
            let others_ms = watch.ready_ms.values().copied().max();
            let floor_ms = others_ms.filter(|_| in_order).unwrap_or(0);
            let ready_ms = watch.ready_ms.entry(key.clone()).or_insert(0);
            *ready_ms = arrives_ms.max(*ready_ms).max(floor_ms).max(watch.floor_ms);
            let (at_ms, generation) = (*ready_ms, watch.generation);
            self.at(
                at_ms,
                Happening::Watch(Who { slot, life }, generation, event.clone()),
            );
        }
    }

    pub(crate) fn show(&mut self, who: Who, generation: u64, event: Event) {
        let current = self
            .process(who)
            .is_some_and(|p| p.watch_of(&event).generation == generation && !p.partitioned);
        if current {
            self.deliver(who, event);
        }
    }

    /// Both watches begin again.
    pub(crate) fn relist(&mut self, who: Who) {
        self.relist_leases(who);
        self.relist_table(who);
    }

    /// Lists the table again, then watches from there: by a watch of its own.
    pub(crate) fn relist_table(&mut self, who: Who) {
        let away = self.is_away();
        let delay_ms = self.random.between(2, 60);
        let now_ms = self.now_ms;
        let table = self.server.table.clone();
        let Some(process) = self.process(who) else {
            return;
        };
        let connected = !away && !process.partitioned;
        let generation = process.table_watch.begin(connected, now_ms + delay_ms);
        if connected {
            let event = Event::TableListed(table);
            self.after(delay_ms, Happening::Watch(who, generation, event));
        } else {
            self.after(300, Happening::RelistTable(who));
        }
    }

    /// Lists the Leases again, then watches from there.
    pub(crate) fn relist_leases(&mut self, who: Who) {
        let away = self.is_away();
        let delay_ms = self.random.between(2, 60);
        let now_ms = self.now_ms;
        let Some(process) = self.process(who) else {
            return;
        };
        let connected = !away && !process.partitioned;
        let generation = process.watch.begin(connected, now_ms + delay_ms);
        if !connected {
            self.after(300, Happening::Relist(who));
            return;
        }
        let event = Event::Listed {
            members: self.server.members.values().cloned().collect(),
            shards: self.server.shards.values().cloned().collect(),
        };
        self.after(delay_ms, Happening::Watch(who, generation, event));
    }
}

fn kind<L>(result: &WriteResult<L>) -> &'static str {
    match result {
        WriteResult::Done(_) => "done",
        WriteResult::Conflict => "conflict",
        WriteResult::Rejected => "rejected",
        WriteResult::Unknown => "unknown",
    }
}

/// The machine, had it been ticked at some time since its last event, with the actions of that tick;
/// `None` where it asked for ticks in that time.
fn early_tick(process: &Process, local_ms: u64) -> Option<(Vec<Action>, Ownership)> {
    let machine = &process.machine;
    if !machine.is_at_rest() || local_ms > machine.next_wakeup_ms() {
        return None;
    }
    let mut early = machine.clone();
    let between_ms = process.handled_ms.midpoint(local_ms);
    let actions = early.handle(between_ms, Event::Tick);
    Some((actions, early))
}
