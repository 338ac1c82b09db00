//! How many series a replica exports, with few DatabaseClusters and with many.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use testbed::{Fleet, FleetOptions, load, shards};

use super::goal::{profile, verdict};
use super::{BALANCE_TIMEOUT, NAMESPACES, READY_TIMEOUT, REPLICAS, multiply, start_control_plane};

/// DatabaseClusters at the first count; enough for every shard to have some.
const FEW: usize = 100;
/// So many of those that were copied are changed: what is done to them shows in the series, too.
const CHANGED: usize = 500;
const SETTLE: Duration = Duration::from_secs(5);

pub(crate) async fn series(clusters: usize) -> Result<()> {
    let control_plane = start_control_plane(multiply::options()).await?;
    let fleet = Fleet::start(&control_plane, REPLICAS, FleetOptions::default()).await?;
    shards::wait_balanced(&fleet, BALANCE_TIMEOUT).await?;
    println!(
        "Series that each of {REPLICAS} replicas exports ({})",
        profile()?
    );
    let client = control_plane.client();
    let samples = load::samples(clusters.max(FEW), &NAMESPACES);
    let mut counts = Vec::new();
    for (from, to) in [(0, 0), (0, FEW), (FEW, samples.len())] {
        let some = &samples[from..to];
        if to <= FEW {
            load::create(&control_plane, some.to_vec()).await?;
        } else {
            let models = multiply::models(&control_plane, some).await?;
            multiply::copy(&control_plane, &models, some).await?;
            let keys = some.iter().take(CHANGED);
            let keys = keys.map(|one| (one.namespace.clone(), one.name.clone()));
            let change = json!({"spec": {"resources": {"cpu": "300m"}}});
            load::patch(&client, keys.collect(), change).await?;
        }
        if to > 0 {
            load::wait_all_ready(&client, to, READY_TIMEOUT).await?;
        }
        // Figures of slow things are taken every half second.
        tokio::time::sleep(SETTLE).await;
        let counted = count(&fleet).await?;
        println!("{to:>8} DatabaseClusters: {counted:?}");
        counts.push(counted);
    }
    let most = |at: usize| counts.get(at).and_then(|c| c.iter().max()).copied();
    let (few, many) = (most(1).unwrap_or(0), most(2).unwrap_or(0));
    // Answers and causes that were not met before may still come, each once.
    let bounded = many <= few + few / 5;
    println!(
        "bounded, whatever the number of DatabaseClusters: {}",
        verdict(bounded)
    );
    Ok(())
}

async fn count(fleet: &Fleet<'_>) -> Result<Vec<usize>> {
    let mut counts = Vec::new();
    for replica in fleet.replicas() {
        let metrics = replica.metrics().await.context("ask for the metrics")?;
        counts.push(metrics.samples().len());
    }
    Ok(counts)
}
