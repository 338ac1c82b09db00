//! What one DatabaseCluster asks of the API server: until it is Ready, and in a reconcile that finds nothing to do.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::ResourceExt;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;
use testbed::audit::{AuditEvent, Reader};
use testbed::{
    AuditLevel, ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, Progress, load, shards,
    wait_for,
};

use super::requests::Requests;
use super::{BALANCE_TIMEOUT, NAMESPACES, READY_TIMEOUT, REPLICAS, own, start_control_plane};
use crate::goal::verdict;

/// Requests that follow the last Ready, such as its event, come within this time.
const SILENCE: Duration = Duration::from_secs(5);
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);
/// How often each DatabaseCluster is touched.
const TOUCHES: usize = 3;

pub(crate) async fn cluster(clusters: usize) -> Result<()> {
    if clusters == 0 {
        bail!("CLUSTERS=0: there is nothing to measure");
    }
    // With the real controller of StatefulSets, and Pods.
    let options = ControlPlaneOptions {
        audit: AuditLevel::Metadata,
        lift_client_limits: true,
        ..ControlPlaneOptions::default()
    };
    let control_plane = start_control_plane(options).await?;
    let fleet = Fleet::start(&control_plane, REPLICAS, FleetOptions::default()).await?;
    shards::wait_balanced(&fleet, BALANCE_TIMEOUT).await?;
    let mut reader = Reader::from_end(control_plane.audit_log()?)?;
    load::create(&control_plane, load::samples(clusters, &NAMESPACES)).await?;
    load::wait_all_ready(&control_plane.client(), clusters, READY_TIMEOUT).await?;
    let until_ready = until_silence(&mut reader).await?;
    let count = f64::from(u32::try_from(clusters)?);
    println!("{clusters} DatabaseClusters of 1 to 3 instances, from created to Ready");
    print!(
        "{}",
        Requests::count(&until_ready).table(count, "per cluster")
    );

    let before = reconciles(&fleet).await?;
    for touch in 1..=TOUCHES {
        touch_all(&control_plane, touch).await?;
    }
    let wanted = count * f64::from(u32::try_from(TOUCHES)?);
    let what = format!("{wanted} reconciles of DatabaseClusters that were touched");
    let (fleet, wanted) = (&fleet, &wanted);
    let done = wait_for(what, SETTLE_TIMEOUT, || async move {
        let done = reconciles(fleet)
            .await
            .map_err(|error| testbed::Error::Failed(error.to_string()))?
            - before;
        // Touches that follow each other closely may be one reconcile.
        Ok(Progress::when(done >= *wanted / 2.0, done, || {
            format!("{done} so far")
        }))
    })
    .await?;
    let requests = until_silence(&mut reader).await?;
    println!("\n{done} reconciles of Ready DatabaseClusters whose annotations were changed");
    print!(
        "{}",
        Requests::count(&requests).table(done, "per reconcile")
    );
    println!(
        "goal no request of a reconcile that finds nothing to do: {}",
        verdict(requests.is_empty())
    );
    Ok(())
}

/// Changes what is no business of the operator, in all of them.
async fn touch_all(control_plane: &ControlPlane, number: usize) -> Result<()> {
    let all = load::all_clusters(control_plane.client());
    let keys = all.list(&ListParams::default()).await?.items;
    for object in keys {
        let namespace = object.namespace().unwrap_or_default();
        let change =
            json!({"metadata": {"annotations": {"example.com/touched": number.to_string()}}});
        load::clusters_in(control_plane.client(), &namespace)
            .patch(
                &object.name_any(),
                &PatchParams::default(),
                &Patch::Merge(&change),
            )
            .await?;
    }
    Ok(())
}

/// The operator's requests until there is none for a while; without heartbeats and watches.
async fn until_silence(reader: &mut Reader) -> Result<Vec<AuditEvent>> {
    let mut all = Vec::new();
    let started = std::time::Instant::now();
    loop {
        tokio::time::sleep(SILENCE).await;
        let mut new = own(reader.next_events()?);
        new.retain(|event| !super::requests::is_expected_at_rest(event));
        if new.is_empty() {
            return Ok(all);
        }
        all.append(&mut new);
        if started.elapsed() > SETTLE_TIMEOUT {
            bail!("the fleet is not silent after {SETTLE_TIMEOUT:?}");
        }
    }
}

async fn reconciles(fleet: &Fleet<'_>) -> Result<f64> {
    let mut all = 0.0;
    for replica in fleet.replicas() {
        let metrics = replica.metrics().await?;
        all += metrics
            .sum("controller_runtime_reconcile_total")
            .with_context(|| format!("{} exports no count of reconciles", replica.name()))?;
    }
    Ok(all)
}
