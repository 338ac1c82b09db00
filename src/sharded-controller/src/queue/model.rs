//! The queue against a trivially correct reference model, over random histories.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const SHARDS: u16 = 4;
const KEYS: usize = 8;
const CAPACITY: usize = 6;

pub(super) fn key(n: usize) -> ObjectKey {
    ObjectKey::new("shop", &format!("db-{n}"))
}

pub(super) fn queue(capacity: usize, rate_limit: &str, scope: Scope) -> Queue {
    Queue::new(Limits {
        capacity,
        rate_limit: rate_limit.parse().unwrap(),
        scope,
    })
}

impl Queue {
    /// Attempts of an object; `None` if it is not in the queue.
    pub(super) fn attempts(&self, n: usize) -> Option<Attempts> {
        self.entries.get(&key(n)).map(|entry| entry.attempts)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Open(u16),
    Drain(u16),
    Purge(u16),
    Forget(usize),
    Add(u16, usize, u64),
    Pop,
    Done(usize, End, u64),
    Wait(u64),
}

#[derive(Clone, Copy, Debug)]
enum End {
    Settled,
    Gone,
    Failed,
    Retry,
    Throttled,
    Again,
}

impl End {
    fn verdict(self, due_ms: u64) -> Verdict {
        match self {
            Self::Settled => Verdict::Settled { due_ms },
            Self::Gone => Verdict::Gone,
            Self::Failed => Verdict::Failed { due_ms },
            Self::Retry => Verdict::Retry { due_ms },
            Self::Throttled => Verdict::Throttled { until_ms: due_ms },
            Self::Again => Verdict::Again { due_ms },
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let end = prop_oneof![
        Just(End::Settled),
        Just(End::Gone),
        Just(End::Failed),
        Just(End::Retry),
        Just(End::Throttled),
        Just(End::Again),
    ];
    prop_oneof![
        3 => (0..SHARDS).prop_map(Step::Open),
        1 => (0..SHARDS).prop_map(Step::Drain),
        1 => (0..SHARDS).prop_map(Step::Purge),
        1 => (0..KEYS).prop_map(Step::Forget),
        12 => (0..SHARDS, 0..KEYS, 0_u64..8).prop_map(|(s, k, d)| Step::Add(s, k, d)),
        9 => Just(Step::Pop),
        7 => (0..KEYS, end, 0_u64..8).prop_map(|(k, e, d)| Step::Done(k, e, d)),
        3 => (0_u64..6).prop_map(Step::Wait),
    ]
}

#[derive(Debug)]
struct Known {
    home: Option<u16>,
    /// When it is due, and how many plans were made before this one.
    planned: Option<(u64, u64)>,
    running: Option<u16>,
    not_before_ms: u64,
    attempts: Attempts,
}

/// The expected content of the queue, as a plain list with linear search.
#[derive(Debug, Default)]
struct Model {
    now_ms: u64,
    /// Open shards and whether they admit starts.
    open: BTreeMap<u16, bool>,
    known: BTreeMap<usize, Known>,
    plans: u64,
    /// Shards that lack keys.
    missing: BTreeSet<u16>,
    /// For each shard that waits for its turn: the shards that were served meanwhile.
    served: BTreeMap<u16, BTreeSet<u16>>,
}

impl Model {
    fn plan(&mut self, n: usize, due_ms: u64) {
        self.plans += 1;
        if let Some(known) = self.known.get_mut(&n) {
            known.planned = Some((due_ms.max(known.not_before_ms), self.plans));
        }
    }

    fn add(&mut self, shard: u16, n: usize, due_ms: u64) -> bool {
        if !self.open.contains_key(&shard) {
            return false;
        }
        let is_new = !self.known.contains_key(&n);
        let mut full = self.known.len() >= CAPACITY;
        let later = |(other, known): (&usize, &Known)| {
            let at = known.planned.filter(|_| known.running.is_none())?;
            (at.0 > due_ms).then_some((at, *other))
        };
        if is_new
            && full
            && let Some((_, other)) = self.known.iter().filter_map(later).max()
        {
            self.missing.extend(self.known[&other].home);
            self.forget(other);
            full = false;
        }
        if is_new && full {
            self.missing.insert(shard);
        }
        match self.known.get_mut(&n) {
            None if full => return false,
            None => {
                let known = Known {
                    home: Some(shard),
                    planned: None,
                    running: None,
                    not_before_ms: 0,
                    attempts: Attempts::default(),
                };
                self.known.insert(n, known);
                self.plan(n, due_ms);
            }
            Some(known) if known.home == Some(shard) => {
                let due_ms = due_ms.max(known.not_before_ms);
                if known
                    .planned
                    .is_none_or(|(planned_ms, _)| due_ms < planned_ms)
                {
                    self.plan(n, due_ms);
                }
            }
            Some(known) => {
                let earlier_ms = known.planned.map_or(due_ms, |(planned_ms, _)| planned_ms);
                known.home = Some(shard);
                known.not_before_ms = 0;
                known.attempts = Attempts::default();
                self.plan(n, due_ms.min(earlier_ms));
            }
        }
        true
    }

    fn forget(&mut self, n: usize) {
        if let Some(known) = self.known.get_mut(&n) {
            known.home = None;
            known.planned = None;
            known.attempts = Attempts::default();
            if known.running.is_none() {
                self.known.remove(&n);
            }
        }
    }

    fn done(&mut self, n: usize, end: End, due_ms: u64) {
        let Some(known) = self.known.get_mut(&n) else {
            return;
        };
        let Some(shard) = known.running.take() else {
            return;
        };
        let again_ms = known.planned.map(|(again_ms, _)| again_ms);
        let mut next_ms = again_ms;
        if known.home == Some(shard) {
            match end {
                End::Settled | End::Gone => known.attempts = Attempts::default(),
                End::Failed => {
                    let is_early = known.attempts.retry_ms == Some(due_ms);
                    known.attempts.failures += u32::from(!is_early);
                    known.attempts.retries = 0;
                    known.attempts.retry_ms = Some(due_ms);
                }
                End::Retry => known.attempts.retries += 1,
                End::Throttled => known.not_before_ms = due_ms,
                End::Again => {}
            }
            if !matches!(end, End::Gone) {
                next_ms = Some(again_ms.map_or(due_ms, |again_ms| again_ms.min(due_ms)));
            }
        }
        match next_ms {
            Some(next_ms) => self.plan(n, next_ms),
            None => drop(self.known.remove(&n)),
        }
    }

    fn due(&self, shard: u16) -> Option<((u64, u64), usize)> {
        let mine = self
            .known
            .iter()
            .filter(|(_, k)| k.home == Some(shard) && k.running.is_none());
        let planned = mine.filter_map(|(n, k)| Some((k.planned?, *n)));
        planned.filter(|(at, _)| at.0 <= self.now_ms).min()
    }

    /// Shards with due work that may start.
    fn waiting(&self) -> Vec<u16> {
        let admitting = self.open.iter().filter(|(_, admits)| **admits);
        admitting
            .map(|(shard, _)| *shard)
            .filter(|shard| self.due(*shard).is_some())
            .collect()
    }

    /// Forgets the wait of shards that no longer wait.
    fn refresh_waits(&mut self) {
        let waiting = self.waiting();
        self.served.retain(|shard, _| waiting.contains(shard));
        for shard in waiting {
            self.served.entry(shard).or_default();
        }
    }

    fn check_pop(&mut self, run: Option<Run>) -> Result<(), TestCaseError> {
        self.refresh_waits();
        let Some(run) = run else {
            prop_assert!(
                self.served.is_empty(),
                "due work of {:?} was not started",
                self.waiting()
            );
            return Ok(());
        };
        let shard = run.shard.0;
        prop_assert_eq!(
            self.open.get(&shard),
            Some(&true),
            "a start in a shard that admits none"
        );
        let first = self.due(shard);
        prop_assert!(first.is_some(), "{:?} is not due", run);
        let ((due_ms, _), n) = first.unwrap();
        prop_assert_eq!(&run.key, &key(n), "not the first of its shard");
        prop_assert_eq!(run.due_ms, due_ms);
        let known = self.known.get_mut(&n).unwrap();
        prop_assert_eq!(run.attempts, known.attempts);
        prop_assert!(known.running.is_none(), "twice at once");
        known.running = Some(shard);
        known.planned = None;
        self.served.remove(&shard);
        for (other, served) in &mut self.served {
            prop_assert!(
                served.insert(shard),
                "{} was served twice while {} waited",
                shard,
                other
            );
        }
        Ok(())
    }

    fn check_stats(&self, queue: &mut Queue) -> Result<(), TestCaseError> {
        let planned = |k: &&Known| k.running.is_none();
        let due = |k: &&Known| k.planned.is_some_and(|at| at.0 <= self.now_ms);
        let all = self.known.values().filter(planned).count();
        let depth = self.known.values().filter(planned).filter(due).count();
        prop_assert_eq!(queue.entries.len(), self.known.len());
        prop_assert!(queue.entries.len() <= CAPACITY);
        prop_assert_eq!(queue.depth(self.now_ms), depth);
        prop_assert_eq!(queue.delayed(self.now_ms), all - depth);
        let dues = self
            .known
            .values()
            .filter(planned)
            .filter_map(|k| Some(k.planned?.0));
        let age_ms = dues.map(|due_ms| self.now_ms.saturating_sub(due_ms)).max();
        prop_assert_eq!(queue.head_age_ms(self.now_ms), age_ms.unwrap_or(0));
        for shard in 0..SHARDS {
            let running = self
                .known
                .values()
                .filter(|k| k.running == Some(shard))
                .count();
            prop_assert_eq!(queue.in_flight(ShardId(shard)), running);
            prop_assert_eq!(
                queue.admits(ShardId(shard)),
                self.open.get(&shard) == Some(&true)
            );
        }
        let missing: BTreeSet<u16> = queue.missing.iter().map(|shard| shard.0).collect();
        prop_assert_eq!(&missing, &self.missing);
        for n in 0..KEYS {
            let attempts = self.known.get(&n).map(|k| k.attempts);
            prop_assert_eq!(queue.attempts(n), attempts);
        }
        Ok(())
    }

    fn check_next_due(&self, queue: &Queue) -> Result<(), TestCaseError> {
        let admitted = |k: &&Known| {
            k.home
                .is_some_and(|home| self.open.get(&home) == Some(&true))
        };
        let mine = self
            .known
            .values()
            .filter(|k| k.running.is_none())
            .filter(admitted);
        if let Some(first_ms) = mine.filter_map(|k| Some(k.planned?.0)).min() {
            let next_ms = queue.next_due();
            prop_assert!(
                next_ms.is_some_and(|ms| ms <= first_ms),
                "{:?} {}",
                next_ms,
                first_ms
            );
        }
        Ok(())
    }
}

fn play(queue: &mut Queue, model: &mut Model, step: &Step) -> Result<(), TestCaseError> {
    let now_ms = model.now_ms;
    match *step {
        Step::Open(shard) => {
            queue.open(ShardId(shard));
            model.open.insert(shard, true);
        }
        Step::Drain(shard) => {
            queue.drain(ShardId(shard));
            model.open.entry(shard).and_modify(|admits| *admits = false);
        }
        Step::Purge(shard) => {
            queue.purge(ShardId(shard));
            model.open.remove(&shard);
            model.missing.remove(&shard);
            for n in 0..KEYS {
                if model.known.get(&n).is_some_and(|k| k.home == Some(shard)) {
                    model.forget(n);
                }
            }
        }
        Step::Forget(n) => {
            queue.forget(&key(n));
            model.forget(n);
        }
        Step::Add(shard, n, delay_ms) => {
            let added = queue.add(ShardId(shard), &key(n), now_ms + delay_ms);
            prop_assert_eq!(added.is_ok(), model.add(shard, n, now_ms + delay_ms));
        }
        Step::Pop => {
            model.check_pop(queue.pop(now_ms))?;
        }
        Step::Done(n, end, delay_ms) => {
            queue.done(&key(n), end.verdict(now_ms + delay_ms));
            model.done(n, end, now_ms + delay_ms);
        }
        Step::Wait(ms) => model.now_ms += ms,
    }
    model.refresh_waits();
    model.check_stats(queue)?;
    model.check_next_due(queue)
}

/// Ends all runs, opens what was drained and waits: every known key must come out.
fn run_dry(queue: &mut Queue, model: &mut Model) -> Result<(), TestCaseError> {
    for n in 0..KEYS {
        play(queue, model, &Step::Done(n, End::Gone, 0))?;
    }
    for shard in model.open.clone().into_keys() {
        play(queue, model, &Step::Open(shard))?;
    }
    play(queue, model, &Step::Wait(1000))?;
    while let Some(run) = queue.pop(model.now_ms) {
        let n = (0..KEYS).find(|n| key(*n) == run.key).unwrap();
        model.check_pop(Some(run))?;
        play(queue, model, &Step::Done(n, End::Gone, 0))?;
    }
    prop_assert!(model.known.is_empty(), "lost: {:?}", model.known);
    prop_assert!(queue.entries.is_empty());
    prop_assert_eq!(queue.next_due(), None);
    prop_assert!(
        queue
            .lanes
            .values()
            .all(|lane| lane.keys.is_empty() && lane.ready.is_empty())
    );
    prop_assert!(queue.turns.is_empty() && queue.in_flight.is_empty());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn queue_matches_its_reference_model(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut queue = queue(CAPACITY, "1000000/1s", Scope::Object);
        let mut model = Model::default();
        for shard in 0..SHARDS / 2 {
            play(&mut queue, &mut model, &Step::Open(shard))?;
        }
        for step in &steps {
            play(&mut queue, &mut model, step)?;
        }
        run_dry(&mut queue, &mut model)?;
    }
}
