//! The pool's part of the metrics, with label sets resolved once.

use std::sync::Arc;

use prometheus::{Gauge, Histogram, IntCounter, IntGauge};

use super::state::PoolStats;
use crate::core::outcome::{Cause, Failure, Next, Outcome};
use crate::telemetry::metrics::{CONTROLLER, Metrics};

pub(super) struct PoolMetrics {
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
        let (one, two) = (&[CONTROLLER], &[CONTROLLER, CONTROLLER]);
        metrics
            .max_concurrent_reconciles
            .with_label_values(one)
            .set(signed(concurrency));
        for result in RESULTS {
            metrics
                .reconcile_total
                .with_label_values(&[CONTROLLER, result]);
        }
        for cause in Cause::ALL {
            metrics
                .reconcile_failures_total
                .with_label_values(&[cause.label()]);
        }
        Self {
            adds: metrics.workqueue_adds_total.with_label_values(two),
            retries: metrics.workqueue_retries_total.with_label_values(two),
            depth: metrics
                .workqueue_depth
                .with_label_values(&[CONTROLLER, CONTROLLER, ""]),
            waited: metrics
                .workqueue_queue_duration_seconds
                .with_label_values(two),
            worked: metrics
                .workqueue_work_duration_seconds
                .with_label_values(two),
            took: metrics.reconcile_time_seconds.with_label_values(one),
            active: metrics.active_workers.with_label_values(one),
            errors: metrics.reconcile_errors_total.with_label_values(one),
            panics: metrics.reconcile_panics_total.with_label_values(one),
            timeouts: metrics.reconcile_timeouts_total.with_label_values(one),
            unfinished: metrics
                .workqueue_unfinished_work_seconds
                .with_label_values(two),
            longest: metrics
                .workqueue_longest_running_processor_seconds
                .with_label_values(two),
            metrics,
        }
    }

    pub(super) fn refused(&self) {
        self.metrics.queue_refused_total.inc();
    }

    pub(super) fn deferred(&self, runs: u64) {
        self.metrics.storm_deferred_total.inc_by(runs);
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
            self.metrics.reconcile_cancelled_total.inc();
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
                    .reconcile_failures_total
                    .with_label_values(&[cause.label()])
                    .inc();
                "error"
            }
            Err(_) => "requeue",
        };
        self.metrics
            .reconcile_total
            .with_label_values(&[CONTROLLER, result])
            .inc();
        if !matches!(ended, Ok(_) | Err(Failure::Lost)) {
            self.retries.inc();
        }
    }

    pub(super) fn show(&self, stats: &PoolStats) {
        self.depth.set(signed(stats.depth));
        self.metrics.queue_delayed.set(signed(stats.delayed));
        self.metrics
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
