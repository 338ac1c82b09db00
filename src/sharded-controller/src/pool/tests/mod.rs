//! The pool under paused time, with a scripted reconciler that records its runs.
#![allow(clippy::unwrap_used, clippy::panic)]

mod failures;
mod shards;
mod work;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock::Clock;
use crate::names::testing::NAMES;
use prometheus::Registry;

const CONTROLLER: &str = NAMES.prefix;
use crate::outcome::{Cause, Next};
use crate::permit::Validity;
use shard_ownership::token::FencingToken;

const SHARD: ShardId = ShardId(0);
const NOW: Duration = Duration::ZERO;

/// The course of one run: its duration, then its result.
#[derive(Clone, Debug)]
enum Behavior {
    Give(Duration, Result<Outcome, Failure>),
    Panic(Duration),
    /// Panics when it is dropped on the way, too.
    PanicOnDrop(Duration),
}

fn settles(seconds: u64) -> Behavior {
    end_after(seconds, Ok(ready()))
}

fn end_after(seconds: u64, ended: Result<Outcome, Failure>) -> Behavior {
    Behavior::Give(Duration::from_secs(seconds), ended)
}

fn ready() -> Outcome {
    Outcome {
        wrote: false,
        next: Next::Ready,
    }
}

fn failed(message: &str) -> Result<Outcome, Failure> {
    Err(Failure::Failed {
        cause: Cause::Forbidden,
        message: message.to_owned(),
    })
}

#[derive(Clone, Debug)]
struct Entry {
    key: ObjectKey,
    epoch: u32,
    from: Instant,
}

#[derive(Debug, Default)]
struct RunLog {
    runs: Vec<Entry>,
    now: HashMap<ObjectKey, usize>,
    peak: usize,
    peak_of_one: usize,
    /// Runs during which others waited.
    crowded: usize,
    completed: usize,
}

type Script = Box<dyn Fn(&ObjectKey, usize) -> Behavior + Send + Sync>;

/// Plays a script: what to do in the n-th run of an object.
struct Actor {
    script: Script,
    run_log: Arc<Mutex<RunLog>>,
}

/// Records the end of a run, also of one that is dropped or panics.
struct OnStage {
    run_log: Arc<Mutex<RunLog>>,
    key: ObjectKey,
}

impl Drop for OnStage {
    fn drop(&mut self) {
        *self.run_log.lock().now.get_mut(&self.key).unwrap() -= 1;
    }
}

struct PanicOnDrop;

impl Drop for PanicOnDrop {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("dropped");
        }
    }
}

impl Reconcile for Actor {
    async fn reconcile(
        &self,
        key: &ObjectKey,
        permit: &ShardPermit,
        backlog: &dyn Backlog,
    ) -> Result<Outcome, Failure> {
        let nth = {
            let mut run_log = self.run_log.lock();
            *run_log.now.entry(key.clone()).or_insert(0) += 1;
            run_log.peak = run_log.peak.max(run_log.now.values().sum());
            run_log.peak_of_one = run_log.peak_of_one.max(run_log.now[key]);
            run_log.runs.push(Entry {
                key: key.clone(),
                epoch: permit.token().epoch,
                from: Instant::now(),
            });
            run_log.runs.iter().filter(|run| run.key == *key).count()
        };
        let _on_stage = OnStage {
            run_log: Arc::clone(&self.run_log),
            key: key.clone(),
        };
        let act = (self.script)(key, nth);
        let (Behavior::Give(pause, _) | Behavior::Panic(pause) | Behavior::PanicOnDrop(pause)) =
            &act;
        let _panics_on_drop = matches!(act, Behavior::PanicOnDrop(_)).then(|| PanicOnDrop);
        if !pause.is_zero() {
            tokio::time::sleep(*pause).await;
        }
        let others_wait = backlog.others_wait();
        let mut run_log = self.run_log.lock();
        run_log.completed += 1;
        run_log.crowded += usize::from(others_wait);
        drop(run_log);
        match act {
            Behavior::Give(_, ended) => ended,
            Behavior::Panic(_) | Behavior::PanicOnDrop(_) => panic!("the script says so"),
        }
    }
}

/// A pool with one started shard, its metrics, and the log of its reconciler.
struct Stage {
    pool: Pool<Actor>,
    metrics: Arc<Metrics>,
    run_log: Arc<Mutex<RunLog>>,
    began: Instant,
}

fn key(n: usize) -> ObjectKey {
    ObjectKey::new("shop", &format!("db-{n}"))
}

fn permit(shard: ShardId, epoch: u32, ended: &CancellationToken) -> ShardPermit {
    let validity = Arc::new(Validity::new(Clock::system()));
    validity.set_until_ms(u64::MAX);
    let token = FencingToken {
        table: "table".into(),
        shard,
        epoch,
        holder: "operator-0".into(),
    };
    ShardPermit::new(token, validity, ended.clone())
}

fn config(concurrency: usize) -> PoolConfig {
    PoolConfig {
        concurrency: concurrency.try_into().unwrap(),
        ..PoolConfig::default()
    }
}

fn stage(
    config: PoolConfig,
    script: impl Fn(&ObjectKey, usize) -> Behavior + Send + Sync + 'static,
) -> Stage {
    let metrics = Arc::new(Metrics::register(Registry::new(), NAMES).unwrap());
    let run_log = Arc::new(Mutex::new(RunLog::default()));
    let actor = Actor {
        script: Box::new(script),
        run_log: Arc::clone(&run_log),
    };
    let pool = Pool::start(config, actor, Arc::clone(&metrics));
    pool.start_shard(permit(SHARD, 1, &CancellationToken::new()));
    Stage {
        pool,
        metrics,
        run_log,
        began: Instant::now(),
    }
}

impl Stage {
    fn add(&self, n: usize) {
        self.pool.enqueue(SHARD, &key(n), NOW).unwrap();
    }

    /// Seconds from the beginning to the start of each run of an object.
    fn starts(&self, n: usize) -> Vec<f64> {
        let run_log = self.run_log.lock();
        let mine = run_log.runs.iter().filter(|run| run.key == key(n));
        mine.map(|run| (run.from - self.began).as_secs_f64())
            .collect()
    }

    fn runs(&self) -> usize {
        self.run_log.lock().runs.len()
    }

    fn on_stage(&self) -> usize {
        self.run_log.lock().now.values().sum()
    }

    fn results(&self, result: &str) -> u64 {
        let total = &self.metrics.pool.reconcile_total;
        total.with_label_values(&[CONTROLLER, result]).get()
    }

    fn depth(&self) -> i64 {
        self.pool.refresh_metrics();
        let depth = &self.metrics.pool.workqueue_depth;
        depth.with_label_values(&[CONTROLLER, CONTROLLER, ""]).get()
    }

    fn active(&self) -> i64 {
        self.metrics
            .pool
            .active_workers
            .with_label_values(&[CONTROLLER])
            .get()
    }

    /// Completes when nothing runs and nothing is due.
    async fn is_settled(&self) {
        let settled = |state: &mut State, now_ms| {
            (state.running() == 0 && state.queue.depth(now_ms) == 0).then_some(())
        };
        self.pool.shared.wait_until(settled).await;
    }

    async fn settled(&self) {
        within("the pool to settle", self.is_settled()).await;
    }

    async fn until_running(&self, count: usize) {
        let reached = async {
            while self.on_stage() != count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within(&format!("{count} reconciles to run"), reached).await;
    }
}

/// Waits an hour of the test's time, which costs nothing while it is paused.
async fn within<T>(what: &str, wait: impl Future<Output = T>) -> T {
    let deadline = Duration::from_secs(3600);
    match tokio::time::timeout(deadline, wait).await {
        Ok(value) => value,
        Err(_) => panic!("waited an hour for {what}"),
    }
}
