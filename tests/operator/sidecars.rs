//! What others add to StatefulSets and Pods: containers, init containers, variables, volumes and annotations, by a
//! mutating policy or by another field manager.

use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};
use testbed::audit;
use testbed::fleet::OPERATOR_USER;
use testbed::{ControlPlane, Progress, load, wait_for};

use crate::support::*;

const NAMESPACE: &str = "injected";
/// Longer than the operator takes to answer what a watch shows.
const QUIET: Duration = Duration::from_secs(4);

fn container(name: &str) -> Value {
    // With less, the fence refuses changes of the template.
    json!({"name": name, "image": format!("{name}:1"), "securityContext": {"allowPrivilegeEscalation": false}})
}

/// As a service mesh does: into each StatefulSet and Pod of the namespace, before the operator's own containers.
async fn inject_by_policy(client: &Client) {
    let kind = |kind: &str| {
        let gvk = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
        Api::<DynamicObject>::all_with(client.clone(), &ApiResource::from_gvk(&gvk))
    };
    let sidecar = "Object.spec.template.spec.containers{name: 'mesh', image: 'mesh:1', \
         securityContext: Object.spec.template.spec.containers.securityContext{allowPrivilegeEscalation: false}}";
    let pod = sidecar.replace("Object.spec.template.spec", "Object.spec");
    // An apply configuration merges lists by their keys: a variable of PostgreSQL's container, a volume, an annotation.
    let template = format!(
        "Object{{spec: Object.spec{{template: Object.spec.template{{\
           metadata: Object.spec.template.metadata{{annotations: {{'mesh.example.com/injected': 'true'}}}}, \
           spec: Object.spec.template.spec{{containers: [{sidecar}], \
             initContainers: [Object.spec.template.spec.initContainers{{name: 'mesh-init', image: 'mesh:1', \
               securityContext: Object.spec.template.spec.initContainers.securityContext{{allowPrivilegeEscalation: false}}}}], \
             volumes: [Object.spec.template.spec.volumes{{name: 'mesh', emptyDir: Object.spec.template.spec.volumes.emptyDir{{}}}}]}}}}}}}}"
    );
    let pod = format!(
        "Object{{metadata: Object.metadata{{annotations: {{'mesh.example.com/pod': 'true'}}}}, spec: Object.spec{{containers: [{}]}}}}",
        pod.replace("name: 'mesh'", "name: 'mesh-pod'")
    );
    for (name, group, resource, operations, expression) in [
        (
            "inject-sets",
            "apps",
            "statefulsets",
            json!(["CREATE", "UPDATE"]),
            template,
        ),
        ("inject-pods", "", "pods", json!(["CREATE"]), pod),
    ] {
        let policy = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "reinvocationPolicy": "Never", "failurePolicy": "Fail",
                "matchConstraints": {
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}},
                    "resourceRules": [{"apiGroups": [group], "apiVersions": ["v1"], "operations": operations, "resources": [resource]}],
                },
                "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}],
            },
        });
        let binding = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding",
            "metadata": {"name": name}, "spec": {"policyName": name},
        });
        for (api, object) in [
            (kind("MutatingAdmissionPolicy"), policy),
            (kind("MutatingAdmissionPolicyBinding"), binding),
        ] {
            let object: DynamicObject = serde_json::from_value(object).unwrap();
            api.create(&kube::api::PostParams::default(), &object)
                .await
                .unwrap();
        }
    }
}

/// Policies hold a moment after they were created; without them nothing would be tested.
async fn until_injected(client: &Client) {
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container("own")]}});
    let probe: StatefulSet = serde_json::from_value(json!({
        "metadata": {"name": "probe"},
        "spec": {"serviceName": "probe", "selector": {"matchLabels": {"a": "b"}}, "template": template},
    }))
    .unwrap();
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), NAMESPACE);
    let params = kube::api::PostParams {
        dry_run: true,
        ..kube::api::PostParams::default()
    };
    wait_for("the policies to hold", PATIENCE, || async {
        let made = serde_json::to_value(sets.create(&params, &probe).await.unwrap()).unwrap();
        let containers = names(&made, "containers");
        Ok(Progress::when(containers.len() == 2, (), || {
            made.to_string()
        }))
    })
    .await
    .unwrap();
}

async fn set(client: &Client, name: &str) -> Value {
    serde_json::to_value(statefulset(client, NAMESPACE, &format!("{name}-db")).await).unwrap()
}

fn names(set: &Value, list: &str) -> Vec<String> {
    let all = set.pointer(&format!("/spec/template/spec/{list}")).unwrap();
    let name = |one: &Value| one["name"].as_str().unwrap().to_owned();
    all.as_array().unwrap().iter().map(name).collect()
}

fn images(set: &Value) -> Vec<String> {
    let all = set["spec"]["template"]["spec"]["containers"].as_array();
    let image = |one: &Value| one["image"].as_str().unwrap().to_owned();
    all.unwrap().iter().map(image).collect()
}

/// The operator's writes of a StatefulSet so far.
fn writes(control_plane: &ControlPlane, name: &str) -> usize {
    let all = audit::read(&control_plane.audit_log().unwrap()).unwrap();
    let name = format!("{name}-db");
    all.iter()
        .filter(|event| {
            event.user == OPERATOR_USER
                && event.resource == "statefulsets"
                && (event.namespace.as_str(), &event.name) == (NAMESPACE, &name)
                && event.is_accepted_write()
        })
        .count()
}

async fn ready(client: &Client, name: &str) {
    until_cluster(
        client,
        (NAMESPACE, name),
        "Ready for its generation",
        |object| {
            is_ready(object)
                && object.data["status"]["observedGeneration"] == json!(object.metadata.generation)
        },
    )
    .await;
}

/// Nothing is written and nothing restarts while nothing changes.
async fn is_quiet(control_plane: &ControlPlane, name: &str) {
    let client = control_plane.client();
    let before = (set(&client, name).await, writes(control_plane, name));
    tokio::time::sleep(QUIET).await;
    let after = (set(&client, name).await, writes(control_plane, name));
    assert_eq!(after.1, before.1, "{name} is written without an end");
    assert_eq!(after.0["spec"], before.0["spec"]);
    assert_eq!(
        after.0["metadata"]["generation"],
        before.0["metadata"]["generation"]
    );
    ready(&client, name).await;
}

/// Adds to, or removes from, a StatefulSet as another field manager.
async fn apply_as_another(client: &Client, name: &str, template: Value) {
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), NAMESPACE);
    let patch =
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "spec": {"template": template}});
    let params = PatchParams::apply("mesh-controller");
    sets.patch(&format!("{name}-db"), &params, &Patch::Apply(&patch))
        .await
        .unwrap();
}

/// What is injected stays, is never taken for PostgreSQL, and causes no write and no restart beside its own.
pub(crate) async fn additions_of_others_are_left_alone(control_plane: &ControlPlane) {
    let client = control_plane.client();
    testbed_namespace(&client).await;
    inject_by_policy(&client).await;
    until_injected(&client).await;
    // `fields` has optional fields, whose drift is found by an apply after each write of others.
    one(control_plane, NAMESPACE, "plain", load::spec(1)).await;
    let mut spec = load::spec(1);
    spec["nodeSelector"] = json!({"kubernetes.io/os": "linux"});
    one(control_plane, NAMESPACE, "fields", spec).await;
    for name in ["plain", "fields"] {
        ready(&client, name).await;
        let found = set(&client, name).await;
        let containers = names(&found, "containers");
        assert!(containers.contains(&"mesh".to_owned()), "{containers:?}");
        assert!(names(&found, "initContainers").contains(&"mesh-init".to_owned()));
        assert!(names(&found, "volumes").contains(&"mesh".to_owned()));
        let annotations = &found["spec"]["template"]["metadata"]["annotations"];
        assert_eq!(annotations["mesh.example.com/injected"], "true");
    }
    tokio::join!(
        is_quiet(control_plane, "plain"),
        is_quiet(control_plane, "fields"),
    );

    // Another manager adds more, and takes a part of it away again: one rollout for each, by its own write.
    for name in ["plain", "fields"] {
        let written = writes(control_plane, name);
        let variable = json!({"name": "MESH", "value": "on"});
        let more = json!({
            "metadata": {"annotations": {"mesh.example.com/more": "true"}},
            "spec": {"containers": [container("agent"), {"name": "postgres", "env": [variable]}],
                "volumes": [{"name": "more", "emptyDir": {}}]},
        });
        apply_as_another(&client, name, more).await;
        until_settled(&client, name).await;
        apply_as_another(
            &client,
            name,
            json!({"spec": {"containers": [container("agent")]}}),
        )
        .await;
        until_settled(&client, name).await;
        let found = set(&client, name).await;
        assert!(names(&found, "containers").contains(&"agent".to_owned()));
        assert!(!names(&found, "volumes").contains(&"more".to_owned()));
        // At most one apply for each write of the other manager and of the controller's status.
        let more = writes(control_plane, name) - written;
        assert!(more <= 2, "{name}: {more} writes");
    }
    tokio::join!(
        is_quiet(control_plane, "plain"),
        is_quiet(control_plane, "fields"),
    );

    // Versions are read from PostgreSQL's container, and only its image changes.
    change(
        &client,
        NAMESPACE,
        "plain",
        json!({"image": "postgres:17.2"}),
    )
    .await;
    ready(&client, "plain").await;
    until_settled(&client, "plain").await;
    let mut found = images(&set(&client, "plain").await);
    found.sort();
    assert_eq!(found, ["agent:1", "mesh:1", "postgres:17.2"]);
    change(&client, NAMESPACE, "plain", json!({"image": "postgres:18"})).await;
    until_degraded(&client, (NAMESPACE, "plain"), "MajorVersionChange").await;
    change(
        &client,
        NAMESPACE,
        "plain",
        json!({"image": "postgres:17.2"}),
    )
    .await;
    ready(&client, "plain").await;

    // Removing a sidecar is not the operator's business, and it does not come back.
    apply_as_another(&client, "fields", json!({"spec": {"containers": []}})).await;
    until_settled(&client, "fields").await;
    is_quiet(control_plane, "fields").await;
    let containers = names(&set(&client, "fields").await, "containers");
    assert!(!containers.contains(&"agent".to_owned()), "{containers:?}");
}

async fn testbed_namespace(client: &Client) {
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client.clone());
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    let params = PatchParams::apply("tests");
    namespaces
        .patch(NAMESPACE, &params, &Patch::Apply(&namespace))
        .await
        .unwrap();
}

/// Until the controller has rolled the newest template out.
async fn until_settled(client: &Client, name: &str) {
    wait_for(format!("{name} to be rolled out"), PATIENCE, || async {
        let found = set(client, name).await;
        let (spec, status) = (&found["spec"], &found["status"]);
        let done = status["observedGeneration"] == found["metadata"]["generation"]
            && status["updateRevision"] == status["currentRevision"]
            && status["readyReplicas"] == spec["replicas"];
        Ok(Progress::when(done, (), || status.to_string()))
    })
    .await
    .unwrap();
    ready(client, name).await;
}
