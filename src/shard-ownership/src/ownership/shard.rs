//! One shard from the view of this replica: its Lease, the write of it, and our work.

use super::lease_record::LeaseRecord;
use super::lease_write::{Intent, LeaseWrite};
use super::membership::Confirmation;
use super::outbox::Outbox;
use super::us::Us;
use super::work::{Stage, Work};
use super::{Action, ReadFailed, WriteId, WriteResult};
use crate::hash::ShardId;
use crate::lease::{ShardLease, Successor};
use crate::liveness::is_live_holder;
use crate::members::Members;

/// One shard. What is observed of its Lease also settles the pending write, so both are changed
/// here only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shard {
    record: LeaseRecord,
    write: LeaseWrite,
    pub(super) work: Work,
    /// For how long it has been free, in credited time; `None`: it is not.
    free_ms: Option<u64>,
    /// When we handed it over, until its new holder works on it as far as known.
    handed_over_ms: Option<u64>,
}

impl Shard {
    pub(super) fn new(id: ShardId) -> Self {
        Self {
            record: LeaseRecord::default(),
            write: LeaseWrite::default(),
            work: Work::new(id),
            free_ms: None,
            handed_over_ms: None,
        }
    }

    pub(super) fn id(&self) -> ShardId {
        self.work.shard()
    }

    /// What is known of its Lease.
    pub(super) fn record(&self) -> &LeaseRecord {
        &self.record
    }

    pub(super) fn lease(&self) -> Option<&ShardLease> {
        self.record.lease()
    }

    /// The planned next holder according to the Lease.
    pub(super) fn successor(&self) -> Option<&Successor> {
        self.record.successor()
    }

    pub(super) fn stage(&self) -> Stage {
        self.work.stage()
    }

    /// Whether leaving has to wait for this shard: we hold it, or a write of ours is not settled.
    pub(super) fn keeps_us(&self) -> bool {
        self.stage() != Stage::Idle || self.write.is_pending()
    }

    /// Whether a write is not settled, or the Lease has to be read before the next one.
    pub(super) fn is_unsettled(&self) -> bool {
        self.write.is_pending() || self.record.must_read()
    }

    /// Whether a write of the Lease is in flight.
    pub(super) fn is_write_in_flight(&self) -> bool {
        self.write.is_in_flight()
    }

    /// Whether we handed it over and its new holder does not work on it as far as known.
    pub(super) fn is_handed_over(&self) -> bool {
        self.handed_over_ms.is_some()
    }

    /// Takes in the epoch of its entry; `most_ms`: for how long the new holder's is awaited.
    pub(super) fn observe_entry(&mut self, entry: Option<u32>, now_ms: u64, most_ms: u64) {
        let epoch = self.lease().map(|lease| lease.epoch);
        self.handed_over_ms = self
            .handed_over_ms
            .filter(|since_ms| entry < epoch && now_ms.saturating_sub(*since_ms) < most_ms);
    }

    /// Whether this write of the Lease is in flight.
    pub(super) fn awaits(&self, id: WriteId) -> bool {
        self.write.awaits(id)
    }

    /// Whether the API server has not just rejected a write of the Lease.
    pub(super) fn may_write(&self, now_ms: u64) -> bool {
        self.write.may_write(now_ms)
    }

    /// Whether only an event can change anything here: its holder is alive, it is neither planned to
    /// move nor being moved, and nothing is to be found out about its Lease.
    pub(super) fn is_at_rest(&self, us: Us<'_>, members: &Members) -> bool {
        let Some(lease) = self.record.lease().filter(|_| self.record.is_at_rest()) else {
            return false;
        };
        let is_ours = us.is_named_by(&lease.holder, &lease.incarnation);
        let is_in_place = match self.stage() {
            Stage::Idle => !is_ours && lease.holder != us.identity(),
            Stage::Running => is_ours,
            Stage::Listing | Stage::Draining(_) | Stage::Drained | Stage::Halted => false,
        };
        let member = members.get(&lease.holder);
        is_in_place
            && member.is_some_and(|m| is_live_holder(lease.as_holder(), m.as_holder()))
            && lease.shards == us.count()
            && lease.successor.is_none()
            && self.free_ms.is_none()
            && !self.write.is_pending()
            && self.write.may_write(us.now_ms)
    }

    /// The Lease as it is now; a late answer is ignored.
    pub(super) fn observe(&mut self, lease: ShardLease) {
        if self.record.observe(lease)
            && let Some(lease) = self.record.lease()
        {
            self.write.observe(lease);
        }
    }

    pub(super) fn observe_deleted(&mut self, uid: &str) {
        self.record.observe_deleted(uid);
    }

    /// Takes in what a complete list shows of this Lease.
    pub(super) fn listed(&mut self, lease: Option<ShardLease>) {
        match lease {
            Some(lease) => {
                self.record.compare_with_list(&lease);
                self.observe(lease);
            }
            None => self.record.not_listed(),
        }
    }

    /// Adds time in which every change could have been observed.
    pub(super) fn credit(&mut self, elapsed_ms: u64) {
        if let Some(free_ms) = &mut self.free_ms {
            *free_ms = free_ms.saturating_add(elapsed_ms);
        }
        self.record.credit(elapsed_ms);
    }

    /// Starts or stops counting for how long the shard is free, and returns it.
    pub(super) fn count_free(&mut self, is_free: bool) -> u64 {
        self.free_ms = is_free.then(|| self.free_ms.unwrap_or(0));
        self.free_ms.unwrap_or(0)
    }

    /// The outcome of a write of the Lease.
    pub(super) fn written(&mut self, now_ms: u64, result: WriteResult<ShardLease>, retry_ms: u64) {
        match result {
            WriteResult::Done(lease) => {
                let Some(intent) = self.write.succeeded() else {
                    return;
                };
                let (epoch, uid) = (lease.epoch, lease.version.uid.clone());
                self.observe(lease);
                if self.record.lease().is_some() {
                    self.carry_on(now_ms, intent, epoch, uid);
                }
            }
            WriteResult::Conflict => {
                if let Some(lost) = self.write.lost(retry_ms) {
                    if lost.indeterminate {
                        self.record
                            .remember_indeterminate(lost.hands_over, lost.epoch);
                    }
                    self.record.read_at(now_ms + lost.pause_ms);
                }
            }
            WriteResult::Rejected => self.write.rejected(now_ms, retry_ms),
            WriteResult::Unknown => {
                self.write
                    .unanswered(now_ms, retry_ms, self.record.version());
            }
        }
    }

    /// A write of ours succeeded.
    fn carry_on(&mut self, now_ms: u64, intent: Intent, epoch: u32, uid: String) {
        match intent {
            Intent::Take(reason) => {
                let waited_ms = self.free_ms.unwrap_or(0);
                self.work.taken(epoch, uid, reason, waited_ms);
            }
            Intent::Raise => self.work.raised(epoch),
            Intent::HandOver(_) => self.handed_over_ms = Some(now_ms),
            Intent::Name(_) | Intent::Vacate => {}
        }
    }

    /// The answer to a read of the Lease.
    pub(super) fn read(
        &mut self,
        now_ms: u64,
        read: Result<Option<ShardLease>, ReadFailed>,
        retry_ms: u64,
    ) {
        if let Some(lease) = self.record.read(now_ms, read, retry_ms) {
            self.observe(lease);
        }
    }

    /// Whether the Lease was read since an entry ahead of it, of this epoch, was observed. If not, it
    /// is read.
    pub(super) fn has_read_ahead(&mut self, ahead: Option<u32>) -> bool {
        self.record.has_read_ahead(ahead)
    }

    /// The holder whose death is to be confirmed, unless that has been requested already.
    pub(super) fn holder_to_confirm(&mut self) -> Option<String> {
        self.record.holder_to_confirm()
    }

    /// The holder's member Lease was read after the shard Lease.
    pub(super) fn confirmed(&mut self, identity: &str, confirmation: &Confirmation) {
        self.record.confirmed(identity, confirmation);
    }

    /// Our incarnation is dead: its writes are not repeated.
    pub(super) fn forget_requests(&mut self) {
        self.write.forget();
        self.record.forget_read();
    }

    /// Reads the Lease, and repeats an unanswered write of it, when that is due.
    pub(super) fn read_and_retry(&mut self, us: Us<'_>, out: &mut Outbox) {
        if self.record.begin_read(us.now_ms) {
            out.push(Action::ReadShard(self.id()));
        }
        self.send(us, out);
    }

    /// Writes the Lease.
    pub(super) fn write(&mut self, us: Us<'_>, intent: Intent, epoch: u32, out: &mut Outbox) {
        let base = self.record.version().cloned();
        self.write.begin(intent, epoch, base);
        self.send(us, out);
    }

    fn send(&mut self, us: Us<'_>, out: &mut Outbox) {
        let (id, planned) = (self.id(), self.record.successor());
        if let Some((write_id, write)) = self.write.due(us, id, planned, || out.next_id()) {
            out.push(Action::WriteShard(write_id, write));
        }
    }

    /// Starts watching a shard whose Lease names us.
    pub(super) fn start(&mut self, out: &mut Outbox) {
        if let Some(lease) = self.record.lease() {
            self.work.start(lease, out);
            self.free_ms = None;
        }
    }
}
