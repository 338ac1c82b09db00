//! DatabaseClusters by the hundred: created, changed, and waited for.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, pin_mut, stream};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::error::{Context, Error, Result};
use crate::fleet::ensure_namespace;
use crate::wait::{Progress, wait_for};

/// Requests at once while creating or changing.
const CONCURRENCY: usize = 16;
/// How many lagging clusters a message names.
const NAMED_IN_MESSAGES: usize = 5;

/// One DatabaseCluster to be created.
#[derive(Clone, Debug)]
pub struct NewCluster {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its `spec`.
    pub spec: Value,
}

/// Which object: namespace and name.
pub type Key = (String, String);

/// The DatabaseCluster resource.
#[must_use]
pub fn resource() -> ApiResource {
    let kind = GroupVersionKind::gvk("database.io", "v1", "DatabaseCluster");
    ApiResource::from_gvk_with_plural(&kind, "databaseclusters")
}

/// The DatabaseClusters of all namespaces.
#[must_use]
pub fn all_clusters(client: Client) -> Api<DynamicObject> {
    Api::all_with(client, &resource())
}

/// The DatabaseClusters of one namespace.
#[must_use]
pub fn clusters_in(client: Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client, namespace, &resource())
}

/// A spec with everything that users set.
#[must_use]
pub fn spec(replicas: u32) -> Value {
    json!({
        "replicas": replicas,
        "image": "postgres:17",
        "resources": {"cpu": "250m", "memory": "256Mi"},
        "storage": {"size": "1Gi"},
    })
}

/// `count` clusters over the namespaces in turn, with 1, 2 and 3 replicas in turn.
#[must_use]
pub fn samples(count: usize, namespaces: &[&str]) -> Vec<NewCluster> {
    let sample = |number: usize| NewCluster {
        namespace: namespaces[number % namespaces.len()].to_owned(),
        name: format!("db-{number:04}"),
        spec: spec(1 + u32::try_from(number / namespaces.len() % 3).unwrap_or(0)),
    };
    if namespaces.is_empty() {
        return Vec::new();
    }
    (0..count).map(sample).collect()
}

/// Creates the clusters and their namespaces, a few at once.
///
/// # Errors
/// When the API server refuses one.
pub async fn create(control_plane: &ControlPlane, clusters: Vec<NewCluster>) -> Result<()> {
    namespaces(control_plane, &clusters).await?;
    let client = control_plane.client();
    stream::iter(clusters)
        .map(|cluster| create_one(client.clone(), cluster))
        .buffer_unordered(CONCURRENCY)
        .try_collect::<Vec<()>>()
        .await
        .map(drop)
}

/// Makes the namespaces of these clusters.
///
/// # Errors
/// When the API server refuses one.
pub async fn namespaces(control_plane: &ControlPlane, clusters: &[NewCluster]) -> Result<()> {
    let names: std::collections::BTreeSet<_> = clusters.iter().map(|c| &c.namespace).collect();
    for name in names {
        ensure_namespace(control_plane, name).await?;
        // Pods are refused until the namespace has its ServiceAccount.
        control_plane
            .wait_for_service_account(name, "default")
            .await?;
    }
    Ok(())
}

async fn create_one(client: Client, cluster: NewCluster) -> Result<()> {
    let object: DynamicObject = crate::control_plane::prepare_typed(json!({
        "apiVersion": "database.io/v1",
        "kind": "DatabaseCluster",
        "metadata": {"name": cluster.name, "namespace": cluster.namespace},
        "spec": cluster.spec,
    }))?;
    let api = clusters_in(client, &cluster.namespace);
    let what = format!(
        "create DatabaseCluster {}/{}",
        cluster.namespace, cluster.name
    );
    api.create(&PostParams::default(), &object)
        .await
        .context(what)?;
    Ok(())
}

/// Merges `change` into each of the clusters, a few at once, and returns when each change was accepted.
///
/// # Errors
/// When the API server refuses one.
pub async fn patch(
    client: &Client,
    keys: Vec<Key>,
    change: Value,
) -> Result<BTreeMap<Key, DynamicObject>> {
    let patched = stream::iter(keys).map(|key| patch_one(client.clone(), key, change.clone()));
    patched.buffer_unordered(CONCURRENCY).try_collect().await
}

async fn patch_one(client: Client, key: Key, change: Value) -> Result<(Key, DynamicObject)> {
    let api = clusters_in(client, &key.0);
    let params = PatchParams::default();
    let patched = api.patch(&key.1, &params, &Patch::Merge(&change)).await;
    let object = patched.context(format!("change DatabaseCluster {}/{}", key.0, key.1))?;
    Ok((key, object))
}

/// Deletes a DatabaseCluster and waits until it is removed.
///
/// # Errors
/// When the deletion is refused, or the object is still there after `timeout`.
pub async fn delete(
    client: &Client,
    namespace: &str,
    name: &str,
    params: &DeleteParams,
    timeout: Duration,
) -> Result<()> {
    let clusters = clusters_in(client.clone(), namespace);
    let what = || format!("delete DatabaseCluster {namespace}/{name}");
    clusters.delete(name, params).await.context(what())?;
    wait_for(format!("{name} to be deleted"), timeout, || async {
        let found = clusters.get_opt(name).await.context(what())?;
        Ok(Progress::when(found.is_none(), (), || {
            format!("{:?}", found.map(|one| one.data))
        }))
    })
    .await
}

/// Why a cluster is not Ready, or `None` when it is, for its present generation.
#[must_use]
pub fn why_not_ready(object: &DynamicObject) -> Option<String> {
    let generation = object.metadata.generation;
    let conditions = object
        .data
        .pointer("/status/conditions")
        .and_then(Value::as_array);
    let ready =
        conditions.and_then(|all| all.iter().find(|condition| condition["type"] == "Ready"));
    let Some(ready) = ready else {
        return Some("it has no condition Ready".into());
    };
    let observed = ready
        .get("observedGeneration")
        .or_else(|| object.data.pointer("/status/observedGeneration"));
    if ready["status"] != "True" {
        let (reason, message) = (text(ready, "reason"), text(ready, "message"));
        return Some(format!(
            "Ready is {}: {reason}: {message}",
            text(ready, "status")
        ));
    }
    if observed.and_then(Value::as_i64) != generation {
        return Some("Ready is of an older generation".into());
    }
    None
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("?")
}

/// Waits until at least `count` clusters exist and all that exist are Ready; returns how long that took.
///
/// # Errors
/// When they are not in time: how many, which, and why.
pub async fn wait_all_ready(client: &Client, count: usize, timeout: Duration) -> Result<Duration> {
    let started = Instant::now();
    let mut seen = HashMap::new();
    let mut lagging = 0;
    let events = watcher(
        all_clusters(client.clone()),
        watcher::Config::default().streaming_lists(),
    );
    pin_mut!(events);
    let deadline = tokio::time::sleep(timeout);
    pin_mut!(deadline);
    let mut last_error = String::new();
    while seen.len() < count || lagging > 0 {
        let event = tokio::select! {
            () = &mut deadline => return Err(late(&seen, count, started.elapsed(), &last_error)),
            event = events.next() => event,
        };
        match event {
            Some(Ok(event)) => note(&mut seen, &mut lagging, event),
            // The watcher tries again by itself; a pause keeps it from doing so in a hot loop.
            Some(Err(error)) => {
                last_error = format!("; the watch failed: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            None => return Err(Error::Failed("the watch of DatabaseClusters ended".into())),
        }
    }
    Ok(started.elapsed())
}

/// Notes what is not Ready, and counts it on the way: counting afresh for each event takes minutes for
/// ten thousand clusters.
fn note(seen: &mut HashMap<Key, Option<String>>, lagging: &mut usize, event: Event<DynamicObject>) {
    let key = |object: &DynamicObject| {
        let metadata = &object.metadata;
        (
            metadata.namespace.clone().unwrap_or_default(),
            metadata.name.clone().unwrap_or_default(),
        )
    };
    let before = match event {
        Event::Init => {
            seen.clear();
            *lagging = 0;
            None
        }
        Event::InitApply(object) | Event::Apply(object) => {
            let why = why_not_ready(&object);
            *lagging += usize::from(why.is_some());
            seen.insert(key(&object), why)
        }
        Event::Delete(object) => seen.remove(&key(&object)),
        Event::InitDone => None,
    };
    *lagging -= usize::from(before.flatten().is_some());
}

fn late(
    seen: &HashMap<Key, Option<String>>,
    count: usize,
    waited: Duration,
    last_error: &str,
) -> Error {
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for ((namespace, name), why) in seen {
        if let Some(why) = why {
            reasons
                .entry(why)
                .or_default()
                .push(format!("{namespace}/{name}"));
        }
    }
    let ready = seen.len() - reasons.values().map(Vec::len).sum::<usize>();
    let line = |(why, names): (&&str, &Vec<String>)| {
        let shown = &names[..names.len().min(NAMED_IN_MESSAGES)];
        format!(
            "{} because {why} ({}{})",
            names.len(),
            shown.join(", "),
            if names.len() > shown.len() {
                ", …"
            } else {
                ""
            }
        )
    };
    let reasons: Vec<String> = reasons.iter().map(line).collect();
    Error::Deadline {
        what: format!("{count} DatabaseClusters to be Ready"),
        waited_seconds: waited.as_secs_f64(),
        last: format!(
            "{ready} of {} are; not: {}{last_error}",
            seen.len(),
            reasons.join("; ")
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn object(generation: i64, status: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
            "metadata": {"name": "a", "namespace": "n", "generation": generation}, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn ready_counts_only_for_the_current_generation() {
        let ready = |observed: i64| json!({"conditions": [{"type": "Ready", "status": "True", "observedGeneration": observed}]});
        assert_eq!(why_not_ready(&object(2, ready(2))), None);
        assert!(
            why_not_ready(&object(2, ready(1)))
                .unwrap()
                .contains("older generation")
        );
        let not = json!({"conditions": [{"type": "Ready", "status": "False", "reason": "R", "message": "m"}]});
        assert_eq!(
            why_not_ready(&object(1, not)).unwrap(),
            "Ready is False: R: m"
        );
        assert!(why_not_ready(&object(1, json!({}))).is_some());
    }

    #[test]
    fn unready_clusters_are_counted_while_waiting() {
        let ready =
            json!({"conditions": [{"type": "Ready", "status": "True", "observedGeneration": 1}]});
        let (mut seen, mut lagging) = (HashMap::new(), 0);
        let mut after = |event| {
            note(&mut seen, &mut lagging, event);
            (seen.len(), lagging)
        };
        assert_eq!(after(Event::InitApply(object(1, json!({})))), (1, 1));
        assert_eq!(after(Event::Apply(object(1, json!({})))), (1, 1));
        assert_eq!(after(Event::Apply(object(1, ready.clone()))), (1, 0));
        assert_eq!(after(Event::Apply(object(2, ready))), (1, 1));
        assert_eq!(after(Event::Delete(object(2, json!({})))), (0, 0));
        assert_eq!(after(Event::Apply(object(1, json!({})))), (1, 1));
        assert_eq!(after(Event::Init), (0, 0));
    }

    #[test]
    fn sample_clusters_vary_in_each_namespace() {
        let samples = samples(60, &["a", "b", "c"]);
        for namespace in ["a", "b", "c"] {
            let own = samples
                .iter()
                .filter(|sample| sample.namespace == namespace);
            let replicas: std::collections::BTreeSet<_> =
                own.map(|s| s.spec["replicas"].as_u64().unwrap()).collect();
            assert_eq!(replicas.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
        }
        assert_eq!(samples.len(), 60);
    }

    #[test]
    fn missed_deadline_reports_how_many_and_why() {
        let seen = HashMap::from([
            (("n".into(), "a".into()), Some("Ready is False: X".into())),
            (("n".into(), "b".into()), None),
        ]);
        let message = late(&seen, 2, Duration::from_secs(1), "").to_string();
        assert!(
            message.contains("1 of 2 are")
                && message.contains("n/a")
                && message.contains("Ready is False: X"),
            "{message}"
        );
    }
}
