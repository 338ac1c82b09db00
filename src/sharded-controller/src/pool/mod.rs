//! Runs the queue: bounded workers, deadlines, drain, and metrics of its operation.
//!
//! One scheduler task takes runs off the queue (`crate::queue`) as workers come free and
//! spawns one task for each. The state behind one lock is only touched between awaits.

mod metrics;
mod run;
mod scheduler;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::backoff::Outlook;
use crate::metrics::Metrics;
use crate::object::ObjectKey;
use crate::outcome::{Failure, Outcome};
use crate::permit::ShardPermit;
use crate::queue::{AddError, Added, Limits, Queue};
use crate::rate_limit::{RateLimit, Scope};
use metrics::PoolMetrics;
use shard_ownership::hash::ShardId;
use state::State;

/// The work of a pool.
pub trait Reconcile: Send + Sync + 'static {
    /// Brings one object closer to its spec.
    ///
    /// The future is dropped at any await when the permit ends or the deadline passes.
    fn reconcile(
        &self,
        key: &ObjectKey,
        permit: &ShardPermit,
        backlog: &dyn Backlog,
    ) -> impl Future<Output = Result<Outcome, Failure>> + Send;

    /// Learns of a shard that this replica works on from now on, and of the right to. It must not block.
    fn admit_shard(&self, _permit: &ShardPermit) {}

    /// Drops what is remembered of the objects of a shard that was released: the next permit for it
    /// begins with nothing that an older one knew.
    fn release_shard(&self, _shard: ShardId) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Brings slow gauges up to date, twice a second.
    fn maintain(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Brings gauges up to date, before each scrape and heartbeat. It must not block.
    fn refresh_metrics(&self) {}

    /// Statistics that each heartbeat carries, by name. Few: every replica reads them all.
    fn stats(&self) -> Vec<(String, f64)> {
        Vec::new()
    }

    /// Objects with problems that the next heartbeat names, with a reason of one word each: at most `most`. It must not
    /// block, nor visit all objects.
    fn unhealthy(&self, _most: usize) -> Vec<(ObjectKey, String)> {
        Vec::new()
    }
}

/// The state of the queue for a run.
pub trait Backlog: Send + Sync {
    /// Whether objects are due for which no worker has been free yet.
    fn others_wait(&self) -> bool;

    /// The attempts before this run, and when the next one is if it fails.
    fn outlook(&self) -> Outlook;
}

/// Limits of a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Maximum number of concurrent reconciles.
    pub concurrency: NonZeroUsize,
    /// Deadline of one reconcile.
    pub reconcile_timeout: Duration,
    /// The rate limiter.
    pub rate_limit: RateLimit,
    /// Whether each object has its own rate limit.
    pub rate_limit_scope: Scope,
    /// Maximum number of objects in the queue, running ones included.
    pub queue_capacity: usize,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            concurrency: NonZeroUsize::MIN.saturating_add(9),
            reconcile_timeout: Duration::from_secs(60),
            rate_limit: RateLimit::default(),
            rate_limit_scope: Scope::Object,
            queue_capacity: 100_000,
        }
    }
}

/// Runs reconciles of the started shards, until it is shut down or its last clone is dropped.
pub(crate) struct Pool<R> {
    shared: Arc<Shared<R>>,
    scheduler: AbortHandle,
    _last_clone: Arc<DropGuard>,
}

struct Shared<R> {
    reconcile: R,
    config: PoolConfig,
    pool_metrics: PoolMetrics,
    state: Mutex<State>,
    started: Instant,
    /// Something may be due sooner than the scheduler expects.
    wake: Notify,
    /// A run ended, or keys were dropped: tasks that wait for quiet check again.
    quieter: Notify,
    workers: Arc<Semaphore>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl<R> Clone for Pool<R> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            scheduler: self.scheduler.clone(),
            _last_clone: Arc::clone(&self._last_clone),
        }
    }
}

impl<R> fmt::Debug for Pool<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}

impl<R> Shared<R> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl<R: Reconcile> Pool<R> {
    /// Starts a pool without shards. Must be called within a tokio runtime.
    #[must_use]
    pub(crate) fn start(config: PoolConfig, reconcile: R, metrics: Arc<Metrics>) -> Self {
        // More workers than the semaphore can count are as good as no bound at all.
        let workers = config.concurrency.get().min(Semaphore::MAX_PERMITS);
        let shutdown = CancellationToken::new();
        let queue = Queue::new(Limits {
            capacity: config.queue_capacity,
            rate_limit: config.rate_limit,
            scope: config.rate_limit_scope,
        });
        let shared = Arc::new(Shared {
            reconcile,
            config,
            pool_metrics: PoolMetrics::new(metrics, workers),
            state: Mutex::new(State::new(queue)),
            started: Instant::now(),
            wake: Notify::new(),
            quieter: Notify::new(),
            workers: Arc::new(Semaphore::new(workers)),
            tasks: TaskTracker::new(),
            shutdown: shutdown.clone(),
        });
        let scheduler = shared.tasks.spawn(scheduler::run(Arc::clone(&shared)));
        Self {
            shared,
            scheduler: scheduler.abort_handle(),
            _last_clone: Arc::new(shutdown.drop_guard()),
        }
    }

    /// Runs objects of a shard under this permit from now on; add them all with [`Pool::enqueue`].
    ///
    /// A permit that the shard had before is replaced: what runs under it is cancelled and runs
    /// again under the new one.
    pub(crate) fn start_shard(&self, permit: ShardPermit) {
        if self.shared.shutdown.is_cancelled() {
            return;
        }
        let stop = self.shared.shutdown.child_token();
        self.shared.state().start_shard(permit, stop);
        self.shared.wake.notify_one();
        self.shared.quieter.notify_waiters();
    }

    /// Schedules a run of an object after a delay (zero: a change was observed), or sooner if one
    /// is scheduled sooner. An object that was known under another shard moves to this one.
    ///
    /// # Errors
    /// When the shard is not started here, or the queue is full (which is counted, and repaired by
    /// [`Pool::add_missing`]).
    pub(crate) fn enqueue(
        &self,
        shard: ShardId,
        key: &ObjectKey,
        delay: Duration,
    ) -> Result<(), AddError> {
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        let due_ms = self.shared.now_ms().saturating_add(delay_ms);
        let added = self.shared.state().queue.add(shard, key, due_ms);
        self.added(added)
    }

    fn added(&self, added: Result<Added, AddError>) -> Result<(), AddError> {
        match added {
            Ok(Added::Queued) => {
                self.shared.pool_metrics.adds.inc();
                self.shared.wake.notify_one();
                Ok(())
            }
            Ok(Added::Known) => Ok(()),
            Err(error) => {
                if matches!(error, AddError::Full { .. }) {
                    self.shared.pool_metrics.refused();
                }
                Err(error)
            }
        }
    }

    /// Offers the queue again what found no room in it: immediately when there is room again, and
    /// periodically in any case, so that in a queue that is permanently too small the objects take
    /// turns. `keys` returns all objects of a shard.
    pub(crate) fn add_missing(&self, keys: impl Fn(ShardId) -> Vec<ObjectKey>) {
        let now_ms = self.shared.now_ms();
        let shards = self.shared.state().take_missing(now_ms);
        let mut all: Vec<(ShardId, ObjectKey)> = Vec::new();
        for shard in &shards {
            all.extend(keys(*shard).into_iter().map(|key| (*shard, key)));
        }
        // From another position each time: if none finds room, the same ones must not always come
        // first.
        if !all.is_empty() {
            let start = fastrand::usize(..all.len());
            all.rotate_left(start);
        }
        for (shard, key) in all {
            let added = self.shared.state().queue.add_missing(shard, &key, now_ms);
            if matches!(self.added(added), Err(AddError::Full { .. })) {
                self.shared.state().queue.mark_missing(&shards);
                return;
            }
        }
    }

    /// Starts no more runs of a shard and waits until none of it is active, including runs that
    /// [`Pool::stop_shard`] cancelled. Changes observed meanwhile are kept.
    ///
    /// Returns `false` if the shard was resumed or started again during the wait. It has no
    /// deadline of its own: if it is dropped, the shard stays drained until it is resumed or
    /// stopped.
    pub(crate) async fn drain_shard(&self, shard: ShardId) -> bool {
        self.shared.state().queue.drain(shard);
        let drained = |state: &mut State, _now_ms| {
            if state.queue.admits(shard) {
                return Some(false);
            }
            (state.queue.in_flight(shard) == 0).then_some(true)
        };
        self.shared.wait_until(drained).await
    }

    /// Cancels a drain: the shard starts runs again, first of all those requested during the drain.
    pub(crate) fn resume_shard(&self, shard: ShardId) {
        self.shared.state().resume_shard(shard);
        self.shared.wake.notify_one();
        self.shared.quieter.notify_waiters();
    }

    /// Cancels the runs of a shard, discards their results and drops its objects.
    pub(crate) fn stop_shard(&self, shard: ShardId) {
        self.shared.state().stop_shard(shard);
        self.shared.quieter.notify_waiters();
    }

    /// Whether the task that starts runs still exists. Without it, nothing is ever run again.
    #[must_use]
    pub(crate) fn is_scheduling(&self) -> bool {
        !self.scheduler.is_finished()
    }

    /// Updates the gauges that change with time: call it for each scrape.
    pub(crate) fn refresh_metrics(&self) {
        let now_ms = self.shared.now_ms();
        let stats = self.shared.state().stats(now_ms);
        self.shared.pool_metrics.show(&stats);
    }

    /// Cancels everything and waits until no task of the pool is left.
    pub(crate) async fn shutdown(&self) {
        self.shared.shutdown.cancel();
        self.shared.state().stop_all();
        self.shared.quieter.notify_waiters();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl<R> Shared<R> {
    async fn wait_until<T>(&self, ready: impl Fn(&mut State, u64) -> Option<T>) -> T {
        loop {
            let quieter = self.quieter.notified();
            tokio::pin!(quieter);
            // Registered before the check, so that no notification is lost between the two.
            quieter.as_mut().enable();
            let now_ms = self.now_ms();
            let answer = ready(&mut self.state(), now_ms);
            match answer {
                Some(answer) => return answer,
                None => quieter.await,
            }
        }
    }
}
