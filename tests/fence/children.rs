//! Children: present holder, never backwards, deletions.

use kube::api::{DeleteParams, ListParams, Patch, Preconditions};
use serde_json::{Value, json};
use testbed::load;

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
async fn fence_protects_children() {
    let control_plane = control_plane().await;
    let world = World::new(&control_plane).await;
    let before = refusals(&world, "databasecluster-fence-holder").await;
    only_the_present_holder_writes(&world).await;
    malformed_tokens_are_refused(&world).await;
    valid_writes_are_admitted(&world).await;
    let after = refusals(&world, "databasecluster-fence-holder").await;
    assert!(after >= before + 20.0, "{before} and then {after} refusals");

    let before = refusals(&world, "databasecluster-fence-order").await;
    nothing_goes_backwards(&world).await;
    user_edits_can_be_repaired(&world).await;
    deletions_are_conditional(&world).await;
    secrets_and_subresources_are_out_of_reach(&world).await;
    after_an_orphaning_deletion_the_next_cluster_takes_over(&world).await;
    let after = refusals(&world, "databasecluster-fence-order").await;
    assert!(after >= before + 15.0, "{before} and then {after} refusals");

    other_users_are_ignored(&world).await;
    without_a_table_nothing_goes_backwards(&world).await;
}

/// A write of this object, by all requests that may carry it.
async fn answers(client: &kube::Client, object: &Value) -> Vec<Answer> {
    let kind = object["kind"].as_str().unwrap();
    let name = object["metadata"]["name"].as_str().unwrap();
    match kind {
        // No replica creates Pods.
        "Pod" => vec![merge(client, kind, name, json!({"metadata": object["metadata"]})).await],
        "Secret" => vec![create(client, object.clone()).await],
        _ => vec![
            create(client, object.clone()).await,
            apply(client, object.clone()).await,
        ],
    }
}

async fn only_the_present_holder_writes(world: &World<'_>) {
    world.pod("one").await;
    let elsewhere = format!("{NOBODY}/000/5/alpha/{}", world.orders);
    let own = |shard, epoch, holder| world.token(shard, epoch, holder, &world.orders);
    let for_another = world.token("000", 5, "alpha", NOBODY);
    for kind in KINDS {
        let (alpha, beta) = (&world.alpha, &world.beta);
        let holder = NOT_THE_HOLDER;
        let mut cases = vec![
            (alpha, own("000", 4, "alpha"), "3", holder),
            (alpha, own("000", 6, "alpha"), "3", holder),
            (beta, own("000", 5, "beta"), "3", holder),
            (alpha, own("002", 5, "alpha"), "16", holder),
            (alpha, own("040", 5, "alpha"), "3", holder),
            (alpha, elsewhere.clone(), "3", NOT_THE_HOLDER),
            // The name of another replica.
            (beta, world.alphas(), "3", OTHER_POD),
            // Its own shard, and an object of another.
            (beta, world.betas(), "3", NOT_THE_HOLDER),
        ];
        if kind != "Pod" {
            cases.push((alpha, for_another.clone(), "3", ORDER));
        }
        for (client, token, bucket, why) in cases {
            let object = world.child(kind, "one", &token, bucket);
            for answer in answers(client, &object).await {
                refused(
                    &format!("{kind} with {token} in bucket {bucket}"),
                    answer,
                    why,
                );
            }
        }
    }
}

async fn malformed_tokens_are_refused(world: &World<'_>) {
    let (table, uid) = (&world.table, &world.orders);
    let long = format!("{table}/000/5/{}/{uid}", "a".repeat(400));
    for token in [
        String::new(),
        "nonsense".to_owned(),
        "databasecluster-shard-000/5/alpha".to_owned(),
        format!("{table}/000/5/alpha"),
        format!("{table}/000/5/alpha/"),
        format!("{table}/000/5//{uid}"),
        format!("/000/5/alpha/{uid}"),
        format!("{table}/000/5/alpha/{uid}/x"),
        format!("{table}/0/5/alpha/{uid}"),
        format!("{table}/256/5/alpha/{uid}"),
        format!("{table}/+00/5/alpha/{uid}"),
        format!("{table}/000/05/alpha/{uid}"),
        format!("{table}/000/0/alpha/{uid}"),
        format!("{table}/000/-5/alpha/{uid}"),
        format!("{table}/000/99999999999/alpha/{uid}"),
        format!("{table}/000/{}/alpha/{uid}", EPOCH_MAX + 1),
        long,
    ] {
        // Without the label, only the rules of the order apply.
        let mut object = world.child("ConfigMap", "none", &token, "3");
        object["metadata"]["labels"] = json!({});
        let answer = create(&world.alpha, object).await;
        refused(&format!("token {token:?}"), answer, ORDER);
        let object = world.child("ConfigMap", "none", &token, "3");
        refused(
            &format!("token {token:?}"),
            create(&world.alpha, object).await,
            "",
        );
    }
    for bucket in ["x", "", "300", "03"] {
        let object = world.child("ConfigMap", "none", &world.alphas(), bucket);
        let mut unlabelled = object.clone();
        unlabelled["metadata"]["labels"] = json!({});
        let answer = create(&world.alpha, object).await;
        refused(&format!("bucket {bucket:?}"), answer, "");
        let answer = create(&world.alpha, unlabelled).await;
        refused("no bucket", answer, ORDER);
    }
}

async fn valid_writes_are_admitted(world: &World<'_>) {
    for kind in KINDS {
        let object = world.child(kind, "one", &world.alphas(), "3");
        let_through(kind, answers(&world.alpha, &object).await.remove(0));
        if kind != "Secret" {
            let change = json!({"metadata": {"annotations": {"seen": "yes"}}});
            let_through(kind, merge(&world.alpha, kind, "one", change).await);
            // It carries the holder's token, but it is not the holder that writes.
            let change = json!({"metadata": {"annotations": {"seen": "no"}}});
            let answer = merge(&world.beta, kind, "one", change).await;
            refused(kind, answer, OTHER_POD);
        }
    }
}

async fn nothing_goes_backwards(world: &World<'_>) {
    let set =
        |token: &str| json!({"metadata": {"annotations": {"database.io/fencing-token": token}}});
    let mut touches = 0;
    let mut touch = || {
        touches += 1;
        json!({"metadata": {"annotations": {
            "database.io/fencing-token": world.alphas(), "n": touches.to_string(),
        }}})
    };
    let forged =
        |table: &str, epoch: i64, cluster: &str| format!("{table}/007/{epoch}/omega/{cluster}");
    for kind in KINDS.into_iter().filter(|kind| *kind != "Secret") {
        let removed = json!({"metadata": {"annotations": {"database.io/fencing-token": null}}});
        let answer = merge(&world.alpha, kind, "one", removed).await;
        refused(kind, answer, "");
        for epoch in [6, 9, EPOCH_MAX] {
            let higher = set(&forged(&world.table, epoch, &world.orders));
            merge(&world.admin, kind, "one", higher).await.unwrap();
            let answer = merge(&world.alpha, kind, "one", touch()).await;
            let why = format!("epoch 5 is older than the one on the object, {epoch}");
            refused(kind, answer, &why);
        }
        // Each of these counts as no token: of another table, of another cluster, out of range, malformed.
        for none in [
            forged(NOBODY, 9, &world.orders),
            forged(&world.table, 9, NOBODY),
            forged(&world.table, EPOCH_MAX + 1, &world.orders),
            format!("{}/007/9/{}/{}", world.table, "h".repeat(400), world.orders),
            "databasecluster-shard-000/2146435071/h".to_owned(),
            "x".repeat(100_000),
        ] {
            merge(&world.admin, kind, "one", set(&none)).await.unwrap();
            let answer = merge(&world.alpha, kind, "one", touch()).await;
            let_through(
                &format!("{kind} over {}", &none[..none.len().min(80)]),
                answer,
            );
        }
    }
    // The token on one object affects only that object.
    let harmed = set(&forged(&world.table, EPOCH_MAX, &world.orders));
    merge(&world.admin, "ConfigMap", "one", harmed)
        .await
        .unwrap();
    let_through(
        "another object",
        merge(&world.alpha, "Service", "one", touch()).await,
    );
    let cured = json!({"metadata": {"annotations": {"database.io/fencing-token": null}}});
    merge(&world.admin, "ConfigMap", "one", cured)
        .await
        .unwrap();
    let_through(
        "without it",
        merge(&world.alpha, "ConfigMap", "one", touch()).await,
    );
}

async fn user_edits_can_be_repaired(world: &World<'_>) {
    let stranger = json!({"metadata": {"ownerReferences": [{
        "apiVersion": "database.io/v1", "kind": "DatabaseCluster", "name": "orders",
        "uid": NOBODY, "controller": true,
    }], "annotations": {"database.io/fencing-token": world.token("000", 5, "alpha", NOBODY)}}});
    for kind in KINDS.into_iter().filter(|kind| *kind != "Secret") {
        let right = || {
            json!({"metadata": {
                "labels": {"database.io/bucket": "3"},
                "annotations": {"database.io/fencing-token": world.alphas(), "database.io/generation": "7"},
            }})
        };
        for wrong in [json!("200"), json!("9"), json!("many"), Value::Null] {
            let edit = json!({"metadata": {"labels": {"database.io/bucket": wrong}}});
            let answer = merge(&world.alpha, kind, "one", edit.clone()).await;
            refused(&format!("{kind}, bucket {wrong}"), answer, "");
            merge(&world.admin, kind, "one", edit).await.unwrap();
            let touch = json!({"metadata": {"annotations": {"n": "repair"}}});
            refused(
                kind,
                merge(&world.alpha, kind, "one", touch).await,
                "bucket",
            );
            let_through(kind, merge(&world.alpha, kind, "one", right()).await);
        }
        for edit in ["999999999", "seven"] {
            let edit = json!({"metadata": {"annotations": {"database.io/generation": edit}}});
            merge(&world.admin, kind, "one", edit).await.unwrap();
            let_through(kind, merge(&world.alpha, kind, "one", right()).await);
        }
        if !matches!(kind, "PersistentVolumeClaim" | "Pod") {
            // The limits require the same of a StatefulSet, and either policy may answer first.
            let why = if kind == "StatefulSet" { "" } else { ORDER };
            let answer = merge(&world.alpha, kind, "one", stranger.clone()).await;
            refused(kind, answer, why);
            let orphan = json!({"metadata": {"ownerReferences": []}});
            let answer = merge(&world.alpha, kind, "one", orphan).await;
            refused(kind, answer, why);
        }
    }
    for (what, owner) in [
        (
            "another kind",
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "controller": true}),
        ),
        (
            "another group",
            json!({"apiVersion": "x.io/v1", "kind": "DatabaseCluster", "controller": true}),
        ),
        (
            "no controller",
            json!({"apiVersion": "database.io/v1", "kind": "DatabaseCluster"}),
        ),
    ] {
        let mut object = world.child("ConfigMap", "strange", &world.alphas(), "3");
        let reference = &mut object["metadata"]["ownerReferences"][0];
        *reference = owner;
        reference["name"] = json!("orders");
        reference["uid"] = json!(world.orders);
        let answer = create(&world.alpha, object).await;
        refused(what, answer, ORDER);
    }
}

async fn deletions_are_conditional(world: &World<'_>) {
    let versions = async |kind: &str, name: &str| {
        let found = api(&world.admin, kind).get_metadata(name).await.unwrap();
        (found.metadata.uid, found.metadata.resource_version)
    };
    let annotate =
        |token: String| json!({"metadata": {"annotations": {"database.io/fencing-token": token}}});
    for kind in KINDS.into_iter().filter(|kind| *kind != "Secret") {
        let (uid, version) = versions(kind, "one").await;
        for lacking in [(None, None), (uid, None), (None, version)] {
            let answer = delete(&world.alpha, kind, "one", lacking).await;
            refused(kind, answer, ORDER);
        }
        let both = versions(kind, "one").await;
        let answer = delete(&world.beta, kind, "one", both).await;
        refused(kind, answer, OTHER_POD);
        let former = annotate(world.token("000", 4, "alpha", &world.orders));
        merge(&world.admin, kind, "one", former).await.unwrap();
        let answer = delete(&world.alpha, kind, "one", versions(kind, "one").await).await;
        refused(kind, answer, NOT_THE_HOLDER);
        if kind != "Pod" {
            let of_another = annotate(world.token("000", 5, "alpha", NOBODY));
            merge(&world.admin, kind, "one", of_another).await.unwrap();
            let answer = delete(&world.alpha, kind, "one", versions(kind, "one").await).await;
            refused(kind, answer, ORDER);
        }
        merge(&world.admin, kind, "one", annotate(world.alphas()))
            .await
            .unwrap();
        let (uid, resource_version) = versions(kind, "one").await;
        let preconditions = Some(Preconditions {
            uid,
            resource_version,
        });
        let all = api(&world.alpha, kind);
        for preconditions in [None, preconditions] {
            let params = DeleteParams {
                preconditions,
                ..DeleteParams::default()
            };
            let labelled = ListParams::default().labels("database.io/bucket=3");
            let answer = all.delete_collection(&params, &labelled).await;
            let answer = answer.map(drop).map_err(|error| error.to_string());
            refused(kind, answer, "");
        }
        // Without the label it would not be compared with the table.
        let unlabelled = json!({"metadata": {"labels": {"database.io/bucket": null}}});
        merge(&world.admin, kind, "one", unlabelled).await.unwrap();
        let answer = delete(&world.alpha, kind, "one", versions(kind, "one").await).await;
        refused(kind, answer, ORDER);
        let own = json!({"metadata": {
            "annotations": {"database.io/fencing-token": world.alphas()}, "labels": {"database.io/bucket": "3"},
        }});
        let_through(kind, merge(&world.alpha, kind, "one", own).await);
        let answer = delete(&world.alpha, kind, "one", versions(kind, "one").await).await;
        let_through(kind, answer);
    }
}

async fn secrets_and_subresources_are_out_of_reach(world: &World<'_>) {
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    let answer = merge(&world.alpha, "Secret", "one", label).await;
    refused("a change of a Secret", answer, ORDER);
    let secret = api(&world.admin, "Secret")
        .get_metadata("one")
        .await
        .unwrap();
    let both = (secret.metadata.uid, secret.metadata.resource_version);
    let answer = delete(&world.alpha, "Secret", "one", both).await;
    refused("deletion of a Secret", answer, ORDER);

    let set = world.child("StatefulSet", "scaled-db", &world.alphas(), "3");
    create(&world.alpha, set).await.unwrap();
    let sets = api(&world.alpha, "StatefulSet");
    let patch = Patch::Merge(json!({"spec": {"replicas": 1}}));
    let answer = sets
        .patch_scale("scaled-db", &Default::default(), &patch)
        .await;
    let answer = answer.map(drop).map_err(|error| error.to_string());
    refused("a write of /scale", answer, ORDER);
}

/// Ownership of another cluster, in another shard, whose epochs are lower: the old token does not count.
async fn after_an_orphaning_deletion_the_next_cluster_takes_over(world: &World<'_>) {
    load::create(world.control_plane, vec![cluster("next")])
        .await
        .unwrap();
    let next = world.uid("next").await;
    for kind in ["StatefulSet", "Service", "ConfigMap", "PodDisruptionBudget"] {
        let name = "orphan-db";
        let object = world.child(kind, name, &world.alphas(), "3");
        let_through(kind, apply(&world.alpha, object).await);
        let token = world.token("001", 3, "beta", &next);
        let taken = world.child_of(("next", &next), kind, name, &token, "9");
        let answer = apply(&world.beta, taken.clone()).await;
        refused(kind, answer, ORDER);
        let orphan = json!({"metadata": {"ownerReferences": []}});
        merge(&world.admin, kind, name, orphan).await.unwrap();
        let_through(kind, apply(&world.beta, taken).await);
        // An object that a user created under that name belongs to the user.
        let mut users = world.child(kind, "users-own", "", "9");
        users["metadata"]["ownerReferences"] = json!([]);
        users["metadata"]["labels"] = json!({});
        create(&world.admin, users).await.unwrap();
        let taken = world.child_of(("next", &next), kind, "users-own", &token, "9");
        refused(kind, apply(&world.beta, taken).await, ORDER);
    }
}

async fn other_users_are_ignored(world: &World<'_>) {
    for kind in KINDS {
        let mut object = world.child(kind, "users", "nonsense", "999");
        object["metadata"]["ownerReferences"] = json!([]);
        let_through(kind, create(&world.admin, object).await);
        let change = json!({"metadata": {"annotations": {"database.io/fencing-token": null}}});
        let_through(kind, merge(&world.admin, kind, "users", change).await);
        let_through(
            kind,
            delete(&world.admin, kind, "users", (None, None)).await,
        );
    }
}

/// The order rule has no parameter.
async fn without_a_table_nothing_goes_backwards(world: &World<'_>) {
    let object = world.child("ConfigMap", "written", &world.alphas(), "3");
    create(&world.alpha, object).await.unwrap();
    let tables = api(&world.admin, "ShardTable");
    tables
        .delete(TABLE, &DeleteParams::default())
        .await
        .unwrap();
    testbed::wait_for(
        "the fence to observe the deletion of the table",
        PATIENCE,
        || async {
            let unknown = world.child(
                "ConfigMap",
                "x",
                &world.token("000", 77, "alpha", &world.orders),
                "3",
            );
            let answer = dry(&world.alpha, unknown).await;
            Ok(testbed::Progress::when(answer.is_ok(), (), || {
                format!("{answer:?}")
            }))
        },
    )
    .await
    .unwrap();
    let stale = world.token("000", 4, "alpha", &world.orders);
    let answer = apply(
        &world.alpha,
        world.child("ConfigMap", "written", &stale, "3"),
    )
    .await;
    refused(
        "an older epoch",
        answer,
        "epoch 4 is older than the one on the object, 5",
    );
    for wrong in ["", "databasecluster-shard-000/5/alpha"] {
        let object = world.child("ConfigMap", "none", wrong, "3");
        refused(wrong, create(&world.alpha, object).await, ORDER);
    }
}
