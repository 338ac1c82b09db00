//! The lifecycle from created to ready, and back after a change.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

#[tokio::test]
async fn cluster_becomes_ready_with_eleven_writes_and_two_claim_lists() {
    let world = World::new();
    world.user_applies(json!({"image": "postgres:18", "replicas": 1}));
    let outcome = world.reconcile().await.unwrap();
    assert_eq!((outcome.wrote, outcome.next), (true, Next::Waiting));
    assert_eq!(world.phase(), Phase::Creating);
    // Its own writes trigger runs: those cost nothing.
    assert_eq!(
        world.reconcile().await.unwrap(),
        Outcome {
            wrote: false,
            next: Next::Waiting
        }
    );
    world.set_pods(1, 1);
    let outcome = world.reconcile().await.unwrap();
    assert_eq!(
        outcome,
        Outcome {
            wrote: true,
            next: Next::Ready
        }
    );
    assert_eq!(world.phase(), Phase::Ready);
    assert_eq!(
        world.requests(),
        [
            format!("PATCH {CLUSTER}"),
            format!("PATCH {CONFIG}"),
            format!("PATCH {SERVICE}"),
            format!("PATCH {READ_WRITE}"),
            format!("PATCH {READ}"),
            format!("POST {SECRETS}"),
            format!("GET {CLAIMS}"),
            format!("GET {CLAIMS}"),
            format!("PATCH {STATEFULSET}"),
            format!("PATCH {CLUSTER}/status"),
            format!("PATCH {CONFIG}"),
            format!("PATCH {CLUSTER}/status"),
            format!("POST {EVENTS}"),
        ]
    );
    assert_eq!(
        world.notes(),
        ["Normal DatabaseReady ready with 1 replicas"]
    );
    let cluster = world.object(CLUSTER).unwrap();
    assert_eq!(
        cluster["metadata"]["finalizers"],
        json!(["database.io/operator"])
    );
    let token = "table/000/1/operator-1/uid-1";
    assert_eq!(
        cluster["metadata"]["annotations"]["database.io/fencing-token"],
        token
    );
    assert_eq!(cluster["status"]["shard"]["epoch"], 1);
    assert_eq!(cluster["status"]["observedGeneration"], 1);
    for path in [SERVICE, STATEFULSET, CONFIG, SECRET, READ_WRITE, READ] {
        let child = world.object(path).unwrap();
        assert_eq!(
            child["metadata"]["annotations"]["database.io/fencing-token"],
            token
        );
    }
    assert_eq!(world.metrics.convergence_seconds.get_sample_count(), 1);
}

#[tokio::test]
async fn settled_cluster_causes_no_requests_even_after_a_takeover() {
    let world = World::with_ready_cluster(3).await;
    let rest = Outcome {
        wrote: false,
        next: Next::Ready,
    };
    assert_eq!(world.reconcile().await.unwrap(), rest);
    let successor = World::on(world.fake.clone(), 2);
    assert_eq!(successor.reconcile().await.unwrap(), rest);
    assert_eq!(successor.reconcile().await.unwrap(), rest);
    assert_eq!(world.requests(), [""; 0]);
}

#[tokio::test]
async fn spec_change_is_applied_and_reported() {
    let world = World::with_ready_cluster(1).await;
    world.user_applies(json!({"image": "postgres:18.1", "replicas": 3}));
    world.reconcile().await.unwrap();
    assert_eq!(world.phase(), Phase::Scaling);
    let set = world.object(STATEFULSET).unwrap();
    assert_eq!(set["spec"]["replicas"], 3);
    assert_eq!(
        set["metadata"]["annotations"]["database.io/generation"],
        "2"
    );
    // Its Pods are counted once the controller has observed the change.
    world.requests();
    world.reconcile().await.unwrap();
    assert_eq!(world.requests(), [""; 0]);
    world.set_pods(3, 2);
    world.reconcile().await.unwrap();
    assert_eq!(
        world.condition(ConditionType::Ready),
        (
            ConditionStatus::False,
            "Scaling".into(),
            "2 of 3 instances are ready".into()
        )
    );
    world.set_pods(3, 3);
    world.reconcile().await.unwrap();
    assert_eq!(world.phase(), Phase::Ready);
    assert_eq!(world.cluster().status.ready_replicas, 3);
    assert_eq!(world.cluster().status.observed_generation, 2);
}

#[tokio::test]
async fn status_write_is_postponed_while_other_objects_wait() {
    let world = World::with_ready_cluster(1).await;
    world.user_applies(json!({"image": "postgres:18.1", "replicas": 3}));
    let outcome = world.reconcile_beside(&CROWDED).await.unwrap();
    assert_eq!(
        outcome,
        Outcome {
            wrote: true,
            next: Next::RequeueAfter { ms: 1_000 }
        }
    );
    assert_eq!(world.object(STATEFULSET).unwrap()["spec"]["replicas"], 3);
    // The status is true meanwhile, for its generation.
    assert_eq!(world.phase(), Phase::Ready);
    assert_eq!(world.cluster().status.observed_generation, 1);
    // Nothing is left to do, so it is reported, however many others wait.
    world.reconcile_beside(&CROWDED).await.unwrap();
    assert_eq!(world.phase(), Phase::Scaling);
    assert_eq!(world.cluster().status.observed_generation, 2);
}

/// How long the replica of these tests leaves progress unreported.
const DELAY: Duration = Duration::from_secs(1);

fn patient() -> World {
    World::with_delay(Fake::default(), 1, DELAY)
}

fn status_writes(requests: &[String]) -> usize {
    let status = format!("PATCH {CLUSTER}/status");
    requests.iter().filter(|line| **line == status).count()
}

#[tokio::test]
async fn cluster_that_becomes_ready_within_a_second_costs_one_status_and_one_event() {
    let world = patient();
    world.user_applies(json!({"image": "postgres:18", "replicas": 1}));
    let outcome = world.reconcile().await.unwrap();
    assert_eq!(outcome.next, Next::RequeueAfter { ms: 1_000 });
    // The watch shows what was written: still nothing but progress.
    world.time.advance(DELAY / 4);
    let outcome = world.reconcile().await.unwrap();
    assert_eq!(outcome.next, Next::RequeueAfter { ms: 750 });
    world.set_pods(1, 1);
    let outcome = world.reconcile().await.unwrap();
    assert_eq!((outcome.wrote, outcome.next), (true, Next::Ready));
    assert_eq!(world.phase(), Phase::Ready);
    let requests = world.requests();
    assert_eq!(status_writes(&requests), 1, "{requests:?}");
    assert_eq!(
        world.notes(),
        ["Normal DatabaseReady ready with 1 replicas"]
    );
}

#[tokio::test]
async fn steps_of_a_rollout_are_reported_once_a_second_and_its_end_at_once() {
    let world = patient();
    world.user_applies(json!({"image": "postgres:18", "replicas": 3}));
    world.reconcile().await.unwrap();
    world.set_pods(3, 3);
    world.reconcile().await.unwrap();
    world.user_applies(json!({"image": "postgres:18.1", "replicas": 3}));
    world.reconcile().await.unwrap();
    world.time.advance(DELAY);
    world.roll_pods(3, 2, 0);
    world.reconcile().await.unwrap();
    assert_eq!(world.phase(), Phase::Scaling);
    world.requests();
    for (ready, updated) in [(3, 1), (2, 1), (3, 2)] {
        world.time.advance(DELAY / 4);
        world.roll_pods(3, ready, updated);
        let outcome = world.reconcile().await.unwrap();
        assert!(matches!(outcome.next, Next::RequeueAfter { .. }));
        assert_eq!(world.requests(), [""; 0], "no step costs a request");
    }
    world.time.advance(DELAY / 4);
    world.reconcile().await.unwrap();
    assert_eq!(world.cluster().status.ready_replicas, 3);
    world.roll_pods(3, 2, 2);
    world.reconcile().await.unwrap();
    world.set_pods(3, 3);
    world.requests();
    let outcome = world.reconcile().await.unwrap();
    assert_eq!((outcome.wrote, outcome.next), (true, Next::Ready));
    assert_eq!(status_writes(&world.requests()), 1);
}

#[tokio::test]
async fn pods_lost_outside_a_rollout_are_reported_at_once() {
    let world = patient();
    world.user_applies(json!({"image": "postgres:18", "replicas": 3}));
    world.reconcile().await.unwrap();
    world.set_pods(3, 3);
    world.reconcile().await.unwrap();
    for ready in [2, 1, 0] {
        world.set_pods(3, ready);
        world.reconcile().await.unwrap();
        assert_eq!(world.cluster().status.ready_replicas, ready);
    }
}

#[tokio::test]
async fn change_that_settles_within_a_second_costs_three_requests() {
    let world = patient();
    world.user_applies(json!({"image": "postgres:18", "replicas": 1}));
    world.reconcile().await.unwrap();
    world.set_pods(1, 1);
    world.reconcile().await.unwrap();
    world.reconcile().await.unwrap();
    world.requests();
    world.user_applies(json!({"image": "postgres:18.1", "replicas": 1}));
    world.reconcile().await.unwrap();
    world.reconcile().await.unwrap();
    assert_eq!(world.cluster().status.observed_generation, 1);
    world.set_pods(1, 1);
    world.reconcile().await.unwrap();
    assert_eq!(world.phase(), Phase::Ready);
    assert_eq!(world.cluster().status.observed_generation, 2);
    assert_eq!(
        world.requests(),
        [
            format!("POST {SECRETS}"),
            format!("PATCH {STATEFULSET}"),
            format!("PATCH {CLUSTER}/status"),
        ]
    );
    // It was Ready all along, so there is no Event; another number of instances is one.
    assert_eq!(world.notes().len(), 1);
    world.user_applies(json!({"image": "postgres:18.1", "replicas": 3}));
    world.reconcile().await.unwrap();
    world.set_pods(3, 3);
    world.reconcile().await.unwrap();
    let notes = world.notes();
    let expected = "Normal DatabaseReady ready with 3 replicas".to_owned();
    assert!(notes.contains(&expected), "{notes:?}");
}

#[tokio::test]
async fn progress_is_reported_after_a_second_and_problems_at_once() {
    let world = patient();
    world.user_applies(json!({"image": "postgres:18", "replicas": 3}));
    world.reconcile().await.unwrap();
    world.set_pods(3, 1);
    world.reconcile().await.unwrap();
    assert!(world.cluster().status.phase.is_none(), "not yet");
    world.time.advance(DELAY);
    world.reconcile().await.unwrap();
    assert_eq!(world.phase(), Phase::Scaling);
    assert_eq!(
        world.condition(ConditionType::Ready).2,
        "1 of 3 instances are ready"
    );
    // The generation is reported: what follows is reported as it comes.
    world.set_pods(3, 2);
    world.reconcile().await.unwrap();
    assert_eq!(
        world.condition(ConditionType::Ready).2,
        "2 of 3 instances are ready"
    );
    world.user_applies(json!({"image": "postgres:19", "replicas": 3}));
    world.reconcile().await.unwrap_err();
    assert_eq!(
        world.condition(ConditionType::Degraded).1,
        "MajorVersionChange"
    );
}

#[tokio::test]
async fn progress_is_reported_later_while_many_progress() {
    let world = patient();
    // Others have used up the rate.
    let now_ms = world.clock.now_ms();
    for _ in 0..REPORTS.get() {
        assert!(world.reconciler.may_report_progress(now_ms));
    }
    assert!(!world.reconciler.may_report_progress(now_ms));
    world.user_applies(json!({"image": "postgres:18", "replicas": 1}));
    world.reconcile().await.unwrap();
    for _ in 0..29 {
        world.time.advance(DELAY);
        let now_ms = world.clock.now_ms();
        assert!(world.reconciler.may_report_progress(now_ms));
        let outcome = world.reconcile().await.unwrap();
        assert_eq!(outcome.next, Next::RequeueAfter { ms: 1_000 });
        assert_eq!(status_writes(&world.requests()), 0);
    }
    // However many they are, it is not kept longer.
    world.time.advance(DELAY);
    let now_ms = world.clock.now_ms();
    assert!(world.reconciler.may_report_progress(now_ms));
    world.reconcile().await.unwrap();
    assert_eq!(world.phase(), Phase::Creating);
    assert_eq!(status_writes(&world.requests()), 1);
    // What is Ready is reported at once.
    world.user_applies(json!({"image": "postgres:18.1", "replicas": 1}));
    world.reconcile().await.unwrap();
    world.set_pods(1, 1);
    world.reconcile().await.unwrap();
    assert_eq!(world.phase(), Phase::Ready);
    assert_eq!(status_writes(&world.requests()), 1);
}

#[tokio::test]
async fn repair_is_reported_at_once() {
    let world = patient();
    world.user_applies(json!({"image": "postgres:18", "replicas": 2}));
    world.reconcile().await.unwrap();
    world.set_pods(2, 2);
    world.reconcile().await.unwrap();
    world.change(STATEFULSET, |set| set["spec"]["replicas"] = json!(5));
    world.reconcile().await.unwrap();
    assert_eq!(world.condition(ConditionType::Progressing).1, "Repairing");
}

#[tokio::test]
async fn problems_are_reported_immediately_however_many_objects_wait() {
    let world = World::with_ready_cluster(1).await;
    world.fake.with(|state| state.objects.remove(SECRET));
    world.user_applies(json!({"image": "postgres:18.1", "replicas": 1}));
    world.reconcile_beside(&CROWDED).await.unwrap_err();
    assert_eq!(world.phase(), Phase::Degraded);
}

#[tokio::test]
async fn zero_replicas_are_ready_and_paused() {
    let world = World::with_ready_cluster(0).await;
    let (status, reason, _) = world.condition(ConditionType::Ready);
    assert_eq!((status, reason.as_str()), (ConditionStatus::True, "Paused"));
}

#[tokio::test]
async fn drift_in_a_child_is_corrected() {
    let world = World::with_ready_cluster(2).await;
    world.change(STATEFULSET, |set| set["spec"]["replicas"] = json!(5));
    world.reconcile().await.unwrap();
    assert_eq!(world.object(STATEFULSET).unwrap()["spec"]["replicas"], 2);
    assert_eq!(world.condition(ConditionType::Progressing).1, "Repairing");
    world.set_pods(2, 2);
    world.reconcile().await.unwrap();
    assert_eq!(world.phase(), Phase::Ready);

    world.change(STATEFULSET, |set| {
        set["metadata"]["labels"]["app.kubernetes.io/name"] = json!("x")
    });
    world.change(SERVICE, |service| {
        service["spec"]["selector"] = json!({"a": "b"})
    });
    world.requests();
    world.reconcile().await.unwrap();
    assert_eq!(
        world.requests(),
        [format!("PATCH {SERVICE}"), format!("PATCH {STATEFULSET}")]
    );
    assert_eq!(world.phase(), Phase::Ready);
    world.reconcile().await.unwrap();
    assert_eq!(world.requests(), [""; 0]);
}

#[tokio::test]
async fn deleted_statefulset_is_recreated() {
    let world = World::with_ready_cluster(1).await;
    world.fake.with(|state| state.objects.remove(STATEFULSET));
    world.reconcile().await.unwrap();
    assert!(world.object(STATEFULSET).is_some());
    assert_eq!(world.condition(ConditionType::Ready).1, "Repairing");
}

#[tokio::test]
async fn a_child_that_lost_its_bucket_label_gets_it_back() {
    let world = World::with_ready_cluster(1).await;
    world.change(STATEFULSET, |set| {
        set["metadata"]["labels"]
            .as_object_mut()
            .unwrap()
            .remove("database.io/bucket");
    });
    let outcome = world.reconcile().await.unwrap();
    assert_eq!(
        outcome,
        Outcome {
            wrote: true,
            next: Next::Waiting
        }
    );
    let set = world.object(STATEFULSET).unwrap();
    assert!(set["metadata"]["labels"]["database.io/bucket"].is_string());
    assert_eq!(world.phase(), Phase::Ready, "nothing was wrong with it");
    let outcome = world.reconcile().await.unwrap();
    assert_eq!(
        outcome,
        Outcome {
            wrote: false,
            next: Next::Ready
        }
    );
}

#[tokio::test]
async fn the_sweep_applies_everything_once_more_and_changes_nothing() {
    let world = World::with_ready_cluster(1).await;
    world.sweep();
    let outcome = world.reconcile().await.unwrap();
    assert_eq!(outcome.next, Next::Ready);
    assert_eq!(
        world.requests(),
        [
            format!("PATCH {CONFIG}"),
            format!("PATCH {SERVICE}"),
            format!("PATCH {READ_WRITE}"),
            format!("PATCH {READ}"),
            format!("POST {SECRETS}"),
            format!("PATCH {STATEFULSET}"),
            format!("GET {CLAIMS}")
        ]
    );
    assert_eq!(world.phase(), Phase::Ready);
    let outcome = world.reconcile().await.unwrap();
    assert_eq!(
        outcome,
        Outcome {
            wrote: false,
            next: Next::Ready
        }
    );
}
