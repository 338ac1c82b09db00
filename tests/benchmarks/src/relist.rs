//! Memory that the allocator keeps after everything was listed again: for choosing one.

use std::time::Duration;

use anyhow::{Result, bail};
use testbed::{Fleet, FleetOptions, Progress, load, wait_for};

use super::{multiply, start_control_plane};

const NAMESPACES: [&str; 4] = ["one", "two", "three", "four"];
const TIMEOUT: Duration = Duration::from_secs(900);
const RELISTS: usize = 2;
const REST: Duration = Duration::from_secs(5);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Memory of one replica that holds everything, before and after repeated lists, for each program.
pub(crate) async fn relist(clusters: usize, programs: &[std::path::PathBuf]) -> Result<()> {
    if clusters == 0 || programs.is_empty() {
        bail!("no DatabaseClusters or no programs: there is nothing to measure");
    }
    let control_plane = start_control_plane(multiply::options()).await?;
    println!(
        "{clusters} DatabaseClusters with their children, one replica with all shards; RSS in MB"
    );
    println!(
        "{:24} {:>8} {:>10} {:>10} {:>8} {:>8}",
        "program", "empty", "listed", "relisted", "peak", "CPU"
    );
    let mut loaded = false;
    for program in programs {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let options = FleetOptions {
            binary: Some(program.clone()),
            name_prefix: Some(name.to_lowercase()),
            ..FleetOptions::default()
        };
        let mut fleet = Fleet::install(&control_plane, options).await?;
        let mut empty = 0.0;
        if !loaded {
            let index = fleet.start_replica(&[]).await?;
            let samples = load::samples(clusters, &NAMESPACES);
            let models = multiply::models(&control_plane, &samples).await?;
            fleet.replica_mut(index)?.term(STOP_TIMEOUT).await?;
            multiply::copy(&control_plane, &models, &samples).await?;
            loaded = true;
        }
        let index = fleet.start_replicas_at_once(1).await?;
        if let Ok(usage) = fleet.replica(index)?.usage() {
            empty = megabytes(usage.resident_bytes);
        }
        until_lists(&fleet, index, clusters, 0).await?;
        tokio::time::sleep(REST).await;
        let listed = megabytes(fleet.replica(index)?.usage()?.resident_bytes);
        for round in 1..=RELISTS {
            control_plane.restart_api_server(true).await?;
            until_lists(&fleet, index, clusters, round).await?;
            tokio::time::sleep(REST).await;
        }
        let usage = fleet.replica(index)?.usage()?;
        println!(
            "{name:24} {empty:8.1} {listed:10.1} {:10.1} {:8.1} {:6.2} s",
            megabytes(usage.resident_bytes),
            megabytes(usage.peak_resident_bytes),
            usage.cpu_seconds
        );
        fleet.replica_mut(index)?.term(STOP_TIMEOUT).await?;
    }
    Ok(())
}

/// Waits until every source has listed again this many times, and everything was reconciled.
async fn until_lists(
    fleet: &Fleet<'_>,
    index: usize,
    clusters: usize,
    rounds: usize,
) -> Result<()> {
    const WATCHES: usize = 5 * 32;
    wait_for("everything to be listed", TIMEOUT, || async {
        let metrics = fleet.replica(index)?.metrics().await?;
        let lists = metrics.by_label("databasecluster_lists_total", "turn");
        let again = lists.get("again").copied().unwrap_or_default();
        let runs = metrics
            .sum("controller_runtime_reconcile_total")
            .unwrap_or_default();
        let depth = metrics.sum("workqueue_depth").unwrap_or_default();
        #[allow(clippy::cast_precision_loss)]
        let met = again >= (rounds * WATCHES) as f64 && runs >= clusters as f64 && depth == 0.0;
        Ok(Progress::when(met, (), || {
            format!("{again} repeated lists, {runs} runs, {depth} waiting")
        }))
    })
    .await?;
    Ok(())
}

#[allow(clippy::cast_precision_loss)]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
