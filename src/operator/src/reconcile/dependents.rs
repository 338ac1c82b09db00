//! Dependents of a StatefulSet that the operator rarely changes: claims and Pods.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, Preconditions};
use kube::core::Request;
use serde_json::{Value, json};

use super::writer::{Writer, merge_params};
use crate::api::names;
use crate::core::claims;
use crate::core::observed::ClusterRecord;
use crate::postgres;
use sharded_controller::permit::ShardPermit;
use sharded_controller::refusal::Refusal;
use sharded_controller::write::Write;

/// Maximum number of claims of one cluster that are read: more than instances can leave behind.
const CLAIMS_MAX: u32 = 500;

type Quantities = BTreeMap<String, Quantity>;

/// A kind of object that depends on a StatefulSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dependent {
    Claim,
    Pod,
}

/// Reference to an observed object: its name, uid and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ObjectRef {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
}

impl ObjectRef {
    pub(super) fn of(meta: &ObjectMeta) -> Option<Self> {
        Some(Self {
            name: meta.name.clone()?,
            uid: meta.uid.clone()?,
            resource_version: meta.resource_version.clone()?,
        })
    }
}

/// A claim, if it has the name of one of this cluster's.
fn claim_of(
    cluster: &ClusterRecord,
    object: &PersistentVolumeClaim,
) -> Option<(ObjectRef, claims::Claim)> {
    let found = ObjectRef::of(&object.metadata)?;
    let set = postgres::statefulset_name(&cluster.key.name);
    let ordinal = claims::ordinal(&found.name, &set)?;
    let label = |name: &str| object.metadata.labels.as_ref()?.get(name);
    let annotations = object.metadata.annotations.as_ref();
    let has = |(name, value): &(&str, &str)| {
        annotations.is_some_and(|all| all.get(*name).is_some_and(|known| known == value))
    };
    let (spec, status) = (object.spec.as_ref(), object.status.as_ref());
    let size = |sizes: Option<&Quantities>| Some(sizes?.get("storage")?.0.clone());
    let requests = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let claim = claims::Claim {
        name: found.name.clone(),
        ordinal,
        cluster_uid: label(names::CLUSTER_UID_LABEL).cloned(),
        is_marked: label(names::CLUSTER_LABEL).is_some_and(|name| **name == *cluster.key.name)
            && claims::HANDS_OFF.iter().all(has),
        deleting: object.metadata.deletion_timestamp.is_some(),
        is_bound: status.and_then(|status| status.phase.as_deref()) == Some("Bound"),
        volume: spec.and_then(|spec| spec.volume_name.clone()),
        asks: size(requests),
        has: size(status.and_then(|status| status.capacity.as_ref())),
    };
    Some((found, claim))
}

impl Dependent {
    const fn label(self) -> &'static str {
        match self {
            Self::Claim => "PersistentVolumeClaim",
            Self::Pod => "Pod",
        }
    }

    fn resource(self) -> &'static ApiResource {
        static CLAIM: LazyLock<ApiResource> =
            LazyLock::new(|| ApiResource::erase::<PersistentVolumeClaim>(&()));
        static POD: LazyLock<ApiResource> = LazyLock::new(|| ApiResource::erase::<Pod>(&()));
        match self {
            Self::Claim => &CLAIM,
            Self::Pod => &POD,
        }
    }
}

impl Writer {
    /// The claims of a cluster, also those of former instances; with `all` also those that do not carry
    /// the operator's own label yet.
    pub(super) async fn claims(
        &self,
        cluster: &ClusterRecord,
        all: bool,
    ) -> Result<Vec<(ObjectRef, claims::Claim)>, Refusal> {
        let mut found = Vec::new();
        let selectors = postgres::claim_selectors(&[&*cluster.key.name]);
        for selector in selectors.iter().take(if all { 2 } else { 1 }) {
            let params = ListParams::default().labels(selector).limit(CLAIMS_MAX);
            found.extend(self.list_claims(cluster, &params).await?);
        }
        Ok(found)
    }

    /// The claims of each of these clusters of one namespace, also those that do not carry the operator's
    /// own label yet, in the order of the clusters. For clusters whose claims do not all fit into one
    /// list, nothing is returned, apart from the first cluster.
    pub(super) async fn claims_of(
        &self,
        clusters: &[Arc<ClusterRecord>],
    ) -> Result<Vec<Vec<claims::Claim>>, Refusal> {
        let Some(first) = clusters.first() else {
            return Ok(Vec::new());
        };
        let names: Vec<&str> = clusters.iter().map(|cluster| &*cluster.key.name).collect();
        let mut listed: Vec<PersistentVolumeClaim> = Vec::new();
        for selector in &postgres::claim_selectors(&names) {
            let params = ListParams::default().labels(selector).limit(CLAIMS_MAX);
            let namespace = &first.key.namespace;
            let found = self.client().list(namespace, &params).await;
            let found: Vec<_> = found.map_err(|error| self.client().classify(&error))?;
            if clusters.len() > 1 && found.len() >= CLAIMS_MAX as usize {
                let own = self.claims(first, true).await?;
                return Ok(vec![own.into_iter().map(|(_, claim)| claim).collect()]);
            }
            listed.extend(found);
        }
        let of = |cluster: &Arc<ClusterRecord>| {
            let claims = listed.iter();
            let found = claims.filter_map(|claim| claim_of(cluster, claim));
            found.map(|(_, claim)| claim).collect()
        };
        Ok(clusters.iter().map(of).collect())
    }

    /// A claim by its name, whatever its labels.
    pub(super) async fn claim(
        &self,
        cluster: &ClusterRecord,
        name: &str,
    ) -> Result<Option<(ObjectRef, claims::Claim)>, Refusal> {
        // A list, as the operator has no right to get claims.
        let params = ListParams::default().fields(&format!("metadata.name={name}"));
        Ok(self.list_claims(cluster, &params).await?.pop())
    }

    async fn list_claims(
        &self,
        cluster: &ClusterRecord,
        params: &ListParams,
    ) -> Result<Vec<(ObjectRef, claims::Claim)>, Refusal> {
        let namespace = &cluster.key.namespace;
        let list = self
            .client()
            .list::<PersistentVolumeClaim>(namespace, params);
        let list = list.await.map_err(|error| self.client().classify(&error))?;
        let claims = list.iter();
        Ok(claims
            .filter_map(|claim| claim_of(cluster, claim))
            .collect())
    }

    /// Labels a claim as this cluster's, and requests this size, if one is given.
    pub(super) async fn update_claim(
        &self,
        permit: &ShardPermit,
        cluster: &ClusterRecord,
        claim: &ObjectRef,
        size: Option<&str>,
    ) -> Result<(), Refusal> {
        let mut metadata = marks(permit, cluster);
        metadata["uid"] = json!(claim.uid);
        metadata["resourceVersion"] = json!(claim.resource_version);
        metadata["labels"][names::CLUSTER_UID_LABEL] = json!(*cluster.uid);
        metadata["labels"][names::CLUSTER_LABEL] = json!(*cluster.key.name);
        // By this label Argo CD takes the claim for an object of the application of that name.
        metadata["labels"][names::INSTANCE_LABEL] = Value::Null;
        for (name, value) in claims::HANDS_OFF {
            metadata["annotations"][name] = json!(value);
        }
        let mut patch = json!({ "metadata": metadata });
        if let Some(size) = size {
            patch["spec"] = json!({"resources": {"requests": {"storage": size}}});
        }
        let namespace = &cluster.key.namespace;
        let write = self.patch_belonging(namespace, Dependent::Claim, &claim.name, &patch);
        permit.guard(write).await?;
        Ok(())
    }

    /// Sets our fencing token on one of them and deletes it, with the grace that it has; that it is gone already is no
    /// failure. A conflict is one: it is still there, and somebody else changed it meanwhile.
    pub(super) async fn delete_dependent(
        &self,
        permit: &ShardPermit,
        cluster: &ClusterRecord,
        kind: Dependent,
        found: &ObjectRef,
    ) -> Result<(), Refusal> {
        let answer = self.mark_and_delete(permit, cluster, kind, found).await;
        match answer {
            Err(Refusal::Gone) => Ok(()),
            answer => answer,
        }
    }

    async fn mark_and_delete(
        &self,
        permit: &ShardPermit,
        cluster: &ClusterRecord,
        kind: Dependent,
        found: &ObjectRef,
    ) -> Result<(), Refusal> {
        let namespace = &cluster.key.namespace;
        let mut metadata = marks(permit, cluster);
        metadata["resourceVersion"] = json!(found.resource_version);
        let patch = json!({ "metadata": metadata });
        let marked = self.patch_belonging(namespace, kind, &found.name, &patch);
        let marked = permit.guard(marked).await?;
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(found.uid.clone()),
                resource_version: marked.resource_version,
            }),
            ..DeleteParams::default()
        };
        let (name, namespace) = (found.name.clone(), namespace.to_string());
        let write = self.client().write_with(kind.label(), |client| async move {
            let api: Api<DynamicObject> = Api::namespaced_with(client, &namespace, kind.resource());
            api.delete(&name, &params).await
        });
        permit.guard(write).await?;
        Ok(())
    }

    fn patch_belonging(
        &self,
        namespace: &str,
        kind: Dependent,
        name: &str,
        patch: &Value,
    ) -> Write<ObjectMeta> {
        let url = DynamicObject::url_path(kind.resource(), Some(namespace));
        let request = Request::new(url).patch(name, &merge_params(), &Patch::Merge(patch));
        self.client().write(kind.label(), request)
    }
}

/// What the fence asks of every object that is written.
fn marks(permit: &ShardPermit, cluster: &ClusterRecord) -> Value {
    json!({
        "labels": {names::BUCKET_LABEL: cluster.bucket.to_string()},
        "annotations": {names::FENCING_TOKEN_ANNOTATION: permit.token().for_cluster(&cluster.uid)},
    })
}
