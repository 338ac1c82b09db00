//! What the tests of ownership share: control planes, load, looks at shards and the fence's own count.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use testbed::audit::AuditEvent;
use testbed::fleet::{OPERATOR_NAMESPACE, OPERATOR_USER};
use testbed::metrics::Metrics;
use testbed::shards::Shard;
use testbed::{
    AuditLevel, ControlPlane, ControlPlaneOptions, Fleet, Progress, Replica, load, wait_for,
};
use tokio::task::JoinHandle;

/// Long enough for a busy machine; a test that needs it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
pub(crate) const NAMESPACE: &str = "shop";

/// Without Pods, so that the operator is what is busy; the bodies of its writes are in the audit log.
pub(crate) async fn control_plane() -> ControlPlane {
    let options = ControlPlaneOptions {
        audit: AuditLevel::RequestResponse,
        statefulset_stage: true,
        lift_client_limits: true,
        ..ControlPlaneOptions::default()
    };
    ControlPlane::start(options)
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

/// `count` clusters of one instance, Ready.
pub(crate) async fn clusters(control_plane: &ControlPlane, count: usize) -> Vec<load::Key> {
    let names: Vec<String> = (0..count).map(|number| format!("db-{number:03}")).collect();
    let new = names.iter().map(|name| load::NewCluster {
        namespace: NAMESPACE.to_owned(),
        name: name.clone(),
        spec: load::spec(1),
    });
    load::create(control_plane, new.collect()).await.unwrap();
    load::wait_all_ready(&control_plane.client(), count, PATIENCE)
        .await
        .unwrap();
    names
        .into_iter()
        .map(|name| (NAMESPACE.to_owned(), name))
        .collect()
}

/// People who change one cluster after the other, all the time.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<usize>,
}

impl Load {
    pub(crate) fn start(client: Client, keys: Vec<load::Key>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut changes = 0;
            while !stopped.load(Ordering::Relaxed) {
                let key = keys[changes % keys.len()].clone();
                let cpu = format!("{}m", 100 + changes / keys.len() % 400);
                let change = json!({"spec": {"resources": {"cpu": cpu}}});
                load::patch(&client, vec![key], change).await.unwrap();
                changes += 1;
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            changes
        });
        Self { stop, task }
    }

    /// Ends it and waits until everything is Ready; says how many changes there were.
    pub(crate) async fn end(self, client: &Client) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let changes = self.task.await.unwrap();
        load::wait_all_ready(client, 1, PATIENCE).await.unwrap();
        changes
    }
}

pub(crate) fn leases(client: &Client) -> Api<Lease> {
    Api::namespaced(client.clone(), OPERATOR_NAMESPACE)
}

/// The shards by the names of their Leases.
pub(crate) async fn shards_now(client: &Client) -> BTreeMap<String, Shard> {
    let shards = testbed::shards::list(client).await.unwrap();
    shards
        .into_iter()
        .map(|shard| (shard.lease.clone(), shard))
        .collect()
}

/// Waits until `look` at all shards is true.
pub(crate) async fn until_shards(
    client: &Client,
    what: &str,
    look: impl Fn(&BTreeMap<String, Shard>) -> bool,
) -> BTreeMap<String, Shard> {
    wait_for(what, PATIENCE, || async {
        let shards = shards_now(client).await;
        let met = look(&shards);
        let told = || {
            let tell = |s: &Shard| format!("{} {} {}", s.lease, s.epoch, s.holder);
            shards.values().map(tell).collect::<Vec<_>>().join(", ")
        };
        Ok(match met {
            true => Progress::Done(shards),
            false => Progress::pending(told()),
        })
    })
    .await
    .unwrap()
}

pub(crate) async fn fleet_leader(client: &Client) -> String {
    let lease = leases(client)
        .get_opt("databasecluster-leader")
        .await
        .unwrap();
    lease
        .and_then(|lease| lease.spec?.holder_identity)
        .unwrap_or_default()
}

pub(crate) async fn figure(replica: &Replica, name: &str) -> f64 {
    replica.metrics().await.unwrap().sum(name).unwrap_or(0.0)
}

/// How often the fence refused, by the API server's own count.
pub(crate) async fn refusals(client: &Client) -> f64 {
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let text = client.request_text(request).await.unwrap();
    let metrics = Metrics::parse(&text);
    let counted = metrics.of("apiserver_validating_admission_policy_check_total");
    let denials = counted.filter(|sample| {
        let label = |name: &str| sample.labels.get(name).map_or("", String::as_str);
        label("enforcement_action") == "deny"
            && label("policy").starts_with("databasecluster-fence")
    });
    denials.map(|sample| sample.value).sum()
}

/// Lines of a replica's log, all its lives together.
pub(crate) fn log_lines(replica: &Replica, text: &str) -> usize {
    let log = std::fs::read_to_string(replica.log()).unwrap();
    log.lines().filter(|line| line.contains(text)).count()
}

/// A write of an object, in the order of the versions that they make.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Write {
    version: u64,
    epoch: i64,
    stamp: String,
}

/// Writes that the API server carried out, on any object, with an epoch below one that was there: none.
pub(crate) fn assert_epochs_never_fall(control_plane: &ControlPlane) {
    let mut writes: BTreeMap<_, Vec<Write>> = BTreeMap::new();
    let events = control_plane.audit().unwrap().into_iter();
    let ours = |event: &AuditEvent| event.user == OPERATOR_USER && event.is_accepted_write();
    for event in events.filter(ours) {
        let Some(metadata) = event.response.as_ref().map(|object| &object["metadata"]) else {
            continue;
        };
        let version = metadata["resourceVersion"].as_str();
        let version = version.and_then(|text| text.parse::<u64>().ok());
        let stamp = metadata["annotations"]["database.io/stamp"].as_str();
        let (Some(version), Some(stamp)) = (version, stamp) else {
            continue;
        };
        let Some(epoch) = stamp
            .split('/')
            .nth(1)
            .and_then(|text| text.parse::<i64>().ok())
        else {
            continue;
        };
        let key = (
            event.resource.clone(),
            event.namespace.clone(),
            event.name.clone(),
        );
        let write = Write {
            version,
            epoch,
            stamp: stamp.to_owned(),
        };
        writes.entry(key).or_default().push(write);
    }
    assert!(!writes.is_empty(), "no write in the audit log has a stamp");
    for (key, mut writes) in writes {
        // The log has them in the order of their answers.
        writes.sort();
        for pair in writes.windows(2) {
            let (before, after) = (&pair[0], &pair[1]);
            assert!(
                after.epoch >= before.epoch,
                "{key:?}: {} was written after {}",
                after.stamp,
                before.stamp
            );
        }
    }
}

/// The highest epoch stamped on any StatefulSet of each bucket.
pub(crate) async fn stamps(client: &Client) -> Vec<(u8, i32)> {
    let all: Api<StatefulSet> = Api::namespaced(client.clone(), NAMESPACE);
    let all = all.list(&ListParams::default()).await.unwrap();
    let stamp = |set: &StatefulSet| {
        let bucket = set.labels().get("database.io/bucket")?.parse().ok()?;
        let stamp = set.annotations().get("database.io/stamp")?;
        Some((bucket, stamp.split('/').nth(1)?.parse().ok()?))
    };
    all.iter().filter_map(stamp).collect()
}

/// Three replicas, ready and balanced.
pub(crate) async fn fleet_of_three(
    control_plane: &ControlPlane,
    options: testbed::FleetOptions,
) -> Fleet<'_> {
    let fleet = Fleet::start(control_plane, 3, options).await.unwrap();
    testbed::shards::wait_balanced(&fleet, PATIENCE)
        .await
        .unwrap();
    fleet
}
