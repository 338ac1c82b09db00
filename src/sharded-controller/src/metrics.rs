//! The metrics of the components, each registered with a registry that is passed in.
//!
//! A component has a struct of its families. The families of one operator begin with its
//! [`Names::prefix`]; those whose names dashboards share between operators (`controller_runtime_…`,
//! `workqueue_…`, `rest_client_…`, `process_…`) are called as everywhere. All label sets are bounded:
//! no label has an object's name.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry,
};
use shard_ownership::ownership::Reason;
use shard_ownership::planner::Overview;

use crate::client::code_label;
use crate::names::Names;
use crate::outcome::Cause;

/// `reason` label of a shard whose holder starts no more work in it, because it moves as planned.
pub(crate) const GIVEN_UP: &str = "given_up";

/// Upper bounds, in seconds, for reconciles and requests.
pub(crate) const RECONCILE_BUCKETS_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0,
    30.0, 60.0,
];
const QUEUE_BUCKETS_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];
const MOVE_BUCKETS_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Builds a metric of one kind from its name, help and labels; for [`metrics!`](crate::metrics!).
#[doc(hidden)]
pub trait Build: Sized {
    const KIND: &'static str;
    #[allow(
        clippy::missing_errors_doc,
        reason = "internal to the macro: fails on an invalid name"
    )]
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
    name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The help text.
    pub help: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// Upper bounds of a histogram's buckets, without the last, which has none.
    pub buckets: &'static [f64],
}

impl Described {
    /// For [`metrics!`](crate::metrics!).
    #[doc(hidden)]
    #[must_use]
    pub const fn new(
        name: &'static str,
        kind: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        buckets: &'static [f64],
    ) -> Self {
        Self {
            name,
            kind,
            help,
            labels,
            buckets,
        }
    }

    /// The name in the metrics of this operator, without `_bucket`, `_sum` or `_count`.
    #[must_use]
    pub fn name(&self, names: &Names) -> String {
        names.metric(self.name)
    }
}

/// Declares a struct of metric families with `register`, which builds them and registers them with
/// a registry, and `CATALOGUE`, which describes them. `{prefix}` in a name stands for
/// [`Names::prefix`](crate::names::Names::prefix).
#[macro_export]
macro_rules! metrics {
    ($(#[$doc:meta])* pub struct $name:ident { $($field:ident: $kind:ty = $family:literal, $help:literal, $labels:expr, $buckets:expr;)* }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name {
            $(#[doc = $help] pub $field: $kind,)*
        }

        impl $name {
            /// Every family of it.
            pub const CATALOGUE: &[$crate::metrics::Described] = &[$($crate::metrics::Described::new(
                $family,
                <$kind as $crate::metrics::Build>::KIND,
                $help,
                &$labels,
                $buckets,
            ),)*];

            /// Builds the families and registers them.
            ///
            /// # Errors
            /// When the registry has a family of the same name.
            pub fn register(
                registry: &::prometheus::Registry,
                names: &$crate::names::Names,
            ) -> ::prometheus::Result<Self> {
                $(
                    let labels: &[&str] = &$labels;
                    let name = names.metric($family);
                    let $field: $kind = $crate::metrics::Build::build(&name, $help, labels, $buckets)?;
                    registry.register(Box::new($field.clone()))?;
                )*
                Ok(Self { $($field,)* })
            }
        }
    };
}

crate::metrics! {
    /// Queue and pool.
    pub struct PoolMetrics {
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
    reconcile_timeout_seconds: Gauge = "{prefix}_reconcile_timeout_seconds", "Configured deadline of a reconcile.", [], &[];
    queue_capacity: IntGauge = "{prefix}_queue_capacity", "Configured maximum number of objects in the queue.", [], &[];
    queue_delayed: IntGauge = "{prefix}_queue_delayed", "Objects in the queue that are not due yet.", [], &[];
    queue_head_age_seconds: Gauge = "{prefix}_queue_head_age_seconds", "Time for which the oldest due object has waited.", [], &[];
    queue_refused_total: IntCounter = "{prefix}_queue_refused_total", "Adds refused because the queue was full of objects that were due no later; they are repeated once a minute.", [], &[];
    storm_deferred_total: IntCounter = "{prefix}_storm_deferred_total", "Runs that the rate limiter deferred.", [], &[];
    reconcile_failures_total: IntCounterVec = "{prefix}_reconcile_failures_total", "Failed reconciles, by cause.", ["cause"], &[];
    reconcile_cancelled_total: IntCounter = "{prefix}_reconcile_cancelled_total", "Reconciles cancelled because their shard was stopped.", [], &[];
    }
}

crate::metrics! {
    /// Ownership: Leases, shard table, permits.
    pub struct FleetMetrics {
    fence_in_force: IntGauge = "{prefix}_fence_in_force", "1 once a dry run has shown that the API server refuses the writes of a stale replica.", [], &[];
    shard_writes_refused: IntGaugeVec = "{prefix}_shard_writes_refused", "1 for each shard of this replica in which the API server has refused every write for 10 s or longer; absent for the others.", ["shard"], &[];
    tenure_lost_total: IntCounter = "{prefix}_tenure_lost_total", "Writes not sent because the right to act had ended.", [], &[];
    fenced_writes_total: IntCounterVec = "{prefix}_fenced_writes_total", "Writes that the fence refused, by kind.", ["kind"], &[];
    shards: IntGauge = "{prefix}_shards", "Configured number of shards.", [], &[];
    shard_owned: IntGaugeVec = "{prefix}_shard_owned", "1 for each shard that this replica holds.", ["shard"], &[];
    shard_objects: IntGaugeVec = "{prefix}_shard_objects", "Objects of the sharded kind in each shard that this replica holds.", ["shard"], &[];
    shard_epoch: IntGaugeVec = "{prefix}_shard_epoch", "Epoch of each shard that this replica holds.", ["shard"], &[];
    shard_moves_total: IntCounterVec = "{prefix}_shard_moves_total", "Shards gained or lost, by reason.", ["reason"], &[];
    takeover_duration_seconds: Histogram = "{prefix}_takeover_duration_seconds", "Time from detecting that a holder is dead to holding its shard.", [], MOVE_BUCKETS_SECONDS;
    handover_duration_seconds: Histogram = "{prefix}_handover_duration_seconds", "Time from the start of a shard's drain until its Lease names the successor, as observed by the former holder.", [], MOVE_BUCKETS_SECONDS;
    shard_unowned_seconds_total: Counter = "{prefix}_shard_unowned_seconds_total", "Time for which the shards that this replica took had had no live holder, summed over them; the remaining lifetime of a dead holder counts.", [], &[];
    lease_duration_seconds: Gauge = "{prefix}_lease_duration_seconds", "Configured lifetime of the member Lease.", [], &[];
    heartbeat_age_seconds: Gauge = "{prefix}_heartbeat_age_seconds", "Time since the last successful renewal of the member Lease.", [], &[];
    heartbeat_failures_total: IntCounter = "{prefix}_heartbeat_failures_total", "Failed renewals of the member Lease.", [], &[];
    shards_unowned: IntGaugeVec = "{prefix}_shards_unowned", "Shards that no live replica holds, as observed by this one; absent while that is not known, because its own Lease is not valid.", [], &[];
    shard_imbalance: IntGaugeVec = "{prefix}_shard_imbalance", "Difference between the most and the fewest shards of a replica, as observed by this one; absent while that is not known, because its own Lease is not valid.", [], &[];
    members: IntGauge = "{prefix}_members", "Live replicas as observed by this one, itself included.", [], &[];
    leader: IntGaugeVec = "leader_election_master_status", "1 while this replica is the fleet leader.", ["name"], &[];
    }
}

crate::metrics! {
    /// Lists and watches.
    pub struct WatchMetrics {
    shard_list_seconds: Histogram = "{prefix}_shard_list_seconds", "Time from requesting the objects of a shard to having received all of them.", [], MOVE_BUCKETS_SECONDS;
    shard_first_reconcile_seconds: Histogram = "{prefix}_shard_first_reconcile_seconds", "Time from taking a shard, or receiving one that was warmed before, to the start of the first reconcile in it.", [], MOVE_BUCKETS_SECONDS;
    watch_mode: IntGaugeVec = "{prefix}_watch_mode", "1 for the watch mode of this replica (sharded: the server filters; filtered: this process does).", ["mode"], &[];
    objects_received_total: IntCounterVec = "{prefix}_objects_received_total", "Objects that the API server sent, by kind.", ["kind"], &[];
    objects_kept_total: IntCounterVec = "{prefix}_objects_kept_total", "Objects received that lie in a shard of this replica, by kind.", ["kind"], &[];
    received_bytes_total: IntCounterVec = "{prefix}_received_bytes_total", "Bytes of lists and watches that the API server sent, by kind.", ["kind"], &[];
    lists_total: IntCounterVec = "{prefix}_lists_total", "Lists started, by kind, and by whether it was the first one of its shard or a repeated one (first, again).", ["kind", "turn"], &[];
    watch_mode_changes_total: IntCounter = "{prefix}_watch_mode_changes_total", "Changes of the watch mode of this replica.", [], &[];
    }
}

crate::metrics! {
    /// Requests to the API server.
    pub struct ClientFamilies {
    rest_client_requests_total: IntCounterVec = "rest_client_requests_total", "Requests to the API server, by status code (`<error>`: no answer; `<cancelled>`: the caller stopped waiting) and HTTP method.", ["code", "method", "host"], &[];
    rest_client_request_duration_seconds: HistogramVec = "rest_client_request_duration_seconds", "Duration of a request until the headers of its answer; reads are split into GET, LIST and WATCH.", ["verb", "host"], RECONCILE_BUCKETS_SECONDS;
    rest_client_request_retries_total: IntCounterVec = "rest_client_request_retries_total", "Requests that were repeated because of the previous answer, by that answer; only lists and watches are repeated, by their watcher.", ["code", "verb", "host"], &[];
    }
}

crate::metrics! {
    /// The HTTP server.
    pub struct HttpMetrics {
    http_connections: IntGauge = "{prefix}_http_connections", "Connections open to this process's own HTTP server.", [], &[];
    http_evictions_total: IntCounter = "{prefix}_http_evictions_total", "Idle connections to this process's own HTTP server that were closed for new ones.", [], &[];
    }
}

crate::metrics! {
    /// The process, its cgroup and its asynchronous runtime.
    pub struct ProcessMetrics {
    build_info: IntGaugeVec = "{prefix}_build_info", "Always 1; version and source revision of this program.", ["version", "revision"], &[];
    tokio_workers: IntGauge = "{prefix}_tokio_workers", "Worker threads of the asynchronous runtime.", [], &[];
    tokio_alive_tasks: IntGauge = "{prefix}_tokio_alive_tasks", "Live tasks of the asynchronous runtime.", [], &[];
    tokio_global_queue_depth: IntGauge = "{prefix}_tokio_global_queue_depth", "Tasks in the global queue of the asynchronous runtime.", [], &[];
    tokio_busy_seconds_total: Counter = "{prefix}_tokio_busy_seconds_total", "Busy time of the worker threads of the asynchronous runtime, summed over them.", [], &[];
    panics_total: IntCounter = "{prefix}_panics_total", "Panics anywhere in this process, those of reconciles included.", [], &[];
    cgroup_memory_usage_bytes: IntGauge = "{prefix}_cgroup_memory_usage_bytes", "Memory charged to this process's cgroup, page cache included; 0: unknown.", [], &[];
    cgroup_memory_limit_bytes: IntGauge = "{prefix}_cgroup_memory_limit_bytes", "Lowest memory limit from this process's cgroup upwards; 0: none.", [], &[];
    cgroup_memory_working_set_bytes: IntGauge = "{prefix}_cgroup_memory_working_set_bytes", "Memory of this process's cgroup that cannot be reclaimed immediately: its usage less inactive page cache; 0: unknown.", [], &[];
    cgroup_cpu_seconds_total: Counter = "{prefix}_cgroup_cpu_seconds_total", "CPU time of this process's cgroup.", [], &[];
    cgroup_cpu_throttled_seconds_total: Counter = "{prefix}_cgroup_cpu_throttled_seconds_total", "Time for which this process's cgroup was throttled by its CPU limit.", [], &[];
    cgroup_cpu_limit_cores: Gauge = "{prefix}_cgroup_cpu_limit_cores", "Lowest CPU limit from this process's cgroup upwards, in cores; 0: none.", [], &[];
    process_cpu_seconds_total: Counter = "process_cpu_seconds_total", "CPU time of this process, user and system.", [], &[];
    process_resident_memory_bytes: IntGauge = "process_resident_memory_bytes", "Resident memory of this process.", [], &[];
    process_virtual_memory_bytes: IntGauge = "process_virtual_memory_bytes", "Virtual memory of this process.", [], &[];
    process_open_fds: IntGauge = "process_open_fds", "Open file descriptors of this process.", [], &[];
    process_max_fds: IntGauge = "process_max_fds", "Maximum number of open file descriptors of this process.", [], &[];
    process_start_time_seconds: Gauge = "process_start_time_seconds", "Start of this process, in seconds since the Unix epoch.", [], &[];
    process_threads: IntGauge = "process_threads", "Threads of this process.", [], &[];
    }
}

/// The metrics of the library's components, in one registry.
#[derive(Debug)]
pub struct Metrics {
    names: Names,
    registry: Registry,
    /// Queue and pool.
    pub pool: PoolMetrics,
    /// Ownership.
    pub fleet: FleetMetrics,
    /// Lists and watches.
    pub watch: WatchMetrics,
    /// Requests to the API server.
    pub client: ClientMetrics,
    /// The HTTP server.
    pub http: HttpMetrics,
    /// The process.
    pub process: ProcessMetrics,
}

impl Metrics {
    /// Registers everything with `registry`.
    ///
    /// # Errors
    /// When the registry has a family of the same name.
    pub fn register(registry: Registry, names: Names) -> prometheus::Result<Self> {
        let metrics = Self {
            pool: PoolMetrics::register(&registry, &names)?,
            fleet: FleetMetrics::register(&registry, &names)?,
            watch: WatchMetrics::register(&registry, &names)?,
            client: ClientMetrics {
                families: ClientFamilies::register(&registry, &names)?,
                api_server: OnceLock::new(),
            },
            http: HttpMetrics::register(&registry, &names)?,
            process: ProcessMetrics::register(&registry, &names)?,
            registry,
            names,
        };
        metrics.start_at_zero();
        Ok(metrics)
    }

    /// Every family that [`Self::register`] registers.
    #[must_use]
    pub fn catalogue() -> Vec<Described> {
        [
            PoolMetrics::CATALOGUE,
            FleetMetrics::CATALOGUE,
            WatchMetrics::CATALOGUE,
            ClientFamilies::CATALOGUE,
            HttpMetrics::CATALOGUE,
            ProcessMetrics::CATALOGUE,
        ]
        .concat()
    }

    /// Names of the operator that exports them.
    #[must_use]
    pub const fn names(&self) -> Names {
        self.names
    }

    /// Everything in the registry, in the Prometheus text format.
    ///
    /// # Errors
    /// When a family cannot be encoded, which means that it was registered wrongly.
    pub fn render(&self) -> prometheus::Result<String> {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Creates the series that are sure to come: a rate over a series that appears with its first
    /// event misses that event.
    fn start_at_zero(&self) {
        let controller = self.names.prefix;
        let (one, two) = (&[controller], &[controller, controller]);
        let pool = &self.pool;
        for family in [
            &pool.reconcile_errors_total,
            &pool.reconcile_panics_total,
            &pool.reconcile_timeouts_total,
        ] {
            family.with_label_values(one);
        }
        for result in ["success", "error", "requeue", "requeue_after"] {
            pool.reconcile_total
                .with_label_values(&[controller, result]);
        }
        pool.reconcile_time_seconds.with_label_values(one);
        for gauge in [&pool.active_workers, &pool.max_concurrent_reconciles] {
            gauge.with_label_values(one);
        }
        for family in [&pool.workqueue_adds_total, &pool.workqueue_retries_total] {
            family.with_label_values(two);
        }
        for family in [
            &pool.workqueue_queue_duration_seconds,
            &pool.workqueue_work_duration_seconds,
        ] {
            family.with_label_values(two);
        }
        for gauge in [
            &pool.workqueue_unfinished_work_seconds,
            &pool.workqueue_longest_running_processor_seconds,
        ] {
            gauge.with_label_values(two);
        }
        for cause in Cause::ALL {
            pool.reconcile_failures_total
                .with_label_values(&[cause.label()]);
        }
        for reason in Reason::ALL {
            self.fleet
                .shard_moves_total
                .with_label_values(&[reason.label()]);
        }
        self.fleet.shard_moves_total.with_label_values(&[GIVEN_UP]);
        self.fleet
            .leader
            .with_label_values(&[&self.names.leader_lease()]);
    }
}

/// Requests to the API server, with its address.
#[derive(Debug)]
pub struct ClientMetrics {
    /// The families.
    pub families: ClientFamilies,
    /// The API server's address, once there is a client.
    api_server: OnceLock<String>,
}

impl ClientMetrics {
    /// Sets the address that requests go to. All clients have one API server: the first one counts.
    pub(crate) fn set_api_server(&self, host: &str) {
        let _known = self.api_server.set(host.to_owned());
    }

    /// Counts a watch that is begun again because it ended before its time.
    pub(crate) fn watch_retried(&self, code: Option<u16>) {
        let host = self.api_server.get().map_or("unknown", String::as_str);
        let code = code.map_or("<error>", |code| code_label(&code.to_string()));
        self.families
            .rest_client_request_retries_total
            .with_label_values(&[code, "WATCH", host])
            .inc();
    }
}

impl FleetMetrics {
    /// The state of the fleet as this replica sees it; `None`: it does not know, and the series are
    /// absent.
    pub(crate) fn set_fleet(&self, overview: Option<Overview>) {
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

    /// The number of objects in each shard that is held, by the number of the shard.
    pub(crate) fn set_objects(&self, counts: &[usize]) {
        let held = labels_of(&self.shard_owned);
        for label in &held {
            let shard = label.parse().ok();
            if let Some(count) = shard.and_then(|shard: usize| counts.get(shard)) {
                let gauge = self.shard_objects.with_label_values(&[label]);
                gauge.set(i64::try_from(*count).unwrap_or(i64::MAX));
            }
        }
        // A shard may have gone meanwhile.
        for label in labels_of(&self.shard_objects).difference(&held) {
            let _absent = self.shard_objects.remove_label_values(&[label]);
        }
    }
}

/// The values that a family with one label has now. Asking it for one by value would create it.
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
    use crate::names::testing::NAMES;

    fn metrics() -> Metrics {
        Metrics::register(Registry::new(), NAMES).unwrap()
    }

    #[test]
    fn shard_has_objects_only_while_it_is_held_and_none_when_it_is_empty() {
        let metrics = metrics();
        metrics.fleet.shard_owned.with_label_values(&["1"]).set(1);
        let rendered = |counts: &[usize]| {
            metrics.fleet.set_objects(counts);
            let text = metrics.render().unwrap();
            let of = |line: &&str| line.starts_with("example_shard_objects{");
            text.lines()
                .filter(of)
                .map(ToOwned::to_owned)
                .collect::<Vec<_>>()
        };
        let line = |n: u8| vec![format!("example_shard_objects{{shard=\"1\"}} {n}")];
        assert_eq!(rendered(&[7, 3]), line(3));
        assert_eq!(rendered(&[7, 0]), line(0));
        assert_eq!(
            labels_of(&metrics.fleet.shard_owned).len(),
            1,
            "reading creates none"
        );
        metrics
            .fleet
            .shard_owned
            .remove_label_values(&["1"])
            .unwrap();
        assert_eq!(rendered(&[7, 3]), Vec::<String>::new());
    }

    #[test]
    fn unknown_state_of_the_fleet_is_absent_and_not_zero() {
        let metrics = metrics();
        let rendered = |overview| {
            metrics.fleet.set_fleet(overview);
            let text = metrics.render().unwrap();
            let line = |line: &&str| line.starts_with("example_shards_unowned");
            text.lines().find(line).map(ToOwned::to_owned)
        };
        assert_eq!(rendered(None), None);
        let known = Overview {
            unowned: 3,
            imbalance: 0,
        };
        let line = "example_shards_unowned 3";
        assert_eq!(rendered(Some(known)).as_deref(), Some(line));
        assert_eq!(rendered(None), None);
    }
}
