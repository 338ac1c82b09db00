//! The pool's part of the metrics, with label sets resolved once.

use std::sync::Arc;

use prometheus::{Gauge, Histogram, IntCounter, IntGauge};

use super::state::PoolStats;
use crate::metrics::Metrics;
use crate::outcome::{Cause, Failure, Next, Outcome};

pub(super) struct PoolMetrics {
    results: [(&'static str, IntCounter); RESULTS.len()],
    metrics: Arc<Metrics>,
    pub(super) adds: IntCounter,
    retries: IntCounter,
    depth: IntGauge,
    waited: Histogram,
    worked: Histogram,
    took: Histogram,
    active: IntGauge,
    errors: IntCounter,
    panics: IntCounter,
    timeouts: IntCounter,
    unfinished: Gauge,
    longest: Gauge,
}

const RESULTS: [&str; 4] = ["success", "error", "requeue", "requeue_after"];

impl PoolMetrics {
    pub(super) fn new(metrics: Arc<Metrics>, concurrency: usize) -> Self {
        let controller = metrics.names().prefix;
        let (one, two) = (&[controller], &[controller, controller]);
        let pool = &metrics.pool;
        pool.max_concurrent_reconciles
            .with_label_values(one)
            .set(signed(concurrency));
        let results = RESULTS.map(|result| {
            let counter = pool
                .reconcile_total
                .with_label_values(&[controller, result]);
            (result, counter)
        });
        for cause in Cause::ALL {
            pool.reconcile_failures_total
                .with_label_values(&[cause.label()]);
        }
        Self {
            adds: pool.workqueue_adds_total.with_label_values(two),
            retries: pool.workqueue_retries_total.with_label_values(two),
            depth: pool
                .workqueue_depth
                .with_label_values(&[controller, controller, ""]),
            waited: pool.workqueue_queue_duration_seconds.with_label_values(two),
            worked: pool.workqueue_work_duration_seconds.with_label_values(two),
            took: pool.reconcile_time_seconds.with_label_values(one),
            active: pool.active_workers.with_label_values(one),
            errors: pool.reconcile_errors_total.with_label_values(one),
            panics: pool.reconcile_panics_total.with_label_values(one),
            timeouts: pool.reconcile_timeouts_total.with_label_values(one),
            unfinished: pool
                .workqueue_unfinished_work_seconds
                .with_label_values(two),
            longest: pool
                .workqueue_longest_running_processor_seconds
                .with_label_values(two),
            results,
            metrics,
        }
    }

    pub(super) fn refused(&self) {
        self.metrics.pool.queue_refused_total.inc();
    }

    pub(super) fn deferred(&self, runs: u64) {
        self.metrics.pool.storm_deferred_total.inc_by(runs);
    }

    pub(super) fn panicked(&self) {
        self.panics.inc();
    }

    pub(super) fn timed_out(&self) {
        self.timeouts.inc();
    }

    /// Call it with the pool's lock held; otherwise an older number may overwrite a newer one.
    pub(super) fn active(&self, running: usize) {
        self.active.set(signed(running));
    }

    pub(super) fn started(&self, waited_ms: u64) {
        self.waited.observe(seconds(waited_ms));
    }

    /// Records the end of a run; `None`: it was cancelled or did not count.
    pub(super) fn ended(&self, ended: Option<&Result<Outcome, Failure>>, took_ms: u64) {
        self.worked.observe(seconds(took_ms));
        let Some(ended) = ended else {
            self.metrics.pool.reconcile_cancelled_total.inc();
            return;
        };
        self.took.observe(seconds(took_ms));
        let result = match ended {
            Ok(Outcome {
                next: Next::Waiting | Next::RequeueAfter { .. },
                ..
            }) => "requeue_after",
            Ok(_) => "success",
            Err(Failure::Failed { cause, .. }) => {
                self.errors.inc();
                self.metrics
                    .pool
                    .reconcile_failures_total
                    .with_label_values(&[cause.label()])
                    .inc();
                "error"
            }
            Err(_) => "requeue",
        };
        if let Some((_, counter)) = self.results.iter().find(|(known, _)| *known == result) {
            counter.inc();
        }
        if !matches!(ended, Ok(_) | Err(Failure::Lost)) {
            self.retries.inc();
        }
    }

    pub(super) fn show(&self, stats: &PoolStats) {
        self.depth.set(signed(stats.depth));
        self.metrics.pool.queue_delayed.set(signed(stats.delayed));
        self.metrics
            .pool
            .queue_head_age_seconds
            .set(seconds(stats.head_age_ms));
        self.unfinished.set(seconds(stats.unfinished_ms));
        self.longest.set(seconds(stats.longest_ms));
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}
