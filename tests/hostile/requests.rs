//! Requests under any credentials, and the API server's answers.

use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams,
    PostParams, Preconditions,
};
use kube::{Client, ResourceExt};
use serde_json::Value;

/// The object, or the API server's message.
pub(crate) type Answer = Result<DynamicObject, String>;

/// Which object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<'a> {
    pub(crate) kind: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

pub(crate) fn at<'a>(kind: &'a str, namespace: &'a str, name: &'a str) -> At<'a> {
    At {
        kind,
        namespace,
        name,
    }
}

fn api_version(kind: &str) -> &'static str {
    match kind {
        "StatefulSet" => "apps/v1",
        "PodDisruptionBudget" => "policy/v1",
        "Lease" => "coordination.k8s.io/v1",
        "DatabaseCluster" | "ShardTable" => "database.io/v1",
        _ => "v1",
    }
}

pub(crate) fn api(client: &Client, kind: &str, namespace: &str) -> Api<DynamicObject> {
    let version = api_version(kind);
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    Api::namespaced_with(client.clone(), namespace, &resource)
}

/// Creates the object that `at` names, with these fields.
pub(crate) async fn create(client: &Client, at: At<'_>, mut object: Value) -> Answer {
    object["apiVersion"] = api_version(at.kind).into();
    object["kind"] = at.kind.into();
    object["metadata"]["name"] = at.name.into();
    let object = serde_json::from_value(object).unwrap();
    let api = api(client, at.kind, at.namespace);
    let created = api.create(&PostParams::default(), &object).await;
    created.map_err(|error| error.to_string())
}

pub(crate) async fn merge(client: &Client, at: At<'_>, change: Value) -> Answer {
    let params = PatchParams::default();
    let api = api(client, at.kind, at.namespace);
    let patched = api.patch(at.name, &params, &Patch::Merge(&change)).await;
    patched.map_err(|error| error.to_string())
}

/// As `merge`, without effect.
pub(crate) async fn dry_merge(client: &Client, at: At<'_>, change: Value) -> Answer {
    let params = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let api = api(client, at.kind, at.namespace);
    let patched = api.patch(at.name, &params, &Patch::Merge(&change)).await;
    patched.map_err(|error| error.to_string())
}

pub(crate) async fn merge_status(client: &Client, at: At<'_>, change: Value) -> Answer {
    let api = api(client, at.kind, at.namespace);
    let patch = Patch::Merge(&change);
    let params = PatchParams::default();
    let patched = api.patch_status(at.name, &params, &patch).await;
    patched.map_err(|error| error.to_string())
}

pub(crate) async fn get(client: &Client, at: At<'_>) -> Answer {
    let found = api(client, at.kind, at.namespace).get(at.name).await;
    found.map_err(|error| error.to_string())
}

/// A deletion.
pub(crate) async fn delete(client: &Client, at: At<'_>) -> Result<(), String> {
    let params = DeleteParams::default();
    let api = api(client, at.kind, at.namespace);
    let deleted = api.delete(at.name, &params).await;
    deleted.map(drop).map_err(|error| error.to_string())
}

/// A deletion of this object as it is.
pub(crate) async fn delete_exactly(
    client: &Client,
    at: At<'_>,
    object: &DynamicObject,
) -> Result<(), String> {
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: object.uid(),
            resource_version: object.resource_version(),
        }),
        ..DeleteParams::default()
    };
    let api = api(client, at.kind, at.namespace);
    let deleted = api.delete(at.name, &params).await;
    deleted.map(drop).map_err(|error| error.to_string())
}

/// Asserts that the API server refused, and why: `cannot` where the right is missing. Where a policy
/// is the reason, any of the operator's will do: a write often breaks the rules of several, and the
/// API server reports the one that it evaluates first.
pub(crate) fn refused<T: std::fmt::Debug>(what: &str, answer: Result<T, String>, why: &str) {
    let error = answer.expect_err(&format!("{what}: it was let through"));
    let by_policy = why.starts_with("databasecluster-")
        && error.contains("ValidatingAdmissionPolicy 'databasecluster-");
    assert!(
        by_policy || error.contains(why),
        "{what}: it was refused, but not because {why:?}: {error}"
    );
}

pub(crate) fn let_through<T>(what: &str, answer: Result<T, String>) -> T {
    answer.unwrap_or_else(|error| panic!("{what} was refused: {error}"))
}
