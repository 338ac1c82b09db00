//! A fleet behind the fence: it checks the fence, works without rejections, and reports tokens that are too high.

use kube::ResourceExt;
use serde_json::json;
use testbed::fleet::{OPERATOR_USER, wait_in_force};
use testbed::{
    AuditLevel, ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, Progress, Replica, load,
    shards, wait_for,
};

use crate::support::*;

const FENCE: &str = "deploy/base/fence.yaml";

async fn audited() -> ControlPlane {
    let options = ControlPlaneOptions {
        audit: AuditLevel::RequestResponse,
        lift_client_limits: true,
        ..ControlPlaneOptions::default()
    };
    ControlPlane::start(options)
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

async fn until_readyz(replica: &Replica, status: u16, line: &str) {
    wait_for(format!("/readyz to report {line:?}"), PATIENCE, || async {
        let answer = replica.get("/readyz").await?;
        let said = answer.status == status && answer.body.contains(line);
        Ok(Progress::when(said, (), || {
            format!("{}: {}", answer.status, answer.body)
        }))
    })
    .await
    .unwrap();
}

async fn in_force(replica: &Replica) -> Option<f64> {
    let metrics = replica.metrics().await.unwrap();
    metrics.sum("databasecluster_fence_in_force")
}

fn log_lines(replica: &Replica, text: &str) -> usize {
    let log = std::fs::read_to_string(replica.log()).unwrap();
    log.lines().filter(|line| line.contains(text)).count()
}

/// Requests of the operator that the API server rejected, except dry runs, which are expected to be rejected.
fn refused_writes(control_plane: &ControlPlane) -> Vec<String> {
    let events = control_plane.audit().unwrap().into_iter();
    let refused = events.filter(|event| {
        event.user == OPERATOR_USER
            && matches!(event.code, 403 | 422)
            && !event.uri.contains("dryRun=")
    });
    refused
        .map(|event| {
            let said = event.response.unwrap_or_default();
            format!("{} {}: {}", event.verb, event.uri, said["message"])
        })
        .collect()
}

#[tokio::test]
async fn fleet_works_behind_the_fence_without_rejections() {
    let control_plane = audited().await;
    let options = FleetOptions {
        extra_args: vec!["--require-fence".to_owned()],
        ..FleetOptions::default()
    };
    let fleet = Fleet::start(&control_plane, 3, options).await.unwrap();
    shards::wait_balanced(&fleet, PATIENCE).await.unwrap();
    let client = control_plane.client();
    load::create(&control_plane, load::samples(30, &[NAMESPACE]))
        .await
        .unwrap();
    load::wait_all_ready(&client, 30, PATIENCE).await.unwrap();
    let keys: Vec<_> = (0..30)
        .map(|number| (NAMESPACE.to_owned(), format!("db-{number:04}")))
        .collect();
    let change = json!({"spec": {"replicas": 2}});
    load::patch(&client, keys.clone(), change).await.unwrap();
    load::wait_all_ready(&client, 30, PATIENCE).await.unwrap();
    let clusters = load::clusters_in(client.clone(), NAMESPACE);
    for (_, name) in &keys[..10] {
        clusters.delete(name, &Default::default()).await.unwrap();
    }
    wait_for("ten clusters to be deleted", PATIENCE, || async {
        let left = clusters
            .list(&Default::default())
            .await
            .unwrap()
            .items
            .len();
        Ok(Progress::when(left == 20, (), || {
            format!("{left} are left")
        }))
    })
    .await
    .unwrap();
    let refused = refused_writes(&control_plane);
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    for replica in fleet.replicas() {
        until_readyz(replica, 200, "[+] fence ok").await;
        assert_eq!(in_force(replica).await, Some(1.0));
        assert_eq!(log_lines(replica, "fence: the API server refuses"), 1);
        let metrics = replica.metrics().await.unwrap();
        assert_eq!(
            metrics.sum("databasecluster_fenced_writes_total"),
            Some(0.0)
        );
    }
}

#[tokio::test]
async fn required_fence_that_is_missing_is_reported_and_awaited() {
    let control_plane = control_plane().await;
    let mut fleet = Fleet::install(&control_plane, FleetOptions::default())
        .await
        .unwrap();
    control_plane
        .run_kubectl(&["delete", "-f", FENCE])
        .await
        .unwrap();
    let without = fleet.start_replica(&[]).await.unwrap();
    until_readyz(fleet.replica(without).unwrap(), 200, "[ ] fence: policy").await;
    let required = ["--require-fence".to_owned()];
    let requires = fleet.start_replica(&required).await.unwrap();
    let strict = fleet.replica(requires).unwrap();
    until_readyz(strict, 503, "apply deploy/base/fence.yaml").await;
    assert_eq!(in_force(strict).await, Some(0.0));
    assert_eq!(log_lines(strict, "--require-fence: policy"), 1);
    let held = shards::by_holder(&shards::list(&control_plane.client()).await.unwrap());
    assert!(!held.contains_key(strict.name()), "{held:?}");

    control_plane
        .run_kubectl(&["apply", "-f", FENCE])
        .await
        .unwrap();
    wait_in_force(&control_plane).await.unwrap();
    fleet.wait_ready(PATIENCE).await.unwrap();
    shards::wait_balanced(&fleet, PATIENCE).await.unwrap();
    for replica in fleet.replicas() {
        wait_for("the fence to be proven", PATIENCE, || async {
            let proven = in_force(replica).await;
            Ok(Progress::when(proven == Some(1.0), (), || {
                format!("{proven:?}")
            }))
        })
        .await
        .unwrap();
    }
}

/// A forged token affects the one object that carries it, and its cluster reports the remedy.
#[tokio::test]
async fn token_with_a_future_epoch_is_reported_on_its_cluster_only() {
    let control_plane = audited().await;
    let fleet = Fleet::start(&control_plane, 2, FleetOptions::default())
        .await
        .unwrap();
    shards::wait_balanced(&fleet, PATIENCE).await.unwrap();
    let client = control_plane.client();
    let names = ["forged-child", "forged-annotation", "restored", "untouched"];
    load::create(&control_plane, names.map(cluster).to_vec())
        .await
        .unwrap();
    load::wait_all_ready(&client, names.len(), PATIENCE)
        .await
        .unwrap();
    let leases = async || shards::list(&client).await.unwrap();
    let before = leases().await;

    let set = api(&client, "StatefulSet")
        .get("forged-child-db")
        .await
        .unwrap();
    let token = set.annotations()["database.io/fencing-token"].clone();
    let parts: Vec<&str> = token.split('/').collect();
    let forged = |cluster: &str, epoch: i64| {
        let token = format!("{}/{}/{epoch}/omega/{cluster}", parts[0], parts[1]);
        json!({"metadata": {"annotations": {"database.io/fencing-token": token}}})
    };
    let clusters = load::clusters_in(client.clone(), NAMESPACE);
    merge(
        &client,
        "StatefulSet",
        "forged-child-db",
        forged(parts[4], EPOCH_MAX),
    )
    .await
    .unwrap();
    // A copy of another cluster's token counts as none.
    merge(
        &client,
        "StatefulSet",
        "restored-db",
        forged(parts[4], EPOCH_MAX),
    )
    .await
    .unwrap();
    let keys = names.map(|name| (NAMESPACE.to_owned(), name.to_owned()));
    let change = json!({"spec": {"image": "postgres:17.2"}});
    load::patch(&client, keys.to_vec(), change).await.unwrap();
    let degraded = async |name: &str| {
        let object = clusters.get(name).await.unwrap();
        let conditions = object.data["status"]["conditions"].as_array().cloned();
        let mut conditions = conditions.unwrap_or_default().into_iter();
        conditions
            .find(|condition| condition["type"] == "Degraded" && condition["status"] == "True")
    };
    wait_for("the forged token to be reported", PATIENCE, || async {
        let condition = degraded("forged-child").await;
        let reported = condition.as_ref().is_some_and(|condition| {
            let message = condition["message"].as_str().unwrap_or_default();
            condition["reason"] == "FencingTokenAhead" && message.contains("kubectl")
        });
        Ok(Progress::when(reported, (), || format!("{condition:?}")))
    })
    .await
    .unwrap();
    for name in ["restored", "untouched", "forged-annotation"] {
        assert_eq!(degraded(name).await, None, "{name}");
    }
    assert_eq!(
        shards::by_holder(&before),
        shards::by_holder(&leases().await),
        "the forged token changed the holder of a shard"
    );

    let cured = json!({"metadata": {"annotations": {"database.io/fencing-token": null}}});
    merge(&client, "StatefulSet", "forged-child-db", cured)
        .await
        .unwrap();
    load::wait_all_ready(&client, names.len(), PATIENCE)
        .await
        .unwrap();
    wait_for("the report to end", PATIENCE, || async {
        let condition = degraded("forged-child").await;
        Ok(Progress::when(condition.is_none(), (), || {
            format!("{condition:?}")
        }))
    })
    .await
    .unwrap();
}
