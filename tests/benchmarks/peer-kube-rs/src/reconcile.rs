//! One reconcile: what is missing or of an older spec is applied, and the status follows the StatefulSet.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::runtime::finalizer::{self, finalizer};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::children::{self, Kind, REVISION, Stores, Template};
use crate::cluster::{DatabaseCluster, DatabaseClusterStatus};

/// The peer's own, so that it is never taken for the operator's.
const FINALIZER: &str = "database.io/peer";
const MANAGER: &str = "peer";
/// The number of instances from which on the operator creates a PodDisruptionBudget.
const BUDGET_REPLICAS_MIN: i32 = 2;
const RETRY: Duration = Duration::from_secs(2);

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("finalizer: {0}")]
    Finalizer(#[from] Box<finalizer::Error<Error>>),
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

/// What every reconcile uses.
pub(crate) struct Context {
    client: Client,
    recorder: Recorder,
    templates: Vec<Template>,
    stores: Stores,
}

impl Context {
    pub(crate) fn new(client: Client, templates: Vec<Template>, stores: Stores) -> Self {
        Self {
            recorder: Recorder::new(client.clone(), MANAGER.into()),
            client,
            templates,
            stores,
        }
    }
}

pub(crate) fn error_policy(_: Arc<DatabaseCluster>, _: &Error, _: Arc<Context>) -> Action {
    Action::requeue(RETRY)
}

pub(crate) async fn reconcile(
    cluster: Arc<DatabaseCluster>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let namespace = cluster.namespace().unwrap_or_default();
    let clusters: Api<DatabaseCluster> = Api::namespaced(context.client.clone(), &namespace);
    let done = finalizer(&clusters, FINALIZER, cluster, |event| async {
        match event {
            finalizer::Event::Apply(cluster) => context.apply(&clusters, &cluster).await?,
            finalizer::Event::Cleanup(_) => {}
        }
        Ok(Action::await_change())
    });
    done.await.map_err(|error| Error::from(Box::new(error)))
}

impl Context {
    /// Creates what is missing, applies what is of an older spec, and reports.
    async fn apply(
        &self,
        clusters: &Api<DatabaseCluster>,
        cluster: &DatabaseCluster,
    ) -> anyhow::Result<()> {
        if !self.stores.has_secret(cluster) {
            self.create_secret(cluster).await?;
        }
        let revision = children::revision(cluster);
        for template in &self.templates {
            let is_budget = template.kind == Kind::PodDisruptionBudget;
            if is_budget && cluster.spec.replicas < BUDGET_REPLICAS_MIN {
                continue;
            }
            let name = template.name(cluster);
            let found = self.stores.revision(template.kind, cluster, &name);
            if found.as_ref() != Some(&revision) {
                let child = template.render(cluster)?;
                self.apply_child(template.kind, cluster, &name, child)
                    .await
                    .with_context(|| format!("apply {:?} {name}", template.kind))?;
            }
        }
        self.report(clusters, cluster, &revision).await
    }

    async fn create_secret(&self, cluster: &DatabaseCluster) -> anyhow::Result<()> {
        let secret = children::secret(cluster);
        let secrets = self.api::<Secret>(cluster);
        match secrets.create(&PostParams::default(), &secret).await {
            // The store may not contain yet what the last reconcile created.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => other.map(drop).context("create the Secret"),
        }
    }

    async fn apply_child(
        &self,
        kind: Kind,
        cluster: &DatabaseCluster,
        name: &str,
        child: Value,
    ) -> kube::Result<()> {
        match kind {
            Kind::ConfigMap => apply(self.api::<ConfigMap>(cluster), name, child).await,
            Kind::Service => apply(self.api::<Service>(cluster), name, child).await,
            Kind::PodDisruptionBudget => {
                apply(self.api::<PodDisruptionBudget>(cluster), name, child).await
            }
            Kind::StatefulSet => apply(self.api::<StatefulSet>(cluster), name, child).await,
        }
    }

    fn api<K>(&self, cluster: &DatabaseCluster) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(
            self.client.clone(),
            &cluster.namespace().unwrap_or_default(),
        )
    }

    /// Writes the status when it changes, and publishes an Event when the cluster becomes ready.
    async fn report(
        &self,
        clusters: &Api<DatabaseCluster>,
        cluster: &DatabaseCluster,
        revision: &str,
    ) -> anyhow::Result<()> {
        let before = cluster.status.clone().unwrap_or_default();
        let set = self.stores.statefulset(cluster);
        let status = status(cluster, &before, set.as_deref(), revision);
        if status == before {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"status": status}));
        clusters
            .patch_status(&cluster.name_any(), &PatchParams::default(), &patch)
            .await
            .context("write the status")?;
        if status.is_true("Ready") && !before.is_true("Ready") {
            let event = Event {
                type_: EventType::Normal,
                reason: "DatabaseReady".to_owned(),
                note: Some(format!("ready with {} replicas", cluster.spec.replicas)),
                action: "Reconciling".to_owned(),
                secondary: None,
            };
            let about = cluster.object_ref(&());
            self.recorder
                .publish(&event, &about)
                .await
                .context("publish an Event")?;
        }
        Ok(())
    }
}

/// Server-side apply.
async fn apply<K>(api: Api<K>, name: &str, child: Value) -> kube::Result<()>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let params = PatchParams::apply(MANAGER).force();
    api.patch(name, &params, &Patch::Apply(child))
        .await
        .map(drop)
}

/// The status that a cluster should have.
fn status(
    cluster: &DatabaseCluster,
    before: &DatabaseClusterStatus,
    set: Option<&StatefulSet>,
    revision: &str,
) -> DatabaseClusterStatus {
    let wanted = cluster.spec.replicas;
    let of_set = set.and_then(|set| set.status.clone()).unwrap_or_default();
    let generation = set
        .and_then(|set| set.metadata.generation)
        .unwrap_or_default();
    let is_current = set.is_some_and(|set| {
        set.annotations()
            .get(REVISION)
            .is_some_and(|one| one == revision)
    });
    let ready_replicas = of_set.ready_replicas.unwrap_or_default();
    let ready = is_current
        && of_set.observed_generation.unwrap_or_default() >= generation
        && ready_replicas == wanted
        && of_set.updated_replicas.unwrap_or_default() == wanted
        && of_set.replicas == wanted;
    let phase = match (ready, before.is_true("Initialized")) {
        (true, _) => "Ready",
        (false, true) => "Scaling",
        (false, false) => "Creating",
    };
    let mut status = DatabaseClusterStatus {
        replicas: of_set.replicas,
        ready_replicas,
        selector: format!(
            "app.kubernetes.io/component=database,app.kubernetes.io/instance={},app.kubernetes.io/name=postgresql",
            cluster.name_any()
        ),
        observed_generation: cluster.metadata.generation.unwrap_or_default(),
        phase: phase.to_owned(),
        conditions: before.conditions.clone(),
    };
    let message = format!("{ready_replicas} of {wanted} instances are ready");
    set_condition(&mut status, "Ready", ready, phase, &message);
    set_condition(&mut status, "Progressing", !ready, phase, &message);
    set_condition(&mut status, "Degraded", false, "AsExpected", "");
    if ready_replicas > 0 {
        let message = "the volume of the primary has data";
        set_condition(&mut status, "Initialized", true, "Initialized", message);
    }
    status
}

fn set_condition(
    status: &mut DatabaseClusterStatus,
    kind: &str,
    holds: bool,
    reason: &str,
    message: &str,
) {
    let word = if holds { "True" } else { "False" };
    let known = status.conditions.iter().find(|one| one.type_ == kind);
    let since = known.filter(|one| one.status == word);
    let condition = Condition {
        type_: kind.to_owned(),
        status: word.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: Some(status.observed_generation),
        last_transition_time: since.map_or_else(
            || Time(jiff::Timestamp::now()),
            |one| one.last_transition_time.clone(),
        ),
    };
    match status.conditions.iter_mut().find(|one| one.type_ == kind) {
        Some(known) => *known = condition,
        None => status.conditions.push(condition),
    }
}
