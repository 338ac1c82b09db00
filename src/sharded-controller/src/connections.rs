//! Bounds the connections of the HTTP server: when all slots are used, the longest idle connection
//! is closed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// How long to wait for a place before looking again for a connection that went idle meanwhile.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// All open connections. A probe must get through however many clients hold connections open, so
/// when all slots are used a connection is closed instead of making newcomers wait.
#[derive(Clone, Debug)]
pub(super) struct Connections {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    places: Arc<Semaphore>,
    /// Locked for a lookup only, never across I/O.
    open: Mutex<HashMap<u64, Arc<Use>>>,
    clock: AtomicU64,
    gauge: IntGauge,
    evictions: IntCounter,
}

#[derive(Debug, Default)]
struct Use {
    requests: AtomicUsize,
    last_used: AtomicU64,
    evicted: CancellationToken,
}

/// The slot of one connection; dropping it frees the slot.
#[derive(Debug)]
pub(super) struct Place {
    inner: Arc<Inner>,
    id: u64,
    used: Arc<Use>,
    _permit: OwnedSemaphorePermit,
}

/// Marks a connection as busy while a request is being answered.
#[derive(Debug)]
pub(super) struct Busy {
    inner: Arc<Inner>,
    used: Arc<Use>,
}

impl Connections {
    /// Slots for `places_max` connections.
    pub(super) fn new(places_max: usize, gauge: IntGauge, evictions: IntCounter) -> Self {
        Self {
            inner: Arc::new(Inner {
                places: Arc::new(Semaphore::new(places_max)),
                open: Mutex::default(),
                clock: AtomicU64::new(0),
                gauge,
                evictions,
            }),
        }
    }

    /// A slot for a new connection. Waits only while every connection is answering a request.
    pub(super) async fn place(&self) -> Place {
        let permit = loop {
            if let Ok(permit) = Arc::clone(&self.inner.places).try_acquire_owned() {
                break permit;
            }
            self.inner.evict_longest_idle();
            let wait = Arc::clone(&self.inner.places).acquire_owned();
            if let Ok(Ok(permit)) = tokio::time::timeout(RETRY_AFTER, wait).await {
                break permit;
            }
        };
        let id = self.inner.tick();
        let used = Arc::new(Use::default());
        used.last_used.store(id, Ordering::Relaxed);
        self.inner.open.lock().insert(id, Arc::clone(&used));
        self.inner.gauge.inc();
        Place {
            inner: Arc::clone(&self.inner),
            id,
            used,
            _permit: permit,
        }
    }
}

impl Inner {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    fn evict_longest_idle(&self) {
        let mut open = self.open.lock();
        let longest = open
            .iter()
            .filter(|(_, used)| used.requests.load(Ordering::Acquire) == 0)
            .min_by_key(|(_, used)| used.last_used.load(Ordering::Relaxed))
            .map(|(id, _)| *id);
        if let Some(used) = longest.and_then(|id| open.remove(&id)) {
            used.evicted.cancel();
            self.evictions.inc();
        }
    }
}

impl Place {
    /// Marks that a request is being answered, until the mark is dropped.
    pub(super) fn busy(&self) -> Busy {
        self.used.requests.fetch_add(1, Ordering::AcqRel);
        Busy {
            inner: Arc::clone(&self.inner),
            used: Arc::clone(&self.used),
        }
    }

    /// Whether no request has come yet on this connection.
    pub(super) fn unused(&self) -> bool {
        self.used.requests.load(Ordering::Acquire) == 0
            && self.used.last_used.load(Ordering::Relaxed) == self.id
    }

    /// Completes when the slot was given to another connection.
    pub(super) async fn evicted(&self) {
        self.used.evicted.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inner.open.lock().remove(&self.id);
        self.inner.gauge.dec();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let now = self.inner.tick();
        self.used.last_used.store(now, Ordering::Relaxed);
        self.used.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures::FutureExt as _;

    fn connections(places_max: usize) -> Connections {
        let gauge = IntGauge::new("open", "Open.").unwrap();
        let evictions = IntCounter::new("evictions_total", "Evictions.").unwrap();
        Connections::new(places_max, gauge, evictions)
    }

    #[tokio::test]
    async fn longest_idle_connection_is_evicted() {
        let connections = connections(2);
        let first = connections.place().await;
        let second = connections.place().await;
        drop(first.busy());
        assert!(!first.unused() && second.unused());
        let third = tokio::spawn({
            let connections = connections.clone();
            async move { connections.place().await }
        });
        second.evicted().await;
        assert!(first.evicted().now_or_never().is_none());
        drop(second);
        let third = third.await.unwrap();
        assert_eq!(connections.inner.gauge.get(), 2);
        drop((first, third));
        assert_eq!(connections.inner.gauge.get(), 0);
        assert_eq!(connections.inner.evictions.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn busy_connection_is_never_evicted() {
        let connections = connections(1);
        let first = connections.place().await;
        let busy = first.busy();
        let wait = tokio::time::timeout(Duration::from_secs(60), connections.place());
        assert!(wait.await.is_err());
        assert!(first.evicted().now_or_never().is_none());
        drop(busy);
        let second = tokio::spawn({
            let connections = connections.clone();
            async move { connections.place().await }
        });
        first.evicted().await;
        drop(first);
        assert!(second.await.unwrap().unused());
    }
}
