//! One operator process: the machine, its clock, its view of the Leases, and the work it does.

use std::collections::BTreeMap;

use crate::server::MemberMeta;
use shard_ownership::hash::{ShardCount, ShardId};
use shard_ownership::lease::{MemberLease, ShardLease};
use shard_ownership::ownership::{Event, Ownership, Settings, WriteResult};
use shard_ownership::planner::Stabilization;
use shard_ownership::table::{TableChange, TableWrite};
use shard_ownership::token::FencingToken;

/// A clock of its own: it starts somewhere and runs a little too fast or too slow, never jumps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    offset_ms: u64,
    per_mille: u64,
}

impl Clock {
    pub(crate) const fn new(offset_ms: u64, per_mille: u64) -> Self {
        Self {
            offset_ms,
            per_mille,
        }
    }

    /// The earliest time of the world at which it shows this.
    pub(crate) const fn world_ms(self, shown_ms: u64) -> u64 {
        let elapsed_ms = shown_ms.saturating_sub(self.offset_ms);
        (elapsed_ms * 1000).div_ceil(self.per_mille)
    }

    /// What it shows at this time of the world.
    pub(crate) const fn shows(self, world_ms: u64) -> u64 {
        self.offset_ms + world_ms * self.per_mille / 1000
    }
}

/// The right to act from the machine, as the workers see it.
#[derive(Clone, Debug)]
pub(crate) struct Permit {
    pub(crate) id: u64,
    pub(crate) token: FencingToken,
    /// Cancelled: nothing more is written.
    pub(crate) ended: bool,
    /// New work begins.
    pub(crate) admitting: bool,
    /// Reconciles that run.
    pub(crate) running: u32,
}

/// The position of a replica's watch of the Leases.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    /// Events of an older watch are not delivered.
    pub(crate) generation: u64,
    /// How far its API server is behind.
    pub(crate) lag_ms: u64,
    /// Earliest delivery of the next event of each Lease: events arrive in order for each Lease.
    pub(crate) ready_ms: BTreeMap<String, u64>,
    /// No event arrives before the list that begins the watch.
    pub(crate) floor_ms: u64,
    pub(crate) connected: bool,
}

impl Watch {
    /// A list starts it again and arrives at this time. Returns the number of the watch.
    pub(crate) fn begin(&mut self, connected: bool, at_ms: u64) -> u64 {
        self.generation += 1;
        self.ready_ms.clear();
        self.connected = connected;
        self.floor_ms = at_ms;
        self.generation
    }

    /// What is under way is lost.
    pub(crate) fn disconnect(&mut self) {
        self.generation += 1;
        self.connected = false;
    }
}

#[derive(Debug)]
pub(crate) struct Process {
    /// No two processes have the same.
    pub(crate) life: u64,
    pub(crate) identity: String,
    pub(crate) incarnations: u32,
    /// The nonce that the machine has.
    pub(crate) named: String,
    pub(crate) machine: Ownership,
    /// When its timer fires, by the clock of the world.
    pub(crate) timer_ms: Option<u64>,
    /// When its machine handled the last event, by its own clock.
    pub(crate) handled_ms: u64,
    pub(crate) meta: MemberMeta,
    pub(crate) clock: Clock,
    /// By its own clock.
    pub(crate) valid_until_ms: u64,
    pub(crate) permits: Vec<Option<Permit>>,
    pub(crate) watching: Vec<bool>,
    /// The machine is frozen.
    pub(crate) paused: bool,
    /// The workers are frozen.
    pub(crate) asleep: bool,
    pub(crate) inbox: Vec<Event>,
    pub(crate) partitioned: bool,
    /// Requests are slow, and some are lost.
    pub(crate) poor_network: bool,
    /// Reconciles take very long.
    pub(crate) hangs: bool,
    pub(crate) leaving: bool,
    pub(crate) watch: Watch,
    /// The table has a watch of its own.
    pub(crate) table_watch: Watch,
    /// The last write of the table that was sent.
    pub(crate) sent_table: Option<TableWrite>,
    /// The last of several entries that was refused.
    pub(crate) refused_batch: Option<TableWrite>,
    pub(crate) view_changed: bool,
    /// For when it is the fleet leader.
    pub(crate) stabilization: Stabilization,
    pub(crate) seen_members: BTreeMap<String, MemberLease>,
    pub(crate) seen_shards: BTreeMap<ShardId, ShardLease>,
}

/// What a new process is started with.
#[derive(Clone, Debug)]
pub(crate) struct Newcomer {
    pub(crate) identity: String,
    pub(crate) pod_uid: String,
    pub(crate) incarnation: String,
    pub(crate) revision: String,
}

impl Process {
    pub(crate) fn start(
        newcomer: Newcomer,
        life: u64,
        shards: ShardCount,
        clock: Clock,
        now_ms: u64,
    ) -> Self {
        let mut settings = Settings::new(&newcomer.identity, shards);
        settings.pod_uid.clone_from(&newcomer.pod_uid);
        let count = usize::from(shards.get());
        Self {
            life,
            meta: MemberMeta {
                lease_ms: settings.lease_ms,
                pod_uid: newcomer.pod_uid,
                revision: newcomer.revision,
                shards: shards.get(),
            },
            machine: Ownership::new(settings, newcomer.incarnation.clone(), clock.shows(now_ms)),
            timer_ms: None,
            handled_ms: clock.shows(now_ms),
            identity: newcomer.identity,
            incarnations: 1,
            clock,
            valid_until_ms: 0,
            permits: vec![None; count],
            watching: vec![false; count],
            paused: false,
            asleep: false,
            view_changed: true,
            stabilization: Stabilization::default(),
            inbox: Vec::new(),
            partitioned: false,
            poor_network: false,
            hangs: false,
            leaving: false,
            watch: Watch::default(),
            table_watch: Watch::default(),
            sent_table: None,
            refused_batch: None,
            named: newcomer.incarnation,
            seen_members: BTreeMap::new(),
            seen_shards: BTreeMap::new(),
        }
    }

    /// The watch that shows this.
    pub(crate) fn watch_of(&self, event: &Event) -> &Watch {
        if is_of_table(event) {
            &self.table_watch
        } else {
            &self.watch
        }
    }

    pub(crate) fn watch_of_mut(&mut self, event: &Event) -> &mut Watch {
        if is_of_table(event) {
            &mut self.table_watch
        } else {
            &mut self.watch
        }
    }

    /// Both watches are lost.
    pub(crate) fn disconnect(&mut self) {
        self.watch.disconnect();
        self.table_watch.disconnect();
    }

    /// Remembers several entries that were refused together.
    pub(crate) fn note_refusal(&mut self, event: &Event) {
        if let Event::TableWritten(_, WriteResult::Rejected) = event {
            let batch = self.sent_table.take().filter(|write| {
                matches!(&write.change, TableChange::Entries { entries, .. } if entries.len() > 1)
            });
            self.refused_batch = batch.or(self.refused_batch.take());
        }
    }

    /// The name of its present incarnation.
    pub(crate) fn incarnation(&self) -> String {
        format!("{}-{}-{}", self.identity, self.life, self.incarnations)
    }

    pub(crate) fn is_valid(&self, world_ms: u64) -> bool {
        self.clock.shows(world_ms) < self.valid_until_ms
    }

    /// Whether it may write an object of the shard now: what the workers ask before each write.
    pub(crate) fn may_write(
        &self,
        shard: ShardId,
        permit: u64,
        ignore_validity: bool,
        world_ms: u64,
    ) -> bool {
        let live = self.permits[usize::from(shard.0)]
            .as_ref()
            .is_some_and(|t| t.id == permit && !t.ended);
        live && (ignore_validity || self.is_valid(world_ms))
    }

    /// The epoch under which it acts: it may still write, now or later, without asking anybody.
    pub(crate) fn acts(&self, shard: ShardId, world_ms: u64) -> Option<u32> {
        let permit = self.permits[usize::from(shard.0)].as_ref()?;
        let busy = !permit.ended && (permit.admitting || permit.running > 0);
        (busy && self.is_valid(world_ms)).then_some(permit.token.epoch)
    }

    /// Takes in what the watch shows, for the fleet leader's plans.
    pub(crate) fn view(&mut self, event: &Event) {
        self.view_changed = !matches!(event, Event::Tick) || self.view_changed;
        match event {
            Event::Listed { members, shards } => {
                let by_name = |lease: &MemberLease| (lease.identity.clone(), lease.clone());
                self.seen_members = members.iter().map(by_name).collect();
                self.seen_shards = shards.iter().map(|l| (l.shard, l.clone())).collect();
            }
            Event::MemberObserved(lease) => {
                self.seen_members
                    .insert(lease.identity.clone(), lease.clone());
            }
            Event::MemberDeleted { identity, .. } => {
                self.seen_members.remove(identity);
            }
            Event::ShardObserved(lease) => {
                self.seen_shards.insert(lease.shard, lease.clone());
            }
            Event::ShardDeleted { shard, .. } => {
                self.seen_shards.remove(shard);
            }
            _ => {}
        }
    }

    /// The right under which it acts.
    pub(crate) fn right(&self, shard: ShardId) -> Option<&FencingToken> {
        let permit = self.permits[usize::from(shard.0)].as_ref()?;
        Some(&permit.token)
    }

    pub(crate) fn permit(&mut self, shard: ShardId) -> Option<&mut Permit> {
        self.permits[usize::from(shard.0)].as_mut()
    }
}

/// Whether the table's watch shows this, and not the Leases'.
fn is_of_table(event: &Event) -> bool {
    matches!(
        event,
        Event::TableListed(_) | Event::TableObserved(_) | Event::TableDeleted(_)
    )
}
