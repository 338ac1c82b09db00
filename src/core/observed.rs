//! What was seen of the objects: compact records of what the reconcile needs, not the objects.

use std::sync::Arc;

use super::child::{ChildId, ChildKind, Fingerprint};
use super::hash::Bucket;
use super::object::{ObjectKey, Stamp};
use crate::api::{DatabaseClusterSpec, DatabaseClusterStatus, names};

/// What is kept of a `DatabaseCluster`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterRecord {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Uid.
    pub uid: Arc<str>,
    /// Where the uid lies on the hash circle.
    pub bucket: Bucket,
    /// Generation of the spec.
    pub generation: i64,
    /// Resource version.
    pub resource_version: String,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Its finalizers, all of them: the list can only be written whole.
    pub finalizers: Vec<String>,
    /// The stamp in its annotation; none when it is malformed.
    pub stamp: Option<Stamp>,
    /// What is asked for.
    pub spec: DatabaseClusterSpec,
    /// What was last reported.
    pub status: DatabaseClusterStatus,
}

impl ClusterRecord {
    /// Whether our finalizer is on it.
    #[must_use]
    pub fn has_finalizer(&self) -> bool {
        self.finalizers.iter().any(|f| f == names::FINALIZER)
    }

    /// Whether the user asked that the children outlive it (`kubectl delete --cascade=orphan`).
    #[must_use]
    pub fn orphans_children(&self) -> bool {
        self.finalizers.iter().any(|f| f == "orphan")
    }
}

/// The controller that owns an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its `apiVersion`.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// What is kept of a child's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildRecord {
    /// Kind.
    pub kind: ChildKind,
    /// Namespace and name.
    pub key: ObjectKey,
    /// Uid.
    pub uid: String,
    /// Resource version.
    pub resource_version: String,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Its controller, if it has one.
    pub owner: Option<Owner>,
    /// The bucket in its label; none when it is malformed.
    pub bucket: Option<Bucket>,
    /// The stamp in its annotation; none when it is malformed.
    pub stamp: Option<Stamp>,
    /// The fingerprint in its annotation.
    pub fingerprint: Option<Fingerprint>,
    /// The generation of the `DatabaseCluster` that it was made from.
    pub made_from_generation: Option<i64>,
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
    pub fn cluster_key(&self) -> Option<ObjectKey> {
        let owner = self.owner.as_ref()?;
        (owner.kind == names::KIND && is_our_group(&owner.api_version)).then(|| ObjectKey {
            namespace: Arc::clone(&self.key.namespace),
            name: owner.name.as_str().into(),
        })
    }
}

/// Whether an `apiVersion` is of our group, in whatever version.
#[must_use]
pub fn is_our_group(api_version: &str) -> bool {
    api_version.split('/').next() == Some(names::GROUP)
}

/// The part of a StatefulSet that cannot be changed after creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimTemplate {
    /// Size of each volume.
    pub size: String,
    /// StorageClass, if one was asked for.
    pub class_name: Option<String>,
}

/// What is kept of a StatefulSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatefulSetRecord {
    /// Its metadata.
    pub child: ChildRecord,
    /// Generation of its spec.
    pub generation: i64,
    /// Digest of the spec's fields that we own: drift is seen without keeping the object.
    pub spec_digest: u64,
    /// Digest of the labels that we own.
    pub labels_digest: u64,
    /// Image of its instances.
    pub image: String,
    /// Size and number of the claims that were last grown, as `claims::grown` writes it.
    pub grown: Option<String>,
    /// Its volume claim template, as it was when it was created.
    pub claim: Option<ClaimTemplate>,
    /// Replicas that its spec asks for.
    pub spec_replicas: i32,
    /// The generation that its status is about.
    pub observed_generation: i64,
    /// Pods that exist.
    pub replicas: i32,
    /// Pods that are ready.
    pub ready_replicas: i32,
    /// Pods made from the newest template.
    pub updated_replicas: i32,
    /// Pods that have been ready for long enough.
    pub available_replicas: i32,
    /// Revision that Pods had before the roll-out.
    pub current_revision: String,
    /// Revision that Pods get.
    pub update_revision: String,
}

impl StatefulSetRecord {
    /// Whether every Pod that it asks for exists, is ready and is made from the newest template.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let wanted = self.spec_replicas;
        self.observed_generation >= self.generation
            && self.replicas == wanted
            && self.ready_replicas == wanted
            && (wanted == 0 || !self.is_rolling())
    }

    /// Whether Pods are still to be replaced by ones of the newest template.
    #[must_use]
    pub fn is_rolling(&self) -> bool {
        self.observed_generation < self.generation
            || (self.current_revision != self.update_revision
                && self.updated_replicas < self.spec_replicas)
    }
}
