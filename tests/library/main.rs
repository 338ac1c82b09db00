//! The library, by its example operator on a real API server: three replicas share the work, survive a kill, a freeze
//! and a stop, and the audit log shows that every promise about ownership and fencing was kept.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod install;
mod record;
mod sources;
mod thief;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use chaos::evidence::now_micros;
use futures::FutureExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use record::Record;
use serde_json::json;
use sources::Sources;
use testbed::fleet::{Launcher, example_binary};
use testbed::{
    AuditLevel, ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, OperatorNames, Progress,
    Replica, shards, table, wait_for,
};

/// Long enough for a busy machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than the Lease of a member lives, with the time that others take to notice.
const FREEZE: Duration = Duration::from_secs(8);
const SHARDS: usize = 32;

/// The names in the example.
const DERIVE: OperatorNames = OperatorNames {
    namespace: "derive-system",
    account: "derive-operator",
    prefix: "derive",
    domain: "derive.example.com",
};

#[tokio::test(flavor = "multi_thread")]
async fn example_operator_keeps_every_promise_of_the_library() {
    let binary = example_binary("configmap").unwrap();
    let options = ControlPlaneOptions {
        audit: AuditLevel::RequestResponse,
        operator: DERIVE,
        ..ControlPlaneOptions::default()
    };
    let control_plane = ControlPlane::start(options).await.unwrap();
    install::install(&control_plane, &binary).await;
    let options = FleetOptions {
        binary: Some(binary),
        operator: DERIVE,
        launcher: Launcher::Environment,
        ..FleetOptions::default()
    };
    let mut fleet = Fleet::installed(&control_plane, options).unwrap();
    let life = AssertUnwindSafe(life_of_a_fleet(&mut fleet)).catch_unwind();
    if let Err(failure) = life.await {
        for replica in fleet.replicas() {
            println!("--- {}:\n{}", replica.name(), replica.log_tail());
        }
        std::panic::resume_unwind(failure);
    }
    drop(fleet);
    control_plane.stop().await.unwrap();
}

async fn life_of_a_fleet(fleet: &mut Fleet<'_>) {
    let control_plane = fleet.control_plane();
    let mut record = Record::default();
    for _ in 0..3 {
        start(fleet, &mut record).await;
    }
    fleet.wait_ready(PATIENCE).await.unwrap();
    shards::wait_balanced(fleet, PATIENCE).await.unwrap();
    record.begin();

    let sources = Sources::create(control_plane.client()).await;
    sources.wait_derived().await;
    follows_changes_of_users(&sources).await;
    for replica in fleet.replicas() {
        answers_over_http(replica).await;
    }
    survives_a_kill_and_a_freeze(fleet, &mut record, &sources).await;
    newcomers_take_part(fleet, &mut record, &sources).await;
    stop_hands_every_shard_over(fleet, &mut record, &sources).await;
    table_and_leases_agree(fleet).await;
    thief::is_refused(fleet, &sources).await;
    sources.wait_derived().await;

    record.end(fleet).await;
    record.check(control_plane);
}

async fn start(fleet: &mut Fleet<'_>, record: &mut Record) {
    let from = now_micros();
    let index = fleet.start_replica(&[]).await.unwrap();
    record.started(fleet.replicas()[index].name(), from);
}

/// What users do to sources, and to what was derived, is followed or undone.
async fn follows_changes_of_users(sources: &Sources) {
    let api: Api<ConfigMap> = Api::namespaced(sources.client(), sources::NAMESPACES[0]);
    sources.change(7).await;
    sources.delete(sources::NAMESPACES[1], "source-3").await;
    let now = DeleteParams::default();
    api.delete("source-1-derived", &now).await.unwrap();
    let edit = json!({"data": {"greeting": "edited"}});
    let (manager, edit) = (PatchParams::default(), Patch::Merge(&edit));
    api.patch("source-2-derived", &manager, &edit)
        .await
        .unwrap();
    sources.wait_derived().await;
}

async fn answers_over_http(replica: &Replica) {
    let metrics = replica.metrics().await.unwrap();
    assert_eq!(metrics.sum("derive_shards"), Some(32.0));
    for name in ["workqueue_depth", "derive_shard_owned"] {
        assert!(metrics.sum(name).is_some(), "{}: no {name}", replica.name());
    }
    let readiness = replica.get("/readyz").await.unwrap();
    assert_eq!(readiness.status, 200, "{}", readiness.body);
    for check in ["fence", "shard-table", "leases", "api-server"] {
        let is_ok = readiness.body.contains(&format!("[+] {check} ok"));
        assert!(is_ok, "{check}: {}", readiness.body);
    }
    assert_eq!(replica.get("/livez").await.unwrap().status, 200);
}

/// One replica is killed and another one frozen for longer than its Lease lives: the third takes everything over. When
/// the frozen one continues, it writes nothing more under its former right.
async fn survives_a_kill_and_a_freeze(
    fleet: &mut Fleet<'_>,
    record: &mut Record,
    sources: &Sources,
) {
    let (killed, frozen) = (fleet.replicas()[0].name(), fleet.replicas()[1].name());
    let (killed, frozen) = (killed.to_owned(), frozen.to_owned());
    let survivor = fleet.replicas()[2].name().to_owned();
    // Some work is under way at that moment.
    sources.change(1).await;
    let faults = record.takes_out(&[&killed, &frozen]);
    fleet.replicas()[1].stop().unwrap();
    fleet.replica_mut(0).unwrap().kill().await.unwrap();
    record.ended(&killed);
    let taken_over = wait_for("the survivor to hold every shard", PATIENCE, || async {
        let all = shards::list_of(&sources.client(), &DERIVE).await?;
        let holders = shards::by_holder(&all);
        let held = holders.get(&survivor) == Some(&SHARDS);
        Ok(Progress::when(held, (), || format!("{holders:?}")))
    });
    let (taken_over, ()) = tokio::join!(taken_over, sources.keep_changing(FREEZE));
    taken_over.unwrap();
    sources.wait_derived().await;
    fleet.replicas()[1].cont().unwrap();
    record.continued(&frozen, faults);
    sources.keep_changing(Duration::from_secs(1)).await;
    sources.wait_derived().await;
}

/// The killed replica restarts under its identity, and one more joins.
async fn newcomers_take_part(fleet: &mut Fleet<'_>, record: &mut Record, sources: &Sources) {
    let fault = record.moves("a restart and a new replica");
    let from = now_micros();
    fleet.restart_replica(0).await.unwrap();
    record.started(fleet.replicas()[0].name(), from);
    start(fleet, record).await;
    fleet.wait_ready(PATIENCE).await.unwrap();
    let balanced = shards::wait_balanced(fleet, PATIENCE);
    let (balanced, ()) = tokio::join!(balanced, sources.keep_changing(Duration::from_secs(2)));
    balanced.unwrap();
    record.moved(fault);
    sources.wait_derived().await;
}

async fn stop_hands_every_shard_over(
    fleet: &mut Fleet<'_>,
    record: &mut Record,
    sources: &Sources,
) {
    let fault = record.moves("a stop");
    let leaving = fleet.replicas()[2].name().to_owned();
    let replica = fleet.replica_mut(2).unwrap();
    let stopping = replica.term(PATIENCE);
    let (status, ()) = tokio::join!(stopping, sources.keep_changing(Duration::from_secs(1)));
    assert!(status.as_ref().unwrap().success(), "{status:?}");
    record.ended(&leaving);
    let all = shards::list_of(&sources.client(), &DERIVE).await.unwrap();
    let holders = shards::by_holder(&all);
    let handed_over = |name: &String| *name != leaving && !name.is_empty();
    assert!(holders.keys().all(handed_over), "{holders:?}");
    assert_eq!(holders.values().sum::<usize>(), SHARDS);
    record.moved(fault);
    sources.wait_derived().await;
}

/// When nothing moves, the fence grants each shard to the holder of its Lease.
async fn table_and_leases_agree(fleet: &Fleet<'_>) {
    let client = fleet.control_plane().client();
    shards::wait_balanced(fleet, PATIENCE).await.unwrap();
    wait_for("the table to be as the Leases", PATIENCE, || async {
        let table = table::get_of(&client, &DERIVE).await?.unwrap_or_default();
        let leases = shards::list_of(&client, &DERIVE).await?;
        let differs = leases.iter().find(|lease| {
            let shard = DERIVE.shard_of(&lease.lease).unwrap_or_default();
            let entry = table.entries.get(shard);
            entry.map(|entry| (entry.holder.as_str(), entry.epoch))
                != Some((lease.holder.as_str(), i64::from(lease.epoch)))
        });
        let agree = differs.is_none() && table.entries.len() == SHARDS && leases.len() == SHARDS;
        Ok(Progress::when(agree, (), || format!("{differs:?}")))
    })
    .await
    .unwrap();
}
