//! Faults drawn from the seed, their ends, and replicas that start and stop.

use std::collections::BTreeSet;

use crate::process::{Clock, Newcomer, Process};
use crate::server::MemberMeta;
use crate::world::{Ending, Happening, Who, World};
use shard_ownership::hash::ShardId;
use shard_ownership::lease::Version;
use shard_ownership::lease::{MemberLease, Successor};
use shard_ownership::ownership::Event;
use shard_ownership::planner::{Fleet, Move, move_budget};

/// The end of a fault.
#[derive(Clone, Debug)]
pub(crate) enum Undo {
    /// Its workers run again, then its machine does.
    Wake(Who),
    WakeMachine(Who),
    Partition(Who),
    Away,
    PoorNetwork(Who),
    Lag(Who),
    LagOfTable(Who),
    /// The API server accepts its writes of the table again.
    RefuseTable(String),
    Hang(Who),
    /// The kubelet loses patience with a replica that leaves.
    Kill(Who),
}

impl World {
    /// The name of a Pod that never was before, and its uid.
    pub(crate) fn newcomer(&mut self) -> Newcomer {
        self.lives += 1;
        let identity = format!("r{}", self.lives);
        if self.ending == Ending::Leave && self.random.per_mille(100) {
            self.revision += 1;
        }
        let revision = self.revision.to_string();
        self.again(&identity, &format!("pod-{identity}"), &revision)
    }

    /// The next life of a replica in a Pod.
    fn again(&self, identity: &str, pod_uid: &str, revision: &str) -> Newcomer {
        let publishes = !self.plan.sabotage.no_revision;
        Newcomer {
            identity: identity.to_owned(),
            pod_uid: pod_uid.to_owned(),
            incarnation: String::new(),
            revision: if publishes {
                revision.to_owned()
            } else {
                String::new()
            },
        }
    }

    pub(crate) fn start(&mut self, slot: usize, mut newcomer: Newcomer) {
        if self.slots[slot].is_some() {
            return;
        }
        self.lives += 1;
        let life = self.lives;
        newcomer.incarnation = if self.plan.sabotage.no_incarnation {
            newcomer.identity.clone()
        } else {
            format!("{}-{life}-1", newcomer.identity)
        };
        self.trace(|| format!("r{slot} starts: {newcomer:?}"));
        let clock = Clock::new(
            self.random.between(1_000, 9_000_000),
            self.random.between(930, 1070),
        );
        let process = Process::start(newcomer, life, self.count, clock, self.now_ms);
        self.metas.insert(life, process.meta.clone());
        self.identities.insert(life, process.identity.clone());
        self.slots[slot] = Some(process);
        let who = Who { slot, life };
        self.relist(who);
        let first_ms = self.random.between(0, 100);
        self.set_timer(who, self.now_ms + first_ms);
    }

    /// A process ended by itself: its Pod is replaced, or the container is started again.
    pub(crate) fn ended(&mut self, who: Who, left: bool) {
        let Some(process) = self.slots[who.slot].take_if(|process| process.life == who.life) else {
            return;
        };
        if self.is_updating() {
            // The user that updates the fleet starts the next one.
            return;
        }
        let meta = process.meta;
        let next = if left {
            self.newcomer()
        } else {
            self.again(&process.identity, &meta.pod_uid, &meta.revision)
        };
        self.after(500, Happening::Start(who.slot, next));
    }

    pub(crate) fn meta(&self, who: Who) -> Option<MemberMeta> {
        self.metas.get(&who.life).cloned()
    }

    /// When a fault that begins now ends.
    fn ends_ms(&mut self, least_ms: u64, most_ms: u64) -> u64 {
        let end_ms = self.now_ms + self.random.between(least_ms, most_ms);
        end_ms.min(self.plan.fault_ms)
    }

    pub(crate) fn fault(&mut self) {
        if !self.has_faults() {
            return;
        }
        self.summary.faults += 1;
        let slot = self.random.index(self.plan.replicas);
        let kinds = if self.tampers { 24 } else { 16 };
        let kind = self.random.index(kinds);
        self.trace(|| format!("fault {kind} on r{slot}"));
        let who = self.slots[slot].as_ref().map(|process| Who {
            slot,
            life: process.life,
        });
        match (kind, who) {
            (0..=2 | 23, Some(who)) => self.crash(who, kind),
            (3..=9 | 12, Some(who)) => self.trouble(who, kind),
            (10, _) => {
                let end_ms = self.ends_ms(300, 10_000);
                self.away_until_ms = end_ms;
                for process in self.slots.iter_mut().flatten() {
                    process.disconnect();
                }
                self.at(end_ms, Happening::Undo(Undo::Away));
            }
            (11, _) => {
                let (first, second) = (self.random.index(self.plan.replicas), self.random.index(3));
                self.leaders = [vec![first], vec![first, slot], vec![]][second].clone();
            }
            (13, Some(who)) => self.refuse_table(who),
            (14 | 15, _) => self.users_edit(),
            (16..=22, _) if !self.is_away() => self.tamper(kind),
            _ => {}
        }
        let next_ms = self.random.between(200, 2500);
        self.after(next_ms, Happening::Fault);
    }

    fn crash(&mut self, who: Who, kind: usize) {
        let Some(process) = self.slots[who.slot].take() else {
            return;
        };
        let meta = process.meta;
        let next = match kind {
            0 | 1 => self.again(&process.identity, &meta.pod_uid, &meta.revision),
            2 => self.newcomer(),
            // The same name in another Pod: it has to wait until the owner of the name is known.
            _ => {
                let uid = format!("pod-{}-{}", process.identity, process.life);
                self.again(&process.identity, &uid, &meta.revision)
            }
        };
        let at_ms = self.ends_ms(100, 8000);
        self.at(at_ms, Happening::Start(who.slot, next));
    }

    fn trouble(&mut self, who: Who, kind: usize) {
        let (least_ms, most_ms) = [
            (100, 15_000),
            (500, 12_000),
            (1000, 10_000),
            (2000, 10_000),
            (1, 1),
            (1000, 8000),
            (1, 1),
            (1, 1),
            (1, 1),
            (1000, 10_000),
        ][kind - 3];
        let end_ms = self.ends_ms(least_ms, most_ms);
        let lag_ms = self.random.between(200, 2000);
        let Some(process) = self.process(who) else {
            return;
        };
        let undo = match kind {
            3 => {
                (process.paused, process.asleep) = (true, true);
                Undo::Wake(who)
            }
            4 => {
                process.partitioned = true;
                process.disconnect();
                Undo::Partition(who)
            }
            5 => {
                process.poor_network = true;
                Undo::PoorNetwork(who)
            }
            6 => {
                process.watch.lag_ms = lag_ms;
                process.table_watch.lag_ms = lag_ms;
                Undo::Lag(who)
            }
            12 => {
                process.table_watch.lag_ms = 5 * lag_ms;
                Undo::LagOfTable(who)
            }
            7 => return self.relist(who),
            8 => {
                process.hangs = true;
                Undo::Hang(who)
            }
            _ => return self.shut_down(who),
        };
        self.at(end_ms, Happening::Undo(undo));
    }

    /// The API server refuses its writes of the table, for a while.
    fn refuse_table(&mut self, who: Who) {
        let Some(identity) = self.process(who).map(|process| process.identity.clone()) else {
            return;
        };
        let end_ms = self.ends_ms(500, 10_000);
        self.server.refuses_table_of.insert(identity.clone());
        self.note_refused(identity.clone());
        self.at(end_ms, Happening::Undo(Undo::RefuseTable(identity)));
    }

    /// The kubelet sends SIGTERM to a replica.
    pub(crate) fn shut_down(&mut self, who: Who) {
        if let Some(process) = self.process(who) {
            process.leaving = true;
            self.deliver(who, Event::Shutdown);
            self.after(30_000, Happening::Undo(Undo::Kill(who)));
        }
    }

    /// Edits by users.
    fn tamper(&mut self, kind: usize) {
        let shard = ShardId(self.random.index(usize::from(self.count.get())) as u16);
        match kind {
            16 => self.delete_shard(shard),
            17 => {
                let names: Vec<String> = self.server.members.keys().cloned().collect();
                if !names.is_empty() {
                    let identity = names[self.random.index(names.len())].clone();
                    self.delete_member(&identity);
                }
            }
            18 if self.random.per_mille(300) => {
                for shard in self.count.shards() {
                    self.delete_shard(shard);
                }
            }
            19 => {
                if let Some(uid) = self.server.delete_table() {
                    self.trace(|| "the table is deleted".into());
                    self.table_changed();
                    self.publish(Event::TableDeleted(uid));
                }
            }
            20 => {
                self.server.edit_entry(shard);
                self.table_changed();
                if let Some(table) = self.server.table.clone() {
                    self.trace(|| format!("the entry of shard {shard} is raised by hand"));
                    self.publish(Event::TableObserved(table));
                }
            }
            21 => {
                self.server.edit_shard(shard, |lease| {
                    lease.holder.clear();
                    lease.incarnation.clear();
                });
                if let Some(lease) = self.server.shards.get(&shard).cloned() {
                    self.publish(Event::ShardObserved(lease));
                }
            }
            _ => {}
        }
    }

    fn delete_shard(&mut self, shard: ShardId) {
        if let Some(uid) = self.server.delete_shard(shard) {
            self.trace(|| format!("Lease of shard {shard} deleted"));
            self.publish(Event::ShardDeleted { shard, uid });
        }
    }

    fn delete_member(&mut self, identity: &str) {
        let before = self.server.members.get(identity).cloned();
        if let Some(uid) = self.server.delete_member(identity) {
            self.note_deleted(identity.to_owned());
            self.check_member(self.now_ms, before.as_ref(), None);
            self.trace(|| format!("Lease of member {identity} deleted"));
            self.publish(Event::MemberDeleted {
                identity: identity.to_owned(),
                uid,
            });
        }
    }

    pub(crate) fn undo(&mut self, undo: Undo) {
        self.trace(|| format!("end of {undo:?}"));
        match undo {
            Undo::Away => {
                for slot in 0..self.slots.len() {
                    if let Some(life) = self.slots[slot].as_ref().map(|process| process.life) {
                        let delay_ms = self.random.between(1, 800);
                        let who = Who { slot, life };
                        self.after(delay_ms, Happening::Relist(who));
                        self.after(delay_ms, Happening::RelistTable(who));
                    }
                }
            }
            Undo::Wake(who) => {
                if let Some(process) = self.process(who) {
                    process.asleep = false;
                    let delay_ms = self.random.between(0, 30);
                    self.after(delay_ms, Happening::Undo(Undo::WakeMachine(who)));
                }
            }
            Undo::WakeMachine(who) => {
                let waiting = self.process(who).map(|process| {
                    process.paused = false;
                    std::mem::take(&mut process.inbox)
                });
                for event in waiting.into_iter().flatten() {
                    self.deliver(who, event);
                }
            }
            Undo::Partition(who) => {
                if let Some(process) = self.process(who) {
                    process.partitioned = false;
                    let delay_ms = self.random.between(1, 800);
                    self.after(delay_ms, Happening::Relist(who));
                    self.after(delay_ms, Happening::RelistTable(who));
                }
            }
            Undo::PoorNetwork(who) => self.with(who, |process| process.poor_network = false),
            Undo::Lag(who) => {
                self.with(who, |process| {
                    process.watch.lag_ms = 0;
                    process.table_watch.lag_ms = 0;
                });
                self.relist(who);
            }
            Undo::LagOfTable(who) => {
                self.with(who, |process| process.table_watch.lag_ms = 0);
                self.relist_table(who);
            }
            Undo::RefuseTable(identity) => {
                self.server.refuses_table_of.remove(&identity);
            }
            Undo::Hang(who) => self.with(who, |process| process.hangs = false),
            Undo::Kill(who) => self.ended(who, true),
        }
    }

    fn with(&mut self, who: Who, change: impl FnOnce(&mut Process)) {
        if let Some(process) = self.process(who) {
            change(process);
        }
    }

    /// The fleet leaders check whether shards should move, and clean up.
    pub(crate) fn lead(&mut self) {
        let now_ms = self.now_ms;
        if !self.has_faults() {
            self.leaders = self
                .slots
                .iter()
                .position(Option::is_some)
                .into_iter()
                .collect();
        }
        for slot in self.leaders.clone() {
            let Some(process) = self.slots[slot].as_mut() else {
                continue;
            };
            if process.paused || process.partitioned {
                continue;
            }
            let members: Vec<MemberLease> = process.seen_members.values().cloned().collect();
            let shards: Vec<_> = process.seen_shards.values().cloned().collect();
            let poor = process.poor_network;
            let fleet = Fleet::new(self.count, &members, &shards);
            let time = process.clock.shows(now_ms);
            if !process.stabilization.allows_moves(time, &fleet)
                || !std::mem::take(&mut process.view_changed)
            {
                continue;
            }
            let moves = fleet.moves(move_budget(self.count));
            for Move { shard, successor } in moves {
                let seen = shards
                    .iter()
                    .find(|lease| lease.shard == shard)
                    .map(|l| l.version.clone());
                if let Some(version) = seen {
                    let delay_ms = self.travel_ms(poor);
                    self.after(delay_ms, Happening::Planned(version, shard, successor));
                }
            }
            let named: BTreeSet<&str> = shards.iter().map(|lease| lease.holder.as_str()).collect();
            let dead = |m: &&MemberLease| m.is_vacated() && !named.contains(m.identity.as_str());
            for member in members.iter().filter(dead) {
                let delay_ms = 5000 + self.travel_ms(poor);
                let (identity, version) = (member.identity.clone(), member.version.clone());
                self.after(delay_ms, Happening::Tidied(identity, version));
            }
        }
        self.after(200, Happening::Lead);
    }

    pub(crate) fn planned(&mut self, version: &Version, shard: ShardId, next: Option<Successor>) {
        if self.is_away() || !self.server.plan(version, shard, next) {
            return;
        }
        if let Some(lease) = self.server.shards.get(&shard).cloned() {
            self.trace(|| format!("planned shard {shard} for {:?}", lease.successor));
            self.publish(Event::ShardObserved(lease));
        }
    }

    /// The Lease of a dead member is removed, if it is as it was.
    pub(crate) fn tidied(&mut self, identity: &str, version: &Version) {
        let as_seen = self
            .server
            .members
            .get(identity)
            .is_some_and(|l| l.version == *version);
        if as_seen && !self.is_away() {
            self.delete_member(identity);
        }
    }
}
