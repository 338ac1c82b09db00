//! Memory for a cached DatabaseCluster and its children, measured in a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use databasecluster_operator::watch::kinds::{Clusters, PartialMetadata, StatefulSets};
use databasecluster_operator::watch::store::Store;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};
use shard_ownership::hash::{Bucket, ShardCount};
use sharded_controller::watch::kinds::{Record as _, ShardCache as _, WatchedKind};

const CLUSTERS: usize = 10_000;
/// Seven objects: the DatabaseCluster, its StatefulSet, three Services, ConfigMap and budget.
const BYTES_MAX: usize = 1_500;

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

fn keep<K: WatchedKind<Store>>(store: &Store, object: &Value) {
    K::read(&object.to_string(), store)
        .unwrap()
        .unwrap()
        .upsert(store);
}

fn meta(name: &str, number: usize, bucket: Bucket) -> Value {
    let uid = |kind: usize| format!("{number:08x}-0000-4000-8000-{kind:012x}");
    json!({
        "name": name, "namespace": format!("team-{}", number % 20), "uid": uid(name.len()),
        "resourceVersion": (1_000_000 + number).to_string(), "generation": 1,
        "labels": {"database.io/bucket": bucket.to_string()},
        "annotations": {
            "database.io/fencing-token": "6d5f2a0e-6d7e-4c38-9d3b-5e0c3a8f1b27/003/17/databasecluster-operator-7d9f8b6c5-x2x4z/0b9d3f5e-8a52-4f4f-b0f5-7a2f54c1d9e6",
            "database.io/fingerprint": "0123456789abcdef", "database.io/generation": "1",
        },
        "ownerReferences": [{
            "apiVersion": "database.io/v1", "kind": "DatabaseCluster", "controller": true,
            "name": format!("orders-{number}"), "uid": uid(0),
        }],
        "managedFields": [{"manager": "x", "operation": "Apply", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:metadata": {"f:labels": {"f:database.io/bucket": {}}}}}],
    })
}

fn cluster(number: usize) -> Value {
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "reason": "AllReady", "observedGeneration": 1,
            "message": "3 of 3 instances are ready", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let mut meta = meta(&format!("orders-{number}"), number, Bucket(0));
    meta["finalizers"] = json!(["database.io/operator"]);
    json!({
        "apiVersion": "database.io/v1", "kind": "DatabaseCluster", "metadata": meta,
        "spec": {"replicas": 3, "image": "postgres:18", "resources": {"cpu": "250m", "memory": "256Mi"},
            "storage": {"size": "1Gi"}},
        "status": {"replicas": 3, "readyReplicas": 3, "observedGeneration": 1, "phase": "Ready",
            "selector": "app.kubernetes.io/instance=orders",
            "shard": {"table": "6d5f2a0e-6d7e-4c38-9d3b-5e0c3a8f1b27", "lease": "databasecluster-shard-003",
                "epoch": 17, "bucket": 30, "uid": "0b9d3f5e-8a52-4f4f-b0f5-7a2f54c1d9e6",
                "holder": "databasecluster-operator-7d9f8b6c5-x2x4z"},
            "conditions": [condition("Ready", "True"), condition("Progressing", "False"),
                condition("Degraded", "False")]},
    })
}

fn statefulset(name: &str, number: usize, bucket: Bucket) -> Value {
    json!({
        "metadata": meta(name, number, bucket),
        "spec": {"replicas": 3, "serviceName": name, "selector": {"matchLabels": {"a": "b"}},
            "template": {"spec": {"containers": [{"name": "postgres", "image": "postgres:18"}]}}},
        "status": {"observedGeneration": 1, "replicas": 3, "readyReplicas": 3, "updatedReplicas": 3,
            "availableReplicas": 3, "currentRevision": format!("{name}-5d4f7c9b8d"),
            "updateRevision": format!("{name}-5d4f7c9b8d")},
    })
}

#[test]
fn cluster_with_children_takes_a_few_kilobytes() {
    let store = Store::new(ShardCount::new(32).unwrap());
    let put = |number: usize| {
        let object = cluster(number);
        let bucket = Bucket::of(object["metadata"]["uid"].as_str().unwrap());
        keep::<Clusters>(&store, &object);
        let name = format!("orders-{number}");
        let set = statefulset(&format!("{name}-db"), number, bucket);
        keep::<StatefulSets>(&store, &set);
        for suffix in ["db", "rw", "r"] {
            let meta = meta(&format!("{name}-{suffix}"), number, bucket);
            keep::<PartialMetadata<Service>>(&store, &json!({"metadata": meta}));
        }
        let other = json!({"metadata": meta(&format!("{name}-db"), number, bucket)});
        keep::<PartialMetadata<ConfigMap>>(&store, &other);
        keep::<PartialMetadata<PodDisruptionBudget>>(&store, &other);
    };
    // The first ones also cause other allocations: buffers, code that is paged in.
    (0..100).for_each(put);
    let before = resident_bytes();
    (100..100 + CLUSTERS).for_each(put);
    let bytes = resident_bytes().saturating_sub(before) / CLUSTERS;
    println!("{bytes} bytes for each DatabaseCluster with six watched children");
    assert_eq!(store.counts().iter().sum::<usize>(), CLUSTERS + 100);
    assert!(bytes <= BYTES_MAX, "{bytes} bytes for each cluster");
    assert!(bytes > 500, "{bytes} bytes: nothing was measured");
}
