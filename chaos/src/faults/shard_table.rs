//! The shard table is deleted under running holders, or refused to one replica.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::api::{Patch, PatchParams};
use serde_json::json;
use testbed::fleet::OPERATOR_NAMESPACE;
use testbed::{Progress, control_plane, shards, table, wait_for};

use super::{Active, Undo};
use crate::environment::Environment;
use crate::evidence::{Injected, now_micros};
use crate::scenario::Who;

const POLICY: &str = "chaos-table-refused";
const NEW_TABLE_TIMEOUT: Duration = Duration::from_secs(90);
const IN_FORCE_TIMEOUT: Duration = Duration::from_secs(60);

/// Deletes the table as an administrator with the required confirmation, and waits for the next one.
pub(super) async fn delete(environment: &mut Environment<'_>, active: &mut Active) -> Result<()> {
    let control_plane = environment.control_plane;
    let client = control_plane.client();
    let before = table::get(&client).await?;
    let before = before.context("there is no shard table to delete")?;
    let allow = [
        "annotate",
        "shardtable",
        "-n",
        OPERATOR_NAMESPACE,
        table::NAME,
        "database.io/deletion=allowed",
        "--overwrite",
    ];
    control_plane.run_kubectl(&allow).await?;
    active.injected.what = format!("the shard table {} is deleted", before.uid);
    active.injected.from = now_micros();
    let delete = [
        "delete",
        "shardtable",
        "-n",
        OPERATOR_NAMESPACE,
        table::NAME,
        "--wait=false",
    ];
    control_plane.run_kubectl(&delete).await?;
    wait_for("a new shard table", NEW_TABLE_TIMEOUT, || async {
        let now = table::get(&client).await?;
        let uid = now.map(|now| now.uid).unwrap_or_default();
        let met = !uid.is_empty() && uid != before.uid;
        Ok(Progress::when(met, (), || format!("its uid is {uid:?}")))
    })
    .await?;
    active.injected.recover_from = Some(now_micros());
    Ok(())
}

/// Admission refuses a replica's writes of the table, and its process starts again: it needs entries of its new
/// incarnation.
pub(super) async fn refuse(
    environment: &mut Environment<'_>,
    active: &mut Active,
    who: Who,
) -> Result<()> {
    let chosen = environment.choose(who).await?;
    let index = *chosen.first().context("no replica was chosen")?;
    let pod = environment.names(&[index]).join("");
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": POLICY},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{
                "apiGroups": ["database.io"], "apiVersions": ["*"],
                "resources": [table::RESOURCE], "operations": ["CREATE", "UPDATE"],
            }]},
            "matchConditions": [{"name": "one-replica", "expression": format!(
                "'{pod}' in request.userInfo.?extra[?'authentication.kubernetes.io/pod-name'].orValue([])"
            )}],
            "validations": [{"expression": "false", "message": POLICY}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": POLICY},
        "spec": {"policyName": POLICY, "validationActions": ["Deny"]},
    });
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [policy, binding]});
    let file = environment
        .control_plane
        .folder()
        .join("table-refused.json");
    std::fs::write(&file, list.to_string()).context("write the policy")?;
    let file = file.display().to_string();
    let control_plane = environment.control_plane;
    control_plane.run_kubectl(&["apply", "-f", &file]).await?;
    until_refused(environment, index).await?;
    let injected = &mut active.injected;
    injected.what = format!("{pod} starts again and may not write the shard table");
    injected.pods = vec![pod];
    injected.from = now_micros();
    injected.recover_from = Some(injected.from);
    injected.takes_out = true;
    environment.kill(index).await?;
    environment.restart(index).await?;
    active.undo = Undo::AllowTable(index);
    Ok(())
}

/// A policy takes a second or two to take effect. Tested with the replica's own token, by a patch that changes nothing.
async fn until_refused(environment: &Environment<'_>, index: usize) -> Result<()> {
    let replica = environment.fleet.replica(index)?;
    let client = control_plane::client_from(replica.kubeconfig()).await?;
    let change = json!({"spec": {}});
    let params = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    wait_for("the policy to be in force", IN_FORCE_TIMEOUT, || async {
        let patch = Patch::Merge(&change);
        let answer = table::api(client.clone())
            .patch(table::NAME, &params, &patch)
            .await;
        let refused = matches!(&answer, Err(error) if error.to_string().contains(POLICY));
        Ok(Progress::when(refused, (), || format!("{answer:?}")))
    })
    .await?;
    Ok(())
}

/// By now the replica must be unready, and the others must hold its shards. Then it may write again.
pub(super) async fn allow(
    environment: &mut Environment<'_>,
    injected: &mut Injected,
    index: usize,
) -> Result<()> {
    let client = environment.control_plane.client();
    let replica = environment.fleet.replica(index)?;
    let answer = replica.get("/readyz").await?;
    if answer.status == 200 {
        let what = format!("{} is ready: {}", replica.name(), answer.body);
        injected.unexpected.push(what);
    }
    let held = shards::list(&client).await?;
    let held: Vec<String> = held
        .into_iter()
        .filter(|shard| shard.holder == replica.name())
        .map(|shard| shard.lease)
        .collect();
    if !held.is_empty() {
        let what = format!("{} holds {}", replica.name(), held.join(", "));
        injected.unexpected.push(what);
    }
    for kind in [
        "validatingadmissionpolicybinding",
        "validatingadmissionpolicy",
    ] {
        let words = ["delete", kind, POLICY];
        environment.control_plane.run_kubectl(&words).await?;
    }
    Ok(())
}
