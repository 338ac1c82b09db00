//! What has happened before a search begins: scenes that a search from rest would reach too late.

use super::fleet::Fleet;
use super::{NextRequest, Step};
use crate::core::hash::ShardId;

/// The shard that the scenes are about.
const SHARD: ShardId = ShardId(0);

/// A scene.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Opening {
    /// A fleet at rest.
    #[default]
    AtRest,
    /// A holder crashed and started again in its Pod, while a write of an object and a renewal of its
    /// former life are still on their way.
    LateAfterResume,
    /// A second API server has heard nothing since before a holder crashed and resumed.
    SecondServer,
    /// A shard was handed over and is worked on, while a write of its former holder is on its way:
    /// the next handover is the second in a row.
    TwoHandovers,
}

impl Opening {
    /// The steps that lead there.
    pub(super) fn steps(self, fleet: &Fleet) -> Vec<Step> {
        let holder = fleet.holder(SHARD);
        let late_write = [
            Step::Begin(holder, SHARD),
            Step::Finish(holder, SHARD, true),
        ];
        let resume = [Step::Crash(holder), Step::Restart(holder)];
        match self {
            Self::AtRest => Vec::new(),
            Self::LateAfterResume => {
                let late_renewal = [Step::Spoil(holder, NextRequest::IsLate), Step::Tick];
                let late = late_write.into_iter().chain(late_renewal);
                late.chain(resume).collect()
            }
            Self::SecondServer => [Step::Fork].into_iter().chain(resume).collect(),
            Self::TwoHandovers => {
                let mut others = (0..fleet.replicas.len()).filter(|n| *n != holder);
                let next = others.next().unwrap_or(holder);
                let handed_over = [
                    Step::Plan(SHARD, next),
                    // Whoever has news to tell tells it.
                    Step::Tick,
                    Step::Begin(next, SHARD),
                ];
                late_write.into_iter().chain(handed_over).collect()
            }
        }
    }
}
