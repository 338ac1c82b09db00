//! What must not have changed after an attack, and what still has to work.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use testbed::fleet::OPERATOR_NAMESPACE;
use testbed::process::ProcessId;
use testbed::table::Table;
use testbed::{Replica, load};

use crate::environment::{BUSY, BUSY_CLUSTERS, Environment, PATIENCE, QUIET};
use crate::requests::api;

/// How long a change of a spec may take during an attack; without one it takes one or two seconds.
const PROGRESS: Duration = Duration::from_secs(30);
/// How much the memory of a replica may grow over all attacks, and how much more a replica that starts among what they
/// left behind may use. Its limit is 256 MiB.
const GROWTH_MAX_BYTES: u64 = 48 << 20;

/// Holder, epoch, incarnation.
type Held = (String, i32, String);

/// Which replica holds which shard, by the Leases and by the shard table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ownership {
    leases: BTreeMap<String, Held>,
    table: Table,
}

#[derive(Clone, Debug)]
struct Memory {
    process: ProcessId,
    resident_bytes: u64,
}

pub(crate) struct Checker {
    ownership: Ownership,
    /// Objects of namespaces in which no attacker has rights, with their versions.
    objects: BTreeMap<String, String>,
    memory: BTreeMap<String, Memory>,
    changes: u32,
}

impl Checker {
    pub(crate) async fn start(environment: &Environment<'_>) -> Self {
        let memory = environment.fleet.replicas().iter().map(|replica| {
            let memory = Memory {
                process: replica.process(),
                resident_bytes: replica.usage().unwrap().resident_bytes,
            };
            (replica.name().to_owned(), memory)
        });
        Self {
            ownership: ownership(&environment.admin).await,
            objects: objects(&environment.admin).await,
            memory: memory.collect(),
            changes: 0,
        }
    }

    /// Asserts that the attack reached no shard and no other namespace.
    pub(crate) async fn unharmed(&mut self, environment: &Environment<'_>, attack: &str) {
        let took = self.progress(environment, attack).await;
        let mut grown = 0;
        for replica in environment.fleet.replicas() {
            grown = grown.max(self.growth(replica, attack).await);
        }
        let now = ownership(&environment.admin).await;
        assert_eq!(self.ownership, now, "{attack}: a shard moved");
        let now = objects(&environment.admin).await;
        assert_eq!(self.objects, now, "{attack}: an object of others changed");
        println!(
            "{attack}: {BUSY_CLUSTERS} changes of others Ready after {took:.1?}, a replica grew by up to {:.1} MiB",
            mebibytes(grown)
        );
        assert!(grown < GROWTH_MAX_BYTES, "{attack}: {grown} bytes");
    }

    /// Changes of the other tenants' clusters are applied.
    async fn progress(&mut self, environment: &Environment<'_>, attack: &str) -> Duration {
        self.changes += 1;
        let started = Instant::now();
        let clusters = load::clusters_in(environment.admin.clone(), BUSY);
        let names = clusters.list(&ListParams::default()).await.unwrap().items;
        let keys = names.iter().map(|one| (BUSY.to_owned(), one.name_any()));
        let change = json!({"spec": {"resources": {"cpu": format!("{}m", 250 + self.changes)}}});
        load::patch(&environment.admin, keys.collect(), change)
            .await
            .unwrap();
        let deadline = started + PROGRESS;
        loop {
            let all = clusters.list(&ListParams::default()).await.unwrap().items;
            let why = all
                .iter()
                .find_map(|one| Some((one.name_any(), load::why_not_ready(one)?)));
            match why {
                None if all.len() == BUSY_CLUSTERS => return started.elapsed(),
                _ if Instant::now() > deadline => {
                    panic!("{attack}: others make no progress: {why:?}")
                }
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// By how much a replica has ever grown. It is the same process, and ready.
    async fn growth(&self, replica: &Replica, attack: &str) -> u64 {
        let (name, before) = (replica.name(), &self.memory[replica.name()]);
        assert!(before.process.is_alive(), "{attack}: {name} has ended");
        let ready = replica.get("/readyz").await.unwrap();
        assert_eq!(ready.status, 200, "{attack}: {name}: {}", ready.body);
        let peak = replica.usage().unwrap().peak_resident_bytes;
        peak.saturating_sub(before.resident_bytes)
    }

    /// A replica that lists all that the attacks have left behind takes no more than one that has seen it come.
    pub(crate) async fn replicas_that_start_now_stay_small(
        &self,
        mut environment: Environment<'_>,
    ) {
        let index = environment.fleet.start_replica(&[]).await.unwrap();
        environment.fleet.wait_ready(PATIENCE).await.unwrap();
        testbed::shards::wait_balanced(&environment.fleet, PATIENCE)
            .await
            .unwrap();
        let replica = environment.fleet.replica(index).unwrap();
        let peak = replica.usage().unwrap().peak_resident_bytes;
        let usual = self.memory.values().map(|memory| memory.resident_bytes);
        let usual = usual.max().unwrap();
        println!(
            "a replica that starts last: {:.1} MiB at most, the others had {:.1} MiB",
            mebibytes(peak),
            mebibytes(usual)
        );
        assert!(peak < usual + GROWTH_MAX_BYTES, "{peak} bytes");
    }
}

#[allow(clippy::cast_precision_loss)]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

async fn ownership(admin: &Client) -> Ownership {
    let api: Api<Lease> = Api::namespaced(admin.clone(), OPERATOR_NAMESPACE);
    let shards = ListParams::default().labels("database.io/role=shard");
    let list = api.list(&shards).await.unwrap();
    let held = |lease: &Lease| {
        let spec = lease.spec.clone().unwrap_or_default();
        let incarnation = lease.annotations().get("database.io/incarnation").cloned();
        (
            spec.holder_identity.unwrap_or_default(),
            spec.lease_transitions.unwrap_or_default(),
            incarnation.unwrap_or_default(),
        )
    };
    let leases = list.items.iter().map(|one| (one.name_any(), held(one)));
    Ownership {
        leases: leases.collect(),
        table: testbed::table::get(admin).await.unwrap().unwrap(),
    }
}

/// Kind, namespace and name of each object, and its version.
async fn objects(admin: &Client) -> BTreeMap<String, String> {
    let kinds = [
        "DatabaseCluster",
        "StatefulSet",
        "Service",
        "ConfigMap",
        "Secret",
        "PodDisruptionBudget",
        "PersistentVolumeClaim",
        "Pod",
        "ServiceAccount",
    ];
    let mut found = BTreeMap::new();
    for namespace in [QUIET, "kube-system", "default", OPERATOR_NAMESPACE] {
        for kind in kinds {
            let api = api(admin, kind, namespace);
            for object in api.list(&ListParams::default()).await.unwrap().items {
                let key = format!("{kind} {namespace}/{}", object.name_any());
                found.insert(key, object.resource_version().unwrap());
            }
        }
    }
    assert!(found.len() > 50, "only {} objects", found.len());
    found
}
