//! The shard table: what it grants, and the writes that keep it in step with the Leases we hold.
//!
//! A shard Lease is the lock; its entry in the table is what the fence compares. Only the holder
//! writes its own entry, after its Lease write is known to have succeeded, and it works only while
//! the entry names it. There is no other source of epochs: what users write on objects has no
//! influence here.

use std::collections::{BTreeMap, BTreeSet};

use super::record::Stage;
use super::shard::Shard;
use super::{Action, Ownership, ReadFailed, WriteId, WriteResult};
use crate::hash::ShardId;
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

/// The table as last observed, and the write in flight. The entries are stored with their shards.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TableView {
    version: Option<Version>,
    shards: u16,
    highest_epoch: u32,
    /// Whether a fresh read found no table since one was last observed.
    is_absent: bool,
    in_flight: Option<(WriteId, BTreeSet<ShardId>)>,
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
    pub(super) const fn new() -> Self {
        Self {
            version: None,
            shards: 0,
            highest_epoch: 0,
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

    /// The uid of the table, if there is one.
    pub(super) fn uid(&self) -> Option<&str> {
        self.version.as_ref().map(|version| version.uid.as_str())
    }

    /// Whether a write is in flight or its effect is not known.
    pub(super) fn is_unsettled(&self) -> bool {
        self.in_flight.is_some() || self.must_read.is_some()
    }

    /// Whether we must not write the table: then we take no shards and receive none.
    pub(super) fn is_refused(&self) -> bool {
        self.permission != Permission::Assumed
    }

    fn read_again(&mut self, now_ms: u64, retry_ms: u64) {
        // Immediately after a first failure, then after increasing pauses.
        let pause_ms = retry_ms * u64::from(self.failures.min(FAILURES_MAX));
        self.failures = self.failures.saturating_add(1);
        self.must_read = Some(now_ms + pause_ms);
    }
}

impl Ownership {
    /// The uid of the shard table, once it was observed with our number of shards.
    #[must_use]
    pub fn table_uid(&self) -> Option<&str> {
        self.table
            .uid()
            .filter(|_| self.table.shards == self.settings.shards.get())
    }

    /// Whether the API server refuses our writes of the table.
    #[must_use]
    pub fn is_table_refused(&self) -> bool {
        self.table.is_refused()
    }

    /// Takes in the table; an older answer is ignored.
    pub(super) fn table_observed(&mut self, table: ShardTable) {
        if let Some(known) = &self.table.version
            && table.version.is_older_than(known)
        {
            if known.uid != table.version.uid {
                // A late answer, or a restored API server: only a new read can decide.
                self.table.must_read = self.table.must_read.or(Some(0));
            }
            return;
        }
        let is_ours = table.shards == self.settings.shards.get();
        self.table.shards = table.shards;
        self.table.highest_epoch = table.highest_epoch();
        self.table.version = Some(table.version);
        self.table.is_absent = false;
        let mut entries = table.entries;
        for shard in self.shards.values_mut() {
            shard.entry = entries.remove(&shard.id()).filter(|_| is_ours);
        }
    }

    /// Takes in what a complete list shows of the table.
    pub(super) fn table_listed(&mut self, table: Option<ShardTable>) {
        match table {
            Some(table) => self.table_observed(table),
            None => self.table_lost(),
        }
    }

    /// The table with this uid was deleted.
    pub(super) fn table_deleted(&mut self, uid: &str) {
        if self.table.uid() == Some(uid) {
            self.table_lost();
        }
    }

    /// There is no table, as far as observed; a fresh read confirms it.
    fn table_lost(&mut self) {
        self.table.version = None;
        self.table.must_read = self.table.must_read.or(Some(0));
        for shard in self.shards.values_mut() {
            shard.entry = None;
        }
    }

    /// The answer to [`Action::ReadTable`].
    pub(super) fn table_read(&mut self, now_ms: u64, read: Result<Option<ShardTable>, ReadFailed>) {
        self.table.reading = false;
        let from = self.table.read_from.take();
        match read {
            Ok(Some(table)) => {
                self.table.must_read = None;
                // Older than what was known before the read: the API server went back in time.
                if from.is_some_and(|from| table.version.is_older_than(&from)) {
                    self.table.version = None;
                }
                self.table_observed(table);
            }
            Ok(None) => {
                self.table.must_read = None;
                if from == self.table.version {
                    self.table_lost();
                    self.table.must_read = None;
                    self.table.is_absent = true;
                }
            }
            Err(ReadFailed) => {
                self.table.must_read = Some(now_ms + self.settings.retry_ms);
            }
        }
    }

    /// The outcome of [`Action::WriteTable`].
    pub(super) fn table_written(
        &mut self,
        now_ms: u64,
        id: WriteId,
        result: WriteResult<ShardTable>,
    ) {
        let Some((_, sent)) = self.table.in_flight.take_if(|(sent, _)| *sent == id) else {
            return;
        };
        let retry_ms = self.settings.retry_ms;
        match result {
            WriteResult::Done(table) => {
                self.table.failures = 0;
                self.table.apart.retain(|shard| !sent.contains(shard));
                self.table.refusals.retain(|shard, _| !sent.contains(shard));
                self.table_observed(table);
            }
            WriteResult::Conflict | WriteResult::Unknown => {
                self.table.read_again(now_ms, retry_ms);
            }
            WriteResult::Rejected => {
                if sent.len() == 1 {
                    for shard in sent {
                        *self.table.refusals.entry(shard).or_insert(0) += 1;
                    }
                } else {
                    self.table.apart.extend(sent);
                }
                self.table.read_again(now_ms, retry_ms);
            }
        }
    }

    /// The answer to [`Action::ProbeTable`].
    pub(super) fn table_probed(&mut self, now_ms: u64, may_write: bool) {
        if self.table.permission == Permission::Probing {
            self.table.permission = if may_write {
                self.table.refusals.clear();
                Permission::Assumed
            } else {
                Permission::Refused {
                    again_ms: now_ms + PROBE_MS,
                }
            };
        }
    }

    /// What the table grants for a shard whose Lease we took under `held`.
    pub(super) fn grant(&self, shard: &Shard) -> Grant {
        let (Some(_), Some(entry), Some(held)) =
            (self.table_uid(), &shard.entry, shard.held_epoch())
        else {
            return Grant::NoTable;
        };
        let is_ours = entry.epoch == held
            && entry.holder == self.settings.identity
            && entry.incarnation == self.heartbeat.incarnation();
        match (is_ours, entry.epoch < held) {
            (true, _) => Grant::Granted,
            (false, true) => Grant::Behind,
            (false, false) => Grant::Ahead,
        }
    }

    /// Reads the table when that is due, and writes what it lacks: the table itself, our number of
    /// shards, the entries of the shards whose Leases are ours.
    pub(super) fn keep_table(&mut self, now_ms: u64) {
        if self.table.must_read.is_some_and(|at_ms| now_ms >= at_ms) && !self.table.reading {
            self.table.reading = true;
            self.table.read_from.clone_from(&self.table.version);
            self.out.push(Action::ReadTable);
        }
        if let Permission::Refused { again_ms } = self.table.permission
            && now_ms >= again_ms
        {
            self.table.permission = Permission::Probing;
            self.out.push(Action::ProbeTable);
        }
        if !self.synced || self.table.is_unsettled() || !self.heartbeat.is_valid(now_ms) {
            return;
        }
        let Some((change, sent)) = self.table_change() else {
            return;
        };
        let id = self.out.next_id();
        self.table.in_flight = Some((id, sent));
        let shards = self.settings.shards.get();
        self.out
            .push(Action::WriteTable(id, TableWrite { shards, change }));
    }

    fn table_change(&mut self) -> Option<(TableChange, BTreeSet<ShardId>)> {
        let stays = !self.departure.has_begun() && !self.table.is_refused();
        let Some(version) = self.table.version.clone() else {
            let may_create = stays && self.table.is_absent;
            return may_create.then_some((TableChange::Create, BTreeSet::new()));
        };
        if self.table.shards != self.settings.shards.get() {
            // No replica works with the old number any more, and none has started with ours.
            let epoch = self.table.highest_epoch + 1;
            let may_convert = stays && !self.is_standby() && epoch <= EPOCH_MAX;
            let change = TableChange::Convert {
                base: version,
                epoch,
            };
            return may_convert.then_some((change, BTreeSet::new()));
        }
        let mut entries = self.entries_to_write();
        self.table.apart.retain(|shard| entries.contains_key(shard));
        self.table
            .refusals
            .retain(|shard, _| entries.contains_key(shard));
        if let Some(alone) = self.table.apart.first() {
            entries.retain(|shard, _| shard == alone);
        }
        let sent: BTreeSet<ShardId> = entries.keys().copied().collect();
        let change = TableChange::Entries {
            table: version.uid,
            entries,
        };
        (!sent.is_empty()).then_some((change, sent))
    }

    /// The entries that are older than the Leases we hold.
    fn entries_to_write(&self) -> BTreeMap<ShardId, Entry> {
        let behind = self.shards.values().filter(|shard| {
            shard.stage == Stage::Listing
                && shard.pending.is_none()
                && !shard.must_read()
                && self.grant(shard) == Grant::Behind
        });
        let entry = |shard: &Shard| {
            let known = shard.entry.as_ref()?.epoch;
            Some(Entry {
                // An epoch that is further ahead is reached in steps.
                epoch: shard
                    .held_epoch()?
                    .min(known.saturating_add(EPOCH_STEP_MAX)),
                holder: self.settings.identity.clone(),
                incarnation: self.heartbeat.incarnation().to_owned(),
            })
        };
        behind
            .filter_map(|shard| Some((shard.id(), entry(shard)?)))
            .collect()
    }

    /// Whether the entry of this shard was refused repeatedly although nothing observable
    /// contradicts it: we must not write the table, and another replica must take the shard.
    pub(super) fn is_entry_refused(&mut self, now_ms: u64, shard: &Shard) -> bool {
        let refusals = self.table.refusals.get(&shard.id()).copied().unwrap_or(0);
        let is_refused = refusals >= REFUSALS_MAX && !self.table.is_unsettled();
        if is_refused && self.table.permission == Permission::Assumed {
            self.table.permission = Permission::Refused {
                again_ms: now_ms + PROBE_MS,
            };
        }
        is_refused
    }
}
