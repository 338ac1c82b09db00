//! Invalid input: rejected by the API server with the name of the field, or by the program in one line.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use databasecluster_operator::api::DatabaseCluster;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Api;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
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
    match api.create(&dry_run(), &object).await {
        Ok(_) => panic!("accepted: {spec}"),
        Err(kube::Error::Api(status)) => status.message.clone(),
        Err(error) => panic!("{error}"),
    }
}

fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

/// A quantity that a Pod accepts is accepted; a certain mistake is rejected with an example.
async fn quantities_are_those_of_pods(client: &kube::Client) {
    let clusters = load::clusters_in(client.clone(), "default");
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let amounts = |cpu: Value, memory: Value| json!({"cpu": cpu, "memory": memory});
    let both = |amounts: Value| json!({"requests": amounts, "limits": amounts});
    let mut good = vec![
        amounts(json!(1), json!(1_073_741_824)),
        amounts(json!("1e3"), json!("1e9")),
        amounts(json!(".5"), json!("1.5Gi")),
        amounts(json!("1E-1"), json!("536870912000m")),
        amounts(json!("+2."), json!("16Mi")),
        amounts(json!("1m"), json!("1Ei")),
        amounts(json!("1000000u"), json!("1E9")),
    ];
    for amounts in good.clone() {
        let pod = json!({"metadata": {"name": "plain"}, "spec": {"containers": [
            {"name": "plain", "image": "x", "resources": both(amounts)}]}});
        let pod = serde_json::from_value(pod).unwrap();
        pods.create(&dry_run(), &pod).await.unwrap();
    }
    let standard = good.clone().into_iter().map(both);
    good.extend(standard.collect::<Vec<_>>());
    good.push(json!({}));
    good.push(json!({"cpu": 2}));
    good.push(json!({"limits": {"memory": "1Gi"}}));
    good.push(json!({"requests": {"cpu": 1, "ephemeral-storage": 0}, "limits": {"hugepages-2Mi": "64Mi"}}));
    for (number, resources) in good.into_iter().enumerate() {
        let mut spec = load::spec(1);
        spec["resources"] = resources.clone();
        spec["storage"]["size"] = [json!(1_073_741_824), json!("2e9")][number % 2].clone();
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
            "metadata": {"name": "amounts"}, "spec": spec,
        }))
        .unwrap();
        let answer = clusters.create(&dry_run(), &object).await;
        assert!(answer.is_ok(), "{resources}: {answer:?}");
    }
    // Objects from the API server can be parsed, whatever was null.
    for (path, value) in [
        ("/resources", json!(null)),
        ("/resources", json!({"cpu": null, "limits": {"cpu": null}})),
        ("/resources", json!({"requests": null, "memory": null})),
        ("/storage", json!({"size": null, "className": null})),
        ("/storage", json!(null)),
    ] {
        let mut spec = load::spec(1);
        spec.as_object_mut()
            .unwrap()
            .insert(path[1..].to_owned(), value.clone());
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
            "metadata": {"name": "amounts"}, "spec": spec,
        }))
        .unwrap();
        if let Ok(stored) = clusters.create(&dry_run(), &object).await {
            let stored = serde_json::to_value(stored).unwrap();
            let read = serde_json::from_value::<DatabaseCluster>(stored.clone());
            assert!(read.is_ok(), "{path} {value}: {read:?} of {stored}");
        }
    }
    let memory = "for example 512Mi or 4Gi; a number without a unit is in bytes";
    let cpu = "for example 500m, 2 or 1.5";
    for (path, value, expected) in [
        ("/resources/memory", json!("512"), memory),
        ("/resources/memory", json!(512), memory),
        ("/resources/memory", json!("512m"), memory),
        ("/resources/memory", json!("4"), memory),
        ("/resources/memory", json!("2Ei"), memory),
        ("/resources/memory", json!("1Zi"), memory),
        ("/resources/memory", json!(""), memory),
        ("/resources/memory", json!("-1Gi"), memory),
        ("/resources/memory", json!("1e1000000"), memory),
        ("/resources/cpu", json!("0"), cpu),
        ("/resources/cpu", json!("1u"), cpu),
        ("/resources/cpu", json!("1M"), cpu),
        ("/resources/cpu", json!("two"), cpu),
        ("/resources/cpu", json!(-1), cpu),
        ("/resources/cpu", json!(0.5), "integer"),
        ("/resources", json!({"requests": {"cpu": "two"}}), cpu),
        ("/resources", json!({"limits": {"memory": 512}}), memory),
        (
            "/resources",
            json!({"limits": {"ephemeral-storage": "many"}}),
            "for example 500m or 2Gi",
        ),
        (
            "/resources",
            json!({"requests": {"x".repeat(318): 1}}),
            "at most 317 characters",
        ),
        (
            "/resources",
            json!({"requests": {"memory": "2Gi"}, "limits": {"memory": 1_073_741_824}}),
            "must not be more than the limit",
        ),
        (
            "/resources",
            json!({"cpu": "1", "limits": {"cpu": "1"}}),
            "not both",
        ),
        (
            "/resources",
            json!({"memory": "1Gi", "requests": {}}),
            "not both",
        ),
        ("/storage/size", json!("10"), "for example 500Mi or 10Gi"),
        ("/storage/size", json!(10), "for example 500Mi or 10Gi"),
    ] {
        let message = refusal(client, "amounts", &[(path, value.clone())]).await;
        let field = path.trim_start_matches('/').replace('/', ".");
        for part in [expected, field.as_str()] {
            assert!(message.contains(part), "{path} {value}: {message}");
        }
    }
}

#[tokio::test]
async fn api_server_rejects_invalid_specs_by_field() {
    let control_plane = control_plane(options()).await;
    Fleet::install(&control_plane, FleetOptions::default())
        .await
        .unwrap();
    let client = control_plane.client();
    quantities_are_those_of_pods(&client).await;
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
    // The values of the samples are accepted.
    let samples = ["apply", "--dry-run=server", "-f", "deploy/samples"];
    let accepted = control_plane.run_kubectl(&samples).await.unwrap();
    let files = std::fs::read_dir(testbed::fleet::repository().join("deploy/samples")).unwrap();
    assert_eq!(
        accepted.matches("created").count(),
        files.count(),
        "{accepted}"
    );

    load::create(&control_plane, singles("default", 1))
        .await
        .unwrap();
    // The size may go back to what the volumes have, as the operator reports it.
    let clusters = load::clusters_in(client.clone(), "default");
    let status = Patch::Merge(json!({"status": {"storageSize": "1Gi"}}));
    let params = PatchParams::default();
    clusters
        .patch_status("db-000", &params, &status)
        .await
        .unwrap();
    let resize = |size: &str| {
        let keys = vec![("default".to_owned(), "db-000".to_owned())];
        load::patch(&client, keys, json!({"spec": {"storage": {"size": size}}}))
    };
    resize("10Ti").await.unwrap();
    resize("1024Mi").await.unwrap();
    let error = resize("512Mi").await.unwrap_err().to_string();
    assert!(error.contains("spec.storage.size"), "{error}");
    assert!(error.contains("status.storageSize"), "{error}");
}

#[tokio::test]
async fn foreign_statefulset_is_never_changed() {
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
fn invalid_flag_stops_the_start_with_one_line() {
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

/// An administrator's kubeconfig bypasses the fence.
#[test]
fn credentials_without_a_pod_join_no_fleet_by_default() {
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
    // It continues until it listens.
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
fn environment_variables_set_flags() {
    let run = Command::new(env!("CARGO_BIN_EXE_databasecluster-operator"))
        .arg("run")
        .env("DBC_SHARDS", "7")
        .output()
        .unwrap();
    let error = String::from_utf8(run.stderr).unwrap();
    assert!(error.contains("--shards") && error.contains('7'), "{error}");
}
