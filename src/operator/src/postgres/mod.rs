//! Rendering of a cluster's children. One file for each child.

mod budget;
mod config;
mod customization;
mod exporter;
mod labels;
mod secret;
mod service;
mod settings;
mod statefulset;
mod tls;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use k8s_openapi::api::apps::v1::StatefulSetSpec;
use serde_json::{Value, json};

use crate::api::names;
use crate::core::child::{ChildId, ChildKind, DesiredChild, Fingerprint};
use crate::core::digest::{self, Shape};
use crate::core::memory::Basis;
use crate::core::observed::{ClaimTemplate, ClusterRecord};
use shard_ownership::token::FencingToken;
use sharded_controller::object::ObjectKey;

pub(crate) use labels::{claim_selectors, selector_text};
pub use secret::{Password, secret};
pub(crate) use secret::{RANDOM_BYTES, secret_id, secret_name, trial_secret};
pub(crate) use tls::{VOLUME as TLS_VOLUME, host_names};

/// Port of PostgreSQL.
const PORT: u16 = 5432;
/// Name of the container that runs PostgreSQL.
pub(crate) const CONTAINER: &str = "postgres";
/// Environment variable of Pods: uid of the cluster for which their StatefulSet was created.
pub(crate) const CLUSTER_UID: &str = "CLUSTER_UID";
/// Name of the container that prepares the volume.
const PREPARE_CONTAINER: &str = "prepare";
/// Name of the container with the exporter of metrics.
pub(crate) const EXPORTER_CONTAINER: &str = "exporter";
/// The operator's containers of a Pod, the most important first: others may be injected.
pub(crate) const CONTAINERS: [&str; 3] = [PREPARE_CONTAINER, CONTAINER, EXPORTER_CONTAINER];

/// The field of a StatefulSet that cannot be changed after creation.
const CLAIMS: &str = "volumeClaimTemplates";

/// Name of the StatefulSet of a cluster, and of its headless Service.
#[must_use]
pub(crate) fn statefulset_name(cluster: &str) -> String {
    format!("{cluster}-db")
}

/// The input from which the children of a cluster are rendered.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The cluster.
    pub cluster: &'a ClusterRecord,
    /// The volume claim template of the existing StatefulSet: it cannot be changed, so it is
    /// rendered as it is.
    pub claim: Option<&'a ClaimTemplate>,
    /// Whether the volume of the primary has data.
    pub initialized: bool,
}

/// The renderer of one child; it returns none if the cluster does not need the child.
struct Renderer {
    kind: ChildKind,
    /// The child's name, by the cluster's name.
    name: fn(&str) -> String,
    render: fn(&Source<'_>) -> Option<Value>,
}

/// The renderers in the order in which the children are applied: what others refer to comes first.
/// The Secret is not among them: it is created once, and never compared.
const RENDERERS: [Renderer; 6] = [
    Renderer {
        kind: ChildKind::ConfigMap,
        name: statefulset_name,
        render: |source| Some(config::render(source.cluster, source.initialized)),
    },
    Renderer {
        kind: ChildKind::Service,
        name: statefulset_name,
        render: |source| Some(service::headless(source.cluster)),
    },
    Renderer {
        kind: ChildKind::Service,
        name: service::read_write_name,
        render: |source| Some(service::read_write(source.cluster)),
    },
    Renderer {
        kind: ChildKind::Service,
        name: service::read_name,
        render: |source| Some(service::read(source.cluster)),
    },
    Renderer {
        kind: ChildKind::PodDisruptionBudget,
        name: statefulset_name,
        render: |source| budget::render(source.cluster),
    },
    Renderer {
        kind: ChildKind::StatefulSet,
        name: statefulset_name,
        render: |source| Some(statefulset::render(source.cluster, source.claim)),
    },
];

impl Source<'_> {
    /// What the children depend on: the same basis gives the same children.
    pub(crate) fn basis(&self) -> Basis {
        let kept = statefulset::kept(self.cluster, self.claim);
        Basis::new(self.cluster.generation, kept, self.initialized)
    }

    /// The desired children of the cluster, in the order in which they are applied.
    #[must_use]
    pub fn children(&self) -> Vec<DesiredChild> {
        self.children_after(&[], &|_| false, &mut Vec::new())
    }

    /// The same children, of which those that stay were rendered before. The manifests of the others are put
    /// into `rendered`, for [`Self::signed`].
    pub(crate) fn children_after(
        &self,
        known: &[DesiredChild],
        stays: &dyn Fn(ChildKind) -> bool,
        rendered: &mut Vec<(ChildId, Value)>,
    ) -> Vec<DesiredChild> {
        let cluster = &self.cluster.key.name;
        let former = |how: &Renderer| {
            let name = (how.name)(cluster);
            let is_it = |child: &&DesiredChild| child.id.kind == how.kind && *child.id.name == name;
            known.iter().find(is_it).cloned()
        };
        let mut render = |how: &Renderer| {
            let mut manifest = (how.render)(self)?;
            let child = desired(how.kind, &mut manifest);
            rendered.push((child.id.clone(), manifest));
            Some(child)
        };
        RENDERERS
            .iter()
            .filter_map(|how| match stays(how.kind) {
                true => former(how),
                false => render(how),
            })
            .collect()
    }

    /// The fingerprint that the ConfigMap had while the volume of the primary had no data.
    #[must_use]
    pub(crate) fn config_before_data(&self) -> Fingerprint {
        let mut config = config::render(self.cluster, false);
        desired(ChildKind::ConfigMap, &mut config).fingerprint
    }

    /// The manifest of one child, with the fencing token of the writer; none if it is not one of the
    /// desired children.
    #[must_use]
    pub fn manifest(&self, child: &DesiredChild, token: &FencingToken) -> Option<Value> {
        let cluster = &self.cluster.key.name;
        let how = RENDERERS
            .iter()
            .find(|how| how.kind == child.id.kind && (how.name)(cluster) == *child.id.name)?;
        Some(self.signed((how.render)(self)?, child, token))
    }

    /// What changes in the ConfigMap once the volume of the primary has data, and nothing else.
    #[must_use]
    pub(crate) fn config_with_data(&self, child: &DesiredChild, token: &FencingToken) -> Value {
        let mut change = config::with_data();
        let bucket = self.cluster.bucket.to_string();
        change["metadata"]["labels"] = json!({names::BUCKET_LABEL: bucket});
        self.signed(change, child, token)
    }

    /// A rendered manifest with the fencing token of the writer.
    #[must_use]
    pub(crate) fn signed(
        &self,
        mut manifest: Value,
        child: &DesiredChild,
        token: &FencingToken,
    ) -> Value {
        let annotations = [
            (names::FINGERPRINT_ANNOTATION, child.fingerprint.to_string()),
            (
                names::GENERATION_ANNOTATION,
                self.cluster.generation.to_string(),
            ),
            (
                names::FENCING_TOKEN_ANNOTATION,
                token.for_cluster(&self.cluster.uid),
            ),
        ];
        for (name, value) in annotations {
            manifest["metadata"]["annotations"][name] = value.into();
        }
        manifest
    }
}

/// The name of the cluster after which a child is named; none if no child has such a name.
#[must_use]
pub(crate) fn cluster_name(child: &ChildId) -> Option<&str> {
    let suffixes = ["-db", "-rw", "-r"];
    let name = suffixes
        .iter()
        .find_map(|suffix| child.name.strip_suffix(suffix))?;
    let is_child = |how: &Renderer| how.kind == child.kind && (how.name)(name) == *child.name;
    RENDERERS.iter().any(is_child).then_some(name)
}

/// Children that a cluster may have had and that [`Source::children`] need not name.
#[must_use]
pub(crate) fn optional_children(cluster: &str) -> [ChildId; 1] {
    [ChildId {
        kind: ChildKind::PodDisruptionBudget,
        name: statefulset_name(cluster).into(),
    }]
}

/// The names of the Services that ask for a load balancer.
#[must_use]
pub(crate) fn load_balanced(cluster: &ClusterRecord) -> Vec<String> {
    let name = &cluster.key.name;
    let both = [
        (
            customization::read_write(cluster),
            service::read_write_name(name),
        ),
        (customization::read_only(cluster), service::read_name(name)),
    ];
    let asks = |settings: Option<&crate::api::Service>| {
        settings.is_some_and(|settings| settings.kind == crate::api::ServiceType::LoadBalancer)
    };
    both.into_iter()
        .filter(|(settings, _)| asks(*settings))
        .map(|(_, name)| name)
        .collect()
}

/// Whether the Services find the primary whatever the other containers of its Pod do.
#[must_use]
pub(crate) fn serves_by_container(cluster: &ClusterRecord) -> bool {
    exporter::of(cluster).is_some()
}

/// The host name under which the primary is reached from everywhere in the Kubernetes cluster.
fn rw_host(cluster: &ClusterRecord) -> String {
    let name = service::read_write_name(&cluster.key.name);
    format!("{name}.{}.svc", cluster.key.namespace)
}

/// Digest of the fields of a StatefulSet's spec that we own.
#[must_use]
pub(crate) fn statefulset_spec_digest(spec: Option<&StatefulSetSpec>) -> u64 {
    let spec = serde_json::to_value(spec).unwrap_or_default();
    SHAPES.spec.digest(&spec)
}

/// Digest of the labels that we own.
#[must_use]
pub(crate) fn labels_digest(labels: Option<&BTreeMap<String, String>>) -> u64 {
    let labels = serde_json::to_value(labels).unwrap_or_default();
    SHAPES.labels.digest(&labels)
}

/// The fields of a StatefulSet that we own. They are the same for every cluster, apart from those
/// that cannot be changed.
struct Shapes {
    spec: Shape,
    labels: Shape,
}

static SHAPES: LazyLock<Shapes> = LazyLock::new(|| {
    let mut sample = statefulset::render(&sample(), None);
    remove_claims(&mut sample["spec"]);
    Shapes {
        spec: Shape::of(&sample["spec"]),
        labels: Shape::of(&sample["metadata"]["labels"]),
    }
});

/// What is compared of a manifest, which stays as it is.
fn desired(kind: ChildKind, manifest: &mut Value) -> DesiredChild {
    let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
    let id = ChildId {
        kind,
        name: name.into(),
    };
    let (spec_digest, labels_digest) = match kind {
        ChildKind::StatefulSet => (
            SHAPES.spec.digest(&manifest["spec"]),
            SHAPES.labels.digest(&manifest["metadata"]["labels"]),
        ),
        ChildKind::ConfigMap
        | ChildKind::PodDisruptionBudget
        | ChildKind::Secret
        | ChildKind::Service => (0, 0),
    };
    // The fingerprint of a child without a spec is that of one whose spec is null.
    let has_spec = manifest.get("spec").is_some();
    let claims = remove_claims(&mut manifest["spec"]);
    let fingerprint = fingerprint(manifest);
    if let Some(claims) = claims {
        manifest["spec"][CLAIMS] = claims;
    }
    if let Some(fields) = manifest.as_object_mut().filter(|_| !has_spec) {
        fields.remove("spec");
    }
    DesiredChild {
        id,
        fingerprint,
        spec_digest,
        labels_digest,
    }
}

fn fingerprint(manifest: &Value) -> Fingerprint {
    Fingerprint(digest::document(manifest))
}

/// Removes from a StatefulSet's spec what cannot be changed after creation: the comparison must not
/// depend on it. Gives what was removed.
fn remove_claims(spec: &mut Value) -> Option<Value> {
    spec.as_object_mut()?.remove(CLAIMS)
}

fn metadata(cluster: &ClusterRecord, name: &str) -> Value {
    let mut metadata = json!({
        "name": name,
        "namespace": *cluster.key.namespace,
        "labels": labels::all(cluster),
        "ownerReferences": owner_references(cluster),
    });
    customization::add_object_metadata(&mut metadata, cluster);
    metadata
}

/// The ownerReferences that make a cluster the controller of a child.
#[must_use]
pub fn owner_references(cluster: &ClusterRecord) -> Value {
    json!([{
        "apiVersion": names::API_VERSION,
        "kind": names::KIND,
        "name": *cluster.key.name,
        "uid": *cluster.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

fn sample() -> ClusterRecord {
    ClusterRecord {
        key: ObjectKey::new("namespace", "name"),
        uid: "uid".into(),
        bucket: shard_ownership::hash::Bucket::of("uid"),
        generation: 1,
        resource_version: String::new(),
        deleting: false,
        finalizers: Vec::new(),
        allows_empty_primary: false,
        has_excess_finalizers: false,
        spec: crate::api::DatabaseClusterSpec {
            replicas: 1,
            image: "image".to_owned(),
            resources: crate::api::Resources::default(),
            storage: crate::api::Storage::default(),
            customization: None,
        },
        status: crate::api::DatabaseClusterStatus::default(),
    }
}

#[cfg(test)]
mod tests;
