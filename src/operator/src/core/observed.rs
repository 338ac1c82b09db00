//! Observed state of the objects: compact records of what a reconcile needs instead of whole
//! objects.

use std::sync::Arc;

use super::child::{ChildId, ChildKind, Fingerprint};
use crate::api::{DatabaseClusterSpec, DatabaseClusterStatus, names};
use shard_ownership::hash::Bucket;
use sharded_controller::object::ObjectKey;

/// Maximum number of finalizers of one cluster that are stored: users add them, and memory is
/// bounded.
pub(crate) const FINALIZERS_MAX: usize = 64;

/// The stored part of a `DatabaseCluster`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterRecord {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// Bucket of the uid on the hash circle.
    pub bucket: Bucket,
    /// Generation of the spec.
    pub generation: i64,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Its finalizers, all of them: the list can only be written as a whole.
    pub finalizers: Vec<String>,
    /// Whether the user allows the primary to start with an empty volume although volumes of its
    /// replicas exist.
    pub allows_empty_primary: bool,
    /// Whether it has more finalizers than are stored: then the operator cannot write the list.
    pub has_excess_finalizers: bool,
    /// The spec.
    pub spec: DatabaseClusterSpec,
    /// The last reported status.
    pub status: DatabaseClusterStatus,
}

impl ClusterRecord {
    /// Whether our finalizer is on it.
    #[must_use]
    pub(crate) fn has_finalizer(&self) -> bool {
        self.finalizers.iter().any(|f| f == names::FINALIZER)
    }

    /// Whether the user requested that the children outlive it (`kubectl delete --cascade=orphan`).
    #[must_use]
    pub(crate) fn orphans_children(&self) -> bool {
        self.finalizers.iter().any(|f| f == "orphan")
    }
}

/// The controller that owns an object. One text, not four: each child has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    text: Box<str>,
    /// Where `apiVersion`, kind and name end in it; the uid is the rest.
    ends: [u32; 3],
}

impl Owner {
    /// An owner from its `apiVersion`, kind, name and uid.
    #[must_use]
    pub fn new(api_version: &str, kind: &str, name: &str, uid: &str) -> Self {
        let end = |parts: &[&str]| {
            let length = parts.iter().map(|part| part.len()).sum::<usize>();
            u32::try_from(length).unwrap_or(u32::MAX)
        };
        Self {
            text: [api_version, kind, name, uid].concat().into(),
            ends: [
                end(&[api_version]),
                end(&[api_version, kind]),
                end(&[api_version, kind, name]),
            ],
        }
    }

    fn part(&self, from: Option<u32>, to: Option<u32>) -> &str {
        let place = |end: u32| usize::try_from(end).unwrap_or(usize::MAX);
        let (from, to) = (from.map_or(0, place), to.map_or(self.text.len(), place));
        self.text.get(from..to).unwrap_or_default()
    }

    /// Its `apiVersion`.
    #[must_use]
    pub fn api_version(&self) -> &str {
        self.part(None, Some(self.ends[0]))
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.part(Some(self.ends[0]), Some(self.ends[1]))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.part(Some(self.ends[1]), Some(self.ends[2]))
    }

    /// Its uid.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.part(Some(self.ends[2]), None)
    }
}

/// The stored part of a child's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildRecord {
    /// Kind.
    pub kind: ChildKind,
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Its controller, if it has one.
    pub owner: Option<Owner>,
    /// Whether it carries the operator's labels, bucket and fingerprint.
    pub is_marked: bool,
    /// Whether it says that the volume of the primary has data.
    pub reports_initialized: bool,
    /// The bucket in its label; none when it is malformed.
    pub bucket: Option<Bucket>,
    /// Digest of the fencing token in its annotation; none when there is no token.
    pub token: Option<u64>,
    /// The fingerprint in its annotation.
    pub fingerprint: Option<Fingerprint>,
    /// The generation of the `DatabaseCluster` from which it was rendered.
    pub rendered_from_generation: Option<i64>,
    /// Digest of everything but its status; none for kinds whose objects do not count the
    /// generations of their spec.
    pub contents: Option<u64>,
}

impl ChildRecord {
    /// Kind and name.
    #[must_use]
    pub fn id(&self) -> ChildId {
        ChildId {
            kind: self.kind,
            name: Arc::clone(&self.key.name),
        }
    }

    /// The cluster that this child belongs to, when its controller is a `DatabaseCluster`.
    #[must_use]
    pub(crate) fn cluster_key(&self) -> Option<ObjectKey> {
        let owner = self.owner.as_ref()?;
        (owner.kind() == names::KIND && is_our_group(owner.api_version())).then(|| ObjectKey {
            namespace: Arc::clone(&self.key.namespace),
            name: owner.name().into(),
        })
    }
}

/// Whether an `apiVersion` is of our group, in whatever version.
#[must_use]
pub(crate) fn is_our_group(api_version: &str) -> bool {
    api_version.split('/').next() == Some(names::GROUP)
}

/// The labels by which a StatefulSet selects its Pods. Its claims get the same ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Selector {
    /// By the operator's own label.
    #[default]
    Own,
    /// By the recommended labels, as an earlier version created it. Argo CD takes claims that carry
    /// `app.kubernetes.io/instance` for objects of the application of that name.
    Recommended,
}

/// The part of a StatefulSet that cannot be changed after creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimTemplate {
    /// Size of each volume.
    pub size: String,
    /// StorageClass, if one was requested.
    pub class_name: Option<String>,
    /// Uid of the cluster with which claims created from it are labelled, if they are.
    pub cluster_uid: Option<Box<str>>,
    /// How the StatefulSet selects its Pods.
    pub selector: Selector,
    /// Uid of the cluster for which the StatefulSet was created, as in its Pod template. It stays
    /// when another cluster adopts the StatefulSet, so that no Pod restarts.
    pub created_for: Option<Box<str>>,
}

/// The stored part of a StatefulSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatefulSetRecord {
    /// Its metadata.
    pub child: ChildRecord,
    /// Generation of its spec.
    pub generation: i64,
    /// Digest of the spec's fields that we own: drift is detected without storing the object.
    pub spec_digest: u64,
    /// Digest of the labels that we own.
    pub labels_digest: u64,
    /// Image of its instances.
    pub image: String,
    /// What was done for its claims, see `claims::ClaimMaintenance::done`.
    pub claims_done: Option<String>,
    /// Its volume claim template, as it was when it was created.
    pub claim: Option<ClaimTemplate>,
    /// The Secret with the certificate of its instances, if they have one.
    pub tls_secret: Option<Box<str>>,
    /// Replicas that its spec requests.
    pub spec_replicas: i32,
    /// The generation that its status is about.
    pub observed_generation: i64,
    /// Pods that exist.
    pub replicas: i32,
    /// Pods that are ready.
    pub ready_replicas: i32,
    /// Pods of the newest template.
    pub updated_replicas: i32,
    /// Pods that have been ready for long enough.
    pub available_replicas: i32,
    /// Revision of the Pods before the rollout.
    pub current_revision: String,
    /// Revision of the Pods after the rollout.
    pub update_revision: String,
}

impl StatefulSetRecord {
    /// Whether its controller has observed its newest generation.
    #[must_use]
    pub(crate) fn is_observed(&self) -> bool {
        self.observed_generation >= self.generation
    }

    /// Whether every Pod that it requests exists, is ready and has the newest template.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let wanted = self.spec_replicas;
        self.is_observed()
            && self.replicas == wanted
            && self.ready_replicas == wanted
            && (wanted == 0 || !self.is_rolling())
    }

    /// Whether Pods are still to be replaced by ones of the newest template.
    #[must_use]
    pub(crate) fn is_rolling(&self) -> bool {
        !self.is_observed()
            || (self.current_revision != self.update_revision
                && self.updated_replicas < self.spec_replicas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_text_round_trips_whatever_its_parts_contain() {
        for [api_version, kind, name, uid] in [
            ["database.io/v1", "DatabaseCluster", "orders", "u"],
            ["", "", "", ""],
            ["v1", "", "ö\n", "é"],
        ] {
            let owner = Owner::new(api_version, kind, name, uid);
            assert_eq!(
                [owner.api_version(), owner.kind(), owner.name(), owner.uid()],
                [api_version, kind, name, uid]
            );
        }
        assert_ne!(Owner::new("a", "b", "", ""), Owner::new("ab", "", "", ""));
    }
}
