//! What this replica saw of the Leases over time: how long ago each was renewed, and which shards moved.

use std::collections::{BTreeMap, VecDeque};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;

use super::text::safe;
use crate::core::lease::{identity_of, shard_of};

/// Moves that are remembered; an older one gives way.
pub const MOVES_MAX: usize = 64;
/// Leases whose renewals are followed; more than a view shows are not needed.
const LEASES_MAX: usize = 1024;
const NAME_CHARS_MAX: usize = 100;

/// What was seen of one Lease that is renewed on a timer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ObservedRenewal {
    renew_time: Option<Timestamp>,
    /// Our own clock when it last changed; before that, when we first saw it.
    changed_ms: u64,
    /// Whether we saw it change, and do not merely know that it is there.
    renewed: bool,
    holder: String,
    incarnation: String,
    draining: bool,
}

/// Who held a shard when we last looked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Hold {
    holder: String,
    incarnation: String,
    epoch: i32,
    successor: String,
}

/// A shard changed hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which shard.
    pub shard: u16,
    /// Who held it, in safe text; empty: nobody.
    pub from: String,
    /// Who holds it since, in safe text; empty: nobody.
    pub to: String,
    /// Its epoch since.
    pub epoch: i32,
    /// When we saw it, by our own boot-time clock.
    pub seen_ms: u64,
    /// When we saw it, by our wall clock.
    pub seen_at: Timestamp,
    /// Why, as far as the Leases tell.
    pub why: MoveReason,
}

/// Why a shard moved, as far as the Leases tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveReason {
    /// Its Lease is new.
    Created,
    /// Nobody held it.
    Vacant,
    /// Its holder gave it up, and nobody took it.
    GivenUp,
    /// Its holder's incarnation had died.
    Takeover,
    /// Its holder is leaving.
    Leaving,
    /// The fleet leader planned it.
    Planned,
    /// The same replica took it again in its next life.
    Restarted,
    /// The same life raised the epoch above its entry in the shard table.
    Raised,
    /// A live holder lost it, and nothing that we saw says why.
    Unknown,
}

impl MoveReason {
    /// The word for it in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Vacant => "vacant",
            Self::GivenUp => "given_up",
            Self::Takeover => "takeover",
            Self::Leaving => "leaving",
            Self::Planned => "planned",
            Self::Restarted => "restarted",
            Self::Raised => "raised",
            Self::Unknown => "unknown",
        }
    }
}

/// How long ago a Lease was renewed, as seen by our own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// Since we saw it change, or came to know it.
    pub age_ms: u64,
    /// Whether we saw it change: otherwise it may be older.
    pub renewed: bool,
}

/// Follows the Leases as they come in. Bounded: 256 shards, 1,024 other Leases, 64 moves.
#[derive(Clone, Debug, Default)]
pub struct History {
    since_ms: Option<u64>,
    listed: bool,
    renewals: BTreeMap<String, ObservedRenewal>,
    holds: BTreeMap<u16, Hold>,
    moves: VecDeque<Move>,
}

impl History {
    /// Takes in a Lease as it is now. Seeing the same one again changes nothing.
    pub fn note(&mut self, lease: &Lease, now_ms: u64, now: Timestamp) {
        self.since_ms.get_or_insert(now_ms);
        let Some(name) = lease.metadata.name.as_deref() else {
            return;
        };
        match shard_of(name) {
            Some(shard) => self.note_shard(shard.0, lease, now_ms, now),
            None => self.note_renewal(name, lease, now_ms),
        }
    }

    /// Says that every Lease there is was noted: what is new from now on was not there before.
    pub fn all_noted(&mut self, exists: impl Fn(&str) -> bool) {
        self.listed = true;
        self.renewals.retain(|name, _| exists(name));
    }

    /// Forgets a Lease that was deleted. Who held a shard stays known: its Lease will be back.
    pub fn forget(&mut self, name: &str) {
        self.renewals.remove(name);
    }

    /// Since when we watch, by our own clock.
    #[must_use]
    pub fn since_ms(&self) -> Option<u64> {
        self.since_ms
    }

    /// How long ago a member's or the leader's Lease was renewed.
    #[must_use]
    pub fn age(&self, lease_name: &str, now_ms: u64) -> Option<Age> {
        let renewal = self.renewals.get(lease_name)?;
        Some(Age {
            age_ms: now_ms.saturating_sub(renewal.changed_ms),
            renewed: renewal.renewed,
        })
    }

    /// The moves that we saw, the latest first.
    pub fn moves(&self) -> impl Iterator<Item = &Move> {
        self.moves.iter().rev()
    }

    fn note_renewal(&mut self, name: &str, lease: &Lease, now_ms: u64) {
        let spec = lease.spec.as_ref();
        let renew_time = spec.and_then(|spec| spec.renew_time.as_ref()).map(|t| t.0);
        let holder = spec.and_then(|spec| spec.holder_identity.clone());
        let fresh = ObservedRenewal {
            renew_time,
            changed_ms: now_ms,
            renewed: false,
            holder: holder.unwrap_or_default(),
            incarnation: annotation(lease, "incarnation").to_owned(),
            draining: annotation(lease, "draining") == "true",
        };
        let renewed = match self.renewals.get(name) {
            Some(known) if known.renew_time == fresh.renew_time => return,
            Some(_) => true,
            None if self.renewals.len() == LEASES_MAX => return,
            // Born before our eyes: its age is known.
            None => self.listed,
        };
        let renewal = ObservedRenewal { renewed, ..fresh };
        self.renewals.insert(name.to_owned(), renewal);
    }

    fn note_shard(&mut self, shard: u16, lease: &Lease, now_ms: u64, now: Timestamp) {
        let spec = lease.spec.as_ref();
        let hold = Hold {
            holder: spec
                .and_then(|spec| spec.holder_identity.clone())
                .unwrap_or_default(),
            incarnation: annotation(lease, "incarnation").to_owned(),
            epoch: spec.and_then(|spec| spec.lease_transitions).unwrap_or(0),
            successor: annotation(lease, "successor").to_owned(),
        };
        let before = self.holds.insert(shard, hold.clone());
        let why = match &before {
            None if !self.listed => return,
            None => MoveReason::Created,
            Some(before) if before.epoch == hold.epoch && before.holder == hold.holder => return,
            Some(before) => self.why(before, &hold),
        };
        if self.moves.len() == MOVES_MAX {
            self.moves.pop_front();
        }
        let from = before.map(|before| before.holder).unwrap_or_default();
        self.moves.push_back(Move {
            shard,
            from: safe(&from, NAME_CHARS_MAX),
            to: safe(&hold.holder, NAME_CHARS_MAX),
            epoch: hold.epoch,
            seen_ms: now_ms,
            seen_at: now,
            why,
        });
    }

    fn why(&self, before: &Hold, after: &Hold) -> MoveReason {
        if before.holder.is_empty() {
            return MoveReason::Vacant;
        }
        if before.holder == after.holder {
            return match before.incarnation == after.incarnation {
                true => MoveReason::Raised,
                false => MoveReason::Restarted,
            };
        }
        let member = self
            .renewals
            .iter()
            .find(|(name, _)| identity_of(name) == Some(before.holder.as_str()))
            .map(|(_, renewal)| renewal);
        let alive =
            member.filter(|m| m.holder == before.holder && m.incarnation == before.incarnation);
        match alive {
            None => MoveReason::Takeover,
            Some(member) if member.draining && after.holder.is_empty() => MoveReason::GivenUp,
            Some(member) if member.draining => MoveReason::Leaving,
            Some(_) if after.holder.is_empty() => MoveReason::GivenUp,
            Some(_) if before.successor == after.holder => MoveReason::Planned,
            Some(_) => MoveReason::Unknown,
        }
    }
}

fn annotation<'a>(lease: &'a Lease, name: &str) -> &'a str {
    let annotations = lease.metadata.annotations.as_ref();
    let value = annotations.and_then(|all| all.get(&format!("database.io/{name}")));
    value.map_or("", String::as_str)
}

#[cfg(test)]
#[path = "fleet_history_tests.rs"]
mod tests;
