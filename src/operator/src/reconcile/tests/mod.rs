//! Tests of the reconciler against a small API server in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::num::NonZeroU32;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use prometheus::Registry;
use serde_json::{Value, json};
use sharded_controller::metrics::Metrics;
use tokio_util::sync::CancellationToken;

use super::fake::Fake;
use super::*;
use crate::api::names::NAMES;
use crate::api::{ConditionStatus, ConditionType, DatabaseCluster, Phase};
use crate::core::child::ChildKind;
use crate::core::plan::SECRET_HOLD_MS;
use crate::watch::observe;
use shard_ownership::hash::ShardCount;
use shard_ownership::token::FencingToken;
use sharded_controller::backoff::{Attempts, Outlook};
use sharded_controller::clock::ManualClock;
use sharded_controller::outcome::Cause;
use sharded_controller::permit::Validity;

const CLUSTER: &str = "/apis/database.io/v1/namespaces/shop/databaseclusters/orders";
const STATEFULSET: &str = "/apis/apps/v1/namespaces/shop/statefulsets/orders-db";
const SERVICE: &str = "/api/v1/namespaces/shop/services/orders-db";
const READ_WRITE: &str = "/api/v1/namespaces/shop/services/orders-rw";
const READ: &str = "/api/v1/namespaces/shop/services/orders-r";
const CONFIG: &str = "/api/v1/namespaces/shop/configmaps/orders-db";
const BUDGET: &str = "/apis/policy/v1/namespaces/shop/poddisruptionbudgets/orders-db";
const SECRETS: &str = "/api/v1/namespaces/shop/secrets";
const SECRET: &str = "/api/v1/namespaces/shop/secrets/orders-app";
const CLAIMS: &str = "/api/v1/namespaces/shop/persistentvolumeclaims";
const PODS: &str = "/api/v1/namespaces/shop/pods";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/shop/events";

/// Children of which only metadata is watched.
const WATCHED: [(&str, ChildKind); 3] = [
    ("/services/", ChildKind::Service),
    ("/configmaps/", ChildKind::ConfigMap),
    ("/poddisruptionbudgets/", ChildKind::PodDisruptionBudget),
];

/// By the clock, when a test begins.
const BEGIN_MS: u64 = 3_600_000;
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// So many reports of progress may come at once.
const REPORTS: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);

/// The state of the queue, and the attempts before a run.
#[derive(Clone, Copy)]
struct ExpectedStatus {
    others_wait: bool,
    outlook: Outlook,
}

impl Backlog for ExpectedStatus {
    fn others_wait(&self) -> bool {
        self.others_wait
    }

    fn outlook(&self) -> Outlook {
        self.outlook
    }
}

const NO_ATTEMPTS: Attempts = Attempts {
    failures: 0,
    retries: 0,
    retry_ms: None,
};

/// Nobody waits.
const IDLE: ExpectedStatus = ExpectedStatus {
    others_wait: false,
    outlook: Outlook {
        attempts: NO_ATTEMPTS,
        is_early: false,
        retry_in_ms: 0,
    },
};

/// Nobody waits, and no retry is left.
const LAST_STATUS: ExpectedStatus = ExpectedStatus {
    outlook: Outlook {
        attempts: Attempts {
            retries: 5,
            ..NO_ATTEMPTS
        },
        ..IDLE.outlook
    },
    ..IDLE
};

/// There is always somebody who waits.
const CROWDED: ExpectedStatus = ExpectedStatus {
    others_wait: true,
    ..IDLE
};

/// It has failed before, and is tried again in half a minute if it fails.
const fn failing(is_early: bool) -> ExpectedStatus {
    ExpectedStatus {
        outlook: Outlook {
            attempts: Attempts {
                failures: 1,
                ..NO_ATTEMPTS
            },
            is_early,
            retry_in_ms: 30_000,
        },
        ..IDLE
    }
}

/// One replica that holds the only shard, and its API server.
struct World {
    time: ManualClock,
    clock: Clock,
    fake: Fake,
    reconciler: Reconciler,
    store: Arc<Store>,
    metrics: Arc<ReconcilerMetrics>,
    shared_metrics: Arc<Metrics>,
    permit: ShardPermit,
    ended: CancellationToken,
}

fn key() -> ObjectKey {
    ObjectKey::new("shop", "orders")
}

impl World {
    fn new() -> Self {
        Self::on(Fake::default(), 1)
    }

    /// A replica with empty memory, in the given epoch, that reports progress at once.
    fn on(fake: Fake, epoch: u32) -> Self {
        Self::with_delay(fake, epoch, Duration::ZERO)
    }

    fn with_delay(fake: Fake, epoch: u32, report_delay: Duration) -> Self {
        let shards = ShardCount::new(1).unwrap();
        let store = Arc::new(Store::new(shards));
        let time = ManualClock::new(BEGIN_MS, jiff::Timestamp::now());
        let clock = time.clock();
        let registry = Registry::new();
        let metrics = Arc::new(ReconcilerMetrics::register(&registry, &NAMES).unwrap());
        let (client, shared_metrics) = fake.guarded(registry, clock.clone());
        let config = ReconcilerConfig {
            identity: "operator-0".to_owned(),
            cache_entries: 16,
            cache_ttl: Duration::from_secs(600),
            sweep_interval: SWEEP_INTERVAL,
            report_delay,
            report_rate: RateLimit::new(REPORTS, 10),
        };
        let validity = Arc::new(Validity::new(clock.clone()));
        validity.set_until_ms(u64::MAX);
        let ended = CancellationToken::new();
        let token = FencingToken {
            table: "table".into(),
            shard: ShardId(0),
            epoch,
            holder: format!("operator-{epoch}").into(),
        };
        let world = Self {
            reconciler: Reconciler::new(
                client,
                Arc::clone(&store),
                Arc::clone(&metrics),
                &config,
                clock.clone(),
            ),
            permit: ShardPermit::new(token, validity, ended.clone()),
            time,
            clock,
            fake,
            store,
            metrics,
            shared_metrics,
            ended,
        };
        world.watch();
        world
    }

    fn user_applies(&self, spec: Value) {
        self.fake.with(|state| {
            let mut object = state.objects.get(CLUSTER).cloned().unwrap_or_else(|| {
                json!({
                    "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
                    "metadata": {"name": "orders", "namespace": "shop"},
                })
            });
            object["spec"] = spec;
            state.put(CLUSTER, object)
        });
        self.watch();
    }

    /// Synchronizes the store with the server.
    fn watch(&self) {
        let objects = self.fake.with(|state| state.objects.clone());
        self.store.purge_shard(ShardId(0));
        for (path, object) in objects {
            if path.contains("/databaseclusters/") {
                let object: DatabaseCluster = serde_json::from_value(object).unwrap();
                self.store
                    .upsert_cluster(observe::cluster(&object).unwrap());
            } else if object["metadata"]["labels"]["database.io/bucket"].is_null() {
                // Not watched.
            } else if path.contains("/statefulsets/") {
                let object: StatefulSet = serde_json::from_value(object).unwrap();
                self.store
                    .upsert_statefulset(observe::statefulset(&object, None).unwrap());
            } else if let Some((_, kind)) = WATCHED.iter().find(|(kind, _)| path.contains(kind)) {
                let meta: ObjectMeta = serde_json::from_value(object["metadata"].clone()).unwrap();
                self.store
                    .upsert_child(observe::child(*kind, &meta).unwrap());
            }
        }
    }

    /// Forgets the children of other buckets, which belong to the watch of another shard.
    fn hide_others(&self, bucket: Bucket) {
        let others = |known: Bucket| known != bucket;
        for key in self.store.statefulset_keys(&others) {
            let uid = self.store.statefulset(&key).unwrap().child.uid.clone();
            self.store.remove_statefulset(&key, &uid);
        }
        for (_, kind) in WATCHED {
            for key in self.store.child_keys(kind, &others) {
                let id = crate::core::child::ChildId {
                    kind,
                    name: Arc::clone(&key.name),
                };
                let uid = self.store.child(&key.namespace, &id).unwrap().uid.clone();
                self.store.remove_child(kind, &key, &uid);
            }
        }
    }

    async fn reconcile(&self) -> Result<Outcome, Failure> {
        self.reconcile_beside(&IDLE).await
    }

    async fn reconcile_beside(&self, backlog: &dyn Backlog) -> Result<Outcome, Failure> {
        self.watch();
        self.reconciler
            .reconcile(&key(), &self.permit, backlog)
            .await
    }

    /// The work of the StatefulSet controller.
    fn set_pods(&self, exist: i32, ready: i32) {
        self.change(STATEFULSET, |set| {
            let generation = set["metadata"]["generation"].clone();
            set["status"] = json!({
                "observedGeneration": generation, "replicas": exist, "readyReplicas": ready,
                "updatedReplicas": exist, "availableReplicas": ready,
                "currentRevision": "r1", "updateRevision": "r1",
            });
        });
    }

    /// The same in the middle of a rollout.
    fn roll_pods(&self, exist: i32, ready: i32, updated: i32) {
        self.set_pods(exist, ready);
        self.change(STATEFULSET, |set| {
            set["status"]["updatedReplicas"] = json!(updated);
            set["status"]["updateRevision"] = json!("r2");
        });
    }

    fn change(&self, path: &str, change: impl FnOnce(&mut Value)) {
        self.fake.with(|state| {
            let mut object = state.objects[path].clone();
            change(&mut object);
            state.put(path, object);
        });
    }

    fn object(&self, path: &str) -> Option<Value> {
        self.fake.with(|state| state.objects.get(path).cloned())
    }

    fn requests(&self) -> Vec<String> {
        self.fake.with(|state| std::mem::take(&mut state.log))
    }

    fn cluster(&self) -> Arc<ClusterRecord> {
        self.watch();
        self.store.cluster(&key()).unwrap()
    }

    fn condition(&self, kind: ConditionType) -> (ConditionStatus, String, String) {
        let cluster = self.cluster();
        let condition = cluster.status.condition(kind).unwrap();
        (
            condition.status,
            condition.reason.clone(),
            condition.message.clone(),
        )
    }

    fn phase(&self) -> Phase {
        self.cluster().status.phase.unwrap()
    }

    fn notes(&self) -> Vec<String> {
        let objects = self.fake.with(|state| state.objects.clone());
        objects
            .into_iter()
            .filter(|(path, _)| path.starts_with(EVENTS))
            .map(|(_, event)| {
                assert_eq!(event["reportingController"], "database-controller");
                assert_eq!(event["action"], "Reconciling");
                format!(
                    "{} {} {}",
                    event["type"].as_str().unwrap(),
                    event["reason"].as_str().unwrap(),
                    event["note"].as_str().unwrap()
                )
            })
            .collect()
    }

    /// A Pod that does not become ready, of a template of this revision.
    fn broken_pod(&self, name: &str, revision: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": "shop", "labels": {"controller-revision-hash": revision},
            },
            "status": {"containerStatuses": [{
                "name": "postgres", "image": "postgres:0", "imageID": "", "ready": false,
                "restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff"}},
            }]},
        });
        self.fake
            .with(|state| state.put(&format!("{PODS}/{name}"), pod));
    }

    /// A claim with a volume of 1 Gi, if there is none of its name yet.
    fn claim_named(&self, name: &str, labels: &Value, annotations: &Value) {
        let size = json!({"storage": "1Gi"});
        let claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": name, "namespace": "shop", "labels": labels, "annotations": annotations,
            },
            "spec": {"resources": {"requests": size}, "volumeName": format!("pv-of-{name}")},
            "status": {"phase": "Bound", "capacity": size},
        });
        let path = format!("{CLAIMS}/{name}");
        self.fake.with(|state| {
            if !state.objects.contains_key(&path) {
                state.put(&path, claim);
            }
        });
    }

    /// Makes a sweep due.
    fn sweep(&self) {
        let interval_ms = self.reconciler.sweep_interval_ms;
        let long_ago_ms = self.clock.now_ms().saturating_sub(interval_ms);
        let cluster = self.cluster();
        let reconciler = &self.reconciler;
        reconciler.with_memory(&cluster, |memory| memory.swept(long_ago_ms));
    }

    /// A ready cluster, with an empty log.
    async fn with_ready_cluster(replicas: i32) -> Self {
        let world = Self::new();
        world.user_applies(json!({"image": "postgres:18", "replicas": replicas}));
        world.reconcile().await.unwrap();
        world.set_pods(replicas, replicas);
        let outcome = world.reconcile().await.unwrap();
        assert_eq!(outcome.next, Next::Ready);
        world.requests();
        world
    }
}

mod children;
mod claims;
mod deletion;
mod failures;
mod life;
mod ownership;
mod persistent_failure;
mod refused;
mod tls;
