//! One reconcile: its deadline, its cancellation, its panic, and the effect of its result on the
//! queue.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tracing::debug;

use super::state::Slot;
use super::{Backlog, Reconcile, Shared};
use crate::backoff::{Outlook, THROTTLE_POOL_MAX_MS, Verdict, bounded, verdict};
use crate::outcome::{Cause, Failure, Outcome};
use crate::queue::Run;

type RunResult = Result<Outcome, Failure>;

pub(super) async fn run_one<R: Reconcile>(
    shared: Arc<Shared<R>>,
    run: Run,
    slot: Slot,
    worker: OwnedSemaphorePermit,
    started_ms: u64,
) {
    let permit = slot.permit.clone();
    let stop = slot.stop.clone();
    let mut in_flight = InFlight {
        shared,
        run,
        slot,
        started_ms,
        random: fastrand::f64(),
        ended: None,
        _worker: worker,
    };
    let turn = Turn {
        shared: &in_flight.shared,
        run: &in_flight.run,
        random: in_flight.random,
    };
    let contained = contain(&turn, &in_flight.slot);
    let ended = tokio::select! {
        biased;
        () = permit.ended() => None,
        () = stop.cancelled() => None,
        ended = contained => Some(ended),
    };
    in_flight.ended = ended;
}

/// The queue from the view of one run.
struct Turn<'a, R> {
    shared: &'a Shared<R>,
    run: &'a Run,
    random: f64,
}

impl<R: Reconcile> Backlog for Turn<'_, R> {
    fn others_wait(&self) -> bool {
        let now_ms = self.shared.now_ms();
        self.shared.state().queue.depth(now_ms) > 0
    }

    fn outlook(&self) -> Outlook {
        let now_ms = self.shared.now_ms();
        self.run.attempts.outlook(now_ms, self.random)
    }
}

/// Turns a panic and a missed deadline into failures of the object.
async fn contain<R: Reconcile>(turn: &Turn<'_, R>, slot: &Slot) -> RunResult {
    let shared = turn.shared;
    // A panic may occur before there is a future, so the call itself is contained too.
    let work = async {
        let reconcile = &shared.reconcile;
        reconcile.reconcile(&turn.run.key, &slot.permit, turn).await
    };
    let limit = shared.config.reconcile_timeout;
    match timeout(limit, AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(ended)) => ended,
        Ok(Err(payload)) => {
            shared.pool_metrics.panicked();
            Err(Failure::Failed {
                cause: Cause::Panic,
                message: format!(
                    "the reconcile panicked, which is a bug: {}",
                    panic_message(&*payload)
                ),
            })
        }
        Err(_) => {
            shared.pool_metrics.timed_out();
            Err(Failure::Failed {
                cause: Cause::Timeout,
                message: format!(
                    "took over {} s and was cancelled: is the API server slow, or --reconcile-timeout too low?",
                    limit.as_secs_f64()
                ),
            })
        }
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// Records the end of a run when dropped, so that no object stays "running", however its task ends.
struct InFlight<R: Reconcile> {
    shared: Arc<Shared<R>>,
    run: Run,
    slot: Slot,
    started_ms: u64,
    /// Drawn before the run, so that the run knows when it is retried.
    random: f64,
    /// `None`: it was cancelled.
    ended: Option<RunResult>,
    /// Freed after the end was booked, so that there are never more runs than workers.
    _worker: OwnedSemaphorePermit,
}

impl<R: Reconcile> Drop for InFlight<R> {
    fn drop(&mut self) {
        let now_ms = self.shared.now_ms();
        let took_ms = now_ms.saturating_sub(self.started_ms);
        let attempts = self.run.attempts;
        if std::thread::panicking() {
            // Only dropping the reconcile can have panicked: the rest of it is contained.
            self.shared.pool_metrics.panicked();
            self.ended = Some(Err(Failure::Failed {
                cause: Cause::Panic,
                message: "the reconcile panicked while it was being cancelled, which is a bug"
                    .into(),
            }));
        }
        let ended = self
            .ended
            .take()
            .map(|ended| ended.map_err(|failure| bounded(failure, attempts)));
        let booked = self.book(ended, now_ms);
        self.shared.pool_metrics.ended(booked.as_ref(), took_ms);
        if let Some(Err(failure)) = &booked {
            debug!(?failure, took_ms, "reconcile failed");
        }
        self.shared.wake.notify_one();
        self.shared.quieter.notify_waiters();
    }
}

impl<R: Reconcile> InFlight<R> {
    /// Gives the end that counts: `None` when the run was cancelled or its shard is no longer held.
    fn book(&self, ended: Option<RunResult>, now_ms: u64) -> Option<RunResult> {
        let key = &self.run.key;
        let mut state = self.shared.state();
        let Some(ended) = ended.filter(|_| state.is_current(&self.slot)) else {
            state.finish(key, Verdict::Again { due_ms: now_ms });
            self.shared.pool_metrics.active(state.running());
            return None;
        };
        let verdict = verdict(&ended, self.run.attempts, now_ms, self.random);
        state.finish(key, verdict);
        self.shared.pool_metrics.active(state.running());
        match &ended {
            Err(Failure::Failed { cause, message }) => {
                state.failures.record(key, *cause, message, now_ms);
            }
            Err(Failure::Throttled { retry_after }) => {
                let asked_ms = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
                let pause_ms = asked_ms.min(THROTTLE_POOL_MAX_MS);
                state.queue.hold_until(now_ms.saturating_add(pause_ms));
            }
            Ok(_) | Err(Failure::Lost | Failure::Retry { .. }) => {}
        }
        Some(ended)
    }
}
