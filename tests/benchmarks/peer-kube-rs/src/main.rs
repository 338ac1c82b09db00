//! The operator that a team would write with kube-rs, and well: kube-rs's own `Controller`, one leader elected by
//! kube-leader-election, ten workers, a store of everything that it owns. It creates the same children from the same
//! specs as databasecluster-operator, writes a status with the same conditions and publishes the same Event, so that
//! `benchmarks bench` can put both side by side. It has no shards, no fence, no diagnosis of Pods, and repairs no child
//! that another client edited.

mod children;
mod cluster;
mod leader;
mod reconcile;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Parser;
use futures::{Stream, StreamExt};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::PartialObjectMeta;
use kube::runtime::controller::Config;
use kube::runtime::reflector::{Store, reflector, store};
use kube::runtime::{Controller, Predicate as _, WatchStreamExt, predicates, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use children::Stores;
use cluster::DatabaseCluster;
use reconcile::{Context, error_policy, reconcile};

/// An operator of the usual shape, for comparison.
#[derive(Parser)]
struct Arguments {
    /// File with the children to create, as the operator renders them.
    #[arg(long)]
    children: PathBuf,
    /// Reconciles at once, as `--concurrency` of the operator.
    #[arg(long, default_value_t = 10)]
    workers: u16,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let templates = children::read(&arguments.children)?;
    let client = Client::try_default()
        .await
        .context("connect to the API server")?;
    let lock = leader::Lock::acquire(client.clone()).await;
    tokio::select! {
        () = run(client, templates, arguments.workers) => Ok(()),
        error = lock.lost() => Err(error),
    }
}

/// Watches, and reconciles until something ends it.
async fn run(client: Client, templates: Vec<children::Template>, workers: u16) {
    let (clusters, writer) = store::<DatabaseCluster>();
    let watched = watcher(Api::all(client.clone()), watcher::Config::default());
    let watched = watched.default_backoff().modify(strip);
    // A status that changed is our own.
    let changed = predicates::generation.combine(predicates::finalizers);
    let changed = reflector(writer, watched)
        .applied_objects()
        .predicate_filter(changed, Default::default());
    let (statefulsets, of_statefulsets) = children_of::<StatefulSet>(&client);
    // Of children without a status, the metadata is all that is needed.
    let (config_maps, of_config_maps) = children_of::<PartialObjectMeta<ConfigMap>>(&client);
    let (services, of_services) = children_of::<PartialObjectMeta<Service>>(&client);
    let (secrets, of_secrets) = children_of::<PartialObjectMeta<Secret>>(&client);
    let (budgets, of_budgets) = children_of::<PartialObjectMeta<PodDisruptionBudget>>(&client);
    let stores = Stores {
        statefulsets,
        config_maps,
        services,
        secrets,
        budgets,
    };
    let context = Context::new(client, templates, stores);
    Controller::for_stream(changed, clusters)
        .owns_stream(of_statefulsets)
        .owns_stream(of_config_maps)
        .owns_stream(of_services)
        .owns_stream(of_secrets)
        .owns_stream(of_budgets)
        .with_config(Config::default().concurrency(workers))
        .run(reconcile, error_policy, Arc::new(context))
        .for_each(|result| async move {
            if let Err(error) = result {
                eprintln!("peer: {error}");
            }
        })
        .await;
}

/// A store of children, and the stream that fills it and triggers their owner.
fn children_of<K>(
    client: &Client,
) -> (
    Store<K>,
    impl Stream<Item = Result<K, watcher::Error>> + Send + 'static + use<K>,
)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (reader, writer) = store::<K>();
    let events = watcher(Api::<K>::all(client.clone()), watcher::Config::default());
    let events = events.default_backoff().modify(strip);
    (reader, reflector(writer, events).touched_objects())
}

/// Drops the largest part of the metadata, which nothing here reads.
fn strip<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}
