//! The state of the fleet, from `/metrics` alone.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use futures::future::join_all;
use testbed::metrics::Metrics;
use testbed::{Fleet, Replica};

/// A replica that takes longer is shown as silent; the others are not kept waiting.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(800);

/// One snapshot of the fleet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) rows: Vec<Row>,
    /// DatabaseClusters by phase, over all replicas.
    pub(crate) phases: BTreeMap<String, u64>,
    /// DatabaseClusters asked for.
    pub(crate) expected: u64,
    pub(crate) elapsed_seconds: u64,
}

/// One replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) runs: bool,
    /// `None` when it does not answer.
    pub(crate) stats: Option<Stats>,
    /// Where it serves the fleet page.
    pub(crate) page: String,
}

/// The metrics of a replica.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stats {
    pub(crate) shards: u64,
    pub(crate) objects: u64,
    pub(crate) queue: u64,
    /// Of one core, since the last snapshot.
    pub(crate) cpu_percent: f64,
    pub(crate) memory_bytes: f64,
}

impl Snapshot {
    /// DatabaseClusters that are Ready.
    pub(crate) fn ready(&self) -> u64 {
        self.phases.get("Ready").copied().unwrap_or(0)
    }
}

/// Takes snapshots of a fleet.
pub(crate) struct Observer {
    expected: u64,
    started: Instant,
    /// CPU seconds of each replica at the last snapshot.
    cpu: HashMap<String, (Instant, f64)>,
}

impl Observer {
    pub(crate) fn new(expected: usize) -> Self {
        Self {
            expected: expected as u64,
            started: Instant::now(),
            cpu: HashMap::new(),
        }
    }

    pub(crate) async fn snapshot(&mut self, fleet: &Fleet<'_>) -> Snapshot {
        let answers = join_all(fleet.replicas().iter().map(ask)).await;
        let mut snapshot = Snapshot {
            expected: self.expected,
            elapsed_seconds: self.started.elapsed().as_secs(),
            ..Snapshot::default()
        };
        for (replica, metrics) in fleet.replicas().iter().zip(answers) {
            let stats = metrics
                .as_ref()
                .map(|metrics| self.stats(replica.name(), metrics));
            for (phase, count) in metrics
                .iter()
                .flat_map(|m| m.by_label("databasecluster_clusters", "phase"))
            {
                *snapshot.phases.entry(phase).or_insert(0) += whole(count);
            }
            snapshot.rows.push(Row {
                name: replica.name().to_owned(),
                runs: replica.is_alive(),
                stats,
                page: format!("{}/fleet", replica.url()),
            });
        }
        snapshot.phases.retain(|_, count| *count > 0);
        snapshot
    }

    fn stats(&mut self, name: &str, metrics: &Metrics) -> Stats {
        let sum = |metric: &str| metrics.sum(metric).unwrap_or(0.0);
        let cpu_seconds = sum("process_cpu_seconds_total");
        let now = Instant::now();
        let before = self.cpu.insert(name.to_owned(), (now, cpu_seconds));
        let cpu_percent = before.map_or(0.0, |(then, seconds)| {
            100.0 * (cpu_seconds - seconds) / now.duration_since(then).as_secs_f64().max(0.001)
        });
        Stats {
            shards: metrics
                .of("databasecluster_shard_owned")
                .filter(|sample| sample.value > 0.0)
                .count() as u64,
            objects: whole(sum("databasecluster_shard_objects")),
            queue: whole(sum("workqueue_depth")),
            cpu_percent: cpu_percent.max(0.0),
            memory_bytes: sum("process_resident_memory_bytes"),
        }
    }
}

async fn ask(replica: &Replica) -> Option<Metrics> {
    if !replica.is_alive() {
        return None;
    }
    tokio::time::timeout(ANSWER_TIMEOUT, replica.metrics())
        .await
        .ok()?
        .ok()
}

/// A gauge that counts things, as a whole number.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(value: f64) -> u64 {
    value.round().max(0.0) as u64
}
