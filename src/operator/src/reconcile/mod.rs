//! One reconcile: observe, plan, apply, report.
//!
//! **Architecture invariant:** what is watched is never read again from the API server, and every
//! write goes through `writer`, which checks the right to act first.

mod apply;
mod dependents;
mod diagnosis;
mod events;
mod finalize;
mod former;
mod lookup;
mod maintenance;
mod refused;
mod run;
mod secret;
mod takeovers;
mod tls;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::Mutex;
use sharded_controller::write::GuardedClient;

use crate::api::{ConditionType, names};
use crate::core::child::ChildKind;
use crate::core::memory::Memory;
use crate::core::observed::ClusterRecord;
use crate::telemetry::metrics::ReconcilerMetrics;
use crate::watch::store::Store;
use shard_ownership::hash::{Bucket, ShardId, fnv1a64};
use sharded_controller::clock::Clock;
use sharded_controller::fleet::state::FleetState;
use sharded_controller::object::ObjectKey;
use sharded_controller::outcome::{Failure, Next, Outcome};
use sharded_controller::permit::ShardPermit;
use sharded_controller::pool::{Backlog, Reconcile};
use sharded_controller::rate_limit::{Allowance, RateLimit};
use sharded_controller::watch::kinds::ShardCache as _;

use events::Events;
use former::FormerClaims;
use lookup::Lookups;
use run::Run;
pub(crate) use takeovers::OwnPod;
use takeovers::Takeovers;
use writer::Writer;

/// Limits and names of the reconciler.
#[derive(Clone, Debug)]
pub(crate) struct ReconcilerConfig {
    /// Identity of this replica, the instance in events.
    pub identity: String,
    /// Maximum number of entries in the lookup cache.
    pub cache_entries: u64,
    /// How long a lookup stays in the cache.
    pub cache_ttl: Duration,
    /// How often everything is applied once more, for drift that no watch reported.
    pub sweep_interval: Duration,
    /// How long a new spec that was applied goes unreported, while there is nothing but its progress to
    /// report.
    pub report_delay: Duration,
    /// How many reports of progress all clusters together may write.
    pub report_rate: RateLimit,
}

/// Brings clusters to their desired state, one at a time.
pub(crate) struct Reconciler {
    clock: Clock,
    store: Arc<Store>,
    metrics: Arc<ReconcilerMetrics>,
    writer: Writer,
    events: Events,
    lookups: Lookups,
    former: FormerClaims,
    takeovers: Option<Takeovers>,
    sweep_interval_ms: u64,
    report_delay_ms: u64,
    report_rate: RateLimit,
    /// The rest of `report_rate`. Locked for one computation.
    reports: Mutex<Allowance>,
    /// What is remembered of our own writes. Bounded by the clusters of our shards. Locked for one
    /// map operation or one pure decision, never across an await.
    memories: DashMap<ObjectKey, Memory>,
}

impl Reconciler {
    /// A reconciler that reads the store and writes with the client.
    #[must_use]
    pub(crate) fn new(
        client: GuardedClient,
        store: Arc<Store>,
        metrics: Arc<ReconcilerMetrics>,
        config: &ReconcilerConfig,
        clock: Clock,
    ) -> Self {
        client.expect_kinds(ChildKind::ALL.map(ChildKind::label));
        client.expect_kinds([names::KIND]);
        Self {
            clock,
            events: Events::new(client.clone(), &config.identity),
            writer: Writer::new(client.clone()),
            lookups: Lookups::new(
                client,
                Arc::clone(&metrics),
                config.cache_entries,
                config.cache_ttl,
            ),
            former: FormerClaims::default(),
            takeovers: None,
            sweep_interval_ms: u64::try_from(config.sweep_interval.as_millis()).unwrap_or(u64::MAX),
            report_delay_ms: u64::try_from(config.report_delay.as_millis()).unwrap_or(u64::MAX),
            report_rate: config.report_rate,
            reports: Mutex::default(),
            store,
            metrics,
            memories: DashMap::new(),
        }
    }

    /// Reports the shards that this replica takes over on its own Pod.
    #[must_use]
    pub(crate) fn reporting_takeovers(mut self, fleet: Arc<FleetState>, pod: OwnPod) -> Self {
        let (clock, events) = (self.clock.clone(), self.events.clone());
        self.takeovers = Some(Takeovers::new(fleet, clock, events, pod));
        self
    }

    /// Takes one report of progress out of what all clusters together may write.
    fn may_report_progress(&self, now_ms: u64) -> bool {
        let taken = self.report_rate.take(&mut self.reports.lock(), now_ms);
        taken.is_ok()
    }

    /// Does something with what is remembered of a cluster. No await may be inside.
    fn with_memory<T>(&self, cluster: &ClusterRecord, act: impl FnOnce(&mut Memory) -> T) -> T {
        let fresh = || {
            // Spread over a whole interval: clusters that were taken over together are not swept
            // together.
            let spread_ms = fnv1a64(cluster.uid.as_bytes()) % self.sweep_interval_ms.max(1);
            Memory::new(
                Arc::clone(&cluster.uid),
                self.clock.now_ms().saturating_add(spread_ms),
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

impl Reconcile for Reconciler {
    async fn reconcile(
        &self,
        key: &ObjectKey,
        permit: &ShardPermit,
        backlog: &dyn Backlog,
    ) -> Result<Outcome, Failure> {
        let cluster = self
            .store
            .cluster(key)
            .filter(|cluster| self.store.shards().shard_of(cluster.bucket) == permit.shard());
        let Some(cluster) = cluster else {
            self.memories.remove(key);
            return Ok(Outcome {
                wrote: false,
                next: Next::Forget,
            });
        };
        let outcome = Run::new(self, &cluster, permit, backlog).execute().await;
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

    fn admit_shard(&self, permit: &ShardPermit) {
        if let Some(takeovers) = &self.takeovers {
            takeovers.admit(permit);
        }
    }

    async fn release_shard(&self, shard: ShardId) {
        let shards = self.store.shards();
        self.memories
            .retain(|_, memory| shards.shard_of(Bucket::of(memory.uid())) != shard);
        self.lookups.invalidate_shard(shards, shard).await;
    }

    async fn maintain(&self) {
        let entries = self.lookups.entries().await;
        let entries = i64::try_from(entries).unwrap_or(i64::MAX);
        self.metrics.cache_entries.set(entries);
        if let Some(takeovers) = &self.takeovers {
            takeovers.report();
        }
    }

    fn refresh_metrics(&self) {
        for (phase, number) in self.store.phases() {
            let gauge = self.metrics.clusters.with_label_values(&[phase.label()]);
            gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        }
    }

    fn stats(&self) -> Vec<(String, f64)> {
        let phases = self.store.phases().into_iter();
        phases
            .filter(|(_, number)| *number > 0)
            .map(|(phase, number)| {
                let name = format!("clusters_{}", phase.label().to_lowercase());
                (name, number as f64)
            })
            .collect()
    }

    fn unhealthy(&self, most: usize) -> Vec<(ObjectKey, String)> {
        let degraded = self.store.degraded(most).into_iter();
        let with_reason = degraded.filter_map(|key| {
            let cluster = self.store.cluster(&key)?;
            let condition = cluster.status.condition(ConditionType::Degraded);
            let reason = condition.map(|found| found.reason.clone());
            Some((key, reason.unwrap_or_default()))
        });
        with_reason.collect()
    }
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
