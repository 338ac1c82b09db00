//! What is known of one shard's Lease: its content, what was remembered of a deleted one, and whether
//! it has to be read again.

use super::ReadFailed;
use super::membership::Confirmation;
use crate::lease::{ShardLease, Successor, Version};
use crate::token::{EPOCH_MAX, EPOCH_STEP_MAX};

/// The last observed state of the Lease, which remains when it is deleted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Memory {
    holder: String,
    incarnation: String,
    /// The highest epoch of this and all former Leases of the shard.
    epoch: u32,
    version: Version,
    /// Whether the watch showed its deletion: then no change of it is unknown.
    is_complete: bool,
    /// Whether we may have handed it over just before it was deleted.
    handed_over: bool,
}

/// A holder whose incarnation seems to be dead, and is being confirmed by a read of its member Lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Doubt {
    holder: String,
    /// Version of the shard Lease that names it.
    at: Version,
}

/// The holder of a shard according to its Lease, or to what is remembered of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KnownHolder<'a> {
    /// Empty: the shard is vacant.
    pub(super) identity: &'a str,
    pub(super) incarnation: &'a str,
    /// Version of the shard Lease that names it.
    pub(super) at: &'a Version,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct LeaseRecord {
    lease: Option<ShardLease>,
    memory: Option<Memory>,
    /// For how long the Lease has been missing, in credited time.
    missing_ms: u64,
    /// When to read the Lease before anything else is done: something unexpected was observed.
    must_read: Option<u64>,
    is_reading: bool,
    /// What was known when the read in flight was sent.
    read_from: Option<Version>,
    /// The epoch of an entry ahead of the Lease, once the Lease was read again because of it.
    read_ahead_epoch: Option<u32>,
    /// Version of the Lease at which the holder's incarnation was read again and found dead.
    found_dead: Option<Version>,
    doubt: Option<Doubt>,
}

impl LeaseRecord {
    /// The Lease, if there is one.
    pub(super) fn lease(&self) -> Option<&ShardLease> {
        self.lease.as_ref()
    }

    pub(super) fn version(&self) -> Option<&Version> {
        self.lease.as_ref().map(|lease| &lease.version)
    }

    /// The planned next holder according to the Lease.
    pub(super) fn successor(&self) -> Option<&Successor> {
        self.lease.as_ref()?.successor.as_ref()
    }

    /// Whom the Lease names, or named before it was deleted; `None` if none was ever observed.
    pub(super) fn holder(&self) -> Option<KnownHolder<'_>> {
        match (&self.lease, &self.memory) {
            (Some(lease), _) => Some(KnownHolder {
                identity: &lease.holder,
                incarnation: &lease.incarnation,
                at: &lease.version,
            }),
            (None, Some(memory)) => Some(KnownHolder {
                identity: &memory.holder,
                incarnation: &memory.incarnation,
                at: &memory.version,
            }),
            (None, None) => None,
        }
    }

    /// The highest epoch known to this replica; `of_table` is that of the shard's entry.
    pub(super) fn epoch_known(&self, of_table: Option<u32>) -> u32 {
        let of_table = of_table.unwrap_or(0);
        let of_lease = self.lease.as_ref().map_or(0, |lease| lease.epoch);
        let of_memory = self.memory.as_ref().map_or(0, |memory| memory.epoch);
        // Nobody worked under an epoch so far ahead of the table: a Lease that somebody else edited is
        // not remembered once it was deleted.
        let is_trusted = of_memory <= of_table.saturating_add(EPOCH_STEP_MAX);
        let of_memory = if is_trusted { of_memory } else { 0 };
        of_lease.max(of_memory).max(of_table)
    }

    /// The epoch of its next change of hands, if epochs are left. No replica has worked under a
    /// higher one than the table's, so one above every known epoch was never used.
    pub(super) fn next_epoch(&self, of_table: Option<u32>) -> Option<u32> {
        Some(self.epoch_known(of_table) + 1).filter(|epoch| *epoch <= EPOCH_MAX)
    }

    /// Whether the Lease has an epoch above which none is left: someone else wrote it.
    pub(super) fn is_damaged(&self) -> bool {
        self.lease.as_ref().is_some_and(|l| l.epoch >= EPOCH_MAX)
    }

    /// Whether no change of a deleted Lease is unknown. If not, a holder may have existed that was
    /// never observed: it gets a whole lifetime to re-create the Lease.
    pub(super) fn is_memory_trusted(&self, lease_ms: u64) -> bool {
        self.memory.as_ref().is_some_and(|m| m.is_complete) || self.missing_ms >= lease_ms
    }

    /// Whether there is no Lease, and what we remember of it may not be all that happened to it.
    pub(super) fn is_missing_unconfirmed(&self) -> bool {
        self.lease.is_none() && self.memory.as_ref().is_some_and(|m| !m.is_complete)
    }

    /// Whether we certainly did not give it away before it was deleted.
    pub(super) fn was_kept(&self) -> bool {
        self.memory.as_ref().is_some_and(|m| !m.handed_over)
    }

    /// Whether the watch has shown the deletion of the Lease with this uid.
    fn is_over(&self, version: &Version) -> bool {
        let ended = self.memory.as_ref().filter(|memory| memory.is_complete);
        ended.is_some_and(|memory| memory.version.uid == version.uid)
    }

    /// Takes in the Lease as it is now; a late answer is ignored. Returns whether it was taken in.
    pub(super) fn observe(&mut self, lease: ShardLease) -> bool {
        if self.is_over(&lease.version) {
            // Late as well, or a restored API server: only a read that is sent now decides.
            self.read_soon();
            return false;
        }
        if let Some(known) = &self.lease
            && known.version.uid == lease.version.uid
            && lease.version.is_older_than(&known.version)
        {
            return false;
        }
        let known = self.memory.take().map_or(0, |memory| memory.epoch);
        let of_lease = Some(lease.epoch).filter(|epoch| *epoch <= EPOCH_MAX);
        let epoch = known.max(of_lease.unwrap_or(0));
        self.memory = Some(Memory {
            holder: lease.holder.clone(),
            incarnation: lease.incarnation.clone(),
            epoch,
            version: lease.version.clone(),
            is_complete: false,
            handed_over: false,
        });
        self.missing_ms = 0;
        self.lease = Some(lease);
        true
    }

    pub(super) fn observe_deleted(&mut self, uid: &str) {
        let is_it = |version: &Version| version.uid == uid;
        if self.lease.as_ref().is_some_and(|l| is_it(&l.version)) {
            self.lease = None;
            self.missing_ms = 0;
        }
        if let Some(memory) = self.memory.as_mut().filter(|m| is_it(&m.version)) {
            // The watch shows every change of one Lease, in order.
            memory.is_complete = true;
            memory.handed_over = false;
        }
    }

    /// A complete list does not show the Lease.
    pub(super) fn not_listed(&mut self) {
        self.lease = None;
    }

    /// A complete list shows the Lease, before it is taken in.
    pub(super) fn compare_with_list(&mut self, lease: &ShardLease) {
        let is_rewound = |known: &Version| lease.version.is_older_than(known);
        if self.version().is_some_and(is_rewound) {
            // A late list, or a restored API server: only a read that is sent now decides.
            self.read_soon();
        }
    }

    /// A write of ours lost its compare-and-swap, and an earlier request of it may have won: if the
    /// Lease turns out to be deleted, it may have been handed over before, under this epoch.
    pub(super) fn remember_indeterminate(&mut self, hands_over: bool, epoch: u32) {
        if let Some(memory) = self.memory.as_mut() {
            memory.handed_over = hands_over && !memory.is_complete;
            memory.epoch = memory.epoch.max(epoch);
        }
    }

    /// Adds time in which the Lease could have been observed.
    pub(super) fn credit(&mut self, elapsed_ms: u64) {
        if self.lease.is_none() {
            self.missing_ms = self.missing_ms.saturating_add(elapsed_ms);
        }
    }

    /// Whether nothing is to be found out about the Lease.
    pub(super) fn is_at_rest(&self) -> bool {
        self.lease.is_some() && self.must_read.is_none() && !self.is_reading
    }

    /// Whether the Lease must be read before anything else is done with it.
    pub(super) fn must_read(&self) -> bool {
        self.must_read.is_some()
    }

    /// Reads the Lease at the next opportunity, if no read is planned yet.
    fn read_soon(&mut self) {
        self.must_read = self.must_read.or(Some(0));
    }

    /// Reads the Lease at this time.
    pub(super) fn read_at(&mut self, at_ms: u64) {
        self.must_read = Some(at_ms);
    }

    pub(super) fn forget_read(&mut self) {
        self.must_read = None;
    }

    /// Whether the Lease was read since an entry ahead of it, of this epoch, was observed. If not, it
    /// is read.
    pub(super) fn has_read_ahead(&mut self, ahead: Option<u32>) -> bool {
        let has_read = self.read_ahead_epoch == ahead;
        if !has_read {
            self.read_ahead_epoch = ahead;
            self.read_soon();
        }
        has_read
    }

    /// Whether a read is due; then it counts as sent.
    pub(super) fn begin_read(&mut self, now_ms: u64) -> bool {
        let is_due = self.must_read.is_some_and(|at_ms| now_ms >= at_ms) && !self.is_reading;
        if is_due {
            self.is_reading = true;
            self.read_from = self.version().cloned();
        }
        is_due
    }

    /// The answer to a read. Returns the Lease that it shows, which is still to be taken in.
    pub(super) fn read(
        &mut self,
        now_ms: u64,
        read: Result<Option<ShardLease>, ReadFailed>,
        retry_ms: u64,
    ) -> Option<ShardLease> {
        self.is_reading = false;
        match read {
            Ok(Some(lease)) => {
                self.must_read = None;
                match (self.read_from.take(), self.memory.as_mut()) {
                    // Older than what was known before we asked: the API server went back in time.
                    (Some(from), _) => {
                        if lease.version.is_older_than(&from) {
                            self.lease = None;
                        }
                    }
                    // Or it exists again although its deletion was known.
                    (None, Some(memory)) => memory.is_complete = false,
                    (None, None) => {}
                }
                Some(lease)
            }
            Ok(None) => {
                self.must_read = None;
                self.lease = None;
                None
            }
            Err(ReadFailed) => {
                self.must_read = Some(now_ms + retry_ms);
                None
            }
        }
    }

    /// Whether the holder was confirmed to be dead, as of the known version.
    pub(super) fn is_holder_dead(&self) -> bool {
        self.holder()
            .is_some_and(|holder| self.found_dead.as_ref() == Some(holder.at))
    }

    /// The holder whose death is to be confirmed by a read of its member Lease; `None` if that has
    /// been requested already.
    pub(super) fn holder_to_confirm(&mut self) -> Option<String> {
        let holder = self.holder()?;
        let doubt = Doubt {
            holder: holder.identity.to_owned(),
            at: holder.at.clone(),
        };
        if self.doubt.as_ref() == Some(&doubt) {
            return None;
        }
        Some(self.doubt.insert(doubt).holder.clone())
    }

    /// The holder's member Lease was read after the shard Lease.
    pub(super) fn confirmed(&mut self, identity: &str, confirmation: &Confirmation) {
        let Some(doubt) = self.doubt.take_if(|doubt| doubt.holder == identity) else {
            return;
        };
        let named = self.memory.as_ref().filter(|m| m.version == doubt.at);
        if let Some(memory) = named
            && memory.holder == doubt.holder
            && confirmation.rules_out(&memory.incarnation)
        {
            self.found_dead = Some(doubt.at);
        }
    }
}
