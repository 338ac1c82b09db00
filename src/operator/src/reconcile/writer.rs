//! Every write of the operator: sent under a permit, marked with the fencing token, and bound to the
//! version or uid of what was observed.

use std::fmt::Debug;
use std::sync::LazyLock;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions,
    PropagationPolicy,
};
use kube::core::Request;
use kube::core::request::Error as RequestError;
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::{DatabaseCluster, DatabaseClusterStatus, names};
use crate::core::child::{ChildId, ChildKind};
use crate::core::observed::{ChildRecord, ClusterRecord};
use crate::core::plan::Precondition;
use crate::postgres;
use sharded_controller::object::ObjectKey;
use sharded_controller::permit::ShardPermit;
use sharded_controller::refusal::Refusal;
use sharded_controller::write::{GuardedClient, Write};

/// No object ever has this version: etcd's first write gets 2. An apply that names it creates the
/// object or conflicts with an existing one.
const VERSION_OF_NOTHING: &str = "1";

/// Describes and sends the writes of the reconciler.
#[derive(Clone)]
pub(super) struct Writer {
    client: GuardedClient,
}

impl Writer {
    pub(super) fn new(client: GuardedClient) -> Self {
        Self { client }
    }

    pub(super) fn client(&self) -> &GuardedClient {
        &self.client
    }

    /// Applies a child; returns its metadata.
    pub(super) async fn apply(
        &self,
        permit: &ShardPermit,
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
        let params = params.validation_ignore();
        let write = self.patch_child(namespace, id, params, Patch::Apply(&manifest));
        permit.guard(write).await
    }

    /// Merges a change into a child that is as this version; returns its metadata.
    pub(super) async fn merge(
        &self,
        permit: &ShardPermit,
        namespace: &str,
        child: &ChildRecord,
        mut change: Value,
    ) -> Result<ObjectMeta, Refusal> {
        change["metadata"]["uid"] = json!(child.uid);
        change["metadata"]["resourceVersion"] = json!(child.resource_version);
        let change = Patch::Merge(&change);
        let write = self.patch_child(namespace, &child.id(), merge_params(), change);
        permit.guard(write).await
    }

    /// Creates a child that is never changed, or checks by a dry run whether that would succeed. An
    /// existing one of its name is a conflict.
    pub(super) async fn create(
        &self,
        permit: &ShardPermit,
        namespace: &str,
        id: &ChildId,
        manifest: Value,
        trial: bool,
    ) -> Result<(), Refusal> {
        let params = PostParams {
            dry_run: trial,
            field_manager: Some(names::FIELD_MANAGER.to_owned()),
        };
        let url = DynamicObject::url_path(resource(id.kind), Some(namespace));
        let request = serde_json::to_vec(&manifest)
            .map_err(RequestError::SerializeBody)
            .and_then(|body| Request::new(url).create(&params, body))
            .and_then(without_field_validation);
        permit
            .guard(self.client.write(id.kind.label(), request))
            .await?;
        Ok(())
    }

    /// Sets an annotation of a child; returns its new version.
    pub(super) async fn annotate_child(
        &self,
        permit: &ShardPermit,
        cluster: &ClusterRecord,
        child: &ChildRecord,
        annotation: &str,
        value: &str,
    ) -> Result<String, Refusal> {
        let patch = json!({"metadata": {
            "uid": child.uid,
            "labels": {names::BUCKET_LABEL: cluster.bucket.to_string()},
            "annotations": {
                annotation: value,
                names::FENCING_TOKEN_ANNOTATION: permit.token().for_cluster(&cluster.uid),
            },
        }});
        let id = child.id();
        let patch = Patch::Merge(&patch);
        let write = self.patch_child(&cluster.key.namespace, &id, merge_params(), patch);
        let answer = permit.guard(write).await?;
        Ok(answer.resource_version.unwrap_or_default())
    }

    /// The metadata of a child that the watch does not show.
    pub(super) async fn child_metadata(
        &self,
        namespace: &str,
        id: &ChildId,
    ) -> Result<Option<ObjectMeta>, Refusal> {
        let resource = resource(id.kind);
        self.client
            .get_metadata(resource, namespace, &id.name)
            .await
    }

    /// Sets our fencing token and bucket on a child, and makes the cluster its controller if it has
    /// none; `version`: the required version of the child. Returns its new version.
    pub(super) async fn mark_child(
        &self,
        permit: &ShardPermit,
        cluster: &ClusterRecord,
        child: &ChildRecord,
        version: Option<&str>,
    ) -> Result<String, Refusal> {
        let mut metadata = json!({
            "uid": child.uid,
            "labels": {names::BUCKET_LABEL: cluster.bucket.to_string()},
            "annotations": {names::FENCING_TOKEN_ANNOTATION: permit.token().for_cluster(&cluster.uid)},
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
        let write = self.patch_child(&cluster.key.namespace, &id, merge_params(), patch);
        let answer = permit.guard(write).await?;
        Ok(answer.resource_version.unwrap_or_default())
    }

    /// Deletes a child and, first, its dependents.
    pub(super) async fn delete_child(
        &self,
        permit: &ShardPermit,
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
        let (name, namespace, kind) = (id.name.to_string(), namespace.to_owned(), id.kind);
        let write = self.client.write_with(kind.label(), |client| async move {
            let api: Api<DynamicObject> = Api::namespaced_with(client, &namespace, resource(kind));
            api.delete(&name, &params).await
        });
        permit.guard(write).await?;
        Ok(())
    }

    /// Sets the finalizers of a cluster, and the fencing token with them; returns its new version.
    pub(super) async fn set_finalizers(
        &self,
        permit: &ShardPermit,
        cluster: &ClusterRecord,
        resource_version: &str,
        finalizers: &[&str],
    ) -> Result<String, Refusal> {
        let patch = json!({"metadata": {
            "resourceVersion": resource_version,
            "finalizers": finalizers,
            "annotations": {names::FENCING_TOKEN_ANNOTATION: permit.token().for_cluster(&cluster.uid)},
        }});
        let url = DatabaseCluster::url_path(&(), Some(&cluster.key.namespace));
        let patch = Patch::Merge(&patch);
        let request = Request::new(url).patch(&cluster.key.name, &merge_params(), &patch);
        let answer = permit
            .guard(self.client.write(names::KIND, request))
            .await?;
        Ok(answer.resource_version.unwrap_or_default())
    }

    /// Writes the status of a cluster; returns its new version.
    pub(super) async fn set_status(
        &self,
        permit: &ShardPermit,
        key: &ObjectKey,
        resource_version: &str,
        status: &DatabaseClusterStatus,
    ) -> Result<String, Refusal> {
        // The uid in a status write protects nothing: only the version does.
        let patch = Patch::Merge(json!({
            "metadata": {"resourceVersion": resource_version},
            "status": status,
        }));
        let url = DatabaseCluster::url_path(&(), Some(&key.namespace));
        let params = merge_params();
        let request = Request::new(url).patch_subresource("status", &key.name, &params, &patch);
        let answer = permit
            .guard(self.client.write(names::KIND, request))
            .await?;
        Ok(answer.resource_version.unwrap_or_default())
    }

    fn patch_child<P: Serialize + Debug>(
        &self,
        namespace: &str,
        id: &ChildId,
        params: PatchParams,
        patch: Patch<P>,
    ) -> Write<ObjectMeta> {
        let url = DynamicObject::url_path(resource(id.kind), Some(namespace));
        let request = Request::new(url).patch(&id.name, &params, &patch);
        self.client.write(id.kind.label(), request)
    }
}

/// Parameters of a merge patch. The API server is asked not to look for unknown fields: it would only
/// warn, nobody reads that, and it decodes the body a second time for it.
pub(super) fn merge_params() -> PatchParams {
    PatchParams {
        field_manager: Some(names::FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
    .validation_ignore()
}

/// As `merge_params`, for a create: kube has no parameter for it.
fn without_field_validation(
    request: http::Request<Vec<u8>>,
) -> Result<http::Request<Vec<u8>>, RequestError> {
    let (mut parts, body) = request.into_parts();
    let uri = format!("{}&fieldValidation=Ignore", parts.uri);
    parts.uri = uri
        .parse()
        .map_err(|error: http::uri::InvalidUri| RequestError::BuildRequest(error.into()))?;
    Ok(http::Request::from_parts(parts, body))
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
