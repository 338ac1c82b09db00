//! A restart in the same Pod, and shard Leases that are deleted while the fleet works.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::api::{DeleteParams, ListParams};
use testbed::shards::Shard;
use testbed::{ControlPlane, Fleet, FleetOptions, Progress, wait_for};

use crate::support::*;

const LEASE: Duration = Duration::from_secs(6);

#[tokio::test]
async fn restarted_replica_resumes_and_deleted_leases_return_with_higher_epochs() {
    let control_plane = control_plane().await;
    let client = control_plane.client();
    let mut fleet = fleet_of_three(&control_plane, FleetOptions::default()).await;
    let keys = clusters(&control_plane, 40).await;
    let load = Load::start(client.clone(), keys);
    the_same_pod_takes_its_shards_back_at_once(&mut fleet).await;
    one_lease_is_deleted(&client).await;
    all_leases_are_deleted(&client).await;
    assert!(load.end(&client).await > 20);
    a_lease_that_cannot_return_is_shown(&control_plane, &fleet).await;
    damaged_leader_lease_is_repaired(&client, &fleet).await;
    assert_epochs_never_fall(&control_plane);
}

fn holders(shards: &BTreeMap<String, Shard>) -> Vec<&str> {
    shards.values().map(|shard| shard.holder.as_str()).collect()
}

async fn the_same_pod_takes_its_shards_back_at_once(fleet: &mut Fleet<'_>) {
    let client = fleet.control_plane().client();
    let before = shards_now(&client).await;
    let name = fleet.replica(1).unwrap().name().to_owned();
    fleet.replica_mut(1).unwrap().kill().await.unwrap();
    let killed = Instant::now();
    fleet.restart_replica(1).await.unwrap();
    let resumed = |now: &BTreeMap<String, Shard>| {
        let own = before.values().filter(|shard| shard.holder == name);
        own.clone().count() >= 10 && own.clone().all(|was| now[&was.lease].epoch > was.epoch)
    };
    let after = until_shards(
        &client,
        "the restarted one to take its shards back",
        resumed,
    )
    .await;
    let took = killed.elapsed();
    assert!(
        took < LEASE,
        "it took {took:?}: no replica has to wait for a lease to expire"
    );
    assert_eq!(holders(&before), holders(&after), "a shard went elsewhere");
    for (lease, shard) in &after {
        let own = i32::from(shard.holder == name);
        assert_eq!(shard.epoch, before[lease].epoch + own, "{lease}");
    }
}

async fn one_lease_is_deleted(client: &kube::Client) {
    let before = shards_now(client).await;
    let lease = "databasecluster-shard-007";
    leases(client)
        .delete(lease, &DeleteParams::default())
        .await
        .unwrap();
    let after = until_shards(client, "the deleted Lease to come back", |now| {
        now.contains_key(lease)
    })
    .await;
    assert_eq!(
        after[lease].holder, before[lease].holder,
        "its holder lives"
    );
    let risen = after[lease].epoch - before[lease].epoch;
    assert!((1..=1000).contains(&risen), "by {risen}");
}

async fn all_leases_are_deleted(client: &kube::Client) {
    let before = shards_now(client).await;
    let all = ListParams::default().labels("database.io/role=shard");
    leases(client)
        .delete_collection(&DeleteParams::default(), &all)
        .await
        .unwrap();
    let after = until_shards(client, "all Leases to come back", |now| {
        now.len() == before.len()
    })
    .await;
    assert_eq!(holders(&before), holders(&after), "all holders live");
    for (lease, shard) in &after {
        assert!(
            shard.epoch > before[lease].epoch,
            "{:?} became {shard:?}",
            before[lease]
        );
    }
}

/// With a quota in the way no replica can re-create the Lease: the gauge of unowned shards shows it.
async fn a_lease_that_cannot_return_is_shown(control_plane: &ControlPlane, fleet: &Fleet<'_>) {
    let client = control_plane.client();
    let lease = "databasecluster-shard-003";
    let namespace = testbed::fleet::OPERATOR_NAMESPACE;
    let hard = "--hard=count/leases.coordination.k8s.io=1";
    let quota = ["create", "quota", "no-more-leases", "-n", namespace, hard];
    control_plane.run_kubectl(&quota).await.unwrap();
    wait_for("the quota to be in force", PATIENCE, || async {
        let arguments = ["create", "-n", namespace, "--dry-run=server", "-f"];
        let file = control_plane.folder().join("one-more-lease.json");
        let text = r#"{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"one-more"}}"#;
        std::fs::write(&file, text).unwrap();
        let file = file.display().to_string();
        let arguments = [arguments.as_slice(), &[&file]].concat();
        let answer = control_plane.run_kubectl(&arguments).await;
        Ok(Progress::when(answer.is_err(), (), || "a Lease can be created".into()))
    })
    .await
    .unwrap();
    let before = shards_now(&client).await;
    leases(&client)
        .delete(lease, &DeleteParams::default())
        .await
        .unwrap();
    let shows = async |wanted: f64| {
        let what = format!("every replica to show {wanted} unowned");
        wait_for(what, PATIENCE, || async {
            let mut shown = Vec::new();
            for replica in fleet.replicas() {
                shown.push(metric(replica, "databasecluster_shards_unowned").await);
            }
            let met = shown.iter().all(|one| *one == wanted);
            Ok(Progress::when(met, (), || format!("they show {shown:?}")))
        })
        .await
        .unwrap();
    };
    shows(1.0).await;
    somebody_else_leads(&client, fleet).await;
    shows(1.0).await;
    let quota = ["delete", "quota", "no-more-leases", "-n", namespace];
    control_plane.run_kubectl(&quota).await.unwrap();
    shows(0.0).await;
    let after = shards_now(&client).await;
    assert!(after[lease].epoch > before[lease].epoch);
    assert_eq!(after[lease].holder, before[lease].holder);
}

/// The fleet leader's Lease names a holder that plans nothing: no replica leads.
async fn somebody_else_leads(client: &kube::Client, fleet: &Fleet<'_>) {
    let spec = serde_json::json!({
        "holderIdentity": "somebody-else", "renewTime": "2100-01-01T00:00:00.000000Z",
    });
    edit_leaders_lease(client, spec).await;
    until_so_many_lead(fleet, 0.0).await;
}

/// The election's library takes no part in an election over a Lease that lacks a field.
async fn damaged_leader_lease_is_repaired(client: &kube::Client, fleet: &Fleet<'_>) {
    edit_leaders_lease(client, serde_json::json!({"renewTime": null})).await;
    until_so_many_lead(fleet, 1.0).await;
}

async fn edit_leaders_lease(client: &kube::Client, spec: serde_json::Value) {
    let patch = kube::api::Patch::Merge(serde_json::json!({ "spec": spec }));
    leases(client)
        .patch("databasecluster-leader", &Default::default(), &patch)
        .await
        .unwrap();
}

async fn until_so_many_lead(fleet: &Fleet<'_>, wanted: f64) {
    wait_for(format!("{wanted} replicas to lead"), PATIENCE, || async {
        let mut leading = 0.0;
        for replica in fleet.replicas() {
            leading += metric(replica, "leader_election_master_status").await;
        }
        Ok(Progress::when(leading == wanted, (), || {
            format!("{leading} lead")
        }))
    })
    .await
    .unwrap();
}
