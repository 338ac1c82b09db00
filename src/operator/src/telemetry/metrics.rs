//! The metrics of this operator beside those of the library, and the catalogue of both.

use prometheus::{Histogram, IntCounter, IntGauge, IntGaugeVec};
use sharded_controller::metrics::{Described, Metrics};

const CONVERGENCE_BUCKETS_SECONDS: &[f64] = &[
    0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0,
];

sharded_controller::metrics! {
    /// What the reconciler measures.
    pub struct ReconcilerMetrics {
    convergence_seconds: Histogram = "{prefix}_convergence_seconds", "Time from observing a change of the spec to Ready.", [], CONVERGENCE_BUCKETS_SECONDS;
    clusters: IntGaugeVec = "{prefix}_clusters", "DatabaseClusters of this replica, by phase.", ["phase"], &[];
    cache_hits_total: IntCounter = "{prefix}_cache_hits_total", "Lookups answered by the cache.", [], &[];
    cache_misses_total: IntCounter = "{prefix}_cache_misses_total", "Lookups answered by the API server.", [], &[];
    cache_entries: IntGauge = "{prefix}_cache_entries", "Entries in the lookup cache.", [], &[];
    cache_capacity: IntGauge = "{prefix}_cache_capacity", "Configured maximum number of entries in the lookup cache.", [], &[];
    }
}

/// Every metric that a replica exports.
#[must_use]
pub fn catalogue() -> Vec<Described> {
    [&Metrics::catalogue(), ReconcilerMetrics::CATALOGUE].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prometheus::Registry;

    use super::*;
    use crate::api::names::NAMES;
    use crate::telemetry::metrics_labels::series_most;

    #[test]
    fn names_follow_the_rules_of_the_field() {
        for metric in catalogue() {
            let name = metric.name(&NAMES);
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
    fn rendered_metrics_are_those_of_the_catalogue() {
        let registry = Registry::new();
        let metrics = Metrics::register(registry.clone(), NAMES).unwrap();
        let _of_the_reconciler = ReconcilerMetrics::register(&registry, &NAMES).unwrap();
        metrics.fleet.shard_owned.with_label_values(&["7"]).set(1);
        let text = metrics.render().unwrap();
        assert!(text.contains("databasecluster_shard_owned{shard=\"7\"} 1\n"));
        assert!(text.contains(
            "controller_runtime_reconcile_errors_total{controller=\"databasecluster\"} 0\n"
        ));
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(series <= series_most(32), "{series} series");
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            let catalogue = catalogue();
            let found = catalogue.iter().find(|metric| metric.name(&NAMES) == name);
            assert_eq!(found.unwrap().kind, kind, "{name}");
        }
    }
}
