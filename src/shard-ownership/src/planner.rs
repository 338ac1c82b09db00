//! The fleet leader's plan: which replica should hold which shard next, a few moves at a time.

use std::collections::{BTreeMap, BTreeSet};

use super::hash::{ShardCount, ShardId};
use super::lease::{MemberLease, ShardLease, Successor};
use super::liveness::is_live_holder;
use super::members::{eligible, newest_revision};
use super::ring::{Ranking, place};

/// State of the fleet, for its gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    /// Shards that no live replica holds.
    pub unowned: usize,
    /// Shards of the replica that holds most, minus those of the one that holds least.
    pub imbalance: usize,
}

/// A change of the planned next holder of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Whose Lease is to name another successor.
    pub shard: ShardId,
    /// `None` withdraws a plan that cannot be executed.
    pub successor: Option<Successor>,
}

/// Maximum number of moves in progress: an eighth of the shards.
#[must_use]
pub fn move_budget(count: ShardCount) -> usize {
    (usize::from(count.get()) / 8).max(1)
}

/// How long the membership must not have changed before shards are moved: several replicas often
/// join or leave together, and a move that is planned too early has to be repeated.
const QUIET_MS: u64 = 500;

/// The same while there are replicas of two revisions: in a rolling update, shards move when an older
/// replica leaves. A stalled update is balanced in the end.
pub const QUIET_IN_UPDATE_MS: u64 = 120_000;

/// Since when the membership has been unchanged.
#[derive(Clone, Debug, Default)]
pub struct Stabilization {
    live: Vec<(String, String)>,
    since_ms: u64,
}

impl Stabilization {
    /// Takes in the fleet, and returns whether it has been the same for long enough to move shards.
    pub fn allows_moves(&mut self, now_ms: u64, fleet: &Fleet<'_>) -> bool {
        let live = fleet.eligible.values();
        let known = self.live.iter().map(|(name, life)| (name, life));
        if !known.eq(live.clone().map(|m| (&m.identity, &m.incarnation))) {
            self.live = live
                .map(|m| (m.identity.clone(), m.incarnation.clone()))
                .collect();
            self.since_ms = now_ms;
        }
        let needed_ms = match fleet.is_mixed() {
            true => QUIET_IN_UPDATE_MS,
            false => QUIET_MS,
        };
        now_ms.saturating_sub(self.since_ms) >= needed_ms
    }
}

/// The fleet as the Leases show it.
pub struct Fleet<'a> {
    count: ShardCount,
    eligible: BTreeMap<&'a str, &'a MemberLease>,
    newest: BTreeSet<&'a str>,
    shards: &'a [ShardLease],
    alive: BTreeMap<&'a str, &'a MemberLease>,
}

impl<'a> Fleet<'a> {
    /// The fleet according to these Leases.
    #[must_use]
    pub fn new(count: ShardCount, members: &'a [MemberLease], shards: &'a [ShardLease]) -> Self {
        let eligible = || eligible(members.iter(), count.get());
        let by_name = |member: &'a MemberLease| (member.identity.as_str(), member);
        Self {
            count,
            eligible: eligible().map(by_name).collect(),
            newest: newest_revision(eligible())
                .map(|m| m.identity.as_str())
                .collect(),
            shards,
            alive: members
                .iter()
                .filter(|m| !m.is_vacated())
                .map(by_name)
                .collect(),
        }
    }

    /// The live holder of the shard.
    fn live_holder(&self, shard: &'a ShardLease) -> Option<&'a MemberLease> {
        let member = self.alive.get(shard.holder.as_str())?;
        is_live_holder(shard.as_holder(), member.as_holder()).then_some(*member)
    }

    /// Whether replicas of more than one revision are alive, that is, an update is in progress.
    #[must_use]
    pub(crate) fn is_mixed(&self) -> bool {
        self.newest.len() < self.eligible.len()
    }

    fn can_succeed(&self, successor: &Successor) -> bool {
        let member = self.eligible.get(successor.identity.as_str());
        member.is_some_and(|member| member.incarnation == successor.incarnation)
    }

    /// For the gauges.
    #[must_use]
    pub fn overview(&self) -> Overview {
        let mut held: BTreeMap<&str, usize> = self.eligible.keys().map(|name| (*name, 0)).collect();
        let mut owned = 0;
        for holder in self
            .shards
            .iter()
            .filter_map(|shard| self.live_holder(shard))
        {
            owned += 1;
            *held.entry(&holder.identity).or_insert(0) += 1;
        }
        let most = held.values().max().copied().unwrap_or(0);
        let least = held.values().min().copied().unwrap_or(0);
        Overview {
            unowned: usize::from(self.count.get()).saturating_sub(owned),
            imbalance: most - least,
        }
    }

    /// The next moves, such that no more than `budget` are in progress at once.
    ///
    /// Replicas of an older revision receive nothing; while there are any, only their shards move.
    /// In a progressing update these should move when the older replica leaves, and not before. A
    /// leaving replica chooses its successors itself.
    #[must_use]
    pub fn moves(&self, budget: usize) -> Vec<Move> {
        let mut moves = Vec::new();
        let mut under_way = 0;
        let mut held: BTreeMap<ShardId, &str> = BTreeMap::new();
        let mut movable = Vec::new();
        for shard in self.shards {
            let Some(holder) = self.live_holder(shard) else {
                continue;
            };
            match &shard.successor {
                Some(next) if next.identity != shard.holder && self.can_succeed(next) => {
                    under_way += 1;
                    held.insert(shard.shard, &next.identity);
                }
                stale => {
                    held.insert(shard.shard, &holder.identity);
                    if !holder.draining {
                        movable.push((shard, stale.is_some()));
                    }
                }
            }
        }
        let ranking = Ranking::new(self.count, self.eligible.keys().copied());
        let wanted = place(&ranking, &held, |member| self.newest.contains(member));
        let mut left = budget.saturating_sub(under_way);
        for (shard, stale) in movable {
            let target = wanted.get(usize::from(shard.shard.0)).copied().flatten();
            match target.and_then(|target| self.successor(shard, target)) {
                Some(successor) if left > 0 => {
                    left -= 1;
                    moves.push(Move {
                        shard: shard.shard,
                        successor: Some(successor),
                    });
                }
                Some(_) | None if stale => moves.push(Move {
                    shard: shard.shard,
                    successor: None,
                }),
                Some(_) | None => {}
            }
        }
        moves
    }

    /// The target as a successor, if the shard may move there.
    fn successor(&self, shard: &ShardLease, target: &str) -> Option<Successor> {
        let from_old = !self.newest.contains(shard.holder.as_str());
        let allowed = self.newest.contains(target) && (!self.is_mixed() || from_old);
        let member = self.eligible.get(target)?;
        (allowed && target != shard.holder).then(|| Successor {
            identity: member.identity.clone(),
            incarnation: member.incarnation.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::lease::samples::{member, shard};
    use proptest::prelude::*;

    fn count() -> ShardCount {
        ShardCount::new(32).unwrap()
    }

    /// Executes all moves in progress, until none is planned.
    fn settle(members: &[MemberLease], shards: &mut [ShardLease]) -> usize {
        let mut moved = 0;
        loop {
            let moves = Fleet::new(count(), members, shards).moves(4);
            assert!(moves.len() <= 4);
            if moves.is_empty() {
                return moved;
            }
            for planned in moves {
                let successor = planned.successor.unwrap();
                let is_planned = |lease: &&mut ShardLease| lease.shard == planned.shard;
                let lease = shards.iter_mut().find(is_planned).unwrap();
                lease.holder = successor.identity;
                lease.incarnation = successor.incarnation;
                moved += 1;
                assert!(moved <= 256, "the plan does not settle");
            }
        }
    }

    #[test]
    fn the_budget_counts_moves_that_are_under_way() {
        let members = [member("a", ""), member("b", "")];
        let mut shards: Vec<ShardLease> = (0..32).map(|n| shard(n, "a")).collect();
        let first = Fleet::new(count(), &members, &shards).moves(4);
        assert_eq!(first.len(), 4);
        for planned in first {
            shards[usize::from(planned.shard.0)].successor = planned.successor;
        }
        assert_eq!(Fleet::new(count(), &members, &shards).moves(4), []);
    }

    #[test]
    fn a_successor_that_died_is_withdrawn_or_replaced() {
        let members = [member("a", "")];
        let mut shards: Vec<ShardLease> = (0..32).map(|n| shard(n, "a")).collect();
        shards[5].successor = Some(Successor {
            identity: "b".into(),
            incarnation: "b-1".into(),
        });
        let moves = Fleet::new(count(), &members, &shards).moves(4);
        let withdrawn = Move {
            shard: ShardId(5),
            successor: None,
        };
        assert_eq!(moves, [withdrawn]);
    }

    #[test]
    fn older_revisions_receive_no_shards_and_lose_them_to_newer_ones() {
        let members = [member("a", "1"), member("b", "1"), member("c", "2")];
        let mut shards: Vec<ShardLease> = (0..32)
            .map(|n| shard(n, if n < 31 { "a" } else { "c" }))
            .collect();
        settle(&members, &mut shards);
        let held = |name: &str| shards.iter().filter(|lease| lease.holder == name).count();
        assert_eq!(held("b"), 0, "an older replica received a shard");
        assert!(held("c") >= 10);
    }

    #[test]
    fn drained_replica_gives_up_its_shards_in_an_update_too_and_receives_none() {
        for revision in ["1", "2"] {
            let mut members = [member("a", "1"), member("b", "1"), member("c", revision)];
            members[0].drain_requested = true;
            let mut shards: Vec<ShardLease> = (0..32).map(|n| shard(n, "a")).collect();
            settle(&members, &mut shards);
            assert!(shards.iter().all(|lease| lease.holder != "a"), "{revision}");
            assert_eq!(Fleet::new(count(), &members, &shards).moves(4), []);
        }
    }

    #[test]
    fn fleet_of_drained_replicas_only_is_balanced_as_any_other() {
        let mut members = [member("a", ""), member("b", "")];
        members.iter_mut().for_each(|m| m.drain_requested = true);
        let mut shards: Vec<ShardLease> = (0..32).map(|n| shard(n, "a")).collect();
        assert_eq!(settle(&members, &mut shards), 16);
    }

    #[test]
    fn plan_of_a_user_is_kept_and_counted() {
        let members = [member("a", ""), member("b", ""), member("c", "")];
        let mut shards: Vec<ShardLease> = (0..32)
            .map(|n| shard(n, ["a", "b", "c"][usize::from(n % 3)]))
            .collect();
        let exchange = [(0usize, "b"), (1, "a")];
        for (n, to) in exchange {
            shards[n].successor = Some(Successor {
                identity: to.into(),
                incarnation: format!("{to}-1"),
            });
        }
        assert_eq!(Fleet::new(count(), &members, &shards).moves(4), []);
        for (n, to) in exchange {
            shards[n] = shard(shards[n].shard.0, to);
        }
        assert_eq!(
            Fleet::new(count(), &members, &shards).moves(4),
            [],
            "it stays"
        );
    }

    #[test]
    fn shards_move_only_once_membership_is_stable() {
        let mut stabilization = Stabilization::default();
        let mut allows = |now_ms, members: &[MemberLease]| {
            stabilization.allows_moves(now_ms, &Fleet::new(count(), members, &[]))
        };
        let two = [member("a", ""), member("b", "")];
        assert!(!allows(1000, &two));
        assert!(!allows(1000 + QUIET_MS - 1, &two));
        assert!(allows(1000 + QUIET_MS, &two));
        let three = [member("a", ""), member("b", ""), member("c", "")];
        assert!(!allows(9000, &three), "one joined");
        assert!(allows(9000 + QUIET_MS, &three));
        let mut restarted = three.clone();
        restarted[1].incarnation = "b-2".into();
        assert!(!allows(19_000, &restarted), "one restarted");
        restarted[2].draining = true;
        assert!(!allows(19_000 + QUIET_MS, &restarted), "one leaves");
        restarted[0].renewal += 1;
        assert!(
            allows(19_000 + 2 * QUIET_MS, &restarted),
            "a heartbeat is no change"
        );
    }

    #[test]
    fn stalled_rollout_is_balanced_after_two_minutes() {
        let mut stabilization = Stabilization::default();
        let mut allows = |now_ms, members: &[MemberLease]| {
            stabilization.allows_moves(now_ms, &Fleet::new(count(), members, &[]))
        };
        let mixed = [member("a", "1"), member("b", "1"), member("c", "2")];
        assert!(!allows(5000, &mixed));
        assert!(!allows(5000 + QUIET_IN_UPDATE_MS - 1, &mixed));
        assert!(allows(5000 + QUIET_IN_UPDATE_MS, &mixed));
        let further = [member("b", "1"), member("c", "2"), member("d", "2")];
        assert!(!allows(200_000, &further), "the update goes on");
        assert!(!allows(200_000 + QUIET_IN_UPDATE_MS - 1, &further));
        assert!(allows(200_000 + QUIET_IN_UPDATE_MS, &further));
        let done = [member("c", "2"), member("d", "2")];
        assert!(!allows(400_000, &done));
        assert!(allows(400_000 + QUIET_MS, &done), "nothing to wait for");
    }

    proptest! {
        #[test]
        fn any_fleet_settles_balanced_with_the_fewest_moves(
            holders in proptest::collection::vec(0usize..5, 32),
            size in 1usize..5,
        ) {
            let names = ["a", "b", "c", "d", "e"];
            let members: Vec<MemberLease> = names[..size].iter().map(|n| member(n, "")).collect();
            let mut shards: Vec<ShardLease> =
                holders.iter().enumerate().map(|(n, h)| shard(n as u16, names[h % size])).collect();
            let over: usize = names[..size].iter().map(|name| {
                let held = shards.iter().filter(|lease| lease.holder == *name).count();
                held.saturating_sub(32usize.div_ceil(size))
            }).sum();
            let moved = settle(&members, &mut shards);
            let overview = Fleet::new(count(), &members, &shards).overview();
            prop_assert!(overview.imbalance <= 1);
            prop_assert_eq!(overview.unowned, 0);
            prop_assert!(moved >= over && moved <= over + size, "{} moves for {}", moved, over);
        }
    }
}
