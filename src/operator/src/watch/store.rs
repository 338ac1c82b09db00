//! The records of all objects in the shards of this replica.
//!
//! Guarantees: each map's locks live for one map operation, never over an await, and no two of them
//! are held at once, except that of the degraded clusters, inside that of a group. What a watch brings goes in by its ticket ([`Tickets`]): once a shard is closed,
//! no watch that was too late to notice can put anything into it. A removal names the uid, so that a
//! late one cannot remove a successor of the same name. Records are stored packed, and each reader gets
//! one of its own: it holds no lock.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::{DashMap, Entry};
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::TypeMeta;
use parking_lot::Mutex;
use sharded_controller::watch::kinds::{ShardCache, WatchDependents, type_meta};
use sharded_controller::watch::tickets::Tickets;

use super::kinds::{Clusters, PartialMetadata, StatefulSets};
use super::packed::{Dependents, PackedChild, PackedCluster, Slot, pack_child, pack_statefulset};
use crate::api::{DatabaseCluster, DatabaseClusterStatus, Phase};
use crate::core::child::{ChildId, ChildKind};
use crate::core::observed::{ChildRecord, ClusterRecord, StatefulSetRecord};
use crate::postgres;
use shard_ownership::hash::{Bucket, ShardCount, ShardId};
use sharded_controller::object::ObjectKey;

/// The records. Bounded by the number of objects in the held shards.
#[derive(Debug)]
pub struct Store {
    shards: ShardCount,
    tickets: Tickets,
    /// Each cluster with its dependents, by its namespace and name. Locked for one look-up, insertion or
    /// removal, or entry by entry during a scan.
    groups: DashMap<ObjectKey, Group>,
    /// How many clusters there are: counted while a group is locked, so that nobody has to visit all of them.
    tally: Tally,
    /// The namespaces of the groups, each once. Locked to look one up, or to drop those that are no
    /// longer in use.
    namespaces: Mutex<HashSet<Arc<str>>>,
}

/// A cluster, and what is named after it.
#[derive(Debug, Default)]
struct Group {
    cluster: Option<PackedCluster>,
    dependents: Dependents,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.cluster.is_none() && self.dependents.is_empty()
    }
}

/// What is known of all clusters without visiting them.
#[derive(Debug)]
struct Tally {
    /// Their number in each bucket and phase.
    buckets: Vec<[AtomicUsize; PHASES]>,
    /// Those that are Degraded. Locked while a group is locked, and locks nothing itself.
    degraded: Mutex<BTreeSet<ObjectKey>>,
}

/// Each phase, and none.
const PHASES: usize = Phase::ALL.len() + 1;

impl Default for Tally {
    fn default() -> Self {
        let buckets = usize::from(u8::MAX) + 1;
        Self {
            buckets: (0..buckets).map(|_| Default::default()).collect(),
            degraded: Mutex::default(),
        }
    }
}

impl Tally {
    /// Replaces what a group has of its cluster, which has this name.
    fn replace(
        &self,
        key: &ObjectKey,
        known: &mut Option<PackedCluster>,
        new: Option<PackedCluster>,
    ) {
        let is_degraded = |cluster: &Option<PackedCluster>| {
            let phase = cluster.as_ref().and_then(PackedCluster::phase);
            phase == Some(Phase::Degraded)
        };
        match (is_degraded(known), is_degraded(&new)) {
            (false, true) => drop(self.degraded.lock().insert(key.clone())),
            (true, false) => drop(self.degraded.lock().remove(key)),
            (false, false) | (true, true) => {}
        }
        if let Some(count) = known.as_ref().and_then(|cluster| self.place(cluster)) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(count) = new.as_ref().and_then(|cluster| self.place(cluster)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        *known = new;
    }

    fn place(&self, cluster: &PackedCluster) -> Option<&AtomicUsize> {
        let is_it = |phase: &Phase| Some(*phase) == cluster.phase();
        let phase = Phase::ALL.iter().position(is_it);
        let phases = self.buckets.get(usize::from(cluster.bucket().0))?;
        phases.get(phase.unwrap_or(PHASES - 1))
    }

    /// The buckets with the numbers of their clusters by phase.
    fn buckets(&self) -> impl Iterator<Item = (Bucket, [usize; PHASES])> {
        let load = |counts: &[AtomicUsize; PHASES]| {
            std::array::from_fn(|phase| {
                let count = counts.get(phase);
                count.map_or(0, |count| count.load(Ordering::Relaxed))
            })
        };
        (0..=u8::MAX).map(Bucket).zip(self.buckets.iter().map(load))
    }
}

impl Store {
    /// An empty store for this number of shards.
    #[must_use]
    pub fn new(shards: ShardCount) -> Self {
        Self {
            shards,
            tickets: Tickets::default(),
            groups: DashMap::new(),
            tally: Tally::default(),
            namespaces: Mutex::default(),
        }
    }

    /// Keeps a cluster as it was seen now.
    pub(crate) fn upsert_cluster(&self, record: ClusterRecord) {
        let packed = PackedCluster::new(&record);
        if packed.is_none() {
            // It was read from JSON, and can be written as JSON.
            tracing::error!(object = %record.key, "a cluster cannot be stored, which is a bug in the operator");
        }
        self.with_group(&record.key.namespace, &record.key.name, |group| {
            self.tally.replace(&record.key, &mut group.cluster, packed);
        });
    }

    /// Stores a StatefulSet as it was observed now.
    pub(crate) fn upsert_statefulset(&self, record: StatefulSetRecord) {
        let key = &record.child.key;
        let (slot, group) = Slot::of(ChildKind::StatefulSet, &key.name);
        let packed = pack_statefulset(&record, group);
        self.with_group(&key.namespace, group, |group| {
            group.dependents.insert(slot, &packed);
        });
    }

    /// Stores another child as it was observed now.
    pub(crate) fn upsert_child(&self, record: ChildRecord) {
        let (slot, group) = Slot::of(record.kind, &record.key.name);
        let packed = pack_child(&record, group);
        self.with_group(&record.key.namespace, group, |group| {
            group.dependents.insert(slot, &packed);
        });
    }

    fn with_group(&self, namespace: &Arc<str>, name: &str, act: impl FnOnce(&mut Group)) {
        let key = ObjectKey {
            namespace: self.namespace(namespace),
            name: name.into(),
        };
        act(&mut self.groups.entry(key).or_default());
    }

    /// The one text of this namespace.
    fn namespace(&self, namespace: &Arc<str>) -> Arc<str> {
        let mut known = self.namespaces.lock();
        if let Some(known) = known.get(namespace) {
            return Arc::clone(known);
        }
        known.insert(Arc::clone(namespace));
        Arc::clone(namespace)
    }

    /// The cluster of this name.
    #[must_use]
    pub fn cluster(&self, key: &ObjectKey) -> Option<Arc<ClusterRecord>> {
        let entry = self.groups.get(key)?;
        let record = entry.cluster.as_ref()?.record(entry.key().clone())?;
        Some(Arc::new(record))
    }

    /// The bucket of the cluster of this name.
    #[must_use]
    pub(crate) fn cluster_bucket(&self, key: &ObjectKey) -> Option<Bucket> {
        self.groups
            .get(key)?
            .cluster
            .as_ref()
            .map(PackedCluster::bucket)
    }

    /// The StatefulSet of this name.
    #[must_use]
    pub fn statefulset(&self, key: &ObjectKey) -> Option<Arc<StatefulSetRecord>> {
        let slot = Slot::of(ChildKind::StatefulSet, &key.name);
        self.dependent(&key.namespace, slot, |packed, group| {
            packed.statefulset(key.clone(), group).map(Arc::new)
        })
    }

    /// Another child of this kind and name.
    #[must_use]
    pub fn child(&self, namespace: &Arc<str>, id: &ChildId) -> Option<Arc<ChildRecord>> {
        let slot = Slot::of(id.kind, &id.name);
        self.dependent(namespace, slot, |packed, group| {
            let key = ObjectKey {
                namespace: Arc::clone(namespace),
                name: Arc::clone(&id.name),
            };
            packed.child(id.kind, key, group).map(Arc::new)
        })
    }

    fn dependent<T>(
        &self,
        namespace: &Arc<str>,
        (slot, group): (Slot, &str),
        read: impl FnOnce(PackedChild<'_>, &str) -> Option<T>,
    ) -> Option<T> {
        let key = ObjectKey {
            namespace: Arc::clone(namespace),
            name: group.into(),
        };
        let entry = self.groups.get(&key)?;
        read(entry.dependents.get(slot)?, group)
    }

    /// Drops the cluster with this name and uid; returns whether there was one.
    pub(crate) fn remove_cluster(&self, key: &ObjectKey, uid: &str) -> bool {
        self.change_group(key, |group| {
            let known = group.cluster.as_ref();
            let is_it = known.is_some_and(|cluster| cluster.has_uid(uid));
            if is_it {
                self.tally.replace(key, &mut group.cluster, None);
            }
            is_it
        })
    }

    /// Drops the StatefulSet with this name and uid; returns whether there was one.
    pub(crate) fn remove_statefulset(&self, key: &ObjectKey, uid: &str) -> bool {
        self.remove_child(ChildKind::StatefulSet, key, uid)
    }

    /// Drops another child with this kind, name and uid; returns whether there was one.
    pub(crate) fn remove_child(&self, kind: ChildKind, key: &ObjectKey, uid: &str) -> bool {
        let (slot, group) = Slot::of(kind, &key.name);
        let group = ObjectKey {
            namespace: Arc::clone(&key.namespace),
            name: group.into(),
        };
        self.change_group(&group, |group| {
            let dependents = &mut group.dependents;
            let known = dependents.get(slot);
            let is_it = known.is_some_and(|known| known.has_uid(uid));
            if is_it {
                dependents.retain(|known, _| known != slot);
            }
            is_it
        })
    }

    /// Takes something out of a group, which goes with the last of it.
    fn change_group(&self, key: &ObjectKey, act: impl FnOnce(&mut Group) -> bool) -> bool {
        let Entry::Occupied(mut entry) = self.groups.entry(key.clone()) else {
            return false;
        };
        let changed = act(entry.get_mut());
        if entry.get().is_empty() {
            entry.remove();
        }
        changed
    }

    /// The first `most` of the clusters that are Degraded, by name.
    #[must_use]
    pub(crate) fn degraded(&self, most: usize) -> Vec<ObjectKey> {
        let degraded = self.tally.degraded.lock();
        degraded.iter().take(most).cloned().collect()
    }

    /// Number of clusters in a shard.
    #[must_use]
    pub fn count(&self, shard: ShardId) -> usize {
        let counts = self.counts();
        counts
            .get(usize::from(shard.0))
            .copied()
            .unwrap_or_default()
    }

    /// Names of the clusters in these buckets.
    #[must_use]
    pub fn cluster_keys(&self, wanted: &dyn Fn(Bucket) -> bool) -> Vec<ObjectKey> {
        let lies = |group: &Group| {
            let cluster = group.cluster.as_ref();
            cluster.is_some_and(|cluster| wanted(cluster.bucket()))
        };
        let found = self.groups.iter().filter(|entry| lies(entry));
        found.map(|entry| entry.key().clone()).collect()
    }

    /// Calls `visit` with each cluster's status.
    pub(crate) fn visit_statuses(&self, mut visit: impl FnMut(&ObjectKey, &DatabaseClusterStatus)) {
        for entry in &self.groups {
            let cluster = entry.cluster.as_ref();
            if let Some(status) = cluster.and_then(|cluster| cluster.status(&entry.key().name)) {
                visit(entry.key(), &status);
            }
        }
    }

    /// The status of the cluster of this name.
    pub(crate) fn status(&self, key: &ObjectKey) -> Option<DatabaseClusterStatus> {
        self.groups.get(key)?.cluster.as_ref()?.status(&key.name)
    }

    /// The clusters of a namespace of whose StatefulSet's name there is none.
    #[must_use]
    pub(crate) fn without_statefulset(&self, namespace: &str) -> Vec<Arc<ClusterRecord>> {
        let mut found = Vec::new();
        for entry in &self.groups {
            if *entry.key().namespace != *namespace {
                continue;
            }
            let name = postgres::statefulset_name(&entry.key().name);
            let (slot, _) = Slot::of(ChildKind::StatefulSet, &name);
            if entry.dependents.get(slot).is_none()
                && let Some(cluster) = &entry.cluster
                && let Some(record) = cluster.record(entry.key().clone())
            {
                found.push(Arc::new(record));
            }
        }
        found
    }

    /// Names of the StatefulSets in these buckets.
    #[must_use]
    pub fn statefulset_keys(&self, wanted: &dyn Fn(Bucket) -> bool) -> Vec<ObjectKey> {
        self.child_keys(ChildKind::StatefulSet, wanted)
    }

    /// Names of the other children of one kind in these buckets.
    #[must_use]
    pub fn child_keys(&self, kind: ChildKind, wanted: &dyn Fn(Bucket) -> bool) -> Vec<ObjectKey> {
        let mut keys = Vec::new();
        for entry in &self.groups {
            let group = entry.key();
            let children = entry.dependents.iter();
            let found = children
                .filter(|(slot, child)| slot.kind == kind && child.bucket().is_some_and(wanted));
            keys.extend(found.map(|(slot, _)| ObjectKey {
                namespace: Arc::clone(&group.namespace),
                name: slot.name(&group.name),
            }));
        }
        keys
    }

    /// Number of clusters in each phase; those without a phase are being created.
    #[must_use]
    pub fn phases(&self) -> [(Phase, usize); 5] {
        let mut all = [0; PHASES];
        for (_, counts) in self.tally.buckets() {
            for (all, count) in all.iter_mut().zip(counts) {
                *all += count;
            }
        }
        let [known @ .., without] = all;
        let mut phases = Phase::ALL.into_iter().zip(known);
        std::array::from_fn(|_| {
            let (phase, count) = phases.next().unwrap_or((Phase::Creating, 0));
            match phase {
                Phase::Creating => (phase, count + without),
                Phase::Scaling | Phase::Ready | Phase::Degraded | Phase::Terminating => {
                    (phase, count)
                }
            }
        })
    }

    fn lies_in(&self, bucket: Bucket, shard: ShardId) -> bool {
        self.shards.shard_of(bucket) == shard
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
        self.cluster_bucket(key)
            .map(|bucket| self.shards.shard_of(bucket))
    }

    fn keys(&self, shard: ShardId) -> Vec<ObjectKey> {
        self.cluster_keys(&|bucket| self.lies_in(bucket, shard))
    }

    fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; usize::from(self.shards.get())];
        for (bucket, phases) in self.tally.buckets() {
            let shard = self.shards.shard_of(bucket);
            if let Some(count) = counts.get_mut(usize::from(shard.0)) {
                *count += phases.iter().sum::<usize>();
            }
        }
        counts
    }

    fn purge_shard(&self, shard: ShardId) {
        self.groups.retain(|key, group| {
            let lies = |bucket: Bucket| self.lies_in(bucket, shard);
            if group
                .cluster
                .as_ref()
                .is_some_and(|cluster| lies(cluster.bucket()))
            {
                self.tally.replace(key, &mut group.cluster, None);
            }
            let dependents = &mut group.dependents;
            dependents.retain(|_, child| !child.bucket().is_some_and(lies));
            !group.is_empty()
        });
        // A shard that was handed over must not leave the memory of its objects behind.
        self.groups.shrink_to_fit();
        let mut namespaces = self.namespaces.lock();
        namespaces.retain(|namespace| Arc::strong_count(namespace) > 1);
    }
}
