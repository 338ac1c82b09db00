//! The world of one run: what happens when, in virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;

use crate::checks::Checks;
use crate::faults::Undo;
use crate::process::{Newcomer, Process};
use crate::random::Random;
use crate::server::{MemberMeta, Sabotage, Server};
use crate::work::{FencedWrite, Object, TableHistory};
use shard_ownership::hash::{ShardCount, ShardId};
use shard_ownership::lease::{MemberWrite, ShardWrite, Successor, Version};
use shard_ownership::ownership::{Event, WriteId};
use shard_ownership::table::TableWrite;

/// How a run ends, once its faults have ended and everything has recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// One replica leaves as planned.
    Leave,
    /// All are replaced, as a Deployment does it: one more, then one less.
    Update,
    /// A replica of a newer revision joins, and nothing more happens.
    HalfAnUpdate,
}

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Replicas.
    pub replicas: usize,
    /// Shards.
    pub shards: u16,
    /// Objects.
    pub objects: usize,
    /// For how long faults happen.
    pub fault_ms: u64,
    /// How long after the last fault every shard must be held and running.
    pub bound_ms: u64,
    /// How it ends; `None`: by the seed.
    pub ending: Option<Ending>,
    /// What is switched off.
    pub sabotage: Sabotage,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            replicas: 5,
            shards: 32,
            objects: 1000,
            fault_ms: 20_000,
            bound_ms: 30_000,
            ending: None,
            sabotage: Sabotage::default(),
        }
    }
}

/// What a run that went well was like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Faults that were injected.
    pub faults: u64,
    /// Events handed to machines.
    pub events: u64,
    /// Writes of objects that were accepted.
    pub accepted: u64,
    /// Writes of objects that the fence refused.
    pub refused: u64,
    /// Edits of objects by users.
    pub edits: u64,
    /// Forged tokens that were reported.
    pub reports: u64,
    /// Times a shard changed hands.
    pub moves: u64,
    /// From the last fault until every shard ran.
    pub recovery_ms: u64,
    /// Rolling updates in which each shard moved once.
    pub updates: u64,
    /// Longest that a shard stood still while a replica left as planned.
    pub handover_gap_ms: u64,
}

impl Summary {
    /// Two runs taken together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            faults: self.faults + other.faults,
            events: self.events + other.events,
            accepted: self.accepted + other.accepted,
            refused: self.refused + other.refused,
            edits: self.edits + other.edits,
            reports: self.reports + other.reports,
            moves: self.moves + other.moves,
            updates: self.updates + other.updates,
            recovery_ms: self.recovery_ms.max(other.recovery_ms),
            handover_gap_ms: self.handover_gap_ms.max(other.handover_gap_ms),
        }
    }
}

/// A request to the API server, about Leases or the shard table.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Member(WriteId, MemberWrite),
    Shard(WriteId, ShardWrite),
    Table(WriteId, TableWrite),
    ReadMember(String),
    ReadShard(ShardId),
    ReadTable,
    ProbeTable,
}

/// When a request was sent, and when its answer arrives, if it does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) at_ms: u64,
    pub(crate) answer_ms: Option<u64>,
}

/// Whom a happening concerns: a slot for a Pod, and the process that lived in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) slot: usize,
    pub(crate) life: u64,
}

#[derive(Debug)]
pub(crate) enum Happening {
    Tick(Who),
    Event(Who, Event),
    Watch(Who, u64, Event),
    /// A request arrives.
    AtServer(Who, Request, Sent),
    Answer(Who, Request, Option<Event>),
    Relist(Who),
    RelistTable(Who),
    Warmed(Who, ShardId),
    Reconcile(Who, ShardId, u64),
    Write(Who, ShardId, u64),
    /// A write of an object arrives; it may be late, and its sender dead.
    ObjectWrite(Who, ShardId, u64, FencedWrite, bool),
    Worked(Who, ShardId, u64),
    Lead,
    Planned(Version, ShardId, Option<Successor>),
    Tidied(String, Version),
    Fault,
    Undo(Undo),
    Start(usize, Newcomer),
    Check,
}

struct Entry {
    at_ms: u64,
    number: u64,
    what: Happening,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ms, self.number).cmp(&(other.at_ms, other.number))
    }
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) count: ShardCount,
    pub(crate) random: Random,
    pub(crate) now_ms: u64,
    schedule: BinaryHeap<Reverse<Entry>>,
    scheduled: u64,
    pub(crate) server: Server,
    /// Until when the API server answers no request.
    pub(crate) away_until_ms: u64,
    pub(crate) slots: Vec<Option<Process>>,
    pub(crate) lives: u64,
    pub(crate) permits: u64,
    pub(crate) leaders: Vec<usize>,
    pub(crate) tampers: bool,
    pub(crate) ending: Ending,
    /// The revision of replicas that start now.
    pub(crate) revision: u64,
    pub(crate) objects: Vec<Object>,
    /// What caches of the API servers may still hold.
    pub(crate) tables: TableHistory,
    /// What each incarnation publishes: its requests may arrive after its end.
    pub(crate) metas: BTreeMap<u64, MemberMeta>,
    pub(crate) identities: BTreeMap<u64, String>,
    pub(crate) checks: Checks,
    pub(crate) summary: Summary,
    /// The first violation.
    pub(crate) failure: Option<String>,
    /// Whether to print what happens.
    pub(crate) traces: bool,
}

impl World {
    pub(crate) fn at(&mut self, at_ms: u64, what: Happening) {
        self.scheduled += 1;
        self.schedule.push(Reverse(Entry {
            at_ms: at_ms.max(self.now_ms),
            number: self.scheduled,
            what,
        }));
    }

    pub(crate) fn after(&mut self, delay_ms: u64, what: Happening) {
        self.at(self.now_ms + delay_ms, what);
    }

    pub(crate) fn has_faults(&self) -> bool {
        self.now_ms < self.plan.fault_ms
    }

    pub(crate) fn is_away(&self) -> bool {
        self.now_ms < self.away_until_ms
    }

    pub(crate) fn process(&mut self, who: Who) -> Option<&mut Process> {
        self.slots[who.slot]
            .as_mut()
            .filter(|process| process.life == who.life)
    }

    pub(crate) fn fail(&mut self, what: impl fmt::Display) {
        if self.failure.is_none() {
            self.failure = Some(format!("at {} ms: {what}", self.now_ms));
        }
    }

    pub(crate) fn trace(&self, what: impl FnOnce() -> String) {
        if self.traces {
            eprintln!("{:>7} {}", self.now_ms, what());
        }
    }

    fn new(plan: Plan, seed: u64, count: ShardCount) -> Self {
        let mut random = Random::new(seed);
        let tampers = random.per_mille(500);
        let drawn = [Ending::Leave, Ending::Update][random.index(2)];
        let objects = (0..plan.objects).map(|n| Object::new(n, count)).collect();
        let mut world = Self {
            plan,
            count,
            random,
            now_ms: 0,
            schedule: BinaryHeap::new(),
            scheduled: 0,
            server: Server::new(plan.sabotage),
            away_until_ms: 0,
            // One more than there are replicas: in an update, one is started before another leaves.
            slots: (0..=plan.replicas).map(|_| None).collect(),
            lives: 0,
            permits: 0,
            leaders: vec![0],
            tampers,
            ending: plan.ending.unwrap_or(drawn),
            revision: 1,
            objects,
            tables: TableHistory::default(),
            metas: BTreeMap::new(),
            identities: BTreeMap::new(),
            checks: Checks::default(),
            summary: Summary::default(),
            failure: None,
            traces: std::env::var_os("SIM_TRACE").is_some(),
        };
        for slot in 0..plan.replicas {
            let newcomer = world.newcomer();
            let delay_ms = world.random.between(0, 500);
            world.after(delay_ms, Happening::Start(slot, newcomer));
        }
        world.after(200, Happening::Lead);
        world.after(3000, Happening::Fault);
        world.at(plan.fault_ms, Happening::Check);
        world
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Tick(who) => self.tick(who),
            Happening::Event(who, event) => self.deliver(who, event),
            Happening::Watch(who, generation, event) => self.show(who, generation, event),
            Happening::AtServer(who, request, sent) => self.serve(who, request, sent),
            Happening::Answer(who, request, answer) => self.answer(who, request, answer),
            Happening::Relist(who) => self.relist_leases(who),
            Happening::RelistTable(who) => self.relist_table(who),
            Happening::Warmed(who, shard) => self.warmed(who, shard),
            Happening::Reconcile(who, shard, permit) => self.reconcile(who, shard, permit),
            Happening::Write(who, shard, permit) => self.send_object(who, shard, permit),
            Happening::ObjectWrite(who, shard, permit, write, answered) => {
                self.object_arrives(who, shard, permit, write, answered);
            }
            Happening::Worked(who, shard, permit) => self.worked(who, shard, permit),
            Happening::Lead => self.lead(),
            Happening::Planned(version, shard, next) => self.planned(&version, shard, next),
            Happening::Tidied(identity, version) => self.tidied(&identity, &version),
            Happening::Fault => self.fault(),
            Happening::Undo(undo) => self.undo(undo),
            Happening::Start(slot, newcomer) => self.start(slot, newcomer),
            Happening::Check => self.check(),
        }
    }

    fn run(&mut self) -> Result<Summary, String> {
        while let Some(Reverse(entry)) = self.schedule.pop() {
            self.now_ms = entry.at_ms;
            self.happen(entry.what);
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            if self.checks.is_done() {
                return Ok(self.summary);
            }
        }
        Err("nothing happens any more".into())
    }
}

/// Runs one seed to its end.
///
/// # Errors
/// The violation, with its seed.
pub fn simulate(plan: Plan, seed: u64) -> Result<Summary, String> {
    let count = ShardCount::new(u64::from(plan.shards)).map_err(|error| error.to_string())?;
    World::new(plan, seed, count)
        .run()
        .map_err(|failure| format!("seed {seed}: {failure}"))
}
