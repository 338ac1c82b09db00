//! Faults by users with administrator rights: Leases edited, rights revoked, the CRD deleted, fields overwritten.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use testbed::fleet::OPERATOR_NAMESPACE;
use testbed::{Progress, shards, wait_for};
use tokio_util::sync::CancellationToken;

use super::{Active, Undo};
use crate::environment::Environment;
use crate::evidence::{Injected, now_micros};
use crate::scenario::{LeaseEdit, Who};
use crate::users;

const MEDDLER: &str = "a-meddler";
const CRD: &str = "databaseclusters.database.io";
const GONE_TIMEOUT: Duration = Duration::from_secs(120);

pub(super) async fn edit_lease(
    environment: &mut Environment<'_>,
    active: &mut Active,
    edit: LeaseEdit,
) -> Result<()> {
    let client = environment.control_plane.client();
    let leases: Api<Lease> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    let all = shards::list(&client).await?;
    if all.is_empty() {
        bail!("there is no shard Lease to edit");
    }
    let shard = all[environment.rng.usize(..all.len())].clone();
    let params = PatchParams::default();
    active.injected.from = now_micros();
    active.injected.what = match edit {
        LeaseEdit::DeleteShard => {
            leases
                .delete(&shard.lease, &DeleteParams::default())
                .await?;
            format!("{} is deleted", shard.lease)
        }
        LeaseEdit::DeleteAllShards => {
            for shard in &all {
                leases
                    .delete(&shard.lease, &DeleteParams::default())
                    .await?;
            }
            active.injected.bites = all.len() as u64;
            format!("all {} shard Leases are deleted", all.len())
        }
        LeaseEdit::DeleteMember => {
            let chosen = environment.choose(Who::ShardLeader).await?;
            let pod = environment.names(&chosen).join("");
            leases
                .delete(
                    &format!("databasecluster-member-{pod}"),
                    &DeleteParams::default(),
                )
                .await?;
            format!("the member Lease of {pod} is deleted")
        }
        LeaseEdit::DeleteLeader => {
            leases
                .delete("databasecluster-leader", &DeleteParams::default())
                .await?;
            "the fleet leader's Lease is deleted".to_owned()
        }
        LeaseEdit::Vacate => {
            let change = json!({"spec": {"holderIdentity": ""}});
            leases
                .patch(&shard.lease, &params, &Patch::Merge(&change))
                .await?;
            format!("{} is emptied", shard.lease)
        }
        LeaseEdit::Usurp => {
            let change = json!({
                "metadata": {"annotations": {"database.io/incarnation": "synthetic"}},
                "spec": {"holderIdentity": "nobody", "leaseTransitions": shard.epoch + 1},
            });
            leases
                .patch(&shard.lease, &params, &Patch::Merge(&change))
                .await?;
            format!("{} is given to a replica that does not exist", shard.lease)
        }
    };
    active.injected.recover_from = Some(now_micros());
    Ok(())
}

pub(super) async fn take_rights(
    environment: &mut Environment<'_>,
    active: &mut Active,
) -> Result<()> {
    active.injected.what = "the operator's rights are revoked".to_owned();
    active.injected.from = now_micros();
    for binding in ["clusterrolebinding", "rolebinding"] {
        let words = [
            "delete",
            binding,
            "-n",
            OPERATOR_NAMESPACE,
            "databasecluster-operator",
        ];
        environment.control_plane.run_kubectl(&words).await?;
    }
    active.undo = Undo::GiveRights;
    Ok(())
}

pub(super) async fn give_rights(
    environment: &mut Environment<'_>,
    injected: &mut Injected,
) -> Result<()> {
    injected.bites = environment.count_requests(injected.from, |event| event.code == 403)?;
    apply(environment, "rbac.yaml").await?;
    injected.recover_from = Some(now_micros());
    Ok(())
}

async fn apply(environment: &Environment<'_>, file: &str) -> Result<()> {
    let path = testbed::fleet::repository().join("deploy/base").join(file);
    let path = path.display().to_string();
    let words = ["apply", "--server-side", "--force-conflicts", "-f", &path];
    environment.control_plane.run_kubectl(&words).await?;
    Ok(())
}

pub(super) async fn delete_crd(
    environment: &mut Environment<'_>,
    active: &mut Active,
) -> Result<()> {
    active.injected.what = "the CRD is deleted, and every DatabaseCluster with it".to_owned();
    active.injected.from = now_micros();
    let words = ["delete", "crd", CRD, "--wait=false"];
    environment.control_plane.run_kubectl(&words).await?;
    active.undo = Undo::MakeCrd;
    Ok(())
}

pub(super) async fn make_crd(
    environment: &mut Environment<'_>,
    injected: &mut Injected,
) -> Result<()> {
    // It is removed when the operator has removed the finalizer of the last cluster.
    let control_plane = environment.control_plane;
    wait_for("the CRD to be gone", GONE_TIMEOUT, || async {
        let words = ["get", "crd", CRD, "--ignore-not-found", "-o", "name"];
        let found = control_plane.run_kubectl(&words).await?;
        Ok(Progress::when(found.is_empty(), (), || {
            "it still exists".into()
        }))
    })
    .await?;
    injected.bites = 1;
    apply(environment, "crd.yaml").await?;
    let words = [
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "crd",
        CRD,
    ];
    control_plane.run_kubectl(&words).await?;
    environment
        .users
        .restore()
        .await
        .context("create all clusters again")?;
    injected.recover_from = Some(now_micros());
    Ok(())
}

/// A client that forcibly takes ownership of fields of StatefulSets.
pub(super) fn write_against(
    environment: &mut Environment<'_>,
    active: &mut Active,
    per_second: f64,
) {
    let keys = users::wanted_keys(&environment.users.asked());
    let client = environment.control_plane.client();
    let mut rng = environment.rng.fork();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    active.injected.what =
        format!("another client writes replicas of StatefulSets, {per_second} times a second");
    let task = tokio::spawn(async move {
        let mut bites = 0;
        let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / per_second.max(0.1)));
        loop {
            tokio::select! {
                () = stopped.cancelled() => return bites,
                _ = ticks.tick() => {}
            }
            let Some((namespace, name)) = keys.get(rng.usize(..keys.len().max(1))) else {
                return bites;
            };
            let name = format!("{name}-db");
            let change = json!({
                "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
                "spec": {"replicas": 4 + rng.u8(..4)},
            });
            let api = crate::state::api(&client, "apps/v1", "StatefulSet", namespace);
            // An apply would re-create one that was deleted meanwhile; a merge patch does not.
            let params = PatchParams {
                field_manager: Some(MEDDLER.into()),
                ..PatchParams::default()
            };
            if api
                .patch(&name, &params, &Patch::Merge(&change))
                .await
                .is_ok()
            {
                bites += 1;
            }
        }
    });
    active.undo = Undo::Stop(stop, task);
}
