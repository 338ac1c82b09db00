//! A handover waits for running work, but only for a limited time for work that hangs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;
use testbed::shards::Shard;
use testbed::{ControlPlane, Fleet, FleetOptions, Progress, Replica, load, wait_for};

use crate::proxy::{Hold, Proxy, Side};
use crate::support::*;

const CLUSTERS: usize = 24;
const STOP: Duration = Duration::from_secs(90);

#[tokio::test]
async fn work_beyond_the_drain_timeout_is_cancelled_and_counted_and_the_shard_moves() {
    let control_plane = control_plane().await;
    let client = control_plane.client();
    let proxy = Proxy::start(&control_plane, "hung-0").await;
    let flags = [
        "--shards=8",
        "--drain-timeout=1s",
        "--concurrency=32",
        "--allow-unfenced",
    ]
    .map(str::to_owned);
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

    // Every shard has work that does not end.
    let mut hold = proxy.hold(Side::Request, |p| p.is_object_write());
    load::patch(
        &client,
        keys,
        json!({"spec": {"resources": {"cpu": "333m"}}}),
    )
    .await
    .unwrap();
    hold.has_caught(CLUSTERS, PATIENCE).await;
    let held = Instant::now();
    let options = FleetOptions {
        extra_args: vec!["--shards=8".to_owned()],
        ..FleetOptions::default()
    };
    let others = Fleet::start(&control_plane, 1, options).await.unwrap();
    let successor = others.replica(0).unwrap().name();
    let after = until_shards(
        &client,
        "half of the shards to move all the same",
        |shards| {
            shards
                .values()
                .filter(|shard| shard.holder == successor)
                .count()
                == 4
        },
    )
    .await;
    assert!(
        held.elapsed() < Duration::from_secs(30),
        "it took {:?}",
        held.elapsed()
    );
    for (lease, shard) in &after {
        let moved = i32::from(shard.holder == successor);
        assert_eq!(shard.epoch, before[lease].epoch + moved, "{lease}");
    }
    let moved = after.values().filter(|shard| shard.holder == successor);
    cancelled_work_is_counted(&fleet, moved.collect()).await;
    let refused = refusals(&client).await;
    hold.release();
    late_writes_are_refused(&client, refused).await;
    assert_epochs_never_fall(&control_plane);
}

/// Objects spread randomly over shards: a shard without any has no work to cancel.
async fn cancelled_work_is_counted(fleet: &Fleet<'_>, moved: Vec<&Shard>) {
    let uids = uids(&fleet.control_plane().client()).await;
    let work = moved
        .iter()
        .map(|shard| uids.iter().filter(|uid| shard.covers(uid)).count());
    let work: Vec<usize> = work.filter(|clusters| *clusters > 0).collect();
    assert!(!work.is_empty(), "no shard that moved has a cluster");
    let replica = fleet.replica(0).unwrap();
    wait_for("what was cut short to be counted", PATIENCE, || async {
        let cut = metric(replica, "databasecluster_reconcile_cancelled_total").await;
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

/// The requests in flight arrive now, and everything recovers.
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

/// Two replicas leave in the middle of their work, first one as released, then one that does not wait.
#[tokio::test]
async fn leaving_replica_waits_for_running_work() {
    let control_plane = control_plane().await;
    let client = control_plane.client();
    let fronts = (
        Proxy::start(&control_plane, "waits-0").await,
        Proxy::start(&control_plane, "hasty-0").await,
    );
    let mut waits = one(&control_plane, "waits", Some(&fronts.0), false).await;
    let mut hasty = one(&control_plane, "hasty", Some(&fronts.1), true).await;
    let keys = clusters(&control_plane, CLUSTERS).await;

    let hold = in_the_middle(&client, &fronts.0, &keys, ["waits-0", "hasty-0"], "333m").await;
    let log = waits.replica(0).unwrap().log().to_owned();
    let leaving = waits.replica_mut(0).unwrap().term(STOP);
    let meanwhile = async {
        wait_for("a shard to be given up", PATIENCE, || async {
            let log = std::fs::read_to_string(&log).unwrap();
            let met = log.contains("handing the shard over");
            Ok(Progress::when(met, (), || "none is".into()))
        })
        .await
        .unwrap();
        one_each_for(&client, ["waits-0", "hasty-0"], Duration::from_secs(2)).await;
        hold.release();
    };
    let (status, ()) = tokio::join!(leaving, meanwhile);
    assert!(status.unwrap().success());
    all_held_by(&client, "hasty-0").await;
    assert_eq!(cut_short(waits.replica(0).unwrap()), Some(0));
    load::wait_all_ready(&client, CLUSTERS, PATIENCE)
        .await
        .unwrap();

    let _successor = one(&control_plane, "successor", None, false).await;
    let hold = in_the_middle(
        &client,
        &fronts.1,
        &keys,
        ["hasty-0", "successor-0"],
        "444m",
    )
    .await;
    let refused = refusals(&client).await;
    let status = hasty.replica_mut(0).unwrap().term(STOP).await.unwrap();
    assert!(status.success(), "{status}");
    all_held_by(&client, "successor-0").await;
    let cut = cut_short(hasty.replica(0).unwrap());
    assert!(cut.is_some_and(|cut| cut >= 1), "{cut:?} were cut short");
    hold.release();
    late_writes_are_refused(&client, refused).await;
    assert_epochs_never_fall(&control_plane);
}

/// Both hold a shard, and the first is in the middle of writing: what it writes is held back.
async fn in_the_middle(
    client: &kube::Client,
    front: &Proxy,
    keys: &[load::Key],
    two: [&str; 2],
    cpu: &str,
) -> Hold {
    until_shards(client, "each of two to hold a shard", |shards| {
        one_each(shards, two)
    })
    .await;
    let mut hold = front.hold(Side::Request, |p| p.is_object_write());
    let change = json!({"spec": {"resources": {"cpu": cpu}}});
    load::patch(client, keys.to_vec(), change).await.unwrap();
    hold.has_caught(1, PATIENCE).await;
    hold
}

fn one_each(shards: &BTreeMap<String, Shard>, two: [&str; 2]) -> bool {
    let of = |who: &str| shards.values().filter(|shard| shard.holder == who).count();
    two.map(of) == [1, 1]
}

/// Checks that nothing happens for this long.
async fn one_each_for(client: &kube::Client, two: [&str; 2], time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        let shards = shards_now(client).await;
        assert!(
            one_each(&shards, two),
            "a shard was handed over while work ran: {shards:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn all_held_by(client: &kube::Client, who: &str) {
    let shards = shards_now(client).await;
    let all = shards.values().all(|shard| shard.holder == who);
    assert!(all, "{who} is to hold every shard: {shards:?}");
}

/// How many reconciles a replica cancelled, by its last log lines.
fn cut_short(replica: &Replica) -> Option<u64> {
    let log = std::fs::read_to_string(replica.log()).unwrap();
    let (_, rest) = log.rsplit_once("reconciles_cut_short=")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// One replica for two shards; `hasty`: it does not wait for work. The leases are long, so that no replica
/// counts as dead on a busy machine.
async fn one<'a>(
    control_plane: &'a ControlPlane,
    name: &str,
    front: Option<&Proxy>,
    hasty: bool,
) -> Fleet<'a> {
    let flags = ["--shards=2", "--drain-timeout=60s", "--lease-duration=30s"];
    let mut options = FleetOptions {
        name_prefix: Some(name.to_owned()),
        extra_args: flags.map(str::to_owned).to_vec(),
        ..FleetOptions::default()
    };
    if let Some(front) = front {
        let kubeconfig = front.kubeconfig.display().to_string();
        let through = ("KUBECONFIG".to_owned(), kubeconfig);
        options.extra_env.push(through);
        // The proxy has its token.
        options.extra_args.push("--allow-unfenced".to_owned());
    }
    if hasty {
        options.binary = Some(testbed::fleet::failpoints_binary().unwrap());
        let failpoint = ("DBC_FAILPOINTS".to_owned(), "drain".to_owned());
        options.extra_env.push(failpoint);
    }
    Fleet::start(control_plane, 1, options).await.unwrap()
}
