//! Objects with our names that are not ours.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

fn foreign(path: &str, kind: &str, owner: Option<(&str, &str)>) -> Value {
    let name = path.rsplit('/').next().unwrap();
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"theirs": true},
    });
    if let Some((kind, name)) = owner {
        let api_version = if kind == "DatabaseCluster" {
            "database.io/v1"
        } else {
            "x/v1"
        };
        object["metadata"]["ownerReferences"] = json!([{
            "apiVersion": api_version, "kind": kind, "name": name, "uid": "their-uid",
            "controller": true,
        }]);
    }
    object
}

#[tokio::test]
async fn foreign_statefulset_is_never_touched_and_is_named() {
    for owner in [None, Some(("Kafka", "events"))] {
        let world = World::new();
        let theirs = foreign(STATEFULSET, "StatefulSet", owner);
        let theirs = world.fake.with(|state| state.put(STATEFULSET, theirs));
        world.user_applies(json!({"image": "postgres:18"}));
        for _ in 0..2 {
            let failure = world.reconcile().await.unwrap_err();
            let Failure::Failed { cause, message } = failure else {
                panic!("{failure:?}");
            };
            assert_eq!(cause, Cause::ForeignChild);
            let name = owner.map_or("StatefulSet orders-db", |(_, name)| name);
            assert!(message.contains(name), "{message}");
        }
        assert_eq!(world.object(STATEFULSET), Some(theirs));
        let (status, reason, message) = world.condition(ConditionType::Degraded);
        assert_eq!(
            (status, reason.as_str()),
            (ConditionStatus::True, "ForeignChild")
        );
        let owner_named =
            owner.is_none_or(|(kind, name)| message.contains(&format!("{kind} {name}")));
        assert!(owner_named, "{message}");
        assert_eq!(
            world.notes(),
            [format!("Warning DatabaseError ForeignChild: {message}")]
        );
        // Only the second time it costs no status and no event.
        let writes = world.requests();
        let statuses = writes
            .iter()
            .filter(|line| line.ends_with("/status"))
            .count();
        assert_eq!(statuses, 1, "{writes:?}");

        world.fake.with(|state| state.objects.remove(STATEFULSET));
        world.reconcile().await.unwrap();
        assert_eq!(world.phase(), Phase::Scaling);
        world.set_pods(1, 1);
        world.reconcile().await.unwrap();
        assert_eq!(world.phase(), Phase::Ready);
    }
}

#[tokio::test]
async fn leftovers_of_a_former_cluster_of_the_same_name_are_awaited() {
    let world = World::new();
    let owner = Some(("DatabaseCluster", "orders"));
    let theirs = foreign(STATEFULSET, "StatefulSet", owner);
    world.fake.with(|state| state.put(STATEFULSET, theirs));
    world.user_applies(json!({"image": "postgres:18"}));
    let outcome = world.reconcile().await.unwrap();
    assert!(
        matches!(outcome.next, Next::RequeueAfter { .. }),
        "{outcome:?}"
    );
    let (status, reason, message) = world.condition(ConditionType::Progressing);
    assert_eq!(
        (status, reason.as_str()),
        (ConditionStatus::True, "WaitingForFormerCluster")
    );
    assert!(message.contains("former"), "{message}");
    assert_eq!(
        world.condition(ConditionType::Degraded).0,
        ConditionStatus::False
    );
    assert_eq!(world.notes(), [""; 0]);
}

#[tokio::test]
async fn terminating_leftovers_in_other_shards_are_awaited() {
    let world = World::new();
    let owner = Some(("DatabaseCluster", "orders"));
    let mut theirs = foreign(READ, "Service", owner);
    theirs["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    theirs["metadata"]["finalizers"] = json!(["example.com/hold"]);
    world.fake.with(|state| state.put(READ, theirs));
    world.user_applies(json!({"image": "postgres:18"}));
    for _ in 0..20 {
        let outcome = world.reconcile().await.unwrap();
        assert!(
            matches!(outcome.next, Next::RequeueAfter { .. }),
            "{outcome:?}"
        );
    }
    let (_, reason, message) = world.condition(ConditionType::Progressing);
    assert_eq!(reason, "WaitingForFormerCluster");
    assert!(message.contains("Service orders-r "), "{message}");
    assert_eq!(world.object(STATEFULSET), None);
    assert_eq!(
        world.object(SECRET),
        None,
        "it may still belong to the former cluster"
    );
    world.fake.with(|state| state.objects.remove(READ));
    world.reconcile().await.unwrap();
    assert!(world.object(STATEFULSET).is_some());
}

/// kubectl delete --cascade=orphan, or a backup that dropped ownerReferences and status: every object
/// exists with its labels and annotations, and has no owner. A new uid lies in another bucket.
async fn orphaned(replicas: i32) -> World {
    let world = World::with_ready_cluster(replicas).await;
    for path in [STATEFULSET, CONFIG, SERVICE, READ, READ_WRITE, BUDGET] {
        if world.object(path).is_some() {
            world.change(path, |child| {
                let theirs =
                    json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x"}]);
                child["metadata"]["ownerReferences"] = theirs;
            });
        }
    }
    world.fake.with(|state| state.objects.remove(CLUSTER));
    world
}

#[tokio::test]
async fn orphans_are_adopted_without_a_change_of_their_pods() {
    for in_sight in [true, false] {
        let world = orphaned(2).await;
        let before = world.object(STATEFULSET).unwrap()["spec"].clone();
        world.user_applies(json!({"image": "postgres:18", "replicas": 2}));
        let uid = world.cluster().uid.to_string();
        let world = World::on(world.fake.clone(), 2);
        for _ in 0..12 {
            // In another shard, the watch does not show them until they have our bucket.
            world.watch();
            let bucket = world.cluster().bucket;
            if !in_sight {
                world.hide_others(bucket);
            }
            let reconciler = &world.reconciler;
            reconciler
                .reconcile(&key(), &world.permit, &IDLE)
                .await
                .unwrap();
        }
        assert_eq!(world.phase(), Phase::Ready, "{in_sight}");
        for path in [STATEFULSET, CONFIG, SERVICE, READ, READ_WRITE, BUDGET] {
            let child = world.object(path).unwrap();
            let owners = child["metadata"]["ownerReferences"].as_array().unwrap();
            assert!(owners.iter().any(|owner| owner["uid"] == uid), "{path}");
            let bucket = world.cluster().bucket.to_string();
            assert_eq!(child["metadata"]["labels"]["database.io/bucket"], bucket);
        }
        assert_eq!(world.object(STATEFULSET).unwrap()["spec"], before);
        // The restore dropped the status: that there is data is still known.
        assert_eq!(world.object(CONFIG).unwrap()["data"]["initialized"], "true");
        let deleted = world
            .requests()
            .iter()
            .any(|line| line.starts_with("DELETE"));
        assert!(!deleted);
    }
}

#[tokio::test]
async fn an_orphan_that_is_not_wanted_any_more_is_adopted_and_deleted() {
    let world = orphaned(2).await;
    world.user_applies(json!({"image": "postgres:18", "replicas": 1}));
    world.reconcile().await.unwrap();
    let budget = world.object(BUDGET).unwrap();
    assert!(budget["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(budget["metadata"]["ownerReferences"][0]["controller"], true);
}

#[tokio::test]
async fn a_lost_owner_reference_is_put_back_in_the_next_run() {
    for path in [STATEFULSET, CONFIG, SERVICE, READ, READ_WRITE, BUDGET] {
        let world = World::with_ready_cluster(2).await;
        let owners = world.object(path).unwrap()["metadata"]["ownerReferences"].clone();
        world.change(path, |child| {
            child["metadata"]["ownerReferences"] = json!([])
        });
        world.reconcile().await.unwrap();
        let child = world.object(path).unwrap();
        assert_eq!(child["metadata"]["ownerReferences"], owners, "{path}");
        let writes = world.requests();
        assert!(writes.contains(&format!("PATCH {path}")), "{writes:?}");
    }
}

#[tokio::test]
async fn objects_without_the_operators_mark_are_not_adopted() {
    for mark in ["managed-by", "bucket", "fingerprint"] {
        let world = orphaned(1).await;
        world.change(READ, |child| {
            let meta = &mut child["metadata"];
            let map = if mark == "fingerprint" {
                "annotations"
            } else {
                "labels"
            };
            let map = meta[map].as_object_mut().unwrap();
            map.retain(|name, _| !name.ends_with(mark));
            meta["ownerReferences"] = json!([]);
        });
        let theirs = world.object(READ);
        world.user_applies(json!({"image": "postgres:18", "replicas": 1}));
        for _ in 0..12 {
            let _refused = world.reconcile().await;
        }
        assert_eq!(world.object(READ), theirs, "{mark}");
        assert_eq!(world.condition(ConditionType::Degraded).1, "ForeignChild");
    }
}
