//! What a controller watches and keeps: the kinds, their records, and the cache of a replica.

use kube::Resource;
use kube::core::TypeMeta;
use shard_ownership::hash::{Bucket, ShardCount, ShardId};
use shard_ownership::resource_version::is_older;

use super::tickets::Tickets;
use super::wire::Head;
use crate::object::ObjectKey;

/// The records of all objects in the shards of a replica.
///
/// What a watch brings goes in while its ticket is in force ([`Tickets`]): once a shard is closed, no
/// watch that was too late to notice puts anything into it. A removal names the uid, so that a late
/// one cannot remove a successor of the same name.
pub trait ShardCache: Send + Sync + Sized + 'static {
    /// The sharded kind: each of its objects lies in the shard of its uid.
    type Owner: WatchedKind<Self>;

    /// `apiVersion` and kind of the sharded kind.
    fn owner_type() -> TypeMeta;

    /// Adds the other kinds that are watched, which carry the label `<domain>/bucket`.
    fn dependents(watches: &mut impl WatchDependents<Self>);

    /// The number of shards.
    fn shards(&self) -> ShardCount;

    /// The tickets in force.
    fn tickets(&self) -> &Tickets;

    /// The shard of the owner of this name, if it is known.
    fn shard_of(&self, owner: &ObjectKey) -> Option<ShardId>;

    /// Names of all owners in a shard.
    fn keys(&self, shard: ShardId) -> Vec<ObjectKey>;

    /// Number of owners in every shard: shard `n` is at place `n`.
    fn counts(&self) -> Vec<usize>;

    /// Drops everything that lies in a shard.
    fn purge_shard(&self, shard: ShardId);
}

/// Takes the kinds of dependents; see [`ShardCache::dependents`].
pub trait WatchDependents<C: ShardCache> {
    /// Watches this kind too.
    fn watch<K: WatchedKind<C>>(&mut self);
}

/// A kind that is watched: where it is found, how it is read, what is kept of it.
pub trait WatchedKind<C>: Send + Sync + 'static {
    /// Its plural, for logs, health and metrics.
    const PLURAL: &'static str;
    /// Name of the watch among those of one cache.
    const WATCH: &'static str = Self::PLURAL;
    /// Whether only metadata is asked for.
    const METADATA_ONLY: bool;
    /// What is kept of it.
    type Record: Record<C>;

    /// The path of its collection: of one namespace, or of all.
    fn path(namespace: Option<&str>) -> String;

    /// A label selector that every object of the kind has to match; for an owner's kind.
    #[must_use]
    fn labels() -> Option<String> {
        None
    }

    /// The bucket, where the head of an object is enough to know it: what lies in no shard of this
    /// replica is then read no further.
    fn bucket_of(head: &Head<'_>) -> Option<Bucket>;

    /// Reads an object; `None` when it lacks what every stored object has.
    ///
    /// # Errors
    /// When the text is no object of this kind.
    fn read(object: &str, cache: &C) -> serde_json::Result<Option<Self::Record>>;
}

/// `apiVersion` and kind of a kind that is known at compile time.
#[must_use]
pub fn type_meta<K: Resource<DynamicType = ()>>() -> TypeMeta {
    TypeMeta {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
    }
}

/// What a cache keeps of one object.
pub trait Record<C>: Sized + Send {
    /// Namespace and name of the object itself.
    fn key(&self) -> &ObjectKey;
    /// The bucket in which its owner lies.
    fn bucket(&self) -> Option<Bucket>;
    /// `metadata.resourceVersion`.
    fn resource_version(&self) -> &str;
    /// The owner to reconcile when it changes.
    fn owner_key(&self) -> Option<ObjectKey>;
    /// Whether the cache has something newer under its name, from the watch of another shard.
    fn is_outdated(&self, cache: &C) -> bool;
    /// Keeps it.
    fn upsert(self, cache: &C);
    /// The bucket of what lies under this key.
    fn bucket_known(cache: &C, key: &ObjectKey) -> Option<Bucket>;
    /// Removes what lies under this key, if it has this bucket and this uid (whatever its uid, if
    /// `None`); returns the owner to reconcile.
    fn remove(cache: &C, key: &ObjectKey, uid: Option<&str>, bucket: Bucket) -> Option<ObjectKey>;
    /// Names of all that lies in buckets that are `ours`.
    fn keys(cache: &C, ours: &dyn Fn(Bucket) -> bool) -> Vec<ObjectKey>;
}

/// One version of the object under some name.
#[derive(Clone, Copy, Debug)]
pub struct ObservedVersion<'a> {
    /// The bucket in which its owner lies.
    pub bucket: Option<Bucket>,
    /// `metadata.resourceVersion`.
    pub resource_version: &'a str,
}

/// A name can be given to another object, which may lie in another shard: then two watches report
/// it, in an order that nobody promises. The greater resource version is the newer object.
#[must_use]
pub fn is_outdated(
    shards: ShardCount,
    known: ObservedVersion<'_>,
    arrived: ObservedVersion<'_>,
) -> bool {
    let shard = |bucket: Option<Bucket>| bucket.map(|bucket| shards.shard_of(bucket));
    shard(known.bucket) != shard(arrived.bucket)
        && is_older(arrived.resource_version, known.resource_version)
}
