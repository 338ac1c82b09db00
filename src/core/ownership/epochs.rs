//! The epoch under which a shard without a trustworthy Lease begins.

use std::collections::BTreeMap;

use super::shard::{EPOCH_GAP, Shard};
use super::{Action, Ownership};
use crate::core::hash::{ShardId, fnv1a64};

/// Among how many epochs a life chooses where to begin what it knows nothing of.
const OWN_EPOCHS: u32 = 1_000_000;

/// The stamps on the objects, looked up when a shard is to begin that nobody here remembers well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Stamps {
    /// The highest of each shard that has any.
    found: Option<BTreeMap<ShardId, u32>>,
    asked: bool,
    /// Whether a shard was judged by them in this evaluation.
    used: bool,
}

impl Stamps {
    pub(super) fn found(&mut self, found: Result<BTreeMap<ShardId, u32>, ()>) {
        self.asked = false;
        self.found = found.ok();
    }
}

impl Ownership {
    /// The epoch under which a free shard may be taken, or `None` as long as it may not.
    pub(super) fn epoch_for(&mut self, shard: &mut Shard) -> Option<u32> {
        if shard.lease.is_some() || shard.memory.as_ref().is_some_and(|m| m.is_complete) {
            return Some(self.next_epoch(shard));
        }
        // Nobody here remembers it, or not all of it: a new fleet, or its Leases were deleted.
        let waited = shard.missing_ms >= self.settings.lease_ms;
        if shard.epoch_known() > 0 && !waited {
            return None;
        }
        let Some(found) = &self.stamps.found else {
            if !self.stamps.asked {
                self.stamps.asked = true;
                self.out.push(Action::FindStamps);
            }
            return None;
        };
        self.stamps.used = true;
        shard.found_stamp(found.get(&shard.id()).copied());
        match shard.epoch_known() {
            0 if self.has_elders => Some(self.epoch_of_our_own()),
            0 => Some(1),
            highest => waited.then(|| highest.saturating_add(EPOCH_GAP)),
        }
    }

    /// What was found says nothing of a shard that is judged much later: somebody may have worked on
    /// it meanwhile.
    pub(super) fn forget_unused_stamps(&mut self) {
        if !self.stamps.used {
            self.stamps.found = None;
        }
        self.stamps.used = false;
    }

    /// Where to begin a shard that others may have worked on before us without leaving a stamp: no
    /// two lives are likely to begin at the same place. That nobody did can not be known, so that in
    /// a new fleet the shards of all but the first to come begin here too.
    fn epoch_of_our_own(&self) -> u32 {
        EPOCH_GAP.saturating_add(self.spread(OWN_EPOCHS))
    }

    /// The epoch that follows what we remember. A request to create a Lease names no version, and may
    /// arrive when another life has created it under the next epoch and it was deleted again: so each
    /// life goes on from a place of its own.
    pub(super) fn next_epoch(&self, shard: &Shard) -> u32 {
        let next = shard.next_epoch();
        match shard.lease {
            Some(_) => next,
            None => next.saturating_add(self.spread(EPOCH_GAP)),
        }
    }

    /// A number below this that hardly any two lives share.
    fn spread(&self, below: u32) -> u32 {
        let hash = fnv1a64(self.heartbeat.incarnation().as_bytes());
        u32::try_from(hash % u64::from(below.max(1))).unwrap_or(0)
    }
}
