//! What belongs to a StatefulSet and the operator touches on rare occasions: claims and Pods.

use std::sync::LazyLock;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, Preconditions};
use kube::core::PartialObjectMeta;
use serde_json::{Value, json};

use super::failure::{Refusal, judge};
use super::writer::{Writer, merge_params};
use crate::api::names;
use crate::core::observed::ClusterRecord;
use crate::fleet::tenure::Tenure;
use crate::postgres;

/// Most claims of one cluster that are looked at: more than instances can leave behind.
const CLAIMS_MAX: u32 = 500;

/// A kind of object that belongs to a StatefulSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Belonging {
    Claim,
    Pod,
}

/// One of them, as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
}

impl Found {
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

/// The uid of the cluster that a claim is labelled with.
pub(super) fn cluster_uid(
    meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> Option<&str> {
    let label = meta.labels.as_ref()?.get(names::CLUSTER_UID_LABEL);
    label.map(String::as_str)
}

impl Belonging {
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
    /// The claims of a cluster, also those of former instances: metadata only.
    pub(super) async fn claims(
        &self,
        cluster: &ClusterRecord,
    ) -> Result<Vec<PartialObjectMeta<DynamicObject>>, Refusal> {
        let api = self.belongings(&cluster.key.namespace, Belonging::Claim);
        let params = ListParams::default()
            .labels(&postgres::selector_text(&cluster.key.name))
            .limit(CLAIMS_MAX);
        match api.list_metadata(&params).await {
            Ok(list) => Ok(list.items),
            Err(error) => Err(judge(&error)),
        }
    }

    /// A claim by its name, whatever its labels: metadata only.
    pub(super) async fn claim(
        &self,
        cluster: &ClusterRecord,
        name: &str,
    ) -> Result<Option<PartialObjectMeta<DynamicObject>>, Refusal> {
        let api = self.belongings(&cluster.key.namespace, Belonging::Claim);
        // A list, as the operator has no right to get claims.
        let params = ListParams::default().fields(&format!("metadata.name={name}"));
        match api.list_metadata(&params).await {
            Ok(list) => Ok(list.items.into_iter().next()),
            Err(error) => Err(judge(&error)),
        }
    }

    /// Labels a claim as this cluster's, and asks for at least this size, if one is given.
    pub(super) async fn update_claim(
        &self,
        tenure: &Tenure,
        cluster: &ClusterRecord,
        claim: &Found,
        size: Option<&str>,
    ) -> Result<(), Refusal> {
        let mut metadata = marks(tenure, cluster);
        metadata["uid"] = json!(claim.uid);
        metadata["resourceVersion"] = json!(claim.resource_version);
        metadata["labels"][names::CLUSTER_UID_LABEL] = json!(*cluster.uid);
        let mut patch = json!({ "metadata": metadata });
        if let Some(size) = size {
            patch["spec"] = json!({"resources": {"requests": {"storage": size}}});
        }
        let api = self.belongings(&cluster.key.namespace, Belonging::Claim);
        let params = merge_params();
        let patch = Patch::Merge(&patch);
        let request = api.patch_metadata(&claim.name, &params, &patch);
        self.guarded(tenure, Belonging::Claim.label(), request)
            .await?;
        Ok(())
    }

    /// Sets our fencing token on one of them and deletes it, with the grace that it has; that it is gone already is no
    /// failure. A conflict is one: it is still there, and somebody else changed it meanwhile.
    pub(super) async fn delete_belonging(
        &self,
        tenure: &Tenure,
        cluster: &ClusterRecord,
        kind: Belonging,
        found: &Found,
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
        kind: Belonging,
        found: &Found,
    ) -> Result<(), Refusal> {
        let api = self.belongings(&cluster.key.namespace, kind);
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

    fn belongings(&self, namespace: &str, kind: Belonging) -> Api<DynamicObject> {
        Api::namespaced_with(self.client(), namespace, kind.resource())
    }
}

/// What the fence asks of every object that is written.
fn marks(tenure: &Tenure, cluster: &ClusterRecord) -> Value {
    json!({
        "labels": {names::BUCKET_LABEL: cluster.bucket.to_string()},
        "annotations": {names::FENCING_TOKEN_ANNOTATION: tenure.token().for_cluster(&cluster.uid)},
    })
}
