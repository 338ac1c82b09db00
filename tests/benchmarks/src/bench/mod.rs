//! The operator beside others that do the same job: one after the other in one run, each against a fresh control plane
//! of its own.

mod children;
mod contender;
mod goals;
mod growth;
mod micro;
mod million;
mod page;
mod peer;
mod plot;
mod results;
mod side;
mod table;
pub(crate) mod work;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::json;
use testbed::audit::Reader;
use testbed::{AuditLevel, ControlPlane, ControlPlaneOptions, Progress, load, wait_for};

use contender::Contender;
use results::{Benchmark, Loading, Results, Size};
use side::Side;

pub(crate) use page::{Options as PageOptions, update as update_pages};

use super::goal::{profile, verdict};
use super::{NAMESPACES, READY_TIMEOUT, control_plane, multiply, start_control_plane};

/// From so many clusters on, creating them takes hours: finished ones are copied.
const COPIED_MIN: usize = 5_000;
/// Of more clusters, only so many are changed.
const CHANGES_MAX: usize = 2_000;
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(120);
/// For each cluster, beyond `READY_TIMEOUT`: the slowest side writes a few per second.
const READY_TIMEOUT_EACH: Duration = Duration::from_millis(500);
/// A side that has just started is at rest when it used less than this share of a core for `QUIET`.
const QUIET_CORES: f64 = 0.08;
const QUIET: Duration = Duration::from_secs(4);
const START_TIMEOUT: Duration = Duration::from_secs(600);

/// What is measured, as the command line says.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// DatabaseClusters; several numbers are measured one after the other.
    #[arg(long, env = "CLUSTERS", value_delimiter = ',', default_values_t = [500])]
    clusters: Vec<usize>,
    /// How often each side is measured.
    #[arg(long, env = "ROUNDS", default_value_t = 3)]
    rounds: usize,
    /// Who is measured: all, if not given.
    #[arg(long, env = "SIDES", value_enum, value_delimiter = ',')]
    sides: Vec<Side>,
    /// How the clusters come to be: created, or from 5,000 on copied, if not given.
    #[arg(long, env = "LOADING", value_enum)]
    loading: Option<Loading>,
    /// Where to write all values as JSON, and a plot beside it. What the file has of other numbers of clusters stays, and of other sides of the same commit.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Measures everything once with short pauses and no kills, to test the measurement. The times mean nothing.
    #[arg(long)]
    smoke: bool,
}

impl Options {
    fn sides(&self) -> Vec<Side> {
        match self.sides.is_empty() {
            true => Side::ALL.to_vec(),
            false => self.sides.clone(),
        }
    }
}

/// How long the parts of a measurement take.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Work after the last Ready ends within this time.
    tail: Duration,
    /// A side at rest has done everything that follows the last Ready.
    settle: Duration,
    /// How long a side that has nothing to do is listened to.
    listen: Duration,
    /// How often the working process is killed in each round.
    kills: usize,
}

const PACE: Pace = Pace {
    tail: Duration::from_secs(5),
    settle: super::SETTLE,
    listen: Duration::from_secs(20),
    kills: 3,
};
const SMOKE_PACE: Pace = Pace {
    tail: Duration::from_secs(1),
    settle: Duration::from_secs(1),
    listen: Duration::from_secs(1),
    kills: 0,
};

/// Runs every side so many times for each number of clusters, prints tables and writes the same as JSON.
pub(crate) async fn bench(options: Options) -> Result<()> {
    if options.clusters.contains(&0) || options.clusters.is_empty() || options.rounds == 0 {
        bail!(
            "CLUSTERS={:?}, ROUNDS={}: there is nothing to measure",
            options.clusters,
            options.rounds
        );
    }
    let pace = if options.smoke { SMOKE_PACE } else { PACE };
    for clusters in &options.clusters {
        let copied = *clusters >= COPIED_MIN;
        let automatic = if copied {
            Loading::Copied
        } else {
            Loading::Created
        };
        let mut size = Size {
            clusters: *clusters,
            loading: options.loading.unwrap_or(automatic),
            changes: (*clusters).min(CHANGES_MAX),
            rounds: options.rounds,
            operator: profile()?.to_owned(),
            commit: commit().await,
            cores: std::thread::available_parallelism()?.get(),
            sides: std::collections::BTreeMap::new(),
        };
        rounds(&mut size, &options.sides(), pace).await?;
        print!("{}", table::text(&size));
        for compared in goals::compare(&size) {
            // Counted, for `CHECK=1`.
            verdict(compared.is_met);
        }
        if let Some(path) = &options.json {
            write(path, size)?;
        }
    }
    Ok(())
}

/// Adds a size to the file, and draws the plot again.
fn write(path: &Path, size: Size) -> Result<()> {
    let mut results = Results::read(path)?;
    results.replace(size);
    results.write(path)?;
    let picture = path.with_extension("svg");
    std::fs::write(&picture, plot::draw(&results)?)
        .with_context(|| format!("write {}", picture.display()))?;
    println!(
        "\nAll values of all rounds: {}, drawn in {}",
        path.display(),
        picture.display()
    );
    Ok(())
}

/// The sides in turns: each comes once at each place, so that none always finds the warmest caches.
async fn rounds(size: &mut Size, sides: &[Side], pace: Pace) -> Result<()> {
    for round in 0..size.rounds {
        let mut turn = sides.to_vec();
        turn.rotate_left(round % sides.len());
        for side in turn {
            eprintln!(
                "{} DatabaseClusters, round {} of {}: {} ...",
                size.clusters,
                round + 1,
                size.rounds,
                side.label()
            );
            let measured = match size.loading {
                Loading::Created => created(side, size, pace).await,
                Loading::Copied => copied(side, size, pace).await,
            };
            measured.with_context(|| format!("measure {}", side.label()))?;
        }
    }
    Ok(())
}

/// The commit of the working copy, with a mark when files differ from it.
async fn commit() -> String {
    let mut git = tokio::process::Command::new("git");
    git.args(["describe", "--always", "--dirty", "--exclude", "*"]);
    let output = git.current_dir(testbed::fleet::repository()).output().await;
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_default()
}

/// One side, from nothing to the last kill.
async fn created(side: Side, size: &mut Size, pace: Pace) -> Result<()> {
    let control_plane = control_plane().await?;
    let mut contender = Contender::install(&control_plane, side).await?;
    contender.start(side.processes()).await?;
    let mut run = Run {
        control_plane: &control_plane,
        side,
        pace,
        reader: Reader::from_end(control_plane.audit_log()?)?,
        size,
    };
    create(&mut run, &contender).await?;
    check_children(&control_plane, run.size.clusters).await?;
    after(&mut run, &mut contender).await
}

/// One side on clusters that were finished before it started.
async fn copied(side: Side, size: &mut Size, pace: Pace) -> Result<()> {
    let options = ControlPlaneOptions {
        audit: AuditLevel::Metadata,
        ..multiply::options()
    };
    let control_plane = start_control_plane(options).await?;
    let mut contender = Contender::install(&control_plane, side).await?;
    contender.start(1).await?;
    let samples = load::samples(size.clusters, &NAMESPACES);
    let models = multiply::models(&control_plane, &samples).await?;
    contender.stop().await?;
    multiply::copy(&control_plane, &models, &samples).await?;
    let started = Instant::now();
    contender.start(side.processes()).await?;
    let mut run = Run {
        control_plane: &control_plane,
        side,
        pace,
        reader: Reader::from_end(control_plane.audit_log()?)?,
        size,
    };
    start(&mut run, &contender, started).await?;
    after(&mut run, &mut contender).await
}

/// What follows when all clusters are there.
async fn after(run: &mut Run<'_>, contender: &mut Contender<'_>) -> Result<()> {
    rest(run, contender).await?;
    change(run, contender).await?;
    if run.side.has_successor() {
        for kill in 0..run.pace.kills {
            take_over(run, contender, kill).await?;
        }
    }
    Ok(())
}

/// What the parts of one measurement share.
struct Run<'a> {
    control_plane: &'a ControlPlane,
    side: Side,
    pace: Pace,
    reader: Reader,
    size: &'a mut Size,
}

/// What was used when a part began.
struct Before {
    at: Instant,
    cpu_seconds: f64,
    server_seconds: f64,
}

impl Run<'_> {
    fn begin(&mut self, contender: &Contender<'_>) -> Result<Before> {
        // Earlier events belong to the part before.
        self.reader.next_events()?;
        Ok(Before {
            at: Instant::now(),
            cpu_seconds: contender.used()?.cpu_seconds,
            server_seconds: self.server_seconds()?,
        })
    }

    fn server_seconds(&self) -> Result<f64> {
        let server = self.control_plane.component("kube-apiserver")?;
        Ok(server.process.usage()?.cpu_seconds)
    }

    /// Notes the CPU since then and the requests, each for one of `count` clusters.
    fn note_work(
        &mut self,
        before: &Before,
        contender: &Contender<'_>,
        count: usize,
        [cpu, server, requests]: [Benchmark; 3],
    ) -> Result<()> {
        let count = f64::from(u32::try_from(count)?);
        let used = contender.used()?.cpu_seconds - before.cpu_seconds;
        let server_used = self.server_seconds()? - before.server_seconds;
        self.note(cpu, used * 1e3 / count);
        self.note(server, server_used * 1e3 / count);
        let sent = self.sent(contender)?;
        self.note(requests, sent / count);
        Ok(())
    }

    fn sent(&mut self, contender: &Contender<'_>) -> Result<f64> {
        let events = self.reader.next_events()?;
        let sent = events.iter().filter(|event| contender.is_work(event));
        Ok(f64::from(u32::try_from(sent.count())?))
    }

    fn note(&mut self, benchmark: Benchmark, value: f64) {
        self.size.note(self.side, benchmark, value);
    }
}

async fn create(run: &mut Run<'_>, contender: &Contender<'_>) -> Result<()> {
    let before = run.begin(contender)?;
    let client = run.control_plane.client();
    let clusters = run.size.clusters;
    let (created, ready) = tokio::join!(
        load::create(run.control_plane, load::samples(clusters, &NAMESPACES)),
        load::wait_all_ready(&client, clusters, ready_timeout(clusters))
    );
    created?;
    ready?;
    run.note(Benchmark::CreateSeconds, before.at.elapsed().as_secs_f64());
    // What follows the last Ready, such as its event, belongs to the work; many heartbeats do not.
    tokio::time::sleep(run.pace.tail).await;
    let benchmarks = [
        Benchmark::CreateCpu,
        Benchmark::CreateServerCpu,
        Benchmark::CreateRequests,
    ];
    run.note_work(&before, contender, clusters, benchmarks)
}

fn ready_timeout(clusters: usize) -> Duration {
    let each = READY_TIMEOUT_EACH.saturating_mul(u32::try_from(clusters).unwrap_or(u32::MAX));
    READY_TIMEOUT.saturating_add(each)
}

/// Waits until a side that has just started has seen everything, and nothing is left to do.
async fn start(run: &mut Run<'_>, contender: &Contender<'_>, started: Instant) -> Result<()> {
    let mut last = (Instant::now(), contender.used()?.cpu_seconds);
    loop {
        tokio::time::sleep(QUIET).await;
        let now = (Instant::now(), contender.used()?.cpu_seconds);
        if now.1 - last.1 < QUIET_CORES * (now.0 - last.0).as_secs_f64() {
            break;
        }
        ensure!(
            started.elapsed() < START_TIMEOUT,
            "it is still busy {START_TIMEOUT:?} after its start"
        );
        last = now;
    }
    // The moment from which on it was at rest.
    run.note(Benchmark::StartSeconds, (last.0 - started).as_secs_f64());
    let count = f64::from(u32::try_from(run.size.clusters)?);
    run.note(Benchmark::StartCpu, last.1 * 1e3 / count);
    Ok(())
}

async fn rest(run: &mut Run<'_>, contender: &Contender<'_>) -> Result<()> {
    tokio::time::sleep(run.pace.settle).await;
    let before = run.begin(contender)?;
    tokio::time::sleep(run.pace.listen).await;
    let used = contender.used()?;
    let sent = run.sent(contender)?;
    let seconds = before.at.elapsed().as_secs_f64();
    let cpu_ms = (used.cpu_seconds - before.cpu_seconds) * 1e3;
    run.note(Benchmark::RestCpu, cpu_ms / seconds);
    run.note(Benchmark::RestRequests, sent / seconds);
    #[allow(clippy::cast_precision_loss)]
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    run.note(Benchmark::PeakMemory, megabytes(used.peak_resident_bytes));
    run.note(Benchmark::AllMemory, megabytes(used.resident_bytes));
    Ok(())
}

/// Changes the spec of every cluster, or of as many as a run has the time for, and waits until all are Ready again.
async fn change(run: &mut Run<'_>, contender: &Contender<'_>) -> Result<()> {
    let client = run.control_plane.client();
    let (clusters, changes) = (run.size.clusters, run.size.changes);
    let keys = load::samples(changes, &NAMESPACES).into_iter();
    let keys = keys.map(|sample| (sample.namespace, sample.name)).collect();
    let before = run.begin(contender)?;
    let spec = json!({"spec": {"resources": {"cpu": "300m"}}});
    load::patch(&client, keys, spec).await?;
    load::wait_all_ready(&client, clusters, ready_timeout(clusters)).await?;
    run.note(Benchmark::ChangeSeconds, before.at.elapsed().as_secs_f64());
    tokio::time::sleep(run.pace.tail).await;
    let benchmarks = [
        Benchmark::ChangeCpu,
        Benchmark::ChangeServerCpu,
        Benchmark::ChangeRequests,
    ];
    run.note_work(&before, contender, changes, benchmarks)
}

/// All sides must have created the same objects, or the results cannot be compared.
async fn check_children(control_plane: &ControlPlane, clusters: usize) -> Result<()> {
    let samples = load::samples(clusters, &NAMESPACES);
    let replicas = samples.iter().map(|sample| &sample.spec["replicas"]);
    let of_several = replicas.filter(|n| n.as_u64() >= Some(2)).count();
    let client = control_plane.client();
    let made = [
        (
            "StatefulSets",
            count::<StatefulSet>(&client).await?,
            clusters,
        ),
        ("Services", count::<Service>(&client).await?, 3 * clusters),
        ("ConfigMaps", count::<ConfigMap>(&client).await?, clusters),
        ("Secrets", count::<Secret>(&client).await?, clusters),
        (
            "budgets",
            count::<PodDisruptionBudget>(&client).await?,
            of_several,
        ),
    ];
    for (what, made, wanted) in made {
        ensure!(
            made == wanted,
            "{made} {what} were created for {clusters} DatabaseClusters, not {wanted}: the sides do not do the same job"
        );
    }
    Ok(())
}

/// How many children of this kind there are.
async fn count<K>(client: &kube::Client) -> Result<usize>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let all: Api<K> = Api::all(client.clone());
    let labelled = ListParams::default().labels("app.kubernetes.io/name=postgresql");
    Ok(all.list_metadata(&labelled).await?.items.len())
}

/// Kills the process that works on a cluster, changes the cluster, and waits until it is Ready again.
async fn take_over(run: &mut Run<'_>, contender: &mut Contender<'_>, kill: usize) -> Result<()> {
    let client = run.control_plane.client();
    let sample = load::samples(run.size.clusters, &NAMESPACES)
        .into_iter()
        .nth(kill);
    let sample = sample.context("there is a cluster for each kill")?;
    let (namespace, name) = (sample.namespace, sample.name);
    let api = load::clusters_in(client.clone(), &namespace);
    let uid = api.get(&name).await?.uid().unwrap_or_default();
    let started = Instant::now();
    contender.kill_worker(&client, &uid).await?;
    let change = json!({"spec": {"resources": {"cpu": format!("{}m", 400 + kill)}}});
    load::patch(&client, vec![(namespace.clone(), name.clone())], change).await?;
    let what = format!("{namespace}/{name} to be Ready after a kill");
    wait_for(what, TAKEOVER_TIMEOUT, || async {
        let object = api.get(&name).await;
        let object = object.map_err(|error| testbed::Error::Failed(error.to_string()))?;
        let why_not = load::why_not_ready(&object);
        Ok(Progress::when(why_not.is_none(), (), || {
            why_not.unwrap_or_default()
        }))
    })
    .await?;
    run.note(Benchmark::TakeoverSeconds, started.elapsed().as_secs_f64());
    contender.replace().await
}
