//! Events on this replica's own Pod about shards that it took over: one for each dead replica, however many shards
//! that replica held.
//!
//! Best effort, as all Events. What is reported is read from the history of the Leases, which is bounded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType};
use parking_lot::Mutex;

use super::events::Events;
use sharded_controller::clock::Clock;
use sharded_controller::fleet::history::{Move, MoveReason};
use sharded_controller::fleet::state::FleetState;
use sharded_controller::permit::ShardPermit;

/// Shards of a dead replica are taken one after the other: they are reported together once none has followed for this
/// time, or once the first has waited for the longer one.
const QUIET_MS: u64 = 2_000;
const WAIT_MAX_MS: u64 = 10_000;
/// Most Events of one report. A fleet of more dead replicas has its own alerts.
const REPORTS_MAX: usize = 4;
/// Most shards that an Event names.
const SHARDS_NAMED_MAX: usize = 32;
/// How long an Event may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The Pod of this replica.
#[derive(Clone, Debug)]
pub(crate) struct OwnPod {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name, which is the identity of the replica.
    pub(crate) name: String,
    /// Its uid.
    pub(crate) uid: String,
}

impl OwnPod {
    fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(self.namespace.clone()),
            name: Some(self.name.clone()),
            uid: Some(self.uid.clone()),
            ..ObjectReference::default()
        }
    }
}

/// What is to be reported now: a note for each former holder, and until when moves are reported then.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    notes: Vec<String>,
    reported_ms: u64,
}

/// Which takeovers by `identity` after `reported_ms` are to be reported now.
fn due<'a>(
    moves: impl Iterator<Item = &'a Move>,
    identity: &str,
    reported_ms: u64,
    now_ms: u64,
) -> Option<Due> {
    let is_new = |one: &&Move| {
        one.why == MoveReason::Takeover && one.to == identity && one.seen_ms > reported_ms
    };
    let mut groups: BTreeMap<&str, Vec<u16>> = BTreeMap::new();
    let (mut first_ms, mut last_ms) = (u64::MAX, 0);
    for one in moves.filter(is_new) {
        groups.entry(&one.from).or_default().push(one.shard);
        first_ms = first_ms.min(one.seen_ms);
        last_ms = last_ms.max(one.seen_ms);
    }
    let is_quiet = now_ms.saturating_sub(last_ms) >= QUIET_MS
        || now_ms.saturating_sub(first_ms) >= WAIT_MAX_MS;
    if groups.is_empty() || !is_quiet {
        return None;
    }
    let notes = groups.into_iter().take(REPORTS_MAX).map(note).collect();
    Some(Due {
        notes,
        reported_ms: last_ms,
    })
}

fn note((from, mut shards): (&str, Vec<u16>)) -> String {
    shards.sort_unstable();
    shards.dedup();
    let count = shards.len();
    let named = shards.iter().take(SHARDS_NAMED_MAX);
    let mut list = named
        .map(|shard| format!("{shard:03}"))
        .collect::<Vec<_>>()
        .join(", ");
    if count > SHARDS_NAMED_MAX {
        list.push_str(", …");
    }
    let noun = if count == 1 { "shard" } else { "shards" };
    format!(
        "took over {count} {noun} of replica {from}, which no longer renews its Lease: {list}. See why it ended"
    )
}

/// Reports takeovers.
pub(super) struct Takeovers {
    fleet: Arc<FleetState>,
    clock: Clock,
    events: Events,
    pod: OwnPod,
    reported_ms: Mutex<u64>,
    /// Permits that may hold. Bounded by the shards; locked for a search or an insertion.
    permits: Mutex<Vec<ShardPermit>>,
    is_sending: Arc<AtomicBool>,
}

impl Takeovers {
    pub(super) fn new(fleet: Arc<FleetState>, clock: Clock, events: Events, pod: OwnPod) -> Self {
        Self {
            fleet,
            clock,
            events,
            pod,
            reported_ms: Mutex::default(),
            permits: Mutex::default(),
            is_sending: Arc::default(),
        }
    }

    /// Learns of a permit, under which Events can be written.
    pub(super) fn admit(&self, permit: &ShardPermit) {
        let mut permits = self.permits.lock();
        permits.retain(|permit| permit.check().is_ok());
        permits.push(permit.clone());
    }

    /// Sends what is due, in a task of its own: this does not wait for the API server.
    pub(super) fn report(&self) {
        if self.is_sending.load(Ordering::Acquire) {
            return;
        }
        let (now_ms, after_ms) = (self.clock.now_ms(), *self.reported_ms.lock());
        let due = self
            .fleet
            .recall(|history| due(history.moves(), &self.pod.name, after_ms, now_ms));
        let mut permits = self.permits.lock().clone().into_iter();
        let permit = permits.find(|permit| permit.check().is_ok());
        let (Some(due), Some(permit)) = (due, permit) else {
            return;
        };
        *self.reported_ms.lock() = due.reported_ms;
        self.is_sending.store(true, Ordering::Release);
        let (events, regarding) = (self.events.clone(), self.pod.reference());
        let is_sending = Arc::clone(&self.is_sending);
        tokio::spawn(async move {
            for note in due.notes {
                let event = Event {
                    type_: EventType::Warning,
                    reason: "ShardsTakenOver".to_owned(),
                    note: Some(note),
                    action: "TakingOver".to_owned(),
                    secondary: None,
                };
                let sent = events.send(&permit, event, &regarding);
                if tokio::time::timeout(PATIENCE, sent).await.is_err() {
                    tracing::debug!("an event about a takeover was not answered");
                }
            }
            is_sending.store(false, Ordering::Release);
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn taken(shard: u16, from: &str, to: &str, seen_ms: u64, why: MoveReason) -> Move {
        Move {
            shard,
            from: from.to_owned(),
            to: to.to_owned(),
            epoch: 2,
            seen_ms,
            seen_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            why,
        }
    }

    #[test]
    fn takeovers_of_one_replica_are_one_report_once_none_follows() {
        let takeover = |shard, from, at| taken(shard, from, "a", at, MoveReason::Takeover);
        let moves = [
            takeover(7, "b", 1_500),
            takeover(3, "b", 1_000),
            takeover(9, "c", 1_500),
            taken(4, "b", "d", 1_000, MoveReason::Takeover),
            taken(5, "b", "a", 1_000, MoveReason::Planned),
        ];
        let ask = |after, now| due(moves.iter(), "a", after, now);
        assert_eq!(ask(0, 3_400), None, "more may follow");
        let found = ask(0, 3_500).unwrap();
        assert_eq!(
            found.notes,
            [
                "took over 2 shards of replica b, which no longer renews its Lease: 003, 007. See why it ended",
                "took over 1 shard of replica c, which no longer renews its Lease: 009. See why it ended",
            ]
        );
        assert_eq!(ask(found.reported_ms, 9_000), None, "reported once");
        assert_eq!(due(moves.iter(), "e", 0, 9_000), None);
    }

    #[test]
    fn reports_are_bounded_and_do_not_wait_without_end() {
        let moves: Vec<Move> = (0..64)
            .map(|n| {
                let from = format!("replica-{}", n % 8);
                taken(
                    n,
                    &from,
                    "a",
                    1_000 + u64::from(n) * 1_000,
                    MoveReason::Takeover,
                )
            })
            .collect();
        let found = due(moves.iter(), "a", 0, 64_500).unwrap();
        assert_eq!(found.notes.len(), REPORTS_MAX);
        let many: Vec<Move> = (0..256)
            .map(|n| taken(n, "b", "a", 1, MoveReason::Takeover))
            .collect();
        let found = due(many.iter(), "a", 0, 5_000).unwrap();
        assert!(found.notes[0].starts_with("took over 256 shards"));
        assert!(found.notes[0].len() < 1_000, "{}", found.notes[0].len());
    }
}
