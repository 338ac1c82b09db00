//! An exporter of metrics whose image does not exist takes no database away.

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use testbed::{ControlPlane, Progress, load, wait_for};

use crate::support::*;

const NAMESPACE: &str = "exported";

/// The kubelet's status of a Pod in which PostgreSQL runs, and whose exporter cannot be pulled. Pods with an image of
/// this tag are left alone by the fake nodes.
const IMAGE: &str = "quay.test/exporter:0-unmounted";

async fn pod_with_image(client: &Client) -> Pod {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    wait_for("the Pod with the exporter", PATIENCE, || async {
        let pod = pods.get_opt("db-db-0").await.unwrap();
        let found = pod.filter(|pod| {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut images = containers.filter_map(|container| container.image.as_deref());
            pod.metadata.deletion_timestamp.is_none() && images.any(|image| image == IMAGE)
        });
        Ok(match found {
            Some(pod) => Progress::Done(pod),
            None => Progress::pending("not yet"),
        })
    })
    .await
    .unwrap()
}

async fn runs_without_its_exporter(client: &Client) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let container = |name: &str, image: &str, ready: bool, state: serde_json::Value| {
        json!({"name": name, "image": image, "imageID": "", "ready": ready, "started": ready,
            "restartCount": 0, "state": state})
    };
    let ended = json!({"terminated": {"exitCode": 0}});
    let mut prepare = container("prepare", "postgres:17.1", true, ended);
    prepare["started"] = json!(false);
    let status = json!({"status": {
        "phase": "Running", "podIP": "10.9.8.7", "podIPs": [{"ip": "10.9.8.7"}],
        "conditions": [
            {"type": "PodScheduled", "status": "True"}, {"type": "Initialized", "status": "True"},
            {"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "False"},
        ],
        "initContainerStatuses": [prepare],
        "containerStatuses": [
            container("postgres", "postgres:17.1", true, json!({"running": {}})),
            container("exporter", IMAGE, false, json!({"waiting": {"reason": "ErrImagePull"}})),
        ],
    }});
    pods.patch_status(
        "db-db-0",
        &PatchParams::default(),
        &Patch::Strategic(&status),
    )
    .await
    .unwrap();
}

async fn until_clients_reach_it(client: &Client, service: &str) {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    wait_for(format!("an endpoint of {service}"), PATIENCE, || async {
        let found = slices.list(&of_service).await.unwrap().items;
        let mut endpoints = found
            .iter()
            .flat_map(|slice| slice.endpoints.iter().flatten());
        let is_ready = endpoints.any(|endpoint| {
            let ready = endpoint.conditions.as_ref().and_then(|all| all.ready);
            endpoint.addresses == ["10.9.8.7"] && ready == Some(true)
        });
        Ok(Progress::when(is_ready, (), || format!("{found:?}")))
    })
    .await
    .unwrap();
}

pub(crate) async fn without_an_image_takes_no_database_away(control_plane: &ControlPlane) {
    let client = control_plane.client();
    one(control_plane, NAMESPACE, "db", load::spec(1)).await;
    until_cluster(&client, (NAMESPACE, "db"), "Ready", is_ready).await;
    let before = statefulset(&client, NAMESPACE, "db-db").await.spec;
    let exporter = json!({"monitoring": {"exporter": {"image": IMAGE}}});
    change(&client, NAMESPACE, "db", exporter).await;
    let pod = pod_with_image(&client).await;
    runs_without_its_exporter(&client).await;
    let text = until_degraded(&client, (NAMESPACE, "db"), "ImagePullBackOff").await;
    for words in [
        "Pod db-db-0: container exporter",
        IMAGE,
        "correct spec.monitoring.exporter",
    ] {
        assert!(text.contains(words), "{text}");
    }
    until_cluster(
        &client,
        (NAMESPACE, "db"),
        "available all the same",
        |object| {
            condition(object, "Available").unwrap().0 == "True"
                && condition(object, "Stalled").is_some()
        },
    )
    .await;
    for service in ["db-rw", "db-r"] {
        until_clients_reach_it(&client, service).await;
    }
    assert_eq!(pod_with_image(&client).await.metadata.uid, pod.metadata.uid);

    let exporter = json!({"monitoring": {"exporter": {"image": "quay.test/exporter:1"}}});
    change(&client, NAMESPACE, "db", exporter).await;
    until_cluster(
        &client,
        (NAMESPACE, "db"),
        "Ready with an exporter",
        |object| is_ready(object) && condition(object, "Stalled").is_none(),
    )
    .await;
    let set = statefulset(&client, NAMESPACE, "db-db").await.spec.unwrap();
    let containers = set.template.spec.unwrap().containers;
    let ports = containers[1].ports.as_ref().unwrap();
    assert_eq!(ports[0].name.as_deref(), Some("metrics"));

    // Without the field, everything is as it was.
    change(&client, NAMESPACE, "db", json!({"monitoring": null})).await;
    wait_for("the former template", PATIENCE, || async {
        let spec = statefulset(&client, NAMESPACE, "db-db").await.spec;
        Ok(Progress::when(spec == before, (), || format!("{spec:?}")))
    })
    .await
    .unwrap();
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    for name in ["db-rw", "db-r"] {
        let spec = services.get(name).await.unwrap().spec.unwrap();
        assert_eq!(spec.publish_not_ready_addresses, None, "{name}");
    }
}
