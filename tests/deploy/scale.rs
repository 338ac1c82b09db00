//! From one replica to five and back while users change their databases: no change is lost, no shard is without a
//! holder.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use kube::Client;
use serde_json::json;
use testbed::shards::{self, wait_balanced};
use testbed::{ControlPlaneOptions, Fleet, FleetOptions, Progress, load, wait_for};

use crate::support::*;

const CLUSTERS: usize = 40;
const SPACE: &str = "scale";

/// Changes one cluster after the other until stopped; returns the number of changes.
async fn change_all_the_time(client: Client, stop: Arc<AtomicBool>) -> u32 {
    let mut changes = 0;
    while !stop.load(Ordering::Relaxed) {
        let number = changes as usize % CLUSTERS;
        let key = (SPACE.to_owned(), format!("db-{number:04}"));
        let cpu = format!("{}m", 100 + changes);
        let change = json!({"spec": {"resources": {"cpu": cpu}}});
        load::patch(&client, vec![key], change).await.unwrap();
        changes += 1;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    changes
}

/// Reads all shards repeatedly; counts how often one of them had no holder.
async fn watch_for_orphans(
    client: Client,
    stop: Arc<AtomicBool>,
    samples: Arc<AtomicU32>,
) -> Vec<String> {
    let mut found = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let shards = shards::list(&client).await.unwrap();
        found.extend(
            shards
                .into_iter()
                .filter(|s| s.holder.is_empty())
                .map(|s| s.lease),
        );
        samples.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    found
}

#[tokio::test]
async fn scaling_from_one_to_five_replicas_and_back_under_load_loses_nothing() {
    let control_plane = control_plane(ControlPlaneOptions {
        lift_client_limits: true,
        // Without Pods, which would only take time.
        statefulset_stage: true,
        ..ControlPlaneOptions::default()
    })
    .await;
    let client = control_plane.client();
    let mut fleet = Fleet::start(&control_plane, 1, FleetOptions::default())
        .await
        .unwrap();
    load::create(&control_plane, load::samples(CLUSTERS, &[SPACE]))
        .await
        .unwrap();
    load::wait_all_ready(&client, CLUSTERS, PATIENCE)
        .await
        .unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let samples = Arc::new(AtomicU32::new(0));
    let changing = tokio::spawn(change_all_the_time(client.clone(), Arc::clone(&stop)));
    let watching = tokio::spawn(watch_for_orphans(
        client.clone(),
        Arc::clone(&stop),
        Arc::clone(&samples),
    ));
    for _ in 0..4 {
        fleet.start_replica(&[]).await.unwrap();
    }
    wait_balanced(&fleet, PATIENCE).await.unwrap();
    // Down again, one by one, the first included: as a Deployment does when it is scaled.
    for index in [0, 2, 1, 4] {
        let status = fleet
            .replica_mut(index)
            .unwrap()
            .term(Duration::from_secs(20))
            .await
            .unwrap();
        assert!(status.success(), "{status}");
    }
    wait_balanced(&fleet, PATIENCE).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let changes = changing.await.unwrap();
    assert_eq!(
        watching.await.unwrap(),
        Vec::<String>::new(),
        "shards without a holder"
    );
    assert!(
        samples.load(Ordering::Relaxed) > 20,
        "too few samples for a result"
    );
    assert!(
        changes as usize > 2 * CLUSTERS,
        "too few changes for a result: {changes}"
    );

    load::wait_all_ready(&client, CLUSTERS, PATIENCE)
        .await
        .unwrap();
    wait_for(
        "the last change of each cluster in its StatefulSet",
        PATIENCE,
        || async {
            let behind = behind(&client).await;
            Ok(Progress::when(behind.is_empty(), (), || behind.join(", ")))
        },
    )
    .await
    .unwrap();
}

/// Clusters whose StatefulSet does not request the CPU of the cluster's spec.
async fn behind(client: &Client) -> Vec<String> {
    let sets: kube::Api<k8s_openapi::api::apps::v1::StatefulSet> =
        kube::Api::namespaced(client.clone(), SPACE);
    let mut found = Vec::new();
    for cluster in load::clusters_in(client.clone(), SPACE)
        .list(&Default::default())
        .await
        .unwrap()
    {
        let name = cluster.metadata.name.clone().unwrap();
        let wanted = cluster.data["spec"]["resources"]["cpu"]
            .as_str()
            .unwrap()
            .to_owned();
        let set = sets.get(&format!("{name}-db")).await.unwrap();
        let set = serde_json::to_value(set).unwrap();
        let containers = &set["spec"]["template"]["spec"]["containers"];
        if containers[0]["resources"]["requests"]["cpu"] != json!(wanted) {
            found.push(format!("{name}: {wanted} in {containers}"));
        }
    }
    found
}
