//! What the fence adds to a write: the same writes with and without it, in turns.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use testbed::fleet::{OPERATOR_NAMESPACE, repository, wait_in_force};
use testbed::metrics::Metrics;
use testbed::statistics::Sorted;
use testbed::{ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, Progress, load, wait_for};

use super::start_control_plane;

const REPLICA: &str = "measured";
const OPERATOR: &str = "the operator";
const NAMESPACE: &str = "measured";
const ROUNDS: usize = 4;
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bucket 100 of 256.
const BUCKET: usize = 100;

/// Who writes, with how many shard Leases, with or without the fence.
struct Row {
    writer: &'static str,
    shards: usize,
    fenced: bool,
    millis: Vec<f64>,
    admission: Admission,
}

/// The API server's own time in its plugin for such policies.
#[derive(Clone, Copy, Default)]
struct Admission {
    seconds: f64,
    count: f64,
}

pub(crate) async fn fence(writes: usize) -> Result<()> {
    if writes == 0 {
        bail!("--writes 0: there is nothing to measure");
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
    let uid = load::clusters_in(admin.clone(), NAMESPACE)
        .get("owner")
        .await?;
    let uid = uid.uid().unwrap_or_default();
    let mut rows = Vec::new();
    for shards in [32, 256] {
        set_leases(&admin, shards).await?;
        for round in 0..2 * ROUNDS {
            let fenced = round % 2 == 0;
            switch(&control_plane, fenced).await?;
            until_settled(&replica, &uid, shards, fenced).await?;
            for (writer, client) in [(OPERATOR, &replica), ("anybody else", &admin)] {
                let mut object = service(&uid, shards, 0);
                if writer != OPERATOR {
                    object["metadata"]["name"] = json!("others");
                    object["metadata"]["labels"] = json!({"app": "others"});
                }
                let before = admission(&admin).await?;
                let millis = write(client, object, writes / ROUNDS + 1).await?;
                let after = admission(&admin).await?;
                add(
                    &mut rows,
                    Row {
                        writer,
                        shards,
                        fenced,
                        millis,
                        admission: Admission {
                            seconds: after.seconds - before.seconds,
                            count: after.count - before.count,
                        },
                    },
                );
            }
        }
    }
    print(rows, writes);
    Ok(())
}

fn add(rows: &mut Vec<Row>, row: Row) {
    let same = |known: &&mut Row| {
        (known.writer, known.shards, known.fenced) == (row.writer, row.shards, row.fenced)
    };
    match rows.iter_mut().find(same) {
        Some(known) => {
            known.millis.extend(row.millis);
            known.admission.seconds += row.admission.seconds;
            known.admission.count += row.admission.count;
        }
        None => rows.push(row),
    }
}

fn print(rows: Vec<Row>, writes: usize) {
    println!("Server-side applies of a Service, one after the other, about {writes} in each row");
    println!(
        "{:14} {:>7} {:>8} {:>9} {:>9} {:>22}",
        "writer", "shards", "fence", "p50", "p99", "server's own mean"
    );
    for row in rows {
        let sorted = Sorted::new(row.millis);
        let of = |percent| sorted.percentile(percent).unwrap_or_default();
        let mean_micros = 1e6 * row.admission.seconds / row.admission.count.max(1.0);
        println!(
            "{:14} {:7} {:>8} {:6.2} ms {:6.2} ms {:19.0} us",
            row.writer,
            row.shards,
            if row.fenced { "on" } else { "off" },
            of(50),
            of(99),
            mean_micros
        );
    }
    println!("The server's mean is the time that it spends in the plugin for all such policies.");
}

/// Makes the shard Leases such that the measured replica holds all.
async fn set_leases(client: &Client, shards: usize) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    for shard in 0..shards {
        let name = format!("databasecluster-shard-{shard:03}");
        let width = 256 / shards;
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {
                "name": name,
                "labels": {
                    "app.kubernetes.io/name": "databasecluster-operator",
                    "database.io/role": "shard",
                },
                "annotations": {
                    "database.io/shards": shards.to_string(),
                    "database.io/buckets": format!("{}-{}", shard * width, (shard + 1) * width - 1),
                    "database.io/incarnation": "1",
                },
            },
            "spec": {"holderIdentity": REPLICA, "leaseTransitions": shards},
        });
        let params = PatchParams::apply("figures").force();
        leases.patch(&name, &params, &Patch::Apply(&lease)).await?;
    }
    Ok(())
}

fn service(uid: &str, shards: usize, number: usize) -> Value {
    let shard = BUCKET * shards / 256;
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "measured",
            "labels": {"database.io/bucket": BUCKET.to_string()},
            "annotations": {
                "database.io/stamp": format!("databasecluster-shard-{shard:03}/{shards}/{REPLICA}"),
                "database.io/generation": "1",
                "number": number.to_string(),
            },
            "ownerReferences": [{
                "apiVersion": "database.io/v1", "kind": "DatabaseCluster", "name": "owner",
                "uid": uid, "controller": true,
            }],
        },
        "spec": {"clusterIP": "None", "ports": [{"port": 1}]},
    })
}

async fn write(client: &Client, mut object: Value, count: usize) -> Result<Vec<f64>> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let params = PatchParams::apply("databasecluster-operator").force();
    let name = object["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let mut millis = Vec::with_capacity(count);
    for number in 0..count {
        object["metadata"]["annotations"]["number"] = json!(number.to_string());
        let patch = Patch::Apply(&object);
        let started = Instant::now();
        services.patch(&name, &params, &patch).await?;
        millis.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(millis)
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

/// Waits until a stale write is refused, or is not any more, and a right one is let through.
async fn until_settled(client: &Client, uid: &str, shards: usize, fenced: bool) -> Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    wait_for("the fence to be as asked for", SETTLE_TIMEOUT, || async {
        let mut right = service(uid, shards, 0);
        right["metadata"]["name"] = json!("probe");
        let mut stale = right.clone();
        stale["metadata"]["annotations"]["database.io/stamp"] =
            json!("databasecluster-shard-000/1/x");
        let mut passed = [false; 2];
        for (passed, object) in passed.iter_mut().zip([right, stale]) {
            let object: Service = serde_json::from_value(object)
                .map_err(|error| testbed::Error::Failed(error.to_string()))?;
            *passed = services.create(&params, &object).await.is_ok();
        }
        Ok(Progress::when(passed == [true, !fenced], (), || {
            format!("{passed:?}")
        }))
    })
    .await?;
    Ok(())
}

async fn admission(client: &Client) -> Result<Admission> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let metrics = Metrics::parse(&client.request_text(request).await?);
    let sum = |name: &str| -> f64 {
        let policies = metrics.of(name).filter(|sample| {
            let is =
                |label: &str, value: &str| sample.labels.get(label).is_some_and(|l| l == value);
            is("name", "ValidatingAdmissionPolicy") && is("operation", "UPDATE")
        });
        policies.map(|sample| sample.value).sum()
    };
    Ok(Admission {
        seconds: sum("apiserver_admission_controller_admission_duration_seconds_sum"),
        count: sum("apiserver_admission_controller_admission_duration_seconds_count"),
    })
}
