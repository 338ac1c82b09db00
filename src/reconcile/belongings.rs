//! Dependents of a StatefulSet that the operator rarely changes: claims and Pods.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, Preconditions};
use serde_json::{Value, json};

use super::failure::{Refusal, judge};
use super::writer::{Writer, merge_params};
use crate::api::names;
use crate::core::claims;
use crate::core::observed::ClusterRecord;
use crate::fleet::tenure::Tenure;
use crate::postgres;

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
    pub(super) fn of(
        meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    ) -> Option<Self> {
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
        let selectors = postgres::claim_selectors(&cluster.key.name);
        for selector in selectors.iter().take(if all { 2 } else { 1 }) {
            let params = ListParams::default().labels(selector).limit(CLAIMS_MAX);
            found.extend(self.list_claims(cluster, &params).await?);
        }
        Ok(found)
    }

    /// A claim by its name, whatever its labels.
    pub(super) async fn claim(
        &self,
        cluster: &ClusterRecord,
        name: &str,
    ) -> Result<Option<(ObjectRef, claims::Claim)>, Refusal> {
        // A list, because the operator has no permission to get claims.
        let params = ListParams::default().fields(&format!("metadata.name={name}"));
        Ok(self.list_claims(cluster, &params).await?.pop())
    }

    async fn list_claims(
        &self,
        cluster: &ClusterRecord,
        params: &ListParams,
    ) -> Result<Vec<(ObjectRef, claims::Claim)>, Refusal> {
        let api: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client(), &cluster.key.namespace);
        let list = api.list(params).await.map_err(|error| judge(&error))?;
        let claims = list.items.iter();
        Ok(claims
            .filter_map(|claim| claim_of(cluster, claim))
            .collect())
    }

    /// Labels a claim as this cluster's, and requests this size, if one is given.
    pub(super) async fn update_claim(
        &self,
        tenure: &Tenure,
        cluster: &ClusterRecord,
        claim: &ObjectRef,
        size: Option<&str>,
    ) -> Result<(), Refusal> {
        let mut metadata = marks(tenure, cluster);
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
        let api = self.dependents(&cluster.key.namespace, Dependent::Claim);
        let params = merge_params();
        let patch = Patch::Merge(&patch);
        let request = api.patch_metadata(&claim.name, &params, &patch);
        self.guarded(tenure, Dependent::Claim.label(), request)
            .await?;
        Ok(())
    }

    /// Sets our fencing token on a dependent and deletes it, with its own grace period; that it was deleted already is
    /// not a failure. A conflict is: the object still exists, and was changed meanwhile.
    pub(super) async fn delete_dependent(
        &self,
        tenure: &Tenure,
        cluster: &ClusterRecord,
        kind: Dependent,
        found: &ObjectRef,
    ) -> Result<(), Refusal> {
        let answer = self.mark_and_delete(tenure, cluster, kind, found).await;
        match answer {
            Err(Refusal::Gone) => Ok(()),
            answer => answer,
        }
    }

    async fn mark_and_delete(
        &self,
        tenure: &Tenure,
        cluster: &ClusterRecord,
        kind: Dependent,
        found: &ObjectRef,
    ) -> Result<(), Refusal> {
        let api = self.dependents(&cluster.key.namespace, kind);
        let mut metadata = marks(tenure, cluster);
        metadata["resourceVersion"] = json!(found.resource_version);
        let (params, patch) = (merge_params(), json!({ "metadata": metadata }));
        let patch = Patch::Merge(&patch);
        let request = api.patch_metadata(&found.name, &params, &patch);
        let marked = self.guarded(tenure, kind.label(), request).await?;
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(found.uid.clone()),
                resource_version: marked.metadata.resource_version,
            }),
            ..DeleteParams::default()
        };
        let request = api.delete(&found.name, &params);
        self.guarded(tenure, kind.label(), request).await?;
        Ok(())
    }

    fn dependents(&self, namespace: &str, kind: Dependent) -> Api<DynamicObject> {
        Api::namespaced_with(self.client(), namespace, kind.resource())
    }
}

/// Token and labels that the fence requires on every written object.
fn marks(tenure: &Tenure, cluster: &ClusterRecord) -> Value {
    json!({
        "labels": {names::BUCKET_LABEL: cluster.bucket.to_string()},
        "annotations": {names::FENCING_TOKEN_ANNOTATION: tenure.token().for_cluster(&cluster.uid)},
    })
}
