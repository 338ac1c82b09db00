//! `spec.tls` on a real API server: what is refused at once, and what a bad Secret leaves alone.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use testbed::certificates::{Authority, Issued, Validity};
use testbed::{ControlPlane, OperatorNames, load};

use crate::support::*;

const NAMESPACE: &str = "tls";

fn names(cluster: &str) -> Vec<String> {
    vec![
        format!("{cluster}-rw.{NAMESPACE}.svc"),
        format!("{cluster}-r.{NAMESPACE}.svc"),
        format!("{cluster}-db-0.{cluster}-db.{NAMESPACE}.svc"),
    ]
}

fn issue(authority: &Authority, cluster: &str, validity: Validity) -> Issued {
    let names = names(cluster);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    authority.issue(&names, validity).unwrap()
}

/// Writes a Secret as cert-manager does.
async fn put(client: &Client, name: &str, keys: Value) {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
        "type": "Opaque", "stringData": keys,
    });
    let params = PatchParams::apply("test").force();
    secrets
        .patch(name, &params, &Patch::Apply(secret))
        .await
        .unwrap();
}

fn keys(authority: &Authority, issued: &Issued) -> Value {
    json!({"tls.crt": issued.certificate, "tls.key": issued.key, "ca.crt": authority.pem})
}

/// As the how-to page says: the operator may read this Secret and no other.
async fn grant(control_plane: &ControlPlane, secret: &str) {
    let role = format!("{secret}-reader");
    let resource = format!("--resource-name={secret}");
    let operator = OperatorNames::DATABASE_CLUSTERS;
    let account = format!(
        "--serviceaccount={}:{}",
        operator.namespace, operator.account
    );
    let bound = format!("--role={role}");
    let create = [
        "create",
        "role",
        &role,
        "-n",
        NAMESPACE,
        "--verb=get",
        "--resource=secrets",
        &resource,
    ];
    control_plane.run_kubectl(&create).await.unwrap();
    let bind = [
        "create",
        "rolebinding",
        &role,
        "-n",
        NAMESPACE,
        &bound,
        &account,
    ];
    control_plane.run_kubectl(&bind).await.unwrap();
}

async fn set(client: &Client) -> StatefulSet {
    statefulset(client, NAMESPACE, "db-db").await
}

fn mounts(set: &StatefulSet, secret: &str) -> bool {
    let text = serde_json::to_string(&set.spec).unwrap();
    text.contains(secret)
}

async fn refusals(client: &Client) {
    let clusters = load::clusters_in(client.clone(), NAMESPACE);
    for (tls, words) in [
        (json!({}), "tls.secretName"),
        (json!({"secretName": ""}), "tls.secretName"),
        (
            json!({"secretName": "Orders TLS"}),
            "for example orders-tls",
        ),
        (json!({"secretName": "x".repeat(254)}), "tls.secretName"),
        (
            json!({"secretName": "a", "required": "yes"}),
            "tls.required",
        ),
    ] {
        let mut spec = load::spec(1);
        spec["tls"] = tls.clone();
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
            "metadata": {"name": "refused"}, "spec": spec,
        }))
        .unwrap();
        let error = clusters.create(&PostParams::default(), &object).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains(words), "{tls}: {error}");
    }
}

/// What the operator knows without a right to read the Secret: whether there is one.
#[tokio::test]
async fn missing_tls_secret_leaves_a_running_database_alone_and_removing_tls_restores_it() {
    let control_plane = control_plane(options()).await;
    let _fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    one(&control_plane, NAMESPACE, "db", load::spec(2)).await;
    refusals(&client).await;
    until_cluster(&client, (NAMESPACE, "db"), "Ready", is_ready).await;
    let before = set(&client).await;

    let tls = json!({"tls": {"secretName": "orders-tls", "required": true}});
    change(&client, NAMESPACE, "db", tls).await;
    let message = until_degraded(&client, (NAMESPACE, "db"), "TlsSecretMissing").await;
    assert!(message.contains("the Secret orders-tls"), "{message}");
    until_event(&control_plane, NAMESPACE, &message).await;
    let object = cluster(&client, NAMESPACE, "db").await;
    assert_eq!(condition(&object, "Available").unwrap().0, "True");
    assert_eq!(set(&client).await.spec, before.spec);
    // Everything else of the spec waits for nothing.
    let labels = json!({"metadata": {"labels": {"team": "a"}}});
    change(&client, NAMESPACE, "db", labels).await;
    until_cluster(&client, (NAMESPACE, "db"), "reported again", |object| {
        object.data["status"]["observedGeneration"] == json!(object.metadata.generation)
    })
    .await;
    assert_eq!(set(&client).await.spec, before.spec);

    // The operator does not see what is in it: the Pods try it.
    let authority = Authority::new("shop").unwrap();
    let issued = issue(&authority, "db", Validity::Valid);
    put(&client, "orders-tls", keys(&authority, &issued)).await;
    until_statefulset(&client, (NAMESPACE, "db-db"), "to mount it", |found| {
        mounts(found, "orders-tls")
    })
    .await;
    until_cluster(&client, (NAMESPACE, "db"), "Ready", is_ready).await;
    change(
        &client,
        NAMESPACE,
        "db",
        json!({"tls": null, "metadata": null}),
    )
    .await;
    until_statefulset(&client, (NAMESPACE, "db-db"), "to be as it was", |found| {
        found.spec == before.spec
    })
    .await;
    until_cluster(&client, (NAMESPACE, "db"), "Ready", is_ready).await;
}

/// A Secret that the operator may read is checked before a Pod restarts for it.
#[tokio::test]
async fn bad_tls_secret_that_the_operator_may_read_is_named_and_nothing_is_rolled_out() {
    let control_plane = control_plane(options()).await;
    let _fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    let authority = Authority::new("shop").unwrap();
    let good = issue(&authority, "db", Validity::Valid);
    let mut without_key = keys(&authority, &good);
    without_key.as_object_mut().unwrap().remove("tls.key");
    let other = Authority::new("shop").unwrap();
    let bad = [
        (without_key, "the Secret db-tls has no key tls.key: add it"),
        (
            keys(&authority, &issue(&authority, "db", Validity::Expired)),
            "the certificate in the Secret db-tls has expired, on 2021-02-03",
        ),
        (
            keys(&authority, &issue(&authority, "other", Validity::Valid)),
            "the certificate in the Secret db-tls is not valid for db-rw.tls.svc db-r.tls.svc",
        ),
        (
            keys(&other, &good),
            "was not issued by the authority in its ca.crt",
        ),
    ];
    let bads = bad.len();
    one(&control_plane, NAMESPACE, "db", load::spec(1)).await;
    grant(&control_plane, "db-tls").await;
    until_cluster(&client, (NAMESPACE, "db"), "Ready", is_ready).await;
    let before = set(&client).await;
    put(&client, "db-tls", bad[0].0.clone()).await;
    let tls = json!({"tls": {"secretName": "db-tls"}});
    change(&client, NAMESPACE, "db", tls).await;
    // A change of the spec has the Secret read at once, and not within half a minute.
    let touch = |n: usize| {
        change(
            &client,
            NAMESPACE,
            "db",
            json!({"metadata": {"labels": {"n": n.to_string()}}}),
        )
    };
    for (n, (keys, words)) in bad.into_iter().enumerate() {
        put(&client, "db-tls", keys).await;
        touch(n).await;
        let object = until_cluster(&client, (NAMESPACE, "db"), words, |object| {
            condition(object, "Degraded").is_some_and(|(_, _, message)| message.contains(words))
        })
        .await;
        assert_eq!(
            condition(&object, "Degraded").unwrap().1,
            "TlsSecretInvalid"
        );
        assert_eq!(condition(&object, "Available").unwrap().0, "True");
    }
    until_event(&control_plane, NAMESPACE, "has no key tls.key").await;
    assert_eq!(set(&client).await.spec, before.spec);
    put(&client, "db-tls", keys(&authority, &good)).await;
    touch(bads).await;
    until_cluster(&client, (NAMESPACE, "db"), "Ready", is_ready).await;
    let with_tls = set(&client).await;
    assert!(mounts(&with_tls, "db-tls"));

    // One that became bad is reported, and keeps no other change.
    let expired = issue(&authority, "db", Validity::Expired);
    put(&client, "db-tls", keys(&authority, &expired)).await;
    change(&client, NAMESPACE, "db", json!({"replicas": 2})).await;
    let message = until_degraded(&client, (NAMESPACE, "db"), "TlsSecretInvalid").await;
    assert!(message.contains("has expired"), "{message}");
    let scaled = set(&client).await.spec.unwrap();
    assert_eq!(scaled.replicas, Some(2));
    assert_eq!(scaled.template, with_tls.spec.unwrap().template);

    // A new one is not begun.
    let mut spec = load::spec(1);
    spec["tls"] = json!({"secretName": "db-tls"});
    one(&control_plane, NAMESPACE, "new", spec).await;
    let message = until_degraded(&client, (NAMESPACE, "new"), "TlsSecretInvalid").await;
    assert!(message.contains("has expired"), "{message}");
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), NAMESPACE);
    assert!(sets.get_opt("new-db").await.unwrap().is_none());
}
