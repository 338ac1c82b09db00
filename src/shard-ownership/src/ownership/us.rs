//! This replica at the time of an event.

use super::departure::Departure;
use super::heartbeat::Heartbeat;
use super::protocol::Settings;
use crate::lease::{MemberLease, Successor};

/// What we are and may do now: input of nearly every rule, and changed by none that decides on
/// shards.
#[derive(Clone, Copy, Debug)]
pub(super) struct Us<'a> {
    pub(super) now_ms: u64,
    pub(super) settings: &'a Settings,
    pub(super) heartbeat: &'a Heartbeat,
    pub(super) departure: &'a Departure,
}

impl<'a> Us<'a> {
    pub(super) fn identity(&self) -> &'a str {
        &self.settings.identity
    }

    pub(super) fn incarnation(&self) -> &'a str {
        self.heartbeat.incarnation()
    }

    /// Our number of shards.
    pub(super) fn count(&self) -> u16 {
        self.settings.shards.get()
    }

    /// Whether we may act.
    pub(super) fn is_valid(&self) -> bool {
        self.heartbeat.is_valid(self.now_ms)
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.departure.has_begun()
    }

    /// Whether this names us, and not one of our former incarnations.
    pub(super) fn is_named_by(&self, identity: &str, incarnation: &str) -> bool {
        identity == self.identity() && incarnation == self.incarnation()
    }

    pub(super) fn is_successor(&self, successor: &Successor) -> bool {
        self.is_named_by(&successor.identity, &successor.incarnation)
    }

    /// Whether this is our own Lease, not one of a former incarnation that left as well, and
    /// announces that we leave.
    pub(super) fn is_announced_to_leave(&self, lease: &MemberLease) -> bool {
        lease.draining && self.is_named_by(&lease.identity, &lease.incarnation)
    }

    /// Whether this Lease of ours shows that nothing is to be given to us: we leave, or may not write
    /// the shard table.
    pub(super) fn is_announced_to_receive_nothing(&self, lease: &MemberLease) -> bool {
        (lease.draining || lease.barred) && self.is_named_by(&lease.identity, &lease.incarnation)
    }
}
