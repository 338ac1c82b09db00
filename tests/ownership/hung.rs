//! Work that hangs does not keep a shard where it is.

use std::time::Duration;

use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;
use testbed::shards::Shard;
use testbed::{Fleet, FleetOptions, Progress, load, wait_for};

use crate::proxy::{Proxy, Side};
use crate::support::*;

const CLUSTERS: usize = 24;

#[tokio::test]
async fn work_that_outlasts_the_drain_timeout_is_cut_short_and_counted_and_the_shard_moves() {
    let control_plane = control_plane().await;
    let client = control_plane.client();
    let proxy = Proxy::start(&control_plane, "hung-0").await;
    let flags = ["--shards=8", "--drain-timeout=1s", "--concurrency=32"].map(str::to_owned);
    let options = FleetOptions {
        name_prefix: Some("hung".to_owned()),
        extra_args: flags.to_vec(),
        extra_env: vec![(
            "KUBECONFIG".to_owned(),
            proxy.kubeconfig.display().to_string(),
        )],
        ..FleetOptions::default()
    };
    let fleet = Fleet::start(&control_plane, 1, options).await.unwrap();
    let keys = clusters(&control_plane, CLUSTERS).await;
    let before = until_shards(&client, "one replica to hold all", |shards| {
        shards.len() == 8 && shards.values().all(|shard| shard.holder == "hung-0")
    })
    .await;

    // Every shard has work that comes to no end.
    let mut hold = proxy.hold(Side::Request, |p| p.is_object_write());
    load::patch(
        &client,
        keys,
        json!({"spec": {"resources": {"cpu": "333m"}}}),
    )
    .await
    .unwrap();
    hold.has_caught(CLUSTERS, PATIENCE).await;
    let held = std::time::Instant::now();
    let options = FleetOptions {
        extra_args: vec!["--shards=8".to_owned()],
        ..FleetOptions::default()
    };
    let others = Fleet::start(&control_plane, 1, options).await.unwrap();
    let heir = others.replica(0).unwrap().name();
    let after = until_shards(
        &client,
        "half of the shards to move all the same",
        |shards| shards.values().filter(|shard| shard.holder == heir).count() == 4,
    )
    .await;
    assert!(
        held.elapsed() < Duration::from_secs(30),
        "it took {:?}",
        held.elapsed()
    );
    for (lease, shard) in &after {
        let moved = i32::from(shard.holder == heir);
        assert_eq!(shard.epoch, before[lease].epoch + moved, "{lease}");
    }
    let moved = after.values().filter(|shard| shard.holder == heir);
    what_was_cut_short_is_counted(&fleet, moved.collect()).await;
    let refused = refusals(&client).await;
    hold.release();
    late_writes_are_refused(&client, refused).await;
    assert_epochs_never_fall(&control_plane);
}

/// Where a shard's objects are is up to chance: one without any has nothing to cut short.
async fn what_was_cut_short_is_counted(fleet: &Fleet<'_>, moved: Vec<&Shard>) {
    let uids = uids(&fleet.control_plane().client()).await;
    let work = moved
        .iter()
        .map(|shard| uids.iter().filter(|uid| shard.covers(uid)).count());
    let work: Vec<usize> = work.filter(|clusters| *clusters > 0).collect();
    assert!(!work.is_empty(), "no shard that moved has a cluster");
    let replica = fleet.replica(0).unwrap();
    wait_for("what was cut short to be counted", PATIENCE, || async {
        let cut = figure(replica, "databasecluster_reconcile_cancelled_total").await;
        let stopped = log_lines(replica, "reason=\"handed_over\"");
        let met = cut >= work.iter().sum::<usize>() as f64 && stopped == work.len();
        Ok(Progress::when(met, (), || {
            format!("{cut} reconciles, {stopped} shards; clusters in the shards: {work:?}")
        }))
    })
    .await
    .unwrap();
}

async fn uids(client: &kube::Client) -> Vec<String> {
    let all = load::clusters_in(client.clone(), NAMESPACE);
    let all = all.list(&ListParams::default()).await.unwrap();
    all.into_iter().filter_map(|object| object.uid()).collect()
}

/// What was on its way arrives now, and everything comes right.
async fn late_writes_are_refused(client: &kube::Client, refused: f64) {
    load::wait_all_ready(client, CLUSTERS, PATIENCE)
        .await
        .unwrap();
    wait_for("late writes to be refused", PATIENCE, || async {
        let since = refusals(client).await - refused;
        Ok(Progress::when(since >= 1.0, (), || format!("{since} were")))
    })
    .await
    .unwrap();
}
