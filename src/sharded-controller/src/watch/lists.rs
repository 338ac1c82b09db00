//! Schedules the start of lists: few at once, and repeated ones spread over time, for all shards of
//! a replica together.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Maximum number of lists of this replica in progress at once.
const AT_ONCE_MAX: usize = 16;
/// Mean time between the starts of two repeated lists.
const APART: Duration = Duration::from_millis(25);

/// Whether a list is the first of its source. A shard that was just taken must not wait; after an
/// API server came back, all sources of all replicas would start at the same instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListTurn {
    /// Nothing of it was seen yet.
    First,
    /// It was listed before.
    Again,
}

impl ListTurn {
    /// The label value.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Again => "again",
        }
    }
}

/// Schedules the start of lists. See the module's documentation.
#[derive(Debug)]
pub struct Lists {
    filter: Semaphore,
    /// When the next repeated list may begin. Locked for one read or write only.
    next: Mutex<Instant>,
}

impl Default for Lists {
    fn default() -> Self {
        Self {
            filter: Semaphore::new(AT_ONCE_MAX),
            next: Mutex::new(Instant::now()),
        }
    }
}

impl Lists {
    /// Waits until a list may begin; it is over when the permit is dropped.
    pub async fn turn(&self, turn: ListTurn) -> Option<SemaphorePermit<'_>> {
        if turn == ListTurn::Again {
            tokio::time::sleep_until(self.reserve()).await;
        }
        // The semaphore is never closed.
        self.filter.acquire().await.ok()
    }

    fn reserve(&self) -> Instant {
        let mut next = self.next.lock();
        let slot = (*next).max(Instant::now());
        *next = slot + APART;
        slot + APART.mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Arc;
    use tokio::task::JoinSet;

    #[tokio::test(start_paused = true)]
    async fn repeated_lists_are_spread_and_first_lists_do_not_wait() {
        let lists = Arc::new(Lists::default());
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..100 {
            let lists = Arc::clone(&lists);
            tasks.spawn(async move {
                let _permit = lists.turn(ListTurn::Again).await;
                begun.elapsed()
            });
        }
        tokio::task::yield_now().await;
        let _permit = lists.turn(ListTurn::First).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let mut at: Vec<Duration> = tasks.join_all().await;
        at.sort();
        for window in at.windows(10) {
            assert!(window[9] - window[0] >= 8 * APART, "{window:?}");
        }
        assert!(*at.last().unwrap() <= 100 * APART, "{at:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_lists_are_bounded() {
        let lists = Lists::default();
        let mut permits = Vec::new();
        for _ in 0..AT_ONCE_MAX {
            permits.push(lists.turn(ListTurn::First).await);
        }
        let one_more = tokio::time::timeout(Duration::from_secs(9), lists.turn(ListTurn::First));
        assert!(one_more.await.is_err());
        permits.pop();
        assert!(lists.turn(ListTurn::First).await.is_some());
    }
}
