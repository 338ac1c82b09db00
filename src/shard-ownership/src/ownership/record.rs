//! The record of one shard: its stage, a pending write, our right, and a deleted Lease.

use super::{Reason, WriteId};
use crate::lease::{ShardLease, Successor, Version};

/// The stage of our work on a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// No work.
    Idle,
    /// It is ours, and its objects are being listed.
    Listing,
    /// It is ours and being worked on.
    Running,
    /// It is being handed over: running work ends. The value is the time when that began.
    Draining(u64),
    /// No work runs any more; the Lease still names us. Work can go on.
    Drained,
    /// As `Drained`, but work was cancelled or never started: it can only be started again.
    Halted,
}

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

/// A write whose effect is not known yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pending {
    pub(super) intent: Intent,
    pub(super) epoch: u32,
    pub(super) base: Option<Version>,
    /// The request in flight, if there is one.
    pub(super) id: Option<WriteId>,
    /// When to send again, if no request is in flight.
    pub(super) again_ms: u64,
    /// Whether an earlier request of it had no answer, and may arrive yet.
    pub(super) indeterminate: bool,
}

impl Pending {
    /// Whether the Lease is no longer the version that this write compares with.
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
    /// Uid of the table under which work started, once it did.
    pub(super) table: Option<String>,
}

/// The record of a deleted Lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Memory {
    pub(super) holder: String,
    pub(super) incarnation: String,
    pub(super) epoch: u32,
    pub(super) version: Version,
    /// Whether the watch showed its deletion: then no change of it is unknown.
    pub(super) is_complete: bool,
    /// Whether we may have given it away just before it was deleted.
    pub(super) handed_over: bool,
}
