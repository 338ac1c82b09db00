//! Rules about bounds and alerts: queue, memory, requests; and that people would have been told.

use super::history::History;
use super::{Figures, Verdict};
use crate::evidence::{Evidence, Sample, micros};
use crate::scenario::Alert;

const MIB: f64 = 1024.0 * 1024.0;
/// Objects that are due and wait.
pub(crate) const QUEUE_METRIC: &str = "workqueue_depth";

/// Queue, memory and requests stay within their bounds, by the kernel's and the API server's figures where they have any.
pub(super) fn within(evidence: &Evidence, history: &History, figures: &mut Figures) -> Verdict {
    let expect = &evidence.scenario.expect;
    for sample in &evidence.samples {
        let queue = sample.metrics.get(QUEUE_METRIC).copied().unwrap_or(0.0);
        figures.queue_max = figures.queue_max.max(queue);
        #[allow(clippy::cast_precision_loss)]
        let memory = sample.memory_bytes as f64 / MIB;
        figures.memory_mib_max = figures.memory_mib_max.max(memory);
    }
    let from = evidence.begun.div_euclid(1_000_000);
    let rates = history
        .requests
        .values()
        .flat_map(|seconds| seconds.range(from..).map(|(_, count)| *count));
    figures.requests_per_second_max = rates.max().unwrap_or(0);
    #[allow(clippy::cast_precision_loss)]
    let (queue_max, memory_max) = (expect.queue_max as f64, expect.memory_mib_max as f64);
    let mut violations = Vec::new();
    if figures.queue_max > queue_max {
        violations.push(format!(
            "{} objects waited in a queue, at most {queue_max} may",
            figures.queue_max
        ));
    }
    if figures.memory_mib_max > memory_max {
        violations.push(format!(
            "a replica used {:.0} MiB, at most {memory_max} may be",
            figures.memory_mib_max
        ));
    }
    if figures.requests_per_second_max > expect.requests_per_second_max {
        violations.push(format!(
            "a replica sent {} requests in one second, at most {} may be",
            figures.requests_per_second_max, expect.requests_per_second_max
        ));
    }
    let summary = format!(
        "queue {:.0}, memory {:.0} MiB, {} requests in one second at most",
        figures.queue_max, figures.memory_mib_max, figures.requests_per_second_max
    );
    Verdict::of("within-bounds", violations, summary)
}

/// The condition on a metric, by which an alert would have fired, was met.
pub(super) fn alerted(evidence: &Evidence) -> Verdict {
    const RULE: &str = "alerted";
    let Some(alert) = &evidence.scenario.expect.alert else {
        return Verdict::of(RULE, Vec::new(), "no alert is asked for".into());
    };
    let what = format!(
        "{} above {} for {} s",
        alert.metric, alert.above, alert.for_seconds
    );
    let mut pods: Vec<&str> = evidence
        .samples
        .iter()
        .map(|sample| sample.pod.as_str())
        .collect();
    pods.sort_unstable();
    pods.dedup();
    let fired = pods.iter().any(|pod| {
        fires(
            alert,
            evidence
                .samples
                .iter()
                .filter(|sample| sample.pod == *pod && sample.at >= evidence.begun),
        )
    });
    let violations = if fired {
        Vec::new()
    } else {
        vec![format!("no replica had {what}")]
    };
    Verdict::of(RULE, violations, what)
}

fn fires<'a>(alert: &Alert, samples: impl Iterator<Item = &'a Sample>) -> bool {
    let mut since = None;
    let mut first = None;
    for sample in samples {
        let Some(value) = sample.metrics.get(&alert.metric) else {
            continue;
        };
        let base = if alert.counter {
            *first.get_or_insert(*value)
        } else {
            0.0
        };
        if value - base <= alert.above {
            since = None;
            continue;
        }
        let since = *since.get_or_insert(sample.at);
        if sample.at - since >= micros(alert.for_seconds) {
            return true;
        }
    }
    false
}
