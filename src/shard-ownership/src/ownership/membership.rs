//! The other replicas: who is alive, who may receive shards, and which of their Leases are in doubt.

use std::collections::{BTreeMap, BTreeSet};

use super::outbox::Outbox;
use super::us::Us;
use super::{Action, ReadFailed, WriteId, WriteResult};
use crate::hash::{ShardCount, ShardId};
use crate::lease::{MemberChange, MemberLease, MemberWrite, Successor, Version};
use crate::members::{Members, eligible, newest_revision};
use crate::ring::{Ranking, place};

/// A member for which a list showed an older version than was known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Rewound {
    /// The version that was known before.
    known: Version,
    read: RewoundRead,
}

/// The read that shows whether a list was late, or the API server went back in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum RewoundRead {
    DueAt(u64),
    Sent,
}

/// What a fresh read shows of a replica whose death is to be confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Confirmation {
    /// Its member Lease names this incarnation, or none: vacated, or missing for a lifetime.
    Names(Option<String>),
    /// The read failed, or its Lease may return.
    Unknown,
}

impl Confirmation {
    /// Whether this incarnation is certainly dead.
    pub(super) fn rules_out(&self, incarnation: &str) -> bool {
        match self {
            Self::Names(named) => named.as_deref().unwrap_or_default() != incarnation,
            Self::Unknown => false,
        }
    }
}

/// The members as last observed, the placement that follows from them, and the requests that concern
/// them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Membership {
    members: Members,
    /// All members that may hold shards.
    ranking: Ranking,
    /// The members that may receive more shards.
    newest: BTreeSet<String>,
    /// When the list of eligible members last changed.
    changed_ms: u64,
    /// Writes in flight that declare a silent member dead.
    vacating: BTreeMap<WriteId, String>,
    /// Members whose Leases are being read, apart from reads of our own.
    checking: BTreeSet<String>,
    rewound: BTreeMap<String, Rewound>,
}

impl Membership {
    pub(super) fn new(count: ShardCount, now_ms: u64) -> Self {
        Self {
            members: Members::default(),
            ranking: Ranking::new(count, []),
            newest: BTreeSet::new(),
            changed_ms: now_ms,
            vacating: BTreeMap::new(),
            checking: BTreeSet::new(),
            rewound: BTreeMap::new(),
        }
    }

    /// The member Leases as last observed.
    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    /// Whether another replica, in this incarnation, may receive a shard from us.
    pub(super) fn may_receive(&self, us: Us<'_>, successor: &Successor) -> bool {
        successor.identity != us.identity() && self.members.can_succeed(successor, us.count())
    }

    pub(super) fn observe(&mut self, lease: MemberLease) {
        self.members.observe(lease);
    }

    pub(super) fn observe_deleted(&mut self, identity: &str, uid: &str) {
        self.members.observe_deleted(identity, uid);
    }

    /// Takes in a complete list.
    pub(super) fn listed(&mut self, members: Vec<MemberLease>) {
        let rewound = self.members.listed(members);
        self.rewound = rewound
            .into_iter()
            .map(|(identity, known)| {
                let read = RewoundRead::DueAt(0);
                (identity, Rewound { known, read })
            })
            .collect();
    }

    /// Adds time in which every member could have been heard.
    pub(super) fn credit(&mut self, elapsed_ms: u64) {
        self.members.credit(elapsed_ms);
    }

    /// Starts and stops counting for identities that shard Leases name, but without a member Lease.
    pub(super) fn count_missing<'a>(&mut self, named: impl Iterator<Item = &'a str>) {
        self.members.count_missing(named);
    }

    /// The members that may hold shards, and those of the newest revision among them, which alone
    /// receive any: in a rolling update a shard moves once and not twice. Older ones are included
    /// when no newer one is left.
    pub(super) fn refresh_ranking(&mut self, now_ms: u64, count: ShardCount) {
        let shards = count.get();
        let eligible = eligible(self.members.all(), shards);
        let newest = newest_revision(eligible.clone()).map(|member| member.identity.as_str());
        let known = self.newest.iter().map(String::as_str);
        let same = known.eq(newest.clone());
        let names = eligible.map(|member| member.identity.as_str());
        let known = self.ranking.members().iter().map(String::as_str);
        if !same || !known.eq(names.clone()) {
            let newest = newest.map(str::to_owned).collect();
            self.ranking = Ranking::new(count, names);
            self.newest = newest;
            self.changed_ms = now_ms;
        }
    }

    /// Whether nothing is to be found out about a member, and none is being declared dead.
    pub(super) fn is_at_rest(&self) -> bool {
        self.vacating.is_empty()
            && self.checking.is_empty()
            && self.rewound.is_empty()
            && !self.members.lacks_any()
    }

    /// For how long the list of eligible members has been unchanged.
    pub(super) fn unchanged_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.changed_ms)
    }

    /// The intended holder of each shard, given the current holders.
    pub(super) fn plan(
        &self,
        count: ShardCount,
        held: &BTreeMap<ShardId, &str>,
    ) -> BTreeMap<ShardId, String> {
        place(&self.ranking, held, |member| self.newest.contains(member))
            .into_iter()
            .zip(count.shards())
            .filter_map(|(holder, id)| holder.map(|holder| (id, holder.to_owned())))
            .collect()
    }

    /// How many replicas come before `me` in the order in which a shard is to be taken, without its
    /// intended holder; `None` when `me` is not to take it at all.
    pub(super) fn rank(&self, shard: ShardId, me: &str, target: Option<&str>) -> Option<usize> {
        self.ranking
            .order(shard)
            .filter(|member| self.newest.contains(*member) && Some(*member) != target)
            .position(|member| member == me)
    }

    /// Declares the members dead that have been silent for a lifetime.
    pub(super) fn vacate_silent(&mut self, me: &str, out: &mut Outbox) {
        let Self {
            members, vacating, ..
        } = self;
        for lease in members.expired(me) {
            if vacating
                .values()
                .any(|identity| *identity == lease.identity)
            {
                continue;
            }
            let id = out.next_id();
            vacating.insert(id, lease.identity.clone());
            let write = MemberWrite {
                identity: lease.identity.clone(),
                base: Some(lease.version.clone()),
                change: MemberChange::Vacate,
            };
            out.push(Action::WriteMember(id, write));
        }
    }

    /// Takes in the outcome of a write of ours that declares a member dead; returns false if it was
    /// none. If it did not succeed, the member gets `step_ms` more.
    pub(super) fn written(
        &mut self,
        id: WriteId,
        result: &WriteResult<Option<MemberLease>>,
        step_ms: u64,
    ) -> bool {
        let Some(identity) = self.vacating.remove(&id) else {
            return false;
        };
        match result {
            WriteResult::Done(_) => {}
            WriteResult::Conflict | WriteResult::Rejected | WriteResult::Unknown => {
                self.members.extend_deadline(&identity, step_ms);
            }
        }
        true
    }

    /// Reads the Lease of a replica whose death is to be confirmed, unless it is being read already.
    pub(super) fn confirm(&mut self, identity: &str, out: &mut Outbox) {
        if self.checking.insert(identity.to_owned()) {
            out.push(Action::ReadMember(identity.to_owned()));
        }
    }

    /// Reads the Leases for which a list showed an older version than was known.
    /// `is_being_read` says so of reads that others have sent.
    pub(super) fn read_rewound(
        &mut self,
        now_ms: u64,
        is_being_read: impl Fn(&str) -> bool,
        out: &mut Outbox,
    ) {
        for (identity, rewound) in &mut self.rewound {
            let is_due = match rewound.read {
                RewoundRead::DueAt(at_ms) => now_ms >= at_ms,
                RewoundRead::Sent => false,
            };
            // An answer to an earlier request would prove nothing.
            let asked = self.checking.contains(identity) || is_being_read(identity);
            if is_due && !asked {
                rewound.read = RewoundRead::Sent;
                self.checking.insert(identity.clone());
                out.push(Action::ReadMember(identity.clone()));
            }
        }
    }

    /// Takes in a fresh read of a member Lease.
    pub(super) fn read(
        &mut self,
        now_ms: u64,
        identity: &str,
        read: &Result<Option<MemberLease>, ReadFailed>,
        retry_ms: u64,
    ) {
        self.settle_rewound(now_ms, identity, read, retry_ms);
        if let Ok(Some(lease)) = read {
            self.members.observe(lease.clone());
        }
    }

    fn settle_rewound(
        &mut self,
        now_ms: u64,
        identity: &str,
        read: &Result<Option<MemberLease>, ReadFailed>,
        retry_ms: u64,
    ) {
        let Some(rewound) = self.rewound.get_mut(identity) else {
            return;
        };
        if rewound.read != RewoundRead::Sent {
            return;
        }
        match read {
            Ok(found) => {
                let older = |lease: &&MemberLease| lease.version.is_older_than(&rewound.known);
                if let Some(lease) = found.as_ref().filter(older) {
                    // The API server went back in time, and this version is valid from now on.
                    self.members.go_back(lease.clone());
                }
                self.rewound.remove(identity);
            }
            Err(ReadFailed) => rewound.read = RewoundRead::DueAt(now_ms + retry_ms),
        }
    }

    /// What a read shows of a replica whose death was to be confirmed; `None` if there was no such
    /// doubt. `lease_ms`: for how long a missing Lease may return.
    pub(super) fn confirmed(
        &mut self,
        identity: &str,
        read: &Result<Option<MemberLease>, ReadFailed>,
        lease_ms: u64,
    ) -> Option<Confirmation> {
        if !self.checking.remove(identity) {
            return None;
        }
        Some(match read {
            Ok(Some(lease)) if lease.is_vacated() => Confirmation::Names(None),
            Ok(Some(lease)) => Confirmation::Names(Some(lease.incarnation.clone())),
            // It had its lifetime to come back, and is still missing.
            Ok(None) if self.members.is_long_gone(identity, lease_ms) => Confirmation::Names(None),
            Ok(None) | Err(ReadFailed) => Confirmation::Unknown,
        })
    }
}
