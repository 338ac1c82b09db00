//! How many writes of a former holder the API server admits, by the time since its shard changed hands.

use std::time::Duration;

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use testbed::{Fleet, Progress, wait_for};

use super::{NAMESPACE, SETTLE_TIMEOUT, TABLE, entry, tables};

const TRIES: usize = 40;
/// Since the reply to the table's write, or to the new holder's write of the object.
const DELAYS_MS: [u64; 7] = [0, 1, 2, 5, 10, 20, 50];
/// Of 256 shards.
const SHARD: &str = "100";

struct Replica {
    name: &'static str,
    client: Client,
}

pub(super) async fn stale(fleet: &Fleet<'_>, cluster: &str) -> Result<()> {
    let mut replicas = Vec::new();
    for name in ["former", "next"] {
        let client = fleet.client_of_pod(name).await?;
        replicas.push(Replica { name, client });
    }
    let [first, second] = replicas.as_slice() else {
        bail!("two replicas are needed");
    };
    let (mut holder, mut successor) = (first, second);
    let found = tables(&holder.client).get(TABLE).await?;
    let table = found.uid().unwrap_or_default();
    let token = |epoch: usize, holder: &str| format!("{table}/{SHARD}/{epoch}/{holder}/{cluster}");
    // Above all that the other figures wrote.
    let mut epoch = 1_000;
    move_to(holder, epoch).await?;
    let mut rows = Vec::new();
    for millis in DELAYS_MS {
        let delay = Duration::from_millis(millis);
        let (mut fresh, mut written) = (0, 0);
        for number in 0..TRIES {
            let name = format!("stale-{millis}-{number}");
            let (old, new) = (token(epoch, holder.name), token(epoch + 1, successor.name));
            // The fence must know the holder before it can be a former one.
            until_written(holder, &object("settled", cluster, &old)).await?;
            move_to(successor, epoch + 1).await?;
            tokio::time::sleep(delay).await;
            fresh += usize::from(write(&holder.client, &object(&name, cluster, &old)).await);
            let name = format!("written-{millis}-{number}");
            until_written(successor, &object(&name, cluster, &new)).await?;
            tokio::time::sleep(delay).await;
            written += usize::from(write(&holder.client, &object(&name, cluster, &old)).await);
            std::mem::swap(&mut holder, &mut successor);
            epoch += 1;
        }
        rows.push((millis, fresh, written));
    }
    println!("Writes of a former holder that the API server admitted, of {TRIES} each");
    println!(
        "{:>12} {:>14} {:>32}",
        "sent after", "fresh objects", "objects the new holder has written"
    );
    for (millis, fresh, written) in &rows {
        println!("{millis:9} ms {fresh:14} {written:32}");
    }
    if rows.iter().any(|(_, _, written)| *written > 0) {
        bail!("a former holder wrote over the new one: the fence's order does not hold");
    }
    Ok(())
}

async fn move_to(replica: &Replica, epoch: usize) -> Result<()> {
    let change = json!({"spec": {"entries": {SHARD: entry(epoch, replica.name)}}});
    let tables = tables(&replica.client);
    tables
        .patch(TABLE, &PatchParams::default(), &Patch::Merge(change))
        .await?;
    Ok(())
}

fn object(name: &str, cluster: &str, token: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "labels": {"database.io/bucket": SHARD},
            "annotations": {"database.io/fencing-token": token},
            "ownerReferences": [{
                "apiVersion": "database.io/v1", "kind": "DatabaseCluster", "name": "owner",
                "uid": cluster, "controller": true,
            }],
        },
    })
}

/// Whether it was admitted: a creation, or a change of what exists.
async fn write(client: &Client, object: &serde_json::Value) -> bool {
    let objects: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let Ok(new) = serde_json::from_value(object.clone()) else {
        return false;
    };
    match objects.create(&PostParams::default(), &new).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let change = Patch::Merge(object);
            let params = PatchParams::default();
            objects.patch(name, &params, &change).await.is_ok()
        }
        Err(_) => false,
    }
}

async fn until_written(replica: &Replica, object: &serde_json::Value) -> Result<()> {
    wait_for("the holder to be admitted", SETTLE_TIMEOUT, || async {
        let admitted = write(&replica.client, object).await;
        Ok(Progress::when(admitted, (), || "it is refused".to_owned()))
    })
    .await?;
    Ok(())
}
