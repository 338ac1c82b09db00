//! One shard from the view of this replica: its Lease, our stage, and the pending write.

use super::membership::Confirmation;
use super::outbox::Outbox;
use super::record::{Held, Intent, Memory, Pending, Stage};
use super::{Action, ReadFailed, Reason, WriteId, WriteResult};
use crate::hash::ShardId;
use crate::lease::{ShardLease, Successor, Version};
use crate::token::{EPOCH_MAX, EPOCH_STEP_MAX};

/// One shard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shard {
    id: ShardId,
    pub(super) lease: Option<ShardLease>,
    pub(super) memory: Option<Memory>,
    pub(super) stage: Stage,
    held: Option<Held>,
    pub(super) pending: Option<Pending>,
    /// A write met something unexpected: look before the next one.
    must_read: Option<u64>,
    is_reading: bool,
    /// What was known when the read under way was sent.
    read_from: Option<Version>,
    /// Conflicts since the last write that arrived.
    conflicts: u32,
    /// Whether its objects were listed.
    warm: bool,
    /// The epoch of an entry ahead of our Lease, once the Lease was read afresh because of it.
    read_ahead_epoch: Option<u32>,
    watching: bool,
    /// For how long it has been free, in credited time.
    pub(super) free_ms: u64,
    /// For how long its Lease has been missing, in credited time.
    pub(super) missing_ms: u64,
    pub(super) is_free: bool,
    /// Earliest time of the next write: the API server rejected one permanently.
    pub(super) not_before_ms: u64,
    /// Version of the shard Lease at which the holder's incarnation was read again and found dead.
    found_dead: Option<Version>,
    /// The doubt that is being looked into.
    unconfirmed_holder: Option<(String, Version)>,
}

impl Shard {
    pub(super) fn new(id: ShardId) -> Self {
        Self {
            id,
            lease: None,
            memory: None,
            stage: Stage::Idle,
            held: None,
            pending: None,
            must_read: None,
            is_reading: false,
            read_from: None,
            conflicts: 0,
            warm: false,
            read_ahead_epoch: None,
            watching: false,
            free_ms: 0,
            missing_ms: 0,
            is_free: false,
            not_before_ms: 0,
            found_dead: None,
            unconfirmed_holder: None,
        }
    }

    pub(super) fn id(&self) -> ShardId {
        self.id
    }

    pub(super) fn running_epoch(&self) -> Option<u32> {
        let held = self.held.as_ref()?;
        matches!(self.stage, Stage::Running | Stage::Draining(_)).then_some(held.epoch)
    }

    pub(super) fn named_holder(&self) -> Option<&str> {
        match (&self.lease, &self.memory) {
            (Some(lease), _) => Some(lease.holder.as_str()),
            (None, Some(memory)) => Some(memory.holder.as_str()),
            (None, None) => None,
        }
        .filter(|holder| !holder.is_empty())
    }

    /// Whether leaving has to wait for this shard: we hold it, or a write of ours is not settled.
    pub(super) fn keeps_us(&self) -> bool {
        self.stage != Stage::Idle || self.pending.is_some()
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

    /// Whether its Lease has an epoch above which none is left: someone else wrote it.
    pub(super) fn is_damaged(&self) -> bool {
        self.lease.as_ref().is_some_and(|l| l.epoch >= EPOCH_MAX)
    }

    /// The epoch of the Lease under which we hold it.
    pub(super) fn held_epoch(&self) -> Option<u32> {
        self.held.as_ref().map(|held| held.epoch)
    }

    /// Uid of the table under which we work on it.
    pub(super) fn table(&self) -> Option<&str> {
        self.held.as_ref()?.table.as_deref()
    }

    /// Whether the watch has shown the deletion of the Lease with this uid.
    fn is_over(&self, version: &Version) -> bool {
        let ended = self.memory.as_ref().filter(|memory| memory.is_complete);
        ended.is_some_and(|memory| memory.version.uid == version.uid)
    }

    /// The Lease as it is now; a late answer is ignored.
    pub(super) fn observe(&mut self, lease: ShardLease) {
        if self.is_over(&lease.version) {
            // Late as well, or a restored API server: only a read that is sent now can tell.
            self.must_read = self.must_read.or(Some(0));
            return;
        }
        if let Some(known) = &self.lease
            && known.version.uid == lease.version.uid
            && lease.version.is_older_than(&known.version)
        {
            return;
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
        let outdated = |pending: &&Pending| pending.is_outdated_by(&lease);
        if self
            .pending
            .as_ref()
            .filter(outdated)
            .is_some_and(|p| p.id.is_none())
        {
            // Requests that were sent from the older version cannot take effect any more.
            self.pending = None;
        }
        self.missing_ms = 0;
        self.lease = Some(lease);
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

    /// Takes in what a complete list shows of this Lease.
    pub(super) fn listed(&mut self, lease: Option<ShardLease>) {
        match lease {
            Some(lease) => {
                let known = self.lease.as_ref().map(|known| &known.version);
                if known.is_some_and(|known| lease.version.is_older_than(known)) {
                    // A late list, or a restored API server: only a read that is sent now can tell.
                    self.must_read = self.must_read.or(Some(0));
                }
                self.observe(lease);
            }
            None => self.lease = None,
        }
    }

    pub(super) fn credit(&mut self, elapsed_ms: u64) {
        if self.is_free {
            self.free_ms = self.free_ms.saturating_add(elapsed_ms);
        }
        if self.lease.is_none() {
            self.missing_ms = self.missing_ms.saturating_add(elapsed_ms);
        }
    }

    pub(super) fn awaits(&self, id: WriteId) -> bool {
        self.pending
            .as_ref()
            .is_some_and(|pending| pending.id == Some(id))
    }

    pub(super) fn written(&mut self, now_ms: u64, result: WriteResult<ShardLease>, retry_ms: u64) {
        let Some(pending) = self.pending.as_mut() else {
            return;
        };
        let lease_now = self.lease.as_ref();
        let has_moved_on = lease_now.is_some_and(|lease| pending.is_outdated_by(lease));
        match result {
            WriteResult::Done(lease) => {
                self.conflicts = 0;
                let (intent, waited_ms) = (pending.intent.clone(), self.free_ms);
                self.pending = None;
                let (epoch, uid) = (lease.epoch, lease.version.uid.clone());
                self.observe(lease);
                if self.lease.is_some() {
                    self.carry_on(intent, epoch, uid, waited_ms);
                }
            }
            WriteResult::Conflict => {
                self.remember_lost();
                // Immediately after a first conflict; then no faster than any other retry.
                let pause_ms = if self.conflicts == 0 { 0 } else { retry_ms };
                self.conflicts += 1;
                self.must_read = Some(now_ms + pause_ms);
            }
            // This one changed nothing; an earlier one may still.
            WriteResult::Rejected if pending.indeterminate => {
                pending.id = None;
                pending.again_ms = now_ms + 5 * retry_ms;
            }
            WriteResult::Rejected => {
                self.pending = None;
                self.not_before_ms = now_ms + 5 * retry_ms;
            }
            // The Lease changed meanwhile, by this write or by another: there is nothing to repeat.
            WriteResult::Unknown if has_moved_on => self.pending = None,
            WriteResult::Unknown => {
                pending.id = None;
                pending.again_ms = now_ms + retry_ms;
                pending.indeterminate = true;
            }
        }
    }

    /// A write lost its compare-and-swap. An earlier request of it may have won: if the Lease turns
    /// out to be deleted, it may have been handed over before.
    fn remember_lost(&mut self) {
        let lost = self.pending.take().filter(|pending| pending.indeterminate);
        if let (Some(lost), Some(memory)) = (lost, self.memory.as_mut()) {
            let hands_over = matches!(lost.intent, Intent::HandOver(_) | Intent::Vacate);
            memory.handed_over = hands_over && !memory.is_complete;
            memory.epoch = memory.epoch.max(lost.epoch);
        }
    }

    /// A write of ours succeeded.
    fn carry_on(&mut self, intent: Intent, epoch: u32, uid: String, waited_ms: u64) {
        match intent {
            Intent::Take(reason) => {
                self.held = Some(Held {
                    epoch,
                    uid,
                    reason,
                    waited_ms,
                    table: None,
                })
            }
            Intent::Raise => {
                if let Some(held) = self.held.as_mut() {
                    held.epoch = epoch;
                }
            }
            Intent::Name(_) | Intent::HandOver(_) | Intent::Vacate => {}
        }
    }

    /// Whether the Lease must be read before anything else is done with it.
    pub(super) fn begin_read(&mut self, now_ms: u64) -> bool {
        let is_due = self.must_read.is_some_and(|at_ms| now_ms >= at_ms) && !self.is_reading;
        if is_due {
            self.is_reading = true;
            self.read_from = self.lease.as_ref().map(|lease| lease.version.clone());
        }
        is_due
    }

    pub(super) fn must_read(&self) -> bool {
        self.must_read.is_some()
    }

    pub(super) fn read(
        &mut self,
        now_ms: u64,
        read: Result<Option<ShardLease>, ReadFailed>,
        retry_ms: u64,
    ) {
        self.is_reading = false;
        match read {
            Ok(Some(lease)) => {
                self.must_read = None;
                match (self.read_from.take(), self.memory.as_mut()) {
                    // Older than what was known before we asked: the API server went back in time.
                    (Some(from), _) if lease.version.is_older_than(&from) => self.lease = None,
                    // Or it exists again although its deletion was known.
                    (None, Some(memory)) => memory.is_complete = false,
                    _ => {}
                }
                self.observe(lease);
            }
            Ok(None) => {
                self.must_read = None;
                self.lease = None;
            }
            Err(ReadFailed) => self.must_read = Some(now_ms + retry_ms),
        }
    }

    pub(super) fn warmed(&mut self) {
        self.warm = self.watching;
    }

    pub(super) fn drained(&mut self) {
        if matches!(self.stage, Stage::Draining(_)) {
            self.stage = Stage::Drained;
        }
    }

    pub(super) fn forget_pending(&mut self) {
        self.pending = None;
        self.must_read = None;
    }

    /// Whether the Lease still says what we started on.
    pub(super) fn is_still_ours(&self, identity: &str, incarnation: &str) -> bool {
        match (&self.lease, &self.held) {
            (Some(lease), Some(held)) => {
                lease.holder == identity
                    && lease.incarnation == incarnation
                    && lease.epoch == held.epoch
                    && lease.version.uid == held.uid
            }
            _ => false,
        }
    }

    /// Whether there is no Lease, and what we remember of it may not be all that happened to it.
    pub(super) fn is_missing_unconfirmed(&self) -> bool {
        self.lease.is_none() && self.memory.as_ref().is_some_and(|m| !m.is_complete)
    }

    /// Starts watching a shard whose Lease names us.
    pub(super) fn start(&mut self, out: &mut Outbox) {
        let Some(lease) = &self.lease else { return };
        let fits = |held: &Held| held.epoch == lease.epoch && held.uid == lease.version.uid;
        if !self.held.as_ref().is_some_and(fits) {
            self.held = Some(Held {
                epoch: lease.epoch,
                uid: lease.version.uid.clone(),
                reason: Reason::Named,
                waited_ms: 0,
                table: None,
            });
        }
        self.stage = Stage::Listing;
        self.free_ms = 0;
        self.is_free = false;
        self.warm_up(out);
    }

    /// Starts watching the shard, unless it is watched already.
    pub(super) fn warm_up(&mut self, out: &mut Outbox) {
        if !self.watching {
            self.watching = true;
            self.warm = false;
            out.push(Action::Watch(self.id));
        }
    }

    /// Stops watching a shard that will not be ours after all.
    pub(super) fn cool_down(&mut self, out: &mut Outbox) {
        if self.watching {
            self.watching = false;
            self.warm = false;
            out.push(Action::Unwatch(self.id));
        }
    }

    /// Whether everything is listed of a shard that we do not hold, so that its holder may hand it
    /// over.
    pub(super) fn is_warmed_for_us(&self) -> bool {
        self.stage == Stage::Idle && self.watching && self.warm
    }

    /// The planned next holder according to the Lease.
    pub(super) fn successor(&self) -> Option<&Successor> {
        self.lease.as_ref()?.successor.as_ref()
    }

    /// Whether the Lease was read afresh since an entry ahead of it, of this epoch, was observed. If
    /// not, it is read.
    pub(super) fn has_read_ahead(&mut self, ahead: Option<u32>) -> bool {
        let has_read = self.read_ahead_epoch == ahead;
        if !has_read {
            self.read_ahead_epoch = ahead;
            self.must_read = self.must_read.or(Some(0));
        }
        has_read
    }

    /// Everything is listed and the table grants the shard: work starts.
    pub(super) fn admit(&mut self, table: String, out: &mut Outbox) {
        if let Some(held) = self.held.as_mut() {
            held.table = Some(table.clone());
            self.stage = Stage::Running;
            out.push(Action::Admit {
                shard: self.id,
                table,
                epoch: held.epoch,
                reason: held.reason,
                waited_ms: held.waited_ms,
            });
        }
    }

    pub(super) fn is_warm(&self) -> bool {
        self.warm
    }

    /// Back to listing until the table grants it again: running work is cancelled, the watch
    /// continues.
    pub(super) fn pause(&mut self, reason: Reason, out: &mut Outbox) {
        out.push(Action::Halt(self.id, reason));
        self.stage = Stage::Listing;
    }

    /// Stops everything immediately.
    pub(super) fn halt(&mut self, reason: Reason, out: &mut Outbox) {
        if matches!(self.stage, Stage::Running | Stage::Draining(_)) {
            out.push(Action::Halt(self.id, reason));
        }
        self.stage = Stage::Idle;
        self.held = None;
        if reason != Reason::Lapsed {
            // A lapsed shard is most likely ours again soon: spare a busy API server a new list.
            self.cool_down(out);
        }
    }

    pub(super) fn found_dead(&self) -> bool {
        match (&self.lease, &self.memory) {
            (Some(lease), _) => self.found_dead.as_ref() == Some(&lease.version),
            (None, Some(memory)) => self.found_dead.as_ref() == Some(&memory.version),
            (None, None) => false,
        }
    }

    /// Whether a read of the holder's member Lease is to be started.
    pub(super) fn should_confirm_holder(&mut self, holder: &str, at: &Version) -> bool {
        let unconfirmed_holder = (holder.to_owned(), at.clone());
        if self.unconfirmed_holder.as_ref() == Some(&unconfirmed_holder) {
            return false;
        }
        self.unconfirmed_holder = Some(unconfirmed_holder);
        true
    }

    /// The holder's member Lease was read after the shard Lease.
    pub(super) fn checked(&mut self, identity: &str, confirmation: &Confirmation) {
        let Some((holder, at)) = self
            .unconfirmed_holder
            .take_if(|(holder, _)| holder == identity)
        else {
            return;
        };
        let named = self.memory.as_ref().filter(|memory| memory.version == at);
        if let Some(memory) = named
            && memory.holder == holder
            && confirmation.rules_out(&memory.incarnation)
        {
            self.found_dead = Some(at);
        }
    }
}
