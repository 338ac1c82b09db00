//! The shard Leases themselves, on which the rest of the fence relies.

use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};

use crate::support::*;

const SHARD: &str = "databasecluster-shard-000";

type Answered = Result<(), String>;

fn described<T>(answer: kube::Result<T>) -> Answered {
    answer.map(drop).map_err(|error| error.to_string())
}

async fn change(world: &World<'_>, client: &Client, change: Value) -> Answered {
    let patch = Patch::Merge(change);
    let params = PatchParams::default();
    described(world.leases(client).patch(SHARD, &params, &patch).await)
}

async fn create_lease(world: &World<'_>, client: &Client, lease: &Lease) -> Answered {
    let params = PostParams::default();
    described(world.leases(client).create(&params, lease).await)
}

fn hand_to(holder: &str, epoch: i32) -> Value {
    json!({
        "metadata": {"annotations": {"database.io/incarnation": format!("{holder}-1")}},
        "spec": {"holderIdentity": holder, "leaseTransitions": epoch},
    })
}

#[tokio::test]
async fn fence_protects_shard_leases() {
    let control_plane = control_plane().await;
    let world = World::new(&control_plane).await;
    let held = lease(0, "0-7", "alpha", 5);
    create_lease(&world, &world.alpha, &held).await.unwrap();
    epochs_only_rise(&world).await;
    label_and_fields_stay(&world).await;
    only_the_holder_hands_over(&world).await;
    a_lease_is_made_as_its_name_says(&world).await;
    a_lease_is_deleted_only_when_vacant(&world).await;
    a_takeover_shuts_the_former_holder_out(&world).await;
    other_leases_are_ignored(&world).await;
    let refused = refusals(&world, "databasecluster-fence-leases").await;
    assert!(refused >= 15.0, "{refused} refusals");
}

async fn epochs_only_rise(world: &World<'_>) {
    let alphas = async |what: Value| change(world, &world.alpha, what).await;
    let lower = json!({"spec": {"leaseTransitions": 4}});
    refused("a lower epoch", alphas(lower).await, "never falls: 5 to 4");
    let wild = json!({"spec": {"leaseTransitions": 5 + (1 << 20) + 1}});
    refused("a wild epoch", alphas(wild).await, "by more than 1048576");
    let none = json!({"spec": {"leaseTransitions": null}});
    refused("no epoch", alphas(none).await, "");
    refused(
        "a new holder",
        alphas(hand_to("beta", 5)).await,
        "raises the epoch above 5",
    );
    refused(
        "no holder",
        alphas(hand_to("", 5)).await,
        "raises the epoch above 5",
    );
    let life = json!({"metadata": {"annotations": {"database.io/incarnation": "alpha-2"}}});
    refused(
        "a new incarnation",
        alphas(life).await,
        "raises the epoch above 5",
    );

    let_through("raising one's own epoch", alphas(hand_to("alpha", 6)).await);
    let successor = json!({"metadata": {"annotations": {"database.io/successor": "beta"}}});
    let_through(
        "a successor, by anybody",
        change(world, &world.beta, successor).await,
    );
    let_through("vacating", alphas(hand_to("", 7)).await);
    let_through("taking", alphas(hand_to("alpha", 8)).await);
    let_through("handing over", alphas(hand_to("beta", 9)).await);
    let_through("taking over", alphas(hand_to("alpha", 10)).await);
}

async fn label_and_fields_stay(world: &World<'_>) {
    let label = |key: &str, value: Value| json!({"metadata": {"labels": {key: value}}});
    let annotation = |key: &str, value: Value| json!({"metadata": {"annotations": {key: value}}});
    for (what, damage) in [
        ("another role", label("database.io/role", json!("member"))),
        ("no role", label("database.io/role", Value::Null)),
        ("no name", label("app.kubernetes.io/name", Value::Null)),
        (
            "more buckets",
            annotation("database.io/buckets", json!("0-15")),
        ),
        ("no buckets", annotation("database.io/buckets", Value::Null)),
        ("33 shards", annotation("database.io/shards", json!("33"))),
        ("no shards", annotation("database.io/shards", Value::Null)),
        (
            "no holder at all",
            json!({"spec": {"holderIdentity": null}}),
        ),
        ("a duration", json!({"spec": {"leaseDurationSeconds": 6}})),
    ] {
        refused(what, change(world, &world.alpha, damage).await, "");
    }
    let converted = json!({
        "metadata": {"annotations": {"database.io/shards": "64", "database.io/buckets": "0-3"}},
        "spec": {"leaseTransitions": 10},
    });
    let answer = change(world, &world.alpha, converted.clone()).await;
    refused(
        "another number of shards, same epoch",
        answer,
        "raises the epoch above 10",
    );
}

async fn only_the_holder_hands_over(world: &World<'_>) {
    let answer = change(world, &world.beta, hand_to("gamma", 11)).await;
    refused(
        "handing over another's shard",
        answer,
        "neither takes nor hands over",
    );
    let answer = change(world, &world.beta, hand_to("", 11)).await;
    refused(
        "vacating another's shard",
        answer,
        "neither takes nor hands over",
    );
}

async fn a_lease_is_made_as_its_name_says(world: &World<'_>) {
    for (what, lease) in [
        ("a shard too many", lease(32, "256-263", "alpha", 1)),
        ("a range that is another's", lease(2, "8-15", "alpha", 1)),
        ("epoch 0", lease(2, "16-23", "alpha", 0)),
        (
            "an epoch too high",
            lease(2, "16-23", "alpha", 2_146_435_072),
        ),
        ("a shard for another replica", lease(2, "16-23", "gamma", 1)),
    ] {
        refused(what, create_lease(world, &world.alpha, &lease).await, "");
    }
    let right = lease(2, "16-23", "alpha", 1);
    let_through(
        "a shard of one's own",
        create_lease(world, &world.alpha, &right).await,
    );
}

async fn a_lease_is_deleted_only_when_vacant(world: &World<'_>) {
    let leases = world.leases(&world.alpha);
    let delete = async |preconditions| {
        let params = DeleteParams {
            preconditions,
            ..DeleteParams::default()
        };
        described(leases.delete(SHARD, &params).await)
    };
    let now = async || {
        let meta = world
            .leases(&world.admin)
            .get(SHARD)
            .await
            .unwrap()
            .metadata;
        Some(Preconditions {
            uid: meta.uid,
            resource_version: meta.resource_version,
        })
    };
    refused(
        "deletion without preconditions",
        delete(None).await,
        "only when vacant",
    );
    refused(
        "deletion of a held shard",
        delete(now().await).await,
        "only when vacant",
    );
    let list = ListParams::default().labels("database.io/role=shard");
    let params = DeleteParams::default();
    let answer = described(leases.delete_collection(&params, &list).await);
    refused("deletion of all", answer, "only when vacant");
    change(world, &world.alpha, hand_to("", 11)).await.unwrap();
    refused(
        "deletion without preconditions",
        delete(None).await,
        "only when vacant",
    );
    let_through("deletion of a vacant one", delete(now().await).await);
    let again = lease(0, "0-7", "alpha", 12);
    let_through(
        "making it again",
        create_lease(world, &world.alpha, &again).await,
    );
}

async fn a_takeover_shuts_the_former_holder_out(world: &World<'_>) {
    let written = async |client: &Client, name: &str, epoch: i64, holder: &str| {
        let token = world.token("000", epoch, holder, &world.orders);
        create(client, world.child("ConfigMap", name, &token, "3")).await
    };
    let until_written = async |client: &Client, name: &str, epoch: i64, holder: &str| {
        testbed::wait_for(format!("a write under epoch {epoch}"), PATIENCE, || async {
            let answer = written(client, name, epoch, holder).await;
            Ok(testbed::Progress::when(answer.is_ok(), (), || {
                format!("{answer:?}")
            }))
        })
        .await
        .unwrap();
    };
    until_written(&world.alpha, "by-alpha", 5, "alpha").await;
    write_entry(&world.beta, 32, "000", 6, "beta")
        .await
        .unwrap();
    until_written(&world.beta, "by-beta", 6, "beta").await;
    let answer = written(&world.alpha, "late", 5, "alpha").await;
    refused("the former holder", answer, NOT_THE_HOLDER);
    write_entry(&world.admin, 32, "000", 7, "").await.unwrap();
    testbed::wait_for("the vacancy to be known", PATIENCE, || async {
        let token = world.token("000", 6, "beta", &world.orders);
        let answer = dry(&world.beta, world.child("ConfigMap", "x", &token, "3")).await;
        Ok(testbed::Progress::when(answer.is_err(), (), || {
            "it is let through".into()
        }))
    })
    .await
    .unwrap();
    for (epoch, holder) in [(7, ""), (7, "beta"), (7, "alpha"), (6, "beta")] {
        let answer = written(&world.beta, "vacant", epoch, holder).await;
        refused("a vacant shard", answer, "");
    }
}

async fn other_leases_are_ignored(world: &World<'_>) {
    let member = json!({
        "metadata": {"name": "databasecluster-member-alpha"}, "spec": {"holderIdentity": "alpha"},
    });
    let member: Lease = serde_json::from_value(member).unwrap();
    let_through(
        "a heartbeat",
        create_lease(world, &world.alpha, &member).await,
    );
    let damaged = json!({"spec": {"leaseTransitions": 1}});
    let_through(
        "the administrator",
        change(world, &world.admin, damaged).await,
    );
}
