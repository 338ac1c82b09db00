//! Objects of our names that are not ours.
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
async fn a_statefulset_of_someone_else_is_never_touched_and_is_named() {
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
async fn what_a_former_cluster_of_this_name_left_is_waited_for() {
    let world = World::new();
    let owner = Some(("DatabaseCluster", "orders"));
    let theirs = foreign(STATEFULSET, "StatefulSet", owner);
    world.fake.with(|state| state.put(STATEFULSET, theirs));
    world.user_applies(json!({"image": "postgres:18"}));
    let outcome = world.reconcile().await.unwrap();
    assert!(matches!(outcome.next, Next::After { .. }), "{outcome:?}");
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
async fn what_a_former_cluster_left_in_a_shard_of_others_is_waited_for_while_it_terminates() {
    let world = World::new();
    let owner = Some(("DatabaseCluster", "orders"));
    let mut theirs = foreign(READ, "Service", owner);
    theirs["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    theirs["metadata"]["finalizers"] = json!(["example.com/hold"]);
    world.fake.with(|state| state.put(READ, theirs));
    world.user_applies(json!({"image": "postgres:18"}));
    for _ in 0..20 {
        let outcome = world.reconcile().await.unwrap();
        assert!(matches!(outcome.next, Next::After { .. }), "{outcome:?}");
    }
    let (_, reason, message) = world.condition(ConditionType::Progressing);
    assert_eq!(reason, "WaitingForFormerCluster");
    assert!(message.contains("Service orders-r "), "{message}");
    assert_eq!(world.object(STATEFULSET), None);
    assert_eq!(world.object(SECRET), None, "it may be the former one's yet");
    world.fake.with(|state| state.objects.remove(READ));
    world.reconcile().await.unwrap();
    assert!(world.object(STATEFULSET).is_some());
}
