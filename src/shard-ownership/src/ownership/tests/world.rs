//! A simulated environment of the state machine: Leases in memory, replicas, and a virtual clock.
use std::collections::{BTreeMap, BTreeSet};

use crate::hash::{ShardCount, ShardId};
use crate::lease::{MemberChange, MemberLease, MemberWrite, ShardLease};
use crate::lease::{ShardWrite, Version};
use crate::ownership::*;
use crate::planner::{Fleet, Move, move_budget};
use crate::table::{ShardTable, TableRefusal, TableWrite, carried_out};

/// The API server's Leases: compare-and-swap on uid and resourceVersion.
#[derive(Default)]
pub(super) struct Server {
    pub(super) members: BTreeMap<String, MemberLease>,
    pub(super) shards: BTreeMap<ShardId, ShardLease>,
    pub(super) revision: u64,
    pub(super) uids: u64,
    pub(super) away: bool,
    pub(super) table: Option<ShardTable>,
    /// The replica whose writes of the table are refused.
    pub(super) refuses_table_of: Option<String>,
    /// Requests so far, answered or not.
    pub(super) requests: usize,
}

impl Server {
    pub(super) fn next(&mut self, base: Option<&Version>) -> Version {
        self.revision += 1;
        let uid = base.map_or_else(
            || {
                self.uids += 1;
                format!("uid-{}", self.uids)
            },
            |base| base.uid.clone(),
        );
        Version {
            uid,
            resource_version: self.revision.to_string(),
        }
    }

    pub(super) fn write_member(
        &mut self,
        write: &MemberWrite,
        node: &Node,
    ) -> WriteResult<Option<MemberLease>> {
        self.requests += 1;
        if self.away {
            return WriteResult::Unknown;
        }
        let known = self.members.get(&write.identity);
        if known.map(|lease| &lease.version) != write.base.as_ref() {
            return WriteResult::Conflict;
        }
        let mut lease = known.cloned().unwrap_or(MemberLease {
            identity: write.identity.clone(),
            version: Version {
                uid: String::new(),
                resource_version: String::new(),
            },
            holder: String::new(),
            incarnation: String::new(),
            renewal: 0,
            lease_ms: 6000,
            pod_uid: String::new(),
            revision: String::new(),
            shards: node.machine.settings.shards.get(),
            draining: false,
            barred: false,
            drain_requested: false,
            warm: BTreeSet::new(),
            created_seconds: 0,
        });
        match &write.change {
            MemberChange::Renew {
                incarnation,
                renewal,
                draining,
                barred,
                drain_requested,
                warm,
            } => {
                lease.holder.clone_from(&write.identity);
                lease.incarnation.clone_from(incarnation);
                lease.renewal = *renewal;
                lease.pod_uid.clone_from(&node.machine.settings.pod_uid);
                lease.draining = *draining;
                lease.barred = *barred;
                lease.drain_requested = *drain_requested;
                lease.warm.clone_from(warm);
                lease.revision.clone_from(&node.revision);
            }
            MemberChange::Vacate => lease.holder.clear(),
            MemberChange::Delete => {
                self.members.remove(&write.identity);
                return WriteResult::Done(None);
            }
        }
        lease.version = self.next(write.base.as_ref());
        self.members.insert(write.identity.clone(), lease.clone());
        WriteResult::Done(Some(lease))
    }

    pub(super) fn write_shard(
        &mut self,
        write: &ShardWrite,
        shards: u16,
    ) -> WriteResult<ShardLease> {
        if self.away {
            return WriteResult::Unknown;
        }
        let known = self.shards.get(&write.shard);
        if known.map(|lease| &lease.version) != write.base.as_ref() {
            return WriteResult::Conflict;
        }
        if let Some(known) = known {
            assert!(write.epoch >= known.epoch, "an epoch fell: {write:?}");
            assert!(
                write.holder == known.holder || write.epoch > known.epoch,
                "a holder changed under the same epoch: {write:?}"
            );
        }
        let lease = ShardLease {
            shard: write.shard,
            version: self.next(write.base.as_ref()),
            holder: write.holder.clone(),
            incarnation: write.incarnation.clone(),
            epoch: write.epoch,
            shards,
            successor: write.successor.clone(),
        };
        self.shards.insert(write.shard, lease.clone());
        WriteResult::Done(lease)
    }
}

impl Server {
    pub(super) fn write_table(
        &mut self,
        replicas: &str,
        write: &TableWrite,
    ) -> WriteResult<ShardTable> {
        if self.away {
            return WriteResult::Unknown;
        }
        if self.refuses_table_of.as_deref() == Some(replicas) {
            return WriteResult::Rejected;
        }
        let (shards, entries) = match carried_out(self.table.as_ref(), write) {
            Ok(table) => table,
            Err(TableRefusal::Conflict) => return WriteResult::Conflict,
            Err(TableRefusal::Rejected) => return WriteResult::Rejected,
        };
        let known = self.table.as_ref().map(|table| table.version.clone());
        let table = ShardTable {
            version: self.next(known.as_ref()),
            shards,
            entries,
        };
        self.table = Some(table.clone());
        WriteResult::Done(table)
    }
}

pub(super) struct Node {
    pub(super) machine: Ownership,
    pub(super) queue: Vec<Event>,
    pub(super) running: BTreeMap<ShardId, u32>,
    pub(super) halted: Vec<(ShardId, Reason)>,
    pub(super) frozen: bool,
    pub(super) drains: bool,
    /// Shards whose lists do not complete.
    pub(super) still_lists: BTreeSet<ShardId>,
    pub(super) exited: bool,
    pub(super) lose_replies: usize,
    pub(super) lives: u32,
    pub(super) until_ms: u64,
    pub(super) revision: String,
}

impl Node {
    fn lose_reply<L>(&mut self, result: WriteResult<L>) -> WriteResult<L> {
        if self.lose_replies == 0 {
            return result;
        }
        self.lose_replies -= 1;
        WriteResult::Unknown
    }
}

pub(super) struct World {
    pub(super) server: Server,
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) now_ms: u64,
    /// For each shard, every epoch in which anybody worked, and who did.
    /// Whether there is a fleet leader.
    pub(super) leader: bool,
    /// Leases were deleted or restored: for a moment two replicas may work on one shard, never in
    /// one epoch.
    pub(super) tampered: bool,
    pub(super) most_under_way: usize,
    /// For how long each shard was not worked on.
    pub(super) unowned_ms: BTreeMap<ShardId, u64>,
    pub(super) history: BTreeMap<(ShardId, u32), BTreeSet<String>>,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            server: Server::default(),
            nodes: BTreeMap::new(),
            now_ms: 1_000_000,
            leader: true,
            tampered: false,
            most_under_way: 0,
            unowned_ms: BTreeMap::new(),
            history: BTreeMap::new(),
        }
    }

    pub(super) fn join(&mut self, identity: &str, shards: u64) {
        let mut settings = Settings::new(identity, ShardCount::new(shards).unwrap());
        settings.pod_uid = format!("pod-{identity}");
        let machine = Ownership::new(settings, format!("{identity}-1"), self.now_ms);
        self.nodes.insert(
            identity.to_owned(),
            Node {
                machine,
                queue: Vec::new(),
                running: BTreeMap::new(),
                halted: Vec::new(),
                frozen: false,
                drains: true,
                still_lists: BTreeSet::new(),
                exited: false,
                lose_replies: 0,
                lives: 1,
                until_ms: 0,
                revision: String::new(),
            },
        );
    }

    pub(super) fn node(&mut self, identity: &str) -> &mut Node {
        self.nodes.get_mut(identity).unwrap()
    }

    /// A quarter of a tick: every state machine observes the Leases, then acts.
    pub(super) fn step(&mut self) {
        self.now_ms += 25;
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in names {
            if self.nodes[&name].frozen || self.nodes[&name].exited {
                continue;
            }
            let mut node = self.nodes.remove(&name).unwrap();
            if !self.server.away {
                node.queue
                    .push(Event::TableListed(self.server.table.clone()));
                node.queue.push(Event::Listed {
                    members: self.server.members.values().cloned().collect(),
                    shards: self.server.shards.values().cloned().collect(),
                });
            }
            node.queue.push(Event::Tick);
            while let Some(event) = (!node.queue.is_empty()).then(|| node.queue.remove(0)) {
                for action in node.machine.handle(self.now_ms, event) {
                    self.act(&name, &mut node, action);
                }
            }
            self.nodes.insert(name, node);
        }
        if self.leader && !self.server.away && self.now_ms.is_multiple_of(100) {
            self.lead();
        }
        self.note_unowned();
        self.check();
    }

    /// The work of a fleet leader.
    fn lead(&mut self) {
        let Some(node) = self.nodes.values().next() else {
            return;
        };
        let count = node.machine.settings.shards;
        let members: Vec<MemberLease> = self.server.members.values().cloned().collect();
        let shards: Vec<ShardLease> = self.server.shards.values().cloned().collect();
        let fleet = Fleet::new(count, &members, &shards);
        // No update in these tests stays incomplete for as long as it takes until it is balanced.
        if fleet.is_mixed() {
            return;
        }
        for Move { shard, successor } in fleet.moves(move_budget(count)) {
            let base = self.server.shards[&shard].version.clone();
            let version = self.server.next(Some(&base));
            let lease = self.server.shards.get_mut(&shard).unwrap();
            lease.successor = successor;
            lease.version = version;
        }
        let planned = self.server.shards.values();
        let under_way = planned.filter(|lease| lease.successor.is_some()).count();
        self.most_under_way = self.most_under_way.max(under_way);
    }

    /// Shards that no replica works on, by step: for tests of planned moves.
    fn note_unowned(&mut self) {
        for id in self.server.shards.keys() {
            let held = self
                .nodes
                .values()
                .any(|node| node.running.contains_key(id));
            if !held {
                *self.unowned_ms.entry(*id).or_insert(0) += 25;
            }
        }
    }

    pub(super) fn act(&mut self, name: &str, node: &mut Node, action: Action) {
        match action {
            Action::WriteMember(id, write) => {
                let result = self.server.write_member(&write, node);
                let result = node.lose_reply(result);
                node.queue.push(Event::MemberWritten(id, result));
            }
            Action::WriteShard(id, write) => {
                let shards = node.machine.settings.shards.get();
                let result = self.server.write_shard(&write, shards);
                let result = node.lose_reply(result);
                node.queue.push(Event::ShardWritten(id, result));
            }
            Action::ReadMember(identity) => {
                let read = (!self.server.away).then(|| self.server.members.get(&identity).cloned());
                node.queue
                    .push(Event::MemberRead(identity, read.ok_or(ReadFailed)));
            }
            Action::ReadShard(shard) => {
                let read = (!self.server.away).then(|| self.server.shards.get(&shard).cloned());
                node.queue
                    .push(Event::ShardRead(shard, read.ok_or(ReadFailed)));
            }
            Action::WriteTable(id, write) => {
                let result = self.server.write_table(name, &write);
                let result = node.lose_reply(result);
                node.queue.push(Event::TableWritten(id, result));
            }
            Action::ReadTable => {
                let read = (!self.server.away).then(|| self.server.table.clone());
                node.queue.push(Event::TableRead(read.ok_or(ReadFailed)));
            }
            Action::ProbeTable => {
                let may = self.server.refuses_table_of.as_deref() != Some(name);
                node.queue
                    .push(Event::TableProbed(may && !self.server.away));
            }
            Action::ValidUntil(until_ms) => node.until_ms = until_ms,
            Action::Watch(shard) => {
                if !node.still_lists.contains(&shard) {
                    node.queue.push(Event::Warm(shard));
                }
            }
            Action::Unwatch(shard) => assert!(!node.running.contains_key(&shard) || node.drains),
            Action::Admit {
                shard,
                epoch,
                table,
                ..
            } => {
                let granted = self.server.table.as_ref().is_some_and(|known| {
                    let entry = &known.entries[&shard];
                    known.version.uid == table && entry.epoch >= epoch
                });
                assert!(
                    granted || self.tampered,
                    "{name} works on shard {shard} before its entry was written"
                );
                node.running.insert(shard, epoch);
                let workers = self.history.entry((shard, epoch)).or_default();
                workers.insert(name.to_owned());
            }
            Action::Drain(shard) => {
                if node.drains {
                    node.running.remove(&shard);
                    node.queue.push(Event::Drained(shard));
                }
            }
            Action::Resume(shard) => {
                let epoch = node
                    .machine
                    .running()
                    .find(|(id, _)| *id == shard)
                    .unwrap()
                    .1;
                node.running.insert(shard, epoch);
            }
            Action::Halt(shard, reason) => {
                node.running.remove(&shard);
                node.halted.push((shard, reason));
            }
            Action::NeedIncarnation => {
                node.lives += 1;
                let incarnation = format!("{name}-{}", node.lives);
                node.queue.push(Event::Reincarnate(incarnation));
            }
            Action::IdentityTaken => panic!("{name}: identity taken"),
            Action::Exit => node.exited = true,
        }
    }

    /// At no instant do two replicas that may act work on one shard; no epoch has two holders.
    pub(super) fn check(&self) {
        let mut workers: BTreeMap<ShardId, &str> = BTreeMap::new();
        for (name, node) in &self.nodes {
            if node.until_ms <= self.now_ms {
                continue;
            }
            for shard in node.running.keys() {
                if let Some(other) = workers.insert(*shard, name)
                    && !self.tampered
                {
                    panic!("shard {shard} is worked on by {other} and {name}");
                }
            }
        }
        for ((shard, epoch), replicas) in &self.history {
            assert!(
                replicas.len() == 1,
                "shard {shard} epoch {epoch}: {replicas:?}"
            );
        }
    }

    pub(super) fn run(&mut self, for_ms: u64) {
        for _ in 0..for_ms / 25 {
            self.step();
        }
    }

    /// Milliseconds until the condition holds.
    pub(super) fn until(&mut self, what: &str, most_ms: u64, done: impl Fn(&Self) -> bool) -> u64 {
        let began_ms = self.now_ms;
        while !done(self) {
            assert!(
                self.now_ms - began_ms < most_ms,
                "waited {most_ms} ms for: {what}"
            );
            self.step();
        }
        self.now_ms - began_ms
    }

    pub(super) fn held(&self, name: &str) -> usize {
        self.nodes[name].running.len()
    }

    pub(super) fn all_run(&self, shards: usize) -> bool {
        let running = |node: &&Node| !node.frozen && !node.exited;
        let live = self.nodes.values().filter(running);
        live.map(|node| node.running.len()).sum::<usize>() == shards
    }

    pub(super) fn balanced_three() -> Self {
        let mut world = Self::new();
        for name in ["a", "b", "c"] {
            world.join(name, 32);
            world.run(75);
        }
        world.until("three replicas to share 32 shards", 10_000, |w| {
            w.all_run(32)
                && ["a", "b", "c"]
                    .iter()
                    .all(|n| [10, 11].contains(&w.held(n)))
        });
        world
    }
}
