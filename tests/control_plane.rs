//! The control plane of the tests themselves: its guarantees are checked first, because all other tests depend on them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use testbed::{AuditLevel, ControlPlane, ControlPlaneOptions, Progress, wait_for};

/// The answer to a list with a shard selector that is not valid: refused only by a server that reads it.
async fn invalid_selector_status(client: Client) -> u16 {
    let request = http::Request::get("/api/v1/pods?limit=1&shardSelector=nonsense")
        .body(Vec::new())
        .unwrap();
    match client.request_text(request).await {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("{error}"),
    }
}

async fn start(options: ControlPlaneOptions) -> ControlPlane {
    ControlPlane::start(options)
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test]
async fn two_control_planes_run_side_by_side_on_loopback_with_gate_on_and_off() {
    let off = ControlPlaneOptions {
        sharded_list_and_watch: false,
        ..ControlPlaneOptions::default()
    };
    let (on, off) = tokio::join!(start(ControlPlaneOptions::default()), start(off));
    assert_eq!(invalid_selector_status(on.client()).await, 500);
    assert_eq!(invalid_selector_status(off.client()).await, 200);

    for control_plane in [&on, &off] {
        for component in control_plane.components().unwrap() {
            let addresses = component.process.listens_on().unwrap();
            assert!(!addresses.is_empty(), "{} listens nowhere", component.name);
            let open: Vec<_> = addresses
                .iter()
                .filter(|address| !address.ip().is_loopback())
                .collect();
            assert!(open.is_empty(), "{} listens on {open:?}", component.name);
        }
    }

    let (folder, processes) = (on.folder().to_owned(), on.components().unwrap());
    on.stop().await.unwrap();
    assert!(!folder.exists());
    assert!(
        processes
            .iter()
            .all(|component| !component.process.is_alive())
    );
    assert_eq!(
        invalid_selector_status(off.client()).await,
        200,
        "the other one lives on"
    );
}

#[tokio::test]
async fn fake_nodes_run_pods_and_the_audit_log_records_users() {
    let options = ControlPlaneOptions {
        audit: AuditLevel::Metadata,
        ..ControlPlaneOptions::default()
    };
    let control_plane = start(options).await;
    let pods: Api<Pod> = Api::default_namespaced(control_plane.client());
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "witness"},
        "spec": {"containers": [{"name": "c", "image": "fake"}]},
    });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    wait_for("the Pod to run", Duration::from_secs(30), || async {
        let status = pods.get("witness").await.unwrap().status.unwrap();
        Ok(Progress::when(
            status.phase.as_deref() == Some("Running"),
            (),
            || format!("{:?}", status.phase),
        ))
    })
    .await
    .unwrap();
    pods.delete("witness", &DeleteParams::default())
        .await
        .unwrap();

    assert!(
        pods.get_opt("witness").await.unwrap().is_none(),
        "a deleted Pod is removed at once"
    );

    let events = control_plane.audit().unwrap();
    let own = |verb: &str| {
        let found = events.iter().find(|e| {
            e.verb == verb
                && e.resource == "pods"
                && e.name == "witness"
                && e.subresource.is_empty()
                && !e.user_agent.contains("kube")
        });
        found.unwrap_or_else(|| panic!("no {verb} of the Pod in {} events", events.len()))
    };
    let (created, deleted) = (own("create"), own("delete"));
    assert_eq!((created.code, deleted.code), (201, 200));
    assert_eq!(
        (created.namespace.as_str(), created.user.as_str()),
        ("default", "kwok-admin")
    );
    assert!(created.is_accepted_write() && created.received_micros <= created.completed_micros);
    assert!(created.completed_micros <= deleted.received_micros);
    let by_kwok = events
        .iter()
        .filter(|event| event.verb == "delete" && event.user_agent.starts_with("kwok"));
    assert_eq!(
        by_kwok.count(),
        0,
        "kwok deletes by name, and may hit a successor"
    );
}

#[tokio::test]
async fn api_server_recovers_after_a_pause_and_after_a_kill() {
    let control_plane = start(ControlPlaneOptions::default()).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(control_plane.client());
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "kept"}})).unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();

    control_plane.pause("kube-apiserver").unwrap();
    let during = tokio::time::timeout(Duration::from_secs(1), maps.get("kept")).await;
    assert!(during.is_err(), "a paused API server answered: {during:?}");
    control_plane.resume("kube-apiserver").unwrap();
    control_plane
        .wait_until_serving(Duration::from_secs(30))
        .await
        .unwrap();

    let before = control_plane.component("kube-apiserver").unwrap().process;
    control_plane.kill("kube-apiserver").await.unwrap();
    assert!(control_plane.component("kube-apiserver").is_err());
    control_plane.start_again().await.unwrap();
    assert_ne!(
        control_plane.component("kube-apiserver").unwrap().process,
        before
    );
    assert!(
        maps.get_opt("kept").await.unwrap().is_some(),
        "etcd kept what was written"
    );
}

#[tokio::test]
async fn statefulset_reports_ready_without_pods_in_scale_mode() {
    use k8s_openapi::api::apps::v1::StatefulSet;
    let options = ControlPlaneOptions {
        statefulset_stage: true,
        ..ControlPlaneOptions::default()
    };
    let control_plane = start(options).await;
    let sets: Api<StatefulSet> = Api::default_namespaced(control_plane.client());
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "s"},
        "spec": {"replicas": 3, "serviceName": "s", "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "fake"}]}}},
    });
    let set: StatefulSet = serde_json::from_value(set).unwrap();
    sets.create(&PostParams::default(), &set).await.unwrap();
    for (replicas, generation) in [(3, 1), (5, 2), (0, 3)] {
        let scale = json!({"spec": {"replicas": replicas}});
        sets.patch("s", &Default::default(), &kube::api::Patch::Merge(&scale))
            .await
            .unwrap();
        wait_for(
            format!("{replicas} ready replicas"),
            Duration::from_secs(20),
            || async {
                let status = sets.get("s").await.unwrap().status.unwrap_or_default();
                let seen = (
                    status.ready_replicas.unwrap_or(0),
                    status.observed_generation,
                );
                Ok(Progress::when(
                    seen == (replicas, Some(generation)),
                    (),
                    || format!("{seen:?}"),
                ))
            },
        )
        .await
        .unwrap();
    }
    let pods: Api<Pod> = Api::default_namespaced(control_plane.client());
    assert!(
        pods.list(&Default::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
}
