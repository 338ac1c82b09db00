//! The fleet leader: elected by `kube-leader-election`, needed neither for safety nor for failover.
//!
//! Two leaders at once are harmless: a leader only plans moves and removes dead members, each of
//! its writes is a compare-and-swap, and a holder follows a plan only by handing over.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube_leader_election::{LeaseLock, LeaseLockParams, LeaseLockResult};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::leases::{CALL_TIMEOUT, LeaseStore};
use super::state::FleetState;
use crate::clock::Clock;
use crate::failpoints::{Failpoint, is_active};
use crate::metrics::Metrics;
use crate::names::Names;
use shard_ownership::dead_members::DeadMembers;
use shard_ownership::hash::ShardCount;
use shard_ownership::lease::MemberLease;
use shard_ownership::ownership::WriteResult;
use shard_ownership::planner::{Fleet, Stabilization, move_budget};

/// How often a leader checks whether a shard should move, while the fleet has not settled or its Leases
/// change. It reads memory only: a request is sent only for a plan.
const PLAN_EVERY: Duration = Duration::from_millis(200);

/// The parts of a candidate.
pub(crate) struct LeaderParts {
    /// Names of the operator.
    pub names: Names,
    /// Client for the election, and for tidying.
    pub client: kube::Client,
    /// Namespace of the Leases.
    pub namespace: String,
    /// Identity of this replica.
    pub identity: String,
    /// Lifetime of the leader's Lease.
    pub lease: Duration,
    /// Time between renewals.
    pub renew: Duration,
    /// Number of shards.
    pub shards: ShardCount,
    /// The clock of the replica.
    pub clock: Clock,
    /// The Leases, for planning.
    pub store: LeaseStore,
    /// State of the fleet.
    pub state: Arc<FleetState>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// Takes part in the election until `stop`.
pub(crate) struct Leader {
    /// Name of its Lease.
    name: String,
    lock: LeaseLock,
    api: Api<Lease>,
    parts: LeaderParts,
    dead: DeadMembers,
    stabilization: Stabilization,
}

impl Leader {
    /// A candidate.
    #[must_use]
    pub(crate) fn new(parts: LeaderParts) -> Self {
        let name = parts.names.leader_lease();
        let params = LeaseLockParams {
            lease_name: name.clone(),
            holder_id: parts.identity.clone(),
            lease_ttl: parts.lease,
        };
        Self {
            name,
            lock: LeaseLock::new(parts.client.clone(), &parts.namespace, params),
            api: Api::namespaced(parts.client.clone(), &parts.namespace),
            parts,
            dead: DeadMembers::default(),
            stabilization: Stabilization::default(),
        }
    }

    /// Runs until `stop`, then steps down.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        if is_active(Failpoint::Election) {
            return;
        }
        let mut renewals = interval(self.parts.renew);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut plans = interval(PLAN_EVERY);
        plans.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leading = false;
        // Nothing is left to plan until a Lease changes.
        let mut is_settled = false;
        loop {
            let renew = tokio::select! {
                () = stop.cancelled() => break,
                _ = renewals.tick() => true,
                () = self.parts.state.changed(), if leading && is_settled => {
                    is_settled = false;
                    continue;
                }
                _ = plans.tick(), if leading && !is_settled => false,
            };
            if !renew {
                is_settled = self.plan().await;
                continue;
            }
            let now_leading = self.try_lead().await;
            if now_leading != leading {
                tracing::info!(leader = now_leading, "fleet leadership changed");
                leading = now_leading;
                is_settled = false;
            }
            self.gauge(leading);
            if leading {
                self.remove_dead_members().await;
            }
        }
        self.gauge(false);
        if leading
            && !matches!(
                timeout(CALL_TIMEOUT, self.lock.step_down()).await,
                Ok(Ok(()))
            )
        {
            tracing::debug!("could not step down; the leader's Lease runs out by itself");
        }
    }

    fn gauge(&self, leading: bool) {
        let metrics = &self.parts.metrics;
        metrics
            .fleet
            .leader
            .with_label_values(&[&self.name])
            .set(i64::from(leading));
    }

    /// Plans the moves that are due; a plan that loses its compare-and-swap is computed again. Returns
    /// whether there were none, and none will be due before a Lease changes.
    async fn plan(&mut self) -> bool {
        let (members, shards) = self.parts.state.decoded();
        let fleet = Fleet::new(self.parts.shards, &members, &shards);
        if !self
            .stabilization
            .allows_moves(self.parts.clock.now_ms(), &fleet)
        {
            return false;
        }
        let moves = fleet.moves(move_budget(self.parts.shards));
        let writes = moves.iter().filter_map(|planned| {
            let shard = shards.iter().find(|shard| shard.shard == planned.shard)?;
            Some(self.parts.store.plan(shard, planned.successor.as_ref()))
        });
        for result in futures::future::join_all(writes).await {
            match result {
                WriteResult::Done(lease) => tracing::debug!(shard = %lease.shard, "planned a move"),
                other => tracing::debug!(?other, "a planned move was not stored"),
            }
        }
        if !moves.is_empty() {
            // Until the watch shows them, the same plan would be computed again, only to lose.
            tokio::time::sleep(PLAN_EVERY / 2).await;
        }
        moves.is_empty()
    }

    async fn try_lead(&self) -> bool {
        if is_active(Failpoint::Leader) {
            return true;
        }
        match timeout(2 * CALL_TIMEOUT, self.lock.try_acquire_or_renew()).await {
            Ok(Ok(result)) => {
                let leading = matches!(result, LeaseLockResult::Acquired(_));
                if let Some(lease) = result.lease() {
                    self.parts.state.remember(lease.clone());
                }
                leading
            }
            Ok(Err(kube_leader_election::Error::TraverseLease { key })) => {
                tracing::warn!(key, "the leader's Lease lacks a field; repairing it");
                self.repair_leases().await;
                false
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "could not take part in the election");
                false
            }
            Err(_) => false,
        }
    }

    /// The library fails for ever on a Lease that lacks a field: make it one that has just run out.
    async fn repair_leases(&self) {
        let repaired = async {
            let found = self.api.get(&self.name).await?;
            if let Some(patch) = repair(&found) {
                let params = PatchParams::default();
                let patch = Patch::Merge(patch);
                self.api.patch(&self.name, &params, &patch).await?;
            }
            Ok::<(), kube::Error>(())
        };
        if let Ok(Err(error)) = timeout(2 * CALL_TIMEOUT, repaired).await {
            tracing::debug!(%error, "could not repair the leader's Lease");
        }
    }

    /// Removes the Leases of dead members that no shard names any more.
    async fn remove_dead_members(&mut self) {
        let (members, shards) = self.parts.state.decoded();
        for member in self
            .dead
            .removable(self.parts.clock.now_ms(), members, &shards)
        {
            self.remove(&member).await;
        }
    }

    async fn remove(&self, member: &MemberLease) {
        let name = self.parts.names.member_lease(&member.identity);
        match timeout(CALL_TIMEOUT, self.api.delete(&name, &removal(member))).await {
            Ok(Ok(_)) => tracing::info!(
                member = member.identity,
                "removed the Lease of a dead member"
            ),
            Ok(Err(error)) => tracing::debug!(%error, "could not remove a dead member's Lease"),
            Err(error) => tracing::debug!(%error, "could not remove a dead member's Lease"),
        }
    }
}

/// What makes a Lease that lacks a field one that has just run out; `None` when it lacks none, because another
/// replica was here first and may lead by now.
fn repair(found: &Lease) -> Option<serde_json::Value> {
    let whole = found.spec.as_ref().is_some_and(|spec| {
        spec.holder_identity.is_some()
            && spec.renew_time.is_some()
            && spec.lease_duration_seconds.is_some()
            && spec.lease_transitions.is_some()
    });
    (!whole).then(|| {
        serde_json::json!({
            "metadata": {
                "uid": found.metadata.uid,
                "resourceVersion": found.metadata.resource_version,
            },
            "spec": {
                "holderIdentity": "",
                "renewTime": "1970-01-01T00:00:00.000000Z",
                "leaseDurationSeconds": 1,
                "leaseTransitions": 0,
            },
        })
    })
}

/// Deletes a member Lease only in the observed version, and not one that was created or renewed
/// since.
fn removal(member: &MemberLease) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(member.version.uid.clone()),
            resource_version: Some(member.version.resource_version.clone()),
        }),
        ..DeleteParams::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use shard_ownership::lease::Version;

    fn lease(spec: serde_json::Value) -> Lease {
        let metadata = json!({"name": "leader", "uid": "u-1", "resourceVersion": "7"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    #[test]
    fn damaged_leader_lease_is_repaired_only_in_the_observed_version() {
        let whole = json!({
            "holderIdentity": "a", "renewTime": "2026-01-01T00:00:00.000000Z",
            "leaseDurationSeconds": 6, "leaseTransitions": 3,
        });
        assert_eq!(repair(&lease(whole.clone())), None, "another was first");
        for field in whole.as_object().unwrap().keys() {
            let mut damaged = whole.clone();
            damaged.as_object_mut().unwrap().remove(field);
            let patch = repair(&lease(damaged)).unwrap();
            assert_eq!(
                patch["metadata"],
                json!({"uid": "u-1", "resourceVersion": "7"}),
                "{field}"
            );
            assert_eq!(patch["spec"]["holderIdentity"], "", "{field}");
        }
    }

    #[test]
    fn a_dead_members_lease_is_removed_only_as_it_was_seen() {
        let member = MemberLease {
            identity: "a".to_owned(),
            version: Version {
                uid: "u".to_owned(),
                resource_version: "1".to_owned(),
            },
            holder: "a".to_owned(),
            incarnation: "a-1".to_owned(),
            renewal: 1,
            lease_ms: 6000,
            pod_uid: String::new(),
            revision: "1".to_owned(),
            shards: 32,
            draining: false,
            barred: false,
            drain_requested: false,
            warm: [].into(),
            created_seconds: 0,
        };
        let seen = removal(&member).preconditions.unwrap();
        assert_eq!(seen.uid, Some(member.version.uid));
        assert_eq!(seen.resource_version, Some(member.version.resource_version));
    }
}
