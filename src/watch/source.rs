//! One list and watch of one kind, kept true in the store: what comes in, changes and goes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use kube::runtime::utils::ResetTimerBackoff;
use kube::runtime::{WatchStreamExt, watcher};
use tokio_util::sync::CancellationToken;

use super::feed::FeedParts;
use super::store::{Store, child_epoch, cluster_epoch};
use super::trouble::explain_watch;
use crate::core::hash::{Bucket, ShardCount, ShardId};
use crate::core::object::ObjectKey;
use crate::core::observed::{ClusterRecord, StatefulSetRecord};

/// Shortest and longest pause after a failed watch. Short, so that an API server that comes back is
/// noticed within a lease; with jitter, so that the watches of a replica do not return in step.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
const PAUSE_RESET: Duration = Duration::from_secs(60);

/// What the store keeps of one kind.
pub trait Kept: Sized + Send {
    /// Namespace and name of the object itself.
    fn key(&self) -> &ObjectKey;
    /// Its uid.
    fn uid(&self) -> &str;
    /// The bucket in which its cluster lies.
    fn bucket(&self) -> Option<Bucket>;
    /// The cluster to look at when it changes.
    fn cluster_key(&self) -> Option<ObjectKey>;
    /// The highest epoch stamped on it.
    fn epoch(&self) -> Option<u32>;
    /// Keeps it.
    fn upsert(self, store: &Store);
    /// Removes what lies under this key, if its uid matches (or whatever its uid, if `None`);
    /// gives the cluster to look at.
    fn remove(store: &Store, key: &ObjectKey, uid: Option<&str>) -> Option<ObjectKey>;
}

impl Kept for ClusterRecord {
    fn key(&self) -> &ObjectKey {
        &self.key
    }

    fn uid(&self) -> &str {
        &self.uid
    }

    fn bucket(&self) -> Option<Bucket> {
        Some(self.bucket)
    }

    fn cluster_key(&self) -> Option<ObjectKey> {
        Some(self.key.clone())
    }

    fn epoch(&self) -> Option<u32> {
        cluster_epoch(self)
    }

    fn upsert(self, store: &Store) {
        store.upsert_cluster(self);
    }

    fn remove(store: &Store, key: &ObjectKey, uid: Option<&str>) -> Option<ObjectKey> {
        let known = store.cluster(key)?;
        let uid = uid.unwrap_or(&known.uid);
        store.remove_cluster(key, uid).then(|| key.clone())
    }
}

impl Kept for StatefulSetRecord {
    fn key(&self) -> &ObjectKey {
        &self.child.key
    }

    fn uid(&self) -> &str {
        &self.child.uid
    }

    fn bucket(&self) -> Option<Bucket> {
        self.child.bucket
    }

    fn cluster_key(&self) -> Option<ObjectKey> {
        self.child.cluster_key()
    }

    fn epoch(&self) -> Option<u32> {
        child_epoch(&self.child)
    }

    fn upsert(self, store: &Store) {
        store.upsert_statefulset(self);
    }

    fn remove(store: &Store, key: &ObjectKey, uid: Option<&str>) -> Option<ObjectKey> {
        let known = store.statefulset(key)?;
        let uid = uid.unwrap_or(&known.child.uid);
        let cluster = known.child.cluster_key();
        store.remove_statefulset(key, uid).then_some(cluster)?
    }
}

/// Which objects a source keeps.
pub trait Filter: Send + Sync + 'static {
    /// The shard of the object, if this replica holds or warms it.
    fn shard_of(&self, bucket: Bucket) -> Option<ShardId>;
}

/// Keeps one shard.
pub struct OneShard {
    /// Number of shards.
    pub count: ShardCount,
    /// The shard.
    pub shard: ShardId,
}

impl Filter for OneShard {
    fn shard_of(&self, bucket: Bucket) -> Option<ShardId> {
        (self.count.shard_of(bucket) == self.shard).then_some(self.shard)
    }
}

/// A watch that never gives up: its errors are paused after, with jitter.
pub fn endless<K>(
    stream: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + 'static,
) -> BoxStream<'static, Result<watcher::Event<K>, watcher::Error>>
where
    K: Send + 'static,
{
    let pauses = backon::ExponentialBuilder::default()
        .with_min_delay(PAUSE_MIN)
        .with_max_delay(PAUSE_MAX)
        .with_factor(2.0)
        .without_max_times()
        .with_jitter();
    let backoff = ResetTimerBackoff::new(watcher::ExponentialBackoff::from(pauses), PAUSE_RESET);
    stream.backoff(backoff).boxed()
}

/// One list and watch of one kind.
pub struct Source<F> {
    /// The kind, for logs, health and metrics: `databaseclusters`.
    pub what: &'static str,
    /// Where to keep it, and whom to tell.
    pub parts: Arc<FeedParts>,
    /// What to keep.
    pub filter: F,
    /// Ends the source. Cancelled before the store is purged, so that nothing is kept after that.
    stop: CancellationToken,
    /// Keys that this source put into the store.
    known: HashSet<ObjectKey>,
    /// Keys of a list that is coming in.
    listing: Option<HashSet<ObjectKey>>,
}

impl<F: Filter> Source<F> {
    /// A source that has seen nothing and runs until `stop`.
    pub fn new(
        what: &'static str,
        parts: Arc<FeedParts>,
        filter: F,
        stop: CancellationToken,
    ) -> Self {
        Self {
            what,
            parts,
            filter,
            stop,
            known: HashSet::new(),
            listing: None,
        }
    }

    /// Takes over what a former source put into the store, so that it goes if it is not listed.
    #[must_use]
    pub fn knowing(mut self, keys: impl IntoIterator<Item = ObjectKey>) -> Self {
        self.known.extend(keys);
        self
    }

    /// Follows the stream until the end; cancels `listed` when the first list is complete.
    pub async fn follow<K, R: Kept>(
        mut self,
        mut stream: BoxStream<'static, Result<watcher::Event<K>, watcher::Error>>,
        convert: impl Fn(&K, &Store) -> Option<R>,
        listed: CancellationToken,
    ) {
        loop {
            let next = tokio::select! {
                () = self.stop.cancelled() => return,
                next = stream.next() => next,
            };
            match next {
                Some(Ok(event)) => {
                    let done = matches!(event, watcher::Event::InitDone);
                    self.take_in(event, &convert).await;
                    self.parts.troubles.clear(self.what);
                    if done {
                        listed.cancel();
                    }
                }
                Some(Err(error)) => {
                    if let Some(line) = explain_watch(self.what, &error) {
                        self.parts.troubles.report(self.what, line);
                    }
                }
                None => return,
            }
        }
    }

    async fn take_in<K, R: Kept>(
        &mut self,
        event: watcher::Event<K>,
        convert: &impl Fn(&K, &Store) -> Option<R>,
    ) {
        match event {
            watcher::Event::Init => self.listing = Some(HashSet::new()),
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                self.received();
                if let Some(record) = convert(&object, &self.parts.store) {
                    self.keep(record).await;
                }
            }
            watcher::Event::Delete(object) => {
                self.received();
                if let Some(record) = convert(&object, &self.parts.store) {
                    self.known.remove(record.key());
                    let shard = record
                        .bucket()
                        .and_then(|bucket| self.filter.shard_of(bucket));
                    let gone = R::remove(&self.parts.store, record.key(), Some(record.uid()));
                    if let (Some(cluster), Some(shard)) = (gone, shard) {
                        self.parts.changed(shard, &cluster);
                    }
                }
            }
            watcher::Event::InitDone => self.forget_unlisted::<R>(),
        }
    }

    fn received(&self) {
        self.parts
            .metrics
            .objects_received_total
            .with_label_values(&[self.what])
            .inc();
    }

    async fn keep<R: Kept>(&mut self, record: R) {
        let Some(shard) = record
            .bucket()
            .and_then(|bucket| self.filter.shard_of(bucket))
        else {
            return;
        };
        self.parts
            .metrics
            .objects_kept_total
            .with_label_values(&[self.what])
            .inc();
        if let Some(listing) = &mut self.listing {
            listing.insert(record.key().clone());
        }
        self.known.insert(record.key().clone());
        let (cluster, epoch) = (record.cluster_key(), record.epoch());
        let key = record.key().clone();
        record.upsert(&self.parts.store);
        if self.stop.is_cancelled() {
            R::remove(&self.parts.store, &key, None);
            return;
        }
        if let Some(epoch) = epoch {
            self.parts.stamp_seen(shard, epoch).await;
        }
        if let Some(cluster) = cluster {
            self.parts.changed(shard, &cluster);
        }
    }

    /// What we kept and the new list does not name went while we were not looking.
    fn forget_unlisted<R: Kept>(&mut self) {
        let Some(listed) = self.listing.take() else {
            return;
        };
        for key in self.known.difference(&listed) {
            let bucket = self.parts.store.cluster(key).map(|cluster| cluster.bucket);
            if let Some(cluster) = R::remove(&self.parts.store, key, None) {
                let of_cluster = || self.parts.store.cluster(&cluster).map(|c| c.bucket);
                if let Some(shard) = bucket
                    .or_else(of_cluster)
                    .and_then(|bucket| self.filter.shard_of(bucket))
                {
                    self.parts.changed(shard, &cluster);
                }
            }
        }
        self.known = listed;
    }
}
