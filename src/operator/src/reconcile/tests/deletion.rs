//! Deletion of a cluster: what is deleted, in which order, and what is kept.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

#[tokio::test]
async fn deletion_goes_through_terminating_and_ends_with_the_finalizer() {
    let world = World::with_ready_cluster(1).await;
    world.change(CLUSTER, |c| {
        c["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")
    });
    let outcome = world.reconcile().await.unwrap();
    assert_eq!(outcome.next, Next::Waiting);
    assert_eq!(world.phase(), Phase::Terminating);
    assert_eq!(
        world.requests(),
        [
            format!("PATCH {CLUSTER}/status"),
            format!("DELETE {STATEFULSET}")
        ]
    );
    world.set_pods(0, 0);
    assert_eq!(world.reconcile().await.unwrap().next, Next::Waiting);
    assert_eq!(world.requests(), [""; 0], "waits for the StatefulSet");
    world.fake.with(|state| state.objects.remove(STATEFULSET));
    assert_eq!(world.reconcile().await.unwrap().next, Next::Forget);
    let requests = [format!("GET {STATEFULSET}"), format!("PATCH {CLUSTER}")];
    assert_eq!(world.requests(), requests);
    assert_eq!(world.object(CLUSTER), None);
}

#[tokio::test]
async fn a_new_holder_sets_its_token_before_it_deletes() {
    let world = World::with_ready_cluster(1).await;
    world.change(CLUSTER, |c| {
        c["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")
    });
    let successor = World::on(world.fake.clone(), 2);
    successor.reconcile().await.unwrap();
    assert_eq!(
        successor.requests(),
        [
            format!("PATCH {CLUSTER}/status"),
            format!("PATCH {STATEFULSET}"),
            format!("DELETE {STATEFULSET}"),
        ]
    );
    let set = successor.object(STATEFULSET).unwrap();
    let token = &set["metadata"]["annotations"]["database.io/fencing-token"];
    assert!(
        token
            .as_str()
            .unwrap()
            .starts_with("table/000/2/operator-2/"),
        "{token}"
    );
}

#[tokio::test]
async fn children_that_the_user_wants_to_keep_are_kept() {
    let world = World::with_ready_cluster(1).await;
    world.change(CLUSTER, |c| {
        c["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        c["metadata"]["finalizers"] = json!(["database.io/operator", "orphan"]);
    });
    assert_eq!(world.reconcile().await.unwrap().next, Next::Forget);
    assert_eq!(world.requests(), [format!("PATCH {CLUSTER}")]);
    assert_eq!(
        world.object(CLUSTER).unwrap()["metadata"]["finalizers"],
        json!(["orphan"])
    );
}

#[tokio::test]
async fn a_claim_that_changes_meanwhile_is_not_left_behind() {
    let world = World::with_ready_cluster(1).await;
    world.change(CLUSTER, |c| {
        c["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        c["spec"]["storage"]["retain"] = json!("Delete");
    });
    let claim = format!("{CLAIMS}/data-orders-db-0");
    let uid = world.cluster().uid.to_string();
    world.fake.with(|state| {
        state.objects.remove(STATEFULSET);
        let labels = json!({"database.io/cluster-uid": uid});
        state.put(&claim, json!({"metadata": {"name": "data-orders-db-0", "labels": labels}}));
        let answer = json!({"kind": "Status", "status": "Failure", "code": 409, "message": "the object has been modified"});
        state.refusals.push((format!("PATCH {claim}"), answer));
    });
    let refused = world.reconcile().await.unwrap_err();
    assert!(
        matches!(refused, Failure::Retry { fenced: false, .. }),
        "{refused:?}"
    );
    assert!(world.object(CLUSTER).is_some(), "the finalizer was removed");
    assert_eq!(world.reconcile().await.unwrap().next, Next::Forget);
    assert_eq!(world.object(&claim), None);
    assert_eq!(world.object(CLUSTER), None);
}
