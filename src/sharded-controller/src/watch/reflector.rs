//! The reflector of a replica: a list and watch for each shard that it holds or warms, into the
//! store.
//!
//! Where the API server filters by shard, each shard has a watch of its own for the sharded kind;
//! elsewhere one watch serves all shards, and this process filters. Which it is may change at any
//! time ([`super::mode`]). Children are selected by their bucket label, which every API server can
//! do. The filter in `Source` runs in all cases: correctness never depends on the server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api_errors::ApiErrors;
use super::first_reconcile::FirstReconcileTimer;
use super::kinds::{ShardCache, WatchDependents, WatchedKind};
use super::lists::{ListTurn, Lists};
use super::mode::{FilterDoubts, monitor_mode};
use super::request::ListWatchRequest;
use super::selector::{shard_selector, with_selector};
use super::source::{ShardFilter, Source, SourceConfig};
use crate::clock::Clock;
use crate::fleet::agent::AgentHandle;
use crate::metrics::Metrics;
use crate::names::Names;
use crate::object::ObjectKey;
use crate::watch::watch_mode::{ModeChooser, WatchMode};
use shard_ownership::hash::{ShardCount, ShardId};
use shard_ownership::ownership::Event;

/// Shards that are added within this time share one new list, if one watch serves all.
const GATHER: Duration = Duration::from_millis(20);

/// Called when an object of a shard changed.
pub type Changed = Box<dyn Fn(ShardId, &ObjectKey) + Send + Sync>;

/// What every source needs.
pub struct ReflectorParts<C> {
    /// Names of the operator.
    pub names: Names,
    /// Client for lists and watches.
    pub client: Client,
    /// Namespaces to watch; empty: all.
    pub namespaces: Vec<String>,
    /// Number of shards.
    pub count: ShardCount,
    /// Where the records are kept.
    pub store: Arc<C>,
    /// The clock of the replica.
    pub clock: Clock,
    /// What is wrong, for the log and /readyz.
    pub api_errors: Arc<ApiErrors>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Called on changes.
    pub on_change: Changed,
    /// The ownership state machine.
    pub agent: AgentHandle,
    /// Schedules the start of lists.
    pub lists: Lists,
    /// What speaks against the present way of watching.
    pub doubts: FilterDoubts,
    /// When shards were taken.
    pub first_reconciles: Arc<FirstReconcileTimer>,
}

impl<C: ShardCache> ReflectorParts<C> {
    /// Reports an owner that has to be reconciled, in its own shard, if that is known: what changed in
    /// the given one may have been a child of a former owner of its name.
    pub(super) fn changed(&self, shard: ShardId, key: &ObjectKey) {
        let mut last = None;
        loop {
            let home = self.store.shard_of(key).unwrap_or(shard);
            // A successor that came meanwhile was reported too, and must not be taken from its shard.
            if last.replace(home) == Some(home) {
                return;
            }
            (self.on_change)(home, key);
        }
    }

    /// The scopes to list: all namespaces at once, or each of the watched ones.
    fn scopes(&self) -> Vec<Option<String>> {
        match self.namespaces.is_empty() {
            true => vec![None],
            false => self.namespaces.iter().cloned().map(Some).collect(),
        }
    }
}

/// The watches of a replica. Dropping it ends them.
pub struct ShardReflector<C: ShardCache> {
    inner: Arc<Inner<C>>,
}

/// What the watches share with the task that keeps the watch mode up to date.
pub(super) struct Inner<C> {
    pub(super) parts: Arc<ReflectorParts<C>>,
    pub(super) stop: CancellationToken,
    /// Locked to start and stop watches, never across an await.
    state: Mutex<State>,
    /// A shard was added that the single watch of everything does not include yet.
    grown: Notify,
    tasks: TaskTracker,
    /// Runs the tasks; shards are added and removed from another thread.
    runtime: Handle,
}

struct State {
    mode: WatchMode,
    shards: BTreeMap<ShardId, ShardWatches>,
    /// Ends the one watch of everything; cancelled when there is none.
    whole: CancellationToken,
}

/// The watches of one shard.
#[derive(Clone)]
struct ShardWatches {
    /// Ends all of them.
    stop: CancellationToken,
    /// Ends that of the sharded kind.
    clusters: CancellationToken,
    /// Cancelled when the sharded kind has been listed once.
    listed: CancellationToken,
}

impl<C: ShardCache> ShardReflector<C> {
    /// No shard is watched yet; the watches will run on the current runtime. With `may_shard`, the mode follows what the API server can do.
    #[must_use]
    pub fn new(parts: Arc<ReflectorParts<C>>, mode: WatchMode, may_shard: bool) -> Self {
        let whole = CancellationToken::new();
        whole.cancel();
        let inner = Arc::new(Inner {
            parts,
            stop: CancellationToken::new(),
            state: Mutex::new(State {
                mode: WatchMode::Sharded,
                shards: BTreeMap::new(),
                whole,
            }),
            grown: Notify::new(),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
        });
        inner.publish(mode);
        if mode == WatchMode::Filtered {
            inner.with(|state| {
                state.mode = mode;
                inner.begin_whole(state);
            });
        }
        if may_shard {
            let chooser = ModeChooser::new(inner.parts.clock.now_ms(), mode);
            inner.spawn(monitor_mode(Arc::clone(&inner), chooser));
        }
        Self { inner }
    }

    /// The current watch mode.
    #[must_use]
    pub fn mode(&self) -> WatchMode {
        self.inner.with(|state| state.mode)
    }

    /// Starts watching a shard; the ownership state machine is notified when everything is listed.
    pub fn watch(&self, shard: ShardId) {
        let inner = &self.inner;
        inner.parts.first_reconciles.asked(shard);
        let stop = inner.stop.child_token();
        let watched = ShardWatches {
            clusters: stop.child_token(),
            listed: CancellationToken::new(),
            stop: stop.clone(),
        };
        let mut listed = vec![watched.listed.clone()];
        inner.with(|state| {
            if let Some(former) = state.shards.insert(shard, watched.clone()) {
                former.stop.cancel();
            }
            match state.mode {
                WatchMode::Sharded => inner.watch_clusters(shard, &watched, ListTurn::First),
                WatchMode::Filtered => inner.grown.notify_one(),
            }
        });
        C::dependents(&mut Dependents {
            inner,
            shard,
            stop: &stop,
            listed: &mut listed,
        });
        let parts = Arc::clone(&inner.parts);
        inner.when_all(listed, stop, async move {
            if let Some(took) = parts.first_reconciles.listed(shard) {
                let histogram = &parts.metrics.watch.shard_list_seconds;
                histogram.observe(took.as_secs_f64());
            }
            parts.agent.send(Event::Warm(shard)).await;
        });
    }

    /// Stops watching a shard and forgets its objects.
    pub fn unwatch(&self, shard: ShardId) {
        let former = self.inner.with(|state| state.shards.remove(&shard));
        if let Some(former) = former {
            former.stop.cancel();
        }
        self.inner.parts.first_reconciles.forget(shard);
        let store = &self.inner.parts.store;
        store.tickets().close(shard);
        store.purge_shard(shard);
    }

    /// Records that work on the shard starts.
    pub fn admitted(&self, shard: ShardId) {
        self.inner.parts.first_reconciles.admitted(shard);
    }
}

impl<C: ShardCache> Drop for ShardReflector<C> {
    fn drop(&mut self) {
        self.inner.stop.cancel();
    }
}

/// Begins the watches of dependents of one shard.
struct Dependents<'a, C> {
    inner: &'a Arc<Inner<C>>,
    shard: ShardId,
    stop: &'a CancellationToken,
    listed: &'a mut Vec<CancellationToken>,
}

impl<C: ShardCache> WatchDependents<C> for Dependents<'_, C> {
    fn watch<K: WatchedKind<C>>(&mut self) {
        self.inner
            .watch_children::<K>(self.shard, self.stop, self.listed);
    }
}

impl<C: ShardCache> Inner<C> {
    fn with<T>(&self, read: impl FnOnce(&mut State) -> T) -> T {
        read(&mut self.state.lock())
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, &self.runtime);
    }

    fn publish(&self, mode: WatchMode) {
        let gauges = &self.parts.metrics.watch.watch_mode;
        for other in WatchMode::ALL {
            let gauge = gauges.with_label_values(&[other.label()]);
            gauge.set(i64::from(other == mode));
        }
    }

    /// Watches the sharded kind in another way from now on. What is in the store stays, and the new
    /// lists put it right.
    pub(super) fn set_mode(self: &Arc<Self>, mode: WatchMode) {
        self.with(|state| {
            if state.mode == mode {
                return;
            }
            tracing::info!(mode = mode.label(), "watch mode changed");
            self.parts.metrics.watch.watch_mode_changes_total.inc();
            self.publish(mode);
            state.mode = mode;
            state.whole.cancel();
            for (shard, watched) in &mut state.shards {
                watched.clusters.cancel();
                watched.clusters = watched.stop.child_token();
                if mode == WatchMode::Sharded {
                    self.watch_clusters(*shard, watched, ListTurn::Again);
                }
            }
            if mode == WatchMode::Filtered {
                self.begin_whole(state);
            }
        });
    }

    fn list_watch_request<K: WatchedKind<C>>(
        &self,
        client: Client,
        scope: Option<&str>,
        labels: Option<String>,
    ) -> ListWatchRequest {
        ListWatchRequest {
            client,
            path: K::path(scope),
            labels,
            metadata_only: K::METADATA_ONLY,
        }
    }

    /// One watch of the owners of one shard, which the API server selects.
    fn watch_clusters(self: &Arc<Self>, shard: ShardId, watched: &ShardWatches, turn: ListTurn) {
        let parts = &self.parts;
        let selector = shard_selector(parts.count, shard);
        let client = with_selector(&parts.client, C::Owner::PLURAL, &selector);
        let ticket = parts.store.tickets().open(shard, C::Owner::WATCH);
        let filter = ShardFilter::new(parts.count, BTreeMap::from([(shard, ticket)]));
        let mut listed = Vec::new();
        for namespace in parts.scopes() {
            let config = SourceConfig {
                request: self.list_watch_request::<C::Owner>(
                    client.clone(),
                    namespace.as_deref(),
                    C::Owner::labels(),
                ),
                namespace,
                selected: true,
                filter: filter.clone(),
                turn,
            };
            listed.push(self.begin::<C::Owner>(config, watched.clusters.clone()));
        }
        let all = watched.listed.clone();
        self.when_all(
            listed,
            watched.clusters.clone(),
            async move { all.cancel() },
        );
    }

    /// Watches one kind of child of one shard; adds what is cancelled when it is listed.
    fn watch_children<K: WatchedKind<C>>(
        self: &Arc<Self>,
        shard: ShardId,
        stop: &CancellationToken,
        listed: &mut Vec<CancellationToken>,
    ) {
        let parts = &self.parts;
        let ticket = parts.store.tickets().open(shard, K::WATCH);
        let filter = ShardFilter::new(parts.count, BTreeMap::from([(shard, ticket)]));
        for namespace in parts.scopes() {
            let labels = Some(bucket_selector(&parts.names, parts.count, shard));
            let config = SourceConfig {
                request: self.list_watch_request::<K>(
                    parts.client.clone(),
                    namespace.as_deref(),
                    labels,
                ),
                namespace,
                selected: false,
                filter: filter.clone(),
                turn: ListTurn::First,
            };
            listed.push(self.begin::<K>(config, stop.clone()));
        }
    }

    fn begin<K: WatchedKind<C>>(
        &self,
        config: SourceConfig,
        stop: CancellationToken,
    ) -> CancellationToken {
        let listed = CancellationToken::new();
        let source = Source::<C, K>::new(Arc::clone(&self.parts), config, listed.clone());
        self.spawn(source.run(stop));
        listed
    }

    fn when_all(
        &self,
        all: Vec<CancellationToken>,
        stop: CancellationToken,
        then: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn(async move {
            for one in all {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = one.cancelled() => {}
                }
            }
            then.await;
        });
    }

    fn begin_whole(self: &Arc<Self>, state: &mut State) {
        state.whole = self.stop.child_token();
        self.grown.notify_one();
        let whole = watch_whole(Arc::clone(self), state.whole.clone());
        self.spawn(whole);
    }

    /// New tickets for all shards, and what to notify when they are listed.
    fn whole_round(&self) -> (ShardFilter, Vec<CancellationToken>) {
        let (parts, mut open) = (&self.parts, BTreeMap::new());
        let waiting = self.with(|state| {
            for shard in state.shards.keys() {
                open.insert(*shard, parts.store.tickets().open(*shard, C::Owner::WATCH));
            }
            state.shards.values().map(|w| w.listed.clone()).collect()
        });
        (ShardFilter::new(parts.count, open), waiting)
    }
}

/// The one watch of everything: begins again whenever shards were added, because their objects were
/// not kept before; but not before a list that is coming in is complete.
async fn watch_whole<C: ShardCache>(inner: Arc<Inner<C>>, stop: CancellationToken) {
    let mut round = stop.child_token();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = inner.grown.notified() => {}
        }
        tokio::time::sleep(GATHER).await;
        round.cancel();
        round = stop.child_token();
        let (filter, waiting) = inner.whole_round();
        let mut listed = Vec::new();
        for namespace in inner.parts.scopes() {
            let client = inner.parts.client.clone();
            let config = SourceConfig {
                request: inner.list_watch_request::<C::Owner>(
                    client,
                    namespace.as_deref(),
                    C::Owner::labels(),
                ),
                namespace,
                selected: false,
                filter: filter.clone(),
                turn: ListTurn::First,
            };
            listed.push(inner.begin::<C::Owner>(config, round.clone()));
        }
        for one in listed {
            tokio::select! {
                () = stop.cancelled() => return,
                () = one.cancelled() => {}
            }
        }
        for listed in waiting {
            listed.cancel();
        }
    }
}

/// `<domain>/bucket in (0,1,…)`: the buckets of one shard.
fn bucket_selector(names: &Names, count: ShardCount, shard: ShardId) -> String {
    let (first, last) = count.buckets(shard);
    let buckets: Vec<String> = (first.0..=last.0)
        .map(|bucket| bucket.to_string())
        .collect();
    format!("{} in ({})", names.bucket_label(), buckets.join(","))
}
