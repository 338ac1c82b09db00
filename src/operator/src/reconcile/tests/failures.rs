//! Lagging watches, lost permissions, refusals, and Pods that do not become ready.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

#[tokio::test]
async fn watch_lagging_behind_own_writes_causes_a_wait_and_no_second_write() {
    let world = World::new();
    world.user_applies(json!({"image": "postgres:18"}));
    let old = world.store.cluster(&key()).unwrap();
    world.reconcile().await.unwrap();
    world.requests();
    // The watch shows the children, and the cluster still as it was: without finalizer and status.
    world.watch();
    world.store.upsert_cluster((*old).clone());
    let outcome = world
        .reconciler
        .reconcile(&key(), &world.permit, &IDLE)
        .await
        .unwrap();
    assert_eq!(
        outcome,
        Outcome {
            wrote: false,
            next: Next::Waiting
        }
    );
    // Now it shows the cluster, and still no child.
    let new = world.cluster();
    world.store.purge_shard(ShardId(0));
    world.store.upsert_cluster((*new).clone());
    let outcome = world
        .reconciler
        .reconcile(&key(), &world.permit, &IDLE)
        .await
        .unwrap();
    assert_eq!(
        outcome,
        Outcome {
            wrote: false,
            next: Next::Waiting
        }
    );
    assert_eq!(world.requests(), [""; 0]);
}

#[tokio::test]
async fn an_older_spec_is_never_applied_over_a_child_of_a_newer_one() {
    let world = World::with_ready_cluster(1).await;
    let old = world.cluster();
    world.user_applies(json!({"image": "postgres:18.1", "replicas": 3}));
    world.reconcile().await.unwrap();
    let successor = World::on(world.fake.clone(), 2);
    successor.requests();
    successor.store.upsert_cluster((*old).clone());
    let outcome = successor
        .reconciler
        .reconcile(&key(), &successor.permit, &IDLE)
        .await;
    let outcome = outcome.unwrap();
    assert!(
        matches!(outcome.next, Next::RequeueAfter { .. }),
        "{outcome:?}"
    );
    assert_eq!(successor.requests(), [""; 0]);
}

#[tokio::test]
async fn nothing_is_written_once_the_right_to_act_has_ended() {
    let world = World::new();
    world.user_applies(json!({"image": "postgres:18"}));
    world.ended.cancel();
    assert_eq!(world.reconcile().await, Err(Failure::Lost));
    assert_eq!(world.requests(), [""; 0]);
    assert_eq!(world.shared_metrics.fleet.tenure_lost_total.get(), 1);
}

#[tokio::test]
async fn invalid_child_is_reported_as_failure() {
    let world = World::new();
    world.user_applies(json!({"image": "postgres:18"}));
    for _ in 0..2 {
        world.fake.with(|state| {
            let answer = json!({"kind": "Status", "status": "Failure", "code": 422, "message": "spec.x: bad"});
            state.refusals.push((format!("PATCH {STATEFULSET}"), answer));
        });
        let failure = world.reconcile().await.unwrap_err();
        let Failure::Failed {
            cause: Cause::Invalid,
            message,
        } = failure
        else {
            panic!("{failure:?}");
        };
        assert!(message.contains("spec.x: bad"), "{message}");
        let (status, reason, message) = world.condition(ConditionType::Degraded);
        assert_eq!(
            (status, reason.as_str()),
            (ConditionStatus::True, "Invalid")
        );
        assert!(message.contains("spec.x: bad"), "{message}");
    }
    let lines = world.requests();
    assert_eq!(
        lines
            .iter()
            .filter(|line| line.ends_with("/status"))
            .count(),
        1,
        "{lines:?}"
    );
}

#[tokio::test]
async fn conflict_is_retried_and_refusal_by_the_fence_is_counted() {
    for (code, message, fenced) in [
        (409, "the object has been modified", false),
        (
            422,
            "ValidatingAdmissionPolicy 'databasecluster-fence' denied request",
            true,
        ),
    ] {
        let world = World::new();
        world.user_applies(json!({"image": "postgres:18"}));
        world.fake.with(|state| {
            let answer =
                json!({"kind": "Status", "status": "Failure", "code": code, "message": message});
            state.refusals.push((format!("PATCH {CLUSTER}"), answer));
        });
        let failure = world.reconcile().await.unwrap_err();
        let Failure::Retry { fenced: seen, .. } = failure else {
            panic!("{failure:?}");
        };
        assert_eq!(seen, fenced);
        let counted = &world.shared_metrics.fleet.fenced_writes_total;
        let counted = counted.with_label_values(&["DatabaseCluster"]).get();
        assert_eq!(counted, u64::from(fenced));
    }
}

#[tokio::test]
async fn unpublished_event_does_not_fail_the_reconcile() {
    let world = World::new();
    world.user_applies(json!({"image": "postgres:18"}));
    world.reconcile().await.unwrap();
    world.set_pods(1, 1);
    world.fake.with(|state| {
        let answer = json!({"kind": "Status", "status": "Failure", "code": 403, "message": "no"});
        state.refusals.push((format!("POST {EVENTS}"), answer));
    });
    assert_eq!(world.reconcile().await.unwrap().next, Next::Ready);
}

#[tokio::test]
async fn degraded_cluster_names_the_pod_and_queries_it_once() {
    let world = World::with_ready_cluster(1).await;
    world.broken_pod("orders-db-0", "r1");
    world.set_pods(1, 0);
    world.reconcile().await.unwrap();
    let (status, reason, message) = world.condition(ConditionType::Degraded);
    assert_eq!(
        (status, reason.as_str()),
        (ConditionStatus::True, "InstancesNotReady")
    );
    assert_eq!(message, "0 of 1 instances are ready");
    for _ in 0..3 {
        world.reconcile().await.unwrap();
    }
    let (_, reason, message) = world.condition(ConditionType::Degraded);
    assert_eq!(reason, "ImagePullBackOff");
    assert!(
        message.contains("Pod orders-db-0: container postgres"),
        "{message}"
    );
    assert_eq!(world.metrics.cache_misses_total.get(), 1);
    assert_eq!(world.metrics.cache_hits_total.get(), 2);
    world.set_pods(1, 1);
    world.reconcile().await.unwrap();
    assert_eq!(world.phase(), Phase::Ready);
    let lookups = world.requests();
    let lookups = lookups.iter().filter(|line| line.contains("pods")).count();
    assert_eq!(lookups, 1, "a Ready cluster needs no lookups");
}

#[tokio::test]
async fn an_object_of_another_shard_or_of_none_is_forgotten() {
    let world = World::with_ready_cluster(1).await;
    assert_eq!(world.reconciler.memories.len(), 1);
    world.reconciler.release_shard(ShardId(0)).await;
    assert_eq!(world.reconciler.memories.len(), 0);
    world.reconcile().await.unwrap();
    world.fake.with(|state| state.objects.remove(CLUSTER));
    let outcome = world.reconcile().await.unwrap();
    assert_eq!(
        outcome,
        Outcome {
            wrote: false,
            next: Next::Forget
        }
    );
    assert_eq!(world.reconciler.memories.len(), 0);
    assert_eq!(world.requests(), [""; 0]);
}

#[tokio::test]
async fn unready_pods_are_diagnosed_right_after_the_grace_period() {
    let world = World::new();
    world.user_applies(json!({"image": "postgres:18"}));
    world.reconcile().await.unwrap();
    world.set_pods(1, 0);
    world.broken_pod("orders-db-0", "r1");
    let Next::RequeueAfter { ms } = world.reconcile().await.unwrap().next else {
        panic!("no run is scheduled in time");
    };
    assert!((25_000..=35_000).contains(&ms), "in {ms} ms");
    // That time has come.
    world.change(CLUSTER, |cluster| {
        for condition in cluster["status"]["conditions"].as_array_mut().unwrap() {
            condition["lastTransitionTime"] = json!("2026-01-01T00:00:00Z");
        }
    });
    let outcome = world.reconcile().await.unwrap();
    assert_eq!(outcome.next, Next::Waiting);
    assert_eq!(
        world.condition(ConditionType::Degraded).1,
        "ImagePullBackOff"
    );
}

#[tokio::test]
async fn every_message_is_published_as_an_event_without_delay() {
    let world = World::new();
    world.user_applies(json!({"image": "postgres:18"}));
    for (code, message) in [(422, "spec.x: bad"), (403, "exceeded quota: small")] {
        world.fake.with(|state| {
            let answer =
                json!({"kind": "Status", "status": "Failure", "code": code, "message": message});
            state
                .refusals
                .push((format!("PATCH {STATEFULSET}"), answer));
        });
        world.reconcile().await.unwrap_err();
        let notes = world.notes();
        let reported = notes.iter().any(|note| note.contains(message));
        assert!(reported, "{message}: {notes:?}");
    }
}
