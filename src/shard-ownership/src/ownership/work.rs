//! What this replica does in one shard: which objects it watches, and whether it works on them.

use super::outbox::Outbox;
use super::us::Us;
use super::{Action, Reason};
use crate::hash::ShardId;
use crate::lease::ShardLease;

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

/// The right under which we work on the shard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Held {
    epoch: u32,
    /// Uid of the Lease.
    uid: String,
    reason: Reason,
    waited_ms: u64,
    /// Uid of the table under which work started, once it did.
    table: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Work {
    shard: ShardId,
    stage: Stage,
    held: Option<Held>,
    /// Whether its objects are being watched.
    watching: bool,
    /// Whether they were all listed.
    warm: bool,
}

impl Work {
    pub(super) fn new(shard: ShardId) -> Self {
        Self {
            shard,
            stage: Stage::Idle,
            held: None,
            watching: false,
            warm: false,
        }
    }

    pub(super) fn shard(&self) -> ShardId {
        self.shard
    }

    pub(super) fn stage(&self) -> Stage {
        self.stage
    }

    /// The epoch under which work runs, if it does.
    pub(super) fn running_epoch(&self) -> Option<u32> {
        let is_running = matches!(self.stage, Stage::Running | Stage::Draining(_));
        self.held_epoch().filter(|_| is_running)
    }

    /// The epoch of the Lease under which we hold it.
    pub(super) fn held_epoch(&self) -> Option<u32> {
        self.held.as_ref().map(|held| held.epoch)
    }

    /// Uid of the table under which we work on it.
    pub(super) fn table(&self) -> Option<&str> {
        self.held.as_ref()?.table.as_deref()
    }

    pub(super) fn is_warm(&self) -> bool {
        self.warm
    }

    /// Whether everything is listed of a shard that we do not hold, so that its holder may hand it
    /// over.
    pub(super) fn is_warmed_for_us(&self) -> bool {
        self.stage == Stage::Idle && self.watching && self.warm
    }

    /// Whether the Lease still says what we started on.
    pub(super) fn is_still_ours(&self, us: Us<'_>, lease: Option<&ShardLease>) -> bool {
        let (Some(lease), Some(held)) = (lease, &self.held) else {
            return false;
        };
        us.is_named_by(&lease.holder, &lease.incarnation)
            && lease.epoch == held.epoch
            && lease.version.uid == held.uid
    }

    /// A write of ours made the Lease ours, under this epoch and uid.
    pub(super) fn taken(&mut self, epoch: u32, uid: String, reason: Reason, waited_ms: u64) {
        self.held = Some(Held {
            epoch,
            uid,
            reason,
            waited_ms,
            table: None,
        });
    }

    /// A write of ours raised the epoch of the Lease.
    pub(super) fn raised(&mut self, epoch: u32) {
        if let Some(held) = self.held.as_mut() {
            held.epoch = epoch;
        }
    }

    /// Starts watching a shard whose Lease names us.
    pub(super) fn start(&mut self, lease: &ShardLease, out: &mut Outbox) {
        let fits = |held: &Held| held.epoch == lease.epoch && held.uid == lease.version.uid;
        if !self.held.as_ref().is_some_and(fits) {
            self.taken(lease.epoch, lease.version.uid.clone(), Reason::Named, 0);
        }
        self.stage = Stage::Listing;
        self.warm_up(out);
    }

    /// Starts watching the shard, unless it is watched already.
    pub(super) fn warm_up(&mut self, out: &mut Outbox) {
        if !self.watching {
            self.watching = true;
            self.warm = false;
            out.push(Action::Watch(self.shard));
        }
    }

    /// Stops watching a shard that will not be ours after all.
    pub(super) fn cool_down(&mut self, out: &mut Outbox) {
        if self.watching {
            self.watching = false;
            self.warm = false;
            out.push(Action::Unwatch(self.shard));
        }
    }

    /// All objects of the shard have been listed.
    pub(super) fn warmed(&mut self) {
        self.warm = self.watching;
    }

    /// Everything is listed and the table grants the shard: work starts.
    pub(super) fn admit(&mut self, table: String, out: &mut Outbox) {
        if let Some(held) = self.held.as_mut() {
            held.table = Some(table.clone());
            self.stage = Stage::Running;
            out.push(Action::Admit {
                shard: self.shard,
                table,
                epoch: held.epoch,
                reason: held.reason,
                waited_ms: held.waited_ms,
            });
        }
    }

    /// The shard is to be handed over: no more work starts.
    pub(super) fn drain(&mut self, now_ms: u64, out: &mut Outbox) {
        self.stage = Stage::Draining(now_ms);
        out.push(Action::Drain(self.shard));
    }

    /// No reconcile of the shard runs any more.
    pub(super) fn drained(&mut self) {
        if matches!(self.stage, Stage::Draining(_)) {
            self.stage = Stage::Drained;
        }
    }

    /// The shard is not handed over after all: work goes on.
    pub(super) fn resume(&mut self, out: &mut Outbox) {
        self.stage = Stage::Running;
        out.push(Action::Resume(self.shard));
    }

    /// The work of a draining shard took too long: it is cancelled, and the shard is handed over.
    pub(super) fn cut_short(&mut self, reason: Reason, out: &mut Outbox) {
        out.push(Action::Halt(self.shard, reason));
        self.stage = Stage::Halted;
    }

    /// The Lease is ours, but no work starts: it is to be handed over.
    pub(super) fn never_start(&mut self) {
        self.stage = Stage::Halted;
    }

    /// Back to listing until the table grants it again: running work is cancelled, the watch
    /// continues.
    pub(super) fn pause(&mut self, reason: Reason, out: &mut Outbox) {
        out.push(Action::Halt(self.shard, reason));
        self.stage = Stage::Listing;
    }

    /// Stops everything immediately.
    pub(super) fn halt(&mut self, reason: Reason, out: &mut Outbox) {
        if matches!(self.stage, Stage::Running | Stage::Draining(_)) {
            out.push(Action::Halt(self.shard, reason));
        }
        self.stage = Stage::Idle;
        self.held = None;
        if reason != Reason::Lapsed {
            // A lapsed shard is most likely ours again soon: spare a busy API server a new list.
            self.cool_down(out);
        }
    }
}
