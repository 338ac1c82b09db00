//! How long it takes from taking a shard to the first reconcile in it.

use std::time::Duration;

use dashmap::DashMap;
use tokio::time::Instant;

use shard_ownership::hash::ShardId;

/// What was listed longer ago than this when the shard became ours had been warmed for us: then the
/// time counts from being given the shard, else from asking for its objects.
const WARMED_BEFORE: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, Debug)]
struct Begun {
    asked: Instant,
    listed: Option<Instant>,
    taken: Option<Instant>,
}

/// The shards whose first reconcile is yet to come. Each map lock lives for one operation.
#[derive(Debug, Default)]
pub struct FirstRuns {
    begun: DashMap<ShardId, Begun>,
}

impl FirstRuns {
    /// The objects of a shard were asked for.
    pub fn asked(&self, shard: ShardId) {
        let begun = Begun {
            asked: Instant::now(),
            listed: None,
            taken: None,
        };
        self.begun.insert(shard, begun);
    }

    /// All of them are there; how long that took.
    pub fn listed(&self, shard: ShardId) -> Option<Duration> {
        let mut begun = self.begun.get_mut(&shard)?;
        begun.listed = Some(Instant::now());
        Some(begun.asked.elapsed())
    }

    /// The shard is worked on from now on.
    pub fn admitted(&self, shard: ShardId) {
        if let Some(mut begun) = self.begun.get_mut(&shard) {
            let warmed = begun.listed.is_some_and(|at| at.elapsed() > WARMED_BEFORE);
            let asked = begun.asked;
            begun.taken = Some(if warmed { Instant::now() } else { asked });
        }
    }

    /// A reconcile begins: the time since the shard was taken, for the first one in it.
    pub fn run(&self, shard: ShardId) -> Option<Duration> {
        if self.begun.is_empty() {
            return None;
        }
        let first = self
            .begun
            .remove_if(&shard, |_, begun| begun.taken.is_some());
        Some(first?.1.taken?.elapsed())
    }

    /// The shard is gone.
    pub fn forget(&self, shard: ShardId) {
        self.begun.remove(&shard);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_counts_from_asking_or_from_being_given_a_warm_shard() {
        let firsts = FirstRuns::default();
        let pass = |ms| tokio::time::advance(Duration::from_millis(ms));
        let (taken_over, handed_over) = (ShardId(1), ShardId(2));
        firsts.asked(taken_over);
        firsts.asked(handed_over);
        pass(40).await;
        assert_eq!(firsts.listed(taken_over), Some(Duration::from_millis(40)));
        firsts.listed(handed_over);
        firsts.admitted(taken_over);
        assert_eq!(firsts.run(handed_over), None, "it is not ours yet");
        pass(5).await;
        assert_eq!(firsts.run(taken_over), Some(Duration::from_millis(45)));
        assert_eq!(firsts.run(taken_over), None, "only the first counts");
        pass(3000).await;
        firsts.admitted(handed_over);
        pass(7).await;
        assert_eq!(firsts.run(handed_over), Some(Duration::from_millis(7)));
        firsts.asked(taken_over);
        firsts.forget(taken_over);
        firsts.admitted(taken_over);
        assert_eq!(firsts.run(taken_over), None);
    }
}
