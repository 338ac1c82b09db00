//! What a replica sees: a list and watch for each shard that it holds or warms, into the store.
//!
//! Where the API server filters by shard, each shard has a watch of DatabaseClusters of its own;
//! elsewhere one watch serves all shards, and this process filters. Children are selected by their
//! bucket label, which every API server can do. The filter in [`Source`] runs in all cases:
//! correctness never depends on the server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use dashmap::DashMap;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, PartialObjectMeta};
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use kube::{Client, Resource};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::metadata::{MetadataChild, OfKind};
use super::observe;
use super::selector::{shard_selector, with_selector};
use super::source::{Filter, OneShard, Source, endless};
use super::store::Store;
use super::trouble::Troubles;
use crate::api::DatabaseCluster;
use crate::core::hash::{Bucket, ShardCount, ShardId};
use crate::core::object::ObjectKey;
use crate::core::ownership::Event;
use crate::fleet::agent::AgentHandle;
use crate::telemetry::metrics::Metrics;

const CLUSTERS: &str = "databaseclusters";
const STATEFULSETS: &str = "statefulsets";

/// A DatabaseCluster, or why it can not be read: one bad object must not stop the watch of all.
type Guarded = DeserializeGuard<DatabaseCluster>;

fn readable(object: &Guarded) -> Option<&DatabaseCluster> {
    match &object.0 {
        Ok(cluster) => Some(cluster),
        Err(invalid) => {
            let name = invalid.metadata.name.as_deref().unwrap_or_default();
            let namespace = invalid.metadata.namespace.as_deref().unwrap_or_default();
            tracing::warn!(namespace, name, error = %invalid.error, "a DatabaseCluster can not be read; it is left as it is");
            None
        }
    }
}

/// Shards that come within this time share one new list, where one watch serves all.
const GATHER: Duration = Duration::from_millis(20);

/// Called when an object of a shard changed.
pub type Changed = Box<dyn Fn(ShardId, &ObjectKey) + Send + Sync>;

/// What every source needs.
pub struct FeedParts {
    /// Client for lists and watches.
    pub client: Client,
    /// Namespaces to serve; empty: all.
    pub namespaces: Vec<String>,
    /// Number of shards.
    pub count: ShardCount,
    /// Where the records are kept.
    pub store: Arc<Store>,
    /// What is wrong, for the log and /readyz.
    pub troubles: Arc<Troubles>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Whom to tell of changes.
    pub on_change: Changed,
    /// The ownership machine.
    pub agent: AgentHandle,
    /// Epoch of each shard that is worked on. Locked for a look-up only.
    pub epochs: DashMap<ShardId, u32>,
}

impl FeedParts {
    pub(super) fn changed(&self, shard: ShardId, key: &ObjectKey) {
        (self.on_change)(shard, key);
    }

    /// Tells the ownership machine of a stamp above the epoch under which we work.
    pub(super) async fn stamp_seen(&self, shard: ShardId, epoch: u32) {
        let ours = self.epochs.get(&shard).map(|ours| *ours);
        if ours.is_some_and(|ours| epoch > ours) {
            tracing::warn!(%shard, epoch, "a higher stamp was met: raising the epoch above it");
            self.agent.send(Event::StampMet(shard, epoch)).await;
        }
    }

    fn apis<K>(&self, client: &Client) -> Vec<Api<K>>
    where
        K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        if self.namespaces.is_empty() {
            return vec![Api::all(client.clone())];
        }
        let of = |namespace: &String| Api::namespaced(client.clone(), namespace);
        self.namespaces.iter().map(of).collect()
    }
}

/// How DatabaseClusters are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchMode {
    /// The API server sends each shard by itself.
    Sharded,
    /// The API server sends everything; this process filters.
    Filtered,
}

impl WatchMode {
    /// The label value.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Sharded => "sharded",
            Self::Filtered => "filtered",
        }
    }
}

/// The watches of a replica.
pub struct Feeds {
    parts: Arc<FeedParts>,
    mode: WatchMode,
    running: BTreeMap<ShardId, CancellationToken>,
    whole: Arc<Whole>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Feeds {
    /// No watch runs yet.
    #[must_use]
    pub fn new(parts: Arc<FeedParts>, mode: WatchMode) -> Self {
        for other in [WatchMode::Sharded, WatchMode::Filtered] {
            let gauge = parts.metrics.watch_mode.with_label_values(&[other.label()]);
            gauge.set(i64::from(other == mode));
        }
        let feeds = Self {
            whole: Arc::new(Whole::new(parts.count)),
            parts,
            mode,
            running: BTreeMap::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        if mode == WatchMode::Filtered {
            let (parts, whole) = (Arc::clone(&feeds.parts), Arc::clone(&feeds.whole));
            feeds
                .tasks
                .spawn(watch_whole(parts, whole, feeds.stop.clone()));
        }
        feeds
    }

    /// Begins to watch a shard; the ownership machine is told when everything is listed.
    pub fn watch(&mut self, shard: ShardId) {
        let stop = self.stop.child_token();
        if let Some(former) = self.running.insert(shard, stop.clone()) {
            former.cancel();
        }
        let mut listed = Vec::new();
        let count = self.parts.count;
        let filter = || OneShard { count, shard };
        match self.mode {
            WatchMode::Sharded => {
                let selector = shard_selector(count, shard);
                let client = with_selector(&self.parts.client, CLUSTERS, &selector);
                for api in self.parts.apis::<Guarded>(&client) {
                    listed.push(self.watch_clusters(api, filter(), &stop));
                }
            }
            WatchMode::Filtered => listed.push(self.whole.add(shard)),
        }
        let labels = bucket_selector(count, shard);
        for api in self.parts.apis::<StatefulSet>(&self.parts.client) {
            let source = Source::new(
                STATEFULSETS,
                Arc::clone(&self.parts),
                filter(),
                stop.clone(),
            );
            let done = CancellationToken::new();
            let config = list_config().labels(&labels);
            let stream = endless(watcher(api, config));
            let convert = |object: &StatefulSet, store: &Store| {
                let previous =
                    observe::key(&object.metadata).and_then(|key| store.statefulset(&key));
                observe::statefulset(object, previous.as_deref())
            };
            self.tasks
                .spawn(source.follow(stream, convert, done.clone()));
            listed.push(done);
        }
        self.watch_metadata::<Service>(shard, &stop, &mut listed);
        self.watch_metadata::<ConfigMap>(shard, &stop, &mut listed);
        self.watch_metadata::<PodDisruptionBudget>(shard, &stop, &mut listed);
        self.announce_when_listed(shard, listed, stop);
    }

    fn watch_clusters(
        &self,
        api: Api<Guarded>,
        filter: OneShard,
        stop: &CancellationToken,
    ) -> CancellationToken {
        let source = Source::new(CLUSTERS, Arc::clone(&self.parts), filter, stop.clone());
        let done = CancellationToken::new();
        let stream = endless(watcher(api, list_config()));
        let convert = |object: &Guarded, _: &Store| readable(object).and_then(observe::cluster);
        self.tasks
            .spawn(source.follow(stream, convert, done.clone()));
        done
    }

    /// Watches the metadata of one kind of child; adds what is cancelled when it is listed.
    fn watch_metadata<K: MetadataChild>(
        &self,
        shard: ShardId,
        stop: &CancellationToken,
        listed: &mut Vec<CancellationToken>,
    ) {
        let count = self.parts.count;
        for api in self.parts.apis::<PartialObjectMeta<K>>(&self.parts.client) {
            let filter = OneShard { count, shard };
            let source = Source::new(K::PLURAL, Arc::clone(&self.parts), filter, stop.clone());
            let done = CancellationToken::new();
            let config = list_config().labels(&bucket_selector(count, shard));
            let stream = endless(watcher(api, config));
            let convert = |object: &PartialObjectMeta<K>, _: &Store| {
                observe::child(K::KIND, &object.metadata).map(OfKind::<K>::new)
            };
            self.tasks
                .spawn(source.follow(stream, convert, done.clone()));
            listed.push(done);
        }
    }

    fn announce_when_listed(
        &self,
        shard: ShardId,
        listed: Vec<CancellationToken>,
        stop: CancellationToken,
    ) {
        let parts = Arc::clone(&self.parts);
        self.tasks.spawn(async move {
            for source in listed {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = source.cancelled() => {}
                }
            }
            let highest = parts.store.highest_epoch(shard);
            parts.agent.send(Event::Warm(shard, highest)).await;
        });
    }

    /// Stops watching a shard and forgets its objects.
    pub fn unwatch(&mut self, shard: ShardId) {
        if let Some(stop) = self.running.remove(&shard) {
            stop.cancel();
        }
        self.whole.remove(shard);
        self.parts.epochs.remove(&shard);
        self.parts.store.purge_shard(shard);
    }

    /// Work on the shard begins under this epoch.
    pub fn admitted(&self, shard: ShardId, epoch: u32) {
        self.parts.epochs.insert(shard, epoch);
    }

    /// What a search for stamps needs.
    #[must_use]
    pub fn for_stamps(&self) -> (Client, Vec<String>, ShardCount) {
        (
            self.parts.client.clone(),
            self.parts.namespaces.clone(),
            self.parts.count,
        )
    }
}

impl Drop for Feeds {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn list_config() -> watcher::Config {
    watcher::Config::default().streaming_lists()
}

/// `database.io/bucket in (0,1,…)`: the buckets of one shard.
fn bucket_selector(count: ShardCount, shard: ShardId) -> String {
    let (first, last) = count.buckets(shard);
    let buckets: Vec<String> = (first.0..=last.0)
        .map(|bucket| bucket.to_string())
        .collect();
    format!("database.io/bucket in ({})", buckets.join(","))
}

/// The shards that share the one watch of everything.
struct Whole {
    count: ShardCount,
    /// Locked for a look-up or an insertion only.
    shards: RwLock<Wanted>,
    grown: Notify,
}

#[derive(Default)]
struct Wanted {
    shards: BTreeSet<ShardId>,
    /// Shards whose first list has not begun: each with what to cancel when it is complete.
    waiting: Vec<(ShardId, CancellationToken)>,
}

impl Whole {
    fn new(count: ShardCount) -> Self {
        Self {
            count,
            shards: RwLock::default(),
            grown: Notify::new(),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Wanted) -> T) -> T {
        // A panic elsewhere leaves nothing half-written here.
        change(
            &mut self
                .shards
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }

    fn add(&self, shard: ShardId) -> CancellationToken {
        let listed = CancellationToken::new();
        self.with(|wanted| {
            wanted.shards.insert(shard);
            wanted.waiting.push((shard, listed.clone()));
        });
        self.grown.notify_one();
        listed
    }

    /// What a former watch left in the store.
    fn kept(&self, store: &Store) -> Vec<ObjectKey> {
        let shards = self.with(|wanted| wanted.shards.clone());
        shards
            .into_iter()
            .flat_map(|shard| store.keys(shard))
            .collect()
    }

    fn remove(&self, shard: ShardId) {
        self.with(|wanted| {
            wanted.shards.remove(&shard);
            wanted.waiting.retain(|(waiting, _)| *waiting != shard);
        });
    }
}

impl Filter for Arc<Whole> {
    fn shard_of(&self, bucket: Bucket) -> Option<ShardId> {
        let shard = self.count.shard_of(bucket);
        let wanted = self
            .shards
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        wanted.shards.contains(&shard).then_some(shard)
    }
}

/// The one watch of everything: begins anew whenever shards were added, because their objects were
/// not kept before.
async fn watch_whole(parts: Arc<FeedParts>, whole: Arc<Whole>, stop: CancellationToken) {
    let mut round = stop.child_token();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = whole.grown.notified() => {}
        }
        tokio::time::sleep(GATHER).await;
        round.cancel();
        round = stop.child_token();
        let mut all_listed = Vec::new();
        let kept = whole.kept(&parts.store);
        for api in parts.apis::<Guarded>(&parts.client) {
            let of_api = |key: &&ObjectKey| api.namespace().is_none_or(|ns| ns == &*key.namespace);
            let source = Source::new(
                CLUSTERS,
                Arc::clone(&parts),
                Arc::clone(&whole),
                round.clone(),
            )
            .knowing(kept.iter().filter(of_api).cloned());
            let done = CancellationToken::new();
            let stream = endless(watcher(api, list_config()));
            let convert = |object: &Guarded, _: &Store| readable(object).and_then(observe::cluster);
            tokio::spawn(source.follow(stream, convert, done.clone()));
            all_listed.push(done);
        }
        let waiting = whole.with(|wanted| wanted.waiting.clone());
        let (whole, round) = (Arc::clone(&whole), round.clone());
        tokio::spawn(async move {
            for listed in all_listed {
                tokio::select! {
                    () = round.cancelled() => return,
                    () = listed.cancelled() => {}
                }
            }
            for (_, listed) in &waiting {
                listed.cancel();
            }
            whole.with(|wanted| wanted.waiting.retain(|(_, listed)| !listed.is_cancelled()));
        });
    }
}
