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

    /// Asks for a claim of at least this size.
    pub(super) async fn grow_claim(
        &self,
        tenure: &Tenure,
        cluster: &ClusterRecord,
        name: &str,
    ) -> Result<(), Refusal> {
        let patch = json!({
            "metadata": marks(tenure, cluster),
            "spec": {"resources": {"requests": {"storage": cluster.spec.storage.size}}},
        });
        let api = self.belongings(&cluster.key.namespace, Belonging::Claim);
        let params = merge_params();
        let patch = Patch::Merge(&patch);
        let request = api.patch_metadata(name, &params, &patch);
        self.guarded(tenure, Belonging::Claim.label(), request)
            .await?;
        Ok(())
    }

    /// Stamps one of them and deletes it, with the grace that it has; that it is gone already is no
    /// failure. A conflict is one: it is still there, and somebody else changed it meanwhile.
    pub(super) async fn delete_belonging(
        &self,
        tenure: &Tenure,
        cluster: &ClusterRecord,
        kind: Belonging,
        found: &Found,
    ) -> Result<(), Refusal> {
        let answer = self.stamp_and_delete(tenure, cluster, kind, found).await;
        match answer {
            Err(Refusal::Gone) => Ok(()),
            answer => answer,
        }
    }

    async fn stamp_and_delete(
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
        let stamped = self.guarded(tenure, kind.label(), request).await?;
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(found.uid.clone()),
                resource_version: stamped.metadata.resource_version,
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
