//! Finished DatabaseClusters by the ten thousand: a few are brought to Ready by a fleet, and what they
//! became is copied straight into etcd, with names, uids, owners, buckets and fingerprints of its own.
//!
//! A fleet that is started on the copies finds nothing to write: `benchmarks watch` counts.

use std::time::Duration;

use anyhow::{Context, Result};
use shard_ownership::hash::ShardCount;
use testbed::load::{self, NewCluster};
use testbed::{ControlPlane, ControlPlaneOptions};

use super::model::Model;
use super::pattern::{Filling, Place};

/// Where the models live, and what their names begin with: words that occur in no object otherwise.
const NAMESPACE: &str = "namespace-of-the-models";
const PREFIX: &str = "the-model-";
/// The shards of a fleet that was asked for nothing else.
const SHARDS: u64 = 32;
const TIMEOUT: Duration = Duration::from_secs(120);
/// Objects that are prepared before they are stored.
const BATCH: usize = 2_000;

/// Controllers that follow the operator's objects and write others. Nothing here depends on them, and
/// they would be busy for an hour with what appears at once.
const CONTROLLERS_OFF: &str = "-endpoints-controller,-endpointslice-controller,\
    -endpointslice-mirroring-controller,-disruption-controller,-garbage-collector-controller,\
    -resourcequota-controller";

/// Who else reads all objects. The first two end when they find that they have lost their Lease, which harms
/// nothing: no controller is needed from then on.
const READERS: [&str; 3] = [
    "kube-controller-manager",
    "kube-scheduler",
    "kwok-controller",
];

/// A control plane for tens of thousands of DatabaseClusters.
pub(crate) fn options() -> ControlPlaneOptions {
    let extra = |component: &str, flag: &str, value: &str| {
        (component.to_owned(), flag.to_owned(), value.to_owned())
    };
    ControlPlaneOptions {
        statefulset_stage: true,
        lift_client_limits: true,
        extra_args: vec![
            extra("kube-controller-manager", "controllers", CONTROLLERS_OFF),
            extra("etcd", "unsafe-no-fsync", "true"),
            extra("etcd", "quota-backend-bytes", "8589934592"),
        ],
        ..ControlPlaneOptions::default()
    }
}

/// Finished DatabaseClusters to copy, one for each spec.
pub(crate) struct Models {
    models: Vec<Model>,
    shards: ShardCount,
}

/// Brings a cluster of each spec that is asked for to Ready. Replicas must run.
pub(crate) async fn models(control_plane: &ControlPlane, copies: &[NewCluster]) -> Result<Models> {
    let shards = ShardCount::new(SHARDS)?;
    let models = read(control_plane, copies, shards).await?;
    Ok(Models { models, shards })
}

/// Makes these clusters, Ready and with all their children. With many, replicas had better not run: they, too,
/// would list everything while the API server has a minute to get ready.
pub(crate) async fn copy(
    control_plane: &ControlPlane,
    models: &Models,
    copies: &[NewCluster],
) -> Result<()> {
    let Models { models, shards } = models;
    load::namespaces(control_plane, copies).await?;
    // They would list everything again just when the API server has a minute to become ready.
    for reader in READERS {
        control_plane.pause(reader)?;
    }
    // It would follow the writes for many minutes; when it starts it reads everything at once.
    control_plane.kill("kube-apiserver").await?;
    let mut random = fastrand::Rng::with_seed(1);
    let mut objects = Vec::new();
    for copy in copies {
        let model = models.iter().find(|model| *model.spec() == copy.spec);
        let model = model.context("there is a model for each spec")?;
        let mut filling = Filling::new();
        for number in 0..model.uids() {
            filling.insert(Place::Uid(number), uid(&mut random));
        }
        filling.insert(Place::Name, copy.name.clone());
        filling.insert(Place::Namespace, copy.namespace.clone());
        model.compute(&mut filling, *shards);
        objects.extend(model.objects(&filling));
        if objects.len() >= BATCH {
            control_plane.store(&objects).await?;
            objects.clear();
        }
    }
    control_plane.store(&objects).await?;
    control_plane
        .start_again()
        .await
        .context("start the API server on so many objects: it gives itself a minute; try fewer, or on an idle machine")?;
    for reader in READERS {
        control_plane.resume(reader)?;
    }
    Ok(())
}

async fn read(
    control_plane: &ControlPlane,
    copies: &[NewCluster],
    shards: ShardCount,
) -> Result<Vec<Model>> {
    let mut wanted: Vec<NewCluster> = Vec::new();
    for copy in copies {
        if !wanted.iter().any(|known| known.spec == copy.spec) {
            wanted.push(NewCluster {
                namespace: NAMESPACE.to_owned(),
                name: format!("{PREFIX}{}", wanted.len()),
                spec: copy.spec.clone(),
            });
        }
    }
    load::create(control_plane, wanted.clone()).await?;
    load::wait_all_ready(&control_plane.client(), wanted.len(), TIMEOUT).await?;
    let mut models = Vec::new();
    for one in wanted {
        let key = (one.namespace.as_str(), one.name.as_str());
        models.push(Model::read(control_plane, key, one.spec, shards).await?);
    }
    Ok(models)
}

/// A random uid.
pub(crate) fn uid(random: &mut fastrand::Rng) -> String {
    let bits = random.u128(..) & !(0xf << 76) | 4 << 76;
    let hex = format!("{bits:032x}");
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}
