//! Secret, budget, claims and Pods, and changes that would damage data.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

#[tokio::test]
async fn secret_is_created_once_and_its_loss_is_reported_before_pods_hang() {
    let world = World::with_ready_cluster(1).await;
    let secret = world.object(SECRET).unwrap();
    world.user_applies(json!({"image": "postgres:18", "replicas": 2}));
    world.reconcile().await.unwrap();
    assert_eq!(
        world.object(SECRET),
        Some(secret.clone()),
        "it was overwritten"
    );
    world.set_pods(2, 2);
    world.reconcile().await.unwrap();

    world.fake.with(|state| state.objects.remove(SECRET));
    let set = world.object(STATEFULSET).unwrap();
    world.user_applies(json!({"image": "postgres:18.1", "replicas": 1}));
    let failure = world.reconcile().await.unwrap_err();
    assert!(matches!(failure, Failure::Failed { .. }), "{failure:?}");
    let (status, reason, message) = world.condition(ConditionType::Degraded);
    assert_eq!(
        (status, reason.as_str()),
        (ConditionStatus::True, "SecretMissing")
    );
    assert!(message.contains("Secret orders-app"), "{message}");
    assert_eq!(world.object(SECRET), None, "a new password would not fit");
    assert_eq!(world.object(STATEFULSET), Some(set));

    world
        .fake
        .with(|state| state.put(SECRET, json!({"metadata": {"name": "orders-app"}})));
    world.reconcile().await.unwrap();
    let set = world.object(STATEFULSET).unwrap();
    let image = &set["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(image, "postgres:18.1");
}

#[tokio::test]
async fn secret_is_not_looked_for_when_a_replica_restarts_before_the_primary() {
    let world = World::with_ready_cluster(2).await;
    world.fake.with(|state| state.objects.remove(SECRET));
    world.user_applies(json!({"image": "postgres:18.1", "replicas": 2}));
    world.reconcile().await.unwrap();
    assert!(!world.requests().contains(&format!("POST {SECRETS}")));
    // The replica has been restarted and hangs.
    world.set_pods(2, 1);
    world.reconcile().await.unwrap();
    world.time.advance(Duration::from_secs(31));
    world.reconcile().await.unwrap_err();
    assert_eq!(world.condition(ConditionType::Degraded).1, "SecretMissing");
}

#[tokio::test]
async fn silently_waiting_pod_is_checked_for_a_missing_secret() {
    let world = World::with_ready_cluster(1).await;
    world.fake.with(|state| state.objects.remove(SECRET));
    world.set_pods(1, 0);
    world.reconcile().await.unwrap();
    world.reconcile().await.unwrap_err();
    assert_eq!(world.condition(ConditionType::Degraded).1, "SecretMissing");
    world
        .fake
        .with(|state| state.put(SECRET, json!({"metadata": {"name": "orders-app"}})));
    world.set_pods(1, 1);
    world.reconcile().await.unwrap();
    assert_eq!(world.phase(), Phase::Ready);
}

#[tokio::test]
async fn secret_deleted_with_a_former_cluster_is_recreated_while_there_is_no_data() {
    let world = World::new();
    world
        .fake
        .with(|state| state.put(SECRET, json!({"metadata": {"name": "orders-app"}})));
    world.user_applies(json!({"image": "postgres:18"}));
    let outcome = world.reconcile().await.unwrap();
    assert!(
        matches!(outcome.next, Next::RequeueAfter { .. }),
        "the next run is {:?}",
        outcome.next
    );
    let (status, reason, message) = world.condition(ConditionType::Progressing);
    assert_eq!(
        (status, reason.as_str()),
        (ConditionStatus::True, "WaitingForFormerCluster")
    );
    assert!(message.contains("Secret orders-app exists"), "{message}");
    assert_eq!(world.object(STATEFULSET), None, "Pods would start with it");
    world.fake.with(|state| state.objects.remove(SECRET));
    world.reconcile().await.unwrap();
    assert!(world.object(SECRET).unwrap()["stringData"].is_object());
    assert!(world.object(STATEFULSET).is_some());
    world.reconcile().await.unwrap();
    world.requests();
    world.reconcile().await.unwrap();
    assert_eq!(world.requests(), [""; 0]);
}

#[tokio::test]
async fn existing_secret_is_adopted_and_recreated_if_lost_while_there_is_no_data() {
    let world = World::new();
    let theirs = json!({"metadata": {"name": "orders-app"}});
    let theirs = world.fake.with(|state| state.put(SECRET, theirs));
    world.user_applies(json!({"image": "postgres:18"}));
    let long_ago_ms = world.clock.now_ms().saturating_sub(SECRET_HOLD_MS);
    let reconciler = &world.reconciler;
    reconciler.with_memory(&world.cluster(), |memory| {
        memory.secret_in_the_way(long_ago_ms);
    });
    let outcome = world.reconcile().await.unwrap();
    assert!(
        matches!(outcome.next, Next::RequeueAfter { .. }),
        "{outcome:?}"
    );
    assert_eq!(world.object(SECRET), Some(theirs));
    assert!(world.object(STATEFULSET).is_some());
    world.fake.with(|state| state.objects.remove(SECRET));
    let outcome = world.reconcile().await.unwrap();
    assert!(world.object(SECRET).unwrap()["stringData"].is_object());
    assert_eq!(outcome.next, Next::Waiting);
}

#[tokio::test]
async fn budget_exists_only_with_two_or_more_instances() {
    let world = World::with_ready_cluster(1).await;
    assert_eq!(world.object(BUDGET), None);
    world.user_applies(json!({"image": "postgres:18", "replicas": 2}));
    world.reconcile().await.unwrap();
    assert_eq!(world.object(BUDGET).unwrap()["spec"]["maxUnavailable"], 1);
    world.set_pods(2, 2);
    world.reconcile().await.unwrap();
    // The disruption controller writes the status of budgets: that is not our concern.
    world.change(BUDGET, |budget| {
        budget["status"] = json!({"currentHealthy": 2});
    });
    world.requests();
    world.reconcile().await.unwrap();
    assert_eq!(world.requests(), [""; 0]);
    world.change(BUDGET, |budget| budget["spec"]["maxUnavailable"] = json!(2));
    world.reconcile().await.unwrap();
    assert_eq!(world.object(BUDGET).unwrap()["spec"]["maxUnavailable"], 1);
    world.user_applies(json!({"image": "postgres:18", "replicas": 1}));
    world.requests();
    world.reconcile().await.unwrap();
    assert!(world.requests().contains(&format!("DELETE {BUDGET}")));
}

#[tokio::test]
async fn a_major_version_change_is_refused_and_both_versions_are_named() {
    let world = World::with_ready_cluster(1).await;
    let set = world.object(STATEFULSET).unwrap();
    world.user_applies(json!({"image": "postgres:19", "replicas": 3}));
    let failure = world.reconcile().await.unwrap_err();
    assert!(
        matches!(
            failure,
            Failure::Failed {
                cause: Cause::Invalid,
                ..
            }
        ),
        "{failure:?}"
    );
    let (_, reason, message) = world.condition(ConditionType::Degraded);
    assert_eq!(reason, "MajorVersionChange");
    assert!(
        message.contains("PostgreSQL 18") && message.contains("PostgreSQL 19"),
        "{message}"
    );
    assert_eq!(world.object(STATEFULSET), Some(set));
    world.user_applies(json!({"image": "postgres:18.2", "replicas": 1}));
    world.reconcile().await.unwrap();
    let set = world.object(STATEFULSET).unwrap();
    assert_eq!(
        set["spec"]["template"]["spec"]["containers"][0]["image"],
        "postgres:18.2"
    );
}

#[tokio::test]
async fn image_of_a_cluster_without_data_may_change_to_any_version() {
    let world = World::new();
    world.user_applies(json!({"image": "postgres:81"}));
    world.reconcile().await.unwrap();
    world.set_pods(1, 0);
    world.user_applies(json!({"image": "postgres:18"}));
    world.reconcile().await.unwrap();
    let set = world.object(STATEFULSET).unwrap();
    assert_eq!(
        set["spec"]["template"]["spec"]["containers"][0]["image"],
        "postgres:18"
    );
}

#[tokio::test]
async fn presence_of_data_is_passed_to_the_pods_and_remembered() {
    let world = World::new();
    world.user_applies(json!({"image": "postgres:18", "replicas": 1}));
    world.reconcile().await.unwrap();
    assert_eq!(
        world.object(CONFIG).unwrap()["data"]["initialized"],
        "false"
    );
    world.set_pods(1, 1);
    world.reconcile().await.unwrap();
    assert_eq!(world.object(CONFIG).unwrap()["data"]["initialized"], "true");
    assert_eq!(
        world.condition(ConditionType::Initialized).0,
        ConditionStatus::True
    );
    world.reconcile().await.unwrap();
    world.fake.with(|state| {
        state.objects.remove(STATEFULSET);
        state.objects.remove(CONFIG);
    });
    world.reconcile().await.unwrap();
    assert_eq!(world.object(CONFIG).unwrap()["data"]["initialized"], "true");
    assert_eq!(
        world.condition(ConditionType::Initialized).0,
        ConditionStatus::True
    );
}

#[tokio::test]
async fn presence_of_data_is_a_small_patch_that_leaves_the_object_as_an_apply_would() {
    let with_data = |touch: bool| async move {
        let world = World::new();
        world.user_applies(json!({"image": "postgres:18", "replicas": 1}));
        world.reconcile().await.unwrap();
        if touch {
            world.change(CONFIG, |config| {
                config["data"]["ready.sh"] = json!("edited")
            });
        }
        world.set_pods(1, 1);
        world.requests();
        world.reconcile().await.unwrap();
        let small = world.fake.with(|state| {
            let is_config = |(line, _): &&(String, Value)| *line == format!("PATCH {CONFIG}");
            let mut bodies = state.bodies.iter().filter(is_config);
            let last = bodies.next_back().map(|(_, body)| body.clone());
            last.unwrap()["data"]["ready.sh"].is_null()
        });
        let mut config = world.object(CONFIG).unwrap();
        config["metadata"]["resourceVersion"].take();
        // The next run finds nothing to do.
        world.requests();
        world.reconcile().await.unwrap();
        assert_eq!(world.requests(), [""; 0]);
        (small, config)
    };
    let (small, patched) = with_data(false).await;
    assert!(small, "the scripts are not sent again");
    let (small, mut applied) = with_data(true).await;
    assert!(!small, "an edited one is applied as a whole");
    applied["metadata"]["generation"] = patched["metadata"]["generation"].clone();
    assert_eq!(patched, applied);
}

#[tokio::test]
async fn presence_of_data_is_not_merged_into_a_config_map_that_changes_meanwhile() {
    let world = World::new();
    world.user_applies(json!({"image": "postgres:18", "replicas": 1}));
    world.reconcile().await.unwrap();
    world.set_pods(1, 1);
    world.watch();
    // The watch has not shown this yet.
    world.change(CONFIG, |config| {
        config["data"]["ready.sh"] = json!("edited")
    });
    let key = key();
    let run = world.reconciler.reconcile(&key, &world.permit, &IDLE).await;
    assert!(matches!(run, Err(Failure::Retry { .. })), "{run:?}");
    world.reconcile().await.unwrap();
    let config = world.object(CONFIG).unwrap();
    assert_eq!(config["data"]["initialized"], "true");
    assert_ne!(config["data"]["ready.sh"], "edited");
}

fn sized(size: &str) -> Value {
    json!({"image": "postgres:18", "replicas": 2, "storage": {"size": size}})
}

async fn with_claims() -> World {
    let world = World::new();
    world.user_applies(sized("1Gi"));
    world.reconcile().await.unwrap();
    world.set_pods(2, 2);
    world.reconcile().await.unwrap();
    let uid = world.cluster().uid.to_string();
    for name in ["data-orders-db-0", "data-orders-db-1", "data-other-db-0"] {
        let labels = json!({"database.io/cluster-uid": uid, "database.io/cluster": "orders"});
        world.claim_named(name, &labels, &json!({}));
    }
    world.requests();
    world
}

#[tokio::test]
async fn claims_are_resized_once_and_a_class_without_expansion_is_reported() {
    let world = with_claims().await;
    world.user_applies(sized("2Gi"));
    world.fake.with(|state| {
        let message = "only dynamically provisioned pvc can be resized and the storageclass that \
                       provisions the pvc must support resize";
        let answer =
            json!({"kind": "Status", "status": "Failure", "code": 403, "message": message});
        state.refusals.push((format!("PATCH {CLAIMS}"), answer));
    });
    world.reconcile().await.unwrap_err();
    let (_, reason, message) = world.condition(ConditionType::Degraded);
    assert_eq!(reason, "StorageNotGrown");
    assert!(message.contains("data-orders-db-0"), "{message}");
    assert!(message.contains("only dynamically"), "{message}");
    assert!(message.contains("allowVolumeExpansion"), "{message}");
    assert!(
        message.ends_with("set spec.storage.size back to 1Gi"),
        "{message}"
    );
    assert_eq!(world.cluster().status.storage_size.as_deref(), Some("1Gi"));
    world.requests();
    world.reconcile().await.unwrap();
    world.reconcile().await.unwrap();
    let patches = world.requests();
    let claims = patches
        .iter()
        .filter(|line| line.starts_with("PATCH") && line.contains("claims"))
        .count();
    assert_eq!(claims, 2, "{patches:?}");
    for ordinal in 0..2 {
        let claim = world
            .object(&format!("{CLAIMS}/data-orders-db-{ordinal}"))
            .unwrap();
        assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "2Gi");
        assert!(claim["metadata"]["annotations"]["database.io/fencing-token"].is_string());
    }
    assert_eq!(world.phase(), Phase::Ready);
    let set = world.object(STATEFULSET).unwrap();
    assert_eq!(
        set["metadata"]["annotations"]["database.io/claims"],
        "2Gi/2"
    );

    // One that was deleted and re-created has the size of the template.
    let recreated = format!("{CLAIMS}/data-orders-db-1");
    world.change(&recreated, |claim| {
        claim["spec"]["resources"]["requests"]["storage"] = json!("1Gi")
    });
    world.sweep();
    world.reconcile().await.unwrap();
    let claim = world.object(&recreated).unwrap();
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "2Gi");
}

#[tokio::test]
async fn claims_are_deleted_with_the_cluster_only_if_requested() {
    for (retain, left) in [("Retain", 3), ("Delete", 1)] {
        let world = with_claims().await;
        let mut spec = sized("1Gi");
        spec["storage"]["retain"] = json!(retain);
        world.user_applies(spec);
        world.change(CLUSTER, |c| {
            c["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")
        });
        world.reconcile().await.unwrap();
        let claims = |world: &World| {
            world.fake.with(|state| {
                state
                    .objects
                    .keys()
                    .filter(|path| path.starts_with(CLAIMS))
                    .count()
            })
        };
        assert_eq!(claims(&world), 3, "Pods may still use them");
        world.fake.with(|state| state.objects.remove(STATEFULSET));
        assert_eq!(world.reconcile().await.unwrap().next, Next::Forget);
        assert_eq!(claims(&world), left, "{retain}");
        assert_eq!(world.object(CLUSTER), None);
    }
}

#[tokio::test]
async fn pod_stuck_on_an_old_template_is_replaced_and_one_on_the_newest_is_not() {
    let world = World::with_ready_cluster(2).await;
    world.broken_pod("orders-db-0", "r0");
    world.broken_pod("orders-db-1", "r1");
    world.set_pods(2, 0);
    world.reconcile().await.unwrap();
    world.reconcile().await.unwrap();
    assert_eq!(world.object(&format!("{PODS}/orders-db-0")), None);
    assert!(world.object(&format!("{PODS}/orders-db-1")).is_some());
}

#[tokio::test]
async fn pods_that_cannot_be_created_are_explained_by_statefulset_events() {
    let world = World::with_ready_cluster(1).await;
    let uid = world.object(STATEFULSET).unwrap()["metadata"]["uid"].clone();
    let event = json!({
        "metadata": {"name": "e", "namespace": "shop"},
        "involvedObject": {"kind": "StatefulSet", "name": "orders-db", "uid": uid},
        "reason": "FailedCreate", "lastTimestamp": "2026-01-01T00:00:00Z",
        "message": "create Pod orders-db-0 failed: exceeded quota: small",
    });
    world
        .fake
        .with(|state| state.put("/api/v1/namespaces/shop/events/e", event));
    world.set_pods(0, 0);
    world.reconcile().await.unwrap();
    world.reconcile().await.unwrap();
    let (_, reason, message) = world.condition(ConditionType::Degraded);
    assert_eq!(reason, "FailedCreate");
    assert!(message.contains("exceeded quota: small"), "{message}");
}
