//! The history of the Leases as observed by this replica: how long ago each was renewed, and which
//! shards moved.

use std::collections::{BTreeMap, VecDeque};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;

use super::leases::{LeaseFields, Subject};
use crate::names::Names;
use crate::text::safe;
use shard_ownership::liveness::{Holder, is_live_holder};

/// Maximum number of moves that are remembered; older ones are dropped.
pub(crate) const MOVES_MAX: usize = 64;
/// Maximum number of Leases whose renewals are tracked; a view does not show more.
const LEASES_MAX: usize = 1024;
const NAME_CHARS_MAX: usize = 100;

/// Observed state of one periodically renewed Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ObservedRenewal {
    renew_time: Option<Timestamp>,
    /// Our own clock when it last changed; before that, when we first observed it.
    changed_ms: u64,
    /// Whether we observed a change, and not only its existence.
    renewed: bool,
    holder: String,
    incarnation: String,
    draining: bool,
}

impl ObservedRenewal {
    fn as_holder(&self) -> Holder<'_> {
        Holder {
            identity: &self.holder,
            incarnation: &self.incarnation,
        }
    }
}

/// The holder of a shard when it was last observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Hold {
    holder: String,
    incarnation: String,
    epoch: u32,
    successor: String,
}

impl Hold {
    fn as_holder(&self) -> Holder<'_> {
        Holder {
            identity: &self.holder,
            incarnation: &self.incarnation,
        }
    }
}

/// A shard changed hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Number of the shard.
    pub shard: u16,
    /// The former holder, in safe text; empty: none.
    pub from: String,
    /// The new holder, in safe text; empty: none.
    pub to: String,
    /// The new epoch.
    pub epoch: u32,
    /// When we observed it, by our own boot-time clock.
    pub seen_ms: u64,
    /// When we observed it, by our wall clock.
    pub seen_at: Timestamp,
    /// Why, as far as the Leases show.
    pub why: MoveReason,
}

/// Why a shard moved, as far as the Leases show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveReason {
    /// Its Lease is new.
    Created,
    /// It had no holder.
    Vacant,
    /// Its holder released it, and no replica took it.
    GivenUp,
    /// Its holder's incarnation had died.
    Takeover,
    /// Its holder is leaving.
    Leaving,
    /// The fleet leader planned it.
    Planned,
    /// The same replica took it again in its next incarnation.
    Restarted,
    /// The same incarnation raised the epoch above its entry in the shard table.
    Raised,
    /// A live holder lost it, for no observed reason.
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

/// Age of a Lease's last renewal, by our own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// Time since we observed a change, or first observed the Lease, in milliseconds.
    pub age_ms: u64,
    /// Whether we observed a change: otherwise the renewal may be older.
    pub renewed: bool,
}

/// Follows the Leases as they come in. Bounded: 256 shards, 1,024 other Leases, 64 moves.
#[derive(Clone, Debug)]
pub struct History {
    names: Names,
    since_ms: Option<u64>,
    listed: bool,
    renewals: BTreeMap<String, ObservedRenewal>,
    holds: BTreeMap<u16, Hold>,
    moves: VecDeque<Move>,
}

impl History {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new(names: Names) -> Self {
        Self {
            names,
            since_ms: None,
            listed: false,
            renewals: BTreeMap::new(),
            holds: BTreeMap::new(),
            moves: VecDeque::new(),
        }
    }

    /// Takes in a Lease as it is now. Seeing the same one again changes nothing.
    pub fn note(&mut self, lease: &Lease, now_ms: u64, now: Timestamp) {
        self.since_ms.get_or_insert(now_ms);
        let names = self.names;
        let fields = LeaseFields::new(&names, lease);
        match fields.subject() {
            Some(Subject::Shard(shard)) => self.note_shard(shard.0, fields, now_ms, now),
            Some(Subject::Member(_) | Subject::Leader) => self.note_renewal(fields, now_ms),
            None => {}
        }
    }

    /// Records that every existing Lease was noted: a Lease that appears later is new.
    pub fn all_noted(&mut self, exists: impl Fn(&str) -> bool) {
        self.listed = true;
        self.renewals.retain(|name, _| exists(name));
    }

    /// Forgets a Lease that was deleted. The holder of a shard stays known: its Lease will be
    /// re-created.
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

    /// The observed moves, the latest first.
    pub fn moves(&self) -> impl Iterator<Item = &Move> {
        self.moves.iter().rev()
    }

    fn note_renewal(&mut self, fields: LeaseFields<'_>, now_ms: u64) {
        let name = fields.name();
        let fresh = ObservedRenewal {
            renew_time: fields.renew_time(),
            changed_ms: now_ms,
            renewed: false,
            holder: fields.holder().identity.to_owned(),
            incarnation: fields.holder().incarnation.to_owned(),
            draining: fields.is_draining(),
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

    fn note_shard(&mut self, shard: u16, fields: LeaseFields<'_>, now_ms: u64, now: Timestamp) {
        let hold = Hold {
            holder: fields.holder().identity.to_owned(),
            incarnation: fields.holder().incarnation.to_owned(),
            epoch: fields.epoch().unwrap_or(0),
            successor: fields.successor().unwrap_or_default().to_owned(),
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
            .find(|(name, _)| self.names.identity_of(name) == Some(before.holder.as_str()))
            .map(|(_, renewal)| renewal);
        let alive = member.filter(|m| is_live_holder(before.as_holder(), m.as_holder()));
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

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
