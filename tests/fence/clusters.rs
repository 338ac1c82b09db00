//! DatabaseClusters: status, finalizers, and the one that was deleted and re-created.

use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::{Value, json};
use testbed::{Progress, load, wait_for};

use crate::support::*;

const ALPHAS_SHARD: &str = "databasecluster-shard-000";
const KIND: &str = "DatabaseCluster";

/// A status as alpha would write it.
fn status(table: &str, uid: &str, bucket: i32, epoch: i64) -> Value {
    json!({"replicas": 1, "shard": {
        "table": table, "lease": ALPHAS_SHARD, "holder": "alpha", "epoch": epoch, "bucket": bucket, "uid": uid,
    }})
}

fn at_version(version: &str, status: &Value) -> Value {
    json!({"metadata": {"resourceVersion": version}, "status": status})
}

#[tokio::test]
async fn fence_protects_databaseclusters() {
    let control_plane = control_plane().await;
    let world = World::new(&control_plane).await;
    the_status_is_the_holders(&world).await;
    finalizers_are_the_holders(&world).await;
    status_and_annotation_are_two_registers(&world).await;
    a_restored_status_counts_as_none(&world).await;
    a_re_created_cluster_is_safe(&world).await;
    for policy in [
        "databasecluster-fence-order-clusters",
        "databasecluster-fence-clusters",
    ] {
        let refused = refusals(&world, policy).await;
        assert!(refused >= 6.0, "{refused} refusals by {policy}");
    }
}

async fn the_status_is_the_holders(world: &World<'_>) {
    let (table, uid) = (world.table.as_str(), world.orders.as_str());
    let by_alpha = async |status: &Value| {
        merge_status(&world.alpha, "orders", json!({ "status": status })).await
    };
    let with = |field: &str, value: Value| {
        let mut status = status(table, uid, 3, 5);
        status["shard"][field] = value;
        status
    };
    let present = NOT_THE_HOLDER;
    for (what, status, why) in [
        ("no token", json!({"replicas": 1}), ""),
        ("an old epoch", status(table, uid, 3, 4), present),
        ("a later epoch", status(table, uid, 3, 6), present),
        ("no epoch", status(table, uid, 3, 0), ""),
        ("an absurd epoch", status(table, uid, 3, EPOCH_MAX + 1), ""),
        ("another's bucket", status(table, uid, 9, 5), NOT_THE_HOLDER),
        ("no bucket", status(table, uid, -1, 5), ""),
        ("bucket 256", status(table, uid, 256, 5), ""),
        ("no uid", status(table, "", 3, 5), ""),
        ("another uid", status(table, NOBODY, 3, 5), ORDER),
        ("another table", status(NOBODY, uid, 3, 5), NOT_THE_HOLDER),
        ("no table", status("", uid, 3, 5), ""),
        ("another holder", with("holder", json!("beta")), present),
        ("no holder", with("holder", json!("")), ""),
        (
            "another shard",
            with("lease", json!("databasecluster-shard-001")),
            present,
        ),
        (
            "another Lease",
            with("lease", json!("databasecluster-leader")),
            "",
        ),
        ("a slash in the holder", with("holder", json!("al/pha")), ""),
    ] {
        refused(what, by_alpha(&status).await, why);
    }
    let by_beta = json!({"status": status(table, uid, 3, 5)});
    let answer = merge_status(&world.beta, "orders", by_beta).await;
    refused("the name of another replica", answer, OTHER_POD);
    let_through(
        "the holder's status",
        by_alpha(&status(table, uid, 3, 5)).await,
    );
    let_through(
        "another bucket of the shard",
        by_alpha(&status(table, uid, 4, 5)).await,
    );
    refused(
        "no token any more",
        by_alpha(&json!({"shard": null})).await,
        "",
    );
}

fn finalizers(token: Option<&str>) -> Value {
    json!({"metadata": {
        "finalizers": ["database.io/operator"], "annotations": {"database.io/fencing-token": token},
    }})
}

async fn finalizers_are_the_holders(world: &World<'_>) {
    let by_alpha = async |change| merge(&world.alpha, KIND, "orders", change).await;
    refused("no token", by_alpha(finalizers(None)).await, "");
    let stale = world.token("000", 4, "alpha", &world.orders);
    let answer = by_alpha(finalizers(Some(&stale))).await;
    refused("an epoch that is over", answer, NOT_THE_HOLDER);
    let of_another = world.token("000", 5, "alpha", NOBODY);
    let answer = by_alpha(finalizers(Some(&of_another))).await;
    refused("for another cluster", answer, ORDER);
    let answer = merge(
        &world.beta,
        KIND,
        "orders",
        finalizers(Some(&world.alphas())),
    )
    .await;
    refused("another replica's token", answer, OTHER_POD);
    let_through(
        "the holder's finalizer",
        by_alpha(finalizers(Some(&world.alphas()))).await,
    );
    let answer = delete(&world.alpha, KIND, "orders", (None, None)).await;
    refused("deletion without preconditions", answer, "");
    let patch = kube::api::Patch::Merge(json!({"spec": {"replicas": 3}}));
    let clusters = api(&world.alpha, KIND);
    let answer = clusters
        .patch_scale("orders", &Default::default(), &patch)
        .await;
    let answer = answer.map(drop).map_err(|error| error.to_string());
    refused("a write of /scale", answer, ORDER);
}

async fn status_and_annotation_are_two_registers(world: &World<'_>) {
    let (table, uid) = (world.table.as_str(), world.orders.as_str());
    let token = world.token("000", 9, "omega", uid);
    let higher = json!({"metadata": {"annotations": {"database.io/fencing-token": token}}});
    merge(&world.admin, KIND, "orders", higher).await.unwrap();
    let own = json!({"status": status(table, uid, 3, 5)});
    let_through(
        "a status under a higher annotation",
        merge_status(&world.alpha, "orders", own.clone()).await,
    );
    let answer = merge(
        &world.alpha,
        KIND,
        "orders",
        finalizers(Some(&world.alphas())),
    )
    .await;
    refused(
        "an annotation",
        answer,
        "epoch 5 is older than the one on the object, 9",
    );

    let high = json!({"status": status(table, uid, 3, 8)});
    merge_status(&world.admin, "orders", high).await.unwrap();
    let answer = merge_status(&world.alpha, "orders", own).await;
    refused(
        "a status",
        answer,
        "epoch 5 is older than the one on the object, 8",
    );
    let reset = json!({"metadata": {"annotations": {"database.io/fencing-token": null}}});
    merge(&world.admin, KIND, "orders", reset).await.unwrap();
    let answer = merge(
        &world.alpha,
        KIND,
        "orders",
        finalizers(Some(&world.alphas())),
    )
    .await;
    let_through("an annotation under a higher status", answer);
}

async fn a_restored_status_counts_as_none(world: &World<'_>) {
    load::create(world.control_plane, vec![cluster("restored")])
        .await
        .unwrap();
    let uid = world.uid("restored").await;
    let own = json!({"status": status(&world.table, &uid, 3, 5)});
    for former in [
        status(&world.table, NOBODY, 200, 9),
        status(NOBODY, &uid, 200, 9),
        status(&world.table, &uid, 200, EPOCH_MAX + 1),
        json!({"shard": {"lease": ALPHAS_SHARD, "holder": "alpha", "epoch": 9, "": 3, "uid": uid}}),
    ] {
        let cleared = json!({"status": {"shard": null}});
        merge_status(&world.admin, "restored", cleared)
            .await
            .unwrap();
        merge_status(&world.admin, "restored", json!({"status": former}))
            .await
            .unwrap();
        let answer = merge_status(&world.alpha, "restored", own.clone()).await;
        let_through(&format!("a status over {former}"), answer);
    }
}

async fn a_re_created_cluster_is_safe(world: &World<'_>) {
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
    wait_for("the first one to be deleted", PATIENCE, || async {
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

    let of_first = status(&world.table, &uid, 3, 5);
    let late = merge_status(&world.alpha, "twice", at_version(&version, &of_first)).await;
    let error = late.expect_err("a status of the first one reached the second");
    assert!(
        error.contains("409") || error.contains("modified"),
        "{error}"
    );
    // Without the version only the fence can distinguish them.
    let late = merge_status(&world.alpha, "twice", json!({ "status": of_first })).await;
    refused("a status of the first one", late, ORDER);
    let late = finalizers(Some(&world.token("000", 5, "alpha", &uid)));
    let late = merge(&world.alpha, KIND, "twice", late).await;
    refused("a finalizer of the first one", late, ORDER);

    // A child of the second one, and a late apply for the first.
    let child = |uid: &str| {
        let token = world.token("000", 5, "alpha", uid);
        world.child_of(("twice", uid), "ConfigMap", "twice-db", &token, "3")
    };
    let_through(
        "a child of the second one",
        apply(&world.alpha, child(&second)).await,
    );
    let late = apply(&world.alpha, child(&uid)).await;
    refused("a child for the first one", late, ORDER);
    let kept = api(&world.admin, "ConfigMap")
        .get_metadata("twice-db")
        .await
        .unwrap();
    assert_eq!(kept.metadata.owner_references.unwrap()[0].uid, second);
}
