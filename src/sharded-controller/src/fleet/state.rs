//! State of the fleet for the other parts of the process: the Leases as last observed, and the
//! standing of this replica.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::leases::{LeaseCodec, ObservedLease};
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
    /// Notified of every change of a Lease that is more than a renewal.
    changed: Notify,
}

/// A Lease, as it arrived and decoded.
#[derive(Clone, Debug)]
struct Known {
    lease: Arc<Lease>,
    decoded: Option<ObservedLease>,
}

#[derive(Clone, Debug)]
struct Inner {
    leases: BTreeMap<String, Known>,
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
            changed: Notify::new(),
        }
    }

    fn with<T>(&self, read: impl FnOnce(&mut Inner) -> T) -> T {
        read(&mut self.inner.lock())
    }

    /// The Leases of the fleet as last observed.
    #[must_use]
    pub fn leases(&self) -> Vec<Arc<Lease>> {
        let lease = |known: &Known| Arc::clone(&known.lease);
        self.with(|inner| inner.leases.values().map(lease).collect())
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
        let decoded = self.codec.decode(&lease);
        if self.with(|inner| inner.take(lease, decoded, now_ms, now)) {
            self.changed.notify_one();
        }
    }

    /// Completes when a Lease has changed since the last call, by more than a renewal; for one caller.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes in all existing Leases in one step: a reader never sees only some of them.
    pub fn listed(&self, leases: Vec<Lease>) {
        let (now_ms, now) = (self.clock.now_ms(), self.clock.now());
        self.with(|inner| {
            let leader = self.names.leader_lease();
            inner.leases.retain(|name, _| *name == leader);
            for lease in leases {
                let decoded = self.codec.decode(&lease);
                let _notified_below = inner.take(lease, decoded, now_ms, now);
            }
            inner
                .history
                .all_noted(|name| inner.leases.contains_key(name));
        });
        self.changed.notify_one();
    }

    /// Forgets a Lease that was deleted.
    pub fn forget(&self, name: &str) {
        self.with(|inner| {
            inner.leases.remove(name);
            inner.history.forget(name);
        });
        self.changed.notify_one();
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
        let (mut members, mut shards) = (Vec::new(), Vec::new());
        self.with(|inner| {
            for known in inner.leases.values() {
                match &known.decoded {
                    Some(ObservedLease::Member(member)) => members.push(member.clone()),
                    Some(ObservedLease::Shard(shard)) => shards.push(shard.clone()),
                    None => {}
                }
            }
        });
        (members, shards)
    }
}

/// Whether a Lease differs from what was known of it by a renewal at most.
fn is_renewal(known: Option<&ObservedLease>, now: Option<&ObservedLease>) -> bool {
    match (known, now) {
        (Some(ObservedLease::Member(known)), Some(ObservedLease::Member(now))) => {
            let renewed = MemberLease {
                version: now.version.clone(),
                renewal: now.renewal,
                ..known.clone()
            };
            known.version.uid == now.version.uid && renewed == *now
        }
        // The fleet leader's.
        (None, None) => true,
        (Some(_), _) | (None, Some(_)) => false,
    }
}

impl Inner {
    /// Returns whether the Lease shows more than a renewal.
    fn take(
        &mut self,
        lease: Lease,
        decoded: Option<ObservedLease>,
        now_ms: u64,
        now: Timestamp,
    ) -> bool {
        let name = lease.metadata.name.clone().unwrap_or_default();
        self.history.note(&lease, now_ms, now);
        let lease = Arc::new(lease);
        let known = self.leases.get(&name).map(|known| known.decoded.as_ref());
        let is_news = known.is_none_or(|known| !is_renewal(known, decoded.as_ref()));
        self.leases.insert(name, Known { lease, decoded });
        is_news
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

    #[tokio::test]
    async fn renewal_is_no_news_and_everything_else_is() {
        use futures::FutureExt as _;
        let state = state(&clock());
        let changed = || state.changed().now_or_never().is_some();
        assert!(changed(), "a list");
        let renewal = NAMES.label("renewal");
        let mut lease = member("a");
        let mut annotate = |name: &str, value: &str| {
            let annotations = lease.metadata.annotations.get_or_insert_default();
            annotations.insert(name.to_owned(), value.to_owned());
            lease.metadata.resource_version = Some(format!("{value}0"));
            state.remember(lease.clone());
            changed()
        };
        annotate(&renewal, "1");
        assert!(!annotate(&renewal, "2"), "a renewal");
        assert!(
            annotate(&NAMES.label("warm"), "003"),
            "it has listed a shard"
        );
        assert!(!annotate(&renewal, "4"));
        state.remember(shard(1, "b"));
        assert!(changed(), "another holder");
        state.forget(&NAMES.member_lease("a"));
        assert!(changed(), "a deletion");
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
