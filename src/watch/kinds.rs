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
use super::wire::{Head, WireMeta};
use crate::api::{DatabaseCluster, DatabaseClusterSpec, DatabaseClusterStatus};
use crate::core::child::{ChildId, ChildKind};
use crate::core::hash::Bucket;
use crate::core::object::ObjectKey;
use crate::core::observed::{ChildRecord, ClusterRecord, StatefulSetRecord};
use crate::core::plan::is_orphan;
use crate::postgres;

/// A watched kind.
pub trait Kind: Send + Sync + 'static {
    /// Its plural, for logs, health and metrics.
    const PLURAL: &'static str;
    /// Whether only metadata is requested.
    const METADATA_ONLY: bool;
    /// The stored part of an object.
    type Record: Record;

    /// The path of its collection: of one namespace, or of all.
    fn path(namespace: Option<&str>) -> String;

    /// The bucket, if the head of an object shows it: then an object that is not ours is not
    /// decoded further.
    fn bucket_of(head: &Head<'_>) -> Option<Bucket>;

    /// Decodes an object; `None` if it lacks what every stored object has.
    ///
    /// # Errors
    /// When the text is not an object of this kind.
    fn read(object: &RawValue, store: &Store) -> serde_json::Result<Option<Self::Record>>;
}

/// The stored part of an object of one kind.
pub trait Record: Sized + Send {
    /// Namespace and name of the object itself.
    fn key(&self) -> &ObjectKey;
    /// The bucket in which its cluster lies.
    fn bucket(&self) -> Option<Bucket>;
    /// The cluster to reconcile when it changes.
    fn cluster_key(&self) -> Option<ObjectKey>;
    /// Whether the store contains something newer under its name, from the watch of another shard.
    fn is_outdated(&self, store: &Store) -> bool;
    /// Stores it.
    fn upsert(self, store: &Store);
    /// The bucket of the stored object with this key.
    fn bucket_known(store: &Store, key: &ObjectKey) -> Option<Bucket>;
    /// Removes the object with this key, if it has this bucket and this uid (any uid if `None`);
    /// returns the cluster to reconcile.
    fn remove(
        store: &Store,
        key: &ObjectKey,
        uid: Option<&str>,
        bucket: Bucket,
    ) -> Option<ObjectKey>;
    /// Names of all stored objects in buckets that are `ours`.
    fn keys(store: &Store, ours: &dyn Fn(Bucket) -> bool) -> Vec<ObjectKey>;
}

/// A name can be reused by another object, which may lie in another shard: then two watches report
/// it, in no guaranteed order. The greater resource version is the newer object.
fn is_outdated(
    store: &Store,
    known: (Option<Bucket>, &str),
    arrived: (Option<Bucket>, &str),
) -> bool {
    let shard = |bucket: Option<Bucket>| bucket.map(|bucket| store.shards().shard_of(bucket));
    let versions = (known.1.parse::<u64>(), arrived.1.parse::<u64>());
    shard(known.0) != shard(arrived.0)
        && matches!(versions, (Ok(known), Ok(arrived)) if known > arrived)
}

/// DatabaseClusters.
pub struct Clusters;

impl Kind for Clusters {
    const PLURAL: &'static str = "databaseclusters";
    const METADATA_ONLY: bool = false;
    type Record = ClusterRecord;

    fn path(namespace: Option<&str>) -> String {
        DatabaseCluster::url_path(&(), namespace)
    }

    fn bucket_of(head: &Head<'_>) -> Option<Bucket> {
        Some(Bucket::of(&head.uid))
    }

    fn read(object: &RawValue, _: &Store) -> serde_json::Result<Option<ClusterRecord>> {
        #[derive(Deserialize)]
        struct WireObject {
            metadata: WireMeta,
            spec: DatabaseClusterSpec,
            status: Option<DatabaseClusterStatus>,
        }
        let arrived: WireObject = serde_json::from_str(object.get())?;
        Ok(observe::cluster(&DatabaseCluster {
            metadata: arrived.metadata.into(),
            spec: arrived.spec,
            status: arrived.status,
        }))
    }
}

impl Record for ClusterRecord {
    fn key(&self) -> &ObjectKey {
        &self.key
    }

    fn bucket(&self) -> Option<Bucket> {
        Some(self.bucket)
    }

    fn cluster_key(&self) -> Option<ObjectKey> {
        Some(self.key.clone())
    }

    fn is_outdated(&self, store: &Store) -> bool {
        store.cluster(&self.key).is_some_and(|known| {
            let known = (Some(known.bucket), known.resource_version.as_str());
            is_outdated(store, known, (Some(self.bucket), &self.resource_version))
        })
    }

    fn upsert(self, store: &Store) {
        store.upsert_cluster(self);
    }

    fn bucket_known(store: &Store, key: &ObjectKey) -> Option<Bucket> {
        store.cluster(key).map(|known| known.bucket)
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

impl Kind for StatefulSets {
    const PLURAL: &'static str = "statefulsets";
    const METADATA_ONLY: bool = false;
    type Record = StatefulSetRecord;

    fn path(namespace: Option<&str>) -> String {
        StatefulSet::url_path(&(), namespace)
    }

    fn bucket_of(_: &Head<'_>) -> Option<Bucket> {
        None
    }

    fn read(object: &RawValue, store: &Store) -> serde_json::Result<Option<StatefulSetRecord>> {
        #[derive(Deserialize)]
        struct WireObject<'a> {
            metadata: WireMeta,
            #[serde(borrow)]
            spec: Option<&'a RawValue>,
            status: Option<StatefulSetStatus>,
        }
        let arrived: WireObject<'_> = serde_json::from_str(object.get())?;
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
        Ok(observe::statefulset(&object, known))
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

/// The stored part of a kind of child: everything follows from its metadata except where it is
/// stored.
pub trait StoredChild: Sized + Send {
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

impl<C: StoredChild> Record for C {
    fn key(&self) -> &ObjectKey {
        &self.child().key
    }

    fn bucket(&self) -> Option<Bucket> {
        self.child().bucket
    }

    fn cluster_key(&self) -> Option<ObjectKey> {
        cluster_of(self.child())
    }

    fn is_outdated(&self, store: &Store) -> bool {
        let arrived = self.child();
        let arrived_as = (arrived.bucket, arrived.resource_version.as_str());
        let outdated = C::known(store, &arrived.key, |known| {
            let known = (known.bucket, known.resource_version.as_str());
            Some(is_outdated(store, known, arrived_as))
        });
        outdated.unwrap_or(false)
    }

    fn upsert(self, store: &Store) {
        self.put(store);
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
        <C as StoredChild>::keys(store, ours)
    }
}

/// A kind of child of which only metadata is watched. Secrets are not among them: they are not
/// watched.
pub trait MetadataChild:
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

impl<K: MetadataChild> Kind for PartialMetadata<K> {
    const PLURAL: &'static str = K::PLURAL;
    const METADATA_ONLY: bool = true;
    type Record = MetadataRecord<K>;

    fn path(namespace: Option<&str>) -> String {
        K::url_path(&(), namespace)
    }

    fn bucket_of(_: &Head<'_>) -> Option<Bucket> {
        None
    }

    fn read(object: &RawValue, _: &Store) -> serde_json::Result<Option<MetadataRecord<K>>> {
        #[derive(Deserialize)]
        struct WireObject {
            metadata: WireMeta,
        }
        let arrived: WireObject = serde_json::from_str(object.get())?;
        let record = observe::child(K::KIND, &arrived.metadata.into());
        Ok(record.map(|record| MetadataRecord {
            record,
            kind: PhantomData,
        }))
    }
}

/// The stored part of a child of the kind `K`.
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
