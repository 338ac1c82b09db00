//! The state of version cc6f500: CRD and policies from its own files, and objects as it wrote them.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{
    ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use testbed::fleet::{OPERATOR_NAMESPACE, repository};
use testbed::{ControlPlane, Fleet, FleetOptions, Progress, load, wait_for};

/// The epoch of every shard Lease.
pub(crate) const EPOCH: i64 = 7;
const OPERATOR: &str = "databasecluster-operator";
const HOLDER: &str = "databasecluster-operator-0";
const CHILDREN: &str = include_str!("cc6f500/children.yaml");
/// The highest stamp that the earlier version accepted.
const FORGED: &str = "databasecluster-shard-000/2146435071/h";

/// Kind, policies and the Deployment, of which no process runs.
pub(crate) async fn install(control_plane: &ControlPlane) {
    let here = repository().join("tests/upgrade/cc6f500");
    let base = repository().join("deploy/base");
    for file in [
        base.join("namespace.yaml"),
        here.join("crd.yaml"),
        base.join("rbac.yaml"),
        base.join("availability.yaml"),
        base.join("deployment.yaml"),
        here.join("policies.yaml"),
    ] {
        let file = file.display().to_string();
        control_plane
            .run_kubectl(&["apply", "-f", &file])
            .await
            .unwrap();
    }
    let kind = [
        "wait",
        "--for=condition=Established",
        "crd/databaseclusters.database.io",
    ];
    control_plane.run_kubectl(&kind).await.unwrap();
}

/// The shard Leases of replicas that have stopped, one of them by a crash.
async fn create_leases(client: &Client) {
    for shard in 0..32 {
        let holder = if shard % 4 == 0 { HOLDER } else { "" };
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {
                "name": format!("databasecluster-shard-{shard:03}"),
                "labels": {"app.kubernetes.io/name": OPERATOR, "database.io/role": "shard"},
                "annotations": {
                    "database.io/shards": "32", "database.io/incarnation": "2eb4094f92cb009cda87ee357a5cfb61",
                    "database.io/buckets": format!("{}-{}", shard * 8, shard * 8 + 7),
                },
            },
            "spec": {"holderIdentity": holder, "leaseTransitions": EPOCH},
        });
        let leases = api(
            client,
            OPERATOR_NAMESPACE,
            "coordination.k8s.io/v1",
            "Lease",
        );
        let lease = serde_json::from_value(lease).unwrap();
        leases.create(&PostParams::default(), &lease).await.unwrap();
    }
}

fn api(client: &Client, namespace: &str, version: &str, kind: &str) -> Api<DynamicObject> {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    Api::namespaced_with(client.clone(), namespace, &resource)
}

/// Clusters of two instances, with all that belongs to them, Ready. The last one carries forged tokens.
pub(crate) async fn create_clusters(control_plane: &ControlPlane, namespace: &str, names: &[&str]) {
    let new = |name: &&str| load::NewCluster {
        namespace: namespace.to_owned(),
        name: (*name).to_owned(),
        spec: load::spec(2),
    };
    let clusters = names.iter().map(new).collect();
    load::create(control_plane, clusters).await.unwrap();
    let client = control_plane.client();
    if let Some(program) = std::env::var_os("EARLIER_OPERATOR") {
        return run(control_plane, program.into(), names.len()).await;
    }
    create_leases(&client).await;
    for (number, name) in names.iter().enumerate() {
        let cluster = load::clusters_in(client.clone(), namespace)
            .get(name)
            .await
            .unwrap();
        let uid = cluster.uid().unwrap();
        let bucket = testbed::shards::bucket(&uid);
        let lease = format!("databasecluster-shard-{:03}", bucket / 8);
        let text = CHILDREN
            .replace("the-name", name)
            .replace("the-uid", &uid)
            .replace("the-bucket", &bucket.to_string());
        let last = number + 1 == names.len();
        let text = match last {
            true => text.replace(&format!("the-lease/1/{HOLDER}"), FORGED),
            false => text.replace("the-lease/1", &format!("{lease}/{EPOCH}")),
        };
        apply_children(control_plane, namespace, name, &text).await;
        let stamp = format!("{lease}/{EPOCH}/{HOLDER}");
        let stamp = if last { FORGED.to_owned() } else { stamp };
        write_cluster(&client, namespace, name, &stamp).await;
        stamp_claims(&client, namespace, name, (&stamp, &bucket.to_string())).await;
        write_status(&client, namespace, name, (&lease, bucket, &uid)).await;
    }
}

/// The earlier version itself does its work, and stops.
async fn run(control_plane: &ControlPlane, program: PathBuf, clusters: usize) {
    let options = FleetOptions {
        binary: Some(program),
        name_prefix: Some("earlier".to_owned()),
        ..FleetOptions::default()
    };
    let mut fleet = Fleet::installed(control_plane, options).unwrap();
    for _ in 0..2 {
        fleet.start_replica(&[]).await.unwrap();
    }
    fleet.wait_ready(crate::PATIENCE).await.unwrap();
    let client = control_plane.client();
    load::wait_all_ready(&client, clusters, crate::PATIENCE)
        .await
        .unwrap();
    fleet.replica_mut(0).unwrap().kill().await.unwrap();
    let stopped = fleet.replica_mut(1).unwrap().term(crate::PATIENCE).await;
    assert!(stopped.unwrap().success());
    for replica in ["earlier-0", "earlier-1"] {
        fleet.delete_pod(replica).await.unwrap();
    }
}

async fn apply_children(control_plane: &ControlPlane, namespace: &str, name: &str, text: &str) {
    let file = control_plane.folder().join(format!("{name}.yaml"));
    std::fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    let manager = format!("--field-manager={OPERATOR}");
    let apply = [
        "apply",
        "-n",
        namespace,
        "--server-side",
        &manager,
        "-f",
        &file,
    ];
    control_plane.run_kubectl(&apply).await.unwrap();
}

fn as_operator() -> PatchParams {
    PatchParams {
        field_manager: Some(OPERATOR.to_owned()),
        ..PatchParams::default()
    }
}

async fn write_cluster(client: &Client, namespace: &str, name: &str, stamp: &str) {
    let change = json!({"metadata": {
        "finalizers": ["database.io/operator"], "annotations": {"database.io/stamp": stamp},
    }});
    load::clusters_in(client.clone(), namespace)
        .patch(name, &as_operator(), &Patch::Merge(&change))
        .await
        .unwrap();
}

/// As after a growth of the volumes.
async fn stamp_claims(client: &Client, namespace: &str, name: &str, (stamp, bucket): (&str, &str)) {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    for ordinal in 0..2 {
        let claim = format!("data-{name}-db-{ordinal}");
        wait_for(format!("claim {claim}"), crate::PATIENCE, || async {
            let found = claims.get_opt(&claim).await.unwrap();
            Ok(Progress::when(found.is_some(), (), || {
                "not there".to_owned()
            }))
        })
        .await
        .unwrap();
        let change = json!({"metadata": {
            "labels": {"database.io/bucket": bucket}, "annotations": {"database.io/stamp": stamp},
        }});
        claims
            .patch(&claim, &as_operator(), &Patch::Merge(&change))
            .await
            .unwrap();
    }
    wait_for(format!("the Pods of {name}"), crate::PATIENCE, || async {
        let sets = api(client, namespace, "apps/v1", "StatefulSet");
        let set = sets.get(&format!("{name}-db")).await.unwrap();
        let ready = set.data["status"]["readyReplicas"].as_u64();
        Ok(Progress::when(ready == Some(2), (), || {
            set.data["status"].to_string()
        }))
    })
    .await
    .unwrap();
    let pods = api(client, namespace, "v1", "Pod");
    assert!(pods.list(&ListParams::default()).await.unwrap().items.len() >= 2);
}

async fn write_status(
    client: &Client,
    namespace: &str,
    name: &str,
    (lease, bucket, uid): (&str, u8, &str),
) {
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": "", "observedGeneration": 1,
            "lastTransitionTime": "2026-11-30T03:46:42Z",
        })
    };
    let status = json!({"status": {
        "conditions": [
            condition("Ready", "True", "AllInstancesReady"), condition("Progressing", "False", "Settled"),
            condition("Degraded", "False", "AsExpected"), condition("Initialized", "True", "Initialized"),
        ],
        "observedGeneration": 1, "phase": "Ready", "readyReplicas": 2, "replicas": 2,
        "selector": format!(
            "app.kubernetes.io/component=database,app.kubernetes.io/instance={name},app.kubernetes.io/name=postgresql"
        ),
        "shard": {"bucket": bucket, "epoch": EPOCH, "holder": HOLDER, "lease": lease, "uid": uid},
    }});
    load::clusters_in(client.clone(), namespace)
        .patch_status(name, &as_operator(), &Patch::Merge(&status))
        .await
        .unwrap();
}
