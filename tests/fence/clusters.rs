//! DatabaseClusters: status, finalizers, and the one that was deleted and made again.

use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::{Value, json};
use testbed::{Progress, load, wait_for};

use crate::support::*;

const ALPHAS_SHARD: &str = "databasecluster-shard-000";

/// A status as alpha would write it.
fn status(uid: &str, bucket: i32, epoch: i64) -> Value {
    json!({"replicas": 1, "shard": {
        "lease": ALPHAS_SHARD, "holder": "alpha", "epoch": epoch, "bucket": bucket, "uid": uid,
    }})
}

fn at_version(version: &str, status: &Value) -> Value {
    json!({"metadata": {"resourceVersion": version}, "status": status})
}

#[tokio::test]
async fn the_fence_holds_for_databaseclusters() {
    let control_plane = control_plane().await;
    let world = World::new(&control_plane).await;
    the_status_is_the_holders(&world).await;
    finalizers_are_the_holders(&world).await;
    a_restored_status_is_no_dead_end(&world).await;
    a_cluster_made_again_is_safe(&world).await;
    let refused = refusals(&world, "databasecluster-fence-order").await;
    assert!(refused >= 8.0, "{refused} refusals");
}

async fn the_status_is_the_holders(world: &World<'_>) {
    let uid = world.uid("orders").await;
    let by_alpha = async |status: &Value| {
        merge_status(&world.alpha, "orders", json!({ "status": status })).await
    };
    refused(
        "a status without a stamp",
        by_alpha(&json!({"replicas": 1})).await,
        "",
    );
    refused(
        "an old epoch",
        by_alpha(&status(&uid, 3, 4)).await,
        "present holder",
    );
    refused("another's bucket", by_alpha(&status(&uid, 9, 5)).await, "");
    refused(
        "no bucket",
        by_alpha(&status(&uid, -1, 5)).await,
        "bucket must be given",
    );
    refused(
        "no uid",
        by_alpha(&status("", 3, 5)).await,
        "another DatabaseCluster",
    );
    let answer = merge_status(&world.beta, "orders", json!({"status": status(&uid, 3, 5)})).await;
    refused("somebody else's name", answer, "bound to the Pod beta");
    let_through("the holder's status", by_alpha(&status(&uid, 3, 5)).await);
    refused(
        "another bucket",
        by_alpha(&status(&uid, 4, 5)).await,
        "bucket never changes",
    );
    refused(
        "no stamp any more",
        by_alpha(&json!({"shard": null})).await,
        "",
    );

    let newer = json!({"metadata": {"annotations": {
        "database.io/stamp": "databasecluster-shard-000/6/omega",
    }}});
    merge(&world.admin, "DatabaseCluster", "orders", newer)
        .await
        .unwrap();
    let answer = by_alpha(&status(&uid, 3, 5)).await;
    refused(
        "a status older than the annotation",
        answer,
        "older than the one on the object, 6",
    );
}

async fn finalizers_are_the_holders(world: &World<'_>) {
    let finalizers = |stamp: Option<&str>| {
        json!({"metadata": {
            "finalizers": ["database.io/operator"], "annotations": {"database.io/stamp": stamp},
        }})
    };
    let by_alpha = async |change| merge(&world.alpha, "DatabaseCluster", "orders", change).await;
    refused(
        "a finalizer without a stamp",
        by_alpha(finalizers(None)).await,
        "no stamp",
    );
    let answer = by_alpha(finalizers(Some(ALPHAS))).await;
    refused(
        "an epoch below the one on it",
        answer,
        "older than the one on the object, 6",
    );
    let reset = json!({"metadata": {"annotations": {"database.io/stamp": null}}});
    merge(&world.admin, "DatabaseCluster", "orders", reset)
        .await
        .unwrap();
    let answer = by_alpha(finalizers(Some("databasecluster-shard-000/4/alpha"))).await;
    refused("an epoch that is over", answer, "");
    let_through(
        "the holder's finalizer",
        by_alpha(finalizers(Some(ALPHAS))).await,
    );
    let high = json!({"status": status(&world.uid("orders").await, 3, 8)});
    merge_status(&world.admin, "orders", high).await.unwrap();
    let answer = by_alpha(finalizers(Some(ALPHAS))).await;
    refused(
        "an epoch below the status",
        answer,
        "older than the one on the object, 8",
    );
    let answer = delete(&world.alpha, "DatabaseCluster", "orders", (None, None)).await;
    refused("deletion without preconditions", answer, "");
}

/// The status of another life has another bucket in it, and would bar the right one for ever.
async fn a_restored_status_is_no_dead_end(world: &World<'_>) {
    load::create(world.control_plane, vec![cluster("restored")])
        .await
        .unwrap();
    let uid = world.uid("restored").await;
    let former = json!({"status": status("00000000-0000-4000-8000-000000000000", 200, 2)});
    merge_status(&world.admin, "restored", former)
        .await
        .unwrap();
    let own = json!({"status": status(&uid, 3, 5)});
    let_through(
        "the status of this life",
        merge_status(&world.alpha, "restored", own).await,
    );
}

async fn a_cluster_made_again_is_safe(world: &World<'_>) {
    load::create(world.control_plane, vec![cluster("twice")])
        .await
        .unwrap();
    let clusters = load::clusters_in(world.admin.clone(), NAMESPACE);
    let first = clusters.get("twice").await.unwrap();
    let (uid, version) = (first.uid().unwrap(), first.resource_version().unwrap());
    clusters
        .delete("twice", &DeleteParams::default())
        .await
        .unwrap();
    wait_for("the first one to be gone", PATIENCE, || async {
        let found = clusters.get_opt("twice").await.unwrap();
        Ok(Progress::when(found.is_none(), (), || {
            "it is still there".into()
        }))
    })
    .await
    .unwrap();
    load::create(world.control_plane, vec![cluster("twice")])
        .await
        .unwrap();
    let second = world.uid("twice").await;
    assert_ne!(uid, second);

    let of_first = status(&uid, 3, 5);
    let late = merge_status(&world.alpha, "twice", at_version(&version, &of_first)).await;
    let error = late.expect_err("a status of the first one reached the second");
    assert!(
        error.contains("409") || error.contains("modified"),
        "{error}"
    );
    // Without the version only the fence can tell them apart.
    let late = merge_status(&world.alpha, "twice", json!({ "status": of_first })).await;
    refused(
        "a status of the first one",
        late,
        "another DatabaseCluster of this name",
    );

    // A child of the second one, and a late apply for the first.
    let mut child = world.child("ConfigMap", "twice-db", ALPHAS, "3").await;
    child["metadata"]["ownerReferences"][0]["name"] = json!("twice");
    child["metadata"]["ownerReferences"][0]["uid"] = json!(second);
    let_through(
        "a child of the second one",
        apply(&world.alpha, child.clone()).await,
    );
    child["metadata"]["ownerReferences"][0]["uid"] = json!(uid);
    let late = apply(&world.alpha, child).await;
    refused("a child for the first one", late, "controller");
    let kept = api(&world.admin, "ConfigMap")
        .get_metadata("twice-db")
        .await
        .unwrap();
    assert_eq!(kept.metadata.owner_references.unwrap()[0].uid, second);
}
