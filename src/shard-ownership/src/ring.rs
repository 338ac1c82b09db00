//! Placement of shards on members: consistent hashing with bounded load.
//!
//! The ring (crate `consistent_hash`) ranks the members for each shard. [`place`] turns ranks into
//! an assignment in which every member holds `floor(S/R)` or `ceil(S/R)` shards, and which keeps
//! what is already held within that bound, so that a join or a leave moves as few shards as
//! possible.
//!
//! Source of the idea: Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads",
//! SODA 2018, <https://arxiv.org/abs/1608.01350>.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use consistent_hash::{Node, RingHash, StaticHashRing};

use super::hash::{ShardCount, ShardId};

/// Points of each member on the ring. More points spread the ranks more evenly; the bound on the
/// load does not depend on it.
const POINTS_PER_MEMBER: usize = 64;

/// A name that hashes as exactly its bytes: `Hash for str` is not guaranteed to stay the same
/// between compiler versions, and replicas of two versions must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name<'a>(&'a str);

impl Hash for Name<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.0.as_bytes());
    }
}

/// FNV-1a 64 over the bytes written, finished by the mixer of SplitMix64: FNV alone leaves the high
/// bits of names that differ only at their end too close together for a ring.
struct StableHasher(u64);

impl StableHasher {
    const fn new() -> Self {
        Self(super::hash::fnv1a64(b""))
    }
}

impl Hasher for StableHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Our [`RingHash`]: explicit bytes in, the same number out on every machine and in every version.
struct StableRingHash;

impl RingHash for StableRingHash {
    fn hash_item<T: Hash>(&self, item: &T) -> u64 {
        let mut hasher = StableHasher::new();
        item.hash(&mut hasher);
        hasher.finish()
    }

    fn hash_vnode<K: Hash>(&self, node_key: &K, vnode_seq: usize) -> u64 {
        let mut hasher = StableHasher::new();
        node_key.hash(&mut hasher);
        hasher.write(b"#");
        hasher.write(&(vnode_seq as u64).to_be_bytes());
        hasher.finish()
    }
}

/// The members in the order in which the ring prefers them, for every shard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ranking {
    /// Sorted, without duplicates.
    members: Vec<String>,
    /// For each shard, indices into `members`, the preferred one first.
    preferred: Vec<Vec<usize>>,
}

impl Ranking {
    /// Ranks the members for every shard. Order and duplicates of `members` do not matter.
    #[must_use]
    pub(crate) fn new<'a>(count: ShardCount, members: impl IntoIterator<Item = &'a str>) -> Self {
        let mut members: Vec<String> = members.into_iter().map(str::to_owned).collect();
        members.sort_unstable();
        members.dedup();
        let nodes = members.iter().enumerate().map(|(index, name)| Node {
            key: Name(name),
            value: index,
            quantity: POINTS_PER_MEMBER,
        });
        let ring = StaticHashRing::new(StableRingHash, nodes);
        let preferred = count
            .shards()
            .map(|shard| {
                let item = format!("shard-{:03}-of-{}", shard.0, count.get());
                ring.calc_candidates(&Name(&item))
                    .map(|node| node.value)
                    .collect()
            })
            .collect();
        Self { members, preferred }
    }

    /// The members, sorted.
    #[must_use]
    pub(crate) fn members(&self) -> &[String] {
        &self.members
    }

    /// The members in the ring's order for this shard.
    pub(crate) fn order(&self, shard: ShardId) -> impl Iterator<Item = &str> {
        self.preferred
            .get(usize::from(shard.0))
            .into_iter()
            .flatten()
            .filter_map(|&index| self.members.get(index))
            .map(String::as_str)
    }

    fn rank_of(&self, shard: usize, member: usize) -> usize {
        self.preferred
            .get(shard)
            .and_then(|order| order.iter().position(|&m| m == member))
            .unwrap_or(usize::MAX)
    }
}

/// Assigns every shard to a member (an index into nothing: the names themselves), or to nobody when
/// there is no member.
///
/// `held` is the current holder of each shard; names that are not among the members count as no
/// holder. The result is the same on every replica that sees the same members and the same holders.
///
/// Guarantees if all members may receive shards, each tested as a property: every member gets `floor(S/R)` or
/// `ceil(S/R)` shards; a second call with the result changes nothing; when a member joins or leaves a balanced fleet,
/// at most `ceil(S/R)` shards move.
///
/// What is free goes to those who `may_receive` it: in a rolling update, to the newest revision. The
/// others keep what they hold, within the same bound, so that each newcomer is given the share that it
/// will have in the end, and a shard moves once. What fits within no member's bound goes to the one that
/// holds least of those that may receive it: every shard needs an owner.
#[must_use]
pub(crate) fn place<'a>(
    ranking: &'a Ranking,
    held: &BTreeMap<ShardId, &str>,
    may_receive: impl Fn(&str) -> bool,
) -> Vec<Option<&'a str>> {
    let shards = ranking.preferred.len();
    let members = ranking.members.len();
    if members == 0 {
        return vec![None; shards];
    }
    let now = holders_by_index(ranking, held, shards);
    let allowance = allowances(&now, shards, members);
    let mut assigned = keep_within(ranking, &now, &allowance);
    let mut load = vec![0usize; members];
    for member in assigned.iter().flatten() {
        load[*member] += 1;
    }
    let open: Vec<bool> = ranking.members.iter().map(|m| may_receive(m)).collect();
    for (shard, slot) in assigned.iter_mut().enumerate() {
        if slot.is_none() {
            let candidates = || {
                ranking.preferred[shard]
                    .iter()
                    .copied()
                    .filter(|&m| open[m])
            };
            let choice = candidates()
                .find(|&member| load[member] < allowance[member])
                .or_else(|| candidates().min_by_key(|&member| load[member]));
            if let Some(member) = choice {
                load[member] += 1;
            }
            *slot = choice;
        }
    }
    assigned
        .into_iter()
        .map(|member| member.map(|index| ranking.members[index].as_str()))
        .collect()
}

fn holders_by_index(
    ranking: &Ranking,
    held: &BTreeMap<ShardId, &str>,
    shards: usize,
) -> Vec<Option<usize>> {
    let mut now = vec![None; shards];
    for (shard, holder) in held {
        if let Some(slot) = now.get_mut(usize::from(shard.0)) {
            *slot = ranking
                .members
                .binary_search_by(|member| member.as_str().cmp(holder))
                .ok();
        }
    }
    now
}

/// `floor(S/R)` for each, and one more for as many as the remainder: for those that hold most
/// already, so that they need not hand it over.
fn allowances(now: &[Option<usize>], shards: usize, members: usize) -> Vec<usize> {
    let mut count = vec![0usize; members];
    for member in now.iter().flatten() {
        count[*member] += 1;
    }
    let mut by_count: Vec<usize> = (0..members).collect();
    by_count.sort_by_key(|&member| (std::cmp::Reverse(count[member]), member));
    let mut allowance = vec![shards / members; members];
    for &member in by_count.iter().take(shards % members) {
        allowance[member] += 1;
    }
    allowance
}

/// Each member keeps what it holds up to its allowance: the shards for which the ring ranks it best.
fn keep_within(
    ranking: &Ranking,
    now: &[Option<usize>],
    allowance: &[usize],
) -> Vec<Option<usize>> {
    let mut kept = vec![None; now.len()];
    for (member, &most) in allowance.iter().enumerate() {
        let mut mine: Vec<usize> = (0..now.len())
            .filter(|&shard| now[shard] == Some(member))
            .collect();
        mine.sort_by_key(|&shard| (ranking.rank_of(shard, member), shard));
        for &shard in mine.iter().take(most) {
            kept[shard] = Some(member);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn as_held<'a>(assigned: &[Option<&'a str>]) -> BTreeMap<ShardId, &'a str> {
        assigned
            .iter()
            .enumerate()
            .filter_map(|(shard, holder)| holder.map(|h| (ShardId(shard as u16), h)))
            .collect()
    }

    fn placed<'a>(ranking: &'a Ranking, held: &BTreeMap<ShardId, &str>) -> Vec<Option<&'a str>> {
        place(ranking, held, |_| true)
    }

    fn loads(ranking: &Ranking, assigned: &[Option<&str>]) -> Vec<usize> {
        let count = |m: &String| assigned.iter().filter(|a| **a == Some(m.as_str())).count();
        ranking.members().iter().map(count).collect()
    }

    fn moved(before: &[Option<&str>], after: &[Option<&str>]) -> usize {
        before.iter().zip(after).filter(|(b, a)| b != a).count()
    }

    #[test]
    fn the_ranks_are_the_same_in_every_version() {
        let ranking = Ranking::new(
            ShardCount::new(8).unwrap(),
            ["operator-a", "operator-b", "operator-c"],
        );
        let first: Vec<&str> = (0..8)
            .map(|s| ranking.order(ShardId(s)).next().unwrap())
            .map(|name| name.trim_start_matches("operator-"))
            .collect();
        assert_eq!(first.join(""), GOLDEN_FIRST_OF_EIGHT);
    }

    // Replicas of two versions share a fleet during an upgrade: changing this splits their views.
    const GOLDEN_FIRST_OF_EIGHT: &str = "aacbabcc";

    #[test]
    fn empty_fleet_has_no_holders() {
        let ranking = Ranking::new(ShardCount::new(4).unwrap(), []);
        assert_eq!(placed(&ranking, &BTreeMap::new()), vec![None; 4]);
    }

    #[test]
    fn three_members_hold_ten_or_eleven_of_32_and_a_fourth_gets_eight() {
        let count = ShardCount::new(32).unwrap();
        let three = Ranking::new(count, ["a", "b", "c"]);
        let before = placed(&three, &BTreeMap::new());
        let mut load = loads(&three, &before);
        load.sort_unstable();
        assert_eq!(load, [10, 11, 11]);
        let four = Ranking::new(count, ["a", "b", "c", "d"]);
        let after = placed(&four, &as_held(&before));
        assert_eq!(loads(&four, &after), [8, 8, 8, 8]);
        assert_eq!(moved(&before, &after), 8);
    }

    #[test]
    fn in_a_rolling_update_every_shard_moves_once_and_the_end_is_balanced() {
        for (shards, size) in [(32, 3), (32, 5), (8, 3), (256, 7), (16, 1)] {
            let count = ShardCount::new(shards).unwrap();
            let (old, new): (Vec<String>, Vec<String>) = (0..size)
                .map(|n| (format!("old-{n}"), format!("new-{n}")))
                .unzip();
            let name = |all: &'static str| move |member: &str| member.starts_with(all);
            let first = Ranking::new(count, old.iter().map(String::as_str));
            let before = placed(&first, &BTreeMap::new());
            let mut now: Vec<String> = before.iter().map(|h| h.unwrap().to_owned()).collect();
            let mut moves = 0;
            for n in 0..size {
                // One more of the new revision has joined, and one of the old revision leaves.
                let members = old[n + 1..].iter().chain(&new[..=n]);
                let ranking = Ranking::new(count, members.map(String::as_str));
                let held = now.iter().enumerate();
                let held = held.map(|(s, h)| (ShardId(s as u16), h.as_str())).collect();
                let after = place(&ranking, &held, name("new"));
                let next = now.iter().zip(&after).map(|(is, to)| {
                    let moves_now = *is == old[n];
                    if moves_now {
                        to.unwrap().to_owned()
                    } else {
                        is.clone()
                    }
                });
                let next: Vec<String> = next.collect();
                moves += now.iter().zip(&next).filter(|(a, b)| a != b).count();
                now = next;
            }
            assert_eq!(moves as u64, shards, "of {shards} shards, {size} members");
            let ranking = Ranking::new(count, new.iter().map(String::as_str));
            let held: BTreeMap<ShardId, &str> = now
                .iter()
                .enumerate()
                .map(|(s, h)| (ShardId(s as u16), h.as_str()))
                .collect();
            let last = placed(&ranking, &held);
            let held: Vec<Option<&str>> = now.iter().map(|h| Some(h.as_str())).collect();
            assert_eq!(moved(&held, &last), 0, "balance needs no second move");
        }
    }

    fn fleet() -> impl Strategy<Value = (u64, std::collections::BTreeSet<String>)> {
        (
            0u32..=8,
            proptest::collection::btree_set("[a-z]{1,6}(-[0-9a-f]{5})?", 1..24),
        )
            .prop_map(|(exponent, members)| (1u64 << exponent, members))
    }

    proptest! {
        #[test]
        fn every_shard_has_one_holder_and_loads_differ_by_one_at_most(
            (shards, members) in fleet(),
            seed in proptest::collection::vec(any::<proptest::sample::Index>(), 256),
            vacant in proptest::collection::vec(any::<bool>(), 256),
        ) {
            let count = ShardCount::new(shards).unwrap();
            let ranking = Ranking::new(count, members.iter().map(String::as_str));
            let names: Vec<&str> = members.iter().map(String::as_str).collect();
            let held: BTreeMap<ShardId, &str> = count.shards()
                .filter(|s| !vacant[usize::from(s.0)])
                .map(|s| (s, *seed[usize::from(s.0)].get(&names)))
                .collect();
            let assigned = placed(&ranking, &held);
            prop_assert!(assigned.iter().all(Option::is_some));
            let floor = shards as usize / names.len();
            let ceil = (shards as usize).div_ceil(names.len());
            for load in loads(&ranking, &assigned) {
                prop_assert!((floor..=ceil).contains(&load));
            }
            prop_assert_eq!(&placed(&ranking, &as_held(&assigned)), &assigned);
        }

        #[test]
        fn a_join_or_a_leave_moves_at_most_one_share((shards, members) in fleet(), newcomer in "[A-Z]{3}") {
            let count = ShardCount::new(shards).unwrap();
            let small = Ranking::new(count, members.iter().map(String::as_str));
            let large = Ranking::new(count, members.iter().map(String::as_str).chain([newcomer.as_str()]));
            let before = placed(&small, &BTreeMap::new());
            let joined = placed(&large, &as_held(&before));
            let share = (shards as usize).div_ceil(members.len() + 1);
            prop_assert!(moved(&before, &joined) <= share);
            let left = placed(&small, &as_held(&joined));
            prop_assert!(moved(&joined, &left) <= share);
        }

        #[test]
        fn placement_is_independent_of_member_order(
            (shards, members) in fleet(),
        ) {
            let count = ShardCount::new(shards).unwrap();
            let forward = Ranking::new(count, members.iter().map(String::as_str));
            let backward = Ranking::new(count, members.iter().rev().map(String::as_str));
            prop_assert_eq!(forward, backward);
        }
    }
}
