//! Measures the time from taking a shard to the first reconcile in it.

use std::time::Duration;

use dashmap::DashMap;
use tokio::time::Instant;

use shard_ownership::hash::ShardId;

/// What was listed longer ago than this when the shard became ours had been warmed for us: then the
/// time counts from being given the shard, else from asking for its objects.
const WARM_AFTER: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, Debug)]
struct Timing {
    asked: Instant,
    listed: Option<Instant>,
    taken: Option<Instant>,
}

/// The shards whose first reconcile is yet to come. Each map lock is held for one operation.
#[derive(Debug, Default)]
pub struct FirstReconcileTimer {
    timing: DashMap<ShardId, Timing>,
}

impl FirstReconcileTimer {
    /// The objects of a shard were asked for.
    pub fn asked(&self, shard: ShardId) {
        let timing = Timing {
            asked: Instant::now(),
            listed: None,
            taken: None,
        };
        self.timing.insert(shard, timing);
    }

    /// All objects were received; returns how long that took.
    pub fn listed(&self, shard: ShardId) -> Option<Duration> {
        let mut timing = self.timing.get_mut(&shard)?;
        timing.listed = Some(Instant::now());
        Some(timing.asked.elapsed())
    }

    /// Work on the shard starts.
    pub fn admitted(&self, shard: ShardId) {
        if let Some(mut timing) = self.timing.get_mut(&shard) {
            let warmed = timing.listed.is_some_and(|at| at.elapsed() > WARM_AFTER);
            let asked = timing.asked;
            timing.taken = Some(if warmed { Instant::now() } else { asked });
        }
    }

    /// A reconcile starts: returns the time since the shard was taken, for the first one in it.
    pub fn run(&self, shard: ShardId) -> Option<Duration> {
        if self.timing.is_empty() {
            return None;
        }
        let first = self
            .timing
            .remove_if(&shard, |_, timing| timing.taken.is_some());
        Some(first?.1.taken?.elapsed())
    }

    /// The shard is no longer watched.
    pub fn forget(&self, shard: ShardId) {
        self.timing.remove(&shard);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_counts_from_the_request_or_from_taking_over_a_warm_shard() {
        let first_reconciles = FirstReconcileTimer::default();
        let pass = |ms| tokio::time::advance(Duration::from_millis(ms));
        let (taken_over, handed_over) = (ShardId(1), ShardId(2));
        first_reconciles.asked(taken_over);
        first_reconciles.asked(handed_over);
        pass(40).await;
        assert_eq!(
            first_reconciles.listed(taken_over),
            Some(Duration::from_millis(40))
        );
        first_reconciles.listed(handed_over);
        first_reconciles.admitted(taken_over);
        assert_eq!(
            first_reconciles.run(handed_over),
            None,
            "it is not ours yet"
        );
        pass(5).await;
        assert_eq!(
            first_reconciles.run(taken_over),
            Some(Duration::from_millis(45))
        );
        assert_eq!(
            first_reconciles.run(taken_over),
            None,
            "only the first counts"
        );
        pass(3000).await;
        first_reconciles.admitted(handed_over);
        pass(7).await;
        assert_eq!(
            first_reconciles.run(handed_over),
            Some(Duration::from_millis(7))
        );
        first_reconciles.asked(taken_over);
        first_reconciles.forget(taken_over);
        first_reconciles.admitted(taken_over);
        assert_eq!(first_reconciles.run(taken_over), None);
    }
}
