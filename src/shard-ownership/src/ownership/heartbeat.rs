//! The heartbeat: renewal of our own member Lease, and until when it entitles us to act.

use std::collections::{BTreeSet, VecDeque};

use super::{ReadFailed, Settings, WriteId, WriteResult};
use crate::hash::ShardId;
use crate::lease::{MemberChange, MemberLease, MemberWrite, Version};

/// Maximum number of renewals with unknown outcome that are remembered. At 5 per second this covers
/// more than a lifetime; an older one could not extend the validity any more.
const UNSETTLED_MAX: usize = 64;

/// The result of reading our own Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnLease {
    /// It is ours, or free for us.
    Usable,
    /// Our incarnation was vacated or replaced: it is dead and never returns.
    Dead,
    /// Another process uses our identity.
    Taken,
}

/// What a renewal announces to the other members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Announcement {
    /// Whether we are about to leave.
    pub(super) draining: bool,
    /// Whether we may not write the shard table.
    pub(super) barred: bool,
    /// Shards whose objects we have listed completely.
    pub(super) warm: BTreeSet<ShardId>,
}

/// A renewal that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Renewal {
    number: u64,
    sent_ms: u64,
}

/// A renewal whose answer is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct InFlight {
    id: WriteId,
    sent_ms: u64,
}

/// Renewal of our own member Lease by compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Heartbeat {
    incarnation: String,
    /// Whether the Lease has ever contained our incarnation.
    established: bool,
    base: Option<Version>,
    /// Whether the Lease of that version carries a user's request to drain.
    drain_requested: bool,
    /// A create request of ours was not answered. It names no version, and may still take effect
    /// whenever there is no Lease.
    may_return: bool,
    renewal: u64,
    /// Renewals with unknown outcome.
    unsettled: VecDeque<Renewal>,
    in_flight: Option<InFlight>,
    must_read: bool,
    reading: bool,
    next_send_ms: u64,
    last_success_ms: Option<u64>,
    last_failed: bool,
    valid_until_ms: u64,
    failures: u64,
    consecutive_failures: u64,
    /// Whether our incarnation is dead, and the next one is not there yet.
    is_dead: bool,
    /// What the last renewal announced to the other members.
    announced: Announcement,
    /// Until when we may act, as last reported to the caller.
    reported_until_ms: u64,
}

impl Heartbeat {
    pub(super) fn new(incarnation: String, now_ms: u64) -> Self {
        Self {
            incarnation,
            established: false,
            base: None,
            drain_requested: false,
            may_return: false,
            renewal: 0,
            unsettled: VecDeque::new(),
            in_flight: None,
            // Our identity may have a Lease already: read before writing.
            must_read: true,
            reading: false,
            next_send_ms: now_ms,
            last_success_ms: None,
            last_failed: false,
            valid_until_ms: 0,
            failures: 0,
            consecutive_failures: 0,
            is_dead: false,
            announced: Announcement::default(),
            reported_until_ms: 0,
        }
    }

    /// The next life of the same identity.
    pub(super) fn restart(&self, incarnation: String, now_ms: u64) -> Self {
        Self {
            may_return: self.may_return,
            announced: self.announced.clone(),
            reported_until_ms: self.reported_until_ms,
            ..Self::new(incarnation, now_ms)
        }
    }

    pub(super) fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// Until when we may act, if that differs from what was reported last.
    pub(super) fn changed_validity(&mut self) -> Option<u64> {
        let until_ms = if self.is_dead { 0 } else { self.valid_until_ms };
        let changed = until_ms != self.reported_until_ms;
        self.reported_until_ms = until_ms;
        changed.then_some(until_ms)
    }

    pub(super) fn is_valid(&self, now_ms: u64) -> bool {
        now_ms < self.valid_until_ms
    }

    pub(super) fn last_success_ms(&self) -> Option<u64> {
        self.last_success_ms
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// Whether the API server currently hears us, so that the silence of others is meaningful.
    pub(super) fn is_heard(&self, now_ms: u64, tick_max_ms: u64) -> bool {
        let waiting_long = self
            .in_flight
            .is_some_and(|write| now_ms.saturating_sub(write.sent_ms) > tick_max_ms);
        self.is_valid(now_ms) && !self.last_failed && !waiting_long
    }

    /// Whether nothing but the next renewal is to be done for it.
    pub(super) fn is_at_rest(&self, now_ms: u64, tick_max_ms: u64) -> bool {
        self.is_heard(now_ms, tick_max_ms) && !self.is_dead && !self.must_read && !self.reading
    }

    /// Until when time alone changes nothing: the next renewal, a renewal that was not answered in
    /// time, or the end of our validity.
    pub(super) fn next_change_ms(&self, tick_max_ms: u64) -> u64 {
        let next_ms = match self.in_flight {
            Some(write) => write.sent_ms + tick_max_ms,
            None => self.next_send_ms,
        };
        next_ms.min(self.valid_until_ms)
    }

    /// The write that ends our Lease when we leave, if there is one.
    pub(super) fn ending(&self, identity: &str) -> Option<MemberWrite> {
        let base = self.base.clone()?;
        // A late create request would find no Lease, and we would seem to be alive. A dead Lease
        // blocks it until the fleet leader removes it.
        let change = if self.may_return {
            MemberChange::Vacate
        } else {
            MemberChange::Delete
        };
        Some(MemberWrite {
            identity: identity.to_owned(),
            base: Some(base),
            change,
        })
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Our incarnation is dead: nothing may start any more, not even before the next incarnation.
    /// Returns whether this is news.
    pub(super) fn end(&mut self) -> bool {
        self.valid_until_ms = 0;
        !std::mem::replace(&mut self.is_dead, true)
    }

    /// Whether our incarnation is dead, and the next one is not there yet.
    pub(super) fn is_dead(&self) -> bool {
        self.is_dead
    }

    /// Whether a read of our own Lease is in flight.
    pub(super) fn is_reading(&self) -> bool {
        self.reading
    }

    /// Renews now instead of waiting for its turn, unless the API server just refused us.
    pub(super) fn renew_now(&mut self, now_ms: u64) {
        if !self.last_failed {
            self.next_send_ms = self.next_send_ms.min(now_ms);
        }
    }

    /// Whether our Lease must be read now.
    pub(super) fn wants_read(&mut self, now_ms: u64) -> bool {
        let wants = self.must_read && !self.reading && now_ms >= self.next_send_ms;
        if wants {
            self.reading = true;
        }
        wants
    }

    /// Whether the others have to know before the next heartbeat: a holder waits until a shard is warm, must not hand
    /// over one that is warm no longer, and hands nothing to a replica that is barred. That a warm shard became ours
    /// can wait, and while shards are handed over the API server has enough to do.
    pub(super) fn is_urgent(&self, next: &Announcement, is_ours: impl Fn(ShardId) -> bool) -> bool {
        let mut cooled = self.announced.warm.difference(&next.warm);
        next.barred != self.announced.barred
            || !next.warm.is_subset(&self.announced.warm)
            || cooled.any(|id| !is_ours(*id))
    }

    /// The renewal that is due, if one is; it counts as sent under the number that `next_id` returns.
    pub(super) fn due(
        &mut self,
        now_ms: u64,
        next_id: impl FnOnce() -> WriteId,
        announcement: Announcement,
        identity: &str,
    ) -> Option<(WriteId, MemberWrite)> {
        if self.must_read || self.in_flight.is_some() || now_ms < self.next_send_ms {
            return None;
        }
        let id = next_id();
        self.renewal += 1;
        self.unsettled.push_back(Renewal {
            number: self.renewal,
            sent_ms: now_ms,
        });
        if self.unsettled.len() > UNSETTLED_MAX {
            self.unsettled.pop_front();
        }
        self.in_flight = Some(InFlight {
            id,
            sent_ms: now_ms,
        });
        self.announced = announcement;
        let write = MemberWrite {
            identity: identity.to_owned(),
            base: self.base.clone(),
            change: MemberChange::Renew {
                incarnation: self.incarnation.clone(),
                renewal: self.renewal,
                draining: self.announced.draining,
                barred: self.announced.barred,
                drain_requested: self.drain_requested,
                warm: self.announced.warm.clone(),
            },
        };
        Some((id, write))
    }

    /// Takes in the outcome of a write of ours; returns false if it was not ours.
    pub(super) fn written(
        &mut self,
        now_ms: u64,
        id: WriteId,
        result: &WriteResult<Option<MemberLease>>,
        settings: &Settings,
    ) -> bool {
        let Some(InFlight { sent_ms, .. }) = self.in_flight.take_if(|write| write.id == id) else {
            return false;
        };
        match result {
            WriteResult::Done(Some(lease)) => {
                self.adopt(now_ms, lease, settings);
                self.next_send_ms = sent_ms + settings.renew_ms;
            }
            // No renewal deletes the Lease: a read shows what it is.
            WriteResult::Done(None) | WriteResult::Conflict => {
                self.must_read = true;
                self.failed(now_ms, self.conflict_pause_ms(settings));
            }
            WriteResult::Unknown => {
                self.may_return |= self.base.is_none();
                self.failed(now_ms, settings.retry_ms);
            }
            WriteResult::Rejected => {
                self.unsettled.retain(|sent| sent.number != self.renewal);
                self.failed(now_ms, settings.retry_ms);
            }
        }
        true
    }

    fn failed(&mut self, now_ms: u64, again_in_ms: u64) {
        self.failures += 1;
        self.consecutive_failures += 1;
        self.last_failed = true;
        self.next_send_ms = now_ms + again_in_ms;
    }

    /// Immediately after a first conflict; then no faster than any other retry.
    fn conflict_pause_ms(&self, settings: &Settings) -> u64 {
        if self.consecutive_failures == 0 {
            0
        } else {
            settings.retry_ms
        }
    }

    /// The Lease contains one of our renewals: we may act for a lifetime less the margin, counted
    /// from the instant before that renewal was sent.
    fn adopt(&mut self, now_ms: u64, lease: &MemberLease, settings: &Settings) {
        self.base = Some(lease.version.clone());
        self.drain_requested = lease.drain_requested;
        self.established = true;
        self.last_failed = false;
        self.consecutive_failures = 0;
        self.last_success_ms = Some(now_ms);
        let arrived = |sent: &&Renewal| sent.number == lease.renewal;
        if let Some(sent) = self.unsettled.iter().find(arrived) {
            let until_ms = sent.sent_ms + settings.lease_ms.saturating_sub(settings.margin_ms);
            self.valid_until_ms = self.valid_until_ms.max(until_ms);
        }
        // Requests that were sent from an older version cannot take effect any more.
        self.unsettled.clear();
    }

    /// Whether the Lease ever named our incarnation, as far as known: an unanswered renewal may
    /// have arrived, and others may know our incarnation as a dead one.
    fn was_in_force(&self) -> bool {
        self.established || !self.unsettled.is_empty()
    }

    /// Takes in a fresh read of our own Lease (`Err`: it could not be read).
    pub(super) fn read(
        &mut self,
        now_ms: u64,
        read: Result<Option<&MemberLease>, ReadFailed>,
        settings: &Settings,
        others_silent: bool,
    ) -> OwnLease {
        self.reading = false;
        let Ok(found) = read else {
            self.failed(now_ms, settings.retry_ms);
            return OwnLease::Usable;
        };
        self.next_send_ms = now_ms;
        let Some(lease) = found else {
            if self.was_in_force() {
                return OwnLease::Dead;
            }
            self.base = None;
            self.drain_requested = false;
            self.must_read = false;
            return OwnLease::Usable;
        };
        if !lease.is_vacated() && lease.incarnation == self.incarnation {
            self.adopt(now_ms, lease, settings);
            self.must_read = false;
            return OwnLease::Usable;
        }
        if self.was_in_force() {
            return OwnLease::Dead;
        }
        let same_pod = !settings.pod_uid.is_empty() && lease.pod_uid == settings.pod_uid;
        if lease.is_vacated() || same_pod || others_silent {
            self.base = Some(lease.version.clone());
            self.drain_requested = lease.drain_requested;
            self.must_read = false;
            return OwnLease::Usable;
        }
        self.next_send_ms = now_ms + settings.renew_ms;
        OwnLease::Taken
    }
}
