//! Metrics with the names of DatabaseClusters, which only `--cluster-metrics` switches on: the conditions of each
//! in the shards of this replica, of a bounded number of them.
//!
//! They are read from the store when they are scraped, so that a shard takes its series along.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, IntGaugeVec, Opts};

use crate::api::{Condition, ConditionStatus, ConditionType, DatabaseClusterStatus};
use crate::watch::store::Store;

/// Labels of the metric.
const LABELS: [&str; 4] = ["database_namespace", "database", "type", "reason"];
/// Types of conditions that are exported.
const TYPES: [ConditionType; 3] = [
    ConditionType::Available,
    ConditionType::Degraded,
    ConditionType::Initialized,
];
/// Longest value of the label `reason`, in bytes; the operator's own are shorter.
const REASON_LENGTH_MAX: usize = 64;

/// Exports the conditions of at most `most` DatabaseClusters; those whose primary is away come first.
pub(crate) struct DatabaseConditions {
    store: Arc<Store>,
    most: usize,
    /// Has no series of its own: each scrape fills a new one, so that nothing that is gone stays.
    conditions: IntGaugeVec,
    left_out: IntGauge,
}

fn conditions() -> prometheus::Result<IntGaugeVec> {
    let help = "1 while the condition of this type is True, 0 while it is not, with its reason; only with --cluster-metrics.";
    IntGaugeVec::new(
        Opts::new("databasecluster_database_condition", help),
        &LABELS,
    )
}

impl DatabaseConditions {
    /// Reads the store.
    ///
    /// # Errors
    /// When a name is not valid, which is a bug.
    pub(crate) fn new(store: Arc<Store>, most: usize) -> prometheus::Result<Self> {
        Ok(Self {
            store,
            most,
            conditions: conditions()?,
            left_out: IntGauge::new(
                "databasecluster_database_conditions_left_out",
                "DatabaseClusters of this replica for which --cluster-metrics left no room.",
            )?,
        })
    }

    fn fill(&self, family: &IntGaugeVec) {
        let mut all = Vec::new();
        self.store.visit_statuses(|key, status| {
            let available = status.condition(ConditionType::Available);
            let serves = available.is_some_and(|c| c.status == ConditionStatus::True);
            all.push((serves, key.clone()));
        });
        let left_out = all.len().saturating_sub(self.most);
        self.left_out
            .set(i64::try_from(left_out).unwrap_or(i64::MAX));
        if left_out > 0 {
            all.sort_unstable_by(|(a, one), (b, other)| {
                (a, &one.namespace, &one.name).cmp(&(b, &other.namespace, &other.name))
            });
            all.truncate(self.most);
        }
        for (_, key) in all {
            let Some(status) = self.store.status(&key) else {
                continue;
            };
            for condition in exported(&status) {
                let reason = condition.reason.as_str();
                let end = reason.floor_char_boundary(REASON_LENGTH_MAX);
                let reason = reason.get(..end).unwrap_or_default();
                let kind = condition.type_.label();
                let labels: [&str; 4] = [&key.namespace, &key.name, kind, reason];
                let value = condition.status == ConditionStatus::True;
                family.with_label_values(&labels).set(i64::from(value));
            }
        }
    }
}

fn exported(status: &DatabaseClusterStatus) -> impl Iterator<Item = &Condition> {
    let is_exported = |condition: &&Condition| TYPES.contains(&condition.type_);
    status.conditions.iter().filter(is_exported)
}

impl Collector for DatabaseConditions {
    fn desc(&self) -> Vec<&Desc> {
        [self.conditions.desc(), self.left_out.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(family) = conditions() else {
            return Vec::new();
        };
        self.fill(&family);
        [family.collect(), self.left_out.collect()].concat()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prometheus::{Registry, TextEncoder};
    use serde_json::json;
    use shard_ownership::hash::ShardCount;

    use super::*;
    use crate::api::DatabaseCluster;
    use crate::watch::observe;

    fn upsert(store: &Store, name: &str, available: &str, reason: &str) {
        let condition = |kind: &str, status: &str, reason: &str| {
            json!({"type": kind, "status": status, "reason": reason, "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let object: DatabaseCluster = serde_json::from_value(json!({
            "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
            "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": "1"},
            "spec": {"image": "postgres:18"},
            "status": {"conditions": [
                condition("Ready", "True", "AllInstancesReady"),
                condition("Available", available, reason),
                condition("Initialized", "True", "Initialized"),
            ]},
        }))
        .unwrap();
        store.upsert_cluster(observe::cluster(&object).unwrap());
    }

    fn scrape(registry: &Registry) -> String {
        TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap()
    }

    fn registry(store: &Arc<Store>, most: usize) -> Registry {
        let registry = Registry::new();
        let collector = DatabaseConditions::new(Arc::clone(store), most).unwrap();
        registry.register(Box::new(collector)).unwrap();
        registry
    }

    #[test]
    fn conditions_of_each_cluster_are_exported_and_go_with_it() {
        let store = Arc::new(Store::new(ShardCount::new(32).unwrap()));
        let registry = registry(&store, 10);
        upsert(&store, "orders", "True", "PrimaryReady");
        let text = scrape(&registry);
        for line in [
            r#"databasecluster_database_condition{database="orders",database_namespace="shop",reason="PrimaryReady",type="Available"} 1"#,
            r#"databasecluster_database_condition{database="orders",database_namespace="shop",reason="Initialized",type="Initialized"} 1"#,
            "databasecluster_database_conditions_left_out 0",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(!text.contains("type=\"Ready\""), "{text}");
        upsert(&store, "orders", "False", "PrimaryNotReady");
        let text = scrape(&registry);
        assert!(text.contains(r#"reason="PrimaryNotReady",type="Available"} 0"#));
        assert!(!text.contains("PrimaryReady\","), "{text}");
        let key = sharded_controller::object::ObjectKey::new("shop", "orders");
        assert!(store.remove_cluster(&key, "orders"));
        assert!(!scrape(&registry).contains("orders"));
    }

    #[test]
    fn number_of_series_is_bounded_and_those_that_do_not_serve_come_first() {
        let store = Arc::new(Store::new(ShardCount::new(32).unwrap()));
        for number in 0..20 {
            upsert(&store, &format!("db-{number:02}"), "True", "PrimaryReady");
        }
        let long = "x".repeat(1000);
        upsert(&store, "zz", "False", &long);
        let text = scrape(&registry(&store, 3));
        let series = |line: &&str| line.starts_with("databasecluster_database_condition{");
        assert_eq!(text.lines().filter(series).count(), 6, "{text}");
        assert!(text.contains("database=\"zz\"") && text.contains("database=\"db-01\""));
        assert!(!text.contains("db-02") && !text.contains(&long), "{text}");
        assert!(text.contains("databasecluster_database_conditions_left_out 18"));
    }
}
