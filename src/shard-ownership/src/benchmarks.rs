//! What benchmarks and calculations drive of the internals. No part of the interface: it may change at any time.

use std::collections::BTreeMap;

use crate::hash::{ShardCount, ShardId};
use crate::ring::{Ranking, place};

/// The members ranked for every shard, which is computed once for each change of the members.
#[derive(Debug)]
pub struct RankedMembers(Ranking);

impl RankedMembers {
    /// Ranks them.
    #[must_use]
    pub fn new(count: ShardCount, members: &[String]) -> Self {
        Self(Ranking::new(count, members.iter().map(String::as_str)))
    }

    /// Assigns every shard to a member; `held` is the present holder of each.
    #[must_use]
    pub fn place(&self, held: &BTreeMap<ShardId, &str>) -> Vec<Option<String>> {
        let placed = place(&self.0, held, |_| true);
        placed.into_iter().map(|m| m.map(str::to_owned)).collect()
    }
}
