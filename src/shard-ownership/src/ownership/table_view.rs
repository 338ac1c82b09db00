//! The shard table: what it grants, and the writes that keep it in step with the Leases we hold.
//!
//! A shard Lease is the lock; its entry in the table is what the fence compares. Only the holder
//! writes its own entry, after its Lease write is known to have succeeded, and it works only while
//! the entry names it. There is no other source of epochs: what users write on objects has no
//! influence here.

use std::collections::{BTreeMap, BTreeSet};

use super::outbox::Outbox;
use super::us::Us;
use super::{Action, ReadFailed, WriteId, WriteResult};
use crate::hash::{ShardCount, ShardId};
use crate::lease::Version;
use crate::table::{Entry, ShardTable, TableChange, TableWrite};
use crate::token::{EPOCH_MAX, EPOCH_STEP_MAX};

/// Consecutive refusals of one entry on its own, each after a fresh read, before we conclude that
/// we must not write the table.
const REFUSALS_MAX: u32 = 2;

/// Consecutive failures after which pauses between attempts do not increase any more: 5 s by
/// default.
const FAILURES_MAX: u32 = 25;

/// How long until we check again whether we may write the table.
const PROBE_MS: u64 = 2000;

/// What the table means for a shard whose Lease is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// There is no table, or one of another number of shards.
    NoTable,
    /// The entry is ours, under the epoch of our Lease.
    Granted,
    /// The entry is older than our Lease: we have to write it.
    Behind,
    /// The entry is not ours and not older: our Lease must be raised above it, or is lost.
    Ahead,
}

/// Whether we may write the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Permission {
    /// Nothing contradicts it.
    Assumed,
    /// A write was refused for no observable reason. Check again at this time.
    Refused { again_ms: u64 },
    /// A dry run is in flight.
    Probing,
}

/// A write of the table whose answer is awaited.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct InFlight {
    id: WriteId,
    /// The shards whose entries it sets.
    sent: BTreeSet<ShardId>,
}

/// A shard whose Lease is ours and whose entry may have to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) shard: ShardId,
    /// The epoch of the Lease under which we hold it.
    pub(super) epoch: u32,
}

/// The table as last observed, and the write in flight.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TableView {
    /// Our number of shards.
    count: ShardCount,
    version: Option<Version>,
    /// Number of shards of the table.
    shards: u16,
    highest_epoch: u32,
    /// The entries of our shards, if there is a table with our number of shards.
    entries: BTreeMap<ShardId, Entry>,
    /// Whether a fresh read found no table since one was last observed.
    is_absent: bool,
    in_flight: Option<InFlight>,
    /// Entries that were refused together with others: each is sent on its own.
    apart: BTreeSet<ShardId>,
    /// Consecutive refusals of each entry on its own.
    refusals: BTreeMap<ShardId, u32>,
    /// When to read the table before anything else is done with it.
    must_read: Option<u64>,
    reading: bool,
    /// The known version when the read in flight was sent.
    read_from: Option<Version>,
    /// Consecutive failed writes.
    failures: u32,
    permission: Permission,
}

impl TableView {
    pub(super) const fn new(count: ShardCount) -> Self {
        Self {
            count,
            version: None,
            shards: 0,
            highest_epoch: 0,
            entries: BTreeMap::new(),
            is_absent: false,
            in_flight: None,
            apart: BTreeSet::new(),
            refusals: BTreeMap::new(),
            // The table may not exist, and then no watch reports it.
            must_read: Some(0),
            reading: false,
            read_from: None,
            failures: 0,
            permission: Permission::Assumed,
        }
    }

    /// The uid of the table, if there is one with our number of shards.
    pub(super) fn uid(&self) -> Option<&str> {
        let version = self.version.as_ref().filter(|_| self.has_our_count());
        version.map(|version| version.uid.as_str())
    }

    /// The epoch of a shard's entry, if there is one.
    pub(super) fn epoch(&self, shard: ShardId) -> Option<u32> {
        self.entries.get(&shard).map(|entry| entry.epoch)
    }

    /// Whether we must not write the table: then we take no shards and receive none.
    pub(super) fn is_refused(&self) -> bool {
        self.permission != Permission::Assumed
    }

    /// Whether a write is in flight or its effect is not known.
    fn is_unsettled(&self) -> bool {
        self.in_flight.is_some() || self.must_read.is_some()
    }

    /// Whether there is a table, and nothing is to be read or written of it.
    pub(super) fn is_at_rest(&self) -> bool {
        self.uid().is_some()
            && !self.is_unsettled()
            && !self.is_refused()
            && !self.reading
            && self.apart.is_empty()
            && self.refusals.is_empty()
    }

    fn has_our_count(&self) -> bool {
        self.shards == self.count.get()
    }

    fn read_again(&mut self, now_ms: u64, retry_ms: u64) {
        // Immediately after a first failure, then after increasing pauses.
        let pause_ms = retry_ms * u64::from(self.failures.min(FAILURES_MAX));
        self.failures = self.failures.saturating_add(1);
        self.must_read = Some(now_ms + pause_ms);
    }

    /// Takes in the table; an older answer is ignored.
    pub(super) fn observe(&mut self, table: ShardTable) {
        if let Some(known) = &self.version
            && table.version.is_older_than(known)
        {
            if known.uid != table.version.uid {
                // A late answer, or a restored API server: only a new read can decide.
                self.must_read = self.must_read.or(Some(0));
            }
            return;
        }
        self.shards = table.shards;
        self.highest_epoch = table.highest_epoch();
        self.version = Some(table.version);
        self.is_absent = false;
        self.entries = table.entries;
        let (is_ours, count) = (self.has_our_count(), self.count.get());
        self.entries.retain(|shard, _| is_ours && shard.0 < count);
    }

    /// Takes in what a complete list shows of the table.
    pub(super) fn listed(&mut self, table: Option<ShardTable>) {
        match table {
            Some(table) => self.observe(table),
            None => self.lost(),
        }
    }

    /// The table with this uid was deleted.
    pub(super) fn observe_deleted(&mut self, uid: &str) {
        if self.version.as_ref().is_some_and(|known| known.uid == uid) {
            self.lost();
        }
    }

    /// There is no table, as far as observed; a fresh read confirms it.
    fn lost(&mut self) {
        self.version = None;
        self.must_read = self.must_read.or(Some(0));
        self.entries.clear();
    }

    /// The answer to [`Action::ReadTable`].
    pub(super) fn read(
        &mut self,
        now_ms: u64,
        read: Result<Option<ShardTable>, ReadFailed>,
        retry_ms: u64,
    ) {
        self.reading = false;
        let from = self.read_from.take();
        match read {
            Ok(Some(table)) => {
                self.must_read = None;
                // Older than what was known before the read: the API server went back in time.
                if from.is_some_and(|from| table.version.is_older_than(&from)) {
                    self.version = None;
                }
                self.observe(table);
            }
            Ok(None) => {
                self.must_read = None;
                if from == self.version {
                    self.lost();
                    self.must_read = None;
                    self.is_absent = true;
                }
            }
            Err(ReadFailed) => self.must_read = Some(now_ms + retry_ms),
        }
    }

    /// The outcome of [`Action::WriteTable`].
    pub(super) fn written(
        &mut self,
        now_ms: u64,
        id: WriteId,
        result: WriteResult<ShardTable>,
        retry_ms: u64,
    ) {
        let Some(InFlight { sent, .. }) = self.in_flight.take_if(|write| write.id == id) else {
            return;
        };
        match result {
            WriteResult::Done(table) => {
                self.failures = 0;
                self.apart.retain(|shard| !sent.contains(shard));
                self.refusals.retain(|shard, _| !sent.contains(shard));
                self.observe(table);
            }
            WriteResult::Conflict | WriteResult::Unknown => self.read_again(now_ms, retry_ms),
            WriteResult::Rejected => {
                if sent.len() == 1 {
                    for shard in sent {
                        *self.refusals.entry(shard).or_insert(0) += 1;
                    }
                } else {
                    self.apart.extend(sent);
                }
                self.read_again(now_ms, retry_ms);
            }
        }
    }

    /// The answer to [`Action::ProbeTable`].
    pub(super) fn probed(&mut self, now_ms: u64, may_write: bool) {
        if self.permission == Permission::Probing {
            self.permission = if may_write {
                self.refusals.clear();
                Permission::Assumed
            } else {
                Permission::Refused {
                    again_ms: now_ms + PROBE_MS,
                }
            };
        }
    }

    /// What the table grants for a shard whose Lease we took under the epoch `held`.
    pub(super) fn grant(&self, us: Us<'_>, shard: ShardId, held: Option<u32>) -> Grant {
        let (Some(_), Some(entry), Some(held)) = (self.uid(), self.entries.get(&shard), held)
        else {
            return Grant::NoTable;
        };
        let is_ours = entry.epoch == held && us.is_named_by(&entry.holder, &entry.incarnation);
        match (is_ours, entry.epoch < held) {
            (true, _) => Grant::Granted,
            (false, true) => Grant::Behind,
            (false, false) => Grant::Ahead,
        }
    }

    /// Whether the entry of this shard was refused repeatedly although nothing observable
    /// contradicts it: we must not write the table, and another replica must take the shard.
    pub(super) fn is_entry_refused(&mut self, now_ms: u64, shard: ShardId) -> bool {
        let refusals = self.refusals.get(&shard).copied().unwrap_or(0);
        let is_refused = refusals >= REFUSALS_MAX && !self.is_unsettled();
        if is_refused && self.permission == Permission::Assumed {
            self.permission = Permission::Refused {
                again_ms: now_ms + PROBE_MS,
            };
        }
        is_refused
    }

    /// Reads the table, and checks whether we may write it, when that is due.
    pub(super) fn refresh(&mut self, now_ms: u64, out: &mut Outbox) {
        if self.must_read.is_some_and(|at_ms| now_ms >= at_ms) && !self.reading {
            self.reading = true;
            self.read_from.clone_from(&self.version);
            out.push(Action::ReadTable);
        }
        if let Permission::Refused { again_ms } = self.permission
            && now_ms >= again_ms
        {
            self.permission = Permission::Probing;
            out.push(Action::ProbeTable);
        }
    }

    /// Writes what the table lacks, unless an earlier write is not settled: the table itself, our
    /// number of shards, the entries of these shards. `is_standby`: whether replicas with another
    /// number of shards are alive.
    pub(super) fn write(
        &mut self,
        us: Us<'_>,
        is_standby: bool,
        claims: impl Iterator<Item = Claim>,
        out: &mut Outbox,
    ) {
        if self.is_unsettled() {
            return;
        }
        let Some((change, sent)) = self.change(us, is_standby, claims) else {
            return;
        };
        let id = out.next_id();
        self.in_flight = Some(InFlight { id, sent });
        let shards = self.count.get();
        out.push(Action::WriteTable(id, TableWrite { shards, change }));
    }

    /// The change that the table lacks, and the shards whose entries it sets.
    fn change(
        &mut self,
        us: Us<'_>,
        is_standby: bool,
        claims: impl Iterator<Item = Claim>,
    ) -> Option<(TableChange, BTreeSet<ShardId>)> {
        let stays = !us.is_leaving() && !self.is_refused();
        let Some(version) = self.version.clone() else {
            let may_create = stays && self.is_absent;
            return may_create.then_some((TableChange::Create, BTreeSet::new()));
        };
        if !self.has_our_count() {
            // No replica works with the old number any more, and none has started with ours.
            let epoch = self.highest_epoch + 1;
            let may_convert = stays && !is_standby && epoch <= EPOCH_MAX;
            let change = TableChange::Convert {
                base: version,
                epoch,
            };
            return may_convert.then_some((change, BTreeSet::new()));
        }
        let mut entries = self.entries_behind(us, claims);
        self.apart.retain(|shard| entries.contains_key(shard));
        self.refusals.retain(|shard, _| entries.contains_key(shard));
        if let Some(alone) = self.apart.first() {
            entries.retain(|shard, _| shard == alone);
        }
        let sent: BTreeSet<ShardId> = entries.keys().copied().collect();
        let change = TableChange::Entries {
            table: version.uid,
            entries,
        };
        (!sent.is_empty()).then_some((change, sent))
    }

    /// New entries for those that are older than the Leases that we hold.
    fn entries_behind(
        &self,
        us: Us<'_>,
        claims: impl Iterator<Item = Claim>,
    ) -> BTreeMap<ShardId, Entry> {
        let entry = |claim: Claim| {
            let known = self.entries.get(&claim.shard)?.epoch;
            let is_behind = self.grant(us, claim.shard, Some(claim.epoch)) == Grant::Behind;
            is_behind.then(|| Entry {
                // An epoch that is further ahead is reached in steps.
                epoch: claim.epoch.min(known.saturating_add(EPOCH_STEP_MAX)),
                holder: us.identity().to_owned(),
                incarnation: us.incarnation().to_owned(),
            })
        };
        claims
            .filter_map(|claim| Some((claim.shard, entry(claim)?)))
            .collect()
    }
}
