//! The overlay for one namespace with real replicas: they serve it, have no rights elsewhere, and need none.

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Api;
use kube::api::ListParams;
use serde_json::json;
use testbed::fleet::OPERATOR_USER;
use testbed::shards::wait_balanced;
use testbed::{
    AuditLevel, ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, Progress, load, wait_for,
};

use crate::support::*;

const SERVED: &str = "databases";
const OTHER: &str = "shop";

fn flag(name: &str, value: &str) -> (String, String, String) {
    (
        "kube-apiserver".to_owned(),
        name.to_owned(),
        value.to_owned(),
    )
}

fn cluster(namespace: &str, name: &str) -> load::NewCluster {
    load::NewCluster {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        spec: load::spec(2),
    }
}

#[tokio::test]
async fn replicas_with_rights_in_one_namespace_serve_it_and_touch_no_other() {
    let control_plane = control_plane(ControlPlaneOptions {
        audit: AuditLevel::Metadata,
        // As on OpenShift: blocking the deletion of an owner requires the right to set its finalizers.
        extra_args: vec![
            flag(
                "enable-admission-plugins",
                "OwnerReferencesPermissionEnforcement",
            ),
            // As before 1.32: what is watched is listed first.
            flag("feature-gates", "WatchList=false"),
        ],
        sharded_list_and_watch: false,
        ..ControlPlaneOptions::default()
    })
    .await;
    let client = control_plane.client();
    let options = FleetOptions {
        extra_args: vec![
            format!("--watch-namespaces={SERVED}"),
            "--require-fence".to_owned(),
        ],
        ..FleetOptions::default()
    };
    let mut fleet = Fleet::install(&control_plane, options).await.unwrap();
    load::create(&control_plane, vec![cluster(OTHER, "not-ours")])
        .await
        .unwrap();
    load::create(
        &control_plane,
        vec![cluster(SERVED, "ours"), cluster(SERVED, "too")],
    )
    .await
    .unwrap();
    // What the overlay changes: rights.yaml instead of the ClusterRoleBinding.
    let rights = deploy("overlays/single-namespace/rights.yaml");
    run(kubectl_of(&control_plane).args(["delete", "clusterrolebinding", NAME]));
    run(kubectl_of(&control_plane).args(["apply", "-f", &rights]));
    for _ in 0..2 {
        fleet.start_replica(&[]).await.unwrap();
    }
    fleet.wait_ready(PATIENCE).await.unwrap();
    wait_balanced(&fleet, PATIENCE).await.unwrap();
    ready(&client, 2).await;

    // Another replica takes over, and deletes too.
    fleet.replica_mut(0).unwrap().kill().await.unwrap();
    wait_balanced(&fleet, PATIENCE).await.unwrap();
    run(kubectl_of(&control_plane).args(["-n", SERVED, "delete", "dbc", "too", "--timeout=60s"]));
    ready(&client, 1).await;

    a_pod_that_hangs_is_replaced(&control_plane).await;
    foreign_objects_are_named(&control_plane).await;

    let others = load::clusters_in(client.clone(), OTHER)
        .get("not-ours")
        .await
        .unwrap();
    assert!(
        others.data["status"].is_null() && others.metadata.finalizers.is_none(),
        "{others:?}"
    );
    nothing_was_refused_by_rbac(&control_plane);
}

fn nothing_was_refused_by_rbac(control_plane: &ControlPlane) {
    let seen = control_plane.audit().unwrap();
    let own = seen.iter().filter(|event| event.user == OPERATOR_USER);
    let refused: Vec<String> = own
        .filter(|event| event.refused_by_rbac)
        .map(|event| {
            format!(
                "{} {} in {:?}",
                event.verb,
                event.full_resource(),
                event.namespace
            )
        })
        .collect();
    assert_eq!(refused, Vec::<String>::new());
}

/// Waits until the served namespace has this many clusters, all Ready.
async fn ready(client: &kube::Client, count: usize) {
    let api = load::clusters_in(client.clone(), SERVED);
    wait_for("the clusters to be Ready", PATIENCE, || async {
        let all = api.list(&ListParams::default()).await.unwrap().items;
        let lagging: Vec<String> = all.iter().filter_map(load::why_not_ready).collect();
        let done = all.len() == count && lagging.is_empty();
        Ok(Progress::when(done, (), || {
            format!("{} of {count}, {lagging:?}", all.len())
        }))
    })
    .await
    .unwrap();
}

/// One that fits on no node, until the spec is corrected.
async fn a_pod_that_hangs_is_replaced(control_plane: &ControlPlane) {
    let client = control_plane.client();
    let mut hanging = cluster(SERVED, "hanging");
    hanging.spec["resources"]["cpu"] = json!("90000");
    load::create(control_plane, vec![hanging]).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), SERVED);
    wait_for("a Pod that no node has room for", PATIENCE, || async {
        let pod = pods.get_opt("hanging-db-0").await.unwrap();
        let conditions = pod
            .and_then(|pod| pod.status?.conditions)
            .unwrap_or_default();
        let hangs = conditions
            .iter()
            .any(|c| c.reason.as_deref() == Some("Unschedulable"));
        Ok(Progress::when(hangs, (), || format!("{conditions:?}")))
    })
    .await
    .unwrap();
    let key = (SERVED.to_owned(), "hanging".to_owned());
    let change = json!({"spec": {"resources": {"cpu": "100m"}}});
    load::patch(&client, vec![key], change).await.unwrap();
    ready(&client, 2).await;
}

/// An object with a child's name that another owner controls.
async fn foreign_objects_are_named(control_plane: &ControlPlane) {
    let client = control_plane.client();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), SERVED);
    let owner = accounts.get("default").await.unwrap().metadata.uid.unwrap();
    for (kind, version, spec) in [
        ("ConfigMap", "v1", json!(null)),
        (
            "Service",
            "v1",
            json!({"clusterIP": "None", "ports": [{"port": 1}]}),
        ),
        (
            "PodDisruptionBudget",
            "policy/v1",
            json!({"maxUnavailable": 1}),
        ),
    ] {
        let name = format!("taken-{}", kind.to_lowercase());
        let mut object = json!({
            "apiVersion": version, "kind": kind,
            "metadata": {"name": format!("{name}-db"), "namespace": SERVED, "ownerReferences": [{
                "apiVersion": "v1", "kind": "ServiceAccount", "name": "default", "uid": owner,
                "controller": true,
            }]},
        });
        if !spec.is_null() {
            object["spec"] = spec;
        }
        let file = control_plane.folder().join(format!("{name}.yaml"));
        std::fs::write(&file, object.to_string()).unwrap();
        run(kubectl_of(control_plane).args(["create", "-f"]).arg(file));
        load::create(control_plane, vec![cluster(SERVED, &name)])
            .await
            .unwrap();
        let api = load::clusters_in(client.clone(), SERVED);
        wait_for(
            format!("{kind} to be reported as foreign"),
            PATIENCE,
            || async {
                let status = api.get(&name).await.unwrap().data["status"].to_string();
                let named =
                    status.contains(&format!("{kind} {name}-db")) && status.contains("default");
                Ok(Progress::when(named, (), || status))
            },
        )
        .await
        .unwrap();
    }
}
