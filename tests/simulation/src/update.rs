//! Updates at the end of a run: all replicas are replaced one by one, or a newer one joins and stays.

use crate::process::Process;
use crate::world::{Ending, Happening, Who, World};
use shard_ownership::hash::ShardId;
use shard_ownership::planner::QUIET_IN_UPDATE_MS;

/// Clocks drift by less than a tenth.
const CLOCK_PER_CENT: u64 = 10;
/// Within which a fleet is balanced, once it may be.
const BALANCE_MS: u64 = 10_000;
/// Within which one replica is replaced.
const REPLACE_MS: u64 = 20_000;

/// How far an update has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Update {
    step: Step,
    /// Since when this step is taken.
    since_ms: u64,
    /// Lives before this one are old.
    first_new: u64,
    /// How many were started.
    started: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    /// One of the new revision is started.
    #[default]
    Begin,
    /// It is awaited, and then an older one is asked to leave.
    Coming,
    /// It is awaited that this one has left.
    Leaving(Who),
    /// Nothing more is done.
    Settling,
}

impl Update {
    fn take(&mut self, now_ms: u64, step: Step) {
        (self.step, self.since_ms) = (step, now_ms);
    }
}

impl World {
    /// Whether no replica has more than one shard more than another.
    pub(crate) fn is_balanced(&self) -> bool {
        let held = self
            .slots
            .iter()
            .flatten()
            .map(|process| self.held(process));
        let (most, least) = (held.clone().max(), held.min());
        most.unwrap_or(0) <= least.unwrap_or(0) + 1
    }

    fn held(&self, process: &Process) -> usize {
        let of = |shard: &ShardId| {
            let lease = self.server.shards.get(shard);
            lease.is_some_and(|lease| lease.holder == process.identity)
        };
        self.count.shards().filter(of).count()
    }

    fn new_ones(&self, update: &Update) -> impl Iterator<Item = &Process> {
        let first = update.first_new;
        self.slots
            .iter()
            .flatten()
            .filter(move |process| process.life >= first)
    }

    fn have_come(&self, update: &Update) -> bool {
        let settled =
            |process: &&Process| process.machine.is_settled(process.clock.shows(self.now_ms));
        self.new_ones(update).filter(settled).count() == update.started
    }

    fn an_old_one(&self, update: &Update) -> Option<Who> {
        let mut slots = self.slots.iter().enumerate();
        slots.find_map(|(slot, process)| {
            let life = process.as_ref()?.life;
            (life < update.first_new).then_some(Who { slot, life })
        })
    }

    fn start_a_new_one(&mut self, update: &mut Update) {
        if let Some(slot) = self.slots.iter().position(Option::is_none) {
            let newcomer = self.newcomer();
            self.after(0, Happening::Start(slot, newcomer));
            update.started += 1;
            update.take(self.now_ms, Step::Coming);
        }
    }

    /// Takes the next step of an update, if it is due; true when all is done.
    pub(crate) fn go_on_with(&mut self, update: &mut Update, trouble: Option<String>) -> bool {
        let now_ms = self.now_ms;
        let waited_ms = now_ms - update.since_ms;
        match update.step {
            Step::Begin => {
                self.revision += 1;
                update.first_new = self.lives + 1;
                self.start_a_new_one(update);
                return false;
            }
            Step::Coming if self.have_come(update) => {
                match self
                    .an_old_one(update)
                    .filter(|_| self.ending == Ending::Update)
                {
                    Some(who) => {
                        self.shut_down(who);
                        update.take(now_ms, Step::Leaving(who));
                    }
                    None => update.take(now_ms, Step::Settling),
                }
            }
            Step::Leaving(who) if self.process(who).is_none() => {
                if self.an_old_one(update).is_some() {
                    self.start_a_new_one(update);
                } else {
                    update.take(now_ms, Step::Settling);
                }
            }
            Step::Coming | Step::Leaving(_) if waited_ms > REPLACE_MS => {
                self.fail(format!("an update stands still: {update:?}, {trouble:?}"));
            }
            Step::Settling if self.ending == Ending::HalfAnUpdate => {
                return self.waits_for_the_rest(update, waited_ms);
            }
            Step::Settling if trouble.is_none() => return self.each_shard_moved_once(),
            Step::Settling if waited_ms > BALANCE_MS => {
                self.fail(format!("after an update {trouble:?}"));
            }
            Step::Coming | Step::Leaving(_) | Step::Settling => {}
        }
        false
    }

    fn each_shard_moved_once(&mut self) -> bool {
        let moved = |shard| self.checks.moved.get(&shard).copied().unwrap_or(0);
        let otherwise = self.count.shards().map(|shard| (shard, moved(shard)));
        let otherwise: Vec<_> = otherwise.filter(|(_, times)| *times != 1).collect();
        if !otherwise.is_empty() {
            self.fail(format!(
                "in an update shards did not move once: {otherwise:?}"
            ));
        }
        self.summary.updates += 1;
        true
    }

    /// A new replica gets nothing while the update may continue, and its share when it stalls.
    fn waits_for_the_rest(&mut self, update: &Update, waited_ms: u64) -> bool {
        let given: usize = self
            .new_ones(update)
            .map(|process| self.held(process))
            .sum();
        let earliest_ms = QUIET_IN_UPDATE_MS - QUIET_IN_UPDATE_MS / 100 * CLOCK_PER_CENT;
        let latest_ms = QUIET_IN_UPDATE_MS + QUIET_IN_UPDATE_MS / 100 * CLOCK_PER_CENT + BALANCE_MS;
        if given > 0 && waited_ms < earliest_ms {
            self.fail(format!(
                "a new replica got {given} shards after {waited_ms} ms"
            ));
        } else if waited_ms > latest_ms {
            self.fail(format!(
                "after {waited_ms} ms a new replica has {given} shards"
            ));
        }
        given > 0 && self.is_balanced()
    }
}
