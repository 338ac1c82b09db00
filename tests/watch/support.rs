//! Replicas that exist only as watches, the expected state to compare them with, and a way to cut them off.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use databasecluster_operator::api::names::NAMES;
use databasecluster_operator::core::child::ChildKind;
use databasecluster_operator::watch::store::Store;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use prometheus::Registry;
use shard_ownership::hash::{Bucket, ShardCount, ShardId};
use shard_ownership::ownership::Event;
use sharded_controller::clock::Clock;
use sharded_controller::fleet::agent;
use sharded_controller::health::Health;
use sharded_controller::metrics::Metrics;
use sharded_controller::object::ObjectKey;
use sharded_controller::watch::api_errors::ApiErrors;
use sharded_controller::watch::kinds::ShardCache as _;
use sharded_controller::watch::lists::Lists;
use sharded_controller::watch::mode::{FilterDoubts, detect_mode};
use sharded_controller::watch::reflector::{ReflectorParts, ShardReflector};
use sharded_controller::watch::watch_mode::WatchMode;
use testbed::{ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, Progress, load, wait_for};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::Receiver;
use tokio::task::{JoinHandle, JoinSet};

/// Long enough for a busy machine; a test that needs it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) async fn control_plane(sharded: bool) -> ControlPlane {
    let options = ControlPlaneOptions {
        sharded_list_and_watch: sharded,
        // The tests create StatefulSets themselves, without Pods.
        statefulset_stage: true,
        ..ControlPlaneOptions::default()
    };
    let control_plane = ControlPlane::start(options)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    Fleet::install(&control_plane, FleetOptions::default())
        .await
        .unwrap();
    control_plane
}

pub(crate) fn shards(count: u64) -> ShardCount {
    ShardCount::new(count).unwrap()
}

/// The watches of one replica.
pub(crate) struct Replica {
    pub(crate) reflector: ShardReflector<Store>,
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) watched: BTreeSet<ShardId>,
    /// The events for the ownership machine: unused here.
    _events: Receiver<Event>,
}

impl Replica {
    pub(crate) async fn new(client: Client, count: ShardCount) -> Self {
        let (handle, events) = agent::channel();
        let store = Arc::new(Store::new(count));
        let metrics = Arc::new(Metrics::register(Registry::new(), NAMES).unwrap());
        let clock = Clock::system();
        let api_errors = Arc::new(ApiErrors::new::<Store>(&NAMES, clock.clone()));
        let health = Health::new(&["api-server"]);
        let mode = detect_mode::<Store>(&client, &[], true, &api_errors, &health).await;
        let parts = ReflectorParts {
            names: NAMES,
            client,
            namespaces: Vec::new(),
            count,
            store: Arc::clone(&store),
            clock,
            api_errors,
            metrics: Arc::clone(&metrics),
            on_change: Box::new(|_, _| {}),
            agent: handle,
            lists: Lists::default(),
            doubts: FilterDoubts::default(),
            first_reconciles: Arc::default(),
        };
        Self {
            reflector: ShardReflector::new(Arc::new(parts), mode, true),
            store,
            metrics,
            watched: BTreeSet::new(),
            _events: events,
        }
    }

    pub(crate) fn watch(&mut self, shard: ShardId) {
        if self.watched.insert(shard) {
            self.reflector.watch(shard);
        }
    }

    pub(crate) fn unwatch(&mut self, shard: ShardId) {
        if self.watched.remove(&shard) {
            self.reflector.unwatch(shard);
        }
    }

    /// Objects in the store that lie in a shard that is not watched.
    pub(crate) fn strays(&self) -> Vec<String> {
        let count = self.store.shards();
        let stray = |bucket: Bucket| !self.watched.contains(&count.shard_of(bucket));
        everything(&self.store, &stray)
            .into_iter()
            .map(|(kind, key)| format!("{kind} {key}"))
            .collect()
    }

    pub(crate) fn relists(&self) -> u64 {
        let kinds = ["databaseclusters", "services"];
        let of = |kind| {
            self.metrics
                .watch
                .lists_total
                .with_label_values(&[kind, "again"])
        };
        kinds.into_iter().map(|kind| of(kind).get()).sum()
    }
}

/// Waits until all of them watch in this way.
pub(crate) async fn until_mode(replicas: &Mutex<Vec<Replica>>, mode: WatchMode) {
    wait_for(format!("the mode {mode:?}"), PATIENCE, || async {
        let replicas = replicas.lock().unwrap();
        let modes: Vec<WatchMode> = replicas.iter().map(|r| r.reflector.mode()).collect();
        let met = modes.iter().all(|now| *now == mode);
        Ok(Progress::when(met, (), || format!("{modes:?}")))
    })
    .await
    .unwrap();
}

const CHILDREN: [ChildKind; 3] = [
    ChildKind::Service,
    ChildKind::ConfigMap,
    ChildKind::PodDisruptionBudget,
];

fn everything(store: &Store, wanted: &dyn Fn(Bucket) -> bool) -> Vec<(&'static str, ObjectKey)> {
    let clusters = store.cluster_keys(wanted).into_iter();
    let sets = store.statefulset_keys(wanted).into_iter();
    let mut all: Vec<_> = clusters.map(|key| ("DatabaseCluster", key)).collect();
    all.extend(sets.map(|key| ("StatefulSet", key)));
    for kind in CHILDREN {
        let keys = store.child_keys(kind, wanted).into_iter();
        all.extend(keys.map(|key| (kind.label(), key)));
    }
    all
}

/// Kind and name of each object, with its uid and resource version.
pub(crate) type Truth = BTreeMap<String, String>;

/// What the stores of these replicas hold together. An object that two of them hold while a shard
/// moves must be the same in both.
pub(crate) fn held<'a>(replicas: impl IntoIterator<Item = &'a Replica>) -> Truth {
    let mut held = Truth::new();
    for replica in replicas {
        let store = &replica.store;
        for (kind, key) in everything(store, &|_| true) {
            let version = match kind {
                "DatabaseCluster" => store
                    .cluster(&key)
                    .map(|record| format!("{} {}", record.uid, record.resource_version)),
                "StatefulSet" => store.statefulset(&key).map(|record| {
                    format!("{} {}", record.child.uid, record.child.resource_version)
                }),
                _ => CHILDREN.iter().find_map(|known| {
                    let id = databasecluster_operator::core::child::ChildId {
                        kind: *known,
                        name: Arc::clone(&key.name),
                    };
                    let record = store.child(&key.namespace, &id)?;
                    (known.label() == kind)
                        .then(|| format!("{} {}", record.uid, record.resource_version))
                }),
            };
            let version = version.unwrap_or_else(|| "gone meanwhile".to_owned());
            let name = format!("{kind} {key}");
            let entry = held.entry(name).or_insert_with(|| version.clone());
            if *entry != version {
                entry.push_str(" or ");
                entry.push_str(&version);
            }
        }
    }
    held
}

/// What the API server has.
pub(crate) async fn truth(client: &Client) -> Truth {
    let mut truth = Truth::new();
    let clusters = load::all_clusters(client.clone());
    for object in clusters.list(&ListParams::default()).await.unwrap() {
        note(&mut truth, "DatabaseCluster", &object);
    }
    children::<StatefulSet>(&mut truth, client).await;
    children::<Service>(&mut truth, client).await;
    children::<ConfigMap>(&mut truth, client).await;
    truth
}

async fn children<K>(truth: &mut Truth, client: &Client)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + serde::de::DeserializeOwned,
{
    let labelled = ListParams::default().labels("database.io/bucket");
    for object in Api::<K>::all(client.clone()).list(&labelled).await.unwrap() {
        note(truth, &K::kind(&()), &object);
    }
}

fn note<K: ResourceExt>(truth: &mut Truth, kind: &str, object: &K) {
    let name = format!(
        "{kind} {}/{}",
        object.namespace().unwrap_or_default(),
        object.name_any()
    );
    let version = object.resource_version().unwrap_or_default();
    truth.insert(
        name,
        format!("{} {version}", object.uid().unwrap_or_default()),
    );
}

/// Waits until the replicas hold together what the API server has.
pub(crate) async fn until_true(
    client: &Client,
    replicas: &Mutex<Vec<Replica>>,
    what: &str,
) -> Truth {
    wait_for(
        format!("{what}: stores like the API server"),
        PATIENCE,
        || async {
            let truth = truth(client).await;
            let held = held(&*replicas.lock().unwrap());
            let differs = difference(&truth, &held);
            Ok(Progress::when(differs.is_empty(), truth, || differs))
        },
    )
    .await
    .unwrap()
}

fn difference(truth: &Truth, held: &Truth) -> String {
    let mut lines = Vec::new();
    for (name, version) in truth {
        match held.get(name) {
            Some(held) if held == version => {}
            Some(held) => lines.push(format!("{name} is {version}, held as {held}")),
            None => lines.push(format!("{name} is missing")),
        }
    }
    let gone = held.keys().filter(|name| !truth.contains_key(*name));
    lines.extend(gone.map(|name| format!("{name} was deleted and still held")));
    lines.join("; ")
}

/// A proxy between replicas and API servers, which can be cut.
pub(crate) struct Proxy {
    port: u16,
    targets: Arc<Mutex<Vec<u16>>>,
    connections: Arc<Mutex<JoinSet<()>>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Spreads connections over these ports, in turns.
    pub(crate) async fn to(targets: Vec<u16>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let targets = Arc::new(Mutex::new(targets));
        let connections = Arc::new(Mutex::new(JoinSet::new()));
        let (to, open) = (Arc::clone(&targets), Arc::clone(&connections));
        let accepting = tokio::spawn(async move {
            let mut turn = 0;
            while let Ok((mut from, _)) = listener.accept().await {
                let targets = to.lock().unwrap().clone();
                if targets.is_empty() {
                    continue;
                }
                let target = targets[turn % targets.len()];
                turn += 1;
                open.lock().unwrap().spawn(async move {
                    if let Ok(mut to) = TcpStream::connect(("127.0.0.1", target)).await {
                        let _until_closed = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                    }
                });
            }
        });
        Self {
            port,
            targets,
            connections,
            accepting,
        }
    }

    /// Ends all connections; from now on they lead to these ports, or nowhere.
    pub(crate) fn lead_to(&self, targets: Vec<u16>) {
        *self.targets.lock().unwrap() = targets;
        self.connections.lock().unwrap().abort_all();
    }

    pub(crate) async fn client(&self, control_plane: &ControlPlane) -> Client {
        let text = Kubeconfig::read_from(control_plane.kubeconfig()).unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(text, &options);
        let mut config = config.await.unwrap();
        config.cluster_url = format!("https://127.0.0.1:{}", self.port).parse().unwrap();
        config.default_retry = false;
        Client::try_from(config).unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.connections.lock().unwrap().abort_all();
    }
}

pub(crate) fn port_of(control_plane: &ControlPlane) -> u16 {
    let server = control_plane.server();
    server.rsplit(':').next().unwrap().parse().unwrap()
}

/// `count` clusters in one namespace.
pub(crate) fn clusters(namespace: &str, count: usize) -> Vec<load::NewCluster> {
    (0..count)
        .map(|number| load::NewCluster {
            namespace: namespace.to_owned(),
            name: format!("db-{number:03}"),
            spec: load::spec(1),
        })
        .collect()
}
