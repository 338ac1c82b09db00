//! One reconcile: observe, plan, apply, report.
//!
//! **Architecture invariant:** what is watched is never read again from the API server, and every
//! write goes through [`writer`], which checks the right to act first.

mod apply;
mod belongings;
mod diagnosis;
mod events;
mod failure;
mod finalize;
mod lookup;
mod refused;
mod run;
mod secret;
mod upkeep;
mod writer;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use kube::Client;

use crate::core::hash::{Bucket, ShardId, fnv1a64};
use crate::core::memory::Memory;
use crate::core::object::ObjectKey;
use crate::core::observed::ClusterRecord;
use crate::core::outcome::{Failure, Next, Outcome};
use crate::fleet::tenure::{Tenure, boottime_ms};
use crate::pool::Backlog;
use crate::telemetry::metrics::Metrics;
use crate::watch::store::Store;

pub use diagnosis::diagnose;

use events::Events;
use lookup::Lookups;
use run::Run;
use writer::Writer;

/// Limits and names of the reconciler.
#[derive(Clone, Debug)]
pub struct ReconcilerConfig {
    /// Identity of this replica, the instance in events.
    pub identity: String,
    /// Maximum number of entries in the lookup cache.
    pub cache_entries: u64,
    /// How long a lookup stays in the cache.
    pub cache_ttl: Duration,
    /// How often everything is applied once more, for drift that no watch reported.
    pub sweep_interval: Duration,
}

/// Brings clusters to their desired state, one at a time.
pub struct Reconciler {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    writer: Writer,
    events: Events,
    lookups: Lookups,
    sweep_interval_ms: u64,
    /// What is remembered of our own writes. Bounded by the clusters of our shards. Locked for one
    /// map operation or one pure decision, never across an await.
    memories: DashMap<ObjectKey, Memory>,
}

impl Reconciler {
    /// A reconciler that reads the store and writes with the client.
    #[must_use]
    pub fn new(
        client: Client,
        store: Arc<Store>,
        metrics: Arc<Metrics>,
        config: &ReconcilerConfig,
    ) -> Self {
        let writer = Writer::new(client.clone(), Arc::clone(&metrics));
        Self {
            events: Events::new(client.clone(), writer.clone(), &config.identity),
            writer,
            lookups: Lookups::new(
                client,
                Arc::clone(&metrics),
                config.cache_entries,
                config.cache_ttl,
            ),
            sweep_interval_ms: u64::try_from(config.sweep_interval.as_millis()).unwrap_or(u64::MAX),
            store,
            metrics,
            memories: DashMap::new(),
        }
    }

    /// Brings one cluster to its desired state, as far as that is possible now.
    ///
    /// # Errors
    /// See [`Failure`]: the right to act ended, the object has to be reconciled again, the API
    /// server requests a pause, or the object failed.
    pub async fn reconcile(
        &self,
        key: &ObjectKey,
        tenure: &Tenure,
        backlog: &dyn Backlog,
    ) -> Result<Outcome, Failure> {
        let cluster = self
            .store
            .cluster(key)
            .filter(|cluster| self.store.shards().shard_of(cluster.bucket) == tenure.shard());
        let Some(cluster) = cluster else {
            self.memories.remove(key);
            return Ok(Outcome {
                wrote: false,
                next: Next::Forget,
            });
        };
        let outcome = Run::new(self, &cluster, tenure, backlog).execute().await;
        if matches!(
            outcome,
            Ok(Outcome {
                next: Next::Forget,
                ..
            })
        ) {
            self.memories.remove(key);
        }
        outcome
    }

    /// Forgets what is remembered and cached about the clusters of a shard: called when it starts
    /// and when it ends, so that a new tenure does not use the knowledge of an older one.
    pub async fn invalidate_shard(&self, shard: ShardId) {
        let shards = self.store.shards();
        self.memories
            .retain(|_, memory| shards.shard_of(Bucket::of(memory.uid())) != shard);
        self.writer.writes().forget(shard);
        self.lookups.invalidate_shard(shards, shard).await;
    }

    /// Why no write is accepted in a shard, if that is the case: the first such shard, and how many
    /// there are.
    #[must_use]
    pub fn refused_shards(&self) -> Option<String> {
        let refused = self.writer.writes().all_refused(boottime_ms());
        let (shard, message) = refused.first()?;
        let others = match refused.len() - 1 {
            0 => String::new(),
            others => format!(" and {others} more"),
        };
        Some(format!(
            "the API server refuses all writes in shard {shard}{others}: {message}"
        ))
    }

    /// Updates the metrics of the lookup cache and of refused writes.
    pub async fn refresh_metrics(&self) {
        let entries = self.lookups.entries().await;
        self.metrics
            .cache_entries
            .set(i64::try_from(entries).unwrap_or(i64::MAX));
        let refused = &self.metrics.shard_writes_refused;
        refused.reset();
        for (shard, _) in self.writer.writes().all_refused(boottime_ms()) {
            refused.with_label_values(&[&shard.0.to_string()]).set(1);
        }
    }

    /// Accesses the memory of a cluster. It must not contain an await.
    fn with_memory<T>(&self, cluster: &ClusterRecord, act: impl FnOnce(&mut Memory) -> T) -> T {
        let fresh = || {
            // Spread over a whole interval: clusters that were taken over together are not swept
            // together.
            let spread_ms = fnv1a64(cluster.uid.as_bytes()) % self.sweep_interval_ms.max(1);
            Memory::new(
                Arc::clone(&cluster.uid),
                boottime_ms().saturating_add(spread_ms),
            )
        };
        let mut entry = self
            .memories
            .entry(cluster.key.clone())
            .or_insert_with(fresh);
        if entry.uid() != &*cluster.uid {
            *entry = fresh();
        }
        act(&mut entry)
    }
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
