//! Kills one replica of three, again and again, and measures how long its clusters wait for another one.
//!
//! Right after the kill each cluster of the dead replica gets a change of its spec. The time that counts is from the
//! kill to the first write to that cluster by another replica, by the API server's audit log.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use chaos::takeover::Waiting;
use clap::Parser;
use clap::builder::FalseyValueParser;
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;
use testbed::audit::Reader;
use testbed::load::{self, Key};
use testbed::statistics::Sorted;
use testbed::{AuditLevel, ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, shards};

const NAMESPACES: [&str; 3] = ["red", "green", "blue"];
const SETTLE_TIMEOUT: Duration = Duration::from_secs(180);
/// How long, beyond the goal, a write is awaited before the round counts as lost.
const PATIENCE: Duration = Duration::from_secs(60);
const READ_INTERVAL: Duration = Duration::from_millis(100);
const TERM_TIMEOUT: Duration = Duration::from_secs(20);

/// SIGKILL of one of three replicas: how long until its clusters are reconciled by another.
#[derive(Parser)]
struct Arguments {
    /// Rounds; each kills one replica and replaces it.
    #[arg(long, env = "ROUNDS")]
    rounds: Option<usize>,
    /// Fewer rounds and clusters.
    #[arg(long, env = "QUICK", value_parser = FalseyValueParser::new())]
    quick: bool,
    /// DatabaseClusters; by default 300, or 90 when quick.
    #[arg(long, env = "CLUSTERS")]
    clusters: Option<usize>,
    /// The lifetime of a member Lease.
    #[arg(long, default_value_t = 6)]
    lease_seconds: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    chaos::exit_code("sigkill", Box::pin(run(Arguments::parse()))).await
}

async fn run(arguments: Arguments) -> Result<bool> {
    let rounds = arguments
        .rounds
        .unwrap_or(if arguments.quick { 3 } else { 10 });
    let clusters = arguments
        .clusters
        .unwrap_or(if arguments.quick { 90 } else { 300 });
    let goal = Duration::from_secs(arguments.lease_seconds + 1);
    println!(
        "SIGKILL of one of three replicas, {clusters} DatabaseClusters, {rounds} rounds, Leases of {} s",
        arguments.lease_seconds
    );
    let control_plane = ControlPlane::start(ControlPlaneOptions {
        audit: AuditLevel::Metadata,
        // Real Pods would be replaced because of the changes: on a small machine their traffic, not
        // the operator's, would be measured.
        statefulset_stage: true,
        lift_client_limits: true,
        ..ControlPlaneOptions::default()
    })
    .await?;
    let options = FleetOptions {
        extra_args: vec![
            "--lease-duration".into(),
            format!("{}s", arguments.lease_seconds),
        ],
        ..FleetOptions::default()
    };
    let mut fleet = Fleet::start(&control_plane, 3, options).await?;
    load::create(&control_plane, load::samples(clusters, &NAMESPACES)).await?;
    let ready = load::wait_all_ready(&control_plane.client(), clusters, SETTLE_TIMEOUT * 3).await?;
    println!("all Ready after {:.1} s", ready.as_secs_f64());

    let mut all = Vec::new();
    for round in 1..=rounds {
        let seconds = kill_one(&mut fleet, round, goal)
            .await
            .with_context(|| format!("round {round}"))?;
        all.extend(seconds);
    }
    for index in 0..fleet.replicas().len() {
        let replica = fleet.replica_mut(index)?;
        if replica.is_alive() {
            replica.term(TERM_TIMEOUT).await?;
        }
    }
    report(&Sorted::new(all), rounds, goal)
}

/// One round: returns the seconds that each cluster waited.
async fn kill_one(fleet: &mut Fleet<'_>, round: usize, goal: Duration) -> Result<Vec<f64>> {
    let client = fleet.control_plane().client();
    shards::wait_balanced(fleet, SETTLE_TIMEOUT).await?;
    load::wait_all_ready(&client, 1, SETTLE_TIMEOUT).await?;
    let alive: Vec<usize> = (0..fleet.replicas().len())
        .filter(|index| fleet.replicas()[*index].is_alive())
        .collect();
    // Each of the three places in turn, so that the oldest and the newest are hit alike.
    let victim = alive[round % alive.len()];
    let name = fleet.replica(victim)?.name().to_owned();
    let (keys, leases) = held_by(fleet, &name).await?;
    if keys.is_empty() {
        bail!("{name} holds no cluster: there is nothing to take over");
    }
    let mut reader = Reader::from_end(fleet.control_plane().audit_log()?)?;
    let killed_micros = now_micros()?;
    fleet.replica_mut(victim)?.kill().await?;
    // Another value each round, so that each is a change.
    let change = json!({"spec": {"resources": {"cpu": format!("{}m", 250 + round)}}});
    load::patch(&client, keys.clone(), change).await?;

    let mut waiting = Waiting::new(&name, keys, leases);
    let started = tokio::time::Instant::now();
    while !waiting.pending().is_empty() && started.elapsed() < goal + PATIENCE {
        waiting.note(&reader.next_events()?);
        tokio::time::sleep(READ_INTERVAL).await;
    }
    if !waiting.pending().is_empty() {
        let missing: Vec<String> = waiting
            .pending()
            .iter()
            .take(5)
            .map(|(ns, name)| format!("{ns}/{name}"))
            .collect();
        bail!(
            "{} clusters of {name} had no write by another replica within {:?}: {} …",
            waiting.pending().len(),
            started.elapsed(),
            missing.join(", ")
        );
    }
    let seconds = waiting.seconds_since(killed_micros);
    println!(
        "round {round:2}: killed {name}: {}",
        summary(&Sorted::new(seconds.clone()))
    );
    let taken = Sorted::new(waiting.taken_seconds_since(killed_micros));
    println!("          its shards taken:   {}", summary(&taken));
    fleet.delete_pod(&name).await?;
    let fresh = fleet.start_replica(&[]).await?;
    fleet.replica(fresh)?.wait_ready(SETTLE_TIMEOUT).await?;
    Ok(seconds)
}

/// The clusters whose shard Lease names this replica, and the names of these Leases.
async fn held_by(fleet: &Fleet<'_>, holder: &str) -> Result<(Vec<Key>, Vec<String>)> {
    let client = fleet.control_plane().client();
    let held: Vec<_> = shards::list(&client)
        .await?
        .into_iter()
        .filter(|shard| shard.holder == holder)
        .collect();
    let clusters = load::all_clusters(client)
        .list(&ListParams::default())
        .await
        .context("list DatabaseClusters")?;
    let own = clusters.items.iter().filter(|cluster| {
        let uid = cluster.uid().unwrap_or_default();
        held.iter().any(|shard| shard.covers(&uid))
    });
    let keys = own
        .map(|cluster| (cluster.namespace().unwrap_or_default(), cluster.name_any()))
        .collect();
    Ok((keys, held.into_iter().map(|shard| shard.lease).collect()))
}

fn now_micros() -> Result<i64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(i64::try_from(since.as_micros())?)
}

fn summary(sorted: &Sorted) -> String {
    let figure =
        |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.2} s"));
    format!(
        "n {:4}  p50 {}  p99 {}  max {}",
        sorted.count(),
        figure(sorted.percentile(50)),
        figure(sorted.percentile(99)),
        figure(sorted.max())
    )
}

fn report(sorted: &Sorted, rounds: usize, goal: Duration) -> Result<bool> {
    let Some(max) = sorted.max() else {
        bail!("nothing was measured");
    };
    let met = max <= goal.as_secs_f64();
    println!("\n{rounds} kills: {}", summary(sorted));
    println!(
        "goal: at most {:.1} s (the Lease's lifetime + 1 s): {}",
        goal.as_secs_f64(),
        if met { "met" } else { "MISSED" }
    );
    Ok(met)
}
