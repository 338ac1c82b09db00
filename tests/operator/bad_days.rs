//! Bad days: nothing to talk to, no rights, no CRD. Each is said in one clear line, and waited for.

use std::time::Duration;

use testbed::fleet::OPERATOR_NAMESPACE;
use testbed::{Fleet, FleetOptions, Progress, Replica, load, wait_for};

use crate::support::*;

/// Waits until /readyz fails with a line that says `why`.
async fn until_unready(replica: &Replica, why: &str) {
    wait_for(format!("/readyz to say {why:?}"), PATIENCE, || async {
        let answer = replica.get("/readyz").await?;
        let told = answer.status == 503 && answer.body.contains(why);
        Ok(Progress::when(told, (), || {
            format!("{}: {}", answer.status, answer.body)
        }))
    })
    .await
    .unwrap();
    let alive = replica.get("/livez").await.unwrap();
    assert_eq!(
        alive.status, 200,
        "trouble elsewhere is no reason to restart: {}",
        alive.body
    );
}

fn lines_with(replica: &Replica, text: &str) -> usize {
    let log = std::fs::read_to_string(replica.log()).unwrap();
    log.lines().filter(|line| line.contains(text)).count()
}

#[tokio::test]
async fn an_api_server_that_is_away_is_waited_for() {
    let control_plane = control_plane(options()).await;
    let mut fleet = Fleet::install(&control_plane, FleetOptions::default())
        .await
        .unwrap();
    // Its Pod and token must exist before the API server goes.
    let index = fleet.start_replica(&[]).await.unwrap();
    fleet.wait_ready(PATIENCE).await.unwrap();
    fleet.replica_mut(index).unwrap().kill().await.unwrap();
    control_plane.kill("kube-apiserver").await.unwrap();
    fleet.restart_replica(index).await.unwrap();
    let replica = fleet.replica(index).unwrap();
    until_unready(replica, "can not be reached").await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    let lines = lines_with(replica, "can not be reached");
    assert!((2..=6).contains(&lines), "{lines} lines in some 12 seconds");
    control_plane.start_again().await.unwrap();
    fleet.wait_ready(PATIENCE).await.unwrap();
    testbed::shards::wait_balanced(&fleet, PATIENCE)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_missing_crd_is_named_and_waited_for() {
    let control_plane = control_plane(options()).await;
    let mut fleet = Fleet::install(&control_plane, FleetOptions::default())
        .await
        .unwrap();
    let crd = "deploy/base/crd.yaml";
    control_plane
        .run_kubectl(&["delete", "-f", crd])
        .await
        .unwrap();
    let index = fleet.start_replica(&[]).await.unwrap();
    until_unready(fleet.replica(index).unwrap(), "apply deploy/base/crd.yaml").await;
    control_plane
        .run_kubectl(&["apply", "-f", crd])
        .await
        .unwrap();
    fleet.wait_ready(PATIENCE).await.unwrap();
    load::create(&control_plane, singles("later", 2))
        .await
        .unwrap();
    load::wait_all_ready(&control_plane.client(), 2, PATIENCE)
        .await
        .unwrap();
}

#[tokio::test]
async fn missing_rights_are_named_and_waited_for() {
    let control_plane = control_plane(options()).await;
    let mut fleet = Fleet::install(&control_plane, FleetOptions::default())
        .await
        .unwrap();
    for binding in ["clusterrolebinding", "rolebinding"] {
        control_plane
            .run_kubectl(&[
                "delete",
                binding,
                "-n",
                OPERATOR_NAMESPACE,
                "databasecluster-operator",
            ])
            .await
            .unwrap();
    }
    let index = fleet.start_replica(&[]).await.unwrap();
    until_unready(fleet.replica(index).unwrap(), "apply deploy/base/rbac.yaml").await;
    control_plane
        .run_kubectl(&["apply", "-f", "deploy/base/rbac.yaml"])
        .await
        .unwrap();
    fleet.wait_ready(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_restart_of_the_api_server_loses_nothing_and_moves_nothing() {
    let control_plane = control_plane(options()).await;
    let fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    load::create(&control_plane, singles("outage", 20))
        .await
        .unwrap();
    load::wait_all_ready(&client, 20, PATIENCE).await.unwrap();
    let before = testbed::shards::list(&client).await.unwrap();
    control_plane.kill("kube-apiserver").await.unwrap();
    wait_for("validity to lapse", PATIENCE, || async {
        let ready = fleet.replica(0)?.get("/readyz").await?.status;
        Ok(Progress::when(ready == 503, (), || {
            format!("/readyz says {ready}")
        }))
    })
    .await
    .unwrap();
    control_plane.start_again().await.unwrap();
    let keys = (0..20)
        .map(|n| ("outage".to_owned(), format!("db-{n:03}")))
        .collect();
    load::patch(&client, keys, serde_json::json!({"spec": {"replicas": 2}}))
        .await
        .unwrap();
    load::wait_all_ready(&client, 20, PATIENCE).await.unwrap();
    let after = testbed::shards::list(&client).await.unwrap();
    let holders = |all: &[testbed::shards::Shard]| {
        all.iter()
            .map(|shard| shard.holder.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        holders(&before),
        holders(&after),
        "shards moved though nobody died"
    );
}
