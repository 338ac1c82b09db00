//! Fencing tokens that users forge: they change no Lease and no entry of the shard table, and affect one object each.

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use testbed::fencing::{self, Token};
use testbed::{FleetOptions, Progress, load, wait_for};

use crate::support::*;

/// The highest value that is accepted as an epoch.
const EPOCH_MAX: i64 = (1 << 31) - (1 << 20) - 1;
const REASON: &str = "FencingTokenAhead";

fn config_maps(client: &Client) -> Api<DynamicObject> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "ConfigMap"));
    Api::namespaced_with(client.clone(), NAMESPACE, &kind)
}

fn stateful_sets(client: &Client) -> Api<StatefulSet> {
    Api::namespaced(client.clone(), NAMESPACE)
}

#[tokio::test]
async fn forged_tokens_change_no_lease_and_no_entry_and_affect_one_object() {
    let control_plane = control_plane().await;
    let client = control_plane.client();
    let fleet = fleet_of_three(&control_plane, FleetOptions::default()).await;
    let keys = clusters(&control_plane, 20).await;
    let (leases, table) = until_entered(&client).await;
    let forged = |shard: &str, holder: &str, cluster: &str| Token {
        table: table.uid.clone(),
        shard: shard.to_owned(),
        epoch: EPOCH_MAX,
        holder: holder.to_owned(),
        cluster: cluster.to_owned(),
    };

    // One object for each shard, with the label by which the operator finds its own.
    for (number, (shard, entry)) in table.entries.iter().enumerate() {
        let token = forged(shard, &entry.holder, "nobodys");
        forge_config_map(&client, number, &token.to_string()).await;
    }
    forge_config_map(&client, 900, "x/2146435071/h").await;
    // And on a child of one cluster, where the token counts.
    let victim = &keys[0].1;
    let uid = load::clusters_in(client.clone(), NAMESPACE)
        .get(victim)
        .await
        .unwrap()
        .uid()
        .unwrap();
    let token = forged("000", fleet.replicas()[0].name(), &uid).to_string();
    annotate(&client, &format!("{victim}-db"), json!(token)).await;

    // All others make progress: old ones are changed, new ones are created.
    let change = json!({"spec": {"replicas": 2}});
    load::patch(&client, keys[1..].to_vec(), change)
        .await
        .unwrap();
    let late = (0..40).map(|number| load::NewCluster {
        namespace: "elsewhere".to_owned(),
        name: format!("late-{number:03}"),
        spec: load::spec(1),
    });
    load::create(&control_plane, late.collect()).await.unwrap();
    until_all_but_are_ready(&client, victim, keys.len() + 40).await;
    nudge(&client, victim).await;
    until_reported(&client, victim, true).await;
    let (leases_now, table_now) = until_entered(&client).await;
    assert_eq!(leases, leases_now, "a Lease moved");
    assert_eq!(table, table_now, "an entry moved");

    // The remedy of the report works.
    annotate(&client, &format!("{victim}-db"), json!(null)).await;
    nudge(&client, victim).await;
    until_reported(&client, victim, false).await;
    load::wait_all_ready(&client, keys.len() + 40, PATIENCE)
        .await
        .unwrap();
    let (leases_now, table_now) = until_entered(&client).await;
    assert_eq!((leases, table), (leases_now, table_now));
}

async fn forge_config_map(client: &Client, number: usize, token: &str) {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": format!("forged-{number}"),
            "labels": {"database.io/bucket": (number * 8 % 256).to_string()},
            "annotations": {fencing::ANNOTATION: token, "database.io/stamp": token},
        },
    });
    let object = serde_json::from_value(object).unwrap();
    config_maps(client)
        .create(&PostParams::default(), &object)
        .await
        .unwrap();
}

async fn annotate(client: &Client, stateful_set: &str, token: serde_json::Value) {
    let change = json!({"metadata": {"annotations": {fencing::ANNOTATION: token}}});
    stateful_sets(client)
        .patch(
            stateful_set,
            &PatchParams::default(),
            &Patch::Merge(&change),
        )
        .await
        .unwrap();
}

/// The StatefulSet has to be written again.
async fn nudge(client: &Client, cluster: &str) {
    let key = (NAMESPACE.to_owned(), cluster.to_owned());
    let cpu = format!("{}m", 150 + fastrand::u16(..400));
    let change = json!({"spec": {"resources": {"cpu": cpu}}});
    load::patch(client, vec![key], change).await.unwrap();
}

async fn until_all_but_are_ready(client: &Client, victim: &str, count: usize) {
    wait_for("all others to be Ready", PATIENCE, || async {
        let all = load::all_clusters(client.clone());
        let all = all.list(&Default::default()).await.unwrap().items;
        let others = all.iter().filter(|cluster| cluster.name_any() != victim);
        let why = others.clone().find_map(load::why_not_ready);
        let met = why.is_none() && all.len() == count;
        Ok(Progress::when(met, (), || {
            format!("{} of {count}; {why:?}", all.len())
        }))
    })
    .await
    .unwrap();
}

async fn until_reported(client: &Client, victim: &str, wanted: bool) {
    let what = format!("{victim} to show {REASON}: {wanted}");
    wait_for(what, PATIENCE, || async {
        let clusters = load::clusters_in(client.clone(), NAMESPACE);
        let cluster = clusters.get(victim).await.unwrap();
        let conditions = cluster.data.pointer("/status/conditions").cloned();
        let conditions = conditions.unwrap_or_default();
        let shown = conditions.as_array().into_iter().flatten().any(|one| {
            one["type"] == "Degraded" && one["status"] == "True" && one["reason"] == REASON
        });
        Ok(Progress::when(shown == wanted, (), || {
            conditions.to_string()
        }))
    })
    .await
    .unwrap();
}
