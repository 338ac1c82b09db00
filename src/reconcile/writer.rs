//! Every write of the operator: checked against the tenure right before it is sent, marked with the
//! fencing token, and bound to the observed version or uid.

use std::fmt::Debug;
use std::future::Future;
use std::sync::{Arc, LazyLock};

use http::header::{ACCEPT, HeaderValue};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions,
    PropagationPolicy,
};
use kube::core::Request;
use kube::{Client, Resource};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::failure::{Refusal, judge};
use super::writes::RefusedWrites;
use crate::api::{DatabaseCluster, DatabaseClusterStatus, names};
use crate::core::child::{ChildId, ChildKind};
use crate::core::object::ObjectKey;
use crate::core::observed::{ChildRecord, ClusterRecord};
use crate::core::outcome::Failure;
use crate::core::plan::Precondition;
use crate::fleet::tenure::{Tenure, boottime_ms};
use crate::postgres;
use crate::telemetry::metrics::Metrics;
use crate::watch::wire::WireMeta;

/// No object ever has this version: etcd's first write gets 2. An apply that names it creates the
/// object or conflicts with an existing one.
const VERSION_OF_NOTHING: &str = "1";
const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// The part of the answer to a write that is read.
#[derive(Deserialize)]
struct Answer {
    metadata: WireMeta,
}

/// Sends writes.
#[derive(Clone)]
pub(super) struct Writer {
    client: Client,
    metrics: Arc<Metrics>,
    writes: Arc<RefusedWrites>,
}

impl Writer {
    pub(super) fn new(client: Client, metrics: Arc<Metrics>) -> Self {
        Self {
            client,
            metrics,
            writes: Arc::default(),
        }
    }

    /// Shards in which all writes are refused.
    pub(super) fn writes(&self) -> &RefusedWrites {
        &self.writes
    }

    /// Sends a write of a fenced kind, and records whether it was accepted; see [`Self::send`].
    pub(super) async fn guarded<T>(
        &self,
        tenure: &Tenure,
        kind: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Refusal> {
        let answer = self.send(tenure, request).await;
        match &answer {
            Ok(_) => self.writes.accepted(tenure.shard()),
            Err(refusal) => {
                self.writes.refused(tenure.shard(), refusal, boottime_ms());
                if matches!(refusal, Refusal::Fenced { .. }) {
                    let counter = &self.metrics.fenced_writes_total;
                    counter.with_label_values(&[kind]).inc();
                }
            }
        }
        answer
    }

    /// Sends a write unless the right to act has ended, and stops waiting for its answer when that
    /// ends.
    pub(super) async fn send<T>(
        &self,
        tenure: &Tenure,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Refusal> {
        if tenure.check().is_err() {
            self.metrics.tenure_lost_total.inc();
            return Err(Refusal::Failure(Failure::Lost));
        }
        let answer = tokio::select! {
            biased;
            () = tenure.ended() => return Err(Refusal::Failure(Failure::Lost)),
            answer = request => answer,
        };
        answer.map_err(|error| judge(&error))
    }

    /// Applies a child; returns its metadata.
    pub(super) async fn apply(
        &self,
        tenure: &Tenure,
        namespace: &str,
        id: &ChildId,
        mut manifest: Value,
        precondition: &Precondition,
    ) -> Result<ObjectMeta, Refusal> {
        match precondition {
            Precondition::Absent => {
                manifest["metadata"]["resourceVersion"] = json!(VERSION_OF_NOTHING);
            }
            Precondition::Uid(uid) => manifest["metadata"]["uid"] = json!(uid),
        }
        let params = PatchParams::apply(names::FIELD_MANAGER).force();
        let request = self.patch_child(namespace, id, params, Patch::Apply(&manifest));
        self.guarded(tenure, id.kind.label(), request).await
    }

    /// Creates a child that is never changed, or checks by a dry run whether that would succeed. An
    /// existing one of its name is a conflict.
    pub(super) async fn create(
        &self,
        tenure: &Tenure,
        namespace: &str,
        id: &ChildId,
        manifest: Value,
        trial: bool,
    ) -> Result<(), Refusal> {
        let params = PostParams {
            dry_run: trial,
            field_manager: Some(names::FIELD_MANAGER.to_owned()),
        };
        let request = async {
            let url = DynamicObject::url_path(resource(id.kind), Some(namespace));
            let body = serde_json::to_vec(&manifest).map_err(kube::Error::SerdeError)?;
            self.ask(Request::new(url).create(&params, body)).await
        };
        self.guarded(tenure, id.kind.label(), request).await?;
        Ok(())
    }

    /// Sets an annotation of a child; returns its new version.
    pub(super) async fn annotate_child(
        &self,
        tenure: &Tenure,
        cluster: &ClusterRecord,
        child: &ChildRecord,
        (annotation, value): (&str, &str),
    ) -> Result<String, Refusal> {
        let patch = json!({"metadata": {
            "uid": child.uid,
            "labels": {names::BUCKET_LABEL: cluster.bucket.to_string()},
            "annotations": {
                annotation: value,
                names::FENCING_TOKEN_ANNOTATION: tenure.token().for_cluster(&cluster.uid),
            },
        }});
        let id = child.id();
        let request = self.patch_child(
            &cluster.key.namespace,
            &id,
            merge_params(),
            Patch::Merge(&patch),
        );
        let answer = self.guarded(tenure, id.kind.label(), request).await?;
        Ok(answer.resource_version.unwrap_or_default())
    }

    /// The metadata of a child that the watch does not show.
    pub(super) async fn child_metadata(
        &self,
        namespace: &str,
        id: &ChildId,
    ) -> Result<Option<ObjectMeta>, Refusal> {
        let api = self.children(namespace, id.kind);
        match api.get_metadata_opt(&id.name).await {
            Ok(found) => Ok(found.map(|object| object.metadata)),
            Err(error) => Err(judge(&error)),
        }
    }

    /// Sets our fencing token and bucket on a child, and makes the cluster its controller if it has
    /// none; `version`: the required version of the child. Returns its new version.
    pub(super) async fn mark_child(
        &self,
        tenure: &Tenure,
        cluster: &ClusterRecord,
        child: &ChildRecord,
        version: Option<&str>,
    ) -> Result<String, Refusal> {
        let mut metadata = json!({
            "uid": child.uid,
            "labels": {names::BUCKET_LABEL: cluster.bucket.to_string()},
            "annotations": {names::FENCING_TOKEN_ANNOTATION: tenure.token().for_cluster(&cluster.uid)},
        });
        if let Some(version) = version {
            metadata["resourceVersion"] = json!(version);
        }
        if child.owner.is_none() {
            metadata["ownerReferences"] = postgres::owner_references(cluster);
            // It records the generations of another cluster.
            metadata["annotations"][names::GENERATION_ANNOTATION] = Value::Null;
        }
        let id = child.id();
        // Unlike a merge patch, this one does not replace other ownerReferences.
        let patch = Patch::Strategic(json!({ "metadata": metadata }));
        let request = self.patch_child(&cluster.key.namespace, &id, merge_params(), patch);
        let answer = self.guarded(tenure, id.kind.label(), request).await?;
        Ok(answer.resource_version.unwrap_or_default())
    }

    /// Deletes a child and, first, its dependents.
    pub(super) async fn delete_child(
        &self,
        tenure: &Tenure,
        namespace: &str,
        id: &ChildId,
        uid: &str,
        resource_version: &str,
    ) -> Result<(), Refusal> {
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: Some(resource_version.to_owned()),
            }),
            ..DeleteParams::default()
        };
        let api = self.children(namespace, id.kind);
        let request = api.delete(&id.name, &params);
        self.guarded(tenure, id.kind.label(), request).await?;
        Ok(())
    }

    /// Sets the finalizers of a cluster, and the fencing token with them; returns its new version.
    pub(super) async fn set_finalizers(
        &self,
        tenure: &Tenure,
        cluster: &ClusterRecord,
        resource_version: &str,
        finalizers: &[&str],
    ) -> Result<String, Refusal> {
        let patch = json!({"metadata": {
            "resourceVersion": resource_version,
            "finalizers": finalizers,
            "annotations": {names::FENCING_TOKEN_ANNOTATION: tenure.token().for_cluster(&cluster.uid)},
        }});
        let request = async {
            let url = DatabaseCluster::url_path(&(), Some(&cluster.key.namespace));
            let patch = Patch::Merge(&patch);
            self.ask(Request::new(url).patch(&cluster.key.name, &merge_params(), &patch))
                .await
        };
        let answer = self.guarded(tenure, names::KIND, request).await?;
        Ok(answer.resource_version.unwrap_or_default())
    }

    /// Writes the status of a cluster; returns its new version.
    pub(super) async fn set_status(
        &self,
        tenure: &Tenure,
        key: &ObjectKey,
        resource_version: &str,
        status: &DatabaseClusterStatus,
    ) -> Result<String, Refusal> {
        // The uid in a status write protects nothing: only the version does.
        let patch = Patch::Merge(json!({
            "metadata": {"resourceVersion": resource_version},
            "status": status,
        }));
        let request = async {
            let url = DatabaseCluster::url_path(&(), Some(&key.namespace));
            let params = merge_params();
            self.ask(Request::new(url).patch_subresource("status", &key.name, &params, &patch))
                .await
        };
        let answer = self.guarded(tenure, names::KIND, request).await?;
        Ok(answer.resource_version.unwrap_or_default())
    }

    async fn patch_child<P: Serialize + Debug>(
        &self,
        namespace: &str,
        id: &ChildId,
        params: PatchParams,
        patch: Patch<P>,
    ) -> kube::Result<ObjectMeta> {
        let url = DynamicObject::url_path(resource(id.kind), Some(namespace));
        self.ask(Request::new(url).patch(&id.name, &params, &patch))
            .await
    }

    /// Sends a write and requests only metadata in return: the whole object is not needed.
    async fn ask(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> kube::Result<ObjectMeta> {
        let mut request = request.map_err(kube::Error::BuildRequest)?;
        request
            .headers_mut()
            .insert(ACCEPT, HeaderValue::from_static(METADATA_ONLY));
        let answer: Answer = self.client.request(request).await?;
        Ok(answer.metadata.into())
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    fn children(&self, namespace: &str, kind: ChildKind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, resource(kind))
    }
}

pub(super) fn merge_params() -> PatchParams {
    PatchParams {
        field_manager: Some(names::FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn resource(kind: ChildKind) -> &'static ApiResource {
    static CONFIG_MAP: LazyLock<ApiResource> =
        LazyLock::new(|| ApiResource::erase::<ConfigMap>(&()));
    static BUDGET: LazyLock<ApiResource> =
        LazyLock::new(|| ApiResource::erase::<PodDisruptionBudget>(&()));
    static SECRET: LazyLock<ApiResource> = LazyLock::new(|| ApiResource::erase::<Secret>(&()));
    static SERVICE: LazyLock<ApiResource> = LazyLock::new(|| ApiResource::erase::<Service>(&()));
    static STATEFULSET: LazyLock<ApiResource> =
        LazyLock::new(|| ApiResource::erase::<StatefulSet>(&()));
    match kind {
        ChildKind::ConfigMap => &CONFIG_MAP,
        ChildKind::PodDisruptionBudget => &BUDGET,
        ChildKind::Secret => &SECRET,
        ChildKind::Service => &SERVICE,
        ChildKind::StatefulSet => &STATEFULSET,
    }
}
