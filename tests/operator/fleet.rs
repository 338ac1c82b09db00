//! The fleet: balance, a join, a crash, a stop, and the remaining objects.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use testbed::shards::{self, by_holder, wait_balanced};
use testbed::{AuditLevel, ControlPlane, ControlPlaneOptions, Fleet, Progress, load, wait_for};

use crate::support::*;

const LEASE: Duration = Duration::from_secs(6);

#[tokio::test]
async fn three_replicas_hold_ten_or_eleven_shards_and_a_fourth_gets_eight() {
    let control_plane = control_plane(options()).await;
    let mut fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    let before = shards::list(&client).await.unwrap();
    let mut held: Vec<usize> = by_holder(&before).into_values().collect();
    held.sort_unstable();
    assert_eq!(held, [10, 11, 11]);

    fleet.start_replica(&[]).await.unwrap();
    wait_balanced(&fleet, PATIENCE).await.unwrap();
    let after = shards::list(&client).await.unwrap();
    assert!(
        by_holder(&after).values().all(|held| *held == 8),
        "{:?}",
        by_holder(&after)
    );
    let moved = before
        .iter()
        .zip(&after)
        .filter(|(b, a)| b.holder != a.holder)
        .count();
    assert_eq!(
        moved, 8,
        "a join moves the newcomer's share and nothing else"
    );
    for (before, after) in before.iter().zip(&after) {
        assert!(after.epoch >= before.epoch);
        assert_eq!(before.holder != after.holder, after.epoch > before.epoch);
    }

    let leader: Api<Lease> = Api::namespaced(client, "databasecluster-system");
    let leader = leader.get("databasecluster-leader").await.unwrap();
    let leader = leader.spec.unwrap().holder_identity.unwrap();
    let mut leading = Vec::new();
    for replica in fleet.alive() {
        if replica
            .metrics()
            .await
            .unwrap()
            .sum("leader_election_master_status")
            == Some(1.0)
        {
            leading.push(replica.name().to_owned());
        }
    }
    assert_eq!(leading, [leader]);
    the_command_fails_in_a_namespace_without_a_fleet(&control_plane);
}

fn the_command_fails_in_a_namespace_without_a_fleet(control_plane: &ControlPlane) {
    let fleet = |namespace: &str| {
        let program = env!("CARGO_BIN_EXE_databasecluster-operator");
        let run = Command::new(program)
            .args(["fleet", "--output", "json", "--namespace", namespace])
            .env("KUBECONFIG", control_plane.kubeconfig())
            .output()
            .unwrap();
        let [out, error] = [run.stdout, run.stderr].map(|text| String::from_utf8(text).unwrap());
        (run.status.code(), out, error)
    };
    let (code, out, error) = fleet("databasecluster-system");
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert!(out.contains("\"members\""), "{out}");
    for namespace in ["default", "misspelt"] {
        let (code, out, error) = fleet(namespace);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        for part in [
            format!("namespace {namespace} has no Leases of the operator"),
            "add -n databasecluster-system".to_owned(),
        ] {
            assert!(error.contains(&part), "{part}: {error}");
        }
    }
}

#[tokio::test]
async fn clusters_of_a_killed_replica_are_reconciled_by_another() {
    let control_plane = control_plane(ControlPlaneOptions {
        audit: AuditLevel::Metadata,
        ..options()
    })
    .await;
    let mut fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    load::create(&control_plane, singles("crash", 60))
        .await
        .unwrap();
    load::wait_all_ready(&client, 60, PATIENCE).await.unwrap();

    let victim = fleet.replica(1).unwrap().name().to_owned();
    let orphans = clusters_of(&fleet, &victim).await;
    assert!(
        orphans.len() >= 10,
        "too few clusters for a result: {}",
        orphans.len()
    );
    fleet.replica_mut(1).unwrap().kill().await.unwrap();
    let killed_micros = micros_now();
    let keys = orphans.iter().cloned().collect();
    load::patch(
        &client,
        keys,
        json!({"spec": {"resources": {"cpu": "300m"}}}),
    )
    .await
    .unwrap();

    let taken = wait_for(
        "another replica to write each of them",
        4 * LEASE,
        || async {
            let mut first: BTreeMap<load::Key, i64> = BTreeMap::new();
            for event in control_plane.audit()? {
                let by_another = event.pod_name.as_deref().is_some_and(|pod| pod != victim);
                let name = event.name.strip_suffix("-db").unwrap_or(&event.name);
                let key = (event.namespace.clone(), name.to_owned());
                let of_interest = event.received_micros > killed_micros && orphans.contains(&key);
                if of_interest && by_another && event.is_accepted_write() {
                    first.entry(key).or_insert(event.completed_micros);
                }
            }
            let (done, all) = (first.len(), orphans.len());
            Ok(Progress::when(done == all, first, || {
                format!("{done} of {all}")
            }))
        },
    )
    .await
    .unwrap();
    let worst_micros = taken.values().max().unwrap() - killed_micros;
    let worst = Duration::from_micros(u64::try_from(worst_micros).unwrap());
    // The promise is a lifetime and a second, and `make chaos` measures it on a machine that does
    // nothing else. Here a second lifetime, such as for a death that was detected too late, is distinguished
    // from a busy machine.
    assert!(worst < 2 * LEASE, "the last one took {worst:?}");
    load::wait_all_ready(&client, 60, PATIENCE).await.unwrap();
    wait_balanced(&fleet, PATIENCE).await.unwrap();
    takeovers_are_events_on_the_pods_of_the_survivors(&client, &victim).await;
}

/// One for each survivor, which together name each shard of the dead replica once.
async fn takeovers_are_events_on_the_pods_of_the_survivors(client: &Client, victim: &str) {
    use k8s_openapi::api::core::v1::Event;
    let events: Api<Event> = Api::namespaced(client.clone(), testbed::fleet::OPERATOR_NAMESPACE);
    let of_victim = format!(" of replica {victim}, which no longer renews its Lease: ");
    let found = wait_for("Events about the takeover", PATIENCE, || async {
        let all = events.list(&ListParams::default()).await.unwrap().items;
        let reported = all.into_iter().filter(|event| {
            let note = event.message.as_deref().unwrap_or_default();
            event.reason.as_deref() == Some("ShardsTakenOver") && note.contains(&of_victim)
        });
        let reported: Vec<Event> = reported.collect();
        let shards = |event: &Event| {
            let note = event.message.clone().unwrap_or_default();
            let list = note.split_once(&of_victim).unwrap().1.split('.').next();
            list.unwrap().split(", ").count()
        };
        let named: usize = reported.iter().map(shards).sum();
        Ok(Progress::when(named >= 10, reported, || {
            format!("{named} shards")
        }))
    })
    .await
    .unwrap();
    assert!(found.len() <= 2, "{found:#?}");
    for event in found {
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert_eq!(event.involved_object.kind.as_deref(), Some("Pod"));
        let pod = event.involved_object.name.unwrap();
        assert_eq!(event.reporting_instance.as_deref(), Some(&*pod));
        assert_ne!(pod, victim);
        assert!(event.involved_object.uid.is_some());
    }
}

#[tokio::test]
async fn stopped_replica_hands_over_everything_and_leaves_no_lease() {
    let control_plane = control_plane(options()).await;
    let mut fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    load::create(&control_plane, singles("stop", 30))
        .await
        .unwrap();
    load::wait_all_ready(&client, 30, PATIENCE).await.unwrap();

    let name = fleet.replica(2).unwrap().name().to_owned();
    let status = fleet
        .replica_mut(2)
        .unwrap()
        .term(Duration::from_secs(10))
        .await
        .unwrap();
    assert!(status.success(), "{status}");
    let leases: Api<Lease> = Api::namespaced(client.clone(), "databasecluster-system");
    for lease in leases.list(&ListParams::default()).await.unwrap() {
        let holder = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref());
        assert!(holder != Some(&name), "{} still names it", lease.name_any());
        assert!(
            !lease.name_any().ends_with(&name),
            "{} is left",
            lease.name_any()
        );
    }
    wait_balanced(&fleet, LEASE).await.unwrap();

    // The last replica leaves vacant shard Leases and no member Lease.
    for index in [0, 1] {
        let status = fleet
            .replica_mut(index)
            .unwrap()
            .term(Duration::from_secs(10))
            .await
            .unwrap();
        assert!(status.success(), "{status}");
    }
    let held = by_holder(&shards::list(&client).await.unwrap());
    assert_eq!(held, BTreeMap::from([(String::new(), 32)]));
    let members = ListParams::default().labels("database.io/role=member");
    assert_eq!(leases.list(&members).await.unwrap().items.len(), 0);
}

#[tokio::test]
async fn fleet_behaves_the_same_with_client_side_filtering() {
    let control_plane = control_plane(ControlPlaneOptions {
        sharded_list_and_watch: false,
        ..options()
    })
    .await;
    let mut fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    load::create(&control_plane, singles("whole", 40))
        .await
        .unwrap();
    load::wait_all_ready(&client, 40, PATIENCE).await.unwrap();
    for replica in fleet.replicas() {
        let metrics = replica.metrics().await.unwrap();
        let modes = metrics.by_label("databasecluster_watch_mode", "mode");
        assert_eq!(modes.get("filtered"), Some(&1.0), "{modes:?}");
        let received = metrics.by_label("databasecluster_objects_received_total", "kind");
        let kept = metrics.by_label("databasecluster_objects_kept_total", "kind");
        assert!(kept["databaseclusters"] < received["databaseclusters"]);
    }
    fleet.replica_mut(0).unwrap().kill().await.unwrap();
    wait_balanced(&fleet, 4 * LEASE).await.unwrap();
    let all = load::all_clusters(client.clone())
        .list(&ListParams::default())
        .await
        .unwrap();
    let keys = all
        .iter()
        .map(|o| ("whole".to_owned(), o.name_any()))
        .collect();
    load::patch(&client, keys, json!({"spec": {"replicas": 2}}))
        .await
        .unwrap();
    load::wait_all_ready(&client, 40, PATIENCE).await.unwrap();
}

/// The clusters whose shard this replica holds.
async fn clusters_of(fleet: &Fleet<'_>, holder: &str) -> BTreeSet<load::Key> {
    let client = fleet.control_plane().client();
    let shards = shards::list(&client).await.unwrap();
    let all = load::all_clusters(client)
        .list(&ListParams::default())
        .await
        .unwrap();
    let held = |uid: &str| shards.iter().any(|s| s.holder == holder && s.covers(uid));
    all.iter()
        .filter(|object| held(object.metadata.uid.as_deref().unwrap_or_default()))
        .map(|object| (object.namespace().unwrap_or_default(), object.name_any()))
        .collect()
}

fn micros_now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.unwrap().as_micros()).unwrap()
}
