//! What it costs to see everything: the same objects, watched by one replica or by several, filtered
//! by the API server or by the replicas.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kube::Client;
use serde_json::json;
use testbed::metrics::Metrics;
use testbed::{
    ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, Progress, load, shards, wait_for,
};

use super::goal::{profile, verdict};
use super::{multiply, start_control_plane};

const NAMESPACES: [&str; 4] = ["one", "two", "three", "four"];
const TIMEOUT: Duration = Duration::from_secs(300);
/// What follows from a start or a restart has come to rest.
const REST: Duration = Duration::from_secs(8);
/// What only the operator writes here, but for the status of a StatefulSet that changed.
const OURS: [&str; 6] = [
    "databaseclusters",
    "statefulsets",
    "services",
    "configmaps",
    "secrets",
    "poddisruptionbudgets",
];
/// What a fleet may write that finds everything as it should be.
const START_WRITES_MAX: f64 = 10.0;
/// Shares of a single replica's CPU and memory that three in total may add to it.
const GOAL_CPU: f64 = 0.10;
const GOAL_MEMORY: f64 = 0.15;
/// With fewer clusters than these, what each replica takes at its start is most of its memory, and what it takes at rest
/// most of its CPU: memory has a goal of its own, and CPU none.
const FEW_CLUSTERS: usize = 5_000;
const GOAL_MEMORY_FEW: f64 = 0.30;

/// The API server's gate `ShardedListAndWatch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Gate {
    /// The API server filters.
    On,
    /// The replicas filter.
    Off,
}

/// One fleet.
struct Row {
    sharded: bool,
    replicas: usize,
    start_cpu_seconds: f64,
    change_cpu_seconds: f64,
    memory: Vec<f64>,
    peak: Vec<f64>,
    bytes: Vec<f64>,
    server: Server,
    /// What was written before anything was changed, by verb and resource.
    start_writes: BTreeMap<String, f64>,
    first_seconds: Vec<f64>,
    strange: usize,
}

impl Row {
    fn written(&self) -> f64 {
        self.start_writes
            .values()
            .fold(0.0, |sum, number| sum + number)
    }
}

/// The API server's own counters, of DatabaseClusters.
#[derive(Clone, Default)]
struct Server {
    sent: f64,
    filtered: f64,
    /// Writes of DatabaseClusters and their children, by verb and resource.
    writes: BTreeMap<String, f64>,
}

impl Server {
    fn since(&self, before: &Self) -> Self {
        let of = |kind: &String| before.writes.get(kind).copied().unwrap_or_default();
        let writes = self
            .writes
            .iter()
            .map(|(kind, now)| (kind.clone(), now - of(kind)));
        Self {
            sent: self.sent - before.sent,
            filtered: self.filtered - before.filtered,
            writes: writes.filter(|(_, number)| *number > 0.0).collect(),
        }
    }
}

pub(crate) async fn watch(
    clusters: usize,
    replicas: &[usize],
    gates: &[Gate],
    changes: usize,
) -> Result<()> {
    if clusters == 0 || replicas.contains(&0) {
        bail!("CLUSTERS=0 or no replicas: there is nothing to measure");
    }
    println!(
        "{clusters} DatabaseClusters with their children, copied into etcd once for each gate setting; then only the replicas are restarted ({})",
        profile()?
    );
    let mut rows = Vec::new();
    for gate in gates {
        let sharded = *gate == Gate::On;
        let options = ControlPlaneOptions {
            sharded_list_and_watch: sharded,
            ..multiply::options()
        };
        let control_plane = start_control_plane(options).await?;
        let mut fleet = Fleet::install(&control_plane, FleetOptions::default()).await?;
        let begun = Instant::now();
        load_all(&control_plane, &mut fleet, clusters).await?;
        eprintln!(
            "  gate {}: loaded in {:.0} s",
            on(sharded),
            begun.elapsed().as_secs_f64()
        );
        for count in replicas {
            let row = measure(
                &control_plane,
                &mut fleet,
                (sharded, *count),
                (clusters, changes),
            );
            rows.push(row.await?);
            let done = rows.len() - 1;
            eprintln!("  {}", line(&rows[done], &rows));
        }
    }
    print(&rows, clusters, changes);
    Ok(())
}

async fn load_all(
    control_plane: &ControlPlane,
    fleet: &mut Fleet<'_>,
    clusters: usize,
) -> Result<()> {
    fleet.start_replica(&[]).await?;
    fleet.wait_ready(TIMEOUT).await?;
    let samples = load::samples(clusters, &NAMESPACES);
    let models = multiply::models(control_plane, &samples).await?;
    stop(fleet).await?;
    multiply::copy(control_plane, &models, &samples).await
}

async fn stop(fleet: &mut Fleet<'_>) -> Result<()> {
    for index in 0..fleet.replicas().len() {
        if fleet.replica(index)?.is_alive() {
            fleet.replica_mut(index)?.term(TIMEOUT).await?;
        }
    }
    Ok(())
}

async fn measure(
    control_plane: &ControlPlane,
    fleet: &mut Fleet<'_>,
    (sharded, count): (bool, usize),
    (clusters, changes): (usize, usize),
) -> Result<Row> {
    let client = control_plane.client();
    let before = server(&client).await?;
    let first = fleet.start_replicas_at_once(count).await?;
    until_reconciled(fleet, clusters).await?;
    shards::wait_balanced(fleet, TIMEOUT).await?;
    tokio::time::sleep(REST).await;
    let started_cpu = cpu(fleet, first)?;
    let start_writes = server(&client).await?.since(&before).writes;
    let (mut memory, mut peak) = (Vec::new(), Vec::new());
    for replica in fleet.alive() {
        let usage = replica.usage()?;
        memory.push(float(usage.resident_bytes));
        peak.push(float(usage.peak_resident_bytes));
    }
    let keys = load::samples(changes.min(clusters), &NAMESPACES).into_iter();
    let keys = keys.map(|sample| (sample.namespace, sample.name)).collect();
    let cpu_request = format!("{}m", 200 + 10 * count + usize::from(sharded));
    let change = json!({"spec": {"resources": {"cpu": cpu_request}}});
    load::patch(&client, keys, change).await?;
    load::wait_all_ready(&client, clusters, TIMEOUT).await?;
    tokio::time::sleep(REST).await;
    let after = server(&client).await?;
    let mut row = Row {
        sharded,
        replicas: count,
        start_cpu_seconds: started_cpu,
        change_cpu_seconds: cpu(fleet, first)? - started_cpu,
        memory,
        peak,
        bytes: Vec::new(),
        server: after.since(&before),
        start_writes,
        first_seconds: Vec::new(),
        strange: 0,
    };
    for replica in fleet.alive() {
        let metrics = replica.metrics().await?;
        let sum = |name: &str| metrics.sum(name).unwrap_or_default();
        row.bytes.push(sum("databasecluster_received_bytes_total"));
        row.first_seconds.push(
            sum("databasecluster_shard_first_reconcile_seconds_sum")
                / sum("databasecluster_shard_first_reconcile_seconds_count").max(1.0),
        );
        let modes = metrics.by_label("databasecluster_watch_mode", "mode");
        let expected = if sharded { "sharded" } else { "filtered" };
        row.strange += usize::from(modes.get(expected) != Some(&1.0));
    }
    stop(fleet).await?;
    Ok(row)
}

/// Every object has been reconciled once by its holder.
async fn until_reconciled(fleet: &Fleet<'_>, clusters: usize) -> Result<()> {
    wait_for("every object to be reconciled once", TIMEOUT, || async {
        let (mut runs, mut depth) = (0.0, 0.0);
        for replica in fleet.alive() {
            let metrics = replica.metrics().await?;
            runs += metrics
                .sum("controller_runtime_reconcile_total")
                .unwrap_or_default();
            depth += metrics.sum("workqueue_depth").unwrap_or_default();
        }
        let met = runs >= float(clusters as u64) && depth == 0.0;
        Ok(Progress::when(met, (), || {
            format!("{runs} runs, {depth} waiting")
        }))
    })
    .await?;
    Ok(())
}

fn cpu(fleet: &Fleet<'_>, first: usize) -> Result<f64> {
    let own = fleet.replicas().iter().skip(first);
    let mut seconds = 0.0;
    for replica in own {
        seconds += replica.usage()?.cpu_seconds;
    }
    Ok(seconds)
}

async fn server(client: &Client) -> Result<Server> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let metrics = Metrics::parse(&client.request_text(request).await?);
    let of = |name: &str| -> f64 {
        let ours = metrics.of(name).filter(|sample| {
            let mut labels = sample.labels.values();
            labels.any(|value| {
                value.eq_ignore_ascii_case("databaseclusters") || value == "DatabaseCluster"
            })
        });
        ours.map(|sample| sample.value).sum()
    };
    let mut writes = BTreeMap::new();
    for sample in metrics.of("apiserver_request_total") {
        let label = |name: &str| sample.labels.get(name).map_or("", String::as_str);
        let reads = ["GET", "LIST", "WATCH"].contains(&label("verb"));
        if !reads && label("dry_run").is_empty() && OURS.contains(&label("resource")) {
            let kind = ["verb", "resource", "subresource"].map(label).join(" ");
            *writes.entry(kind.trim_end().to_owned()).or_default() += sample.value;
        }
    }
    Ok(Server {
        sent: of("apiserver_watch_events_total"),
        filtered: of("apiserver_watch_filtered_events_total"),
        writes,
    })
}

#[allow(clippy::cast_precision_loss)]
fn float(value: u64) -> f64 {
    value as f64
}

fn on(sharded: bool) -> &'static str {
    if sharded { "on" } else { "off" }
}

fn print(rows: &[Row], clusters: usize, changes: usize) {
    println!(
        "CPU: of all replicas, from their start until everything was reconciled, and for {changes} changes of a spec brought to Ready"
    );
    println!(
        "{:>4} {:>3} {:>9} {:>9} {:>8} {:>10} {:>12} {:>13} {:>13} {:>9} {:>9} {:>8} {:>7}",
        "gate",
        "R",
        "CPU start",
        "changes",
        "to R=1",
        "RSS, sum",
        "to R=1",
        "RSS, each",
        "peak, each",
        "MB, each",
        "sent",
        "filtered",
        "written"
    );
    for row in rows {
        println!("{}", line(row, rows));
        if row.strange > 0 {
            println!(
                "     {} replicas watched in another way than the gate allows",
                row.strange
            );
        }
    }
    println!("From taking a shard to its first reconcile, mean of each replica, in ms:");
    for row in rows {
        println!(
            "  gate {:3} R={} {}",
            on(row.sharded),
            row.replicas,
            range(&row.first_seconds, 1e-3)
        );
    }
    let quiet = rows.iter().all(|row| row.written() <= START_WRITES_MAX);
    println!(
        "a fleet that starts on finished clusters writes nothing (at most {START_WRITES_MAX}): {}",
        verdict(quiet)
    );
    for row in rows.iter().filter(|row| row.written() > START_WRITES_MAX) {
        println!(
            "  written with {} replicas: {:?}",
            row.replicas, row.start_writes
        );
    }
    goal(rows, clusters);
}

/// A fleet's line in the table.
fn line(row: &Row, rows: &[Row]) -> String {
    let mut singles = rows.iter().filter(|one| one.sharded == row.sharded);
    let single = singles.find(|one| one.replicas == 1);
    let total = |row: &Row| row.start_cpu_seconds + row.change_cpu_seconds;
    let sum = |values: &[f64]| values.iter().sum::<f64>();
    let relative = |of: &dyn Fn(&Row) -> f64| {
        single.map_or("-".to_owned(), |one| {
            format!("{:+.0} %", 100.0 * (of(row) / of(one) - 1.0))
        })
    };
    format!(
        "{:>4} {:>3} {:>7.2} s {:>7.2} s {:>8} {:>7.1} MB {:>12} {:>13} {:>13} {:>9} {:>9} {:>8} {:>7}",
        on(row.sharded),
        row.replicas,
        row.start_cpu_seconds,
        row.change_cpu_seconds,
        relative(&total),
        sum(&row.memory) / 1e6,
        relative(&|row| sum(&row.memory)),
        range(&row.memory, 1e6),
        range(&row.peak, 1e6),
        range(&row.bytes, 1e6),
        row.server.sent,
        row.server.filtered,
        row.written(),
    )
}

fn range(values: &[f64], unit: f64) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min) / unit;
    let most = values.iter().copied().fold(0.0, f64::max) / unit;
    format!("{least:.0}-{most:.0}")
}

/// What three replicas may add to one, by CPU and by memory.
fn goals(clusters: usize) -> (Option<f64>, f64) {
    match clusters < FEW_CLUSTERS {
        true => (None, GOAL_MEMORY_FEW),
        false => (Some(GOAL_CPU), GOAL_MEMORY),
    }
}

fn goal(rows: &[Row], clusters: usize) {
    let find = |count| rows.iter().find(|row| row.sharded && row.replicas == count);
    let (Some(one), Some(three)) = (find(1), find(3)) else {
        println!("goals need FLEETS with 1 and 3 and GATES with on: nothing is compared");
        return;
    };
    let total = |row: &Row| row.start_cpu_seconds + row.change_cpu_seconds;
    let memory = |row: &Row| row.memory.iter().sum::<f64>();
    let (cpu_goal, memory_goal) = goals(clusters);
    for (what, added, goal) in [
        ("CPU", total(three) / total(one) - 1.0, cpu_goal),
        (
            "memory",
            memory(three) / memory(one) - 1.0,
            Some(memory_goal),
        ),
    ] {
        let verdict = match goal {
            Some(goal) => format!("goal {:+.0} %: {}", 100.0 * goal, verdict(added <= goal)),
            None => format!("no goal below {FEW_CLUSTERS} clusters"),
        };
        println!(
            "three replicas in total over one, gate on, {clusters} clusters, {what}: {:+.1} %   {verdict}",
            100.0 * added
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_clusters_have_a_goal_for_memory_only() {
        assert_eq!(goals(600), (None, 0.30));
        assert_eq!(goals(20_000), (Some(0.10), 0.15));
    }
}
