//! A cache that keeps whole objects: for controllers with one kind of dependents and no need to save
//! memory. Others implement [`ShardCache`] with records of what they need.

use std::marker::PhantomData;
use std::sync::Arc;

use dashmap::DashMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::{NamespaceResourceScope, TypeMeta};
use serde::de::DeserializeOwned;
use shard_ownership::hash::{Bucket, ShardCount, ShardId};

use super::kinds::{
    ObservedVersion, Record, ShardCache, WatchDependents, WatchedKind, is_outdated, type_meta,
};
use super::tickets::Tickets;
use super::wire::Head;
use crate::names::Names;
use crate::object::ObjectKey;

/// A namespaced kind that is known at compile time.
pub trait Object:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()>
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Object for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// The kinds of one controller.
pub trait Objects: Send + Sync + 'static {
    /// The sharded kind.
    type Owner: Object;
    /// The kind that the controller writes. Each object has the label `<domain>/bucket` and its owner
    /// as controller.
    type Dependent: Object;
    /// Plural of the sharded kind.
    const OWNER_PLURAL: &'static str;
    /// A label selector for owners; empty: all objects of the kind.
    const OWNER_LABELS: &'static str;
    /// Plural of the kind that is written.
    const DEPENDENT_PLURAL: &'static str;
}

/// The owners and dependents in the shards of a replica. Bounded by their number. The lock of a map is
/// held for one look-up, insertion or removal, or entry by entry during a scan.
pub struct ObjectCache<K: Objects> {
    names: Names,
    shards: ShardCount,
    tickets: Tickets,
    owners: DashMap<ObjectKey, Stored<K::Owner>>,
    dependents: DashMap<ObjectKey, Stored<K::Dependent>>,
}

/// One object with the bucket in which its owner lies.
pub struct Stored<T> {
    bucket: Option<Bucket>,
    object: Arc<T>,
}

impl<T: Object> Stored<T> {
    fn version(&self) -> ObservedVersion<'_> {
        let version = self.object.meta().resource_version.as_deref();
        ObservedVersion {
            bucket: self.bucket,
            resource_version: version.unwrap_or_default(),
        }
    }

    fn uid(&self) -> &str {
        self.object.meta().uid.as_deref().unwrap_or_default()
    }
}

impl<K: Objects> ObjectCache<K> {
    /// An empty cache for this number of shards.
    #[must_use]
    pub fn new(names: Names, shards: ShardCount) -> Self {
        Self {
            names,
            shards,
            tickets: Tickets::default(),
            owners: DashMap::new(),
            dependents: DashMap::new(),
        }
    }

    /// The owner of this name.
    #[must_use]
    pub fn owner(&self, key: &ObjectKey) -> Option<Arc<K::Owner>> {
        let stored = self.owners.get(key)?;
        Some(Arc::clone(&stored.object))
    }

    /// The dependent of this name.
    #[must_use]
    pub fn dependent(&self, key: &ObjectKey) -> Option<Arc<K::Dependent>> {
        let stored = self.dependents.get(key)?;
        Some(Arc::clone(&stored.object))
    }
}

impl<K: Objects> ShardCache for ObjectCache<K> {
    type Owner = Owners<K>;

    fn owner_type() -> TypeMeta {
        type_meta::<K::Owner>()
    }

    fn dependents(watches: &mut impl WatchDependents<Self>) {
        watches.watch::<Dependents<K>>();
    }

    fn shards(&self) -> ShardCount {
        self.shards
    }

    fn tickets(&self) -> &Tickets {
        &self.tickets
    }

    fn shard_of(&self, owner: &ObjectKey) -> Option<ShardId> {
        let bucket = self.owners.get(owner)?.bucket?;
        Some(self.shards.shard_of(bucket))
    }

    fn keys(&self, shard: ShardId) -> Vec<ObjectKey> {
        keys(&self.owners, &|bucket| {
            self.shards.shard_of(bucket) == shard
        })
    }

    fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; usize::from(self.shards.get())];
        for bucket in self.owners.iter().filter_map(|stored| stored.bucket) {
            let shard = usize::from(self.shards.shard_of(bucket).0);
            if let Some(count) = counts.get_mut(shard) {
                *count += 1;
            }
        }
        counts
    }

    fn purge_shard(&self, shard: ShardId) {
        let stays = |bucket: Option<Bucket>| {
            bucket.is_none_or(|bucket| self.shards.shard_of(bucket) != shard)
        };
        self.owners.retain(|_, stored| stays(stored.bucket));
        self.dependents.retain(|_, stored| stays(stored.bucket));
    }
}

/// Where the objects of one watch lie in the cache.
pub trait Place<K: Objects>: Send + Sync + 'static {
    /// The kind of the objects.
    type Kind: Object;
    /// The map that has them.
    fn map(cache: &ObjectCache<K>) -> &DashMap<ObjectKey, Stored<Self::Kind>>;
    /// The owner to reconcile when an object changes.
    fn owner_key(key: &ObjectKey, meta: &ObjectMeta) -> Option<ObjectKey>;
}

/// The watch of owners.
pub struct Owners<K>(PhantomData<fn() -> K>);

/// The watch of dependents.
pub struct Dependents<K>(PhantomData<fn() -> K>);

impl<K: Objects> Place<K> for Owners<K> {
    type Kind = K::Owner;

    fn map(cache: &ObjectCache<K>) -> &DashMap<ObjectKey, Stored<K::Owner>> {
        &cache.owners
    }

    fn owner_key(key: &ObjectKey, _: &ObjectMeta) -> Option<ObjectKey> {
        Some(key.clone())
    }
}

impl<K: Objects> Place<K> for Dependents<K> {
    type Kind = K::Dependent;

    fn map(cache: &ObjectCache<K>) -> &DashMap<ObjectKey, Stored<K::Dependent>> {
        &cache.dependents
    }

    fn owner_key(key: &ObjectKey, meta: &ObjectMeta) -> Option<ObjectKey> {
        let owners = meta.owner_references.as_deref().unwrap_or_default();
        let owner = type_meta::<K::Owner>();
        let controller = owners.iter().find(|owner| owner.controller == Some(true))?;
        (controller.kind == owner.kind && controller.api_version == owner.api_version)
            .then(|| ObjectKey::new(&key.namespace, &controller.name))
    }
}

/// What arrived of one object.
pub struct WireObject<P, T> {
    key: ObjectKey,
    stored: Stored<T>,
    place: PhantomData<fn() -> P>,
}

fn arrived<P, T: Object>(
    object: &str,
    bucket: impl FnOnce(&ObjectMeta) -> Option<Bucket>,
) -> serde_json::Result<Option<WireObject<P, T>>> {
    let mut object: T = serde_json::from_str(object)?;
    object.meta_mut().managed_fields = None;
    let meta = object.meta();
    let (Some(namespace), Some(name), Some(_)) = (&meta.namespace, &meta.name, &meta.uid) else {
        return Ok(None);
    };
    let key = ObjectKey::new(namespace, name);
    let stored = Stored {
        bucket: bucket(meta),
        object: Arc::new(object),
    };
    Ok(Some(WireObject {
        key,
        stored,
        place: PhantomData,
    }))
}

impl<K: Objects> WatchedKind<ObjectCache<K>> for Owners<K> {
    const PLURAL: &'static str = K::OWNER_PLURAL;
    const WATCH: &'static str = "owners";
    const METADATA_ONLY: bool = false;
    type Record = WireObject<Self, K::Owner>;

    fn path(namespace: Option<&str>) -> String {
        K::Owner::url_path(&(), namespace)
    }

    fn labels() -> Option<String> {
        (!K::OWNER_LABELS.is_empty()).then(|| K::OWNER_LABELS.to_owned())
    }

    fn bucket_of(head: &Head<'_>) -> Option<Bucket> {
        Some(Bucket::of(&head.uid))
    }

    fn read(
        object: &str,
        _: &ObjectCache<K>,
    ) -> serde_json::Result<Option<WireObject<Self, K::Owner>>> {
        arrived(object, |meta| meta.uid.as_deref().map(Bucket::of))
    }
}

impl<K: Objects> WatchedKind<ObjectCache<K>> for Dependents<K> {
    const PLURAL: &'static str = K::DEPENDENT_PLURAL;
    const WATCH: &'static str = "dependents";
    const METADATA_ONLY: bool = false;
    type Record = WireObject<Self, K::Dependent>;

    fn path(namespace: Option<&str>) -> String {
        K::Dependent::url_path(&(), namespace)
    }

    fn bucket_of(_: &Head<'_>) -> Option<Bucket> {
        None
    }

    fn read(
        object: &str,
        cache: &ObjectCache<K>,
    ) -> serde_json::Result<Option<WireObject<Self, K::Dependent>>> {
        arrived(object, |meta| {
            let label = meta.labels.as_ref()?.get(&cache.names.bucket_label())?;
            label.parse().ok().map(Bucket)
        })
    }
}

impl<K: Objects, P: Place<K>> Record<ObjectCache<K>> for WireObject<P, P::Kind> {
    fn key(&self) -> &ObjectKey {
        &self.key
    }

    fn bucket(&self) -> Option<Bucket> {
        self.stored.bucket
    }

    fn resource_version(&self) -> &str {
        self.stored.version().resource_version
    }

    fn owner_key(&self) -> Option<ObjectKey> {
        P::owner_key(&self.key, self.stored.object.meta())
    }

    fn is_outdated(&self, cache: &ObjectCache<K>) -> bool {
        P::map(cache)
            .get(&self.key)
            .is_some_and(|known| is_outdated(cache.shards, known.version(), self.stored.version()))
    }

    fn upsert(self, cache: &ObjectCache<K>) {
        P::map(cache).insert(self.key, self.stored);
    }

    fn bucket_known(cache: &ObjectCache<K>, key: &ObjectKey) -> Option<Bucket> {
        P::map(cache).get(key)?.bucket
    }

    fn remove(
        cache: &ObjectCache<K>,
        key: &ObjectKey,
        uid: Option<&str>,
        bucket: Bucket,
    ) -> Option<ObjectKey> {
        let is_it = |_: &ObjectKey, stored: &Stored<P::Kind>| {
            stored.bucket == Some(bucket) && uid.is_none_or(|uid| uid == stored.uid())
        };
        let (key, stored) = P::map(cache).remove_if(key, is_it)?;
        P::owner_key(&key, stored.object.meta())
    }

    fn keys(cache: &ObjectCache<K>, ours: &dyn Fn(Bucket) -> bool) -> Vec<ObjectKey> {
        keys(P::map(cache), ours)
    }
}

/// Names of all objects of a map that lie in buckets that are `ours`.
fn keys<T>(map: &DashMap<ObjectKey, Stored<T>>, ours: &dyn Fn(Bucket) -> bool) -> Vec<ObjectKey> {
    let found = map.iter().filter(|stored| stored.bucket.is_some_and(ours));
    found.map(|stored| stored.key().clone()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;
    use crate::names::testing::NAMES;

    struct Example;

    impl Objects for Example {
        type Owner = ConfigMap;
        type Dependent = ConfigMap;
        const OWNER_PLURAL: &'static str = "configmaps";
        const OWNER_LABELS: &'static str = "example.io/derive=true";
        const DEPENDENT_PLURAL: &'static str = "configmaps";
    }

    fn cache() -> ObjectCache<Example> {
        ObjectCache::new(NAMES, ShardCount::new(4).unwrap())
    }

    fn put<W: WatchedKind<ObjectCache<Example>>>(
        cache: &ObjectCache<Example>,
        object: &serde_json::Value,
    ) -> Option<ObjectKey> {
        let record = W::read(&object.to_string(), cache).unwrap()?;
        let owner = record.owner_key();
        record.upsert(cache);
        owner
    }

    fn owner(uid: &str) -> serde_json::Value {
        json!({"metadata": {"name": "a", "namespace": "n", "uid": uid, "resourceVersion": "1"}})
    }

    #[test]
    fn dependent_names_its_owner_and_lies_in_the_bucket_of_its_label() {
        let (cache, key) = (cache(), ObjectKey::new("n", "a-copy"));
        let owned_by = |kind: &str| {
            json!({"metadata": {
                "name": "a-copy", "namespace": "n", "uid": "d", "resourceVersion": "1",
                "labels": {"example.io/bucket": "7"},
                "ownerReferences": [{"apiVersion": "v1", "kind": kind, "name": "a", "uid": "u",
                    "controller": true}],
            }})
        };
        let named = put::<Dependents<Example>>(&cache, &owned_by("ConfigMap"));
        assert_eq!(named, Some(ObjectKey::new("n", "a")));
        assert!(cache.dependent(&key).is_some() && cache.owner(&key).is_none());
        cache.purge_shard(cache.shards().shard_of(Bucket(7)));
        assert!(cache.dependent(&key).is_none());
        assert_eq!(
            put::<Dependents<Example>>(&cache, &owned_by("Secret")),
            None
        );
    }

    #[test]
    fn late_removal_does_not_remove_the_successor_of_the_same_name() {
        let (cache, key) = (cache(), ObjectKey::new("n", "a"));
        put::<Owners<Example>>(&cache, &owner("old"));
        put::<Owners<Example>>(&cache, &owner("new"));
        assert_eq!(cache.counts().iter().sum::<usize>(), 1);
        let remove = |uid| {
            let bucket = Bucket::of("new");
            <WireObject<Owners<Example>, ConfigMap> as Record<_>>::remove(
                &cache,
                &key,
                Some(uid),
                bucket,
            )
        };
        assert_eq!(remove("old"), None);
        assert!(cache.owner(&key).is_some());
        assert_eq!(remove("new"), Some(key.clone()));
        assert!(cache.owner(&key).is_none());
    }

    #[test]
    fn objects_without_a_uid_are_passed_over() {
        let cache = cache();
        let nameless = json!({"metadata": {"name": "a", "namespace": "n"}});
        assert_eq!(put::<Owners<Example>>(&cache, &nameless), None);
        assert!(cache.keys(ShardId(0)).is_empty());
    }
}
