//! A complete second operator: for each ConfigMap with the label `derive.example.com/source=true` it
//! keeps a ConfigMap `<name>-derived`, whose values are those of the source in upper case.
//!
//! Replicas share the work by shards; every write is fenced; shards are handed over in a rolling update
//! and taken over after a crash; `/metrics`, `/livez` and `/readyz` answer on
//! `LISTEN`.
//! `configmap fence` and `configmap crd` print what has to be installed. docs/tutorial/library.md builds it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Resource;
use kube::api::{Patch, PatchParams};
use kube::core::Request;
use prometheus::Registry;
use serde_json::{Value, json};
use shard_ownership::hash::Bucket;
use sharded_controller::config::Config;
use sharded_controller::controller::Controller;
use sharded_controller::fence_policies::{Fence, FencedKind, Owner, OwnerReference};
use sharded_controller::fleet::shard_table::ShardTable;
use sharded_controller::names::Names;
use sharded_controller::object::ObjectKey;
use sharded_controller::outcome::{Failure, Next, Outcome};
use sharded_controller::permit::ShardPermit;
use sharded_controller::pool::{Backlog, Reconcile};
use sharded_controller::watch::object_cache::{ObjectCache, Objects};
use sharded_controller::write::GuardedClient;

const NAMES: Names = Names {
    app: "derive-operator",
    prefix: "derive",
    domain: "derive.example.com",
    manifests: "deploy",
};

/// Refused requests are reported by the library, and elections every two seconds are of no interest.
const LOGGED: &str = "info,kube_client::client::builder=off,kube_leader_election=warn";

/// What is watched: sources, and what is derived from them.
struct Derived;

impl Objects for Derived {
    type Owner = ConfigMap;
    type Dependent = ConfigMap;
    const OWNER_PLURAL: &'static str = "configmaps";
    const OWNER_LABELS: &'static str = "derive.example.com/source=true";
    const DEPENDENT_PLURAL: &'static str = "configmaps";
}

struct Deriver {
    cache: Arc<ObjectCache<Derived>>,
    client: GuardedClient,
}

impl Reconcile for Deriver {
    async fn reconcile(
        &self,
        key: &ObjectKey,
        permit: &ShardPermit,
        _: &dyn Backlog,
    ) -> Result<Outcome, Failure> {
        let done = |wrote| {
            let next = Next::Ready;
            Ok(Outcome { wrote, next })
        };
        // What belongs to a source that is gone is the garbage collector's.
        let Some(source) = self.cache.owner(key) else {
            return done(false);
        };
        let name = format!("{}-derived", key.name);
        let upper = source.data.iter().flatten();
        let data: BTreeMap<String, String> = upper
            .map(|(key, value)| (key.clone(), value.to_uppercase()))
            .collect();
        let known = self.cache.dependent(&ObjectKey::new(&key.namespace, &name));
        if known.is_some_and(|known| known.data.as_ref() == Some(&data)) {
            return done(false);
        }
        let url = ConfigMap::url_path(&(), Some(&key.namespace));
        let apply = PatchParams::apply(NAMES.app).force();
        let object = derived(&source, permit, &name, &data);
        let request = Request::new(url).patch(&name, &apply, &Patch::Apply(object));
        let write = self.client.write("ConfigMap", request);
        let written = permit.guard(write).await;
        written.map_err(|refusal| refusal.into_failure(&format!("applying {name}")))?;
        done(true)
    }
}

/// The derived object: with its owner, its bucket and the fencing token, which the fence compares.
fn derived(
    source: &ConfigMap,
    permit: &ShardPermit,
    name: &str,
    data: &BTreeMap<String, String>,
) -> Value {
    let uid = source.metadata.uid.as_deref().unwrap_or_default();
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": data,
        "metadata": {
            "name": name,
            "labels": {NAMES.bucket_label(): Bucket::of(uid).to_string()},
            "annotations": {NAMES.fencing_token(): permit.token().for_cluster(uid)},
            "ownerReferences": source.controller_owner_ref(&()).as_slice(),
        },
    })
}

/// The admission policies: what this operator writes, and for whom.
fn fence(namespace: &str) -> Fence {
    let kind = FencedKind::new("", "configmaps", OwnerReference::ByController);
    Fence {
        names: NAMES,
        namespace: namespace.to_owned(),
        service_account: NAMES.app.to_owned(),
        policy_suffix: String::new(),
        owner: Owner::read_only("", "ConfigMap", "configmaps"),
        kinds: vec![kind],
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::from_env("derive-system")?;
    match std::env::args().nth(1).as_deref() {
        Some("fence") => print!("{}", fence(&config.namespace).yaml()),
        Some("crd") => print!("{}", serde_json::to_string(&ShardTable::crd(&NAMES))?),
        _ => {
            tracing_subscriber::fmt().with_env_filter(LOGGED).init();
            let cache = Arc::new(ObjectCache::new(NAMES, config.shards));
            let controller = Controller::new(NAMES, config, Arc::clone(&cache), Registry::new());
            let controller = controller.await?;
            let client = controller.client();
            controller.run(Deriver { cache, client }).await?;
        }
    }
    Ok(())
}
