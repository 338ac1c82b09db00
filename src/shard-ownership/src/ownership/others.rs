//! What the other shards do while one is evaluated: how many may be handed over at once, and whether
//! one may be started.

use super::membership::Membership;
use super::shard::Shard;
use super::us::Us;
use super::work::Stage;
use crate::hash::ShardCount;
use crate::planner::move_budget;

/// For how long a shard whose work is to end, and then one that waits for its new holder, counts among
/// those that are being handed over.
pub(super) const HANDOVER_MS: u64 = 125;

/// What one shard contributes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contribution {
    is_handed_over: bool,
    lacks_warm_successor: bool,
    has_other_count: bool,
}

impl Contribution {
    pub(super) fn of(shard: &Shard, us: Us<'_>, membership: &Membership) -> Self {
        let is_handed_over = match shard.stage() {
            Stage::Draining(since_ms) => us.now_ms.saturating_sub(since_ms) < HANDOVER_MS,
            Stage::Drained | Stage::Halted => shard.is_write_in_flight(),
            Stage::Idle => shard.is_handed_over(),
            Stage::Listing | Stage::Running => false,
        };
        let is_warm = shard.successor().is_some_and(|successor| {
            membership.may_receive(us, successor)
                && membership.members().is_warm(successor, shard.id())
        });
        let lease = shard.lease();
        Self {
            is_handed_over,
            lacks_warm_successor: shard.stage() == Stage::Running && !is_warm,
            // A Lease that is not readable is damaged, and must not stop the others.
            has_other_count: lease.is_some_and(|l| l.shards != us.count() && l.shards != 0),
        }
    }
}

/// The sum over all shards but one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OtherShards {
    handed_over: usize,
    lacking_warm_successor: usize,
    of_other_count: usize,
}

impl OtherShards {
    pub(super) fn add(&mut self, shard: Contribution) {
        self.handed_over += usize::from(shard.is_handed_over);
        self.lacking_warm_successor += usize::from(shard.lacks_warm_successor);
        self.of_other_count += usize::from(shard.has_other_count);
    }

    /// Takes out what was added before.
    pub(super) fn remove(&mut self, shard: Contribution) {
        self.handed_over -= usize::from(shard.is_handed_over);
        self.lacking_warm_successor -= usize::from(shard.lacks_warm_successor);
        self.of_other_count -= usize::from(shard.has_other_count);
    }

    /// A quarter of what a fleet leader would move at once: more writes only wait for each other while
    /// their shards stand still. One whose work takes longer, whose write is retried, or whose new
    /// holder is slow, holds up none.
    pub(super) fn allow_handover(&self, count: ShardCount) -> bool {
        self.handed_over < (move_budget(count) / 4).max(1)
    }

    /// Whether no successor of a running shard is still listing: the API server would have that to do
    /// while a shard that is handed over stands still.
    pub(super) fn have_warm_successors(&self) -> bool {
        self.lacking_warm_successor == 0
    }

    /// Whether all Leases carry our number of shards. Until then no shard is started.
    pub(super) fn have_our_count(&self) -> bool {
        self.of_other_count == 0
    }
}
