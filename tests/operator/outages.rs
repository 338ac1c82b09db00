//! Outages: no API server, no rights, no CRD. The operator reports each in one clear line, and waits.

use std::time::Duration;

use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use testbed::fleet::OPERATOR_NAMESPACE;
use testbed::{ControlPlane, Fleet, FleetOptions, Progress, Replica, load, wait_for};

use crate::support::*;

/// Waits until /readyz fails with a line that contains `why`.
async fn until_unready(replica: &Replica, why: &str) {
    wait_for(format!("/readyz to report {why:?}"), PATIENCE, || async {
        let answer = replica.get("/readyz").await?;
        let met = answer.status == 503 && answer.body.contains(why);
        Ok(Progress::when(met, (), || {
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
async fn operator_waits_for_an_unavailable_api_server() {
    let control_plane = control_plane(options()).await;
    let mut fleet = Fleet::install(&control_plane, FleetOptions::default())
        .await
        .unwrap();
    // Its Pod and token must exist before the API server stops.
    let index = fleet.start_replica(&[]).await.unwrap();
    fleet.wait_ready(PATIENCE).await.unwrap();
    fleet.replica_mut(index).unwrap().kill().await.unwrap();
    control_plane.kill("kube-apiserver").await.unwrap();
    fleet.restart_replica(index).await.unwrap();
    let replica = fleet.replica(index).unwrap();
    until_unready(replica, "cannot be reached").await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    let lines = lines_with(replica, "cannot be reached");
    assert!((1..=3).contains(&lines), "{lines} lines in some 12 seconds");
    control_plane.start_again().await.unwrap();
    fleet.wait_ready(PATIENCE).await.unwrap();
    testbed::shards::wait_balanced(&fleet, PATIENCE)
        .await
        .unwrap();
}

#[tokio::test]
async fn missing_crd_is_named_and_awaited() {
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
    a_crd_that_goes_is_the_first_thing_said_and_not_said_without_end(&control_plane, &fleet).await;
}

/// Waits until /fleet shows this first, as an error.
async fn until_red(replica: &Replica, why: &str) {
    wait_for(format!("/fleet to be red for: {why}"), PATIENCE, || async {
        let answer = replica.get("/fleet").await?;
        let view: Value = serde_json::from_str(&answer.body).unwrap_or(Value::Null);
        let first = &view["problems"][0];
        let what = first["what"].as_str().unwrap_or_default();
        let met = first["severity"] == "critical" && what.contains(why);
        Ok(Progress::when(met, (), || view["problems"].to_string()))
    })
    .await
    .unwrap();
}

async fn a_crd_that_goes_is_the_first_thing_said_and_not_said_without_end(
    control_plane: &ControlPlane,
    fleet: &Fleet<'_>,
) {
    let replica = fleet.replica(0).unwrap();
    let log = || std::fs::read_to_string(replica.log()).unwrap();
    let before = log().lines().count();
    // While there are some, their finalizers keep the kind.
    for what in [
        ["dbc", "--all", "-A"],
        ["crd", "databaseclusters.database.io", "-v0"],
    ] {
        let delete = [&["delete", "--timeout=60s"][..], &what].concat();
        control_plane.run_kubectl(&delete).await.unwrap();
    }
    until_red(replica, "the CRD databaseclusters.database.io is missing").await;
    until_unready(replica, "[-] crd: the CRD databaseclusters").await;
    // As long as it took to write 274 lines.
    tokio::time::sleep(Duration::from_secs(37)).await;
    let since: Vec<String> = log().lines().skip(before).map(str::to_owned).collect();
    let said = since.iter().filter(|line| line.contains("CRD")).count();
    assert!(
        (1..=4).contains(&said),
        "{said} times: {}",
        since.join("\n")
    );
    assert!(
        since.len() <= 20,
        "{} lines: {}",
        since.len(),
        since.join("\n")
    );
    // The other kind, too: then no shard is held or watched.
    let delete = ["delete", "crd", "shardtables.database.io", "--timeout=60s"];
    control_plane.run_kubectl(&delete).await.unwrap();
    until_red(replica, "the CRD shardtables.database.io is missing").await;
    control_plane
        .run_kubectl(&["apply", "-f", "deploy/base/crd.yaml"])
        .await
        .unwrap();
    fleet.wait_ready(PATIENCE).await.unwrap();
    load::create(control_plane, singles("again", 1))
        .await
        .unwrap();
    load::wait_all_ready(&control_plane.client(), 1, PATIENCE)
        .await
        .unwrap();
}

#[tokio::test]
async fn missing_rights_are_named_and_awaited() {
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
    a_right_that_is_missing_is_reported_on_the_cluster(&control_plane).await;
}

/// The operator sees everything, and may not write Services and ConfigMaps.
async fn a_right_that_is_missing_is_reported_on_the_cluster(control_plane: &ControlPlane) {
    let client = control_plane.client();
    let roles: Api<ClusterRole> = Api::all(client.clone());
    let mut role = roles.get("databasecluster-operator").await.unwrap();
    let mut trimmed = 0;
    for rule in role.rules.iter_mut().flatten() {
        let is_it = |resource: &String| resource == "services";
        if rule.resources.iter().flatten().any(is_it) {
            rule.verbs
                .retain(|verb| verb != "create" && verb != "patch");
            trimmed += 1;
        }
    }
    assert_eq!(trimmed, 1, "{role:?}");
    roles
        .replace("databasecluster-operator", &PostParams::default(), &role)
        .await
        .unwrap();
    one(control_plane, "trimmed", "db", load::spec(1)).await;
    let text = until_degraded(&client, ("trimmed", "db"), "MissingRights").await;
    for words in [
        "cannot patch resource",
        "configmaps",
        "rbac.yaml",
        "tries again at ",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    control_plane
        .run_kubectl(&["apply", "-f", "deploy/base/rbac.yaml"])
        .await
        .unwrap();
    change(&client, "trimmed", "db", json!({"replicas": 2})).await;
    until_cluster(&client, ("trimmed", "db"), "Ready", is_ready).await;
}

#[tokio::test]
async fn api_server_restart_loses_no_work_and_moves_no_shard() {
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
            format!("/readyz answers {ready}")
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
        "shards moved though no replica died"
    );
}
