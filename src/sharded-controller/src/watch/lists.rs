//! When a list may begin: few at once, and those that begin anew spread over time, for all shards of
//! a replica together.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Most lists of this replica that come in at once.
const AT_ONCE_MAX: usize = 16;
/// Mean time between the beginnings of two lists that are made anew.
const APART: Duration = Duration::from_millis(25);

/// Whether a list is the first of its source. A shard that was just taken is waited for; after an
/// API server came back, all sources of all replicas would begin at the same instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing of it was seen yet.
    First,
    /// It was listed before.
    Again,
}

impl Turn {
    /// The label value.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Again => "again",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Lists {
    places: Semaphore,
    /// When the next list may begin that is made anew. Locked for a look only.
    next: Mutex<Instant>,
}

impl Default for Lists {
    fn default() -> Self {
        Self {
            places: Semaphore::new(AT_ONCE_MAX),
            next: Mutex::new(Instant::now()),
        }
    }
}

impl Lists {
    /// Waits until a list may begin; it is over when the permit is dropped.
    pub async fn turn(&self, turn: Turn) -> Option<SemaphorePermit<'_>> {
        if turn == Turn::Again {
            tokio::time::sleep_until(self.reserve()).await;
        }
        // The semaphore is never closed.
        self.places.acquire().await.ok()
    }

    fn reserve(&self) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
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
    async fn lists_made_anew_are_spread_and_first_ones_do_not_wait() {
        let lists = Arc::new(Lists::default());
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..100 {
            let lists = Arc::clone(&lists);
            tasks.spawn(async move {
                let _permit = lists.turn(Turn::Again).await;
                begun.elapsed()
            });
        }
        tokio::task::yield_now().await;
        let _permit = lists.turn(Turn::First).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let mut at: Vec<Duration> = tasks.join_all().await;
        at.sort();
        for window in at.windows(10) {
            assert!(window[9] - window[0] >= 8 * APART, "{window:?}");
        }
        assert!(*at.last().unwrap() <= 100 * APART, "{at:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_come_in_at_once() {
        let lists = Lists::default();
        let mut permits = Vec::new();
        for _ in 0..AT_ONCE_MAX {
            permits.push(lists.turn(Turn::First).await);
        }
        let one_more = tokio::time::timeout(Duration::from_secs(9), lists.turn(Turn::First));
        assert!(one_more.await.is_err());
        permits.pop();
        assert!(lists.turn(Turn::First).await.is_some());
    }
}
