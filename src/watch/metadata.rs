//! Children of which only metadata is watched and kept.

use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Resource;
use kube::core::NamespaceResourceScope;

use super::source::Kept;
use super::store::{Store, child_epoch};
use crate::core::child::{ChildId, ChildKind};
use crate::core::hash::Bucket;
use crate::core::object::ObjectKey;
use crate::core::observed::ChildRecord;

/// A kind of child of which only metadata is watched. Secrets are none: they are not watched at all.
pub trait MetadataChild:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Send + Sync + 'static
{
    /// Its kind.
    const KIND: ChildKind;
    /// Its plural, for logs, health and metrics.
    const PLURAL: &'static str;
}

impl MetadataChild for Service {
    const KIND: ChildKind = ChildKind::Service;
    const PLURAL: &'static str = "services";
}

impl MetadataChild for ConfigMap {
    const KIND: ChildKind = ChildKind::ConfigMap;
    const PLURAL: &'static str = "configmaps";
}

impl MetadataChild for PodDisruptionBudget {
    const KIND: ChildKind = ChildKind::PodDisruptionBudget;
    const PLURAL: &'static str = "poddisruptionbudgets";
}

/// What is kept of a child of the kind `K`.
pub struct OfKind<K> {
    record: ChildRecord,
    kind: PhantomData<fn() -> K>,
}

impl<K> OfKind<K> {
    /// The record of a child of this kind.
    #[must_use]
    pub const fn new(record: ChildRecord) -> Self {
        Self {
            record,
            kind: PhantomData,
        }
    }
}

impl<K: MetadataChild> Kept for OfKind<K> {
    fn key(&self) -> &ObjectKey {
        &self.record.key
    }

    fn uid(&self) -> &str {
        &self.record.uid
    }

    fn bucket(&self) -> Option<Bucket> {
        self.record.bucket
    }

    fn cluster_key(&self) -> Option<ObjectKey> {
        self.record.cluster_key()
    }

    fn epoch(&self) -> Option<u32> {
        child_epoch(&self.record)
    }

    fn upsert(self, store: &Store) {
        store.upsert_child(self.record);
    }

    fn remove(store: &Store, key: &ObjectKey, uid: Option<&str>) -> Option<ObjectKey> {
        let id = ChildId {
            kind: K::KIND,
            name: Arc::clone(&key.name),
        };
        let known = store.child(&key.namespace, &id)?;
        let uid = uid.unwrap_or(&known.uid);
        let cluster = known.cluster_key();
        store.remove_child(id.kind, key, uid).then_some(cluster)?
    }
}
