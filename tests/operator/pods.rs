//! Pods that cannot run: no StorageClass, no volume, no image, no key in the Secret. The operator reports the cause,
//! the report ends once it is fixed, and no data volume is lost.

use k8s_openapi::api::core::v1::{Event, PersistentVolume, Pod, Secret};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use testbed::fleet::OPERATOR_USER;
use testbed::{AuditLevel, ControlPlane, ControlPlaneOptions, Progress, audit, load, wait_for};

use crate::support::*;

const NAMESPACE: &str = "hard";

/// A StorageClass whose volumes are created by hand.
async fn class(client: &Client, name: &str) {
    let class = json!({
        "metadata": {"name": name}, "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    });
    let classes: Api<StorageClass> = Api::all(client.clone());
    let class = serde_json::from_value(class).unwrap();
    classes
        .create(&PostParams::default(), &class)
        .await
        .unwrap();
}

/// One volume for each of these ordinals of the cluster that is called as the class is.
async fn volumes(client: &Client, class: &str, ordinals: std::ops::Range<usize>) {
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    for ordinal in ordinals {
        let claim = format!("data-{class}-db-{ordinal}");
        let volume = json!({
            "metadata": {"name": format!("{class}-{ordinal}")},
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "storageClassName": class, "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": "/nowhere"},
                "claimRef": {"namespace": NAMESPACE, "name": claim},
            },
        });
        let volume = serde_json::from_value(volume).unwrap();
        volumes
            .create(&PostParams::default(), &volume)
            .await
            .unwrap();
    }
}

fn with_class(replicas: u32, class: &str) -> Value {
    let mut spec = load::spec(replicas);
    spec["storage"]["className"] = json!(class);
    spec
}

fn says_all(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

/// The claims of one cluster of the namespace.
async fn claims_of(client: &Client, cluster: &str) -> Vec<(String, String)> {
    let mut all = claims(client, NAMESPACE).await;
    let prefix = format!("data-{cluster}-db-");
    all.retain(|(name, _)| name.starts_with(&prefix));
    all
}

#[tokio::test]
async fn unrunnable_pods_are_explained_and_recover_once_fixed() {
    let control_plane = control_plane(ControlPlaneOptions {
        real_volumes: true,
        audit: AuditLevel::RequestResponse,
        // As up to Kubernetes 1.34: later versions themselves replace Pods that hang with an old template.
        extra_args: vec![(
            "kube-controller-manager".to_owned(),
            "feature-gates".to_owned(),
            "MaxUnavailableStatefulSet=false".to_owned(),
        )],
        ..options()
    })
    .await;
    let _fleet = fleet_of_three(&control_plane).await;
    tokio::join!(
        an_unknown_storage_class(&control_plane),
        a_claim_that_stays_pending(&control_plane),
        an_image_that_cannot_be_pulled(&control_plane),
        a_first_image_that_cannot_be_pulled(&control_plane),
        a_secret_of_something_else(&control_plane),
        a_roll_out_begins_with_the_last_replica_and_ends_with_the_primary(&control_plane),
    );
}

async fn an_unknown_storage_class(control_plane: &ControlPlane) {
    let client = control_plane.client();
    one(control_plane, NAMESPACE, "nope", with_class(1, "nope")).await;
    let text = until_degraded(&client, (NAMESPACE, "nope"), "Unschedulable").await;
    says_all(&text, &["Pod nope-db-0", "\"nope\"", "pvc data-nope-db-0"]);
    let before = claims_of(&client, "nope").await;
    class(&client, "nope").await;
    volumes(&client, "nope", 0..1).await;
    until_cluster(&client, (NAMESPACE, "nope"), "Ready", is_ready).await;
    assert_eq!(claims_of(&client, "nope").await, before);
}

/// The first instance has a volume, the second has not.
async fn a_claim_that_stays_pending(control_plane: &ControlPlane) {
    let client = control_plane.client();
    class(&client, "claim").await;
    volumes(&client, "claim", 0..1).await;
    one(control_plane, NAMESPACE, "claim", with_class(1, "claim")).await;
    until_cluster(&client, (NAMESPACE, "claim"), "Ready", is_ready).await;
    let before = claims_of(&client, "claim").await;
    change(&client, NAMESPACE, "claim", json!({"replicas": 2})).await;
    let text = until_degraded(&client, (NAMESPACE, "claim"), "Unschedulable").await;
    says_all(
        &text,
        &["Pod claim-db-1", "persistent volume", "pvc data-claim-db-1"],
    );
    // Back again, without the missing volume.
    change(&client, NAMESPACE, "claim", json!({"replicas": 1})).await;
    until_cluster(&client, (NAMESPACE, "claim"), "Ready", is_ready).await;
    let after = claims_of(&client, "claim").await;
    assert_eq!(after.len(), 2, "{after:?}");
    assert_eq!(after[0], before[0], "the volume of the primary");
}

async fn an_image_that_cannot_be_pulled(control_plane: &ControlPlane) {
    let client = control_plane.client();
    class(&client, "image").await;
    volumes(&client, "image", 0..2).await;
    one(control_plane, NAMESPACE, "image", with_class(2, "image")).await;
    until_cluster(&client, (NAMESPACE, "image"), "Ready", is_ready).await;
    let before = claims_of(&client, "image").await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let primary = pods.get("image-db-0").await.unwrap().metadata.uid;

    let missing = json!({"image": "postgres:17.9-missing"});
    change(&client, NAMESPACE, "image", missing).await;
    let text = until_degraded(&client, (NAMESPACE, "image"), "ImagePullBackOff").await;
    says_all(
        &text,
        &[
            "Pod image-db-1",
            "container prepare",
            "postgres:17.9-missing",
        ],
    );
    let now = pods.get("image-db-0").await.unwrap().metadata.uid;
    assert_eq!(
        now, primary,
        "the primary was stopped for an image that is not there"
    );

    change(
        &client,
        NAMESPACE,
        "image",
        json!({"image": "postgres:17.9"}),
    )
    .await;
    let done = |object: &kube::api::DynamicObject| {
        is_ready(object) && object.data["status"]["readyReplicas"] == 2
    };
    until_cluster(&client, (NAMESPACE, "image"), "Ready with 17.9", done).await;
    for name in ["image-db-0", "image-db-1"] {
        let spec = pods.get(name).await.unwrap().spec.unwrap();
        assert_eq!(spec.containers[0].image.as_deref(), Some("postgres:17.9"));
    }
    assert_eq!(claims_of(&client, "image").await, before);
}

fn the_stuck_pod_was_replaced_with_its_grace(control_plane: &ControlPlane) {
    let all = audit::read(&control_plane.audit_log().unwrap()).unwrap();
    let of_operator = |event: &&audit::AuditEvent| {
        event.user == OPERATOR_USER && event.verb == "delete" && event.resource == "pods"
    };
    let deletions: Vec<_> = all
        .iter()
        .filter(of_operator)
        .filter(|event| event.name == "first-db-0")
        .collect();
    assert!(!deletions.is_empty(), "no request replaced it");
    for deletion in deletions {
        let options = deletion.request.as_ref().expect("the log has bodies");
        assert!(options["gracePeriodSeconds"].is_null(), "{options}");
        assert!(options["preconditions"]["uid"].is_string(), "{options}");
        assert!(!deletion.uri.contains("gracePeriod"), "{}", deletion.uri);
    }
}

/// As long as there is no data, an image may be corrected whatever its version. The controller of StatefulSets waits
/// for the second instance, which in turn waits for the first, which hangs with the old image: the operator replaces
/// it.
async fn a_first_image_that_cannot_be_pulled(control_plane: &ControlPlane) {
    let client = control_plane.client();
    class(&client, "first").await;
    volumes(&client, "first", 0..1).await;
    let mut spec = with_class(2, "first");
    spec["image"] = json!("postgres:71-missing");
    one(control_plane, NAMESPACE, "first", spec).await;
    let text = until_degraded(&client, (NAMESPACE, "first"), "ImagePullBackOff").await;
    says_all(&text, &["Pod first-db-0", "postgres:71-missing"]);
    let before = claims_of(&client, "first").await;
    change(&client, NAMESPACE, "first", json!({"image": "postgres:17"})).await;
    until_cluster(&client, (NAMESPACE, "first"), "one instance", |object| {
        object.data["status"]["readyReplicas"] == 1
    })
    .await;
    the_stuck_pod_was_replaced_with_its_grace(control_plane);
    volumes(&client, "first", 1..2).await;
    until_cluster(&client, (NAMESPACE, "first"), "Ready", is_ready).await;
    assert_eq!(claims_of(&client, "first").await, before);
}

/// A Secret that happens to have the name: no Pod gets more of it than the keys that it needs, and without these none
/// starts, which the kubelet reports in an Event.
async fn a_secret_of_something_else(control_plane: &ControlPlane) {
    let client = control_plane.client();
    class(&client, "stripe").await;
    volumes(&client, "stripe", 0..1).await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let foreign = json!({
        "metadata": {"name": "stripe-app"},
        "stringData": {"api-key": "sk_live", "username": "u", "password": "p"},
    });
    let foreign = serde_json::from_value(foreign).unwrap();
    let params = PostParams::default();
    secrets.create(&params, &foreign).await.unwrap();
    let mut spec = with_class(1, "stripe");
    spec["image"] = json!("postgres:17-unmounted");
    one(control_plane, NAMESPACE, "stripe", spec).await;

    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let pod = wait_for("Pod stripe-db-0 on a node", PATIENCE, || async {
        let pod = pods.get_opt("stripe-db-0").await.unwrap();
        let node = |pod: &Pod| {
            pod.spec
                .as_ref()
                .is_some_and(|spec| spec.node_name.is_some())
        };
        Ok(match pod {
            Some(pod) if node(&pod) => Progress::Done(pod),
            other => Progress::pending(format!("{:?}", other.map(|pod| pod.status))),
        })
    })
    .await
    .unwrap();
    let text = serde_json::to_string(&pod.spec).unwrap();
    assert!(text.contains("stripe-app"), "{text}");
    for way in ["secretName", "secretKeyRef", "secretRef", "api-key"] {
        assert!(!text.contains(way), "{way}: {text}");
    }
    let event = json!({
        "metadata": {"name": "stripe-db-0.1"}, "type": "Warning", "reason": "FailedMount",
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "name": "stripe-db-0", "namespace": NAMESPACE,
            "uid": pod.metadata.uid,
        },
        "message": "MountVolume.SetUp failed for volume \"secret\" : references non-existent secret key: dbname",
    });
    let events: Api<Event> = Api::namespaced(client.clone(), NAMESPACE);
    let event = serde_json::from_value(event).unwrap();
    events.create(&params, &event).await.unwrap();
    let text = until_degraded(&client, (NAMESPACE, "stripe"), "SecretInvalid").await;
    says_all(
        &text,
        &[
            "Secret stripe-app has no key dbname",
            "another name",
            "stripe-db-0",
        ],
    );

    let keys = json!({"stringData": {"dbname": "d", "replication-password": "r"}});
    let (params, keys) = (PatchParams::default(), Patch::Merge(keys));
    let corrected = secrets.patch("stripe-app", &params, &keys).await.unwrap();
    change(
        &client,
        NAMESPACE,
        "stripe",
        json!({"image": "postgres:17"}),
    )
    .await;
    until_cluster(&client, (NAMESPACE, "stripe"), "Ready", is_ready).await;
    let after = secrets.get("stripe-app").await.unwrap();
    assert_eq!(after, corrected, "the operator wrote a user's Secret");
}

/// The seconds at which a Pod was created, and at which it became ready.
fn made_and_ready(pod: &Pod) -> (i64, i64) {
    let made = pod.metadata.creation_timestamp.as_ref().unwrap();
    let conditions = pod.status.as_ref().unwrap().conditions.as_ref().unwrap();
    let ready = conditions.iter().find(|c| c.type_ == "Ready").unwrap();
    let ready = ready.last_transition_time.as_ref().unwrap();
    (made.0.as_second(), ready.0.as_second())
}

async fn a_roll_out_begins_with_the_last_replica_and_ends_with_the_primary(
    control_plane: &ControlPlane,
) {
    let client = control_plane.client();
    class(&client, "roll").await;
    volumes(&client, "roll", 0..3).await;
    one(control_plane, NAMESPACE, "roll", with_class(3, "roll")).await;
    let three = |object: &kube::api::DynamicObject| {
        is_ready(object) && object.data["status"]["readyReplicas"] == 3
    };
    until_cluster(&client, (NAMESPACE, "roll"), "three instances", three).await;
    let before = claims_of(&client, "roll").await;
    let newer = json!({"image": "postgres:17.1"});
    change(&client, NAMESPACE, "roll", newer).await;
    until_cluster(&client, (NAMESPACE, "roll"), "rolled out", three).await;

    let all = audit::read(&control_plane.audit_log().unwrap()).unwrap();
    let deletions = all.iter().filter(|event| {
        event.verb == "delete" && event.resource == "pods" && event.name.starts_with("roll-db-")
    });
    let mut order: Vec<&str> = deletions.map(|event| event.name.as_str()).collect();
    // The controller deletes a Pod, and its node does again when it has ended.
    order.dedup();
    assert_eq!(order, ["roll-db-2", "roll-db-1", "roll-db-0"]);
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let mut former_ready = i64::MIN;
    for name in order {
        let pod = pods.get(name).await.unwrap();
        let image = pod.spec.as_ref().unwrap().containers[0].image.as_deref();
        assert_eq!(image, Some("postgres:17.1"), "{name}");
        let (made, ready) = made_and_ready(&pod);
        assert!(
            made >= former_ready,
            "{name} did not wait for the one before it"
        );
        former_ready = ready;
    }
    assert_eq!(claims_of(&client, "roll").await, before);
}
