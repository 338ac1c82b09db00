//! A model for exhaustive search (stateright): the operator's own ownership machines, Leases, and a
//! few faults, at any moment and in any order.
//!
//! What happens of itself (requests, answers, watches) happens at once and in order, unless a fault
//! happens: a lost request, a lost response, a late request, a frozen watch, a crash,
//! a pause, a cut. Each counts against a budget, so that the search goes deep instead of wide.

mod fleet;
mod leases;
mod openings;
mod replica;
mod second;
mod table;

use stateright::{Model, Property};

pub use self::fleet::Fleet;
pub use self::openings::Opening;
pub use self::replica::NextRequest;
use crate::server::Sabotage;
use shard_ownership::hash::{ShardCount, ShardId};
use shard_ownership::lease::{MemberWrite, ShardWrite};
use shard_ownership::table::TableWrite;

/// What is searched.
#[derive(Clone, Debug)]
pub struct OwnershipModel {
    /// Replicas.
    pub replicas: usize,
    /// Shards.
    pub shards: ShardCount,
    /// The budget of faults in one run.
    pub faults_max: u8,
    /// Whether users delete Leases by hand.
    pub tampers: bool,
    /// Whether the table's own watch and requests fail, writes of it are rejected, and users change it by hand.
    pub table_faults: bool,
    /// Numbers of shards of the replicas, where they differ; the others have `shards`.
    pub counts: Vec<ShardCount>,
    /// Revisions of the replicas; those without one have none.
    pub revisions: Vec<&'static str>,
    /// What has happened before the search begins, at no charge.
    pub opening: Opening,
    /// What is switched off.
    pub sabotage: Sabotage,
}

impl OwnershipModel {
    /// The number of shards of a replica.
    pub(crate) fn count(&self, n: usize) -> ShardCount {
        self.counts.get(n).copied().unwrap_or(self.shards)
    }

    pub(crate) fn highest_count(&self) -> ShardCount {
        let counts = (0..self.replicas).map(|n| self.count(n));
        counts
            .max_by_key(|count| count.get())
            .unwrap_or(self.shards)
    }
}

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Time passes.
    Tick,
    /// A replica begins a reconcile in a shard.
    Begin(usize, ShardId),
    /// It sends its write, which arrives at once or late.
    Finish(usize, ShardId, bool),
    /// A late write of an object arrives.
    LateObject(usize),
    /// A late Lease request arrives.
    LateRequest(usize),
    /// The fleet leader plans a shard for a replica.
    Plan(ShardId, usize),
    /// A replica gets SIGTERM.
    Leave(usize),
    /// Something happens to the next Lease request of a replica.
    Spoil(usize, NextRequest),
    /// The watch of a replica freezes.
    Lag(usize),
    /// Its watch shows what it held back.
    CatchUp(usize),
    /// A replica dies.
    Crash(usize),
    /// It starts again in its Pod.
    Restart(usize),
    /// A replica freezes.
    Pause(usize),
    /// It continues; its workers are first.
    Resume(usize),
    /// A replica is cut off.
    Cut(usize),
    /// It is connected again.
    Mend(usize),
    /// A second API server gets no more updates.
    Fork,
    /// A replica watches there from now on: its list is old, and later events arrive late.
    MoveTo(usize),
    /// Something happens to the next request of a replica for the table.
    SpoilTable(usize, NextRequest),
    /// Its watch of the table is frozen.
    LagTable(usize),
    /// That watch shows what it held back.
    CatchUpTable(usize),
    /// The API server refuses its writes of the table from now on.
    RefuseTable(usize),
    /// It accepts them again.
    AcceptTable(usize),
    /// The table is deleted.
    DeleteTable,
    /// An entry is raised by hand.
    RaiseEntry(ShardId),
    /// A shard Lease is deleted by hand.
    DeleteShard(ShardId),
    /// A member Lease is deleted by hand.
    DeleteMember(usize),
}

impl Step {
    /// Whether it counts against the budget.
    #[must_use]
    pub const fn is_fault(&self) -> bool {
        !matches!(
            self,
            Self::Tick
                | Self::Begin(..)
                | Self::Finish(_, _, false)
                | Self::LateObject(_)
                | Self::LateRequest(_)
                | Self::CatchUp(_)
                | Self::CatchUpTable(_)
                | Self::AcceptTable(_)
                | Self::Restart(_)
                | Self::Resume(_)
                | Self::Mend(_)
        )
    }
}

/// A write that arrives late.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LateWrite {
    Shard(usize, ShardWrite),
    Member(usize, MemberWrite),
    Table(usize, TableWrite),
}

impl Model for OwnershipModel {
    type State = Fleet;
    type Action = Step;

    fn init_states(&self) -> Vec<Fleet> {
        let mut fleet = Fleet::settled(self);
        for step in self.opening.steps(&fleet) {
            fleet.take(self, step);
        }
        // The API server's sabotage applies from here on, so that the search finds its effects.
        fleet.server.sabotage = self.sabotage;
        vec![fleet]
    }

    fn actions(&self, fleet: &Fleet, steps: &mut Vec<Step>) {
        if fleet.violation.is_some() {
            return;
        }
        steps.push(Step::Tick);
        fleet.ends(steps);
        if fleet.faults < self.faults_max {
            fleet.faults(self, steps);
        }
        steps.extend((0..fleet.late_objects.len()).map(Step::LateObject));
        steps.extend((0..fleet.late_writes.len()).map(Step::LateRequest));
    }

    fn next_state(&self, fleet: &Fleet, step: Step) -> Option<Fleet> {
        let mut next = fleet.clone();
        let counts = step.is_fault();
        next.take(self, step);
        if counts {
            next.faults += 1;
            // No more faults: from here on everything must recover.
            if next.faults == self.faults_max && next.violation.is_none() {
                next.violation = next.clone().recovers(self).err();
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("the promises are kept", |_, fleet: &Fleet| {
                fleet.violation.is_none()
            }),
            Property::sometimes("a shard is taken over", |_, fleet: &Fleet| fleet.moves > 2),
        ]
    }
}
