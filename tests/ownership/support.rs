//! What the tests of ownership share: control planes, load, reads of shards and the fence's own count.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use serde_json::json;
use testbed::audit::AuditEvent;
use testbed::fencing::Token;
use testbed::fleet::{OPERATOR_NAMESPACE, OPERATOR_USER};
use testbed::metrics::Metrics;
use testbed::shards::Shard;
use testbed::table::Table;
use testbed::{
    AuditLevel, ControlPlane, ControlPlaneOptions, Fleet, Progress, Replica, load, wait_for,
};
use tokio::task::JoinHandle;

/// Long enough for a busy machine; a test that needs it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
pub(crate) const NAMESPACE: &str = "shop";

/// Without Pods, so that only the operator is busy; the bodies of its writes are in the audit log.
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

/// Users that change one cluster after the other, continuously.
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

    /// Ends it and waits until everything is Ready; returns the number of changes.
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

/// Waits until `check` of all shards is true.
pub(crate) async fn until_shards(
    client: &Client,
    what: &str,
    check: impl Fn(&BTreeMap<String, Shard>) -> bool,
) -> BTreeMap<String, Shard> {
    wait_for(what, PATIENCE, || async {
        let shards = shards_now(client).await;
        let met = check(&shards);
        let describe = || {
            let line = |s: &Shard| format!("{} {} {}", s.lease, s.epoch, s.holder);
            shards.values().map(line).collect::<Vec<_>>().join(", ")
        };
        Ok(match met {
            true => Progress::Done(shards),
            false => Progress::pending(describe()),
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

pub(crate) async fn metric(replica: &Replica, name: &str) -> f64 {
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

/// A write of one register of an object, in the order of the resulting versions.
struct Write {
    version: u64,
    token: Token,
}

/// Writes of the operator that the API server executed, on any object, with an epoch below an earlier one under the
/// same table for the same cluster: none. Annotation and status are two registers.
pub(crate) fn assert_epochs_never_fall(control_plane: &ControlPlane) {
    let mut writes: BTreeMap<_, Vec<Write>> = BTreeMap::new();
    let events = control_plane.audit().unwrap().into_iter();
    let ours = |event: &AuditEvent| event.user == OPERATOR_USER && event.is_accepted_write();
    for event in events.filter(ours) {
        let Some(object) = &event.response else {
            continue;
        };
        let token = match event.subresource.as_str() {
            "status" => Token::of_status(object),
            _ => Token::of_annotation(object),
        };
        let version = object["metadata"]["resourceVersion"].as_str();
        let version = version.and_then(|text| text.parse::<u64>().ok());
        let (Some(version), Some(token)) = (version, token) else {
            continue;
        };
        let key = (
            event.resource.clone(),
            event.subresource.clone(),
            event.namespace.clone(),
            event.name.clone(),
            token.table.clone(),
            token.cluster.clone(),
        );
        writes
            .entry(key)
            .or_default()
            .push(Write { version, token });
    }
    assert!(!writes.is_empty(), "no write in the audit log has a token");
    for (key, mut writes) in writes {
        // The log has them in the order of their answers.
        writes.sort_by_key(|write| write.version);
        for pair in writes.windows(2) {
            let (before, after) = (&pair[0].token, &pair[1].token);
            assert!(
                after.epoch >= before.epoch,
                "{key:?}: {after} was written after {before}"
            );
        }
    }
}

/// The shard table.
pub(crate) async fn shard_table(client: &Client) -> Table {
    let table = testbed::table::get(client).await.unwrap();
    table.expect("the fleet has a shard table")
}

/// Waits until Leases and entries of all shards agree: same epoch, same holder. Returns both.
pub(crate) async fn until_entered(client: &Client) -> (BTreeMap<String, Shard>, Table) {
    wait_for("Leases and entries to agree", PATIENCE, || async {
        let (shards, table) = (shards_now(client).await, shard_table(client).await);
        let differ = shards.iter().find(|(name, shard)| {
            let key = name.rsplit('-').next().unwrap_or_default();
            table.entries.get(key).is_none_or(|entry| {
                (entry.epoch, &entry.holder) != (i64::from(shard.epoch), &shard.holder)
            })
        });
        let difference = differ.map(|(_, shard)| format!("{shard:?}"));
        let count = shards.len() as u64;
        Ok(match difference {
            None if count == table.shards => Progress::Done((shards, table)),
            None => Progress::pending(format!("{count} Leases, {} entries", table.shards)),
            Some(difference) => Progress::pending(difference),
        })
    })
    .await
    .unwrap()
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
