//! Tests of the store and of the conversions into it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::json;

use super::observe;
use super::store::Store;
use crate::api::{DatabaseCluster, Phase};
use crate::core::child::{ChildId, ChildKind};
use crate::core::observed::{ChildRecord, ClusterRecord};
use shard_ownership::hash::{Bucket, ShardCount, ShardId};
use sharded_controller::object::ObjectKey;
use sharded_controller::watch::kinds::ShardCache as _;

fn cluster(name: &str, uid: &str) -> ClusterRecord {
    let object: DatabaseCluster = serde_json::from_value(json!({
        "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
        "metadata": {"name": name, "namespace": "shop", "uid": uid, "resourceVersion": "5"},
        "spec": {"image": "postgres:18"},
    }))
    .unwrap();
    observe::cluster(&object).unwrap()
}

fn child(name: &str, uid: &str, bucket: Bucket) -> ChildRecord {
    let meta = serde_json::from_value(json!({
        "name": name, "namespace": "shop", "uid": uid, "resourceVersion": "5",
        "labels": {"database.io/bucket": bucket.to_string()},
    }))
    .unwrap();
    observe::child(ChildKind::Service, &meta).unwrap()
}

fn store() -> Store {
    Store::new(ShardCount::new(32).unwrap())
}

fn shard_of(uid: &str) -> ShardId {
    ShardCount::new(32).unwrap().shard_of(Bucket::of(uid))
}

#[test]
fn a_late_removal_does_not_remove_the_successor_of_the_same_name() {
    let store = store();
    store.upsert_cluster(cluster("a", "old"));
    store.upsert_cluster(cluster("a", "new"));
    let key = ObjectKey::new("shop", "a");
    assert!(!store.remove_cluster(&key, "old"));
    assert_eq!(&*store.cluster(&key).unwrap().uid, "new");
    assert!(store.remove_cluster(&key, "new"));
    assert_eq!(store.cluster(&key), None);

    store.upsert_child(child("a-db", "new", Bucket(3)));
    let key = ObjectKey::new("shop", "a-db");
    assert!(!store.remove_child(ChildKind::Service, &key, "old"));
    assert!(!store.remove_child(ChildKind::Secret, &key, "new"));
    assert!(store.remove_child(ChildKind::Service, &key, "new"));
}

#[test]
fn a_purged_shard_leaves_nothing_and_the_others_stay() {
    let store = store();
    for n in 0..200 {
        let uid = format!("uid-{n}");
        store.upsert_cluster(cluster(&format!("c{n}"), &uid));
        store.upsert_child(child(
            &format!("c{n}-db"),
            &format!("s{n}"),
            Bucket::of(&uid),
        ));
    }
    let shard = shard_of("uid-0");
    let gone = store.count(shard);
    assert!(gone > 0);
    assert_eq!(store.keys(shard).len(), gone);
    assert_eq!(store.counts()[usize::from(shard.0)], gone);
    store.purge_shard(shard);
    assert_eq!(store.count(shard), 0);
    assert_eq!(store.counts().iter().sum::<usize>(), 200 - gone);
    let id = ChildId {
        kind: ChildKind::Service,
        name: "c0-db".into(),
    };
    assert_eq!(store.child(&"shop".into(), &id), None);
}

#[test]
fn counts_follow_every_change_of_a_cluster() {
    let store = store();
    let put = |uid: &str, phase: Option<Phase>| {
        let mut record = cluster("a", uid);
        record.status.phase = phase;
        store.upsert_cluster(record);
        let phases = store.phases();
        let found = phases.into_iter().filter(|(_, number)| *number > 0);
        let counted: Vec<_> = found.collect();
        assert_eq!(store.counts().iter().sum::<usize>(), 1);
        assert_eq!(store.count(shard_of(uid)), 1);
        let degraded = phase == Some(Phase::Degraded);
        assert_eq!(store.degraded(8).len(), usize::from(degraded), "{phase:?}");
        counted
    };
    assert_eq!(put("u", None), [(Phase::Creating, 1)]);
    for phase in Phase::ALL {
        assert_eq!(put("u", Some(phase)), [(phase, 1)]);
    }
    // Its name is given to another, which lies in another shard.
    let others = (0..).map(|n| format!("other-{n}"));
    let other = others
        .into_iter()
        .find(|uid| shard_of(uid) != shard_of("u"));
    let other = other.unwrap();
    assert_eq!(put(&other, Some(Phase::Ready)), [(Phase::Ready, 1)]);
    put("u", Some(Phase::Degraded));
    store.purge_shard(shard_of("u"));
    assert!(store.degraded(8).is_empty());
    put(&other, Some(Phase::Degraded));
    assert_eq!(store.degraded(8), [ObjectKey::new("shop", "a")]);
    store.purge_shard(shard_of("u"));
    assert_eq!(store.count(shard_of(&other)), 1);
    assert!(store.remove_cluster(&ObjectKey::new("shop", "a"), &other));
    assert!(store.degraded(8).is_empty());
    assert_eq!(store.counts().iter().sum::<usize>(), 0);
    assert!(store.phases().iter().all(|(_, number)| *number == 0));
}

#[test]
fn phases_are_counted_and_a_cluster_without_one_is_being_created() {
    let store = store();
    store.upsert_cluster(cluster("a", "u1"));
    let mut ready = cluster("b", "u2");
    ready.status.phase = Some(Phase::Ready);
    store.upsert_cluster(ready);
    let phases = store.phases();
    assert!(phases.contains(&(Phase::Creating, 1)), "{phases:?}");
    assert!(phases.contains(&(Phase::Ready, 1)), "{phases:?}");
    assert_eq!(phases.iter().map(|(_, count)| count).sum::<usize>(), 2);
}

#[test]
fn objects_written_by_newer_versions_are_readable() {
    let object: DatabaseCluster = serde_json::from_value(json!({
        "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
        "metadata": {"name": "a", "namespace": "shop", "uid": "u", "resourceVersion": "5"},
        "spec": {"image": "postgres:18", "future": true},
        "status": {"phase": "Hibernating", "conditions": [{
            "type": "Backed", "status": "Perhaps", "reason": "R", "message": "M",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]},
    }))
    .unwrap();
    let record = observe::cluster(&object).unwrap();
    assert_eq!(record.status.phase, None);
    assert_eq!(record.status.conditions.len(), 1);
}

#[test]
fn closed_shard_stores_nothing_and_returns_nothing() {
    let store = store();
    let (uid, key) = ("u", ObjectKey::new("shop", "a"));
    let shard = shard_of(uid);
    let ticket = store.tickets().open(shard, "databaseclusters");
    let put = |ticket| {
        store.tickets().with(shard, ticket, || {
            store.upsert_cluster(cluster("a", uid));
        })
    };
    assert!(put(ticket).is_some());
    // Of another kind: this one stays in force.
    let children = store.tickets().open(shard, "services");
    assert!(put(ticket).is_some());
    let newer = store.tickets().open(shard, "databaseclusters");
    assert!(store.cluster(&key).is_some(), "what was brought stays");
    assert!(put(ticket).is_none() && put(newer).is_some());
    store.tickets().close(shard);
    store.purge_shard(shard);
    assert_eq!(store.cluster(&key), None);
    assert!(put(newer).is_none() && put(children).is_none());
    assert_eq!(store.cluster(&key), None);
}

#[test]
fn newer_object_of_the_same_name_in_two_shards_wins() {
    use sharded_controller::watch::kinds::Record as _;
    let store = store();
    let other = (0..).map(|n| format!("other-{n}"));
    let other = other.into_iter().find(|uid| shard_of(uid) != shard_of("u"));
    let mut newer = cluster("a", &other.unwrap());
    newer.resource_version = "10".into();
    store.upsert_cluster(newer.clone());
    let mut former = cluster("a", "u");
    former.resource_version = "9".into();
    assert!(former.is_outdated(&store));
    former.resource_version = "11".into();
    assert!(!former.is_outdated(&store));
    // Within a shard the order is that of one watch; after a restored backup versions start lower.
    newer.resource_version = "3".into();
    assert!(!newer.is_outdated(&store));
    let key = ObjectKey::new("shop", "a");
    assert_eq!(
        ClusterRecord::remove(&store, &key, None, Bucket::of("u")),
        None
    );
    assert!(
        store.cluster(&key).is_some(),
        "removed by the former one's shard"
    );
}

#[test]
fn child_without_controller_enqueues_the_adopting_cluster() {
    use super::kinds::PartialMetadata;
    use k8s_openapi::api::core::v1::Service;
    use sharded_controller::watch::kinds::{Record as _, WatchedKind as _};
    let store = store();
    let key = |labels: serde_json::Value, owners: serde_json::Value| {
        let object = json!({"metadata": {
            "name": "orders-rw", "namespace": "shop", "uid": "s", "resourceVersion": "5",
            "labels": labels, "ownerReferences": owners,
            "annotations": {"database.io/fingerprint": "0123456789abcdef"},
        }});
        let record = PartialMetadata::<Service>::read(&object.to_string(), &store)
            .unwrap()
            .unwrap();
        record.owner_key()
    };
    let ours = json!({
        "database.io/bucket": "7", "app.kubernetes.io/managed-by": "databasecluster-operator",
    });
    let orders = Some(ObjectKey::new("shop", "orders"));
    assert_eq!(key(ours.clone(), json!(null)), orders);
    let dependent = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x"}]);
    assert_eq!(key(ours.clone(), dependent), orders);
    let other = json!([{
        "apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x", "controller": true,
    }]);
    assert_eq!(key(ours, other), None, "it belongs to someone else");
    assert_eq!(key(json!({"database.io/bucket": "7"}), json!(null)), None);
}
