//! The statistics that a heartbeat carries for the view of the fleet: a few flat values, with rates already
//! computed.

use std::collections::VecDeque;

use parking_lot::Mutex;
use serde_json::{Map, Value};

use crate::metrics::Metrics;

/// Shortest period over which a rate is computed.
const RATE_MS_MIN: u64 = 1_000;
/// How far back failures are counted.
const FAILURES_MS: u64 = 60_000;
/// One per second, for a minute.
const SAMPLES_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Sample {
    at_ms: u64,
    cpu_seconds: f64,
    failures: u64,
}

/// CPU time and failures at some earlier times. Bounded to about a minute.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    samples: Mutex<VecDeque<Sample>>,
}

/// Rates since these samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rate {
    /// CPU cores in use recently; `None` before the second update.
    pub cpu_cores: Option<f64>,
    /// Failed reconciles of the last minute.
    pub failures: u64,
}

impl Rates {
    /// The rates now.
    pub(crate) fn update(&self, now_ms: u64, cpu_seconds: f64, failures: u64) -> Rate {
        let mut samples = self.samples.lock();
        let age_ms = |sample: &Sample| now_ms.saturating_sub(sample.at_ms);
        while samples
            .front()
            .is_some_and(|first| age_ms(first) > FAILURES_MS)
            || samples.len() >= SAMPLES_MAX
        {
            samples.pop_front();
        }
        let before = samples
            .iter()
            .rev()
            .find(|sample| age_ms(sample) >= RATE_MS_MIN);
        let cpu_cores = before.map(|before| {
            let seconds = age_ms(before) as f64 / 1000.0;
            ((cpu_seconds - before.cpu_seconds) / seconds).max(0.0)
        });
        let oldest = samples.front().map_or(failures, |first| first.failures);
        if samples
            .back()
            .is_none_or(|last| age_ms(last) >= RATE_MS_MIN)
        {
            samples.push_back(Sample {
                at_ms: now_ms,
                cpu_seconds,
                failures,
            });
        }
        Rate {
            cpu_cores,
            failures: failures.saturating_sub(oldest),
        }
    }
}

/// The statistics as a short JSON object of numbers, from metrics that were just refreshed.
#[must_use]
pub(crate) fn stats(
    metrics: &Metrics,
    rates: &Rates,
    ready: bool,
    objects: usize,
    more: Vec<(String, f64)>,
    now_ms: u64,
) -> String {
    let controller = metrics.names().prefix;
    let one = &[controller];
    let (pool, process) = (&metrics.pool, &metrics.process);
    let cpu_seconds = process.process_cpu_seconds_total.get();
    let failures = pool.reconcile_errors_total.with_label_values(one).get();
    let rate = rates.update(now_ms, cpu_seconds, failures);
    let depth = pool
        .workqueue_depth
        .with_label_values(&[controller, controller, ""]);
    let workers = pool.max_concurrent_reconciles.with_label_values(one);
    let mut stats = Map::new();
    let mut set = |name: &str, value: f64| {
        let rounded = (value * 1000.0).round() / 1000.0;
        stats.insert(name.to_owned(), Value::from(rounded));
    };
    set("ready", f64::from(u8::from(ready)));
    set("cpu_seconds", cpu_seconds);
    if let Some(cores) = rate.cpu_cores {
        set("cpu_cores", cores);
    }
    set("cpu_limit_cores", process.cgroup_cpu_limit_cores.get());
    set(
        "memory_bytes",
        process.process_resident_memory_bytes.get() as f64,
    );
    set(
        "memory_limit_bytes",
        process.cgroup_memory_limit_bytes.get() as f64,
    );
    set("queue_depth", depth.get() as f64);
    set("queue_head_age_seconds", pool.queue_head_age_seconds.get());
    set(
        "longest_run_seconds",
        pool.workqueue_longest_running_processor_seconds
            .with_label_values(&[controller, controller])
            .get(),
    );
    set(
        "busy",
        pool.active_workers.with_label_values(one).get() as f64,
    );
    set("workers", workers.get() as f64);
    set("failures_last_minute", rate.failures as f64);
    for (name, value) in more {
        set(&name, value);
    }
    set("objects", objects as f64);
    // Limits of 0 mean that there is none: not worth a word in every heartbeat.
    stats.retain(|name, value| !name.contains("limit") || value.as_f64() != Some(0.0));
    Value::Object(stats).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::names::testing::NAMES;
    use prometheus::Registry;

    #[test]
    fn rate_covers_about_the_last_second() {
        let rates = Rates::default();
        assert_eq!(rates.update(10_000, 5.0, 0).cpu_cores, None);
        assert_eq!(rates.update(10_200, 5.1, 0).cpu_cores, None);
        assert_eq!(rates.update(12_000, 6.0, 0).cpu_cores, Some(0.5));
        // A retry of the heartbeat a moment later measures from the same sample.
        assert_eq!(rates.update(12_500, 6.25, 0).cpu_cores, Some(0.5));
        assert_eq!(rates.update(14_000, 6.0, 0).cpu_cores, Some(0.0));
    }

    #[test]
    fn failures_cover_the_last_minute() {
        let rates = Rates::default();
        assert_eq!(
            rates.update(0, 0.0, 7).failures,
            0,
            "those before the first update are old"
        );
        assert_eq!(rates.update(30_000, 0.0, 9).failures, 2);
        assert_eq!(rates.update(60_000, 0.0, 9).failures, 2);
        assert_eq!(rates.update(70_000, 0.0, 9).failures, 0);
        for n in 0..10_000 {
            rates.update(70_000 + n * 10, 0.0, 9 + n);
        }
        assert!(rates.samples.lock().len() <= SAMPLES_MAX);
    }

    #[test]
    fn stats_are_short_numbers_accepted_by_the_fleet_view() {
        let metrics = Metrics::register(Registry::new(), NAMES).unwrap();
        metrics.process.cgroup_memory_limit_bytes.set(1 << 28);
        metrics
            .process
            .process_resident_memory_bytes
            .set(33_000_000);
        let rates = Rates::default();
        let more = vec![("examples_ready".to_owned(), 12.0)];
        let text = stats(&metrics, &rates, true, 12, more, 0);
        assert!(text.len() < 400, "{text}");
        let stats: std::collections::BTreeMap<String, f64> = serde_json::from_str(&text).unwrap();
        assert_eq!(stats["examples_ready"], 12.0);
        assert_eq!(stats["objects"], 12.0);
        assert_eq!(stats["ready"], 1.0);
        assert_eq!(stats["memory_limit_bytes"], f64::from(1 << 28));
        assert!(!stats.contains_key("cpu_limit_cores"), "there is none");
    }
}
