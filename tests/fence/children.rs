//! Children: present holder, never backwards, deletions.

use kube::api::{DeleteParams, ListParams};
use serde_json::json;

use crate::support::*;

const KINDS: [&str; 7] = [
    "StatefulSet",
    "Service",
    "ConfigMap",
    "PodDisruptionBudget",
    "Secret",
    "PersistentVolumeClaim",
    "Pod",
];

#[tokio::test]
async fn the_fence_holds_for_children() {
    let control_plane = control_plane().await;
    let world = World::new(&control_plane).await;
    let before = refusals(&world, "databasecluster-fence-holder").await;
    only_the_present_holder_writes(&world).await;
    stamps_that_name_no_lease_are_refused(&world).await;
    what_is_right_is_let_through(&world).await;
    let after = refusals(&world, "databasecluster-fence-holder").await;
    assert!(after >= before + 20.0, "{before} and then {after} refusals");

    let before = refusals(&world, "databasecluster-fence-order").await;
    nothing_goes_backwards(&world).await;
    deletions_are_conditional(&world).await;
    secrets_and_subresources_are_out_of_reach(&world).await;
    let after = refusals(&world, "databasecluster-fence-order").await;
    assert!(after >= before + 15.0, "{before} and then {after} refusals");

    others_are_ignored(&world).await;
    a_damaged_lease_hurts_its_own_shard_only(&world).await;
    a_lease_that_is_gone(&world).await;
}

async fn only_the_present_holder_writes(world: &World<'_>) {
    for kind in KINDS {
        let try_out = async |client, stamp: &str, bucket: &str, why: &str| {
            let object = world.child(kind, "one", stamp, bucket).await;
            let what = format!("{kind} stamped {stamp} in bucket {bucket}");
            refused(&what, create(client, object.clone()).await, why);
            refused(&what, apply(client, object).await, why);
        };
        let holder = "not that of the present holder";
        try_out(
            &world.alpha,
            "databasecluster-shard-000/4/alpha",
            "3",
            holder,
        )
        .await;
        try_out(
            &world.alpha,
            "databasecluster-shard-000/6/alpha",
            "3",
            holder,
        )
        .await;
        try_out(&world.beta, "databasecluster-shard-000/5/beta", "3", holder).await;
        // Somebody else's good name.
        try_out(&world.beta, ALPHAS, "3", "bound to the Pod beta").await;
        // Its own shard, and an object of another.
        try_out(&world.beta, BETAS, "3", "").await;
    }
}

async fn stamps_that_name_no_lease_are_refused(world: &World<'_>) {
    for (stamp, bucket, why) in [
        ("", "3", "no stamp"),
        ("nonsense", "3", "no stamp"),
        ("databasecluster-shard-000/5", "3", ""),
        ("databasecluster-shard-000/5/", "3", ""),
        ("databasecluster-shard-000/05/alpha", "3", ""),
        ("databasecluster-shard-000/2147483647/alpha", "3", ""),
        ("databasecluster-leader/5/alpha", "3", "no stamp"),
        ("databasecluster-shard-999/5/alpha", "3", ""),
        ("databasecluster-shard-031/5/alpha", "3", ""),
        // Of 64 shards it would be the right one, but there are 32.
        ("databasecluster-shard-018/5/alpha", "72", "of 32 shards"),
        (ALPHAS, "x", "bucket must be given"),
        (ALPHAS, "", "bucket must be given"),
        (ALPHAS, "300", ""),
    ] {
        let object = world.child("ConfigMap", "none", stamp, bucket).await;
        let what = format!("stamp {stamp:?} in bucket {bucket:?}");
        refused(&what, create(&world.alpha, object).await, why);
    }
}

async fn what_is_right_is_let_through(world: &World<'_>) {
    for kind in KINDS {
        let object = world.child(kind, "one", ALPHAS, "3").await;
        let_through(kind, create(&world.alpha, object).await);
        if kind != "Secret" {
            let change = json!({"metadata": {"labels": {"seen": "yes"}}});
            let_through(kind, merge(&world.alpha, kind, "one", change).await);
            // It carries the holder's stamp, but it is not the holder who writes.
            let change = json!({"metadata": {"labels": {"seen": "no"}}});
            let answer = merge(&world.beta, kind, "one", change).await;
            refused(kind, answer, "bound to the Pod beta");
        }
    }
}

async fn nothing_goes_backwards(world: &World<'_>) {
    let stamp = |stamp: &str| json!({"metadata": {"annotations": {"database.io/stamp": stamp}}});
    let touch = json!({"metadata": {"annotations": {"database.io/stamp": ALPHAS, "n": "1"}}});
    for kind in KINDS.into_iter().filter(|kind| *kind != "Secret") {
        let alphas = async |change| merge(&world.alpha, kind, "one", change).await;
        let annotate = |key: &str, value: serde_json::Value| json!({"metadata": {"annotations": {key: value}}});
        refused(
            kind,
            alphas(annotate("database.io/stamp", json!(null))).await,
            "no stamp",
        );
        let label = |value| json!({"metadata": {"labels": {"database.io/bucket": value}}});
        refused(
            kind,
            alphas(label(json!("4"))).await,
            "bucket never changes",
        );
        refused(kind, alphas(label(json!(null))).await, "bucket");
        for generation in [json!("6"), json!(null), json!("seven")] {
            let answer = alphas(annotate("database.io/generation", generation)).await;
            refused(kind, answer, "made from generation");
        }
        let owner = json!({"metadata": {"ownerReferences": [{
            "apiVersion": "database.io/v1", "kind": "DatabaseCluster", "name": "orders",
            "uid": "00000000-0000-4000-8000-000000000000", "controller": true,
        }]}});
        refused(kind, alphas(owner).await, "controller never changes");
        // As after the restoration of a backup, or the write of a newer holder.
        let higher = stamp("databasecluster-shard-000/9/omega");
        merge(&world.admin, kind, "one", higher).await.unwrap();
        refused(
            kind,
            alphas(touch.clone()).await,
            "older than the one on the object, 9",
        );
        // So close to the limit that it is damage.
        let absurd = stamp("databasecluster-shard-000/2147483000/omega");
        merge(&world.admin, kind, "one", absurd).await.unwrap();
        let_through(kind, alphas(touch.clone()).await);
    }
}

async fn deletions_are_conditional(world: &World<'_>) {
    let versions = async |kind: &str, name: &str| {
        let found = api(&world.admin, kind).get_metadata(name).await.unwrap();
        (found.metadata.uid, found.metadata.resource_version)
    };
    for kind in KINDS.into_iter().filter(|kind| *kind != "Secret") {
        let (uid, version) = versions(kind, "one").await;
        for lacking in [(None, None), (uid, None), (None, version)] {
            let answer = delete(&world.alpha, kind, "one", lacking).await;
            refused(kind, answer, "must name uid and resourceVersion");
        }
        let both = versions(kind, "one").await;
        let answer = delete(&world.beta, kind, "one", both).await;
        refused(kind, answer, "bound to the Pod beta");
        let former = json!({"metadata": {"annotations": {
            "database.io/stamp": "databasecluster-shard-000/4/alpha",
        }}});
        merge(&world.admin, kind, "one", former).await.unwrap();
        let answer = delete(&world.alpha, kind, "one", versions(kind, "one").await).await;
        refused(kind, answer, "not that of the present holder");
        let list = ListParams::default();
        let (all, params) = (api(&world.alpha, kind), DeleteParams::default());
        let answer = all.delete_collection(&params, &list).await;
        refused(
            kind,
            answer.map(drop).map_err(|error| error.to_string()),
            "",
        );
        // Without the label it would not be compared with any Lease.
        let unlabelled = json!({"metadata": {"labels": {"database.io/bucket": null}}});
        merge(&world.admin, kind, "one", unlabelled).await.unwrap();
        let answer = delete(&world.alpha, kind, "one", versions(kind, "one").await).await;
        refused(kind, answer, "bucket must be given");
        let own = json!({"metadata": {
            "annotations": {"database.io/stamp": ALPHAS}, "labels": {"database.io/bucket": "3"},
        }});
        let_through(kind, merge(&world.alpha, kind, "one", own).await);
        let answer = delete(&world.alpha, kind, "one", versions(kind, "one").await).await;
        let_through(kind, answer);
    }
}

async fn secrets_and_subresources_are_out_of_reach(world: &World<'_>) {
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    let answer = merge(&world.alpha, "Secret", "one", label).await;
    refused(
        "a change of a Secret",
        answer,
        "creates Secrets and never touches them",
    );
    let secret = api(&world.admin, "Secret")
        .get_metadata("one")
        .await
        .unwrap();
    let both = (secret.metadata.uid, secret.metadata.resource_version);
    let answer = delete(&world.alpha, "Secret", "one", both).await;
    refused(
        "deletion of a Secret",
        answer,
        "creates Secrets and never touches them",
    );

    let set = world.child("StatefulSet", "scaled", ALPHAS, "3").await;
    create(&world.alpha, set).await.unwrap();
    let sets = api(&world.alpha, "StatefulSet");
    let patch = kube::api::Patch::Merge(json!({"spec": {"replicas": 1}}));
    let answer = sets
        .patch_scale("scaled", &Default::default(), &patch)
        .await;
    let answer = answer.map(drop).map_err(|error| error.to_string());
    refused("a write of /scale", answer, "no other subresource");
}

async fn others_are_ignored(world: &World<'_>) {
    for kind in KINDS {
        let mut object = world.child(kind, "users", "nonsense", "999").await;
        object["metadata"]["ownerReferences"] = json!([]);
        let_through(kind, create(&world.admin, object).await);
        let change = json!({"metadata": {"annotations": {"database.io/stamp": null}}});
        let_through(kind, merge(&world.admin, kind, "users", change).await);
        let_through(
            kind,
            delete(&world.admin, kind, "users", (None, None)).await,
        );
    }
}

async fn a_damaged_lease_hurts_its_own_shard_only(world: &World<'_>) {
    let leases = world.leases(&world.admin);
    let bare = json!({
        "metadata": {"annotations": null}, "spec": {"holderIdentity": null, "leaseTransitions": null},
    });
    let patch = kube::api::Patch::Merge(&bare);
    let name = "databasecluster-shard-001";
    leases
        .patch(name, &Default::default(), &patch)
        .await
        .unwrap();
    testbed::wait_for("the damage to be seen", PATIENCE, || async {
        let object = world.child("ConfigMap", "betas", BETAS, "9").await;
        let answer = dry(&world.beta, object).await;
        Ok(testbed::Progress::when(answer.is_err(), (), || {
            "still let through".into()
        }))
    })
    .await
    .unwrap();
    let object = world.child("ConfigMap", "alphas", ALPHAS, "3").await;
    let_through("a write in a sound shard", dry(&world.alpha, object).await);
}

/// Whether a Lease exists at all can not be asked by a policy that is evaluated for each that does:
/// what is left is that nothing goes backwards.
async fn a_lease_that_is_gone(world: &World<'_>) {
    let object = world.child("ConfigMap", "written", ALPHAS, "3").await;
    create(&world.alpha, object).await.unwrap();
    let leases = world.leases(&world.admin);
    let name = "databasecluster-shard-000";
    leases.delete(name, &DeleteParams::default()).await.unwrap();
    let stale = "databasecluster-shard-000/4/alpha";
    let object = world.child("ConfigMap", "written", stale, "3").await;
    let answer = apply(&world.alpha, object).await;
    refused("an older epoch", answer, "");
    for (stamp, bucket) in [
        ("databasecluster-shard-999/5/alpha", "3"),
        ("databasecluster-shard-031/5/alpha", "3"),
        ("databasecluster-leader/5/alpha", "3"),
    ] {
        let object = world.child("ConfigMap", "none", stamp, bucket).await;
        refused(stamp, create(&world.alpha, object).await, "");
    }
}
