//! Proves that the API server's fence holds for this replica, and says so; looks at ownership afresh
//! when it refused a write.
//!
//! A policy that exists may still not match us: another account, another namespace. Only a refusal
//! of our own token proves it, so each policy is sent a dry run that breaks its rules.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::agent::AgentHandle;
use super::leases::{BUCKETS, LeaseStore, NAME_LABEL, Seen, decode};
use super::state::FleetState;
use super::tenure::boottime_ms;
use crate::api::names;
use crate::core::hash::ShardId;
use crate::core::lease::shard_lease_name;
use crate::core::object::Stamp;
use crate::core::ownership::Event;
use crate::planted::{Fault, is_planted};
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;

/// Names of the policies that are the fence begin with this.
pub const POLICY_PREFIX: &str = "databasecluster-fence";
const HOLDER: &str = "databasecluster-fence-holder";
const ORDER: &str = "databasecluster-fence-order";
const LEASES: &str = "databasecluster-fence-leases";

const SHARD_LEASES: &str = "app.kubernetes.io/name=databasecluster-operator,database.io/role=shard";

/// In a refusal: what the fence compared the stamp with follows.
const PRESENT_HOLDER: &str = "is not that of the present holder, ";

/// ValidatingAdmissionPolicies are `v1` since Kubernetes 1.30.
const MINOR_NEEDED: u32 = 30;

/// Name of the check in `/readyz`.
pub const CHECK: &str = "fence";
/// Between proofs while all is well; a fleet at rest should be quiet.
const AGAIN_WHEN_HELD: Duration = Duration::from_secs(600);
/// Between proofs while the fence is missing.
const AGAIN_WHEN_OPEN: Duration = Duration::from_secs(30);
/// Between proofs while something passes soon: no shard Lease yet, or no answer.
const AGAIN_SOON: Duration = Duration::from_secs(2);
/// Of two looks at one shard's Lease because of refused writes.
const LOOKS_APART_MS: u64 = 100;

/// What the dry runs showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Every policy refused.
    Held,
    /// Every policy refused that can be asked while there is no shard Lease.
    NoLeaseYet,
    /// This policy let pass what it must refuse.
    Open(&'static str),
    /// The API server is of this version, which has no such policies.
    Old(String),
    /// It compares with a shard Lease as it was, not as it is.
    Behind {
        /// Lease, epoch and holder as the fence knows them.
        known: String,
        /// The same as they are.
        is: String,
    },
    /// It could not be found out.
    Unknown(String),
}

impl Proof {
    /// Whether a replica that requires the fence may begin to act.
    #[must_use]
    pub fn may_start(&self) -> bool {
        matches!(self, Self::Held | Self::NoLeaseYet)
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held => f.write_str("the API server refuses stale writes of this replica"),
            Self::NoLeaseYet => f.write_str(
                "the API server knows the fence; there is no shard Lease yet to compare stamps with",
            ),
            Self::Open(policy) => write!(
                f,
                "policy {policy} does not stop this replica: apply deploy/base/fence.yaml, with this \
                 replica's account and namespace in it"
            ),
            Self::Old(version) => write!(
                f,
                "the API server is Kubernetes {version}; the fence needs 1.30 or newer"
            ),
            Self::Behind { known, is } => write!(
                f,
                "the API server compares with {known}, which is {is} by now: if this stays, its \
                 cache of Leases has stopped (kubernetes/kubernetes#130887); restart it"
            ),
            Self::Unknown(why) => write!(f, "could not be proven: {why}"),
        }
    }
}

/// Sends the dry runs of one replica.
#[derive(Clone)]
pub struct Prover {
    client: Client,
    services: Api<Service>,
    leases: Api<Lease>,
}

impl Prover {
    /// A prover with the replica's own client, in the operator's namespace.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            services: Api::namespaced(client.clone(), namespace),
            leases: Api::namespaced(client.clone(), namespace),
            client,
        }
    }

    /// Breaks a rule of each policy in a dry run.
    pub async fn prove(&self) -> Proof {
        if is_planted(Fault::Fence) {
            return Proof::Held;
        }
        match self.try_prove().await {
            Ok(Proof::Open(policy)) => match self.old_version().await {
                Some(version) => Proof::Old(version),
                None => Proof::Open(policy),
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
        let unstamped = probe_service(None, "0")?;
        if self.refusal(&self.services, &unstamped).await?.is_none() {
            return Ok(Proof::Open(ORDER));
        }
        if self.refusal(&self.leases, &probe_lease()?).await?.is_none() {
            return Ok(Proof::Open(LEASES));
        }
        let params = ListParams::default().labels(SHARD_LEASES).limit(1);
        let shards = self.leases.list(&params).await;
        let shards = shards.map_err(|error| format!("no list of shard Leases ({error})"))?;
        let Some(is) = shards.items.first().map(Present::of) else {
            return Ok(Proof::NoLeaseYet);
        };
        let nobody = Stamp {
            lease: is.lease.clone(),
            epoch: 1,
            // No identity can be this one: it is no DNS name.
            holder: "(nobody)".to_owned(),
        };
        let stale = probe_service(Some(&nobody), &is.bucket)?;
        Ok(match self.refusal(&self.services, &stale).await? {
            None => Proof::Open(HOLDER),
            Some(message) => is.compare(&message),
        })
    }

    /// Sends a creation that is never carried out; what the fence said when it refused it.
    async fn refusal<K>(&self, api: &Api<K>, object: &K) -> Result<Option<String>, String>
    where
        K: Resource + Clone + DeserializeOwned + Serialize + fmt::Debug,
    {
        let params = PostParams {
            dry_run: true,
            field_manager: Some(names::FIELD_MANAGER.to_owned()),
        };
        match api.create(&params, object).await {
            Ok(_) => Ok(None),
            Err(kube::Error::Api(status)) if status.message.contains(POLICY_PREFIX) => {
                Ok(Some(status.message.clone()))
            }
            Err(error) => Err(format!("a dry run was refused by something else ({error})")),
        }
    }
}

/// Whether a version of Kubernetes is older than 1.`needed`. Some providers write the minor as `29+`.
fn is_before(major: &str, minor: &str, needed: u32) -> bool {
    let digits = minor.trim_end_matches(|c: char| !c.is_ascii_digit());
    major == "1" && digits.parse::<u32>().is_ok_and(|minor| minor < needed)
}

/// A shard Lease as it is.
struct Present {
    lease: String,
    /// `<lease>/<epoch>/<holder>`, as the fence writes it.
    stamp: String,
    /// One that it holds.
    bucket: String,
}

impl Present {
    fn of(lease: &Lease) -> Self {
        let name = lease.metadata.name.clone().unwrap_or_default();
        let spec = lease.spec.as_ref();
        let epoch = spec.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref());
        let range = lease.metadata.annotations.as_ref();
        let range = range.and_then(|annotations| annotations.get(BUCKETS));
        let first = range.and_then(|range| range.split('-').next());
        Self {
            stamp: format!("{name}/{epoch}/{}", holder.unwrap_or_default()),
            bucket: first.unwrap_or("0").to_owned(),
            lease: name,
        }
    }

    /// The refusal tells what the fence compared with.
    fn compare(&self, message: &str) -> Proof {
        let known = message.split(PRESENT_HOLDER).nth(1).map(str::trim);
        match known {
            Some(known) if known != self.stamp => Proof::Behind {
                known: known.to_owned(),
                is: self.stamp.clone(),
            },
            _ => Proof::Held,
        }
    }
}

/// A child of nobody's, right but for its stamp.
fn probe_service(stamp: Option<&Stamp>, bucket: &str) -> Result<Service, String> {
    let mut annotations = json!({names::GENERATION_ANNOTATION: "1"});
    if let Some(stamp) = stamp {
        annotations[names::STAMP_ANNOTATION] = json!(stamp.to_string());
    }
    typed(json!({
        "metadata": {
            "name": "databasecluster-fence-probe",
            "labels": {names::BUCKET_LABEL: bucket},
            "annotations": annotations,
            "ownerReferences": [{
                "apiVersion": names::API_VERSION, "kind": names::KIND, "name": "nobody",
                "uid": "00000000-0000-0000-0000-000000000000", "controller": true,
            }],
        },
        "spec": {"clusterIP": "None", "ports": [{"port": 1}]},
    }))
}

/// A shard Lease that can not be: there are at most 256.
fn probe_lease() -> Result<Lease, String> {
    typed(json!({
        "metadata": {
            "name": shard_lease_name(ShardId(999)),
            "labels": {NAME_LABEL.0: NAME_LABEL.1},
        },
        "spec": {"holderIdentity": ""},
    }))
}

fn typed<K: DeserializeOwned>(object: Value) -> Result<K, String> {
    serde_json::from_value(object).map_err(|error| error.to_string())
}

/// Keeps the proof fresh, and tells of it.
pub struct Keeper {
    prover: Prover,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    required: bool,
    last: Option<Proof>,
}

impl Keeper {
    /// Nothing is proven yet. `required`: readiness depends on it.
    #[must_use]
    pub fn new(prover: Prover, health: Arc<Health>, metrics: Arc<Metrics>, required: bool) -> Self {
        Self {
            prover,
            health,
            metrics,
            required,
            last: None,
        }
    }

    /// Proves once; where the fence is required, again and again until the replica may begin to act.
    pub async fn before_start(&mut self) {
        loop {
            let proof = self.look().await;
            if !self.required || proof.may_start() {
                return;
            }
            tokio::time::sleep(AGAIN_SOON).await;
        }
    }

    /// Proves again from time to time, until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let pause = match &self.last {
                Some(Proof::Held) => AGAIN_WHEN_HELD,
                Some(Proof::Open(_) | Proof::Old(_)) => AGAIN_WHEN_OPEN,
                Some(Proof::NoLeaseYet | Proof::Behind { .. } | Proof::Unknown(_)) | None => {
                    AGAIN_SOON
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                _ = self.look() => {}
            }
        }
    }

    async fn look(&mut self) -> Proof {
        let mut proof = self.prover.prove().await;
        if matches!(proof, Proof::Behind { .. }) {
            // The cache is some milliseconds late after each change of hands.
            tokio::time::sleep(AGAIN_SOON).await;
            proof = self.prover.prove().await;
        }
        self.tell(&proof);
        self.last = Some(proof.clone());
        proof
    }

    fn tell(&self, proof: &Proof) {
        // What could not be asked is as it was.
        if !matches!(proof, Proof::Unknown(_)) {
            let held = i64::from(*proof == Proof::Held);
            self.metrics.fence_in_force.set(held);
        }
        if self.last.as_ref() != Some(proof) {
            match (proof, self.required) {
                (Proof::Held, _) => tracing::info!("fence: {proof}"),
                (Proof::NoLeaseYet, _) => tracing::debug!("fence: {proof}"),
                (_, true) => tracing::error!("--require-fence: {proof}"),
                (_, false) => tracing::warn!("fence: {proof}; working without it"),
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

/// Reads the Lease of a shard afresh after the fence refused a write there, so that a replica that
/// lost its shard without noticing stops at once.
pub struct SecondLook {
    store: LeaseStore,
    agent: AgentHandle,
    fleet: Arc<FleetState>,
    /// When each shard was last looked at. Locked for one look-up, never over an await.
    looked_ms: Mutex<BTreeMap<ShardId, u64>>,
}

impl SecondLook {
    /// Looks with `store`, and tells `agent`.
    #[must_use]
    pub fn new(store: LeaseStore, agent: AgentHandle, fleet: Arc<FleetState>) -> Self {
        Self {
            store,
            agent,
            fleet,
            looked_ms: Mutex::default(),
        }
    }

    /// Looks, unless somebody just did.
    pub async fn look(&self, shard: ShardId) {
        if !self.is_due(shard) {
            return;
        }
        let name = shard_lease_name(shard);
        let is_it = |lease: &&Arc<Lease>| lease.metadata.name.as_ref() == Some(&name);
        let known = self.fleet.leases().iter().find(is_it).cloned();
        match self.store.read(&name).await {
            Ok(Some(Seen::Shard(lease))) => self.agent.send(Event::ShardSeen(lease)).await,
            Ok(None) => {
                if let Some(Seen::Shard(gone)) = known.as_deref().and_then(decode) {
                    let uid = gone.version.uid;
                    self.agent.send(Event::ShardGone { shard, uid }).await;
                }
            }
            Ok(Some(Seen::Member(_))) | Err(()) => {}
        }
    }

    fn is_due(&self, shard: ShardId) -> bool {
        let now_ms = boottime_ms();
        // A panic elsewhere leaves nothing half-written here.
        let mut looked_ms = self
            .looked_ms
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let last_ms = looked_ms.get(&shard).copied();
        let due = last_ms.is_none_or(|last_ms| now_ms.saturating_sub(last_ms) >= LOOKS_APART_MS);
        if due {
            looked_ms.insert(shard, now_ms);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn present() -> Present {
        let lease = json!({
            "metadata": {
                "name": "databasecluster-shard-003", "annotations": {"database.io/buckets": "24-31"},
            },
            "spec": {"holderIdentity": "a", "leaseTransitions": 7},
        });
        Present::of(&typed(lease).unwrap())
    }

    #[test]
    fn a_refusal_tells_whether_the_fence_knows_the_lease_as_it_is() {
        let present = present();
        assert_eq!(present.bucket, "24");
        let refusal = |known: &str| {
            format!("policy x denied request: the stamp y/1/(nobody) {PRESENT_HOLDER}{known}")
        };
        let same = refusal("databasecluster-shard-003/7/a");
        assert_eq!(present.compare(&same), Proof::Held);
        for late in [
            "databasecluster-shard-003/6/b",
            "databasecluster-shard-003/7/",
        ] {
            let proof = present.compare(&refusal(late));
            let Proof::Behind { known, is } = &proof else {
                unreachable!("{proof}");
            };
            assert_eq!(
                (known.as_str(), is.as_str()),
                (late, present.stamp.as_str())
            );
            assert!(!proof.may_start());
        }
        assert_eq!(present.compare("refused for another reason"), Proof::Held);
    }

    /// An API server of a minor version that lets everything pass.
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
            let prover = Prover::new(without_policies(minor), "default");
            let proof = prover.prove().await;
            let said = proof.to_string();
            assert!(!proof.may_start());
            let named = format!("Kubernetes v1.{minor}.4; the fence needs 1.30");
            assert_eq!(said.contains(&named), old, "{said}");
        }
    }
}
