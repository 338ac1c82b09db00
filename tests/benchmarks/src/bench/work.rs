//! What created and changed DatabaseClusters ask of the API server, request by request, and what it spends on them:
//! for one or more programs of the operator in turns, and for the Go peer.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;
use testbed::audit::Reader;
use testbed::statistics::Sorted;
use testbed::{ControlPlane, Fleet, FleetOptions, load, shards};

use super::PACE;
use super::contender::{Contender, deployed_args};
use super::side::Side;
use crate::goal::{profile, verdict};
use crate::requests::Requests;
use crate::{BALANCE_TIMEOUT, NAMESPACES, READY_TIMEOUT, control_plane};

/// Most requests for a DatabaseCluster that is created, and for a change of its spec.
const REQUESTS_MAX: [(&str, f64); 2] = [("created", 9.0), ("changed", 3.0)];

/// Who is measured.
enum Who<'a> {
    Program(&'a Path),
    Peer,
}

impl Who<'_> {
    fn label(&self) -> String {
        match self {
            Self::Program(path) => {
                let name = path.file_name().unwrap_or_default();
                name.to_string_lossy().into_owned()
            }
            Self::Peer => Side::Go.label().to_owned(),
        }
    }
}

/// What one DatabaseCluster cost in one part of one round.
#[derive(Clone, Copy, Debug)]
struct Cost {
    server_ms: f64,
    own_ms: f64,
    requests: f64,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) clusters: usize,
    pub(crate) replicas: usize,
    pub(crate) rounds: usize,
}

/// Creates `clusters` and changes each, for every program and the peer, `rounds` times in turns.
pub(crate) async fn work(size: Size, peer: bool, programs: &[PathBuf]) -> Result<()> {
    if size.clusters == 0 || size.rounds == 0 || size.replicas == 0 {
        bail!("{size:?}: there is nothing to measure");
    }
    let own = std::env::var_os("OPERATOR_BIN").map(PathBuf::from);
    let programs = match programs {
        [] => vec![own.context("name a program, or set OPERATOR_BIN")?],
        programs => programs.to_vec(),
    };
    let mut all: Vec<Who<'_>> = programs.iter().map(|path| Who::Program(path)).collect();
    if peer {
        all.push(Who::Peer);
    }
    let mut costs: Vec<[Vec<Cost>; 2]> = all.iter().map(|_| Default::default()).collect();
    for round in 1..=size.rounds {
        for (who, costs) in all.iter().zip(&mut costs) {
            eprintln!("round {round} of {}: {} ...", size.rounds, who.label());
            let measured = measure(size, who, round == 1).await;
            let measured = measured.with_context(|| format!("measure {}", who.label()))?;
            for (costs, cost) in costs.iter_mut().zip(measured) {
                eprintln!("  {cost:.2?}");
                costs.push(cost);
            }
        }
    }
    print(size, &all, &costs)
}

fn print(size: Size, all: &[Who<'_>], costs: &[[Vec<Cost>; 2]]) -> Result<()> {
    println!(
        "{} DatabaseClusters, {} replicas, StatefulSets without Pods, {} rounds ({}): median (least to most)\n\n\
         {:8} {:28} {:>26} {:>26} {:>10}",
        size.clusters,
        size.replicas,
        size.rounds,
        profile()?,
        "",
        "",
        "API server's CPU, ms",
        "own CPU, ms",
        "requests"
    );
    for (part, (what, most)) in REQUESTS_MAX.into_iter().enumerate() {
        for (who, costs) in all.iter().zip(costs) {
            let Some(costs) = costs.get(part) else {
                continue;
            };
            let cell = |value: fn(&Cost) -> f64| {
                let sorted = Sorted::new(costs.iter().map(value));
                let of = |percent| sorted.percentile(percent).unwrap_or_default();
                format!("{:.2} ({:.2} to {:.2})", of(50), of(0), of(100))
            };
            let requests = Sorted::new(costs.iter().map(|cost| cost.requests));
            let requests = requests.percentile(50).unwrap_or_default();
            let goal = match who {
                Who::Program(_) => format!("  goal {most}: {}", verdict(requests <= most)),
                Who::Peer => String::new(),
            };
            println!(
                "{what:8} {:28} {:>26} {:>26} {requests:10.2}{goal}",
                who.label(),
                cell(|cost| cost.server_ms),
                cell(|cost| cost.own_ms)
            );
        }
    }
    Ok(())
}

/// One round of one of them: what was created, and what was changed.
async fn measure(size: Size, who: &Who<'_>, show: bool) -> Result<[Cost; 2]> {
    let control_plane = control_plane().await?;
    let contender = match who {
        Who::Peer => {
            let mut peer = Contender::install(&control_plane, Side::Go).await?;
            peer.start(Side::Go.processes()).await?;
            peer
        }
        Who::Program(path) => {
            let options = FleetOptions {
                binary: Some(path.to_path_buf()),
                extra_args: deployed_args(),
                ..FleetOptions::default()
            };
            let fleet = Fleet::start(&control_plane, size.replicas, options).await?;
            shards::wait_balanced(&fleet, BALANCE_TIMEOUT).await?;
            Contender::Operator(fleet)
        }
    };
    let mut part = Part {
        control_plane: &control_plane,
        contender: &contender,
        reader: Reader::from_end(control_plane.audit_log()?)?,
        clusters: size.clusters,
        title: show.then(|| who.label()),
    };
    let client = control_plane.client();
    let samples = load::samples(size.clusters, &NAMESPACES);
    let created = part
        .cost("created", async {
            let ready = load::wait_all_ready(&client, size.clusters, READY_TIMEOUT);
            let (created, ready) = tokio::join!(load::create(&control_plane, samples), ready);
            created?;
            Ok(ready.map(drop)?)
        })
        .await?;
    let keys = load::samples(size.clusters, &NAMESPACES).into_iter();
    let keys = keys.map(|sample| (sample.namespace, sample.name)).collect();
    let changed = part
        .cost("changed", async {
            let spec = json!({"spec": {"resources": {"cpu": "300m"}}});
            load::patch(&client, keys, spec).await?;
            let ready = load::wait_all_ready(&client, size.clusters, READY_TIMEOUT).await;
            Ok(ready.map(drop)?)
        })
        .await?;
    Ok([created, changed])
}

/// What the parts of a round share.
struct Part<'a, 'b> {
    control_plane: &'a ControlPlane,
    contender: &'a Contender<'b>,
    reader: Reader,
    clusters: usize,
    /// Whose requests are shown one by one, if they are.
    title: Option<String>,
}

impl Part<'_, '_> {
    /// What the work, and what follows it, costs for each DatabaseCluster.
    async fn cost(&mut self, what: &str, work: impl Future<Output = Result<()>>) -> Result<Cost> {
        self.reader.next_events()?;
        let server = self.control_plane.component("kube-apiserver")?.process;
        let before = (
            server.usage()?.cpu_seconds,
            self.contender.used()?.cpu_seconds,
        );
        work.await?;
        tokio::time::sleep(PACE.tail).await;
        let after = (
            server.usage()?.cpu_seconds,
            self.contender.used()?.cpu_seconds,
        );
        let mut events = self.reader.next_events()?;
        events.retain(|event| self.contender.is_work(event));
        let count = f64::from(u32::try_from(self.clusters)?);
        if let Some(title) = &self.title {
            println!("{title}: requests for each DatabaseCluster that was {what}");
            println!("{}", Requests::count(&events).table(count, "for each"));
        }
        Ok(Cost {
            server_ms: (after.0 - before.0) * 1e3 / count,
            own_ms: (after.1 - before.1) * 1e3 / count,
            requests: f64::from(u32::try_from(events.len())?) / count,
        })
    }
}
