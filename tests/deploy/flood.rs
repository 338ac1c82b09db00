//! Heartbeats while the operator's other requests fill the API server: they hold by the flow control that is installed,
//! and would not without it.

use std::time::{Duration, Instant};

use http::Request;
use kube::Client;
use serde_json::json;
use testbed::shards::{self, Shard, wait_balanced};
use testbed::{ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, Progress, wait_for};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::*;

/// Concurrent requests; the API server executes 30.
const FLOOD: usize = 200;
/// How long the execution of each takes.
const EACH_SECONDS: u64 = 8;
/// More than two lifetimes of a member Lease.
const HOLD: Duration = Duration::from_secs(14);
const LEVELS: &str = "deploy/base/flowcontrol.yaml";

/// A small API server, and something that makes each creation of a ConfigMap take long without any work: a webhook that
/// never answers.
async fn slow_server() -> (ControlPlane, TcpListener) {
    let flag = |name: &str, value: &str| ("kube-apiserver".into(), name.into(), value.into());
    let control_plane = control_plane(ControlPlaneOptions {
        extra_args: vec![
            flag("max-requests-inflight", "20"),
            flag("max-mutating-requests-inflight", "10"),
        ],
        ..ControlPlaneOptions::default()
    })
    .await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let webhook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "never-answers"},
        "webhooks": [{
            "name": "never.answers.example",
            "clientConfig": {"url": format!("https://{}/", silent.local_addr().unwrap())},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"],
                "operations": ["CREATE"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
            "timeoutSeconds": EACH_SECONDS,
            "failurePolicy": "Ignore",
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }],
    });
    let file = control_plane.folder().join("webhook.yaml");
    std::fs::write(&file, webhook.to_string()).unwrap();
    run(kubectl_of(&control_plane).args(["create", "-f"]).arg(file));
    (control_plane, silent)
}

/// As the operator's account: one request after the other, many at once, until dropped.
fn flood(client: &Client) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for number in 0..FLOOD {
        let client = client.clone();
        tasks.spawn(async move {
            let body = json!({"metadata": {"name": format!("flood-{number}")}}).to_string();
            loop {
                let request = Request::post("/api/v1/namespaces/default/configmaps?dryRun=All")
                    .header(http::header::CONTENT_TYPE, "application/json")
                    .body(body.clone().into_bytes())
                    .unwrap();
                let _refused = client.request_text(request).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    tasks
}

/// Requests that wait in the API server, of all levels but those of the system.
async fn waiting(client: &Client) -> f64 {
    let request = Request::get("/metrics").body(Vec::new()).unwrap();
    let text = client.request_text(request).await.unwrap();
    let metrics = testbed::metrics::Metrics::parse(&text);
    let by_level = metrics.by_label(
        "apiserver_flowcontrol_current_inqueue_requests",
        "priority_level",
    );
    let of =
        ["workload-low", "databasecluster-reconcile"].map(|level| by_level.get(level).copied());
    of.into_iter().flatten().sum()
}

async fn wait_flooded(client: &Client) {
    wait_for("requests to wait in the API server", PATIENCE, || async {
        let waiting = waiting(client).await;
        Ok(Progress::when(waiting > 50.0, (), || {
            format!("{waiting} wait")
        }))
    })
    .await
    .unwrap();
}

/// Reads the shard Leases for a while: checks that they stay unchanged, and counts how often the flood was present.
async fn hold(client: &Client, before: &[Shard]) -> (u32, u32) {
    let (started, mut samples, mut flooded) = (Instant::now(), 0, 0);
    while started.elapsed() < HOLD {
        let now = shards::list(client).await.unwrap();
        assert_eq!(epochs(&now), epochs(before), "a replica counted as dead");
        samples += 1;
        flooded += u32::from(waiting(client).await > 50.0);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    (samples, flooded)
}

fn epochs(shards: &[Shard]) -> Vec<(String, i32)> {
    shards
        .iter()
        .map(|shard| (shard.holder.clone(), shard.epoch))
        .collect()
}

#[tokio::test]
async fn heartbeats_succeed_while_other_operator_requests_saturate_the_api_server() {
    let (control_plane, _silent) = slow_server().await;
    let client = control_plane.client();
    let mut fleet = Fleet::install(&control_plane, FleetOptions::default())
        .await
        .unwrap();
    for _ in 0..3 {
        fleet.start_replica(&[]).await.unwrap();
    }
    fleet.wait_ready(PATIENCE).await.unwrap();
    wait_balanced(&fleet, PATIENCE).await.unwrap();
    let flooder = fleet.client_of_pod("flooder").await.unwrap();

    // With the installed flow control.
    let before = shards::list(&client).await.unwrap();
    let flooding = flood(&flooder);
    wait_flooded(&client).await;
    let (samples, flooded) = hold(&client, &before).await;
    assert!(
        samples > 10 && flooded * 10 > samples * 8,
        "not enough flood for a result: {flooded} of {samples}"
    );
    for replica in fleet.alive() {
        assert_eq!(replica.get("/livez").await.unwrap().status, 200);
        let metrics = replica.metrics().await.unwrap();
        let age = metrics
            .sum("databasecluster_heartbeat_age_seconds")
            .unwrap();
        assert!(age < 4.0, "{}: heartbeat of {age} s ago", replica.name());
    }

    // Without it the same flood stops heartbeats: the comparison shows that the flow control protects them.
    run(kubectl_of(&control_plane).args(["delete", "-f", LEVELS]));
    let lapsed = wait_for("a heartbeat to lapse", PATIENCE, || async {
        let mut worst = 0.0_f64;
        for replica in fleet.alive() {
            let metrics = replica.metrics().await?;
            worst = worst.max(
                metrics
                    .sum("databasecluster_heartbeat_age_seconds")
                    .unwrap_or(0.0),
            );
        }
        Ok(Progress::when(worst > 5.0, (), || {
            format!("the oldest is {worst} s old")
        }))
    });
    lapsed.await.unwrap();
    drop(flooding);
}
