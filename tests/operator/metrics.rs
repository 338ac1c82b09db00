//! Metrics of a replica against an independent measurement.

use std::time::Duration;

use testbed::{Fleet, FleetOptions, Progress, load, wait_for};

use crate::support::*;

#[tokio::test]
async fn cpu_and_memory_agree_with_proc() {
    let control_plane = control_plane(options()).await;
    let fleet = fleet_of_three(&control_plane).await;
    for replica in fleet.replicas() {
        let before = replica.usage().unwrap();
        let metrics = replica.metrics().await.unwrap();
        let after = replica.usage().unwrap();
        let cpu = metrics.sum("process_cpu_seconds_total").unwrap();
        // The kernel counts in ticks of 10 ms.
        let tick = 0.011;
        assert!(cpu >= before.cpu_seconds - tick && cpu <= after.cpu_seconds + tick);
        assert!(cpu > 0.0);
        let memory = metrics.sum("process_resident_memory_bytes").unwrap();
        let seen = after.resident_bytes as f64;
        assert!(
            (memory - seen).abs() <= 0.2 * seen,
            "{memory} is not {seen}"
        );
    }
    // A shard is worked on a moment after its Lease names the replica.
    for replica in fleet.replicas() {
        let what = format!("{} to report 10 or 11 shards", replica.name());
        wait_for(what, PATIENCE, || async {
            let held = replica.metrics().await?.sum("databasecluster_shard_owned");
            let met = held == Some(10.0) || held == Some(11.0);
            Ok(Progress::when(met, (), || format!("{held:?}")))
        })
        .await
        .unwrap();
    }
    let mut fractions = 0;
    for replica in fleet.replicas() {
        let cpu = replica
            .metrics()
            .await
            .unwrap()
            .sum("process_cpu_seconds_total")
            .unwrap();
        fractions += usize::from(cpu.fract() != 0.0);
    }
    assert!(fractions > 0, "CPU seconds have no fractions");
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_depth_shows_a_filled_queue() {
    let control_plane = control_plane(options()).await;
    // One worker, and an API server that does not answer: all due objects wait.
    let extra_args = vec!["--concurrency=1".to_owned()];
    let options = FleetOptions {
        extra_args,
        ..FleetOptions::default()
    };
    let fleet = Fleet::start(&control_plane, 1, options).await.unwrap();
    let client = control_plane.client();
    load::create(&control_plane, singles("queue", 1))
        .await
        .unwrap();
    load::wait_all_ready(&client, 1, PATIENCE).await.unwrap();
    let replica = fleet.replica(0).unwrap();
    load::create(&control_plane, singles("full", 120))
        .await
        .unwrap();
    let mut deepest: f64 = 0.0;
    let mut busiest: f64 = 0.0;
    wait_for(
        "the queue to be seen filled and then empty",
        PATIENCE,
        || {
            let depth = async {
                let metrics = replica.metrics().await.unwrap();
                let depth = metrics.sum("workqueue_depth").unwrap();
                let busy = metrics.sum("controller_runtime_active_workers").unwrap();
                (depth, busy)
            };
            let seen = (&mut deepest, &mut busiest);
            let depth =
                tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(depth));
            *seen.0 = seen.0.max(depth.0);
            *seen.1 = seen.1.max(depth.1);
            let met = *seen.0 >= 5.0 && depth.0 == 0.0;
            let why = format!("now {}, deepest {}", depth.0, seen.0);
            async move { Ok(Progress::when(met, (), || why)) }
        },
    )
    .await
    .unwrap();
    assert_eq!(busiest, 1.0, "one worker was allowed");
    load::wait_all_ready(&client, 121, PATIENCE).await.unwrap();
}

#[tokio::test]
async fn idle_fleet_writes_only_heartbeats() {
    let control_plane = control_plane(testbed::ControlPlaneOptions {
        audit: testbed::AuditLevel::Metadata,
        ..options()
    })
    .await;
    let _fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    load::create(&control_plane, singles("quiet", 30))
        .await
        .unwrap();
    load::wait_all_ready(&client, 30, PATIENCE).await.unwrap();
    let log = control_plane.audit_log().unwrap();
    let settled = || async {
        // Idle means: ten seconds with requests for Leases only.
        let mut reader = testbed::audit::Reader::from_end(log.clone())?;
        tokio::time::sleep(Duration::from_secs(10)).await;
        let events = reader.next_events()?;
        let ours = events
            .iter()
            .filter(|e| e.user == testbed::fleet::OPERATOR_USER);
        let others: Vec<String> = ours
            .filter(|e| e.resource != "leases" && e.verb != "watch")
            .map(|e| format!("{} {} {}/{}", e.verb, e.resource, e.namespace, e.name))
            .collect();
        Ok(Progress::when(others.is_empty(), (), || others.join(", ")))
    };
    wait_for("ten quiet seconds", PATIENCE, settled)
        .await
        .unwrap();
    // A field that the API server does not store as applied counts as drift, and would be applied again and again.
    let events = control_plane.audit().unwrap();
    let applied = events.iter().filter(|event| {
        event.user == testbed::fleet::OPERATOR_USER
            && event.full_resource() == "statefulsets"
            && event.is_accepted_write()
    });
    assert_eq!(applied.count(), 30, "writes of 30 StatefulSets");
}
