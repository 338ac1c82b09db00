//! Every metric that a replica exports.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::api::names;
use crate::config::RunArgs;
use crate::core::child::ChildKind;
use crate::core::outcome::Cause;
use crate::core::ownership::Reason;
use crate::core::planner::Overview;
use crate::fleet::leader::LEADER_LEASE;
use crate::telemetry::client::code_label;

/// `controller` and `name` label of the one controller in this process.
pub const CONTROLLER: &str = "databasecluster";
/// `reason` label of a shard in which its holder starts no more work, because it is handed over as
/// planned.
pub const GIVEN_UP: &str = "given_up";

const RECONCILE_BUCKETS_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0,
    30.0, 60.0,
];
const QUEUE_BUCKETS_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];
const MOVE_BUCKETS_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
const CONVERGENCE_BUCKETS_SECONDS: &[f64] = &[
    0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0,
];

/// Builds a metric of one kind from its name, help and labels.
trait Build: Sized {
    const KIND: &'static str;
    fn build(name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> prometheus::Result<Self>;
}

macro_rules! impl_build {
    ($($kind:ty, $type_name:literal => |$name:ident, $help:ident, $labels:ident, $buckets:ident| $make:expr;)*) => {
        $(impl Build for $kind {
            const KIND: &'static str = $type_name;

            fn build($name: &str, $help: &str, $labels: &[&str], $buckets: &[f64]) -> prometheus::Result<Self> {
                $make
            }
        })*
    };
}

impl_build! {
    Counter, "counter" => |name, help, _labels, _buckets| Self::new(name, help);
    IntCounter, "counter" => |name, help, _labels, _buckets| Self::new(name, help);
    IntGauge, "gauge" => |name, help, _labels, _buckets| Self::new(name, help);
    Gauge, "gauge" => |name, help, _labels, _buckets| Self::new(name, help);
    GaugeVec, "gauge" => |name, help, labels, _buckets| Self::new(Opts::new(name, help), labels);
    IntCounterVec, "counter" => |name, help, labels, _buckets| Self::new(Opts::new(name, help), labels);
    IntGaugeVec, "gauge" => |name, help, labels, _buckets| Self::new(Opts::new(name, help), labels);
    Histogram, "histogram" => |name, help, _labels, buckets| Self::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()));
    HistogramVec, "histogram" => |name, help, labels, buckets| Self::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels);
}

/// One metric family, for the documentation and for checks of dashboards and alerts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Described {
    /// Its name, without `_bucket`, `_sum` or `_count`.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Help text.
    pub help: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// Upper bounds of a histogram's buckets, without the last, which has none.
    pub buckets: &'static [f64],
}

macro_rules! metrics {
    ($($field:ident: $kind:ty = $name:literal, $help:literal, $labels:expr, $buckets:expr;)*) => {
        /// The metrics of this process. All label sets are bounded: never an object's name.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            /// The API server's address, once a client exists.
            api_server: OnceLock<String>,
            $(#[doc = $help] pub $field: $kind,)*
        }

        /// All metrics above.
        pub const CATALOGUE: &[Described] = &[$(Described {
            name: $name,
            kind: <$kind as Build>::KIND,
            help: $help,
            labels: &$labels,
            buckets: $buckets,
        },)*];

        impl Metrics {
            /// Registers everything in a registry of its own.
            ///
            /// # Errors
            /// When two metrics share a name.
            pub fn new() -> prometheus::Result<Self> {
                let registry = Registry::new();
                $(
                    let labels: &[&str] = &$labels;
                    let $field: $kind = Build::build($name, $help, labels, $buckets)?;
                    registry.register(boxed(&$field))?;
                )*
                let metrics = Self { registry, api_server: OnceLock::new(), $($field,)* };
                metrics.start_at_zero();
                Ok(metrics)
            }
        }
    };
}

fn boxed<C: Collector + Clone + 'static>(collector: &C) -> Box<dyn Collector> {
    Box::new(collector.clone())
}

metrics! {
    reconcile_total: IntCounterVec = "controller_runtime_reconcile_total", "Reconciles, by result (success, error, requeue, requeue_after).", ["controller", "result"], &[];
    reconcile_errors_total: IntCounterVec = "controller_runtime_reconcile_errors_total", "Failed reconciles.", ["controller"], &[];
    reconcile_panics_total: IntCounterVec = "controller_runtime_reconcile_panics_total", "Reconciles that panicked; each was caught.", ["controller"], &[];
    reconcile_timeouts_total: IntCounterVec = "controller_runtime_reconcile_timeouts_total", "Reconciles that exceeded their deadline.", ["controller"], &[];
    reconcile_time_seconds: HistogramVec = "controller_runtime_reconcile_time_seconds", "Duration of a reconcile.", ["controller"], RECONCILE_BUCKETS_SECONDS;
    active_workers: IntGaugeVec = "controller_runtime_active_workers", "Active reconciles.", ["controller"], &[];
    max_concurrent_reconciles: IntGaugeVec = "controller_runtime_max_concurrent_reconciles", "Maximum number of concurrent reconciles.", ["controller"], &[];
    workqueue_depth: IntGaugeVec = "workqueue_depth", "Objects that are due and wait for a worker.", ["name", "controller", "priority"], &[];
    workqueue_adds_total: IntCounterVec = "workqueue_adds_total", "Objects added to the queue.", ["name", "controller"], &[];
    workqueue_retries_total: IntCounterVec = "workqueue_retries_total", "Objects added again after a failure.", ["name", "controller"], &[];
    workqueue_queue_duration_seconds: HistogramVec = "workqueue_queue_duration_seconds", "Time for which an object was due before a worker started it.", ["name", "controller"], QUEUE_BUCKETS_SECONDS;
    workqueue_work_duration_seconds: HistogramVec = "workqueue_work_duration_seconds", "Time that a worker spent on an object.", ["name", "controller"], RECONCILE_BUCKETS_SECONDS;
    workqueue_unfinished_work_seconds: GaugeVec = "workqueue_unfinished_work_seconds", "Sum of the ages of all active reconciles.", ["name", "controller"], &[];
    workqueue_longest_running_processor_seconds: GaugeVec = "workqueue_longest_running_processor_seconds", "Age of the oldest active reconcile.", ["name", "controller"], &[];
    reconcile_timeout_seconds: Gauge = "databasecluster_reconcile_timeout_seconds", "Configured deadline of a reconcile.", [], &[];
    queue_capacity: IntGauge = "databasecluster_queue_capacity", "Configured maximum number of objects in the queue.", [], &[];
    queue_delayed: IntGauge = "databasecluster_queue_delayed", "Objects in the queue that are not due yet.", [], &[];
    queue_head_age_seconds: Gauge = "databasecluster_queue_head_age_seconds", "Time for which the oldest due object has waited.", [], &[];
    queue_refused_total: IntCounter = "databasecluster_queue_refused_total", "Adds refused because the queue was full of objects that were due no later; they are repeated once a minute.", [], &[];
    storm_deferred_total: IntCounter = "databasecluster_storm_deferred_total", "Runs that the rate limiter deferred.", [], &[];
    reconcile_failures_total: IntCounterVec = "databasecluster_reconcile_failures_total", "Failed reconciles, by cause.", ["cause"], &[];
    reconcile_cancelled_total: IntCounter = "databasecluster_reconcile_cancelled_total", "Reconciles cancelled because their shard was stopped.", [], &[];
    fenced_writes_total: IntCounterVec = "databasecluster_fenced_writes_total", "Writes that the fence refused, by kind.", ["kind"], &[];
    shard_writes_refused: IntGaugeVec = "databasecluster_shard_writes_refused", "1 for each shard of this replica in which the API server has refused every write for 10 s or longer; absent for the others.", ["shard"], &[];
    fence_in_force: IntGauge = "databasecluster_fence_in_force", "1 once a dry run has shown that the API server refuses the writes of a stale replica.", [], &[];
    tenure_lost_total: IntCounter = "databasecluster_tenure_lost_total", "Writes not sent because the right to act had ended.", [], &[];
    convergence_seconds: Histogram = "databasecluster_convergence_seconds", "Time from observing a change of the spec to Ready.", [], CONVERGENCE_BUCKETS_SECONDS;
    shards: IntGauge = "databasecluster_shards", "Configured number of shards.", [], &[];
    shard_owned: IntGaugeVec = "databasecluster_shard_owned", "1 for each shard that this replica holds.", ["shard"], &[];
    shard_objects: IntGaugeVec = "databasecluster_shard_objects", "DatabaseClusters in each shard that this replica holds.", ["shard"], &[];
    shard_epoch: IntGaugeVec = "databasecluster_shard_epoch", "Epoch of each shard that this replica holds.", ["shard"], &[];
    shard_moves_total: IntCounterVec = "databasecluster_shard_moves_total", "Shards gained or lost, by reason.", ["reason"], &[];
    takeover_duration_seconds: Histogram = "databasecluster_takeover_duration_seconds", "Time from detecting that a holder is dead to holding its shard.", [], MOVE_BUCKETS_SECONDS;
    shard_list_seconds: Histogram = "databasecluster_shard_list_seconds", "Time from requesting the objects of a shard to having received all of them.", [], MOVE_BUCKETS_SECONDS;
    shard_first_reconcile_seconds: Histogram = "databasecluster_shard_first_reconcile_seconds", "Time from taking a shard, or receiving one that was warmed before, to the start of the first reconcile in it.", [], MOVE_BUCKETS_SECONDS;
    handover_duration_seconds: Histogram = "databasecluster_handover_duration_seconds", "Time from the start of a shard's drain until its Lease names the successor, as observed by the former holder.", [], MOVE_BUCKETS_SECONDS;
    shard_unowned_seconds_total: Counter = "databasecluster_shard_unowned_seconds_total", "Time for which the shards that this replica took had had no live holder, summed over them; the remaining lifetime of a dead holder counts.", [], &[];
    lease_duration_seconds: Gauge = "databasecluster_lease_duration_seconds", "Configured lifetime of the member Lease.", [], &[];
    heartbeat_age_seconds: Gauge = "databasecluster_heartbeat_age_seconds", "Time since the last successful renewal of the member Lease.", [], &[];
    heartbeat_failures_total: IntCounter = "databasecluster_heartbeat_failures_total", "Failed renewals of the member Lease.", [], &[];
    shards_unowned: IntGaugeVec = "databasecluster_shards_unowned", "Shards that no live replica holds, as observed by this one; absent while that is not known, because its own Lease is not valid.", [], &[];
    shard_imbalance: IntGaugeVec = "databasecluster_shard_imbalance", "Difference between the most and the fewest shards of a replica, as observed by this one; absent while that is not known, because its own Lease is not valid.", [], &[];
    members: IntGauge = "databasecluster_members", "Live replicas as observed by this one, itself included.", [], &[];
    leader: IntGaugeVec = "leader_election_master_status", "1 while this replica is the fleet leader.", ["name"], &[];
    clusters: IntGaugeVec = "databasecluster_clusters", "DatabaseClusters of this replica, by phase.", ["phase"], &[];
    watch_mode: IntGaugeVec = "databasecluster_watch_mode", "1 for the watch mode of this replica (sharded: the server filters; filtered: this process does).", ["mode"], &[];
    objects_received_total: IntCounterVec = "databasecluster_objects_received_total", "Objects that the API server sent, by kind.", ["kind"], &[];
    objects_kept_total: IntCounterVec = "databasecluster_objects_kept_total", "Objects received that lie in a shard of this replica, by kind.", ["kind"], &[];
    received_bytes_total: IntCounterVec = "databasecluster_received_bytes_total", "Bytes of lists and watches that the API server sent, by kind.", ["kind"], &[];
    lists_total: IntCounterVec = "databasecluster_lists_total", "Lists started, by kind, and by whether it was the first one of its shard or a repeated one (first, again).", ["kind", "turn"], &[];
    watch_mode_changes_total: IntCounter = "databasecluster_watch_mode_changes_total", "Changes of the watch mode of this replica.", [], &[];
    cache_hits_total: IntCounter = "databasecluster_cache_hits_total", "Lookups answered by the cache.", [], &[];
    cache_misses_total: IntCounter = "databasecluster_cache_misses_total", "Lookups answered by the API server.", [], &[];
    cache_entries: IntGauge = "databasecluster_cache_entries", "Entries in the lookup cache.", [], &[];
    cache_capacity: IntGauge = "databasecluster_cache_capacity", "Configured maximum number of entries in the lookup cache.", [], &[];
    rest_client_requests_total: IntCounterVec = "rest_client_requests_total", "Requests to the API server, by status code (`<error>`: no answer; `<cancelled>`: the caller stopped waiting) and HTTP method.", ["code", "method", "host"], &[];
    rest_client_request_duration_seconds: HistogramVec = "rest_client_request_duration_seconds", "Duration of a request until the headers of its answer; reads are split into GET, LIST and WATCH.", ["verb", "host"], RECONCILE_BUCKETS_SECONDS;
    rest_client_request_retries_total: IntCounterVec = "rest_client_request_retries_total", "Requests that were repeated because of the previous answer, by that answer; only lists and watches are repeated, by their watcher.", ["code", "verb", "host"], &[];
    http_connections: IntGauge = "databasecluster_http_connections", "Connections open to this process's own HTTP server.", [], &[];
    http_evictions_total: IntCounter = "databasecluster_http_evictions_total", "Idle connections to this process's own HTTP server that were closed for new ones.", [], &[];
    build_info: IntGaugeVec = "databasecluster_build_info", "Always 1; version and source revision of this program.", ["version", "revision"], &[];
    tokio_workers: IntGauge = "databasecluster_tokio_workers", "Worker threads of the asynchronous runtime.", [], &[];
    tokio_alive_tasks: IntGauge = "databasecluster_tokio_alive_tasks", "Live tasks of the asynchronous runtime.", [], &[];
    tokio_global_queue_depth: IntGauge = "databasecluster_tokio_global_queue_depth", "Tasks in the global queue of the asynchronous runtime.", [], &[];
    tokio_busy_seconds_total: Counter = "databasecluster_tokio_busy_seconds_total", "Busy time of the worker threads of the asynchronous runtime, summed over them.", [], &[];
    panics_total: IntCounter = "databasecluster_panics_total", "Panics anywhere in this process, those of reconciles included.", [], &[];
    cgroup_memory_usage_bytes: IntGauge = "databasecluster_cgroup_memory_usage_bytes", "Memory charged to this process's cgroup, page cache included; 0: unknown.", [], &[];
    cgroup_memory_limit_bytes: IntGauge = "databasecluster_cgroup_memory_limit_bytes", "Lowest memory limit from this process's cgroup upwards; 0: none.", [], &[];
    cgroup_memory_working_set_bytes: IntGauge = "databasecluster_cgroup_memory_working_set_bytes", "Memory of this process's cgroup that cannot be reclaimed immediately: its usage less inactive page cache; 0: unknown.", [], &[];
    cgroup_cpu_seconds_total: Counter = "databasecluster_cgroup_cpu_seconds_total", "CPU time of this process's cgroup.", [], &[];
    cgroup_cpu_throttled_seconds_total: Counter = "databasecluster_cgroup_cpu_throttled_seconds_total", "Time for which this process's cgroup was throttled by its CPU limit.", [], &[];
    cgroup_cpu_limit_cores: Gauge = "databasecluster_cgroup_cpu_limit_cores", "Lowest CPU limit from this process's cgroup upwards, in cores; 0: none.", [], &[];
    process_cpu_seconds_total: Counter = "process_cpu_seconds_total", "CPU time of this process, user and system.", [], &[];
    process_resident_memory_bytes: IntGauge = "process_resident_memory_bytes", "Resident memory of this process.", [], &[];
    process_virtual_memory_bytes: IntGauge = "process_virtual_memory_bytes", "Virtual memory of this process.", [], &[];
    process_open_fds: IntGauge = "process_open_fds", "Open file descriptors of this process.", [], &[];
    process_max_fds: IntGauge = "process_max_fds", "Maximum number of open file descriptors of this process.", [], &[];
    process_start_time_seconds: Gauge = "process_start_time_seconds", "Start of this process, in seconds since the Unix epoch.", [], &[];
    process_threads: IntGauge = "process_threads", "Threads of this process.", [], &[];
}

impl Metrics {
    /// The registry that contains all metrics.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// All metrics in the Prometheus text format.
    ///
    /// # Errors
    /// When a family cannot be encoded, which means that it was registered wrongly.
    pub fn render(&self) -> prometheus::Result<String> {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Sets the configured limits of this replica.
    pub fn set_limits(&self, args: &RunArgs) {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.shards.set(i64::from(args.shards.get()));
        self.queue_capacity
            .set(signed(args.queue_capacity.get() as u64));
        self.cache_capacity.set(signed(args.cache_entries));
        self.reconcile_timeout_seconds
            .set(args.reconcile_timeout.as_secs_f64());
        self.lease_duration_seconds
            .set(args.lease_duration.as_secs_f64());
    }

    /// Sets the address of the API server. All clients have the same one: the first call counts.
    pub fn set_api_server(&self, host: &str) {
        let _known = self.api_server.set(host.to_owned());
    }

    /// Counts a watch that is started again because it ended early.
    pub fn watch_retried(&self, code: Option<u16>) {
        let host = self.api_server.get().map_or("unknown", String::as_str);
        let code = code.map_or("<error>", |code| code_label(&code.to_string()));
        self.rest_client_request_retries_total
            .with_label_values(&[code, "WATCH", host])
            .inc();
    }

    /// Sets the state of the fleet as this replica observes it; `None`: it is not known, and the
    /// gauges are removed.
    pub fn set_fleet(&self, overview: Option<Overview>) {
        let set = |gauge: &IntGaugeVec, number: Option<usize>| match number {
            None => gauge.reset(),
            Some(number) => {
                let gauge = gauge.with_label_values::<&str>(&[]);
                gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
            }
        };
        set(&self.shards_unowned, overview.map(|all| all.unowned));
        set(&self.shard_imbalance, overview.map(|all| all.imbalance));
    }

    /// Sets the number of objects in each held shard; the index is the number of the shard.
    pub fn set_objects(&self, counts: &[usize]) {
        let held = labels_of(&self.shard_owned);
        for label in &held {
            let shard = label.parse().ok();
            if let Some(count) = shard.and_then(|shard: usize| counts.get(shard)) {
                let gauge = self.shard_objects.with_label_values(&[label]);
                gauge.set(i64::try_from(*count).unwrap_or(i64::MAX));
            }
        }
        // A shard may have ended meanwhile.
        for label in labels_of(&self.shard_objects).difference(&held) {
            let _absent = self.shard_objects.remove_label_values(&[label]);
        }
    }

    /// Creates the series that are sure to come: a rate over a series that appears with its first
    /// event misses that event.
    fn start_at_zero(&self) {
        let (one, two) = (&[CONTROLLER], &[CONTROLLER, CONTROLLER]);
        for family in [
            &self.reconcile_errors_total,
            &self.reconcile_panics_total,
            &self.reconcile_timeouts_total,
        ] {
            family.with_label_values(one);
        }
        for result in ["success", "error", "requeue", "requeue_after"] {
            self.reconcile_total
                .with_label_values(&[CONTROLLER, result]);
        }
        self.reconcile_time_seconds.with_label_values(one);
        for gauge in [&self.active_workers, &self.max_concurrent_reconciles] {
            gauge.with_label_values(one);
        }
        for family in [&self.workqueue_adds_total, &self.workqueue_retries_total] {
            family.with_label_values(two);
        }
        for family in [
            &self.workqueue_queue_duration_seconds,
            &self.workqueue_work_duration_seconds,
        ] {
            family.with_label_values(two);
        }
        for gauge in [
            &self.workqueue_unfinished_work_seconds,
            &self.workqueue_longest_running_processor_seconds,
        ] {
            gauge.with_label_values(two);
        }
        for kind in ChildKind::ALL {
            self.fenced_writes_total.with_label_values(&[kind.label()]);
        }
        self.fenced_writes_total.with_label_values(&[names::KIND]);
        for cause in Cause::ALL {
            self.reconcile_failures_total
                .with_label_values(&[cause.label()]);
        }
        for reason in Reason::ALL {
            self.shard_moves_total.with_label_values(&[reason.label()]);
        }
        self.shard_moves_total.with_label_values(&[GIVEN_UP]);
        self.leader.with_label_values(&[LEADER_LEASE]);
    }
}

/// The current label values of a family with one label. Getting one by value would create it.
fn labels_of(family: &IntGaugeVec) -> BTreeSet<String> {
    let families = family.collect();
    let series = families.iter().flat_map(|family| family.get_metric());
    let labels = series.flat_map(|series| series.get_label());
    labels.map(|label| label.value().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_follow_the_rules_of_the_field() {
        for metric in CATALOGUE {
            let name = metric.name;
            assert_eq!(
                metric.kind == "counter",
                name.ends_with("_total"),
                "{name}: _total is for counters, and for all of them"
            );
            for suffix in ["_count", "_sum", "_bucket", "_ms", "_milliseconds"] {
                assert!(!name.ends_with(suffix), "{name} must not end in {suffix}");
            }
            assert!(
                metric.kind != "histogram" || name.ends_with("_seconds"),
                "{name}: histograms here are of seconds"
            );
            assert!(metric.help.ends_with('.'), "{name}: help is a sentence");
            for label in metric.labels {
                assert!(
                    !["object", "cluster", "uid", "pod", "le"].contains(label),
                    "{name}: label {label} is unbounded or reserved"
                );
            }
        }
    }

    #[test]
    fn a_shard_has_objects_only_while_it_is_held_and_none_when_it_is_empty() {
        let metrics = Metrics::new().unwrap();
        metrics.shard_owned.with_label_values(&["1"]).set(1);
        let exported = |counts: &[usize]| {
            metrics.set_objects(counts);
            let text = metrics.render().unwrap();
            let of = |line: &&str| line.starts_with("databasecluster_shard_objects{");
            text.lines()
                .filter(of)
                .map(ToOwned::to_owned)
                .collect::<Vec<_>>()
        };
        let line = |n: u8| vec![format!("databasecluster_shard_objects{{shard=\"1\"}} {n}")];
        assert_eq!(exported(&[7, 3]), line(3));
        assert_eq!(exported(&[7, 0]), line(0));
        assert_eq!(
            labels_of(&metrics.shard_owned).len(),
            1,
            "reading creates none"
        );
        metrics.shard_owned.remove_label_values(&["1"]).unwrap();
        assert_eq!(exported(&[7, 3]), Vec::<String>::new());
    }

    #[test]
    fn unknown_values_are_absent_instead_of_zero() {
        let metrics = Metrics::new().unwrap();
        let exported = |overview| {
            metrics.set_fleet(overview);
            let text = metrics.render().unwrap();
            let line = |line: &&str| line.starts_with("databasecluster_shards_unowned");
            text.lines().find(line).map(ToOwned::to_owned)
        };
        assert_eq!(exported(None), None);
        let seen = Overview {
            unowned: 3,
            imbalance: 0,
        };
        let line = "databasecluster_shards_unowned 3";
        assert_eq!(exported(Some(seen)).as_deref(), Some(line));
        assert_eq!(exported(None), None);
    }

    #[test]
    fn rendered_metrics_match_the_catalogue() {
        let metrics = Metrics::new().unwrap();
        metrics.shard_owned.with_label_values(&["7"]).set(1);
        let text = metrics.render().unwrap();
        assert!(text.contains("databasecluster_shard_owned{shard=\"7\"} 1\n"));
        assert!(text.contains(
            "controller_runtime_reconcile_errors_total{controller=\"databasecluster\"} 0\n"
        ));
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            let found = CATALOGUE.iter().find(|metric| metric.name == name).unwrap();
            assert_eq!(found.kind, kind, "{name}");
        }
    }
}
