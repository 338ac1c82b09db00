//! The configuration for kube-state-metrics: its form, and what it makes of objects in each state.
#![allow(clippy::unwrap_used)]

use observability::catalogue::Catalogue;
use observability::custom_resource_state::Config;
use serde_json::{Value, json};

fn object(status: Value) -> Value {
    json!({
        "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {"replicas": 3, "image": "postgres:18"}, "status": status,
    })
}

#[test]
fn conditions_become_series_that_the_alert_knows() {
    let config = Config::read().unwrap();
    assert_eq!(config.kind, "CustomResourceStateMetrics");
    let kind = &config.spec.resources[0].group_version_kind;
    assert_eq!(
        (&*kind.group, &*kind.version, &*kind.kind),
        ("database.io", "v1", "DatabaseCluster")
    );
    let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason});
    let found = config
        .metrics(&object(json!({"readyReplicas": 2, "conditions": [
            condition("Available", "False", "PrimaryNotReady"),
            condition("Initialized", "True", "Initialized"),
        ]})))
        .unwrap();
    let text = |index: usize| {
        let series = &found[index];
        (series.name.as_str(), json!(series.labels), series.value)
    };
    let labels = |kind: &str, reason: &str| json!({"database": "orders", "database_namespace": "shop", "type": kind, "reason": reason});
    let name = "databasecluster_database_condition";
    assert_eq!(text(0), (name, labels("Available", "PrimaryNotReady"), 0.0));
    assert_eq!(text(1), (name, labels("Initialized", "Initialized"), 1.0));
    let own = json!({"database": "orders", "database_namespace": "shop"});
    assert_eq!(
        text(2),
        ("databasecluster_database_replicas", own.clone(), 3.0)
    );
    assert_eq!(
        text(3),
        ("databasecluster_database_ready_replicas", own, 2.0)
    );
    // The page lists each, with its labels.
    let catalogue = Catalogue::read_databases().unwrap();
    for series in &found {
        let family = catalogue.family_of(&series.name).unwrap();
        for label in series.labels.keys() {
            assert!(family.labels.contains(label), "{}: {label}", series.name);
        }
    }
    // Nothing was reported yet.
    let new = config.metrics(&object(json!(null))).unwrap();
    let names: Vec<&str> = new.iter().map(|series| series.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "databasecluster_database_replicas",
            "databasecluster_database_ready_replicas"
        ]
    );
}
