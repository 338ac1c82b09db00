//! What has happened before a search begins: scenes that a search from rest would reach too late.

use super::fleet::Fleet;
use super::{NextRequest, Step};
use shard_ownership::hash::ShardId;

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
    /// The only holder resumed, while a write of the table of its former life is on its way; the others have another
    /// number of shards, and are on standby.
    Conversion,
    /// The same, and it has just crashed again: soon the others will convert the table, and it may return.
    ConversionAfterCrash,
    /// One of two replicas crashed, and one of its entries was raised by hand, which the other does not see: soon it
    /// takes all of them, and what it writes of several entries at once is refused, as long as the API server refuses
    /// its writes of the table.
    BatchRefused,
}

fn conversion(fleet: &Fleet) -> Vec<Step> {
    let late = [
        Step::SpoilTable(0, NextRequest::IsLate),
        Step::Crash(0),
        Step::Restart(0),
    ];
    let others = (1..fleet.replicas.len()).map(Step::Restart);
    late.into_iter().chain(others).chain([Step::Tick]).collect()
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
                    // Every replica with news publishes it.
                    Step::Tick,
                    Step::Begin(next, SHARD),
                ];
                late_write.into_iter().chain(handed_over).collect()
            }
            Self::Conversion => conversion(fleet),
            Self::ConversionAfterCrash => {
                let crash = [Step::Crash(0), Step::Tick, Step::Tick];
                conversion(fleet).into_iter().chain(crash).collect()
            }
            Self::BatchRefused => {
                let held = fleet.held_by(1);
                let raised = held.last().copied().unwrap_or(SHARD);
                vec![
                    Step::LagTable(0),
                    Step::Crash(1),
                    Step::RaiseEntry(raised),
                    Step::Tick,
                    Step::Tick,
                    Step::RefuseTable(0),
                ]
            }
        }
    }
}
