//! Optional fields of a spec: each reaches the children, is refused if it is wrong, and goes when it is removed.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use testbed::{Fleet, FleetOptions, Progress, load, wait_for};

use crate::support::*;

const NAMESPACE: &str = "fields";

async fn ready(client: &Client) {
    until_cluster(
        client,
        (NAMESPACE, "db"),
        "Ready for its generation",
        |object| {
            is_ready(object)
                && object.data["status"]["observedGeneration"] == json!(object.metadata.generation)
        },
    )
    .await;
}

async fn until_service(
    services: &Api<Service>,
    name: &str,
    what: &str,
    check: impl Fn(&Value) -> bool,
) -> Value {
    wait_for(format!("Service {name}: {what}"), PATIENCE, || async {
        let found = serde_json::to_value(services.get(name).await.unwrap()).unwrap();
        Ok(match check(&found) {
            true => Progress::Done(found),
            false => Progress::pending(found.to_string()),
        })
    })
    .await
    .unwrap()
}

pub(crate) fn pod_fields() -> Value {
    let term = json!({"topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {"app.kubernetes.io/instance": "db"}}});
    json!({
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 100, "podAffinityTerm": term}]}},
        "tolerations": [{"key": "databases", "operator": "Exists", "effect": "NoSchedule"}],
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"team": "a"}}}],
        "priorityClassName": "databases",
        "imagePullSecrets": [{"name": "registry"}],
    })
}

pub(crate) fn object_fields() -> Value {
    let annotations = json!({"example.com/note": "b"});
    json!({
        "metadata": {"labels": {"team": "a"}, "annotations": annotations},
        "services": {
            "readWrite": {"type": "LoadBalancer", "loadBalancerClass": "example.com/internal",
                "externalTrafficPolicy": "Local", "annotations": {"example.com/scheme": "internal"}},
            "readOnly": {"type": "NodePort"},
        },
    })
}

#[tokio::test]
async fn fields_reach_the_children_and_go_when_they_are_removed() {
    let control_plane = control_plane(options()).await;
    let _fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    let class: PriorityClass =
        serde_json::from_value(json!({"metadata": {"name": "databases"}, "value": 1000})).unwrap();
    let classes: Api<PriorityClass> = Api::all(client.clone());
    classes
        .create(&PostParams::default(), &class)
        .await
        .unwrap();
    one(&control_plane, NAMESPACE, "db", load::spec(2)).await;
    ready(&client).await;
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let set = |set| serde_json::to_value::<StatefulSet>(set).unwrap();
    let before = set(statefulset(&client, NAMESPACE, "db-db").await);
    let service_before = until_service(&services, "db-rw", "there", |_| true).await;

    // Metadata and Services restart nothing.
    change(&client, NAMESPACE, "db", object_fields()).await;
    let write = until_service(&services, "db-rw", "a load balancer", |found| {
        found["spec"]["type"] == "LoadBalancer"
    })
    .await;
    assert_eq!(write["spec"]["loadBalancerClass"], "example.com/internal");
    assert_eq!(write["spec"]["externalTrafficPolicy"], "Local");
    assert_eq!(write["metadata"]["labels"]["team"], "a");
    for (name, value) in [
        ("example.com/note", "b"),
        ("example.com/scheme", "internal"),
    ] {
        assert_eq!(write["metadata"]["annotations"][name], value);
    }
    // No load balancer exists here: the object says so.
    let object = until_cluster(&client, (NAMESPACE, "db"), "not exposed", |object| {
        condition(object, "Exposed")
            .is_some_and(|(status, why, _)| status == "False" && why == "AddressPending")
    })
    .await;
    let (.., text) = condition(&object, "Exposed").unwrap();
    assert!(
        text.contains("Service db-rw") && !text.contains("Service db-r:"),
        "{text}"
    );
    let address = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}});
    services
        .patch_status("db-rw", &PatchParams::default(), &Patch::Merge(address))
        .await
        .unwrap();
    until_cluster(&client, (NAMESPACE, "db"), "exposed", |object| {
        condition(object, "Exposed").is_some_and(|(status, ..)| status == "True")
    })
    .await;
    until_service(&services, "db-r", "a port of the nodes", |found| {
        found["spec"]["type"] == "NodePort" && found["spec"]["ports"][0]["nodePort"].is_number()
    })
    .await;
    ready(&client).await;
    let labelled = statefulset(&client, NAMESPACE, "db-db").await;
    assert_eq!(labelled.labels()["team"], "a");
    assert_eq!(labelled.annotations()["example.com/note"], "b");
    assert_eq!(set(labelled)["spec"], before["spec"]);
    // A class cannot change while the type stays.
    let clusters = load::clusters_in(client.clone(), NAMESPACE);
    let patch = |spec: Value| {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let clusters = clusters.clone();
        async move {
            clusters
                .patch("db", &PatchParams::default(), &patch)
                .await
                .map(drop)
        }
    };
    let other = json!({"services": {"readWrite": {"loadBalancerClass": "example.com/other"}}});
    let error = patch(other).await.unwrap_err().to_string();
    assert!(error.contains("set type: ClusterIP first"), "{error}");

    // Fields of Pods.
    let mut pods = pod_fields();
    pods["podTemplate"] =
        json!({"metadata": {"labels": {"team": "c"}, "annotations": {"example.com/note": "d"}}});
    pods["securityContext"] = json!({"fsGroup": 70, "supplementalGroups": [71],
        "seLinuxOptions": {"level": "s0:c1,c2"}});
    change(&client, NAMESPACE, "db", pods).await;
    let changed = until_statefulset(
        &client,
        (NAMESPACE, "db-db"),
        "to have tolerations",
        |found| {
            let template = found
                .spec
                .as_ref()
                .and_then(|spec| spec.template.spec.as_ref());
            template.is_some_and(|pod| pod.tolerations.is_some())
        },
    )
    .await;
    let changed = set(changed);
    let template = &changed["spec"]["template"];
    for (field, value) in pod_fields().as_object().unwrap() {
        assert_eq!(template["spec"][field], *value, "{field}");
    }
    assert_eq!(template["metadata"]["labels"]["team"], "c");
    assert_eq!(template["metadata"]["annotations"]["example.com/note"], "d");
    let context = &template["spec"]["securityContext"];
    assert_eq!(
        [&context["fsGroup"], &context["runAsUser"]],
        [&json!(70), &json!(999)]
    );
    assert_eq!(changed["spec"]["selector"], before["spec"]["selector"]);
    ready(&client).await;
    // What others change of them is restored.
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), NAMESPACE);
    let meddle = json!({"spec": {"template": {"spec": {"tolerations": null}}}});
    sets.patch("db-db", &PatchParams::default(), &Patch::Merge(meddle))
        .await
        .unwrap();
    until_statefulset(
        &client,
        (NAMESPACE, "db-db"),
        "to have tolerations again",
        |found| {
            let template = found
                .spec
                .as_ref()
                .and_then(|spec| spec.template.spec.as_ref());
            template.is_some_and(|pod| pod.tolerations.is_some())
        },
    )
    .await;
    ready(&client).await;
    let error = patch(json!({"securityContext": {"runAsUser": 70}}))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("cannot be changed after creation"),
        "{error}"
    );
    let error = patch(json!({"securityContext": {"assignedByPlatform": true, "fsGroup": null}}));
    let error = error.await.unwrap_err().to_string();
    assert!(
        error.contains("cannot be changed after creation"),
        "{error}"
    );

    // Without the fields, everything is as it was.
    let mut removed =
        json!({"podTemplate": null, "securityContext": null, "metadata": null, "services": null});
    for field in pod_fields().as_object().unwrap().keys() {
        removed[field] = Value::Null;
    }
    change(&client, NAMESPACE, "db", removed).await;
    let after = until_service(&services, "db-rw", "no load balancer", |found| {
        found["spec"]["type"] == "ClusterIP"
    })
    .await;
    assert_eq!(after["spec"], service_before["spec"]);
    assert_eq!(
        after["metadata"]["labels"],
        service_before["metadata"]["labels"]
    );
    assert!(
        after["metadata"]["annotations"]
            .get("example.com/scheme")
            .is_none()
    );
    until_service(&services, "db-r", "no port of the nodes", |found| {
        found["spec"]["type"] == "ClusterIP" && found["spec"]["ports"][0].get("nodePort").is_none()
    })
    .await;
    let after = until_statefulset(
        &client,
        (NAMESPACE, "db-db"),
        "to have no tolerations",
        |found| {
            let template = found
                .spec
                .as_ref()
                .and_then(|spec| spec.template.spec.as_ref());
            template.is_some_and(|pod| pod.tolerations.is_none())
        },
    )
    .await;
    let after = set(after);
    assert_eq!(after["spec"], before["spec"]);
    assert_eq!(after["metadata"]["labels"], before["metadata"]["labels"]);
    ready(&client).await;

    // Rules that no node meets stop a rollout at its first instance, and a correction ends that.
    change(
        &client,
        NAMESPACE,
        "db",
        json!({"nodeSelector": {"no": "node"}}),
    )
    .await;
    let message = until_degraded(&client, (NAMESPACE, "db"), "Unschedulable").await;
    assert!(message.contains("node"), "{message}");
    let object = cluster(&client, NAMESPACE, "db").await;
    assert_eq!(condition(&object, "Available").unwrap().0, "True");
    change(&client, NAMESPACE, "db", json!({"nodeSelector": null})).await;
    ready(&client).await;

    // Parameters: what PostgreSQL reloads restarts nothing.
    let configs: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let until_parameter = async |line: &str, is_there: bool| {
        wait_for(
            format!("{line} in the ConfigMap: {is_there}"),
            PATIENCE,
            || async {
                let data = configs.get("db-db").await.unwrap().data.unwrap();
                let text = &data["parameters.conf"];
                Ok(match text.lines().any(|found| found == line) == is_there {
                    true => Progress::Done(()),
                    false => Progress::pending(text.clone()),
                })
            },
        )
        .await
        .unwrap();
    };
    let parameters = |given: Value| json!({"postgresql": {"parameters": given}});
    change(
        &client,
        NAMESPACE,
        "db",
        parameters(json!({"work_mem": "16MB"})),
    )
    .await;
    until_parameter("work_mem = '16MB'", true).await;
    ready(&client).await;
    let left = set(statefulset(&client, NAMESPACE, "db-db").await);
    assert_eq!(left["spec"], before["spec"]);
    // What the operator alone knows to be wrong is reported, and nothing changes.
    let wrong = json!({"work_mem": "17MB", "max_connections": "many"});
    change(&client, NAMESPACE, "db", parameters(wrong)).await;
    let message = until_degraded(&client, (NAMESPACE, "db"), "InvalidParameters").await;
    assert!(
        message.contains("max_connections must be an integer"),
        "{message}"
    );
    let object = cluster(&client, NAMESPACE, "db").await;
    assert_eq!(condition(&object, "Available").unwrap().0, "True");
    until_parameter("work_mem = '16MB'", true).await;
    // What needs a restart is in the Pod template.
    change(
        &client,
        NAMESPACE,
        "db",
        parameters(json!({"max_connections": 200})),
    )
    .await;
    until_statefulset(
        &client,
        (NAMESPACE, "db-db"),
        "to have more connections",
        |found| {
            let text = serde_json::to_string(&found.spec).unwrap();
            text.contains("max_connections = '200'")
        },
    )
    .await;
    until_parameter("work_mem = '17MB'", true).await;
    ready(&client).await;
    change(&client, NAMESPACE, "db", json!({"postgresql": null})).await;
    until_parameter("work_mem = '17MB'", false).await;
    ready(&client).await;
    let left = set(statefulset(&client, NAMESPACE, "db-db").await);
    assert_eq!(left["spec"], before["spec"]);
    for initdb in [
        json!({"locale": "C"}),
        json!({"dataChecksums": false}),
        json!({"walSegmentSizeMB": 64}),
        json!({"locale": "C", "encoding": "LATIN1"}),
    ] {
        let error = patch(json!({"postgresql": {"initdb": initdb}}))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("initdb cannot be changed after creation"),
            "{initdb}: {error}"
        );
    }
    // The defaults, written out, are no change.
    let defaults = json!({"locale": "C.UTF-8", "encoding": "UTF8", "dataChecksums": true, "walSegmentSizeMB": 16});
    patch(json!({"postgresql": {"initdb": defaults}}))
        .await
        .unwrap();
    ready(&client).await;

    // What the schema does not know to be wrong is reported on the object, and the databases stay as they are.
    change(
        &client,
        NAMESPACE,
        "db",
        json!({"podTemplate": {"metadata": {"labels": {"not a name": "x"}}}}),
    )
    .await;
    let message = until_degraded(&client, (NAMESPACE, "db"), "Invalid").await;
    assert!(message.contains("not a name"), "{message}");
    let left = set(statefulset(&client, NAMESPACE, "db-db").await);
    assert_eq!(left["spec"], before["spec"]);
}

#[tokio::test]
async fn wrong_fields_are_refused_with_what_to_do() {
    let control_plane = control_plane(options()).await;
    Fleet::install(&control_plane, FleetOptions::default())
        .await
        .unwrap();
    let client = control_plane.client();
    let clusters = load::clusters_in(client.clone(), "default");
    let create = |fields: &Value| {
        let mut spec = load::spec(1);
        let fields = fields.as_object().unwrap().clone();
        spec.as_object_mut().unwrap().extend(fields);
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "database.io/v1", "kind": "DatabaseCluster", "metadata": {"name": "a"}, "spec": spec,
        }))
        .unwrap();
        let clusters = clusters.clone();
        async move {
            let params = PostParams {
                dry_run: true,
                ..PostParams::default()
            };
            clusters.create(&params, &object).await.map(drop)
        }
    };
    for good in [
        pod_fields(),
        json!({"securityContext": {"assignedByPlatform": true}}),
        json!({"postgresql": {"parameters": {"work_mem": "16MB", "max_connections": 200, "search_path": "\"$user\", public",
            "log_line_prefix": "%m [%p] "}, "initdb": {"locale": "en_US.utf8", "walSegmentSizeMB": 64}}}),
        json!({"postgresql": {"initdb": {"locale": "C", "encoding": "LATIN1", "dataChecksums": false}}}),
        json!({"services": {"readOnly": {"type": "NodePort", "externalTrafficPolicy": "Local"}}}),
        json!({"monitoring": {}}),
        json!({"monitoring": {"exporter": {}}}),
        json!({"monitoring": {"exporter": {"resources": {"limits": {"memory": "1Gi"}}}}}),
        json!({"metadata": {"labels": {"team": ""}, "annotations": {"example.com/note": "any text"}}}),
    ] {
        let answer = create(&good).await;
        assert!(answer.is_ok(), "{good}: {answer:?}");
    }
    let object_labels = |name: &str| json!({"metadata": {"labels": {name: "x"}}});
    let pod_labels = |name: &str| json!({"podTemplate": {"metadata": {"labels": {name: "x"}}}});
    let notes = |name: &str| json!({"podTemplate": {"metadata": {"annotations": {name: "x"}}}});
    let many = |count: usize| {
        let all: serde_json::Map<String, Value> =
            (0..count).map(|n| (format!("l{n}"), json!("x"))).collect();
        all
    };
    let own = "use a prefix of your own";
    let parameter = |name: &str, value: &str| json!({"postgresql": {"parameters": {name: value}}});
    let initdb = |fields: Value| json!({"postgresql": {"initdb": fields}});
    let operators = "the operator sets archive_*";
    let line = "printable ASCII";
    for (bad, expected) in [
        (
            json!({"monitoring": {"exporter": {"image": ""}}}),
            "should be at least 1 chars",
        ),
        (
            json!({"monitoring": {"exporter": {"image": "a b"}}}),
            "image must name a container image",
        ),
        (
            json!({"monitoring": {"exporter": {"resources": {"memory": 128}}}}),
            "memory must be from 16Mi",
        ),
        (parameter("archive_command", "x"), operators),
        (parameter("restore_command", "x"), operators),
        (parameter("shared_preload_libraries", "x"), operators),
        (parameter("archive_library", "x"), operators),
        (parameter("dynamic_library_path", "x"), operators),
        (parameter("ssl_key_file", "x"), operators),
        (parameter("hba_file", "x"), operators),
        (parameter("data_directory", "x"), operators),
        (parameter("log_directory", "x"), operators),
        (parameter("fsync", "off"), operators),
        (parameter("include_dir", "x"), operators),
        (parameter(&"x".repeat(64), "1"), operators),
        (parameter("work_mem", ""), line),
        (parameter("search_path", "a\nfsync = off"), line),
        (parameter("search_path", "a'"), line),
        (parameter("search_path", "a\\"), line),
        (parameter("search_path", "\u{e9}"), line),
        (
            parameter("search_path", &"x".repeat(257)),
            "may not be more than 256",
        ),
        (
            json!({"postgresql": {"parameters": many(65)}}),
            "must have at most 64 items",
        ),
        (
            json!({"postgresql": {"parameters": {"hot_standby_feedback": true}}}),
            "must be of type integer,string",
        ),
        (
            initdb(json!({"locale": "C; id"})),
            "must be the name of a locale",
        ),
        (
            initdb(json!({"locale": "-c"})),
            "must be the name of a locale",
        ),
        (
            initdb(json!({"encoding": "LATIN1"})),
            "needs a locale that has it",
        ),
        (initdb(json!({"encoding": "UTF8 -x"})), "should match"),
        (
            initdb(json!({"walSegmentSizeMB": 3})),
            "must be a power of two",
        ),
        (object_labels("database.io/bucket"), own),
        (object_labels("app.kubernetes.io/instance"), own),
        (object_labels("argocd.argoproj.io/instance"), own),
        (
            json!({"metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x"}}}),
            own,
        ),
        (
            json!({"services": {"readWrite": {"annotations": {"database.io/fencing-token": "x"}}}}),
            own,
        ),
        (pod_labels("database.io/cluster"), own),
        (pod_labels("app.kubernetes.io/name"), own),
        (pod_labels("statefulset.kubernetes.io/pod-name"), own),
        (pod_labels("controller-revision-hash"), own),
        (notes("argocd.argoproj.io/tracking-id"), own),
        (
            notes("container.apparmor.security.beta.kubernetes.io/postgres"),
            own,
        ),
        (
            json!({"metadata": {"labels": {"team": "two words"}}}),
            "spec.metadata.labels.team",
        ),
        (
            json!({"metadata": {"labels": many(33)}}),
            "must have at most 32 items",
        ),
        (
            json!({"nodeSelector": {"x".repeat(318): "x"}}),
            "at most 317 characters",
        ),
        (
            json!({"priorityClassName": "system-node-critical"}),
            "create a PriorityClass of your own",
        ),
        (
            json!({"securityContext": {"runAsUser": 0}}),
            "spec.securityContext.runAsUser",
        ),
        (
            json!({"securityContext": {"assignedByPlatform": true, "fsGroup": 70}}),
            "not both",
        ),
        (
            json!({"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}),
            "supported values: \"container_t\"",
        ),
        (
            json!({"services": {"readWrite": {"type": "ExternalName"}}}),
            "supported values: \"ClusterIP\"",
        ),
        (
            json!({"services": {"readWrite": {"loadBalancerClass": "a/b"}}}),
            "needs type: LoadBalancer",
        ),
        (
            json!({"services": {"readWrite": {"externalTrafficPolicy": "Local"}}}),
            "needs type: NodePort or LoadBalancer",
        ),
        (
            json!({"tolerations": [{"value": "x"}]}),
            "needs the operator Exists",
        ),
        (
            json!({"tolerations": vec![json!({"operator": "Exists"}); 33]}),
            "at most 32 items",
        ),
        (
            json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{}]}}}),
            "topologyKey",
        ),
        (
            json!({"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule"}]}),
            "maxSkew",
        ),
        (
            json!({"topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule"},
                {"maxSkew": 2, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule"}]}),
            "Duplicate value",
        ),
        (
            json!({"imagePullSecrets": [{"name": ""}]}),
            "spec.imagePullSecrets[0].name",
        ),
    ] {
        match create(&bad).await {
            Ok(()) => panic!("accepted: {bad}"),
            Err(error) => {
                let message = error.to_string();
                assert!(
                    message.to_lowercase().contains(&expected.to_lowercase()),
                    "{bad}: {message}"
                );
            }
        }
    }
    // No Pod of a database gets credentials of the API: the field is unknown, and kubectl names it.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cluster.yaml");
    let mut object = json!({
        "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
        "metadata": {"name": "a", "namespace": "default"}, "spec": load::spec(1),
    });
    object["spec"]["serviceAccountName"] = json!("default");
    object["spec"]["securityContext"] =
        json!({"privileged": true, "sysctls": [], "windowsOptions": {}});
    std::fs::write(&file, object.to_string()).unwrap();
    let error = control_plane
        .run_kubectl(&["apply", "--dry-run=server", "-f", file.to_str().unwrap()])
        .await
        .unwrap_err()
        .to_string();
    for field in [
        "serviceAccountName",
        "privileged",
        "sysctls",
        "windowsOptions",
    ] {
        assert!(
            error.contains(&format!("unknown field \"spec.{field}"))
                || error.contains(&format!("unknown field \"spec.securityContext.{field}")),
            "{error}"
        );
    }
}
