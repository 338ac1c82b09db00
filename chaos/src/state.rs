//! The state of the API server: clusters, children, shard Leases and the shard table, as an administrator sees them.

use anyhow::{Context, Result};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, Client, ResourceExt};
use serde_json::Value;
use testbed::fencing::{self, Token};
use testbed::{load, shards, table};

use crate::evidence::{LastChild, LastCluster, LastState, Wanted};
use crate::users::MARK;

const PAGE: u32 = 500;
/// Children: API version, kind, resource, and whether another manager marks some of them by the end of their name.
const CHILDREN: [(&str, &str, &str, Option<&str>); 5] = [
    ("apps/v1", "StatefulSet", "statefulsets", Some("-db")),
    ("v1", "Service", "services", Some("-rw")),
    ("v1", "ConfigMap", "configmaps", Some("-db")),
    ("v1", "Secret", "secrets", None),
    (
        "policy/v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        None,
    ),
];

/// An API of any kind in one namespace.
#[must_use]
pub fn api(client: &Client, version: &str, kind: &str, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &resource(version, kind))
}

fn resource(version: &str, kind: &str) -> ApiResource {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// Reads everything. `marked` returns whether the object of this uid once had another manager's mark.
///
/// # Errors
/// When something cannot be listed.
pub async fn look(client: &Client, marked: impl Fn(&str) -> bool) -> Result<LastState> {
    let mut state = LastState::default();
    for cluster in all(load::all_clusters(client.clone()), "").await? {
        let key = format!(
            "{}/{}",
            cluster.namespace().unwrap_or_default(),
            cluster.name_any()
        );
        let uid = cluster.uid().unwrap_or_default();
        let text = |pointer: &str| cluster.data.pointer(pointer).and_then(Value::as_str);
        let found = LastCluster {
            cpu: text("/spec/resources/cpu").unwrap_or_default().to_owned(),
            replicas: count(cluster.data.pointer("/spec/replicas")),
            not_ready: load::why_not_ready(&cluster),
            token: annotation(&cluster),
            status_token: Token::of_status(&cluster.data)
                .map(|token| token.to_string())
                .unwrap_or_default(),
            mark_kept: marked(&uid).then(|| has_mark(&cluster)),
            uid,
        };
        state.clusters.insert(key, found);
    }
    for (version, kind, plural, _) in CHILDREN {
        let api = Api::all_with(client.clone(), &resource(version, kind));
        for child in all(api, "database.io/bucket").await? {
            let key = format!(
                "{plural}/{}/{}",
                child.namespace().unwrap_or_default(),
                child.name_any()
            );
            state
                .children
                .insert(key, read_child(&child, kind, &marked));
        }
    }
    for shard in shards::list(client).await? {
        state
            .shards
            .push((shard.lease, shard.holder, i64::from(shard.epoch)));
    }
    state.table = table::get(client).await?;
    Ok(state)
}

/// The fencing token of an object; empty: none.
fn annotation(object: &DynamicObject) -> String {
    let token = object.annotations().get(fencing::ANNOTATION);
    token.cloned().unwrap_or_default()
}

fn read_child(child: &DynamicObject, kind: &str, marked: &impl Fn(&str) -> bool) -> LastChild {
    let uid = child.uid().unwrap_or_default();
    let container = child
        .data
        .pointer("/spec/template/spec/containers/0/resources/requests/cpu");
    LastChild {
        owner: child
            .owner_references()
            .first()
            .map(|owner| owner.uid.clone())
            .unwrap_or_default(),
        workload: (kind == "StatefulSet").then(|| Wanted {
            cpu: container
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            replicas: count(child.data.pointer("/spec/replicas")),
        }),
        token: annotation(child),
        mark_kept: marked(&uid).then(|| has_mark(child)),
        uid,
    }
}

/// The uids of all objects that have another manager's mark now.
///
/// # Errors
/// When something cannot be listed.
pub async fn marked(client: &Client) -> Result<std::collections::BTreeSet<String>> {
    let mut uids = std::collections::BTreeSet::new();
    let mut objects = all(load::all_clusters(client.clone()), "").await?;
    for (version, kind, _, mark) in CHILDREN {
        if mark.is_some() {
            objects.extend(
                all(
                    Api::all_with(client.clone(), &resource(version, kind)),
                    "database.io/bucket",
                )
                .await?,
            );
        }
    }
    uids.extend(
        objects
            .iter()
            .filter(|object| has_mark(object))
            .filter_map(ResourceExt::uid),
    );
    Ok(uids)
}

fn has_mark(object: &DynamicObject) -> bool {
    object.annotations().contains_key(MARK)
}

fn count(value: Option<&Value>) -> u32 {
    value
        .and_then(Value::as_u64)
        .and_then(|count| u32::try_from(count).ok())
        .unwrap_or(1)
}

async fn all(api: Api<DynamicObject>, label: &str) -> Result<Vec<DynamicObject>> {
    let mut found = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    if !label.is_empty() {
        params = params.labels(label);
    }
    loop {
        let page = api.list(&params).await.context("list objects")?;
        found.extend(page.items);
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params = params.continue_token(&token),
            _ => return Ok(found),
        }
    }
}
