//! Shard ownership as one state machine: from the state of the Leases to what this replica may do.
//!
//! Events go in ([`Event`]), actions come out ([`Action`]); time is an argument. How to drive it, what
//! it guarantees and what it assumes: see the [crate].
//!
//! ```text
//!                       Ownership: assigns events to its parts, then evaluates
//!   Heartbeat           our own member Lease, and until when it entitles us to act
//!   Departure           how far we are with leaving
//!   IdentityConflict    another process under our identity
//!   Membership          the other replicas, their ranking, and doubts about them
//!   TableView           the shard table: what it grants, and its writes
//!   Shard               one for each shard:
//!     LeaseRecord         what is known of its Lease
//!     LeaseWrite          the write of it that is not settled
//!     Work                what we do in it
//!   Evaluation          the rules, shard by shard; borrows the parts above
//!   Outbox              the actions of the event in progress
//! ```

mod departure;
mod evaluation;
mod heartbeat;
mod identity;
mod lease_record;
mod lease_write;
mod membership;
mod others;
mod outbox;
mod protocol;
mod shard;
mod table_view;
#[cfg(test)]
mod tests;
mod us;
mod work;

use std::collections::BTreeMap;

use self::departure::Departure;
use self::evaluation::Evaluation;
use self::heartbeat::{Announcement, Heartbeat, OwnLease};
use self::identity::IdentityConflict;
use self::membership::Membership;
use self::outbox::Outbox;
pub use self::protocol::{Action, Event, ReadFailed, Reason, Settings, WriteId, WriteResult};
use self::shard::Shard;
use self::table_view::{Claim, TableView};
use self::us::Us;
use self::work::Stage;
use super::hash::ShardId;
use super::lease::{MemberLease, ShardLease};
use super::members::Members;

/// Time between two ticks while something is under way.
const TICK_MS: u64 = 100;

/// The state machine of one replica. After every event it evaluates all shards.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ownership {
    settings: Settings,
    heartbeat: Heartbeat,
    membership: Membership,
    shards: BTreeMap<ShardId, Shard>,
    identity_conflict: IdentityConflict,
    synced: bool,
    table: TableView,
    departure: Departure,
    last_tick_ms: u64,
    out: Outbox,
}

impl Ownership {
    /// A replica that holds nothing yet.
    #[must_use]
    pub fn new(settings: Settings, incarnation: String, now_ms: u64) -> Self {
        let count = settings.shards;
        Self {
            heartbeat: Heartbeat::new(incarnation, now_ms),
            membership: Membership::new(count, now_ms),
            shards: count.shards().map(|id| (id, Shard::new(id))).collect(),
            identity_conflict: IdentityConflict::default(),
            synced: false,
            table: TableView::new(count),
            departure: Departure::new(),
            last_tick_ms: now_ms,
            out: Outbox::default(),
            settings,
        }
    }

    /// Processes one event and returns the resulting actions.
    pub fn handle(&mut self, now_ms: u64, event: Event) -> Vec<Action> {
        // Before the event: time that has passed until now says nothing about what the event shows.
        self.count_time(now_ms);
        match event {
            Event::Tick => {}
            Event::Listed { members, shards } => self.listed(now_ms, members, shards),
            Event::MemberObserved(lease) => {
                let mine = lease.identity == self.settings.identity;
                if mine && (lease.is_vacated() || lease.incarnation != self.heartbeat.incarnation())
                {
                    self.heartbeat.renew_now(now_ms);
                }
                if self.us(now_ms).is_announced_to_leave(&lease) {
                    self.departure.shown();
                }
                self.membership.observe(lease);
            }
            Event::MemberDeleted { identity, uid } => {
                if identity == self.settings.identity {
                    // Seen sooner here than by the next renewal.
                    self.heartbeat.renew_now(now_ms);
                }
                self.membership.observe_deleted(&identity, &uid);
            }
            Event::ShardObserved(lease) => {
                self.with_shard(lease.shard, |shard| shard.observe(lease))
            }
            Event::ShardDeleted { shard, uid } => {
                self.with_shard(shard, |shard| shard.observe_deleted(&uid))
            }
            Event::MemberWritten(id, result) => self.member_written(now_ms, id, &result),
            Event::ShardWritten(id, result) => self.shard_written(now_ms, id, result),
            Event::MemberRead(identity, read) => self.member_read(now_ms, &identity, read),
            Event::ShardRead(id, read) => {
                let retry_ms = self.settings.retry_ms;
                self.with_shard(id, |shard| shard.read(now_ms, read, retry_ms));
            }
            Event::TableListed(table) => self.table.listed(table),
            Event::TableObserved(table) => self.table.observe(table),
            Event::TableDeleted(uid) => self.table.observe_deleted(&uid),
            Event::TableWritten(id, result) => {
                self.table
                    .written(now_ms, id, result, self.settings.retry_ms)
            }
            Event::TableRead(read) => {
                self.table.read(now_ms, read, self.settings.retry_ms);
            }
            Event::TableProbed(may_write) => self.table.probed(now_ms, may_write),
            Event::Warm(id) => self.with_shard(id, |shard| shard.work.warmed()),
            Event::Drained(id) => self.with_shard(id, |shard| shard.work.drained()),
            Event::Shutdown => {
                if self.departure.begin(now_ms) {
                    self.heartbeat.renew_now(now_ms);
                }
            }
            Event::Reincarnate(incarnation) => {
                self.heartbeat = self.heartbeat.restart(incarnation, now_ms);
            }
        }
        self.evaluate(now_ms);
        self.out.take()
    }

    /// When the next [`Event::Tick`] is due if no event comes before, by the clock of
    /// [`handle`](Self::handle).
    ///
    /// In a fleet at rest a tick before that time causes no action and makes no difference to anything
    /// that follows. While something is under way, ticks come every 100 ms.
    #[must_use]
    pub fn next_wakeup_ms(&self) -> u64 {
        let now_ms = self.last_tick_ms;
        if !self.is_at_rest() {
            return now_ms + TICK_MS;
        }
        let settings = &self.settings;
        // Silence of others counts up to `tick_max_ms` at once: a timer that is a little late must not
        // cost any of it.
        let counted_ms = now_ms + settings.tick_max_ms * 4 / 5;
        let expiry_ms = self.members().next_expiry_ms(&settings.identity);
        self.heartbeat
            .next_change_ms(settings.tick_max_ms)
            .min(counted_ms)
            .min(expiry_ms.map_or(u64::MAX, |ms| now_ms.saturating_add(ms)))
            .max(now_ms + 1)
    }

    /// Whether nothing is under way: every shard has a live holder and its entry, and no request but a
    /// renewal is in flight or due.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let us = self.us(self.last_tick_ms);
        let tick_max_ms = self.settings.tick_max_ms;
        let is_at_rest = |shard: &Shard| shard.is_at_rest(us, self.membership.members());
        self.synced
            && !self.departure.has_begun()
            && self.heartbeat.is_at_rest(us.now_ms, tick_max_ms)
            && self.membership.is_at_rest()
            && self.table.is_at_rest()
            && self.shards.values().all(is_at_rest)
            && !self.is_announcement_urgent(&self.announcement())
    }

    /// Our identity.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.settings.identity
    }

    /// The members as last observed.
    #[must_use]
    pub fn members(&self) -> &Members {
        self.membership.members()
    }

    /// Whether we may act at this time.
    #[must_use]
    pub fn is_valid(&self, now_ms: u64) -> bool {
        self.heartbeat.is_valid(now_ms)
    }

    /// When the last renewal succeeded.
    #[must_use]
    pub fn last_renewal_ms(&self) -> Option<u64> {
        self.heartbeat.last_success_ms()
    }

    /// Number of failed renewals.
    #[must_use]
    pub fn renewal_failures(&self) -> u64 {
        self.heartbeat.failures()
    }

    /// Whether the Leases were listed and our own Lease is valid.
    #[must_use]
    pub fn is_settled(&self, now_ms: u64) -> bool {
        self.synced && self.heartbeat.is_valid(now_ms)
    }

    /// Whether members with another number of shards are active, so that we hold nothing for now.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        self.membership
            .members()
            .another_count_is_alive(self.settings.shards.get())
    }

    /// Running shards, with their epochs.
    pub fn running(&self) -> impl Iterator<Item = (ShardId, u32)> {
        self.shards
            .values()
            .filter_map(|shard| Some((shard.id(), shard.work.running_epoch()?)))
    }

    /// The uid of the shard table, once it was observed with our number of shards.
    #[must_use]
    pub fn table_uid(&self) -> Option<&str> {
        self.table.uid()
    }

    /// Whether the API server refuses our writes of the table.
    #[must_use]
    pub fn is_table_refused(&self) -> bool {
        self.table.is_refused()
    }

    fn with_shard(&mut self, id: ShardId, change: impl FnOnce(&mut Shard)) {
        // A Lease of another number of shards may name one that does not exist for us.
        if let Some(shard) = self.shards.get_mut(&id) {
            change(shard);
        }
    }

    fn listed(&mut self, now_ms: u64, members: Vec<MemberLease>, mut leases: Vec<ShardLease>) {
        let us = self.us(now_ms);
        if members.iter().any(|lease| us.is_announced_to_leave(lease)) {
            self.departure.shown();
        }
        self.membership.listed(members);
        for shard in self.shards.values_mut() {
            let found = leases.iter().position(|lease| lease.shard == shard.id());
            shard.listed(found.map(|index| leases.swap_remove(index)));
        }
        self.synced = true;
    }

    fn member_written(
        &mut self,
        now_ms: u64,
        id: WriteId,
        result: &WriteResult<Option<MemberLease>>,
    ) {
        if let WriteResult::Done(Some(lease)) = result {
            self.membership.observe(lease.clone());
        }
        if self.heartbeat.written(now_ms, id, result, &self.settings) {
            return;
        }
        if self.membership.written(id, result, self.settings.step_ms) {
            return;
        }
        let retry_ms = self.settings.retry_ms;
        if self.departure.written(now_ms, id, result, retry_ms) {
            self.out.push(Action::Exit);
        }
    }

    /// The answer to a fresh read: of our own Lease, of a holder's to confirm, or after a list that
    /// showed less than was known.
    fn member_read(
        &mut self,
        now_ms: u64,
        identity: &str,
        read: Result<Option<MemberLease>, ReadFailed>,
    ) {
        self.membership
            .read(now_ms, identity, &read, self.settings.retry_ms);
        if identity == self.settings.identity {
            self.own_lease_read(now_ms, read.as_ref().map(Option::as_ref).map_err(|e| *e));
        }
        let confirmation = self
            .membership
            .confirmed(identity, &read, self.settings.lease_ms);
        if let Some(confirmation) = confirmation {
            for shard in self.shards.values_mut() {
                shard.confirmed(identity, &confirmation);
            }
        }
    }

    fn own_lease_read(&mut self, now_ms: u64, read: Result<Option<&MemberLease>, ReadFailed>) {
        let found = read.ok().flatten();
        let silent = self
            .identity_conflict
            .is_silent(now_ms, found, &self.settings);
        match self.heartbeat.read(now_ms, read, &self.settings, silent) {
            OwnLease::Usable => {}
            OwnLease::Dead => self.die(),
            OwnLease::Taken => {
                if found.is_some_and(|lease| self.identity_conflict.observe(now_ms, lease)) {
                    self.out.push(Action::IdentityTaken);
                }
            }
        }
    }

    fn shard_written(&mut self, now_ms: u64, id: WriteId, result: WriteResult<ShardLease>) {
        let retry_ms = self.settings.retry_ms;
        if let Some(shard) = self.shards.values_mut().find(|shard| shard.awaits(id)) {
            shard.written(now_ms, result, retry_ms);
        }
    }

    /// Our incarnation is dead for all members: stop everything, and start a new incarnation.
    fn die(&mut self) {
        let is_news = self.heartbeat.end();
        for shard in self.shards.values_mut() {
            shard.work.halt(Reason::Dead, &mut self.out);
            shard.forget_requests();
        }
        if is_news {
            self.out.push(Action::NeedIncarnation);
        }
    }

    fn evaluate(&mut self, now_ms: u64) {
        self.count_missing();
        self.read_rewound(now_ms);
        self.beat(now_ms);
        self.report_validity();
        self.vacate_silent(now_ms);
        self.membership
            .refresh_ranking(now_ms, self.settings.shards);
        self.evaluate_shards(now_ms);
        self.keep_table(now_ms);
        self.leave(now_ms);
    }

    fn count_time(&mut self, now_ms: u64) {
        let elapsed_ms = now_ms.saturating_sub(self.last_tick_ms);
        self.last_tick_ms = self.last_tick_ms.max(now_ms);
        if self.synced && self.heartbeat.is_heard(now_ms, self.settings.tick_max_ms) {
            let credit_ms = elapsed_ms.min(self.settings.tick_max_ms);
            self.membership.credit(credit_ms);
            for shard in self.shards.values_mut() {
                shard.credit(credit_ms);
            }
        }
    }

    fn count_missing(&mut self) {
        let holders = self.shards.values().filter_map(|s| s.record().holder());
        let named = holders.map(|holder| holder.identity);
        self.membership
            .count_missing(named.filter(|identity| !identity.is_empty()));
    }

    fn read_rewound(&mut self, now_ms: u64) {
        let (settings, heartbeat) = (&self.settings, &self.heartbeat);
        let is_being_read = |who: &str| who == settings.identity && heartbeat.is_reading();
        self.membership
            .read_rewound(now_ms, is_being_read, &mut self.out);
    }

    fn beat(&mut self, now_ms: u64) {
        if self.heartbeat.is_dead() || self.departure.has_ended_renewals() {
            return;
        }
        if self.heartbeat.wants_read(now_ms) {
            self.out
                .push(Action::ReadMember(self.settings.identity.clone()));
        }
        let announcement = self.announcement();
        if self.is_announcement_urgent(&announcement) {
            self.heartbeat.renew_now(now_ms);
        }
        let out = &mut self.out;
        let identity = &self.settings.identity;
        let due = self
            .heartbeat
            .due(now_ms, || out.next_id(), announcement, identity);
        if let Some((id, write)) = due {
            self.out.push(Action::WriteMember(id, write));
        }
    }

    /// What the next renewal announces.
    fn announcement(&self) -> Announcement {
        let shards = self.shards.values();
        Announcement {
            draining: self.departure.has_begun(),
            barred: self.table.is_refused(),
            warm: shards
                .filter(|shard| shard.work.is_warmed_for_us())
                .map(Shard::id)
                .collect(),
        }
    }

    /// Whether the others have to know before the next heartbeat.
    fn is_announcement_urgent(&self, announcement: &Announcement) -> bool {
        let us = self.us(self.last_tick_ms);
        let is_ours = |id: ShardId| {
            let lease = self.shards.get(&id).and_then(Shard::lease);
            lease.is_some_and(|lease| us.is_named_by(&lease.holder, &lease.incarnation))
        };
        self.heartbeat.is_urgent(announcement, is_ours)
    }

    fn report_validity(&mut self) {
        if let Some(until_ms) = self.heartbeat.changed_validity() {
            self.out.push(Action::ValidUntil(until_ms));
        }
    }

    fn vacate_silent(&mut self, now_ms: u64) {
        if self.synced && self.heartbeat.is_heard(now_ms, self.settings.tick_max_ms) {
            self.membership
                .vacate_silent(&self.settings.identity, &mut self.out);
        }
    }

    fn us(&self, now_ms: u64) -> Us<'_> {
        Us {
            now_ms,
            settings: &self.settings,
            heartbeat: &self.heartbeat,
            departure: &self.departure,
        }
    }

    fn evaluate_shards(&mut self, now_ms: u64) {
        let us = Us {
            now_ms,
            settings: &self.settings,
            heartbeat: &self.heartbeat,
            departure: &self.departure,
        };
        Evaluation::new(us, &mut self.membership, &mut self.table, &mut self.out)
            .run(self.synced, &mut self.shards);
    }

    /// Reads the table when that is due, and writes what it lacks.
    fn keep_table(&mut self, now_ms: u64) {
        self.table.refresh(now_ms, &mut self.out);
        if !self.synced || !self.heartbeat.is_valid(now_ms) {
            return;
        }
        let is_standby = self.is_standby();
        let us = Us {
            now_ms,
            settings: &self.settings,
            heartbeat: &self.heartbeat,
            departure: &self.departure,
        };
        let claims = self.shards.values().filter_map(|shard| {
            let may_write = shard.stage() == Stage::Listing && !shard.is_unsettled();
            let epoch = shard.work.held_epoch().filter(|_| may_write)?;
            let shard = shard.id();
            Some(Claim { shard, epoch })
        });
        self.table.write(us, is_standby, claims, &mut self.out);
    }

    /// Whether a shard is planned for us whose holder may not know yet that we leave, and may have
    /// given it to us.
    fn may_receive_shard(&self, now_ms: u64) -> bool {
        let us = self.us(now_ms);
        let mut planned = self.shards.values().filter_map(Shard::successor);
        self.departure.is_fresh(now_ms) && planned.any(|successor| us.is_successor(successor))
    }

    fn leave(&mut self, now_ms: u64) {
        if !self.departure.is_handing_back()
            || self.heartbeat.is_in_flight()
            || self.shards.values().any(Shard::keeps_us)
            || self.may_receive_shard(now_ms)
        {
            return;
        }
        let Some(write) = self.heartbeat.ending(&self.settings.identity) else {
            self.departure.done();
            self.out.push(Action::Exit);
            return;
        };
        if !self.heartbeat.is_valid(now_ms) || !self.departure.may_end(now_ms) {
            return;
        }
        let id = self.out.next_id();
        self.departure.ending(id);
        self.out.push(Action::WriteMember(id, write));
    }
}
