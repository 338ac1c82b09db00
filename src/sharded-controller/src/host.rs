//! What the actions of the state machine do in a replica: they start and stop watches, queue and workers of
//! a shard.

use std::sync::Arc;
use std::time::Duration;

use shard_ownership::hash::ShardId;
use shard_ownership::ownership::Event;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::controller::Parts;
use crate::failpoints::{Failpoint, is_active};
use crate::fleet::agent::{AgentHandle, ShardHost};
use crate::fleet::leases::HeartbeatReport;
use crate::object::ObjectKey;
use crate::outcome::{Failure, Outcome};
use crate::permit::ShardPermit;
use crate::pool::{Backlog, Pool, Reconcile};
use crate::reporting;
use crate::watch::kinds::ShardCache;
use crate::watch::reflector::ShardReflector;

/// The reconciler as the pool runs it: what the fence refuses has ownership read afresh.
pub(crate) struct Work<C, R> {
    pub(crate) reconcile: Arc<R>,
    parts: Arc<Parts<C>>,
}

impl<C, R> Clone for Work<C, R> {
    fn clone(&self) -> Self {
        Self {
            reconcile: Arc::clone(&self.reconcile),
            parts: Arc::clone(&self.parts),
        }
    }
}

impl<C, R> Work<C, R> {
    pub(crate) fn new(reconcile: R, parts: Arc<Parts<C>>) -> Self {
        Self {
            reconcile: Arc::new(reconcile),
            parts,
        }
    }
}

impl<C: ShardCache, R: Reconcile> Reconcile for Work<C, R> {
    async fn reconcile(
        &self,
        key: &ObjectKey,
        permit: &ShardPermit,
        backlog: &dyn Backlog,
    ) -> Result<Outcome, Failure> {
        let parts = &self.parts;
        if let Some(took) = parts.first_reconciles.run(permit.shard()) {
            let histogram = &parts.metrics.watch.shard_first_reconcile_seconds;
            histogram.observe(took.as_secs_f64());
        }
        let ended = self.reconcile.reconcile(key, permit, backlog).await;
        if matches!(&ended, Err(failure) if failure.is_by_fence())
            && let Some(refresher) = parts.refresher.get()
        {
            refresher.refresh(permit.shard()).await;
        }
        ended
    }
}

/// Watches, queue and workers, as the agent commands them.
pub(crate) struct Host<C: ShardCache, R> {
    reflector: ShardReflector<C>,
    pool: Arc<Pool<Work<C, R>>>,
    work: Work<C, R>,
    agent: AgentHandle,
    tasks: TaskTracker,
    /// Runs the tasks; the agent calls from another thread.
    runtime: Handle,
}

impl<C: ShardCache, R> Host<C, R> {
    /// Its tasks run on the current runtime.
    pub(crate) fn new(
        reflector: ShardReflector<C>,
        pool: Arc<Pool<Work<C, R>>>,
        work: Work<C, R>,
        agent: AgentHandle,
    ) -> Self {
        Self {
            reflector,
            pool,
            work,
            agent,
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
        }
    }
}

impl<C: ShardCache, R: Reconcile> ShardHost for Host<C, R> {
    fn watch(&mut self, shard: ShardId) {
        self.reflector.watch(shard);
    }

    fn unwatch(&mut self, shard: ShardId) {
        self.pool.stop_shard(shard);
        self.reflector.unwatch(shard);
        self.work.parts.client.refused().forget(shard);
        let reconcile = Arc::clone(&self.work.reconcile);
        let released = async move { reconcile.release_shard(shard).await };
        self.tasks.spawn_on(released, &self.runtime);
    }

    fn admit(&mut self, permit: ShardPermit) {
        let shard = permit.shard();
        self.reflector.admitted(shard);
        self.work.reconcile.admit_shard(&permit);
        self.pool.start_shard(permit);
        if is_active(Failpoint::Resync) {
            return;
        }
        for key in self.work.parts.cache.keys(shard) {
            let _offered_again_if_full = self.pool.enqueue(shard, &key, Duration::ZERO);
        }
    }

    fn drain(&mut self, shard: ShardId) {
        let (pool, agent) = (Arc::clone(&self.pool), self.agent.clone());
        let drained = async move {
            if is_active(Failpoint::Drain) || pool.drain_shard(shard).await {
                agent.send(Event::Drained(shard)).await;
            }
        };
        self.tasks.spawn_on(drained, &self.runtime);
    }

    fn resume(&mut self, shard: ShardId) {
        self.pool.resume_shard(shard);
    }

    fn halt(&mut self, shard: ShardId) {
        self.pool.stop_shard(shard);
    }

    fn report(&self) -> HeartbeatReport {
        reporting::heartbeat(&self.work.parts, &self.pool, &*self.work.reconcile)
    }
}
