//! Two replicas that both presume to hold a shard: the cost of decision 70, and which replica bears it.

use std::time::Instant;

use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;
use testbed::fencing::{self, Token};
use testbed::shards::Shard;
use testbed::{ControlPlane, Fleet, FleetOptions, Progress, Replica, load, wait_for};

use crate::proxy::{Passed, Proxy, Side, assert_refused};
use crate::support::*;

const CLUSTERS: usize = 8;
const LEASE: &str = "databasecluster-shard-000";

#[tokio::test]
async fn older_of_two_presumed_holders_is_fenced_and_rereads_its_lease() {
    let control_plane = control_plane().await;
    let client = control_plane.client();
    let front = Proxy::start(&control_plane, "older-0").await;
    // Its lease is long, so that it does not expire on a busy machine.
    let older = one(&control_plane, "older", "30s", &front).await;
    let keys = clusters(&control_plane, CLUSTERS).await;
    let before = held_by(&client, "older-0", 0).await;

    // It renews its own Lease, gets no events of other Leases or of the table, and a user deletes the shard's Lease.
    let silence = front.hold(Side::Answer, is_watch_of_ownership);
    leases(&client)
        .delete(LEASE, &DeleteParams::default())
        .await
        .unwrap();
    let other_front = Proxy::start(&control_plane, "newer-0").await;
    // The older one is to write first: the table rejects it, and not the newer replica's write.
    let later = other_front.hold(Side::Request, Passed::is_object_write);
    let newer = one(&control_plane, "newer", "6s", &other_front).await;
    let after = held_by(&client, "newer-0", before.epoch).await;
    let (first, second) = (older.replica(0).unwrap(), newer.replica(0).unwrap());
    until_it_holds(second, true).await;
    until_it_holds(first, true).await;

    let refused = refusals(&client).await;
    let changed = Instant::now();
    let change = json!({"spec": {"resources": {"cpu": "333m"}}});
    load::patch(&client, keys, change).await.unwrap();
    let stale = stale_writes(&front, changed, before.epoch).await;
    // The rejection makes it read its Leases again: it stops though it still gets no events.
    until_it_holds(first, false).await;
    assert!(metric(first, "databasecluster_fenced_writes_total").await >= 1.0);
    assert!(refusals(&client).await - refused >= 1.0);
    assert_refused(&stale);

    later.release();
    silence.release();
    load::wait_all_ready(&client, CLUSTERS, PATIENCE)
        .await
        .unwrap();
    assert_refused(&writes_of(&front, changed, before.epoch));
    all_written_by(&client, "newer-0", after.epoch).await;
    assert_epochs_never_fall(&control_plane);
}

fn is_watch_of_ownership(passed: &Passed) -> bool {
    let watched = ["/leases?", "/shardtables?"];
    watched.iter().any(|path| passed.path.contains(path)) && passed.path.contains("watch=true")
}

/// One replica for one shard.
async fn one<'a>(
    control_plane: &'a ControlPlane,
    name: &str,
    lease: &str,
    front: &Proxy,
) -> Fleet<'a> {
    let kubeconfig = front.kubeconfig.display().to_string();
    let options = FleetOptions {
        name_prefix: Some(name.to_owned()),
        extra_args: vec![
            "--shards=1".to_owned(),
            format!("--lease-duration={lease}"),
            // The proxy has its token.
            "--allow-unfenced".to_owned(),
        ],
        extra_env: vec![("KUBECONFIG".to_owned(), kubeconfig)],
        ..FleetOptions::default()
    };
    Fleet::start(control_plane, 1, options).await.unwrap()
}

async fn held_by(client: &kube::Client, who: &str, above: i32) -> Shard {
    let what = format!("{who} to hold the shard in an epoch above {above}");
    let shards = until_shards(client, &what, |shards| {
        let shard = shards.get(LEASE);
        shard.is_some_and(|shard| shard.holder == who && shard.epoch > above)
    })
    .await;
    shards[LEASE].clone()
}

/// Whether it presumes to hold the shard, by its own metrics.
async fn until_it_holds(replica: &Replica, holds: bool) {
    let wanted = f64::from(u8::from(holds));
    let what = format!("{} to show {wanted} shards of its own", replica.name());
    wait_for(what, PATIENCE, || async {
        let shown = metric(replica, "databasecluster_shard_owned").await;
        Ok(Progress::when(shown == wanted, (), || shown.to_string()))
    })
    .await
    .unwrap();
}

/// Requests under that epoch that were answered: also the dry run with which a reconcile begins, which
/// the fence checks like any other.
fn writes_of(front: &Proxy, since: Instant, epoch: i32) -> Vec<Passed> {
    let passed = front.passed().into_iter().filter(|p| p.at >= since);
    let of_epoch = passed.filter(|p| p.epoch() == Some(epoch));
    // The text of a rejection follows its status.
    let answered = |p: &Passed| p.status.is_some_and(|code| code < 300) || !p.refusal.is_empty();
    of_epoch.filter(answered).collect()
}

async fn stale_writes(front: &Proxy, since: Instant, epoch: i32) -> Vec<Passed> {
    wait_for("the older one's write to be answered", PATIENCE, || async {
        let stale = writes_of(front, since, epoch);
        let met = !stale.is_empty();
        Ok(Progress::when(met, stale, || {
            format!("{:?}", front.passed().last())
        }))
    })
    .await
    .unwrap()
}

async fn all_written_by(client: &kube::Client, who: &str, epoch: i32) {
    let all: kube::Api<k8s_openapi::api::apps::v1::StatefulSet> =
        kube::Api::namespaced(client.clone(), NAMESPACE);
    let all = all.list(&Default::default()).await.unwrap();
    assert_eq!(all.items.len(), CLUSTERS);
    let table = shard_table(client).await.uid;
    for set in all {
        let name = set.name_any();
        let cluster = set.owner_references()[0].uid.clone();
        let token = Token {
            table: table.clone(),
            shard: "000".to_owned(),
            epoch: i64::from(epoch),
            holder: who.to_owned(),
            cluster,
        };
        let written = &set.annotations()[fencing::ANNOTATION];
        assert_eq!(*written, token.to_string(), "{name}");
    }
}
