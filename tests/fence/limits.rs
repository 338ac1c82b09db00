//! The limits of a stolen operator token. The token has every right that RBAC can grant.

use serde_json::{Value, json};
use testbed::fleet::OPERATOR_NAMESPACE;
use testbed::{Progress, wait_for};

use crate::support::*;

#[tokio::test]
async fn stolen_operator_credentials_gain_no_privileges() {
    let control_plane = control_plane().await;
    let world = World::new(&control_plane).await;
    // Only the limits reject here, so that the test sees their messages.
    statefulsets_run_without_privileges(&world).await;
    user_changes_stay_writable(&world).await;
    services_draw_no_traffic(&world).await;
    secrets_get_no_credentials(&world).await;
    pods_keep_their_spec(&world).await;
    clusters_keep_their_spec(&world).await;
    system_namespaces_are_out_of_reach(&world).await;
    for policy in [
        "databasecluster-limits-statefulsets",
        "databasecluster-limits-pods",
        "databasecluster-limits-clusters",
        "databasecluster-limits-namespaces",
    ] {
        let refused = refusals(&world, policy).await;
        assert!(refused >= 5.0, "{refused} refusals by {policy}");
    }
}

fn set(world: &World<'_>, name: &str) -> Value {
    world.child("StatefulSet", name, &world.alphas(), "3")
}

/// Each with a path below the Pod's spec, the value there, and the reason of the rejection.
fn privileges() -> Vec<(&'static str, Value, &'static str)> {
    let volumes = "no volumes but";
    let host = "hostNetwork, hostPID, hostIPC or nodeName";
    let privileged = "no privileges";
    let secret = "read no Secret but orders-app";
    vec![
        (
            "/serviceAccountName",
            json!("default"),
            "no serviceAccountName",
        ),
        (
            "/automountServiceAccountToken",
            json!(true),
            "automountServiceAccountToken: false",
        ),
        (
            "/automountServiceAccountToken",
            Value::Null,
            "automountServiceAccountToken: false",
        ),
        ("/hostNetwork", json!(true), host),
        ("/hostPID", json!(true), host),
        ("/hostIPC", json!(true), host),
        ("/nodeName", json!("fake-0"), host),
        (
            "/volumes",
            json!([{"name": "v", "hostPath": {"path": "/"}}]),
            volumes,
        ),
        (
            "/volumes",
            json!([{"name": "v", "secret": {"secretName": "other"}}]),
            volumes,
        ),
        (
            "/volumes",
            json!([{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]),
            volumes,
        ),
        (
            "/volumes",
            json!([{"name": "v", "projected": {"sources": [
                {"secret": {"name": "orders-app"}}, {"secret": {"name": "other"}}]}}]),
            volumes,
        ),
        // Of other Secrets, a certificate, and that in one place only.
        (
            "/volumes",
            json!([{"name": "tls", "projected": {"sources": [{"secret": {"name": "other"}}]}}]),
            volumes,
        ),
        (
            "/volumes",
            json!([{"name": "tls", "projected": {"sources": [{"secret": {"name": "other", "items": [
                {"key": "tls.crt", "path": "tls.crt"}, {"key": "password", "path": "ca.crt"}]}}]}}]),
            volumes,
        ),
        (
            "/volumes",
            json!([{"name": "v", "projected": {"sources": [{"secret": {"name": "other", "items": [
                {"key": "tls.crt", "path": "tls.crt"}]}}]}}]),
            volumes,
        ),
        (
            "/volumes",
            json!([{"name": "tls", "secret": {"secretName": "other", "items": [
                {"key": "tls.crt", "path": "tls.crt"}]}}]),
            volumes,
        ),
        (
            "/volumes",
            json!([{"name": "v", "nfs": {"server": "s", "path": "/"}}]),
            volumes,
        ),
        (
            "/volumes",
            json!([{"name": "v", "persistentVolumeClaim": {"claimName": "other"}}]),
            volumes,
        ),
        (
            "/containers/0/securityContext",
            json!({"privileged": true}),
            privileged,
        ),
        ("/containers/0/securityContext", Value::Null, privileged),
        (
            "/containers/0/securityContext/allowPrivilegeEscalation",
            json!(true),
            privileged,
        ),
        (
            "/containers/0/securityContext",
            json!({"allowPrivilegeEscalation": false, "capabilities": {"add": ["SYS_ADMIN"]}}),
            privileged,
        ),
        (
            "/containers/0/ports",
            json!([{"containerPort": 80, "hostPort": 80}]),
            "no hostPort",
        ),
        (
            "/initContainers",
            json!([{"name": "i", "image": "i", "securityContext": {"privileged": true}}]),
            privileged,
        ),
        (
            "/securityContext",
            json!({"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]}),
            privileged,
        ),
        (
            "/containers/0/envFrom",
            json!([{"secretRef": {"name": "other"}}]),
            secret,
        ),
        (
            "/containers/0/env",
            json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "other", "key": "k"}}}]),
            secret,
        ),
    ]
}

fn put(object: &mut Value, path: &str, value: Value) {
    let (parent, key) = path.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap()[key] = value;
}

async fn statefulsets_run_without_privileges(world: &World<'_>) {
    let_through(
        "a StatefulSet",
        apply(&world.alpha, set(world, "orders-db")).await,
    );
    for (path, value, why) in privileges() {
        let what = format!("{path} = {value}");
        let path = format!("/spec/template/spec{path}");
        let mut object = set(world, "orders-db");
        put(&mut object, &path, value);
        refused(&what, apply(&world.alpha, object.clone()).await, why);
        object["metadata"]["name"] = json!("new-db");
        let why = why.replace("orders-app", "new-app");
        refused(&what, create(&world.alpha, object).await, &why);
    }
    let mut object = set(world, "new-db");
    object["metadata"]["ownerReferences"] = json!([]);
    refused("no controller", create(&world.alpha, object).await, "");
    let mut object = set(world, "orders-db");
    let volumes = json!([
        {"name": "a", "emptyDir": {}}, {"name": "b", "configMap": {"name": "any"}},
        {"name": "c", "secret": {"secretName": "orders-app"}},
        {"name": "d", "projected": {"sources": [{"secret": {"name": "orders-app"}}]}},
        {"name": "tls", "projected": {"sources": [{"secret": {"name": "other", "items": [
            {"key": "tls.crt", "path": "tls.crt"}, {"key": "tls.key", "path": "tls.key"},
            {"key": "ca.crt", "path": "ca.crt"}]}}]}},
    ]);
    put(&mut object, "/spec/template/spec/volumes", volumes);
    let_through(
        "what a cluster's Pods have",
        apply(&world.alpha, object).await,
    );
}

/// A template with privileges from another client does not keep the operator from setting its token or scaling it.
async fn user_changes_stay_writable(world: &World<'_>) {
    let sidecar = json!({"spec": {"template": {"spec": {"hostPID": true}}}});
    merge(&world.admin, "StatefulSet", "orders-db", sidecar)
        .await
        .unwrap();
    let scale = json!({"spec": {"replicas": 2}});
    let_through(
        "scaling it",
        merge(&world.alpha, "StatefulSet", "orders-db", scale).await,
    );
    let image = json!({"spec": {"template": {"metadata": {"labels": {"x": "y"}}}}});
    let answer = merge(&world.alpha, "StatefulSet", "orders-db", image).await;
    refused("changing its template", answer, "hostPID");
    let cured = json!({"spec": {"template": {"spec": {"hostPID": null}}}});
    let_through(
        "curing it",
        merge(&world.alpha, "StatefulSet", "orders-db", cured).await,
    );

    let service = world.child("Service", "exposed", &world.alphas(), "3");
    create(&world.alpha, service).await.unwrap();
    let exposed = json!({"spec": {"externalIPs": ["192.0.2.1"]}});
    merge(&world.admin, "Service", "exposed", exposed)
        .await
        .unwrap();
    let touch = json!({"metadata": {"annotations": {"n": "1"}}});
    let_through(
        "a Service that a user exposed",
        merge(&world.alpha, "Service", "exposed", touch).await,
    );
    let more = json!({"spec": {"externalIPs": ["192.0.2.2"]}});
    let answer = merge(&world.alpha, "Service", "exposed", more).await;
    refused(
        "exposing it further",
        answer,
        "no type but ClusterIP, and no externalIPs",
    );
}

async fn services_draw_no_traffic(world: &World<'_>) {
    for (spec, why) in [
        (
            json!({"type": "LoadBalancer", "ports": [{"port": 1}]}),
            "no type but ClusterIP, and no externalIPs",
        ),
        (
            json!({"type": "NodePort", "ports": [{"port": 1}]}),
            "no type but ClusterIP, and no externalIPs",
        ),
        (
            json!({"type": "ExternalName", "externalName": "a.b"}),
            "no type but ClusterIP, and no externalIPs",
        ),
        (
            json!({"ports": [{"port": 1}], "externalIPs": ["192.0.2.1"]}),
            "no type but ClusterIP, and no externalIPs",
        ),
        (
            json!({"type": "LoadBalancer", "ports": [{"port": 1}], "selector": {
                "app.kubernetes.io/managed-by": "another", "app.kubernetes.io/instance": "orders"}}),
            "app.kubernetes.io/managed-by: databasecluster-operator",
        ),
        (
            json!({"type": "LoadBalancer", "ports": [{"port": 1}], "externalIPs": ["192.0.2.1"], "selector": {
                "app.kubernetes.io/managed-by": "databasecluster-operator"}}),
            "no externalIPs",
        ),
    ] {
        let mut service = world.child("Service", "new", &world.alphas(), "3");
        service["spec"] = spec.clone();
        refused(&spec.to_string(), create(&world.alpha, service).await, why);
    }
    for kind in ["NodePort", "LoadBalancer"] {
        let name = kind.to_lowercase();
        let mut service = world.child("Service", &name, &world.alphas(), "3");
        service["spec"] = json!({"type": kind, "ports": [{"port": 1}], "selector": {
            "app.kubernetes.io/managed-by": "databasecluster-operator"}});
        let_through(kind, create(&world.alpha, service).await);
    }
}

/// Kubernetes would write a token of the account into it.
async fn secrets_get_no_credentials(world: &World<'_>) {
    let mut secret = world.child("Secret", "credentials", &world.alphas(), "3");
    secret["type"] = json!("kubernetes.io/service-account-token");
    secret["metadata"]["annotations"]["kubernetes.io/service-account.name"] = json!("default");
    let answer = create(&world.alpha, secret.clone()).await;
    refused(
        "a token of an account",
        answer,
        "no Secret of a type but Opaque",
    );
    secret["type"] = json!("Opaque");
    let_through("a Secret", create(&world.alpha, secret).await);
}

async fn pods_keep_their_spec(world: &World<'_>) {
    let metadata = "changes nothing of them but its annotations and the bucket";
    let pod = world.child("Pod", "new", &world.alphas(), "3");
    refused("creation", create(&world.alpha, pod).await, metadata);
    world.pod("lone").await;
    let pod = api(&world.admin, "Pod").get("lone").await.unwrap();
    let mut containers = pod.data["spec"]["containers"].clone();
    containers[0]["image"] = json!("evil");
    let mut tolerations = pod.data["spec"]["tolerations"].as_array().cloned();
    let tolerations = tolerations.get_or_insert_default();
    tolerations.push(json!({"operator": "Exists"}));
    let token = json!({"database.io/fencing-token": world.alphas()});
    for (what, change) in [
        ("an image", json!({"spec": {"containers": containers}})),
        (
            "a toleration",
            json!({"spec": {"tolerations": tolerations}}),
        ),
        (
            "a label",
            json!({"metadata": {"labels": {"app": "victim"}}}),
        ),
        (
            "no label",
            json!({"metadata": {"labels": {"database.io/cluster-uid": null}}}),
        ),
        (
            "a finalizer",
            json!({"metadata": {"finalizers": ["a.io/b"]}}),
        ),
        (
            "an owner",
            json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": NOBODY}]}}),
        ),
    ] {
        let mut change = change;
        change["metadata"]["annotations"] = token.clone();
        refused(
            what,
            merge(&world.alpha, "Pod", "lone", change).await,
            metadata,
        );
    }
    let touch = json!({"metadata": {"annotations": token, "labels": {"database.io/bucket": "4"}}});
    let_through(
        "its token and bucket",
        merge(&world.alpha, "Pod", "lone", touch).await,
    );
}

async fn clusters_keep_their_spec(world: &World<'_>) {
    let own = "changes nothing of a DatabaseCluster but";
    let kind = "DatabaseCluster";
    let keep = json!({"metadata": {"finalizers": ["a.io/b"], "labels": {"a": "b"}, "annotations": {"a": "b"}}});
    merge(&world.admin, kind, "orders", keep).await.unwrap();
    let with = |mut change: Value| {
        change["metadata"]["annotations"]["database.io/fencing-token"] = json!(world.alphas());
        change
    };
    for (what, change) in [
        (
            "retain: Delete",
            json!({"spec": {"storage": {"retain": "Delete"}}}),
        ),
        ("an image", json!({"spec": {"image": "evil"}})),
        ("a label", json!({"metadata": {"labels": {"c": "d"}}})),
        ("no label", json!({"metadata": {"labels": {"a": null}}})),
        (
            "an annotation",
            json!({"metadata": {"annotations": {"c": "d"}}}),
        ),
        (
            "another annotation",
            json!({"metadata": {"annotations": {"a": "d"}}}),
        ),
        (
            "no annotation",
            json!({"metadata": {"annotations": {"a": null}}}),
        ),
        ("no finalizer", json!({"metadata": {"finalizers": []}})),
        (
            "a finalizer of others",
            json!({"metadata": {"finalizers": ["a.io/b", "c.io/d"]}}),
        ),
        (
            "an owner",
            json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": NOBODY}]}}),
        ),
    ] {
        refused(
            what,
            merge(&world.alpha, kind, "orders", with(change)).await,
            own,
        );
    }
    for finalizers in [json!(["a.io/b", "database.io/operator"]), json!(["a.io/b"])] {
        let change = with(json!({"metadata": {"finalizers": finalizers}}));
        let_through(
            "its finalizer",
            merge(&world.alpha, kind, "orders", change).await,
        );
    }
    let object = json!({
        "apiVersion": "database.io/v1", "kind": kind,
        "metadata": {"name": "new", "annotations": {"database.io/fencing-token": world.alphas()}},
        "spec": {"image": "postgres:18"},
    });
    refused("creation", create(&world.alpha, object).await, "");
    let found = api(&world.admin, kind)
        .get_metadata("orders")
        .await
        .unwrap();
    let both = (found.metadata.uid, found.metadata.resource_version);
    refused(
        "deletion",
        delete(&world.alpha, kind, "orders", both).await,
        own,
    );
}

async fn system_namespaces_are_out_of_reach(world: &World<'_>) {
    let request = |method: &str, path: String, body: Value| {
        let content = if method == "PATCH" {
            "application/strategic-merge-patch+json"
        } else {
            "application/json"
        };
        let request = http::Request::builder().method(method).uri(path);
        let request = request.header("Content-Type", content);
        request.body(body.to_string().into_bytes()).unwrap()
    };
    let send = async |client: &kube::Client, request| {
        let answer = client.request_text(request).await;
        answer.map(drop).map_err(|error| error.to_string())
    };
    // The control plane's own Pods are not Pods here, so one is created as a substitute.
    let privileged = json!({
        "metadata": {"name": "proxy", "labels": {"database.io/bucket": "3"}},
        "spec": {"containers": [{"name": "c", "image": "i", "securityContext": {"privileged": true}}]},
    });
    let pods = "/api/v1/namespaces/kube-system/pods".to_owned();
    wait_for("a privileged Pod in kube-system", PATIENCE, || async {
        let answer = send(
            &world.admin,
            request("POST", pods.clone(), privileged.clone()),
        )
        .await;
        let done = answer.as_ref().is_ok_and(|()| true)
            || answer.as_ref().is_err_and(|e| e.contains("exists"));
        Ok(Progress::when(done, (), || format!("{answer:?}")))
    })
    .await
    .unwrap();
    let patch = json!({
        "metadata": {"annotations": {"database.io/fencing-token": world.alphas()}},
        "spec": {"containers": [{"name": "c", "image": "evil", "securityContext": {"privileged": true}}]},
    });
    let answer = send(
        &world.alpha,
        request("PATCH", format!("{pods}/proxy"), patch),
    )
    .await;
    refused("an image in kube-system", answer, "");
    let touch = json!({"metadata": {"annotations": {"database.io/fencing-token": world.alphas()}}});
    let answer = send(
        &world.alpha,
        request("PATCH", format!("{pods}/proxy"), touch),
    )
    .await;
    refused(
        "a token in kube-system",
        answer,
        "keeps no objects in the namespace kube-system",
    );
    let before = send(
        &world.admin,
        request("GET", format!("{pods}/proxy"), Value::Null),
    )
    .await;
    before.unwrap();

    for namespace in [
        "kube-system",
        "kube-public",
        "kube-node-lease",
        OPERATOR_NAMESPACE,
    ] {
        let mut object = world.child("ConfigMap", "here", &world.alphas(), "3");
        object["metadata"]["namespace"] = json!(namespace);
        let path = format!("/api/v1/namespaces/{namespace}/configmaps");
        let answer = send(&world.alpha, request("POST", path.clone(), object.clone())).await;
        refused(
            namespace,
            answer,
            &format!("keeps no objects in the namespace {namespace}"),
        );
        // A dry run stores nothing, and shows the answers of the other policies.
        let dry = send(
            &world.alpha,
            request("POST", format!("{path}?dryRun=All"), object),
        )
        .await;
        let_through("a dry run", dry);
        let event = |kind: &str| {
            json!({
                "apiVersion": "events.k8s.io/v1", "kind": "Event",
                "metadata": {"generateName": "e-"}, "eventTime": "2026-01-01T00:00:00.000000Z",
                "reportingController": "database-controller", "reportingInstance": "alpha",
                "action": "Reconciling", "reason": "DatabaseError", "type": "Warning",
                "regarding": {"kind": kind, "namespace": namespace, "name": "x"},
            })
        };
        let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
        let answer = send(
            &world.alpha,
            request("POST", path.clone(), event("DatabaseCluster")),
        )
        .await;
        let_through("an Event about a DatabaseCluster", answer);
        let answer = send(&world.alpha, request("POST", path, event("Pod"))).await;
        match namespace == OPERATOR_NAMESPACE {
            true => let_through("an Event in its own namespace", answer),
            false => refused("an Event about a Pod", answer, "reports on no object but"),
        }
    }
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases");
    let lease = json!({"metadata": {"name": "of-another-operator"}, "spec": {}});
    let answer = send(&world.alpha, request("POST", path, lease)).await;
    refused("another operator's Lease", answer, "no Lease but its own");
}
