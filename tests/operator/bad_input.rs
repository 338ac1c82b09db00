//! Wrong input: refused by the API server in words that name the field, or by the program in one line.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::{DynamicObject, ListParams, PostParams};
use serde_json::{Value, json};
use testbed::{Fleet, FleetOptions, load};

use crate::support::*;

async fn refusal(client: &kube::Client, name: &str, change: &[(&str, Value)]) -> String {
    let mut spec = load::spec(1);
    for (path, value) in change {
        *spec
            .pointer_mut(path)
            .unwrap_or_else(|| panic!("no {path}")) = value.clone();
    }
    let object: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
        "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap();
    let api = load::clusters_in(client.clone(), "default");
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => panic!("accepted: {spec}"),
        Err(kube::Error::Api(status)) => status.message.clone(),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn the_api_server_refuses_wrong_specs_and_names_the_field() {
    let control_plane = control_plane(options()).await;
    Fleet::install(&control_plane, FleetOptions::default())
        .await
        .unwrap();
    let client = control_plane.client();
    let long = "a".repeat(50);
    for (name, path, value, expected) in [
        ("a", "/image", json!(""), "spec.image"),
        ("a", "/resources/cpu", json!("12xyz"), "spec.resources.cpu"),
        (
            "a",
            "/resources/memory",
            json!("-1Gi"),
            "spec.resources.memory",
        ),
        ("a", "/storage/size", json!("ten"), "spec.storage.size"),
        ("a", "/replicas", json!(100), "spec.replicas"),
        ("a", "/replicas", json!(-1), "spec.replicas"),
        (&long, "/replicas", json!(1), "49 characters"),
    ] {
        let message = refusal(&client, name, &[(path, value)]).await;
        assert!(message.contains(expected), "{path}: {message}");
    }
    // What is in the samples is accepted.
    let samples = ["apply", "--dry-run=server", "-f", "deploy/samples"];
    let accepted = control_plane.run_kubectl(&samples).await.unwrap();
    assert_eq!(accepted.matches("created").count(), 4, "{accepted}");

    load::create(&control_plane, singles("default", 1))
        .await
        .unwrap();
    let keys = vec![("default".to_owned(), "db-000".to_owned())];
    let shrink = json!({"spec": {"storage": {"size": "512Mi"}}});
    let error = load::patch(&client, keys, shrink)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("spec.storage"), "{error}");
}

#[tokio::test]
async fn a_statefulset_of_somebody_else_is_never_touched() {
    let control_plane = control_plane(options()).await;
    let _fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let foreign: StatefulSet = serde_json::from_value(json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": "db-000-db", "ownerReferences": [{
            "apiVersion": "v1", "kind": "ConfigMap", "name": "somebody", "controller": true,
            "uid": owner_uid(&client).await,
        }]},
        "spec": {
            "replicas": 0, "serviceName": "x", "selector": {"matchLabels": {"app": "x"}},
            "template": {"metadata": {"labels": {"app": "x"}},
                "spec": {"containers": [{"name": "x", "image": "x"}]}},
        },
    }))
    .unwrap();
    sets.create(&PostParams::default(), &foreign).await.unwrap();
    let before = sets.get("db-000-db").await.unwrap();
    load::create(&control_plane, singles("default", 1))
        .await
        .unwrap();
    let object = until_cluster(&client, ("default", "db-000"), "to be Degraded", |object| {
        condition(object, "Degraded").is_some_and(|(status, ..)| status == "True")
    })
    .await;
    let (_, reason, message) = condition(&object, "Degraded").unwrap();
    assert!(message.contains("somebody"), "{reason}: {message}");
    let after = sets.get("db-000-db").await.unwrap();
    assert_eq!(before.spec, after.spec);
    assert_eq!(before.metadata.labels, after.metadata.labels);
    assert_eq!(before.metadata.annotations, after.metadata.annotations);
    assert_eq!(
        before.metadata.owner_references,
        after.metadata.owner_references
    );

    let events: Api<Event> = Api::namespaced(client, "default");
    let warned = |event: &Event| {
        event.type_.as_deref() == Some("Warning")
            && event.reason.as_deref() == Some("DatabaseError")
            && event
                .message
                .as_deref()
                .is_some_and(|note| note.contains("somebody"))
    };
    testbed::wait_for("a Warning that names the owner", PATIENCE, || async {
        let all = events.list(&ListParams::default()).await.unwrap();
        let seen = format!("{} events", all.items.len());
        Ok(testbed::Progress::when(all.iter().any(warned), (), || seen))
    })
    .await
    .unwrap();
}

async fn owner_uid(client: &kube::Client) -> String {
    let owners: Api<k8s_openapi::api::core::v1::ConfigMap> =
        Api::namespaced(client.clone(), "default");
    let owner = serde_json::from_value(json!({"metadata": {"name": "somebody"}})).unwrap();
    let owner = owners.create(&PostParams::default(), &owner).await.unwrap();
    owner.metadata.uid.unwrap()
}

#[test]
fn a_bad_flag_stops_the_start_in_one_line() {
    for (flag, value, allowed) in [
        ("--shards", "33", "power of two"),
        ("--lease-duration", "1500ms", "whole seconds"),
        ("--sharded-watch", "perhaps", "auto"),
        ("--rate-limit-scope", "planet", "object or replica"),
        ("--watch-namespaces", "shop,Not_A_Name", "namespace"),
        ("--watch-namespaces", "shop,shop", "twice"),
    ] {
        let run = Command::new(env!("CARGO_BIN_EXE_databasecluster-operator"))
            .args(["run", flag, value])
            .output()
            .unwrap();
        let error = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(2), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        for word in [flag, value, allowed] {
            assert!(error.contains(word), "{word} is missing: {error}");
        }
    }
}

/// An administrator's kubeconfig passes the fence by.
#[test]
fn credentials_without_a_pod_join_no_fleet_unless_they_are_allowed_to() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("admin");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "a",
        "clusters": [{"name": "a", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "a", "user": {"token": "an-administrators"}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
    });
    std::fs::write(&kubeconfig, text.to_string()).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_databasecluster-operator"));
    program
        .args([
            "run",
            "--listen",
            "127.0.0.1:0",
            "--namespace",
            "production",
        ])
        .env("KUBECONFIG", &kubeconfig)
        .env("NO_COLOR", "1");
    let run = program.output().unwrap();
    let error = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(1), "{error}");
    let last = error.lines().last().unwrap_or_default();
    for word in ["bound to a Pod", "--allow-unfenced", "production"] {
        assert!(last.contains(word), "{word} is missing: {error}");
    }
    let mut allowed = program
        .arg("--allow-unfenced")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It goes on until it listens.
    let streams: [Box<dyn Read + Send>; 2] = [
        Box::new(allowed.stdout.take().unwrap()),
        Box::new(allowed.stderr.take().unwrap()),
    ];
    let (found, listens) = std::sync::mpsc::channel();
    for stream in streams {
        let found = found.clone();
        std::thread::spawn(move || {
            let lines = BufReader::new(stream).lines().map_while(Result::ok);
            for line in lines.filter(|line| line.contains("listening")) {
                let _nobody_waits = found.send(line);
            }
        });
    }
    let listens = listens.recv_timeout(PATIENCE);
    allowed.kill().unwrap();
    allowed.wait().unwrap();
    assert!(listens.is_ok(), "it did not start");
}

#[test]
fn the_environment_stands_in_for_flags() {
    let run = Command::new(env!("CARGO_BIN_EXE_databasecluster-operator"))
        .arg("run")
        .env("DBC_SHARDS", "7")
        .output()
        .unwrap();
    let error = String::from_utf8(run.stderr).unwrap();
    assert!(error.contains("--shards") && error.contains('7'), "{error}");
}
