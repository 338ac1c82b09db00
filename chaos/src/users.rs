//! The users: they create, change and delete DatabaseClusters, record what they asked for, and retry until they are
//! accepted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, stream};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, api::DynamicObject};
use serde_json::json;
use testbed::load::{self, Key, NewCluster};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::evidence::{Asked, Wanted};
use crate::scenario::LoadPart;

/// Namespaces of the users' clusters.
pub const NAMESPACES: [&str; 3] = ["red", "green", "blue"];
/// The manager and the annotation that the operator must leave alone.
pub const MARK: &str = "example.com/owner";
const MARKER: &str = "a-user";
const AGAIN: Duration = Duration::from_millis(200);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long users keep asking once the load is over.
const RETRY_GRACE: Duration = Duration::from_secs(90);
const AT_ONCE: usize = 16;

/// The users of one run.
#[derive(Clone)]
pub struct Users {
    client: Client,
    state: Arc<Mutex<State>>,
}

struct State {
    asked: Asked,
    rng: fastrand::Rng,
    counter: u32,
}

/// One change to request.
enum UserRequest {
    Create(Key, Wanted),
    Change(Key, Wanted),
    Delete(Key),
}

/// Users at work.
pub struct Asking {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Users {
    /// Users that have requested nothing yet.
    #[must_use]
    pub fn new(client: Client, seed: u64) -> Self {
        Self {
            client,
            state: Arc::new(Mutex::new(State {
                asked: Asked::default(),
                rng: fastrand::Rng::with_seed(seed),
                counter: 0,
            })),
        }
    }

    /// What they asked for so far.
    #[must_use]
    pub fn asked(&self) -> Asked {
        self.with(|state| state.asked.clone())
    }

    /// Records clusters that were created for them.
    pub fn own(&self, clusters: &[NewCluster]) {
        self.with(|state| {
            for cluster in clusters {
                let text = |pointer: &str| {
                    cluster
                        .spec
                        .pointer(pointer)
                        .and_then(|value| value.as_str())
                };
                let replicas = cluster.spec["replicas"].as_u64().unwrap_or(1);
                let wanted = Wanted {
                    cpu: text("/resources/cpu").unwrap_or_default().to_owned(),
                    replicas: u32::try_from(replicas).unwrap_or(1),
                };
                let key = format!("{}/{}", cluster.namespace, cluster.name);
                state.asked.wanted.insert(key, Some(wanted));
            }
        });
    }

    /// Sets an annotation of another manager on these clusters and their children.
    ///
    /// # Errors
    /// When the API server rejects one.
    pub async fn mark(&self, keys: &[Key]) -> Result<()> {
        let marks = stream::iter(keys).map(|key| self.mark_one(key));
        let done: Vec<Result<()>> = marks.buffer_unordered(AT_ONCE).collect().await;
        done.into_iter().collect()
    }

    /// Changes an unrelated annotation of every cluster, so that each is reconciled again.
    ///
    /// # Errors
    /// When the API server rejects a request.
    pub async fn nudge(&self) -> Result<()> {
        for key in wanted_keys(&self.asked()) {
            let count = self.with(|state| {
                state.counter += 1;
                state.counter
            });
            let nudge =
                json!({"metadata": {"annotations": {"example.com/nudge": count.to_string()}}});
            self.clusters(&key)
                .patch(&key.1, &PatchParams::default(), &Patch::Merge(&nudge))
                .await
                .with_context(|| format!("nudge {}/{}", key.0, key.1))?;
        }
        Ok(())
    }

    async fn mark_one(&self, (namespace, name): &Key) -> Result<()> {
        let objects = [
            ("database.io/v1", "DatabaseCluster", name.clone()),
            ("apps/v1", "StatefulSet", format!("{name}-db")),
            ("v1", "Service", format!("{name}-rw")),
            ("v1", "ConfigMap", format!("{name}-db")),
        ];
        for (version, kind, name) in objects {
            let mark = json!({
                "apiVersion": version, "kind": kind,
                "metadata": {"name": name, "annotations": {MARK: "users"}},
            });
            let api = crate::state::api(&self.client, version, kind, namespace);
            let params = PatchParams::apply(MARKER);
            api.patch(&name, &params, &Patch::Apply(&mark))
                .await
                .with_context(|| format!("mark {kind} {namespace}/{name}"))?;
        }
        Ok(())
    }

    /// Starts requesting changes at this rate per second, until stopped.
    #[must_use]
    pub fn begin(&self, load: &LoadPart) -> Asking {
        let stop = CancellationToken::new();
        let (users, stopped, load) = (self.clone(), stop.clone(), load.clone());
        let task = tokio::spawn(async move {
            if load.changes_per_second <= 0.0 {
                return;
            }
            let mut ticks =
                tokio::time::interval(Duration::from_secs_f64(1.0 / load.changes_per_second));
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = stopped.cancelled() => return,
                    _ = ticks.tick() => {}
                }
                if let Some(request) = users.next_request(load.churn_percent) {
                    users.retry_until_accepted(request, &stopped).await;
                }
            }
        });
        Asking { stop, task }
    }

    /// Creates all requested clusters that do not exist, as after a loss of everything.
    ///
    /// # Errors
    /// When the API server rejects a request.
    pub async fn restore(&self) -> Result<()> {
        let wanted = self.asked().wanted;
        let lacking = wanted
            .into_iter()
            .filter_map(|(name, wanted)| Some((split(&name), wanted?)));
        let stop = CancellationToken::new();
        let requests = stream::iter(lacking).map(|(key, wanted)| {
            self.retry_until_accepted(UserRequest::Create(key, wanted), &stop)
        });
        requests
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<()>>()
            .await;
        Ok(())
    }

    /// Creates many clusters at once; returns how many.
    ///
    /// # Errors
    /// When the API server rejects one.
    pub async fn burst(&self, count: usize) -> Result<u64> {
        let namespace = NAMESPACES[0].to_owned();
        let (mut done, stop) = (0, CancellationToken::new());
        let wanted = || Wanted {
            cpu: "100m".into(),
            replicas: 1,
        };
        let requests = (0..count).map(|number| {
            UserRequest::Create((namespace.clone(), format!("burst-{number:05}")), wanted())
        });
        let mut asked = stream::iter(requests)
            .map(|request| self.retry_until_accepted(request, &stop))
            .buffer_unordered(AT_ONCE);
        while asked.next().await.is_some() {
            done += 1;
        }
        Ok(done)
    }

    fn next_request(&self, churn_percent: u8) -> Option<UserRequest> {
        self.with(|state| {
            let keys: Vec<&String> = state.asked.wanted.keys().collect();
            let index = state.rng.usize(..keys.len().max(1));
            let name = (*keys.get(index)?).clone();
            let key = split(&name);
            state.counter += 1;
            let churns = state.rng.u8(..100) < churn_percent;
            let fresh = format!("{}m", 100 + state.counter % 797);
            let now = state.asked.wanted.get(&name).cloned().flatten();
            match now {
                None => Some(UserRequest::Create(
                    key,
                    Wanted {
                        cpu: fresh,
                        replicas: 1,
                    },
                )),
                Some(_) if churns => Some(UserRequest::Delete(key)),
                Some(now) if now.cpu == fresh => None,
                Some(now) => Some(UserRequest::Change(key, Wanted { cpu: fresh, ..now })),
            }
        })
    }

    /// Retries until the API server accepts; once stopped, for a while longer, so that no change stays half done.
    async fn retry_until_accepted(&self, request: UserRequest, stop: &CancellationToken) {
        let mut stopped_at = None;
        loop {
            let accepted = tokio::time::timeout(CALL_TIMEOUT, self.ask(&request)).await;
            if matches!(accepted, Ok(Ok(()))) {
                self.note(request);
                return;
            }
            self.with(|state| state.asked.repeated += 1);
            if stop.is_cancelled() {
                let since = *stopped_at.get_or_insert_with(tokio::time::Instant::now);
                if since.elapsed() > RETRY_GRACE {
                    return;
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn ask(&self, request: &UserRequest) -> kube::Result<()> {
        match request {
            UserRequest::Create(key, wanted) => {
                let object: DynamicObject = serde_json::from_value(json!({
                    "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
                    "metadata": {"name": key.1, "namespace": key.0},
                    "spec": spec(wanted),
                }))
                .map_err(kube::Error::SerdeError)?;
                match self
                    .clusters(key)
                    .create(&PostParams::default(), &object)
                    .await
                {
                    // Either an earlier attempt created it, or the previous one is still being deleted: then retry.
                    Err(kube::Error::Api(status)) if status.code == 409 => {
                        self.must_live(key).await
                    }
                    other => other.map(drop),
                }
            }
            UserRequest::Change(key, wanted) => {
                let change = json!({"spec": spec(wanted)});
                let (api, params) = (self.clusters(key), PatchParams::default());
                api.patch(&key.1, &params, &Patch::Merge(&change))
                    .await
                    .map(drop)
            }
            UserRequest::Delete(key) => match self
                .clusters(key)
                .delete(&key.1, &DeleteParams::default())
                .await
            {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                other => other.map(drop),
            },
        }
    }

    async fn must_live(&self, key: &Key) -> kube::Result<()> {
        let found = self.clusters(key).get(&key.1).await?;
        match found.metadata.deletion_timestamp {
            None => Ok(()),
            Some(_) => Err(kube::Error::Service(
                "the previous one is still being deleted".into(),
            )),
        }
    }

    fn note(&self, request: UserRequest) {
        self.with(|state| {
            state.asked.accepted += 1;
            let (key, wanted) = match request {
                UserRequest::Create(key, wanted) | UserRequest::Change(key, wanted) => {
                    (key, Some(wanted))
                }
                UserRequest::Delete(key) => (key, None),
            };
            state
                .asked
                .wanted
                .insert(format!("{}/{}", key.0, key.1), wanted);
        });
    }

    fn clusters(&self, key: &Key) -> Api<DynamicObject> {
        load::clusters_in(self.client.clone(), &key.0)
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Asking {
    /// Stops, and returns when the last change was accepted or given up.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ended = self.task.await;
    }
}

fn spec(wanted: &Wanted) -> serde_json::Value {
    let mut spec = load::spec(wanted.replicas);
    spec["resources"]["cpu"] = json!(wanted.cpu);
    spec
}

fn split(name: &str) -> Key {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    (namespace.to_owned(), name.to_owned())
}

/// Names of the requested clusters.
#[must_use]
pub fn wanted_keys(asked: &Asked) -> Vec<Key> {
    let wanted: &BTreeMap<String, Option<Wanted>> = &asked.wanted;
    wanted
        .iter()
        .filter(|(_, wanted)| wanted.is_some())
        .map(|(name, _)| split(name))
        .collect()
}
