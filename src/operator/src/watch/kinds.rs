//! The watched kinds: their paths, their decoding, and their records.

use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Resource;
use kube::core::NamespaceResourceScope;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::observe;
use super::store::Store;
use crate::api::{DatabaseCluster, DatabaseClusterSpec, DatabaseClusterStatus};
use crate::core::child::{ChildId, ChildKind};
use crate::core::observed::{ChildRecord, ClusterRecord, StatefulSetRecord};
use crate::core::plan::is_orphan;
use crate::postgres;
use shard_ownership::hash::Bucket;
use sharded_controller::object::ObjectKey;
use sharded_controller::watch::kinds::{
    ObservedVersion, Record, ShardCache as _, WatchedKind, is_outdated,
};
use sharded_controller::watch::wire::{Annotations, Head, WireMeta};

/// The annotations of this operator.
pub(super) struct Ours;

impl Annotations for Ours {
    const PREFIX: &'static str = "database.io/";
}

/// DatabaseClusters.
pub struct Clusters;

impl WatchedKind<Store> for Clusters {
    const PLURAL: &'static str = "databaseclusters";
    const METADATA_ONLY: bool = false;
    type Record = ClusterRecord;

    fn path(namespace: Option<&str>) -> String {
        DatabaseCluster::url_path(&(), namespace)
    }

    fn bucket_of(head: &Head<'_>) -> Option<Bucket> {
        Some(Bucket::of(&head.uid))
    }

    fn read(object: &str, _: &Store) -> serde_json::Result<Option<ClusterRecord>> {
        #[derive(Deserialize)]
        struct WireObject {
            metadata: WireMeta<Ours>,
            spec: DatabaseClusterSpec,
            status: Option<DatabaseClusterStatus>,
        }
        let arrived: WireObject = serde_json::from_str(object)?;
        Ok(observe::cluster(&DatabaseCluster {
            metadata: arrived.metadata.into(),
            spec: arrived.spec,
            status: arrived.status,
        }))
    }
}

fn cluster_version(cluster: &ClusterRecord) -> ObservedVersion<'_> {
    ObservedVersion {
        bucket: Some(cluster.bucket),
        resource_version: &cluster.resource_version,
    }
}

fn child_version(child: &ChildRecord) -> ObservedVersion<'_> {
    ObservedVersion {
        bucket: child.bucket,
        resource_version: &child.resource_version,
    }
}

impl Record<Store> for ClusterRecord {
    fn key(&self) -> &ObjectKey {
        &self.key
    }

    fn bucket(&self) -> Option<Bucket> {
        Some(self.bucket)
    }

    fn resource_version(&self) -> &str {
        &self.resource_version
    }

    fn owner_key(&self) -> Option<ObjectKey> {
        Some(self.key.clone())
    }

    fn is_outdated(&self, store: &Store) -> bool {
        store.cluster(&self.key).is_some_and(|known| {
            is_outdated(
                store.shards(),
                cluster_version(&known),
                cluster_version(self),
            )
        })
    }

    fn upsert(self, store: &Store) {
        store.upsert_cluster(self);
    }

    fn bucket_known(store: &Store, key: &ObjectKey) -> Option<Bucket> {
        store.cluster_bucket(key)
    }

    fn remove(
        store: &Store,
        key: &ObjectKey,
        uid: Option<&str>,
        bucket: Bucket,
    ) -> Option<ObjectKey> {
        let known = store.cluster(key).filter(|known| known.bucket == bucket)?;
        let uid = uid.unwrap_or(&known.uid);
        store.remove_cluster(key, uid).then(|| key.clone())
    }

    fn keys(store: &Store, ours: &dyn Fn(Bucket) -> bool) -> Vec<ObjectKey> {
        store.cluster_keys(ours)
    }
}

/// StatefulSets.
pub struct StatefulSets;

impl WatchedKind<Store> for StatefulSets {
    const PLURAL: &'static str = "statefulsets";
    const METADATA_ONLY: bool = false;
    type Record = Dependent<StatefulSetRecord>;

    fn path(namespace: Option<&str>) -> String {
        StatefulSet::url_path(&(), namespace)
    }

    fn bucket_of(_: &Head<'_>) -> Option<Bucket> {
        None
    }

    fn read(
        object: &str,
        store: &Store,
    ) -> serde_json::Result<Option<Dependent<StatefulSetRecord>>> {
        #[derive(Deserialize)]
        struct WireObject<'a> {
            metadata: WireMeta<Ours>,
            #[serde(borrow)]
            spec: Option<&'a RawValue>,
            status: Option<StatefulSetStatus>,
        }
        let arrived: WireObject<'_> = serde_json::from_str(object)?;
        let mut object = StatefulSet {
            metadata: arrived.metadata.into(),
            spec: None,
            status: arrived.status,
        };
        let known = observe::key(&object.metadata).and_then(|key| store.statefulset(&key));
        let known = known.as_deref();
        // Most changes are of the status alone.
        if !known.is_some_and(|known| observe::same_spec(&object.metadata, known)) {
            let spec = arrived.spec.map(RawValue::get);
            object.spec = spec
                .map(serde_json::from_str::<StatefulSetSpec>)
                .transpose()?;
        }
        Ok(observe::statefulset(&object, known).map(Dependent))
    }
}

impl StoredChild for StatefulSetRecord {
    fn child(&self) -> &ChildRecord {
        &self.child
    }

    fn known<T>(
        store: &Store,
        key: &ObjectKey,
        read: impl FnOnce(&ChildRecord) -> Option<T>,
    ) -> Option<T> {
        read(&store.statefulset(key)?.child)
    }

    fn put(self, store: &Store) {
        store.upsert_statefulset(self);
    }

    fn take(store: &Store, key: &ObjectKey, uid: &str) -> bool {
        store.remove_statefulset(key, uid)
    }

    fn keys(store: &Store, ours: &dyn Fn(Bucket) -> bool) -> Vec<ObjectKey> {
        store.statefulset_keys(ours)
    }
}

/// What the store keeps of a kind of child: everything follows from its metadata but where it lies.
pub(crate) trait StoredChild: Sized + Send {
    /// Its metadata.
    fn child(&self) -> &ChildRecord;
    /// Reads the metadata of the stored object with this key.
    fn known<T>(
        store: &Store,
        key: &ObjectKey,
        read: impl FnOnce(&ChildRecord) -> Option<T>,
    ) -> Option<T>;
    /// Stores it.
    fn put(self, store: &Store);
    /// Removes the object with this key, if it has this uid; returns whether it did.
    fn take(store: &Store, key: &ObjectKey, uid: &str) -> bool;
    /// Names of all stored objects in buckets that are `ours`.
    fn keys(store: &Store, ours: &dyn Fn(Bucket) -> bool) -> Vec<ObjectKey>;
}

/// The cluster to reconcile when a child changes: its controller, or, without one, the cluster that may
/// adopt it.
fn cluster_of(child: &ChildRecord) -> Option<ObjectKey> {
    if !is_orphan(child) {
        return child.cluster_key();
    }
    let id = child.id();
    let name = postgres::cluster_name(&id)?;
    Some(ObjectKey::new(&child.key.namespace, name))
}

/// A dependent, as the library keeps it.
pub struct Dependent<C>(C);

impl<C: StoredChild> Record<Store> for Dependent<C> {
    fn key(&self) -> &ObjectKey {
        &self.0.child().key
    }

    fn bucket(&self) -> Option<Bucket> {
        self.0.child().bucket
    }

    fn resource_version(&self) -> &str {
        &self.0.child().resource_version
    }

    fn owner_key(&self) -> Option<ObjectKey> {
        cluster_of(self.0.child())
    }

    fn is_outdated(&self, store: &Store) -> bool {
        let arrived = self.0.child();
        let outdated = C::known(store, &arrived.key, |known| {
            let (known, arrived) = (child_version(known), child_version(arrived));
            Some(is_outdated(store.shards(), known, arrived))
        });
        outdated.unwrap_or(false)
    }

    fn upsert(self, store: &Store) {
        self.0.put(store);
    }

    fn bucket_known(store: &Store, key: &ObjectKey) -> Option<Bucket> {
        C::known(store, key, |known| known.bucket)
    }

    fn remove(
        store: &Store,
        key: &ObjectKey,
        uid: Option<&str>,
        bucket: Bucket,
    ) -> Option<ObjectKey> {
        let (known_uid, cluster) = C::known(store, key, |known| {
            let is_there = known.bucket == Some(bucket);
            is_there.then(|| (known.uid.clone(), cluster_of(known)))
        })?;
        let uid = uid.unwrap_or(&known_uid);
        C::take(store, key, uid).then_some(cluster)?
    }

    fn keys(store: &Store, ours: &dyn Fn(Bucket) -> bool) -> Vec<ObjectKey> {
        C::keys(store, ours)
    }
}

/// A kind of child of which only metadata is watched. Secrets are not among them: they are not
/// watched.
pub(crate) trait MetadataChild:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Debug + Send + Sync + 'static
{
    /// Its kind.
    const KIND: ChildKind;
    /// Its plural.
    const PLURAL: &'static str;
}

impl MetadataChild for Service {
    const KIND: ChildKind = ChildKind::Service;
    const PLURAL: &'static str = "services";
}

impl MetadataChild for ConfigMap {
    const KIND: ChildKind = ChildKind::ConfigMap;
    const PLURAL: &'static str = "configmaps";
}

impl MetadataChild for PodDisruptionBudget {
    const KIND: ChildKind = ChildKind::PodDisruptionBudget;
    const PLURAL: &'static str = "poddisruptionbudgets";
}

/// The metadata of children of the kind `K`.
pub struct PartialMetadata<K>(PhantomData<fn() -> K>);

impl<K: MetadataChild> WatchedKind<Store> for PartialMetadata<K> {
    const PLURAL: &'static str = K::PLURAL;
    const METADATA_ONLY: bool = true;
    type Record = Dependent<MetadataRecord<K>>;

    fn path(namespace: Option<&str>) -> String {
        K::url_path(&(), namespace)
    }

    fn bucket_of(_: &Head<'_>) -> Option<Bucket> {
        None
    }

    fn read(object: &str, _: &Store) -> serde_json::Result<Option<Dependent<MetadataRecord<K>>>> {
        #[derive(Deserialize)]
        struct WireObject {
            metadata: WireMeta<Ours>,
        }
        let arrived: WireObject = serde_json::from_str(object)?;
        let record = observe::child(K::KIND, &arrived.metadata.into());
        Ok(record.map(|record| {
            Dependent(MetadataRecord {
                record,
                kind: PhantomData,
            })
        }))
    }
}

/// What is kept of a child of the kind `K`.
pub struct MetadataRecord<K> {
    record: ChildRecord,
    kind: PhantomData<fn() -> K>,
}

impl<K: MetadataChild> StoredChild for MetadataRecord<K> {
    fn child(&self) -> &ChildRecord {
        &self.record
    }

    fn known<T>(
        store: &Store,
        key: &ObjectKey,
        read: impl FnOnce(&ChildRecord) -> Option<T>,
    ) -> Option<T> {
        let id = ChildId {
            kind: K::KIND,
            name: Arc::clone(&key.name),
        };
        read(&*store.child(&key.namespace, &id)?)
    }

    fn put(self, store: &Store) {
        store.upsert_child(self.record);
    }

    fn take(store: &Store, key: &ObjectKey, uid: &str) -> bool {
        store.remove_child(K::KIND, key, uid)
    }

    fn keys(store: &Store, ours: &dyn Fn(Bucket) -> bool) -> Vec<ObjectKey> {
        store.child_keys(K::KIND, ours)
    }
}
