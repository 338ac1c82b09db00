//! ConfigMaps of users, in several namespaces, and what has to be derived from them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use testbed::{Context, Progress, wait_for};

use crate::PATIENCE;

pub(crate) const NAMESPACES: [&str; 3] = ["team-a", "team-b", "team-c"];
const EACH: usize = 20;
/// How many a message names.
const DIFFERENCES_MAX: usize = 5;
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(30);

/// By namespace and name.
type Values = BTreeMap<(String, String), String>;

/// Sources as users last wrote them.
pub(crate) struct Sources {
    client: Client,
    values: Mutex<Values>,
}

impl Sources {
    pub(crate) async fn create(client: Client) -> Self {
        let sources = Self {
            client,
            values: Mutex::default(),
        };
        let namespaces: Api<Namespace> = Api::all(sources.client());
        for namespace in NAMESPACES {
            let object = json!({"metadata": {"name": namespace}});
            let object = serde_json::from_value(object).unwrap();
            namespaces
                .create(&PostParams::default(), &object)
                .await
                .unwrap();
            let configmaps = sources.api(namespace);
            for number in 0..EACH {
                let (name, value) = (format!("source-{number}"), format!("hello {number}"));
                let object = json!({
                    "metadata": {"name": name, "labels": {"derive.example.com/source": "true"}},
                    "data": {"greeting": value},
                });
                let object = serde_json::from_value(object).unwrap();
                configmaps
                    .create(&PostParams::default(), &object)
                    .await
                    .unwrap();
                sources.wants(namespace, &name, Some(value));
            }
        }
        sources
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(crate) fn api(&self, namespace: &str) -> Api<ConfigMap> {
        Api::namespaced(self.client(), namespace)
    }

    fn wants(&self, namespace: &str, name: &str, value: Option<String>) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), name.to_owned());
        match value {
            Some(value) => values.insert(key, value),
            None => values.remove(&key),
        };
    }

    fn wanted(&self) -> Values {
        self.values
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes one source in so many.
    pub(crate) async fn change(&self, one_in: usize) {
        for (namespace, name) in self.wanted().keys().step_by(one_in) {
            self.set(namespace, name, &format!("one in {one_in}")).await;
        }
    }

    /// Changes one source after the other, round and round.
    pub(crate) async fn keep_changing(&self, time: Duration) {
        let started = Instant::now();
        let all: Vec<(String, String)> = self.wanted().into_keys().collect();
        let rounds = all.iter().cycle().enumerate();
        for (number, (namespace, name)) in rounds {
            if started.elapsed() >= time {
                return;
            }
            self.set(namespace, name, &format!("change {number}")).await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn set(&self, namespace: &str, name: &str, value: &str) {
        let change = json!({"data": {"greeting": value}});
        let (manager, change) = (PatchParams::default(), Patch::Merge(&change));
        let changed = self.api(namespace).patch(name, &manager, &change).await;
        changed.unwrap_or_else(|error| panic!("{namespace}/{name}: {error}"));
        self.wants(namespace, name, Some(value.to_owned()));
    }

    pub(crate) async fn delete(&self, namespace: &str, name: &str) {
        let now = DeleteParams::default();
        self.api(namespace).delete(name, &now).await.unwrap();
        self.wants(namespace, name, None);
    }

    /// Waits until for each source there is what is derived from it, and nothing else is derived.
    pub(crate) async fn wait_derived(&self) {
        let due: Values = self
            .wanted()
            .into_iter()
            .map(|((namespace, name), value)| {
                ((namespace, format!("{name}-derived")), value.to_uppercase())
            })
            .collect();
        let all: Api<ConfigMap> = Api::all(self.client());
        let labelled = ListParams::default().labels("derive.example.com/bucket");
        wait_for("everything to be derived", PATIENCE, || async {
            let list = all.list(&labelled).await.context("list what is derived")?;
            let derived: Values = list.items.into_iter().filter_map(derived).collect();
            let differing = || {
                let missing = due
                    .iter()
                    .filter(|(key, value)| derived.get(*key) != Some(value));
                let extra = derived.keys().filter(|key| !due.contains_key(*key));
                let missing: Vec<String> = missing
                    .take(DIFFERENCES_MAX)
                    .map(|(key, value)| format!("{key:?}: {:?}, not {value}", derived.get(key)))
                    .collect();
                format!("{missing:?}, superfluous: {:?}", extra.collect::<Vec<_>>())
            };
            Ok(Progress::when(derived == due, (), differing))
        })
        .await
        .unwrap();
    }
}

fn derived(object: ConfigMap) -> Option<((String, String), String)> {
    let key = (object.metadata.namespace?, object.metadata.name?);
    let value = object.data.and_then(|mut data| data.remove("greeting"));
    Some((key, value.unwrap_or_default()))
}
