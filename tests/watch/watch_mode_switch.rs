//! API servers that begin to filter by shard, cease to, or differ from each other: detected without a restart.

use std::sync::Mutex;

use sharded_controller::watch::watch_mode::WatchMode;
use testbed::load;

use crate::support::*;

async fn add(control_plane: &testbed::ControlPlane, namespace: &str) {
    load::create(control_plane, clusters(namespace, 20))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_mode_follows_an_api_server_downgrade_and_upgrade() {
    let control_plane = control_plane(true).await;
    let client = control_plane.client();
    add(&control_plane, "before").await;
    let mut replica = Replica::new(control_plane.client(), shards(8)).await;
    assert_eq!(replica.reflector.mode(), WatchMode::Sharded);
    for shard in shards(8).shards().step_by(2) {
        replica.watch(shard);
    }
    let mut other = Replica::new(control_plane.client(), shards(8)).await;
    for shard in shards(8).shards().skip(1).step_by(2) {
        other.watch(shard);
    }
    let replicas = Mutex::new(vec![replica, other]);
    until_true(&client, &replicas, "sharded").await;
    for (sharded, mode, namespace) in [
        (false, WatchMode::Filtered, "without"),
        (true, WatchMode::Sharded, "with"),
    ] {
        control_plane.restart_api_server(sharded).await.unwrap();
        add(&control_plane, namespace).await;
        until_true(&client, &replicas, namespace).await;
        until_mode(&replicas, mode).await;
        until_true(&client, &replicas, namespace).await;
        for replica in &*replicas.lock().unwrap() {
            assert_eq!(replica.strays(), Vec::<String>::new());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn api_servers_with_different_gates_behind_one_address_are_tolerated() {
    let control_plane = control_plane(true).await;
    let client = control_plane.client();
    let second = control_plane
        .second_api_server_with(&[("--feature-gates", "ShardedListAndWatch=false")])
        .await
        .unwrap();
    let proxy = Proxy::to(vec![port_of(&control_plane), second.port()]).await;
    add(&control_plane, "one").await;
    let mut replica = Replica::new(proxy.client(&control_plane).await, shards(8)).await;
    for shard in shards(8).shards().take(5) {
        replica.watch(shard);
    }
    let mut other = Replica::new(proxy.client(&control_plane).await, shards(8)).await;
    for shard in shards(8).shards().skip(5) {
        other.watch(shard);
    }
    let replicas = Mutex::new(vec![replica, other]);
    until_mode(&replicas, WatchMode::Filtered).await;
    add(&control_plane, "two").await;
    until_true(&client, &replicas, "two different gates").await;
    let replicas = replicas.into_inner().unwrap();
    for replica in &replicas {
        assert_eq!(replica.strays(), Vec::<String>::new());
        let changes = replica.metrics.watch.watch_mode_changes_total.get();
        assert!(
            changes <= 3,
            "it changed its way of watching {changes} times"
        );
    }
}
