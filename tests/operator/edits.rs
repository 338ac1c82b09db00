//! What users with rights in one namespace do to labels, annotations and owners of a cluster's objects,
//! against the real API server and the real fence.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PropagationPolicy};
use kube::{Client, Resource, ResourceExt};
use serde_json::{Value, json};
use testbed::{Progress, load, wait_for};

use crate::support::*;

const UID_LABEL: &str = "database.io/cluster-uid";
const TOKEN: &str = "database.io/fencing-token";

/// A kind of child, by its API.
fn children(client: &Client, namespace: &str) -> Vec<(Api<DynamicObject>, &'static str)> {
    let api = |resource: kube::api::ApiResource| {
        Api::namespaced_with(client.clone(), namespace, &resource)
    };
    vec![
        (api(erased::<StatefulSet>()), "db-db"),
        (api(erased::<Service>()), "db-db"),
        (api(erased::<Service>()), "db-rw"),
        (api(erased::<Service>()), "db-r"),
        (api(erased::<ConfigMap>()), "db-db"),
        (api(erased::<PodDisruptionBudget>()), "db-db"),
    ]
}

fn erased<K: Resource<DynamicType = ()>>() -> kube::api::ApiResource {
    kube::api::ApiResource::erase::<K>(&())
}

async fn merge(api: &Api<DynamicObject>, name: &str, patch: Value) {
    api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
}

async fn until(
    what: &str,
    api: &Api<DynamicObject>,
    name: &str,
    is: impl Fn(&DynamicObject) -> bool,
) -> DynamicObject {
    wait_for(format!("{name}: {what}"), PATIENCE, || async {
        let object = api.get(name).await.unwrap();
        Ok(match is(&object) {
            true => Progress::Done(object),
            false => Progress::pending(format!("{:?}", object.metadata)),
        })
    })
    .await
    .unwrap()
}

async fn ready(client: &Client, namespace: &str) -> DynamicObject {
    until_cluster(
        client,
        (namespace, "db"),
        "Ready for its generation",
        |object| {
            is_ready(object)
                && object.data["status"]["observedGeneration"] == json!(object.metadata.generation)
        },
    )
    .await
}

#[tokio::test]
async fn edited_buckets_and_generations_are_corrected_on_every_child_kind() {
    let control_plane = control_plane(options()).await;
    let _fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    one(&control_plane, "edits", "db", load::spec(2)).await;
    ready(&client, "edits").await;
    for (api, name) in children(&client, "edits") {
        let bucket = api.get(name).await.unwrap().labels()["database.io/bucket"].clone();
        let number: u32 = bucket.parse().unwrap();
        // Buckets of the same shard, of another one, invalid and missing.
        for edited in [
            json!(((number + 1) % 256).to_string()),
            json!(((number + 128) % 256).to_string()),
            json!("x"),
            Value::Null,
        ] {
            let patch = json!({"metadata": {"labels": {"database.io/bucket": edited}}});
            merge(&api, name, patch).await;
            until(
                &format!("bucket {bucket} again after {edited}"),
                &api,
                name,
                |object| object.labels().get("database.io/bucket") == Some(&bucket),
            )
            .await;
        }
    }
    // An ownerReference that is lost is put back by the event of its loss, not with the next change.
    for (api, name) in children(&client, "edits") {
        let owners = api.get(name).await.unwrap().metadata.owner_references;
        merge(&api, name, json!({"metadata": {"ownerReferences": null}})).await;
        until("its owner again", &api, name, |object| {
            object.metadata.owner_references == owners
        })
        .await;
    }
    ready(&client, "edits").await;
    for (number, (api, name)) in (3..).zip(children(&client, "edits")) {
        let patch = json!({"metadata": {"annotations": {"database.io/generation": "999999999"}}});
        merge(&api, name, patch).await;
        change(&client, "edits", "db", json!({"replicas": number})).await;
        until_statefulset(&client, ("edits", "db-db"), "to follow its spec", |set| {
            set.spec.as_ref().and_then(|spec| spec.replicas) == Some(number)
        })
        .await;
        ready(&client, "edits").await;
        let generation =
            &api.get(name).await.unwrap().annotations()["database.io/generation"].clone();
        assert_ne!(generation, "999999999", "{name}");
    }
}

/// A token that counts on an object of this cluster, far ahead of every epoch.
async fn forged(api: &Api<DynamicObject>, name: &str) -> String {
    let token = api.get(name).await.unwrap().annotations()[TOKEN].clone();
    let mut parts: Vec<&str> = token.split('/').collect();
    parts[2] = "1000000000";
    parts.join("/")
}

#[tokio::test]
async fn forged_token_is_reported_with_the_repair_command() {
    let control_plane = control_plane(options()).await;
    let _fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    one(&control_plane, "forged", "db", load::spec(2)).await;
    one(&control_plane, "forged", "other", load::spec(1)).await;
    ready(&client, "forged").await;
    for (number, (api, name)) in (3..).zip(children(&client, "forged")) {
        let token = forged(&api, name).await;
        let patch = json!({"metadata": {
            "annotations": {TOKEN: token, "database.io/fingerprint": "0"}, "labels": {"app.kubernetes.io/part-of": "x"},
        }});
        merge(&api, name, patch).await;
        change(&client, "forged", "db", json!({"replicas": number})).await;
        let message = until_degraded(&client, ("forged", "db"), "FencingTokenAhead").await;
        let object = cluster(&client, "forged", "db").await;
        assert_eq!(condition(&object, "Ready").unwrap().0, "False");
        let command = message.split_once("kubectl ").unwrap().1;
        let words: Vec<&str> = command.split_whitespace().collect();
        assert_eq!(words[..3], ["annotate", "-n", "forged"], "{message}");
        assert_eq!(words[4], name, "{message}");
        // The work on other objects continues.
        if words[3] != "statefulset" {
            until_statefulset(&client, ("forged", "db-db"), "to follow its spec", |set| {
                set.spec.as_ref().and_then(|spec| spec.replicas) == Some(number)
            })
            .await;
        }
        control_plane.run_kubectl(&words).await.unwrap();
        ready(&client, "forged").await;
    }
    until_event(&control_plane, "forged", "FencingTokenAhead").await;
    until_cluster(&client, ("forged", "other"), "Ready", is_ready).await;
}

#[tokio::test]
async fn forged_status_is_reported_by_an_event_and_stops_no_other_work() {
    let control_plane = control_plane(options()).await;
    let _fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    one(&control_plane, "forged", "db", load::spec(2)).await;
    ready(&client, "forged").await;
    // The status has a token of its own: that it cannot be written is reported by an Event.
    let clusters = load::clusters_in(client.clone(), "forged");
    let patch = Patch::Merge(json!({"status": {"shard": {"epoch": 1_000_000_000}}}));
    clusters
        .patch_status("db", &PatchParams::default(), &patch)
        .await
        .unwrap();
    change(&client, "forged", "db", json!({"replicas": 1})).await;
    until_statefulset(&client, ("forged", "db-db"), "to follow its spec", |set| {
        set.spec.as_ref().and_then(|spec| spec.replicas) == Some(1)
    })
    .await;
    until_event(&control_plane, "forged", "--subresource=status").await;
    control_plane
        .run_kubectl(&[
            "patch",
            "-n",
            "forged",
            "databasecluster",
            "db",
            "--subresource=status",
            "--type=merge",
            "-p",
            r#"{"status":{"shard":null}}"#,
        ])
        .await
        .unwrap();
    ready(&client, "forged").await;
}

async fn label_of(claims: &Api<PersistentVolumeClaim>, name: &str) -> Option<String> {
    claims
        .get(name)
        .await
        .unwrap()
        .labels()
        .get(UID_LABEL)
        .cloned()
}

async fn until_labelled(claims: &Api<PersistentVolumeClaim>, name: &str, uid: &str) {
    wait_for(format!("{name} to carry {uid}"), PATIENCE, || async {
        let label = label_of(claims, name).await;
        Ok(Progress::when(label.as_deref() == Some(uid), (), || {
            format!("{label:?}")
        }))
    })
    .await
    .unwrap();
}

fn sized(size: &str) -> Value {
    let mut spec = load::spec(2);
    spec["storage"] = json!({"size": size, "retain": "Delete"});
    spec
}

async fn until_gone(client: &Client, namespace: &str) {
    let clusters = load::clusters_in(client.clone(), namespace);
    wait_for("the cluster to be deleted", PATIENCE, || async {
        let found = clusters.get_opt("db").await.unwrap();
        Ok(Progress::when(found.is_none(), (), || {
            format!("{:?}", found.map(|o| o.data))
        }))
    })
    .await
    .unwrap();
}

/// The claims of a former cluster, which have its uid and bucket, and were written under its token.
#[tokio::test]
async fn recreated_cluster_can_be_deleted_with_its_claims() {
    let control_plane = control_plane(options()).await;
    let _fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "again");
    let clusters = load::clusters_in(client.clone(), "again");
    one(&control_plane, "again", "db", sized("1Gi")).await;
    let former = ready(&client, "again").await.uid().unwrap();
    assert_eq!(
        label_of(&claims, "data-db-db-0").await,
        Some(former.clone()),
        "by the template"
    );

    // kubectl delete --cascade=orphan, then apply: the children have no owner, and are adopted as they are.
    let orphan = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Orphan),
        ..DeleteParams::default()
    };
    let before = statefulset(&client, "again", "db-db").await;
    clusters.delete("db", &orphan).await.unwrap();
    until_gone(&client, "again").await;
    one(&control_plane, "again", "db", sized("1Gi")).await;
    let uid = ready(&client, "again").await.uid().unwrap();
    for (api, name) in children(&client, "again") {
        let owners = api.get(name).await.unwrap().metadata.owner_references;
        assert_eq!(owners.unwrap()[0].uid, uid, "{name}");
    }
    let after = statefulset(&client, "again", "db-db").await;
    assert_eq!(after.metadata.uid, before.metadata.uid);
    assert_eq!(after.metadata.generation, before.metadata.generation);
    for name in ["data-db-db-0", "data-db-db-1"] {
        until_labelled(&claims, name, &uid).await;
    }

    // Again, and the children are deleted by hand: the StatefulSet is created over the claims.
    clusters.delete("db", &orphan).await.unwrap();
    until_gone(&client, "again").await;
    for (api, name) in children(&client, "again") {
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }
    one(&control_plane, "again", "db", sized("1Gi")).await;
    let uid = ready(&client, "again").await.uid().unwrap();
    for name in ["data-db-db-0", "data-db-db-1"] {
        until_labelled(&claims, name, &uid).await;
    }
    clusters
        .delete("db", &DeleteParams::default())
        .await
        .unwrap();
    until_gone(&client, "again").await;
    wait_for("the claims to go", PATIENCE, || async {
        let left = crate::support::claims(&client, "again").await;
        Ok(Progress::when(left.is_empty(), (), || format!("{left:?}")))
    })
    .await
    .unwrap();
}
