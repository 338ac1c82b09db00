//! What is recorded of one shard: how far we are with it, a write under way, our right, a Lease that is gone.

use super::{Reason, WriteId};
use crate::core::lease::{ShardLease, Successor, Version};

/// What we do with a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// Nothing.
    Idle,
    /// It is ours, and its objects are being listed.
    Listing,
    /// It is ours and being worked on.
    Running,
    /// It is being given up: work ends. The time is when that began.
    Draining(u64),
    /// No work runs any more; the Lease still names us. Work can go on.
    Drained,
    /// As when drained, but work was cancelled or never began: it can only be started anew.
    Halted,
}

/// What a write of the shard Lease is to bring about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Intent {
    /// Make it ours.
    Take(Reason),
    /// Keep it, under an epoch above the one in the table.
    Raise,
    /// Say who is to have it next, so that the one can prepare.
    Name(Successor),
    /// Make it the successor's.
    HandOver(Successor),
    /// Make it nobody's.
    Vacate,
}

/// A write whose effect is not known yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pending {
    pub(super) intent: Intent,
    pub(super) epoch: u32,
    pub(super) base: Option<Version>,
    /// The request under way, if one is.
    pub(super) id: Option<WriteId>,
    /// When to send again, if none is.
    pub(super) again_ms: u64,
    /// Whether an earlier request of it had no answer, and may arrive yet.
    pub(super) indeterminate: bool,
}

impl Pending {
    /// Whether the Lease is no more the one that this write compares with.
    pub(super) fn is_outdated_by(&self, lease: &ShardLease) -> bool {
        self.base.as_ref() != Some(&lease.version)
    }
}

/// The right under which we work on the shard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Held {
    pub(super) epoch: u32,
    pub(super) uid: String,
    pub(super) reason: Reason,
    pub(super) waited_ms: u64,
    /// Uid of the table under which work began, once it did.
    pub(super) table: Option<String>,
}

/// What is remembered of a Lease that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Memory {
    pub(super) holder: String,
    pub(super) incarnation: String,
    pub(super) epoch: u32,
    pub(super) version: Version,
    /// Whether the watch showed the end of it: then nothing happened to it that we do not know.
    pub(super) is_complete: bool,
    /// Whether we may have given it away just before it was deleted.
    pub(super) handed_over: bool,
}
