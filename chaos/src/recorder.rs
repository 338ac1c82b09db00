//! Samples resource usage and metrics of each replica, twice a second, and prints progress.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use testbed::http_get;
use testbed::metrics::Metrics;
use testbed::process::ProcessId;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::evidence::{Micros, Sample, now_micros};

const INTERVAL: Duration = Duration::from_millis(500);
/// A replica that is frozen or busy is sampled again the next time.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(400);
/// Whether the replica answered, as Prometheus has it.
const UP: &str = "up";
/// What is kept of each scrape.
const KEPT: [&str; 14] = [
    "workqueue_depth",
    "databasecluster_queue_delayed",
    "databasecluster_queue_head_age_seconds",
    "databasecluster_heartbeat_age_seconds",
    "databasecluster_heartbeat_failures_total",
    "databasecluster_fenced_writes_total",
    "databasecluster_fence_in_force",
    "databasecluster_members",
    "databasecluster_shard_owned",
    "databasecluster_shards_unowned",
    "databasecluster_reconcile_failures_total",
    "databasecluster_tenure_lost_total",
    "controller_runtime_active_workers",
    "leader_election_master_status",
];

/// A replica to be sampled.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its Pod.
    pub pod: String,
    /// Where it serves its metrics.
    pub url: String,
    /// Its process.
    pub process: ProcessId,
}

/// The replicas that are sampled now.
#[derive(Clone, Default)]
pub struct Targets(Arc<Mutex<Vec<Target>>>);

impl Targets {
    /// From now on these.
    pub fn set(&self, targets: Vec<Target>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = targets;
    }

    fn get(&self) -> Vec<Target> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A recorder at work.
pub struct Recorder {
    stop: CancellationToken,
    task: JoinHandle<Vec<Sample>>,
}

impl Recorder {
    /// Starts sampling; `also` are more metrics to keep.
    #[must_use]
    pub fn begin(targets: Targets, also: Vec<String>) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut samples = Vec::new();
            let mut ticks = tokio::time::interval(INTERVAL);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            loop {
                tokio::select! {
                    () = stopped.cancelled() => return samples,
                    _ = ticks.tick() => {}
                }
                let at = now_micros();
                let looks = targets
                    .get()
                    .into_iter()
                    .map(|target| sample(at, target, &also));
                samples.extend(futures::future::join_all(looks).await.into_iter().flatten());
            }
        });
        Self { stop, task }
    }

    /// Ends, and returns all samples.
    pub async fn end(self) -> Vec<Sample> {
        self.stop.cancel();
        self.task.await.unwrap_or_default()
    }
}

async fn sample(at: Micros, target: Target, also: &[String]) -> Option<Sample> {
    let stats = target.process.usage().ok()?;
    let asked = http_get::get(&target.url, "/metrics", "text/plain");
    let (up, mut metrics) = match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(Ok(answer)) if answer.status == 200 => (1.0, kept(&Metrics::parse(&answer.body), also)),
        _ => (0.0, BTreeMap::new()),
    };
    metrics.insert(UP.to_owned(), up);
    Some(Sample {
        at,
        pod: target.pod,
        memory_bytes: stats.resident_bytes,
        cpu_seconds: stats.cpu_seconds,
        metrics,
    })
}

fn kept(metrics: &Metrics, also: &[String]) -> BTreeMap<String, f64> {
    let names = KEPT.iter().copied().chain(also.iter().map(String::as_str));
    names
        .filter_map(|name| Some((name.to_owned(), value(metrics, name)?)))
        .collect()
}

/// The value of a metric, summed over its labels but for the one in `name{label="value"}`.
fn value(metrics: &Metrics, selector: &str) -> Option<f64> {
    let Some((name, rest)) = selector.split_once('{') else {
        return metrics.sum(selector);
    };
    let (label, wanted) = rest.strip_suffix("\"}")?.split_once("=\"")?;
    metrics.by_label(name, label).get(wanted).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_is_summed_over_all_labels_except_the_given_one() {
        let text = "r{code=\"200\",verb=\"a\"} 5\nr{code=\"429\",verb=\"a\"} 1\nr{code=\"429\",verb=\"b\"} 2\n";
        let metrics = Metrics::parse(text);
        assert_eq!(value(&metrics, "r"), Some(8.0));
        assert_eq!(value(&metrics, "r{code=\"429\"}"), Some(3.0));
        assert_eq!(value(&metrics, "r{code=\"500\"}"), None);
    }
}
