//! Changes of DatabaseClusters by users, until they are applied.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Event, Service};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use testbed::fencing::{self, Token};
use testbed::{Progress, load, wait_for};

use crate::support::*;

fn image(set: &StatefulSet) -> Option<&str> {
    let containers = &set.spec.as_ref()?.template.spec.as_ref()?.containers;
    containers.first()?.image.as_deref()
}

fn cpu(set: &StatefulSet) -> Option<&str> {
    let containers = &set.spec.as_ref()?.template.spec.as_ref()?.containers;
    let limits = containers.first()?.resources.as_ref()?.limits.as_ref()?;
    limits.get("cpu").map(|quantity| quantity.0.as_str())
}

fn replicas(set: &StatefulSet) -> Option<i32> {
    set.spec.as_ref()?.replicas
}

#[tokio::test]
async fn three_hundred_clusters_become_ready_and_follow_every_change() {
    let control_plane = control_plane(options()).await;
    let fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    load::create(&control_plane, singles("many", 300))
        .await
        .unwrap();
    load::wait_all_ready(&client, 300, 2 * PATIENCE)
        .await
        .unwrap();
    for replica in fleet.replicas() {
        let metrics = replica.metrics().await.unwrap();
        let objects = metrics.sum("databasecluster_shard_objects").unwrap();
        assert!(
            (60.0..=140.0).contains(&objects),
            "{} keeps {objects}",
            replica.name()
        );
    }

    let keys: Vec<load::Key> = (0..30)
        .map(|n| ("many".into(), format!("db-{n:03}")))
        .collect();
    let of = |range: std::ops::Range<usize>| keys[range].to_vec();
    let change = |range, spec| load::patch(&client, of(range), json!({ "spec": spec }));
    change(0..10, json!({"replicas": 3})).await.unwrap();
    change(10..20, json!({"image": "postgres:17.1"}))
        .await
        .unwrap();
    change(20..30, json!({"resources": {"cpu": "750m"}}))
        .await
        .unwrap();
    for number in 0..30 {
        let name = format!("db-{number:03}-db");
        until_statefulset(
            &client,
            ("many", &name),
            "to follow its spec",
            |set| match number {
                0..10 => replicas(set) == Some(3),
                10..20 => image(set) == Some("postgres:17.1"),
                _ => cpu(set) == Some("750m"),
            },
        )
        .await;
    }
    load::wait_all_ready(&client, 300, PATIENCE).await.unwrap();

    change(0..10, json!({"replicas": 1})).await.unwrap();
    for number in 0..10 {
        let name = format!("db-{number:03}");
        until_cluster(
            &client,
            ("many", &name),
            "to be scaled down and Ready",
            |object| is_ready(object) && object.data["status"]["readyReplicas"] == 1,
        )
        .await;
    }
}

#[tokio::test]
async fn drift_in_a_child_is_corrected() {
    let control_plane = control_plane(options()).await;
    let _fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    load::create(&control_plane, singles("drift", 2))
        .await
        .unwrap();
    load::wait_all_ready(&client, 2, PATIENCE).await.unwrap();

    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "drift");
    let meddle = Patch::Merge(json!({"spec": {"replicas": 5}}));
    sets.patch("db-000-db", &PatchParams::default(), &meddle)
        .await
        .unwrap();
    until_statefulset(
        &client,
        ("drift", "db-000-db"),
        "one replica again",
        |set| replicas(set) == Some(1),
    )
    .await;

    let services: Api<Service> = Api::namespaced(client.clone(), "drift");
    let meddle = Patch::Merge(json!({"spec": {"publishNotReadyAddresses": false}}));
    services
        .patch("db-001-db", &PatchParams::default(), &meddle)
        .await
        .unwrap();
    wait_for(
        "the Service to publish addresses that are not ready again",
        PATIENCE,
        || async {
            let service = services.get("db-001-db").await.unwrap();
            let publishes = service
                .spec
                .and_then(|spec| spec.publish_not_ready_addresses);
            Ok(Progress::when(publishes == Some(true), (), || {
                format!("{publishes:?}")
            }))
        },
    )
    .await
    .unwrap();

    let gone = sets.get("db-000-db").await.unwrap().metadata.uid;
    sets.delete("db-000-db", &DeleteParams::default())
        .await
        .unwrap();
    until_statefulset(&client, ("drift", "db-000-db"), "to be re-created", |set| {
        set.metadata.uid != gone
    })
    .await;
    load::wait_all_ready(&client, 2, PATIENCE).await.unwrap();
}

#[tokio::test]
async fn deletion_shows_terminating_and_leaves_no_child() {
    let control_plane = control_plane(options()).await;
    let _fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    load::create(&control_plane, singles("going", 3))
        .await
        .unwrap();
    load::wait_all_ready(&client, 3, PATIENCE).await.unwrap();
    let clusters = load::clusters_in(client.clone(), "going");
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "going");

    // A foreign finalizer keeps the child for a while, so that Terminating can be observed.
    let hold = Patch::Merge(json!({"metadata": {"finalizers": ["example.com/hold"]}}));
    sets.patch("db-000-db", &PatchParams::default(), &hold)
        .await
        .unwrap();
    clusters
        .delete("db-000", &DeleteParams::default())
        .await
        .unwrap();
    until_cluster(
        &client,
        ("going", "db-000"),
        "to report Terminating",
        |object| object.data["status"]["phase"] == "Terminating",
    )
    .await;
    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    sets.patch("db-000-db", &PatchParams::default(), &release)
        .await
        .unwrap();
    gone(&client, "going", "db-000").await;
    assert!(sets.get_opt("db-000-db").await.unwrap().is_none());

    // A whole namespace.
    control_plane
        .run_kubectl(&["delete", "namespace", "going", "--wait=false"])
        .await
        .unwrap();
    for name in ["db-001", "db-002"] {
        gone(&client, "going", name).await;
    }
}

async fn gone(client: &kube::Client, namespace: &str, name: &str) {
    let clusters = load::clusters_in(client.clone(), namespace);
    wait_for(
        format!("{namespace}/{name} to be deleted"),
        PATIENCE,
        || async {
            let found = clusters.get_opt(name).await.unwrap();
            Ok(Progress::when(found.is_none(), (), || {
                format!("{:?}", found.map(|o| o.metadata))
            }))
        },
    )
    .await
    .unwrap();
}

/// The fencing token of a finished cluster is the same in its status and on its StatefulSet, and is the table's.
async fn status_child_and_table_name_one_token(client: &Client, cluster: &DynamicObject) {
    let token = Token::of_status(&cluster.data).unwrap();
    let set = format!("{}-db", cluster.name_any());
    let set = statefulset(client, "reported", &set).await;
    let annotations = set.metadata.annotations.unwrap();
    assert_eq!(annotations[fencing::ANNOTATION], token.to_string());
    assert_eq!(Some(&token.cluster), cluster.metadata.uid.as_ref());
    let table = testbed::table::get(client).await.unwrap().unwrap();
    let entry = &table.entries[&token.shard];
    assert_eq!(token.table, table.uid);
    assert_eq!(
        (token.epoch, token.holder),
        (entry.epoch, entry.holder.clone())
    );
}

#[tokio::test]
async fn readiness_is_reported_by_conditions_an_event_and_kubectl_columns() {
    let control_plane = control_plane(options()).await;
    let _fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    load::create(&control_plane, singles("reported", 1))
        .await
        .unwrap();
    load::wait_all_ready(&client, 1, PATIENCE).await.unwrap();
    let object = cluster(&client, "reported", "db-000").await;
    let status = &object.data["status"];
    assert_eq!(status["phase"], "Ready");
    assert_eq!(status["observedGeneration"], 1);
    assert_eq!(condition(&object, "Degraded").unwrap().0, "False");
    let holder = status["shard"]["holder"].as_str().unwrap();
    let lease = status["shard"]["lease"].as_str().unwrap();
    let shards = testbed::shards::list(&client).await.unwrap();
    let shard = shards.iter().find(|shard| shard.lease == lease).unwrap();
    assert!(shard.covers(object.metadata.uid.as_ref().unwrap()));
    assert_eq!(shard.holder, holder);
    status_child_and_table_name_one_token(&client, &object).await;

    let events: Api<Event> = Api::namespaced(client.clone(), "reported");
    wait_for("the event DatabaseReady", PATIENCE, || async {
        let all = events.list(&ListParams::default()).await.unwrap();
        let found = all
            .items
            .into_iter()
            .find(|e| e.reason.as_deref() == Some("DatabaseReady"));
        Ok(match found {
            Some(event) => {
                assert_eq!(event.message.as_deref(), Some("ready with 1 replicas"));
                assert_eq!(event.action.as_deref(), Some("Reconciling"));
                assert_eq!(
                    event.reporting_component.as_deref(),
                    Some("database-controller")
                );
                Progress::Done(())
            }
            None => Progress::pending("no such event"),
        })
    })
    .await
    .unwrap();

    let table = control_plane
        .run_kubectl(&["get", "dbc", "-n", "reported"])
        .await
        .unwrap();
    let columns: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        columns,
        ["NAME", "READY", "DESIRED", "STATUS", "AVAILABLE", "AGE"]
    );
    let explained = control_plane
        .run_kubectl(&["explain", "databaseclusters.spec.storage.retain"])
        .await
        .unwrap();
    assert!(explained.contains("Retain"), "{explained}");
    control_plane
        .run_kubectl(&["scale", "dbc/db-000", "-n", "reported", "--replicas=2"])
        .await
        .unwrap();
    until_cluster(&client, ("reported", "db-000"), "two replicas", |object| {
        is_ready(object) && object.data["status"]["readyReplicas"] == 2
    })
    .await;
}
