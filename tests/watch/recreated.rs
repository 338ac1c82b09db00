//! A DatabaseCluster re-created under its former name, perhaps in another shard, while a child of the
//! previous one still terminates: two replicas, so that child and new cluster may belong to different ones.

use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use testbed::{Fleet, FleetOptions, Progress, load, shards, wait_for};

use crate::support::*;

const COUNT: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recreated_cluster_waits_for_the_previous_child_and_then_gets_its_own() {
    let control_plane = control_plane(true).await;
    let client = control_plane.client();
    for mode in ["auto", "off"] {
        let options = FleetOptions {
            extra_args: vec!["--sharded-watch".into(), mode.into()],
            name_prefix: Some(mode.to_owned()),
            ..FleetOptions::default()
        };
        let mut fleet = Fleet::install(&control_plane, options).await.unwrap();
        fleet.start_replicas_at_once(2).await.unwrap();
        shards::wait_balanced(&fleet, PATIENCE).await.unwrap();
        let namespace = format!("again-{mode}");
        load::create(&control_plane, clusters(&namespace, COUNT))
            .await
            .unwrap();
        load::wait_all_ready(&client, COUNT, PATIENCE)
            .await
            .unwrap();
        let former = buckets(&client, &namespace).await;
        end_all(&client, &namespace).await;
        load::create(&control_plane, clusters(&namespace, COUNT))
            .await
            .unwrap();
        let present = buckets(&client, &namespace).await;
        assert_ne!(
            former, present,
            "no successor lies elsewhere: nothing is shown"
        );
        until_all_wait(&client, &namespace).await;
        let sets: Api<StatefulSet> = Api::namespaced(client.clone(), &namespace);
        let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        for number in 0..COUNT {
            let name = format!("db-{number:03}-db");
            sets.patch(&name, &PatchParams::default(), &release)
                .await
                .unwrap();
        }
        load::wait_all_ready(&client, COUNT, PATIENCE)
            .await
            .unwrap();
        let api = load::clusters_in(client.clone(), &namespace);
        for number in 0..COUNT {
            let owner = api.get(&format!("db-{number:03}")).await.unwrap();
            let set = sets.get(&format!("db-{number:03}-db")).await.unwrap();
            let uid = owner.uid().unwrap();
            assert_eq!(set.owner_references()[0].uid, uid);
            let bucket = shards::bucket(&uid).to_string();
            assert_eq!(set.labels()["database.io/bucket"], bucket);
            api.delete(&owner.name_any(), &DeleteParams::default())
                .await
                .unwrap();
        }
        until_empty(&client, &namespace).await;
        for index in 0..2 {
            let replica = fleet.replica_mut(index).unwrap();
            replica.term(Duration::from_secs(20)).await.unwrap();
        }
    }
}

async fn buckets(client: &Client, namespace: &str) -> Vec<u8> {
    let api = load::clusters_in(client.clone(), namespace);
    let mut buckets = Vec::new();
    for number in 0..COUNT {
        let object = api.get(&format!("db-{number:03}")).await.unwrap();
        buckets.push(shards::bucket(&object.uid().unwrap()));
    }
    buckets
}

/// Deletes all clusters, whose StatefulSets have a foreign finalizer, and removes the operator's finalizer
/// by hand, as impatient users do.
async fn end_all(client: &Client, namespace: &str) {
    let api = load::clusters_in(client.clone(), namespace);
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let hold = Patch::Merge(json!({"metadata": {"finalizers": ["example.com/hold"]}}));
    let strip = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    let params = PatchParams::default();
    for number in 0..COUNT {
        let (name, set) = (format!("db-{number:03}"), format!("db-{number:03}-db"));
        sets.patch(&set, &params, &hold).await.unwrap();
        api.delete(&name, &DeleteParams::background())
            .await
            .unwrap();
        wait_for(format!("{set} to terminate"), PATIENCE, || async {
            let found = sets.get(&set).await.unwrap();
            let terminates = found.metadata.deletion_timestamp.is_some();
            Ok(Progress::when(terminates, (), || "it does not".into()))
        })
        .await
        .unwrap();
        api.patch(&name, &params, &strip).await.unwrap();
    }
    until_empty(client, namespace).await;
}

async fn until_empty(client: &Client, namespace: &str) {
    let api = load::clusters_in(client.clone(), namespace);
    wait_for(
        format!("no DatabaseCluster in {namespace}"),
        PATIENCE,
        || async {
            let left = api.list(&Default::default()).await.unwrap().items.len();
            Ok(Progress::when(left == 0, (), || format!("{left} are left")))
        },
    )
    .await
    .unwrap();
}

/// Each re-created cluster was reconciled and reports not ready; the child of the previous one is unchanged.
async fn until_all_wait(client: &Client, namespace: &str) {
    let api = load::clusters_in(client.clone(), namespace);
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    wait_for("all successors to wait", PATIENCE, || async {
        let objects = api.list(&Default::default()).await.unwrap().items;
        let waiting = objects.iter().filter(|object| {
            let observed = object.data.pointer("/status/observedGeneration");
            observed.is_some() && load::why_not_ready(object).is_some()
        });
        let waiting = waiting.count();
        Ok(Progress::when(waiting == COUNT, (), || {
            format!("{waiting} of {COUNT}")
        }))
    })
    .await
    .unwrap();
    for set in sets.list(&Default::default()).await.unwrap() {
        assert!(
            set.metadata.deletion_timestamp.is_some(),
            "{}",
            set.name_any()
        );
    }
}
