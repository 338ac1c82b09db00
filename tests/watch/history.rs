//! One synthetic history of creations, changes, deletions, moves of shards, broken connections and a
//! restart of the API server: it ends in the same state whether the API server filters or not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use shard_ownership::hash::ShardId;
use testbed::{ControlPlane, Progress, load, wait_for};

use crate::support::*;

const NAMESPACE: &str = "history";
const SHARDS: u64 = 8;
const REPLICAS: usize = 3;
const NAMES: usize = 24;
const STEPS: usize = 160;
const SEED: u64 = 20_261_124;
const HOLD: &str = "example.com/hold";

/// What users have done so far to one name.
#[derive(Clone, Default)]
struct Model {
    life: u32,
    alive: bool,
    cpu: u32,
    children: BTreeSet<String>,
}

struct World<'a> {
    control_plane: &'a ControlPlane,
    client: Client,
    sharded: bool,
    proxy: Proxy,
    replicas: Arc<Mutex<Vec<Replica>>>,
    random: fastrand::Rng,
    holders: BTreeMap<ShardId, usize>,
    model: Vec<Model>,
    /// Children whose deletion a finalizer blocks.
    held_back: Vec<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_ends_in_the_same_state_with_and_without_the_gate() {
    let seed = std::env::var("HISTORY_SEED").ok();
    let seed = seed.map_or(SEED, |seed| seed.parse().unwrap());
    println!("HISTORY_SEED={seed}");
    let mut ends = Vec::new();
    for sharded in [true, false] {
        let control_plane = control_plane(sharded).await;
        let mut world = World::new(&control_plane, sharded, seed).await;
        let looking = tokio::spawn(watch_for_strays(Arc::clone(&world.replicas)));
        for step in 0..STEPS {
            if step == STEPS / 2 {
                control_plane.restart_api_server(sharded).await.unwrap();
            }
            world.step().await;
            assert!(!looking.is_finished(), "{:?}", looking.await);
        }
        ends.push(world.settle().await);
        assert!(!looking.is_finished(), "{:?}", looking.await);
        looking.abort();
        for replica in &*world.replicas.lock().unwrap() {
            let mode = replica.reflector.mode().label();
            assert_eq!(mode == "sharded", sharded, "it watched in the mode {mode}");
        }
    }
    assert!(
        ends[0].len() > NAMES / 3,
        "hardly anything is left: {:?}",
        ends[0]
    );
    assert_eq!(ends[0], ends[1]);
}

/// Ends, with what was found, when a store holds an object of a shard that is not watched.
async fn watch_for_strays(replicas: Arc<Mutex<Vec<Replica>>>) -> Vec<String> {
    loop {
        for replica in &*replicas.lock().unwrap() {
            let strays = replica.strays();
            if !strays.is_empty() {
                return strays;
            }
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

impl<'a> World<'a> {
    async fn new(control_plane: &'a ControlPlane, sharded: bool, seed: u64) -> Self {
        let proxy = Proxy::to(vec![port_of(control_plane)]).await;
        load::create(control_plane, clusters(NAMESPACE, NAMES))
            .await
            .unwrap();
        let mut replicas = Vec::new();
        for _ in 0..REPLICAS {
            replicas.push(Replica::new(proxy.client(control_plane).await, shards(SHARDS)).await);
        }
        let mut holders = BTreeMap::new();
        for (number, shard) in shards(SHARDS).shards().enumerate() {
            replicas[number % REPLICAS].watch(shard);
            holders.insert(shard, number % REPLICAS);
        }
        Self {
            control_plane,
            client: control_plane.client(),
            sharded,
            proxy,
            replicas: Arc::new(Mutex::new(replicas)),
            random: fastrand::Rng::with_seed(seed),
            holders,
            model: vec![
                Model {
                    alive: true,
                    ..Model::default()
                };
                NAMES
            ],
            held_back: Vec::new(),
        }
    }

    async fn step(&mut self) {
        let number = self.random.usize(0..NAMES);
        let alive = self.model[number].alive;
        match self.random.u8(0..100) {
            0..25 if alive => self.change(number).await,
            0..25 => self.create(number).await,
            25..35 if alive => self.delete(number).await,
            35..45 if alive => {
                self.delete(number).await;
                self.create(number).await;
            }
            45..70 if alive => self.add_child(number).await,
            70..76 if alive => self.delete_child(number).await,
            76..94 => self.move_shard().await,
            94..97 => self.crash(),
            97..100 => self.proxy.lead_to(vec![port_of(self.control_plane)]),
            _ => {}
        }
    }

    async fn create(&mut self, number: usize) {
        let model = &mut self.model[number];
        model.alive = true;
        model.life += 1;
        model.cpu = 0;
        let object = serde_json::from_value(json!({
            "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
            "metadata": {"name": name(number)}, "spec": load::spec(1),
        }));
        let api = load::clusters_in(self.client.clone(), NAMESPACE);
        api.create(&PostParams::default(), &object.unwrap())
            .await
            .unwrap();
    }

    async fn change(&mut self, number: usize) {
        let cpu = self.random.u32(100..900);
        self.model[number].cpu = cpu;
        let change = json!({"spec": {"resources": {"cpu": format!("{cpu}m")}}});
        let key = (NAMESPACE.to_owned(), name(number));
        load::patch(&self.client, vec![key], change).await.unwrap();
    }

    async fn delete(&mut self, number: usize) {
        let model = &mut self.model[number];
        model.alive = false;
        // The garbage collector removes them.
        model.children.clear();
        let api = load::clusters_in(self.client.clone(), NAMESPACE);
        api.delete(&name(number), &DeleteParams::background())
            .await
            .unwrap();
    }

    /// A child of this incarnation of the cluster; sometimes one whose deletion will be slow.
    async fn add_child(&mut self, number: usize) {
        let api = load::clusters_in(self.client.clone(), NAMESPACE);
        let owner = api.get(&name(number)).await.unwrap();
        let model = &mut self.model[number];
        let child = format!("{}-{}-{}", name(number), model.life, self.random.u8(0..2));
        let bucket = testbed::shards::bucket(&owner.uid().unwrap());
        let held_back = self.random.u8(0..4) == 0;
        let mut metadata = json!({
            "name": child,
            "labels": {"database.io/bucket": bucket.to_string()},
            "annotations": {"changed": self.random.u32(..).to_string()},
            "ownerReferences": [{
                "apiVersion": "database.io/v1", "kind": "DatabaseCluster", "controller": true,
                "name": owner.name_any(), "uid": owner.uid(),
            }],
        });
        if held_back {
            metadata["finalizers"] = json!([HOLD]);
            self.held_back.push(child.clone());
        }
        let apply = PatchParams::apply("history").force();
        if child.ends_with('0') {
            let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata,
                "spec": {"clusterIP": "None", "ports": [{"port": 1}]}});
            let services: Api<Service> = Api::namespaced(self.client.clone(), NAMESPACE);
            services
                .patch(&child, &apply, &Patch::Apply(&object))
                .await
                .unwrap();
        } else {
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
            let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
            maps.patch(&child, &apply, &Patch::Apply(&object))
                .await
                .unwrap();
        }
        model.children.insert(child);
    }

    async fn delete_child(&mut self, number: usize) {
        let Some(child) = self.model[number].children.pop_first() else {
            return;
        };
        self.release(&child).await;
        let now = DeleteParams::default();
        if child.ends_with('0') {
            let services: Api<Service> = Api::namespaced(self.client.clone(), NAMESPACE);
            services.delete(&child, &now).await.unwrap();
        } else {
            let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
            maps.delete(&child, &now).await.unwrap();
        }
    }

    async fn release(&self, child: &str) {
        let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        let params = PatchParams::default();
        let gone = |error: &kube::Error| matches!(error, kube::Error::Api(s) if s.code == 404);
        let ended = if child.ends_with('0') {
            let services: Api<Service> = Api::namespaced(self.client.clone(), NAMESPACE);
            services
                .patch_metadata(child, &params, &release)
                .await
                .map(drop)
        } else {
            let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
            maps.patch_metadata(child, &params, &release)
                .await
                .map(drop)
        };
        assert!(ended.as_ref().err().is_none_or(gone), "{ended:?}");
    }

    /// A planned move warms the shard at the successor first; a takeover does not.
    async fn move_shard(&mut self) {
        let shard = ShardId(self.random.u16(0..u16::try_from(SHARDS).unwrap()));
        let from = self.holders[&shard];
        let to = (from + 1 + self.random.usize(0..REPLICAS - 1)) % REPLICAS;
        let planned = self.random.bool();
        let pause = Duration::from_millis(self.random.u64(0..40));
        if planned {
            self.replicas.lock().unwrap()[to].watch(shard);
            tokio::time::sleep(pause).await;
        }
        let mut replicas = self.replicas.lock().unwrap();
        replicas[from].unwatch(shard);
        replicas[to].watch(shard);
        self.holders.insert(shard, to);
    }

    /// One replica loses all its shards to the others, and some of them at once again.
    fn crash(&mut self) {
        let dead = self.random.usize(0..REPLICAS);
        let mut replicas = self.replicas.lock().unwrap();
        for (shard, holder) in &mut self.holders {
            if *holder == dead {
                let successor = (dead + 1 + usize::from(shard.0) % (REPLICAS - 1)) % REPLICAS;
                replicas[dead].unwatch(*shard);
                replicas[successor].watch(*shard);
                *holder = successor;
            }
        }
    }

    /// Waits until everything is as users asked for, and the stores match; returns their content.
    async fn settle(&mut self) -> BTreeMap<String, Value> {
        for child in std::mem::take(&mut self.held_back) {
            self.release(&child).await;
        }
        let wanted: BTreeSet<String> = self.model.iter().flat_map(|m| m.children.clone()).collect();
        wait_for("the garbage collector", PATIENCE, || async {
            let truth = truth(&self.client).await;
            let children = truth
                .keys()
                .filter(|name| !name.starts_with("DatabaseCluster "));
            let left: BTreeSet<String> = children
                .filter_map(|name| Some(name.split_once('/')?.1.to_owned()))
                .collect();
            Ok(Progress::when(left == wanted, (), || format!("{left:?}")))
        })
        .await
        .unwrap();
        let what = format!("filtered by the API server: {}", self.sharded);
        let truth = until_true(&self.client, &self.replicas, &what).await;
        let replicas = self.replicas.lock().unwrap();
        let mut end = BTreeMap::new();
        for name in truth.keys() {
            end.insert(name.clone(), Value::Null);
        }
        for replica in &*replicas {
            for key in replica.store.cluster_keys(&|_| true) {
                let record = replica.store.cluster(&key).unwrap();
                end.insert(
                    format!("DatabaseCluster {key}"),
                    serde_json::to_value(&record.spec).unwrap(),
                );
            }
        }
        for (number, model) in self.model.iter().enumerate() {
            let found = end.get(&format!("DatabaseCluster {NAMESPACE}/{}", name(number)));
            assert_eq!(found.is_some(), model.alive, "{}", name(number));
            if let Some(spec) = found.filter(|_| model.cpu > 0) {
                assert_eq!(spec["resources"]["cpu"], format!("{}m", model.cpu));
            }
        }
        end
    }
}

fn name(number: usize) -> String {
    format!("db-{number:03}")
}
