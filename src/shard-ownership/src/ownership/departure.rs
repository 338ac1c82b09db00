//! Leaving the fleet: from the request to leave until our member Lease is gone.

use super::{WriteId, WriteResult};
use crate::lease::MemberLease;

/// Longest wait for our watch to show that we leave.
const SHOWN_MS_MAX: u64 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Progress {
    No,
    /// Draining is being announced and shards are handed back.
    HandingBack,
    /// The member Lease is being deleted, or vacated.
    Ending(WriteId),
    Done,
}

/// How far we are with leaving.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Departure {
    progress: Progress,
    since_ms: u64,
    /// The watch has shown that we leave, and so everything that was written before.
    is_shown: bool,
    /// Earliest time of the next attempt to end our Lease.
    end_again_ms: u64,
}

impl Departure {
    pub(super) const fn new() -> Self {
        Self {
            progress: Progress::No,
            since_ms: 0,
            is_shown: false,
            end_again_ms: 0,
        }
    }

    /// Starts to leave; false if we do already.
    pub(super) fn begin(&mut self, now_ms: u64) -> bool {
        let begins = self.progress == Progress::No;
        if begins {
            self.progress = Progress::HandingBack;
            self.since_ms = now_ms;
        }
        begins
    }

    /// Whether we were asked to leave.
    pub(super) fn has_begun(&self) -> bool {
        self.progress != Progress::No
    }

    /// Whether shards are being handed back, and our member Lease is still to be ended.
    pub(super) fn is_handing_back(&self) -> bool {
        self.progress == Progress::HandingBack
    }

    /// Whether our member Lease is not to be renewed any more.
    pub(super) fn has_ended_renewals(&self) -> bool {
        match self.progress {
            Progress::No | Progress::HandingBack => false,
            Progress::Ending(_) | Progress::Done => true,
        }
    }

    /// How long ago we were asked to leave.
    pub(super) fn lasted_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.since_ms)
    }

    /// Our watch showed our member Lease with the announcement that we leave.
    pub(super) fn shown(&mut self) {
        self.is_shown = true;
    }

    /// Whether our watch has shown the members as they were when we were asked to leave, or has had
    /// long enough.
    pub(super) fn is_shown(&self, now_ms: u64) -> bool {
        self.is_shown || !self.is_fresh(now_ms)
    }

    /// Whether others may not know yet that we leave.
    pub(super) fn is_fresh(&self, now_ms: u64) -> bool {
        self.lasted_ms(now_ms) < SHOWN_MS_MAX
    }

    /// Whether the member Lease may be ended now.
    pub(super) fn may_end(&self, now_ms: u64) -> bool {
        now_ms >= self.end_again_ms
    }

    /// The write that ends our member Lease was sent.
    pub(super) fn ending(&mut self, id: WriteId) {
        self.progress = Progress::Ending(id);
    }

    /// Everything was handed back, and nothing is left to delete.
    pub(super) fn done(&mut self) {
        self.progress = Progress::Done;
    }

    /// The outcome of a write. Returns whether it ended our member Lease, so that we may exit.
    pub(super) fn written(
        &mut self,
        now_ms: u64,
        id: WriteId,
        result: &WriteResult<Option<MemberLease>>,
        retry_ms: u64,
    ) -> bool {
        if self.progress != Progress::Ending(id) {
            return false;
        }
        match result {
            // Deleted, or no longer ours: nothing left to delete.
            WriteResult::Done(_) | WriteResult::Conflict | WriteResult::Rejected => {
                self.progress = Progress::Done;
                true
            }
            WriteResult::Unknown => {
                self.end_again_ms = now_ms + retry_ms;
                self.progress = Progress::HandingBack;
                false
            }
        }
    }
}
