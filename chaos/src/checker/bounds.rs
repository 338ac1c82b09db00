//! The rule about bounds: queue, memory, requests.

use super::history::History;
use super::{Stats, Verdict};
use crate::evidence::Evidence;

const MIB: f64 = 1024.0 * 1024.0;
/// Objects that are due and wait in the queue.
pub(crate) const QUEUE_METRIC: &str = "workqueue_depth";

/// Queue, memory and requests stay within their bounds, by the measurements of the kernel and the API server where
/// available.
pub(super) fn within(evidence: &Evidence, history: &History, stats: &mut Stats) -> Verdict {
    let expect = &evidence.scenario.expect;
    for sample in &evidence.samples {
        let queue = sample.metrics.get(QUEUE_METRIC).copied().unwrap_or(0.0);
        stats.queue_max = stats.queue_max.max(queue);
        #[allow(clippy::cast_precision_loss)]
        let memory = sample.memory_bytes as f64 / MIB;
        stats.memory_mib_max = stats.memory_mib_max.max(memory);
    }
    let from = evidence.begun.div_euclid(1_000_000);
    let rates = history
        .requests
        .values()
        .flat_map(|seconds| seconds.range(from..).map(|(_, count)| *count));
    stats.requests_per_second_max = rates.max().unwrap_or(0);
    #[allow(clippy::cast_precision_loss)]
    let (queue_max, memory_max) = (expect.queue_max as f64, expect.memory_mib_max as f64);
    let mut violations = Vec::new();
    if stats.queue_max > queue_max {
        violations.push(format!(
            "{} objects waited in a queue, at most {queue_max} may",
            stats.queue_max
        ));
    }
    if stats.memory_mib_max > memory_max {
        violations.push(format!(
            "a replica used {:.0} MiB, at most {memory_max} may be",
            stats.memory_mib_max
        ));
    }
    if stats.requests_per_second_max > expect.requests_per_second_max {
        violations.push(format!(
            "a replica sent {} requests in one second, at most {} may be",
            stats.requests_per_second_max, expect.requests_per_second_max
        ));
    }
    let summary = format!(
        "queue {:.0}, memory {:.0} MiB, {} requests in one second at most",
        stats.queue_max, stats.memory_mib_max, stats.requests_per_second_max
    );
    Verdict::of("within-bounds", violations, summary)
}
