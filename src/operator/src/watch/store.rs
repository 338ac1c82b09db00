//! The records of all objects in the shards of this replica.
//!
//! Guarantees: each map's locks live for one map operation, never over an await, and no two of them
//! are held at once. What a watch brings goes in by its ticket ([`Tickets`]): once a shard is closed,
//! no watch that was too late to notice can put anything into it. A removal names the uid, so that a
//! late one cannot remove a successor of the same name. Records are handed out as `Arc`s: a reader
//! holds no lock.

use std::sync::Arc;

use dashmap::DashMap;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::TypeMeta;
use sharded_controller::watch::kinds::{ShardCache, WatchDependents, type_meta};
use sharded_controller::watch::tickets::Tickets;

use super::kinds::{Clusters, PartialMetadata, StatefulSets};

use crate::api::{DatabaseCluster, Phase};
use crate::core::child::{ChildId, ChildKind};
use crate::core::observed::{ChildRecord, ClusterRecord, StatefulSetRecord};
use shard_ownership::hash::{Bucket, ShardCount, ShardId};
use sharded_controller::object::ObjectKey;

/// The records. Bounded by the number of objects in the held shards.
#[derive(Debug)]
pub struct Store {
    shards: ShardCount,
    tickets: Tickets,
    /// Locked for one look-up, insertion or removal, or entry by entry during a scan.
    clusters: DashMap<ObjectKey, Arc<ClusterRecord>>,
    /// Locked as `clusters`.
    statefulsets: DashMap<ObjectKey, Arc<StatefulSetRecord>>,
    /// Locked as `clusters`. StatefulSets are not in here.
    children: DashMap<(ChildKind, ObjectKey), Arc<ChildRecord>>,
}

impl Store {
    /// An empty store for this number of shards.
    #[must_use]
    pub fn new(shards: ShardCount) -> Self {
        Self {
            shards,
            tickets: Tickets::default(),
            clusters: DashMap::new(),
            statefulsets: DashMap::new(),
            children: DashMap::new(),
        }
    }

    /// Keeps a cluster as it was seen now; returns what was kept before.
    pub(crate) fn upsert_cluster(&self, record: ClusterRecord) -> Option<Arc<ClusterRecord>> {
        self.clusters.insert(record.key.clone(), Arc::new(record))
    }

    /// Stores a StatefulSet as it was observed now; returns the previous record.
    pub(crate) fn upsert_statefulset(
        &self,
        record: StatefulSetRecord,
    ) -> Option<Arc<StatefulSetRecord>> {
        self.statefulsets
            .insert(record.child.key.clone(), Arc::new(record))
    }

    /// Stores another child as it was observed now; returns the previous record.
    pub(crate) fn upsert_child(&self, record: ChildRecord) -> Option<Arc<ChildRecord>> {
        self.children
            .insert((record.kind, record.key.clone()), Arc::new(record))
    }

    /// The cluster of this name.
    #[must_use]
    pub fn cluster(&self, key: &ObjectKey) -> Option<Arc<ClusterRecord>> {
        self.clusters.get(key).map(|entry| Arc::clone(&entry))
    }

    /// The StatefulSet of this name.
    #[must_use]
    pub fn statefulset(&self, key: &ObjectKey) -> Option<Arc<StatefulSetRecord>> {
        self.statefulsets.get(key).map(|entry| Arc::clone(&entry))
    }

    /// Another child of this kind and name.
    #[must_use]
    pub fn child(&self, namespace: &Arc<str>, id: &ChildId) -> Option<Arc<ChildRecord>> {
        let key = ObjectKey {
            namespace: Arc::clone(namespace),
            name: Arc::clone(&id.name),
        };
        let entry = self.children.get(&(id.kind, key))?;
        Some(Arc::clone(&entry))
    }

    /// Drops the cluster with this name and uid; returns whether there was one.
    pub(crate) fn remove_cluster(&self, key: &ObjectKey, uid: &str) -> bool {
        self.clusters
            .remove_if(key, |_, record| *record.uid == *uid)
            .is_some()
    }

    /// Drops the StatefulSet with this name and uid; returns whether there was one.
    pub(crate) fn remove_statefulset(&self, key: &ObjectKey, uid: &str) -> bool {
        self.statefulsets
            .remove_if(key, |_, record| record.child.uid == uid)
            .is_some()
    }

    /// Drops another child with this kind, name and uid; returns whether there was one.
    pub(crate) fn remove_child(&self, kind: ChildKind, key: &ObjectKey, uid: &str) -> bool {
        self.children
            .remove_if(&(kind, key.clone()), |_, record| record.uid == uid)
            .is_some()
    }

    /// Number of clusters in a shard.
    #[must_use]
    pub fn count(&self, shard: ShardId) -> usize {
        self.clusters
            .iter()
            .filter(|record| self.lies_in(record.bucket, shard))
            .count()
    }

    /// Names of the clusters in these buckets.
    #[must_use]
    pub fn cluster_keys(&self, wanted: &dyn Fn(Bucket) -> bool) -> Vec<ObjectKey> {
        let found = self.clusters.iter().filter(|entry| wanted(entry.bucket));
        found.map(|entry| entry.key.clone()).collect()
    }

    /// Names of the StatefulSets in these buckets.
    #[must_use]
    pub fn statefulset_keys(&self, wanted: &dyn Fn(Bucket) -> bool) -> Vec<ObjectKey> {
        let lies = |child: &ChildRecord| child.bucket.is_some_and(wanted);
        let found = self.statefulsets.iter().filter(|entry| lies(&entry.child));
        found.map(|entry| entry.key().clone()).collect()
    }

    /// Names of the other children of one kind in these buckets.
    #[must_use]
    pub fn child_keys(&self, kind: ChildKind, wanted: &dyn Fn(Bucket) -> bool) -> Vec<ObjectKey> {
        let found = self
            .children
            .iter()
            .filter(|entry| entry.kind == kind && entry.bucket.is_some_and(wanted));
        found.map(|entry| entry.key.clone()).collect()
    }

    /// Number of clusters in each phase; those without a phase are being created.
    #[must_use]
    pub fn phases(&self) -> [(Phase, usize); 5] {
        let mut counts = Phase::ALL.map(|phase| (phase, 0));
        for record in &self.clusters {
            let phase = record.status.phase.unwrap_or(Phase::Creating);
            if let Some((_, count)) = counts.iter_mut().find(|(known, _)| *known == phase) {
                *count += 1;
            }
        }
        counts
    }

    fn lies_in(&self, bucket: Bucket, shard: ShardId) -> bool {
        self.shards.shard_of(bucket) == shard
    }

    fn child_lies_in(&self, record: &ChildRecord, shard: ShardId) -> bool {
        let bucket = record.bucket;
        bucket.is_some_and(|bucket| self.lies_in(bucket, shard))
    }
}

impl ShardCache for Store {
    type Owner = Clusters;

    fn owner_type() -> TypeMeta {
        type_meta::<DatabaseCluster>()
    }

    fn dependents(watches: &mut impl WatchDependents<Self>) {
        watches.watch::<StatefulSets>();
        watches.watch::<PartialMetadata<Service>>();
        watches.watch::<PartialMetadata<ConfigMap>>();
        watches.watch::<PartialMetadata<PodDisruptionBudget>>();
    }

    fn shards(&self) -> ShardCount {
        self.shards
    }

    fn tickets(&self) -> &Tickets {
        &self.tickets
    }

    fn shard_of(&self, key: &ObjectKey) -> Option<ShardId> {
        let entry = self.clusters.get(key)?;
        Some(self.shards.shard_of(entry.bucket))
    }

    fn keys(&self, shard: ShardId) -> Vec<ObjectKey> {
        self.clusters
            .iter()
            .filter(|record| self.lies_in(record.bucket, shard))
            .map(|record| record.key.clone())
            .collect()
    }

    fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; usize::from(self.shards.get())];
        for record in &self.clusters {
            let shard = self.shards.shard_of(record.bucket);
            if let Some(count) = counts.get_mut(usize::from(shard.0)) {
                *count += 1;
            }
        }
        counts
    }

    fn purge_shard(&self, shard: ShardId) {
        self.clusters
            .retain(|_, record| !self.lies_in(record.bucket, shard));
        self.statefulsets
            .retain(|_, record| !self.child_lies_in(&record.child, shard));
        self.children
            .retain(|_, record| !self.child_lies_in(record, shard));
    }
}
