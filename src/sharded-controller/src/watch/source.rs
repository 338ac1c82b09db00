//! One list and watch of one kind, which keeps the store up to date.

use std::collections::{BTreeMap, HashSet};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use backon::BackoffBuilder as _;
use kube::core::Status;
use prometheus::IntCounter;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::kinds::{Record, ShardCache, WatchedKind};
use super::lists::ListTurn;
use super::reflector::ReflectorParts;
use super::request::{Lines, ListWatchRequest, WatchError};
use super::tickets::Ticket;
use super::wire::{Bookmark, Head, Line, Page};
use crate::metrics::WatchMetrics;
use crate::object::ObjectKey;
use shard_ownership::hash::{Bucket, ShardCount, ShardId};

/// Shortest and longest pause after a failed watch. Short, so that an API server that comes back is
/// noticed within a lease; with jitter, so that the watches of a replica do not return in step.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Longest accepted pause that an API server requests.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// A watch that lasted this long counts as successfully started.
const LASTED: Duration = Duration::from_secs(60);
/// After this many refusals of a version, everything is listed again.
const REFUSALS_MAX: u32 = 3;

/// The shards whose objects a source may store, with their tickets.
#[derive(Clone, Debug)]
pub(crate) struct ShardFilter {
    count: ShardCount,
    open: BTreeMap<ShardId, Ticket>,
}

impl ShardFilter {
    /// These shards.
    #[must_use]
    pub(crate) const fn new(count: ShardCount, open: BTreeMap<ShardId, Ticket>) -> Self {
        Self { count, open }
    }

    /// The shard of a bucket, if it is one of these.
    #[must_use]
    pub(crate) fn of(&self, bucket: Bucket) -> Option<(ShardId, Ticket)> {
        let shard = self.count.shard_of(bucket);
        self.open.get(&shard).map(|ticket| (shard, *ticket))
    }
}

/// What a source asks for, and where it may put it.
pub(crate) struct SourceConfig {
    /// What to ask for.
    pub request: ListWatchRequest,
    /// The namespace, unless it is all.
    pub namespace: Option<String>,
    /// Whether the API server was asked to send our shards only.
    pub selected: bool,
    /// What to keep.
    pub filter: ShardFilter,
    /// Whether this was listed before, by another source.
    pub turn: ListTurn,
}

/// One list and watch of the kind `K`.
pub(crate) struct Source<C, K> {
    parts: Arc<ReflectorParts<C>>,
    config: SourceConfig,
    /// Cancelled when everything has been listed once.
    listed: CancellationToken,
    /// Keys of a list in progress.
    listing: Option<HashSet<ObjectKey>>,
    /// Version to continue from; none: everything has to be listed.
    version: Option<String>,
    refusals: u32,
    /// Whether the head of an object may show that it lies in none of our shards.
    reads_heads: bool,
    counters: Counters,
    kind: PhantomData<fn() -> K>,
}

/// The series of one kind, looked up once.
struct Counters {
    received: IntCounter,
    kept: IntCounter,
    bytes: IntCounter,
}

impl Counters {
    fn of(kind: &str, metrics: &WatchMetrics) -> Self {
        Self {
            received: metrics.objects_received_total.with_label_values(&[kind]),
            kept: metrics.objects_kept_total.with_label_values(&[kind]),
            bytes: metrics.received_bytes_total.with_label_values(&[kind]),
        }
    }
}

impl<C: ShardCache, K: WatchedKind<C>> Source<C, K> {
    /// A source that has seen nothing; `listed` is cancelled when its first list is complete.
    #[must_use]
    pub(crate) fn new(
        parts: Arc<ReflectorParts<C>>,
        config: SourceConfig,
        listed: CancellationToken,
    ) -> Self {
        Self {
            counters: Counters::of(K::PLURAL, &parts.metrics.watch),
            // The head of a dependent does not say where it lies: the first one shows that.
            reads_heads: !config.selected,
            parts,
            config,
            listed,
            listing: None,
            version: None,
            refusals: 0,
            kind: PhantomData,
        }
    }

    /// Lists and watches repeatedly, until `stop`. Objects that it still processes then are kept
    /// out of the store by its tickets.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.sessions() => {}
        }
    }

    async fn sessions(&mut self) {
        let builder = backon::ExponentialBuilder::default()
            .with_min_delay(PAUSE_MIN)
            .with_max_delay(PAUSE_MAX)
            .with_factor(2.0)
            .without_max_times()
            .with_jitter();
        let mut pauses = builder.build();
        loop {
            let begun = Instant::now();
            let Err(error) = self.session().await;
            if begun.elapsed() >= LASTED {
                pauses = builder.build();
            }
            let is_regular = matches!(error, WatchError::Closed) && begun.elapsed() >= PAUSE_MIN;
            let asked_for = error.retry_after().min(RETRY_AFTER_MAX);
            if !is_regular {
                self.parts.metrics.client.watch_retried(error.code());
            }
            self.handle_error(error);
            if !is_regular {
                let pause = pauses.next().unwrap_or(PAUSE_MAX);
                tokio::time::sleep(pause.max(asked_for)).await;
            }
        }
    }

    /// Draws the conclusions from the end of a watch.
    fn handle_error(&mut self, error: WatchError) {
        self.listing = None;
        if error.is_refusal() {
            self.refusals += 1;
        }
        if matches!(error, WatchError::Expired) || self.refusals >= REFUSALS_MAX {
            self.version = None;
            self.refusals = 0;
        }
        let line = match &error {
            // Both are part of a watch's normal life.
            WatchError::Closed | WatchError::Expired => return,
            WatchError::Refused(error) => self.parts.api_errors.explain(K::PLURAL, error),
            other => format!("{other} ({})", K::PLURAL),
        };
        tracing::debug!(what = K::PLURAL, %error, "a watch failed; retrying");
        self.parts.api_errors.report(K::PLURAL, line);
        self.parts.doubts.failed();
    }

    async fn session(&mut self) -> Result<std::convert::Infallible, WatchError> {
        let parts = Arc::clone(&self.parts);
        let mut turn = None;
        let mut lines = match self.version.clone() {
            Some(version) => self.config.request.watch_from(&version).await?,
            None => {
                turn = parts.lists.turn(self.config.turn).await;
                self.list().await?
            }
        };
        if self.version.is_some() {
            drop(turn.take());
        }
        parts.api_errors.clear(K::PLURAL);
        loop {
            let line = lines.next().await?;
            self.count_bytes(line.len());
            let (what, object) = Line::split(line)?;
            match &*what {
                "ADDED" | "MODIFIED" => self.observe(object).await?,
                "DELETED" => self.observe_deleted(object)?,
                "BOOKMARK" => {
                    if self.bookmark(object)? {
                        lines.is_listed();
                        drop(turn.take());
                    }
                }
                "ERROR" => {
                    let status = serde_json::from_str::<Status>(object)?;
                    return Err(WatchError::by_status(status));
                }
                other => tracing::debug!(other, "ignoring an unknown kind of event"),
            }
        }
    }

    /// Begins to list everything: in a stream, or page by page where the API server does not stream.
    async fn list(&mut self) -> Result<Lines, WatchError> {
        let turn = self.config.turn.label();
        self.config.turn = ListTurn::Again;
        let lists = &self.parts.metrics.watch.lists_total;
        lists.with_label_values(&[K::PLURAL, turn]).inc();
        self.listing = Some(HashSet::new());
        match self.config.request.stream_list().await {
            Err(error) if error.is_refusal() => self.list_pages().await,
            streamed => streamed,
        }
    }

    async fn list_pages(&mut self) -> Result<Lines, WatchError> {
        let mut next = String::new();
        loop {
            let text = self.config.request.page(&next).await?;
            self.count_bytes(text.len());
            let page: Page<'_> = serde_json::from_str(&text)?;
            for object in &page.items {
                self.observe(object.get()).await?;
            }
            if page.metadata.next.is_empty() {
                let version = page.metadata.resource_version.into_owned();
                self.complete(version.clone());
                return self.config.request.watch_from(&version).await;
            }
            next = page.metadata.next.into_owned();
        }
    }

    fn count_bytes(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.counters.bytes.inc_by(bytes);
    }

    /// Records the version up to which everything was observed; not during a list, which has to be
    /// complete.
    fn advance(&mut self, version: &str) {
        if let Some(known) = &mut self.version
            && !version.is_empty()
        {
            version.clone_into(known);
        }
    }

    async fn observe(&mut self, object: &str) -> Result<(), WatchError> {
        self.counters.received.inc();
        // Only where the API server sends what lies in other shards too, it is worth to read an object's head
        // before the object.
        if self.reads_heads {
            let head = Head::read(object)?;
            match K::bucket_of(&head).map(|bucket| self.config.filter.of(bucket)) {
                None => self.reads_heads = false,
                Some(None) => {
                    self.advance(&head.resource_version);
                    return Ok(());
                }
                Some(Some(_)) => {}
            }
        }
        match K::read(object, &self.parts.store) {
            Ok(Some(record)) => {
                self.advance(record.resource_version());
                self.keep(record).await;
            }
            Ok(None) => self.advance(&Head::read(object)?.resource_version),
            Err(error) => {
                let head = Head::read(object)?;
                self.pass_over(&head, &error);
                self.advance(&head.resource_version);
            }
        }
        Ok(())
    }

    /// Deals with an object that cannot be decoded.
    fn pass_over(&self, head: &Head<'_>, error: &serde_json::Error) {
        let bucket = K::bucket_of(head);
        if bucket.is_none_or(|bucket| self.config.filter.of(bucket).is_some()) {
            let key = head.key();
            tracing::warn!(what = K::PLURAL, %key, %error, "an object cannot be decoded: it is left as it is, and not reconciled");
            self.remove(&key, Some(&head.uid));
        } else if self.config.selected {
            self.parts.doubts.received_unfiltered();
        }
    }

    fn observe_deleted(&mut self, object: &str) -> Result<(), WatchError> {
        let head = Head::read(object)?;
        self.counters.received.inc();
        let bucket = K::bucket_of(&head);
        if bucket.is_none_or(|bucket| self.config.filter.of(bucket).is_some()) {
            self.remove(&head.key(), Some(&head.uid));
        }
        self.advance(&head.resource_version);
        Ok(())
    }

    /// Whether the list is complete by it.
    fn bookmark(&mut self, object: &str) -> Result<bool, WatchError> {
        let bookmark = Bookmark::read(object)?;
        if bookmark.ends_list {
            self.complete(bookmark.resource_version);
        } else {
            self.advance(&bookmark.resource_version);
        }
        Ok(bookmark.ends_list)
    }

    fn complete(&mut self, version: String) {
        self.remove_unlisted();
        self.version = Some(version);
        self.refusals = 0;
        self.listed.cancel();
    }

    async fn keep(&mut self, record: K::Record) {
        let filter = &self.config.filter;
        let place = record.bucket().and_then(|bucket| filter.of(bucket));
        let Some((shard, ticket)) = place else {
            if self.config.selected {
                self.parts.doubts.received_unfiltered();
            }
            return;
        };
        if let Some(listing) = &mut self.listing {
            listing.insert(record.key().clone());
        }
        let cluster = record.owner_key();
        let store = &self.parts.store;
        let kept = store.tickets().with(shard, ticket, || {
            if !record.is_outdated(store) {
                record.upsert(store);
            }
        });
        if kept.is_none() {
            return;
        }
        self.counters.kept.inc();
        if let Some(cluster) = cluster {
            self.parts.changed(shard, &cluster);
        }
    }

    /// Removes it if it lies in one of our shards: there may be a successor of the same name, which
    /// another watch reported.
    fn remove(&self, key: &ObjectKey, uid: Option<&str>) {
        let store = &self.parts.store;
        let bucket = K::Record::bucket_known(store, key);
        let place = bucket.and_then(|bucket| Some((bucket, self.config.filter.of(bucket)?)));
        let Some((bucket, (shard, ticket))) = place else {
            return;
        };
        let removed = store
            .tickets()
            .with(shard, ticket, || K::Record::remove(store, key, uid, bucket));
        if let Some(cluster) = removed.flatten() {
            self.parts.changed(shard, &cluster);
        }
    }

    /// What is in the store and not in the new list went while we were not looking.
    fn remove_unlisted(&mut self) {
        let Some(listed) = self.listing.take() else {
            return;
        };
        let filter = &self.config.filter;
        let ours = |bucket: Bucket| filter.of(bucket).is_some();
        let namespace = self.config.namespace.as_deref();
        for key in K::Record::keys(&self.parts.store, &ours) {
            let in_scope = namespace.is_none_or(|namespace| *key.namespace == *namespace);
            if in_scope && !listed.contains(&key) {
                self.remove(&key, None);
            }
        }
    }
}
