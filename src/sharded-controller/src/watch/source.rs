//! One list and watch of one kind, kept true in the store: what comes in, changes and goes.

use std::collections::{BTreeMap, HashSet};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use backon::BackoffBuilder as _;
use kube::core::Status;
use serde_json::value::RawValue;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::feed::FeedParts;
use super::kinds::{Record, ShardCache, WatchedKind};
use super::lists::Turn;
use super::request::{Ask, Ended, Lines};
use super::tickets::Ticket;
use super::wire::{Bookmark, Head, Line, Page};
use crate::object::ObjectKey;
use shard_ownership::hash::{Bucket, ShardCount, ShardId};

/// Shortest and longest pause after a failed watch. Short, so that an API server that comes back is
/// noticed within a lease; with jitter, so that the watches of a replica do not return in step.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Longest pause that an API server can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// A watch that lasted so long had no trouble at its beginning.
const LASTED: Duration = Duration::from_secs(60);
/// A version that the API server refuses so often is given up: everything is listed anew.
const REFUSALS_MAX: u32 = 3;

/// Which shards a source may put into the store, and by which ticket.
#[derive(Clone, Debug)]
pub struct Places {
    count: ShardCount,
    open: BTreeMap<ShardId, Ticket>,
}

impl Places {
    /// These shards.
    #[must_use]
    pub const fn new(count: ShardCount, open: BTreeMap<ShardId, Ticket>) -> Self {
        Self { count, open }
    }

    /// The shard of a bucket, if it is one of these.
    #[must_use]
    pub fn of(&self, bucket: Bucket) -> Option<(ShardId, Ticket)> {
        let shard = self.count.shard_of(bucket);
        self.open.get(&shard).map(|ticket| (shard, *ticket))
    }
}

/// What a source asks for, and where it may put it.
pub struct Order {
    /// What to ask for.
    pub ask: Ask,
    /// The namespace, unless it is all.
    pub namespace: Option<String>,
    /// Whether the API server was asked to send our shards only.
    pub selected: bool,
    /// What to keep.
    pub places: Places,
    /// Whether this was listed before, by another source.
    pub turn: Turn,
}

/// One list and watch of the kind `K`.
pub struct Source<C, K> {
    parts: Arc<FeedParts<C>>,
    order: Order,
    /// Cancelled when everything has been listed once.
    listed: CancellationToken,
    /// Keys of a list that is coming in.
    listing: Option<HashSet<ObjectKey>>,
    /// From where to go on; none: everything has to be listed.
    version: Option<String>,
    refusals: u32,
    kind: PhantomData<fn() -> K>,
}

impl<C: ShardCache, K: WatchedKind<C>> Source<C, K> {
    /// A source that has seen nothing; `listed` is cancelled when its first list is complete.
    #[must_use]
    pub fn new(parts: Arc<FeedParts<C>>, order: Order, listed: CancellationToken) -> Self {
        Self {
            parts,
            order,
            listed,
            listing: None,
            version: None,
            refusals: 0,
            kind: PhantomData,
        }
    }

    /// Lists and watches, again and again, until `stop`. What it still has in hand then is kept out
    /// of the store by its tickets.
    pub async fn run(mut self, stop: CancellationToken) {
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
            let Err(ended) = self.session().await;
            if begun.elapsed() >= LASTED {
                pauses = builder.build();
            }
            let is_regular = matches!(ended, Ended::Regularly) && begun.elapsed() >= PAUSE_MIN;
            let asked_for = ended.retry_after().min(RETRY_AFTER_MAX);
            if !is_regular {
                self.parts.metrics.client.watch_retried(ended.code());
            }
            self.judge(ended);
            if !is_regular {
                let pause = pauses.next().unwrap_or(PAUSE_MAX);
                tokio::time::sleep(pause.max(asked_for)).await;
            }
        }
    }

    /// Draws the conclusions from the end of a watch.
    fn judge(&mut self, ended: Ended) {
        self.listing = None;
        if ended.is_refusal() {
            self.refusals += 1;
        }
        if matches!(ended, Ended::Expired) || self.refusals >= REFUSALS_MAX {
            self.version = None;
            self.refusals = 0;
        }
        let line = match &ended {
            // Both are part of a watch's normal life.
            Ended::Regularly | Ended::Expired => return,
            Ended::Refused(error) => self.parts.troubles.explain(K::PLURAL, error),
            other => format!("{other} ({})", K::PLURAL),
        };
        tracing::debug!(what = K::PLURAL, %ended, "a watch failed; it is tried again");
        self.parts.troubles.report(K::PLURAL, line);
        self.parts.doubts.failed();
    }

    async fn session(&mut self) -> Result<std::convert::Infallible, Ended> {
        let parts = Arc::clone(&self.parts);
        let mut turn = None;
        let mut lines = match self.version.clone() {
            Some(version) => self.order.ask.watch_from(&version).await?,
            None => {
                turn = parts.lists.turn(self.order.turn).await;
                self.list().await?
            }
        };
        if self.version.is_some() {
            drop(turn.take());
        }
        parts.troubles.clear(K::PLURAL);
        loop {
            let line = lines.next().await?;
            self.count_bytes(line.len());
            let line: Line<'_> = serde_json::from_slice(line)?;
            let object = line.object;
            match &*line.what {
                "ADDED" | "MODIFIED" => self.seen(object).await?,
                "DELETED" => self.gone(object)?,
                "BOOKMARK" => {
                    if self.bookmark(object)? {
                        lines.is_listed();
                        drop(turn.take());
                    }
                }
                "ERROR" => {
                    return Err(Ended::by_status(serde_json::from_str::<Status>(
                        object.get(),
                    )?));
                }
                other => tracing::debug!(other, "an unknown kind of event is passed over"),
            }
        }
    }

    /// Begins to list everything: in a stream, or page by page where the API server does not stream.
    async fn list(&mut self) -> Result<Lines, Ended> {
        let turn = self.order.turn.label();
        self.order.turn = Turn::Again;
        let lists = &self.parts.metrics.watch.lists_total;
        lists.with_label_values(&[K::PLURAL, turn]).inc();
        self.listing = Some(HashSet::new());
        match self.order.ask.stream_list().await {
            Err(ended) if ended.is_refusal() => self.list_pages().await,
            streamed => streamed,
        }
    }

    async fn list_pages(&mut self) -> Result<Lines, Ended> {
        let mut next = String::new();
        loop {
            let text = self.order.ask.page(&next).await?;
            self.count_bytes(text.len());
            let page: Page<'_> = serde_json::from_str(&text)?;
            for object in &page.items {
                self.seen(object).await?;
            }
            if page.metadata.next.is_empty() {
                let version = page.metadata.resource_version.into_owned();
                self.complete(version.clone());
                return self.order.ask.watch_from(&version).await;
            }
            next = page.metadata.next.into_owned();
        }
    }

    fn count_bytes(&self, bytes: usize) {
        let counter = &self.parts.metrics.watch.received_bytes_total;
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        counter.with_label_values(&[K::PLURAL]).inc_by(bytes);
    }

    /// Notes up to where we have seen everything; not during a list, which has to come in whole.
    fn advance(&mut self, version: &str) {
        match &mut self.version {
            Some(known) if !version.is_empty() => version.clone_into(known),
            _ => {}
        }
    }

    async fn seen(&mut self, object: &RawValue) -> Result<(), Ended> {
        let head = Head::read(object)?;
        let metrics = &self.parts.metrics;
        metrics
            .watch
            .objects_received_total
            .with_label_values(&[K::PLURAL])
            .inc();
        let told = K::bucket_of(&head);
        if told.is_some_and(|bucket| self.order.places.of(bucket).is_none()) {
            if self.order.selected {
                self.parts.doubts.sent_everything();
            }
        } else {
            match K::read(object, &self.parts.store) {
                Ok(Some(record)) => self.keep(record).await,
                Ok(None) => {}
                Err(error) => {
                    let key = head.key();
                    tracing::warn!(what = K::PLURAL, %key, %error, "an object can not be read: it is left as it is, and not worked on");
                    self.remove(&key, Some(&head.uid));
                }
            }
        }
        self.advance(&head.resource_version);
        Ok(())
    }

    fn gone(&mut self, object: &RawValue) -> Result<(), Ended> {
        let head = Head::read(object)?;
        let received = &self.parts.metrics.watch.objects_received_total;
        received.with_label_values(&[K::PLURAL]).inc();
        let told = K::bucket_of(&head);
        if told.is_none_or(|bucket| self.order.places.of(bucket).is_some()) {
            self.remove(&head.key(), Some(&head.uid));
        }
        self.advance(&head.resource_version);
        Ok(())
    }

    /// Whether the list is complete by it.
    fn bookmark(&mut self, object: &RawValue) -> Result<bool, Ended> {
        let bookmark = Bookmark::read(object)?;
        if bookmark.ends_list {
            self.complete(bookmark.resource_version);
        } else {
            self.advance(&bookmark.resource_version);
        }
        Ok(bookmark.ends_list)
    }

    fn complete(&mut self, version: String) {
        self.forget_unlisted();
        self.version = Some(version);
        self.refusals = 0;
        self.listed.cancel();
    }

    async fn keep(&mut self, record: K::Record) {
        let places = &self.order.places;
        let place = record.bucket().and_then(|bucket| places.of(bucket));
        let Some((shard, ticket)) = place else {
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
        let counter = &self.parts.metrics.watch.objects_kept_total;
        counter.with_label_values(&[K::PLURAL]).inc();
        if let Some(cluster) = cluster {
            self.parts.changed(shard, &cluster);
        }
    }

    /// Removes it if it lies in one of our shards: under its name there may be a successor, of which
    /// another watch told.
    fn remove(&self, key: &ObjectKey, uid: Option<&str>) {
        let store = &self.parts.store;
        let bucket = K::Record::bucket_known(store, key);
        let place = bucket.and_then(|bucket| Some((bucket, self.order.places.of(bucket)?)));
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
    fn forget_unlisted(&mut self) {
        let Some(listed) = self.listing.take() else {
            return;
        };
        let places = &self.order.places;
        let ours = |bucket: Bucket| places.of(bucket).is_some();
        let namespace = self.order.namespace.as_deref();
        for key in K::Record::keys(&self.parts.store, &ours) {
            let in_scope = namespace.is_none_or(|namespace| *key.namespace == *namespace);
            if in_scope && !listed.contains(&key) {
                self.remove(&key, None);
            }
        }
    }
}
