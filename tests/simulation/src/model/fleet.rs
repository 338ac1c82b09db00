//! The searched state: replicas, Leases, requests in flight, and violations.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::replica::{NextRequest, Permit, Replica, Up};
use super::second::Second;
use super::{LateWrite, OwnershipModel, Step};
use crate::fence;
use crate::server::Server;
use shard_ownership::hash::ShardId;
use shard_ownership::lease::{MemberWrite, ShardLease, ShardWrite, Successor};
use shard_ownership::ownership::{Action, Event, ReadFailed, Reason, WriteId, WriteResult};
use shard_ownership::token::FencingToken;

const STEP_MS: u64 = 1000;
/// Steps within which everything must have recovered: a pause ends, a lifetime passes, a
/// drain runs out, a takeover follows.
pub(super) const RECOVERY_STEPS: usize = 16;
const CHAIN_MAX: usize = 500;
/// Uid of the cluster that owns the written object; only the operator writes its tokens here.
const CLUSTER: &str = "c";

/// One moment of a fleet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fleet {
    pub(super) now_ms: u64,
    pub(super) server: Server,
    pub(super) replicas: Vec<Replica>,
    pub(super) second: Option<Second>,
    pub(super) queue: VecDeque<(usize, Event)>,
    pub(super) late_writes: Vec<LateWrite>,
    /// Token and incarnation of object writes under way.
    pub(super) late_objects: Vec<(FencingToken, String)>,
    /// The last write to the one register of the one object of each shard, and its writer.
    objects: BTreeMap<ShardId, (FencingToken, String)>,
    /// The replica that worked under each table, shard and epoch.
    workers: BTreeMap<(Arc<str>, ShardId, u32), String>,
    pub(super) dead: BTreeSet<String>,
    pub(super) tampered: bool,
    /// Shards that may move to a replica that has not listed them: their plan was replaced by another before it was
    /// executed, or their handover was sent to one that had, and did not arrive at once.
    pub(super) excused: BTreeSet<ShardId>,
    /// Faults so far.
    pub faults: u8,
    /// Times a shard was started.
    pub moves: u32,
    /// The promise that was broken.
    pub violation: Option<String>,
}

impl Fleet {
    /// A fleet at rest: all replicas live, all shards run.
    pub(super) fn settled(model: &OwnershipModel) -> Self {
        let mut fleet = Self {
            now_ms: 10_000,
            server: Server::default(),
            replicas: Vec::new(),
            second: None,
            queue: VecDeque::new(),
            late_writes: Vec::new(),
            late_objects: Vec::new(),
            objects: BTreeMap::new(),
            workers: BTreeMap::new(),
            dead: BTreeSet::new(),
            tampered: false,
            excused: BTreeSet::new(),
            faults: 0,
            moves: 0,
            violation: None,
        };
        for n in 0..model.replicas {
            let name = format!("r{n}");
            let incarnation = if model.sabotage.no_incarnation {
                name.clone()
            } else {
                format!("{name}-1")
            };
            let mut replica = Replica::new(&name, incarnation, model.count(n), fleet.now_ms);
            if replica.meta.shards != model.count(0).get() {
                // It joins later, while the others are at work.
                replica.up = Up::Crashed;
            }
            let revision = model.revisions.get(n).copied().unwrap_or_default();
            replica.meta.revision = revision.to_owned();
            fleet.replicas.push(replica);
            fleet.relist(n);
        }
        fleet.run(model);
        for _ in 0..8 {
            fleet.take(model, Step::Tick);
        }
        fleet
    }

    /// Who holds a shard.
    pub(super) fn holder(&self, shard: ShardId) -> usize {
        let lease = self.server.shards.get(&shard);
        let named = |replica: &Replica| lease.is_some_and(|lease| lease.holder == replica.identity);
        self.replicas.iter().position(named).unwrap_or_default()
    }

    /// The shards of a replica.
    pub(super) fn held_by(&self, n: usize) -> Vec<ShardId> {
        let leases = self.server.shards.values();
        let held = leases.filter(|lease| lease.holder == self.replicas[n].identity);
        held.map(|lease| lease.shard).collect()
    }

    /// Whether a replica worked under this Lease.
    pub(super) fn ran(&self, lease: &ShardLease) -> bool {
        let mut rights = self.workers.keys();
        rights.any(|(_, shard, epoch)| (*shard, *epoch) == (lease.shard, lease.epoch))
    }

    fn relist(&mut self, n: usize) {
        let table = Event::TableListed(self.server.table.clone());
        self.queue.push_back((n, table));
        let event = Event::Listed {
            members: self.server.members.values().cloned().collect(),
            shards: self.server.shards.values().cloned().collect(),
        };
        self.queue.push_back((n, event));
    }

    /// Faults that may end, or continue, at no charge.
    pub(super) fn ends(&self, steps: &mut Vec<Step>) {
        for (n, replica) in self.replicas.iter().enumerate() {
            match replica.up {
                Up::Crashed => steps.push(Step::Restart(n)),
                Up::Paused => steps.push(Step::Resume(n)),
                Up::Running => {
                    for (shard, permit) in &replica.permits {
                        if permit.busy {
                            steps.push(Step::Finish(n, *shard, false));
                        } else if permit.admitting {
                            steps.push(Step::Begin(n, *shard));
                        }
                    }
                }
                Up::Left => {}
            }
            if replica.is_there() && replica.cut {
                steps.push(Step::Mend(n));
            }
            if replica.is_there() && replica.held_back.is_some() {
                steps.push(Step::CatchUp(n));
            }
            if replica.is_there() && replica.table_held_back.is_some() {
                steps.push(Step::CatchUpTable(n));
            }
            if !self.server.may_write_table(&replica.identity) {
                steps.push(Step::AcceptTable(n));
            }
        }
    }

    /// Possible faults.
    pub(super) fn faults(&self, model: &OwnershipModel, steps: &mut Vec<Step>) {
        for (n, replica) in self.replicas.iter().enumerate() {
            if replica.up != Up::Running {
                continue;
            }
            steps.extend([Step::Crash(n), Step::Pause(n)]);
            if !replica.cut {
                steps.push(Step::Cut(n));
            }
            if replica.held_back.is_none() {
                steps.push(Step::Lag(n));
                if self.second.is_some() {
                    steps.push(Step::MoveTo(n));
                }
            }
            if !replica.leaving {
                steps.push(Step::Leave(n));
                for shard in self
                    .server
                    .shards
                    .values()
                    .filter(|l| l.holder != replica.identity)
                {
                    steps.push(Step::Plan(shard.shard, n));
                }
            }
            if replica.next == NextRequest::Arrives {
                for next in [
                    NextRequest::IsLost,
                    NextRequest::LosesItsReply,
                    NextRequest::IsLate,
                ] {
                    steps.push(Step::Spoil(n, next));
                }
            }
            let busy = replica.permits.iter().filter(|(_, permit)| permit.busy);
            steps.extend(busy.map(|(shard, _)| Step::Finish(n, *shard, true)));
            if model.tampers {
                steps.push(Step::DeleteMember(n));
            }
            if model.table_faults {
                self.faults_of_table(n, steps);
            }
        }
        if model.table_faults
            && let Some(table) = &self.server.table
        {
            steps.push(Step::DeleteTable);
            steps.extend(table.entries.keys().map(|shard| Step::RaiseEntry(*shard)));
        }
        if model.tampers {
            steps.extend(
                self.server
                    .shards
                    .keys()
                    .map(|shard| Step::DeleteShard(*shard)),
            );
        }
    }

    pub(super) fn take(&mut self, model: &OwnershipModel, step: Step) {
        match step {
            Step::Tick => self.tick(),
            Step::Begin(n, shard) => {
                if let Some(permit) = self.replicas[n].permits.get_mut(&shard) {
                    permit.busy = true;
                }
            }
            Step::Finish(n, shard, late) => self.finish(n, shard, late, model),
            Step::LateObject(index) => {
                let (token, writer) = self.late_objects.remove(index);
                self.write_object(&token, writer);
            }
            Step::LateRequest(index) => {
                // Nobody waits for an answer.
                match self.late_writes.remove(index) {
                    LateWrite::Shard(n, write) => drop(self.serve_shard(n, &write)),
                    LateWrite::Member(n, write) => drop(self.serve_member(n, &write)),
                    LateWrite::Table(n, write) => drop(self.serve_table(n, &write)),
                }
            }
            Step::Plan(shard, n) => self.plan(shard, n),
            Step::Leave(n) => {
                self.replicas[n].leaving = true;
                self.queue.push_back((n, Event::Shutdown));
            }
            Step::Spoil(n, next) => self.replicas[n].next = next,
            Step::Lag(n) => self.replicas[n].held_back = Some(Vec::new()),
            Step::CatchUp(n) => {
                let held = self.replicas[n].held_back.take().unwrap_or_default();
                self.queue.extend(held.into_iter().map(|event| (n, event)));
            }
            Step::Crash(n) => self.replicas[n].up = Up::Crashed,
            Step::Restart(n) => self.restart(n, model),
            Step::Pause(n) => self.replicas[n].up = Up::Paused,
            Step::Resume(n) => self.replicas[n].up = Up::Running,
            Step::Cut(n) => self.replicas[n].cut = true,
            Step::Mend(n) => {
                self.replicas[n].cut = false;
                self.replicas[n].held_back = None;
                self.replicas[n].table_held_back = None;
                self.relist(n);
            }
            Step::Fork => self.fork(),
            Step::MoveTo(n) => self.move_to_second(n),
            Step::DeleteShard(shard) => {
                self.tampered = true;
                if let Some(uid) = self.server.delete_shard(shard) {
                    self.publish(&Event::ShardDeleted { shard, uid });
                }
            }
            Step::DeleteMember(n) => self.delete_member(n),
            Step::SpoilTable(..)
            | Step::LagTable(_)
            | Step::CatchUpTable(_)
            | Step::RefuseTable(_)
            | Step::AcceptTable(_)
            | Step::DeleteTable
            | Step::RaiseEntry(_) => self.take_of_table(step),
        }
        self.run(model);
        self.check(model);
    }

    fn delete_member(&mut self, n: usize) {
        self.tampered = true;
        let identity = self.replicas[n].identity.clone();
        let incarnation = self
            .server
            .members
            .get(&identity)
            .map(|l| l.incarnation.clone());
        self.dead.extend(incarnation);
        if let Some(uid) = self.server.delete_member(&identity) {
            self.publish(&Event::MemberDeleted { identity, uid });
        }
    }

    fn tick(&mut self) {
        self.now_ms += STEP_MS;
        for n in 0..self.replicas.len() {
            if self.replicas[n].up == Up::Running {
                let waiting = std::mem::take(&mut self.replicas[n].inbox);
                self.queue
                    .extend(waiting.into_iter().map(|event| (n, event)));
                self.queue.push_back((n, Event::Tick));
            }
        }
    }

    fn restart(&mut self, n: usize, model: &OwnershipModel) {
        let old = &self.replicas[n];
        let (identity, lives) = (old.identity.clone(), old.lives + 1);
        let incarnation = if model.sabotage.no_incarnation {
            identity.clone()
        } else {
            format!("{identity}-{lives}")
        };
        let mut fresh = Replica::new(&identity, incarnation, model.count(n), self.now_ms);
        fresh.lives = lives;
        fresh.was_refused = old.was_refused;
        fresh.meta.revision.clone_from(&old.meta.revision);
        self.replicas[n] = fresh;
        self.relist(n);
    }

    fn plan(&mut self, shard: ShardId, n: usize) {
        let next = Successor {
            identity: self.replicas[n].identity.clone(),
            incarnation: self.replicas[n].incarnation.clone(),
        };
        self.server
            .edit_shard(shard, |lease| lease.successor = Some(next));
        if let Some(lease) = self.server.shards.get(&shard).cloned() {
            self.publish(&Event::ShardObserved(lease));
        }
    }

    fn finish(&mut self, n: usize, shard: ShardId, late: bool, model: &OwnershipModel) {
        let now_ms = self.now_ms;
        let replica = &mut self.replicas[n];
        let acts = replica
            .acts(shard, now_ms, model.sabotage.no_validity)
            .cloned();
        let writer = replica.incarnation.clone();
        let drained = replica.permits.get_mut(&shard).is_some_and(|permit| {
            permit.busy = false;
            !permit.admitting
        });
        if drained {
            self.queue.push_back((n, Event::Drained(shard)));
        }
        match acts {
            Some(token) if late => self.late_objects.push((token, writer)),
            Some(token) if !self.replicas[n].cut => self.write_object(&token, writer),
            _ => {}
        }
    }

    /// The fence of an API server whose cache has no table: only the token on the object itself is certain.
    fn write_object(&mut self, token: &FencingToken, writer: String) {
        let known = self.objects.get(&token.shard);
        let register = known.map(|(last, _)| last.for_cluster(CLUSTER));
        let sabotage = &self.server.sabotage;
        if fence::admit(sabotage, None, register.as_deref(), token, CLUSTER).is_err() {
            return;
        }
        if let Some((last, by)) = known.filter(|(last, _)| last.table == token.table) {
            if token.epoch < last.epoch {
                self.violation = Some(format!("{token} was written after {last}"));
            } else if token.epoch == last.epoch && *by != writer {
                self.violation = Some(format!("{by} and {writer} wrote under {token}"));
            }
        }
        self.objects.insert(token.shard, (token.clone(), writer));
    }

    /// Everything that follows of itself.
    fn run(&mut self, model: &OwnershipModel) {
        for _ in 0..CHAIN_MAX {
            let Some((n, event)) = self.queue.pop_front() else {
                return;
            };
            if self.violation.is_some() {
                return;
            }
            let replica = &mut self.replicas[n];
            match replica.up {
                Up::Running => {
                    replica.note_won(&event);
                    let event =
                        self.server
                            .sabotage
                            .shown(event, &replica.identity, &replica.incarnation);
                    for action in replica.machine.handle(self.now_ms, event) {
                        self.act(n, action, model);
                    }
                    self.check_stopped(n);
                }
                Up::Paused => replica.inbox.push(event),
                Up::Crashed | Up::Left => {}
            }
        }
        self.violation = Some("the replicas keep each other busy without end".into());
    }

    fn act(&mut self, n: usize, action: Action, model: &OwnershipModel) {
        match action {
            Action::WriteMember(id, write) => self.send_member(n, id, write),
            Action::WriteShard(id, write) => {
                self.hurry_entry(n, &write);
                self.send_shard(n, id, write, model);
            }
            Action::ReadMember(identity) => {
                let read = self.request(n, |fleet| fleet.server.members.get(&identity).cloned());
                self.queue
                    .push_back((n, Event::MemberRead(identity, read.ok_or(ReadFailed))));
            }
            Action::ReadShard(shard) => {
                let read = self.request(n, |fleet| fleet.server.shards.get(&shard).cloned());
                self.queue
                    .push_back((n, Event::ShardRead(shard, read.ok_or(ReadFailed))));
            }
            Action::WriteTable(id, write) => self.send_table(n, id, write),
            Action::ReadTable => {
                let read = self.request_of_table(n, |fleet| fleet.server.table.clone());
                let read = read.ok_or(ReadFailed);
                self.queue.push_back((n, Event::TableRead(read)));
            }
            Action::ProbeTable => {
                let identity = self.replicas[n].identity.clone();
                let may = self.request_of_table(n, |fleet| fleet.server.may_write_table(&identity));
                let event = Event::TableProbed(may.unwrap_or(false));
                self.queue.push_back((n, event));
            }
            Action::ValidUntil(until_ms) => self.replicas[n].valid_until_ms = until_ms,
            Action::Watch(shard) => {
                self.replicas[n].watching.insert(shard);
                self.queue.push_back((n, Event::Warm(shard)));
            }
            Action::Unwatch(shard) => {
                self.replicas[n].watching.remove(&shard);
                if !self.server.sabotage.no_stop_on_new_table {
                    self.replicas[n].permits.remove(&shard);
                }
            }
            Action::Admit {
                shard,
                table,
                epoch,
                ..
            } => {
                let token = FencingToken {
                    table: table.into(),
                    shard,
                    epoch,
                    holder: self.replicas[n].identity.as_str().into(),
                };
                self.admit(n, token);
            }
            Action::Resume(shard) => {
                if let Some(permit) = self.replicas[n].permits.get_mut(&shard) {
                    permit.admitting = true;
                }
            }
            Action::Drain(shard) => {
                let permit = self.replicas[n].permits.get_mut(&shard);
                let busy = permit.is_some_and(|permit| {
                    permit.admitting = false;
                    permit.busy
                });
                if !busy || model.sabotage.no_drain_wait {
                    self.queue.push_back((n, Event::Drained(shard)));
                }
            }
            Action::Halt(_, Reason::TableLost) if self.server.sabotage.no_stop_on_new_table => {}
            Action::Halt(shard, _) => {
                self.replicas[n].permits.remove(&shard);
            }
            Action::NeedIncarnation => self.reincarnate(n, model),
            Action::IdentityTaken | Action::Exit => self.replicas[n].up = Up::Left,
        }
    }

    fn send_member(&mut self, n: usize, id: WriteId, write: MemberWrite) {
        self.check_barred(n, &write);
        let late = self.next_is_late(n);
        let answer = self.request(n, |fleet| fleet.serve_member(n, &write));
        if late {
            self.late_writes.push(LateWrite::Member(n, write));
        }
        let result = answer.unwrap_or(WriteResult::Unknown);
        self.queue.push_back((n, Event::MemberWritten(id, result)));
    }

    fn send_shard(&mut self, n: usize, id: WriteId, write: ShardWrite, model: &OwnershipModel) {
        let late = self.next_is_late(n);
        let answer = self.request(n, |fleet| fleet.serve_shard(n, &write));
        if late {
            self.late_writes.push(LateWrite::Shard(n, write.clone()));
        }
        if answer.is_none() && self.has_listed(&write.incarnation, write.shard) {
            self.excused.insert(write.shard);
        }
        let result = answer.unwrap_or_else(|| self.server.unanswered(write, model.shards.get()));
        self.queue.push_back((n, Event::ShardWritten(id, result)));
    }

    fn has_listed(&self, incarnation: &str, shard: ShardId) -> bool {
        let mut replicas = self.replicas.iter();
        replicas.any(|one| one.incarnation == incarnation && one.watching.contains(&shard))
    }

    fn next_is_late(&self, n: usize) -> bool {
        let replica = &self.replicas[n];
        replica.next == NextRequest::IsLate && !replica.cut
    }

    fn reincarnate(&mut self, n: usize, model: &OwnershipModel) {
        let replica = &mut self.replicas[n];
        replica.lives += 1;
        replica.won.clear();
        if !model.sabotage.no_incarnation {
            replica.incarnation = format!("{}-{}", replica.identity, replica.lives);
        }
        let fresh = replica.incarnation.clone();
        self.queue.push_back((n, Event::Reincarnate(fresh)));
    }

    /// Sends a request; `None`: there is no answer.
    pub(super) fn request<T>(&mut self, n: usize, serve: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let next = std::mem::take(&mut self.replicas[n].next);
        self.carry(n, next, serve)
    }

    /// The result of a request.
    pub(super) fn carry<T>(
        &mut self,
        n: usize,
        next: NextRequest,
        serve: impl FnOnce(&mut Self) -> T,
    ) -> Option<T> {
        if self.replicas[n].cut {
            return None;
        }
        match next {
            NextRequest::Arrives => Some(serve(self)),
            NextRequest::LosesItsReply => {
                serve(self);
                None
            }
            NextRequest::IsLost | NextRequest::IsLate => None,
        }
    }

    fn admit(&mut self, n: usize, token: FencingToken) {
        self.moves += 1;
        self.check_admitted(n, &token);
        let replica = &mut self.replicas[n];
        let me = format!("{}/{}", replica.incarnation, replica.lives);
        let permit = Permit {
            token: token.clone(),
            admitting: true,
            busy: false,
        };
        replica.permits.insert(token.shard, permit);
        let right = (Arc::clone(&token.table), token.shard, token.epoch);
        let first = self.workers.entry(right).or_insert_with(|| me.clone());
        if *first != me {
            self.violation = Some(format!("{token} has two workers: {first}, {me}"));
        }
    }
}
