//! Checks by dry runs that the API server's fence applies to this replica, and reports it; reads
//! Lease and table again after the fence refused a write.
//!
//! A policy that exists may still not match us: another account, another namespace. Only a refusal of
//! our own token proves it, so each policy is sent a dry run that breaks its rules and no other's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, PostParams};
use kube::core::TypeMeta;
use kube::{Client, Resource};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::agent::AgentHandle;
use super::leases::{LeaseStore, ObservedLease};
use super::shard_table::{ShardTable, ShardTableEntry, ShardTableSpec};
use super::state::FleetState;
use super::table::TableStore;
use crate::clock::Clock;
use crate::failpoints::{Failpoint, is_active};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::names::Names;
use shard_ownership::hash::ShardId;
use shard_ownership::ownership::{Event, ReadFailed};
use shard_ownership::token::FencingToken;

// What follows the prefix in the names of the policies that are proven.
const HOLDER: &str = "fence-holder";
const ORDER: &str = "fence-order";
const LEASES: &str = "fence-leases";
const TABLE: &str = "fence-table";

/// Uid of nothing.
const NOBODY_UID: &str = "00000000-0000-0000-0000-000000000000";

/// ValidatingAdmissionPolicies are `v1` since Kubernetes 1.30.
const MINOR_NEEDED: u32 = 30;

/// Name of the check in `/readyz`.
pub(crate) const CHECK: &str = "fence";
/// Name of the check in `/readyz` for permission to write the shard table.
pub(crate) const TABLE_CHECK: &str = "shard-table";
/// Interval between probes while the fence holds; an idle fleet should be quiet.
const AGAIN_WHEN_HELD: Duration = Duration::from_secs(600);
/// Interval between probes while the fence is missing.
const AGAIN_WHEN_OPEN: Duration = Duration::from_secs(30);
/// Interval between probes while a cause is expected to pass soon: no shard table yet, or no
/// answer.
const AGAIN_SOON: Duration = Duration::from_secs(2);
/// Minimum time between two refreshes of one shard because of refused writes, in milliseconds.
const REFRESHES_APART_MS: u64 = 100;

/// Whether a message of the API server is a refusal by one of the operator's policies.
pub(crate) fn is_refusal(names: &Names, message: &str) -> bool {
    ["fence", "limits"]
        .iter()
        .any(|kind| message.contains(&format!("{}-{kind}", names.prefix)))
}

/// Result of the dry runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// Every policy refused.
    Held,
    /// Every policy refused that can be probed while there is no shard table.
    NoTableYet,
    /// This policy accepted what it must refuse.
    Open {
        /// Name of the policy.
        policy: String,
        /// Folder with the manifest that has it.
        manifests: &'static str,
    },
    /// The API server is of this version, which has no such policies.
    Old(String),
    /// The probe did not give a result.
    Unknown(String),
}

impl Proof {
    /// Whether a replica that requires the fence may start to act.
    #[must_use]
    pub(crate) fn may_start(&self) -> bool {
        matches!(self, Self::Held | Self::NoTableYet)
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held => f.write_str("the API server refuses stale writes of this replica"),
            Self::NoTableYet => f.write_str(
                "the API server knows the fence; there is no shard table yet to compare tokens with",
            ),
            Self::Open { policy, manifests } => write!(
                f,
                "policy {policy} does not stop this replica: apply {manifests}/fence.yaml, with this \
                 replica's account and namespace in it"
            ),
            Self::Old(version) => write!(
                f,
                "the API server is Kubernetes {version}; the fence needs 1.30 or newer"
            ),
            Self::Unknown(why) => write!(f, "could not be checked: {why}"),
        }
    }
}

/// Sends the dry runs of one replica.
#[derive(Clone)]
pub(crate) struct FenceProbe {
    names: Names,
    /// `apiVersion` and kind of the sharded objects.
    owner: TypeMeta,
    client: Client,
    services: Api<Service>,
    leases: Api<Lease>,
    tables: Api<ShardTable>,
    table: TableStore,
}

impl FenceProbe {
    /// A probe with the replica's own client, in the operator's namespace.
    #[must_use]
    pub(crate) fn new(client: Client, namespace: &str, names: Names, owner: TypeMeta) -> Self {
        Self {
            services: Api::namespaced(client.clone(), namespace),
            leases: Api::namespaced(client.clone(), namespace),
            tables: Api::namespaced_with(client.clone(), namespace, &names),
            table: TableStore::new(client.clone(), namespace, names),
            client,
            names,
            owner,
        }
    }

    /// Breaks a rule of each policy in a dry run.
    pub(crate) async fn prove(&self) -> Proof {
        if is_active(Failpoint::Fence) {
            return Proof::Held;
        }
        match self.try_prove().await {
            Ok(open @ Proof::Open { .. }) => match self.old_version().await {
                Some(version) => Proof::Old(version),
                None => open,
            },
            Ok(proof) => proof,
            Err(why) => Proof::Unknown(why),
        }
    }

    /// The API server's version, if it is too old for the fence.
    async fn old_version(&self) -> Option<String> {
        let version = self.client.apiserver_version().await.ok()?;
        let is_old = is_before(&version.major, &version.minor, MINOR_NEEDED);
        is_old.then_some(version.git_version)
    }

    async fn try_prove(&self) -> Result<Proof, String> {
        let unmarked = self.service(None)?;
        if self.accepts(&self.services, &unmarked, ORDER).await? {
            return Ok(self.open(ORDER));
        }
        let impossible = self.lease(&self.names.shard_lease(ShardId(999)))?;
        if self.accepts(&self.leases, &impossible, LEASES).await? {
            return Ok(self.open(LEASES));
        }
        if self
            .accepts(&self.tables, &self.shard_table(), TABLE)
            .await?
        {
            return Ok(self.open(TABLE));
        }
        let table = self.table.read().await;
        let table = table.map_err(|ReadFailed| "the shard table could not be read".to_owned())?;
        let Some(table) = table else {
            return Ok(Proof::NoTableYet);
        };
        let stale = FencingToken {
            table: table.version.uid.into(),
            shard: ShardId(0),
            epoch: 1,
            // No identity can have this value: it is not a DNS name.
            holder: "(nobody)".into(),
        };
        let stale = self.service(Some(&stale))?;
        let is_open = self.accepts(&self.services, &stale, HOLDER).await?;
        Ok(if is_open {
            self.open(HOLDER)
        } else {
            Proof::Held
        })
    }

    /// Sends a creation that is never carried out. Whether the policy accepted it.
    async fn accepts<K>(&self, api: &Api<K>, object: &K, policy: &str) -> Result<bool, String>
    where
        K: Resource + Clone + DeserializeOwned + Serialize + fmt::Debug,
    {
        let params = PostParams {
            dry_run: true,
            field_manager: Some(self.names.app.to_owned()),
        };
        let policy = format!("{}-{policy}", self.names.prefix);
        match api.create(&params, object).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.message.contains(&policy) => Ok(false),
            Err(error) => Err(format!(
                "a dry run for {policy} was refused by something else ({error})"
            )),
        }
    }

    /// The problem with our permission to write the shard table, and what to do about it; none if
    /// we may.
    async fn table_problem(&self) -> Option<String> {
        match self.table.probe().await {
            Ok(()) => None,
            Err(kube::Error::Api(status)) if status.code == 404 => Some(format!(
                "the API server does not serve the kind ShardTable: apply {}/crd.yaml",
                self.names.manifests
            )),
            Err(error) => Some(format!(
                "the shard table cannot be written ({error}): apply {0}/rbac.yaml and {0}/fence.yaml",
                self.names.manifests
            )),
        }
    }

    fn open(&self, policy: &str) -> Proof {
        Proof::Open {
            policy: format!("{}-{policy}", self.names.prefix),
            manifests: self.names.manifests,
        }
    }

    /// Name of every object that a dry run would create.
    fn name(&self) -> String {
        format!("{}-fence-probe", self.names.prefix)
    }

    /// A dependent of an owner that does not exist: with a token, right but for that, and in the first
    /// bucket; without one, of no bucket, so that it meets no policy that reads the table.
    fn service(&self, token: Option<&FencingToken>) -> Result<Service, String> {
        let (labels, annotations) = match token {
            None => (json!({}), json!({})),
            Some(token) => (
                json!({self.names.bucket_label(): "0"}),
                json!({self.names.fencing_token(): token.for_cluster(NOBODY_UID)}),
            ),
        };
        typed(json!({
            "metadata": {
                "name": self.name(),
                "labels": labels,
                "annotations": annotations,
                "ownerReferences": [{
                    "apiVersion": self.owner.api_version, "kind": self.owner.kind, "name": "nobody",
                    "uid": NOBODY_UID, "controller": true,
                }],
            },
            "spec": {"clusterIP": "None", "ports": [{"port": 1}]},
        }))
    }

    /// A Lease that the operator never writes.
    fn lease(&self, name: &str) -> Result<Lease, String> {
        let (label, app) = self.names.app_label();
        typed(json!({
            "metadata": {"name": name, "labels": {label: app}},
            "spec": {"holderIdentity": ""},
        }))
    }

    /// A table that the operator never writes.
    fn shard_table(&self) -> ShardTable {
        let spec = ShardTableSpec {
            shards: 1,
            entries: [("000".to_owned(), ShardTableEntry::default())].into(),
        };
        ShardTable::new(&self.names, &self.name(), spec)
    }
}

/// Whether a version of Kubernetes is older than 1.`needed`. Some providers write the minor as `29+`.
fn is_before(major: &str, minor: &str, needed: u32) -> bool {
    let digits = minor.trim_end_matches(|c: char| !c.is_ascii_digit());
    major == "1" && digits.parse::<u32>().is_ok_and(|minor| minor < needed)
}

fn typed<K: DeserializeOwned>(object: Value) -> Result<K, String> {
    serde_json::from_value(object).map_err(|error| error.to_string())
}

/// Checks periodically that the fence holds, and reports it.
pub(crate) struct FenceMonitor {
    probe: FenceProbe,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    required: bool,
    last: Option<Proof>,
}

impl FenceMonitor {
    /// Creates a monitor without a result. `required`: readiness depends on the fence.
    #[must_use]
    pub(crate) fn new(
        probe: FenceProbe,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        required: bool,
    ) -> Self {
        Self {
            probe,
            health,
            metrics,
            required,
            last: None,
        }
    }

    /// Checks once; if the fence is required, repeatedly until the replica may start to act. Without
    /// permission to write the shard table, no replica may.
    pub(crate) async fn before_start(&mut self) {
        let mut known = None;
        loop {
            let problem = self.probe.table_problem().await;
            let Some(problem) = problem else { break };
            self.health.set(TABLE_CHECK, Err(&problem));
            if known.as_ref() != Some(&problem) {
                tracing::error!("{problem}; waiting until that is resolved");
                known = Some(problem);
            }
            tokio::time::sleep(AGAIN_SOON).await;
        }
        self.health.ok(TABLE_CHECK);
        loop {
            let proof = self.prove().await;
            if !self.required || proof.may_start() {
                return;
            }
            tokio::time::sleep(AGAIN_SOON).await;
        }
    }

    /// Checks periodically, until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let pause = match &self.last {
                Some(Proof::Held) => AGAIN_WHEN_HELD,
                Some(Proof::Open { .. } | Proof::Old(_)) => AGAIN_WHEN_OPEN,
                Some(Proof::NoTableYet | Proof::Unknown(_)) | None => AGAIN_SOON,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                _ = self.prove() => {}
            }
        }
    }

    async fn prove(&mut self) -> Proof {
        let mut proof = self.probe.prove().await;
        if matches!(proof, Proof::Open { .. }) && self.last == Some(Proof::NoTableYet) {
            // The API server takes a moment to notice a new table.
            tokio::time::sleep(AGAIN_SOON).await;
            proof = self.probe.prove().await;
        }
        self.report(&proof);
        self.last = Some(proof.clone());
        proof
    }

    fn report(&self, proof: &Proof) {
        // What could not be probed keeps its last result.
        if !matches!(proof, Proof::Unknown(_)) {
            let held = i64::from(*proof == Proof::Held);
            self.metrics.fleet.fence_in_force.set(held);
        }
        if self.last.as_ref() != Some(proof) {
            match (proof, self.required) {
                (Proof::Held, _) => tracing::info!("fence: {proof}"),
                (Proof::NoTableYet, _) => tracing::debug!("fence: {proof}"),
                (_, true) => tracing::error!("--require-fence: {proof}"),
                (_, false) => tracing::warn!("fence: {proof}; working without the fence"),
            }
        }
        let was_held = self.last == Some(Proof::Held) && matches!(proof, Proof::Unknown(_));
        let result = match proof {
            proof if proof.may_start() || was_held => Ok(()),
            proof => Err(proof),
        };
        match self.required {
            true => self.health.set(CHECK, result),
            false => self.health.inform(CHECK, result),
        }
    }
}

/// Reads the Lease of a shard and the table again after the fence refused a write there, so that a
/// replica that lost its shard without noticing stops immediately.
pub(crate) struct LeaseRefresher {
    names: Names,
    leases: LeaseStore,
    table: TableStore,
    agent: AgentHandle,
    fleet: Arc<FleetState>,
    clock: Clock,
    /// When each shard was last refreshed. Locked for one lookup, never across an await.
    refreshed_ms: Mutex<BTreeMap<ShardId, u64>>,
}

impl LeaseRefresher {
    /// Reads from the stores and sends what it finds to `agent`.
    #[must_use]
    pub(crate) fn new(
        names: Names,
        leases: LeaseStore,
        table: TableStore,
        agent: AgentHandle,
        fleet: Arc<FleetState>,
        clock: Clock,
    ) -> Self {
        Self {
            names,
            leases,
            table,
            agent,
            fleet,
            clock,
            refreshed_ms: Mutex::default(),
        }
    }

    /// Reads Lease and table, unless that was just done.
    pub(crate) async fn refresh(&self, shard: ShardId) {
        if !self.is_due(shard) {
            return;
        }
        let name = self.names.shard_lease(shard);
        let is_it = |lease: &&Arc<Lease>| lease.metadata.name.as_ref() == Some(&name);
        let known = self.fleet.leases().iter().find(is_it).cloned();
        match self.leases.read(&name).await {
            Ok(Some(ObservedLease::Shard(lease))) => {
                self.agent.send(Event::ShardObserved(lease)).await
            }
            Ok(None) => {
                if let Some(ObservedLease::Shard(deleted)) =
                    known.and_then(|lease| self.leases.codec().decode(&lease))
                {
                    let uid = deleted.version.uid;
                    self.agent.send(Event::ShardDeleted { shard, uid }).await;
                }
            }
            Ok(Some(ObservedLease::Member(_))) | Err(ReadFailed) => {}
        }
        if let Ok(table) = self.table.read().await {
            self.agent.send(Event::TableListed(table)).await;
        }
    }

    fn is_due(&self, shard: ShardId) -> bool {
        let now_ms = self.clock.now_ms();
        let mut refreshed_ms = self.refreshed_ms.lock();
        let last_ms = refreshed_ms.get(&shard).copied();
        let due =
            last_ms.is_none_or(|last_ms| now_ms.saturating_sub(last_ms) >= REFRESHES_APART_MS);
        if due {
            refreshed_ms.insert(shard, now_ms);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::testing::NAMES;

    /// An API server of a minor version that accepts everything.
    fn without_policies(minor: &'static str) -> Client {
        let answer = move |request: http::Request<kube::client::Body>| async move {
            let text = match request.uri().path() {
                "/version" => {
                    json!({"major": "1", "minor": minor, "gitVersion": format!("v1.{minor}.4")})
                }
                _ => json!({"metadata": {"name": "x"}}),
            };
            let body = kube::client::Body::from(text.to_string().into_bytes());
            Ok::<_, std::convert::Infallible>(http::Response::new(body))
        };
        Client::new(tower::service_fn(answer), "default")
    }

    #[tokio::test]
    async fn an_api_server_that_is_too_old_is_named() {
        for (minor, old) in [("29", true), ("29+", true), ("30", false), ("37", false)] {
            let probe = FenceProbe::new(
                without_policies(minor),
                "default",
                NAMES,
                TypeMeta::default(),
            );
            let proof = probe.prove().await;
            let message = proof.to_string();
            assert!(!proof.may_start());
            let named = format!("Kubernetes v1.{minor}.4; the fence needs 1.30");
            assert_eq!(message.contains(&named), old, "{message}");
        }
    }
}
