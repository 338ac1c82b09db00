//! What the tests of the operator share: starting a fleet, reading objects, waiting.

use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{DynamicObject, ListParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use testbed::{ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, Progress, load, wait_for};

/// Long enough for a busy machine; a test that needs it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// A control plane with the limits of its controllers lifted, so that the operator is what is tested.
pub(crate) fn options() -> ControlPlaneOptions {
    ControlPlaneOptions {
        lift_client_limits: true,
        ..ControlPlaneOptions::default()
    }
}

pub(crate) async fn control_plane(options: ControlPlaneOptions) -> ControlPlane {
    ControlPlane::start(options)
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Three replicas, ready and balanced.
pub(crate) async fn fleet_of_three(control_plane: &ControlPlane) -> Fleet<'_> {
    let fleet = Fleet::start(control_plane, 3, FleetOptions::default())
        .await
        .unwrap();
    testbed::shards::wait_balanced(&fleet, PATIENCE)
        .await
        .unwrap();
    fleet
}

/// `count` clusters of one instance each, in one namespace.
pub(crate) fn singles(namespace: &str, count: usize) -> Vec<load::NewCluster> {
    (0..count)
        .map(|number| load::NewCluster {
            namespace: namespace.to_owned(),
            name: format!("db-{number:03}"),
            spec: load::spec(1),
        })
        .collect()
}

pub(crate) async fn cluster(client: &Client, namespace: &str, name: &str) -> DynamicObject {
    load::clusters_in(client.clone(), namespace)
        .get(name)
        .await
        .unwrap()
}

pub(crate) async fn statefulset(client: &Client, namespace: &str, name: &str) -> StatefulSet {
    Api::namespaced(client.clone(), namespace)
        .get(name)
        .await
        .unwrap()
}

/// Waits until `check` of the cluster is true.
pub(crate) async fn until_cluster(
    client: &Client,
    (namespace, name): (&str, &str),
    what: &str,
    check: impl Fn(&DynamicObject) -> bool,
) -> DynamicObject {
    let api = load::clusters_in(client.clone(), namespace);
    wait_for(format!("{namespace}/{name}: {what}"), PATIENCE, || async {
        let found = api.get_opt(name).await.unwrap();
        Ok(match found {
            Some(object) if check(&object) => Progress::Done(object),
            Some(object) => Progress::pending(object.data["status"].to_string()),
            None => Progress::pending("it is not there"),
        })
    })
    .await
    .unwrap()
}

/// Waits until `check` of the StatefulSet is true.
pub(crate) async fn until_statefulset(
    client: &Client,
    (namespace, name): (&str, &str),
    what: &str,
    check: impl Fn(&StatefulSet) -> bool,
) -> StatefulSet {
    let api: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    wait_for(
        format!("StatefulSet {namespace}/{name}: {what}"),
        PATIENCE,
        || async {
            let found = api.get_opt(name).await.unwrap();
            Ok(match found {
                Some(object) if check(&object) => Progress::Done(object),
                Some(object) => Progress::pending(format!("{:?}", object.spec)),
                None => Progress::pending("it is not there"),
            })
        },
    )
    .await
    .unwrap()
}

/// A condition of a cluster: its status, reason and message.
pub(crate) fn condition(object: &DynamicObject, kind: &str) -> Option<(String, String, String)> {
    let all = object.data.pointer("/status/conditions")?.as_array()?;
    let found = all.iter().find(|condition| condition["type"] == kind)?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

pub(crate) fn is_ready(object: &DynamicObject) -> bool {
    load::why_not_ready(object).is_none()
}

/// Names and uids of all claims, which reveal lost and re-created ones.
pub(crate) async fn claims(client: &Client, namespace: &str) -> Vec<(String, String)> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let list = api.list(&ListParams::default()).await.unwrap();
    let mut found: Vec<(String, String)> = list
        .items
        .into_iter()
        .map(|claim| (claim.metadata.name.unwrap(), claim.metadata.uid.unwrap()))
        .collect();
    found.sort();
    found
}

pub(crate) async fn one(control_plane: &ControlPlane, namespace: &str, name: &str, spec: Value) {
    let new = load::NewCluster {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        spec,
    };
    load::create(control_plane, vec![new]).await.unwrap();
}

pub(crate) async fn change(client: &Client, namespace: &str, name: &str, spec: Value) {
    let keys = vec![(namespace.to_owned(), name.to_owned())];
    load::patch(client, keys, json!({ "spec": spec }))
        .await
        .unwrap();
}

/// Waits until the cluster is Degraded for this reason; returns the message.
pub(crate) async fn until_degraded(client: &Client, key: (&str, &str), reason: &str) -> String {
    let object = until_cluster(client, key, reason, |object| {
        condition(object, "Degraded")
            .is_some_and(|(status, why, _)| status == "True" && why == reason)
    })
    .await;
    condition(&object, "Degraded").unwrap().2
}

/// Waits for an Event with this text.
pub(crate) async fn until_event(control_plane: &ControlPlane, namespace: &str, part: &str) {
    let path = "jsonpath={.items[*].message}";
    let command = ["get", "events", "-n", namespace, "-o", path];
    wait_for(format!("an Event with {part}"), PATIENCE, || async {
        let events = control_plane.run_kubectl(&command).await?;
        let met = events.contains(part);
        Ok(Progress::when(met, (), || events))
    })
    .await
    .unwrap();
}
