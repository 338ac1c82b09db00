//! The operator's figures: what DatabaseClusters cost, what a fleet at rest does, what the fence adds.

mod bench;
mod cluster;
mod fence;
mod goal;
mod handover;
mod latency;
mod model;
mod multiply;
mod pattern;
mod profile;
mod relist;
mod requests;
mod series;
mod watch;
mod writes;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use testbed::audit::{AuditEvent, Reader};
use testbed::fleet::OPERATOR_USER;
use testbed::process::ProcessUsage;
use testbed::{AuditLevel, ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, load, shards};

use goal::verdict;
use requests::Requests;

const NAMESPACES: [&str; 3] = ["one", "two", "three"];
const REPLICAS: usize = 3;
const BALANCE_TIMEOUT: Duration = Duration::from_secs(120);
const READY_TIMEOUT: Duration = Duration::from_secs(1_200);
/// A fleet at rest has done everything that follows the last Ready.
const SETTLE: Duration = Duration::from_secs(30);
const GOAL_CPU_MS: f64 = 1.5;
const GOAL_MEMORY_BYTES: f64 = 40e6;

/// Measures the operator on a real API server and prints a table.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
    /// Fails when a goal is missed.
    #[arg(long, env = "CHECK", global = true, value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    check: bool,
}

#[derive(Subcommand)]
enum Benchmark {
    /// CPU, memory and requests to bring DatabaseClusters to Ready.
    Scale {
        /// DatabaseClusters.
        #[arg(long, env = "CLUSTERS", default_value_t = 3_000)]
        clusters: usize,
    },
    /// Requests of a fleet that has nothing to do.
    Quiet {
        /// DatabaseClusters.
        #[arg(long, env = "CLUSTERS", default_value_t = 300)]
        clusters: usize,
        /// How long to listen.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// What several replicas cost over one, with the gate on and off.
    Watch {
        /// DatabaseClusters.
        #[arg(long, env = "CLUSTERS", default_value_t = 20_000)]
        clusters: usize,
        /// How many replicas, one fleet after the other.
        #[arg(long, env = "FLEETS", value_delimiter = ',', default_values_t = [1, 2, 3, 5])]
        fleets: Vec<usize>,
        /// The API server's gate, one setting after the other.
        #[arg(long, env = "GATES", value_enum, value_delimiter = ',', default_values_t = [watch::Gate::On, watch::Gate::Off])]
        gates: Vec<watch::Gate>,
        /// Specs changed in each fleet.
        #[arg(long, default_value_t = 1_000)]
        changes: usize,
    },
    /// What several replicas do over one when each request takes longer.
    Latency {
        /// DatabaseClusters.
        #[arg(long, env = "CLUSTERS", default_value_t = 300)]
        clusters: usize,
        /// How many replicas, one fleet after the other.
        #[arg(long, env = "FLEETS", value_delimiter = ',', default_values_t = [1, 5])]
        fleets: Vec<usize>,
        /// What is added to each request that is no watch.
        #[arg(long, env = "DELAY_MS", default_value_t = 20)]
        delay_ms: u64,
        /// Reconciles at once in a replica: with few, the delay is what limits.
        #[arg(long, default_value_t = 1)]
        concurrency: usize,
    },
    /// Memory after everything was listed again, for programs with different allocators.
    Relist {
        /// DatabaseClusters.
        #[arg(long, env = "CLUSTERS", default_value_t = 3_000)]
        clusters: usize,
        /// The programs.
        programs: Vec<std::path::PathBuf>,
    },
    /// CPU time and memory of one replica that creates and changes DatabaseClusters, for programs side by side.
    Profile {
        /// DatabaseClusters.
        #[arg(long, env = "CLUSTERS", default_value_t = 300)]
        clusters: usize,
        /// How often each program is measured.
        #[arg(long, env = "ROUNDS", default_value_t = 1)]
        rounds: usize,
        /// What records a profile.
        #[arg(long, env = "PROFILER", value_enum, default_value_t = profile::Profiler::Perf)]
        profiler: profile::Profiler,
        /// Where to write it.
        #[arg(long, default_value = ".run")]
        folder: std::path::PathBuf,
        /// The programs; none: the operator that was built.
        programs: Vec<std::path::PathBuf>,
    },
    /// How long shards have no work in rolling restarts of all replicas under load.
    Handover {
        /// Rolling restarts.
        #[arg(long, env = "ROUNDS", default_value_t = 7)]
        rounds: usize,
        /// DatabaseClusters.
        #[arg(long, env = "CLUSTERS", default_value_t = 300)]
        clusters: usize,
    },
    /// Shards moved when replicas join, against the least possible.
    Join {
        /// Replicas in the end.
        #[arg(long, default_value_t = 6)]
        replicas: usize,
    },
    /// Requests of a DatabaseCluster until it is Ready, and of a reconcile that finds nothing to do.
    Cluster {
        /// DatabaseClusters.
        #[arg(long, env = "CLUSTERS", default_value_t = 60)]
        clusters: usize,
    },
    /// How many series each replica exports, with few and with many DatabaseClusters.
    Series {
        /// DatabaseClusters.
        #[arg(long, env = "CLUSTERS", default_value_t = 10_000)]
        clusters: usize,
    },
    /// The operator beside others that do the same job.
    Bench(bench::Options),
    /// Takes new results into docs/performance, and writes the pages that show them.
    Docs(bench::PageOptions),
    /// What created and changed DatabaseClusters ask of the API server, and what it spends on them.
    Work {
        /// DatabaseClusters.
        #[arg(long, env = "CLUSTERS", default_value_t = 300)]
        clusters: usize,
        /// Replicas of the operator.
        #[arg(long, env = "REPLICAS", default_value_t = REPLICAS)]
        replicas: usize,
        /// How often each is measured.
        #[arg(long, env = "ROUNDS", default_value_t = 1)]
        rounds: usize,
        /// Measures the Go peer too.
        #[arg(long)]
        peer: bool,
        /// Programs of the operator to compare; by default the one of OPERATOR_BIN.
        programs: Vec<std::path::PathBuf>,
    },
    /// What each request of a reconcile costs the API server, by the way in which it is sent.
    Writes {
        /// Requests of each kind in each round.
        #[arg(long, default_value_t = 60)]
        requests: usize,
    },
    /// What the API server's fence adds to a write.
    Fence {
        /// Writes in each row of the table.
        #[arg(long, default_value_t = 2_000)]
        writes: usize,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let work = async {
        match arguments.benchmark {
            Benchmark::Scale { clusters } => scale(clusters).await,
            Benchmark::Watch {
                clusters,
                fleets,
                gates,
                changes,
            } => watch::watch(clusters, &fleets, &gates, changes).await,
            Benchmark::Latency {
                clusters,
                fleets,
                delay_ms,
                concurrency,
            } => {
                let delay = Duration::from_millis(delay_ms);
                latency::latency(clusters, &fleets, delay, concurrency).await
            }
            Benchmark::Relist { clusters, programs } => relist::relist(clusters, &programs).await,
            Benchmark::Profile {
                clusters,
                rounds,
                profiler,
                folder,
                programs,
            } => profile::profile(clusters, rounds, profiler, &folder, &programs).await,
            Benchmark::Handover { rounds, clusters } => handover::handover(rounds, clusters).await,
            Benchmark::Join { replicas } => handover::join(replicas).await,
            Benchmark::Cluster { clusters } => cluster::cluster(clusters).await,
            Benchmark::Series { clusters } => series::series(clusters).await,
            Benchmark::Work {
                clusters,
                replicas,
                rounds,
                peer,
                programs,
            } => {
                let size = bench::work::Size {
                    clusters,
                    replicas,
                    rounds,
                };
                bench::work::work(size, peer, &programs).await
            }
            Benchmark::Writes { requests } => writes::writes(requests).await,
            Benchmark::Fence { writes } => fence::fence(writes).await,
            Benchmark::Docs(options) => bench::update_pages(&options),
            Benchmark::Bench(options) => bench::bench(options).await,
            Benchmark::Quiet { clusters, seconds } => {
                quiet(clusters, Duration::from_secs(seconds)).await
            }
        }
    };
    let result = tokio::select! {
        result = work => result,
        _ = tokio::signal::ctrl_c() => return ExitCode::from(130),
    };
    match result {
        Ok(()) => {
            if goal::missed() > 0 {
                eprintln!("benchmarks: goals missed: {}", goal::missed());
            }
            ExitCode::from(status(goal::missed(), arguments.check))
        }
        Err(error) => {
            eprintln!("benchmarks: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Of the process: a missed goal is a failure only where that was asked for.
fn status(missed: usize, check: bool) -> u8 {
    u8::from(check && missed > 0)
}

async fn start_control_plane(options: ControlPlaneOptions) -> Result<ControlPlane> {
    ControlPlane::start(options)
        .await
        .context("start the control plane")
}

/// One with an audit log, and without Pods.
async fn control_plane() -> Result<ControlPlane> {
    let options = ControlPlaneOptions {
        audit: AuditLevel::Metadata,
        statefulset_stage: true,
        lift_client_limits: true,
        ..ControlPlaneOptions::default()
    };
    start_control_plane(options).await
}

async fn scale(clusters: usize) -> Result<()> {
    if clusters == 0 {
        bail!("CLUSTERS=0: there is nothing to measure");
    }
    let control_plane = control_plane().await?;
    let fleet = Fleet::start(&control_plane, REPLICAS, FleetOptions::default()).await?;
    shards::wait_balanced(&fleet, BALANCE_TIMEOUT).await?;
    let mut reader = Reader::from_end(control_plane.audit_log()?)?;
    let before = usage(&fleet)?;
    let started = Instant::now();
    let client = control_plane.client();
    let (created, ready) = tokio::join!(
        load::create(&control_plane, load::samples(clusters, &NAMESPACES)),
        load::wait_all_ready(&client, clusters, READY_TIMEOUT)
    );
    created?;
    ready?;
    let wall = started.elapsed();
    let after = usage(&fleet)?;
    let events = own(reader.next_events()?);
    println!(
        "{clusters} DatabaseClusters to Ready, {REPLICAS} replicas, StatefulSets without Pods ({})",
        goal::profile()?
    );
    print_scale(clusters, wall, &before, &after);
    println!("\nAPI requests of the operator for each cluster");
    let count = f64::from(u32::try_from(clusters)?);
    print!("{}", Requests::count(&events).table(count, "per cluster"));
    Ok(())
}

fn print_scale(
    clusters: usize,
    wall: Duration,
    before: &[(String, ProcessUsage)],
    after: &[(String, ProcessUsage)],
) {
    println!(
        "wall time                        {:10.1} s",
        wall.as_secs_f64()
    );
    println!("{:32} {:>12} {:>14}", "replica", "CPU", "peak memory");
    let mut cpu_seconds = 0.0;
    let mut peak = 0.0f64;
    for ((name, before), (_, after)) in before.iter().zip(after) {
        let own = after.cpu_seconds - before.cpu_seconds;
        #[allow(clippy::cast_precision_loss)]
        let memory = after.peak_resident_bytes as f64;
        cpu_seconds += own;
        peak = peak.max(memory);
        println!("{name:32} {own:10.2} s {:11.1} MB", memory / 1e6);
    }
    #[allow(clippy::cast_precision_loss)]
    let cpu_ms = cpu_seconds * 1e3 / clusters as f64;
    println!(
        "CPU for each cluster, all replicas {cpu_ms:8.2} ms   goal {GOAL_CPU_MS} ms: {}",
        verdict(cpu_ms <= GOAL_CPU_MS)
    );
    println!(
        "peak memory of a replica           {:8.1} MB   goal {:.0} MB: {}",
        peak / 1e6,
        GOAL_MEMORY_BYTES / 1e6,
        verdict(peak <= GOAL_MEMORY_BYTES)
    );
}

async fn quiet(clusters: usize, listen: Duration) -> Result<()> {
    let control_plane = control_plane().await?;
    let fleet = Fleet::start(&control_plane, REPLICAS, FleetOptions::default()).await?;
    load::create(&control_plane, load::samples(clusters, &NAMESPACES)).await?;
    load::wait_all_ready(&control_plane.client(), clusters, READY_TIMEOUT).await?;
    shards::wait_balanced(&fleet, BALANCE_TIMEOUT).await?;
    tokio::time::sleep(SETTLE).await;
    let mut reader = Reader::from_end(control_plane.audit_log()?)?;
    let before = usage(&fleet)?;
    tokio::time::sleep(listen).await;
    let after = usage(&fleet)?;
    let events = own(reader.next_events()?);
    println!(
        "A fleet at rest: {clusters} DatabaseClusters Ready, {REPLICAS} replicas, {:.0} s ({})",
        listen.as_secs_f64(),
        goal::profile()?
    );
    let requests = Requests::count(&events);
    print!("{}", requests.table(listen.as_secs_f64(), "per second"));
    let others: Vec<String> = requests.other_than_heartbeats_and_watches();
    println!(
        "goal nothing but heartbeats and watches: {}",
        verdict(others.is_empty())
    );
    for other in others {
        println!("  {other}");
    }
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        let used = after.cpu_seconds - before.cpu_seconds;
        println!(
            "{name:32} at rest: CPU {:6.2} ms, {:3.0} context switches per second, {:5.1} MB",
            used * 1e3 / listen.as_secs_f64(),
            after.sleeps.saturating_sub(before.sleeps) as f64 / listen.as_secs_f64(),
            after.resident_bytes as f64 / 1e6
        );
    }
    Ok(())
}

fn own(events: Vec<AuditEvent>) -> Vec<AuditEvent> {
    events
        .into_iter()
        .filter(|event| event.user == OPERATOR_USER)
        .collect()
}

fn usage(fleet: &Fleet<'_>) -> Result<Vec<(String, ProcessUsage)>> {
    let one = |replica: &testbed::Replica| {
        let usage = replica
            .usage()
            .with_context(|| format!("{}:\n{}", replica.name(), replica.log_tail()))?;
        Ok((replica.name().to_owned(), usage))
    };
    fleet.replicas().iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn missed_goals_fail_only_when_asked_to() {
        let check = |arguments: &[&str]| {
            let program = ["benchmarks"].iter().chain(arguments);
            Arguments::try_parse_from(program).unwrap().check
        };
        assert_eq!(status(3, check(&["join"])), 0);
        assert_eq!(status(3, check(&["join", "--check"])), 1);
        assert_eq!(status(0, check(&["--check", "join"])), 0);
    }
}
