//! The restore of docs/how-to/backup.md from a snapshot, in its order: the operator uses the claim that was created
//! from it. No driver fills the volume here.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use testbed::{ControlPlane, Progress, load, wait_for};

use crate::support::*;

const NAMESPACE: &str = "shop";

/// The claim of the page.
fn claim_from_snapshot() -> PersistentVolumeClaim {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/how-to/backup.md");
    let page = std::fs::read_to_string(path).unwrap();
    let blocks = page.split("```yaml\n").skip(1);
    let mut blocks = blocks.map(|block| block.split("```").next().unwrap());
    let block = blocks.find(|block| block.contains("dataSource:")).unwrap();
    serde_saphyr::from_str(block).unwrap()
}

pub(crate) async fn restore_from_a_snapshot_uses_its_claim(control_plane: &ControlPlane) {
    let client = control_plane.client();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), NAMESPACE);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let mut spec = load::spec(2);
    spec["storage"] = json!({"size": "10Gi", "retain": "Retain"});
    one(control_plane, NAMESPACE, "orders", spec.clone()).await;
    let two = |object: &kube::api::DynamicObject| {
        is_ready(object) && object.data["status"]["readyReplicas"] == 2
    };
    until_cluster(&client, (NAMESPACE, "orders"), "two instances", two).await;
    let kept: Secret = secrets.get("orders-app").await.unwrap();

    let clusters = load::clusters_in(client.clone(), NAMESPACE);
    let delete = DeleteParams::default();
    clusters.delete("orders", &delete).await.unwrap();
    wait_for("the DatabaseCluster to be gone", PATIENCE, || async {
        let found = clusters.get_opt("orders").await.unwrap();
        Ok(Progress::when(found.is_none(), (), || "it exists".into()))
    })
    .await
    .unwrap();
    for name in ["data-orders-db-0", "data-orders-db-1"] {
        claims.delete(name, &delete).await.unwrap();
    }
    wait_for("the claims to be gone", PATIENCE, || async {
        let left = claims.list(&ListParams::default()).await.unwrap().items;
        Ok(Progress::when(left.is_empty(), (), || format!("{left:?}")))
    })
    .await
    .unwrap();
    // Step 1 of the page: the Secret that was kept, without its former owner.
    wait_for("the former Secret to be collected", PATIENCE, || async {
        let found = secrets.get_opt("orders-app").await.unwrap();
        Ok(Progress::when(found.is_none(), (), || "it exists".into()))
    })
    .await
    .unwrap();
    let mut secret = kept.clone();
    secret.metadata = serde_json::from_value(json!({"name": "orders-app"})).unwrap();
    secrets
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();

    let claim = claim_from_snapshot();
    let created = claims.create(&PostParams::default(), &claim).await.unwrap();
    let source = created.spec.unwrap().data_source.unwrap();
    assert_eq!(source.kind, "VolumeSnapshot", "the API server keeps it");
    spec["replicas"] = json!(1);
    one(control_plane, NAMESPACE, "orders", spec).await;
    until_cluster(&client, (NAMESPACE, "orders"), "Ready", is_ready).await;
    let used = claims.get("data-orders-db-0").await.unwrap();
    assert_eq!(used.metadata.uid, created.metadata.uid);
    let now = secrets.get("orders-app").await.unwrap();
    assert_eq!(now.data, kept.data, "clients keep their passwords");
    change(&client, NAMESPACE, "orders", json!({"replicas": 2})).await;
    until_cluster(&client, (NAMESPACE, "orders"), "two instances again", two).await;
    let all = claims.list(&ListParams::default()).await.unwrap().items;
    assert_eq!(all.len(), 2);
}
