//! Micro-benchmarks of what a replica does for each object, with the growth from 1,000 to 1,000,000 objects where there
//! is any: `make bench-micro`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use databasecluster_operator::api::DatabaseCluster;
use databasecluster_operator::core::observed::ClusterRecord;
use databasecluster_operator::postgres::Source;
use databasecluster_operator::watch::kinds::{Clusters, PartialMetadata, StatefulSets};
use databasecluster_operator::watch::observe;
use databasecluster_operator::watch::store::Store;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use shard_ownership::benchmarks::RankedMembers;
use shard_ownership::hash::{Bucket, ShardCount, ShardId};
use shard_ownership::token::FencingToken;
use sharded_controller::benchmarks::ReplicaQueue;
use sharded_controller::object::ObjectKey;
use sharded_controller::watch::kinds::{Record as _, WatchedKind};

const SIZES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
const SHARDS: u16 = 32;

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    // The whole run takes minutes: fewer samples than criterion's default, each of some milliseconds.
    group.sample_size(20);
    group.warm_up_time(Duration::from_millis(300));
    group.measurement_time(Duration::from_secs(1));
    group
}

fn uid(number: usize) -> String {
    format!(
        "{number:08x}-5c1f-4b7e-9d32-{:012x}",
        number.wrapping_mul(2_654_435_761)
    )
}

fn key(number: usize) -> ObjectKey {
    ObjectKey::new("team-a", &format!("orders-{number}"))
}

/// One object is started, ends and is due again, in a queue of so many; and one is added that is there already.
fn queue(criterion: &mut Criterion) {
    let mut group = group(criterion, "queue");
    for size in SIZES {
        let limit = "1000000/1s".parse().unwrap();
        let mut queue = ReplicaQueue::new(size + 1, limit, SHARDS);
        for number in 0..size {
            let shard = ShardId(u16::try_from(number % usize::from(SHARDS)).unwrap());
            assert!(queue.add(shard, &key(number), number as u64));
        }
        let mut now_ms = 0;
        group.bench_function(BenchmarkId::new("start and end a run", size), |bencher| {
            bencher.iter(|| {
                now_ms += 1;
                black_box(queue.cycle(now_ms, now_ms + size as u64))
            });
        });
        let known = key(size / 2);
        let shard = ShardId(u16::try_from(size / 2 % usize::from(SHARDS)).unwrap());
        group.bench_function(BenchmarkId::new("add a known object", size), |bencher| {
            bencher.iter(|| black_box(queue.add(shard, &known, u64::MAX)));
        });
    }
}

/// Ranking is done when a member comes or goes; placing at each change of a Lease.
fn ring(criterion: &mut Criterion) {
    let mut group = group(criterion, "ring");
    for (members, shards) in [(3, 32), (10, 64), (50, 256), (200, 256)] {
        let names: Vec<String> = (0..members)
            .map(|number| format!("databasecluster-operator-6d4f9c-{number:05}"))
            .collect();
        let count = ShardCount::new(shards).unwrap();
        let what = format!("{members} members, {shards} shards");
        group.bench_function(BenchmarkId::new("rank", &what), |bencher| {
            bencher.iter(|| RankedMembers::new(count, black_box(&names)));
        });
        let ranked = RankedMembers::new(count, &names);
        let placed = ranked.place(&BTreeMap::new());
        let held = count.shards().zip(&placed);
        let held = held.filter_map(|(shard, name)| Some((shard, name.as_deref()?)));
        let held: BTreeMap<ShardId, &str> = held.collect();
        group.bench_function(BenchmarkId::new("place", &what), |bencher| {
            bencher.iter(|| ranked.place(black_box(&held)));
        });
    }
}

/// The shards of so many objects.
fn hash(criterion: &mut Criterion) {
    let mut group = group(criterion, "hash");
    let count = ShardCount::new(u64::from(SHARDS)).unwrap();
    for size in SIZES {
        let uids: Vec<String> = (0..size).map(uid).collect();
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::new("shards of all objects", size), |bencher| {
            bencher.iter(|| {
                let shards = uids.iter().map(|uid| count.shard_of(Bucket::of(uid)).0);
                shards.map(u64::from).sum::<u64>()
            });
        });
    }
}

fn meta(name: &str, uid: &str) -> Value {
    json!({
        "name": name, "namespace": "team-a", "uid": uid,
        "resourceVersion": "1234567", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {
            "app.kubernetes.io/name": "postgresql", "app.kubernetes.io/instance": "orders",
            "app.kubernetes.io/component": "database", "app.kubernetes.io/managed-by": "databasecluster-operator",
            "database.io/bucket": Bucket::of(uid).to_string(),
        },
        "annotations": {
            "database.io/fencing-token": "6d5f2a0e-6d7e-4c38-9d3b-5e0c3a8f1b27/003/17/databasecluster-operator-7d9f8b6c5-x2x4z/0b9d3f5e-8a52-4f4f-b0f5-7a2f54c1d9e6",
            "database.io/fingerprint": "0123456789abcdef", "database.io/generation": "1",
        },
        "ownerReferences": [{
            "apiVersion": "database.io/v1", "kind": "DatabaseCluster", "controller": true,
            "name": "orders", "uid": "0b9d3f5e-8a52-4f4f-b0f5-7a2f54c1d9e6",
        }],
        "managedFields": [{"manager": "databasecluster-operator", "operation": "Apply", "apiVersion": "v1",
            "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:metadata": {"f:labels": {"f:database.io/bucket": {}}, "f:annotations": {
                "f:database.io/fencing-token": {}, "f:database.io/fingerprint": {}, "f:database.io/generation": {}}}}}],
    })
}

fn cluster() -> Value {
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "reason": "AllReady", "observedGeneration": 1,
            "message": "3 of 3 instances are ready", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let mut meta = meta("orders", "0b9d3f5e-8a52-4f4f-b0f5-7a2f54c1d9e6");
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
                condition("Degraded", "False"), condition("Initialized", "True")]},
    })
}

fn record() -> ClusterRecord {
    let typed: DatabaseCluster = serde_json::from_value(cluster()).unwrap();
    observe::cluster(&typed).unwrap()
}

fn source(cluster: &ClusterRecord) -> Source<'_> {
    Source {
        cluster,
        claim: None,
        initialized: true,
    }
}

fn token() -> FencingToken {
    FencingToken {
        table: "6d5f2a0e-6d7e-4c38-9d3b-5e0c3a8f1b27".into(),
        shard: ShardId(3),
        epoch: 17,
        holder: "databasecluster-operator-7d9f8b6c5-x2x4z".into(),
    }
}

/// A StatefulSet as the operator renders it and the API server completes it, as far as it matters here.
fn statefulset() -> Value {
    let record = record();
    let source = source(&record);
    let manifests = source.children().into_iter();
    let mut manifests =
        manifests.filter_map(|child| serde_json::to_value(source.manifest(&child, &token())?).ok());
    let mut set = manifests
        .find(|manifest| manifest["kind"] == "StatefulSet")
        .unwrap();
    set["metadata"]["uid"] = json!("5f0e4d3c-8a52-4f4f-b0f5-7a2f54c1d9e6");
    set["metadata"]["resourceVersion"] = json!("1234567");
    set["metadata"]["generation"] = json!(1);
    set["status"] = json!({"observedGeneration": 1, "replicas": 3, "readyReplicas": 3, "updatedReplicas": 3,
        "availableReplicas": 3, "currentRevision": "orders-db-5d4f7c9b8d", "updateRevision": "orders-db-5d4f7c9b8d"});
    set
}

/// An object of a watch, from the bytes of its line to the record that is kept; and one more into a store of so many.
fn decode(criterion: &mut Criterion) {
    let mut group = group(criterion, "decode");
    let store = Store::new(ShardCount::DEFAULT);
    let object = cluster().to_string();
    group.throughput(Throughput::Bytes(object.len() as u64));
    group.bench_function("a DatabaseCluster", |bencher| {
        bencher.iter(|| <Clusters as WatchedKind<Store>>::read(black_box(&object), &store));
    });
    let object = statefulset().to_string();
    group.throughput(Throughput::Bytes(object.len() as u64));
    group.bench_function("a StatefulSet", |bencher| {
        bencher.iter(|| StatefulSets::read(black_box(&object), &store));
    });
    let child = json!({"metadata": meta("orders-db", "5f0e4d3c-8a52-4f4f-b0f5-7a2f54c1d9e7")});
    let object = child.to_string();
    group.throughput(Throughput::Bytes(object.len() as u64));
    group.bench_function("the metadata of a ConfigMap", |bencher| {
        bencher.iter(|| PartialMetadata::<ConfigMap>::read(black_box(&object), &store));
    });
    drop(group);
    keep(criterion);
}

fn keep(criterion: &mut Criterion) {
    let mut group = group(criterion, "store");
    for size in SIZES {
        let store = Store::new(ShardCount::DEFAULT);
        let put = |number: usize| {
            let name = format!("orders-{number}-db");
            let object = json!({"metadata": meta(&name, &uid(number))});
            let raw = object.to_string();
            PartialMetadata::<ConfigMap>::read(&raw, &store)
                .unwrap()
                .unwrap()
                .upsert(&store);
        };
        (0..size).for_each(put);
        let name = format!("orders-{}-db", size / 2);
        let object = json!({"metadata": meta(&name, &uid(size / 2))});
        let raw = object.to_string();
        group.bench_function(
            BenchmarkId::new("decode and replace a child", size),
            |bencher| {
                bencher.iter(|| {
                    let record = PartialMetadata::<ConfigMap>::read(&raw, &store)
                        .unwrap()
                        .unwrap();
                    black_box(record).upsert(&store);
                });
            },
        );
    }
}

/// What a reconcile renders: to find out whether anything differs, and to write it.
fn render(criterion: &mut Criterion) {
    let mut group = group(criterion, "render");
    let record = record();
    group.bench_function("all children, with fingerprints", |bencher| {
        bencher.iter(|| source(black_box(&record)).children());
    });
    let children = source(&record).children();
    let token = token();
    group.bench_function("the manifests of all children", |bencher| {
        bencher.iter(|| {
            let source = source(black_box(&record));
            let manifests = children.iter().map(|child| source.manifest(child, &token));
            manifests.flatten().count()
        });
    });
}

/// The digest of what the API server has, which is compared with that of what should be.
fn digest(criterion: &mut Criterion) {
    let mut group = group(criterion, "digest");
    let set: StatefulSet = serde_json::from_value(statefulset()).unwrap();
    group.bench_function("a StatefulSet", |bencher| {
        bencher.iter(|| observe::statefulset(black_box(&set), None));
    });
}

criterion_group!(benches, queue, ring, hash, decode, render, digest);
criterion_main!(benches);
