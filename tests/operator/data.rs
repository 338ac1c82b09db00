//! Changes of children by users and administrators, none of which loses a data volume.

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, PersistentVolumeClaim, Pod, ResourceQuota, Secret, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{
    DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, PropagationPolicy,
};
use kube::{Api, Client};
use serde_json::json;
use testbed::audit::{self, AuditEvent};
use testbed::fleet::OPERATOR_USER;
use testbed::{AuditLevel, ControlPlane, ControlPlaneOptions, Fleet, Progress, load, wait_for};

use crate::support::*;

async fn until_claim_asks_for(client: &Client, namespace: &str, name: &str, size: &str) {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    wait_for(
        format!("claim {name} to ask for {size}"),
        PATIENCE,
        || async {
            let spec = api.get(name).await.unwrap().spec;
            let requests = spec.and_then(|spec| spec.resources?.requests);
            let asked = requests.and_then(|all| all.get("storage").map(|size| size.0.clone()));
            Ok(Progress::when(asked.as_deref() == Some(size), (), || {
                format!("{asked:?}")
            }))
        },
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn every_child_exists_is_owned_and_has_drift_corrected() {
    let control_plane = control_plane(ControlPlaneOptions {
        audit: AuditLevel::Metadata,
        ..options()
    })
    .await;
    let fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    enforce_restricted(&control_plane, "all").await;
    one(&control_plane, "all", "db", load::spec(2)).await;
    until_cluster(&client, ("all", "db"), "Ready", is_ready).await;

    let services: Api<Service> = Api::namespaced(client.clone(), "all");
    for name in ["db-db", "db-rw", "db-r"] {
        let meta = services.get(name).await.unwrap().metadata;
        assert_eq!(meta.owner_references.unwrap()[0].name, "db");
        assert!(
            meta.annotations
                .unwrap()
                .contains_key("database.io/fencing-token")
        );
    }
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "all");
    let secret = secrets.get("db-app").await.unwrap();
    let keys: Vec<String> = secret.data.unwrap().into_keys().collect();
    for key in ["username", "password", "host", "port", "dbname", "uri"] {
        assert!(
            keys.iter().any(|known| known == key),
            "{key} is not in {keys:?}"
        );
    }

    let configs: Api<ConfigMap> = Api::namespaced(client.clone(), "all");
    let good = configs.get("db-db").await.unwrap().data;
    let meddle = Patch::Merge(json!({"data": {"prepare.sh": "exit 1"}}));
    configs
        .patch("db-db", &PatchParams::default(), &meddle)
        .await
        .unwrap();
    wait_for("the ConfigMap to be restored", PATIENCE, || async {
        let now = configs.get("db-db").await.unwrap().data;
        Ok(Progress::when(now == good, (), || {
            format!("{:?}", now.map(|d| d["prepare.sh"].len()))
        }))
    })
    .await
    .unwrap();

    let claims_api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "all");
    let meta = claims_api.get("data-db-db-0").await.unwrap().metadata;
    let (labels, annotations) = (meta.labels.unwrap(), meta.annotations.unwrap());
    assert!(
        !labels.contains_key("app.kubernetes.io/instance"),
        "{labels:?}"
    );
    assert_eq!(labels["database.io/cluster"], "db");
    for (name, value) in [
        (
            "argocd.argoproj.io/sync-options",
            "Prune=false,Delete=false",
        ),
        ("argocd.argoproj.io/compare-options", "IgnoreExtraneous"),
    ] {
        assert_eq!(annotations[name], value);
    }

    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), "all");
    assert!(budgets.get_opt("db-db").await.unwrap().is_some());
    change(&client, "all", "db", json!({"replicas": 1})).await;
    wait_for("the budget to go", PATIENCE, || async {
        let found = budgets.get_opt("db-db").await.unwrap();
        Ok(Progress::when(found.is_none(), (), || "it is there".into()))
    })
    .await
    .unwrap();

    // The volume of a former replica is kept, and used again.
    let before = claims(&client, "all").await;
    assert_eq!(before.len(), 2, "{before:?}");
    change(&client, "all", "db", json!({"replicas": 2})).await;
    until_cluster(&client, ("all", "db"), "two instances", |object| {
        is_ready(object) && object.data["status"]["readyReplicas"] == 2
    })
    .await;
    assert_eq!(claims(&client, "all").await, before);

    resources_in_the_standard_form(&client, "all").await;
    passwords_stay_where_they_are(&control_plane, &fleet).await;
}

/// The short form leaves no trace, as the schema has no defaults; a foreign annotation on the Pods stays.
async fn resources_in_the_standard_form(client: &Client, namespace: &str) {
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let annotation =
        json!({"cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes": "run,tmp"});
    let annotate = json!({"spec": {"template": {"metadata": {"annotations": annotation}}}});
    let params = PatchParams::default();
    sets.patch("db-db", &params, &Patch::Merge(annotate))
        .await
        .unwrap();
    let standard = json!({
        "cpu": null, "memory": null,
        "requests": {"cpu": "1e-1", "memory": 268_435_456}, "limits": {"memory": ".5Gi"},
    });
    change(client, namespace, "db", json!({"resources": standard})).await;
    let set = until_statefulset(
        client,
        (namespace, "db-db"),
        "the resources asked for",
        |set| {
            let template = serde_json::to_value(&set.spec.as_ref().unwrap().template).unwrap();
            // As the API server writes them.
            let expected = json!({
                "requests": {"cpu": "100e-3", "memory": "268435456"}, "limits": {"memory": "512Mi"},
            });
            template["spec"]["containers"][0]["resources"] == expected
        },
    )
    .await;
    let template = serde_json::to_value(&set.spec.unwrap().template).unwrap();
    assert_eq!(template["metadata"]["annotations"], annotation);
    until_cluster(client, (namespace, "db"), "Ready", is_ready).await;
}

/// Pod Security "restricted" is enforced in the namespace, as a Pod that does not meet it shows.
async fn enforce_restricted(control_plane: &ControlPlane, namespace: &str) {
    let label = "pod-security.kubernetes.io/enforce=restricted";
    for command in [
        ["create", "namespace", namespace].as_slice(),
        ["label", "namespace", namespace, label].as_slice(),
    ] {
        control_plane.run_kubectl(command).await.unwrap();
    }
    let pods: Api<Pod> = Api::namespaced(control_plane.client(), namespace);
    let plain = json!({
        "metadata": {"name": "plain"}, "spec": {"containers": [{"name": "plain", "image": "x"}]},
    });
    let plain = serde_json::from_value(plain).unwrap();
    wait_for("a plain Pod to be refused", PATIENCE, || async {
        let answer = pods.create(&PostParams::default(), &plain).await;
        let output = answer.map_or_else(|error| error.to_string(), |_| "accepted".to_owned());
        assert_ne!(output, "accepted", "nothing is enforced");
        let refused = output.contains("violates PodSecurity \"restricted");
        Ok(Progress::when(refused, (), || output))
    })
    .await
    .unwrap();
}

/// The operator only creates Secrets and never reads them, and no log contains a password.
async fn passwords_stay_where_they_are(control_plane: &ControlPlane, fleet: &Fleet<'_>) {
    let all = audit::read(&control_plane.audit_log().unwrap()).unwrap();
    let of_secrets = |event: &&AuditEvent| {
        event.user == OPERATOR_USER && event.resource == "secrets" && event.code != 403
    };
    let verbs: Vec<&str> = all
        .iter()
        .filter(of_secrets)
        .map(|event| event.verb.as_str())
        .collect();
    assert!(
        !verbs.is_empty(),
        "the audit log has no write of the Secret"
    );
    assert!(verbs.iter().all(|verb| *verb == "create"), "{verbs:?}");
    let secrets: Api<Secret> = Api::namespaced(control_plane.client(), "all");
    let data = secrets.get("db-app").await.unwrap().data.unwrap();
    for key in ["password", "replication-password"] {
        let password = std::str::from_utf8(&data[key].0).unwrap();
        assert!(password.len() >= 32, "{key} is short");
        for replica in fleet.replicas() {
            let log = std::fs::read_to_string(replica.log()).unwrap();
            assert!(!log.contains(password), "{key} is in {}", replica.name());
        }
    }
}

#[tokio::test]
async fn manually_deleted_statefulset_is_recreated_with_its_volumes_and_pods() {
    let control_plane = control_plane(options()).await;
    let _fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    let mut spec = load::spec(2);
    spec["storage"]["retain"] = json!("Delete");
    one(&control_plane, "hand", "db", spec).await;
    until_cluster(&client, ("hand", "db"), "Ready", is_ready).await;
    let before = claims(&client, "hand").await;
    assert_eq!(before.len(), 2);
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "hand");
    let pods: Api<Pod> = Api::namespaced(client.clone(), "hand");
    let pod_uid = || async { pods.get("db-db-0").await.unwrap().metadata.uid };

    for (policy, pods_stay) in [
        (PropagationPolicy::Orphan, true),
        (PropagationPolicy::Background, false),
    ] {
        let pod_before = pod_uid().await;
        let set = sets.get("db-db").await.unwrap().metadata.uid;
        let params = DeleteParams {
            propagation_policy: Some(policy.clone()),
            ..DeleteParams::default()
        };
        sets.delete("db-db", &params).await.unwrap();
        until_statefulset(
            &client,
            ("hand", "db-db"),
            "to be re-created, with its Pods",
            |now| {
                let ready = now.status.as_ref().and_then(|status| status.ready_replicas);
                now.metadata.uid != set && ready == Some(2)
            },
        )
        .await;
        if pods_stay {
            assert_eq!(
                pod_uid().await,
                pod_before,
                "a Pod was restarted for nothing"
            );
        }
        assert_eq!(claims(&client, "hand").await, before, "after {policy:?}");
    }
    until_cluster(&client, ("hand", "db"), "Ready", is_ready).await;

    let clusters = load::clusters_in(client.clone(), "hand");
    clusters
        .delete("db", &DeleteParams::default())
        .await
        .unwrap();
    wait_for("the claims to go with the cluster", PATIENCE, || async {
        let left = claims(&client, "hand").await;
        Ok(Progress::when(left.is_empty(), (), || format!("{left:?}")))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn immediately_recreated_cluster_gets_its_volumes_back() {
    let control_plane = control_plane(options()).await;
    let _fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    one(&control_plane, "again", "db", load::spec(1)).await;
    let first = until_cluster(&client, ("again", "db"), "Ready", is_ready).await;
    let before = claims(&client, "again").await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "again");
    // The garbage collector may delete the cluster's Secret last, and late.
    let hold = |finalizers| Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
    let params = PatchParams::default();
    secrets
        .patch("db-app", &params, &hold(json!(["example.com/hold"])))
        .await
        .unwrap();
    let clusters = load::clusters_in(client.clone(), "again");
    clusters
        .delete("db", &DeleteParams::default())
        .await
        .unwrap();
    wait_for("the name to be free", PATIENCE, || async {
        let found = clusters.get_opt("db").await.unwrap();
        Ok(Progress::when(found.is_none(), (), || "it is there".into()))
    })
    .await
    .unwrap();
    one(&control_plane, "again", "db", load::spec(1)).await;
    let waits = |object: &DynamicObject| {
        condition(object, "Progressing").is_some_and(|(_, reason, message)| {
            reason == "WaitingForFormerCluster" && message.contains("Secret db-app exists already")
        })
    };
    let seen = until_cluster(&client, ("again", "db"), "waiting or Ready", |object| {
        waits(object) || is_ready(object)
    })
    .await;
    assert!(!is_ready(&seen), "its Pods started with the former Secret");
    secrets
        .patch("db-app", &params, &hold(json!(null)))
        .await
        .unwrap();
    let second = until_cluster(&client, ("again", "db"), "Ready", is_ready).await;
    assert_ne!(first.metadata.uid, second.metadata.uid);
    let secret = secrets.get("db-app").await.unwrap().metadata;
    let owner = &secret.owner_references.unwrap()[0];
    assert_eq!(Some(&owner.uid), second.metadata.uid.as_ref());
    assert_eq!(claims(&client, "again").await, before);
    let services: Api<Service> = Api::namespaced(client.clone(), "again");
    let owner = services
        .get("db-rw")
        .await
        .unwrap()
        .metadata
        .owner_references
        .unwrap();
    assert_eq!(Some(&owner[0].uid), second.metadata.uid.as_ref());
}

/// Nothing listens where the API server is to ask about StatefulSets and Services of this namespace.
async fn webhook_on_a_closed_port(client: &Client, namespace: &str) {
    let webhook = serde_json::from_value(json!({
        "metadata": {"name": "closed"},
        "webhooks": [{
            "name": "closed.example.com", "failurePolicy": "Fail", "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "timeoutSeconds": 2,
            "clientConfig": {"url": "https://127.0.0.1:1/"},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "rules": [{
                "apiGroups": ["", "apps"], "apiVersions": ["v1"],
                "resources": ["services", "statefulsets"], "operations": ["CREATE", "UPDATE"],
            }],
        }],
    }));
    let webhooks: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    webhooks
        .create(&PostParams::default(), &webhook.unwrap())
        .await
        .unwrap();
}

/// A new cluster has a condition, an Event and the time of the next try; an old one is not Ready for a
/// generation that is not applied, and Available. Both continue when the webhook is removed.
async fn a_webhook_that_is_down_is_reported_on_the_clusters_that_it_stops(
    control_plane: &ControlPlane,
) {
    let (client, namespace) = (control_plane.client(), "hooked");
    one(control_plane, namespace, "old", load::spec(1)).await;
    until_cluster(&client, (namespace, "old"), "Ready", is_ready).await;
    webhook_on_a_closed_port(&client, namespace).await;
    change(&client, namespace, "old", json!({"replicas": 2})).await;
    one(control_plane, namespace, "new", load::spec(1)).await;
    for name in ["new", "old"] {
        let text = until_degraded(&client, (namespace, name), "ApiServerError").await;
        for words in ["failed calling webhook", "closed.example.com"] {
            assert!(text.contains(words), "{text}");
        }
        let (_, at) = text.rsplit_once("tries again at ").unwrap();
        let at: jiff::Timestamp = at.parse().unwrap();
        let ahead = at.duration_since(jiff::Timestamp::now()).as_secs();
        assert!((-5..=140).contains(&ahead), "{ahead} s ahead: {text}");
        let object = cluster(&client, namespace, name).await;
        let status = &object.data["status"];
        assert_eq!(status["phase"], "Degraded");
        assert_eq!(
            status["observedGeneration"],
            json!(object.metadata.generation)
        );
        let (available, reason, _) = condition(&object, "Available").unwrap();
        let expected = match name {
            "old" => ("True", "PrimaryReady"),
            _ => ("False", "PrimaryNotReady"),
        };
        assert_eq!((available.as_str(), reason.as_str()), expected, "{name}");
        the_warning_has_the_words_of_the_api_server(&client, namespace, name).await;
    }
    let all = audit::read(&control_plane.audit_log().unwrap()).unwrap();
    let written = all.iter().filter(|event| {
        let of_new = (event.namespace.as_str(), event.name.as_str()) == (namespace, "new");
        event.user == OPERATOR_USER && event.subresource == "status" && of_new
    });
    let written = written.count();
    assert!(written <= 3, "the status was written {written} times");

    let webhooks: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    webhooks
        .delete("closed", &DeleteParams::default())
        .await
        .unwrap();
    // A change does not wait for the next try.
    for name in ["new", "old"] {
        change(&client, namespace, name, json!({"replicas": 3})).await;
        until_cluster(&client, (namespace, name), "Ready with three", |object| {
            is_ready(object) && object.data["status"]["readyReplicas"] == 3
        })
        .await;
    }
}

async fn the_warning_has_the_words_of_the_api_server(
    client: &Client,
    namespace: &str,
    cluster: &str,
) {
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    wait_for(format!("a Warning about {cluster}"), PATIENCE, || async {
        let all = events.list(&ListParams::default()).await.unwrap();
        let found = all.iter().any(|event| {
            event.type_.as_deref() == Some("Warning")
                && event.involved_object.name.as_deref() == Some(cluster)
                && event
                    .message
                    .as_deref()
                    .is_some_and(|note| note.contains("failed calling webhook"))
        });
        let seen = format!("{} events", all.items.len());
        Ok(Progress::when(found, (), || seen))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn problems_are_reported_with_a_remedy_and_cleared_once_fixed() {
    let control_plane = control_plane(ControlPlaneOptions {
        audit: AuditLevel::Metadata,
        ..options()
    })
    .await;
    let _fleet = fleet_of_three(&control_plane).await;
    tokio::join!(
        refusals_of_the_operator(&control_plane),
        a_sidecar_is_not_taken_for_postgres(&control_plane),
        crate::sidecars::additions_of_others_are_left_alone(&control_plane),
        crate::exporter::without_an_image_takes_no_database_away(&control_plane),
        crate::backup::restore_from_a_snapshot_uses_its_claim(&control_plane),
        tags_of_unknown_schemes_are_checked_by_the_pod(&control_plane),
        a_webhook_that_is_down_is_reported_on_the_clusters_that_it_stops(&control_plane),
    );
}

async fn refusals_of_the_operator(control_plane: &ControlPlane) {
    let client = control_plane.client();
    one(control_plane, "bad", "db", load::spec(1)).await;
    until_cluster(&client, ("bad", "db"), "Ready", is_ready).await;
    let before = claims(&client, "bad").await;

    change(&client, "bad", "db", json!({"image": "postgres:18"})).await;
    let text = until_degraded(&client, ("bad", "db"), "MajorVersionChange").await;
    assert!(
        text.contains("PostgreSQL 17") && text.contains("PostgreSQL 18"),
        "{text}"
    );
    assert!(text.contains("To upgrade"), "{text}");
    let refused = cluster(&client, "bad", "db").await;
    assert_eq!(condition(&refused, "Ready").unwrap().0, "False");
    assert_eq!(condition(&refused, "Available").unwrap().0, "True");
    change(&client, "bad", "db", json!({"image": "postgres:16"})).await;
    until_cluster(&client, ("bad", "db"), "no word of an upgrade", |object| {
        let (.., text) = condition(object, "Degraded").unwrap();
        text.contains("no downgrade") && !text.contains("To upgrade")
    })
    .await;
    change(&client, "bad", "db", json!({"image": "postgres:17.1"})).await;
    until_cluster(&client, ("bad", "db"), "Ready again", is_ready).await;

    change(&client, "bad", "db", json!({"storage": {"size": "2Gi"}})).await;
    until_claim_asks_for(&client, "bad", "data-db-db-0", "2Gi").await;
    let fixed = serde_json::from_value(json!({
        "metadata": {"name": "fixed"}, "provisioner": "example.com/fixed",
        "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": false,
    }));
    let classes: Api<StorageClass> = Api::all(client.clone());
    classes
        .create(&PostParams::default(), &fixed.unwrap())
        .await
        .unwrap();
    let mut spec = load::spec(1);
    spec["storage"]["className"] = json!("fixed");
    one(control_plane, "bad", "fixed", spec).await;
    until_cluster(&client, ("bad", "fixed"), "Ready", is_ready).await;
    change(&client, "bad", "fixed", json!({"storage": {"size": "2Gi"}})).await;
    let text = until_degraded(&client, ("bad", "fixed"), "StorageNotGrown").await;
    assert!(
        text.contains("claim data-fixed-db-0 cannot grow to 2Gi"),
        "{text}"
    );
    assert!(
        text.ends_with(
            "allowVolumeExpansion of its StorageClass, or set spec.storage.size back to 1Gi"
        ),
        "{text}"
    );
    change(&client, "bad", "fixed", json!({"storage": {"size": "1Gi"}})).await;
    until_cluster(&client, ("bad", "fixed"), "Ready again", is_ready).await;
    a_claim_that_others_have_grown_is_left_alone(&client).await;

    a_lost_secret_comes_back(control_plane).await;

    change(&client, "bad", "other", json!({"replicas": 0})).await;
    until_cluster(&client, ("bad", "other"), "paused", |object| {
        condition(object, "Ready")
            .is_some_and(|(status, why, _)| status == "True" && why == "Paused")
    })
    .await;
    let after = claims(&client, "bad").await;
    assert!(
        before.iter().all(|claim| after.contains(claim)),
        "{after:?}"
    );
    assert_eq!(after.len(), 3, "{after:?}");
}

/// Its request may still be lowered, as its volume has not grown yet.
async fn a_claim_that_others_have_grown_is_left_alone(client: &Client) {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "bad");
    let grow = json!({"spec": {"resources": {"requests": {"storage": "50Gi"}}}});
    claims
        .patch("data-db-db-0", &PatchParams::default(), &Patch::Merge(grow))
        .await
        .unwrap();
    change(client, "bad", "db", json!({"storage": {"size": "15Gi"}})).await;
    let done = |set: &StatefulSet| {
        let annotations = set.metadata.annotations.as_ref().unwrap();
        annotations
            .get("database.io/claims")
            .is_some_and(|done| done == "15Gi/1")
    };
    until_statefulset(client, ("bad", "db-db"), "to have its claims listed", done).await;
    until_claim_asks_for(client, "bad", "data-db-db-0", "50Gi").await;
    until_cluster(client, ("bad", "db"), "Ready", is_ready).await;
}

/// A webhook injects a container before the operator's.
async fn a_sidecar_is_not_taken_for_postgres(control_plane: &ControlPlane) {
    let client = control_plane.client();
    one(control_plane, "beside", "db", load::spec(1)).await;
    until_cluster(&client, ("beside", "db"), "Ready", is_ready).await;
    let sidecar = json!([{
        "op": "add", "path": "/spec/template/spec/containers/0",
        // With less, the fence refuses changes of the template.
        "value": {
            "name": "filebeat", "image": "filebeat:9.1.0",
            "securityContext": {"allowPrivilegeEscalation": false},
        },
    }]);
    let sidecar = sidecar.to_string();
    let patch = [
        "patch",
        "statefulset",
        "db-db",
        "-n",
        "beside",
        "--type=json",
    ];
    let patch = [&patch[..], &["-p", &sidecar]].concat();
    control_plane.run_kubectl(&patch).await.unwrap();
    change(
        &client,
        "beside",
        "db",
        json!({"replicas": 2, "image": "postgres:17.2"}),
    )
    .await;
    until_cluster(&client, ("beside", "db"), "the change", |object| {
        is_ready(object) && object.data["status"]["readyReplicas"] == 2
    })
    .await;
    let set = statefulset(&client, "beside", "db-db").await;
    let containers = set.spec.unwrap().template.spec.unwrap().containers;
    let images = containers.iter().filter_map(|c| c.image.as_deref());
    let images: Vec<&str> = images.collect();
    assert_eq!(images, ["filebeat:9.1.0", "postgres:17.2"]);
}

/// Build 42 is not PostgreSQL 42. If it is of another version, the Pod reports that.
async fn tags_of_unknown_schemes_are_checked_by_the_pod(control_plane: &ControlPlane) {
    let client = control_plane.client();
    let mut spec = load::spec(1);
    spec["image"] = json!("registry.test/pg:41");
    one(control_plane, "tags", "db", spec).await;
    until_cluster(&client, ("tags", "db"), "Ready", is_ready).await;
    let newer = "registry.test/pg:42";
    change(&client, "tags", "db", json!({"image": newer})).await;
    until_cluster(&client, ("tags", "db"), "Ready with 42", is_ready).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "tags");
    wait_for("the Pod to have the new image", PATIENCE, || async {
        let pod = pods.get_opt("db-db-0").await.unwrap();
        let spec = pod.and_then(|pod| pod.spec);
        let has = spec.is_some_and(|spec| spec.containers[0].image.as_deref() == Some(newer));
        Ok(Progress::when(has, (), || "not yet".into()))
    })
    .await
    .unwrap();
    let words = "the data is of PostgreSQL 16 and the image is PostgreSQL 17: set spec.image to one of PostgreSQL 16";
    let refuses = json!({"status": {
        "conditions": [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "False"}],
        "initContainerStatuses": [{
            "name": "prepare", "image": newer, "imageID": "", "ready": false, "restartCount": 1,
            "state": {"terminated": {"exitCode": 1, "message": words}},
        }],
    }});
    let patch = Patch::Strategic(&refuses);
    pods.patch_status("db-db-0", &PatchParams::default(), &patch)
        .await
        .unwrap();
    let text = until_degraded(&client, ("tags", "db"), "CrashLoopBackOff").await;
    assert!(text.ends_with(words), "{text}");
    let stopped = cluster(&client, "tags", "db").await;
    assert_eq!(condition(&stopped, "Available").unwrap().0, "False");
}

async fn a_lost_secret_comes_back(control_plane: &ControlPlane) {
    let client = control_plane.client();
    one(control_plane, "bad", "other", load::spec(1)).await;
    until_cluster(&client, ("bad", "other"), "Ready", is_ready).await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "bad");
    let secret = secrets.get("other-app").await.unwrap();
    secrets
        .delete("other-app", &DeleteParams::default())
        .await
        .unwrap();
    let change_of_pods = json!({"resources": {"cpu": "300m"}});
    change(&client, "bad", "other", change_of_pods).await;
    let text = until_degraded(&client, ("bad", "other"), "SecretMissing").await;
    assert!(text.contains("Secret other-app is missing"), "{text}");
    let mut back = Secret {
        data: secret.data,
        ..Secret::default()
    };
    back.metadata.name = Some("other-app".to_owned());
    secrets.create(&PostParams::default(), &back).await.unwrap();
    until_cluster(&client, ("bad", "other"), "Ready again", is_ready).await;
}

#[tokio::test]
async fn quota_that_rejects_pods_is_named() {
    let control_plane = control_plane(options()).await;
    let _fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    one(&control_plane, "small", "first", load::spec(1)).await;
    until_cluster(&client, ("small", "first"), "Ready", is_ready).await;
    let quota = serde_json::from_value(json!({
        "metadata": {"name": "no-pods"}, "spec": {"hard": {"pods": "1"}},
    }));
    let quotas: Api<ResourceQuota> = Api::namespaced(client.clone(), "small");
    quotas
        .create(&PostParams::default(), &quota.unwrap())
        .await
        .unwrap();
    wait_for("the quota to count", PATIENCE, || async {
        let counted = quotas.get("no-pods").await.unwrap().status;
        let used = counted.and_then(|status| status.used);
        Ok(Progress::when(used.is_some(), (), || "no status".into()))
    })
    .await
    .unwrap();
    one(&control_plane, "small", "db", load::spec(1)).await;
    let text = until_degraded(&client, ("small", "db"), "FailedCreate").await;
    assert!(text.contains("exceeded quota: no-pods"), "{text}");
}

const MARKS: &str = "app.kubernetes.io/managed-by";

fn by(policy: PropagationPolicy) -> DeleteParams {
    DeleteParams {
        propagation_policy: Some(policy),
        ..DeleteParams::default()
    }
}

fn with_retain(retain: &str) -> serde_json::Value {
    let mut spec = load::spec(2);
    spec["storage"]["retain"] = json!(retain);
    spec
}

/// Names and uids of the claims that are not being deleted.
async fn claims_that_stay(client: &Client, namespace: &str) -> Vec<(String, String)> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let going = api.list(&ListParams::default()).await.unwrap().items;
    let going = going
        .iter()
        .filter(|claim| claim.metadata.deletion_timestamp.is_some());
    assert_eq!(going.count(), 0);
    claims(client, namespace).await
}

/// Two cases in parallel, each in its own namespace.
#[tokio::test]
async fn orphans_and_restored_clusters_are_adopted_without_volume_loss() {
    let control_plane = control_plane(options()).await;
    let _fleet = fleet_of_three(&control_plane).await;
    tokio::join!(
        claims_of_a_running_statefulset_that_is_not_ours_stay_and_so_does_the_last_copy(
            &control_plane
        ),
        a_cluster_restored_from_a_backup_is_ready_with_its_claims_and_pods_as_they_were(
            &control_plane
        ),
    );
}

async fn claims_of_a_running_statefulset_that_is_not_ours_stay_and_so_does_the_last_copy(
    control_plane: &ControlPlane,
) {
    let client = control_plane.client();
    one(control_plane, "left", "other", load::spec(1)).await;
    one(control_plane, "left", "db", with_retain("Retain")).await;
    until_cluster(&client, ("left", "db"), "Ready", is_ready).await;
    let other = until_cluster(&client, ("left", "other"), "Ready", is_ready).await;
    let before: Vec<_> = claims(&client, "left").await;
    load::delete(
        &client,
        "left",
        "db",
        &by(PropagationPolicy::Orphan),
        PATIENCE,
    )
    .await
    .unwrap();

    let services: Api<Service> = Api::namespaced(client.clone(), "left");
    // Without an owner and unmarked, and of another DatabaseCluster.
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "left");
    let others = json!([{
        "apiVersion": "database.io/v1", "kind": "DatabaseCluster", "name": "other",
        "uid": other.metadata.uid, "controller": true,
    }]);
    for owners in [json!(null), others] {
        let foreign = json!({"metadata": {"labels": {MARKS: "x"}, "ownerReferences": owners}});
        sets.patch("db-db", &PatchParams::default(), &Patch::Merge(foreign))
            .await
            .unwrap();
        one(control_plane, "left", "db", with_retain("Delete")).await;
        until_degraded(&client, ("left", "db"), "ForeignChild").await;
        load::delete(
            &client,
            "left",
            "db",
            &by(PropagationPolicy::Background),
            PATIENCE,
        )
        .await
        .unwrap();
        assert_eq!(claims_that_stay(&client, "left").await, before, "{owners}");
        until_event(control_plane, "left", "all claims stay").await;
        let service = services.get("db-rw").await.unwrap().metadata;
        assert_eq!(service.owner_references.unwrap_or_default(), []);
    }

    // The claims of a deleted cluster, and the first of them lost.
    let params = DeleteParams::default();
    sets.delete("db-db", &params).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "left");
    wait_for("its Pods to be deleted", PATIENCE, || async {
        let found = pods.get_opt("db-db-0").await.unwrap();
        Ok(Progress::when(found.is_none(), (), || "there".into()))
    })
    .await
    .unwrap();
    let claims_api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "left");
    claims_api.delete("data-db-db-0", &params).await.unwrap();
    wait_for("its claim to be deleted", PATIENCE, || async {
        let found = claims_api.get_opt("data-db-db-0").await.unwrap();
        Ok(Progress::when(found.is_none(), (), || "there".into()))
    })
    .await
    .unwrap();
    let children = [
        "service/db-db",
        "service/db-rw",
        "service/db-r",
        "configmap/db-db",
        "pdb/db-db",
    ];
    let command = [["delete", "-n", "left"].as_slice(), &children].concat();
    control_plane.run_kubectl(&command).await.unwrap();
    one(control_plane, "left", "db", with_retain("Delete")).await;
    let message = until_degraded(&client, ("left", "db"), "PrimaryVolumeMissing").await;
    assert!(message.contains("data-db-db-1"), "{message}");
    assert!(sets.get_opt("db-db").await.unwrap().is_none());
    let (_, command) = message.split_once("kubectl ").unwrap();
    let words: Vec<&str> = command.split_whitespace().collect();
    control_plane.run_kubectl(&words).await.unwrap();
    until_cluster(&client, ("left", "db"), "Ready", is_ready).await;
    a_claim_that_is_being_deleted_is_reported(&client).await;
}

async fn a_claim_that_is_being_deleted_is_reported(client: &Client) {
    let claims_api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "left");
    let params = DeleteParams::default();
    claims_api.delete("data-db-db-1", &params).await.unwrap();
    // Its Pod runs and keeps it. Claims are not watched: it is noticed with the next size.
    change(client, "left", "db", json!({"storage": {"size": "2Gi"}})).await;
    let message = until_degraded(client, ("left", "db"), "ClaimBeingDeleted").await;
    assert!(message.contains("data-db-db-1"), "{message}");
}

/// As Velero restores: without uids, versions, ownerReferences and status, with all labels and annotations. The order
/// is that of its defaults, but for the DatabaseCluster, which is last here and before the Services there.
async fn a_cluster_restored_from_a_backup_is_ready_with_its_claims_and_pods_as_they_were(
    control_plane: &ControlPlane,
) {
    let client = control_plane.client();
    one(control_plane, "back", "db", with_retain("Retain")).await;
    let first = until_cluster(&client, ("back", "db"), "Ready", is_ready).await;
    let mut backup = backup(control_plane).await;
    assert_eq!(backup.len(), 10, "{backup:?}");

    delete_everything(control_plane).await;
    restore(control_plane, &backup).await;
    let restored = claims(&client, "back").await;
    let second = until_cluster(&client, ("back", "db"), "Ready", is_ready).await;
    assert_ne!(first.metadata.uid, second.metadata.uid);
    assert_eq!(condition(&second, "Initialized").unwrap().0, "True");
    assert_eq!(claims_that_stay(&client, "back").await, restored);
    let set = statefulset(&client, "back", "db-db").await;
    assert_eq!(set.metadata.generation, Some(1), "its spec was changed");
    until_claims_are_of(&client, second.metadata.uid.as_ref().unwrap()).await;

    // The operator creates what is missing then, and Velero skips it.
    delete_everything(control_plane).await;
    let cluster = backup.pop().unwrap();
    backup.insert(4, cluster);
    restore(control_plane, &backup).await;
    let restored = claims(&client, "back").await;
    let third = until_cluster(&client, ("back", "db"), "Ready", is_ready).await;
    assert_eq!(condition(&third, "Initialized").unwrap().0, "True");
    assert_eq!(claims_that_stay(&client, "back").await, restored);
    until_claims_are_of(&client, third.metadata.uid.as_ref().unwrap()).await;
}

async fn backup(control_plane: &ControlPlane) -> Vec<serde_json::Value> {
    let kinds = "persistentvolumeclaims,secrets,configmaps,poddisruptionbudgets,services,statefulsets,databaseclusters";
    let mut objects = Vec::new();
    for kind in kinds.split(',') {
        let list = ["get", kind, "-n", "back", "-o", "json"];
        let list = control_plane.run_kubectl(&list).await.unwrap();
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        let found = list["items"].as_array().unwrap().iter();
        objects.extend(
            found
                .filter(|one| one["metadata"]["name"] != "kube-root-ca.crt")
                .map(stripped),
        );
    }
    objects
}

async fn delete_everything(control_plane: &ControlPlane) {
    let client = control_plane.client();
    load::delete(
        &client,
        "back",
        "db",
        &by(PropagationPolicy::Foreground),
        PATIENCE,
    )
    .await
    .unwrap();
    for kind in [
        "services",
        "configmaps",
        "poddisruptionbudgets",
        "secrets",
        "persistentvolumeclaims",
    ] {
        let all = ["delete", kind, "-n", "back", "--all"];
        control_plane.run_kubectl(&all).await.unwrap();
    }
}

async fn restore(control_plane: &ControlPlane, backup: &[serde_json::Value]) {
    let file = control_plane.folder().join("backup.json");
    for object in backup {
        std::fs::write(&file, object.to_string()).unwrap();
        let create = ["create", "-f", file.to_str().unwrap()];
        if let Err(error) = control_plane.run_kubectl(&create).await {
            assert!(error.to_string().contains("already exists"), "{error}");
        }
    }
}

async fn until_claims_are_of(client: &Client, uid: &String) {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "back");
    for name in ["data-db-db-0", "data-db-db-1"] {
        wait_for(format!("{name} to be labelled"), PATIENCE, || async {
            let labels = claims.get(name).await.unwrap().metadata.labels.unwrap();
            let is = labels.get("database.io/cluster-uid") == Some(uid);
            Ok(Progress::when(is, (), || format!("{labels:?}")))
        })
        .await
        .unwrap();
    }
}

fn stripped(object: &serde_json::Value) -> serde_json::Value {
    let mut object = object.clone();
    let fields = object.as_object_mut().unwrap();
    fields.remove("status");
    let meta = object["metadata"].as_object_mut().unwrap();
    meta.retain(|name, _| {
        ["name", "namespace", "labels", "annotations", "finalizers"].contains(&name.as_str())
    });
    // Of addresses and volumes, Velero lets Kubernetes choose others.
    for field in ["clusterIP", "clusterIPs", "volumeName"] {
        if let Some(spec) = object
            .pointer_mut("/spec")
            .and_then(|spec| spec.as_object_mut())
            && spec
                .get(field)
                .is_some_and(|value| *value != "None" && *value != json!(["None"]))
        {
            spec.remove(field);
        }
    }
    object
}
