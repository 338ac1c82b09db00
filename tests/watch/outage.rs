//! An API server that stops and returns without its watch history: everything is listed again.

use std::sync::Mutex;

use kube::api::DeleteParams;
use testbed::load;

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_deleted_during_an_outage_are_removed() {
    let control_plane = control_plane(true).await;
    let proxy = Proxy::to(vec![port_of(&control_plane)]).await;
    let mut replica = Replica::new(proxy.client(&control_plane).await, shards(8)).await;
    load::create(&control_plane, clusters("outage", 30))
        .await
        .unwrap();
    for shard in shards(8).shards() {
        replica.watch(shard);
    }
    let replicas = Mutex::new(vec![replica]);
    let client = control_plane.client();
    until_true(&client, &replicas, "before the outage").await;

    proxy.lead_to(Vec::new());
    let api = load::clusters_in(client.clone(), "outage");
    for number in 0..10 {
        let name = format!("db-{number:03}");
        api.delete(&name, &DeleteParams::default()).await.unwrap();
    }
    // A new API server has no watch history: continuing from an old version is answered with 410.
    control_plane.restart_api_server(true).await.unwrap();
    proxy.lead_to(vec![port_of(&control_plane)]);
    let truth = until_true(&client, &replicas, "after the outage").await;
    assert_eq!(truth.len(), 20);
    let replicas = replicas.into_inner().unwrap();
    assert!(
        replicas[0].relists() > 0,
        "nothing was listed again: this test has shown nothing"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_paged_without_streaming_lists() {
    let control_plane = control_plane(true).await;
    let old = control_plane
        .second_api_server_with(&[(
            "--feature-gates",
            "ShardedListAndWatch=true,WatchList=false",
        )])
        .await
        .unwrap();
    let proxy = Proxy::to(vec![old.port()]).await;
    // More than a page.
    load::create(&control_plane, clusters("pages", 520))
        .await
        .unwrap();
    let mut replica = Replica::new(proxy.client(&control_plane).await, shards(1)).await;
    for shard in shards(1).shards() {
        replica.watch(shard);
    }
    let replicas = Mutex::new(vec![replica]);
    let client = control_plane.client();
    until_true(&client, &replicas, "page by page").await;
    let api = load::clusters_in(client.clone(), "pages");
    api.delete("db-007", &DeleteParams::default())
        .await
        .unwrap();
    let truth = until_true(&client, &replicas, "what changes after the pages").await;
    assert_eq!(truth.len(), 519);
}
