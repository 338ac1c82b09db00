//! The writes of one shard's Lease: at most one at a time, repeated until its effect is known.

use super::us::Us;
use super::{Reason, WriteId};
use crate::hash::ShardId;
use crate::lease::{ShardLease, ShardWrite, Successor, Version};

/// The purpose of a write of the shard Lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Intent {
    /// Make it ours.
    Take(Reason),
    /// Keep it, under an epoch above the one in the table.
    Raise,
    /// Name the next holder, so that it can prepare.
    Name(Successor),
    /// Make it the successor's.
    HandOver(Successor),
    /// Make it vacant.
    Vacate,
}

impl Intent {
    fn hands_over(&self) -> bool {
        match self {
            Self::HandOver(_) | Self::Vacate => true,
            Self::Take(_) | Self::Raise | Self::Name(_) => false,
        }
    }
}

/// A write whose effect is not known yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pending {
    intent: Intent,
    epoch: u32,
    base: Option<Version>,
    /// The request in flight, if there is one.
    id: Option<WriteId>,
    /// When to send again, if no request is in flight.
    again_ms: u64,
    /// Whether an earlier request of it had no answer, and may arrive yet.
    indeterminate: bool,
}

impl Pending {
    /// Whether the Lease is no longer the version that this write compares with.
    fn is_outdated_by(&self, version: &Version) -> bool {
        self.base.as_ref() != Some(version)
    }

    fn request(&self, us: Us<'_>, shard: ShardId, planned: Option<&Successor>) -> ShardWrite {
        let (holder, incarnation) = match &self.intent {
            Intent::Take(_) | Intent::Raise | Intent::Name(_) => (us.identity(), us.incarnation()),
            Intent::HandOver(successor) => (&*successor.identity, &*successor.incarnation),
            Intent::Vacate => ("", ""),
        };
        let successor = match &self.intent {
            Intent::Name(successor) => Some(successor.clone()),
            Intent::Raise => planned.cloned(),
            Intent::Take(_) | Intent::HandOver(_) | Intent::Vacate => None,
        };
        ShardWrite {
            shard,
            base: self.base.clone(),
            holder: holder.to_owned(),
            incarnation: incarnation.to_owned(),
            epoch: self.epoch,
            successor,
        }
    }
}

/// A write that lost its compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    /// Whether an earlier request of it may have won.
    pub(super) indeterminate: bool,
    pub(super) hands_over: bool,
    pub(super) epoch: u32,
    /// How long to wait before the Lease is read.
    pub(super) pause_ms: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct LeaseWrite {
    pending: Option<Pending>,
    /// Conflicts since the last write that arrived.
    conflicts: u32,
    /// Earliest time of the next write: the API server rejected one permanently.
    not_before_ms: u64,
}

impl LeaseWrite {
    /// Whether the effect of a write is not known.
    pub(super) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Whether a request is in flight.
    pub(super) fn is_in_flight(&self) -> bool {
        self.pending.as_ref().is_some_and(|p| p.id.is_some())
    }

    /// Whether this request is in flight.
    pub(super) fn awaits(&self, id: WriteId) -> bool {
        self.pending.as_ref().is_some_and(|p| p.id == Some(id))
    }

    /// Whether the API server has not just rejected a write.
    pub(super) fn may_write(&self, now_ms: u64) -> bool {
        now_ms >= self.not_before_ms
    }

    /// A new write, from this version of the Lease (none: create). It is due at once.
    pub(super) fn begin(&mut self, intent: Intent, epoch: u32, base: Option<Version>) {
        self.pending = Some(Pending {
            intent,
            epoch,
            base,
            id: None,
            again_ms: 0,
            indeterminate: false,
        });
    }

    /// The request to send now, if one is due; it counts as sent under the number that `next_id`
    /// returns. `planned` is the next holder that the Lease names.
    pub(super) fn due(
        &mut self,
        us: Us<'_>,
        shard: ShardId,
        planned: Option<&Successor>,
        next_id: impl FnOnce() -> WriteId,
    ) -> Option<(WriteId, ShardWrite)> {
        let due = |p: &&mut Pending| p.id.is_none() && us.now_ms >= p.again_ms;
        let pending = self.pending.as_mut().filter(due)?;
        let id = next_id();
        pending.id = Some(id);
        Some((id, pending.request(us, shard, planned)))
    }

    /// Requests that were sent from an older version cannot take effect any more: if none is in
    /// flight, there is nothing to wait for.
    pub(super) fn observe(&mut self, lease: &ShardLease) {
        self.pending
            .take_if(|p| p.id.is_none() && p.is_outdated_by(&lease.version));
    }

    pub(super) fn forget(&mut self) {
        self.pending = None;
    }

    /// The request was carried out. Returns its purpose.
    pub(super) fn succeeded(&mut self) -> Option<Intent> {
        self.conflicts = 0;
        self.pending.take().map(|pending| pending.intent)
    }

    /// The request lost its compare-and-swap.
    pub(super) fn lost(&mut self, retry_ms: u64) -> Option<Lost> {
        let pending = self.pending.take()?;
        // Immediately after a first conflict; then no faster than any other retry.
        let pause_ms = if self.conflicts == 0 { 0 } else { retry_ms };
        self.conflicts += 1;
        Some(Lost {
            indeterminate: pending.indeterminate,
            hands_over: pending.intent.hands_over(),
            epoch: pending.epoch,
            pause_ms,
        })
    }

    /// The request was rejected permanently.
    pub(super) fn rejected(&mut self, now_ms: u64, retry_ms: u64) {
        let again_ms = now_ms + 5 * retry_ms;
        match &mut self.pending {
            // This one changed nothing; an earlier one may still.
            Some(pending) if pending.indeterminate => {
                pending.id = None;
                pending.again_ms = again_ms;
            }
            Some(_) => {
                self.pending = None;
                self.not_before_ms = again_ms;
            }
            None => {}
        }
    }

    /// The request was not answered. `now_is` is the version of the Lease, if there is one.
    pub(super) fn unanswered(&mut self, now_ms: u64, retry_ms: u64, now_is: Option<&Version>) {
        // The Lease changed meanwhile, by this write or by another: there is nothing to repeat.
        self.pending
            .take_if(|pending| now_is.is_some_and(|version| pending.is_outdated_by(version)));
        if let Some(pending) = &mut self.pending {
            pending.id = None;
            pending.again_ms = now_ms + retry_ms;
            pending.indeterminate = true;
        }
    }
}
