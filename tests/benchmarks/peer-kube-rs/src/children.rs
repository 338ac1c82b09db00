//! The children of a DatabaseCluster, and what is known of those that exist.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{ObjectMeta, PartialObjectMeta};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::{Resource as _, ResourceExt as _};
use serde_json::{Value, json};

use crate::cluster::DatabaseCluster;

/// Holds a hash of the source of a child: a child with the same is not written.
pub(crate) const REVISION: &str = "database.io/peer-revision";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    ConfigMap,
    Service,
    PodDisruptionBudget,
    StatefulSet,
}

/// A child as the operator renders it, with words where values of a cluster belong.
pub(crate) struct Template {
    pub(crate) kind: Kind,
    name: String,
    text: String,
}

/// What is watched.
pub(crate) struct Stores {
    pub(crate) statefulsets: Store<StatefulSet>,
    pub(crate) config_maps: Store<PartialObjectMeta<ConfigMap>>,
    pub(crate) services: Store<PartialObjectMeta<Service>>,
    pub(crate) secrets: Store<PartialObjectMeta<Secret>>,
    pub(crate) budgets: Store<PartialObjectMeta<PodDisruptionBudget>>,
}

impl Stores {
    /// Of what revision a child is, or `None` when there is none.
    pub(crate) fn revision(
        &self,
        kind: Kind,
        cluster: &DatabaseCluster,
        name: &str,
    ) -> Option<String> {
        let of = |meta: &ObjectMeta| {
            let annotations = meta.annotations.as_ref();
            let revision = annotations.and_then(|all| all.get(REVISION));
            revision.cloned().unwrap_or_default()
        };
        match kind {
            Kind::ConfigMap => find(&self.config_maps, cluster, name).map(|one| of(&one.metadata)),
            Kind::Service => find(&self.services, cluster, name).map(|one| of(&one.metadata)),
            Kind::PodDisruptionBudget => {
                find(&self.budgets, cluster, name).map(|one| of(&one.metadata))
            }
            Kind::StatefulSet => self.statefulset(cluster).map(|one| of(&one.metadata)),
        }
    }

    pub(crate) fn statefulset(&self, cluster: &DatabaseCluster) -> Option<Arc<StatefulSet>> {
        find(
            &self.statefulsets,
            cluster,
            &format!("{}-db", cluster.name_any()),
        )
    }

    pub(crate) fn has_secret(&self, cluster: &DatabaseCluster) -> bool {
        find(&self.secrets, cluster, &secret_name(cluster)).is_some()
    }
}

fn find<K>(store: &Store<K>, cluster: &DatabaseCluster, name: &str) -> Option<Arc<K>>
where
    K: reflector::Lookup<DynamicType = ()> + Clone + 'static,
{
    store.get(&ObjectRef::new(name).within(&cluster.namespace().unwrap_or_default()))
}

/// Reads the children that `benchmarks bench` had the operator render: all sides create the same.
pub(crate) fn read(path: &Path) -> Result<Vec<Template>> {
    let what = || format!("read {}", path.display());
    let text = std::fs::read_to_string(path).with_context(what)?;
    let manifests: Vec<Value> = serde_json::from_str(&text).with_context(what)?;
    let template = |manifest: Value| {
        let kind = match manifest["kind"].as_str().unwrap_or_default() {
            "ConfigMap" => Kind::ConfigMap,
            "Service" => Kind::Service,
            "PodDisruptionBudget" => Kind::PodDisruptionBudget,
            "StatefulSet" => Kind::StatefulSet,
            other => bail!("{}: nothing is known of the kind {other:?}", path.display()),
        };
        let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
        Ok(Template {
            kind,
            name: name.to_owned(),
            text: manifest.to_string(),
        })
    };
    manifests.into_iter().map(template).collect()
}

impl Template {
    /// The name of the child of this cluster.
    pub(crate) fn name(&self, cluster: &DatabaseCluster) -> String {
        self.name.replace("the-name", &cluster.name_any())
    }

    /// The child of this cluster, to be applied.
    pub(crate) fn render(&self, cluster: &DatabaseCluster) -> Result<Value> {
        let spec = &cluster.spec;
        let uid = cluster.uid().unwrap_or_default();
        let text = self
            .text
            .replace("the-namespace", &cluster.namespace().unwrap_or_default())
            .replace("the-name", &cluster.name_any())
            .replace("the-uid", &uid)
            .replace("the-image", &spec.image)
            .replace("the-cpu", &spec.resources.cpu)
            .replace("the-memory", &spec.resources.memory)
            .replace("the-size", &spec.storage.size);
        let mut child: Value = serde_json::from_str(&text)?;
        if self.kind == Kind::StatefulSet {
            child["spec"]["replicas"] = json!(spec.replicas);
        }
        child["metadata"]["annotations"] = json!({REVISION: revision(cluster)});
        child["metadata"]["ownerReferences"] = json!([cluster.controller_owner_ref(&())]);
        Ok(child)
    }
}

/// A hash of the source of the children of a cluster.
pub(crate) fn revision(cluster: &DatabaseCluster) -> String {
    let generation = cluster.metadata.generation.unwrap_or_default();
    format!("{}/{generation}", cluster.uid().unwrap_or_default())
}

pub(crate) fn secret_name(cluster: &DatabaseCluster) -> String {
    format!("{}-app", cluster.name_any())
}

/// Created once and never changed.
pub(crate) fn secret(cluster: &DatabaseCluster) -> Secret {
    let name = cluster.name_any();
    let host = format!("{name}-rw.{}.svc", cluster.namespace().unwrap_or_default());
    // No secret of anybody: it protects no database.
    let password = || format!("{:032x}", fastrand::u128(..));
    let (own, of_replication) = (password(), password());
    let uid = cluster.uid().unwrap_or_default();
    let uri = format!("postgresql://app:{own}@{host}:5432/app");
    let text = |value: &str| value.to_owned();
    Secret {
        metadata: ObjectMeta {
            name: Some(secret_name(cluster)),
            namespace: cluster.namespace(),
            labels: Some(
                [
                    ("app.kubernetes.io/name", "postgresql"),
                    ("app.kubernetes.io/instance", &name),
                    ("app.kubernetes.io/component", "database"),
                    ("app.kubernetes.io/part-of", &name),
                    ("app.kubernetes.io/managed-by", "peer"),
                ]
                .map(|(name, value)| (text(name), text(value)))
                .into(),
            ),
            owner_references: cluster.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        type_: Some(text("Opaque")),
        string_data: Some(
            [
                ("username", "app"),
                ("password", &own),
                ("host", &host),
                ("port", "5432"),
                ("dbname", "app"),
                ("uri", &uri),
                ("replication-password", &of_replication),
                ("cluster-uid", &uid),
            ]
            .map(|(name, value)| (text(name), text(value)))
            .into(),
        ),
        ..Secret::default()
    }
}
