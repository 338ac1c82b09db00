//! State of the fleet for the other parts of the process: the Leases as last observed, and the
//! standing of this replica.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;

use super::leases::LeaseCodec;
use super::shard_table::ShardTable;
use crate::clock::Clock;
use crate::fleet::history::History;
use crate::names::Names;
use shard_ownership::hash::ShardCount;
use shard_ownership::lease::{MemberLease, ShardLease};
use shard_ownership::liveness::has_expired;
use shard_ownership::planner::{Fleet, Overview};

/// State of the fleet for the other parts of the process: the Leases as last observed, and the
/// standing of this replica.
///
/// The lock is held for a lookup or an insertion only, never over an await.
#[derive(Debug)]
pub struct FleetState {
    names: Names,
    codec: LeaseCodec,
    clock: Clock,
    inner: Mutex<Inner>,
}

#[derive(Clone, Debug)]
struct Inner {
    leases: BTreeMap<String, Arc<Lease>>,
    table: Option<Arc<ShardTable>>,
    history: History,
    standing: Standing,
}

/// The standing of this replica in the fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The Leases were listed and our own is valid.
    pub settled: bool,
    /// Members with another number of shards are active: we hold nothing until they have left.
    pub standby: bool,
    /// Replicas that watch other namespaces are active.
    pub other_namespaces: bool,
    /// Boot-time milliseconds of the last renewal that succeeded.
    pub last_renewal_ms: Option<u64>,
    /// Why the Leases cannot be watched, if they cannot.
    pub watch_error: Option<String>,
    /// Why the shard table cannot be watched, if it cannot.
    pub table_error: Option<String>,
    /// That the kind `ShardTable` is missing, if it is.
    pub table_kind_missing: Option<String>,
    /// The shard table is known, with our number of shards.
    pub has_table: bool,
    /// The API server refuses our writes of the shard table.
    pub table_refused: bool,
    /// Increases with every step of the agent, several times a second whatever the state of the API
    /// server.
    pub steps: u64,
}

impl FleetState {
    /// Nothing is known yet. `served`: the namespaces that this replica serves, as text.
    #[must_use]
    pub fn new(names: Names, served: &str, clock: Clock) -> Self {
        Self {
            names,
            codec: LeaseCodec::new(names, served.to_owned()),
            clock,
            inner: Mutex::new(Inner {
                leases: BTreeMap::new(),
                table: None,
                history: History::new(names),
                standing: Standing::default(),
            }),
        }
    }

    fn with<T>(&self, read: impl FnOnce(&mut Inner) -> T) -> T {
        read(&mut self.inner.lock())
    }

    /// The Leases of the fleet as last observed.
    #[must_use]
    pub fn leases(&self) -> Vec<Arc<Lease>> {
        self.with(|inner| inner.leases.values().cloned().collect())
    }

    /// The shard table as last observed.
    #[must_use]
    pub fn table(&self) -> Option<Arc<ShardTable>> {
        self.with(|inner| inner.table.clone())
    }

    /// Takes in the shard table, or its absence.
    pub(crate) fn set_table(&self, table: Option<ShardTable>) {
        let table = table.map(Arc::new);
        self.with(|inner| inner.table = table);
    }

    /// Takes in a Lease: one from the watch, or the fleet leader's, which carries no labels.
    pub fn remember(&self, lease: Lease) {
        let (now_ms, now) = (self.clock.now_ms(), self.clock.now());
        self.with(|inner| inner.take(lease, now_ms, now));
    }

    /// Takes in all existing Leases in one step: a reader never sees only some of them.
    pub fn listed(&self, leases: Vec<Lease>) {
        let (now_ms, now) = (self.clock.now_ms(), self.clock.now());
        self.with(|inner| {
            let leader = self.names.leader_lease();
            inner.leases.retain(|name, _| *name == leader);
            for lease in leases {
                inner.take(lease, now_ms, now);
            }
            inner
                .history
                .all_noted(|name| inner.leases.contains_key(name));
        });
    }

    /// Forgets a Lease that was deleted.
    pub fn forget(&self, name: &str) {
        self.with(|inner| {
            inner.leases.remove(name);
            inner.history.forget(name);
        });
    }

    /// What was seen of the Leases over time.
    pub fn recall<T>(&self, read: impl FnOnce(&History) -> T) -> T {
        self.with(|inner| read(&inner.history))
    }

    /// The standing of this replica.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.with(|inner| inner.standing.clone())
    }

    /// Updates the standing of this replica.
    pub fn stand(&self, change: impl FnOnce(&mut Standing)) {
        self.with(|inner| change(&mut inner.standing));
    }

    /// State of the fleet as we observe it, with any leader; `None` while it is not known: before
    /// the Leases were listed, while ours is not valid, because we may be cut off and see no live
    /// member, and while the active members have another number of shards.
    ///
    /// A member that we observed as silent for its whole lifetime counts as dead, even before its
    /// Lease was vacated.
    #[must_use]
    pub fn overview(&self, count: ShardCount) -> Option<Overview> {
        let now_ms = self.clock.now_ms();
        let standing = self.standing();
        if !standing.settled || standing.standby {
            return None;
        }
        let (mut members, shards) = self.decoded();
        self.recall(|history| {
            members.retain(|member| {
                let age = history.age(&self.names.member_lease(&member.identity), now_ms);
                age.is_none_or(|age| !has_expired(age.age_ms, member.lease_ms))
            });
        });
        Some(Fleet::new(count, &members, &shards).overview())
    }
}

impl FleetState {
    /// All member and shard Leases.
    pub(super) fn decoded(&self) -> (Vec<MemberLease>, Vec<ShardLease>) {
        let leases = self.leases();
        self.codec.decode_all(leases.iter().map(AsRef::as_ref))
    }
}

impl Inner {
    fn take(&mut self, lease: Lease, now_ms: u64, now: Timestamp) {
        let name = lease.metadata.name.clone().unwrap_or_default();
        self.history.note(&lease, now_ms, now);
        self.leases.insert(name, Arc::new(lease));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::clock::ManualClock;
    use crate::names::testing::NAMES;
    use serde_json::json;
    use shard_ownership::hash::ShardId;
    use std::time::Duration;

    fn count() -> ShardCount {
        ShardCount::new(4).unwrap()
    }

    fn lease(name: &str, holder: &str) -> Lease {
        serde_json::from_value(json!({
            "metadata": {"name": name, "uid": name, "resourceVersion": "1", "annotations": {
                NAMES.label("incarnation"): format!("{holder}-1"), NAMES.label("shards"): "4",
            }},
            "spec": {
                "holderIdentity": holder, "leaseDurationSeconds": 6, "leaseTransitions": 1,
                "renewTime": "2026-01-01T00:00:00.000000Z",
            },
        }))
        .unwrap()
    }

    fn member(name: &str) -> Lease {
        lease(&NAMES.member_lease(name), name)
    }

    fn shard(number: u16, holder: &str) -> Lease {
        lease(&NAMES.shard_lease(ShardId(number)), holder)
    }

    fn clock() -> ManualClock {
        ManualClock::new(0, Timestamp::UNIX_EPOCH)
    }

    fn unlisted(clock: &ManualClock) -> FleetState {
        FleetState::new(NAMES, "*", clock.clock())
    }

    /// Two replicas with two shards each; no fleet leader.
    fn state(clock: &ManualClock) -> FleetState {
        let state = unlisted(clock);
        let shards = [shard(0, "a"), shard(1, "b"), shard(2, "a"), shard(3, "b")];
        let all = [member("a"), member("b")].into_iter().chain(shards);
        state.listed(all.collect());
        state.stand(|own| own.settled = true);
        state
    }

    fn seen(state: &FleetState) -> Option<(usize, usize)> {
        let overview = state.overview(count())?;
        Some((overview.unowned, overview.imbalance))
    }

    #[test]
    fn unowned_shards_are_counted_without_a_fleet_leader() {
        let state = state(&clock());
        assert_eq!(seen(&state), Some((0, 0)));
        state.remember(shard(3, ""));
        assert_eq!(seen(&state), Some((1, 1)), "vacant");
        state.forget(&NAMES.shard_lease(ShardId(0)));
        assert_eq!(seen(&state), Some((2, 0)), "without a Lease");
        state.remember(shard(2, "c"));
        assert_eq!(seen(&state), Some((3, 1)), "its holder has no member Lease");
    }

    #[test]
    fn member_silent_for_its_lifetime_owns_nothing() {
        let clock = clock();
        let state = state(&clock);
        clock.advance(Duration::from_secs(60));
        let mut renewed = member("b");
        renewed.spec.as_mut().unwrap().renew_time = None;
        state.remember(renewed);
        assert_eq!(seen(&state), Some((2, 0)), "a has not renewed since");
        clock.advance(Duration::from_millis(6_500));
        assert_eq!(seen(&state), Some((4, 0)), "nor was b");
    }

    #[test]
    fn incomplete_state_reports_no_overview() {
        assert_eq!(seen(&unlisted(&clock())), None, "nothing is known");
        let state = state(&clock());
        state.stand(|own| own.settled = false);
        assert_eq!(seen(&state), None, "we may be cut off");
        state.stand(|own| (own.settled, own.standby) = (true, true));
        assert_eq!(seen(&state), None, "others count in another number");
    }
}
