//! The operator beside a Go operator that does the same job: one after the other in one run, each against a fresh
//! control plane of its own.

mod children;
mod contender;
mod peer;
mod report;
pub(crate) mod work;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::api::{DynamicObject, ListParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use testbed::audit::Reader;
use testbed::{ControlPlane, Progress, load, wait_for};

use contender::{Contender, Side};
use report::{Benchmark, Report};

use super::{NAMESPACES, READY_TIMEOUT, SETTLE, control_plane};

/// Work after the last Ready ends within this time.
const TAIL: Duration = Duration::from_secs(5);
/// How long a contender that has nothing to do is listened to.
const LISTEN: Duration = Duration::from_secs(20);
/// How often the working process is killed in each round.
const KILLS: usize = 3;
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(120);

/// Runs every side `rounds` times, prints a table and writes the same as JSON.
pub(crate) async fn bench(clusters: usize, rounds: usize, json: Option<PathBuf>) -> Result<()> {
    if clusters == 0 || rounds == 0 {
        bail!("CLUSTERS={clusters}, ROUNDS={rounds}: there is nothing to measure");
    }
    let mut report = Report::new(clusters, rounds)?;
    for round in 0..rounds {
        let mut sides = Side::ALL;
        // The first side may find colder caches, or a cooler processor.
        if round % 2 == 1 {
            sides.reverse();
        }
        for side in sides {
            eprintln!("round {} of {rounds}: {} ...", round + 1, side.label());
            measure(side, clusters, &mut report)
                .await
                .with_context(|| format!("measure {}", side.label()))?;
        }
    }
    print!("{}", report.table());
    if let Some(path) = json {
        report.write(&path)?;
        println!("\nAll values of all rounds: {}", path.display());
    }
    Ok(())
}

/// One side, from nothing to the last kill.
async fn measure(side: Side, clusters: usize, report: &mut Report) -> Result<()> {
    let control_plane = control_plane().await?;
    let mut contender = Contender::start(&control_plane, side).await?;
    let mut run = Run {
        control_plane: &control_plane,
        side,
        count: f64::from(u32::try_from(clusters)?),
        reader: Reader::from_end(control_plane.audit_log()?)?,
        report,
    };
    create(&mut run, &contender, clusters).await?;
    check_children(&control_plane, clusters).await?;
    rest(&mut run, &contender).await?;
    change(&mut run, &contender, clusters).await?;
    if side.has_successor() {
        for kill in 0..KILLS {
            take_over(&mut run, &mut contender, kill).await?;
        }
    }
    Ok(())
}

/// What the parts of one measurement share.
struct Run<'a> {
    control_plane: &'a ControlPlane,
    side: Side,
    count: f64,
    reader: Reader,
    report: &'a mut Report,
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

    /// Notes the CPU since then and the requests, each for one cluster.
    fn note_work(
        &mut self,
        before: &Before,
        contender: &Contender<'_>,
        [cpu, server, requests]: [Benchmark; 3],
    ) -> Result<()> {
        let used = contender.used()?.cpu_seconds - before.cpu_seconds;
        let server_used = self.server_seconds()? - before.server_seconds;
        self.note(cpu, used * 1e3 / self.count);
        self.note(server, server_used * 1e3 / self.count);
        let sent = self.sent(contender)?;
        self.note(requests, sent / self.count);
        Ok(())
    }

    fn sent(&mut self, contender: &Contender<'_>) -> Result<f64> {
        let events = self.reader.next_events()?;
        let sent = events.iter().filter(|event| contender.is_work(event));
        Ok(f64::from(u32::try_from(sent.count())?))
    }

    fn note(&mut self, benchmark: Benchmark, value: f64) {
        self.report.note(self.side, benchmark, value);
    }
}

async fn create(run: &mut Run<'_>, contender: &Contender<'_>, clusters: usize) -> Result<()> {
    let before = run.begin(contender)?;
    let client = run.control_plane.client();
    let (created, ready) = tokio::join!(
        load::create(run.control_plane, load::samples(clusters, &NAMESPACES)),
        load::wait_all_ready(&client, clusters, READY_TIMEOUT)
    );
    created?;
    ready?;
    run.note(Benchmark::CreateSeconds, before.at.elapsed().as_secs_f64());
    // What follows the last Ready, such as its event, belongs to the work; many heartbeats do not.
    tokio::time::sleep(TAIL).await;
    let benchmarks = [
        Benchmark::CreateCpu,
        Benchmark::CreateServerCpu,
        Benchmark::CreateRequests,
    ];
    run.note_work(&before, contender, benchmarks)
}

async fn rest(run: &mut Run<'_>, contender: &Contender<'_>) -> Result<()> {
    tokio::time::sleep(SETTLE).await;
    let before = run.begin(contender)?;
    tokio::time::sleep(LISTEN).await;
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

/// Changes the spec of every cluster, and waits until all are Ready again.
async fn change(run: &mut Run<'_>, contender: &Contender<'_>, clusters: usize) -> Result<()> {
    let client = run.control_plane.client();
    let all = load::all_clusters(client.clone());
    let all = all.list(&ListParams::default()).await?.items;
    let keys = all.iter().map(key).collect();
    let before = run.begin(contender)?;
    let spec = json!({"spec": {"resources": {"cpu": "300m"}}});
    load::patch(&client, keys, spec).await?;
    load::wait_all_ready(&client, clusters, READY_TIMEOUT).await?;
    run.note(Benchmark::ChangeSeconds, before.at.elapsed().as_secs_f64());
    tokio::time::sleep(TAIL).await;
    let benchmarks = [
        Benchmark::ChangeCpu,
        Benchmark::ChangeServerCpu,
        Benchmark::ChangeRequests,
    ];
    run.note_work(&before, contender, benchmarks)
}

/// Both sides must have created the same objects, or the results cannot be compared.
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

fn key(object: &DynamicObject) -> load::Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Kills the process that works on a cluster, changes the cluster, and waits until it is Ready again.
async fn take_over(run: &mut Run<'_>, contender: &mut Contender<'_>, kill: usize) -> Result<()> {
    let client = run.control_plane.client();
    let all = load::all_clusters(client.clone());
    let list = all.list(&ListParams::default()).await?.items;
    let object = list.get(kill).context("there is a cluster for each kill")?;
    let (namespace, name) = key(object);
    let uid = object.uid().unwrap_or_default();
    let started = Instant::now();
    contender.kill_worker(&client, &uid).await?;
    let change = json!({"spec": {"resources": {"cpu": format!("{}m", 400 + kill)}}});
    load::patch(&client, vec![(namespace.clone(), name.clone())], change).await?;
    let api = load::clusters_in(client, &namespace);
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
