//! Detects when a part of this process has ended or stalled permanently, which requires a restart.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;

use crate::health::Health;

/// Consecutive checks without progress of a part after which it counts as stalled: 30 s.
///
/// Checks are counted and not time: a process that was frozen, or a machine that slept, checks again
/// only when the part runs again too.
pub(crate) const CHECKS_MAX: u32 = 30;

/// Checks in a row without progress after which a part is reported as behind: 2 s.
const BEHIND_CHECKS: u32 = 2;

/// Time between two checks.
pub(crate) const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Observes one counter that a healthy part keeps increasing, whatever happens outside the process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    last: Option<u64>,
    still: u32,
}

impl Progress {
    /// Checks once; returns whether the part has stalled permanently.
    pub(crate) fn has_stopped(&mut self, counter: u64) -> bool {
        self.still = match self.last == Some(counter) {
            true => self.still.saturating_add(1),
            false => 0,
        };
        self.last = Some(counter);
        self.still >= CHECKS_MAX
    }

    /// Whether the counter has not changed for some checks.
    const fn is_behind(&self) -> bool {
        self.still >= BEHIND_CHECKS
    }
}

/// Checks from a thread of its own whether the rest of the process runs at all: `checks` counts the
/// steps of the health loop there, and is 0 before the loop has begun.
///
/// Without it, a thread that only serves HTTP would continue to report a stuck process as healthy.
pub(crate) async fn monitor(
    checks: impl Fn() -> u64,
    health: Arc<Health>,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(CHECK_EVERY);
    let mut rest = Progress::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let checks = checks();
        if checks == 0 {
            continue;
        }
        if rest.has_stopped(checks) {
            health.give_up("nothing but the HTTP server has run for half a minute");
        } else if rest.is_behind() {
            health.set("leases", Err("nothing but the HTTP server has run for 2 s"));
        }
    }
}

/// Runs a part without which the process cannot work. If it ends before `stop`, by a panic or by
/// itself, `/livez` fails from then on with the reason.
pub(crate) async fn essential(
    name: &'static str,
    part: impl Future<Output = ()>,
    health: Arc<Health>,
    stop: CancellationToken,
) {
    let ended = std::panic::AssertUnwindSafe(part).catch_unwind().await;
    if stop.is_cancelled() && ended.is_ok() {
        return;
    }
    let how = if ended.is_ok() { "ended" } else { "panicked" };
    tracing::error!(
        part = name,
        "a part of this process {how}, which is a bug; it must be restarted"
    );
    health.give_up(format!(
        "{name} {how}, which is a bug; restart this process"
    ));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    #[test]
    fn only_a_long_stalled_counter_is_fatal() {
        let mut progress = Progress::default();
        assert!(!progress.has_stopped(1));
        for check in 1..CHECKS_MAX {
            assert!(!progress.has_stopped(1), "look {check}");
        }
        assert!(!progress.clone().has_stopped(2), "it moved in time");
        assert!(progress.has_stopped(1));
        assert!(!progress.has_stopped(2));
        assert!(!progress.has_stopped(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_only_serves_http_is_neither_ready_nor_alive_for_long() {
        let health = Arc::new(Health::new(&["leases"]));
        let (checks, stop) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
        let counter = Arc::clone(&checks);
        let counter = move || counter.load(Relaxed);
        let monitoring = tokio::spawn(monitor(counter, Arc::clone(&health), stop.clone()));
        tokio::time::sleep(CHECK_EVERY * 2 * CHECKS_MAX).await;
        assert!(health.livez().ok, "it has not begun yet");
        for _ in 0..2 * CHECKS_MAX {
            checks.fetch_add(1, Relaxed);
            health.ok("leases");
            tokio::time::sleep(CHECK_EVERY).await;
        }
        assert!(health.readyz().ok && health.livez().ok);
        tokio::time::sleep(CHECK_EVERY * (BEHIND_CHECKS + 1)).await;
        assert!(!health.readyz().ok && health.livez().ok);
        tokio::time::sleep(CHECK_EVERY * CHECKS_MAX).await;
        assert!(!health.livez().ok);
        stop.cancel();
        monitoring.await.unwrap();
    }

    async fn after(part: impl Future<Output = ()>, stopping: bool) -> (bool, String) {
        let health = Arc::new(Health::new(&[]));
        let stop = CancellationToken::new();
        if stopping {
            stop.cancel();
        }
        essential("the keeper", part, Arc::clone(&health), stop).await;
        let verdict = health.livez();
        (verdict.ok, verdict.text)
    }

    #[tokio::test]
    async fn a_part_that_ends_too_early_fails_liveness() {
        assert!(after(async {}, true).await.0, "it was asked to end");
        let (ok, text) = after(async {}, false).await;
        assert!(!ok && text.contains("the keeper ended"), "{text}");
        let (ok, text) = after(async { panic!("on purpose") }, false).await;
        assert!(!ok && text.contains("the keeper panicked"), "{text}");
        let (ok, _) = after(async { panic!("on purpose") }, true).await;
        assert!(!ok, "a panic while stopping may leave shards behind");
    }
}
