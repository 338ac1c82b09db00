//! The one task that takes runs off the queue as workers come free.

use std::sync::Arc;

use futures::future::OptionFuture;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Duration, sleep_until};
use tracing::{Instrument, info_span, warn};

use super::run::run_one;
use super::{Reconcile, Shared};
use crate::failpoints::{Failpoint, is_active};

pub(super) async fn run<R: Reconcile>(shared: Arc<Shared<R>>) {
    if is_active(Failpoint::Scheduler) {
        return;
    }
    let mut worker: Option<OwnedSemaphorePermit> = None;
    loop {
        let until = step(&shared, &mut worker)
            .and_then(|ms| shared.started.checked_add(Duration::from_millis(ms)));
        tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => return,
            free = Arc::clone(&shared.workers).acquire_owned(), if worker.is_none() => {
                // The semaphore is never closed.
                worker = free.ok();
            }
            () = shared.wake.notified(), if worker.is_some() => {}
            Some(()) = OptionFuture::from(until.map(sleep_until)) => {}
        }
    }
}

/// Starts one run if there is a worker and a run for it, logs the failures that are due, and returns
/// when to check again.
fn step<R: Reconcile>(
    shared: &Arc<Shared<R>>,
    worker: &mut Option<OwnedSemaphorePermit>,
) -> Option<u64> {
    let now_ms = shared.now_ms();
    let (next, line, line_ms, queue_ms, deferred) = {
        let mut state = shared.state();
        let next = worker.take().map(|free| (state.pop(now_ms), free));
        shared.pool_metrics.active(state.running());
        let line = state.failures.take(now_ms);
        let (line_ms, queue_ms) = (state.failures.next_line_ms(), state.queue.next_due());
        (next, line, line_ms, queue_ms, state.newly_deferred())
    };
    shared.pool_metrics.deferred(deferred);
    if let Some(summary) = line {
        warn!("{summary}");
    }
    let mut until_ms = line_ms;
    match next {
        None => {}
        Some((None, free)) => {
            *worker = Some(free);
            // What was due may have been put off, or have belonged to a shard that ended.
            shared.quieter.notify_waiters();
            until_ms = line_ms.into_iter().chain(queue_ms).min();
        }
        Some((Some((run, slot)), free)) => {
            shared
                .pool_metrics
                .started(now_ms.saturating_sub(run.due_ms));
            let span = info_span!(
                "reconcile",
                object = %run.key,
                shard = %run.shard,
                epoch = slot.permit.token().epoch,
                attempt = run.attempts.failures.saturating_add(run.attempts.retries).saturating_add(1),
            );
            let task = run_one(Arc::clone(shared), run, slot, free, now_ms);
            shared.tasks.spawn(task.instrument(span));
        }
    }
    until_ms
}
