//! What replicas add where the API server is far away: the same changes by one replica and by several, each behind a
//! proxy that delays its requests.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use chaos::proxy::{Proxy, Rules};
use serde_json::json;
use testbed::fleet::ReplicaOptions;
use testbed::{ControlPlane, Fleet, FleetOptions, load, shards};

use super::goal::{profile, verdict};
use super::{BALANCE_TIMEOUT, NAMESPACES, READY_TIMEOUT, SETTLE, control_plane};

/// The least share of what so many times one replica would do.
const GOAL: f64 = 0.95;
/// From this share of the machine on, the API server and etcd are what limits.
const BUSY: f64 = 0.8;

/// One fleet.
struct Row {
    replicas: usize,
    changes_per_second: f64,
    /// Of the machine, by the API server and etcd.
    busy: f64,
}

pub(crate) async fn latency(
    clusters: usize,
    fleets: &[usize],
    delay: Duration,
    concurrency: usize,
) -> Result<()> {
    if clusters == 0 || fleets.contains(&0) {
        bail!("CLUSTERS={clusters}, FLEETS={fleets:?}: there is nothing to measure");
    }
    println!(
        "{clusters} DatabaseClusters, every spec changed, {} ms added to each request but watches, --concurrency {concurrency} ({})",
        delay.as_millis(),
        profile()?
    );
    println!(
        "{:>8} {:>13} {:>14} {:>30}",
        "replicas", "changes per s", "times one", "API server and etcd, of all cores"
    );
    let mut rows: Vec<Row> = Vec::new();
    for replicas in fleets {
        let row = measure(clusters, *replicas, delay, concurrency).await?;
        let times = rows.iter().find(|row| row.replicas == 1);
        let times = times.map_or_else(
            || "-".to_owned(),
            |one| format!("{:.2}", row.changes_per_second / one.changes_per_second),
        );
        println!(
            "{:>8} {:>13.2} {times:>14} {:>28.0} %",
            row.replicas,
            row.changes_per_second,
            100.0 * row.busy
        );
        rows.push(row);
    }
    goal(&rows);
    Ok(())
}

fn goal(rows: &[Row]) {
    let (Some(one), Some(most)) = (
        rows.iter().find(|row| row.replicas == 1),
        rows.iter().max_by_key(|row| row.replicas),
    ) else {
        return;
    };
    let Ok(replicas) = u32::try_from(most.replicas) else {
        return;
    };
    let share = most.changes_per_second / (one.changes_per_second * f64::from(replicas));
    println!(
        "{replicas} replicas reach {:.0} % of {replicas} times one   goal {:.0} %: {}",
        100.0 * share,
        100.0 * GOAL,
        verdict(share >= GOAL)
    );
    if most.busy >= BUSY {
        println!(
            "  with as many, this machine is what limits, and not the delay: a longer one (DELAY_MS) shows more"
        );
    }
}

async fn measure(
    clusters: usize,
    replicas: usize,
    delay: Duration,
    concurrency: usize,
) -> Result<Row> {
    let control_plane = control_plane().await?;
    let options = FleetOptions {
        extra_args: vec!["--concurrency".to_owned(), concurrency.to_string()],
        ..FleetOptions::default()
    };
    let mut fleet = Fleet::install(&control_plane, options).await?;
    let mut proxies = Vec::new();
    for _ in 0..replicas {
        let proxy = Proxy::start(&control_plane).await?;
        let options = ReplicaOptions {
            endpoint: Some((proxy.url(), proxy.authority())),
            ..ReplicaOptions::default()
        };
        fleet.start_replica_with(options).await?;
        proxies.push(proxy);
    }
    fleet.wait_ready(BALANCE_TIMEOUT).await?;
    shards::wait_balanced(&fleet, BALANCE_TIMEOUT).await?;
    let client = control_plane.client();
    let samples = load::samples(clusters, &NAMESPACES);
    let keys = samples
        .iter()
        .map(|sample| (sample.namespace.clone(), sample.name.clone()))
        .collect();
    load::create(&control_plane, samples).await?;
    load::wait_all_ready(&client, clusters, READY_TIMEOUT).await?;
    tokio::time::sleep(SETTLE).await;
    for proxy in &proxies {
        proxy.set(Rules {
            late: delay,
            ..Rules::default()
        });
    }
    let before = (Instant::now(), server_seconds(&control_plane)?);
    load::patch(
        &client,
        keys,
        json!({"spec": {"resources": {"cpu": "300m"}}}),
    )
    .await?;
    load::wait_all_ready(&client, clusters, READY_TIMEOUT).await?;
    let seconds = before.0.elapsed().as_secs_f64();
    let cores = f64::from(u32::try_from(std::thread::available_parallelism()?.get())?);
    Ok(Row {
        replicas,
        changes_per_second: f64::from(u32::try_from(clusters)?) / seconds,
        busy: (server_seconds(&control_plane)? - before.1) / (seconds * cores),
    })
}

fn server_seconds(control_plane: &ControlPlane) -> Result<f64> {
    let mut seconds = 0.0;
    for name in ["kube-apiserver", "etcd"] {
        seconds += control_plane.component(name)?.process.usage()?.cpu_seconds;
    }
    Ok(seconds)
}
