//! Writes that the fence keeps refusing, and edits of what the operator relies on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::core::memory::WATCH_LAG_MS_MAX;

const FORGED: u32 = 999;

fn forged(uid: &str) -> String {
    format!("table/000/{FORGED}/nobody/{uid}")
}

impl World {
    /// Someone writes a token of this cluster that is far ahead of ours.
    fn forge(&self, path: &str) {
        let uid = self.cluster().uid.to_string();
        self.change(path, |object| {
            object["metadata"]["annotations"]["database.io/fencing-token"] = json!(forged(&uid));
        });
    }

    /// Executes the command of the report.
    fn remove_token(&self, path: &str) {
        self.change(path, |object| {
            let annotations = object["metadata"]["annotations"].as_object_mut().unwrap();
            annotations.remove("database.io/fencing-token");
        });
    }

    /// Runs as the pool does: five retries, and then no more.
    async fn reconcile_until_settled(&self) -> Result<Outcome, Failure> {
        for _ in 0..5 {
            let ended = self.reconcile().await;
            if !matches!(ended, Err(Failure::Retry { fenced: true, .. })) {
                return ended;
            }
        }
        self.reconcile_beside(&LAST_STATUS).await
    }

    fn fails_for(&self, ended: Result<Outcome, Failure>, expected: Cause) -> String {
        match ended {
            Err(Failure::Failed { cause, message }) if cause == expected => message,
            other => panic!("expected {expected:?}: {other:?}"),
        }
    }

    fn degraded(&self) -> (ConditionStatus, String) {
        let (status, reason, _) = self.condition(ConditionType::Degraded);
        (status, reason)
    }
}

fn is_forged() -> (ConditionStatus, String) {
    (ConditionStatus::True, "FencingTokenAhead".to_owned())
}

fn scaled(replicas: i32) -> Value {
    json!({"image": "postgres:18", "replicas": replicas})
}

#[tokio::test]
async fn forged_token_is_reported_with_its_remedy_and_work_resumes_once_removed() {
    for (path, kind) in [
        (STATEFULSET, "statefulset orders-db"),
        (CONFIG, "configmap orders-db"),
        (READ, "service orders-r"),
    ] {
        let world = World::with_ready_cluster(1).await;
        world.forge(path);
        world.user_applies(scaled(2));
        world.change(path, |object| object["spec"]["edited"] = json!(true));
        world.change(CONFIG, |config| config["data"]["edited"] = json!("x"));
        let message = world.fails_for(world.reconcile_until_settled().await, Cause::TokenAhead);
        let remedy = format!("kubectl annotate -n shop {kind} database.io/fencing-token-");
        assert!(message.contains(&remedy), "{message}");
        assert!(message.contains("epoch 999"), "{message}");
        assert_eq!(world.degraded(), is_forged(), "{path}");
        assert_eq!(
            world.condition(ConditionType::Ready).0,
            ConditionStatus::False
        );
        assert_eq!(world.cluster().status.observed_generation, 2);
        let notes = world.notes();
        let reported = notes.iter().filter(|note| note.contains(&remedy)).count();
        assert_eq!(reported, 1, "{notes:?}");

        // It does not loop, nor report it again: one attempt each time.
        world.requests();
        for _ in 0..2 {
            world.fails_for(world.reconcile().await, Cause::TokenAhead);
        }
        let tries = world.requests();
        let refused = tries.iter().filter(|line| line.contains(path)).count();
        assert_eq!(refused, 2, "{tries:?}");
        assert!(
            !tries.iter().any(|line| line.contains("/status")),
            "{tries:?}"
        );

        world.remove_token(path);
        world.reconcile().await.unwrap();
        world.set_pods(2, 2);
        world.reconcile().await.unwrap();
        assert_eq!(world.phase(), Phase::Ready, "{path}");
        assert_eq!(world.object(STATEFULSET).unwrap()["spec"]["replicas"], 2);
    }
}

#[tokio::test]
async fn a_forged_token_on_one_object_does_not_stop_the_others() {
    let world = World::with_ready_cluster(1).await;
    world.forge(CONFIG);
    world.forge(READ);
    world.user_applies(scaled(2));
    for path in [CONFIG, READ, READ_WRITE] {
        world.change(path, |object| object["spec"]["edited"] = json!(true));
    }
    world.requests();
    world.fails_for(
        world.reconcile_beside(&LAST_STATUS).await,
        Cause::TokenAhead,
    );
    let tries = world.requests();
    for path in [CONFIG, READ, READ_WRITE, STATEFULSET, BUDGET] {
        assert!(
            tries.contains(&format!("PATCH {path}")),
            "{path}: {tries:?}"
        );
    }
    assert_eq!(world.object(STATEFULSET).unwrap()["spec"]["replicas"], 2);
    assert!(world.object(BUDGET).is_some());
}

#[tokio::test]
async fn a_refusal_that_passes_is_not_reported() {
    let world = World::with_ready_cluster(1).await;
    world.forge(READ);
    let ended = world.reconcile().await;
    assert!(
        matches!(ended, Err(Failure::Retry { fenced: true, .. })),
        "{ended:?}"
    );
    assert_eq!(world.phase(), Phase::Ready);
    world.remove_token(READ);
    assert_eq!(world.reconcile().await.unwrap().next, Next::Ready);
    assert_eq!(world.degraded().0, ConditionStatus::False);
}

#[tokio::test]
async fn other_refusals_are_reported_with_the_api_servers_message() {
    let world = World::with_ready_cluster(1).await;
    world.user_applies(scaled(2));
    let policies = ["databasecluster-fence-holder", "databasecluster-limits"];
    for policy in policies {
        let message = format!("ValidatingAdmissionPolicy '{policy}' denied request: not yours");
        world.fake.with(|state| {
            let answer =
                json!({"kind": "Status", "status": "Failure", "code": 403, "message": message});
            state
                .refusals
                .push((format!("PATCH {STATEFULSET}"), answer));
        });
        let reported = world.fails_for(world.reconcile_beside(&LAST_STATUS).await, Cause::Fenced);
        assert!(reported.contains(&message), "{reported}");
        let expected = (ConditionStatus::True, "WriteRefused".to_owned());
        assert_eq!(world.degraded(), expected);
        let counter = &world.shared_metrics.fleet.fenced_writes_total;
        assert!(counter.with_label_values(&["StatefulSet"]).get() > 0);
    }
}

#[tokio::test]
async fn nothing_is_reported_once_the_right_to_act_has_ended() {
    let world = World::with_ready_cluster(1).await;
    world.forge(READ);
    world.user_applies(scaled(2));
    world.requests();
    world.ended.cancel();
    let ended = world.reconcile_beside(&LAST_STATUS).await;
    assert_eq!(ended, Err(Failure::Lost));
    assert_eq!(world.requests(), [""; 0]);
}

#[tokio::test]
async fn forged_status_token_is_reported_once_and_children_are_still_updated() {
    let world = World::with_ready_cluster(1).await;
    world.change(CLUSTER, |cluster| {
        cluster["status"]["shard"]["epoch"] = json!(FORGED);
    });
    world.user_applies(scaled(2));
    let before = world.notes().len();
    let message = world.fails_for(world.reconcile_until_settled().await, Cause::TokenAhead);
    let remedy = "kubectl patch -n shop databasecluster orders --subresource=status";
    assert!(message.contains(remedy), "{message}");
    for _ in 0..3 {
        // A run that only waits for the watch forgets nothing of it.
        let cluster = world.cluster();
        let newest = u64::MAX.to_string();
        world.reconciler.with_memory(&cluster, |memory| {
            memory.wrote_cluster(&newest, world.clock.now_ms());
        });
        assert_eq!(world.reconcile().await.unwrap().next, Next::Waiting);
        let shown = cluster.resource_version.clone();
        world.reconciler.with_memory(&cluster, |memory| {
            memory.wrote_cluster(&shown, world.clock.now_ms());
        });
        world.fails_for(world.reconcile().await, Cause::TokenAhead);
    }
    let notes = world.notes();
    assert_eq!(notes.len(), before + 1, "{notes:?}");
    assert_eq!(world.object(STATEFULSET).unwrap()["spec"]["replicas"], 2);
    assert_eq!(
        world.cluster().status.observed_generation,
        1,
        "not executed"
    );

    world.change(CLUSTER, |cluster| {
        cluster["status"].as_object_mut().unwrap().remove("shard");
    });
    world.set_pods(2, 2);
    world.reconcile().await.unwrap();
    assert_eq!(world.phase(), Phase::Ready);
    assert_eq!(world.cluster().status.observed_generation, 2);
}

#[tokio::test]
async fn forged_token_blocks_deletion_visibly_until_removed() {
    let world = World::with_ready_cluster(1).await;
    world.change(CLUSTER, |c| {
        c["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        c["spec"]["storage"]["retain"] = json!("Delete");
    });
    let uid = world.cluster().uid.to_string();
    let claim = format!("{CLAIMS}/data-orders-db-0");
    world.fake.with(|state| {
        let labels = json!({"database.io/cluster-uid": uid});
        state.put(
            &claim,
            json!({"metadata": {
                "name": "data-orders-db-0", "labels": labels, "annotations": {},
            }}),
        )
    });
    for path in [STATEFULSET, claim.as_str(), CLUSTER] {
        world.forge(path);
        let message = world.fails_for(world.reconcile_until_settled().await, Cause::TokenAhead);
        assert!(message.contains("kubectl annotate -n shop"), "{message}");
        assert_eq!(world.degraded(), is_forged(), "{path}");
        assert_eq!(world.phase(), Phase::Terminating);
        assert!(world.object(path).is_some());
        world.requests();
        world.fails_for(world.reconcile().await, Cause::TokenAhead);
        let again = world.requests();
        assert!(
            !again.iter().any(|line| line.contains("/status")),
            "{again:?}"
        );
        world.remove_token(path);
        world.reconcile().await.unwrap();
        world.fake.with(|state| state.objects.remove(STATEFULSET));
        let left = world.fake.with(|state| {
            let holds = |path: &str| {
                let object = state.objects.get(path);
                object.is_some_and(|o| o["metadata"]["deletionTimestamp"].is_null())
            };
            (holds(STATEFULSET), holds(&claim))
        });
        assert!(!left.0, "{path}");
        if path == STATEFULSET {
            world.forge(&claim);
            continue;
        }
        break;
    }
    assert_eq!(world.object(&claim), None);
    assert_eq!(world.object(CLUSTER), None);
}

#[tokio::test]
async fn forged_annotation_of_a_new_cluster_is_reported_before_anything_is_created() {
    let world = World::new();
    world.user_applies(scaled(1));
    world.change(CLUSTER, |cluster| {
        cluster["metadata"]["annotations"] = json!({})
    });
    world.forge(CLUSTER);
    let message = world.fails_for(world.reconcile_until_settled().await, Cause::TokenAhead);
    let remedy = "kubectl annotate -n shop databasecluster orders database.io/fencing-token-";
    assert!(message.contains(remedy), "{message}");
    assert_eq!(world.degraded(), is_forged());
    assert_eq!(world.object(STATEFULSET), None);
    world.remove_token(CLUSTER);
    world.reconcile().await.unwrap();
    assert!(world.object(STATEFULSET).is_some());
}

#[tokio::test]
async fn edited_bucket_label_is_corrected_on_every_kind_of_child() {
    for edited in [json!("17"), json!("x"), Value::Null] {
        for path in [STATEFULSET, SERVICE, READ_WRITE, READ, CONFIG, BUDGET] {
            // Also after a takeover: what is observed for the first time is not trusted either.
            for epoch in [1, 2] {
                let first = World::with_ready_cluster(2).await;
                let bucket = first.cluster().bucket.to_string();
                // The watch has shown our writes.
                first.reconcile().await.unwrap();
                first.change(path, |object| {
                    let labels = object["metadata"]["labels"].as_object_mut().unwrap();
                    labels.insert("database.io/bucket".to_owned(), edited.clone());
                    labels.retain(|_, value| !value.is_null());
                });
                let taken = World::on(first.fake.clone(), 2);
                let world = if epoch == 1 { &first } else { &taken };
                world.reconcile().await.unwrap();
                let labels = &world.object(path).unwrap()["metadata"]["labels"];
                assert_eq!(labels["database.io/bucket"], *bucket, "{path}, {edited}");
                world.set_pods(2, 2);
                world.reconcile().await.unwrap();
                assert_eq!(world.phase(), Phase::Ready);
            }
        }
    }
}

#[tokio::test]
async fn a_statefulset_under_another_bucket_is_found_before_the_finalizer_goes() {
    let world = World::with_ready_cluster(1).await;
    world.change(STATEFULSET, |set| {
        let labels = set["metadata"]["labels"].as_object_mut().unwrap();
        labels.remove("database.io/bucket");
    });
    world.change(CLUSTER, |c| {
        c["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    assert_eq!(world.reconcile().await.unwrap().next, Next::Waiting);
    assert!(world.object(CLUSTER).is_some(), "its Pods still run");
    world.reconcile().await.unwrap();
    let set = world.object(STATEFULSET).unwrap();
    assert!(set["metadata"]["deletionTimestamp"].is_string());
    world.fake.with(|state| state.objects.remove(STATEFULSET));
    assert_eq!(world.reconcile().await.unwrap().next, Next::Forget);
}

#[tokio::test]
async fn newer_generation_is_awaited_only_as_long_as_a_watch_may_lag() {
    for path in [STATEFULSET, READ, CONFIG, BUDGET] {
        let world = World::with_ready_cluster(2).await;
        world.change(path, |object| {
            object["metadata"]["annotations"]["database.io/generation"] = json!("999999999");
        });
        world.user_applies(scaled(3));
        let Next::RequeueAfter { ms } = world.reconcile().await.unwrap().next else {
            panic!("{path}: there is no end to the wait");
        };
        assert!((1..=WATCH_LAG_MS_MAX).contains(&ms), "{ms} ms");
        // The status is about the generation that is applied.
        assert_eq!(world.cluster().status.observed_generation, 1);
        let cluster = world.cluster();
        let long_ago_ms = world.clock.now_ms().saturating_sub(WATCH_LAG_MS_MAX);
        world.reconciler.with_memory(&cluster, |memory| {
            memory.awaits_no_newer();
            memory.awaits_newer(cluster.generation, long_ago_ms);
        });
        world.reconcile().await.unwrap();
        world.reconcile().await.unwrap();
        let annotations = &world.object(path).unwrap()["metadata"]["annotations"];
        assert_eq!(annotations["database.io/generation"], "2", "{path}");
        assert_eq!(world.object(STATEFULSET).unwrap()["spec"]["replicas"], 3);
        world.set_pods(3, 3);
        world.reconcile().await.unwrap();
        assert_eq!(world.phase(), Phase::Ready);
        assert_eq!(world.cluster().status.observed_generation, 2);
    }
}
