//! What the fence adds to a write, in CPU of the API server and in time; and how long it admits stale writes.

mod stale;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Service;
use kube::api::{
    Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
};
use kube::{Client, ResourceExt};
use serde_json::{Map, Value, json};
use testbed::fleet::{OPERATOR_NAMESPACE, repository, wait_in_force};
use testbed::statistics::Sorted;
use testbed::{ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, Progress, load, wait_for};

use super::start_control_plane;

const REPLICA: &str = "measured";
const OPERATOR: &str = "the operator";
const NAMESPACE: &str = "measured";
/// Of each: with the fence, and without it.
const ROUNDS: usize = 6;
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
/// After a change of policies, until the API server has compiled them and dropped its caches.
const SETTLE: Duration = Duration::from_secs(3);
/// Bucket 100 of 256.
const BUCKET: usize = 100;
const TABLE: &str = "databasecluster-shards";
/// Of the shard table, in each row.
const TABLE_WRITES: usize = 300;
/// Most CPU of the API server that the fence may add to a write of the operator, in the median of the rounds.
const CPU_MILLIS_MAX: f64 = 0.35;

/// One round: a writer with or without the fence.
struct Round {
    writer: &'static str,
    shards: usize,
    fenced: bool,
    /// Of each write.
    millis: Vec<f64>,
    /// Of the API server, for each write.
    cpu_millis: f64,
}

/// What objects and tokens of this run are about.
struct Subject {
    table: String,
    cluster: String,
}

pub(crate) async fn fence(writes: usize) -> Result<()> {
    if writes < ROUNDS {
        bail!("--writes {writes}: there is nothing to measure; at least {ROUNDS} are needed");
    }
    let control_plane = start_control_plane(ControlPlaneOptions::default()).await?;
    let fleet = Fleet::install(&control_plane, FleetOptions::default()).await?;
    let replica = fleet.client_of_pod(REPLICA).await?;
    let admin = control_plane.client();
    let owner = load::NewCluster {
        namespace: NAMESPACE.to_owned(),
        name: "owner".to_owned(),
        spec: load::spec(1),
    };
    load::create(&control_plane, vec![owner]).await?;
    let clusters = load::clusters_in(admin.clone(), NAMESPACE);
    let cluster = clusters.get("owner").await?.uid().unwrap_or_default();
    let table = tables(&replica)
        .create(&PostParams::default(), &table(32, 0)?)
        .await?;
    let subject = Subject {
        table: table.uid().unwrap_or_default(),
        cluster,
    };
    let mut rounds = Vec::new();
    let mut handovers = Vec::new();
    for (shards, epoch) in [(32, 1), (256, 2 + TABLE_WRITES)] {
        take_all(&replica, shards, epoch).await?;
        for round in 0..2 * ROUNDS {
            let fenced = round % 2 == 0;
            switch(&control_plane, fenced).await?;
            until_settled(&replica, &subject, shards, epoch, fenced).await?;
            for (writer, client) in [(OPERATOR, &replica), ("anybody else", &admin)] {
                let mut object = service(&subject, shards, epoch);
                if writer != OPERATOR {
                    object["metadata"]["name"] = json!("others");
                    object["metadata"]["labels"] = json!({"app": "others"});
                }
                rounds.push(Round {
                    writer,
                    shards,
                    fenced,
                    ..measure(&control_plane, client, object, writes / ROUNDS).await?
                });
            }
        }
        switch(&control_plane, true).await?;
        until_settled(&replica, &subject, shards, epoch, true).await?;
        handovers.push(measure_table(&control_plane, &replica, shards, epoch).await?);
    }
    let dearest = print(&rounds);
    print_table_writes(&handovers);
    switch(&control_plane, true).await?;
    stale::stale(&fleet, &subject.cluster).await?;
    if dearest > CPU_MILLIS_MAX {
        bail!(
            "the fence adds {dearest:.2} ms of CPU of the API server to a write of the operator, and at most \
             {CPU_MILLIS_MAX} ms are allowed"
        );
    }
    Ok(())
}

/// Prints a row for each writer and number of shards; the most that the fence adds to a write of the operator.
fn print(rounds: &[Round]) -> f64 {
    println!(
        "Server-side applies of a Service, one after the other; medians of {ROUNDS} rounds, on and off in turns"
    );
    println!(
        "{:14} {:>7} {:>12} {:>12} {:>13} {:>13} {:>20}",
        "writer",
        "shards",
        "p50 without",
        "p50 with",
        "CPU without",
        "CPU with",
        "CPU of the fence"
    );
    let mut dearest = f64::NEG_INFINITY;
    for shards in [32, 256] {
        for writer in [OPERATOR, "anybody else"] {
            let of = |fenced: bool| -> Vec<&Round> {
                let wanted = |round: &&Round| {
                    (round.writer, round.shards, round.fenced) == (writer, shards, fenced)
                };
                rounds.iter().filter(wanted).collect()
            };
            let (with, without) = (of(true), of(false));
            let time = |rounds: &[&Round]| {
                median(rounds.iter().flat_map(|round| round.millis.iter().copied()))
            };
            let cpu = |rounds: &[&Round]| median(rounds.iter().map(|round| round.cpu_millis));
            let pairs = with.iter().zip(&without);
            let added: Vec<f64> = pairs
                .map(|(with, without)| with.cpu_millis - without.cpu_millis)
                .collect();
            let sorted = Sorted::new(added.iter().copied());
            let of = |percent| sorted.percentile(percent).unwrap_or_default();
            println!(
                "{writer:14} {shards:7} {:9.2} ms {:9.2} ms {:10.2} ms {:10.2} ms {:6.2} ms ({:.2} to {:.2})",
                time(&without),
                time(&with),
                cpu(&without),
                cpu(&with),
                of(50),
                of(0),
                of(100)
            );
            if writer == OPERATOR {
                dearest = dearest.max(of(50));
            }
        }
    }
    println!(
        "CPU is the API server's own, all its threads, for each write. The last column is the median of the pairs of"
    );
    println!("rounds, with the smallest and the largest.");
    dearest
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    Sorted::new(values).percentile(50).unwrap_or_default()
}

pub(crate) fn tables(client: &Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("database.io", "v1", "ShardTable");
    let resource = ApiResource::from_gvk(&kind);
    Api::namespaced_with(client.clone(), OPERATOR_NAMESPACE, &resource)
}

/// A vacant table.
fn table(shards: usize, epoch: usize) -> Result<DynamicObject> {
    let entries: Map<String, Value> = (0..shards)
        .map(|shard| (format!("{shard:03}"), entry(epoch, "")))
        .collect();
    Ok(serde_json::from_value(json!({
        "apiVersion": "database.io/v1", "kind": "ShardTable",
        "metadata": {"name": TABLE}, "spec": {"shards": shards, "entries": entries},
    }))?)
}

fn entry(epoch: usize, holder: &str) -> Value {
    json!({"epoch": epoch, "holder": holder, "incarnation": holder})
}

/// Makes the measured replica the holder of all shards under this epoch, converting the table before if it must be.
async fn take_all(client: &Client, shards: usize, epoch: usize) -> Result<()> {
    let tables = tables(client);
    let now = tables.get(TABLE).await?;
    if now.data["spec"]["shards"] != json!(shards) {
        let mut converted = table(shards, epoch - 1)?;
        converted.metadata = now.metadata;
        tables
            .replace(TABLE, &PostParams::default(), &converted)
            .await?;
    }
    let entries: Map<String, Value> = (0..shards)
        .map(|shard| (format!("{shard:03}"), entry(epoch, REPLICA)))
        .collect();
    let change = json!({"spec": {"shards": shards, "entries": entries}});
    tables
        .patch(TABLE, &PatchParams::default(), &Patch::Merge(change))
        .await?;
    Ok(())
}

fn service(subject: &Subject, shards: usize, epoch: usize) -> Value {
    let Subject { table, cluster } = subject;
    let shard = BUCKET * shards / 256;
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "measured",
            "labels": {"database.io/bucket": BUCKET.to_string()},
            "annotations": {
                "database.io/fencing-token": format!("{table}/{shard:03}/{epoch}/{REPLICA}/{cluster}"),
                "database.io/generation": "1",
            },
            "ownerReferences": [{
                "apiVersion": "database.io/v1", "kind": "DatabaseCluster", "name": "owner",
                "uid": cluster, "controller": true,
            }],
        },
        "spec": {"clusterIP": "None", "ports": [{"port": 1}]},
    })
}

async fn measure(
    control_plane: &ControlPlane,
    client: &Client,
    mut object: Value,
    count: usize,
) -> Result<Round> {
    let server = control_plane.component("kube-apiserver")?.process;
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let params = PatchParams::apply("databasecluster-operator").force();
    let name = object["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let mut millis = Vec::with_capacity(count);
    let before = server.usage()?.cpu_seconds;
    for number in 0..count {
        object["metadata"]["annotations"]["number"] = json!(number.to_string());
        let patch = Patch::Apply(&object);
        let started = Instant::now();
        services.patch(&name, &params, &patch).await?;
        millis.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let used = server.usage()?.cpu_seconds - before;
    #[allow(clippy::cast_precision_loss)]
    let cpu_millis = 1e3 * used / count as f64;
    Ok(Round {
        writer: "",
        shards: 0,
        fenced: false,
        millis,
        cpu_millis,
    })
}

async fn switch(control_plane: &ControlPlane, on: bool) -> Result<()> {
    let path = repository()
        .join("deploy/base/fence.yaml")
        .display()
        .to_string();
    if on {
        let apply = ["apply", "--server-side", "--force-conflicts", "-f", &path];
        control_plane.run_kubectl(&apply).await?;
        wait_in_force(control_plane).await?;
    } else {
        let delete = ["delete", "--ignore-not-found", "-f", &path];
        control_plane.run_kubectl(&delete).await?;
    }
    Ok(())
}

/// Writes of the entry of one shard, as each handover needs one.
async fn measure_table(
    control_plane: &ControlPlane,
    client: &Client,
    shards: usize,
    epoch: usize,
) -> Result<Round> {
    let server = control_plane.component("kube-apiserver")?.process;
    let tables = tables(client);
    let mut millis = Vec::with_capacity(TABLE_WRITES);
    let before = server.usage()?.cpu_seconds;
    for number in 1..TABLE_WRITES {
        let change = json!({"spec": {"entries": {"000": entry(epoch + number, REPLICA)}}});
        let patch = Patch::Merge(change);
        let started = Instant::now();
        tables.patch(TABLE, &PatchParams::default(), &patch).await?;
        millis.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let used = server.usage()?.cpu_seconds - before;
    #[allow(clippy::cast_precision_loss)]
    let cpu_millis = 1e3 * used / millis.len() as f64;
    Ok(Round {
        writer: OPERATOR,
        shards,
        fenced: true,
        millis,
        cpu_millis,
    })
}

fn print_table_writes(rounds: &[Round]) {
    println!("Writes of one entry of the shard table, one after the other");
    println!("{:>7} {:>12} {:>12}", "shards", "p50", "CPU");
    for round in rounds {
        println!(
            "{:7} {:9.2} ms {:9.2} ms",
            round.shards,
            median(round.millis.iter().copied()),
            round.cpu_millis
        );
    }
}

/// Waits until a stale write is rejected, or no longer rejected, and a valid one is admitted.
async fn until_settled(
    client: &Client,
    subject: &Subject,
    shards: usize,
    epoch: usize,
    fenced: bool,
) -> Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    wait_for("the fence to be as asked for", SETTLE_TIMEOUT, || async {
        let mut passed = [false; 2];
        for (passed, epoch) in passed.iter_mut().zip([epoch, epoch + 100]) {
            let mut object = service(subject, shards, epoch);
            object["metadata"]["name"] = json!("probe");
            let object: Service = serde_json::from_value(object)
                .map_err(|error| testbed::Error::Failed(error.to_string()))?;
            *passed = services.create(&params, &object).await.is_ok();
        }
        Ok(Progress::when(passed == [true, !fenced], (), || {
            format!("{passed:?}")
        }))
    })
    .await?;
    tokio::time::sleep(SETTLE).await;
    Ok(())
}
