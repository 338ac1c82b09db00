//! What the children of a cluster look like. One file for each child.

mod budget;
mod config;
mod labels;
mod secret;
mod service;
mod statefulset;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use k8s_openapi::api::apps::v1::StatefulSetSpec;
use serde_json::{Value, json};

use crate::api::names;
use crate::core::child::{ChildId, ChildKind, DesiredChild, Fingerprint};
use crate::core::digest::{self, Shape};
use crate::core::object::{ObjectKey, Stamp};
use crate::core::observed::{ClaimTemplate, ClusterRecord};

pub use labels::selector_text;
pub use secret::{Password, RANDOM_BYTES, secret, secret_id, secret_name};

/// Port of PostgreSQL.
const PORT: u16 = 5432;
/// Name of the container that runs PostgreSQL.
const CONTAINER: &str = "postgres";

/// Name of the StatefulSet of a cluster, and of its headless Service.
#[must_use]
pub fn statefulset_name(cluster: &str) -> String {
    format!("{cluster}-db")
}

/// From what the children of a cluster are rendered.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The cluster.
    pub cluster: &'a ClusterRecord,
    /// The volume claim template of the StatefulSet that exists: it can not be changed, so it is
    /// rendered as it is.
    pub claim: Option<&'a ClaimTemplate>,
    /// Whether the volume of the primary has data.
    pub initialized: bool,
}

/// Renders one child; none when the cluster has no need of it.
type Renderer = fn(&Source<'_>) -> Option<Value>;

/// How each child is rendered, in the order in which they are applied: what others refer to comes
/// first. The Secret is not among them: it is created once, and never compared.
const RENDERERS: [(ChildKind, Renderer); 6] = [
    (ChildKind::ConfigMap, |source| {
        Some(config::render(source.cluster, source.initialized))
    }),
    (ChildKind::Service, |source| {
        Some(service::headless(source.cluster))
    }),
    (ChildKind::Service, |source| {
        Some(service::read_write(source.cluster))
    }),
    (ChildKind::Service, |source| {
        Some(service::read(source.cluster))
    }),
    (ChildKind::PodDisruptionBudget, |source| {
        budget::render(source.cluster)
    }),
    (ChildKind::StatefulSet, |source| {
        Some(statefulset::render(source.cluster, source.claim))
    }),
];

impl Source<'_> {
    /// The children that the cluster should have, in the order in which they are applied.
    #[must_use]
    pub fn children(&self) -> Vec<DesiredChild> {
        RENDERERS
            .iter()
            .filter_map(|(kind, render)| render(self).map(|manifest| desired(*kind, &manifest)))
            .collect()
    }

    /// What to apply for one of them, with the stamp of who writes it; none when it is none of them.
    #[must_use]
    pub fn manifest(&self, child: &DesiredChild, stamp: &Stamp) -> Option<Value> {
        let rendered = RENDERERS.iter().filter(|(kind, _)| *kind == child.id.kind);
        let mut rendered = rendered.filter_map(|(_, render)| render(self));
        let mut manifest =
            rendered.find(|manifest| manifest["metadata"]["name"] == *child.id.name)?;
        manifest["metadata"]["annotations"] = json!({
            names::FINGERPRINT_ANNOTATION: child.fingerprint.to_string(),
            names::GENERATION_ANNOTATION: self.cluster.generation.to_string(),
            names::STAMP_ANNOTATION: stamp.to_string(),
        });
        Some(manifest)
    }
}

/// Children that a cluster may have had and that [`Source::children`] need not name.
#[must_use]
pub fn optional_children(cluster: &str) -> [ChildId; 1] {
    [ChildId {
        kind: ChildKind::PodDisruptionBudget,
        name: statefulset_name(cluster).into(),
    }]
}

/// The host name under which the primary is reached from everywhere in the Kubernetes cluster.
fn rw_host(cluster: &ClusterRecord) -> String {
    format!("{}-rw.{}.svc", cluster.key.name, cluster.key.namespace)
}

/// Digest of the fields of a StatefulSet's spec that we own.
#[must_use]
pub fn statefulset_spec_digest(spec: Option<&StatefulSetSpec>) -> u64 {
    let spec = serde_json::to_value(spec).unwrap_or_default();
    SHAPES.spec.digest(&spec)
}

/// Digest of the labels that we own.
#[must_use]
pub fn labels_digest(labels: Option<&BTreeMap<String, String>>) -> u64 {
    let labels = serde_json::to_value(labels).unwrap_or_default();
    SHAPES.labels.digest(&labels)
}

/// Which fields of a StatefulSet we own. They are the same for every cluster, apart from those that
/// can not be changed.
struct Shapes {
    spec: Shape,
    labels: Shape,
}

static SHAPES: LazyLock<Shapes> = LazyLock::new(|| {
    let sample = statefulset::render(&sample(), None);
    Shapes {
        spec: Shape::of(&without_claims(&sample["spec"])),
        labels: Shape::of(&sample["metadata"]["labels"]),
    }
});

fn desired(kind: ChildKind, manifest: &Value) -> DesiredChild {
    let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
    let (spec_digest, labels_digest) = match kind {
        ChildKind::StatefulSet => (
            SHAPES.spec.digest(&manifest["spec"]),
            SHAPES.labels.digest(&manifest["metadata"]["labels"]),
        ),
        _ => (0, 0),
    };
    let mut fingerprinted = manifest.clone();
    fingerprinted["spec"] = without_claims(&manifest["spec"]);
    DesiredChild {
        id: ChildId {
            kind,
            name: name.into(),
        },
        fingerprint: fingerprint(&fingerprinted),
        spec_digest,
        labels_digest,
    }
}

fn fingerprint(manifest: &Value) -> Fingerprint {
    Fingerprint(digest::document(manifest))
}

/// A StatefulSet's spec without what can not be changed after creation: whether it differs must not
/// depend on it.
fn without_claims(spec: &Value) -> Value {
    let mut spec = spec.clone();
    if let Some(fields) = spec.as_object_mut() {
        fields.remove("volumeClaimTemplates");
    }
    spec
}

fn metadata(cluster: &ClusterRecord, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": *cluster.key.namespace,
        "labels": labels::all(cluster),
        "ownerReferences": [{
            "apiVersion": names::API_VERSION,
            "kind": names::KIND,
            "name": *cluster.key.name,
            "uid": *cluster.uid,
            "controller": true,
            "blockOwnerDeletion": true,
        }],
    })
}

fn sample() -> ClusterRecord {
    ClusterRecord {
        key: ObjectKey::new("namespace", "name"),
        uid: "uid".into(),
        bucket: crate::core::hash::Bucket::of("uid"),
        generation: 1,
        resource_version: String::new(),
        deleting: false,
        finalizers: Vec::new(),
        stamp: None,
        spec: crate::api::DatabaseClusterSpec {
            replicas: 1,
            image: "image".to_owned(),
            resources: crate::api::Resources::default(),
            storage: crate::api::Storage::default(),
        },
        status: crate::api::DatabaseClusterStatus::default(),
    }
}

#[cfg(test)]
mod tests;
